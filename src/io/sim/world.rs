//! The simulated world: its clock, its machines, and the loop that turns the cores.
//!
//! One thread, one seed. Time creeps while a core has something to do (`LOOK_NS` each time one looks at the clock, so that slices end and
//! a loop which waits for time to pass does too) and otherwise jumps to the next event: a completion, a segment's arrival, a core's
//! timer. Which of the cores that can turn does so next is drawn.

use super::disk::Disk;
use super::driver::{Handle, InFlight, SimDriver};
use super::faults::{Faults, Stats};
use super::net::Net;
use crate::base::map::{Map, Seeded};
use crate::base::prng::Prng;
use crate::base::time::{Mono, WallMs};
use crate::io::driver::Driver;
use crate::io::executor::{Executor, Turn};
use crate::io::op::{Completion, Done, OpId};
use crate::io::pool::Pool;
use crate::io::wakers::Wakers;
use crate::io::{Io, Task};
use std::cell::RefCell;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

/// What passes between two looks at the clock, in nanoseconds.
const LOOK_NS: u64 = 100;
/// How many turns go by until the clock's creeping is held against timers and events.
const TURNS_BETWEEN_EVENTS: u32 = 16;
/// Wall time at the world's beginning: 2024-01-01.
const WALL_START_MS: u64 = 1_704_067_200_000;

/// A machine of the world, by number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MachineId(pub usize);

/// Where in an operation of the disk a crash falls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CrashSite {
    /// The operation never happens.
    Before,
    /// It happens in part: a write is torn. Its completion never comes.
    During,
    /// It is done, durable if it was to be; its completion never comes.
    After,
}

/// Why a run came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stopped {
    /// The condition holds.
    Reached,
    /// The time is over.
    TimedOut,
    /// Nothing will ever happen again.
    Idle,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Doom {
    /// The power fails.
    Crash,
    /// The processes are killed; the system lives on.
    Kill,
}

pub(super) struct Machine {
    pub(super) disk: Disk,
    pub(super) faults: Faults,
    pub(super) up: bool,
    pub(super) doom: Option<Doom>,
    /// From which disk operation on, where, and on what kind of file.
    pub(super) crash_at: Option<(u64, CrashSite, Option<&'static str>)>,
    pub(super) disk_ops: u64,
    wall_offset_ms: i64,
    wall_drift_ppm: i64,
}

pub(super) struct Core {
    pub(super) machine: usize,
    core: usize,
    pub(super) alive: bool,
    pub(super) handles: Vec<Option<Handle>>,
    pub(super) handles_free: Vec<u32>,
    pub(super) ops: Map<OpId, InFlight>,
    pub(super) ready: VecDeque<Completion>,
    pub(super) in_flight: usize,
    queued: bool,
    timer: Option<u64>,
    /// The core's own time where it is ahead of the world's: it was held up.
    pub(super) local: u64,
}

/// What happens at a time.
#[derive(Clone, Copy)]
pub(super) enum Event {
    Disk { slot: usize, id: OpId },
    Resume { slot: usize },
    Syn { slot: usize, id: OpId, machine: usize, port: u16 },
    ConnectFailed { slot: usize, id: OpId, code: i32 },
    Connected { slot: usize, id: OpId, conn: u64 },
    Arrive { conn: u64, side: usize },
    Reset { conn: u64, side: usize },
    StallCheck { conn: u64, side: usize, since: u64 },
}

struct Timed {
    at: u64,
    seq: u64,
    event: Event,
}

impl PartialEq for Timed {
    fn eq(&self, other: &Timed) -> bool {
        (self.at, self.seq) == (other.at, other.seq)
    }
}
impl Eq for Timed {}
impl PartialOrd for Timed {
    fn partial_cmp(&self, other: &Timed) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Timed {
    fn cmp(&self, other: &Timed) -> std::cmp::Ordering {
        (self.at, self.seq).cmp(&(other.at, other.seq))
    }
}

pub(super) struct State {
    pub(super) now: u64,
    pub(super) rng: Prng,
    pub(super) stats: Stats,
    pub(super) machines: Vec<Machine>,
    pub(super) cores: Vec<Core>,
    /// The cores that live, in the order of their spawning.
    live: Vec<usize>,
    pub(super) net: Net,
    fingerprint: u64,
    events: BinaryHeap<Reverse<Timed>>,
    events_seq: u64,
    runnable: Vec<usize>,
    turning: bool,
    turns: u32,
    /// A machine is to fall.
    doomed: bool,
    pub(super) pool: Rc<Pool>,
}

impl State {
    pub(super) fn at(&mut self, at: u64, event: Event) {
        self.events_seq += 1;
        self.events.push(Reverse(Timed { at, seq: self.events_seq, event }));
    }

    pub(super) fn note(&mut self, word: u64) {
        self.fingerprint = (self.fingerprint ^ word).wrapping_mul(0x9FB2_1C65_1E98_DF25).rotate_left(29);
    }

    /// Makes a core turn at the present time.
    pub(super) fn rouse(&mut self, slot: usize) {
        let core = &mut self.cores[slot];
        if core.alive && !core.queued {
            core.queued = true;
            self.runnable.push(slot);
        }
    }

    /// Gives a completion to a core, if it still lives.
    pub(super) fn complete(&mut self, slot: usize, id: OpId, result: io::Result<Done>, more: bool) {
        let Some(core) = self.cores.get_mut(slot).filter(|core| core.alive) else { return };
        let word = match &result {
            Ok(Done::Received(chunk)) => xxhash_rust::xxh3::xxh3_64(chunk),
            Ok(Done::Read(_, bytes)) => *bytes as u64,
            Ok(_) => 1,
            Err(error) => error.raw_os_error().unwrap_or(0) as u64 + (1 << 32),
        };
        core.ready.push_back(Completion { id, result, more });
        self.note(self.now ^ (slot as u64) << 56 ^ id << 24);
        self.note(word);
        self.rouse(slot);
    }

    pub(super) fn wake(&mut self, machine: usize, core: usize) {
        // Where two processes of a machine have a core of that number, both turn: a wake too many is allowed.
        for at in 0..self.live.len() {
            let slot = self.live[at];
            if (self.cores[slot].machine, self.cores[slot].core) == (machine, core) {
                self.rouse(slot);
            }
        }
    }

    /// A core looks at the clock: the world's, or its own where it was held up.
    pub(super) fn look(&mut self, slot: usize) -> Mono {
        self.now += LOOK_NS;
        let machine = self.cores[slot].machine;
        let Faults { pause_one_in, pause_us_max, .. } = self.machines[machine].faults;
        let mut now = self.now.max(self.cores[slot].local);
        if pause_one_in > 0 && self.cores[slot].alive && self.rng.one_in(pause_one_in) {
            self.stats.add("core pause");
            now += self.rng.below(pause_us_max.max(1)) * 1000;
            self.cores[slot].local = now;
        }
        Mono(now)
    }

    /// The power fails, or the processes are killed, as soon as the core that turns has finished.
    pub(super) fn doom(&mut self, machine: usize, doom: Doom) {
        self.doomed = true;
        let machine = &mut self.machines[machine];
        if machine.doom != Some(Doom::Crash) {
            machine.doom = Some(doom);
        }
    }

    /// The next thing that happens, if there is one, and everything else that is due by then.
    fn advance(&mut self, until: u64) -> bool {
        let live = self.live.iter().map(|slot| &self.cores[*slot]);
        let timers = live.filter_map(|core| core.timer.map(|at| at.max(core.local))).min();
        let event = self.events.peek().map(|Reverse(timed)| timed.at);
        let Some(next) = timers.into_iter().chain(event).min() else { return false };
        self.now = self.now.max(next.min(until));
        self.fire();
        true
    }

    /// Everything that is due.
    fn fire(&mut self) {
        while self.events.peek().is_some_and(|Reverse(timed)| timed.at <= self.now) {
            let Reverse(timed) = self.events.pop().expect("peeked");
            match timed.event {
                Event::Disk { slot, id } => self.disk_done(slot, id),
                Event::Resume { slot } => self.rouse(slot),
                Event::Syn { slot, id, machine, port } => self.net_syn(slot, id, machine, port),
                Event::ConnectFailed { slot, id, code } => self.net_connect_failed(slot, id, code),
                Event::Connected { slot, id, conn } => self.net_connected(slot, id, conn),
                Event::Arrive { conn, side } => self.net_arrive(conn, side),
                Event::Reset { conn, side } => self.net_reset_end(conn, side),
                Event::StallCheck { conn, side, since } => self.net_stall_check(conn, side, since),
            }
        }
        self.net_drop_parcels();
        for at in 0..self.live.len() {
            let slot = self.live[at];
            let core = &mut self.cores[slot];
            if core.timer.is_some_and(|at| at <= self.now) {
                core.timer = None;
                self.rouse(slot);
            }
        }
    }

    /// Draws the core that turns next.
    fn choose(&mut self) -> Option<usize> {
        while !self.runnable.is_empty() {
            let at = if self.runnable.len() == 1 { 0 } else { self.rng.below(self.runnable.len() as u64) as usize };
            let slot = self.runnable.swap_remove(at);
            let core = &mut self.cores[slot];
            core.queued = false;
            if !core.alive {
                continue;
            }
            if core.local > self.now {
                let local = core.local;
                // It stays away until its own time has come.
                self.at(local, Event::Resume { slot });
                continue;
            }
            return Some(slot);
        }
        None
    }

    /// The machine's cores and what they had under way are gone; its disk keeps what it keeps.
    fn fall(&mut self, machine: usize, doom: Doom) {
        self.machines[machine].doom = None;
        if !self.machines[machine].up {
            return;
        }
        let (slots, live): (Vec<usize>, Vec<usize>) = self.live.iter().partition(|slot| self.cores[**slot].machine == machine);
        self.live = live;
        for slot in slots {
            self.cores[slot].alive = false;
            self.cores[slot].ready.clear();
            self.disk_abandon(slot, doom);
            self.cores[slot].handles.clear();
        }
        let State { machines, rng, stats, .. } = self;
        let fallen = &mut machines[machine];
        fallen.crash_at = None;
        match doom {
            Doom::Crash => {
                stats.add("crash");
                fallen.disk.crash(rng, stats);
                fallen.up = false;
            }
            Doom::Kill => {
                stats.add("kill");
                fallen.disk.kill();
            }
        }
        self.net_fall(machine, doom);
        self.note(machine as u64);
    }
}

struct Shared {
    state: Rc<RefCell<State>>,
    executors: RefCell<Vec<Option<Executor>>>,
}

/// The handle to a simulated world. Cheap to clone; belongs to one thread.
#[derive(Clone)]
pub struct World {
    shared: Rc<Shared>,
}

impl World {
    /// An empty world. The faults are those of every machine that is added.
    pub fn new(seed: u64) -> World {
        let state = State {
            now: 0,
            rng: Prng::new(seed),
            stats: Stats::default(),
            machines: Vec::new(),
            cores: Vec::new(),
            live: Vec::new(),
            net: Net::default(),
            fingerprint: 0,
            events: BinaryHeap::new(),
            events_seq: 0,
            runnable: Vec::new(),
            turning: false,
            turns: 0,
            doomed: false,
            pool: Rc::new(Pool::new()),
        };
        World { shared: Rc::new(Shared { state: Rc::new(RefCell::new(state)), executors: RefCell::new(Vec::new()) }) }
    }

    fn with<T>(&self, run: impl FnOnce(&mut State) -> T) -> T {
        run(&mut self.shared.state.borrow_mut())
    }

    /// A machine with an empty disk, at `World::ip(machine)`.
    pub fn add_machine(&self, faults: Faults) -> MachineId {
        self.with(|state| {
            state.machines.push(Machine {
                disk: Disk::new(),
                faults,
                up: true,
                doom: None,
                crash_at: None,
                disk_ops: 0,
                wall_offset_ms: 0,
                wall_drift_ppm: 0,
            });
            MachineId(state.machines.len() - 1)
        })
    }

    /// The machine's address: 10.0.0.1 is the first machine's.
    pub fn ip(machine: MachineId) -> IpAddr {
        let number = machine.0 as u32 + 1;
        IpAddr::V4(Ipv4Addr::from(0x0A00_0000 + number))
    }

    /// Starts an executor on a machine, and the machine if it is down: core `core` of those that `wakers` knows. It runs `main`, as
    /// `Executor::run` does, and is gone when that has ended and everything in flight has.
    pub fn start<T: 'static, F: Future<Output = T> + 'static>(
        &self,
        machine: MachineId,
        core: usize,
        wakers: &Wakers,
        main: impl FnOnce(Io) -> F,
    ) -> Task<T> {
        let mut executor = self.add_core(machine, core, wakers);
        let task = executor.start(main(executor.handle()));
        self.shared.executors.borrow_mut().push(Some(executor));
        task
    }

    /// Starts an executor without a main task: tasks are spawned through what this gives; it is gone when one of them called `shutdown`
    /// and everything in flight has ended.
    pub fn spawn_core(&self, machine: MachineId, core: usize, wakers: &Wakers) -> Io {
        let executor = self.add_core(machine, core, wakers);
        let io = executor.handle();
        self.shared.executors.borrow_mut().push(Some(executor));
        io
    }

    fn add_core(&self, machine: MachineId, core: usize, wakers: &Wakers) -> Executor {
        let (slot, rng) = self.with(|state| state.add_core(machine.0, core));
        assert_eq!(self.shared.executors.borrow().len(), slot, "cores are spawned one after the other");
        Executor::new(Driver::Sim(SimDriver::new(self.shared.state.clone(), slot, rng)), core, wakers.clone())
    }

    /// Lets machines fall that are to, turns one core or advances the clock, at most to `until`. False where nothing can happen any more.
    fn step(&self, until: u64) -> bool {
        self.apply_dooms();
        let mut state = self.shared.state.borrow_mut();
        state.turns += 1;
        if state.turns.is_multiple_of(TURNS_BETWEEN_EVENTS) {
            state.fire();
        }
        let Some(slot) = state.choose() else { return state.advance(until) };
        state.turning = true;
        state.note(slot as u64);
        state.cores[slot].timer = None;
        drop(state);
        let mut executor = self.shared.executors.borrow_mut()[slot].take().expect("a core that lives has its executor");
        let turn = executor.turn();
        let ended = executor.is_finished();
        let mut state = self.shared.state.borrow_mut();
        state.turning = false;
        if ended {
            state.end_core(slot);
            drop(state);
            drop(executor);
            return true;
        }
        match turn {
            Turn::Busy => state.rouse(slot),
            Turn::Idle { until } => {
                state.cores[slot].timer = until.map(|at| at.0);
                if !state.cores[slot].ready.is_empty() {
                    state.rouse(slot);
                }
            }
        }
        drop(state);
        self.shared.executors.borrow_mut()[slot] = Some(executor);
        true
    }

    fn apply_dooms(&self) {
        let doomed: Vec<(usize, Doom)> = {
            let mut state = self.shared.state.borrow_mut();
            if !std::mem::take(&mut state.doomed) {
                return;
            }
            state.machines.iter().enumerate().filter_map(|(at, machine)| machine.doom.map(|doom| (at, doom))).collect()
        };
        for (machine, doom) in doomed {
            let mut fallen = Vec::new();
            self.with(|state| {
                let mut all = self.shared.executors.borrow_mut();
                let of_machine = state.live.iter().filter(|slot| state.cores[**slot].machine == machine);
                fallen.extend(of_machine.map(|slot| all[*slot].take()));
                state.fall(machine, doom);
            });
            // Dropping an executor drops its tasks, whose handles speak to a driver that no longer listens.
            drop(fallen);
        }
    }

    /// Runs until `done` says so (asked after every step), at most for `time`.
    pub fn run_until(&self, time: Duration, mut done: impl FnMut() -> bool) -> Stopped {
        let until = self.now().plus(time).0;
        loop {
            if done() {
                self.apply_dooms();
                return Stopped::Reached;
            }
            if self.now().0 >= until {
                return Stopped::TimedOut;
            }
            if !self.step(until) {
                return Stopped::Idle;
            }
        }
    }

    /// Runs for a time, which passes also where nothing happens.
    pub fn run_for(&self, time: Duration) {
        let until = self.now().plus(time).0;
        self.run_until(time, || false);
        self.with(|state| state.now = state.now.max(until));
    }

    /// Runs a future on a new core, as `Executor::run` does, until it has ended and everything in flight has.
    ///
    /// # Panics
    /// When it has not ended within `time`, or its machine fell meanwhile.
    pub fn run_task<T: 'static, F: Future<Output = T> + 'static>(
        &self,
        machine: MachineId,
        time: Duration,
        main: impl FnOnce(Io) -> F,
    ) -> T {
        let task = self.start(machine, 0, &Wakers::new(1), main);
        let slot = self.shared.executors.borrow().len() - 1;
        let stopped = self.run_until(time, || !self.shared.state.borrow().cores[slot].alive);
        assert_eq!(stopped, Stopped::Reached, "the task and its core have not ended");
        task.take_result().expect("the task's machine fell")
    }

    pub fn now(&self) -> Mono {
        Mono(self.shared.state.borrow().now)
    }
}

// What a test does to the world.
impl World {
    /// The power of a machine fails: now, or, called by a task, when the core that runs it has finished its turn.
    pub fn crash(&self, machine: MachineId) {
        self.fall(machine, Doom::Crash);
    }

    /// The processes of a machine are killed; what they wrote is in the system's hands and stays.
    pub fn kill(&self, machine: MachineId) {
        self.fall(machine, Doom::Kill);
    }

    /// Kills everything. What runs in a world may hold the world, and would keep it for ever; nothing of it is used after this.
    pub fn end(&self) {
        let machines = self.with(|state| state.machines.len());
        (0..machines).for_each(|machine| self.kill(MachineId(machine)));
    }

    fn fall(&self, machine: MachineId, doom: Doom) {
        let turning = self.with(|state| {
            state.doom(machine.0, doom);
            state.turning
        });
        if !turning {
            self.apply_dooms();
        }
    }

    /// The power of a machine fails at its `n`th operation of the disk, counted from its first (see `disk_ops`).
    pub fn crash_at_op(&self, machine: MachineId, n: u64, site: CrashSite) {
        self.with(|state| state.machines[machine.0].crash_at = Some((n, site, None)));
    }

    /// The same, at the first operation from the `n`th on that is on a file whose name begins with these letters, and no others.
    pub fn crash_at_op_on(&self, machine: MachineId, n: u64, site: CrashSite, kind: &'static str) {
        self.with(|state| state.machines[machine.0].crash_at = Some((n, site, Some(kind))));
    }

    /// Operations that the machine's disk was asked for until now.
    pub fn disk_ops(&self, machine: MachineId) -> u64 {
        self.shared.state.borrow().machines[machine.0].disk_ops
    }

    /// Whether the machine has power: false from a crash until a core is spawned on it.
    pub fn is_up(&self, machine: MachineId) -> bool {
        self.shared.state.borrow().machines[machine.0].up
    }

    /// Cores of the machine that live.
    pub fn cores(&self, machine: MachineId) -> usize {
        let state = self.shared.state.borrow();
        state.live.iter().filter(|slot| state.cores[**slot].machine == machine.0).count()
    }

    /// Changes a machine's faults from now on.
    pub fn faults(&self, machine: MachineId, change: impl FnOnce(&mut Faults)) {
        self.with(|state| change(&mut state.machines[machine.0].faults));
    }

    /// The disk takes this many bytes; what is there above it stays.
    pub fn set_capacity(&self, machine: MachineId, bytes: u64) {
        self.with(|state| state.machines[machine.0].disk.capacity_blocks = bytes / crate::limits::BLOCK_BYTES as u64);
    }

    /// Flips a drawn bit of the byte at `offset` of a file, on the medium and in what readers see.
    ///
    /// # Errors
    /// `ENOENT` where nothing was written there.
    pub fn rot(&self, machine: MachineId, path: &Path, offset: u64) -> io::Result<()> {
        self.with(|state| {
            let bit = state.rng.below(8) as u8;
            state.machines[machine.0].disk.rot(path, offset, bit)?;
            state.stats.add("bit rot");
            Ok(())
        })
    }

    /// Bytes allocated on the machine's disk.
    pub fn disk_bytes(&self, machine: MachineId) -> u64 {
        self.shared.state.borrow().machines[machine.0].disk.used_bytes()
    }

    /// Every path of the machine's disk with its length, in order; folders end in `/`.
    pub fn tree(&self, machine: MachineId) -> BTreeMap<String, u64> {
        self.shared.state.borrow().machines[machine.0].disk.tree()
    }

    /// A file as readers see it.
    ///
    /// # Errors
    /// `ENOENT`, `ENOTDIR`, `EISDIR`.
    pub fn file_bytes(&self, machine: MachineId, path: &Path) -> io::Result<Vec<u8>> {
        self.with(|state| {
            let disk = &mut state.machines[machine.0].disk;
            let ino = disk.open(path, crate::io::op::OpenHow::Read)?;
            let mut bytes = vec![0; disk.size(ino) as usize];
            disk.read(ino, 0, &mut bytes);
            disk.close(ino);
            Ok(bytes)
        })
    }

    /// The machine's wall clock is off by this much.
    pub fn set_wall_offset_ms(&self, machine: MachineId, offset_ms: i64) {
        self.with(|state| {
            state.machines[machine.0].wall_offset_ms = offset_ms;
            state.stats.add("wall clock jump");
        });
    }

    /// The machine's wall clock gains this many microseconds a second, counted from the world's beginning.
    pub fn set_wall_drift_ppm(&self, machine: MachineId, drift_ppm: i64) {
        self.with(|state| state.machines[machine.0].wall_drift_ppm = drift_ppm);
    }

    /// The machine's wall clock.
    pub fn wall_ms(&self, machine: MachineId) -> WallMs {
        self.shared.state.borrow().wall_ms(machine.0)
    }

    /// Bytes from `a` to `b` no longer arrive (the other direction is not touched).
    pub fn cut(&self, a: MachineId, b: MachineId) {
        self.with(|state| state.net_cut(a.0, b.0));
    }

    /// Whether nothing from `a` arrives at `b`.
    pub fn is_cut(&self, a: MachineId, b: MachineId) -> bool {
        self.with(|state| state.net_is_cut(a.0, b.0))
    }

    /// Bytes from `a` to `b` arrive again, those that waited too.
    pub fn heal(&self, a: MachineId, b: MachineId) {
        self.with(|state| state.net_heal(a.0, b.0));
    }

    /// Resets every connection between two machines (which may be the same).
    pub fn reset_connections(&self, a: MachineId, b: MachineId) {
        self.with(|state| state.net_reset_between(a.0, b.0));
    }

    /// Makes a core turn now, as a message from outside does.
    pub fn wake(&self, machine: MachineId, core: usize) {
        self.with(|state| state.wake(machine.0, core));
    }

    /// How often each fault happened.
    pub fn stats(&self) -> BTreeMap<&'static str, u64> {
        self.shared.state.borrow().stats.counts.clone()
    }

    /// How often a crash at an operation happened, by site, operation and kind of file: "during write wal".
    pub fn crash_sites(&self) -> BTreeMap<String, u64> {
        self.shared.state.borrow().stats.sites.clone()
    }

    /// A hash over everything that has happened: equal for equal seeds, in the same program.
    pub fn fingerprint(&self) -> u64 {
        self.shared.state.borrow().fingerprint
    }

    /// A number drawn from the world's seed.
    pub fn random_u64(&self) -> u64 {
        self.with(|state| state.rng.next_u64())
    }
}

impl State {
    pub(super) fn wall_ms(&self, machine: usize) -> WallMs {
        let machine = &self.machines[machine];
        let drift_ns = i128::from(self.now) * i128::from(machine.wall_drift_ppm) / 1_000_000;
        let elapsed_ms = (i128::from(self.now) + drift_ns) / 1_000_000;
        (i128::from(WALL_START_MS) + elapsed_ms + i128::from(machine.wall_offset_ms)).max(0) as u64
    }

    /// The new core's slot and its random numbers.
    fn add_core(&mut self, machine: usize, core: usize) -> (usize, Prng) {
        assert!(self.machines[machine].doom.is_none(), "a core is started on a machine that is about to fall");
        self.machines[machine].up = true;
        let seed = self.rng.next_u64();
        let slot = self.cores.len();
        self.cores.push(Core {
            machine,
            core,
            alive: true,
            handles: Vec::new(),
            handles_free: Vec::new(),
            ops: Map::with_hasher(Seeded(seed)),
            ready: VecDeque::new(),
            in_flight: 0,
            queued: false,
            timer: None,
            local: 0,
        });
        self.live.push(slot);
        self.rouse(slot);
        (slot, self.rng.fork())
    }

    /// A core ended by itself: its handles are closed as a process's are.
    fn end_core(&mut self, slot: usize) {
        for fd in 0..self.cores[slot].handles.len() {
            self.close_handle(slot, fd as u32);
        }
        self.disk_abandon(slot, Doom::Kill);
        self.live.retain(|live| *live != slot);
        self.cores[slot].alive = false;
        self.cores[slot].ready.clear();
    }
}
