//! Many seeds of `cluster`: what `ringkv sim --cluster` does.

use super::cluster::{COMMANDS, FAULTS_WANTED, FaultSet, Outcome, Setup, run};
use crate::cluster::coordinator::Planted;
use crate::config::{SimRun, exit};
use crate::io::host;
use std::collections::BTreeMap;

/// Seeds when nothing is said.
const SEEDS_DEFAULT: u64 = 100;
/// Commands that every seed has at least.
const COMMANDS_MIN: u64 = 2_000;
/// How often the search for a smaller failing run tries fewer commands.
const SHORTER_MAX: u32 = 6;

impl Planted {
    pub const ALL: &[Planted] = &[
        Planted::PutRestamps,
        Planted::DupIsSuperseded,
        Planted::ClocksNotAsked,
        Planted::ReadNoWriteback,
        Planted::RetryNewStamp,
        Planted::HintCountedToW,
        Planted::AckBeforeSync,
        Planted::OldEpochObeyed,
        Planted::PendingNotInQuorum,
        Planted::RepairOff,
        Planted::FlipAfterOneSource,
        Planted::DropWithoutFence,
        Planted::FloorLocalOnly,
        Planted::RepairCopyBelowFloor,
        Planted::AbsentIsVersionZero,
    ];

    /// As PROTOCOL.md calls it.
    pub fn name(self) -> &'static str {
        match self {
            Planted::PutRestamps => "put_restamps",
            Planted::DupIsSuperseded => "dup_is_superseded",
            Planted::ClocksNotAsked => "clocks_not_asked",
            Planted::ReadNoWriteback => "read_no_writeback",
            Planted::RetryNewStamp => "retry_new_stamp",
            Planted::HintCountedToW => "hint_counted_to_w",
            Planted::AckBeforeSync => "ack_before_sync",
            Planted::OldEpochObeyed => "old_epoch_served",
            Planted::PendingNotInQuorum => "pending_not_in_quorum",
            Planted::RepairOff => "repair_off",
            Planted::FlipAfterOneSource => "flip_after_one_source",
            Planted::DropWithoutFence => "drop_without_fence",
            Planted::FloorLocalOnly => "floor_local_only",
            Planted::RepairCopyBelowFloor => "repair_copy_below_floor",
            Planted::AbsentIsVersionZero => "absent_is_version_zero",
        }
    }
}

#[derive(Default)]
struct Summary {
    seeds: u64,
    commands: u64,
    acknowledged: u64,
    crashes: u64,
    floors: u64,
    forgotten: u64,
    /// Seeds in which a floor rose.
    rising: u64,
    faults: BTreeMap<String, u64>,
    errors: BTreeMap<String, u64>,
    thin: Vec<String>,
}

/// Runs what the command line asks for; the exit code.
pub fn run_seeds(asked: &SimRun, say: &mut dyn FnMut(&str)) -> i32 {
    let planted = match asked.planted.as_deref().map(planted_by_name).transpose() {
        Ok(planted) => planted,
        Err(why) => {
            say(&why);
            return exit::CONFIG;
        }
    };
    let (first, count) = match asked.seed {
        Some(seed) => (seed, 1),
        None => (asked.first.unwrap_or(1), asked.seeds.unwrap_or(SEEDS_DEFAULT)),
    };
    let started = host::mono();
    let mut summary = Summary::default();
    for seed in first..first.saturating_add(count) {
        let setup = Setup { seed, planted, commands: COMMANDS, faults: FaultSet::ALL };
        let outcome = run(&setup);
        if asked.seed.is_some() {
            tell(&outcome, say);
        }
        if !outcome.failures.is_empty() {
            return failed(&setup, &outcome, seed - first + 1, say);
        }
        summary.add(&outcome);
    }
    summary.tell(host::mono().since(started).as_secs_f64(), say);
    match planted {
        Some(planted) => {
            say(&format!("the planted bug {} was not found in {count} seeds", planted.name()));
            exit::FAILED
        }
        None if asked.seed.is_none() && !summary.is_complete(say) => exit::FAILED,
        None => exit::CLEAN,
    }
}

fn planted_by_name(name: &str) -> Result<Planted, String> {
    Planted::ALL.iter().copied().find(|planted| planted.name() == name).ok_or_else(|| {
        let names: Vec<_> = Planted::ALL.iter().map(|planted| planted.name()).collect();
        format!("no planted bug of a cluster is called {name}; there are {}", names.join(", "))
    })
}

fn tell(outcome: &Outcome, say: &mut dyn FnMut(&str)) {
    outcome.timeline.iter().for_each(|line| say(line));
    say(&format!(
        "seed {} commands {} acknowledged {} crashes {} floors {} forgotten {} fingerprint {:016x}",
        outcome.seed, outcome.commands, outcome.acknowledged, outcome.crashes, outcome.floors, outcome.forgotten, outcome.fingerprint
    ));
}

fn failed(setup: &Setup, outcome: &Outcome, after: u64, say: &mut dyn FnMut(&str)) -> i32 {
    if let Some(planted) = setup.planted {
        say(&format!("found {} after {after} seeds (seed {}): {}", planted.name(), setup.seed, outcome.failures[0]));
        return exit::CLEAN;
    }
    say(&format!("seed {} failed: {}", setup.seed, outcome.failures[0]));
    let (small, outcome) = minimize(setup);
    say(&format!("smallest: {} commands, faults {:?}", small.commands, small.faults));
    outcome.timeline.iter().for_each(|line| say(line));
    outcome.failures.iter().for_each(|line| say(&format!("  {line}")));
    say(&format!("again: ringkv sim --cluster --seed {}", setup.seed));
    exit::FAILED
}

/// Fewer kinds of faults and fewer commands, as long as it still fails.
fn minimize(setup: &Setup) -> (Setup, Outcome) {
    let mut best = setup.clone();
    let mut outcome = run(&best);
    let switches: [fn(&mut FaultSet); 6] = [
        |set| set.clock = false,
        |set| set.slow = false,
        |set| set.network = false,
        |set| set.cut = false,
        |set| set.crash = false,
        |set| set.moves = false,
    ];
    let mut attempt = |candidate: Setup| {
        let tried = run(&candidate);
        if !tried.failures.is_empty() {
            (best, outcome) = (candidate, tried);
        }
        best.clone()
    };
    let mut smallest = setup.clone();
    for off in switches {
        off(&mut smallest.faults);
        smallest = attempt(smallest);
    }
    for _ in 0..SHORTER_MAX {
        smallest = attempt(Setup { commands: smallest.commands * 2 / 3, ..smallest });
    }
    (best, outcome)
}

impl Summary {
    fn add(&mut self, outcome: &Outcome) {
        self.seeds += 1;
        self.commands += outcome.commands;
        self.acknowledged += outcome.acknowledged;
        self.crashes += outcome.crashes;
        self.floors += outcome.floors;
        self.forgotten += outcome.forgotten;
        self.rising += u64::from(outcome.floors > 0);
        for (sum, part) in [(&mut self.faults, &outcome.faults), (&mut self.errors, &outcome.errors)] {
            part.iter().for_each(|(name, count)| *sum.entry(name.clone()).or_default() += count);
        }
        if outcome.commands < COMMANDS_MIN {
            self.thin.push(format!("seed {}: {} commands, fewer than {COMMANDS_MIN}", outcome.seed, outcome.commands));
        }
    }

    fn tell(&self, seconds: f64, say: &mut dyn FnMut(&str)) {
        say(&format!(
            "{} seeds of clusters, {} commands ({:.0} a second), {} writes acknowledged, {} crashes, {} floors raised, {} cells forgotten",
            self.seeds,
            self.commands,
            self.commands as f64 / seconds,
            self.acknowledged,
            self.crashes,
            self.floors,
            self.forgotten
        ));
        for (title, counts) in [("faults", &self.faults), ("errors answered", &self.errors)] {
            let words: Vec<_> = counts.iter().map(|(name, count)| format!("{name} {count}")).collect();
            say(&format!("{title}: {}", words.join(", ")));
        }
    }

    /// A kind of fault that never happened was not tested, nor was forgetting where nothing was forgotten.
    fn is_complete(&self, say: &mut dyn FnMut(&str)) -> bool {
        let missing: Vec<_> = FAULTS_WANTED.iter().filter(|name| self.faults.get(**name).is_none_or(|count| *count == 0)).collect();
        missing.iter().for_each(|name| say(&format!("never happened: {name}")));
        self.thin.iter().for_each(|line| say(line));
        let is_idle = self.forgotten == 0 || self.rising * 4 < self.seeds * 3;
        if is_idle {
            say(&format!("too little was forgotten: {} cells, and floors rose in {} of {} seeds", self.forgotten, self.rising, self.seeds));
        }
        missing.is_empty() && self.thin.is_empty() && !is_idle
    }
}
