//! The load as it goes on: ticks that threads hand over, the progress line, and the course of the run for its report.

use crate::report::Point;
use hdrhistogram::Histogram;
use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::sync::{Mutex, PoisonError};

/// Threads hand over what they measured in ticks of this length, counted from the run's start.
pub const TICK_NS: u64 = 200_000_000;
/// Ticks to a progress line.
const TICKS_A_LINE: u64 = 1_000_000_000 / TICK_NS;
/// A tick this many behind the newest is complete: no thread is late by so much.
const TICKS_PENDING: u64 = 20;
/// Ticks that wait to be collected, a thread; then they are joined.
const WAITING_MAX: usize = 64;
/// Above this a run's course is drawn by seconds, not by ticks.
const SECONDS_BY_TICK: f64 = 120.0;

/// What a thread, or all, measured in a tick.
#[derive(Clone)]
pub struct Interval {
    pub tick: u64,
    pub errors: u64,
    /// Wrong and lost.
    pub faults: u64,
    /// Nanoseconds to two digits, so that a copy is small.
    latencies: Histogram<u32>,
}

impl Default for Interval {
    fn default() -> Interval {
        let latencies = Histogram::new_with_bounds(1, crate::report::LATENCY_NS_MAX, 2).expect("bounds are constant and right");
        Interval { tick: 0, errors: 0, faults: 0, latencies }
    }
}

impl Interval {
    #[inline]
    pub fn record(&mut self, latency_ns: u64) {
        self.latencies.saturating_record(latency_ns.max(1));
    }

    pub fn reset(&mut self, tick: u64) {
        (self.tick, self.errors, self.faults) = (tick, 0, 0);
        self.latencies.reset();
    }

    fn merge(&mut self, other: &Interval) {
        self.errors += other.errors;
        self.faults += other.faults;
        self.latencies.add(&other.latencies).expect("bounds are the same");
    }

    fn quantile_us(&self, share: f64) -> f64 {
        if self.latencies.is_empty() { 0.0 } else { self.latencies.value_at_quantile(share) as f64 / 1e3 }
    }

    fn max_us(&self) -> f64 {
        self.latencies.max() as f64 / 1e3
    }
}

/// What a thread hands over.
#[derive(Default)]
pub struct Intervals(Mutex<Vec<Interval>>);

impl Intervals {
    pub fn push(&self, interval: &Interval) {
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_full = waiting.len() >= WAITING_MAX;
        match waiting.last_mut().filter(|_| is_full) {
            Some(last) => last.merge(interval),
            None => waiting.push(interval.clone()),
        }
    }

    fn take(&self) -> Vec<Interval> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Prints progress, and keeps the course of a phase.
pub struct Progress {
    name: &'static str,
    is_quiet: bool,
    is_checked: bool,
    ticks_a_point: u64,
    /// How long the phase is to last.
    seconds_max: f64,
    seconds: u64,
    pending: BTreeMap<u64, Interval>,
    points: Vec<Point>,
}

impl Progress {
    /// Of a phase that is to last so many seconds.
    pub fn new(name: &'static str, seconds_max: f64, is_quiet: bool, is_checked: bool) -> Progress {
        let ticks_a_point = if seconds_max <= SECONDS_BY_TICK { 1 } else { TICKS_A_LINE };
        Progress { name, is_quiet, is_checked, ticks_a_point, seconds_max, seconds: 0, pending: BTreeMap::new(), points: Vec::new() }
    }

    /// A second is over: collects, and prints a line.
    pub fn second(&mut self, threads: &[Intervals]) {
        self.seconds += 1;
        let sum = self.collect(threads);
        let newest = self.pending.last_key_value().map_or(0, |(tick, _)| *tick);
        self.close(newest.saturating_sub(TICKS_PENDING));
        if !self.is_quiet {
            self.show(&sum);
        }
    }

    /// The phase is over: its course, without the piece of a point at its end.
    pub fn finish(mut self, threads: &[Intervals]) -> Vec<Point> {
        self.collect(threads);
        self.close(u64::MAX);
        let width_s = (self.ticks_a_point * TICK_NS) as f64 / 1e9;
        let is_whole = |point: &Point| point.at_s + width_s <= self.seconds_max + 1e-6;
        let whole = self.points.iter().filter(|point| is_whole(point)).count();
        self.points.truncate(whole.max(1));
        if !self.is_quiet {
            end_line();
        }
        self.points
    }

    fn collect(&mut self, threads: &[Intervals]) -> Interval {
        let mut sum = Interval::default();
        for interval in threads.iter().flat_map(Intervals::take) {
            sum.merge(&interval);
            let point = interval.tick / self.ticks_a_point;
            match self.pending.get_mut(&point) {
                Some(pending) => pending.merge(&interval),
                None => drop(self.pending.insert(point, interval)),
            }
        }
        sum
    }

    /// Makes points of what lies before one.
    fn close(&mut self, before: u64) {
        while let Some(entry) = self.pending.first_entry().filter(|entry| *entry.key() < before) {
            let (number, interval) = entry.remove_entry();
            let seconds = (self.ticks_a_point * TICK_NS) as f64 / 1e9;
            self.points.push(Point {
                at_s: number as f64 * seconds,
                rate: interval.latencies.len() as f64 / seconds,
                errors: interval.errors,
                p50_us: interval.quantile_us(0.5),
                p99_us: interval.quantile_us(0.99),
                p999_us: interval.quantile_us(0.999),
                max_us: interval.max_us(),
            });
        }
    }

    fn show(&self, sum: &Interval) {
        let mut line = format!(
            "{} {:>4} s  {:>9}/s  p50 {:>9.1}  p99 {:>9.1}  max {:>9.1} µs  errors {}",
            self.name,
            self.seconds,
            sum.latencies.len(),
            sum.quantile_us(0.5),
            sum.quantile_us(0.99),
            sum.max_us(),
            sum.errors
        );
        if self.is_checked {
            line += &format!("  wrong or lost {}", sum.faults);
        }
        let mut stderr = std::io::stderr().lock();
        // A lost progress line is no reason to end the run.
        let _ = if stderr.is_terminal() { write!(stderr, "\r\x1b[2K{line}") } else { writeln!(stderr, "{line}") };
    }
}

/// Takes the progress line off a terminal.
fn end_line() {
    let mut stderr = std::io::stderr().lock();
    if stderr.is_terminal() {
        let _ = write!(stderr, "\r\x1b[2K");
    }
}

/// Says something on stderr, on a line of its own.
pub fn tell(text: &str) {
    let mut stderr = std::io::stderr().lock();
    let _ = if stderr.is_terminal() { writeln!(stderr, "\r\x1b[2K{text}") } else { writeln!(stderr, "{text}") };
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interval(tick: u64, latencies: &[u64]) -> Interval {
        let mut interval = Interval { tick, ..Interval::default() };
        latencies.iter().for_each(|&us| interval.record(us * 1000));
        interval
    }

    #[test]
    fn ticks_of_all_threads_come_together_in_order() {
        let threads = [Intervals::default(), Intervals::default()];
        let mut progress = Progress::new("load", 0.5, true, false);
        threads[0].push(&interval(0, &[100; 10]));
        threads[0].push(&interval(1, &[200; 10]));
        progress.second(&threads);
        threads[1].push(&interval(0, &[100; 30]));
        threads[1].push(&Interval { errors: 3, ..interval(1, &[]) });
        threads[1].push(&interval(2, &[300]));
        let points = progress.finish(&threads);
        let shown: Vec<(f64, f64, u64)> = points.iter().map(|point| (point.at_s, point.rate, point.errors)).collect();
        assert_eq!(shown, [(0.0, 200.0, 0), (0.2, 50.0, 3)], "a third tick was not over");
        assert!((points[1].p99_us - 200.0).abs() < 2.0 && (points[1].max_us - 200.0).abs() < 2.0);
    }

    #[test]
    fn a_long_run_is_kept_by_seconds_and_what_nobody_collects_is_joined() {
        let thread = [Intervals::default()];
        let mut progress = Progress::new("load", 1000.0, true, false);
        for tick in 0..500 {
            thread[0].push(&interval(tick, &[100]));
            if tick % 5 == 4 {
                progress.second(&thread);
                assert!(progress.pending.len() <= TICKS_PENDING as usize + 2);
            }
        }
        let points = progress.finish(&thread);
        assert_eq!(points.len(), 100);
        assert!(points.iter().all(|point| point.rate == 5.0));
        (0..200).for_each(|tick| thread[0].push(&interval(tick, &[100])));
        let waiting = thread[0].take();
        assert_eq!((waiting.len(), waiting.iter().map(|interval| interval.latencies.len()).sum()), (WAITING_MAX, 200u64));
    }
}
