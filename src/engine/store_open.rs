//! Opening an engine: the manifest's tables, the log's records, the clock above everything that was ever stamped; with another core count
//! first the move from the old folders. And closing it.

use super::cache::Cache;
use super::cell_cache::CellCache;
use super::format::manifest::{Edit, VnodeRecord};
use super::format::wal::{Record, VnodesRecord, parse_record};
use super::manifest::{self, Manifest, State};
use super::memtable::Memtable;
use super::recover::NodeStore;
use super::store::{Core, Counters, Engine, EngineConfig, Mems, Sealed, memtable_config};
use super::tables::{Tables, TablesConfig};
use super::wal::{Wal, WalConfig, WalReport};
use super::wal_replay::WalReader;
use super::{EngineError, Planted, Seq};
use crate::base::record::{NamespaceId, Version, vnode_of};
use crate::base::time::HybridClock;
use crate::io::signal::Signal;
use crate::io::{Class, Io};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeSet, VecDeque};
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

/// What opening found.
#[derive(Clone, Debug, Default)]
pub struct OpenReport {
    /// This shard's log; of the old shards' logs the sums.
    pub wal: WalReport,
    pub manifest_torn: bool,
    pub tables: usize,
    /// Tables that were written while the log was replayed.
    pub flushes: u64,
    /// The data came from another list of cores.
    pub moved: bool,
}

/// What replaying fills.
struct Replayed {
    active: Memtable,
    newest: Version,
    namespaces: BTreeSet<NamespaceId>,
    vnodes: Vec<VnodesRecord>,
    last: Seq,
}

impl Replayed {
    fn new(config: &EngineConfig, vnodes: u32) -> Replayed {
        let active = Memtable::new(memtable_config(config, vnodes));
        Replayed { active, newest: Version::ZERO, namespaces: BTreeSet::new(), vnodes: Vec::new(), last: 0 }
    }

    /// Joins a record in, as far as it is about vnodes that `ours` says. `seq` is the one that it counts under here.
    fn take(&mut self, seq: Seq, record: &[u8], vnodes: u32, ours: &dyn Fn(u32) -> bool) -> Result<(), EngineError> {
        let damaged = |what| EngineError::corrupt("a record of the log", seq, what);
        match parse_record(record).map_err(damaged)? {
            Record::Batch(mut batch) => {
                while let Some(cell) = batch.next_cell().map_err(damaged)? {
                    let (namespace, token) = super::format::place_namespace_token(cell.place);
                    if ours(vnode_of(token, vnodes)) {
                        self.newest = self.newest.max(cell.cell.newest());
                        self.active.insert(cell.place, &cell.cell, seq);
                        self.namespaces.insert(namespace);
                    }
                }
            }
            Record::Vnodes(record) => self.vnodes.push(record),
            Record::Ceiling(hlc) => self.newest = self.newest.max(Version::put(hlc, 0)),
        }
        self.last = self.last.max(seq);
        Ok(())
    }

    /// Flushes what was replayed so far if the memtable is full, or at any rate.
    async fn flush(&mut self, tables: &Tables, config: &EngineConfig, released: Option<Seq>) -> Result<bool, EngineError> {
        let is_due = self.active.bytes() >= config.memtable_bytes;
        if self.active.is_empty() || !(is_due || released.is_some()) {
            return Ok(false);
        }
        let next = Memtable::new(memtable_config(config, tables.config().vnodes));
        let full = std::mem::replace(&mut self.active, next);
        tables.flush(&full, released.unwrap_or(self.last)).await?;
        Ok(true)
    }
}

impl Engine {
    /// Opens shard `config.core` of a node's folder. Writes are taken only after `NodeStore::commit`.
    ///
    /// # Errors
    /// Damage, with file and offset; a later format; of the disk.
    pub async fn open(io: &Io, store: &Arc<NodeStore>, config: EngineConfig) -> Result<(Engine, OpenReport), EngineError> {
        assert!(config.core < store.cores());
        let dir = store.shard_dir(config.core);
        let mut report = OpenReport::default();
        if store.previous_cores().is_some() {
            Box::pin(move_in(io, store, &config, &dir, &mut report)).await?;
        } else if !manifest::exists(io, &dir).await? {
            manifest::write_new(io, &dir, store.identity(), &State::default()).await?;
        }
        let (manifest, torn) = Manifest::open(io, &dir, store.identity()).await?;
        report.manifest_torn = torn;
        let released = manifest.state().released;
        let tables = open_tables(io, store, &config, manifest).await?;
        report.tables = tables.tree().tables().count();
        let planted = config.planted.filter(|planted| *planted == Planted::TornTailAccepted);
        let mut reader = WalReader::open(io, &dir, store.identity(), released, planted).await?;
        let mut replayed = Replayed::new(&config, store.vnodes());
        let vnodes = store.vnodes();
        while reader.next_group(&mut |seq, record| replayed.take(seq, record, vnodes, &|_| true)).await? {
            report.flushes += u64::from(replayed.flush(&tables, &config, None).await?);
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
        if !report.moved {
            report.wal = wal_report;
        }
        let engine = Engine { core: Rc::new(assemble(io, store, config, wal, tables, replayed, ceiling)) };
        engine.start();
        Ok((engine, report))
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
    // Above every floor too: a stamp below one would be refused.
    let floors = state.vnodes.iter().map(|(.., record)| record.floor.hlc()).max().unwrap_or(0);
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
        disk_full: Cell::new(false),
        stopped: RefCell::default(),
        closing: Cell::new(false),
        flush_work: Signal::new(),
        progress: Signal::new(),
        counters: Counters::default(),
        scratch: RefCell::default(),
        config,
    }
}

async fn open_tables(io: &Io, store: &Arc<NodeStore>, config: &EngineConfig, manifest: Manifest) -> Result<Tables, EngineError> {
    let tables_config = TablesConfig {
        dir: store.tables_dir(),
        shard: config.core,
        vnodes: store.vnodes(),
        table_bytes: config.table_bytes_max,
        policy: config.policy,
        block_bytes: config.block_bytes,
        planted: config.planted,
        is_folder_lost: store.is_folder_lost(),
    };
    let cache = Rc::new(Cache::new(config.cache_bytes / 2, config.hash_seed));
    Tables::open(io, tables_config, manifest, cache, Rc::default(), |id| store.file(id)).await
}

/// Builds this shard's folder of the new generation from the old shards' manifests, tables and logs.
async fn move_in(io: &Io, store: &Arc<NodeStore>, config: &EngineConfig, dir: &Path, report: &mut OpenReport) -> Result<(), EngineError> {
    let (mut states, mut readers) = (Vec::new(), Vec::new());
    for old in store.previous_dirs() {
        let state = if manifest::exists(io, &old).await? { manifest::load(io, &old, store.identity()).await?.0 } else { State::default() };
        readers.push(WalReader::open(io, &old, store.identity(), state.released, None).await?);
        states.push(state);
    }
    // The new log goes on above every old sequence, so that what an old table or record says of sequences stays below.
    let base = readers.iter().map(|reader| reader.plan.last).max().unwrap_or(0);
    let state = store.inherit(config.core, &states, base);
    let manifest = Manifest::create(io, dir, store.identity(), &state).await?;
    let tables = open_tables(io, store, config, manifest).await?;
    let mut replayed = Replayed::new(config, store.vnodes());
    let (vnodes, old_cores) = (store.vnodes(), states.len() as u16);
    let mut clock = state.clock_ceiling;
    for (from, reader) in (0..old_cores).zip(&mut readers) {
        let ours = |vnode: u32| store.owner(vnode) == config.core;
        while reader.next_group(&mut |_, record| replayed.take(base, record, vnodes, &ours)).await? {
            report.flushes += u64::from(replayed.flush(&tables, config, None).await?);
        }
        let records = std::mem::take(&mut replayed.vnodes);
        let belongs = |vnode: u32| store.previous_owner(vnode) == from && store.owner(vnode) == config.core;
        let edits = records.iter().flat_map(|one| vnode_edits(one, vnodes, &belongs)).collect::<Vec<_>>();
        if !edits.is_empty() {
            tables.manifest().commit(edits, |_| ()).await?;
        }
        clock = clock.max(reader.ceiling);
        report.wal.records += reader.records;
        report.wal.bytes += reader.bytes;
        report.wal.torn_groups += u32::from(reader.plan.torn.is_some());
        report.wal.torn_blocks += reader.plan.torn.map_or(0, |(_, blocks)| blocks);
    }
    report.flushes += u64::from(replayed.flush(&tables, config, Some(base)).await?);
    let ceiling = clock.max(replayed.newest.hlc());
    tables.manifest().commit(vec![Edit::ClockCeiling(ceiling)], |_| ()).await?;
    // The engine opens what was made here anew.
    tables.levels.forget();
    report.moved = true;
    Ok(())
}

fn vnode_edits(one: &VnodesRecord, vnodes: u32, belongs: &dyn Fn(u32) -> bool) -> Vec<Edit> {
    let edit = |vnode: u32, record: VnodeRecord| Edit::Vnodes { namespace: one.namespace, first: vnode, last: vnode, record };
    (one.first..=one.last.min(vnodes - 1)).filter(|&vnode| belongs(vnode)).map(|vnode| edit(vnode, one.record)).collect()
}
