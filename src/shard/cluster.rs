//! What a shard knows of its cluster: the topology, who of the nodes answers, the links to them, the requests that it coordinates.
//!
//! A node that is alone has none of this: its requests take the short road (`execute`). The topology is a value that is replaced whole
//! (`Cluster::learn`); core 0 makes each one durable before any core uses it.

use super::Shard;
use super::coordinate::Requests;
use super::forget::{Forgetting, Times};
use super::handoff::Handoff;
use super::late::Late;
use super::moves::Moves;
use super::namespaces::NamespaceTable;
use super::peers::{Links, Notices};
use super::repair::Repair;
use crate::base::checksum::checksum;
use crate::base::record::{NamespaceId, Token, vnode_of};
use crate::base::time::Mono;
use crate::cluster::board::{Member, MemberBoard, Members};
use crate::cluster::coordinator::{Effect, Planted, Roster, Turn, View};
use crate::cluster::detector::Detector;
use crate::cluster::gossip::member::Profile;
use crate::cluster::gossip::wire::Key;
use crate::cluster::topology::{NodeSpec, Topology};
use crate::cluster::topology_codec;
use crate::cluster::words;
use crate::io::SocketAddr;
use crate::limits::{CLUSTER_VERSION, CLUSTER_VERSION_MIN, GATHERED_SHARE, REPAIR_SHARE, RF_DEFAULT};
use crate::wire::peer::Head;
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// What a node is told of its cluster when it starts.
pub struct ClusterPlan {
    /// Not 0; its low 16 bits are its writer number, so no two nodes of a cluster share them.
    pub node: u64,
    /// The topology that a fresh data folder begins with; `Topology::unknown` where the folder must have one.
    pub founding: Topology,
    /// It asks to be let in where it is no member.
    pub asks_in: bool,
    pub key: Key,
    /// Drawn by this process: tells it from another that claims the same id.
    pub boot: u64,
    /// Where gossip says who is there; none in a world without gossip.
    pub board: Option<Arc<MemberBoard>>,
    /// Where sentences about peers go.
    pub warn: Box<dyn Fn(&str) + Send + Sync>,
    pub planted: Option<Planted>,
    /// When the dead are forgotten.
    pub forget: Times,
    /// For the simulator: messages that come late.
    pub late: Option<Late>,
}

/// One shard's.
pub struct Cluster {
    pub me: u64,
    pub key: Key,
    /// Tells this process from another that claims the same id.
    pub boot: u64,
    pub planted: Option<Planted>,
    pub links: Links,
    pub requests: Requests,
    pub notices: Notices,
    pub handoff: Handoff,
    pub repair: Repair,
    pub moves: Moves,
    pub forget: Forgetting,
    pub late: Option<Late>,
    pub detector: RefCell<Detector>,
    /// A peer knows of an epoch that this core has not: it is to be got.
    pub wants_topology: Cell<u64>,
    /// When a topology was last asked for.
    pub asked_topology: Cell<Mono>,
    topology: RefCell<Arc<Topology>>,
    /// How many replicas each namespace has, by its id.
    factors: RefCell<Vec<u8>>,
    board: Option<Arc<MemberBoard>>,
    /// As gossip said last.
    members: RefCell<Arc<Members>>,
    seen_members: Cell<u64>,
}

/// Why node `me` may not go on from one topology to a newer one: it has lost what it had (rule M3).
pub(super) fn lost_disk(before: &Topology, newer: &Topology, me: u64, said_yes: bool, planted: Option<Planted>) -> Option<String> {
    let has_forgotten = before.has_forgotten(newer, me, said_yes);
    (has_forgotten && planted != Some(Planted::RestoredReplicaVotes)).then(|| words::lost_disk(me, newer.epoch()))
}

impl Cluster {
    /// `memory_bytes`: the core's budget, of which values of gets, hash trees and copies have their shares.
    pub fn new(plan: &ClusterPlan, topology: Arc<Topology>, seed: u64, memory_bytes: usize, handoff: Handoff) -> Cluster {
        Cluster {
            me: plan.node,
            key: plan.key.clone(),
            boot: plan.boot,
            planted: plan.planted,
            links: Links::new(seed),
            requests: Requests::new(seed, memory_bytes / GATHERED_SHARE),
            notices: Notices::default(),
            handoff,
            repair: Repair::new(topology.cluster(), topology.vnodes(), seed, memory_bytes / REPAIR_SHARE),
            moves: Moves::default(),
            forget: Forgetting::new(plan.forget, plan.planted),
            late: plan.late,
            detector: RefCell::new(Detector::new(seed)),
            wants_topology: Cell::new(0),
            asked_topology: Cell::default(),
            topology: RefCell::new(topology),
            factors: RefCell::default(),
            board: plan.board.clone(),
            members: RefCell::default(),
            seen_members: Cell::new(0),
        }
    }

    pub fn topology(&self) -> Arc<Topology> {
        self.topology.borrow().clone()
    }

    pub fn epoch(&self) -> u64 {
        self.topology.borrow().epoch()
    }

    /// Takes a newer topology into use; false: it is not newer.
    pub fn replace(&self, topology: &Arc<Topology>) -> bool {
        let is_newer = topology.epoch() > self.epoch();
        if is_newer {
            *self.topology.borrow_mut() = topology.clone();
            self.tell_gossip();
        }
        is_newer
    }

    /// Gossip spreads that this node has the topology.
    pub fn tell_gossip(&self) {
        if let Some(board) = &self.board {
            let (topology, mut bytes) = (self.topology(), Vec::new());
            topology_codec::encode(&topology, &mut bytes);
            board.set_topology(topology.epoch(), checksum(&bytes));
        }
    }

    /// Gossip holds the node for dead, or gone. Whom it does not know yet may be there.
    fn is_known_gone(&self, node: u64) -> bool {
        self.members.borrow().get(node).is_some_and(|member| !member.state.is_live())
    }

    /// The node is held for dead by gossip; where gossip knows nothing of it, it cannot be reached. A broken link alone says little: what
    /// this is asked for cannot be taken back.
    pub fn is_gone(&self, node: u64) -> bool {
        self.members.borrow().get(node).map_or(!self.links.is_reachable(node), |member| !member.state.is_live())
    }

    /// Gossip does not hold the node for dead, and no link to it is known to be broken.
    pub fn is_alive(&self, node: u64) -> bool {
        node == self.me || self.links.is_reachable(node) && !self.is_known_gone(node)
    }

    /// Gossip has heard of it.
    pub fn is_known_to_gossip(&self, node: u64) -> bool {
        self.members.borrow().get(node).is_some()
    }

    /// The newest version that all of these nodes know, as gossip says; the oldest there is where one is not known to it.
    pub fn version_of_all(&self, nodes: impl IntoIterator<Item = u64>) -> u16 {
        self.members.borrow().version_of_all(nodes).map_or(CLUSTER_VERSION_MIN, |version| version.min(CLUSTER_VERSION))
    }

    /// The live nodes that gossip knows.
    pub fn known_specs(&self) -> Vec<NodeSpec> {
        let spec = |member: &Member| {
            let Profile { native, gossip, cores, weight, rack, .. } = &member.profile;
            let (native, gossip, rack) = (native.to_string(), gossip.to_string(), rack.as_str().to_owned());
            NodeSpec { id: member.node, native, gossip, cores: *cores, weight: *weight, rack }
        };
        self.members.borrow().list().iter().filter(|member| member.state.is_live()).map(spec).collect()
    }

    /// Replicas of a namespace, as `set_namespaces` was told.
    pub fn rf(&self, namespace: NamespaceId) -> usize {
        self.factors.borrow().get(namespace as usize).map_or(RF_DEFAULT, |rf| usize::from(*rf))
    }

    pub fn set_namespaces(&self, table: &NamespaceTable) {
        // By id: there are few, and none is ever taken away.
        let ids = table.rows().iter().map(|row| row.id as usize + 1).max().unwrap_or(0);
        let mut factors = vec![RF_DEFAULT as u8; ids];
        table.rows().iter().for_each(|row| factors[row.id as usize] = row.replicas);
        *self.factors.borrow_mut() = factors;
    }

    /// The replicas of a key's vnode.
    pub fn roster(&self, namespace: NamespaceId, token: Token) -> Roster {
        let topology = self.topology.borrow();
        Roster::new(&topology, vnode_of(token, topology.vnodes()), self.rf(namespace))
    }

    /// The node owns a copy of the vnode, and has no other owner to wait for.
    pub fn is_owner(&self, namespace: NamespaceId, vnode: u32) -> bool {
        self.topology.borrow().owns(self.me, vnode, self.rf(namespace))
    }

    /// Which core of `node` owns the vnode of a token.
    pub fn core_at(&self, node: u64, token: Token) -> Option<u16> {
        let topology = self.topology.borrow();
        topology.core_at(node, vnode_of(token, topology.vnodes()))
    }

    /// Where a node's cores are reached.
    pub fn address_of(&self, node: u64) -> Option<SocketAddr> {
        let topology = self.topology.borrow();
        let index = topology.index_of(node)?;
        topology.nodes()[usize::from(index)].spec.native.parse().ok()
    }

    /// What a message begins with: of a question that is waited for until `deadline`, or of an answer.
    pub fn head(&self, now: Mono, deadline: Option<Mono>) -> Head {
        let left = |deadline: Mono| u32::try_from(deadline.since(now).as_millis()).unwrap_or(u32::MAX).max(1);
        Head { epoch: self.epoch(), deadline_ms: deadline.map_or(0, left) }
    }

    /// One call of a state machine, with its effects behind `out`.
    pub fn turn<R>(&self, shard: &Shard, out: &mut Vec<Effect>, f: impl FnOnce(&mut Turn<'_>) -> R) -> R {
        let (now, now_ms) = (shard.io.now(), shard.io.wall_ms());
        let health = Health { cluster: self, now };
        shard.engine.with_clock(|clock| f(&mut Turn { now, now_ms, clock, view: &health, out }))
    }
}

/// What this shard believes of the nodes' health.
struct Health<'a> {
    cluster: &'a Cluster,
    now: Mono,
}

impl View for Health<'_> {
    fn is_alive(&self, node: u64) -> bool {
        self.cluster.is_alive(node)
    }

    fn p99(&self, node: u64) -> Option<Duration> {
        self.cluster.detector.borrow().p99(node)
    }

    /// Oneself first: no network lies between.
    fn order(&self, nodes: &mut [u64]) {
        self.cluster.detector.borrow().order(self.now, nodes);
        nodes.sort_by_key(|node| *node != self.cluster.me);
    }
}

impl Shard {
    /// Takes in what gossip has said since the last time.
    pub fn look_at_members(self: &Rc<Shard>) {
        let Some(cluster) = &self.cluster else { return };
        let Some(board) = &cluster.board else { return };
        if self.core() == 0
            && let Some(newer) = board.take_newer()
        {
            self.fetch_topology(cluster, newer.from);
        }
        let generation = board.generation();
        if cluster.seen_members.replace(generation) == generation {
            return;
        }
        let members = board.get();
        let before = cluster.members.replace(members.clone());
        for member in members.list().iter().filter(|member| member.node != cluster.me) {
            match (before.is_live(member.node), member.state.is_live()) {
                // What it was asked it will not answer; a link of a machine that is gone may never tell.
                (_, false) if before.get(member.node).is_none_or(|before| before.state.is_live()) => {
                    cluster.links.cut(member.node);
                    cluster.requests.on_gone(self, member.node);
                }
                (false, true) => cluster.links.redial(member.node),
                _ => {}
            }
        }
        self.settle();
    }

    /// A topology that is durable on this node: every request under way hears of it.
    pub fn learn_topology(self: &Rc<Shard>, topology: &Arc<Topology>) {
        let Some(cluster) = &self.cluster else { return };
        if cluster.replace(topology) {
            self.begin_moves(cluster);
            self.set_repair_pairs();
            cluster.repair.forgive();
            cluster.requests.on_topology(self, topology);
        }
    }
}
