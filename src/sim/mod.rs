//! Whole nodes in one thread, from a seed, under a checker: production code of every room over `io::sim`.
//!
//! `scenario` is one run; `workload` its clients; `checker` knows what answers may be; `final_look` reads everything at the end; `rot`
//! flips bits; `minimize` makes a failing run smaller. `gossip` is membership alone, for clusters of any size. A seed is a bug
//! report: the same seed gives the same bytes.

mod agree;
mod buried;
pub mod checker;
pub mod cluster;
mod cluster_run;
mod final_look;
pub mod gossip;
#[cfg(test)]
mod gossip_tests;
pub mod minimize;
mod operator;
mod rot;
pub mod scenario;
pub mod workload;

use crate::config::{SimRun, exit};
use crate::engine::Planted;
use crate::io::host;
use scenario::{FaultSet, Outcome, Setup};
use std::collections::BTreeMap;

/// Commands of one seed.
pub const COMMANDS: u64 = 12_000;
/// Seeds when nothing is said.
const SEEDS_DEFAULT: u64 = 200;

/// What happened over many seeds.
#[derive(Default)]
struct Summary {
    seeds: u64,
    commands: u64,
    acknowledged: u64,
    crashes: u64,
    flushes: u64,
    compactions: u64,
    faults: BTreeMap<String, u64>,
    crash_sites: BTreeMap<String, u64>,
    errors: BTreeMap<String, u64>,
    thin: Vec<String>,
}

/// Faults that every run of many seeds must have seen.
const FAULTS_WANTED: &[&str] = &[
    "EIO read",
    "EIO durable write",
    "EIO write",
    "ENOSPC",
    "bit rot",
    "chunked delivery",
    "connect refused",
    "core pause",
    "crash",
    "crash before",
    "crash during",
    "crash after",
    "kill",
    "kept create",
    "lost create",
    "kept unlink",
    "lost unlink",
    "kept punch",
    "lost punch",
    "kept unsynced write",
    "lost unsynced write",
    "torn write",
    "reset",
    "slow io",
    "wall clock jump",
];
/// Operations at which the power must have failed: what comes before the space in `World::crash_sites`, and the kind of file.
const SITES_WANTED: &[&str] = &[
    "before durable write wal",
    "during durable write wal",
    "after durable write wal",
    "during durable write MANIFEST",
    "after durable write MANIFEST",
    "before sync_dir",
    "after sync_dir",
    "before create",
    "after create",
    "before unlink",
    "after unlink",
    "before read",
    "after read",
    "after sync",
    "before open",
    "after open",
];

/// Runs what the command line asks for; the exit code.
pub fn run(asked: &SimRun, say: &mut dyn FnMut(&str)) -> i32 {
    if asked.cluster {
        return cluster_run::run_seeds(asked, say);
    }
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
    for seed in first..first + count {
        let setup = Setup { seed, cores: asked.cores, planted, commands: COMMANDS, faults: FaultSet::ALL };
        let outcome = scenario::run(&setup);
        if asked.seed.is_some() {
            tell(&outcome, say);
        }
        if !outcome.failures.is_empty() {
            return failed(&setup, &outcome, seed - first + 1, say);
        }
        summary.add(&outcome);
    }
    let seconds = host::mono().since(started).as_secs_f64();
    summary.tell(seconds, say);
    match planted {
        Some(planted) => {
            say(&format!("the planted bug {planted:?} was not found in {count} seeds"));
            exit::FAILED
        }
        None if asked.seed.is_none() && !summary.is_complete(asked.cores.is_none(), say) => exit::FAILED,
        None => exit::CLEAN,
    }
}

fn failed(setup: &Setup, outcome: &Outcome, after: u64, say: &mut dyn FnMut(&str)) -> i32 {
    if let Some(planted) = setup.planted {
        say(&format!("found {planted:?} after {after} seeds (seed {}): {}", setup.seed, outcome.failures[0]));
        return exit::CLEAN;
    }
    say(&format!("seed {} failed: {}", setup.seed, outcome.failures[0]));
    let (small, outcome) = minimize::minimize(setup);
    say(&format!("smallest: {} commands, faults {:?}", small.commands, small.faults));
    outcome.timeline.iter().for_each(|line| say(line));
    outcome.failures.iter().for_each(|line| say(&format!("  {line}")));
    say(&format!("again: ringkv sim --seed {}", setup.seed));
    exit::FAILED
}

fn planted_by_name(name: &str) -> Result<Planted, String> {
    Planted::ALL.iter().copied().find(|planted| planted.name() == name).ok_or_else(|| {
        let names: Vec<_> = Planted::ALL.iter().map(|planted| planted.name()).collect();
        format!("no planted bug is called {name}; there are {}", names.join(", "))
    })
}

fn tell(outcome: &Outcome, say: &mut dyn FnMut(&str)) {
    outcome.timeline.iter().for_each(|line| say(line));
    say(&format!(
        "seed {} commands {} acknowledged {} crashes {} flushes {} compactions {} fingerprint {:016x}",
        outcome.seed, outcome.commands, outcome.acknowledged, outcome.crashes, outcome.flushes, outcome.compactions, outcome.fingerprint
    ));
}

impl Summary {
    fn add(&mut self, outcome: &Outcome) {
        self.seeds += 1;
        self.commands += outcome.commands;
        self.acknowledged += outcome.acknowledged;
        self.crashes += outcome.crashes;
        self.flushes += outcome.flushes;
        self.compactions += outcome.compactions;
        let pairs =
            [(&mut self.faults, &outcome.faults), (&mut self.crash_sites, &outcome.crash_sites), (&mut self.errors, &outcome.errors)];
        for (sum, part) in pairs {
            part.iter().for_each(|(name, count)| *sum.entry(name.clone()).or_default() += count);
        }
        let least = [
            ("commands", outcome.commands, 2_000),
            ("crashes", outcome.crashes, 3),
            ("flushes", outcome.flushes, 3),
            ("compactions", outcome.compactions, 1),
        ];
        for (what, had, wanted) in least {
            if had < wanted {
                self.thin.push(format!("seed {}: {had} {what}, fewer than {wanted}", outcome.seed));
            }
        }
    }

    fn tell(&self, seconds: f64, say: &mut dyn FnMut(&str)) {
        say(&format!(
            "{} seeds, {} commands ({:.0} a second), {} writes acknowledged, {} crashes, {} flushes, {} compactions",
            self.seeds,
            self.commands,
            self.commands as f64 / seconds,
            self.acknowledged,
            self.crashes,
            self.flushes,
            self.compactions
        ));
        for (title, counts) in [("faults", &self.faults), ("crash sites", &self.crash_sites), ("errors answered", &self.errors)] {
            let words: Vec<_> = counts.iter().map(|(name, count)| format!("{name} {count}")).collect();
            say(&format!("{title}: {}", words.join(", ")));
        }
    }

    /// A kind of fault that never happened was not tested. `moves`: the list of cores could change.
    fn is_complete(&self, moves: bool, say: &mut dyn FnMut(&str)) -> bool {
        let happened =
            |counts: &BTreeMap<String, u64>, name: &str| counts.iter().any(|(what, count)| *count > 0 && what.trim_end() == name);
        // A site is named with the kind of file where that is told.
        let at_site = |name: &str| self.crash_sites.keys().any(|site| site.starts_with(name));
        let moves = if moves { scenario::MOVES } else { &[] };
        let faults = FAULTS_WANTED.iter().chain(moves).filter(|name| !happened(&self.faults, name));
        let missing: Vec<_> = faults.chain(SITES_WANTED.iter().filter(|name| !at_site(name))).collect();
        missing.iter().for_each(|name| say(&format!("never happened: {name}")));
        self.thin.iter().for_each(|line| say(line));
        missing.is_empty() && self.thin.is_empty()
    }
}
