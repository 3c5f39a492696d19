//! The engine on the simulated disk: a model beside it, crashes at any operation, other core counts, full disks, clocks that fall back.

use super::batch::{Batch, KeyRef};
use super::pick::Policy;
use super::recover::{NodeConfig, NodeStore};
use super::store::{Engine, EngineConfig};
use super::test_core::{lives_with_failing_syncs, on};
use super::{EngineError, Planted, Seq};
use crate::base::prng::Prng;
use crate::base::record::{Cell, Kind, Version, token_of, vnode_of};
use crate::base::time::WallMs;
use crate::io::Io;
use crate::io::sim::{CrashSite, Faults, World};
use crate::limits::CHUNK_BYTES;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

const VNODES: u32 = 16;

fn config(core: u16, planted: Option<Planted>) -> EngineConfig {
    EngineConfig {
        memtable_bytes: 160 << 10,
        memtable_chunk_bytes: 4096,
        cache_bytes: 64 << 10,
        wal_segment_bytes: 512 << 10,
        wal_segments_max: 5,
        wal_pending_bytes_max: 512 << 10,
        table_bytes_max: 64 << 10,
        block_bytes: 1024,
        policy: Policy { level0_runs: 3, level1_runs: 2, dead_bytes_min: 4096, ..Policy::default() },
        // Soon enough for tombstones to be forgotten within a life.
        forget_after_ms: Some(400),
        planted,
        ..EngineConfig::new(core, 1 << 20, 7)
    }
}

/// A node's engines, all on one simulated core.
struct Node {
    engines: Vec<Engine>,
}

fn core_of(vnode: u32, cores: u16) -> u16 {
    (vnode % u32::from(cores)) as u16
}

impl Node {
    async fn open(io: &Io, cores: u16, planted: Option<Planted>) -> Result<(Node, u32), EngineError> {
        Node::open_at(io, Path::new("/data"), cores, planted).await
    }

    async fn open_at(io: &Io, data: &Path, cores: u16, planted: Option<Planted>) -> Result<(Node, u32), EngineError> {
        let node = NodeConfig { cores, vnodes: VNODES, identity: None, core_of };
        let store = NodeStore::open(io, data, node).await?;
        let (mut engines, mut torn) = (Vec::new(), 0);
        for core in 0..cores {
            torn += Engine::read_old_logs(io, &store, &config(core, planted)).await?.wal.torn_groups;
        }
        for core in 0..cores {
            let (engine, report) = Engine::open(io, &store, config(core, planted)).await?;
            torn += report.wal.torn_groups;
            engines.push(engine);
        }
        store.commit(io).await?;
        Ok((Node { engines }, torn))
    }

    fn engine(&self, key: &[u8]) -> &Engine {
        &self.engines[self.shard(key)]
    }

    /// From here on merges forget what is dead on a core: what comes back after that is seen.
    async fn forget(&self, io: &Io, core: u16) -> Result<(), EngineError> {
        let engine = &self.engines[usize::from(core)];
        let floor = engine.stamp(io.wall_ms());
        for vnode in (0..VNODES).filter(|&vnode| core_of(vnode, self.engines.len() as u16) == core) {
            engine.set_floor(1, vnode, floor).await?;
        }
        Ok(())
    }

    fn shard(&self, key: &[u8]) -> usize {
        usize::from(core_of(vnode_of(token_of(key), VNODES), self.engines.len() as u16))
    }
}

fn key_ref(key: &[u8]) -> KeyRef<'_> {
    KeyRef { namespace: 1, token: token_of(key), key }
}

#[test]
fn a_namespace_that_becomes_packed_shrinks_as_merges_rewrite_it_and_grows_back() {
    let world = World::new(4);
    let machine = world.add_machine(Faults::default());
    let sizes = on(&world, machine, |io| async move {
        let (node, _) = Node::open(&io, 1, None).await.unwrap();
        let engine = &node.engines[0];
        let keys: Vec<Vec<u8>> = (0..2000).map(|n| format!("key {n}").into_bytes()).collect();
        let value = |key: &[u8]| [key, &b"the same words again and again, ".repeat(9)].concat();
        let mut sizes = Vec::new();
        // A namespace beside it, never packed.
        for (packed, touched) in [(false, false), (false, true), (true, true), (true, true), (false, true)] {
            engine.set_packed(if packed { &[1] } else { &[] });
            for key in keys.iter().filter(|_| touched || sizes.is_empty()) {
                for namespace in [1, 2] {
                    let (mut batch, version) = (Batch::new(false), engine.stamp(io.wall_ms()));
                    batch.put_value(KeyRef { namespace, ..key_ref(key) }, &value(key), version, 0);
                    while let Err(EngineError::Overloaded) = engine.write(&batch) {
                        io.sleep(Duration::from_millis(1)).await;
                    }
                }
            }
            engine.flush().await.unwrap();
            engine.compact_all().await.unwrap();
            for key in &keys {
                for namespace in [1, 2] {
                    let key = KeyRef { namespace, ..key_ref(key) };
                    assert_eq!(engine.read_value(key, io.wall_ms()).await.unwrap().unwrap().bytes, value(key.key));
                }
            }
            // Of what is there, old cells that no merge has taken yet included.
            sizes.push(engine.stats().table_bytes * 100 / engine.stats().table_raw_bytes);
        }
        sizes
    })
    .expect("no crash");
    assert!(sizes[..2].iter().all(|&percent| percent >= 95), "{sizes:?}");
    assert!(sizes[3] <= 75, "half of it packs by far more than half: {sizes:?}");
    assert!(sizes[4] > sizes[3] + 10, "{sizes:?}");
}

#[test]
fn writes_that_keep_the_engines_pace_are_never_refused() {
    let world = World::new(11);
    let machine = world.add_machine(Faults::default());
    let (slowed, behind, stats) = on(&world, machine, |io| async move {
        let (node, _) = Node::open(&io, 1, None).await.unwrap();
        let engine = &node.engines[0];
        let (mut prng, mut credit, mut slowed, mut behind) = (Prng::new(3), 0.0, 0, 0);
        for _ in 0..3000 {
            let rate = engine.write_rate();
            slowed += u32::from(rate.is_some());
            behind += u32::from(engine.is_behind());
            credit = f64::min(credit + rate.unwrap_or(16e6) / 1e3, 16e3);
            while credit > 0.0 && !engine.is_behind() {
                let (mut batch, key) = (Batch::new(true), format!("key {}", prng.below(2000)));
                batch.put_value(key_ref(key.as_bytes()), &[7; 1000], engine.stamp(io.wall_ms()), 0);
                engine.write(&batch).expect("it keeps the pace");
                credit -= 1100.0;
            }
            io.sleep(Duration::from_millis(1)).await;
        }
        (slowed, behind, engine.stats())
    })
    .expect("no crash");
    assert!(slowed > 300 && stats.flushes > 20 && stats.merges > 3, "slowed in {slowed} ms, {stats:?}");
    assert!(behind < 100, "waiting for the end of something in {behind} ms");
}

/// A write that was told to the engine.
#[derive(Clone, Debug)]
struct Write {
    version: Version,
    value: Option<Vec<u8>>,
    deadline_ms: WallMs,
    acknowledged: bool,
}

impl Write {
    fn is_live(&self, now_ms: WallMs) -> bool {
        self.value.is_some() && (self.deadline_ms == 0 || self.deadline_ms > now_ms)
    }
}

/// Shard, sequence, key, version.
type Waiting = (usize, Seq, Vec<u8>, Version);

#[derive(Default)]
struct Model {
    keys: RefCell<BTreeMap<Vec<u8>, Vec<Write>>>,
    /// What waits to be durable.
    waiting: RefCell<Vec<Waiting>>,
    newest: RefCell<Version>,
    checked: RefCell<u64>,
}

fn wrong(what: String) -> EngineError {
    EngineError::Stopped(format!("WRONG: {what}"))
}

impl Model {
    fn acknowledge(&self, shard: usize, durable: Seq) {
        self.waiting.borrow_mut().retain(|(of, seq, key, version)| {
            let is_durable = *of == shard && *seq <= durable;
            if is_durable {
                let newest = *self.newest.borrow();
                *self.newest.borrow_mut() = newest.max(*version);
                let mut keys = self.keys.borrow_mut();
                keys.get_mut(key).unwrap().iter_mut().filter(|w| w.version == *version).for_each(|w| w.acknowledged = true);
            }
            !is_durable
        });
    }

    /// After a restart: every key shows its last acknowledged write or a later one, and the model forgets what was lost.
    async fn recover(&self, io: &Io, node: &Node) -> Result<(), EngineError> {
        self.waiting.borrow_mut().clear();
        let keys: Vec<Vec<u8>> = self.keys.borrow().keys().cloned().collect();
        for key in keys {
            let now_ms = io.wall_ms();
            let found = node.engine(&key).read_value(key_ref(&key), now_ms).await?;
            let later_ms = io.wall_ms();
            let mut all = self.keys.borrow_mut();
            let writes = all.get_mut(&key).unwrap();
            let first = writes.iter().rposition(|w| w.acknowledged).unwrap_or(0);
            let nothing = !writes.iter().any(|w| w.acknowledged);
            let fits = |w: &Write| match &found {
                Some(value) => w.version == value.version && w.value.as_ref() == Some(&value.bytes) && w.deadline_ms == value.deadline_ms,
                None => !w.is_live(later_ms),
            };
            match writes[first..].iter().rposition(fits) {
                Some(at) => writes.truncate(first + at + 1),
                None if nothing && found.is_none() => writes.clear(),
                None => {
                    let seen = found.map(|v| (v.version, v.bytes.len()));
                    let may: Vec<_> = writes[first..].iter().map(|w| (w.version, w.value.as_ref().map(Vec::len), w.deadline_ms)).collect();
                    return Err(wrong(format!("{key:?} shows {seen:?} and may show {may:?}, acknowledged {}", writes[first].acknowledged)));
                }
            }
            writes.iter_mut().for_each(|w| w.acknowledged = true);
            *self.checked.borrow_mut() += 1;
        }
        Ok(())
    }

    /// In one life every read shows the last write.
    async fn check(&self, io: &Io, node: &Node, key: &[u8]) -> Result<(), EngineError> {
        let now_ms = io.wall_ms();
        let engine = node.engine(key);
        let peeked = engine.peek(key_ref(key), |cell, _| cell.filter(|c| c.is_live(now_ms)).map(|c| c.version));
        let expected = self.keys.borrow().get(key).and_then(|w| w.last().cloned()).filter(|w| w.is_live(now_ms));
        let expected_version = expected.as_ref().map(|w| w.version);
        if let Ok(peeked) = peeked
            && peeked != expected_version
        {
            return Err(wrong(format!("{key:?}: peek shows {peeked:?}, last was {expected_version:?}")));
        }
        let read = engine.read_value(key_ref(key), now_ms).await?.map(|v| (v.version, v.bytes));
        if expected.as_ref().is_some_and(|w| !w.is_live(io.wall_ms())) {
            return Ok(());
        }
        if read != expected.map(|w| (w.version, w.value.unwrap())) {
            return Err(wrong(format!("{key:?}: read shows {:?}, last was {expected_version:?}", read.map(|r| r.0))));
        }
        Ok(())
    }

    /// A whole scan of every vnode shows exactly what is live.
    async fn check_scan(&self, io: &Io, node: &Node) -> Result<(), EngineError> {
        let now_ms = io.wall_ms();
        let mut seen = BTreeMap::new();
        for vnode in 0..VNODES {
            let engine = &node.engines[usize::from(core_of(vnode, node.engines.len() as u16))];
            let mut after: Option<Vec<u8>> = None;
            loop {
                let page = engine.scan(1, vnode, after.as_deref(), 7, now_ms).await?;
                seen.extend(page.entries.into_iter().map(|e| (e.key, (e.version, e.value))));
                after = page.next;
                if after.is_none() {
                    break;
                }
            }
        }
        let keys = self.keys.borrow();
        let live = keys.iter().filter_map(|(key, writes)| writes.last().filter(|w| w.is_live(now_ms)).map(|w| (key.clone(), w)));
        let live: BTreeMap<_, _> = live.map(|(key, w)| (key, (w.version, w.value.clone().unwrap()))).collect();
        // What expired while the scan ran may be shown or not.
        let later_ms = io.wall_ms();
        let is_sure = |key: &Vec<u8>| keys[key].last().is_none_or(|w| w.is_live(now_ms) == w.is_live(later_ms));
        let live: BTreeMap<_, _> = live.into_iter().filter(|(key, _)| is_sure(key)).collect();
        seen.retain(|key, _| is_sure(key));
        if seen != live {
            return Err(wrong(format!("a scan shows {} keys, {} are live", seen.len(), live.len())));
        }
        Ok(())
    }

    fn write(&self, io: &Io, node: &Node, prng: &mut Prng) -> Result<(), EngineError> {
        let key = format!("key {}", prng.below(60)).into_bytes();
        let (shard, engine, now_ms) = (node.shard(&key), node.engine(&key), io.wall_ms());
        let version = engine.stamp(now_ms);
        if version <= *self.newest.borrow() && node.engines.len() == 1 {
            return Err(wrong(format!("stamped {version:?} after {:?}", self.newest.borrow())));
        }
        let mut batch = Batch::new(!prng.one_in(3));
        let mut write = Write { version, value: None, deadline_ms: 0, acknowledged: false };
        if prng.one_in(4) {
            batch.push(key_ref(&key), Kind::Head, b"", &Cell::tombstone(version));
        } else {
            let len = if prng.one_in(40) { CHUNK_BYTES as u64 + prng.below(100_000) } else { prng.below(1500) };
            let mut value = vec![0; len as usize];
            prng.fill(&mut value);
            write.deadline_ms = if prng.one_in(4) { now_ms + 1 + prng.below(300) } else { 0 };
            batch.put_value(key_ref(&key), &value, version, write.deadline_ms);
            write.value = Some(value);
        }
        match engine.write(&batch) {
            Ok(seq) => {
                self.keys.borrow_mut().entry(key.clone()).or_default().push(write);
                self.waiting.borrow_mut().push((shard, seq, key, version));
                Ok(())
            }
            Err(EngineError::Overloaded) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// One life of a node.
async fn live(io: Io, model: Rc<Model>, mut prng: Prng, cores: u16, ops: u32, planted: Option<Planted>) -> Result<(), EngineError> {
    let (node, _) = Node::open(&io, cores, planted).await?;
    for (shard, engine) in node.engines.iter().enumerate() {
        let told = model.clone();
        engine.on_durable(Box::new(move |durable| drop(durable.map(|seq| told.acknowledge(shard, seq)))));
    }
    model.recover(&io, &node).await?;
    model.check_scan(&io, &node).await?;
    for _ in 0..ops {
        match prng.below(20) {
            0..=11 => model.write(&io, &node, &mut prng)?,
            12..=15 => model.check(&io, &node, format!("key {}", prng.below(60)).as_bytes()).await?,
            16 => io.sleep(Duration::from_millis(prng.below(40))).await,
            17 if prng.one_in(4) => model.check_scan(&io, &node).await?,
            18 if prng.one_in(4) => node.engines[prng.below(u64::from(cores)) as usize].flush().await?,
            19 if prng.one_in(6) => {
                let core = prng.below(u64::from(cores)) as u16;
                node.forget(&io, core).await?;
                node.engines[usize::from(core)].compact_all().await?;
            }
            _ => {
                let engine = &node.engines[prng.below(u64::from(cores)) as usize];
                engine.wait_durable(engine.core.wal.last()).await?;
            }
        }
    }
    for engine in &node.engines {
        engine.close().await?;
    }
    model.check_scan(&io, &node).await
}

struct Life {
    cores: u16,
    crash_op: u64,
    site: CrashSite,
    wall_offset_ms: i64,
}

const SITES: [CrashSite; 3] = [CrashSite::Before, CrashSite::During, CrashSite::After];

fn lives(seed: u64, lives: &[Life], planted: Option<Planted>) -> Result<(World, Rc<Model>), EngineError> {
    let world = World::new(seed);
    let machine = world.add_machine(Faults::default());
    let model = Rc::new(Model::default());
    let mut prng = Prng::new(seed);
    for (number, life) in lives.iter().enumerate() {
        world.set_wall_offset_ms(machine, life.wall_offset_ms);
        world.crash_at_op(machine, world.disk_ops(machine) + life.crash_op, life.site);
        let (known, fork, cores) = (model.clone(), prng.fork(), life.cores);
        let ended = on(&world, machine, move |io| live(io, known, fork, cores, 250, planted));
        match ended {
            Some(result) => result?,
            None if !world.is_up(machine) => {}
            None => return Err(wrong(format!("life {number} does not end"))),
        }
    }
    Ok((world, model))
}

fn random_lives(prng: &mut Prng, count: usize, cores_max: u64) -> Vec<Life> {
    let one = |_| Life {
        cores: 1 + prng.below(cores_max) as u16,
        crash_op: if prng.one_in(4) { u64::MAX / 2 } else { 1 + prng.below(400) },
        site: SITES[prng.below(3) as usize],
        wall_offset_ms: 0,
    };
    (0..count).map(one).collect()
}

/// Seeds of one run; `RINGKV_SEEDS=1000..2000` runs others.
fn seeds() -> std::ops::Range<u64> {
    let asked = std::env::var("RINGKV_SEEDS").ok();
    let parsed = asked.as_deref().and_then(|text| text.split_once("..")).and_then(|(a, b)| Some(a.parse().ok()?..b.parse().ok()?));
    parsed.unwrap_or(0..40)
}

#[test]
fn crashes_at_any_operation_lose_nothing_acknowledged_and_bring_nothing_back() {
    let mut checked = 0;
    for seed in seeds() {
        let plan = random_lives(&mut Prng::new(seed), 5, 1);
        let (_, model) = lives(seed, &plan, None).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
        checked += *model.checked.borrow();
    }
    assert!(checked > 3000, "{checked}");
}

#[test]
fn what_a_failed_sync_left_in_the_cache_only_is_not_built_upon() {
    let (mut failed, mut checked) = (0, 0);
    for seed in seeds() {
        let (model, mut prng) = (Rc::new(Model::default()), Prng::new(seed));
        failed += lives_with_failing_syncs(seed, 40, 8, "/data", |io| {
            let cores = 1 + prng.below(3) as u16;
            live(io, model.clone(), prng.fork(), cores, 100, None)
        });
        checked += *model.checked.borrow();
    }
    assert!(failed > 100 && checked > 1000, "{failed} failed, {checked} checked");
}

#[test]
fn another_core_count_keeps_everything_and_a_crash_while_it_moves_too() {
    for seed in seeds() {
        let plan = random_lives(&mut Prng::new(seed), 6, 3);
        lives(500 + seed, &plan, None).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
    }
}

#[test]
fn many_other_core_counts_one_after_another_keep_everything_and_bring_nothing_back() {
    for seed in 0..30 {
        let mut plan = random_lives(&mut Prng::new(7000 + seed), 12, 5);
        // Many lives end in peace, so that tables come far.
        plan.iter_mut().filter(|life| life.crash_op % 3 == 0).for_each(|life| life.crash_op = u64::MAX / 2);
        lives(7000 + seed, &plan, None).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
    }
}

#[test]
fn the_planted_bugs_are_found() {
    for planted in [Planted::SyncSkipped, Planted::TornTailAccepted, Planted::ClockRestartedLow] {
        let mut prng = Prng::new(5);
        let found = (0..1000).any(|seed| {
            let mut plan = random_lives(&mut prng, 4, 1);
            plan.iter_mut().for_each(|life| life.crash_op = life.crash_op.min(1000));
            plan.iter_mut().skip(1).for_each(|life| life.wall_offset_ms = -3_600_000 * i64::from(planted == Planted::ClockRestartedLow));
            lives(seed, &plan, Some(planted)).is_err()
        });
        assert!(found, "{planted:?}");
    }
}

#[test]
fn a_snapshot_is_a_node_folder_that_opens_with_what_was_there() {
    let world = World::new(8);
    let machine = world.add_machine(Faults::default());
    let result = on(&world, machine, move |io| async move {
        let store = NodeStore::open(&io, Path::new("/data"), NodeConfig { cores: 2, vnodes: VNODES, identity: None, core_of }).await?;
        let mut engines = Vec::new();
        for core in 0..2 {
            engines.push(Engine::open(&io, &store, config(core, None)).await?.0);
        }
        store.commit(&io).await?;
        let node = Node { engines };
        let put = |n: u64, value: &[u8]| {
            let key = format!("key {n}").into_bytes();
            let mut batch = Batch::new(true);
            batch.put_value(key_ref(&key), value, node.engine(&key).stamp(io.wall_ms()), 0);
            node.engine(&key).write(&batch)
        };
        (0..100).try_for_each(|n| put(n, b"before").map(drop))?;
        for engine in &node.engines {
            engine.snapshot(Path::new("/copy")).await?;
        }
        store.snapshot_layout(&io, Path::new("/copy")).await?;
        (0..100).try_for_each(|n| put(n, b"after").map(drop))?;
        for engine in &node.engines {
            engine.compact_all().await?;
            engine.close().await?;
        }
        let (copy, _) = Node::open_at(&io, Path::new("/copy"), 2, None).await?;
        for n in 0..100 {
            let key = format!("key {n}").into_bytes();
            let value = copy.engine(&key).read_value(key_ref(&key), io.wall_ms()).await?;
            assert_eq!(value.map(|v| v.bytes), Some(b"before".to_vec()), "{n}");
        }
        Ok::<_, EngineError>(())
    });
    result.unwrap().unwrap();
}

#[test]
fn a_clock_that_falls_back_between_two_lives_stamps_above_all_the_same() {
    for seed in 0..10 {
        let mut plan = random_lives(&mut Prng::new(seed), 4, 1);
        // Deadlines would come back to life for a while; a life that looks at them must not judge by a clock that fell.
        plan.iter_mut().for_each(|life| life.crash_op = u64::MAX / 2);
        for (number, life) in plan.iter_mut().enumerate() {
            life.wall_offset_ms = number as i64 * 1_000_000 * if seed % 2 == 0 { 1 } else { 0 };
        }
        lives(900 + seed, &plan, None).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
    }
}

#[test]
fn a_full_disk_refuses_writes_takes_deletes_and_recovers_without_a_restart() {
    let world = World::new(3);
    let machine = world.add_machine(Faults::default());
    let inside = world.clone();
    let result = on(&world, machine, move |io| async move {
        let (node, _) = Node::open(&io, 1, None).await?;
        let engine = &node.engines[0];
        let put = |n: u64, value: &[u8]| {
            let key = format!("key {n}").into_bytes();
            let mut batch = Batch::new(true);
            batch.put_value(key_ref(&key), value, engine.stamp(io.wall_ms()), 0);
            engine.write(&batch)
        };
        for n in 0..200 {
            engine.wait_durable(put(n, &[1; 1000])?).await?;
        }
        io.sleep(Duration::from_millis(200)).await;
        inside.set_capacity(machine, inside.disk_bytes(machine) + (64 << 10));
        let (mut full, mut n) = (false, 200);
        while !full && n < 5000 {
            match put(n, &[2; 1000]) {
                Ok(seq) => engine.wait_durable(seq).await?,
                Err(EngineError::DiskFull) => full = true,
                Err(EngineError::Overloaded) => io.sleep(Duration::from_millis(5)).await,
                Err(other) => return Err(other),
            }
            n += 1;
        }
        assert!(full && engine.stopped().is_none());
        assert_eq!(engine.read_value(key_ref(b"key 7"), io.wall_ms()).await?.map(|v| v.bytes), Some(vec![1; 1000]));
        let mut delete = Batch::new(true);
        delete.push(key_ref(b"key 7"), Kind::Head, b"", &Cell::tombstone(engine.stamp(io.wall_ms())));
        engine.wait_durable(engine.write(&delete)?).await?;
        assert_eq!(engine.read_value(key_ref(b"key 7"), io.wall_ms()).await?, None);
        inside.set_capacity(machine, u64::MAX / 2);
        io.sleep(Duration::from_secs(2)).await;
        engine.wait_durable(put(9999, b"again")?).await?;
        engine.flush().await?;
        engine.close().await
    });
    result.unwrap().unwrap();
}

#[test]
fn a_merge_that_finds_no_room_lets_writes_in_again_when_there_is_some() {
    let world = World::new(5);
    let machine = world.add_machine(Faults::default());
    let inside = world.clone();
    let result = on(&world, machine, move |io| async move {
        let (node, _) = Node::open(&io, 1, None).await?;
        let engine = &node.engines[0];
        let put = |n: u64| {
            let key = format!("key {n}").into_bytes();
            let mut batch = Batch::new(true);
            batch.put_value(key_ref(&key), &[1; 1000], engine.stamp(io.wall_ms()), 0);
            engine.write(&batch)
        };
        // Runs of level 0, until a merge of them is due; nothing waits for a flush then.
        let mut n = 0;
        while !engine.stats().disk_full {
            assert!(n < 2_000, "no merge was ever due");
            inside.set_capacity(machine, u64::MAX / 2);
            io.sleep(Duration::from_secs(1)).await;
            for _ in 0..20 {
                engine.wait_durable(put(n)?).await?;
                n += 1;
            }
            engine.flush().await?;
            inside.set_capacity(machine, inside.disk_bytes(machine));
            io.sleep(Duration::from_secs(1)).await;
        }
        assert!(engine.core.mems.borrow().sealed.is_empty());
        assert_eq!(put(n).err().map(|why| why.to_string()), Some(EngineError::DiskFull.to_string()));
        inside.set_capacity(machine, u64::MAX / 2);
        io.sleep(Duration::from_secs(2)).await;
        engine.wait_durable(put(n)?).await?;
        engine.close().await
    });
    result.unwrap().unwrap();
}

#[test]
fn what_is_not_durable_yet_says_so() {
    let world = World::new(4);
    let machine = world.add_machine(Faults::default());
    let result = on(&world, machine, move |io| async move {
        let (node, _) = Node::open(&io, 1, None).await?;
        let engine = &node.engines[0];
        let mut batch = Batch::new(false);
        let version = engine.stamp(io.wall_ms());
        batch.put_value(key_ref(b"k"), b"v", version, 0);
        let seq = engine.write(&batch)?;
        assert_eq!(engine.peek(key_ref(b"k"), |cell, settled| (cell.map(|c| c.version), settled)), Ok((Some(version), seq)));
        assert_eq!(engine.read(key_ref(b"k")).await?.settled, seq);
        engine.wait_durable(seq).await?;
        assert_eq!(engine.peek(key_ref(b"k"), |_, settled| settled), Ok(0));
        assert_eq!(engine.peek(key_ref(b"absent"), |cell, settled| (cell.is_none(), settled)), Ok((true, 0)));
        let told = engine.stamp(io.wall_ms());
        engine.make_ceiling_durable(told).await?;
        assert!(engine.core.wal.ceiling_durable() >= told.hlc());
        engine.set_floor(1, engine.vnode_of(key_ref(b"k")), told).await?;
        batch.clear();
        batch.put_value(key_ref(b"k"), b"late", version, 0);
        assert!(matches!(engine.write(&batch), Err(EngineError::Superseded)));
        Ok::<_, EngineError>(())
    });
    result.unwrap().unwrap();
}
