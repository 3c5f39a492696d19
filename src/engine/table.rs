//! A table on disk, open for reading. Filter, index and version bounds are in memory; a point read is one aligned read of the block's span.
//!
//! The order of a lookup: `may_hold` (no I/O), `peek` (no I/O: the block may be in the cache), `get` (reads at most one block). Several
//! lookups of one block that is not in the cache share one read.

use super::EngineError;
use super::block::{Block, BlockCache, BlockKey, CellBuf};
use super::filter::Filter;
use super::format::Identity;
use super::format::block::BlockView;
use super::format::lz4;
use super::format::table::{Bad, FOOTER_BYTES, Footer, HEADER_BYTES, Header, Properties, Stored, unseal, unseal_block};
use super::format::table_index::{BlockRef, TableIndex};
use super::table_writer::TableInfo;
use crate::base::codec::Malformed;
use crate::base::record::{NamespaceId, Version};
use crate::io::buffer::Buf;
use crate::io::op::OpenHow;
use crate::io::{File, Io};
use crate::limits::BLOCK_BYTES;
use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::path::Path;
use std::rc::Rc;
use std::task::{Poll, Waker};

/// Bytes of one read while a table is opened.
const OPEN_READ_BYTES: u64 = 256 * 1024;

/// Counters that all tables of a core share.
#[derive(Debug, Default)]
pub struct TableStats {
    /// Reads of blocks for lookups.
    pub reads: Cell<u64>,
    /// Bytes of those reads.
    pub read_bytes: Cell<u64>,
    /// Reads by iterators.
    pub scan_reads: Cell<u64>,
    pub scan_bytes: Cell<u64>,
    /// Filters asked.
    pub filter_checks: Cell<u64>,
    /// Lookups that found no cell at the place after the filter let them through. A missing element of a key that is there counts too.
    pub filter_false_positives: Cell<u64>,
}

pub(super) fn bump(counter: &Cell<u64>, by: u64) {
    counter.set(counter.get() + by);
}

/// What a table can say without I/O.
#[derive(Clone, Debug)]
pub enum Peeked {
    Hit(CellBuf),
    Absent,
    NeedsRead,
}

/// A read of a block that several lookups wait for.
#[derive(Default)]
struct Flight {
    /// The reader has ended, well or not.
    is_over: Cell<bool>,
    block: RefCell<Option<Rc<Block>>>,
    wakers: RefCell<Vec<Waker>>,
}

/// An open table.
pub struct Table {
    pub(super) io: Io,
    pub(super) file: File,
    pub(super) path: String,
    id: u64,
    pub(super) header: Header,
    pub(super) footer: Footer,
    pub(super) filter: Filter,
    pub(super) index: TableIndex,
    pub(super) properties: Properties,
    pub(super) stats: Rc<TableStats>,
    info: TableInfo,
    flights: RefCell<Vec<(u64, Rc<Flight>)>>,
}

impl std::fmt::Debug for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "table {}", self.path)
    }
}

impl Table {
    /// Opens a table of `identity`. `table_id` names it in this core's cache and is never reused.
    ///
    /// # Errors
    /// `Corrupt` with the offset, `Unsupported` naming the feature, I/O errors.
    pub async fn open(io: &Io, path: &Path, identity: Identity, table_id: u64, stats: &Rc<TableStats>) -> Result<Rc<Table>, EngineError> {
        // For writing, because the front of a table that a merge has consumed is given back through it.
        let table = Table::open_how(io, path, table_id, stats, OpenHow::ReadWrite).await?;
        if table.header.identity != identity {
            return Err(table.corrupt(0, Malformed("the table of another cluster or node")));
        }
        Ok(table)
    }

    /// Opens a table of whatever node, to read it.
    pub(super) async fn open_any(io: &Io, path: &Path, table_id: u64, stats: &Rc<TableStats>) -> Result<Rc<Table>, EngineError> {
        Table::open_how(io, path, table_id, stats, OpenHow::Read).await
    }

    async fn open_how(io: &Io, path: &Path, table_id: u64, stats: &Rc<TableStats>, how: OpenHow) -> Result<Rc<Table>, EngineError> {
        let name = path.display().to_string();
        let file = io.open(path, how).await?;
        let bytes = io.size(&file).await?;
        let short = |at: u64| EngineError::corrupt(&name, at, Malformed("the table ends too early"));
        let tail_at = bytes.saturating_sub(1) / BLOCK_BYTES as u64 * BLOCK_BYTES as u64;
        let tail = io.read(&file, tail_at, BLOCK_BYTES).await?;
        let tail_bytes = tail.get(..(bytes - tail_at) as usize).ok_or_else(|| short(tail_at))?;
        let head = io.read(&file, 0, BLOCK_BYTES).await?;
        let header = Header::parse(head.get(..HEADER_BYTES).ok_or_else(|| short(0))?).map_err(|bad| bad.at(&name, 0))?;
        let footer_at = bytes.saturating_sub(FOOTER_BYTES as u64);
        let footer = Footer::parse(tail_bytes, bytes).map_err(|bad| bad.at(&name, footer_at))?;
        if footer.salt != header.salt {
            return Err(EngineError::corrupt(&name, footer_at, Malformed("header and footer are of different tables")));
        }
        let meta = read_range(io, &file, footer.filter, footer.end).await?.ok_or_else(|| short(footer.filter))?;
        let section = |from: u64, to: u64| {
            let sealed = &meta[(from - footer.filter) as usize..(to - footer.filter) as usize];
            unseal(sealed, header.salt, from).map_err(|bad| bad.at(&name, from))
        };
        let at = |offset: u64| {
            let name = &name;
            move |what| EngineError::corrupt(name, offset, what)
        };
        let filter = Filter::parse(section(footer.filter, footer.index)?).map_err(at(footer.filter))?;
        let index = section(footer.index, footer.properties)?;
        let index = TableIndex::parse(index, HEADER_BYTES as u64, footer.volatile).map_err(at(footer.index))?;
        let properties = section(footer.properties, footer.end)?;
        let properties = Properties::parse(properties, footer.filter - footer.volatile).map_err(at(footer.properties))?;
        let (stats, flights) = (stats.clone(), RefCell::default());
        let (first, last) = (properties.first.clone(), properties.last.clone());
        let info = TableInfo::new(footer.bytes, properties.counts, first, last, properties.bounds.iter());
        let (io, path) = (io.clone(), name.clone());
        Ok(Rc::new(Table { io, file, path, id: table_id, header, footer, filter, index, properties, stats, info, flights }))
    }

    pub(super) fn corrupt(&self, offset: u64, what: Malformed) -> EngineError {
        EngineError::corrupt(&self.path, offset, what)
    }

    pub(super) fn bad(&self, offset: u64, bad: Bad) -> EngineError {
        bad.at(&self.path, offset)
    }

    /// The id it was opened with.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Whose table it is.
    pub fn identity(&self) -> Identity {
        self.header.identity
    }

    /// The same that the writer gave.
    pub fn info(&self) -> &TableInfo {
        &self.info
    }

    /// Counts, first and last place, bounds.
    pub fn properties(&self) -> &Properties {
        &self.properties
    }

    /// False: no cell of the key with this `filter::prefix_hash` is here.
    #[inline]
    pub fn may_hold(&self, prefix_hash: u64) -> bool {
        bump(&self.stats.filter_checks, 1);
        self.filter.may_hold(prefix_hash)
    }

    /// Least and greatest version of any part of a cell in a vnode of a namespace; None where the table holds nothing of it.
    pub fn version_bounds(&self, namespace: NamespaceId, vnode: u32) -> Option<(Version, Version)> {
        self.properties.bounds.get(namespace, vnode)
    }

    /// Bytes of filter, index, bounds and directory in memory.
    pub fn memory_bytes(&self) -> usize {
        self.filter.memory_bytes() + self.index.memory_bytes() + self.properties.memory_bytes()
    }

    /// Bytes of filter and index in memory.
    pub fn filter_and_index_bytes(&self) -> usize {
        self.filter.memory_bytes() + self.index.memory_bytes()
    }

    /// Where the block begins that would hold `place`: everything before, the file's first `BLOCK_BYTES` excepted, is not needed for
    /// reads from `place` on and may be punched.
    ///
    /// # Errors
    /// The index is damaged (it was checked when the table was opened).
    pub fn offset_of(&self, place: &[u8]) -> Result<u64, EngineError> {
        Ok(self.locate(place)?.map_or(self.footer.volatile, |block| block.offset))
    }

    pub(super) fn locate(&self, place: &[u8]) -> Result<Option<BlockRef>, EngineError> {
        self.index.find(place).map_err(|what| self.corrupt(self.footer.index, what))
    }

    fn is_outside(&self, place: &[u8]) -> bool {
        self.properties.counts.entries == 0 || *place < *self.properties.first || *place > *self.properties.last
    }

    fn key_of(&self, block: &BlockRef) -> BlockKey {
        BlockKey { table: self.id, offset: block.offset }
    }

    fn find_in(&self, block: Rc<Block>, at: u64, place: &[u8]) -> Result<Option<CellBuf>, EngineError> {
        let range = BlockView::new(block.bytes()).and_then(|view| view.find(place)).map_err(|what| self.corrupt(at, what))?;
        let Some(range) = range else {
            bump(&self.stats.filter_false_positives, 1);
            return Ok(None);
        };
        CellBuf::new(block, range).map(Some).map_err(|what| self.corrupt(at, what))
    }

    /// What can be said about `place` without I/O, after the filter said maybe.
    ///
    /// # Errors
    /// A cached block or the index is not well-formed.
    pub fn peek(&self, place: &[u8], cache: &BlockCache) -> Result<Peeked, EngineError> {
        if self.is_outside(place) {
            return Ok(Peeked::Absent);
        }
        let Some(at) = self.locate(place)? else { return Ok(Peeked::Absent) };
        let Some(block) = cache.get(&self.key_of(&at)) else { return Ok(Peeked::NeedsRead) };
        Ok(self.find_in(block, at.offset, place)?.map_or(Peeked::Absent, Peeked::Hit))
    }

    /// The cell at `place`, after the filter said maybe: from the cache, else by one read, whose block goes into the cache.
    ///
    /// # Errors
    /// `Corrupt` naming file and offset, I/O errors.
    pub async fn get(&self, place: &[u8], cache: &BlockCache) -> Result<Option<CellBuf>, EngineError> {
        if self.is_outside(place) {
            return Ok(None);
        }
        let Some(at) = self.locate(place)? else { return Ok(None) };
        let key = self.key_of(&at);
        let block = match cache.get(&key) {
            Some(block) => block,
            None => self.read_shared(&at, cache).await?,
        };
        self.find_in(block, at.offset, place)
    }

    /// Reads a block, or waits for who is reading it already.
    async fn read_shared(&self, at: &BlockRef, cache: &BlockCache) -> Result<Rc<Block>, EngineError> {
        loop {
            let found = self.flights.borrow().iter().find(|(offset, _)| *offset == at.offset).map(|(_, flight)| flight.clone());
            let Some(flight) = found else { break };
            poll_fn(|context| {
                if flight.is_over.get() {
                    return Poll::Ready(());
                }
                flight.wakers.borrow_mut().push(context.waker().clone());
                Poll::Pending
            })
            .await;
            // A reader that failed or was dropped leaves nothing: then this one tries itself.
            if let Some(block) = flight.block.borrow().clone() {
                return Ok(block);
            }
        }
        let flight = Rc::new(Flight::default());
        self.flights.borrow_mut().push((at.offset, flight.clone()));
        let landing = Landing { table: self, offset: at.offset, flight: &flight };
        let block = self.read_block(at).await?;
        cache.insert(self.key_of(at), block.clone());
        *flight.block.borrow_mut() = Some(block.clone());
        drop(landing);
        Ok(block)
    }

    async fn read_block(&self, at: &BlockRef) -> Result<Rc<Block>, EngineError> {
        let start = at.offset / BLOCK_BYTES as u64 * BLOCK_BYTES as u64;
        let bytes = (at.end().next_multiple_of(BLOCK_BYTES as u64) - start) as usize;
        bump(&self.stats.reads, 1);
        bump(&self.stats.read_bytes, bytes as u64);
        let buf = self.io.read(&self.file, start, bytes).await?;
        match self.unseal_in(&buf, start, at)? {
            Stored::Raw(content) => Ok(Block::copied(content)),
            Stored::Packed(packed) => {
                let mut content = Vec::new();
                lz4::unpack(packed, &mut content).map_err(|what| self.corrupt(at.offset, what))?;
                Ok(Block::of(content))
            }
        }
    }

    /// A block that lies in a buffer read at `start`.
    pub(super) fn unseal_in<'a>(&self, buf: &'a Buf, start: u64, at: &BlockRef) -> Result<Stored<'a>, EngineError> {
        let sealed = buf.get((at.offset - start) as usize..(at.end() - start) as usize);
        let sealed = sealed.ok_or_else(|| self.corrupt(at.offset, Malformed("the table ends too early")))?;
        let stored = unseal_block(sealed, self.header.salt, at.offset).map_err(|bad| self.bad(at.offset, bad))?;
        if matches!(stored, Stored::Packed(_)) && !self.header.has_packed {
            return Err(self.corrupt(at.offset, Malformed("a packed block in a table whose header knows of none")));
        }
        Ok(stored)
    }
}

/// Ends a flight, however its reader ends.
struct Landing<'a> {
    table: &'a Table,
    offset: u64,
    flight: &'a Flight,
}

impl Drop for Landing<'_> {
    fn drop(&mut self) {
        self.table.flights.borrow_mut().retain(|(offset, _)| *offset != self.offset);
        self.flight.is_over.set(true);
        self.flight.wakers.take().into_iter().for_each(Waker::wake);
    }
}

/// The bytes of a range of a file; None where the file is shorter.
pub(super) async fn read_range(io: &Io, file: &File, from: u64, to: u64) -> Result<Option<Vec<u8>>, EngineError> {
    let mut bytes = Vec::with_capacity((to - from) as usize);
    let mut at = from / BLOCK_BYTES as u64 * BLOCK_BYTES as u64;
    while at < to {
        let len = (to - at).min(OPEN_READ_BYTES).next_multiple_of(BLOCK_BYTES as u64);
        let buf = io.read(file, at, len as usize).await?;
        let (start, end) = (from.saturating_sub(at) as usize, (to - at).min(len) as usize);
        let Some(part) = buf.get(start..end) else { return Ok(None) };
        bytes.extend_from_slice(part);
        at += len;
    }
    Ok(Some(bytes))
}

#[cfg(test)]
impl Table {
    /// Nobody reads a block now.
    pub(super) fn flights_are_over(&self) -> bool {
        self.flights.borrow().is_empty()
    }
}
