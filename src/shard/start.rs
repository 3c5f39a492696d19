//! The life of a shard from opening to closing, the same in a node of threads and in the simulator.
//!
//! Core 0 opens the data folder's layout and tells the others; each opens its own part; when all are open the layout is settled, the
//! namespaces are read and told, and core 0 listens. At the end each core answers what is under way, and closes when all have.

use super::admit::Admit;
use super::cluster::{Cluster, ClusterPlan};
use super::conn::Conn;
use super::coordinate::Requests;
use super::handoff::Handoff;
use super::locks::KeyLocks;
use super::mailbox::{Mail, Mailbox, MailboxEnds};
use super::namespaces::{Durability, NamespaceTable};
use super::route::{Forwarded, ForwardedBatch};
use super::stats::{self, Board, Stats};
use super::{Origin, Shard, Ticket, decisions, forget, moves, perform, repair, replicate, session, welcome};
use crate::base::metrics::Report;
use crate::base::record::{Version, core_of};
use crate::base::time::{HLC_COUNTER_BITS, hlc_ms};
use crate::engine::format::Identity;
use crate::engine::recover::{NodeConfig, NodeStore};
use crate::engine::{Engine, EngineConfig, EngineError, Planted};
use crate::io::signal::Signal;
use crate::io::{Class, Io, SocketAddr};
use crate::limits::{CLUSTER_VERSION, VNODES_DEFAULT};
use std::cell::{Cell, RefCell};
use std::path::{Path, PathBuf};
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicUsize, Ordering};
use std::time::Duration;

/// How often connections that hold up others are looked for.
const STALLED_EVERY: Duration = Duration::from_millis(500);
/// How often answers that wait for the log are looked through for passed deadlines.
const OVERDUE_EVERY: Duration = Duration::from_millis(10);
/// How long a starting shard waits until the wall clock is where its own is.
const CLOCK_WAIT_MS_MAX: u64 = 250;
/// The same in a cluster, where the clock's ceiling is laid further ahead.
const CLUSTER_CLOCK_WAIT_MS_MAX: u64 = 5_000;
/// How long a closing shard waits for what is under way.
const DRAIN_MAX: Duration = Duration::from_secs(10);

/// What a node is to be: shared by its shards.
pub struct Plan {
    pub data: PathBuf,
    pub listen: SocketAddr,
    /// The host that clients are told.
    pub host: String,
    pub cores: u16,
    /// Of a data folder that does not exist yet; None: the default, and whatever an existing folder has.
    pub vnodes: Option<u32>,
    pub durability: Durability,
    pub secret: Option<Vec<u8>>,
    /// One core's budget.
    pub memory_bytes: usize,
    /// Sizes of the engine: everything in it that is the same for all cores.
    pub engine: EngineConfig,
    pub board: Arc<Board>,
    /// None: the node is alone.
    pub cluster: Option<ClusterPlan>,
    /// How often a shard publishes its figures.
    pub publish_every: Duration,
    /// The port that was bound; 0 until then.
    pub port: AtomicU16,
    /// Set, and every core woken, to end the node.
    pub stop: AtomicBool,
    /// Cores whose requests are all answered.
    pub drained: AtomicUsize,
    /// Told once, by core 0, when the node serves.
    pub ready: Box<dyn Fn(SocketAddr) + Send + Sync>,
    /// A bug for the simulator to find.
    pub planted: Option<Planted>,
}

/// What a shard knows of its node.
pub struct NodeInfo {
    pub vnodes: u32,
    pub cores: u16,
    pub node_id: u64,
    pub cluster_id: [u8; 16],
    pub host: String,
    pub secret: Option<Vec<u8>>,
    pub info: Box<dyn Fn() -> String>,
    /// The layout of the data folder.
    pub store: Arc<NodeStore>,
    data: PathBuf,
    plan: Arc<Plan>,
}

impl NodeInfo {
    fn new(plan: &Arc<Plan>, layout: &Arc<NodeStore>) -> NodeInfo {
        let board = plan.board.clone();
        let identity = layout.identity();
        let head = format!("node_id:{:016x}\nvnodes:{}\ncores:{}\n", identity.node, layout.vnodes(), plan.cores);
        let info = move || {
            let trouble = board.trouble().map_or_else(|| "state:ok\n".to_owned(), |why| format!("state:{why}\n"));
            format!("{head}{trouble}{}", board.report().info())
        };
        NodeInfo {
            vnodes: layout.vnodes(),
            cores: plan.cores,
            node_id: identity.node,
            cluster_id: u128::from(identity.cluster).to_be_bytes(),
            host: plan.host.clone(),
            secret: plan.secret.clone(),
            info: Box::new(info),
            store: layout.clone(),
            data: plan.data.clone(),
            plan: plan.clone(),
        }
    }

    /// Says a sentence to whoever runs the node.
    pub fn warn(&self, sentence: &str) {
        if let Some(cluster) = &self.plan.cluster {
            (cluster.warn)(sentence);
        }
    }

    /// Every core ends as when it is told to.
    pub fn stop(&self) {
        self.plan.stop.store(true, Ordering::Release);
    }

    /// The port of the native protocol.
    pub fn port(&self) -> u16 {
        self.plan.port.load(Ordering::Relaxed)
    }

    /// A figure of the whole node, as it was published last.
    pub fn figure(&self, name: &str) -> f64 {
        self.plan.board.report().total(name)
    }

    /// The node is to ask to be let into its cluster.
    pub fn asks_in(&self) -> bool {
        self.plan.cluster.as_ref().is_some_and(|cluster| cluster.asks_in)
    }

    /// The data folder.
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// Where snapshots are, each a data folder of its own.
    pub fn snapshots_dir(&self) -> PathBuf {
        self.data.join("snapshots")
    }
}

/// Why a shard ended before its time.
#[derive(Debug)]
pub enum StartFailure {
    Engine(EngineError),
    /// The address that could not be bound.
    Listen(SocketAddr, std::io::Error),
    /// The disk has no room for moving the data from so many cores to so many; nothing has changed.
    NoRoom {
        before: u16,
        cores: u16,
    },
    /// What is configured is not what the data folder is made for.
    Contradiction(String),
    /// Another core failed first.
    Other(String),
    /// The node was told to stop while it started.
    Stopped,
}

impl From<EngineError> for StartFailure {
    fn from(error: EngineError) -> StartFailure {
        StartFailure::Engine(error)
    }
}

impl std::fmt::Display for StartFailure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            StartFailure::Engine(error) => error.fmt(f),
            StartFailure::Listen(address, error) => write!(f, "cannot listen on {address}: {error}"),
            StartFailure::NoRoom { before, cores } => write!(
                f,
                "the disk is full: moving the data from {before} cores to {cores} takes room for what the logs hold; nothing has changed, \
                 so make room, or start with {before} cores as before"
            ),
            StartFailure::Contradiction(why) | StartFailure::Other(why) => f.write_str(why),
            StartFailure::Stopped => f.write_str("stopped while it started"),
        }
    }
}

/// One core's whole life: returns when the node was stopped, or could not start.
pub async fn run(io: Io, ends: MailboxEnds, plan: Arc<Plan>) -> Result<(), StartFailure> {
    let mailbox = Rc::new(Mailbox::new(io.clone(), ends));
    let (inbox, stop) = (mailbox.clone(), plan.clone());
    let told = Rc::new(Cell::new(false));
    let heard = told.clone();
    // While a node starts nobody reads the board, and what is new there must not keep who waits for mail awake.
    let seen = Rc::new(Cell::new(None));
    let looked = seen.clone();
    io.set_inbox(Box::new(move || {
        let board = stop.cluster.as_ref().and_then(|cluster| cluster.board.as_ref());
        let has_news = looked.get().zip(board).is_some_and(|(looked, board)| board.news() != looked);
        inbox.any_waiting() || has_news || (stop.stop.load(Ordering::Acquire) && !heard.get())
    }));
    let opened = open(&io, &mailbox, &plan).await;
    let shard = match opened {
        Ok(shard) => shard,
        // Every core sees the flag by itself; what is on disk is as after a crash.
        Err(StartFailure::Stopped) => return Ok(()),
        Err(failure) => {
            tell_failure(&io, &mailbox, &failure);
            return Err(failure);
        }
    };
    spawn_services(&shard, &plan);
    if io.core() == 0 {
        listen(&shard, &plan).await?;
    }
    read_mail(&shard, &plan, &told, &seen).await;
    drain(&shard, &plan).await;
    if let Err(error) = shard.engine.close().await {
        plan.board.stopped(shard.core(), &error.to_string());
    }
    shard.ends_for.take().map_or(Ok(()), Err)
}

/// The data folder's layout; an empty folder becomes a node's with names of its own.
async fn open_store(io: &Io, plan: &Plan) -> Result<Arc<NodeStore>, EngineError> {
    let identity = plan.cluster.as_ref().map(|cluster| Identity { cluster: cluster.founding.cluster(), node: cluster.node });
    let config = NodeConfig { cores: plan.cores, vnodes: plan.vnodes.unwrap_or(VNODES_DEFAULT), identity, core_of };
    NodeStore::open(io, &plan.data, config).await
}

/// Opens this core's part, in step with the others.
async fn open(io: &Io, mailbox: &Rc<Mailbox>, plan: &Arc<Plan>) -> Result<Rc<Shard>, StartFailure> {
    let others = 1..usize::from(plan.cores);
    let layout = if io.core() == 0 {
        let layout = open_store(io, plan).await?;
        if let Some(asked) = plan.vnodes.filter(|&asked| asked != layout.vnodes()) {
            let has = layout.vnodes();
            return Err(StartFailure::Contradiction(format!("vnodes {asked}: the data folder was made with {has}, for good")));
        }
        others.clone().for_each(|core| mailbox.send(core, Mail::Open(layout.clone())));
        mailbox.wake();
        layout
    } else {
        loop {
            match next_mail(io, mailbox, plan).await? {
                (_, Mail::Open(layout)) => break layout,
                (_, Mail::Opened(Err(why))) => return Err(StartFailure::Other(why)),
                _ => {}
            }
        }
    };
    let config = EngineConfig { core: io.core() as u16, planted: plan.planted, ..plan.engine.clone() };
    let engine = open_engine(io, mailbox, plan, &layout, config).await?;
    wait_for_wall_clock(io, &engine, plan.cluster.is_some()).await;
    let cluster = open_cluster(io, plan, &layout).await?;
    let shard = Rc::new_cyclic(|this| assemble(io, mailbox, plan, (engine, cluster), &layout, this.clone()));
    if io.core() == 0 {
        for _ in others.clone() {
            next_step(io, mailbox, plan, |mail| matches!(mail, Mail::Opened(Ok(())))).await?;
        }
        layout.commit(io).await.map_err(|error| no_room(error, layout.previous_cores(), layout.cores()))?;
        let table = load_namespaces(&shard, plan.durability).await?;
        shard.publish_namespaces(Arc::new(table));
        if let Some(cluster) = &plan.cluster {
            let (topology, register) = decisions::load(&shard.engine, cluster, shard.io.wall_ms()).await?;
            let topology = Arc::new(topology);
            shard.cluster.iter().for_each(|cluster| cluster.moves.set_register(register.clone()));
            others.clone().for_each(|core| mailbox.send(core, Mail::Topology(topology.clone())));
            shard.learn_topology(&topology);
        } else {
            // Nobody has to be waited for. A full disk keeps no node from starting: it rises another time.
            match layout.raise_format(io, CLUSTER_VERSION).await {
                Err(error) if error.is_disk_full() => {}
                other => other?,
            }
        }
        others.for_each(|core| mailbox.send(core, Mail::Serve));
    } else {
        mailbox.send(0, Mail::Opened(Ok(())));
        mailbox.wake();
        loop {
            match next_mail(io, mailbox, plan).await? {
                (_, Mail::Namespaces(table)) => shard.set_namespaces(table),
                (_, Mail::Topology(topology)) => shard.learn_topology(&topology),
                (_, Mail::Serve) => break,
                (_, Mail::Opened(Err(why))) => return Err(StartFailure::Other(why)),
                _ => {}
            }
        }
    }
    mailbox.wake();
    Ok(shard)
}

/// This core's engine. Where the data comes from another list of cores, all shards read their shares of the old logs before any opens.
async fn open_engine(
    io: &Io,
    mailbox: &Mailbox,
    plan: &Plan,
    layout: &Arc<NodeStore>,
    config: EngineConfig,
) -> Result<Engine, StartFailure> {
    let before = layout.previous_cores();
    if before.is_none() {
        return Ok(Engine::open(io, layout, config).await?.0);
    }
    let in_words = |error| no_room(error, before, layout.cores());
    let moved = Engine::read_old_logs(io, layout, &config).await.map_err(in_words)?;
    let others = 1..usize::from(layout.cores());
    if io.core() == 0 {
        for _ in others.clone() {
            next_step(io, mailbox, plan, |mail| matches!(mail, Mail::LogsRead)).await?;
        }
        others.for_each(|core| mailbox.send(core, Mail::LogsRead));
    } else {
        mailbox.send(0, Mail::LogsRead);
    }
    mailbox.wake();
    if io.core() != 0 {
        next_step(io, mailbox, plan, |mail| matches!(mail, Mail::LogsRead)).await?;
    }
    let (engine, _) = Engine::open(io, layout, config).await.map_err(in_words)?;
    engine.count_flushes(moved.flushes);
    Ok(engine)
}

/// A move that a full disk ends has changed nothing, and says what can be done.
fn no_room(error: EngineError, before: Option<u16>, cores: u16) -> StartFailure {
    match before.filter(|_| error.is_disk_full()) {
        Some(before) => StartFailure::NoRoom { before, cores },
        None => StartFailure::Engine(error),
    }
}

/// The engine's clock starts above everything that it may have told before, a little ahead of the wall clock; deadlines count from it.
/// Where the wall clock is there at once it is waited for, so that a time to live is what was asked; where it was set back, it is not.
async fn wait_for_wall_clock(io: &Io, engine: &Engine, in_cluster: bool) {
    let now_ms = io.wall_ms();
    let ahead_ms = hlc_ms(engine.stamp(now_ms).hlc()).saturating_sub(now_ms);
    // Other nodes take no stamp that is far ahead of their clocks.
    if ahead_ms <= if in_cluster { CLUSTER_CLOCK_WAIT_MS_MAX } else { CLOCK_WAIT_MS_MAX } {
        io.sleep(Duration::from_millis(ahead_ms)).await;
    }
}

/// What this core knows of its cluster. The layout says whose the data is.
async fn open_cluster(io: &Io, plan: &Plan, layout: &NodeStore) -> Result<Option<Rc<Cluster>>, StartFailure> {
    let Some(cluster) = &plan.cluster else { return Ok(None) };
    let identity = layout.identity();
    if identity.node != cluster.node {
        return Err(StartFailure::Contradiction(format!("node-id {}: the data folder is node {}'s", cluster.node, identity.node)));
    }
    // Until core 0 has read what is stored; nobody serves before.
    let topology = Arc::new(cluster.founding.clone());
    let handoff = Handoff::open(io, &layout.shard_dir(io.core() as u16), identity, io.random_u64()).await?;
    Ok(Some(Rc::new(Cluster::new(cluster, topology, io.random_u64(), plan.memory_bytes, handoff))))
}

fn assemble(
    io: &Io,
    mailbox: &Rc<Mailbox>,
    plan: &Arc<Plan>,
    (engine, cluster): (Engine, Option<Rc<Cluster>>),
    layout: &Arc<NodeStore>,
    this: Weak<Shard>,
) -> Shard {
    Shard {
        io: io.clone(),
        mailbox: mailbox.clone(),
        locks: KeyLocks::new(io.random_u64()),
        admit: Admit::new(plan.memory_bytes / 4, plan.memory_bytes / 8),
        pace: Rc::default(),
        stats: Stats::default(),
        node: Rc::new(NodeInfo::new(plan, layout)),
        core: io.core() as u16,
        engine,
        cluster,
        namespaces_version: Cell::new(Version::ZERO),
        local: RefCell::default(),
        this,
        namespaces: RefCell::new(Arc::new(NamespaceTable::fresh(plan.durability))),
        commits: RefCell::default(),
        ahead: Cell::default(),
        dirty: RefCell::default(),
        ends_for: RefCell::default(),
        closing: Cell::new(false),
        connections: Cell::new(0),
        open: RefCell::default(),
        ended: Signal::default(),
    }
}

async fn next_mail(io: &Io, mailbox: &Mailbox, plan: &Plan) -> Result<(usize, Mail), StartFailure> {
    loop {
        for core in 0..mailbox.cores() {
            if let Some(mail) = mailbox.pop(core) {
                return Ok((core, mail));
            }
        }
        // Perhaps because a core could not even begin, and the mail that is waited for never comes.
        if plan.stop.load(Ordering::Acquire) {
            return Err(StartFailure::Stopped);
        }
        io.inbox().await;
    }
}

/// Waits for the mail that says that a step of the start is done.
async fn next_step(io: &Io, mailbox: &Mailbox, plan: &Plan, is_it: impl Fn(&Mail) -> bool) -> Result<(), StartFailure> {
    loop {
        match next_mail(io, mailbox, plan).await?.1 {
            Mail::Opened(Err(why)) => return Err(StartFailure::Other(why)),
            mail if is_it(&mail) => return Ok(()),
            _ => {}
        }
    }
}

pub(super) fn tell_failure(io: &Io, mailbox: &Mailbox, failure: &StartFailure) {
    for core in (0..mailbox.cores()).filter(|&core| core != io.core()) {
        mailbox.send(core, Mail::Opened(Err(failure.to_string())));
    }
    mailbox.wake();
}

/// The namespaces as stored; a fresh node stores its default one first.
async fn load_namespaces(shard: &Rc<Shard>, durability: Durability) -> Result<NamespaceTable, EngineError> {
    let key = perform::table_key();
    if let Some(value) = shard.engine.read_value(key, shard.io.wall_ms()).await? {
        shard.namespaces_version.set(value.version);
        return NamespaceTable::decode(&value.bytes).map_err(|error| EngineError::corrupt("the namespace table", 0, error));
    }
    let table = NamespaceTable::fresh(durability);
    if shard.cluster.is_some() {
        // Older than any that somebody made: what other nodes have goes before it.
        let version = Version::put(1 << HLC_COUNTER_BITS, 0);
        perform::store_namespaces_as(shard, &table, version).await?;
        shard.namespaces_version.set(version);
    } else {
        shard.namespaces_version.set(perform::store_namespaces(shard, &table).await?);
    }
    Ok(table)
}

/// Everything a shard does beside answering: the log's news, deadlines, figures.
fn spawn_services(shard: &Rc<Shard>, plan: &Arc<Plan>) {
    let (weak, board, core): (Weak<Shard>, _, _) = (Rc::downgrade(shard), plan.board.clone(), shard.core());
    shard.engine.on_durable(Box::new(move |outcome| {
        if let Err(why) = &outcome {
            board.stopped(core, why);
        }
        if let Some(shard) = weak.upgrade() {
            shard.on_durable(outcome);
        }
    }));
    let io = &shard.io;
    let (writes, settles) = (shard.clone(), shard.clone());
    let let_in = shard.pace.clone().run(io.clone(), shard.engine.clone(), move |later| writes.write_now(later), move || settles.settle());
    drop(io.spawn(Class::Foreground, let_in));
    if let Some(cluster) = &shard.cluster {
        Requests::start(shard, cluster);
        repair::start(shard, cluster);
        moves::start(shard, cluster);
        forget::start(shard, cluster);
        welcome::start(shard);
        if shard.core() == 0 {
            let comparing = shard.clone();
            drop(io.spawn(Class::Background, async move { comparing.compare_with_all().await }));
        }
    }
    let watched = shard.clone();
    drop(io.spawn(Class::Foreground, async move {
        while !watched.is_closing() {
            watched.io.sleep(OVERDUE_EVERY).await;
            watched.expire_held();
            watched.engine.look_at_clock(watched.io.wall_ms());
        }
    }));
    let cutting = shard.clone();
    drop(io.spawn(Class::Background, async move {
        while !cutting.is_closing() {
            cutting.io.sleep(STALLED_EVERY).await;
            session::cut_stalled(&cutting);
        }
    }));
    let (published, board, every) = (shard.clone(), plan.board.clone(), plan.publish_every);
    drop(io.spawn(Class::Background, async move {
        while !published.is_closing() {
            board.publish(published.core(), report(&published));
            // The log tells by itself when it fails; a flush or a merge that fails for good is seen here.
            if let Some(why) = published.engine.stopped() {
                board.stopped(published.core(), &why);
            }
            published.io.sleep(every).await;
        }
    }));
}

fn report(shard: &Shard) -> Report {
    let mut report = Report::new();
    shard.stats.report(&mut report);
    report.count(&stats::CONNECTIONS, &[], shard.connections() as u64);
    report.count(&stats::WAITING, &[], shard.admit.waiting() as u64);
    if let Some(cluster) = &shard.cluster {
        let hints = cluster.handoff.figures();
        report.count(&stats::HINTS, &[], hints.hints as u64);
        report.count(&stats::HINT_BYTES, &[], hints.bytes as u64);
        report.count(&stats::HINTS_SENT, &[], hints.replayed);
        report.count(&stats::HINTS_DROPPED, &[], hints.not_kept + hints.expired);
        report.count(&stats::LINKS, &[], cluster.links.up() as u64);
        report.count(&stats::COORDINATED, &[], cluster.requests.running() as u64);
        report.count(&stats::EPOCH, &[], cluster.epoch());
        report.count(&stats::VERSION, &[], u64::from(cluster.topology().version()));
        let (coming, taken_over) = cluster.moves.progress();
        report.count(&stats::COMING, &[], coming as u64);
        report.count(&stats::TAKEN_OVER, &[], taken_over as u64);
    }
    let (waited, wait) = shard.pace.waited();
    report.count(&stats::WRITE_RATE, &[], shard.pace.rate());
    report.count(&stats::WRITES_SLOWED, &[], waited);
    report.count(&stats::WRITES_WAITING, &[], wait as u64);
    shard.engine.report(&mut report);
    if let Some(cluster) = &shard.cluster {
        cluster.repair.report(&mut report);
        cluster.forget.report(&mut report, &shard.engine, shard.io.wall_ms());
    }
    report
}

async fn listen(shard: &Rc<Shard>, plan: &Plan) -> Result<(), StartFailure> {
    let listener = match shard.io.listen(plan.listen).await {
        Ok(listener) => listener,
        Err(error) => {
            let failure = StartFailure::Listen(plan.listen, error);
            tell_failure(&shard.io, &shard.mailbox, &failure);
            return Err(failure);
        }
    };
    let address = listener.address();
    plan.port.store(address.port(), Ordering::Relaxed);
    drop(shard.io.spawn(Class::Foreground, session::listen(shard.clone(), listener)));
    (plan.ready)(address);
    Ok(())
}

/// Carries out what other cores send, until the node is stopped.
async fn read_mail(shard: &Rc<Shard>, plan: &Plan, told: &Cell<bool>, seen: &Cell<Option<u64>>) {
    let board = plan.cluster.as_ref().and_then(|cluster| cluster.board.clone());
    seen.set(Some(0));
    loop {
        shard.io.inbox().await;
        if let Some(board) = &board {
            seen.set(Some(board.news()));
            shard.look_at_members();
        }
        if plan.stop.load(Ordering::Acquire) {
            told.set(true);
            shard.close();
            return;
        }
        if take_mail(shard) == MailEnd::Failed {
            shard.close();
            return;
        }
    }
}

#[derive(PartialEq)]
enum MailEnd {
    Taken,
    Failed,
}

/// All that has come in, in one pass.
fn take_mail(shard: &Rc<Shard>) -> MailEnd {
    let mut end = MailEnd::Taken;
    for core in 0..shard.mailbox.cores() {
        let mut requests = ForwardedBatch::default();
        while let Some(mail) = shard.mailbox.pop(core) {
            match mail {
                Mail::Request { ticket, form, id, body, room } => {
                    let ticket = Ticket { origin: Origin::Core { core: core as u16, ticket, room }, id };
                    requests.add(shard, Forwarded { ticket, form, body });
                }
                Mail::NeedsRoom { ticket, bytes, form, body } => {
                    let ticket = shard.mailbox.claim(core, ticket, true);
                    shard.ask_again(core, ticket, bytes, form, body);
                }
                Mail::Reply { ticket, last, frame } => {
                    let ticket = shard.mailbox.claim(core, ticket, last);
                    shard.answer_frame(&ticket, frame, last);
                }
                Mail::Connection { parcel, greeting, rest } => {
                    drop(shard.io.spawn(Class::Foreground, session::adopt(shard.clone(), parcel, greeting, rest)));
                }
                Mail::Peer(peer) => drop(shard.io.spawn(Class::Replication, replicate::adopt(shard.clone(), peer))),
                Mail::Learn(topology) => shard.adopt_topology(topology),
                Mail::Topology(topology) => shard.learn_topology(&topology),
                Mail::Namespaces(table) => shard.set_namespaces(table),
                Mail::CompareAnew => shard.cluster.iter().for_each(|cluster| shard.compare_anew(cluster)),
                Mail::Opened(Err(_)) => end = MailEnd::Failed,
                Mail::Open(_) | Mail::LogsRead | Mail::Opened(Ok(())) | Mail::Serve => {}
            }
        }
        requests.carry_out(shard);
    }
    shard.settle();
    end
}

/// Answers what is under way, here and for the other cores, and lets connections go.
async fn drain(shard: &Rc<Shard>, plan: &Plan) {
    let io = &shard.io;
    let until = io.now().plus(DRAIN_MAX);
    let step = Duration::from_millis(1);
    while shard.admit.waiting() > 0 && io.now() < until {
        take_mail(shard);
        io.sleep(step).await;
    }
    plan.drained.fetch_add(1, Ordering::AcqRel);
    while plan.drained.load(Ordering::Acquire) < usize::from(plan.cores) && io.now() < until {
        take_mail(shard);
        io.sleep(step).await;
    }
    shard.settle();
    let conns: Vec<Rc<Conn>> = shard.open_connections().into_iter().map(|(conn, _)| conn).collect();
    while conns.iter().any(|conn| !conn.closed.get() && conn.out_bytes() > 0) && io.now() < until {
        io.sleep(step).await;
    }
    conns.iter().for_each(|conn| conn.close());
}
