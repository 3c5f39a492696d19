//! Hinted handoff on one core: what a replica missed is kept in a log and sent to it when it is there again. `cluster::hints` decides what
//! is kept, and in which order and at what pace it goes; `engine::hint_log` keeps it; here are the hands.
//!
//! A hint is a message of its own (`Road::Hint`), encoded when it is kept, and gets the epoch of the day when it is sent. An answer that
//! says "I hold it", or that the replica will never want it, ends it; any other, and none, leaves it for another time. Nothing waits for a
//! hint, and what is not kept, or lost, is repair's.

use super::Shard;
use super::cluster::Cluster;
use super::peers::{At, Link};
use crate::base::codec::Reader;
use crate::base::record::{Cell, token_of, vnode_of};
use crate::base::time::Mono;
use crate::cluster::hints::{Figures, Hints, Limits, Record};
use crate::engine::EngineError;
use crate::engine::format::Identity;
use crate::engine::hint_log::{HintLog, HintLogConfig};
use crate::io::Io;
use crate::limits::{HINT_LOG_BYTES_MAX, HINT_SEGMENT_BYTES, PEER_FRAME_BYTES_MAX};
use crate::wire::frame::FrameReader;
use crate::wire::peer::{Head, Message, Place, Refusal, Road, decode, encode};
use std::cell::RefCell;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

/// How often hints are sent, where there are any, and the bytes that each peer gets at a time: all that is kept for one within a minute.
const REPLAY_EVERY: Duration = Duration::from_millis(10);
const REPLAY_BYTES: usize = 48 * 1024;
/// How often the log is written and tidied, and hints that are too old are looked for.
const MAINTAIN_EVERY: Duration = Duration::from_millis(50);
const EXPIRE_EVERY: u32 = 100;
/// How long a replica may take to answer.
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// All hints of one core.
pub struct Handoff {
    hints: RefCell<Hints>,
    log: HintLog,
}

impl Handoff {
    /// Opens the log in a shard's folder; what it holds is to be sent.
    ///
    /// # Errors
    /// Of the disk.
    pub async fn open(io: &Io, dir: &Path, identity: Identity, seed: u64) -> Result<Handoff, EngineError> {
        let mut hints = Hints::new(Limits::default(), seed);
        let config = HintLogConfig { identity, segment_bytes: HINT_SEGMENT_BYTES, bytes_max: HINT_LOG_BYTES_MAX };
        let mut found = |number, bytes: &[u8]| match Record::decode(&mut Reader::new(bytes)) {
            Ok(record) => record.number == number && hints.restore(record.peer, number, bytes.len(), record.written_ms).is_ok(),
            Err(_) => false,
        };
        let log = HintLog::open(io, dir, config, &mut found).await?;
        Ok(Handoff { hints: RefCell::new(hints), log })
    }

    pub fn figures(&self) -> Figures {
        self.hints.borrow().figures()
    }

    /// Keeps a cell for a replica that has not said that it holds it.
    pub fn keep(&self, shard: &Shard, to: u64, place: &Place<'_>, cell: &Cell<'_>) {
        let mut message = Vec::new();
        encode(&mut message, 0, Head { epoch: 0, deadline_ms: 0 }, &Message::Store { place: *place, road: Road::Hint, cell: *cell });
        let written_ms = shard.io.wall_ms();
        let vnode = vnode_of(token_of(place.key), shard.node.vnodes);
        let offered = self.hints.borrow_mut().offer(written_ms, to, message.len());
        let Ok(number) = offered else { return };
        let record = Record { number, peer: to, written_ms, namespace: place.namespace, vnode, place: b"", cell: &message };
        let mut bytes = Vec::with_capacity(message.len() + 64);
        record.encode(&mut bytes);
        if self.log.append(number, &bytes).is_err() {
            self.hints.borrow_mut().withdraw(to, number);
            shard.stats.hint_not_kept();
        }
    }

    /// A replica answered to a hint.
    pub fn on_answer(&self, now: Mono, link: &Link, number: u64, message: &Message<'_>) {
        let is_over = match message {
            Message::Stored { .. } => true,
            // It will not take it tomorrow either; repair and forgetting see to what is left.
            Message::Refused { why } => matches!(why, Refusal::Fenced | Refusal::NotReplica | Refusal::ClockAhead { .. }),
            _ => false,
        };
        if is_over && self.hints.borrow_mut().done(now, link.at.node, number) {
            self.log.done(number);
        }
    }

    /// The link to a peer broke.
    pub fn lost(&self, now: Mono, peer: u64) {
        self.hints.borrow_mut().lost(now, peer);
    }

    /// Sends what is due to the peers that are there.
    async fn replay(&self, shard: &Rc<Shard>, cluster: &Rc<Cluster>) {
        let nodes: Vec<u64> = cluster.topology().nodes().iter().map(|node| node.spec.id).filter(|node| *node != cluster.me).collect();
        for node in nodes {
            if !self.hints.borrow().has(node) || !cluster.is_alive(node) {
                continue;
            }
            let numbers = self.hints.borrow_mut().next(shard.io.now(), node, REPLAY_BYTES);
            let mut each = |number, bytes: Option<&[u8]>| match bytes {
                Some(bytes) => self.send(shard, cluster, node, number, bytes),
                // Lost by the disk: repair's.
                None => _ = self.hints.borrow_mut().done(shard.io.now(), node, number),
            };
            // What could not be read goes again after a silence.
            let _ = self.log.read_each(&numbers, &mut each).await;
            shard.settle();
        }
    }

    fn send(&self, shard: &Rc<Shard>, cluster: &Cluster, node: u64, number: u64, bytes: &[u8]) {
        let Ok(record) = Record::decode(&mut Reader::new(bytes)) else { return };
        let mut reader = FrameReader::new(PEER_FRAME_BYTES_MAX);
        for frame in reader.feed(record.cell).flatten() {
            let Ok((_, message @ Message::Store { place, .. })) = decode(&frame) else { continue };
            let Some(core) = cluster.core_at(node, token_of(place.key)) else { continue };
            let Ok(link) = shard.link(cluster, At { node, core }) else { continue };
            let head = cluster.head(shard.io.now(), Some(shard.io.now().plus(ANSWER_MAX)));
            shard.say(cluster, &link, super::coordinate::hint_frame(number), head, &message);
        }
    }

    /// Drops the hints of nodes that are no more.
    fn forget_strangers(&self, cluster: &Cluster) {
        let topology = cluster.topology();
        let strangers: Vec<u64> = self.hints.borrow().peers().filter(|peer| topology.index_of(*peer).is_none()).collect();
        for peer in strangers {
            self.hints.borrow_mut().forget(peer).into_iter().for_each(|number| self.log.done(number));
        }
    }

    /// As long as the shard lives.
    pub async fn keep_sending(&self, shard: &Rc<Shard>, cluster: &Rc<Cluster>) {
        while !shard.is_closing() && !shard.io.is_shutting_down() {
            let has_any = self.hints.borrow().figures().hints > 0;
            if has_any {
                self.replay(shard, cluster).await;
            }
            shard.io.sleep(if has_any { REPLAY_EVERY } else { REPLAY_EVERY * 10 }).await;
        }
    }

    /// The same: the log's files, and what is too old.
    pub async fn keep_tidy(&self, shard: &Rc<Shard>, cluster: &Rc<Cluster>) {
        let mut round = 0u32;
        while !shard.is_closing() && !shard.io.is_shutting_down() {
            shard.io.sleep(MAINTAIN_EVERY).await;
            round = round.wrapping_add(1);
            if round.is_multiple_of(EXPIRE_EVERY) {
                self.hints.borrow_mut().expire(shard.io.wall_ms()).into_iter().for_each(|number| self.log.done(number));
                self.forget_strangers(cluster);
            }
            // What could not be written is lost and counted: hints are only a faster repair.
            let _ = self.log.maintain().await;
        }
    }
}
