//! Placement: which nodes hold which vnode, for every node of a cluster the same from the same arguments.
//!
//! A vnode belongs to the first distinct seats clockwise on the ring of tokens (`ring`), racks without it first, but nobody takes more than
//! its share (`targets`): consistent hashing with bounded loads (Mirrokni, Thorup, Zadimoghaddam, 2016). The bound here is the share
//! rounded up, for a seat and for each of its cores, among the first 1, 2, … `RF_MAX` replicas apart. So a namespace takes as many
//! replicas as it wants from the front of a list, and its load is even; and first replicas are as even as all.
//!
//! A bound that tight cannot be met by a walk alone. So placement goes by position (first replicas, then second, …), each in three steps:
//! what may stay of the previous placement stays; holes are filled by the walk; and what is then over or under its share is mended along
//! augmenting paths (`balance`), the shortest first. A path moves one vnode a step, so a change moves little more than the changed share.
//!
//! The previous placement is an argument because a topology is a decision, persisted whole: nobody has to find it again from the list of
//! nodes. Integers only, and no map whose order is chance.

use super::balance::Balance;
use super::ring::Ring;
use super::targets::Targets;
use crate::limits::RF_MAX;

/// What placement has to know of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seat {
    /// Its tokens are hashes of this.
    pub id: u64,
    /// At least 1.
    pub cores: u16,
    /// Capacity against the others'; 0 holds nothing.
    pub weight: u32,
    pub rack: u32,
}

/// No seat.
pub const NOBODY: u16 = u16::MAX;

/// A vnode's preference list: indexes of seats, then `NOBODY`. Any prefix is the list of a smaller replication factor.
pub type Owners = [u16; RF_MAX];

/// Nobody holds it.
pub const UNOWNED: Owners = [NOBODY; RF_MAX];

/// The owners of every vnode. `seats` in a fixed order, for ties; `previous` speaks of the same indexes, with `NOBODY` for seats that
/// are gone, and one list a vnode (`UNOWNED` before there were any).
///
/// Every list has as many distinct owners as there are seats with weight, at most `RF_MAX`, and begins with as many racks as there are.
pub fn place(seats: &[Seat], previous: &[Owners]) -> Vec<Owners> {
    debug_assert!(seats.len() < usize::from(NOBODY) && seats.iter().all(|seat| seat.cores > 0));
    let targets = Targets::new(seats, previous.len() as u32);
    let ring = Ring::new(seats);
    let mut balance = Balance::new(seats, &targets, previous.to_vec());
    if seats.iter().filter(|seat| seat.weight > 0).count() <= RF_MAX {
        balance.close_gaps();
    }
    for position in 0..targets.replicas() {
        balance.begin(position);
        balance.fill(&ring);
        balance.mend();
    }
    balance.finish(targets.replicas())
}
