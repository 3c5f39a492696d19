//! What members know of each other, and which of two statements about one member is the newer.
//!
//! Statements form a chain a member: by incarnation, and within one by state (alive < suspect < dead < left). Taking the greater of two
//! is a join, so that in whatever order, however often rumours arrive, all who heard the same hold the same. Only the member itself begins
//! an incarnation: that is how it contradicts a suspicion.

use crate::base::time::WallMs;
use crate::limits::RACK_BYTES_MAX;
use std::fmt;

/// Where a socket listens: an IPv6 address, IPv4 mapped into it (RFC 4291, 2.5.5.2), and a port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address {
    pub ip: [u8; 16],
    pub port: u16,
}

const V4_PREFIX: [u8; 12] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xFF, 0xFF];

impl Address {
    pub fn v4(ip: [u8; 4], port: u16) -> Address {
        let mut mapped = [0; 16];
        mapped[..12].copy_from_slice(&V4_PREFIX);
        mapped[12..].copy_from_slice(&ip);
        Address { ip: mapped, port }
    }

    /// The four bytes of an IPv4 address.
    pub fn as_v4(&self) -> Option<[u8; 4]> {
        let (prefix, ip) = self.ip.split_last_chunk::<4>()?;
        (prefix == V4_PREFIX).then_some(*ip)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some([a, b, c, d]) = self.as_v4() {
            return write!(f, "{a}.{b}.{c}.{d}:{}", self.port);
        }
        let groups: Vec<String> = self.ip.chunks(2).map(|pair| format!("{:x}", u16::from_be_bytes([pair[0], pair[1]]))).collect();
        write!(f, "[{}]:{}", groups.join(":"), self.port)
    }
}

/// The name of a rack: at most `RACK_BYTES_MAX` bytes of UTF-8, in place, so that records are plain values.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Rack {
    len: u8,
    bytes: [u8; RACK_BYTES_MAX],
}

impl Rack {
    /// `None` if it is too long.
    pub fn new(name: &str) -> Option<Rack> {
        let mut bytes = [0; RACK_BYTES_MAX];
        bytes.get_mut(..name.len())?.copy_from_slice(name.as_bytes());
        Some(Rack { len: name.len() as u8, bytes })
    }

    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.bytes[..usize::from(self.len)]).expect("a rack is made from text")
    }
}

impl fmt::Debug for Rack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

/// The versions that a node speaks or reads, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Versions {
    pub min: u16,
    pub max: u16,
}

impl Versions {
    /// The newest version that both have.
    pub fn common(self, other: Versions) -> Option<u16> {
        let max = self.max.min(other.max);
        (max >= self.min.max(other.min)).then_some(max)
    }
}

impl fmt::Display for Versions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.min == self.max { write!(f, "{}", self.min) } else { write!(f, "{} to {}", self.min, self.max) }
    }
}

/// What a node says of itself when it starts; it does not change within an incarnation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Profile {
    /// Where clients and peers connect.
    pub native: Address,
    /// Where its datagrams come from, and where it takes full syncs over TCP.
    pub gossip: Address,
    /// Shards, at least 1.
    pub cores: u16,
    /// Capacity relative to other nodes, at least 1.
    pub weight: u32,
    pub rack: Rack,
    pub protocol: Versions,
    pub format: Versions,
}

/// What a node says of itself now and then. The newest by the node's own clock counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Digest {
    /// When it was said, by the wall clock of the node that it is about.
    pub at_ms: WallMs,
    /// The newest topology epoch that the node knows.
    pub epoch: u64,
    /// The busiest core, percent.
    pub load: u8,
    /// Disk space used, percent.
    pub disk: u8,
    /// Shards that refuse writes (a failed log, a full disk).
    pub shards_failed: u8,
}

/// What is believed of a member, from the weakest statement to the strongest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    Alive,
    /// Did not answer a probe. Still counted as a member; it may contradict.
    Suspect,
    /// Did not contradict in time.
    Dead,
    /// Said goodbye, or was removed by an operator.
    Left,
}

impl State {
    /// Probed, and chosen for probes and gossip.
    pub fn is_live(self) -> bool {
        matches!(self, State::Alive | State::Suspect)
    }

    pub(super) fn from_code(code: u8) -> Option<State> {
        [State::Alive, State::Suspect, State::Dead, State::Left].get(usize::from(code)).copied()
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            State::Alive => "alive",
            State::Suspect => "suspect",
            State::Dead => "dead",
            State::Left => "left",
        })
    }
}

/// How many who saw a member fail by themselves are told apart. More would make nobody surer.
pub const SUSPECTERS_MAX: usize = 3;

/// Those who suspect a member of their own experience.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Suspecters {
    nodes: [u64; SUSPECTERS_MAX],
    len: u8,
}

impl Suspecters {
    pub fn as_slice(&self) -> &[u64] {
        &self.nodes[..usize::from(self.len)]
    }

    /// Whether `node` was new, and there was room.
    pub fn add(&mut self, node: u64) -> bool {
        if self.as_slice().contains(&node) {
            return false;
        }
        let Some(slot) = self.nodes.get_mut(usize::from(self.len)) else { return false };
        (*slot, self.len) = (node, self.len + 1);
        true
    }
}

/// One statement about a member, as it travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// Not 0.
    pub node: u64,
    pub incarnation: u64,
    pub state: State,
    pub profile: Profile,
    pub digest: Digest,
    /// Of a suspect: how long the suspicion has lasted, in milliseconds, so that it ends everywhere at about one time, whatever the clocks
    /// say.
    pub suspect_ms: u32,
    pub suspecters: Suspecters,
}

impl Record {
    /// The place in the chain of statements about this member.
    pub fn rank(&self) -> (u64, State) {
        (self.incarnation, self.state)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_read_as_people_write_them() {
        assert_eq!(Address::v4([10, 0, 0, 1], 7490).to_string(), "10.0.0.1:7490");
        let six = Address { ip: [0x20, 1, 0xD, 0xB8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1], port: 1 };
        assert_eq!(six.to_string(), "[2001:db8:0:0:0:0:0:1]:1");
        assert_eq!((six.as_v4(), Address::v4([1, 2, 3, 4], 5).as_v4()), (None, Some([1, 2, 3, 4])));
    }

    #[test]
    fn a_rack_has_a_bound_and_suspecters_are_told_apart() {
        assert_eq!(Rack::new("r1").map(|rack| rack.as_str().to_owned()), Some("r1".to_owned()));
        assert!(Rack::new(&"x".repeat(31)).is_some() && Rack::new(&"x".repeat(32)).is_none());
        let mut by = Suspecters::default();
        assert_eq!([1, 1, 2, 3, 4].map(|node| by.add(node)), [true, false, true, true, false]);
        assert_eq!(by.as_slice(), [1, 2, 3]);
    }

    #[test]
    fn versions_meet_where_they_overlap() {
        let span = |min, max| Versions { min, max };
        assert_eq!(span(1, 2).common(span(2, 3)), Some(2));
        assert_eq!(span(1, 3).common(span(2, 3)), Some(3));
        assert_eq!(span(1, 1).common(span(2, 3)), None);
    }
}
