//! The caches of a core, full: blocks of tables and single cells, asked for what is there and what is not, given what pushes others out.

use bench::Suite;
use ringkv::base::prng::Prng;
use ringkv::base::record::{Cell, Kind, NAMESPACE_DEFAULT, Version, token_of};
use ringkv::engine::block::BlockKey;
use ringkv::engine::cache::{Cache, CacheValue};
use ringkv::engine::cell_cache::CellCache;
use ringkv::engine::format::{place_namespace_token, put_cell, put_place};
use std::hint::black_box;
use std::rc::Rc;

const BLOCK_BYTES: usize = 4096;
const BLOCKS: u64 = 50_000;
const CELLS: u64 = 1_000_000;
/// Lookups that are prefetched together, as over a pipeline.
const TOGETHER: usize = 16;

/// What stands for a block: as large, and as cheap to clone.
#[derive(Clone)]
struct Page(Rc<[u8; BLOCK_BYTES]>);

impl CacheValue for Page {
    fn heap_bytes(&self) -> usize {
        size_of_val(&*self.0)
    }
}

fn main() {
    let suite = Suite::new("cache");
    blocks(&suite);
    cells(&suite);
}

fn key(number: u64) -> BlockKey {
    BlockKey { table: number / 12_500, offset: number % 12_500 * BLOCK_BYTES as u64 }
}

fn blocks(suite: &Suite) {
    let cache = Cache::new(BLOCKS as usize * (BLOCK_BYTES + 200), 1);
    (0..BLOCKS).for_each(|number| cache.insert(key(number), Page(Rc::new([7; BLOCK_BYTES]))));
    let there: Vec<u64> = (0..BLOCKS).filter(|number| cache.get(&key(*number)).is_some()).collect();
    let mut random = Prng::new(1);
    let any = |random: &mut Prng| there[random.below(there.len() as u64) as usize];
    suite.run("get of a block, there", 1, || cache.get(&key(any(&mut random))).is_some());
    suite.run("get of a block, absent", 1, || cache.get(&key(BLOCKS + random.below(BLOCKS))).is_some());
    let (page, mut number) = (Page(Rc::new([7; BLOCK_BYTES])), BLOCKS);
    suite.run("insert of a block, another goes", 1, || {
        number += 1;
        cache.insert(key(number), page.clone());
    });
}

fn place(number: u64) -> Vec<u8> {
    let (name, mut out) = (format!("key:{number:012}"), Vec::new());
    put_place(&mut out, NAMESPACE_DEFAULT, token_of(name.as_bytes()), name.as_bytes(), Kind::Head, &[]);
    out
}

fn cells(suite: &Suite) {
    let mut cell = Vec::new();
    put_cell(&mut cell, &Cell::value(Version::put(7, 1), &[7; 100]));
    let cache = CellCache::new(CELLS as usize * 160, 1);
    let places: Vec<Vec<u8>> = (0..2 * CELLS).map(place).collect();
    places[..CELLS as usize].iter().for_each(|place| cache.insert(place, &cell));
    let there: Vec<&Vec<u8>> = places.iter().filter(|place| cache.with(place, |_| ()).is_some()).collect();
    let mut random = Prng::new(2);
    let any = |random: &mut Prng| there[random.below(there.len() as u64) as usize];
    let look = |place: &[u8]| cache.with(black_box(place), |cell| cell.version).is_some();
    suite.run("get of a cell, there", 1, || look(any(&mut random)));
    suite.run("get of a cell, there, prefetched", TOGETHER, || {
        let wanted: [&Vec<u8>; TOGETHER] = std::array::from_fn(|_| any(&mut random));
        let hashes = wanted.map(|place| {
            let (namespace, token) = place_namespace_token(place);
            cache.hash(namespace, token)
        });
        hashes.iter().for_each(|hash| cache.prefetch_index(*hash));
        black_box(hashes.iter().filter(|hash| cache.prefetch_entry(**hash)).count());
        wanted.iter().filter(|place| look(place)).count()
    });
    suite.run("get of a cell, absent", 1, || look(&places[(CELLS + random.below(CELLS)) as usize]));
    suite.run("insert of a cell, others go", 1, || cache.insert(&places[(CELLS + random.below(CELLS)) as usize], &cell));
}
