//! Many seeds of one kind of run: what `ringkv sim` does with one node (`scenario`) and with clusters (`cluster`) alike. A failing seed is
//! made smaller: fewer kinds of faults, fewer commands, as long as it still fails.

use crate::config::{SimRun, exit};
use crate::io::host;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Mutex, mpsc};

/// Runs that the search for a smaller one may take.
const SMALLER_RUNS_MAX: u32 = 24;
/// It does not look below so many commands.
const STEP_MIN: u64 = 50;
/// Commands that every seed has at least.
const COMMANDS_MIN: u64 = 2_000;

/// What came of a run.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    pub seed: u64,
    pub commands: u64,
    pub acknowledged: u64,
    pub crashes: u64,
    /// What else a kind of run counts.
    pub counts: BTreeMap<&'static str, u64>,
    /// Fault kinds that happened, and how often.
    pub faults: BTreeMap<String, u64>,
    pub crash_sites: BTreeMap<String, u64>,
    /// Errors that clients were answered with.
    pub errors: BTreeMap<String, u64>,
    pub fingerprint: u64,
    pub failures: Vec<String>,
    /// What was done, in order.
    pub timeline: Vec<String>,
}

/// What a group of faults is called, and what switches it off.
pub type Switch<K> = (&'static str, fn(&mut K));

/// A kind of run, by the groups of faults that it has.
pub trait Kind: Copy + PartialEq + fmt::Debug + Send + 'static {
    type Planted: Copy + fmt::Debug + Send + 'static;

    /// What asks for this kind behind `ringkv sim`, and what such seeds are called.
    const FLAGS: &'static str;
    const WHAT: &'static str;
    /// Seeds when nothing is said, and client commands of each.
    const SEEDS: u64;
    const COMMANDS: u64;
    /// Crashes that every seed has at least.
    const CRASHES_MIN: u64;
    /// Counted in every run (`Outcome::counts`), and how often at least in each seed.
    const COUNTS: &'static [(&'static str, u64)];
    const PLANTED: &'static [Self::Planted];
    /// All faults, and what each group of them is called and switched off by.
    const FAULTS: Self;
    const SWITCHES: &'static [Switch<Self>];

    fn name(planted: Self::Planted) -> &'static str;
    fn run(setup: &Setup<Self>) -> Outcome;
    /// What so many seeds have not shown and should have.
    fn lacks(asked: &SimRun, all: &Summary) -> Vec<String>;
}

/// What is asked of a run: one seed of a kind.
#[derive(Clone, Debug)]
pub struct Setup<K: Kind> {
    pub seed: u64,
    /// Shards of each node at the start; drawn by the seed if None.
    pub cores: Option<u16>,
    pub planted: Option<K::Planted>,
    /// Client commands.
    pub commands: u64,
    /// Which groups of faults are on: the minimizer switches them off one by one.
    pub faults: K,
}

impl<K: Kind> Setup<K> {
    /// Everything of a kind.
    pub fn of(seed: u64, planted: Option<K::Planted>) -> Setup<K> {
        Setup { seed, cores: None, planted, commands: K::COMMANDS, faults: K::FAULTS }
    }

    /// Err: there is no planted bug or no group of faults of a name, and which there are.
    fn asked(seed: u64, asked: &SimRun) -> Result<Setup<K>, String> {
        let strange =
            |what: &str, name: &str, known: Vec<&str>| format!("no {what}{} is called {name}; there are {}", K::WHAT, known.join(", "));
        let planted = asked.planted.as_ref().map(|name| {
            let found = K::PLANTED.iter().copied().find(|planted| K::name(*planted) == name);
            found.ok_or_else(|| strange("planted bug", name, K::PLANTED.iter().map(|planted| K::name(*planted)).collect()))
        });
        let commands = asked.commands.unwrap_or(K::COMMANDS);
        let mut setup = Setup { cores: asked.cores, commands, ..Setup::of(seed, planted.transpose()?) };
        for name in &asked.without {
            let found = K::SWITCHES.iter().find(|(known, _)| known == name);
            let (_, off) = found.ok_or_else(|| strange("group of faults", name, K::SWITCHES.iter().map(|(known, _)| *known).collect()))?;
            off(&mut setup.faults);
        }
        Ok(setup)
    }

    /// What runs it again, for a command line.
    fn words(&self) -> String {
        let mut words = format!("ringkv sim{} --seed {}", K::FLAGS, self.seed);
        if self.commands != K::COMMANDS {
            words.push_str(&format!(" --commands {}", self.commands));
        }
        let is_off = |off: &fn(&mut K)| {
            let mut faults = self.faults;
            off(&mut faults);
            faults == self.faults
        };
        let without: Vec<&str> = K::SWITCHES.iter().filter(|(_, off)| is_off(off)).map(|(name, _)| *name).collect();
        if !without.is_empty() {
            words.push_str(&format!(" --without {}", without.join(",")));
        }
        words
    }

    /// With one more group of faults off, for each that is on.
    fn calmer(&self) -> Vec<Setup<K>> {
        let off = |(_, switch): &Switch<K>| {
            let mut faults = self.faults;
            switch(&mut faults);
            (faults != self.faults).then(|| Setup { faults, ..self.clone() })
        };
        K::SWITCHES.iter().filter_map(off).collect()
    }
}

/// What happened over many seeds.
#[derive(Default)]
pub struct Summary {
    pub seeds: u64,
    pub commands: u64,
    pub acknowledged: u64,
    pub crashes: u64,
    /// Of each of `Kind::COUNTS`: how often, and in how many seeds.
    pub counts: BTreeMap<&'static str, (u64, u64)>,
    pub faults: BTreeMap<String, u64>,
    pub crash_sites: BTreeMap<String, u64>,
    pub errors: BTreeMap<String, u64>,
    thin: Vec<String>,
}

/// Runs what the command line asks for; the exit code.
pub fn run<K: Kind>(asked: &SimRun, say: &mut dyn FnMut(&str)) -> i32 {
    let (first, count) = match asked.seed {
        Some(seed) => (seed, 1),
        None => (asked.first.unwrap_or(1), asked.seeds.unwrap_or(K::SEEDS)),
    };
    let setup = match Setup::<K>::asked(first, asked) {
        Ok(setup) => setup,
        Err(why) => {
            say(&why);
            return exit::CONFIG;
        }
    };
    let started = host::mono();
    let jobs = asked.jobs.map_or_else(|| host::allowed_cpus().len(), usize::from);
    let mut summary = Summary::default();
    let setups = (0..count).map(move |number| Setup { seed: first.wrapping_add(number), ..setup.clone() });
    let fails = in_order(setups, jobs, |setup, outcome| {
        if asked.seed.is_some() {
            tell::<K>(&outcome, say);
        }
        summary.add::<K>(&outcome);
        (!outcome.failures.is_empty()).then_some((setup, outcome))
    });
    if let Some((setup, outcome)) = fails {
        return failed(&setup, &outcome, summary.seeds, say);
    }
    summary.tell::<K>(host::mono().since(started).as_secs_f64(), say);
    match &asked.planted {
        Some(planted) => {
            say(&format!("the planted bug {planted} was not found in {count} seeds"));
            exit::FAILED
        }
        // Of less than the whole nobody expects to see everything.
        None if asked.seed.is_some() || asked.commands.is_some() || !asked.without.is_empty() => exit::CLEAN,
        None if !summary.is_complete::<K>(asked, say) => exit::FAILED,
        None => exit::CLEAN,
    }
}

/// The first of these runs that fails; so many run at once.
pub fn first_failing<K: Kind>(setups: impl Iterator<Item = Setup<K>> + Send, jobs: usize) -> Option<Setup<K>> {
    in_order(setups, jobs, |setup, outcome| (!outcome.failures.is_empty()).then_some(setup))
}

/// Runs setups on so many threads and hands what came of them on, in their order, until that says what to end with.
fn in_order<K: Kind, E>(
    setups: impl Iterator<Item = Setup<K>> + Send,
    jobs: usize,
    mut take: impl FnMut(Setup<K>, Outcome) -> Option<E>,
) -> Option<E> {
    let setups = Mutex::new(setups.enumerate());
    // What is made ahead of the one that is waited for is bounded by the channel, since seeds take about as long as each other.
    let (ended, outcomes) = mpsc::sync_channel(jobs);
    host::scope(|scope| {
        for _ in 0..jobs.max(1) {
            let (setups, ended) = (&setups, ended.clone());
            scope.spawn(move || {
                let next = || setups.lock().expect("no thread panics while it takes a seed").next();
                while let Some((number, setup)) = next() {
                    let outcome = K::run(&setup);
                    if ended.send((number, setup, outcome)).is_err() {
                        break;
                    }
                }
            });
        }
        drop(ended);
        let (mut early, mut wanted) = (BTreeMap::new(), 0);
        while let Ok((number, setup, outcome)) = outcomes.recv() {
            early.insert(number, (setup, outcome));
            while let Some((setup, outcome)) = early.remove(&wanted) {
                wanted += 1;
                if let Some(end) = take(setup, outcome) {
                    // Whoever sends now finds nobody, and ends.
                    drop(outcomes);
                    return Some(end);
                }
            }
        }
        None
    })
}

fn tell<K: Kind>(outcome: &Outcome, say: &mut dyn FnMut(&str)) {
    outcome.timeline.iter().for_each(|line| say(line));
    let Outcome { seed, commands, acknowledged, crashes, fingerprint, .. } = outcome;
    let counts: String = K::COUNTS.iter().map(|(name, _)| format!(" {name} {}", of(outcome, name))).collect();
    say(&format!("seed {seed} commands {commands} acknowledged {acknowledged} crashes {crashes}{counts} fingerprint {fingerprint:016x}"));
}

fn of(outcome: &Outcome, name: &str) -> u64 {
    outcome.counts.get(name).copied().unwrap_or_default()
}

fn failed<K: Kind>(setup: &Setup<K>, outcome: &Outcome, after: u64, say: &mut dyn FnMut(&str)) -> i32 {
    let (seed, why) = (setup.seed, &outcome.failures[0]);
    if let Some(planted) = setup.planted.map(K::name) {
        say(&format!("found {planted} after {after} seeds (seed {seed}): {why}"));
        return exit::CLEAN;
    }
    say(&format!("seed {seed} failed: {why}"));
    let (small, outcome) = smallest(setup, outcome);
    say(&format!("as small as it still fails: {}", small.words()));
    outcome.timeline.iter().for_each(|line| say(line));
    outcome.failures.iter().for_each(|line| say(&format!("  {line}")));
    say(&format!("again: {}", setup.words()));
    exit::FAILED
}

/// The smallest failing run found, and what it did.
fn smallest<K: Kind>(setup: &Setup<K>, outcome: &Outcome) -> (Setup<K>, Outcome) {
    let (mut best, mut outcome, mut left) = (setup.clone(), outcome.clone(), SMALLER_RUNS_MAX);
    let mut fails = |candidate: &Setup<K>| {
        let tried = if left > 0 { K::run(candidate) } else { Outcome::default() };
        left = left.saturating_sub(1);
        Some(tried).filter(|tried| !tried.failures.is_empty())
    };
    'calmer: loop {
        for candidate in best.calmer() {
            if let Some(failed) = fails(&candidate) {
                (best, outcome) = (candidate, failed);
                continue 'calmer;
            }
        }
        break;
    }
    let mut step = best.commands / 2;
    while step >= STEP_MIN {
        let candidate = Setup { commands: best.commands - step, ..best.clone() };
        match fails(&candidate) {
            Some(failed) => (best, outcome) = (candidate, failed),
            None => step /= 2,
        }
        step = step.min(best.commands / 2);
    }
    (best, outcome)
}

impl Summary {
    fn add<K: Kind>(&mut self, outcome: &Outcome) {
        self.seeds += 1;
        self.commands += outcome.commands;
        self.acknowledged += outcome.acknowledged;
        self.crashes += outcome.crashes;
        let sums =
            [(&mut self.faults, &outcome.faults), (&mut self.crash_sites, &outcome.crash_sites), (&mut self.errors, &outcome.errors)];
        for (sum, part) in sums {
            part.iter().for_each(|(name, count)| *sum.entry(name.clone()).or_default() += count);
        }
        let mut least = vec![("commands", outcome.commands, COMMANDS_MIN), ("crashes", outcome.crashes, K::CRASHES_MIN)];
        for (name, wanted) in K::COUNTS {
            let had = of(outcome, name);
            let (sum, seeds) = self.counts.entry(name).or_default();
            (*sum, *seeds) = (*sum + had, *seeds + u64::from(had > 0));
            least.push((name, had, *wanted));
        }
        for (what, had, wanted) in least.into_iter().filter(|(_, had, wanted)| had < wanted) {
            self.thin.push(format!("seed {}: {had} {what}, fewer than {wanted}", outcome.seed));
        }
    }

    fn tell<K: Kind>(&self, seconds: f64, say: &mut dyn FnMut(&str)) {
        let Summary { seeds, commands, acknowledged, crashes, .. } = self;
        let speed = *commands as f64 / seconds;
        let counts: String = self.counts.iter().map(|(name, (sum, _))| format!(", {sum} {name}")).collect();
        say(&format!(
            "{seeds} seeds{}, {commands} commands ({speed:.0} a second), {acknowledged} writes acknowledged, {crashes} crashes{counts}",
            K::WHAT
        ));
        for (title, counts) in [("faults", &self.faults), ("crash sites", &self.crash_sites), ("errors answered", &self.errors)] {
            let words: Vec<_> = counts.iter().map(|(name, count)| format!("{name} {count}")).collect();
            if !words.is_empty() {
                say(&format!("{title}: {}", words.join(", ")));
            }
        }
    }

    /// A kind of fault that never happened was not tested.
    fn is_complete<K: Kind>(&self, asked: &SimRun, say: &mut dyn FnMut(&str)) -> bool {
        let lacks = K::lacks(asked, self);
        lacks.iter().chain(&self.thin).for_each(|line| say(line));
        lacks.is_empty() && self.thin.is_empty()
    }

    /// Those of the wanted kinds of faults that never happened.
    pub fn missing<'w>(&self, wanted: impl IntoIterator<Item = &'w &'static str>) -> Vec<String> {
        let happened = |name: &str| self.faults.iter().any(|(what, count)| *count > 0 && what.trim_end() == name);
        wanted.into_iter().filter(|name| !happened(name)).map(|name| format!("never happened: {name}")).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fails with so many commands and with the first group of faults on, up to some seed.
    type Fake = [bool; 3];

    impl Kind for Fake {
        type Planted = u8;

        const FLAGS: &'static str = " --fake";
        const WHAT: &'static str = " of fakes";
        const SEEDS: u64 = 3;
        const COMMANDS: u64 = 2_000;
        const CRASHES_MIN: u64 = 0;
        const COUNTS: &'static [(&'static str, u64)] = &[("turns", 2)];
        const PLANTED: &'static [u8] = &[0, 1];
        const FAULTS: Fake = [true; 3];
        const SWITCHES: &'static [Switch<Fake>] =
            &[("fire", |set| set[0] = false), ("water", |set| set[1] = false), ("wind", |set| set[2] = false)];

        fn name(planted: u8) -> &'static str {
            ["one", "two"][usize::from(planted)]
        }
        fn run(setup: &Setup<Fake>) -> Outcome {
            let &Setup { seed, commands, faults, .. } = setup;
            let fails = seed < 2_000 && commands >= 300 && faults[0];
            let failures = if fails { vec![format!("{commands} commands")] } else { Vec::new() };
            let counts = BTreeMap::from([("turns", seed % 10)]);
            Outcome { seed, commands, counts, failures, ..Outcome::default() }
        }
        fn lacks(_asked: &SimRun, all: &Summary) -> Vec<String> {
            all.missing(&["flood"])
        }
    }

    fn said(asked: &SimRun) -> (i32, Vec<String>) {
        let mut lines = Vec::new();
        let code = run::<Fake>(asked, &mut |line| lines.push(line.to_owned()));
        (code, lines)
    }

    #[test]
    fn a_failing_seed_is_made_as_small_as_it_still_fails() {
        let (code, lines) = said(&SimRun::default());
        assert_eq!(code, exit::FAILED);
        let smallest =
            lines.iter().find_map(|line| line.strip_prefix("as small as it still fails: ringkv sim --fake --seed 1 --commands "));
        let (commands, without) = smallest.and_then(|words| words.split_once(' ')).unwrap();
        let commands: u64 = commands.parse().unwrap();
        assert!((300..300 + STEP_MIN).contains(&commands) && without == "--without water,wind", "{commands} {without}");
        assert_eq!(lines.last().unwrap(), "again: ringkv sim --fake --seed 1");
        // What it says runs that.
        let without = vec!["water".to_owned(), "wind".to_owned()];
        let (code, again) = said(&SimRun { seed: Some(1), commands: Some(commands), without: without.clone(), ..SimRun::default() });
        assert_eq!((code, again.last().unwrap().ends_with("--without water,wind")), (exit::FAILED, true), "{again:?}");
        let calm = SimRun { seed: Some(1), without: vec!["fire".to_owned()], ..SimRun::default() };
        assert_eq!(said(&calm).0, exit::CLEAN);
        let (code, lines) = said(&SimRun { without: vec!["ice".to_owned()], ..SimRun::default() });
        assert_eq!(
            (code, &lines[..]),
            (exit::CONFIG, &["no group of faults of fakes is called ice; there are fire, water, wind".to_owned()][..])
        );
    }

    #[test]
    fn seeds_are_told_in_their_order_however_many_run_at_once() {
        let fakes = || (0..100).map(|seed| Setup::<Fake>::of(seed, None));
        for jobs in [1, 2, 7] {
            let mut taken = Vec::new();
            let all = in_order(fakes(), jobs, |fake, outcome| {
                taken.push((fake.seed, outcome.seed));
                None::<()>
            });
            assert_eq!((all, &taken[..]), (None, &(0..100).map(|seed| (seed, seed)).collect::<Vec<_>>()[..]), "{jobs} at once");
            assert_eq!(in_order(fakes(), jobs, |fake, _| (fake.seed == 40).then_some(fake.seed)), Some(40));
        }
    }

    #[test]
    fn what_was_not_seen_and_what_was_thin_fails_many_seeds_and_a_strange_bug_is_told() {
        let (code, lines) = said(&SimRun { first: Some(2_011), ..SimRun::default() });
        assert_eq!(code, exit::FAILED);
        assert!(lines.contains(&"never happened: flood".to_owned()), "{lines:?}");
        assert!(lines.contains(&"seed 2011: 1 turns, fewer than 2".to_owned()), "{lines:?}");
        let (code, lines) = said(&SimRun { planted: Some("three".to_owned()), ..SimRun::default() });
        assert_eq!((code, &lines[..]), (exit::CONFIG, &["no planted bug of fakes is called three; there are one, two".to_owned()][..]));
    }
}
