//! A core's cache of single cells: what a get asks first.
//!
//! Entries lie one behind another in chunks of a log, so a cell costs its bytes, 8 of header and some 8 of index, and a hit touches one
//! line of the index and the entry. The index is set-associative: a bucket is one cache line of twelve (tag, address) pairs, and what
//! finds no place in its bucket or the neighbour replaces another entry, so it never grows, never rehashes, and keys chosen to collide
//! cost only each other.
//!
//! Eviction is S3-FIFO (Yang et al., "FIFO queues are all you need for cache eviction", SOSP 2023): a small log through which newcomers
//! pass, a main log for what was asked for again, and ghosts: fingerprints of what left the small log lately. The oldest chunk of a log
//! is looked through entry by entry as room is needed: what was used is copied to the front of the main log, the rest is forgotten. An
//! entry is alive while the index names its address.

use super::cache::CacheStats;
use super::format::{PLACE_HEADER_BYTES, parse_cell, place_namespace_token};
use crate::base::prefetch::prefetch;
use crate::base::record::{Cell, Kind, NamespaceId, Token};
use crate::io::pages::Pages;
use std::cell::RefCell;
use std::collections::VecDeque;

/// The small log's share of the budget: 1 / this.
const SMALL_SHARE: usize = 10;
const USES_MAX: u16 = 3;
/// More uses than this in the small log lead to the main one.
const USES_TO_STAY: u16 = 1;
/// Entries of the main log that are kept a call, so that one insertion does not turn the whole of it.
const KEPT_MAX: usize = 64;

/// Words of a bucket: 3 of tags, four a word; 12 addresses; how many of its entries lie with the neighbour.
const BUCKET_WORDS: usize = 16;
const SLOTS: usize = 12;
const ADDRS: usize = 3;
const SPILLED: usize = 15;
const LINE_BYTES: usize = 64;
/// The index is made for entries of this size: with larger ones it has room to spare, with smaller ones it is what bounds their number.
const ENTRY_BYTES_USUAL: usize = 144;

/// hash u32 | tail length u16, its two top bits the uses | cell length u16 | tail | cell. The tail is the place of a head without what all
/// heads have at their end and what follows from the rest: namespace (a byte; `NAMESPACE_LONG` and four where it is not so small) | key.
const HEADER_BYTES: usize = 8;
const NAMESPACE_LONG: u8 = u8::MAX;
/// The end of a head's place: the key's end, the kind, no element. Only heads are kept.
const HEAD_END: [u8; 3] = [0, 1, Kind::Head as u8];
const USES_SHIFT: u32 = 14;
const TAIL_BYTES_MAX: usize = (1 << USES_SHIFT) - 1;
const UNIT_BYTES: usize = 4;
const CHUNK_BYTES_MAX: usize = 256 * 1024;
const CHUNK_BYTES_MIN: usize = 1024;

/// What both logs hold at most, so that addresses suffice.
const LOG_BYTES_MAX: usize = u32::MAX as usize * UNIT_BYTES - CHUNKS_OPEN * CHUNK_BYTES_MAX;
/// Chunks beyond what the bytes in the logs fill: the newest and the oldest of each may be partly empty, and one is being filled.
const CHUNKS_OPEN: usize = 6;

/// A log of chunks, oldest first.
#[derive(Debug, Default)]
struct Log {
    chunks: VecDeque<u32>,
    /// Bytes used of the newest chunk.
    head: usize,
    /// Bytes looked through of the oldest one.
    tail: usize,
    /// Bytes between tail and head.
    bytes: usize,
}

#[derive(Debug)]
struct State {
    /// Buckets, each on a cache line of its own.
    lines: Pages,
    buckets: u32,
    ghosts: Vec<u16>,
    /// The chunks of both logs; memory of the host where they were used.
    log: Pages,
    /// How many were.
    chunks: u32,
    free: Vec<u32>,
    chunk_bytes: usize,
    small: Log,
    main: Log,
    /// Bytes that both logs may hold.
    log_bytes_max: usize,
    entries: usize,
    scratch: Vec<u8>,
    stats: CacheStats,
}

/// See the module.
#[derive(Debug)]
pub struct CellCache {
    state: RefCell<State>,
    seed: u64,
}

/// A place's hash, for `prefetch_index`, `prefetch_entry` and `get`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CellHash(u32);

impl CellHash {
    /// Of bits that do not choose the bucket. Never 0, which marks an empty slot.
    fn tag(self) -> u8 {
        (self.0 as u8).max(1)
    }

    /// What a ghost remembers. Never 0.
    fn ghost(self) -> u16 {
        (self.0 as u16).max(1)
    }

    /// One of `count` places, by the upper bits.
    fn of(self, count: usize) -> usize {
        ((u64::from(self.0) * count as u64) >> 32) as usize
    }
}

impl CellCache {
    /// An empty cache of at most `budget_bytes`, its index included.
    pub fn new(budget_bytes: usize, seed: u64) -> CellCache {
        CellCache { state: State::new(budget_bytes).into(), seed }
    }

    /// The hash of any place of a key. Made of the token, which clients can choose to collide: that costs them the cache, nobody else.
    #[inline]
    pub fn hash(&self, namespace: NamespaceId, token: Token) -> CellHash {
        let mixed = u128::from(token ^ self.seed ^ u64::from(namespace).rotate_left(40)) * 0x9FB2_1C65_1E98_DF25_u128;
        CellHash((mixed >> 64) as u32 ^ mixed as u32)
    }

    fn hash_of(&self, place: &[u8]) -> CellHash {
        let (namespace, token) = place_namespace_token(place);
        self.hash(namespace, token)
    }

    /// Begins to load the index's line.
    #[inline]
    pub fn prefetch_index(&self, hash: CellHash) {
        let state = self.state.borrow();
        prefetch(state.bucket(state.home(hash)));
    }

    /// Begins to load the entry, once the index's line is there. False: there is none, as far as that line tells.
    #[inline]
    pub fn prefetch_entry(&self, hash: CellHash) -> bool {
        let state = self.state.borrow();
        let bucket = state.bucket(state.home(hash));
        let Some(slot) = (0..SLOTS).find(|&slot| tag_at(bucket, slot) == hash.tag()) else { return false };
        let entry = state.entry(bucket[ADDRS + slot]);
        prefetch(entry);
        // Key and a small value reach over two or three lines more, by where the entry begins in its first.
        for at in [LINE_BYTES, 2 * LINE_BYTES, ENTRY_BYTES_USUAL - UNIT_BYTES] {
            entry.get(at..).inspect(|next| prefetch(next));
        }
        true
    }

    /// The cell at `place`, given to `f`; it counts as used.
    #[inline]
    pub fn with<R>(&self, place: &[u8], f: impl FnOnce(&Cell<'_>) -> R) -> Option<R> {
        let tail = Tail::of(place)?;
        let hash = self.hash_of(place);
        let mut state = self.state.borrow_mut();
        let state = &mut *state;
        let Some((_, _, addr)) = state.find(hash, tail) else {
            state.stats.misses += 1;
            return None;
        };
        state.stats.hits += 1;
        let entry = &mut state.log[addr as usize * UNIT_BYTES..];
        let word = u16_at(entry, 4);
        if word >> USES_SHIFT < USES_MAX {
            entry[4..6].copy_from_slice(&(word + (1 << USES_SHIFT)).to_le_bytes());
        }
        let (_, cell) = parts(entry);
        Some(f(&parse_cell(cell).expect("a cell that was encoded here")))
    }

    /// Puts the encoded cell of a head in, in place of an older one. What is large against the cache is not taken, nor another kind of
    /// cell.
    pub fn insert(&self, place: &[u8], cell: &[u8]) {
        let hash = self.hash_of(place);
        let Some(tail) = Tail::of(place) else { return };
        let mut state = self.state.borrow_mut();
        let state = &mut *state;
        state.remove(hash, tail);
        let tail_bytes = tail.len();
        let bytes = (HEADER_BYTES + tail_bytes + cell.len()).next_multiple_of(UNIT_BYTES);
        if bytes > state.chunk_bytes / 4 || tail_bytes > TAIL_BYTES_MAX || cell.len() > usize::from(u16::MAX) || bytes > state.log_bytes_max
        {
            return;
        }
        let is_known = state.forget_ghost(hash);
        state.make_room(bytes);
        let addr = state.reserve(is_known, bytes);
        let entry = &mut state.log[addr as usize * UNIT_BYTES..][..bytes];
        entry[..4].copy_from_slice(&hash.0.to_le_bytes());
        entry[4..6].copy_from_slice(&(tail_bytes as u16).to_le_bytes());
        entry[6..8].copy_from_slice(&(cell.len() as u16).to_le_bytes());
        tail.write(&mut entry[HEADER_BYTES..HEADER_BYTES + tail_bytes]);
        entry[HEADER_BYTES + tail_bytes..][..cell.len()].copy_from_slice(cell);
        state.add(hash, addr);
        state.stats.insertions += 1;
    }

    /// Takes one entry out.
    #[inline]
    pub fn remove(&self, place: &[u8]) {
        if let Some(tail) = Tail::of(place) {
            self.state.borrow_mut().remove(self.hash_of(place), tail);
        }
    }

    /// Takes everything out.
    pub fn clear(&self) {
        let mut state = self.state.borrow_mut();
        let fresh = State::new(state.stats.budget_bytes);
        let stats = CacheStats { bytes: fresh.stats.bytes, ..state.stats };
        *state = State { stats, ..fresh };
    }

    /// Counters since the start, and the state now.
    pub fn stats(&self) -> CacheStats {
        let state = self.state.borrow();
        let chunks = state.chunks as usize * state.chunk_bytes;
        CacheStats { entries: state.entries, bytes: state.stats.bytes + chunks, ..state.stats }
    }
}

/// What an entry keeps of a head's place.
#[derive(Clone, Copy)]
struct Tail<'a> {
    namespace: [u8; 4],
    key: &'a [u8],
}

impl<'a> Tail<'a> {
    /// None: not a head's place.
    #[inline]
    fn of(place: &'a [u8]) -> Option<Tail<'a>> {
        let key = place.get(PLACE_HEADER_BYTES..)?.strip_suffix(&HEAD_END)?;
        Some(Tail { namespace: *place.first_chunk()?, key })
    }

    #[inline]
    fn is_short(self) -> bool {
        self.namespace[..3] == [0; 3] && self.namespace[3] != NAMESPACE_LONG
    }

    fn len(self) -> usize {
        (if self.is_short() { 1 } else { 5 }) + self.key.len()
    }

    fn write(self, out: &mut [u8]) {
        let key_at = out.len() - self.key.len();
        out[key_at..].copy_from_slice(self.key);
        if self.is_short() {
            out[0] = self.namespace[3];
        } else {
            out[0] = NAMESPACE_LONG;
            out[1..5].copy_from_slice(&self.namespace);
        }
    }

    #[inline]
    fn is(self, tail: &[u8]) -> bool {
        if self.is_short() {
            tail.len() == 1 + self.key.len() && tail[0] == self.namespace[3] && tail[1..] == *self.key
        } else {
            tail.len() == 5 + self.key.len() && tail[0] == NAMESPACE_LONG && tail[1..5] == self.namespace && tail[5..] == *self.key
        }
    }
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

/// Tail and cell of an entry.
#[inline]
fn parts(entry: &[u8]) -> (&[u8], &[u8]) {
    let (tail, cell) = (usize::from(u16_at(entry, 4)) & TAIL_BYTES_MAX, usize::from(u16_at(entry, 6)));
    entry[HEADER_BYTES..HEADER_BYTES + tail + cell].split_at(tail)
}

fn hash_at(entry: &[u8]) -> CellHash {
    CellHash(u32::from_le_bytes([entry[0], entry[1], entry[2], entry[3]]))
}

fn entry_bytes(entry: &[u8]) -> usize {
    let (tail, cell) = (usize::from(u16_at(entry, 4)) & TAIL_BYTES_MAX, usize::from(u16_at(entry, 6)));
    (HEADER_BYTES + tail + cell).next_multiple_of(UNIT_BYTES)
}

#[inline]
fn tag_at(bucket: &[u32; BUCKET_WORDS], slot: usize) -> u8 {
    (bucket[slot / 4] >> (slot % 4 * 8)) as u8
}

fn set_slot(bucket: &mut [u32; BUCKET_WORDS], slot: usize, tag: u8, addr: u32) {
    let shift = slot % 4 * 8;
    bucket[slot / 4] = bucket[slot / 4] & !(0xFF << shift) | u32::from(tag) << shift;
    bucket[ADDRS + slot] = addr;
}

impl State {
    fn new(budget_bytes: usize) -> State {
        // Even, so that each has a neighbour.
        let buckets = (budget_bytes / ENTRY_BYTES_USUAL / (SLOTS - 2)).next_multiple_of(2).max(2);
        let lines = Pages::new(buckets * LINE_BYTES);
        let ghosts = vec![0u16; buckets * SLOTS / 2];
        let index_bytes = lines.len() + ghosts.len() * 2;
        let chunk_bytes = (budget_bytes / 256).clamp(CHUNK_BYTES_MIN, CHUNK_BYTES_MAX).next_power_of_two().min(CHUNK_BYTES_MAX);
        // Each log's newest and oldest chunk may be partly empty.
        let log_bytes_max = budget_bytes.saturating_sub(index_bytes + 4 * chunk_bytes).min(LOG_BYTES_MAX);
        State {
            lines,
            buckets: buckets as u32,
            ghosts,
            log: Pages::new((log_bytes_max / chunk_bytes + CHUNKS_OPEN) * chunk_bytes),
            chunks: 0,
            free: Vec::new(),
            chunk_bytes,
            small: Log::default(),
            main: Log::default(),
            log_bytes_max,
            entries: 0,
            scratch: Vec::new(),
            stats: CacheStats { budget_bytes, bytes: index_bytes, ..CacheStats::default() },
        }
    }

    #[inline]
    fn home(&self, hash: CellHash) -> u32 {
        hash.of(self.buckets as usize) as u32
    }

    #[inline]
    fn bucket(&self, number: u32) -> &[u32; BUCKET_WORDS] {
        let at = number as usize * BUCKET_WORDS;
        self.lines.words()[at..at + BUCKET_WORDS].try_into().expect("so many words")
    }

    fn bucket_mut(&mut self, number: u32) -> &mut [u32; BUCKET_WORDS] {
        let at = number as usize * BUCKET_WORDS;
        (&mut self.lines.words_mut()[at..at + BUCKET_WORDS]).try_into().expect("so many words")
    }

    /// From an entry on.
    #[inline]
    fn entry(&self, addr: u32) -> &[u8] {
        &self.log[addr as usize * UNIT_BYTES..]
    }

    #[inline]
    fn is_at(&self, addr: u32, tail: Tail<'_>) -> bool {
        tail.is(parts(self.entry(addr)).0)
    }

    /// Bucket, slot and address of a place.
    #[inline]
    fn find(&self, hash: CellHash, tail: Tail<'_>) -> Option<(u32, usize, u32)> {
        let home = self.home(hash);
        let bucket = self.bucket(home);
        let found = self.find_in(home, hash, tail);
        if found.is_some() || bucket[SPILLED] == 0 { found } else { self.find_in(home ^ 1, hash, tail) }
    }

    #[inline]
    fn find_in(&self, number: u32, hash: CellHash, tail: Tail<'_>) -> Option<(u32, usize, u32)> {
        let bucket = self.bucket(number);
        let is_here = |&slot: &usize| tag_at(bucket, slot) == hash.tag() && self.is_at(bucket[ADDRS + slot], tail);
        (0..SLOTS).find(is_here).map(|slot| (number, slot, bucket[ADDRS + slot]))
    }

    /// Bucket and slot that name an address.
    fn find_addr(&self, hash: CellHash, addr: u32) -> Option<(u32, usize)> {
        let home = self.home(hash);
        let in_bucket = |number: u32| {
            let bucket = self.bucket(number);
            (0..SLOTS).find(|&slot| tag_at(bucket, slot) == hash.tag() && bucket[ADDRS + slot] == addr).map(|slot| (number, slot))
        };
        in_bucket(home).or_else(|| if self.bucket(home)[SPILLED] == 0 { None } else { in_bucket(home ^ 1) })
    }

    fn remove(&mut self, hash: CellHash, tail: Tail<'_>) {
        if let Some((number, slot, _)) = self.find(hash, tail) {
            self.clear_slot(self.home(hash), number, slot);
        }
    }

    fn clear_slot(&mut self, home: u32, number: u32, slot: usize) {
        set_slot(self.bucket_mut(number), slot, 0, 0);
        if number != home {
            self.bucket_mut(home)[SPILLED] -= 1;
        }
        self.entries -= 1;
    }

    /// Names an address in the index; where both buckets are full, in place of another entry.
    fn add(&mut self, hash: CellHash, addr: u32) {
        let home = self.home(hash);
        let free = |state: &State, number| (0..SLOTS).find(|&slot| tag_at(state.bucket(number), slot) == 0);
        let slot = free(self, home).map(|slot| (home, slot)).or_else(|| free(self, home ^ 1).map(|slot| (home ^ 1, slot)));
        let (number, slot) = slot.unwrap_or_else(|| {
            // The least used, from anywhere on: what a scan brings does not push out what is asked for again and again.
            let from = hash.0 as usize / 256;
            let uses = |&slot: &usize| u16_at(self.entry(self.bucket(home)[ADDRS + slot]), 4) >> USES_SHIFT;
            let victim = (0..SLOTS).map(|step| (from + step) % SLOTS).min_by_key(uses).expect("a bucket has slots");
            let its_home = self.home(hash_at(self.entry(self.bucket(home)[ADDRS + victim])));
            self.clear_slot(its_home, home, victim);
            self.stats.evictions += 1;
            (home, victim)
        });
        set_slot(self.bucket_mut(number), slot, hash.tag(), addr);
        if number != home {
            self.bucket_mut(home)[SPILLED] += 1;
        }
        self.entries += 1;
    }

    fn ghost_at(&self, hash: CellHash) -> usize {
        CellHash(hash.0.wrapping_mul(0x9E37_79B1)).of(self.ghosts.len())
    }

    fn forget_ghost(&mut self, hash: CellHash) -> bool {
        let at = self.ghost_at(hash);
        let is_known = self.ghosts[at] == hash.ghost();
        if is_known {
            self.ghosts[at] = 0;
        }
        is_known
    }

    /// The address of room in the main log, or in the small one.
    fn reserve(&mut self, in_main: bool, bytes: usize) -> u32 {
        let log = if in_main { &mut self.main } else { &mut self.small };
        if log.chunks.is_empty() || log.head + bytes > self.chunk_bytes {
            if let Some(&full) = log.chunks.back() {
                // Zeros up to the chunk's end: whoever looks through it stops there.
                let start = full as usize * self.chunk_bytes;
                self.log[start + log.head..start + self.chunk_bytes].fill(0);
                log.bytes += self.chunk_bytes - log.head;
            }
            let chunk = self.free.pop().unwrap_or_else(|| {
                self.chunks += 1;
                self.chunks - 1
            });
            log.chunks.push_back(chunk);
            log.head = 0;
        }
        let chunk = *log.chunks.back().expect("there is one now") as usize;
        let offset = log.head;
        log.head += bytes;
        log.bytes += bytes;
        ((chunk * self.chunk_bytes + offset) / UNIT_BYTES) as u32
    }

    fn make_room(&mut self, bytes: usize) {
        let mut kept = 0;
        while self.small.bytes + self.main.bytes + bytes > self.log_bytes_max && self.look_at_oldest(&mut kept) {}
    }

    /// Looks at the oldest entry of the log that has more than its share: it goes, or is kept in the main log. False: both are empty.
    fn look_at_oldest(&mut self, kept: &mut usize) -> bool {
        let from_small = self.main.bytes == 0 || self.small.bytes > self.log_bytes_max / SMALL_SHARE;
        let log = if from_small { &mut self.small } else { &mut self.main };
        let Some(&chunk) = log.chunks.front() else { return false };
        let is_newest = log.chunks.len() == 1;
        let end = if is_newest { log.head } else { self.chunk_bytes };
        let start = chunk as usize * self.chunk_bytes;
        let entry = &self.log[start + log.tail.min(end)..start + end];
        if entry.len() < HEADER_BYTES || parts(entry).0.is_empty() {
            // The chunk's end.
            log.bytes -= end - log.tail;
            log.tail = 0;
            log.chunks.pop_front();
            if is_newest {
                log.head = 0;
            }
            self.free.push(chunk);
            return true;
        }
        let (bytes, hash) = (entry_bytes(entry), hash_at(entry));
        let uses = u16_at(entry, 4) >> USES_SHIFT;
        let addr = ((start + log.tail) / UNIT_BYTES) as u32;
        log.tail += bytes;
        log.bytes -= bytes;
        let Some((number, slot)) = self.find_addr(hash, addr) else { return true };
        let stays = if from_small { uses > USES_TO_STAY } else { uses > 0 && *kept < KEPT_MAX };
        if stays {
            *kept += usize::from(!from_small);
            self.keep(addr, bytes, if from_small { 0 } else { uses - 1 }, (number, slot));
        } else {
            self.clear_slot(self.home(hash), number, slot);
            self.stats.evictions += 1;
            if from_small {
                let ghost = self.ghost_at(hash);
                self.ghosts[ghost] = hash.ghost();
            }
        }
        true
    }

    /// Copies an entry to the front of the main log.
    fn keep(&mut self, addr: u32, bytes: usize, uses: u16, (number, slot): (u32, usize)) {
        let mut entry = std::mem::take(&mut self.scratch);
        entry.clear();
        entry.extend_from_slice(&self.entry(addr)[..bytes]);
        let word = u16_at(&entry, 4) & TAIL_BYTES_MAX as u16 | uses << USES_SHIFT;
        entry[4..6].copy_from_slice(&word.to_le_bytes());
        let addr = self.reserve(true, bytes);
        self.log[addr as usize * UNIT_BYTES..][..bytes].copy_from_slice(&entry);
        self.scratch = entry;
        let bucket = self.bucket_mut(number);
        bucket[ADDRS + slot] = addr;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::prng::Prng;
    use crate::base::record::{Version, token_of};
    use crate::engine::format::{put_cell, put_place};
    use std::collections::BTreeMap;

    fn place(key: u64) -> Vec<u8> {
        let (mut place, key) = (Vec::new(), format!("key:{key:012}"));
        put_place(&mut place, 1, token_of(key.as_bytes()), key.as_bytes(), Kind::Head, b"");
        place
    }

    fn cell(version: u64, bytes: usize) -> Vec<u8> {
        let mut cell = Vec::new();
        put_cell(&mut cell, &Cell::value(Version::put(version, 0), &vec![version as u8; bytes]));
        cell
    }

    fn version(cache: &CellCache, key: u64) -> Option<u64> {
        cache.with(&place(key), |cell| cell.version.hlc())
    }

    #[test]
    fn what_it_gives_is_what_was_put_in_last_whatever_was_evicted() {
        for budget in [0, 700, 20_000, 300_000] {
            let (cache, mut prng, mut model) = (CellCache::new(budget, 7), Prng::new(budget as u64), BTreeMap::new());
            for step in 1..60_000u64 {
                let key = prng.below(2000) * prng.below(2);
                match prng.below(8) {
                    0..=2 => {
                        cache.insert(&place(key), &cell(step, prng.below(300) as usize));
                        model.insert(key, step);
                    }
                    3 => {
                        cache.remove(&place(key));
                        model.remove(&key);
                    }
                    _ => {
                        if let Some(version) = version(&cache, key) {
                            assert_eq!(model.get(&key), Some(&version), "step {step}, key {key}");
                        }
                    }
                }
                let stats = cache.stats();
                assert!(stats.bytes <= budget.max(2000), "{} of {budget} bytes at step {step}", stats.bytes);
            }
            let stats = cache.stats();
            assert!(budget < 20_000 || stats.hits > 1000 && stats.evictions > 1000, "{stats:?}");
        }
    }

    #[test]
    fn a_cell_of_100_bytes_under_a_key_of_16_costs_less_than_160() {
        let budget = 32 << 20;
        let cache = CellCache::new(budget, 3);
        // Asked for twice each, so that both logs fill.
        for key in 0..400_000 {
            cache.insert(&place(key), &cell(key + 1, 100));
            version(&cache, key);
            version(&cache, key.saturating_sub(2000));
        }
        let stats = cache.stats();
        assert!(stats.bytes <= budget && stats.bytes / stats.entries < 158, "{} bytes an entry: {stats:?}", stats.bytes / stats.entries);
    }

    #[test]
    fn a_scan_does_not_push_out_what_is_asked_for_again_and_again() {
        let cache = CellCache::new(2 << 20, 3);
        let mut missed = 0;
        for round in 0..40 {
            for hot in 0..3000 {
                if version(&cache, hot).is_none() {
                    missed += usize::from(round > 5);
                    cache.insert(&place(hot), &cell(1, 100));
                }
            }
            for cold in 0..8000 {
                cache.insert(&place(1_000_000 + round * 8000 + cold), &cell(2, 100));
            }
        }
        assert!(missed < 34 * 3000 / 20, "{missed} misses of what is hot");
    }

    #[test]
    fn keys_of_one_bucket_replace_each_other_and_only_each_other() {
        let cache = CellCache::new(1 << 20, 3);
        let mut same = Vec::new();
        // One token: the hash cannot tell them apart.
        for key in 0..100u64 {
            let mut one = Vec::new();
            put_place(&mut one, 1, 42, &key.to_be_bytes(), Kind::Head, b"");
            cache.insert(&one, &cell(key + 1, 10));
            same.push(one);
        }
        let found = same.iter().filter(|one| cache.with(one, |_| ()).is_some()).count();
        assert_eq!(found, 2 * SLOTS, "two buckets full");
        assert_eq!(cache.stats().entries, 2 * SLOTS);
        same.iter().for_each(|one| cache.remove(one));
        assert_eq!(cache.stats().entries, 0);
        assert!(same.iter().all(|one| cache.with(one, |_| ()).is_none()));
    }

    #[test]
    fn places_of_every_namespace_are_told_apart_and_only_heads_are_kept() {
        let cache = CellCache::new(1 << 20, 3);
        let namespaces = [1, 2, 254, 255, 256, 1 << 24, u32::MAX];
        let place = |namespace, kind, element: &[u8]| {
            let mut place = Vec::new();
            put_place(&mut place, namespace, 42, b"key\x00", kind, element);
            place
        };
        for (number, &namespace) in namespaces.iter().enumerate() {
            cache.insert(&place(namespace, Kind::Head, b""), &cell(number as u64 + 1, 10));
            cache.insert(&place(namespace, Kind::Chunk, &[0, 0, 0, 2]), &cell(99, 10));
        }
        for (number, &namespace) in namespaces.iter().enumerate() {
            assert_eq!(cache.with(&place(namespace, Kind::Head, b""), |cell| cell.version.hlc()), Some(number as u64 + 1));
            assert!(cache.with(&place(namespace, Kind::Chunk, &[0, 0, 0, 2]), |_| ()).is_none());
        }
        assert_eq!(cache.stats().entries, namespaces.len());
    }

    #[test]
    fn what_is_too_large_is_not_taken_and_takes_its_older_one_out() {
        let cache = CellCache::new(1 << 20, 3);
        cache.insert(&place(1), &cell(1, 100));
        cache.insert(&place(1), &cell(2, 60_000));
        assert_eq!(version(&cache, 1), None);
        let hash = cache.hash_of(&place(2));
        cache.prefetch_index(hash);
        let _ = cache.prefetch_entry(hash);
    }
}
