//! The manifest on the simulated disk: a crash at every operation, rot, a full disk.

use super::EngineError;
use super::format::Identity;
use super::format::manifest::{Edit, TableId, TableRecord};
use super::manifest::{Manifest, State, exists, load};
use super::test_core::{lives_with_failing_syncs, on};
use crate::io::Io;
use crate::io::sim::{CrashSite, Faults, World};
use std::cell::Cell;
use std::path::Path;
use std::rc::Rc;

const IDENTITY: Identity = Identity { cluster: 3, node: 4 };

fn table(number: u64, bytes: usize) -> Edit {
    let place = vec![b'p'; bytes];
    Edit::AddTable(TableRecord {
        id: TableId { shard: 1, number },
        run: number,
        first: place.clone(),
        last: place,
        ..TableRecord::default()
    })
}

async fn open(io: &Io) -> Result<Manifest, EngineError> {
    let dir = Path::new("/shard");
    io.make_dir(dir).await?;
    io.sync_dir(Path::new("/")).await?;
    if exists(io, dir).await? {
        return Manifest::open(io, dir, IDENTITY).await;
    }
    Manifest::create(io, dir, IDENTITY, &State::default()).await
}

/// Commits table after table; `acknowledged` counts them from outside.
async fn live(io: Io, acknowledged: Rc<Cell<u64>>, commits: u64) -> Result<(), EngineError> {
    let manifest = open(&io).await?;
    let there = manifest.state().tables.len() as u64;
    let expected = acknowledged.get();
    assert!(there == expected || there == expected + 1, "{there} tables where {expected} commits were acknowledged");
    acknowledged.set(there);
    for _ in 0..commits {
        let number = acknowledged.get();
        // Pairs, so that half a group would show.
        let edits = vec![table(number, 100 + number as usize % 7 * 2000), Edit::ClockCeiling(number + 1)];
        manifest.commit(edits, |_| {}).await?;
        acknowledged.set(number + 1);
    }
    assert_eq!(manifest.state().clock_ceiling, acknowledged.get());
    Ok(())
}

#[test]
fn a_crash_at_any_operation_loses_no_acknowledged_commit_and_leaves_none_by_half() {
    let mut runs = 0;
    for (index, site) in [CrashSite::Before, CrashSite::During, CrashSite::After].into_iter().enumerate() {
        for n in 1.. {
            let world = World::new(n * 3 + index as u64);
            let machine = world.add_machine(Faults::default());
            let acknowledged = Rc::new(Cell::new(0));
            world.crash_at_op(machine, n, site);
            let count = acknowledged.clone();
            if let Some(ended) = on(&world, machine, |io| live(io, count, 70)) {
                ended.unwrap();
                break;
            }
            runs += 1;
            let before = acknowledged.get();
            let count = acknowledged.clone();
            on(&world, machine, |io| live(io, count, 3)).expect("no second crash").unwrap();
            assert!(acknowledged.get() >= before + 3);
        }
    }
    assert!(runs > 3 * 70, "{runs} runs");
}

#[test]
fn what_a_failed_sync_left_in_the_cache_only_is_not_built_upon() {
    let lives = |seed| {
        let acknowledged = Rc::new(Cell::new(0));
        lives_with_failing_syncs(seed, 12, 12, "/shard", |io| live(io, acknowledged.clone(), 10))
    };
    let failed: u32 = (0..200).map(lives).sum();
    assert!(failed > 200, "{failed}");
}

#[test]
fn rot_before_the_last_group_is_refused_with_file_and_offset() {
    let world = World::new(1);
    let machine = world.add_machine(Faults::default());
    on(&world, machine, |io| live(io, Rc::default(), 5)).unwrap().unwrap();
    world.rot(machine, Path::new("/shard/MANIFEST-1"), 3 * 4096 + 60).unwrap();
    let found = on(&world, machine, |io| async move { load(&io, Path::new("/shard"), IDENTITY).await.map(|_| ()) }).unwrap();
    match found {
        Err(EngineError::Corrupt { file, offset, .. }) => assert_eq!((&file[..], offset), ("/shard/MANIFEST-1", 3 * 4096)),
        other => panic!("{other:?}"),
    }
    let other = Identity { node: 5, ..IDENTITY };
    assert!(on(&world, machine, move |io| async move { load(&io, Path::new("/shard"), other).await.is_err() }).unwrap());
}

#[test]
fn a_full_disk_refuses_a_commit_that_needs_room_and_takes_it_when_there_is_some() {
    let world = World::new(2);
    let machine = world.add_machine(Faults::default());
    let inside = world.clone();
    let ended = on(&world, machine, |io| async move {
        let manifest = open(&io).await?;
        inside.set_capacity(machine, inside.disk_bytes(machine));
        let mut full = 0;
        for number in 0..100 {
            let edit = || vec![table(number, 3000)];
            match manifest.commit(edit(), |_| {}).await {
                Ok(()) => {}
                Err(EngineError::DiskFull) => {
                    full += 1;
                    inside.set_capacity(machine, 1 << 30);
                    manifest.commit(edit(), |_| {}).await?;
                }
                Err(other) => return Err(other),
            }
        }
        assert_eq!(full, 1, "the file is allocated in full, then there is no room for another");
        // As much as the new file takes, and then as `CURRENT` does.
        inside.set_capacity(machine, inside.disk_bytes(machine));
        let mut tried = 0;
        while let Err(why) = manifest.rewrite().await {
            assert!(matches!(why, EngineError::DiskFull) && tried < 10_000, "{why:?}");
            tried += 1;
            inside.set_capacity(machine, inside.disk_bytes(machine) + tried * 1024);
        }
        assert!(tried > 2);
        let count = open(&io).await?.state().tables.len();
        assert_eq!(count, 100);
        Ok(())
    });
    ended.unwrap().unwrap();
}
