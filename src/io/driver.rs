//! The closed enum at the bottom of the seam: what carries operations out. The executor above it is the same for all.
//!
//! Contract of a driver: `submit` never fails by itself (a refusal is a completion); `poll` gives completions without waiting;
//! every operation but `Wake` gives exactly one completion with `more == false`, also after `cancel` (with an error or with what it
//! did all the same); completions of one operation come in order. Sends of one socket go out in the order of submission.

use super::epoll::{EpollConfig, EpollDriver};
use super::op::{Completion, Op, OpId};
use super::pool::Pool;
use super::sim::SimDriver;
use super::uring::{UringConfig, UringDriver, UringError};
use super::wakers::Wakers;
use crate::base::time::{Mono, WallMs};
use std::rc::Rc;

/// What a descriptor is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    File,
    Stream,
    Listener,
}

/// What carries a real core's I/O.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    Uring,
    /// Sockets on epoll, files on helper threads.
    Epoll,
}

impl Backend {
    /// As an operator writes it.
    pub fn name(self) -> &'static str {
        match self {
            Backend::Uring => "uring",
            Backend::Epoll => "epoll",
        }
    }

    /// The backend that this host has: the one that is wanted; without a wish io_uring, else epoll with a line that says why.
    ///
    /// # Errors
    /// io_uring is wanted and not to be had here.
    pub fn choose(wanted: Option<Backend>) -> Result<(Backend, Option<String>), UringError> {
        if wanted == Some(Backend::Epoll) {
            return Ok((Backend::Epoll, None));
        }
        match UringDriver::new(UringConfig::default(), 0, &Wakers::new(1)) {
            Ok(_) => Ok((Backend::Uring, None)),
            Err(error) if wanted.is_none() => {
                Ok((Backend::Epoll, Some(format!("running on epoll and file threads, which costs more a disk access: {error}"))))
            }
            Err(error) => Err(error),
        }
    }
}

/// Why a core has no driver.
#[derive(Debug)]
pub enum DriverError {
    Uring(UringError),
    Epoll(std::io::Error),
}

impl std::fmt::Display for DriverError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            DriverError::Uring(error) => error.fmt(f),
            DriverError::Epoll(error) => write!(f, "epoll cannot be set up: {error}"),
        }
    }
}

impl std::error::Error for DriverError {}

/// A driver; one a core.
pub enum Driver {
    /// The real world through io_uring.
    Uring(Box<UringDriver>),
    /// The real world where io_uring is forbidden.
    Epoll(Box<EpollDriver>),
    /// The simulated world.
    Sim(SimDriver),
}

impl Driver {
    /// A driver for core `core`, on the thread that will use it. Also what this host takes away, a line each with what it costs and what
    /// mends it.
    pub fn open(backend: Backend, core: usize, wakers: &Wakers) -> Result<(Driver, Vec<String>), DriverError> {
        match backend {
            Backend::Uring => {
                let driver = UringDriver::new(UringConfig::default(), core, wakers).map_err(DriverError::Uring)?;
                let degraded = driver.degraded();
                Ok((Driver::Uring(Box::new(driver)), degraded))
            }
            Backend::Epoll => {
                let driver = EpollDriver::new(EpollConfig::default(), core, wakers).map_err(DriverError::Epoll)?;
                Ok((Driver::Epoll(Box::new(driver)), Vec::new()))
            }
        }
    }

    /// From now on, what is written, flushed and named goes into `recording` too. Of a real driver.
    pub fn record(&mut self, recording: super::recording::Recording) {
        match self {
            Driver::Uring(driver) => driver.record(recording),
            Driver::Epoll(driver) => driver.record(recording),
            Driver::Sim(_) => panic!("a simulated disk knows by itself what was flushed"),
        }
    }

    /// Takes an operation; its completions come from `poll` under `id`.
    pub fn submit(&mut self, id: OpId, op: Op) {
        match self {
            Driver::Uring(driver) => driver.submit(id, op),
            Driver::Epoll(driver) => driver.submit(id, op),
            Driver::Sim(driver) => driver.submit(id, op),
        }
    }

    /// Asks for an early end of an operation; unknown and ended ids are ignored. Its final completion still comes.
    pub fn cancel(&mut self, id: OpId) {
        match self {
            Driver::Uring(driver) => driver.cancel(id),
            Driver::Epoll(driver) => driver.cancel(id),
            Driver::Sim(driver) => driver.cancel(id),
        }
    }

    /// Hands the submitted operations over and appends what has completed. Never waits.
    pub fn poll(&mut self, out: &mut Vec<Completion>) {
        match self {
            Driver::Uring(driver) => driver.poll(out),
            Driver::Epoll(driver) => driver.poll(out),
            Driver::Sim(driver) => driver.poll(out),
        }
    }

    /// Waits until something completes, another core wakes this one, or `until` has come. May return early.
    pub fn park(&mut self, until: Option<Mono>) {
        match self {
            Driver::Uring(driver) => driver.park(until),
            Driver::Epoll(driver) => driver.park(until),
            Driver::Sim(_) => panic!("the world turns a simulated core; it never parks"),
        }
    }

    /// The monotonic clock.
    pub fn now(&self) -> Mono {
        match self {
            Driver::Uring(driver) => driver.now(),
            Driver::Epoll(driver) => driver.now(),
            Driver::Sim(driver) => driver.now(),
        }
    }

    /// The wall clock, milliseconds since 1970.
    pub fn wall_ms(&self) -> WallMs {
        match self {
            Driver::Uring(driver) => driver.wall_ms(),
            Driver::Epoll(driver) => driver.wall_ms(),
            Driver::Sim(driver) => driver.wall_ms(),
        }
    }

    /// Random bits; on the simulated driver from its seed.
    pub fn random_u64(&mut self) -> u64 {
        match self {
            Driver::Uring(driver) => driver.random_u64(),
            Driver::Epoll(driver) => driver.random_u64(),
            Driver::Sim(driver) => driver.random_u64(),
        }
    }

    /// The pool of this core's disk buffers.
    pub(super) fn pool(&self) -> Rc<Pool> {
        match self {
            Driver::Uring(driver) => driver.pool.clone(),
            Driver::Epoll(driver) => driver.pool.clone(),
            Driver::Sim(driver) => driver.pool(),
        }
    }

    /// Operations whose final completion has not been given by `poll` yet.
    pub fn in_flight(&self) -> usize {
        match self {
            Driver::Uring(driver) => driver.in_flight(),
            Driver::Epoll(driver) => driver.in_flight(),
            Driver::Sim(driver) => driver.in_flight(),
        }
    }

    /// Threads beside this one have work of its operations, perhaps on its CPU.
    pub(super) fn lends_cpu(&self) -> bool {
        match self {
            Driver::Epoll(driver) => driver.lends_cpu(),
            Driver::Uring(_) | Driver::Sim(_) => false,
        }
    }
}
