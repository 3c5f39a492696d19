//! A bounded queue between two threads, one that pushes and one that pops: how a core talks to another.
//!
//! Each side keeps its own index and a copy of the other's, which it refreshes only when the queue looks full or empty (Lê, Guatto, Cohen
//! and Pop, "Correct and efficient bounded FIFO queues", 2013), so a batch costs a few transfers of a cache line instead of one an
//! item. Indices run on and wrap; the capacity is a power of two. The code is written once for the real atomics and for loom's.

/// One cache line, and its neighbour that the prefetcher brings along.
#[repr(align(128))]
struct Padded<T>(T);

macro_rules! queue {
    ($atomic:ty, $cell:ident, $arc:ident) => {
        struct Shared<T> {
            slots: Box<[$cell<MaybeUninit<T>>]>,
            /// The next to pop; written by the consumer.
            head: Padded<$atomic>,
            /// The next to push; written by the producer.
            tail: Padded<$atomic>,
        }

        // SAFETY: a slot is touched by one side at a time: the producer owns those from `tail` to `head + capacity`, the consumer those
        // from `head` to `tail`, and ownership moves by a release store of an index that the other side loads with acquire.
        unsafe impl<T: Send> Send for Shared<T> {}
        // SAFETY: as above.
        unsafe impl<T: Send> Sync for Shared<T> {}

        impl<T> Shared<T> {
            fn slot(&self, index: usize) -> &$cell<MaybeUninit<T>> {
                &self.slots[index & (self.slots.len() - 1)]
            }
        }

        impl<T> Drop for Shared<T> {
            fn drop(&mut self) {
                let (mut head, tail) = (self.head.0.load(Ordering::Acquire), self.tail.0.load(Ordering::Acquire));
                while head != tail {
                    // SAFETY: both sides are gone; slots from `head` to `tail` are filled and were not popped.
                    self.slot(head).with_mut(|slot| unsafe { (*slot).assume_init_drop() });
                    head = head.wrapping_add(1);
                }
            }
        }

        /// The side that pushes.
        pub struct Producer<T> {
            shared: $arc<Shared<T>>,
            tail: Cell<usize>,
            head_seen: Cell<usize>,
        }

        /// The side that pops.
        pub struct Consumer<T> {
            shared: $arc<Shared<T>>,
            head: Cell<usize>,
            tail_seen: Cell<usize>,
        }

        /// A queue of at least `capacity` items (rounded up to a power of two).
        pub fn channel<T: Send>(capacity: usize) -> (Producer<T>, Consumer<T>) {
            assert!(capacity > 0 && capacity <= 1 << 30);
            let slots = (0..capacity.next_power_of_two()).map(|_| $cell::new(MaybeUninit::uninit())).collect();
            let shared = $arc::new(Shared { slots, head: Padded(<$atomic>::new(0)), tail: Padded(<$atomic>::new(0)) });
            let producer = Producer { shared: shared.clone(), tail: Cell::new(0), head_seen: Cell::new(0) };
            (producer, Consumer { shared, head: Cell::new(0), tail_seen: Cell::new(0) })
        }

        impl<T> Producer<T> {
            /// Puts an item at the end, visible to the other side at once; gives it back if the queue is full.
            pub fn push(&self, item: T) -> Result<(), T> {
                let tail = self.tail.get();
                if self.is_full() {
                    return Err(item);
                }
                // SAFETY: not full, so the slot at `tail` is the producer's, and it is empty.
                self.shared.slot(tail).with_mut(|slot| unsafe { slot.write(MaybeUninit::new(item)) });
                self.tail.set(tail.wrapping_add(1));
                self.shared.tail.0.store(tail.wrapping_add(1), Ordering::Release);
                Ok(())
            }

            /// How many pushes are sure to succeed now.
            pub fn room(&self) -> usize {
                self.head_seen.set(self.shared.head.0.load(Ordering::Acquire));
                self.shared.slots.len() - self.tail.get().wrapping_sub(self.head_seen.get())
            }

            /// A push would fail now.
            pub fn is_full(&self) -> bool {
                let capacity = self.shared.slots.len();
                if self.tail.get().wrapping_sub(self.head_seen.get()) < capacity {
                    return false;
                }
                self.head_seen.set(self.shared.head.0.load(Ordering::Acquire));
                self.tail.get().wrapping_sub(self.head_seen.get()) == capacity
            }
        }

        impl<T> Consumer<T> {
            /// Takes the first item.
            pub fn pop(&self) -> Option<T> {
                let head = self.head.get();
                if self.is_empty() {
                    return None;
                }
                // SAFETY: not empty, so the slot at `head` is the consumer's, and it is filled; the index moves on, so it is read once.
                let item = self.shared.slot(head).with_mut(|slot| unsafe { (*slot).assume_init_read() });
                self.head.set(head.wrapping_add(1));
                self.shared.head.0.store(head.wrapping_add(1), Ordering::Release);
                Some(item)
            }

            /// A pop would give nothing now. After a `SeqCst` fence it sees whatever was pushed before the other side's fence.
            pub fn is_empty(&self) -> bool {
                if self.head.get() != self.tail_seen.get() {
                    return false;
                }
                self.tail_seen.set(self.shared.tail.0.load(Ordering::Acquire));
                self.head.get() == self.tail_seen.get()
            }
        }
    };
}

mod real {
    use super::Padded;
    use std::cell::{Cell, UnsafeCell};
    use std::mem::MaybeUninit;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// The standard cell with loom's face.
    struct Slot<T>(UnsafeCell<T>);

    impl<T> Slot<T> {
        fn new(value: T) -> Slot<T> {
            Slot(UnsafeCell::new(value))
        }
        fn with_mut<R>(&self, body: impl FnOnce(*mut T) -> R) -> R {
            body(self.0.get())
        }
    }

    queue!(AtomicUsize, Slot, Arc);
}

pub use real::{Consumer, Producer, channel};

#[cfg(test)]
mod tests {
    use super::channel;
    use std::sync::Arc;

    mod modelled {
        use super::super::Padded;
        use loom::cell::UnsafeCell;
        use loom::sync::Arc;
        use loom::sync::atomic::{AtomicUsize, Ordering};
        use std::cell::Cell;
        use std::mem::MaybeUninit;
        queue!(AtomicUsize, UnsafeCell, Arc);
    }

    #[test]
    fn in_every_interleaving_items_arrive_once_and_in_order() {
        loom::model(|| {
            let (producer, consumer) = modelled::channel::<Box<u32>>(2);
            let pushing = loom::thread::spawn(move || {
                let pushed = (0..3).take_while(|item| producer.push(Box::new(*item)).is_ok()).count();
                assert!(pushed >= 2 && producer.room() <= 2, "there is room for two");
                pushed
            });
            let mut popped: Vec<u32> = std::iter::from_fn(|| consumer.pop()).map(|item| *item).collect();
            let pushed = pushing.join().unwrap();
            popped.extend(std::iter::from_fn(|| consumer.pop()).map(|item| *item));
            assert_eq!(popped, (0..pushed as u32).collect::<Vec<_>>());
        });
    }

    #[test]
    fn a_push_and_a_ring_never_leave_a_consumer_asleep_on_a_full_queue() {
        loom::model(|| {
            let bell = loom::sync::Arc::new(super::super::wakers::modelled::Doorbell::new());
            let (producer, consumer) = modelled::channel::<u32>(1);
            let ringing = {
                let bell = bell.clone();
                loom::thread::spawn(move || {
                    producer.push(1).unwrap();
                    bell.must_ring()
                })
            };
            bell.lie_down();
            let sleeps = consumer.is_empty();
            let rung = ringing.join().unwrap();
            assert!(!sleeps || rung, "asleep with an item in the queue and nobody rang");
            assert_eq!(consumer.pop(), Some(1));
        });
    }

    #[test]
    fn a_full_queue_gives_the_item_back_and_room_comes_with_a_pop() {
        let (producer, consumer) = channel(3);
        assert!(consumer.is_empty() && consumer.pop().is_none());
        for item in 0..4 {
            producer.push(item).unwrap();
        }
        assert!(producer.is_full() && producer.room() == 0);
        assert_eq!(producer.push(9), Err(9));
        assert_eq!(consumer.pop(), Some(0));
        assert_eq!(producer.room(), 1);
        producer.push(4).unwrap();
        assert_eq!(std::iter::from_fn(|| consumer.pop()).collect::<Vec<_>>(), [1, 2, 3, 4]);
    }

    #[test]
    fn what_was_not_popped_is_dropped() {
        let alive = Arc::new(());
        let (producer, consumer) = channel(8);
        for _ in 0..5 {
            producer.push(alive.clone()).unwrap();
        }
        drop(consumer.pop());
        drop(producer);
        assert_eq!(Arc::strong_count(&alive), 5);
        drop(consumer);
        assert_eq!(Arc::strong_count(&alive), 1);
    }

    #[test]
    fn a_million_items_arrive_in_order_across_threads() {
        let items = if cfg!(miri) { 1000u64 } else { 1_000_000 };
        let (producer, consumer) = channel(64);
        let pushing = std::thread::spawn(move || {
            for mut item in 0..items {
                while let Err(back) = producer.push(item) {
                    item = back;
                    std::thread::yield_now();
                }
            }
        });
        let mut next = 0;
        while next < items {
            match consumer.pop() {
                Some(item) => {
                    assert_eq!(item, next);
                    next += 1;
                }
                None => std::thread::yield_now(),
            }
        }
        pushing.join().unwrap();
        assert!(consumer.is_empty());
    }
}
