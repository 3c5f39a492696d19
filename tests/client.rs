//! The blocking client against a server of a few lines, which speaks the real protocol and can be told to misbehave.

#![cfg(feature = "client")]

use ringkv::base::record::{Version, core_of, token_of, vnode_of};
use ringkv::client::{Answer, Client, ClientConfig, ClientError, PutOptions, TimeToLive};
use ringkv::limits::FRAME_BYTES_MAX;
use ringkv::wire::command::*;
use ringkv::wire::frame::FrameReader;
use ringkv::wire::native::{decode_request, encode_reply, encode_reply_part};
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const CORES: u16 = 2;
const VNODES: u32 = 64;

/// What the server does with the next put.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Mishap {
    AnnounceThenClose,
    Close,
    Silence,
    UnknownWithVersion,
}

#[derive(Default)]
struct State {
    data: BTreeMap<Vec<u8>, Entry>,
    clock: u64,
    mishap: Option<Mishap>,
    /// Version carried by each put that arrived.
    carried: Vec<Option<Version>>,
    misrouted: u32,
    connections: u32,
    close_all: bool,
    /// Data cores, where it is not `CORES`.
    cores: Option<u16>,
}

type Entry = (Version, Vec<u8>, Option<u64>);
type Shared = Arc<Mutex<State>>;

fn serve() -> (String, Shared) {
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
            let request = decode_request(frame.kind, frame.body).expect("the client speaks well");
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
            let owner = request.command.key().map(|key| core_of(vnode_of(token_of(key), VNODES), cores));
            state.misrouted += u32::from(owner.is_some_and(|owner| owner != core));
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
        Command::Hello(_) => encode_reply(out, id, &hello_ok(core, state.cores.unwrap_or(CORES))),
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
            let (durability, compression) = (Durability::Sync, Compression::None);
            let row = |id, name| Namespace { id, name, default_ttl_ms: 0, durability, compression };
            encode_reply(out, id, &Reply::Namespaces(vec![row(1, "default"), row(2, "other")].into()));
        }
        other => {
            let message = format!("{} is not for this server", other.row().name);
            encode_reply(out, id, &Reply::Error(ErrorReply::new(ErrorCode::Failed, &message)));
        }
    }
}

fn hello_ok(core: u16, cores: u16) -> Reply<'static> {
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

fn config(address: &str) -> ClientConfig {
    ClientConfig {
        addresses: vec![address.to_owned()],
        request_timeout: Duration::from_millis(400),
        backoff_min: Duration::from_millis(5),
        ..ClientConfig::default()
    }
}

#[test]
fn every_method_gets_a_typed_result_and_keys_go_to_their_core() {
    let (address, shared) = serve();
    let mut client = Client::connect(config(&address)).unwrap();
    client.ping().unwrap();
    assert_eq!(client.info().unwrap(), "role:test\n");
    assert_eq!(client.get(b"none").unwrap(), None);
    for n in 0..50u32 {
        let key = n.to_le_bytes();
        let version = client.put(&key, b"value").unwrap();
        let got = client.get(&key).unwrap().expect("present");
        assert_eq!((got.version, got.remaining, &got.value[..]), (version, None, &b"value"[..]));
    }
    let options = PutOptions { condition: Condition::IfAbsent, ..PutOptions::default() };
    assert!(matches!(client.put_with(&[0; 4], b"x", options), Err(ClientError::NotMet { present: Some(_) })));
    assert_eq!(client.ttl(b"none").unwrap(), TimeToLive::Absent);
    assert_eq!(client.expire(b"none", Duration::from_secs(1)).unwrap(), None);
    assert!(client.expire(&[0; 4], Duration::from_secs(1)).unwrap().is_some());
    assert_eq!(client.ttl(&[0; 4]).unwrap(), TimeToLive::Remaining(Duration::from_secs(1)));
    assert!(client.persist(&[0; 4]).unwrap().is_some());
    assert_eq!(client.ttl(&[0; 4]).unwrap(), TimeToLive::Never);
    client.delete(&[0; 4]).unwrap();
    assert_eq!(client.get(&[0; 4]).unwrap(), None);
    let found: usize = (0..VNODES).map(|vnode| client.scan(vnode, b"", 0, false).unwrap().entries.len()).sum();
    assert_eq!(found, 49);
    assert_eq!(client.namespaces().unwrap().len(), 2);
    let refused = client.snapshot("s").unwrap_err();
    assert!(matches!(refused, ClientError::Failed { code: ErrorCode::Failed, .. }), "{refused}");
    let state = shared.lock().unwrap();
    assert_eq!((state.misrouted, state.connections), (0, u32::from(CORES)));
}

#[test]
fn multi_commands_keep_the_order_of_their_keys_over_cores_and_parts() {
    let (address, _shared) = serve();
    let mut client = Client::connect(config(&address)).unwrap();
    let keys: Vec<Vec<u8>> = (0..500u32).map(|n| n.to_be_bytes().to_vec()).collect();
    let items: Vec<_> = keys.iter().map(|key| PutItem { key, value: key, ttl_ms: 0 }).collect();
    assert_eq!(client.multi_put(&items).unwrap().len(), 500);
    let mut asked: Vec<&[u8]> = keys.iter().map(|key| &key[..]).collect();
    asked.insert(7, b"absent");
    let values = client.multi_get(&asked).unwrap();
    for (key, value) in asked.iter().zip(values) {
        assert_eq!(value.map(|(_, value)| value), (*key != b"absent").then(|| key.to_vec()));
    }
    assert_eq!(client.multi_get(&[]).unwrap(), []);
}

#[test]
fn a_pipeline_larger_than_all_buffers_does_not_deadlock() {
    let (address, _shared) = serve();
    let mut client = Client::connect(ClientConfig { request_timeout: Duration::from_secs(20), ..config(&address) }).unwrap();
    let value = vec![7u8; 1 << 20];
    let mut pipeline = client.pipeline();
    for _ in 0..40 {
        pipeline.put(b"key", &value);
        pipeline.get(b"key");
    }
    let outcomes = pipeline.run();
    assert_eq!(outcomes.len(), 80);
    for (index, outcome) in outcomes.into_iter().enumerate() {
        match (index % 2, outcome.unwrap()) {
            (0, Answer::Done(_)) => {}
            (1, Answer::Value(got)) => assert!(got.value == value),
            other => panic!("{other:?}"),
        }
    }
    let mut pipeline = client.pipeline();
    let keys: Vec<[u8; 4]> = (0..5000u32).map(u32::to_le_bytes).collect();
    keys.iter().for_each(|key| _ = pipeline.put(key, key));
    assert!(pipeline.run().iter().all(|outcome| matches!(outcome, Ok(Answer::Done(_)))));
}

#[test]
fn an_announced_write_whose_answer_is_lost_is_retried_under_its_version() {
    let (address, shared) = serve();
    let mut client = Client::connect(ClientConfig { announce: true, ..config(&address) }).unwrap();
    for mishap in [Mishap::AnnounceThenClose, Mishap::UnknownWithVersion] {
        shared.lock().unwrap().mishap = Some(mishap);
        let version = client.put(b"k", b"v").unwrap();
        let mut state = shared.lock().unwrap();
        assert_eq!(state.carried, [None, Some(version)], "{mishap:?}");
        state.carried.clear();
    }
}

#[test]
fn an_unannounced_write_without_an_answer_is_unknown_and_never_sent_again() {
    let (address, shared) = serve();
    let mut client = Client::connect(config(&address)).unwrap();
    for mishap in [Mishap::Close, Mishap::Silence] {
        shared.lock().unwrap().mishap = Some(mishap);
        assert_eq!(client.put(b"k", b"v"), Err(ClientError::Unknown { version: None }), "{mishap:?}");
        assert_eq!(std::mem::take(&mut shared.lock().unwrap().carried), [None]);
        assert!(client.put(b"k", b"v").is_ok(), "the next one finds a way");
        shared.lock().unwrap().carried.clear();
    }
}

#[test]
fn reads_survive_a_lost_connection_and_a_missing_server_fails_in_time() {
    let (address, shared) = serve();
    let mut client = Client::connect(config(&address)).unwrap();
    client.put(b"k", b"v").unwrap();
    shared.lock().unwrap().close_all = true;
    assert_eq!(client.get(b"k").unwrap().map(|got| got.value), Some(b"v".to_vec()));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let unused = listener.local_addr().unwrap().to_string();
    drop(listener);
    let begin = Instant::now();
    assert!(matches!(Client::connect(config(&unused)), Err(ClientError::Disconnected(_))));
    let missing = ClientConfig { namespace: "missing".into(), ..config(&address) };
    assert!(matches!(Client::connect(missing), Err(ClientError::Failed { code: ErrorCode::NoSuchNamespace, .. })));
    let other = ClientConfig { namespace: "other".into(), single_connection: true, ..config(&address) };
    assert_eq!(Client::connect(other).unwrap().namespace_id(), 2);
    assert!(begin.elapsed() < Duration::from_secs(5));
}

#[test]
fn a_server_that_comes_back_with_other_cores_is_learnt_anew() {
    let (address, shared) = serve();
    let mut client = Client::connect(config(&address)).unwrap();
    for cores in [5, 1] {
        let mut state = shared.lock().unwrap();
        (state.cores, state.close_all) = (Some(cores), true);
        drop(state);
        client.ping().unwrap();
        assert_eq!(client.server().cores, cores);
        shared.lock().unwrap().misrouted = 0;
        (0..20u32).for_each(|n| _ = client.put(&n.to_le_bytes(), b"v").unwrap());
        assert_eq!(shared.lock().unwrap().misrouted, 0);
    }
}

#[test]
fn a_pipeline_without_a_server_ends_in_time_as_a_whole() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut buffer = [0; 4096];
        let bytes = stream.read(&mut buffer).unwrap();
        let id = FrameReader::new(4096).feed(&buffer[..bytes]).next().unwrap().unwrap().id;
        let mut out = Vec::new();
        encode_reply(&mut out, id, &hello_ok(0, CORES));
        stream.write_all(&out).unwrap();
    });
    let mut client = Client::connect(config(&address)).unwrap();
    server.join().unwrap();
    let begin = Instant::now();
    let mut pipeline = client.pipeline();
    (0..500).for_each(|_| _ = pipeline.get(b"k"));
    let outcomes = pipeline.run();
    assert!(outcomes.iter().all(|outcome| matches!(outcome, Err(ClientError::Disconnected(_)))));
    assert_eq!(outcomes.len(), 500);
    assert!(begin.elapsed() < Duration::from_secs(3), "{:?}", begin.elapsed());
}
