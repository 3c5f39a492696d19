//! Bounded loads at one position of the preference lists: holes are filled, and what is over or under its share is mended along
//! augmenting paths.
//!
//! A **bin** is a core of a seat; a vnode may lie in one bin a seat, its core there. Giving each vnode a bin, with bounds for bins and for
//! seats, is a flow. A path pushes a vnode out of a bin that has too much into another, there perhaps another vnode on, and so forth
//! until one has room (or pulls, backwards, into a bin that has too little): breadth first, so that the fewest vnodes move.

use super::placement::{NOBODY, Owners, Seat, UNOWNED};
use super::ring::{Ring, core_of};
use super::targets::{Share, Targets};
use crate::base::record::Token;
use std::collections::VecDeque;

/// Tokens that the walk for one hole looks at; then a path is searched, which looks at all seats.
const WALK_MAX: usize = 256;
/// Candidates that the search for one path looks at before it is given up: placement takes bounded time, and evenness gives way.
const SEARCH_MAX: usize = 1 << 20;

/// Which way vnodes go, seen from where a search starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Direction {
    /// Away, to where there is room.
    Push,
    /// Here, from where there is plenty.
    Pull,
}

/// How a search came to a bin.
#[derive(Clone, Copy, Debug)]
enum Step {
    Start,
    /// A vnode without an owner goes here.
    Hole(u32),
    /// This vnode moves between that bin and here.
    Vnode(u32, usize),
    /// From another bin of the same seat: what comes in there goes out here.
    Seat(usize),
}

/// What is given lies tightly around the share; what is there already is let be within a wider band, for every step towards evenness moves
/// data. In thousandths of the share.
struct Band {
    /// Nothing is taken from who would fall below.
    low: u64,
    /// Above it something is taken away.
    most: u64,
}

const SEAT_BAND: Band = Band { low: 1000, most: 1035 };
const BIN_BAND: Band = Band { low: 920, most: 1080 };

/// What something holds at this position, and between what it should lie.
#[derive(Clone, Copy, Debug, Default)]
struct Load {
    held: u32,
    low: u32,
    high: u32,
    most: u32,
    /// What it holds at the positions before.
    before: u32,
}

impl Load {
    /// Takes what it holds as past, and counts anew, towards `share` of this position and all before.
    fn begin(&mut self, share: Share, band: Band) {
        let before = self.before + self.held;
        let left = |vnodes: u32| vnodes.saturating_sub(before);
        let most = share.ceil().max(share.part(band.most, 1000).floor());
        *self = Load { held: 0, low: left(share.part(band.low, 1000).floor()), high: left(share.ceil()), most: left(most), before };
    }

    fn is_over(&self) -> bool {
        self.held > self.most
    }

    /// Whether it may take one more (push) or give one (pull).
    fn serves(&self, direction: Direction) -> bool {
        match direction {
            Direction::Push => self.held < self.high,
            Direction::Pull => self.held > self.low,
        }
    }
}

/// A placement in the making.
pub(super) struct Balance<'a> {
    seats: &'a [Seat],
    targets: &'a Targets,
    lists: Vec<Owners>,
    /// There was no placement before.
    is_fresh: bool,
    position: usize,
    seat_loads: Vec<Load>,
    bin_loads: Vec<Load>,
    /// The first bin of each seat; its others follow.
    first_bin: Vec<usize>,
    seat_of_bin: Vec<u16>,
    /// Of each bin the vnodes at this position.
    vnodes_of_bin: Vec<Vec<u32>>,
    /// Of each bin the number of the last search that saw it, and how it came there.
    seen: Vec<(u32, Step)>,
    searches: u32,
}

impl<'a> Balance<'a> {
    pub fn new(seats: &'a [Seat], targets: &'a Targets, lists: Vec<Owners>) -> Balance<'a> {
        let (mut first_bin, mut seat_of_bin) = (Vec::with_capacity(seats.len()), Vec::new());
        for (index, seat) in seats.iter().enumerate() {
            first_bin.push(seat_of_bin.len());
            seat_of_bin.resize(seat_of_bin.len() + usize::from(seat.cores), index as u16);
        }
        let bins = seat_of_bin.len();
        Balance {
            seats,
            targets,
            is_fresh: lists.iter().all(|list| *list == UNOWNED),
            lists,
            position: 0,
            seat_loads: vec![Load::default(); seats.len()],
            bin_loads: vec![Load::default(); bins],
            first_bin,
            seat_of_bin,
            vnodes_of_bin: vec![Vec::new(); bins],
            seen: vec![(0, Step::Start); bins],
            searches: 0,
        }
    }

    /// Where every seat is in every list, who is gone can be replaced by nobody: the others move up.
    pub fn close_gaps(&mut self) {
        for list in &mut self.lists {
            let mut kept = 0;
            for at in 0..list.len() {
                if list[at] != NOBODY && self.seats[usize::from(list[at])].weight > 0 {
                    list.swap(kept, at);
                    kept += 1;
                }
            }
            list[kept..].fill(NOBODY);
        }
    }

    /// Goes to a position: computes its bounds, and takes the seats out of it that may not be there.
    pub fn begin(&mut self, position: usize) {
        self.position = position;
        let vnodes = self.lists.len() as u32;
        self.vnodes_of_bin.iter_mut().for_each(Vec::clear);
        for (index, seat) in self.seats.iter().enumerate() {
            let share = self.targets.of(index, position + 1);
            self.seat_loads[index].begin(share, SEAT_BAND);
            let cores = u32::from(seat.cores);
            for core in 0..cores {
                let of_core = vnodes / cores + u32::from(core < vnodes % cores);
                let share = share.part(u64::from(of_core), u64::from(vnodes));
                self.bin_loads[self.first_bin[index] + core as usize].begin(share, BIN_BAND);
            }
        }
        for vnode in 0..vnodes {
            let owner = self.owner(vnode);
            if owner == NOBODY {
                continue;
            }
            let stays = self.seats[usize::from(owner)].weight > 0 && self.is_new_rack(vnode, owner);
            if stays { self.count_in(vnode, owner) } else { self.lists[vnode as usize][position] = NOBODY }
        }
    }

    /// Gives every hole an owner: by the walk, else by a path, else whoever is least above its share.
    pub fn fill(&mut self, ring: &Ring) {
        let vnodes = self.lists.len() as u32;
        let arc_bits = Token::BITS - vnodes.trailing_zeros();
        for vnode in 0..vnodes {
            if self.owner(vnode) != NOBODY {
                continue;
            }
            let start = Token::from(vnode).checked_shl(arc_bits).unwrap_or(0);
            match self.by_walk(vnode, ring, start) {
                Some(seat) => self.give(vnode, seat),
                None => self.fill_by_path(vnode),
            }
        }
    }

    /// A seat with room for a vnode: clockwise one that is not among its owners, else one that moves up from further back, before
    /// somebody comes who would drive a rackmate out. Where vnodes have data, rather one a little over its share than a path that moves
    /// more.
    fn by_walk(&self, vnode: u32, ring: &Ring, start: Token) -> Option<u16> {
        let is_new = |seat: &u16| self.later(vnode).all(|other| other != *seat && !self.wants_apart(vnode, other, *seat));
        let look = |has_room: fn(&Load) -> bool| {
            let fits = |&seat: &u16| {
                has_room(&self.seat_loads[usize::from(seat)])
                    && has_room(&self.bin_loads[self.bin_of(vnode, seat)])
                    && self.may_take(vnode, seat)
            };
            let found = ring.walk(start).take(WALK_MAX).find(|seat| fits(seat) && is_new(seat));
            found.or_else(|| self.later(vnode).find(fits))
        };
        let wider = || if self.is_fresh { None } else { look(|load| load.held < load.most) };
        look(|load| load.held < load.high).or_else(wider)
    }

    fn fill_by_path(&mut self, vnode: u32) {
        let mut queue = self.start_search();
        for seat in 0..self.seats.len() as u16 {
            if self.may_take(vnode, seat) && self.arrive(Direction::Push, self.bin_of(vnode, seat), Step::Hole(vnode), NOBODY, &mut queue) {
                return self.follow(Direction::Push, self.bin_of(vnode, seat));
            }
        }
        if self.search(Direction::Push, NOBODY, queue) {
            return;
        }
        let above = |seat: &u16| {
            let load = self.seat_loads[usize::from(*seat)];
            (i64::from(load.held) - i64::from(load.high), *seat)
        };
        let least = (0..self.seats.len() as u16).filter(|seat| self.may_take(vnode, *seat)).min_by_key(above);
        // There are at least as many seats with weight as positions, and as many racks as positions that want one of their own.
        self.give(vnode, least.expect("somebody may hold it"));
    }

    /// Mends what is over or under its share, as far as there are paths.
    pub fn mend(&mut self) {
        for seat in 0..self.seats.len() as u16 {
            while self.seat_loads[usize::from(seat)].is_over() {
                let by_excess = |bin: &usize| i64::from(self.bin_loads[*bin].high) - i64::from(self.bin_loads[*bin].held);
                let bins = self.bins_of(seat, by_excess);
                if !self.mend_from(Direction::Push, bins, NOBODY) {
                    break;
                }
            }
        }
        for bin in 0..self.bin_loads.len() {
            while self.bin_loads[bin].is_over() {
                if !self.mend_from(Direction::Push, vec![bin], self.seat_of_bin[bin]) {
                    break;
                }
            }
        }
        for seat in 0..self.seats.len() as u16 {
            if !self.is_low(seat) {
                continue;
            }
            while self.seat_loads[usize::from(seat)].held < self.seat_loads[usize::from(seat)].low {
                let by_need = |bin: &usize| i64::from(self.bin_loads[*bin].held) - i64::from(self.bin_loads[*bin].low);
                let mut bins = self.bins_of(seat, by_need);
                bins.retain(|bin| self.bin_loads[*bin].serves(Direction::Push));
                if !self.mend_from(Direction::Pull, bins, NOBODY) {
                    break;
                }
            }
        }
    }

    /// The lists, without what lies behind the last position.
    pub fn finish(mut self, replicas: usize) -> Vec<Owners> {
        self.lists.iter_mut().for_each(|list| list[replicas..].fill(NOBODY));
        self.lists
    }

    /// So far under that it is worth moves: a few below a share that hardly changed are not, unless the share is every vnode, since then
    /// what is missing here weighs on seats that are to have less.
    fn is_low(&self, seat: u16) -> bool {
        let load = self.seat_loads[usize::from(seat)];
        let is_whole = (load.before + load.low) as usize >= self.lists.len();
        let slack = if is_whole { 0 } else { 1 + (load.before + load.low) / 32 };
        load.held + slack < load.low
    }

    fn bins_of(&self, seat: u16, order: impl Fn(&usize) -> i64) -> Vec<usize> {
        let first = self.first_bin[usize::from(seat)];
        let mut bins: Vec<usize> = (first..first + usize::from(self.seats[usize::from(seat)].cores)).collect();
        bins.sort_by_key(order);
        bins
    }

    // Searching.

    fn start_search(&mut self) -> VecDeque<usize> {
        self.searches += 1;
        VecDeque::new()
    }

    /// Moves along the shortest path from one of `bins`. `home` is the seat whose own load does not change because it is at both ends.
    fn mend_from(&mut self, direction: Direction, bins: Vec<usize>, home: u16) -> bool {
        let mut queue = self.start_search();
        for bin in bins {
            self.seen[bin] = (self.searches, Step::Start);
            queue.push_back(bin);
        }
        self.search(direction, home, queue)
    }

    fn search(&mut self, direction: Direction, home: u16, mut queue: VecDeque<usize>) -> bool {
        let mut looked_at = 0;
        while let Some(bin) = queue.pop_front() {
            if looked_at > SEARCH_MAX {
                break;
            }
            let here = self.seat_of_bin[bin];
            if direction == Direction::Push {
                for at in 0..self.vnodes_of_bin[bin].len() {
                    let vnode = self.vnodes_of_bin[bin][at];
                    looked_at += self.seats.len();
                    for seat in (0..self.seats.len() as u16).filter(|seat| *seat != here) {
                        let there = self.bin_of(vnode, seat);
                        if self.is_seen(there) || !self.may_take(vnode, seat) {
                            continue;
                        }
                        if self.arrive(direction, there, Step::Vnode(vnode, bin), home, &mut queue) {
                            self.follow(direction, there);
                            return true;
                        }
                    }
                }
                continue;
            }
            let (core, cores) = (bin - self.first_bin[usize::from(here)], usize::from(self.seats[usize::from(here)].cores));
            for vnode in (core..self.lists.len()).step_by(cores).map(|vnode| vnode as u32) {
                looked_at += 1;
                let owner = self.owner(vnode);
                let there = self.bin_of(vnode, owner);
                if owner == here || self.is_seen(there) || !self.may_take(vnode, here) {
                    continue;
                }
                if self.arrive(direction, there, Step::Vnode(vnode, bin), home, &mut queue) {
                    self.follow(direction, there);
                    return true;
                }
            }
        }
        false
    }

    /// Notes how a bin was reached; true if the path may end there.
    fn arrive(&mut self, direction: Direction, bin: usize, step: Step, home: u16, queue: &mut VecDeque<usize>) -> bool {
        if self.is_seen(bin) {
            return false;
        }
        self.seen[bin] = (self.searches, step);
        queue.push_back(bin);
        if !self.bin_loads[bin].serves(direction) {
            return false;
        }
        let seat = self.seat_of_bin[bin];
        if seat == home || self.seat_loads[usize::from(seat)].serves(direction) {
            return true;
        }
        // The bin could, its seat cannot: another bin of the seat takes the seat's part.
        let onward = if direction == Direction::Push { Direction::Pull } else { Direction::Push };
        let first = self.first_bin[usize::from(seat)];
        for other in first..first + usize::from(self.seats[usize::from(seat)].cores) {
            if !self.is_seen(other) && self.bin_loads[other].serves(onward) {
                self.seen[other] = (self.searches, Step::Seat(bin));
                queue.push_back(other);
            }
        }
        false
    }

    fn is_seen(&self, bin: usize) -> bool {
        self.seen[bin].0 == self.searches
    }

    /// Moves every vnode of the path that ends at `bin`.
    fn follow(&mut self, direction: Direction, mut bin: usize) {
        loop {
            match self.seen[bin].1 {
                Step::Start => return,
                Step::Hole(vnode) => return self.give(vnode, self.seat_of_bin[bin]),
                Step::Seat(from) => bin = from,
                Step::Vnode(vnode, from) => {
                    let taker = if direction == Direction::Push { bin } else { from };
                    self.give(vnode, self.seat_of_bin[taker]);
                    bin = from;
                }
            }
        }
    }

    // Who holds what.

    fn owner(&self, vnode: u32) -> u16 {
        self.lists[vnode as usize][self.position]
    }

    fn bin_of(&self, vnode: u32, seat: u16) -> usize {
        let seat = usize::from(seat);
        self.first_bin[seat] + usize::from(core_of(vnode, self.seats[seat].cores))
    }

    /// The owners at the positions behind this one.
    fn later(&self, vnode: u32) -> impl Iterator<Item = u16> + '_ {
        self.lists[vnode as usize][self.position + 1..].iter().copied().filter(|seat| *seat != NOBODY)
    }

    /// Whether a seat may hold a vnode at this position. Who holds it at a later one may: the two change places.
    fn may_take(&self, vnode: u32, seat: u16) -> bool {
        self.seats[usize::from(seat)].weight > 0
            && !self.lists[vnode as usize][..=self.position].contains(&seat)
            && self.is_new_rack(vnode, seat)
    }

    /// Whether no owner before this position has the seat's rack, where positions want racks of their own.
    fn is_new_rack(&self, vnode: u32, seat: u16) -> bool {
        let before = &self.lists[vnode as usize][..self.position];
        self.position >= self.targets.racks() || before.iter().all(|other| !self.are_rackmates(*other, seat))
    }

    /// Whether a seat at this position and `other`, further back, are rackmates where each wants a rack of its own.
    fn wants_apart(&self, vnode: u32, other: u16, seat: u16) -> bool {
        let racked = &self.lists[vnode as usize][..self.targets.racks()];
        self.position < racked.len() && self.are_rackmates(other, seat) && racked[self.position + 1..].contains(&other)
    }

    fn are_rackmates(&self, one: u16, other: u16) -> bool {
        self.seats[usize::from(one)].rack == self.seats[usize::from(other)].rack
    }

    /// Makes a seat the owner at this position, in place of who is there. Who is there takes the seat's place, if it has one further back;
    /// else the place of the seat's rackmate among those that want racks of their own, so that the list gets one new owner and no more.
    fn give(&mut self, vnode: u32, seat: u16) {
        let before = self.owner(vnode);
        let mate = || self.later(vnode).find(|other| self.wants_apart(vnode, *other, seat));
        let yields = self.later(vnode).find(|other| *other == seat).or_else(mate);
        if let Some(yields) = yields {
            let later = &mut self.lists[vnode as usize][self.position + 1..];
            later.iter_mut().filter(|other| **other == yields).for_each(|other| *other = before);
        }
        self.lists[vnode as usize][self.position] = seat;
        if before != NOBODY {
            let bin = self.bin_of(vnode, before);
            let at = self.vnodes_of_bin[bin].iter().position(|held| *held == vnode).expect("counted in when it came");
            self.vnodes_of_bin[bin].swap_remove(at);
            self.bin_loads[bin].held -= 1;
            self.seat_loads[usize::from(before)].held -= 1;
        }
        self.count_in(vnode, seat);
    }

    fn count_in(&mut self, vnode: u32, seat: u16) {
        let bin = self.bin_of(vnode, seat);
        self.vnodes_of_bin[bin].push(vnode);
        self.bin_loads[bin].held += 1;
        self.seat_loads[usize::from(seat)].held += 1;
    }
}
