//! Many seeds of `scenario`: what `ringkv sim` does, and what they have to show.

use super::COMMANDS;
use super::scenario::{self, FaultSet, Setup, run};
use super::seeds::{self, Outcome, Summary};
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

impl seeds::Setup for Setup {
    const FLAGS: &'static str = "";
    const WHAT: &'static str = "";
    const SEEDS: u64 = 200;
    const CRASHES_MIN: u64 = 3;
    const COUNTS: &'static [(&'static str, u64)] = &[("flushes", 3), ("compactions", 1)];

    fn new(seed: u64, asked: &SimRun) -> Result<Setup, Vec<&'static str>> {
        let planted = seeds::planted(&Planted::ALL, Planted::name, asked)?;
        Ok(Setup { seed, cores: asked.cores, planted, commands: COMMANDS, faults: FaultSet::ALL })
    }

    fn with_seed(&self, seed: u64) -> Setup {
        Setup { seed, ..self.clone() }
    }

    fn seed(&self) -> u64 {
        self.seed
    }

    fn run(&self) -> Outcome {
        run(self)
    }

    fn planted(&self) -> Option<&'static str> {
        self.planted.map(Planted::name)
    }

    fn commands(&mut self) -> &mut u64 {
        &mut self.commands
    }

    fn faults(&self) -> String {
        format!("{:?}", self.faults)
    }

    fn calmer(&self) -> Vec<Setup> {
        let switches: [fn(&mut FaultSet); 6] = [
            |set| set.rot = false,
            |set| set.errors = false,
            |set| set.full = false,
            |set| set.network = false,
            |set| set.clock = false,
            |set| set.slow = false,
        ];
        seeds::without(self.faults, &switches).map(|faults| Setup { faults, ..self.clone() }).collect()
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
