//! Tables against a map, on the simulated disk: what was written is read, in every way there is, and damage is found.

use super::EngineError;
use super::block::{BlockCache, CellBuf};
use super::filter::prefix_hash;
use super::format::Identity;
use super::format::block::{BlockCursor, BlockView};
use super::format::lz4;
use super::format::table::{HEADER_BYTES, Stored, TRAILER_BYTES, seal_packed, unseal_block};
use super::format::{key_prefix_len, parse_cell, put_cell, put_key_prefix, put_place};
use super::table::{Peeked, Table, TableStats};
use super::table_writer::{TableInfo, TableOptions, TableWriter, is_volatile};
use super::verify::{verify_table, verify_table_from};
use crate::base::checksum::hash64;
use crate::base::prng::Prng;
use crate::base::record::{Body, Cell, CollectionType, Expiry, Kind, Version, token_of, vnode_of};
use crate::io::Io;
use crate::io::op::OpenHow;
use crate::io::sim::{Faults, World};
use crate::limits::{BLOCK_BYTES, CHUNK_BYTES, KEY_BYTES_MAX};
use std::collections::BTreeMap;
use std::future::Future;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

type Model = BTreeMap<Vec<u8>, Vec<u8>>;

const IDENTITY: Identity = Identity { cluster: 7, node: 9 };
const PATH: &str = "/t";

fn run<T: 'static, F: Future<Output = T> + 'static>(main: impl FnOnce(Io) -> F) -> T {
    let world = World::new(1);
    let machine = world.add_machine(Faults::default());
    world.run_task(machine, Duration::from_secs(3600), main)
}

fn options() -> TableOptions {
    TableOptions { identity: IDENTITY, table_id: 3, vnodes: 64, filter_bits_per_key: 10.0, block_bytes: 4096, packed: Rc::from([]) }
}

async fn write(io: &Io, options: TableOptions, model: &Model) -> TableInfo {
    let mut writer = TableWriter::create(io, Path::new(PATH), options).await.unwrap();
    for (place, cell) in model {
        writer.add(place, cell).await.unwrap();
    }
    let about = writer.bytes();
    let info = writer.finish().await.unwrap();
    assert!(info.bytes.abs_diff(about) <= 16 * 1024 + info.bytes / 20, "{about} was said, {} came", info.bytes);
    info
}

async fn open(io: &Io) -> Rc<Table> {
    Table::open(io, Path::new(PATH), IDENTITY, 5, &Rc::new(TableStats::default())).await.unwrap()
}

fn place(namespace: u32, key: &[u8], kind: Kind, element: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    put_place(&mut out, namespace, token_of(key), key, kind, element);
    out
}

fn hash_of(place: &[u8]) -> u64 {
    prefix_hash(&place[..key_prefix_len(place).unwrap()])
}

fn encoded(cell: &Cell<'_>) -> Vec<u8> {
    let mut out = Vec::new();
    put_cell(&mut out, cell);
    out
}

fn any_cell(prng: &mut Prng, bytes_max: u64) -> Vec<u8> {
    let version = Version::put(1 << 40 | prng.below(1 << 30), prng.below(3) as u16);
    let mut value = vec![0; prng.below(bytes_max) as usize];
    prng.fill(&mut value);
    let floor = Version::put(prng.below(99), 0);
    let body = match prng.below(12) {
        0 | 1 => Body::Tombstone,
        2 => Body::Sum { floor, delta: -5 },
        3 => Body::RangeEnd(b"zz"),
        4 => Body::Collection { of: CollectionType::Hash, floor, context: &value },
        5 => return encoded(&Cell::expire(version, prng.below(5000))),
        _ => Body::Bytes(&value),
    };
    let expiry = match prng.below(4) {
        0 => Expiry { version, deadline_ms: 1 + prng.below(100_000) },
        1 => Expiry { version: Version::put(1 << 41 | prng.below(1 << 20), 1), deadline_ms: prng.below(100_000) },
        2 => Expiry::default(),
        _ => Expiry { version, deadline_ms: 0 },
    };
    encoded(&Cell { version, body, expiry, request_id: prng.one_in(5).then_some([4; 16]) })
}

/// Keys with several elements each, some empty, some with zeros, in two namespaces.
fn any_model(prng: &mut Prng, keys: u64, bytes_max: u64) -> Model {
    let mut model = Model::new();
    for _ in 0..keys {
        let mut key = vec![0; prng.below(20) as usize];
        key.fill_with(|| [0, 1, 255, b'a', b'b', b'c'][prng.below(6) as usize]);
        let namespace = 1 + prng.below(2) as u32;
        for n in 0..prng.below(4) {
            let element = prng.next_u64().to_be_bytes();
            let kind = if n == 0 { Kind::Head } else { Kind::Field };
            let element: &[u8] = if n == 0 { &[] } else { &element };
            model.insert(place(namespace, &key, kind, element), any_cell(prng, bytes_max));
        }
    }
    model
}

fn check_info(info: &TableInfo, model: &Model) {
    let cells: Vec<_> = model.values().map(|cell| parse_cell(cell).unwrap()).collect();
    let count = |is: &dyn Fn(&Cell<'_>) -> bool| cells.iter().filter(|cell| is(cell)).count() as u64;
    assert_eq!(info.counts.entries, model.len() as u64);
    assert_eq!(info.counts.tombstones, count(&|cell| cell.body == Body::Tombstone));
    assert_eq!(info.counts.volatile, count(&is_volatile));
    assert_eq!(info.counts.sums, count(&|cell| matches!(cell.body, Body::Sum { .. })));
    assert_eq!(info.counts.range_ends, count(&|cell| matches!(cell.body, Body::RangeEnd(_))));
    assert_eq!(info.counts.raw_bytes, model.iter().map(|(place, cell)| (place.len() + cell.len()) as u64).sum::<u64>());
    assert_eq!(Some(&info.first), model.keys().next());
    assert_eq!(Some(&info.last), model.keys().last());
    assert_eq!(info.versions.1, cells.iter().map(Cell::newest).max().unwrap());
}

async fn collect(table: &Rc<Table>, from: &[u8], to: Option<&[u8]>) -> Vec<(Vec<u8>, Vec<u8>)> {
    let (mut iter, mut out) = (table.iter(from, to), Vec::new());
    while let Some((place, cell)) = iter.next().await.unwrap() {
        out.push((place.to_vec(), cell.to_vec()));
    }
    assert!(iter.next().await.unwrap().is_none());
    out
}

#[test]
fn what_was_written_is_read_and_nothing_else() {
    let plain: &[u32] = &[];
    for (seed, bytes_max, block_bytes, packed) in [
        (1, 60, 4096, plain),
        (2, 2000, 4096, plain),
        (3, 12_000, 4096, plain),
        (4, 300, 512, plain),
        (5, 500, 32_768, plain),
        (6, 60, 4096, &[1, 2]),
        (7, 2000, 4096, &[2]),
        (8, 300, 512, &[1]),
        (9, 500, 32_768, &[1]),
    ] {
        run(move |io| async move {
            let mut prng = Prng::new(seed);
            let model = any_model(&mut prng, 1500, bytes_max);
            let info = write(&io, TableOptions { block_bytes, packed: packed.into(), ..options() }, &model).await;
            check_info(&info, &model);
            let table = open(&io).await;
            assert_eq!(*table.info(), info);
            let cache = BlockCache::new(1 << 20, seed);
            for (place, cell) in &model {
                assert!(table.may_hold(hash_of(place)));
                assert_eq!(table.get(place, &cache).await.unwrap().unwrap().bytes(), cell);
                let Peeked::Hit(hit) = table.peek(place, &cache).unwrap() else { panic!("it was just read") };
                assert_eq!(hit.bytes(), cell);
            }
            for other in any_model(&mut prng, 1500, 10).keys() {
                let found = table.get(other, &cache).await.unwrap();
                assert_eq!(found.as_ref().map(CellBuf::bytes), model.get(other).map(|cell| &cell[..]));
            }
            let report = verify_table(&io, Path::new(PATH)).await.unwrap();
            assert_eq!((report.info, report.entries, report.identity), (info, model.len() as u64, IDENTITY));
        });
    }
}

#[test]
fn iteration_gives_exactly_what_lies_between_its_bounds() {
    run(|io| async move {
        let mut prng = Prng::new(8);
        let model = any_model(&mut prng, 1500, 900);
        write(&io, options(), &model).await;
        let table = open(&io).await;
        let places: Vec<_> = model.keys().cloned().chain(any_model(&mut prng, 50, 10).into_keys()).collect();
        let whole: Vec<_> = model.clone().into_iter().collect();
        assert_eq!(collect(&table, &[], None).await, whole);
        assert!(collect(&table, &[0xFF; 4], None).await.is_empty() && collect(&table, &[], Some(&[])).await.is_empty());
        for _ in 0..200 {
            let from = &places[prng.below(places.len() as u64) as usize];
            let to = &places[prng.below(places.len() as u64) as usize];
            let expected: Vec<_> = whole.iter().filter(|(place, _)| place >= from && place < to).cloned().collect();
            assert_eq!(collect(&table, from, Some(to)).await, expected);
        }
        let (reads, bytes) = (table.stats.scan_reads.get(), table.stats.scan_bytes.get());
        collect(&table, &[], None).await;
        let (reads, bytes) = (table.stats.scan_reads.get() - reads, table.stats.scan_bytes.get() - bytes);
        let file = table.info().bytes;
        assert!(reads <= file / (124 * 1024) + 6 && bytes <= file + reads * 2 * BLOCK_BYTES as u64, "{reads} reads, {bytes} of {file}");
    });
}

#[test]
fn version_bounds_hold_for_each_vnode() {
    run(|io| async move {
        let model = any_model(&mut Prng::new(21), 3000, 30);
        write(&io, options(), &model).await;
        let table = open(&io).await;
        let mut bounds: BTreeMap<(u32, u32), (Version, Version)> = BTreeMap::new();
        for (place, cell) in &model {
            let (namespace, token) = super::format::place_namespace_token(place);
            let cell = parse_cell(cell).unwrap();
            let entry = bounds.entry((namespace, vnode_of(token, 64))).or_insert((Version::MAX, Version::ZERO));
            for version in [cell.version, cell.expiry.version] {
                entry.0 = if version == Version::ZERO { entry.0 } else { entry.0.min(version) };
                entry.1 = entry.1.max(version);
            }
        }
        for namespace in 0..4 {
            for vnode in 0..64 {
                assert_eq!(table.version_bounds(namespace, vnode), bounds.get(&(namespace, vnode)).copied());
            }
        }
    });
}

#[test]
fn cells_that_will_expire_come_in_order_of_deadlines_and_not_before_they_are_asked_for() {
    run(|io| async move {
        let model = any_model(&mut Prng::new(31), 6000, 30);
        write(&io, options(), &model).await;
        let table = open(&io).await;
        let mut expected: Vec<_> =
            model.iter().map(|(place, cell)| (place, parse_cell(cell).unwrap())).filter(|(_, cell)| is_volatile(cell)).collect();
        expected.sort_by_key(|(place, cell)| (cell.expiry.deadline_ms, place.to_vec()));
        assert!(table.properties().pages.len() > 3);
        for from_ms in [0, 1, 777, 50_000, 99_990, 200_000] {
            let mut wanted = expected.iter().filter(|(_, cell)| cell.expiry.deadline_ms >= from_ms).peekable();
            let mut expiring = table.expiring(from_ms);
            for now_ms in (from_ms..from_ms + 110_000).step_by(5_003) {
                while let Some(entry) = expiring.next_until(now_ms).await.unwrap() {
                    let (place, cell) = wanted.next().unwrap();
                    assert_eq!((entry.place, entry.deadline_ms, entry.version), (&place[..], cell.expiry.deadline_ms, cell.expiry.version));
                }
                assert!(wanted.peek().is_none_or(|(_, cell)| cell.expiry.deadline_ms > now_ms));
            }
            assert!(wanted.next().is_none() && expiring.next_deadline_ms().is_none());
        }
    });
}

/// Keys of three namespaces with values that pack well, and (every fifth) ones that do not.
fn text_model(keys: u64) -> Model {
    let (mut prng, mut model) = (Prng::new(78), Model::new());
    for n in 0..keys {
        let mut value = format!("{{\"id\":{n},\"name\":\"somebody\",\"tags\":[\"a tag\",\"a tag\"]}}").repeat(6).into_bytes();
        if n % 5 == 0 {
            prng.fill(&mut value);
        }
        let key = format!("{:016x}", prng.next_u64());
        let cell = encoded(&Cell::value(Version::put(1 << 56 | n, 2), &value));
        model.insert(place(1 + n as u32 % 3, key.as_bytes(), Kind::Head, &[]), cell);
    }
    model
}

#[test]
fn blocks_of_packed_namespaces_take_less_and_of_others_nothing_changes() {
    run(|io| async move {
        let model = text_model(6000);
        let raw = write(&io, options(), &model).await;
        assert!(!open(&io).await.header.has_packed);
        io.remove(Path::new(PATH)).await.unwrap();
        let info = write(&io, TableOptions { packed: [1, 3].into(), ..options() }, &model).await;
        let saved = 1.0 - info.bytes as f64 / raw.bytes as f64;
        assert!(saved > 0.35, "two thirds of the blocks are packed, and {saved} is saved");
        let table = open(&io).await;
        assert!(table.header.has_packed);
        let (mut iter, mut kinds) = (table.iter(&[], None), BTreeMap::new());
        while iter.advance().await.unwrap() {
            let namespace = super::format::place_namespace_token(iter.place()).0;
            *kinds.entry((namespace, iter.is_packed())).or_insert(0) += 1;
        }
        assert!(!kinds.contains_key(&(2, true)), "{kinds:?}");
        assert!(kinds[&(1, true)] > 1500 && kinds[&(3, true)] > 1500 && kinds[&(2, false)] == 2000, "{kinds:?}");
        assert_eq!(collect(&table, &[], None).await, model.clone().into_iter().collect::<Vec<_>>());
        verify_table(&io, Path::new(PATH)).await.unwrap();
        let cache = BlockCache::new(1 << 20, 1);
        let reads = table.stats.reads.get();
        for (place, cell) in model.iter().step_by(97) {
            assert_eq!(table.get(place, &cache).await.unwrap().unwrap().bytes(), cell);
        }
        assert!(table.stats.read_bytes.get() <= (table.stats.reads.get() - reads) * 8192);
        // Noise alone: packed in name only, and the header does not ask for more than a reader needs.
        io.remove(Path::new(PATH)).await.unwrap();
        let noise: Model = model.into_iter().filter(|(_, cell)| !cell.ends_with(b"]}")).collect();
        write(&io, TableOptions { packed: [1, 2, 3].into(), ..options() }, &noise).await;
        assert!(!open(&io).await.header.has_packed);
    });
}

/// Gives a block of the table at PATH other bytes, with a checksum that holds.
async fn forge_block(io: &Io, good: &[u8], block: (u64, u64), salt: u64, change: impl Fn(&mut [u8])) {
    let mut bytes = good.to_vec();
    let range = block.0 as usize..block.1 as usize;
    change(&mut bytes[range.start..range.end - TRAILER_BYTES]);
    let mut sealed = bytes[range.start..range.end - TRAILER_BYTES].to_vec();
    seal_packed(&mut sealed, 0, salt, block.0);
    bytes[range].copy_from_slice(&sealed);
    replace_file(io, &bytes).await;
}

#[test]
fn a_packed_block_that_lies_names_its_file_and_offset() {
    run(|io| async move {
        let model = text_model(300);
        write(&io, TableOptions { packed: [1, 2, 3].into(), ..options() }, &model).await;
        let (good, table) = (file_bytes(&io).await, open(&io).await);
        let mut packed = table.iter(&[], None);
        while !packed.is_packed() {
            assert!(packed.advance().await.unwrap());
        }
        let place = packed.place().to_vec();
        let block = table.locate(&place).unwrap().unwrap();
        let (at, salt) = ((block.offset, block.end()), table.header.salt);
        let mut prng = Prng::new(5);
        let mut told = 0;
        for n in 0..400u32 {
            let (byte, bit) = (prng.next_u64() as usize, prng.below(8));
            forge_block(&io, &good, at, salt, |stored| match n {
                0..4 => stored[..4].copy_from_slice(&[u32::MAX, 1 << 20, 0, 1][n as usize].to_le_bytes()),
                4 => stored.fill(0xFF),
                _ => stored[byte % stored.len()] ^= 1 << bit,
            })
            .await;
            let table = open(&io).await;
            let cache = BlockCache::new(1 << 20, 1);
            let is_named = |error: EngineError| match error {
                EngineError::Corrupt { file, offset, .. } => file == PATH && offset == block.offset,
                _ => false,
            };
            let got = table.get(&place, &cache).await;
            assert!(got.is_err() || n > 4, "a length or body that cannot be");
            told += u32::from(got.is_err_and(is_named));
            // What still unpacks is other content: verifying compares it with all that the table says of itself.
            drop(verify_table(&io, Path::new(PATH)).await);
        }
        assert!(told >= 20, "{told}");
    });
}

fn kib_model(keys: u64) -> Model {
    let mut prng = Prng::new(77);
    let mut model = Model::new();
    let mut value = vec![0; 1024];
    for _ in 0..keys {
        let key = format!("{:016x}", prng.next_u64());
        prng.fill(&mut value[..16]);
        model.insert(
            place(1, key.as_bytes(), Kind::Head, &[]),
            encoded(&Cell::value(Version::put(1 << 56 | prng.below(1 << 40), 2), &value)),
        );
    }
    model
}

#[test]
fn a_key_of_a_kib_costs_two_and_a_half_bytes_of_memory_one_read_and_little_space() {
    run(|io| async move {
        let model = kib_model(60_000);
        let info = write(&io, TableOptions { vnodes: 4096, ..options() }, &model).await;
        let table = open(&io).await;
        let keys = model.len() as f64;
        let bytes = table.filter_and_index_bytes() as f64 / keys;
        assert!(bytes <= 2.5, "{bytes} bytes of filter and index a key ({} of index)", table.index.memory_bytes() as f64 / keys);
        let space = info.bytes as f64 / (keys * 1040.0);
        assert!(space <= 1.06, "{space} bytes on disk a byte of key and value");
        let cache = BlockCache::new(0, 1);
        for place in model.keys().step_by(50) {
            table.get(place, &cache).await.unwrap().unwrap();
        }
        let (reads, read_bytes) = (table.stats.reads.get(), table.stats.read_bytes.get());
        assert_eq!(reads, model.len().div_ceil(50) as u64);
        assert!(read_bytes <= reads * 2 * BLOCK_BYTES as u64, "{} bytes a read", read_bytes / reads);
        let mut prng = Prng::new(5);
        let mut prefix = Vec::new();
        let missing = 100_000;
        let held = (0..missing).filter(|_| {
            let key = prng.next_u64().to_be_bytes();
            prefix.clear();
            put_key_prefix(&mut prefix, 1, token_of(&key), &key);
            table.may_hold(prefix_hash(&prefix))
        });
        let held = held.count() as f64 / f64::from(missing);
        assert!(held <= 0.01, "{held}");
    });
}

#[test]
fn lookups_of_one_block_share_a_read_and_a_dropped_one_harms_nobody() {
    run(|io| async move {
        let model = kib_model(400);
        write(&io, options(), &model).await;
        let table = open(&io).await;
        let cache = Rc::new(BlockCache::new(1 << 20, 1));
        let place = model.keys().nth(200).unwrap().clone();
        let get = || {
            let (table, cache, place) = (table.clone(), cache.clone(), place.clone());
            async move { table.get(&place, &cache).await.unwrap().unwrap().bytes().to_vec() }
        };
        // One that is polled once and then dropped while its read is under way.
        let mut dropped = Box::pin(get());
        let once = std::future::poll_fn(|context| std::task::Poll::Ready(dropped.as_mut().poll(context).is_pending()));
        assert!(once.await);
        let waiting: Vec<_> = (0..20).map(|_| io.spawn(crate::io::Class::Foreground, get())).collect();
        io.yield_now().await;
        drop(dropped);
        for task in waiting {
            assert_eq!(task.await, model[&place]);
        }
        assert_eq!(table.stats.reads.get(), 2);
        assert_eq!(get().await, model[&place]);
        assert_eq!(table.stats.reads.get(), 2);
        assert!(table.flights_are_over());
    });
}

#[test]
fn the_largest_keys_and_chunks_fit_and_an_empty_table_is_a_table() {
    run(|io| async move {
        let mut prng = Prng::new(6);
        let mut model = Model::new();
        for n in 0..40u32 {
            let mut key = vec![0; if n % 4 == 0 { KEY_BYTES_MAX } else { 10 }];
            prng.fill(&mut key);
            let mut value = vec![0; if n % 3 == 0 { CHUNK_BYTES } else { 100 }];
            prng.fill(&mut value);
            let cell = Cell::value(Version::put(5, 0), &value).with_deadline(u64::from(n) + 1);
            model.insert(place(1, &key, Kind::Chunk, &n.to_be_bytes()), encoded(&cell));
        }
        let info = write(&io, options(), &model).await;
        check_info(&info, &model);
        let table = open(&io).await;
        let cache = BlockCache::new(1 << 24, 1);
        for (place, cell) in &model {
            assert_eq!(table.get(place, &cache).await.unwrap().unwrap().bytes(), cell);
        }
        verify_table(&io, Path::new(PATH)).await.unwrap();
        io.remove(Path::new(PATH)).await.unwrap();
        write(&io, options(), &Model::new()).await;
        let table = open(&io).await;
        assert!(table.get(model.keys().next().unwrap(), &cache).await.unwrap().is_none());
        assert!(collect(&table, &[], None).await.is_empty() && table.version_bounds(1, 1).is_none());
        assert!(table.expiring(0).next_until(u64::MAX).await.unwrap().is_none());
        verify_table(&io, Path::new(PATH)).await.unwrap();
    });
}

#[test]
fn a_table_whose_void_front_was_given_back_serves_and_verifies_the_rest() {
    run(|io| async move {
        let model = kib_model(500);
        write(&io, options(), &model).await;
        let from = model.keys().nth(333).unwrap().clone();
        let file = io.open(Path::new(PATH), OpenHow::ReadWrite).await.unwrap();
        let table = open(&io).await;
        let end = table.offset_of(&from).unwrap() / BLOCK_BYTES as u64 * BLOCK_BYTES as u64;
        io.punch(&file, BLOCK_BYTES as u64, end - BLOCK_BYTES as u64).await.unwrap();
        let table = open(&io).await;
        let expected: Vec<_> = model.range(from.clone()..).map(|(place, cell)| (place.clone(), cell.clone())).collect();
        assert_eq!(collect(&table, &from, None).await, expected);
        let report = verify_table_from(&io, Path::new(PATH), &from).await.unwrap();
        assert_eq!(report.entries, expected.len() as u64);
        let Err(EngineError::Corrupt { .. }) = verify_table(&io, Path::new(PATH)).await else { panic!("the front is gone") };
    });
}

#[test]
fn the_table_of_another_node_is_refused() {
    run(|io| async move {
        write(&io, options(), &any_model(&mut Prng::new(1), 10, 10)).await;
        let stats = Rc::new(TableStats::default());
        for identity in [Identity { cluster: 8, ..IDENTITY }, Identity { node: 8, ..IDENTITY }] {
            let opened = Table::open(&io, Path::new(PATH), identity, 1, &stats).await;
            assert!(matches!(opened, Err(EngineError::Corrupt { offset: 0, .. })));
        }
    });
}

#[test]
fn rot_names_file_and_offset_and_an_iterator_given_up_harms_nobody() {
    let world = World::new(3);
    let machine = world.add_machine(Faults::default());
    let model = kib_model(2000);
    let (written, hour) = (model.clone(), Duration::from_secs(3600));
    let (place, at) = world.run_task(machine, hour, |io| async move {
        write(&io, options(), &written).await;
        let table = open(&io).await;
        for entries in [1, 3, 300, 1200, 1999] {
            let mut iter = table.iter(&[], None);
            for place in written.keys().take(entries) {
                assert_eq!(iter.next().await.unwrap().unwrap().0, place);
            }
        }
        assert_eq!(collect(&table, &[], None).await.len(), written.len());
        let place = written.keys().nth(1500).unwrap().clone();
        let at = table.locate(&place).unwrap().unwrap();
        (place, at)
    });
    world.rot(machine, Path::new(PATH), at.offset + 1000).unwrap();
    world.run_task(machine, hour, move |io| async move {
        let (table, cache) = (open(&io).await, BlockCache::new(1 << 20, 1));
        let is_named =
            |error: EngineError| matches!(error, EngineError::Corrupt { file, offset, .. } if file == PATH && offset == at.offset);
        assert!(is_named(table.get(&place, &cache).await.unwrap_err()));
        assert!(is_named(table.get(&place, &cache).await.unwrap_err()), "nothing bad was cached");
        assert!(is_named(verify_table(&io, Path::new(PATH)).await.unwrap_err()));
        let before = model.range(..place).nth_back(20).unwrap();
        assert_eq!(table.get(before.0, &cache).await.unwrap().unwrap().bytes(), before.1);
        let mut iter = table.iter(before.0, None);
        let error = loop {
            match iter.next().await {
                Ok(entry) => assert!(entry.is_some()),
                Err(error) => break error,
            }
        };
        assert!(is_named(error) && iter.next().await.unwrap().is_none());
    });
}

async fn file_bytes(io: &Io) -> Vec<u8> {
    let file = io.open(Path::new(PATH), OpenHow::Read).await.unwrap();
    let bytes = io.size(&file).await.unwrap() as usize;
    io.read(&file, 0, bytes).await.unwrap().to_vec()
}

async fn replace_file(io: &Io, bytes: &[u8]) {
    let mut buf = io.buf(bytes.len());
    buf[..bytes.len()].copy_from_slice(bytes);
    let file = io.open(Path::new(PATH), OpenHow::ReadWrite).await.unwrap();
    io.resize(&file, bytes.len() as u64).await.unwrap();
    if bytes.is_empty() {
        return;
    }
    io.write(&file, 0, buf, false).await.unwrap();
}

#[test]
fn every_flipped_bit_is_found_or_harmless() {
    flip_every_bit(any_model(&mut Prng::new(44), 60, 60), options());
    flip_every_bit(text_model(40), TableOptions { packed: [1, 2].into(), ..options() });
}

fn flip_every_bit(model: Model, options: TableOptions) {
    run(|io| async move {
        let is_packing = !options.packed.is_empty();
        let info = write(&io, options, &model).await;
        assert_eq!(open(&io).await.header.has_packed, is_packing);
        let good = file_bytes(&io).await;
        let end = open(&io).await.footer.end as usize;
        let mut prng = Prng::new(2);
        let (mut found, mut harmless) = (0, 0);
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1 << prng.below(8);
            replace_file(&io, &bad).await;
            match verify_table(&io, Path::new(PATH)).await {
                Ok(report) => {
                    assert_eq!(report.info, info);
                    assert!((end..good.len() - 80).contains(&at), "byte {at} was not missed");
                    harmless += 1;
                }
                Err(EngineError::Corrupt { file, .. }) => {
                    assert_eq!(file, PATH);
                    found += 1;
                }
                Err(other) => panic!("byte {at}: {other}"),
            }
        }
        assert!(found == end + 80 && harmless < BLOCK_BYTES, "{found} found, {harmless} harmless");
        for len in (0..good.len()).step_by(BLOCK_BYTES) {
            replace_file(&io, &good[..len]).await;
            assert!(matches!(verify_table(&io, Path::new(PATH)).await, Err(EngineError::Corrupt { .. })));
        }
    });
}

/// A failure here means that the format changed: tables on people's disks would not be read any more.
#[test]
fn the_bytes_of_a_table_are_frozen() {
    run(|io| async move {
        let mut model = Model::new();
        for n in 0..100u64 {
            let key = format!("key:{n:03}");
            let version = Version::put(0x0001_8BCF_E568_0000 + n, 1);
            let mut cell = Cell::value(version, b"value");
            if n % 7 == 0 {
                cell = cell.with_deadline(1_700_000_000_000 + n % 3);
            }
            if n % 11 == 0 {
                cell = Cell::tombstone(version);
            }
            model.insert(place(1, key.as_bytes(), Kind::Head, &[]), encoded(&cell));
        }
        write(&io, TableOptions { block_bytes: 256, ..options() }, &model).await;
        let bytes = file_bytes(&io).await;
        let table = open(&io).await;
        let hex = |range: std::ops::Range<u64>| {
            bytes[range.start as usize..range.end as usize].iter().map(|b| format!("{b:02x}")).collect::<String>()
        };
        let block = table.locate(&[]).unwrap().unwrap();
        let footer = &table.footer;
        assert_eq!(hex(0..64), HEADER, "header");
        assert_eq!(hex(block.offset..block.end()), BLOCK, "first block");
        assert_eq!(hex(footer.index..footer.properties), INDEX, "index");
        assert_eq!((bytes.len(), format!("{:016x}", hash64(&bytes))), (8192, WHOLE.to_owned()), "the whole table");
    });
}

/// As above.
#[test]
fn the_bytes_of_a_packed_block_are_read_for_ever() {
    run(|io| async move {
        let model: Model = text_model(12).into_iter().filter(|(_, cell)| cell.ends_with(b"]}")).collect();
        write(&io, TableOptions { packed: [1, 2, 3].into(), block_bytes: 256, ..options() }, &model).await;
        let (bytes, table) = (file_bytes(&io).await, open(&io).await);
        let hex = |range: std::ops::Range<u64>| {
            bytes[range.start as usize..range.end as usize].iter().map(|b| format!("{b:02x}")).collect::<String>()
        };
        assert_eq!(hex(16..32), "01000000000000000000000000000000", "required and optional features");
        // Another version of the packer may choose other matches: then this block must still be read, so it is kept here as it is.
        let stored: Vec<u8> = (0..PACKED.len()).step_by(2).map(|at| u8::from_str_radix(&PACKED[at..at + 2], 16).unwrap()).collect();
        let Ok(Stored::Packed(packed)) = unseal_block(&stored, table.header.salt, HEADER_BYTES as u64) else { panic!("as it was sealed") };
        let mut content = Vec::new();
        lz4::unpack(packed, &mut content).unwrap();
        let (view, mut cursor) = (BlockView::new(&content).unwrap(), BlockCursor::default());
        let first = cursor.advance(&view).unwrap().unwrap();
        assert_eq!((&cursor.place, &content[first]), model.iter().map(|(place, cell)| (place, &cell[..])).next().unwrap());
        assert_eq!(format!("{:016x}", hash64(&content)), PACKED_CONTENT, "hash of the unpacked content");
        let block = table.locate(&[]).unwrap().unwrap();
        assert_eq!(hex(block.offset..block.end()), PACKED, "the packer writes other bytes: no harm, take them over here");
    });
}

const PACKED: &str = concat!(
    "68010000f018001fc302000000013bb78789e2656cd5663130383963616231636232303336300001001101000002002009002a00f31e0000007b2269",
    "64223a392c226e616d65223a22736f6d65626f6479222c2274616773223a5b226120746167222c08002f5d7d3300e86067225d7d0000010000000000",
    "22a148aded41c642",
);
const PACKED_CONTENT: &str = "5de27ebb65df56c7";
const HEADER: &str = concat!(
    "52494e474b56544202000000000000000000000000000000000000000000000007000000000000000900000000000000a70eac0a940a4fd1250efb17",
    "ce5147b7",
);
const BLOCK: &str = concat!(
    "00161600000001018e1061ea22f4fc6b65793a3031350001001100018bcfe568000f000100000000000076616c7565041211039c8e1fc9aa410e6b65",
    "793a3031310001001600018bcfe568000b000100000000000004121607bf9c8dd8c6c1306b65793a3031390001001100018bcfe56800130001000000",
    "00000076616c75650412160cc592799f7f1db06b65793a3030360001001100018bcfe5680006000100000000000076616c75650412160ed43c8184bb",
    "82026b65793a3030320001001100018bcfe5680002000100000000000076616c756504121e12773c84d2f19e6e6b65793a3032380001002100018bcf",
    "e568001c00010000000000000168e5cf8b01000076616c75650000000000000000779d508a17cd7fbd",
);
const INDEX: &str = concat!(
    "409502000008350500000001140ec5042507c3042ac5043f1dc504521dd10461e1d00468f6c2047dc1048fc504a408c404abc504b802c204cdc504de",
    "19d104e9fec504f3840000000011000000010000000000000000008427b853d0bfd8f0",
);
const WHOLE: &str = "7a96f50fb8810622";
