//! One bit from any thread to the few tasks of the control core that await it: it is fired once and stays so.

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
    abrupt: bool,
    /// The waiting tasks'.
    wakers: Vec<Waker>,
}

impl Signal {
    /// The waits end, also those to come. `abruptly`: nobody is to be told.
    pub(super) fn fire(&self, abruptly: bool) {
        let mut state = self.state();
        (state.fired, state.abrupt) = (true, abruptly);
        let wakers = std::mem::take(&mut state.wakers);
        drop(state);
        wakers.into_iter().for_each(Waker::wake);
    }

    /// How it was fired.
    pub(super) fn is_abrupt(&self) -> bool {
        self.state().abrupt
    }

    /// Waits until it is fired.
    pub(super) async fn fired(&self) {
        poll_fn(|context| {
            let mut state = self.state();
            if state.fired {
                return Poll::Ready(());
            }
            if !state.wakers.iter().any(|waker| waker.will_wake(context.waker())) {
                state.wakers.push(context.waker().clone());
            }
            Poll::Pending
        })
        .await;
    }

    /// A panic while the lock was held cannot leave the state half changed.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
