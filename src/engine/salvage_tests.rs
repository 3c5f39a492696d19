//! Salvage on the simulated disk: whatever is damaged, the new folder verifies and opens, holds nothing that was not written, and every
//! place that is not as it was is told, and told as suspect where an older value shows.

use super::EngineError;
use super::batch::KeyRef;
use super::format::manifest::Level;
use super::format::{parse_cell, parse_place, place_namespace_token, put_cell, unescape};
use super::manifest;
use super::recover::{NodeConfig, NodeStore, shard_name};
use super::salvage::{Lost, SalvageReport, salvage};
use super::store::Engine;
use super::table::Table;
use super::test_core::on;
use super::verify_folder::verify_folder;
use super::verify_folder_tests::{CORES, DATA, IDENTITY, VNODES, config, files, flip, folder};
use super::wal_replay::WalReader;
use crate::base::prng::Prng;
use crate::base::record::{core_of, join, token_of, vnode_of};
use crate::engine::format::wal::{Record, parse_record};
use crate::io::Io;
use crate::io::op::OpenHow;
use crate::io::sim::{MachineId, World};
use crate::limits::BLOCK_BYTES;
use std::collections::BTreeMap;
use std::path::Path;

const NEW: &str = "/new";

/// Every cell that counts at a place, wherever it lies.
type View = BTreeMap<Vec<u8>, Vec<Vec<u8>>>;

async fn view(io: Io, data: &'static str) -> Result<View, EngineError> {
    let mut view = View::new();
    for core in 0..CORES {
        let dir = Path::new(data).join(shard_name(1, core));
        let (state, ..) = manifest::load(&io, &dir, IDENTITY).await?;
        for record in state.tables.values() {
            let path = Path::new(data).join("tables").join(record.id.file_name());
            let table = Table::open(&io, &path, IDENTITY, super::tables::cache_id(record.id), &Default::default()).await?;
            let mut iter = table.iter(&record.from, None);
            while iter.advance().await? {
                let vnode = vnode_of(place_namespace_token(iter.place()).1, VNODES);
                if record.is_valid(iter.place(), vnode) {
                    view.entry(iter.place().to_vec()).or_default().push(iter.cell().to_vec());
                }
            }
        }
        let mut reader = WalReader::open_to_read(&io, &dir, IDENTITY, state.released).await?;
        let mut take = |_: u64, record: &[u8]| {
            if let Ok(Record::Batch(mut batch)) = parse_record(record) {
                while let Ok(Some(cell)) = batch.next_cell() {
                    let mut bytes = Vec::new();
                    put_cell(&mut bytes, &cell.cell);
                    view.entry(cell.place.to_vec()).or_default().push(bytes);
                }
            }
            Ok(())
        };
        while reader.next_group(&mut take).await? {}
    }
    Ok(view)
}

fn joined(cells: &[Vec<u8>]) -> Vec<u8> {
    let cells = cells.iter().map(|cell| parse_cell(cell).unwrap());
    let mut out = Vec::new();
    put_cell(&mut out, &cells.reduce(join).unwrap());
    out
}

fn view_of(world: &World, machine: MachineId, data: &'static str) -> View {
    on(world, machine, move |io| view(io, data)).expect("no crash").unwrap()
}

fn run(world: &World, machine: MachineId) -> SalvageReport {
    on(world, machine, |io| async move { salvage(&io, Path::new(DATA), Path::new(NEW)).await }).expect("no crash").unwrap()
}

/// The lost range may have held something at this place.
fn covers(lost: &Lost, place: &[u8]) -> bool {
    let core = core_of(vnode_of(place_namespace_token(place).1, VNODES), CORES);
    match &lost.range {
        Some((from, to)) => *from.as_slice() <= *place && (to.is_empty() || *place <= *to.as_slice()),
        None => lost.core == Some(core),
    }
}

/// How many places show an older value, and how many nothing.
fn check(world: &World, machine: MachineId, truth: &View, report: &SalvageReport, context: &str) -> (u32, u32) {
    let verified = on(world, machine, |io| async move { verify_folder(&io, Path::new(NEW)).await }).expect("no crash").unwrap();
    assert!(verified.damage.is_empty() && verified.unread.is_empty(), "{context}: {verified:?}\n{report:?}");
    let new = view_of(world, machine, NEW);
    for (place, cells) in &new {
        let known = truth.get(place).unwrap_or_else(|| panic!("{context}: a place that was never written"));
        assert!(cells.iter().all(|cell| known.contains(cell)), "{context}: a cell that was never written");
    }
    let (mut older, mut gone) = (0, 0);
    for (place, cells) in truth {
        let (is, was) = (new.get(place).map(|cells| joined(cells)), joined(cells));
        if is.as_ref() == Some(&was) {
            continue;
        }
        let mut telling = report.lost.iter().filter(|lost| covers(lost, place));
        match is {
            Some(_) => assert!(telling.any(|lost| lost.is_suspect), "{context}: an older value that nobody calls suspect\n{report:?}"),
            None => assert!(telling.next().is_some(), "{context}: lost, and not told\n{report:?}"),
        }
        if is.is_some() { older += 1 } else { gone += 1 }
    }
    opens_and_reads(world, machine, new);
    (older, gone)
}

/// A node opens the folder, shows what lies there, and stamps above all of it.
fn opens_and_reads(world: &World, machine: MachineId, new: View) {
    let now = on(world, machine, move |io| async move {
        let config_of = NodeConfig { cores: CORES, vnodes: VNODES, identity: None, core_of };
        let store = NodeStore::open(&io, Path::new(NEW), config_of).await?;
        let mut engines = Vec::new();
        for core in 0..CORES {
            engines.push(Engine::open(&io, &store, config(core)).await?.0);
        }
        store.commit(&io).await?;
        for (place, cells) in new.iter().step_by(17) {
            let key = unescape(parse_place(place).unwrap().escaped_key);
            let cell = joined(cells);
            let cell = parse_cell(&cell).unwrap();
            let engine = &engines[usize::from(core_of(vnode_of(token_of(&key), VNODES), CORES))];
            let key = KeyRef { namespace: 1, token: token_of(&key), key: &key };
            let found = engine.read_value(key, io.wall_ms()).await?;
            if !cell.is_expired(io.wall_ms()) {
                assert_eq!(found.map(|value| value.version), Some(cell.version));
            }
            assert!(engine.stamp(io.wall_ms()) > cell.newest());
        }
        for engine in &engines {
            engine.close().await?;
        }
        Ok::<(), EngineError>(())
    });
    now.expect("no crash").unwrap();
}

#[test]
fn a_sound_folder_is_copied_whole() {
    let (world, machine) = folder(3);
    let (truth, before) = (view_of(&world, machine, DATA), files(&world, machine));
    let report = run(&world, machine);
    assert!(report.lost.is_empty(), "{report:?}");
    assert_eq!(check(&world, machine, &truth, &report, "sound"), (0, 0));
    assert_eq!(files(&world, machine), before, "the source is as it was");
}

#[test]
fn whatever_rots_what_is_sound_is_copied_and_the_rest_is_told() {
    let (mut older, mut gone, mut lost) = (0, 0, 0);
    for seed in 0..24 {
        let (world, machine) = folder(3 + seed % 3);
        let truth = view_of(&world, machine, DATA);
        let mut prng = Prng::new(seed);
        let names: Vec<(String, u64)> = files(&world, machine).into_iter().map(|(name, bytes)| (name, bytes.len() as u64)).collect();
        let damageable: Vec<_> = names.iter().filter(|(name, _)| !name.ends_with("LAYOUT")).collect();
        for _ in 0..1 + prng.below(12) {
            let (name, bytes) = damageable[prng.below(damageable.len() as u64) as usize];
            // Ends hold what leads to the rest.
            let at = if prng.one_in(3) { bytes - 1 - prng.below(96) } else { prng.below(*bytes) };
            flip(&world, machine, name, at, prng.below(8) as u8);
        }
        let before = files(&world, machine);
        let report = run(&world, machine);
        assert_eq!(files(&world, machine), before, "the source is as it was");
        let (shown, missing) = check(&world, machine, &truth, &report, &format!("seed {seed}"));
        (older, gone, lost) = (older + shown, gone + missing, lost + report.lost.len());
    }
    assert!(older > 5 && gone > 50 && lost > 30, "{older} older values shown, {gone} gone, {lost} places told");
}

fn change(world: &World, machine: MachineId, path: &str, at: u64, fill: u8, bytes: usize) {
    let path = path.to_owned();
    let done = on(world, machine, move |io| async move {
        let file = io.open(Path::new(&path), OpenHow::ReadWrite).await?;
        let block = at / BLOCK_BYTES as u64 * BLOCK_BYTES as u64;
        let mut buf = io.read(&file, block, BLOCK_BYTES).await?;
        let from = (at - block) as usize;
        let end = (from + bytes).min(BLOCK_BYTES);
        buf[from..end].fill(fill);
        io.write(&file, block, buf, true).await
    });
    drop(done.expect("no crash").unwrap());
}

#[test]
fn a_table_without_index_header_or_footer_gives_all_its_blocks() {
    for part in ["header", "footer", "index", "all of them"] {
        let (world, machine) = folder(3);
        let truth = view_of(&world, machine, DATA);
        let states = on(&world, machine, |io| async move {
            let dir = Path::new(DATA).join(shard_name(1, 0));
            manifest::load(&io, &dir, IDENTITY).await.map(|(state, ..)| state)
        });
        let state = states.expect("no crash").unwrap();
        let record = state.tables.values().find(|table| table.from.is_empty() && table.level != Level::One).expect("one").clone();
        let path = format!("{DATA}/tables/{}", record.id.file_name());
        let (path_of, id) = (path.clone(), super::tables::cache_id(record.id));
        let footer = on(&world, machine, move |io| async move {
            Table::open(&io, Path::new(&path_of), IDENTITY, id, &Default::default()).await.map(|table| table.footer)
        });
        let footer = footer.expect("no crash").unwrap();
        if part == "header" || part == "all of them" {
            change(&world, machine, &path, 0, 0xFF, 64);
        }
        if part == "index" || part == "all of them" {
            change(&world, machine, &path, footer.index + 1, 0xFF, 4);
        }
        if part == "footer" || part == "all of them" {
            change(&world, machine, &path, footer.bytes - 80, 0xFF, 80);
        }
        let report = run(&world, machine);
        assert!(report.lost.is_empty(), "{part}: {report:?}");
        assert_eq!(check(&world, machine, &truth, &report, part), (0, 0));
    }
}

#[test]
fn a_lost_table_or_manifest_is_told_and_the_rest_is_there() {
    for gone in ["table", "CURRENT", "MANIFEST-", "wal-"] {
        let (world, machine) = folder(4);
        let truth = view_of(&world, machine, DATA);
        let path = files(&world, machine).into_keys().find(|path| path.rsplit('/').next().unwrap().contains(gone)).expect("one");
        let removed = path.clone();
        on(&world, machine, move |io| async move { io.remove(Path::new(&removed)).await }).expect("no crash").unwrap();
        let report = run(&world, machine);
        let (older, missing) = check(&world, machine, &truth, &report, gone);
        match gone {
            // All cells are in tables and log, whoever names them.
            "CURRENT" | "MANIFEST-" => assert_eq!((missing, report.lost.is_empty()), (0, false), "{older} {report:?}"),
            "table" => assert!(report.lost.iter().any(|lost| path.ends_with(&lost.file)), "{report:?}"),
            _ => {}
        }
    }
}

#[test]
fn without_a_layout_or_into_a_folder_with_something_in_it_nothing_is_done() {
    let (world, machine) = folder(3);
    let into = |to: &'static str| {
        on(&world, machine, move |io| async move { salvage(&io, Path::new(DATA), Path::new(to)).await }).expect("no crash")
    };
    for to in [DATA, "/data/new", "/data/tables"] {
        assert!(matches!(into(to), Err(EngineError::Io(_))), "{to}");
    }
    flip(&world, machine, "/data/LAYOUT", 60, 1);
    assert!(matches!(into(NEW), Err(EngineError::Corrupt { file, .. }) if file == "LAYOUT"));
}
