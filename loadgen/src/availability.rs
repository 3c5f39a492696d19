//! What a caller noticed of the servers' troubles: answers, errors by kind and the longest wait, in slots of 100 ms by the time of the
//! answer, or of giving up on it. And the instants between which it was bad: from when the first request was due that failed or waited
//! longer than 100 ms to when the last such ended.

use std::collections::BTreeMap;

/// Length of a slot.
pub const SLOT_NS: u64 = 100_000_000;
/// An answer that took longer is as bad as none.
pub const SLOW_NS: u64 = 100_000_000;
/// An hour of slots; what comes later counts in the last one.
const SLOTS_MAX: usize = 36_000;
/// Kinds of errors that a slot tells apart; further ones count as one kind.
const KINDS_MAX: usize = 16;
/// Troubles with less than this between them are one.
pub const JOINED_NS: u64 = 1_000_000_000;

/// What was noticed within a slot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Slot {
    /// Errors are not among them.
    pub answered: u64,
    pub slow: u64,
    pub errors: BTreeMap<String, u64>,
    pub wrong: u64,
    pub lost: u64,
    /// From when a request was due to its answer, or to when it was given up.
    pub longest_ns: u64,
    /// When the first of its failed or slow requests was due, and when the last ended.
    pub bad_ns: Option<(u64, u64)>,
}

impl Slot {
    fn merge(&mut self, other: &Slot) {
        self.answered += other.answered;
        self.slow += other.slow;
        self.wrong += other.wrong;
        self.lost += other.lost;
        self.longest_ns = self.longest_ns.max(other.longest_ns);
        for (kind, count) in &other.errors {
            add(&mut self.errors, kind, *count);
        }
        if let Some((from, until)) = other.bad_ns {
            self.stretch(from, until);
        }
    }

    fn stretch(&mut self, from_ns: u64, until_ns: u64) {
        let (from, until) = self.bad_ns.unwrap_or((from_ns, until_ns));
        self.bad_ns = Some((from.min(from_ns), until.max(until_ns)));
    }
}

fn add(errors: &mut BTreeMap<String, u64>, kind: &str, count: u64) {
    if let Some(known) = errors.get_mut(kind) {
        *known += count;
    } else {
        let kind = if errors.len() >= KINDS_MAX { "other errors" } else { kind };
        *errors.entry(kind.to_owned()).or_default() += count;
    }
}

/// A trouble: from the first failed or slow request to the end of the last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trouble {
    pub from_ns: u64,
    pub until_ns: u64,
    pub errors: u64,
    pub slow: u64,
}

/// All slots of a phase.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Availability {
    pub slots: Vec<Slot>,
}

impl Availability {
    fn at(&mut self, now_ns: u64) -> &mut Slot {
        let index = usize::try_from(now_ns / SLOT_NS).unwrap_or(usize::MAX).min(SLOTS_MAX - 1);
        if self.slots.len() <= index {
            self.slots.resize_with(index + 1, Slot::default);
        }
        &mut self.slots[index]
    }

    /// A request that was due at `due_ns` was answered.
    #[inline]
    pub fn answer(&mut self, due_ns: u64, now_ns: u64) {
        let (slot, waited_ns) = (self.at(now_ns), now_ns.saturating_sub(due_ns));
        slot.answered += 1;
        slot.longest_ns = slot.longest_ns.max(waited_ns);
        if waited_ns > SLOW_NS {
            slot.slow += 1;
            slot.stretch(due_ns, now_ns);
        }
    }

    /// A request that was due at `due_ns` failed, or was given up.
    pub fn error(&mut self, due_ns: u64, now_ns: u64, kind: &str) {
        let slot = self.at(now_ns);
        add(&mut slot.errors, kind, 1);
        slot.longest_ns = slot.longest_ns.max(now_ns.saturating_sub(due_ns));
        slot.stretch(due_ns.min(now_ns), now_ns);
    }

    /// An answer was found wrong, or something lost.
    pub fn fault(&mut self, now_ns: u64, is_lost: bool) {
        let slot = self.at(now_ns);
        *if is_lost { &mut slot.lost } else { &mut slot.wrong } += 1;
    }

    pub fn merge(&mut self, other: &Availability) {
        self.slots.resize_with(self.slots.len().max(other.slots.len()), Slot::default);
        self.slots.iter_mut().zip(&other.slots).for_each(|(mine, theirs)| mine.merge(theirs));
    }

    /// In the order of time.
    pub fn troubles(&self) -> Vec<Trouble> {
        let mut bad: Vec<(u64, u64, &Slot)> =
            self.slots.iter().filter_map(|slot| slot.bad_ns.map(|(from, until)| (from, until, slot))).collect();
        bad.sort_by_key(|(from, until, _)| (*from, *until));
        let mut troubles: Vec<Trouble> = Vec::new();
        for (from_ns, until_ns, slot) in bad {
            let errors = slot.errors.values().sum();
            match troubles.last_mut().filter(|last| from_ns < last.until_ns.saturating_add(JOINED_NS)) {
                Some(last) => {
                    last.until_ns = last.until_ns.max(until_ns);
                    last.errors += errors;
                    last.slow += slot.slow;
                }
                None => troubles.push(Trouble { from_ns, until_ns, errors, slow: slot.slow }),
            }
        }
        troubles
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    #[test]
    fn a_trouble_reaches_from_the_first_request_that_waited_to_the_end_of_the_last() {
        let (mut first, mut second) = (Availability::default(), Availability::default());
        (0..50).for_each(|at| first.answer(at * 10 * MS, at * 10 * MS + MS));
        first.answer(500 * MS, 850 * MS);
        second.error(520 * MS, 790 * MS, "connection lost");
        second.error(600 * MS, 910 * MS, "unavailable");
        second.answer(900 * MS, 901 * MS);
        // A second and more later there is another one.
        second.error(2500 * MS, 2501 * MS, "unavailable");
        first.fault(120 * MS, true);
        first.merge(&second);
        let troubles = first.troubles();
        assert_eq!(troubles[0], Trouble { from_ns: 500 * MS, until_ns: 910 * MS, errors: 2, slow: 1 });
        assert_eq!(troubles[1], Trouble { from_ns: 2500 * MS, until_ns: 2501 * MS, errors: 1, slow: 0 });
        assert_eq!(troubles.len(), 2);
        assert_eq!((first.slots.len(), first.slots[0].answered, first.slots[0].longest_ns), (26, 10, MS));
        assert_eq!((first.slots[8].longest_ns, first.slots[7].errors["connection lost"]), (350 * MS, 1));
        assert_eq!((first.slots[1].lost, first.slots[1].wrong, first.slots[9].answered), (1, 0, 1));
    }

    #[test]
    fn slots_and_kinds_are_bounded() {
        let mut availability = Availability::default();
        (0..1000).for_each(|kind| availability.error(0, u64::MAX, &format!("E{kind}")));
        assert_eq!((availability.slots.len(), availability.slots[SLOTS_MAX - 1].errors.len()), (SLOTS_MAX, KINDS_MAX + 1));
        assert_eq!(availability.slots[SLOTS_MAX - 1].errors["other errors"], 1000 - KINDS_MAX as u64);
    }
}
