//! The native protocol, by the codec that the server uses too.

use super::{Answer, Common, Refusal};
use crate::ledger::WriteEnd;
use crate::plan::OpKind;
use ringkv::wire::command::{Command, Condition, Delete, ErrorCode, Put, Reply, Request, WriteOptions};
use ringkv::wire::frame::Frame;
use ringkv::wire::native::{decode_reply, encode_request};

/// Appends a request.
pub fn encode(out: &mut Vec<u8>, id: u64, common: &Common, kind: OpKind, key: &[u8], value: &[u8]) {
    let (condition, write) = (Condition::Always, WriteOptions::default());
    let command = match kind {
        OpKind::Get => Command::Get { key },
        OpKind::Put => Command::Put(Put { key, value, ttl_ms: common.ttl_ms, condition, write }),
        OpKind::Del => Command::Delete(Delete { key, condition, write }),
    };
    encode_request(out, id, &Request { deadline_ms: common.deadline_ms, namespace: common.namespace, levels: common.levels, command });
}

/// Takes an answer apart.
///
/// # Errors
/// What is wrong with it, where it cannot be an answer to a request of ours.
pub fn decode<'a>(frame: &Frame<'a>, kind: OpKind) -> Result<Answer<'a>, &'static str> {
    match (decode_reply(frame.kind, frame.body).map_err(|_| "an answer whose body is malformed")?, kind) {
        (Reply::Value(value), OpKind::Get) => Ok(Answer::Value(value.value)),
        (Reply::Absent, OpKind::Get) => Ok(Answer::Absent),
        (Reply::Done { .. }, OpKind::Put | OpKind::Del) => Ok(Answer::Done),
        (Reply::Error(error), _) => Ok(Answer::Refused(refusal(error.code))),
        _ => Err("an answer of another kind than its request"),
    }
}

/// What a frame says that answers no request.
pub fn stray(frame: &Frame<'_>) -> String {
    match decode_reply(frame.kind, frame.body) {
        Ok(Reply::Error(error)) => format!("{}: {}", error_name(error.code), error.message),
        _ => format!("an answer to no request (id {:#x}, kind {:#x})", frame.id, frame.kind),
    }
}

fn refusal(code: ErrorCode) -> Refusal<'static> {
    let end = match code {
        ErrorCode::Unknown | ErrorCode::Stopped | ErrorCode::ShuttingDown => WriteEnd::Unknown,
        _ => WriteEnd::Failed,
    };
    let is_worth_retrying = matches!(code, ErrorCode::Overloaded | ErrorCode::Unavailable | ErrorCode::DeadlinePassed);
    Refusal { name: error_name(code), end, is_worth_retrying }
}

fn error_name(code: ErrorCode) -> &'static str {
    match code {
        ErrorCode::BadRequest => "bad request",
        ErrorCode::TooLarge => "too large",
        ErrorCode::UnknownKind => "unknown kind",
        ErrorCode::UnsupportedVersion => "unsupported version",
        ErrorCode::Unauthorized => "unauthorized",
        ErrorCode::NoSuchNamespace => "no such namespace",
        ErrorCode::Overloaded => "overloaded",
        ErrorCode::DiskFull => "disk full",
        ErrorCode::Unavailable => "unavailable",
        ErrorCode::Unknown => "unknown outcome",
        ErrorCode::Stopped => "stopped",
        ErrorCode::DeadlinePassed => "deadline passed",
        ErrorCode::Failed => "failed",
        ErrorCode::ShuttingDown => "shutting down",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::Protocol;
    use ringkv::wire::frame::FrameReader;
    use ringkv::wire::native::{Form, decode_request};

    #[test]
    fn requests_name_the_levels_that_were_asked_for() {
        for text in ["one", "quorum", "all", "one,all", "2"] {
            let levels = text.parse().unwrap();
            let common = Common { protocol: Protocol::Native, deadline_ms: 1, namespace: 1, levels, ttl_ms: 0 };
            for kind in OpKind::ALL {
                let mut bytes = Vec::new();
                encode(&mut bytes, 7, &common, kind, b"key", b"value");
                let mut reader = FrameReader::new(1 << 16);
                let frame = reader.feed(&bytes).next().unwrap().unwrap();
                assert_eq!(decode_request(Form::from(&frame), frame.body).unwrap().levels, levels, "{text}");
            }
        }
    }
}
