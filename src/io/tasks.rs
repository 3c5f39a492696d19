//! The tasks of one executor: where they live, which are ready, and whose turn it is.
//!
//! Wakers are plain `Arc`s with a mutex behind them, so they are safe wherever they go; but a wake from another thread does not end
//! a park (`Io::wake` does).

use super::Class;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

const CLASSES: usize = 3;
/// What a microsecond of each class costs it: shares are 16 : 4 : 1 while all are ready.
const STRIDES: [u64; CLASSES] = [1, 4, 16];
/// A poll is charged at least this, so that shares hold for the shortest ones too.
const CHARGE_NS_MIN: u64 = 1000;
/// Tasks of one core. Everything above this room is bounded far below it.
const TASKS_MAX: usize = 1 << 22;

type Queues = [VecDeque<Arc<Header>>; CLASSES];

#[derive(Default)]
struct Ready {
    queues: Mutex<Queues>,
    any: AtomicBool,
}

struct Header {
    index: usize,
    generation: u64,
    class: Class,
    queued: AtomicBool,
    ready: Arc<Ready>,
}

impl Wake for Header {
    fn wake(self: Arc<Header>) {
        Header::wake_by_ref(&self);
    }
    fn wake_by_ref(self: &Arc<Header>) {
        if !self.queued.swap(true, Ordering::SeqCst) {
            let mut queues = self.ready.queues.lock().unwrap_or_else(PoisonError::into_inner);
            queues[self.class as usize].push_back(self.clone());
            self.ready.any.store(true, Ordering::SeqCst);
        }
    }
}

/// A task outside its poll.
pub(super) struct Body {
    future: Pin<Box<dyn Future<Output = ()>>>,
    waker: Waker,
}

struct Slot {
    generation: u64,
    is_main: bool,
    body: Option<Body>,
}

#[derive(Default)]
struct Table {
    slots: Vec<Option<Slot>>,
    free: Vec<usize>,
    generation: u64,
    count: usize,
}

/// All tasks of an executor.
#[derive(Default)]
pub(super) struct Tasks {
    table: RefCell<Table>,
    ready: Arc<Ready>,
    local: RefCell<Queues>,
    passes: Cell<[u64; CLASSES]>,
    /// The pass of the class that went last: who wakes up later starts from here, without credit for its sleep.
    floor: Cell<u64>,
    /// Which classes were ready when last looked.
    awake: Cell<[bool; CLASSES]>,
}

impl Tasks {
    pub(super) fn spawn<T: 'static>(&self, class: Class, future: impl Future<Output = T> + 'static) -> Task<T> {
        self.insert(class, future, false)
    }

    pub(super) fn spawn_main<T: 'static>(&self, future: impl Future<Output = T> + 'static) -> Task<T> {
        self.insert(Class::Foreground, future, true)
    }

    fn insert<T: 'static>(&self, class: Class, future: impl Future<Output = T> + 'static, is_main: bool) -> Task<T> {
        let join = Rc::new(Join { result: Cell::new(None), waker: RefCell::new(None), done: Cell::new(false) });
        let shared = join.clone();
        let future = Box::pin(async move {
            let result = future.await;
            shared.set(result);
        });
        let mut table = self.table.borrow_mut();
        table.generation += 1;
        table.count += 1;
        let generation = table.generation;
        let index = table.free.pop().unwrap_or_else(|| {
            assert!(table.slots.len() < TASKS_MAX, "tasks without bound");
            table.slots.push(None);
            table.slots.len() - 1
        });
        let header = Arc::new(Header { index, generation, class, queued: AtomicBool::new(false), ready: self.ready.clone() });
        let waker = Waker::from(header);
        waker.wake_by_ref();
        table.slots[index] = Some(Slot { generation, is_main, body: Some(Body { future, waker }) });
        Task { join }
    }

    pub(super) fn count(&self) -> usize {
        self.table.borrow().count
    }

    /// Takes the tasks out (but `main`, if it is to be kept), to be dropped while nothing is borrowed. Not during a poll.
    pub(super) fn take_all(&self, keep_main: bool) -> Vec<Body> {
        let mut table = self.table.borrow_mut();
        let mut bodies = Vec::new();
        for index in 0..table.slots.len() {
            if table.slots[index].as_ref().is_some_and(|slot| !(keep_main && slot.is_main)) {
                bodies.extend(table.slots[index].take().and_then(|slot| slot.body));
                table.free.push(index);
                table.count -= 1;
            }
        }
        bodies
    }

    /// Moves what was woken to this core's own queues.
    pub(super) fn take_ready(&self) {
        if self.ready.any.load(Ordering::Acquire) {
            let mut queues = self.ready.queues.lock().unwrap_or_else(PoisonError::into_inner);
            self.ready.any.store(false, Ordering::SeqCst);
            for (mine, theirs) in self.local.borrow_mut().iter_mut().zip(queues.iter_mut()) {
                if mine.is_empty() {
                    std::mem::swap(mine, theirs);
                } else if !theirs.is_empty() {
                    mine.append(theirs);
                }
            }
        }
    }

    pub(super) fn any_ready(&self) -> bool {
        self.ready.any.load(Ordering::SeqCst) || self.local.borrow().iter().any(|queue| !queue.is_empty())
    }

    /// The ready class with the lowest pass.
    pub(super) fn next_class(&self) -> Option<Class> {
        let local = self.local.borrow();
        let (mut passes, mut awake) = (self.passes.get(), self.awake.get());
        let mut best = None;
        for class in [Class::Foreground, Class::Replication, Class::Background] {
            let index = class as usize;
            let ready = !local[index].is_empty();
            if ready && !awake[index] {
                passes[index] = passes[index].max(self.floor.get());
            }
            awake[index] = ready;
            if ready && best.is_none_or(|best: Class| passes[index] < passes[best as usize]) {
                best = Some(class);
            }
        }
        self.passes.set(passes);
        self.awake.set(awake);
        if let Some(best) = best {
            self.floor.set(passes[best as usize]);
        }
        best
    }

    /// A poll of this class took so long.
    pub(super) fn charge(&self, class: Class, took: Duration) {
        let mut passes = self.passes.get();
        passes[class as usize] += (took.as_nanos() as u64).max(CHARGE_NS_MIN) * STRIDES[class as usize];
        self.passes.set(passes);
    }

    /// Polls the first ready task of a class.
    pub(super) fn poll_one(&self, class: Class) {
        let Some(header) = self.local.borrow_mut()[class as usize].pop_front() else { return };
        header.queued.store(false, Ordering::SeqCst);
        let (index, generation) = (header.index, header.generation);
        let mut table = self.table.borrow_mut();
        let slot = table.slots[index].as_mut().filter(|slot| slot.generation == generation);
        let Some(mut body) = slot.and_then(|slot| slot.body.take()) else { return };
        drop(table);
        let polled = body.future.as_mut().poll(&mut Context::from_waker(&body.waker));
        let mut table = self.table.borrow_mut();
        match polled {
            Poll::Pending => table.slots[index].as_mut().expect("it was being polled").body = Some(body),
            Poll::Ready(()) => {
                table.slots[index] = None;
                table.free.push(index);
                table.count -= 1;
                drop(table);
                drop(body);
            }
        }
    }
}

struct Join<T> {
    result: Cell<Option<T>>,
    waker: RefCell<Option<Waker>>,
    done: Cell<bool>,
}

impl<T> Join<T> {
    fn set(&self, result: T) {
        self.result.set(Some(result));
        self.done.set(true);
        let waker = self.waker.borrow_mut().take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

/// A spawned task's result, to await. Dropping it lets the task run on. A task that shutdown dropped never gives one.
pub struct Task<T> {
    join: Rc<Join<T>>,
}

impl<T> Task<T> {
    /// One that never gives a result.
    pub(super) fn never() -> Task<T> {
        Task { join: Rc::new(Join { result: Cell::new(None), waker: RefCell::new(None), done: Cell::new(false) }) }
    }

    /// The task has ended.
    pub fn is_done(&self) -> bool {
        self.join.done.get()
    }

    pub fn take_result(&self) -> Option<T> {
        self.join.result.take()
    }
}

impl<T> Future for Task<T> {
    type Output = T;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<T> {
        if let Some(result) = self.join.result.take() {
            return Poll::Ready(result);
        }
        assert!(!self.join.done.get(), "polled after its end");
        let old = self.join.waker.borrow_mut().replace(context.waker().clone());
        drop(old);
        Poll::Pending
    }
}

/// Pending once, and woken at once.
#[derive(Default)]
pub(super) struct YieldNow {
    yielded: bool,
}

impl Future for YieldNow {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if std::mem::replace(&mut self.yielded, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    }
}
