//! What the bodies of messages between nodes that are written by hand have in common (`peer_repair`, `peer_moves`): epoch and deadline in
//! front, a cursor whose errors are the wire's, and nothing behind.

use super::native::{WireError, bad, too_large};
use super::peer::Head;
use crate::base::codec::{Malformed, Reader};
use crate::base::record::Version;

/// A cursor over a body.
pub(super) struct Cursor<'a>(pub Reader<'a>);

pub(super) fn malformed(what: Malformed) -> WireError {
    bad(what.0)
}

/// Takes a body apart: what is behind its head `read` makes a message of, and all of it.
///
/// # Errors
/// Of `read`; `BadRequest` where the body ends early or goes on.
pub(super) fn take_apart<'a, M>(
    bytes: &'a [u8],
    read: impl FnOnce(&mut Cursor<'a>) -> Result<M, WireError>,
) -> Result<(Head, M), WireError> {
    let mut body = Cursor(Reader::new(bytes));
    let head = Head { epoch: body.u64()?, deadline_ms: body.u32()? };
    let message = read(&mut body)?;
    if body.0.is_empty() { Ok((head, message)) } else { Err(bad("bytes left over")) }
}

impl<'a> Cursor<'a> {
    pub fn u8(&mut self) -> Result<u8, WireError> {
        self.0.u8().map_err(malformed)
    }

    pub fn u32(&mut self) -> Result<u32, WireError> {
        self.0.u32().map_err(malformed)
    }

    pub fn u64(&mut self) -> Result<u64, WireError> {
        self.0.u64().map_err(malformed)
    }

    pub fn varint(&mut self) -> Result<u64, WireError> {
        self.0.varint().map_err(malformed)
    }

    pub fn version(&mut self) -> Result<Version, WireError> {
        self.0.array().map(Version::from_bytes).map_err(malformed)
    }

    pub fn flag(&mut self) -> Result<bool, WireError> {
        let flag = self.u8()?;
        if flag > 1 { Err(bad("neither yes nor no")) } else { Ok(flag == 1) }
    }

    pub fn bytes(&mut self, max: usize, what: &'static str) -> Result<&'a [u8], WireError> {
        let bytes = self.0.bytes().map_err(malformed)?;
        if bytes.len() > max { Err(too_large(what)) } else { Ok(bytes) }
    }
}

/// A changed bit anywhere behind the header's magic is seen: `decode` refuses the frame.
#[cfg(test)]
pub(super) fn no_changed_bit_gets_through(whole: &[u8], decode: impl Fn(&super::frame::Frame<'_>) -> bool) {
    for bit in 32..whole.len() * 8 {
        let mut changed = whole.to_vec();
        changed[bit / 8] ^= 1 << (bit % 8);
        let mut reader = super::frame::FrameReader::new(crate::limits::PEER_FRAME_BYTES_MAX);
        let frame = reader.feed(&changed).next().expect("a frame").expect("whole");
        assert!(!decode(&frame), "bit {bit}");
    }
}
