//! The window of sequence numbers that keeps a datagram from being taken twice (RFC 4303, 3.4.3), one a member, 24 bytes.
//!
//! A sender counts all its datagrams with one counter, which starts at its wall clock, so that it goes on above after a restart. What is
//! too old for the window is refused too: in the time that a network can delay a datagram, no node sends as many as the window is wide.

/// Numbers below the highest that are told apart.
const WIDTH: u64 = 128;

/// Which of a sender's numbers were seen.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Window {
    highest: u64,
    /// Bit i: `highest - i` was seen; two words, so that a member has no padding.
    seen: [u64; 2],
}

impl Window {
    /// Whether `sequence` is taken, now and never again.
    pub fn take(&mut self, sequence: u64) -> bool {
        let seen = u128::from(self.seen[1]) << 64 | u128::from(self.seen[0]);
        let seen = if sequence > self.highest {
            let step = sequence - self.highest;
            self.highest = sequence;
            if step < WIDTH { seen << step | 1 } else { 1 }
        } else {
            let behind = self.highest - sequence;
            if behind >= WIDTH || seen >> behind & 1 == 1 {
                return false;
            }
            seen | 1 << behind
        };
        self.seen = [seen as u64, (seen >> 64) as u64];
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::prng::Prng;
    use std::collections::BTreeSet;

    #[test]
    fn nothing_is_taken_twice_and_all_that_comes_within_the_window_is_taken() {
        let (mut prng, mut window, mut taken) = (Prng::new(5), Window::default(), BTreeSet::new());
        let mut highest = 0;
        for _ in 0..20_000 {
            let back = if prng.one_in(50) { 1000 } else { 160 };
            let sequence = (highest + 40_u64).saturating_sub(prng.below(back)).max(1);
            let fresh = !taken.contains(&sequence) && sequence + WIDTH > highest;
            assert_eq!(window.take(sequence), fresh, "{sequence} of {highest}");
            taken.insert(sequence);
            highest = highest.max(sequence);
        }
        assert!(window.take(u64::MAX) && !window.take(u64::MAX) && !window.take(1));
    }
}
