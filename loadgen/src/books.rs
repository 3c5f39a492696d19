//! What a thread makes of answers: latencies, errors, and in check mode the verdict on each.

use crate::connection::{Planned, Slots};
use crate::ledger::{Ledger, Verdict, WriteEnd};
use crate::plan::OpKind;
use crate::progress::{Interval, Intervals, TICK_NS, tell};
use crate::protocol::Answer;
use crate::report::Tally;
use crate::value::Values;

/// The error of a request that was not answered by the end.
pub const NO_ANSWER: &str = "no answer";
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

/// A thread's counts.
pub struct Books<'a> {
    pub tally: Tally,
    pub window: Window,
    pub values: &'a Values,
    pub ledger: Option<&'a Ledger>,
    /// When the last answer came.
    pub last_ns: u64,
    /// When the last one came that was not an error.
    good_ns: u64,
    interval: Interval,
    told: u32,
}

impl<'a> Books<'a> {
    pub fn new(window: Window, values: &'a Values, ledger: Option<&'a Ledger>) -> Books<'a> {
        Books { tally: Tally::default(), window, values, ledger, last_ns: 0, good_ns: 0, interval: Interval::default(), told: 0 }
    }

    /// Takes the answer to the request `id`, which is in flight; Err: what makes it none. Some: the request was refused and did nothing.
    #[inline]
    pub fn answer(
        &mut self,
        slots: &mut Slots,
        id: u64,
        answer: Result<Answer<'_>, &'static str>,
        (now_ns, ledger_ms): (u64, u32),
    ) -> Option<Planned> {
        let slot = slots.get(id).expect("the caller found it");
        let planned = slot.planned;
        slots.release(id, now_ns);
        self.last_ns = now_ns;
        self.tally.answers += 1;
        let answer = match answer {
            Ok(answer) => answer,
            Err(reason) => {
                self.finish_write(planned, slot.write, WriteEnd::Unknown, ledger_ms);
                self.found(planned.key, Verdict::Wrong("an answer that makes no sense"), now_ns);
                self.error(planned, now_ns, reason);
                return None;
            }
        };
        if let Answer::Refused(refusal) = answer {
            self.finish_write(planned, slot.write, refusal.end, ledger_ms);
            self.error(planned, now_ns, refusal.name);
            return refusal.is_worth_retrying.then_some(planned);
        }
        match answer {
            Answer::Done => self.finish_write(planned, slot.write, WriteEnd::Acknowledged, ledger_ms),
            Answer::Absent => self.tally.absent += u64::from(self.window.contains(planned.at_ns)),
            Answer::Value(_) | Answer::Refused(_) => {}
        }
        if let (Some(ledger), OpKind::Get) = (self.ledger, planned.kind) {
            let read = if let Answer::Value(value) = answer { Some(self.values.read(value)) } else { None };
            self.found(planned.key, ledger.judge(planned.key, slot.read, read, ledger_ms), now_ns);
        }
        let latency_ns = now_ns.saturating_sub(planned.at_ns);
        self.interval.record(latency_ns);
        self.tally.availability.answer(planned.at_ns, now_ns);
        if self.window.contains(planned.at_ns) {
            self.tally.ops[planned.kind as usize].latencies.record(latency_ns);
        }
        self.count_good(now_ns);
        None
    }

    /// An answer came that was no error.
    fn count_good(&mut self, now_ns: u64) {
        if self.window.contains(now_ns) {
            self.tally.answered += 1;
            self.note_gap(now_ns);
        }
        self.good_ns = now_ns;
    }

    /// No good answer came between the last one, or the window's start, and now.
    fn note_gap(&mut self, now_ns: u64) {
        let gap_ns = now_ns.saturating_sub(self.good_ns.max(self.window.from_ns));
        self.tally.longest_gap_ns = self.tally.longest_gap_ns.max(gap_ns);
    }

    /// A request that will never be answered.
    pub fn abandon(&mut self, slot: &crate::connection::Slot, why: &str, (now_ns, ledger_ms): (u64, u32)) {
        self.finish_write(slot.planned, slot.write, WriteEnd::Unknown, ledger_ms);
        self.error(slot.planned, now_ns, why);
    }

    fn finish_write(&mut self, planned: Planned, ticket: crate::ledger::WriteTicket, end: WriteEnd, ledger_ms: u32) {
        if let (Some(ledger), OpKind::Put | OpKind::Del) = (self.ledger, planned.kind) {
            ledger.end_write(planned.key, ticket, end, ledger_ms);
        }
        self.tally.unknown += u64::from(end == WriteEnd::Unknown && planned.kind != OpKind::Get);
    }

    fn error(&mut self, planned: Planned, now_ns: u64, kind: &str) {
        self.interval.errors += 1;
        self.tally.availability.error(planned.at_ns, now_ns, kind);
        if self.window.contains(planned.at_ns) {
            self.tally.ops[planned.kind as usize].errors += 1;
            self.tally.error(kind);
        }
    }

    fn found(&mut self, key: u64, verdict: Verdict, now_ns: u64) {
        let (count, what, reason) = match verdict {
            Verdict::Right => return self.tally.checked += 1,
            Verdict::Unchecked => return,
            Verdict::Wrong(reason) => (&mut self.tally.wrong, "wrong", reason),
            Verdict::Lost(reason) => (&mut self.tally.lost, "lost", reason),
        };
        *count += 1;
        self.tally.availability.fault(now_ns, what == "lost");
        self.interval.faults += 1;
        self.tally.checked += 1;
        *self.tally.findings.entry(reason).or_default() += 1;
        if self.told < FINDINGS_TOLD_MAX {
            self.told += 1;
            tell(&format!("{what}: key {key}: {reason}"));
        }
    }

    /// Hands over what came together in the tick that is over by `now_ns`, if one is. True: one was.
    #[inline]
    pub fn publish(&mut self, now_ns: u64, shared: &Intervals) -> bool {
        let tick = now_ns / TICK_NS;
        if tick == self.interval.tick {
            return false;
        }
        shared.push(&self.interval);
        self.interval.reset(tick);
        true
    }

    /// Hands over the rest. A thread that waits for answers which never come is silent until now.
    pub fn publish_rest(&mut self, now_ns: u64, shared: &Intervals) {
        if self.window.until_ns != u64::MAX {
            self.note_gap(now_ns.min(self.window.until_ns));
        }
        shared.push(&self.interval);
        self.interval.reset(self.interval.tick + 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sizes::Sizes;

    #[test]
    fn the_longest_gap_counts_from_the_windows_start_to_its_end() {
        let values = Values::new(Sizes::uniform(32, 32));
        let gap = |answers: &[u64], end_ns| {
            let mut books = Books::new(Window { from_ns: 100, until_ns: 1000 }, &values, None);
            answers.iter().for_each(|&now_ns| books.count_good(now_ns));
            books.publish_rest(end_ns, &Intervals::default());
            books.tally.longest_gap_ns
        };
        assert_eq!(gap(&[50, 150, 400, 900], 2000), 500, "between two answers");
        assert_eq!(gap(&[600, 900], 2000), 500, "from the start");
        assert_eq!(gap(&[10, 200, 300], 5000), 700, "to the end, and no further");
        assert_eq!(gap(&[], 1000), 900);
    }
}
