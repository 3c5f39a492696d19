//! An operator's words to the cluster (`cluster::words`), carried out by core 0 of whatever node was asked. A node that is no member hands
//! changes to one that is, since its own word would reach nobody.

use super::cluster::Cluster;
use super::mailbox::Mail;
use super::moves::is_under_way;
use super::peers::At;
use super::perform::ROOM_EVERY;
use super::{Shard, Ticket};
use crate::base::time::Mono;
use crate::cluster::takeover::{self, Move};
use crate::cluster::topology::{Change, NodeSpec, Proposal, Topology};
use crate::cluster::topology_codec;
use crate::cluster::words::{self, Asked, Candidate, Words};
use crate::io::{Class, SocketAddr};
use crate::limits::{RF_DEFAULT, WORDS_BYTES_MAX};
use crate::wire::command::{ErrorCode, Reply};
use crate::wire::peer::Refusal;
use crate::wire::peer_moves::MoveMessage;
use std::fmt::Write;
use std::rc::Rc;
use std::time::Duration;

/// How long a member may take for a change that was handed to it.
const HANDED_MAX: Duration = Duration::from_secs(12);
/// How often a node asks to be let in.
const ASK_IN_EVERY: Duration = Duration::from_millis(500);

impl Shard {
    /// Answers a client's words.
    pub(super) async fn answer_words(self: &Rc<Shard>, ticket: &Ticket, words: &str, deadline: Mono) {
        let Some(cluster) = self.cluster.clone() else {
            return self.fail(ticket, ErrorCode::Failed, "this node is in no cluster");
        };
        match self.say_words(&cluster, words, deadline).await {
            Ok(text) => self.answer(ticket, &Reply::Text(&text)),
            Err(why) => self.fail(ticket, ErrorCode::Failed, &why),
        }
    }

    /// Answers a node that is no member.
    pub(super) fn carry_out_words(self: &Rc<Shard>, cluster: &Rc<Cluster>, ticket: Ticket, words: String) {
        if cluster.topology().index_of(cluster.me).is_none() {
            return self.refuse_peer(&ticket, Refusal::NotReplica);
        }
        if !self.admit.begin() {
            return self.refuse_peer(&ticket, Refusal::Overloaded);
        }
        let (shard, cluster) = (self.clone(), cluster.clone());
        drop(self.io.spawn(Class::Foreground, async move {
            let mut said = shard.say_words(&cluster, &words, shard.io.now().plus(HANDED_MAX)).await;
            let (Ok(text) | Err(text)) = &mut said;
            while text.len() > WORDS_BYTES_MAX {
                text.pop();
            }
            shard.answer_move(&cluster, &ticket, &MoveMessage::Said(said));
            shard.admit.end();
            shard.settle();
        }));
    }

    async fn say_words(self: &Rc<Shard>, cluster: &Rc<Cluster>, text: &str, deadline: Mono) -> Result<String, String> {
        let topology = cluster.topology();
        match words::parse(text)? {
            Words::Status => Ok(words::status(&topology, RF_DEFAULT, cluster.me, |node| cluster.is_alive(node))),
            Words::Topology => {
                let mut bytes = Vec::new();
                topology_codec::encode(&topology, &mut bytes);
                Ok(bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
                    _ = write!(text, "{byte:02x}");
                    text
                }))
            }
            Words::Repair => {
                self.compare_anew(cluster);
                let others = (0..self.mailbox.cores()).filter(|&core| core != usize::from(self.core()));
                for core in others {
                    while !self.mailbox.has_room_for_connections(core) {
                        if self.io.now() >= deadline {
                            return Err(format!("core {core} has more to do than it can be told of; say it again"));
                        }
                        self.io.sleep(ROOM_EVERY).await;
                    }
                    self.mailbox.send(core, Mail::CompareAnew);
                }
                Ok(format!(
                    "this node's comparisons, which are always on, begin anew with everybody; {} places differed when pairs were compared \
                     last",
                    self.node.figure("repair_differing")
                ))
            }
            Words::Plan(asked) => {
                let change = cluster.change(asked)?;
                let loses = words::loses(&topology, &change);
                let proposal = Proposal { cluster: topology.cluster(), vnodes: topology.vnodes(), epoch: topology.epoch(), change };
                let plan = topology.plan(&proposal, RF_DEFAULT).map_err(|refused| refused.to_string())?;
                Ok(words::plan(&plan).trim_end().to_owned() + &loses + "\n")
            }
            Words::Change(_) if topology.index_of(cluster.me).is_none() => self.hand_on(cluster, text, deadline).await,
            Words::Change(asked) => {
                let is_cancel = asked == Asked::Cancel;
                let change = cluster.change(asked)?;
                let loses = words::loses(&topology, &change);
                // Nothing else is cancelled than what was under way when it was asked for.
                let meant: Vec<Move> = takeover::moves(&topology).collect();
                let is_meant = |ours: &Topology| !is_cancel || meant.iter().any(|of| is_under_way(ours, of)) || meant.is_empty();
                let change = |ours: &Topology| match is_meant(ours) {
                    true => cluster.check_newcomer(ours, &change).map(|()| Some(change.clone())),
                    false => Ok(None),
                };
                let after = self.propose(cluster, change, deadline).await?;
                let moving = after.moving().len();
                Ok(match moving {
                    _ if is_cancel => format!("epoch {}: what has not moved stays where it is", after.epoch()),
                    0 => format!("epoch {}: done, nothing has to move", after.epoch()),
                    _ => format!("epoch {}: {moving} vnodes move; `cluster status` shows how far they are{loses}", after.epoch()),
                })
            }
        }
    }

    /// A node that was started to join asks until it is let in, or until it is told that it never will be.
    pub(super) async fn ask_in(self: &Rc<Shard>, cluster: &Rc<Cluster>) {
        while !self.io.is_shutting_down() && !self.is_closing() && cluster.topology().index_of(cluster.me).is_none() {
            // Gossip knows the ports that were bound.
            if let Some(spec) = cluster.known_specs().into_iter().find(|spec| spec.id == cluster.me) {
                match self.hand_on(cluster, &words::join_words(&spec), self.io.now().plus(HANDED_MAX)).await {
                    Ok(said) => self.node.warn(&format!("this node joins the cluster: {said}")),
                    Err(why) => self.notice(0, "not let in", || format!("this node is not let into the cluster yet: {why}")),
                }
            }
            self.io.sleep(ASK_IN_EVERY).await;
        }
    }

    /// What other nodes refused they may take now, and all pairs are compared again.
    pub(super) fn compare_anew(&self, cluster: &Cluster) {
        cluster.repair.forgive();
    }

    /// Has a member carry words out.
    async fn hand_on(self: &Rc<Shard>, cluster: &Rc<Cluster>, words: &str, deadline: Mono) -> Result<String, String> {
        let deadline = deadline.min(self.io.now().plus(HANDED_MAX));
        let Some(node) = self.any_other(cluster) else { return Err("no member of the cluster can be reached".to_owned()) };
        let question = MoveMessage::Words(words.to_owned());
        match cluster.requests.ask_move(self, cluster, At { node, core: 0 }, &question, deadline).await {
            Some(MoveMessage::Said(said)) => said,
            _ => Err(format!("node {node} did not answer; the change may still happen")),
        }
    }
}

impl Cluster {
    /// The change that is asked for. Everybody will try to reach a new node where it is said to be, so that has to be an address.
    fn change(&self, asked: Asked) -> Result<Change, String> {
        let change = asked.change(|candidate| self.candidate(candidate))?;
        if let Change::Join(spec) | Change::Replace { new: spec, .. } = &change
            && let Some(bad) = [&spec.native, &spec.gossip].into_iter().find(|address| address.parse::<SocketAddr>().is_err())
        {
            return Err(format!("`{bad}` is no address of a machine and a port"));
        }
        Ok(change)
    }

    /// Who is to come knows the cluster's version, as gossip says.
    fn check_newcomer(&self, ours: &Topology, change: &Change) -> Result<(), String> {
        let (Change::Join(spec) | Change::Replace { new: spec, .. }) = change else { return Ok(()) };
        match self.version_of_all([spec.id]) {
            version if version >= ours.version() => Ok(()),
            _ if !self.is_known_to_gossip(spec.id) => Err(format!(
                "node {} is not known to gossip here, and the cluster is at version {}, which it has to know: start it, then ask again",
                spec.id,
                ours.version()
            )),
            version => Err(format!(
                "node {} is known to know version {version}, and the cluster is at version {}: start a later program there",
                spec.id,
                ours.version()
            )),
        }
    }

    /// A node that gossip knows and the topology does not.
    fn candidate(&self, candidate: &Candidate) -> Option<NodeSpec> {
        self.known_specs().into_iter().find(|spec| match candidate {
            Candidate::Id(id) => spec.id == *id,
            Candidate::At(address) => spec.native == *address,
            Candidate::Whole(_) => false,
        })
    }
}
