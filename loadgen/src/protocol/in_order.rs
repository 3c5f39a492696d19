//! Answers that come in the order of their requests, cut out of a stream that arrives in chunks; and what their codecs share.
//!
//! An answer that lies whole in a chunk is used where it lies; only the beginning of one that does not is kept. Nothing grows by an
//! announced length: a value's is bounded, a line's is too, and only bytes that have arrived are kept.

use super::{Answer, Protocol, memcached_meta, memcached_text, resp};
use crate::plan::OpKind;

/// Of a chunk, what is tried first to complete the beginning of an answer.
const JOIN_BYTES: usize = 256;
/// A line longer than this is none.
const LINE_BYTES_MAX: usize = 4096;
/// An error's name longer than this is cut.
const NAME_BYTES_MAX: usize = 64;

/// What the bytes begin with. Lengths are of the whole answer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Decoded<'a> {
    /// The answer is not all there.
    More,
    Answer(Answer<'a>, usize),
    /// Whole, but not an answer to this kind of request.
    Odd(&'static str, usize),
    /// No telling where it ends.
    Broken(&'static str),
}

/// A connection's reading end.
pub struct InOrder {
    protocol: Protocol,
    /// The beginning of an answer whose rest has not arrived.
    tail: Vec<u8>,
}

impl InOrder {
    pub fn new(protocol: Protocol) -> InOrder {
        InOrder { protocol, tail: Vec::new() }
    }

    pub fn protocol(&self) -> Protocol {
        self.protocol
    }

    /// Takes a chunk in and hands what is there to `take`, which says how many bytes the first answer has; 0: more must arrive. `take` has
    /// to say the same however much follows the answer.
    ///
    /// # Errors
    /// The first of `take`'s.
    pub fn feed<E>(&mut self, chunk: &[u8], mut take: impl FnMut(&[u8]) -> Result<usize, E>) -> Result<(), E> {
        let mut at = 0;
        // Only the answer that crosses the chunks is put together, in steps that double, so that a long one costs no more than its length.
        while !self.tail.is_empty() {
            if at == chunk.len() {
                return Ok(());
            }
            let (before, step) = (self.tail.len(), (chunk.len() - at).min(self.tail.len().max(JOIN_BYTES)));
            self.tail.extend_from_slice(&chunk[at..at + step]);
            at += step;
            let used = take(&self.tail)?;
            if used > 0 {
                debug_assert!(used > before, "the answer was whole before");
                at -= self.tail.len() - used;
                self.tail.clear();
            }
        }
        while at < chunk.len() {
            match take(&chunk[at..])? {
                0 => break,
                used => at += used,
            }
        }
        self.tail.extend_from_slice(&chunk[at..]);
        Ok(())
    }
}

/// Takes the first answer apart, which is one to a request of this kind.
#[inline]
pub fn decode(protocol: Protocol, input: &[u8], kind: OpKind) -> Decoded<'_> {
    match protocol {
        Protocol::Resp => resp::decode(input, kind),
        Protocol::RespWait => resp::decode_and_wait(input, kind),
        Protocol::MemcachedText => memcached_text::decode(input, kind),
        Protocol::MemcachedMeta => memcached_meta::decode(input, kind),
        Protocol::Native => Decoded::Broken("the native protocol has frames"),
    }
}

/// A line up to its CR LF.
pub(super) enum Line<'a> {
    More,
    TooLong,
    /// Without the CR LF; the length counts it.
    Whole(&'a [u8], usize),
}

/// The first line.
#[inline]
pub(super) fn line(input: &[u8]) -> Line<'_> {
    match input.iter().position(|&byte| byte == b'\n') {
        Some(at) if at > LINE_BYTES_MAX => Line::TooLong,
        Some(at) => Line::Whole(input[..at].strip_suffix(b"\r").unwrap_or(&input[..at]), at + 1),
        None if input.len() > LINE_BYTES_MAX => Line::TooLong,
        None => Line::More,
    }
}

/// A decimal length up to the largest value; None if it is none.
#[inline]
pub(super) fn length(digits: &[u8]) -> Option<usize> {
    if digits.is_empty() || digits.len() > 9 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let number = digits.iter().fold(0usize, |sum, digit| sum * 10 + usize::from(digit - b'0'));
    (number <= ringkv::limits::VALUE_BYTES_MAX).then_some(number)
}

/// `len` bytes of data from `at` on and the `end` after them.
#[inline]
pub(super) fn data<'a>(input: &'a [u8], at: usize, len: usize, end: &[u8]) -> Decoded<'a> {
    match input.get(at..at + len + end.len()) {
        None => Decoded::More,
        Some(piece) if &piece[len..] == end => Decoded::Answer(Answer::Value(&piece[..len]), at + len + end.len()),
        Some(_) => Decoded::Broken("a value does not end where it should"),
    }
}

/// A server's own words as the name of an error.
pub fn name(words: &[u8]) -> &str {
    let words = &words[..words.len().min(NAME_BYTES_MAX)];
    match str::from_utf8(words) {
        Ok(name) => name,
        Err(error) => str::from_utf8(&words[..error.valid_up_to()]).unwrap_or(""),
    }
}

/// Appends a decimal number.
#[inline]
pub(super) fn put_decimal(out: &mut Vec<u8>, number: u64) {
    let (mut digits, mut at, mut rest) = ([0u8; 20], 20, number);
    loop {
        at -= 1;
        digits[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// What a stream of answers says, however it is cut: `None` where a stream breaks.
    pub(in crate::protocol) fn read_all(protocol: Protocol, kinds: &[OpKind], chunks: &[&[u8]]) -> Option<Vec<String>> {
        let (mut reader, mut kinds, mut told) = (InOrder::new(protocol), kinds.iter(), Vec::new());
        let mut next = kinds.next();
        for chunk in chunks {
            let fed = reader.feed(chunk, |input| {
                let kind = *next.ok_or(())?;
                let used = match decode(protocol, input, kind) {
                    Decoded::More => return Ok(0),
                    Decoded::Answer(Answer::Value(value), used) => {
                        told.push(format!("value {}", String::from_utf8_lossy(value)));
                        used
                    }
                    Decoded::Answer(Answer::Refused(refusal), used) => {
                        told.push(format!("refused {}", refusal.name));
                        used
                    }
                    Decoded::Answer(answer, used) => {
                        told.push(format!("{answer:?}"));
                        used
                    }
                    Decoded::Odd(_, used) => {
                        told.push("odd".to_owned());
                        used
                    }
                    Decoded::Broken(_) => return Err(()),
                };
                next = kinds.next();
                Ok(used)
            });
            if fed.is_err() {
                return None;
            }
        }
        assert!(reader.tail.len() <= chunks.iter().map(|chunk| chunk.len()).sum());
        Some(told)
    }

    /// Answers are the same whole, cut in two at any byte, and byte by byte; and every true prefix is only fewer of them.
    pub(in crate::protocol) fn check_cuts(protocol: Protocol, kinds: &[OpKind], stream: &[u8], expected: &[&str]) {
        assert_eq!(read_all(protocol, kinds, &[stream]).unwrap(), expected);
        for at in 0..=stream.len() {
            let (first, second) = stream.split_at(at);
            assert_eq!(read_all(protocol, kinds, &[first, second]).unwrap(), expected, "cut at {at}");
            let fewer = read_all(protocol, kinds, &[first]).unwrap();
            assert!(expected.starts_with(&fewer.iter().map(String::as_str).collect::<Vec<_>>()), "truncated at {at}");
            assert!(at == stream.len() || fewer.len() < expected.len(), "truncated at {at}");
        }
        let bytes: Vec<&[u8]> = stream.chunks(1).collect();
        assert_eq!(read_all(protocol, kinds, &bytes).unwrap(), expected, "byte by byte");
    }

    /// Any bytes are an answer, too few, or an error; never a panic, and never more than there is.
    pub(in crate::protocol) fn check_noise(protocol: Protocol, stream: &[u8]) {
        let mut random = ringkv::base::prng::Prng::new(7);
        for round in 0..20_000 {
            let mut bytes = stream.to_vec();
            for _ in 0..1 + random.below(4) {
                let at = random.below(bytes.len() as u64) as usize;
                bytes[at] = if round % 2 == 0 { random.next_u64() as u8 } else { stream[random.below(stream.len() as u64) as usize] };
            }
            bytes.truncate(random.below(bytes.len() as u64 + 1) as usize);
            for kind in OpKind::ALL {
                match decode(protocol, &bytes, kind) {
                    Decoded::Answer(_, used) | Decoded::Odd(_, used) => assert!(used > 0 && used <= bytes.len()),
                    Decoded::More | Decoded::Broken(_) => {}
                }
            }
        }
    }

    #[test]
    fn long_answers_in_small_chunks_leave_what_follows_in_place() {
        let (mut stream, mut expected) = (Vec::new(), Vec::new());
        for len in [0, 100_000, 1, 255, 256, 257, 5000] {
            let value = "v".repeat(len);
            resp::put_bulk(&mut stream, value.as_bytes());
            expected.push(format!("value {value}"));
        }
        for size in [1, 7, 255, 256, 1000, 65_536, stream.len()] {
            let chunks: Vec<&[u8]> = stream.chunks(size).collect();
            assert_eq!(read_all(Protocol::Resp, &[OpKind::Get; 7], &chunks).unwrap(), expected, "chunks of {size}");
        }
    }

    #[test]
    fn numbers_and_lines() {
        let mut out = Vec::new();
        [0, 9, 10, 1234, u64::MAX].iter().for_each(|&number| put_decimal(&mut out, number));
        assert_eq!(out, b"09101234".iter().chain(b"18446744073709551615").copied().collect::<Vec<u8>>());
        assert_eq!((length(b"0"), length(b"16777216"), length(b"16777217")), (Some(0), Some(16 << 20), None));
        assert!([&b""[..], b"-1", b"1a", b"99999999999999999999"].iter().all(|digits| length(digits).is_none()));
        assert!(matches!(line(&[b'x'; LINE_BYTES_MAX + 1]), Line::TooLong));
        assert!(matches!(line(&[b'x'; LINE_BYTES_MAX]), Line::More));
        assert_eq!(name(&[b'e'; 100]).len(), NAME_BYTES_MAX);
        assert_eq!(name(b"ab\xff"), "ab");
    }
}
