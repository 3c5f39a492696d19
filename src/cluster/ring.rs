//! The ring of tokens: where each node stands, and the walk clockwise from a vnode (Karger et al., "Consistent hashing and random
//! trees", 1997; virtual servers as in Dynamo, section 4.2). Which core of a node owns a vnode is the same pure function everywhere, so
//! that a client finds the core by itself.

pub use crate::base::record::core_of;

use super::placement::Seat;
use crate::base::checksum::hash64;
use crate::base::record::Token;

/// Tokens of a node of mean weight: enough that what lies clockwise of a node is spread over all others, so that many help to rebuild it.
const TOKENS_PER_NODE: u64 = 64;

/// The tokens of all seats in the order of the ring.
pub struct Ring {
    tokens: Vec<(Token, u16)>,
}

impl Ring {
    /// Each seat has tokens in proportion to its weight, at least one unless its weight is 0. A seat's tokens are hash(id, 0), hash(id, 1),
    /// …: where others come or go their number may change by a few, their places never.
    pub fn new(seats: &[Seat]) -> Ring {
        let live = seats.iter().filter(|seat| seat.weight > 0).count() as u64;
        let whole: u64 = seats.iter().map(|seat| u64::from(seat.weight)).sum();
        let mut tokens = Vec::with_capacity(seats.len() * TOKENS_PER_NODE as usize);
        for (index, seat) in seats.iter().enumerate().filter(|(_, seat)| seat.weight > 0) {
            let count = (TOKENS_PER_NODE * live * u64::from(seat.weight) / whole).max(1);
            tokens.extend((0..count).map(|number| (seat_token(seat.id, number), index as u16)));
        }
        tokens.sort_unstable();
        Ring { tokens }
    }

    /// The seats from `from` on clockwise, once around; a seat comes as often as it has tokens.
    pub fn walk(&self, from: Token) -> impl Iterator<Item = u16> + '_ {
        let start = self.tokens.partition_point(|(token, _)| *token < from);
        let (before, after) = self.tokens.split_at(start);
        after.iter().chain(before).map(|(_, seat)| *seat)
    }
}

fn seat_token(id: u64, number: u64) -> Token {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&id.to_le_bytes());
    bytes[8..].copy_from_slice(&number.to_le_bytes());
    hash64(&bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cores_differ_by_one_vnode_at_most() {
        for cores in 1..=64u16 {
            let mut owned = vec![0u32; usize::from(cores)];
            (0..4096).for_each(|vnode| owned[usize::from(core_of(vnode, cores))] += 1);
            assert!(owned.iter().max().unwrap() - owned.iter().min().unwrap() <= 1);
        }
    }

    #[test]
    fn a_walk_goes_once_around_from_its_token() {
        let seat = |id: u64, weight: u32| Seat { id, cores: 1, weight, rack: 0 };
        let ring = Ring::new(&[seat(1, 8), seat(2, 0), seat(3, 16)]);
        let counts = ring.walk(0).fold([0; 3], |mut counts, seat| {
            counts[usize::from(seat)] += 1;
            counts
        });
        assert_eq!(counts, [42, 0, 85]);
        let (whole, half): (Vec<u16>, Vec<u16>) = (ring.walk(0).collect(), ring.walk(1 << 63).collect());
        let turn = (0..whole.len()).filter(|&at| whole[at..].iter().chain(&whole[..at]).eq(&half)).count();
        assert_eq!((turn >= 1, half.len()), (true, whole.len()));
    }
}
