//! Forgetting the dead: rules G1 to G6 of PROTOCOL.md. A tombstone may be dropped only where nothing older can still arrive; so the
//! replicas of a vnode first refuse what is old (fence), then make sure that each holds all of it or newer (compare), and only then
//! drop (floor).
//!
//! A **session** does this up to a version f, some time behind every clock. One replica leads it, the same for all (`leads`): since all
//! have to take part, nothing is gained by having another lead when it is down. It sends `Fence` to every replica, pending owners and
//! itself included; when all are fenced it compares itself with each of the others (`repair`), again and again until one whole pass found
//! nothing to copy; then it sends `Floor`. Whoever is unreachable, refuses, or knows another epoch of the vnode, voids the session: fences
//! stay, nothing is dropped, and the next session begins anew at a higher f.
//!
//! A fence and a floor are durable before anything is answered: `PersistFence` and `PersistFloor` are effects, and what follows comes out
//! of `on_fence_durable` and `on_floor_durable`.
//!
//! **What an expired value left** (a remnant: a tombstone with the value's own version) is not dead as a deleted one is. Value and
//! deadline of a cell are two registers with versions of their own; a remnant's value register still holds the value's version, and gives
//! way to the value, because under a newer deadline the value lives. So an EXPIRE or PERSIST carries the value along, and each part is
//! judged by its own version (`admits_cell`): the deadline may be new while the value lies at or below the fence. Then the value has to be
//! here, or what is left of it, which it completes; where it is neither, the whole is refused, and the client told `Unknown`, for to
//! acknowledge a deadline without its value would promise a value that this replica cannot show. Lest some replicas take such a deadline
//! and others, which have forgotten the value, cannot, remnants are forgotten later than tombstones, when everything that was begun while
//! the value was alive has a version below the fence, and so was compared (`engine::store_marks`).
//!
//! Where the rules live: G1 and G1a `admits`, G2 `Leader::next_peer`, G3 `Follower::on_floor`, G4 `Marks::absent`, G5 `Leader::void`,
//! G6 nothing but `on_floor_durable` and `Marks::inherit` (M2) raises a floor.

use super::coordinator;
use super::merkle::Digest;
use super::repair::{self, Exchange, Outcome, Scope};
use crate::base::checksum::hash64;
use crate::base::record::{NamespaceId, Version};
use crate::base::time::{HLC_COUNTER_BITS, Mono, WallMs, hlc_ms};
use crate::limits::GOSSIP_CLOCK_MS_MAX;
use crate::wire::peer;
pub use crate::wire::peer_repair::{Forget as Message, ForgetBody as Body, NoPart as Refusal, Session, SessionId};
use std::time::Duration;

/// How far behind the leader's clock a session's f lies. What is older and has not reached a replica by then is refused there.
pub const FORGET_LAG_MS: u64 = 3_600_000;
/// A session whose passes still find differences after so many is void: somebody refuses copies, or loses them.
const PASSES_MAX: u32 = 8;
/// A fence or floor that is not answered is sent again.
const RESEND: Duration = Duration::from_secs(2);
/// A replica that has not answered for this long is unreachable.
const SILENCE: Duration = Duration::from_secs(20);

const _: () = assert!(FORGET_LAG_MS > 10 * GOSSIP_CLOCK_MS_MAX, "f lies behind every clock that the cluster bears");

/// Bugs that tests plant, to see that they are found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Planted {
    DropWithoutFence,
    FloorLocalOnly,
    RepairCopyBelowFloor,
    AbsentIsVersionZero,
    FloorNotInherited,
}

impl Planted {
    /// Those that a whole cluster can have.
    pub fn of(planted: Option<coordinator::Planted>) -> Option<Planted> {
        match planted? {
            coordinator::Planted::DropWithoutFence => Some(Planted::DropWithoutFence),
            coordinator::Planted::FloorLocalOnly => Some(Planted::FloorLocalOnly),
            coordinator::Planted::RepairCopyBelowFloor => Some(Planted::RepairCopyBelowFloor),
            coordinator::Planted::AbsentIsVersionZero => Some(Planted::AbsentIsVersionZero),
            coordinator::Planted::FloorNotInherited => Some(Planted::FloorNotInherited),
            _ => None,
        }
    }
}

/// What a replica keeps, durable, of a vnode and namespace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Marks {
    pub fence: Version,
    pub floor: Version,
}

impl Marks {
    /// The version of an absent key, in every answer (G4).
    pub fn absent(self, planted: Option<Planted>) -> Version {
        if planted == Some(Planted::AbsentIsVersionZero) { Version::ZERO } else { self.floor }
    }

    /// Of a pending owner that has joined a majority of old owners with these marks, when it takes over (M2).
    pub fn inherit(self, others: impl IntoIterator<Item = Marks>, planted: Option<Planted>) -> Marks {
        if planted == Some(Planted::FloorNotInherited) {
            return self;
        }
        let higher = |a: Marks, b: Marks| Marks { fence: a.fence.max(b.fence), floor: a.floor.max(b.floor) };
        others.into_iter().fold(self, higher)
    }
}

/// How a cell comes to a replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Road {
    Put,
    Hint,
    WriteBack,
    /// Of a comparison in the background.
    Copy,
    Stream,
    /// Of a comparison within this session.
    Repair(SessionId),
}

impl From<peer::Road> for Road {
    fn from(road: peer::Road) -> Road {
        match road {
            peer::Road::Put => Road::Put,
            peer::Road::WriteBack => Road::WriteBack,
            peer::Road::Hint => Road::Hint,
            peer::Road::Copy => Road::Copy,
        }
    }
}

/// What to do with a part of a cell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admit {
    Store,
    /// At or below fence or floor: to the coordinator, `Unknown`.
    RefuseFenced,
    /// Acknowledge; nothing is to be stored.
    AckHeld,
}

/// The one function that every road asks (G1, G1a, G3), after the leader's term was asked (L4). `session` is the one that the replica has
/// fenced for; `held` the version of the same part at the place, `Version::ZERO` where it is absent: below the floor, absence is no reason
/// to acknowledge.
pub fn admits(version: Version, road: Road, marks: Marks, session: Option<SessionId>, held: Version, planted: Option<Planted>) -> Admit {
    if held >= version {
        return Admit::AckHeld;
    }
    let is_repair = matches!(road, Road::Repair(id) if session == Some(id));
    if planted == Some(Planted::RepairCopyBelowFloor) && matches!(road, Road::Repair(_)) {
        return Admit::Store;
    }
    let is_admitted = version > marks.fence || is_rmw_on(version, held) || is_repair && version > marks.floor;
    if is_admitted { Admit::Store } else { Admit::RefuseFenced }
}

/// G1a: a read-modify-write of a cell that is held keeps its clock, however old, and may follow it.
pub(super) fn is_rmw_on(version: Version, held: Version) -> bool {
    version.term() != 0 && held < version && (held.hlc(), held.writer()) == (version.hlc(), version.writer()) && held != Version::ZERO
}

/// `admits` of both parts of a cell: each is judged by its own version, since a copy of a new deadline may carry an old value along. Of a
/// cell of which one part is refused, only the other is stored. A value is newer than what is left of it, as in the join. A tombstone below
/// the floor that comes with a new deadline is here, in its absence.
pub fn admits_cell(
    cell: Digest,
    road: Road,
    marks: Marks,
    session: Option<SessionId>,
    held: Digest,
    planted: Option<Planted>,
) -> (Admit, Admit) {
    let part = |version, held| admits(version, road, marks, session, held, planted);
    let is_tie = cell.value == held.value && !cell.is_gone && held.is_gone;
    let expiry = part(cell.expiry, held.expiry);
    let is_forgotten = cell.is_gone && cell.value <= marks.floor && held.value == Version::ZERO && expiry != Admit::RefuseFenced;
    let value = match () {
        () if is_tie => Admit::Store,
        () if is_forgotten => Admit::AckHeld,
        () => part(cell.value, held.value),
    };
    (value, expiry)
}

/// Whether `me` leads the forgetting of a vnode: spread over the replicas, and the same for all of them.
pub fn leads(namespace: NamespaceId, vnode: u32, replicas: &[u64], me: u64) -> bool {
    let rank = |node: u64| {
        let mut bytes = [0; 16];
        bytes[..4].copy_from_slice(&namespace.to_le_bytes());
        bytes[4..8].copy_from_slice(&vnode.to_le_bytes());
        bytes[8..].copy_from_slice(&node.to_le_bytes());
        (hash64(&bytes), node)
    };
    replicas.iter().copied().max_by_key(|node| rank(*node)) == Some(me)
}

/// The f of a session that begins now.
pub fn up_to(now_ms: WallMs, lag_ms: u64) -> Version {
    Version::put(now_ms.saturating_sub(lag_ms) << HLC_COUNTER_BITS, 0)
}

/// A replica's part in the forgetting of a vnode.
#[derive(Clone, Debug)]
pub struct Follower {
    scope: Scope,
    lag_ms: u64,
    /// The fence is in force from when it was asked for, not only when it is durable.
    marks: Marks,
    session: Option<Session>,
    is_fence_durable: bool,
    planted: Option<Planted>,
}

/// What a follower asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FollowerEffect {
    Answer(Message),
    /// Make the fence durable, behind every write that was admitted before; then `on_fence_durable`.
    PersistFence(Version),
    /// Make the floor durable; then `on_floor_durable`, and only then drop anything.
    PersistFloor(Version),
}

impl Follower {
    /// `marks`: what is durable. A restart ends the part in any session.
    pub fn new(scope: Scope, marks: Marks, lag_ms: u64, planted: Option<Planted>) -> Follower {
        Follower { scope, lag_ms, marks, session: None, is_fence_durable: false, planted }
    }

    pub fn marks(&self) -> Marks {
        self.marks
    }

    /// For `admits`.
    pub fn session(&self) -> Option<SessionId> {
        self.session.map(|session| session.id)
    }

    /// Whether a comparison of this scope is served: of the same epoch of the vnode; and within a session only once the fence is durable.
    pub fn serves(&self, scope: &Scope, session: Option<Session>) -> bool {
        let is_fenced = session.is_none() || self.is_fence_durable && session == self.session;
        let is_wrong = matches!(self.planted, Some(Planted::DropWithoutFence | Planted::RepairCopyBelowFloor));
        *scope == self.scope && (is_fenced || is_wrong)
    }

    /// The vnode's replicas changed, and with them its epoch: the session is void (G5).
    pub fn on_epoch(&mut self, epoch: u64) {
        if self.scope.epoch != epoch {
            self.scope.epoch = epoch;
            self.end_session();
        }
    }

    fn end_session(&mut self) {
        (self.session, self.is_fence_durable) = (None, false);
    }

    /// A leader's message.
    pub fn on_message(&mut self, now_ms: WallMs, message: &Message) -> Option<FollowerEffect> {
        if (message.scope.namespace, message.scope.vnode) != (self.scope.namespace, self.scope.vnode) {
            return None;
        }
        let answer = if message.scope.epoch != self.scope.epoch {
            Body::Refused(Refusal::Epoch { ours: self.scope.epoch })
        } else {
            match message.body {
                Body::Fence => return Some(self.on_fence(now_ms, message.session)),
                Body::Floor => return Some(self.on_floor(message.session)),
                Body::Fenced | Body::Floored | Body::Refused(_) => return None,
            }
        };
        Some(FollowerEffect::Answer(Message { body: answer, ..message.clone() }))
    }

    fn answer(&self, session: Session, body: Body) -> FollowerEffect {
        FollowerEffect::Answer(Message { scope: self.scope, session, body })
    }

    /// G1.
    fn on_fence(&mut self, now_ms: WallMs, session: Session) -> FollowerEffect {
        if self.session == Some(session) && self.is_fence_durable {
            return self.answer(session, Body::Fenced);
        }
        let is_older = self.session.is_some_and(|ours| ours.id > session.id);
        if session.up_to <= self.marks.floor || session.up_to < self.marks.fence || is_older {
            return self.answer(session, Body::Refused(Refusal::Behind));
        }
        let clock_ms = now_ms + GOSSIP_CLOCK_MS_MAX.min(self.lag_ms / 2);
        if hlc_ms(session.up_to.hlc()) + self.lag_ms > clock_ms {
            return self.answer(session, Body::Refused(Refusal::TooNew));
        }
        (self.session, self.is_fence_durable) = (Some(session), false);
        self.marks.fence = session.up_to;
        FollowerEffect::PersistFence(session.up_to)
    }

    /// The fence is durable; so the leader may know.
    pub fn on_fence_durable(&mut self, fence: Version) -> Option<FollowerEffect> {
        let session = self.session.filter(|session| session.up_to == fence)?;
        self.is_fence_durable = true;
        Some(self.answer(session, Body::Fenced))
    }

    /// G3. Comes only from a leader that has seen G2; so a session that is not ours any more is refused.
    fn on_floor(&mut self, session: Session) -> FollowerEffect {
        if session.up_to <= self.marks.floor {
            return self.answer(session, Body::Floored);
        }
        let is_ours = self.session == Some(session) && self.is_fence_durable;
        if is_ours || self.planted == Some(Planted::DropWithoutFence) {
            self.session = Some(session);
            return FollowerEffect::PersistFloor(session.up_to);
        }
        self.answer(session, Body::Refused(Refusal::NoSession))
    }

    /// The floor is durable: everything at or below it is refused from now on, and the dead there may be dropped.
    pub fn on_floor_durable(&mut self, floor: Version) -> Option<FollowerEffect> {
        self.marks = Marks { fence: self.marks.fence.max(floor), floor: self.marks.floor.max(floor) };
        let session = self.session.filter(|session| session.up_to == floor)?;
        self.end_session();
        Some(self.answer(session, Body::Floored))
    }
}

/// Why a session came to nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Void {
    Unreachable {
        node: u64,
    },
    Refused {
        node: u64,
        why: Refusal,
    },
    /// A comparison was refused, or its answers made no sense.
    Compare {
        node: u64,
        outcome: Outcome,
    },
    TopologyChanged,
    /// Passes went on finding differences.
    NeverEqual,
}

/// What a leader asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LeaderEffect {
    Send {
        to: u64,
        message: Message,
    },
    /// Of the comparison with a replica.
    Compare {
        with: u64,
        effect: repair::Effect,
    },
    /// The session is over; all have floored.
    Done,
    Void(Void),
}

#[derive(Debug)]
enum Phase {
    /// Waits for these to be fenced.
    Fencing(Vec<u64>),
    Comparing {
        pass: u32,
        /// Which replica is compared with.
        at: usize,
        /// Differences found in this pass.
        found: u64,
        exchange: Box<Exchange>,
    },
    /// Waits for these to have floored.
    Flooring(Vec<u64>),
    Over,
}

/// What a session is about.
#[derive(Clone, Debug)]
pub struct Plan {
    pub me: u64,
    pub scope: Scope,
    pub session: Session,
    /// All replicas of the vnode, pending owners and the leader included.
    pub replicas: Vec<u64>,
    pub planted: Option<Planted>,
}

/// A session, as its leader sees it.
#[derive(Debug)]
pub struct Leader {
    plan: Plan,
    phase: Phase,
    /// When a message was last sent to all that are waited for, and when one of them last answered.
    sent: Mono,
    heard: Mono,
}

impl Leader {
    /// `leaves_log2`: how deep the leader's own tree is.
    pub fn new(now: Mono, plan: Plan, leaves_log2: u8, out: &mut Vec<LeaderEffect>) -> Leader {
        let all = match plan.planted {
            Some(Planted::FloorLocalOnly) => vec![plan.me],
            Some(Planted::DropWithoutFence) => Vec::new(),
            _ => plan.replicas.clone(),
        };
        let mut leader = Leader { plan, phase: Phase::Fencing(all), sent: now, heard: now };
        leader.send_waiting(now, out);
        leader.move_on(now, leaves_log2, out);
        leader
    }

    pub fn session(&self) -> Session {
        self.plan.session
    }

    /// It is done, or void.
    pub fn is_over(&self) -> bool {
        matches!(self.phase, Phase::Over)
    }

    fn send_waiting(&mut self, now: Mono, out: &mut Vec<LeaderEffect>) {
        let (waiting, body) = match &self.phase {
            Phase::Fencing(waiting) => (waiting, Body::Fence),
            Phase::Flooring(waiting) => (waiting, Body::Floor),
            Phase::Comparing { .. } | Phase::Over => return,
        };
        self.sent = now;
        let message = Message { scope: self.plan.scope, session: self.plan.session, body };
        out.extend(waiting.iter().map(|to| LeaderEffect::Send { to: *to, message: message.clone() }));
    }

    fn void(&mut self, why: Void, out: &mut Vec<LeaderEffect>) {
        if !matches!(self.phase, Phase::Over) {
            self.phase = Phase::Over;
            out.push(LeaderEffect::Void(why));
        }
    }

    /// The vnode's replicas changed (G5). Who has floored already has done no wrong: all hold everything up to f.
    pub fn on_epoch(&mut self, epoch: u64, out: &mut Vec<LeaderEffect>) {
        if epoch != self.plan.scope.epoch {
            self.void(Void::TopologyChanged, out);
        }
    }

    /// A replica is known to be gone (G5): no need to wait until it is silent for long.
    pub fn on_gone(&mut self, node: u64, out: &mut Vec<LeaderEffect>) {
        if self.plan.replicas.contains(&node) {
            self.void(Void::Unreachable { node }, out);
        }
    }

    /// A replica's answer.
    pub fn on_message(&mut self, now: Mono, from: u64, message: &Message, leaves_log2: u8, out: &mut Vec<LeaderEffect>) {
        if (message.scope.namespace, message.scope.vnode) != (self.plan.scope.namespace, self.plan.scope.vnode) {
            return;
        }
        if message.session != self.plan.session || !self.plan.replicas.contains(&from) {
            return;
        }
        match (&mut self.phase, message.body) {
            (_, Body::Refused(why)) => return self.void(Void::Refused { node: from, why }, out),
            (Phase::Fencing(waiting), Body::Fenced) | (Phase::Flooring(waiting), Body::Floored) => waiting.retain(|node| *node != from),
            _ => return,
        }
        self.heard = now;
        self.move_on(now, leaves_log2, out);
    }

    fn move_on(&mut self, now: Mono, leaves_log2: u8, out: &mut Vec<LeaderEffect>) {
        match &self.phase {
            Phase::Fencing(waiting) if waiting.is_empty() && self.plan.planted == Some(Planted::FloorLocalOnly) => {
                self.floor(now, vec![self.plan.me], out)
            }
            Phase::Fencing(waiting) if waiting.is_empty() => self.next_peer(now, (0, 0, 0), leaves_log2, out),
            Phase::Flooring(waiting) if waiting.is_empty() => {
                self.phase = Phase::Over;
                out.push(LeaderEffect::Done);
            }
            _ => {}
        }
    }

    /// G2: compares with the next replica; after a pass that found something begins another, after one that found nothing goes on to G3.
    fn next_peer(&mut self, now: Mono, (pass, at, found): (u32, usize, u64), leaves_log2: u8, out: &mut Vec<LeaderEffect>) {
        let next = (at..self.plan.replicas.len()).find(|at| self.plan.replicas[*at] != self.plan.me);
        match next {
            Some(at) => {
                let mut effects = Vec::new();
                let number = self.plan.session.id.number ^ u64::from(pass) << 8 ^ at as u64;
                let exchange = Exchange::new(now, number, self.plan.scope, Some(self.plan.session), leaves_log2, None, &mut effects);
                self.phase = Phase::Comparing { pass, at, found, exchange: Box::new(exchange) };
                let with = self.plan.replicas[at];
                out.extend(effects.into_iter().map(|effect| LeaderEffect::Compare { with, effect }));
            }
            None if found == 0 => self.floor(now, self.plan.replicas.clone(), out),
            None if pass + 1 == PASSES_MAX => self.void(Void::NeverEqual, out),
            None => self.next_peer(now, (pass + 1, 0, 0), leaves_log2, out),
        }
    }

    fn floor(&mut self, now: Mono, waiting: Vec<u64>, out: &mut Vec<LeaderEffect>) {
        self.phase = Phase::Flooring(waiting);
        self.heard = now;
        self.send_waiting(now, out);
    }

    /// Runs `step` on the comparison that is under way, if it is with `with`.
    pub fn on_exchange(
        &mut self,
        now: Mono,
        with: u64,
        leaves_log2: u8,
        out: &mut Vec<LeaderEffect>,
        step: impl FnOnce(&mut Exchange, &mut Vec<repair::Effect>),
    ) {
        let Phase::Comparing { pass, at, found, exchange } = &mut self.phase else { return };
        if self.plan.replicas[*at] != with {
            return;
        }
        let mut effects = Vec::new();
        step(exchange, &mut effects);
        let (pass, at, mut found) = (*pass, *at, *found);
        for effect in effects {
            match effect {
                repair::Effect::Over(Outcome::Compared { differing, .. }) => {
                    found += differing;
                    return self.next_peer(now, (pass, at + 1, found), leaves_log2, out);
                }
                repair::Effect::Over(Outcome::Silent { .. }) => return self.void(Void::Unreachable { node: with }, out),
                repair::Effect::Over(outcome) => return self.void(Void::Compare { node: with, outcome }, out),
                effect => out.push(LeaderEffect::Compare { with, effect }),
            }
        }
    }

    /// To be called now and then; `credit` bytes more may be sent by the comparison.
    pub fn on_tick(&mut self, now: Mono, credit: usize, leaves_log2: u8, out: &mut Vec<LeaderEffect>) {
        match &self.phase {
            Phase::Comparing { at, .. } => {
                let with = self.plan.replicas[*at];
                self.on_exchange(now, with, leaves_log2, out, |exchange, effects| exchange.on_tick(now, credit, effects));
            }
            Phase::Fencing(waiting) | Phase::Flooring(waiting) => {
                let node = waiting.first().copied().unwrap_or(self.plan.me);
                if now.since(self.heard) >= SILENCE {
                    self.void(Void::Unreachable { node }, out);
                } else if now.since(self.sent) >= RESEND {
                    self.send_waiting(now, out);
                }
            }
            Phase::Over => {}
        }
    }
}
