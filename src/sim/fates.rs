//! What befalls the nodes of `cluster` between two of its turns.
//!
//! Each seed draws how often each fate comes, and some not at all: what needs one of them many times, undisturbed by others, is then met
//! within fewer seeds than where all come evenly (Groce et al., "Swarm testing", 2012).

use super::cluster::{Cut, FaultSet, Run};
use super::estranged::Estranged;
use super::operator;
use crate::base::prng::Prng;
use crate::io::sim::{CrashSite, Faults};
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Of these one is drawn for each fate of a seed, that it comes so many times as often as it would. Never is as likely as often.
const SHARES: [u64; 5] = [0, 1, 1, 2, 6];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    PowerFails,
    Killed,
    PowerFailsAtAnOperation,
    AllPowerFails,
    CutOneWay,
    CutBothWays,
    CutOff,
    Reset,
    Ordered,
    Estranged,
    DiskFull,
    DiskFails,
}

impl Fate {
    const ALL: [Fate; 12] = [
        Fate::PowerFails,
        Fate::Killed,
        Fate::PowerFailsAtAnOperation,
        Fate::AllPowerFails,
        Fate::CutOneWay,
        Fate::CutBothWays,
        Fate::CutOff,
        Fate::Reset,
        Fate::Ordered,
        Fate::Estranged,
        Fate::DiskFull,
        Fate::DiskFails,
    ];

    fn is_among(self, faults: &FaultSet) -> bool {
        match self {
            Fate::PowerFails | Fate::Killed | Fate::PowerFailsAtAnOperation | Fate::AllPowerFails => faults.crash,
            Fate::CutOneWay | Fate::CutBothWays | Fate::CutOff => faults.cut,
            Fate::Reset => faults.network,
            Fate::Ordered => faults.moves,
            Fate::Estranged => faults.moves && faults.cut,
            Fate::DiskFull => faults.full,
            Fate::DiskFails => faults.errors,
        }
    }

    /// How often it comes where all come evenly.
    fn evenly(self) -> u64 {
        match self {
            Fate::AllPowerFails => 1,
            Fate::Ordered => 24,
            Fate::Estranged => 12,
            _ => 4,
        }
    }
}

/// Links to nodes that move a vnode are cut in so many of so many turns where vnodes move, where that comes evenly.
const MOVERS_CUT: (u64, u64) = (1, 8);

/// One of what a seed may draw; what is there several times is so much likelier.
pub(super) fn any_of<T: Copy>(prng: &mut Prng, choices: &[T]) -> T {
    *prng.pick(choices).expect("there is something to choose")
}

/// How often each comes in one seed.
pub(super) struct Fates {
    drawn: Vec<(Fate, u64)>,
    movers_cut: u64,
}

impl Fates {
    pub(super) fn draw(prng: &mut Prng, faults: &FaultSet) -> Fates {
        let mut drawn = Vec::new();
        for fate in Fate::ALL {
            // Drawn for all, so that a seed without some faults is otherwise as it was.
            let share = any_of(prng, &SHARES);
            drawn.push((fate, if fate.is_among(faults) { fate.evenly() * share } else { 0 }));
        }
        let share = any_of(prng, &SHARES);
        let movers_cut = if faults.moves && faults.cut { MOVERS_CUT.0 * share } else { 0 };
        Fates { drawn, movers_cut }
    }

    fn next(&self, prng: &mut Prng) -> Option<Fate> {
        let total: u64 = self.drawn.iter().map(|(_, weight)| weight).sum();
        let mut at = prng.below(total.max(1));
        let chosen = self.drawn.iter().find(|(_, weight)| {
            let is_it = at < *weight;
            at = at.saturating_sub(*weight);
            is_it
        });
        chosen.map(|(fate, _)| *fate)
    }
}

/// Latencies of a seed's disks and network, before anything befalls them.
pub(super) fn draw_latencies(prng: &mut Prng, faults: &FaultSet) -> Faults {
    let mut drawn = if faults.slow && prng.one_in(2) { Faults::rough() } else { Faults::default() };
    // Disks whose syncs take long: that power fails in the middle of one is likely.
    let sync_us = prng.between(2_000, 15_000);
    if faults.slow && prng.one_in(3) {
        drawn.sync_us = sync_us;
    }
    if faults.network {
        drawn.chunk_one_in = prng.between(2, 20);
        drawn.reset_one_in = if prng.one_in(2) { 3_000 } else { 0 };
    }
    drawn
}

impl Run {
    pub(super) fn disturb(&mut self) {
        let faults = self.setup.faults;
        self.look_at_estranged();
        // They are left to each other, mostly.
        if self.estranged.is_some_and(Estranged::is_under_way) && !self.prng.one_in(4) {
            return;
        }
        if self.prng.below(MOVERS_CUT.1) < self.fates.movers_cut {
            self.cut_movers();
        }
        if faults.moves && self.is_eager && self.prng.one_in(6) {
            self.order_something();
        }
        if self.prng.one_in(self.pace.fails_one_in)
            && let Some(fate) = self.fates.next(&mut self.prng)
        {
            self.befall(fate);
        }
    }

    fn befall(&mut self, fate: Fate) {
        let count = self.nodes.len() as u64;
        let one = self.prng.below(count) as usize;
        // Any but that.
        let other = (one + 1 + self.prng.below(count - 1) as usize) % self.nodes.len();
        match fate {
            Fate::PowerFails => self.fall(one, true),
            Fate::Killed => self.fall(one, false),
            Fate::PowerFailsAtAnOperation if self.nodes[one].life.is_some() => {
                let site = [CrashSite::Before, CrashSite::During, CrashSite::After][self.prng.below(3) as usize];
                let at = self.world.disk_ops(self.nodes[one].machine) + self.prng.between(1, 200);
                self.world.crash_at_op(self.nodes[one].machine, at, site);
            }
            Fate::PowerFailsAtAnOperation => {}
            Fate::AllPowerFails => {
                self.note("the power of all nodes fails");
                (0..self.nodes.len()).for_each(|node| self.fall(node, true));
            }
            Fate::CutOneWay => {
                self.cut(one, other);
                self.happened("link cut one way");
            }
            Fate::CutBothWays => {
                self.cut(one, other);
                self.cut(other, one);
                self.happened("link cut both ways");
            }
            Fate::CutOff => {
                self.note(format!("node {} is cut off", one + 1));
                self.count_meanwhile(one, operator::CUT_MEANWHILE);
                for other in (0..self.nodes.len()).filter(|other| *other != one) {
                    self.cut(one, other);
                    self.cut(other, one);
                }
                self.happened("node cut off");
            }
            Fate::Reset => self.world.reset_connections(self.nodes[one].machine, self.nodes[other].machine),
            Fate::Ordered => self.order_something(),
            Fate::Estranged => self.estranged = self.estranged.or(Some(Estranged::Wanted)),
            Fate::DiskFull => self.sicken(one, Self::fill_disk),
            Fate::DiskFails => self.sicken(one, Self::break_disk),
        }
    }

    pub(super) fn fall(&mut self, node: usize, by_power: bool) {
        if self.nodes[node].life.is_none() || !self.world.is_up(self.nodes[node].machine) {
            return;
        }
        let machine = self.nodes[node].machine;
        if by_power {
            self.note(format!("the power of node {} fails", node + 1));
            self.world.crash(machine);
        } else {
            self.note(format!("node {} is killed", node + 1));
            self.world.kill(machine);
        }
        self.fell(node);
    }

    /// Something is wrong with a node's disk for a while, if nothing is already.
    fn sicken(&mut self, node: usize, how: fn(&mut Run, usize)) {
        // One that is still starting would end, and have to be started again.
        let serves = self.nodes[node].life.as_ref().is_some_and(|life| life.ready.load(Ordering::Acquire));
        if serves && self.nodes[node].sick_until.is_none() {
            self.nodes[node].sick_until = Some(self.world.now().plus(Duration::from_millis(self.prng.between(20, 1_500))));
            how(self, node);
        }
    }

    fn fill_disk(&mut self, node: usize) {
        let (machine, room) = (self.nodes[node].machine, self.prng.between(0, 200) * 1024);
        self.note(format!("the disk of node {} has room for {room} bytes more", node + 1));
        self.world.set_capacity(machine, self.world.disk_bytes(machine) + room);
    }

    fn break_disk(&mut self, node: usize) {
        let one_in = self.prng.between(100, 2_000);
        self.note(format!("one in {one_in} operations of node {}'s disk fails", node + 1));
        self.nodes[node].had_errors = true;
        self.world.faults(self.nodes[node].machine, |faults| {
            (faults.read_error_one_in, faults.write_error_one_in, faults.sync_error_one_in) = (one_in, one_in, one_in);
        });
    }

    pub(super) fn cure(&mut self, node: usize) {
        self.nodes[node].sick_until = None;
        self.world.set_capacity(self.nodes[node].machine, u64::MAX);
        self.world.faults(self.nodes[node].machine, |faults| {
            (faults.read_error_one_in, faults.write_error_one_in, faults.sync_error_one_in) = (0, 0, 0);
        });
    }

    /// A node falls, and never comes back.
    pub(super) fn bury(&mut self, node: usize) {
        self.nodes[node].is_dead = true;
        self.nodes[node].back_at = None;
        self.fall(node, true);
        self.note(format!("node {} is gone for good", node + 1));
    }

    pub(super) fn cut(&mut self, from: usize, to: usize) {
        let until = self.world.now().plus(Duration::from_millis(self.prng.between(20, 1_500)));
        self.note(format!("nothing comes from node {} to node {} for a while", from + 1, to + 1));
        self.world.cut(self.nodes[from].machine, self.nodes[to].machine);
        self.cuts.push(Cut { from, to, until });
    }
}
