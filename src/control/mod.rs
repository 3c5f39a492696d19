//! The control core: what a node does beside its data, on glommio: the admin port, and in a cluster gossip's sockets.
//!
//! One named thread with one small executor. It never touches data: what it shows, a `Source` gives as finished text, and with the shards
//! it meets only in `cluster::board`. Everything a stranger can make grow is bounded: connections, bytes of a head, time without a
//! request. Stopping is one signal that every task of the core awaits.
//!
//! Only this room names glommio. Its rings are made small, because nothing here is fast and locked memory is scarce. Where a node
//! runs without io_uring, glommio cannot: the same pages are then served on an executor like a data core's, over epoll, and gossip runs on
//! a plain thread.

mod admin;
pub mod gossip;
mod on_glommio;
mod on_seam;
mod page;
mod signal;

pub use admin::{CONNECTIONS_MAX, HEAD_BYTES_MAX, IDLE_MAX};

use crate::io::SocketAddr;
use crate::io::admin::{BoundListener, give_way};
use crate::io::driver::{Backend, Driver};
use crate::io::epoll::{EpollConfig, EpollDriver};
use crate::io::executor::Executor;
use crate::io::host::{Thread, pin_to_cpu, spawn_thread};
use crate::io::paired::Pair;
use crate::io::wakers::Wakers;
use glommio::{LocalExecutorBuilder, Placement};
use gossip::GossipSetup;
use gossip::on_thread::GossipThread;
use signal::Signal;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

/// Submission entries of each of the executor's three rings.
const RING_ENTRIES: usize = 32;
/// Memory the executor registers for storage I/O, of which it does none: its least.
const IO_MEMORY_BYTES: usize = 64 * 1024;

/// What the admin port shows. Called on the control core's thread, one call at a time.
pub trait Source {
    /// Prometheus' text.
    fn metrics(&self) -> String;
    /// `Err` says in one sentence why this node should not be asked.
    fn health(&self) -> Result<(), String>;
    /// `name:value`, one a line.
    fn info(&self) -> String;
}

/// How the control core runs.
pub struct ControlConfig {
    /// Where the admin port listens; port 0 draws a free one.
    pub address: SocketAddr,
    /// The CPU to pin to, if it has one to itself; without one it runs where the scheduler puts it.
    pub cpu: Option<usize>,
    /// It shares its CPUs with data cores, so it gives way to them.
    pub shares: bool,
    /// A connection without a request is closed after about this long; `IDLE_MAX` unless a test is in a hurry.
    pub idle_max: Duration,
    pub source: Arc<dyn Source + Send + Sync>,
    /// What the node runs on.
    pub backend: Backend,
    /// `None`: a node by itself, without a gossip port.
    pub gossip: Option<GossipSetup>,
}

/// Why the control core did not start.
#[derive(Debug)]
pub enum StartError {
    /// Something else listens there.
    AddressInUse(SocketAddr),
    /// Something else has gossip's port.
    GossipInUse(SocketAddr),
    Io(std::io::Error),
    /// Gossip's sockets, or its thread.
    Gossip(std::io::Error),
    /// The executor could not be made (too little locked memory, io_uring forbidden).
    Runtime(String),
}

impl std::fmt::Display for StartError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            StartError::AddressInUse(address) => write!(f, "port {} is in use; --admin-port moves it", address.port()),
            StartError::GossipInUse(address) => write!(f, "port {} is in use; --gossip-port moves it", address.port()),
            StartError::Gossip(error) => write!(f, "gossip cannot run: {error}"),
            StartError::Io(error) => write!(f, "the admin port cannot be opened: {error}"),
            StartError::Runtime(why) => write!(f, "the control core cannot run: {why}"),
        }
    }
}

impl std::error::Error for StartError {}

/// A running control core. Dropping it stops it too.
pub struct ControlHandle {
    address: SocketAddr,
    gossip_address: Option<SocketAddr>,
    stop: Stop,
    thread: Option<Thread<()>>,
    /// Where it does not run on glommio.
    gossip: Option<GossipThread>,
}

/// How a control core is told to end.
enum Stop {
    Glommio(Arc<Signal>),
    Seam { told: Arc<AtomicBool>, wakers: Wakers },
}

impl Stop {
    fn fire(&self, abruptly: bool) {
        match self {
            Stop::Glommio(signal) => signal.fire(abruptly),
            Stop::Seam { told, wakers } => {
                told.store(true, Ordering::Release);
                wakers.wake_from_outside(0);
            }
        }
    }
}

impl ControlHandle {
    /// Where the admin port listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where gossip listens, if it runs.
    pub fn gossip_address(&self) -> Option<SocketAddr> {
        self.gossip_address
    }

    /// Says goodbye to the cluster, closes the ports and every connection, and waits for the thread's end.
    pub fn stop(mut self) {
        self.end(false);
    }

    /// Ends like a process that is killed: the cluster is not told.
    pub fn stop_abruptly(mut self) {
        self.end(true);
    }

    fn end(&mut self, abruptly: bool) {
        if let Some(mut gossip) = self.gossip.take() {
            gossip.end(abruptly);
        }
        self.stop.fire(abruptly);
        if let Some(thread) = self.thread.take() {
            // A panic there has been told on standard error already.
            let _ = thread.join();
        }
    }
}

impl Drop for ControlHandle {
    fn drop(&mut self) {
        self.end(false);
    }
}

/// Starts the control core on a thread of its own; serving when it returns.
pub fn start(mut config: ControlConfig) -> Result<ControlHandle, StartError> {
    let gossip = config.gossip.take().map(bind_gossip).transpose()?;
    let gossip_address = gossip.as_ref().map(|(address, ..)| *address);
    let gossip = gossip.map(|(_, pair, setup)| (pair, setup));
    let mut handle = match config.backend {
        Backend::Uring => start_on_glommio(config, gossip)?,
        Backend::Epoll => {
            let (cpu, shares) = (config.cpu, config.shares);
            let mut handle = start_on_seam(config)?;
            let started = gossip.map(|(pair, setup)| GossipThread::start(pair, setup, move || settle(cpu, shares)));
            handle.gossip = started.transpose().map_err(StartError::Gossip)?;
            handle
        }
    };
    handle.gossip_address = gossip_address;
    Ok(handle)
}

fn bind_gossip(setup: GossipSetup) -> Result<(SocketAddr, Pair, GossipSetup), StartError> {
    let bound = Pair::bind(setup.listen).and_then(|pair| Ok((pair.address()?, pair)));
    match bound {
        Ok((address, pair)) => Ok((address, pair, setup)),
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => Err(StartError::GossipInUse(setup.listen)),
        Err(error) => Err(StartError::Gossip(error)),
    }
}

/// Where and how the calling thread runs.
fn settle(cpu: Option<usize>, shares: bool) {
    if shares {
        give_way();
    }
    if let Some(cpu) = cpu {
        // Only faster: without it the scheduler places the thread.
        let _ = pin_to_cpu(cpu);
    }
}

fn start_on_seam(config: ControlConfig) -> Result<ControlHandle, StartError> {
    let (wakers, told) = (Wakers::new(1), Arc::new(AtomicBool::new(false)));
    let stop = Stop::Seam { told: told.clone(), wakers: wakers.clone() };
    let (started, outcome) = mpsc::sync_channel(1);
    let run = move || {
        settle(config.cpu, config.shares);
        let sizes = EpollConfig { descriptors: 2 * CONNECTIONS_MAX as u32, receive_buffers: 16, file_threads: 1, ..EpollConfig::default() };
        let driver = match EpollDriver::new(sizes, 0, &wakers) {
            Ok(driver) => driver,
            Err(error) => return drop(started.send(Err(StartError::Io(error)))),
        };
        let mut executor = Executor::new(Driver::Epoll(Box::new(driver)), 0, wakers);
        executor.set_spin(Duration::ZERO);
        let io = executor.handle();
        io.set_inbox(Box::new(move || told.load(Ordering::Acquire)));
        executor.run(async move {
            match io.listen(config.address).await {
                Ok(listener) => {
                    let _ = started.send(Ok(listener.address()));
                    on_seam::serve(io, listener, config.source, config.idle_max).await;
                }
                Err(error) => drop(started.send(Err(not_bound(config.address, error)))),
            }
        });
    };
    let thread = spawn_thread("ringkv-control", run).map_err(StartError::Io)?;
    let address = outcome.recv().unwrap_or_else(|_| Err(StartError::Runtime("its thread ended at once".to_owned())))?;
    Ok(ControlHandle { address, gossip_address: None, stop, thread: Some(thread), gossip: None })
}

fn not_bound(address: SocketAddr, error: std::io::Error) -> StartError {
    match error.kind() {
        std::io::ErrorKind::AddrInUse => StartError::AddressInUse(address),
        _ => StartError::Io(error),
    }
}

fn start_on_glommio(config: ControlConfig, gossip: Option<(Pair, GossipSetup)>) -> Result<ControlHandle, StartError> {
    let listener = BoundListener::bind(config.address).map_err(|error| not_bound(config.address, error))?;
    let address = listener.address().map_err(StartError::Io)?;
    let stop = Arc::new(Signal::default());
    let heard = stop.clone();
    let (started, outcome) = mpsc::sync_channel(1);
    let run = move || {
        if config.shares {
            give_way();
        }
        let placement = config.cpu.map_or(Placement::Unbound, Placement::Fixed);
        let executor =
            LocalExecutorBuilder::new(placement).name("ringkv-control").ring_depth(RING_ENTRIES).io_memory(IO_MEMORY_BYTES).make();
        let executor = match executor {
            Ok(executor) => executor,
            Err(error) => {
                let _ = started.send(Err(error.to_string()));
                return;
            }
        };
        let _ = started.send(Ok(()));
        executor.run(async move {
            let gossip = gossip.map(|(pair, setup)| glommio::spawn_local(gossip::on_glommio::run(pair, setup, heard.clone())));
            on_glommio::serve(listener, config.source, config.idle_max, heard).await;
            if let Some(gossip) = gossip {
                gossip.await;
            }
        });
    };
    let thread = spawn_thread("ringkv-control", run).map_err(StartError::Io)?;
    match outcome.recv() {
        Ok(Ok(())) => Ok(ControlHandle { address, gossip_address: None, stop: Stop::Glommio(stop), thread: Some(thread), gossip: None }),
        Ok(Err(why)) => Err(StartError::Runtime(why)),
        Err(_) => Err(StartError::Runtime("its thread ended at once".to_owned())),
    }
}
