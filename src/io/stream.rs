//! What has come in on a socket or a listener and was not taken yet, with the bound at which receiving pauses.
//!
//! A multishot receive has no backpressure of its own: the kernel delivers as long as it has buffers. So when what was delivered and
//! not taken exceeds a bound, the receive is cancelled (what was delivered on the way stays), and armed again when the reader has
//! taken everything. All drivers share this.

use super::buffer::Chunk;
use super::op::{Done, Fd, OpId, is_cancelled};
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::task::{Poll, Waker};

/// Received and not taken: above this many bytes a socket's receive pauses.
pub const UNREAD_BYTES_MAX: usize = 256 * 1024;
/// A core's sockets together: above this, one chunk pauses a socket's receive, so that many unread ones hold little.
pub const CORE_UNREAD_BYTES_MAX: usize = 16 * 1024 * 1024;
/// The same in chunks, which hold whole buffers of the ring.
pub const UNREAD_CHUNKS_MAX: usize = 64;
/// Accepted and not taken: above this many connections a listener's accept pauses.
pub const UNTAKEN_CONNECTIONS_MAX: usize = 256;

/// An arriving queue of a descriptor, fed by one multishot operation.
pub(super) struct Arrivals<T> {
    pub(super) fd: Fd,
    /// Received and not taken, by all of this core.
    unread: Rc<Cell<usize>>,
    state: RefCell<State<T>>,
}

struct State<T> {
    items: VecDeque<T>,
    bytes: usize,
    end: Option<End>,
    operation: Option<OpId>,
    pausing: bool,
    closed: bool,
    waker: Option<Waker>,
    /// Who waits for the end of the operation.
    idle_waker: Option<Waker>,
}

enum End {
    Orderly,
    Failed(io::Error),
}

/// An item of an arriving queue.
pub(super) trait Arrival: Sized {
    /// From a completion; `None` is the orderly end.
    fn from_done(done: Done) -> Option<Self>;
    fn bytes(&self) -> usize;
    fn count_max() -> usize;
    /// A failure is told once and may pass, or it is for good.
    const FAILURE_IS_FINAL: bool;
}

impl Arrival for Chunk {
    fn from_done(done: Done) -> Option<Chunk> {
        match done {
            Done::Received(chunk) if chunk.is_empty() => None,
            Done::Received(chunk) => Some(chunk),
            other => panic!("a receive gave {other:?}"),
        }
    }
    fn bytes(&self) -> usize {
        self.len()
    }
    fn count_max() -> usize {
        UNREAD_CHUNKS_MAX
    }
    const FAILURE_IS_FINAL: bool = true;
}

impl Arrival for (Fd, SocketAddr) {
    fn from_done(done: Done) -> Option<(Fd, SocketAddr)> {
        match done {
            Done::Accepted(fd, address) => Some((fd, address)),
            other => panic!("an accept gave {other:?}"),
        }
    }
    fn bytes(&self) -> usize {
        0
    }
    fn count_max() -> usize {
        UNTAKEN_CONNECTIONS_MAX
    }
    const FAILURE_IS_FINAL: bool = false;
}

/// What the executor does next for an arriving queue.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    Nothing,
    Cancel(OpId),
    Arm,
}

/// What a reader finds.
pub(super) enum Found<T> {
    Taken(T),
    End,
    Failed(io::Error),
    Nothing,
}

impl<T: Arrival> Arrivals<T> {
    pub(super) fn new(fd: Fd, unread: &Rc<Cell<usize>>) -> Arrivals<T> {
        let state = State {
            items: VecDeque::new(),
            bytes: 0,
            end: None,
            operation: None,
            pausing: false,
            closed: false,
            waker: None,
            idle_waker: None,
        };
        Arrivals { fd, unread: unread.clone(), state: RefCell::new(state) }
    }

    pub(super) fn is_closed(&self) -> bool {
        self.state.borrow().closed
    }

    /// Ends it; true the first time. What was not taken comes back.
    pub(super) fn close(&self) -> Option<VecDeque<T>> {
        let mut state = self.state.borrow_mut();
        if state.closed {
            return None;
        }
        state.closed = true;
        self.took(&mut state, usize::MAX);
        let items = std::mem::take(&mut state.items);
        let waker = state.waker.take();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
        Some(items)
    }

    /// So many bytes, or all, wait no longer.
    fn took(&self, state: &mut State<T>, bytes: usize) {
        let bytes = bytes.min(state.bytes);
        state.bytes -= bytes;
        self.unread.set(self.unread.get() - bytes);
    }

    /// The executor has submitted the multishot operation.
    pub(super) fn armed(&self, operation: OpId) {
        let mut state = self.state.borrow_mut();
        assert!(state.operation.is_none(), "armed twice");
        state.operation = Some(operation);
    }

    pub(super) fn is_idle(&self) -> bool {
        let state = self.state.borrow();
        state.operation.is_none() && state.end.is_none() && !state.closed
    }

    /// Asks for the end of receiving, without the loss of anything: the operation to cancel, if it was not asked before.
    pub(super) fn pause(&self) -> Option<OpId> {
        let mut state = self.state.borrow_mut();
        if state.operation.is_none() || std::mem::replace(&mut state.pausing, true) { None } else { state.operation }
    }

    /// Ready when no operation runs.
    pub(super) fn poll_idle(&self, waker: &Waker) -> Poll<()> {
        let mut state = self.state.borrow_mut();
        if state.operation.is_none() {
            return Poll::Ready(());
        }
        state.idle_waker = Some(waker.clone());
        Poll::Pending
    }

    /// Received and not taken.
    #[cfg(test)]
    pub(super) fn unread_bytes(&self) -> usize {
        self.state.borrow().bytes
    }

    /// A completion of the multishot operation. An item that came after the close is handed back in the first place.
    pub(super) fn on_completion(&self, result: io::Result<Done>, more: bool) -> (Option<T>, Next) {
        let mut state = self.state.borrow_mut();
        let mut orphan = None;
        match result.map(T::from_done) {
            Ok(Some(item)) if state.closed => orphan = Some(item),
            Ok(Some(item)) => {
                state.bytes += item.bytes();
                self.unread.set(self.unread.get() + item.bytes());
                state.items.push_back(item);
            }
            Ok(None) => state.end = Some(End::Orderly),
            Err(error) if state.pausing && is_cancelled(&error) => {}
            Err(error) => state.end = Some(End::Failed(error)),
        }
        let bytes_max = if self.unread.get() > CORE_UNREAD_BYTES_MAX { 0 } else { UNREAD_BYTES_MAX };
        let full = state.bytes > bytes_max || state.items.len() > T::count_max();
        let mut next = Next::Nothing;
        if !more {
            state.operation = None;
            state.pausing = false;
            if state.waker.is_some() && state.items.is_empty() && state.end.is_none() && !state.closed {
                next = Next::Arm;
            }
        } else if full && !state.pausing && !state.closed {
            state.pausing = true;
            next = Next::Cancel(state.operation.expect("it has just completed with more to come"));
        }
        let waker = if state.items.is_empty() && state.end.is_none() { None } else { state.waker.take() };
        let idle_waker = if more { None } else { state.idle_waker.take() };
        drop(state);
        waker.into_iter().chain(idle_waker).for_each(Waker::wake);
        (orphan, next)
    }

    /// Nothing has come that was not taken.
    pub(super) fn is_empty(&self) -> bool {
        self.state.borrow().items.is_empty()
    }

    /// Takes all items; leaves the waker where there is none.
    pub(super) fn take_all(&self, waker: &Waker) -> Found<VecDeque<T>> {
        let mut state = self.state.borrow_mut();
        if state.items.is_empty() || state.closed {
            return nothing(&mut state, waker);
        }
        self.took(&mut state, usize::MAX);
        Found::Taken(std::mem::take(&mut state.items))
    }

    /// Takes the first item; leaves the waker where there is none.
    pub(super) fn take_one(&self, waker: &Waker) -> Found<T> {
        let mut state = self.state.borrow_mut();
        if state.closed {
            return nothing(&mut state, waker);
        }
        let Some(item) = state.items.pop_front() else { return nothing(&mut state, waker) };
        self.took(&mut state, item.bytes());
        Found::Taken(item)
    }
}

fn nothing<T: Arrival, F>(state: &mut State<T>, waker: &Waker) -> Found<F> {
    if state.closed {
        return Found::Failed(super::closed_here());
    }
    match state.end.take() {
        Some(End::Orderly) => {
            state.end = Some(End::Orderly);
            Found::End
        }
        Some(End::Failed(error)) => {
            if T::FAILURE_IS_FINAL {
                let again = error.raw_os_error().map_or_else(|| error.kind().into(), io::Error::from_raw_os_error);
                state.end = Some(End::Failed(again));
            }
            Found::Failed(error)
        }
        None => {
            if !state.waker.as_ref().is_some_and(|old| old.will_wake(waker)) {
                state.waker = Some(waker.clone());
            }
            Found::Nothing
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_core_whose_sockets_hold_much_pauses_each_at_its_first_chunk() {
        let unread = Rc::new(Cell::new(0));
        let socket = || {
            let arrivals: Arrivals<Chunk> = Arrivals::new(Fd(0), &unread);
            arrivals.armed(7);
            arrivals
        };
        let receive = |arrivals: &Arrivals<Chunk>, bytes| arrivals.on_completion(Ok(Done::Received(Chunk::from(vec![0; bytes]))), true).1;
        let many: Vec<_> = (0..CORE_UNREAD_BYTES_MAX / UNREAD_BYTES_MAX).map(|_| socket()).collect();
        assert!(many.iter().all(|arrivals| receive(arrivals, UNREAD_BYTES_MAX) == Next::Nothing), "each alone is within its bound");
        let next = socket();
        assert_eq!(receive(&next, 100), Next::Cancel(7));
        assert!(matches!(many[0].take_all(Waker::noop()), Found::Taken(_)));
        many[1].close();
        assert_eq!(unread.get(), CORE_UNREAD_BYTES_MAX - 2 * UNREAD_BYTES_MAX + 100);
        assert_eq!(receive(&socket(), 100), Next::Nothing, "there is room again");
    }
}
