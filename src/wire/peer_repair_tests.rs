//! Messages of repair and forgetting: every one comes back, damage never panics, and nothing larger than a page is taken in.

use super::command::ErrorCode;
use super::frame::FrameReader;
use super::native::WireError;
use super::peer::{AnyMessage, Head, Message, decode, decode_any, encode, encode_repair};
use super::peer_body::no_changed_bit_gets_through;
use super::peer_repair::*;
use crate::base::prng::Prng;
use crate::base::record::Version;
use crate::limits::{LEAVES_LOG2_MAX, LEVEL_NODES_MAX, PEER_FRAME_BYTES_MAX, REPAIR_PAGE_BYTES};

const HEAD: Head = Head { epoch: 3, deadline_ms: 900 };

fn body(message: &RepairMessage) -> (u16, Vec<u8>) {
    let mut out = Vec::new();
    let kind = encode_body(&mut out, HEAD, message);
    (kind, out)
}

fn bytes(prng: &mut Prng, max: u64) -> Vec<u8> {
    let mut bytes = vec![0; prng.below(max) as usize];
    prng.fill(&mut bytes);
    bytes
}

fn version(prng: &mut Prng) -> Version {
    if prng.one_in(4) { Version::ZERO } else { Version(u128::from(prng.next_u64()) << 64 | u128::from(prng.next_u64())) }
}

fn digest(prng: &mut Prng) -> Digest {
    Digest { value: version(prng), is_gone: prng.one_in(2), expiry: version(prng) }
}

fn some(prng: &mut Prng) -> Option<Place> {
    prng.one_in(2).then(|| bytes(prng, 90))
}

fn list<T>(prng: &mut Prng, mut one: impl FnMut(&mut Prng) -> T) -> Vec<T> {
    (0..prng.below(20)).map(|_| one(prng)).collect()
}

fn copy(prng: &mut Prng) -> CellCopy {
    CellCopy { place: bytes(prng, 300), digest: digest(prng), cell: bytes(prng, 2000) }
}

fn question(prng: &mut Prng) -> Question {
    match prng.below(4) {
        0 => Question::Open,
        1 => {
            let log2 = prng.below(u64::from(LEAVES_LOG2_MAX) + 1) as u8;
            let mut nodes: Vec<u32> = list(prng, |prng| prng.below(1 << log2) as u32);
            nodes.sort_unstable();
            nodes.dedup();
            let hash = |prng: &mut Prng| prng.one_in(2).then(|| version(prng).0);
            Question::Level(Level { log2, nodes: nodes.into_iter().map(|node| (node, hash(prng))).collect() })
        }
        2 => {
            let (a, b) = (prng.next_u64(), prng.next_u64());
            let span = Span { first: a.min(b), last: a.max(b), after: some(prng), until: some(prng) };
            let entries = list(prng, |prng| Entry { place: bytes(prng, 300), digest: digest(prng) });
            Question::Page(Page { span, absent: version(prng), entries })
        }
        _ => Question::Push(list(prng, copy)),
    }
}

fn reply(prng: &mut Prng) -> Reply {
    match prng.below(5) {
        0 => Reply::Opened { leaves_log2: prng.below(u64::from(LEAVES_LOG2_MAX) + 1) as u8 },
        1 => {
            let mut nodes: Vec<u32> = list(prng, |prng| prng.below(1024) as u32);
            nodes.sort_unstable();
            nodes.dedup();
            Reply::Differing(nodes)
        }
        2 => {
            let (until, differing) = (some(prng), prng.next_u64() as u32);
            Reply::Diff(Diff { until, differing, cells: list(prng, copy), wants: list(prng, |prng| bytes(prng, 300)) })
        }
        3 => Reply::Stored { refused: prng.next_u64() as u32 },
        _ => Reply::Refused,
    }
}

fn message(prng: &mut Prng) -> RepairMessage {
    let scope = Scope { namespace: prng.next_u64() as u32, vnode: prng.below(16_384) as u32, epoch: prng.next_u64() };
    let session = Session { id: SessionId { number: prng.next_u64(), leader: prng.next_u64() }, up_to: version(prng) };
    let (exchange, turn) = (prng.next_u64(), prng.next_u64() as u32);
    match prng.below(3) {
        0 => RepairMessage::Ask(Ask { scope, session: prng.one_in(2).then_some(session), exchange, turn, question: question(prng) }),
        1 => RepairMessage::Answer(Answer { exchange, turn, reply: reply(prng) }),
        _ => {
            let refusals = [NoPart::Epoch { ours: exchange }, NoPart::Behind, NoPart::TooNew, NoPart::NoSession];
            let refused = ForgetBody::Refused(refusals[prng.below(4) as usize]);
            let bodies = [ForgetBody::Fence, ForgetBody::Fenced, ForgetBody::Floor, ForgetBody::Floored, refused];
            RepairMessage::Forget(Forget { scope, session, body: bodies[prng.below(5) as usize] })
        }
    }
}

#[test]
fn every_message_comes_back_and_its_head_stands_where_it_does_in_the_others() {
    let mut prng = Prng::new(1);
    let random = (0..3000).map(|_| message(&mut prng));
    let mut kinds = std::collections::BTreeSet::new();
    for message in examples().into_iter().chain(random) {
        let (kind, body) = body(&message);
        assert_eq!(decode_body(kind, &body), Ok((HEAD, message)));
        assert_eq!(body[..12], [&3u64.to_le_bytes()[..], &900u32.to_le_bytes()].concat());
        assert!(is_repair(kind));
        kinds.insert(kind);
    }
    assert_eq!(kinds.len(), 14);
    assert!(!is_repair(super::peer::kind::STORE) && !is_repair(super::peer::kind::REFUSED));
    let unknown = decode_body(0x0124, &body(&examples()[0]).1);
    assert!(matches!(unknown, Err(WireError { code: ErrorCode::UnknownKind, .. })));
}

#[test]
fn messages_of_both_sorts_lie_in_one_write_and_a_changed_bit_is_seen() {
    let mut stream = Vec::new();
    for message in examples() {
        encode_repair(&mut stream, 42, HEAD, &message);
        encode(&mut stream, 43, HEAD, &Message::AskClock);
    }
    let mut reader = FrameReader::new(PEER_FRAME_BYTES_MAX);
    let frames: Vec<_> = reader.feed(&stream).map(|frame| frame.expect("whole frames")).collect();
    assert_eq!(frames.len(), 2 * examples().len());
    for (pair, message) in frames.chunks_exact(2).zip(examples()) {
        assert_eq!((pair[0].id, decode_any(&pair[0])), (42, Ok((HEAD, AnyMessage::Repair(message)))));
        assert_eq!((pair[1].id, decode_any(&pair[1])), (43, Ok((HEAD, AnyMessage::Plain(Message::AskClock)))));
        assert!(decode(&pair[0]).is_err(), "no plain message");
    }
    for message in examples() {
        let mut whole = Vec::new();
        encode_repair(&mut whole, 42, HEAD, &message);
        no_changed_bit_gets_through(&whole, |frame| decode_any(frame).is_ok());
    }
}

#[test]
fn cut_off_or_lengthened_it_is_refused_and_damage_never_panics() {
    let mut prng = Prng::new(2);
    for message in examples() {
        let (kind, body) = body(&message);
        for end in 0..body.len() {
            assert!(decode_body(kind, &body[..end]).is_err(), "{message:?} cut at {end}");
        }
        assert!(decode_body(kind, &[&body[..], &[0]].concat()).is_err());
        for bit in 0..body.len() * 8 {
            let mut changed = body.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            super::fuzz::peer_repair(&[&kind.to_le_bytes()[..], &changed].concat());
        }
        for _ in 0..500 {
            let mut changed = body.clone();
            for _ in 0..1 + prng.below(4) {
                let at = prng.below(changed.len() as u64) as usize;
                changed[at] = prng.next_u64() as u8;
            }
            changed.truncate(prng.below(changed.len() as u64 + 1) as usize);
            super::fuzz::peer_repair(&[&kind.to_le_bytes()[..], &changed].concat());
        }
    }
}

#[test]
fn nothing_larger_than_a_page_and_one_cell_is_taken_in() {
    let scope = Scope { namespace: 1, vnode: 3, epoch: 7 };
    let ask = |question| RepairMessage::Ask(Ask { scope, session: None, exchange: 1, turn: 1, question });
    let decoded = |message: RepairMessage| {
        let (kind, body) = body(&message);
        decode_body(kind, &body).map(drop).map_err(|error| error.code)
    };
    let span = Span { first: 0, last: 9, after: None, until: None };
    let page = |count: usize| {
        let entry = |_| Entry { place: vec![7; 60], digest: Digest::default() };
        ask(Question::Page(Page { span: span.clone(), absent: Version::ZERO, entries: (0..count).map(entry).collect() }))
    };
    let most = REPAIR_PAGE_BYTES.div_ceil(60 + ENTRY_BYTES);
    assert_eq!((decoded(page(most)), decoded(page(most + 1))), (Ok(()), Err(ErrorCode::TooLarge)));
    let push = |sizes: &[usize]| {
        let copy = |size: &usize| CellCopy { place: vec![7; 60], digest: Digest::default(), cell: vec![1; *size] };
        ask(Question::Push(sizes.iter().map(copy).collect()))
    };
    assert_eq!(decoded(push(&[REPAIR_PAGE_BYTES / 2, 16 << 20])), Ok(()), "one may lie beyond");
    assert_eq!(decoded(push(&[REPAIR_PAGE_BYTES, 1])), Err(ErrorCode::TooLarge));
    assert_eq!(decoded(push(&[17 << 20])), Err(ErrorCode::TooLarge));
    let long = Span { after: Some(vec![1; PLACE_BYTES_MAX + 1]), ..span.clone() };
    let page_of = |span| ask(Question::Page(Page { span, absent: Version::ZERO, entries: Vec::new() }));
    assert_eq!(decoded(page_of(long)), Err(ErrorCode::TooLarge));
    assert_eq!(decoded(page_of(Span { first: 9, last: 8, ..span })), Err(ErrorCode::BadRequest));
    let differing = |nodes: Vec<u32>| RepairMessage::Answer(Answer { exchange: 1, turn: 1, reply: Reply::Differing(nodes) });
    assert_eq!(decoded(differing((0..LEVEL_NODES_MAX as u32).collect())), Ok(()));
    assert_eq!(decoded(differing((0..=LEVEL_NODES_MAX as u32).collect())), Err(ErrorCode::TooLarge));
    assert_eq!(decoded(differing(vec![2, 2])), Err(ErrorCode::BadRequest));
}
