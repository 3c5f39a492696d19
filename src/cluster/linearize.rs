//! Whether a history of one register is linearizable (Wing and Gong, "Testing and verifying concurrent objects", 1993; with Lowe's memory
//! of what was tried). Small histories: at most 128 operations.
//!
//! An operation whose outcome is not known may have taken effect at any time after it began, or never.

use std::collections::HashSet;

/// What an operation did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Did {
    Put(u32),
    /// 0: absent.
    Got(u32),
}

impl Did {
    fn got(self) -> Option<u32> {
        match self {
            Did::Got(value) => Some(value),
            Did::Put(_) => None,
        }
    }
}

/// One operation, in any unit of time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Op {
    pub began: u64,
    /// `None`: the outcome is not known.
    pub ended: Option<u64>,
    pub did: Did,
}

/// Whether some order of the operations explains them all.
pub fn is_linearizable(history: &[Op]) -> bool {
    // A get that nobody saw the answer of says nothing; an unknown put whose value nobody saw may as well never have been.
    let seen: HashSet<u32> = history.iter().filter(|op| op.ended.is_some()).filter_map(|op| op.did.got()).collect();
    let counts = |op: &Op| op.ended.is_some() || matches!(op.did, Did::Put(value) if seen.contains(&value));
    let mut ops: Vec<Op> = history.iter().copied().filter(counts).collect();
    ops.sort_by_key(|op| op.began);
    assert!(ops.len() <= 128, "a small history");
    let known = ops.iter().enumerate().filter(|(_, op)| op.ended.is_some()).fold(0u128, |mask, (at, _)| mask | 1 << at);
    search(&ops, known, 0, 0, &mut HashSet::new())
}

/// From a register with `value` after the operations in `done`.
fn search(ops: &[Op], known: u128, done: u128, value: u32, tried: &mut HashSet<(u128, u32)>) -> bool {
    if done & known == known {
        return true;
    }
    if !tried.insert((done, value)) {
        return false;
    }
    let open = |at: &usize| done >> at & 1 == 0;
    // Whatever ended must come before what began after its end.
    let first_end = (0..ops.len()).filter(open).filter_map(|at| ops[at].ended).min().expect("a known one is open");
    (0..ops.len()).filter(open).filter(|at| ops[*at].began <= first_end).any(|at| match ops[at].did {
        Did::Put(put) => search(ops, known, done | 1 << at, put, tried),
        Did::Got(got) => got == value && search(ops, known, done | 1 << at, value, tried),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use Did::{Got, Put};

    fn history(ops: &[(u64, Option<u64>, Did)]) -> bool {
        let ops: Vec<Op> = ops.iter().map(|&(began, ended, did)| Op { began, ended, did }).collect();
        is_linearizable(&ops)
    }

    #[test]
    fn right_histories_pass() {
        assert!(history(&[]));
        assert!(history(&[(0, Some(1), Got(0)), (2, Some(3), Put(1)), (4, Some(5), Got(1))]));
        assert!(history(&[(0, Some(9), Put(1)), (1, Some(8), Put(2)), (2, Some(3), Got(2)), (4, Some(5), Got(1))]), "concurrent puts");
        assert!(
            history(&[(0, None, Put(1)), (1, Some(2), Got(0)), (3, Some(4), Put(2)), (5, Some(6), Got(1))]),
            "an unknown put acts late"
        );
        assert!(history(&[(0, None, Put(1)), (1, Some(2), Got(0))]), "or never");
        assert!(history(&[(0, None, Got(7))]));
    }

    #[test]
    fn wrong_histories_fail() {
        assert!(!history(&[(0, Some(1), Put(1)), (2, Some(3), Got(0))]), "an acknowledged put is lost");
        assert!(!history(&[(0, None, Put(1)), (1, Some(2), Got(1)), (3, Some(4), Got(0))]), "a get goes back in time");
        assert!(!history(&[(0, Some(1), Got(1)), (2, Some(3), Put(1))]), "a get sees the future");
        let twice = [(0, None, Put(1)), (1, Some(2), Got(1)), (3, Some(4), Put(2)), (5, Some(6), Got(2)), (7, Some(8), Got(1))];
        assert!(!history(&twice), "a put acts twice");
        assert!(!history(&[(0, Some(1), Got(5))]), "a value that nobody put");
    }
}
