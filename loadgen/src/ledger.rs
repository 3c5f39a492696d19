//! What check mode knows: for every key, which writes were issued, and which of them a get may still show.
//!
//! A key's writes are numbered from 1 as they are issued. Writes of one key may overlap; the server may then apply them in any order.
//! A write that was issued after another one was acknowledged wins over it. So each write remembers at its issue the **quiet** number:
//! all writes up to it were over by then. When it is acknowledged, every write up to that number is superseded, and the key's **floor**,
//! the oldest write that a get may show, rises above it. Without overlap this is exact: only the last acknowledged write, or one in
//! flight, may be seen. A key that never falls quiet is given no further writes for a while (`begin_write` gives None).
//!
//! A get remembers the floor at its issue. Its answer must be a write at or above it that was issued by the time of the answer; it may be
//! absent only if a delete at or above the floor was issued, if that write may have expired, or if nothing was ever acknowledged. What
//! came from another run may be seen until the first acknowledged write. A write whose outcome is unknown may show up at any later time.
//! Threads share the ledger: a stripe of keys a lock, and every rule above is about real time, whoever issued the request.

use crate::value::Stamp;
use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

/// Locks; keys go to them round robin.
const STRIPES: usize = 1024;
/// So many writes of one key may follow each other without the key falling quiet.
const OVERLAP_MAX: u32 = 64;
/// So many writes of unknown outcome a stripe remembers; the keys of further ones are not checked any more.
const UNKNOWN_MAX: usize = 1024;

/// What is known of one key. Times are milliseconds of the ledger's clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct KeyState {
    /// Number of the last write issued.
    pub issued: u32,
    /// The oldest write that may be seen; 0 while none was acknowledged.
    pub floor: u32,
    /// All writes up to this one were over at `quiet_ms`.
    pub quiet: u32,
    pub quiet_ms: u32,
    /// Number of the last delete issued.
    pub last_del: u32,
    /// No write at or above the floor was issued before this.
    pub floor_ms: u32,
    /// When the writes in flight began to overlap.
    pub busy_ms: u32,
    pub inflight: u16,
    /// Too much is unknown of this key.
    pub unchecked: u16,
}

/// A write of unknown outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Unknown {
    pub seq: u32,
    pub delete: bool,
}

#[derive(Default)]
pub(crate) struct Stripe {
    pub states: Vec<KeyState>,
    pub unknown: HashMap<u64, Vec<Unknown>>,
    unknown_count: usize,
}

/// A write in flight, as its issuer keeps it.
#[derive(Clone, Copy, Debug, Default)]
pub struct WriteTicket {
    pub seq: u32,
    prefix: u32,
    busy_ms: u32,
    delete: bool,
}

/// A get in flight.
#[derive(Clone, Copy, Debug, Default)]
pub struct ReadTicket {
    floor: u32,
    /// Writes up to this one must have expired when the get was issued.
    gone: u32,
}

/// How a write ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteEnd {
    Acknowledged,
    /// Surely not applied.
    Failed,
    /// Applied, or not, or later.
    Unknown,
}

/// What a get's answer was worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Right,
    /// Not tracked, or too much is unknown.
    Unchecked,
    /// Something that was never written, or must not be there any more.
    Wrong(&'static str),
    /// An acknowledged write is not there.
    Lost(&'static str),
}

/// All keys' states.
pub struct Ledger {
    pub(crate) run: u32,
    pub(crate) tracked: u64,
    pub(crate) ttl_ms: u32,
    /// How far a server may miss a deadline, either way.
    pub slack_ms: u32,
    pub(crate) stripes: Vec<Mutex<Stripe>>,
    pub(crate) base_wall_ms: u64,
    started: Instant,
    offset_ms: u64,
}

/// Milliseconds since 1970.
pub(crate) fn wall_ms() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO).as_millis() as u64
}

impl Ledger {
    /// Of the keys below `tracked`, for writes that live `ttl_ms` (0: for ever), on a server that holds deadlines to 5 ms.
    pub fn new(run: u32, tracked: u64, ttl_ms: u32) -> Ledger {
        let stripes = (0..STRIPES as u64)
            .map(|stripe| {
                let len = (tracked + STRIPES as u64 - 1 - stripe) / STRIPES as u64;
                Mutex::new(Stripe { states: vec![KeyState::default(); len as usize], ..Stripe::default() })
            })
            .collect();
        Ledger { run, tracked, ttl_ms, slack_ms: 5, stripes, base_wall_ms: wall_ms(), started: Instant::now(), offset_ms: 0 }
    }

    /// The ledger's clock was started at `base_wall_ms` (an earlier process of the same run).
    pub(crate) fn rebase(&mut self, base_wall_ms: u64) {
        self.offset_ms = wall_ms().saturating_sub(base_wall_ms);
        self.base_wall_ms = base_wall_ms;
        self.started = Instant::now();
    }

    /// The ledger's clock.
    pub fn now_ms(&self) -> u32 {
        (self.offset_ms + self.started.elapsed().as_millis() as u64) as u32
    }

    pub fn run(&self) -> u32 {
        self.run
    }

    pub fn is_tracked(&self, key: u64) -> bool {
        key < self.tracked
    }

    fn stripe(&self, key: u64) -> (MutexGuard<'_, Stripe>, usize) {
        let stripe = self.stripes[(key % STRIPES as u64) as usize].lock().unwrap_or_else(PoisonError::into_inner);
        (stripe, (key / STRIPES as u64) as usize)
    }

    /// Call right before a write is handed to its connection. None: this key must fall quiet first, take another.
    pub fn begin_write(&self, key: u64, delete: bool, now_ms: u32) -> Option<WriteTicket> {
        if !self.is_tracked(key) {
            return Some(WriteTicket::default());
        }
        let (mut stripe, at) = self.stripe(key);
        let state = &mut stripe.states[at];
        if state.issued - state.quiet >= OVERLAP_MAX || state.issued == u32::MAX {
            return None;
        }
        if state.inflight == 0 {
            state.busy_ms = now_ms;
        }
        let ticket = WriteTicket { seq: state.issued + 1, prefix: state.quiet, busy_ms: state.busy_ms, delete };
        state.issued += 1;
        state.inflight += 1;
        if delete {
            state.last_del = ticket.seq;
        }
        Some(ticket)
    }

    /// Call when the answer to a write is there, or will never be.
    pub fn end_write(&self, key: u64, ticket: WriteTicket, end: WriteEnd, now_ms: u32) {
        if !self.is_tracked(key) {
            return;
        }
        let (mut guard, at) = self.stripe(key);
        let stripe = &mut *guard;
        let state = &mut stripe.states[at];
        assert!(state.inflight > 0, "key {key}: a write ended that was not in flight");
        state.inflight -= 1;
        match end {
            WriteEnd::Acknowledged if ticket.prefix + 1 > state.floor => {
                state.floor = ticket.prefix + 1;
                state.floor_ms = ticket.busy_ms;
            }
            WriteEnd::Unknown if stripe.unknown_count >= UNKNOWN_MAX => state.unchecked = 1,
            WriteEnd::Unknown => {
                stripe.unknown.entry(key).or_default().push(Unknown { seq: ticket.seq, delete: ticket.delete });
                stripe.unknown_count += 1;
            }
            WriteEnd::Acknowledged | WriteEnd::Failed => {}
        }
        if state.inflight == 0 {
            state.quiet = state.issued;
            state.quiet_ms = now_ms;
        }
    }

    /// Call right before a get is handed to its connection.
    pub fn begin_read(&self, key: u64, now_ms: u32) -> ReadTicket {
        if !self.is_tracked(key) {
            return ReadTicket::default();
        }
        let (stripe, at) = self.stripe(key);
        let state = &stripe.states[at];
        let over = self.ttl_ms != 0 && now_ms > state.quiet_ms.saturating_add(self.ttl_ms).saturating_add(self.slack_ms);
        ReadTicket { floor: state.floor, gone: if over { state.quiet } else { 0 } }
    }

    /// Judges the answer to a get: None is absent, Some what the value says of itself.
    pub fn judge(&self, key: u64, ticket: ReadTicket, answer: Option<Result<Stamp, &'static str>>, now_ms: u32) -> Verdict {
        let stamp = match answer {
            Some(Err(reason)) => return Verdict::Wrong(reason),
            Some(Ok(stamp)) if stamp.key != key => return Verdict::Wrong("a value of another key"),
            Some(Ok(stamp)) => Some(stamp),
            None => None,
        };
        if !self.is_tracked(key) {
            return Verdict::Unchecked;
        }
        let (stripe, at) = self.stripe(key);
        let state = &stripe.states[at];
        if state.unchecked != 0 {
            return Verdict::Unchecked;
        }
        let unknown = stripe.unknown.get(&key).map_or(&[][..], Vec::as_slice);
        match stamp {
            None => self.judge_absent(state, unknown, ticket, now_ms),
            Some(stamp) => self.judge_value(state, unknown, ticket, stamp),
        }
    }

    fn judge_absent(&self, state: &KeyState, unknown: &[Unknown], ticket: ReadTicket, now_ms: u32) -> Verdict {
        let expired = self.ttl_ms != 0
            && (now_ms.saturating_add(self.slack_ms) >= state.floor_ms.saturating_add(self.ttl_ms)
                || !unknown.is_empty()
                || state.floor > ticket.floor);
        let deleted = state.last_del >= ticket.floor || unknown.iter().any(|write| write.delete);
        if ticket.floor == 0 || expired || deleted { Verdict::Right } else { Verdict::Lost("an acknowledged value is absent") }
    }

    fn judge_value(&self, state: &KeyState, unknown: &[Unknown], ticket: ReadTicket, stamp: Stamp) -> Verdict {
        if stamp.run != self.run {
            return if ticket.floor == 0 { Verdict::Right } else { Verdict::Lost("a value of an earlier run is back") };
        }
        if stamp.seq == 0 || stamp.seq > state.issued {
            return Verdict::Wrong("a write that was never issued");
        }
        if unknown.iter().any(|write| write.seq == stamp.seq) {
            return Verdict::Right;
        }
        if stamp.seq < ticket.floor {
            return Verdict::Lost("an older value is back");
        }
        if stamp.seq <= ticket.gone { Verdict::Wrong("a value past its deadline") } else { Verdict::Right }
    }

    /// Puts back what a journal says of a key.
    pub(crate) fn restore_state(&self, key: u64, state: KeyState) {
        let (mut stripe, at) = self.stripe(key);
        stripe.states[at] = state;
    }

    /// Puts back a write of unknown outcome.
    pub(crate) fn restore_unknown(&self, key: u64, write: Unknown) {
        let (mut stripe, _) = self.stripe(key);
        stripe.unknown.entry(key).or_default().push(write);
        stripe.unknown_count += 1;
    }

    /// The server that took them is dead: writes of unknown outcome are in by now, or never will be. The next acknowledged write of their
    /// key supersedes them like any other.
    pub(crate) fn settle(&self) {
        for (number, stripe) in self.stripes.iter().enumerate() {
            let mut guard = stripe.lock().unwrap_or_else(PoisonError::into_inner);
            let stripe = &mut *guard;
            for (key, write) in stripe.unknown.drain().flat_map(|(key, writes)| writes.into_iter().map(move |write| (key, write))) {
                debug_assert_eq!(key % STRIPES as u64, number as u64);
                let state = &mut stripe.states[(key / STRIPES as u64) as usize];
                // It may have been applied after writes that were issued after it.
                state.floor = state.floor.min(write.seq);
            }
            stripe.unknown_count = 0;
        }
    }

    /// Whether a write of this key was ever issued.
    pub fn was_written(&self, key: u64) -> bool {
        self.is_tracked(key) && {
            let (stripe, at) = self.stripe(key);
            stripe.states[at].issued > 0
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stamp(seq: u32) -> Option<Result<Stamp, &'static str>> {
        Some(Ok(Stamp { run: 1, key: 7, seq, writer: 0 }))
    }

    fn write(ledger: &Ledger, delete: bool, now_ms: u32) -> u32 {
        let ticket = ledger.begin_write(7, delete, now_ms).unwrap();
        ledger.end_write(7, ticket, WriteEnd::Acknowledged, now_ms);
        ticket.seq
    }

    #[test]
    fn only_the_last_acknowledged_write_may_be_seen() {
        let ledger = Ledger::new(1, 100, 0);
        assert_eq!(ledger.judge(7, ledger.begin_read(7, 0), None, 0), Verdict::Right, "nothing was acknowledged");
        for _ in 0..3 {
            write(&ledger, false, 0);
        }
        let read = ledger.begin_read(7, 0);
        assert_eq!(ledger.judge(7, read, stamp(3), 0), Verdict::Right);
        assert!(matches!(ledger.judge(7, read, stamp(2), 0), Verdict::Lost(_)), "stale");
        assert!(matches!(ledger.judge(7, read, None, 0), Verdict::Lost(_)), "absent");
        assert!(matches!(ledger.judge(7, read, stamp(4), 0), Verdict::Wrong(_)), "never issued");
        assert!(matches!(ledger.judge(7, read, Some(Err("rot")), 0), Verdict::Wrong(_)));
        let other = Some(Ok(Stamp { run: 1, key: 8, seq: 3, writer: 0 }));
        assert!(matches!(ledger.judge(7, read, other, 0), Verdict::Wrong(_)), "another key's value");
        let foreign = Some(Ok(Stamp { run: 2, key: 7, seq: 9, writer: 0 }));
        assert!(matches!(ledger.judge(7, read, foreign, 0), Verdict::Lost(_)), "an earlier run's value");
    }

    #[test]
    fn a_write_in_flight_may_be_seen_or_not() {
        let ledger = Ledger::new(1, 100, 0);
        write(&ledger, false, 0);
        let read = ledger.begin_read(7, 0);
        let ticket = ledger.begin_write(7, false, 0).unwrap();
        assert_eq!(ledger.judge(7, read, stamp(1), 0), Verdict::Right);
        assert_eq!(ledger.judge(7, read, stamp(2), 0), Verdict::Right);
        ledger.end_write(7, ticket, WriteEnd::Acknowledged, 0);
        assert_eq!(ledger.judge(7, read, stamp(1), 0), Verdict::Right, "the get was issued before the acknowledgement");
        assert!(matches!(ledger.judge(7, ledger.begin_read(7, 0), stamp(1), 0), Verdict::Lost(_)));
    }

    #[test]
    fn overlapping_writes_may_end_in_any_order_and_a_later_one_wins() {
        let ledger = Ledger::new(1, 100, 0);
        let first = ledger.begin_write(7, false, 0).unwrap();
        let second = ledger.begin_write(7, false, 0).unwrap();
        ledger.end_write(7, second, WriteEnd::Acknowledged, 0);
        ledger.end_write(7, first, WriteEnd::Acknowledged, 0);
        let read = ledger.begin_read(7, 0);
        assert_eq!(ledger.judge(7, read, stamp(1), 0), Verdict::Right);
        assert_eq!(ledger.judge(7, read, stamp(2), 0), Verdict::Right);
        assert!(matches!(ledger.judge(7, read, None, 0), Verdict::Lost(_)));
        write(&ledger, false, 0);
        let read = ledger.begin_read(7, 0);
        assert!(matches!(ledger.judge(7, read, stamp(2), 0), Verdict::Lost(_)));
        assert_eq!(ledger.judge(7, read, stamp(3), 0), Verdict::Right);
    }

    #[test]
    fn a_key_that_never_falls_quiet_is_held_back() {
        let ledger = Ledger::new(1, 100, 0);
        let tickets: Vec<_> = (0..OVERLAP_MAX).map(|_| ledger.begin_write(7, false, 0).unwrap()).collect();
        assert!(ledger.begin_write(7, false, 0).is_none());
        tickets.into_iter().for_each(|ticket| ledger.end_write(7, ticket, WriteEnd::Acknowledged, 0));
        assert!(ledger.begin_write(7, false, 0).is_some());
    }

    #[test]
    fn absent_is_right_only_after_a_delete_and_a_deleted_value_must_not_return() {
        let ledger = Ledger::new(1, 100, 0);
        write(&ledger, false, 0);
        write(&ledger, true, 0);
        let read = ledger.begin_read(7, 0);
        assert_eq!(ledger.judge(7, read, None, 0), Verdict::Right);
        assert!(matches!(ledger.judge(7, read, stamp(1), 0), Verdict::Lost(_)));
        write(&ledger, false, 0);
        assert!(matches!(ledger.judge(7, ledger.begin_read(7, 0), None, 0), Verdict::Lost(_)));
    }

    #[test]
    fn a_write_of_unknown_outcome_may_show_up_later() {
        let ledger = Ledger::new(1, 100, 0);
        write(&ledger, false, 0);
        let put = ledger.begin_write(7, false, 0).unwrap();
        ledger.end_write(7, put, WriteEnd::Unknown, 0);
        let read = ledger.begin_read(7, 0);
        assert_eq!(ledger.judge(7, read, stamp(1), 0), Verdict::Right);
        write(&ledger, false, 0);
        let read = ledger.begin_read(7, 0);
        assert_eq!(ledger.judge(7, read, stamp(2), 0), Verdict::Right);
        assert!(matches!(ledger.judge(7, read, stamp(1), 0), Verdict::Lost(_)));
        assert!(matches!(ledger.judge(7, read, None, 0), Verdict::Lost(_)));
        let delete = ledger.begin_write(7, true, 0).unwrap();
        ledger.end_write(7, delete, WriteEnd::Unknown, 0);
        write(&ledger, false, 0);
        assert_eq!(ledger.judge(7, ledger.begin_read(7, 0), None, 0), Verdict::Right);
    }

    #[test]
    fn after_a_crash_an_unknown_write_is_in_or_never_will_be() {
        let ledger = Ledger::new(1, 100, 0);
        write(&ledger, false, 0);
        let delete = ledger.begin_write(7, true, 0).unwrap();
        ledger.end_write(7, delete, WriteEnd::Unknown, 0);
        write(&ledger, false, 0);
        ledger.settle();
        let read = ledger.begin_read(7, 0);
        assert_eq!((ledger.judge(7, read, None, 0), ledger.judge(7, read, stamp(3), 0)), (Verdict::Right, Verdict::Right));
        assert!(matches!(ledger.judge(7, read, stamp(1), 0), Verdict::Lost(_)));
        write(&ledger, false, 0);
        let read = ledger.begin_read(7, 0);
        assert!(matches!(ledger.judge(7, read, None, 0), Verdict::Lost(_)));
        assert_eq!(ledger.judge(7, read, stamp(4), 0), Verdict::Right);
    }

    #[test]
    fn expiry_is_held_to_its_deadline_on_both_sides() {
        let ledger = Ledger::new(1, 100, 1000);
        write(&ledger, false, 0);
        assert!(matches!(ledger.judge(7, ledger.begin_read(7, 500), None, 600), Verdict::Lost(_)), "too early");
        assert_eq!(ledger.judge(7, ledger.begin_read(7, 990), None, 1000), Verdict::Right);
        assert_eq!(ledger.judge(7, ledger.begin_read(7, 1000), stamp(1), 1001), Verdict::Right);
        assert!(matches!(ledger.judge(7, ledger.begin_read(7, 1006), stamp(1), 1007), Verdict::Wrong(_)), "too late");
        write(&ledger, false, 2000);
        assert_eq!(ledger.judge(7, ledger.begin_read(7, 2500), stamp(2), 2500), Verdict::Right);
        assert!(matches!(ledger.judge(7, ledger.begin_read(7, 2500), None, 2500), Verdict::Lost(_)));
    }
}
