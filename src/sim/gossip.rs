//! Membership alone, in clusters of any size: the production state machines of `cluster::gossip` on virtual time, over a network that
//! loses, delays, duplicates and cuts, with nodes that pause, fall and come back. No disk, no shard: 1,000 nodes run in one thread.
//!
//! Fault model: each datagram is lost, duplicated and delayed for itself; delays are uniform, so datagrams overtake each other. A cut link
//! carries nothing either way, streams included. A paused node neither runs nor loses what came in (up to `BACKLOG_MAX` datagrams, as a
//! socket's buffer); when it goes on, it reads that first. A node that falls loses everything. Wall clocks differ by what a node is started
//! with. The same seed gives the same run.

use crate::base::checksum::hash64_seeded;
use crate::base::prng::Prng;
use crate::base::time::Mono;
use crate::cluster::gossip::member::{Address, Profile, Rack, State, Versions};
use crate::cluster::gossip::wire::{self, Key};
use crate::cluster::gossip::{Change, Config, Effect, Gossip, Me, Now, Timing};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::fmt::Write;
use std::time::Duration;

/// What one datagram meets.
#[derive(Clone, Copy, Debug)]
pub struct Network {
    /// Lost of a million.
    pub lost_ppm: u64,
    pub duplicated_ppm: u64,
    pub delay_min: Duration,
    pub delay_max: Duration,
}

impl Network {
    /// Half a millisecond to two, one datagram of a thousand twice.
    pub fn losing(lost_ppm: u64) -> Network {
        Network { lost_ppm, duplicated_ppm: 1000, delay_min: Duration::from_micros(500), delay_max: Duration::from_millis(2) }
    }
}

const BACKLOG_MAX: usize = 256;
/// The wall clock when the world begins.
const WALL_MS: u64 = 1000;
pub const VERSIONS: Versions = Versions { min: 1, max: 1 };

/// How a node is started: what may differ from its fellows.
#[derive(Clone, Debug)]
pub struct Start {
    pub node: u64,
    pub key: &'static [u8],
    pub cluster: u64,
    pub vnodes: u32,
    pub protocol: Versions,
    pub format: Versions,
    /// Ahead of true time; negative: behind.
    pub wall_offset_ms: i64,
    /// What it says its address is; `None`: the truth.
    pub claims: Option<Address>,
}

impl Start {
    pub fn new(node: u64) -> Start {
        Start { node, key: b"key", cluster: 0xC1, vnodes: 4096, protocol: VERSIONS, format: VERSIONS, wall_offset_ms: 0, claims: None }
    }
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Datagram { to: usize, from: usize, bytes: Vec<u8> },
    SyncRequest { to: usize, from: usize },
    Stream { to: usize, from: usize, bytes: Vec<u8> },
    Tick { node: usize },
}

/// One machine.
#[derive(Default)]
struct Machine {
    gossip: Option<Gossip>,
    node: u64,
    wall_offset_ms: i64,
    paused: bool,
    backlog: Vec<(usize, Vec<u8>)>,
    /// The earliest tick that is on its way.
    woken_at: Option<Mono>,
    /// Lost of a million, besides what the network loses, each way.
    lost_ppm: u64,
    side: u8,
}

/// What was seen of a kind of change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    pub times: u64,
    pub last: Mono,
}

/// Machines and what is on its way between them.
pub struct World {
    machines: Vec<Machine>,
    queue: BinaryHeap<Reverse<(Mono, u64, Event)>>,
    order: u64,
    now: Mono,
    prng: Prng,
    network: Network,
    timing: Timing,
    cut: BTreeSet<(usize, usize)>,
    /// By the node that changed.
    seen: BTreeMap<(u64, Change), Seen>,
    /// Who heard of an epoch.
    epochs: BTreeMap<u64, Seen>,
    /// Suspicions and deaths of nodes that ran at that time, and were neither paused nor cut off.
    pub wrong_suspicions: u64,
    pub wrong_deaths: u64,
    /// What was refused, as sentences: (machine, sentence).
    pub sentences: Vec<(usize, String)>,
    /// Datagrams delivered, and a hash over all of them.
    pub delivered: u64,
    pub trace: u64,
    dialogue: Option<String>,
}

fn address(machine: usize) -> Address {
    let [_, b, c, d] = (machine as u32 + 1).to_be_bytes();
    Address::v4([10, b, c, d], 7490)
}

fn machine_of(address: Address) -> Option<usize> {
    let [_, b, c, d] = address.as_v4()?;
    (u32::from_be_bytes([0, b, c, d]) as usize).checked_sub(1)
}

impl World {
    pub fn new(seed: u64, machines: usize, network: Network, timing: Timing) -> World {
        World {
            machines: (0..machines).map(|_| Machine::default()).collect(),
            queue: BinaryHeap::new(),
            order: 0,
            now: Mono(0),
            prng: Prng::new(seed),
            network,
            timing,
            cut: BTreeSet::new(),
            seen: BTreeMap::new(),
            epochs: BTreeMap::new(),
            wrong_suspicions: 0,
            wrong_deaths: 0,
            sentences: Vec::new(),
            delivered: 0,
            trace: 0,
            dialogue: None,
        }
    }

    /// A cluster of machines 0 to `count - 1`, node ids from 1, all started within five milliseconds each through the first, and given time
    /// to meet.
    pub fn cluster(seed: u64, count: usize, network: Network, timing: Timing) -> World {
        let mut world = World::new(seed, count, network, timing);
        for machine in 0..count {
            world.start(machine, &Start::new(machine as u64 + 1), &[0]);
            world.run(Duration::from_millis(5));
        }
        let all = count * (count - 1);
        let met = |world: &World| (0..count).map(|machine| world.gossip(machine).live()).sum::<usize>() == all;
        for _ in 0..200 {
            world.run(Duration::from_millis(100));
            if met(&world) {
                break;
            }
        }
        assert!(met(&world), "{count} nodes meet within 20 s");
        // The last rumours of the beginning.
        world.run(Duration::from_secs(3));
        world.seen.clear();
        world
    }

    /// From here on what is said is written down: everything but pings and acknowledgements of nodes that have nothing to tell.
    pub fn listen(&mut self) {
        self.dialogue = Some(String::new());
    }

    pub fn dialogue(&self) -> &str {
        self.dialogue.as_deref().unwrap_or_default()
    }

    pub fn now(&self) -> Mono {
        self.now
    }

    pub fn gossip(&self, machine: usize) -> &Gossip {
        self.machines[machine].gossip.as_ref().expect("the machine runs")
    }

    /// Machines that run.
    pub fn running(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.machines.len()).filter(|machine| self.machines[*machine].gossip.is_some())
    }

    /// How many others that run believe `state` of `node`.
    pub fn believe(&self, node: u64, state: State) -> usize {
        self.running().filter(|machine| self.gossip(*machine).state_of(node) == Some(state)).count()
    }

    pub fn seen(&self, node: u64, change: Change) -> Seen {
        self.seen.get(&(node, change)).copied().unwrap_or_default()
    }

    /// All changes of a kind.
    pub fn count(&self, change: Change) -> u64 {
        self.seen.iter().filter(|((_, kind), _)| *kind == change).map(|(_, seen)| seen.times).sum()
    }

    /// Nodes that heard of `epoch` from another.
    pub fn heard_of(&self, epoch: u64) -> Seen {
        self.epochs.get(&epoch).copied().unwrap_or_default()
    }

    pub fn start(&mut self, machine: usize, start: &Start, seeds: &[usize]) {
        let claims = start.claims.unwrap_or(address(machine));
        let rack = Rack::new(&format!("r{}", machine % 3)).expect("it is short");
        let Start { node, key, cluster, vnodes, protocol, format, wall_offset_ms, .. } = start.clone();
        let native = Address { port: 7400, ..claims };
        let profile = Profile { native, gossip: claims, cores: 4, weight: 100, rack, protocol, format };
        let config = Config { cluster, vnodes, key: Key::new(key), timing: self.timing.clone() };
        let seeds: Vec<Address> = seeds.iter().map(|seed| address(*seed)).collect();
        self.machines[machine] = Machine { node, wall_offset_ms, side: self.machines[machine].side, ..Machine::default() };
        let (now, seed) = (self.clocks(machine), self.prng.next_u64());
        self.machines[machine].gossip = Some(Gossip::new(config, Me { node, profile }, &seeds, now, seed));
        self.say(format_args!("node {node} starts"));
        self.wake(machine);
    }

    /// It falls, and remembers nothing.
    pub fn kill(&mut self, machine: usize) {
        let node = self.machines[machine].node;
        self.say(format_args!("node {node} falls"));
        self.machines[machine].gossip = None;
        self.machines[machine].backlog.clear();
    }

    pub fn pause(&mut self, machine: usize) {
        let node = self.machines[machine].node;
        self.say(format_args!("node {node} pauses"));
        self.machines[machine].paused = true;
    }

    /// It goes on: what came in meanwhile is read first.
    pub fn resume(&mut self, machine: usize) {
        let node = self.machines[machine].node;
        self.say(format_args!("node {node} goes on"));
        self.machines[machine].paused = false;
        for (from, bytes) in std::mem::take(&mut self.machines[machine].backlog) {
            self.on_datagram(machine, from, &bytes);
        }
        self.tick(machine);
    }

    /// Nothing goes between the two any more.
    pub fn cut(&mut self, one: usize, other: usize) {
        let (a, b) = (self.machines[one].node, self.machines[other].node);
        self.say(format_args!("the link of nodes {a} and {b} is cut"));
        self.cut.insert((one.min(other), one.max(other)));
    }

    /// Machines before `machine` and those from it on are apart.
    pub fn split(&mut self, machine: usize) {
        self.say(format_args!("the network splits"));
        self.machines.iter_mut().enumerate().for_each(|(at, one)| one.side = u8::from(at >= machine));
    }

    /// No cut, no split.
    pub fn heal(&mut self) {
        self.say(format_args!("the network heals"));
        self.cut.clear();
        self.machines.iter_mut().for_each(|machine| machine.side = 0);
    }

    /// The link of one machine loses so much more, each way.
    pub fn degrade(&mut self, machine: usize, lost_ppm: u64) {
        self.machines[machine].lost_ppm = lost_ppm;
    }

    pub fn learn_topology(&mut self, machine: usize, epoch: u64) {
        let now = self.clocks(machine);
        self.machines[machine].gossip.as_mut().expect("the machine runs").learn_topology(now, epoch, epoch);
        self.wake(machine);
    }

    pub fn leave(&mut self, machine: usize) {
        let now = self.clocks(machine);
        self.machines[machine].gossip.as_mut().expect("the machine runs").leave(now);
        self.wake(machine);
    }

    /// Goes on for `span`.
    pub fn run(&mut self, span: Duration) {
        let end = self.now.plus(span);
        while self.queue.peek().is_some_and(|Reverse((at, ..))| *at <= end)
            && let Some(Reverse((at, _, event))) = self.queue.pop()
        {
            self.now = at;
            self.happen(event);
        }
        self.now = end;
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Datagram { to, from, bytes } => {
                let machine = &mut self.machines[to];
                if machine.paused {
                    if machine.backlog.len() < BACKLOG_MAX {
                        machine.backlog.push((from, bytes));
                    }
                } else {
                    self.on_datagram(to, from, &bytes);
                }
            }
            Event::SyncRequest { to, from } => {
                let now = self.clocks(from);
                if let Some(gossip) = &mut self.machines[from].gossip {
                    let bytes = gossip.sync_request(now);
                    self.stream(to, from, bytes);
                }
            }
            Event::Stream { to, from, bytes } => self.on_stream(to, from, &bytes),
            Event::Tick { node } => {
                // An earlier one than `woken_at` was overtaken by one that came sooner.
                if self.machines[node].woken_at == Some(self.now) {
                    self.machines[node].woken_at = None;
                    if !self.machines[node].paused {
                        self.tick(node);
                    }
                }
            }
        }
    }

    fn tick(&mut self, machine: usize) {
        let (now, mut out) = (self.clocks(machine), Vec::new());
        let Some(gossip) = &mut self.machines[machine].gossip else { return };
        gossip.on_tick(now, &mut out);
        self.perform(machine, out);
    }

    fn on_datagram(&mut self, to: usize, from: usize, bytes: &[u8]) {
        let (now, mut out) = (self.clocks(to), Vec::new());
        let Some(gossip) = &mut self.machines[to].gossip else { return };
        self.delivered += 1;
        self.trace = hash64_seeded(bytes, self.trace ^ self.now.0);
        gossip.on_datagram(now, address(from), bytes, &mut out);
        if self.dialogue.is_some() {
            self.write_down(to, from, bytes);
        }
        self.perform(to, out);
    }

    fn on_stream(&mut self, to: usize, from: usize, bytes: &[u8]) {
        let (now, mut out) = (self.clocks(to), Vec::new());
        if self.machines[to].paused {
            return;
        }
        let Some(gossip) = &mut self.machines[to].gossip else { return };
        // A connection comes from a port of its own.
        let answer = gossip.on_stream(now, Address { port: 40_000, ..address(from) }, bytes, &mut out);
        if self.dialogue.is_some() {
            self.write_down(to, from, bytes);
        }
        self.perform(to, out);
        if let Some(bytes) = answer {
            self.stream(from, to, bytes);
        }
    }

    fn perform(&mut self, machine: usize, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Send { to, datagram } => self.transmit(machine, to, datagram),
                Effect::Sync { with } => {
                    if let Some(to) = machine_of(with).filter(|to| *to < self.machines.len()) {
                        self.push(self.now.plus(self.network.delay_max), Event::SyncRequest { to, from: machine });
                    }
                }
                Effect::Changed { node, change } => self.note(machine, node, change),
                Effect::NewerTopology { newest, .. } => {
                    let seen = self.epochs.entry(newest.epoch).or_default();
                    *seen = Seen { times: seen.times + 1, last: self.now };
                }
                Effect::Refused(refusal) => self.sentences.push((machine, refusal.to_string())),
                Effect::TopologyConflict { epoch, from } => {
                    self.sentences.push((machine, format!("node {from} has another topology of epoch {epoch}")));
                }
            }
        }
        self.wake(machine);
    }

    fn note(&mut self, machine: usize, node: u64, change: Change) {
        let seen = self.seen.entry((node, change)).or_default();
        *seen = Seen { times: seen.times + 1, last: self.now };
        let innocent = self.machines.iter().enumerate().any(|(at, other)| {
            other.node == node && other.gossip.is_some() && !other.paused && !self.is_cut(machine, at) && !self.machines[machine].paused
        });
        self.wrong_suspicions += u64::from(innocent && change == Change::Suspected);
        self.wrong_deaths += u64::from(innocent && change == Change::Died);
        let by = self.machines[machine].node;
        self.say(format_args!("node {by} sees: {node} {}", format!("{change:?}").to_lowercase()));
    }

    fn transmit(&mut self, from: usize, to: Address, bytes: Vec<u8>) {
        let Some(to) = machine_of(to).filter(|to| *to < self.machines.len()) else { return };
        let lost = [self.network.lost_ppm, self.machines[from].lost_ppm, self.machines[to].lost_ppm];
        if self.is_cut(from, to) || lost.into_iter().any(|ppm| ppm > 0 && self.prng.below(1_000_000) < ppm) {
            return;
        }
        if self.prng.below(1_000_000) < self.network.duplicated_ppm {
            let at = self.arrival();
            self.push(at, Event::Datagram { to, from, bytes: bytes.clone() });
        }
        let at = self.arrival();
        self.push(at, Event::Datagram { to, from, bytes });
    }

    /// A stream loses nothing, but a cut.
    fn stream(&mut self, to: usize, from: usize, bytes: Vec<u8>) {
        if !self.is_cut(from, to) {
            self.push(self.now.plus(self.network.delay_max), Event::Stream { to, from, bytes });
        }
    }

    fn is_cut(&self, one: usize, other: usize) -> bool {
        self.machines[one].side != self.machines[other].side || self.cut.contains(&(one.min(other), one.max(other)))
    }

    fn arrival(&mut self) -> Mono {
        let spread = (self.network.delay_max - self.network.delay_min).as_nanos() as u64;
        self.now.plus(self.network.delay_min + Duration::from_nanos(self.prng.below(spread + 1)))
    }

    fn wake(&mut self, machine: usize) {
        let Machine { gossip: Some(gossip), woken_at, .. } = &mut self.machines[machine] else { return };
        let at = gossip.wakes_at().max(self.now);
        if woken_at.is_none_or(|woken_at| at < woken_at) {
            *woken_at = Some(at);
            self.push(at, Event::Tick { node: machine });
        }
    }

    fn push(&mut self, at: Mono, event: Event) {
        let order = self.next_order();
        self.queue.push(Reverse((at, order, event)));
    }

    fn next_order(&mut self) -> u64 {
        self.order += 1;
        self.order
    }

    fn clocks(&self, machine: usize) -> Now {
        let true_ms = WALL_MS + self.now.0 / 1_000_000 + 10_000_000;
        Now { mono: self.now, wall_ms: true_ms.saturating_add_signed(self.machines[machine].wall_offset_ms) - 10_000_000 }
    }

    fn say(&mut self, what: std::fmt::Arguments) {
        if let Some(dialogue) = &mut self.dialogue {
            let _ = writeln!(dialogue, "{:7.3} {what}", self.now.0 as f64 / 1e9);
        }
    }

    fn write_down(&mut self, to: usize, from: usize, bytes: &[u8]) {
        let Some(line) = wire::describe(bytes) else { return };
        let dull = (line.starts_with("ping ") || line.starts_with("ack ")) && line.matches('|').count() == 1 && !line.contains("for");
        if !dull {
            let (from, to) = (self.machines[from].node, self.machines[to].node);
            self.say(format_args!("  {from} → {to}  {line}"));
        }
    }
}
