//! The engine's background work: flushes, merges, expiry, forgetting; and what asks for it: `flush`, `compact_all`, `snapshot`.

use super::cache::CacheStats;
use super::expire::expire_memory;
use super::format::manifest::{Edit, VnodeRecord};
use super::manifest::State;
use super::pick::choose;
use super::store::{Core, Engine, Mems, add};
use super::table::Table;
use super::tables::Memory;
use super::wal::WalStats;
use super::{EngineError, Seq};
use crate::base::record::{NamespaceId, Version};
use crate::base::time::HLC_COUNTER_BITS;
use crate::io::signal::race;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

/// How long until a full disk is tried again.
const DISK_FULL_RETRY: Duration = Duration::from_millis(500);
/// How often deadlines are looked at.
const EXPIRY_PERIOD: Duration = Duration::from_millis(10);
/// Expiries in memory between two looks at the clock.
const EXPIRY_BATCH: usize = 256;
/// How often merges are looked for without a flush.
const MERGE_PERIOD: Duration = Duration::from_secs(1);

impl Memory for Core {
    fn owns(&self, vnode: u32) -> bool {
        self.store.owner(vnode) == self.config.core
    }

    fn oldest(&self, namespace: NamespaceId, vnode: u32) -> Option<Version> {
        let mems = self.mems.borrow();
        let sealed = mems.sealed.iter().filter_map(|sealed| sealed.table.version_bounds(namespace, vnode));
        let all = sealed.chain(mems.active.version_bounds(namespace, vnode));
        all.map(|(oldest, _)| oldest).min()
    }

    fn newest(&self, place: &[u8]) -> Option<Version> {
        let mems = self.mems.borrow();
        let sealed = mems.sealed.iter().filter_map(|sealed| sealed.table.get(place).map(|(cell, _)| cell.newest()));
        let active = mems.active.get(place).map(|(cell, _)| cell.newest());
        sealed.chain(active).max()
    }

    fn remnant_floor(&self, namespace: NamespaceId, vnode: u32) -> Version {
        Core::remnant_floor(self, namespace, vnode)
    }

    fn found_room(&self) {
        self.room.merges_lack.set(false);
    }

    fn expired(&self, place: &[u8]) {
        self.cells.remove(place);
        add(&self.counters.expired, 1);
    }
}

/// Writes sealed memtables as tables, oldest first.
pub(super) async fn flush_loop(core: Rc<Core>) {
    loop {
        let wait = core.flush_work.wait();
        if core.closing.get() || core.stopped.borrow().is_some() {
            break;
        }
        match flush_oldest(&core).await {
            Ok(true) => continue,
            Ok(false) => wait.await,
            Err(EngineError::DiskFull) => {
                core.room.flushes_lack.set(true);
                core.io.sleep(DISK_FULL_RETRY).await;
            }
            Err(error) => {
                core.stop(&error);
                break;
            }
        }
    }
    core.progress.raise();
}

/// Flushes one memtable. False where there is none.
async fn flush_oldest(core: &Core) -> Result<bool, EngineError> {
    let Some((table, last)) = core.mems.borrow().sealed.front().map(|sealed| (sealed.table.clone(), sealed.last)) else {
        return Ok(false);
    };
    core.tables.flush(&table, last).await?;
    core.mems.borrow_mut().sealed.pop_front();
    add(&core.counters.flushes, 1);
    add(&core.counters.flushed_bytes, table.live_bytes() as u64);
    core.wal.release(last);
    core.room.flushes_lack.set(false);
    core.progress.raise();
    core.tables.reap().await?;
    Ok(true)
}

/// Merges tables as they become due.
pub(super) async fn merge_loop(core: Rc<Core>) {
    loop {
        let wait = core.progress.wait();
        if core.closing.get() || core.stopped.borrow().is_some() {
            return;
        }
        if !core.store.is_complete() {
            // The old order of cores may still come back, and reads the same files.
            core.io.sleep(EXPIRY_PERIOD).await;
            continue;
        }
        let merged = core.tables.compact(&*core).await;
        // While writes are refused there is nothing to flush: merges alone can find that there is room again, with their first slice.
        core.room.merges_lack.set(matches!(merged, Err(EngineError::DiskFull)));
        match merged {
            Ok(Some(merged)) => {
                add(if merged.is_done { &core.counters.merges } else { &core.counters.merges_nested }, 1);
                add(&core.counters.merged_bytes, merged.written_bytes);
                add(&core.counters.forgotten, merged.tally.forgotten);
                core.progress.raise();
            }
            Ok(None) => race(wait, core.io.sleep(MERGE_PERIOD)).await,
            Err(EngineError::DiskFull) => {
                core.flush_work.raise();
                core.io.sleep(DISK_FULL_RETRY).await;
            }
            Err(_) if core.closing.get() => return,
            Err(error) => return core.stop(&error),
        }
        if let Err(error) = core.tables.reap().await {
            return core.stop(&error);
        }
    }
}

/// Reclaims what has expired, and lets tombstones be forgotten where this node alone decides that.
pub(super) async fn expiry_loop(core: Rc<Core>) {
    let mut forget_at = core.io.now();
    loop {
        core.io.sleep(EXPIRY_PERIOD).await;
        if core.closing.get() || core.stopped.borrow().is_some() {
            return;
        }
        while expire_in_memory(&core) {
            core.io.yield_now().await;
        }
        let worked = core.tables.expire(&*core).await;
        let forgotten = match core.config.forget_after_ms.filter(|_| core.io.now() >= forget_at) {
            Some(after_ms) => {
                forget_at = core.io.now().plus(Duration::from_millis((after_ms / 8).clamp(100, 600_000)));
                let floor = core.io.wall_ms().saturating_sub(after_ms) << HLC_COUNTER_BITS;
                raise_floors(&core, Version::put(floor, 0)).await
            }
            None => Ok(()),
        };
        match worked.and(forgotten) {
            Ok(()) | Err(EngineError::DiskFull) => {}
            Err(_) if core.closing.get() => return,
            Err(error) => return core.stop(&error),
        }
    }
}

/// One batch; true if more are due.
fn expire_in_memory(core: &Core) -> bool {
    let now_ms = core.io.wall_ms();
    let mut mems = core.mems.borrow_mut();
    let Mems { active, sealed } = &mut *mems;
    let newest = |place: &[u8], version: Version| {
        let above = sealed.iter().all(|one| one.table.get(place).is_none_or(|(cell, _)| cell.expiry.version <= version));
        above && core.tables.is_newest_in_memory(place, version)
    };
    let mut lags = core.counters.lags.borrow_mut();
    expire_memory(active, now_ms, EXPIRY_BATCH, &mut lags, newest, |_| add(&core.counters.expired, 1))
}

/// Raises the floors of all vnodes of every namespace here.
async fn raise_floors(core: &Core, floor: Version) -> Result<(), EngineError> {
    let namespaces: Vec<NamespaceId> = core.namespaces.borrow().iter().copied().collect();
    if namespaces.is_empty() {
        return Ok(());
    }
    // Set before it is durable: what is refused a moment too early was not promised to anybody.
    core.has_floors.set(true);
    core.clock.borrow_mut().observe(floor.hlc());
    let vnodes = core.store.vnodes();
    let raised = |state: &State| namespaces.iter().flat_map(|&namespace| raised(state, namespace, vnodes, floor)).collect();
    core.tables.manifest().update(raised).await
}

/// The records of a namespace that a floor changes.
fn raised(state: &State, namespace: NamespaceId, vnodes: u32, floor: Version) -> Vec<Edit> {
    let records: Vec<VnodeRecord> = (0..vnodes).map(|vnode| state.vnodes.get(namespace, vnode)).collect();
    let (mut edits, mut first) = (Vec::new(), 0);
    for run in records.chunk_by(|a, b| a == b) {
        let last = first + run.len() as u32 - 1;
        let record = VnodeRecord { floor: run[0].floor.max(floor), fence: run[0].fence.max(floor), ..run[0] };
        if record != run[0] {
            edits.push(Edit::Vnodes { namespace, first, last, record });
        }
        first = last + 1;
    }
    edits
}

impl Engine {
    /// Writes everything that is in memory as tables.
    ///
    /// # Errors
    /// `DiskFull`, `Stopped`.
    pub async fn flush(&self) -> Result<(), EngineError> {
        let core = &self.core;
        let upto: Seq = core.wal.last();
        let mut is_sealed = false;
        loop {
            let wait = core.progress.wait();
            if let Some(why) = self.stopped() {
                return Err(EngineError::Stopped(why));
            }
            if core.closing.get() {
                return Err(EngineError::Stopped("closed".into()));
            }
            is_sealed = is_sealed || core.seal();
            if is_sealed && core.mems.borrow().sealed.front().is_none_or(|sealed| sealed.last > upto) {
                return Ok(());
            }
            if core.room.is_lacking() {
                return Err(EngineError::DiskFull);
            }
            race(wait, core.io.sleep(DISK_FULL_RETRY)).await;
        }
    }

    /// Flushes, then merges until no merge is due.
    ///
    /// # Errors
    /// As `flush`; of the disk.
    pub async fn compact_all(&self) -> Result<(), EngineError> {
        self.flush().await?;
        loop {
            let shape = self.core.tables.shape();
            if shape.merges.is_empty() && choose(&shape, &self.core.config.policy).is_none() {
                return Ok(());
            }
            if let Some(why) = self.stopped() {
                return Err(EngineError::Stopped(why));
            }
            if self.core.room.is_lacking() {
                return Err(EngineError::DiskFull);
            }
            self.core.progress.raise();
            self.core.io.sleep(EXPIRY_PERIOD).await;
        }
    }

    /// A copy of this shard by hard links below `to`, a folder on the same file system laid out as a node's: `to/tables` and this shard's
    /// folder are made; `NodeStore::snapshot_layout` completes it when all shards are done.
    ///
    /// # Errors
    /// As `flush`; of the disk.
    pub async fn snapshot(&self, to: &Path) -> Result<(), EngineError> {
        self.flush().await?;
        let core = &self.core;
        let (tables, shard) = (to.join("tables"), to.join(core.store.shard_name(core.config.core)));
        for dir in [to, &tables, &shard] {
            core.io.make_dir(dir).await?;
        }
        core.tables.snapshot(&tables, &shard).await?;
        Ok(core.io.sync_dir(to).await?)
    }

    /// Counters and sizes.
    pub fn stats(&self) -> EngineStats {
        let core = &self.core;
        let (memtable_bytes, memtable_entries) = {
            let mems = core.mems.borrow();
            let sealed = mems.sealed.iter().map(|sealed| &*sealed.table);
            sealed.chain([&mems.active]).fold((0, 0), |sum, table| (sum.0 + table.bytes(), sum.1 + table.len()))
        };
        let tree = core.tables.tree();
        let sum = |of: fn(&Table) -> usize| tree.tables().map(|table| of(&table.table)).sum();
        let disk = core.tables.expiry().lags();
        let memory = core.counters.lags.borrow();
        EngineStats {
            peeks: core.counters.peeks.get(),
            reads: core.counters.reads.get(),
            flushes: core.counters.flushes.get(),
            flushed_bytes: core.counters.flushed_bytes.get(),
            merges: core.counters.merges.get(),
            merges_nested: core.counters.merges_nested.get(),
            merged_bytes: core.counters.merged_bytes.get(),
            expired: core.counters.expired.get(),
            forgotten: core.counters.forgotten.get(),
            lag_memory_p50_ms: memory.quantile_ms(0.5),
            lag_memory_p99_ms: memory.quantile_ms(0.99),
            lag_disk_p50_ms: disk.quantile_ms(0.5),
            lag_disk_p99_ms: disk.quantile_ms(0.99),
            memtable_bytes,
            memtable_entries,
            tables: tree.tables().count(),
            table_bytes: tree.tables().map(|table| table.record.bytes).sum(),
            table_raw_bytes: tree.tables().map(|table| table.table.info().counts.raw_bytes).sum(),
            table_entries: tree.tables().map(|table| table.record.entries).sum(),
            level0_runs: tree.level0_runs(),
            filter_and_index_bytes: sum(Table::filter_and_index_bytes),
            table_memory_bytes: sum(Table::memory_bytes),
            cache: core.tables.cache.stats(),
            cells: core.cells.stats(),
            wal: core.wal.stats(),
            disk_full: core.room.is_lacking() || core.wal.stats().disk_full,
            disk_reads: core.tables.stats().reads.get(),
            disk_read_bytes: core.tables.stats().read_bytes.get(),
        }
    }
}

/// What an engine has done and what it holds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct EngineStats {
    pub peeks: u64,
    /// Lookups that went through `read` (they may still have found everything in memory).
    pub reads: u64,
    /// Reads of blocks for lookups.
    pub disk_reads: u64,
    pub disk_read_bytes: u64,
    pub flushes: u64,
    pub flushed_bytes: u64,
    pub merges: u64,
    /// Times that one gave way to another.
    pub merges_nested: u64,
    pub merged_bytes: u64,
    pub expired: u64,
    /// Tombstones, what expired values left, and deadlines that merges dropped.
    pub forgotten: u64,
    /// From deadline to reclaim.
    pub lag_memory_p50_ms: u64,
    pub lag_memory_p99_ms: u64,
    pub lag_disk_p50_ms: u64,
    pub lag_disk_p99_ms: u64,
    pub memtable_bytes: usize,
    pub memtable_entries: usize,
    pub tables: usize,
    pub table_bytes: u64,
    /// Of places and cells before any coding.
    pub table_raw_bytes: u64,
    pub table_entries: u64,
    pub level0_runs: usize,
    pub filter_and_index_bytes: usize,
    pub table_memory_bytes: usize,
    /// Of blocks.
    pub cache: CacheStats,
    pub cells: CacheStats,
    pub wal: WalStats,
    pub disk_full: bool,
}
