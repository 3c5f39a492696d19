//! The closed enum at the bottom of the seam: what carries operations out. The executor above it is the same for both.
//!
//! Contract of a driver: `submit` never fails by itself (a refusal is a completion); `poll` gives completions without waiting;
//! every operation but `Wake` gives exactly one completion with `more == false`, also after `cancel` (with an error or with what it
//! did all the same); completions of one operation come in order. Sends of one socket go out in the order of submission.

use super::op::{Completion, Op, OpId};
use super::uring::UringDriver;
use crate::base::time::{Mono, WallMs};

/// A driver; one a core.
pub enum Driver {
    /// The real world through io_uring.
    Uring(Box<UringDriver>),
    // The simulated world: Sim(super::sim::SimDriver)
}

impl Driver {
    /// Takes an operation; its completions come from `poll` under `id`.
    pub fn submit(&mut self, id: OpId, op: Op) {
        match self {
            Driver::Uring(driver) => driver.submit(id, op),
        }
    }

    /// Asks for an early end of an operation; unknown and ended ids are ignored. Its final completion still comes.
    pub fn cancel(&mut self, id: OpId) {
        match self {
            Driver::Uring(driver) => driver.cancel(id),
        }
    }

    /// Hands the submitted operations over and appends what has completed. Never waits.
    pub fn poll(&mut self, out: &mut Vec<Completion>) {
        match self {
            Driver::Uring(driver) => driver.poll(out),
        }
    }

    /// Waits until something completes, another core wakes this one, or `until` has come. May return early.
    pub fn park(&mut self, until: Option<Mono>) {
        match self {
            Driver::Uring(driver) => driver.park(until),
        }
    }

    /// The monotonic clock.
    pub fn now(&self) -> Mono {
        match self {
            Driver::Uring(driver) => driver.now(),
        }
    }

    /// The wall clock, milliseconds since 1970.
    pub fn wall_ms(&self) -> WallMs {
        match self {
            Driver::Uring(driver) => driver.wall_ms(),
        }
    }

    /// Random bits; on the simulated driver from its seed.
    pub fn random_u64(&mut self) -> u64 {
        match self {
            Driver::Uring(driver) => driver.random_u64(),
        }
    }

    /// Operations whose final completion has not been given by `poll` yet.
    pub fn in_flight(&self) -> usize {
        match self {
            Driver::Uring(driver) => driver.in_flight(),
        }
    }
}
