//! A core of a simulated machine, for the engine's tests.

use crate::io::sim::{MachineId, World};
use crate::io::wakers::Wakers;
use crate::io::{Class, Io};
use std::cell::RefCell;
use std::future::Future;
use std::rc::Rc;
use std::time::Duration;

/// Runs a task on a core of its own until it ends or the machine falls (then there is no answer).
pub(super) fn on<T: 'static, F: Future<Output = T> + 'static>(world: &World, machine: MachineId, task: impl FnOnce(Io) -> F) -> Option<T> {
    let io = world.spawn_core(machine, 0, &Wakers::new(1));
    let answer = Rc::new(RefCell::new(None));
    let (put, done) = (answer.clone(), task(io.clone()));
    drop(io.clone().spawn(Class::Foreground, async move {
        let got = done.await;
        *put.borrow_mut() = Some(got);
        io.shutdown();
    }));
    world.run_until(Duration::from_secs(600), || answer.borrow().is_some() || !world.is_up(machine));
    world.run_for(Duration::from_millis(1));
    answer.take()
}
