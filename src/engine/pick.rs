//! Which runs to merge next: a pure function of the tree's shape.
//!
//! Leveled below, tiered above (Dayan and Idreos, "Dostoevsky", 2018, call it lazy leveling). Level 0 collects flushes. When it is full
//! it goes straight into the last level if it is large against it, else it becomes one run of level 1; level 1 goes into the last level
//! when together they reach a good half of it. So the last level, most of the data, is rewritten only when the data has grown that much or
//! what lies above makes it garbage, and each cell is written about three times in all up to some GiB a core (a test simulates it).
//!
//! A merge into a large last level takes minutes. It takes in level 1 alone, and so that level 0 need not hold all that is written
//! meanwhile, that is merged into a new run of level 1 between two slices of the large merge, which then goes on.

use super::format::manifest::{Level, MergeRecord};

/// One run, as the picker sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RunShape {
    pub id: u64,
    pub level: Level,
    /// Of what is not carried elsewhere yet.
    pub bytes: u64,
    /// Known to be dead: expired, or of vnodes that were dropped.
    pub dead_bytes: u64,
}

/// The tree, as the picker sees it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TreeShape {
    /// Newest first.
    pub runs: Vec<RunShape>,
    /// Merges that were begun, each within the one before it.
    pub merges: Vec<MergeRecord>,
    /// Bytes of places and cells that the first of them still has to go through.
    pub left: u64,
    /// Of the bytes that merges into the last level took from above, the share that replaced something. 0 until one is measured.
    pub overwritten_share: f64,
}

/// What the picker strives for.
#[derive(Clone, Copy, Debug)]
pub struct Policy {
    /// Flushes that level 0 collects.
    pub level0_runs: usize,
    /// Level 0 goes straight into the last level from this share of it on.
    pub direct_share: f64,
    /// Levels 0 and 1 go into the last level from this share of it on.
    pub above_share: f64,
    /// Runs of about one size that level 1 collects before they become one.
    pub level1_runs: usize,
    /// Dead bytes over live bytes that start a merge into the last level.
    pub dead_share: f64,
    /// Garbage is not worth a merge below this.
    pub dead_bytes_min: u64,
    /// A full level 0 goes before a merge of levels 1 and last that still has more to go through than this.
    pub nest_bytes: u64,
    /// What is written during such a merge may take up to this share of the last level.
    pub above_room_share: f64,
}

impl Default for Policy {
    fn default() -> Policy {
        Policy {
            level0_runs: 12,
            direct_share: 0.5,
            above_share: 0.6,
            level1_runs: 6,
            dead_share: 0.2,
            dead_bytes_min: 8 << 20,
            nest_bytes: u64::MAX / 2,
            above_room_share: 0.33,
        }
    }
}

impl Policy {
    /// For memtables of so many bytes. Going first costs a level 0 to be written once more, so it has to spare it a long wait.
    pub fn new(memtable_bytes: u64) -> Policy {
        let policy = Policy::default();
        Policy { nest_bytes: 10 * policy.level0_runs as u64 * memtable_bytes, ..policy }
    }

    /// Flushes that level 0 may hold, of those that are consumed in part the rest: writes are slowed so that it never holds more.
    pub fn pace_runs(&self) -> usize {
        self.level0_runs * 3
    }

    /// Flushes in level 0 from which on writes are refused: the pace did not hold.
    pub fn stall_runs(&self) -> usize {
        self.level0_runs * 4
    }

    /// The share of false positives that the filters of a new run may have, so that all of a tree's filters together stay below 1 % with
    /// the least memory: above the last level in proportion to the run's size (Dayan, Athanassoulis and Idreos, "Monkey", 2017, section 4).
    /// `run` and `last` are entries of the run and of the last level, 0 where there is none.
    pub fn false_positives(&self, level: Level, run: u64, last: u64) -> f64 {
        if level == Level::Last {
            return 0.0055;
        }
        let last = if last == 0 { run.saturating_mul(self.level0_runs as u64) } else { last };
        (0.0049 * (run as f64 / last.max(1) as f64).min(1.0)).max(0.0001)
    }
}

/// What to merge, and where to. `run` is None where a new run begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    pub inputs: Vec<u64>,
    pub level: Level,
    pub run: Option<u64>,
}

/// The next merge, if one is due.
pub fn choose(shape: &TreeShape, policy: &Policy) -> Option<Choice> {
    let of = |level| shape.runs.iter().filter(move |run| run.level == level);
    if let Some(merge) = shape.merges.last() {
        let is_outermost = shape.merges.len() == 1 && merge.level == Level::Last;
        let level0: Vec<u64> = of(Level::Zero).map(|run| run.id).collect();
        let takes_level0 = level0.iter().any(|id| merge.inputs.contains(id));
        if is_outermost && !takes_level0 && shape.left > policy.nest_bytes && level0.len() >= policy.level0_runs {
            return Some(Choice { inputs: level0, level: Level::One, run: None });
        }
        return Some(Choice { inputs: merge.inputs.clone(), level: merge.level, run: Some(merge.run) });
    }
    let bytes = |level| of(level).map(|run| run.bytes).sum::<u64>();
    let (above0, above1, last) = (bytes(Level::Zero), bytes(Level::One), bytes(Level::Last));
    let full = of(Level::Zero).count() >= policy.level0_runs;
    // A long merge gives way to level 0 for half of its time at least.
    let is_long = above1 > 0 && above1 + last > 2 * policy.nest_bytes;
    let whole = || into_last(shape, |run| !(is_long && run.level == Level::Zero));
    if of(Level::Last).count() > 1 && full || is_worn(shape, policy, above0 + above1, last) {
        return whole();
    }
    if !full {
        return None;
    }
    let reaches = |bytes: u64, share: f64| bytes as f64 >= share * last as f64;
    if reaches(above0, policy.direct_share) || reaches(above0 + above1, policy.above_share) {
        return whole();
    }
    // Runs of level 1 that are not larger than what is merged with them join in, so that a byte is rewritten once a size class.
    let mut inputs: Vec<u64> = of(Level::Zero).map(|run| run.id).collect();
    if of(Level::One).count() >= policy.level1_runs {
        let (mut bytes, mut joined) = (above0, Vec::new());
        for run in of(Level::One).take_while(|run| run.level == Level::One) {
            if joined.len() > 1 && run.bytes > bytes {
                break;
            }
            joined.push(run.id);
            bytes += run.bytes;
        }
        inputs.extend(joined);
    }
    Some(Choice { inputs, level: Level::One, run: None })
}

/// So much is dead that rewriting all of it pays.
fn is_worn(shape: &TreeShape, policy: &Policy, above: u64, last: u64) -> bool {
    let replaced = (above as f64 * shape.overwritten_share.clamp(0.0, 1.0)).min(last as f64);
    let dead = shape.runs.iter().map(|run| run.dead_bytes).sum::<u64>() as f64 + replaced;
    let live = ((above + last) as f64 - dead).max(0.0);
    dead >= policy.dead_bytes_min as f64 && dead >= policy.dead_share * live
}

fn into_last(shape: &TreeShape, takes: impl Fn(&RunShape) -> bool) -> Option<Choice> {
    // One last run goes on under its number; of several, none.
    let mut last = shape.runs.iter().filter(|run| run.level == Level::Last);
    let run = last.next().map(|run| run.id).filter(|_| last.next().is_none());
    let inputs: Vec<u64> = shape.runs.iter().filter(|run| takes(run)).map(|run| run.id).collect();
    (!inputs.is_empty()).then_some(Choice { inputs, level: Level::Last, run })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// A tree of sizes alone. `keys_bytes`: how much distinct data there is (writes are uniform over it), or none where all keys are new.
    struct Sim {
        shape: TreeShape,
        /// Of each run, by its number.
        false_positives: std::collections::BTreeMap<u64, f64>,
        policy: Policy,
        keys_bytes: Option<u64>,
        next: u64,
        put: u64,
        written: u64,
        runs_max: usize,
        space_max: f64,
    }

    impl Sim {
        fn new(keys_bytes: Option<u64>) -> Sim {
            let (shape, policy) = (TreeShape::default(), Policy::default());
            let false_positives = Default::default();
            Sim { shape, false_positives, policy, keys_bytes, next: 1, put: 0, written: 0, runs_max: 0, space_max: 0.0 }
        }

        /// Distinct bytes among so many written at random.
        fn distinct(&self, bytes: u64) -> u64 {
            self.keys_bytes.map_or(bytes, |keys| (keys as f64 * (1.0 - (-(bytes as f64) / keys as f64).exp())) as u64)
        }

        /// How many bytes had to be written to leave so many distinct ones.
        fn drawn(&self, distinct: u64) -> u64 {
            self.keys_bytes.map_or(distinct, |keys| (-(keys as f64) * (1.0 - (distinct as f64 / keys as f64).min(0.999_99)).ln()) as u64)
        }

        fn flush(&mut self, bytes: u64) {
            let written = self.distinct(bytes);
            self.shape.runs.insert(0, RunShape { id: self.next, level: Level::Zero, bytes: written, dead_bytes: 0 });
            self.filter(self.next, Level::Zero, written);
            self.next += 1;
            self.put += bytes;
            self.written += written;
            self.look();
            while let Some(choice) = choose(&self.shape, &self.policy) {
                self.carry_out(&choice);
                self.look();
            }
        }

        fn carry_out(&mut self, choice: &Choice) {
            let (inputs, kept): (Vec<RunShape>, Vec<RunShape>) = self.shape.runs.iter().partition(|run| choice.inputs.contains(&run.id));
            assert!(!inputs.is_empty());
            let bytes = self.distinct(inputs.iter().map(|run| self.drawn(run.bytes)).sum());
            if choice.level == Level::Last {
                let above: u64 = inputs.iter().filter(|run| run.level != Level::Last).map(|run| run.bytes).sum();
                let total: u64 = inputs.iter().map(|run| run.bytes).sum();
                self.shape.overwritten_share = (total - bytes) as f64 / above.max(1) as f64;
            }
            self.written += bytes;
            self.shape.runs = kept;
            let id = choice.run.unwrap_or(self.next);
            self.filter(id, choice.level, bytes);
            self.next += 1;
            self.shape.runs.push(RunShape { id, level: choice.level, bytes, dead_bytes: 0 });
            self.shape.runs.sort_by_key(|run| (run.level, std::cmp::Reverse(run.id)));
        }

        fn filter(&mut self, run: u64, level: Level, bytes: u64) {
            let last = self.shape.runs.iter().filter(|run| run.level == Level::Last).map(|run| run.bytes).sum();
            self.false_positives.insert(run, self.policy.false_positives(level, bytes, last));
        }

        /// The sum of false positives, and the bytes that filters take, a KiB of data.
        fn filters(&self) -> (f64, f64) {
            let runs = self.shape.runs.iter().map(|run| (run.bytes as f64, self.false_positives[&run.id]));
            let bits = |share: f64| -share.ln() / std::f64::consts::LN_2.powi(2);
            let (sum, bytes, all) = runs.fold((0.0, 0.0, 0.0), |a, (n, share)| (a.0 + share, a.1 + n * bits(share) / 8.0, a.2 + n));
            (sum, bytes / all)
        }

        fn look(&mut self) {
            self.runs_max = self.runs_max.max(self.shape.runs.len());
            let total: u64 = self.shape.runs.iter().map(|run| run.bytes).sum();
            let live = self.keys_bytes.map_or(self.put, |_| self.distinct(self.put));
            // Small trees are noise.
            if live > 512 * MIB {
                self.space_max = self.space_max.max(total as f64 / live as f64);
            }
        }

        fn amplification(&self) -> f64 {
            self.written as f64 / self.put as f64
        }
    }

    #[test]
    fn filling_with_new_keys_writes_each_byte_at_most_four_times_and_in_a_large_tree_seven() {
        for flush in [24 * MIB, 32 * MIB, 40 * MIB, 48 * MIB] {
            let mut sim = Sim::new(None);
            while sim.put < 64 << 30 {
                sim.flush(flush);
                let bound = if sim.put <= 4 << 30 { 4.0 } else { 6.5 };
                if sim.put > 1 << 30 && sim.put <= 4 << 30 {
                    let (share, bytes) = sim.filters();
                    assert!(share <= 0.01, "{share} false positives");
                    assert!(bytes <= 1.7, "{bytes} bytes of filter a key of 1 KiB");
                }
                if sim.put > 1 << 30 {
                    assert!(sim.amplification() <= bound, "{} at {} MiB of {}", sim.amplification(), sim.put / MIB, flush / MIB);
                }
            }
            assert!(sim.space_max <= 1.0, "nothing is stored twice but a slice of a merge under way");
            assert!(sim.runs_max <= 24, "{} runs", sim.runs_max);
        }
    }

    #[test]
    fn overwriting_the_same_keys_for_ever_keeps_space_below_one_and_a_half_of_what_lives() {
        let mut sim = Sim::new(Some(2 << 30));
        while sim.put < 32 << 30 {
            sim.flush(32 * MIB);
        }
        assert!(sim.space_max <= 1.5, "space {}", sim.space_max);
        assert!(sim.amplification() <= 8.0, "writes {}", sim.amplification());
    }

    #[test]
    fn a_merge_that_was_begun_goes_on_before_anything_else() {
        let merge = MergeRecord { inputs: vec![3, 2], level: Level::One, run: 9, done: Vec::new() };
        let shape = TreeShape { merges: vec![merge], ..TreeShape::default() };
        let expected = Choice { inputs: vec![3, 2], level: Level::One, run: Some(9) };
        assert_eq!(choose(&shape, &Policy::default()), Some(expected));
        assert_eq!(choose(&TreeShape::default(), &Policy::default()), None);
    }

    #[test]
    fn a_full_level_0_goes_before_a_long_merge_into_the_last_level_and_nothing_else_does() {
        let zero = |id| RunShape { id, level: Level::Zero, bytes: MIB, dead_bytes: 0 };
        let policy = Policy { level0_runs: 2, nest_bytes: 100, ..Policy::default() };
        let outer = MergeRecord { inputs: vec![1], level: Level::Last, run: 1, done: Vec::new() };
        let with_level0 = MergeRecord { inputs: vec![2, 1], ..outer.clone() };
        let shape = |runs: &[u64], merges: &[&MergeRecord], left| TreeShape {
            runs: runs.iter().map(|id| zero(*id)).collect(),
            merges: merges.iter().map(|merge| (*merge).clone()).collect(),
            left,
            overwritten_share: 0.0,
        };
        let on = |merge: &MergeRecord| Some(Choice { inputs: merge.inputs.clone(), level: merge.level, run: Some(merge.run) });
        assert_eq!(choose(&shape(&[3], &[&outer], 101), &policy), on(&outer), "level 0 is not full");
        assert_eq!(choose(&shape(&[4, 3], &[&outer], 100), &policy), on(&outer), "it ends soon");
        assert_eq!(choose(&shape(&[4, 3, 2], &[&with_level0], 101), &policy), on(&with_level0), "it frees level 0 itself");
        let first = Choice { inputs: vec![4, 3], level: Level::One, run: None };
        assert_eq!(choose(&shape(&[4, 3], &[&outer], 101), &policy), Some(first));
        let nested = MergeRecord { inputs: vec![4, 3], level: Level::One, run: 5, done: Vec::new() };
        assert_eq!(choose(&shape(&[7, 6, 4, 3], &[&outer, &nested], 101), &policy), on(&nested));
        assert_eq!(choose(&shape(&[7, 6, 4, 3], &[&nested], 101), &policy), on(&nested), "it is none into the last level");
    }

    #[test]
    fn a_long_merge_into_the_last_level_leaves_level_0_alone() {
        let run = |id, level, mib: u64| RunShape { id, level, bytes: mib * MIB, dead_bytes: 0 };
        let runs = vec![run(4, Level::Zero, 50), run(3, Level::Zero, 50), run(2, Level::One, 50), run(1, Level::Last, 100)];
        let shape = TreeShape { runs, ..TreeShape::default() };
        let inputs_at = |nest_mib: u64| {
            let policy = Policy { level0_runs: 2, nest_bytes: nest_mib * MIB, ..Policy::default() };
            choose(&shape, &policy).expect("level 0 is full and large").inputs
        };
        assert_eq!((inputs_at(75), inputs_at(74)), (vec![4, 3, 2, 1], vec![2, 1]));
    }

    #[test]
    fn dead_bytes_alone_start_a_merge() {
        let run = RunShape { id: 1, level: Level::Last, bytes: 100 * MIB, dead_bytes: 10 * MIB };
        let mut shape = TreeShape { runs: vec![run], ..TreeShape::default() };
        assert_eq!(choose(&shape, &Policy::default()), None);
        shape.runs[0].dead_bytes = 40 * MIB;
        assert_eq!(choose(&shape, &Policy::default()), Some(Choice { inputs: vec![1], level: Level::Last, run: Some(1) }));
    }
}
