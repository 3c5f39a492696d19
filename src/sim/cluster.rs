//! A cluster of whole nodes from a seed: production code of every room on one simulated world, clients that ask any node, and the checker.
//!
//! The fault model. Nodes lose power at any disk operation or between them, or their processes are killed; they come back with what was
//! durable. Several may be down at once, all of them too. Links are cut, one way or both, one by one or all of a node's; connections are
//! reset; bytes come late and in pieces; disks and cores are slow; wall clocks differ by up to 300 ms and drift. Meanwhile nodes join,
//! leave, come back, change their weights and are replaced (`operator`); one at a time falls for good, or comes back on an empty disk, or
//! has bits flip in its tables until it is replaced. Now and then two nodes have only each other (`estranged`). What befalls them how often
//! a seed draws (`fates`).
//!
//! Gossip is the node's own, shell included; its datagrams are lost, repeated and delayed (`air`). In a build with the feature
//! `next-version` programs of two versions serve together, and nodes get the newer one while clients go on (`programs`).
//!
//! Cells come late at times, or once more, up to some seconds later. The dead are forgotten as in life (rules G1 to G6), but for a lag of
//! about a second, or much less, in place of an hour, and memtables and merges that are as small as can be.
//!
//! Clients put, get, delete and expire at QUORUM, and retry what is unknown under its stamp. Checked: every rule of `checker` (nothing
//! acknowledged is lost, nothing goes back, expiry is exact by the versions' clocks), that after the faults all is answered in time, and
//! that the replicas of each key then become equal without anybody asking for it (`agree`), and that what is deleted then is dropped from
//! the disk (`buried`).

use super::agree::{AGREE_MAX, all_agree};
use super::air::Air;
use super::buried::{all_absent, delete_all, fill};
use super::checker::{Checker, Span};
use super::estranged::{self, Estranged};
use super::fates::{Fates, any_of, draw_latencies};
use super::final_look::Quiet;
use super::operator::{self, Operator};
use super::scenario::small_engine;
use super::seeds::{self, Outcome};
use super::workload::{FIRST_NAMESPACE, Keyspace, REQUEST_PATIENCE, Shared, SimClient, key_name, reads_value};
use crate::base::prng::Prng;
use crate::base::record::{token_of, vnode_of};
use crate::base::time::{Mono, WallMs};
use crate::client::Answer;
use crate::cluster::board::MemberBoard;
use crate::cluster::gossip::member::{Profile, Rack, Versions};
use crate::cluster::gossip::wire::Key;
use crate::cluster::gossip::{Me, Timing};
use crate::cluster::topology::{NodeSpec, Topology};
use crate::control::gossip::{GossipSetup, to_address};
use crate::engine::EngineError;
use crate::io::sim::{CrashSite, Faults, MachineId, World};
use crate::io::wakers::Wakers;
use crate::io::{Class, Io, SocketAddr, Task};
use crate::limits::{CLUSTER_VERSION, CLUSTER_VERSION_MIN, RF_DEFAULT, RF_MAX};
use crate::shard::cluster::ClusterPlan;
use crate::shard::forget::Times;
use crate::shard::late::Late;
use crate::shard::mailbox;
use crate::shard::start::{self, Plan, StartFailure};
use crate::shard::stats::Board;
use crate::wire::command::{Command, Compression, Durability, LevelsAsked, NamespaceSpec};
use std::cell::{Cell, RefCell};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

const PORT: u16 = 7400;
const GOSSIP_PORT: u16 = 7490;
const VNODES: u32 = 16;
const CLUSTER: u64 = 0xC1;
/// What comes late.
const LATE_MS_MAX: u64 = 6_000;
/// Between two sessions of forgetting of a core.
const FORGET_PAUSE: Duration = Duration::from_millis(20);
/// By then every vnode has had a session, and merges have dropped what is below its floor.
const FORGOTTEN_MAX: Duration = Duration::from_secs(60);
/// Simulated time after which a run that does not come forward counts as stuck.
pub(super) const STUCK: Duration = Duration::from_secs(60);

/// Faults that every run of many seeds must have seen.
pub const FAULTS_WANTED: &[&str] = &[
    "crash",
    "kill",
    "crash before",
    "crash during",
    "crash after",
    "link cut one way",
    "link cut both ways",
    "node cut off",
    "all nodes down",
    "reset",
    "chunked delivery",
    "slow io",
    "core pause",
    "torn write",
    "ENOSPC",
    "EIO read",
    "EIO write",
    "EIO durable write",
    SHARD_STOPPED,
    operator::JOIN,
    operator::REJOIN,
    operator::LEAVE,
    operator::REPLACE,
    operator::WEIGHT,
    operator::CANCEL,
    operator::FELL_MEANWHILE,
    operator::CUT_MEANWHILE,
    operator::MOVERS_CUT,
    operator::DISK_LOST,
    ONE_REPLICA,
    FIVE_REPLICAS,
    operator::ROT,
    estranged::MET_NEWCOMER,
    estranged::MET_EMPTIED,
    REFUSED,
    LOST_DATAGRAM,
    NO_GOSSIP,
];

/// Gossip lost one.
const LOST_DATAGRAM: &str = "datagram lost";
/// In a seed none came through until the faults ended.
const NO_GOSSIP: &str = "gossip blocked";
/// What runs count: datagrams of gossip that arrived.
pub const DATAGRAMS: &str = "datagrams";

/// A node whose disk was lost was started on an empty one, and ended by itself.
const REFUSED: &str = "node without its data refused";

/// Clients use a namespace of another number of replicas.
const ONE_REPLICA: &str = "namespace of one replica";
const FIVE_REPLICAS: &str = "namespace of five replicas";

/// A shard whose disk failed stops, and its node with it.
const SHARD_STOPPED: &str = "shard stopped by its disk";

/// What runs count while things fail: floors raised, and cells dropped below them.
pub const FLOORS: &str = "floors raised";
pub const FORGOTTEN: &str = "cells forgotten";

/// What is asked of a run.
pub type Setup = seeds::Setup<FaultSet>;

/// Groups of faults; the minimizer switches them off one by one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FaultSet {
    pub crash: bool,
    pub cut: bool,
    pub network: bool,
    pub slow: bool,
    pub clock: bool,
    /// Disks that are full for a while.
    pub full: bool,
    /// Disks that fail an operation now and then for a while.
    pub errors: bool,
    /// Joins, leaves, weights, replacements.
    pub moves: bool,
}

/// How fast time passes for those who forget. A session's f lies behind every clock, and behind what clients may still be waiting for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    /// How far clocks lie apart at most.
    skew_ms: u64,
    lag_ms: u64,
    patience: Duration,
    /// A session takes so long.
    dwell: Duration,
    /// Something fails in one of so many turns.
    pub fails_one_in: u64,
    thought_us_max: u64,
}

impl Pace {
    fn draw(prng: &mut Prng) -> Pace {
        let (is_slow, dwell) = (prng.one_in(3), Duration::from_millis(prng.below(2) * prng.below(300)));
        // A node that falls is away for a second or two, and without it nothing is forgotten.
        let (fails_one_in, thought_us_max) = if prng.one_in(2) { (10, 20_000) } else { (50, 150_000) };
        let lag_ms = if is_slow { prng.between(700, 1_500) } else { prng.between(110, 250) };
        let (skew_ms, patience) = if is_slow { (300, REQUEST_PATIENCE) } else { (40, Duration::from_millis(400)) };
        Pace { skew_ms, lag_ms, patience, dwell, fails_one_in, thought_us_max }
    }

    /// What was begun is over so long after (`EngineConfig`).
    fn begun_is_over_ms(&self) -> u64 {
        self.patience.as_millis() as u64 + 3 * self.skew_ms
    }
}

/// A node that runs.
pub(super) struct Life {
    pub plan: Arc<Plan>,
    tasks: Vec<Task<Result<(), StartFailure>>>,
    pub ready: Arc<AtomicBool>,
    _wakers: Wakers,
}

pub(super) struct Node {
    pub machine: MachineId,
    pub cores: u16,
    hash_seed: u64,
    pub life: Option<Life>,
    /// How many disks it has lost; it has voted on the first.
    pub disks_lost: u32,
    /// Bits have flipped on its disk; somebody sees to it then.
    pub rotten_until: Option<Mono>,
    /// It is down until then.
    pub back_at: Option<Mono>,
    /// It fell for good.
    pub is_dead: bool,
    /// It is, or was, or is to be, one of the cluster's.
    pub was_member: bool,
    /// Its disk is full, or fails, until then.
    pub sick_until: Option<Mono>,
    /// Its disk has failed in this life.
    pub had_errors: bool,
    /// The version that its program knows.
    pub knows: u16,
}

impl Node {
    fn new(machine: MachineId, cores: u16, hash_seed: u64, was_member: bool) -> Node {
        Node {
            machine,
            cores,
            hash_seed,
            life: None,
            disks_lost: 0,
            rotten_until: None,
            back_at: None,
            is_dead: false,
            was_member,
            sick_until: None,
            had_errors: false,
            knows: CLUSTER_VERSION,
        }
    }

    /// It may come to hold data: it is not gone for good, and has lost nothing that it could lack again.
    pub fn is_whole(&self) -> bool {
        !self.is_dead && !self.has_lost()
    }

    /// It may lack what it has acknowledged.
    pub fn has_lost(&self) -> bool {
        self.disks_lost > 0 || self.rotten_until.is_some()
    }
}

/// A cut link, until when.
pub(super) struct Cut {
    pub from: usize,
    pub to: usize,
    pub until: Mono,
}

pub(super) struct Run {
    pub world: World,
    pub prng: Prng,
    pub setup: Setup,
    /// Those of the cluster, and some that may join.
    pub nodes: Vec<Node>,
    pub specs: Vec<NodeSpec>,
    pub operator: Rc<Operator>,
    pub seen_epoch: u64,
    pub seen_version: u16,
    /// The operator is never at rest for long.
    pub is_eager: bool,
    /// Of the namespace that clients use.
    pub replicas: usize,
    founding: Topology,
    /// Where a bug is planted there is none, and nodes know of each other by their links: with gossip an old epoch hardly lives long enough
    /// to do harm, and what nodes keep for each other arrives too soon.
    air: Option<Air>,
    /// What gossip told the operator of any node.
    said: Arc<Mutex<Vec<String>>>,
    shared: Rc<Shared>,
    outcome: Outcome,
    drawn: Faults,
    pub(super) cuts: Vec<Cut>,
    pub(super) estranged: Option<Estranged>,
    late: Late,
    pub(super) pace: Pace,
    pub(super) fates: Fates,
    /// Every flush is merged with all that there is.
    is_merging_often: bool,
}

/// Runs one seed to its end.
pub fn run(setup: &Setup) -> Outcome {
    let mut run = Run::new(setup);
    run.go();
    run.finish()
}

fn key() -> Key {
    Key::new(b"a cluster of the simulator")
}

pub(super) fn address(machine: MachineId) -> SocketAddr {
    SocketAddr::new(World::ip(machine), PORT)
}

/// How much comes late in a seed.
fn draw_late(prng: &mut Prng) -> Late {
    let (puts_one_in, cells_one_in) = (any_of(prng, &[40, 40, 8, 400]), any_of(prng, &[10, 10, 2, 100]));
    Late { puts_one_in, puts_ms_max: 1_000, cells_one_in, pushes_one_in: 1, again_ms_max: LATE_MS_MAX }
}

/// What the clients of a run share.
fn shared_of(setup: &Setup, world: &World, nodes: &[Node], pace: Pace, prng: &mut Prng) -> Shared {
    let machines: Vec<MachineId> = nodes.iter().map(|node| node.machine).collect();
    let (clock, latest, all) = (world.clone(), world.clone(), machines.clone());
    Shared {
        checkers: [RefCell::new(Checker::new(false)), RefCell::new(Checker::new(false))],
        namespaces: [Cell::new(FIRST_NAMESPACE), Cell::new(FIRST_NAMESPACE)],
        keys: if prng.one_in(3) { prng.between(60, 250) } else { prng.between(4, 60) } as u32,
        budget: Cell::new(setup.commands),
        answered: Cell::new(0),
        stop: Cell::new(false),
        at_work: Cell::new(0),
        errors: RefCell::default(),
        wall_ms: Box::new(move || machines.iter().map(|node| clock.wall_ms(*node)).min().unwrap_or_default()),
        latest_ms: Box::new(move || all.iter().map(|node| latest.wall_ms(*node)).max().unwrap_or_default()),
        falls: RefCell::default(),
        // Larger ones fill memtables.
        small_bytes: if prng.one_in(3) { 300 } else { 4_000 },
        large_one_in: prng.between(50, 400),
        in_cluster: true,
        thought_us_max: pace.thought_us_max,
        patience: pace.patience,
        retry_one_in: any_of(prng, &[1, 1, 10, 100]),
        deletes_one_in: any_of(prng, &[None, None, Some(3)]),
    }
}

impl Run {
    fn new(setup: &Setup) -> Run {
        let mut prng = Prng::new(setup.seed ^ 0x00C1_0573);
        // Where vnodes move much else happens more rarely.
        let mut setup = setup.clone();
        setup.faults.moves &= prng.one_in(2);
        let world = World::new(prng.next_u64());
        let pace = Pace::draw(&mut prng);
        let count = prng.between(3, 5) as usize;
        let strangers = if setup.faults.moves { prng.between(1, 3) as usize } else { 0 };
        let alike = prng.one_in(2).then(|| prng.between(1, 3) as u16);
        let alike = setup.cores.or(alike);
        let mut nodes = Vec::new();
        for number in 0..count + strangers {
            let machine = world.add_machine(Faults::default());
            let cores = alike.unwrap_or_else(|| prng.between(1, 3) as u16);
            if setup.faults.clock {
                world.set_wall_offset_ms(machine, prng.below(pace.skew_ms) as i64 - (pace.skew_ms / 2) as i64);
                world.set_wall_drift_ppm(machine, prng.below(200) as i64 - 100);
            }
            nodes.push(Node::new(machine, cores, prng.next_u64(), number < count));
        }
        let spec = |(index, node): (usize, &Node)| NodeSpec {
            id: index as u64 + 1,
            native: address(node.machine).to_string(),
            gossip: SocketAddr::new(World::ip(node.machine), GOSSIP_PORT).to_string(),
            cores: node.cores,
            weight: u32::from(node.cores),
            rack: String::new(),
        };
        let specs: Vec<NodeSpec> = nodes.iter().enumerate().map(spec).collect();
        let founding = Topology::found(CLUSTER, VNODES, specs[..count].to_vec()).expect("a sound cluster");
        let fates = Fates::draw(&mut prng, &setup.faults);
        let drawn = draw_latencies(&mut prng, &setup.faults);
        let shared = shared_of(&setup, &world, &nodes, pace, &mut prng);
        let outcome = Outcome { seed: setup.seed, ..Outcome::default() };
        let (is_eager, is_merging_often) = (prng.one_in(2), !prng.one_in(3));
        let replicas = any_of(&mut prng, &[RF_DEFAULT, RF_DEFAULT, RF_DEFAULT, RF_MAX, RF_MAX, 1]);
        let late = draw_late(&mut prng);
        let air = setup.planted.is_none().then(|| Air::draw(&world, &mut prng, setup.faults.network));
        let (operator, shared) = (Rc::new(Operator::new(founding.clone())), Rc::new(shared));
        Run {
            world,
            prng,
            setup,
            nodes,
            specs,
            operator,
            seen_epoch: 1,
            seen_version: CLUSTER_VERSION_MIN,
            is_eager,
            replicas,
            founding,
            air,
            said: Arc::default(),
            shared,
            outcome,
            drawn,
            cuts: Vec::new(),
            estranged: None,
            late,
            pace,
            fates,
            is_merging_often,
        }
    }

    pub(super) fn note(&mut self, what: impl Into<String>) {
        let line = format!("{:>12.6} s  {}", self.world.now().0 as f64 / 1e9, what.into());
        self.outcome.timeline.push(line);
    }

    pub(super) fn happened(&mut self, what: &str) {
        *self.outcome.faults.entry(what.to_owned()).or_default() += 1;
    }

    pub(super) fn fail(&mut self, what: impl Into<String>) {
        let what = what.into();
        self.note(format!("FAILED: {what}"));
        self.outcome.failures.push(what);
    }

    fn has_failed(&self) -> bool {
        !self.outcome.failures.is_empty() || self.shared.checkers.iter().any(|checker| !checker.borrow().failures.is_empty())
    }

    fn go(&mut self) {
        if let Some(air) = self.air.clone() {
            let machine = self.world.add_machine(Faults::default());
            let io = self.world.spawn_core(machine, 0, &Wakers::new(1));
            drop(io.spawn(Class::Foreground, air.run(io.clone())));
        }
        self.draw_programs();
        for node in 0..self.founding.nodes().len() {
            self.start(node);
        }
        if !self.await_ready() {
            return self.fail("the cluster does not start");
        }
        self.start_operator();
        // Nodes that are no members serve clients as well as any.
        if self.prng.one_in(2) {
            (self.founding.nodes().len()..self.nodes.len()).for_each(|node| self.start(node));
        }
        let drawn = self.drawn.clone();
        for node in &self.nodes {
            self.world.faults(node.machine, |faults| *faults = drawn.clone());
        }
        if let Err(why) = self.make_namespace() {
            return self.fail(why);
        }
        self.start_clients();
        let mut seen = 0;
        let mut quiet_since = self.world.now();
        while self.shared.answered.get() < self.setup.commands && !self.has_failed() {
            let step = Duration::from_millis(self.prng.between(2, 40));
            self.world.run_for(step);
            self.look_after_nodes();
            self.look_at_operator();
            self.disturb();
            if self.shared.answered.get() > seen {
                (seen, quiet_since) = (self.shared.answered.get(), self.world.now());
            } else if self.world.now().since(quiet_since) > STUCK {
                return self.fail("nothing was answered for a minute");
            }
        }
        if self.has_failed() {
            return;
        }
        (0..self.nodes.len()).for_each(|node| self.count(node));
        self.calm();
        self.shared.stop.set(true);
        let shared = self.shared.clone();
        self.world.run_until(STUCK, || shared.at_work.get() == 0);
        if shared.at_work.get() > 0 {
            return self.fail("clients are still waiting long after the faults ended");
        }
        if let Err(why) = self.await_moves().and_then(|()| self.await_version()).and_then(|()| self.await_agreement()) {
            return self.fail(why);
        }
        for node in (0..self.nodes.len()).filter(|node| self.nodes[*node].life.is_some()).collect::<Vec<usize>>() {
            if let Err(why) = self.read_everything(node) {
                return self.fail(format!("node {}: {why}", node + 1));
            }
        }
        if let Err(why) = self.forget_all() {
            return self.fail(why);
        }
        let said = std::mem::take(&mut *self.said.lock().unwrap_or_else(PoisonError::into_inner));
        if let Some(conflict) = said.iter().find(|said| said.contains("holds another topology")) {
            return self.fail(conflict.as_str());
        }
        if let Some(trouble) = self.nodes.iter().filter_map(|node| node.life.as_ref()?.plan.board.trouble()).next() {
            self.fail(format!("a shard stopped: {trouble}"));
        }
    }

    // Nodes.

    fn plan(&mut self, node: usize, ready: &Arc<AtomicBool>) -> Plan {
        let (id, machine, cores, hash_seed) =
            (node as u64 + 1, self.nodes[node].machine, self.nodes[node].cores, self.nodes[node].hash_seed);
        let mut engine = small_engine(&mut self.prng, hash_seed);
        // In a cluster the dead are forgotten by floors alone (rules G1 to G6).
        (engine.writer, engine.forget_after_ms, engine.begun_is_over_ms) = (id as u16, None, Some(self.pace.begun_is_over_ms()));
        if self.is_merging_often {
            (engine.policy.level0_runs, engine.policy.direct_share) = (1, 0.0);
        }
        let ready = ready.clone();
        let board = self.air.is_some().then(|| Arc::new(MemberBoard::new(Box::new(|| {}))));
        let cluster = ClusterPlan {
            node: id,
            founding: self.founding.clone(),
            asks_in: false,
            key: key(),
            boot: self.prng.next_u64(),
            board,
            warn: Box::new(|_| {}),
            planted: self.setup.planted,
            forget: Times { lag_ms: self.pace.lag_ms, pause: FORGET_PAUSE, dwell: self.pace.dwell },
            late: Some(self.late),
        };
        Plan {
            data: PathBuf::from(format!("/data{}", self.nodes[node].disks_lost)),
            listen: address(machine),
            host: World::ip(machine).to_string(),
            cores,
            vnodes: Some(VNODES),
            durability: Durability::Sync,
            secret: None,
            memory_bytes: 4 << 20,
            engine,
            board: Arc::new(Board::default()),
            cluster: Some(cluster),
            publish_every: Duration::from_millis(50),
            port: 0.into(),
            stop: false.into(),
            drained: 0.into(),
            ready: Box::new(move |_| ready.store(true, Ordering::Release)),
            planted: None,
        }
    }

    pub(super) fn start(&mut self, node: usize) {
        self.perhaps_renew(node);
        let ready = Arc::new(AtomicBool::new(false));
        let plan = Arc::new(self.plan(node, &ready));
        let (machine, cores) = (self.nodes[node].machine, usize::from(self.nodes[node].cores));
        let wakers = Wakers::new(cores);
        let mut tasks = Vec::new();
        for (core, ends) in mailbox::mesh(cores).into_iter().enumerate() {
            let plan = plan.clone();
            tasks.push(self.world.start(machine, core, &wakers, move |io| start::run(io, ends, plan)));
        }
        self.begin_gossip(node, &plan);
        self.nodes[node].life = Some(Life { plan, tasks, ready, _wakers: wakers });
        self.nodes[node].had_errors = false;
        self.nodes[node].back_at = None;
    }

    /// As `node` does, before its shards have replayed their logs.
    fn begin_gossip(&mut self, node: usize, plan: &Plan) {
        let board = plan.cluster.as_ref().and_then(|cluster| cluster.board.clone());
        let Some((air, board)) = self.air.as_ref().zip(board) else { return };
        let at = |spec: &NodeSpec, port| to_address(SocketAddr::new(spec.native.parse::<SocketAddr>().expect("an address").ip(), port));
        let (spec, said) = (&self.specs[node], self.said.clone());
        let versions = Versions { min: CLUSTER_VERSION_MIN, max: self.nodes[node].knows };
        let profile = Profile {
            native: at(spec, PORT),
            gossip: at(spec, GOSSIP_PORT),
            cores: spec.cores,
            weight: spec.weight,
            rack: Rack::new("").expect("it is short"),
            protocol: versions,
            format: versions,
        };
        let setup = GossipSetup {
            listen: SocketAddr::new(World::ip(self.nodes[node].machine), GOSSIP_PORT),
            cluster: CLUSTER,
            vnodes: VNODES,
            key: key(),
            me: Me { node: spec.id, profile },
            seeds: self.founding.nodes().iter().map(|node| at(&node.spec, GOSSIP_PORT)).collect(),
            timing: Timing::default(),
            board,
            figures: Arc::default(),
            warn: Arc::new(move |what| said.lock().unwrap_or_else(PoisonError::into_inner).push(what.to_owned())),
        };
        air.begin(self.nodes[node].machine, usize::from(spec.cores), setup);
    }

    fn await_ready(&mut self) -> bool {
        let (world, nodes) = (self.world.clone(), &self.nodes);
        let is_ready = |node: &Node| node.life.as_ref().is_none_or(|life| life.ready.load(Ordering::Acquire));
        world.run_until(STUCK, || nodes.iter().all(is_ready));
        self.nodes.iter().all(is_ready)
    }

    /// Nodes that fell at a disk operation are noticed; those whose time has come are started.
    pub(super) fn look_after_nodes(&mut self) {
        let now = self.world.now();
        for node in 0..self.nodes.len() {
            let machine = self.nodes[node].machine;
            if self.nodes[node].life.is_some() && !self.world.is_up(machine) {
                self.note(format!("the power of node {} failed at a disk operation", node + 1));
                self.fell(node);
            }
            if self.nodes[node].life.is_some() && self.world.cores(machine) == 0 {
                let tasks = self.nodes[node].life.take().map(|life| life.tasks).unwrap_or_default();
                // Where it is another core that failed, the first says only what that one told it.
                let mut whys: Vec<_> = tasks.into_iter().filter_map(|task| task.take_result()?.err()).collect();
                whys.sort_by_key(|why| matches!(why, StartFailure::Other(_)));
                let why = whys.into_iter().next();
                let is_meant = match &why {
                    Some(StartFailure::Contradiction(_)) => self.nodes[node].disks_lost > 0,
                    Some(StartFailure::Engine(EngineError::Corrupt { .. })) => self.nodes[node].rotten_until.is_some(),
                    _ => false,
                };
                let why = why.map_or_else(|| "no reason".to_owned(), |why| why.to_string());
                if !is_meant {
                    return self.fail(format!("node {} ended by itself: {why}", node + 1));
                }
                self.note(format!("node {} ends, which has lost something: {why}", node + 1));
                if self.nodes[node].disks_lost > 0 {
                    self.happened(REFUSED);
                }
                // Its place is another's from now on.
                (self.nodes[node].is_dead, self.nodes[node].back_at) = (true, None);
            }
            if self.nodes[node].sick_until.is_some_and(|until| until <= now) {
                self.cure(node);
            }
            let trouble = self.nodes[node].life.as_ref().and_then(|life| life.plan.board.trouble());
            if let Some(why) = trouble {
                if !self.nodes[node].had_errors && self.nodes[node].rotten_until.is_none() {
                    return self.fail(format!("a shard of node {} stopped, and its disk never failed: {why}", node + 1));
                }
                self.note(format!("a shard of node {} stopped, and the node ends: {why}", node + 1));
                self.happened(SHARD_STOPPED);
                self.world.kill(machine);
                self.fell(node);
            }
            if !self.nodes[node].is_dead && self.nodes[node].rotten_until.is_some_and(|until| until <= now) {
                self.bury(node);
            }
            if self.nodes[node].back_at.is_some_and(|at| at <= now) {
                self.note(format!("node {} starts", node + 1));
                self.start(node);
            }
        }
        for cut in self.cuts.extract_if(.., |cut| cut.until <= now).collect::<Vec<_>>() {
            if !self.cuts.iter().any(|other| (other.from, other.to) == (cut.from, cut.to)) {
                self.world.heal(self.nodes[cut.from].machine, self.nodes[cut.to].machine);
            }
        }
    }

    pub(super) fn fell(&mut self, node: usize) {
        let away = Duration::from_millis(if self.prng.one_in(3) { self.prng.between(500, 3_000) } else { self.prng.between(1, 300) });
        self.outcome.crashes += 1;
        self.count_meanwhile(node, operator::FELL_MEANWHILE);
        self.count(node);
        self.world.crash_at_op(self.nodes[node].machine, u64::MAX, CrashSite::Before);
        // Nobody starts a node before its disk is in order again.
        self.cure(node);
        self.nodes[node].life = None;
        self.nodes[node].back_at = Some(self.world.now().plus(away)).filter(|_| !self.nodes[node].is_dead);
        if self.nodes.iter().all(|node| node.life.is_none()) {
            self.happened("all nodes down");
        }
    }

    fn figure(&self, node: usize, name: &str) -> u64 {
        self.nodes[node].life.as_ref().map_or(0, |life| life.plan.board.report().total(name) as u64)
    }

    /// What a life has done so far.
    fn count(&mut self, node: usize) {
        for (what, figure) in [(FLOORS, "forget_floors_total"), (FORGOTTEN, "forgotten_total")] {
            *self.outcome.counts.entry(what).or_default() += self.figure(node, figure);
        }
    }

    /// From here on nothing fails, and everybody is up.
    fn calm(&mut self) {
        self.air.iter().for_each(Air::clear);
        self.estranged = None;
        for cut in std::mem::take(&mut self.cuts) {
            self.world.heal(self.nodes[cut.from].machine, self.nodes[cut.to].machine);
        }
        for node in 0..self.nodes.len() {
            if self.nodes[node].rotten_until.is_some() && !self.nodes[node].is_dead {
                self.bury(node);
            }
            self.cure(node);
            self.world.faults(self.nodes[node].machine, |faults| *faults = Faults::default());
            self.world.crash_at_op(self.nodes[node].machine, u64::MAX, CrashSite::Before);
        }
        // An operation at which the power is to fail may be under way.
        self.world.run_for(Duration::from_millis(300));
        self.look_after_nodes();
        for node in 0..self.nodes.len() {
            let Node { life, is_dead, was_member, back_at, .. } = &self.nodes[node];
            if life.is_none() && (*was_member || back_at.is_some()) && !is_dead {
                self.start(node);
            }
        }
        if !self.await_ready() {
            self.fail("a node does not start after the faults");
        }
    }

    // Clients.

    fn start_clients(&mut self) {
        let quiet = Faults { net_us: 20, net_jitter_us: 5, ..Faults::default() };
        let machine = self.world.add_machine(quiet);
        let io = self.world.spawn_core(machine, 0, &Wakers::new(1));
        let servers: Vec<SocketAddr> = self.nodes.iter().map(|node| address(node.machine)).collect();
        for _ in 0..self.prng.between(3, 7) {
            let pipeline = self.prng.between(1, 12) as usize;
            let client = SimClient::new(io.clone(), servers.clone(), self.shared.clone(), self.prng.fork(), pipeline);
            drop(io.spawn(Class::Foreground, client.run()));
        }
    }

    /// Every key through one node.
    fn read_everything(&mut self, node: usize) -> Result<(), String> {
        let (address, shared) = (address(self.nodes[node].machine), self.shared.clone());
        self.converse("the last look", move |io| async move { read_all(io, address, &shared).await })
    }

    /// The keys of the clients.
    fn keyspace(&self) -> Keyspace {
        Keyspace { namespace: self.shared.namespaces[0].get(), replicas: self.replicas, keys: self.shared.keys }
    }

    /// The namespace of the clients, where it is not the default one.
    fn make_namespace(&mut self) -> Result<(), String> {
        if self.replicas == RF_DEFAULT {
            return Ok(());
        }
        let (first, replicas) = (address(self.nodes[0].machine), self.replicas as u8);
        self.converse("making a namespace", move |io| make_namespace(io, first, replicas))?;
        self.shared.namespaces.iter().for_each(|namespace| namespace.set(FIRST_NAMESPACE + 1));
        // Nodes that are no members hear of it when they compare.
        self.world.run_for(COMPARED);
        self.happened(if self.replicas == 1 { ONE_REPLICA } else { FIVE_REPLICAS });
        Ok(())
    }

    /// Every replica of every key, asked alone, shows the same before long; and comparisons find that, too.
    fn await_agreement(&mut self) -> Result<(), String> {
        let (topology, space) = (self.stop_operator(), self.keyspace());
        let members = topology.nodes().iter().map(|node| node.spec.id);
        let addresses = members.map(|id| (id, address(self.nodes[id as usize - 1].machine))).collect();
        self.converse("asking the replicas one by one", move |io| all_agree(io, addresses, topology, space))?;
        let until = self.world.now().plus(AGREE_MAX);
        loop {
            let lives = self.nodes.iter().filter_map(|node| node.life.as_ref());
            let differing: f64 = lives.map(|life| life.plan.board.report().total("repair_differing")).sum();
            if differing == 0.0 {
                return Ok(());
            }
            if self.world.now() >= until {
                return Err(format!("replicas agree, and comparisons still find {differing} places that differ"));
            }
            self.world.run_for(Duration::from_millis(50));
        }
    }

    /// The members as things stand, by their places among `nodes`.
    fn members(&mut self) -> (Topology, Vec<usize>) {
        let topology = self.stop_operator();
        let members = topology.nodes().iter().map(|node| node.spec.id as usize - 1).collect();
        (topology, members)
    }

    /// What is deleted now is dropped from every disk before long.
    fn forget_all(&mut self) -> Result<(), String> {
        let (topology, members) = self.members();
        let (first, space) = (address(self.nodes[members[0]].machine), self.keyspace());
        let before: Vec<u64> = (0..self.nodes.len()).map(|node| self.figure(node, "forgotten_total")).collect();
        self.converse("deleting everything", move |io| delete_all(io, first, space))?;
        let (deleted, until) = (self.world.now(), self.world.now().plus(FORGOTTEN_MAX));
        loop {
            let passed = self.world.now().since(deleted).as_millis() as u64;
            let lag_ms = |node: &usize| self.figure(*node, "forget_floor_lag_ms");
            let without: u64 = members.iter().map(|node| self.figure(*node, "forget_vnodes_without_floor")).sum();
            if without == 0 && members.iter().all(|node| lag_ms(node) + 500 < passed) {
                break;
            }
            if self.world.now() >= until {
                let lags: Vec<u64> = members.iter().map(lag_ms).collect();
                return Err(format!("floors do not rise after the faults: they lie {lags:?} ms back, and {without} vnodes have none"));
            }
            self.world.run_for(Duration::from_millis(100));
        }
        self.dig(&topology, &members, &before, until)?;
        // What comes late finds nothing that has forgotten it.
        self.world.run_for(Duration::from_millis(LATE_MS_MAX));
        self.await_agreement()?;
        self.converse("looking for the dead", move |io| all_absent(io, first, space))
    }

    /// Writes until every member has dropped a tombstone of each of its keys since it had dropped so much; what was deleted is absent
    /// meanwhile, whoever has dropped it already.
    fn dig(&mut self, topology: &Topology, members: &[usize], before: &[u64], until: Mono) -> Result<(), String> {
        let (space, mut round) = (self.keyspace(), 0);
        let held = |node: usize| {
            let owners = |key| topology.replicas(vnode_of(token_of(&key_name(key)), VNODES), space.replicas).owners;
            let is_node = |owner: &u16| topology.nodes()[usize::from(*owner)].spec.id as usize == node + 1;
            (0..space.keys).filter(|key| owners(*key).iter().any(is_node)).count() as u64
        };
        loop {
            let is_kept = |node: &&usize| self.figure(**node, "forgotten_total") < before[**node] + held(**node);
            let Some(kept) = members.iter().find(is_kept) else { return Ok(()) };
            if self.world.now() >= until {
                return Err(format!("node {} drops nothing, though all was deleted and its floors have passed that", kept + 1));
            }
            let asked = address(self.nodes[members[round as usize % members.len()]].machine);
            // Merges come with writes.
            self.converse("writing something else", move |io| fill(io, asked, space.namespace, round))?;
            self.converse("looking for the dead", move |io| all_absent(io, asked, space))?;
            self.world.run_for(Duration::from_millis(100));
            round += 1;
        }
    }

    /// A conversation with nodes at rest, on a machine of its own.
    fn converse<F>(&mut self, what: &str, talk: impl FnOnce(Io) -> F + 'static) -> Result<(), String>
    where
        F: Future<Output = Result<(), String>> + 'static,
    {
        let machine = self.world.add_machine(Faults::default());
        let done: Rc<RefCell<Option<Result<(), String>>>> = Rc::default();
        let told = done.clone();
        let task = self.world.start(machine, 0, &Wakers::new(1), move |io| async move {
            let outcome = talk(io).await;
            *told.borrow_mut() = Some(outcome);
        });
        let seen = done.clone();
        self.world.run_until(STUCK, || seen.borrow().is_some());
        drop(task);
        done.take().unwrap_or_else(|| Err(format!("{what} does not end")))
    }

    fn finish(mut self) -> Outcome {
        for checker in &self.shared.checkers {
            let checker = checker.borrow();
            self.outcome.failures.extend(checker.failures.iter().cloned());
            self.outcome.acknowledged += checker.acknowledged;
            let key = checker.failures.first().and_then(|failure| failure.strip_prefix("key ")?.split(':').next()?.parse().ok());
            self.outcome.timeline.extend(key.map_or_else(Vec::new, |key| checker.history(key)));
        }
        self.outcome.commands = self.shared.answered.get();
        for (name, count) in self.world.stats() {
            *self.outcome.faults.entry(name.to_owned()).or_default() += count;
        }
        if let Some(air) = &self.air {
            let (carried, lost) = air.counts();
            self.outcome.faults.insert(LOST_DATAGRAM.to_owned(), lost);
            self.outcome.faults.insert(NO_GOSSIP.to_owned(), u64::from(air.was_blocked()));
            self.outcome.counts.insert(DATAGRAMS, carried);
        }
        self.outcome.errors = self.shared.errors.borrow().iter().map(|(code, count)| (format!("{code:?}"), *count)).collect();
        self.outcome.fingerprint = self.world.fingerprint();
        self.world.end();
        self.outcome
    }
}

/// Makes the namespace that clients use. What it needs is decided first, and that may take until all founders have met.
/// Until it is there: the network may break a connection in the middle.
async fn make_namespace(io: Io, first: SocketAddr, replicas: u8) -> Result<(), String> {
    let until = io.now().plus(STUCK);
    loop {
        match try_to_make_namespace(&io, first, replicas).await {
            Ok(true) => return Ok(()),
            other if io.now() >= until => return Err(format!("a namespace is not there after all that time: {other:?}")),
            _ => io.sleep(Duration::from_millis(20)).await,
        }
    }
}

/// Whether it is there.
async fn try_to_make_namespace(io: &Io, first: SocketAddr, replicas: u8) -> Result<bool, String> {
    let mut quiet = Quiet::open(io.clone(), first).await?;
    let (durability, compression, levels) = (Durability::Sync, Compression::None, LevelsAsked::default());
    let spec = NamespaceSpec { name: "clients", default_ttl_ms: 0, durability, compression, levels, replicas };
    match quiet.ask(0, Command::NamespaceMake(spec)).await? {
        Ok(Answer::Namespaces(rows)) => Ok(rows.iter().any(|row| row.id == FIRST_NAMESPACE + 1)),
        Err(why) if why.to_string().contains("of that name exists") => Ok(true),
        other => Err(format!("a namespace is answered with {other:?}")),
    }
}

/// All nodes that run have heard of the namespaces by then.
const COMPARED: Duration = Duration::from_millis(2_200);

/// Links that were broken are up again by now.
const HEALED: Duration = Duration::from_secs(3);

async fn read_all(io: Io, address: SocketAddr, shared: &Shared) -> Result<(), String> {
    io.sleep(HEALED).await;
    let mut quiet = Quiet::open(io.clone(), address).await?;
    for key in 0..shared.keys {
        let (asked, asked_ms): (Mono, WallMs) = (io.now(), (shared.wall_ms)());
        let answer = quiet.ask(shared.namespaces[0].get(), Command::Get { key: &key_name(key) }).await?;
        let value = match &answer {
            Ok(Answer::Absent) => None,
            Ok(Answer::Value(value)) => Some((value.version, &value.value[..])),
            other => return Err(format!("key {key}: the last look is answered with {other:?}")),
        };
        let span = Span { asked, asked_ms, answered_ms: (shared.latest_ms)() };
        reads_value(&mut shared.checkers[0].borrow_mut(), key, value, span, io.now());
    }
    Ok(())
}
