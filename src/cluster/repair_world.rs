//! A group of replicas of one vnode in memory, for tests of repair and forgetting: each message may be lost, late, repeated and reordered;
//! replicas crash and come back with what they made durable; links are cut; owners are replaced. Cells are durable at once, fences and
//! floors when they say so, trees and sessions never. Moves are the topology's business and happen here in two steps of an oracle (M1,
//! M2): an owner becomes pending, and takes over when it has joined a majority of the old ones.

use super::forget::{
    Admit, Follower, FollowerEffect, Leader, LeaderEffect, Marks, Message, Plan, Planted, Road, Session, SessionId, Void, admits_cell,
    up_to,
};
use super::merkle::{Digest, Tree};
use super::repair::{Answer, Ask, CellCopy, Effect, Entry, Exchange, Listing, Outcome, Place, Scope, Serve, Span, serve};
use crate::base::prng::Prng;
use crate::base::record::{Token, Version};
use crate::base::time::{HLC_COUNTER_BITS, Mono};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

pub(super) const LAG_MS: u64 = 3_000;
const VNODES: u32 = 2;
const LEAVES_LOG2: u8 = 3;
/// So small that what does not fit comes up all the time.
const PAGE_CELLS: usize = 3;
const CREDIT: usize = 1 << 16;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Held {
    pub digest: Digest,
    /// Which operation wrote the value.
    pub payload: u32,
}

impl Held {
    /// There is a value.
    fn is_live(&self) -> bool {
        self.digest.value > Version::ZERO && !self.digest.is_gone
    }
}

impl Node {
    pub fn may_compare(&self) -> bool {
        self.is_up && self.exchange.is_none()
    }

    pub fn may_lead(&self) -> bool {
        self.is_up && self.leader.is_none()
    }

    /// Nothing is under way that it began, or makes durable.
    pub fn is_idle(&self) -> bool {
        self.exchange.is_none() && self.leader.is_none() && self.persisting.is_empty()
    }
}

pub(super) struct Node {
    pub id: u64,
    pub is_up: bool,
    pub cells: BTreeMap<Place, Held>,
    /// What is durable.
    pub marks: Marks,
    follower: Follower,
    tree: Tree,
    exchange: Option<(usize, Exchange)>,
    leader: Option<Leader>,
    /// What is being made durable, and for whom.
    persisting: Vec<(usize, FollowerEffect)>,
}

#[derive(Clone, Debug)]
pub(super) enum Body {
    Put {
        op: usize,
        epoch: u64,
        cell: CellCopy,
    },
    PutAck {
        op: usize,
    },
    /// A hint, a write-back: a copy without an operation.
    Copy(CellCopy),
    Ask(Ask),
    Answer(Answer),
    Forget(Message),
}

#[derive(Clone, Debug)]
pub(super) struct Packet {
    pub from: usize,
    pub to: usize,
    pub body: Body,
}

/// A write.
pub(super) struct Op {
    pub place: Place,
    pub digest: Digest,
    /// Owners, and pending owners, when it began.
    groups: [Vec<usize>; 2],
    acks: BTreeSet<usize>,
    pub is_acknowledged: bool,
}

pub(super) struct World {
    pub prng: Prng,
    pub now_ms: u64,
    pub nodes: Vec<Node>,
    pub net: Vec<Packet>,
    /// Held back for long.
    pub late: Vec<Packet>,
    pub owners: Vec<usize>,
    /// Whose place is being taken, and by whom.
    pub moving: Option<(usize, usize)>,
    epoch: u64,
    pub cut: Option<(usize, usize)>,
    pub ops: Vec<Op>,
    planted: Option<Planted>,
    /// What comparisons came to, and sessions.
    pub compared: Vec<(usize, usize, Outcome)>,
    pub done: u32,
    pub voided: u32,
    pub last_void: Option<Void>,
    /// Passes that never found all equal; among replicas that are all fenced there is no reason for it.
    pub never_equal: bool,
    pub dropped: u32,
    pub trace: Option<String>,
}

pub(super) fn place(key: u64) -> Place {
    key.wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_shr(1).to_be_bytes().to_vec()
}

fn token(place: &[u8]) -> Token {
    Token::from_be_bytes(place.try_into().expect("8 bytes"))
}

impl World {
    pub fn new(seed: u64, planted: Option<Planted>) -> World {
        let mut world = World {
            prng: Prng::new(seed),
            now_ms: 1_000_000,
            nodes: Vec::new(),
            net: Vec::new(),
            late: Vec::new(),
            owners: vec![0, 1, 2],
            moving: None,
            epoch: 1,
            cut: None,
            ops: Vec::new(),
            planted,
            compared: Vec::new(),
            done: 0,
            voided: 0,
            last_void: None,
            never_equal: false,
            dropped: 0,
            trace: None,
        };
        (0..3).for_each(|_| world.add_node());
        world
    }

    pub fn now(&self) -> Mono {
        Mono(self.now_ms * 1_000_000)
    }

    pub fn scope(&self) -> Scope {
        Scope { namespace: 1, vnode: 0, epoch: self.epoch }
    }

    pub fn add_node(&mut self) {
        let follower = Follower::new(self.scope(), Marks::default(), LAG_MS, self.planted);
        let id = self.nodes.len() as u64 + 1;
        let tree = Tree::new(0, VNODES, LEAVES_LOG2);
        let (cells, marks) = (BTreeMap::new(), Marks::default());
        self.nodes.push(Node { id, is_up: true, cells, marks, follower, tree, exchange: None, leader: None, persisting: Vec::new() });
    }

    /// All replicas, the pending owner included.
    pub fn everybody(&self) -> Vec<usize> {
        self.owners.iter().copied().chain(self.moving.map(|(_, new)| new)).collect()
    }

    pub fn send(&mut self, from: usize, to: usize, body: Body) {
        self.net.push(Packet { from, to, body });
    }

    // What replicas do.

    /// Stores what is admitted of a cell: whether a part was refused.
    fn store(&mut self, at: usize, copy: &CellCopy, road: Road) -> bool {
        let planted = self.planted;
        let node = &mut self.nodes[at];
        let held = node.cells.get(&copy.place).copied().unwrap_or_default();
        let (value, expiry) = admits_cell(copy.digest, road, node.follower.marks(), node.follower.session(), held.digest, planted);
        let mut next = held;
        if value == Admit::Store {
            let payload = u32::from_le_bytes(copy.cell[..].try_into().expect("4 bytes"));
            next = Held { payload, digest: Digest { expiry: held.digest.expiry, ..copy.digest } };
        }
        if expiry == Admit::Store {
            next.digest.expiry = copy.digest.expiry;
        }
        if next != held {
            node.cells.insert(copy.place.clone(), next);
            node.tree.mark(token(&copy.place));
        }
        value == Admit::RefuseFenced || expiry == Admit::RefuseFenced
    }

    fn store_all(&mut self, at: usize, cells: &[CellCopy], road: Road) -> u32 {
        cells.iter().map(|copy| u32::from(self.store(at, copy, road))).sum()
    }

    fn list(&self, at: usize, span: &Span) -> Listing {
        let node = &self.nodes[at];
        let floor = node.follower.marks().floor;
        let (first, last) = (span.first.to_be_bytes().to_vec(), span.last.to_be_bytes().to_vec());
        let is_in = |place: &Place| Some(place) > span.after.as_ref() && span.until.as_ref().is_none_or(|until| place <= until);
        let found = node.cells.range(first..=last).filter(|(place, _)| is_in(place));
        let found = found.filter(|(_, held)| held.is_live() || held.digest.newest() > floor);
        let mut entries: Vec<Entry> = found.map(|(place, held)| Entry { place: place.clone(), digest: held.digest }).collect();
        let is_cut = entries.len() > PAGE_CELLS;
        entries.truncate(PAGE_CELLS);
        let stopped_at = entries.last().filter(|_| is_cut).map(|entry| entry.place.clone());
        Listing { entries, absent: node.follower.marks().absent(self.planted), stopped_at }
    }

    /// How many of the places were looked at, and what was there.
    fn read(&self, at: usize, places: &[Place]) -> (usize, Vec<CellCopy>) {
        let places = &places[..places.len().min(2)];
        let cell = |place: &Place| {
            let held = self.nodes[at].cells.get(place)?;
            Some(CellCopy { place: place.clone(), digest: held.digest, cell: held.payload.to_le_bytes().to_vec() })
        };
        (places.len(), places.iter().filter_map(cell).collect())
    }

    /// The paced scan, `leaves` at a time.
    pub fn rescan(&mut self, at: usize, leaves: usize) {
        let node = &mut self.nodes[at];
        let floor = node.follower.marks().floor;
        for _ in 0..leaves {
            let Some(leaf) = node.tree.next_dirty(0) else { return };
            let (first, last) = node.tree.range(LEAVES_LOG2, leaf);
            let mut scan = node.tree.begin(leaf);
            for (place, held) in node.cells.range(first.to_be_bytes().to_vec()..=last.to_be_bytes().to_vec()) {
                if held.is_live() || held.digest.newest() > floor {
                    scan.add(7, place, &held.digest);
                }
            }
            node.tree.finish(scan);
        }
    }

    // Messages.

    pub fn deliver(&mut self, packet: Packet) {
        let Packet { from, to, body } = packet;
        let is_cut = self.cut == Some((from, to)) || self.cut == Some((to, from));
        if !self.nodes[to].is_up || is_cut {
            return;
        }
        if let Some(line) = self.describe(from, to, &body) {
            self.say(&line);
        }
        match body {
            Body::Put { op, epoch, cell } => {
                // M1: a coordinator that does not know of the move is refused.
                if epoch >= self.epoch && !self.store(to, &cell, Road::Put) {
                    self.send(to, from, Body::PutAck { op });
                }
            }
            Body::PutAck { op } => self.on_ack(op, from),
            Body::Copy(cell) => drop(self.store(to, &cell, Road::Hint)),
            Body::Ask(ask) => self.on_ask(from, to, ask),
            Body::Answer(answer) => self.on_answer(from, to, answer),
            Body::Forget(message) => self.on_forget(from, to, message),
        }
    }

    fn on_ack(&mut self, op: usize, from: usize) {
        let op = &mut self.ops[op];
        op.acks.insert(from);
        let is_met = |group: &Vec<usize>| group.iter().filter(|node| op.acks.contains(node)).count() > group.len() / 2;
        op.is_acknowledged |= op.groups.iter().all(|group| group.is_empty() || is_met(group));
    }

    fn on_ask(&mut self, from: usize, to: usize, ask: Ask) {
        let session = ask.session;
        let is_served = self.nodes[to].follower.serves(&ask.scope, session);
        let road = session.map_or(Road::Copy, |session| Road::Repair(session.id));
        let answer = match serve(&self.nodes[to].tree, is_served, ask) {
            Serve::Answer(answer) => answer,
            Serve::List(span, then) => {
                let (places, then) = then.listed(self.list(to, &span));
                let (looked_at, cells) = self.read(to, &places);
                then.read(looked_at, cells)
            }
            Serve::Store(cells, then) => then.stored(self.store_all(to, &cells, road)),
        };
        self.send(to, from, Body::Answer(answer));
    }

    fn on_answer(&mut self, from: usize, to: usize, answer: Answer) {
        let now = self.now();
        let mut leader = self.nodes[to].leader.take();
        if let Some(leader) = &mut leader {
            let (mut out, tree, id) = (Vec::new(), &self.nodes[to].tree, self.nodes[from].id);
            let given = answer.clone();
            leader.on_exchange(now, id, LEAVES_LOG2, &mut out, |exchange, effects| exchange.on_answer(now, tree, given, effects));
            self.lead_on(to, leader, out);
        }
        self.nodes[to].leader = leader.filter(|leader| !leader.is_over());
        if let Some((peer, mut exchange)) = self.nodes[to].exchange.take_if(|(peer, _)| *peer == from) {
            let mut effects = Vec::new();
            exchange.on_answer(now, &self.nodes[to].tree, answer, &mut effects);
            self.exchange_on(to, peer, exchange, effects);
        }
    }

    fn on_forget(&mut self, from: usize, to: usize, message: Message) {
        let now = self.now();
        if let Some(effect) = self.nodes[to].follower.on_message(self.now_ms, &message) {
            self.follow(from, to, effect);
        }
        let Some(mut leader) = self.nodes[to].leader.take() else { return };
        let mut out = Vec::new();
        leader.on_message(now, self.nodes[from].id, &message, LEAVES_LOG2, &mut out);
        self.lead_on(to, &mut leader, out);
        self.nodes[to].leader = Some(leader).filter(|leader| !leader.is_over());
    }

    fn follow(&mut self, leader: usize, at: usize, effect: FollowerEffect) {
        match effect {
            FollowerEffect::Answer(message) => self.send(at, leader, Body::Forget(message)),
            effect => self.nodes[at].persisting.push((leader, effect)),
        }
    }

    /// What was being made durable is.
    pub fn persisted(&mut self, at: usize) {
        for (leader, effect) in std::mem::take(&mut self.nodes[at].persisting) {
            let node = &mut self.nodes[at];
            let then = match effect {
                FollowerEffect::PersistFence(fence) => {
                    node.marks.fence = node.marks.fence.max(fence);
                    node.follower.on_fence_durable(fence)
                }
                FollowerEffect::PersistFloor(floor) => {
                    node.marks = node.marks.inherit([Marks { fence: floor, floor }], None);
                    node.tree.mark_all();
                    node.follower.on_floor_durable(floor)
                }
                answer @ FollowerEffect::Answer(_) => Some(answer),
            };
            self.say(&format!("{} has made durable: {}", name(at), marks(self.nodes[at].marks)));
            if let Some(effect) = then {
                self.follow(leader, at, effect);
            }
        }
    }

    /// What the effects of one exchange need is there at once; what comes of it is carried on until a question is on its way.
    fn own_work(&mut self, at: usize, effect: Effect, road: Road) -> OwnWork {
        match effect {
            Effect::List(span) => OwnWork::Listed(self.list(at, &span)),
            Effect::Copy { store, read } => {
                let refused = self.store_all(at, &store, road);
                let (looked_at, cells) = self.read(at, &read);
                OwnWork::Copied(refused, looked_at, cells)
            }
            effect => OwnWork::Not(effect),
        }
    }

    fn exchange_on(&mut self, at: usize, with: usize, mut exchange: Exchange, mut effects: Vec<Effect>) {
        let now = self.now();
        while let Some(effect) = effects.pop() {
            match self.own_work(at, effect, Road::Copy) {
                OwnWork::Not(Effect::Ask(ask)) => self.send(at, with, Body::Ask(ask)),
                OwnWork::Not(Effect::Over(outcome)) => {
                    self.say(&format!("{} and {}: {outcome:?}", name(at), name(with)));
                    return self.compared.push((at, with, outcome));
                }
                work => work.give(now, &self.nodes[at].tree, &mut exchange, &mut effects),
            }
        }
        self.nodes[at].exchange = Some((with, exchange));
    }

    fn lead_on(&mut self, at: usize, leader: &mut Leader, mut out: Vec<LeaderEffect>) {
        let now = self.now();
        let road = Road::Repair(leader.session().id);
        while let Some(effect) = out.pop() {
            match effect {
                LeaderEffect::Send { to, message } => self.send(at, to as usize - 1, Body::Forget(message)),
                LeaderEffect::Done => {
                    self.done += 1;
                    self.say(&format!("{} has led its session to the end", name(at)));
                }
                LeaderEffect::Void(why) => {
                    self.voided += 1;
                    self.last_void = Some(why);
                    self.never_equal |= why == Void::NeverEqual;
                    self.say(&format!("{}'s session is void: {why:?}", name(at)));
                }
                LeaderEffect::Compare { with, effect } => match self.own_work(at, effect, road) {
                    OwnWork::Not(Effect::Ask(ask)) => self.send(at, with as usize - 1, Body::Ask(ask)),
                    work => {
                        let tree = &self.nodes[at].tree;
                        leader.on_exchange(now, with, LEAVES_LOG2, &mut out, |exchange, effects| work.give(now, tree, exchange, effects));
                    }
                },
            }
        }
    }

    // What may happen.

    pub fn tick(&mut self, at: usize) {
        let now = self.now();
        if let Some(mut leader) = self.nodes[at].leader.take() {
            let mut out = Vec::new();
            leader.on_tick(now, CREDIT, LEAVES_LOG2, &mut out);
            self.lead_on(at, &mut leader, out);
            self.nodes[at].leader = Some(leader).filter(|leader| !leader.is_over());
        }
        if let Some((with, mut exchange)) = self.nodes[at].exchange.take() {
            let mut effects = Vec::new();
            exchange.on_tick(now, CREDIT, &mut effects);
            self.exchange_on(at, with, exchange, effects);
        }
    }

    pub fn start_repair(&mut self, at: usize, with: usize) {
        let (mut effects, number) = (Vec::new(), self.prng.next_u64());
        let exchange = Exchange::new(self.now(), number, self.scope(), None, LEAVES_LOG2, None, &mut effects);
        self.exchange_on(at, with, exchange, effects);
    }

    pub fn start_forgetting(&mut self, at: usize) {
        let id = SessionId { number: self.now_ms << HLC_COUNTER_BITS | self.prng.below(1 << HLC_COUNTER_BITS), leader: at as u64 + 1 };
        let session = Session { id, up_to: up_to(self.now_ms, LAG_MS) };
        let replicas = self.everybody().iter().map(|node| *node as u64 + 1).collect();
        let plan = Plan { me: at as u64 + 1, scope: self.scope(), session, replicas, planted: self.planted };
        let mut out = Vec::new();
        let mut leader = Leader::new(self.now(), plan, LEAVES_LOG2, &mut out);
        self.lead_on(at, &mut leader, out);
        self.nodes[at].leader = Some(leader).filter(|leader| !leader.is_over());
    }

    /// A write in two rounds (P1); the first is answered at once by a majority that is up. `kind`: 0 deletes, 1 tells a deadline.
    pub fn write(&mut self, coordinator: usize, key: u64, kind: u64) {
        let place = place(key);
        let Some(majority) = self.some_majority() else { return };
        let newest = majority.iter().map(|at| self.answer(*at, &place).0.max(self.nodes[*at].follower.marks().absent(self.planted)));
        let newest =
            majority.iter().filter_map(|at| self.nodes[*at].cells.get(&place)).map(|held| held.digest.newest()).chain(newest).max();
        let hlc = (newest.unwrap_or_default().hlc() + 1).max(self.now_ms << HLC_COUNTER_BITS);
        let op = self.ops.len();
        let version = Version::put(hlc, op as u16);
        let value = if kind == 1 { Version::ZERO } else { version };
        let digest = Digest { value, is_gone: kind == 0, expiry: version };
        let pending =
            self.moving.map_or(Vec::new(), |(old, new)| self.owners.iter().filter(|node| **node != old).copied().chain([new]).collect());
        let groups = [self.owners.clone(), pending];
        self.ops.push(Op { place: place.clone(), digest, groups, acks: BTreeSet::new(), is_acknowledged: false });
        let cell = CellCopy { place, digest, cell: (op as u32).to_le_bytes().to_vec() };
        for to in self.everybody() {
            self.send(coordinator, to, Body::Put { op, epoch: self.epoch, cell: cell.clone() });
            if self.prng.one_in(8) {
                self.late.push(Packet { from: coordinator, to, body: Body::Copy(cell.clone()) });
            }
        }
    }

    /// What a replica answers to a read of the value: its version, and whether it lives (G4).
    fn answer(&self, at: usize, place: &Place) -> (Version, bool) {
        let node = &self.nodes[at];
        let held = node.cells.get(place).filter(|held| held.digest.value > Version::ZERO);
        held.map_or((node.follower.marks().absent(self.planted), false), |held| (held.digest.value, held.is_live()))
    }

    fn some_majority(&mut self) -> Option<Vec<usize>> {
        let mut up: Vec<usize> = self.owners.iter().copied().filter(|at| self.nodes[*at].is_up).collect();
        if up.len() > 2 {
            up.swap_remove(self.prng.below(3) as usize);
        }
        (up.len() == 2).then_some(up)
    }

    /// A read at QUORUM: what is wrong with it, if anything.
    pub fn read_checked(&mut self, key: u64) -> Result<(), String> {
        let place = place(key);
        let Some(majority) = self.some_majority() else { return Ok(()) };
        let (version, is_live) = majority.iter().map(|at| self.answer(*at, &place)).max().unwrap_or_default();
        let writes = || self.ops.iter().filter(|op| op.place == place && op.digest.value > Version::ZERO);
        let Some(acknowledged) = writes().filter(|op| op.is_acknowledged).max_by_key(|op| op.digest.value) else { return Ok(()) };
        let (least, is_deleted) = (acknowledged.digest.value, acknowledged.digest.is_gone);
        if is_live && version < least {
            let what = if is_deleted { "a deleted value is back" } else { "an older value is back" };
            return Err(format!("{what}: {version:?} below {least:?}"));
        }
        // Gone, though the newest acknowledged write was a value: by a newer delete, or wrongly.
        let later_delete = writes().any(|op| op.digest.is_gone && op.digest.value > least);
        if !is_live && !is_deleted && !later_delete {
            return Err(format!("an acknowledged value is lost: {least:?}, read as gone at {version:?}"));
        }
        Ok(())
    }

    pub fn crash(&mut self, at: usize) {
        let follower = Follower::new(self.scope(), self.nodes[at].marks, LAG_MS, self.planted);
        let node = &mut self.nodes[at];
        (node.is_up, node.follower, node.tree) = (false, follower, Tree::new(0, VNODES, LEAVES_LOG2));
        (node.exchange, node.leader) = (None, None);
        node.persisting.clear();
        self.say(&format!("{} crashes", name(at)));
    }

    pub fn restart(&mut self, at: usize) {
        let epoch = self.epoch;
        let node = &mut self.nodes[at];
        node.is_up = true;
        node.follower.on_epoch(epoch);
    }

    /// Drops what is dead at or below the floor (G3).
    pub fn drop_dead(&mut self, at: usize) {
        let node = &mut self.nodes[at];
        let floor = node.marks.floor;
        let before = node.cells.len();
        node.cells.retain(|_, held| held.is_live() || held.digest.newest() > floor);
        self.dropped += (before - node.cells.len()) as u32;
    }

    fn next_epoch(&mut self) {
        self.epoch += 1;
        let epoch = self.epoch;
        for at in 0..self.nodes.len() {
            if !self.nodes[at].is_up {
                continue;
            }
            self.nodes[at].follower.on_epoch(epoch);
            self.nodes[at].exchange = None;
            if let Some(mut leader) = self.nodes[at].leader.take() {
                let mut out = Vec::new();
                leader.on_epoch(epoch, &mut out);
                self.lead_on(at, &mut leader, out);
            }
        }
    }

    /// A new node becomes the pending owner in the place of `old`.
    pub fn start_move(&mut self, old: usize) {
        self.add_node();
        self.moving = Some((old, self.nodes.len() - 1));
        self.next_epoch();
    }

    /// The pending owner has joined a majority of the old owners, and takes over (M2).
    pub fn finish_move(&mut self) {
        let Some((old, new)) = self.moving else { return };
        let Some(majority) = self.some_majority() else { return };
        let joined = majority.iter().chain([&new]);
        let places: BTreeSet<Place> = joined.flat_map(|at| self.nodes[*at].cells.keys().cloned()).collect();
        for place in places {
            let held = |at: &usize| self.nodes[*at].cells.get(&place).copied();
            let has_value = |at: &&usize| held(at).is_some_and(|held| held.digest.value > Version::ZERO);
            let absent = majority.iter().filter(|at| !has_value(at)).map(|at| self.nodes[*at].follower.marks().absent(self.planted)).max();
            let mut joined = self.nodes[new].cells.get(&place).copied().unwrap_or_default();
            for theirs in majority.iter().filter_map(held) {
                if (theirs.digest.value, !theirs.digest.is_gone) > (joined.digest.value, !joined.digest.is_gone) {
                    joined = Held { digest: Digest { expiry: joined.digest.expiry, ..theirs.digest }, ..theirs };
                }
                joined.digest.expiry = joined.digest.expiry.max(theirs.digest.expiry);
            }
            if Some(joined.digest.value) > absent {
                self.nodes[new].cells.insert(place, joined);
            } else {
                self.nodes[new].cells.remove(&place);
            }
        }
        let theirs: Vec<Marks> = majority.iter().map(|at| self.nodes[*at].marks).collect();
        let node = &mut self.nodes[new];
        node.marks = node.marks.inherit(theirs, self.planted);
        node.follower = Follower::new(Scope { namespace: 1, vnode: 0, epoch: self.epoch }, node.marks, LAG_MS, self.planted);
        node.tree.mark_all();
        let absent = node.marks.floor;
        node.cells.retain(|_, held| held.is_live() || held.digest.newest() > absent);
        self.owners.iter_mut().filter(|owner| **owner == old).for_each(|owner| *owner = new);
        self.moving = None;
        self.crash(old);
        self.next_epoch();
    }

    // Text.

    pub fn say(&mut self, line: &str) {
        if let Some(trace) = &mut self.trace {
            writeln!(trace, "{line}").expect("a string takes it");
        }
    }

    fn describe(&self, from: usize, to: usize, body: &Body) -> Option<String> {
        self.trace.as_ref()?;
        let what = match body {
            Body::Put { cell, .. } => format!("put {}", cell_text(cell)),
            Body::PutAck { .. } => "stored".to_owned(),
            Body::Copy(cell) => format!("copy {}", cell_text(cell)),
            Body::Ask(ask) => super::repair_tests::question_text(&ask.question),
            Body::Answer(answer) => super::repair_tests::reply_text(&answer.reply),
            Body::Forget(message) => format!("{:?} {}", message.body, version_text(message.session.up_to)),
        };
        Some(format!("{} → {}: {what}", name(from), name(to)))
    }
}

/// What our own cells gave to an exchange.
enum OwnWork {
    Listed(Listing),
    Copied(u32, usize, Vec<CellCopy>),
    /// That is for somebody else.
    Not(Effect),
}

impl OwnWork {
    fn give(self, now: Mono, tree: &Tree, exchange: &mut Exchange, out: &mut Vec<Effect>) {
        match self {
            OwnWork::Listed(listing) => exchange.on_listed(now, listing, out),
            OwnWork::Copied(refused, looked_at, cells) => exchange.on_copied(now, tree, refused, looked_at, cells, out),
            OwnWork::Not(effect) => panic!("{effect:?} is not our own work"),
        }
    }
}

pub(super) fn name(at: usize) -> char {
    (b'A' + at as u8) as char
}

/// Seconds since the world began.
pub(super) fn version_text(version: Version) -> String {
    match version.hlc() >> HLC_COUNTER_BITS {
        0 => "0".to_owned(),
        ms => format!("{:.1}s", (ms as f64 - 1_000_000.0) / 1000.0),
    }
}

fn marks(marks: Marks) -> String {
    format!("fence {} floor {}", version_text(marks.fence), version_text(marks.floor))
}

pub(super) fn digest_text(digest: &Digest) -> String {
    let gone = if digest.is_gone { "†" } else { "" };
    format!("{gone}{}", version_text(digest.newest()))
}

pub(super) fn key_text(place: &Place) -> String {
    (0..64).find(|key| self::place(*key) == *place).map_or("?".to_owned(), |key| format!("k{key}"))
}

pub(super) fn cell_text(copy: &CellCopy) -> String {
    format!("{}@{}", key_text(&copy.place), digest_text(&copy.digest))
}
