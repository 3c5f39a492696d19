//! Waking another core without losing a wake and without a system call when it is awake.
//!
//! A Dekker pair. The sender makes its message visible, fences, and looks whether the receiver sleeps. The receiver says that it sleeps,
//! fences, and looks whether there is a message. Whatever the order, one of them sees the other: either the receiver does not sleep
//! or the sender rings. The loom test at the end walks through every interleaving of exactly this code.

use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, OnceLock};

macro_rules! doorbell {
    ($atomic:ty, $fence:path) => {
        /// Whether a receiver sleeps; see the file's essay.
        pub(crate) struct Doorbell {
            sleeping: $atomic,
        }

        impl Doorbell {
            pub(crate) fn new() -> Doorbell {
                Doorbell { sleeping: <$atomic>::new(false) }
            }
            /// The receiver is about to sleep; it must look for messages after this and before it sleeps.
            pub(crate) fn lie_down(&self) {
                self.sleeping.store(true, std::sync::atomic::Ordering::Relaxed);
                $fence(std::sync::atomic::Ordering::SeqCst);
            }
            /// The receiver looks for messages by itself again.
            pub(crate) fn get_up(&self) {
                self.sleeping.store(false, std::sync::atomic::Ordering::Relaxed);
            }
            /// The sender has published a message: must it ring? At most one sender is told so for each time of sleep.
            pub(crate) fn must_ring(&self) -> bool {
                $fence(std::sync::atomic::Ordering::SeqCst);
                self.sleeping.load(std::sync::atomic::Ordering::Relaxed) && self.sleeping.swap(false, std::sync::atomic::Ordering::Relaxed)
            }
        }
    };
}

mod real {
    doorbell!(std::sync::atomic::AtomicBool, std::sync::atomic::fence);
}

/// Neighbouring cores' flags do not share a cache line.
#[repr(align(128))]
struct CoreWaker {
    bell: real::Doorbell,
    /// The core's ring, or -1.
    ring: AtomicI32,
    /// For threads without a ring.
    event: OnceLock<OwnedFd>,
}

/// How to wake each core of this node. Cheap to clone.
#[derive(Clone)]
pub struct Wakers {
    cores: Arc<[CoreWaker]>,
}

impl Wakers {
    /// Wakers for cores `0..cores`.
    pub fn new(cores: usize) -> Wakers {
        let one = |_| CoreWaker { bell: real::Doorbell::new(), ring: AtomicI32::new(-1), event: OnceLock::new() };
        Wakers { cores: (0..cores).map(one).collect() }
    }

    /// How many cores there are.
    pub fn cores(&self) -> usize {
        self.cores.len()
    }

    /// A message for `core` was published: true if its driver must be rung, which the caller then does.
    pub(super) fn must_ring(&self, core: usize) -> bool {
        self.cores[core].bell.must_ring()
    }

    pub(super) fn lie_down(&self, core: usize) {
        self.cores[core].bell.lie_down();
    }

    pub(super) fn get_up(&self, core: usize) {
        self.cores[core].bell.get_up();
    }

    /// The core's driver is there: its ring if it has one, and the eventfd that it watches (made on the first call, the same ever after).
    pub(super) fn attach(&self, core: usize, ring: Option<RawFd>) -> std::io::Result<RawFd> {
        if self.cores[core].event.get().is_none() {
            let event = super::sys::eventfd()?;
            let _ = self.cores[core].event.set(event);
        }
        self.cores[core].ring.store(ring.unwrap_or(-1), Ordering::Release);
        Ok(self.cores[core].event.get().expect("set above").as_raw_fd())
    }

    pub(super) fn detach(&self, core: usize) {
        self.cores[core].ring.store(-1, Ordering::Release);
    }

    pub(super) fn ring(&self, core: usize) -> Option<RawFd> {
        let ring = self.cores[core].ring.load(Ordering::Acquire);
        (ring >= 0).then_some(ring)
    }

    /// Wakes a core from a thread that has no ring (the control core, the main thread). No system call when the core is awake.
    pub fn wake_from_outside(&self, core: usize) {
        if self.must_ring(core) {
            self.ring_event(core);
        }
    }

    pub(super) fn ring_event(&self, core: usize) {
        if let Some(event) = self.cores[core].event.get() {
            super::sys::ring_eventfd(event);
        }
    }
}

#[cfg(test)]
pub(super) mod modelled {
    doorbell!(loom::sync::atomic::AtomicBool, loom::sync::atomic::fence);
}

#[cfg(test)]
mod tests {
    use super::modelled;
    use loom::sync::Arc;
    use loom::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    #[test]
    fn no_interleaving_loses_a_wake() {
        loom::model(|| {
            let bell = Arc::new(modelled::Doorbell::new());
            let messages = Arc::new(AtomicUsize::new(0));
            let rung = Arc::new(AtomicBool::new(false));
            let sender = {
                let (bell, messages, rung) = (bell.clone(), messages.clone(), rung.clone());
                loom::thread::spawn(move || {
                    messages.store(1, Ordering::Relaxed);
                    if bell.must_ring() {
                        rung.store(true, Ordering::SeqCst);
                    }
                })
            };
            bell.lie_down();
            let sleeps = messages.load(Ordering::Relaxed) == 0;
            if !sleeps {
                bell.get_up();
            }
            sender.join().unwrap();
            assert!(!sleeps || rung.load(Ordering::SeqCst), "asleep with a message and nobody rang");
        });
    }

    #[test]
    fn two_senders_ring_at_most_once_for_a_sleep_and_at_least_once_when_needed() {
        loom::model(|| {
            let bell = Arc::new(modelled::Doorbell::new());
            let messages = Arc::new(AtomicUsize::new(0));
            let rings = Arc::new(AtomicUsize::new(0));
            let send = || {
                let (bell, messages, rings) = (bell.clone(), messages.clone(), rings.clone());
                loom::thread::spawn(move || {
                    messages.fetch_add(1, Ordering::Relaxed);
                    if bell.must_ring() {
                        rings.fetch_add(1, Ordering::SeqCst);
                    }
                })
            };
            let senders = [send(), send()];
            bell.lie_down();
            let sleeps = messages.load(Ordering::Relaxed) == 0;
            for sender in senders {
                sender.join().unwrap();
            }
            let rings = rings.load(Ordering::SeqCst);
            assert!(rings <= 1, "rung {rings} times for one sleep");
            assert!(!sleeps || rings == 1, "asleep with messages and nobody rang");
        });
    }
}
