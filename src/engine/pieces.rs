//! The sound pieces of files that may be damaged: for `inspect` and `salvage`, which must go on where recovery and `verify` stop.
//!
//! A piece counts only if its own checksum holds, and the checksums are seeded with whose file it is and where the piece lies: what is
//! found here is what this node wrote at this place. Nothing is guessed. What cannot be read from the disk is treated as what does not
//! match its checksum.

use super::EngineError;
use super::filter::Filter;
use super::format::block::{BlockCursor, BlockView};
use super::format::lz4;
use super::format::table::{FOOTER_BYTES, Footer, HEADER_BYTES, Header, Properties, Stored, unseal, unseal_block};
use super::format::table_index::{BlockRef, TableIndex};
use super::format::wal::{BlockHead, GroupHead, SegmentSeed, block_payload, parse_block};
use super::format::{parse_cell, parse_place};
use super::table::read_range;
use super::wal_plan::Seen;
use crate::base::codec::Malformed;
use crate::io::op::OpenHow;
use crate::io::{File, Io};
use crate::limits::BLOCK_BYTES;
use std::collections::VecDeque;
use std::path::Path;

/// Bytes of one read.
const READ_BYTES: usize = 1024 * 1024;
/// Bytes hashed in search of the end of one block: past it the rest of the table is given up. A block of several MiB of zeros, in which
/// every byte might be its trailer, is the one that comes near.
const SEARCH_BYTES_MAX: u64 = 1 << 30;

// ---------------------------------------------------------------------------------------------------------------------------------
// The log.

/// A group of the log of which every block is whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FoundGroup {
    pub head: GroupHead,
    /// Its first block.
    pub start: u32,
}

impl FoundGroup {
    /// Where it begins in its segment.
    pub fn offset(&self) -> u64 {
        u64::from(self.start) * BLOCK_BYTES as u64
    }
}

/// Every block of a segment, the header's (as `Zero`) included.
///
/// # Errors
/// The file cannot be opened.
pub async fn segment_blocks(io: &Io, path: &Path, seed: SegmentSeed) -> Result<(File, Vec<Seen>), EngineError> {
    let file = io.open(path, OpenHow::Read).await?;
    let blocks = (io.size(&file).await? / BLOCK_BYTES as u64) as u32;
    let mut seen = Vec::with_capacity(blocks as usize);
    while (seen.len() as u32) < blocks {
        let (at, left) = (seen.len() as u32, blocks as usize - seen.len());
        let offset = u64::from(at) * BLOCK_BYTES as u64;
        let wanted = READ_BYTES.min(left * BLOCK_BYTES);
        let buf = match io.read(&file, offset, wanted).await {
            Ok(buf) if buf.len() == wanted => Some(buf),
            // One bad sector does not take its neighbours along.
            _ => io.read(&file, offset, BLOCK_BYTES).await.ok().filter(|buf| buf.len() == BLOCK_BYTES),
        };
        let Some(buf) = buf else {
            seen.push(Seen::Damaged);
            continue;
        };
        for block in buf.chunks_exact(BLOCK_BYTES) {
            let number = seen.len() as u32;
            seen.push(match parse_block(block, seed, number) {
                _ if number == 0 => Seen::Zero,
                Ok(None) => Seen::Zero,
                Ok(Some(head)) => Seen::Whole(head),
                Err(_) => Seen::Damaged,
            });
        }
        io.yield_now().await;
    }
    Ok((file, seen))
}

/// The whole groups among a segment's blocks, in order of their places.
pub fn whole_groups(seen: &[Seen]) -> Vec<FoundGroup> {
    let (mut found, mut at) = (Vec::new(), 1);
    while at < seen.len() {
        match group_at(seen, at) {
            Some(head) => {
                found.push(FoundGroup { head: head.group, start: at as u32 });
                at += head.group.blocks as usize;
            }
            None => at += 1,
        }
    }
    found
}

fn group_at(seen: &[Seen], at: usize) -> Option<BlockHead> {
    let Seen::Whole(head) = seen[at] else { return None };
    let blocks = seen.get(at..at.checked_add(head.group.blocks as usize)?)?;
    let belongs = |(index, seen): (usize, &Seen)| matches!(seen, Seen::Whole(b) if b.group == head.group && b.index == index as u32);
    blocks.iter().enumerate().all(belongs).then_some(head)
}

/// The payload of a whole group; None where it cannot be read a second time.
pub async fn group_payload(io: &Io, file: &File, seed: SegmentSeed, group: &FoundGroup) -> Option<Vec<u8>> {
    let mut payload = Vec::new();
    for index in 0..group.head.blocks {
        let number = group.start + index;
        let block = io.read(file, u64::from(number) * BLOCK_BYTES as u64, BLOCK_BYTES).await.ok()?;
        let head = parse_block(&block, seed, number).ok()??;
        payload.extend_from_slice(block_payload(&block, &head));
    }
    Some(payload)
}

// ---------------------------------------------------------------------------------------------------------------------------------
// Tables.

/// A table of which any part may be damaged.
pub struct TablePieces {
    pub name: String,
    pub bytes: u64,
    pub header: Result<Header, EngineError>,
    pub footer: Result<Footer, EngineError>,
    pub filter: Result<Filter, EngineError>,
    pub index: Result<TableIndex, EngineError>,
    pub properties: Result<Properties, EngineError>,
    io: Io,
    file: File,
}

impl TablePieces {
    /// Reads all but the blocks. `salt`: the table's, where neither header nor footer tell.
    ///
    /// # Errors
    /// The file cannot be opened.
    pub async fn read(io: &Io, path: &Path, salt: Option<u64>) -> Result<TablePieces, EngineError> {
        let name = path.display().to_string();
        let file = io.open(path, OpenHow::Read).await?;
        let bytes = io.size(&file).await?;
        let header = match read_range(io, &file, 0, (HEADER_BYTES as u64).min(bytes)).await {
            Ok(head) => Header::parse(&head.unwrap_or_default()).map_err(|bad| bad.at(&name, 0)),
            Err(error) => Err(error),
        };
        let footer_at = bytes.saturating_sub(FOOTER_BYTES as u64);
        let footer = match read_range(io, &file, footer_at, bytes).await {
            Ok(tail) => Footer::parse(&tail.unwrap_or_default(), bytes).map_err(|bad| bad.at(&name, footer_at)),
            Err(error) => Err(error),
        };
        let missing = || EngineError::corrupt(&name, footer_at, Malformed("not found without the footer"));
        let (filter, index, properties) = (Err(missing()), Err(missing()), Err(missing()));
        let mut pieces = TablePieces { name: name.clone(), bytes, header, footer, filter, index, properties, io: io.clone(), file };
        if let (Ok(footer), Some(salt)) = (&pieces.footer, pieces.salt(salt)) {
            let at = |offset: u64| {
                let name = &name;
                move |what| EngineError::corrupt(name, offset, what)
            };
            let filter = pieces.section(footer.filter, footer.index, salt).await;
            let filter = filter.and_then(|content| Filter::parse(&content).map_err(at(footer.filter)));
            let index = pieces.section(footer.index, footer.properties, salt).await;
            let index =
                index.and_then(|content| TableIndex::parse(&content, HEADER_BYTES as u64, footer.volatile).map_err(at(footer.index)));
            let properties = pieces.section(footer.properties, footer.end, salt).await;
            let volatile = footer.filter - footer.volatile;
            let properties = properties.and_then(|content| Properties::parse(&content, volatile).map_err(at(footer.properties)));
            (pieces.filter, pieces.index, pieces.properties) = (filter, index, properties);
        }
        Ok(pieces)
    }

    /// Of the header, else of the footer, else the one given.
    pub fn salt(&self, given: Option<u64>) -> Option<u64> {
        let header = self.header.as_ref().ok().map(|header| header.salt);
        header.or(self.footer.as_ref().ok().map(|footer| footer.salt)).or(given)
    }

    async fn section(&self, from: u64, to: u64, salt: u64) -> Result<Vec<u8>, EngineError> {
        let sealed = read_range(&self.io, &self.file, from, to).await?;
        let sealed = sealed.ok_or_else(|| EngineError::corrupt(&self.name, from, Malformed("the table ends too early")))?;
        unseal(&sealed, salt, from).map(<[u8]>::to_vec).map_err(|bad| bad.at(&self.name, from))
    }

    /// Where the volatile pages are, and whether each is sound; None without the properties, which say where.
    pub async fn volatile_pages(&self, salt: u64) -> Option<Vec<(u64, Result<Vec<u8>, EngineError>)>> {
        let (Ok(footer), Ok(properties)) = (&self.footer, &self.properties) else { return None };
        let (mut at, mut pages) = (footer.volatile, Vec::new());
        for page in &properties.pages {
            let end = at + u64::from(page.bytes);
            pages.push((at, self.section(at, end, salt).await));
            at = end;
        }
        Some(pages)
    }

    /// Its blocks, in order: through the index, or without it by their trailers.
    pub fn blocks(&self, salt: u64) -> BlockWalk<'_> {
        let end = self.footer.as_ref().map_or(self.bytes, |footer| footer.volatile);
        BlockWalk { pieces: self, salt, next: HEADER_BYTES as u64, end, number: 0, refs: VecDeque::new(), window: (0, Vec::new()) }
    }
}

/// A block that is what was written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FoundBlock {
    pub offset: u64,
    /// On disk, trailer included.
    pub bytes: u64,
    pub is_packed: bool,
    pub content: Vec<u8>,
    pub entries: u64,
    pub first: Vec<u8>,
    pub last: Vec<u8>,
}

/// One step through a table.
pub enum Piece {
    Block(FoundBlock),
    /// From here up to there nothing can be told.
    Lost {
        offset: u64,
        end: u64,
        why: String,
    },
}

/// Goes through a table's blocks.
pub struct BlockWalk<'a> {
    pieces: &'a TablePieces,
    salt: u64,
    next: u64,
    /// Of the blocks, as far as that is known.
    end: u64,
    number: u32,
    refs: VecDeque<BlockRef>,
    /// What was read last, and where it begins.
    window: (u64, Vec<u8>),
}

impl BlockWalk<'_> {
    /// The next piece; None at the end.
    pub async fn next(&mut self) -> Option<Piece> {
        self.pieces.io.yield_now().await;
        if self.next >= self.end {
            return None;
        }
        match &self.pieces.index {
            Ok(index) => {
                if self.refs.is_empty() {
                    index.blocks_from(self.number, &mut self.refs).ok()?;
                }
                let block = self.refs.pop_front()?;
                (self.number, self.next) = (block.number + 1, block.end());
                Some(self.checked(block.offset, block.end()).await)
            }
            Err(_) => Some(self.found().await),
        }
    }

    async fn checked(&mut self, offset: u64, end: u64) -> Piece {
        let salt = self.salt;
        match self.range(offset, end).await {
            Ok(sealed) => match found_block(sealed, salt, offset) {
                Ok(block) => Piece::Block(block),
                Err(why) => Piece::Lost { offset, end, why },
            },
            Err(error) => Piece::Lost { offset, end, why: error.to_string() },
        }
    }

    /// Without the index: the block that begins at `next`, by looking for its trailer.
    async fn found(&mut self) -> Piece {
        let (offset, limit, salt) = (self.next, self.end, self.salt);
        let (mut hashed, mut tried, mut bytes) = (0, 0, 64 * 1024);
        let why = loop {
            let to = (offset + bytes).min(limit);
            let sealed = match self.range(offset, to).await {
                Ok(sealed) => sealed,
                Err(error) => break error.to_string(),
            };
            while let Some(len) = trailer_after(sealed, tried) {
                (tried, hashed) = (len, hashed + len as u64);
                if hashed > SEARCH_BYTES_MAX {
                    break;
                }
                if let Ok(block) = found_block(&sealed[..len], salt, offset) {
                    self.next = offset + block.bytes;
                    return Piece::Block(block);
                }
            }
            if to == limit || hashed > SEARCH_BYTES_MAX {
                break "without the index, and no block begins here: the rest of them, or what follows them".to_owned();
            }
            bytes *= 2;
        };
        self.next = limit;
        Piece::Lost { offset, end: limit, why }
    }

    async fn range(&mut self, from: u64, to: u64) -> Result<&[u8], EngineError> {
        let has = |(start, bytes): &(u64, Vec<u8>)| *start <= from && to <= start + bytes.len() as u64;
        if !has(&self.window) {
            let (io, file) = (&self.pieces.io, &self.pieces.file);
            let ahead = (from + READ_BYTES as u64).min(self.pieces.bytes).max(to);
            let mut read = read_range(io, file, from, ahead).await;
            if !matches!(read, Ok(Some(_))) && ahead > to {
                // One bad sector does not take its neighbours along.
                read = read_range(io, file, from, to).await;
            }
            let short = || EngineError::corrupt(&self.pieces.name, from, Malformed("the table ends too early"));
            self.window = (from, read?.ok_or_else(short)?);
        }
        let at = (from - self.window.0) as usize;
        Ok(&self.window.1[at..at + (to - from) as usize])
    }
}

/// The next length above `tried` at which the bytes may end with a trailer: codec 0 or 1, no tag, key id 0, any checksum.
fn trailer_after(bytes: &[u8], tried: usize) -> Option<usize> {
    let first = (tried + 1).max(14);
    (first..=bytes.len()).find(|&len| bytes[len - 14] <= 1 && bytes[len - 13..len - 8] == [0; 5])
}

/// The block in sealed bytes; else why they are none.
fn found_block(sealed: &[u8], salt: u64, offset: u64) -> Result<FoundBlock, String> {
    let stored = unseal_block(sealed, salt, offset).map_err(|bad| bad.at("", offset)).map_err(|error| match error {
        EngineError::Corrupt { what, .. } => what,
        other => other.to_string(),
    })?;
    let is_packed = matches!(stored, Stored::Packed(_));
    let content = match stored {
        Stored::Raw(content) => content.to_vec(),
        Stored::Packed(packed) => {
            let mut content = Vec::new();
            lz4::unpack(packed, &mut content).map_err(|what| what.0.to_owned())?;
            content
        }
    };
    let mut block = FoundBlock { offset, bytes: sealed.len() as u64, is_packed, ..FoundBlock::default() };
    walk_block(&content, &mut block).map_err(|what| what.0.to_owned())?;
    Ok(FoundBlock { content, ..block })
}

fn walk_block(content: &[u8], block: &mut FoundBlock) -> Result<(), Malformed> {
    let (view, mut cursor) = (BlockView::new(content)?, BlockCursor::default());
    while let Some(cell) = cursor.advance(&view)? {
        parse_place(&cursor.place)?;
        parse_cell(&content[cell])?;
        if block.entries > 0 && block.last >= cursor.place {
            return Err(Malformed("places out of order"));
        }
        if block.entries == 0 {
            block.first.clone_from(&cursor.place);
        }
        block.last.clone_from(&cursor.place);
        block.entries += 1;
    }
    if block.entries == 0 { Err(Malformed("a block without entries")) } else { Ok(()) }
}
