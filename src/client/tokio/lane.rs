//! One core's connection, shared by everybody who calls: callers put their frames straight into the protocol core's output under a short
//! lock and wait for their own answer; one task sends what has gathered, another takes answers in.
//!
//! What is in flight is bounded in number and in bytes by two semaphores; a place is given back when the request is over, not when its
//! caller stops waiting. No lock is held across an await.

use super::Clock;
use crate::base::map::{Map, Seeded};
use crate::base::record::NamespaceId;
use crate::base::time::Mono;
use crate::client::answer::{Answer, ClientError, ServerInfo};
use crate::client::core::{Core, Event, NEWS};
use crate::client::request::{IN_FLIGHT_MAX, Outcome, READ_BYTES, UNEXPECTED};
use crate::limits::CONNECTION_BYTES_MAX;
use crate::wire::command::Command;
use ::tokio::net::TcpStream;
use ::tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, oneshot};
use ::tokio::task::{AbortHandle, coop::consume_budget};
use ::tokio::time::timeout_at;
use std::future::poll_fn;
use std::io::ErrorKind;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::Duration;

/// What one write to the socket takes at most: the lock is held for as long.
const WRITE_BYTES: usize = 256 * 1024;
/// Bytes of requests in flight: what a server takes in from one connection.
const BYTES_IN_FLIGHT_MAX: usize = CONNECTION_BYTES_MAX;

const _: () = assert!(BYTES_IN_FLIGHT_MAX <= u32::MAX as usize && BYTES_IN_FLIGHT_MAX <= Semaphore::MAX_PERMITS);

/// The place of one core's connection.
pub(super) struct Lane {
    state: Mutex<State>,
    /// There is output, or the connection is over.
    wake: Notify,
    slots: Arc<Semaphore>,
    bytes: Arc<Semaphore>,
    /// Held by the caller who connects; the others wait behind.
    pub(super) connecting: ::tokio::sync::Mutex<Attempts>,
    /// Of what connects beside.
    beside: Mutex<Beside>,
}

/// Connects that failed in a row.
#[derive(Default)]
pub(super) struct Attempts {
    pub(super) failures: u32,
    pub(super) not_before: Mono,
}

#[derive(Default)]
struct Beside {
    is_running: bool,
    attempts: Attempts,
}

/// How a lane stands.
pub(super) enum Look {
    Connected,
    /// The server said this unasked.
    News(Box<ServerInfo>),
    Empty,
}

/// A connect beside; over when it is dropped.
pub(super) struct Dial(Arc<Lane>);

impl Dial {
    pub(super) fn succeeded(self) {
        self.0.beside().attempts = Attempts::default();
    }

    /// `until`: when to try again after so many failures.
    pub(super) fn failed(self, until: impl FnOnce(u32) -> Mono) {
        let attempts = &mut self.0.beside().attempts;
        attempts.failures += 1;
        attempts.not_before = until(attempts.failures);
    }
}

impl Drop for Dial {
    fn drop(&mut self) {
        self.0.beside().is_running = false;
    }
}

struct State {
    /// While there is a connection.
    core: Option<Core>,
    /// Counts connections: a task of one that is over can do nothing to the next.
    generation: u64,
    waiters: Waiters,
    last_received: Mono,
    /// The server has other cores now: nothing new is sent, and the connection ends with its last answer.
    retired: bool,
}

/// Who waits on a connection, and what its server said unasked.
struct Waiters {
    by_id: Map<u64, Waiter>,
    news: Option<Box<ServerInfo>>,
}

struct Waiter {
    outcome: Option<Outcome>,
    tell: oneshot::Sender<Outcome>,
    _room: Room,
}

/// A request's place among those in flight.
pub(super) struct Room {
    _slot: OwnedSemaphorePermit,
    _bytes: OwnedSemaphorePermit,
}

/// What the sending task waits for.
enum Next {
    /// More output.
    Output(Option<Mono>),
    /// The socket to take more.
    Socket(Option<Mono>),
    /// Nothing: there is more to send.
    Now,
    /// The connection is over.
    Over,
}

impl Lane {
    pub(super) fn new() -> Arc<Lane> {
        let waiters = Waiters { by_id: Map::with_hasher(Seeded(0)), news: None };
        Arc::new(Lane {
            state: Mutex::new(State { core: None, generation: 0, waiters, last_received: Mono(0), retired: false }),
            wake: Notify::new(),
            slots: Arc::new(Semaphore::new(IN_FLIGHT_MAX)),
            bytes: Arc::new(Semaphore::new(BYTES_IN_FLIGHT_MAX)),
            connecting: ::tokio::sync::Mutex::default(),
            beside: Mutex::default(),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic under the lock would be one of ours, in a caller: the connection's own bookkeeping stays usable.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn beside(&self) -> MutexGuard<'_, Beside> {
        self.beside.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The right to connect the lane beside, unless somebody does, or its time has not come.
    pub(super) fn begin_dial(self: &Arc<Lane>, now: Mono) -> Option<Dial> {
        let mut beside = self.beside();
        if beside.is_running || beside.attempts.not_before > now {
            return None;
        }
        beside.is_running = true;
        Some(Dial(self.clone()))
    }

    pub(super) fn look(&self) -> Look {
        let mut state = self.state();
        match state.waiters.news.take() {
            Some(news) => Look::News(news),
            None if state.core.is_some() => Look::Connected,
            None => Look::Empty,
        }
    }

    pub(super) fn is_connected(&self) -> bool {
        self.state().core.is_some()
    }

    pub(super) fn is_retired(&self) -> bool {
        self.state().retired
    }

    /// Waits for a place for a request of this many bytes. One that is larger than the bound waits until it is alone.
    pub(super) async fn room(&self, bytes: usize) -> Room {
        let bytes = bytes.min(BYTES_IN_FLIGHT_MAX) as u32;
        let slot = self.slots.clone().acquire_owned().await.expect("never closed");
        Room { _slot: slot, _bytes: self.bytes.clone().acquire_many_owned(bytes).await.expect("never closed") }
    }

    /// Queues a command; who waits for the outcome. `None` where there is no connection any more: nothing was sent.
    pub(super) fn submit(
        &self,
        (now, deadline): (Mono, Mono),
        namespace: NamespaceId,
        command: Command<'_>,
        room: Room,
    ) -> Option<Result<oneshot::Receiver<Outcome>, ClientError>> {
        let mut state = self.state();
        let core = state.core.as_mut()?;
        // Requests that are over leave their bytes behind where the server takes nothing in.
        if core.output().len() > BYTES_IN_FLIGHT_MAX {
            return Some(Err(ClientError::Full));
        }
        let id = match core.submit(now, deadline, namespace, command) {
            Ok(id) => id,
            Err(error) => return Some(Err(error)),
        };
        let (tell, outcome) = oneshot::channel();
        state.waiters.by_id.insert(id, Waiter { outcome: None, tell, _room: room });
        drop(state);
        self.wake.notify_one();
        Some(Ok(outcome))
    }

    /// From now on this connection carries the lane; `core` has said hello over it. `patience`: how long a server may be silent that
    /// owes answers.
    pub(super) fn carry(self: &Arc<Lane>, stream: TcpStream, core: Core, clock: Clock, patience: Duration) {
        let mut state = self.state();
        state.generation += 1;
        state.core = Some(core);
        state.last_received = clock.now();
        let carrier = |lane: &Arc<Lane>, generation| Carrier { lane: lane.clone(), generation };
        let stream = Arc::new(stream);
        let (sender, receiver) = (carrier(self, state.generation), carrier(self, state.generation));
        drop(state);
        let reading = ::tokio::spawn(read(receiver, stream.clone(), clock));
        ::tokio::spawn(write(sender, stream, reading.abort_handle(), clock, patience));
    }

    /// Ends the lane when its last answer is there.
    pub(super) fn retire(&self) {
        self.state().retired = true;
        self.wake.notify_one();
    }

    /// Ends the connection, whichever it is.
    pub(super) fn end(&self, why: &str) {
        let mut state = self.state();
        state.lose(why);
        drop(state);
        self.wake.notify_one();
    }
}

impl State {
    /// Everything in flight is over.
    fn lose(&mut self, why: &str) {
        if let Some(mut core) = self.core.take() {
            self.generation += 1;
            core.disconnect(why, |event| self.waiters.settle(event));
        }
    }
}

impl Waiters {
    /// Takes a part of an answer, or its end, to the one who waits.
    fn settle(&mut self, event: Event<'_>) {
        let Some(waiter) = self.by_id.get_mut(&event.id) else {
            if event.id == NEWS {
                self.hear(event);
            }
            return;
        };
        match event.outcome {
            Ok(reply) => {
                if let Some(part) = Answer::of(&reply) {
                    match &mut waiter.outcome {
                        Some(Ok(all)) => all.extend(part),
                        outcome => *outcome = Some(Ok(part)),
                    }
                }
            }
            Err(error) => waiter.outcome = Some(Err(error)),
        }
        if event.last
            && let Some(waiter) = self.by_id.remove(&event.id)
        {
            // Nobody may be waiting any more.
            let _ = waiter.tell.send(waiter.outcome.unwrap_or(Err(UNEXPECTED)));
        }
    }

    fn hear(&mut self, event: Event<'_>) {
        let answer = event.outcome.ok().and_then(|reply| Answer::of(&reply));
        if let Some(news) = answer.and_then(|answer| ServerInfo::of_hello(answer).ok()) {
            self.news = Some(Box::new(news));
        }
    }
}

/// A task's hold on its connection: when the task ends, however it ends (its runtime may be shut down), the connection is over.
struct Carrier {
    lane: Arc<Lane>,
    generation: u64,
}

impl Drop for Carrier {
    fn drop(&mut self) {
        self.lose("its runtime has ended");
    }
}

impl Carrier {
    /// The state, if this connection is still the lane's.
    fn state(&self) -> Option<MutexGuard<'_, State>> {
        Some(self.lane.state()).filter(|state| state.generation == self.generation && state.core.is_some())
    }

    fn lose(&self, why: &str) {
        if let Some(mut state) = self.state() {
            state.lose(why);
            drop(state);
            self.lane.wake.notify_one();
        }
    }

    /// Takes received bytes in; false when the connection is over.
    fn receive(&self, chunk: &[u8], now: Mono) -> bool {
        let Some(mut guard) = self.state() else { return false };
        let state = &mut *guard;
        state.last_received = now;
        let (core, waiters) = (state.core.as_mut().expect("looked at"), &mut state.waiters);
        let outcome = core.receive(chunk, |event| waiters.settle(event));
        if let Err(error) = &outcome {
            state.lose(&error.to_string());
        }
        let wakes = outcome.is_err() || state.retired;
        drop(guard);
        if wakes {
            self.lane.wake.notify_one();
        }
        outcome.is_ok()
    }

    /// Sends what the socket takes at once.
    fn send(&self, stream: &TcpStream) -> Next {
        let Some(mut state) = self.state() else { return Next::Over };
        let core = state.core.as_mut().expect("looked at");
        let output = core.output();
        if output.is_empty() {
            let (deadline, idle) = (core.next_deadline(), core.in_flight() == 0);
            if state.retired && idle {
                state.lose("the server has other cores now");
                return Next::Over;
            }
            return Next::Output(deadline);
        }
        let why = match stream.try_write(&output[..output.len().min(WRITE_BYTES)]) {
            Ok(0) => "the server closed the connection".to_owned(),
            Ok(bytes) => {
                core.mark_sent(bytes);
                return Next::Now;
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Next::Socket(core.next_deadline()),
            Err(error) => error.to_string(),
        };
        state.lose(&why);
        Next::Over
    }

    /// Gives up what is past its deadline, and a server that owes answers and says nothing at all.
    fn expire(&self, now: Mono, patience: Duration) {
        let Some(mut guard) = self.state() else { return };
        let state = &mut *guard;
        let (core, waiters, mut expired) = (state.core.as_mut().expect("looked at"), &mut state.waiters, false);
        core.expire(now, |event| {
            expired = true;
            waiters.settle(event);
        });
        if expired && now.since(state.last_received) >= patience {
            state.lose("the server is silent");
        }
    }
}

async fn write(carrier: Carrier, stream: Arc<TcpStream>, reading: AbortHandle, clock: Clock, patience: Duration) {
    loop {
        let until = |deadline: Option<Mono>| clock.instant(deadline.unwrap_or_else(|| clock.now().plus(patience)));
        match carrier.send(&stream) {
            Next::Now => consume_budget().await,
            // A deadline over is looked at below, and so is an error of the socket when it is written to.
            Next::Output(deadline) => drop(timeout_at(until(deadline), carrier.lane.wake.notified()).await),
            // New output cannot be sent yet, but its deadline may be the next one.
            Next::Socket(deadline) => drop(timeout_at(until(deadline), first(stream.writable(), carrier.lane.wake.notified())).await),
            Next::Over => break,
        }
        carrier.expire(clock.now(), patience);
    }
    // The other task holds the socket too.
    reading.abort();
}

/// Waits for either.
async fn first(one: impl Future, other: impl Future) {
    let (mut one, mut other) = (pin!(one), pin!(other));
    poll_fn(|context| match (one.as_mut().poll(context), other.as_mut().poll(context)) {
        (Poll::Pending, Poll::Pending) => Poll::Pending,
        _ => Poll::Ready(()),
    })
    .await;
}

async fn read(carrier: Carrier, stream: Arc<TcpStream>, clock: Clock) {
    let mut buffer = vec![0; READ_BYTES];
    let why = loop {
        if let Err(error) = stream.readable().await {
            break error.to_string();
        }
        match stream.try_read(&mut buffer) {
            Ok(0) => break "the server closed the connection".to_owned(),
            Ok(bytes) if carrier.receive(&buffer[..bytes], clock.now()) => {}
            Ok(_) => return,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => break error.to_string(),
        }
        consume_budget().await;
    };
    carrier.lose(&why);
}
