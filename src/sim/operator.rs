//! The operator of a simulated cluster: joins, leaves, weights and replacements while clients work and faults happen. One change at a time
//! is ordered; whoever is up is asked, again and again, until somebody says that it is decided, or why it is not done. Beside that the
//! operator looks at the topology all the time, so that the run knows who is a member.

use super::cluster::{Run, address};
use super::estranged::Estranged;
use super::final_look::Quiet;
use crate::client::Answer;
use crate::cluster::takeover::all_takers;
use crate::cluster::topology::{NodeSpec, NodeState, Topology};
use crate::cluster::topology_codec;
use crate::cluster::words::join_words;
use crate::io::sim::Faults;
use crate::io::wakers::Wakers;
use crate::io::{Class, Io, SocketAddr};
use crate::limits::RF_MAX;
use crate::shard::session::within;
use crate::wire::command::Command;
use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

/// What is ordered, as it is counted.
pub(super) const JOIN: &str = "join decided";
pub(super) const REJOIN: &str = "join of a node that had left decided";
pub(super) const LEAVE: &str = "leave decided";
pub(super) const REPLACE: &str = "replacement decided";
pub(super) const WEIGHT: &str = "weight decided";
pub(super) const CANCEL: &str = "cancel decided";
/// What all know is known to a node that is up after this time.
const HEARD_MAX: Duration = Duration::from_secs(10);
/// A node fell, or was cut off, while vnodes moved.
pub(super) const FELL_MEANWHILE: &str = "node fell while vnodes moved";
pub(super) const CUT_MEANWHILE: &str = "node cut off while vnodes moved";

/// A member falls, and comes back on an empty disk.
pub(super) const DISK_LOST: &str = "disk lost";

/// Bits flip in a member's tables, and after a while it is taken away.
pub(super) const ROT: &str = "tables rotten";

/// A node was cut off from some of those that have, or take over, a vnode that moves.
pub(super) const MOVERS_CUT: &str = "links to nodes that move a vnode cut";

const LOOK_EVERY: Duration = Duration::from_millis(40);
const PATIENCE: Duration = Duration::from_secs(3);
/// A move to a node that is dead is given up after so long.
const DEAD_MOVE_MAX: Duration = Duration::from_secs(15);
/// Members that a leave must leave.
const MEMBERS_MIN: usize = 3;

/// A change that is to be made.
#[derive(Clone)]
pub(super) struct Order {
    pub words: String,
    pub kind: &'static str,
}

/// What operator and run share.
pub(super) struct Operator {
    order: RefCell<Option<Order>>,
    /// How orders ended: kind, whether it is decided, what was said.
    ended: RefCell<Vec<(&'static str, bool, String)>>,
    /// The newest topology that anybody showed.
    known: RefCell<Topology>,
    /// The epoch that the last order made: what is known is older until somebody shows that.
    made: Cell<u64>,
    /// Founders that have not shown yet that they know of the founding.
    unaware: RefCell<BTreeSet<SocketAddr>>,
    /// Who can be asked: nodes that were started.
    servers: RefCell<Vec<SocketAddr>>,
    stop: Cell<bool>,
}

impl Operator {
    pub fn new(founding: Topology) -> Operator {
        let addresses = founding.nodes().iter().map(|node| node.spec.native.parse().expect("an address"));
        Operator {
            unaware: RefCell::new(addresses.collect()),
            order: RefCell::default(),
            ended: RefCell::default(),
            known: RefCell::new(founding),
            made: Cell::new(1),
            servers: RefCell::default(),
            stop: Cell::new(false),
        }
    }

    pub fn known(&self) -> Topology {
        self.known.borrow().clone()
    }

    /// Nothing is ordered, and nothing moves as far as the operator has seen.
    pub fn is_idle(&self) -> bool {
        let known = self.known.borrow();
        self.order.borrow().is_none() && known.moving().len() == 0 && known.epoch() >= self.made.get()
    }

    /// Until then a founder that is lost takes the founding with it, and there is nothing to be ordered.
    pub fn all_know_founding(&self) -> bool {
        self.unaware.borrow().is_empty()
    }

    fn is_member(&self, node: u64) -> bool {
        self.known.borrow().index_of(node).is_some()
    }
}

/// The operator's work, on a machine of its own.
async fn work(io: Io, operator: Rc<Operator>) {
    while !operator.stop.get() {
        io.sleep(LOOK_EVERY).await;
        let servers = operator.servers.borrow().clone();
        let Some(at) = io.random_u64().checked_rem(servers.len() as u64) else { continue };
        // It may fall in the middle, or be cut off from all others.
        let _ = within(&io, io.now().plus(PATIENCE), visit(&io, servers[at as usize], &operator)).await;
    }
}

async fn visit(io: &Io, server: SocketAddr, operator: &Operator) -> Result<(), String> {
    let mut quiet = Quiet::open(io.clone(), server).await?;
    look(&mut quiet, server, operator).await?;
    let order = operator.order.borrow().clone();
    if let Some(Order { words, kind }) = order {
        let answer = quiet.ask(0, Command::Cluster { words: &words }).await?;
        match answer {
            Ok(Answer::Text(said)) => end(operator, kind, true, said),
            Ok(other) => return Err(format!("words are answered with {other:?}")),
            Err(error) => {
                let said = error.to_string();
                // Who could not reach enough others, was in the middle of something, or does not know yet that a move has ended, has not
                // the last word.
                let is_final = ![
                    "answered in time",
                    "all the time",
                    "did not answer",
                    "can be reached",
                    "shutting down",
                    "still moving",
                    "waits until all",
                    "is not known to gossip",
                    "does not take it",
                ]
                .iter()
                .any(|part| said.contains(part));
                if is_final {
                    end(operator, kind, false, said);
                }
            }
        }
        look(&mut quiet, server, operator).await?;
    }
    Ok(())
}

fn end(operator: &Operator, kind: &'static str, decided: bool, said: String) {
    let epoch = said.strip_prefix("epoch ").and_then(|rest| rest.split(':').next()?.parse().ok());
    operator.made.set(operator.made.get().max(epoch.unwrap_or(0)));
    operator.ended.borrow_mut().push((kind, decided, said));
    operator.order.take();
}

async fn look(quiet: &mut Quiet, server: SocketAddr, operator: &Operator) -> Result<(), String> {
    let Ok(Answer::Text(text)) = quiet.ask(0, Command::Cluster { words: "topology" }).await? else {
        return Err("no topology".to_owned());
    };
    let digits: Vec<u8> = text.bytes().filter_map(|digit| (digit as char).to_digit(16)).map(|digit| digit as u8).collect();
    let bytes: Vec<u8> = digits.chunks(2).map(|pair| pair.iter().fold(0, |byte, digit| byte << 4 | digit)).collect();
    let topology = topology_codec::decode(&bytes).map_err(|error| error.to_string())?;
    if topology.is_founded() {
        operator.unaware.borrow_mut().remove(&server);
    }
    let mut known = operator.known.borrow_mut();
    if topology.epoch() > known.epoch() {
        *known = topology;
    }
    Ok(())
}

impl Run {
    pub(super) fn start_operator(&mut self) {
        let quiet = Faults { net_us: 20, net_jitter_us: 5, ..Faults::default() };
        let machine = self.world.add_machine(quiet);
        let io = self.world.spawn_core(machine, 0, &Wakers::new(1));
        drop(io.spawn(Class::Foreground, work(io.clone(), self.operator.clone())));
    }

    fn order(&mut self, words: String, kind: &'static str) {
        self.note(format!("ordered: {words}"));
        *self.operator.order.borrow_mut() = Some(Order { words, kind });
    }

    /// Takes note of how orders ended, and of whom can be asked.
    pub(super) fn look_at_operator(&mut self) {
        let started: Vec<SocketAddr> =
            self.nodes.iter().filter(|node| node.life.is_some() || node.back_at.is_some()).map(|node| address(node.machine)).collect();
        *self.operator.servers.borrow_mut() = started;
        for (kind, decided, said) in self.operator.ended.take() {
            self.note(format!("{kind}: {decided}: {said}"));
            if decided {
                self.happened(kind);
            }
        }
        let epoch = self.operator.known.borrow().epoch();
        if epoch > self.seen_epoch {
            self.seen_epoch = epoch;
            let moving = self.operator.known.borrow().moving().len();
            self.note(format!("epoch {epoch}: {moving} vnodes move"));
            self.check_version(&self.operator.known());
        }
    }

    fn spec(&self, node: usize) -> NodeSpec {
        self.specs[node].clone()
    }

    /// Orders something that can be ordered now.
    pub(super) fn order_something(&mut self) {
        if self.operator.order.borrow().is_some() || self.estranged.is_some_and(Estranged::is_under_way) {
            return;
        }
        let known = self.operator.known();
        if !self.operator.all_know_founding() {
            return;
        }
        if !self.operator.is_idle() {
            if self.prng.one_in(12) {
                self.order("cancel".to_owned(), CANCEL);
            }
            return;
        }
        if self.estranged.is_some() {
            // It begins now that nothing moves.
            return;
        }
        if let Some(dead) = self.dead_member() {
            return self.order_end_of(dead);
        }
        let members: Vec<usize> = known.nodes().iter().map(|node| node.spec.id as usize - 1).collect();
        let strangers: Vec<usize> = self.strangers().collect();
        let one = *self.prng.pick(&members).expect("a cluster has members");
        let stranger = self.prng.pick(&strangers).copied();
        let may_lose = self.may_lose(&known);
        match (self.prng.below(10), stranger) {
            (0..3, Some(node)) => self.order_join(node),
            (3, _) if may_lose => self.lose_disk(one),
            (4, _) if may_lose => self.rot_tables(one),
            (5, Some(node)) if may_lose => self.order_replacement(one, node),
            (6..8, _) if members.len() > MEMBERS_MIN => self.order(format!("leave {}", one + 1), LEAVE),
            (8.., _) => {
                let weight = self.prng.between(1, 6);
                self.order(format!("weight {} {weight}", one + 1), WEIGHT);
            }
            _ => {}
        }
    }

    /// Who may join, or take another's place. Who lost something as a member may not: one node at a time is lost.
    pub(super) fn strangers(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.nodes.len()).filter(|node| self.nodes[*node].is_whole() && !self.operator.is_member(*node as u64 + 1))
    }

    /// A member may lose what it has: one at a time, and never one of two.
    pub(super) fn may_lose(&self, known: &Topology) -> bool {
        let are_whole = self.dead_member().is_none() && !self.has_one_lost_something();
        known.nodes().len() >= MEMBERS_MIN && self.setup.faults.crash && self.replicas > 1 && are_whole
    }

    /// A member has lost something, and is not gone yet.
    fn has_one_lost_something(&self) -> bool {
        (0..self.nodes.len()).any(|node| self.nodes[node].has_lost() && self.operator.is_member(node as u64 + 1))
    }

    /// It comes back on an empty disk, as the founder that it was, or was not. Nothing is lost as long as it is the only one, and has no
    /// vote.
    pub(super) fn lose_disk(&mut self, node: usize) {
        self.fall(node, true);
        self.note(format!("node {} has lost its disk", node + 1));
        self.nodes[node].disks_lost += 1;
        self.happened(DISK_LOST);
    }

    /// Its data is as good as lost, though nobody knows yet: it goes on, answers what it can read, and is taken away later.
    fn rot_tables(&mut self, node: usize) {
        let machine = self.nodes[node].machine;
        let data = format!("/data{}/tables/", self.nodes[node].disks_lost);
        let tables: Vec<(String, u64)> =
            self.world.tree(machine).into_iter().filter(|(name, bytes)| name.starts_with(&data) && *bytes > 0).collect();
        if tables.is_empty() {
            return;
        }
        for _ in 0..self.prng.between(1, 20) {
            let (name, bytes) = self.prng.pick(&tables).expect("there are some");
            // Where nothing was written there is nothing to flip.
            let _ = self.world.rot(machine, Path::new(name), self.prng.below(*bytes));
        }
        self.note(format!("bits flip in tables of node {}", node + 1));
        self.nodes[node].rotten_until = Some(self.world.now().plus(Duration::from_millis(self.prng.between(100, 4_000))));
        self.happened(ROT);
    }

    pub(super) fn order_join(&mut self, node: usize) {
        let kind = if self.nodes[node].was_member { REJOIN } else { JOIN };
        self.ensure_started(node);
        self.nodes[node].was_member = true;
        self.order(join_words(&self.spec(node)), kind);
    }

    /// A member that fell for good, and whose place nobody has taken yet. There is one at most.
    pub(super) fn dead_member(&self) -> Option<usize> {
        (0..self.nodes.len()).find(|node| self.nodes[*node].is_dead && self.operator.is_member(*node as u64 + 1))
    }

    /// What a dead member had comes to another node: a stranger, or where there is none those that are left.
    fn order_end_of(&mut self, dead: usize) {
        let free = self.strangers().next();
        match free {
            Some(node) => self.order_replacement(dead, node),
            None => self.order(format!("leave {}", dead + 1), LEAVE),
        }
    }

    /// A member falls for good, and another node takes its place.
    fn order_replacement(&mut self, dead: usize, node: usize) {
        if !self.nodes[dead].is_dead {
            self.bury(dead);
        }
        self.ensure_started(node);
        self.nodes[node].was_member = true;
        self.order(join_words(&self.spec(node)).replacen("join", &format!("replace {}", dead + 1), 1), REPLACE);
    }

    fn ensure_started(&mut self, node: usize) {
        if self.nodes[node].life.is_none() && self.nodes[node].back_at.is_none() {
            self.note(format!("node {} starts for the first time", node + 1));
            self.start(node);
        } else if self.nodes[node].knows < self.operator.known().version() {
            // It would be refused: it needs a newer program.
            self.fall(node, false);
        }
    }

    /// While vnodes move: somebody does not reach who takes one of them over, or some of those that have it, or both.
    pub(super) fn cut_movers(&mut self) {
        let known = self.operator.known();
        let moving: Vec<u32> = known.moving().collect();
        let Some(vnode) = self.prng.pick(&moving).copied() else { return };
        let owners = known.replicas(vnode, self.replicas).owners;
        let owners: Vec<u64> = owners.iter().map(|index| known.nodes()[usize::from(*index)].spec.id).collect();
        let takers: Vec<u64> = all_takers(&known, vnode).into_iter().collect();
        let one = self.prng.below(self.nodes.len() as u64) as usize;
        for ids in [takers, owners] {
            let drawn = self.prng.pick(&ids).map(|id| *id as usize - 1);
            let Some(other) = drawn.filter(|other| *other != one && !self.prng.one_in(3)) else { continue };
            self.cut(one, other);
            if self.prng.one_in(2) {
                self.cut(other, one);
            }
            self.happened(MOVERS_CUT);
        }
    }

    /// A node that moves vnodes, or others that do, were disturbed.
    pub(super) fn count_meanwhile(&mut self, node: usize, what: &'static str) {
        let known = self.operator.known();
        let id = node as u64 + 1;
        if known.moving().any(|vnode| {
            let owners = known.replicas(vnode, RF_MAX).owners;
            all_takers(&known, vnode).contains(&id) || owners.iter().any(|at| known.nodes()[usize::from(*at)].spec.id == id)
        }) {
            self.happened(what);
        }
    }

    /// After the faults: whoever is dead is replaced, and everything that moves comes to its end.
    pub(super) fn await_moves(&mut self) -> Result<(), String> {
        let until = self.world.now().plus(super::cluster::STUCK);
        let mut to_cancel = self.world.now().plus(DEAD_MOVE_MAX);
        // Who came back on an empty disk ends once it hears from the others that it had been one of them.
        let heard = self.world.now().plus(HEARD_MAX);
        let may_end = |run: &Run| (0..run.nodes.len()).any(|node| run.nodes[node].life.is_some() && run.nodes[node].disks_lost > 0);
        loop {
            self.look_after_nodes();
            self.look_at_operator();
            let known = self.operator.known();
            if self.operator.is_idle() {
                match self.dead_member() {
                    None if self.world.now() < heard && may_end(self) => {}
                    None => return Ok(()),
                    Some(dead) => self.order_end_of(dead),
                }
            } else if self.dead_member().is_some() && self.world.now() >= to_cancel {
                // Who is to take something over is dead: that move never ends, and whatever else was ordered waits for it.
                to_cancel = until;
                self.order("cancel".to_owned(), CANCEL);
            }
            if self.world.now() >= until {
                let joining = known.nodes().iter().filter(|node| node.state != NodeState::Member).count();
                let order = self.operator.order.borrow().as_ref().map(|order| order.words.clone()).unwrap_or_default();
                let (epoch, moving) = (known.epoch(), known.moving().len());
                return Err(format!(
                    "a minute after the faults ended, at epoch {epoch}: {moving} vnodes still move, {joining} nodes are on their way, and \
                     this is not decided: {order:?}"
                ));
            }
            self.world.run_for(Duration::from_millis(50));
        }
    }

    pub(super) fn stop_operator(&mut self) -> Topology {
        self.operator.stop.set(true);
        self.operator.known()
    }
}
