//! Answers that wait for the log: a write's until it is durable, a read's until what it saw is.
//!
//! One place holds them all, so that a group that became durable answers everything it carried in one pass, without a task each.

use crate::base::time::Mono;
use crate::engine::Seq;
use std::collections::VecDeque;

/// An answer held back: whom it is for, the bytes to send, and what to say should it never become true.
pub struct Held<T> {
    pub seq: Seq,
    pub deadline: Mono,
    pub ticket: T,
    /// The encoded frame, sent once `seq` is durable.
    pub frame: Vec<u8>,
    /// The version to name in `Unknown`; none for a read, which just fails.
    pub stamp: Option<crate::base::record::Version>,
}

/// The answers of one core that wait for its log.
pub struct Commits<T> {
    /// In order of their sequence.
    ordered: VecDeque<Held<T>>,
    /// In any order.
    unordered: Vec<Held<T>>,
}

impl<T> Default for Commits<T> {
    fn default() -> Commits<T> {
        Commits { ordered: VecDeque::new(), unordered: Vec::new() }
    }
}

impl<T> Commits<T> {
    /// Holds an answer until its sequence is durable.
    pub fn hold(&mut self, held: Held<T>) {
        // A write comes in order; so does a read of what was written last. Anything else is rare and looked through.
        if self.ordered.back().is_none_or(|last| last.seq <= held.seq) {
            self.ordered.push_back(held);
        } else {
            self.unordered.push(held);
        }
    }

    /// How many answers wait.
    pub fn len(&self) -> usize {
        self.ordered.len() + self.unordered.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Takes out what `durable` covers.
    pub fn ready(&mut self, durable: Seq, out: &mut Vec<Held<T>>) {
        while self.ordered.front().is_some_and(|held| held.seq <= durable) {
            out.extend(self.ordered.pop_front());
        }
        out.extend(self.unordered.extract_if(.., |held| held.seq <= durable));
    }

    /// Takes out what will not be true in time.
    pub fn overdue(&mut self, now: Mono, out: &mut Vec<Held<T>>) {
        out.extend(self.unordered.extract_if(.., |held| held.deadline <= now));
        if self.ordered.iter().any(|held| held.deadline <= now) {
            let (late, rest) = std::mem::take(&mut self.ordered).into_iter().partition(|held| held.deadline <= now);
            self.ordered = rest;
            out.extend::<VecDeque<_>>(late);
        }
    }

    /// Takes out everything: the log has failed.
    pub fn all(&mut self, out: &mut Vec<Held<T>>) {
        out.extend(self.ordered.drain(..));
        out.append(&mut self.unordered);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(seq: Seq, deadline: u64) -> Held<u32> {
        Held { seq, deadline: Mono(deadline), ticket: seq as u32, frame: Vec::new(), stamp: None }
    }

    #[test]
    fn a_group_releases_what_it_carried_and_nothing_else() {
        let mut commits = Commits::default();
        [1, 2, 2, 5].into_iter().for_each(|seq| commits.hold(held(seq, 100)));
        [5, 1, 3].into_iter().for_each(|seq| commits.hold(held(seq, 100)));
        let mut out = Vec::new();
        commits.ready(2, &mut out);
        assert_eq!(out.iter().map(|held| held.seq).collect::<Vec<_>>(), [1, 2, 2, 1]);
        assert_eq!(commits.len(), 3);
        commits.ready(5, &mut out);
        assert!(commits.is_empty());
    }

    #[test]
    fn what_is_overdue_leaves_the_unorderedin_order() {
        let mut commits = Commits::default();
        [(1, 10), (2, 30), (3, 10)].into_iter().for_each(|(seq, deadline)| commits.hold(held(seq, deadline)));
        let mut out = Vec::new();
        commits.overdue(Mono(20), &mut out);
        assert_eq!(out.iter().map(|held| held.seq).collect::<Vec<_>>(), [1, 3]);
        out.clear();
        commits.ready(9, &mut out);
        assert_eq!(out.len(), 1);
    }
}
