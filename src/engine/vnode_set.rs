//! A set of vnodes: for which of them a reference to a shared table is valid.
//!
//! A bitmap from the first vnode on, rounded down to a whole byte. On disk: that first vnode, a length, the bytes, all vnodes of the
//! cluster at most.

use crate::base::codec::{Malformed, Reader, put_bytes, put_varint};

/// The longest bitmap that is read: 65,536 vnodes.
const BYTES_MAX: usize = 65_536 / 8;

/// Vnodes, in a bitmap.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VnodeSet {
    /// Of the first bit.
    base: u32,
    /// The lowest bit of a byte is its first vnode.
    bits: Vec<u8>,
}

impl VnodeSet {
    /// The set of some vnodes, given in rising order.
    pub fn of(rising: impl Iterator<Item = u32>) -> VnodeSet {
        let mut set = VnodeSet::default();
        for vnode in rising {
            if set.bits.is_empty() {
                set.base = vnode / 8 * 8;
            }
            let at = (vnode - set.base) as usize;
            set.bits.resize(set.bits.len().max(at / 8 + 1), 0);
            set.bits[at / 8] |= 1 << (at % 8);
        }
        set
    }

    /// The vnode is in it.
    #[inline]
    pub fn contains(&self, vnode: u32) -> bool {
        let at = vnode.wrapping_sub(self.base) as usize;
        self.bits.get(at / 8).is_some_and(|byte| byte & 1 << (at % 8) != 0)
    }

    /// Nothing is in it.
    pub fn is_empty(&self) -> bool {
        self.bits.iter().all(|&byte| byte == 0)
    }

    /// All of them, rising.
    pub fn iter(&self) -> impl Iterator<Item = u32> {
        (0..self.bits.len() as u32 * 8).map(|at| self.base + at).filter(|&vnode| self.contains(vnode))
    }

    /// What is in either.
    pub fn union(&self, other: &VnodeSet) -> VnodeSet {
        let all: std::collections::BTreeSet<u32> = self.iter().chain(other.iter()).collect();
        VnodeSet::of(all.into_iter())
    }

    /// Appends it.
    pub fn put(&self, out: &mut Vec<u8>) {
        put_varint(out, u64::from(self.base));
        put_bytes(out, &self.bits);
    }

    /// Takes one.
    ///
    /// # Errors
    /// Longer, or of higher vnodes, than any cluster has.
    pub fn parse(reader: &mut Reader<'_>) -> Result<VnodeSet, Malformed> {
        let base = u32::try_from(reader.varint()?).map_err(|_| Malformed("number too large"))?;
        let bits = reader.bytes()?.to_vec();
        if base as usize / 8 + bits.len() > BYTES_MAX {
            return Err(Malformed("impossible set of vnodes"));
        }
        Ok(VnodeSet { base, bits })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::prng::Prng;
    use std::collections::BTreeSet;

    #[test]
    fn a_bitmap_answers_as_a_set_would() {
        let mut prng = Prng::new(3);
        let draw = |prng: &mut Prng| -> BTreeSet<u32> {
            let (least, count) = (prng.below(300) as u32, prng.below(40));
            (0..count).map(|_| least + prng.below(200) as u32).collect()
        };
        for _ in 0..300 {
            let (a, b) = (draw(&mut prng), draw(&mut prng));
            let (set, other) = (VnodeSet::of(a.iter().copied()), VnodeSet::of(b.iter().copied()));
            assert!((0..600).all(|vnode| set.contains(vnode) == a.contains(&vnode)) && set.is_empty() == a.is_empty());
            assert!(set.iter().eq(a.iter().copied()));
            assert!(set.union(&other).iter().eq(a.union(&b).copied()));
            let mut bytes = Vec::new();
            set.put(&mut bytes);
            assert_eq!(VnodeSet::parse(&mut Reader::new(&bytes)), Ok(set));
        }
    }
}
