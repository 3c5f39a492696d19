//! The bytes of a table's block: entries in order of places, each place without what it shares with the one before, whole at restarts.
//!
//! ```text
//! entry:  shared varint | unshared varint | cell length varint | unshared bytes of the place | cell
//! block:  entry … | offsets of the restarts but the first u16 … | their number u16 | trailer
//! ```

use super::lz4::Packer;
use super::table::{TRAILER_BYTES, seal, seal_packed};
use crate::base::codec::{Malformed, Reader, put_varint, varint_len};
use std::cmp::Ordering;
use std::ops::Range;

/// Every so many entries a place is whole.
const RESTART: usize = 16;
/// The largest block that holds more than one entry: offsets of restarts are u16.
pub const BLOCK_TARGET_MAX: usize = 32 * 1024;

/// How many leading bytes are equal.
pub fn common_prefix(a: &[u8], b: &[u8]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

/// The first bytes, zeros behind the end: a big-endian number of them compares as the strings do, as far as it reaches.
#[inline]
pub fn leading<const N: usize>(bytes: &[u8]) -> [u8; N] {
    if let Some(whole) = bytes.first_chunk::<N>() {
        return *whole;
    }
    let mut padded = [0; N];
    padded[..bytes.len()].copy_from_slice(bytes);
    padded
}

/// Collects the entries of one block.
#[derive(Debug, Default)]
pub struct BlockBuilder {
    bytes: Vec<u8>,
    restarts: Vec<u16>,
    count: usize,
    last: Vec<u8>,
}

impl BlockBuilder {
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// What it would take on disk now.
    pub fn len(&self) -> usize {
        self.bytes.len() + self.restarts.len() * 2 + 2 + TRAILER_BYTES
    }

    /// What it would take on disk with one more entry (at most; a restart counted).
    pub fn len_with(&self, place: &[u8], cell: &[u8]) -> usize {
        let restart = self.count.is_multiple_of(RESTART);
        let shared = if restart { 0 } else { common_prefix(&self.last, place) };
        let unshared = place.len() - shared;
        let lengths = varint_len(shared as u64) + varint_len(unshared as u64) + varint_len(cell.len() as u64);
        self.len() + lengths + unshared + cell.len() + if restart { 2 } else { 0 }
    }

    /// Appends an entry. Places rise.
    pub fn add(&mut self, place: &[u8], cell: &[u8]) {
        assert!(self.is_empty() || self.last[..] < *place, "places rise");
        let restart = self.count.is_multiple_of(RESTART);
        if restart && self.count > 0 {
            self.restarts.push(u16::try_from(self.bytes.len()).expect("blocks of many entries are small"));
        }
        let shared = if restart { 0 } else { common_prefix(&self.last, place) };
        put_varint(&mut self.bytes, shared as u64);
        put_varint(&mut self.bytes, (place.len() - shared) as u64);
        put_varint(&mut self.bytes, cell.len() as u64);
        self.bytes.extend_from_slice(&place[shared..]);
        self.bytes.extend_from_slice(cell);
        self.last.truncate(shared);
        self.last.extend_from_slice(&place[shared..]);
        self.count += 1;
    }

    /// Seals the block for its offset in the file and starts the next one; `out` is what goes to disk.
    pub fn finish(&mut self, salt: u64, offset: u64, out: &mut Vec<u8>) {
        let start = out.len();
        self.put_content(out);
        seal(out, start, salt, offset);
    }

    /// As `finish`, packed where that is worth it: true if it is.
    pub fn finish_packed(&mut self, packer: &mut Packer, salt: u64, offset: u64, out: &mut Vec<u8>) -> bool {
        let start = out.len();
        self.put_content(out);
        let Some(packed) = packer.pack(&out[start..]) else {
            seal(out, start, salt, offset);
            return false;
        };
        out.truncate(start);
        out.extend_from_slice(packed);
        seal_packed(out, start, salt, offset);
        true
    }

    fn put_content(&mut self, out: &mut Vec<u8>) {
        assert!(!self.is_empty());
        out.extend_from_slice(&self.bytes);
        self.restarts.iter().for_each(|restart| out.extend_from_slice(&restart.to_le_bytes()));
        out.extend_from_slice(&(self.restarts.len() as u16).to_le_bytes());
        self.bytes.clear();
        self.restarts.clear();
        self.last.clear();
        self.count = 0;
    }
}

/// One entry where it lies: ranges of the block's content.
#[derive(Clone, Debug, PartialEq, Eq)]
struct RawEntry {
    shared: usize,
    place: Range<usize>,
    cell: Range<usize>,
}

/// A block's content, looked into without a copy. Bytes that are no block give errors, never a panic.
#[derive(Clone, Copy, Debug)]
pub struct BlockView<'a> {
    content: &'a [u8],
    entries_end: usize,
}

impl<'a> BlockView<'a> {
    pub fn new(content: &'a [u8]) -> Result<BlockView<'a>, Malformed> {
        let count = content.last_chunk::<2>().map(|c| usize::from(u16::from_le_bytes(*c))).ok_or(Malformed("block too short"))?;
        let entries_end = content.len().checked_sub(2 + 2 * count).ok_or(Malformed("block too short"))?;
        Ok(BlockView { content, entries_end })
    }

    fn entry(&self, at: usize) -> Result<RawEntry, Malformed> {
        let mut reader = Reader::new(self.content.get(at..self.entries_end).ok_or(Malformed("entry beyond its block"))?);
        let (shared, unshared, cell) = (reader.varint()? as usize, reader.varint()? as usize, reader.varint()? as usize);
        let start = self.entries_end - reader.rest().len();
        let middle = start.checked_add(unshared).ok_or(Malformed("entry beyond its block"))?;
        let end = middle.checked_add(cell).filter(|&end| end <= self.entries_end).ok_or(Malformed("entry beyond its block"))?;
        Ok(RawEntry { shared, place: start..middle, cell: middle..end })
    }

    fn restart(&self, n: usize) -> usize {
        let at = self.entries_end + 2 * n;
        usize::from(u16::from_le_bytes([self.content[at], self.content[at + 1]]))
    }

    /// Where to begin looking for `place`: the last restart at or below it.
    fn seek(&self, place: &[u8]) -> Result<usize, Malformed> {
        let (mut low, mut high) = (0, (self.content.len() - 2 - self.entries_end) / 2);
        while low < high {
            let middle = (low + high) / 2;
            let entry = self.entry(self.restart(middle))?;
            if self.content[entry.place] <= *place {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        Ok(if low == 0 { 0 } else { self.restart(low - 1) })
    }

    /// The range of the content that holds the cell at `place`.
    pub fn find(&self, place: &[u8]) -> Result<Option<Range<usize>>, Malformed> {
        let mut at = self.seek(place)?;
        // How many bytes `place` shares with the entry before, which lies below it.
        let mut matched = 0;
        while at < self.entries_end {
            let entry = self.entry(at)?;
            at = entry.cell.end;
            match entry.shared.cmp(&matched) {
                Ordering::Greater => continue,
                Ordering::Less => return Ok(None),
                Ordering::Equal => {}
            }
            let (unshared, wanted) = (&self.content[entry.place], &place[matched..]);
            let common = common_prefix(unshared, wanted);
            match unshared[common..].first().cmp(&wanted[common..].first()) {
                Ordering::Equal => return Ok(Some(entry.cell)),
                Ordering::Greater => return Ok(None),
                Ordering::Less => matched += common,
            }
        }
        Ok(None)
    }
}

/// Walks a block from its first entry, with the whole place at hand.
#[derive(Debug, Default)]
pub struct BlockCursor {
    at: usize,
    /// The place of the entry at which it stands.
    pub place: Vec<u8>,
}

impl BlockCursor {
    /// To the beginning of a block.
    pub fn reset(&mut self) {
        self.at = 0;
        self.place.clear();
    }

    /// To the next entry: the range of the content that holds its cell, None at the end.
    pub fn advance(&mut self, view: &BlockView<'_>) -> Result<Option<Range<usize>>, Malformed> {
        if self.at >= view.entries_end {
            return Ok(None);
        }
        let entry = view.entry(self.at)?;
        if entry.shared > self.place.len() {
            return Err(Malformed("a place shares more than there is"));
        }
        self.place.truncate(entry.shared);
        self.place.extend_from_slice(&view.content[entry.place]);
        self.at = entry.cell.end;
        Ok(Some(entry.cell))
    }
}

#[cfg(test)]
mod tests {
    use super::super::table::unseal;
    use super::*;
    use crate::base::prng::Prng;
    use std::collections::BTreeMap;

    #[test]
    fn every_entry_is_found_and_nothing_else() {
        let mut prng = Prng::new(11);
        for round in 0..200 {
            let mut model = BTreeMap::new();
            for _ in 0..1 + prng.below(120) {
                let place: Vec<u8> = (0..prng.below(9)).map(|_| prng.below(3) as u8).collect();
                let mut cell = vec![0; prng.below(40) as usize];
                prng.fill(&mut cell);
                model.insert(place, cell);
            }
            let mut builder = BlockBuilder::default();
            for (place, cell) in &model {
                let most = builder.len_with(place, cell);
                builder.add(place, cell);
                assert!(builder.len() <= most);
            }
            let (len, mut out) = (builder.len(), Vec::new());
            builder.finish(1, round, &mut out);
            assert_eq!(out.len(), len);
            let content = unseal(&out, 1, round).unwrap();
            let view = BlockView::new(content).unwrap();
            let mut cursor = BlockCursor::default();
            for (place, cell) in &model {
                let range = cursor.advance(&view).unwrap().unwrap();
                assert_eq!((&cursor.place, &content[range]), (place, &cell[..]));
            }
            assert_eq!(cursor.advance(&view), Ok(None));
            for _ in 0..300 {
                let place: Vec<u8> = (0..prng.below(10)).map(|_| prng.below(4) as u8).collect();
                let found = view.find(&place).unwrap().map(|range| content[range].to_vec());
                assert_eq!(found.as_ref(), model.get(&place), "{place:?}");
            }
        }
    }
}
