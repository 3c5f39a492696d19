//! `ringkv ring`: how even a placement is and how little a change moves, for a cluster that need not exist, against the goals.
//! Floating point is for the reader only; placement itself has none.

use super::placement::{NOBODY, Owners, Seat, UNOWNED, place};
use super::ring::core_of;
use super::targets::{Share, Targets};
use std::fmt::Write;

/// The largest load of a node against its share.
const NODE_GOAL: f64 = 1.05;
/// The largest load of a core against its share.
const CORE_GOAL: f64 = 1.10;
/// What a change may move against the share of the node that comes or goes.
const MOVE_GOAL: f64 = 1.10;

/// The cluster to draw.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sketch {
    pub nodes: u16,
    /// Core counts of the nodes, repeated as often as needed; not empty. A node's weight is its core count.
    pub cores: Vec<u16>,
    pub vnodes: u32,
    pub rf: usize,
    /// At least 1; the nodes are dealt out to them in turn.
    pub racks: u16,
}

/// Loads of nodes or cores, in vnodes.
#[derive(Clone, Copy, Debug)]
pub struct LoadRow {
    pub what: &'static str,
    pub key: &'static str,
    pub min: u32,
    pub mean: f64,
    pub max: u32,
    /// The largest load against its own share.
    pub worst: f64,
    pub goal: f64,
    /// A share rounded up is always within the goal: a vnode is not split.
    pub is_met: bool,
}

/// What a change moves, in replicas of vnodes.
#[derive(Clone, Copy, Debug)]
pub struct MoveRow {
    pub is_join: bool,
    /// Of the node that comes or goes.
    pub cores: u16,
    pub moved: u32,
    pub fair: f64,
    pub is_met: bool,
}

/// The table.
#[derive(Clone, Debug)]
pub struct RingTable {
    sketch: Sketch,
    pub loads: Vec<LoadRow>,
    pub moves: Vec<MoveRow>,
}

impl RingTable {
    pub fn new(sketch: &Sketch) -> RingTable {
        let seats: Vec<Seat> = (0..sketch.nodes).map(|index| sketch.seat(index)).collect();
        let lists = place(&seats, &vec![UNOWNED; sketch.vnodes as usize]);
        let targets = Targets::new(&seats, sketch.vnodes);
        let rf = sketch.rf.min(targets.replicas());
        let loads = load_rows(&seats, &targets, &lists, rf);
        let mut kinds = sketch.cores.clone();
        kinds.sort_unstable();
        kinds.dedup();
        let join = |cores: &u16| {
            let joined = [&seats[..], &[Seat { cores: *cores, weight: u32::from(*cores), ..sketch.seat(sketch.nodes) }]].concat();
            let fair = Targets::new(&joined, sketch.vnodes).of(seats.len(), rf);
            MoveRow::new(true, *cores, moved(&lists, &place(&joined, &lists), rf), fair)
        };
        let leave = |cores: &u16| {
            let leaver = seats.iter().position(|seat| seat.cores == *cores).filter(|_| seats.len() > 1)?;
            let mut left = seats.clone();
            left[leaver].weight = 0;
            // Where there are no more nodes than replicas, nobody takes over: there is one replica less.
            let fair = targets.of(leaver, rf);
            Some(MoveRow::new(false, *cores, moved(&lists, &place(&left, &lists), rf), fair))
        };
        let moves = kinds.iter().map(join).chain(kinds.iter().filter_map(leave)).collect();
        RingTable { sketch: sketch.clone(), loads, moves }
    }

    pub fn is_met(&self) -> bool {
        self.loads.iter().all(|row| row.is_met) && self.moves.iter().all(|row| row.is_met)
    }

    /// For people; lines without their ends.
    pub fn lines(&self) -> Vec<String> {
        let Sketch { nodes, vnodes, rf, racks, .. } = self.sketch;
        let cores = self.sketch.cores_text();
        let verdict = |is_met: bool| if is_met { "" } else { "  MISSED" };
        let mut lines = vec![format!("{nodes} nodes · {cores} cores · {racks} racks · {vnodes} vnodes · RF {rf}"), String::new()];
        lines.push(format!("{:<30}{:>8}{:>10}{:>8}{:>12}  goal", "load, in vnodes", "min", "mean", "max", "max/share"));
        for row in &self.loads {
            let LoadRow { what, min, mean, max, worst, goal, is_met, .. } = *row;
            lines.push(format!("{what:<30}{min:>8}{mean:>10.1}{max:>8}{worst:>12.3}  ≤ {goal:.2}{}", verdict(is_met)));
        }
        lines.push(String::new());
        lines.push(format!("{:<30}{:>8}{:>10}{:>8}{:>12}  goal", "movement, in replicas", "moved", "fair", "", "moved/fair"));
        for row in &self.moves {
            let what = format!("{} of a node of {} cores", if row.is_join { "join" } else { "leave" }, row.cores);
            let (moved, fair, ratio) = (row.moved, row.fair, row.ratio());
            lines.push(format!("{what:<30}{moved:>8}{fair:>10.1}{:>8}{ratio:>12.3}  ≤ {MOVE_GOAL:.2}{}", "", verdict(row.is_met)));
        }
        lines.push(String::new());
        lines.push("A share follows the core counts; rounded up to whole vnodes it always meets the goal.".to_owned());
        lines
    }

    /// For programs: one object.
    pub fn json(&self) -> String {
        let Sketch { nodes, vnodes, rf, racks, cores } = &self.sketch;
        let mut out =
            format!("{{\"nodes\":{nodes},\"cores\":{cores:?},\"racks\":{racks},\"vnodes\":{vnodes},\"rf\":{rf},\"met\":{}", self.is_met());
        for LoadRow { key, min, mean, max, worst, goal, is_met, .. } in &self.loads {
            let row = format!("\"min\":{min},\"mean\":{mean:.3},\"max\":{max},\"max_share\":{worst:.4},\"goal\":{goal},\"met\":{is_met}");
            write!(out, ",\"{key}\":{{{row}}}").expect("a string takes all");
        }
        for (key, is_join) in [("join", true), ("leave", false)] {
            let row = |row: &MoveRow| {
                let MoveRow { cores, moved, fair, is_met, .. } = row;
                let ratio = row.ratio();
                format!(
                    "{{\"cores\":{cores},\"moved\":{moved},\"fair\":{fair:.3},\"ratio\":{ratio:.4},\"goal\":{MOVE_GOAL},\"met\":{is_met}}}"
                )
            };
            let rows: Vec<String> = self.moves.iter().filter(|row| row.is_join == is_join).map(row).collect();
            write!(out, ",\"{key}\":[{}]", rows.join(",")).expect("a string takes all");
        }
        out.push('}');
        out
    }
}

impl Sketch {
    fn seat(&self, index: u16) -> Seat {
        let cores = self.cores[usize::from(index) % self.cores.len()];
        Seat { id: u64::from(index) + 1, cores, weight: u32::from(cores), rack: u32::from(index % self.racks) }
    }

    fn cores_text(&self) -> String {
        self.cores.iter().map(u16::to_string).collect::<Vec<String>>().join("/")
    }
}

impl MoveRow {
    fn new(is_join: bool, cores: u16, moved: u32, fair: Share) -> MoveRow {
        let is_met = f64::from(moved) <= fair.as_f64() * MOVE_GOAL || moved <= fair.ceil();
        MoveRow { is_join, cores, moved, fair: fair.as_f64(), is_met }
    }

    fn ratio(&self) -> f64 {
        f64::from(self.moved) / self.fair
    }
}

fn load_rows(seats: &[Seat], targets: &Targets, lists: &[Owners], rf: usize) -> Vec<LoadRow> {
    let mut rows = Vec::new();
    for (len, of_node, of_core) in [
        (rf, ("replicas a node", "node"), ("replicas a core", "core")),
        (1, ("first replicas a node", "node_first"), ("first replicas a core", "core_first")),
    ] {
        let loads = loads(seats, targets, lists, len);
        rows.push(load_row(of_node, &loads.nodes, NODE_GOAL));
        rows.push(load_row(of_core, &loads.cores, CORE_GOAL));
    }
    rows
}

/// What a node or a core holds, in vnodes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Held {
    pub vnodes: u32,
    pub share: Share,
}

impl Held {
    /// Against the share; nothing where nothing is held, though the share be nothing too.
    pub fn against_share(&self) -> f64 {
        if self.vnodes == 0 { 0.0 } else { f64::from(self.vnodes) / self.share.as_f64() }
    }
}

pub(super) struct Loads {
    pub nodes: Vec<Held>,
    pub cores: Vec<Held>,
}

/// What each seat and each core holds among the first `len` replicas.
pub(super) fn loads(seats: &[Seat], targets: &Targets, lists: &[Owners], len: usize) -> Loads {
    let vnodes = lists.len();
    let mut held: Vec<Vec<u32>> = seats.iter().map(|seat| vec![0; usize::from(seat.cores)]).collect();
    for (vnode, list) in (0u32..).zip(lists) {
        for owner in list[..len].iter().filter(|owner| **owner != NOBODY).map(|owner| usize::from(*owner)) {
            held[owner][usize::from(core_of(vnode, seats[owner].cores))] += 1;
        }
    }
    let mut loads = Loads { nodes: Vec::new(), cores: Vec::new() };
    for (seat, of_cores) in held.iter().enumerate() {
        let share = targets.of(seat, len);
        loads.nodes.push(Held { vnodes: of_cores.iter().sum(), share });
        for (core, count) in of_cores.iter().enumerate() {
            let of_core = vnodes / of_cores.len() + usize::from(core < vnodes % of_cores.len());
            loads.cores.push(Held { vnodes: *count, share: share.part(of_core as u64, vnodes as u64) });
        }
    }
    loads
}

fn load_row((what, key): (&'static str, &'static str), loads: &[Held], goal: f64) -> LoadRow {
    let held = || loads.iter().map(|held| held.vnodes);
    LoadRow {
        what,
        key,
        min: held().min().unwrap_or(0),
        mean: f64::from(held().sum::<u32>()) / loads.len() as f64,
        max: held().max().unwrap_or(0),
        worst: loads.iter().map(Held::against_share).fold(0.0, f64::max),
        goal,
        is_met: loads.iter().all(|held| held.against_share() <= goal || held.vnodes <= held.share.ceil()),
    }
}

/// Replicas among the first `rf` that come to a node which lacked them.
pub(super) fn moved(before: &[Owners], after: &[Owners], rf: usize) -> u32 {
    let is_new = |(old, new): (&Owners, &Owners)| new[..rf].iter().filter(|seat| **seat != NOBODY && !old[..rf].contains(seat)).count();
    before.iter().zip(after).map(is_new).sum::<usize>() as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_names_each_goal_and_what_missed_it() {
        let mut table = RingTable::new(&Sketch { nodes: 6, cores: vec![2, 4], vnodes: 512, rf: 3, racks: 1 });
        assert_eq!((table.loads.len(), table.moves.len(), table.is_met()), (4, 4, true));
        let node = &table.loads[0];
        assert_eq!((node.min, node.mean, node.max), (171, 256.0, 342));
        let text = table.lines().join("\n");
        assert!(text.starts_with("6 nodes · 2/4 cores · 1 racks · 512 vnodes · RF 3\n") && !text.contains("MISSED"));
        assert_eq!(text.matches("≤ 1.05").count() + text.matches("≤ 1.10").count(), 8);
        let json = table.json();
        assert!(json.starts_with("{\"nodes\":6,\"cores\":[2, 4],\"racks\":1,\"vnodes\":512,\"rf\":3,\"met\":true,\"node\":{\"min\":171,"));
        assert_eq!(json.matches("\"ratio\":").count(), 4);
        table.moves[0].is_met = false;
        assert!(!table.is_met() && table.lines().join("\n").contains("≤ 1.10  MISSED") && table.json().contains("\"met\":false"));
    }

    #[test]
    fn one_node_has_all_and_cannot_leave() {
        let table = RingTable::new(&Sketch { nodes: 1, cores: vec![4], vnodes: 64, rf: 3, racks: 1 });
        assert_eq!((table.loads[0].max, table.loads[1].max, table.moves.len(), table.is_met()), (64, 16, 1, true));
    }
}
