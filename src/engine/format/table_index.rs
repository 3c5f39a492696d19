//! The bytes of a table's index: for each block a separator (the shortest string above the block before and not above this one's first
//! place) and its length, in about 3 bytes a block. Groups of 64 blocks; binary search over the groups, whose first separator is whole,
//! then a walk. It stays in memory as it lies on disk.
//!
//! ```text
//! group:  offset of its first block in the file varint | base length varint | common varint | first separator with length
//!         | length code of the first block | code … of the others
//! code:   byte: bits 6-7 shared minus common (3: a varint follows instead), bits 4-5 unshared minus 1 (3: a varint follows instead),
//!         bits 0-3 beginning of the length code; [shared] [unshared] | unshared bytes | rest of the length code
//! length code: zigzag of (length minus base). Blocks of values of one size differ by a few bytes: below 5 it is bits 0-3 alone; above,
//!         5 less and below 10 × 256, its high bits plus 5 are bits 0-3 and a byte follows; else bits 0-3 are 15 and a varint follows
//! index:  group … | offset of each group u32 … | blocks u32 | groups u32 | trailer
//! ```

use super::block::{common_prefix, leading};
use crate::base::codec::{Malformed, Reader, put_bytes, put_varint};
use std::cmp::Ordering;

/// Blocks a group: a walk costs some 3 ns a block, a group costs some 20 bytes.
const GROUP: usize = 64;
const ESCAPE: u64 = 3;
/// Length codes below this need no byte of their own.
const LENGTH_SHORT: u64 = 5;
const LENGTH_ESCAPE: u64 = 15;

/// The shortest string above `below` and not above `first`.
pub fn separator<'a>(below: &[u8], first: &'a [u8]) -> &'a [u8] {
    debug_assert!(below < first);
    &first[..common_prefix(below, first) + 1]
}

/// Where a block lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockRef {
    /// Its number in the table.
    pub number: u32,
    pub offset: u64,
    /// With its trailer.
    pub bytes: u32,
}

impl BlockRef {
    /// Where the block after it begins.
    pub fn end(&self) -> u64 {
        self.offset + u64::from(self.bytes)
    }
}

fn zigzag(base: u32, bytes: u32) -> u64 {
    let delta = i64::from(bytes) - i64::from(base);
    (delta << 1 ^ delta >> 63) as u64
}

fn unzigzag(base: u32, code: u64) -> Result<u32, Malformed> {
    let delta = (code >> 1) as i64 ^ -((code & 1) as i64);
    delta.checked_add(i64::from(base)).and_then(|bytes| u32::try_from(bytes).ok()).ok_or(Malformed("impossible length of a block"))
}

/// Collects separators and lengths.
#[derive(Debug, Default)]
pub struct IndexBuilder {
    bytes: Vec<u8>,
    groups: Vec<u32>,
    pending: Vec<(Vec<u8>, u32)>,
    blocks: u32,
    /// Where the pending group's first block lies.
    offset: u64,
}

impl IndexBuilder {
    /// `offset` is where the first block lies.
    pub fn new(offset: u64) -> IndexBuilder {
        IndexBuilder { offset, ..IndexBuilder::default() }
    }

    /// What it takes so far, about.
    pub fn coded_bytes(&self) -> usize {
        self.bytes.len() + self.groups.len() * 4 + self.pending.len() * 8 + 8
    }

    /// The next block. Separators rise.
    pub fn add(&mut self, separator: &[u8], bytes: u32) {
        self.pending.push((separator.to_vec(), bytes));
        self.blocks += 1;
        if self.pending.len() == GROUP {
            self.close_group();
        }
    }

    fn close_group(&mut self) {
        let mut lengths: Vec<u32> = self.pending.iter().map(|(_, bytes)| *bytes).collect();
        lengths.sort_unstable();
        let base = lengths[lengths.len() / 2];
        let shared: Vec<usize> = self.pending.windows(2).map(|pair| common_prefix(&pair[0].0, &pair[1].0)).collect();
        let common = shared.iter().copied().min().unwrap_or(0);
        self.groups.push(u32::try_from(self.bytes.len()).expect("an index is below 4 GiB"));
        put_varint(&mut self.bytes, self.offset);
        put_varint(&mut self.bytes, u64::from(base));
        put_varint(&mut self.bytes, common as u64);
        put_bytes(&mut self.bytes, &self.pending[0].0);
        put_varint(&mut self.bytes, zigzag(base, self.pending[0].1));
        for ((separator, bytes), &shared) in self.pending[1..].iter().zip(&shared) {
            put_code(&mut self.bytes, common, shared, &separator[shared..], zigzag(base, *bytes));
        }
        self.offset += self.pending.iter().map(|(_, bytes)| u64::from(*bytes)).sum::<u64>();
        self.pending.clear();
    }

    /// The index's content.
    pub fn finish(mut self) -> Vec<u8> {
        if !self.pending.is_empty() {
            self.close_group();
        }
        self.groups.iter().for_each(|at| self.bytes.extend_from_slice(&at.to_le_bytes()));
        self.bytes.extend_from_slice(&self.blocks.to_le_bytes());
        self.bytes.extend_from_slice(&(self.groups.len() as u32).to_le_bytes());
        self.bytes
    }
}

fn put_code(out: &mut Vec<u8>, common: usize, shared: usize, unshared: &[u8], length: u64) {
    let shared_code = ((shared - common) as u64).min(ESCAPE);
    let unshared_code = (unshared.len() as u64 - 1).min(ESCAPE);
    let length_code = if length < LENGTH_SHORT { length } else { (LENGTH_SHORT + ((length - LENGTH_SHORT) >> 8)).min(LENGTH_ESCAPE) };
    out.push((shared_code << 6 | unshared_code << 4 | length_code) as u8);
    if shared_code == ESCAPE {
        put_varint(out, shared as u64);
    }
    if unshared_code == ESCAPE {
        put_varint(out, unshared.len() as u64);
    }
    out.extend_from_slice(unshared);
    if length_code == LENGTH_ESCAPE {
        put_varint(out, length);
    } else if length_code >= LENGTH_SHORT {
        out.push((length - LENGTH_SHORT) as u8);
    }
}

/// A walk through one group.
struct Group<'a> {
    reader: Reader<'a>,
    base: u32,
    common: usize,
    first: &'a [u8],
    block: BlockRef,
}

impl<'a> Group<'a> {
    /// To the next block: what its separator shares with the one before, and the rest of it.
    #[inline]
    fn next(&mut self) -> Result<(usize, &'a [u8]), Malformed> {
        let code = u64::from(self.reader.u8()?);
        let mut shared = self.common.checked_add((code >> 6) as usize).ok_or(Malformed("separator too long"))?;
        if code >> 6 == ESCAPE {
            shared = usize::try_from(self.reader.varint()?).map_err(|_| Malformed("separator too long"))?;
        }
        let mut unshared = (code >> 4 & 3) + 1;
        if unshared > ESCAPE {
            unshared = self.reader.varint()?;
        }
        let rest = self.reader.take(usize::try_from(unshared).map_err(|_| Malformed("separator too long"))?)?;
        let length = match code & 15 {
            short @ ..LENGTH_SHORT => short,
            LENGTH_ESCAPE => self.reader.varint()?,
            high => LENGTH_SHORT + ((high - LENGTH_SHORT) << 8 | u64::from(self.reader.u8()?)),
        };
        let bytes = unzigzag(self.base, length)?;
        let offset = self.block.offset.checked_add(u64::from(self.block.bytes)).ok_or(Malformed("offset too large"))?;
        self.block = BlockRef { number: self.block.number.wrapping_add(1), offset, bytes };
        Ok((shared, rest))
    }
}

/// An index in memory.
#[derive(Debug)]
pub struct TableIndex {
    bytes: Box<[u8]>,
    groups_at: usize,
    groups: usize,
    blocks: u32,
    guide: Guide,
}

/// What tells most groups apart without looking at them: a word of the first separator of each but the first group, whose own is often
/// short. A search touches a few cache lines of it, where each group that it would look at is some lines of its own.
#[derive(Debug, Default)]
struct Guide {
    /// What all those separators begin with.
    common: Box<[u8]>,
    /// The eight bytes that follow, big-endian, zeros behind a separator that ends.
    words: Box<[u64]>,
}

/// The eight bytes from `at`, big-endian, zeros behind the end. Where two strings that agree before differ in it, their order is its order.
fn word_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(leading(bytes.get(at..).unwrap_or_default()))
}

impl Guide {
    /// Of the first separators of all groups.
    fn new(firsts: &[&[u8]]) -> Guide {
        let Some((first, last)) = firsts.get(1).zip(firsts.last()) else { return Guide::default() };
        let common = common_prefix(first, last);
        Guide { common: first[..common].into(), words: firsts[1..].iter().map(|first| word_at(first, common)).collect() }
    }

    /// Among which groups the last one is whose first separator is not above `place`, both ends included.
    fn groups(&self, place: &[u8]) -> (usize, usize) {
        let all = self.words.len();
        match place[..place.len().min(self.common.len())].cmp(&self.common) {
            Ordering::Less => (0, 0),
            Ordering::Greater => (all, all),
            Ordering::Equal => {
                let word = word_at(place, self.common.len());
                let below = self.words.partition_point(|first| *first < word);
                (below, self.words.partition_point(|first| *first <= word))
            }
        }
    }
}

impl TableIndex {
    /// Takes an index's content and checks all of it: separators rise, and the blocks fill `start..end` of the file.
    pub fn parse(content: &[u8], start: u64, end: u64) -> Result<TableIndex, Malformed> {
        let tail = content.last_chunk::<8>().ok_or(Malformed("index too short"))?;
        let word = |at: usize| u32::from_le_bytes([tail[at], tail[at + 1], tail[at + 2], tail[at + 3]]);
        let (blocks, groups) = (word(0), word(4) as usize);
        let groups_at = groups.checked_mul(4).and_then(|table| content.len().checked_sub(8 + table)).ok_or(Malformed("index too short"))?;
        if groups != (blocks as usize).div_ceil(GROUP) {
            return Err(Malformed("groups of the index do not fit its blocks"));
        }
        let mut index = TableIndex { bytes: content.into(), groups_at, groups, blocks, guide: Guide::default() };
        let (mut before, mut offset, mut at): (Option<Vec<u8>>, u64, usize) = (None, start, 0);
        for n in 0..groups {
            if index.group_at(n) != at {
                return Err(Malformed("a group of the index is not where it should be"));
            }
            let mut group = index.group(n)?;
            let mut separator = group.first.to_vec();
            for inner in 0..index.group_len(n) {
                if inner > 0 {
                    let (shared, rest) = group.next()?;
                    if shared > separator.len() || rest.is_empty() {
                        return Err(Malformed("impossible separator"));
                    }
                    separator.truncate(shared);
                    separator.extend_from_slice(rest);
                }
                if group.block.offset != offset || before.as_ref().is_some_and(|before| *before >= separator) {
                    return Err(Malformed("blocks of the index out of order"));
                }
                offset = offset.checked_add(u64::from(group.block.bytes)).ok_or(Malformed("offset too large"))?;
                before = Some(separator.clone());
            }
            at = index.groups_at - group.reader.rest().len();
        }
        if offset != end || at != groups_at {
            return Err(Malformed("the index does not cover the blocks"));
        }
        let firsts = (0..groups).map(|n| index.group(n).map(|group| group.first)).collect::<Result<Vec<_>, _>>()?;
        index.guide = Guide::new(&firsts);
        Ok(index)
    }

    fn group_at(&self, n: usize) -> usize {
        let at = self.groups_at + 4 * n;
        u32::from_le_bytes([self.bytes[at], self.bytes[at + 1], self.bytes[at + 2], self.bytes[at + 3]]) as usize
    }

    fn group_len(&self, n: usize) -> usize {
        (self.blocks as usize - n * GROUP).min(GROUP)
    }

    fn group(&self, n: usize) -> Result<Group<'_>, Malformed> {
        let mut reader = Reader::new(self.bytes.get(self.group_at(n)..self.groups_at).ok_or(Malformed("group beyond the index"))?);
        let offset = reader.varint()?;
        let base = u32::try_from(reader.varint()?).map_err(|_| Malformed("impossible length of a block"))?;
        let common = usize::try_from(reader.varint()?).map_err(|_| Malformed("separator too long"))?;
        let first = reader.bytes()?;
        let bytes = unzigzag(base, reader.varint()?)?;
        Ok(Group { reader, base, common, first, block: BlockRef { number: (n * GROUP) as u32, offset, bytes } })
    }

    /// How many blocks there are.
    pub fn blocks(&self) -> u32 {
        self.blocks
    }

    /// The block that holds `place` if any does: the last one whose separator is not above it, else the first. None without blocks.
    pub fn find(&self, place: &[u8]) -> Result<Option<BlockRef>, Malformed> {
        if self.groups == 0 {
            return Ok(None);
        }
        let (mut n, mut high) = self.guide.groups(place);
        while n < high {
            let middle = (n + high).div_ceil(2);
            if self.group(middle)?.first <= place {
                n = middle;
            } else {
                high = middle - 1;
            }
        }
        let mut group = self.group(n)?;
        let mut found = group.block;
        // How many bytes `place` shares with the separator before, which is not above it.
        let mut matched = common_prefix(group.first, place);
        for _ in 1..self.group_len(n) {
            let (shared, rest) = group.next()?;
            match shared.cmp(&matched) {
                Ordering::Greater => {}
                Ordering::Less => break,
                Ordering::Equal => {
                    let wanted = &place[matched..];
                    let common = common_prefix(rest, wanted);
                    if rest[common..].first() > wanted[common..].first() {
                        break;
                    }
                    matched += common;
                }
            }
            found = group.block;
        }
        Ok(Some(found))
    }

    /// Appends the blocks from `number` to the end of its group.
    pub fn blocks_from(&self, number: u32, out: &mut impl Extend<BlockRef>) -> Result<(), Malformed> {
        if number >= self.blocks {
            return Ok(());
        }
        let n = number as usize / GROUP;
        let mut group = self.group(n)?;
        for inner in 0..self.group_len(n) {
            if inner > 0 {
                group.next()?;
            }
            if group.block.number >= number {
                out.extend([group.block]);
            }
        }
        Ok(())
    }

    /// Bytes in memory.
    pub fn memory_bytes(&self) -> usize {
        self.bytes.len() + size_of_val(&*self.guide.words) + self.guide.common.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::prng::Prng;

    #[test]
    fn a_place_leads_to_the_last_block_whose_separator_is_not_above_it() {
        let mut prng = Prng::new(5);
        for round in 0..60 {
            let mut separators = std::collections::BTreeSet::new();
            for _ in 0..prng.below(400) {
                let len = if prng.one_in(20) { prng.below(300) } else { prng.below(9) };
                separators.insert((0..len).map(|_| prng.below(3) as u8).collect::<Vec<u8>>());
            }
            separators.insert(Vec::new());
            let separators: Vec<_> = separators.into_iter().collect();
            let mut builder = IndexBuilder::new(64);
            let (mut refs, mut offset) = (Vec::new(), 64);
            for (number, separator) in separators.iter().enumerate() {
                let bytes = match prng.below(4) {
                    0 => prng.below(200_000) as u32,
                    1 => 3000 + prng.below(1500) as u32,
                    _ => 4320 + prng.below(7) as u32,
                };
                builder.add(separator, bytes);
                refs.push(BlockRef { number: number as u32, offset, bytes });
                offset += u64::from(bytes);
            }
            let content = builder.finish();
            let index = TableIndex::parse(&content, 64, offset).unwrap_or_else(|what| panic!("round {round}: {what}"));
            assert!(TableIndex::parse(&content, 64, offset + 1).is_err());
            for _ in 0..300 {
                let place: Vec<u8> = (0..prng.below(12)).map(|_| prng.below(4) as u8).collect();
                let expected = separators.partition_point(|separator| *separator <= place).saturating_sub(1);
                assert_eq!(index.find(&place), Ok(Some(refs[expected])));
            }
            let mut walked = Vec::new();
            while walked.len() < refs.len() {
                index.blocks_from(walked.len() as u32, &mut walked).unwrap();
            }
            assert_eq!(walked, refs);
        }
    }

    #[test]
    fn blocks_of_one_size_cost_little_more_than_their_separators() {
        let mut builder = IndexBuilder::new(64);
        let (mut offset, mut separators, blocks) = (64, 0, 10_000u32);
        for n in 0..blocks {
            let separator = n.to_be_bytes();
            let bytes = 4320 + n % 5;
            builder.add(&separator[..if n == 0 { 0 } else { 4 }], bytes);
            separators += 1;
            offset += u64::from(bytes);
        }
        let content = builder.finish();
        assert!(TableIndex::parse(&content, 64, offset).is_ok());
        assert!(content.len() as f64 <= 2.35 * f64::from(separators), "{} bytes for {separators} blocks", content.len());
    }

    #[test]
    fn every_length_code_is_read_as_it_was_written() {
        for delta in (-1300..=1300).chain([-4096, 60_000, i64::from(u32::MAX) - 4096]) {
            let mut builder = IndexBuilder::new(64);
            let lengths = [4096, 4096, (4096 + delta) as u32, 4096];
            lengths.iter().zip([&b""[..], b"a", b"b", b"c"]).for_each(|(&bytes, separator)| builder.add(separator, bytes));
            let end = 64 + lengths.iter().map(|&bytes| u64::from(bytes)).sum::<u64>();
            let index = TableIndex::parse(&builder.finish(), 64, end).unwrap_or_else(|what| panic!("{delta}: {what}"));
            assert_eq!(index.find(b"b").unwrap().map(|block| block.bytes), Some(lengths[2]));
        }
    }

    #[test]
    fn separators_are_as_short_as_they_can_be() {
        assert_eq!(separator(b"abc", b"abd"), b"abd");
        assert_eq!(separator(b"abc", b"b"), b"b");
        assert_eq!(separator(b"ab", b"abcd"), b"abc");
        assert_eq!(separator(b"", b"xyz"), b"x");
    }
}
