//! How fast writes may come, so that flushes and merges keep up with them and nobody meets a cliff.
//!
//! Writes run ahead of two kinds of background work, each with room for so many bytes: flushes (memtables that wait) and merges (runs that
//! level 0 collects). Room comes back when the piece of work under way ends. So writes may take at most the room that there is over the
//! time which that piece still takes at the speed that it goes at: then the room is never used up before it comes back, whatever a byte
//! costs (as the gear of Sears and Ramakrishnan, "bLSM", 2012, section 4.1, holds merges and inserts together). Where writes take the core
//! away from merges, these slow down, the rate falls with them, and both meet where they share the core. Nothing is slowed while no work
//! is under way, or while it goes fast enough.

use crate::base::time::Mono;
use std::cell::Cell;
use std::time::Duration;

/// Speeds are told apart from noise over this long.
const SPEED_OVER: Duration = Duration::from_secs(1);
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

impl Default for Meter {
    fn default() -> Meter {
        Meter { state: Cell::new(State { total: 0, left: 0, mark: None, done: 0, per_second: SPEED_FIRST }) }
    }
}

impl Meter {
    /// A piece of work of about `bytes` begins.
    pub fn begin(&self, now: Mono, bytes: u64) {
        self.state.set(State { total: bytes, left: bytes, mark: Some(now), done: 0, ..self.state.get() });
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

    /// Bytes a second while such work is under way.
    pub fn speed(&self, now: Mono) -> f64 {
        self.look(now);
        self.state.get().per_second
    }

    fn look(&self, now: Mono) {
        let State { mark, done, per_second, .. } = self.state.get();
        let Some(since) = mark.map(|mark| now.since(mark)).filter(|since| *since >= SPEED_LOOK) else { return };
        let seconds = since.as_secs_f64();
        let weight = 1.0 - (-seconds / SPEED_OVER.as_secs_f64()).exp();
        let per_second = per_second + (done as f64 / seconds - per_second) * weight;
        self.state.set(State { mark: Some(now), done: 0, per_second, ..self.state.get() });
    }
}

/// Bytes a second that may be written where there is room for `room` bytes, and work on `left` bytes at `speed` bytes a second has to end
/// before there is more.
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
        let meter = Meter::default();
        assert_eq!(meter.left(), None);
        meter.begin(at(0), 1 << 30);
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

    /// One core: a written byte takes `WRITE` of its time, a merged one `MERGE`; merges have what writers leave, a seventeenth at least.
    #[test]
    fn under_any_load_the_room_is_never_used_up_and_no_rate_breaks_down() {
        const WRITE: f64 = 10e-9;
        const MERGE: f64 = 3e-9;
        const FLUSH: u64 = 64 << 20;
        let room_of = |bytes: f64| (36.0 * FLUSH as f64 - bytes).max(0.0) as u64;
        for (asked, last) in [(90e6, 4u64 << 30), (40e6, 4 << 30), (90e6, 16 << 30), (5e6, 4 << 30)] {
            let (meter, mut level0, mut above, mut ms) = (Meter::default(), 0.0, 0.0, 0);
            let mut work: Option<(f64, f64)> = None;
            let mut least = f64::MAX;
            while ms < 600_000 {
                ms += 1;
                if work.is_none() && level0 >= 12.0 * FLUSH as f64 {
                    let whole = above + level0 >= 0.25 * last as f64;
                    work = Some((level0, if whole { level0 + above + last as f64 } else { level0 }));
                    above = if whole { 0.0 } else { above + level0 };
                    meter.begin(at(ms), work.map_or(0, |(_, bytes)| bytes as u64));
                }
                let most = meter.left().map_or(f64::MAX, |left| rate(room_of(level0), left, meter.speed(at(ms))));
                let written = f64::min(asked, most).min(16.0 / 17.0 / WRITE);
                least = least.min(written);
                level0 += written / 1e3;
                assert!(level0 < 36.0 * FLUSH as f64, "no room left at {ms} ms of {asked}");
                if let Some((inputs, left)) = work {
                    let merged = (1.0 - written * WRITE) / MERGE / 1e3;
                    meter.advance(at(ms), merged as u64);
                    work = Some((inputs, left - merged));
                    if left <= merged {
                        level0 -= inputs;
                        work = None;
                        meter.end(at(ms));
                    }
                }
            }
            // A merge of 16 GiB takes a minute: what level 0 has room for has to last so long.
            let bearable = if last > 4 << 30 { 2e6 } else { f64::min(asked, 5e6) };
            assert!(least >= bearable, "asked {asked}, with {last} below: {least}");
        }
    }
}
