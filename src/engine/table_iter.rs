//! Reading a table in order: entries by sequential reads that grow from small to large and pass the cache by, and the cells that will
//! expire, page by page, forward as time passes.

use super::EngineError;
use super::format::block::{BlockCursor, BlockView};
use super::format::lz4;
use super::format::table::{Stored, VolatileAt, VolatileEntry, next_volatile, unseal};
use super::format::table_index::BlockRef;
use super::table::{Table, bump, read_range};
use crate::base::codec::Malformed;
use crate::base::time::WallMs;
use crate::io::buffer::Buf;
use crate::limits::BLOCK_BYTES;
use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::ops::Range;
use std::pin::Pin;
use std::rc::Rc;
use std::task::Poll;

/// The first read of an iterator; each later one is twice as large.
const READ_BYTES_MIN: u64 = 16 * 1024;
/// The largest. From then on the next read is under way while this one's entries are taken.
const READ_BYTES_MAX: u64 = 128 * 1024;
/// Reads under way beyond the one whose entries are taken, for those that read ahead. It begins with one; each time that it had not ended
/// when it was needed there is one more, so that the run that gives a merge most of its entries is read as fast as they are taken, and the
/// others hold little memory.
const READS_AHEAD_MAX: usize = 6;
/// Blocks that are known ahead for each read under way, at least.
const BLOCKS_AHEAD: usize = 40;

type Reading = Pin<Box<dyn Future<Output = std::io::Result<(Buf, usize)>>>>;

/// A read that was begun, of the bytes from `start` to `end`.
struct Read {
    start: u64,
    end: u64,
    reading: Reading,
}

/// A walk through a part of a table, in order of places.
pub struct TableIter {
    table: Rc<Table>,
    from: Option<Vec<u8>>,
    to: Option<Vec<u8>>,
    /// The number of the first block that is not in `refs` yet, and of the last block that can matter.
    next_number: u32,
    last_number: u32,
    refs: VecDeque<BlockRef>,
    read_bytes: u64,
    chunk: Option<(u64, Buf)>,
    /// The reads after that, under way, and how many there should be.
    ahead: VecDeque<Read>,
    depth: usize,
    depth_max: usize,
    /// The block it stands in.
    block: Option<BlockRef>,
    /// Its content, in the chunk; where it is packed there, it is in `unpacked`.
    content: Range<usize>,
    unpacked: Vec<u8>,
    is_packed: bool,
    cursor: BlockCursor,
    cell: Range<usize>,
    is_over: bool,
}

impl Table {
    /// Entries from place `from` on, up to `to` (excluded) if given.
    pub fn iter(self: &Rc<Self>, from: &[u8], to: Option<&[u8]>) -> TableIter {
        TableIter {
            table: self.clone(),
            from: Some(from.to_vec()),
            to: to.map(<[u8]>::to_vec),
            next_number: 0,
            last_number: 0,
            refs: VecDeque::new(),
            read_bytes: READ_BYTES_MIN,
            chunk: None,
            ahead: VecDeque::new(),
            depth: 1,
            depth_max: 1,
            block: None,
            content: 0..0,
            unpacked: Vec::new(),
            is_packed: false,
            cursor: BlockCursor::default(),
            cell: 0..0,
            is_over: false,
        }
    }

    /// Cells that will expire, from deadline `from_ms` on, in order of deadlines.
    pub fn expiring(self: &Rc<Self>, from_ms: WallMs) -> Expiring {
        // The page before the first that begins at `from_ms` may hold the first ones.
        let page = self.properties.pages.partition_point(|page| page.first_deadline_ms < from_ms).saturating_sub(1);
        let offset = self.footer.volatile + self.properties.pages[..page].iter().map(|page| u64::from(page.bytes)).sum::<u64>();
        Expiring { table: self.clone(), from_ms, page, offset, loaded: None }
    }
}

impl TableIter {
    /// For a reader that will read on to the end, and of which there are few: it may have more reads under way where it has to wait for
    /// them.
    pub fn reading_ahead(self) -> TableIter {
        TableIter { depth_max: READS_AHEAD_MAX, ..self }
    }

    /// The next place and cell, both encoded; None at the end.
    ///
    /// # Errors
    /// `Corrupt` naming file and offset, I/O errors. After an error it is over.
    pub async fn next(&mut self) -> Result<Option<(&[u8], &[u8])>, EngineError> {
        if !self.advance().await? {
            return Ok(None);
        }
        Ok(Some((self.place(), self.cell())))
    }

    /// Goes to the next entry (the first, at the first call); false at the end.
    ///
    /// # Errors
    /// As `next`.
    pub async fn advance(&mut self) -> Result<bool, EngineError> {
        if self.is_over {
            return Ok(false);
        }
        let stepped = self.step().await;
        self.is_over = !matches!(stepped, Ok(true));
        if self.is_over {
            (self.chunk, self.block) = (None, None);
            self.ahead.clear();
        }
        stepped
    }

    /// The encoded place it stands on.
    pub fn place(&self) -> &[u8] {
        &self.cursor.place
    }

    /// The encoded cell it stands on.
    pub fn cell(&self) -> &[u8] {
        self.content().map_or(&[], |content| &content[self.cell.clone()])
    }

    /// The block's content.
    fn content(&self) -> Option<&[u8]> {
        let (_, buf) = self.chunk.as_ref()?;
        Some(if self.is_packed { &self.unpacked } else { &buf[self.content.clone()] })
    }

    /// The file, and where in it the current block begins.
    pub fn position(&self) -> (String, u64) {
        (self.table.path.clone(), self.block.map_or(0, |block| block.offset))
    }

    /// The current block is packed on disk.
    pub(super) fn is_packed(&self) -> bool {
        self.is_packed
    }

    /// The number of the current block.
    pub(super) fn block_number(&self) -> Option<u32> {
        self.block.map(|block| block.number)
    }

    async fn step(&mut self) -> Result<bool, EngineError> {
        if self.block.is_none() && !self.begin().await? {
            return Ok(false);
        }
        loop {
            if self.step_in_block()? {
                if self.from.as_ref().is_some_and(|from| self.cursor.place < *from) {
                    continue;
                }
                self.from = None;
                return Ok(self.to.as_ref().is_none_or(|to| self.cursor.place < *to));
            }
            if !self.next_block().await? {
                return Ok(false);
            }
        }
    }

    fn step_in_block(&mut self) -> Result<bool, EngineError> {
        let (Some((_, buf)), Some(block)) = (&self.chunk, self.block) else { return Ok(false) };
        let content = if self.is_packed { &self.unpacked[..] } else { &buf[self.content.clone()] };
        let advanced = BlockView::new(content).and_then(|view| self.cursor.advance(&view));
        let Some(cell) = advanced.map_err(|what| self.table.corrupt(block.offset, what))? else { return Ok(false) };
        self.cell = cell;
        Ok(true)
    }

    /// Finds the first block and the last one that can matter.
    async fn begin(&mut self) -> Result<bool, EngineError> {
        let from = self.from.clone().unwrap_or_default();
        let properties = &self.table.properties;
        if properties.counts.entries == 0 || from > properties.last || self.to.as_ref().is_some_and(|to| *to <= properties.first) {
            return Ok(false);
        }
        let Some(first) = self.table.locate(&from)? else { return Ok(false) };
        self.next_number = first.number;
        self.last_number = match &self.to {
            Some(to) => self.table.locate(to)?.map_or(0, |block| block.number),
            None => self.table.index.blocks().saturating_sub(1),
        };
        self.next_block().await
    }

    fn fill_refs(&mut self) -> Result<(), EngineError> {
        // Enough of them for whole reads, so that no short one follows each group of the index.
        while self.refs.len() < BLOCKS_AHEAD * (self.depth + 1) && self.next_number <= self.last_number {
            let filled = self.table.index.blocks_from(self.next_number, &mut self.refs);
            filled.map_err(|what| self.table.corrupt(self.table.footer.index, what))?;
            let last = self.last_number;
            self.refs.retain(|block| block.number <= last);
            self.next_number = self.refs.back().map_or(last, |block| block.number) + 1;
        }
        Ok(())
    }

    async fn next_block(&mut self) -> Result<bool, EngineError> {
        self.fill_refs()?;
        let Some(block) = self.refs.pop_front() else { return Ok(false) };
        let has = |(start, buf): &(u64, Buf)| *start <= block.offset && block.end() <= start + buf.len() as u64;
        if !self.chunk.as_ref().is_some_and(has) {
            self.read_chunk(&block).await?;
        }
        let Some((start, buf)) = &self.chunk else { return Ok(false) };
        let stored = self.table.unseal_in(buf, *start, &block)?;
        self.is_packed = matches!(stored, Stored::Packed(_));
        match stored {
            Stored::Raw(content) => {
                let at = (block.offset - start) as usize;
                self.content = at..at + content.len();
            }
            Stored::Packed(packed) => lz4::unpack(packed, &mut self.unpacked).map_err(|what| self.table.corrupt(block.offset, what))?,
        }
        self.cursor.reset();
        self.block = Some(block);
        Ok(true)
    }

    /// The bytes from a block on, as far as one read goes. Other reads begin behind it.
    async fn read_chunk(&mut self, first: &BlockRef) -> Result<(), EngineError> {
        let mut used = self.chunk.take().map(|(_, buf)| buf);
        let begun = self.ahead.pop_front().filter(|read| read.start == start_of(first));
        let was_ahead = begun.is_some();
        let mut read = begun.unwrap_or_else(|| {
            self.ahead.clear();
            self.begin_read(first, 0, None)
        });
        let looked = begin(&mut read.reading).await;
        if was_ahead && looked.is_none() {
            self.depth = (self.depth + 1).min(self.depth_max);
            self.fill_refs()?;
        }
        let mut end = self.ahead.back().map_or(read.end, |last| last.end);
        while self.read_bytes == READ_BYTES_MAX && self.ahead.len() < self.depth {
            let Some(at) = self.refs.iter().position(|block| block.end() > end) else { break };
            let next = self.refs[at];
            let mut read = self.begin_read(&next, at + 1, used.take());
            if let Some(done) = begin(&mut read.reading).await {
                read.reading = Box::pin(std::future::ready(done));
            }
            end = read.end;
            self.ahead.push_back(read);
        }
        let done = match looked {
            Some(done) => done,
            None => read.reading.await,
        };
        self.chunk = Some((read.start, done?.0));
        Ok(())
    }

    /// A read from `first` on over as many of the blocks from the `rest`th known one on as fit, whole ones only; `used` is a buffer to be
    /// used again.
    fn begin_read(&mut self, first: &BlockRef, rest: usize, used: Option<Buf>) -> Read {
        let start = start_of(first);
        let fits = |block: &&BlockRef| block.end() <= start + self.read_bytes;
        let end = self.refs.iter().skip(rest).take_while(fits).last().map_or(first.end(), BlockRef::end);
        let bytes = end.next_multiple_of(BLOCK_BYTES as u64) - start;
        bump(&self.table.stats.scan_reads, 1);
        bump(&self.table.stats.scan_bytes, bytes);
        self.read_bytes = (self.read_bytes * 2).min(READ_BYTES_MAX);
        let table = self.table.clone();
        let buf = used.filter(|buf| buf.len() as u64 == bytes).unwrap_or_else(|| table.io.buf_to_fill(bytes as usize));
        Read { start, end: start + bytes, reading: Box::pin(async move { table.io.read_into(&table.file, start, buf).await }) }
    }
}

/// Asks a read once: then it is under way, and is asked again when its bytes are needed. What it gave, if it has ended.
async fn begin(reading: &mut Reading) -> Option<std::io::Result<(Buf, usize)>> {
    poll_fn(|context| {
        Poll::Ready(match reading.as_mut().poll(context) {
            Poll::Ready(done) => Some(done),
            Poll::Pending => None,
        })
    })
    .await
}

fn start_of(block: &BlockRef) -> u64 {
    block.offset / BLOCK_BYTES as u64 * BLOCK_BYTES as u64
}

/// Reads the cells that will expire, forward. Holds one page while inside it.
pub struct Expiring {
    table: Rc<Table>,
    from_ms: WallMs,
    /// The page that is read next, and where it lies.
    page: usize,
    offset: u64,
    loaded: Option<(Vec<u8>, VolatileAt)>,
}

impl Expiring {
    /// A deadline that no entry still to come lies below; None when none is to come. No I/O.
    pub fn next_deadline_ms(&self) -> Option<WallMs> {
        if let Some((content, at)) = &self.loaded
            && let Ok(Some(entry)) = next_volatile(content, &mut at.clone())
        {
            return Some(entry.deadline_ms.max(self.from_ms));
        }
        self.table.properties.pages.get(self.page).map(|page| page.first_deadline_ms.max(self.from_ms))
    }

    /// The next entry whose deadline is at or before `until_ms`; None if there is none (yet).
    ///
    /// # Errors
    /// `Corrupt` naming file and offset, I/O errors.
    pub async fn next_until(&mut self, until_ms: WallMs) -> Result<Option<VolatileEntry<'_>>, EngineError> {
        loop {
            if self.loaded.is_none() {
                // No page is read before its first deadline has come.
                if self.next_deadline_ms().is_none_or(|deadline_ms| deadline_ms > until_ms) {
                    return Ok(None);
                }
                self.load().await?;
            }
            let Some((content, at)) = &mut self.loaded else { return Ok(None) };
            let before = *at;
            match next_volatile(content, at) {
                Ok(Some(entry)) if entry.deadline_ms < self.from_ms => {}
                Ok(Some(entry)) if entry.deadline_ms > until_ms => {
                    *at = before;
                    return Ok(None);
                }
                // Taken apart once more, for a loop may not give away a borrow.
                Ok(Some(_)) => return self.entry_at(before),
                Ok(None) => self.loaded = None,
                Err(what) => return Err(self.table.corrupt(self.offset, what)),
            }
        }
    }

    fn entry_at(&self, mut at: VolatileAt) -> Result<Option<VolatileEntry<'_>>, EngineError> {
        let Some((content, _)) = &self.loaded else { return Ok(None) };
        next_volatile(content, &mut at).map_err(|what| self.table.corrupt(self.offset, what))
    }

    async fn load(&mut self) -> Result<(), EngineError> {
        let table = &self.table;
        let Some(page) = table.properties.pages.get(self.page) else { return Ok(()) };
        let end = self.offset + u64::from(page.bytes);
        let sealed = read_range(&table.io, &table.file, self.offset, end).await?;
        let sealed = sealed.ok_or_else(|| table.corrupt(self.offset, Malformed("the table ends too early")))?;
        let content = unseal(&sealed, table.header.salt, self.offset).map_err(|bad| table.bad(self.offset, bad))?.to_vec();
        self.loaded = Some((content, VolatileAt::default()));
        self.page += 1;
        self.offset = end;
        Ok(())
    }
}
