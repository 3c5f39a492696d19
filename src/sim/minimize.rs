//! Makes a failing run smaller: fewer kinds of faults, fewer commands, as long as it still fails.

use super::scenario::{FaultSet, Outcome, Setup, run};

/// Runs that the search may take.
const RUNS_MAX: u32 = 24;

/// The smallest failing setup found, and what it did.
pub fn minimize(setup: &Setup) -> (Setup, Outcome) {
    let mut best = setup.clone();
    let mut outcome = run(&best);
    let mut left = RUNS_MAX;
    let mut attempt = |candidate: Setup, best: &mut Setup, outcome: &mut Outcome| {
        if left == 0 {
            return false;
        }
        left -= 1;
        let tried = run(&candidate);
        let fails = !tried.failures.is_empty();
        if fails {
            (*best, *outcome) = (candidate, tried);
        }
        fails
    };
    let switches: [fn(&mut FaultSet); 6] = [
        |set| set.rot = false,
        |set| set.errors = false,
        |set| set.full = false,
        |set| set.network = false,
        |set| set.clock = false,
        |set| set.slow = false,
    ];
    for off in switches {
        let mut candidate = best.clone();
        off(&mut candidate.faults);
        if candidate.faults != best.faults {
            attempt(candidate, &mut best, &mut outcome);
        }
    }
    let mut step = best.commands / 2;
    while step >= 50 {
        let candidate = Setup { commands: best.commands - step, ..best.clone() };
        if !attempt(candidate, &mut best, &mut outcome) {
            step /= 2;
        }
        step = step.min(best.commands / 2);
    }
    (best, outcome)
}
