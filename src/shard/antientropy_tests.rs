//! Two engines on a simulated disk whose cells drift apart and are compared: trees, lists, copies and the bytes of the messages together.

use super::antientropy::{Trees, list, marks, read, store};
use crate::base::prng::Prng;
use crate::base::record::{Cell, Kind, Token, Version, token_of, vnode_of};
use crate::cluster::forget::{Road, admits_cell};
use crate::cluster::repair::{Answer, Ask, Effect, Exchange, Outcome, Scope, Serve, serve};
use crate::engine::recover::{NodeConfig, NodeStore};
use crate::engine::store_repair::TokenRange;
use crate::engine::{Batch, Engine, EngineConfig, EngineError, KeyRef};
use crate::io::Io;
use crate::io::sim::{Faults, World};
use crate::wire::peer::Head;
use crate::wire::peer_repair::{RepairMessage, decode_body, encode_body};
use std::path::Path;
use std::time::Duration;

const VNODES: u32 = 4;
const VNODE: u32 = 1;
const SCOPE: Scope = Scope { namespace: 1, vnode: VNODE, epoch: 3 };
const SEED: u64 = 99;

struct Side {
    engine: Engine,
    trees: Trees,
}

impl Side {
    async fn open(io: &Io, data: &str) -> Side {
        let node = NodeConfig { cores: 1, vnodes: VNODES, identity: None, core_of: |_, _| 0 };
        let store = NodeStore::open(io, Path::new(data), node).await.unwrap();
        // What expired values left stays for an hour.
        let begun_is_over_ms = Some(3_600_000);
        let config = EngineConfig { memtable_bytes: 256 << 10, begun_is_over_ms, ..EngineConfig::new(0, 2 << 20, 7) };
        let (engine, _) = Engine::open(io, &store, config).await.unwrap();
        store.commit(io).await.unwrap();
        let trees = Trees::new(SEED, VNODES, 1 << 20);
        trees.set_pairs([(1, VNODE), (2, VNODE)]);
        Side { engine, trees }
    }

    async fn write(&self, io: &Io, key: &[u8], cell: &Cell<'_>) {
        let mut batch = Batch::new(false);
        batch.push(KeyRef { namespace: 1, token: token_of(key), key }, Kind::Head, b"", cell);
        while let Err(error) = self.engine.write(&batch) {
            assert!(matches!(error, EngineError::Overloaded), "{error}");
            io.sleep(Duration::from_millis(1)).await;
        }
        self.trees.mark_dirty(1, token_of(key));
    }

    /// Of so many bytes, which follow from the version.
    async fn write_large(&self, io: &Io, key: &[u8], version: Version, bytes: usize) {
        let mut batch = Batch::new(false);
        batch.put_value(KeyRef { namespace: 1, token: token_of(key), key }, &pattern(version, bytes), version, 0);
        while let Err(error) = self.engine.write(&batch) {
            assert!(matches!(error, EngineError::Overloaded), "{error}");
            io.sleep(Duration::from_millis(1)).await;
        }
        self.trees.mark_dirty(1, token_of(key));
    }

    /// Version and length of a large string, which is whole.
    async fn large(&self, io: &Io, key: &[u8]) -> Option<(Version, usize)> {
        let value = self.engine.read_value(KeyRef { namespace: 1, token: token_of(key), key }, io.wall_ms()).await.unwrap()?;
        assert_eq!(value.bytes, pattern(value.version, value.bytes.len()));
        Some((value.version, value.bytes.len()))
    }

    async fn scan(&self, io: &Io) {
        while self.trees.scan_step(&self.engine, io.wall_ms()).await.unwrap() {}
        assert_eq!(self.trees.dirty(), 0);
    }

    fn depth(&self) -> u8 {
        self.trees.with(1, VNODE, |tree| tree.leaves_log2()).unwrap()
    }

    fn root(&self) -> Option<u128> {
        self.trees.with(1, VNODE, |tree| tree.hash(0, 0)).unwrap()
    }

    async fn take(&self, cells: &[crate::cluster::repair::CellCopy]) -> u32 {
        let judge = |cell, held| admits_cell(cell, Road::Copy, marks(&self.engine, 1, VNODE), None, held, None);
        store(&self.engine, &self.trees, &SCOPE, cells, judge).await.unwrap()
    }

    async fn answer(&self, io: &Io, ask: Ask) -> Answer {
        match self.trees.with(1, VNODE, |tree| serve(tree, true, ask)).unwrap() {
            Serve::Answer(answer) => answer,
            Serve::List(span, then) => {
                let (places, then) = then.listed(list(&self.engine, &SCOPE, &span, io.wall_ms()).await.unwrap());
                let (looked_at, cells) = read(&self.engine, &places, io.wall_ms()).await.unwrap();
                then.read(looked_at, cells)
            }
            Serve::Store(cells, then) => then.stored(self.take(&cells).await),
        }
    }
}

fn pattern(version: Version, bytes: usize) -> Vec<u8> {
    (0..bytes).map(|at| (at as u8).wrapping_mul(3) ^ version.hlc() as u8).collect()
}

/// As it would travel.
fn over_the_wire(message: RepairMessage) -> RepairMessage {
    let mut body = Vec::new();
    let kind = encode_body(&mut body, Head { epoch: 1, deadline_ms: 0 }, &message);
    let (_, decoded) = decode_body(kind, &body).unwrap();
    assert_eq!(decoded, message);
    decoded
}

async fn compare(io: &Io, ours: &Side, theirs: &Side) -> Outcome {
    compare_for(io, ours, theirs, u32::MAX).await.expect("to its end")
}

/// Cut off after so many effects, whatever they are.
async fn compare_for(io: &Io, ours: &Side, theirs: &Side, effects_max: u32) -> Option<Outcome> {
    let mut effects = Vec::new();
    let mut exchange = Exchange::new(io.now(), 1, SCOPE, None, ours.depth(), None, &mut effects);
    let mut left = effects_max;
    loop {
        let Some(effect) = effects.pop() else {
            exchange.on_tick(io.now(), 1 << 20, &mut effects);
            continue;
        };
        left = left.checked_sub(1)?;
        match effect {
            Effect::Ask(ask) => {
                let RepairMessage::Ask(ask) = over_the_wire(RepairMessage::Ask(ask)) else { unreachable!() };
                let answer = theirs.answer(io, ask).await;
                let RepairMessage::Answer(answer) = over_the_wire(RepairMessage::Answer(answer)) else { unreachable!() };
                ours.trees.with(1, VNODE, |tree| exchange.on_answer(io.now(), tree, answer, &mut effects));
            }
            Effect::List(span) => {
                let listing = list(&ours.engine, &SCOPE, &span, io.wall_ms()).await.unwrap();
                exchange.on_listed(io.now(), listing, &mut effects);
            }
            Effect::Copy { store, read: places } => {
                let refused = ours.take(&store).await;
                let (looked_at, cells) = read(&ours.engine, &places, io.wall_ms()).await.unwrap();
                ours.trees.with(1, VNODE, |tree| exchange.on_copied(io.now(), tree, refused, looked_at, cells, &mut effects));
            }
            Effect::Over(outcome) => return Some(outcome),
        }
    }
}

fn keys() -> Vec<Vec<u8>> {
    let keys = (0..12_000).map(|number| format!("key {number}").into_bytes());
    keys.filter(|key| vnode_of(token_of(key), VNODES) == VNODE).take(2500).collect()
}

async fn cells(side: &Side, io: &Io) -> Vec<(Vec<u8>, Version, Version, u64)> {
    let first = Token::from(VNODE) << 62;
    let range = TokenRange { namespace: 1, first, last: first + ((1 << 62) - 1) };
    let list = side.engine.list_cells(range, None, 1 << 30, io.wall_ms()).await.unwrap();
    assert!(list.stopped_at.is_none());
    let facts = |listed: crate::engine::store_repair::ListedCell| {
        (listed.place, listed.cell.version, listed.cell.expiry.version, listed.cell.expiry.deadline_ms)
    };
    list.cells.into_iter().map(facts).collect()
}

#[test]
fn what_drifted_apart_is_found_by_the_trees_and_made_equal() {
    let world = World::new(1);
    let machine = world.add_machine(Faults::default());
    world.run_task(machine, Duration::from_secs(600), |io| async move {
        let (ours, theirs, keys) = (Side::open(&io, "/ours").await, Side::open(&io, "/theirs").await, keys());
        let mut prng = Prng::new(1);
        for key in &keys {
            let (value, version) = (vec![7; prng.below(200) as usize], ours.engine.stamp(io.wall_ms()));
            ours.write(&io, key, &Cell::value(version, &value)).await;
            theirs.write(&io, key, &Cell::value(version, &value)).await;
        }
        ours.scan(&io).await;
        theirs.scan(&io).await;
        assert!((4..=7).contains(&ours.depth()), "{} for 2500 cells", ours.depth());
        assert_eq!(ours.root(), theirs.root());
        assert_eq!(compare(&io, &ours, &theirs).await, Outcome::Compared { differing: 0, refused: 0 });
        for round in 0..4 {
            let mut touched = std::collections::BTreeSet::new();
            for _ in 0..60 {
                let key = &keys[prng.below(keys.len() as u64) as usize];
                let side = if prng.one_in(2) { &ours } else { &theirs };
                let version = ours.engine.stamp(io.wall_ms()).max(theirs.engine.stamp(io.wall_ms()));
                side.engine.observe(version);
                let cell = match prng.below(3) {
                    0 => Cell::tombstone(version),
                    1 => Cell::expire(version, io.wall_ms() + 3_600_000),
                    _ => Cell::value(version, b"newer"),
                };
                side.write(&io, key, &cell).await;
                touched.insert(key);
            }
            // Also while leaves are dirty.
            if round % 2 == 0 {
                ours.scan(&io).await;
                theirs.scan(&io).await;
                assert_ne!(ours.root(), theirs.root());
            }
            let outcome = compare(&io, &ours, &theirs).await;
            assert_eq!(outcome, Outcome::Compared { differing: touched.len() as u64, refused: 0 });
            assert_eq!(cells(&ours, &io).await, cells(&theirs, &io).await);
            ours.scan(&io).await;
            theirs.scan(&io).await;
            assert_eq!(ours.root(), theirs.root());
        }
    });
}

/// However far a comparison comes, whoever holds a large string holds all of it: head and chunks never travel apart.
#[test]
fn large_strings_are_copied_whole_and_stay_whole_wherever_a_comparison_is_cut_off() {
    let world = World::new(3);
    let machine = world.add_machine(Faults::default());
    world.run_task(machine, Duration::from_secs(600), |io| async move {
        let (ours, theirs) = (Side::open(&io, "/ours").await, Side::open(&io, "/theirs").await);
        let keys: Vec<Vec<u8>> = keys().into_iter().take(12).collect();
        let mut prng = Prng::new(3);
        for round in 0..12 {
            for key in &keys {
                for side in [&ours, &theirs] {
                    if prng.one_in(2) {
                        continue;
                    }
                    let version = ours.engine.stamp(io.wall_ms()).max(theirs.engine.stamp(io.wall_ms()));
                    side.engine.observe(version);
                    side.write_large(&io, key, version, prng.between(1, 200_000) as usize).await;
                }
            }
            let mut before = Vec::new();
            for key in &keys {
                before.push((ours.large(&io, key).await, theirs.large(&io, key).await));
            }
            for cut in [3 + round, 6 + round, u32::MAX] {
                let ended = compare_for(&io, &ours, &theirs, cut).await;
                assert!(ended.is_some() || cut < u32::MAX);
                for (key, before) in keys.iter().zip(&before) {
                    let newest = before.0.max(before.1);
                    let now = (ours.large(&io, key).await, theirs.large(&io, key).await);
                    assert!(now.0 == before.0 || now.0 == newest, "{now:?} {before:?}");
                    assert!(now.1 == before.1 || now.1 == newest, "{now:?} {before:?}");
                    assert!(cut < u32::MAX || now.0 == newest && now.1 == newest, "{now:?} {before:?}");
                }
            }
            ours.scan(&io).await;
            theirs.scan(&io).await;
            assert_eq!(ours.root(), theirs.root());
        }
    });
}

#[test]
fn copies_at_or_below_the_fence_and_those_that_no_node_wrote_are_refused() {
    let world = World::new(2);
    let machine = world.add_machine(Faults::default());
    world.run_task(machine, Duration::from_secs(600), |io| async move {
        let (ours, theirs, keys) = (Side::open(&io, "/ours").await, Side::open(&io, "/theirs").await, keys());
        for key in &keys[..20] {
            ours.write(&io, key, &Cell::value(ours.engine.stamp(io.wall_ms()), b"v")).await;
        }
        let listed = cells(&ours, &io).await;
        let places: Vec<Vec<u8>> = listed.iter().map(|(place, ..)| place.clone()).collect();
        let (looked_at, mut copies) = read(&ours.engine, &places, io.wall_ms()).await.unwrap();
        assert_eq!((looked_at, copies.len()), (20, 20));
        let mut by_age: Vec<Version> = copies.iter().map(|copy| copy.digest.value).collect();
        by_age.sort_unstable();
        theirs.engine.set_fence(1, VNODE, by_age[14]).await.unwrap();
        assert_eq!(theirs.take(&copies).await, 15);
        assert_eq!(cells(&theirs, &io).await.len(), 5);
        assert_eq!(theirs.take(&copies).await, 15, "what is held is no refusal");
        // A new deadline of an old value: only the deadline is stored.
        let key = &keys[0];
        ours.write(&io, key, &Cell::expire(ours.engine.stamp(io.wall_ms()), io.wall_ms() + 3_600_000)).await;
        let place = vec![KeyRef { namespace: 1, token: token_of(key), key }.place(Kind::Head, b"")];
        let (_, expiring) = read(&ours.engine, &place, io.wall_ms()).await.unwrap();
        assert_eq!(theirs.take(&expiring).await, 1);
        let held = cells(&theirs, &io).await.into_iter().find(|(at, ..)| *at == place[0]).unwrap();
        assert_eq!((held.1, held.2), (Version::ZERO, expiring[0].digest.expiry));
        copies[0].digest.value = Version::MAX;
        copies[1].cell = b"nonsense".to_vec();
        copies[2].place[0] ^= 1;
        copies[3].place = b"x".to_vec();
        assert_eq!(theirs.take(&copies[..4]).await, 4);
    });
}

/// What an expired value left is completed by the value that comes with a newer deadline, however old the value is; where nothing is left
/// of it, it stays away.
#[test]
fn below_the_floor_a_value_comes_back_only_to_what_it_left() {
    let world = World::new(4);
    let machine = world.add_machine(Faults::default());
    world.run_task(machine, Duration::from_secs(600), |io| async move {
        let (ours, theirs, keys) = (Side::open(&io, "/ours").await, Side::open(&io, "/theirs").await, keys());
        let old = ours.engine.stamp(io.wall_ms());
        let expired = Cell::value(old, b"v").with_deadline(1);
        for key in &keys[..2] {
            ours.write(&io, key, &expired).await;
        }
        theirs.write(&io, &keys[0], &expired.remnant()).await;
        let later = ours.engine.stamp(io.wall_ms());
        for key in &keys[..2] {
            ours.write(&io, key, &Cell::expire(later, 0)).await;
        }
        theirs.engine.set_floor(1, VNODE, old).await.unwrap();
        let places =
            keys[..2].iter().map(|key| KeyRef { namespace: 1, token: token_of(key), key }.place(Kind::Head, b"")).collect::<Vec<_>>();
        let (_, copies) = read(&ours.engine, &places, io.wall_ms()).await.unwrap();
        assert_eq!(theirs.take(&copies).await, 1, "of one only the deadline is taken");
        for (key, version) in [(&keys[0], old), (&keys[1], Version::ZERO)] {
            let found = theirs.engine.read(KeyRef { namespace: 1, token: token_of(key), key }).await.unwrap();
            let cell = found.cell().unwrap();
            assert_eq!((cell.version, cell.expiry.version, cell.is_live(io.wall_ms())), (version, later, version == old));
        }
    });
}
