//! The helper threads of one core's epoll driver: they make its file calls, first come first served.
//!
//! At most `CALLS_MAX` calls are handed over at a time (the rest waits with the driver), so neither the threads' queue nor the list of
//! outcomes grows beyond that. An outcome is made visible before the core is rung, by the same doorbell as messages of other cores: no
//! system call while the core is awake, none lost when it lies down.
//!
//! The threads are made by the core's thread and inherit its CPU, as the workers of a ring do.

use super::files::{Call, Outcome};
use super::host::{Thread, spawn_thread};
use super::op::OpId;
use super::wakers::Wakers;
use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Calls with the threads at a time, outcomes that were not taken included.
const CALLS_MAX: usize = 256;
/// Between two looks whether the threads have ended.
const END_LOOK: Duration = Duration::from_millis(1);

pub(super) struct FilePool {
    shared: Arc<Shared>,
    threads: Vec<Thread<()>>,
    /// Not handed over yet.
    waiting: VecDeque<(OpId, Call)>,
    /// Handed over, and the outcome not taken.
    handed: usize,
}

struct Shared {
    state: Mutex<State>,
    /// A call is there, or the end.
    work: Condvar,
    /// Outcomes in `state`, to look at without its lock.
    ended: AtomicUsize,
    wakers: Wakers,
    core: usize,
}

#[derive(Default)]
struct State {
    calls: VecDeque<(OpId, Call)>,
    outcomes: Vec<(OpId, io::Result<Outcome>)>,
    /// Threads that wait.
    idle: usize,
    closed: bool,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A thread's whole life. What was handed over is done before it ends.
    fn serve(&self) {
        let mut state = self.state();
        loop {
            if let Some((id, call)) = state.calls.pop_front() {
                drop(state);
                let outcome = call.make();
                state = self.state();
                state.outcomes.push((id, outcome));
                self.ended.store(state.outcomes.len(), Ordering::Release);
                drop(state);
                self.wakers.wake_from_outside(self.core);
                state = self.state();
            } else if state.closed {
                return;
            } else {
                state.idle += 1;
                state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
                state.idle -= 1;
            }
        }
    }
}

impl FilePool {
    /// `threads` helpers of core `core`, whose bell in `wakers` they ring.
    pub(super) fn new(threads: usize, core: usize, wakers: &Wakers) -> io::Result<FilePool> {
        assert!(threads > 0, "nobody would make the calls");
        let shared = Shared { state: Mutex::default(), work: Condvar::new(), ended: AtomicUsize::new(0), wakers: wakers.clone(), core };
        let mut pool = FilePool { shared: Arc::new(shared), threads: Vec::new(), waiting: VecDeque::new(), handed: 0 };
        for number in 0..threads {
            let shared = pool.shared.clone();
            pool.threads.push(spawn_thread(&format!("ringkv-{core}-io{number}"), move || shared.serve())?);
        }
        Ok(pool)
    }

    /// Takes a call; it reaches the threads with the next `hand_over`.
    pub(super) fn submit(&mut self, id: OpId, call: Call) {
        self.waiting.push_back((id, call));
    }

    /// Gives the threads what waits, as far as there is room.
    pub(super) fn hand_over(&mut self) {
        let count = self.waiting.len().min(CALLS_MAX - self.handed);
        if count == 0 {
            return;
        }
        let mut state = self.shared.state();
        state.calls.extend(self.waiting.drain(..count));
        let wanted = count.min(state.idle);
        drop(state);
        self.handed += count;
        (0..wanted).for_each(|_| self.shared.work.notify_one());
    }

    /// True if the call had not begun: it is gone, and gives no outcome.
    pub(super) fn cancel(&mut self, id: OpId) -> bool {
        if let Some(position) = self.waiting.iter().position(|(waiting, _)| *waiting == id) {
            self.waiting.remove(position);
            return true;
        }
        let mut state = self.shared.state();
        let Some(position) = state.calls.iter().position(|(queued, _)| *queued == id) else { return false };
        let removed = state.calls.remove(position);
        drop(state);
        drop(removed);
        self.handed -= 1;
        true
    }

    /// Calls are with the threads.
    pub(super) fn is_busy(&self) -> bool {
        self.handed > 0
    }

    /// Whether `take` would give something.
    pub(super) fn has_outcomes(&self) -> bool {
        self.handed > 0 && self.shared.ended.load(Ordering::Acquire) > 0
    }

    /// Appends the outcomes that have come, each call's once.
    pub(super) fn take(&mut self, out: &mut Vec<(OpId, io::Result<Outcome>)>) {
        if !self.has_outcomes() {
            return;
        }
        let before = out.len();
        let mut state = self.shared.state();
        out.append(&mut state.outcomes);
        self.shared.ended.store(0, Ordering::Release);
        drop(state);
        self.handed -= out.len() - before;
    }

    fn close(&self) {
        self.shared.state().closed = true;
        self.shared.work.notify_all();
    }

    /// Waits for the threads' end; false if a call has not ended within `patience`.
    pub(super) fn end(&mut self, patience: Duration) -> bool {
        self.close();
        let mut looks = patience.as_millis() / END_LOOK.as_millis();
        while looks > 0 && !self.threads.iter().all(Thread::is_finished) {
            std::thread::sleep(END_LOOK);
            looks -= 1;
        }
        self.threads.iter().all(Thread::is_finished)
    }
}

impl Drop for FilePool {
    fn drop(&mut self) {
        self.close();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::host::mono;

    /// Many more calls than may be handed over: all end, each once, and no more than the bound are ever away.
    #[test]
    fn calls_beyond_the_bound_wait_with_the_driver() {
        let mut pool = FilePool::new(2, 0, &Wakers::new(1)).unwrap();
        let calls = 3 * CALLS_MAX as u64;
        for id in 0..calls {
            pool.submit(id, Call::List { path: "/nowhere/at/all".into() });
        }
        let (mut seen, mut out) = (vec![0; calls as usize], Vec::new());
        let start = mono();
        while seen.contains(&0) {
            pool.hand_over();
            assert!(pool.handed <= CALLS_MAX && pool.shared.state().outcomes.len() <= CALLS_MAX);
            pool.take(&mut out);
            for (id, outcome) in out.drain(..) {
                assert!(outcome.is_err_and(|error| error.kind() == io::ErrorKind::NotFound));
                seen[id as usize] += 1;
            }
            assert!(mono().since(start) < Duration::from_secs(30), "calls are lost");
        }
        assert!(seen.iter().all(|times| *times == 1) && !pool.is_busy());
        assert!(pool.end(Duration::from_secs(30)));
    }

    #[test]
    fn a_call_that_waits_can_be_cancelled_and_one_that_ended_cannot() {
        let mut pool = FilePool::new(1, 0, &Wakers::new(1)).unwrap();
        pool.submit(1, Call::List { path: "/".into() });
        pool.submit(2, Call::List { path: "/".into() });
        assert!(pool.cancel(2) && !pool.cancel(2));
        let mut out = Vec::new();
        while out.is_empty() {
            pool.hand_over();
            pool.take(&mut out);
            std::thread::sleep(END_LOOK);
        }
        assert!(matches!(&out[..], [(1, Ok(Outcome::Entries(_)))]));
        assert!(!pool.cancel(1) && pool.end(Duration::from_secs(30)));
    }
}
