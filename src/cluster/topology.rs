//! The topology: nodes, which of them own which vnode, and which vnodes are moving, at an epoch. An immutable value, replaced whole.
//!
//! A change is a decision (DESIGN.md section 4): it is made for one epoch and gives the next, or is refused because another change came
//! first (compare and set). It only marks vnodes as moving. Each of them has then two groups of replicas (`quorum`), until it is told
//! that its pending owners have taken over (rule M2): `MoveDone` flips it. When the last has flipped, who joined is a member and who
//! leaves is gone. One change is under way at a time; `Cancel` gives up what has not flipped, and leaves a topology as sound as any.
//!
//! Rule M1's "coordinators of an older epoch are refused" is asked a vnode: a coordinator whose epoch saw this vnode's last change has
//! the right replicas, whatever else moved since. So a flip disturbs the requests of one vnode, not of all.
//!
//! **Replication factors.** Namespaces may have different numbers of replicas, each the first so many of a vnode's owners, so a move
//! concerns each of these numbers on its own. Which of them there are is part of the topology: a number is decided, while nothing moves,
//! before the first namespace with it is made, so that nobody who moves a vnode can overlook one.
//!
//! **Founding.** At epoch 1 nobody votes yet. Epoch 2 is the same topology, and it takes the yes of every founder, durable (`decide`). So
//! from epoch 2 on a founder that knows nothing of its yes has lost its disk, whoever it can ask, and may not vote (M3).

use super::placement::{NOBODY, Owners, Seat, UNOWNED, place};
use super::quorum::Replicas;
use crate::base::record::core_of;
use crate::limits::{
    ADDRESS_BYTES_MAX, CLUSTER_VERSION, CLUSTER_VERSION_MIN, CORES_MAX, NODES_MAX, RACK_BYTES_MAX, RF_DEFAULT, RF_MAX, RFS, VNODES_MAX,
    WEIGHT_MAX,
};

/// The replication factors of a topology, a bit each; that of namespaces that say nothing is always among them.
pub(super) const FACTORS_DEFAULT: u8 = 1 << RF_DEFAULT;

/// That of the founders' list.
pub const FOUNDING_EPOCH: u64 = 1;

/// What a node says of itself when it joins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeSpec {
    pub id: u64,
    /// Where clients and peers find it, host:port.
    pub native: String,
    /// Where gossip finds it, host:port.
    pub gossip: String,
    pub cores: u16,
    /// Its capacity against the others'; 0 holds nothing. A node's core count unless its operator says otherwise.
    pub weight: u32,
    /// Nodes that fail together.
    pub rack: String,
}

/// Where a node is on its way through the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum NodeState {
    /// Owns nothing yet but what has moved to it.
    Joining = 0,
    Member = 1,
    /// Will be gone when what it owns has moved.
    Leaving = 2,
}

/// A node of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    pub spec: NodeSpec,
    pub state: NodeState,
    /// Whose tokens it has: its own id, or that of the node whose place it took.
    pub token_id: u64,
}

/// What may happen to a topology.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    Join(NodeSpec),
    Leave {
        node: u64,
    },
    /// `new` takes the tokens of `dead` and all that it owned.
    Replace {
        dead: u64,
        new: NodeSpec,
    },
    Weight {
        node: u64,
        weight: u32,
    },
    /// The pending owners of these vnodes have taken over (M2).
    MoveDone {
        vnodes: Vec<u32>,
    },
    /// All founders are there: from here on they vote.
    Found,
    /// There may be namespaces with so many replicas from here on.
    Factor {
        rf: usize,
    },
    /// Every node knows this version: what needs it is written and said from now on.
    Raise {
        version: u16,
    },
    /// What has not moved stays where it is: who was to leave remains, and who joined remains with what it has got. A new weight stays, and
    /// counts from the next change on.
    Cancel,
}

/// A change with what its author believes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proposal {
    pub cluster: u64,
    pub vnodes: u32,
    /// The epoch that it changes.
    pub epoch: u64,
    pub change: Change,
}

/// Why a change does not happen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refused {
    Cluster {
        ours: u64,
        theirs: u64,
    },
    Vnodes {
        ours: u32,
        theirs: u32,
    },
    Epoch {
        ours: u64,
        theirs: u64,
    },
    MovePending {
        vnodes: usize,
    },
    /// A version only rises, to one that this program knows.
    Version {
        ours: u16,
        asked: u16,
    },
    /// Only what is at its first epoch can be founded.
    Founded,
    /// Only what is founded can have other namespaces than those it began with.
    NotFounded,
    /// There are such namespaces already, or cannot be.
    Factor {
        rf: usize,
    },
    NothingPending,
    NotMoving {
        vnode: u32,
    },
    NodeIdTaken {
        id: u64,
    },
    /// The low 16 bits of an id are its writer number, by which versions are told apart.
    WriterTaken {
        id: u64,
        by: u64,
    },
    AddressTaken {
        address: String,
    },
    UnknownNode {
        id: u64,
    },
    NobodyLeft,
    /// One owner would be left of several: it may lack what the others have, and nobody brings it.
    OneLeft,
    TooManyNodes,
    Node {
        why: &'static str,
    },
}

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Refused::Cluster { ours, theirs } => write!(f, "this is cluster {ours:016x}, not {theirs:016x}"),
            Refused::Vnodes { ours, theirs } => write!(f, "the cluster has {ours} vnodes, not {theirs}, and keeps them for its life"),
            Refused::Epoch { ours, theirs } => write!(f, "the change was made for epoch {theirs}, but the topology is at epoch {ours}"),
            Refused::MovePending { vnodes } => write!(f, "{vnodes} vnodes are still moving; wait for them, or cancel that change"),
            Refused::Version { ours, asked } => write!(f, "the cluster is at version {ours}, and {asked} cannot follow it"),
            Refused::Founded => f.write_str("the cluster has been founded before"),
            Refused::NotFounded => f.write_str("the cluster waits until all its founders have been there once"),
            Refused::Factor { rf } => write!(f, "namespaces of {rf} replicas need no decision, or are none"),
            Refused::NothingPending => f.write_str("no change is under way"),
            Refused::NotMoving { vnode } => write!(f, "vnode {vnode} is not moving"),
            Refused::NodeIdTaken { id } => write!(f, "node id {id} is taken"),
            Refused::WriterTaken { id, by } => write!(f, "the low 16 bits of node id {id} are those of node {by}; give it another id"),
            Refused::AddressTaken { address } => write!(f, "address {address} belongs to another node"),
            Refused::UnknownNode { id } => write!(f, "there is no node {id}"),
            Refused::OneLeft => f.write_str(
                "one node alone would be left with data that several hold, and it may lack some of it; replace the node instead",
            ),
            Refused::NobodyLeft => f.write_str("no node would be left to hold the data"),
            Refused::TooManyNodes => write!(f, "a cluster has at most {NODES_MAX} nodes"),
            Refused::Node { why } => f.write_str(why),
        }
    }
}

impl std::error::Error for Refused {}

/// How a coordinator's epoch stands to a vnode (rule M1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It knows the vnode's replicas.
    Knows,
    /// It missed a change of this vnode: refused, and told of the newer topology.
    Stale,
    /// It knows more than we do: we have to learn first.
    Ahead,
}

/// See the head of this file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topology {
    /// Of all that nodes keep and say (`limits::CLUSTER_VERSION`): as new as the oldest node allows.
    pub(super) version: u16,
    pub(super) cluster: u64,
    pub(super) epoch: u64,
    pub(super) nodes: Vec<Node>,
    /// Of each vnode, as indexes into `nodes`.
    pub(super) owners: Vec<Owners>,
    /// Of each vnode the epoch that changed its owners or pending owners last.
    pub(super) since: Vec<u64>,
    /// Vnodes that move, in order, and who will own them.
    pub(super) pending: Vec<(u32, Owners)>,
    /// The replication factors that namespaces may have, a bit each.
    pub(super) factors: u8,
}

impl Topology {
    /// The first topology of a cluster, epoch 1: nobody has data yet, so nothing moves.
    pub fn found(cluster: u64, vnodes: u32, mut specs: Vec<NodeSpec>) -> Result<Topology, Refused> {
        if !vnodes.is_power_of_two() || !(2..=VNODES_MAX).contains(&vnodes) {
            return Err(Refused::Node { why: "vnodes are a power of two from 2 to 16384" });
        }
        specs.sort_by_key(|spec| spec.id);
        let empty = vec![UNOWNED; vnodes as usize];
        // Founders of different versions begin with the same topology.
        let (version, since) = (CLUSTER_VERSION_MIN, vec![FOUNDING_EPOCH; vnodes as usize]);
        let mut topology = Topology {
            version,
            cluster,
            epoch: FOUNDING_EPOCH,
            nodes: Vec::new(),
            owners: empty,
            since,
            pending: Vec::new(),
            factors: FACTORS_DEFAULT,
        };
        for spec in specs {
            topology.admit(&spec, None)?;
            let token_id = spec.id;
            topology.nodes.push(Node { spec, state: NodeState::Member, token_id });
        }
        topology.owners = place(&topology.seats()?, &topology.owners);
        Ok(topology)
    }

    /// Of a node whose folder says which cluster it is of, until what is stored there is read: epoch 0, without nodes. It is in no use.
    pub fn unknown(cluster: u64, vnodes: u32) -> Topology {
        let owners = vec![UNOWNED; vnodes as usize];
        let (version, since) = (CLUSTER_VERSION_MIN, vec![0; vnodes as usize]);
        Topology { version, cluster, epoch: 0, nodes: Vec::new(), owners, since, pending: Vec::new(), factors: FACTORS_DEFAULT }
    }

    /// All founders have said yes to it: it votes. Before that there is nothing that could be lost.
    pub fn is_founded(&self) -> bool {
        self.epoch > FOUNDING_EPOCH
    }

    /// What follows the founders' list when all of them are there.
    pub fn founded(&self) -> Result<Topology, Refused> {
        let Topology { cluster, epoch, .. } = *self;
        self.apply(&Proposal { cluster, vnodes: self.vnodes(), epoch, change: Change::Found })
    }

    /// Whether the next decision may be for `next`, as far as can be told without knowing the change. What founds a cluster is the same
    /// whoever proposes it.
    pub fn may_precede(&self, next: &Topology) -> bool {
        let follows = (next.cluster, next.vnodes(), next.epoch) == (self.cluster, self.vnodes(), self.epoch + 1);
        follows && (self.is_founded() || self.founded().is_ok_and(|founded| founded == *next))
    }

    /// Whether `me`, which comes from this topology to a newer one, has been there before and forgotten it, so that what it once
    /// acknowledged may be gone (M3): a founder that knows nothing of its yes to the founding (`said_yes`), or the owner of a vnode that
    /// it neither owned nor was to take over. Nobody comes to a vnode but by having taken it over, or by a replication factor that is
    /// new, and with it what there is of that.
    pub fn has_forgotten(&self, newer: &Topology, me: u64, said_yes: bool) -> bool {
        let founded_it = !self.is_founded() && newer.is_founded() && self.index_of(me).is_some();
        let is_me = |index: u16| self.nodes[usize::from(index)].spec.id == me;
        let had_part = |vnode, rf| self.epoch > 0 && vnode < self.vnodes() && self.replicas(vnode, rf).everybody().any(is_me);
        let factors = if self.epoch > 0 { self } else { newer }.factors();
        let is_strange = |vnode: u32| factors.clone().any(|rf| newer.owns(me, vnode, rf) && !had_part(vnode, rf));
        (founded_it && !said_yes) || (0..newer.vnodes()).any(is_strange)
    }

    /// How many replicas namespaces may have, in order.
    pub fn factors(&self) -> impl Iterator<Item = usize> + Clone + use<> {
        let factors = self.factors;
        RFS.into_iter().filter(move |rf| factors & 1 << rf != 0)
    }

    pub fn has_factor(&self, rf: usize) -> bool {
        self.factors().any(|known| known == rf)
    }

    /// What may be kept and said: no node needs less.
    pub fn version(&self) -> u16 {
        self.version
    }

    pub fn cluster(&self) -> u64 {
        self.cluster
    }

    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    pub fn vnodes(&self) -> u32 {
        self.owners.len() as u32
    }

    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// Nodes that have a say: who leaves still has, who joins has none yet.
    pub fn members(&self) -> impl Iterator<Item = &Node> {
        self.nodes.iter().filter(|node| node.state != NodeState::Joining)
    }

    /// The node's index, by which owners are named; it may change with any epoch.
    pub fn index_of(&self, id: u64) -> Option<u16> {
        self.nodes.iter().position(|node| node.spec.id == id).map(|index| index as u16)
    }

    /// Which core of a node has a vnode, if the node is there.
    pub fn core_at(&self, node: u64, vnode: u32) -> Option<u16> {
        self.index_of(node).map(|index| core_of(vnode, self.nodes[usize::from(index)].spec.cores))
    }

    /// The node owns a copy of a vnode, for a namespace with `rf` replicas, and has no other owner to wait for.
    pub fn owns(&self, node: u64, vnode: u32, rf: usize) -> bool {
        self.replicas(vnode, rf).owners.iter().any(|&index| self.nodes[usize::from(index)].spec.id == node)
    }

    /// The vnodes that move, in order.
    pub fn moving(&self) -> impl ExactSizeIterator<Item = u32> + '_ {
        self.pending.iter().map(|(vnode, _)| *vnode)
    }

    /// The replicas of a vnode for a namespace with `rf` replicas. The pending ones are there where the move changes who they are; a move
    /// that changes only their order, or only owners beyond `rf`, does not concern this namespace.
    pub fn replicas(&self, vnode: u32, rf: usize) -> Replicas<'_> {
        let owners = prefix(&self.owners[vnode as usize], rf);
        let pending = self.pending_of(vnode).map(|pending| prefix(pending, rf));
        let is_other = |pending: &&[u16]| pending.len() != owners.len() || pending.iter().any(|node| !owners.contains(node));
        Replicas { owners, pending: pending.filter(is_other) }
    }

    /// Who will own a vnode when everything has moved; its owners where it does not move.
    pub fn destination(&self, vnode: u32) -> &[u16] {
        prefix(self.pending_of(vnode).unwrap_or(&self.owners[vnode as usize]), RF_MAX)
    }

    fn pending_of(&self, vnode: u32) -> Option<&Owners> {
        if self.pending.is_empty() {
            return None;
        }
        let at = self.pending.binary_search_by_key(&vnode, |(vnode, _)| *vnode).ok()?;
        Some(&self.pending[at].1)
    }

    /// The epoch that changed a vnode's owners or pending owners last.
    pub fn epoch_of(&self, vnode: u32) -> u64 {
        self.since[vnode as usize]
    }

    /// Whether a coordinator of `epoch` may be served on a vnode (M1).
    pub fn standing(&self, vnode: u32, epoch: u64) -> Standing {
        match epoch {
            epoch if epoch > self.epoch => Standing::Ahead,
            epoch if epoch < self.since[vnode as usize] => Standing::Stale,
            _ => Standing::Knows,
        }
    }

    /// The topology after a change, at the next epoch.
    pub fn apply(&self, proposal: &Proposal) -> Result<Topology, Refused> {
        self.check_author(proposal)?;
        let mut next = self.clone();
        next.epoch += 1;
        match &proposal.change {
            Change::MoveDone { vnodes } => next.flip(vnodes)?,
            Change::Raise { version } => next.raise(*version)?,
            Change::Found if self.is_founded() => return Err(Refused::Founded),
            Change::Found => {}
            Change::Cancel if self.pending.is_empty() => return Err(Refused::NothingPending),
            Change::Cancel => next.cancel(),
            _ if !self.pending.is_empty() => return Err(Refused::MovePending { vnodes: self.pending.len() }),
            Change::Factor { .. } if !self.is_founded() => return Err(Refused::NotFounded),
            Change::Factor { rf } if !RFS.contains(rf) || self.has_factor(*rf) => return Err(Refused::Factor { rf: *rf }),
            Change::Factor { rf } => next.factors |= 1 << rf,
            Change::Join(spec) => next.join(spec)?,
            Change::Leave { node } => next.leave(*node)?,
            Change::Replace { dead, new } => next.replace(*dead, new)?,
            Change::Weight { node, weight } => next.weigh(*node, *weight)?,
        }
        next.settle();
        debug_assert_eq!(next.is_sound(), Ok(()));
        Ok(next)
    }

    fn check_author(&self, proposal: &Proposal) -> Result<(), Refused> {
        if proposal.cluster != self.cluster {
            return Err(Refused::Cluster { ours: self.cluster, theirs: proposal.cluster });
        }
        if proposal.vnodes != self.vnodes() {
            return Err(Refused::Vnodes { ours: self.vnodes(), theirs: proposal.vnodes });
        }
        if proposal.epoch != self.epoch {
            return Err(Refused::Epoch { ours: self.epoch, theirs: proposal.epoch });
        }
        Ok(())
    }

    fn raise(&mut self, version: u16) -> Result<(), Refused> {
        if version <= self.version || version > CLUSTER_VERSION {
            return Err(Refused::Version { ours: self.version, asked: version });
        }
        self.version = version;
        Ok(())
    }

    fn join(&mut self, spec: &NodeSpec) -> Result<(), Refused> {
        self.admit(spec, None)?;
        self.nodes.push(Node { spec: spec.clone(), state: NodeState::Joining, token_id: spec.id });
        let owners = self.owners.clone();
        self.move_towards(&owners)
    }

    fn leave(&mut self, id: u64) -> Result<(), Refused> {
        let leaver = self.find(id)?;
        self.nodes[usize::from(leaver)].state = NodeState::Leaving;
        let owners = self.owners.clone();
        self.move_towards(&owners)
    }

    fn replace(&mut self, dead: u64, spec: &NodeSpec) -> Result<(), Refused> {
        let dead = self.find(dead)?;
        self.admit(spec, Some(dead))?;
        let new = self.nodes.len() as u16;
        let token_id = self.nodes[usize::from(dead)].token_id;
        self.nodes[usize::from(dead)].state = NodeState::Leaving;
        self.nodes.push(Node { spec: spec.clone(), state: NodeState::Joining, token_id });
        let mut owners = self.owners.clone();
        owners.iter_mut().flatten().filter(|owner| **owner == dead).for_each(|owner| *owner = new);
        self.move_towards(&owners)
    }

    fn weigh(&mut self, id: u64, weight: u32) -> Result<(), Refused> {
        let node = self.find(id)?;
        let spec = &mut self.nodes[usize::from(node)].spec;
        spec.weight = weight;
        check_spec(spec)?;
        let owners = self.owners.clone();
        self.move_towards(&owners)
    }

    /// Places anew, from `owners`, and marks what is then elsewhere as moving.
    fn move_towards(&mut self, owners: &[Owners]) -> Result<(), Refused> {
        let placed = place(&self.seats()?, owners);
        let held = |list: &Owners| prefix(list, RF_MAX).len();
        if placed.iter().zip(&self.owners).any(|(after, before)| held(after) == 1 && held(before) > 1) {
            return Err(Refused::OneLeft);
        }
        let moves = (0u32..).zip(placed).filter(|(vnode, list)| *list != self.owners[*vnode as usize]);
        self.pending = moves.collect();
        for (vnode, _) in &self.pending {
            self.since[*vnode as usize] = self.epoch;
        }
        Ok(())
    }

    fn flip(&mut self, vnodes: &[u32]) -> Result<(), Refused> {
        let mut done = vnodes.to_vec();
        done.sort_unstable();
        let twice = done.windows(2).find(|pair| pair[0] == pair[1]).map(|pair| pair[0]);
        let stays = done.iter().copied().find(|vnode| self.pending_of(*vnode).is_none());
        if let Some(vnode) = twice.or(stays) {
            return Err(Refused::NotMoving { vnode });
        }
        for (vnode, list) in self.pending.extract_if(.., |(vnode, _)| done.binary_search(vnode).is_ok()) {
            self.owners[vnode as usize] = list;
            self.since[vnode as usize] = self.epoch;
        }
        Ok(())
    }

    fn cancel(&mut self) {
        for (vnode, _) in std::mem::take(&mut self.pending) {
            self.since[vnode as usize] = self.epoch;
        }
        // Who was to leave stays, with what it has. Who was to join and has something is a member.
        let owning = self.owning();
        for (node, owns) in self.nodes.iter_mut().zip(owning) {
            node.state = match node.state {
                NodeState::Joining if !owns => NodeState::Leaving,
                _ => NodeState::Member,
            };
        }
    }

    /// Where nothing moves any more: who joined is a member, and who left is gone.
    fn settle(&mut self) {
        if !self.pending.is_empty() {
            return;
        }
        let (mut renamed, mut kept) = (Vec::with_capacity(self.nodes.len()), 0);
        for node in &mut self.nodes {
            let is_gone = node.state == NodeState::Leaving;
            renamed.push(if is_gone { NOBODY } else { kept });
            kept += u16::from(!is_gone);
            if node.state == NodeState::Joining {
                node.state = NodeState::Member;
            }
        }
        if usize::from(kept) == self.nodes.len() {
            return;
        }
        self.nodes.retain(|node| node.state != NodeState::Leaving);
        for owner in self.owners.iter_mut().flatten().filter(|owner| **owner != NOBODY) {
            *owner = renamed[usize::from(*owner)];
        }
    }

    /// What placement knows of the nodes; refused if nobody could hold anything.
    fn seats(&self) -> Result<Vec<Seat>, Refused> {
        let rack = |name: &str| self.nodes.iter().position(|node| node.spec.rack == name).unwrap_or_default() as u32;
        let seat = |node: &Node| Seat {
            id: node.token_id,
            cores: node.spec.cores,
            weight: if node.state == NodeState::Leaving { 0 } else { node.spec.weight },
            rack: rack(&node.spec.rack),
        };
        let seats: Vec<Seat> = self.nodes.iter().map(seat).collect();
        if seats.iter().any(|seat| seat.weight > 0) { Ok(seats) } else { Err(Refused::NobodyLeft) }
    }

    fn owning(&self) -> Vec<bool> {
        let mut owning = vec![false; self.nodes.len()];
        self.owners.iter().flatten().filter(|owner| **owner != NOBODY).for_each(|owner| owning[usize::from(*owner)] = true);
        owning
    }

    fn find(&self, id: u64) -> Result<u16, Refused> {
        self.index_of(id).ok_or(Refused::UnknownNode { id })
    }

    /// Whether a node may come in. It may have the address of the node whose place it takes.
    fn admit(&self, spec: &NodeSpec, dead: Option<u16>) -> Result<(), Refused> {
        check_spec(spec)?;
        if self.nodes.len() >= NODES_MAX {
            return Err(Refused::TooManyNodes);
        }
        for (index, node) in (0u16..).zip(&self.nodes) {
            if node.spec.id == spec.id {
                return Err(Refused::NodeIdTaken { id: spec.id });
            }
            if node.spec.id as u16 == spec.id as u16 {
                return Err(Refused::WriterTaken { id: spec.id, by: node.spec.id });
            }
            if Some(index) == dead {
                continue;
            }
            let theirs = [&node.spec.native, &node.spec.gossip];
            if let Some(address) = [&spec.native, &spec.gossip].into_iter().find(|address| theirs.contains(address)) {
                return Err(Refused::AddressTaken { address: address.clone() });
            }
        }
        Ok(())
    }

    /// What holds of every topology, decoded ones included; the first rule that does not.
    pub(super) fn is_sound(&self) -> Result<(), &'static str> {
        let vnodes = self.owners.len();
        if !vnodes.is_power_of_two() || !(2..=VNODES_MAX as usize).contains(&vnodes) || self.since.len() != vnodes {
            return Err("not a number of vnodes");
        }
        if self.epoch == 0 || self.since.iter().any(|since| *since == 0 || *since > self.epoch) {
            return Err("not an epoch");
        }
        if self.nodes.is_empty() || self.nodes.len() > NODES_MAX {
            return Err("not a number of nodes");
        }
        if self.nodes.iter().any(|node| check_spec(&node.spec).is_err()) {
            return Err("not a node");
        }
        let mut ids: Vec<u64> = self.nodes.iter().map(|node| node.spec.id).collect();
        ids.sort_unstable();
        if ids.windows(2).any(|pair| pair[0] == pair[1]) {
            return Err("two nodes of one id");
        }
        if self.pending.is_empty() && self.nodes.iter().any(|node| node.state != NodeState::Member) {
            return Err("a node is on its way, but nothing moves");
        }
        if self.pending.windows(2).any(|pair| pair[0].0 >= pair[1].0)
            || self.pending.last().is_some_and(|(vnode, _)| *vnode as usize >= vnodes)
        {
            return Err("moves out of order");
        }
        if RFS.iter().fold(self.factors, |left, rf| left & !(1 << rf)) != 0 || !self.has_factor(RF_DEFAULT) {
            return Err("not a replication factor");
        }
        let lists = self.owners.iter().chain(self.pending.iter().map(|(_, list)| list));
        if lists.into_iter().any(|list| !is_list(list, self.nodes.len())) {
            return Err("not a preference list");
        }
        Ok(())
    }
}

/// The first `rf` owners of a list.
fn prefix(list: &Owners, rf: usize) -> &[u16] {
    let owned = list.iter().position(|owner| *owner == NOBODY).unwrap_or(RF_MAX);
    &list[..owned.min(rf)]
}

/// One owner or more, distinct, and then nobody.
fn is_list(list: &Owners, nodes: usize) -> bool {
    let owners = prefix(list, RF_MAX);
    let distinct = (1..owners.len()).all(|at| !owners[..at].contains(&owners[at]));
    !owners.is_empty()
        && distinct
        && owners.iter().all(|owner| usize::from(*owner) < nodes)
        && list[owners.len()..].iter().all(|o| *o == NOBODY)
}

fn check_spec(spec: &NodeSpec) -> Result<(), Refused> {
    let refuse = |why| Err(Refused::Node { why });
    let is_address = |address: &str| !address.is_empty() && address.len() <= ADDRESS_BYTES_MAX;
    match spec {
        spec if spec.cores == 0 || usize::from(spec.cores) > CORES_MAX => refuse("a node has 1 to 256 cores"),
        spec if spec.weight > WEIGHT_MAX => refuse("a node's weight is at most 65536"),
        spec if spec.rack.len() > RACK_BYTES_MAX => refuse("the name of a rack has at most 31 bytes"),
        spec if !is_address(&spec.native) || !is_address(&spec.gossip) => refuse("an address has 1 to 261 bytes"),
        _ => Ok(()),
    }
}
