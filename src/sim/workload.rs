//! Simulated clients: each with a connection, random commands, and the checker's ear for every answer.

use super::checker::{Checker, Effect, Shown, Span, WriteId};
use crate::base::prng::Prng;
use crate::base::record::{NAMESPACE_DEFAULT, NamespaceId, Version};
use crate::base::time::{Mono, WallMs};
use crate::client::ClientError;
use crate::client::core::{Core, Event};
use crate::io::{Io, Socket, SocketAddr};
use crate::shard::session::within;
use crate::wire::command::{
    CORE_ANY, Command, Condition, Delete, ErrorCode, Hello, HelloWants, List, MultiPut, PROTOCOL_VERSION, PROTOCOL_VERSION_MIN, Put,
    PutItem, Reply, WriteOptions,
};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

/// Keys of one batch share a hash tag, so a vnode holds them all.
pub const BATCH_KEYS: u32 = 4;
/// Of many nodes a client asks another one after about so many turns.
const LEAVES_ONE_IN: u64 = 60;
/// Of a hundred drawn commands, which are deletes.
const DELETES: std::ops::Range<u64> = 82..90;
/// Writes that a client keeps to try again.
const RETRIES_MAX: usize = 64;
pub const REQUEST_PATIENCE: Duration = Duration::from_secs(5);

/// What all clients of a run share.
pub struct Shared {
    /// The namespaces under test: the default one (sync), and one under `interval`.
    pub checkers: [RefCell<Checker>; 2],
    pub namespaces: [Cell<NamespaceId>; 2],
    pub keys: u32,
    /// Commands still to be given.
    pub budget: Cell<u64>,
    /// Commands answered, whatever the answer.
    pub answered: Cell<u64>,
    /// Nothing new is asked; connections end.
    pub stop: Cell<bool>,
    /// Clients at work.
    pub at_work: Cell<u32>,
    /// Answers with an error, by code.
    pub errors: RefCell<BTreeMap<ErrorCode, u64>>,
    /// The node's wall clock; of many, the one that is most behind, and the one that is most ahead.
    pub wall_ms: Box<dyn Fn() -> WallMs>,
    pub latest_ms: Box<dyn Fn() -> WallMs>,
    /// When the node fell or its clock was moved, and what its wall clock showed: an answer on its way was given before.
    pub falls: RefCell<Vec<(Mono, WallMs)>>,
    /// Sizes of values: mostly below this, rarely in chunks.
    pub small_bytes: u64,
    pub large_one_in: u64,
    /// How long a client thinks at most, in microseconds.
    pub thought_us_max: u64,
    /// Many nodes: no conditions, and batches that are atomic a key.
    pub in_cluster: bool,
    /// How long a request may take.
    pub patience: Duration,
    /// What is to be tried again is so in one of so many times that something could be asked.
    pub retry_one_in: u64,
    /// Beside those that come anyway, one command in so many is a delete.
    pub deletes_one_in: Option<u64>,
}

/// The name of a key: batch keys share a tag, some keys hold zeros. Tags are far apart: the slots of small numbers differ in few bits, and
/// all lie in a quarter of the vnodes.
pub fn key_name(key: u32) -> Vec<u8> {
    let tag = (key / BATCH_KEYS).wrapping_mul(0x9E37_79B1);
    let mut name = format!("{{{tag}}}:{}", key % BATCH_KEYS).into_bytes();
    if key.is_multiple_of(7) {
        name.extend_from_slice(&[0, 0xFF, 0]);
    }
    name
}

/// The value of a write: its number and its key, and bytes that follow from them.
pub fn value_of(key: u32, write: WriteId, bytes: usize) -> Vec<u8> {
    let mut value = Vec::with_capacity(16 + bytes);
    value.extend_from_slice(&write.to_le_bytes());
    value.extend_from_slice(&key.to_le_bytes());
    value.extend_from_slice(&(bytes as u32).to_le_bytes());
    value.extend((0..bytes).map(|at| pattern(write, at)));
    value
}

fn pattern(write: WriteId, at: usize) -> u8 {
    (write as u8).wrapping_mul(31).wrapping_add((at as u8).wrapping_mul(7))
}

/// Which write a value is of.
pub fn write_of(key: u32, value: &[u8]) -> Option<WriteId> {
    let write = WriteId::from_le_bytes(value.get(..8)?.try_into().ok()?);
    let (of, bytes) = (value.get(8..12)?, u32::from_le_bytes(value.get(12..16)?.try_into().ok()?) as usize);
    let content = &value[16..];
    let fits = || content.iter().enumerate().all(|(at, byte)| *byte == pattern(write, at));
    (of == key.to_le_bytes() && bytes == content.len() && fits()).then_some(write)
}

/// A request on its way.
#[derive(Clone, Debug)]
struct Asked {
    namespace: usize,
    asked: Mono,
    asked_ms: WallMs,
    what: What,
    again: bool,
}

#[derive(Clone, Debug)]
enum What {
    Get { key: u32 },
    Gets { keys: Vec<u32> },
    Other,
    Write { key: u32, id: WriteId, step: Step },
    Batch { writes: Vec<(u32, WriteId)>, bytes: usize },
}

/// A single-key write that can be asked for again.
#[derive(Clone, Copy, Debug)]
enum Step {
    Put { bytes: usize, ttl_ms: u64, condition: Condition },
    Delete { condition: Condition },
    Expire { ttl_ms: u64 },
}

/// One client.
pub struct SimClient {
    io: Io,
    servers: Vec<SocketAddr>,
    shared: Rc<Shared>,
    prng: Prng,
    pipeline: usize,
    /// It thinks about once in so many answers, for a while: a run is to last longer than a few milliseconds.
    thinks_one_in: u64,
    /// Writes whose outcome is unknown, with the version that makes a second try the same write.
    retries: Vec<(Asked, Version)>,
    /// Its node can reach too few others: it tries another one, after a while.
    is_cut_off: bool,
}

impl SimClient {
    pub fn new(io: Io, servers: Vec<SocketAddr>, shared: Rc<Shared>, mut prng: Prng, pipeline: usize) -> SimClient {
        let thinks_one_in = if shared.in_cluster { prng.between(1, 8) } else { prng.between(4, 40) };
        SimClient { io, servers, shared, prng, pipeline, thinks_one_in, retries: Vec::new(), is_cut_off: false }
    }

    /// Works until the run stops, over as many connections as it takes.
    pub async fn run(mut self) {
        self.shared.at_work.set(self.shared.at_work.get() + 1);
        while !self.shared.stop.get() {
            let until = self.io.now().plus(Duration::from_millis(500));
            let server = match self.servers[..] {
                [only] => only,
                _ => self.servers[self.prng.below(self.servers.len() as u64) as usize],
            };
            match within(&self.io.clone(), until, self.io.clone().connect(server)).await {
                Some(Ok(socket)) => self.converse(&socket).await,
                _ => self.io.sleep(Duration::from_millis(2)).await,
            }
        }
        self.shared.at_work.set(self.shared.at_work.get() - 1);
    }

    /// One connection's life.
    async fn converse(&mut self, socket: &Socket) {
        let io = self.io.clone();
        let mut core = Core::new(self.pipeline + 1);
        let mut asked = BTreeMap::new();
        let hello = Hello {
            version_min: PROTOCOL_VERSION_MIN,
            version_max: PROTOCOL_VERSION,
            core: CORE_ANY,
            credential: b"",
            client_name: "sim",
            wants: HelloWants::default(),
        };
        let now = io.now();
        let Ok(hello) = core.submit(now, now.plus(self.shared.patience), 0, Command::Hello(hello)) else { return };
        let (mut welcome, mut leaves) = (false, false);
        loop {
            if std::mem::take(&mut self.is_cut_off) {
                let pause = Duration::from_millis(self.prng.between(1, 30));
                io.sleep(pause).await;
                if self.prng.one_in(2) {
                    break;
                }
            }
            // Another node is asked now and then, though this one answers.
            leaves |= self.servers.len() > 1 && self.prng.one_in(LEAVES_ONE_IN);
            if welcome && !leaves && !self.shared.stop.get() {
                if self.prng.one_in(self.thinks_one_in) {
                    let thought = Duration::from_micros(self.prng.below(self.shared.thought_us_max));
                    io.sleep(thought).await;
                }
                self.fill(&mut core, &mut asked);
            }
            if core.in_flight() == 0 {
                break;
            }
            let out = core.output().to_vec();
            if !out.is_empty() {
                let bytes = out.len();
                match within(&io, io.now().plus(self.shared.patience), io.send(socket, out)).await {
                    Some(Ok(_)) => core.mark_sent(bytes),
                    // Part of it may have left: all of it counts as sent.
                    _ => break core.mark_sent(bytes),
                }
            }
            let until = core.next_deadline().unwrap_or(io.now().plus(self.shared.patience));
            match within(&io, until, io.receive(socket)).await {
                None if !welcome => break,
                None => core.expire(io.now(), |event| self.take(&mut asked, event)),
                Some(Ok(chunks)) if !chunks.is_empty() => {
                    for chunk in chunks {
                        let fed = core.receive(&chunk, |event| match event.id == hello {
                            true => welcome = event.outcome.is_ok(),
                            false => self.take(&mut asked, event),
                        });
                        if fed.is_err() {
                            self.shared.checkers[0].borrow_mut().failures.push("the stream is not made of frames".to_owned());
                        }
                    }
                }
                Some(_) => break,
            }
        }
        core.disconnect("the connection ended", |event| {
            if event.id != hello {
                self.take(&mut asked, event);
            }
        });
        io.close(socket);
    }

    /// Asks for as much as the pipeline holds.
    fn fill(&mut self, core: &mut Core, asked: &mut BTreeMap<u64, Asked>) {
        while core.in_flight() < self.pipeline {
            if !self.retries.is_empty() && self.prng.one_in(self.shared.retry_one_in) {
                let (mut retry, version) = self.retries.swap_remove(self.prng.below(self.retries.len() as u64) as usize);
                retry.again = true;
                (retry.asked, retry.asked_ms) = (self.io.now(), (self.shared.wall_ms)());
                self.submit(core, asked, retry, Some(version));
                continue;
            }
            if self.shared.budget.get() == 0 {
                return;
            }
            self.shared.budget.set(self.shared.budget.get() - 1);
            let fresh = self.draw();
            self.submit(core, asked, fresh, None);
        }
    }

    /// A random command.
    fn draw(&mut self) -> Asked {
        let prng = &mut self.prng;
        let namespace = usize::from(prng.one_in(5) && !self.shared.in_cluster);
        let key = prng.below(u64::from(self.shared.keys)) as u32;
        let begun_ms = (self.shared.wall_ms)();
        let bytes = if prng.one_in(self.shared.large_one_in) { prng.between(60_000, 150_000) } else { prng.below(self.shared.small_bytes) }
            as usize;
        let in_cluster = self.shared.in_cluster;
        let ttl_ms = prng.between(1, if in_cluster { 2_000 } else { 400 });
        let when = |condition| if in_cluster { Condition::Always } else { condition };
        let mut checker = self.shared.checkers[namespace].borrow_mut();
        let mut write = |effect, step| What::Write { key, id: checker.begin(key, effect, begun_ms, None), step };
        let put = |ttl_ms, condition| (Effect::Put { ttl_ms }, Step::Put { bytes, ttl_ms, condition });
        let drawn = if self.shared.deletes_one_in.is_some_and(|one_in| prng.one_in(one_in)) { DELETES.start } else { prng.below(100) };
        let what = match drawn {
            0..45 => What::Get { key },
            45..48 => What::Gets { keys: (0..prng.between(1, 8)).map(|_| prng.below(u64::from(self.shared.keys)) as u32).collect() },
            48..50 => What::Other,
            50..70 => write(put(0, Condition::Always).0, put(0, Condition::Always).1),
            70..77 => write(put(ttl_ms, Condition::Always).0, put(ttl_ms, Condition::Always).1),
            77..80 => write(put(0, Condition::Always).0, put(0, when(Condition::IfAbsent)).1),
            80..82 => write(put(0, Condition::Always).0, put(0, when(Condition::IfPresent)).1),
            _ if DELETES.contains(&drawn) => write(Effect::Delete, Step::Delete { condition: Condition::Always }),
            90..94 => write(Effect::Expire { ttl_ms }, Step::Expire { ttl_ms }),
            94..95 => write(Effect::Expire { ttl_ms: 0 }, Step::Expire { ttl_ms: 0 }),
            _ => {
                let first = key / BATCH_KEYS * BATCH_KEYS;
                let batch = Some(prng.next_u64()).filter(|_| !in_cluster);
                let mut keys: Vec<u32> = (first..(first + BATCH_KEYS).min(self.shared.keys)).collect();
                if in_cluster {
                    // Over vnodes, cores and replicas as they come: nothing but each key is atomic there.
                    keys = (0..prng.between(2, 8)).map(|_| prng.below(u64::from(self.shared.keys)) as u32).collect();
                    keys.sort_unstable();
                    keys.dedup();
                }
                let begin = |key: u32| (key, checker.begin(key, Effect::Put { ttl_ms: 0 }, begun_ms, batch));
                What::Batch { writes: keys.into_iter().map(begin).collect(), bytes: bytes.min(200) }
            }
        };
        Asked { namespace, asked: self.io.now(), asked_ms: begun_ms, what, again: false }
    }

    fn submit(&mut self, core: &mut Core, asked: &mut BTreeMap<u64, Asked>, request: Asked, version: Option<Version>) {
        let (now, namespace) = (self.io.now(), self.shared.namespaces[request.namespace].get());
        let deadline = now.plus(self.shared.patience);
        let write = WriteOptions { version, announce: version.is_none() && self.prng.one_in(4) };
        let mut give = |command: Command<'_>| core.submit(now, deadline, namespace, command);
        let given = match &request.what {
            What::Get { key } => give(Command::Get { key: &key_name(*key) }),
            What::Gets { keys } => {
                let names: Vec<_> = keys.iter().map(|key| key_name(*key)).collect();
                let names: Vec<&[u8]> = names.iter().map(Vec::as_slice).collect();
                give(Command::MultiGet { keys: List::Owned(names) })
            }
            What::Other => give(if self.prng.one_in(2) { Command::Ping } else { Command::NamespaceList }),
            What::Batch { writes, bytes } => {
                let pairs: Vec<_> = writes.iter().map(|&(key, id)| (key_name(key), value_of(key, id, *bytes))).collect();
                let items: Vec<_> = pairs.iter().map(|(key, value)| PutItem { key, value, ttl_ms: 0 }).collect();
                give(Command::MultiPut(MultiPut { items: List::Owned(items), write }))
            }
            What::Write { key, id, step } => {
                let name = key_name(*key);
                match *step {
                    Step::Put { bytes, ttl_ms, condition } => {
                        let value = value_of(*key, *id, bytes);
                        give(Command::Put(Put { key: &name, value: &value, ttl_ms, condition, write }))
                    }
                    Step::Delete { condition } => give(Command::Delete(Delete { key: &name, condition, write })),
                    Step::Expire { ttl_ms: 0 } => give(Command::Persist { key: &name, write }),
                    Step::Expire { ttl_ms } => give(Command::Expire { key: &name, ttl_ms, write }),
                }
            }
        };
        asked.insert(given.expect("the pipeline has room"), request);
    }

    /// An answer, or what stands for one.
    fn take(&mut self, asked: &mut BTreeMap<u64, Asked>, event: Event<'_>) {
        let request = if event.last { asked.remove(&event.id) } else { asked.get(&event.id).cloned() };
        let request = request.expect("an event of a request that was asked");
        if let (Some(Asked { what: What::Gets { keys }, .. }), Ok(Reply::Values(part))) = (asked.get_mut(&event.id), &event.outcome) {
            // More parts follow: they are of the keys behind these.
            keys.drain(..part.len());
        }
        let now = self.io.now();
        if let Err(ClientError::Unavailable { .. }) = event.outcome {
            // Nothing was done: it does not count.
            self.is_cut_off = true;
            self.shared.budget.set(self.shared.budget.get() + 1);
        } else if event.last {
            self.shared.answered.set(self.shared.answered.get() + 1);
        }
        let code = match &event.outcome {
            Err(ClientError::Failed { code, .. }) => Some(*code),
            Err(ClientError::Unavailable { .. }) => Some(ErrorCode::Unavailable),
            Err(ClientError::Unknown { version: Some(_) }) => Some(ErrorCode::Unknown),
            _ => None,
        };
        if let Some(code) = code {
            *self.shared.errors.borrow_mut().entry(code).or_default() += 1;
        }
        let fall = self.shared.falls.borrow().iter().find(|(at, _)| request.asked <= *at).map(|(_, wall_ms)| *wall_ms);
        let answered_ms = fall.unwrap_or_else(|| (self.shared.latest_ms)());
        let span = Span { asked: request.asked, asked_ms: request.asked_ms, answered_ms };
        let mut checker = self.shared.checkers[request.namespace].borrow_mut();
        let retry = match &request.what {
            What::Other => None,
            What::Get { key } => {
                read(&mut checker, *key, &event.outcome, span, now);
                None
            }
            What::Gets { keys } => {
                if let Ok(Reply::Values(values)) = &event.outcome {
                    for (key, value) in keys.iter().zip(values.iter()) {
                        reads_value(&mut checker, *key, value.map(|value| (value.version, value.value)), span, now);
                    }
                }
                None
            }
            What::Write { key, id, .. } => wrote(&mut checker, &[(*key, *id)], &event.outcome, request.again, span, now),
            What::Batch { writes, .. } => wrote(&mut checker, writes, &event.outcome, request.again, span, now),
        };
        drop(checker);
        if let Some(version) = retry
            && self.retries.len() < RETRIES_MAX
            && self.prng.one_in(2)
        {
            self.retries.push((request, version));
        }
    }
}

type Outcome<'a> = Result<Reply<'a>, ClientError>;

fn read(checker: &mut Checker, key: u32, outcome: &Outcome<'_>, span: Span, now: Mono) {
    match outcome {
        Ok(Reply::Value(value)) => {
            let shown = write_of(key, value.value).map_or(Shown::Garbage, |write| Shown::Value {
                write,
                version: value.version,
                remaining_ms: value.remaining_ms,
            });
            checker.read(key, shown, span, now);
        }
        Ok(Reply::Absent) => checker.read(key, Shown::Absent, span, now),
        Ok(other) => checker.failures.push(format!("key {key}: a get was answered with {other:?}")),
        Err(_) => {}
    }
}

/// Without a time to live in the answer, the time to live is not checked: only what the value is.
pub(super) fn reads_value(checker: &mut Checker, key: u32, value: Option<(Version, &[u8])>, span: Span, now: Mono) {
    match value {
        None => checker.read(key, Shown::Absent, span, now),
        Some((version, value)) => match write_of(key, value) {
            None => checker.read(key, Shown::Garbage, span, now),
            Some(write) => checker.read_timeless(key, write, version, span, now),
        },
    }
}

/// What an answer says of writes; a version under which it may be asked for again.
fn wrote(checker: &mut Checker, writes: &[(u32, WriteId)], outcome: &Outcome<'_>, again: bool, span: Span, now: Mono) -> Option<Version> {
    match outcome {
        Ok(Reply::Done { version }) => writes.iter().for_each(|&(key, id)| checker.acknowledged(key, id, *version, span.asked, now)),
        Ok(Reply::Announced { version }) => writes.iter().for_each(|&(key, id)| checker.stamped(key, id, *version)),
        Ok(Reply::Absent) => {
            // An expire or persist of a key that is absent.
            for &(key, id) in writes {
                checker.read(key, Shown::Absent, span, now);
                if !again {
                    checker.refused(key, id);
                }
            }
        }
        Ok(other) => checker.failures.push(format!("a write was answered with {other:?}")),
        Err(ClientError::Unknown { version }) => {
            if let Some(version) = version {
                writes.iter().for_each(|&(key, id)| checker.stamped(key, id, *version));
            }
            return *version;
        }
        Err(ClientError::NotMet { present }) => {
            for &(key, id) in writes {
                match present {
                    Some(version) => checker.version_shown(key, *version, span, now),
                    None => checker.read(key, Shown::Absent, span, now),
                }
                if !again {
                    checker.refused(key, id);
                }
            }
        }
        // A second try that is refused says nothing about the first.
        Err(_) if again => {}
        Err(_) => writes.iter().for_each(|&(key, id)| checker.refused(key, id)),
    }
    None
}

/// The namespaces that a run uses.
pub const INTERVAL_NAMESPACE: &str = "soft";
/// The default one comes first.
pub const FIRST_NAMESPACE: NamespaceId = NAMESPACE_DEFAULT;

/// The keys of a cluster's clients, and how many replicas each has.
#[derive(Clone, Copy)]
pub(super) struct Keyspace {
    pub namespace: NamespaceId,
    pub replicas: usize,
    pub keys: u32,
}
