//! The engine's figures, as they are published: names end in the unit, counters in `_total`.

use super::Engine;
use super::Planted;
use crate::base::metrics::{Meaning, Report, counter, gauge, peak};

static PEEKS: Meaning = counter("peeks_total", "Lookups in memory.");
static READS: Meaning = counter("reads_total", "Lookups that memory did not decide.");
static DISK_READS: Meaning = counter("disk_reads_total", "Blocks read from tables for lookups.");
static DISK_READ_BYTES: Meaning = counter("disk_read_bytes_total", "Bytes read from tables for lookups.");
static FLUSHES: Meaning = counter("flushes_total", "Memtables written as tables.");
static FLUSHED_BYTES: Meaning = counter("flushed_bytes_total", "Bytes of tables that flushes wrote.");
static COMPACTIONS: Meaning = counter("compactions_total", "Merges of tables.");
static COMPACTIONS_NESTED: Meaning =
    counter("compactions_nested_total", "Times that a merge into the last level gave way to a full level 0, and went on later.");
static COMPACTED_BYTES: Meaning = counter("compacted_bytes_total", "Bytes of tables that merges wrote.");
static EXPIRED: Meaning = counter("expired_total", "Keys whose deadline passed and that were counted.");
static FORGOTTEN: Meaning =
    counter("forgotten_total", "Tombstones, what expired values left, and lone deadlines, that merges dropped for good.");
static LAG_MEMORY_P50: Meaning = peak("expiry_lag_memory_p50_ms", "From deadline to reclaim, in memory: median.");
static LAG_MEMORY_P99: Meaning = peak("expiry_lag_memory_p99_ms", "From deadline to reclaim, in memory: 99th percentile.");
static LAG_DISK_P50: Meaning = peak("expiry_lag_disk_p50_ms", "From deadline to reclaim, on disk: median.");
static LAG_DISK_P99: Meaning = peak("expiry_lag_disk_p99_ms", "From deadline to reclaim, on disk: 99th percentile.");
static MEMTABLE_BYTES: Meaning = gauge("memtable_bytes", "Memory of memtables.");
static MEMTABLE_ENTRIES: Meaning = gauge("memtable_entries", "Cells in memtables.");
static TABLES: Meaning = gauge("tables", "Tables.");
static TABLE_BYTES: Meaning = gauge("table_bytes", "Bytes of tables.");
static TABLE_RAW_BYTES: Meaning = gauge("table_raw_bytes", "Bytes of places and cells in tables before any coding or compression.");
static TABLE_ENTRIES: Meaning = gauge("table_entries", "Cells in tables.");
static LEVEL0_RUNS: Meaning = peak("level0_runs", "Flushes that wait to be merged.");
static FILTER_INDEX_BYTES: Meaning = gauge("filter_index_bytes", "Memory of filters and indexes.");
static TABLE_MEMORY_BYTES: Meaning = gauge("table_memory_bytes", "Memory of filters, indexes and version bounds.");
static CACHE_BYTES: Meaning = gauge("cache_bytes", "Memory of the block cache.");
static CACHE_HITS: Meaning = counter("cache_hits_total", "Blocks found in the cache.");
static CACHE_MISSES: Meaning = counter("cache_misses_total", "Blocks not found in the cache.");
static CELL_CACHE_BYTES: Meaning = gauge("cell_cache_bytes", "Memory of the cache of single cells.");
static CELL_CACHE_ENTRIES: Meaning = gauge("cell_cache_entries", "Cells in that cache.");
static CELL_CACHE_HITS: Meaning = counter("cell_cache_hits_total", "Lookups that the cache of cells answered.");
static CELL_CACHE_MISSES: Meaning = counter("cell_cache_misses_total", "Lookups that it did not.");
static WAL_GROUPS: Meaning = counter("wal_groups_total", "Groups written to the log, one durable write each.");
static WAL_RECORDS: Meaning = counter("wal_records_total", "Records written to the log.");
static WAL_BYTES: Meaning = counter("wal_written_bytes_total", "Bytes of groups written to the log.");
static WAL_PREPARED_BYTES: Meaning = counter("wal_prepared_bytes_total", "Zeros written to prepare the log's segments.");
static WAL_SEGMENTS: Meaning = gauge("wal_segments", "Segments of the log.");
static WAL_LIVE_BYTES: Meaning = gauge("wal_live_bytes", "Bytes of the log that no table holds yet.");
static DISK_FULL: Meaning = peak("disk_full", "1 while writes are refused for want of room.");

impl Engine {
    /// Adds this engine's figures.
    pub fn report(&self, report: &mut Report) {
        let stats = self.stats();
        let wal = &stats.wal;
        let counts = [
            (&PEEKS, stats.peeks),
            (&READS, stats.reads),
            (&DISK_READS, stats.disk_reads),
            (&DISK_READ_BYTES, stats.disk_read_bytes),
            (&FLUSHES, stats.flushes),
            (&FLUSHED_BYTES, stats.flushed_bytes),
            (&COMPACTIONS, stats.merges),
            (&COMPACTIONS_NESTED, stats.merges_nested),
            (&COMPACTED_BYTES, stats.merged_bytes),
            (&EXPIRED, stats.expired),
            (&FORGOTTEN, stats.forgotten),
            (&LAG_MEMORY_P50, stats.lag_memory_p50_ms),
            (&LAG_MEMORY_P99, stats.lag_memory_p99_ms),
            (&LAG_DISK_P50, stats.lag_disk_p50_ms),
            (&LAG_DISK_P99, stats.lag_disk_p99_ms),
            (&MEMTABLE_BYTES, stats.memtable_bytes as u64),
            (&MEMTABLE_ENTRIES, stats.memtable_entries as u64),
            (&TABLES, stats.tables as u64),
            (&TABLE_BYTES, stats.table_bytes),
            (&TABLE_RAW_BYTES, stats.table_raw_bytes),
            (&TABLE_ENTRIES, stats.table_entries),
            (&LEVEL0_RUNS, stats.level0_runs as u64),
            (&FILTER_INDEX_BYTES, stats.filter_and_index_bytes as u64),
            (&TABLE_MEMORY_BYTES, stats.table_memory_bytes as u64),
            (&CACHE_BYTES, stats.cache.bytes as u64),
            (&CACHE_HITS, stats.cache.hits),
            (&CACHE_MISSES, stats.cache.misses),
            (&CELL_CACHE_BYTES, stats.cells.bytes as u64),
            (&CELL_CACHE_ENTRIES, stats.cells.entries as u64),
            (&CELL_CACHE_HITS, stats.cells.hits),
            (&CELL_CACHE_MISSES, stats.cells.misses),
            (&WAL_GROUPS, wal.groups),
            (&WAL_RECORDS, wal.records),
            (&WAL_BYTES, wal.written_bytes),
            (&WAL_PREPARED_BYTES, wal.prepared_bytes),
            (&WAL_SEGMENTS, wal.segments as u64),
            (&WAL_LIVE_BYTES, wal.live_bytes),
            (&DISK_FULL, u64::from(stats.disk_full)),
        ];
        for (meaning, value) in counts {
            report.count(meaning, &[], value);
        }
    }
}

impl Planted {
    /// All of them.
    pub const ALL: [Planted; 4] =
        [Planted::SyncSkipped, Planted::TornTailAccepted, Planted::TombstoneDroppedEarly, Planted::ClockRestartedLow];

    /// As it is called on the simulator's command line.
    pub fn name(self) -> &'static str {
        match self {
            Planted::SyncSkipped => "sync_skipped",
            Planted::TornTailAccepted => "torn_tail_accepted",
            Planted::TombstoneDroppedEarly => "tombstone_dropped_early",
            Planted::ClockRestartedLow => "clock_restarted_low",
        }
    }
}
