//! How much of the ring each seat should hold: the fair share of every seat among the first 1, 2, … replicas of all vnodes, in integers,
//! so that every machine computes the same.
//!
//! A share follows the weights, within two limits: a seat holds a vnode once, and so does a rack while there are racks without it. So a
//! seat that would deserve more than every vnode gets every vnode, and the others share the rest by their weights (water filling).

use super::placement::Seat;
use crate::limits::RF_MAX;

/// Shares are in vnodes, with this many bits behind the point.
const POINT: u32 = 20;
/// Below what a share may be off by rounding, above what would matter.
const ERROR: u64 = 1 << (POINT - 12);
/// Bits behind the point of the level, in shares a unit of weight.
const LEVEL_POINT: u32 = 32;

/// A share of the ring: vnodes as a fixed-point number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Share(u64);

impl Share {
    pub fn of_vnodes(vnodes: u32) -> Share {
        Share(u64::from(vnodes) << POINT)
    }

    /// The whole vnodes below it.
    pub fn floor(self) -> u32 {
        ((self.0 + ERROR) >> POINT) as u32
    }

    /// The whole vnodes above it.
    pub fn ceil(self) -> u32 {
        ((self.0.saturating_sub(ERROR) + (1 << POINT) - 1) >> POINT) as u32
    }

    /// `part` of `whole` of it.
    pub fn part(self, part: u64, whole: u64) -> Share {
        Share((u128::from(self.0) * u128::from(part) / u128::from(whole.max(1))) as u64)
    }

    /// For figures that people read.
    pub fn as_f64(self) -> f64 {
        self.0 as f64 / f64::from(1u32 << POINT)
    }
}

/// The fair shares of all seats.
pub struct Targets {
    /// Of each seat among the first 1, 2, … replicas.
    prefixes: Vec<Vec<Share>>,
    racks: usize,
}

impl Targets {
    pub fn new(seats: &[Seat], vnodes: u32) -> Targets {
        let (rack_weights, rack_of) = racks(seats);
        let racks = rack_weights.iter().filter(|weight| **weight > 0).count();
        let live = seats.iter().filter(|seat| seat.weight > 0).count();
        let weights: Vec<u64> = seats.iter().map(|seat| u64::from(seat.weight)).collect();
        let one = Share::of_vnodes(vnodes).0;
        let (mut of_racks, mut of_seats) = (vec![0; rack_weights.len()], vec![0; seats.len()]);
        let mut prefixes = Vec::new();
        for len in 1..=live.min(RF_MAX) {
            let total = one * len as u64;
            if len <= racks {
                of_racks = fill(&rack_weights, &of_racks, one, total);
                let share = |(seat, weight): (usize, &u64)| {
                    let rack = rack_of[seat];
                    Share(of_racks[rack]).part(*weight, rack_weights[rack]).0
                };
                of_seats = weights.iter().enumerate().map(share).collect();
            } else {
                of_seats = fill(&weights, &of_seats, one, total);
            }
            prefixes.push(of_seats.iter().map(|share| Share(*share)).collect());
        }
        Targets { prefixes, racks }
    }

    /// How many replicas a vnode has: every live seat, at most `RF_MAX`.
    pub fn replicas(&self) -> usize {
        self.prefixes.len()
    }

    /// How many of the first replicas lie in racks of their own.
    pub fn racks(&self) -> usize {
        self.racks.min(self.replicas())
    }

    /// What `seat` should hold among the first `len` replicas.
    pub fn of(&self, seat: usize, len: usize) -> Share {
        match len.min(self.replicas()) {
            0 => Share(0),
            len => self.prefixes[len - 1][seat],
        }
    }
}

/// Each rack's weight, and for each seat the index of its rack.
fn racks(seats: &[Seat]) -> (Vec<u64>, Vec<usize>) {
    let mut names: Vec<u32> = seats.iter().map(|seat| seat.rack).collect();
    names.sort_unstable();
    names.dedup();
    let rack_of: Vec<usize> = seats.iter().map(|seat| names.partition_point(|name| *name < seat.rack)).collect();
    let mut weights = vec![0; names.len()];
    seats.iter().zip(&rack_of).for_each(|(seat, rack)| weights[*rack] += u64::from(seat.weight));
    (weights, rack_of)
}

/// Divides `total` by the weights, nobody getting less than `least` or (with any weight) more than `most`: the highest level at which the
/// sum stays within the total.
fn fill(weights: &[u64], least: &[u64], most: u64, total: u64) -> Vec<u64> {
    let at = |level: u128| {
        let share = move |(weight, least): (&u64, &u64)| {
            let share = (level * u128::from(*weight)) >> LEVEL_POINT;
            (share.min(u128::from(most)) as u64).max(*least)
        };
        weights.iter().zip(least).map(share)
    };
    // At the highest level whoever has any weight has the most.
    let (mut low, mut high) = (0u128, u128::from(most + 1) << LEVEL_POINT);
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        if at(middle).sum::<u64>() <= total { low = middle } else { high = middle }
    }
    at(low).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seats(weights: &[(u32, u32)]) -> Vec<Seat> {
        let seat = |(id, &(weight, rack)): (usize, &(u32, u32))| Seat { id: id as u64, cores: 1, weight, rack };
        weights.iter().enumerate().map(seat).collect()
    }

    fn rounded(targets: &Targets, len: usize, count: usize) -> Vec<u64> {
        (0..count).map(|seat| targets.of(seat, len).as_f64().round() as u64).collect()
    }

    #[test]
    fn shares_follow_the_weights_until_a_seat_has_every_vnode() {
        let targets = Targets::new(&seats(&[(4, 0), (8, 0), (16, 0), (0, 0)]), 4096);
        assert_eq!((targets.replicas(), targets.racks()), (3, 1));
        assert_eq!(rounded(&targets, 1, 4), [585, 1170, 2341, 0]);
        assert_eq!(rounded(&targets, 2, 4), [1365, 2731, 4096, 0]);
        assert_eq!(rounded(&targets, 3, 4), [4096, 4096, 4096, 0]);
        assert_eq!((targets.of(2, 2).floor(), targets.of(2, 2).ceil()), (4096, 4096));
        assert_eq!((targets.of(0, 2).floor(), targets.of(0, 2).ceil()), (1365, 1366));
    }

    #[test]
    fn each_rack_has_a_replica_before_one_has_two() {
        let targets = Targets::new(&seats(&[(1, 7), (1, 7), (1, 7), (1, 9)]), 1024);
        assert_eq!((targets.replicas(), targets.racks()), (4, 2));
        assert_eq!(rounded(&targets, 1, 4), [256, 256, 256, 256]);
        assert_eq!(rounded(&targets, 2, 4), [341, 341, 341, 1024]);
        assert_eq!(rounded(&targets, 3, 4), [683, 683, 683, 1024]);
    }

    #[test]
    fn whole_numbers_stay_whole() {
        let targets = Targets::new(&seats(&[(16, 0); 8]), 4096);
        assert!((0..8).all(|seat| (1..=5).all(|len| targets.of(seat, len).floor() == 512 * len as u32)));
        assert!((0..8).all(|seat| (1..=5).all(|len| targets.of(seat, len).ceil() == 512 * len as u32)));
    }
}
