//! RESP2 (the Redis serialization protocol, redis.io/docs/reference/protocol-spec): GET, SET with PX, DEL.

use super::in_order::{Decoded, Line, data, length, line, name, put_decimal};
use super::{Answer, Refusal};
use crate::ledger::WriteEnd;
use crate::plan::OpKind;

/// Appends a request. `ttl_ms` 0: for ever.
#[inline]
pub fn encode(out: &mut Vec<u8>, ttl_ms: u64, kind: OpKind, key: &[u8], value: &[u8]) {
    out.reserve(key.len() + value.len() + 96);
    match kind {
        OpKind::Get => out.extend_from_slice(b"*2\r\n$3\r\nGET\r\n"),
        OpKind::Del => out.extend_from_slice(b"*2\r\n$3\r\nDEL\r\n"),
        OpKind::Put if ttl_ms > 0 => out.extend_from_slice(b"*5\r\n$3\r\nSET\r\n"),
        OpKind::Put => out.extend_from_slice(b"*3\r\n$3\r\nSET\r\n"),
    }
    put_bulk(out, key);
    if kind == OpKind::Put {
        put_bulk(out, value);
        if ttl_ms > 0 {
            out.extend_from_slice(b"$2\r\nPX\r\n");
            let digits = ttl_ms.ilog10() + 1;
            out.push(b'$');
            put_decimal(out, u64::from(digits));
            out.extend_from_slice(b"\r\n");
            put_decimal(out, ttl_ms);
            out.extend_from_slice(b"\r\n");
        }
    }
}

/// Appends a request, and behind a write that one replica has to have it, however long that takes.
pub fn encode_and_wait(out: &mut Vec<u8>, ttl_ms: u64, kind: OpKind, key: &[u8], value: &[u8]) {
    encode(out, ttl_ms, kind, key, value);
    if kind != OpKind::Get {
        out.extend_from_slice(b"*3\r\n$4\r\nWAIT\r\n$1\r\n1\r\n$1\r\n0\r\n");
    }
}

/// Appends a bulk string.
#[inline]
pub fn put_bulk(out: &mut Vec<u8>, bytes: &[u8]) {
    out.push(b'$');
    put_decimal(out, bytes.len() as u64);
    out.extend_from_slice(b"\r\n");
    out.extend_from_slice(bytes);
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
    match line.split_first() {
        Some((b'$', b"-1")) => answer(Answer::Absent, kind == OpKind::Get, used),
        Some((b'$', digits)) => match length(digits) {
            None => Decoded::Broken("an impossible length"),
            Some(len) => match data(input, used, len, b"\r\n") {
                Decoded::Answer(value, used) => answer(value, kind == OpKind::Get, used),
                other => other,
            },
        },
        Some((b'+', b"OK")) => answer(Answer::Done, kind == OpKind::Put, used),
        Some((b':', _)) => answer(Answer::Done, kind == OpKind::Del, used),
        Some((b'+', _)) => Decoded::Odd("a status other than OK", used),
        Some((b'-', words)) => Decoded::Answer(Answer::Refused(refusal(words)), used),
        _ => Decoded::Broken("no answer of RESP2 to a request of ours"),
    }
}

/// Takes the answers to a request and to the WAIT behind it apart, as one.
pub fn decode_and_wait(input: &[u8], kind: OpKind) -> Decoded<'_> {
    let first = decode(input, kind);
    let (Decoded::Answer(_, used) | Decoded::Odd(_, used)) = first else { return first };
    if kind == OpKind::Get {
        return first;
    }
    let (line, waited) = match line(&input[used..]) {
        Line::Whole(line, waited) => (line, waited),
        Line::More => return Decoded::More,
        Line::TooLong => return Decoded::Broken("a line without an end"),
    };
    let used = used + waited;
    match (first, line) {
        (Decoded::Answer(Answer::Done, _), b":0") => {
            Decoded::Answer(Answer::Refused(Refusal { name: "no replica", end: WriteEnd::Unknown, is_worth_retrying: false }), used)
        }
        (Decoded::Answer(answer, _), [b':', ..]) => Decoded::Answer(answer, used),
        (Decoded::Odd(what, _), [b':', ..]) => Decoded::Odd(what, used),
        _ => Decoded::Broken("no answer of RESP2 to WAIT"),
    }
}

fn answer(answer: Answer<'_>, fits: bool, used: usize) -> Decoded<'_> {
    if fits { Decoded::Answer(answer, used) } else { Decoded::Odd("an answer of another kind than its request", used) }
}

/// An error's first word is its kind.
fn refusal(words: &[u8]) -> Refusal<'_> {
    let name = name(words.split(|&byte| byte == b' ').next().unwrap_or(words));
    Refusal { name, end: WriteEnd::Failed, is_worth_retrying: matches!(name, "LOADING" | "BUSY" | "TRYAGAIN" | "MASTERDOWN") }
}

#[cfg(test)]
mod tests {
    use super::super::Protocol;
    use super::super::in_order::tests::{check_cuts, check_noise, read_all};
    use super::*;

    const KINDS: [OpKind; 8] = [OpKind::Get, OpKind::Put, OpKind::Get, OpKind::Del, OpKind::Put, OpKind::Get, OpKind::Get, OpKind::Put];
    const STREAM: &[u8] = b"$5\r\na\r\nbc\r\n+OK\r\n$-1\r\n:1\r\n-OOM command not allowed\r\n$0\r\n\r\n+OK\r\n:0\r\n";

    #[test]
    fn requests_are_what_the_specification_says() {
        let mut out = Vec::new();
        encode(&mut out, 0, OpKind::Get, b"key", b"");
        assert_eq!(out, b"*2\r\n$3\r\nGET\r\n$3\r\nkey\r\n");
        out.clear();
        encode(&mut out, 0, OpKind::Put, b"key", b"0123456789");
        assert_eq!(out, b"*3\r\n$3\r\nSET\r\n$3\r\nkey\r\n$10\r\n0123456789\r\n");
        out.clear();
        encode(&mut out, 1500, OpKind::Put, b"k", b"");
        encode(&mut out, 9, OpKind::Del, b"k", b"");
        let expected = b"*5\r\n$3\r\nSET\r\n$1\r\nk\r\n$0\r\n\r\n$2\r\nPX\r\n$4\r\n1500\r\n*2\r\n$3\r\nDEL\r\n$1\r\nk\r\n";
        assert_eq!(out, expected);
    }

    #[test]
    fn answers_are_the_same_however_they_arrive() {
        let expected = ["value a\r\nbc", "Done", "Absent", "Done", "refused OOM", "value ", "odd", "odd"];
        check_cuts(Protocol::Resp, &KINDS, STREAM, &expected);
        check_noise(Protocol::Resp, STREAM);
    }

    #[test]
    fn a_write_is_answered_when_a_replica_has_it() {
        let mut out = Vec::new();
        encode_and_wait(&mut out, 0, OpKind::Get, b"k", b"");
        encode_and_wait(&mut out, 0, OpKind::Del, b"k", b"");
        let expected = b"*2\r\n$3\r\nGET\r\n$1\r\nk\r\n*2\r\n$3\r\nDEL\r\n$1\r\nk\r\n*3\r\n$4\r\nWAIT\r\n$1\r\n1\r\n$1\r\n0\r\n";
        assert_eq!(out, expected);
        let kinds = [OpKind::Put, OpKind::Get, OpKind::Del, OpKind::Put, OpKind::Put, OpKind::Get];
        let stream = b"+OK\r\n:2\r\n$-1\r\n:1\r\n:1\r\n+OK\r\n:0\r\n-OOM no\r\n:2\r\n$0\r\n\r\n";
        let expected = ["Done", "Absent", "Done", "refused no replica", "refused OOM", "value "];
        check_cuts(Protocol::RespWait, &kinds, stream, &expected);
        check_noise(Protocol::RespWait, stream);
        assert_eq!(read_all(Protocol::RespWait, &kinds, &[b"+OK\r\n+OK\r\n"]), None, "no count");
    }

    #[test]
    fn a_stream_that_is_none_breaks() {
        for bytes in [&b"HTTP/1.1 400\r\n"[..], b"$x\r\n", b"$5\r\nabcdefg", b"$-2\r\n", b"$99999999\r\n", b"*1\r\n$1\r\na\r\n", b"\r\n"] {
            assert_eq!(read_all(Protocol::Resp, &KINDS, &[bytes]), None, "{:?}", String::from_utf8_lossy(bytes));
        }
        assert_eq!(read_all(Protocol::Resp, &[OpKind::Put], &[b"+OK\r\n+OK\r\n"]), None, "an answer to no request");
        let endless = vec![b'-'; 1 << 16];
        assert_eq!(read_all(Protocol::Resp, &KINDS, &[&endless]), None);
    }
}
