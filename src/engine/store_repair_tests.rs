//! What repair asks of the engine, on the simulated disk: lists against a model, copies into another node, marks over crashes.

use super::batch::{Batch, KeyRef};
use super::format::{parse_cell, place_namespace_token, put_cell};
use super::pick::Policy;
use super::recover::{NodeConfig, NodeStore};
use super::store::{Engine, EngineConfig};
use super::store_marks::VnodeMarks;
use super::store_repair::{CellList, TokenRange, check_copy};
use super::test_core::on;
use super::{EngineError, Seq};
use crate::base::prng::Prng;
use crate::base::record::{Body, Cell, CollectionType, Expiry, Kind, Version, join, token_of, vnode_of};
use crate::base::time::WallMs;
use crate::io::sim::{CrashSite, Faults, World};
use crate::io::{Class, Io};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

const VNODES: u32 = 16;

async fn open(io: &Io, data: &str) -> Result<Engine, EngineError> {
    let node = NodeConfig { cores: 1, vnodes: VNODES, identity: None, core_of: |_, _| 0 };
    let store = NodeStore::open(io, Path::new(data), node).await?;
    let config = EngineConfig {
        memtable_bytes: 96 << 10,
        memtable_chunk_bytes: 4096,
        cache_bytes: 64 << 10,
        wal_segment_bytes: 256 << 10,
        wal_segments_max: 6,
        table_bytes_max: 64 << 10,
        block_bytes: 1024,
        policy: Policy { level0_runs: 3, level1_runs: 2, dead_bytes_min: 4096, ..Policy::default() },
        ..EngineConfig::new(0, 1 << 20, 7)
    };
    let (engine, _) = Engine::open(io, &store, config).await?;
    store.commit(io).await?;
    Ok(engine)
}

fn key_ref(key: &[u8]) -> KeyRef<'_> {
    KeyRef { namespace: 1, token: token_of(key), key }
}

async fn write(engine: &Engine, io: &Io, place: &[u8], cell: &Cell<'_>) -> Seq {
    let mut batch = Batch::new(false);
    batch.push_at(place, cell);
    loop {
        match engine.write(&batch) {
            Err(EngineError::Overloaded) => io.sleep(Duration::from_millis(1)).await,
            other => return other.unwrap(),
        }
    }
}

/// A cell of any kind for a random place of few keys.
fn any_cell(prng: &mut Prng, version: Version, now_ms: WallMs) -> (Vec<u8>, Vec<u8>) {
    let key = format!("key {}", prng.below(40)).into_bytes();
    let deadline_ms = if prng.one_in(4) { now_ms + prng.below(2000) } else { 0 };
    let expiry = Expiry { version, deadline_ms };
    let value = vec![prng.below(256) as u8; prng.below(400) as usize];
    let element = [prng.below(4) as u8];
    let of = |body| Cell { version, body, expiry, request_id: None };
    let set = Body::Collection { of: CollectionType::Set, floor: version, context: b"c" };
    let (kind, element, cell): (_, &[u8], _) = match prng.below(9) {
        0 | 1 => (Kind::Head, b"", of(Body::Bytes(&value))),
        2 => (Kind::Head, b"", Cell::tombstone(version)),
        3 => (Kind::Head, b"", Cell::expire(version, now_ms + 1 + prng.below(2000))),
        4 => (Kind::Head, b"", of(set)),
        5 | 6 => (Kind::Field, &element, Cell::value(version, &value)),
        7 => (Kind::Member, &element, Cell::tombstone(version)),
        _ => (Kind::DerivedOrder, &element, Cell::value(version, b"")),
    };
    let mut bytes = Vec::new();
    put_cell(&mut bytes, &cell);
    (key_ref(&key).place(kind, element), bytes)
}

async fn list_all(engine: &Engine, range: TokenRange, bytes_max: usize, now_ms: WallMs) -> Vec<(Vec<u8>, Cell<'static>)> {
    let (mut all, mut after) = (Vec::new(), None::<Vec<u8>>);
    loop {
        let CellList { cells, stopped_at } = engine.list_cells(range, after.as_deref(), bytes_max, now_ms).await.unwrap();
        assert!(cells.len() <= bytes_max / 40 + 1, "one may lie beyond");
        all.extend(cells.into_iter().map(|cell| (cell.place, cell.cell)));
        assert!(stopped_at.is_none() || stopped_at > after);
        after = stopped_at;
        if after.is_none() {
            return all;
        }
    }
}

/// Value version and whether it is a tombstone (unless for its deadline), and the expiry part.
fn facts(cell: &Cell<'_>, now_ms: WallMs) -> (Version, bool, Expiry) {
    (cell.version, cell.body == Body::Tombstone && !cell.is_expired(now_ms), cell.expiry)
}

#[derive(Default)]
struct Model(BTreeMap<Vec<u8>, Vec<u8>>);

impl Model {
    fn put(&mut self, place: &[u8], cell: &[u8]) {
        let mut joined = Vec::new();
        match self.0.get(place) {
            Some(old) => put_cell(&mut joined, &join(parse_cell(old).unwrap(), parse_cell(cell).unwrap())),
            None => joined.extend_from_slice(cell),
        }
        self.0.insert(place.to_vec(), joined);
    }

    /// A deadline for what has expired already, which no node writes.
    fn is_too_late(&self, place: &[u8], cell: &[u8], now_ms: WallMs) -> bool {
        let is_expired = |old: &Vec<u8>| parse_cell(old).unwrap().is_expired(now_ms);
        parse_cell(cell).unwrap().body == Body::Silent && self.0.get(place).is_some_and(is_expired)
    }

    fn expires_between(&self, from_ms: WallMs, to_ms: WallMs) -> bool {
        self.0.values().any(|cell| (from_ms + 1..=to_ms).contains(&parse_cell(cell).unwrap().expiry.deadline_ms))
    }

    /// What a list of a range must show, for each place: facts and whether a merge may have dropped it.
    fn listed(&self, range: TokenRange, now_ms: WallMs) -> BTreeMap<Vec<u8>, (Version, bool, Expiry)> {
        let (mut head, mut found) = (None::<(Vec<u8>, Cell<'_>)>, BTreeMap::new());
        for (place, cell) in &self.0 {
            let (token, cell) = (place_namespace_token(place).1, parse_cell(cell).unwrap());
            let prefix = &place[..super::format::key_prefix_len(place).unwrap()];
            let kind = Kind::from_u8(place[prefix.len()]).unwrap();
            if kind == Kind::Head {
                head = Some((prefix.to_vec(), cell));
            }
            let of_key = head.as_ref().filter(|(of, _)| of == prefix && kind != Kind::Head);
            let is_dead = of_key.is_some_and(|(_, head)| match head.body {
                Body::Silent => false,
                _ if head.is_expired(now_ms) => cell.newest() <= head.newest(),
                Body::Tombstone => cell.newest() <= head.version,
                Body::Collection { floor, .. } => cell.newest() < floor,
                _ => cell.newest() < head.version,
            });
            if !kind.is_derived() && !is_dead && (range.first..=range.last).contains(&token) {
                found.insert(place.clone(), facts(&cell, now_ms));
            }
        }
        found
    }
}

fn ranges() -> Vec<TokenRange> {
    let shift = 64 - VNODES.trailing_zeros();
    let part = |vnode: u64, part: u64, parts: u64| {
        let (first, step) = (vnode << shift, (1 << shift) / parts);
        TokenRange { namespace: 1, first: first + part * step, last: first + part * step + (step - 1) }
    };
    let all = (0..u64::from(VNODES))
        .flat_map(|vnode| if vnode % 2 == 0 { vec![part(vnode, 0, 1)] } else { (0..4).map(|n| part(vnode, n, 4)).collect() });
    all.collect()
}

#[test]
fn lists_show_every_cell_that_counts_wherever_it_lies_and_page_by_page_the_same() {
    for seed in 0..6 {
        let world = World::new(seed);
        let machine = world.add_machine(Faults::default());
        let result = on(&world, machine, move |io| async move {
            let (engine, mut prng, mut model) = (open(&io, "/data").await.unwrap(), Prng::new(seed), Model::default());
            let mut compared = 0;
            for round in 0..1500u32 {
                let (place, cell) = any_cell(&mut prng, engine.stamp(io.wall_ms()), io.wall_ms());
                if model.is_too_late(&place, &cell, io.wall_ms() + 20) {
                    continue;
                }
                write(&engine, &io, &place, &parse_cell(&cell).unwrap()).await;
                model.put(&place, &cell);
                match prng.below(150) {
                    0 => engine.flush().await.unwrap(),
                    1 => engine.compact_all().await.unwrap(),
                    2 => io.sleep(Duration::from_millis(prng.below(300))).await,
                    _ => {}
                }
                if round % 250 != 249 {
                    continue;
                }
                for range in ranges() {
                    let bytes_max = [1, 150, 700, 1 << 20][prng.below(4) as usize];
                    let now_ms = io.wall_ms();
                    let listed = list_all(&engine, range, bytes_max, now_ms).await;
                    assert!(listed.is_sorted_by(|a, b| a.0 < b.0));
                    let found: BTreeMap<_, _> = listed.iter().map(|(place, cell)| (place.clone(), facts(cell, now_ms))).collect();
                    // What expired while the list was made may be shown as it was or as a remnant.
                    if !model.expires_between(now_ms, io.wall_ms()) {
                        compared += 1;
                        assert_eq!(found, model.listed(range, now_ms), "seed {seed} round {round} {range:?} in pages of {bytes_max}");
                    }
                }
            }
            assert!(compared > 60, "{compared}");
            assert!(engine.stats().flushes > 0 && engine.stats().merges > 0);
        });
        result.expect("no crash");
    }
}

#[test]
fn what_one_node_lists_and_reads_another_stores_and_then_lists() {
    let world = World::new(3);
    let machine = world.add_machine(Faults::default());
    let result = on(&world, machine, move |io| async move {
        let (ours, theirs) = (open(&io, "/ours").await.unwrap(), open(&io, "/theirs").await.unwrap());
        let mut prng = Prng::new(3);
        let mut last = 0;
        for _ in 0..800 {
            let (place, cell) = any_cell(&mut prng, ours.stamp(io.wall_ms()), 1 << 50);
            last = write(&ours, &io, &place, &parse_cell(&cell).unwrap()).await;
        }
        assert!(ours.durable() < last);
        for range in ranges() {
            list_all(&ours, range, 1 << 20, io.wall_ms()).await;
        }
        assert!(ours.durable() >= last, "all that was listed is durable");
        ours.flush().await.unwrap();
        let mut newest = Version::ZERO;
        for range in ranges() {
            let listed = list_all(&ours, range, 1 << 20, io.wall_ms()).await;
            let mut places: Vec<Vec<u8>> = listed.iter().map(|(place, _)| place.clone()).collect();
            places.push(b"no place".to_vec());
            while !places.is_empty() {
                let (looked_at, found) = ours.cells_at(&places, 1000, io.wall_ms()).await.unwrap();
                assert!(looked_at > 0 && found.len() <= looked_at);
                assert!(found.len() <= 1 || found.iter().map(|one| one.bytes.len()).sum::<usize>() <= 1000);
                let checked: Vec<_> = found.iter().map(|one| (&one.place[..], check_copy(&one.place, &one.bytes).unwrap())).collect();
                if !checked.is_empty() {
                    let seq = theirs.store_copies(&checked).unwrap();
                    theirs.wait_durable(seq).await.unwrap();
                }
                places.drain(..looked_at);
            }
            assert_eq!(list_all(&theirs, range, 999, io.wall_ms()).await, listed);
            newest = listed.iter().map(|(_, cell)| cell.newest()).fold(newest, Version::max);
        }
        assert!(theirs.stamp(0) > newest && newest > Version::ZERO);
    });
    result.expect("no crash");
}

#[test]
fn a_large_string_is_read_and_stored_in_one_piece_and_one_that_lacks_chunks_keeps_no_other_back() {
    let world = World::new(4);
    let machine = world.add_machine(Faults::default());
    let result = on(&world, machine, move |io| async move {
        let (ours, theirs) = (open(&io, "/ours").await.unwrap(), open(&io, "/theirs").await.unwrap());
        let value: Vec<u8> = (0..150_000usize).map(|at| at as u8 ^ (at >> 8) as u8).collect();
        let version = ours.stamp(io.wall_ms());
        let mut batch = Batch::new(true);
        batch.put_value(key_ref(b"large\0\0"), &value, version, 0);
        batch.put_value(key_ref(b"small"), b"v", version, 0);
        let broken = Cell { body: Body::Chunked { len: 70_000 }, ..Cell::value(version, b"") };
        batch.push(key_ref(b"broken"), Kind::Head, b"", &broken);
        batch.push(key_ref(b"dead"), Kind::Head, b"", &broken.with_deadline(1));
        ours.wait_durable(ours.write(&batch).unwrap()).await.unwrap();
        let place = |key: &[u8]| key_ref(key).place(Kind::Head, b"");
        assert_eq!(ours.large_at(&place(b"large\0\0")).await.unwrap(), Some(150_000));
        assert_eq!(ours.large_at(&place(b"small")).await.unwrap(), None);
        let mut places = vec![place(b"broken"), place(b"small"), place(b"large\0\0"), place(b"dead"), place(b"none")];
        let mut found = Vec::new();
        while !places.is_empty() {
            let (looked_at, cells) = ours.cells_at(&places, 1000, io.wall_ms()).await.unwrap();
            assert!(looked_at > 0);
            places.drain(..looked_at);
            found.extend(cells);
        }
        let checked: Vec<_> = found.iter().map(|one| (&one.place[..], check_copy(&one.place, &one.bytes).unwrap())).collect();
        assert_eq!(checked.len(), 3);
        assert_eq!(checked[2], (&place(b"dead")[..], broken.with_deadline(1).remnant()));
        theirs.wait_durable(theirs.store_copies(&checked).unwrap()).await.unwrap();
        let back = theirs.read_value(key_ref(b"large\0\0"), io.wall_ms()).await.unwrap().unwrap();
        assert!(back.version == version && back.bytes == value);
        assert_eq!(theirs.read_value(key_ref(b"small"), io.wall_ms()).await.unwrap().unwrap().bytes, b"v");
    });
    result.expect("no crash");
}

#[test]
fn a_copy_that_no_node_wrote_is_seen() {
    let place = |key: &[u8], kind, element: &[u8]| key_ref(key).place(kind, element);
    let encoded = |cell: &Cell<'_>| {
        let mut out = Vec::new();
        put_cell(&mut out, cell);
        out
    };
    let put = encoded(&Cell::value(Version::put(5, 0), b"v"));
    assert!(check_copy(&place(b"k\0y", Kind::Field, b"f"), &put).is_ok());
    assert!(check_copy(&place(b"k", Kind::Head, b""), &encoded(&Cell::expire(Version::put(5, 0), 9))).is_ok());
    let mut wrong = place(b"key", Kind::Head, b"");
    wrong[6] ^= 1;
    let derived = place(b"key", Kind::DerivedOrder, b"");
    let chunk = place(b"key", Kind::Chunk, &[0; 4]);
    let chunked = Cell { body: Body::Chunked { len: 70_000 }, ..Cell::value(Version::put(5, 0), b"") };
    assert!(check_copy(&place(b"k", Kind::Head, b""), &encoded(&chunked)).is_err());
    for place in [wrong, derived, chunk, place(b"key", Kind::Head, b"e"), b"short".to_vec(), place(&[7; 40_000], Kind::Head, b"")] {
        assert!(check_copy(&place, &put).is_err());
    }
    let place = place(b"key", Kind::Head, b"");
    let sum = encoded(&Cell { body: Body::Sum { floor: Version::ZERO, delta: 1 }, ..Cell::value(Version::put(5, 0), b"") });
    let nothing = encoded(&Cell::expire(Version::ZERO, 0));
    let no_version = encoded(&Cell::value(Version::ZERO, b"v"));
    for cell in [sum, nothing, no_version, Vec::new(), b"\xFF".to_vec()] {
        assert!(check_copy(&place, &cell).is_err());
    }
}

#[test]
fn each_part_of_a_write_is_held_against_the_floor() {
    let world = World::new(5);
    let machine = world.add_machine(Faults::default());
    let result = on(&world, machine, move |io| async move {
        let engine = open(&io, "/data").await.unwrap();
        let place = key_ref(b"k").place(Kind::Head, b"");
        let old = engine.stamp(io.wall_ms());
        let floor = engine.stamp(io.wall_ms());
        let new = engine.stamp(io.wall_ms());
        engine.set_floor(1, engine.vnode_of(key_ref(b"k")), floor).await.unwrap();
        let expiry = Expiry { version: new, deadline_ms: 1 << 50 };
        let mut outcomes = Vec::new();
        let old_rmw = Version::rmw(old, 1, 1);
        for cell in [
            Cell { expiry, ..Cell::value(old, b"back from the dead") },
            Cell { expiry: Expiry { version: old, deadline_ms: 7 }, ..Cell::value(new, b"v") },
            Cell::expire(new, 1 << 50),
            Cell { expiry: Expiry::default(), ..Cell::value(new, b"v") },
            Cell { expiry, ..Cell::value(old_rmw, b"v") },
        ] {
            let mut batch = Batch::new(true);
            batch.push_at(&place, &cell);
            let written = engine.write(&batch);
            assert!(written.is_ok() || matches!(written, Err(EngineError::Superseded)));
            outcomes.push(written.is_ok());
        }
        assert_eq!(outcomes, [false, false, true, true, false]);
        // Who knows what is held has judged parts one by one (`cluster::forget`): a value may complete what it left, an RMW what it read.
        for cell in [Cell { expiry, ..Cell::value(old, b"with what it left") }, Cell { expiry, ..Cell::value(old_rmw, b"v") }] {
            engine.store_copies(&[(&place[..], cell)]).unwrap();
        }
    });
    result.expect("no crash");
}

#[test]
fn marks_only_rise_and_outlive_crashes_however_they_are_raised_at_once() {
    let mut apart = 0;
    for seed in 0..60 {
        let world = World::new(seed);
        let machine = world.add_machine(Faults::default());
        let told: Rc<RefCell<BTreeMap<u32, VnodeMarks>>> = Rc::default();
        let mut prng = Prng::new(seed);
        for life in 0..4 {
            if life < 3 {
                let at = world.disk_ops(machine) + 20 + prng.below(120);
                world.crash_at_op(machine, at, site(&mut prng));
            }
            let (told, mut prng) = (told.clone(), Prng::new(prng.next_u64()));
            let done = on(&world, machine, move |io| async move {
                let Ok(engine) = open(&io, "/data").await else { return };
                for (vnode, marks) in &*told.borrow() {
                    let found = engine.marks(1, *vnode);
                    assert!(found.fence >= marks.fence && found.floor >= marks.floor, "seed {seed}: {found:?} of {marks:?}");
                    assert!(engine.stamp(0) > marks.fence);
                }
                for _ in 0..6 {
                    let tasks: Vec<_> = (0..3).map(|_| raise(&io, &engine, &told, &mut prng)).collect();
                    for task in tasks {
                        task.await;
                    }
                }
                engine.close().await.unwrap();
            });
            assert!(life < 3 || done.is_some());
            world.crash(machine);
        }
        apart += told.borrow().values().filter(|marks| marks.floor > Version::ZERO && marks.fence > marks.floor).count();
    }
    assert!(apart > 10, "{apart}");
}

/// Raises a mark of one of two vnodes in a task of its own, and notes it when it is said to be durable.
fn raise(io: &Io, engine: &Engine, told: &Rc<RefCell<BTreeMap<u32, VnodeMarks>>>, prng: &mut Prng) -> crate::io::Task<()> {
    let (vnode, version, is_fence) = (prng.below(2) as u32, Version::put(1 + prng.below(1000), 0), prng.one_in(2));
    let (engine, told) = (engine.clone(), told.clone());
    io.spawn(Class::Foreground, async move {
        let raised = if is_fence { engine.set_fence(1, vnode, version).await } else { engine.set_floor(1, vnode, version).await };
        if raised.is_err() {
            return;
        }
        let now = engine.marks(1, vnode);
        assert!(now.fence >= version && now.fence >= now.floor && (is_fence || now.floor >= version));
        let mut told = told.borrow_mut();
        let marks = told.entry(vnode).or_default();
        *marks = VnodeMarks { fence: marks.fence.max(version), floor: if is_fence { marks.floor } else { marks.floor.max(version) } };
    })
}

#[test]
fn tokens_of_a_range_are_those_of_one_vnode() {
    assert!(ranges().iter().all(|range| vnode_of(range.first, VNODES) == vnode_of(range.last, VNODES)));
}

fn site(prng: &mut Prng) -> CrashSite {
    [CrashSite::Before, CrashSite::During, CrashSite::After][prng.below(3) as usize]
}
