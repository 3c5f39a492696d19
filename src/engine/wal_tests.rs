//! The log on the simulated disk: crashes at every operation, torn tails, rot, full disks, failing syncs.

use super::format::Identity;
use super::format::wal::WAL_BLOCK_PAYLOAD_BYTES;
use super::test_core::{lives_with_failing_syncs, on};
use super::wal::{Wal, WalConfig, WalReport};
use super::{EngineError, Planted, Seq};
use crate::base::prng::Prng;
use crate::io::Io;
use crate::io::driver::{Backend, Driver};
use crate::io::executor::Executor;
use crate::io::host;
use crate::io::recording::Recording;
use crate::io::sim::{CrashSite, Faults, MachineId, World};
use crate::io::wakers::Wakers;
use crate::limits::INTERVAL_MS_MAX;
use std::cell::{Cell, RefCell};
use std::future::Future;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

const SEGMENT_BYTES: usize = 64 * 1024;

fn config(released: Seq, planted: Option<Planted>) -> WalConfig {
    WalConfig {
        identity: Identity { cluster: 5, node: 6 },
        segment_bytes: SEGMENT_BYTES,
        segments_max: 8,
        pending_bytes_max: 256 * 1024,
        released,
        planted,
    }
}

/// What was appended, released and acknowledged, outside of the machine.
#[derive(Default)]
struct Model {
    records: RefCell<Vec<Vec<u8>>>,
    released: Cell<Seq>,
    acknowledged: Cell<Seq>,
    torn: Cell<u32>,
}

fn record_of(prng: &mut Prng) -> Vec<u8> {
    let len = [prng.below(40), prng.below(3000), prng.below(20_000)][prng.below(3) as usize] as usize;
    let mut record = vec![0; len];
    prng.fill(&mut record);
    record
}

/// Opens the log, checks what it replays against the model, and cuts the model to it.
async fn reopen(io: &Io, model: &Rc<Model>, planted: Option<Planted>) -> Result<(Wal, WalReport), EngineError> {
    let released = model.released.get();
    let mut next = released + 1;
    let mut wrong = None;
    let mut check = |seq: Seq, record: &[u8]| {
        let known = model.records.borrow().get(seq as usize - 1).is_some_and(|r| r[..] == *record);
        if seq != next || !known {
            wrong.get_or_insert(format!("{seq} came where {next} was due, or with other bytes"));
        }
        next = seq + 1;
        Ok(())
    };
    let (wal, report) = Wal::open(io, Path::new("/wal"), config(released, planted), &mut check).await?;
    if let Some(wrong) = wrong {
        return Err(EngineError::Stopped(wrong));
    }
    if report.last < model.acknowledged.get() {
        return Err(EngineError::Stopped(format!("{} was acknowledged, {} is there", model.acknowledged.get(), report.last)));
    }
    model.records.borrow_mut().truncate(report.last as usize);
    model.torn.set(model.torn.get() + report.torn_groups);
    Ok((wal, report))
}

/// One life: opens, checks, appends, waits and releases at random.
async fn live(io: Io, model: Rc<Model>, mut prng: Prng, planted: Option<Planted>) -> Result<(), EngineError> {
    io.make_dir(Path::new("/wal")).await?;
    io.sync_dir(Path::new("/")).await?;
    let (wal, _) = reopen(&io, &model, planted).await?;
    let seen = model.clone();
    wal.on_durable(Box::new(move |durable| {
        if let Ok(seq) = durable {
            seen.acknowledged.set(seen.acknowledged.get().max(seq));
        }
    }));
    for _ in 0..40 {
        let record = record_of(&mut prng);
        match wal.append(&record, !prng.one_in(4)) {
            Ok(seq) => {
                model.records.borrow_mut().push(record);
                assert_eq!(seq, model.records.borrow().len() as Seq);
            }
            Err(EngineError::Overloaded) => {}
            Err(other) => return Err(other),
        }
        if prng.one_in(3) {
            wal.wait(wal.last()).await?;
        }
        if prng.one_in(10) {
            model.released.set(wal.durable());
            wal.release(wal.durable());
        }
    }
    wal.release(model.released.get());
    wal.wait(wal.last()).await
}

/// Several lives, each but the last ended by a crash at the given operation.
fn lives(seed: u64, crashes: &[(u64, CrashSite)], planted: Option<Planted>) -> Result<(Rc<Model>, u64), EngineError> {
    let world = World::new(seed);
    let machine = world.add_machine(Faults::default());
    let model = Rc::new(Model::default());
    let mut prng = Prng::new(seed);
    for &(op, site) in crashes {
        world.crash_at_op(machine, world.disk_ops(machine) + op, site);
        let (known, fork) = (model.clone(), prng.fork());
        if let Some(ended) = on(&world, machine, |io| live(io, known, fork, planted)) {
            ended?;
            world.crash(machine);
        }
    }
    let (known, fork) = (model.clone(), prng.fork());
    world.crash_at_op(machine, u64::MAX, CrashSite::Before);
    let before = world.disk_ops(machine);
    on(&world, machine, |io| live(io, known, fork, planted)).expect("nothing crashes the last life")?;
    Ok((model, world.disk_ops(machine) - before))
}

const SITES: [CrashSite; 3] = [CrashSite::Before, CrashSite::During, CrashSite::After];

#[test]
fn a_crash_at_every_disk_operation_loses_nothing_acknowledged_and_invents_nothing() {
    let mut torn = 0;
    for seed in 0..8 {
        let (_, ops) = lives(seed, &[], None).unwrap();
        assert!(ops > 20, "{ops} operations");
        for op in 1..=ops {
            for site in SITES {
                let (model, _) = lives(seed, &[(op, site)], None).unwrap_or_else(|e| panic!("seed {seed}, {site:?} operation {op}: {e}"));
                torn += model.torn.get();
            }
        }
    }
    assert!(torn > 0, "no crash tore a group");
}

#[test]
fn many_crashes_in_a_row_are_survived() {
    let mut prng = Prng::new(77);
    for seed in 0..150 {
        let crashes: Vec<_> = (0..6).map(|_| (1 + prng.below(60), SITES[prng.below(3) as usize])).collect();
        lives(1000 + seed, &crashes, None).unwrap_or_else(|e| panic!("seed {seed}, {crashes:?}: {e}"));
    }
}

#[test]
fn what_a_failed_sync_left_in_the_cache_only_is_not_built_upon() {
    let lives = |seed| {
        let (model, mut prng) = (Rc::new(Model::default()), Prng::new(seed));
        lives_with_failing_syncs(seed, 25, 10, "/wal", |io| live(io, model.clone(), prng.fork(), None))
    };
    let failed: u32 = (0..300).map(lives).sum();
    assert!(failed > 300, "{failed}");
}

#[test]
fn the_planted_bugs_are_found() {
    for planted in [Planted::SyncSkipped, Planted::TornTailAccepted] {
        let mut prng = Prng::new(3);
        let found = (0..200).any(|seed| {
            let crashes: Vec<_> = (0..4).map(|_| (5 + prng.below(60), SITES[prng.below(3) as usize])).collect();
            lives(seed, &crashes, Some(planted)).is_err()
        });
        assert!(found, "{planted:?}");
    }
}

/// A world whose machine has `records` in its log, none released; the model knows them.
fn filled(seed: u64, records: usize) -> (World, MachineId, Rc<Model>) {
    let world = World::new(seed);
    let machine = world.add_machine(Faults::default());
    let model = Rc::new(Model::default());
    let known = model.clone();
    let filled = on(&world, machine, move |io| async move {
        io.make_dir(Path::new("/wal")).await?;
        io.sync_dir(Path::new("/")).await?;
        let (wal, _) = reopen(&io, &known, None).await?;
        let mut prng = Prng::new(seed);
        for _ in 0..records {
            let record = record_of(&mut prng);
            let seq = wal.append(&record, true)?;
            known.records.borrow_mut().push(record);
            wal.wait(seq).await?;
        }
        wal.close().await
    });
    filled.unwrap().unwrap();
    (world, machine, model)
}

#[test]
fn rot_before_the_last_group_is_refused_with_file_and_offset_and_rot_in_it_is_cut() {
    let mut refused = 0;
    for seed in 0..60 {
        let (world, machine, model) = filled(seed, 12);
        let block = 1 + world.random_u64() % 15;
        world.rot(machine, Path::new("/wal/wal-1.seg"), block * 4096 + world.random_u64() % 4096).unwrap();
        let known = model.clone();
        let opened = on(&world, machine, |io| async move { reopen(&io, &known, None).await.map(|(_, report)| report) });
        match opened.unwrap() {
            Ok(report) => assert!(report.last >= 11, "only the last group may be cut"),
            Err(EngineError::Corrupt { file, offset, .. }) => {
                assert!(file.ends_with("wal-1.seg") && offset <= block * 4096 && offset > 0, "{file} {offset} for block {block}");
                refused += 1;
            }
            Err(other) => panic!("{other}"),
        }
    }
    assert!(refused > 20, "{refused}");
}

#[test]
fn rot_in_a_segment_header_is_refused() {
    let (world, machine, model) = filled(1, 3);
    world.rot(machine, Path::new("/wal/wal-1.seg"), 33).unwrap();
    let opened = on(&world, machine, |io| async move { reopen(&io, &model, None).await.map(|(_, report)| report) });
    assert!(matches!(opened.unwrap(), Err(EngineError::Corrupt { offset: 0, .. })));
}

#[test]
fn a_full_disk_refuses_appends_and_takes_them_again_when_there_is_room() {
    let world = World::new(4);
    let machine = world.add_machine(Faults::default());
    world.set_capacity(machine, 3 * SEGMENT_BYTES as u64 + 32 * 4096);
    let (inside, model) = (world.clone(), Rc::new(Model::default()));
    let result = on(&world, machine, move |io| async move {
        io.make_dir(Path::new("/wal")).await?;
        let (wal, _) = reopen(&io, &model, None).await?;
        let record = vec![7; 2 * WAL_BLOCK_PAYLOAD_BYTES];
        let mut full = false;
        for _ in 0..40 {
            match wal.append(&record, true) {
                Ok(seq) => wal.wait(seq).await?,
                Err(EngineError::DiskFull) => full = true,
                Err(other) => return Err(other),
            }
        }
        assert!(full && wal.stopped().is_none());
        inside.set_capacity(machine, 100 * SEGMENT_BYTES as u64);
        io.sleep(Duration::from_millis(500)).await;
        let seq = wal.append(&record, true)?;
        wal.wait(seq).await
    });
    result.unwrap().unwrap();
}

#[test]
fn a_failed_write_stops_the_log_for_good() {
    let world = World::new(5);
    let machine = world.add_machine(Faults::default());
    let (inside, model) = (world.clone(), Rc::new(Model::default()));
    let told = Rc::new(RefCell::new(None));
    let hear = told.clone();
    let result = on(&world, machine, move |io| async move {
        io.make_dir(Path::new("/wal")).await?;
        let (wal, _) = reopen(&io, &model, None).await?;
        io.sleep(Duration::from_millis(50)).await;
        wal.on_durable(Box::new(move |durable| *hear.borrow_mut() = Some(durable)));
        inside.faults(machine, |faults| faults.sync_error_one_in = 1);
        let seq = wal.append(b"lost", true)?;
        assert!(matches!(wal.wait(seq).await, Err(EngineError::Stopped(_))));
        inside.faults(machine, |faults| faults.sync_error_one_in = 0);
        assert!(matches!(wal.append(b"later", true), Err(EngineError::Stopped(_))));
        Ok::<_, EngineError>(wal.durable())
    });
    assert_eq!(result.unwrap().unwrap(), 0);
    assert!(matches!(*told.borrow(), Some(Err(_))));
}

#[test]
fn what_is_not_urgent_is_durable_within_the_interval() {
    let world = World::new(6);
    let machine = world.add_machine(Faults::default());
    let model = Rc::new(Model::default());
    let result = on(&world, machine, move |io| async move {
        io.make_dir(Path::new("/wal")).await?;
        let (wal, _) = reopen(&io, &model, None).await?;
        for _ in 0..20 {
            let start = io.now();
            let seq = wal.append(b"lazy", false)?;
            wal.append(b"lazy too", false)?;
            io.sleep(Duration::from_millis(10)).await;
            assert!(wal.durable() < seq, "it waits for company");
            wal.wait(seq + 1).await?;
            assert!(io.now().since(start) <= Duration::from_millis(INTERVAL_MS_MAX));
        }
        let start = io.now();
        let lazy = wal.append(b"lazy", false)?;
        let urgent = wal.append(b"urgent", true)?;
        wal.wait(urgent).await?;
        assert!(wal.durable() > lazy && io.now().since(start) < Duration::from_millis(10), "it goes out with the next group");
        assert!(wal.stats().groups <= 22);
        Ok::<_, EngineError>(())
    });
    result.unwrap().unwrap();
}

#[test]
fn segments_at_their_bound_refuse_until_something_is_released() {
    let world = World::new(8);
    let machine = world.add_machine(Faults::default());
    let model = Rc::new(Model::default());
    let result = on(&world, machine, move |io| async move {
        io.make_dir(Path::new("/wal")).await?;
        let (wal, _) = reopen(&io, &model, None).await?;
        let record = vec![1; 10_000];
        let mut stored = 0;
        loop {
            match wal.append(&record, true) {
                Ok(seq) => wal.wait(seq).await?,
                Err(EngineError::Overloaded) => break,
                Err(other) => return Err(other),
            }
            stored += 1;
            assert!(stored < 1000, "no bound");
        }
        assert!(stored > 8 * 4 && wal.stats().segments == 8);
        wal.release(wal.durable());
        for _ in 0..stored * 5 {
            let seq = wal.append(&record, true)?;
            wal.wait(seq).await?;
            wal.release(wal.durable());
        }
        assert_eq!(wal.stats().segments, 8, "the ring is reused");
        assert!(matches!(wal.append(&vec![0; SEGMENT_BYTES], true), Err(EngineError::TooLarge)));
        Ok(())
    });
    result.unwrap().unwrap();
}

/// Runs a task on a real driver, recorded where a recording is given.
fn on_real<T: 'static, F: Future<Output = T> + 'static>(backend: Backend, recording: Option<&Recording>, task: impl FnOnce(Io) -> F) -> T {
    let wakers = Wakers::new(1);
    let (mut driver, _) = Driver::open(backend, 0, &wakers).expect("a driver");
    if let Some(recording) = recording {
        driver.record(recording.clone());
    }
    let mut executor = Executor::new(driver, 0, wakers);
    let io = executor.handle();
    executor.run(task(io))
}

async fn remove_all(io: &Io, dir: &Path) {
    for entry in io.list(dir).await.unwrap() {
        match entry.is_dir {
            true => Box::pin(remove_all(io, &dir.join(entry.name))).await,
            false => io.remove(&dir.join(entry.name)).await.unwrap(),
        }
    }
    io.remove_dir(dir).await.unwrap();
}

#[test]
fn every_prefix_of_a_recording_on_a_real_disk_recovers_with_its_unflushed_writes_dropped() {
    [Backend::Uring, Backend::Epoll].into_iter().for_each(every_prefix);
}

fn every_prefix(backend: Backend) {
    let root = std::env::temp_dir().join(format!("ringkv-wal-{:x}", host::random_u64()));
    let (source, copies) = (root.join("source"), root.join("copies"));
    host::create_dirs(&source).unwrap();
    let recording = Recording::new(&source);
    let (records, noted) = (Rc::new(RefCell::new(Vec::new())), Rc::new(RefCell::new(vec![(0, 0)])));
    let (put, note, seen, dir) = (records.clone(), noted.clone(), recording.clone(), source.clone());
    on_real(backend, Some(&recording), move |io| async move {
        let (wal, _) = Wal::open(&io, &dir, config(0, None), &mut |_, _| Ok(())).await.unwrap();
        wal.on_durable(Box::new(move |durable| note.borrow_mut().push((seen.len(), durable.unwrap()))));
        let mut prng = Prng::new(1);
        for _ in 0..30 {
            let record = record_of(&mut prng);
            wal.append(&record, true).unwrap();
            put.borrow_mut().push(record);
            if prng.one_in(2) {
                wal.wait(wal.last()).await.unwrap();
            }
        }
        wal.close().await.unwrap();
    });
    let mut prng = Prng::new(2);
    for n in 0..=recording.len() {
        let copy = copies.join(n.to_string());
        let all_dropped = prng.one_in(2);
        recording.apply_prefix(n, &copy, &mut |_| !all_dropped && prng.one_in(2)).unwrap();
        let acknowledged = noted.borrow().iter().filter(|&&(at, _)| at <= n).map(|&(_, seq)| seq).max().unwrap();
        let records = records.clone();
        on_real(backend, None, move |io| async move {
            let mut due = 1;
            let mut check = |seq: Seq, record: &[u8]| {
                assert!(seq == due && records.borrow()[seq as usize - 1] == record, "prefix {n}");
                due += 1;
                Ok(())
            };
            let (wal, report) = Wal::open(&io, &copy, config(0, None), &mut check).await.unwrap();
            assert!(report.last >= acknowledged, "prefix {n}: {} of {acknowledged}", report.last);
            wal.close().await.unwrap();
            remove_all(&io, &copy).await;
        });
    }
    on_real(backend, None, move |io| async move { remove_all(&io, &root).await });
}
