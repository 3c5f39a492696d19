//! Frames: a 16-byte header and a body, cut out of a stream that arrives in chunks.
//!
//! ```text
//! length u32 LE (of the body) | kind u16 LE | flags u16 LE | request id u64 LE | body
//! ```
//!
//! A frame that lies whole in a chunk is used where it lies. Only a frame that crosses chunks is assembled, once, in a buffer that grows
//! with what has arrived, never by an announced length. A stream that does not begin like ours (HTTP, Redis, TLS, typed text) is recognized
//! by its length field, which would be absurd, and gets one human sentence.

/// Bytes of a header.
pub const HEADER_BYTES: usize = 16;
/// Flag: more frames of this answer follow.
pub const FLAG_MORE: u16 = 1;
/// An assembling buffer starts with at most this much.
const STEP_BYTES: usize = 64 * 1024;
/// What a connection keeps of a buffer between frames, so that thousands of idle ones cost little.
const KEEP_BYTES: usize = 4096;

/// A frame in place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    pub kind: u16,
    pub flags: u16,
    pub id: u64,
    pub body: &'a [u8],
}

impl Frame<'_> {
    /// More frames of this answer follow.
    pub fn more(&self) -> bool {
        self.flags & FLAG_MORE != 0
    }
}

/// Why a stream cannot be read on: answer with `native::put_goodbye` and close.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameError {
    /// Another protocol, by its first bytes.
    Foreign(Foreign),
    /// A body over the bound was announced.
    TooLarge { id: u64, announced: u32, bytes_max: u32 },
}

/// What a stranger seems to speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Foreign {
    Http,
    Redis,
    Tls,
    Text,
}

/// What the first bytes of a connection are. For a server that wants to know before it builds a `FrameReader`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Greeting {
    /// Not enough bytes to tell.
    Unclear,
    Native,
    Foreign(Foreign),
}

const SENTENCE: &str = "This port speaks the native protocol of ringkv (docs/protocol.md), not";

impl Foreign {
    /// The human sentence, in the clothes of the stranger's protocol. Empty for TLS, where nobody could read it.
    pub fn sentence(self) -> String {
        match self {
            Foreign::Http => {
                let text = format!("{SENTENCE} HTTP; the admin port does (7480 by default).\n");
                let len = text.len();
                format!("HTTP/1.0 400 Bad Request\r\nContent-Type: text/plain\r\nContent-Length: {len}\r\nConnection: close\r\n\r\n{text}")
            }
            Foreign::Redis => format!("-ERR {SENTENCE} the protocol of Redis\r\n"),
            Foreign::Tls => String::new(),
            Foreign::Text => format!("{SENTENCE} typed text; `ringkv get KEY` speaks it for you.\r\n"),
        }
    }
}

/// Judges the first bytes of a connection.
pub fn greeting(first: &[u8], bytes_max: usize) -> Greeting {
    let Some(length) = first.first_chunk::<4>() else { return Greeting::Unclear };
    if u32::from_le_bytes(*length) as usize <= bytes_max {
        return Greeting::Native;
    }
    match length {
        b"GET " | b"POST" | b"HEAD" | b"PUT " | b"OPTI" | b"DELE" | b"PATC" | b"CONN" => Greeting::Foreign(Foreign::Http),
        [0x16, 3, _, _] => Greeting::Foreign(Foreign::Tls),
        [b'*' | b'+' | b'$', ..] | b"PING" | b"ping" | b"INFO" | b"info" | b"AUTH" | b"auth" | b"HELL" => Greeting::Foreign(Foreign::Redis),
        text if text.iter().all(|&b| (b' '..0x7F).contains(&b) || b == b'\r' || b == b'\n') => Greeting::Foreign(Foreign::Text),
        // A frame, though far too large a one.
        _ => Greeting::Native,
    }
}

/// Cuts a stream into frames.
#[derive(Debug)]
pub struct FrameReader {
    bytes_max: usize,
    /// No byte has been judged yet.
    fresh: bool,
    failed: Option<FrameError>,
    /// The beginning of a frame whose rest has not arrived.
    partial: Vec<u8>,
    /// The frame that the last chunk completed.
    whole: Vec<u8>,
}

impl FrameReader {
    /// For a connection's start. Bodies above `bytes_max` are refused.
    pub fn new(bytes_max: usize) -> FrameReader {
        FrameReader { bytes_max, fresh: true, failed: None, partial: Vec::new(), whole: Vec::new() }
    }

    /// Takes a chunk in. The frames that it completes, in order, and after them the error if the stream cannot be read on.
    pub fn feed<'a>(&'a mut self, chunk: &'a [u8]) -> Frames<'a> {
        self.release();
        if self.failed.is_some() {
            return Frames { whole: &[], rest: &[], error: self.failed };
        }
        let mut rest = chunk;
        if !self.partial.is_empty() {
            rest = self.fill(rest);
            if self.failed.is_some() {
                return Frames { whole: &[], rest: &[], error: self.failed };
            }
            if frame_len(&self.partial).is_none_or(|len| self.partial.len() < len) {
                return Frames { whole: &[], rest: &[], error: None };
            }
            std::mem::swap(&mut self.partial, &mut self.whole);
        }
        let (used, error) = self.scan(rest);
        if error.is_none() && used < rest.len() {
            self.keep(&rest[used..]);
        }
        self.failed = error;
        Frames { whole: &self.whole, rest: &rest[..used], error }
    }

    /// Gives back the memory of the frame that was assembled last, once it has been dealt with. The next `feed` does it too.
    pub fn release(&mut self) {
        self.whole.clear();
        self.whole.shrink_to(KEEP_BYTES);
    }

    /// Bytes held for a frame that is not whole, or that was handed out last.
    pub fn held_bytes(&self) -> usize {
        self.partial.capacity() + self.whole.capacity()
    }

    /// Id and length, header included, of the frame whose rest has not come, once its header has.
    pub fn unfinished(&self) -> Option<(u64, usize)> {
        let len = frame_len(&self.partial)?;
        Some((id_field(&self.partial), len))
    }

    /// Nothing of a frame is waiting for its rest.
    pub fn is_at_boundary(&self) -> bool {
        self.partial.is_empty()
    }

    /// Moves what the partial frame lacks out of `chunk`; what is left of it.
    fn fill<'c>(&mut self, mut chunk: &'c [u8]) -> &'c [u8] {
        loop {
            let target = match frame_len(&self.partial) {
                None => HEADER_BYTES,
                Some(len) => len,
            };
            let take = target.saturating_sub(self.partial.len()).min(chunk.len());
            let (now, later) = chunk.split_at(take);
            self.grow(take, target);
            self.partial.extend_from_slice(now);
            chunk = later;
            if self.check_start().is_some() || target > HEADER_BYTES || self.partial.len() < HEADER_BYTES {
                return chunk;
            }
            if frame_len(&self.partial) == Some(HEADER_BYTES) {
                return chunk;
            }
        }
    }

    /// Starts a partial frame with the tail of a chunk.
    fn keep(&mut self, tail: &[u8]) {
        self.partial.clear();
        self.grow(tail.len(), frame_len(tail).unwrap_or(HEADER_BYTES));
        self.partial.extend_from_slice(tail);
        self.check_start();
    }

    /// Room for `more` bytes, by doubling, and never beyond the frame.
    fn grow(&mut self, more: usize, target: usize) {
        let need = self.partial.len() + more;
        if need > self.partial.capacity() {
            let room = (self.partial.len() * 2).max(STEP_BYTES.min(target)).max(need).min(target.max(need));
            self.partial.reserve_exact(room - self.partial.len());
        }
    }

    /// Judges the partial frame as soon as its length field is there.
    fn check_start(&mut self) -> Option<FrameError> {
        if self.fresh {
            match greeting(&self.partial, self.bytes_max) {
                Greeting::Unclear => return None,
                Greeting::Native => self.fresh = false,
                Greeting::Foreign(foreign) => self.failed = Some(FrameError::Foreign(foreign)),
            }
        }
        if self.failed.is_none() {
            self.failed = too_large(&self.partial, self.bytes_max);
        }
        self.failed
    }

    /// Bytes of whole frames at the start of `rest`, and the error behind them.
    fn scan(&mut self, rest: &[u8]) -> (usize, Option<FrameError>) {
        if self.fresh {
            match greeting(rest, self.bytes_max) {
                Greeting::Unclear => return (0, None),
                Greeting::Native => self.fresh = false,
                Greeting::Foreign(foreign) => return (0, Some(FrameError::Foreign(foreign))),
            }
        }
        let mut at = 0;
        loop {
            let tail = &rest[at..];
            if let Some(error) = too_large(tail, self.bytes_max) {
                return (at, Some(error));
            }
            match frame_len(tail) {
                Some(len) if len <= tail.len() => at += len,
                _ => return (at, None),
            }
        }
    }
}

/// The length of the frame that starts here, its header included, as soon as the header is whole.
fn frame_len(bytes: &[u8]) -> Option<usize> {
    (bytes.len() >= HEADER_BYTES).then(|| HEADER_BYTES + length_field(bytes) as usize)
}

fn id_field(bytes: &[u8]) -> u64 {
    u64::from_le_bytes(bytes[8..HEADER_BYTES].try_into().expect("8 bytes"))
}

fn length_field(bytes: &[u8]) -> u32 {
    u32::from_le_bytes(bytes[..4].try_into().expect("4 bytes"))
}

/// Only a whole header is refused, so that the answer can carry the request's id.
fn too_large(bytes: &[u8], bytes_max: usize) -> Option<FrameError> {
    if bytes.len() < HEADER_BYTES || length_field(bytes) as usize <= bytes_max {
        return None;
    }
    Some(FrameError::TooLarge {
        id: id_field(bytes),
        announced: length_field(bytes),
        bytes_max: u32::try_from(bytes_max).unwrap_or(u32::MAX),
    })
}

/// The frames of one chunk.
#[derive(Clone, Debug)]
pub struct Frames<'a> {
    whole: &'a [u8],
    rest: &'a [u8],
    error: Option<FrameError>,
}

impl<'a> Iterator for Frames<'a> {
    type Item = Result<Frame<'a>, FrameError>;

    #[inline]
    fn next(&mut self) -> Option<Result<Frame<'a>, FrameError>> {
        if !self.whole.is_empty() {
            return Some(Ok(frame_at(std::mem::take(&mut self.whole))));
        }
        if let Some(len) = frame_len(self.rest) {
            let (frame, rest) = self.rest.split_at(len);
            self.rest = rest;
            return Some(Ok(frame_at(frame)));
        }
        self.error.take().map(Err)
    }
}

/// A frame's bytes, taken apart.
fn frame_at(bytes: &[u8]) -> Frame<'_> {
    let (header, body) = bytes.split_at(HEADER_BYTES);
    Frame {
        kind: u16::from_le_bytes([header[4], header[5]]),
        flags: u16::from_le_bytes([header[6], header[7]]),
        id: id_field(header),
        body,
    }
}

/// A header's bytes.
#[inline]
pub fn header(body_bytes: usize, kind: u16, flags: u16, id: u64) -> [u8; HEADER_BYTES] {
    let mut bytes = [0; HEADER_BYTES];
    bytes[..4].copy_from_slice(&u32::try_from(body_bytes).expect("a body fits into 4 GiB").to_le_bytes());
    bytes[4..6].copy_from_slice(&kind.to_le_bytes());
    bytes[6..8].copy_from_slice(&flags.to_le_bytes());
    bytes[8..].copy_from_slice(&id.to_le_bytes());
    bytes
}
