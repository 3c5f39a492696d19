//! Flush, merge, expiry, snapshot and reads together, on the simulated disk, beside a map that forgets nothing.

use super::EngineError;
use super::block::BlockCache;
use super::expire::{Lags, expire_memory};
use super::format::Identity;
use super::format::manifest::{Edit, VnodeRecord};
use super::format::{parse_cell, place_namespace_token, put_cell, put_place};
use super::levels::{TableFile, Tree, is_settled};
use super::manifest::{Manifest, State, exists};
use super::memtable::{Memtable, MemtableConfig};
use super::pick::Policy;
use super::table::{Table, TableStats};
use super::tables::{Memory, Tables, TablesConfig, prefix_of};
use super::test_core::on;
use crate::base::prng::Prng;
use crate::base::record::{Body, Cell, Kind, NamespaceId, Version, join, token_of, vnode_of};
use crate::base::time::WallMs;
use crate::io::driver::{Backend, Driver};
use crate::io::executor::Executor;
use crate::io::sim::{CrashSite, Faults, World};
use crate::io::wakers::Wakers;
use crate::io::{Class, Io};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

const IDENTITY: Identity = Identity { cluster: 1, node: 2 };
const VNODES: u32 = 16;

type Model = BTreeMap<Vec<u8>, Vec<u8>>;

fn config(dir: &str, table_bytes: u64) -> TablesConfig {
    let policy = Policy { level0_runs: 4, level1_runs: 3, dead_bytes_min: 64 << 10, ..Policy::default() };
    let dir = PathBuf::from(dir);
    TablesConfig {
        dir,
        shard: 0,
        vnodes: VNODES,
        table_bytes,
        policy,
        block_bytes: 1024,
        planted: None,
        is_folder_lost: Default::default(),
    }
}

fn memtable() -> Memtable {
    Memtable::new(MemtableConfig { vnodes: VNODES, hash_seed: 1, chunk_bytes: 4096 })
}

/// A shard without a log: what is not flushed is lost in a crash.
struct Shard {
    io: Io,
    tables: Tables,
    active: RefCell<Memtable>,
    frozen: RefCell<Option<Rc<Memtable>>>,
    lags: RefCell<Lags>,
}

impl Memory for Shard {
    fn owns(&self, _: u32) -> bool {
        true
    }
    fn oldest(&self, namespace: NamespaceId, vnode: u32) -> Option<Version> {
        let frozen = self.frozen.borrow();
        let both =
            [self.active.borrow().version_bounds(namespace, vnode), frozen.as_ref().and_then(|m| m.version_bounds(namespace, vnode))];
        both.into_iter().flatten().map(|bounds| bounds.0).min()
    }
    fn newest(&self, place: &[u8]) -> Option<Version> {
        let of = |memtable: &Memtable| memtable.get(place).map(|(cell, _)| cell.newest());
        of(&self.active.borrow()).max(self.frozen.borrow().as_ref().and_then(|memtable| of(memtable)))
    }
    fn expired(&self, _: &[u8]) {}
}

fn encoded(cell: &Cell<'_>) -> Vec<u8> {
    let mut out = Vec::new();
    put_cell(&mut out, cell);
    out
}

fn joined(a: Option<Vec<u8>>, b: &[u8]) -> Vec<u8> {
    a.map_or_else(|| b.to_vec(), |a| encoded(&join(parse_cell(&a).unwrap(), parse_cell(b).unwrap())))
}

fn place_of(key: u64) -> Vec<u8> {
    let (mut out, key) = (Vec::new(), format!("key {key:06}"));
    put_place(&mut out, 1, token_of(key.as_bytes()), key.as_bytes(), Kind::Head, b"");
    out
}

impl Shard {
    async fn open(io: &Io, root: &str) -> Result<Rc<Shard>, EngineError> {
        Shard::open_with(io, root, 32 << 10).await
    }

    async fn open_with(io: &Io, root: &str, table_bytes: u64) -> Result<Rc<Shard>, EngineError> {
        Shard::open_as(io, root, config(&format!("{root}/tables"), table_bytes)).await
    }

    async fn open_as(io: &Io, root: &str, config: TablesConfig) -> Result<Rc<Shard>, EngineError> {
        let (shard, tables) = (PathBuf::from(format!("{root}/shard")), format!("{root}/tables"));
        for dir in [Path::new(root), &shard, Path::new(&tables)] {
            io.make_dir(dir).await?;
            io.sync_dir(dir.parent().unwrap()).await?;
        }
        let manifest = match exists(io, &shard).await? {
            true => Manifest::open(io, &shard, IDENTITY).await?,
            false => Manifest::create(io, &shard, IDENTITY, &State::default()).await?,
        };
        for entry in io.list(Path::new(&tables)).await? {
            if !manifest.state().tables.keys().any(|id| id.file_name() == entry.name) {
                io.remove(&Path::new(&tables).join(&entry.name)).await?;
            }
        }
        let (cache, stats) = (Rc::new(BlockCache::new(1 << 20, 1)), Rc::new(TableStats::default()));
        let dir = PathBuf::from(&tables);
        let tables = Tables::open(io, config, manifest, cache, stats, |id| TableFile::new(&dir, id)).await?;
        let (active, frozen, lags) = (RefCell::new(memtable()), RefCell::default(), RefCell::default());
        Ok(Rc::new(Shard { io: io.clone(), tables, active, frozen, lags }))
    }

    async fn flush(&self, seq: u64) -> Result<(), EngineError> {
        let frozen = Rc::new(self.active.replace(memtable()));
        *self.frozen.borrow_mut() = Some(frozen.clone());
        self.tables.flush(&frozen, seq).await?;
        *self.frozen.borrow_mut() = None;
        self.tables.reap().await
    }

    async fn get_in(&self, tree: &Tree<Table>, place: &[u8]) -> Result<Option<Vec<u8>>, EngineError> {
        let of = |memtable: &Memtable| memtable.get(place).map(|(cell, _)| encoded(&cell));
        let mut found = of(&self.active.borrow());
        if let Some(cell) = self.frozen.borrow().as_ref().and_then(|memtable| of(memtable)) {
            found = Some(joined(found, &cell));
        }
        let (namespace, token) = place_namespace_token(place);
        let vnode = vnode_of(token, VNODES);
        let drop_seq = self.tables.manifest().state().vnodes.get(namespace, vnode).drop_seq;
        let newest = |table: &Table| Tables::newest_in(table, namespace, vnode);
        for (run, table) in tree.lookup(place, vnode, drop_seq, 0) {
            let newest_from_here = tree.newest_of_vnode(run, place, vnode, drop_seq, newest);
            assert!(newest_from_here <= tree.newest_from(run, Tables::newest_of));
            if found.as_ref().is_some_and(|found| is_settled(&parse_cell(found).unwrap(), newest_from_here)) {
                break;
            }
            if table.table.may_hold(super::filter::prefix_hash(prefix_of(place)))
                && let Some(cell) = table.table.get(place, &self.tables.cache).await?
            {
                found = Some(joined(found, cell.bytes()));
            }
        }
        Ok(found)
    }

    /// What is alive in the model is alive here, the same; what is dead there is dead here.
    async fn compare(&self, tree: &Tree<Table>, model: &Model, now_ms: WallMs) -> Result<(), EngineError> {
        for (place, expected) in model {
            let expected = parse_cell(expected).unwrap();
            let found = self.get_in(tree, place).await?;
            let found = found.as_deref().map(|cell| parse_cell(cell).unwrap()).filter(|cell| cell.is_live(now_ms));
            let wanted = expected.is_live(now_ms).then_some(expected);
            let part = |cell: Cell<'_>| (cell.version, cell.expiry, format!("{:?}", cell.body).len());
            assert_eq!(found.map(part), wanted.map(part), "{place:?}");
        }
        Ok(())
    }
}

/// What a driver of random work keeps outside of the machine.
#[derive(Default)]
struct Outside {
    model: Model,
    /// What the last acknowledged flush left, and what the one under way will.
    durable: Model,
    flushing: Option<Model>,
    /// The drop sequence that is being made durable.
    dropping: u64,
    seq: u64,
    merges: u64,
    /// Merges that gave way to another.
    gave_way: u64,
    forgotten: u64,
}

fn write(shard: &Shard, outside: &mut Outside, prng: &mut Prng, floor: Version) {
    outside.seq += 1;
    let place = place_of(prng.below(400));
    let version = Version::put((outside.seq + prng.below(60)).saturating_sub(30).max(1), outside.seq as u16);
    let now_ms = shard.io.wall_ms();
    let old = outside.model.get(&place).cloned();
    let payload = vec![prng.below(256) as u8; prng.below(700) as usize];
    let deadline_ms = now_ms + prng.below(400);
    let cell = match prng.below(8) {
        0 => Cell::tombstone(version),
        1 if old.as_ref().is_some_and(|cell| parse_cell(cell).unwrap().is_expired(now_ms)) => return,
        1 => Cell::expire(version, deadline_ms),
        2 | 3 => Cell::value(version, &payload).with_deadline(deadline_ms),
        _ => Cell::value(version, &payload),
    };
    if cell.newest() <= floor {
        return;
    }
    shard.active.borrow_mut().insert(&place, &cell, outside.seq);
    outside.model.insert(place, joined(old, &encoded(&cell)));
}

async fn flush(shard: &Shard, outside: &RefCell<Outside>) -> Result<(), EngineError> {
    let (model, seq) = (outside.borrow().model.clone(), outside.borrow().seq);
    outside.borrow_mut().flushing = Some(model.clone());
    shard.flush(seq).await?;
    let mut outside = outside.borrow_mut();
    (outside.durable, outside.flushing) = (model, None);
    Ok(())
}

/// Everything so far becomes void.
async fn drop_all(shard: &Shard, outside: &RefCell<Outside>) -> Result<(), EngineError> {
    flush(shard, outside).await?;
    outside.borrow_mut().seq += 1;
    let drop_seq = outside.borrow().seq;
    outside.borrow_mut().dropping = drop_seq;
    let record = VnodeRecord { drop_seq, ..shard.tables.manifest().state().vnodes.get(1, 0) };
    shard.tables.manifest().commit(vec![Edit::Vnodes { namespace: 1, first: 0, last: VNODES - 1, record }], |_| {}).await?;
    {
        let mut outside = outside.borrow_mut();
        outside.dropping = 0;
        outside.model.clear();
        outside.durable.clear();
    }
    shard.tables.drop_void().await?;
    assert_eq!(shard.tables.tree().tables().count(), 0);
    Ok(())
}

/// One life of random work.
async fn live(io: Io, outside: Rc<RefCell<Outside>>, mut prng: Prng, rounds: u64) -> Result<(), EngineError> {
    let mut config = config("/data/tables", 32 << 10);
    (config.policy.level0_runs, config.policy.nest_bytes) = (2, 16 << 10);
    let shard = Shard::open_as(&io, "/data", config).await?;
    {
        // The flush under way at the crash is there whole or not at all.
        let mut outside = outside.borrow_mut();
        let flushing = outside.flushing.take();
        let is_there = shard.tables.manifest().state().released == outside.seq && flushing.is_some();
        outside.durable = if is_there { flushing.unwrap() } else { std::mem::take(&mut outside.durable) };
        if shard.tables.manifest().state().vnodes.get(1, 0).drop_seq == outside.dropping && outside.dropping > 0 {
            outside.durable.clear();
        }
        outside.dropping = 0;
        outside.model = outside.durable.clone();
    }
    let now_ms = io.wall_ms();
    let model = outside.borrow().model.clone();
    shard.compare(&shard.tables.tree(), &model, now_ms).await?;
    for _ in 0..rounds {
        let floor = shard.tables.manifest().state().vnodes.get(1, 0).floor;
        for _ in 0..prng.below(120) {
            write(&shard, &mut outside.borrow_mut(), &mut prng, floor);
        }
        io.sleep(Duration::from_millis(prng.below(50))).await;
        let newest = |place: &[u8], version| shard.tables.is_newest_in_memory(place, version);
        expire_memory(&mut shard.active.borrow_mut(), io.wall_ms(), 50, &mut shard.lags.borrow_mut(), newest, |_| {});
        match prng.below(6) {
            0 | 1 => flush(&shard, &outside).await?,
            2 => {
                let flushes = prng.below(8);
                if flushes > 0 {
                    flush(&shard, &outside).await?;
                }
                let (held, model, merging) = (shard.tables.tree(), outside.borrow().model.clone(), shard.clone());
                let merging = io.spawn(Class::Background, async move { merging.tables.compact(&*merging).await });
                for _ in 0..flushes {
                    (0..prng.below(40)).for_each(|_| write(&shard, &mut outside.borrow_mut(), &mut prng, floor));
                    flush(&shard, &outside).await?;
                }
                if let Some(merged) = merging.await? {
                    outside.borrow_mut().merges += 1;
                    outside.borrow_mut().gave_way += u64::from(!merged.is_done);
                    outside.borrow_mut().forgotten += merged.tally.forgotten;
                }
                // A read that began before the merge still sees everything.
                shard.compare(&held, &model, io.wall_ms()).await?;
                drop(held);
                shard.tables.reap().await?;
            }
            3 => shard.tables.expire(&*shard).await?,
            5 if prng.one_in(4) => drop_all(&shard, &outside).await?,
            4 if prng.one_in(3) => {
                let floor = Version::put(outside.borrow().seq.saturating_sub(prng.below(60)), 0);
                let record = VnodeRecord { floor, ..shard.tables.manifest().state().vnodes.get(1, 0) };
                if record.floor > shard.tables.manifest().state().vnodes.get(1, 0).floor {
                    let edit = Edit::Vnodes { namespace: 1, first: 0, last: VNODES - 1, record };
                    shard.tables.manifest().commit(vec![edit], |_| {}).await?;
                }
            }
            _ => {}
        }
        let (model, now_ms) = (outside.borrow().model.clone(), io.wall_ms());
        shard.compare(&shard.tables.tree(), &model, now_ms).await?;
    }
    Ok(())
}

#[test]
fn random_work_with_crashes_shows_every_flushed_write_and_no_old_value() {
    let (mut merges, mut gave_way, mut forgotten, mut crashes) = (0, 0, 0, 0);
    for seed in 0..12 {
        let (world, mut prng) = (World::new(seed), Prng::new(seed));
        let machine = world.add_machine(Faults::default());
        let outside = Rc::new(RefCell::new(Outside::default()));
        for life in 0..5 {
            if life < 4 {
                let site = [CrashSite::Before, CrashSite::During, CrashSite::After][prng.below(3) as usize];
                world.crash_at_op(machine, world.disk_ops(machine) + prng.between(20, 2_000), site);
            }
            let (outside, fork) = (outside.clone(), prng.fork());
            match on(&world, machine, |io| live(io, outside, fork, 40)) {
                Some(ended) => ended.unwrap_or_else(|why| panic!("seed {seed}, life {life}: {why}")),
                None => crashes += 1,
            }
        }
        merges += outside.borrow().merges;
        gave_way += outside.borrow().gave_way;
        forgotten += outside.borrow().forgotten;
    }
    let what = format!("{merges} merges, {gave_way} gave way, {forgotten} forgotten, {crashes} crashes");
    assert!(merges > 50 && gave_way > 10 && forgotten > 100 && crashes > 10, "{what}");
}

async fn fill(shard: &Rc<Shard>, keys: std::ops::Range<u64>, cell: impl Fn(u64) -> (u64, WallMs)) -> Result<(), EngineError> {
    for key in keys {
        let (clock, deadline_ms) = cell(key);
        let payload = [key as u8; 400];
        let cell = Cell::value(Version::put(clock, 0), &payload).with_deadline(deadline_ms);
        shard.active.borrow_mut().insert(&place_of(key), &cell, clock);
        if shard.active.borrow().live_bytes() > 400 << 10 {
            shard.flush(clock).await?;
        }
    }
    shard.flush(u64::from(u32::MAX)).await
}

#[test]
fn a_merge_takes_little_room_beyond_its_inputs_and_leaves_none_behind() {
    let world = World::new(1);
    let machine = world.add_machine(Faults::default());
    let inside = world.clone();
    let ended = on(&world, machine, |io| async move {
        let shard = Shard::open_with(&io, "/data", 256 << 10).await?;
        fill(&shard, 0..16_000, |key| (key + 1, 0)).await?;
        let tables = |shard: &Shard| shard.tables.tree().tables().map(|table| table.record.bytes).sum::<u64>();
        let before = inside.disk_bytes(machine);
        let most = Rc::new(std::cell::Cell::new(0));
        let (seen, world, clock) = (most.clone(), inside.clone(), io.clone());
        let watch = io.spawn(Class::Foreground, async move {
            loop {
                seen.set(seen.get().max(world.disk_bytes(machine)));
                clock.sleep(Duration::from_micros(50)).await;
            }
        });
        while let Some(merged) = shard.tables.compact(&*shard).await? {
            assert!(merged.tally.entries_out > 0);
            shard.tables.reap().await?;
        }
        drop(watch);
        assert!(shard.tables.tree().runs.len() <= 5);
        let extra = most.get() - before;
        // The output, what is not yet a whole block of each input's front, and a second manifest.
        assert!(extra < before / 10, "{extra} bytes beyond {before}");
        assert!(inside.disk_bytes(machine) < tables(&shard) + (700 << 10), "{} on disk", inside.disk_bytes(machine));
        Ok(())
    });
    ended.unwrap().unwrap_or_else(|why: EngineError| panic!("{why}"));
}

#[test]
fn each_expiry_is_counted_once_in_memory_or_on_disk_and_soon_after_its_deadline() {
    let world = World::new(2);
    let machine = world.add_machine(Faults::default());
    let ended = on(&world, machine, |io| async move {
        let shard = Shard::open(&io, "/data").await?;
        let start_ms = io.wall_ms();
        fill(&shard, 0..3000, |key| (key + 1, start_ms + 1000 + key)).await?;
        // A third gets a later deadline or none, without a read.
        for key in (0..3000).step_by(3) {
            let deadline_ms = if key % 2 == 0 { 0 } else { start_ms + 6000 };
            shard.active.borrow_mut().insert(&place_of(key), &Cell::expire(Version::put(10_000, 0), deadline_ms), 10_000);
        }
        shard.flush(10_000).await?;
        // And some live in memory.
        for key in 3000..3500u64 {
            let cell = Cell::value(Version::put(20_000, 0), b"v").with_deadline(start_ms + key);
            shard.active.borrow_mut().insert(&place_of(key), &cell, 20_000);
        }
        for round in 0..80 {
            io.sleep(Duration::from_millis(100)).await;
            shard.tables.expire(&*shard).await?;
            let newest = |place: &[u8], version| shard.tables.is_newest_in_memory(place, version);
            while expire_memory(&mut shard.active.borrow_mut(), io.wall_ms(), 64, &mut shard.lags.borrow_mut(), newest, |_| {}) {}
            match round % 7 {
                0 => {
                    shard.tables.compact(&*shard).await?;
                }
                3 => shard.flush(30_000).await?,
                _ => {}
            }
            shard.tables.reap().await?;
        }
        let disk = shard.tables.expiry().lags();
        // 2000 as they were, 500 with a later deadline, 500 without; 500 from memory (some of them flushed before they were due).
        assert_eq!(disk.count() + shard.lags.borrow().count(), 2000 + 500 + 500);
        assert!(disk.count() >= 2500 && disk.quantile_ms(0.99) < 1000, "{} {}", disk.count(), disk.quantile_ms(0.99));
        assert!(shard.lags.borrow().quantile_ms(0.99) < 200);
        Ok(())
    });
    ended.unwrap().unwrap_or_else(|why: EngineError| panic!("{why}"));
}

/// Takes a snapshot, overwrites and merges everything, and opens the snapshot.
async fn snapshot_and_open(io: Io, root: String) -> Result<(), EngineError> {
    let (data, copy) = (format!("{root}data"), format!("{root}copy"));
    let shard = Shard::open(&io, &data).await?;
    fill(&shard, 0..1500, |key| (key + 1, 0)).await?;
    let (tables, manifest) = (format!("{copy}/tables"), format!("{copy}/shard"));
    for dir in [&copy, &tables, &manifest] {
        io.make_dir(Path::new(dir)).await?;
    }
    io.sync_dir(Path::new(&root)).await?;
    io.sync_dir(Path::new(&copy)).await?;
    let linked = shard.tables.snapshot(Path::new(&tables), Path::new(&manifest)).await?;
    assert!(linked.len() > 1);
    fill(&shard, 0..1500, |key| (key + 5000, 0)).await?;
    for round in 0..4 {
        fill(&shard, 0..1500, |key| (key + 10_000 * (round + 1), 0)).await?;
        while shard.tables.compact(&*shard).await?.is_some() {
            shard.tables.reap().await?;
        }
    }
    for key in 0..1500 {
        let found = shard.get_in(&shard.tables.tree(), &place_of(key)).await?.expect("written");
        assert_eq!(parse_cell(&found).unwrap().version, Version::put(key + 40_000, 0));
    }
    drop(shard);
    let copy = Shard::open(&io, &copy).await?;
    for key in 0..1500 {
        let found = copy.get_in(&copy.tables.tree(), &place_of(key)).await?.expect("in the snapshot");
        let cell = parse_cell(&found).unwrap();
        assert!(cell.version == Version::put(key + 1, 0) && matches!(cell.body, Body::Bytes(_)));
    }
    Ok(())
}

#[test]
fn a_snapshot_opens_as_a_folder_of_its_own_and_outlives_what_it_was_taken_of() {
    let world = World::new(3);
    let machine = world.add_machine(Faults::default());
    let ended = on(&world, machine, |io| snapshot_and_open(io, "/".to_owned()));
    ended.unwrap().unwrap_or_else(|why: EngineError| panic!("{why}"));
}

#[test]
fn the_same_on_real_files() {
    [Backend::Uring, Backend::Epoll].into_iter().for_each(snapshot_on_real_files);
}

fn snapshot_on_real_files(backend: Backend) {
    let wakers = Wakers::new(1);
    let (driver, _) = Driver::open(backend, 0, &wakers).expect("a driver");
    let mut executor = Executor::new(driver, 0, wakers);
    let io = executor.handle();
    let root = std::env::temp_dir().join(format!("ringkv-tables-{:x}/", io.random_u64()));
    let ended = executor.run(async move {
        io.make_dir(&root).await?;
        let ended = snapshot_and_open(io.clone(), root.display().to_string()).await;
        for dir in ["data/shard", "data/tables", "data", "copy/shard", "copy/tables", "copy", ""] {
            for entry in io.list(&root.join(dir)).await? {
                io.remove(&root.join(dir).join(entry.name)).await?;
            }
            io.remove_dir(&root.join(dir)).await?;
        }
        ended
    });
    ended.unwrap_or_else(|why: EngineError| panic!("{why}"));
}

/// The fill of the large figure (4M values of 1 KiB, two cores, memtables of 32 MiB) at a hundredth of its size.
#[test]
fn a_fill_in_random_order_writes_tables_at_most_four_times_and_never_takes_much_more_than_what_lives() {
    let world = World::new(4);
    let machine = world.add_machine(Faults::default());
    let inside = world.clone();
    let ended = on(&world, machine, |io| async move {
        let mut config = config("/data/tables", 512 << 10);
        (config.policy, config.block_bytes) = (Policy::default(), 4096);
        let shard = Shard::open_as(&io, "/data", config).await?;
        let (mut written, mut live, mut worst) = (0, 0u64, 0.0f64);
        for key in 0..24_000u64 {
            let payload = [key as u8; 1024];
            let place = place_of(key);
            shard.active.borrow_mut().insert(&place, &Cell::value(Version::put(key + 1, 0), &payload), key);
            live += (place.len() - 15 + payload.len()) as u64;
            if shard.active.borrow().live_bytes() < 380 << 10 {
                continue;
            }
            let before = shard.tables.tree().tables().map(|table| table.record.bytes).sum::<u64>();
            shard.flush(key).await?;
            written += shard.tables.tree().tables().map(|table| table.record.bytes).sum::<u64>() - before;
            while let Some(merged) = shard.tables.compact(&*shard).await? {
                written += merged.written_bytes;
                shard.tables.reap().await?;
            }
            if live > 12 << 20 {
                // Without the manifest, which is as large as at full size.
                let tables = inside.disk_bytes(machine) - (256 << 10);
                worst = worst.max(tables as f64 / live as f64);
            }
        }
        assert!(written as f64 <= 4.0 * live as f64, "{} times", written as f64 / live as f64);
        assert!(worst <= 1.15, "{worst} of what lives");
        let tree = shard.tables.tree();
        let memory = tree.tables().map(|table| table.table.filter_and_index_bytes()).sum::<usize>() as f64;
        let entries = tree.tables().map(|table| table.record.entries).sum::<u64>() as f64;
        assert!(memory <= 2.5 * entries, "{} bytes of filters and index a key", memory / entries);
        Ok(())
    });
    ended.unwrap().unwrap_or_else(|why: EngineError| panic!("{why}"));
}
