//! Gossip in a simulated cluster: each node has the production shell of `control::gossip`, and this carries its datagrams and streams.
//!
//! A datagram is lost, repeated and delayed for itself; what a cut link or a fallen node would have to take in is lost, streams included.
//! As in life a node's gossip ends with its process and knows nobody when that begins again.

use crate::base::prng::Prng;
use crate::base::time::Mono;
use crate::cluster::board::MemberBoard;
use crate::cluster::gossip::Now;
use crate::control::gossip::{GossipSetup, Shell, Todo};
use crate::io::sim::{MachineId, World};
use crate::io::{Io, SocketAddr};
use std::cell::RefCell;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// Who begins is noticed within this time.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// A datagram takes this long at most.
const DELAY_US_MAX: u64 = 3_000;

/// What a datagram meets in one seed.
#[derive(Clone, Copy, Debug, Default)]
struct Weather {
    /// Of a thousand.
    pub lost: u64,
    pub twice: u64,
    /// None at all comes through, nor a stream, as where a firewall is in the way: nodes know of each other by their links alone.
    pub is_blocked: bool,
}

impl Weather {
    /// Half of the seeds lose and repeat some, where anything befalls the network; in half nothing comes through.
    fn draw(prng: &mut Prng, is_rough: bool) -> Weather {
        let is_lossy = is_rough && prng.one_in(2);
        let mut up_to = |most: u64| if is_lossy { prng.below(most) } else { 0 };
        let (lost, twice) = (up_to(50), up_to(50));
        Weather { lost, twice, is_blocked: is_rough && prng.one_in(2) }
    }
}

/// What is on its way.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Datagram(Vec<u8>),
    /// One asks another for its table over a stream.
    Question(Vec<u8>),
    Answer(Vec<u8>),
}

/// When it arrives, a number that orders what arrives together, from whom and to whom.
type Queued = (Mono, u64, SocketAddr, SocketAddr, Event);

/// Gossip of one life of a node.
struct Speaker {
    shell: Shell,
    board: Arc<MemberBoard>,
    machine: MachineId,
    cores: usize,
    /// Of the board's news its cores were woken for.
    woken_for: u64,
}

struct Sky {
    world: World,
    prng: Prng,
    weather: Weather,
    speakers: BTreeMap<SocketAddr, Speaker>,
    queue: BinaryHeap<Reverse<Queued>>,
    order: u64,
    lost: u64,
    carried: u64,
    was_blocked: bool,
}

/// Carries the gossip of a run's nodes.
#[derive(Clone)]
pub(super) struct Air(Rc<RefCell<Sky>>);

impl Air {
    pub fn draw(world: &World, prng: &mut Prng, is_rough: bool) -> Air {
        let (weather, prng) = (Weather::draw(prng, is_rough), prng.fork());
        let (world, speakers, queue) = (world.clone(), BTreeMap::new(), BinaryHeap::new());
        Air(Rc::new(RefCell::new(Sky {
            world,
            prng,
            weather,
            speakers,
            queue,
            order: 0,
            lost: 0,
            carried: 0,
            was_blocked: weather.is_blocked,
        })))
    }

    /// From here on nothing is lost or comes twice.
    pub fn clear(&self) {
        self.0.borrow_mut().weather = Weather::default();
    }

    /// Until the weather cleared nothing came through.
    pub fn was_blocked(&self) -> bool {
        self.0.borrow().was_blocked
    }

    /// Datagrams that arrived, and that were lost.
    pub fn counts(&self) -> (u64, u64) {
        let sky = self.0.borrow();
        (sky.carried, sky.lost)
    }

    /// A node's process begins.
    pub fn begin(&self, machine: MachineId, cores: usize, setup: GossipSetup) {
        let mut sky = self.0.borrow_mut();
        let (local, board, seed) = (setup.listen, setup.board.clone(), sky.prng.next_u64());
        let shell = Shell::new(setup, local, sky.now(machine), seed);
        sky.speakers.insert(local, Speaker { shell, board, machine, cores, woken_for: 0 });
    }

    /// Carries on until the world ends; on a machine of its own.
    pub async fn run(self, io: Io) {
        loop {
            let at = self.0.borrow_mut().step();
            io.sleep(at.since(io.now()).clamp(Duration::from_micros(50), LOOK_EVERY)).await;
        }
    }
}

impl Sky {
    fn now(&self, machine: MachineId) -> Now {
        Now { mono: self.world.now(), wall_ms: self.world.wall_ms(machine) }
    }

    /// Does what is due; when the next is.
    fn step(&mut self) -> Mono {
        let now = self.world.now();
        let world = &self.world;
        self.speakers.retain(|_, speaker| world.is_up(speaker.machine) && world.cores(speaker.machine) > 0);
        // What has come is taken in before a tick: an unread answer must not become a suspicion.
        while self.queue.peek().is_some_and(|Reverse((at, ..))| *at <= now) {
            let Reverse((_, _, from, to, event)) = self.queue.pop().expect("just seen");
            self.deliver(from, to, event);
        }
        let due: Vec<SocketAddr> = self.speakers.iter().filter(|(_, speaker)| speaker.shell.wakes_at() <= now).map(|(at, _)| *at).collect();
        for at in due {
            self.speak(at, |shell, now| (None, shell.tick(now)));
        }
        let ticks = self.speakers.values().map(|speaker| speaker.shell.wakes_at()).min();
        let next = self.queue.peek().map(|Reverse((at, ..))| *at);
        ticks.into_iter().chain(next).min().unwrap_or(now.plus(LOOK_EVERY))
    }

    fn deliver(&mut self, from: SocketAddr, to: SocketAddr, event: Event) {
        match event {
            Event::Datagram(bytes) => {
                self.carried += 1;
                self.speak(to, |shell, now| (None, shell.take_datagram(now, from, &bytes)));
            }
            Event::Question(bytes) => {
                let answer = self.speak(to, |shell, now| shell.take_stream(now, from, &bytes));
                if let Some(answer) = answer {
                    self.send(to, from, Event::Answer(answer));
                }
            }
            Event::Answer(bytes) => _ = self.speak(to, |shell, now| (None, shell.take_stream(now, from, &bytes).1)),
        }
    }

    /// One call of a node's shell and what follows from it; nothing where the node has fallen.
    fn speak(&mut self, at: SocketAddr, call: impl FnOnce(&mut Shell, Now) -> (Option<Vec<u8>>, Todo)) -> Option<Vec<u8>> {
        let now = self.now(self.speakers.get(&at)?.machine);
        let speaker = self.speakers.get_mut(&at)?;
        let (answer, Todo { sends, syncs }) = call(&mut speaker.shell, now);
        let questions: Vec<_> = syncs.into_iter().map(|with| (with, speaker.shell.sync_request(now))).collect();
        let (news, machine, cores) = (speaker.board.news(), speaker.machine, speaker.cores);
        if std::mem::replace(&mut speaker.woken_for, news) != news {
            (0..cores).for_each(|core| self.world.wake(machine, core));
        }
        sends.into_iter().for_each(|(to, bytes)| self.send(at, to, Event::Datagram(bytes)));
        questions.into_iter().for_each(|(with, bytes)| self.send(at, with, Event::Question(bytes)));
        answer
    }

    fn send(&mut self, from: SocketAddr, to: SocketAddr, event: Event) {
        let ends = self.speakers.get(&from).zip(self.speakers.get(&to));
        let is_open = !self.weather.is_blocked && ends.is_some_and(|(from, to)| !self.world.is_cut(from.machine, to.machine));
        let is_datagram = matches!(event, Event::Datagram(_));
        let is_lost = is_datagram && self.prng.below(1_000) < self.weather.lost;
        if !is_open || is_lost {
            self.lost += u64::from(is_lost);
            return;
        }
        if let Event::Datagram(bytes) = &event
            && self.prng.below(1_000) < self.weather.twice
        {
            self.queue(from, to, Event::Datagram(bytes.clone()));
        }
        self.queue(from, to, event);
    }

    fn queue(&mut self, from: SocketAddr, to: SocketAddr, event: Event) {
        let at = self.world.now().plus(Duration::from_micros(self.prng.between(50, DELAY_US_MAX)));
        self.order += 1;
        self.queue.push(Reverse((at, self.order, from, to, event)));
    }
}
