//! Deciding topologies and moving vnodes between nodes: the messages of `cluster::decide` and `cluster::takeover`, and their
//! bytes. `cluster` says what they mean; here is only what they hold.
//!
//! The bodies stand where the others between nodes do (`wire::peer`: header in front, checksum behind), and begin as they do, with epoch
//! and deadline. Integers are little-endian, versions 16 bytes big-endian, a topology stands behind a varint length, lists behind a varint
//! count.
//!
//! | kind | body behind epoch u64, deadline u32 |
//! | --- | --- |
//! | 0x0130 promise | decision |
//! | 0x0131 accept | decision, topology |
//! | 0x0132 marks? | parts |
//! | 0x0133 taken over? | |
//! | 0x0134 words | text |
//! | 0x8130 promised | decision, accepted u8 (whether there is one), its ballot and topology |
//! | 0x8131 accepted | decision |
//! | 0x8132 outbid | decision, ballot |
//! | 0x8133 newer, 0x8134 behind | decision, epoch u64 |
//! | 0x8135 no topology | decision |
//! | 0x8136 marks | list: part, list: namespace u32, fence, floor, empty u8 |
//! | 0x8137 taken over | parts |
//! | 0x8138 done, 0x8139 not done | text |
//!
//! text: UTF-8 behind a varint length. decision: epoch u64, ballot. ballot: round u64, node u64, nonce u64. parts: list of parts. part:
//! vnode u32, since u64, replication factor u8.

use super::command::ErrorCode;
use super::native::{WireError, bad, too_large};
use super::peer::Head;
use super::peer_body::{Cursor, malformed, take_apart};
use crate::base::codec::{Malformed, Reader, put_bytes, put_varint};
use crate::base::record::{NamespaceId, Version};
use crate::limits::{NAMESPACES_MAX, PEER_FRAME_BYTES_MAX, RFS, VNODES_MAX, WORDS_BYTES_MAX};

/// Kinds of frames.
pub mod kind {
    pub const PROMISE: u16 = 0x0130;
    pub const ACCEPT: u16 = 0x0131;
    pub const ASK_MARKS: u16 = 0x0132;
    pub const ASK_TAKEN: u16 = 0x0133;
    pub const WORDS: u16 = 0x0134;
    pub const PROMISED: u16 = 0x8130;
    pub const ACCEPTED: u16 = 0x8131;
    pub const OUTBID: u16 = 0x8132;
    pub const NEWER: u16 = 0x8133;
    pub const BEHIND: u16 = 0x8134;
    pub const NO_TOPOLOGY: u16 = 0x8135;
    pub const MARKS: u16 = 0x8136;
    pub const TAKEN: u16 = 0x8137;
    pub const DONE: u16 = 0x8138;
    pub const NOT_DONE: u16 = 0x8139;
}

/// The largest topology that is decided: some times what the largest cluster's takes.
pub const TOPOLOGY_BYTES_MAX: usize = 4 << 20;
const _: () = assert!(TOPOLOGY_BYTES_MAX + 4096 < PEER_FRAME_BYTES_MAX);
/// The most parts that there are of all vnodes.
const PARTS_MAX: usize = VNODES_MAX as usize * RFS.len();
const _: () = assert!(PARTS_MAX * 16 < PEER_FRAME_BYTES_MAX);
/// Parts of one question about marks.
pub const MARKS_VNODES_MAX: usize = 512;

/// Orders proposals; `nonce` tells two lives of one proposer apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ballot {
    pub round: u64,
    pub node: u64,
    pub nonce: u64,
}

/// A topology that was accepted, encoded, and under which ballot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Accepted {
    pub ballot: Ballot,
    pub topology: Vec<u8>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Question {
    /// "Accept nothing below this ballot."
    Promise,
    Accept {
        topology: Vec<u8>,
    },
}

/// A proposer's question about what follows `epoch`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ask {
    pub epoch: u64,
    pub ballot: Ballot,
    pub question: Question,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    Promised {
        accepted: Option<Accepted>,
    },
    Accepted,
    /// A higher ballot has a promise.
    Outbid {
        promised: Ballot,
    },
    /// What follows was decided: the acceptor has this epoch.
    Newer {
        epoch: u64,
    },
    /// The acceptor has yet to learn the epoch that is to be changed.
    Behind {
        epoch: u64,
    },
    /// What is to be accepted does not follow the acceptor's topology.
    NoTopology,
}

/// An acceptor's answer; it repeats what it is an answer to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub epoch: u64,
    pub ballot: Ballot,
    pub reply: Reply,
}

/// One vnode that moves, and the epoch that says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Move {
    pub vnode: u32,
    pub since: u64,
}

/// What moves of it for the namespaces of one replication factor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Part {
    pub of: Move,
    pub rf: u8,
}

/// An old owner's marks of a part that moves, in every namespace of it that it knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MarksOf {
    pub part: Part,
    pub namespaces: Vec<MarksIn>,
}

/// What an old owner keeps of a vnode in one namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MarksIn {
    pub namespace: NamespaceId,
    pub fence: Version,
    pub floor: Version,
    /// It holds no cell: there is nothing to be compared.
    pub is_empty: bool,
}

/// A message of this file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MoveMessage {
    Decide(Ask),
    Decided(Answer),
    /// To an old owner: what it keeps of these, if it knows that they move.
    AskMarks(Vec<Part>),
    /// Of those that it knows and owns.
    Marks(Vec<MarksOf>),
    /// To a core of a pending owner.
    AskTaken,
    /// What it has taken over.
    Taken(Vec<Part>),
    /// A change in an operator's words (`cluster::words`), from a node that is no member to one that is.
    Words(String),
    /// What came of it; Err: why it was not done.
    Said(Result<String, String>),
}

impl MoveMessage {
    pub fn is_question(&self) -> bool {
        matches!(self, MoveMessage::Decide(_) | MoveMessage::AskMarks(_) | MoveMessage::AskTaken | MoveMessage::Words(_))
    }
}

/// A kind of this file.
pub fn is_move(kind: u16) -> bool {
    matches!(kind & !0x8000, 0x0130..=0x013F)
}

// ---------------------------------------------------------------------------------------------------------------------------------
// Writing.

/// Appends a body; its kind.
pub fn encode_body(out: &mut Vec<u8>, head: Head, message: &MoveMessage) -> u16 {
    out.extend_from_slice(&head.epoch.to_le_bytes());
    out.extend_from_slice(&head.deadline_ms.to_le_bytes());
    match message {
        MoveMessage::Decide(Ask { epoch, ballot, question }) => {
            put_decision(out, *epoch, *ballot);
            match question {
                Question::Promise => kind::PROMISE,
                Question::Accept { topology } => {
                    put_bytes(out, topology);
                    kind::ACCEPT
                }
            }
        }
        MoveMessage::Decided(answer) => put_answer(out, answer),
        MoveMessage::AskMarks(parts) => {
            put_parts(out, parts);
            kind::ASK_MARKS
        }
        MoveMessage::Marks(marks) => {
            put_varint(out, marks.len() as u64);
            for MarksOf { part, namespaces } in marks {
                put_part(out, *part);
                put_varint(out, namespaces.len() as u64);
                for MarksIn { namespace, fence, floor, is_empty } in namespaces {
                    out.extend_from_slice(&namespace.to_le_bytes());
                    out.extend_from_slice(&fence.to_bytes());
                    out.extend_from_slice(&floor.to_bytes());
                    out.push(u8::from(*is_empty));
                }
            }
            kind::MARKS
        }
        MoveMessage::AskTaken => kind::ASK_TAKEN,
        MoveMessage::Taken(parts) => {
            put_parts(out, parts);
            kind::TAKEN
        }
        MoveMessage::Words(words) => {
            put_bytes(out, words.as_bytes());
            kind::WORDS
        }
        MoveMessage::Said(said) => {
            let (Ok(text) | Err(text)) = said;
            put_bytes(out, text.as_bytes());
            if said.is_ok() { kind::DONE } else { kind::NOT_DONE }
        }
    }
}

fn put_answer(out: &mut Vec<u8>, answer: &Answer) -> u16 {
    put_decision(out, answer.epoch, answer.ballot);
    match &answer.reply {
        Reply::Promised { accepted } => {
            out.push(u8::from(accepted.is_some()));
            if let Some(Accepted { ballot, topology }) = accepted {
                put_ballot(out, *ballot);
                put_bytes(out, topology);
            }
            kind::PROMISED
        }
        Reply::Accepted => kind::ACCEPTED,
        Reply::Outbid { promised } => {
            put_ballot(out, *promised);
            kind::OUTBID
        }
        Reply::Newer { epoch } => {
            out.extend_from_slice(&epoch.to_le_bytes());
            kind::NEWER
        }
        Reply::Behind { epoch } => {
            out.extend_from_slice(&epoch.to_le_bytes());
            kind::BEHIND
        }
        Reply::NoTopology => kind::NO_TOPOLOGY,
    }
}

fn put_decision(out: &mut Vec<u8>, epoch: u64, ballot: Ballot) {
    out.extend_from_slice(&epoch.to_le_bytes());
    put_ballot(out, ballot);
}

/// Appends a ballot, 24 bytes.
pub fn put_ballot(out: &mut Vec<u8>, ballot: Ballot) {
    [ballot.round, ballot.node, ballot.nonce].into_iter().for_each(|part| out.extend_from_slice(&part.to_le_bytes()));
}

/// Reads one.
///
/// # Errors
/// It ends too early.
pub fn read_ballot(reader: &mut Reader<'_>) -> Result<Ballot, Malformed> {
    Ok(Ballot { round: reader.u64()?, node: reader.u64()?, nonce: reader.u64()? })
}

fn put_parts(out: &mut Vec<u8>, parts: &[Part]) {
    put_varint(out, parts.len() as u64);
    parts.iter().for_each(|part| put_part(out, *part));
}

fn put_part(out: &mut Vec<u8>, Part { of: Move { vnode, since }, rf }: Part) {
    out.extend_from_slice(&vnode.to_le_bytes());
    out.extend_from_slice(&since.to_le_bytes());
    out.push(rf);
}

// ---------------------------------------------------------------------------------------------------------------------------------
// Reading.

/// Takes a body apart, behind a checksum that fits.
///
/// # Errors
/// `UnknownKind`, `TooLarge` (a topology or a list over its bound), `BadRequest`.
pub fn decode_body(kind: u16, bytes: &[u8]) -> Result<(Head, MoveMessage), WireError> {
    take_apart(bytes, |body| {
        Ok(match kind {
            kind::PROMISE | kind::ACCEPT => {
                let (epoch, ballot) = body.decision()?;
                let question = if kind == kind::ACCEPT { Question::Accept { topology: body.topology()? } } else { Question::Promise };
                MoveMessage::Decide(Ask { epoch, ballot, question })
            }
            kind::PROMISED | kind::ACCEPTED | kind::OUTBID | kind::NEWER | kind::BEHIND | kind::NO_TOPOLOGY => {
                let (epoch, ballot) = body.decision()?;
                MoveMessage::Decided(Answer { epoch, ballot, reply: body.reply(kind)? })
            }
            kind::ASK_MARKS => MoveMessage::AskMarks(body.parts(MARKS_VNODES_MAX)?),
            kind::MARKS => MoveMessage::Marks(body.counted(MARKS_VNODES_MAX, |body| {
                let part = body.part()?;
                let namespaces = body.counted(NAMESPACES_MAX, Cursor::marks_in)?;
                Ok(MarksOf { part, namespaces })
            })?),
            kind::ASK_TAKEN => MoveMessage::AskTaken,
            kind::TAKEN => MoveMessage::Taken(body.parts(PARTS_MAX)?),
            kind::WORDS => MoveMessage::Words(body.text()?),
            kind::DONE => MoveMessage::Said(Ok(body.text()?)),
            kind::NOT_DONE => MoveMessage::Said(Err(body.text()?)),
            _ => return Err(WireError { code: ErrorCode::UnknownKind, what: "no such kind of message between nodes" }),
        })
    })
}

impl Cursor<'_> {
    fn ballot(&mut self) -> Result<Ballot, WireError> {
        read_ballot(&mut self.0).map_err(malformed)
    }

    fn decision(&mut self) -> Result<(u64, Ballot), WireError> {
        Ok((self.u64()?, self.ballot()?))
    }

    fn topology(&mut self) -> Result<Vec<u8>, WireError> {
        Ok(self.bytes(TOPOLOGY_BYTES_MAX, "a topology larger than any")?.to_vec())
    }

    fn text(&mut self) -> Result<String, WireError> {
        let bytes = self.bytes(WORDS_BYTES_MAX, "a text longer than any")?;
        str::from_utf8(bytes).map(str::to_owned).map_err(|_| bad("a text that is not UTF-8"))
    }

    fn reply(&mut self, kind: u16) -> Result<Reply, WireError> {
        Ok(match kind {
            kind::PROMISED if self.flag()? => {
                Reply::Promised { accepted: Some(Accepted { ballot: self.ballot()?, topology: self.topology()? }) }
            }
            kind::PROMISED => Reply::Promised { accepted: None },
            kind::ACCEPTED => Reply::Accepted,
            kind::OUTBID => Reply::Outbid { promised: self.ballot()? },
            kind::NEWER => Reply::Newer { epoch: self.u64()? },
            kind::BEHIND => Reply::Behind { epoch: self.u64()? },
            _ => Reply::NoTopology,
        })
    }

    fn counted<T>(&mut self, most: usize, mut item: impl FnMut(&mut Self) -> Result<T, WireError>) -> Result<Vec<T>, WireError> {
        let count = self.varint()?;
        if count > most as u64 {
            return Err(too_large("a list longer than any"));
        }
        (0..count).map(|_| item(self)).collect()
    }

    fn part(&mut self) -> Result<Part, WireError> {
        let part = Part { of: Move { vnode: self.u32()?, since: self.u64()? }, rf: self.u8()? };
        match part {
            Part { of: Move { vnode: VNODES_MAX.., .. }, .. } => Err(bad("no such vnode")),
            Part { rf, .. } if !RFS.contains(&usize::from(rf)) => Err(bad("no such replication factor")),
            part => Ok(part),
        }
    }

    fn marks_in(&mut self) -> Result<MarksIn, WireError> {
        Ok(MarksIn { namespace: self.u32()?, fence: self.version()?, floor: self.version()?, is_empty: self.flag()? })
    }

    fn parts(&mut self, most: usize) -> Result<Vec<Part>, WireError> {
        self.counted(most, Cursor::part)
    }
}

/// One message of each kind, for tests and fuzzers.
pub fn examples() -> Vec<MoveMessage> {
    let (low, ballot) = (Ballot { round: 1, node: 2, nonce: 3 }, Ballot { round: 4, node: 5, nonce: u64::MAX });
    let (topology, epoch) = (b"a topology".to_vec(), 9);
    let replies = [
        Reply::Promised { accepted: None },
        Reply::Promised { accepted: Some(Accepted { ballot: low, topology: topology.clone() }) },
        Reply::Accepted,
        Reply::Outbid { promised: ballot },
        Reply::Newer { epoch: 10 },
        Reply::Behind { epoch: 8 },
        Reply::NoTopology,
    ];
    let part = |vnode, since, rf| Part { of: Move { vnode, since }, rf };
    let (one, two) = (part(3, 7, 3), part(VNODES_MAX - 1, u64::MAX, 5));
    let marks = |namespace, fence, floor, is_empty| MarksIn { namespace, fence, floor, is_empty };
    let (fence, floor) = (Version::put(9 << 16, 3), Version::put(8 << 16, 1));
    let namespaces = vec![marks(1, Version::put(7 << 16, 2), Version::ZERO, true), marks(2, fence, floor, false)];
    let mut all: Vec<MoveMessage> =
        [Question::Promise, Question::Accept { topology }].map(|question| MoveMessage::Decide(Ask { epoch, ballot, question })).into();
    all.extend(replies.map(|reply| MoveMessage::Decided(Answer { epoch, ballot: low, reply })));
    all.extend([
        MoveMessage::AskMarks(vec![one, two]),
        MoveMessage::Marks(vec![MarksOf { part: one, namespaces }, MarksOf { part: two, namespaces: Vec::new() }]),
        MoveMessage::AskTaken,
        MoveMessage::Taken(vec![one, two]),
        MoveMessage::Words("leave 3".to_owned()),
        MoveMessage::Said(Ok("done".to_owned())),
        MoveMessage::Said(Err("there is no node 3".to_owned())),
    ]);
    all
}

#[cfg(test)]
mod tests {
    use super::super::frame::FrameReader;
    use super::super::peer::{AnyMessage, decode_any, encode_move};
    use super::super::peer_body::no_changed_bit_gets_through;
    use super::*;

    const HEAD: Head = Head { epoch: 3, deadline_ms: 900 };

    #[test]
    fn every_message_comes_back_and_no_changed_bit_gets_through() {
        for message in examples() {
            let mut whole = Vec::new();
            encode_move(&mut whole, 42, HEAD, &message);
            let mut reader = FrameReader::new(PEER_FRAME_BYTES_MAX);
            let frame = reader.feed(&whole).next().expect("a frame").expect("whole");
            assert_eq!(decode_any(&frame), Ok((HEAD, AnyMessage::Move(message))));
            no_changed_bit_gets_through(&whole, |frame| decode_any(frame).is_ok());
        }
    }

    #[test]
    fn bodies_that_end_early_or_go_on_are_refused() {
        for message in examples() {
            let mut bytes = Vec::new();
            let kind = encode_body(&mut bytes, HEAD, &message);
            assert!((0..bytes.len()).all(|len| decode_body(kind, &bytes[..len]).is_err()), "{message:?}");
            bytes.push(0);
            assert!(decode_body(kind, &bytes).is_err(), "{message:?}");
        }
        let mut long = Vec::new();
        let moves = vec![Part { of: Move { vnode: 0, since: 1 }, rf: 3 }; MARKS_VNODES_MAX + 1];
        let kind = encode_body(&mut long, HEAD, &MoveMessage::AskMarks(moves));
        assert_eq!(decode_body(kind, &long).map_err(|error| error.code), Err(ErrorCode::TooLarge));
        // A node of one core may have taken over every vnode for every replication factor.
        let taken = |count| {
            let mut bytes = Vec::new();
            let kind = encode_body(&mut bytes, HEAD, &MoveMessage::Taken(vec![Part { of: Move { vnode: 0, since: 1 }, rf: 3 }; count]));
            decode_body(kind, &bytes).map(|_| count).map_err(|error| error.code)
        };
        assert_eq!((taken(PARTS_MAX), taken(PARTS_MAX + 1)), (Ok(PARTS_MAX), Err(ErrorCode::TooLarge)));
        assert_eq!(decode_body(0x013F, &long).map_err(|error| error.code), Err(ErrorCode::UnknownKind));
    }
}
