//! What a core takes on at a time. Refusing early costs little and keeps what was taken on within its deadline.

use super::budget::{Budget, Lease};
use super::conn::Conn;
use crate::io::signal::Signal;
use crate::limits::{CORE_READS_MAX, CORE_REQUESTS_MAX};
use std::cell::Cell;
use std::rc::Rc;

/// Requests up to this size are taken in whatever else is kept.
const REQUEST_BYTES_FREE: usize = 4096;

/// The budgets of one core.
pub struct Admit {
    /// Bytes of values that are being read.
    bytes: Rc<Budget>,
    /// Requests that wait for something: a disk, a lock, another core, the log.
    waiting: Cell<usize>,
    /// Disk reads under way, each counted as one.
    reads: Rc<Budget>,
    /// Bytes of requests that are kept while they wait, for all connections of the core; bounded by `kept_max`.
    kept: Cell<usize>,
    kept_max: usize,
    kept_freed: Signal,
    /// Bytes of answers that connections hold beyond what is free to each, made or promised.
    pub answers: Rc<Budget>,
    /// Bytes of large requests whose end has not come.
    pub unfinished: Rc<Budget>,
}

/// A place among the disk reads and its memory, given back when dropped.
pub struct Permit {
    _read: Lease,
    _bytes: Lease,
}

impl Admit {
    /// `bytes_max` for what is read, `kept_max` for requests that wait, for those that are coming in, and for answers.
    pub fn new(bytes_max: usize, kept_max: usize) -> Rc<Admit> {
        let zero = || Cell::new(0);
        let (bytes, reads) = (Budget::new(bytes_max), Budget::new(CORE_READS_MAX));
        let (answers, unfinished) = (Budget::new(kept_max), Budget::new(kept_max));
        Rc::new(Admit { bytes, waiting: zero(), reads, kept: zero(), kept_max, kept_freed: Signal::default(), answers, unfinished })
    }

    /// A request of `bytes` may be taken in. Small ones always may: their number is bounded.
    pub fn may_keep(&self, bytes: usize) -> bool {
        bytes <= REQUEST_BYTES_FREE || self.kept.get() == 0 || self.kept.get() + bytes <= self.kept_max
    }

    /// Waits until it may. One that is larger than the whole budget waits until it is alone.
    pub async fn room_to_keep(&self, bytes: usize) {
        self.kept_freed.until(|| self.may_keep(bytes)).await;
        self.kept_freed.raise_first();
    }

    fn keep(&self, bytes: usize) {
        self.kept.set(self.kept.get() + bytes);
    }

    fn let_go(&self, bytes: usize) {
        self.kept.set(self.kept.get() - bytes);
        self.kept_freed.raise_first();
    }

    /// One more request that will wait; false: the core has taken on what it can.
    #[must_use]
    pub fn begin(&self) -> bool {
        let fits = self.waiting.get() < CORE_REQUESTS_MAX;
        if fits {
            self.waiting.set(self.waiting.get() + 1);
        }
        fits
    }

    pub fn end(&self) {
        assert!(self.waiting.get() > 0, "more requests ended than began");
        self.waiting.set(self.waiting.get() - 1);
    }

    pub fn waiting(&self) -> usize {
        self.waiting.get()
    }

    /// Waits for a place among the disk reads and for `bytes` of memory, in the order of asking. A request larger than the whole budget
    /// waits until it is alone.
    pub async fn read(&self, bytes: usize) -> Permit {
        const NEVER_CLOSED: &str = "these budgets are never closed";
        let read = self.reads.take(1).await.expect(NEVER_CLOSED);
        let bytes = self.bytes.take(bytes).await.expect(NEVER_CLOSED);
        Permit { _read: read, _bytes: bytes }
    }

    /// Bytes taken now.
    pub fn bytes(&self) -> usize {
        self.bytes.held()
    }
}

/// A request's bytes, kept on behalf of a connection while it waits; given back when dropped.
pub struct Kept {
    admit: Rc<Admit>,
    conn: Rc<Conn>,
    bytes: usize,
}

impl Kept {
    pub fn new(admit: &Rc<Admit>, conn: &Rc<Conn>, bytes: usize) -> Kept {
        admit.keep(bytes);
        conn.keep(bytes);
        Kept { admit: admit.clone(), conn: conn.clone(), bytes }
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.admit.let_go(self.bytes);
        self.conn.let_go(self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::CONNECTION_BYTES_MAX;
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    #[test]
    fn bytes_and_reads_are_bounded_and_come_back() {
        let admit = Admit::new(100, 100);
        let context = &mut Context::from_waker(Waker::noop());
        let Poll::Ready(first) = pin!(admit.read(80)).poll(context) else { panic!("fits") };
        let mut second = pin!(admit.read(500));
        assert!(second.as_mut().poll(context).is_pending());
        drop(first);
        assert!(second.as_mut().poll(context).is_ready());
        assert_eq!(admit.bytes(), 0);
    }

    #[test]
    fn kept_requests_are_bounded_and_one_larger_than_all_comes_in_alone() {
        let (admit, conn) = {
            let admit = Admit::new(100, 50_000);
            (admit.clone(), Rc::new(Conn::new(&admit, None)))
        };
        let first = Kept::new(&admit, &conn, 40_000);
        assert!(admit.may_keep(10_000) && !admit.may_keep(10_001) && admit.may_keep(REQUEST_BYTES_FREE));
        let context = &mut Context::from_waker(Waker::noop());
        let mut large = pin!(admit.room_to_keep(1_000_000));
        assert!(large.as_mut().poll(context).is_pending());
        drop(first);
        assert!(large.as_mut().poll(context).is_ready());
        let _alone = Kept::new(&admit, &conn, CONNECTION_BYTES_MAX);
        assert!(!conn.has_room() && !admit.may_keep(10_000));
    }
}
