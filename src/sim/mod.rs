//! Whole nodes in one thread, from a seed, under a checker: production code of every room over `io::sim`.
//!
//! `scenario` is one run; `workload` its clients; `checker` knows what answers may be; `final_look` reads everything at the end; `rot`
//! flips bits. `cluster` is a run of several nodes, `fates` what befalls them, `air` carries their gossip, `programs` gives them versions;
//! `operator` orders moves, `agree` and `buried` look at its end. `seeds` runs many seeds of either and makes a failing one smaller.
//! `gossip` is membership alone, for clusters of any size. A seed is a bug report: the same seed gives the same bytes.

mod agree;
mod air;
mod buried;
pub mod checker;
pub mod cluster;
mod cluster_run;
mod estranged;
mod fates;
mod final_look;
pub mod gossip;
#[cfg(test)]
mod gossip_tests;
mod operator;
mod programs;
mod rot;
pub mod scenario;
mod scenario_run;
pub mod seeds;
pub mod workload;

use crate::config::SimRun;

/// Runs what the command line asks for; the exit code.
pub fn run(asked: &SimRun, say: &mut dyn FnMut(&str)) -> i32 {
    if asked.cluster { seeds::run::<cluster::FaultSet>(asked, say) } else { seeds::run::<scenario::FaultSet>(asked, say) }
}
