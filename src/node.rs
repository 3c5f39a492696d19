//! A node of threads: one pinned thread a data core, the control core beside them, and the process's beginning and end.

mod cluster;
mod service;

use crate::base::metrics::Report;
use crate::config::{Config, exit};
use crate::control::gossip::GossipFigures;
use crate::control::{self, ControlConfig, ControlHandle, IDLE_MAX, Source};
use crate::engine::{EngineConfig, EngineError};
use crate::io::driver::{Backend, Driver};
use crate::io::executor::Executor;
use crate::io::wakers::Wakers;
use crate::io::{SocketAddr, host};
use crate::limits::BEGUN_IS_OVER_MS;
use crate::shard::mailbox::{self, MailboxEnds};
use crate::shard::start::{self, Plan, StartFailure};
use crate::shard::stats::Board;
use cluster::Membership;
use service::Service;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, mpsc};
use std::time::Duration;

/// How long a deleted key is remembered at least: a retry under an old version may come this late.
const FORGET_AFTER_MS: u64 = 3_600_000;

/// What a data core's thread tells the main thread.
enum News {
    /// The node serves at this address.
    Serving(SocketAddr),
    /// A core runs with less than it could: a line that says what that costs and what mends it.
    Degraded(String),
    /// A line for the operator, from the control core.
    Said(String),
    /// A core ended; an error unless it was told to.
    Ended(Result<(), Failure>),
}

/// Why a core ended: words, and the exit code.
struct Failure {
    text: String,
    code: i32,
    /// Another core's failure is the cause.
    follows: bool,
}

impl Failure {
    fn new(code: i32, text: impl Into<String>) -> Failure {
        Failure { text: text.into(), code, follows: false }
    }
}

impl From<StartFailure> for Failure {
    fn from(failure: StartFailure) -> Failure {
        let code = match &failure {
            StartFailure::Listen(..) => exit::ADDRESS_IN_USE,
            StartFailure::Engine(EngineError::Corrupt { .. } | EngineError::Unsupported { .. }) => exit::DATA_DAMAGED,
            StartFailure::Contradiction(_) => exit::CONFIG,
            StartFailure::Engine(_) | StartFailure::NoRoom { .. } | StartFailure::Other(_) | StartFailure::Stopped => exit::FAILED,
        };
        let text = match &failure {
            StartFailure::Listen(address, error) => format!("cannot listen on {address} ({error}); --port moves it"),
            other => other.to_string(),
        };
        Failure { text, code, follows: matches!(failure, StartFailure::Other(_)) }
    }
}

/// Serves until a signal ends it; the exit code. `say` prints a line on standard output, `warn` on standard error.
pub fn serve(config: &Config, say: &dyn Fn(&str), warn: &dyn Fn(&str)) -> i32 {
    match try_serve(config, say, warn) {
        Ok(code) => code,
        Err(failure) => {
            warn(&failure.text);
            failure.code
        }
    }
}

fn try_serve(config: &Config, say: &dyn Fn(&str), warn: &dyn Fn(&str)) -> Result<i32, Failure> {
    let os = |what: &str, error: std::io::Error| Failure::new(exit::FAILED, format!("{what}: {error}"));
    host::block_signals().map_err(|error| os("signals", error))?;
    if let Err(error) = host::raise_nofile() {
        warn(&format!("the limit of open files stays as it is ({error}); ulimit -n raises it"));
    }
    host::create_dirs(&config.data).map_err(|error| os(&config.data.display().to_string(), error))?;
    let _lock = host::lock_dir(&config.data).map_err(|error| Failure::new(exit::DATA_IN_USE, error.to_string()))?;
    let secret = read_secret(config)?;
    let backend = choose_backend(config, warn)?;
    let (tell, news) = mpsc::channel();
    let wakers = Wakers::new(config.cores.len());
    let membership = Membership::prepare(config, backend, &wakers, warn)?;
    let plan = Arc::new(plan(config, secret, membership.as_ref(), tell.clone()));
    let mut threads = Vec::new();
    for (core, ends) in mailbox::mesh(config.cores.len()).into_iter().enumerate() {
        let (plan, wakers, tell, cpu) = (plan.clone(), wakers.clone(), tell.clone(), config.cores[core]);
        let how = HowToRun { cpu, strict: config.strict_start, spin: config.spin, backend };
        let body = move || {
            let outcome = run_core(core, how, ends, plan, wakers, &tell);
            // The main thread has gone only when the process is ending anyway.
            let _ = tell.send(News::Ended(outcome));
        };
        threads.push(host::spawn_thread(&format!("ringkv-{core}"), body).map_err(|error| os("a core's thread", error))?);
    }
    let watched = Watched { config, plan: &plan, wakers: &wakers, backend, membership, tell };
    let outcome = watch(&watched, &news, say, warn);
    for thread in threads {
        let _ = thread.join();
    }
    outcome
}

fn read_secret(config: &Config) -> Result<Option<Vec<u8>>, Failure> {
    config.secret_file.as_deref().map(|path| read_credential("secret-file", path)).transpose()
}

/// What the file that `key` of the configuration names holds, without the end of its line.
fn read_credential(key: &str, path: &Path) -> Result<Vec<u8>, Failure> {
    let text = host::read_to_string(path)
        .map_err(|error| Failure::new(exit::CONFIG, format!("{key} {} cannot be read: {error}", path.display())))?;
    let secret = text.trim_end_matches(['\n', '\r']).as_bytes().to_vec();
    if secret.is_empty() {
        return Err(Failure::new(exit::CONFIG, format!("{key} {} is empty", path.display())));
    }
    Ok(secret)
}

/// One for all cores. That the host has no io_uring is said, or is a failure where it was asked for.
fn choose_backend(config: &Config, warn: &dyn Fn(&str)) -> Result<Backend, Failure> {
    match Backend::choose(config.io) {
        Ok((backend, None)) => Ok(backend),
        Ok((_, Some(why))) if config.strict_start => Err(Failure::new(exit::FAILED, format!("--strict-start: {why}"))),
        Ok((backend, Some(why))) => {
            warn(&why);
            Ok(backend)
        }
        Err(error) => Err(Failure::new(exit::CONFIG, format!("io is uring, which cannot be had: {error}"))),
    }
}

fn plan(config: &Config, secret: Option<Vec<u8>>, membership: Option<&Membership>, tell: mpsc::Sender<News>) -> Plan {
    let say = tell.clone();
    let cluster = membership.map(|membership| membership.plan(Box::new(move |line| drop(say.send(News::Said(line.to_owned()))))));
    let cores = config.cores.len();
    let memory_bytes = config.memory_bytes as usize / cores;
    let engine = EngineConfig {
        // In a cluster others may still bring what is older: there the dead are forgotten by floors alone (rules G1 to G6).
        forget_after_ms: Some(FORGET_AFTER_MS).filter(|_| cluster.is_none()),
        begun_is_over_ms: cluster.as_ref().map(|_| BEGUN_IS_OVER_MS),
        writer: cluster.as_ref().map_or(0, |cluster| cluster.node as u16),
        ..EngineConfig::new(0, memory_bytes, host::random_u64())
    };
    Plan {
        data: config.data.clone(),
        listen: config.native,
        host: config.native.ip().to_string(),
        cores: cores as u16,
        vnodes: config.vnodes,
        durability: config.durability,
        secret,
        memory_bytes,
        engine,
        board: Arc::new(Board::default()),
        cluster,
        publish_every: Duration::from_millis(500),
        port: 0.into(),
        stop: false.into(),
        drained: 0.into(),
        ready: Box::new(move |address| drop(tell.send(News::Serving(address)))),
        planted: None,
    }
}

/// How a data core's thread runs.
#[derive(Clone, Copy)]
struct HowToRun {
    cpu: usize,
    strict: bool,
    spin: Duration,
    backend: Backend,
}

fn run_core(
    core: usize,
    how: HowToRun,
    ends: MailboxEnds,
    plan: Arc<Plan>,
    wakers: Wakers,
    tell: &mpsc::Sender<News>,
) -> Result<(), Failure> {
    if let Err(error) = host::pin_to_cpu(how.cpu) {
        let line = format!("core {core} is not pinned to CPU {} ({error}): other threads may push it aside", how.cpu);
        degrade(how.strict, line, tell)?;
    }
    let opened = Driver::open(how.backend, core, &wakers);
    let (driver, degraded) = opened.map_err(|error| Failure::new(exit::FAILED, error.to_string()))?;
    for line in degraded {
        degrade(how.strict, line, tell)?;
    }
    let mut executor = Executor::new(driver, core, wakers);
    executor.set_spin(how.spin);
    let io = executor.handle();
    executor.run(async move { start::run(io, ends, plan).await }).map_err(Failure::from)
}

fn degrade(strict: bool, line: String, tell: &mpsc::Sender<News>) -> Result<(), Failure> {
    if strict {
        return Err(Failure::new(exit::FAILED, format!("--strict-start: {line}")));
    }
    let _ = tell.send(News::Degraded(line));
    Ok(())
}

/// The node as the main thread sees it.
struct Watched<'a> {
    config: &'a Config,
    plan: &'a Arc<Plan>,
    wakers: &'a Wakers,
    backend: Backend,
    /// In a cluster.
    membership: Option<Membership>,
    tell: mpsc::Sender<News>,
}

/// The main thread's work: the ready line, the control core, signals, the end.
fn watch(node: &Watched<'_>, news: &mpsc::Receiver<News>, say: &dyn Fn(&str), warn: &dyn Fn(&str)) -> Result<i32, Failure> {
    let (plan, cores) = (node.plan, node.config.cores.len());
    let mut control: Option<ControlHandle> = None;
    let mut failure: Option<Failure> = None;
    let mut said = Vec::new();
    let mut ended = 0;
    let mut stopping = false;
    let mut service = Service::of_environment(warn);
    let mut stop = |why: Option<Failure>, failure: &mut Option<Failure>, service: &mut Service| {
        service.stopping();
        // The first reason is the cause, but a core that only heard of it may be the first to say so.
        if failure.as_ref().is_none_or(|known| known.follows) && why.is_some() {
            *failure = why;
        }
        if !std::mem::replace(&mut stopping, true) {
            plan.stop.store(true, Ordering::Release);
            (0..cores).for_each(|core| node.wakers.wake_from_outside(core));
        }
    };
    while ended < cores {
        service.turn(host::mono(), || plan.board.beats(cores));
        match news.recv_timeout(Duration::from_millis(20)) {
            Ok(News::Degraded(line)) if !said.contains(&line) => {
                warn(&line);
                said.push(line);
            }
            Ok(News::Degraded(_)) => {}
            Ok(News::Said(line)) => warn(&line),
            Ok(News::Serving(address)) => match start_control(node, address, warn) {
                Ok(handle) => {
                    let admin = handle.as_ref().map_or_else(|| "none".to_owned(), |handle| handle.address().to_string());
                    say(&format!("ready native={address} admin={admin}"));
                    service.ready(host::mono(), &format!("serving, native={address} admin={admin} cores={cores}"));
                    hints(address, &admin, warn);
                    control = handle;
                }
                Err(why) => stop(Some(why), &mut failure, &mut service),
            },
            Ok(News::Ended(outcome)) => {
                ended += 1;
                stop(outcome.err(), &mut failure, &mut service);
            }
            Err(mpsc::RecvTimeoutError::Timeout) => {
                if host::wait_for_signal(Some(Duration::ZERO)).is_some() {
                    stop(None, &mut failure, &mut service);
                }
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => break,
        }
    }
    drop(control);
    match (failure, plan.board.trouble()) {
        (Some(failure), _) => Err(failure),
        (None, Some(trouble)) => Err(Failure::new(exit::SHARD_STOPPED, trouble)),
        (None, None) => Ok(exit::CLEAN),
    }
}

/// None: the host does not let the control core run, and the node serves without it.
fn start_control(node: &Watched<'_>, native: SocketAddr, warn: &dyn Fn(&str)) -> Result<Option<ControlHandle>, Failure> {
    let config = node.config;
    match control::start(control_config(node, native, node.backend)) {
        Ok(handle) => Ok(Some(handle)),
        Err(error @ (control::StartError::AddressInUse(_) | control::StartError::GossipInUse(_))) => {
            Err(Failure::new(exit::ADDRESS_IN_USE, error.to_string()))
        }
        Err(error @ control::StartError::Runtime(_)) if !config.strict_start && node.membership.is_some() => {
            warn(&format!("{error}, so it runs on epoll; a higher memlock limit (ulimit -l) mends it"));
            let started = control::start(control_config(node, native, Backend::Epoll));
            started.map(Some).map_err(|error| Failure::new(exit::FAILED, error.to_string()))
        }
        Err(error @ control::StartError::Runtime(_)) if !config.strict_start => {
            warn(&format!("no admin port: {error}; a higher memlock limit (ulimit -l) mends it"));
            Ok(None)
        }
        Err(error) => Err(Failure::new(exit::FAILED, error.to_string())),
    }
}

fn control_config(node: &Watched<'_>, native: SocketAddr, backend: Backend) -> ControlConfig {
    let (config, membership) = (node.config, node.membership.as_ref());
    // A CPU that no data core has, if there is one.
    let free = host::allowed_cpus().into_iter().find(|cpu| !config.cores.contains(cpu));
    let source = Arc::new(Figures { plan: node.plan.clone(), gossip: membership.map(|membership| membership.figures.clone()) });
    let tell = node.tell.clone();
    let say = Arc::new(move |line: &str| drop(tell.send(News::Said(line.to_owned()))));
    let gossip = membership.zip(config.cluster.as_ref());
    let gossip = gossip.map(|(membership, cluster)| membership.setup(cluster, node.plan.cores, native, say));
    ControlConfig { address: config.admin, cpu: free, shares: free.is_none(), idle_max: IDLE_MAX, source, backend, gossip }
}

fn hints(native: SocketAddr, admin: &str, warn: &dyn Fn(&str)) {
    let port = if native.port() == crate::config::PORT_DEFAULT { String::new() } else { format!(" --port {}", native.port()) };
    warn(&format!("try: ringkv put greeting hello{port}"));
    warn(&format!("     ringkv get greeting{port}"));
    warn(&format!("     curl http://{admin}/metrics"));
}

/// What the control core shows.
struct Figures {
    plan: Arc<Plan>,
    /// In a cluster.
    gossip: Option<Arc<GossipFigures>>,
}

impl Figures {
    fn report(&self) -> Report {
        let mut report = self.plan.board.report();
        if let Some(gossip) = &self.gossip {
            gossip.report(&mut report);
        }
        report
    }
}

impl Source for Figures {
    fn metrics(&self) -> String {
        self.report().prometheus()
    }

    fn health(&self) -> Result<(), String> {
        self.plan.board.trouble().map_or(Ok(()), Err)
    }

    fn info(&self) -> String {
        let state = self.plan.board.trouble().unwrap_or_else(|| "ok".to_owned());
        format!("state:{state}\ncores:{}\n{}", self.plan.cores, self.report().info())
    }
}
