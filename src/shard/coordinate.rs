//! Requests that this shard coordinates: the state machines of `cluster::coordinator` with hands.
//!
//! Each request in flight has a slot. An event (an answer from a link, from this core's own log or disk, a broken link, time, a topology)
//! goes to its machine, and what comes out is done at once: a message is written to a link and leaves at the end of the turn; what concerns
//! this node itself is done here, by the same rules (`replicate`), and comes back as an event. A put that was answered stays until every
//! replica has spoken or its deadline has come, unless slots are short.
//!
//! The id of a frame names slot, generation and attempt, so an answer that is late meets nobody. Clocks (P1, first round) are asked for in
//! one frame a link a turn.

use super::admit::Kept;
use super::budget::{Budget, Lease};
use super::cluster::Cluster;
use super::conn::Promise;
use super::peers::{At, Link};
use super::replicate::{AsAsked, Incoming};
use super::session::within;
use super::{Origin, Shard, Ticket};
use crate::base::record::{Body, Cell as Record, Expiry, Kind, NamespaceId, Token, Version};
use crate::base::time::{Mono, hlc_ms};
use crate::cluster::coordinator::clocks::Clocks;
use crate::cluster::coordinator::get::{Get, GetStart};
use crate::cluster::coordinator::put::{Put, PutStart};
use crate::cluster::coordinator::{Effect, From, Levels, Outcome, Turn};
use crate::cluster::topology::Topology;
use crate::io::signal::Signal;
use crate::limits::{CHUNK_BYTES, CORE_REQUESTS_MAX};
use crate::wire::peer::{Head, Message, OwnedCell, Place, Refusal, Road, encode};
use crate::wire::peer_moves::MoveMessage;
use crate::wire::peer_repair::RepairMessage;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// How often requests in flight are looked through for what is due.
const TICK: Duration = Duration::from_millis(1);
/// The frame asks for a clock; below, the question's number.
const CLOCK_BIT: u64 = 1 << 63;
const SLOT_BITS: u32 = 24;
const GENERATION_BITS: u32 = 32;
const ATTEMPT_MASK: u32 = 0x1F;
/// A hint; below, its number.
const HINT_BIT: u64 = 1 << 61;
/// A task asked; below, its number.
const ASK_BIT: u64 = 1 << 62;
/// Tasks of one core that wait for answers.
const ASKS_MAX: usize = 1024;
/// Nobody waits for the answer.
const NOBODY: u64 = HINT_BIT - 1;
/// Requests in flight, answered puts that linger among them: what clients may have waiting, and as many that a request of many keys is
/// taken apart into.
const RUNNING_MAX: usize = 4 * CORE_REQUESTS_MAX;
const _: () = assert!(RUNNING_MAX < 1 << SLOT_BITS);

/// Names a request in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestId {
    slot: u32,
    generation: u32,
}

/// The id of a frame with a hint.
pub(super) fn hint_frame(number: u64) -> u64 {
    HINT_BIT | number & (HINT_BIT - 1)
}

impl RequestId {
    /// Of a question that one attempt asks.
    fn frame_id(self, attempt: u32) -> u64 {
        let attempt = u64::from(attempt & ATTEMPT_MASK) << (SLOT_BITS + GENERATION_BITS);
        u64::from(self.slot) | u64::from(self.generation) << SLOT_BITS | attempt
    }

    fn of_frame(id: u64) -> (RequestId, u32) {
        let slot = id as u32 & ((1 << SLOT_BITS) - 1);
        (RequestId { slot, generation: (id >> SLOT_BITS) as u32 }, (id >> (SLOT_BITS + GENERATION_BITS)) as u32 & ATTEMPT_MASK)
    }
}

/// What a write stores.
pub enum Stored<'a> {
    Value {
        bytes: &'a [u8],
        ttl_ms: u64,
    },
    Tombstone,
    /// Another deadline for the value of this version, so long from the new version's clock; 0 takes it away. The value goes along: a
    /// replica that missed it, or has reclaimed it since, would else have a deadline and no value.
    Deadline {
        ttl_ms: u64,
        of: Version,
        bytes: &'a [u8],
    },
}

/// The same without the bytes, which lie behind the key.
#[derive(Clone, Copy)]
enum What {
    Value { ttl_ms: u64 },
    Tombstone,
    Deadline { ttl_ms: u64, of: Version },
}

/// What the client asked to be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    Value,
    Ttl,
    Written { announce: bool },
}

/// Who hears of a request's end.
pub enum Then {
    Reply {
        ticket: Ticket,
        told: Told,
        held: OnBehalf,
    },
    /// A task of this core.
    Wake(Rc<Waiting>),
    /// It was told.
    Nothing,
}

/// What a get was asked for, for who answers it.
#[derive(Clone, Copy)]
pub struct AsRead {
    pub told: Told,
    pub levels: Levels,
    pub namespace: NamespaceId,
    pub deadline: Mono,
}

/// Whom the answer to a get is for, and what is held until it is given.
pub struct Gathered {
    pub ticket: Ticket,
    pub held: OnBehalf,
    pub gathered: Option<Lease>,
}

/// What is held on behalf of a client until its answer is made; given back when dropped.
#[derive(Default)]
pub struct OnBehalf {
    pub _request: Option<Kept>,
    pub _room: Option<Promise>,
}

/// A task that waits for a request.
#[derive(Default)]
pub struct Waiting {
    outcome: Cell<Option<Outcome>>,
    cell: RefCell<Option<OwnedCell>>,
    /// Of a large one, for as long as this lives.
    gathered: Cell<Option<Lease>>,
    done: Signal,
}

impl Waiting {
    pub async fn outcome(&self) -> Outcome {
        self.done.until(|| self.outcome.get().is_some()).await;
        self.outcome.get().expect("just seen")
    }

    /// After `Outcome::Read`; `None` is absent.
    pub fn take_cell(&self) -> Option<OwnedCell> {
        self.cell.take()
    }

    fn end(&self, outcome: Outcome) {
        self.outcome.set(Some(outcome));
        self.done.raise();
    }
}

#[expect(clippy::large_enum_variant, reason = "each lies in an allocation of its own already")]
enum Machine {
    Put(Put),
    Get(Get),
}

struct Running {
    machine: Machine,
    namespace: NamespaceId,
    token: Token,
    /// The key, and behind it a put's value.
    bytes: Vec<u8>,
    key_len: usize,
    stored: What,
    levels: Levels,
    deadline: Mono,
    then: Then,
    /// For a large value that was gathered.
    gathered: Option<Lease>,
}

impl Running {
    fn attempt(&self) -> u32 {
        match &self.machine {
            Machine::Put(put) => put.attempt(),
            Machine::Get(get) => get.attempt(),
        }
    }

    fn is_over(&self) -> bool {
        match &self.machine {
            Machine::Put(put) => put.is_over(),
            Machine::Get(get) => get.is_over(),
        }
    }

    fn next_wake(&self) -> Mono {
        let wake = match &self.machine {
            Machine::Put(put) => put.next_wake(),
            Machine::Get(get) => get.next_wake(),
        };
        wake.unwrap_or(Mono(u64::MAX))
    }

    fn epoch(&self) -> u64 {
        match &self.machine {
            Machine::Put(put) => put.roster().epoch(),
            Machine::Get(get) => get.roster().epoch(),
        }
    }

    fn concerns(&self, node: u64) -> bool {
        match &self.machine {
            Machine::Put(put) => put.roster().nodes().contains(&node),
            Machine::Get(get) => get.roster().nodes().contains(&node),
        }
    }

    fn place(&self) -> Place<'_> {
        Place { namespace: self.namespace, key: &self.bytes[..self.key_len], kind: Kind::Head, element: b"" }
    }

    /// What `Store` and `Repair` send.
    fn cell(&self) -> Option<Record<'_>> {
        match &self.machine {
            Machine::Get(get) => get.cell(),
            Machine::Put(put) => {
                let version = put.version()?;
                let deadline = |ttl_ms: u64| if ttl_ms == 0 { 0 } else { hlc_ms(version.hlc()).saturating_add(ttl_ms) };
                Some(match self.stored {
                    What::Value { ttl_ms } => Record::value(version, &self.bytes[self.key_len..]).with_deadline(deadline(ttl_ms)),
                    What::Tombstone => Record::tombstone(version),
                    What::Deadline { ttl_ms, of } => {
                        let expiry = Expiry { version, deadline_ms: deadline(ttl_ms) };
                        Record { expiry, ..Record::value(of, &self.bytes[self.key_len..]) }
                    }
                })
            }
        }
    }
}

#[derive(Default)]
struct Slot {
    generation: u32,
    running: Option<Box<Running>>,
}

/// Who waits for a clock.
#[derive(Clone, Copy, Debug)]
struct Asker {
    id: RequestId,
    attempt: u32,
}

/// Questions of tasks that wait for their answers.
#[derive(Default)]
struct Asks {
    next: u64,
    waiting: Vec<(u64, u32, Rc<Asked>)>,
}

/// An answer to a task.
enum Answered {
    /// Its frame.
    Frame(Vec<u8>),
    Repair(Head, RepairMessage),
    Move(MoveMessage),
}

/// One of them.
#[derive(Default)]
struct Asked {
    /// `None` inside: there will be none.
    answer: Cell<Option<Option<Answered>>>,
    done: Signal,
}

/// All requests in flight of one core.
pub struct Requests {
    slots: RefCell<Vec<Slot>>,
    free: RefCell<Vec<u32>>,
    /// When each slot's machine wants to be woken.
    wakes: RefCell<Vec<Mono>>,
    running: Cell<usize>,
    /// Puts that were answered and wait for the last replicas, the oldest first.
    lingering: RefCell<VecDeque<RequestId>>,
    clocks: RefCell<Clocks<Asker>>,
    asked: Cell<bool>,
    /// Values of gets that are being gathered.
    gathered: Rc<Budget>,
    asks: RefCell<Asks>,
    began: Signal,
    spare: RefCell<Vec<Effect>>,
}

/// A request to begin.
pub struct Begin<'a> {
    pub namespace: NamespaceId,
    pub token: Token,
    pub key: &'a [u8],
    pub levels: Levels,
    pub deadline: Mono,
}

/// What a put has beside.
pub struct BeginPut<'a> {
    pub stored: Stored<'a>,
    /// A retry's.
    pub version: Option<Version>,
    pub stamp_only: bool,
}

impl Requests {
    /// `seed` of the tables, see `base::map`; values that are being gathered have so many bytes at most.
    pub fn new(seed: u64, gathered_bytes_max: usize) -> Requests {
        Requests {
            slots: RefCell::default(),
            free: RefCell::default(),
            wakes: RefCell::default(),
            running: Cell::new(0),
            lingering: RefCell::default(),
            clocks: RefCell::new(Clocks::new(seed)),
            asked: Cell::new(false),
            gathered: Budget::new(gathered_bytes_max),
            asks: RefCell::default(),
            began: Signal::default(),
            spare: RefCell::default(),
        }
    }

    /// Requests in flight, answered puts that linger among them.
    pub fn running(&self) -> usize {
        self.running.get()
    }

    pub fn begin_get(&self, shard: &Rc<Shard>, cluster: &Cluster, what: &Begin<'_>, then: Then) {
        if self.running.get() >= RUNNING_MAX {
            return refuse(shard, then);
        }
        let roster = cluster.roster(what.namespace, what.token);
        let start = GetStart { roster, levels: what.levels, deadline: what.deadline, planted: cluster.planted };
        let mut out = self.spare.take();
        let machine = Machine::Get(cluster.turn(shard, &mut out, |turn| Get::start(turn, start)));
        self.begin(shard, cluster, what, (machine, What::Tombstone, what.key.to_vec()), then, out);
    }

    pub fn begin_put(&self, shard: &Rc<Shard>, cluster: &Cluster, what: &Begin<'_>, put: &BeginPut<'_>, then: Then) {
        if self.running.get() >= RUNNING_MAX {
            return refuse(shard, then);
        }
        let start = PutStart {
            roster: cluster.roster(what.namespace, what.token),
            levels: what.levels,
            version: put.version,
            writer: cluster.me as u16,
            deadline: what.deadline,
            stamp_only: put.stamp_only,
            planted: cluster.planted,
        };
        let (value, stored): (&[u8], _) = match put.stored {
            Stored::Value { bytes, ttl_ms } => (bytes, What::Value { ttl_ms }),
            Stored::Tombstone => (b"", What::Tombstone),
            Stored::Deadline { ttl_ms, of, bytes } => (bytes, What::Deadline { ttl_ms, of }),
        };
        let mut bytes = Vec::with_capacity(what.key.len() + value.len());
        bytes.extend_from_slice(what.key);
        bytes.extend_from_slice(value);
        let mut out = self.spare.take();
        let machine = Machine::Put(cluster.turn(shard, &mut out, |turn| Put::start(turn, start)));
        self.begin(shard, cluster, what, (machine, stored, bytes), then, out);
    }

    fn begin(
        &self,
        shard: &Rc<Shard>,
        cluster: &Cluster,
        what: &Begin<'_>,
        (machine, stored, bytes): (Machine, What, Vec<u8>),
        then: Then,
        out: Vec<Effect>,
    ) {
        let &Begin { namespace, token, deadline, levels, .. } = what;
        let running = Running { machine, namespace, token, bytes, key_len: what.key.len(), stored, levels, deadline, then, gathered: None };
        let id = self.take_slot();
        self.running.set(self.running.get() + 1);
        self.carry_out(shard, cluster, id, Box::new(running), out);
        self.began.raise();
        while self.lingering.borrow().len() > CORE_REQUESTS_MAX / 2 {
            let Some(oldest) = self.lingering.borrow_mut().pop_front() else { break };
            self.with_put(shard, cluster, oldest, |put, turn| put.let_go(turn));
        }
    }

    fn take_slot(&self) -> RequestId {
        let mut slots = self.slots.borrow_mut();
        let slot = self.free.borrow_mut().pop().unwrap_or_else(|| {
            slots.push(Slot::default());
            self.wakes.borrow_mut().push(Mono(u64::MAX));
            slots.len() as u32 - 1
        });
        RequestId { slot, generation: slots[slot as usize].generation }
    }

    /// Out of its slot for the while that it is dealt with.
    fn take(&self, id: RequestId) -> Option<Box<Running>> {
        let mut slots = self.slots.borrow_mut();
        let slot = slots.get_mut(id.slot as usize)?;
        if slot.generation == id.generation { slot.running.take() } else { None }
    }

    /// Something happened to a request.
    fn drive(&self, shard: &Rc<Shard>, cluster: &Cluster, id: RequestId, event: impl FnOnce(&mut Machine, &mut Turn<'_>)) {
        let Some(mut running) = self.take(id) else { return };
        let mut out = self.spare.take();
        cluster.turn(shard, &mut out, |turn| event(&mut running.machine, turn));
        self.carry_out(shard, cluster, id, running, out);
    }

    fn with_put(&self, shard: &Rc<Shard>, cluster: &Cluster, id: RequestId, event: impl FnOnce(&mut Put, &mut Turn<'_>)) {
        self.drive(shard, cluster, id, |machine, turn| {
            if let Machine::Put(put) = machine {
                event(put, turn);
            }
        });
    }

    /// Does what came out, and what comes of that, until nothing does; then the request goes back into its slot, or ends.
    fn carry_out(&self, shard: &Rc<Shard>, cluster: &Cluster, id: RequestId, mut running: Box<Running>, mut out: Vec<Effect>) {
        let mut at = 0;
        while let Some(&effect) = out.get(at) {
            at += 1;
            self.perform(shard, cluster, id, &mut running, effect, &mut out);
        }
        out.clear();
        self.spare.replace(out);
        if running.is_over() {
            self.running.set(self.running.get() - 1);
            let mut slots = self.slots.borrow_mut();
            let slot = &mut slots[id.slot as usize];
            slot.generation = slot.generation.wrapping_add(1);
            self.wakes.borrow_mut()[id.slot as usize] = Mono(u64::MAX);
            self.free.borrow_mut().push(id.slot);
        } else {
            self.wakes.borrow_mut()[id.slot as usize] = running.next_wake();
            self.slots.borrow_mut()[id.slot as usize].running = Some(running);
        }
    }

    fn perform(&self, shard: &Rc<Shard>, cluster: &Cluster, id: RequestId, running: &mut Running, effect: Effect, out: &mut Vec<Effect>) {
        match effect {
            Effect::AskClock { to } if is_here(shard, cluster, running, to) => {
                let hlc = shard.engine.with_clock(|clock| {
                    clock.look(shard.io.wall_ms());
                    clock.last()
                });
                self.put_event(shard, cluster, running, out, |put, turn, from| put.on_clock(turn, from, hlc));
            }
            Effect::AskClock { to } => self.ask_clock(shard, cluster, id, running, to, out),
            Effect::Store { to, road } if is_here(shard, cluster, running, to) => self.store_here(shard, cluster, id, running, road, out),
            Effect::Store { to, road } => {
                let Some(cell) = running.cell() else { return };
                let message = Message::Store { place: running.place(), road, cell };
                if !self.tell(shard, cluster, running, to, id.frame_id(running.attempt()), &message) {
                    self.gone(shard, cluster, running, to, out);
                }
            }
            Effect::Read { to, full } if is_here(shard, cluster, running, to) => self.read_here(shard, cluster, id, running, full, out),
            Effect::Read { to, full } => {
                let message = Message::Read { place: running.place(), full, now_ms: shard.io.wall_ms() };
                cluster.detector.borrow_mut().asked(shard.io.now(), to);
                if !self.tell(shard, cluster, running, to, id.frame_id(running.attempt()), &message) {
                    self.gone(shard, cluster, running, to, out);
                }
            }
            Effect::Stamped { version } => {
                if let Then::Reply { ticket, told: Told::Written { announce: true }, .. } = &running.then {
                    shard.announce(ticket, version);
                }
            }
            Effect::Answer(outcome) => self.answer(shard, id, running, outcome),
            Effect::Hint { to } => {
                if let Some(cell) = running.cell().filter(|_| to != cluster.me) {
                    cluster.handoff.keep(shard, to, &running.place(), &cell);
                }
            }
            Effect::Repair { to } if is_here(shard, cluster, running, to) => {
                if let Some(cell) = running.cell() {
                    let head = cluster.head(shard.io.now(), Some(running.deadline));
                    let incoming = Incoming { head, place: &running.place(), road: Road::Copy, cell: &cell };
                    let _ = shard.replicate_store(cluster, &incoming, || (Ticket { origin: Origin::Nobody, id: 0 }, running.deadline));
                }
            }
            Effect::Repair { to } => {
                if let Some(cell) = running.cell() {
                    let message = Message::Store { place: running.place(), road: Road::Copy, cell };
                    self.tell(shard, cluster, running, to, NOBODY, &message);
                }
            }
            Effect::Answered { node, took } => cluster.detector.borrow_mut().answered(shard.io.now(), node, took),
            Effect::GaveUp { node, waited } => cluster.detector.borrow_mut().gave_up(shard.io.now(), node, waited),
            Effect::Skewed { node, ahead_ms } => {
                shard.notice(node, "clock", || {
                    format!("the clock of node {node} is {ahead_ms} ms ahead of this node's: what it stamps is refused")
                });
            }
            Effect::Correct { node } => {
                self.tell(shard, cluster, running, node, NOBODY, &Message::Correct);
            }
            Effect::FetchTopology { node, .. } => shard.fetch_topology(cluster, node),
        }
    }

    /// Sends a message about a request; false: the node cannot be told.
    fn tell(&self, shard: &Rc<Shard>, cluster: &Cluster, running: &Running, to: u64, frame: u64, message: &Message<'_>) -> bool {
        let Some(core) = cluster.core_at(to, running.token) else { return false };
        let Ok(link) = shard.link(cluster, At { node: to, core }) else { return false };
        let head = Head { epoch: running.epoch(), ..cluster.head(shard.io.now(), Some(running.deadline)) };
        shard.say(cluster, &link, frame, head, message);
        true
    }

    fn ask_clock(&self, shard: &Rc<Shard>, cluster: &Cluster, id: RequestId, running: &mut Running, to: u64, out: &mut Vec<Effect>) {
        let asker = Asker { id, attempt: running.attempt() };
        let link = cluster.core_at(to, running.token).and_then(|core| shard.link(cluster, At { node: to, core }).ok());
        match link.map(|link| self.clocks.borrow_mut().ask(u64::from(link.index), asker)) {
            Some(Ok(())) => self.asked.set(true),
            _ => self.gone(shard, cluster, running, to, out),
        }
    }

    fn gone(&self, shard: &Rc<Shard>, cluster: &Cluster, running: &mut Running, node: u64, out: &mut Vec<Effect>) {
        cluster.turn(shard, out, |turn| match &mut running.machine {
            Machine::Put(put) => put.on_gone(turn, node),
            Machine::Get(get) => get.on_gone(turn, node),
        });
    }

    fn put_event(
        &self,
        shard: &Rc<Shard>,
        cluster: &Cluster,
        running: &mut Running,
        out: &mut Vec<Effect>,
        event: impl FnOnce(&mut Put, &mut Turn<'_>, From),
    ) {
        let from = From { node: cluster.me, epoch: cluster.epoch(), attempt: running.attempt() };
        if let Machine::Put(put) = &mut running.machine {
            cluster.turn(shard, out, |turn| event(put, turn, from));
        }
    }

    /// This node is a replica itself.
    fn store_here(&self, shard: &Rc<Shard>, cluster: &Cluster, id: RequestId, running: &mut Running, road: Road, out: &mut Vec<Effect>) {
        let Some(cell) = running.cell() else { return };
        let head = Head { epoch: running.epoch(), ..cluster.head(shard.io.now(), Some(running.deadline)) };
        let (attempt, deadline) = (running.attempt(), running.deadline);
        let incoming = Incoming { head, place: &running.place(), road, cell: &cell };
        let later = || (Ticket { origin: Origin::Local(id), id: u64::from(attempt) }, deadline);
        let Some((message, seq)) = shard.replicate_store(cluster, &incoming, later) else { return };
        if seq > shard.engine.durable() {
            return shard.hold_local(id, attempt, running.deadline, seq, &message);
        }
        let from = From { node: cluster.me, epoch: cluster.epoch(), attempt };
        cluster.turn(shard, out, |turn| on_message(&mut running.machine, turn, from, &message));
    }

    fn read_here(&self, shard: &Rc<Shard>, cluster: &Cluster, id: RequestId, running: &mut Running, full: bool, out: &mut Vec<Effect>) {
        let head = Head { epoch: running.epoch(), ..cluster.head(shard.io.now(), Some(running.deadline)) };
        let attempt = running.attempt();
        let from = From { node: cluster.me, epoch: cluster.epoch(), attempt };
        if let Err(why) = shard.may_read(cluster, head, &running.place()) {
            return cluster.turn(shard, out, |turn| on_message(&mut running.machine, turn, from, &Message::Refused { why }));
        }
        let key = shard.key(running.namespace, &running.bytes[..running.key_len]);
        let (deadline, durability) = (running.deadline, shard.namespace_durability(running.namespace).unwrap_or_default());
        let now_ms = shard.io.wall_ms();
        let (machine, place) = (&mut running.machine, Place { namespace: running.namespace, key: key.key, kind: Kind::Head, element: b"" });
        let peeked = shard.engine.peek(key, |cell, settled| {
            if full && matches!(cell, Some(Record { body: Body::Chunked { .. }, .. })) {
                return false;
            }
            let cell = crate::cluster::replica::Replica::shown(cell.copied(), now_ms, || shard.absent(&place));
            let seq = super::execute::shown_after(durability, settled);
            let mut scratch = Vec::new();
            let message = crate::cluster::replica::Replica::read_answer(full, cell, now_ms, &mut scratch);
            if seq > shard.engine.durable() {
                shard.hold_local(id, attempt, deadline, seq, &message);
            } else {
                cluster.turn(shard, out, |turn| on_message(machine, turn, from, &message));
            }
            true
        });
        if peeked != Ok(true) {
            let key = running.bytes[..running.key_len].to_vec();
            shard.read_later(id, attempt, running.namespace, key, AsAsked::new(full, now_ms), deadline);
        }
    }

    /// Tells whoever asked.
    fn answer(&self, shard: &Rc<Shard>, id: RequestId, running: &mut Running, outcome: Outcome) {
        match (std::mem::replace(&mut running.then, Then::Nothing), &running.machine) {
            (Then::Nothing, _) => {}
            (Then::Wake(waiting), machine) => {
                if let (Outcome::Read, Machine::Get(get)) = (outcome, machine) {
                    *waiting.cell.borrow_mut() = get.cell().map(|cell| OwnedCell::new(&cell));
                    waiting.gathered.set(running.gathered.take());
                }
                waiting.end(outcome);
            }
            (Then::Reply { ticket, told, held }, Machine::Get(get)) if outcome == Outcome::Read => {
                let asked = AsRead { told, levels: running.levels, namespace: running.namespace, deadline: running.deadline };
                let (key, gathered) = (&running.bytes[..running.key_len], running.gathered.take());
                shard.show_gathered(Gathered { ticket, held, gathered }, asked, key, get.cell());
            }
            (Then::Reply { ticket, held, .. }, _) => {
                drop(held);
                shard.admit.end();
                shard.answer_outcome(&ticket, outcome);
            }
        }
        if matches!(running.machine, Machine::Put(_)) && !running.is_over() {
            self.lingering.borrow_mut().push_back(id);
        }
    }

    /// The turn ends: the clocks that were asked for are asked for.
    pub fn flush(&self, shard: &Shard, cluster: &Cluster) {
        if !self.asked.replace(false) {
            return;
        }
        let head = cluster.head(shard.io.now(), None);
        self.clocks.borrow_mut().flush(|index, turn| {
            if let Some(link) = cluster.links.by_index(index as u32) {
                // Not zero: somebody waits.
                shard.say(cluster, &link, CLOCK_BIT | turn, Head { deadline_ms: 1, ..head }, &Message::AskClock);
            }
        });
    }

    /// Asks a core of another node and waits: the answer's frame, `None` where none comes in time.
    pub async fn ask(&self, shard: &Rc<Shard>, cluster: &Cluster, at: At, message: &Message<'_>, deadline: Mono) -> Option<Vec<u8>> {
        let say = |link: &Rc<Link>, id, head| shard.say(cluster, link, id, head, message);
        match self.ask_by(shard, cluster, at, deadline, say).await? {
            Answered::Frame(bytes) => Some(bytes),
            Answered::Repair(..) | Answered::Move(_) => None,
        }
    }

    /// The same for a message of repair. A refusal, too, is no answer.
    pub async fn ask_repair(
        &self,
        shard: &Rc<Shard>,
        cluster: &Cluster,
        at: At,
        message: &RepairMessage,
        deadline: Mono,
    ) -> Option<(Head, RepairMessage)> {
        let say = |link: &Rc<Link>, id, head| shard.say_repair(cluster, link, id, head, message);
        match self.ask_by(shard, cluster, at, deadline, say).await? {
            Answered::Repair(head, message) => Some((head, message)),
            Answered::Frame(_) | Answered::Move(_) => None,
        }
    }

    /// The same for a message of moves.
    pub async fn ask_move(
        &self,
        shard: &Rc<Shard>,
        cluster: &Cluster,
        at: At,
        message: &MoveMessage,
        deadline: Mono,
    ) -> Option<MoveMessage> {
        let say = |link: &Rc<Link>, id, head| shard.say_move(cluster, link, id, head, message);
        match self.ask_by(shard, cluster, at, deadline, say).await? {
            Answered::Move(message) => Some(message),
            Answered::Frame(_) | Answered::Repair(..) => None,
        }
    }

    async fn ask_by(
        &self,
        shard: &Rc<Shard>,
        cluster: &Cluster,
        at: At,
        deadline: Mono,
        say: impl FnOnce(&Rc<Link>, u64, Head),
    ) -> Option<Answered> {
        let link = shard.link(cluster, at).ok()?;
        let asked = Rc::new(Asked::default());
        let id = {
            let mut asks = self.asks.borrow_mut();
            if asks.waiting.len() >= ASKS_MAX {
                return None;
            }
            asks.next += 1;
            let id = ASK_BIT | asks.next;
            asks.waiting.push((id, link.index, asked.clone()));
            id
        };
        say(&link, id, cluster.head(shard.io.now(), Some(deadline)));
        shard.settle();
        let answer = within(
            &shard.io,
            deadline,
            asked.done.until(|| {
                let answer = asked.answer.take();
                let is_there = answer.is_some();
                asked.answer.set(answer);
                is_there
            }),
        );
        let answer = answer.await.and_then(|()| asked.answer.take().flatten());
        self.asks.borrow_mut().waiting.retain(|(waiting, ..)| *waiting != id);
        answer
    }

    /// A message came over a link.
    pub fn on_answer(&self, shard: &Rc<Shard>, link: &Rc<Link>, frame: u64, head: Head, message: &Message<'_>) {
        let Some(cluster) = shard.cluster.clone() else { return };
        let node = link.at.node;
        if let Message::Topology { bytes } = message {
            return shard.on_topology_bytes(&cluster, bytes);
        }
        if *message == Message::FetchTopology {
            return shard.give_topology(&cluster, node);
        }
        if frame & CLOCK_BIT != 0 {
            let mut askers = Vec::new();
            self.clocks.borrow_mut().answered(u64::from(link.index), frame & !CLOCK_BIT, |asker| askers.push(asker));
            for Asker { id, attempt } in askers {
                let from = From { node, epoch: head.epoch, attempt };
                self.drive(shard, &cluster, id, |machine, turn| on_message(machine, turn, from, message));
            }
            return;
        }
        if frame & ASK_BIT != 0 {
            let mut bytes = Vec::new();
            encode(&mut bytes, 0, head, message);
            return self.on_asked(frame, Answered::Frame(bytes));
        }
        if frame & HINT_BIT != 0 {
            return cluster.handoff.on_answer(shard.io.now(), link, frame & !HINT_BIT, message);
        }
        let (id, attempt) = RequestId::of_frame(frame);
        self.on_own(shard, &cluster, id, From { node, epoch: head.epoch, attempt }, message);
    }

    /// A message of repair came over a link.
    pub fn on_repair_answer(&self, frame: u64, head: Head, message: RepairMessage) {
        self.on_asked(frame, Answered::Repair(head, message));
    }

    /// A message of moves came over a link.
    pub fn on_move_answer(&self, shard: &Rc<Shard>, link: &Link, frame: u64, head: Head, message: MoveMessage) {
        if let Some(cluster) = shard.cluster.as_ref().filter(|cluster| head.epoch > cluster.epoch()) {
            shard.fetch_topology(cluster, link.at.node);
        }
        self.on_asked(frame, Answered::Move(message));
    }

    /// What a task asked for is there, if it still waits.
    fn on_asked(&self, frame: u64, answer: Answered) {
        let mut asks = self.asks.borrow_mut();
        if let Some(at) = asks.waiting.iter().position(|(id, ..)| *id == frame) {
            let (_, _, asked) = asks.waiting.swap_remove(at);
            asked.answer.set(Some(Some(answer)));
            asked.done.raise();
        }
    }

    fn on_own(&self, shard: &Rc<Shard>, cluster: &Cluster, id: RequestId, from: From, message: &Message<'_>) {
        // A large value counts before it is kept; where there is no room its node is as good as overloaded.
        if let Message::ReadFull { cell: Ok(cell) } = message
            && let Body::Bytes(bytes) = cell.body
            && bytes.len() > CHUNK_BYTES
            && !self.has_room_for(id, bytes.len())
        {
            let message = Message::Refused { why: Refusal::Overloaded };
            return self.drive(shard, cluster, id, |machine, turn| on_message(machine, turn, from, &message));
        }
        self.drive(shard, cluster, id, |machine, turn| on_message(machine, turn, from, message));
    }

    fn has_room_for(&self, id: RequestId, bytes: usize) -> bool {
        let mut slots = self.slots.borrow_mut();
        let Some(slot) = slots.get_mut(id.slot as usize).filter(|slot| slot.generation == id.generation) else { return true };
        let Some(running) = &mut slot.running else { return true };
        running.gathered = self.gathered.try_take(bytes);
        running.gathered.is_some()
    }

    /// What this node's own replica answers, once it is durable or read.
    pub fn on_local(&self, shard: &Rc<Shard>, id: RequestId, attempt: u32, message: &Message<'_>) {
        if let Some(cluster) = shard.cluster.clone() {
            let from = From { node: cluster.me, epoch: cluster.epoch(), attempt };
            self.on_own(shard, &cluster, id, from, message);
        }
    }

    /// A link is no more: nobody waits for what was asked over it.
    pub fn on_broken_link(&self, shard: &Rc<Shard>, link: &Link) {
        if let Some(cluster) = &shard.cluster {
            cluster.handoff.lost(shard.io.now(), link.at.node);
        }
        self.clocks.borrow_mut().gone(u64::from(link.index));
        for (_, _, asked) in self.asks.borrow_mut().waiting.extract_if(.., |(_, index, _)| *index == link.index) {
            asked.answer.set(Some(None));
            asked.done.raise();
        }
        let Some(cluster) = shard.cluster.clone() else { return };
        let At { node, core } = link.at;
        self.tell_gone(shard, &cluster, node, |running| running.concerns(node) && cluster.core_at(node, running.token) == Some(core));
    }

    /// A node will not answer.
    pub fn on_gone(&self, shard: &Rc<Shard>, node: u64) {
        let Some(cluster) = shard.cluster.clone() else { return };
        self.tell_gone(shard, &cluster, node, |running| running.concerns(node));
    }

    fn tell_gone(&self, shard: &Rc<Shard>, cluster: &Cluster, node: u64, is_it: impl Fn(&Running) -> bool) {
        for id in self.ids(is_it) {
            self.drive(shard, cluster, id, |machine, turn| match machine {
                Machine::Put(put) => put.on_gone(turn, node),
                Machine::Get(get) => get.on_gone(turn, node),
            });
        }
    }

    /// A newer topology is in use.
    pub fn on_topology(&self, shard: &Rc<Shard>, topology: &Arc<Topology>) {
        let Some(cluster) = shard.cluster.clone() else { return };
        for id in self.ids(|_| true) {
            self.drive(shard, &cluster, id, |machine, turn| match machine {
                Machine::Put(put) => put.on_topology(turn, topology),
                Machine::Get(get) => get.on_topology(turn, topology),
            });
        }
    }

    fn ids(&self, is_it: impl Fn(&Running) -> bool) -> Vec<RequestId> {
        let slots = self.slots.borrow();
        let running = (0u32..).zip(slots.iter()).filter(|(_, slot)| slot.running.as_deref().is_some_and(&is_it));
        running.map(|(number, slot)| RequestId { slot: number, generation: slot.generation }).collect()
    }

    /// Wakes machines when they asked to be woken, as long as the shard lives.
    pub async fn keep_time(&self, shard: &Rc<Shard>) {
        let Some(cluster) = shard.cluster.clone() else { return };
        while !shard.io.is_shutting_down() {
            self.began.until(|| self.running.get() > 0 || shard.io.is_shutting_down()).await;
            shard.io.sleep(TICK).await;
            let now = shard.io.now();
            let due: Vec<usize> = self.wakes.borrow().iter().enumerate().filter(|(_, wake)| **wake <= now).map(|(slot, _)| slot).collect();
            for slot in due {
                let id = RequestId { slot: slot as u32, generation: self.slots.borrow()[slot].generation };
                self.drive(shard, &cluster, id, |machine, turn| match machine {
                    Machine::Put(put) => put.on_tick(turn),
                    Machine::Get(get) => get.on_tick(turn),
                });
            }
            let mut lingering = self.lingering.borrow_mut();
            let slots = self.slots.borrow();
            while lingering.front().is_some_and(|id| slots[id.slot as usize].generation != id.generation) {
                lingering.pop_front();
            }
            drop((lingering, slots));
            shard.settle();
        }
    }
}

/// The core that asks is the replica itself. (Another core of this node is asked over a link, as any other.)
fn is_here(shard: &Shard, cluster: &Cluster, running: &Running, to: u64) -> bool {
    to == cluster.me && shard.owner(running.token) == shard.core()
}

/// Nothing was begun.
fn refuse(shard: &Shard, then: Then) {
    match then {
        Then::Nothing => {}
        Then::Wake(waiting) => waiting.end(Outcome::Overloaded),
        Then::Reply { ticket, .. } => {
            shard.admit.end();
            shard.answer_outcome(&ticket, Outcome::Overloaded);
        }
    }
}

/// A replica's answer, on whatever road it came.
fn on_message(machine: &mut Machine, turn: &mut Turn<'_>, from: From, message: &Message<'_>) {
    // A frame's id has the low bits of the attempt.
    let attempt = match machine {
        Machine::Put(put) => put.attempt(),
        Machine::Get(get) => get.attempt(),
    };
    let from = if from.attempt == attempt & ATTEMPT_MASK { From { attempt, ..from } } else { from };
    match (machine, message) {
        (Machine::Put(put), Message::Clock { hlc }) => put.on_clock(turn, from, *hlc),
        (Machine::Put(put), Message::Stored { holds }) => put.on_stored(turn, from, *holds),
        (Machine::Put(put), Message::Refused { why }) => put.on_refused(turn, from, *why),
        (Machine::Get(get), Message::ReadFull { cell }) => get.on_full(turn, from, *cell),
        (Machine::Get(get), Message::ReadDigest { digest }) => get.on_digest(turn, from, *digest),
        (Machine::Get(get), Message::Stored { .. }) => get.on_stored(turn, from),
        (Machine::Get(get), Message::Refused { why }) => get.on_refused(turn, from, *why),
        // An answer to another question: of no meaning to this one.
        _ => {}
    }
}
