//! How many answers a request needs, and from whom: the levels, and rule M1 of PROTOCOL.md while a vnode moves.
//!
//! While a move is pending a vnode has two groups of replicas: its owners, and those that will own it. A write needs its level in both. A
//! read learns the newest from the owners alone, since a pending owner may lack anything (M2), and then has to hold to rule P5 for both
//! groups: what it answers must be held (that version or a newer one) by its level of the owners and of the pending owners, else a read
//! after the flip could miss what this one showed. So it writes back where that many did not say so.

pub use crate::wire::command::Level;

/// What the level is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    Read,
    Write,
}

/// The replicas of a vnode for one replication factor, as indexes into the topology's nodes, first replica first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Replicas<'a> {
    pub owners: &'a [u16],
    /// Who will own it, while a move is pending that changes the set.
    pub pending: Option<&'a [u16]>,
}

/// Answers that complete a request. More than there are replicas of a group means that the level cannot be met.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Need {
    /// From the owners.
    pub owners: usize,
    /// From the pending owners; a node that is in both groups counts in both.
    pub pending: usize,
}

/// The least number of which any two groups share a member.
pub fn majority(replicas: usize) -> usize {
    replicas / 2 + 1
}

impl Need {
    /// Whether so many answers do.
    pub fn is_met(self, owners: usize, pending: usize) -> bool {
        owners >= self.owners && pending >= self.pending
    }
}

impl Replicas<'_> {
    /// What `level` needs of each group. A read at ONE promises nothing about later reads, so it needs no pending owner; unless the one
    /// is all there are, and so a quorum.
    pub fn need(&self, level: Level, access: Access) -> Need {
        let of = |group: &[u16]| match level {
            Level::One => 1,
            Level::Quorum => majority(group.len()),
            Level::All => group.len(),
            Level::Exactly(count) => usize::from(count),
        };
        let owners = of(self.owners);
        let pending = match self.pending {
            Some(_) if access == Access::Read && level == Level::One && self.owners.len() > 1 => 0,
            Some(pending) => of(pending),
            None => 0,
        };
        Need { owners, pending }
    }

    /// Everybody a write is sent to, each once.
    pub fn everybody(&self) -> impl Iterator<Item = u16> + '_ {
        let new = self.pending.unwrap_or_default().iter().filter(|node| !self.owners.contains(node));
        self.owners.iter().chain(new).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_needs_its_level_of_both_groups_while_a_move_is_pending() {
        let still = Replicas { owners: &[1, 2, 3], pending: None };
        let moving = Replicas { owners: &[1, 2], pending: Some(&[1, 2, 4]) };
        let need = |replicas: Replicas<'_>, level, access| {
            let Need { owners, pending } = replicas.need(level, access);
            (owners, pending)
        };
        for (level, is_still, write, read) in [
            (Level::One, (1, 0), (1, 1), (1, 0)),
            (Level::Quorum, (2, 0), (2, 2), (2, 2)),
            (Level::All, (3, 0), (2, 3), (2, 3)),
            (Level::Exactly(1), (1, 0), (1, 1), (1, 1)),
            (Level::Exactly(2), (2, 0), (2, 2), (2, 2)),
        ] {
            assert_eq!(need(still, level, Access::Write), is_still);
            assert_eq!(need(still, level, Access::Read), is_still);
            assert_eq!(need(moving, level, Access::Write), write);
            assert_eq!(need(moving, level, Access::Read), read);
        }
        let only = Replicas { owners: &[1], pending: Some(&[4]) };
        assert_eq!(need(only, Level::One, Access::Read), (1, 1));
        assert_eq!(moving.everybody().collect::<Vec<u16>>(), [1, 2, 4]);
        let quorum = moving.need(Level::Quorum, Access::Write);
        assert!(quorum.is_met(2, 2) && !quorum.is_met(2, 1) && !quorum.is_met(1, 3));
    }

    #[test]
    fn two_majorities_share_a_member() {
        assert!((1..=9).all(|replicas| 2 * majority(replicas) > replicas && 2 * (majority(replicas) - 1) <= replicas));
    }
}
