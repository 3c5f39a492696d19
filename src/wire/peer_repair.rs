//! Repair and forgetting between nodes: the messages of `cluster::repair` and `cluster::forget`, and their bytes. `cluster` says what they
//! mean; here is only what they hold.
//!
//! The bodies stand where the others between nodes do (`wire::peer`: header in front, checksum behind), and begin as they do, with epoch
//! and deadline. They are lists in lists, so they are written by hand with `base::codec`, not by rkyv: one pass checks and takes apart.
//! Integers are little-endian, versions 16 bytes big-endian, places and cells stand behind a varint length, lists behind a varint count.
//!
//! | kind | body behind epoch u64, deadline u32 |
//! | --- | --- |
//! | 0x0120 open | question |
//! | 0x0121 level | question, level |
//! | 0x0122 page | question, span, absent version, entries: place, digest |
//! | 0x0123 push | question, cells: place, digest, cell |
//! | 0x0128 fence, 0x0129 floor | scope, session |
//! | 0x8120 opened | answer, depth u8 |
//! | 0x8121 differing | answer, nodes u32, rising |
//! | 0x8122 diff | answer, until, differing u32, cells, places |
//! | 0x8123 stored | answer, refused u32 |
//! | 0x8124 refused | answer |
//! | 0x8128 fenced, 0x8129 floored | scope, session |
//! | 0x812A not part of it | scope, session, why u8, epoch u64 |
//!
//! scope: namespace u32, vnode u32, epoch u64. session: number u64, leader u64, version. question: scope, session (u8: whether there is
//! one), exchange u64, turn u32. answer: exchange u64, turn u32. span: first and last token u64, after, until. after, until: u8, place.
//! digest: value version, expiry version, tombstone u8. level: see `Level::encode`.

use super::command::ErrorCode;
use super::native::{WireError, bad, too_large};
use super::peer::Head;
use super::peer_body::{Cursor, malformed, take_apart};
use crate::base::codec::{Malformed, Reader, put_bytes, put_varint};
use crate::base::record::{Body, Cell, NamespaceId, Token, Version};
use crate::base::time::WallMs;
use crate::limits::{
    KEY_BYTES_MAX, LEAVES_LOG2_MAX, LEVEL_NODES_MAX, PEER_FRAME_BYTES_MAX, REPAIR_PAGE_BYTES, VALUE_BYTES_MAX, VNODES_MAX,
};

/// Kinds of frames.
pub mod kind {
    pub const OPEN: u16 = 0x0120;
    pub const LEVEL: u16 = 0x0121;
    pub const PAGE: u16 = 0x0122;
    pub const PUSH: u16 = 0x0123;
    pub const FENCE: u16 = 0x0128;
    pub const FLOOR: u16 = 0x0129;
    pub const OPENED: u16 = 0x8120;
    pub const DIFFERING: u16 = 0x8121;
    pub const DIFF: u16 = 0x8122;
    pub const STORED: u16 = 0x8123;
    pub const REFUSED: u16 = 0x8124;
    pub const FENCED: u16 = 0x8128;
    pub const FLOORED: u16 = 0x8129;
    pub const NO_PART: u16 = 0x812A;
}

/// The longest encoded place: a key all of whose bytes are escaped, an element, and what stands around them.
pub const PLACE_BYTES_MAX: usize = 3 * KEY_BYTES_MAX + 15;
/// What a cell takes beside its payload, at most.
const CELL_OVERHEAD_BYTES: usize = 128;
/// What an entry or a cell costs of a page beside its place and its bytes.
pub const ENTRY_BYTES: usize = 40;

/// A diff: cells, which are one that is as large as any or a page, places, of which one lies beyond a page, and how far it goes.
const DIFF_BYTES_MAX: usize = VALUE_BYTES_MAX + CELL_OVERHEAD_BYTES + REPAIR_PAGE_BYTES + 3 * PLACE_BYTES_MAX;
const _: () = assert!(DIFF_BYTES_MAX + 4096 <= PEER_FRAME_BYTES_MAX, "every message of repair is one frame");

/// An encoded place: bytes that order as places do, and for this room nothing more.
pub type Place = Vec<u8>;

/// What is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scope {
    pub namespace: NamespaceId,
    pub vnode: u32,
    /// Of the last change of the vnode's replicas.
    pub epoch: u64,
}

/// Names a session of forgetting. A later one has a higher number: the leader's hybrid clock when it began.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SessionId {
    pub number: u64,
    pub leader: u64,
}

/// A session and how far it goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Session {
    pub id: SessionId,
    pub up_to: Version,
}

/// What decides whether two replicas hold the same at a place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Digest {
    pub value: Version,
    /// A tombstone, and not for a deadline that has passed.
    pub is_gone: bool,
    pub expiry: Version,
}

impl Digest {
    pub fn of(cell: &Cell<'_>, now_ms: WallMs) -> Digest {
        let is_gone = cell.body == Body::Tombstone && !cell.is_expired(now_ms);
        Digest { value: cell.version, is_gone, expiry: cell.expiry.version }
    }

    /// The highest version of any part.
    pub fn newest(self) -> Version {
        self.value.max(self.expiry)
    }
}

/// Hashes of some nodes of one level of a hash tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Level {
    /// It has 2^log2 nodes.
    pub log2: u8,
    /// By rising index; without a hash where a leaf below is dirty.
    pub nodes: Vec<(u32, Option<u128>)>,
}

/// A place and what is held there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub place: Place,
    pub digest: Digest,
}

/// A cell on its way to another replica. `digest` is what `forget::admits_cell` is asked with; who stores it checks it against the cell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CellCopy {
    pub place: Place,
    pub digest: Digest,
    pub cell: Vec<u8>,
}

/// A part of a leaf: the places with tokens in this range, behind `after`, up to `until`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    pub first: Token,
    pub last: Token,
    pub after: Option<Place>,
    pub until: Option<Place>,
}

/// A listing to be compared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    pub span: Span,
    /// The version of what is absent (rule G4).
    pub absent: Version,
    pub entries: Vec<Entry>,
}

/// What came out of a page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diff {
    /// How far it was compared; none: the whole page.
    pub until: Option<Place>,
    pub differing: u32,
    /// What the asker lacks.
    pub cells: Vec<CellCopy>,
    /// What the other lacks.
    pub wants: Vec<Place>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Question {
    Open,
    Level(Level),
    Page(Page),
    Push(Vec<CellCopy>),
}

/// A question with what it belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ask {
    pub scope: Scope,
    pub session: Option<Session>,
    pub exchange: u64,
    pub turn: u32,
    pub question: Question,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    Opened {
        leaves_log2: u8,
    },
    Differing(Vec<u32>),
    Diff(Diff),
    Stored {
        refused: u32,
    },
    /// Another epoch of the vnode, or not fenced for the session, or no question that makes sense.
    Refused,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub exchange: u64,
    pub turn: u32,
    pub reply: Reply,
}

/// Of forgetting: between the leader of a session and the replicas, itself among them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forget {
    pub scope: Scope,
    pub session: Session,
    pub body: ForgetBody,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ForgetBody {
    Fence,
    Fenced,
    Floor,
    Floored,
    Refused(NoPart),
}

/// Why a replica takes no part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoPart {
    /// The vnode's epoch is another here.
    Epoch { ours: u64 },
    /// f is at or below the floor, or below the fence, or the session is older than one of the same f.
    Behind,
    /// f is not far enough behind this replica's clock.
    TooNew,
    /// This replica is not, or no more, fenced for the session.
    NoSession,
}

/// A message of this file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RepairMessage {
    Ask(Ask),
    Answer(Answer),
    Forget(Forget),
}

/// A kind of this file.
pub fn is_repair(kind: u16) -> bool {
    matches!(kind & !0x8000, 0x0120..=0x012F)
}

// ---------------------------------------------------------------------------------------------------------------------------------
// Writing.

/// Appends a body; its kind.
pub fn encode_body(out: &mut Vec<u8>, head: Head, message: &RepairMessage) -> u16 {
    out.extend_from_slice(&head.epoch.to_le_bytes());
    out.extend_from_slice(&head.deadline_ms.to_le_bytes());
    match message {
        RepairMessage::Ask(ask) => put_ask(out, ask),
        RepairMessage::Answer(answer) => put_answer(out, answer),
        RepairMessage::Forget(forget) => put_forget(out, forget),
    }
}

fn put_ask(out: &mut Vec<u8>, ask: &Ask) -> u16 {
    put_scope(out, ask.scope);
    out.push(u8::from(ask.session.is_some()));
    if let Some(session) = ask.session {
        put_session(out, session);
    }
    put_turn(out, ask.exchange, ask.turn);
    match &ask.question {
        Question::Open => kind::OPEN,
        Question::Level(level) => {
            level.encode(out);
            kind::LEVEL
        }
        Question::Page(page) => {
            out.extend_from_slice(&page.span.first.to_le_bytes());
            out.extend_from_slice(&page.span.last.to_le_bytes());
            put_place(out, page.span.after.as_ref());
            put_place(out, page.span.until.as_ref());
            out.extend_from_slice(&page.absent.to_bytes());
            put_varint(out, page.entries.len() as u64);
            for entry in &page.entries {
                put_bytes(out, &entry.place);
                put_digest(out, entry.digest);
            }
            kind::PAGE
        }
        Question::Push(cells) => {
            put_cells(out, cells);
            kind::PUSH
        }
    }
}

fn put_answer(out: &mut Vec<u8>, answer: &Answer) -> u16 {
    put_turn(out, answer.exchange, answer.turn);
    match &answer.reply {
        Reply::Opened { leaves_log2 } => {
            out.push(*leaves_log2);
            kind::OPENED
        }
        Reply::Differing(nodes) => {
            put_varint(out, nodes.len() as u64);
            nodes.iter().for_each(|node| out.extend_from_slice(&node.to_le_bytes()));
            kind::DIFFERING
        }
        Reply::Diff(diff) => {
            put_place(out, diff.until.as_ref());
            out.extend_from_slice(&diff.differing.to_le_bytes());
            put_cells(out, &diff.cells);
            put_varint(out, diff.wants.len() as u64);
            diff.wants.iter().for_each(|place| put_bytes(out, place));
            kind::DIFF
        }
        Reply::Stored { refused } => {
            out.extend_from_slice(&refused.to_le_bytes());
            kind::STORED
        }
        Reply::Refused => kind::REFUSED,
    }
}

fn put_forget(out: &mut Vec<u8>, forget: &Forget) -> u16 {
    put_scope(out, forget.scope);
    put_session(out, forget.session);
    match forget.body {
        ForgetBody::Fence => kind::FENCE,
        ForgetBody::Fenced => kind::FENCED,
        ForgetBody::Floor => kind::FLOOR,
        ForgetBody::Floored => kind::FLOORED,
        ForgetBody::Refused(why) => {
            let (why, epoch) = match why {
                NoPart::Epoch { ours } => (1, ours),
                NoPart::Behind => (2, 0),
                NoPart::TooNew => (3, 0),
                NoPart::NoSession => (4, 0),
            };
            out.push(why);
            out.extend_from_slice(&u64::to_le_bytes(epoch));
            kind::NO_PART
        }
    }
}

fn put_scope(out: &mut Vec<u8>, scope: Scope) {
    out.extend_from_slice(&scope.namespace.to_le_bytes());
    out.extend_from_slice(&scope.vnode.to_le_bytes());
    out.extend_from_slice(&scope.epoch.to_le_bytes());
}

fn put_session(out: &mut Vec<u8>, session: Session) {
    out.extend_from_slice(&session.id.number.to_le_bytes());
    out.extend_from_slice(&session.id.leader.to_le_bytes());
    out.extend_from_slice(&session.up_to.to_bytes());
}

fn put_turn(out: &mut Vec<u8>, exchange: u64, turn: u32) {
    out.extend_from_slice(&exchange.to_le_bytes());
    out.extend_from_slice(&turn.to_le_bytes());
}

fn put_place(out: &mut Vec<u8>, place: Option<&Place>) {
    out.push(u8::from(place.is_some()));
    if let Some(place) = place {
        put_bytes(out, place);
    }
}

fn put_digest(out: &mut Vec<u8>, digest: Digest) {
    out.extend_from_slice(&digest.value.to_bytes());
    out.extend_from_slice(&digest.expiry.to_bytes());
    out.push(u8::from(digest.is_gone));
}

fn put_cells(out: &mut Vec<u8>, cells: &[CellCopy]) {
    put_varint(out, cells.len() as u64);
    for copy in cells {
        put_bytes(out, &copy.place);
        put_digest(out, copy.digest);
        put_bytes(out, &copy.cell);
    }
}

impl Level {
    /// Appends it: log2 (1), count (varint), then as many nodes: twice the distance from the index before, plus one where a hash follows
    /// (varint); the hash (16, little-endian).
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.push(self.log2);
        put_varint(out, self.nodes.len() as u64);
        let mut before = 0;
        for (index, hash) in &self.nodes {
            put_varint(out, u64::from(index - before) << 1 | u64::from(hash.is_some()));
            before = *index;
            out.extend_from_slice(hash.map(u128::to_le_bytes).as_ref().map_or(&[][..], |bytes| bytes));
        }
    }

    /// Reads one; indexes rise and lie within the level.
    ///
    /// # Errors
    /// What is wrong with the bytes.
    pub fn decode(reader: &mut Reader<'_>) -> Result<Level, Malformed> {
        let log2 = reader.u8()?;
        if log2 > LEAVES_LOG2_MAX {
            return Err(Malformed("a level that no tree has"));
        }
        let count = reader.varint()?;
        if count > LEVEL_NODES_MAX as u64 {
            return Err(Malformed("more nodes of a level than are sent at once"));
        }
        let (mut nodes, mut next) = (Vec::new(), 0u64);
        for number in 0..count {
            let word = reader.varint()?;
            let index = next + (word >> 1);
            if index >= 1 << log2 || number > 0 && word >> 1 == 0 {
                return Err(Malformed("nodes of a level out of order"));
            }
            next = index;
            nodes.push((index as u32, if word & 1 == 1 { Some(reader.u128()?) } else { None }));
        }
        Ok(Level { log2, nodes })
    }
}

// ---------------------------------------------------------------------------------------------------------------------------------
// Reading.

/// Takes a body apart, behind a checksum that fits.
///
/// # Errors
/// `UnknownKind`, `TooLarge` (a place, a cell or a list over its bound), `BadRequest`.
pub fn decode_body(kind: u16, bytes: &[u8]) -> Result<(Head, RepairMessage), WireError> {
    take_apart(bytes, |body| {
        Ok(match kind {
            kind::OPEN | kind::LEVEL | kind::PAGE | kind::PUSH => RepairMessage::Ask(body.ask(kind)?),
            kind::OPENED | kind::DIFFERING | kind::DIFF | kind::STORED | kind::REFUSED => RepairMessage::Answer(body.answer(kind)?),
            kind::FENCE | kind::FLOOR | kind::FENCED | kind::FLOORED | kind::NO_PART => RepairMessage::Forget(body.forget(kind)?),
            _ => return Err(WireError { code: ErrorCode::UnknownKind, what: "no such kind of message of repair" }),
        })
    })
}

impl Cursor<'_> {
    fn place(&mut self) -> Result<Place, WireError> {
        Ok(self.bytes(PLACE_BYTES_MAX, "a place longer than any")?.to_vec())
    }

    fn some_place(&mut self) -> Result<Option<Place>, WireError> {
        if self.flag()? { self.place().map(Some) } else { Ok(None) }
    }

    /// A list, each of whose items costs some bytes of a page; one may lie beyond.
    fn list<T>(&mut self, mut item: impl FnMut(&mut Self) -> Result<(T, usize), WireError>) -> Result<Vec<T>, WireError> {
        let count = self.varint()?;
        let (mut items, mut cost) = (Vec::new(), 0);
        for _ in 0..count {
            if cost >= REPAIR_PAGE_BYTES {
                return Err(too_large("more than a page"));
            }
            let (one, bytes) = item(self)?;
            items.push(one);
            cost += bytes + ENTRY_BYTES;
        }
        Ok(items)
    }

    fn scope(&mut self) -> Result<Scope, WireError> {
        let scope = Scope { namespace: self.u32()?, vnode: self.u32()?, epoch: self.u64()? };
        if scope.vnode >= VNODES_MAX { Err(bad("no such vnode")) } else { Ok(scope) }
    }

    fn session(&mut self) -> Result<Session, WireError> {
        Ok(Session { id: SessionId { number: self.u64()?, leader: self.u64()? }, up_to: self.version()? })
    }

    fn digest(&mut self) -> Result<Digest, WireError> {
        Ok(Digest { value: self.version()?, expiry: self.version()?, is_gone: self.flag()? })
    }

    fn cells(&mut self) -> Result<Vec<CellCopy>, WireError> {
        self.list(|body| {
            let (place, digest) = (body.place()?, body.digest()?);
            let cell = body.bytes(VALUE_BYTES_MAX + CELL_OVERHEAD_BYTES, "a cell longer than any")?.to_vec();
            let cost = place.len() + cell.len();
            Ok((CellCopy { place, digest, cell }, cost))
        })
    }

    fn page(&mut self) -> Result<Page, WireError> {
        let span = Span { first: self.u64()?, last: self.u64()?, after: self.some_place()?, until: self.some_place()? };
        if span.first > span.last {
            return Err(bad("tokens in the wrong order"));
        }
        let absent = self.version()?;
        let entries = self.list(|body| {
            let entry = Entry { place: body.place()?, digest: body.digest()? };
            let cost = entry.place.len();
            Ok((entry, cost))
        })?;
        Ok(Page { span, absent, entries })
    }

    fn ask(&mut self, kind: u16) -> Result<Ask, WireError> {
        let scope = self.scope()?;
        let session = if self.flag()? { Some(self.session()?) } else { None };
        let (exchange, turn) = (self.u64()?, self.u32()?);
        let question = match kind {
            kind::OPEN => Question::Open,
            kind::LEVEL => Question::Level(Level::decode(&mut self.0).map_err(malformed)?),
            kind::PAGE => Question::Page(self.page()?),
            _ => Question::Push(self.cells()?),
        };
        Ok(Ask { scope, session, exchange, turn, question })
    }

    fn differing(&mut self) -> Result<Vec<u32>, WireError> {
        let count = self.varint()?;
        if count > LEVEL_NODES_MAX as u64 {
            return Err(too_large("more nodes of a level than are asked for at once"));
        }
        let nodes: Vec<u32> = (0..count).map(|_| self.u32()).collect::<Result<_, _>>()?;
        if nodes.is_sorted_by(|a, b| a < b) { Ok(nodes) } else { Err(bad("nodes of a level out of order")) }
    }

    fn diff(&mut self) -> Result<Diff, WireError> {
        let (until, differing, cells) = (self.some_place()?, self.u32()?, self.cells()?);
        let wants = self.list(|body| {
            let place = body.place()?;
            let cost = place.len();
            Ok((place, cost))
        })?;
        Ok(Diff { until, differing, cells, wants })
    }

    fn answer(&mut self, kind: u16) -> Result<Answer, WireError> {
        let (exchange, turn) = (self.u64()?, self.u32()?);
        let reply = match kind {
            kind::OPENED => match self.u8()? {
                leaves_log2 if leaves_log2 <= LEAVES_LOG2_MAX => Reply::Opened { leaves_log2 },
                _ => return Err(bad("a tree deeper than any")),
            },
            kind::DIFFERING => Reply::Differing(self.differing()?),
            kind::DIFF => Reply::Diff(self.diff()?),
            kind::STORED => Reply::Stored { refused: self.u32()? },
            _ => Reply::Refused,
        };
        Ok(Answer { exchange, turn, reply })
    }

    fn forget(&mut self, kind: u16) -> Result<Forget, WireError> {
        let (scope, session) = (self.scope()?, self.session()?);
        let body = match kind {
            kind::FENCE => ForgetBody::Fence,
            kind::FENCED => ForgetBody::Fenced,
            kind::FLOOR => ForgetBody::Floor,
            kind::FLOORED => ForgetBody::Floored,
            _ => {
                let (why, epoch) = (self.u8()?, self.u64()?);
                ForgetBody::Refused(match (why, epoch) {
                    (1, ours) => NoPart::Epoch { ours },
                    (2, 0) => NoPart::Behind,
                    (3, 0) => NoPart::TooNew,
                    (4, 0) => NoPart::NoSession,
                    _ => return Err(bad("an unknown reason to take no part")),
                })
            }
        };
        Ok(Forget { scope, session, body })
    }
}

/// One message of each kind, for tests and fuzzers.
pub fn examples() -> Vec<RepairMessage> {
    let scope = Scope { namespace: 1, vnode: 3, epoch: 7 };
    let (old, new) = (Version::put(7 << 16, 2), Version::rmw(Version::put(9 << 16, 3), 1, 4));
    let session = Session { id: SessionId { number: 5, leader: 6 }, up_to: old };
    let (place, digest) = (b"place".to_vec(), Digest { value: new, is_gone: true, expiry: old });
    let cells = vec![CellCopy { place: place.clone(), digest, cell: b"cell".to_vec() }; 2];
    let span = Span { first: 1 << 40, last: 1 << 41, after: Some(b"a".to_vec()), until: None };
    let entries = vec![Entry { place: place.clone(), digest }, Entry { place: b"q".to_vec(), digest: Digest::default() }];
    let questions = [
        Question::Open,
        Question::Level(Level { log2: 4, nodes: vec![(0, None), (7, Some(u128::MAX / 3)), (15, Some(0))] }),
        Question::Page(Page { span, absent: old, entries }),
        Question::Push(cells.clone()),
    ];
    let replies = [
        Reply::Opened { leaves_log2: 10 },
        Reply::Differing(vec![0, 3, 15]),
        Reply::Diff(Diff { until: Some(place.clone()), differing: 3, cells, wants: vec![place.clone(), b"q".to_vec()] }),
        Reply::Stored { refused: 2 },
        Reply::Refused,
    ];
    let refusals = [NoPart::Epoch { ours: 8 }, NoPart::Behind, NoPart::TooNew, NoPart::NoSession].map(ForgetBody::Refused);
    let bodies = [ForgetBody::Fence, ForgetBody::Fenced, ForgetBody::Floor, ForgetBody::Floored].into_iter().chain(refusals);
    let ask = |(at, question)| {
        let session = Some(session).filter(|_| at % 2 == 1);
        RepairMessage::Ask(Ask { scope, session, exchange: 11, turn: at, question })
    };
    let mut all: Vec<RepairMessage> = (0..).zip(questions).map(ask).collect();
    all.extend(replies.map(|reply| RepairMessage::Answer(Answer { exchange: 11, turn: 2, reply })));
    all.extend(bodies.map(|body| RepairMessage::Forget(Forget { scope, session, body })));
    all
}
