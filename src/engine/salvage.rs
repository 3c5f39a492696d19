//! Salvage: all that is provably sound of a damaged data folder, in a new folder that a node can open; and what was lost, place by place.
//! The source is read only.
//!
//! What counts as sound is what its own checksum vouches for (`pieces`); nothing is patched, nothing guessed. Sound tables are copied byte
//! for byte; of a damaged one the sound blocks are written as a table of the same name; what the log holds that no table does becomes
//! tables of level 0. Versions, tombstones, deadlines, drop sequences and levels stay as they are.
//!
//! **The danger.** A lost block may have held a tombstone or the newest value of a key of which an older table holds an older value:
//! that one is then shown again. No rule can tell, since what is lost may have been anything within its range. So every range that was
//! lost is told with its places and vnodes, and called *suspect* where the new folder holds something else of that range: there old values
//! may show and deleted keys may be back. Versions are left intact, so that a newer copy (a replica, a backup) joins over them later.

use super::EngineError;
use super::block::BlockCache;
use super::format::layout::{BadLayout, Layout, layout_block, parse_layout};
use super::format::manifest::{Edit, Level, Part, TableId, TableRecord};
use super::format::place_namespace_token;
use super::format::table::Header;
use super::inspect::place_text;
use super::levels::TableFile;
use super::manifest::{self, CURRENT, Manifest, State, read_file};
use super::memtable::{Memtable, MemtableConfig};
use super::pick::Policy;
use super::recover::{LATER_LAYOUT, LAYOUT, TABLES, shard_name};
use super::tables::{Tables, TablesConfig, cache_id};
use super::vnode_set::VnodeSet;
use super::wal::CEILING_AHEAD;
use super::wal_segments::segment_number;
use crate::base::codec::Malformed;
use crate::base::record::{core_of, vnode_of};
use crate::base::time::HLC_COUNTER_BITS;
use crate::io::Io;
use crate::io::op::OpenHow;
use crate::limits::{BLOCK_BYTES, TABLE_BYTES_MAX};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::rc::Rc;

mod log;
mod tables;

/// Bytes of cells from the log that are kept in memory before they become a table.
const MEMTABLE_BYTES: usize = 32 << 20;

/// Something that was there and is not in the new folder.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lost {
    /// Below the data folder.
    pub file: String,
    pub offset: u64,
    /// 0: to the file's end, or all of it.
    pub bytes: u64,
    pub why: String,
    /// What may have been in it: places above the first and below the second (each empty: without a bound), or all of a shard.
    pub range: Option<(Vec<u8>, Vec<u8>)>,
    pub vnodes: Option<(u32, u32)>,
    /// Any key of this core may have been in it.
    pub core: Option<u16>,
    /// The new folder holds something of that range: it may be older than what was lost.
    pub is_suspect: bool,
}

impl std::fmt::Display for Lost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} at {}", self.file, self.offset)?;
        if self.bytes > 0 {
            write!(f, ", {} bytes", self.bytes)?;
        }
        write!(f, ": {}", self.why)?;
        if let Some((from, to)) = &self.range {
            write!(f, "; places between {} and {}", place_text(from), place_text(to))?;
        }
        if let Some((first, last)) = self.vnodes {
            write!(f, "; vnodes {first} to {last}")?;
        }
        if self.is_suspect {
            f.write_str("; SUSPECT: older values of that range are in the new folder, and deleted keys may be back")?;
        }
        Ok(())
    }
}

/// What was copied and what was not.
#[derive(Clone, Debug, Default)]
pub struct SalvageReport {
    pub lines: Vec<String>,
    pub lost: Vec<Lost>,
}

struct Salvage<'a> {
    io: &'a Io,
    from: &'a Path,
    to: &'a Path,
    layout: Layout,
    report: SalvageReport,
    /// Cores whose manifest is lost.
    unruled: BTreeSet<u16>,
}

/// Copies what is sound of `from` into `to`, which must not exist or be empty.
///
/// # Errors
/// `LAYOUT` is damaged (nothing in the folder can be told without it); `to` is not empty or lies in `from`; of writing.
pub async fn salvage(io: &Io, from: &Path, to: &Path) -> Result<SalvageReport, EngineError> {
    let refused = |why: &str| EngineError::Io(std::io::Error::new(std::io::ErrorKind::InvalidInput, why.to_owned()));
    if to.starts_with(from) {
        return Err(refused("the new folder must not lie in the damaged one"));
    }
    let layout = parse_layout(&read_file(io, &from.join(LAYOUT)).await?).map_err(|bad| match bad {
        BadLayout::Damaged(what) => EngineError::corrupt(LAYOUT, 0, what),
        BadLayout::TooNew => EngineError::Unsupported { file: LAYOUT.to_owned(), what: LATER_LAYOUT.to_owned() },
    })?;
    io.make_dir(to).await?;
    if io.list(to).await?.iter().any(|entry| entry.name != "lock") {
        return Err(refused("the new folder is not empty"));
    }
    io.make_dir(&to.join(TABLES)).await?;
    let mut salvage = Salvage { io, from, to, layout, report: SalvageReport::default(), unruled: BTreeSet::new() };
    let mut states = salvage.states().await?;
    salvage.tables(&mut states).await?;
    for (core, state) in (0..).zip(states) {
        salvage.shard(core, state).await?;
    }
    salvage.mark_suspects().await?;
    let mut block = io.buf(BLOCK_BYTES);
    block.copy_from_slice(&layout_block(&Layout { is_copy: true, ..layout }));
    // The last: until it is there the folder is no data folder.
    let file = io.open(&to.join(LAYOUT), OpenHow::Create).await?;
    drop(io.write(&file, 0, block, true).await?);
    io.sync_dir(to).await?;
    Ok(salvage.report)
}

impl Salvage<'_> {
    fn say(&mut self, line: String) {
        self.report.lines.push(line);
    }

    /// The places between two vnodes' first and last, where both are of one namespace.
    fn vnodes_between(&self, from: &[u8], to: &[u8]) -> Option<(u32, u32)> {
        let vnode = |place: &[u8]| (place.len() >= 12).then(|| place_namespace_token(place));
        let (first, last) = (vnode(from)?, vnode(to)?);
        let of = |token| vnode_of(token, self.layout.vnodes);
        (first.0 == last.0).then(|| (of(first.1), of(last.1)))
    }

    /// The state of every shard: as its manifest says; without a sound one, made of all tables that hold vnodes of its own.
    async fn states(&mut self) -> Result<Vec<State>, EngineError> {
        let mut states = Vec::new();
        for core in 0..self.layout.cores {
            let name = shard_name(self.layout.generation, core);
            let dir = self.from.join(&name);
            let is_used =
                |name: &str| name == CURRENT || segment_number(name).is_some() || name.starts_with("MANIFEST-") && name != "MANIFEST-1";
            // A first start that ended before its manifest was in force leaves at most `MANIFEST-1`, and no log.
            if self.io.list(&dir).await.is_ok_and(|entries| !entries.iter().any(|entry| is_used(&entry.name))) {
                self.say(format!("{name}: no manifest yet: this shard never took a write"));
                states.push(State::default());
                continue;
            }
            states.push(match manifest::load(self.io, &dir, self.layout.identity).await {
                Ok((mut state, number, found)) => {
                    self.say(format!("{name}/MANIFEST-{number}: {} tables", state.tables.len()));
                    if found.torn {
                        self.say(format!("{name}/MANIFEST-{number} at {}: torn tail, never acknowledged", found.end_bytes));
                    }
                    // At rest: where a merge was under way, its inputs and outputs are a tree like any other.
                    state.merges.clear();
                    state
                }
                Err(error) => self.state_without_manifest(core, &name, error).await?,
            });
        }
        Ok(states)
    }

    /// Every table that holds vnodes of this core, as a run of level 0 each: cells join by their versions, whatever their order was. What
    /// the manifest alone knew is lost: which of them were consumed, drop sequences, floors, where the log was released.
    async fn state_without_manifest(&mut self, core: u16, name: &str, error: EngineError) -> Result<State, EngineError> {
        let (file, offset, why) = match error {
            EngineError::Corrupt { file, offset, what } => {
                let below = Path::new(&file).strip_prefix(self.from).map_or(file.clone(), |file| file.display().to_string());
                (below, offset, what)
            }
            other => (format!("{name}/MANIFEST"), 0, other.to_string()),
        };
        self.unruled.insert(core);
        let why = format!("{why}; of every key of core {core} (each {}th vnode) an older value may show", self.layout.cores);
        self.report.lost.push(Lost { file, offset, why, core: Some(core), is_suspect: true, ..Lost::default() });
        let own = VnodeSet::of((0..self.layout.vnodes).filter(|&vnode| core_of(vnode, self.layout.cores) == core));
        let mut state = State::default();
        for entry in self.io.list(&self.from.join(TABLES)).await? {
            let Some(id) = TableId::from_file_name(&entry.name) else { continue };
            let parts = vec![Part { vnodes: own.clone(), from: Vec::new() }];
            state.next_run += 1;
            let record = TableRecord { id, level: Level::Zero, run: state.next_run, parts, shared: true, ..TableRecord::default() };
            state.tables.insert(id, record);
        }
        state.next_run += 1;
        Ok(state)
    }

    /// Writes a shard: its manifest, and what its log holds that is in no table.
    async fn shard(&mut self, core: u16, mut state: State) -> Result<(), EngineError> {
        let name = shard_name(self.layout.generation, core);
        let (source, dir) = (self.from.join(&name), self.to.join(&name));
        self.io.make_dir(&dir).await?;
        self.io.sync_dir(self.to).await?;
        let used = self.io.list(&self.from.join(TABLES)).await?;
        let numbers = used.iter().filter_map(|entry| TableId::from_file_name(&entry.name)).filter(|id| id.shard == core);
        state.next_table = state.next_table.max(numbers.map(|id| id.number + 1).max().unwrap_or(0));
        let log = self.find_log(&source, &name, state.released, core).await;
        let identity = self.layout.identity;
        manifest::write_new(self.io, &dir, identity, &state).await?;
        let manifest = Manifest::open_settled(self.io, &dir, identity).await?;
        let tables = self.open_tables(core, manifest).await?;
        let newest = self.write_log(&log, &name, &tables).await?;
        let in_tables = tables.tree().tables().map(|table| table.table.info().versions.1.hlc()).max().unwrap_or(0);
        // Nothing that was ever stamped, lost or not, may be stamped again: lost stamps were not above the wall clock's by much.
        let wall = self.io.wall_ms() << HLC_COUNTER_BITS;
        let ceiling = newest.max(in_tables).max(tables.manifest().state().clock_ceiling).max(wall);
        let edits = vec![Edit::Released(log.last), Edit::ClockCeiling(ceiling.saturating_add(CEILING_AHEAD))];
        tables.manifest().commit(edits, |_| ()).await
    }

    async fn open_tables(&self, core: u16, manifest: Manifest) -> Result<Tables, EngineError> {
        let dir = self.to.join(TABLES);
        let config = TablesConfig {
            dir: dir.clone(),
            shard: core,
            vnodes: self.layout.vnodes,
            table_bytes: TABLE_BYTES_MAX / 4,
            policy: Policy::default(),
            block_bytes: BLOCK_BYTES,
            planted: None,
            is_folder_lost: Default::default(),
        };
        let cache = Rc::new(BlockCache::new(1 << 20, 0));
        Tables::open(self.io, config, manifest, cache, Default::default(), |id| TableFile::new(&dir, id)).await
    }

    /// A lost range is suspect if any table of the new folder reaches into it.
    async fn mark_suspects(&mut self) -> Result<(), EngineError> {
        let mut spans: Vec<(String, Vec<u8>, Vec<u8>)> = Vec::new();
        for core in 0..self.layout.cores {
            let dir = self.to.join(shard_name(self.layout.generation, core));
            let (state, ..) = manifest::load(self.io, &dir, self.layout.identity).await?;
            let start = |table: &TableRecord| (&table.first[..]).max(&table.from[..]).to_vec();
            let span = |table: &TableRecord| (format!("{TABLES}/{}", table.id.file_name()), start(table), table.last.clone());
            spans.extend(state.tables.values().map(span));
        }
        for lost in &mut self.report.lost {
            let Some((from, to)) = &lost.range else { continue };
            lost.is_suspect |= spans.iter().any(|(file, first, last)| *file != lost.file && (to.is_empty() || first <= to) && last >= from);
        }
        // The system's namespace comes first of all, at token 0: what names the others.
        let is_first = |lost: &Lost| lost.core == Some(0) || lost.range.as_ref().is_some_and(|(from, _)| from.starts_with(&[0; 12]));
        if self.report.lost.iter().any(is_first) {
            self.say("the table of namespaces may be an older one or gone: look at `ringkv ns list` before anything is written".to_owned());
        }
        Ok(())
    }
}

/// Bytes that a file holds, copied; runs of zeros stay holes.
async fn copy_file(io: &Io, from: &Path, to: &Path) -> Result<(), EngineError> {
    const COPY_BYTES: u64 = 256 * 1024;
    let (source, target) = (io.open(from, OpenHow::Read).await?, io.open(to, OpenHow::Create).await?);
    let bytes = io.size(&source).await?;
    io.resize(&target, bytes).await?;
    let mut at = 0;
    while at < bytes {
        let buf = io.read(&source, at, COPY_BYTES.min((bytes - at).next_multiple_of(BLOCK_BYTES as u64)) as usize).await?;
        if buf.is_empty() {
            return Err(EngineError::corrupt(&from.display().to_string(), at, Malformed("the file became shorter")));
        }
        let len = buf.len() as u64;
        if buf.iter().any(|&byte| byte != 0) {
            drop(io.write(&target, at, buf, false).await?);
        }
        at += len;
    }
    Ok(io.sync(&target).await?)
}
