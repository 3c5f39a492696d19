//! A blocking client over std's sockets: a connection a core, a key straight to the node and core that own it, pipelines, reconnect,
//! retries.
//!
//! Connections are opened when first needed. In a cluster that happens beside (a thread each, a few at a time), for any node answers
//! any key: while the owner is not connected another node is asked, so a dead one holds up nobody who has not sent to it. A request that
//! certainly did nothing, and a write whose version is known, are tried again (`ClientConfig::retries`); any other unanswered write is
//! handed to the caller as `Unknown`.

use super::answer::{Answer, ClientError, NamespaceInfo, OwnedPage, OwnedValue, ServerInfo, TimeToLive, VersionedBytes};
use super::core::{Core, Event, NEWS, backoff};
use super::request::{self, ClientConfig, DeleteOptions, NamespaceChanges, NamespaceOptions, Outcome, PutOptions};
use super::request::{IN_FLIGHT_MAX, NAMESPACE_AT_FIRST, READ_BYTES, gone, ms};
use super::ring::{Ring, check_node};
use crate::base::map::{Map, Seeded};
use crate::base::prng::Prng;
use crate::base::record::{NamespaceId, Version};
use crate::base::time::Mono;
use crate::wire::command::*;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

/// Output that may wait before a pipeline reads answers again.
const OUTPUT_BYTES_MAX: usize = 256 * 1024;
/// A send that is stuck this long looks whether the server waits for us to read.
const STUCK: Duration = Duration::from_millis(20);
/// Connections being opened beside at once.
const DIALS_MAX: usize = 4;

/// What a server has said.
struct Said {
    /// Parts of answers, and answers that nobody has fetched.
    answers: Map<u64, Outcome>,
    finished: Vec<u64>,
    /// Of the topology, unasked.
    news: Option<Box<ServerInfo>>,
}

/// One open connection.
struct Connection {
    stream: TcpStream,
    core: Core,
    said: Said,
    /// The node and its core at the other end.
    end: (u64, u16),
    buffer: Vec<u8>,
    read_timeout: Duration,
    last_received: Mono,
    /// Everything in flight was ended; nothing more can be sent.
    lost: bool,
}

/// The place of one core's connection.
#[derive(Default)]
struct Slot {
    connection: Option<Connection>,
    /// Connects that failed in a row.
    failures: u32,
    not_before: Mono,
    /// It is being opened beside.
    is_dialed: bool,
}

/// A connection that was opened beside, for this node and core.
struct Dialed {
    node: u64,
    core: u16,
    opened: Result<(Connection, ServerInfo), ClientError>,
}

/// Connections being opened beside.
struct Dials {
    running: usize,
    tell: Sender<Dialed>,
    opened: Receiver<Dialed>,
}

/// A client of a node, or of a cluster through any of its nodes.
pub struct Client {
    config: Arc<ClientConfig>,
    start: Instant,
    prng: Prng,
    server: ServerInfo,
    /// Says whose the slots are.
    ring: Ring,
    /// Taken in before the next command: the slots of one that is under way stay where they are.
    news: Option<Box<ServerInfo>>,
    namespace: NamespaceId,
    slots: Vec<Slot>,
    dials: Dials,
    next_address: usize,
}

impl Default for Dials {
    fn default() -> Dials {
        let (tell, opened) = channel();
        Dials { running: 0, tell, opened }
    }
}

fn is_timeout(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted)
}

impl Connection {
    /// Connects and says hello to `core`, or where it is gone, to any.
    fn open(address: &str, core: u16, config: &ClientConfig, start: Instant) -> Result<(Connection, ServerInfo), ClientError> {
        match Connection::open_to(address, core, config, start) {
            Err(refused) if request::has_no_such_core(core, &refused) => Connection::open_to(address, CORE_ANY, config, start),
            outcome => outcome,
        }
    }

    fn open_to(address: &str, core: u16, config: &ClientConfig, start: Instant) -> Result<(Connection, ServerInfo), ClientError> {
        let mut error = gone("the address names no host");
        for target in address.to_socket_addrs().map_err(gone)? {
            match TcpStream::connect_timeout(&target, config.connect_timeout) {
                Ok(stream) => return Connection::hello(stream, core, config, start),
                Err(why) => error = gone(format!("{target}: {why}")),
            }
        }
        Err(error)
    }

    fn hello(stream: TcpStream, core: u16, config: &ClientConfig, start: Instant) -> Result<(Connection, ServerInfo), ClientError> {
        stream.set_nodelay(true).map_err(gone)?;
        stream.set_write_timeout(Some(STUCK)).map_err(gone)?;
        stream.set_read_timeout(Some(config.request_timeout)).map_err(gone)?;
        let mut protocol = Core::new(IN_FLIGHT_MAX);
        protocol.set_levels(config.levels);
        let mut connection = Connection {
            stream,
            core: protocol,
            said: Said { answers: Map::with_hasher(Seeded(0)), finished: Vec::new(), news: None },
            end: (0, 0),
            buffer: vec![0; READ_BYTES],
            read_timeout: config.request_timeout,
            last_received: mono(start),
            lost: false,
        };
        let now = mono(start);
        let id = connection.core.submit(now, now.plus(config.connect_timeout), 0, config.hello(core))?;
        let server = ServerInfo::of_hello(connection.wait(id, start, config.request_timeout)?)?;
        connection.end = (server.node_id, server.core);
        Ok((connection, server))
    }

    /// Sends and reads until `id` is answered, one way or the other.
    fn wait(&mut self, id: u64, start: Instant, patience: Duration) -> Outcome {
        loop {
            if let Some(outcome) = self.said.take(id) {
                return outcome;
            }
            if let Err(why) = self.turn(start, patience) {
                self.lose(&why.to_string());
            }
        }
    }

    /// Sends what waits, then reads once.
    fn turn(&mut self, start: Instant, patience: Duration) -> Result<(), ClientError> {
        self.flush(start, patience)?;
        let now = mono(start);
        let left = self.core.next_deadline().map_or(patience, |deadline| deadline.since(now));
        if self.read(left.min(patience), start)? == self.buffer.len() {
            // More is waiting, perhaps the very answers whose deadline is over.
            return Ok(());
        }
        let now = mono(start);
        let mut expired = false;
        self.core.expire(now, |event| {
            expired = true;
            self.said.keep(event);
        });
        if expired && now.since(self.last_received) >= patience {
            return Err(gone("the server is silent"));
        }
        Ok(())
    }

    /// Sends all output. Where the server does not take it, it may be waiting for us to read, so that is tried in between.
    fn flush(&mut self, start: Instant, patience: Duration) -> Result<(), ClientError> {
        let mut progress = mono(start);
        while !self.core.output().is_empty() {
            match self.stream.write(self.core.output()) {
                Ok(0) => return Err(gone("the server closed the connection")),
                Ok(bytes) => {
                    self.core.mark_sent(bytes);
                    progress = mono(start);
                }
                Err(error) if is_timeout(error.kind()) => {
                    self.read(Duration::from_millis(1), start)?;
                    if mono(start).since(progress) > patience {
                        return Err(gone("the server takes nothing in"));
                    }
                }
                Err(error) => return Err(gone(error)),
            }
        }
        Ok(())
    }

    /// Waits for bytes, at most about `patience`; how many came.
    fn read(&mut self, patience: Duration, start: Instant) -> Result<usize, ClientError> {
        // Setting the timeout is a system call: a little longer than needed is as good.
        let wanted = patience.max(Duration::from_millis(1));
        if wanted > self.read_timeout || wanted < self.read_timeout.mul_f64(0.9) {
            self.stream.set_read_timeout(Some(wanted)).map_err(gone)?;
            self.read_timeout = wanted;
        }
        match self.stream.read(&mut self.buffer) {
            Ok(0) => Err(gone("the server closed the connection")),
            Ok(bytes) => {
                self.last_received = mono(start);
                self.core.receive(&self.buffer[..bytes], |event| self.said.keep(event))?;
                Ok(bytes)
            }
            Err(error) if is_timeout(error.kind()) => Ok(0),
            Err(error) => Err(gone(error)),
        }
    }

    /// Ends everything in flight.
    fn lose(&mut self, why: &str) {
        self.lost = true;
        _ = self.stream.shutdown(std::net::Shutdown::Both);
        self.core.disconnect(why, |event| self.said.keep(event));
    }
}

impl Said {
    /// Keeps an event's answer until it is fetched.
    fn keep(&mut self, event: Event<'_>) {
        match event.outcome {
            Ok(reply) => {
                let answer = Answer::of(&reply);
                if event.id == NEWS {
                    if let Some(news) = answer.and_then(|answer| ServerInfo::of_hello(answer).ok()) {
                        self.news = Some(Box::new(news));
                    }
                    return;
                }
                if let Some(answer) = answer {
                    match self.answers.get_mut(&event.id) {
                        Some(Ok(all)) => all.extend(answer),
                        _ => _ = self.answers.insert(event.id, Ok(answer)),
                    }
                }
            }
            Err(error) => _ = self.answers.insert(event.id, Err(error)),
        }
        if event.last {
            self.finished.push(event.id);
        }
    }

    /// The outcome of a finished request.
    fn take(&mut self, id: u64) -> Option<Outcome> {
        let at = self.finished.iter().position(|&other| other == id)?;
        self.finished.swap_remove(at);
        self.answers.remove(&id)
    }
}

fn mono(start: Instant) -> Mono {
    Mono(u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX))
}

impl Client {
    /// Connects to the first address that answers, and learns cores and topology. Tries as long as `retries` allows.
    pub fn connect(config: ClientConfig) -> Result<Client, ClientError> {
        let start = Instant::now();
        let mut prng = Prng::new(RandomState::new().build_hasher().finish());
        let mut error = gone("no address given");
        for attempt in 0..=config.retries {
            if attempt > 0 {
                std::thread::sleep(backoff(attempt, config.backoff_min, config.backoff_max, prng.unit()));
            }
            for (index, address) in config.addresses.iter().enumerate() {
                match Connection::open(address, CORE_ANY, &config, start) {
                    Ok((connection, server)) => {
                        let mut client = Client {
                            ring: Ring::of(&server, &config),
                            config: Arc::new(config),
                            start,
                            prng,
                            server,
                            news: None,
                            namespace: NAMESPACE_AT_FIRST,
                            slots: Vec::new(),
                            dials: Dials::default(),
                            next_address: index,
                        };
                        client.slots.resize_with(client.ring.places(), Slot::default);
                        client.place(connection, 0);
                        client.find_namespace()?;
                        return Ok(client);
                    }
                    Err(why @ ClientError::Failed { .. }) => return Err(why),
                    Err(why) => error = why,
                }
            }
        }
        Err(error)
    }

    /// Puts a connection where its node and core belong, or at `otherwise`: any node answers any key. Where it is now.
    fn place(&mut self, connection: Connection, otherwise: usize) -> usize {
        let (node, core) = connection.end;
        let at = self.ring.place_at(node, core).unwrap_or(otherwise);
        self.slots[at] = Slot { connection: Some(connection), is_dialed: self.slots[at].is_dialed, ..Slot::default() };
        at
    }

    fn find_namespace(&mut self) -> Result<(), ClientError> {
        if !self.config.is_default_namespace() {
            let rows = std::mem::take(&mut self.server.namespaces);
            let rows = if rows.is_empty() { self.namespaces()? } else { rows };
            self.namespace = self.config.find_namespace(&rows)?;
        }
        Ok(())
    }

    /// What the newest hello told.
    pub fn server(&self) -> &ServerInfo {
        &self.server
    }

    /// The namespace in use.
    pub fn namespace_id(&self) -> NamespaceId {
        self.namespace
    }

    /// Keeps what a server said of itself or its cluster, if that is news.
    fn hear(&mut self, told: Box<ServerInfo>) {
        if self.ring.is_news(&told, self.news.as_deref().unwrap_or(&self.server)) {
            self.news = Some(told);
        }
    }

    /// Takes in what was heard since the last command: connections go to where they belong now.
    fn take_news(&mut self) {
        let Some(told) = self.news.take() else { return };
        let ring = Ring::of(&told, &self.config);
        self.server = *told;
        if ring == self.ring {
            return;
        }
        self.ring = ring;
        let places = self.ring.places();
        let old = std::mem::replace(&mut self.slots, std::iter::repeat_with(Slot::default).take(places).collect());
        for connection in old.into_iter().filter_map(|slot| slot.connection) {
            let (node, core) = connection.end;
            if self.ring.place_at(node, core).is_some_and(|at| self.slots[at].connection.is_none()) {
                self.place(connection, 0);
            }
        }
    }

    fn is_connected(&self, at: usize) -> bool {
        self.slots[at].connection.is_some()
    }

    /// The slot that serves in place of `at`: itself, where it has a connection. In a cluster its connection is opened beside, and another
    /// node asked until it is there; where none is connected, one is opened here, waiting out the backoff.
    fn ensure(&mut self, at: usize, deadline: Mono) -> Result<usize, ClientError> {
        loop {
            self.take_dialed();
            if self.is_connected(at) {
                return Ok(at);
            }
            if self.ring.is_cluster() {
                self.dial(at);
                if let Some(other) = self.ring.instead(at).find(|other| self.is_connected(*other)) {
                    return Ok(other);
                }
            }
            let wait = self.slots[at].not_before.since(mono(self.start));
            if mono(self.start).plus(wait) >= deadline {
                return Err(gone("no connection in time"));
            }
            std::thread::sleep(wait);
            let core = if self.ring.is_cluster() { CORE_ANY } else { self.ring.target(at).1 };
            match Connection::open(&self.address(), core, &self.config, self.start) {
                Ok((connection, server)) => {
                    self.hear(Box::new(server));
                    return Ok(self.place(connection, at));
                }
                Err(error @ ClientError::Failed { .. }) => return Err(error),
                Err(_) => {
                    self.next_address += 1;
                    self.back_off(at);
                }
            }
        }
    }

    /// The address to try next, among those given and those that the cluster named.
    fn address(&self) -> String {
        let given = self.config.addresses.iter().map(String::as_str);
        let all: Vec<&str> = given.chain(self.ring.addresses()).collect();
        all[self.next_address % all.len()].to_owned()
    }

    fn back_off(&mut self, at: usize) {
        let (min, max) = (self.config.backoff_min, self.config.backoff_max);
        let slot = &mut self.slots[at];
        slot.failures += 1;
        slot.not_before = mono(self.start).plus(backoff(slot.failures, min, max, self.prng.unit()));
    }

    /// Begins to open the connection of a slot beside, unless that is under way or its time has not come.
    fn dial(&mut self, at: usize) {
        let slot = &self.slots[at];
        if slot.is_dialed || self.dials.running >= DIALS_MAX || slot.not_before > mono(self.start) {
            return;
        }
        let (node, core) = self.ring.target(at);
        let (address, config, start, tell) = (self.ring.address(at).to_owned(), self.config.clone(), self.start, self.dials.tell.clone());
        let open = move || {
            let opened = Connection::open(&address, core, &config, start);
            let opened = opened.and_then(|opened| check_node(node, &opened.1).map(|()| opened));
            // The client may be gone by now.
            _ = tell.send(Dialed { node, core, opened });
        };
        match std::thread::Builder::new().name("ringkv-dial".into()).spawn(open) {
            Ok(_) => {
                self.dials.running += 1;
                self.slots[at].is_dialed = true;
            }
            Err(_) => self.back_off(at),
        }
    }

    /// Takes in the connections that were opened beside.
    fn take_dialed(&mut self) {
        while self.dials.running > 0 {
            let Ok(Dialed { node, core, opened }) = self.dials.opened.try_recv() else { return };
            self.dials.running -= 1;
            // What is no place of the ring any more is not needed either.
            let Some(at) = self.ring.place_at(node, core) else { continue };
            self.slots[at].is_dialed = false;
            match opened {
                Ok((connection, server)) => {
                    self.hear(Box::new(server));
                    let slot = &mut self.slots[at];
                    if slot.connection.is_none() {
                        *slot = Slot { connection: Some(connection), ..Slot::default() };
                    }
                }
                Err(_) => self.back_off(at),
            }
        }
    }

    /// One try of one command.
    fn try_once(&mut self, command: Command<'_>, give_up: Mono) -> Outcome {
        let (start, patience) = (self.start, self.config.request_timeout);
        let deadline = mono(start).plus(patience).min(give_up);
        self.take_news();
        let at = self.ensure(self.ring.place_of(&command), deadline)?;
        let connection = self.slots[at].connection.as_mut().expect("ensured");
        let id = connection.core.submit(mono(start), deadline, self.namespace, command)?;
        let outcome = connection.wait(id, start, patience);
        self.look_at(at);
        self.take_news();
        outcome
    }

    /// Hears what came unasked on a connection, and forgets it if it was lost.
    fn look_at(&mut self, at: usize) {
        let Some(connection) = &mut self.slots[at].connection else { return };
        let (news, is_lost) = (connection.said.news.take(), connection.lost);
        if is_lost {
            self.slots[at].connection = None;
        }
        if let Some(news) = news {
            self.hear(news);
        }
    }

    /// Tries a command, and again where that cannot act twice.
    fn call(&mut self, command: Command<'_>) -> Outcome {
        let command = self.config.prepared(command);
        let give_up = self.give_up();
        let first = self.try_once(command.clone(), give_up);
        self.retry(command, first, give_up)
    }

    /// When even the last try of what begins now is over.
    fn give_up(&self) -> Mono {
        mono(self.start).plus(self.config.request_timeout.saturating_mul(self.config.retries.saturating_add(1)))
    }

    fn retry(&mut self, mut command: Command<'_>, mut outcome: Outcome, give_up: Mono) -> Outcome {
        for attempt in 1..=self.config.retries {
            if mono(self.start) >= give_up || !request::may_try_again(&mut command, &outcome) {
                break;
            }
            std::thread::sleep(backoff(attempt, self.config.backoff_min, self.config.backoff_max, self.prng.unit()));
            let next = self.try_once(command.clone(), give_up);
            outcome = request::after_another(outcome, next);
        }
        outcome
    }

    /// Runs many commands, each on the connection of its key's core.
    fn run(&mut self, commands: Vec<Command<'_>>) -> Vec<Outcome> {
        let (start, patience, give_up) = (self.start, self.config.request_timeout, self.give_up());
        let by = mono(start).plus(patience);
        let commands: Vec<_> = commands.into_iter().map(|command| self.config.prepared(command)).collect();
        let mut outcomes: Vec<Option<Outcome>> = commands.iter().map(|_| None).collect();
        let mut queues: Vec<Queue> = Vec::new();
        self.take_news();
        for (index, command) in commands.iter().enumerate() {
            match self.ensure(self.ring.place_of(command), by) {
                Ok(at) => {
                    queues.resize_with(queues.len().max(at + 1), Queue::default);
                    queues[at].waiting.push_back(index);
                }
                Err(error) => outcomes[index] = Some(Err(error)),
            }
        }
        // The first window of every connection leaves before the first answer is waited for.
        for end in [false, true] {
            for (at, queue) in queues.iter_mut().enumerate() {
                if let Some(connection) = self.slots.get_mut(at).and_then(|slot| slot.connection.as_mut()) {
                    let clock = (start, patience);
                    queue.pump(connection, self.namespace, &commands, &mut outcomes, clock, end);
                }
                if end && at < self.slots.len() {
                    self.look_at(at);
                }
            }
        }
        let lost = || Err(gone("the connection was lost before it was sent"));
        let outcomes: Vec<_> = outcomes.into_iter().map(|outcome| outcome.unwrap_or_else(lost)).collect();
        outcomes.into_iter().zip(commands).map(|(outcome, command)| self.retry(command, outcome, give_up)).collect()
    }
}

/// What is still to be sent on, and answered by, one connection of a pipeline.
#[derive(Default)]
struct Queue {
    waiting: std::collections::VecDeque<usize>,
    /// Request id and index of the command.
    flying: Vec<(u64, usize)>,
}

impl Queue {
    /// Sends a window, and to the `end` if so wanted.
    fn pump(
        &mut self,
        connection: &mut Connection,
        namespace: NamespaceId,
        commands: &[Command<'_>],
        outcomes: &mut [Option<Outcome>],
        (start, patience): (Instant, Duration),
        end: bool,
    ) {
        loop {
            while !connection.lost && connection.core.output().len() < OUTPUT_BYTES_MAX {
                let Some(&index) = self.waiting.front() else { break };
                let now = mono(start);
                match connection.core.submit(now, now.plus(patience), namespace, commands[index].clone()) {
                    Ok(id) => self.flying.push((id, index)),
                    Err(ClientError::Full) => break,
                    Err(error) => outcomes[index] = Some(Err(error)),
                }
                self.waiting.pop_front();
            }
            if let Err(why) = if end { connection.turn(start, patience) } else { connection.flush(start, patience) } {
                connection.lose(&why.to_string());
            }
            let mut done: Map<u64, Outcome> = Map::with_hasher(Seeded(0));
            for id in connection.said.finished.drain(..) {
                done.extend(connection.said.answers.remove(&id).map(|outcome| (id, outcome)));
            }
            self.flying.retain(|&(id, index)| match done.remove(&id) {
                Some(outcome) => {
                    outcomes[index] = Some(outcome);
                    false
                }
                None => true,
            });
            if !end || self.flying.is_empty() && (self.waiting.is_empty() || connection.lost) {
                return;
            }
        }
    }
}

/// The commands, one method each. Errors are `ClientError`'s; a write's result is its version.
impl Client {
    /// Any command; for what the methods below do not cover.
    pub fn command(&mut self, command: Command<'_>) -> Result<Answer, ClientError> {
        self.call(command)
    }

    /// Several commands at once: sent together, each to the core of its key, and answered in the order they were added.
    pub fn pipeline<'a>(&mut self) -> Pipeline<'_, 'a> {
        Pipeline { client: self, commands: Vec::new() }
    }

    pub fn ping(&mut self) -> Result<(), ClientError> {
        request::pong(self.call(Command::Ping)?)
    }

    /// Lines of `key:value` about the node.
    pub fn info(&mut self) -> Result<String, ClientError> {
        request::text(self.call(Command::Info)?)
    }

    /// `None` where the key is absent.
    pub fn get(&mut self, key: &[u8]) -> Result<Option<OwnedValue>, ClientError> {
        request::value(self.call(Command::Get { key })?)
    }

    pub fn put(&mut self, key: &[u8], value: &[u8]) -> Result<Version, ClientError> {
        self.put_with(key, value, PutOptions::default())
    }

    /// A put with a time to live, a condition, or the version of an earlier try.
    pub fn put_with(&mut self, key: &[u8], value: &[u8], options: PutOptions) -> Result<Version, ClientError> {
        request::done(self.call(request::put(key, value, options))?)
    }

    /// Also succeeds where there was no such key.
    pub fn delete(&mut self, key: &[u8]) -> Result<Version, ClientError> {
        self.delete_with(key, DeleteOptions::default())
    }

    /// A delete with a condition, or the version of an earlier try.
    pub fn delete_with(&mut self, key: &[u8], options: DeleteOptions) -> Result<Version, ClientError> {
        request::done(self.call(request::delete(key, options))?)
    }

    /// Gives a key a time to live. `None` where the key is absent.
    pub fn expire(&mut self, key: &[u8], ttl: Duration) -> Result<Option<Version>, ClientError> {
        request::done_or_absent(self.call(request::expire(key, ttl))?)
    }

    /// Takes a key's time to live away. `None` where the key is absent.
    pub fn persist(&mut self, key: &[u8]) -> Result<Option<Version>, ClientError> {
        request::done_or_absent(self.call(request::persist(key))?)
    }

    pub fn ttl(&mut self, key: &[u8]) -> Result<TimeToLive, ClientError> {
        request::time_to_live(self.call(Command::Ttl { key })?)
    }

    /// Values in the order of the keys. Split by core and in parts of at most the server's bound; not one snapshot across them.
    pub fn multi_get(&mut self, keys: &[&[u8]]) -> Result<Vec<Option<VersionedBytes>>, ClientError> {
        let parts = self.ring.parts(keys.iter().copied(), self.server.limits.multi_keys_max);
        let lists: Vec<Vec<&[u8]>> = parts.iter().map(|part| part.iter().map(|&index| keys[index]).collect()).collect();
        let outcomes = self.run(lists.iter().map(|keys| Command::MultiGet { keys: List::Borrowed(keys) }).collect());
        request::join_values(keys.len(), &parts, outcomes)
    }

    /// Several puts, each item's version in the order of the items. Split by core; what goes to one core goes in requests of at most the
    /// server's bound of keys, and such a request is atomic. Where parts fail, the first error comes back and others may have been stored.
    pub fn multi_put(&mut self, items: &[PutItem<'_>]) -> Result<Vec<Version>, ClientError> {
        let parts = self.ring.parts(items.iter().map(|item| item.key), self.server.limits.multi_keys_max);
        let lists: Vec<Vec<PutItem<'_>>> = parts.iter().map(|part| part.iter().map(|&index| items[index]).collect()).collect();
        let outcomes = self.run(lists.iter().map(|items| request::multi_put(items)).collect());
        request::join_versions(items.len(), &parts, outcomes)
    }

    /// One page of a vnode's keys; an empty cursor starts, and an empty one in the page says that the vnode is through.
    pub fn scan(&mut self, vnode: u32, cursor: &[u8], limit: u32, with_values: bool) -> Result<OwnedPage, ClientError> {
        request::page(self.call(Command::Scan(Scan { vnode, cursor, limit, with_values }))?)
    }

    pub fn namespaces(&mut self) -> Result<Vec<NamespaceInfo>, ClientError> {
        request::namespaces(self.call(request::namespace_list(&self.server))?)
    }

    /// A zero TTL is none.
    pub fn namespace_create(&mut self, name: &str, default_ttl: Duration, durability: Durability) -> Result<NamespaceInfo, ClientError> {
        let command = Command::NamespaceCreate { name, default_ttl_ms: ms(default_ttl), durability };
        request::namespace(self.call(command)?)
    }

    /// `None` leaves as it is.
    pub fn namespace_alter(
        &mut self,
        name: &str,
        default_ttl: Option<Duration>,
        durability: Option<Durability>,
    ) -> Result<NamespaceInfo, ClientError> {
        let command = Command::NamespaceAlter { name, default_ttl_ms: default_ttl.map(ms), durability };
        request::namespace(self.call(command)?)
    }

    /// As `namespace_create`, with more said. A node that knows no compression answers `UnknownKind`; one that knows no
    /// levels of a namespace, or no other number of replicas than 3, does the rest, and this says so with the same code.
    pub fn namespace_create_with(&mut self, name: &str, options: NamespaceOptions) -> Result<NamespaceInfo, ClientError> {
        request::namespace_with(self.call(Command::NamespaceMake(options.spec(name)))?, options.levels, options.replicas)
    }

    /// As `namespace_alter`, with more said. A node that knows no compression answers `UnknownKind`; one that knows no
    /// levels of a namespace does the rest, and this says so with the same code. What is on disk takes on another
    /// compression little by little, as merges rewrite it.
    pub fn namespace_alter_with(&mut self, name: &str, changes: NamespaceChanges) -> Result<NamespaceInfo, ClientError> {
        request::namespace_with(self.call(Command::NamespaceChange(changes.change(name)))?, changes.levels, None)
    }

    /// A snapshot on the node under this name; lines of `key:value` about it.
    pub fn snapshot(&mut self, name: &str) -> Result<String, ClientError> {
        request::text(self.call(Command::Snapshot { name })?)
    }

    /// The state of the cluster, or a change of its nodes, in words as behind `ringkv cluster`: text for people.
    pub fn cluster(&mut self, words: &str) -> Result<String, ClientError> {
        request::text(self.call(Command::Cluster { words })?)
    }
}

/// Commands gathered to be run together.
pub struct Pipeline<'c, 'a> {
    client: &'c mut Client,
    commands: Vec<Command<'a>>,
}

impl<'a> Pipeline<'_, 'a> {
    /// Adds any command; its index in the results.
    pub fn add(&mut self, command: Command<'a>) -> usize {
        self.commands.push(command);
        self.commands.len() - 1
    }

    pub fn get(&mut self, key: &'a [u8]) -> usize {
        self.add(Command::Get { key })
    }

    pub fn put(&mut self, key: &'a [u8], value: &'a [u8]) -> usize {
        self.add(request::put(key, value, PutOptions::default()))
    }

    pub fn delete(&mut self, key: &'a [u8]) -> usize {
        self.add(request::delete(key, DeleteOptions::default()))
    }

    /// Sends all, waits for all. Commands on one key are executed in no promised order.
    pub fn run(self) -> Vec<Result<Answer, ClientError>> {
        self.client.run(self.commands)
    }
}
