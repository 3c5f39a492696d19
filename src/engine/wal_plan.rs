//! What a log's blocks mean after a crash: a pure decision over their headers.
//!
//! One group is in flight at a time and sequences are dense, so **continuity** tells a torn tail from rot. Damage that is followed by a
//! group
//! which begins exactly where the last whole one ended was never acknowledged: it is what a crash left, cut at an earlier recovery.
//! Damage followed by a group that begins later swallowed something that was acknowledged: an error with the place of the damage.
//! Damage followed by nothing is a torn tail: cut, counted.

use super::format::wal::BlockHead;

/// One block as the first pass saw it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// Never written.
    Zero,
    /// Neither zeros nor a block of this place.
    Damaged,
    Whole(BlockHead),
}

/// One segment as the first pass saw it. `blocks[0]` stands for the segment's header.
pub struct SegmentScan {
    pub blocks: Vec<Seen>,
}

impl SegmentScan {
    /// The newest lap that any whole block names; 0 if there is none.
    pub fn lap(&self) -> u64 {
        let lap = |seen: &Seen| if let Seen::Whole(head) = seen { head.group.lap } else { 0 };
        self.blocks[1..].iter().map(lap).max().unwrap_or(0)
    }

    /// The group that starts at block `at`, if all of it is whole.
    fn group_at(&self, at: usize, lap: u64) -> Option<BlockHead> {
        let Seen::Whole(head) = self.blocks[at] else { return None };
        let blocks = self.blocks.get(at..at + head.group.blocks as usize)?;
        let belongs = |(index, seen): (usize, &Seen)| matches!(seen, Seen::Whole(b) if b.group == head.group && b.index == index as u32);
        (head.group.lap == lap && blocks.iter().enumerate().all(belongs)).then_some(head)
    }

    /// Where the remains of a group end that shows itself at `at`; `None` where there are none.
    fn remains_end(&self, at: usize, lap: u64) -> Option<usize> {
        match self.blocks[at] {
            Seen::Damaged => Some(at + 1),
            Seen::Whole(head) if head.group.lap == lap => {
                Some((at + head.group.blocks as usize - head.index as usize).min(self.blocks.len()))
            }
            _ => None,
        }
    }
}

/// A group to replay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlannedGroup {
    /// Index of its segment.
    pub segment: usize,
    pub start: u32,
    pub blocks: u32,
    pub first: u64,
    pub records: u32,
    /// Accepted although torn: only by the planted bug.
    pub torn: bool,
}

/// Where damage is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct At {
    pub segment: usize,
    pub block: u32,
}

/// What to do with a log.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// In order of sequence.
    pub groups: Vec<PlannedGroup>,
    /// The highest sequence there is (at least `released`).
    pub last: u64,
    /// A torn tail: its first damaged block, and how many blocks it spans.
    pub torn: Option<(At, u32)>,
    /// Where to go on writing: a segment and the first block behind everything in it.
    pub tail: Option<At>,
    pub lap_max: u64,
    pub incarnation_max: u32,
    /// The highest sequence in each segment; 0 for a segment without a whole group.
    pub last_of: Vec<u64>,
}

/// The log does not hold what it must: something acknowledged is gone.
#[derive(Debug, PartialEq, Eq)]
pub struct Gap {
    pub at: At,
    pub expected: u64,
    pub found: u64,
}

/// Decides. Everything up to `released` is in tables, so that it may be missing. `accept_torn` is the planted bug.
pub fn plan(segments: &[SegmentScan], released: u64, accept_torn: bool) -> Result<Plan, Gap> {
    let mut plan = Plan { last: released, last_of: vec![0; segments.len()], ..Plan::default() };
    let mut order: Vec<(u64, usize)> = segments.iter().map(SegmentScan::lap).zip(0..).filter(|&(lap, _)| lap > 0).collect();
    order.sort_unstable();
    for scan in segments {
        for seen in &scan.blocks {
            if let Seen::Whole(head) = seen {
                plan.incarnation_max = plan.incarnation_max.max(head.group.incarnation);
            }
        }
    }
    for &(lap, segment) in &order {
        plan.lap_max = lap;
        walk(&mut plan, segments, segment, lap, released)?;
    }
    if accept_torn && let Some((at, _)) = plan.torn {
        accept(&mut plan, &segments[at.segment], at);
    }
    Ok(plan)
}

/// One segment, front to back.
fn walk(plan: &mut Plan, segments: &[SegmentScan], segment: usize, lap: u64, released: u64) -> Result<(), Gap> {
    let scan = &segments[segment];
    let (mut at, mut end) = (1, 1);
    while at < scan.blocks.len() {
        if let Some(head) = scan.group_at(at, lap) {
            let (first, last) = (head.group.first, head.group.last());
            let repeats = last > released && first <= plan.last && plan.last > released;
            if first > plan.last + 1 || repeats {
                let here = At { segment, block: at as u32 };
                return Err(Gap { at: plan.torn.map_or(here, |(at, _)| at), expected: plan.last + 1, found: first });
            }
            let (start, blocks, records) = (at as u32, head.group.blocks, head.group.records);
            if last > plan.last {
                plan.groups.push(PlannedGroup { segment, start, blocks, first, records, torn: false });
                plan.last = last;
            }
            plan.last_of[segment] = last;
            plan.torn = None;
            at += blocks as usize;
            end = at;
        } else if let Some(remains_end) = scan.remains_end(at, lap) {
            end = end.max(remains_end);
            plan.torn = Some(match plan.torn {
                Some((first, blocks)) => (first, blocks + 1),
                None => (At { segment, block: at as u32 }, 1),
            });
            at += 1;
        } else {
            at += 1;
        }
    }
    plan.tail = Some(At { segment, block: end as u32 });
    Ok(())
}

/// The planted bug: takes a torn group for a whole one, if its first block is there.
fn accept(plan: &mut Plan, scan: &SegmentScan, at: At) {
    if let Seen::Whole(head) = scan.blocks[at.block as usize]
        && head.index == 0
        && (at.block + head.group.blocks) as usize <= scan.blocks.len()
        && head.group.first == plan.last + 1
    {
        let (first, blocks, records) = (head.group.first, head.group.blocks, head.group.records);
        plan.groups.push(PlannedGroup { segment: at.segment, start: at.block, blocks, first, records, torn: true });
        plan.last = head.group.last();
        plan.last_of[at.segment] = plan.last;
    }
}

#[cfg(test)]
mod tests {
    use super::super::format::wal::GroupHead;
    use super::*;

    /// A segment of `len` blocks with groups (start, lap, first, blocks, records).
    fn segment(len: usize, groups: &[(usize, u64, u64, u32, u32)]) -> SegmentScan {
        let mut blocks = vec![Seen::Zero; len];
        for &(start, lap, first, count, records) in groups {
            for index in 0..count {
                let group = GroupHead { lap, incarnation: 1, first, blocks: count, records };
                blocks[start + index as usize] = Seen::Whole(BlockHead { group, index, used: 1 });
            }
        }
        SegmentScan { blocks }
    }

    fn firsts(plan: &Plan) -> Vec<u64> {
        plan.groups.iter().map(|g| g.first).collect()
    }

    #[test]
    fn groups_come_in_order_of_laps_and_stale_blocks_of_earlier_laps_do_not_count() {
        let a = segment(8, &[(1, 3, 7, 2, 2), (3, 3, 9, 1, 1), (4, 1, 2, 1, 1), (5, 1, 3, 3, 1)]);
        let b = segment(8, &[(1, 2, 4, 3, 1), (4, 2, 5, 4, 2)]);
        let plan = plan(&[a, b], 3, false).unwrap();
        assert_eq!((firsts(&plan), plan.last, plan.torn), (vec![4, 5, 7, 9], 9, None));
        assert_eq!((plan.tail, plan.lap_max, &plan.last_of[..]), (Some(At { segment: 0, block: 4 }), 3, &[9, 6][..]));
    }

    #[test]
    fn damage_with_nothing_after_it_is_cut_whatever_subset_of_the_group_is_there() {
        for lost in 1..8u32 {
            let mut a = segment(12, &[(1, 1, 1, 2, 2), (3, 1, 3, 3, 1)]);
            (0..3).filter(|bit| lost & 1 << bit != 0).for_each(|bit| a.blocks[3 + bit] = [Seen::Zero, Seen::Damaged][lost as usize % 2]);
            let plan = plan(&[a], 0, false).unwrap();
            assert_eq!((firsts(&plan), plan.last), (vec![1], 2));
            assert_eq!(plan.torn.is_some(), lost != 7 || lost % 2 == 1);
            let tail = plan.tail.unwrap().block;
            assert!(tail == 6 || (tail == 3 && plan.torn.is_none()), "remains end at 6, went on at {tail}");
        }
    }

    #[test]
    fn remains_that_an_earlier_recovery_cut_do_not_hurt_but_rot_does() {
        let mut a = segment(12, &[(1, 1, 1, 2, 2), (3, 1, 3, 3, 1), (6, 1, 3, 1, 1)]);
        a.blocks[4] = Seen::Damaged;
        let ok = plan(&[a], 0, false).unwrap();
        assert_eq!((firsts(&ok), ok.torn), (vec![1, 3], None));
        let mut b = segment(12, &[(1, 1, 1, 2, 2), (3, 1, 3, 3, 1), (6, 1, 4, 1, 1)]);
        b.blocks[4] = Seen::Damaged;
        let gap = plan(&[b], 0, false).unwrap_err();
        assert_eq!(gap, Gap { at: At { segment: 0, block: 3 }, expected: 3, found: 4 });
    }

    #[test]
    fn a_missing_segment_is_a_gap_unless_all_of_it_is_released() {
        let two = || segment(4, &[(1, 2, 5, 1, 1)]);
        assert_eq!(plan(&[two()], 0, false).unwrap_err().expected, 1);
        assert_eq!(firsts(&plan(&[two()], 4, false).unwrap()), vec![5]);
        assert!(firsts(&plan(&[two()], 5, false).unwrap()).is_empty());
    }
}
