//! The record model that every room shares: tokens, versions, places and cells, and the join of two cells.
//!
//! A **place** names a cell: (namespace, token, key, kind, element). A **cell** has a value part and an expiry part, each under
//! a version of its own. Two cells of one place merge part by part (`join`), so that
//! merging, expiry, replication, repair and compaction share one rule.

use super::checksum::{crc16, hash64};
use super::time::WallMs;

/// A namespace's number. 0 is the system's own, 1 the default one.
pub type NamespaceId = u32;
/// Holds what a node must remember about namespaces and the cluster.
pub const NAMESPACE_SYSTEM: NamespaceId = 0;
/// Where a client that names none works.
pub const NAMESPACE_DEFAULT: NamespaceId = 1;

/// A key's place on the ring: the top 14 bits are its Redis Cluster slot, the other 50 are xxh3 of the key.
pub type Token = u64;

/// Bits of a token that are the Redis Cluster slot.
pub const SLOT_BITS: u32 = 14;

/// The Redis Cluster slot: CRC16 of the key, or of its {hash tag} where it has one that is not empty.
pub fn slot_of(key: &[u8]) -> u16 {
    let tag = key.iter().position(|&b| b == b'{').and_then(|open| {
        let rest = &key[open + 1..];
        let len = rest.iter().position(|&b| b == b'}')?;
        (len > 0).then(|| &rest[..len])
    });
    crc16(tag.unwrap_or(key)) & ((1 << SLOT_BITS) - 1)
}

/// The token of a key.
#[inline]
pub fn token_of(key: &[u8]) -> Token {
    (u64::from(slot_of(key)) << (64 - SLOT_BITS)) | (hash64(key) >> SLOT_BITS)
}

/// The vnode of a token, of `vnodes` equal arcs (a power of two).
#[inline]
pub fn vnode_of(token: Token, vnodes: u32) -> u32 {
    debug_assert!(vnodes.is_power_of_two() && vnodes > 1);
    (token >> (64 - vnodes.trailing_zeros())) as u32
}

/// The core (index into a node's list of data cores) that owns a vnode.
///
/// Round robin: vnodes are equal arcs, so cores differ by one vnode at most, and nodes with equal core counts agree on every vnode's core.
#[inline]
pub fn core_of(vnode: u32, cores: u16) -> u16 {
    debug_assert!(cores > 0);
    (vnode % u32::from(cores)) as u16
}

/// A version: hybrid clock (64 bits), writer (16), term (20), seq (28), compared in this order. PROTOCOL.md "Versions".
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version(pub u128);

const TERM_BITS: u32 = 20;
const SEQ_BITS: u32 = 28;
const _: () = assert!(64 + 16 + TERM_BITS + SEQ_BITS == 128);

impl Version {
    /// Below every version that anything was ever written with.
    pub const ZERO: Version = Version(0);
    /// Above or equal to every version.
    pub const MAX: Version = Version(u128::MAX);

    /// A plain put's version: term and seq are 0.
    pub fn put(hlc: u64, writer: u16) -> Version {
        Version(u128::from(hlc) << 64 | u128::from(writer) << (TERM_BITS + SEQ_BITS))
    }

    /// A read-modify-write's version: the clock and writer of what it read, and the leader's term and next seq.
    pub fn rmw(base: Version, term: u32, seq: u32) -> Version {
        assert!(term < 1 << TERM_BITS && seq < 1 << SEQ_BITS, "term {term} seq {seq}");
        let kept = base.0 >> (TERM_BITS + SEQ_BITS) << (TERM_BITS + SEQ_BITS);
        Version(kept | u128::from(term) << SEQ_BITS | u128::from(seq))
    }

    pub fn hlc(self) -> u64 {
        (self.0 >> 64) as u64
    }

    pub fn writer(self) -> u16 {
        (self.0 >> (TERM_BITS + SEQ_BITS)) as u16
    }

    pub fn term(self) -> u32 {
        (self.0 >> SEQ_BITS) as u32 & ((1 << TERM_BITS) - 1)
    }

    pub fn seq(self) -> u32 {
        self.0 as u32 & ((1 << SEQ_BITS) - 1)
    }

    /// Big-endian, so that bytes compare as versions do.
    pub fn to_bytes(self) -> [u8; 16] {
        self.0.to_be_bytes()
    }

    pub fn from_bytes(bytes: [u8; 16]) -> Version {
        Version(u128::from_be_bytes(bytes))
    }
}

impl std::fmt::Debug for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}.{}.{}", self.hlc(), self.writer(), self.term(), self.seq())
    }
}

/// What sort of cell a place holds. The number is part of the disk format and orders cells within a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Kind {
    /// The key itself: a string's value, or a collection's type and floor. Its element is empty.
    Head = 0,
    /// 64 KiB of a large string; the element is its number, u32 big-endian.
    Chunk = 1,
    /// A hash field.
    Field = 2,
    /// A set member.
    Member = 3,
    /// A sorted set's member; the payload is its score.
    Scored = 4,
    /// A list's position id.
    Position = 5,
    /// A counter's actor; the payload is that actor's running sum.
    Actor = 6,
    /// A sibling's dot.
    Sibling = 7,
    /// All elements of a kind between this element and the one in the payload are dead below the version.
    RangeTombstone = 32,
    /// Derived: (score, member) order of a sorted set.
    DerivedOrder = 64,
    /// Derived: how many elements a key has. Additive.
    DerivedCount = 65,
    /// Derived: how many elements a chunk of positions has. Additive.
    DerivedRank = 66,
}

impl Kind {
    pub fn from_u8(byte: u8) -> Option<Kind> {
        Some(match byte {
            0 => Kind::Head,
            1 => Kind::Chunk,
            2 => Kind::Field,
            3 => Kind::Member,
            4 => Kind::Scored,
            5 => Kind::Position,
            6 => Kind::Actor,
            7 => Kind::Sibling,
            32 => Kind::RangeTombstone,
            64 => Kind::DerivedOrder,
            65 => Kind::DerivedCount,
            66 => Kind::DerivedRank,
            _ => return None,
        })
    }

    /// Local to a replica: never hashed for repair, streamed or sent.
    pub fn is_derived(self) -> bool {
        self as u8 >= 64
    }
}

/// A collection's type, in its head.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum CollectionType {
    Hash = 1,
    Set = 2,
    SortedSet = 3,
    List = 4,
    Counter = 5,
    Siblings = 6,
}

/// The value part of a cell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Body<'a> {
    /// This cell says nothing about the value (an EXPIRE); its version is ZERO.
    Silent,
    /// Deleted, or expired. A delete has a version of its own; what an expired value leaves has the value's, and gives way to it: elsewhere
    /// the same value may have got a later deadline.
    Tombstone,
    /// A string that fits, or an element's payload.
    Bytes(&'a [u8]),
    /// A string in chunk cells of the same version; elements below this version are dead.
    Chunked { len: u32 },
    /// A collection: elements below `floor` are dead; `context` is type-specific (first and last position of a list, causal context
    /// of siblings).
    Collection { of: CollectionType, floor: Version, context: &'a [u8] },
    /// A signed delta of a derived cell, keyed by the head's floor. Adds up; not idempotent, so it never leaves its replica.
    Sum { floor: Version, delta: i64 },
    /// Elements up to here, this one excluded, are dead below the version.
    RangeEnd(&'a [u8]),
}

/// The expiry part of a cell. Under `Version::ZERO` the cell says nothing about expiry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Expiry {
    pub version: Version,
    /// Hidden from this instant on; 0 means never.
    pub deadline_ms: WallMs,
}

/// A cell, borrowed from wherever its bytes lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cell<'a> {
    pub version: Version,
    pub body: Body<'a>,
    pub expiry: Expiry,
    /// Of the request that wrote the value part, where it asked to be remembered.
    pub request_id: Option<[u8; 16]>,
}

impl<'a> Cell<'a> {
    /// A value without expiry. A put always speaks about expiry too, so that an older EXPIRE cannot touch it.
    pub fn value(version: Version, bytes: &'a [u8]) -> Cell<'a> {
        Cell { version, body: Body::Bytes(bytes), expiry: Expiry { version, deadline_ms: 0 }, request_id: None }
    }

    /// A delete.
    pub fn tombstone(version: Version) -> Cell<'static> {
        Cell { version, body: Body::Tombstone, expiry: Expiry { version, deadline_ms: 0 }, request_id: None }
    }

    /// Only a new deadline (0: none).
    pub fn expire(version: Version, deadline_ms: WallMs) -> Cell<'static> {
        Cell { version: Version::ZERO, body: Body::Silent, expiry: Expiry { version, deadline_ms }, request_id: None }
    }

    /// The same cell with a deadline under its own version.
    pub fn with_deadline(mut self, deadline_ms: WallMs) -> Cell<'a> {
        self.expiry = Expiry { version: self.version, deadline_ms };
        self
    }

    /// Past its deadline at `now_ms`.
    pub fn is_expired(&self, now_ms: WallMs) -> bool {
        self.expiry.deadline_ms != 0 && self.expiry.deadline_ms <= now_ms
    }

    /// There is a value and it is not past its deadline.
    pub fn is_live(&self, now_ms: WallMs) -> bool {
        !matches!(self.body, Body::Silent | Body::Tombstone) && !self.is_expired(now_ms)
    }

    /// The highest version of any part.
    pub fn newest(&self) -> Version {
        self.version.max(self.expiry.version)
    }

    /// What remains of an expired cell: the same versions, no payload.
    pub fn remnant(&self) -> Cell<'static> {
        Cell { version: self.version, body: Body::Tombstone, expiry: self.expiry, request_id: self.request_id }
    }
}

/// The join of two cells of one place: part by part the newer one; on equal versions a total order on content decides, a tombstone last.
/// Commutative, associative, idempotent for every body but `Sum` (which adds, within one floor).
pub fn join<'a>(a: Cell<'a>, b: Cell<'a>) -> Cell<'a> {
    if let (Body::Sum { floor: fa, delta: da }, Body::Sum { floor: fb, delta: db }) = (a.body, b.body)
        && fa == fb
    {
        let sum = Body::Sum { floor: fa, delta: da.wrapping_add(db) };
        return Cell { version: a.version.max(b.version), body: sum, expiry: a.expiry.max(b.expiry), request_id: None };
    }
    let value = if (a.version, a.body, a.request_id) >= (b.version, b.body, b.request_id) { a } else { b };
    Cell { expiry: a.expiry.max(b.expiry), ..value }
}

#[cfg(test)]
mod tests {
    use super::super::prng::Prng;
    use super::*;

    fn any_cell(prng: &mut Prng) -> Cell<'static> {
        let version = Version::put(prng.below(4), prng.below(2) as u16);
        let of = |n| if n == 0 { CollectionType::Hash } else { CollectionType::List };
        let body = match prng.below(6) {
            0 => Body::Silent,
            1 => Body::Tombstone,
            2 => Body::Bytes(b"a"),
            3 => Body::Bytes(b"b"),
            4 => Body::Chunked { len: prng.below(3) as u32 },
            _ => Body::Collection { of: of(prng.below(2)), floor: Version::put(prng.below(3), 0), context: b"" },
        };
        let version = if body == Body::Silent { Version::ZERO } else { version };
        let expiry = Expiry { version: Version::put(prng.below(4), 0), deadline_ms: prng.below(3) };
        Cell { version, body, expiry, request_id: prng.one_in(2).then_some([prng.below(2) as u8; 16]) }
    }

    #[test]
    fn join_is_commutative_associative_and_idempotent() {
        let mut prng = Prng::new(1);
        for _ in 0..20_000 {
            let [a, b, c] = [any_cell(&mut prng), any_cell(&mut prng), any_cell(&mut prng)];
            assert_eq!(join(a, b), join(b, a));
            assert_eq!(join(join(a, b), c), join(a, join(b, c)));
            assert_eq!(join(a, a), a);
        }
    }

    #[test]
    fn an_expire_that_raced_with_a_put_touches_only_what_is_older() {
        let put = Cell::value(Version::put(5, 0), b"new");
        let old = join(put, Cell::expire(Version::put(4, 0), 10));
        assert_eq!(old, put);
        let new = join(put, Cell::expire(Version::put(6, 0), 10));
        assert_eq!((new.body, new.expiry.deadline_ms), (Body::Bytes(b"new"), 10));
        assert!(new.is_live(9) && !new.is_live(10));
    }

    #[test]
    fn what_an_expired_value_left_gives_way_to_the_value_with_a_later_deadline() {
        let (put, later) = (Version::put(5, 0), Version::put(6, 0));
        let left = Cell::value(put, b"v").with_deadline(10).remnant();
        let kept = Cell { expiry: Expiry { version: later, deadline_ms: 0 }, ..Cell::value(put, b"v") };
        assert!(join(left, kept) == kept && join(left, kept).is_live(11));
        let same = join(left, Cell::value(put, b"v").with_deadline(10));
        assert!(!same.is_live(10), "under the deadline that it died of it stays hidden");
        assert_eq!(join(Cell::tombstone(later), kept).body, Body::Tombstone, "a delete is newer than what it deletes");
    }

    #[test]
    fn versions_compare_by_clock_then_writer_then_term_then_seq() {
        let put = Version::put(9, 3);
        let rmw = Version::rmw(put, 2, 7);
        assert!(put < rmw && rmw < Version::put(9, 4) && Version::rmw(put, 2, 8) > rmw);
        assert_eq!((rmw.hlc(), rmw.writer(), rmw.term(), rmw.seq()), (9, 3, 2, 7));
        assert_eq!(Version::from_bytes(rmw.to_bytes()), rmw);
    }

    #[test]
    fn slots_match_redis_cluster() {
        assert_eq!(slot_of(b"123456789"), 0x31C3 & 0x3FFF);
        assert_eq!(slot_of(b"{user1000}.following"), slot_of(b"{user1000}.followers"));
        assert_eq!(slot_of(b"foo{}{bar}"), crc16(b"foo{}{bar}") & 0x3FFF);
        assert_eq!(vnode_of(token_of(b"foo"), 16384), u32::from(slot_of(b"foo")));
    }
}
