//! What was written last, in memory: the newest cell of each place since the last flush.
//!
//! Entries lie in an arena of equal chunks that is freed wholesale, so the memory of a memtable is exact and never fragments:
//! what `bytes` says is what is given back when the memtable is dropped. A write that meets an entry of its place is joined with it
//! (`base::record::join`) and overwrites it where the room suffices; otherwise a new entry takes its place and the old one is
//! garbage until the flush, counted like everything else.
//!
//! Two indexes. Lookups go through many small hash tables (stripes): each grows on its own, so no insert ever rehashes all. The hash
//! is seeded, because clients choose the keys. Scans and flushes go through a chain per (namespace, vnode): a scan of a vnode touches
//! only that vnode's entries, and a flush sorts one vnode's entries at a time, never all at once. A third index, of deadlines, is
//! ordered by time: reclaiming what expired is proportional to what expired.

use super::Seq;
use super::format::{parse_cell, place_namespace_token, put_cell};
use crate::base::checksum::hash64_seeded;
use crate::base::map::{Map, Seeded};
use crate::base::prefetch::prefetch;
use crate::base::record::{Body, Cell, NamespaceId, Version, join, vnode_of};
use crate::base::time::WallMs;
use hashbrown::HashTable;
use std::collections::BTreeSet;

/// How a memtable is made.
#[derive(Clone, Copy, Debug)]
pub struct MemtableConfig {
    /// Equal arcs of the ring.
    pub vnodes: u32,
    /// Seed of the lookup hash, drawn at start.
    pub hash_seed: u64,
    /// Bytes of one chunk of the arena: a multiple of 16. 1 MiB unless tests want to see chunks end.
    pub chunk_bytes: usize,
}

/// The chunk size that nodes use.
pub const CHUNK_BYTES: usize = 1024 * 1024;

const STRIPES: usize = 1024;
/// Bytes of a line of the processor's caches.
const LINE_BYTES: usize = 64;
const UNIT_BYTES: usize = 16;
const HEADER_BYTES: usize = 32;
const DEAD: u32 = u32::MAX;
const NONE: u32 = u32::MAX;
/// What one deadline costs in the ordered index: 16 bytes in nodes that are two thirds full.
const DEADLINE_BYTES: usize = 24;
/// What one (namespace, vnode) costs in the map of chains.
const CHAIN_BYTES: usize = 64;

const _: () = assert!(HEADER_BYTES.is_multiple_of(UNIT_BYTES) && CHUNK_BYTES.is_multiple_of(UNIT_BYTES));
const _: () = assert!(STRIPES.is_power_of_two());

/// An entry's place in the arena, in units of 16 bytes. An entry:
/// hash u64 | seq u64 | next in chain u32 | place length u32 | cell length u32 | room for the cell u32 | place | cell.
type Addr = u32;

#[derive(Debug)]
struct Arena {
    chunks: Vec<Vec<u8>>,
    chunk_bytes: usize,
    reserved_bytes: usize,
}

impl Arena {
    fn split(&self, addr: Addr) -> (usize, usize) {
        let units = self.chunk_bytes / UNIT_BYTES;
        (addr as usize / units, addr as usize % units * UNIT_BYTES)
    }

    /// Finds room for `bytes`, a multiple of 16: the address and the chunk. None when addresses have run out (some 64 GiB).
    fn reserve(&mut self, bytes: usize) -> Option<(Addr, usize)> {
        let units = self.chunk_bytes / UNIT_BYTES;
        let room = |last: &Vec<u8>| last.capacity() != 0 && self.chunk_bytes - last.len() >= bytes;
        let mut index = self.chunks.len().wrapping_sub(1);
        if !self.chunks.last().is_some_and(room) {
            index = self.chunks.len();
            let capacity = bytes.max(self.chunk_bytes);
            self.chunks.push(Vec::with_capacity(capacity));
            self.reserved_bytes += capacity;
            // An entry larger than a chunk takes the numbers of as many chunks as it covers.
            self.chunks.resize_with(index + capacity.div_ceil(self.chunk_bytes), Vec::new);
        }
        let addr = Addr::try_from(index * units + self.chunks[index].len() / UNIT_BYTES).ok().filter(|&addr| addr != NONE)?;
        Some((addr, index))
    }

    fn at(&self, addr: Addr) -> &[u8] {
        let (chunk, offset) = self.split(addr);
        &self.chunks[chunk][offset..]
    }

    fn at_mut(&mut self, addr: Addr) -> &mut [u8] {
        let (chunk, offset) = self.split(addr);
        &mut self.chunks[chunk][offset..]
    }

    fn u32(&self, addr: Addr, offset: usize) -> u32 {
        u32::from_le_bytes(self.at(addr)[offset..offset + 4].try_into().expect("4 bytes"))
    }

    fn u64(&self, addr: Addr, offset: usize) -> u64 {
        u64::from_le_bytes(self.at(addr)[offset..offset + 8].try_into().expect("8 bytes"))
    }

    fn set_u32(&mut self, addr: Addr, offset: usize, value: u32) {
        self.at_mut(addr)[offset..offset + 4].copy_from_slice(&value.to_le_bytes());
    }

    fn hash(&self, addr: Addr) -> u64 {
        self.u64(addr, 0)
    }

    fn seq(&self, addr: Addr) -> Seq {
        self.u64(addr, 8)
    }

    fn next(&self, addr: Addr) -> Addr {
        self.u32(addr, 16)
    }

    fn is_dead(&self, addr: Addr) -> bool {
        self.u32(addr, 24) == DEAD
    }

    fn place(&self, addr: Addr) -> &[u8] {
        let len = self.u32(addr, 20) as usize;
        &self.at(addr)[HEADER_BYTES..HEADER_BYTES + len]
    }

    fn cell_bytes(&self, addr: Addr) -> &[u8] {
        let start = HEADER_BYTES + self.u32(addr, 20) as usize;
        &self.at(addr)[start..start + self.u32(addr, 24) as usize]
    }

    fn cell(&self, addr: Addr) -> Cell<'_> {
        parse_cell(self.cell_bytes(addr)).expect("a cell that was encoded here")
    }

    fn entry_bytes(&self, addr: Addr) -> usize {
        (HEADER_BYTES + self.u32(addr, 20) as usize + self.u32(addr, 28) as usize).next_multiple_of(UNIT_BYTES)
    }

    /// Overwrites the cell; the caller knows that it fits.
    fn set_cell(&mut self, addr: Addr, cell: &[u8], seq: Seq) {
        let start = HEADER_BYTES + self.u32(addr, 20) as usize;
        let entry = self.at_mut(addr);
        entry[8..16].copy_from_slice(&seq.to_le_bytes());
        entry[24..28].copy_from_slice(&(cell.len() as u32).to_le_bytes());
        entry[start..start + cell.len()].copy_from_slice(cell);
    }

    fn push(&mut self, hash: u64, seq: Seq, next: Addr, place: &[u8], cell: &[u8]) -> Option<Addr> {
        let bytes = (HEADER_BYTES + place.len() + cell.len()).next_multiple_of(UNIT_BYTES);
        let (addr, chunk) = self.reserve(bytes)?;
        let (place_len, cell_len) = ((place.len() as u32).to_le_bytes(), (cell.len() as u32).to_le_bytes());
        let chunk = &mut self.chunks[chunk];
        let end = chunk.len() + bytes;
        let parts = [&hash.to_le_bytes(), &seq.to_le_bytes(), &next.to_le_bytes()[..], &place_len, &cell_len, &cell_len, place, cell];
        parts.into_iter().for_each(|part| chunk.extend_from_slice(part));
        chunk.resize(end, 0);
        Some(addr)
    }
}

/// One (namespace, vnode): its entries as a chain, and the versions that were put there.
#[derive(Clone, Copy, Debug)]
struct Chain {
    head: Addr,
    newest: Version,
    oldest: Version,
}

/// A cell that `pop_expired` turned into its remnant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expired {
    pub place: Vec<u8>,
    pub deadline_ms: WallMs,
    /// Of payload that nobody can read any more.
    pub freed_bytes: usize,
}

/// The memtable of one shard. Bounded by its owner, which rotates it when `bytes` reaches a bound.
#[derive(Debug)]
pub struct Memtable {
    config: MemtableConfig,
    arena: Arena,
    stripes: Vec<HashTable<Addr>>,
    stripe_bytes: usize,
    chains: Map<(NamespaceId, u32), Chain>,
    deadlines: BTreeSet<(WallMs, Addr)>,
    entries: usize,
    live_bytes: usize,
    seqs: Option<(Seq, Seq)>,
    counted_ms: WallMs,
    scratch: Vec<u8>,
}

impl Memtable {
    pub fn new(config: MemtableConfig) -> Memtable {
        assert!(config.chunk_bytes >= UNIT_BYTES && config.chunk_bytes.is_multiple_of(UNIT_BYTES));
        let stripes = (0..STRIPES).map(|_| HashTable::new()).collect();
        Memtable {
            config,
            arena: Arena { chunks: Vec::new(), chunk_bytes: config.chunk_bytes, reserved_bytes: 0 },
            stripes,
            stripe_bytes: 0,
            chains: Map::with_hasher(Seeded(config.hash_seed)),
            deadlines: BTreeSet::new(),
            entries: 0,
            live_bytes: 0,
            seqs: None,
            counted_ms: 0,
            scratch: Vec::new(),
        }
    }

    fn hash(&self, place: &[u8]) -> u64 {
        hash64_seeded(place, self.config.hash_seed)
    }

    /// Bits of the hash that the stripes' own tables do not look at first.
    fn stripe(hash: u64) -> usize {
        (hash >> 40) as usize & (STRIPES - 1)
    }

    fn find(&self, hash: u64, place: &[u8]) -> Option<Addr> {
        let found = self.stripes[Self::stripe(hash)].find(hash, |&addr| self.arena.hash(addr) == hash && self.arena.place(addr) == place);
        found.copied()
    }

    /// Begins to load what a lookup of the place reads. Of some in a row the index's misses overlap, as far as the processor sees ahead:
    /// none waits for another.
    #[inline]
    pub fn prefetch(&self, place: &[u8]) {
        let hash = self.hash(place);
        let load = |addr: &Addr| {
            let entry = self.arena.at(*addr);
            prefetch(entry);
            entry.get(LINE_BYTES..).inspect(|next| prefetch(next));
            true
        };
        let _ = self.stripes[Self::stripe(hash)].find(hash, load);
    }

    /// Joins `cell` into its place. `seq` is the log record it came from. False if nothing changed, because what is here is newer
    /// or the same.
    ///
    /// Panics when addresses run out, some 64 GiB after the owner should have rotated it.
    pub fn insert(&mut self, place: &[u8], cell: &Cell<'_>, seq: Seq) -> bool {
        let hash = self.hash(place);
        self.seqs = Some(self.seqs.map_or((seq, seq), |(first, last)| (first.min(seq), last.max(seq))));
        let mut scratch = std::mem::take(&mut self.scratch);
        scratch.clear();
        let changed = match self.find(hash, place) {
            None => {
                put_cell(&mut scratch, cell);
                self.push(hash, seq, place, &scratch, cell);
                true
            }
            Some(addr) => self.join_into(addr, hash, place, cell, seq, &mut scratch),
        };
        self.scratch = scratch;
        changed
    }

    fn join_into(&mut self, addr: Addr, hash: u64, place: &[u8], cell: &Cell<'_>, seq: Seq, scratch: &mut Vec<u8>) -> bool {
        let old = self.arena.cell(addr);
        let joined = join(old, *cell);
        let seq = seq.max(self.arena.seq(addr));
        if joined == old {
            self.arena.at_mut(addr)[8..16].copy_from_slice(&seq.to_le_bytes());
            return false;
        }
        put_cell(scratch, &joined);
        let (old_deadline, deadline) = (indexed_deadline(&old), indexed_deadline(&joined));
        self.touch_chain(place, cell);
        if scratch.len() <= self.arena.u32(addr, 28) as usize {
            self.live_bytes = self.live_bytes + scratch.len() - self.arena.u32(addr, 24) as usize;
            self.arena.set_cell(addr, scratch, seq);
            if deadline != old_deadline {
                self.deadlines.remove(&(old_deadline, addr));
                self.index_deadline(addr, deadline);
            }
        } else {
            self.kill(addr, hash);
            let owned = std::mem::take(scratch);
            let joined = parse_cell(&owned).expect("a cell that was encoded here");
            self.push(hash, seq, place, &owned, &joined);
            *scratch = owned;
        }
        true
    }

    fn push(&mut self, hash: u64, seq: Seq, place: &[u8], bytes: &[u8], cell: &Cell<'_>) {
        let next = self.touch_chain(place, cell).head;
        let addr = self.arena.push(hash, seq, next, place, bytes).expect("the owner rotates a memtable before addresses run out");
        let key = self.chain_key(place);
        self.chains.get_mut(&key).expect("touched above").head = addr;
        let (stripe, arena) = (&mut self.stripes[Self::stripe(hash)], &self.arena);
        let before = stripe.allocation_size();
        stripe.insert_unique(hash, addr, |&addr| arena.hash(addr));
        self.stripe_bytes = self.stripe_bytes + stripe.allocation_size() - before;
        self.entries += 1;
        self.live_bytes += place.len() + bytes.len();
        self.index_deadline(addr, indexed_deadline(cell));
    }

    fn index_deadline(&mut self, addr: Addr, deadline_ms: WallMs) {
        if deadline_ms != 0 {
            self.deadlines.insert((deadline_ms, addr));
        }
    }

    fn kill(&mut self, addr: Addr, hash: u64) {
        self.deadlines.remove(&(indexed_deadline(&self.arena.cell(addr)), addr));
        self.live_bytes -= self.arena.place(addr).len() + self.arena.cell_bytes(addr).len();
        self.entries -= 1;
        let found = self.stripes[Self::stripe(hash)].find_entry(hash, |&other| other == addr);
        found.expect("a living entry is in its stripe").remove();
        self.arena.set_u32(addr, 24, DEAD);
    }

    fn chain_key(&self, place: &[u8]) -> (NamespaceId, u32) {
        let (namespace, token) = place_namespace_token(place);
        (namespace, vnode_of(token, self.config.vnodes))
    }

    fn touch_chain(&mut self, place: &[u8], cell: &Cell<'_>) -> Chain {
        let key = self.chain_key(place);
        let oldest = oldest_part(cell);
        let chain = self.chains.entry(key).or_insert(Chain { head: NONE, newest: Version::ZERO, oldest: Version::MAX });
        chain.newest = chain.newest.max(cell.newest());
        chain.oldest = chain.oldest.min(oldest);
        *chain
    }

    /// The cell at a place and the newest log record that touched it.
    pub fn get(&self, place: &[u8]) -> Option<(Cell<'_>, Seq)> {
        let addr = self.find(self.hash(place), place)?;
        Some((self.arena.cell(addr), self.arena.seq(addr)))
    }

    /// All memory it holds, garbage and indexes included.
    pub fn bytes(&self) -> usize {
        self.arena.reserved_bytes
            + self.stripe_bytes
            + STRIPES * std::mem::size_of::<HashTable<Addr>>()
            + self.deadlines.len() * DEADLINE_BYTES
            + self.chains.len() * CHAIN_BYTES
    }

    /// Bytes of places and cells that a flush would write.
    pub fn live_bytes(&self) -> usize {
        self.live_bytes
    }

    /// Entries that a flush would write.
    pub fn len(&self) -> usize {
        self.entries
    }

    pub fn is_empty(&self) -> bool {
        self.entries == 0
    }

    /// The first and last log record that put something here.
    pub fn seqs(&self) -> Option<(Seq, Seq)> {
        self.seqs
    }

    /// The oldest and newest version ever put into a vnode of a namespace.
    pub fn version_bounds(&self, namespace: NamespaceId, vnode: u32) -> Option<(Version, Version)> {
        self.chains.get(&(namespace, vnode)).map(|chain| (chain.oldest, chain.newest))
    }

    /// The oldest and newest version ever put into a vnode, over all namespaces.
    pub fn vnode_version_bounds(&self, vnode: u32) -> Option<(Version, Version)> {
        let of_vnode = self.chains.iter().filter(|((_, v), _)| *v == vnode).map(|(_, chain)| (chain.oldest, chain.newest));
        of_vnode.reduce(|a, b| (a.0.min(b.0), a.1.max(b.1)))
    }

    /// The entries of one vnode of a namespace from the encoded place `from` on, in order of places.
    /// Touches that vnode's entries only.
    pub fn vnode_entries(&self, namespace: NamespaceId, vnode: u32, from: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.entries_between(namespace, vnode, from, None).map(|(place, cell, _)| (place, cell))
    }

    /// The same up to `to` (excluded) if given, each with the newest log record that touched it.
    pub fn entries_between(
        &self,
        namespace: NamespaceId,
        vnode: u32,
        from: &[u8],
        to: Option<&[u8]>,
    ) -> impl Iterator<Item = (&[u8], &[u8], Seq)> {
        let head = self.chains.get(&(namespace, vnode)).map_or(NONE, |chain| chain.head);
        let is_in = |place: &[u8]| place >= from && to.is_none_or(|to| place < to);
        let mut addrs: Vec<Addr> = self.chain(head).filter(|&addr| is_in(self.arena.place(addr))).collect();
        addrs.sort_unstable_by(|&a, &b| self.arena.place(a).cmp(self.arena.place(b)));
        addrs.into_iter().map(|addr| (self.arena.place(addr), self.arena.cell_bytes(addr), self.arena.seq(addr)))
    }

    /// The entries of one key (all kinds and elements), in order of places. `prefix` is the part of a place that names the key.
    pub fn key_entries(&self, prefix: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
        let (namespace, vnode) = self.chain_key(prefix);
        self.vnode_entries(namespace, vnode, prefix).take_while(move |(place, _)| place.starts_with(prefix))
    }

    /// The vnodes that something was put into, each once for every namespace.
    pub fn vnodes(&self) -> impl Iterator<Item = u32> {
        self.chains.keys().map(|&(_, vnode)| vnode)
    }

    /// Everything, in order of places, for a flush. Sorts one vnode at a time.
    pub fn sorted(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.sorted_of(|_| true)
    }

    /// The same, of some vnodes only.
    pub fn sorted_of(&self, wanted: impl Fn(u32) -> bool) -> impl Iterator<Item = (&[u8], &[u8])> {
        let mut keys: Vec<_> = self.chains.keys().copied().filter(|&(_, vnode)| wanted(vnode)).collect();
        keys.sort_unstable();
        keys.into_iter().flat_map(|(namespace, vnode)| self.vnode_entries(namespace, vnode, &[]))
    }

    fn chain(&self, head: Addr) -> impl Iterator<Item = Addr> {
        let links = std::iter::successors((head != NONE).then_some(head), |&addr| Some(self.arena.next(addr)).filter(|&next| next != NONE));
        links.filter(|&addr| !self.arena.is_dead(addr))
    }

    /// The next deadline of a cell here.
    pub fn next_deadline_ms(&self) -> Option<WallMs> {
        self.deadlines.first().map(|&(deadline_ms, _)| deadline_ms)
    }

    /// Takes the deadline that passed first, up to `now_ms`, and turns its cell into its remnant, unless `is_newest` (place, version of the
    /// deadline) says that a table may know a newer one. None when no deadline up to `now_ms` is left.
    pub fn pop_expired(&mut self, now_ms: WallMs, is_newest: impl FnOnce(&[u8], Version) -> bool) -> Option<Expired> {
        let Some(&(deadline_ms, addr)) = self.deadlines.first().filter(|(deadline_ms, _)| *deadline_ms <= now_ms) else {
            self.counted_ms = self.counted_ms.max(now_ms);
            return None;
        };
        self.deadlines.pop_first();
        let (place, cell) = (self.arena.place(addr), self.arena.cell(addr));
        let mut expired = Expired { place: place.to_vec(), deadline_ms, freed_bytes: 0 };
        if is_newest(place, cell.expiry.version) {
            let mut scratch = std::mem::take(&mut self.scratch);
            scratch.clear();
            put_cell(&mut scratch, &expired_form(cell));
            expired.freed_bytes = self.arena.cell_bytes(addr).len() - scratch.len();
            let seq = self.arena.seq(addr);
            self.arena.set_cell(addr, &scratch, seq);
            self.live_bytes -= expired.freed_bytes;
            self.scratch = scratch;
        }
        Some(expired)
    }

    /// Every deadline up to here was taken by `pop_expired`.
    pub fn counted_ms(&self) -> WallMs {
        self.counted_ms
    }

    /// Forgets the entries of a vnode of a namespace whose log record is below `seq`: they are void.
    pub fn void_below(&mut self, namespace: NamespaceId, vnode: u32, seq: Seq) {
        let head = self.chains.get(&(namespace, vnode)).map_or(NONE, |chain| chain.head);
        let void: Vec<Addr> = self.chain(head).filter(|&addr| self.arena.seq(addr) < seq).collect();
        for addr in void {
            self.kill(addr, self.arena.hash(addr));
        }
    }

    /// Bytes of the arena that no living entry uses.
    pub fn garbage_bytes(&self) -> usize {
        let keys = self.chains.values();
        let used: usize = keys.flat_map(|chain| self.chain(chain.head)).map(|addr| self.arena.entry_bytes(addr)).sum();
        self.arena.chunks.iter().map(Vec::len).sum::<usize>() - used
    }
}

/// The deadline that the index holds for a cell: 0 for none, and for what is dead already.
fn indexed_deadline(cell: &Cell<'_>) -> WallMs {
    if cell.body == Body::Tombstone { 0 } else { cell.expiry.deadline_ms }
}

/// What an expired cell becomes: its remnant. A cell that only told a deadline stays, since the value that it hides lies elsewhere.
pub fn expired_form(cell: Cell<'_>) -> Cell<'_> {
    if cell.body == Body::Silent { cell } else { cell.remnant() }
}

/// The oldest version of any part that says something.
pub fn oldest_part(cell: &Cell<'_>) -> Version {
    match (cell.version, cell.expiry.version) {
        (Version::ZERO, version) | (version, Version::ZERO) => version,
        (a, b) => a.min(b),
    }
}

#[cfg(test)]
mod tests {
    use super::super::format::put_place;
    use super::*;
    use crate::base::prng::Prng;
    use crate::base::record::{Kind, token_of};
    use std::collections::BTreeMap;

    fn small() -> Memtable {
        Memtable::new(MemtableConfig { vnodes: 16, hash_seed: 7, chunk_bytes: 4096 })
    }

    fn place(namespace: NamespaceId, key: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        put_place(&mut out, namespace, token_of(key), key, Kind::Head, b"");
        out
    }

    fn encoded(cell: &Cell<'_>) -> Vec<u8> {
        let mut out = Vec::new();
        put_cell(&mut out, cell);
        out
    }

    #[test]
    fn random_writes_in_any_order_of_versions_match_a_map_that_joins() {
        let mut prng = Prng::new(3);
        let mut memtable = small();
        let mut model: BTreeMap<Vec<u8>, (Vec<u8>, Seq)> = BTreeMap::new();
        for seq in 1..20_000u64 {
            let place = place(prng.below(2) as u32, format!("k{}", prng.below(700)).as_bytes());
            let mut payload = vec![0; if prng.one_in(500) { 9000 } else { prng.below(200) as usize }];
            prng.fill(&mut payload);
            let version = Version::put(prng.below(1000) + 1, 0);
            let cell = match prng.below(5) {
                0 => Cell::tombstone(version),
                1 => Cell::expire(version, prng.below(1000)),
                2 => Cell::value(version, &payload).with_deadline(prng.below(1000)),
                _ => Cell::value(version, &payload),
            };
            memtable.insert(&place, &cell, seq);
            let slot = model.entry(place.clone()).or_insert_with(|| (encoded(&cell), seq));
            let joined = encoded(&join(parse_cell(&slot.0).unwrap(), cell));
            *slot = (joined, seq);
            let (found, at) = memtable.get(&place).unwrap();
            assert_eq!((encoded(&found), at), *slot);
        }
        assert_eq!(memtable.len(), model.len());
        assert!(memtable.sorted().eq(model.iter().map(|(place, (cell, _))| (&place[..], &cell[..]))));
        assert_eq!(memtable.live_bytes(), model.iter().map(|(place, (cell, _))| place.len() + cell.len()).sum::<usize>());
        let deadlines = model.values().filter(|(cell, _)| {
            let cell = parse_cell(cell).unwrap();
            cell.expiry.deadline_ms != 0 && cell.body != Body::Tombstone
        });
        assert_eq!(memtable.deadlines.len(), deadlines.count());
        assert!(memtable.garbage_bytes() > 0 && memtable.bytes() > memtable.live_bytes());
        assert_eq!(memtable.seqs(), Some((1, 19_999)));
    }

    #[test]
    fn a_scan_of_a_vnode_gives_its_entries_in_order_from_a_cursor() {
        let mut memtable = small();
        let mut places: Vec<_> = (0..500).map(|n| place(1, format!("key {n}").as_bytes())).collect();
        for (seq, place) in places.iter().enumerate() {
            memtable.insert(place, &Cell::value(Version::put(seq as u64 + 1, 0), b"v"), seq as u64);
        }
        places.sort();
        let of_vnode: Vec<_> = places.iter().filter(|place| vnode_of(place_namespace_token(place).1, 16) == 5).collect();
        assert!(of_vnode.len() > 10);
        let found: Vec<_> = memtable.vnode_entries(1, 5, of_vnode[3]).map(|(place, _)| place).collect();
        assert_eq!(found, of_vnode[3..]);
        assert_eq!(memtable.vnode_entries(2, 5, b"").count(), 0);
        assert_eq!(memtable.version_bounds(1, 5).unwrap(), memtable.vnode_version_bounds(5).unwrap());
    }

    #[test]
    fn expiry_turns_exactly_what_is_due_into_remnants_in_order_of_deadlines() {
        let mut memtable = small();
        let payload = vec![7; 300];
        for n in 0..100u64 {
            let cell = Cell::value(Version::put(n + 1, 0), &payload).with_deadline(1000 - n);
            memtable.insert(&place(1, &n.to_be_bytes()), &cell, n);
        }
        // A later deadline and a removed one are not due.
        memtable.insert(&place(1, &99u64.to_be_bytes()), &Cell::expire(Version::put(500, 0), 5000), 200);
        memtable.insert(&place(1, &98u64.to_be_bytes()), &Cell::expire(Version::put(500, 0), 0), 201);
        let due: Vec<_> = std::iter::from_fn(|| memtable.pop_expired(950, |_, _| true)).collect();
        assert_eq!(due.iter().map(|expired| expired.deadline_ms).collect::<Vec<_>>(), (903..=950).collect::<Vec<_>>());
        assert!(due.iter().all(|expired| expired.freed_bytes == 300));
        let (cell, seq) = memtable.get(&place(1, &60u64.to_be_bytes())).unwrap();
        assert!(!cell.is_live(0) && cell.version == Version::put(61, 0) && seq == 60);
        assert_eq!(memtable.next_deadline_ms(), Some(951));
    }

    #[test]
    fn what_lies_below_a_drop_is_void_and_what_lies_above_stays() {
        let mut memtable = small();
        for n in 0..200u64 {
            memtable.insert(&place(1, &n.to_be_bytes()), &Cell::value(Version::put(1, 0), b"v").with_deadline(9), n);
        }
        (0..16).for_each(|vnode| memtable.void_below(1, vnode, 150));
        assert_eq!(memtable.len(), 50);
        assert!(memtable.get(&place(1, &149u64.to_be_bytes())).is_none());
        assert!(memtable.get(&place(1, &150u64.to_be_bytes())).is_some());
        assert_eq!(memtable.deadlines.len(), 50);
    }
}
