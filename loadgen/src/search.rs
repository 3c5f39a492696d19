//! The search for the highest rate at which the p99 of every kind of request holds a bound: rates and verdicts only, no clock, no socket.
//!
//! From a first rate up by doubling until one fails (or down by quarters until one holds), then between the two by bisection until they
//! are 5 % apart. No single run decides: a rate fails when it failed twice. The rate that is left is confirmed: of three more runs two
//! must hold, or it is lowered by 5 % and confirmed anew.

use crate::books::NO_ANSWER;
use crate::report::Report;

/// Bisection ends when the failing rate is this many times the holding one.
const APART: f64 = 1.05;
/// Runs that a rate may fail before it has failed.
const FAILS_MAX: u32 = 2;
/// Runs that confirm a rate, and how many of them must hold.
const CONFIRM_RUNS: u32 = 3;
const CONFIRM_HOLDS: u32 = 2;
/// A server that does not hold the bound at this rate, a second, holds it nowhere.
const RATE_MIN: f64 = 10.0;
const RATE_MAX: f64 = 1e9;
const STEPS_MAX: usize = 100;
/// Less than this share of the wanted rate is not that rate.
const REACHED_MIN: f64 = 0.98;

/// How a run at a rate ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Holds,
    /// Answers took longer than the bound.
    Slow,
    /// The rate was not reached.
    Short,
    /// There were errors, or wrong or lost answers.
    Errors,
    /// Slow or short, and by the generator's own fault.
    GeneratorLagged,
}

impl Verdict {
    pub fn words(self) -> &'static str {
        match self {
            Verdict::Holds => "holds",
            Verdict::Slow => "p99 over the bound",
            Verdict::Short => "rate not reached",
            Verdict::Errors => "errors",
            Verdict::GeneratorLagged => "the generator lagged",
        }
    }
}

/// One run of the search.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Step {
    pub rate_wanted: f64,
    pub rate_reached: f64,
    /// The highest p99 of a kind.
    pub p99_us: f64,
    pub lateness_p99_us: f64,
    pub verdict: Verdict,
}

impl Step {
    /// What a run was worth against the bound.
    pub fn of(report: &Report, bound_us: f64) -> Step {
        let (rate_wanted, rate_reached) = (report.rate_wanted.unwrap_or(0.0), report.rate_reached());
        let p99_us = report.p99_us();
        // Arrivals are random: three deviations of their number.
        let luck = 3.0 * (rate_wanted / report.seconds.max(1e-3)).sqrt();
        let is_slow = p99_us > bound_us;
        let is_short = rate_reached < rate_wanted * REACHED_MIN - luck;
        // What is not answered soon after the end is slow.
        let mut errors = report.tally.errors.keys().filter(|kind| *kind != NO_ANSWER);
        let is_late = is_slow || is_short || report.tally.errors.contains_key(NO_ANSWER);
        let verdict = if errors.next().is_some() || report.tally.wrong + report.tally.lost > 0 {
            Verdict::Errors
        } else if is_late && report.generator_limit().is_some() {
            Verdict::GeneratorLagged
        } else if is_short && !is_slow {
            Verdict::Short
        } else if is_late {
            Verdict::Slow
        } else {
            Verdict::Holds
        };
        let lateness_p99_us = report.tally.lateness.quantile_us(0.99);
        Step { rate_wanted, rate_reached, p99_us, lateness_p99_us, verdict }
    }
}

/// Where the search stands.
#[derive(Clone, Debug)]
pub struct Search {
    pub bound_us: f64,
    pub steps: Vec<Step>,
    /// The highest rate that held, and the lowest that failed.
    holds: Option<f64>,
    fails: Option<f64>,
    next: f64,
    /// Runs of `next` that failed.
    failed: u32,
    /// Confirming runs of `next` that held; None before.
    confirming: Option<u32>,
    is_over: bool,
}

impl Search {
    /// From `rate` on, a second.
    pub fn new(bound_us: f64, rate: f64) -> Search {
        let next = rate.clamp(RATE_MIN, RATE_MAX);
        Search { bound_us, steps: Vec::new(), holds: None, fails: None, next, failed: 0, confirming: None, is_over: false }
    }

    /// The rate to run next; None: the search is over.
    pub fn next_rate(&self) -> Option<f64> {
        (!self.is_over && self.steps.len() < STEPS_MAX).then_some(self.next)
    }

    /// The highest rate that held and was confirmed.
    pub fn found(&self) -> Option<f64> {
        self.holds.filter(|_| self.is_over)
    }

    /// What kept the next higher rate from holding.
    pub fn limit(&self) -> Option<Verdict> {
        let above = self.fails?;
        self.steps.iter().rev().find(|step| step.rate_wanted == above && step.verdict != Verdict::Holds).map(|step| step.verdict)
    }

    /// For people, while it goes on.
    pub fn stage(&self) -> &'static str {
        match (self.confirming, self.holds, self.fails) {
            (Some(_), ..) => "confirm",
            (None, Some(_), Some(_)) => "bisect",
            _ => "bracket",
        }
    }

    /// Takes what the run of `next_rate` was worth.
    pub fn judge(&mut self, step: Step) {
        let held = step.verdict == Verdict::Holds;
        self.steps.push(step);
        self.failed += u32::from(!held);
        match self.confirming {
            Some(holds) => self.confirm(holds + u32::from(held)),
            None if held => self.hold(),
            None if self.failed >= FAILS_MAX => self.fail(),
            None => {}
        }
    }

    fn go_to(&mut self, rate: f64) {
        (self.next, self.failed) = (rate, 0);
    }

    fn hold(&mut self) {
        self.holds = Some(self.next);
        match self.fails {
            None if self.next >= RATE_MAX => self.is_over = true,
            None => self.go_to((self.next * 2.0).min(RATE_MAX)),
            Some(fails) => self.close_in(self.next, fails),
        }
    }

    fn fail(&mut self) {
        self.fails = Some(self.next);
        match self.holds {
            Some(holds) => self.close_in(holds, self.next),
            None if self.next <= RATE_MIN => self.is_over = true,
            None => self.go_to((self.next / 4.0).max(RATE_MIN)),
        }
    }

    fn close_in(&mut self, holds: f64, fails: f64) {
        if fails > holds * APART {
            return self.go_to((holds * fails).sqrt());
        }
        self.confirming = Some(0);
        self.go_to(holds);
    }

    fn confirm(&mut self, holds: u32) {
        self.confirming = Some(holds);
        if holds >= CONFIRM_HOLDS {
            (self.holds, self.is_over) = (Some(self.next), true);
        } else if self.failed > CONFIRM_RUNS - CONFIRM_HOLDS {
            (self.fails, self.holds, self.confirming) = (Some(self.next), None, Some(0));
            if self.next <= RATE_MIN {
                self.is_over = true;
            }
            self.go_to((self.next / APART).max(RATE_MIN));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ringkv::base::prng::Prng;

    /// Searches a server whose p99 rises as 1 / (1 - load), with noise; the rate found, and the steps it took.
    fn search(capacity: f64, first: f64, noise: f64, seed: u64) -> (Option<f64>, Search) {
        let (mut search, mut random) = (Search::new(1000.0, first), Prng::new(seed));
        while let Some(rate) = search.next_rate() {
            let wobble = 1.0 + noise * (random.unit() - 0.5);
            let load = rate / capacity;
            let p99_us = if load >= 1.0 { 1e9 } else { 100.0 / (1.0 - load) * wobble };
            let verdict = if p99_us > 1000.0 { Verdict::Slow } else { Verdict::Holds };
            search.judge(Step { rate_wanted: rate, rate_reached: rate, p99_us, lateness_p99_us: 1.0, verdict });
        }
        (search.found(), search)
    }

    #[test]
    fn the_highest_rate_is_found_from_below_and_from_above() {
        // The bound is met at 90 % of the capacity.
        for (capacity, first) in [(1e6, 10e3), (1e6, 5e6), (50.0, 10e3), (777_777.0, 700_000.0), (1e6, 899_999.0)] {
            let (found, search) = search(capacity, first, 0.0, 1);
            let found = found.unwrap();
            assert!(found <= capacity * 0.9 && found >= capacity * 0.9 / 1.05, "capacity {capacity} from {first}: {found}");
            assert!(search.steps.len() < 40, "{} steps", search.steps.len());
            assert_eq!(search.limit(), Some(Verdict::Slow));
            let held = |step: &&Step| step.rate_wanted == found && step.verdict == Verdict::Holds;
            assert!(search.steps.iter().filter(held).count() >= 3, "found once and confirmed twice");
        }
    }

    #[test]
    fn noise_moves_it_little_and_it_always_ends() {
        for seed in 0..200 {
            let (found, search) = search(1e6, 10e3, 0.5, seed);
            assert!((800e3..950e3).contains(&found.unwrap()), "seed {seed}: {found:?}");
            assert!(search.steps.len() < STEPS_MAX);
        }
    }

    #[test]
    fn a_server_that_never_holds_it_or_always_does_ends_too() {
        let (found, slow) = search(0.1, 10e3, 0.0, 1);
        assert!(found.is_none() && slow.steps.len() < 20);
        let (found, _) = search(1e12, 10e3, 0.0, 1);
        assert_eq!(found, Some(RATE_MAX));
    }

    #[test]
    fn a_run_is_judged_by_its_latency_rate_and_errors() {
        let mut report = Report { rate_wanted: Some(1000.0), seconds: 10.0, ..Report::default() };
        report.tally.answered = 9990;
        (1..=100u64).for_each(|us| report.tally.ops[1].latencies.record(us * 1000));
        let verdict = |report: &Report, bound_us| Step::of(report, bound_us).verdict;
        assert_eq!((verdict(&report, 120.0), verdict(&report, 80.0)), (Verdict::Holds, Verdict::Slow));
        report.tally.error(NO_ANSWER);
        assert_eq!(verdict(&report, 120.0), Verdict::Slow);
        (0..100).for_each(|_| report.tally.lateness.record(2_000_000));
        assert_eq!(verdict(&report, 120.0), Verdict::GeneratorLagged);
        report.tally.error("OOM");
        assert_eq!(verdict(&report, 120.0), Verdict::Errors);
        report.tally = crate::report::Tally { answered: 9000, ..Default::default() };
        assert_eq!(verdict(&report, 120.0), Verdict::Short);
        report.tally.lost = 1;
        assert_eq!(verdict(&report, 120.0), Verdict::Errors);
    }

    #[test]
    fn a_rate_that_held_by_luck_is_lowered() {
        let mut search = Search::new(1000.0, 1000.0);
        // Doubling holds to 4000; then nothing above 3000 holds any more.
        while let Some(rate) = search.next_rate() {
            let holds = if search.steps.len() < 3 { rate <= 4000.0 } else { rate <= 3000.0 };
            let verdict = if holds { Verdict::Holds } else { Verdict::Short };
            search.judge(Step { rate_wanted: rate, rate_reached: rate, p99_us: 1.0, lateness_p99_us: 1.0, verdict });
        }
        let found = search.found().unwrap();
        assert!((2850.0..=3000.0).contains(&found), "{found}");
    }
}
