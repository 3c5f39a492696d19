//! Moves on one core: the hands of `cluster::takeover`, and on core 0 of `cluster::decide` and of who sees to it that vnodes flip.
//!
//! A core takes over what the topology says is coming to it, a few vnodes at a time, by the machinery of repair; what it has and may not
//! have any more is made void when nothing moves. Core 0 answers for the node when a topology is to be decided, durable before it answers,
//! and proposes changes: an operator's (`admin`), and where it is the steward the flips of what has been taken over.

use super::cluster::Cluster;
use super::decisions::store_register;
use super::peers::At;
use super::repair::Comparison;
use super::replicate::refusal_of;
use super::{Shard, Ticket};
use crate::base::record::{NAMESPACE_SYSTEM, NamespaceId, Version, core_of};
use crate::base::time::Mono;
use crate::cluster::decide::{self, Accepted, Acceptor, Answer, Ask, Effect, Outcome, Proposer, Question, Register, Step};
use crate::cluster::forget::Marks;
use crate::cluster::repair_plan::Pair;
use crate::cluster::takeover::{self, MarksIn, MarksOf, Move, Part, Stage, TakeOver, all_takers, is_given_up, ready, steward};
use crate::cluster::topology::{Change, Proposal, Topology};
use crate::cluster::topology_codec;
use crate::cluster::words;
use crate::engine::store_marks::VnodeMarks;
use crate::io::Class;
use crate::io::signal::{Signal, race};
use crate::limits::{DEADLINE_MS_MAX, MOVE_BYTES_A_SECOND};
use crate::wire::peer::{Head, Refusal, encode_move};
use crate::wire::peer_moves::{MARKS_VNODES_MAX, MoveMessage};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// Between two looks at what is to be taken over, where there was nothing to do or nobody there to do it with.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// How often a node looks whether all founders are there, at first and later; how long they may take to say yes before it says which of
/// them it waits for.
const FOUND_EVERY: Duration = Duration::from_millis(20);
const FOUND_EVERY_MAX: Duration = Duration::from_millis(320);
const FOUND_MAX: Duration = Duration::from_secs(3);
/// How often the steward looks whether all nodes know a newer version.
const RAISE_EVERY: Duration = Duration::from_secs(1);
/// Vnodes that a core takes over at a time.
const AT_ONCE: usize = 4;
/// How often the steward looks for what may flip; and how long what is ready may wait for more of it, since every flip is a decision.
const FLIP_EVERY: Duration = Duration::from_millis(100);
const FLIP_WAIT: Duration = Duration::from_secs(1);
/// How often it is looked for what was accepted and not heard of again, and after how long, and at most twice that, it is chosen anew.
const COMPLETE_EVERY: Duration = Duration::from_millis(500);
const COMPLETE_AFTER: Duration = Duration::from_secs(3);
/// Until a topology that somebody knows has come, it is asked for this often, so many times.
const CHASE_EVERY: Duration = Duration::from_millis(25);
const CHASES_MAX: u32 = 80;
/// How long another node may take to answer a question of a move.
const ANSWER_MAX: Duration = Duration::from_secs(1);
/// How long a change may take to be decided.
const DECIDE_MAX: Duration = Duration::from_secs(10);
/// Between two looks at a proposal.
const TICK: Duration = Duration::from_millis(10);

/// A vnode, and a replication factor.
type Place = (u32, u8);

/// One core's.
#[derive(Default)]
pub struct Moves {
    /// Core 0's.
    acceptor: RefCell<Acceptor>,
    takes: RefCell<BTreeMap<Place, TakeOver>>,
    /// Who may have a newer topology, and how often it was asked.
    chase: Cell<Option<(u64, u32)>>,
    /// What this core has of vnodes that are none of the node's is to be looked for.
    to_tidy: Cell<bool>,
}

impl Moves {
    /// What was promised and accepted before.
    pub fn set_register(&self, register: Register) {
        *self.acceptor.borrow_mut() = Acceptor::new(register);
    }

    /// This node has said yes to what follows an epoch.
    pub fn has_accepted(&self, epoch: u64) -> bool {
        self.acceptor.borrow().has_accepted(epoch)
    }

    /// What this node has said yes to, and under which ballot.
    fn accepted(&self, epoch: u64) -> Option<Accepted> {
        self.acceptor.borrow().accepted(epoch).cloned()
    }

    /// Cells of the vnode are taken and shown, for namespaces with `rf` replicas; false while the node has yet to learn what the old
    /// owners may have forgotten.
    pub fn is_open(&self, vnode: u32, rf: usize) -> bool {
        let takes = self.takes.borrow();
        takes.is_empty() || takes.get(&(vnode, rf as u8)).is_none_or(TakeOver::is_open)
    }

    /// What the old owners of a vnode that is being taken over have told of a namespace, which has `rf` replicas: what a coordinator sends
    /// is judged by it. A majority of them has; before that nothing is taken, and this is an error.
    pub fn told(&self, epoch: u64, vnode: u32, namespace: NamespaceId, rf: usize) -> Result<Marks, Refusal> {
        let takes = self.takes.borrow();
        match takes.get(&(vnode, rf as u8)) {
            None => Ok(Marks::default()),
            Some(take) if !take.is_open() => Err(Refusal::Behind { epoch }),
            Some(take) => Ok(take.marks(namespace)),
        }
    }

    /// The vnode is being taken over, and not all is here yet.
    pub fn is_joining(&self, vnode: u32, rf: usize) -> bool {
        self.takes.borrow().get(&(vnode, rf as u8)).is_some_and(|take| take.stage() < Stage::Joined)
    }

    /// Parts of vnodes that this core has yet to take over, and those that it has and that have yet to flip.
    pub fn progress(&self) -> (usize, usize) {
        let takes = self.takes.borrow();
        let over = takes.values().filter(|take| take.stage() == Stage::Over).count();
        (takes.len() - over, over)
    }

    /// A node may have a newer topology.
    pub fn chase(&self, node: u64) {
        if self.chase.get().is_none() {
            self.chase.set(Some((node, 0)));
        }
    }

    /// A topology came.
    pub fn chased(&self) {
        self.chase.set(None);
    }

    fn with<R>(&self, part: Part, look: impl FnOnce(&mut TakeOver) -> R) -> Option<R> {
        let mut takes = self.takes.borrow_mut();
        takes.get_mut(&place_of(part)).filter(|take| take.part() == part).map(look)
    }

    fn at_stage(&self, stage: Stage) -> Vec<Part> {
        self.takes.borrow().values().filter(|take| take.stage() == stage).map(TakeOver::part).collect()
    }
}

fn place_of(part: Part) -> Place {
    (part.of.vnode, part.rf)
}

/// Begins to take over, to look for newer topologies, and on core 0 to flip, for as long as the shard lives.
pub fn start(shard: &Rc<Shard>, cluster: &Rc<Cluster>) {
    shard.begin_moves(cluster);
    let (taking, ours) = (shard.clone(), cluster.clone());
    drop(shard.io.spawn(Class::Background, async move { keep_taking_over(&taking, &ours).await }));
    let (chasing, ours) = (shard.clone(), cluster.clone());
    drop(shard.io.spawn(Class::Foreground, async move { keep_chasing(&chasing, &ours).await }));
    if shard.core() == 0 {
        let (flipping, ours) = (shard.clone(), cluster.clone());
        drop(shard.io.spawn(Class::Background, async move { keep_flipping(&flipping, &ours).await }));
        let (founding, ours) = (shard.clone(), cluster.clone());
        drop(shard.io.spawn(Class::Background, async move { found(&founding, &ours).await }));
        let (raising, ours) = (shard.clone(), cluster.clone());
        drop(shard.io.spawn(Class::Background, async move { keep_raising(&raising, &ours).await }));
        let (completing, ours) = (shard.clone(), cluster.clone());
        drop(shard.io.spawn(Class::Background, async move { keep_completing(&completing, &ours).await }));
        if shard.node.asks_in() {
            let (asking, ours) = (shard.clone(), cluster.clone());
            drop(shard.io.spawn(Class::Background, async move { asking.ask_in(&ours).await }));
        }
    }
}

fn lives(shard: &Shard) -> bool {
    !shard.io.is_shutting_down() && !shard.is_closing()
}

async fn keep_chasing(shard: &Rc<Shard>, cluster: &Rc<Cluster>) {
    while lives(shard) {
        shard.io.sleep(CHASE_EVERY).await;
        let Some((node, tries)) = cluster.moves.chase.get() else { continue };
        // Whoever was named may be away; others have it before long.
        let node = if tries % 2 == 1 { shard.any_other(cluster).unwrap_or(node) } else { node };
        cluster.moves.chase.set((tries < CHASES_MAX).then_some((node, tries + 1)));
        shard.fetch_topology(cluster, node);
        shard.settle();
    }
}

async fn keep_taking_over(shard: &Rc<Shard>, cluster: &Rc<Cluster>) {
    while lives(shard) {
        make_void(shard, cluster).await;
        ask_marks(shard, cluster).await;
        let worked = join_some(shard, cluster).await;
        inherit_marks(shard, cluster).await;
        if !worked {
            shard.io.sleep(LOOK_EVERY).await;
        }
    }
}

/// What was held of vnodes that come, and of those that are gone.
async fn make_void(shard: &Rc<Shard>, cluster: &Rc<Cluster>) {
    // All parts of a vnode that come with a move are there at once, so that one word for the vnode tells whether they are void.
    let mut by_epoch: BTreeMap<u64, Vec<Part>> = BTreeMap::new();
    for part in cluster.moves.at_stage(Stage::Void) {
        by_epoch.entry(part.of.since).or_default().push(part);
    }
    for (since, parts) in by_epoch {
        let vnodes: BTreeSet<u32> = parts.iter().map(|part| part.of.vnode).collect();
        let vnodes: Vec<u32> = vnodes.into_iter().collect();
        let places: BTreeSet<Place> = parts.iter().map(|part| place_of(*part)).collect();
        let is_told = |namespace, vnode| places.contains(&(vnode, cluster.rf(namespace) as u8));
        // A failure of the disk is told by who writes data; this is tried again.
        if shard.engine.void_vnodes(&vnodes, is_told, since).await.is_ok() {
            parts.into_iter().for_each(|part| _ = cluster.moves.with(part, TakeOver::voided));
        }
    }
    if cluster.moves.to_tidy.get() && cluster.topology().moving().len() == 0 {
        cluster.moves.to_tidy.set(false);
        let topology = cluster.topology();
        // Tables alone tell which vnodes there are. Where all vnodes are the node's own there is nothing to look for.
        if (0..topology.vnodes()).all(|vnode| topology.factors().all(|rf| topology.owns(cluster.me, vnode, rf))) {
            return;
        }
        if shard.engine.flush().await.is_err() {
            return cluster.moves.to_tidy.set(true);
        }
        let is_strange = |namespace, vnode| !topology.owns(cluster.me, vnode, cluster.rf(namespace));
        let with_data = shard.engine.vnodes_with_data().into_iter().filter(|(namespace, _)| *namespace != NAMESPACE_SYSTEM);
        let strangers: BTreeSet<u32> =
            with_data.filter(|(namespace, vnode)| is_strange(*namespace, *vnode)).map(|(_, vnode)| vnode).collect();
        let strangers: Vec<u32> = strangers.into_iter().collect();
        if !strangers.is_empty() && shard.engine.void_vnodes(&strangers, is_strange, topology.epoch()).await.is_err() {
            cluster.moves.to_tidy.set(true);
        }
    }
}

async fn ask_marks(shard: &Rc<Shard>, cluster: &Rc<Cluster>) {
    let mut questions: BTreeMap<(u64, u16), Vec<Part>> = BTreeMap::new();
    {
        let (mut takes, topology) = (cluster.moves.takes.borrow_mut(), cluster.topology());
        for take in takes.values_mut() {
            if is_given_up(&topology, take.part(), |node| cluster.is_gone(node)) {
                take.given_up();
            }
        }
        for take in takes.values().filter(|take| matches!(take.stage(), Stage::Closed | Stage::Open)) {
            for node in take.silent() {
                let Some(core) = topology.core_at(node, take.part().of.vnode) else { continue };
                questions.entry((node, core)).or_default().push(take.part());
            }
        }
    }
    let mut opened = false;
    for ((node, core), parts) in questions.into_iter().filter(|((node, _), _)| cluster.is_alive(*node)) {
        for some in parts.chunks(MARKS_VNODES_MAX) {
            let deadline = shard.io.now().plus(ANSWER_MAX);
            let question = MoveMessage::AskMarks(some.to_vec());
            let answer = cluster.requests.ask_move(shard, cluster, At { node, core }, &question, deadline).await;
            let Some(MoveMessage::Marks(marks)) = answer else { break };
            for marks in &marks {
                let opens = cluster.moves.with(marks.part, |take| {
                    let was_open = take.is_open();
                    take.told(node, marks);
                    !was_open && take.is_open()
                });
                opened |= opens == Some(true);
            }
        }
    }
    if opened {
        shard.set_repair_pairs();
    }
}

/// Compares a few vnodes with an old owner each; false where there was none to be compared.
async fn join_some(shard: &Rc<Shard>, cluster: &Rc<Cluster>) -> bool {
    let due: Vec<(Part, u64, NamespaceId)> = {
        let takes = cluster.moves.takes.borrow();
        let next = |take: &TakeOver| take.next(|node| cluster.is_alive(node)).map(|(node, namespace)| (take.part(), node, namespace));
        let mut takes: Vec<&TakeOver> = takes.values().collect();
        takes.sort_by_key(|take| take.failures());
        takes.into_iter().filter_map(next).take(AT_ONCE).collect()
    };
    let begin = |(part, node, namespace)| {
        let (shard, cluster) = (shard.clone(), cluster.clone());
        shard.io.clone().spawn(Class::Background, async move { join(&shard, &cluster, part, node, namespace).await })
    };
    let tasks: Vec<_> = due.into_iter().map(begin).collect();
    let mut worked = false;
    for task in tasks {
        worked |= task.await;
    }
    worked
}

/// False: it was cut off, or something that the old owner gave was refused.
async fn join(shard: &Rc<Shard>, cluster: &Rc<Cluster>, part: Part, peer: u64, namespace: NamespaceId) -> bool {
    let pair = Pair { namespace, vnode: part.of.vnode, peer };
    let mut whole = false;
    if let Some(mut comparison) = Comparison::new(shard, cluster, pair).filter(|comparison| comparison.scope.epoch == part.of.since) {
        comparison.bytes_a_second = MOVE_BYTES_A_SECOND;
        whole = comparison.run(None).await.is_ok() && comparison.refused.get() == 0;
    }
    cluster.moves.with(part, |take| if whole { take.joined(peer, namespace) } else { take.failed(peer, namespace) });
    whole
}

/// The end of what is joined: the higher marks of the old owners (M2), durable before the vnode may flip.
async fn inherit_marks(shard: &Rc<Shard>, cluster: &Rc<Cluster>) {
    for part in cluster.moves.at_stage(Stage::Joined) {
        let vnode = part.of.vnode;
        let told =
            cluster.moves.with(part, |take| take.namespaces().into_iter().map(|namespace| (namespace, take.marks(namespace))).collect());
        let told: Vec<(NamespaceId, Marks)> = told.unwrap_or_default();
        let mut is_durable = true;
        for (namespace, Marks { fence, floor }) in told.into_iter().filter(|(_, marks)| marks.fence > Version::ZERO) {
            cluster.forget.inherit(namespace, vnode, fence);
            is_durable &= shard.engine.inherit_marks(namespace, vnode, VnodeMarks { fence, floor }).await.is_ok();
            cluster.repair.trees.mark_all(namespace, vnode);
        }
        if is_durable {
            cluster.moves.with(part, TakeOver::inherited);
        }
    }
}

/// The steward's work.
async fn keep_flipping(shard: &Rc<Shard>, cluster: &Rc<Cluster>) {
    let mut flipped = shard.io.now();
    while lives(shard) {
        shard.io.sleep(FLIP_EVERY).await;
        let topology = cluster.topology();
        if topology.moving().len() == 0 || steward(&topology, |node| cluster.is_alive(node)) != Some(cluster.me) {
            continue;
        }
        let taken = ask_taken(shard, cluster, &topology).await;
        let moves = ready(&topology, &taken);
        let waits = moves.len() < topology.moving().len() && shard.io.now().since(flipped) < FLIP_WAIT;
        if moves.is_empty() || waits {
            continue;
        }
        // What was taken over was so in that move: by the time that the change is decided a vnode may be in another, which nobody has
        // taken over. Where another node was faster, the next look sees what there is to do.
        let still = |ours: &Topology| -> Vec<u32> { moves.iter().filter(|of| is_under_way(ours, of)).map(|of| of.vnode).collect() };
        let done = |ours: &Topology| Ok(Some(Change::MoveDone { vnodes: still(ours) }).filter(|_| !still(ours).is_empty()));
        let _ = shard.propose(cluster, done, shard.io.now().plus(DECIDE_MAX)).await;
        flipped = shard.io.now();
    }
}

/// Until the cluster is founded: the steward has it founded when all founders are there; the others ask whether it has happened.
async fn found(shard: &Rc<Shard>, cluster: &Rc<Cluster>) {
    let (began, mut pause) = (shard.io.now(), FOUND_EVERY);
    while lives(shard) && !cluster.topology().is_founded() {
        let topology = cluster.topology();
        let founders = decide::acceptors(&topology);
        match steward(&topology, |node| cluster.is_alive(node)) == Some(cluster.me) {
            true if founders.iter().all(|node| *node == cluster.me || cluster.is_alive(*node)) => {
                let found = |ours: &Topology| Ok((!ours.is_founded()).then_some(Change::Found));
                if let Ok(topology) = shard.propose(cluster, found, shard.io.now().plus(FOUND_MAX)).await {
                    return shard.node.warn(&format!("the cluster is founded, with {} nodes", topology.nodes().len()));
                }
            }
            true => {}
            false => {
                if let Some(other) = shard.any_other(cluster) {
                    shard.fetch_topology(cluster, other);
                    shard.settle();
                }
            }
        }
        if shard.io.now().since(began) >= FOUND_MAX {
            let why = || words::waits_for_founders(&topology, cluster.me, |node| cluster.is_alive(node));
            shard.notice(0, "founders", why);
        }
        shard.io.sleep(pause).await;
        pause = (pause * 2).min(FOUND_EVERY_MAX);
    }
}

/// What a proposer had chosen and then told nobody, for it fell, would lie there until somebody wants another change, although an operator
/// may have been told that it is decided. So who has said yes, and hears no more of it, proposes it anew: then it is chosen, or what had
/// been. Before the cluster is founded that takes all founders, and `found` does it.
async fn keep_completing(shard: &Rc<Shard>, cluster: &Rc<Cluster>) {
    let mut seen: Option<(Accepted, Mono)> = None;
    while lives(shard) {
        shard.io.sleep(COMPLETE_EVERY).await;
        let (ours, now) = (cluster.topology(), shard.io.now());
        let Some(accepted) = cluster.moves.accepted(ours.epoch()).filter(|_| ours.is_founded()) else { continue };
        match &seen {
            Some((before, since)) if *before == accepted => {
                // Not all at once.
                let after = COMPLETE_AFTER + Duration::from_millis(shard.io.random_u64() % COMPLETE_AFTER.as_millis() as u64);
                if now.since(*since) >= after {
                    seen = None;
                    let _ = shard.have_chosen(cluster, &ours, accepted.topology, now.plus(DECIDE_MAX)).await;
                }
            }
            _ => seen = Some((accepted, now)),
        }
    }
}

/// The steward's other work: what all nodes know, the dead among them by what was last known, is switched on.
async fn keep_raising(shard: &Rc<Shard>, cluster: &Rc<Cluster>) {
    while lives(shard) {
        shard.io.sleep(RAISE_EVERY).await;
        let known = |ours: &Topology| cluster.version_of_all(ours.nodes().iter().map(|node| node.spec.id));
        let version = known(&cluster.topology());
        let raise = |ours: &Topology| Some(Change::Raise { version }).filter(|_| known(ours) >= version && version > ours.version());
        let is_mine = || steward(&cluster.topology(), |node| cluster.is_alive(node)) == Some(cluster.me);
        if raise(&cluster.topology()).is_none() || !is_mine() {
            continue;
        }
        match shard.propose(cluster, |ours| Ok(raise(ours)), shard.io.now().plus(DECIDE_MAX)).await {
            Ok(topology) => shard.node.warn(&format!(
                "the cluster is at version {} from epoch {} on: every node knows it, and older programs are refused",
                topology.version(),
                topology.epoch()
            )),
            Err(why) => shard.notice(0, "version", || format!("the cluster does not rise to version {version} yet: {why}")),
        }
    }
}

/// This very move of the vnode has not ended.
pub(super) fn is_under_way(topology: &Topology, of: &Move) -> bool {
    topology.epoch_of(of.vnode) == of.since && topology.moving().any(|vnode| vnode == of.vnode)
}

/// What each node has taken over, by its own word.
async fn ask_taken(shard: &Rc<Shard>, cluster: &Rc<Cluster>, topology: &Topology) -> BTreeMap<u64, BTreeSet<Part>> {
    let nodes: BTreeSet<u64> = topology.moving().flat_map(|vnode| all_takers(topology, vnode)).collect();
    let mut taken: BTreeMap<u64, BTreeSet<Part>> = BTreeMap::new();
    for node in nodes.into_iter().filter(|node| cluster.is_alive(*node)) {
        let cores = topology.index_of(node).map_or(0, |index| topology.nodes()[usize::from(index)].spec.cores);
        for core in 0..cores {
            let deadline = shard.io.now().plus(ANSWER_MAX);
            let answer = cluster.requests.ask_move(shard, cluster, At { node, core }, &MoveMessage::AskTaken, deadline).await;
            if let Some(MoveMessage::Taken(parts)) = answer {
                taken.entry(node).or_default().extend(parts);
            }
        }
    }
    taken
}

/// Answers of acceptors to one proposal.
#[derive(Default)]
struct Inbox {
    answers: RefCell<VecDeque<(u64, Answer)>>,
    came: Signal,
}

impl Shard {
    /// What the topology says is coming to this core: whenever it changes.
    pub(super) fn begin_moves(&self, cluster: &Cluster) {
        let topology = cluster.topology();
        let mut before = cluster.moves.takes.take();
        let ours = |part: &Part| core_of(part.of.vnode, self.node.cores) == self.core();
        let coming = takeover::of_node(&topology, cluster.me).into_iter().filter(|(part, _)| ours(part));
        let takes = coming.map(|(part, old)| {
            let known = before.remove(&place_of(part)).filter(|take| take.part() == part);
            let is_void = self.engine.incarnation(part.of.vnode) == part.of.since;
            (place_of(part), known.unwrap_or_else(|| TakeOver::new(part, old, is_void, cluster.planted)))
        });
        *cluster.moves.takes.borrow_mut() = takes.collect();
        cluster.moves.to_tidy.set(true);
        cluster.moves.chased();
    }

    /// A question of a move.
    pub(super) fn handle_move(self: &Rc<Shard>, cluster: &Rc<Cluster>, ticket: Ticket, from: u64, head: Head, message: MoveMessage) {
        if head.epoch > cluster.epoch() {
            self.fetch_topology(cluster, from);
        }
        match message {
            MoveMessage::Decide(ask) if self.core() == 0 => self.answer_proposer(cluster, ticket, head, ask),
            MoveMessage::AskMarks(parts) => {
                let (topology, namespaces, holds) = (cluster.topology(), self.namespaces(), self.engine.held_vnodes());
                let told = parts.into_iter().filter(|part| self.is_old_owner(cluster, &topology, *part)).map(|part| {
                    let of_part = namespaces.rows().iter().filter(|row| row.replicas == part.rf);
                    let marks = of_part.map(|row| {
                        let VnodeMarks { fence, floor } = self.engine.marks(row.id, part.of.vnode);
                        MarksIn { namespace: row.id, fence, floor, is_empty: !holds(row.id, part.of.vnode) }
                    });
                    MarksOf { part, namespaces: marks.collect() }
                });
                self.answer_move(cluster, &ticket, &MoveMessage::Marks(told.collect()));
            }
            MoveMessage::AskTaken => {
                let taken = cluster.moves.at_stage(Stage::Over);
                self.answer_move(cluster, &ticket, &MoveMessage::Taken(taken));
            }
            MoveMessage::Words(words) if self.core() == 0 => self.carry_out_words(cluster, ticket, words),
            _ => self.refuse_peer(&ticket, Refusal::NotReplica),
        }
    }

    /// This core owns the part, and knows that it moves (M2).
    fn is_old_owner(&self, cluster: &Cluster, topology: &Topology, Part { of, rf }: Part) -> bool {
        let knows = of.vnode < topology.vnodes() && topology.epoch_of(of.vnode) == of.since;
        knows && core_of(of.vnode, self.node.cores) == self.core() && topology.owns(cluster.me, of.vnode, rf.into())
    }

    pub(super) fn answer_move(&self, cluster: &Cluster, ticket: &Ticket, message: &MoveMessage) {
        let mut frame = Vec::new();
        encode_move(&mut frame, ticket.id, Head { epoch: cluster.epoch(), deadline_ms: 0 }, message);
        self.answer_frame(ticket, frame, true);
    }

    /// This node's part in a decision: durable, then answered.
    fn answer_proposer(self: &Rc<Shard>, cluster: &Rc<Cluster>, ticket: Ticket, head: Head, ask: Ask) {
        let topology = cluster.topology();
        if !decide::acceptors(&topology).contains(&cluster.me) && ask.epoch == topology.epoch() {
            return self.refuse_peer(&ticket, Refusal::NotReplica);
        }
        let next = match &ask.question {
            Question::Accept { topology: bytes } => topology_codec::decode(bytes).ok().filter(|next| topology.may_precede(next)),
            Question::Promise => None,
        };
        if let Some(version) = next.as_ref().map(Topology::version).filter(|version| *version > self.engine.format()) {
            return self.raise_and_answer(cluster, ticket, (head, ask), version);
        }
        let step = cluster.moves.acceptor.borrow_mut().on_ask(topology.epoch(), ask, |_| next.is_some());
        let (register, then) = match step {
            Step::Answer(answer) => return self.answer_move(cluster, &ticket, &MoveMessage::Decided(answer)),
            Step::Persist { register, then } => (register, then),
        };
        let now = self.io.now();
        match store_register(&self.engine, &register, self.io.wall_ms()) {
            Err(error) => self.refuse_peer(&ticket, refusal_of(&error)),
            Ok(seq) => {
                let mut frame = Vec::new();
                let head_back = Head { epoch: cluster.epoch(), deadline_ms: 0 };
                encode_move(&mut frame, ticket.id, head_back, &MoveMessage::Decided(then));
                let deadline = now.plus(Duration::from_millis(u64::from(head.deadline_ms.min(DEADLINE_MS_MAX))));
                self.answer_frames_when(&ticket, seq, deadline, frame);
            }
        }
    }

    /// What is accepted may be chosen whatever becomes of this node. So it is bound to the version before it accepts it: under an older
    /// program it would else vote, by what it has accepted, for what it cannot read.
    fn raise_and_answer(self: &Rc<Shard>, cluster: &Rc<Cluster>, ticket: Ticket, (head, ask): (Head, Ask), version: u16) {
        if !self.admit.begin() {
            return self.refuse_peer(&ticket, Refusal::Overloaded);
        }
        let (shard, cluster) = (self.clone(), cluster.clone());
        drop(self.io.spawn(Class::Foreground, async move {
            let raised = {
                let _guard = shard.locks.lock(0).await;
                shard.engine.raise_format(version).await
            };
            match raised {
                Ok(()) => shard.answer_proposer(&cluster, ticket, head, ask),
                Err(error) => shard.refuse_peer(&ticket, refusal_of(&error)),
            }
            shard.admit.end();
            shard.settle();
        }));
    }

    /// Core 0: has a change decided, and tells everybody. Where another change came first, this one is made for what it left: `change` says
    /// what it is for a topology, none where there is nothing left to change, or why it cannot be.
    ///
    /// # Errors
    /// A sentence.
    pub(super) async fn propose(
        self: &Rc<Shard>,
        cluster: &Rc<Cluster>,
        change: impl Fn(&Topology) -> Result<Option<Change>, String>,
        deadline: Mono,
    ) -> Result<Arc<Topology>, String> {
        let deadline = deadline.min(self.io.now().plus(DECIDE_MAX));
        loop {
            let ours = cluster.topology();
            let Some(change) = change(&ours)? else { return Ok(ours) };
            if !ours.is_founded() && change != Change::Found {
                return Err(words::waits_for_founders(&ours, cluster.me, |node| cluster.is_alive(node)));
            }
            let proposal = Proposal { cluster: ours.cluster(), vnodes: ours.vnodes(), epoch: ours.epoch(), change };
            let next = ours.apply(&proposal).map_err(|refused| refused.to_string())?;
            let mut bytes = Vec::new();
            topology_codec::encode(&next, &mut bytes);
            // Another proposer may have found this change accepted, and made it.
            match self.have_chosen(cluster, &ours, bytes, deadline).await? {
                Some(chosen) if *chosen == next => return Ok(chosen),
                _ => {}
            }
            if self.io.now() >= deadline || !lives(self) {
                return Err("the topology is changed by somebody else all the time".to_owned());
            }
        }
    }

    /// Has a topology chosen that follows ours, or what others have had accepted in its stead, and uses and tells what was. None: another
    /// node has a newer one, and has not told it yet.
    ///
    /// # Errors
    /// A sentence.
    async fn have_chosen(
        self: &Rc<Shard>,
        cluster: &Rc<Cluster>,
        ours: &Arc<Topology>,
        value: Vec<u8>,
        deadline: Mono,
    ) -> Result<Option<Arc<Topology>>, String> {
        match self.decide(cluster, ours, value, deadline).await {
            Outcome::Chosen(chosen) => {
                let topology = topology_codec::decode(&chosen).ok().filter(|next| ours.may_precede(next));
                let Some(topology) = topology.map(Arc::new) else { return Err("what was decided is no topology".to_owned()) };
                if !self.use_topology(&topology).await {
                    return Err("the topology was decided, but this node's disk does not take it".to_owned());
                }
                self.tell_topology(cluster, ours);
                Ok(Some(topology))
            }
            Outcome::Newer { node } => {
                self.fetch_topology(cluster, node);
                self.settle();
                self.io.sleep(TICK).await;
                Ok((cluster.epoch() > ours.epoch()).then(|| cluster.topology()))
            }
            Outcome::Silent { answered, need } => {
                Err(format!("{answered} of the nodes that decide answered in time, and {need} are needed; it may still happen"))
            }
        }
    }

    async fn decide(self: &Rc<Shard>, cluster: &Rc<Cluster>, ours: &Topology, value: Vec<u8>, deadline: Mono) -> Outcome {
        let (inbox, mut effects) = (Rc::new(Inbox::default()), Vec::new());
        let nonce = self.io.random_u64();
        let mut proposer = Proposer::new(self.io.now(), (cluster.me, nonce), ours, value, deadline, &mut effects);
        loop {
            for effect in effects.drain(..) {
                match effect {
                    Effect::Ask { to, ask } => self.ask_acceptor(cluster, to, ask, &inbox),
                    Effect::Correct { node } => self.correct(cluster, node),
                    Effect::Over(outcome) => return outcome,
                }
            }
            self.settle();
            race(inbox.came.wait(), self.io.sleep(TICK)).await;
            while let Some((node, answer)) = { inbox.answers.borrow_mut().pop_front() } {
                proposer.on_answer(self.io.now(), node, answer, self.io.random_u64(), &mut effects);
            }
            proposer.on_tick(self.io.now(), &mut effects);
            if cluster.epoch() > ours.epoch() && !effects.iter().any(|effect| matches!(effect, Effect::Over(_))) {
                // What was decided has come by another road.
                return Outcome::Newer { node: cluster.me };
            }
        }
    }

    fn ask_acceptor(self: &Rc<Shard>, cluster: &Rc<Cluster>, to: u64, ask: Ask, inbox: &Rc<Inbox>) {
        let (shard, cluster, inbox) = (self.clone(), cluster.clone(), inbox.clone());
        drop(self.io.spawn(Class::Foreground, async move {
            let deadline = shard.io.now().plus(ANSWER_MAX);
            let question = MoveMessage::Decide(ask);
            let answer = cluster.requests.ask_move(&shard, &cluster, At { node: to, core: 0 }, &question, deadline).await;
            if let Some(MoveMessage::Decided(answer)) = answer {
                inbox.answers.borrow_mut().push_back((to, answer));
                inbox.came.raise();
            }
        }));
    }

    /// Tells all nodes, those of the topology before too, that there is a newer one.
    fn tell_topology(self: &Rc<Shard>, cluster: &Cluster, before: &Topology) {
        let topology = cluster.topology();
        let nodes = before.nodes().iter().chain(topology.nodes()).map(|node| node.spec.id);
        let nodes: BTreeSet<u64> = nodes.filter(|node| *node != cluster.me).collect();
        nodes.into_iter().for_each(|node| self.correct(cluster, node));
        self.settle();
    }
}
