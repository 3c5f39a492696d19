//! A block of a table in memory, and a cell that keeps its block alive.

use super::cache::{Cache, CacheKey, CacheValue};
use super::format::parse_cell;
use crate::base::codec::Malformed;
use crate::base::record::Cell;
use std::borrow::Borrow;
use std::ops::Range;
use std::rc::Rc;

/// A block's content, its trailer checked and cut off, unpacked: a hit in the cache gives a cell where it lies, without a copy and without
/// the microseconds of unpacking a block. Also a lone cell's bytes, for a cache of cells.
#[derive(Debug)]
pub struct Block {
    bytes: Box<[u8]>,
}

impl Block {
    /// Takes a copy that is exactly as large as needed.
    pub fn copied(content: &[u8]) -> Rc<Block> {
        Rc::new(Block { bytes: content.into() })
    }

    /// Takes the content over.
    pub fn of(content: Vec<u8>) -> Rc<Block> {
        Rc::new(Block { bytes: content.into() })
    }

    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

impl CacheValue for Rc<Block> {
    fn heap_bytes(&self) -> usize {
        // The allocator rounds up and keeps a word an allocation.
        self.bytes.len().next_multiple_of(16) + size_of::<Block>() + 2 * size_of::<usize>() + 16
    }
}

/// Names a block: the table's id on this core and where the block begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BlockKey {
    pub table: u64,
    pub offset: u64,
}

impl CacheKey for BlockKey {
    fn group(&self) -> u64 {
        self.table
    }
}

/// A core's cache of blocks.
pub type BlockCache = Cache<BlockKey, Rc<Block>>;

/// Names a cell in a cache of cells: its encoded place. Looked up by `&[u8]`.
#[derive(Debug, PartialEq, Eq, Hash)]
pub struct PlaceKey(Box<[u8]>);

impl From<&[u8]> for PlaceKey {
    fn from(place: &[u8]) -> PlaceKey {
        PlaceKey(place.into())
    }
}

impl Borrow<[u8]> for PlaceKey {
    fn borrow(&self) -> &[u8] {
        &self.0
    }
}

impl CacheKey for PlaceKey {
    fn group(&self) -> u64 {
        0
    }

    fn heap_bytes(&self) -> usize {
        self.0.len().next_multiple_of(16) + size_of::<usize>()
    }
}

/// A core's cache of cells; the values are `CellBuf::copied`. Who writes a cell replaces or removes it here.
pub type CellCache = Cache<PlaceKey, CellBuf>;

/// An encoded cell that keeps the bytes it lies in alive. Cheap to clone.
#[derive(Clone, Debug)]
pub struct CellBuf {
    block: Rc<Block>,
    start: u32,
    end: u32,
}

impl CellBuf {
    /// The cell in a range of a block.
    ///
    /// # Errors
    /// There is no well-formed cell.
    pub fn new(block: Rc<Block>, range: Range<usize>) -> Result<CellBuf, Malformed> {
        parse_cell(block.bytes.get(range.clone()).ok_or(Malformed("cell beyond its block"))?)?;
        let word = |at: usize| u32::try_from(at).map_err(|_| Malformed("block too large"));
        Ok(CellBuf { start: word(range.start)?, end: word(range.end)?, block })
    }

    /// A copy of an encoded cell, with nothing else around it.
    ///
    /// # Errors
    /// It is not well-formed.
    pub fn copied(cell: &[u8]) -> Result<CellBuf, Malformed> {
        CellBuf::new(Block::copied(cell), 0..cell.len())
    }

    /// The encoded cell.
    pub fn bytes(&self) -> &[u8] {
        &self.block.bytes[self.start as usize..self.end as usize]
    }

    /// The cell, taken apart.
    pub fn cell(&self) -> Cell<'_> {
        parse_cell(self.bytes()).expect("checked when it was made")
    }
}

impl CacheValue for CellBuf {
    fn heap_bytes(&self) -> usize {
        self.block.heap_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::record::Version;
    use crate::engine::format::put_cell;

    #[test]
    fn a_cell_is_cached_under_its_place_and_asked_for_without_a_copy() {
        let cache = CellCache::new(1 << 20, 1);
        let mut bytes = Vec::new();
        put_cell(&mut bytes, &Cell::value(Version::put(1, 0), b"v"));
        cache.insert(PlaceKey::from(&b"place"[..]), CellBuf::copied(&bytes).unwrap());
        assert_eq!(cache.get(&b"place"[..]).unwrap().cell(), Cell::value(Version::put(1, 0), b"v"));
        assert!(cache.get(&b"other"[..]).is_none());
        assert!(cache.remove(&b"place"[..]).is_some() && cache.get(&b"place"[..]).is_none());
        assert!(CellBuf::copied(&[0xFF]).is_err());
    }
}
