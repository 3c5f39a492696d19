//! Hash maps whose seed comes from outside, so that a client cannot choose keys that collide and a simulated run repeats.

use std::hash::{BuildHasher, Hasher};
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Builds seeded hashers. The seed is drawn once a process (or a simulated run).
#[derive(Clone, Copy, Debug, Default)]
pub struct Seeded(pub u64);

impl BuildHasher for Seeded {
    type Hasher = SeededHasher;

    fn build_hasher(&self) -> SeededHasher {
        SeededHasher { state: self.0 ^ 0x9E37_79B9_7F4A_7C15 }
    }
}

/// Multiplicative mixing for small keys, xxh3 for byte strings.
#[derive(Clone)]
pub struct SeededHasher {
    state: u64,
}

impl Hasher for SeededHasher {
    fn write(&mut self, bytes: &[u8]) {
        self.state = xxh3_64_with_seed(bytes, self.state);
    }

    fn write_u64(&mut self, value: u64) {
        let product = u128::from(self.state ^ value) * 0x9FB2_1C65_1E98_DF25_u128;
        self.state = (product as u64) ^ ((product >> 64) as u64);
    }

    fn write_u8(&mut self, value: u8) {
        self.write_u64(u64::from(value));
    }

    fn write_u32(&mut self, value: u32) {
        self.write_u64(u64::from(value));
    }

    fn write_usize(&mut self, value: usize) {
        self.write_u64(value as u64);
    }

    fn finish(&self) -> u64 {
        self.state
    }
}

/// A hash map with a seed of ours.
pub type Map<K, V> = hashbrown::HashMap<K, V, Seeded>;
/// A hash set with a seed of ours.
pub type Set<K> = hashbrown::HashSet<K, Seeded>;
