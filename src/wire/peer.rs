//! What the cores of different nodes say to each other: native frames whose bodies are rkyv, as clients' are, with a checksum behind.
//!
//! Many frames go in one write. Every message carries the epoch of its sender's topology (rule M1 of PROTOCOL.md) and, where somebody
//! waits for the answer, the milliseconds that are left of it. The request id is the asker's; an answer repeats it. What the messages mean
//! is written in `cluster::replica` and `cluster::coordinator`. The messages of repair (`wire::peer_repair`) and of moves
//! (`wire::peer_moves`) travel in the same frames.
//!
//! ```text
//! header (16 bytes) | rkyv body | checksum u64 LE: xxh3 of the body, seeded with the checksum of the header
//! ```

use super::command::ErrorCode;
use super::frame::{Frame, HEADER_BYTES, header};
use super::native::{WireError, Writer, access, bad, frozen, key_of, too_large};
use super::peer_moves::{self, MoveMessage};
use super::peer_repair::{self, RepairMessage};
use crate::base::checksum::{checksum, hash64_seeded};
use crate::base::record::{Body, Cell, CollectionType, Expiry, Kind, NamespaceId, Version, join};
use crate::base::time::WallMs;
use crate::limits::{CHUNK_BYTES, KEY_BYTES_MAX, PEER_FRAME_BYTES_MAX, VALUE_BYTES_MAX};

/// The bodies as they lie on the wire.
pub mod body {
    super::frozen! {
        /// 0x0101, 0x0104, 0x0105
        PeerPlain / ArchivedPeerPlain [12] { epoch: u64, deadline_ms: u32 }
        /// 0x0102
        Store / ArchivedStore [91] {
            epoch: u64, deadline_ms: u32, namespace: u32, place_kind: u8, kind: u8, version: [u8; 16], expiry_version: [u8; 16],
            deadline_at_ms: u64, tag: u8, request_id: Vec<u8>, key: Vec<u8>, element: Vec<u8>, body: Vec<u8>,
        }
        /// 0x0103
        Read / ArchivedRead [42] {
            epoch: u64, deadline_ms: u32, namespace: u32, place_kind: u8, full: u8, now_ms: u64, key: Vec<u8>, element: Vec<u8>,
        }
        /// 0x0106, 0x8105
        PeerBytes / ArchivedPeerBytes [20] { epoch: u64, deadline_ms: u32, bytes: Vec<u8> }
        /// 0x8101
        Clock / ArchivedClock [20] { epoch: u64, deadline_ms: u32, hlc: u64 }
        /// 0x8102
        Stored / ArchivedStored [13] { epoch: u64, deadline_ms: u32, holds: u8 }
        /// 0x8103
        ReadFull / ArchivedReadFull [70] {
            epoch: u64, deadline_ms: u32, present: u8, version: [u8; 16], expiry_version: [u8; 16], deadline_at_ms: u64, tag: u8,
            request_id: Vec<u8>, body: Vec<u8>,
        }
        /// 0x8104
        ReadDigest / ArchivedReadDigest [53] {
            epoch: u64, deadline_ms: u32, present: u8, version: [u8; 16], expiry_version: [u8; 16], hash: u64,
        }
        /// 0x81FF
        Refused / ArchivedRefused [21] { epoch: u64, deadline_ms: u32, why: u8, detail: u64 }
    }
}

/// Kinds of frames.
pub mod kind {
    pub const ASK_CLOCK: u16 = 0x0101;
    pub const STORE: u16 = 0x0102;
    pub const READ: u16 = 0x0103;
    pub const CORRECT: u16 = 0x0104;
    pub const FETCH_TOPOLOGY: u16 = 0x0105;
    pub const NAMESPACES: u16 = 0x0106;
    #[cfg(feature = "next-version")]
    pub const NAMESPACES_NEXT: u16 = 0x0107;
    pub const TOPOLOGY: u16 = 0x8105;
    pub const CLOCK: u16 = 0x8101;
    pub const STORED: u16 = 0x8102;
    pub const READ_FULL: u16 = 0x8103;
    pub const READ_DIGEST: u16 = 0x8104;
    pub const REFUSED: u16 = 0x81FF;
}

/// Bytes of the checksum behind a body.
const CHECKSUM_BYTES: usize = 8;

/// What every message begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// Of the sender's topology.
    pub epoch: u64,
    /// What is left of the time that the asker waits, from when the message is read; 0 in an answer.
    pub deadline_ms: u32,
}

/// Where a cell lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place<'a> {
    pub namespace: NamespaceId,
    pub key: &'a [u8],
    pub kind: Kind,
    pub element: &'a [u8],
}

/// On which road a cell travels. All are stored if newer; fences (L4, G1) and limits tell them apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Road {
    Put = 0,
    /// Of a get, before it answers (P5).
    WriteBack = 1,
    Hint = 2,
    /// Read repair in the background, streams.
    Copy = 3,
}

/// Why a replica that acknowledges holds the version, or a newer one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Holds {
    /// This message brought it.
    Stored = 0,
    /// It was there: a duplicate, or a copy that was faster.
    Same = 1,
    Newer = 2,
}

/// Versions and content of a cell in short. Of an absent one: the floor below which it was forgotten (G4), and no content.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Digest {
    pub present: bool,
    pub version: Version,
    pub expiry: Version,
    /// Of body and deadline.
    pub hash: u64,
}

/// Why a node does not do what it was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The asker missed a change of this vnode; here is the epoch that the node knows (M1).
    EpochOld {
        epoch: u64,
    },
    /// The asker knows more than the node, which has this epoch and learns.
    Behind {
        epoch: u64,
    },
    /// The place is none of the node's.
    NotReplica,
    /// The node has yet to take over what it lost (M3).
    NotVoting,
    /// At or below the fence, or of a term that is over.
    Fenced,
    /// The version lies so many milliseconds ahead of the node's wall clock.
    ClockAhead {
        ms: u64,
    },
    DeadlinePassed,
    Overloaded,
    DiskFull,
    /// The shard acknowledges nothing any more.
    Stopped,
}

/// A message between nodes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Message<'a> {
    /// First round of every put in flight (P1).
    AskClock,
    /// At or above every version that the node's core ever stored.
    Clock {
        hlc: u64,
    },
    Store {
        place: Place<'a>,
        road: Road,
        cell: Cell<'a>,
    },
    Stored {
        holds: Holds,
    },
    Read {
        place: Place<'a>,
        full: bool,
        now_ms: WallMs,
    },
    /// `Err` is the floor of what is absent.
    ReadFull {
        cell: Result<Cell<'a>, Version>,
    },
    ReadDigest {
        digest: Digest,
    },
    Refused {
        why: Refusal,
    },
    /// Whoever gets this knows an older topology than the sender.
    Correct,
    /// "Give me the topology that you have."
    FetchTopology,
    /// It, in its own encoding (`cluster::topology_codec`).
    Topology {
        bytes: &'a [u8],
    },
    /// The namespaces as they are from now on, in the encoding of their table; answered with `Stored`.
    Namespaces {
        bytes: &'a [u8],
    },
    /// The same as the next version says it; a program of this one takes it for no message.
    #[cfg(feature = "next-version")]
    NamespacesNext {
        bytes: &'a [u8],
    },
}

impl Digest {
    pub fn of(cell: Result<&Cell<'_>, Version>, scratch: &mut Vec<u8>) -> Digest {
        let cell = match cell {
            Ok(cell) => cell,
            Err(floor) => return Digest { present: false, version: floor, expiry: floor, hash: 0 },
        };
        scratch.clear();
        // A large string lies in chunks on one replica's disk and comes in one piece from another; one version is one value.
        let body = match cell.body {
            Body::Bytes(bytes) if bytes.len() > CHUNK_BYTES => Body::Chunked { len: bytes.len() as u32 },
            body => body,
        };
        let (tag, bytes) = flat(&body, scratch);
        let hash = hash64_seeded(bytes, cell.expiry.deadline_ms ^ u64::from(tag) << 56);
        Digest { present: true, version: cell.version, expiry: cell.expiry.version, hash }
    }

    /// Who has this has all of `other`, or newer.
    pub fn covers(&self, other: &Digest) -> bool {
        if !other.present {
            return self.version >= other.version || !self.present;
        }
        let same = self.version == other.version && self.expiry == other.expiry;
        self.version >= other.version && self.expiry >= other.expiry && (!same || self.hash == other.hash)
    }
}

/// A cell with bytes of its own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OwnedCell {
    version: Version,
    expiry: Expiry,
    request_id: Option<[u8; 16]>,
    tag: u8,
    bytes: Vec<u8>,
}

impl OwnedCell {
    /// Of any body but a derived one.
    pub fn new(cell: &Cell<'_>) -> OwnedCell {
        let mut scratch = Vec::new();
        let (tag, bytes) = flat(&cell.body, &mut scratch);
        let bytes = bytes.to_vec();
        OwnedCell { version: cell.version, expiry: cell.expiry, request_id: cell.request_id, tag, bytes }
    }

    pub fn as_cell(&self) -> Cell<'_> {
        let body = body_of(self.tag, &self.bytes).expect("flattened by ourselves");
        Cell { version: self.version, body, expiry: self.expiry, request_id: self.request_id }
    }

    /// The join of both.
    pub fn absorb(&mut self, cell: &Cell<'_>) {
        let joined = join(self.as_cell(), *cell);
        if joined != self.as_cell() {
            *self = OwnedCell::new(&joined);
        }
    }
}

/// A body as tag and bytes. Derived ones stay on their replica.
fn flat<'a>(body: &Body<'a>, scratch: &'a mut Vec<u8>) -> (u8, &'a [u8]) {
    match *body {
        Body::Silent => (0, &[]),
        Body::Bytes(bytes) => (1, bytes),
        Body::Chunked { len } => {
            scratch.extend_from_slice(&len.to_le_bytes());
            (2, scratch)
        }
        Body::Collection { of, floor, context } => {
            scratch.push(of as u8);
            scratch.extend_from_slice(&floor.to_bytes());
            scratch.extend_from_slice(context);
            (3, scratch)
        }
        Body::RangeEnd(bytes) => (4, bytes),
        Body::Tombstone => (5, &[]),
        Body::Sum { .. } => unreachable!("derived cells are never sent"),
    }
}

fn body_of(tag: u8, bytes: &[u8]) -> Result<Body<'_>, WireError> {
    Ok(match (tag, bytes) {
        (0, []) => Body::Silent,
        (1, bytes) => Body::Bytes(bytes),
        (2, &[a, b, c, d]) => Body::Chunked { len: u32::from_le_bytes([a, b, c, d]) },
        (3, [of, rest @ ..]) => {
            let (floor, context) = rest.split_first_chunk::<16>().ok_or(bad("a collection without its floor"))?;
            Body::Collection { of: collection_of(*of)?, floor: Version::from_bytes(*floor), context }
        }
        (4, bytes) => Body::RangeEnd(bytes),
        (5, []) => Body::Tombstone,
        _ => return Err(bad("an unknown body of a cell")),
    })
}

fn collection_of(of: u8) -> Result<CollectionType, WireError> {
    use CollectionType::*;
    [Hash, Set, SortedSet, List, Counter, Siblings].into_iter().find(|known| *known as u8 == of).ok_or(bad("an unknown type of collection"))
}

// ---------------------------------------------------------------------------------------------------------------------------------
// Writing.

/// Appends one frame.
pub fn encode(out: &mut Vec<u8>, id: u64, head: Head, message: &Message<'_>) {
    let mut w = Writer::new(out);
    let kind = match message {
        Message::AskClock | Message::Correct | Message::FetchTopology => {
            w.u64(head.epoch).u32(head.deadline_ms);
            match message {
                Message::Correct => kind::CORRECT,
                Message::FetchTopology => kind::FETCH_TOPOLOGY,
                _ => kind::ASK_CLOCK,
            }
        }
        Message::Topology { bytes } | Message::Namespaces { bytes } => {
            let bytes = w.bytes(bytes);
            w.u64(head.epoch).u32(head.deadline_ms).span(bytes);
            if matches!(message, Message::Topology { .. }) { kind::TOPOLOGY } else { kind::NAMESPACES }
        }
        #[cfg(feature = "next-version")]
        Message::NamespacesNext { bytes } => {
            let bytes = w.bytes(bytes);
            w.u64(head.epoch).u32(head.deadline_ms).span(bytes);
            kind::NAMESPACES_NEXT
        }
        Message::Clock { hlc } => {
            w.u64(head.epoch).u32(head.deadline_ms).u64(*hlc);
            kind::CLOCK
        }
        Message::Stored { holds } => {
            w.u64(head.epoch).u32(head.deadline_ms).u8(*holds as u8);
            kind::STORED
        }
        Message::Refused { why } => {
            let (why, detail) = refusal_parts(*why);
            w.u64(head.epoch).u32(head.deadline_ms).u8(why).u64(detail);
            kind::REFUSED
        }
        Message::ReadDigest { digest } => {
            w.u64(head.epoch).u32(head.deadline_ms).u8(u8::from(digest.present));
            w.version(Some(digest.version)).version(Some(digest.expiry)).u64(digest.hash);
            kind::READ_DIGEST
        }
        _ => encode_long(&mut w, head, message),
    };
    seal(w, kind, id);
}

/// Appends one frame of repair.
pub fn encode_repair(out: &mut Vec<u8>, id: u64, head: Head, message: &RepairMessage) {
    let w = Writer::new(out);
    let kind = peer_repair::encode_body(w.out, head, message);
    seal(w, kind, id);
}

/// Appends one frame of moves.
pub fn encode_move(out: &mut Vec<u8>, id: u64, head: Head, message: &MoveMessage) {
    let w = Writer::new(out);
    let kind = peer_moves::encode_body(w.out, head, message);
    seal(w, kind, id);
}

/// Checksum and header, when the body is written.
fn seal(mut w: Writer<'_>, kind: u16, id: u64) {
    let body_bytes = w.out.len() - w.start - HEADER_BYTES + CHECKSUM_BYTES;
    let sum = sum(&header(body_bytes, kind, 0, id), &w.out[w.start + HEADER_BYTES..]);
    w.put(&sum);
    w.finish(kind, 0, id);
}

/// The messages with bytes out of line.
fn encode_long(w: &mut Writer<'_>, head: Head, message: &Message<'_>) -> u16 {
    let mut scratch = Vec::new();
    match message {
        Message::Store { place, road, cell } => {
            let (tag, bytes) = flat(&cell.body, &mut scratch);
            w.out.reserve(bytes.len() + place.key.len() + place.element.len() + size_of::<body::ArchivedStore>() + 32);
            let request_id = w.bytes(cell.request_id.as_ref().map_or(&[], |id| &id[..]));
            let (key, element, body) = (w.bytes(place.key), w.bytes(place.element), w.bytes(bytes));
            w.u64(head.epoch).u32(head.deadline_ms).u32(place.namespace).u8(place.kind as u8).u8(*road as u8);
            w.version(Some(cell.version)).version(Some(cell.expiry.version)).u64(cell.expiry.deadline_ms).u8(tag);
            w.span(request_id).span(key).span(element).span(body);
            kind::STORE
        }
        Message::Read { place, full, now_ms } => {
            let (key, element) = (w.bytes(place.key), w.bytes(place.element));
            w.u64(head.epoch).u32(head.deadline_ms).u32(place.namespace).u8(place.kind as u8).u8(u8::from(*full)).u64(*now_ms);
            w.span(key).span(element);
            kind::READ
        }
        Message::ReadFull { cell } => {
            let absent = Cell { version: Version::ZERO, body: Body::Silent, expiry: Expiry::default(), request_id: None };
            let (present, cell) = match cell {
                Ok(cell) => (1, *cell),
                Err(floor) => (0, Cell { version: *floor, ..absent }),
            };
            let (tag, bytes) = flat(&cell.body, &mut scratch);
            w.out.reserve(bytes.len() + size_of::<body::ArchivedReadFull>() + 32);
            let request_id = w.bytes(cell.request_id.as_ref().map_or(&[], |id| &id[..]));
            let body = w.bytes(bytes);
            w.u64(head.epoch).u32(head.deadline_ms).u8(present).version(Some(cell.version)).version(Some(cell.expiry.version));
            w.u64(cell.expiry.deadline_ms).u8(tag).span(request_id).span(body);
            kind::READ_FULL
        }
        _ => unreachable!("encode has the short messages"),
    }
}

fn sum(header: &[u8], body: &[u8]) -> [u8; CHECKSUM_BYTES] {
    hash64_seeded(body, checksum(header)).to_le_bytes()
}

fn refusal_parts(why: Refusal) -> (u8, u64) {
    match why {
        Refusal::EpochOld { epoch } => (1, epoch),
        Refusal::Behind { epoch } => (2, epoch),
        Refusal::NotReplica => (3, 0),
        Refusal::NotVoting => (4, 0),
        Refusal::Fenced => (5, 0),
        Refusal::ClockAhead { ms } => (6, ms),
        Refusal::DeadlinePassed => (7, 0),
        Refusal::Overloaded => (8, 0),
        Refusal::DiskFull => (9, 0),
        Refusal::Stopped => (10, 0),
    }
}

// ---------------------------------------------------------------------------------------------------------------------------------
// Reading.

/// A message of any sort.
#[derive(Clone, Debug, PartialEq)]
pub enum AnyMessage<'a> {
    Plain(Message<'a>),
    Repair(RepairMessage),
    Move(MoveMessage),
}

/// Takes a frame's body apart, whichever sort of message it is.
///
/// # Errors
/// As `decode`, and as `peer_repair::decode_body` and `peer_moves::decode_body`.
pub fn decode_any<'a>(frame: &Frame<'a>) -> Result<(Head, AnyMessage<'a>), WireError> {
    if peer_moves::is_move(frame.kind) {
        let (head, message) = peer_moves::decode_body(frame.kind, unsealed(frame)?)?;
        return Ok((head, AnyMessage::Move(message)));
    }
    if !peer_repair::is_repair(frame.kind) {
        return decode(frame).map(|(head, message)| (head, AnyMessage::Plain(message)));
    }
    let (head, message) = peer_repair::decode_body(frame.kind, unsealed(frame)?)?;
    Ok((head, AnyMessage::Repair(message)))
}

/// Takes a frame's body apart where it lies. The checksum is looked at first: a link whose bytes change is closed.
pub fn decode<'a>(frame: &Frame<'a>) -> Result<(Head, Message<'a>), WireError> {
    decode_body(frame.kind, unsealed(frame)?)
}

/// The body in front of a checksum that fits.
fn unsealed<'a>(frame: &Frame<'a>) -> Result<&'a [u8], WireError> {
    let (bytes, found) = frame.body.split_last_chunk::<CHECKSUM_BYTES>().ok_or(bad("a message without its checksum"))?;
    if frame.body.len() > PEER_FRAME_BYTES_MAX {
        return Err(too_large("a message is over its bound"));
    }
    if *found != sum(&header(frame.body.len(), frame.kind, frame.flags, frame.id), bytes) {
        return Err(bad("the checksum of a message does not fit"));
    }
    Ok(bytes)
}

/// A body behind a checksum that fits.
pub(super) fn decode_body(kind: u16, bytes: &[u8]) -> Result<(Head, Message<'_>), WireError> {
    macro_rules! open {
        ($archived:ident) => {{
            let b = access::<body::$archived>(bytes)?;
            (Head { epoch: b.epoch.to_native(), deadline_ms: b.deadline_ms.to_native() }, b)
        }};
    }
    Ok(match kind {
        kind::ASK_CLOCK => (open!(ArchivedPeerPlain).0, Message::AskClock),
        kind::CORRECT => (open!(ArchivedPeerPlain).0, Message::Correct),
        kind::FETCH_TOPOLOGY => (open!(ArchivedPeerPlain).0, Message::FetchTopology),
        kind::TOPOLOGY => {
            let (head, b) = open!(ArchivedPeerBytes);
            (head, Message::Topology { bytes: &b.bytes })
        }
        kind::NAMESPACES => {
            let (head, b) = open!(ArchivedPeerBytes);
            (head, Message::Namespaces { bytes: &b.bytes })
        }
        #[cfg(feature = "next-version")]
        kind::NAMESPACES_NEXT => {
            let (head, b) = open!(ArchivedPeerBytes);
            (head, Message::NamespacesNext { bytes: &b.bytes })
        }
        kind::CLOCK => {
            let (head, b) = open!(ArchivedClock);
            (head, Message::Clock { hlc: b.hlc.to_native() })
        }
        kind::STORE => {
            let (head, b) = open!(ArchivedStore);
            let cell = cell_of(b.version, b.expiry_version, b.deadline_at_ms.to_native(), &b.request_id, b.tag, &b.body)?;
            let place = place_of(b.namespace.to_native(), key_of(&b.key)?, b.place_kind, &b.element)?;
            (head, Message::Store { place, road: road_of(b.kind)?, cell })
        }
        kind::STORED => {
            let (head, b) = open!(ArchivedStored);
            let known = [Holds::Stored, Holds::Same, Holds::Newer].into_iter().find(|known| *known as u8 == b.holds);
            (head, Message::Stored { holds: known.ok_or(bad("an unknown way of holding"))? })
        }
        kind::READ => {
            let (head, b) = open!(ArchivedRead);
            let place = place_of(b.namespace.to_native(), key_of(&b.key)?, b.place_kind, &b.element)?;
            (head, Message::Read { place, full: flag_of(b.full)?, now_ms: b.now_ms.to_native() })
        }
        kind::READ_FULL => {
            let (head, b) = open!(ArchivedReadFull);
            let cell = cell_of(b.version, b.expiry_version, b.deadline_at_ms.to_native(), &b.request_id, b.tag, &b.body)?;
            (head, Message::ReadFull { cell: if flag_of(b.present)? { Ok(cell) } else { Err(cell.version) } })
        }
        kind::READ_DIGEST => {
            let (head, b) = open!(ArchivedReadDigest);
            let (version, expiry) = (Version::from_bytes(b.version), Version::from_bytes(b.expiry_version));
            let digest = Digest { present: flag_of(b.present)?, version, expiry, hash: b.hash.to_native() };
            (head, Message::ReadDigest { digest })
        }
        kind::REFUSED => {
            let (head, b) = open!(ArchivedRefused);
            (head, Message::Refused { why: refusal_of(b.why, b.detail.to_native())? })
        }
        _ => return Err(WireError { code: ErrorCode::UnknownKind, what: "no such kind of message between nodes" }),
    })
}

fn flag_of(flag: u8) -> Result<bool, WireError> {
    if flag > 1 { Err(bad("neither yes nor no")) } else { Ok(flag == 1) }
}

fn road_of(road: u8) -> Result<Road, WireError> {
    [Road::Put, Road::WriteBack, Road::Hint, Road::Copy]
        .into_iter()
        .find(|known| *known as u8 == road)
        .ok_or(bad("an unknown road of a cell"))
}

fn place_of<'a>(namespace: NamespaceId, key: &'a [u8], kind: u8, element: &'a [u8]) -> Result<Place<'a>, WireError> {
    let kind = Kind::from_u8(kind).filter(|kind| !kind.is_derived()).ok_or(bad("no kind of cell that nodes exchange"))?;
    if element.len() > KEY_BYTES_MAX {
        return Err(too_large("the element is over 32 KiB"));
    }
    Ok(Place { namespace, key, kind, element })
}

fn cell_of<'a>(
    version: [u8; 16],
    expiry_version: [u8; 16],
    deadline_ms: WallMs,
    request_id: &'a [u8],
    tag: u8,
    bytes: &'a [u8],
) -> Result<Cell<'a>, WireError> {
    if bytes.len() > VALUE_BYTES_MAX {
        return Err(too_large("the value is over 16 MiB"));
    }
    let request_id = match request_id {
        [] => None,
        id => Some(id.try_into().map_err(|_| bad("a request id has 16 bytes"))?),
    };
    let expiry = Expiry { version: Version::from_bytes(expiry_version), deadline_ms };
    Ok(Cell { version: Version::from_bytes(version), body: body_of(tag, bytes)?, expiry, request_id })
}

fn refusal_of(why: u8, detail: u64) -> Result<Refusal, WireError> {
    Ok(match why {
        1 => Refusal::EpochOld { epoch: detail },
        2 => Refusal::Behind { epoch: detail },
        3 => Refusal::NotReplica,
        4 => Refusal::NotVoting,
        5 => Refusal::Fenced,
        6 => Refusal::ClockAhead { ms: detail },
        7 => Refusal::DeadlinePassed,
        8 => Refusal::Overloaded,
        9 => Refusal::DiskFull,
        10 => Refusal::Stopped,
        _ => return Err(bad("an unknown refusal")),
    })
}

/// One message of each kind and body, for tests and fuzzers.
pub fn examples() -> Vec<Message<'static>> {
    let place = Place { namespace: 1, key: b"key", kind: Kind::Field, element: b"field" };
    let (old, new) = (Version::put(7 << 16, 2), Version::rmw(Version::put(9 << 16, 3), 1, 4));
    let bodies = [
        Body::Silent,
        Body::Bytes(b"value"),
        Body::Chunked { len: 70_000 },
        Body::Collection { of: CollectionType::List, floor: old, context: b"first last" },
        Body::RangeEnd(b"z"),
        Body::Tombstone,
    ];
    let cell = |body| Cell { version: new, body, expiry: Expiry { version: old, deadline_ms: 77 }, request_id: None };
    let whole = Cell { request_id: Some([5; 16]), ..cell(bodies[1]) };
    let refusals = (1..=10).map(|why| Message::Refused { why: refusal_of(why, 0).expect("all are known") });
    let mut all: Vec<Message<'static>> = bodies.map(|body| Message::Store { place, road: Road::WriteBack, cell: cell(body) }).into();
    all.extend(refusals);
    all.extend([
        Message::AskClock,
        Message::Clock { hlc: 9 << 16 },
        Message::Stored { holds: Holds::Newer },
        Message::Read { place, full: true, now_ms: 5 },
        Message::ReadFull { cell: Ok(whole) },
        Message::ReadFull { cell: Err(old) },
        Message::ReadDigest { digest: Digest { present: true, version: new, expiry: old, hash: 3 } },
        Message::Refused { why: Refusal::EpochOld { epoch: 4 } },
        Message::Correct,
        Message::FetchTopology,
        Message::Topology { bytes: b"a topology" },
        Message::Namespaces { bytes: b"a table" },
    ]);
    all
}
