//! What a core takes on at a time. Refusing early costs little and keeps what was taken on within its deadline.

use crate::io::signal::Signal;
use crate::limits::{CORE_READS_MAX, CORE_REQUESTS_MAX};
use std::cell::Cell;
use std::rc::Rc;

/// The budgets of one core.
pub struct Admit {
    /// Bytes of large values and forwarded requests in memory, bounded by `bytes_max`.
    bytes: Cell<usize>,
    bytes_max: usize,
    /// Requests that wait for something: a disk, a lock, another core, the log.
    waiting: Cell<usize>,
    /// Disk reads under way.
    reads: Cell<usize>,
    freed: Signal,
}

/// A part of a budget, given back when dropped.
pub struct Permit {
    admit: Rc<Admit>,
    bytes: usize,
    read: bool,
}

impl Admit {
    pub fn new(bytes_max: usize) -> Rc<Admit> {
        let zero = || Cell::new(0);
        Rc::new(Admit { bytes: zero(), bytes_max, waiting: zero(), reads: zero(), freed: Signal::default() })
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

    /// Waits for a place among the disk reads and for `bytes` of memory. A request larger than the whole budget waits until it is alone.
    pub async fn read(self: &Rc<Admit>, bytes: usize) -> Permit {
        let bytes = bytes.min(self.bytes_max);
        self.freed.until(|| self.reads.get() < CORE_READS_MAX && self.bytes.get() + bytes <= self.bytes_max).await;
        self.reads.set(self.reads.get() + 1);
        self.bytes.set(self.bytes.get() + bytes);
        self.freed.raise_first();
        Permit { admit: self.clone(), bytes, read: true }
    }

    /// Takes `bytes` at once or not at all.
    pub fn try_bytes(self: &Rc<Admit>, bytes: usize) -> Option<Permit> {
        (self.bytes.get() + bytes <= self.bytes_max).then(|| {
            self.bytes.set(self.bytes.get() + bytes);
            Permit { admit: self.clone(), bytes, read: false }
        })
    }

    /// Bytes taken now.
    pub fn bytes(&self) -> usize {
        self.bytes.get()
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.admit.bytes.set(self.admit.bytes.get() - self.bytes);
        if self.read {
            self.admit.reads.set(self.admit.reads.get() - 1);
        }
        self.admit.freed.raise_first();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    #[test]
    fn bytes_and_reads_are_bounded_and_come_back() {
        let admit = Admit::new(100);
        let context = &mut Context::from_waker(Waker::noop());
        let Poll::Ready(first) = pin!(admit.read(80)).poll(context) else { panic!("fits") };
        let mut second = pin!(admit.read(500));
        assert!(second.as_mut().poll(context).is_pending());
        assert!(admit.try_bytes(30).is_none() && admit.try_bytes(20).is_some());
        drop(first);
        assert!(second.as_mut().poll(context).is_ready());
        assert_eq!(admit.bytes(), 0);
    }
}
