//! A core of a simulated machine, for the engine's tests.

use super::EngineError;
use crate::io::sim::{Faults, MachineId, World};
use crate::io::wakers::Wakers;
use crate::io::{Class, Io};
use std::cell::RefCell;
use std::future::Future;
use std::path::Path;
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

/// Lives of one machine of which one sync in so many fails, with a kill or a loss of power behind each: how many a failed sync ended. A
/// process that was started anew sees what no sync has brought to the disk, until the power fails. `folder` is there before.
pub(super) fn lives_with_failing_syncs<F>(seed: u64, one_in: u64, lives: u32, folder: &'static str, mut live: impl FnMut(Io) -> F) -> u32
where
    F: Future<Output = Result<(), EngineError>> + 'static,
{
    let world = World::new(seed);
    let machine = world.add_machine(Faults::default());
    let made = on(&world, machine, |io| async move {
        io.make_dir(Path::new(folder)).await?;
        io.sync_dir(Path::new("/")).await
    });
    made.expect("no crash").expect("a calm disk");
    world.faults(machine, |faults| faults.sync_error_one_in = one_in);
    let mut failed = 0;
    for _ in 0..lives {
        match on(&world, machine, &mut live).expect("no crash") {
            Ok(()) => {}
            Err(EngineError::Io(error)) if error.raw_os_error() == Some(5) => failed += 1,
            // The log's, or another shard's that shares the folder of tables.
            Err(EngineError::Stopped(why)) if why.contains("(os error 5)") || why.contains("a sync of the folder") => failed += 1,
            Err(other) => panic!("seed {seed}: {other}"),
        }
        if world.random_u64().is_multiple_of(2) { world.crash(machine) } else { world.kill(machine) }
    }
    failed
}
