//! Waiting within one core: a signal that wakes whoever waits for it, and a race of two futures.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

/// Wakes who waits. A waiter looks at its own condition again after each wake, so a signal without a cause is harmless.
#[derive(Default)]
pub struct Signal {
    round: Cell<u64>,
    waiting: RefCell<VecDeque<Waker>>,
}

impl Signal {
    pub fn new() -> Signal {
        Signal::default()
    }

    /// Wakes all who wait now.
    pub fn raise(&self) {
        self.round.set(self.round.get() + 1);
        // One by one: the queue keeps its memory, and nothing is borrowed while a waker runs.
        let waiting = self.waiting.borrow().len();
        for _ in 0..waiting {
            let Some(next) = self.waiting.borrow_mut().pop_front() else { return };
            next.wake();
        }
    }

    /// Wakes only the one who has waited longest: for a budget, where waking all would cost more than it gives.
    pub fn raise_first(&self) {
        self.round.set(self.round.get() + 1);
        let first = self.waiting.borrow_mut().pop_front();
        if let Some(first) = first {
            first.wake();
        }
    }

    /// Completes at the first `raise` after this call (not after the first poll).
    pub fn wait(&self) -> Wait<'_> {
        Wait { seen: self.round.get(), signal: self }
    }

    /// Waits until `done` says true; `done` is asked now and after every `raise`.
    pub async fn until(&self, mut done: impl FnMut() -> bool) {
        while !done() {
            self.wait().await;
        }
    }
}

/// A wait for a signal.
pub struct Wait<'a> {
    signal: &'a Signal,
    seen: u64,
}

impl Future for Wait<'_> {
    type Output = ();
    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if self.signal.round.get() != self.seen {
            return Poll::Ready(());
        }
        let mut waiting = self.signal.waiting.borrow_mut();
        if !waiting.iter().any(|waker| waker.will_wake(context.waker())) {
            waiting.push_back(context.waker().clone());
        }
        Poll::Pending
    }
}

/// Completes when either does; the other is dropped.
pub async fn race(one: impl Future<Output = ()>, other: impl Future<Output = ()>) {
    let (mut one, mut other) = (std::pin::pin!(one), std::pin::pin!(other));
    std::future::poll_fn(|context| match one.as_mut().poll(context) {
        Poll::Ready(()) => Poll::Ready(()),
        Poll::Pending => other.as_mut().poll(context),
    })
    .await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::pin::pin;

    fn poll<F: Future>(future: Pin<&mut F>) -> Poll<F::Output> {
        future.poll(&mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn a_raise_between_the_call_and_the_first_poll_is_seen() {
        let signal = Signal::new();
        let mut called = pin!(signal.wait());
        signal.raise();
        assert!(poll(called.as_mut()).is_ready());
        assert!(poll(pin!(signal.wait())).is_pending());
    }

    #[test]
    fn a_condition_is_asked_after_each_raise_and_a_race_ends_with_either() {
        let (signal, done) = (Signal::new(), Cell::new(false));
        let mut until = pin!(signal.until(|| done.get()));
        assert!(poll(until.as_mut()).is_pending());
        signal.raise();
        assert!(poll(until.as_mut()).is_pending());
        done.set(true);
        signal.raise_first();
        assert!(poll(until.as_mut()).is_ready());
        let other = Signal::new();
        let mut first = pin!(race(signal.wait(), other.wait()));
        assert!(poll(first.as_mut()).is_pending());
        other.raise();
        assert!(poll(first.as_mut()).is_ready());
    }
}
