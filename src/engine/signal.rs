//! Waiting within one core: a signal that wakes everybody who waits for it, and a race of two futures.

use std::cell::RefCell;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

/// Wakes all who wait. Who waits looks again at what it waited for, so a signal without a cause is harmless.
#[derive(Default)]
pub struct Signal {
    state: RefCell<State>,
}

#[derive(Default)]
struct State {
    fired: u64,
    wakers: Vec<Waker>,
}

impl Signal {
    pub fn new() -> Signal {
        Signal::default()
    }

    /// Everybody who waits now goes on.
    pub fn notify(&self) {
        let wakers = {
            let mut state = self.state.borrow_mut();
            state.fired += 1;
            std::mem::take(&mut state.wakers)
        };
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Completes at the first `notify` after this call (not after the first poll).
    pub fn wait(&self) -> Wait<'_> {
        Wait { seen: self.state.borrow().fired, signal: self }
    }
}

/// A wait for a signal.
pub struct Wait<'a> {
    signal: &'a Signal,
    seen: u64,
}

impl Future for Wait<'_> {
    type Output = ();
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut state = self.signal.state.borrow_mut();
        if state.fired != self.seen {
            return Poll::Ready(());
        }
        if !state.wakers.iter().any(|waker| waker.will_wake(cx.waker())) {
            state.wakers.push(cx.waker().clone());
        }
        Poll::Pending
    }
}

/// Completes when either does; the other is dropped.
pub async fn race(one: impl Future<Output = ()>, other: impl Future<Output = ()>) {
    let (mut one, mut other) = (std::pin::pin!(one), std::pin::pin!(other));
    std::future::poll_fn(|cx| match one.as_mut().poll(cx) {
        Poll::Ready(()) => Poll::Ready(()),
        Poll::Pending => other.as_mut().poll(cx),
    })
    .await
}
