//! Entry points for fuzzing: plain functions over arbitrary bytes that must neither panic nor grow. A unit test runs them for a fixed
//! budget.

use super::frame::{Frame, FrameReader, HEADER_BYTES};
use super::native::{decode_reply, decode_request, encode_reply, encode_request};
use super::{peer, peer_moves, peer_repair};
use crate::limits::FRAME_BYTES_MAX;

/// A stream: however it is cut into chunks, the same frames and the same end come out.
pub fn frame(bytes: &[u8]) {
    let read = |step: usize| {
        let mut reader = FrameReader::new(FRAME_BYTES_MAX);
        let mut seen = Vec::new();
        for chunk in bytes.chunks(step.max(1)) {
            let mut ended = false;
            for frame in reader.feed(chunk) {
                ended |= frame.is_err();
                seen.push(frame.map(|frame| (frame.kind, frame.flags, frame.id, frame.body.to_vec())));
            }
            assert!(reader.held_bytes() <= 2 * bytes.len() + 2 * 64 * 1024 + HEADER_BYTES, "memory follows what arrived");
            if ended {
                break;
            }
        }
        seen
    };
    let whole = read(bytes.len());
    let step = bytes.first().map_or(1, |&b| usize::from(b) + 1);
    assert_eq!(whole, read(step));
    assert_eq!(whole, read(1));
}

/// A kind (2 bytes, LE) and a body: what decodes survives another round.
pub fn body(bytes: &[u8]) {
    let Some((kind, body)) = bytes.split_first_chunk::<2>() else { return };
    let kind = u16::from_le_bytes(*kind);
    if let Ok(request) = decode_request(kind, body) {
        let mut out = Vec::new();
        encode_request(&mut out, 1, &request);
        assert_eq!(decode_request(kind, &out[HEADER_BYTES..]).as_ref(), Ok(&request));
    }
    if let Ok(reply) = decode_reply(kind, body) {
        let mut out = Vec::new();
        encode_reply(&mut out, 1, &reply);
        assert_eq!(decode_reply(kind, &out[HEADER_BYTES..]).as_ref(), Ok(&reply));
    }
}

/// A kind (2 bytes, LE) and what stands behind it in a frame between nodes. Also taken for a body whose checksum fits, behind which the
/// fuzzer would see nothing: what decodes then survives another round.
pub fn peer(bytes: &[u8]) {
    let Some((kind, body)) = bytes.split_first_chunk::<2>() else { return };
    let kind = u16::from_le_bytes(*kind);
    let frame = |body| Frame { kind, flags: 0, id: 1, body };
    let _ = peer::decode(&frame(body));
    if let Ok((head, message)) = peer::decode_body(kind, body) {
        let mut out = Vec::new();
        peer::encode(&mut out, 1, head, &message);
        assert_eq!(peer::decode(&frame(&out[HEADER_BYTES..])).as_ref(), Ok(&(head, message)));
    }
}

/// The same of a message of repair or forgetting: its kind, and its body.
pub fn peer_repair(bytes: &[u8]) {
    let Some((kind, body)) = bytes.split_first_chunk::<2>() else { return };
    let kind = u16::from_le_bytes(*kind);
    if let Ok((head, message)) = peer_repair::decode_body(kind, body) {
        let mut out = Vec::new();
        assert_eq!(peer_repair::encode_body(&mut out, head, &message), kind);
        assert_eq!(peer_repair::decode_body(kind, &out).as_ref(), Ok(&(head, message)));
    }
}

/// The same of a message of moves.
pub fn peer_moves(bytes: &[u8]) {
    let Some((kind, body)) = bytes.split_first_chunk::<2>() else { return };
    let kind = u16::from_le_bytes(*kind);
    if let Ok((head, message)) = peer_moves::decode_body(kind, body) {
        let mut out = Vec::new();
        assert_eq!(peer_moves::encode_body(&mut out, head, &message), kind);
        assert_eq!(peer_moves::decode_body(kind, &out).as_ref(), Ok(&(head, message)));
    }
}
