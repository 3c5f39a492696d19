//! Verifying a folder on the simulated disk: sound after random traffic and crashes, every file kind damaged at many places, files gone.
//!
//! A flipped bit is either reported with its file's name, or harmless. Harmless is proven: what a node would read of the folder
//! (`read_all`) is the same as before. That holds for padding, and for blocks of the log and of the fronts of tables that nobody reads
//! any more. A torn tail is the third case: what is said there is cut, and the rest is the same.

use super::batch::{Batch, KeyRef};
use super::manifest::{self, State};
use super::pick::Policy;
use super::recover::{NodeConfig, NodeStore, shard_name};
use super::store::{Engine, EngineConfig};
use super::table::Table;
use super::test_core::on;
use super::verify_folder::{FolderReport, verify_folder};
use super::wal_replay::WalReader;
use super::{EngineError, format::Identity};
use crate::base::checksum::checksum;
use crate::base::prng::Prng;
use crate::base::record::{core_of, token_of, vnode_of};
use crate::io::Io;
use crate::io::op::OpenHow;
use crate::io::sim::{Faults, MachineId, World};
use crate::limits::BLOCK_BYTES;
use std::collections::BTreeMap;
use std::path::Path;
use std::rc::Rc;

pub(super) const DATA: &str = "/data";
pub(super) const VNODES: u32 = 16;
pub(super) const CORES: u16 = 2;
pub(super) const IDENTITY: Identity = Identity { cluster: 21, node: 22 };

pub(super) fn config(core: u16) -> EngineConfig {
    EngineConfig {
        memtable_bytes: 48 << 10,
        memtable_chunk_bytes: 4096,
        cache_bytes: 64 << 10,
        wal_segment_bytes: 64 << 10,
        wal_segments_max: 4,
        wal_pending_bytes_max: 60 << 10,
        table_bytes_max: 12 << 10,
        block_bytes: 1024,
        policy: Policy { level0_runs: 3, level1_runs: 2, dead_bytes_min: 4096, ..Policy::default() },
        ..EngineConfig::new(core, 1 << 20, 7)
    }
}

/// Random writes by a node that is closed in order, or (false) left as it stands.
async fn traffic(io: Io, cores: u16, seed: u64, writes: u32, close: bool) -> Result<(), EngineError> {
    let store = NodeStore::open(&io, Path::new(DATA), NodeConfig { cores, vnodes: VNODES, identity: Some(IDENTITY), core_of }).await?;
    let mut engines = Vec::new();
    for core in 0..cores {
        Engine::read_old_logs(&io, &store, &config(core)).await?;
    }
    for core in 0..cores {
        engines.push(Engine::open(&io, &store, config(core)).await?.0);
    }
    store.commit(&io).await?;
    let mut prng = Prng::new(seed);
    for _ in 0..writes {
        let key = format!("key {}", prng.below(900)).into_bytes();
        let engine = &engines[usize::from(core_of(vnode_of(token_of(&key), VNODES), cores))];
        let deadline_ms = if prng.one_in(4) { io.wall_ms() + 1 + prng.below(1 << 30) } else { 0 };
        let (mut batch, version) = (Batch::new(false), engine.stamp(io.wall_ms()));
        let value = vec![prng.next_u64() as u8; prng.below(300) as usize];
        batch.put_value(KeyRef { namespace: 1, token: token_of(&key), key: &key }, &value, version, deadline_ms);
        let seq = loop {
            match engine.write(&batch) {
                Ok(seq) => break seq,
                Err(EngineError::Overloaded) => io.yield_now().await,
                Err(other) => return Err(other),
            }
        };
        if prng.one_in(3) {
            engine.wait_durable(seq).await?;
        }
    }
    for engine in engines.iter().filter(|_| close) {
        engine.close().await?;
    }
    Ok(())
}

/// A folder with tables of several levels, logs that went round, manifests with many groups.
pub(super) fn folder(seed: u64) -> (World, MachineId) {
    let world = World::new(seed);
    let machine = world.add_machine(Faults::default());
    on(&world, machine, move |io| traffic(io, CORES, seed, 2000, true)).expect("no crash").unwrap();
    (world, machine)
}

fn verify(world: &World, machine: MachineId) -> FolderReport {
    on(world, machine, |io| async move { verify_folder(&io, Path::new(DATA)).await }).expect("no crash").unwrap()
}

pub(super) fn flip(world: &World, machine: MachineId, path: &str, at: u64, bit: u8) {
    let path = path.to_owned();
    let done = on(world, machine, move |io| async move {
        let file = io.open(Path::new(&path), OpenHow::ReadWrite).await?;
        let block = at / BLOCK_BYTES as u64 * BLOCK_BYTES as u64;
        let mut buf = io.read(&file, block, BLOCK_BYTES).await?;
        buf[(at - block) as usize] ^= 1 << bit;
        io.write(&file, block, buf, true).await
    });
    drop(done.expect("no crash").unwrap());
}

/// Places and cells.
type Entries = Vec<(Vec<u8>, Vec<u8>)>;

/// All that a node would read: of each shard the state and the records to replay, and the live entries of each table.
#[derive(PartialEq, Debug)]
struct All {
    states: Vec<State>,
    logs: Vec<Vec<(u64, Vec<u8>)>>,
    tables: BTreeMap<String, Entries>,
}

async fn read_all(io: Io) -> Result<All, EngineError> {
    let mut all = All { states: Vec::new(), logs: Vec::new(), tables: BTreeMap::new() };
    for core in 0..CORES {
        let dir = Path::new(DATA).join(shard_name(1, core));
        let (state, _, _) = manifest::load(&io, &dir, IDENTITY).await?;
        let mut log = Vec::new();
        let mut reader = WalReader::open_to_read(&io, &dir, IDENTITY, state.released).await?;
        let mut take = |seq: u64, record: &[u8]| {
            log.push((seq, record.to_vec()));
            Ok(())
        };
        while reader.next_group(&mut take).await? {}
        for record in state.tables.values() {
            let name = record.id.file_name();
            let path = Path::new(DATA).join("tables").join(&name);
            let table = Table::open(&io, &path, IDENTITY, super::tables::cache_id(record.id), &Rc::default()).await?;
            let (mut iter, mut entries) = (table.iter(&record.from, None), Vec::new());
            while iter.advance().await? {
                entries.push((iter.place().to_vec(), iter.cell().to_vec()));
            }
            all.tables.insert(name, entries);
        }
        all.states.push(state);
        all.logs.push(log);
    }
    Ok(all)
}

fn all(world: &World, machine: MachineId) -> All {
    on(world, machine, read_all).expect("no crash").expect("verify would have said so")
}

/// The files of the data folder, their lengths, and what they hold.
pub(super) fn files(world: &World, machine: MachineId) -> BTreeMap<String, Vec<u8>> {
    let tree = world.tree(machine);
    let files = tree.keys().filter(|path| path.starts_with(DATA) && !path.ends_with('/'));
    files.map(|path| (path.clone(), world.file_bytes(machine, Path::new(path)).unwrap())).collect()
}

#[test]
fn a_sound_folder_passes_whatever_happened_to_it_and_no_byte_of_it_changes() {
    for seed in 1..7 {
        let (world, machine) = folder(seed);
        on(&world, machine, move |io| traffic(io, CORES, seed + 100, 300, false)).expect("no crash").unwrap();
        if seed % 2 == 0 {
            world.crash(machine);
        } else {
            world.kill(machine);
        }
        for cores in [CORES, 3, 1] {
            let before = (files(&world, machine), world.tree(machine));
            let report = verify(&world, machine);
            assert!(report.damage.is_empty() && report.unread.is_empty(), "seed {seed}, {report:?}");
            let tables = before.0.keys().filter(|path| path.contains("/tables/")).count();
            assert!(tables > 2 && report.lines.iter().filter(|line| line.starts_with("tables/")).count() == tables, "{report:?}");
            assert_eq!((files(&world, machine), world.tree(machine)), before);
            on(&world, machine, move |io| traffic(io, cores, seed + 200, 100, true)).expect("no crash").unwrap();
        }
    }
}

/// Whatever the report calls damaged is `path`.
fn is_named(report: &FolderReport, path: &str) -> bool {
    let name = path.strip_prefix("/data/").unwrap();
    report.unread.is_empty() && report.damage.iter().all(|damage| damage.file == name)
}

#[test]
fn a_flipped_bit_is_reported_with_its_file_or_changes_nothing_that_a_node_reads() {
    let (world, machine) = folder(3);
    let sound = all(&world, machine);
    assert!(verify(&world, machine).damage.is_empty());
    assert!(sound.logs.iter().map(Vec::len).sum::<usize>() > 20 && sound.tables.len() > 4, "{:?}", sound.tables.keys());
    let mut prng = Prng::new(4);
    // (kind, damage told, harmless, torn)
    let mut kinds: BTreeMap<&str, (u32, u32, u32)> = BTreeMap::new();
    for (path, bytes) in files(&world, machine) {
        let kind =
            ["LAYOUT", "CURRENT", "MANIFEST", "wal", "table"].into_iter().find(|kind| path.rsplit('/').next().unwrap().contains(kind));
        let (kind, len) = (kind.unwrap_or_else(|| panic!("{path}")), bytes.len() as u64);
        // Headers densely; then in steps that meet every block of the log and of the manifest's written part; one-off places by chance.
        let step = if kind == "table" { 1499 } else { 4099 };
        let dense = (0..100).step_by(9).chain((len.saturating_sub(96)..len).step_by(13));
        let places = dense.chain((100..len.min(80 << 10)).step_by(step)).chain((0..4).map(|_| prng.below(len))).collect::<Vec<_>>();
        for at in places {
            let bit = prng.below(8) as u8;
            flip(&world, machine, &path, at, bit);
            let report = verify(&world, machine);
            assert!(is_named(&report, &path), "{path} at {at}: {report:?}");
            let counts = kinds.entry(kind).or_default();
            let torn = report.lines.iter().any(|line| line.contains("torn tail") && line.starts_with(path.strip_prefix("/data/").unwrap()));
            if !report.damage.is_empty() {
                let offset = report.damage[0].offset;
                assert!(offset <= at || kind == "table", "{path} at {at}: {report:?}");
                counts.0 += 1;
            } else if torn {
                assert!(kind == "MANIFEST" || kind == "wal", "{path} at {at}: {report:?}");
                counts.2 += 1;
                for (log, sound) in all(&world, machine).logs.iter().zip(&sound.logs).filter(|_| kind == "wal") {
                    assert!(sound.starts_with(log), "only an end is cut");
                }
            } else {
                assert_eq!(all(&world, machine), sound, "{path} at {at}");
                counts.1 += 1;
            }
            flip(&world, machine, &path, at, bit);
        }
    }
    // LAYOUT and CURRENT are checked to the last byte; the others have padding, and ends that may be torn.
    assert!(kinds.len() == 5 && kinds.values().all(|counts| counts.0 > 10), "{kinds:?}");
    for kind in ["LAYOUT", "CURRENT"] {
        assert_eq!((kinds[kind].1, kinds[kind].2), (0, 0), "{kinds:?}");
    }
    assert!(kinds["wal"].2 > 0 && kinds["MANIFEST"].2 > 0, "{kinds:?}");
    assert_eq!(all(&world, machine), sound);
}

#[test]
fn a_file_that_is_gone_is_reported() {
    let (world, machine) = folder(3);
    for path in files(&world, machine).into_keys() {
        let (world, machine) = folder(3);
        let sound = all(&world, machine);
        let gone = path.clone();
        on(&world, machine, move |io| async move { io.remove(Path::new(&gone)).await }).expect("no crash").unwrap();
        let report = verify(&world, machine);
        let name = path.strip_prefix("/data/").unwrap();
        if name.contains("/wal-") {
            // A segment has no name in any list: the sequences show what is missing, unless it held nothing, or the end.
            if report.damage.is_empty() {
                let logs = all(&world, machine).logs;
                assert!(logs.iter().zip(&sound.logs).all(|(log, sound)| sound.starts_with(log)), "{path}");
            } else {
                let shard = name.split('/').next().unwrap();
                assert!(report.damage[0].file.starts_with(shard) && report.damage[0].what.contains("is due"), "{report:?}");
            }
            continue;
        }
        let named = |damage: &super::verify_folder::Damage| damage.file == name || damage.what.contains(name);
        let orphan = report.lines.iter().any(|line| line.starts_with(name) && line.contains("no manifest names it"));
        assert!(report.damage.len() == 1 && named(&report.damage[0]) && !orphan, "{path}: {report:?}");
    }
}

#[test]
fn a_read_error_is_no_damage_and_a_later_format_neither() {
    let (world, machine) = folder(5);
    world.faults(machine, |faults| faults.read_error_one_in = 1);
    let report = verify(&world, machine);
    assert!(report.damage.is_empty() && !report.unread.is_empty(), "{report:?}");
    world.faults(machine, |faults| faults.read_error_one_in = 0);
    on(&world, machine, |io| async move {
        let file = io.open(Path::new("/data/LAYOUT"), OpenHow::ReadWrite).await?;
        let mut buf = io.read(&file, 0, BLOCK_BYTES).await?;
        buf[8] = 2;
        let sum = checksum(&buf[..64]).to_le_bytes();
        buf[64..72].copy_from_slice(&sum);
        io.write(&file, 0, buf, true).await
    })
    .expect("no crash")
    .unwrap();
    let report = verify(&world, machine);
    assert!(report.damage.is_empty() && report.unread[0].starts_with("LAYOUT: a data folder of a later version"), "{report:?}");
}
