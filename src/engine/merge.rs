//! Merging sorted sources into one: what is joined, what is kept, and what may be forgotten.
//!
//! Cells of one place are joined by the record model's `join`, so the order of the sources does not matter. Then, cell by cell:
//!
//! - of a vnode that this shard does not own, or below the vnode's drop sequence: void, gone;
//! - past its deadline: its remnant, a tombstone with the same versions and no payload, unless a newer deadline of it may lie outside
//!   this merge. (A cell that only tells a deadline stays.)
//! - an element that its key's head makes dead (below the floor of a collection, below the version of a string, at or below a
//!   tombstone): gone, since the head that says so passes by in the same merge and stays where it must;
//! - a tombstone, or a cell that only tells a deadline: it may be forgotten only when its vnode's floor has passed it (PROTOCOL.md G3:
//!   nothing older can arrive any more) **and** nothing older of its key can lie anywhere outside this merge. Never for its age. For what
//!   an expired value left that is not enough (`may_forget`).
//!
//! Everything else is kept.

use super::EngineError;
use super::format::manifest::{Level, VnodeRecord};
use super::format::{key_prefix_len, parse_cell, place_namespace_token, put_cell};
use super::memtable::expired_form;
use crate::base::codec::Malformed;
use crate::base::record::{Body, Cell, Expiry, Kind, NamespaceId, Version, join, vnode_of};
use crate::base::time::{HLC_COUNTER_BITS, WallMs};

/// What a merge must know about the shard around it. Asked at the moment of each decision, not at the merge's start.
pub trait World {
    /// Equal arcs of the ring.
    fn vnodes(&self) -> u32;
    /// This shard owns the vnode.
    fn owns(&self, vnode: u32) -> bool;
    /// Drop sequence and floor of a vnode.
    fn vnode_record(&self, namespace: NamespaceId, vnode: u32) -> VnodeRecord;
    /// The same as its floor for what expired values left; at or below it.
    fn remnant_floor(&self, namespace: NamespaceId, vnode: u32) -> Version;
    /// A cell of the key with any part below `version` may lie in a memtable or in a table that is not an input of this merge.
    /// `prefix` is the part of a place that names the key.
    fn may_exist_elsewhere(&self, prefix: &[u8], vnode: u32, version: Version) -> bool;
    /// A cell of the place with any part above `version` may lie in a memtable or in a table that is not an input of this merge.
    fn may_be_newer_elsewhere(&self, place: &[u8], vnode: u32, version: Version) -> bool;
}

/// A sorted source, standing on an entry or at its end.
pub trait Source {
    /// Goes to the next entry (the first, at the first call); false at the end.
    fn advance(&mut self) -> impl Future<Output = Result<bool, EngineError>>;
    /// The encoded place it stands on.
    fn place(&self) -> &[u8];
    /// The encoded cell there.
    fn cell(&self) -> &[u8];
    /// The last log record in it: decides what is void.
    fn last_seq(&self) -> u64;
    /// A name for an error, and where in it.
    fn position(&self) -> (String, u64);
}

/// What a merge is told before it starts.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// Cells whose deadline is at or before it become remnants.
    pub expired_ms: WallMs,
    pub level: Level,
    /// Planted bug: merges that do not reach the last level forget tombstones.
    pub drop_early: bool,
}

/// What has gone in and come out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    pub entries_in: u64,
    pub bytes_in: u64,
    pub entries_out: u64,
    pub bytes_out: u64,
    /// Tombstones, remnants and deadlines that were forgotten.
    pub forgotten: u64,
    /// Values that became remnants.
    pub expired: u64,
}

/// What the judge remembers of the key that passes by.
#[derive(Debug, Default)]
struct Key {
    prefix: Vec<u8>,
    vnode: u32,
    record: VnodeRecord,
    remnant_floor: Version,
    is_owned: bool,
    /// Elements up to this version are dead (itself included where the second is true).
    dead: Option<(Version, bool)>,
}

/// Decides cell by cell, in order of places.
#[derive(Debug)]
struct Judge {
    rules: Rules,
    key: Key,
}

impl Judge {
    /// Makes `place`'s key the current one.
    fn enter(&mut self, place: &[u8], world: &impl World) -> Result<(), Malformed> {
        if !self.key.prefix.is_empty() && place.starts_with(&self.key.prefix) {
            return Ok(());
        }
        let len = key_prefix_len(place)?;
        let (namespace, token) = place_namespace_token(place);
        self.key.vnode = vnode_of(token, world.vnodes());
        self.key.record = world.vnode_record(namespace, self.key.vnode);
        self.key.remnant_floor = world.remnant_floor(namespace, self.key.vnode);
        self.key.is_owned = world.owns(self.key.vnode);
        self.key.dead = None;
        self.key.prefix.clear();
        self.key.prefix.extend_from_slice(&place[..len]);
        Ok(())
    }

    /// A source's cells here count.
    fn is_valid(&self, last_seq: u64) -> bool {
        self.key.is_owned && last_seq >= self.key.record.drop_seq
    }

    /// The cell as it is kept, or None.
    fn judge<'a>(&mut self, place: &[u8], cell: Cell<'a>, world: &impl World, tally: &mut Tally) -> Result<Option<Cell<'a>>, Malformed> {
        let is_due = cell.is_expired(self.rules.expired_ms);
        let is_expired = is_due && !world.may_be_newer_elsewhere(place, self.key.vnode, cell.expiry.version);
        let kept = if is_expired { expired_form(cell) } else { cell };
        tally.expired += u64::from(kept.body != cell.body);
        let kind = place.get(self.key.prefix.len()).copied().and_then(Kind::from_u8).ok_or(Malformed("unknown kind of cell"))?;
        if kind == Kind::Head {
            self.key.dead = elements_dead_below(&kept, is_expired);
        } else if self.is_dead_element(&kept) {
            return Ok(None);
        }
        if !matches!(kept.body, Body::Tombstone | Body::Silent) {
            return Ok(Some(kept));
        }
        let is_early = self.rules.drop_early && self.rules.level != Level::Last;
        let may_forget = may_forget(&kept, self.key.record.floor, self.key.remnant_floor);
        if is_early || may_forget && !world.may_exist_elsewhere(&self.key.prefix, self.key.vnode, kept.newest()) {
            tally.forgotten += 1;
            return Ok(None);
        }
        Ok(Some(kept))
    }

    fn is_dead_element(&self, cell: &Cell<'_>) -> bool {
        let Some((bound, inclusive)) = self.key.dead else { return false };
        let version = if let Body::Sum { floor, .. } = cell.body { floor } else { cell.newest() };
        version < bound || inclusive && version == bound
    }
}

/// Whether floors let a cell go that shows nothing any more: a tombstone, what an expired value left, or a deadline alone.
///
/// A delete is newer than all that it deletes, so a floor above it is above all of that. An expired value is dead only as long as nobody
/// gives it another deadline: whoever read it before it expired may yet do so, under a version above the floor, and carries the value
/// along; a replica that had forgotten the value could not take it, and others that had not would keep it. So what is left of it stays
/// until the floor has also passed everything that could have been begun while the value was alive: `remnants` is an earlier floor, as of
/// which deadline and versions had passed on every replica, so long ago that what was begun before is below today's floor.
pub(super) fn may_forget(cell: &Cell<'_>, floor: Version, remnants: Version) -> bool {
    let newest = cell.newest();
    let is_by_itself = cell.body == Body::Silent || cell.expiry == Expiry { version: cell.version, deadline_ms: 0 };
    let deadline_ms = cell.expiry.deadline_ms.min((1 << (64 - HLC_COUNTER_BITS)) - 1);
    let dead_since = newest.max(Version::put(deadline_ms << HLC_COUNTER_BITS, u16::MAX));
    newest <= floor && (is_by_itself || dead_since <= remnants)
}

/// Up to which version a head makes its elements dead.
pub(super) fn elements_dead_below(head: &Cell<'_>, is_expired: bool) -> Option<(Version, bool)> {
    match head.body {
        Body::Silent | Body::RangeEnd(_) | Body::Sum { .. } => None,
        // What the deadline hid is dead, up to the write that set the deadline.
        Body::Tombstone if is_expired => Some((head.newest(), true)),
        Body::Tombstone => Some((head.version, true)),
        Body::Bytes(_) | Body::Chunked { .. } => Some((head.version, false)),
        Body::Collection { floor, .. } => Some((floor, false)),
    }
}

/// What a step of a merge gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MergeStep {
    /// An entry: `place` and `cell` hold it.
    Entry,
    /// Something passed by that is not kept.
    Nothing,
    /// All sources are at their end.
    End,
}

/// A merge of sorted sources. A step handles one place.
#[derive(Debug)]
pub struct Merge<S> {
    sources: Vec<S>,
    /// A binary heap of sources that stand on an entry, the least place first.
    heap: Vec<usize>,
    judge: Judge,
    place: Vec<u8>,
    cell: Vec<u8>,
    tally: Tally,
}

impl<S: Source> Merge<S> {
    /// Puts every source on its first entry.
    ///
    /// # Errors
    /// Of reading them.
    pub async fn start(sources: Vec<S>, rules: Rules) -> Result<Merge<S>, EngineError> {
        let judge = Judge { rules, key: Key::default() };
        let mut merge = Merge { sources, heap: Vec::new(), judge, place: Vec::new(), cell: Vec::new(), tally: Tally::default() };
        for index in 0..merge.sources.len() {
            if merge.sources[index].advance().await? {
                merge.heap.push(index);
                merge.sift_up(merge.heap.len() - 1);
            }
        }
        Ok(merge)
    }

    fn is_less(&self, a: usize, b: usize) -> bool {
        self.sources[self.heap[a]].place() < self.sources[self.heap[b]].place()
    }

    fn sift_up(&mut self, mut at: usize) {
        while at > 0 && self.is_less(at, (at - 1) / 2) {
            self.heap.swap(at, (at - 1) / 2);
            at = (at - 1) / 2;
        }
    }

    fn sift_down(&mut self, mut at: usize) {
        loop {
            let (left, right) = (2 * at + 1, 2 * at + 2);
            let mut least = at;
            for child in [left, right] {
                if child < self.heap.len() && self.is_less(child, least) {
                    least = child;
                }
            }
            if least == at {
                return;
            }
            self.heap.swap(at, least);
            at = least;
        }
    }

    /// The place that comes next: everything below it has been handled. None at the end.
    pub fn next_place(&self) -> Option<&[u8]> {
        self.heap.first().map(|&source| self.sources[source].place())
    }

    /// The encoded place of the entry that `step` gave.
    pub fn place(&self) -> &[u8] {
        &self.place
    }

    /// The encoded cell of the entry that `step` gave.
    pub fn cell(&self) -> &[u8] {
        &self.cell
    }

    /// From here on cells whose deadline is at or before this become remnants.
    pub fn set_expired_ms(&mut self, expired_ms: WallMs) {
        self.judge.rules.expired_ms = expired_ms;
    }

    /// What has gone in and come out so far.
    pub fn tally(&self) -> Tally {
        self.tally
    }

    /// Handles the next place. Waits only for the sources.
    ///
    /// # Errors
    /// Of reading the sources; bytes in them that are no places or cells.
    pub async fn step(&mut self, world: &impl World) -> Result<MergeStep, EngineError> {
        let Some(&first) = self.heap.first() else { return Ok(MergeStep::End) };
        let corrupt = |source: &S, what| {
            let (file, offset) = source.position();
            EngineError::corrupt(&file, offset, what)
        };
        self.place.clear();
        self.place.extend_from_slice(self.sources[first].place());
        self.judge.enter(&self.place, world).map_err(|what| corrupt(&self.sources[first], what))?;
        let mut parts = 0;
        self.cell.clear();
        while let Some(&source) = self.heap.first().filter(|&&source| self.sources[source].place() == self.place) {
            self.tally.entries_in += 1;
            self.tally.bytes_in += (self.place.len() + self.sources[source].cell().len()) as u64;
            if self.judge.is_valid(self.sources[source].last_seq()) {
                parts += 1;
                self.join_in(source, parts).map_err(|what| corrupt(&self.sources[source], what))?;
            }
            if !self.sources[source].advance().await? {
                self.heap.swap_remove(0);
            }
            self.sift_down(0);
        }
        if parts == 0 {
            return Ok(MergeStep::Nothing);
        }
        let bytes = std::mem::take(&mut self.cell);
        let kept = self.decide(&bytes, world);
        let rewritten = std::mem::take(&mut self.cell);
        self.cell = if rewritten.is_empty() { bytes } else { rewritten };
        if !kept.map_err(|what| EngineError::corrupt("a merge", 0, what))? {
            return Ok(MergeStep::Nothing);
        }
        self.tally.entries_out += 1;
        self.tally.bytes_out += (self.place.len() + self.cell.len()) as u64;
        Ok(MergeStep::Entry)
    }

    /// Joins a source's cell into the one that is gathered. The first is copied as it is.
    fn join_in(&mut self, source: usize, parts: usize) -> Result<(), Malformed> {
        let cell = self.sources[source].cell();
        let parsed = parse_cell(cell)?;
        if parts == 1 {
            self.cell.extend_from_slice(cell);
            return Ok(());
        }
        let joined = join(parse_cell(&self.cell)?, parsed);
        let mut out = Vec::with_capacity(self.cell.len().max(cell.len()) + 32);
        put_cell(&mut out, &joined);
        self.cell = out;
        Ok(())
    }

    /// False if the gathered cell goes; `self.cell` is filled only where it is kept in another form.
    fn decide(&mut self, bytes: &[u8], world: &impl World) -> Result<bool, Malformed> {
        let cell = parse_cell(bytes)?;
        let kept = self.judge.judge(&self.place, cell, world, &mut self.tally)?;
        if let Some(kept) = kept.filter(|kept| *kept != cell) {
            put_cell(&mut self.cell, &kept);
        }
        Ok(kept.is_some())
    }
}

#[cfg(test)]
mod tests {
    use super::super::format::{parse_place, put_place};
    use super::super::memtable::{Memtable, MemtableConfig, oldest_part};
    use super::*;
    use crate::base::prng::Prng;
    use crate::base::record::token_of;
    use std::collections::BTreeMap;
    use std::task::{Context, Poll, Waker};

    type Entries = Vec<(Vec<u8>, Vec<u8>)>;

    struct VecSource {
        entries: std::rc::Rc<Entries>,
        at: usize,
        seq: u64,
    }

    impl Source for VecSource {
        async fn advance(&mut self) -> Result<bool, EngineError> {
            self.at += 1;
            Ok(self.at <= self.entries.len())
        }
        fn place(&self) -> &[u8] {
            &self.entries[self.at - 1].0
        }
        fn cell(&self) -> &[u8] {
            &self.entries[self.at - 1].1
        }
        fn last_seq(&self) -> u64 {
            self.seq
        }
        fn position(&self) -> (String, u64) {
            ("memory".to_owned(), self.at as u64)
        }
    }

    fn now<T>(future: impl Future<Output = T>) -> T {
        let mut future = std::pin::pin!(future);
        match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(value) => value,
            Poll::Pending => panic!("nothing here waits"),
        }
    }

    /// Shards in small: a memtable, tables in no order at all, and beside it a map that forgets nothing.
    struct Store {
        memtable: Memtable,
        tables: Vec<(std::rc::Rc<Entries>, u64)>,
        model: BTreeMap<Vec<u8>, Vec<u8>>,
        record: VnodeRecord,
        /// None: the node is alone.
        remnants: Option<Version>,
        now_ms: WallMs,
        seq: u64,
        forgotten: u64,
        /// The tables that are not in the merge under way.
        outside: Vec<std::rc::Rc<Entries>>,
        drop_early: bool,
    }

    impl World for Store {
        fn vnodes(&self) -> u32 {
            16
        }
        fn owns(&self, _: u32) -> bool {
            true
        }
        fn vnode_record(&self, _: NamespaceId, _: u32) -> VnodeRecord {
            self.record
        }
        fn remnant_floor(&self, _: NamespaceId, _: u32) -> Version {
            self.remnants.unwrap_or(Version::MAX)
        }
        fn may_exist_elsewhere(&self, prefix: &[u8], vnode: u32, version: Version) -> bool {
            let is_older =
                |(place, cell): &(Vec<u8>, Vec<u8>)| place.starts_with(prefix) && oldest_part(&parse_cell(cell).unwrap()) < version;
            self.memtable.version_bounds(1, vnode).is_some_and(|(oldest, _)| oldest < version)
                || self.outside.iter().any(|table| table.iter().any(is_older))
        }
        fn may_be_newer_elsewhere(&self, place: &[u8], _: u32, version: Version) -> bool {
            let is_newer = |(at, cell): &(Vec<u8>, Vec<u8>)| at == place && parse_cell(cell).unwrap().newest() > version;
            self.memtable.get(place).is_some_and(|(cell, _)| cell.newest() > version)
                || self.outside.iter().any(|table| table.iter().any(is_newer))
        }
    }

    fn encoded(cell: &Cell<'_>) -> Vec<u8> {
        let mut out = Vec::new();
        put_cell(&mut out, cell);
        out
    }

    fn joined(a: Option<Vec<u8>>, b: &[u8]) -> Vec<u8> {
        a.map_or_else(|| b.to_vec(), |a| encoded(&join(parse_cell(&a).unwrap(), parse_cell(b).unwrap())))
    }

    fn place_of(key: u64, kind: Kind, element: &[u8]) -> Vec<u8> {
        let (mut out, key) = (Vec::new(), format!("key {key}"));
        put_place(&mut out, 1, token_of(key.as_bytes()), key.as_bytes(), kind, element);
        out
    }

    impl Store {
        fn new(drop_early: bool) -> Store {
            Store {
                memtable: Self::memtable(),
                tables: Vec::new(),
                model: BTreeMap::new(),
                record: VnodeRecord::default(),
                remnants: None,
                now_ms: 1000,
                seq: 0,
                forgotten: 0,
                outside: Vec::new(),
                drop_early,
            }
        }

        fn memtable() -> Memtable {
            Memtable::new(MemtableConfig { vnodes: 16, hash_seed: 1, chunk_bytes: 4096 })
        }

        fn put(&mut self, place: &[u8], cell: Cell<'_>) {
            // What the floor has passed is refused (G3).
            if cell.newest() <= self.record.floor {
                return;
            }
            self.memtable.insert(place, &cell, self.seq);
            let old = self.model.remove(place);
            self.model.insert(place.to_vec(), joined(old, &encoded(&cell)));
        }

        fn write(&mut self, prng: &mut Prng) {
            self.seq += 1;
            let head = place_of(prng.below(12), Kind::Head, b"");
            // Around now, in any order, and no version twice.
            let version = Version::put((self.seq + prng.below(60)).saturating_sub(30).max(1), self.seq as u16);
            let payload = version.to_bytes();
            let is_expired = self.model.get(&head).is_some_and(|cell| parse_cell(cell).unwrap().is_expired(self.now_ms));
            let deadline_ms = self.now_ms + prng.below(100);
            match prng.below(8) {
                0 | 1 => self.put(&head, Cell::tombstone(version)),
                // Who executes an EXPIRE refuses it for what has expired already; nothing revives that.
                2 if is_expired => {}
                2 => self.put(&head, Cell::expire(version, if prng.one_in(4) { 0 } else { deadline_ms })),
                3 => self.put(&head, Cell::value(version, &payload).with_deadline(deadline_ms)),
                4 | 5 => {
                    let chunked = Cell { body: Body::Chunked { len: 32 }, ..Cell::value(version, b"") };
                    let prefix = head.len() - 1;
                    for number in 0..2u32 {
                        let mut place = head[..prefix].to_vec();
                        place.push(Kind::Chunk as u8);
                        place.extend_from_slice(&number.to_be_bytes());
                        self.put(&place, Cell::value(version, &payload));
                    }
                    self.put(&head, if prng.one_in(2) { chunked.with_deadline(deadline_ms) } else { chunked });
                }
                _ => self.put(&head, Cell::value(version, &payload)),
            }
        }

        fn flush(&mut self) {
            let entries: Entries = self.memtable.sorted().map(|(place, cell)| (place.to_vec(), cell.to_vec())).collect();
            self.memtable = Self::memtable();
            self.tables.push((std::rc::Rc::new(entries), self.seq));
        }

        fn expire(&mut self) {
            let tables = self.tables.clone();
            let is_newest = |place: &[u8], version| {
                let is_newer = |(at, cell): &(Vec<u8>, Vec<u8>)| at == place && parse_cell(cell).unwrap().newest() > version;
                !tables.iter().any(|(table, _)| table.iter().any(is_newer))
            };
            while self.memtable.pop_expired(self.now_ms, is_newest).is_some() {}
        }

        fn compact(&mut self, prng: &mut Prng) {
            let (inputs, outside): (Vec<_>, Vec<_>) = self.tables.drain(..).partition(|_| !prng.one_in(3));
            self.outside = outside.iter().map(|(entries, _)| entries.clone()).collect();
            let level = if outside.is_empty() { Level::Last } else { Level::One };
            let rules = Rules { expired_ms: self.now_ms, level, drop_early: self.drop_early };
            let seq = inputs.iter().map(|(_, seq)| *seq).max();
            let sources = inputs.into_iter().map(|(entries, seq)| VecSource { entries, at: 0, seq }).collect();
            let mut out: Entries = Vec::new();
            now(async {
                let mut merge = Merge::start(sources, rules).await.unwrap();
                loop {
                    match merge.step(self).await.unwrap() {
                        MergeStep::Entry => out.push((merge.place().to_vec(), merge.cell().to_vec())),
                        MergeStep::Nothing => {}
                        MergeStep::End => break,
                    }
                }
                assert_eq!(merge.tally().entries_out, out.len() as u64);
                self.forgotten += merge.tally().forgotten;
            });
            assert!(out.is_sorted_by(|a, b| a.0 < b.0));
            self.tables = outside;
            self.tables.extend(seq.map(|seq| (std::rc::Rc::new(out), seq)));
        }

        fn found(&self, place: &[u8]) -> Option<Vec<u8>> {
            let of_table =
                |entries: &Entries| entries.binary_search_by(|entry| entry.0[..].cmp(place)).ok().map(|index| entries[index].1.clone());
            let mut found = self.memtable.get(place).map(|(cell, _)| encoded(&cell));
            for (entries, seq) in &self.tables {
                if let Some(cell) = of_table(entries).filter(|_| *seq >= self.record.drop_seq) {
                    found = Some(joined(found, &cell));
                }
            }
            found
        }

        /// What is alive in the model is alive here, the same, with all its chunks; what is dead there is dead here.
        fn compare(&self) -> Result<(), String> {
            for (place, expected) in &self.model {
                let parsed = parse_place(place).unwrap();
                let expected = parse_cell(expected).unwrap();
                let found = self.found(place);
                let found = found.as_deref().map(|cell| parse_cell(cell).unwrap());
                if parsed.kind == Kind::Head {
                    let live = found.filter(|cell| cell.is_live(self.now_ms)).map(|cell| (cell.version, cell.body, cell.expiry));
                    let wanted = expected.is_live(self.now_ms).then_some((expected.version, expected.body, expected.expiry));
                    if live != wanted {
                        return Err(format!("{place:?} is {live:?}, should be {wanted:?}"));
                    }
                    continue;
                }
                let head = parse_cell(&self.model[&place_of_head(place)]).unwrap();
                if head.is_live(self.now_ms) && matches!(head.body, Body::Chunked { .. }) && head.version == expected.version {
                    assert_eq!(found.map(|cell| cell.body), Some(expected.body), "a chunk of a living string");
                }
            }
            Ok(())
        }
    }

    fn place_of_head(place: &[u8]) -> Vec<u8> {
        let mut head = place[..key_prefix_len(place).unwrap()].to_vec();
        head.push(Kind::Head as u8);
        head
    }

    /// Runs a seed; gives what was forgotten.
    fn run(seed: u64, drop_early: bool) -> Result<u64, String> {
        let mut prng = Prng::new(seed);
        let mut store = Store::new(drop_early);
        for _ in 0..1500 {
            match prng.below(40) {
                0 => store.flush(),
                1 => store.compact(&mut prng),
                2 => {
                    store.now_ms += prng.below(40);
                    store.expire();
                }
                3 if prng.one_in(2) => {
                    let floor = Version::put((store.seq + 10).saturating_sub(prng.below(60)), 0);
                    store.record.floor = store.record.floor.max(floor);
                }
                4 if prng.one_in(30) => {
                    // Everything so far is void: the memtable goes into a table, so that the log's sequence parts old from new.
                    store.flush();
                    store.record.drop_seq = store.seq + 1;
                    store.seq += 1;
                    store.model.clear();
                }
                _ => store.write(&mut prng),
            }
            store.compare()?;
        }
        Ok(store.forgotten)
    }

    #[test]
    fn no_old_value_comes_back_whatever_the_order_of_versions_flushes_merges_and_floors() {
        let forgotten: u64 = (0..40).map(|seed| run(seed, false).unwrap_or_else(|why| panic!("seed {seed}: {why}"))).sum();
        assert!(forgotten > 100, "only {forgotten} tombstones were forgotten: the test shows nothing");
    }

    #[test]
    fn the_planted_bug_of_forgetting_tombstones_early_is_found() {
        assert!((0..40).any(|seed| run(seed, true).is_err()));
    }

    fn merged(world: &Store, cells: &[(Vec<u8>, Cell<'_>)], expired_ms: WallMs) -> Vec<(Vec<u8>, Vec<u8>)> {
        let sources = cells.iter().map(|(place, cell)| VecSource { entries: vec![(place.clone(), encoded(cell))].into(), at: 0, seq: 9 });
        let sources = sources.collect();
        now(async {
            let rules = Rules { expired_ms, level: Level::Last, drop_early: false };
            let mut merge = Merge::start(sources, rules).await.unwrap();
            let mut out = Vec::new();
            loop {
                match merge.step(world).await.unwrap() {
                    MergeStep::Entry => out.push((merge.place().to_vec(), merge.cell().to_vec())),
                    MergeStep::Nothing => {}
                    MergeStep::End => return out,
                }
            }
        })
    }

    #[test]
    fn tombstones_and_remnants_stay_until_the_floor_has_passed_them() {
        let (mut world, place) = (Store::new(false), place_of(1, Kind::Head, b""));
        let expired = Cell::value(Version::put(7, 0), b"payload").with_deadline(50);
        assert_eq!(merged(&world, &[(place.clone(), expired)], 49), [(place.clone(), encoded(&expired))]);
        assert_eq!(merged(&world, &[(place.clone(), expired)], 50), [(place.clone(), encoded(&expired.remnant()))]);
        world.record.floor = Version::put(6, 9);
        assert_eq!(merged(&world, &[(place.clone(), expired)], 50).len(), 1);
        world.record.floor = Version::put(7, 0);
        assert_eq!(merged(&world, &[(place.clone(), expired)], 50).len(), 0);
        assert_eq!(merged(&world, &[(place.clone(), Cell::expire(Version::put(7, 0), 90))], 50).len(), 0);
        assert_eq!(merged(&world, &[(place.clone(), Cell::expire(Version::put(8, 0), 90))], 50).len(), 1);
        world.memtable.insert(&place, &Cell::value(Version::put(3, 0), b"older"), 1);
        assert_eq!(merged(&world, &[(place, expired)], 50).len(), 1, "something older lies in the memtable");
    }

    #[test]
    fn in_a_cluster_what_an_expired_value_left_stays_until_its_deadline_lies_below_an_earlier_floor() {
        let (mut world, place) = (Store::new(false), place_of(1, Kind::Head, b""));
        let at = |ms: u64| Version::put(ms << HLC_COUNTER_BITS, 3);
        (world.record.floor, world.remnants) = (at(90), Some(Version::ZERO));
        let left = |world: &Store, cell| merged(world, &[(place.clone(), cell)], 1000).len();
        let expired = Cell::value(at(7), b"payload").with_deadline(50);
        let deleted = Cell::tombstone(at(7));
        let revived = Cell { expiry: Expiry { version: at(60), deadline_ms: 70 }, ..Cell::value(at(7), b"payload") };
        let kept = Cell { expiry: Expiry { version: at(60), deadline_ms: 0 }, ..expired.remnant() };
        assert_eq!((left(&world, deleted), left(&world, expired)), (0, 1));
        assert_eq!(left(&world, Cell::expire(at(60), 70)), 0, "a deadline alone is no value's");
        for (floor, lefts) in [(50, [1, 1, 1]), (51, [0, 1, 1]), (61, [0, 1, 0]), (71, [0, 0, 0])] {
            world.remnants = Some(Version::put(floor << HLC_COUNTER_BITS, 0));
            assert_eq!([expired, revived, kept].map(|cell| left(&world, cell)), lefts, "{floor}");
        }
        world.record.floor = at(6);
        assert_eq!(left(&world, expired), 1, "nor before the floor itself");
    }

    #[test]
    fn a_head_takes_its_dead_elements_with_it_and_sums_add_within_their_floor() {
        let world = Store::new(false);
        let head = place_of(1, Kind::Head, b"");
        let body = |floor| Body::Collection { of: crate::base::record::CollectionType::Set, floor: Version::put(floor, 0), context: b"" };
        let collection = Cell { body: body(5), ..Cell::value(Version::put(9, 0), b"") };
        let sum = |floor, delta| Cell { body: Body::Sum { floor: Version::put(floor, 0), delta }, ..Cell::value(Version::put(9, 0), b"") };
        let (old, new) = (place_of(1, Kind::Member, b"a"), place_of(1, Kind::Member, b"b"));
        let count = place_of(1, Kind::DerivedCount, b"");
        let cells = [
            (head.clone(), collection),
            (old.clone(), Cell::value(Version::put(4, 0), b"")),
            (new.clone(), Cell::value(Version::put(5, 0), b"")),
            (count.clone(), sum(5, 2)),
            (count.clone(), sum(5, -1)),
            (place_of(2, Kind::Member, b"a"), Cell::value(Version::put(4, 0), b"")),
        ];
        let out = merged(&world, &cells, 0);
        assert!(out.iter().all(|(place, _)| *place != old) && out.len() == 4);
        assert!(out.contains(&(count.clone(), encoded(&sum(5, 1)))));
        let deleted = [&cells[1..], &[(head.clone(), Cell::tombstone(Version::put(9, 0)))]].concat();
        assert_eq!(merged(&world, &deleted, 0).len(), 2, "the tombstone and the other key's member");
    }
}
