//! A node's data folder: which generation of shard folders is in force, and how the data moves to another list of cores.
//!
//! ```text
//! DATA/LAYOUT              generation, cores, identity; replaced atomically
//! DATA/tables/             every table of the node; names are node-wide unique
//! DATA/g<gen>-s<core>/     one shard: its manifest and its log
//! ```
//!
//! Data belongs to vnodes, not to cores. With another core count each shard builds a folder of the next generation: the tables that
//! hold vnodes of its own (shared with other shards, read under their bounds), and what the old logs hold of its vnodes, flushed
//! (`moving`). Nothing of the old generation is changed meanwhile. When all shards are done, `commit` switches `LAYOUT`; a crash before
//! leaves the old generation in force and the half-built one is removed at the next start.

use super::EngineError;
use super::format::Identity;
use super::format::layout::{BadLayout, Layout, layout_block, parse_layout};
use super::format::manifest::{Level, Part, TableId, TableRecord};
use super::levels::TableFile;
use super::manifest::{self, State, read_file};
use super::moving::Moving;
use super::vnode_set::VnodeSet;
use crate::base::codec::Malformed;
use crate::io::Io;
use crate::io::op::OpenHow;
use crate::limits::{CLUSTER_VERSION, CLUSTER_VERSION_MIN};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::sync::{Arc, Mutex};

pub(super) const LAYOUT: &str = "LAYOUT";
/// What a folder that this program does not know needs.
pub(super) const LATER_LAYOUT: &str = "a later version of the data folder";
const LAYOUT_NEW: &str = "LAYOUT.new";
pub(super) const TABLES: &str = "tables";

/// Which core owns a vnode: (vnode, cores) → core. The cluster's rule, handed in.
pub type CoreOf = fn(u32, u16) -> u16;

/// How a node's folder is opened.
#[derive(Clone, Copy)]
pub struct NodeConfig {
    pub cores: u16,
    /// For a folder that is new; an old one keeps its own.
    pub vnodes: u32,
    /// For a folder that is new; drawn where there is none.
    pub identity: Option<Identity>,
    pub core_of: CoreOf,
}

/// A node's folder, opened by its first core and shared by all.
pub struct NodeStore {
    data: PathBuf,
    layout: Layout,
    /// As `LAYOUT` says now; it only rises.
    format: AtomicU16,
    /// The generation and cores that the data is still ordered by.
    previous: Option<(u64, u16)>,
    core_of: CoreOf,
    /// Until `commit`, where the data is ordered by other cores.
    moving: Mutex<Option<Arc<Moving>>>,
    /// Until `commit`: every file that a manifest in force names. Shards take theirs.
    files: Mutex<BTreeMap<TableId, Arc<TableFile>>>,
    committed: AtomicBool,
    complete: AtomicBool,
    is_folder_lost: Arc<AtomicBool>,
}

impl std::fmt::Debug for NodeStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} generation {} for {} cores", self.data.display(), self.layout.generation, self.layout.cores)
    }
}

impl NodeStore {
    /// Opens the folder, or makes it. Removes what a crash has left: half-built generations, tables that no manifest names.
    ///
    /// # Errors
    /// Damage, with file and offset; a later format; a folder whose vnodes are not a power of two.
    pub async fn open(io: &Io, data: &Path, config: NodeConfig) -> Result<Arc<NodeStore>, EngineError> {
        assert!(config.cores > 0 && config.vnodes.is_power_of_two());
        io.make_dir(data).await?;
        let parent = data.parent().filter(|parent| !parent.as_os_str().is_empty());
        io.sync_dir(parent.unwrap_or(Path::new("."))).await?;
        let names: Vec<String> = io.list(data).await?.into_iter().map(|entry| entry.name).collect();
        let found = if names.iter().any(|name| name == LAYOUT) { Some(read_layout(io, data).await?) } else { None };
        // Whoever opens it for a cluster has asked the operator (`node::cluster`), and it is a copy no more.
        let found = found.map(|layout| Layout { is_copy: layout.is_copy && config.identity.is_none(), ..layout });
        make_durable(io, data, &names, found.as_ref()).await?;
        remove_other_generations(io, data, &names, found.map_or(0, |layout| layout.generation)).await?;
        let (layout, previous) = match found {
            Some(layout) if layout.cores == config.cores => (layout, None),
            Some(layout) => {
                let next = Layout { generation: layout.generation + 1, cores: config.cores, ..layout };
                (next, Some((layout.generation, layout.cores)))
            }
            None => {
                let drawn = || Identity { cluster: io.random_u64(), node: io.random_u64() };
                let identity = config.identity.unwrap_or_else(drawn);
                let (cores, vnodes) = (config.cores, config.vnodes);
                (Layout { format: CLUSTER_VERSION_MIN, identity, generation: 1, cores, vnodes, is_copy: false }, None)
            }
        };
        if found.is_none() || previous.is_some() {
            for core in 0..layout.cores {
                io.make_dir(&shard_dir(data, layout.generation, core)).await?;
            }
            io.sync_dir(data).await?;
        }
        if found.is_none() {
            write_layout(io, data, &layout).await?;
        }
        let (files, states) = collect_files(io, data, found.as_ref()).await?;
        let moving = previous.map(|_| Arc::new(Moving::new(states)));
        let committed = AtomicBool::new(previous.is_none());
        let data = data.to_owned();
        Ok(Arc::new(NodeStore {
            data,
            format: AtomicU16::new(layout.format),
            layout,
            previous,
            core_of: config.core_of,
            moving: Mutex::new(moving),
            files: Mutex::new(files),
            committed,
            complete: AtomicBool::new(false),
            is_folder_lost: Arc::default(),
        }))
    }

    /// To be called once, when every shard's engine is open: from here on the new order of cores is in force and writes are taken.
    ///
    /// # Errors
    /// Of the disk; then the old order is still in force.
    pub async fn commit(&self, io: &Io) -> Result<(), EngineError> {
        if let Some((generation, _)) = self.previous
            && !self.committed.load(Ordering::Acquire)
        {
            write_layout(io, &self.data, &self.layout()).await?;
            self.committed.store(true, Ordering::Release);
            let names: Vec<String> = io.list(&self.data).await?.into_iter().map(|entry| entry.name).collect();
            let old = format!("g{generation}-");
            for name in names.iter().filter(|name| name.starts_with(&old)) {
                remove_folder(io, &self.data.join(name)).await?;
            }
        }
        self.committed.store(true, Ordering::Release);
        self.moving.lock().expect("nobody panics with it").take();
        // From here on the shards alone hold the files, and who lets go last removes.
        self.files.lock().expect("nobody panics with it").clear();
        self.complete.store(true, Ordering::Release);
        Ok(())
    }

    /// The new order is in force: shards may take writes.
    pub fn is_committed(&self) -> bool {
        self.committed.load(Ordering::Acquire)
    }

    /// `commit` has ended: shards may give back files.
    pub(super) fn is_complete(&self) -> bool {
        self.complete.load(Ordering::Acquire)
    }

    /// The move that is under way, until `commit`.
    pub(super) fn moving(&self) -> Option<Arc<Moving>> {
        self.moving.lock().expect("nobody panics with it").clone()
    }

    /// Raised by the first shard whose sync of the folder of tables failed.
    pub(super) fn is_folder_lost(&self) -> Arc<AtomicBool> {
        self.is_folder_lost.clone()
    }

    pub fn identity(&self) -> Identity {
        self.layout.identity
    }

    pub fn vnodes(&self) -> u32 {
        self.layout.vnodes
    }

    pub fn cores(&self) -> u16 {
        self.layout.cores
    }

    pub fn generation(&self) -> u64 {
        self.layout.generation
    }

    /// The core count that the data was ordered by, if it is another one.
    pub fn previous_cores(&self) -> Option<u16> {
        self.previous.map(|(_, cores)| cores)
    }

    /// The core that owns a vnode.
    pub fn owner(&self, vnode: u32) -> u16 {
        (self.core_of)(vnode, self.layout.cores)
    }

    /// The core that owned a vnode before the move.
    pub(super) fn previous_owner(&self, vnode: u32) -> u16 {
        (self.core_of)(vnode, self.previous.map_or(self.layout.cores, |(_, cores)| cores))
    }

    /// The name of a shard's folder.
    pub(super) fn shard_name(&self, core: u16) -> String {
        shard_name(self.layout.generation, core)
    }

    /// Completes a snapshot that every shard has put into `to`: from here on a node can be started on it.
    ///
    /// # Errors
    /// Of the disk.
    pub async fn snapshot_layout(&self, io: &Io, to: &Path) -> Result<(), EngineError> {
        write_layout(io, to, &Layout { is_copy: true, ..self.layout() }).await
    }

    fn layout(&self) -> Layout {
        Layout { format: self.format(), ..self.layout }
    }

    /// The version of what may be written into the folder.
    pub fn format(&self) -> u16 {
        self.format.load(Ordering::Acquire)
    }

    /// From here on what a program of an older version does not read may be written: it refuses the folder. Durable when it returns. One at
    /// a time: the new layout has one name until it is in force.
    ///
    /// # Errors
    /// Of the disk.
    pub async fn raise_format(&self, io: &Io, format: u16) -> Result<(), EngineError> {
        assert!(format <= CLUSTER_VERSION, "a version that this program knows");
        if format > self.format() {
            write_layout(io, &self.data, &Layout { format, ..self.layout }).await?;
            self.format.fetch_max(format, Ordering::AcqRel);
        }
        Ok(())
    }

    /// A shard's folder.
    pub fn shard_dir(&self, core: u16) -> PathBuf {
        shard_dir(&self.data, self.layout.generation, core)
    }

    /// The folders of the order that the data comes from.
    pub(super) fn previous_dirs(&self) -> Vec<PathBuf> {
        let (generation, cores) = self.previous.unwrap_or((0, 0));
        (0..cores).map(|core| shard_dir(&self.data, generation, core)).collect()
    }

    pub fn tables_dir(&self) -> PathBuf {
        self.data.join(TABLES)
    }

    /// The file of a table that a manifest names; shards that share it hold the same.
    pub(super) fn file(&self, id: TableId) -> Arc<TableFile> {
        let mut files = self.files.lock().expect("nobody panics with it");
        files.entry(id).or_insert_with(|| TableFile::new(&self.tables_dir(), id)).clone()
    }

    /// What shard `core` takes over from the old shards: its manifest's first state. The log is empty and goes on above every old sequence.
    /// Of each table it takes the vnodes that it owns from now on, as far as the reference of their old shard was valid for them.
    pub(super) fn inherit(&self, core: u16, old: &[State], log_last: u64) -> State {
        let mut state = State { released: log_last, ..State::default() };
        let mut tables: BTreeMap<TableId, TableRecord> = BTreeMap::new();
        for (from, one) in (0..).zip(old) {
            state.clock_ceiling = state.clock_ceiling.max(one.clock_ceiling);
            state.next_table = state.next_table.max(one.next_table);
            let ours = |vnode: u32| self.previous_owner(vnode) == from && self.owner(vnode) == core;
            for (namespace, first, last, record) in one.vnodes.iter() {
                for vnode in (first..=last.min(self.layout.vnodes - 1)).filter(|&vnode| ours(vnode)) {
                    state.vnodes.set(namespace, vnode, vnode, record);
                }
            }
            let others = |vnode: u32| self.previous_owner(vnode) == from && self.owner(vnode) != core;
            let ranks = ranks(one);
            for table in one.tables.values() {
                let mut parts = parts_of(table, &ours);
                if parts.is_empty() {
                    continue;
                }
                let run = ranks[&(table.level, table.run)];
                match tables.get_mut(&table.id) {
                    None => {
                        let shared = table.shared || !parts_of(table, &others).is_empty();
                        tables.insert(table.id, TableRecord { run, parts, shared, from: Vec::new(), ..table.clone() });
                    }
                    Some(known) => {
                        known.run = known.run.max(run);
                        known.linked |= table.linked;
                        known.parts.append(&mut parts);
                    }
                }
            }
        }
        for table in tables.values_mut() {
            unite_parts(table);
        }
        number_runs(&mut tables);
        state.next_run = tables.values().map(|table| table.run + 1).max().unwrap_or(0);
        state.tables = tables;
        state
    }
}

/// The runs of a level are numbered from 0, the oldest first.
fn ranks(state: &State) -> BTreeMap<(Level, u64), u64> {
    let runs: BTreeSet<(Level, u64)> = state.tables.values().map(|table| (table.level, table.run)).collect();
    let mut ranks = BTreeMap::new();
    for (level, run) in runs {
        let rank = ranks.range((level, 0)..(level, u64::MAX)).count() as u64;
        ranks.insert((level, run), rank);
    }
    ranks
}

/// What of a reference is valid for the vnodes that are `ours`.
fn parts_of(table: &TableRecord, ours: &dyn Fn(u32) -> bool) -> Vec<Part> {
    let whole = |_: &Part| (table.vnodes.0..=table.vnodes.1).collect::<Vec<_>>();
    let all = [Part::default()];
    let parts = if table.parts.is_empty() { &all[..] } else { &table.parts };
    let vnodes = |part: &Part| if table.parts.is_empty() { whole(part) } else { part.vnodes.iter().collect() };
    let parts = parts.iter().map(|part| Part {
        vnodes: VnodeSet::of(vnodes(part).into_iter().filter(|&vnode| ours(vnode))),
        from: (&part.from).max(&table.from).clone(),
    });
    parts.filter(|part| !part.vnodes.is_empty()).collect()
}

/// Parts with one bound become one; the least bound is the reference's own.
fn unite_parts(table: &mut TableRecord) {
    let mut parts: BTreeMap<Vec<u8>, VnodeSet> = BTreeMap::new();
    for part in table.parts.drain(..) {
        let set = parts.entry(part.from).or_default();
        *set = set.union(&part.vnodes);
    }
    table.from = parts.keys().next().cloned().unwrap_or_default();
    table.parts = parts.into_iter().map(|(from, vnodes)| Part { vnodes, from }).collect();
}

/// Runs of different shards never meet in a place, so those of one level and rank become one, and a move makes no more runs than the
/// shard with the most had. The order between levels and ranks stays.
fn number_runs(tables: &mut BTreeMap<TableId, TableRecord>) {
    let key = |table: &TableRecord| (Reverse(table.level), table.run);
    let runs: BTreeSet<_> = tables.values().map(key).collect();
    let numbers: BTreeMap<_, u64> = runs.into_iter().zip(0..).collect();
    tables.values_mut().for_each(|table| table.run = numbers[&key(table)]);
}

/// The name of a shard's folder in a generation.
pub(super) fn shard_name(generation: u64, core: u16) -> String {
    format!("g{generation}-s{core}")
}

fn shard_dir(data: &Path, generation: u64, core: u16) -> PathBuf {
    data.join(shard_name(generation, core))
}

async fn read_layout(io: &Io, data: &Path) -> Result<Layout, EngineError> {
    let path = data.join(LAYOUT);
    let name = path.display().to_string();
    parse_layout(&read_file(io, &path).await?).map_err(|bad| match bad {
        BadLayout::Damaged(what) => EngineError::corrupt(&name, 0, what),
        BadLayout::TooNew => EngineError::Unsupported { file: name, what: LATER_LAYOUT.into() },
    })
}

async fn write_layout(io: &Io, data: &Path, layout: &Layout) -> Result<(), EngineError> {
    let (new, bytes) = (data.join(LAYOUT_NEW), layout_block(layout));
    // An attempt that found no room leaves it.
    match io.remove(&new).await {
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        other => other?,
    }
    let file = io.open(&new, OpenHow::Create).await?;
    let mut buf = io.buf(bytes.len());
    buf.copy_from_slice(&bytes);
    io.write(&file, 0, buf, true).await?;
    io.sync(&file).await?;
    io.rename(&new, &data.join(LAYOUT)).await?;
    Ok(io.sync_dir(data).await?)
}

/// Makes durable what was found, before others go: a sync of an earlier life may have failed, and what it failed for is brought to the disk
/// by no later sync, but only by being written anew.
async fn make_durable(io: &Io, data: &Path, names: &[String], found: Option<&Layout>) -> Result<(), EngineError> {
    if found.is_none() && names.iter().any(|name| name == TABLES) {
        remove_folder(io, &data.join(TABLES)).await?;
    }
    io.make_dir(&data.join(TABLES)).await?;
    if let Some(layout) = found {
        match write_layout(io, data, layout).await {
            // What a sync can do must do.
            Err(error) if error.is_disk_full() => {}
            other => return other,
        }
    }
    Ok(io.sync_dir(data).await?)
}

/// Folders of generations that are not in force: half built, or left over.
async fn remove_other_generations(io: &Io, data: &Path, names: &[String], in_force: u64) -> Result<(), EngineError> {
    for name in names {
        let generation = name.strip_prefix('g').and_then(|rest| rest.split_once("-s")).and_then(|(number, _)| number.parse().ok());
        if generation.is_some_and(|generation: u64| generation != in_force) {
            remove_folder(io, &data.join(name)).await?;
        }
    }
    Ok(())
}

async fn remove_folder(io: &Io, dir: &Path) -> Result<(), EngineError> {
    for entry in io.list(dir).await? {
        io.remove(&dir.join(entry.name)).await?;
    }
    Ok(io.remove_dir(dir).await?)
}

/// The table files of a node.
type Files = BTreeMap<TableId, Arc<TableFile>>;

/// Every file that a manifest in force names, and what the manifests say; the others in the folder of tables are removed.
async fn collect_files(io: &Io, data: &Path, layout: Option<&Layout>) -> Result<(Files, Vec<State>), EngineError> {
    let tables = data.join(TABLES);
    let (mut files, mut states) = (Files::new(), Vec::new());
    for core in 0..layout.map_or(0, |layout| layout.cores) {
        let layout = layout.expect("it has cores");
        let dir = shard_dir(data, layout.generation, core);
        if manifest::exists(io, &dir).await? {
            manifest::settle(io, &dir, layout.identity).await?;
            let (state, _, _) = manifest::load(io, &dir, layout.identity).await?;
            files.extend(state.tables.keys().map(|&id| (id, TableFile::new(&tables, id))));
            states.push(state);
        } else {
            states.push(State::default());
        }
    }
    let mut there = std::collections::BTreeSet::new();
    for entry in io.list(&tables).await? {
        match TableId::from_file_name(&entry.name).filter(|id| files.contains_key(id)) {
            Some(id) => drop(there.insert(id)),
            None => io.remove(&tables.join(&entry.name)).await?,
        }
    }
    match files.iter().find(|(id, _)| !there.contains(id)) {
        Some((_, file)) => Err(EngineError::corrupt(&file.path.display().to_string(), 0, Malformed("the table is gone"))),
        None => Ok((files, states)),
    }
}
