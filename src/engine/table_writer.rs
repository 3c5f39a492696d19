//! Writing a table: entries come in order of places and leave in large sequential writes.

use super::EngineError;
use super::filter::{Filter, prefix_hash};
use super::format::Identity;
use super::format::block::{BLOCK_TARGET_MAX, BlockBuilder};
use super::format::lz4::Packer;
use super::format::table::{
    Bounds, Counts, FOOTER_BYTES, Footer, Header, PropertiesDraft, VOLATILE_PAGE_BYTES, VolatileAt, VolatileEntry, VolatilePage,
    put_volatile, seal,
};
use super::format::table_index::{IndexBuilder, separator};
use super::format::{key_prefix_len, parse_cell, place_namespace_token};
use crate::base::codec::Malformed;
use crate::base::record::{Body, Cell, NamespaceId, Version, vnode_of};
use crate::base::time::WallMs;
use crate::io::buffer::Buf;
use crate::io::op::OpenHow;
use crate::io::{File, Io};
use crate::limits::{BLOCK_BYTES, VNODES_DEFAULT};
use std::future::poll_fn;
use std::path::Path;
use std::pin::Pin;
use std::rc::Rc;
use std::task::Poll;

/// Bytes of one write.
const WRITE_BYTES: usize = 256 * 1024;

/// How a table is written.
#[derive(Clone, Debug)]
pub struct TableOptions {
    pub identity: Identity,
    /// Different for every table of a node: seeds its checksums.
    pub table_id: u64,
    /// Equal arcs of the ring: version bounds are kept for each.
    pub vnodes: u32,
    /// Of the filter; by the table's level (`filter::bits_for_level`, `filter::bits_for_false_positives`).
    pub filter_bits_per_key: f32,
    /// A block is closed when it reaches this. It may grow by a quarter, if one aligned read of this and another `BLOCK_BYTES` covers it.
    pub block_bytes: usize,
    /// Namespaces whose blocks are packed, where that is worth it.
    pub packed: Rc<[NamespaceId]>,
}

impl Default for TableOptions {
    fn default() -> TableOptions {
        let identity = Identity::default();
        let packed = Rc::from([]);
        TableOptions { identity, table_id: 0, vnodes: VNODES_DEFAULT, filter_bits_per_key: 10.0, block_bytes: 4096, packed }
    }
}

/// What a finished table is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TableInfo {
    /// Of the whole file.
    pub bytes: u64,
    pub counts: Counts,
    /// First and last place; empty without entries.
    pub first: Vec<u8>,
    pub last: Vec<u8>,
    /// Least and greatest vnode of any namespace.
    pub vnodes: (u32, u32),
    /// Least and greatest version of any part of a cell; (MAX, ZERO) without any.
    pub versions: (Version, Version),
}

/// The oldest and newest version of any part that says something; None where nothing does.
pub fn cell_versions(cell: &Cell<'_>) -> Option<(Version, Version)> {
    let (low, high) = (cell.version.min(cell.expiry.version), cell.newest());
    (high != Version::ZERO).then_some((if low == Version::ZERO { high } else { low }, high))
}

/// Belongs into the list of cells that will expire.
pub fn is_volatile(cell: &Cell<'_>) -> bool {
    cell.expiry.deadline_ms != 0 && cell.body != Body::Tombstone
}

type Writing = Pin<Box<dyn Future<Output = std::io::Result<Buf>>>>;

/// Where bytes go: a buffer, then the file. While one buffer is on its way to the disk the next is filled.
struct Sink {
    io: Io,
    file: File,
    buf: Option<Buf>,
    /// The write of the buffer before.
    writing: Option<Writing>,
    fill: usize,
    /// Where the buffer begins.
    offset: u64,
    /// The file's first block once it is written, for `rewrite_header`.
    head: Vec<u8>,
}

impl Sink {
    fn position(&self) -> u64 {
        self.offset + self.fill as u64
    }

    async fn push(&mut self, mut bytes: &[u8]) -> Result<(), EngineError> {
        while !bytes.is_empty() {
            let Some(buf) = self.buf.as_mut() else { return Err(lost_buffer()) };
            let taken = bytes.len().min(WRITE_BYTES - self.fill);
            buf[self.fill..self.fill + taken].copy_from_slice(&bytes[..taken]);
            self.fill += taken;
            bytes = &bytes[taken..];
            if self.fill == WRITE_BYTES {
                self.flush().await?;
            }
        }
        Ok(())
    }

    /// Begins to write what there is; whole blocks, since the table ends with one.
    async fn flush(&mut self) -> Result<(), EngineError> {
        let Some(mut buf) = self.buf.take() else { return Err(lost_buffer()) };
        let spare = self.written().await?;
        if self.fill > 0 {
            if self.offset == 0 {
                self.head = buf[..BLOCK_BYTES].to_vec();
            }
            buf.truncate(self.fill);
            let (io, file, offset) = (self.io.clone(), self.file.clone(), self.offset);
            let mut writing: Writing = Box::pin(async move { io.write(&file, offset, buf, false).await });
            // Asked once, it is under way; it is asked again when the next one begins.
            let begun = poll_fn(|context| Poll::Ready(writing.as_mut().poll(context))).await;
            self.writing = Some(if let Poll::Ready(done) = begun { Box::pin(std::future::ready(done)) } else { writing });
        }
        self.offset += self.fill as u64;
        self.fill = 0;
        self.buf = Some(spare.filter(|spare| spare.len() == WRITE_BYTES).unwrap_or_else(|| self.io.buf_to_fill(WRITE_BYTES)));
        Ok(())
    }

    /// Waits until all that was flushed is written; the buffer of the last write, if one was under way.
    async fn written(&mut self) -> Result<Option<Buf>, EngineError> {
        match self.writing.take() {
            Some(writing) => Ok(Some(writing.await.map_err(write_error)?)),
            None => Ok(None),
        }
    }
}

impl Sink {
    /// Another header over the one that is written. The whole file is written, and not synced yet.
    async fn rewrite_header(&mut self, header: &[u8]) -> Result<(), EngineError> {
        let mut buf = self.io.buf(BLOCK_BYTES);
        buf.copy_from_slice(&self.head);
        buf[..header.len()].copy_from_slice(header);
        drop(self.io.write(&self.file, 0, buf, false).await.map_err(write_error)?);
        Ok(())
    }
}

fn lost_buffer() -> EngineError {
    EngineError::Io(std::io::Error::other("an earlier write of this table failed"))
}

fn write_error(error: std::io::Error) -> EngineError {
    if error.kind() == std::io::ErrorKind::StorageFull { EngineError::DiskFull } else { EngineError::Io(error) }
}

/// Cells with a deadline, collected until the end. The arena holds (version, place) of each.
#[derive(Default)]
struct Volatile {
    arena: Vec<u8>,
    refs: Vec<(WallMs, u32, u32)>,
}

impl Volatile {
    fn add(&mut self, deadline_ms: WallMs, version: Version, place: &[u8]) {
        let start = u32::try_from(self.arena.len()).expect("a table is below 4 GiB");
        self.arena.extend_from_slice(&version.to_bytes());
        self.arena.extend_from_slice(place);
        self.refs.push((deadline_ms, start, self.arena.len() as u32 - start));
    }

    fn entry(&self, (deadline_ms, start, len): (WallMs, u32, u32)) -> VolatileEntry<'_> {
        let bytes = &self.arena[start as usize..(start + len) as usize];
        let (version, place) = bytes.split_first_chunk::<16>().expect("put in by add");
        VolatileEntry { deadline_ms, version: Version::from_bytes(*version), place }
    }
}

/// Writes one table. Dropped before `finish`, it leaves a file that is no table: the caller removes it.
pub struct TableWriter {
    sink: Sink,
    options: TableOptions,
    header: Header,
    block: BlockBuilder,
    /// There if some namespace's blocks are packed.
    packer: Option<Packer>,
    /// The block under construction is to be packed: all of its keys' namespaces are.
    is_packing: bool,
    index: IndexBuilder,
    /// Of the block under construction.
    separator: Vec<u8>,
    /// Length of the key prefix of the last place.
    prefix_len: usize,
    hashes: Vec<u64>,
    volatile: Volatile,
    properties: PropertiesDraft,
    scratch: Vec<u8>,
}

impl TableWriter {
    /// Creates the file, which must not exist.
    ///
    /// # Errors
    /// The file cannot be created or written; `DiskFull`.
    pub async fn create(io: &Io, path: &Path, options: TableOptions) -> Result<TableWriter, EngineError> {
        assert!(options.vnodes.is_power_of_two() && options.vnodes > 1);
        assert!((64..=BLOCK_TARGET_MAX).contains(&options.block_bytes), "block of {}", options.block_bytes);
        let file = io.open(path, OpenHow::Create).await.map_err(write_error)?;
        let mut sink =
            Sink { io: io.clone(), file, buf: Some(io.buf_to_fill(WRITE_BYTES)), writing: None, fill: 0, offset: 0, head: Vec::new() };
        let header = Header::new(options.identity, options.table_id);
        let mut scratch = Vec::new();
        header.put(&mut scratch);
        sink.push(&scratch).await?;
        let index = IndexBuilder::new(sink.position());
        let properties = PropertiesDraft { vnodes: options.vnodes, ..PropertiesDraft::default() };
        Ok(TableWriter {
            sink,
            header,
            block: BlockBuilder::default(),
            packer: (!options.packed.is_empty()).then(Packer::default),
            is_packing: false,
            index,
            separator: Vec::new(),
            prefix_len: 0,
            hashes: Vec::new(),
            volatile: Volatile::default(),
            properties,
            options,
            scratch,
        })
    }

    /// About what the finished file will take.
    pub fn bytes(&self) -> u64 {
        let filter = (self.hashes.len() as f32 * self.options.filter_bits_per_key / 8.0) as u64;
        let volatile = self.volatile.arena.len();
        self.sink.position() + (self.block.len() + self.index.coded_bytes() + volatile + self.properties.bounds.len() * 16) as u64 + filter
    }

    /// How many entries came.
    pub fn entries(&self) -> u64 {
        self.properties.counts.entries
    }

    /// The next entry. Places rise.
    ///
    /// # Errors
    /// Place or cell are not well-formed (they came from a disk or a peer); a write fails.
    pub async fn add(&mut self, place: &[u8], cell: &[u8]) -> Result<(), EngineError> {
        let parsed = parse_cell(cell).map_err(|what| self.refused(what))?;
        let last = &self.properties.last;
        let is_first = self.properties.counts.entries == 0;
        assert!(is_first || last[..] < *place, "places rise");
        let is_new_key = is_first || self.prefix_len > place.len() || last[..self.prefix_len] != place[..self.prefix_len];
        if is_new_key {
            self.prefix_len = key_prefix_len(place).map_err(|what| self.refused(what))?;
            self.hashes.push(prefix_hash(&place[..self.prefix_len]));
            self.properties.counts.keys += 1;
        }
        let is_packing = self.packer.is_some() && self.options.packed.contains(&place_namespace_token(place).0);
        if self.must_close(place, cell) || is_packing != self.is_packing && !self.block.is_empty() {
            self.close_block().await?;
        }
        self.is_packing = is_packing;
        if self.block.is_empty() && !is_first {
            self.separator.clear();
            self.separator.extend_from_slice(separator(&self.properties.last, place));
        }
        self.block.add(place, cell);
        self.count(place, &parsed, (place.len() + cell.len()) as u64);
        if is_first {
            self.properties.first = place.to_vec();
        }
        self.properties.last.clear();
        self.properties.last.extend_from_slice(place);
        Ok(())
    }

    fn refused(&self, what: Malformed) -> EngineError {
        EngineError::corrupt("an entry for a new table", self.sink.position(), what)
    }

    fn must_close(&self, place: &[u8], cell: &[u8]) -> bool {
        if self.block.is_empty() {
            return false;
        }
        let (target, len) = (self.options.block_bytes, self.block.len_with(place, cell));
        let into = (self.sink.position() % BLOCK_BYTES as u64) as usize;
        let span_max = target.next_multiple_of(BLOCK_BYTES) + BLOCK_BYTES;
        self.block.len() >= target || len > target + target / 4 || into + len > span_max
    }

    async fn close_block(&mut self) -> Result<(), EngineError> {
        self.scratch.clear();
        let (salt, offset) = (self.header.salt, self.sink.position());
        match &mut self.packer {
            Some(packer) if self.is_packing => {
                self.header.has_packed |= self.block.finish_packed(packer, salt, offset, &mut self.scratch);
            }
            _ => self.block.finish(salt, offset, &mut self.scratch),
        }
        let bytes = u32::try_from(self.scratch.len()).expect("a block is below 4 GiB");
        self.index.add(&self.separator, bytes);
        self.properties.counts.blocks += 1;
        self.sink.push(&self.scratch).await
    }

    fn count(&mut self, place: &[u8], cell: &Cell<'_>, raw_bytes: u64) {
        let counts = &mut self.properties.counts;
        counts.entries += 1;
        counts.raw_bytes += raw_bytes;
        counts.tombstones += u64::from(cell.body == Body::Tombstone);
        counts.range_ends += u64::from(matches!(cell.body, Body::RangeEnd(_)));
        counts.sums += u64::from(matches!(cell.body, Body::Sum { .. }));
        if is_volatile(cell) {
            counts.volatile += 1;
            self.volatile.add(cell.expiry.deadline_ms, cell.expiry.version, place);
        }
        let Some((least, greatest)) = cell_versions(cell) else { return };
        let (namespace, token) = place_namespace_token(place);
        let vnode = vnode_of(token, self.options.vnodes);
        match self.properties.bounds.last_mut() {
            Some(bound) if (bound.namespace, bound.vnode) == (namespace, vnode) => {
                bound.least = bound.least.min(least);
                bound.greatest = bound.greatest.max(greatest);
            }
            _ => self.properties.bounds.push(Bounds { namespace, vnode, least, greatest }),
        }
    }

    /// Seals what `scratch` holds as a section of its own and returns where it begins.
    async fn push_section(&mut self) -> Result<u64, EngineError> {
        let offset = self.sink.position();
        seal(&mut self.scratch, 0, self.header.salt, offset);
        self.sink.push(&self.scratch).await?;
        self.scratch.clear();
        Ok(offset)
    }

    async fn push_volatile(&mut self) -> Result<(), EngineError> {
        let volatile = std::mem::take(&mut self.volatile);
        let mut refs = volatile.refs.clone();
        refs.sort_unstable();
        let (mut at, mut first_deadline_ms) = (VolatileAt::default(), 0);
        self.scratch.clear();
        for (n, &entry) in refs.iter().enumerate() {
            let entry = volatile.entry(entry);
            if self.scratch.is_empty() {
                (at, first_deadline_ms) = (VolatileAt::default(), entry.deadline_ms);
            }
            put_volatile(&mut self.scratch, &mut at, &entry);
            if self.scratch.len() >= VOLATILE_PAGE_BYTES || n + 1 == refs.len() {
                let start = self.push_section().await?;
                let bytes = (self.sink.position() - start) as u32;
                self.properties.pages.push(VolatilePage { first_deadline_ms, bytes });
            }
        }
        Ok(())
    }

    /// Completes the file and makes its content durable; its name becomes durable when the caller syncs the folder.
    ///
    /// # Errors
    /// A write or the sync fails; `DiskFull`.
    pub async fn finish(mut self) -> Result<TableInfo, EngineError> {
        if !self.block.is_empty() {
            self.close_block().await?;
        }
        let mut footer = Footer { volatile: self.sink.position(), salt: self.header.salt, ..Footer::default() };
        self.push_volatile().await?;
        self.scratch = Filter::build(&std::mem::take(&mut self.hashes), self.options.filter_bits_per_key);
        footer.filter = self.push_section().await?;
        self.scratch = std::mem::take(&mut self.index).finish();
        footer.index = self.push_section().await?;
        self.properties.put(&mut self.scratch);
        footer.properties = self.push_section().await?;
        footer.end = self.sink.position();
        footer.bytes = (footer.end + FOOTER_BYTES as u64).next_multiple_of(BLOCK_BYTES as u64);
        self.scratch.resize((footer.bytes - footer.end) as usize - FOOTER_BYTES, 0);
        footer.put(&mut self.scratch);
        self.sink.push(&self.scratch).await?;
        self.sink.flush().await?;
        self.sink.written().await?;
        if self.header.has_packed {
            self.scratch.clear();
            self.header.put(&mut self.scratch);
            self.sink.rewrite_header(&self.scratch).await?;
        }
        self.sink.io.sync(&self.sink.file).await.map_err(write_error)?;
        Ok(info_of(&self.properties, footer.bytes))
    }
}

fn info_of(properties: &PropertiesDraft, bytes: u64) -> TableInfo {
    let bounds = properties.bounds.iter().copied();
    let (counts, first, last) = (properties.counts, properties.first.clone(), properties.last.clone());
    TableInfo::new(bytes, counts, first, last, bounds)
}

impl TableInfo {
    /// From what a table's properties say.
    pub(super) fn new(bytes: u64, counts: Counts, first: Vec<u8>, last: Vec<u8>, bounds: impl Iterator<Item = Bounds>) -> TableInfo {
        let (mut vnodes, mut versions) = ((u32::MAX, 0), (Version::MAX, Version::ZERO));
        for bound in bounds {
            vnodes = (vnodes.0.min(bound.vnode), vnodes.1.max(bound.vnode));
            versions = (versions.0.min(bound.least), versions.1.max(bound.greatest));
        }
        vnodes.0 = vnodes.0.min(vnodes.1);
        TableInfo { bytes, counts, first, last, vnodes, versions }
    }
}
