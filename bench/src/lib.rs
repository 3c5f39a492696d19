//! Micro-benchmarks, a room each: `cargo bench`, or one room by `--bench wire`, or what holds a word: `--bench wire -- decode`.
//!
//! A benchmark runs in rounds of some milliseconds each. The quickest round is what the code takes when nothing disturbs it, the median
//! shows how disturbed this machine was: figures of two builds are compared by the quickest, and only if the medians are near.

use std::hint::black_box;
use std::time::{Duration, Instant};

const ROUND: Duration = Duration::from_millis(5);
const ROUNDS: usize = 40;

/// What one benchmark took.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Timing {
    /// Nanoseconds an operation, in the quickest round and in the median one.
    pub best_ns: f64,
    pub median_ns: f64,
}

/// The benchmarks of one room, and which of them were asked for.
pub struct Suite {
    room: &'static str,
    wanted: Option<String>,
}

impl Suite {
    /// Takes the word to look for from the command line.
    pub fn new(room: &'static str) -> Suite {
        Suite { room, wanted: std::env::args().skip(1).find(|word| !word.starts_with('-')) }
    }

    /// Measures `work`, which does `ops` operations a call, and prints a line.
    pub fn run<T>(&self, name: &str, ops: usize, mut work: impl FnMut() -> T) {
        let name = format!("{}/{name}", self.room);
        if self.wanted.as_ref().is_some_and(|wanted| !name.contains(wanted.as_str())) {
            return;
        }
        let timing = measure(ops, &mut work);
        println!("{name:<44}{:>10.1} ns{:>12.1} ns median{:>14.0}/s", timing.best_ns, timing.median_ns, 1e9 / timing.best_ns);
    }
}

/// Times `work`, which does `ops` operations a call.
pub fn measure<T>(ops: usize, work: &mut impl FnMut() -> T) -> Timing {
    assert!(ops > 0);
    let mut calls = 1u32;
    let mut round = |calls: u32| {
        let start = Instant::now();
        (0..calls).for_each(|_| _ = black_box(work()));
        start.elapsed()
    };
    // As many calls as fill a round; the way there warms up.
    while calls < 1 << 30 && round(calls) < ROUND {
        calls *= 2;
    }
    let mut took: Vec<f64> = (0..ROUNDS).map(|_| round(calls).as_nanos() as f64 / f64::from(calls) / ops as f64).collect();
    took.sort_by(f64::total_cmp);
    Timing { best_ns: took[0], median_ns: took[ROUNDS / 2] }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn twice_the_work_takes_about_twice_the_time() {
        let mut state = 1u64;
        let mut spin = |steps: u32| {
            measure(1, &mut || {
                for _ in 0..steps {
                    state = black_box(state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1));
                }
                state
            })
        };
        let (one, two) = (spin(2000), spin(4000));
        assert!(one.best_ns > 0.0 && one.best_ns <= one.median_ns);
        assert!((1.3..3.5).contains(&(two.best_ns / one.best_ns)), "{one:?} {two:?}");
    }
}
