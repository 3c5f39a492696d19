//! Instants and the hybrid logical clock. Nothing here reads a clock: time comes in as an argument.

use std::time::Duration;

/// A monotonic instant: nanoseconds since an arbitrary start of this process (or of the simulated world).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mono(pub u64);

impl Mono {
    /// The instant `later` after this one.
    #[inline]
    pub fn plus(self, later: Duration) -> Mono {
        Mono(self.0.saturating_add(later.as_nanos() as u64))
    }

    /// How long ago `earlier` was; zero if it is not past.
    #[inline]
    pub fn since(self, earlier: Mono) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

/// Milliseconds since 1970 by the wall clock. Deadlines of keys are kept in it.
pub type WallMs = u64;

/// Bits of the hybrid clock that count within a millisecond.
pub const HLC_COUNTER_BITS: u32 = 16;

/// The hybrid logical clock of one core (Kulkarni et al., "Logical Physical Clocks", 2014): 48 bits of milliseconds, 16 bits of counter.
///
/// Cores of a node draw from disjoint counters: core `c` of `n` takes the counters that are `c` modulo `n`, so that two cores
/// never stamp the same instant.
#[derive(Clone, Debug)]
pub struct HybridClock {
    last: u64,
    /// The latest that the wall clock has shown.
    seen_ms: WallMs,
    core: u64,
    cores: u64,
}

impl HybridClock {
    /// A clock whose every stamp lies above `above`.
    pub fn new(above: u64, core: u16, cores: u16) -> HybridClock {
        assert!(core < cores, "core {core} of {cores}");
        HybridClock { last: above, seen_ms: 0, core: u64::from(core), cores: u64::from(cores) }
    }

    /// The next stamp: above every earlier one and everything observed, and not behind `now_ms`.
    pub fn stamp(&mut self, now_ms: WallMs) -> u64 {
        self.look(now_ms);
        let floor = (now_ms << HLC_COUNTER_BITS).max(self.last + 1);
        let residue = floor % self.cores;
        let step = (self.core + self.cores - residue) % self.cores;
        self.last = floor + step;
        self.last
    }

    /// Notes what the wall clock shows. It may be set back later: what it showed once, a core of this node may have stamped.
    pub fn look(&mut self, now_ms: WallMs) {
        self.seen_ms = self.seen_ms.max(now_ms);
    }

    /// A clock of this node may have given `hlc`: it is not above the last stamp, or not more than `ahead_ms` ahead of the wall clock. (Of
    /// the wall clock, not of the last stamp: else each such stamp could carry the next a little further.)
    pub fn may_have_given(&self, hlc: u64, ahead_ms: u64) -> bool {
        hlc <= self.last || hlc_ms(hlc) <= self.seen_ms + ahead_ms
    }

    /// Makes sure that the next stamp lies above `hlc`, which another clock gave.
    pub fn observe(&mut self, hlc: u64) {
        self.last = self.last.max(hlc);
    }

    /// The highest stamp given or observed.
    pub fn last(&self) -> u64 {
        self.last
    }
}

/// The milliseconds part of a hybrid clock stamp.
pub fn hlc_ms(hlc: u64) -> WallMs {
    hlc >> HLC_COUNTER_BITS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_from_outside_pulls_the_clock_no_further_than_allowed_however_often() {
        let mut clock = HybridClock::new(0, 0, 1);
        clock.look(1000);
        let stamp = |ms: u64| ms << HLC_COUNTER_BITS;
        for _ in 0..10 {
            assert!(clock.may_have_given(stamp(1500), 500) && !clock.may_have_given(stamp(1501), 500));
            clock.observe(stamp(1500));
        }
        assert!(hlc_ms(clock.stamp(1000)) == 1500, "and no time is lost");
        clock.look(5000);
        clock.look(2000);
        assert!(clock.may_have_given(stamp(5000), 0), "the wall clock was there, before it was set back");
        let ahead = HybridClock::new(stamp(9000), 0, 1);
        assert!(ahead.may_have_given(stamp(9000), 0), "given before a restart");
    }

    #[test]
    fn stamps_rise_even_when_the_wall_clock_falls_and_cores_never_meet() {
        let mut clocks: Vec<_> = (0..3).map(|core| HybridClock::new(0, core, 3)).collect();
        let mut seen = std::collections::BTreeSet::new();
        for now_ms in [100, 100, 90, 101, 101, 101, 50] {
            for clock in &mut clocks {
                let before = clock.last();
                let stamp = clock.stamp(now_ms);
                assert!(stamp > before && hlc_ms(stamp) >= now_ms);
                assert!(seen.insert(stamp));
            }
        }
    }
}
