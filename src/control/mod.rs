//! The control core: what a node does beside its data, on glommio. Today the admin port; gossip's sockets come here too.
//!
//! One named thread with one small executor. It never touches data: what it shows, a `Source` gives as finished text, and the
//! shards know nothing of it. Everything a stranger can make grow is bounded: connections, bytes of a head, time without a
//! request. Stopping is one signal that every task of the core awaits.
//!
//! Only this room names glommio. Its rings are made small, because nothing here is fast and locked memory is scarce.

mod admin;
mod page;
mod signal;

pub use admin::{CONNECTIONS_MAX, HEAD_BYTES_MAX, IDLE_MAX};

use crate::io::SocketAddr;
use crate::io::admin::BoundListener;
use crate::io::host::{Thread, spawn_thread};
use glommio::{LocalExecutorBuilder, Placement};
use signal::Signal;
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
}

/// Why the control core did not start.
#[derive(Debug)]
pub enum StartError {
    /// Something else listens there.
    AddressInUse(SocketAddr),
    Io(std::io::Error),
    /// The executor could not be made (too little locked memory, io_uring forbidden).
    Runtime(String),
}

impl std::fmt::Display for StartError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            StartError::AddressInUse(address) => write!(f, "port {} is in use; --admin-port moves it", address.port()),
            StartError::Io(error) => write!(f, "the admin port cannot be opened: {error}"),
            StartError::Runtime(why) => write!(f, "the control core cannot run: {why}"),
        }
    }
}

impl std::error::Error for StartError {}

/// A running control core. Dropping it stops it too.
pub struct ControlHandle {
    address: SocketAddr,
    stop: Arc<Signal>,
    thread: Option<Thread<()>>,
}

impl ControlHandle {
    /// Where the admin port listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Closes the port and every connection, and waits for the thread's end.
    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        self.stop.fire();
        if let Some(thread) = self.thread.take() {
            // A panic there has been told on standard error already.
            let _ = thread.join();
        }
    }
}

impl Drop for ControlHandle {
    fn drop(&mut self) {
        self.end();
    }
}

/// Starts the control core on a thread of its own; serving when it returns.
pub fn start(config: ControlConfig) -> Result<ControlHandle, StartError> {
    let listener = BoundListener::bind(config.address).map_err(|error| match error.kind() {
        std::io::ErrorKind::AddrInUse => StartError::AddressInUse(config.address),
        _ => StartError::Io(error),
    })?;
    let address = listener.address().map_err(StartError::Io)?;
    let stop = Arc::new(Signal::default());
    let heard = stop.clone();
    let (started, outcome) = mpsc::sync_channel(1);
    let run = move || {
        if config.shares {
            crate::io::admin::give_way();
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
        executor.run(admin::serve(listener, config.source, config.idle_max, heard));
    };
    let thread = spawn_thread("ringkv-control", run).map_err(StartError::Io)?;
    match outcome.recv() {
        Ok(Ok(())) => Ok(ControlHandle { address, stop, thread: Some(thread) }),
        Ok(Err(why)) => Err(StartError::Runtime(why)),
        Err(_) => Err(StartError::Runtime("its thread ended at once".to_owned())),
    }
}
