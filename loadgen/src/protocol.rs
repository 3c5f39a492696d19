//! What the generator says and hears over the native protocol.

use crate::ledger::WriteEnd;
use crate::plan::OpKind;
use ringkv::base::record::{core_of, token_of, vnode_of};
use ringkv::limits::FRAME_BYTES_MAX;
use ringkv::wire::command::{CORE_ANY, PROTOCOL_VERSION, PROTOCOL_VERSION_MIN};
use ringkv::wire::command::{Command, Condition, Delete, ErrorCode, Hello, HelloOk, Put, Reply, Request, WriteOptions};
use ringkv::wire::frame::{Frame, FrameReader};
use ringkv::wire::native::{decode_reply, encode_request};
use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

/// A hello must be answered within this.
const HELLO_TIMEOUT: Duration = Duration::from_secs(5);

/// What a client must know to find a key's core.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Topology {
    pub cores: u16,
    pub vnodes: u32,
}

impl Topology {
    /// The data core that owns a key.
    #[inline]
    pub fn core_of(&self, key: &[u8]) -> u16 {
        if self.cores <= 1 { 0 } else { core_of(vnode_of(token_of(key), self.vnodes), self.cores) }
    }
}

/// A connection that has been greeted.
pub struct Greeted {
    pub stream: TcpStream,
    pub reader: FrameReader,
    pub core: u16,
    pub topology: Topology,
}

/// Connects and says hello; blocking. `core` None takes any.
///
/// # Errors
/// The system's, or `InvalidData` with what the server said.
pub fn connect(target: &str, core: Option<u16>, credential: &[u8]) -> io::Result<Greeted> {
    let mut result = Err(io::Error::new(io::ErrorKind::NotFound, "the host has no address"));
    for address in target.to_socket_addrs()? {
        result = TcpStream::connect_timeout(&address, HELLO_TIMEOUT);
        if result.is_ok() {
            break;
        }
    }
    let mut stream = result?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(HELLO_TIMEOUT))?;
    let core = core.unwrap_or(CORE_ANY);
    let hello = Hello { version_min: PROTOCOL_VERSION_MIN, version_max: PROTOCOL_VERSION, core, credential, client_name: "loadgen" };
    let mut out = Vec::new();
    encode_request(&mut out, 0, &Request { deadline_ms: 0, namespace: 0, command: Command::Hello(hello) });
    stream.write_all(&out)?;
    let mut reader = FrameReader::new(FRAME_BYTES_MAX);
    let mut chunk = [0; 16 * 1024];
    loop {
        let len = stream.read(&mut chunk)?;
        if len == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the server closed the connection in the hello"));
        }
        if let Some(frame) = reader.feed(&chunk[..len]).next() {
            let frame = frame.map_err(|error| invalid(format!("the answer to the hello is no frame: {error:?}")))?;
            let (core, topology) = read_hello(&frame)?;
            stream.set_nonblocking(true)?;
            return Ok(Greeted { stream, reader, core, topology });
        }
    }
}

fn invalid(text: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}

fn read_hello(frame: &Frame<'_>) -> io::Result<(u16, Topology)> {
    match decode_reply(frame.kind, frame.body) {
        Ok(Reply::HelloOk(HelloOk { core, cores, vnodes, .. })) if cores > 0 && vnodes.is_power_of_two() && vnodes > 1 => {
            Ok((core, Topology { cores, vnodes }))
        }
        Ok(Reply::Error(error)) => Err(invalid(format!("the server refused the hello: {:?}: {}", error.code, error.message))),
        other => Err(invalid(format!("the answer to the hello makes no sense: {other:?}"))),
    }
}

/// Appends a request.
pub fn encode(out: &mut Vec<u8>, id: u64, common: &Common, kind: OpKind, key: &[u8], value: &[u8]) {
    let (condition, write) = (Condition::Always, WriteOptions::default());
    let command = match kind {
        OpKind::Get => Command::Get { key },
        OpKind::Put => Command::Put(Put { key, value, ttl_ms: common.ttl_ms, condition, write }),
        OpKind::Del => Command::Delete(Delete { key, condition, write }),
    };
    encode_request(out, id, &Request { deadline_ms: common.deadline_ms, namespace: common.namespace, command });
}

/// What all requests of a run share.
#[derive(Clone, Copy, Debug)]
pub struct Common {
    pub deadline_ms: u32,
    pub namespace: u32,
    pub ttl_ms: u64,
}

/// An answer, as far as the generator cares.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Answer<'a> {
    Value(&'a [u8]),
    Absent,
    Done,
    /// Refused, or unknown.
    Error(ErrorCode),
}

/// Takes an answer apart.
///
/// # Errors
/// What is wrong with it, where it cannot be an answer to a request of ours.
pub fn decode<'a>(frame: &Frame<'a>, kind: OpKind) -> Result<Answer<'a>, String> {
    match (decode_reply(frame.kind, frame.body).map_err(|error| error.to_string())?, kind) {
        (Reply::Value(value), OpKind::Get) => Ok(Answer::Value(value.value)),
        (Reply::Absent, OpKind::Get) => Ok(Answer::Absent),
        (Reply::Done { .. }, OpKind::Put | OpKind::Del) => Ok(Answer::Done),
        (Reply::Error(error), _) => Ok(Answer::Error(error.code)),
        _ => Err(format!("an answer of kind {:#x} to a {}", frame.kind, kind.name())),
    }
}

/// Whether a write that was answered with this error may be in.
pub fn write_end(code: ErrorCode) -> WriteEnd {
    match code {
        ErrorCode::Unknown | ErrorCode::Stopped | ErrorCode::ShuttingDown => WriteEnd::Unknown,
        _ => WriteEnd::Failed,
    }
}

/// Trying again may help, and the request surely did nothing.
pub fn is_worth_retrying(code: ErrorCode) -> bool {
    matches!(code, ErrorCode::Overloaded | ErrorCode::Unavailable | ErrorCode::DeadlinePassed)
}

/// For the table of errors.
pub fn error_name(code: ErrorCode) -> &'static str {
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
