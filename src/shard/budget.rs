//! A budget of bytes, given out in the order of asking: who asks for much is not overtaken for ever by those who ask for little.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};

/// So many bytes may be held at a time. More than the whole budget is given to one alone.
pub struct Budget {
    held: Cell<usize>,
    max: usize,
    line: RefCell<VecDeque<Rc<Place>>>,
    closed: Cell<bool>,
}

/// A place in the line.
struct Place {
    bytes: usize,
    given: Cell<bool>,
    /// Out of the line, and the bytes are a lease's.
    taken: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

impl Budget {
    pub fn new(max: usize) -> Rc<Budget> {
        Rc::new(Budget { held: Cell::new(0), max, line: RefCell::default(), closed: Cell::new(false) })
    }

    fn fits(&self, bytes: usize) -> bool {
        self.held.get() == 0 || self.held.get() + bytes <= self.max
    }

    /// How many wait.
    pub fn waiters(&self) -> usize {
        self.line.borrow().len()
    }

    /// Somebody waits.
    pub fn has_waiters(&self) -> bool {
        self.waiters() > 0
    }

    /// Somebody waits, or would have to.
    pub fn is_short(&self) -> bool {
        self.held.get() >= self.max || self.has_waiters()
    }

    /// Bytes held now.
    pub fn held(&self) -> usize {
        self.held.get()
    }

    /// Takes `bytes` if they are there and nobody waits.
    pub fn try_take(self: &Rc<Budget>, bytes: usize) -> Option<Lease> {
        (!self.has_waiters() && self.fits(bytes)).then(|| {
            self.charge(bytes);
            Lease { budget: self.clone(), bytes }
        })
    }

    /// Takes `bytes` when they are there and all who asked before have theirs. `None`: it was closed.
    pub async fn take(self: &Rc<Budget>, bytes: usize) -> Option<Lease> {
        if let Some(lease) = self.try_take(bytes) {
            return Some(lease);
        }
        let place = Rc::new(Place { bytes, given: Cell::new(false), taken: Cell::new(false), waker: RefCell::default() });
        self.line.borrow_mut().push_back(place.clone());
        let waiting = Waiting { budget: self, place };
        poll_fn(|context| {
            if waiting.place.given.get() || self.closed.get() {
                return Poll::Ready(());
            }
            *waiting.place.waker.borrow_mut() = Some(context.waker().clone());
            Poll::Pending
        })
        .await;
        let given = waiting.place.given.take();
        waiting.place.taken.set(given);
        given.then(|| Lease { budget: self.clone(), bytes })
    }

    /// Counts what is held already, whether it fits or not.
    pub fn charge(&self, bytes: usize) {
        self.held.set(self.held.get() + bytes);
    }

    /// Gives bytes back; who waits first goes on.
    pub fn release(&self, bytes: usize) {
        self.held.set(self.held.get() - bytes);
        self.move_up();
    }

    /// Nobody waits any more.
    pub fn close(&self) {
        self.closed.set(true);
        let line = self.line.take();
        line.iter().filter_map(|place| place.waker.take()).for_each(Waker::wake);
    }

    fn move_up(&self) {
        let mut line = self.line.borrow_mut();
        while let Some(first) = line.front()
            && self.fits(first.bytes)
        {
            self.charge(first.bytes);
            first.given.set(true);
            let waker = first.waker.borrow_mut().take();
            line.pop_front();
            waker.into_iter().for_each(Waker::wake);
        }
    }
}

/// Who waits, and may give up.
struct Waiting<'a> {
    budget: &'a Rc<Budget>,
    place: Rc<Place>,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if self.place.given.get() {
            return self.budget.release(self.place.bytes);
        }
        if self.place.taken.get() {
            return;
        }
        let mut line = self.budget.line.borrow_mut();
        line.retain(|place| !Rc::ptr_eq(place, &self.place));
        drop(line);
        self.budget.move_up();
    }
}

/// Bytes of a budget, given back when dropped.
pub struct Lease {
    budget: Rc<Budget>,
    bytes: usize,
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.budget.release(self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::pin::pin;
    use std::task::Context;

    #[test]
    fn bytes_go_to_who_asked_first_and_come_back_from_who_gives_up() {
        let budget = Budget::new(100);
        let context = &mut Context::from_waker(Waker::noop());
        let first = budget.try_take(60).expect("free");
        let mut large = pin!(budget.take(500));
        let mut small = Box::pin(budget.take(10));
        assert!(large.as_mut().poll(context).is_pending());
        assert!(small.as_mut().poll(context).is_pending(), "nobody is overtaken");
        assert!(budget.try_take(1).is_none() && budget.is_short());
        drop(first);
        assert_eq!(budget.held(), 500, "more than all there is goes to one alone");
        let Poll::Ready(Some(alone)) = large.as_mut().poll(context) else { panic!("given") };
        assert!(small.as_mut().poll(context).is_pending());
        drop(alone);
        assert_eq!(budget.held(), 10);
        drop(small);
        assert!(budget.held() == 0 && !budget.is_short(), "given, and never taken");
        budget.charge(100);
        let mut given_up = Box::pin(budget.take(90));
        assert!(given_up.as_mut().poll(context).is_pending());
        let mut next = pin!(budget.take(5));
        assert!(next.as_mut().poll(context).is_pending());
        budget.release(10);
        assert!(next.as_mut().poll(context).is_pending());
        drop(given_up);
        let Poll::Ready(Some(_next)) = next.as_mut().poll(context) else { panic!("who stood behind moves up") };
        let mut last = pin!(budget.take(90));
        assert!(last.as_mut().poll(context).is_pending());
        budget.close();
        assert!(matches!(last.as_mut().poll(context), Poll::Ready(None)));
    }
}
