//! The log of hints on the simulated disk: crashes at every operation, rot, full disks, segments that a few hints keep alive.

use super::EngineError;
use super::format::Identity;
use super::format::hints::file_name;
use super::hint_log::{HintLog, HintLogConfig, HintLogFull};
use super::test_core::on;
use crate::base::prng::Prng;
use crate::io::Io;
use crate::io::sim::{CrashSite, Faults, World};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::rc::Rc;

const CONFIG: HintLogConfig =
    HintLogConfig { identity: Identity { cluster: 5, node: 6 }, segment_bytes: 64 * 1024, bytes_max: 2 * 1024 * 1024 };

/// Outside of the machine: every hint by its number, which of them are said to be durable, and which are done.
#[derive(Default)]
struct Model {
    hints: BTreeMap<u64, Vec<u8>>,
    durable: BTreeSet<u64>,
    done: BTreeSet<u64>,
}

async fn open(io: &Io, model: &Rc<RefCell<Model>>) -> Result<HintLog, EngineError> {
    io.make_dir(Path::new("/hints")).await?;
    io.sync_dir(Path::new("/")).await?;
    let found = RefCell::new(BTreeSet::new());
    let log = HintLog::open(io, Path::new("/hints"), CONFIG, &mut |number, bytes: &[u8]| {
        assert_eq!(model.borrow().hints.get(&number).map(|hint| &hint[..]), Some(bytes), "as it was written");
        assert!(found.borrow_mut().insert(number), "once");
        true
    })
    .await?;
    let (mut model, found) = (model.borrow_mut(), found.into_inner());
    let lost: Vec<u64> = model.durable.iter().filter(|number| !model.done.contains(number) && !found.contains(number)).copied().collect();
    assert!(lost.is_empty(), "{lost:?}");
    // What came back is to be done again; what did not was never promised, or is done.
    model.done = model.hints.keys().filter(|number| !found.contains(number)).copied().collect();
    model.durable = found;
    Ok(log)
}

async fn live(io: Io, model: Rc<RefCell<Model>>, mut prng: Prng, ops: u32) -> Result<(), EngineError> {
    let log = open(&io, &model).await?;
    let mut next = model.borrow().hints.keys().last().map_or(1, |last| last + 1);
    for _ in 0..ops {
        match prng.below(12) {
            0..=5 => {
                let mut hint = vec![0; [prng.below(50), prng.below(9000)][prng.below(2) as usize] as usize];
                prng.fill(&mut hint);
                model.borrow_mut().hints.insert(next, hint.clone());
                if log.append(next, &hint) == Err(HintLogFull) {
                    model.borrow_mut().done.insert(next);
                }
                next += 1;
            }
            6 => {
                let before: Vec<u64> = model.borrow().hints.keys().copied().collect();
                log.flush().await?;
                model.borrow_mut().durable.extend(before);
            }
            7 => log.maintain().await?,
            8 | 9 => {
                let first = 1 + prng.below(next);
                let numbers: Vec<u64> = (first..).step_by(prng.between(1, 3) as usize).take(prng.between(1, 30) as usize).collect();
                let mut read = Vec::new();
                log.read_each(&numbers, &mut |number, bytes| read.push((number, bytes.map(<[u8]>::to_vec)))).await?;
                let model = model.borrow();
                let there = |number| model.hints.get(number).filter(|_| !model.done.contains(number)).cloned();
                let expected: Vec<(u64, Option<Vec<u8>>)> = numbers.iter().map(|number| (*number, there(number))).collect();
                assert!(read == expected, "hints {numbers:?}");
            }
            _ => {
                let number = next.saturating_sub(1 + prng.below(60));
                log.done(number);
                model.borrow_mut().done.insert(number);
            }
        }
        let model = model.borrow();
        assert_eq!(log.figures().hints, model.hints.keys().filter(|number| !model.done.contains(number)).count());
        assert!(log.figures().bytes <= CONFIG.bytes_max + CONFIG.segment_bytes && log.figures().lost == 0);
    }
    Ok(())
}

#[test]
fn what_was_flushed_outlives_a_crash_at_any_operation() {
    let mut crashes = 0;
    for seed in 0..150 {
        let world = World::new(seed);
        let machine = world.add_machine(Faults::default());
        let (model, mut prng) = (Rc::<RefCell<Model>>::default(), Prng::new(seed));
        for life in 0..5 {
            if life < 4 {
                let at = world.disk_ops(machine) + 1 + prng.below(150);
                world.crash_at_op(machine, at, site(&mut prng));
            }
            let (told, prng) = (model.clone(), Prng::new(prng.next_u64()));
            match on(&world, machine, move |io| live(io, told, prng, 300)) {
                Some(ended) => ended.unwrap(),
                None => crashes += 1,
            }
            world.crash(machine);
        }
    }
    assert!(crashes > 100, "{crashes}");
}

#[test]
fn a_few_hints_that_nobody_takes_do_not_keep_the_files_and_nothing_is_left_when_all_are_done() {
    let world = World::new(1);
    let machine = world.add_machine(Faults::default());
    let result = on(&world, machine, |io| async move {
        let model = Rc::<RefCell<Model>>::default();
        let log = open(&io, &model).await.unwrap();
        let stuck = |number: u64| number.is_multiple_of(50);
        let mut most = 0;
        for number in 1..=3000u64 {
            log.append(number, &[number as u8; 2000]).unwrap();
            if number % 20 == 0 {
                log.maintain().await.unwrap();
            }
            if number > 60 && !stuck(number - 60) {
                log.done(number - 60);
            }
            most = most.max(log.figures().bytes);
        }
        assert!(most < 12 * CONFIG.segment_bytes, "{most} bytes for 120 of 2000");
        for number in (1..=3000).filter(|number| stuck(*number)) {
            assert_eq!(log.read(number).await.unwrap(), Some(vec![number as u8; 2000]));
        }
        (1..=3000).for_each(|number| log.done(number));
        for _ in 0..3 {
            log.maintain().await.unwrap();
        }
        assert!(log.figures().segments <= 1 && log.figures().hints == 0, "{:?}", log.figures());
        drop(log);
        let log = HintLog::open(&io, Path::new("/hints"), CONFIG, &mut |_, _: &[u8]| false).await.unwrap();
        assert_eq!((log.figures().segments, log.figures().hints), (0, 0));
    });
    result.expect("no crash");
}

#[test]
fn rot_costs_the_hints_it_touches_and_a_full_disk_those_that_came_then() {
    let world = World::new(2);
    let machine = world.add_machine(Faults::default());
    let inside = world.clone();
    let result = on(&world, machine, move |io| async move {
        let model = Rc::<RefCell<Model>>::default();
        let log = open(&io, &model).await.unwrap();
        for number in 1..=6 {
            log.append(number, &[number as u8; 5000]).unwrap();
            log.flush().await.unwrap();
        }
        inside.rot(machine, &Path::new("/hints").join(file_name(1)), 4096 + 8192 + 700).unwrap();
        assert_eq!((log.read(1).await.unwrap(), log.read(2).await.unwrap()), (Some(vec![1; 5000]), None));
        assert_eq!((log.figures().lost, log.figures().hints), (1, 5));
        inside.set_capacity(machine, inside.disk_bytes(machine));
        log.append(7, &[7; 5000]).unwrap();
        assert!(matches!(log.flush().await, Err(EngineError::DiskFull)));
        assert_eq!((log.read(7).await.unwrap(), log.figures().lost), (None, 2));
        inside.set_capacity(machine, u64::MAX / 2);
        log.append(8, &[8; 5000]).unwrap();
        log.flush().await.unwrap();
        drop(log);
        let mut found = Vec::new();
        let mut keep = |number, _: &[u8]| {
            found.push(number);
            number != 3
        };
        let log = HintLog::open(&io, Path::new("/hints"), CONFIG, &mut keep).await.unwrap();
        assert_eq!(found, [1, 3, 4, 5, 6, 8]);
        assert!(log.figures().damaged_blocks > 0 && log.read(3).await.unwrap().is_none() && log.read(4).await.unwrap().is_some());
    });
    result.expect("no crash");
}

fn site(prng: &mut Prng) -> CrashSite {
    [CrashSite::Before, CrashSite::During, CrashSite::After][prng.below(3) as usize]
}
