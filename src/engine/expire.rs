//! Reclaiming what expired, in the order of deadlines. Work is proportional to what expired, never to what is stored.
//!
//! A value is hidden from its deadline on by whoever reads it; this is about the rest. Each expiry is **counted** once, when its deadline
//! passes: by the memtable that holds the newest cell of the place, else by the table that does. A table ends with its deadlines in order;
//! a cursor per table goes forward in it as time passes. An entry there counts if no memtable and no other table holds a newer cell of its
//! place; filters and version bounds answer nearly always, a read decides the rest. Deadlines that pass while the node is down are
//! hidden, and reclaimed by merges, but not counted.
//!
//! **Freed** means: in a memtable, the payload (the cell becomes its remnant); on disk, what caches hold, at once, and the bytes in the
//! table with the next merge, for which the picker is told how much has expired. The lag from deadline to count is a histogram.

use super::EngineError;
use super::filter::prefix_hash;
use super::format::manifest::TableId;
use super::format::place_namespace_token;
use super::format::table::VolatileEntry;
use super::levels::{TableRef, Tree};
use super::memtable::{Expired, Memtable};
use super::table::Table;
use super::table_iter::Expiring;
use super::tables::{Memory, Tables, prefix_of};
use crate::base::record::{Version, vnode_of};
use crate::base::time::WallMs;
use hdrhistogram::Histogram;
use std::cell::{Cell, Ref, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

/// Longer lags are recorded as this one: an hour.
const LAG_MS_MAX: u64 = 3_600_000;
/// From this lag on merges give way to counting.
const LATE_MS: u64 = 50;

/// How late expiries were counted.
#[derive(Debug)]
pub struct Lags {
    histogram: Histogram<u64>,
    /// Payload bytes that were freed.
    pub freed_bytes: u64,
}

impl Default for Lags {
    fn default() -> Lags {
        let histogram = Histogram::new_with_bounds(1, LAG_MS_MAX, 2).expect("two digits up to an hour");
        Lags { histogram, freed_bytes: 0 }
    }
}

impl Lags {
    /// One expiry, counted at `now_ms`.
    pub fn record(&mut self, deadline_ms: WallMs, now_ms: WallMs) {
        self.histogram.saturating_record(now_ms.saturating_sub(deadline_ms));
    }

    /// Expiries counted.
    pub fn count(&self) -> u64 {
        self.histogram.len()
    }

    /// The lag, in ms, that this share (0 to 1) of expiries did not exceed.
    pub fn quantile_ms(&self, share: f64) -> u64 {
        // Asked of an empty one, it would count all of its buckets.
        if self.histogram.is_empty() { 0 } else { self.histogram.value_at_quantile(share) }
    }

    /// The whole histogram, in ms.
    pub fn histogram(&self) -> &Histogram<u64> {
        &self.histogram
    }
}

/// Reclaims up to `batch_max` expired cells of a memtable; true if more are due. `is_newest` (place, version of the deadline) says whether
/// no table can know a newer deadline; each is reported to `expired` once it is counted.
pub fn expire_memory(
    memtable: &mut Memtable,
    now_ms: WallMs,
    batch_max: usize,
    lags: &mut Lags,
    mut is_newest: impl FnMut(&[u8], Version) -> bool,
    mut expired: impl FnMut(&Expired),
) -> bool {
    for _ in 0..batch_max {
        let Some(one) = memtable.pop_expired(now_ms, &mut is_newest) else { return false };
        lags.record(one.deadline_ms, now_ms);
        lags.freed_bytes += one.freed_bytes as u64;
        expired(&one);
    }
    true
}

/// Where a table's deadlines are counted up to.
struct Count {
    counted_ms: WallMs,
    cursor: Option<Expiring>,
}

/// The cursors of a shard's tables.
pub struct DiskExpiry {
    counts: RefCell<BTreeMap<TableId, Count>>,
    /// Tables that are not known otherwise are counted from here on.
    opened_ms: WallMs,
    /// No deadline on disk that is still to be counted lies below.
    due_ms: Cell<WallMs>,
    lags: RefCell<Lags>,
    superseded: Cell<u64>,
    /// Counting is under way, and what was counted last was late.
    is_late: Cell<bool>,
    turns: super::manifest::Turns,
}

impl DiskExpiry {
    pub(super) fn new(opened_ms: WallMs) -> DiskExpiry {
        let turns = super::manifest::Turns::default();
        DiskExpiry {
            counts: RefCell::default(),
            opened_ms,
            due_ms: Cell::new(0),
            lags: RefCell::default(),
            superseded: Cell::new(0),
            is_late: Cell::new(false),
            turns,
        }
    }

    /// Expiries on disk and their lags.
    pub fn lags(&self) -> Ref<'_, Lags> {
        self.lags.borrow()
    }

    /// Deadlines that passed but whose value had been replaced, or given another deadline, before.
    pub fn superseded(&self) -> u64 {
        self.superseded.get()
    }

    /// Deadlines are counted late at this moment: other background work should give way.
    pub(super) fn is_late(&self) -> bool {
        self.is_late.get()
    }

    /// One at a time: counting, and changes of the tree that move deadlines from one table to another.
    pub(super) async fn turn(&self) -> super::manifest::TurnGuard<'_> {
        self.turns.take().await
    }

    /// A new table's deadlines are counted from `counted_ms` on.
    pub(super) fn start(&self, id: TableId, counted_ms: WallMs) {
        self.counts.borrow_mut().insert(id, Count { counted_ms, cursor: None });
        self.due_ms.set(0);
    }

    /// Up to where the deadlines of all these tables are counted.
    pub(super) fn counted_ms_of<'a>(&self, ids: impl Iterator<Item = &'a TableId>) -> WallMs {
        let counts = self.counts.borrow();
        ids.map(|id| counts.get(id).map_or(self.opened_ms, |count| count.counted_ms)).min().unwrap_or(self.opened_ms)
    }
}

impl Tables {
    /// No table can hold a newer cell of the place than `version`: for `expire_memory`.
    pub fn is_newest_in_memory(&self, place: &[u8], version: Version) -> bool {
        let vnode = vnode_of(place_namespace_token(place).1, self.config.vnodes);
        !self.may_hold_elsewhere(prefix_of(place), vnode, &Default::default(), |(_, greatest)| greatest > version)
    }

    /// Counts the deadlines on disk that have passed. Call it several times a second; it costs nothing when none has.
    ///
    /// # Errors
    /// Of reading tables.
    pub async fn expire(&self, memory: &impl Memory) -> Result<(), EngineError> {
        if self.io.wall_ms() < self.expiry.due_ms.get() {
            return Ok(());
        }
        let _turn = self.expiry.turn().await;
        self.count_expired(memory).await.map(|_| ())
    }

    /// The same for one who has the turn. Gives the instant up to which all tables are counted.
    pub(super) async fn count_expired(&self, memory: &impl Memory) -> Result<WallMs, EngineError> {
        let tree = self.tree();
        let now_ms = self.io.wall_ms();
        self.expiry.counts.borrow_mut().retain(|id, _| self.manifest.state().tables.contains_key(id));
        let mut due_ms = WallMs::MAX;
        for table in tree.tables() {
            let taken = self.expiry.counts.borrow_mut().remove(&table.record.id);
            let mut count = taken.unwrap_or(Count { counted_ms: self.expiry.opened_ms, cursor: None });
            let result = self.count_table(&tree, table, &mut count, now_ms, memory).await;
            self.expiry.is_late.set(false);
            due_ms = due_ms.min(count.cursor.as_ref().and_then(Expiring::next_deadline_ms).unwrap_or(WallMs::MAX));
            self.expiry.counts.borrow_mut().insert(table.record.id, count);
            result?;
        }
        self.expiry.due_ms.set(due_ms);
        Ok(now_ms)
    }

    async fn count_table(
        &self,
        tree: &Tree<Table>,
        table: &Rc<TableRef<Table>>,
        count: &mut Count,
        now_ms: WallMs,
        memory: &impl Memory,
    ) -> Result<(), EngineError> {
        if table.table.properties().counts.volatile > 0 && count.counted_ms < now_ms {
            let cursor = count.cursor.get_or_insert_with(|| table.table.expiring(count.counted_ms + 1));
            while let Some(entry) = cursor.next_until(now_ms).await? {
                self.count_entry(tree, table, &entry, memory).await?;
                if self.io.slice_is_over() {
                    self.io.yield_now().await;
                }
            }
        }
        count.counted_ms = count.counted_ms.max(now_ms);
        Ok(())
    }

    async fn count_entry(
        &self,
        tree: &Tree<Table>,
        table: &Rc<TableRef<Table>>,
        entry: &VolatileEntry<'_>,
        memory: &impl Memory,
    ) -> Result<(), EngineError> {
        let (namespace, token) = place_namespace_token(entry.place);
        let vnode = vnode_of(token, self.config.vnodes);
        let drop_seq = self.manifest.state().vnodes.get(namespace, vnode).drop_seq;
        if !table.record.is_valid(entry.place, vnode) || !memory.owns(vnode) || table.is_void(drop_seq) {
            return Ok(());
        }
        if memory.newest(entry.place).is_some_and(|newest| newest >= entry.version)
            || self.is_superseded(tree, table, entry, drop_seq).await?
        {
            self.expiry.superseded.set(self.expiry.superseded.get() + 1);
            return Ok(());
        }
        let now_ms = self.io.wall_ms();
        self.expiry.lags.borrow_mut().record(entry.deadline_ms, now_ms);
        self.expiry.is_late.set(now_ms.saturating_sub(entry.deadline_ms) > LATE_MS);
        memory.expired(entry.place);
        Ok(())
    }

    /// Another table holds a newer cell of the place; or the same one, and is looked at first. Called for every expiry: what is cheap
    /// and rules out most is asked first (a table's newest version, its filter, then the bounds of the vnode).
    async fn is_superseded(
        &self,
        tree: &Tree<Table>,
        table: &Rc<TableRef<Table>>,
        entry: &VolatileEntry<'_>,
        drop_seq: u64,
    ) -> Result<bool, EngineError> {
        let (place, version) = (entry.place, entry.version);
        let (namespace, token) = place_namespace_token(place);
        let vnode = vnode_of(token, self.config.vnodes);
        let hash = prefix_hash(prefix_of(place));
        let mut is_before = true;
        for (at, run) in tree.runs.iter().enumerate() {
            if tree.newest_from(at, Tables::newest_of) < version {
                break;
            }
            let Some(other) = run.find(place) else { continue };
            if Rc::ptr_eq(other, table) {
                is_before = false;
                continue;
            }
            if Tables::newest_of(&other.table) < version
                || !other.table.may_hold(hash)
                || other.is_void(drop_seq)
                || !other.record.is_valid(place, vnode)
                || Tables::newest_in(&other.table, namespace, vnode).is_none_or(|newest| newest < version)
            {
                continue;
            }
            let found = other.table.get(place, &self.cache).await?;
            if found.is_some_and(|cell| cell.cell().newest() > version || is_before && cell.cell().newest() == version) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}
