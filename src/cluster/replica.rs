//! A replica: what a node does with what coordinators of other nodes, and its own, ask of it.
//!
//! Each question is judged first (`on_store`, `on_read`), by what the node knows without storage: whether the asker knows the vnode's
//! replicas (M1), whether the node is one of them and may vote (M3), whether the version can be true. What is refused costs nothing more.
//! What passes is for storage, and its answer waits until what it says is durable: an acknowledgement, also one for what was there
//! before, and a read alike. Nobody is shown what a power loss could take back.
//!
//! The fences of L4 and G1 are a function that comes in: whoever keeps terms and floors says what they let through, on every road.

use super::coordinator::Planted;
use super::topology::{Standing, Topology};
use crate::base::record::{Body, Cell, Version, token_of, vnode_of};
use crate::base::time::{HybridClock, WallMs, hlc_ms};
use crate::limits::CLOCK_SKEW_MS_MAX;
use crate::wire::peer::{Digest, Head, Holds, Message, Place, Refusal, Road};

/// A sequence of the node's log: what it carries is durable once the log is, up to there. 0 is durable already.
pub type Seq = u64;

/// What the fences say of a cell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fence {
    Open,
    /// Refused, unless it, or something newer, is there (G1).
    UnlessHeld,
    /// Refused before that is considered (L4).
    Closed,
}

/// What memory knows of the cell's place, and when that is durable. Nothing known is no reason to look on disk: the cell is stored, and the
/// join finds the newer one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    pub version: Version,
    pub expiry: Version,
    /// A tombstone: deleted, or what an expired value left.
    pub is_gone: bool,
    pub seq: Seq,
}

impl Held {
    /// Of what is known from two places.
    pub fn join(self, other: Held) -> Held {
        // Of equal versions a value goes before what is left of it.
        let newest = if (self.version, !self.is_gone) >= (other.version, !other.is_gone) { self } else { other };
        Held { expiry: self.expiry.max(other.expiry), seq: self.seq.max(other.seq), ..newest }
    }

    /// Nothing of the cell is missing here. What an expired value left lacks the value.
    fn has(&self, cell: &Cell<'_>) -> bool {
        let lacks_value = self.is_gone && self.version == cell.version && !matches!(cell.body, Body::Tombstone | Body::Silent);
        self.version >= cell.version && self.expiry >= cell.expiry.version && !lacks_value
    }
}

/// What happens to a cell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// Append it to the log, and answer `Stored` when the log is durable up to where it lies.
    Append,
    /// It, or something newer, is there: answer when the log is durable up to `seq`.
    AnswerWhenDurable {
        seq: Seq,
        holds: Holds,
    },
    Refuse {
        why: Refusal,
    },
}

/// What else a question leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The asker has a newer topology: get it.
    FetchTopology { epoch: u64 },
    /// The version that came lies too far ahead of this node's clock: report it, with the node it came from.
    Skewed { ahead_ms: u64 },
}

/// A node's core, as far as it answers for its vnodes.
pub struct Replica<'a> {
    pub me: u64,
    pub topology: &'a Topology,
    /// Replicas of the namespace.
    pub rf: usize,
    /// It has all that it once acknowledged (M3). Of the vnode in question; for its clock, of all vnodes of the core.
    pub votes: bool,
    pub clock: &'a mut HybridClock,
    pub now_ms: WallMs,
    pub planted: Option<Planted>,
}

impl Replica<'_> {
    /// P1, first round: the core's clock. It names no vnode, so no epoch is refused; the asker looks at that of the answer. The clock
    /// is at or above every version that the core stored, as `on_store` made it follow each of them, and as it starts above the log's
    /// newest after a restart.
    pub fn on_ask_clock(&mut self, head: Head) -> (Message<'static>, Option<Side>) {
        self.clock.look(self.now_ms);
        let answer = match self.votes {
            true => Message::Clock { hlc: self.clock.last() },
            false => Message::Refused { why: Refusal::NotVoting },
        };
        (answer, self.learns(head.epoch))
    }

    /// A peer says that this node is behind.
    pub fn on_correct(&self, head: Head) -> Option<Side> {
        self.learns(head.epoch)
    }

    /// A cell, on whatever road (P2, M1, G1, L4).
    pub fn on_store(
        &mut self,
        head: Head,
        place: &Place<'_>,
        road: Road,
        cell: &Cell<'_>,
        held: Option<Held>,
        fence: impl Fn(&Place<'_>, Road, Version) -> Fence,
    ) -> (Act, Option<Side>) {
        let refuse = |why, side| (Act::Refuse { why }, side);
        if let Err(why) = self.serves(head, place) {
            return refuse(why, self.learns(head.epoch));
        }
        let newest = cell.newest();
        self.clock.look(self.now_ms);
        if !self.clock.may_have_given(newest.hlc(), CLOCK_SKEW_MS_MAX) {
            let ahead_ms = hlc_ms(newest.hlc()).saturating_sub(self.now_ms);
            return refuse(Refusal::ClockAhead { ms: ahead_ms }, Some(Side::Skewed { ahead_ms }));
        }
        let fence = fence(place, road, newest);
        if fence == Fence::Closed {
            return refuse(Refusal::Fenced, None);
        }
        match held.filter(|held| held.has(cell)) {
            Some(held) => {
                let same = held.version == cell.version && held.expiry == cell.expiry.version;
                let seq = if self.planted == Some(Planted::AckBeforeSync) { 0 } else { held.seq };
                (Act::AnswerWhenDurable { seq, holds: if same { Holds::Same } else { Holds::Newer } }, None)
            }
            None if fence == Fence::UnlessHeld => refuse(Refusal::Fenced, None),
            None => {
                self.clock.observe(newest.hlc());
                (Act::Append, None)
            }
        }
    }

    /// Whether a read may go to storage, for the cell as of the asker's `now_ms`.
    pub fn on_read(&self, head: Head, place: &Place<'_>) -> (Result<(), Refusal>, Option<Side>) {
        (self.serves(head, place), self.learns(head.epoch))
    }

    /// The answer that a cell, or the floor of an absent one, makes; to be sent when the log is durable up to what was seen.
    /// A value that is expired by the asker's clock is of no use to it, whether this replica has reclaimed it or not.
    pub fn read_answer<'c>(full: bool, cell: Result<Cell<'c>, Version>, now_ms: WallMs, scratch: &mut Vec<u8>) -> Message<'c> {
        let cell = cell.map(|cell| if cell.is_expired(now_ms) { cell.remnant() } else { cell });
        match full {
            true => Message::ReadFull { cell },
            false => Message::ReadDigest { digest: Digest::of(cell.as_ref().map_err(|floor| *floor), scratch) },
        }
    }

    /// What a replica shows of a place: the dead at or below the floor are the same as absent, whether a merge has dropped them or not
    /// (G4). So replicas of which one has dropped them and another has not agree. `absent` gives the floor.
    pub fn shown(cell: Option<Cell<'_>>, now_ms: WallMs, absent: impl FnOnce() -> Version) -> Result<Cell<'_>, Version> {
        match cell {
            Some(cell) if cell.is_live(now_ms) => Ok(cell),
            cell => {
                let floor = absent();
                cell.filter(|cell| cell.newest() > floor).ok_or(floor)
            }
        }
    }

    fn serves(&self, head: Head, place: &Place<'_>) -> Result<(), Refusal> {
        let epoch = self.topology.epoch();
        let vnode = vnode_of(token_of(place.key), self.topology.vnodes());
        match self.topology.standing(vnode, head.epoch) {
            Standing::Stale if self.planted != Some(Planted::OldEpochObeyed) => return Err(Refusal::EpochOld { epoch }),
            Standing::Ahead => return Err(Refusal::Behind { epoch }),
            _ => {}
        }
        let nodes = self.topology.nodes();
        let is_mine = self.topology.replicas(vnode, self.rf).everybody().any(|index| nodes[usize::from(index)].spec.id == self.me);
        match () {
            () if head.deadline_ms == 0 => Err(Refusal::DeadlinePassed),
            () if !is_mine && self.planted != Some(Planted::OldEpochObeyed) => Err(Refusal::NotReplica),
            () if !self.votes => Err(Refusal::NotVoting),
            () => Ok(()),
        }
    }

    fn learns(&self, epoch: u64) -> Option<Side> {
        (epoch > self.topology.epoch()).then_some(Side::FetchTopology { epoch })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_known_of_a_place_from_disk_and_memory_is_known_together() {
        let held = |version: u64, expiry: u64, is_gone, seq| Held {
            version: Version::put(version, 1),
            expiry: Version::put(expiry, 1),
            is_gone,
            seq,
        };
        let both = [held(5, 9, true, 3), held(5, 7, false, 8)];
        for joined in [both[0].join(both[1]), both[1].join(both[0])] {
            assert_eq!(joined, held(5, 9, false, 8), "the value is here, and the newest deadline");
        }
        assert_eq!(held(6, 6, true, 0).join(held(5, 8, false, 2)), held(6, 8, true, 2));
    }

    #[test]
    fn the_dead_below_the_floor_are_shown_as_absent() {
        let (old, floor, new) = (Version::put(4, 1), Version::put(5, 0), Version::put(6, 1));
        let shown = |cell| Replica::shown(Some(cell), 100, || floor);
        let expired = Cell::value(old, b"v").with_deadline(100);
        assert_eq!(Replica::shown(None, 100, || floor), Err(floor));
        assert_eq!((shown(Cell::tombstone(old)), shown(expired), shown(Cell::expire(old, 0))), (Err(floor), Err(floor), Err(floor)));
        for cell in [Cell::value(old, b"v"), Cell::tombstone(new), Cell { expiry: Cell::expire(new, 100).expiry, ..expired }] {
            assert_eq!(shown(cell), Ok(cell));
        }
    }
}
