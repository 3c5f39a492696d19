//! The memtable: puts of new keys, overwrites, lookups that hit and miss, the sorted pass of a flush.

use bench::Suite;
use ringkv::base::prng::Prng;
use ringkv::base::record::{Cell, Kind, NAMESPACE_DEFAULT, Version, token_of};
use ringkv::engine::format::put_place;
use ringkv::engine::memtable::{CHUNK_BYTES, Memtable, MemtableConfig};
use std::hint::black_box;

const KEYS: u64 = 200_000;

fn place(key: u64, out: &mut Vec<u8>) {
    let name = format!("key:{key:012}");
    out.clear();
    put_place(out, NAMESPACE_DEFAULT, token_of(name.as_bytes()), name.as_bytes(), Kind::Head, &[]);
}

fn main() {
    let suite = Suite::new("memtable");
    let value = [7u8; 100];
    let config = MemtableConfig { vnodes: 4096, hash_seed: 1, chunk_bytes: CHUNK_BYTES };
    let places: Vec<Vec<u8>> = (0..KEYS * 2)
        .map(|key| {
            let mut out = Vec::new();
            place(key, &mut out);
            out
        })
        .collect();
    let filled = || {
        let mut memtable = Memtable::new(config);
        for (seq, place) in places[..KEYS as usize].iter().enumerate() {
            memtable.insert(place, &Cell::value(Version::put(seq as u64 + 1, 1), &value), seq as u64 + 1);
        }
        memtable
    };
    suite.run("fill with new keys of 100 B", KEYS as usize, filled);
    let mut memtable = filled();
    let mut random = Prng::new(1);
    suite.run("get, there", 1, || memtable.get(&places[random.below(KEYS) as usize]).is_some());
    suite.run("get, absent", 1, || memtable.get(&places[(KEYS + random.below(KEYS)) as usize]).is_some());
    suite.run("sorted pass", KEYS as usize, || memtable.sorted().map(|(place, cell)| place.len() + cell.len()).sum::<usize>());
    let mut seq = KEYS;
    suite.run("overwrite by the same size", 1, || {
        seq += 1;
        let place = &places[random.below(KEYS) as usize];
        memtable.insert(black_box(place), &Cell::value(Version::put(seq + 1, 1), &value), seq)
    });
}
