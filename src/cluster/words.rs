//! What an operator says to a cluster, and what is said back: `status`, `plan`, `join`, `leave`, `replace`, `weight`, `cancel`, `repair`.
//! The words come as they stand on the command line; the answer is text for people.

use super::plan::Plan;
use super::topology::{Change, NodeSpec, NodeState, Topology};
use std::fmt::Write;

/// Width of the bar.
const BAR_CHARS: usize = 40;

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Words {
    Status,
    /// The topology itself, encoded, in hexadecimal digits: for tools.
    Topology,
    /// What a change would move.
    Plan(Asked),
    Change(Asked),
    /// Compare this node's replicas anew.
    Repair,
}

/// A change as it is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Asked {
    Join(Candidate),
    Leave { node: u64 },
    Replace { dead: u64, new: Candidate },
    Weight { node: u64, weight: u32 },
    Cancel,
}

/// A node that is none of the cluster's yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Candidate {
    Id(u64),
    /// Where clients and peers find it, host:port.
    At(String),
    Whole(NodeSpec),
}

/// Takes words apart.
///
/// # Errors
/// What is wrong with them, in a sentence.
pub fn parse(words: &str) -> Result<Words, String> {
    let mut words = words.split_ascii_whitespace();
    let verb = words.next().unwrap_or("");
    let rest: Vec<&str> = words.collect();
    match (verb, &rest[..]) {
        ("status", []) => Ok(Words::Status),
        ("topology", []) => Ok(Words::Topology),
        ("repair", []) => Ok(Words::Repair),
        ("plan", [verb, rest @ ..]) => change(verb, rest).map(Words::Plan),
        ("plan", []) => Err("plan of what? As in: plan leave 3".to_owned()),
        ("status" | "topology" | "repair", _) => Err(format!("{verb} stands alone")),
        (verb, rest) => change(verb, rest).map(Words::Change),
    }
}

fn change(verb: &str, rest: &[&str]) -> Result<Asked, String> {
    match (verb, rest) {
        ("join", [candidate, rest @ ..]) => Ok(Asked::Join(self::candidate(candidate, rest)?)),
        ("leave", [node]) => Ok(Asked::Leave { node: number(node)? }),
        ("replace", [dead, candidate, rest @ ..]) => Ok(Asked::Replace { dead: number(dead)?, new: self::candidate(candidate, rest)? }),
        ("weight", [node, weight]) => {
            let weight = weight.parse().map_err(|_| format!("a weight is a number, and `{weight}` is none"))?;
            Ok(Asked::Weight { node: number(node)?, weight })
        }
        ("cancel", []) => Ok(Asked::Cancel),
        ("join", _) => Err("join which node? By its id or address, as in: join 4".to_owned()),
        ("leave", _) => Err("leave is followed by one node's id".to_owned()),
        ("replace", _) => Err("replace is followed by the dead node's id and the new one's".to_owned()),
        ("weight", _) => Err("weight is followed by a node's id and its new weight".to_owned()),
        _ => Err(format!("`{verb}` is nothing that a cluster does: status, plan, join, leave, replace, weight, cancel, repair")),
    }
}

fn number(text: &str) -> Result<u64, String> {
    match text.parse() {
        Ok(id) if id > 0 => Ok(id),
        _ => Err(format!("a node's id is a number above 0, and `{text}` is none")),
    }
}

/// An id or an address, and where nobody knows the node what there is to know.
fn candidate(name: &str, rest: &[&str]) -> Result<Candidate, String> {
    let Ok(id) = number(name) else {
        return match (name.contains(':'), rest) {
            (true, []) => Ok(Candidate::At(name.to_owned())),
            (true, _) => Err("what a node is like stands behind its id".to_owned()),
            (false, _) => Err(format!("a node is named by its id or its address, HOST:PORT, and `{name}` is neither")),
        };
    };
    if rest.is_empty() {
        return Ok(Candidate::Id(id));
    }
    let (mut native, mut gossip, mut rack, mut cores, mut weight) = ("", "", "", None, None);
    for word in rest {
        let bad = |_| format!("`{word}` has no number");
        match word.split_once('=') {
            Some(("native", value)) => native = value,
            Some(("gossip", value)) => gossip = value,
            Some(("rack", value)) => rack = value,
            Some(("cores", value)) => cores = Some(value.parse().map_err(bad)?),
            Some(("weight", value)) => weight = Some(value.parse().map_err(bad)?),
            _ => return Err(format!("of a node are said native, gossip, cores, weight and rack, and `{word}` is none of these")),
        }
    }
    let cores: u16 = cores.ok_or("cores must be said")?;
    let spec = NodeSpec {
        id,
        native: native.to_owned(),
        gossip: gossip.to_owned(),
        cores,
        weight: weight.unwrap_or(u32::from(cores)),
        rack: rack.to_owned(),
    };
    Ok(Candidate::Whole(spec))
}

/// The words by which a node asks to be let in.
pub fn join_words(spec: &NodeSpec) -> String {
    let NodeSpec { id, native, gossip, cores, weight, rack } = spec;
    format!("join {id} native={native} gossip={gossip} cores={cores} weight={weight} rack={rack}")
}

impl Asked {
    /// The change that it asks for. `known` finds a node that is there and none of the cluster's, by id or address.
    ///
    /// # Errors
    /// Nobody knows the node.
    pub fn change(self, known: impl Fn(&Candidate) -> Option<NodeSpec>) -> Result<Change, String> {
        let spec = |candidate: Candidate| match candidate {
            Candidate::Whole(spec) => Ok(spec),
            candidate => known(&candidate).ok_or_else(|| match candidate {
                Candidate::At(address) => format!("no node at {address} has shown itself; start it with --join and --standby first"),
                Candidate::Id(id) | Candidate::Whole(NodeSpec { id, .. }) => {
                    format!("no node {id} has shown itself; start it with --join and --standby first")
                }
            }),
        };
        Ok(match self {
            Asked::Join(candidate) => Change::Join(spec(candidate)?),
            Asked::Leave { node } => Change::Leave { node },
            Asked::Replace { dead, new } => Change::Replace { dead, new: spec(new)? },
            Asked::Weight { node, weight } => Change::Weight { node, weight },
            Asked::Cancel => Change::Cancel,
        })
    }
}

/// How many vnodes the change under way has moved, and how many it moves in all; None where nothing moves. Whatever has flipped has an
/// epoch above that of what still moves, which is the change's.
pub fn progress(topology: &Topology) -> Option<(usize, usize)> {
    let began = topology.moving().map(|vnode| topology.epoch_of(vnode)).min()?;
    let done = (0..topology.vnodes()).filter(|vnode| topology.epoch_of(*vnode) > began).count();
    Some((done, done + topology.moving().len()))
}

/// A bar of progress.
fn bar(done: usize, all: usize) -> String {
    let filled = (done * BAR_CHARS).checked_div(all).unwrap_or(0);
    format!("[{}{}] {} %", "#".repeat(filled), ".".repeat(BAR_CHARS - filled), (done * 100).checked_div(all).unwrap_or(0))
}

/// Why a founder whose folder began anew is not let in again (rule M3).
pub fn lost_disk(node: u64, epoch: u64) -> String {
    format!(
        "node-id {node}: the data folder began anew, and the cluster is at epoch {epoch}, so what this node held is lost: start it under \
         another id with --join and --standby, and say: ringkv cluster replace {node} NEW"
    )
}

/// Why a node does not start on a copy of its data (rule M3).
pub fn is_copy(node: u64) -> String {
    format!(
        "node-id {node}: the data folder is a copy, a snapshot or what was salvaged, and may lack what this node has acknowledged since: \
         start an empty folder under another id with --join and --standby, and say: ringkv cluster replace {node} NEW. Where all nodes of \
         the cluster are set back to such copies, start each with --restored"
    )
}

/// Why a cluster that is not founded does nothing yet.
pub fn waits_for_founders(topology: &Topology, me: u64, is_there: impl Fn(u64) -> bool) -> String {
    let away = topology.nodes().iter().map(|node| node.spec.id).filter(|node| *node != me && !is_there(*node));
    let away: Vec<String> = away.map(|node| node.to_string()).collect();
    let who = if away.is_empty() { String::new() } else { format!("; not seen: {}", away.join(", ")) };
    format!("the cluster waits until all its founders are there at once{who}")
}

/// A table of the nodes, and a bar while something moves.
pub fn status(topology: &Topology, rf: usize, me: u64, is_there: impl Fn(u64) -> bool) -> String {
    let nodes = topology.nodes();
    let (mut replicas, mut first, mut coming) = (vec![0u32; nodes.len()], vec![0u32; nodes.len()], vec![0u32; nodes.len()]);
    for vnode in 0..topology.vnodes() {
        let of = topology.replicas(vnode, rf);
        of.owners.iter().for_each(|index| replicas[usize::from(*index)] += 1);
        of.owners.iter().take(1).for_each(|index| first[usize::from(*index)] += 1);
        let new = of.pending.unwrap_or_default().iter().filter(|index| !of.owners.contains(index));
        new.for_each(|index| coming[usize::from(*index)] += 1);
    }
    let mut rows = vec![["node", "address", "cores", "weight", "rack", "state", "seen", "replicas", "first", "coming"].map(str::to_owned)];
    let mut order: Vec<usize> = (0..nodes.len()).collect();
    order.sort_by_key(|at| nodes[*at].spec.id);
    for at in order {
        let (spec, state) = (&nodes[at].spec, nodes[at].state);
        let state = match state {
            NodeState::Joining => "joining",
            NodeState::Member => "member",
            NodeState::Leaving => "leaving",
        };
        let seen = if spec.id == me {
            "asked"
        } else if is_there(spec.id) {
            "yes"
        } else {
            "no"
        };
        let rack = if spec.rack.is_empty() { "-" } else { &spec.rack };
        rows.push([
            spec.id.to_string(),
            spec.native.clone(),
            spec.cores.to_string(),
            spec.weight.to_string(),
            rack.to_owned(),
            state.to_owned(),
            seen.to_owned(),
            replicas[at].to_string(),
            first[at].to_string(),
            coming[at].to_string(),
        ]);
    }
    let mut text = format!(
        "cluster {:016x}, epoch {}, {} vnodes, version {}{}\n",
        topology.cluster(),
        topology.epoch(),
        topology.vnodes(),
        topology.version(),
        factors(topology)
    );
    text.push_str(&table(&rows));
    match progress(topology) {
        Some((done, all)) => _ = writeln!(text, "moving: {done} of {all} vnodes {}", bar(done, all)),
        None if !topology.is_founded() => _ = writeln!(text, "{}", waits_for_founders(topology, me, is_there)),
        None => text.push_str("nothing moves\n"),
    }
    text
}

/// How many replicas namespaces may have, where there is more to say than the usual.
fn factors(topology: &Topology) -> String {
    let factors: Vec<String> = topology.factors().map(|rf| rf.to_string()).collect();
    match &factors[..] {
        [_] => String::new(),
        some => format!(", namespaces of {} replicas", some.join(", ")),
    }
}

/// What is lost by a change, if anything can be: a node that is gone was the only one that had it.
pub fn loses(topology: &Topology, change: &Change) -> String {
    match change {
        Change::Replace { dead, .. } if topology.has_factor(1) => {
            format!("; what namespaces of 1 replica had on node {dead} is lost, unless it still answers")
        }
        _ => String::new(),
    }
}

/// What a change would move.
pub fn plan(plan: &Plan) -> String {
    let mut rows = vec![["node", "replicas", "then", "coming", "going"].map(str::to_owned)];
    for node in &plan.nodes {
        let figures = [node.before, node.after, node.incoming, node.outgoing].map(|figure| figure.to_string());
        let [before, after, incoming, outgoing] = figures;
        rows.push([node.id.to_string(), before, after, incoming, outgoing]);
    }
    let share = f64::from(plan.moved) * 100.0 / f64::from(plan.whole.max(1));
    format!("{}moves {} of {} replicas of vnodes ({share:.1} %), at epoch {}\n", table(&rows), plan.moved, plan.whole, plan.epoch)
}

fn table<const N: usize>(rows: &[[String; N]]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..N).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        _ = writeln!(text, "{}", cells.join("  ").trim_end());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::topology::Proposal;
    use super::*;

    fn spec(id: u64) -> NodeSpec {
        let address = |port| format!("10.0.0.{id}:{port}");
        NodeSpec { id, native: address(7400), gossip: address(7490), cores: 2, weight: 2, rack: String::new() }
    }

    #[test]
    fn words_are_understood_or_refused_with_a_sentence() {
        assert_eq!(parse("status"), Ok(Words::Status));
        assert_eq!(parse(" leave  3 "), Ok(Words::Change(Asked::Leave { node: 3 })));
        assert_eq!(parse("plan weight 3 8"), Ok(Words::Plan(Asked::Weight { node: 3, weight: 8 })));
        assert_eq!(parse("replace 2 5"), Ok(Words::Change(Asked::Replace { dead: 2, new: Candidate::Id(5) })));
        assert_eq!(parse("join 10.0.0.4:7400"), Ok(Words::Change(Asked::Join(Candidate::At("10.0.0.4:7400".to_owned())))));
        assert_eq!(parse(&join_words(&spec(4))), Ok(Words::Change(Asked::Join(Candidate::Whole(spec(4))))));
        for bad in
            ["", "leave", "leave 0", "leave 1 2", "status now", "plan", "plan status", "join x", "join 4 cores=x", "join 4 rack=r", "eat 3"]
        {
            assert!(parse(bad).is_err_and(|why| !why.is_empty()), "{bad}");
        }
    }

    #[test]
    fn a_candidate_that_nobody_knows_is_told() {
        let known = |candidate: &Candidate| (*candidate == Candidate::Id(4)).then(|| spec(4));
        assert_eq!(Asked::Join(Candidate::Id(4)).change(known), Ok(Change::Join(spec(4))));
        assert!(Asked::Join(Candidate::Id(5)).change(known).is_err_and(|why| why.contains("no node 5")));
    }

    #[test]
    fn status_and_plan_are_tables_and_a_move_has_a_bar() {
        let list = Topology::found(0xC1, 16, (1..=3).map(spec).collect()).unwrap();
        let waits = status(&list, 3, 1, |node| node != 3);
        assert!(waits.ends_with("waits until all its founders are there at once; not seen: 3\n"), "{waits}");
        let founded = list.founded().unwrap();
        let proposal = |topology: &Topology, change| Proposal { cluster: 0xC1, vnodes: 16, epoch: topology.epoch(), change };
        let still = status(&founded, 3, 1, |node| node != 3);
        assert!(still.ends_with("nothing moves\n") && still.contains("cluster 00000000000000c1, epoch 2, 16 vnodes, version 1"), "{still}");
        assert!(still.lines().any(|line| line.starts_with("3 ") && line.contains(" no ")), "{still}");
        let of_one = founded.apply(&proposal(&founded, Change::Factor { rf: 1 })).unwrap();
        assert!(status(&of_one, 3, 1, |_| true).contains(", version 1, namespaces of 1, 3 replicas\n"));
        let replace = Change::Replace { dead: 2, new: spec(4) };
        assert!(loses(&founded, &replace).is_empty() && loses(&of_one, &replace).contains("on node 2 is lost"));
        let join = proposal(&founded, Change::Join(spec(4)));
        let planned = plan(&founded.plan(&join, 3).unwrap());
        assert!(planned.lines().any(|line| line.starts_with("4 ")) && planned.contains("(25.0 %)"), "{planned}");
        let joining = founded.apply(&join).unwrap();
        let all = joining.moving().len();
        assert_eq!(progress(&joining), Some((0, all)));
        let some = joining.moving().take(all / 2).collect();
        let half = joining.apply(&proposal(&joining, Change::MoveDone { vnodes: some })).unwrap();
        assert_eq!(progress(&half), Some((all / 2, all)));
        let moving = status(&half, 3, 4, |_| true);
        assert!(moving.contains("####") && moving.contains(&format!("moving: {} of {all} vnodes", all / 2)), "{moving}");
    }
}
