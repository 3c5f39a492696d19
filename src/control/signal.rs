//! One bit from any thread to one task of the control core: it is fired once and stays so.

use std::future::poll_fn;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};

#[derive(Default)]
pub(super) struct Signal {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    fired: bool,
    /// The waiting task's.
    waker: Option<Waker>,
}

impl Signal {
    /// The wait ends, also one to come.
    pub(super) fn fire(&self) {
        let mut state = self.state();
        state.fired = true;
        let waker = state.waker.take();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Waits until it is fired. One task at a time may wait.
    pub(super) async fn fired(&self) {
        poll_fn(|context| {
            let mut state = self.state();
            if state.fired {
                return Poll::Ready(());
            }
            state.waker = Some(context.waker().clone());
            Poll::Pending
        })
        .await;
    }

    /// A panic while the lock was held cannot leave the state half changed.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
