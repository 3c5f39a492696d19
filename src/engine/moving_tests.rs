//! Moves to other lists of cores on the simulated disk: what is read, who gets it, and what a full disk does.

use super::EngineError;
use super::batch::{Batch, KeyRef};
use super::pick::Policy;
use super::recover::{NodeConfig, NodeStore};
use super::store::{Engine, EngineConfig};
use super::wal_replay::WalReader;
use crate::base::prng::Prng;
use crate::base::record::{Version, core_of, token_of, vnode_of};
use crate::io::op::OpenHow;
use crate::io::sim::{Faults, MachineId, World};
use crate::io::wakers::Wakers;
use crate::io::{Class, Io};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::future::Future;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

const DATA: &str = "/data";
const VNODES: u32 = 16;

fn config(core: u16, memtable_bytes: usize) -> EngineConfig {
    EngineConfig {
        memtable_bytes,
        memtable_chunk_bytes: 4096,
        cache_bytes: 64 << 10,
        wal_segment_bytes: 512 << 10,
        wal_segments_max: 16,
        wal_pending_bytes_max: 512 << 10,
        table_bytes_max: 64 << 10,
        block_bytes: 1024,
        policy: Policy { level0_runs: 3, level1_runs: 2, dead_bytes_min: 4096, ..Policy::default() },
        ..EngineConfig::new(core, 1 << 20, 7)
    }
}

fn on<T: 'static, F: Future<Output = Result<T, EngineError>> + 'static>(
    world: &World,
    machine: MachineId,
    task: impl FnOnce(Io) -> F,
) -> Result<T, EngineError> {
    let io = world.spawn_core(machine, 0, &Wakers::new(1));
    let answer = Rc::new(RefCell::new(None));
    let (put, done) = (answer.clone(), task(io.clone()));
    drop(io.clone().spawn(Class::Foreground, async move {
        let got = done.await;
        *put.borrow_mut() = Some(got);
        io.shutdown();
    }));
    world.run_until(Duration::from_secs(120), || answer.borrow().is_some());
    world.run_for(Duration::from_millis(1));
    answer.take().expect("it ends")
}

async fn store(io: &Io, cores: u16) -> Result<Arc<NodeStore>, EngineError> {
    NodeStore::open(io, Path::new(DATA), NodeConfig { cores, vnodes: VNODES, identity: None, core_of }).await
}

/// What it takes for the logs to keep everything, and for their reading to flush several times.
const LARGE: usize = 4 << 20;
const SMALL: usize = 96 << 10;

/// Opens a node; also the records that were read of old logs.
async fn open(io: &Io, cores: u16, memtable_bytes: usize) -> Result<(Vec<Engine>, u64), EngineError> {
    let store = store(io, cores).await?;
    let (mut engines, mut records) = (Vec::new(), 0);
    for core in 0..cores {
        records += Engine::read_old_logs(io, &store, &config(core, memtable_bytes)).await?.wal.records;
    }
    for core in 0..cores {
        engines.push(Engine::open(io, &store, config(core, memtable_bytes)).await?.0);
    }
    store.commit(io).await?;
    Ok((engines, records))
}

#[test]
fn what_a_failed_change_of_the_layout_left_does_not_stop_the_next() {
    let world = World::new(3);
    let machine = world.add_machine(Faults::default());
    let result = on(&world, machine, |io| async move {
        drop(open(&io, 1, SMALL).await?);
        let store = store(&io, 2).await?;
        for core in 0..2 {
            Engine::read_old_logs(&io, &store, &config(core, SMALL)).await?;
        }
        let engines = [Engine::open(&io, &store, config(0, SMALL)).await?, Engine::open(&io, &store, config(1, SMALL)).await?];
        // As where the disk was full when it was to be written.
        io.open(&Path::new(DATA).join("LAYOUT.new"), OpenHow::Create).await?;
        store.commit(&io).await?;
        drop((engines, store));
        open(&io, 2, SMALL).await.map(drop)
    });
    result.expect("the layout is changed");
}

type Written = BTreeMap<Vec<u8>, (Version, Vec<u8>)>;

/// Random puts, each durable; the node is not closed afterwards.
async fn puts(io: &Io, engines: &[Engine], prng: &mut Prng, count: u64, written: &mut Written) -> Result<(), EngineError> {
    for _ in 0..count {
        let key = format!("key {}", prng.below(400)).into_bytes();
        let engine = &engines[usize::from(core_of(vnode_of(token_of(&key), VNODES), engines.len() as u16))];
        let (mut batch, version) = (Batch::new(true), engine.stamp(io.wall_ms()));
        let value = vec![prng.next_u64() as u8; prng.between(1, 1500) as usize];
        batch.put_value(KeyRef { namespace: 1, token: token_of(&key), key: &key }, &value, version, 0);
        loop {
            match engine.write(&batch) {
                Ok(seq) => break engine.wait_durable(seq).await?,
                Err(EngineError::Overloaded) => io.sleep(Duration::from_millis(1)).await,
                Err(other) => return Err(other),
            }
        }
        written.insert(key, (version, value));
    }
    Ok(())
}

async fn check(io: &Io, engines: &[Engine], written: &Written) -> Result<(), EngineError> {
    for (key, expected) in written {
        let core = core_of(vnode_of(token_of(key), VNODES), engines.len() as u16);
        let engine = &engines[usize::from(core)];
        let found = engine.read_value(KeyRef { namespace: 1, token: token_of(key), key }, io.wall_ms()).await?;
        assert_eq!(found.map(|value| (value.version, value.bytes)).as_ref(), Some(expected), "{key:?} at core {core}");
        assert!(engine.stamp(io.wall_ms()) > expected.0, "a stamp below {:?}", expected.0);
    }
    Ok(())
}

/// How many records the logs of a node of so many cores would replay.
async fn records_in_logs(io: &Io, cores: u16) -> Result<u64, EngineError> {
    let store = store(io, cores).await?;
    let mut records = 0;
    for core in 0..cores {
        let dir = store.shard_dir(core);
        let released = super::manifest::load(io, &dir, store.identity()).await?.0.released;
        let reader = WalReader::open_to_read(io, &dir, store.identity(), released).await?;
        records += reader.plan.groups.iter().map(|group| u64::from(group.records)).sum::<u64>();
    }
    Ok(records)
}

/// A table that only one shard refers to holds nothing of another's.
fn check_owners(engines: &[Engine]) -> usize {
    let mut of_others = 0;
    for (core, engine) in (0..).zip(engines) {
        let tree = engine.core.tables.tree();
        for table in tree.tables().filter(|table| !table.record.shared) {
            let vnodes = table.table.properties().bounds.iter().map(|bound| bound.vnode);
            vnodes.for_each(|vnode| assert_eq!(core_of(vnode, engines.len() as u16), core, "{:?}", table.record));
            of_others += usize::from(table.record.id.shard != core);
        }
    }
    of_others
}

/// One life of a node: opens it, does what is asked with it, and is killed. Gives what came of it, and the records that were read of old
/// logs.
fn life<T: 'static, F: Future<Output = Result<T, EngineError>> + 'static>(
    (world, machine): (&World, MachineId),
    (cores, memtable_bytes): (u16, usize),
    work: impl FnOnce(Io, Vec<Engine>) -> F + 'static,
) -> Result<(T, u64), EngineError> {
    on(world, machine, move |io| async move {
        let (engines, read) = open(&io, cores, memtable_bytes).await?;
        Ok((work(io, engines).await?, read))
    })
}

/// A node with random puts in its logs, killed.
fn filled(world: &World, machine: MachineId, cores: u16, seed: u64, count: u64) -> Rc<Written> {
    let work = move |io, engines: Vec<Engine>| async move {
        let mut written = Written::new();
        puts(&io, &engines, &mut Prng::new(seed), count, &mut written).await?;
        Ok(Rc::new(written))
    };
    life((world, machine), (cores, LARGE), work).unwrap().0
}

#[test]
fn every_record_of_the_old_logs_is_read_once_and_goes_to_its_owner_alone() {
    let mut written_by_others = 0;
    for (seed, (old, new)) in (0..).zip([(1, 2), (2, 1), (1, 4), (4, 1), (2, 3), (3, 2), (3, 4), (4, 3), (2, 4), (4, 2)]) {
        let world = World::new(seed);
        let machine = world.add_machine(Faults::default());
        let written = filled(&world, machine, old, seed, 900);
        let wanted = on(&world, machine, move |io| async move { records_in_logs(&io, old).await }).unwrap();
        assert!(wanted >= 900, "{old} → {new}: {wanted} records in the logs");
        let known = written.clone();
        let work = move |io, engines: Vec<Engine>| async move {
            let of_others = check_owners(&engines);
            check(&io, &engines, &known).await?;
            let mut written = Written::clone(&known);
            puts(&io, &engines, &mut Prng::new(seed + 50), 300, &mut written).await?;
            Ok((of_others, Rc::new(written)))
        };
        let ((of_others, written), read) = life((&world, machine), (new, SMALL), work).unwrap();
        assert_eq!(read, wanted, "{old} → {new}");
        written_by_others += of_others;
        // And from there on, with what the move made.
        let work = move |io, engines: Vec<Engine>| async move {
            check(&io, &engines, &written).await?;
            for engine in &engines {
                engine.compact_all().await?;
            }
            check(&io, &engines, &written).await
        };
        life((&world, machine), (old, SMALL), work).unwrap();
    }
    assert!(written_by_others > 0, "no shard wrote a table for another");
}

#[test]
fn a_disk_that_is_full_refuses_the_move_and_the_old_cores_go_on() {
    let (mut refused, mut moved) = (0, 0);
    for seed in 0..24 {
        let world = World::new(100 + seed);
        let machine = world.add_machine(Faults::default());
        let (old, new) = [(2, 3), (1, 4), (3, 1), (4, 2)][seed as usize % 4];
        let written = filled(&world, machine, old, seed, 700);
        let checked = |cores: u16, memtable_bytes: usize| {
            let known = written.clone();
            let work = move |io, engines: Vec<Engine>| async move {
                check(&io, &engines, &known).await?;
                let named: usize = engines.iter().map(|engine| engine.core.tables.tree().tables().count()).sum();
                Ok((named, io.list(&Path::new(DATA).join("tables")).await?.len()))
            };
            life((&world, machine), (cores, memtable_bytes), work)
        };
        world.set_capacity(machine, world.disk_bytes(machine) + seed * 400 * 1024);
        let was_refused = match checked(new, SMALL) {
            Ok(_) => false,
            Err(EngineError::DiskFull) => true,
            Err(EngineError::Io(error)) if error.kind() == std::io::ErrorKind::StorageFull => true,
            Err(other) => panic!("{old} → {new}, seed {seed}: {other}"),
        };
        world.set_capacity(machine, u64::MAX);
        // With memtables that take all of the logs: no work in the background makes tables.
        let ((named, there), read) = checked(old, LARGE).unwrap();
        if was_refused {
            assert_eq!((read, there), (0, named), "the old order is still in force, and nothing is left of the new one");
            refused += 1;
        } else {
            moved += 1;
        }
        checked(new, SMALL).unwrap();
    }
    assert!(refused >= 4 && moved >= 4, "{refused} refused, {moved} moved");
}
