//! Gossip's sockets on a plain thread, for hosts where glommio has no io_uring to run on. The thread waits for datagrams, streams and the
//! time of the next tick; each stream has a short-lived thread of its own, so that a slow one holds up nothing.

use super::super::admin::ACCEPT_PAUSE;
use super::{EXCHANGE_MAX, EXCHANGES_MAX, GossipSetup, LEAVE_MAX, ROOM_BYTES, Shell, Todo, now};
use crate::base::time::Mono;
use crate::io::host::{Thread, mono, spawn_thread};
use crate::io::paired::{self, Bell, Pair, Stream, Watched};
use crate::io::{SocketAddr, host};
use crate::limits::GOSSIP_SYNC_BYTES_MAX;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Datagrams that are taken in before a tick: more than a socket's buffer holds by default.
const BATCH: usize = 512;

/// A running gossip. Dropping it does not end it: `end` does.
pub(in crate::control) struct GossipThread {
    told: Arc<Told>,
    bell: Bell,
    thread: Option<Thread<()>>,
}

#[derive(Default)]
struct Told {
    stop: AtomicBool,
    abruptly: AtomicBool,
}

impl GossipThread {
    /// Starts it; `prepare` runs first, on the new thread.
    pub fn start(pair: Pair, setup: GossipSetup, prepare: impl FnOnce() + Send + 'static) -> std::io::Result<GossipThread> {
        let local = pair.address()?;
        let (sockets, bell) = pair.watch()?;
        let told = Arc::new(Told::default());
        let core = Core {
            shell: Arc::new(Mutex::new(Shell::new(setup, local, now(), host::random_u64()))),
            sockets: Arc::new(sockets),
            bell: bell.clone(),
            asking: Arc::default(),
            answering: Arc::default(),
        };
        let heard = told.clone();
        let run = move || {
            prepare();
            core.run(&heard);
        };
        let thread = spawn_thread("ringkv-gossip", run)?;
        Ok(GossipThread { told, bell, thread: Some(thread) })
    }

    /// Says goodbye, unless `abruptly`, and waits for the thread's end.
    pub fn end(&mut self, abruptly: bool) {
        self.told.abruptly.store(abruptly, Ordering::Relaxed);
        self.told.stop.store(true, Ordering::Release);
        self.bell.ring();
        if let Some(thread) = self.thread.take() {
            // A panic there has been told on standard error already.
            let _ = thread.join();
        }
    }
}

#[derive(Clone)]
struct Core {
    shell: Arc<Mutex<Shell>>,
    sockets: Arc<Watched>,
    bell: Bell,
    asking: Arc<AtomicUsize>,
    answering: Arc<AtomicUsize>,
}

impl Core {
    /// A node as it is built for use ends at a panic. In a test build the others go on with what it left.
    fn shell(&self) -> MutexGuard<'_, Shell> {
        self.shell.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self, told: &Told) {
        let mut room = vec![0; ROOM_BYTES];
        let (mut accepts_from, mut leaving) = (Mono(0), None::<Mono>);
        loop {
            let pause = self.shell().pause(now());
            self.sockets.wait(pause, mono() >= accepts_from);
            if leaving.is_none() && told.stop.load(Ordering::Acquire) {
                if told.abruptly.load(Ordering::Relaxed) {
                    return;
                }
                leaving = Some(mono());
                self.shell().leave(now());
            }
            for _ in 0..BATCH {
                let Some((count, from)) = self.sockets.receive(&mut room) else { break };
                let todo = self.shell().take_datagram(now(), from, &room[..count]);
                self.perform(todo);
            }
            if self.shell().pause(now()).is_zero() {
                let todo = self.shell().tick(now());
                self.perform(todo);
            }
            if leaving.is_some_and(|since| self.shell().is_told() || mono().since(since) >= LEAVE_MAX) {
                return;
            }
            if mono() >= accepts_from && self.accept().is_err() {
                accepts_from = mono().plus(ACCEPT_PAUSE);
            }
        }
    }

    fn accept(&self) -> std::io::Result<()> {
        while let Some((mut stream, from)) = self.sockets.accept(EXCHANGE_MAX)? {
            let core = self.clone();
            // One too many is dropped, hence closed.
            run_apart(&self.answering, move || drop(core.answer(&mut stream, from)));
        }
        Ok(())
    }

    fn answer(&self, stream: &mut Stream, from: SocketAddr) -> std::io::Result<()> {
        let question = stream.take(GOSSIP_SYNC_BYTES_MAX)?;
        let (answer, todo) = self.shell().take_stream(now(), from, &question);
        self.perform(todo);
        self.bell.ring();
        answer.map_or(Ok(()), |answer| stream.give(&answer))
    }

    fn perform(&self, todo: Todo) {
        todo.sends.iter().for_each(|(to, datagram)| self.sockets.send(*to, datagram));
        for with in todo.syncs {
            let core = self.clone();
            run_apart(&self.asking, move || core.ask(with));
        }
    }

    fn ask(&self, with: SocketAddr) {
        let (question, mut from) = {
            let mut shell = self.shell();
            (shell.sync_request(now()), shell.local())
        };
        from.set_port(0);
        // Without an answer gossip asks again, this one or another.
        if let Ok(answer) = paired::ask(from, with, &question, GOSSIP_SYNC_BYTES_MAX, EXCHANGE_MAX) {
            let (_, todo) = self.shell().take_stream(now(), with, &answer);
            self.perform(todo);
            self.bell.ring();
        }
    }
}

/// Runs `work` on a thread of its own, unless `EXCHANGES_MAX` are counted already, or the host gives no thread.
fn run_apart(counted: &Arc<AtomicUsize>, work: impl FnOnce() + Send + 'static) {
    /// Counts down however the thread ends.
    struct Place(Arc<AtomicUsize>);
    impl Drop for Place {
        fn drop(&mut self) {
            self.0.fetch_sub(1, Ordering::Relaxed);
        }
    }
    let place = Place(counted.clone());
    if counted.fetch_add(1, Ordering::Relaxed) < EXCHANGES_MAX {
        // Without a thread the closure is dropped, and the place with it.
        let _ = host::spawn_thread("ringkv-sync", move || {
            let _place = place;
            work();
        });
    }
}
