//! Messages between nodes: the bytes are rkyv's, every message comes back, and no changed bit gets through.

use super::frame::{FrameReader, HEADER_BYTES};
use super::peer::{Digest, Head, Message, OwnedCell, body, decode, encode, examples};
use super::peer_body::no_changed_bit_gets_through;
use crate::base::record::{Cell, Version};
use crate::limits::PEER_FRAME_BYTES_MAX;

const HEAD: Head = Head { epoch: 3, deadline_ms: 900 };

fn bytes(message: &Message<'_>) -> Vec<u8> {
    let mut out = Vec::new();
    encode(&mut out, 42, HEAD, message);
    out
}

#[test]
fn every_message_comes_back_and_many_lie_in_one_write() {
    let messages = examples();
    let stream: Vec<u8> = messages.iter().flat_map(bytes).collect();
    let mut reader = FrameReader::new(PEER_FRAME_BYTES_MAX);
    let mut back = 0;
    for (frame, message) in reader.feed(&stream).zip(&messages) {
        let frame = frame.expect("whole frames");
        assert_eq!((frame.id, decode(&frame)), (42, Ok((HEAD, *message))));
        back += 1;
    }
    assert_eq!(back, messages.len());
}

#[test]
fn a_changed_bit_anywhere_is_seen() {
    for message in examples() {
        let whole = bytes(&message);
        no_changed_bit_gets_through(&whole, |frame| decode(frame).is_ok());
    }
}

#[test]
fn the_bytes_are_what_rkyv_would_write() {
    let store = examples().into_iter().find_map(|message| match message {
        Message::Store { place, road, cell } if !place.key.is_empty() => Some((place, road, cell)),
        _ => None,
    });
    let (place, road, cell) = store.expect("a store");
    let written = body::Store {
        epoch: HEAD.epoch,
        deadline_ms: HEAD.deadline_ms,
        namespace: place.namespace,
        place_kind: place.kind as u8,
        kind: road as u8,
        version: cell.version.to_bytes(),
        expiry_version: cell.expiry.version.to_bytes(),
        deadline_at_ms: cell.expiry.deadline_ms,
        tag: 0,
        request_id: Vec::new(),
        key: place.key.to_vec(),
        element: place.element.to_vec(),
        body: Vec::new(),
    };
    let theirs = rkyv::to_bytes::<rkyv::rancor::Error>(&written).expect("it fits");
    let ours = bytes(&Message::Store { place, road, cell });
    assert_eq!(ours[HEADER_BYTES..ours.len() - 8], theirs[..]);
}

#[test]
fn a_digest_covers_what_is_not_newer() {
    let mut scratch = Vec::new();
    let (v1, v2) = (Version::put(1, 0), Version::put(2, 0));
    let put = Cell::value(v1, b"a");
    let expired = Cell { expiry: Cell::expire(v2, 9).expiry, ..put };
    let mut of = |cell: &Cell<'_>| Digest::of(Ok(cell), &mut scratch);
    let (old, new, later) = (of(&put), of(&Cell::value(v2, b"a")), of(&expired));
    assert!(new.covers(&old) && later.covers(&old) && old.covers(&old));
    assert!(!old.covers(&later) && !later.covers(&new) && !of(&Cell::value(v1, b"b")).covers(&old), "content differs");
    let absent = |floor| Digest::of(Err(floor), &mut Vec::new());
    assert!(old.covers(&absent(v1)) && !old.covers(&absent(v2)) && absent(v1).covers(&absent(v2)) && absent(v2).covers(&old));
    let mut owned = OwnedCell::new(&Cell::value(v1, b"a"));
    owned.absorb(&Cell::expire(v2, 9));
    owned.absorb(&Cell::value(Version::ZERO, b"older"));
    assert_eq!(owned.as_cell(), expired);
}
