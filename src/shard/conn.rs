//! One connection's outgoing side: the bytes to send, what is still being worked on, and when to stop reading.
//!
//! Answers are encoded straight into `out`; `flush` sends all that a turn left there with one operation, and what came meanwhile with
//! the next. A connection whose client does not read is not read from: the reader waits in `room` while too much is on its way.

use super::admit::Admit;
use super::budget::{Budget, Lease};
use crate::base::time::Mono;
use crate::io::signal::Signal;
use crate::io::{Io, OnSent, Socket};
use crate::limits::{
    CONNECTION_BYTES_MAX, CONNECTION_OUT_BYTES_FREE, CONNECTION_OUT_BYTES_MAX, CONNECTION_REQUESTS_MAX, FRAME_BYTES_MAX, IDLE_MS_MAX,
    STALLED_MS_MAX,
};
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

/// A buffer that grew for one large answer is not kept for small ones.
const SPARE_BYTES_MAX: usize = 256 * 1024;

/// The outgoing side of a connection, shared by its reader and every answer on its way.
pub struct Conn {
    admit: Rc<Admit>,
    /// Where it goes; none in tests of the budgets.
    outlet: Option<(Io, Socket)>,
    /// Encoded answers that were not sent yet.
    pub out: RefCell<Vec<u8>>,
    /// An empty buffer to encode the next ones into.
    spare: Cell<Vec<u8>>,
    /// Bytes that the driver has.
    sending: Cell<usize>,
    /// Since when.
    sending_since: Cell<Mono>,
    /// Bytes of answers that are counted in its own budget, and beyond what is free in the core's.
    counted: Cell<usize>,
    counted_beyond: Cell<usize>,
    /// The large request that is coming in, and since when.
    pub incoming: Cell<Option<Incoming>>,
    /// Requests taken in and not answered.
    pending: Cell<usize>,
    /// Bytes of its requests that are kept while they wait.
    kept: Cell<usize>,
    /// Its answers, made and promised.
    answers: Rc<Budget>,
    /// Something was sent or answered.
    pub drained: Signal,
    pub closed: Cell<bool>,
    /// In the shard's list of connections to flush.
    pub dirty: Cell<bool>,
    /// The epoch of the topology that its client was told last, if it wants to be told of later ones.
    pub told_epoch: Cell<Option<u64>>,
}

/// A large request whose end has not come: it has a share of the core's budget for these.
#[derive(Clone, Copy, Debug)]
pub struct Incoming {
    pub id: u64,
    pub since: Mono,
    /// When its last bytes came.
    pub last: Mono,
}

impl Incoming {
    /// It comes too slowly for those who wait for what it holds.
    pub fn is_stuck(&self, now: Mono) -> bool {
        now.since(self.since) >= Duration::from_millis(STALLED_MS_MAX) || now.since(self.last) >= Duration::from_millis(IDLE_MS_MAX)
    }
}

impl Conn {
    /// A connection of the core whose budgets these are.
    pub fn new(admit: &Rc<Admit>, outlet: Option<(Io, Socket)>) -> Conn {
        Conn {
            admit: admit.clone(),
            outlet,
            out: RefCell::default(),
            spare: Cell::default(),
            sending: Cell::new(0),
            sending_since: Cell::default(),
            counted: Cell::new(0),
            counted_beyond: Cell::new(0),
            incoming: Cell::default(),
            pending: Cell::new(0),
            kept: Cell::new(0),
            answers: Budget::new(CONNECTION_OUT_BYTES_MAX),
            drained: Signal::default(),
            closed: Cell::new(false),
            dirty: Cell::new(false),
            told_epoch: Cell::default(),
        }
    }

    /// Bytes waiting or being sent.
    pub fn out_bytes(&self) -> usize {
        self.out.borrow().len() + self.sending.get()
    }

    /// Bytes of answers that it may hold now: little while the core holds all that it may.
    fn out_max(&self) -> usize {
        if self.admit.answers.is_short() { CONNECTION_OUT_BYTES_FREE } else { CONNECTION_OUT_BYTES_MAX }
    }

    /// Another request may be taken in.
    pub fn has_room(&self) -> bool {
        self.out_bytes() < self.out_max()
            && self.pending.get() < CONNECTION_REQUESTS_MAX
            && self.kept.get() + FRAME_BYTES_MAX <= CONNECTION_BYTES_MAX
    }

    /// Waits until another request may be taken in, or the connection ended.
    pub async fn room(&self) {
        self.drained.until(|| self.has_room() || self.closed.get()).await;
    }

    /// Counts in its own and in the core's budget what its answers hold by now.
    pub fn recount(&self) {
        let bytes = self.out_bytes();
        count(&self.answers, &self.counted, bytes);
        count(&self.admit.answers, &self.counted_beyond, bytes.saturating_sub(CONNECTION_OUT_BYTES_FREE));
    }

    /// Room for an answer of about `bytes`, if it is there now and leaves some for others.
    pub fn try_promise(self: &Rc<Conn>, bytes: usize) -> Option<Promise> {
        self.recount();
        let held = self.answers.held();
        if held > 0 && held + bytes > self.out_max() / 2 {
            return None;
        }
        let beyond = if held + bytes <= CONNECTION_OUT_BYTES_FREE { None } else { Some(self.admit.answers.try_take(bytes)?) };
        Some(Promise { conn: self.clone(), _own: self.answers.try_take(bytes)?, _beyond: beyond })
    }

    /// Waits until an answer of about `bytes` may be made; one that is larger than all that may wait is made alone. Without this, a client
    /// that asks for many large values and reads none would have them all made and kept. `None`: the connection ended.
    pub async fn promise(self: &Rc<Conn>, bytes: usize) -> Option<Promise> {
        self.recount();
        let own = self.answers.take(bytes).await?;
        let is_small = self.answers.held() <= CONNECTION_OUT_BYTES_FREE;
        let beyond = if is_small { None } else { self.admit.answers.take(bytes).await };
        let promise = Promise { conn: self.clone(), _own: own, _beyond: beyond };
        (!self.closed.get()).then_some(promise)
    }

    /// Its answers hold a part of the core's budget, and its client does not take them.
    pub fn is_stuck(&self, now: Mono) -> bool {
        let since = now.since(self.sending_since.get());
        self.counted_beyond.get() > 0 && self.sending.get() > 0 && since >= Duration::from_millis(STALLED_MS_MAX)
    }

    /// Bytes of a request are kept while it waits (`admit::Kept`).
    pub fn keep(&self, bytes: usize) {
        self.kept.set(self.kept.get() + bytes);
    }

    pub fn let_go(&self, bytes: usize) {
        self.kept.set(self.kept.get() - bytes);
        self.drained.raise();
    }

    pub fn begin_request(&self) {
        self.pending.set(self.pending.get() + 1);
    }

    pub fn end_request(&self) {
        assert!(self.pending.get() > 0, "an answer without a request");
        self.pending.set(self.pending.get() - 1);
        self.drained.raise();
    }

    pub fn pending(&self) -> usize {
        self.pending.get()
    }

    /// Sends what there is, unless the driver still has the last of it: then that send's end does.
    pub fn flush(self: &Rc<Conn>) {
        self.recount();
        let Some((io, socket)) = &self.outlet else { return };
        if self.sending.get() == 0 && !self.closed.get() && !self.out.borrow().is_empty() {
            io.send_to(socket, self.take_out(io.now()), self.clone());
        }
    }

    /// What there is now counts as being sent.
    fn take_out(&self, now: Mono) -> Vec<u8> {
        let out = self.out.replace(self.spare.take());
        self.sending.set(out.len());
        self.sending_since.set(now);
        out
    }

    /// The driver has bytes of its answers.
    pub fn is_sending(&self) -> bool {
        self.sending.get() > 0
    }

    /// Ends it: nothing more is sent, and the reader stops at its next look.
    pub fn close(&self) {
        self.closed.set(true);
        self.answers.close();
        self.drained.raise();
    }
}

impl OnSent for Conn {
    fn sent(self: Rc<Conn>, outcome: std::io::Result<Vec<u8>>) {
        self.sending.set(0);
        match outcome {
            Err(_) => {
                self.recount();
                self.close();
            }
            Ok(emptied) => {
                if emptied.capacity() <= SPARE_BYTES_MAX {
                    self.spare.set(emptied);
                }
                self.flush();
                self.drained.raise();
            }
        }
    }
}

fn count(budget: &Budget, counted: &Cell<usize>, now: usize) {
    let before = counted.replace(now);
    if now > before {
        budget.charge(now - before);
    } else if now < before {
        budget.release(before - now);
    }
}

/// Room for an answer that is being made, given back when dropped.
pub struct Promise {
    conn: Rc<Conn>,
    _own: Lease,
    /// Its share of the core's budget, where it is not small.
    _beyond: Option<Lease>,
}

impl Drop for Promise {
    fn drop(&mut self) {
        // The answer is there by now: its room passes over to it.
        self.conn.recount();
    }
}

impl Drop for Conn {
    fn drop(&mut self) {
        self.admit.answers.release(self.counted_beyond.get());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    fn holding(admit: &Rc<Admit>, bytes: usize) -> Rc<Conn> {
        let conn = Rc::new(Conn::new(admit, None));
        *conn.out.borrow_mut() = vec![0; bytes];
        conn.recount();
        conn
    }

    #[test]
    fn where_a_core_holds_all_it_may_each_connection_holds_little_and_small_answers_go_on() {
        let budget = 4 * CONNECTION_OUT_BYTES_MAX;
        let admit = Admit::new(1 << 20, budget);
        assert!(holding(&admit, CONNECTION_OUT_BYTES_MAX - 1).has_room(), "alone");
        let mut deaf: Vec<_> = (0..5).map(|_| holding(&admit, CONNECTION_OUT_BYTES_MAX - 1)).collect();
        assert!(admit.answers.is_short());
        assert!(!holding(&admit, CONNECTION_OUT_BYTES_FREE).has_room() && holding(&admit, CONNECTION_OUT_BYTES_FREE - 1).has_room());
        let context = &mut Context::from_waker(Waker::noop());
        let conn = holding(&admit, 0);
        let Poll::Ready(Some(small)) = pin!(conn.promise(CONNECTION_OUT_BYTES_FREE)).poll(context) else { panic!("free") };
        drop(small);
        assert!(conn.try_promise(CONNECTION_OUT_BYTES_FREE + 1).is_none());
        let mut large = pin!(conn.promise(CONNECTION_OUT_BYTES_MAX));
        assert!(large.as_mut().poll(context).is_pending());
        let other = holding(&admit, CONNECTION_OUT_BYTES_FREE);
        let mut given_up = pin!(other.promise(CONNECTION_OUT_BYTES_MAX));
        assert!(given_up.as_mut().poll(context).is_pending());
        other.close();
        assert!(matches!(given_up.as_mut().poll(context), Poll::Ready(None)), "its connection ended");
        for conn in deaf.drain(..2) {
            drop(conn.take_out(Mono(7)));
            let later = |ms| Mono(7).plus(Duration::from_millis(ms));
            assert!(conn.is_stuck(later(STALLED_MS_MAX)) && !conn.is_stuck(later(STALLED_MS_MAX - 1)));
            conn.sent(Ok(Vec::new()));
        }
        assert!(matches!(large.as_mut().poll(context), Poll::Ready(Some(_))));
        drop(deaf);
        assert_eq!(admit.answers.held(), 0, "what ends gives back");
    }
}
