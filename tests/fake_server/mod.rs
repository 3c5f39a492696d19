//! A server of a few lines for the tests of the client's faces: it speaks the real protocol and can be told to misbehave.

#![allow(dead_code, reason = "each test file uses its part of this")]

use ringkv::base::record::{Version, core_of, token_of, vnode_of};
use ringkv::client::ClientConfig;
use ringkv::limits::FRAME_BYTES_MAX;
use ringkv::wire::command::*;
use ringkv::wire::frame::FrameReader;
use ringkv::wire::native::{decode_request, encode_reply, encode_reply_part};
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

pub const CORES: u16 = 2;
pub const VNODES: u32 = 64;

/// What the server does with the next put.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Mishap {
    AnnounceThenClose,
    Close,
    Silence,
    UnknownWithVersion,
}

#[derive(Default)]
pub struct State {
    pub data: BTreeMap<Vec<u8>, Entry>,
    pub clock: u64,
    pub mishap: Option<Mishap>,
    /// Version carried by each put that arrived.
    pub carried: Vec<Option<Version>>,
    pub misrouted: u32,
    pub connections: u32,
    pub close_all: bool,
    /// Data cores, where it is not `CORES`.
    pub cores: Option<u16>,
    /// The cluster that it is a node of.
    pub ring: Option<Ring>,
    /// It tells of its ring unasked, before its next answer.
    pub has_news: bool,
    /// Connections that wanted to be told.
    pub told: u32,
}

/// A cluster as one of its nodes says it.
#[derive(Clone)]
pub struct Ring {
    pub id: u64,
    pub epoch: u64,
    /// Ports by node id, from 1. Each has `CORES` cores.
    pub ports: Vec<u16>,
    /// Of each vnode, as indexes into them.
    pub owners: Vec<u16>,
}

pub type Entry = (Version, Vec<u8>, Option<u64>);
pub type Shared = Arc<Mutex<State>>;

/// Servers that say they are a cluster; each vnode in turn is the next one's. Each has data of its own.
pub fn serve_cluster(count: u16) -> Vec<(String, Shared)> {
    let servers: Vec<_> = (0..count).map(|_| serve()).collect();
    let ports: Vec<u16> =
        servers.iter().map(|(address, _)| address.rsplit(':').next().and_then(|port| port.parse().ok()).expect("a port")).collect();
    for (id, (_, shared)) in (1..).zip(&servers) {
        let owners = (0..VNODES as u16).map(|vnode| vnode % count).collect();
        shared.lock().unwrap().ring = Some(Ring { id, epoch: 1, ports: ports.clone(), owners });
    }
    servers
}

pub fn serve() -> (String, Shared) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("binds");
    let address = listener.local_addr().expect("has an address").to_string();
    let shared = Shared::default();
    let state = shared.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let state = state.clone();
            state.lock().unwrap().connections += 1;
            std::thread::spawn(move || connection(stream, &state));
        }
    });
    (address, shared)
}

fn connection(mut stream: TcpStream, shared: &Shared) -> Option<()> {
    let mut reader = FrameReader::new(FRAME_BYTES_MAX);
    let mut buffer = vec![0; 64 * 1024];
    let mut core = 0;
    loop {
        let bytes = stream.read(&mut buffer).ok().filter(|&bytes| bytes > 0)?;
        let mut out = Vec::new();
        for frame in reader.feed(&buffer[..bytes]) {
            let frame = frame.expect("the client frames well");
            let request = decode_request(&frame, frame.body).expect("the client speaks well");
            assert!(request.deadline_ms > 0);
            if let Command::Hello(hello) = &request.command {
                core = if hello.core == CORE_ANY { 0 } else { hello.core };
            }
            let mut state = shared.lock().unwrap();
            if state.close_all {
                state.close_all = false;
                return None;
            }
            let cores = state.cores.unwrap_or(CORES);
            let vnode = request.command.key().map(|key| vnode_of(token_of(key), VNODES));
            let is_ours = |vnode: u32| state.ring.as_ref().is_none_or(|ring| u64::from(ring.owners[vnode as usize]) + 1 == ring.id);
            let is_misrouted = vnode.is_some_and(|vnode| core_of(vnode, cores) != core || !is_ours(vnode));
            state.misrouted += u32::from(is_misrouted);
            if std::mem::take(&mut state.has_news) {
                encode_reply(&mut out, 0, &hello(&state, core));
            }
            if !execute(&mut state, &request.command, core, frame.id, &mut out) {
                drop(state);
                _ = stream.write_all(&out);
                return None;
            }
        }
        stream.write_all(&out).ok()?;
    }
}

/// False: close the connection after what is in `out`.
fn execute(state: &mut State, command: &Command<'_>, core: u16, id: u64, out: &mut Vec<u8>) -> bool {
    match command {
        Command::Hello(hello) if hello.core != CORE_ANY && hello.core >= state.cores.unwrap_or(CORES) => {
            let error = ErrorReply::new(ErrorCode::BadRequest, "no core of that number");
            encode_reply(out, id, &Reply::Error(error));
            return false;
        }
        Command::Hello(hello_said) => {
            state.told += u32::from(hello_said.wants.news);
            encode_reply(out, id, &hello(state, core));
        }
        Command::Ping => encode_reply(out, id, &Reply::Pong),
        Command::Info => encode_reply(out, id, &Reply::Text("role:test\n")),
        Command::Put(put) => {
            state.carried.push(put.write.version);
            state.clock += 1;
            let version = put.write.version.unwrap_or(Version::put(state.clock, 1));
            match state.mishap.take() {
                Some(Mishap::AnnounceThenClose) => {
                    assert!(put.write.announce);
                    encode_reply(out, id, &Reply::Announced { version });
                    return false;
                }
                Some(Mishap::Close) => return false,
                Some(Mishap::Silence) => return true,
                Some(Mishap::UnknownWithVersion) => {
                    let error = ErrorReply { version: Some(version), ..ErrorReply::new(ErrorCode::Unknown, "lost") };
                    encode_reply(out, id, &Reply::Error(error));
                    return true;
                }
                None => {}
            }
            let present = state.data.get(put.key).map(|entry| entry.0);
            if put.condition == Condition::IfAbsent && present.is_some() {
                encode_reply(out, id, &Reply::NotMet { present });
                return true;
            }
            let ttl = (put.ttl_ms > 0).then_some(put.ttl_ms);
            state.data.insert(put.key.to_vec(), (version, put.value.to_vec(), ttl));
            encode_reply(out, id, &Reply::Done { version });
        }
        _ => execute_more(state, command, id, out),
    }
    true
}

fn execute_more(state: &mut State, command: &Command<'_>, id: u64, out: &mut Vec<u8>) {
    let version = Version::put(1_000_000, 1);
    match command {
        Command::Get { key } => match state.data.get(*key) {
            Some((version, value, ttl)) => encode_reply(out, id, &Reply::Value(Value { version: *version, remaining_ms: *ttl, value })),
            None => encode_reply(out, id, &Reply::Absent),
        },
        Command::Delete(delete) => {
            state.data.remove(delete.key);
            encode_reply(out, id, &Reply::Done { version });
        }
        Command::MultiGet { keys } => {
            let value = |key: &&[u8]| state.data.get(*key).map(|(version, value, _)| VersionedValue { version: *version, value });
            let values: Vec<_> = keys.iter().map(value).collect();
            let (first, rest) = values.split_at(values.len() / 2);
            encode_reply_part(out, id, &Reply::Values(first.into()));
            encode_reply(out, id, &Reply::Values(rest.into()));
        }
        Command::MultiPut(multi) => {
            for item in multi.items.iter() {
                state.data.insert(item.key.to_vec(), (version, item.value.to_vec(), None));
            }
            encode_reply(out, id, &Reply::Done { version });
        }
        Command::Expire { key, .. } | Command::Persist { key, .. } => {
            let ttl = if let Command::Expire { ttl_ms, .. } = command { Some(*ttl_ms) } else { None };
            let found = state.data.get_mut(*key).map(|entry| entry.2 = ttl);
            encode_reply(out, id, &found.map_or(Reply::Absent, |()| Reply::Done { version }));
        }
        Command::Ttl { key } => {
            let found = state.data.get(*key).map(|entry| Reply::Ttl { remaining_ms: entry.2 });
            encode_reply(out, id, &found.unwrap_or(Reply::Absent));
        }
        Command::Scan(scan) => {
            let entry = |(key, (version, _, _)): (&Vec<u8>, &Entry)| (key.clone(), *version);
            let found: Vec<_> = state.data.iter().map(entry).filter(|(key, _)| vnode_of(token_of(key), VNODES) == scan.vnode).collect();
            let entries: Vec<_> =
                found.iter().map(|(key, version)| ScanEntry { key, version: *version, remaining_ms: None, value: None }).collect();
            encode_reply(out, id, &Reply::Page(Page { cursor: b"", entries: entries.into() }));
        }
        Command::NamespaceList => {
            let (durability, compression, levels) = (Durability::Sync, Compression::None, LevelsAsked::default());
            let row = |id, name| Namespace { id, name, default_ttl_ms: 0, durability, compression, levels, replicas: 3 };
            encode_reply(out, id, &Reply::Namespaces(vec![row(1, "default"), row(2, "other")].into()));
        }
        other => {
            let message = format!("{} is not for this server", other.row().name);
            encode_reply(out, id, &Reply::Error(ErrorReply::new(ErrorCode::Failed, &message)));
        }
    }
}

fn hello(state: &State, core: u16) -> Reply<'_> {
    let Reply::HelloOk(alone) = hello_ok(core, state.cores.unwrap_or(CORES)) else { unreachable!("it is one") };
    Reply::HelloOk(match &state.ring {
        None => alone,
        Some(Ring { id, epoch, ports, owners }) => {
            let node = |(id, port): (u64, &u16)| Node { id, host: "127.0.0.1", port: *port, cores: CORES };
            let nodes = (1..).zip(ports).map(node).collect();
            HelloOk { node_id: *id, epoch: *epoch, nodes: List::Owned(nodes), owners: owners[..].into(), ..alone }
        }
    })
}

pub fn hello_ok(core: u16, cores: u16) -> Reply<'static> {
    let limits = Limits {
        frame_bytes_max: FRAME_BYTES_MAX as u32,
        key_bytes_max: 1,
        value_bytes_max: 1,
        multi_keys_max: 50,
        scan_entries_max: 1,
        connection_bytes_max: 1,
        deadline_ms_default: 1000,
    };
    Reply::HelloOk(HelloOk {
        protocol_version: 1,
        core,
        cores,
        vnodes: VNODES,
        node_id: 1,
        cluster_id: [1; 16],
        epoch: 1,
        features: 0,
        limits,
        nodes: List::Owned(vec![Node { id: 1, host: "127.0.0.1", port: 1, cores }]),
        owners: List::Owned(Vec::new()),
    })
}

pub fn config(address: &str) -> ClientConfig {
    ClientConfig {
        addresses: vec![address.to_owned()],
        request_timeout: Duration::from_millis(400),
        backoff_min: Duration::from_millis(5),
        ..ClientConfig::default()
    }
}

/// A key that belongs to this core of `CORES`.
pub fn key_of_core(core: u16) -> [u8; 4] {
    let mut keys = (0u32..).map(u32::to_le_bytes);
    keys.find(|key| core_of(vnode_of(token_of(key), VNODES), CORES) == core).expect("every core has keys")
}
