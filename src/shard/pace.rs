//! The pace of a core's writes: a token bucket whose rate the engine gives, and a line of those who wait for it, first come first served.
//!
//! While flushes and merges keep up there is no rate and nobody waits. Else a write is carried out in its connection's turn as long as
//! there is credit and nobody waits; the others take their place in the line, in the order in which they came, and the shard lets them in
//! as credit comes back, some each millisecond. A large write goes in with whatever credit there is, and those behind it wait for the rest.
//!
//! Under a load that merges cannot keep up with, nearly every write waits, so waiting must cost little: what needs nothing but its turn
//! lies in the line as its request's bytes (`Later`), with its key locked, and is carried out from there; no task waits for it.

use super::Ticket;
use super::admit::Kept;
use super::locks::KeyGuard;
use crate::base::record::Token;
use crate::base::time::Mono;
use crate::engine::Engine;
use crate::io::Io;
use crate::io::signal::Signal;
use crate::wire::native::Form;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::Duration;

/// How often those who wait are looked at, and how old a rate may be.
const TURN: Duration = Duration::from_millis(1);
/// Credit of so long may be saved up.
const SAVED: Duration = Duration::from_millis(4);
/// Bytes a second that are let in from the line where the engine takes all: what has gathered there is not to come in one burst.
const RATE_MAX: f64 = 256e6;
/// The whole line is looked through for passed deadlines no more often.
const LATE_EVERY: Duration = Duration::from_millis(50);
/// Writes that are let in without a pause for others.
const AT_ONCE: usize = 256;
/// What a cell takes beside its key and value, about.
const CELL_BYTES: usize = 64;

/// Who waits, and how much may go in.
#[derive(Default)]
pub struct Pace {
    bucket: Cell<Bucket>,
    line: RefCell<VecDeque<Waits>>,
    /// No request in the line has an earlier deadline; `look_late` finds out whether one has it still, and when it did so last.
    earliest: Cell<Mono>,
    looked_late: Cell<Mono>,
    /// Somebody has joined the line.
    joined: Signal,
    waited: Cell<u64>,
    /// Nobody waits any more.
    is_over: Cell<bool>,
}

#[derive(Clone, Copy, Default)]
struct Bucket {
    /// Bytes that may go in; less than nothing after a large write.
    credit: f64,
    /// Bytes a second; none: as many as come.
    rate: Option<f64>,
    /// No write may go in, whatever it has.
    is_shut: bool,
    looked: Mono,
}

/// Who stands in the line.
enum Waits {
    /// A task that waits for it.
    Task(Rc<Place>),
    Write(Later),
    /// Nobody any more.
    Gone,
}

/// A write that waits for nothing but its turn, to be carried out in memory.
pub struct Later {
    pub ticket: Ticket,
    pub form: Form,
    pub body: Vec<u8>,
    /// Of its key.
    pub token: Token,
    pub deadline: Mono,
    /// As `cost` says.
    pub bytes: usize,
    pub kept: Option<Kept>,
    /// Nothing that waits for the key's lock comes before it.
    pub guard: KeyGuard,
}

#[derive(Default)]
struct Place {
    bytes: usize,
    is_let_in: Cell<bool>,
    is_gone: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

/// What a write of `cells` cells in a request of `body_bytes` counts for.
pub fn cost(body_bytes: usize, cells: usize) -> usize {
    body_bytes + cells * CELL_BYTES
}

impl Pace {
    /// A write of `bytes` may be carried out now, before anything else is: nobody waits, and there is credit, which it takes.
    pub fn try_take(&self, bytes: usize, now: Mono, engine: &Engine) -> bool {
        if self.is_over.get() {
            return true;
        }
        if !self.line.borrow().is_empty() {
            return false;
        }
        if now.since(self.bucket.get().looked) >= TURN {
            self.look(now, engine);
        }
        self.take(bytes)
    }

    fn take(&self, bytes: usize) -> bool {
        let bucket = self.bucket.get();
        let Some(_) = bucket.rate else { return !bucket.is_shut };
        let fits = bucket.credit > 0.0 && !bucket.is_shut;
        if fits {
            self.bucket.set(Bucket { credit: bucket.credit - bytes as f64, ..bucket });
        }
        fits
    }

    fn look(&self, now: Mono, engine: &Engine) {
        if !self.is_over.get() {
            self.refill(now, engine.write_rate(), engine.is_behind());
        }
    }

    /// Time has passed, and the rate is another.
    fn refill(&self, now: Mono, rate: Option<f64>, is_shut: bool) {
        let bucket = self.bucket.get();
        let gained = bucket.rate.unwrap_or(0.0) * now.since(bucket.looked).as_secs_f64();
        let credit = rate.map_or(0.0, |rate| (bucket.credit + gained).min(rate * SAVED.as_secs_f64()));
        self.bucket.set(Bucket { credit, rate, is_shut, looked: now });
    }

    /// Takes a place in the line for a write of `bytes`, or its turn at once where nobody waits and there is credit.
    pub fn join(&self, bytes: usize, now: Mono, engine: &Engine) -> Turn {
        if self.try_take(bytes, now, engine) { Turn::at_once() } else { self.stand(bytes) }
    }

    fn stand(&self, bytes: usize) -> Turn {
        let place = Rc::new(Place { bytes, ..Place::default() });
        self.push(Waits::Task(place.clone()));
        Turn { place }
    }

    fn push(&self, waits: Waits) {
        self.line.borrow_mut().push_back(waits);
        self.waited.set(self.waited.get() + 1);
        self.joined.raise();
    }

    /// A write takes its place at the end of the line.
    pub fn defer(&self, later: Later) {
        if self.line.borrow().is_empty() || later.deadline < self.earliest.get() {
            self.earliest.set(later.deadline);
        }
        self.push(Waits::Write(later));
    }

    /// Lets in some of those whose turn has come; `carry_out` gets what waited in the line itself. False: there is nobody more.
    fn let_in(&self, carry_out: &mut impl FnMut(Later)) -> bool {
        for _ in 0..AT_ONCE {
            match self.first() {
                None => return false,
                Some(Waits::Task(place)) => {
                    place.is_let_in.set(true);
                    place.waker.take().into_iter().for_each(Waker::wake);
                }
                Some(Waits::Write(later)) => carry_out(later),
                Some(Waits::Gone) => {}
            }
        }
        true
    }

    /// Takes the first out of the line, where there is credit for it.
    fn first(&self) -> Option<Waits> {
        let mut line = self.line.borrow_mut();
        let now = self.bucket.get().looked;
        let bytes = match line.front()? {
            Waits::Task(place) if place.is_gone.get() => return line.pop_front(),
            Waits::Task(place) => place.bytes,
            Waits::Write(later) if later.deadline <= now => return line.pop_front(),
            Waits::Write(later) => later.bytes,
            Waits::Gone => return line.pop_front(),
        };
        if self.take(bytes) { line.pop_front() } else { None }
    }

    /// Takes those out of the line whose deadline has passed, some at a time; false: there may be more. The whole line is gone through only
    /// once the earliest deadline has passed, and once in a while; who is first leaves it at once in any case.
    fn look_late(&self, now: Mono, carry_out: &mut impl FnMut(Later)) -> bool {
        if now < self.earliest.get() || now.since(self.looked_late.get()) < LATE_EVERY && self.looked_late.get() != Mono::default() {
            return true;
        }
        let (mut late, mut earliest, mut all) = (Vec::new(), Mono(u64::MAX), true);
        self.line.borrow_mut().retain_mut(|waits| {
            let Waits::Write(later) = waits else { return true };
            if later.deadline > now || late.len() == AT_ONCE {
                all &= later.deadline > now;
                earliest = earliest.min(later.deadline);
                return true;
            }
            if let Waits::Write(later) = std::mem::replace(waits, Waits::Gone) {
                late.push(later);
            }
            false
        });
        self.earliest.set(earliest);
        self.looked_late.set(if all { now } else { Mono::default() });
        late.into_iter().for_each(carry_out);
        all
    }

    /// Lets those who wait in, at the engine's pace, until it is `over`; then all that still wait. `carry_out` gets a write in its turn, or
    /// once its deadline has passed; `turn_is_over` is called when some were given.
    pub async fn run(self: Rc<Pace>, io: Io, engine: Engine, mut carry_out: impl FnMut(Later), turn_is_over: impl Fn()) {
        while !self.is_over.get() {
            self.joined.until(|| self.is_over.get() || !self.line.borrow().is_empty()).await;
            let now = io.now();
            let rate = engine.write_rate().unwrap_or(RATE_MAX).min(RATE_MAX);
            if !self.is_over.get() {
                self.refill(now, Some(rate), engine.is_behind());
                while !self.look_late(now, &mut carry_out) | self.let_in(&mut carry_out) {
                    turn_is_over();
                    io.yield_now().await;
                }
                turn_is_over();
                io.sleep(TURN).await;
            }
        }
        while self.let_in(&mut carry_out) {
            turn_is_over();
            io.yield_now().await;
        }
        turn_is_over();
    }

    /// All go in, now and from now on: the shard closes.
    pub fn over(&self) {
        self.is_over.set(true);
        self.bucket.set(Bucket::default());
        self.joined.raise();
    }

    /// Bytes a second at which writes go in now; 0: as they come.
    pub fn rate(&self) -> u64 {
        self.bucket.get().rate.unwrap_or(0.0) as u64
    }

    /// How many writes have waited, and how many wait.
    pub fn waited(&self) -> (u64, usize) {
        (self.waited.get(), self.line.borrow().len())
    }
}

/// A place in the line; dropped, it is given up.
pub struct Turn {
    place: Rc<Place>,
}

impl Turn {
    fn at_once() -> Turn {
        Turn { place: Rc::new(Place { is_let_in: Cell::new(true), ..Place::default() }) }
    }

    /// Waits until the write may go in.
    pub async fn come(&self) {
        poll_fn(|context| {
            if self.place.is_let_in.get() {
                return Poll::Ready(());
            }
            *self.place.waker.borrow_mut() = Some(context.waker().clone());
            Poll::Pending
        })
        .await;
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.place.is_gone.set(true);
        drop(self.place.waker.take());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shard::Origin;
    use crate::shard::locks::KeyLocks;
    use std::pin::pin;
    use std::task::Context;

    fn at(ms: u64) -> Mono {
        Mono(1).plus(Duration::from_millis(ms))
    }

    #[test]
    fn writes_go_in_at_the_rate_in_the_order_of_coming() {
        let pace = Rc::new(Pace::default());
        pace.refill(at(0), None, false);
        assert!((0..1000).all(|_| pace.take(1 << 20)), "no rate");
        pace.refill(at(1), Some(1e6), false);
        assert!(!pace.take(1), "what was not needed before is no credit");
        pace.refill(at(2), Some(1e6), false);
        assert!(pace.take(100_000), "a large one goes in");
        let turns: Vec<Turn> = (0..4).map(|_| pace.stand(1000)).collect();
        let come = |upto_ms| {
            pace.refill(at(upto_ms), Some(1e6), false);
            pace.let_in(&mut |_| {});
            turns.iter().take_while(|turn| turn.place.is_let_in.get()).count()
        };
        assert_eq!(come(100), 0, "those behind it wait for the rest");
        assert_eq!(come(102), 1);
        assert_eq!(come(103), 2);
        pace.refill(at(200), Some(1e6), true);
        pace.let_in(&mut |_| {});
        assert_eq!(pace.waited(), (4, 2), "shut");
        assert_eq!(come(1000), 4);
        assert!(pace.take(4000) && !pace.take(1), "little is saved up");
    }

    #[test]
    fn writes_wait_in_the_line_itself_until_their_turn_or_their_deadline() {
        let (pace, locks) = (Rc::new(Pace::default()), KeyLocks::new(1));
        let later = |token: Token, deadline: Mono| Later {
            ticket: Ticket { origin: Origin::Nobody, id: token },
            form: Form { kind: 0, flags: 0 },
            body: Vec::new(),
            token,
            deadline,
            bytes: 1000,
            kept: None,
            guard: locks.try_lock(token).expect("free"),
        };
        pace.refill(at(0), Some(1e6), false);
        for (token, deadline_ms) in [(1, 50), (2, 5_000), (3, 20), (4, 6_000)] {
            pace.defer(later(token, at(deadline_ms)));
        }
        let turn = pace.stand(1000);
        let given = |ms: u64| {
            let mut given = Vec::new();
            pace.refill(at(ms), Some(1e6), false);
            assert!(pace.look_late(at(ms), &mut |later| given.push(later.token)), "few");
            assert!(!pace.let_in(&mut |later| given.push(later.token)), "nobody more");
            given
        };
        assert_eq!(given(1), [1]);
        assert!(!locks.is_held(1) && locks.is_held(2), "a write in the line holds its key");
        assert_eq!(given(21), [3, 2, 4], "one whose deadline has passed first, then the others in their order");
        assert!(turn.place.is_let_in.get() && locks.is_empty());
        // Of many whose deadlines pass only some are told at once, and the line is not gone through each time.
        pace.refill(at(100), Some(1.0), false);
        pace.bucket.set(Bucket { credit: -1.0, ..pace.bucket.get() });
        let count = 3 * AT_ONCE as u64;
        pace.defer(later(9_999, at(900_000)));
        (0..count).for_each(|token| pace.defer(later(token, at(200 + token / 4))));
        let told = |ms| {
            let mut told = 0;
            (pace.look_late(at(ms), &mut |_| told += 1), told)
        };
        assert_eq!((told(199), told(200)), ((true, 0), (true, 4)));
        assert_eq!((told(201), told(249)), ((true, 0), (true, 0)), "not yet again");
        assert_eq!(told(250), (true, 4 * 50));
        assert_eq!((told(900), told(900)), ((false, AT_ONCE), (false, AT_ONCE)));
        assert_eq!(told(900), (true, count as usize - 4 - 200 - 2 * AT_ONCE));
    }

    #[test]
    fn who_gives_up_costs_nothing_and_at_the_end_all_go_in() {
        let pace = Rc::new(Pace::default());
        let context = &mut Context::from_waker(Waker::noop());
        pace.refill(at(0), Some(1e6), false);
        drop(pace.stand(1 << 30));
        let next = pace.stand(10);
        let mut coming = pin!(next.come());
        assert!(coming.as_mut().poll(context).is_pending());
        pace.refill(at(1), Some(1e6), false);
        pace.let_in(&mut |_| {});
        assert!(coming.as_mut().poll(context).is_ready());
        let (_late, last) = (pace.stand(1 << 30), pace.stand(10));
        pace.let_in(&mut |_| {});
        let mut coming = pin!(last.come());
        assert!(coming.as_mut().poll(context).is_pending());
        pace.over();
        pace.let_in(&mut |_| {});
        assert!(coming.as_mut().poll(context).is_ready());
    }
}
