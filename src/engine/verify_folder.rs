//! Verifies a whole data folder that no node holds, and changes nothing in it: the layout, every shard's manifest and log as recovery
//! would judge them, and every table that a manifest names, entry by entry.
//!
//! Three kinds of answer. **Lines** say what is there, also what a crash has left: a torn tail (cut at the next start, never acknowledged),
//! half-made files, tables that no manifest names. **Damage** is what a node would refuse or miss: bytes that are not what was written,
//! files that are gone; each names file and offset. **Unread** is what cannot be judged: I/O errors, and files of a later format.

use super::EngineError;
use super::format::Identity;
use super::format::layout::{BadLayout, Layout, parse_layout};
use super::format::manifest::TableId;
use super::format::table::Header;
use super::format::wal::{Record, parse_record};
use super::manifest::{self, CURRENT, FileBytes, State, read_file};
use super::recover::{LAYOUT, TABLES, shard_name};
use super::tables::cache_id;
use super::verify::verify_table_from;
use super::wal_replay::WalReader;
use super::wal_segments::segment_number;
use crate::base::codec::Malformed;
use crate::io::Io;
use crate::io::op::Entry;
use crate::limits::BLOCK_BYTES;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Bytes of a file that are not what was written, or a file that is gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// Below the data folder.
    pub file: String,
    pub offset: u64,
    pub what: String,
}

impl std::fmt::Display for Damage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} at {}: {}", self.file, self.offset, self.what)
    }
}

/// What was read, what is damaged, and what could not be judged.
#[derive(Clone, Debug, Default)]
pub struct FolderReport {
    /// A file or a log each: what it holds.
    pub lines: Vec<String>,
    pub damage: Vec<Damage>,
    pub unread: Vec<String>,
}

/// Reads everything in a node's data folder; changes no byte.
///
/// # Errors
/// The folder itself cannot be listed. Everything else is in the report.
pub async fn verify_folder(io: &Io, data: &Path) -> Result<FolderReport, EngineError> {
    let entries = io.list(data).await?;
    let mut look = Look { io, data, report: FolderReport::default(), named: BTreeMap::new(), all_manifests: true };
    let Some(layout) = look.layout(&entries).await else { return Ok(look.report) };
    for core in 0..layout.cores {
        look.shard(&layout, core).await;
    }
    look.tables(&layout).await;
    look.others(&layout, &entries);
    Ok(look.report)
}

/// What the manifests say of a table.
struct Named {
    /// Blocks below this place are void for every shard that names it.
    from: Vec<u8>,
    bytes: u64,
    entries: u64,
    first: Vec<u8>,
    last: Vec<u8>,
}

struct Look<'a> {
    io: &'a Io,
    data: &'a Path,
    report: FolderReport,
    named: BTreeMap<TableId, Named>,
    /// So that a table which none of them names is a leftover.
    all_manifests: bool,
}

impl Look<'_> {
    fn say(&mut self, line: String) {
        self.report.lines.push(line);
    }

    fn damaged(&mut self, file: &str, offset: u64, what: impl Into<String>) {
        self.report.damage.push(Damage { file: file.to_owned(), offset, what: what.into() });
    }

    /// Files an error under what it is. `about` names the file where the error does not.
    fn take(&mut self, about: &str, error: EngineError) {
        match error {
            EngineError::Corrupt { file, offset, what } => {
                let file = Path::new(&file).strip_prefix(self.data).map_or(file.clone(), |file| file.display().to_string());
                self.damaged(&file, offset, what);
            }
            EngineError::Io(error) if error.kind() == std::io::ErrorKind::NotFound => self.damaged(about, 0, "the file is gone"),
            EngineError::Unsupported { what, .. } => self.report.unread.push(format!("{about}: {what}, which this build does not know")),
            other => self.report.unread.push(format!("{about}: {other}")),
        }
    }

    /// The file's whole bytes; without them the error is told.
    async fn read(&mut self, name: &str) -> Option<FileBytes> {
        match read_file(self.io, &self.data.join(name)).await {
            Ok(bytes) => Some(bytes),
            Err(error) => {
                self.take(name, error);
                None
            }
        }
    }

    async fn list(&mut self, name: &str) -> Option<Vec<Entry>> {
        match self.io.list(&self.data.join(name)).await {
            Ok(entries) => Some(entries),
            Err(error) => {
                self.take(name, error.into());
                None
            }
        }
    }

    async fn layout(&mut self, entries: &[Entry]) -> Option<Layout> {
        if !entries.iter().any(|entry| entry.name == LAYOUT) {
            let begun = entries.iter().filter(|entry| generation_of(&entry.name).is_some() || entry.name == TABLES);
            let mut holds_data = false;
            for name in begun.map(|entry| entry.name.clone()) {
                holds_data |= self.list(&name).await.is_none_or(|inside| !inside.is_empty());
            }
            if holds_data {
                self.damaged(LAYOUT, 0, "the file is gone");
            } else {
                self.say(format!("no {LAYOUT}: nothing was ever written here"));
            }
            return None;
        }
        let bytes = self.read(LAYOUT).await?;
        let layout = match parse_layout(&bytes) {
            Ok(layout) => layout,
            Err(BadLayout::Damaged(what)) => {
                self.damaged(LAYOUT, 0, what.0);
                return None;
            }
            Err(bad @ BadLayout::TooNew) => {
                self.report.unread.push(format!("{LAYOUT}: {bad}"));
                return None;
            }
        };
        let words = 72;
        if bytes.len() != BLOCK_BYTES {
            self.damaged(LAYOUT, bytes.len().min(BLOCK_BYTES) as u64, "not one block");
        } else if let Some(at) = bytes[words..].iter().position(|&byte| byte != 0) {
            self.damaged(LAYOUT, (words + at) as u64, "not zero behind the last field");
        }
        let (generation, cores, vnodes) = (layout.generation, layout.cores, layout.vnodes);
        self.say(format!("{LAYOUT}: generation {generation}, {cores} cores, {vnodes} vnodes"));
        Some(layout)
    }

    async fn shard(&mut self, layout: &Layout, core: u16) {
        let name = shard_name(layout.generation, core);
        let Some(entries) = self.list(&name).await else {
            self.all_manifests = false;
            return;
        };
        let has = |of: &dyn Fn(&str) -> bool| entries.iter().any(|entry| of(&entry.name));
        if !has(&|name| name == CURRENT) {
            // A first start that ended before its manifest was in force leaves at most `MANIFEST-1`, and no log.
            if has(&|name| segment_number(name).is_some() || (name.starts_with("MANIFEST-") && name != "MANIFEST-1")) {
                self.damaged(&format!("{name}/{CURRENT}"), 0, "the file is gone");
                self.all_manifests = false;
            } else {
                self.say(format!("{name}: no manifest yet: this shard never took a write"));
            }
            return;
        }
        let state = self.manifest(layout.identity, &name).await;
        match &state {
            Some((state, manifest)) => {
                self.name_tables(state);
                self.log(layout.identity, &name, &entries, state.released).await;
                let known = |entry: &str| entry == CURRENT || entry == manifest || segment_number(entry).is_some();
                for entry in entries.iter().filter(|entry| !known(&entry.name)) {
                    self.say(format!("{name}/{}: left over, {} bytes", entry.name, entry.bytes));
                }
            }
            None => {
                self.all_manifests = false;
                self.say(format!("{name}: the log is not judged without the manifest"));
            }
        }
    }

    /// The manifest in force: its state and its file's name in the folder.
    async fn manifest(&mut self, identity: Identity, name: &str) -> Option<(State, String)> {
        let (dir, current) = (self.data.join(name), format!("{name}/{CURRENT}"));
        let bytes = self.read(&current).await?;
        let (state, number, found) = match manifest::load(self.io, &dir, identity).await {
            Ok(loaded) => loaded,
            Err(EngineError::Io(error)) if error.kind() == std::io::ErrorKind::NotFound => {
                let line = bytes.split(|&byte| byte == b'\n').next().unwrap_or_default();
                self.damaged(&current, 0, format!("names {name}/{}, which is not there", String::from_utf8_lossy(line).escape_default()));
                return None;
            }
            Err(error) => {
                self.take(&format!("{name}/MANIFEST"), error);
                return None;
            }
        };
        let file = format!("MANIFEST-{number}");
        let mut expected = format!("{file}\n").into_bytes();
        expected.resize(BLOCK_BYTES, 0);
        if bytes[..] != expected {
            let at = bytes.iter().zip(&expected).position(|(is, should)| is != should);
            self.damaged(&current, at.unwrap_or(bytes.len().min(BLOCK_BYTES)) as u64, "more than the manifest's name");
        }
        let (tables, edits, groups) = (state.tables.len(), found.edits.len(), found.next_group);
        self.say(format!("{name}/{file}: {tables} tables, {edits} edits in {groups} groups"));
        if found.torn {
            self.say(format!("{name}/{file} at {}: torn tail, cut at the next start", found.end_bytes));
        }
        Some((state, file))
    }

    fn name_tables(&mut self, state: &State) {
        for (&id, record) in &state.tables {
            let named = self.named.entry(id).or_insert_with(|| Named {
                from: record.from.clone(),
                bytes: record.bytes,
                entries: record.entries,
                first: record.first.clone(),
                last: record.last.clone(),
            });
            if record.from < named.from {
                named.from.clone_from(&record.from);
            }
        }
    }

    /// A shard's log, judged as recovery judges it.
    async fn log(&mut self, identity: Identity, name: &str, entries: &[Entry], released: u64) {
        let mut numbers: Vec<u64> = entries.iter().filter_map(|entry| segment_number(&entry.name)).collect();
        numbers.sort_unstable();
        let mut reader = match WalReader::open_to_read(self.io, &self.data.join(name), identity, released).await {
            Ok(reader) => reader,
            Err(error) => return self.take(&format!("{name}/wal"), error),
        };
        let mut group = 0;
        loop {
            let mut bad = None;
            let mut check = |seq, record: &[u8]| {
                bad = bad.or(check_record(record).err().map(|what| (seq, what)));
                Ok(())
            };
            match reader.next_group(&mut check).await {
                Ok(false) => break,
                Ok(true) => {}
                // Past it nothing is in order any more.
                Err(error) => return self.take(&format!("{name}/wal"), error),
            }
            if let Some((seq, what)) = bad {
                let planned = &reader.plan.groups[group];
                let file = format!("{name}/{}", file_name(&reader.segments[planned.segment].path));
                self.damaged(&file, u64::from(planned.start) * BLOCK_BYTES as u64, format!("record {seq}: {}", what.0));
            }
            group += 1;
        }
        for segment in &reader.segments {
            let (file, lap, last) = (file_name(&segment.path), segment.lap, segment.last);
            self.say(format!("{name}/{file}: {} bytes, lap {lap}, up to record {last}", segment.bytes()));
        }
        if let (Some(&first), Some(&last)) = (numbers.first(), numbers.last())
            && last - first + 1 != numbers.len() as u64
        {
            // A number that a full disk burnt looks the same, and the sequences have shown that nothing is missing.
            self.say(format!(
                "{name}: {} numbers of segments are not there; nothing of the log is in them",
                last - first + 1 - numbers.len() as u64
            ));
        }
        let (records, bytes) = (reader.records, reader.bytes);
        self.say(format!(
            "{name}: log of {group} groups, {records} records, {bytes} bytes that are not in tables; last record {}",
            reader.plan.last
        ));
        if let Some((at, blocks)) = reader.plan.torn {
            let (file, offset) = (file_name(&reader.segments[at.segment].path), u64::from(at.block) * BLOCK_BYTES as u64);
            self.say(format!("{name}/{file} at {offset}: torn tail of {blocks} blocks, cut at the next start"));
        }
    }

    async fn tables(&mut self, layout: &Layout) {
        let entries = match self.io.list(&self.data.join(TABLES)).await {
            Ok(entries) => entries,
            Err(error) => return self.take(TABLES, error.into()),
        };
        for (id, named) in std::mem::take(&mut self.named) {
            let name = format!("{TABLES}/{}", id.file_name());
            if entries.iter().any(|entry| entry.name == id.file_name()) {
                self.table(layout.identity, &name, id, &named).await;
            } else {
                self.damaged(&name, 0, "the file is gone");
            }
            self.named.insert(id, named);
        }
        for entry in &entries {
            if TableId::from_file_name(&entry.name).is_none_or(|id| !self.named.contains_key(&id)) {
                let why =
                    if self.all_manifests { "no manifest names it, the next start removes it" } else { "not judged without its manifest" };
                self.say(format!("{TABLES}/{}: {} bytes, {why}", entry.name, entry.bytes));
            }
        }
    }

    async fn table(&mut self, identity: Identity, name: &str, id: TableId, named: &Named) {
        let report = match verify_table_from(self.io, &self.data.join(name), &named.from).await {
            Ok(report) => report,
            Err(error) => return self.take(name, error),
        };
        let info = &report.info;
        if report.identity != identity {
            self.damaged(name, 0, "the table of another cluster or node");
        } else if report.salt != Header::new(identity, cache_id(id)).salt {
            self.damaged(name, 0, "a table under another's name");
        } else if (info.bytes, info.counts.entries, &info.first, &info.last) != (named.bytes, named.entries, &named.first, &named.last) {
            self.damaged(name, 0, "not the table that the manifest names");
        }
        let void = if named.from.is_empty() { "" } else { ", its front given back" };
        self.say(format!("{name}: {} bytes, {} entries{void}", info.bytes, report.entries));
    }

    fn others(&mut self, layout: &Layout, entries: &[Entry]) {
        for entry in entries {
            match generation_of(&entry.name) {
                Some(generation) if generation != layout.generation => {
                    self.say(format!("{}: of a generation that is not in force, the next start removes it", entry.name));
                }
                None if entry.name == "LAYOUT.new" => self.say(format!("{}: left over, the next start removes it", entry.name)),
                _ => {}
            }
        }
    }
}

/// The generation in the name of a shard's folder.
fn generation_of(name: &str) -> Option<u64> {
    name.strip_prefix('g')?.split_once("-s")?.0.parse().ok()
}

fn file_name(path: &Path) -> String {
    PathBuf::from(path.file_name().unwrap_or_default()).display().to_string()
}

fn check_record(record: &[u8]) -> Result<(), Malformed> {
    if let Record::Batch(mut batch) = parse_record(record)? {
        while batch.next_cell()?.is_some() {}
    }
    Ok(())
}
