//! Locks on keys, within one core.

use crate::base::map::{Map, Seeded};
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};

/// Locks on key hashes, FIFO. Two keys of one hash share a lock, which is correct and rare.
pub struct KeyLocks {
    held: RefCell<Map<u64, VecDeque<Rc<Turn>>>>,
}

#[derive(Default)]
struct Turn {
    ready: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

/// Holds a key until dropped.
pub struct KeyGuard {
    locks: Rc<KeyLocks>,
    hash: u64,
}

impl KeyLocks {
    pub fn new(seed: u64) -> Rc<KeyLocks> {
        Rc::new(KeyLocks { held: RefCell::new(Map::with_hasher(Seeded(seed))) })
    }

    /// Somebody holds the key: a write of it must wait its turn.
    pub fn is_held(&self, hash: u64) -> bool {
        let held = self.held.borrow();
        !held.is_empty() && held.contains_key(&hash)
    }

    /// How many keys are held.
    pub fn len(&self) -> usize {
        self.held.borrow().len()
    }

    /// No key is held.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The key, where nobody holds it.
    pub fn try_lock(self: &Rc<KeyLocks>, hash: u64) -> Option<KeyGuard> {
        match self.held.borrow_mut().entry(hash) {
            hashbrown::hash_map::Entry::Vacant(free) => _ = free.insert(VecDeque::new()),
            hashbrown::hash_map::Entry::Occupied(_) => return None,
        }
        Some(KeyGuard { locks: self.clone(), hash })
    }

    /// Waits for the key; those who came first go first.
    pub async fn lock(self: &Rc<KeyLocks>, hash: u64) -> KeyGuard {
        let turn = match self.held.borrow_mut().entry(hash) {
            hashbrown::hash_map::Entry::Vacant(free) => {
                free.insert(VecDeque::new());
                None
            }
            hashbrown::hash_map::Entry::Occupied(mut queue) => {
                let turn = Rc::new(Turn::default());
                queue.get_mut().push_back(turn.clone());
                Some(turn)
            }
        };
        let mut claim = Claim { locks: self, hash, turn };
        poll_fn(|context| match &claim.turn {
            Some(turn) if !turn.ready.get() => {
                *turn.waker.borrow_mut() = Some(context.waker().clone());
                Poll::Pending
            }
            _ => Poll::Ready(()),
        })
        .await;
        claim.turn = None;
        KeyGuard { locks: self.clone(), hash }
    }

    fn pass_on(&self, hash: u64) {
        let mut held = self.held.borrow_mut();
        let queue = held.get_mut(&hash).expect("a held key has a queue");
        while let Some(next) = queue.pop_front() {
            if Rc::strong_count(&next) > 1 {
                next.ready.set(true);
                if let Some(waker) = next.waker.borrow_mut().take() {
                    waker.wake();
                }
                return;
            }
        }
        held.remove(&hash);
    }
}

/// A place in a key's queue. Dropped after its turn came but before it was taken, it hands the turn on; dropped earlier, `pass_on` skips
/// it.
struct Claim<'a> {
    locks: &'a KeyLocks,
    hash: u64,
    turn: Option<Rc<Turn>>,
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        if self.turn.take().is_some_and(|turn| turn.ready.get()) {
            self.locks.pass_on(self.hash);
        }
    }
}

impl Drop for KeyGuard {
    fn drop(&mut self) {
        self.locks.pass_on(self.hash);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::Future;
    use std::pin::{Pin, pin};
    use std::task::Context;

    fn poll<F: Future>(future: Pin<&mut F>) -> Poll<F::Output> {
        future.poll(&mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn locks_are_handed_on_in_order_also_past_a_waiter_that_gave_up() {
        let locks = KeyLocks::new(1);
        let Poll::Ready(first) = poll(pin!(locks.lock(7))) else { panic!("a free key is locked at once") };
        let mut second = Box::pin(locks.lock(7));
        let mut third = Box::pin(locks.lock(7));
        let mut fourth = Box::pin(locks.lock(7));
        for waiter in [&mut second, &mut third, &mut fourth] {
            assert!(poll(waiter.as_mut()).is_pending());
        }
        drop(second);
        drop(first);
        drop(third);
        let Poll::Ready(guard) = poll(fourth.as_mut()) else { panic!("the turn reaches the last waiter") };
        assert!(locks.is_held(7) && !locks.is_held(8) && locks.try_lock(7).is_none());
        let other = locks.try_lock(8).expect("free");
        let mut waits = Box::pin(locks.lock(8));
        assert!(poll(waits.as_mut()).is_pending());
        drop(other);
        assert!(poll(waits.as_mut()).is_ready());
        drop(guard);
        assert!(locks.is_empty());
    }
}
