//! Repair in the background, always on: each core keeps the hash trees of its vnodes up to date, compares them with the other replicas'
//! one pair at a time, and answers those who compare with it. What is compared and copied is decided in `cluster::repair` and
//! `cluster::repair_plan`; the engine is asked through `antientropy`.
//!
//! What it costs is bounded: one page of a tree's leaf every `REPAIR_SCAN_MS`, one comparison every `REPAIR_PAUSE_MS`, and
//! `REPAIR_BYTES_A_SECOND` of messages. A comparison that is cut off (no link, no answer, another epoch of the vnode, a disk that fails)
//! is gone on with later where it had come to. Nothing here ever ends the shard.
//!
//! A session of forgetting (`forget`) makes its comparisons with what is here, and is answered like others once its fence is durable.

use super::antientropy::{Trees, list, read, store};
use super::budget::{Budget, Lease};
use super::cluster::Cluster;
use super::namespaces::NamespaceTable;
use super::peers::At;
use super::replicate::{PACE_MAX, refusal_of};
use super::session::within;
use super::{Origin, Shard, Ticket, pace};
use crate::base::metrics::{Meaning, Report, counter, gauge};
use crate::base::record::{Token, core_of};
use crate::base::time::Mono;
use crate::cluster::coordinator::Planted;
use crate::cluster::forget::{Admit, Session};
use crate::cluster::merkle::{Digest, Tree};
use crate::cluster::repair::{Answer, Ask, CellCopy, Effect, Exchange, Outcome, Place, Question, Reply, Scope, Serve, serve};
use crate::cluster::repair_plan::{Pair, RepairPlan, begins};
use crate::engine::EngineError;
use crate::io::Class;
use crate::limits::{
    CLOCK_SKEW_MS_MAX, REPAIR_ANSWER_MS_MAX, REPAIR_BYTES_A_SECOND, REPAIR_PAGE_BYTES, REPAIR_PAUSE_MS, REPAIR_SCAN_IDLE_MS, REPAIR_SCAN_MS,
};
use crate::wire::peer::{Head, Refusal, encode_repair};
use crate::wire::peer_repair::RepairMessage;
use std::cell::{Cell, RefCell};
use std::cmp::Ordering;
use std::rc::Rc;
use std::time::Duration;

/// How often a comparison that has used up its bytes looks whether there are more.
pub(super) const CREDIT_EVERY: Duration = Duration::from_millis(10);

/// Bytes that a comparison may send more after so long.
pub(super) fn credit(since: Duration, bytes_a_second: usize) -> usize {
    (since.as_secs_f64() * bytes_a_second as f64) as usize
}

/// One core's.
pub struct Repair {
    pub trees: Trees,
    plan: RefCell<RepairPlan>,
    /// Copies of other nodes that are being stored.
    taken: Rc<Budget>,
    exchanges: Cell<u64>,
    sent: Cell<u64>,
    received: Cell<u64>,
    refused: Cell<u64>,
}

fn add(cell: &Cell<u64>, more: usize) {
    cell.set(cell.get() + more as u64);
}

impl Repair {
    /// `trees_seed`: the cluster's; `seed`: this core's; `bytes_max`: of trees, and as much of copies that are being stored.
    pub fn new(trees_seed: u64, vnodes: u32, seed: u64, bytes_max: usize) -> Repair {
        Repair {
            trees: Trees::new(trees_seed, vnodes, bytes_max),
            plan: RefCell::new(RepairPlan::new(seed)),
            taken: Budget::new(bytes_max),
            exchanges: Cell::new(0),
            sent: Cell::new(0),
            received: Cell::new(0),
            refused: Cell::new(0),
        }
    }

    /// Room for cells of another node while they wait to be stored; none: not now.
    pub fn room_for(&self, bytes: usize) -> Option<Lease> {
        self.taken.try_take(bytes)
    }

    /// A link to the node came up.
    pub fn is_back(&self, node: u64) {
        self.plan.borrow_mut().is_back(node);
    }

    /// The topology changed: who refused may not any more.
    pub fn forgive(&self) {
        self.plan.borrow_mut().forgive();
    }

    pub fn report(&self, report: &mut Report) {
        let plan = self.plan.borrow();
        report.count(&DIFFERING, &[], plan.differing());
        report.count(&ROUNDS, &[], plan.rounds());
        report.count(&SENT, &[], self.sent.get());
        report.count(&RECEIVED, &[], self.received.get());
        report.count(&REFUSED, &[], self.refused.get());
        report.count(&DIRTY, &[], self.trees.dirty() as u64);
    }
}

static DIFFERING: Meaning = gauge("repair_differing", "Places that differed when pairs of replicas were compared last, of all pairs.");
static ROUNDS: Meaning = counter("repair_rounds_total", "Rounds begun in which every pair of replicas is compared once.");
static SENT: Meaning = counter("repair_sent_total", "Cells that another replica lacked and was given.");
static RECEIVED: Meaning = counter("repair_received_total", "Cells that this node lacked and stored.");
static REFUSED: Meaning = counter("repair_refused_total", "Cells that this node was given and refused, in part or as a whole.");
static DIRTY: Meaning = gauge("repair_dirty_leaves", "Leaves of hash trees that wait for a scan.");

impl Cluster {
    /// The vnodes of this core, and who is compared with whom: whenever the topology or the namespaces change.
    pub fn set_repair_pairs(&self, core: u16, cores: u16, namespaces: &NamespaceTable) {
        let topology = self.topology();
        let (mut trees, mut pairs, mut all) = (Vec::new(), Vec::new(), Vec::new());
        for vnode in (0..topology.vnodes()).filter(|vnode| core_of(*vnode, cores) == core) {
            for namespace in namespaces.rows().iter().map(|row| row.id) {
                let nodes = self.party(namespace, vnode);
                if !nodes.contains(&self.me) || !self.moves.is_open(vnode, self.rf(namespace)) {
                    continue;
                }
                trees.push((namespace, vnode));
                // While a vnode moves nothing of it is forgotten: fences that lead to nothing would refuse what its new owners need.
                if topology.replicas(vnode, self.rf(namespace)).pending.is_none() {
                    all.push(self.ours(namespace, vnode, &nodes));
                }
                let ours = nodes.into_iter().filter(|peer| *peer != self.me && begins(self.me, *peer, vnode));
                pairs.extend(ours.map(|peer| Pair { namespace, vnode, peer }));
            }
        }
        self.forget.set_pairs(&all);
        self.repair.trees.set_pairs(trees);
        self.repair.plan.borrow_mut().set_pairs(pairs);
    }
}

/// Begins to scan and to compare, for as long as the shard lives.
pub fn start(shard: &Rc<Shard>, cluster: &Rc<Cluster>) {
    shard.set_repair_pairs();
    if cluster.planted == Some(Planted::RepairOff) {
        return;
    }
    let (scanning, ours) = (shard.clone(), cluster.clone());
    drop(shard.io.spawn(Class::Background, async move { keep_trees(&scanning, &ours).await }));
    let (comparing, ours) = (shard.clone(), cluster.clone());
    drop(shard.io.spawn(Class::Background, async move { compare_all(&comparing, &ours).await }));
}

async fn keep_trees(shard: &Rc<Shard>, cluster: &Cluster) {
    while !shard.io.is_shutting_down() && !shard.is_closing() {
        let pause_ms = match cluster.repair.trees.scan_step(&shard.engine, shard.io.wall_ms()).await {
            Ok(true) => REPAIR_SCAN_MS,
            // A failure of the disk is told by who serves.
            Ok(false) | Err(_) => REPAIR_SCAN_IDLE_MS,
        };
        shard.io.sleep(Duration::from_millis(pause_ms)).await;
    }
}

async fn compare_all(shard: &Rc<Shard>, cluster: &Rc<Cluster>) {
    loop {
        shard.io.sleep(Duration::from_millis(REPAIR_PAUSE_MS)).await;
        if shard.io.is_shutting_down() || shard.is_closing() {
            return;
        }
        let next = cluster.repair.plan.borrow_mut().next(shard.io.now());
        let Some((pair, resume)) = next else { continue };
        let ended = match Comparison::new(shard, cluster, pair) {
            Some(comparison) => comparison.run(resume).await,
            None => Err(resume),
        };
        let mut plan = cluster.repair.plan.borrow_mut();
        match ended {
            Ok(differing) => plan.compared(pair, differing),
            Err(resume) => plan.cut_off(shard.io.now(), pair, resume),
        }
    }
}

/// A comparison that this core makes.
pub(super) struct Comparison<'a> {
    pub shard: &'a Rc<Shard>,
    pub cluster: &'a Rc<Cluster>,
    pub scope: Scope,
    /// Of forgetting, if it is for one.
    pub session: Option<Session>,
    pub at: At,
    /// What it sends and gets, in bytes a second.
    pub bytes_a_second: usize,
    /// Cells of the other that were refused here.
    pub refused: Cell<u64>,
}

impl<'a> Comparison<'a> {
    /// None: the topology has just changed.
    pub fn new(shard: &'a Rc<Shard>, cluster: &'a Rc<Cluster>, pair: Pair) -> Option<Comparison<'a>> {
        let topology = cluster.topology();
        let core = topology.core_at(pair.peer, pair.vnode)?;
        let scope = Scope { namespace: pair.namespace, vnode: pair.vnode, epoch: topology.epoch_of(pair.vnode) };
        let (at, bytes_a_second) = (At { node: pair.peer, core }, REPAIR_BYTES_A_SECOND);
        Some(Comparison { shard, cluster, scope, session: None, at, bytes_a_second, refused: Cell::new(0) })
    }

    /// To its end: how many places differed. Err: it was cut off, and is to be gone on with from there.
    pub async fn run(&self, resume: Option<Token>) -> Result<u64, Option<Token>> {
        let (repair, io) = (&self.cluster.repair, &self.shard.io);
        add(&repair.exchanges, 1);
        let depth = repair.trees.with(self.scope.namespace, self.scope.vnode, |tree| tree.leaves_log2()).ok_or(None)?;
        let mut effects = Vec::new();
        let mut exchange = Exchange::new(io.now(), repair.exchanges.get(), self.scope, None, depth, resume, &mut effects);
        let mut credited = io.now();
        loop {
            let went = match effects.pop() {
                None => {
                    io.sleep(CREDIT_EVERY).await;
                    let since = io.now().since(std::mem::replace(&mut credited, io.now()));
                    exchange.on_tick(io.now(), credit(since, self.bytes_a_second), &mut effects);
                    (!self.shard.is_closing()).then_some(())
                }
                Some(Effect::Over(Outcome::Compared { differing, .. })) => return Ok(differing),
                Some(Effect::Over(outcome)) => {
                    self.is_over(outcome);
                    None
                }
                Some(Effect::Ask(ask)) => match self.ask(ask).await {
                    None => None,
                    Some(answer) => self.with_tree(|tree| exchange.on_answer(io.now(), tree, answer, &mut effects)),
                },
                Some(Effect::List(span)) => {
                    repair.trees.mark_listed(self.scope.namespace, self.scope.vnode, &span);
                    let listing = list(&self.shard.engine, &self.scope, &span, io.wall_ms()).await;
                    listing.ok().map(|listing| exchange.on_listed(io.now(), listing, &mut effects))
                }
                Some(Effect::Copy { store, read }) => match self.copy(&store, &read).await {
                    None => None,
                    Some((refused, looked_at, cells)) => {
                        self.with_tree(|tree| exchange.on_copied(io.now(), tree, refused, looked_at, cells, &mut effects))
                    }
                },
            };
            if went.is_none() {
                return Err(Some(exchange.reached()));
            }
        }
    }

    fn is_over(&self, outcome: Outcome) {
        if outcome == Outcome::Malformed {
            self.shard.stats.malformed();
            let node = self.at.node;
            self.shard.notice(node, "comparison", || format!("a comparison with node {node} is given up: its answers make no sense"));
        }
    }

    fn with_tree(&self, step: impl FnOnce(&Tree)) -> Option<()> {
        self.cluster.repair.trees.with(self.scope.namespace, self.scope.vnode, step)
    }

    /// None: no answer.
    pub(super) async fn ask(&self, ask: Ask) -> Option<Answer> {
        let (shard, cluster) = (self.shard, self.cluster);
        let pushed = if let Question::Push(cells) = &ask.question { cells.len() } else { 0 };
        let deadline = shard.io.now().plus(Duration::from_millis(REPAIR_ANSWER_MS_MAX));
        let (head, answer) = cluster.requests.ask_repair(shard, cluster, self.at, &RepairMessage::Ask(ask), deadline).await?;
        match head.epoch.cmp(&cluster.epoch()) {
            Ordering::Greater => shard.fetch_topology(cluster, self.at.node),
            Ordering::Less => shard.correct(cluster, self.at.node),
            Ordering::Equal => {}
        }
        let RepairMessage::Answer(answer) = answer else { return None };
        if let Reply::Stored { refused } = &answer.reply {
            add(&cluster.repair.sent, pushed.saturating_sub(*refused as usize));
        }
        Some(answer)
    }

    /// Stores and reads, for `Exchange::on_copied`: copies that were refused, places looked at, cells found. None: the disk fails.
    pub(super) async fn copy(&self, copies: &[CellCopy], places: &[Place]) -> Option<(u32, usize, Vec<CellCopy>)> {
        let shard = self.shard;
        let refused = shard.store_repaired(self.cluster, &self.scope, self.session, copies).await.ok()?;
        add(&self.refused, refused as usize);
        let room = shard.room_for_copies(places).await.ok()?;
        let (looked_at, cells) = read(&shard.engine, places, shard.io.wall_ms()).await.ok()?;
        drop(room);
        Some((refused, looked_at, cells))
    }
}

/// A place among the disk reads, and how large a value is read in one piece, if one is.
type Room = (super::admit::Permit, Option<usize>);

impl Shard {
    /// See `Cluster::set_repair_pairs`.
    pub(super) fn set_repair_pairs(&self) {
        if let Some(cluster) = &self.cluster {
            cluster.set_repair_pairs(self.core, self.node.cores, &self.namespaces());
        }
    }

    /// Stores what is admitted, durable when it returns: how many were refused.
    async fn store_repaired(
        &self,
        cluster: &Cluster,
        scope: &Scope,
        session: Option<Session>,
        copies: &[CellCopy],
    ) -> Result<u32, EngineError> {
        if copies.is_empty() {
            return Ok(0);
        }
        let bytes = copies.iter().map(|copy| pace::cost(copy.place.len() + copy.cell.len(), 1)).sum();
        let turn = self.pace.join(bytes, self.io.now(), &self.engine);
        let _ = self.io.within(PACE_MAX, turn.come()).await;
        let rf = cluster.rf(scope.namespace);
        let judge = |cell: Digest, held| {
            let is_ahead = |clock: &mut crate::base::time::HybridClock| {
                clock.look(self.io.wall_ms());
                !clock.may_have_given(cell.newest().hlc(), CLOCK_SKEW_MS_MAX)
            };
            // Behind an await: the vnode may have left meanwhile, or come anew.
            let has_moved = cluster.topology().epoch_of(scope.vnode) != scope.epoch || !cluster.moves.is_open(scope.vnode, rf);
            if has_moved || self.engine.with_clock(is_ahead) {
                return (Admit::RefuseFenced, Admit::RefuseFenced);
            }
            cluster.forget.admit_copy(&self.engine, scope, session, cluster.moves.is_joining(scope.vnode, rf), (cell, held))
        };
        let refused = store(&self.engine, &cluster.repair.trees, scope, copies, judge).await?;
        add(&cluster.repair.received, copies.len().saturating_sub(refused as usize));
        add(&cluster.repair.refused, refused as usize);
        Ok(refused)
    }

    async fn room_for_copies(&self, places: &[Place]) -> Result<Room, EngineError> {
        let large = match places.first() {
            Some(place) => self.engine.large_at(place).await?,
            None => None,
        };
        Ok((self.admit.read(large.unwrap_or(REPAIR_PAGE_BYTES)).await, large))
    }

    /// Somebody compares with this core.
    pub(super) fn handle_repair(self: &Rc<Shard>, cluster: &Rc<Cluster>, ticket: Ticket, from: u64, head: Head, ask: Ask) {
        let (topology, scope, session, exchange, turn) = (cluster.topology(), ask.scope, ask.session, ask.exchange, ask.turn);
        if head.epoch > topology.epoch() {
            self.fetch_topology(cluster, from);
        }
        let is_epoch = scope.vnode < topology.vnodes() && scope.epoch == topology.epoch_of(scope.vnode);
        let is_fenced = session.is_none_or(|session| cluster.forget.serves(&self.engine, &scope, session));
        let is_served = is_epoch && is_fenced && head.deadline_ms > 0 && cluster.planted != Some(Planted::RepairOff);
        let served = cluster.repair.trees.with(scope.namespace, scope.vnode, |tree| serve(tree, is_served, ask));
        let served = match served.unwrap_or(Serve::Answer(Answer { exchange, turn, reply: Reply::Refused })) {
            Serve::Answer(answer) => return self.answer_repair(cluster, &ticket, answer),
            served => served,
        };
        let bytes =
            if let Serve::Store(cells, _) = &served { cells.iter().map(|copy| copy.place.len() + copy.cell.len()).sum() } else { 0 };
        let Some(lease) = cluster.repair.room_for(bytes).filter(|_| self.admit.begin()) else {
            return self.refuse_peer(&ticket, Refusal::Overloaded);
        };
        let deadline = self.deadline(head.deadline_ms);
        let (shard, cluster) = (self.clone(), cluster.clone());
        drop(self.io.spawn(Class::Background, async move {
            shard.serve_repair(&cluster, &ticket, (&scope, session), served, deadline, lease).await;
            shard.admit.end();
            shard.settle();
        }));
    }

    async fn serve_repair(
        &self,
        cluster: &Cluster,
        ticket: &Ticket,
        (scope, session): (&Scope, Option<Session>),
        served: Serve,
        deadline: Mono,
        lease: Lease,
    ) {
        let answer = match served {
            Serve::Answer(answer) => Ok(answer),
            Serve::Store(cells, then) => {
                let refused = self.store_repaired(cluster, scope, session, &cells).await;
                refused.map(|refused| then.stored(refused)).map_err(|error| refusal_of(&error))
            }
            Serve::List(span, then) => {
                cluster.repair.trees.mark_listed(scope.namespace, scope.vnode, &span);
                match list(&self.engine, scope, &span, self.io.wall_ms()).await {
                    Ok(listing) => {
                        let (places, then) = then.listed(listing);
                        return self.serve_copies(cluster, ticket, places, then, deadline).await;
                    }
                    Err(error) => Err(refusal_of(&error)),
                }
            }
        };
        drop(lease);
        match answer {
            Ok(answer) => self.answer_repair(cluster, ticket, answer),
            Err(why) => self.refuse_peer(ticket, why),
        }
    }

    /// Answers with what the asker lacks. A large value waits until there is room for it.
    async fn serve_copies(
        &self,
        cluster: &Cluster,
        ticket: &Ticket,
        places: Vec<Place>,
        then: crate::cluster::repair::Reading,
        deadline: Mono,
    ) {
        let (_permit, large) = match self.room_for_copies(&places).await {
            Ok(room) => room,
            Err(error) => return self.refuse_peer(ticket, refusal_of(&error)),
        };
        let promise = match (&ticket.origin, large) {
            (Origin::Peer(conn), Some(len)) => match within(&self.io, deadline, conn.promise(len)).await {
                Some(Some(promise)) => Some(promise),
                _ => return self.refuse_peer(ticket, Refusal::Overloaded),
            },
            _ => None,
        };
        match read(&self.engine, &places, self.io.wall_ms()).await {
            Ok((looked_at, cells)) => {
                add(&cluster.repair.sent, cells.len());
                self.answer_repair(cluster, ticket, then.read(looked_at, cells));
            }
            Err(error) => self.refuse_peer(ticket, refusal_of(&error)),
        }
        drop(promise);
    }

    fn answer_repair(&self, cluster: &Cluster, ticket: &Ticket, answer: Answer) {
        let mut frame = Vec::new();
        encode_repair(&mut frame, ticket.id, Head { epoch: cluster.epoch(), deadline_ms: 0 }, &RepairMessage::Answer(answer));
        self.answer_frame(ticket, frame, true);
    }
}
