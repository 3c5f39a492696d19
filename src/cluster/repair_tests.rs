//! Tests of repair and forgetting in a group (`repair_world`): two dialogues word by word, random runs, and bugs that are planted.

use super::forget::Planted;
use super::repair::{Outcome, Question, Reply};
use super::repair_world::{Body, LAG_MS, Packet, World, cell_text, digest_text, key_text};

const KEYS: u64 = 12;

pub(super) fn question_text(question: &Question) -> String {
    match question {
        Question::Open => "open".to_owned(),
        Question::Level(level) => {
            let node = |(index, hash): &(u32, Option<u128>)| format!(" {index}{}", if hash.is_some() { "" } else { "?" });
            format!("level {}:{}", level.log2, level.nodes.iter().map(node).collect::<String>())
        }
        Question::Page(page) => {
            let entry = |entry: &super::repair::Entry| format!(" {}@{}", key_text(&entry.place), digest_text(&entry.digest));
            let until = page.span.until.as_ref().map_or(String::new(), |place| format!(" until {}", key_text(place)));
            format!("page{until}:{}", page.entries.iter().map(entry).collect::<String>())
        }
        Question::Push(cells) => format!("push{}", cells.iter().map(|cell| format!(" {}", cell_text(cell))).collect::<String>()),
    }
}

pub(super) fn reply_text(reply: &Reply) -> String {
    match reply {
        Reply::Opened { leaves_log2 } => format!("opened, 2^{leaves_log2} leaves"),
        Reply::Differing(nodes) => format!("differing: {nodes:?}"),
        Reply::Diff(diff) => {
            let until = diff.until.as_ref().map_or(String::new(), |place| format!(" until {}", key_text(place)));
            let cells: String = diff.cells.iter().map(|cell| format!(" {}", cell_text(cell))).collect();
            let wants: String = diff.wants.iter().map(|place| format!(" {}", key_text(place))).collect();
            format!("differing {}{until}; you lack:{cells}; I lack:{wants}", diff.differing)
        }
        Reply::Stored { refused } => format!("stored, {refused} refused"),
        Reply::Refused => "refused".to_owned(),
    }
}

impl World {
    /// All that is on its way arrives, in order, and what comes of it.
    fn settle(&mut self) {
        for _ in 0..10_000 {
            if !self.net.is_empty() {
                let packet = self.net.remove(0);
                self.deliver(packet);
            }
            (0..self.nodes.len()).for_each(|at| self.persisted(at));
            if self.net.is_empty() {
                self.wait(0);
            }
            if self.net.is_empty() {
                return;
            }
        }
        panic!("the group does not come to rest");
    }

    fn wait(&mut self, ms: u64) {
        self.now_ms += ms;
        (0..self.nodes.len()).filter(|at| self.nodes[*at].is_up).collect::<Vec<usize>>().into_iter().for_each(|at| self.tick(at));
    }

    fn rescan_all(&mut self) {
        (0..self.nodes.len()).for_each(|at| self.rescan(at, 100));
    }
}

#[test]
fn a_dialogue_of_repair() {
    let mut world = World::new(1, None);
    for key in 0..4 {
        world.write(0, key, 2);
    }
    world.settle();
    // B misses a value and its successor, A a delete.
    world.wait(5000);
    for (key, kind, misses) in [(5, 2, 1), (6, 2, 1), (2, 0, 0)] {
        world.write(0, key, kind);
        world.net.retain(|packet| packet.to != misses);
        world.settle();
    }
    world.late.clear();
    world.rescan_all();
    world.trace = Some(String::new());
    world.start_repair(0, 1);
    world.settle();
    world.rescan_all();
    world.start_repair(1, 0);
    world.settle();
    assert_eq!(world.nodes[0].cells, world.nodes[1].cells);
    let expected = include_str!("repair_dialogue.txt");
    assert_eq!(world.trace.unwrap(), expected);
}

#[test]
fn a_dialogue_of_forgetting() {
    let mut world = World::new(1, None);
    world.write(0, 1, 2);
    world.settle();
    world.wait(1000);
    // The delete does not reach C.
    world.write(0, 1, 0);
    world.net.retain(|packet| packet.to != 2);
    world.settle();
    let late = super::repair::CellCopy { digest: world.ops[0].digest, place: world.ops[0].place.clone(), cell: vec![0; 4] };
    world.wait(LAG_MS + 1000);
    world.rescan_all();
    world.trace = Some(String::new());
    world.start_forgetting(0);
    world.settle();
    (0..3).for_each(|at| world.drop_dead(at));
    world.say("all drop what is dead");
    world.send(1, 0, Body::Copy(late));
    world.settle();
    assert!(world.nodes.iter().all(|node| node.cells.is_empty()), "what arrives late is refused");
    // With one of them away nothing is forgotten.
    world.write(0, 2, 0);
    world.settle();
    world.crash(2);
    world.wait(2 * LAG_MS);
    world.start_forgetting(1);
    for _ in 0..12 {
        world.settle();
        world.wait(2000);
    }
    (0..3).for_each(|at| world.drop_dead(at));
    assert_eq!((world.done, world.voided, world.dropped), (1, 1, 3));
    let expected = include_str!("forget_dialogue.txt");
    assert_eq!(world.trace.unwrap(), expected);
}

/// What a run may do.
#[derive(Clone, Copy)]
struct Load {
    steps: u32,
    forgets: bool,
    moves: bool,
}

fn step(world: &mut World, load: Load) -> Result<(), String> {
    world.now_ms += world.prng.below(100);
    let everybody = world.everybody();
    let at = everybody[world.prng.below(everybody.len() as u64) as usize];
    let with = everybody[world.prng.below(everybody.len() as u64) as usize];
    let key = world.prng.below(KEYS);
    world.tick(with);
    match world.prng.below(100) {
        0..=49 => (0..1 + world.net.len() / 4).for_each(|_| arrive(world)),
        50..=54 => {
            let kind = world.prng.below(5);
            world.write(at, key, kind);
        }
        55..=59 => return world.read_checked(key),
        60..=77 => world.persisted(at),
        78..=83 if world.nodes[at].is_up => world.rescan(at, 3),
        84..=86 if world.nodes[at].may_compare() && at != with => world.start_repair(at, with),
        87..=88 if load.forgets => {
            let leader = if world.prng.one_in(6) { at } else { world.owners[0] };
            if world.nodes[leader].may_lead() {
                world.start_forgetting(leader);
            }
        }
        89..=91 => world.drop_dead(at),
        92 if world.prng.one_in(6) => world.crash(at),
        93..=94 if !world.nodes[at].is_up => world.restart(at),
        95 => world.cut = (at != with && world.prng.one_in(4)).then_some((at, with)),
        96 | 97 if !world.late.is_empty() => {
            let late = world.prng.below(world.late.len() as u64) as usize;
            let packet = world.late.swap_remove(late);
            replay(world, packet);
        }
        98 if load.moves && world.prng.one_in(3) && world.moving.is_none() && world.nodes.len() < 12 => world.start_move(at),
        99 if load.moves && world.prng.one_in(2) => world.finish_move(),
        // Long enough for a session, and for what is silent to be given up.
        99 => world.now_ms += world.prng.below(LAG_MS),
        _ => {}
    }
    Ok(())
}

/// One message arrives, or is lost, or arrives now and again later.
fn arrive(world: &mut World) {
    if world.net.is_empty() {
        return;
    }
    let at = world.prng.below(world.net.len() as u64) as usize;
    let packet = world.net.swap_remove(at);
    // Old data is what everything here is about; of the rest, that sessions come to their end now and then.
    let is_data = matches!(packet.body, Body::Put { .. } | Body::Copy(_));
    let is_push = matches!(&packet.body, Body::Ask(ask) if matches!(ask.question, Question::Push(_)));
    match world.prng.below(if is_data { 20 } else { 60 }) {
        0 => return,
        1 | 2 => world.net.push(packet.clone()),
        3..=5 => return world.late.push(packet),
        6..=8 => world.late.push(packet.clone()),
        _ if is_push => world.late.push(packet.clone()),
        _ => {}
    }
    world.deliver(packet);
}

/// What was held back is sent again; a copy to whoever is a replica now.
fn replay(world: &mut World, mut packet: Packet) {
    let everybody = world.everybody();
    if matches!(packet.body, Body::Copy(_)) {
        packet.to = everybody[world.prng.below(everybody.len() as u64) as usize];
    }
    world.net.push(packet);
}

/// Faults are over: everything that was held back arrives, and the group must become equal, whole, and forget what is dead.
fn heal(world: &mut World, load: Load) -> Result<(), String> {
    world.cut = None;
    for at in world.everybody() {
        if !world.nodes[at].is_up {
            world.restart(at);
        }
    }
    if world.prng.one_in(2) {
        // Sessions end where they are.
        for at in world.everybody() {
            world.crash(at);
            world.restart(at);
        }
    }
    world.finish_move();
    let late: Vec<Packet> = std::mem::take(&mut world.late);
    let (now, later): (Vec<Packet>, Vec<Packet>) = late.into_iter().partition(|_| world.prng.one_in(2));
    now.into_iter().for_each(|packet| replay(world, packet));
    quiet(world);
    (0..KEYS).try_for_each(|key| world.read_checked(key))?;
    world.now_ms += 3 * LAG_MS;
    if load.forgets {
        world.owners.clone().into_iter().for_each(|at| world.drop_dead(at));
        let before = world.done;
        for round in 0.. {
            let leader = world.owners[round % 3];
            world.start_forgetting(leader);
            quiet(world);
            if world.done > before {
                break;
            }
            if round == 4 {
                return Err(format!("nothing is forgotten though all are there: {:?}", world.last_void));
            }
            world.now_ms += 1000;
        }
        world.owners.clone().into_iter().for_each(|at| world.drop_dead(at));
    }
    if load.moves {
        // Two of three are new when what is left arrives.
        for at in 0..2 {
            world.start_move(world.owners[at]);
            world.finish_move();
        }
    }
    later.into_iter().for_each(|packet| replay(world, packet));
    quiet(world);
    let owners = world.owners.clone();
    for _ in 0..2 {
        for (at, with) in [(0, 1), (1, 2), (2, 0)] {
            world.rescan_all();
            world.start_repair(owners[at], owners[with]);
            quiet(world);
        }
    }
    if world.never_equal {
        return Err("a session never found all equal".to_owned());
    }
    let last = world.compared.iter().rev().take(3);
    if let Some(bad) = last.into_iter().find(|(.., outcome)| *outcome != Outcome::Compared { differing: 0, refused: 0 }) {
        return Err(format!("repair does not end: {bad:?}"));
    }
    owners.iter().for_each(|at| world.drop_dead(*at));
    for pair in owners.windows(2) {
        if world.nodes[pair[0]].cells != world.nodes[pair[1]].cells {
            return Err(format!("{:?} and {:?} differ", world.nodes[pair[0]].cells, world.nodes[pair[1]].cells));
        }
    }
    (0..KEYS).try_for_each(|key| world.read_checked(key))
}

/// Until nothing is under way: without loss, in any order.
fn quiet(world: &mut World) {
    for _ in 0..3000 {
        if world.net.is_empty() && world.nodes.iter().all(|node| node.is_idle()) && world.prng.one_in(20) {
            return;
        }
        for _ in 0..world.net.len().div_ceil(20) {
            let at = world.prng.below(world.net.len() as u64) as usize;
            let packet = world.net.swap_remove(at);
            world.deliver(packet);
        }
        (0..world.nodes.len()).for_each(|at| world.persisted(at));
        world.wait(10);
    }
}

fn run(seed: u64, planted: Option<Planted>, load: Load) -> Result<World, String> {
    let mut world = World::new(seed, planted);
    (0..load.steps).try_for_each(|_| step(&mut world, load))?;
    heal(&mut world, load)?;
    Ok(world)
}

const REPAIR: Load = Load { steps: 1500, forgets: false, moves: false };
const FORGET: Load = Load { steps: 2500, forgets: true, moves: false };
const MOVES: Load = Load { steps: 2500, forgets: true, moves: true };

#[test]
fn repair_makes_replicas_equal_after_faults() {
    let mut copied = 0;
    for seed in 0..400 {
        let world = run(seed, None, REPAIR).unwrap_or_else(|why| panic!("seed {seed}: {why}"));
        let found = |outcome: &Outcome| matches!(outcome, Outcome::Compared { differing, .. } if *differing > 0);
        copied += world.compared.iter().filter(|(.., outcome)| found(outcome)).count();
    }
    assert!(copied > 200, "{copied} exchanges found something");
}

#[test]
fn with_forgetting_no_deleted_value_comes_back_and_nothing_acknowledged_is_lost() {
    let (mut done, mut voided, mut dropped, mut moved) = (0, 0, 0, 0);
    for (load, seeds) in [(FORGET, 400), (MOVES, 400)] {
        for seed in 0..seeds {
            let world = run(seed, None, load).unwrap_or_else(|why| panic!("seed {seed}, moves {}: {why}", load.moves));
            (done, voided, dropped) = (done + world.done, voided + world.voided, dropped + world.dropped);
            moved += world.nodes.len() - 3;
        }
    }
    assert!(done > 1200 && voided > 800 && dropped > 4000 && moved > 1000, "{done} done, {voided} void, {dropped} dropped, {moved} moves");
}

/// After how many seeds a planted bug is found, and how.
fn found(planted: Planted, load: Load, seeds: u64) -> (u64, String) {
    let failure = |seed| Some((seed + 1, run(seed, Some(planted), load).err()?));
    (0..seeds).find_map(failure).unwrap_or((u64::MAX, "not found".to_owned()))
}

/// Each within so many seeds.
#[test]
fn planted_bugs_are_found() {
    let table = [
        (Planted::DropWithoutFence, FORGET, 200),
        (Planted::FloorLocalOnly, FORGET, 10),
        (Planted::RepairCopyBelowFloor, FORGET, 20),
        (Planted::AbsentIsVersionZero, FORGET, 200),
        (Planted::FloorNotInherited, MOVES, 50),
    ];
    let results = table.map(|(planted, load, seeds)| (planted, seeds, found(planted, load, 1500)));
    assert!(results.iter().all(|(_, seeds, (after, _))| after <= seeds), "{results:#?}");
}
