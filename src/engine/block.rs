//! A block of a table in memory, and a cell that keeps its block alive.

use super::cache::{Cache, CacheKey, CacheValue};
use super::format::parse_cell;
use crate::base::codec::Malformed;
use crate::base::record::Cell;
use std::ops::Range;
use std::rc::Rc;

/// A block's content, its trailer checked and cut off. Also a lone cell's bytes.
#[derive(Debug)]
pub struct Block {
    bytes: Box<[u8]>,
}

impl Block {
    /// Takes a copy that is exactly as large as needed.
    pub fn copied(content: &[u8]) -> Rc<Block> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::record::Version;
    use crate::engine::format::put_cell;

    #[test]
    fn a_cell_keeps_its_block_and_what_is_none_is_refused() {
        let mut bytes = vec![0xEE];
        put_cell(&mut bytes, &Cell::value(Version::put(1, 0), b"v"));
        let block = Block::copied(&bytes);
        let cell = CellBuf::new(block.clone(), 1..bytes.len()).unwrap();
        drop(block);
        assert_eq!(cell.cell(), Cell::value(Version::put(1, 0), b"v"));
        assert!(CellBuf::new(Block::copied(&bytes), 1..bytes.len() + 1).is_err());
        assert!(CellBuf::copied(&[0xFF]).is_err());
    }
}
