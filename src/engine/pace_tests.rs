//! The pace of writes and the picker of merges together, over hours of a simulated core: any load, trees of any size.

use super::format::manifest::{Level, MergeRecord};
use super::pace::{Behind, MERGES_OVER, Meter};
use super::pick::{Policy, RunShape, TreeShape, choose};
use crate::base::time::Mono;
use std::time::Duration;

const FLUSH: u64 = 64 << 20;
const GIB: u64 = 1 << 30;
/// Bytes that the disk reads and writes a second; every two seconds it is half as fast for a while, and then half as fast again.
const DISK: f64 = 230e6;
/// Milliseconds of a step.
const STEP_MS: u64 = 10;
/// Steps of a minute.
const MINUTE: u64 = 60_000 / STEP_MS;
/// What it does for a byte that is written: log and flush, and what lies around it there.
const DISK_A_BYTE: f64 = 2.2;

/// A merge under way.
struct Work {
    run: u64,
    level: Level,
    total: f64,
    left: f64,
    /// Its output in all.
    out: f64,
    /// Flushes among its inputs.
    flushes: f64,
}

/// A core whose disk writes and merges share: merges have what writes leave. The same keys are overwritten for ever.
struct Sim {
    meter: Meter,
    policy: Policy,
    now_ms: u64,
    keys: f64,
    shape: TreeShape,
    works: Vec<Work>,
    active: f64,
    next: u64,
    level0_max: f64,
    space_max: f64,
}

impl Sim {
    fn new(keys: u64) -> Sim {
        let last = RunShape { id: 1, level: Level::Last, bytes: keys, dead_bytes: 0 };
        Sim {
            meter: Meter::new(MERGES_OVER),
            policy: Policy::new(FLUSH),
            now_ms: 0,
            keys: keys as f64,
            shape: TreeShape { runs: vec![last], ..TreeShape::default() },
            works: Vec::new(),
            active: 0.0,
            next: 2,
            level0_max: 0.0,
            space_max: 0.0,
        }
    }

    fn now(&self) -> Mono {
        Mono(1).plus(Duration::from_millis(self.now_ms))
    }

    fn bytes(&self, of: impl Fn(&RunShape) -> bool) -> f64 {
        self.shape.runs.iter().filter(|run| of(run)).map(|run| run.bytes as f64).sum()
    }

    fn is_input(&self, run: &RunShape) -> bool {
        self.shape.merges.iter().any(|merge| merge.inputs.contains(&run.id))
    }

    fn begin_what_is_due(&mut self) {
        let Some(choice) = choose(&self.shape, &self.policy) else { return };
        if self.works.last().is_some_and(|work| choice.run == Some(work.run)) {
            return;
        }
        let run = choice.run.unwrap_or(self.next);
        self.next += 1;
        let of = |run: &&RunShape| choice.inputs.contains(&run.id);
        let total: f64 = self.shape.runs.iter().filter(of).map(|run| run.bytes as f64).sum();
        let flushes = self.shape.runs.iter().filter(of).filter(|run| run.level == Level::Zero).count() as f64;
        let out = if choice.level == Level::Last { self.keys } else { self.keys * (1.0 - (-total / self.keys).exp()) };
        self.works.push(Work { run, level: choice.level, total, left: total, out, flushes });
        self.shape.merges.push(MergeRecord { inputs: choice.inputs, level: choice.level, run, done: Vec::new() });
        self.meter.begin(self.now(), total as u64, total as u64);
    }

    /// As `Tables::behind` does.
    fn behind(&self) -> Option<Behind> {
        let (top, others) = self.works.split_last()?;
        let left_of = |work: &Work| work.flushes * FLUSH as f64 * work.left / work.total;
        let free = self.bytes(|run| run.level == Level::Zero && !self.is_input(run));
        let above = self.bytes(|run| run.level == Level::One && !self.is_input(run));
        let left_behind = others.first().map_or(0, |work| work.left as u64);
        Some(Behind {
            waiting: (free + self.active) as u64,
            held: others.iter().map(left_of).sum::<f64>() as u64,
            above: (above + if left_behind > 0 { left_of(top) } else { 0.0 }) as u64,
            left: self.meter.left()?,
            left_behind,
            gives_way: top.level == Level::Last && top.flushes == 0.0 && top.left > self.policy.nest_bytes as f64,
        })
    }

    /// A step in which `asked` bytes a second would be written; how many a second are.
    fn step(&mut self, asked: f64) -> f64 {
        self.now_ms += STEP_MS;
        self.shape.left = self.works.first().map_or(0, |work| work.left as u64);
        self.begin_what_is_due();
        let above_max = (self.bytes(|run| run.level == Level::Last) * self.policy.above_room_share) as u64;
        let level0_max = self.policy.pace_runs() as u64 * FLUSH;
        let most = self.behind().map_or(f64::MAX, |behind| behind.rate(level0_max, above_max, self.meter.speed(self.now())));
        let written = asked.min(most).min(DISK / DISK_A_BYTE * 0.9);
        self.active += written * STEP_MS as f64 / 1e3;
        if self.active >= FLUSH as f64 {
            self.active -= FLUSH as f64;
            self.shape.runs.insert(0, RunShape { id: self.next, level: Level::Zero, bytes: FLUSH, dead_bytes: 0 });
            self.next += 1;
        }
        self.look();
        let disk = DISK * (1.0 + 0.5 * (self.now_ms as f64 / 300.0).sin());
        self.merge((disk - written * DISK_A_BYTE).max(0.0) * STEP_MS as f64 / 1e3);
        written
    }

    fn look(&mut self) {
        let consumed = |work: &Work| 1.0 - work.left / work.total;
        let of_level0: f64 = self.works.iter().map(|work| work.flushes * FLUSH as f64 * consumed(work)).sum();
        self.level0_max = self.level0_max.max(self.bytes(|run| run.level == Level::Zero) + self.active - of_level0);
        let given_back: f64 = self.works.iter().map(|work| (work.total - work.out) * consumed(work)).sum();
        self.space_max = self.space_max.max(self.bytes(|_| true) + self.active - given_back);
    }

    fn merge(&mut self, disk: f64) {
        let now = self.now();
        let Some(work) = self.works.last_mut() else { return };
        let merged = disk / (1.0 + work.out / work.total);
        work.left -= merged;
        self.meter.advance(now, merged as u64);
        if work.left > 0.0 {
            return;
        }
        let (work, merge) = (self.works.pop().expect("it was there"), self.shape.merges.pop().expect("each has its record"));
        self.meter.end(now);
        if work.level == Level::Last {
            let above = work.total - self.bytes(|run| run.level == Level::Last);
            self.shape.overwritten_share = (work.total - work.out) / above;
        }
        self.shape.runs.retain(|run| !merge.inputs.contains(&run.id));
        self.shape.runs.push(RunShape { id: work.run, level: work.level, bytes: work.out as u64, dead_bytes: 0 });
        self.shape.runs.sort_by_key(|run| (run.level, std::cmp::Reverse(run.id)));
        if let Some(work) = self.works.last() {
            self.meter.begin(now, work.total as u64, work.left as u64);
        }
    }

    /// The longest time, in seconds, that a write waits within some minutes in which `asked` bytes a second come, whatever is taken.
    fn delay(&mut self, minutes: u64, asked: f64) -> f64 {
        let (mut waiting, mut longest) = (0.0, 0.0f64);
        for _ in 0..minutes * MINUTE {
            let a_second = 1000.0 / STEP_MS as f64;
            let written = self.step(asked + waiting * a_second);
            waiting = (waiting + (asked - written) / a_second).max(0.0);
            longest = longest.max(waiting / written);
        }
        longest
    }

    /// The mean of some minutes.
    fn mean(&mut self, minutes: u64, asked: f64) -> f64 {
        let steps = minutes * MINUTE;
        (0..steps).map(|_| self.step(asked)).sum::<f64>() / steps as f64
    }
}

#[test]
fn under_any_load_level_0_stays_within_its_bound_and_no_rate_breaks_down() {
    for (keys, least_mb) in [(2 * GIB, 18.0), (8 * GIB, 8.0), (16 * GIB, 8.0), (40 * GIB, 8.0)] {
        let mut sim = Sim::new(keys);
        sim.mean(20 + 2 * keys / GIB, f64::MAX);
        (sim.level0_max, sim.space_max) = (0.0, 0.0);
        let least = (0..(30 + 2 * keys / GIB) * MINUTE).map(|_| sim.step(f64::MAX)).fold(f64::MAX, f64::min);
        let (level0, space) = (sim.level0_max / FLUSH as f64, sim.space_max / sim.keys);
        assert!(level0 < 37.0, "{level0} flushes in level 0, {keys} below");
        assert!(least >= least_mb * 1e6, "{least} bytes a second at the least, {keys} below");
        assert!(keys < 8 * GIB || space < 1.45, "{space} times the room of what lives, {keys} below");
    }
}

#[test]
fn four_fifths_of_what_is_written_under_the_highest_load_hardly_wait() {
    for keys in [2, 4, 8, 12, 16, 24, 40].map(|gib| gib * GIB) {
        let mut sim = Sim::new(keys);
        sim.mean(10 + 2 * keys / GIB, f64::MAX);
        let asked = sim.mean(10 + 2 * keys / GIB, f64::MAX) * 0.8;
        // What was let in before is worked off first.
        sim.mean(5 + keys / GIB, asked);
        let delay = sim.delay(60, asked);
        assert!(delay < 0.5, "{delay} s in an hour, with {keys} below and {asked} asked for");
    }
}
