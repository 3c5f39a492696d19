//! The tables of one shard: its tree, its manifest, and the work between memory and disk. A flush makes a table of a memtable; `compact`
//! merges tables; `expire` counts what their deadlines end; `snapshot` links them. Files go when nothing shows them any more (`reap`).

use super::block::BlockCache;
use super::expire::DiskExpiry;
use super::filter::{bits_for_false_positives, prefix_hash};
use super::format::manifest::{Edit, Level, TableId, TableRecord};
use super::format::{Identity, key_prefix_len};
use super::levels::{Levels, Release, TableFile, TableRef, Tree};
use super::manifest::Manifest;
use super::memtable::Memtable;
use super::pace::{Behind, FLUSHES_OVER, MERGES_OVER, Meter};
use super::pick::{Policy, TreeShape};
use super::table::{Table, TableStats};
use super::table_writer::{TableOptions, TableWriter};
use super::{EngineError, Planted, Seq, is_disk_full};
use crate::base::record::{NamespaceId, Version};
use crate::base::time::WallMs;
use crate::io::Io;
use crate::limits::{BLOCK_BYTES, TABLE_BYTES_MAX};
use std::cell::{Cell, RefCell};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A flush is cut into tables of this share of a merge's. A merge lets go of each input table as soon as it is consumed, with its filter,
/// its index and its file; so what it still holds of consumed inputs is, over a full level 0, about one table's worth and a half.
const FLUSH_TABLE_SHARE: u64 = 8;
/// But not into smaller ones: a file and its sync would cost more than they free.
const FLUSH_TABLE_BYTES_MIN: u64 = 64 * 1024;

/// How a shard's tables are kept.
#[derive(Clone, Debug)]
pub struct TablesConfig {
    /// The folder of all tables of the node.
    pub dir: PathBuf,
    pub shard: u16,
    /// Equal arcs of the ring.
    pub vnodes: u32,
    /// Bytes of one table that a merge writes: the extra space that it takes, and how far a crash sets it back.
    pub table_bytes: u64,
    pub policy: Policy,
    /// A block of a table is closed when it reaches this.
    pub block_bytes: usize,
    pub planted: Option<Planted>,
    /// A sync of the folder of tables failed, whichever shard asked for it: names that were waiting are lost, and no later sync says so.
    pub is_folder_lost: Arc<AtomicBool>,
}

/// What a shard's memtables hold, for work that runs beside them. Asked again and again, never remembered.
pub trait Memory {
    /// This shard owns the vnode.
    fn owns(&self, vnode: u32) -> bool;
    /// The least version in any memtable of a vnode, the one being flushed included.
    fn oldest(&self, namespace: NamespaceId, vnode: u32) -> Option<Version>;
    /// The greatest version of any part of the cell at a place in any memtable.
    fn newest(&self, place: &[u8]) -> Option<Version>;
    /// The floor for what expired values left (`merge::World`).
    fn remnant_floor(&self, _namespace: NamespaceId, _vnode: u32) -> Version {
        Version::MAX
    }
    /// A cell on disk expired and was counted: what caches hold of it can go.
    fn expired(&self, place: &[u8]);
    /// A slice of a merge found room on the disk.
    fn found_room(&self) {}
    /// The shard is closing: a merge stops at its next slice.
    fn is_closing(&self) -> bool {
        false
    }
}

/// The tables of one shard.
pub struct Tables {
    pub(super) io: Io,
    pub(super) config: TablesConfig,
    pub(super) manifest: Manifest,
    pub(super) levels: Levels<Table>,
    pub(super) expiry: DiskExpiry,
    pub(super) cache: Rc<BlockCache>,
    stats: Rc<TableStats>,
    /// Namespaces whose blocks are packed, in tables that are begun from now on.
    packed: RefCell<Rc<[NamespaceId]>>,
    /// Of what merges took into the last level, the share that replaced something.
    pub(super) overwritten_share: Cell<f64>,
    /// How far the flush and the merge under way are.
    pub(super) flushing: Meter,
    pub(super) merging: Meter,
    pub(super) underway: Cell<Underway>,
}

/// Merges under way, as far as the pace of writes depends on them.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Underway {
    /// Runs of level 0 that the one under way takes in.
    pub level0: usize,
    pub is_into_last: bool,
    /// Runs of level 0 that others take in, which wait; what is left of them, in flushes, and bytes that these still have to go through.
    pub held: usize,
    pub held_flushes: f64,
    pub held_left: u64,
    /// Bytes of level 1 that a merge into the last level does not take in, and of the last level.
    pub above: u64,
    pub last: u64,
}

/// A table that is written but not shown by any tree yet.
pub(super) struct NewTable {
    pub record: TableRecord,
    pub table: Rc<Table>,
    pub file: Arc<TableFile>,
}

impl Tables {
    /// Opens the tables that a manifest names. `file` gives a table's file, the same for all shards that hold it.
    ///
    /// # Errors
    /// A table is missing or damaged.
    pub async fn open(
        io: &Io,
        config: TablesConfig,
        manifest: Manifest,
        cache: Rc<BlockCache>,
        stats: Rc<TableStats>,
        file: impl Fn(TableId) -> Arc<TableFile>,
    ) -> Result<Tables, EngineError> {
        assert!(config.table_bytes <= TABLE_BYTES_MAX);
        let levels = Levels::default();
        let state = manifest.state().clone();
        let mut opened = Vec::with_capacity(state.tables.len());
        for record in state.tables.values() {
            let file = file(record.id);
            opened.push((record.id, open_table(io, manifest.identity(), &file, &stats).await?, file));
        }
        levels.adopt(&state, opened)?;
        let expiry = DiskExpiry::new(io.wall_ms());
        let (io, packed, overwritten_share) = (io.clone(), RefCell::new(Rc::from([])), Cell::new(0.0));
        let (flushing, merging) = (Meter::new(FLUSHES_OVER), Meter::new(MERGES_OVER));
        let underway = Cell::default();
        let tables = Tables { io, config, manifest, levels, expiry, cache, stats, packed, overwritten_share, flushing, merging, underway };
        tables.look_at_merges(false);
        Ok(tables)
    }

    /// The tree as it is now, for a read.
    pub fn tree(&self) -> Rc<Tree<Table>> {
        self.levels.current()
    }

    /// Counters of reads and filters.
    pub fn stats(&self) -> &TableStats {
        &self.stats
    }

    /// The namespaces whose blocks are packed from now on. What is in tables stays as it is until a merge rewrites it.
    pub fn set_packed(&self, namespaces: &[NamespaceId]) {
        *self.packed.borrow_mut() = namespaces.into();
    }

    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    pub fn config(&self) -> &TablesConfig {
        &self.config
    }

    pub fn expiry(&self) -> &DiskExpiry {
        &self.expiry
    }

    /// Level 0 is so full that writes must wait for compaction. With writes at the pace that merges allow it never is.
    pub fn is_stalled(&self) -> bool {
        self.level0().iter().sum::<f64>() >= self.config.policy.stall_runs() as f64
    }

    /// Level 0 in flushes: runs that no merge takes in, those that the merge under way does, and those of one that waits for it. Of a run
    /// that is consumed in part the rest counts, which is what lies on the disk and what reads look at.
    pub fn level0(&self) -> [f64; 3] {
        let Underway { level0, held, held_flushes, .. } = self.underway.get();
        let free = self.tree().level0_runs().saturating_sub(level0 + held);
        [free as f64, level0 as f64 * self.merging.part_left().unwrap_or(1.0), held_flushes]
    }

    /// How far merges are behind, where `in_memory` bytes wait above them; None: no merge is due.
    pub fn behind(&self, memtable_bytes: u64, in_memory: u64) -> Option<Behind> {
        let (left, policy, underway) = (self.merging.left(), &self.config.policy, self.underway.get());
        let bytes = self.level0().map(|runs| (runs * memtable_bytes as f64) as u64);
        let [free, inputs, held] = bytes;
        match left {
            // What the merge under way consumes comes back by its end.
            Some(left) => Some(Behind {
                waiting: free + in_memory,
                held,
                above: underway.above + if underway.held_left > 0 { inputs } else { 0 },
                left,
                left_behind: underway.held_left,
                gives_way: underway.is_into_last && underway.level0 == 0 && left > policy.nest_bytes,
            }),
            // One is about to begin.
            None if free >= policy.level0_runs as u64 * memtable_bytes => {
                Some(Behind { waiting: in_memory, held, left: free, ..Behind::default() })
            }
            None => None,
        }
    }

    /// The greatest version of any cell in a table, for `Tree::newest_from`.
    pub fn newest_of(table: &Table) -> Version {
        table.info().versions.1
    }

    /// The greatest version of a vnode in a table, for `Tree::newest_of_vnode`.
    pub fn newest_in(table: &Table, namespace: NamespaceId, vnode: u32) -> Option<Version> {
        table.version_bounds(namespace, vnode).map(|(_, greatest)| greatest)
    }

    /// Writes a memtable as a run of level 0 and releases the log up to `released`, in one edit.
    ///
    /// # Errors
    /// `DiskFull`: nothing has changed, try again later. Others as `Manifest::commit`.
    pub async fn flush(&self, memtable: &Memtable, released: Seq) -> Result<(), EngineError> {
        let bytes = memtable.live_bytes() as u64;
        self.flushing.begin(self.io.now(), bytes, bytes);
        let flushed = self.write_run(memtable, released).await;
        self.flushing.end(self.io.now());
        flushed
    }

    async fn write_run(&self, memtable: &Memtable, released: Seq) -> Result<(), EngineError> {
        let run = self.manifest.draw_run();
        let seqs = memtable.seqs().unwrap_or((0, 0));
        let mut output = self.output((Level::Zero, run), seqs, memtable.len() as u64);
        if let Err(error) = output.write_entries(memtable.sorted(), |bytes| self.flushing.advance(self.io.now(), bytes)).await {
            output.abandon().await;
            return Err(or_full(error));
        }
        let tables = output.take();
        let turn = self.expiry.turn().await;
        let mut edits: Vec<Edit> = tables.iter().map(|new| Edit::AddTable(new.record.clone())).collect();
        edits.push(Edit::Released(released));
        self.adopt(edits, tables, memtable.counted_ms()).await?;
        drop(turn);
        Ok(())
    }

    /// For the tables of a run; `entries` is about how many it will have.
    pub(super) fn output(&self, run: (Level, u64), seqs: (Seq, Seq), entries: u64) -> Output<'_> {
        let Tables { io, config, manifest, stats, packed, .. } = self;
        let shop = Workshop { io, config, identity: manifest.identity(), numbers: manifest, stats, packed };
        let tree = self.tree();
        let last = tree.tables().filter(|table| table.record.level == Level::Last).map(|table| table.record.entries).sum();
        Output::new(shop, run, seqs, entries, last)
    }

    /// Commits edits that add tables and makes the tree follow. The deadlines of the new ones are counted from `counted_ms` on.
    pub(super) async fn adopt(&self, edits: Vec<Edit>, new: Vec<NewTable>, counted_ms: WallMs) -> Result<(), EngineError> {
        let paths: Vec<_> = new.iter().map(|new| new.file.path.clone()).collect();
        let mut adopted = Ok(());
        let committed = self.manifest.commit(edits, |state| {
            new.iter().for_each(|new| self.expiry.start(new.record.id, counted_ms));
            let opened = new.into_iter().map(|new| (new.record.id, new.table, new.file)).collect();
            adopted = self.levels.adopt(state, opened);
        });
        match committed.await {
            Err(EngineError::DiskFull) => {
                for path in paths {
                    self.io.remove(&path).await?;
                }
                Err(EngineError::DiskFull)
            }
            other => other.and(adopted),
        }
    }

    /// Removes the files, and gives back the fronts, that no tree shows any more. Call it after flushes and merges, and now and then.
    ///
    /// # Errors
    /// Of the operations; what was not reached is removed when the node starts again.
    pub async fn reap(&self) -> Result<(), EngineError> {
        let mut outcome = Ok(());
        for release in self.levels.release() {
            // One that fails does not keep the others.
            let released = self.give_back(release).await;
            outcome = outcome.and(released);
        }
        outcome
    }

    async fn give_back(&self, release: Release<Table>) -> Result<(), EngineError> {
        match release {
            Release::Remove(file) => {
                if let Some(path) = TableFile::let_go(file) {
                    self.io.remove(&path).await?;
                }
            }
            Release::Punch(table) => {
                // The first block holds the header. The cache may keep blocks of the front; nobody asks for them.
                let (block, to) = (BLOCK_BYTES as u64, table.table.offset_of(table.start())?);
                if to >= 2 * block {
                    self.io.punch(&table.table.file, block, to / block * block - block).await?;
                }
            }
        }
        Ok(())
    }

    /// Removes the tables of which everything is void, because its vnodes were dropped after it was written: what a FLUSHALL leaves needs
    /// no merge. Call it after drop sequences rose. Gives how many went.
    ///
    /// # Errors
    /// As `Manifest::commit`.
    pub async fn drop_void(&self) -> Result<usize, EngineError> {
        let turn = self.expiry.turn().await;
        let newest = self.manifest.state().vnodes.iter().map(|(.., record)| record.drop_seq).max().unwrap_or(0);
        let mut void = Vec::new();
        for table in self.tree().tables().filter(|table| table.is_void(newest)) {
            let is_void = {
                let state = self.manifest.state();
                let drop_seq = |namespace, vnode| state.vnodes.get(namespace, vnode).drop_seq;
                let bounds = table.table.properties().bounds.iter();
                let mut valid = bounds.filter(|bound| table.record.start_of(bound.vnode).is_some());
                valid.all(|bound| table.is_void(drop_seq(bound.namespace, bound.vnode)))
            };
            void.extend(is_void.then_some(table.record.id));
            if self.io.slice_is_over() {
                self.io.yield_now().await;
            }
        }
        if !void.is_empty() {
            self.adopt(void.iter().copied().map(Edit::RemoveTable).collect(), Vec::new(), 0).await?;
        }
        drop(turn);
        self.reap().await?;
        Ok(void.len())
    }

    /// The tree as the picker sees it.
    pub fn shape(&self) -> TreeShape {
        let now_ms = self.io.wall_ms();
        let state = self.manifest.state();
        let left = state.merges.first().map_or(0, |merge| self.bytes_of(merge).0);
        self.tree().shape(&state, (self.overwritten_share.get(), left), |table| sizes(table, now_ms))
    }

    /// May any table but those of `inputs` hold a cell of the key with a version that `matters` (given the bounds of its vnode)?
    pub(super) fn may_hold_elsewhere(
        &self,
        prefix: &[u8],
        vnode: u32,
        inputs: &std::collections::BTreeSet<TableId>,
        matters: impl Fn((Version, Version)) -> bool,
    ) -> bool {
        let namespace = NamespaceId::from_be_bytes(prefix[..4].try_into().expect("a place begins with its namespace"));
        let drop_seq = self.manifest.state().vnodes.get(namespace, vnode).drop_seq;
        let hash = prefix_hash(prefix);
        let mut end = prefix.to_vec();
        // A prefix ends with 1; no place of the key reaches the one that ends with 2.
        *end.last_mut().expect("a prefix is not empty") = 2;
        self.tree().runs.iter().flat_map(|run| run.overlapping(prefix, Some(&end))).any(|table| {
            !inputs.contains(&table.record.id)
                && !table.is_void(drop_seq)
                && table.record.start_of(vnode).is_some_and(|start| start < &end[..])
                && table.table.version_bounds(namespace, vnode).is_some_and(&matters)
                && table.table.may_hold(hash)
        })
    }
}

/// The error that callers can act on, where the disk is full.
pub(super) fn or_full(error: EngineError) -> EngineError {
    match error {
        EngineError::Io(error) if is_disk_full(&error) => EngineError::DiskFull,
        other => other,
    }
}

/// The share of a table that is valid here.
pub(super) fn share(table: &TableRef<Table>) -> f64 {
    table.share(|table| table.properties().bounds.iter().map(|bound| bound.vnode).collect())
}

/// A table's bytes from its start on, and those of them that expired values take.
pub(super) fn sizes(table: &TableRef<Table>, now_ms: WallMs) -> (u64, u64) {
    let consumed = if table.record.from.is_empty() { 0 } else { table.table.offset_of(table.start()).unwrap_or(0) };
    let bytes = (table.record.bytes.saturating_sub(consumed) as f64 * share(table)) as u64;
    let properties = table.table.properties();
    let passed = properties.pages.partition_point(|page| page.first_deadline_ms <= now_ms);
    // The last page that has begun counts as half passed; there are none without volatile cells.
    let share = (passed as f64 - 0.5).max(0.0) / properties.pages.len().max(1) as f64;
    let volatile = properties.counts.volatile as f64 / properties.counts.entries.max(1) as f64;
    (bytes, (bytes as f64 * volatile * share) as u64)
}

/// The id that names a table in caches and seeds its checksums: no two tables of a node share it.
pub fn cache_id(id: TableId) -> u64 {
    assert!(id.number < 1 << 48, "numbers of tables have run out");
    u64::from(id.shard) << 48 | id.number
}

async fn open_table(io: &Io, identity: Identity, file: &TableFile, stats: &Rc<TableStats>) -> Result<Rc<Table>, EngineError> {
    Table::open(io, &file.path, identity, cache_id(file.id), stats).await
}

/// Who numbers tables.
pub(super) trait TableNumbers {
    fn draw_table(&self) -> u64;
}

impl TableNumbers for Manifest {
    fn draw_table(&self) -> u64 {
        Manifest::draw_table(self)
    }
}

impl TableNumbers for Cell<u64> {
    fn draw_table(&self) -> u64 {
        self.replace(self.get() + 1)
    }
}

/// What it takes to make a table.
#[derive(Clone, Copy)]
pub(super) struct Workshop<'a> {
    pub io: &'a Io,
    pub config: &'a TablesConfig,
    pub identity: Identity,
    pub numbers: &'a dyn TableNumbers,
    pub stats: &'a Rc<TableStats>,
    /// Namespaces whose blocks are packed.
    pub packed: &'a RefCell<Rc<[NamespaceId]>>,
}

/// What a flush or a merge writes: tables of one run, one after another.
pub(super) struct Output<'a> {
    shop: Workshop<'a>,
    level: Level,
    run: u64,
    seqs: (Seq, Seq),
    filter_bits_per_key: f32,
    writer: Option<(TableWriter, TableRecord, Arc<TableFile>)>,
    done: Vec<NewTable>,
}

impl<'a> Output<'a> {
    /// `entries` is about how many the whole run will have, `last_entries` how many the last level has.
    pub fn new(shop: Workshop<'a>, (level, run): (Level, u64), seqs: (Seq, Seq), entries: u64, last_entries: u64) -> Output<'a> {
        let false_positives = shop.config.policy.false_positives(level, entries, last_entries);
        let filter_bits_per_key = bits_for_false_positives(false_positives);
        Output { shop, level, run, seqs, filter_bits_per_key, writer: None, done: Vec::new() }
    }

    /// The table under way has so many bytes.
    pub fn is_above(&self, bytes: u64) -> bool {
        self.writer.as_ref().is_some_and(|(writer, ..)| writer.bytes() >= bytes)
    }

    /// Adds an entry; places rise.
    pub async fn add(&mut self, place: &[u8], cell: &[u8]) -> Result<(), EngineError> {
        if self.writer.is_none() {
            let Workshop { io, config, identity, numbers, packed, .. } = self.shop;
            let id = TableId { shard: config.shard, number: numbers.draw_table() };
            let file = TableFile::new(&config.dir, id);
            let options = TableOptions {
                identity,
                table_id: cache_id(id),
                vnodes: config.vnodes,
                filter_bits_per_key: self.filter_bits_per_key,
                block_bytes: config.block_bytes,
                packed: packed.borrow().clone(),
            };
            let writer = TableWriter::create(io, &file.path, options).await?;
            let (level, run, first) = (self.level, self.run, place.to_vec());
            let record = TableRecord { id, level, run, first, seqs: self.seqs, ..TableRecord::default() };
            self.writer = Some((writer, record, file));
        }
        let (writer, record, _) = self.writer.as_mut().expect("made above");
        writer.add(place, cell).await?;
        record.last.clear();
        record.last.extend_from_slice(place);
        Ok(())
    }

    /// Writes the entries of a memtable, or some of them, in their order. `progress` is told of bytes that are done.
    pub async fn write_entries(
        &mut self,
        entries: impl Iterator<Item = (&[u8], &[u8])>,
        progress: impl Fn(u64),
    ) -> Result<(), EngineError> {
        let table_bytes = (self.shop.config.table_bytes / FLUSH_TABLE_SHARE).max(FLUSH_TABLE_BYTES_MIN);
        let mut bytes = 0;
        for (place, cell) in entries {
            if self.is_above(table_bytes) {
                self.cut().await?;
            }
            self.add(place, cell).await?;
            bytes += (place.len() + cell.len()) as u64;
            if self.shop.io.slice_is_over() {
                progress(std::mem::take(&mut bytes));
                self.shop.io.yield_now().await;
            }
        }
        self.finish().await
    }

    /// Ends the table under way, and what all tables hold is durable under their names when this returns.
    pub async fn finish(&mut self) -> Result<(), EngineError> {
        self.cut().await?;
        if self.done.is_empty() {
            return Ok(());
        }
        let Workshop { io, config, .. } = self.shop;
        // Once for all of them: each sync of a folder is a commit of the file system's journal, and the log waits behind it.
        let synced = io.sync_dir(&config.dir).await;
        config.is_folder_lost.fetch_or(synced.is_err(), Ordering::AcqRel);
        synced?;
        if config.is_folder_lost.load(Ordering::Acquire) {
            return Err(EngineError::Stopped("a sync of the folder of tables failed".to_owned()));
        }
        Ok(())
    }

    /// Ends the table under way. Its content is durable when this returns, its name is not yet.
    async fn cut(&mut self) -> Result<(), EngineError> {
        let Some((writer, mut record, file)) = self.writer.take() else { return Ok(()) };
        let info = writer.finish().await?;
        (record.bytes, record.entries, record.vnodes) = (info.bytes, info.counts.entries, info.vnodes);
        let Workshop { io, identity, stats, .. } = self.shop;
        let table = open_table(io, identity, &file, stats).await?;
        self.done.push(NewTable { record, table, file });
        Ok(())
    }

    /// The tables that were ended.
    pub fn take(&mut self) -> Vec<NewTable> {
        std::mem::take(&mut self.done)
    }

    /// Something went wrong: the files that no edit names go at once, as far as that works.
    pub async fn abandon(mut self) {
        let under_way = self.writer.take().map(|(writer, _, file)| {
            drop(writer);
            file
        });
        for file in self.done.drain(..).map(|new| new.file).chain(under_way) {
            drop(self.shop.io.remove(&file.path).await);
        }
    }
}

/// The part of a place that names the key.
pub(super) fn prefix_of(place: &[u8]) -> &[u8] {
    &place[..key_prefix_len(place).unwrap_or(place.len())]
}
