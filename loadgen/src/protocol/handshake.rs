//! Connecting: blocking, within a time limit, until the server has said what it is.

use super::in_order::{InOrder, Line, length, line, name};
use super::{Greeted, Protocol, Reader, Target, Topology, resp};
use ringkv::limits::FRAME_BYTES_MAX;
use ringkv::wire::command::{CORE_ANY, PROTOCOL_VERSION, PROTOCOL_VERSION_MIN};
use ringkv::wire::command::{Command, Hello, HelloOk, HelloWants, LevelsAsked, Reply, Request};
use ringkv::wire::frame::{Frame, FrameReader};
use ringkv::wire::native::{decode_reply, encode_request};
use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

/// A hello must be answered within this.
const HELLO_TIMEOUT: Duration = Duration::from_secs(5);
/// Where there is another node to go to.
const HELLO_TIMEOUT_CLUSTER: Duration = Duration::from_secs(1);
/// A hello's answer is shorter than this.
const HELLO_BYTES_MAX: usize = 64 * 1024;

/// Connects to the first address that answers, from the one with the number `first` on, and says hello; blocking. `core` None takes any; it
/// means nothing to servers of other protocols.
///
/// # Errors
/// The system's, or `InvalidData` with what the server said; of the last address that was tried.
pub fn connect(target: &Target, first: usize, core: Option<u16>, credential: &[u8]) -> io::Result<Greeted> {
    let mut result = Err(io::Error::new(io::ErrorKind::NotFound, "no address"));
    let timeout = if target.is_cluster() { HELLO_TIMEOUT_CLUSTER } else { HELLO_TIMEOUT };
    for at in 0..target.addresses.len() {
        result = connect_to(target, (first + at) % target.addresses.len(), core, credential, timeout);
        if result.is_ok() {
            break;
        }
    }
    result
}

/// Connects to one of the target's addresses; connecting, and each word of the server's, may take so long.
///
/// # Errors
/// As `connect`.
pub fn connect_to(target: &Target, at: usize, core: Option<u16>, credential: &[u8], timeout: Duration) -> io::Result<Greeted> {
    let mut result = Err(io::Error::new(io::ErrorKind::NotFound, "the host has no address"));
    for address in target.addresses[at].to_socket_addrs()? {
        result = TcpStream::connect_timeout(&address, timeout);
        if result.is_ok() {
            break;
        }
    }
    let mut stream = result?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(timeout))?;
    let one_core = Topology { cores: 1, vnodes: 1 };
    let (reader, core, topology, server) = match target.protocol {
        Protocol::Native => greet_native(&mut stream, core, credential)?,
        Protocol::Resp | Protocol::RespWait => (in_order(target), 0, one_core, greet_resp(&mut stream, credential)?),
        Protocol::MemcachedText | Protocol::MemcachedMeta => (in_order(target), 0, one_core, greet_memcached(&mut stream)?),
    };
    stream.set_nonblocking(true)?;
    Ok(Greeted { stream, reader, core, address: at, topology, server })
}

fn in_order(target: &Target) -> Reader {
    Reader::InOrder(InOrder::new(target.protocol))
}

fn invalid(text: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}

fn read_some(stream: &mut TcpStream, chunk: &mut [u8]) -> io::Result<usize> {
    match stream.read(chunk)? {
        0 => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the server closed the connection in the hello")),
        len => Ok(len),
    }
}

type GreetedNative = (Reader, u16, Topology, String);

fn greet_native(stream: &mut TcpStream, core: Option<u16>, credential: &[u8]) -> io::Result<GreetedNative> {
    let core = core.unwrap_or(CORE_ANY);
    let hello = Hello {
        version_min: PROTOCOL_VERSION_MIN,
        version_max: PROTOCOL_VERSION,
        core,
        credential,
        client_name: "loadgen",
        wants: HelloWants::default(),
    };
    let mut out = Vec::new();
    encode_request(&mut out, 0, &Request { deadline_ms: 0, namespace: 0, levels: LevelsAsked::default(), command: Command::Hello(hello) });
    stream.write_all(&out)?;
    let mut reader = FrameReader::new(FRAME_BYTES_MAX);
    let mut chunk = [0; 16 * 1024];
    loop {
        let len = read_some(stream, &mut chunk)?;
        if let Some(frame) = reader.feed(&chunk[..len]).next() {
            let frame = frame.map_err(|error| invalid(format!("the answer to the hello is no frame: {error:?}")))?;
            let (core, topology) = read_hello(&frame)?;
            let server = format!("ringkv, {} cores", topology.cores);
            return Ok((Reader::Native(reader), core, topology, server));
        }
    }
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

/// AUTH where there is a credential, then INFO for the version.
fn greet_resp(stream: &mut TcpStream, credential: &[u8]) -> io::Result<String> {
    let mut out = Vec::new();
    if !credential.is_empty() {
        out.extend_from_slice(b"*2\r\n$4\r\nAUTH\r\n");
        resp::put_bulk(&mut out, credential);
        let answer = ask(stream, &out, resp_len)?;
        if answer != b"+OK\r\n" {
            return Err(invalid(format!("the server refused the credential: {}", name(&answer).trim_end())));
        }
    }
    let info = ask(stream, b"*2\r\n$4\r\nINFO\r\n$6\r\nserver\r\n", resp_len)?;
    if info.starts_with(b"-NOAUTH") || info.starts_with(b"-NOPERM") {
        return Err(invalid(format!("the server wants a --secret-file: {}", name(&info).trim_end())));
    }
    // Not everything that speaks RESP has an INFO.
    let version = info.split(|&byte| byte == b'\n').find_map(|line| line.strip_prefix(b"redis_version:"));
    Ok(version.map_or("speaks RESP2".into(), |version| format!("redis {}", name(version).trim_end())))
}

/// The length of a status, an error or a bulk string.
fn resp_len(input: &[u8]) -> Result<Option<usize>, &'static str> {
    match line(input) {
        Line::More => Ok(None),
        Line::TooLong => Err("a line without an end"),
        Line::Whole([b'+' | b'-', ..], used) => Ok(Some(used)),
        Line::Whole([b'$', digits @ ..], used) => {
            let len = length(digits).ok_or("an impossible length")?;
            Ok(Some(used + len + 2))
        }
        Line::Whole(..) => Err("no answer of RESP2"),
    }
}

fn greet_memcached(stream: &mut TcpStream) -> io::Result<String> {
    let answer = ask(stream, b"version\r\n", |input| match line(input) {
        Line::More => Ok(None),
        Line::TooLong => Err("a line without an end"),
        Line::Whole(_, used) => Ok(Some(used)),
    })?;
    let version = answer.strip_prefix(b"VERSION ").ok_or_else(|| invalid(format!("this is no memcached: {:?}", name(&answer))))?;
    Ok(format!("memcached {}", name(version).trim_end()))
}

/// Sends a request and reads its one answer, whose length `len_of` finds.
fn ask(stream: &mut TcpStream, request: &[u8], len_of: impl Fn(&[u8]) -> Result<Option<usize>, &'static str>) -> io::Result<Vec<u8>> {
    stream.write_all(request)?;
    let (mut answer, mut chunk) = (Vec::new(), [0; 4096]);
    loop {
        let len = read_some(stream, &mut chunk)?;
        answer.extend_from_slice(&chunk[..len]);
        let sense = |reason: &str| invalid(format!("the answer to the hello makes no sense: {reason}: {:?}", name(&answer)));
        match len_of(&answer).map_err(sense)? {
            Some(len) if answer.len() == len => return Ok(answer),
            Some(len) if answer.len() > len => return Err(sense("more than was asked for")),
            _ if answer.len() > HELLO_BYTES_MAX => return Err(sense("far too long")),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    /// What connecting says to a server that answers each read with the next line.
    fn greet(protocol: Protocol, credential: &[u8], answers: &[&str]) -> io::Result<String> {
        let answers: Vec<String> = answers.iter().map(|&answer| answer.to_owned()).collect();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let target = Target { protocol, addresses: vec![listener.local_addr().unwrap().to_string()] };
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            for answer in answers {
                let mut request = [0; 4096];
                assert!(stream.read(&mut request).unwrap() > 0);
                for byte in answer.as_bytes() {
                    stream.write_all(&[*byte]).unwrap();
                }
            }
        });
        let greeted = connect(&target, 0, None, credential).map(|greeted| greeted.server);
        server.join().unwrap();
        greeted
    }

    #[test]
    fn servers_say_what_they_are_and_strangers_are_refused() {
        let info = "$32\r\n# Server\r\nredis_version:7.0.15\r\n\r\n";
        assert_eq!(greet(Protocol::Resp, b"", &[info]).unwrap(), "redis 7.0.15");
        assert_eq!(greet(Protocol::Resp, b"pw", &["+OK\r\n", "-ERR unknown command\r\n"]).unwrap(), "speaks RESP2");
        assert_eq!(greet(Protocol::MemcachedMeta, b"", &["VERSION 1.6.18\r\n"]).unwrap(), "memcached 1.6.18");
        for (protocol, credential, answers) in [
            (Protocol::Resp, &b""[..], &["-NOAUTH Authentication required.\r\n"][..]),
            (Protocol::Resp, b"pw", &["-WRONGPASS invalid\r\n"]),
            (Protocol::Resp, b"", &["HTTP/1.1 400 Bad Request\r\n"]),
            (Protocol::Resp, b"", &["$9999999999\r\n"]),
            (Protocol::MemcachedText, b"", &["-ERR unknown command\r\n"]),
            (Protocol::MemcachedText, b"", &[]),
        ] {
            assert!(greet(protocol, credential, answers).is_err(), "{answers:?}");
        }
    }
}
