//! The service manager's view of a node: that it serves, that it ends, and while it serves, that every core still turns.
//!
//! The watchdog is fed only by cores that move: each publishes its figures about twice a second, so a core that hangs is a node that
//! the manager restarts, even if the main thread is well.

use crate::base::time::Mono;
use crate::io::notify::Notifier;
use std::time::Duration;

/// Of the manager's patience: so that two words may be late before it is over.
const WORDS_IN_PATIENCE: u32 = 3;

/// The manager, if one listens.
pub(super) struct Service {
    notifier: Option<Notifier>,
    /// While the node serves and the manager watches it.
    pulse: Option<Pulse>,
    stopping: bool,
}

impl Service {
    /// The manager that the environment names.
    pub(super) fn of_environment(warn: &dyn Fn(&str)) -> Service {
        let notifier = Notifier::from_environment().unwrap_or_else(|error| {
            warn(&format!("the service manager hears nothing: NOTIFY_SOCKET: {error}"));
            None
        });
        Service { notifier, pulse: None, stopping: false }
    }

    /// The node serves from `now` on; `status` is a line for people.
    pub(super) fn ready(&mut self, now: Mono, status: &str) {
        let Some(notifier) = &self.notifier else { return };
        notifier.ready(status);
        self.pulse = notifier.watchdog().map(|patience| Pulse::new(patience / WORDS_IN_PATIENCE, now));
    }

    /// The node ends.
    pub(super) fn stopping(&mut self) {
        if let (Some(notifier), false) = (&self.notifier, self.stopping) {
            notifier.stopping();
        }
        self.stopping = true;
        self.pulse = None;
    }

    /// Tells the manager that the node is alive, if it is time and every core has moved: `beats` gives how often each has.
    pub(super) fn turn(&mut self, now: Mono, beats: impl FnOnce() -> Vec<u64>) {
        if let (Some(notifier), Some(pulse)) = (&self.notifier, &mut self.pulse)
            && pulse.is_due(now)
            && pulse.moved(now, beats())
        {
            notifier.alive();
        }
    }
}

/// When the manager was told, and how often each core had moved by then.
struct Pulse {
    every: Duration,
    told: Mono,
    beats: Vec<u64>,
}

impl Pulse {
    fn new(every: Duration, now: Mono) -> Pulse {
        Pulse { every, told: now, beats: Vec::new() }
    }

    fn is_due(&self, now: Mono) -> bool {
        now.since(self.told) >= self.every
    }

    /// Whether every core moved since the manager was told; if so it is told now.
    fn moved(&mut self, now: Mono, beats: Vec<u64>) -> bool {
        let moved = beats.iter().enumerate().all(|(core, &count)| count > self.beats.get(core).copied().unwrap_or(0));
        if moved {
            (self.told, self.beats) = (now, beats);
        }
        moved
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_core_that_stands_still_silences_the_watchdog_until_it_moves() {
        let second = |n: u64| Mono(n * 1_000_000_000);
        let mut pulse = Pulse::new(Duration::from_secs(10), second(0));
        assert!(!pulse.is_due(second(9)) && pulse.is_due(second(10)));
        assert!(!pulse.moved(second(10), vec![3, 0]), "a core that never moved");
        assert!(pulse.moved(second(11), vec![4, 1]));
        assert!(!pulse.is_due(second(20)) && pulse.is_due(second(21)));
        assert!(!pulse.moved(second(21), vec![30, 1]), "a core that stands still");
        assert!(pulse.is_due(second(22)), "it is looked at again at once");
        assert!(pulse.moved(second(22), vec![31, 2]));
    }
}
