//! What a file of a data folder is and holds, in words: `ringkv inspect FILE`. Reads one file (and, where the file does not tell whose it
//! is, the folder's `LAYOUT`), changes nothing, and goes on behind damage as far as the pieces' own checksums carry (`pieces`).
//!
//! Whether a folder as a whole is sound is for `verify`: a torn tail looks like rot to who sees one segment only.

mod log;
mod table;

use super::EngineError;
use super::format::layout::{BadLayout, Layout, parse_layout};
use super::format::manifest::{self, Edit, TableId, TableRecord};
use super::format::{Identity, parse_cell, parse_place, unescape};
use super::manifest::{CURRENT, read_file};
use super::recover::LAYOUT;
use crate::base::codec::Malformed;
use crate::base::record::{Body, Version};
use crate::io::Io;
use crate::io::op::OpenHow;
use crate::limits::BLOCK_BYTES;
use std::fmt::Write;
use std::path::Path;

/// Bytes of a key or element that are shown.
const SHOWN_BYTES: usize = 64;

/// How much is told.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// At most so many of the things that a file holds many of (groups, records, blocks, edits, cells).
    pub limit: usize,
    /// Cells too.
    pub cells: bool,
}

/// A fact.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fact {
    Number(u64),
    Text(String),
}

impl From<u64> for Fact {
    fn from(number: u64) -> Fact {
        Fact::Number(number)
    }
}

impl From<u32> for Fact {
    fn from(number: u32) -> Fact {
        Fact::Number(u64::from(number))
    }
}

impl From<String> for Fact {
    fn from(text: String) -> Fact {
        Fact::Text(text)
    }
}

impl From<&str> for Fact {
    fn from(text: &str) -> Fact {
        Fact::Text(text.to_owned())
    }
}

/// One thing that a file holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    pub what: &'static str,
    pub facts: Vec<(&'static str, Fact)>,
}

impl Line {
    pub(super) fn new(what: &'static str) -> Line {
        Line { what, facts: Vec::new() }
    }

    pub(super) fn with(mut self, name: &'static str, fact: impl Into<Fact>) -> Line {
        self.facts.push((name, fact.into()));
        self
    }

    /// For people: `block: offset 64, bytes 4099, entries 13`.
    pub fn words(&self) -> String {
        let facts: Vec<String> = self
            .facts
            .iter()
            .map(|(name, fact)| match fact {
                Fact::Number(number) => format!("{name} {number}"),
                Fact::Text(text) => format!("{name} {text}"),
            })
            .collect();
        format!("{}: {}", self.what, facts.join(", "))
    }

    /// For programs: one flat object, `what` first.
    pub fn json(&self) -> String {
        let mut out = format!("{{\"what\":{}", quote(self.what));
        for (name, fact) in &self.facts {
            let fact = match fact {
                Fact::Number(number) => number.to_string(),
                Fact::Text(text) => quote(text),
            };
            let _ = write!(out, ",{}:{fact}", quote(name));
        }
        out + "}"
    }
}

fn quote(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        let _ = match c {
            '"' | '\\' => write!(out, "\\{c}"),
            c if u32::from(c) < 0x20 => write!(out, "\\u{:04x}", u32::from(c)),
            c => write!(out, "{c}"),
        };
    }
    out + "\""
}

/// What was found in a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inspection {
    pub lines: Vec<Line>,
    /// Nothing in it is damaged.
    pub is_sound: bool,
}

/// What is told, as it comes.
struct Telling {
    options: Options,
    lines: Vec<Line>,
    /// Of the things that there are many of.
    shown: usize,
    more: u64,
    is_sound: bool,
}

impl Telling {
    fn say(&mut self, line: Line) {
        self.lines.push(line);
    }

    /// One of many: told up to the limit.
    fn one(&mut self, line: impl FnOnce() -> Line) {
        if self.shown < self.options.limit {
            self.shown += 1;
            self.lines.push(line());
        } else {
            self.more += 1;
        }
    }

    fn damaged(&mut self, offset: u64, what: impl Into<Fact>) {
        self.is_sound = false;
        self.say(Line::new("damaged").with("offset", offset).with("why", what));
    }

    /// An error of one piece: `Corrupt` has its own place.
    fn error(&mut self, piece: &'static str, error: &EngineError) {
        self.is_sound = false;
        self.say(match error {
            EngineError::Corrupt { offset, what, .. } => {
                Line::new("damaged").with("piece", piece).with("offset", *offset).with("why", what.as_str())
            }
            other => Line::new("not read").with("piece", piece).with("why", other.to_string()),
        });
    }

    fn cell(&mut self, place: &[u8], cell: &[u8], more: impl FnOnce(Line) -> Line) {
        self.one(|| more(cell_line(place, cell)));
    }
}

/// Tells what a file of a data folder is.
///
/// # Errors
/// It cannot be opened or read at all. Damage is told, not an error.
pub async fn inspect(io: &Io, path: &Path, options: Options) -> Result<Inspection, EngineError> {
    let mut telling = Telling { options, lines: Vec::new(), shown: 0, more: 0, is_sound: true };
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let file = io.open(path, OpenHow::Read).await?;
    let bytes = io.size(&file).await?;
    // Rot in the very first block is no reason to give up: the name tells, too.
    let magic = io.read(&file, 0, BLOCK_BYTES).await.map(|head| head.get(..8).map(<[u8]>::to_vec)).unwrap_or_default();
    drop(file);
    telling.say(Line::new("file").with("name", name.as_str()).with("bytes", bytes));
    match magic.as_deref() {
        Some(b"RINGKVTB") => table::tell(io, path, &mut telling).await?,
        Some(b"RINGKVWL") => log::tell(io, path, &mut telling).await?,
        Some(b"RINGKVMF") => tell_manifest(io, path, &name, &mut telling).await?,
        Some(b"RINGKVLO") => tell_layout(io, path, &mut telling).await?,
        _ if name.ends_with(".table") => table::tell(io, path, &mut telling).await?,
        _ if name.starts_with("wal-") => log::tell(io, path, &mut telling).await?,
        _ if name.starts_with("MANIFEST-") => tell_manifest(io, path, &name, &mut telling).await?,
        _ if name.starts_with(LAYOUT) => tell_layout(io, path, &mut telling).await?,
        _ if name.starts_with(CURRENT) => tell_current(io, path, &mut telling).await?,
        _ if name == "lock" => telling.say(Line::new("lock").with("is", "held by the process that runs on this folder; nothing is in it")),
        _ => {
            telling.is_sound = false;
            telling.say(Line::new("unknown").with("is", "no file of a ringkv data folder, or its first bytes are damaged"));
        }
    }
    if telling.more > 0 {
        telling.say(Line::new("not shown").with("more", telling.more).with("see", "--limit"));
    }
    Ok(Inspection { lines: telling.lines, is_sound: telling.is_sound })
}

/// Whose folder this is, by its `LAYOUT`, which lies beside the file's folder.
async fn layout_near(io: &Io, path: &Path) -> Option<Layout> {
    let folder = path.parent()?.parent().map_or(Path::new("..").join(LAYOUT), |data| data.join(LAYOUT));
    parse_layout(&read_file(io, &folder).await.ok()?).ok()
}

fn identity_facts(line: Line, identity: Identity) -> Line {
    line.with("cluster", format!("{:016x}", identity.cluster)).with("node", format!("{:016x}", identity.node))
}

async fn tell_layout(io: &Io, path: &Path, telling: &mut Telling) -> Result<(), EngineError> {
    let bytes = read_file(io, path).await?;
    match parse_layout(&bytes) {
        Ok(layout) => {
            let line = Line::new("layout")
                .with("version", u32::from(layout.format))
                .with("generation", layout.generation)
                .with("cores", u32::from(layout.cores));
            let line = if layout.is_copy { line.with("is", "a copy") } else { line };
            telling.say(identity_facts(line.with("vnodes", layout.vnodes), layout.identity));
            if bytes.len() != BLOCK_BYTES || bytes[72..].iter().any(|&byte| byte != 0) {
                telling.damaged(72, "not one block, or not zero behind the last field");
            }
        }
        Err(BadLayout::Damaged(what)) => telling.damaged(0, what.0),
        Err(BadLayout::TooNew) => telling.say(Line::new("layout").with("is", "of a later format, which this build does not know")),
    }
    Ok(())
}

async fn tell_current(io: &Io, path: &Path, telling: &mut Telling) -> Result<(), EngineError> {
    let bytes = read_file(io, path).await?;
    let end = bytes.iter().position(|&byte| byte == b'\n');
    let name = end.and_then(|end| std::str::from_utf8(&bytes[..end]).ok()).filter(|name| {
        name.strip_prefix("MANIFEST-").is_some_and(|number| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()))
    });
    match (name, end) {
        (Some(name), Some(end)) => {
            telling.say(Line::new("current").with("names", name));
            if bytes.len() != BLOCK_BYTES || bytes[end + 1..].iter().any(|&byte| byte != 0) {
                telling.damaged(end as u64 + 1, "more than the manifest's name");
            }
        }
        _ => telling.damaged(0, "names no manifest"),
    }
    Ok(())
}

async fn tell_manifest(io: &Io, path: &Path, name: &str, telling: &mut Telling) -> Result<(), EngineError> {
    let bytes = read_file(io, path).await?;
    let found = match manifest::peek_header(&bytes) {
        Ok(found) => {
            telling.say(identity_facts(Line::new("manifest").with("number", found.1), found.0));
            Some(found)
        }
        Err(what) => {
            telling.damaged(0, what.0);
            let number = name.strip_prefix("MANIFEST-").and_then(|number| number.parse().ok());
            layout_near(io, path).await.map(|layout| layout.identity).zip(number)
        }
    };
    let Some((identity, number)) = found else {
        telling
            .say(Line::new("not read").with("piece", "groups").with("why", "without the header or LAYOUT their checksums are not known"));
        return Ok(());
    };
    let (mut state, mut groups, mut edits, mut next, mut end) = (super::manifest::State::default(), 0u64, 0u64, 0, BLOCK_BYTES as u64);
    let mut damage: Option<(u64, Malformed)> = None;
    for (offset, group) in manifest::groups(&bytes, identity, number) {
        match group {
            Ok(group) => {
                if let Some((offset, what)) = damage.take() {
                    telling.damaged(offset, what.0);
                } else if group.number != next {
                    telling.damaged(offset, format!("group {next} is missing"));
                }
                telling
                    .one(|| Line::new("group").with("offset", offset).with("number", group.number).with("edits", group.edits.len() as u64));
                for edit in &group.edits {
                    telling.one(|| edit_line(edit));
                    if let Err(what) = state.apply(edit) {
                        telling.damaged(offset, what.0);
                    }
                }
                (groups, edits, next, end) = (groups + 1, edits + group.edits.len() as u64, group.number + 1, offset + group.bytes);
            }
            Err(what) => damage = damage.or(Some((offset, what))),
        }
    }
    if let Some((offset, what)) = damage {
        // Of a manifest at rest a torn tail is no damage: it was never acknowledged.
        let why = format!("{}: a torn tail, cut at the next start, unless the file is damaged", what.0);
        telling.say(Line::new("torn").with("offset", offset).with("why", why));
    }
    let line = Line::new("holds").with("groups", groups).with("edits", edits).with("sound up to", end);
    telling.say(line.with("tables", state.tables.len() as u64).with("log released below", state.released));
    Ok(())
}

fn edit_line(edit: &Edit) -> Line {
    match edit {
        Edit::AddTable(record) => table_line(record),
        Edit::RemoveTable(id) => Line::new("  remove table").with("table", id.file_name()),
        Edit::RaiseFrom { id, from } => Line::new("  void front").with("table", id.file_name()).with("below", place_text(from)),
        Edit::LinkTable(id) => Line::new("  link table").with("table", id.file_name()),
        Edit::Released(seq) => Line::new("  release log").with("below", *seq),
        Edit::ClockCeiling(hlc) => Line::new("  clock ceiling").with("hlc", *hlc),
        Edit::Vnodes { namespace, first, last, record } => Line::new("  vnodes")
            .with("namespace", *namespace)
            .with("first", *first)
            .with("last", *last)
            .with("incarnation", record.incarnation)
            .with("drop sequence", record.drop_seq)
            .with("fence", version_text(record.fence))
            .with("floor", version_text(record.floor))
            .with("term", record.term)
            .with("lease until", record.lease_until_ms),
        Edit::Numbers { table, run } => Line::new("  numbers").with("next table", *table).with("next run", *run),
        Edit::Merge(None) => Line::new("  merge ended").with("is", "the one begun last"),
        Edit::Merge(Some(merge)) => Line::new("  merge")
            .with("level", merge.level as u32)
            .with("run", merge.run)
            .with("inputs", format!("{:?}", merge.inputs))
            .with("done below", place_text(&merge.done)),
    }
}

fn table_line(record: &TableRecord) -> Line {
    let TableRecord { id, level, run, bytes, entries, first, last, from, vnodes, seqs, parts, shared, linked } = record;
    let flags = match (shared, linked) {
        (false, false) => "own",
        (true, false) => "shared",
        (false, true) => "linked",
        (true, true) => "shared and linked",
    };
    let line = Line::new("  add table").with("table", id.file_name()).with("level", *level as u32).with("run", *run);
    let line = line.with("bytes", *bytes).with("entries", *entries).with("first", place_text(first)).with("last", place_text(last));
    let line = line.with("void below", place_text(from)).with("vnodes", format!("{}..{}", vnodes.0, vnodes.1));
    line.with("log", format!("{}..{}", seqs.0, seqs.1)).with("parts", parts.len() as u64).with("file", flags)
}

/// Of a table: its number as its name says.
fn id_of(path: &Path) -> Option<TableId> {
    TableId::from_file_name(&path.file_name()?.to_string_lossy())
}

/// A place in words.
pub(super) fn place_text(place: &[u8]) -> String {
    if place.is_empty() {
        return "-".to_owned();
    }
    let Ok(parsed) = parse_place(place) else {
        // A separator, or where a merge stands, need not be whole.
        return format!("0x{}", place.iter().take(SHOWN_BYTES).map(|byte| format!("{byte:02x}")).collect::<String>());
    };
    let key = shown(&unescape(parsed.escaped_key));
    let element = if parsed.element.is_empty() { String::new() } else { format!(" {:?} {}", parsed.kind, shown(parsed.element)) };
    format!("{}/{:016x}/{key}{element}", parsed.namespace, parsed.token)
}

fn shown(bytes: &[u8]) -> String {
    let cut = if bytes.len() > SHOWN_BYTES { format!("… ({} bytes)", bytes.len()) } else { String::new() };
    format!("\"{}\"{cut}", bytes[..bytes.len().min(SHOWN_BYTES)].escape_ascii())
}

/// As the shell prints it.
pub(super) fn version_text(version: Version) -> String {
    format!("{:032x}", version.0)
}

fn cell_line(place: &[u8], bytes: &[u8]) -> Line {
    let line = Line::new("  cell").with("place", place_text(place));
    let Ok(cell) = parse_cell(bytes) else { return line.with("is", "no cell") };
    let body = match cell.body {
        Body::Silent => "says nothing of the value".to_owned(),
        Body::Bytes(bytes) => format!("{} bytes", bytes.len()),
        Body::Chunked { .. } => "a string in chunks".to_owned(),
        Body::Collection { of, .. } => format!("{of:?}"),
        Body::Sum { delta, .. } => format!("sum {delta}"),
        Body::RangeEnd(_) => "range tombstone".to_owned(),
        Body::Tombstone => "tombstone".to_owned(),
    };
    let line = line.with("version", version_text(cell.version)).with("value", body);
    if cell.expiry.deadline_ms == 0 { line } else { line.with("expires", cell.expiry.deadline_ms) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_words_or_one_flat_object() {
        let line = Line::new("block").with("offset", 64u64).with("first", "1/00/\"a\\x01\"");
        assert_eq!(line.words(), "block: offset 64, first 1/00/\"a\\x01\"");
        assert_eq!(line.json(), r#"{"what":"block","offset":64,"first":"1/00/\"a\\x01\""}"#);
        assert_eq!((place_text(b""), place_text(b"\x00\x01")), ("-".to_owned(), "0x0001".to_owned()));
        assert!(shown(&[b'k'; 100]).ends_with("… (100 bytes)"));
    }
}
