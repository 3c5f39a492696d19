//! A run from its command line to its exit code: learn the server's cores, then phases (preload or fill, load, verify), each with fresh
//! connections and its own threads.

use crate::books::{Books, Window};
use crate::connection::Connection;
use crate::draw::KeyDraw;
use crate::journal;
use crate::keys::KeyNames;
use crate::ledger::{Ledger, wall_ms};
use crate::options::Options;
use crate::permute::Permutation;
use crate::plan::Arrivals;
use crate::poll::pin_to_core;
use crate::progress::{Intervals, Progress, tell};
use crate::protocol::handshake::connect;
use crate::protocol::{Common, Topology};
use crate::report::{Report, Tally};
use crate::search::{Search, Step};
use crate::source::{Source, Work};
use crate::value::Values;
use crate::worker::{Outcome, Shared, Worker};
use ringkv::base::prng::Prng;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

/// Requests in flight a connection while all keys are written or read once, at least.
const EXHAUSTIVE_INFLIGHT: usize = 16;

/// Where a search begins without --rate, a second.
const SEARCH_RATE: f64 = 10_000.0;
/// Between two runs of a search, for the server to be done with the one before.
const SEARCH_PAUSE: Duration = Duration::from_millis(300);
/// So long after its end a run waits for answers; a run of a search, which may be far over what the server can do, waits less.
const GRACE: Duration = Duration::from_secs(5);
const SEARCH_GRACE: Duration = Duration::from_millis(500);

/// Why a run could not take place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// Exit code 2.
    Usage(String),
    /// Exit code 4.
    Unreachable(String),
}

/// Exit code of a finished run.
pub fn exit_code(report: &Report) -> u8 {
    if report.tally.wrong + report.tally.lost > 0 {
        1
    } else if report.died.is_some() {
        3
    } else {
        0
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Phase {
    Fill,
    /// At a rate, or as a closed loop.
    Load(Option<f64>),
    Verify,
}

impl Phase {
    fn name(self) -> &'static str {
        match self {
            Phase::Fill => "fill",
            Phase::Load(_) => "load",
            Phase::Verify => "check",
        }
    }
}

/// What stays the same over the phases.
struct Setup {
    options: Options,
    credential: Vec<u8>,
    values: Values,
    ledger: Option<Ledger>,
    shape: journal::Shape,
    run: u32,
    /// Puts of `--dist latest`.
    head: Arc<AtomicU64>,
}

/// Runs what the command line asks for. Tables of the phases before the last go to `show` as they are done.
///
/// # Errors
/// The run could not take place.
pub fn run(options: Options, show: &mut dyn FnMut(&Report)) -> Result<Report, Failure> {
    let setup = prepare(options)?;
    let result = phases(&setup, show);
    // Whatever became of the run: what was acknowledged until then must not be forgotten.
    if let (Some(path), Some(ledger)) = (&setup.options.journal, &setup.ledger) {
        journal::save(path, ledger, &setup.shape).map_err(Failure::Usage)?;
    }
    result
}

fn phases(setup: &Setup, show: &mut dyn FnMut(&Report)) -> Result<Report, Failure> {
    let options = &setup.options;
    if options.verify_journal.is_some() {
        return phase(setup, Phase::Verify);
    }
    let mut report = if options.fill {
        phase(setup, Phase::Fill)?
    } else {
        if options.preload {
            let preload = phase(setup, Phase::Fill)?;
            if preload.died.is_some() {
                return Ok(preload);
            }
            show(&preload);
        }
        match options.find_p99_us {
            Some(bound_us) => search(setup, bound_us)?,
            None => phase(setup, Phase::Load(options.rate))?,
        }
    };
    if options.check && (options.verify || options.reconnects()) && report.died.is_none() {
        let verified = phase(setup, Phase::Verify)?;
        show(&verified);
        add_findings(&mut report.tally, &verified.tally);
        report.died = verified.died;
    }
    Ok(report)
}

/// Runs the search; the report is of its last run, which is the one that confirmed the rate found.
fn search(setup: &Setup, bound_us: f64) -> Result<Report, Failure> {
    let mut search = Search::new(bound_us, setup.options.rate.unwrap_or(SEARCH_RATE));
    let (mut last, mut tally) = (Report::default(), Tally::default());
    while let Some(rate) = search.next_rate() {
        let stage = search.stage();
        let report = phase(setup, Phase::Load(Some(rate)))?;
        let step = Step::of(&report, bound_us);
        if !setup.options.quiet {
            let (p99_us, words) = (step.p99_us, step.verdict.words());
            tell(&format!("{stage:<7} {rate:>10.0}/s  reached {:>10.0}/s  p99 {p99_us:>9.1} µs  {words}", step.rate_reached));
        }
        add_findings(&mut tally, &report.tally);
        last = report;
        if last.died.is_some() {
            break;
        }
        search.judge(step);
        std::thread::sleep(SEARCH_PAUSE);
    }
    // No finding of an earlier run is forgotten.
    (last.tally.checked, last.tally.wrong, last.tally.lost) = (tally.checked, tally.wrong, tally.lost);
    last.tally.findings = tally.findings;
    last.search = Some(search);
    Ok(last)
}

/// What reading everything back found belongs to the run, its latencies do not.
fn add_findings(tally: &mut Tally, verified: &Tally) {
    tally.checked += verified.checked;
    tally.wrong += verified.wrong;
    tally.lost += verified.lost;
    verified.findings.iter().for_each(|(kind, count)| *tally.findings.entry(kind).or_default() += count);
}

fn prepare(mut options: Options) -> Result<Setup, Failure> {
    options.validate().map_err(Failure::Usage)?;
    let credential = match &options.secret_file {
        None => Vec::new(),
        Some(path) => {
            let mut secret = std::fs::read(path).map_err(|error| Failure::Usage(format!("--secret-file {}: {error}", path.display())))?;
            if secret.last() == Some(&b'\n') {
                secret.pop();
            }
            secret
        }
    };
    let mut shape = journal::Shape {
        keys: options.keys,
        key_sizes: options.key_size.clone(),
        value_sizes: options.value.clone(),
        namespace: options.namespace,
        ttl_ms: options.ttl.unwrap_or(0) as u32,
    };
    let path = options.verify_journal.as_ref().or(options.journal.as_ref());
    let loaded = path.map_or(Ok(None), |path| journal::load(path)).map_err(Failure::Usage)?;
    let mut run = Prng::new(wall_ms() ^ u64::from(std::process::id()) << 32).next_u64() as u32;
    let mut ledger = None;
    match loaded {
        Some((old, old_shape)) => {
            if options.verify_journal.is_some() {
                shape = old_shape;
                (options.keys, options.namespace) = (shape.keys, shape.namespace);
                (options.key_size, options.value) = (shape.key_sizes.clone(), shape.value_sizes.clone());
            } else if old_shape != shape {
                return Err(Failure::Usage(format!("--journal was made with other flags: {old_shape:?}, now {shape:?}")));
            }
            run = old.run();
            old.settle();
            ledger = Some(old);
        }
        None if options.verify_journal.is_some() => return Err(Failure::Usage("--verify-journal: there is no such file".into())),
        None if options.check => ledger = Some(Ledger::new(run, options.keys.min(options.check_keys), shape.ttl_ms)),
        None => {}
    }
    if let Some(ledger) = &mut ledger {
        ledger.slack_ms = options.target.protocol.deadline_slack_ms();
    }
    let values = Values::new(options.value.clone());
    let head = Arc::new(AtomicU64::new(options.keys));
    Ok(Setup { options, credential, values, ledger, shape, run, head })
}

/// Connects and runs one phase.
fn phase(setup: &Setup, phase: Phase) -> Result<Report, Failure> {
    let options = &setup.options;
    let unreachable = |error: std::io::Error| Failure::Unreachable(format!("{}: {error}", options.target));
    let first = connect(&options.target, 0, None, &setup.credential).map_err(unreachable)?;
    let (topology, server) = (first.topology, first.server);
    drop(first.stream);
    let threads = options.cores.as_ref().map_or(1, |cores| cores.0.len()).min(options.conns);
    let inflight_max = match phase {
        Phase::Load(_) => options.inflight_max(),
        Phase::Fill | Phase::Verify => options.pipeline.unwrap_or(EXHAUSTIVE_INFLIGHT).min(4096),
    };
    // Whole rounds over the server's cores go to one thread, so that each thread reaches each core where there are enough.
    let mut conns: Vec<Vec<Connection>> = (0..threads).map(|_| Vec::new()).collect();
    for number in 0..options.conns {
        let core = (number % usize::from(topology.cores)) as u16;
        let node = number / usize::from(topology.cores);
        let greeted = connect(&options.target, node, Some(core), &setup.credential).map_err(unreachable)?;
        let thread = if options.conns >= threads * usize::from(topology.cores) {
            number / usize::from(topology.cores) % threads
        } else {
            number % threads
        };
        conns[thread].push(Connection::new(number as u32, greeted, inflight_max));
    }
    let shared = Shared {
        start: Instant::now(),
        common: Common {
            protocol: options.target.protocol,
            deadline_ms: options.deadline as u32,
            namespace: options.namespace,
            levels: options.level.unwrap_or_default(),
            ttl_ms: options.ttl.unwrap_or(0),
        },
        run: setup.run,
        target: options.target.clone(),
        credential: setup.credential.clone(),
        is_routed: !options.any,
        reconnects: options.reconnects(),
        patience: options.patience(),
        spins: options.spin,
        grace: if options.find_p99_us.is_some() { SEARCH_GRACE } else { GRACE },
        stop: AtomicBool::new(false),
    };
    let report = run_threads(setup, phase, &shared, topology, conns)?;
    Ok(Report { server, ..report })
}

fn window_of(options: &Options, phase: Phase) -> Window {
    match phase {
        Phase::Load(_) => {
            let from_ns = (options.warmup * 1e9) as u64;
            Window { from_ns, until_ns: from_ns + (options.seconds * 1e9) as u64 }
        }
        Phase::Fill | Phase::Verify => Window { from_ns: 0, until_ns: u64::MAX },
    }
}

fn source_of(setup: &Setup, phase: Phase, thread: usize, conns: usize, threads: usize) -> Source {
    let options = &setup.options;
    let mut random = Prng::new(options.seed ^ (thread as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    let work = match phase {
        Phase::Fill => {
            Work::Fill { permutation: Permutation::new(options.keys, options.seed ^ 0xF111), next: thread as u64, step: threads as u64 }
        }
        Phase::Verify => {
            let end = setup.ledger.as_ref().map_or(options.keys, |ledger| ledger.tracked);
            Work::Verify { next: thread as u64, step: threads as u64, end }
        }
        Phase::Load(rate) => match rate {
            // A thread's share of the rate is its share of the connections.
            Some(rate) => Work::Open(Arrivals::new(rate * conns as f64 / options.conns as f64, random.fork())),
            None => Work::Closed,
        },
    };
    Source::new(work, options.mix, KeyDraw::new(options.dist, options.keys, options.seed, &setup.head), random, options.keys)
}

fn run_threads(setup: &Setup, phase: Phase, shared: &Shared, topology: Topology, conns: Vec<Vec<Connection>>) -> Result<Report, Failure> {
    let options = &setup.options;
    let (threads, window) = (conns.len(), window_of(options, phase));
    let intervals: Vec<Intervals> = (0..threads).map(|_| Intervals::default()).collect();
    let is_load = matches!(phase, Phase::Load(_));
    let warmup_s = if is_load { options.warmup } else { 0.0 };
    let seconds_max = if is_load { warmup_s + options.seconds } else { f64::INFINITY };
    let mut progress = Progress::new(phase.name(), seconds_max, options.quiet, options.check);
    let (sender, receiver) = mpsc::channel();
    let outcomes = std::thread::scope(|scope| {
        for (thread, conns) in conns.into_iter().enumerate() {
            let (sender, intervals) = (sender.clone(), &intervals[thread]);
            scope.spawn(move || {
                let outcome = run_thread(setup, phase, shared, topology, thread, threads, conns, intervals);
                if outcome.as_ref().map_or(true, |outcome| outcome.died.is_some()) {
                    shared.stop.store(true, Ordering::Relaxed);
                }
                let _ = sender.send(outcome);
            });
        }
        drop(sender);
        collect(&mut progress, &intervals, &receiver)
    });
    let mut report = Report {
        phase: phase.name(),
        rate_wanted: if let Phase::Load(rate) = phase { rate } else { None },
        conns: options.conns,
        threads,
        server_cores: usize::from(topology.cores),
        target: options.target.to_string(),
        is_cluster: options.target.is_cluster(),
        started_unix_ms: wall_ms().saturating_sub(shared.start.elapsed().as_millis() as u64),
        spun: options.spin,
        warmup_s,
        course: progress.finish(&intervals),
        ..Report::default()
    };
    let mut last_ns = 0;
    for outcome in outcomes {
        let outcome = outcome.map_err(|error| Failure::Usage(error.to_string()))?;
        report.tally.merge(&outcome.tally);
        report.died = report.died.or(outcome.died);
        last_ns = last_ns.max(outcome.last_ns);
    }
    // A run that ended early is measured over what it had.
    report.seconds = (window.until_ns.min(last_ns.max(1)) as f64 - window.from_ns as f64).max(0.0) / 1e9;
    if is_load && report.died.is_none() {
        report.seconds = options.seconds;
    }
    Ok(report)
}

#[allow(clippy::too_many_arguments)]
fn run_thread(
    setup: &Setup,
    phase: Phase,
    shared: &Shared,
    topology: Topology,
    thread: usize,
    threads: usize,
    conns: Vec<Connection>,
    intervals: &Intervals,
) -> std::io::Result<Outcome> {
    let options = &setup.options;
    if let Some(cores) = &options.cores {
        let core = cores.0[thread];
        pin_to_core(core).map_err(|error| std::io::Error::new(error.kind(), format!("--cores: core {core}: {error}")))?;
    }
    let books = Books::new(window_of(options, phase), &setup.values, setup.ledger.as_ref());
    let source = source_of(setup, phase, thread, conns.len(), threads);
    let names = KeyNames::new(&options.key_size, options.keys).expect("the options were validated");
    Ok(Worker::new(shared, books, source, names, topology, conns)?.run(intervals))
}

/// Shows progress until all threads are through.
fn collect(
    progress: &mut Progress,
    intervals: &[Intervals],
    receiver: &mpsc::Receiver<std::io::Result<Outcome>>,
) -> Vec<std::io::Result<Outcome>> {
    let mut outcomes = Vec::new();
    let start = Instant::now();
    let mut seconds = 0u64;
    loop {
        let due = Duration::from_secs(seconds + 1).saturating_sub(start.elapsed());
        match receiver.recv_timeout(due) {
            Ok(outcome) => outcomes.push(outcome),
            Err(mpsc::RecvTimeoutError::Disconnected) => return outcomes,
            Err(mpsc::RecvTimeoutError::Timeout) => {
                seconds += 1;
                progress.second(intervals);
            }
        }
    }
}
