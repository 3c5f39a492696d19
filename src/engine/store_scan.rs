//! Scanning a vnode's keys in order, a page at a time. A page costs what it looks at, and it looks at no more than a bound.

use super::batch::KeyRef;
use super::format::{PLACE_HEADER_BYTES, parse_cell, parse_place, put_cell, put_key_prefix, unescape};
use super::store::{Core, Engine};
use super::table_iter::TableIter;
use super::{EngineError, Seq};
use crate::base::record::{Body, Cell, Kind, NamespaceId, Version, join, token_of};
use crate::base::time::WallMs;
use crate::limits::SCAN_ENTRIES_MAX;

/// A page ends when its values take so much.
const PAGE_BYTES: usize = 1024 * 1024;
/// Keys that a page looks at for each entry that it may give: the dead cost, too.
const KEYS_PER_ENTRY: usize = 16;

/// A live string of a scan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScanEntry {
    pub key: Vec<u8>,
    pub version: Version,
    pub deadline_ms: WallMs,
    pub value: Vec<u8>,
}

/// A part of a scan.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// In order of (token, key).
    pub entries: Vec<ScanEntry>,
    /// Where to go on: give it as `after`. `None`: the vnode ends here.
    pub next: Option<Vec<u8>>,
    /// The log sequence that must be durable before this may be shown; 0 if it is already.
    pub settled: Seq,
}

/// Where a walk goes: a memtable's entries, taken out of it, or a table.
pub(super) enum Source {
    Memory { entries: Vec<(Vec<u8>, Vec<u8>)>, at: usize },
    Table { iter: Box<TableIter>, is_over: bool },
}

impl Source {
    fn entry(&self) -> Option<(&[u8], &[u8])> {
        match self {
            Source::Memory { entries, at } => entries.get(*at).map(|(place, cell)| (&place[..], &cell[..])),
            Source::Table { is_over: true, .. } => None,
            Source::Table { iter, .. } => Some((iter.place(), iter.cell())),
        }
    }

    async fn advance(&mut self) -> Result<(), EngineError> {
        match self {
            Source::Memory { at, .. } => *at += 1,
            Source::Table { iter, is_over } => *is_over = !iter.advance().await?,
        }
        Ok(())
    }
}

/// The places of a vnode of a namespace: the first, and the first behind.
fn range_of(namespace: NamespaceId, vnode: u32, vnodes: u32) -> (Vec<u8>, Vec<u8>) {
    let shift = 64 - vnodes.trailing_zeros();
    let place = |namespace: u32, token: u64| [&namespace.to_be_bytes()[..], &token.to_be_bytes()[..]].concat();
    let from = place(namespace, u64::from(vnode) << shift);
    let to = if vnode + 1 == vnodes { place(namespace + 1, 0) } else { place(namespace, u64::from(vnode + 1) << shift) };
    assert_eq!(from.len(), PLACE_HEADER_BYTES);
    (from, to)
}

fn is_head(place: &[u8]) -> bool {
    parse_place(place).is_ok_and(|place| place.kind == Kind::Head)
}

impl Core {
    /// What lies in memory from `from` on, heads only, at most `keys_max` of each memtable. Also the last place up to which all were
    /// seen, if not to the end; and the newest log record that touched any of the vnode.
    fn scan_memory(&self, namespace: NamespaceId, vnode: u32, from: &[u8], keys_max: usize) -> (Vec<Source>, Option<Vec<u8>>, Seq) {
        let mems = self.mems.borrow();
        let (mut sources, mut bound, mut seq) = (Vec::new(), None::<Vec<u8>>, 0);
        for table in mems.sealed.iter().map(|sealed| &*sealed.table).chain([&mems.active]) {
            let mut heads = table.vnode_entries(namespace, vnode, from).filter(|(place, _)| is_head(place));
            let entries: Vec<_> = heads.by_ref().take(keys_max).map(|(place, cell)| (place.to_vec(), cell.to_vec())).collect();
            if heads.next().is_some() {
                let last = entries.last().map(|(place, _)| place.clone()).unwrap_or_default();
                bound = Some(bound.map_or(last.clone(), |bound| bound.min(last)));
            }
            for (place, _) in &entries {
                seq = seq.max(table.get(place).map_or(0, |(_, seq)| seq));
            }
            sources.push(Source::Memory { entries, at: 0 });
        }
        (sources, bound, seq)
    }

    /// What lies in tables between two places of a vnode. The tree is looked at before anything is waited for, so in one instant with what
    /// the caller has just taken from memory.
    pub(super) async fn scan_tables(
        &self,
        namespace: NamespaceId,
        vnode: u32,
        (from, to): (&[u8], &[u8]),
        sources: &mut Vec<Source>,
    ) -> Result<(), EngineError> {
        let tree = self.tables.tree();
        let drop_seq = self.tables.manifest().state().vnodes.get(namespace, vnode).drop_seq;
        for run in &tree.runs {
            for table in run.overlapping(from, Some(to)).iter().filter(|table| !table.is_void(drop_seq)) {
                let Some(start) = table.record.start_of(vnode).map(|start| start.max(from)) else { continue };
                let mut source = Source::Table { iter: Box::new(table.table.iter(start, Some(to))), is_over: false };
                source.advance().await?;
                sources.push(source);
            }
        }
        Ok(())
    }
}

/// Walks all sources together.
pub(super) struct Walk {
    sources: Vec<Source>,
    pub(super) place: Vec<u8>,
    pub(super) cell: Vec<u8>,
}

impl Walk {
    pub(super) fn new(sources: Vec<Source>) -> Walk {
        Walk { sources, place: Vec::new(), cell: Vec::new() }
    }

    /// The next place, its cells joined; false at the end.
    pub(super) async fn next(&mut self) -> Result<bool, EngineError> {
        let least = self.sources.iter().filter_map(|source| source.entry().map(|(place, _)| place)).min();
        let Some(least) = least else { return Ok(false) };
        self.place.clear();
        self.place.extend_from_slice(least);
        let mut has_one = false;
        for source in &mut self.sources {
            let Some((_, cell)) = source.entry().filter(|(place, _)| *place == self.place) else { continue };
            let damaged = |what| EngineError::corrupt("a table", 0, what);
            if has_one {
                let joined = join(parse_cell(&self.cell).map_err(damaged)?, parse_cell(cell).map_err(damaged)?);
                let mut out = Vec::new();
                put_cell(&mut out, &joined);
                self.cell = out;
            } else {
                self.cell.clear();
                self.cell.extend_from_slice(cell);
                has_one = true;
            }
            source.advance().await?;
        }
        Ok(true)
    }
}

impl Engine {
    /// A page of the live strings of a vnode, behind key `after` (`None`: from the start), at most `limit` of them (a page may be
    /// smaller, even empty, and not the last).
    ///
    /// # Errors
    /// `Corrupt` naming file and offset; of the disk; as `read_value`.
    pub async fn scan(
        &self,
        namespace: NamespaceId,
        vnode: u32,
        after: Option<&[u8]>,
        limit: usize,
        now_ms: WallMs,
    ) -> Result<Page, EngineError> {
        let core = &self.core;
        let limit = limit.clamp(1, SCAN_ENTRIES_MAX);
        let keys_max = limit * KEYS_PER_ENTRY;
        let (mut from, to) = range_of(namespace, vnode, core.store.vnodes());
        if let Some(after) = after {
            from.clear();
            put_key_prefix(&mut from, namespace, token_of(after), after);
            // A key's prefix ends with 1: behind all of its places.
            *from.last_mut().expect("a prefix is not empty") = 2;
        }
        let (mut sources, bound, seq) = core.scan_memory(namespace, vnode, &from, keys_max);
        core.scan_tables(namespace, vnode, (&from, &to), &mut sources).await?;
        let mut walk = Walk::new(sources);
        let mut page = Page { settled: if seq > core.wal.durable() { seq } else { 0 }, ..Page::default() };
        let (mut keys, mut bytes) = (0, 0);
        while walk.next().await? {
            if core.io.slice_is_over() {
                core.io.yield_now().await;
            }
            if !is_head(&walk.place) {
                continue;
            }
            keys += 1;
            let cell = parse_cell(&walk.cell).map_err(|what| EngineError::corrupt("a table", 0, what))?;
            let key = unescape(parse_place(&walk.place).expect("looked at above").escaped_key);
            if let Some(entry) = self.entry_of(namespace, &key, &cell, now_ms).await? {
                bytes += entry.key.len() + entry.value.len();
                page.entries.push(entry);
            }
            let is_bound = bound.as_ref().is_some_and(|bound| *bound <= walk.place);
            if page.entries.len() >= limit || keys >= keys_max || bytes >= PAGE_BYTES || is_bound {
                page.next = Some(key);
                return Ok(page);
            }
        }
        Ok(page)
    }

    async fn entry_of(
        &self,
        namespace: NamespaceId,
        key: &[u8],
        cell: &Cell<'_>,
        now_ms: WallMs,
    ) -> Result<Option<ScanEntry>, EngineError> {
        if !cell.is_live(now_ms) {
            return Ok(None);
        }
        let (version, deadline_ms) = (cell.version, cell.expiry.deadline_ms);
        match cell.body {
            Body::Bytes(value) => Ok(Some(ScanEntry { key: key.to_vec(), version, deadline_ms, value: value.to_vec() })),
            Body::Chunked { .. } => {
                let whole = self.read_value(KeyRef { namespace, token: token_of(key), key }, now_ms).await?;
                Ok(whole.map(|v| ScanEntry { key: key.to_vec(), version: v.version, deadline_ms: v.deadline_ms, value: v.bytes }))
            }
            _ => Ok(None),
        }
    }
}
