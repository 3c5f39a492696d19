//! A hash tree a vnode and namespace (Merkle, "A digital signature based on a conventional encryption function", 1987; as Dynamo uses it,
//! section 4.7): by comparing a few hashes two replicas learn in which parts of the vnode's token range they differ.
//!
//! **Leaves** are equal parts of the range. A leaf's hash is the sum of the 128-bit hashes of its cells, so it does not depend on the order
//! of a scan, and a node's hash is the sum of its leaves'. So inner nodes are not stored, and trees of different depth agree on every level
//! that both have. 16 bytes and two bits a leaf, at most 2^`LEAVES_LOG2_MAX` leaves: some 17 KiB a vnode, and one leaf while it is small.
//!
//! **What is hashed** of a cell is its place and the versions of its value and expiry parts: one version is one value, so payloads need not
//! be read. To this comes whether it is a tombstone, unless its deadline has passed: of equal versions the tombstone wins the join, and a
//! replica that had already reclaimed an expired cell when a later deadline came differs from one that had not. Derived cells are not
//! hashed; nor are the chunks of a large string, which are written, copied and dropped together with the head that has their version. Nor
//! are the dead at or below the floor: they are the same as absent (rule G4). Nobody scans a leaf anew because its cells have died or the
//! floor has risen; where hashes differ for that, a comparison lists the leaf, finds nothing, and marks it for another scan.
//!
//! **Writes mark a leaf dirty**, and a paced scan computes it anew: a write does not read what it replaces, so it could not take the old
//! cell's hash out of a sum. A dirty leaf has no hash; in a comparison it counts as different, and the lists of its cells decide.

use crate::base::checksum::hash64_seeded;
use crate::base::record::{Cell, Kind, Token, Version};
use crate::base::time::WallMs;
use crate::limits::{LEAVES_LOG2_MAX, LEVEL_NODES_MAX};
pub use crate::wire::peer_repair::{Digest, Level};

/// A leaf holds about so many cells before the tree deepens.
const LEAF_CELLS_LOG2: u8 = 6;
/// A comparison goes down so many levels at a time: 16 hashes for each node that differs.
pub const STEP_LOG2: u8 = 4;

/// Whether a cell is hashed and listed. The caller leaves out what its key's head makes dead, which a merge may have dropped.
pub fn is_compared(kind: Kind, cell: &Cell<'_>, floor: Version, now_ms: WallMs) -> bool {
    !kind.is_derived() && kind != Kind::Chunk && (cell.is_live(now_ms) || cell.newest() > floor)
}

/// See the head of this file.
#[derive(Clone, Debug)]
pub struct Tree {
    /// Which bits of a token choose the leaf: those behind the vnode's.
    vnode: u32,
    vnodes_log2: u8,
    leaves_log2: u8,
    sums: Vec<u128>,
    dirty: Vec<bool>,
    /// Written since the scan of the leaf began.
    touched: Vec<bool>,
}

/// A scan of one leaf. Dropped before its end it changes nothing: the leaf stays dirty.
#[derive(Debug)]
pub struct LeafScan {
    leaf: u32,
    leaves_log2: u8,
    sum: u128,
    scratch: Vec<u8>,
}

/// How many leaves (as a power of two) suit so many cells; a tree keeps its depth while it is within a factor of two of that.
pub fn leaves_log2_for(cells: u64, now_log2: u8) -> u8 {
    let wanted = (64 - cells.leading_zeros() as u8).saturating_sub(LEAF_CELLS_LOG2).min(LEAVES_LOG2_MAX);
    if wanted.abs_diff(now_log2) > 1 { wanted } else { now_log2 }
}

impl Tree {
    /// A tree of which nothing is known yet. `vnodes`: how many the ring has.
    pub fn new(vnode: u32, vnodes: u32, leaves_log2: u8) -> Tree {
        assert!(vnodes.is_power_of_two() && vnode < vnodes && leaves_log2 <= LEAVES_LOG2_MAX, "{vnode} of {vnodes}, 2^{leaves_log2}");
        let leaves = 1 << leaves_log2;
        let vnodes_log2 = vnodes.trailing_zeros() as u8;
        Tree { vnode, vnodes_log2, leaves_log2, sums: vec![0; leaves], dirty: vec![true; leaves], touched: vec![true; leaves] }
    }

    pub fn leaves_log2(&self) -> u8 {
        self.leaves_log2
    }

    fn leaf_of(&self, token: Token) -> u32 {
        debug_assert_eq!(token.checked_shr(64 - u32::from(self.vnodes_log2)).unwrap_or(0) as u32, self.vnode, "a token of this vnode");
        let below = token.checked_shl(u32::from(self.vnodes_log2)).unwrap_or(0);
        below.checked_shr(64 - u32::from(self.leaves_log2)).unwrap_or(0) as u32
    }

    /// First and last token of a node.
    pub fn range(&self, log2: u8, index: u32) -> (Token, Token) {
        let bits = u32::from(self.vnodes_log2) + u32::from(log2);
        let prefix = u64::from(self.vnode) << log2 | u64::from(index);
        let first = prefix.checked_shl(64 - bits).unwrap_or(0);
        (first, first | u64::MAX.checked_shr(bits).unwrap_or(0))
    }

    /// A cell with this token was written, or dropped for good.
    pub fn mark(&mut self, token: Token) {
        self.mark_leaf(self.leaf_of(token) as usize);
    }

    fn mark_leaf(&mut self, leaf: usize) {
        (self.dirty[leaf], self.touched[leaf]) = (true, true);
    }

    /// Leaves with tokens from `first` to `last` are to be scanned once more, those that are not waiting for it already.
    pub fn mark_range(&mut self, first: Token, last: Token) {
        for leaf in self.leaf_of(first) as usize..=self.leaf_of(last) as usize {
            if !self.dirty[leaf] {
                self.mark_leaf(leaf);
            }
        }
    }

    /// Nothing is known any more: the vnode's data was replaced.
    pub fn mark_all(&mut self) {
        self.dirty.fill(true);
        self.touched.fill(true);
    }

    /// How many leaves wait for a scan.
    pub fn dirty(&self) -> usize {
        self.dirty.iter().filter(|dirty| **dirty).count()
    }

    /// The first dirty leaf at or behind `from`, around the end.
    pub fn next_dirty(&self, from: u32) -> Option<u32> {
        let from = from.min(1 << self.leaves_log2) as usize;
        let at = |range: std::ops::Range<usize>| range.into_iter().find(|leaf| self.dirty[*leaf]);
        at(from..self.dirty.len()).or_else(|| at(0..from)).map(|leaf| leaf as u32)
    }

    /// Begins a scan. What is written from now on makes the leaf dirty for another.
    pub fn begin(&mut self, leaf: u32) -> LeafScan {
        self.touched[leaf as usize] = false;
        LeafScan { leaf, leaves_log2: self.leaves_log2, sum: 0, scratch: Vec::new() }
    }

    /// The whole leaf was read. Of two scans of one leaf at a time only the one that began last may end.
    pub fn finish(&mut self, scan: LeafScan) {
        if scan.leaves_log2 == self.leaves_log2 {
            let leaf = scan.leaf as usize;
            self.sums[leaf] = scan.sum;
            self.dirty[leaf] = self.touched[leaf];
        }
    }

    /// Another number of leaves. Of fewer, what is known stays known; of more, nothing does.
    pub fn resize(&mut self, leaves_log2: u8) {
        let mut next = Tree::new(self.vnode, 1 << self.vnodes_log2, leaves_log2);
        if leaves_log2 <= self.leaves_log2 {
            for leaf in 0..1u32 << leaves_log2 {
                let hash = self.hash(leaves_log2, leaf);
                let at = leaf as usize;
                (next.sums[at], next.dirty[at], next.touched[at]) = (hash.unwrap_or(0), hash.is_none(), hash.is_none());
            }
        }
        *self = next;
    }

    /// A node's hash; none where a leaf below is dirty, or where the tree is not as deep.
    pub fn hash(&self, log2: u8, index: u32) -> Option<u128> {
        let deeper = self.leaves_log2.checked_sub(log2)?;
        let leaves = (index as usize) << deeper..((index as usize) + 1) << deeper;
        if self.dirty.get(leaves.clone())?.contains(&true) {
            return None;
        }
        Some(self.sums[leaves].iter().fold(0, |sum, leaf| sum.wrapping_add(*leaf)))
    }

    /// The hashes of these nodes, to be sent.
    pub fn level(&self, log2: u8, indexes: impl IntoIterator<Item = u32>) -> Level {
        Level { log2, nodes: indexes.into_iter().map(|index| (index, self.hash(log2, index))).collect() }
    }

    /// Which nodes of another replica's level differ from ours, or may.
    pub fn differing(&self, theirs: &Level) -> Vec<u32> {
        let differs = |(index, hash): &&(u32, Option<u128>)| hash.is_none() || *hash != self.hash(theirs.log2, *index);
        theirs.nodes.iter().filter(differs).map(|(index, _)| *index).collect()
    }
}

impl LeafScan {
    /// One of the leaf's cells, for which `is_compared` holds. `seed` is the cluster's, so that nobody outside can choose what cancels out.
    pub fn add(&mut self, seed: u64, place: &[u8], digest: &Digest) {
        self.sum = self.sum.wrapping_add(hash_of(&mut self.scratch, seed, place, digest));
    }
}

fn hash_of(scratch: &mut Vec<u8>, seed: u64, place: &[u8], digest: &Digest) -> u128 {
    scratch.clear();
    scratch.extend_from_slice(&digest.value.to_bytes());
    scratch.extend_from_slice(&digest.expiry.to_bytes());
    scratch.push(u8::from(digest.is_gone));
    scratch.extend_from_slice(place);
    u128::from(hash64_seeded(scratch, seed)) << 64 | u128::from(hash64_seeded(scratch, !seed))
}

const _: () = assert!(LEVEL_NODES_MAX >= 1 << STEP_LOG2, "the children of one node can be sent");

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::codec::Reader;
    use crate::base::prng::Prng;
    use std::collections::BTreeMap;

    const VNODES: u32 = 64;
    const VNODE: u32 = 37;

    fn token(prng: &mut Prng) -> Token {
        u64::from(VNODE) << 58 | prng.next_u64() >> 6
    }

    type Cells = BTreeMap<(Token, u64), Digest>;

    fn scan(tree: &mut Tree, cells: &Cells) {
        while let Some(leaf) = tree.next_dirty(0) {
            let mut scan = tree.begin(leaf);
            let (first, last) = tree.range(tree.leaves_log2(), leaf);
            for ((token, key), digest) in cells.range((first, 0)..=(last, u64::MAX)) {
                scan.add(9, &[token.to_be_bytes(), key.to_be_bytes()].concat(), digest);
            }
            tree.finish(scan);
        }
    }

    fn leaves(tree: &Tree, theirs: &Tree) -> Vec<u32> {
        let log2 = tree.leaves_log2().min(theirs.leaves_log2());
        theirs.differing(&tree.level(log2, 0..1 << log2))
    }

    fn some(prng: &mut Prng, count: usize) -> Cells {
        let cell = |prng: &mut Prng| ((token(prng), prng.below(9)), Digest { value: Version(7), ..Digest::default() });
        (0..count).map(|_| cell(prng)).collect()
    }

    #[test]
    fn trees_differ_in_the_leaves_in_which_the_cells_do_and_nowhere_else() {
        let mut prng = Prng::new(1);
        for round in 0..300 {
            let (log2, other_log2) = (prng.below(8) as u8, prng.below(8) as u8);
            let cells = some(&mut prng, 200);
            let (mut one, mut two) = (Tree::new(VNODE, VNODES, log2), Tree::new(VNODE, VNODES, other_log2));
            let mut others = cells.clone();
            let mut expected = Vec::new();
            for _ in 0..round % 4 {
                let at = *cells.keys().nth(prng.below(cells.len() as u64) as usize).unwrap();
                expected.push(at.0);
                match prng.below(4) {
                    0 => drop(others.remove(&at)),
                    1 => others.get_mut(&at).unwrap().value = Version(8),
                    2 => others.get_mut(&at).unwrap().expiry = Version(8),
                    _ => others.get_mut(&at).unwrap().is_gone = true,
                }
            }
            scan(&mut one, &cells);
            scan(&mut two, &others);
            let deeper = if log2 < other_log2 { &one } else { &two };
            let mut expected: Vec<u32> = expected.iter().map(|token| deeper.leaf_of(*token)).collect();
            expected.sort_unstable();
            expected.dedup();
            assert_eq!(leaves(&one, &two), expected);
            assert_eq!(leaves(&two, &one), expected);
            // From the root, step by step, the same.
            let (mut at, mut nodes, end) = (0, vec![0u32], log2.min(other_log2));
            while !nodes.is_empty() && at < end {
                nodes = two.differing(&one.level(at, nodes));
                let step = STEP_LOG2.min(end - at);
                nodes = nodes.iter().flat_map(|node| node << step..(node + 1) << step).collect();
                at += step;
            }
            assert_eq!(two.differing(&one.level(at, nodes)), expected);
        }
    }

    #[test]
    fn what_was_listed_is_scanned_once_more() {
        let mut tree = Tree::new(VNODE, VNODES, 3);
        scan(&mut tree, &Cells::new());
        let (first, last) = (tree.range(3, 2).0, tree.range(3, 4).1);
        tree.mark_range(first, last);
        assert_eq!((tree.dirty(), tree.next_dirty(0)), (3, Some(2)));
        // One that waits for it already, and was not written to since a scan began, does not wait longer.
        let begun = tree.begin(3);
        tree.mark_range(first, last);
        tree.finish(begun);
        assert_eq!(tree.dirty(), 2);
    }

    #[test]
    fn a_leaf_written_to_during_its_scan_stays_dirty_and_a_dirty_leaf_differs() {
        let mut tree = Tree::new(VNODE, VNODES, 3);
        assert_eq!((tree.dirty(), tree.hash(0, 0)), (8, None));
        scan(&mut tree, &Cells::new());
        assert_eq!((tree.dirty(), tree.hash(0, 0), tree.hash(4, 0)), (0, Some(0), None));
        let (first, last) = tree.range(3, 5);
        tree.mark(first);
        let running = tree.begin(5);
        tree.mark(last);
        tree.finish(running);
        assert_eq!((tree.next_dirty(0), tree.hash(3, 5), tree.hash(3, 4)), (Some(5), None, Some(0)));
        let clean = {
            let mut clean = Tree::new(VNODE, VNODES, 3);
            scan(&mut clean, &Cells::new());
            clean
        };
        assert_eq!((leaves(&tree, &clean), leaves(&clean, &tree)), (vec![5], vec![5]));
        tree.mark_all();
        assert_eq!(tree.next_dirty(6), Some(6));
    }

    #[test]
    fn ranges_cover_the_vnode_and_a_smaller_tree_keeps_what_it_knows() {
        let mut prng = Prng::new(2);
        for vnodes in [2, 64, 16_384] {
            let vnode = prng.below(u64::from(vnodes)) as u32;
            let tree = Tree::new(vnode, vnodes, LEAVES_LOG2_MAX);
            let mut next = tree.range(0, 0).0;
            for leaf in 0..1 << LEAVES_LOG2_MAX {
                let (first, last) = tree.range(LEAVES_LOG2_MAX, leaf);
                assert_eq!((first, tree.leaf_of(first), tree.leaf_of(last)), (next, leaf, leaf));
                assert_eq!(crate::base::record::vnode_of(last, vnodes), vnode);
                next = last.wrapping_add(1);
            }
            assert_eq!(next.wrapping_sub(1), tree.range(0, 0).1);
        }
        let cells = some(&mut prng, 500);
        let (mut deep, mut flat) = (Tree::new(VNODE, VNODES, 7), Tree::new(VNODE, VNODES, 2));
        scan(&mut deep, &cells);
        scan(&mut flat, &cells);
        deep.resize(2);
        assert_eq!((deep.dirty(), deep.level(2, 0..4)), (0, flat.level(2, 0..4)));
        deep.resize(3);
        assert_eq!(deep.dirty(), 8);
        let depths: Vec<u8> = [0, 100, 127, 256, 10_000, 1 << 40].map(|cells| leaves_log2_for(cells, 0)).into();
        assert_eq!(depths, [0, 0, 0, 3, 8, LEAVES_LOG2_MAX]);
        assert_eq!((leaves_log2_for(10_000, 7), leaves_log2_for(10_000, 9), leaves_log2_for(10_000, 6)), (7, 9, 8));
    }

    #[test]
    fn what_may_be_dropped_is_as_if_absent_and_what_is_derived_is_not_compared() {
        let (old, new) = (Version::put(5, 0), Version::put(9, 0));
        let compared = |cell: &Cell<'_>, kind| is_compared(kind, cell, Version::put(7, 0), 100);
        for (cell, old_is) in [
            (Cell::value(old, b"x"), true),
            (Cell::value(old, b"x").with_deadline(101), true),
            (Cell::value(old, b"x").with_deadline(100), false),
            (Cell::tombstone(old), false),
            (Cell::expire(old, 0), false),
        ] {
            assert_eq!(compared(&cell, Kind::Head), old_is, "{cell:?}");
            let newer = Cell { expiry: crate::base::record::Expiry { version: new, ..cell.expiry }, ..cell };
            assert!(compared(&newer, Kind::Field) && !compared(&newer, Kind::DerivedCount) && !compared(&newer, Kind::Chunk));
        }
        // Reclaimed or not, an expired cell is the same; with a later deadline it is not.
        let cell = Cell::value(old, b"x").with_deadline(100);
        assert_eq!(Digest::of(&cell, 100), Digest::of(&cell.remnant(), 100));
        assert_ne!(Digest::of(&cell, 99), Digest::of(&cell.remnant(), 99));
    }

    #[test]
    fn a_level_is_read_as_it_was_written_and_no_other_bytes_are_one() {
        let mut prng = Prng::new(3);
        for _ in 0..2000 {
            let log2 = prng.below(u64::from(LEAVES_LOG2_MAX) + 1) as u8;
            let nodes = (0..1u32 << log2).filter(|_| prng.one_in(5)).take(LEVEL_NODES_MAX).collect::<Vec<u32>>();
            let nodes = nodes.into_iter().map(|index| (index, (!prng.one_in(4)).then(|| u128::from(prng.next_u64())))).collect();
            let level = Level { log2, nodes };
            let mut out = Vec::new();
            level.encode(&mut out);
            let mut reader = Reader::new(&out);
            assert_eq!((Level::decode(&mut reader).as_ref(), reader.end()), (Ok(&level), Ok(())));
            let cut = Reader::new(&out[..out.len() - 1]);
            assert!(Level::decode(&mut { cut }).is_err());
        }
        let refused = |bytes: &[u8]| Level::decode(&mut Reader::new(bytes)).unwrap_err().0;
        assert_eq!(refused(&[LEAVES_LOG2_MAX + 1, 0]), "a level that no tree has");
        assert_eq!(refused(&[2, 1, 8]), "nodes of a level out of order");
        assert_eq!(refused(&[2, 2, 2, 0]), "nodes of a level out of order");
        assert_eq!(refused(&[2, 0xFF, 0x7F]), "more nodes of a level than are sent at once");
    }
}
