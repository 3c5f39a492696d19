//! Opening an engine: the manifest's tables, the log's records, the clock above everything that was ever stamped; with another core count
//! first the move from the old folders (`moving`). And closing it.

use super::cache::Cache;
use super::cell_cache::CellCache;
use super::format::manifest::Edit;
use super::format::wal::{Record, VnodesRecord, parse_record};
use super::manifest::{self, Manifest, State};
use super::memtable::Memtable;
use super::moving::vnode_edits;
use super::recover::NodeStore;
use super::store::{Core, Counters, Engine, EngineConfig, Mems, Room, Sealed, add, memtable_config};
use super::store_marks::RemnantFloors;
use super::tables::{Tables, TablesConfig};
use super::wal::{Wal, WalConfig, WalReport};
use super::wal_replay::WalReader;
use super::{EngineError, Planted, Seq};
use crate::base::record::{NamespaceId, Version};
use crate::base::time::HybridClock;
use crate::io::signal::Signal;
use crate::io::{Class, Io};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeSet, VecDeque};
use std::rc::Rc;
use std::sync::Arc;

/// What opening found.
#[derive(Clone, Debug, Default)]
pub struct OpenReport {
    /// This shard's log; from `read_old_logs` what it read of the old shards' logs.
    pub wal: WalReport,
    pub tables: usize,
    /// Tables that were written while the log was replayed.
    pub flushes: u64,
    /// The data came from another list of cores.
    pub moved: bool,
}

/// What replaying fills.
pub(super) struct Replayed {
    pub(super) active: Memtable,
    pub(super) newest: Version,
    namespaces: BTreeSet<NamespaceId>,
    pub(super) vnodes: Vec<VnodesRecord>,
    last: Seq,
}

impl Replayed {
    pub(super) fn new(config: &EngineConfig, vnodes: u32) -> Replayed {
        let active = Memtable::new(memtable_config(config, vnodes));
        Replayed { active, newest: Version::ZERO, namespaces: BTreeSet::new(), vnodes: Vec::new(), last: 0 }
    }

    /// Joins a record in.
    pub(super) fn take(&mut self, seq: Seq, record: &[u8]) -> Result<(), EngineError> {
        let damaged = |what| EngineError::corrupt("a record of the log", seq, what);
        match parse_record(record).map_err(damaged)? {
            Record::Batch(mut batch) => {
                while let Some(cell) = batch.next_cell().map_err(damaged)? {
                    self.newest = self.newest.max(cell.cell.newest());
                    self.active.insert(cell.place, &cell.cell, seq);
                    self.namespaces.insert(super::format::place_namespace_token(cell.place).0);
                }
            }
            Record::Vnodes(record) => self.vnodes.push(record),
            Record::Ceiling(hlc) => self.newest = self.newest.max(Version::put(hlc, 0)),
        }
        self.last = self.last.max(seq);
        Ok(())
    }

    /// The memtable, if it is so full that it must be flushed before more is taken.
    pub(super) fn full(&mut self, config: &EngineConfig, vnodes: u32) -> Option<Memtable> {
        let next = || Memtable::new(memtable_config(config, vnodes));
        (self.active.bytes() >= config.memtable_bytes && !self.active.is_empty()).then(|| std::mem::replace(&mut self.active, next()))
    }
}

impl Engine {
    /// Reads shard `config.core`'s share of the old logs where the data moves to another list of cores; nothing to do otherwise. Every
    /// shard does before any opens.
    ///
    /// # Errors
    /// Damage, with file and offset; a later format; `DiskFull`; of the disk. Nothing of the old order has changed.
    pub async fn read_old_logs(io: &Io, store: &Arc<NodeStore>, config: &EngineConfig) -> Result<OpenReport, EngineError> {
        match store.moving() {
            Some(moving) => Box::pin(moving.read(io, store, config)).await,
            None => Ok(OpenReport::default()),
        }
    }

    /// Opens shard `config.core` of a node's folder, after `read_old_logs`. Writes are taken only after `NodeStore::commit`.
    ///
    /// # Errors
    /// Damage, with file and offset; a later format; of the disk.
    pub async fn open(io: &Io, store: &Arc<NodeStore>, config: EngineConfig) -> Result<(Engine, OpenReport), EngineError> {
        assert!(config.core < store.cores());
        let dir = store.shard_dir(config.core);
        let mut report = OpenReport::default();
        if let Some(moving) = store.moving() {
            report.moved = true;
            manifest::write_new(io, &dir, store.identity(), &moving.state(store, config.core)).await?;
        } else if !manifest::exists(io, &dir).await? {
            manifest::write_new(io, &dir, store.identity(), &State::default()).await?;
        }
        let manifest = Manifest::open_settled(io, &dir, store.identity()).await?;
        let released = manifest.state().released;
        let tables = open_tables(io, store, &config, manifest).await?;
        report.tables = tables.tree().tables().count();
        let planted = config.planted.filter(|planted| *planted == Planted::TornTailAccepted);
        let mut reader = WalReader::open(io, &dir, store.identity(), released, planted).await?;
        let mut replayed = Replayed::new(&config, store.vnodes());
        let vnodes = store.vnodes();
        while reader.next_group(&mut |seq, record| replayed.take(seq, record)).await? {
            if let Some(full) = replayed.full(&config, vnodes) {
                tables.flush(&full, replayed.last).await?;
                report.flushes += 1;
            }
        }
        let edits: Vec<Edit> = replayed.vnodes.iter().flat_map(|one| vnode_edits(one, vnodes, &|_| true)).collect();
        if !edits.is_empty() {
            tables.manifest().commit(edits, |_| ()).await?;
        }
        let ceiling = ceiling(&tables, &replayed, reader.ceiling);
        let released = tables.manifest().state().released;
        let wal_config = WalConfig {
            identity: store.identity(),
            segment_bytes: config.wal_segment_bytes,
            segments_max: config.wal_segments_max,
            pending_bytes_max: config.wal_pending_bytes_max,
            released,
            planted: config.planted,
        };
        let (wal, wal_report) = Wal::start(io, &dir, wal_config, reader).await?;
        report.wal = wal_report;
        let engine = Engine { core: Rc::new(assemble(io, store, config, wal, tables, replayed, ceiling)) };
        engine.count_flushes(report.flushes);
        engine.start();
        Ok((engine, report))
    }

    /// As `NodeStore::format`.
    pub fn format(&self) -> u16 {
        self.core.store.format()
    }

    /// As `NodeStore::raise_format`. One at a time.
    ///
    /// # Errors
    /// Of the disk.
    pub async fn raise_format(&self, format: u16) -> Result<(), EngineError> {
        self.core.store.raise_format(&self.core.io, format).await
    }

    /// Counts memtables that were written as tables while logs were read.
    pub fn count_flushes(&self, flushes: u64) {
        add(&self.core.counters.flushes, flushes);
    }

    /// Starts the background work.
    fn start(&self) {
        let io = &self.core.io;
        drop(io.spawn(Class::Background, super::store_work::flush_loop(self.core.clone())));
        drop(io.spawn(Class::Background, super::store_work::merge_loop(self.core.clone())));
        drop(io.spawn(Class::Background, super::store_work::expiry_loop(self.core.clone())));
    }

    /// Makes everything durable and ends the background work. No write may follow.
    ///
    /// # Errors
    /// Something is not durable: why.
    pub async fn close(&self) -> Result<(), EngineError> {
        self.core.closing.set(true);
        self.core.flush_work.raise();
        self.core.progress.raise();
        self.core.wal.close().await
    }
}

/// The highest clock that may have been given out.
fn ceiling(tables: &Tables, replayed: &Replayed, log: u64) -> u64 {
    let tree = tables.tree();
    let in_tables = tree.tables().map(|table| table.table.info().versions.1.hlc()).max().unwrap_or(0);
    let state = tables.manifest().state();
    // Above every fence and floor too: a stamp below one would be refused.
    let floors = state.vnodes.iter().map(|(.., record)| record.floor.max(record.fence).hlc()).max().unwrap_or(0);
    log.max(in_tables).max(replayed.newest.hlc()).max(state.clock_ceiling).max(floors)
}

fn assemble(io: &Io, store: &Arc<NodeStore>, config: EngineConfig, wal: Wal, tables: Tables, replayed: Replayed, ceiling: u64) -> Core {
    let above = if config.planted == Some(Planted::ClockRestartedLow) { 0 } else { ceiling };
    wal.raise_clock(above);
    let state = tables.manifest().state().clone();
    let has_floors = state.vnodes.iter().any(|(_, _, _, record)| record.floor > Version::ZERO);
    let mut namespaces = replayed.namespaces;
    namespaces.extend(state.vnodes.iter().map(|(namespace, ..)| namespace));
    let tree = tables.tree();
    for table in tree.tables() {
        namespaces.extend(table.table.properties().bounds.iter().map(|bounds| bounds.namespace));
    }
    Core {
        io: io.clone(),
        store: store.clone(),
        clock: RefCell::new(HybridClock::new(above, config.core, store.cores())),
        wal,
        tables,
        mems: RefCell::new(Mems { active: replayed.active, sealed: VecDeque::<Sealed>::new() }),
        cells: CellCache::new(config.cache_bytes / 2, config.hash_seed),
        namespaces: RefCell::new(namespaces),
        has_floors: Cell::new(has_floors),
        remnant_floors: RemnantFloors::new(io.wall_ms()),
        room: Room::default(),
        stopped: RefCell::default(),
        closing: Cell::new(false),
        flush_work: Signal::new(),
        progress: Signal::new(),
        counters: Counters::default(),
        scratch: RefCell::default(),
        config,
    }
}

/// How this shard keeps tables.
pub(super) fn tables_config(store: &NodeStore, config: &EngineConfig) -> TablesConfig {
    TablesConfig {
        dir: store.tables_dir(),
        shard: config.core,
        vnodes: store.vnodes(),
        table_bytes: config.table_bytes_max,
        policy: config.policy,
        block_bytes: config.block_bytes,
        planted: config.planted,
        is_folder_lost: store.is_folder_lost(),
    }
}

async fn open_tables(io: &Io, store: &Arc<NodeStore>, config: &EngineConfig, manifest: Manifest) -> Result<Tables, EngineError> {
    let cache = Rc::new(Cache::new(config.cache_bytes / 2, config.hash_seed));
    Tables::open(io, tables_config(store, config), manifest, cache, Rc::default(), |id| store.file(id)).await
}
