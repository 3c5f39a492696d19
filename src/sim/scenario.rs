//! One run from a seed: a node with a faulty disk, clients that never stop asking, power failures, restarts with other core counts, and
//! at the end a quiet look at everything.

use super::checker::Checker;
use super::seeds::{self, Outcome};
use super::workload::{FIRST_NAMESPACE, INTERVAL_NAMESPACE, REQUEST_PATIENCE, Shared, SimClient, key_name};
use super::{final_look, rot};
use crate::base::prng::Prng;
use crate::base::record::{core_of, token_of, vnode_of};
use crate::engine::pick::Policy;
use crate::engine::{EngineConfig, EngineError};
use crate::io::sim::{CrashSite, Faults, MachineId, World};
use crate::io::wakers::Wakers;
use crate::io::{Class, SocketAddr, Task};
use crate::shard::mailbox;
use crate::shard::start::{self, Plan, StartFailure};
use crate::shard::stats::Board;
use crate::wire::command::Durability;
use std::cell::{Cell, RefCell};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// A run whose lives end early has more of them, up to this many.
const LIVES_MAX: u64 = 24;
/// Power failures that every run has at least.
const CRASHES_MIN: u64 = 3;
/// Simulated time after which a run that does not come forward counts as stuck.
const STUCK: Duration = Duration::from_secs(120);
const PORT: u16 = 7400;
/// Few, so that each holds several keys.
pub(super) const VNODES: u32 = 16;

/// What a run counts beside the faults of its world: a node served with another list of cores; it fell before it did; another list was
/// given before the move had ended; the move found no room.
pub const CORES_CHANGED: &str = "core list changed";
pub const CRASH_WHILE_MOVING: &str = "crash while data moves";
pub const CORES_CHANGED_AGAIN: &str = "core list changed while data moves";
pub const FULL_WHILE_MOVING: &str = "ENOSPC while data moves";
/// All of these.
pub const MOVES: &[&str] = &[CORES_CHANGED, CRASH_WHILE_MOVING, CORES_CHANGED_AGAIN, FULL_WHILE_MOVING];

/// What is asked of a run.
pub type Setup = seeds::Setup<FaultSet>;

/// Groups of faults.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FaultSet {
    pub slow: bool,
    pub errors: bool,
    pub full: bool,
    pub network: bool,
    pub clock: bool,
    pub rot: bool,
}

/// A run under way.
pub(super) struct Run {
    pub(super) world: World,
    pub(super) node: MachineId,
    pub(super) prng: Prng,
    pub(super) setup: Setup,
    pub(super) shared: Rc<Shared>,
    pub(super) outcome: Outcome,
    cores: u16,
    /// Cores of the last node that served: what the data is ordered by, unless a move was done and the power failed before it served.
    served: u16,
    hash_seed: u64,
    /// The faults of this run.
    drawn: Faults,
}

/// A node that was started.
pub(super) struct Life {
    plan: Arc<Plan>,
    wakers: Wakers,
    cores: u16,
    tasks: Vec<Task<Result<(), StartFailure>>>,
    ready: Arc<AtomicBool>,
}

/// Runs one seed to its end.
pub fn run(setup: &Setup) -> Outcome {
    let mut run = Run::new(setup);
    run.go();
    run.finish()
}

impl Run {
    fn new(setup: &Setup) -> Run {
        let mut prng = Prng::new(setup.seed);
        let world = World::new(prng.next_u64());
        let drawn = faults(&mut prng, setup.faults);
        // Quiet until the first node is up and its namespaces are made.
        let node = world.add_machine(Faults::default());
        let (clock, latest) = (world.clone(), world.clone());
        let shared = Shared {
            checkers: [RefCell::new(Checker::new(false)), RefCell::new(Checker::new(true))],
            namespaces: [Cell::new(FIRST_NAMESPACE), Cell::new(FIRST_NAMESPACE + 1)],
            keys: prng.between(8, 240) as u32,
            budget: Cell::new(0),
            answered: Cell::new(0),
            stop: Cell::new(false),
            at_work: Cell::new(0),
            errors: RefCell::default(),
            wall_ms: Box::new(move || clock.wall_ms(node)),
            latest_ms: Box::new(move || latest.wall_ms(node)),
            falls: RefCell::default(),
            small_bytes: 300,
            large_one_in: prng.between(50, 400),
            thought_us_max: 20_000,
            in_cluster: false,
            patience: REQUEST_PATIENCE,
            retry_one_in: 1,
            deletes_one_in: None,
        };
        let cores = setup.cores.unwrap_or(prng.between(1, 5) as u16);
        let hash_seed = prng.next_u64();
        let outcome = Outcome { seed: setup.seed, ..Outcome::default() };
        Run { world, node, prng, setup: setup.clone(), shared: Rc::new(shared), outcome, cores, served: cores, hash_seed, drawn }
    }

    pub(super) fn note(&mut self, what: impl Into<String>) {
        let line = format!("{:>12.6} s  {}", self.world.now().0 as f64 / 1e9, what.into());
        self.outcome.timeline.push(line);
    }

    fn happened(&mut self, what: &str) {
        *self.outcome.faults.entry(what.to_owned()).or_default() += 1;
    }

    /// The next start is one with another list of cores.
    fn is_moving(&self) -> bool {
        self.cores != self.served
    }

    fn fail(&mut self, what: impl Into<String>) {
        let what = what.into();
        self.note(format!("FAILED: {what}"));
        self.outcome.failures.push(what);
    }

    pub(super) fn data(&self) -> PathBuf {
        PathBuf::from("/data")
    }

    pub(super) fn address(&self) -> SocketAddr {
        SocketAddr::new(World::ip(self.node), PORT)
    }

    fn go(&mut self) {
        let Some(first) = self.boot_surely() else { return };
        if let Err(why) = final_look::create_namespace(self, INTERVAL_NAMESPACE) {
            return self.fail(format!("the namespace cannot be made: {why}"));
        }
        let drawn = self.drawn.clone();
        self.world.faults(self.node, |faults| *faults = drawn);
        self.start_clients();
        let mut life = Some(first);
        let lives = CRASHES_MIN + 1 + self.prng.below(4);
        let share = self.setup.commands / lives;
        for number in 0..LIVES_MAX {
            if number >= lives && self.shared.answered.get() >= self.setup.commands * 2 / 3 {
                break;
            }
            let Some(current) = life.take() else { return };
            self.live(current, share, number);
            if !self.outcome.failures.is_empty() || self.has_wrong_answers() {
                return;
            }
            life = self.reboot();
        }
        let Some(mut last) = life else { return };
        self.calm();
        if !self.world.is_up(self.node) || last.plan.board.trouble().is_some() {
            // It fell, or a shard stopped, between its ready line and the calm.
            self.world.crash(self.node);
            self.power_lost();
            let Some(again) = self.boot_surely() else { return };
            last = again;
        }
        self.shared.stop.set(true);
        let shared = self.shared.clone();
        self.world.run_until(STUCK, || shared.at_work.get() == 0);
        if shared.at_work.get() > 0 {
            self.fail("clients are still waiting long after the faults ended");
        }
        if let Err(why) = final_look::read_everything(self) {
            self.fail(why);
        }
        self.shut_down(last);
        if self.setup.faults.rot && self.outcome.failures.is_empty() && !self.has_wrong_answers() {
            rot::flip_and_look(self);
        }
    }

    /// From here on nothing fails.
    fn calm(&mut self) {
        self.world.faults(self.node, |faults| *faults = Faults::default());
        self.world.crash_at_op(self.node, u64::MAX, CrashSite::Before);
        self.world.set_capacity(self.node, u64::MAX);
        // An operation at which the power is to fail may be under way.
        self.world.run_for(Duration::from_millis(300));
    }

    fn has_wrong_answers(&self) -> bool {
        self.shared.checkers.iter().any(|checker| !checker.borrow().failures.is_empty())
    }

    fn start_clients(&mut self) {
        let quiet = Faults { net_us: 20, net_jitter_us: 5, ..Faults::default() };
        let machine = self.world.add_machine(quiet);
        let io = self.world.spawn_core(machine, 0, &Wakers::new(1));
        for _ in 0..self.prng.between(2, 7) {
            let pipeline = self.prng.between(1, 24) as usize;
            let client = SimClient::new(io.clone(), vec![self.address()], self.shared.clone(), self.prng.fork(), pipeline);
            drop(io.spawn(Class::Foreground, client.run()));
        }
    }

    fn plan(&mut self, cores: u16, ready: &Arc<AtomicBool>) -> Plan {
        let ready = ready.clone();
        Plan {
            data: self.data(),
            listen: SocketAddr::new(World::ip(self.node), PORT),
            host: World::ip(self.node).to_string(),
            cores,
            vnodes: Some(VNODES),
            durability: Durability::Sync,
            secret: None,
            memory_bytes: 4 << 20,
            engine: small_engine(&mut self.prng, self.hash_seed),
            board: Arc::new(Board::default()),
            cluster: None,
            publish_every: Duration::from_millis(8),
            port: 0.into(),
            stop: false.into(),
            drained: 0.into(),
            ready: Box::new(move |_| ready.store(true, Ordering::Release)),
            planted: self.setup.planted,
        }
    }

    /// Starts the node's cores.
    pub(super) fn start(&mut self, cores: u16) -> Life {
        let ready = Arc::new(AtomicBool::new(false));
        let plan = Arc::new(self.plan(cores, &ready));
        let wakers = Wakers::new(usize::from(cores));
        let mut tasks = Vec::new();
        for (core, ends) in mailbox::mesh(usize::from(cores)).into_iter().enumerate() {
            let plan = plan.clone();
            tasks.push(self.world.start(self.node, core, &wakers, move |io| start::run(io, ends, plan)));
        }
        Life { plan, wakers, cores, tasks, ready }
    }

    /// Starts the node and waits until it serves. Err: why it did not; None in it: the power failed meanwhile.
    pub(super) fn boot(&mut self) -> Result<Life, Option<StartFailure>> {
        let cores = self.cores;
        let mut life = self.start(cores);
        let (ready, world, node) = (life.ready.clone(), self.world.clone(), self.node);
        self.world.run_until(STUCK, || ready.load(Ordering::Acquire) || !world.is_up(node) || world.cores(node) == 0);
        if ready.load(Ordering::Acquire) && self.world.is_up(self.node) {
            if self.is_moving() {
                self.happened(CORES_CHANGED);
                self.served = cores;
            }
            return Ok(life);
        }
        let said = life.tasks.drain(..).filter_map(|task| task.take_result()).filter_map(Result::err);
        let cause = said.reduce(|first, next| if matches!(first, StartFailure::Other(_)) { next } else { first });
        if cause.is_none() && self.world.is_up(self.node) {
            return Err(Some(StartFailure::Other("the node neither serves nor says why".to_owned())));
        }
        Err(cause)
    }

    /// A start that nothing disturbs.
    fn boot_surely(&mut self) -> Option<Life> {
        self.world.crash_at_op(self.node, u64::MAX, CrashSite::Before);
        let mut errors = (0, 0, 0);
        self.world.faults(self.node, |faults| {
            errors = (faults.read_error_one_in, faults.write_error_one_in, faults.sync_error_one_in);
            (faults.read_error_one_in, faults.write_error_one_in, faults.sync_error_one_in) = (0, 0, 0);
        });
        let booted = self.boot();
        self.world.faults(self.node, |faults| {
            (faults.read_error_one_in, faults.write_error_one_in, faults.sync_error_one_in) = errors;
        });
        match booted {
            Ok(life) => Some(life),
            Err(why) => {
                let why = why.map_or_else(|| "the power failed".to_owned(), |why| why.to_string());
                self.fail(format!("the node does not start: {why}"));
                None
            }
        }
    }

    /// One life: traffic until the budget is used up or the node falls.
    fn live(&mut self, life: Life, budget: u64, number: u64) {
        self.shared.budget.set(budget);
        let target = self.shared.answered.get() + budget.saturating_sub(budget / 8);
        if self.setup.faults.full && self.prng.one_in(3) {
            self.fill_disk();
        }
        let fate = if number < CRASHES_MIN { self.prng.below(3) } else { self.prng.below(5) };
        self.draw_crash(fate);
        let (shared, world, node, board) = (self.shared.clone(), self.world.clone(), self.node, life.plan.board.clone());
        let done = move || shared.answered.get() >= target || !world.is_up(node) || board.trouble().is_some();
        self.world.run_until(STUCK, done);
        let stuck = self.shared.answered.get() < target && self.world.is_up(self.node) && life.plan.board.trouble().is_none();
        self.count(&life);
        if stuck {
            return self.fail("requests are not answered any more");
        }
        if let Some(trouble) = life.plan.board.trouble() {
            self.note(format!("a shard stopped: {trouble}"));
        }
        self.world.set_capacity(self.node, u64::MAX);
        match fate {
            _ if !self.world.is_up(self.node) => self.note("the power failed at a disk operation"),
            3 => {
                self.note("the process is killed");
                self.world.kill(self.node);
            }
            4 if life.plan.board.trouble().is_none() => return self.shut_down(life),
            _ => {
                self.note("the power fails");
                self.world.crash(self.node);
            }
        }
        self.outcome.crashes += 1;
        self.power_lost();
    }

    fn draw_crash(&mut self, fate: u64) {
        if fate < 2 {
            let site = [CrashSite::Before, CrashSite::During, CrashSite::After][self.prng.below(3) as usize];
            let at = self.prng.between(20, 1_500);
            let from = self.world.disk_ops(self.node);
            // Manifests are written rarely.
            match self.prng.one_in(6) {
                true => self.world.crash_at_op_on(self.node, from + at, site, "MANIFEST"),
                false => self.world.crash_at_op(self.node, from + at, site),
            }
        }
    }

    fn fill_disk(&mut self) {
        let room = self.prng.between(0, 400) * 1024;
        let bytes = self.world.disk_bytes(self.node) + room;
        self.note(format!("the disk has room for {room} bytes more"));
        self.world.set_capacity(self.node, bytes);
        let (world, node) = (self.world.clone(), self.node);
        let machine = self.world.add_machine(Faults::default());
        let after = Duration::from_millis(self.prng.between(5, 100));
        let io = self.world.spawn_core(machine, 0, &Wakers::new(1));
        let sleeper = io.clone();
        drop(io.spawn(Class::Background, async move {
            sleeper.sleep(after).await;
            world.set_capacity(node, u64::MAX);
            sleeper.shutdown();
        }));
    }

    fn power_lost(&mut self) {
        let now = self.world.now();
        self.shared.falls.borrow_mut().push((now, self.world.wall_ms(self.node)));
        let cores = self.cores;
        let owner = |key: u32| core_of(vnode_of(token_of(&key_name(key)), VNODES), cores);
        self.shared.checkers.iter().for_each(|checker| checker.borrow_mut().power_lost(now, owner));
    }

    /// Starts again, perhaps with other cores, perhaps with the power failing while it does.
    fn reboot(&mut self) -> Option<Life> {
        if self.setup.faults.clock && self.prng.one_in(3) {
            let offset = self.prng.below(40_000) as i64 - 30_000;
            self.note(format!("the wall clock is off by {offset} ms"));
            let before = self.world.wall_ms(self.node);
            self.shared.checkers.iter().for_each(|checker| checker.borrow_mut().clock_shows(before));
            self.shared.falls.borrow_mut().push((self.world.now(), self.world.wall_ms(self.node)));
            self.world.set_wall_offset_ms(self.node, offset);
        }
        self.draw_cores();
        self.world.crash_at_op(self.node, u64::MAX, CrashSite::Before);
        for _ in 0..self.prng.below(4) {
            let (is_moving, cores) = (self.is_moving(), self.cores);
            let site = [CrashSite::Before, CrashSite::During, CrashSite::After][self.prng.below(3) as usize];
            let at = self.prng.between(1, if is_moving { 300 } else { 60 });
            let from = self.world.disk_ops(self.node);
            self.world.crash_at_op(self.node, from + at, site);
            let is_full = is_moving && self.setup.faults.full && self.prng.one_in(4);
            if is_full {
                self.world.set_capacity(self.node, self.world.disk_bytes(self.node) + self.prng.below(800) * 1024);
            }
            let booted = self.boot();
            self.world.set_capacity(self.node, u64::MAX);
            match booted {
                Ok(life) => return Some(life),
                Err(None) => {
                    self.note("the power failed while it started");
                    if is_moving {
                        self.happened(CRASH_WHILE_MOVING);
                    }
                    self.outcome.crashes += 1;
                }
                Err(Some(why)) => {
                    let no_room = is_full && is_full_disk(&why);
                    if !no_room && !self.is_io_error(&why) {
                        self.fail(format!("the node does not start: {why}"));
                        return None;
                    }
                    if no_room {
                        self.happened(FULL_WHILE_MOVING);
                    }
                    self.note(format!("did not start: {why}"));
                    self.world.crash(self.node);
                }
            }
            self.power_lost();
            self.draw_cores();
            if is_moving && self.cores != cores {
                self.happened(CORES_CHANGED_AGAIN);
            }
        }
        self.boot_surely()
    }

    /// Perhaps the next start is one with other cores.
    fn draw_cores(&mut self) {
        if self.setup.cores.is_none() && self.prng.one_in(2) {
            self.cores = self.prng.between(1, 5) as u16;
        }
        let (cores, served) = (self.cores, self.served);
        self.note(if cores == served { format!("starts with {cores} cores") } else { format!("starts with {cores} cores after {served}") });
    }

    /// An injected error of the disk, rather than damage.
    fn is_io_error(&self, why: &StartFailure) -> bool {
        self.setup.faults.errors
            && matches!(why, StartFailure::Engine(EngineError::Io(_) | EngineError::DiskFull | EngineError::Stopped(_)))
    }

    fn shut_down(&mut self, life: Life) {
        self.note("shuts down");
        life.plan.stop.store(true, Ordering::Release);
        (0..usize::from(life.cores)).for_each(|core| self.world.wake(self.node, core));
        let (world, node) = (self.world.clone(), self.node);
        self.world.run_until(STUCK, || world.cores(node) == 0 || !world.is_up(node));
        self.count(&life);
        if !self.world.is_up(self.node) {
            self.note("the power failed while it shut down");
            self.outcome.crashes += 1;
            self.power_lost();
        } else if self.world.cores(self.node) > 0 {
            self.fail("the node does not end");
        } else if let Some(trouble) = life.plan.board.trouble() {
            // The log failed under the last writes: the node says so (exit code 6), and `interval` may lose what it may lose
            // in any failure.
            self.note(format!("a shard stopped while it shut down: {trouble}"));
            self.power_lost();
        }
        drop(life.wakers);
    }

    /// Adds up what the shards published.
    fn count(&mut self, life: &Life) {
        let report = life.plan.board.report();
        for (what, figure) in
            [("flushes", "flushes_total"), ("compactions", "compactions_total"), ("merges that gave way", "compactions_nested_total")]
        {
            *self.outcome.counts.entry(what).or_default() += report.total(figure) as u64;
        }
    }

    fn finish(mut self) -> Outcome {
        for (index, checker) in self.shared.checkers.iter().enumerate() {
            let checker = checker.borrow();
            let name = if index == 0 { "sync" } else { "interval" };
            self.outcome.failures.extend(checker.failures.iter().map(|failure| format!("{name} namespace, {failure}")));
            self.outcome.acknowledged += checker.acknowledged;
            let key = checker.failures.first().and_then(|failure| failure.strip_prefix("key ")?.split(':').next()?.parse().ok());
            self.outcome.timeline.extend(key.map_or_else(Vec::new, |key| checker.history(key)));
        }
        self.outcome.commands = self.shared.answered.get();
        self.outcome.faults.extend(self.world.stats().into_iter().map(|(name, count)| (name.to_owned(), count)));
        self.outcome.crash_sites = self.world.crash_sites();
        self.outcome.errors = self.shared.errors.borrow().iter().map(|(code, count)| (format!("{code:?}"), *count)).collect();
        self.outcome.fingerprint = self.world.fingerprint();
        self.world.end();
        self.outcome
    }
}

/// Sizes small enough that a few hundred writes flush and compact.
pub(super) fn small_engine(prng: &mut Prng, hash_seed: u64) -> EngineConfig {
    // More than an empty one takes for its index, else every write would be one too many.
    let memtable_bytes = prng.between(48, 160) as usize * 1024;
    EngineConfig {
        writer: 1,
        memtable_bytes,
        memtable_chunk_bytes: 4 * 1024,
        cache_bytes: prng.between(16, 256) as usize * 1024,
        wal_segment_bytes: 512 * 1024,
        wal_segments_max: prng.between(4, 10) as usize,
        wal_pending_bytes_max: 512 * 1024,
        table_bytes_max: prng.between(32, 256) * 1024,
        forget_after_ms: prng.one_in(2).then(|| prng.between(100, 2_000)),
        policy: Policy {
            level0_runs: prng.between(2, 4) as usize,
            level1_runs: 2,
            dead_bytes_min: 16 * 1024,
            nest_bytes: memtable_bytes as u64 / 4,
            ..Policy::default()
        },
        ..EngineConfig::new(0, 1 << 20, hash_seed)
    }
}

/// What a start says when the disk has no room for a move.
fn is_full_disk(why: &StartFailure) -> bool {
    match why {
        StartFailure::NoRoom { .. } | StartFailure::Engine(EngineError::DiskFull) => true,
        StartFailure::Engine(EngineError::Io(error)) => error.kind() == std::io::ErrorKind::StorageFull,
        _ => false,
    }
}

fn faults(prng: &mut Prng, set: FaultSet) -> Faults {
    let mut faults = if set.slow && prng.one_in(2) { Faults::rough() } else { Faults::default() };
    if set.errors && prng.one_in(4) {
        let hostile = Faults::hostile();
        faults.read_error_one_in = hostile.read_error_one_in;
        faults.write_error_one_in = hostile.write_error_one_in;
        faults.sync_error_one_in = hostile.sync_error_one_in;
    }
    if set.network {
        faults.chunk_one_in = prng.between(2, 20);
        faults.reset_one_in = if prng.one_in(2) { 2_000 } else { 0 };
    }
    faults
}
