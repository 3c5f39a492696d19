//! The meta commands of memcached (doc/protocol.txt, 1.6 and later): mg, ms, md.

use super::Answer;
use super::in_order::{Decoded, Line, data, length, line, put_decimal};
use super::memcached_text::refusal;
use crate::plan::OpKind;

/// Appends a request. `ttl_ms` counts in whole seconds here; 0: for ever.
#[inline]
pub fn encode(out: &mut Vec<u8>, ttl_ms: u64, kind: OpKind, key: &[u8], value: &[u8]) {
    out.reserve(key.len() + value.len() + 64);
    match kind {
        OpKind::Get => out.extend_from_slice(b"mg "),
        OpKind::Put => out.extend_from_slice(b"ms "),
        OpKind::Del => out.extend_from_slice(b"md "),
    }
    out.extend_from_slice(key);
    match kind {
        OpKind::Get => out.extend_from_slice(b" v"),
        OpKind::Del => {}
        OpKind::Put => {
            out.push(b' ');
            put_decimal(out, value.len() as u64);
            if ttl_ms > 0 {
                out.extend_from_slice(b" T");
                put_decimal(out, ttl_ms.div_ceil(1000));
            }
            out.extend_from_slice(b"\r\n");
            out.extend_from_slice(value);
        }
    }
    out.extend_from_slice(b"\r\n");
}

/// Takes the first answer apart.
#[inline]
pub fn decode(input: &[u8], kind: OpKind) -> Decoded<'_> {
    let (line, used) = match line(input) {
        Line::Whole(line, used) => (line, used),
        Line::More => return Decoded::More,
        Line::TooLong => return Decoded::Broken("a line without an end"),
    };
    if let Some(rest) = line.strip_prefix(b"VA ") {
        return match (length(rest.split(|&byte| byte == b' ').next().unwrap_or(rest)), kind) {
            (Some(len), OpKind::Get) => data(input, used, len, b"\r\n"),
            (Some(_), _) => Decoded::Broken("a value where none was asked for"),
            (None, _) => Decoded::Broken("an impossible length"),
        };
    }
    // A server may put a space, or flags, behind the code.
    match (line.split(|&byte| byte == b' ').next().unwrap_or(line), kind) {
        (b"EN", OpKind::Get) => Decoded::Answer(Answer::Absent, used),
        (b"HD", OpKind::Put | OpKind::Del) | (b"NF", OpKind::Del) => Decoded::Answer(Answer::Done, used),
        (b"EN" | b"HD" | b"NF" | b"NS" | b"EX", _) => Decoded::Odd("an answer of another kind than its request", used),
        _ => match refusal(line) {
            Some(refusal) => Decoded::Answer(Answer::Refused(refusal), used),
            None => Decoded::Broken("no answer of memcached's"),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::super::Protocol;
    use super::super::in_order::tests::{check_cuts, check_noise, read_all};
    use super::*;

    const KINDS: [OpKind; 8] = [OpKind::Get, OpKind::Put, OpKind::Get, OpKind::Del, OpKind::Del, OpKind::Put, OpKind::Get, OpKind::Put];
    const STREAM: &[u8] = b"VA 5\r\na\r\nbc\r\nHD\r\nEN\r\nHD \r\nNF\r\nCLIENT_ERROR bad data chunk\r\nVA 0 t9\r\n\r\nNS\r\n";

    #[test]
    fn requests_are_what_the_protocol_says() {
        let mut out = Vec::new();
        encode(&mut out, 0, OpKind::Get, b"key", b"");
        encode(&mut out, 0, OpKind::Put, b"key", b"0123456789");
        encode(&mut out, 2000, OpKind::Put, b"key", b"");
        encode(&mut out, 0, OpKind::Del, b"key", b"");
        assert_eq!(out, b"mg key v\r\nms key 10\r\n0123456789\r\nms key 0 T2\r\n\r\nmd key\r\n");
    }

    #[test]
    fn answers_are_the_same_however_they_arrive() {
        let expected = ["value a\r\nbc", "Done", "Absent", "Done", "Done", "refused CLIENT_ERROR bad data chunk", "value ", "odd"];
        check_cuts(Protocol::MemcachedMeta, &KINDS, STREAM, &expected);
        check_noise(Protocol::MemcachedMeta, STREAM);
    }

    #[test]
    fn a_stream_that_is_none_breaks() {
        for bytes in [&b"+OK\r\n"[..], b"VA\r\n", b"VA x\r\n", b"VA 99999999\r\n", b"VA 1\r\nabc\r\n", b"\r\n"] {
            assert_eq!(read_all(Protocol::MemcachedMeta, &KINDS, &[bytes]), None, "{:?}", String::from_utf8_lossy(bytes));
        }
        assert_eq!(read_all(Protocol::MemcachedMeta, &[OpKind::Del], &[b"VA 1\r\na\r\n"]), None);
    }
}
