//! A small server for tests: the native protocol over a hash map, a thread a connection, with faults that check mode must find.

use ringkv::base::record::Version;
use ringkv::limits::FRAME_BYTES_MAX;
use ringkv::wire::command::{Command, ErrorCode, ErrorReply, HelloOk, Limits, List, Reply, Value};
use ringkv::wire::frame::FrameReader;
use ringkv::wire::native::{decode_request, encode_reply};
use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// What the server does wrong, every so many requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    None,
    /// Acknowledges a write and drops it.
    LosesWrites,
    /// Answers a get with another key's value.
    MixesKeys,
    /// Answers a get with the value before the last.
    IsStale,
    /// Flips a bit of a value.
    Rots,
    /// Forgets deletes.
    Resurrects,
    /// Forgets time to live.
    NeverExpires,
    /// Lets values go too early.
    ExpiresEarly,
    /// Sleeps 300 ms in the request with this number.
    StallsAt(u64),
    /// Closes all connections at the request with this number.
    DiesAt(u64),
    /// From the request with this number on it reads and takes connections in, and answers nothing.
    FallsSilentAt(u64),
    /// Refuses requests.
    IsOverloaded,
}

#[derive(Clone, Default)]
pub struct Entry {
    value: Option<Vec<u8>>,
    before: Option<Vec<u8>>,
    deadline: Option<Instant>,
    pub puts: u64,
}

pub type Store = Arc<Mutex<HashMap<Vec<u8>, Entry>>>;

pub struct Server {
    pub address: SocketAddr,
    pub store: Store,
    state: Arc<State>,
}

struct State {
    store: Store,
    fault: Fault,
    cores: u16,
    requests: AtomicU64,
    stopped: AtomicBool,
    streams: Mutex<Vec<TcpStream>>,
}

impl Server {
    pub fn start(fault: Fault, cores: u16) -> Server {
        Server::start_on("127.0.0.1:0".parse().unwrap(), fault, cores, Store::default())
    }

    /// On an address and a store that there were before.
    pub fn start_on(address: SocketAddr, fault: Fault, cores: u16, store: Store) -> Server {
        let listener = TcpListener::bind(address).unwrap();
        let address = listener.local_addr().unwrap();
        let (requests, stopped, streams) = (AtomicU64::new(0), AtomicBool::new(false), Mutex::default());
        let state = Arc::new(State { store: store.clone(), fault, cores, requests, stopped, streams });
        let shared = state.clone();
        std::thread::spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                if shared.stopped.load(Ordering::SeqCst) {
                    return;
                }
                stream.set_nodelay(true).unwrap();
                shared.streams.lock().unwrap().push(stream.try_clone().unwrap());
                let state = shared.clone();
                std::thread::spawn(move || state.serve(stream));
            }
        });
        Server { address, store, state }
    }

    /// How many requests came, hellos not among them.
    pub fn requests(&self) -> u64 {
        self.state.requests.load(Ordering::SeqCst)
    }

    pub fn stop(&self) {
        self.state.stop();
        // Wakes the listener, so that it lets go of the port.
        let _ = TcpStream::connect(self.address);
        std::thread::sleep(Duration::from_millis(50));
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

impl State {
    fn stop(&self) {
        self.stopped.store(true, Ordering::SeqCst);
        for stream in self.streams.lock().unwrap().drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    fn serve(&self, mut stream: TcpStream) {
        let mut reader = FrameReader::new(FRAME_BYTES_MAX);
        let (mut chunk, mut out) = (vec![0; 256 * 1024], Vec::new());
        while let Ok(len @ 1..) = stream.read(&mut chunk) {
            let mut answers = Vec::new();
            for frame in reader.feed(&chunk[..len]) {
                let frame = frame.unwrap();
                let request = decode_request(frame.kind, frame.body).unwrap();
                let start = out.len();
                self.answer(&mut out, frame.id, &request.command);
                answers.push((start, out.len()));
            }
            if self.stopped.load(Ordering::SeqCst) {
                return;
            }
            // Out of order, as the protocol allows.
            let shuffled: Vec<u8> = answers.iter().rev().flat_map(|&(start, end)| out[start..end].to_vec()).collect();
            out.clear();
            if stream.write_all(&shuffled).is_err() {
                return;
            }
        }
    }

    fn is_silent(&self) -> bool {
        matches!(self.fault, Fault::FallsSilentAt(at) if self.requests.load(Ordering::SeqCst) >= at)
    }

    fn answer(&self, out: &mut Vec<u8>, id: u64, command: &Command<'_>) {
        if self.is_silent() {
            return;
        }
        if let Command::Hello(hello) = command {
            let core = if hello.core < self.cores { hello.core } else { 0 };
            return encode_reply(out, id, &Reply::HelloOk(self.hello(core)));
        }
        let number = self.requests.fetch_add(1, Ordering::SeqCst) + 1;
        let strikes = number.is_multiple_of(50);
        match self.fault {
            Fault::StallsAt(at) if number == at => {
                let _held = self.store.lock().unwrap();
                std::thread::sleep(Duration::from_millis(300));
            }
            Fault::DiesAt(at) if number >= at => return self.stop(),
            Fault::IsOverloaded if strikes => {
                return encode_reply(out, id, &Reply::Error(ErrorReply::new(ErrorCode::Overloaded, "busy")));
            }
            _ => {}
        }
        let mut store = self.store.lock().unwrap();
        let done = Reply::Done { version: Version::put(number, 1) };
        match command {
            Command::Get { key } => return self.get(&store, out, id, key, strikes),
            Command::Put(put) => {
                let entry = store.entry(put.key.to_vec()).or_default();
                entry.puts += 1;
                if !(strikes && self.fault == Fault::LosesWrites) {
                    entry.before = entry.value.replace(put.value.to_vec());
                    let ttl = Duration::from_millis(if self.fault == Fault::ExpiresEarly { put.ttl_ms / 4 } else { put.ttl_ms });
                    entry.deadline = (put.ttl_ms > 0 && self.fault != Fault::NeverExpires).then(|| Instant::now() + ttl);
                }
            }
            Command::Delete(delete) => {
                let entry = store.entry(delete.key.to_vec()).or_default();
                if self.fault != Fault::Resurrects {
                    entry.before = entry.value.take();
                }
            }
            other => panic!("not in this server: {other:?}"),
        }
        encode_reply(out, id, &done);
    }

    fn get(&self, store: &HashMap<Vec<u8>, Entry>, out: &mut Vec<u8>, id: u64, key: &[u8], strikes: bool) {
        let entry = store.get(key);
        let live = entry.filter(|entry| entry.deadline.is_none_or(|deadline| Instant::now() < deadline));
        let mut value = live.and_then(|entry| entry.value.clone());
        match self.fault {
            Fault::MixesKeys if strikes => value = store.iter().find(|(other, _)| &other[..] != key).and_then(|(_, e)| e.value.clone()),
            Fault::IsStale if strikes => value = live.and_then(|entry| entry.before.clone().or(entry.value.clone())),
            Fault::Rots if strikes => {
                if let Some(last) = value.as_mut().and_then(|value| value.last_mut()) {
                    *last ^= 1;
                }
            }
            _ => {}
        }
        let version = Version::put(1, 1);
        match &value {
            Some(value) => encode_reply(out, id, &Reply::Value(Value { version, remaining_ms: None, value })),
            None => encode_reply(out, id, &Reply::Absent),
        }
    }

    fn hello(&self, core: u16) -> HelloOk<'static> {
        HelloOk {
            protocol_version: 1,
            core,
            cores: self.cores,
            vnodes: 4096,
            node_id: 1,
            cluster_id: [0; 16],
            epoch: 1,
            features: 0,
            limits: Limits {
                frame_bytes_max: FRAME_BYTES_MAX as u32,
                key_bytes_max: 32_768,
                value_bytes_max: 1 << 24,
                multi_keys_max: 4096,
                scan_entries_max: 1024,
                connection_bytes_max: 1 << 25,
                deadline_ms_default: 1000,
            },
            nodes: List::Owned(Vec::new()),
            owners: List::Owned(Vec::new()),
        }
    }
}
