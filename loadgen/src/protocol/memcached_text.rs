//! The classic text protocol of memcached (doc/protocol.txt): get, set, delete.

use super::in_order::{Decoded, Line, data, length, line, name, put_decimal};
use super::{Answer, Refusal};
use crate::ledger::WriteEnd;
use crate::plan::OpKind;

/// Appends a request. `ttl_ms` counts in whole seconds here; 0: for ever.
#[inline]
pub fn encode(out: &mut Vec<u8>, ttl_ms: u64, kind: OpKind, key: &[u8], value: &[u8]) {
    out.reserve(key.len() + value.len() + 64);
    match kind {
        OpKind::Get => out.extend_from_slice(b"get "),
        OpKind::Put => out.extend_from_slice(b"set "),
        OpKind::Del => out.extend_from_slice(b"delete "),
    }
    out.extend_from_slice(key);
    if kind == OpKind::Put {
        out.extend_from_slice(b" 0 ");
        put_decimal(out, ttl_ms.div_ceil(1000));
        out.push(b' ');
        put_decimal(out, value.len() as u64);
        out.extend_from_slice(b"\r\n");
        out.extend_from_slice(value);
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
    if let Some(rest) = line.strip_prefix(b"VALUE ") {
        return match (value_len(rest), kind) {
            (Some(len), OpKind::Get) => data(input, used, len, b"\r\nEND\r\n"),
            (Some(_), _) => Decoded::Broken("a value where none was asked for"),
            (None, _) => Decoded::Broken("an impossible length"),
        };
    }
    match (line, kind) {
        (b"END", OpKind::Get) => Decoded::Answer(Answer::Absent, used),
        (b"STORED", OpKind::Put) | (b"DELETED" | b"NOT_FOUND", OpKind::Del) => Decoded::Answer(Answer::Done, used),
        (b"END" | b"STORED" | b"NOT_STORED" | b"EXISTS" | b"DELETED" | b"NOT_FOUND", _) => {
            Decoded::Odd("an answer of another kind than its request", used)
        }
        _ => match refusal(line) {
            Some(refusal) => Decoded::Answer(Answer::Refused(refusal), used),
            None => Decoded::Broken("no answer of memcached's"),
        },
    }
}

/// Of `KEY FLAGS BYTES` or `KEY FLAGS BYTES CAS`.
fn value_len(rest: &[u8]) -> Option<usize> {
    length(rest.split(|&byte| byte == b' ').nth(2)?)
}

/// `ERROR`, `CLIENT_ERROR …` and `SERVER_ERROR …`, which both dialects share.
pub(super) fn refusal(line: &[u8]) -> Option<Refusal<'_>> {
    let is_error = line == b"ERROR" || line.starts_with(b"CLIENT_ERROR ") || line.starts_with(b"SERVER_ERROR ");
    is_error.then(|| Refusal { name: name(line), end: WriteEnd::Failed, is_worth_retrying: false })
}

#[cfg(test)]
mod tests {
    use super::super::Protocol;
    use super::super::in_order::tests::{check_cuts, check_noise, read_all};
    use super::*;

    const KINDS: [OpKind; 8] = [OpKind::Get, OpKind::Put, OpKind::Get, OpKind::Del, OpKind::Del, OpKind::Put, OpKind::Get, OpKind::Put];
    const STREAM: &[u8] = b"VALUE key:1 0 6\r\nEND\r\nx\r\nEND\r\nSTORED\r\nEND\r\nDELETED\r\nNOT_FOUND\r\n\
        SERVER_ERROR out of memory storing object\r\nVALUE k 0 0 77\r\n\r\nEND\r\nEND\r\n";

    #[test]
    fn requests_are_what_the_protocol_says() {
        let mut out = Vec::new();
        encode(&mut out, 0, OpKind::Get, b"key", b"");
        encode(&mut out, 0, OpKind::Put, b"key", b"0123456789");
        encode(&mut out, 2000, OpKind::Put, b"key", b"");
        encode(&mut out, 0, OpKind::Del, b"key", b"");
        assert_eq!(out, b"get key\r\nset key 0 0 10\r\n0123456789\r\nset key 0 2 0\r\n\r\ndelete key\r\n");
    }

    #[test]
    fn answers_are_the_same_however_they_arrive() {
        let refused = "refused SERVER_ERROR out of memory storing object";
        let expected = ["value END\r\nx", "Done", "Absent", "Done", "Done", refused, "value ", "odd"];
        check_cuts(Protocol::MemcachedText, &KINDS, STREAM, &expected);
        check_noise(Protocol::MemcachedText, STREAM);
    }

    #[test]
    fn a_stream_that_is_none_breaks() {
        for bytes in [
            &b"+OK\r\n"[..],
            b"VALUE k 0\r\n",
            b"VALUE k 0 x\r\n",
            b"VALUE k 0 99999999\r\n",
            b"VALUE k 0 1\r\na\r\nVALUE k2 0 1\r\nb\r\nEND\r\n",
            b"\r\n",
        ] {
            assert_eq!(read_all(Protocol::MemcachedText, &KINDS, &[bytes]), None, "{:?}", String::from_utf8_lossy(bytes));
        }
        assert_eq!(read_all(Protocol::MemcachedText, &[OpKind::Put], &[b"VALUE k 0 1\r\na\r\nEND\r\n"]), None);
    }
}
