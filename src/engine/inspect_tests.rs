//! What `inspect` says, word by word (`inspect_golden.txt`), and that no damage stops it.

use super::batch::{Batch, KeyRef};
use super::inspect::{Inspection, Options, inspect};
use super::recover::{NodeConfig, NodeStore};
use super::store::Engine;
use super::test_core::on;
use super::verify_folder_tests::{IDENTITY, VNODES, config, files, flip, folder};
use crate::base::prng::Prng;
use crate::base::record::{core_of, token_of};
use crate::io::sim::{Faults, MachineId, World};
use std::path::Path;

const ALL: Options = Options { limit: usize::MAX, cells: true };

fn look(world: &World, machine: MachineId, path: &str, options: Options) -> Inspection {
    let path = path.to_owned();
    on(world, machine, move |io| async move { inspect(&io, Path::new(&path), options).await }).expect("no crash").unwrap()
}

fn words(inspection: &Inspection) -> String {
    inspection.lines.iter().map(|line| line.words() + "\n").collect()
}

/// One shard with a packed table, a log and a manifest, the same every time.
fn small() -> (World, MachineId) {
    let world = World::new(1);
    let machine = world.add_machine(Faults::default());
    on(&world, machine, |io| async move {
        let node = NodeConfig { cores: 1, vnodes: VNODES, identity: Some(IDENTITY), core_of };
        let store = NodeStore::open(&io, Path::new("/data"), node).await?;
        let (engine, _) = Engine::open(&io, &store, config(0)).await?;
        store.commit(&io).await?;
        engine.set_packed(&[1]);
        for n in 0..9u64 {
            let key = format!("key {n}").into_bytes();
            let (mut batch, version) = (Batch::new(false), crate::base::record::Version::put((1_700_000_000_000 + n) << 16, 1));
            let key = KeyRef { namespace: 1, token: token_of(&key), key: &key };
            batch.put_value(key, &b"the same words, ".repeat(30), version, if n == 3 { 4_000_000_000_000 } else { 0 });
            engine.write(&batch)?;
            if n == 6 {
                engine.flush().await?;
            }
        }
        engine.close().await
    })
    .expect("no crash")
    .unwrap();
    (world, machine)
}

#[test]
fn every_kind_of_file_is_told_in_words() {
    let (world, machine) = small();
    let mut said = String::new();
    for path in files(&world, machine).into_keys() {
        said += &format!("== {path}\n{}", words(&look(&world, machine, &path, ALL)));
    }
    let golden = include_str!("inspect_golden.txt");
    assert!(said == golden, "it says:\n{said}");
}

#[test]
fn of_many_things_as_many_are_told_as_asked_for() {
    let (world, machine) = folder(3);
    for path in files(&world, machine).into_keys() {
        let all = look(&world, machine, &path, ALL);
        assert!(all.is_sound, "{path}: {}", words(&all));
        let few = look(&world, machine, &path, Options { limit: 3, cells: true });
        assert!(few.lines.len() <= 20 && few.is_sound, "{path}: {}", words(&few));
        assert!(all.lines.len() <= few.lines.len() || few.lines.last().unwrap().what == "not shown", "{path}");
        all.lines.iter().for_each(|line| assert!(line.json().starts_with("{\"what\":\"") && line.json().ends_with('}')));
    }
}

#[test]
fn damage_is_told_with_its_place_and_what_lies_behind_it_too() {
    let (world, machine) = folder(3);
    let mut prng = Prng::new(6);
    let (mut told, mut all) = (0, 0);
    for (path, bytes) in files(&world, machine) {
        let options = Options { limit: usize::MAX, cells: false };
        let sound = look(&world, machine, &path, options);
        for _ in 0..12 {
            let (at, bit) = (prng.below(bytes.len() as u64), prng.below(8) as u8);
            flip(&world, machine, &path, at, bit);
            let seen = look(&world, machine, &path, options);
            all += 1;
            // A flipped bit in padding is seen in no piece.
            if seen.lines != sound.lines {
                told += u32::from(!seen.is_sound || words(&seen).contains("torn"));
            }
            // One block of a table or of the log goes, not what follows it.
            let items = |inspection: &Inspection| inspection.lines.iter().filter(|line| line.what == "block").count();
            assert!(items(&seen) + 1 >= items(&sound) || path.ends_with("table") && at < 64, "{path} at {at}: {}", words(&seen));
            flip(&world, machine, &path, at, bit);
        }
        assert_eq!(look(&world, machine, &path, options), sound);
    }
    assert!(told * 3 > all, "{told} of {all} are told");
}

#[test]
fn what_is_no_file_of_a_folder_is_said_to_be_none() {
    let world = World::new(1);
    let machine = world.add_machine(Faults::default());
    on(&world, machine, |io| async move {
        for (name, byte) in [("/empty", 0u8), ("/noise", 7)] {
            let file = io.open(Path::new(name), crate::io::op::OpenHow::Create).await?;
            if byte > 0 {
                let mut buf = io.buf(4096);
                buf.fill(byte);
                drop(io.write(&file, 0, buf, true).await?);
            }
        }
        Ok::<(), std::io::Error>(())
    })
    .expect("no crash")
    .unwrap();
    for name in ["/empty", "/noise"] {
        let seen = look(&world, machine, name, ALL);
        assert!(!seen.is_sound && words(&seen).contains("no file of a ringkv data folder"), "{}", words(&seen));
    }
}
