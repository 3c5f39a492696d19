//! The executor of one core: tasks in classes with shares, timers, the inbox, and operations waiting for their completions.
//!
//! One round: take completions, fire timers, look at the inbox, run ready tasks. Shares are by time (stride scheduling, Waldspurger and
//! Weihl, 1995): each class has a pass that grows by the time its tasks took, times its stride, and the ready class with the lowest
//! pass goes next; within a class tasks are FIFO. What foreground tasks submitted reaches the kernel before a background slice begins.
//!
//! There are no thread-locals and no globals: a simulated world turns many executors in one thread.

use super::driver::Driver;
use super::op::{Completion, Done, Fd, Op, OpId};
use super::pool::Pool;
use super::stream::{Arrival, Arrivals, Next};
use super::tasks::{Task, Tasks};
use super::wakers::Wakers;
use super::{Class, FileHandle, Io, OnSent};
use crate::base::time::{Mono, WallMs};
use crate::limits::SLICE_US;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

/// A round ends after this many polls, or after a slice's time, so that completions are taken.
const POLLS_A_ROUND_MAX: usize = 256;
/// How long `run` looks for work before it parks, unless told otherwise.
const SPIN_DEFAULT: Duration = Duration::from_micros(20);
/// Operations in flight on one core. Everything above this room is bounded far below it.
const OPERATIONS_MAX: usize = 1 << 24;

/// What a turn left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// Something is ready: turn again.
    Busy,
    /// Nothing to do before `until` (for ever, if `None`) unless a completion or a wake comes. The core counts as asleep.
    Idle { until: Option<Mono> },
}

/// One core's executor. `run` it on a real driver; a simulated world calls `turn`.
pub struct Executor {
    inner: Rc<Inner>,
    spin: Duration,
}

/// An operation that has not been taken by its waiter.
enum Waiting {
    /// A future waits for it.
    Future(Option<Waker>),
    Ended(io::Result<Done>),
    /// Nobody waits; a file whose operation it is stays open until then.
    Forgotten(#[expect(dead_code, reason = "held until the operation ends")] Option<Rc<FileHandle>>),
    /// A send whose end is told, without a task.
    Sent(Rc<dyn OnSent>),
    Receive(Rc<Arrivals<super::buffer::Chunk>>),
    Accept(Rc<Arrivals<(Fd, SocketAddr)>>),
}

#[derive(Default)]
struct Operations {
    /// Generation, what waits, and whether it goes on at shutdown (closes do).
    slots: Vec<(u32, Option<Waiting>, bool)>,
    free: Vec<u32>,
}

impl Operations {
    fn insert(&mut self, waiting: Waiting, survives: bool) -> OpId {
        let index = self.free.pop().unwrap_or_else(|| {
            assert!(self.slots.len() < OPERATIONS_MAX, "operations without bound");
            self.slots.push((0, None, false));
            (self.slots.len() - 1) as u32
        });
        let slot = &mut self.slots[index as usize];
        assert!(slot.1.is_none());
        // The top bit of an id is the driver's.
        *slot = ((slot.0 + 1) & 0x7FFF_FFFF, Some(waiting), survives);
        (u64::from(slot.0) << 32) | u64::from(index)
    }

    fn get(&mut self, id: OpId) -> Option<&mut Option<Waiting>> {
        let slot = self.slots.get_mut(id as u32 as usize)?;
        (u64::from(slot.0) == id >> 32 && slot.1.is_some()).then_some(&mut slot.1)
    }

    fn remove(&mut self, id: OpId) -> Option<Waiting> {
        let waiting = self.get(id)?.take();
        self.free.push(id as u32);
        waiting
    }

    fn cancellable(&self) -> Vec<OpId> {
        let named = self.slots.iter().enumerate();
        named
            .filter(|(_, (_, waiting, survives))| !survives && !matches!(waiting, None | Some(Waiting::Ended(_))))
            .map(|(index, slot)| (u64::from(slot.0) << 32) | index as u64)
            .collect()
    }
}

/// Timers by instant, then by order of setting.
#[derive(Default)]
pub(super) struct Timers {
    sequence: u64,
    by_time: BTreeMap<(Mono, u64), Waker>,
}

type Pending = Rc<dyn Fn() -> bool>;

pub(super) struct Inner {
    pub(super) driver: RefCell<Driver>,
    pub(super) core: usize,
    pub(super) wakers: Wakers,
    pub(super) now: Cell<Mono>,
    /// Wall time, where somebody asked for it since `now` was read.
    wall_ms: Cell<Option<WallMs>>,
    slice_start: Cell<Mono>,
    pub(super) tasks: Tasks,
    operations: RefCell<Operations>,
    timers: RefCell<Timers>,
    inbox: RefCell<Option<Pending>>,
    inbox_waiters: RefCell<Vec<Waker>>,
    pub(super) stopping: Cell<bool>,
    stopped: Cell<bool>,
    /// The executor is gone: nothing is submitted any more.
    dead: Cell<bool>,
    asleep: Cell<bool>,
    /// Durable writes and syncs in flight.
    pub(super) syncing: Cell<usize>,
    completions: RefCell<Vec<Completion>>,
    pub(super) pool: Rc<Pool>,
    /// Bytes that came in on sockets and were not taken.
    pub(super) unread: Rc<Cell<usize>>,
}

impl Inner {
    fn start(&self, op: Op, waiting: Waiting) -> OpId {
        let survives = matches!(op, Op::Close { .. });
        let refused = self.dead.get() || (self.stopping.get() && !survives);
        let id = self.operations.borrow_mut().insert(waiting, survives);
        if refused {
            self.complete(Completion { id, result: Err(shut_down()), more: false });
        } else {
            self.driver.borrow_mut().submit(id, op);
        }
        id
    }

    /// Submits a send whose end `sink` is told.
    pub(super) fn send_to(&self, socket: Fd, bytes: Vec<u8>, sink: Rc<dyn OnSent>) {
        self.start(Op::Send { socket, bytes }, Waiting::Sent(sink));
    }

    /// Submits an operation whose end nobody waits for.
    pub(super) fn forget(&self, op: Op) {
        if !self.dead.get() {
            self.start(op, Waiting::Forgotten(None));
        }
    }

    pub(super) fn arm_receive(&self, arrivals: &Rc<Arrivals<super::buffer::Chunk>>) {
        if arrivals.is_idle() && !self.dead.get() && !self.stopping.get() {
            let id = self.start(Op::Receive { socket: arrivals.fd }, Waiting::Receive(arrivals.clone()));
            arrivals.armed(id);
        }
    }

    pub(super) fn arm_accept(&self, arrivals: &Rc<Arrivals<(Fd, SocketAddr)>>) {
        if arrivals.is_idle() && !self.dead.get() && !self.stopping.get() {
            let id = self.start(Op::Accept { listener: arrivals.fd }, Waiting::Accept(arrivals.clone()));
            arrivals.armed(id);
        }
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.stopping.get() || self.dead.get()
    }

    /// Hands a completion to whom it belongs. Nothing is borrowed while foreign code (wakers, drops) runs.
    fn complete(&self, completion: Completion) {
        let Completion { id, result, more } = completion;
        let mut operations = self.operations.borrow_mut();
        let Some(slot) = operations.get(id) else { panic!("a completion for no operation: {id:x}") };
        match slot.as_mut().expect("get gives what is there") {
            Waiting::Future(waker) => {
                assert!(!more, "a single operation with more to come");
                let waker = waker.take();
                *slot = Some(Waiting::Ended(result));
                drop(operations);
                if let Some(waker) = waker {
                    waker.wake();
                }
            }
            Waiting::Ended(_) => panic!("an operation ended twice: {id:x}"),
            Waiting::Sent(_) => {
                let waiting = operations.remove(id);
                drop(operations);
                if let Some(Waiting::Sent(sink)) = waiting {
                    sink.sent(result.map(super::sent_bytes));
                }
            }
            Waiting::Forgotten(_) => {
                let waiting = if more { None } else { operations.remove(id) };
                drop(operations);
                drop(waiting);
                if let Ok(done) = result {
                    self.give_back(done);
                }
            }
            Waiting::Receive(arrivals) => {
                let arrivals = arrivals.clone();
                let ended = if more { None } else { operations.remove(id) };
                drop(operations);
                drop(ended);
                let next = self.arrive(&arrivals, result, more);
                if next {
                    self.arm_receive(&arrivals);
                }
            }
            Waiting::Accept(arrivals) => {
                let arrivals = arrivals.clone();
                let ended = if more { None } else { operations.remove(id) };
                drop(operations);
                drop(ended);
                if self.arrive(&arrivals, result, more) {
                    self.arm_accept(&arrivals);
                }
            }
        }
    }

    /// True if the multishot operation is to be armed again.
    fn arrive<T: Arrival + Orphan>(&self, arrivals: &Arrivals<T>, result: io::Result<Done>, more: bool) -> bool {
        let (orphan, next) = arrivals.on_completion(result, more);
        if let Some(fd) = orphan.and_then(Orphan::fd) {
            self.forget(Op::Close { fd });
        }
        if let Next::Cancel(id) = next {
            self.driver.borrow_mut().cancel(id);
        }
        next == Next::Arm
    }

    /// Nobody took what an operation gave: descriptors are closed, buffers dropped.
    fn give_back(&self, done: Done) {
        match done {
            Done::Opened(fd) | Done::Bound(fd, _) | Done::Accepted(fd, _) => self.forget(Op::Close { fd }),
            _ => {}
        }
    }

    fn fire_timers(&self) {
        loop {
            let mut timers = self.timers.borrow_mut();
            let due = match timers.by_time.first_entry() {
                Some(entry) if entry.key().0 <= self.now.get() || self.stopping.get() => entry.remove(),
                _ => break,
            };
            drop(timers);
            due.wake();
        }
    }

    fn inbox_pending(&self) -> bool {
        let pending = self.inbox.borrow().clone();
        pending.is_some_and(|pending| pending())
    }

    fn look_at_inbox(&self) {
        if !self.inbox_waiters.borrow().is_empty() && (self.stopping.get() || self.inbox_pending()) {
            let waiters = std::mem::take(&mut *self.inbox_waiters.borrow_mut());
            waiters.into_iter().for_each(Waker::wake);
        }
    }

    /// Once: tasks are dropped but `main`, operations cancelled.
    fn stop(&self) {
        if !self.stopping.get() || self.stopped.replace(true) {
            return;
        }
        drop(self.tasks.take_all(true));
        let ids = self.operations.borrow().cancellable();
        for id in ids {
            self.driver.borrow_mut().cancel(id);
        }
    }

    pub(super) fn read_clock(&self) -> Mono {
        let now = self.driver.borrow().now();
        self.now.set(now);
        self.wall_ms.set(None);
        now
    }

    /// Read once for each reading of `now`, if at all.
    pub(super) fn wall_ms(&self) -> WallMs {
        self.wall_ms.get().unwrap_or_else(|| {
            let ms = self.driver.borrow().wall_ms();
            self.wall_ms.set(Some(ms));
            ms
        })
    }

    pub(super) fn slice_is_over(&self) -> bool {
        self.read_clock().since(self.slice_start.get()) >= Duration::from_micros(SLICE_US)
    }

    fn run_tasks(&self) {
        let begin = self.now.get();
        for polls in 0..POLLS_A_ROUND_MAX {
            if self.stopping.get() && !self.stopped.get() {
                // `shutdown` was called in this round: the next one begins with it.
                return;
            }
            self.tasks.take_ready();
            let Some(class) = self.tasks.next_class() else { return };
            if class == Class::Background && polls > 0 {
                return;
            }
            let start = self.now.get();
            self.slice_start.set(start);
            self.tasks.poll_one(class);
            let end = self.read_clock();
            self.tasks.charge(class, end.since(start));
            if end.since(begin) > Duration::from_micros(SLICE_US) {
                return;
            }
        }
    }

    fn round(&self) -> Turn {
        if self.asleep.replace(false) {
            self.wakers.get_up(self.core);
        }
        let mut completions = self.completions.take();
        self.driver.borrow_mut().poll(&mut completions);
        self.read_clock();
        for completion in completions.drain(..) {
            self.complete(completion);
        }
        *self.completions.borrow_mut() = completions;
        self.stop();
        self.fire_timers();
        self.look_at_inbox();
        self.run_tasks();
        if self.tasks.any_ready() || (self.stopping.get() && !self.stopped.get()) {
            return Turn::Busy;
        }
        let until = self.timers.borrow().by_time.first_key_value().map(|(key, _)| key.0);
        match until {
            Some(until) if until <= self.now.get() => Turn::Busy,
            until => Turn::Idle { until },
        }
    }

    /// Says that this core sleeps, then looks once more: false if there is something to do after all.
    fn lie_down(&self) -> bool {
        self.asleep.set(true);
        self.wakers.lie_down(self.core);
        let waited_for = !self.inbox_waiters.borrow().is_empty();
        !(self.tasks.any_ready() || (waited_for && self.inbox_pending()))
    }
}

trait Orphan {
    fn fd(self) -> Option<Fd>;
}

impl Orphan for super::buffer::Chunk {
    fn fd(self) -> Option<Fd> {
        None
    }
}

impl Orphan for (Fd, SocketAddr) {
    fn fd(self) -> Option<Fd> {
        Some(self.0)
    }
}

pub(super) fn shut_down() -> io::Error {
    io::Error::new(io::ErrorKind::Interrupted, "the executor has shut down")
}

impl Executor {
    /// An executor for core `core` of those that `wakers` knows.
    pub fn new(driver: Driver, core: usize, wakers: Wakers) -> Executor {
        assert!(core < wakers.cores(), "core {core} of {}", wakers.cores());
        let (now, pool) = (driver.now(), driver.pool());
        let inner = Inner {
            driver: RefCell::new(driver),
            core,
            wakers,
            now: Cell::new(now),
            wall_ms: Cell::new(None),
            slice_start: Cell::new(now),
            tasks: Tasks::default(),
            operations: RefCell::default(),
            timers: RefCell::default(),
            inbox: RefCell::default(),
            inbox_waiters: RefCell::default(),
            stopping: Cell::new(false),
            stopped: Cell::new(false),
            dead: Cell::new(false),
            asleep: Cell::new(false),
            syncing: Cell::new(0),
            completions: RefCell::default(),
            pool,
            unread: Rc::default(),
        };
        Executor { inner: Rc::new(inner), spin: SPIN_DEFAULT }
    }

    /// How long `run` looks for work before it parks (a knob: latency against the CPU of an idle core).
    pub fn set_spin(&mut self, spin: Duration) {
        self.spin = spin;
    }

    /// The handle that tasks use.
    pub fn handle(&self) -> Io {
        Io { inner: self.inner.clone() }
    }

    /// Spawns `main` for who calls `turn`: `shutdown` does not drop it, and its end is a shutdown.
    pub fn start<T: 'static>(&mut self, main: impl Future<Output = T> + 'static) -> Task<T> {
        let inner = Rc::downgrade(&self.inner);
        self.inner.tasks.spawn_main(async move {
            let result = main.await;
            if let Some(inner) = inner.upgrade() {
                inner.stopping.set(true);
            }
            result
        })
    }

    /// One round. On `Idle` the core counts as asleep until the next turn: a `wake` reaches its driver as `Op::Wake`.
    pub fn turn(&mut self) -> Turn {
        match self.inner.round() {
            Turn::Idle { .. } if !self.inner.lie_down() => Turn::Busy,
            turn => turn,
        }
    }

    /// After a shutdown: no task is left and nothing is in flight.
    pub fn is_finished(&self) -> bool {
        self.inner.stopped.get() && self.inner.tasks.count() == 0 && self.inner.driver.borrow().in_flight() == 0
    }

    /// Runs until `main` has ended and everything in flight was cancelled and drained. When a task calls `shutdown`, the other tasks are
    /// dropped, and `main` must end by itself: from then on operations fail, sleeps and `inbox` end at once.
    pub fn run<T: 'static>(&mut self, main: impl Future<Output = T> + 'static) -> T {
        let inner = self.inner.clone();
        let main: Task<T> = inner.tasks.spawn_main(main);
        let mut idle_since = None;
        loop {
            let turn = inner.round();
            if inner.syncing.get() > 0 || inner.driver.borrow().lends_cpu() {
                // The kernel finishes a durable write in a worker of this CPU, and file threads live here. A core that never sleeps
                // would keep them waiting for a whole scheduler slice (measured: 4 ms instead of 0.1).
                std::thread::yield_now();
            }
            if main.is_done() {
                inner.stopping.set(true);
                if self.is_finished() {
                    break;
                }
            }
            let Turn::Idle { until } = turn else {
                idle_since = None;
                continue;
            };
            let stuck = inner.stopped.get() && inner.driver.borrow().in_flight() == 0 && until.is_none();
            assert!(!stuck || main.is_done(), "main waits for what shutdown has dropped");
            if main.is_done() && !inner.stopped.get() {
                continue;
            }
            let now = inner.now.get();
            if now.since(*idle_since.get_or_insert(now)) < self.spin {
                std::hint::spin_loop();
                continue;
            }
            if inner.lie_down() {
                inner.driver.borrow_mut().park(until);
            }
            idle_since = None;
        }
        main.take_result().expect("main has ended")
    }
}

impl Drop for Executor {
    fn drop(&mut self) {
        self.inner.dead.set(true);
        drop(self.inner.tasks.take_all(false));
        // Ids stay used: futures that outlive the executor must not find another's operation.
        let operations: Vec<_> = self.inner.operations.borrow_mut().slots.iter_mut().filter_map(|slot| slot.1.take()).collect();
        let timers = std::mem::take(&mut *self.inner.timers.borrow_mut());
        let waiters = std::mem::take(&mut *self.inner.inbox_waiters.borrow_mut());
        let inbox = self.inner.inbox.borrow_mut().take();
        drop((operations, timers, waiters, inbox));
    }
}

/// The future of one operation. Dropped early, the operation runs on to its end (a connect is cancelled) and what it gives is given back.
/// Counts a durable write or a sync while it is in flight.
pub(super) struct Syncing(Rc<Inner>);

impl Syncing {
    pub(super) fn begin(inner: &Rc<Inner>) -> Syncing {
        inner.syncing.set(inner.syncing.get() + 1);
        Syncing(inner.clone())
    }
}

impl Drop for Syncing {
    fn drop(&mut self) {
        self.0.syncing.set(self.0.syncing.get() - 1);
    }
}

pub(super) struct OpFuture {
    inner: Rc<Inner>,
    id: OpId,
    file: Option<Rc<FileHandle>>,
    cancel_on_drop: bool,
    taken: bool,
}

impl OpFuture {
    pub(super) fn new(inner: &Rc<Inner>, op: Op, file: Option<&Rc<FileHandle>>) -> OpFuture {
        let cancel_on_drop = matches!(op, Op::Connect { .. });
        let id = inner.start(op, Waiting::Future(None));
        OpFuture { inner: inner.clone(), id, file: file.cloned(), cancel_on_drop, taken: false }
    }
}

impl Future for OpFuture {
    type Output = io::Result<Done>;

    fn poll(mut self: std::pin::Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<Done>> {
        assert!(!self.taken, "polled after its end");
        let inner = self.inner.clone();
        let mut operations = inner.operations.borrow_mut();
        match operations.get(self.id) {
            None => Poll::Ready(Err(shut_down())),
            Some(Some(Waiting::Future(waker))) => {
                if !waker.as_ref().is_some_and(|old| old.will_wake(context.waker())) {
                    *waker = Some(context.waker().clone());
                }
                Poll::Pending
            }
            Some(_) => {
                let Some(Waiting::Ended(result)) = operations.remove(self.id) else { panic!("not this future's operation") };
                self.taken = true;
                Poll::Ready(result)
            }
        }
    }
}

impl Drop for OpFuture {
    fn drop(&mut self) {
        if self.taken {
            return;
        }
        let mut operations = self.inner.operations.borrow_mut();
        let ended = match operations.get(self.id) {
            None => return,
            Some(slot @ Some(Waiting::Future(_))) => {
                *slot = Some(Waiting::Forgotten(self.file.take()));
                None
            }
            Some(_) => operations.remove(self.id),
        };
        drop(operations);
        match ended {
            Some(Waiting::Ended(Ok(done))) => self.inner.give_back(done),
            Some(_) => {}
            None if self.cancel_on_drop && !self.inner.dead.get() => self.inner.driver.borrow_mut().cancel(self.id),
            None => {}
        }
    }
}

/// Ends at an instant, or at shutdown.
pub(super) struct Sleep {
    inner: Rc<Inner>,
    at: Mono,
    key: Option<(Mono, u64)>,
}

impl Sleep {
    pub(super) fn new(inner: &Rc<Inner>, at: Mono) -> Sleep {
        Sleep { inner: inner.clone(), at, key: None }
    }
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: std::pin::Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if self.inner.now.get() >= self.at || self.inner.is_stopping() {
            return Poll::Ready(());
        }
        let inner = self.inner.clone();
        let mut timers = inner.timers.borrow_mut();
        if self.key.is_none() {
            timers.sequence += 1;
            self.key = Some((self.at, timers.sequence));
        }
        let key = self.key.expect("set above");
        let old = timers.by_time.insert(key, context.waker().clone());
        drop(timers);
        drop(old);
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        let waker = self.key.and_then(|key| self.inner.timers.borrow_mut().by_time.remove(&key));
        drop(waker);
    }
}

/// Ends when the inbox's hook says so.
pub(super) struct Inbox {
    pub(super) inner: Rc<Inner>,
}

impl Future for Inbox {
    type Output = ();

    fn poll(self: std::pin::Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if self.inner.is_stopping() || self.inner.inbox_pending() {
            return Poll::Ready(());
        }
        let mut waiters = self.inner.inbox_waiters.borrow_mut();
        if !waiters.iter().any(|waiter| waiter.will_wake(context.waker())) {
            waiters.push(context.waker().clone());
        }
        Poll::Pending
    }
}

impl Inner {
    /// Rings another core's driver.
    pub(super) fn ring(&self, core: usize) {
        if !self.dead.get() {
            self.driver.borrow_mut().submit(0, Op::Wake { core });
        }
    }

    pub(super) fn set_inbox(&self, pending: Box<dyn Fn() -> bool>) {
        let old = self.inbox.borrow_mut().replace(Rc::from(pending));
        drop(old);
    }
}
