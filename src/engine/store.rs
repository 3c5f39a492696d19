//! The engine of one core: log, memtables, tables, and the clock that stamps. Everything the shard above needs of storage.
//!
//! A write is one log record joined into the memtable at once: visible, and durable a little later. What shows a cell that is not durable
//! yet says so (`settled`), and whoever shows it to the world waits for that. A full memtable is sealed and written as a table in the
//! background; then the log's segments are released. Reads join what memtables and tables hold of a place and stop as soon as
//! version bounds say that nothing older can matter.

use super::batch::{Batch, KeyRef};
use super::cell_cache::CellCache;
use super::expire::Lags;
use super::memtable::{self, Memtable, MemtableConfig, oldest_part};
use super::pace::rate;
use super::pick::Policy;
use super::recover::NodeStore;
use super::store_marks::RemnantFloors;
use super::tables::Tables;
use super::wal::{CEILING_AHEAD, DurableHook, Wal, WalStats};
use super::{EngineError, Planted, Seq};
use crate::base::record::{NamespaceId, Version, vnode_of};
use crate::base::time::{HybridClock, Mono, WallMs};
use crate::io::Io;
use crate::io::signal::Signal;
use crate::limits::{BLOCK_BYTES, CLOCK_SKEW_MS_MAX, TABLE_BYTES_MAX, WAL_SEGMENT_BYTES};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeSet, VecDeque};
use std::rc::Rc;
use std::sync::Arc;

/// Memtables that wait for their flush.
pub(super) const SEALED_MAX: usize = 2;
/// This part of the last memtable is for writes that were let in already when the rest was full.
const RESERVE_PART: usize = 16;
/// The log is so full that the memtable is flushed before it is.
const LOG_FULL: f64 = 0.7;
/// Segments of the log: 384 MiB, of which 0.7 fill before a flush is forced, so at least 256 MiB can be live.
const WAL_SEGMENTS: usize = 12;

/// How one core's engine is run.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    pub core: u16,
    /// This node among its cluster's writers.
    pub writer: u16,
    /// Of one memtable; there are up to three.
    pub memtable_bytes: usize,
    pub memtable_chunk_bytes: usize,
    /// Half of it for blocks of tables, half for single cells.
    pub cache_bytes: usize,
    pub wal_segment_bytes: usize,
    pub wal_segments_max: usize,
    pub wal_pending_bytes_max: usize,
    pub table_bytes_max: u64,
    pub block_bytes: usize,
    /// A tombstone may be forgotten after this long, where this node alone holds the data; `None`: only by `set_floor`.
    pub forget_after_ms: Option<u64>,
    /// In a cluster: what was begun while a value was alive is over, by every node's clock, so long after all know that it has expired.
    /// `None`: this node alone holds the data.
    pub begun_is_over_ms: Option<u64>,
    /// Seeds the hash tables; drawn at start.
    pub hash_seed: u64,
    /// When tables are merged.
    pub policy: Policy,
    pub planted: Option<Planted>,
}

impl EngineConfig {
    /// The usual shares of `memory_bytes`, this core's whole budget.
    pub fn new(core: u16, memory_bytes: usize, hash_seed: u64) -> EngineConfig {
        let memtable_bytes = (memory_bytes / 8).clamp(1 << 20, 64 << 20);
        EngineConfig {
            core,
            writer: 0,
            memtable_bytes,
            memtable_chunk_bytes: memtable::CHUNK_BYTES.min(memtable_bytes / 8).next_multiple_of(4096),
            cache_bytes: memory_bytes.saturating_sub(3 * memtable_bytes + memory_bytes / 16),
            wal_segment_bytes: WAL_SEGMENT_BYTES,
            wal_segments_max: WAL_SEGMENTS,
            wal_pending_bytes_max: WAL_SEGMENT_BYTES,
            table_bytes_max: (memory_bytes as u64 / 4).clamp(4 << 20, TABLE_BYTES_MAX / 4),
            block_bytes: BLOCK_BYTES,
            forget_after_ms: None,
            begun_is_over_ms: None,
            hash_seed,
            policy: Policy::new(memtable_bytes as u64),
            planted: None,
        }
    }
}

/// Memory alone does not decide: `read` does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NeedsDisk;

/// One core's engine. Cheap to clone; belongs to one thread.
#[derive(Clone)]
pub struct Engine {
    pub(super) core: Rc<Core>,
}

/// A memtable that takes no more writes.
pub(super) struct Sealed {
    pub(super) table: Rc<Memtable>,
    /// The last log record that may have put something into it.
    pub(super) last: Seq,
}

pub(super) struct Mems {
    pub(super) active: Memtable,
    /// Oldest first.
    pub(super) sealed: VecDeque<Sealed>,
}

impl Mems {
    /// No more than `reserve` bytes can be written before a flush has ended.
    fn is_full(&self, memtable_bytes: usize, reserve: usize) -> bool {
        self.sealed.len() >= SEALED_MAX && self.active.bytes() + reserve >= memtable_bytes
    }

    /// Bytes that may be written before memory is full, and bytes of the memtable whose flush makes room; None: no flush is due.
    fn ahead(&self, memtable_bytes: usize) -> Option<(u64, u64)> {
        let first = self.sealed.front()?;
        let used = self.sealed.len() * memtable_bytes + self.active.bytes() + memtable_bytes / RESERVE_PART;
        let room = ((SEALED_MAX + 1) * memtable_bytes).saturating_sub(used);
        Some((room as u64, first.table.live_bytes() as u64))
    }
}

/// Who found no room on the disk when it last tried: while anybody does, nothing that takes room is taken.
#[derive(Default)]
pub(super) struct Room {
    pub(super) flushes_lack: Cell<bool>,
    pub(super) merges_lack: Cell<bool>,
}

impl Room {
    pub(super) fn is_lacking(&self) -> bool {
        self.flushes_lack.get() || self.merges_lack.get()
    }
}

pub(super) struct Core {
    pub(super) io: Io,
    pub(super) store: Arc<NodeStore>,
    pub(super) config: EngineConfig,
    pub(super) wal: Wal,
    pub(super) tables: Tables,
    pub(super) mems: RefCell<Mems>,
    /// Heads, joined over all tables, of places that no memtable holds: a write takes its place out, so what is here is all there is.
    /// Flushes and merges change no meaning.
    pub(super) cells: CellCache,
    pub(super) clock: RefCell<HybridClock>,
    /// Namespaces that were ever written here.
    pub(super) namespaces: RefCell<BTreeSet<NamespaceId>>,
    pub(super) has_floors: Cell<bool>,
    pub(super) remnant_floors: RemnantFloors,
    pub(super) room: Room,
    pub(super) stopped: RefCell<Option<String>>,
    pub(super) closing: Cell<bool>,
    /// There is something to flush, or the end has come.
    pub(super) flush_work: Signal,
    /// A flush or a merge has ended.
    pub(super) progress: Signal,
    pub(super) counters: Counters,
    /// For encoding places.
    pub(super) scratch: RefCell<Vec<u8>>,
}

#[derive(Default)]
pub(super) struct Counters {
    pub(super) peeks: Cell<u64>,
    pub(super) reads: Cell<u64>,
    pub(super) flushes: Cell<u64>,
    pub(super) flushed_bytes: Cell<u64>,
    pub(super) merges: Cell<u64>,
    pub(super) merges_nested: Cell<u64>,
    pub(super) merged_bytes: Cell<u64>,
    pub(super) expired: Cell<u64>,
    pub(super) forgotten: Cell<u64>,
    pub(super) lags: RefCell<Lags>,
}

pub(super) fn add(counter: &Cell<u64>, n: u64) {
    counter.set(counter.get() + n);
}

impl Core {
    pub(super) fn memtable_config(&self) -> MemtableConfig {
        memtable_config(&self.config, self.store.vnodes())
    }

    /// Seals the memtable that is being written, unless it is empty. False where too many wait already.
    pub(super) fn seal(&self) -> bool {
        let mut mems = self.mems.borrow_mut();
        if mems.active.is_empty() && mems.active.seqs().is_none() {
            return true;
        }
        if mems.sealed.len() >= SEALED_MAX {
            return false;
        }
        let next = Memtable::new(self.memtable_config());
        let table = Rc::new(std::mem::replace(&mut mems.active, next));
        mems.sealed.push_back(Sealed { table, last: self.wal.last() });
        drop(mems);
        self.flush_work.raise();
        true
    }

    fn is_due(&self) -> bool {
        let mems = self.mems.borrow();
        mems.active.bytes() >= self.config.memtable_bytes || (self.wal.fullness() > LOG_FULL && mems.sealed.is_empty())
    }

    /// A manifest that can be written no more stops the shard, whoever finds it.
    pub(super) fn checked(&self, committed: Result<(), EngineError>) -> Result<(), EngineError> {
        if let Err(why) = committed.as_ref()
            && !matches!(why, EngineError::DiskFull)
        {
            self.stop(why);
        }
        committed
    }

    pub(super) fn stop(&self, why: &EngineError) {
        self.stopped.borrow_mut().get_or_insert(why.to_string());
        self.flush_work.raise();
        self.progress.raise();
    }
}

pub(super) fn memtable_config(config: &EngineConfig, vnodes: u32) -> MemtableConfig {
    MemtableConfig { vnodes, hash_seed: config.hash_seed, chunk_bytes: config.memtable_chunk_bytes }
}

impl Engine {
    /// A version for a write that begins now: above every version stored here, and above every one given before a restart.
    pub fn stamp(&self, now_ms: WallMs) -> Version {
        let hlc = self.core.clock.borrow_mut().stamp(now_ms);
        self.core.wal.raise_clock(hlc);
        Version::put(hlc, self.core.config.writer)
    }

    /// Notes what the wall clock shows.
    pub fn look_at_clock(&self, now_ms: WallMs) {
        self.core.clock.borrow_mut().look(now_ms);
    }

    /// The core's clock, for who stamps and observes by rules of its own.
    pub fn with_clock<R>(&self, f: impl FnOnce(&mut HybridClock) -> R) -> R {
        let mut clock = self.core.clock.borrow_mut();
        let given = f(&mut clock);
        self.core.wal.raise_clock(clock.last());
        given
    }

    /// No restart stamps at or below this clock.
    pub fn ceiling(&self) -> u64 {
        self.core.tables.manifest().state().clock_ceiling
    }

    /// A clock of this node may have given `version`, as far as this core knows.
    pub fn may_have_given(&self, version: Version, now_ms: WallMs) -> bool {
        let mut clock = self.core.clock.borrow_mut();
        clock.look(now_ms);
        clock.may_have_given(version.hlc(), CLOCK_SKEW_MS_MAX)
    }

    /// The next stamp lies above `version`, which came from elsewhere.
    pub fn observe(&self, version: Version) {
        self.core.clock.borrow_mut().observe(version.hlc());
        self.core.wal.raise_clock(version.hlc());
    }

    /// Waits until no restart can stamp `version` again: before it is told to somebody while nothing is stored under it.
    ///
    /// # Errors
    /// `Stopped`, `Overloaded`, `DiskFull`.
    pub async fn make_ceiling_durable(&self, version: Version) -> Result<(), EngineError> {
        // In the manifest, not in the log: the log's groups go when their data is in tables, and with them what they say of the clock.
        let manifest = self.core.tables.manifest();
        if manifest.state().clock_ceiling >= version.hlc() {
            return Ok(());
        }
        self.core.checked(manifest.raise_ceiling(version.hlc().saturating_add(CEILING_AHEAD)).await)
    }

    /// Stores a batch: visible at once, durable when `durable()` has reached what this gives.
    ///
    /// # Errors
    /// Nothing was stored: `Overloaded` (flushes or the log do not keep up), `DiskFull` (only for what stores something), `Superseded` (a
    /// part of a cell is at or below its vnode's floor), `Stopped`, `TooLarge`.
    pub fn write(&self, batch: &Batch) -> Result<Seq, EngineError> {
        self.is_above_floors(batch)?;
        self.write_admitted(batch)
    }

    /// The same whatever the floors: for who has asked `cluster::forget` in this turn, which knows what may lie below them.
    ///
    /// # Errors
    /// As `write`, but never `Superseded`.
    pub fn write_admitted(&self, batch: &Batch) -> Result<Seq, EngineError> {
        let core = &self.core;
        assert!(core.store.is_committed(), "writes begin when the order of cores is in force");
        assert!(!batch.is_empty());
        self.may_write(batch)?;
        let seq = core.wal.append(batch.record(), batch.is_urgent())?;
        core.clock.borrow_mut().observe(batch.newest().hlc());
        core.wal.raise_clock(batch.newest().hlc());
        {
            let mut mems = core.mems.borrow_mut();
            let mut cells = batch.cells();
            while let Some(cell) = cells.next_cell().expect("a batch that was encoded here") {
                core.cells.remove(cell.place);
                mems.active.insert(cell.place, &cell.cell, seq);
                let namespace = super::format::place_namespace_token(cell.place).0;
                if !core.namespaces.borrow().contains(&namespace) {
                    core.namespaces.borrow_mut().insert(namespace);
                }
            }
        }
        if core.is_due() {
            core.seal();
        }
        Ok(seq)
    }

    fn may_write(&self, batch: &Batch) -> Result<(), EngineError> {
        let core = &self.core;
        if let Some(why) = &*core.stopped.borrow() {
            return Err(EngineError::Stopped(why.clone()));
        }
        if core.room.is_lacking() && batch.has_payload() {
            return Err(EngineError::DiskFull);
        }
        let is_full = core.mems.borrow().is_full(core.config.memtable_bytes, 0);
        if is_full || core.tables.is_stalled() && batch.has_payload() {
            return Err(if core.room.is_lacking() { EngineError::DiskFull } else { EngineError::Overloaded });
        }
        Ok(())
    }

    fn is_above_floors(&self, batch: &Batch) -> Result<(), EngineError> {
        let core = &self.core;
        if core.has_floors.get() {
            let mut cells = batch.cells();
            while let Some(cell) = cells.next_cell().expect("a batch that was encoded here") {
                let (namespace, token) = super::format::place_namespace_token(cell.place);
                // Each part by itself: under a new deadline an old value could come back.
                if oldest_part(&cell.cell) <= self.floor_of(namespace, vnode_of(token, core.store.vnodes())) {
                    return Err(EngineError::Superseded);
                }
            }
        }
        Ok(())
    }

    /// Bytes a second that may be written so that flushes and merges keep up without a cliff; None: as fast as they come.
    pub fn write_rate(&self) -> Option<f64> {
        let core = &self.core;
        if core.room.is_lacking() || core.wal.is_disk_full() || core.closing.get() || self.stopped().is_some() {
            // Waiting would not help: a write is refused at once.
            return None;
        }
        let now = core.io.now();
        let flushes = core.mems.borrow().ahead(core.config.memtable_bytes).map(|(room, sealed_bytes)| {
            // A flush makes room in the log too.
            let in_log = (1.0 - core.wal.fullness()) * (core.config.wal_segments_max * core.config.wal_segment_bytes) as f64;
            let room = room.min(in_log.max(0.0) as u64);
            let (left, speed) = (core.tables.flushing.left().unwrap_or(sealed_bytes), core.tables.flushing.speed(now));
            rate(room, left, speed)
        });
        [flushes, self.merge_rate(now)].into_iter().flatten().reduce(f64::min)
    }

    fn merge_rate(&self, now: Mono) -> Option<f64> {
        let core = &self.core;
        let (tables, memtable_bytes) = (&core.tables, core.config.memtable_bytes as u64);
        let in_memory = {
            let mems = core.mems.borrow();
            mems.sealed.len() as u64 * memtable_bytes + mems.active.bytes() as u64
        };
        let policy = &tables.config().policy;
        let above_max = (tables.underway.get().last as f64 * policy.above_room_share) as u64;
        let behind = tables.behind(memtable_bytes, in_memory)?;
        Some(behind.rate(policy.pace_runs() as u64 * memtable_bytes, above_max, tables.merging.speed(now)))
    }

    /// Flushes and merges are so far behind that `write` will soon refuse: a writer waits until they are not.
    pub fn is_behind(&self) -> bool {
        let core = &self.core;
        // Where the disk is full, or the shard stopped, it is refused at once: waiting would not help.
        let is_refused = core.room.is_lacking() || core.wal.is_disk_full() || self.stopped().is_some();
        let (memtable_bytes, reserve) = (core.config.memtable_bytes, core.config.memtable_bytes / RESERVE_PART);
        let mems = core.mems.borrow();
        let is_log_full = !mems.sealed.is_empty() && core.wal.fullness() >= 1.0;
        !is_refused && (is_log_full || mems.is_full(memtable_bytes, reserve) || core.tables.is_stalled())
    }

    /// The namespaces whose tables are packed from now on; what is on disk follows when merges rewrite it.
    pub fn set_packed(&self, namespaces: &[NamespaceId]) {
        self.core.tables.set_packed(namespaces);
    }

    /// Everything up to here is on the disk.
    pub fn durable(&self) -> Seq {
        self.core.wal.durable()
    }

    /// Waits until `seq` is on the disk.
    ///
    /// # Errors
    /// `Stopped` when it never will be.
    pub async fn wait_durable(&self, seq: Seq) -> Result<(), EngineError> {
        self.core.wal.wait(seq).await
    }

    /// Has `hook` called with the durable sequence after each group of the log, or once with why the log stopped.
    pub fn on_durable(&self, hook: DurableHook) {
        self.core.wal.on_durable(hook);
    }

    /// Why this shard acknowledges nothing any more.
    pub fn stopped(&self) -> Option<String> {
        self.core.wal.stopped().or_else(|| self.core.stopped.borrow().clone())
    }

    /// Below a vnode's floor the dead may have been forgotten: writes at or below it are refused.
    pub fn floor_of(&self, namespace: NamespaceId, vnode: u32) -> Version {
        self.core.tables.manifest().state().vnodes.get(namespace, vnode).floor
    }

    /// The state of the log.
    pub fn wal_stats(&self) -> WalStats {
        self.core.wal.stats()
    }

    /// The vnode of a key.
    pub fn vnode_of(&self, key: KeyRef<'_>) -> u32 {
        vnode_of(key.token, self.core.store.vnodes())
    }
}
