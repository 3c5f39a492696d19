//! What all nodes of a cluster agree on, as this node keeps it: the topology and the namespaces. Core 0 makes each durable before any core
//! uses it, and tells the others.
//!
//! Both are values with an order (epoch, version); the newer one wins wherever two meet. Core 0 of each node compares its namespaces with
//! every other node's once in a while, so a node that was away when they changed gets them when it is back.

use super::cluster::{Cluster, ClusterPlan, lost_disk};
use super::mailbox::Mail;
use super::namespaces::NamespaceTable;
use super::peers::At;
use super::start::{StartFailure, tell_failure};
use super::{Shard, Ticket, perform};
use crate::base::record::{NAMESPACE_SYSTEM, Version};
use crate::base::time::Mono;
use crate::cluster::decide::{Acceptor, Register};
use crate::cluster::topology::{Change, Topology};
use crate::cluster::topology_codec::{self, DecodeError};
use crate::engine::{Batch, Engine, EngineError, KeyRef, Seq};
use crate::io::Class;
use crate::limits::{CLUSTER_VERSION_MIN, PEER_FRAME_BYTES_MAX};
use crate::wire::frame::FrameReader;
use crate::wire::peer::{Holds, Message, Refusal, decode};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// The key in the system's namespace under which the topology lies; token 0 belongs to core 0 whatever the number of cores.
const TOPOLOGY_KEY: &[u8] = b"topology";
/// Beside it, what this node promised and accepted of the decision about the next one.
const DECISION_KEY: &[u8] = b"decision";
/// A topology is not asked for more often.
const FETCH_EVERY: Duration = Duration::from_millis(5);
/// How often the namespaces are compared with the other nodes', and where nobody could be asked; how long one of them may take to answer.
const COMPARE_EVERY: Duration = Duration::from_secs(2);
const COMPARE_AGAIN: Duration = Duration::from_millis(100);
const TELL_MAX: Duration = Duration::from_secs(1);

fn key_of(key: &'static [u8]) -> KeyRef<'static> {
    KeyRef { namespace: NAMESPACE_SYSTEM, token: 0, key }
}

fn corrupt(what: &str, error: &dyn std::fmt::Display) -> EngineError {
    EngineError::Corrupt { file: what.to_owned(), offset: 0, what: error.to_string() }
}

/// The topology as stored, or the one that the node was told at its start, where that is newer or nothing is stored: it is then. Beside it
/// what the node has promised and accepted of the next.
///
/// # Errors
/// Of the disk; `Corrupt` where what is stored is no topology or no register; `Contradiction` where there is no topology at all, or one
/// that says that the node has lost what it had.
pub async fn load(engine: &Engine, plan: &ClusterPlan, now_ms: u64) -> Result<(Topology, Register), StartFailure> {
    let register = load_register(engine, now_ms).await?;
    let (told, stored) = (&plan.founding, engine.read_value(key_of(TOPOLOGY_KEY), now_ms).await?);
    let decode = |bytes: &[u8]| topology_codec::decode(bytes).map_err(|error| corrupt("the topology", &error));
    let stored = stored.map(|value| decode(&value.bytes)).transpose()?;
    let before = stored.unwrap_or_else(|| Topology::unknown(told.cluster(), told.vnodes()));
    if before.epoch() == 0 && told.epoch() == 0 {
        let why = "join: none of these nodes tells the cluster's topology, and the data folder has none yet";
        return Err(StartFailure::Contradiction(why.to_owned()));
    }
    if before.epoch() >= told.epoch() {
        return Ok((before, register));
    }
    let said_yes = Acceptor::new(register.clone()).has_accepted(before.epoch());
    if told.is_founded()
        && let Some(why) = lost_disk(&before, told, plan.node, said_yes, plan.planted)
    {
        return Err(StartFailure::Contradiction(why));
    }
    store_topology(engine, told, now_ms).await?;
    Ok((told.clone(), register))
}

/// What this node has promised and accepted; nothing where it never was asked.
///
/// # Errors
/// Of the disk; `Corrupt` where what is stored is no register.
async fn load_register(engine: &Engine, now_ms: u64) -> Result<Register, EngineError> {
    match engine.read_value(key_of(DECISION_KEY), now_ms).await? {
        Some(value) => Register::decode(&value.bytes).map_err(|error| corrupt("what was promised of the next topology", &error)),
        None => Ok(Register::default()),
    }
}

/// Stores a register; durable when the log is, up to what this gives.
pub(super) fn store_register(engine: &Engine, register: &[u8], now_ms: u64) -> Result<Seq, EngineError> {
    let mut batch = Batch::new(true);
    batch.put_value(key_of(DECISION_KEY), register, engine.stamp(now_ms), 0);
    engine.write(&batch)
}

/// Returns when it is durable. A program that does not know its version refuses the folder before it could meet anything of that version.
async fn store_topology(engine: &Engine, topology: &Topology, now_ms: u64) -> Result<(), EngineError> {
    engine.raise_format(topology.version()).await?;
    let mut bytes = Vec::new();
    topology_codec::encode(topology, &mut bytes);
    let mut batch = Batch::new(true);
    batch.put_value(key_of(TOPOLOGY_KEY), &bytes, engine.stamp(now_ms), 0);
    engine.wait_durable(engine.write(&batch)?).await
}

/// How nodes tell each other the namespaces in a cluster of this version.
fn tell_namespaces(version: u16, bytes: &[u8]) -> Message<'_> {
    #[cfg(feature = "next-version")]
    if version > CLUSTER_VERSION_MIN {
        return Message::NamespacesNext { bytes };
    }
    debug_assert!(version >= CLUSTER_VERSION_MIN);
    Message::Namespaces { bytes }
}

impl Shard {
    /// Asks a node for its topology, which is newer; where it cannot be asked, another. Until one has come it is asked for again (`moves`).
    pub(super) fn fetch_topology(self: &Rc<Shard>, cluster: &Cluster, node: u64) {
        cluster.moves.chase(node);
        let is_known = node != cluster.me && cluster.address_of(node).is_some() && cluster.is_alive(node);
        let node = if is_known { Some(node) } else { self.any_other(cluster) };
        let Some(node) = node.filter(|_| self.may_ask_topology(cluster)) else { return };
        self.tell(cluster, node, &Message::FetchTopology);
    }

    /// Whether a topology may be asked for now; it is then taken for asked for.
    pub(super) fn may_ask_topology(&self, cluster: &Cluster) -> bool {
        let (now, asked) = (self.io.now(), cluster.asked_topology.get());
        let may = asked == Mono::default() || now.since(asked) >= FETCH_EVERY;
        if may {
            cluster.asked_topology.set(now);
        }
        may
    }

    /// Tells a node about topologies, where it can be told now.
    fn tell(self: &Rc<Shard>, cluster: &Cluster, node: u64, message: &Message<'_>) {
        if let Ok(link) = self.link(cluster, At { node, core: 0 }) {
            let now = self.io.now();
            self.say(cluster, &link, 0, cluster.head(now, Some(now.plus(TELL_MAX))), message);
        }
    }

    /// A node knows an older topology.
    pub(super) fn correct(self: &Rc<Shard>, cluster: &Cluster, node: u64) {
        self.tell(cluster, node, &Message::Correct);
    }

    /// Who was corrected knows no way to this node, and asks over the link that it was told over.
    pub(super) fn give_topology(self: &Rc<Shard>, cluster: &Cluster, node: u64) {
        let mut bytes = Vec::new();
        topology_codec::encode(&cluster.topology(), &mut bytes);
        self.tell(cluster, node, &Message::Topology { bytes: &bytes });
    }

    /// Any node of the topology that seems to be there.
    pub(super) fn any_other(&self, cluster: &Cluster) -> Option<u64> {
        let topology = cluster.topology();
        let others = topology.nodes().iter().map(|node| node.spec.id).filter(|node| *node != cluster.me && cluster.is_alive(*node));
        let others: Vec<u64> = others.collect();
        let at = self.io.random_u64().checked_rem(others.len() as u64)?;
        Some(others[at as usize])
    }

    /// A topology as a peer gives it.
    pub(super) fn on_topology_bytes(self: &Rc<Shard>, cluster: &Cluster, bytes: &[u8]) {
        let ours = cluster.topology();
        match topology_codec::decode(bytes) {
            Ok(topology) if topology.cluster() != ours.cluster() || topology.vnodes() != ours.vnodes() => self.stats.malformed(),
            Ok(topology) if topology.epoch() <= ours.epoch() => cluster.moves.chased(),
            // Once for each time that it was asked for: a peer that sends more fills nobody's mailbox.
            Ok(_) if cluster.asked_topology.replace(Mono::default()) == Mono::default() => {}
            Ok(topology) if self.core() == 0 => self.adopt_topology(Arc::new(topology)),
            Ok(topology) if self.mailbox.has_room_for_connections(0) => self.mailbox.send(0, Mail::Learn(Arc::new(topology))),
            Ok(_) => {}
            Err(error @ DecodeError::Version(_)) => self.notice(0, "a later version", || error.to_string()),
            Err(DecodeError::Malformed(_)) => self.stats.malformed(),
        }
    }

    /// Core 0: makes a topology durable, then every core uses it.
    pub(super) fn adopt_topology(self: &Rc<Shard>, topology: Arc<Topology>) {
        let shard = self.clone();
        drop(self.io.spawn(Class::Foreground, async move { shard.use_topology(&topology).await }));
    }

    /// The same, and waits for it; false: it could not be stored.
    pub(super) async fn use_topology(self: &Rc<Shard>, topology: &Arc<Topology>) -> bool {
        let _guard = self.locks.lock(0).await;
        let Some(cluster) = &self.cluster else { return false };
        if topology.epoch() <= cluster.epoch() {
            return true;
        }
        let ours = cluster.topology();
        if let Some(why) = lost_disk(&ours, topology, cluster.me, cluster.moves.has_accepted(ours.epoch()), cluster.planted) {
            self.end_for(StartFailure::Contradiction(why));
            return false;
        }
        if let Err(error) = store_topology(&self.engine, topology, self.io.wall_ms()).await {
            self.node.warn(&format!("the topology of epoch {} cannot be stored: {error}", topology.epoch()));
            return false;
        }
        for core in (0..self.mailbox.cores()).filter(|&core| core != usize::from(self.core())) {
            self.mailbox.send(core, Mail::Topology(topology.clone()));
        }
        self.learn_topology(topology);
        self.settle();
        true
    }

    /// Core 0: the node does not go on, and its process says why.
    fn end_for(&self, why: StartFailure) {
        tell_failure(&self.io, &self.mailbox, &why);
        *self.ends_for.borrow_mut() = Some(why);
        self.node.stop();
    }

    /// Namespaces from another node: stored, and told to all cores, if they are newer.
    pub(super) fn take_namespaces(self: &Rc<Shard>, ticket: Ticket, bytes: &[u8], deadline: Mono) {
        let table = bytes.split_first_chunk::<16>().map(|(version, rest)| (Version::from_bytes(*version), NamespaceTable::decode(rest)));
        let Some((version, Ok(table))) = table else {
            self.stats.malformed();
            return self.answer_peer(&ticket, 0, deadline, &Message::Refused { why: Refusal::NotReplica });
        };
        if !self.admit.begin() {
            return self.answer_peer(&ticket, 0, deadline, &Message::Refused { why: Refusal::Overloaded });
        }
        let shard = self.clone();
        drop(self.io.spawn(Class::Foreground, async move {
            shard.await_factors(&table, deadline).await;
            let _guard = shard.locks.lock(0).await;
            let ours = shard.namespaces_version.get();
            if !shard.may_be_real(version) || !shard.knows_factors(&table) {
                shard.answer_peer(&ticket, 0, deadline, &Message::Refused { why: Refusal::NotReplica });
            } else if ours > version {
                shard.answer_peer(&ticket, 0, deadline, &Message::Namespaces { bytes: &shard.namespaces_bytes() });
            } else if ours == version {
                shard.answer_peer(&ticket, 0, deadline, &Message::Stored { holds: Holds::Same });
            } else {
                let answer = match shard.adopt_namespaces(table, version).await {
                    Ok(()) => Message::Stored { holds: Holds::Stored },
                    Err(_) => Message::Refused { why: Refusal::Stopped },
                };
                shard.answer_peer(&ticket, 0, deadline, &answer);
            }
            shard.admit.end();
            shard.settle();
        }));
    }

    /// The topology has the replication factors of all these namespaces. Before that a table is not taken: moves would overlook them.
    fn knows_factors(self: &Rc<Shard>, table: &NamespaceTable) -> bool {
        let Some(cluster) = &self.cluster else { return true };
        let topology = cluster.topology();
        let knows = table.rows().iter().all(|row| topology.has_factor(row.replicas.into()));
        if !knows && let Some(node) = self.any_other(cluster) {
            self.fetch_topology(cluster, node);
            self.settle();
        }
        knows
    }

    /// What was decided before a table was made is on its way as the table is.
    async fn await_factors(self: &Rc<Shard>, table: &NamespaceTable, deadline: Mono) {
        while !self.knows_factors(table) && self.io.now() < deadline {
            self.io.sleep(FETCH_EVERY).await;
        }
    }

    /// Sees to it that there may be namespaces with `rf` replicas. Err: why there may not.
    pub(super) async fn decide_factor(self: &Rc<Shard>, cluster: &Rc<Cluster>, rf: usize, deadline: Mono) -> Result<(), String> {
        if cluster.topology().has_factor(rf) {
            return Ok(());
        }
        let change = |ours: &Topology| Ok((!ours.has_factor(rf)).then_some(Change::Factor { rf }));
        self.propose(cluster, change, deadline).await.map(|_| ())
    }

    /// A clock of a sound node may have given the version of a table: else ours, which follows it, would run ahead of all others.
    fn may_be_real(&self, version: Version) -> bool {
        let is_real = self.engine.may_have_given(version, self.io.wall_ms());
        if !is_real {
            self.notice(0, "a table", || {
                "namespaces from another node are refused: their version lies ahead of this node's clock".to_owned()
            });
        }
        is_real
    }

    fn namespaces_bytes(&self) -> Vec<u8> {
        let mut bytes = self.namespaces_version.get().to_bytes().to_vec();
        bytes.extend_from_slice(&self.namespaces().encode());
        bytes
    }

    async fn adopt_namespaces(self: &Rc<Shard>, table: NamespaceTable, version: Version) -> Result<(), EngineError> {
        self.engine.observe(version);
        perform::store_namespaces_as(self, &table, version).await?;
        self.namespaces_version.set(version);
        self.publish_namespaces(Arc::new(table));
        Ok(())
    }

    /// Why this node does not change namespaces: one does, so that two changes cannot miss each other.
    pub(super) fn changes_namespaces(&self) -> Result<(), String> {
        let Some(cluster) = &self.cluster else { return Ok(()) };
        let topology = cluster.topology();
        // Who joins may not have heard of all namespaces yet.
        match topology.members().min_by_key(|node| node.spec.id) {
            Some(first) if first.spec.id != cluster.me => {
                Err(format!("namespaces of a cluster are changed at its first node, {} at {}", first.spec.id, first.spec.native))
            }
            _ => Ok(()),
        }
    }

    /// Tells every other node the namespaces; those that could not be told now are told when the nodes compare. False: none of
    /// them could be.
    pub(super) async fn spread_namespaces(self: &Rc<Shard>) -> bool {
        let Some(cluster) = self.cluster.clone() else { return true };
        let nodes: Vec<u64> = cluster.topology().nodes().iter().map(|node| node.spec.id).filter(|node| *node != cluster.me).collect();
        let tell = |node| {
            let (shard, cluster) = (self.clone(), cluster.clone());
            self.io.spawn(Class::Foreground, async move { shard.compare_namespaces(&cluster, node).await })
        };
        let told: Vec<_> = nodes.into_iter().map(tell).collect();
        let mut any = told.is_empty();
        for task in told {
            any |= task.await;
        }
        any
    }

    /// False: no answer, or one that cannot be taken yet.
    async fn compare_namespaces(self: &Rc<Shard>, cluster: &Rc<Cluster>, node: u64) -> bool {
        let deadline = self.io.now().plus(TELL_MAX);
        let bytes = self.namespaces_bytes();
        let question = tell_namespaces(cluster.topology().version(), &bytes);
        let answer = cluster.requests.ask(self, cluster, At { node, core: 0 }, &question, deadline).await;
        let Some(answer) = answer else { return false };
        let mut reader = FrameReader::new(PEER_FRAME_BYTES_MAX);
        for frame in reader.feed(&answer).flatten() {
            if let Ok((_, Message::Namespaces { bytes })) = decode(&frame)
                && let Some((version, rest)) = bytes.split_first_chunk::<16>()
                && let Ok(table) = NamespaceTable::decode(rest)
            {
                self.await_factors(&table, deadline).await;
                let _guard = self.locks.lock(0).await;
                let version = Version::from_bytes(*version);
                if !self.knows_factors(&table) {
                    return false;
                }
                // A failure of the disk is told by who writes data.
                if version > self.namespaces_version.get() && self.may_be_real(version) {
                    let _ = self.adopt_namespaces(table, version).await;
                }
            }
        }
        true
    }

    /// Core 0, as long as the shard lives.
    pub(super) async fn compare_with_all(self: &Rc<Shard>) {
        while !self.io.is_shutting_down() && !self.is_closing() {
            let has_compared = self.spread_namespaces().await;
            // A node that has just started may know less than its clients.
            self.io.sleep(if has_compared { COMPARE_EVERY } else { COMPARE_AGAIN }).await;
        }
    }
}
