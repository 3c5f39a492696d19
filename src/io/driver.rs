//! The closed enum at the bottom of the seam: what carries operations out. The executor above it is the same for both.
//!
//! Contract of a driver: `submit` never fails by itself (a refusal is a completion); `poll` gives completions without waiting;
//! every operation but `Wake` gives exactly one completion with `more == false`, also after `cancel` (with an error or with what it
//! did all the same); completions of one operation come in order. Sends of one socket go out in the order of submission.

use super::op::{Completion, Op, OpId};
use super::pool::Pool;
use super::sim::SimDriver;
use super::uring::UringDriver;
use crate::base::time::{Mono, WallMs};
use std::rc::Rc;

/// A driver; one a core.
pub enum Driver {
    /// The real world through io_uring.
    Uring(Box<UringDriver>),
    /// The simulated world.
    Sim(SimDriver),
}

impl Driver {
    /// Takes an operation; its completions come from `poll` under `id`.
    pub fn submit(&mut self, id: OpId, op: Op) {
        match self {
            Driver::Uring(driver) => driver.submit(id, op),
            Driver::Sim(driver) => driver.submit(id, op),
        }
    }

    /// Asks for an early end of an operation; unknown and ended ids are ignored. Its final completion still comes.
    pub fn cancel(&mut self, id: OpId) {
        match self {
            Driver::Uring(driver) => driver.cancel(id),
            Driver::Sim(driver) => driver.cancel(id),
        }
    }

    /// Hands the submitted operations over and appends what has completed. Never waits.
    pub fn poll(&mut self, out: &mut Vec<Completion>) {
        match self {
            Driver::Uring(driver) => driver.poll(out),
            Driver::Sim(driver) => driver.poll(out),
        }
    }

    /// Waits until something completes, another core wakes this one, or `until` has come. May return early.
    pub fn park(&mut self, until: Option<Mono>) {
        match self {
            Driver::Uring(driver) => driver.park(until),
            Driver::Sim(_) => panic!("the world turns a simulated core; it never parks"),
        }
    }

    /// The monotonic clock.
    pub fn now(&self) -> Mono {
        match self {
            Driver::Uring(driver) => driver.now(),
            Driver::Sim(driver) => driver.now(),
        }
    }

    /// The wall clock, milliseconds since 1970.
    pub fn wall_ms(&self) -> WallMs {
        match self {
            Driver::Uring(driver) => driver.wall_ms(),
            Driver::Sim(driver) => driver.wall_ms(),
        }
    }

    /// Random bits; on the simulated driver from its seed.
    pub fn random_u64(&mut self) -> u64 {
        match self {
            Driver::Uring(driver) => driver.random_u64(),
            Driver::Sim(driver) => driver.random_u64(),
        }
    }

    /// The pool of this core's disk buffers.
    pub(super) fn pool(&self) -> Rc<Pool> {
        match self {
            Driver::Uring(driver) => driver.pool.clone(),
            Driver::Sim(driver) => driver.pool(),
        }
    }

    /// Operations whose final completion has not been given by `poll` yet.
    pub fn in_flight(&self) -> usize {
        match self {
            Driver::Uring(driver) => driver.in_flight(),
            Driver::Sim(driver) => driver.in_flight(),
        }
    }
}
