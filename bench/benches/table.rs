//! What a table's bytes cost without a disk: blocks built, checked, searched and walked; filters built and asked.

use bench::Suite;
use ringkv::base::prng::Prng;
use ringkv::base::record::{Cell, Kind, NAMESPACE_DEFAULT, Version, token_of};
use ringkv::engine::filter::{Filter, prefix_hash};
use ringkv::engine::format::block::{BlockBuilder, BlockCursor, BlockView};
use ringkv::engine::format::lz4::{Packer, unpack};
use ringkv::engine::format::table::unseal;
use ringkv::engine::format::table_index::{IndexBuilder, TableIndex, separator};
use ringkv::engine::format::{put_cell, put_place};
use std::hint::black_box;

/// Places rise, as in a table.
fn places(count: u64) -> Vec<Vec<u8>> {
    let mut places: Vec<Vec<u8>> = (0..count)
        .map(|key| {
            let (name, mut out) = (format!("key:{key:012}"), Vec::new());
            put_place(&mut out, NAMESPACE_DEFAULT, token_of(name.as_bytes()), name.as_bytes(), Kind::Head, &[]);
            out
        })
        .collect();
    places.sort();
    places
}

fn main() {
    let suite = Suite::new("table");
    for (value_bytes, entries) in [(100, 24), (1024, 3)] {
        blocks(&suite, value_bytes, entries);
    }
    indexes(&suite);
    packing(&suite);
    filters(&suite);
}

/// The indexes of a hundred tables with 12,500 blocks of three cells each, asked in turn, as by gets from a larger data folder.
fn indexes(suite: &Suite) {
    const TABLES: u64 = 100;
    const BLOCKS: u64 = 12_500;
    let places = places(3 * BLOCKS);
    let mut builder = IndexBuilder::new(0);
    let mut last: &[u8] = &[];
    for block in places.chunks(3) {
        builder.add(if last.is_empty() { &[] } else { separator(last, &block[0]) }, 3200);
        last = &block[2];
    }
    let content = builder.finish();
    let tables: Vec<_> = (0..TABLES).map(|_| TableIndex::parse(&content, 0, BLOCKS * 3200).expect("just made")).collect();
    let mut random = Prng::new(4);
    suite.run(&format!("find in an index of {BLOCKS} blocks, {TABLES} of them"), 1, || {
        let place = &places[random.below(3 * BLOCKS) as usize];
        tables[random.below(TABLES) as usize].find(black_box(place)).unwrap()
    });
}

/// A block of about 4 KiB.
fn blocks(suite: &Suite, value_bytes: usize, entries: usize) {
    let places = places(entries as u64);
    let mut cell = Vec::new();
    put_cell(&mut cell, &Cell::value(Version::put(7, 1), &vec![7; value_bytes]));
    let (mut builder, mut sealed) = (BlockBuilder::default(), Vec::new());
    let mut build = || {
        sealed.clear();
        places.iter().for_each(|place| builder.add(place, &cell));
        builder.finish(1, 4096, &mut sealed);
        sealed.len()
    };
    suite.run(&format!("build a block, {entries} of {value_bytes} B"), entries, &mut build);
    build();
    suite.run(&format!("check a block of {value_bytes} B values"), 1, || unseal(black_box(&sealed), 1, 4096).ok().map(<[u8]>::len));
    let content = unseal(&sealed, 1, 4096).expect("just sealed");
    let mut random = Prng::new(1);
    suite.run(&format!("find in a block, {entries} of {value_bytes} B"), 1, || {
        let view = BlockView::new(black_box(content)).unwrap();
        view.find(&places[random.below(entries as u64) as usize]).unwrap().unwrap()
    });
    suite.run(&format!("walk a block, {entries} of {value_bytes} B"), entries, || {
        let view = BlockView::new(black_box(content)).unwrap();
        let mut cursor = BlockCursor::default();
        std::iter::from_fn(|| cursor.advance(&view).unwrap()).map(|cell| cell.len()).sum::<usize>()
    });
}

fn filters(suite: &Suite) {
    let mut random = Prng::new(2);
    let hashes: Vec<u64> = (0..200_000).map(|_| random.next_u64()).collect();
    suite.run("filter hash of a prefix of 30 B", 1, || prefix_hash(black_box(&[7; 30])));
    for bits in [10.0, 16.0] {
        suite.run(&format!("build a filter of {bits} bits"), hashes.len(), || Filter::build(black_box(&hashes), bits));
        let filter = Filter::parse(&Filter::build(&hashes, bits)).unwrap();
        suite.run(&format!("ask a filter of {bits} bits, there"), 1, || filter.may_hold(hashes[random.below(200_000) as usize]));
        suite.run(&format!("ask a filter of {bits} bits, absent"), 1, || filter.may_hold(random.next_u64()));
    }
}

/// What LZ4 costs a block of about 4 KiB, and what it saves: JSON rows, and noise that had better stay raw.
fn packing(suite: &Suite) {
    let places = places(13);
    for (name, noise) in [("JSON", false), ("noise", true)] {
        let (mut builder, mut random) = (BlockBuilder::default(), Prng::new(3));
        for (n, place) in places.iter().enumerate() {
            let (mut value, mut cell) = (json(n as u64 * 7919), Vec::new());
            if noise {
                random.fill(&mut value);
            }
            put_cell(&mut cell, &Cell::value(Version::put(7 + n as u64, 1), &value));
            builder.add(place, &cell);
        }
        let mut sealed = Vec::new();
        builder.finish(1, 4096, &mut sealed);
        let content = unseal(&sealed, 1, 4096).expect("just sealed");
        let mut packer = Packer::default();
        let stored = packer.pack(content).map_or(content.len(), <[u8]>::len);
        suite.run(&format!("pack a block of {name}, {} to {stored} B", content.len()), 1, || packer.pack(black_box(content)).is_some());
        let Some(packed) = packer.pack(content).map(<[u8]>::to_vec) else { continue };
        let mut out = Vec::new();
        suite.run(&format!("unpack a block of {name}"), 1, || unpack(black_box(&packed), &mut out).is_ok());
    }
}

/// A row of about 300 bytes as applications keep them.
fn json(id: u64) -> Vec<u8> {
    let (stamp, cents, mail) = (1_760_000_000 + id * 37, id * 131 % 100_000, id * 2_654_435_761 % 10_000_000);
    let customer = format!("{{\"email\":\"user{mail}@example.com\",\"country\":\"DE\",\"segment\":\"retail\"}}");
    let item = format!("{{\"sku\":\"A-{cents}\",\"quantity\":2,\"price_cents\":{cents}}}");
    let shipping = "{\"carrier\":\"parcel\",\"days\":3}";
    let head = format!("{{\"id\":{id},\"created_at\":{stamp},\"status\":\"delivered\",\"customer\":{customer},\"items\":[{item}],");
    format!("{head}\"currency\":\"EUR\",\"shipping\":{shipping},\"notes\":null}}").into_bytes()
}
