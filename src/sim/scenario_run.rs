//! Many seeds of `scenario`: what `ringkv sim` does, and what they have to show.

use super::scenario::{self, FaultSet, Setup, run};
use super::seeds::{Kind, Outcome, Summary, Switch};
use crate::config::SimRun;
use crate::engine::Planted;

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

impl Kind for FaultSet {
    type Planted = Planted;

    const FLAGS: &'static str = "";
    const WHAT: &'static str = "";
    const SEEDS: u64 = 200;
    const COMMANDS: u64 = 12_000;
    const CRASHES_MIN: u64 = 3;
    const COUNTS: &'static [(&'static str, u64)] = &[("flushes", 3), ("compactions", 1), ("merges that gave way", 0)];
    const PLANTED: &'static [Planted] = &Planted::ALL;
    const FAULTS: FaultSet = FaultSet { slow: true, errors: true, full: true, network: true, clock: true, rot: true };
    const SWITCHES: &'static [Switch<FaultSet>] = &[
        ("rot", |set| set.rot = false),
        ("errors", |set| set.errors = false),
        ("full", |set| set.full = false),
        ("network", |set| set.network = false),
        ("clock", |set| set.clock = false),
        ("slow", |set| set.slow = false),
    ];

    fn name(planted: Planted) -> &'static str {
        planted.name()
    }

    fn run(setup: &Setup) -> Outcome {
        run(setup)
    }

    fn lacks(asked: &SimRun, all: &Summary) -> Vec<String> {
        // A site is named with the kind of file where that is told.
        let at_site = |name: &str| all.crash_sites.keys().any(|site| site.starts_with(name));
        let sites = SITES_WANTED.iter().filter(|name| !at_site(name)).map(|name| format!("never happened: {name}"));
        // With the number of cores given, their list does not change.
        let moves = if asked.cores.is_none() { scenario::MOVES } else { &[] };
        let mut lacks = all.missing(FAULTS_WANTED.iter().chain(moves));
        lacks.extend(sites);
        lacks
    }
}
