//! A client for async programs, over tokio's sockets (feature `tokio`): a connection a core, a key straight to the node and core that own
//! it, everything that is called at once pipelined, reconnect with backoff, retries.
//!
//! A `Client` is a handle: clones share the connections, and calls on any of them run side by side. Connections are opened when first
//! needed and belong to the runtime on which that happened. In a cluster, where any node answers any key, another node is asked while the
//! owner is not connected. A request that certainly did nothing, and a write whose version is known,
//! are tried again (`ClientConfig::retries`); any other unanswered write is handed to the caller as `Unknown`. A caller that stops
//! waiting (a dropped future) takes nothing back: its write may happen.
//!
//! ```no_run
//! use ringkv::client::{ClientConfig, tokio::Client};
//!
//! # async fn run() -> Result<(), ringkv::client::ClientError> {
//! let client = Client::connect(ClientConfig::default()).await?;
//! client.put(b"greeting", b"hello").await?;
//! let clone = client.clone();
//! let found = tokio::spawn(async move { clone.get(b"greeting").await }).await.expect("the task ends")?;
//! assert_eq!(found.expect("just put").value, b"hello");
//! # Ok(())
//! # }
//! ```

mod lane;

use super::answer::{Answer, ClientError, NamespaceInfo, OwnedPage, OwnedValue, ServerInfo, TimeToLive, VersionedBytes};
use super::core::{Core, Event, backoff};
use super::request::{
    self, ClientConfig, DeleteOptions, IN_FLIGHT_MAX, NAMESPACE_AT_FIRST, NamespaceChanges, NamespaceOptions, Outcome, PutOptions, gone, ms,
};
use super::ring::{Ring, check_node};
use crate::base::prng::Prng;
use crate::base::record::{NamespaceId, Version};
use crate::base::time::Mono;
use crate::wire::command::*;
use ::tokio::io::{AsyncReadExt, AsyncWriteExt};
use ::tokio::net::TcpStream;
use ::tokio::sync::oneshot;
use ::tokio::time::{Instant, sleep, timeout_at};
use lane::{Lane, Look};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

/// What a hello's answer is read into at a time.
const HELLO_READ_BYTES: usize = 16 * 1024;

/// A handle on a client of a node, or of a cluster through any of its nodes. Cheap to clone; all methods take `&self` and may run at once.
#[derive(Clone)]
pub struct Client {
    shared: Arc<Shared>,
    namespace: NamespaceId,
    request_timeout: Duration,
}

struct Shared {
    config: Arc<ClientConfig>,
    clock: Clock,
    prng: Mutex<Prng>,
    topology: RwLock<Arc<Topology>>,
    next_address: AtomicUsize,
}

/// The server as the newest hello told it, and a lane for each core of each node.
struct Topology {
    server: ServerInfo,
    ring: Ring,
    lanes: Vec<Arc<Lane>>,
}

impl Topology {
    /// Indexes of keys in parts for one request each.
    fn parts<'k>(&self, keys: impl Iterator<Item = &'k [u8]>) -> Vec<Vec<usize>> {
        self.ring.parts(keys, self.server.limits.multi_keys_max)
    }
}

/// The runtime's clock as the protocol core counts it.
#[derive(Clone, Copy)]
struct Clock {
    start: Instant,
}

impl Clock {
    fn now(self) -> Mono {
        Mono(u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }

    /// The runtime's word for it; centuries away at most.
    fn instant(self, at: Mono) -> Instant {
        self.start + Duration::from_nanos(at.0)
    }
}

/// A connection that has said hello.
type Greeted = (TcpStream, Core, ServerInfo);

/// Connects to `address` and says hello to `core`, or where it is gone, to any. May be dropped at any point: nothing is left behind.
async fn open(address: &str, core: u16, config: &ClientConfig, clock: Clock) -> Result<Greeted, ClientError> {
    match open_to(address, core, config, clock).await {
        Err(refused) if request::has_no_such_core(core, &refused) => open_to(address, CORE_ANY, config, clock).await,
        outcome => outcome,
    }
}

async fn open_to(address: &str, core: u16, config: &ClientConfig, clock: Clock) -> Result<Greeted, ClientError> {
    let deadline = clock.now().plus(config.connect_timeout);
    let greet = async {
        let mut stream = TcpStream::connect(address).await.map_err(|error| gone(format!("{address}: {error}")))?;
        stream.set_nodelay(true).map_err(gone)?;
        let mut protocol = Core::new(IN_FLIGHT_MAX);
        protocol.set_levels(config.levels);
        protocol.submit(clock.now(), deadline, 0, config.hello(core))?;
        stream.write_all(protocol.output()).await.map_err(gone)?;
        protocol.mark_sent(protocol.output().len());
        let (mut buffer, mut is_over) = (vec![0; HELLO_READ_BYTES], false);
        let mut outcome: Outcome = Err(request::UNEXPECTED);
        while !is_over {
            let bytes = stream.read(&mut buffer).await.map_err(gone)?;
            if bytes == 0 {
                return Err(gone("the server closed the connection"));
            }
            let keep = |event: Event<'_>| {
                is_over |= event.last;
                match (&mut outcome, event.outcome.map(|reply| Answer::of(&reply))) {
                    (Ok(all), Ok(Some(part))) => all.extend(part),
                    (outcome, said) => *outcome = said.and_then(|part| part.ok_or(request::UNEXPECTED)),
                }
            };
            protocol.receive(&buffer[..bytes], keep)?;
        }
        Ok((stream, protocol, ServerInfo::of_hello(outcome?)?))
    };
    timeout_at(clock.instant(deadline), greet).await.unwrap_or_else(|_| Err(gone(format!("{address}: no hello in time"))))
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.topology().lanes.iter().for_each(|lane| lane.end("the client is gone"));
    }
}

impl Shared {
    fn topology(&self) -> Arc<Topology> {
        // It is replaced whole, so a panic elsewhere leaves nothing half done.
        self.topology.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn backoff(&self, attempt: u32) -> Duration {
        let unit = self.prng.lock().unwrap_or_else(PoisonError::into_inner).unit();
        backoff(attempt, self.config.backoff_min, self.config.backoff_max, unit)
    }

    /// The lane that a command goes to, connected; waits out the backoff. In a cluster the owner's lane is connected beside, and another
    /// node's serves until it is. `Disconnected` where that is not done by the deadline.
    async fn ensure(self: &Arc<Shared>, command: &Command<'_>, deadline: Mono) -> Result<Arc<Lane>, ClientError> {
        let late = || gone("no connection in time");
        loop {
            let topology = self.topology();
            let at = topology.ring.place_of(command);
            let lane = &topology.lanes[at];
            match lane.look() {
                Look::Connected => return Ok(lane.clone()),
                Look::News(told) => {
                    self.hear(*told);
                    continue;
                }
                Look::Empty => {}
            }
            if topology.ring.is_cluster() {
                self.dial(lane, &topology.ring, at);
                let mut others = topology.ring.instead(at).map(|other| &topology.lanes[other]);
                if let Some(other) = others.find(|other| other.is_connected()) {
                    return Ok(other.clone());
                }
            }
            let mut attempts = timeout_at(self.clock.instant(deadline), lane.connecting.lock()).await.map_err(|_| late())?;
            if lane.is_connected() || lane.is_retired() {
                continue;
            }
            let wait = attempts.not_before.since(self.clock.now());
            if self.clock.now().plus(wait) >= deadline {
                return Err(late());
            }
            sleep(wait).await;
            let core = if topology.ring.is_cluster() { CORE_ANY } else { topology.ring.target(at).1 };
            let address = self.address(&topology.ring);
            let opening = timeout_at(self.clock.instant(deadline), open(&address, core, &self.config, self.clock));
            match opening.await.unwrap_or_else(|_| Err(late())) {
                Ok(greeted) => {
                    (attempts.failures, attempts.not_before) = (0, Mono(0));
                    self.adopt(greeted, lane);
                }
                Err(error @ ClientError::Failed { .. }) => return Err(error),
                Err(_) => {
                    self.next_address.fetch_add(1, Ordering::Relaxed);
                    attempts.failures += 1;
                    attempts.not_before = self.clock.now().plus(self.backoff(attempts.failures));
                }
            }
        }
    }

    /// The address to try next, among those given and those that the cluster named.
    fn address(&self, ring: &Ring) -> String {
        let given = self.config.addresses.iter().map(String::as_str);
        let all: Vec<&str> = given.chain(ring.addresses()).collect();
        all[self.next_address.load(Ordering::Relaxed) % all.len()].to_owned()
    }

    /// Begins to connect a lane beside, unless that is under way or its time has not come.
    fn dial(self: &Arc<Shared>, lane: &Arc<Lane>, ring: &Ring, at: usize) {
        let Some(dial) = lane.begin_dial(self.clock.now()) else { return };
        let ((node, core), address) = (ring.target(at), ring.address(at).to_owned());
        let (shared, lane) = (Arc::downgrade(self), lane.clone());
        let (config, clock) = (self.config.clone(), self.clock);
        ::tokio::spawn(async move {
            let opened = open(&address, core, &config, clock).await;
            let opened = opened.and_then(|greeted| check_node(node, &greeted.2).map(|()| greeted));
            let Some(shared) = shared.upgrade() else { return };
            match opened {
                Ok(greeted) => {
                    dial.succeeded();
                    shared.adopt(greeted, &lane);
                }
                Err(_) => dial.failed(|failures| shared.clock.now().plus(shared.backoff(failures))),
            }
        });
    }

    /// Gives a connection to the lane of its node and core; where there is none, to the one that it was made for.
    fn adopt(&self, (stream, protocol, server): Greeted, lane: &Arc<Lane>) {
        let (node, core) = (server.node_id, server.core);
        self.hear(server);
        let topology = self.topology.write().unwrap_or_else(PoisonError::into_inner);
        let own = topology.ring.place_at(node, core).map(|at| &topology.lanes[at]);
        let target = if lane.is_retired() { own } else { own.or(Some(lane)) };
        // Another task may have connected it first, or the ring has no place for it now; one connection is enough.
        if let Some(target) = target
            && !target.is_connected()
        {
            target.carry(stream, protocol, self.clock, self.config.request_timeout);
        }
    }

    /// Takes in what a server said of itself or its cluster, if that is news: lanes stay with their node and core, and those of nodes and
    /// cores that are gone end with their last answer.
    fn hear(&self, told: ServerInfo) {
        let mut topology = self.topology.write().unwrap_or_else(PoisonError::into_inner);
        if !topology.ring.is_news(&told, &topology.server) {
            return;
        }
        let ring = Ring::of(&told, &self.config);
        let kept = |place: usize| {
            let (node, core) = ring.target(place);
            topology.ring.place_at(node, core).map(|at| topology.lanes[at].clone())
        };
        let lanes = (0..ring.places()).map(|place| kept(place).unwrap_or_else(Lane::new)).collect();
        let old = std::mem::replace(&mut *topology, Arc::new(Topology { server: told, ring, lanes }));
        let is_kept = |lane: &&Arc<Lane>| topology.lanes.iter().any(|kept| Arc::ptr_eq(lane, kept));
        old.lanes.iter().filter(|lane| !is_kept(lane)).for_each(|lane| lane.retire());
    }
}

/// Bytes that a command brings along.
fn payload_bytes(command: &Command<'_>) -> usize {
    match command {
        Command::Put(put) => put.key.len() + put.value.len(),
        Command::MultiPut(multi) => multi.items.iter().map(|item| item.key.len() + item.value.len()).sum(),
        Command::MultiGet { keys } => keys.iter().map(|key| key.len()).sum(),
        other => other.key().map_or(0, <[u8]>::len),
    }
}

impl Client {
    /// Connects to the first address that answers, and learns cores and topology. Tries as long as `retries` allows.
    ///
    /// # Errors
    /// `Failed` where the server refuses this client (its credential, its namespace), `Disconnected` where none was reached.
    pub async fn connect(config: ClientConfig) -> Result<Client, ClientError> {
        let clock = Clock { start: Instant::now() };
        let mut prng = Prng::new(RandomState::new().build_hasher().finish());
        let mut error = gone("no address given");
        for attempt in 0..=config.retries {
            if attempt > 0 {
                sleep(backoff(attempt, config.backoff_min, config.backoff_max, prng.unit())).await;
            }
            for (index, address) in config.addresses.iter().enumerate() {
                match open(address, CORE_ANY, &config, clock).await {
                    Ok(greeted) => return Client::of(config, clock, prng, greeted, index).await,
                    Err(why @ ClientError::Failed { .. }) => return Err(why),
                    Err(why) => error = why,
                }
            }
        }
        Err(error)
    }

    async fn of(config: ClientConfig, clock: Clock, prng: Prng, greeted: Greeted, address: usize) -> Result<Client, ClientError> {
        let (server, ring) = (greeted.2.clone(), Ring::of(&greeted.2, &config));
        let lanes: Vec<_> = (0..ring.places()).map(|_| Lane::new()).collect();
        let (lane, rows) = (lanes[0].clone(), server.namespaces.clone());
        let topology = RwLock::new(Arc::new(Topology { server, ring, lanes }));
        let request_timeout = config.request_timeout;
        let shared = Shared { config: Arc::new(config), clock, prng: Mutex::new(prng), topology, next_address: AtomicUsize::new(address) };
        shared.adopt(greeted, &lane);
        let mut client = Client { shared: Arc::new(shared), namespace: NAMESPACE_AT_FIRST, request_timeout };
        if !client.shared.config.is_default_namespace() {
            let rows = if rows.is_empty() { client.namespaces().await? } else { rows };
            client.namespace = client.shared.config.find_namespace(&rows)?;
        }
        Ok(client)
    }

    /// A handle on the same connections whose tries may each take this long.
    #[must_use]
    pub fn with_timeout(&self, request_timeout: Duration) -> Client {
        Client { request_timeout, ..self.clone() }
    }

    /// What the newest hello told.
    pub fn server(&self) -> ServerInfo {
        self.shared.topology().server.clone()
    }

    /// The namespace in use.
    pub fn namespace_id(&self) -> NamespaceId {
        self.namespace
    }

    /// Sends a command, as soon as there is a connection and room on it; who waits for the outcome.
    async fn send(&self, command: &Command<'_>, deadline: Mono) -> Result<oneshot::Receiver<Outcome>, ClientError> {
        let clock = self.shared.clock;
        loop {
            let lane = self.shared.ensure(command, deadline).await?;
            let room = timeout_at(clock.instant(deadline), lane.room(payload_bytes(command))).await.map_err(|_| ClientError::Full)?;
            let now = clock.now();
            if now >= deadline {
                return Err(ClientError::TimedOut);
            }
            if let Some(sent) = lane.submit((now, deadline), self.namespace, command.clone(), room) {
                return sent;
            }
        }
    }

    /// One try of one command.
    async fn try_once(&self, command: &Command<'_>, give_up: Mono) -> Outcome {
        let deadline = self.shared.clock.now().plus(self.request_timeout).min(give_up);
        outcome_of(self.send(command, deadline).await?).await
    }

    /// When even the last try of what begins now is over.
    fn give_up(&self) -> Mono {
        let tries = self.shared.config.retries.saturating_add(1);
        self.shared.clock.now().plus(self.request_timeout.saturating_mul(tries))
    }

    /// Tries a command, and again where that cannot act twice.
    async fn call(&self, command: Command<'_>) -> Outcome {
        let command = self.shared.config.prepared(command);
        let give_up = self.give_up();
        let first = self.try_once(&command, give_up).await;
        self.retry(command, first, give_up).await
    }

    async fn retry(&self, mut command: Command<'_>, mut outcome: Outcome, give_up: Mono) -> Outcome {
        for attempt in 1..=self.shared.config.retries {
            if self.shared.clock.now() >= give_up || !request::may_try_again(&mut command, &outcome) {
                break;
            }
            sleep(self.shared.backoff(attempt)).await;
            let next = self.try_once(&command, give_up).await;
            outcome = request::after_another(outcome, next);
        }
        outcome
    }

    /// Runs many commands at once, each on the connection of its key's core.
    async fn run(&self, commands: Vec<Command<'_>>) -> Vec<Outcome> {
        let (give_up, mut sent) = (self.give_up(), Vec::with_capacity(commands.len()));
        for command in commands {
            let command = self.shared.config.prepared(command);
            // From here on, since those before may have waited for room.
            let deadline = self.shared.clock.now().plus(self.request_timeout).min(give_up);
            let outcome = self.send(&command, deadline).await;
            sent.push((command, outcome));
        }
        let mut outcomes = Vec::with_capacity(sent.len());
        for (command, outcome) in sent {
            let first = match outcome {
                Ok(outcome) => outcome_of(outcome).await,
                Err(error) => Err(error),
            };
            outcomes.push(self.retry(command, first, give_up).await);
        }
        outcomes
    }
}

async fn outcome_of(outcome: oneshot::Receiver<Outcome>) -> Outcome {
    // Every waiter is told before it goes; without a word there is no telling what became of the request.
    outcome.await.unwrap_or(Err(ClientError::Unknown { version: None }))
}

/// The commands, one method each. Errors are `ClientError`'s; a write's result is its version.
impl Client {
    /// Any command; for what the methods below do not cover.
    pub async fn command(&self, command: Command<'_>) -> Result<Answer, ClientError> {
        self.call(command).await
    }

    /// Several commands at once: sent together, each to the core of its key, and answered in the order they were added. Calls on clones
    /// that run at the same time are sent together just as well; this is for many commands of one caller.
    pub fn pipeline<'a>(&self) -> Pipeline<'a> {
        Pipeline { client: self.clone(), commands: Vec::new() }
    }

    pub async fn ping(&self) -> Result<(), ClientError> {
        request::pong(self.call(Command::Ping).await?)
    }

    /// Lines of `key:value` about the node.
    pub async fn info(&self) -> Result<String, ClientError> {
        request::text(self.call(Command::Info).await?)
    }

    /// `None` where the key is absent.
    pub async fn get(&self, key: &[u8]) -> Result<Option<OwnedValue>, ClientError> {
        request::value(self.call(Command::Get { key }).await?)
    }

    pub async fn put(&self, key: &[u8], value: &[u8]) -> Result<Version, ClientError> {
        self.put_with(key, value, PutOptions::default()).await
    }

    /// A put with a time to live, a condition, or the version of an earlier try.
    pub async fn put_with(&self, key: &[u8], value: &[u8], options: PutOptions) -> Result<Version, ClientError> {
        request::done(self.call(request::put(key, value, options)).await?)
    }

    /// Also succeeds where there was no such key.
    pub async fn delete(&self, key: &[u8]) -> Result<Version, ClientError> {
        self.delete_with(key, DeleteOptions::default()).await
    }

    /// A delete with a condition, or the version of an earlier try.
    pub async fn delete_with(&self, key: &[u8], options: DeleteOptions) -> Result<Version, ClientError> {
        request::done(self.call(request::delete(key, options)).await?)
    }

    /// Gives a key a time to live. `None` where the key is absent.
    pub async fn expire(&self, key: &[u8], ttl: Duration) -> Result<Option<Version>, ClientError> {
        request::done_or_absent(self.call(request::expire(key, ttl)).await?)
    }

    /// Takes a key's time to live away. `None` where the key is absent.
    pub async fn persist(&self, key: &[u8]) -> Result<Option<Version>, ClientError> {
        request::done_or_absent(self.call(request::persist(key)).await?)
    }

    pub async fn ttl(&self, key: &[u8]) -> Result<TimeToLive, ClientError> {
        request::time_to_live(self.call(Command::Ttl { key }).await?)
    }

    /// Values in the order of the keys. Split by core and in parts of at most the server's bound; not one snapshot across them.
    pub async fn multi_get(&self, keys: &[&[u8]]) -> Result<Vec<Option<VersionedBytes>>, ClientError> {
        let parts = self.shared.topology().parts(keys.iter().copied());
        let lists: Vec<Vec<&[u8]>> = parts.iter().map(|part| part.iter().map(|&index| keys[index]).collect()).collect();
        let outcomes = self.run(lists.iter().map(|keys| Command::MultiGet { keys: List::Borrowed(keys) }).collect()).await;
        request::join_values(keys.len(), &parts, outcomes)
    }

    /// Several puts, each item's version in the order of the items. Split by core; what goes to one core goes in requests of at most the
    /// server's bound of keys, and such a request is atomic. Where parts fail, the first error comes back and others may have been stored.
    pub async fn multi_put(&self, items: &[PutItem<'_>]) -> Result<Vec<Version>, ClientError> {
        let parts = self.shared.topology().parts(items.iter().map(|item| item.key));
        let lists: Vec<Vec<PutItem<'_>>> = parts.iter().map(|part| part.iter().map(|&index| items[index]).collect()).collect();
        let outcomes = self.run(lists.iter().map(|items| request::multi_put(items)).collect()).await;
        request::join_versions(items.len(), &parts, outcomes)
    }

    /// One page of a vnode's keys; an empty cursor starts, and an empty one in the page says that the vnode is through.
    pub async fn scan(&self, vnode: u32, cursor: &[u8], limit: u32, with_values: bool) -> Result<OwnedPage, ClientError> {
        request::page(self.call(Command::Scan(Scan { vnode, cursor, limit, with_values })).await?)
    }

    pub async fn namespaces(&self) -> Result<Vec<NamespaceInfo>, ClientError> {
        request::namespaces(self.call(request::namespace_list(&self.server())).await?)
    }

    /// A zero TTL is none.
    pub async fn namespace_create(&self, name: &str, ttl: Duration, durability: Durability) -> Result<NamespaceInfo, ClientError> {
        let command = Command::NamespaceCreate { name, default_ttl_ms: ms(ttl), durability };
        request::namespace(self.call(command).await?)
    }

    /// `None` leaves as it is.
    pub async fn namespace_alter(
        &self,
        name: &str,
        default_ttl: Option<Duration>,
        durability: Option<Durability>,
    ) -> Result<NamespaceInfo, ClientError> {
        let command = Command::NamespaceAlter { name, default_ttl_ms: default_ttl.map(ms), durability };
        request::namespace(self.call(command).await?)
    }

    /// As `namespace_create`, with more said. A node that knows no compression answers `UnknownKind`; one that knows no
    /// levels of a namespace, or no other number of replicas than 3, does the rest, and this says so with the same code.
    pub async fn namespace_create_with(&self, name: &str, options: NamespaceOptions) -> Result<NamespaceInfo, ClientError> {
        request::namespace_with(self.call(Command::NamespaceMake(options.spec(name))).await?, options.levels, options.replicas)
    }

    /// As `namespace_alter`, with more said. A node that knows no compression answers `UnknownKind`; one that knows no
    /// levels of a namespace does the rest, and this says so with the same code.
    pub async fn namespace_alter_with(&self, name: &str, changes: NamespaceChanges) -> Result<NamespaceInfo, ClientError> {
        request::namespace_with(self.call(Command::NamespaceChange(changes.change(name))).await?, changes.levels, None)
    }

    /// A snapshot on the node under this name; lines of `key:value` about it.
    pub async fn snapshot(&self, name: &str) -> Result<String, ClientError> {
        request::text(self.call(Command::Snapshot { name }).await?)
    }

    /// The state of the cluster, or a change of its nodes, in words as behind `ringkv cluster`: text for people.
    pub async fn cluster(&self, words: &str) -> Result<String, ClientError> {
        request::text(self.call(Command::Cluster { words }).await?)
    }
}

/// Commands gathered to be run together.
pub struct Pipeline<'a> {
    client: Client,
    commands: Vec<Command<'a>>,
}

impl<'a> Pipeline<'a> {
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
    pub async fn run(self) -> Vec<Result<Answer, ClientError>> {
        self.client.run(self.commands).await
    }
}
