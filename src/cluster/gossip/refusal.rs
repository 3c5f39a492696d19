//! Why a peer is refused: reasons, sentences for both sides, counts, and a bound on how often each is told.
//!
//! What a stranger sends can neither fill a log nor turn a node into an amplifier: an (address, reason) is told and answered at most once
//! in `AGAIN`, `RECENT_MAX` pairs at a time, and an answer is smaller than what was refused. The counts see everything.

use super::member::{Address, Versions};
use crate::base::time::Mono;
use std::fmt;
use std::time::Duration;

/// Why. Fields are of the two nodes: `theirs` of the refused one, `ours` of the one that refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    WrongKey,
    /// The version of gossip's own encoding.
    GossipVersion {
        theirs: u8,
        ours: u8,
    },
    OtherCluster {
        theirs: u64,
        ours: u64,
    },
    /// Q, as its binary logarithm.
    OtherVnodes {
        theirs_log2: u8,
        ours_log2: u8,
    },
    Protocol {
        theirs: Versions,
        ours: Versions,
    },
    Format {
        theirs: Versions,
        ours: Versions,
    },
    /// It says that it listens at `claimed`, but it sends from `seen`.
    NotItsAddress {
        claimed: Address,
        seen: Address,
    },
    /// A positive number: the refused clock is ahead.
    ClockOff {
        ahead_ms: i64,
    },
    NodeIdTaken {
        holder: Address,
    },
    /// `limits::MEMBERS_MAX`.
    TooManyMembers,
}

/// Names of the reasons, in the order of `Reason::kind`: for metrics.
pub const REASONS: [&str; 10] = [
    "wrong_key",
    "gossip_version",
    "other_cluster",
    "other_vnodes",
    "protocol",
    "format",
    "not_its_address",
    "clock_off",
    "node_id_taken",
    "too_many_members",
];

impl Reason {
    /// Index into `REASONS`; also the reason's code on the wire.
    pub fn kind(&self) -> usize {
        match self {
            Reason::WrongKey => 0,
            Reason::GossipVersion { .. } => 1,
            Reason::OtherCluster { .. } => 2,
            Reason::OtherVnodes { .. } => 3,
            Reason::Protocol { .. } => 4,
            Reason::Format { .. } => 5,
            Reason::NotItsAddress { .. } => 6,
            Reason::ClockOff { .. } => 7,
            Reason::NodeIdTaken { .. } => 8,
            Reason::TooManyMembers => 9,
        }
    }
}

/// Who refuses whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// This node refuses the peer.
    Ours,
    /// The peer refuses this node.
    Theirs,
}

/// One refusal. `Display` is the sentence for an operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub side: Side,
    pub peer: Address,
    /// What the peer calls itself; unknown where nothing it says can be believed.
    pub node: Option<u64>,
    pub reason: Reason,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let peer = match self.node {
            Some(node) => format!("node {node} at {}", self.peer),
            None => self.peer.to_string(),
        };
        // The refused one, and the one that refuses.
        let (its, whose) = match self.side {
            Side::Ours => ("its", "this node"),
            Side::Theirs => ("this node's", "the other"),
        };
        match self.side {
            Side::Ours => write!(f, "refused {peer}: ")?,
            Side::Theirs => write!(f, "refused by {peer}: ")?,
        }
        match self.reason {
            Reason::WrongKey => write!(f, "the cluster keys differ"),
            Reason::GossipVersion { theirs, ours } => write!(f, "{its} gossip has version {theirs}, that of {whose} {ours}"),
            Reason::OtherCluster { theirs, ours } => write!(f, "{its} cluster is {theirs:016x}, that of {whose} {ours:016x}"),
            Reason::OtherVnodes { theirs_log2, ours_log2 } => {
                write!(f, "{its} ring has {} vnodes, that of {whose} {}", vnodes(theirs_log2), vnodes(ours_log2))
            }
            Reason::Protocol { theirs, ours } => write!(f, "{its} protocol versions are {theirs}, those of {whose} {ours}"),
            Reason::Format { theirs, ours } => write!(f, "{its} format versions are {theirs}, those of {whose} {ours}"),
            Reason::NotItsAddress { claimed, seen } => write!(f, "{its} gossip address is said to be {claimed}, but it sends from {seen}"),
            Reason::ClockOff { ahead_ms } => {
                let way = if ahead_ms < 0 { "behind" } else { "ahead of" };
                write!(f, "{its} clock is {:.1} s {way} that of {whose}", ahead_ms.unsigned_abs() as f64 / 1000.0)
            }
            Reason::NodeIdTaken { holder } => write!(f, "{its} node id is in use at {holder}"),
            Reason::TooManyMembers => write!(f, "the cluster has as many members as it can have"),
        }
    }
}

fn vnodes(log2: u8) -> u64 {
    1u64.checked_shl(u32::from(log2)).unwrap_or(0)
}

/// An (address, reason) is told at most once in this time.
const AGAIN: Duration = Duration::from_secs(10);
const RECENT_MAX: usize = 64;

/// Counts of refusals, and which of them were told lately.
#[derive(Debug, Default)]
pub(super) struct Refusals {
    counts: [u64; REASONS.len()],
    recent: Vec<(Address, usize, Mono)>,
}

impl Refusals {
    pub fn counts(&self) -> &[u64; REASONS.len()] {
        &self.counts
    }

    /// Counts one; whether it is to be told.
    pub fn count(&mut self, now: Mono, peer: Address, reason: &Reason) -> bool {
        let kind = reason.kind();
        self.counts[kind] += 1;
        self.recent.retain(|(_, _, at)| now.since(*at) < AGAIN);
        let told = self.recent.iter().any(|(address, other, _)| *address == peer && *other == kind);
        let tell = !told && self.recent.len() < RECENT_MAX;
        if tell {
            self.recent.push((peer, kind, now));
        }
        tell
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_sides_have_a_sentence() {
        let peer = Address::v4([10, 0, 0, 7], 7490);
        let reason = Reason::ClockOff { ahead_ms: -3_600_000 };
        let ours = Refusal { side: Side::Ours, peer, node: Some(7), reason };
        assert_eq!(ours.to_string(), "refused node 7 at 10.0.0.7:7490: its clock is 3600.0 s behind that of this node");
        let theirs = Refusal { side: Side::Theirs, ..ours };
        assert_eq!(theirs.to_string(), "refused by node 7 at 10.0.0.7:7490: this node's clock is 3600.0 s behind that of the other");
        let key = Refusal { reason: Reason::WrongKey, node: None, ..ours };
        assert_eq!(key.to_string(), "refused 10.0.0.7:7490: the cluster keys differ");
        let q = Refusal { reason: Reason::OtherVnodes { theirs_log2: 10, ours_log2: 12 }, ..ours };
        assert_eq!(q.to_string(), "refused node 7 at 10.0.0.7:7490: its ring has 1024 vnodes, that of this node 4096");
    }

    #[test]
    fn a_flood_is_counted_whole_and_told_seldom() {
        let mut refusals = Refusals::default();
        let address = |n: u32| Address::v4((n + 1).to_be_bytes(), 1);
        let told = (0..1000).filter(|&n| refusals.count(Mono(0), address(n), &Reason::WrongKey)).count();
        assert_eq!((told, refusals.counts()[0], refusals.recent.len()), (RECENT_MAX, 1000, RECENT_MAX));
        assert!(!refusals.count(Mono(0).plus(AGAIN / 2), address(0), &Reason::WrongKey));
        assert!(refusals.count(Mono(0).plus(AGAIN), address(0), &Reason::WrongKey));
    }
}
