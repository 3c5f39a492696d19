//! Forgetting the dead on one core: the hands of `cluster::forget`, which has the rules (G1 to G6).
//!
//! Of the vnodes that this core leads (`forget::leads`) one at a time has a session, one after the other, each of them once in the lag. A
//! session where all replicas hold the same costs a few messages and two writes of the manifest, so there is no need to know where there is
//! something to forget. It begins only while every replica can be reached: a fence refuses what background repair would bring, and until a
//! session comes to its end only that session may bring it; so a fence that leads to nothing is dear.
//!
//! As a replica, this core keeps a `Follower` for each vnode that a leader has asked about, and answers when fence or floor is durable.
//! Every cell that comes in, on whatever road, is judged here by what the follower says in the turn in which it is stored: a write of a
//! coordinator by `verdict`, a copy of a comparison by `admit_copy`.

use super::antientropy::{list, parts, parts_of};
use super::cluster::Cluster;
use super::peers::At;
use super::repair::{CREDIT_EVERY, Comparison, credit};
use super::{Shard, Ticket};
use crate::base::metrics::{Meaning, Report, counter, gauge, peak};
use crate::base::record::{Cell as Record, NamespaceId, Version};
use crate::base::time::{Mono, WallMs, hlc_ms};
use crate::cluster::coordinator;
use crate::cluster::forget::{
    Admit, Body as Says, FORGET_LAG_MS, Follower, FollowerEffect, Leader, LeaderEffect, Marks, Message, Plan, Planted, Refusal, Road,
    Session, SessionId, Void, admits_cell, leads, up_to,
};
use crate::cluster::merkle::Digest;
use crate::cluster::repair::{Effect, Scope};
use crate::cluster::repair_plan::Pair as Compared;
use crate::cluster::replica::Held;
use crate::engine::Engine;
use crate::io::Class;
use crate::limits::{FORGET_PAUSE_MS, REPAIR_ANSWER_MS_MAX, REPAIR_BYTES_A_SECOND, REPAIR_PAGE_BYTES};
use crate::wire::peer::{self, Head, encode_repair};
use crate::wire::peer_repair::RepairMessage;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::ops::Bound;
use std::rc::Rc;
use std::time::Duration;

/// A vnode whose session came to nothing is due again after this part of the lag.
const AGAIN_PART: u64 = 8;
/// And after so long at most, if it had begun.
const AGAIN_FENCED_MS_MAX: u64 = 2_000;
/// What a session's comparisons may send before they are slowed to the pace of repair: all, where replicas hold the same.
const BURST_BYTES: usize = 256 * 1024;

/// When the dead are forgotten: constants, but for the simulator, whose days are short.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    /// How far behind its leader's clock a session's f lies.
    pub lag_ms: u64,
    /// Between two sessions of a core.
    pub pause: Duration,
    /// Between a session's comparisons and its floor: as if vnodes were large, where they are not.
    pub dwell: Duration,
}

impl Default for Times {
    fn default() -> Times {
        Times { lag_ms: FORGET_LAG_MS, pause: Duration::from_millis(FORGET_PAUSE_MS), dwell: Duration::ZERO }
    }
}

/// A vnode of a namespace.
type Pair = (NamespaceId, u32);

/// A vnode of which this core has a copy.
#[derive(Clone, Copy, Debug)]
pub struct Ours {
    pub namespace: NamespaceId,
    pub vnode: u32,
    pub epoch: u64,
    pub leads: bool,
}

/// What the fences let through of a cell.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Verdict<'c> {
    /// It may be stored, but for parts that are here.
    Take(Record<'c>),
    /// All of it is here, or was forgotten here.
    IsHere,
    /// It is refused, unless memory knows that all of it is here.
    UnlessHeld,
    /// What lies on disk decides.
    Look,
}

/// One core's.
pub struct Forgetting {
    times: Times,
    planted: Option<Planted>,
    pairs: RefCell<BTreeMap<Pair, Ours>>,
    followers: RefCell<BTreeMap<Pair, Follower>>,
    /// No fence of any vnode lies higher.
    highest: Cell<Version>,
    /// When the vnodes that this core leads have their next session.
    due: RefCell<BTreeMap<Pair, Mono>>,
    /// The one that had the last.
    last: Cell<Option<Pair>>,
    done: Cell<u64>,
    void: Cell<u64>,
    floors: Cell<u64>,
}

static DONE: Meaning =
    counter("forget_sessions_total", "Sessions of forgetting that this node led and that all replicas took part in to their end.");
static VOID: Meaning =
    counter("forget_sessions_void_total", "Sessions of forgetting that this node led and that came to nothing: a replica was away.");
static FLOORS: Meaning = counter("forget_floors_total", "Floors raised, of vnodes that this node has a copy of.");
static LAG: Meaning = peak("forget_floor_lag_ms", "Behind this node's clock, the oldest floor of a vnode that has one.");
static NEVER: Meaning = gauge("forget_vnodes_without_floor", "Vnodes and namespaces of which nothing was ever forgotten.");

fn add_one(cell: &Cell<u64>) {
    cell.set(cell.get() + 1);
}

impl Forgetting {
    pub fn new(times: Times, planted: Option<coordinator::Planted>) -> Forgetting {
        Forgetting {
            times,
            planted: Planted::of(planted),
            pairs: RefCell::default(),
            followers: RefCell::default(),
            // Until `start` has looked.
            highest: Cell::new(Version::MAX),
            due: RefCell::default(),
            last: Cell::new(None),
            done: Cell::new(0),
            void: Cell::new(0),
            floors: Cell::new(0),
        }
    }

    pub fn report(&self, report: &mut Report, engine: &Engine, now_ms: WallMs) {
        let pairs = self.pairs.borrow();
        let floors = || pairs.keys().map(|&(namespace, vnode)| engine.marks(namespace, vnode).floor);
        let oldest = floors().filter(|floor| *floor > Version::ZERO).min();
        report.count(&DONE, &[], self.done.get());
        report.count(&VOID, &[], self.void.get());
        report.count(&FLOORS, &[], self.floors.get());
        report.count(&LAG, &[], oldest.map_or(0, |floor| now_ms.saturating_sub(hlc_ms(floor.hlc()))));
        report.count(&NEVER, &[], floors().filter(|floor| *floor == Version::ZERO).count() as u64);
    }

    /// The vnodes of this core, whenever the topology or the namespaces change. A change of a vnode ends its session (G5).
    pub fn set_pairs(&self, pairs: &[Ours]) {
        let key = |ours: &Ours| (ours.namespace, ours.vnode);
        *self.pairs.borrow_mut() = pairs.iter().map(|ours| (key(ours), *ours)).collect();
        let known = self.pairs.borrow();
        self.followers.borrow_mut().retain(|pair, follower| {
            let ours = known.get(pair);
            ours.inspect(|ours| follower.on_epoch(ours.epoch)).is_some()
        });
        let before = self.due.take();
        let led = known.iter().filter(|(_, ours)| ours.leads);
        *self.due.borrow_mut() = led.map(|(pair, _)| (*pair, before.get(pair).copied().unwrap_or_default())).collect();
    }

    /// Marks of a vnode are about to be durable that were not set in a session: those of its old owners (M2).
    pub fn inherit(&self, namespace: NamespaceId, vnode: u32, fence: Version) {
        self.followers.borrow_mut().remove(&(namespace, vnode));
        self.highest.set(self.highest.get().max(fence));
    }

    /// What is in force: it may not be durable yet, and what is durable may not have been told to the follower yet.
    fn marks(&self, engine: &Engine, pair: Pair) -> (Marks, Option<SessionId>) {
        let durable = super::antientropy::marks(engine, pair.0, pair.1);
        match self.followers.borrow().get(&pair) {
            Some(follower) => (durable.inherit([follower.marks()], None), follower.session()),
            None => (durable, None),
        }
    }

    /// The version of what is absent from a vnode (G4). To be looked at before the place is: what a session brings meanwhile is not absent.
    pub fn absent(&self, engine: &Engine, namespace: NamespaceId, vnode: u32) -> Version {
        super::antientropy::marks(engine, namespace, vnode).absent(self.planted)
    }

    /// Of a cell that a coordinator sends; `held`: what is known of its place, all of it where `is_all`. `told`: what the old owners of a
    /// vnode that is being taken over have told, whose own marks are not here yet.
    pub fn verdict<'c>(
        &self,
        engine: &Engine,
        pair: Pair,
        told: Marks,
        (road, cell): (peer::Road, &Record<'c>),
        held: Option<Held>,
        is_all: bool,
    ) -> Verdict<'c> {
        if oldest_of(cell) > self.highest.get().max(told.fence) {
            return Verdict::Take(*cell);
        }
        let (marks, session) = self.marks(engine, pair);
        let marks = marks.inherit([told], None);
        let held = held.map(|held| Digest { value: held.version, is_gone: held.is_gone, expiry: held.expiry }).unwrap_or_default();
        let admitted = admits_cell(parts(cell), road.into(), marks, session, held, self.planted);
        match (is_all, admitted) {
            (_, (Admit::AckHeld, Admit::AckHeld)) => Verdict::IsHere,
            (true, (Admit::RefuseFenced, _) | (_, Admit::RefuseFenced)) => Verdict::UnlessHeld,
            (false, (Admit::RefuseFenced, _) | (_, Admit::RefuseFenced)) => Verdict::Look,
            _ => parts_of(*cell, admitted).map_or(Verdict::UnlessHeld, Verdict::Take),
        }
    }

    /// Of a copy in a comparison, within a session or without.
    /// `is_taken_over`: the vnode is, and what its old owners hold is to be held here, too, whatever fence an earlier try has left.
    pub fn admit_copy(
        &self,
        engine: &Engine,
        scope: &Scope,
        session: Option<Session>,
        is_taken_over: bool,
        (cell, held): (Digest, Digest),
    ) -> (Admit, Admit) {
        let (mut marks, current) = self.marks(engine, (scope.namespace, scope.vnode));
        if is_taken_over {
            marks.fence = marks.floor;
        }
        let road = match session {
            Some(session) => Road::Repair(session.id),
            // Nobody keeps the copies of sessions apart from others.
            None if self.planted == Some(Planted::RepairCopyBelowFloor) => Road::Repair(SessionId { number: 0, leader: 0 }),
            None => Road::Copy,
        };
        admits_cell(cell, road, marks, current, held, self.planted)
    }

    /// Whether a comparison within a session is served.
    pub fn serves(&self, engine: &Engine, scope: &Scope, session: Session) -> bool {
        self.with_follower(engine, (scope.namespace, scope.vnode), |follower| follower.serves(scope, Some(session))).unwrap_or(false)
    }

    /// This core's part in a vnode; none where it has no copy of it.
    fn with_follower<R>(&self, engine: &Engine, pair: Pair, step: impl FnOnce(&mut Follower) -> R) -> Option<R> {
        let ours = *self.pairs.borrow().get(&pair)?;
        let scope = Scope { namespace: ours.namespace, vnode: ours.vnode, epoch: ours.epoch };
        let fresh = || Follower::new(scope, super::antientropy::marks(engine, pair.0, pair.1), self.times.lag_ms, self.planted);
        Some(step(self.followers.borrow_mut().entry(pair).or_insert_with(fresh)))
    }

    /// The vnode whose turn it is, if it is due.
    fn next(&self, now: Mono) -> Option<Pair> {
        let due = self.due.borrow();
        let behind = self.last.get().map_or(Bound::Unbounded, Bound::Excluded);
        let is_due = |(_, at): &(&Pair, &Mono)| **at <= now;
        let next = due.range((behind, Bound::Unbounded)).find(is_due).or_else(|| due.iter().find(is_due));
        next.map(|(pair, _)| *pair)
    }

    fn ended(&self, now: Mono, pair: Pair, is_done: Option<bool>) {
        self.last.set(Some(pair));
        let again_ms = match is_done {
            Some(true) => self.times.lag_ms,
            // Its fence stands, and nothing but a session brings what lies below it.
            Some(false) => (self.times.lag_ms / AGAIN_PART).clamp(1, AGAIN_FENCED_MS_MAX),
            None => (self.times.lag_ms / AGAIN_PART).max(1),
        };
        match is_done {
            Some(true) => add_one(&self.done),
            Some(false) => add_one(&self.void),
            None => {}
        }
        if let Some(due) = self.due.borrow_mut().get_mut(&pair) {
            *due = now.plus(Duration::from_millis(again_ms));
        }
    }
}

/// The least version of any part.
fn oldest_of(cell: &Record<'_>) -> Version {
    let parts = [cell.version, cell.expiry.version].into_iter().filter(|version| *version > Version::ZERO);
    parts.min().unwrap_or(Version::ZERO)
}

impl Cluster {
    /// All replicas of a vnode, pending owners included, by rising id.
    pub(super) fn party(&self, namespace: NamespaceId, vnode: u32) -> Vec<u64> {
        let topology = self.topology();
        let everybody = topology.replicas(vnode, self.rf(namespace));
        let mut nodes: Vec<u64> = everybody.everybody().map(|index| topology.nodes()[usize::from(index)].spec.id).collect();
        nodes.sort_unstable();
        nodes.dedup();
        nodes
    }

    /// A vnode that this node has a copy of.
    pub(super) fn ours(&self, namespace: NamespaceId, vnode: u32, nodes: &[u64]) -> Ours {
        Ours { namespace, vnode, epoch: self.topology().epoch_of(vnode), leads: leads(namespace, vnode, nodes, self.me) }
    }
}

/// Begins to forget, for as long as the shard lives. Before anything is taken in.
pub fn start(shard: &Rc<Shard>, cluster: &Rc<Cluster>) {
    cluster.forget.highest.set(shard.engine.highest_fence());
    if cluster.planted == Some(coordinator::Planted::RepairOff) {
        return;
    }
    let (shard, cluster) = (shard.clone(), cluster.clone());
    let io = shard.io.clone();
    drop(io.spawn(Class::Background, async move { lead(&shard, &cluster).await }));
}

async fn lead(shard: &Rc<Shard>, cluster: &Rc<Cluster>) {
    let forget = &cluster.forget;
    loop {
        shard.io.sleep(forget.times.pause).await;
        if shard.io.is_shutting_down() || shard.is_closing() {
            return;
        }
        let Some(pair) = forget.next(shard.io.now()) else { continue };
        let is_done = match Sitting::begin(shard, cluster, pair) {
            Some(_) if !is_compared(shard, cluster, pair).await => None,
            // Meanwhile a replica may have gone.
            Some(_) => match Sitting::begin(shard, cluster, pair) {
                Some(sitting) => Some(sitting.run().await),
                None => None,
            },
            None => None,
        };
        forget.ended(shard.io.now(), pair, is_done);
    }
}

/// Compares a vnode with every other replica, to the end: a node that was away lacks what it missed, and from the fence on only the session
/// could bring it. False: with one it was cut off.
async fn is_compared(shard: &Rc<Shard>, cluster: &Rc<Cluster>, (namespace, vnode): Pair) -> bool {
    for peer in cluster.party(namespace, vnode).into_iter().filter(|peer| *peer != cluster.me) {
        let Some(comparison) = Comparison::new(shard, cluster, Compared { namespace, vnode, peer }) else { return false };
        if comparison.run(None).await.is_err() {
            return false;
        }
    }
    true
}

fn is_floor(effect: &LeaderEffect) -> bool {
    matches!(effect, LeaderEffect::Send { message: Message { body: Says::Floor, .. }, .. })
}

/// A session that this core leads.
struct Sitting<'a> {
    shard: &'a Rc<Shard>,
    cluster: &'a Rc<Cluster>,
    plan: Plan,
}

impl<'a> Sitting<'a> {
    /// None: not now.
    fn begin(shard: &'a Rc<Shard>, cluster: &'a Rc<Cluster>, (namespace, vnode): Pair) -> Option<Sitting<'a>> {
        let (forget, now_ms) = (&cluster.forget, shard.io.wall_ms());
        let replicas = cluster.party(namespace, vnode);
        let (marks, _) = forget.marks(&shard.engine, (namespace, vnode));
        let up_to = up_to(now_ms, forget.times.lag_ms);
        if up_to <= marks.floor || up_to < marks.fence || !replicas.iter().all(|node| cluster.is_alive(*node)) {
            return None;
        }
        let number = shard.engine.with_clock(|clock| clock.stamp(now_ms));
        let scope = Scope { namespace, vnode, epoch: cluster.topology().epoch_of(vnode) };
        let session = Session { id: SessionId { number, leader: cluster.me }, up_to };
        Some(Sitting { shard, cluster, plan: Plan { me: cluster.me, scope, session, replicas, planted: forget.planted } })
    }

    fn depth(&self) -> Option<u8> {
        self.cluster.repair.trees.with(self.plan.scope.namespace, self.plan.scope.vnode, |tree| tree.leaves_log2())
    }

    /// To its end: whether all have floored.
    async fn run(self) -> bool {
        let (shard, cluster, io) = (self.shard, self.cluster, &self.shard.io);
        let Some(depth) = self.depth() else { return false };
        let mut out = Vec::new();
        let mut leader = Leader::new(io.now(), self.plan.clone(), depth, &mut out);
        let (mut credited, mut allowance, mut has_dwelt) = (io.now(), BURST_BYTES, false);
        loop {
            leader.on_epoch(cluster.topology().epoch_of(self.plan.scope.vnode), &mut out);
            for node in self.plan.replicas.iter().filter(|node| !cluster.is_alive(**node)) {
                leader.on_gone(*node, &mut out);
            }
            let end = out.iter().find_map(|effect| match effect {
                LeaderEffect::Done => Some(true),
                LeaderEffect::Void(why) => {
                    self.tell(why);
                    Some(false)
                }
                _ => None,
            });
            if end.is_some() || shard.is_closing() || io.is_shutting_down() {
                return end == Some(true);
            }
            if out.is_empty() {
                let given = allowance.min(REPAIR_PAGE_BYTES);
                allowance -= given;
                leader.on_tick(io.now(), given, depth, &mut out);
            }
            if out.is_empty() {
                io.sleep(CREDIT_EVERY).await;
                let since = io.now().since(std::mem::replace(&mut credited, io.now()));
                allowance = (allowance + credit(since, REPAIR_BYTES_A_SECOND)).min(BURST_BYTES);
                continue;
            }
            if is_floor(&out[0]) && !std::mem::replace(&mut has_dwelt, true) {
                io.sleep(cluster.forget.times.dwell).await;
                continue;
            }
            let went = match out.remove(0) {
                LeaderEffect::Send { to, message } => self.send(&mut leader, to, message, &mut out).await,
                LeaderEffect::Compare { with, effect } => self.compare(&mut leader, with, effect, &mut out).await,
                LeaderEffect::Done | LeaderEffect::Void(_) => Some(()),
            };
            if went.is_none() {
                // The own disk fails, or the vnode is this core's no more.
                return false;
            }
        }
    }

    fn tell(&self, why: &Void) {
        if let Void::NeverEqual = why {
            let Scope { namespace, vnode, .. } = self.plan.scope;
            self.shard.notice(self.plan.me, "never equal", || {
                format!("vnode {vnode} of namespace {namespace}: its replicas still differ after many passes; tombstones stay for now")
            });
        }
    }

    fn at(&self, node: u64) -> Option<At> {
        let core = self.cluster.topology().core_at(node, self.plan.scope.vnode)?;
        Some(At { node, core })
    }

    async fn send(&self, leader: &mut Leader, to: u64, message: Message, out: &mut Vec<LeaderEffect>) -> Option<()> {
        let (shard, cluster) = (self.shard, self.cluster);
        let answer = if to == self.plan.me {
            Some(shard.take_part(cluster, &message).await?)
        } else {
            let deadline = shard.io.now().plus(Duration::from_millis(REPAIR_ANSWER_MS_MAX));
            match cluster.requests.ask_repair(shard, cluster, self.at(to)?, &RepairMessage::Forget(message), deadline).await {
                Some((_, RepairMessage::Forget(answer))) => Some(answer),
                // It is asked again.
                _ => None,
            }
        };
        if let Some(answer) = answer {
            leader.on_message(shard.io.now(), to, &answer, self.depth()?, out);
        }
        Some(())
    }

    async fn compare(&self, leader: &mut Leader, with: u64, effect: Effect, out: &mut Vec<LeaderEffect>) -> Option<()> {
        let (shard, depth) = (self.shard, self.depth()?);
        let (Scope { namespace, vnode, .. }, trees) = (self.plan.scope, &self.cluster.repair.trees);
        let session = Some(self.plan.session);
        let (scope, at, refused) = (self.plan.scope, self.at(with)?, Cell::new(0));
        let bytes_a_second = REPAIR_BYTES_A_SECOND;
        let comparison = Comparison { shard, cluster: self.cluster, scope, session, at, bytes_a_second, refused };
        match effect {
            Effect::Ask(ask) => {
                // Where there is no answer it asks again.
                let Some(answer) = comparison.ask(ask).await else { return Some(()) };
                trees.with(namespace, vnode, |tree| {
                    leader.on_exchange(shard.io.now(), with, depth, out, |exchange, out| {
                        exchange.on_answer(shard.io.now(), tree, answer, out);
                    });
                })
            }
            Effect::List(span) => {
                trees.mark_listed(namespace, vnode, &span);
                let listing = list(&shard.engine, &self.plan.scope, &span, shard.io.wall_ms()).await.ok()?;
                leader.on_exchange(shard.io.now(), with, depth, out, |exchange, out| exchange.on_listed(shard.io.now(), listing, out));
                Some(())
            }
            Effect::Copy { store, read } => {
                let (refused, looked_at, cells) = comparison.copy(&store, &read).await?;
                trees.with(namespace, vnode, |tree| {
                    leader.on_exchange(shard.io.now(), with, depth, out, |exchange, out| {
                        exchange.on_copied(shard.io.now(), tree, refused, looked_at, cells, out);
                    });
                })
            }
            Effect::Over(_) => Some(()),
        }
    }
}

impl Shard {
    /// What this core says to a leader, which may be itself, when that is durable. None: the disk does not take it.
    async fn take_part(&self, cluster: &Cluster, message: &Message) -> Option<Message> {
        let (forget, pair, now_ms) = (&cluster.forget, (message.scope.namespace, message.scope.vnode), self.io.wall_ms());
        let asked = forget.with_follower(&self.engine, pair, |follower| follower.on_message(now_ms, message));
        let no_copy = || FollowerEffect::Answer(Message { body: Says::Refused(Refusal::Epoch { ours: 0 }), ..message.clone() });
        let effect = match asked.unwrap_or_else(|| Some(no_copy()))? {
            FollowerEffect::PersistFence(fence) => {
                forget.highest.set(forget.highest.get().max(fence));
                self.engine.set_fence(pair.0, pair.1, fence).await.ok()?;
                forget.with_follower(&self.engine, pair, |follower| follower.on_fence_durable(fence)).flatten()
            }
            FollowerEffect::PersistFloor(floor) => {
                forget.highest.set(forget.highest.get().max(floor));
                self.engine.set_floor(pair.0, pair.1, floor).await.ok()?;
                add_one(&forget.floors);
                forget.with_follower(&self.engine, pair, |follower| follower.on_floor_durable(floor)).flatten()
            }
            answer => Some(answer),
        };
        match effect? {
            FollowerEffect::Answer(answer) => Some(answer),
            FollowerEffect::PersistFence(_) | FollowerEffect::PersistFloor(_) => None,
        }
    }

    /// A leader of another node asks this core to take part.
    pub(super) fn handle_forget(self: &Rc<Shard>, cluster: &Rc<Cluster>, ticket: Ticket, from: u64, head: Head, message: Message) {
        if head.epoch > cluster.epoch() {
            self.fetch_topology(cluster, from);
        }
        if message.session.id.leader != from {
            return self.say_part(cluster, &ticket, Message { body: Says::Refused(Refusal::NoSession), ..message });
        }
        if !self.admit.begin() {
            return self.refuse_peer(&ticket, peer::Refusal::Overloaded);
        }
        let (shard, cluster) = (self.clone(), cluster.clone());
        drop(self.io.spawn(Class::Background, async move {
            match shard.take_part(&cluster, &message).await {
                Some(answer) => shard.say_part(&cluster, &ticket, answer),
                None => shard.refuse_peer(&ticket, peer::Refusal::Overloaded),
            }
            shard.admit.end();
            shard.settle();
        }));
    }

    fn say_part(&self, cluster: &Cluster, ticket: &Ticket, answer: Message) {
        let mut frame = Vec::new();
        encode_repair(&mut frame, ticket.id, Head { epoch: cluster.epoch(), deadline_ms: 0 }, &RepairMessage::Forget(answer));
        self.answer_frame(ticket, frame, true);
    }
}
