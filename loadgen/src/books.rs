//! What a thread makes of answers: latencies, errors, and in check mode the verdict on each.

use crate::connection::{Planned, Slots};
use crate::ledger::{Ledger, Verdict, WriteEnd};
use crate::plan::OpKind;
use crate::protocol::{Answer, decode, error_name, is_worth_retrying, write_end};
use crate::report::{Latencies, Tally};
use crate::value::Values;
use ringkv::wire::frame::Frame;
use std::sync::{Mutex, PoisonError};

/// So many findings are told in full, a thread.
const FINDINGS_TOLD_MAX: u32 = 5;

/// Which part of the run counts, in nanoseconds from its start.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    pub from_ns: u64,
    pub until_ns: u64,
}

impl Window {
    #[inline]
    pub fn contains(&self, at_ns: u64) -> bool {
        (self.from_ns..self.until_ns).contains(&at_ns)
    }
}

/// What the progress line takes from a thread, since it was last taken.
#[derive(Default)]
pub struct Interval {
    pub errors: u64,
    pub latencies: Latencies,
}

/// A thread's counts.
pub struct Books<'a> {
    pub tally: Tally,
    pub window: Window,
    pub values: &'a Values,
    pub ledger: Option<&'a Ledger>,
    /// When the last answer came.
    pub last_ns: u64,
    interval: Interval,
    told: u32,
}

impl<'a> Books<'a> {
    pub fn new(window: Window, values: &'a Values, ledger: Option<&'a Ledger>) -> Books<'a> {
        Books { tally: Tally::default(), window, values, ledger, last_ns: 0, interval: Interval::default(), told: 0 }
    }

    /// Takes an answer. Some: the request was refused and did nothing.
    ///
    /// # Errors
    /// The connection makes no sense any more.
    pub fn answer(&mut self, slots: &mut Slots, frame: &Frame<'_>, now_ns: u64, ledger_ms: u32) -> Result<Option<Planned>, String> {
        let Some(slot) = slots.get(frame.id) else {
            return Err(match ringkv::wire::native::decode_reply(frame.kind, frame.body) {
                Ok(ringkv::wire::command::Reply::Error(error)) => format!("{}: {}", error_name(error.code), error.message),
                _ => format!("an answer to no request (id {:#x}, kind {:#x})", frame.id, frame.kind),
            });
        };
        let planned = slot.planned;
        let answer = decode(frame, planned.kind);
        slots.release(frame.id, now_ns);
        self.last_ns = now_ns;
        let answer = match answer {
            Ok(answer) => answer,
            Err(reason) => {
                self.finish_write(planned, slot.write, WriteEnd::Unknown, ledger_ms);
                self.found(planned.key, Verdict::Wrong("an answer that makes no sense"));
                self.error(planned, &reason);
                return Ok(None);
            }
        };
        if let Answer::Error(code) = answer {
            self.finish_write(planned, slot.write, write_end(code), ledger_ms);
            self.error(planned, error_name(code));
            return Ok(is_worth_retrying(code).then_some(planned));
        }
        match answer {
            Answer::Done => self.finish_write(planned, slot.write, WriteEnd::Acknowledged, ledger_ms),
            Answer::Absent => self.tally.absent += u64::from(self.window.contains(planned.at_ns)),
            Answer::Value(_) | Answer::Error(_) => {}
        }
        if let (Some(ledger), OpKind::Get) = (self.ledger, planned.kind) {
            let read = if let Answer::Value(value) = answer { Some(self.values.read(value)) } else { None };
            self.found(planned.key, ledger.judge(planned.key, slot.read, read, ledger_ms));
        }
        let latency_ns = now_ns.saturating_sub(planned.at_ns);
        self.interval.latencies.record(latency_ns);
        if self.window.contains(planned.at_ns) {
            self.tally.ops[planned.kind as usize].latencies.record(latency_ns);
        }
        self.tally.answered += u64::from(self.window.contains(now_ns));
        Ok(None)
    }

    /// A request that will never be answered.
    pub fn abandon(&mut self, slot: &crate::connection::Slot, why: &str, ledger_ms: u32) {
        self.finish_write(slot.planned, slot.write, WriteEnd::Unknown, ledger_ms);
        self.error(slot.planned, why);
    }

    fn finish_write(&self, planned: Planned, ticket: crate::ledger::WriteTicket, end: WriteEnd, ledger_ms: u32) {
        if let (Some(ledger), OpKind::Put | OpKind::Del) = (self.ledger, planned.kind) {
            ledger.end_write(planned.key, ticket, end, ledger_ms);
        }
    }

    fn error(&mut self, planned: Planned, kind: &str) {
        self.interval.errors += 1;
        if self.window.contains(planned.at_ns) {
            self.tally.ops[planned.kind as usize].errors += 1;
            self.tally.error(kind);
        }
    }

    fn found(&mut self, key: u64, verdict: Verdict) {
        let (count, what, reason) = match verdict {
            Verdict::Right => return self.tally.checked += 1,
            Verdict::Unchecked => return,
            Verdict::Wrong(reason) => (&mut self.tally.wrong, "wrong", reason),
            Verdict::Lost(reason) => (&mut self.tally.lost, "lost", reason),
        };
        *count += 1;
        self.tally.checked += 1;
        *self.tally.findings.entry(reason).or_default() += 1;
        if self.told < FINDINGS_TOLD_MAX {
            self.told += 1;
            eprintln!("{what}: key {key}: {reason}");
        }
    }

    /// Hands what came together since the last time to the progress line.
    pub fn publish(&mut self, shared: &Mutex<Interval>) {
        let mut shared = shared.lock().unwrap_or_else(PoisonError::into_inner);
        shared.errors += self.interval.errors;
        shared.latencies.merge(&self.interval.latencies);
        self.interval.errors = 0;
        self.interval.latencies.reset();
    }
}
