//! Commands in a cluster: which of them are carried out by the replicas of their keys, and how.
//!
//! A get, a put and a delete begin in the connection's turn (`coordinate`); what needs more than one step is a task of `perform`, which
//! comes here for each step. A get at ONE of a key that this node has itself is answered as on a node that is alone.

use super::cluster::Cluster;
use super::conn::Promise;
use super::coordinate::{AsRead, Begin, BeginPut, Gathered, OnBehalf, Requests, Stored, Then, Told, Waiting};
use super::execute::{Step, execute, ttl_reply, value_bytes, value_reply};
use super::mailbox::Mail;
use super::perform::{ANSWER_BYTES_GUESS, Trouble};
use super::route::{TOO_LATE, TOO_MANY_WAIT};
use super::session::within;
use super::{Origin, Shard, Ticket, pace, perform};
use crate::base::record::{Body, Cell, NamespaceId, Token, Version, token_of, vnode_of};
use crate::base::time::{HLC_COUNTER_BITS, Mono, hlc_ms};
use crate::cluster::coordinator::{Levels, Outcome};
use crate::cluster::quorum::Level;
use crate::io::Class;
use crate::limits::{CHUNK_BYTES, CLOCK_SKEW_MS_MAX};
use crate::wire::command::{Command, Condition, Delete, ErrorCode, LevelsAsked, Put, PutItem, Reply, Request, TTL_NEVER};
use crate::wire::frame::HEADER_BYTES;
use crate::wire::native::{Form, decode_request, encode_request};
use crate::wire::peer::OwnedCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

/// A condition is judged and the write made by one leader; there is none yet.
pub const NO_CONDITIONS: &str = "a write under a condition needs a leader of the key's vnode, which a cluster of this version has not";
/// The ceiling of the clock lies so far ahead, and is renewed when less than half of it is left.
const CEILING_MS: u64 = 2 * (CLOCK_SKEW_MS_MAX + 500);
const CEILING_EVERY: Duration = Duration::from_millis(200);

/// How one key of a request ended.
pub type OneKey = Result<Option<OwnedCell>, Outcome>;
/// Keys of one request that are asked for, or put, at a time.
const AT_ONCE: usize = 32;

impl Shard {
    /// Carries a request out that this core owns the key of.
    pub(super) fn coordinate(
        self: &Rc<Shard>,
        cluster: &Rc<Cluster>,
        ticket: Ticket,
        request: &Request<'_>,
        token: Token,
        (form, body): (Form, &[u8]),
    ) {
        let deadline = self.deadline(request.deadline_ms);
        let later = |ticket| perform::spawn(self, ticket, form, body.to_vec(), deadline);
        match &request.command {
            Command::Get { .. } | Command::Ttl { .. } if self.reads_here(cluster, request, token) => {
                match execute(self, &ticket, request, token) {
                    Step::Done => {}
                    Step::Wait | Step::WaitTurn { .. } => later(ticket),
                }
            }
            Command::Get { key } => match &ticket.origin {
                // As on a node that is alone: no answer is made for which its client has no room.
                Origin::Connection(conn) => match conn.try_promise(ANSWER_BYTES_GUESS) {
                    Some(room) => self.quorum_get(cluster, ticket, request, (key, Told::Value), Some(room), deadline),
                    None => later(ticket),
                },
                _ => self.quorum_get(cluster, ticket, request, (key, Told::Value), None, deadline),
            },
            Command::Ttl { key } => self.quorum_get(cluster, ticket, request, (key, Told::Ttl), None, deadline),
            Command::Put(Put { condition: Condition::Always, .. }) | Command::Delete(Delete { condition: Condition::Always, .. }) => {
                match self.may_stamp() && self.may_write(pace::cost(body.len(), 1)) {
                    true => self.coordinate_write(cluster, ticket, request, token, deadline),
                    false => self.write_later(ticket, form, body.to_vec(), deadline),
                }
            }
            Command::Put(_) | Command::Delete(_) => self.fail(&ticket, ErrorCode::Failed, NO_CONDITIONS),
            Command::MultiGet { .. } | Command::MultiPut(_) | Command::Expire { .. } | Command::Persist { .. } | Command::Scan(_) => {
                later(ticket)
            }
            _ => match execute(self, &ticket, request, token) {
                Step::Done => {}
                Step::Wait | Step::WaitTurn { .. } => later(ticket),
            },
        }
    }

    /// A get at ONE of a key that this node has itself needs nobody else.
    pub(super) fn reads_here(&self, cluster: &Cluster, request: &Request<'_>, token: Token) -> bool {
        let level = self.levels(request).read;
        level == Level::One && cluster.is_owner(request.namespace, vnode_of(token, self.node.vnodes))
    }

    /// Begins a get whose answer has `room` on its client's connection.
    pub(super) fn quorum_get(
        self: &Rc<Shard>,
        cluster: &Cluster,
        ticket: Ticket,
        request: &Request<'_>,
        (key, told): (&[u8], Told),
        room: Option<Promise>,
        deadline: Mono,
    ) {
        let what = Begin { namespace: request.namespace, token: token_of(key), key, levels: self.levels(request), deadline };
        if let Some(then) = self.reply_then(ticket, told, OnBehalf { _room: room, ..OnBehalf::default() }) {
            cluster.requests.begin_get(self, cluster, &what, then);
        }
    }

    /// Answers a get with what its replicas gave. A value that is larger than there is room for waits, or is asked for again.
    pub(super) fn show_gathered(self: &Rc<Shard>, gathered: Gathered, asked: AsRead, key: &[u8], cell: Option<Cell<'_>>) {
        let (Gathered { ticket, held, gathered }, now_ms) = (gathered, self.io.wall_ms());
        let reply = match asked.told {
            Told::Ttl => Some(ttl_reply(cell.as_ref(), now_ms)),
            _ => value_reply(cell.as_ref(), now_ms),
        };
        let bytes = reply.as_ref().map_or(0, value_bytes);
        match (&ticket.origin, reply, cell) {
            (Origin::Connection(_), Some(_), Some(cell)) if bytes > CHUNK_BYTES => {
                drop(held);
                let (shard, cell) = (self.clone(), OwnedCell::new(&cell));
                drop(self.io.spawn(Class::Foreground, async move {
                    let _gathered = gathered;
                    match shard.room_for(&ticket, bytes, asked.deadline).await {
                        Err((code, why)) => shard.fail(&ticket, code, why),
                        Ok(_room) => {
                            let reply = value_reply(Some(&cell.as_cell()), shard.io.wall_ms()).unwrap_or(Reply::Absent);
                            shard.answer(&ticket, &reply);
                        }
                    }
                    shard.admit.end();
                    shard.settle();
                }));
                return;
            }
            (&Origin::Core { core, ticket: number, room }, Some(_), _) if bytes > room => {
                let levels = LevelsAsked { read: Some(asked.levels.read), write: Some(asked.levels.write) };
                let left_ms = asked.deadline.since(self.io.now()).as_millis().max(1);
                let deadline_ms = u32::try_from(left_ms).unwrap_or(u32::MAX);
                let request = Request { deadline_ms, namespace: asked.namespace, levels, command: Command::Get { key } };
                let mut frame = Vec::new();
                encode_request(&mut frame, 0, &request);
                let (form, body) = (Form::from(&request), frame.split_off(HEADER_BYTES));
                self.mailbox.send(usize::from(core), Mail::NeedsRoom { ticket: number, bytes, form, body });
            }
            (_, Some(reply), _) => self.answer(&ticket, &reply),
            (_, None, _) => self.fail(&ticket, ErrorCode::BadRequest, "that key holds no string"),
        }
        self.admit.end();
    }

    fn coordinate_write(self: &Rc<Shard>, cluster: &Cluster, ticket: Ticket, request: &Request<'_>, token: Token, deadline: Mono) {
        let (key, write, stored) = match &request.command {
            Command::Put(put) => {
                let ttl_ms = self.ttl_of(request.namespace, put.ttl_ms);
                (put.key, put.write, Stored::Value { bytes: put.value, ttl_ms })
            }
            Command::Delete(delete) => (delete.key, delete.write, Stored::Tombstone),
            _ => unreachable!("only these are coordinated in one step"),
        };
        let bytes = key.len() + if let Stored::Value { bytes, .. } = stored { bytes.len() } else { 0 };
        let held = OnBehalf { _request: self.keep(&ticket, bytes), ..OnBehalf::default() };
        let what = Begin { namespace: request.namespace, token, key, levels: self.levels(request), deadline };
        let put = BeginPut { stored, version: write.version, stamp_only: false };
        if let Some(then) = self.reply_then(ticket, Told::Written { announce: write.announce }, held) {
            cluster.requests.begin_put(self, cluster, &what, &put, then);
        }
    }

    /// Milliseconds to live of a put; 0 is for ever.
    fn ttl_of(&self, namespace: NamespaceId, ttl_ms: u64) -> u64 {
        match ttl_ms {
            0 => self.namespace(namespace).map_or(0, |row| row.default_ttl_ms),
            TTL_NEVER => 0,
            ttl_ms => ttl_ms,
        }
    }

    /// A client's request takes its place; none where the core has taken on what it can.
    fn reply_then(&self, ticket: Ticket, told: Told, held: OnBehalf) -> Option<Then> {
        if !self.admit.begin() {
            self.fail(&ticket, ErrorCode::Overloaded, TOO_MANY_WAIT);
            return None;
        }
        Some(Then::Reply { ticket, told, held })
    }

    /// What this core may stamp now lies below the ceiling that is durable: no version that a client was told is given twice, even if
    /// nothing was stored under it and the power failed.
    fn may_stamp(&self) -> bool {
        let last = self.engine.with_clock(|clock| clock.last());
        let highest = last.max((self.io.wall_ms() + CLOCK_SKEW_MS_MAX) << HLC_COUNTER_BITS);
        self.engine.ceiling() > highest
    }

    /// Waits until what this core may stamp now lies below the ceiling.
    pub(super) async fn stamps_are_safe(&self) -> Result<(), crate::engine::EngineError> {
        if self.may_stamp() { Ok(()) } else { self.raise_ceiling().await }
    }

    async fn raise_ceiling(&self) -> Result<(), crate::engine::EngineError> {
        let last = self.engine.with_clock(|clock| clock.last());
        let ahead_ms = hlc_ms(last).max(self.io.wall_ms()) + CEILING_MS;
        self.engine.make_ceiling_durable(Version::put(ahead_ms << HLC_COUNTER_BITS, 0)).await
    }

    /// The write waits until merges keep up with it, and until its stamp may be given.
    fn write_later(self: &Rc<Shard>, ticket: Ticket, form: Form, body: Vec<u8>, deadline: Mono) {
        if !self.admit.begin() {
            return self.fail(&ticket, ErrorCode::Overloaded, TOO_MANY_WAIT);
        }
        let (shard, kept) = (self.clone(), self.keep(&ticket, body.len()));
        let turn = self.pace.join(pace::cost(body.len(), 1), self.io.now(), &self.engine);
        drop(self.io.spawn(Class::Foreground, async move {
            let _kept = kept;
            let _ = within(&shard.io, deadline, turn.come()).await;
            let safe = shard.stamps_are_safe().await;
            shard.admit.end();
            match (safe, &shard.cluster) {
                _ if shard.io.now() >= deadline => {
                    shard.fail(&ticket, ErrorCode::DeadlinePassed, TOO_LATE);
                }
                (Err(error), _) => super::execute::engine_error(&shard, &ticket, &error),
                (Ok(()), Some(cluster)) => {
                    let request = decode_request(form, &body).expect("decoded once before");
                    let token = request.command.key().map_or(0, token_of);
                    shard.coordinate_write(cluster, ticket, &request, token, deadline);
                }
                (Ok(()), None) => unreachable!("only in a cluster"),
            }
            shard.settle();
        }));
    }

    /// Keeps the ceiling ahead of the clock.
    pub(super) async fn keep_ceiling(&self) {
        while !self.io.is_shutting_down() && !self.is_closing() {
            let left_ms = hlc_ms(self.engine.ceiling()).saturating_sub(self.io.wall_ms());
            // A failure of the disk is told by who writes data.
            if left_ms < CEILING_MS / 2 + CLOCK_SKEW_MS_MAX && self.raise_ceiling().await.is_err() {
                self.io.sleep(CEILING_EVERY).await;
            }
            self.io.sleep(CEILING_EVERY).await;
        }
    }

    /// The cells of keys, each by its own replicas, in the order of the keys.
    pub(super) async fn quorum_cells(
        self: &Rc<Shard>,
        cluster: &Rc<Cluster>,
        namespace: NamespaceId,
        keys: &[&[u8]],
        levels: Levels,
        deadline: Mono,
    ) -> Vec<OneKey> {
        let waiting: Vec<Rc<Waiting>> = keys.iter().map(|_| Rc::default()).collect();
        for (key, waiting) in keys.iter().zip(&waiting) {
            let what = Begin { namespace, token: token_of(key), key, levels, deadline };
            cluster.requests.begin_get(self, cluster, &what, Then::Wake(waiting.clone()));
        }
        self.settle();
        let mut cells = Vec::with_capacity(keys.len());
        for waiting in waiting {
            cells.push(match waiting.outcome().await {
                Outcome::Read => Ok(waiting.take_cell()),
                other => Err(other),
            });
        }
        cells
    }

    /// Begins something for each, and waits for all: how each ended, in their order.
    async fn all_of<T>(&self, all: &[T], begin: impl Fn(&T, Rc<Waiting>)) -> Vec<Outcome> {
        let waiting: Vec<Rc<Waiting>> = all.iter().map(|_| Rc::default()).collect();
        all.iter().zip(&waiting).for_each(|(one, waiting)| begin(one, waiting.clone()));
        self.settle();
        let mut outcomes = Vec::with_capacity(all.len());
        for waiting in waiting {
            outcomes.push(waiting.outcome().await);
        }
        outcomes
    }

    /// One version above the clocks of all replicas of these keys, for puts that are to have one (P1, first round).
    pub(super) async fn quorum_stamp(
        self: &Rc<Shard>,
        cluster: &Rc<Cluster>,
        request: &Request<'_>,
        items: &[PutItem<'_>],
        deadline: Mono,
    ) -> Result<Version, Trouble> {
        self.stamps_are_safe().await?;
        let levels = self.levels(request);
        let vnodes: BTreeMap<u32, &[u8]> = items.iter().map(|item| (vnode_of(token_of(item.key), self.node.vnodes), item.key)).collect();
        let keys: Vec<&[u8]> = vnodes.into_values().collect();
        let mut highest = Version::ZERO;
        for some in keys.chunks(AT_ONCE) {
            let begin = |key: &&[u8], waiting| {
                let what = Begin { namespace: request.namespace, token: token_of(key), key, levels, deadline };
                let put = BeginPut { stored: Stored::Tombstone, version: None, stamp_only: true };
                cluster.requests.begin_put(self, cluster, &what, &put, Then::Wake(waiting));
            };
            for outcome in self.all_of(some, begin).await {
                match outcome {
                    Outcome::Stamped { version } => highest = highest.max(version),
                    other => return Err(other.into()),
                }
            }
        }
        Ok(highest)
    }

    /// Puts under one version, each to its own replicas. All are in, or how the first that is not ended; where some may be in, that is
    /// not known.
    pub(super) async fn quorum_puts(
        self: &Rc<Shard>,
        cluster: &Rc<Cluster>,
        request: &Request<'_>,
        items: &[PutItem<'_>],
        version: Version,
        deadline: Mono,
    ) -> Outcome {
        let levels = self.levels(request);
        let (mut failed, mut certain) = (None, true);
        for some in items.chunks(AT_ONCE) {
            let begin = |item: &PutItem<'_>, waiting| {
                let what = Begin { namespace: request.namespace, token: token_of(item.key), key: item.key, levels, deadline };
                let stored = Stored::Value { bytes: item.value, ttl_ms: self.ttl_of(request.namespace, item.ttl_ms) };
                let put = BeginPut { stored, version: Some(version), stamp_only: false };
                cluster.requests.begin_put(self, cluster, &what, &put, Then::Wake(waiting));
            };
            for outcome in self.all_of(some, begin).await {
                match outcome {
                    Outcome::Done { .. } => certain = false,
                    other @ Outcome::Unknown { .. } => (failed, certain) = (Some(other), false),
                    other => failed = failed.or(Some(other)),
                }
            }
        }
        match failed {
            None => Outcome::Done { version },
            Some(outcome) if certain => outcome,
            Some(_) => Outcome::Unknown { version, why: None },
        }
    }

    /// Only a key's deadline, answered to the client.
    pub(super) fn quorum_expire(
        self: &Rc<Shard>,
        cluster: &Rc<Cluster>,
        ticket: &Ticket,
        request: &Request<'_>,
        (key, ttl_ms): (&[u8], u64),
        cell: &Cell<'_>,
        deadline: Mono,
    ) {
        let Body::Bytes(bytes) = cell.body else { return self.fail(ticket, ErrorCode::BadRequest, "that key holds no string") };
        let (Command::Expire { write, .. } | Command::Persist { write, .. }) = &request.command else {
            unreachable!("only these change a deadline")
        };
        let levels = self.levels(request);
        let what = Begin { namespace: request.namespace, token: token_of(key), key, levels, deadline };
        let put = BeginPut { stored: Stored::Deadline { ttl_ms, of: cell.version, bytes }, version: write.version, stamp_only: false };
        if let Some(then) = self.reply_then(ticket.clone(), Told::Written { announce: write.announce }, OnBehalf::default()) {
            cluster.requests.begin_put(self, cluster, &what, &put, then);
        }
    }
}

impl Requests {
    /// Begins what a shard of a cluster does beside answering, for as long as it lives.
    pub fn start(shard: &Rc<Shard>, cluster: &Rc<Cluster>) {
        let (timed, ours) = (shard.clone(), cluster.clone());
        drop(shard.io.spawn(Class::Foreground, async move { ours.requests.keep_time(&timed).await }));
        let (sending, ours) = (shard.clone(), cluster.clone());
        drop(shard.io.spawn(Class::Replication, async move { ours.handoff.keep_sending(&sending, &ours).await }));
        let (tidying, ours) = (shard.clone(), cluster.clone());
        drop(shard.io.spawn(Class::Background, async move { ours.handoff.keep_tidy(&tidying, &ours).await }));
        let kept = shard.clone();
        drop(shard.io.spawn(Class::Foreground, async move { kept.keep_ceiling().await }));
    }
}
