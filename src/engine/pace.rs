//! How fast writes may come, so that flushes and merges keep up with them and nobody meets a cliff.
//!
//! Writes run ahead of two kinds of background work, each with room for so many bytes: flushes (memtables that wait) and merges (runs that
//! level 0 collects). A flush gives its room back when it ends, a merge bit by bit: of a run that is consumed in part, only the rest is
//! looked at by reads and lies on the disk. So writes may take at most the room that there is and that will come back, over the time which
//! the piece of work under way still takes at the speed that it goes at: then the room is never used up, whatever a byte costs (as the
//! gear of Sears and Ramakrishnan, "bLSM", 2012, section 4.1, holds merges and inserts together). Where writes take the core away from
//! merges, these slow down, the rate falls with them, and both meet where they share the core. Nothing is slowed while no work is under
//! way, or while it goes fast enough. During a long merge into the last level, to which level 0 need not wait (`pick`), writes may take
//! as much of level 1 as they will have merged into it by then.

use crate::base::time::Mono;
use std::cell::Cell;
use std::time::Duration;

/// The speed of flushes is what it was over this long: memory has room for so much of them.
pub const FLUSHES_OVER: Duration = Duration::from_secs(1);
/// And that of merges: each flush slows them down and each pause of the disk stops them, which is nothing to what level 0 has room for.
pub const MERGES_OVER: Duration = Duration::from_secs(10);
/// No shorter time says anything of a speed.
const SPEED_LOOK: Duration = Duration::from_millis(20);
/// Before anything was measured, bytes a second.
const SPEED_FIRST: f64 = 128e6;
/// What is left of a piece of work counts for this part of the whole at least: behind its last byte come syncs.
const END_PART: u64 = 16;
/// A piece of work that seems not to go on, or to have no room left, leaves writers this much: nobody waits for ever, and what they add
/// meanwhile is little against the room that is kept back.
pub const RATE_MIN: f64 = 1024.0 * 1024.0;

/// How far a piece of background work is, and how fast such work goes.
#[derive(Debug)]
pub struct Meter {
    state: Cell<State>,
    /// Speeds are told apart from noise over this long.
    over: Duration,
}

#[derive(Clone, Copy, Debug)]
struct State {
    /// Bytes in all, and still to go through.
    total: u64,
    left: u64,
    /// Under way since the speed was last looked at, and bytes done since.
    mark: Option<Mono>,
    done: u64,
    per_second: f64,
}

impl Meter {
    pub fn new(over: Duration) -> Meter {
        Meter { state: Cell::new(State { total: 0, left: 0, mark: None, done: 0, per_second: SPEED_FIRST }), over }
    }

    /// A piece of work of about `total` bytes begins, or goes on with `left` of them to go through.
    pub fn begin(&self, now: Mono, total: u64, left: u64) {
        self.state.set(State { total, left, mark: Some(now), done: 0, ..self.state.get() });
    }

    /// It has gone through so many bytes more.
    pub fn advance(&self, now: Mono, bytes: u64) {
        let state = self.state.get();
        self.state.set(State { left: state.left.saturating_sub(bytes), done: state.done + bytes, ..state });
        self.look(now);
    }

    /// It has ended, well or not.
    pub fn end(&self, now: Mono) {
        self.look(now);
        self.state.set(State { left: 0, mark: None, done: 0, ..self.state.get() });
    }

    /// Bytes still to go through, its end counted; None: nothing is under way.
    pub fn left(&self) -> Option<u64> {
        let state = self.state.get();
        state.mark.map(|_| state.left.max(state.total / END_PART))
    }

    /// The part of the whole that is still to go through, of 1; None: nothing is under way.
    pub fn part_left(&self) -> Option<f64> {
        let state = self.state.get();
        state.mark.map(|_| (state.left as f64 / state.total.max(1) as f64).min(1.0))
    }

    /// Bytes a second while such work is under way.
    pub fn speed(&self, now: Mono) -> f64 {
        self.look(now);
        self.state.get().per_second
    }

    fn look(&self, now: Mono) {
        let State { mark, done, per_second, .. } = self.state.get();
        let Some(since) = mark.map(|mark| now.since(mark)).filter(|since| *since >= SPEED_LOOK) else { return };
        let seconds = since.as_secs_f64();
        let weight = 1.0 - (-seconds / self.over.as_secs_f64()).exp();
        let per_second = per_second + (done as f64 / seconds - per_second) * weight;
        self.state.set(State { mark: Some(now), done: 0, per_second, ..self.state.get() });
    }
}

/// What stands between writes and more room below them, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Behind {
    /// In memtables and in runs of level 0 that no merge takes in.
    pub waiting: u64,
    /// Of level 0, in inputs of a merge that waits for the one under way.
    pub held: u64,
    /// In levels 0 and 1, in runs that are no inputs of a merge into the last level and do not wait.
    pub above: u64,
    /// What the merge under way still has to go through, and the one that waits for it.
    pub left: u64,
    pub left_behind: u64,
    /// It will give way to a full level 0 (`Policy::nest_bytes`).
    pub gives_way: bool,
}

impl Behind {
    /// Bytes a second that may be written at merges' speed, so that level 0 never holds more than `level0_max`, and what is written during
    /// a merge into the last level no more than `above_max`.
    pub fn rate(&self, level0_max: u64, above_max: u64, speed: f64) -> f64 {
        let by_level0 = rate(level0_max.saturating_sub(self.waiting + self.held), self.left, speed);
        if !self.gives_way && self.left_behind == 0 {
            return by_level0;
        }
        // What is written meanwhile has to be merged into level 1 before that merge ends.
        let room = above_max.max(level0_max).saturating_sub(self.waiting + self.above);
        let by_above = rate(room, self.left + self.left_behind + room, speed);
        if self.gives_way { by_level0.max(by_above) } else { by_level0.min(by_above) }
    }
}

/// Bytes a second that may be written where there is room for `room` bytes, what comes back by and by until work on `left` bytes ends
/// counted, and that work goes at `speed` bytes a second.
pub fn rate(room: u64, left: u64, speed: f64) -> f64 {
    (room as f64 * speed / left.max(1) as f64).max(RATE_MIN)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Mono {
        Mono(1).plus(Duration::from_millis(ms))
    }

    #[test]
    fn a_speed_follows_what_is_done_and_what_is_not() {
        let meter = Meter::new(Duration::from_secs(1));
        assert_eq!(meter.left(), None);
        meter.begin(at(0), 1 << 30, 1 << 30);
        for ms in 1..=5000 {
            meter.advance(at(ms), 50_000);
        }
        assert!((meter.speed(at(5000)) / 50e6 - 1.0).abs() < 0.02, "{}", meter.speed(at(5000)));
        assert_eq!(meter.left(), Some((1 << 30) - 250_000_000));
        assert!(meter.speed(at(8000)) < 5e6, "it does not go on");
        meter.end(at(8000));
        let speed = meter.speed(at(8000));
        assert!(meter.left().is_none() && meter.speed(at(60_000)) == speed, "rest is no slowness");
    }
}
