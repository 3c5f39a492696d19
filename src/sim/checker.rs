//! What the answers of a store may be, given what was asked and acknowledged before. Knows nothing of the store.
//!
//! Versions order all writes of a key, and every value names the write that made it, so the rules are short. For a key, at any moment:
//!
//! - **nothing invented**: a value read is one that was written to this key, and its version is that write's;
//! - **nothing lost, nothing old**: a read shows a version at or above every version that had been acknowledged or shown before the read
//!   was asked (after a power loss under `interval`: but for the last 100 ms that its core acknowledged);
//! - **writes in order**: a write has a version above all that had been acknowledged or shown before it was asked for (not under
//!   `interval`, where a power loss may take those back);
//! - **absent** is right only if the newest write may be a delete, or its deadline had passed when the answer came, or nothing was written;
//! - **expiry exact**: a value is never shown at or after its deadline, and not hidden before it, by the node's own clock;
//! - **a batch whole or absent**: keys written under one version in one vnode show it all or not at all.
//!
//! Writes whose outcome is unknown may take effect until the end, at any time, once.

use crate::base::record::Version;
use crate::base::time::{Mono, WallMs, hlc_ms};
use crate::limits::INTERVAL_MS_MAX;
use std::collections::BTreeMap;

/// How far a node's hybrid clock may run ahead of its wall clock after a restart: its ceiling is laid this far ahead.
const CLOCK_LEAD_MS: u64 = 60_000;

/// Numbers a write; every value holds the number of its write.
pub type WriteId = u64;

/// What a write does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// A value, and how long it lives (0: for ever).
    Put {
        ttl_ms: u64,
    },
    Delete,
    /// Only the deadline (0: none any more).
    Expire {
        ttl_ms: u64,
    },
}

/// How a write ended, as far as its client knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// No answer yet, or none ever.
    Open,
    Acknowledged,
    /// Refused: it must never take effect.
    Refused,
}

#[derive(Clone, Debug)]
struct Write {
    effect: Effect,
    version: Option<Version>,
    outcome: Outcome,
    /// The node's wall clock when it was asked for.
    begun_ms: WallMs,
    /// The highest version of its key that was acknowledged or shown before it was asked for.
    above: Version,
    acknowledged_at: Option<Mono>,
}

/// When a value may end: at any millisecond from `first` to `last`; 0 is never.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Ends {
    first: WallMs,
    last: WallMs,
}

/// A deadline by a version of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Mark {
    version: Version,
    /// When it was acknowledged or shown.
    at: Mono,
}

#[derive(Clone, Debug, Default)]
struct Key {
    writes: BTreeMap<WriteId, Write>,
    /// Versions acknowledged or shown, in order of time: the newest of those before a moment bind every read asked after it.
    marks: Vec<Mark>,
    /// The same for deadlines alone.
    expiry_marks: Vec<Mark>,
}

/// What a read showed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shown {
    Value {
        write: WriteId,
        version: Version,
        remaining_ms: Option<u64>,
    },
    /// The bytes are of no write at all.
    Garbage,
    Absent,
}

/// When a request was asked and answered, by the world's clock and by the node's wall clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    pub asked: Mono,
    pub asked_ms: WallMs,
    pub answered_ms: WallMs,
}

/// The history of one namespace of one node.
#[derive(Debug, Default)]
pub struct Checker {
    keys: BTreeMap<u32, Key>,
    next: WriteId,
    batches: BTreeMap<u64, Vec<(u32, WriteId)>>,
    /// What is wrong, in words.
    pub failures: Vec<String>,
    /// Acknowledged writes.
    pub acknowledged: u64,
    /// Under `interval`, what a power loss may take.
    loses_ms: u64,
    /// When the power failed last. What was asked before and answered after (the answer was on its way) counts as answered before.
    lost_at: Mono,
    /// The highest that the node's wall clock ever showed: what had expired by then may be gone, wherever the clock was moved since.
    highest_ms: WallMs,
}

impl Checker {
    /// For a namespace that acknowledges what is on disk, or (`interval`) in memory.
    pub fn new(interval: bool) -> Checker {
        Checker { loses_ms: if interval { INTERVAL_MS_MAX } else { 0 }, ..Checker::default() }
    }

    /// A write is about to be asked for.
    pub fn begin(&mut self, key: u32, effect: Effect, begun_ms: WallMs, batch: Option<u64>) -> WriteId {
        self.next += 1;
        let entry = self.keys.entry(key).or_default();
        let marks = entry.marks.iter().chain(&entry.expiry_marks).map(|mark| mark.version);
        let above = marks.max().filter(|_| self.loses_ms == 0).unwrap_or(Version::ZERO);
        let write = Write { effect, version: None, outcome: Outcome::Open, begun_ms, above, acknowledged_at: None };
        entry.writes.insert(self.next, write);
        if let Some(batch) = batch {
            self.batches.entry(batch).or_default().push((key, self.next));
        }
        self.next
    }

    /// The node told a write's version (announced, unknown, done).
    pub fn stamped(&mut self, key: u32, write: WriteId, version: Version) {
        let clash = self.writes(key).any(|(id, other)| id != write && other.version == Some(version));
        let known = self.write(key, write).version.replace(version);
        if known.is_some_and(|known| known != version) {
            self.failures.push(format!("key {key}: write {write} was stamped {known:?}, then {version:?}"));
        }
        let above = self.write(key, write).above;
        if version <= above {
            self.failures.push(format!("key {key}: write {write} has {version:?}, though {above:?} was acknowledged or shown before it"));
        }
        if clash {
            self.failures.push(format!("key {key}: version {version:?} was given twice"));
        }
    }

    /// The write was acknowledged.
    pub fn acknowledged(&mut self, key: u32, write: WriteId, version: Version, asked: Mono, now: Mono) {
        self.stamped(key, write, version);
        self.acknowledged += 1;
        let entry = self.write(key, write);
        entry.outcome = Outcome::Acknowledged;
        entry.acknowledged_at = Some(now);
        let is_expire = matches!(entry.effect, Effect::Expire { .. });
        if !self.binds(asked) {
            return;
        }
        let key = self.keys.get_mut(&key).expect("a key that was written");
        if is_expire { &mut key.expiry_marks } else { &mut key.marks }.push(Mark { version, at: now });
    }

    /// The write was refused: it must not take effect.
    pub fn refused(&mut self, key: u32, write: WriteId) {
        self.write(key, write).outcome = Outcome::Refused;
    }

    /// The power failed: under `interval`, what a core acknowledged in its last 100 ms of acknowledging binds nobody any more. (While a
    /// disk does not answer, a core stops acknowledging, so the last 100 ms may lie further back than the failure.)
    pub fn power_lost(&mut self, now: Mono, owner: impl Fn(u32) -> u16) {
        self.lost_at = now;
        if self.loses_ms == 0 {
            return;
        }
        let mut last: BTreeMap<u16, Mono> = BTreeMap::new();
        for (key, entry) in &self.keys {
            let newest = entry.writes.values().filter_map(|write| write.acknowledged_at).max().unwrap_or_default();
            let last = last.entry(owner(*key)).or_default();
            *last = newest.max(*last);
        }
        for (key, entry) in &mut self.keys {
            let safe = Mono(last[&owner(*key)].0.saturating_sub(self.loses_ms * 1_000_000));
            let Key { writes, marks, expiry_marks } = entry;
            let survives = |mark: &Mark| {
                let of_version = writes.values().filter(|write| write.version == Some(mark.version));
                of_version.filter_map(|write| write.acknowledged_at).any(|at| at <= safe)
            };
            marks.retain(survives);
            expiry_marks.retain(survives);
        }
    }

    /// The node's wall clock shows this.
    pub fn clock_shows(&mut self, wall_ms: WallMs) {
        self.highest_ms = self.highest_ms.max(wall_ms);
    }

    /// A value in an answer that does not tell how long it lives.
    pub fn read_timeless(&mut self, key: u32, write: WriteId, version: Version, span: Span, now: Mono) {
        let left = |ends: &Ends| if ends.first == 0 { None } else { Some(ends.first.saturating_sub(span.asked_ms).max(1)) };
        if let Some(found) = self.keys.get_mut(&key).and_then(|key| key.writes.get_mut(&write)) {
            found.version.get_or_insert(version);
        }
        // The longest life that it may have: a value past that is found all the same.
        let ends = if self.keys.contains_key(&key) { self.ends(key, write, span) } else { Vec::new() };
        let longest = ends.iter().max_by_key(|ends| if ends.first == 0 { u64::MAX } else { ends.first });
        let remaining_ms = longest.and_then(left);
        self.read(key, Shown::Value { write, version, remaining_ms }, span, now);
    }

    /// A read's answer.
    pub fn read(&mut self, key: u32, shown: Shown, span: Span, now: Mono) {
        let verdict = match shown {
            Shown::Garbage => Err("shows bytes that nobody wrote".to_owned()),
            Shown::Value { write, version, remaining_ms } => self.value(key, write, version, remaining_ms, span),
            Shown::Absent => self.absent(key, span),
        };
        if let Err(why) = verdict {
            self.failures.push(format!("key {key}: {why} (asked at {} ns)", span.asked.0));
        }
        if let Shown::Value { version, .. } = shown
            && self.binds(span.asked)
        {
            self.keys.entry(key).or_default().marks.push(Mark { version, at: now });
        }
    }

    fn value(&mut self, key: u32, write: WriteId, version: Version, remaining_ms: Option<u64>, span: Span) -> Result<(), String> {
        let bound = self.bound(key, span.asked);
        let Some(found) = self.keys.get_mut(&key).and_then(|key| key.writes.get_mut(&write)) else {
            return Err(format!("shows write {write}, which was made to another key or never"));
        };
        if found.outcome == Outcome::Refused {
            return Err(format!("shows write {write}, which was refused"));
        }
        let Effect::Put { .. } = found.effect else { return Err(format!("shows write {write}, which is no put")) };
        match found.version {
            Some(known) if known != version => return Err(format!("shows write {write} as {version:?}, but it is {known:?}")),
            _ => found.version = Some(version),
        }
        if version < bound {
            return Err(format!("shows {version:?}, though {bound:?} was acknowledged or shown before"));
        }
        let ends = self.ends(key, write, span);
        let fits = |ends: &Ends| match remaining_ms {
            None => ends.first == 0,
            Some(left) => left > 0 && ends.first != 0 && ends.first <= span.answered_ms + left && ends.last >= span.asked_ms + left,
        };
        if ends.iter().any(fits) {
            return Ok(());
        }
        let Span { asked_ms, answered_ms, .. } = span;
        Err(format!("shows write {write} with {remaining_ms:?} ms to live between {asked_ms} and {answered_ms} ms; it may end at {ends:?}"))
    }

    fn absent(&self, key: u32, span: Span) -> Result<(), String> {
        let bound = self.bound(key, span.asked);
        if bound == Version::ZERO {
            return Ok(());
        }
        let highest_ms = self.highest_ms.max(span.answered_ms);
        // Whatever may be the newest: the one that binds, and all that may lie above it.
        let possible = |write: &Write| write.outcome != Outcome::Refused && write.version.is_none_or(|version| version >= bound);
        for (id, write) in self.writes(key).filter(|(_, write)| possible(write)) {
            let gone = match write.effect {
                Effect::Delete => true,
                Effect::Put { .. } => self.ends(key, id, span).iter().any(|ends| ends.first != 0 && ends.first <= highest_ms),
                Effect::Expire { .. } => false,
            };
            if gone {
                return Ok(());
            }
        }
        Err(format!("is absent between {} and {} ms, though {bound:?} was acknowledged or shown before", span.asked_ms, span.answered_ms))
    }

    /// When a put's value may end: by its own deadline, or by any expire above it; an expire that was acknowledged before outranks those
    /// below it.
    fn ends(&self, key: u32, write: WriteId, span: Span) -> Vec<Ends> {
        let entry = &self.keys[&key];
        let Some(Write { effect: Effect::Put { ttl_ms }, version, begun_ms, .. }) = entry.writes.get(&write) else { return Vec::new() };
        let floor = version.unwrap_or(Version::ZERO);
        let binding = entry.expiry_marks.iter().filter(|mark| mark.at <= span.asked && mark.version > floor).map(|mark| mark.version).max();
        let mut ends = Vec::new();
        if binding.is_none() || version.is_none() {
            ends.push(Ends::of(*version, *begun_ms, *ttl_ms, span));
        }
        for other in entry.writes.values().filter(|other| other.outcome != Outcome::Refused) {
            if let Effect::Expire { ttl_ms } = other.effect
                && other.version.is_none_or(|at| at > floor && binding.is_none_or(|binding| at >= binding))
            {
                ends.push(Ends::of(other.version, other.begun_ms, ttl_ms, span));
            }
        }
        ends
    }

    /// Everything that was written to a key and what binds its reads, for a person to look at.
    pub fn history(&self, key: u32) -> Vec<String> {
        let Some(entry) = self.keys.get(&key) else { return Vec::new() };
        let writes = entry.writes.iter().map(|(id, write)| {
            let Write { effect, version, outcome, begun_ms, .. } = write;
            format!("key {key} write {id}: {effect:?} {outcome:?} {version:?} asked at {begun_ms} ms")
        });
        let marks = [("value", &entry.marks), ("deadline", &entry.expiry_marks)];
        let marks = marks.into_iter().flat_map(|(what, marks)| marks.iter().map(move |mark| (what, mark)));
        writes.chain(marks.map(|(what, mark)| format!("key {key} {what} {:?} binds from {} ns", mark.version, mark.at.0))).collect()
    }

    /// The newest version that a read asked at `asked` must not fall behind.
    fn bound(&self, key: u32, asked: Mono) -> Version {
        let marks = self.keys.get(&key).map_or(&[][..], |key| &key.marks);
        marks.iter().filter(|mark| mark.at <= asked).map(|mark| mark.version).max().unwrap_or(Version::ZERO)
    }

    /// At rest, after every key was read: batches that show in part. `newest` gives the version that a key shows, or None where it is
    /// absent.
    pub fn check_batches(&mut self, newest: impl Fn(u32) -> Option<Version>) {
        let mut failures = Vec::new();
        for writes in self.batches.values() {
            let version = writes.iter().find_map(|(key, id)| self.keys[key].writes[id].version);
            let Some(version) = version else { continue };
            let shown = writes.iter().any(|(key, _)| newest(*key) == Some(version));
            for (key, id) in writes {
                let below = newest(*key).is_some_and(|newest| newest < version);
                if shown && below {
                    failures.push(format!("key {key}: write {id} of a batch is missing, though another key shows the batch's {version:?}"));
                }
            }
        }
        self.failures.append(&mut failures);
    }

    /// A conditional write was refused because the key has this version: it counts as shown.
    pub fn version_shown(&mut self, key: u32, version: Version, span: Span, now: Mono) {
        let bound = self.bound(key, span.asked);
        if version < bound {
            self.failures.push(format!("key {key}: is said to have {version:?}, though {bound:?} was acknowledged or shown before"));
        }
        if self.binds(span.asked) {
            self.keys.entry(key).or_default().marks.push(Mark { version, at: now });
        }
    }

    /// What was answered to a request asked at `asked` binds later reads.
    fn binds(&self, asked: Mono) -> bool {
        self.loses_ms == 0 || self.lost_at == Mono(0) || asked > self.lost_at
    }

    fn writes(&self, key: u32) -> impl Iterator<Item = (WriteId, &Write)> {
        self.keys.get(&key).into_iter().flat_map(|key| key.writes.iter().map(|(id, write)| (*id, write)))
    }

    fn write(&mut self, key: u32, write: WriteId) -> &mut Write {
        self.keys.get_mut(&key).and_then(|key| key.writes.get_mut(&write)).expect("a write that was begun")
    }
}

impl Ends {
    /// By the version's clock; where that is not known, by any clock from when the write was asked for until now.
    fn of(version: Option<Version>, begun_ms: WallMs, ttl_ms: u64, span: Span) -> Ends {
        match version {
            _ if ttl_ms == 0 => Ends { first: 0, last: 0 },
            Some(version) => Ends { first: hlc_ms(version.hlc()) + ttl_ms, last: hlc_ms(version.hlc()) + ttl_ms },
            None => Ends { first: begun_ms + ttl_ms, last: span.answered_ms.max(begun_ms) + ttl_ms + CLOCK_LEAD_MS },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Version {
        Version::put(ms << 16, 1)
    }

    fn span(asked: u64, ms: u64) -> Span {
        Span { asked: Mono(asked), asked_ms: ms, answered_ms: ms + 1 }
    }

    fn shown(write: WriteId, version: Version) -> Shown {
        Shown::Value { write, version, remaining_ms: None }
    }

    #[test]
    fn a_lost_or_stale_or_invented_answer_is_found() {
        let mut checker = Checker::new(false);
        let old = checker.begin(1, Effect::Put { ttl_ms: 0 }, 0, None);
        checker.acknowledged(1, old, at(5), Mono(1), Mono(10));
        let new = checker.begin(1, Effect::Put { ttl_ms: 0 }, 0, None);
        checker.read(1, shown(new, at(6)), span(15, 7), Mono(16));
        assert!(checker.failures.is_empty(), "{:?}", checker.failures);
        checker.read(1, shown(old, at(5)), span(17, 7), Mono(18));
        checker.read(1, Shown::Absent, span(17, 7), Mono(18));
        checker.read(1, shown(99, at(9)), span(17, 7), Mono(18));
        checker.read(1, Shown::Garbage, span(17, 7), Mono(18));
        assert_eq!(checker.failures.len(), 4, "{:?}", checker.failures);
    }

    #[test]
    fn a_write_that_is_stamped_below_an_earlier_one_is_found() {
        let mut checker = Checker::new(false);
        let early = checker.begin(1, Effect::Put { ttl_ms: 0 }, 0, None);
        let one = checker.begin(1, Effect::Put { ttl_ms: 0 }, 0, None);
        checker.acknowledged(1, one, at(5), Mono(1), Mono(10));
        checker.acknowledged(1, early, at(4), Mono(1), Mono(11));
        assert!(checker.failures.is_empty(), "at one time any order is right: {:?}", checker.failures);
        let late = checker.begin(1, Effect::Put { ttl_ms: 0 }, 0, None);
        checker.acknowledged(1, late, at(3), Mono(12), Mono(13));
        assert_eq!(checker.failures.len(), 1, "{:?}", checker.failures);
    }

    #[test]
    fn a_read_that_was_asked_before_the_acknowledgement_may_be_older() {
        let mut checker = Checker::new(false);
        let write = checker.begin(1, Effect::Put { ttl_ms: 0 }, 0, None);
        checker.acknowledged(1, write, at(5), Mono(1), Mono(10));
        checker.read(1, Shown::Absent, span(9, 7), Mono(11));
        assert!(checker.failures.is_empty(), "{:?}", checker.failures);
    }

    #[test]
    fn expiry_is_exact_both_ways() {
        let mut checker = Checker::new(false);
        let write = checker.begin(1, Effect::Put { ttl_ms: 10 }, 0, None);
        checker.acknowledged(1, write, at(100), Mono(1), Mono(10));
        let live = Shown::Value { write, version: at(100), remaining_ms: Some(5) };
        checker.read(1, live, span(20, 105), Mono(21));
        checker.read(1, Shown::Absent, span(22, 110), Mono(23));
        assert!(checker.failures.is_empty(), "{:?}", checker.failures);
        checker.read(1, Shown::Absent, span(22, 105), Mono(23));
        checker.read(1, Shown::Value { write, version: at(100), remaining_ms: Some(0) }, span(24, 110), Mono(25));
        assert_eq!(checker.failures.len(), 2, "{:?}", checker.failures);
    }

    #[test]
    fn an_unknown_delete_excuses_absence_and_a_refused_one_does_not() {
        let mut checker = Checker::new(false);
        let write = checker.begin(1, Effect::Put { ttl_ms: 0 }, 0, None);
        checker.acknowledged(1, write, at(5), Mono(1), Mono(10));
        let delete = checker.begin(1, Effect::Delete, 0, None);
        checker.read(1, Shown::Absent, span(20, 7), Mono(21));
        assert!(checker.failures.is_empty());
        checker.refused(1, delete);
        checker.read(1, Shown::Absent, span(20, 7), Mono(21));
        assert_eq!(checker.failures.len(), 1);
    }

    #[test]
    fn interval_forgives_what_was_acknowledged_just_before_the_power_failed() {
        for (at_ms, failures) in [(950, 0), (800, 1)] {
            let mut checker = Checker::new(true);
            let write = checker.begin(1, Effect::Put { ttl_ms: 0 }, 0, None);
            checker.acknowledged(1, write, at(5), Mono(1), Mono(at_ms * 1_000_000));
            let last = checker.begin(2, Effect::Put { ttl_ms: 0 }, 0, None);
            checker.acknowledged(2, last, at(6), Mono(1), Mono(1_000_000_000));
            checker.power_lost(Mono(1_000_000_000), |_| 0);
            checker.read(1, Shown::Absent, span(2_000_000_000, 7), Mono(2_000_000_001));
            assert_eq!(checker.failures.len(), failures, "{:?}", checker.failures);
        }
    }

    #[test]
    fn a_batch_in_part_is_found() {
        let mut checker = Checker::new(false);
        let one = checker.begin(1, Effect::Put { ttl_ms: 0 }, 0, Some(7));
        checker.begin(2, Effect::Put { ttl_ms: 0 }, 0, Some(7));
        checker.stamped(1, one, at(5));
        checker.check_batches(|key| Some(if key == 1 { at(5) } else { at(4) }));
        assert_eq!(checker.failures.len(), 1);
    }
}
