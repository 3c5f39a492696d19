//! A shard: everything one core owns, and the life of a request on it.
//!
//! `session` takes frames from a connection, `route` decides whose they are, `execute` carries out what this core owns (one arm a command),
//! `perform` waits where memory cannot answer, `pace` slows writes down to what flushes and merges keep up with, `commits` holds answers
//! until the log has them, `mailbox` carries what other cores own, `start` opens and ends it all. Answers are encoded straight into the
//! connection's outgoing bytes; `settle` ends a turn: it sends them and wakes the cores that were written to.

pub mod admin;
pub mod admit;
pub mod antientropy;
#[cfg(test)]
mod antientropy_tests;
pub mod budget;
pub mod cluster;
pub mod commits;
pub mod conn;
pub mod coordinate;
pub mod decisions;
pub mod execute;
pub mod forget;
pub mod gather;
pub mod handoff;
pub mod late;
pub mod locks;
pub mod mailbox;
pub mod moves;
pub mod namespaces;
pub mod pace;
pub mod peers;
pub mod perform;
pub mod quorum;
pub mod repair;
pub mod replicate;
pub mod route;
pub mod session;
pub mod start;
pub mod stats;
pub mod visit;
pub mod welcome;

use crate::base::record::{NAMESPACE_SYSTEM, Token, Version, core_of, token_of, vnode_of};
use crate::base::time::Mono;
use crate::cluster::coordinator::Levels;
use crate::engine::{Engine, KeyRef, Seq};
use crate::io::signal::Signal;
use crate::io::{Io, Socket};
use crate::limits::{DEADLINE_MS_DEFAULT, DEADLINE_MS_MAX, INTERVAL_MS_MAX};
use crate::wire::command::{Durability, ErrorCode, ErrorReply, Level, LevelsAsked, Reply, Request};
use crate::wire::native::encode_reply;
use admit::{Admit, Kept};
use cluster::Cluster;
use commits::{Commits, Held};
use conn::Conn;
use coordinate::RequestId;
use gather::Gather;
use locks::KeyLocks;
use mailbox::{Mail, Mailbox};
use namespaces::{Namespace, NamespaceTable};
use pace::Pace;
use start::StartFailure;
use stats::Stats;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Duration;

/// How long acknowledging may run ahead of the log: under `INTERVAL_MS_MAX`, for an acknowledgement takes a moment to arrive.
const INTERVAL_AHEAD: Duration = Duration::from_millis(INTERVAL_MS_MAX * 8 / 10);

/// What one core owns. Parts, not facts: each is a type of its own file.
pub struct Shard {
    pub io: Io,
    pub engine: Engine,
    pub mailbox: Rc<Mailbox>,
    pub locks: Rc<KeyLocks>,
    pub admit: Rc<Admit>,
    pub pace: Rc<Pace>,
    pub stats: Stats,
    pub node: Rc<start::NodeInfo>,
    /// None where the node is alone.
    pub cluster: Option<Rc<Cluster>>,
    core: u16,
    namespaces: RefCell<Arc<NamespaceTable>>,
    /// Of the table as it is stored; core 0 alone keeps it.
    namespaces_version: Cell<Version>,
    commits: RefCell<Commits<Ticket>>,
    /// Answers of this core to requests that it coordinates itself: request, attempt, frame.
    local: RefCell<VecDeque<(RequestId, u32, Vec<u8>)>>,
    /// To be held by what outlives a call.
    this: Weak<Shard>,
    /// The oldest write that was acknowledged before it was durable, and when.
    ahead: Cell<(Seq, Mono)>,
    dirty: RefCell<Vec<Rc<Conn>>>,
    /// Why the node does not go on.
    ends_for: RefCell<Option<StartFailure>>,
    closing: Cell<bool>,
    connections: Cell<usize>,
    /// Connections that are served here, to be let go at the end.
    open: RefCell<Vec<(Weak<Conn>, Socket)>>,
    ended: Signal,
}

/// Whom an answer is for.
#[derive(Clone)]
pub struct Ticket {
    pub origin: Origin,
    /// The client's request id, or a part's number.
    pub id: u64,
}

/// Where a request came from.
#[derive(Clone)]
pub enum Origin {
    Connection(Rc<Conn>),
    /// Another core, under its ticket.
    Core {
        core: u16,
        ticket: u32,
        /// Bytes that the answer may have.
        room: usize,
    },
    /// A request of many keys that was taken apart.
    Part(Rc<Gather>),
    /// A link from a core of another node.
    Peer(Rc<Conn>),
    /// A request that this core coordinates; the ticket's id is its attempt.
    Local(RequestId),
    /// The node itself; nobody reads the answer.
    Nobody,
}

impl Ticket {
    /// Bytes that an answer may have without asking for room first.
    pub fn room(&self) -> usize {
        match &self.origin {
            Origin::Core { room, .. } => *room,
            Origin::Part(gather) => gather.room(self.id as usize),
            Origin::Connection(_) | Origin::Peer(_) | Origin::Local(_) | Origin::Nobody => usize::MAX,
        }
    }

    /// A core of this node has looked at the request before.
    pub fn is_from_within(&self) -> bool {
        matches!(self.origin, Origin::Core { .. } | Origin::Part(_))
    }
}

impl Shard {
    /// Which core owns a token.
    #[inline]
    pub fn owner(&self, token: Token) -> u16 {
        core_of(vnode_of(token, self.node.vnodes), self.node.cores)
    }

    /// A write of so many bytes (`pace::cost`) need not wait for flushes and merges; it is counted.
    #[inline]
    pub fn may_write(&self, bytes: usize) -> bool {
        self.pace.try_take(bytes, self.io.now(), &self.engine)
    }

    pub fn core(&self) -> u16 {
        self.core
    }

    /// A key with its token.
    #[inline]
    pub fn key<'a>(&self, namespace: u32, key: &'a [u8]) -> KeyRef<'a> {
        KeyRef { namespace, token: token_of(key), key }
    }

    /// The namespace as it is now.
    pub fn namespace(&self, id: u32) -> Option<Namespace> {
        self.namespaces.borrow().get(id).cloned()
    }

    /// The levels of a request: what it names, else what its namespace does, else a quorum.
    pub fn levels(&self, request: &Request<'_>) -> Levels {
        let asked = match request.levels {
            LevelsAsked { read: Some(_), write: Some(_) } => request.levels,
            some => some.or(self.namespaces.borrow().get(request.namespace).map_or(LevelsAsked::default(), |row| row.levels)),
        };
        Levels { read: asked.read.unwrap_or(Level::Quorum), write: asked.write.unwrap_or(Level::Quorum) }
    }

    /// When a write of the namespace is acknowledged; the system's own are always on disk first.
    #[inline]
    pub fn namespace_durability(&self, id: u32) -> Option<Durability> {
        if id == NAMESPACE_SYSTEM { Some(Durability::Sync) } else { self.namespaces.borrow().get(id).map(|row| row.durability) }
    }

    pub fn namespaces(&self) -> Arc<NamespaceTable> {
        self.namespaces.borrow().clone()
    }

    pub fn set_namespaces(&self, table: Arc<NamespaceTable>) {
        self.engine.set_packed(&table.packed());
        if let Some(cluster) = &self.cluster {
            cluster.set_namespaces(&table);
        }
        *self.namespaces.borrow_mut() = table;
        self.set_repair_pairs();
    }

    /// Tells every core the namespaces as they are now.
    pub fn publish_namespaces(&self, table: Arc<NamespaceTable>) {
        for core in (0..self.mailbox.cores()).filter(|&core| core != usize::from(self.core)) {
            self.mailbox.send(core, Mail::Namespaces(table.clone()));
        }
        self.set_namespaces(table);
    }

    /// Counts the bytes of a request that will wait against its connection; what another core or a whole stands for is counted there.
    pub fn keep(&self, ticket: &Ticket, bytes: usize) -> Option<Kept> {
        match &ticket.origin {
            Origin::Connection(conn) => Some(Kept::new(&self.admit, conn, bytes)),
            Origin::Core { .. } | Origin::Part(_) | Origin::Peer(_) | Origin::Local(_) | Origin::Nobody => None,
        }
    }

    /// When a request that came now must be answered.
    pub fn deadline(&self, deadline_ms: u32) -> Mono {
        let ms = if deadline_ms == 0 { DEADLINE_MS_DEFAULT } else { deadline_ms.min(DEADLINE_MS_MAX) };
        self.io.now().plus(Duration::from_millis(u64::from(ms)))
    }

    /// Answers a request, for good.
    pub fn answer(&self, ticket: &Ticket, reply: &Reply<'_>) {
        if let Origin::Connection(conn) = &ticket.origin {
            encode_reply(&mut conn.out.borrow_mut(), ticket.id, reply);
            self.finish(conn);
        } else if let (Origin::Peer(_) | Origin::Local(_), Reply::Error(error)) = (&ticket.origin, reply) {
            self.refuse_as(ticket, error.code);
        } else {
            let mut frame = Vec::new();
            encode_reply(&mut frame, ticket.id, reply);
            self.answer_frame(ticket, frame, true);
        }
    }

    /// Sends an answer's frame that is encoded already; `last` ends the request.
    pub fn answer_frame(&self, ticket: &Ticket, frame: Vec<u8>, last: bool) {
        match &ticket.origin {
            Origin::Connection(conn) | Origin::Peer(conn) => {
                conn.out.borrow_mut().extend_from_slice(&frame);
                if last {
                    self.finish(conn);
                } else {
                    self.mark_dirty(conn);
                }
            }
            Origin::Core { core, ticket, .. } => self.mailbox.send(usize::from(*core), Mail::Reply { ticket: *ticket, last, frame }),
            Origin::Part(gather) => gather.take(self, ticket.id as usize, &frame, last),
            // Not from here: whoever coordinates may be in the middle of a turn.
            Origin::Local(id) => self.local.borrow_mut().push_back((*id, ticket.id as u32, frame)),
            Origin::Nobody => {}
        }
    }

    /// Tells a write's version before it is stored; the final answer follows.
    pub fn announce(&self, ticket: &Ticket, version: Version) {
        let mut frame = Vec::new();
        encode_reply(&mut frame, ticket.id, &Reply::Announced { version });
        self.answer_frame(ticket, frame, false);
    }

    pub fn fail(&self, ticket: &Ticket, code: ErrorCode, message: &str) {
        self.stats.error(code);
        self.answer(ticket, &Reply::Error(ErrorReply::new(code, message)));
    }

    /// Answers once the log has `seq`: at once if it has.
    pub fn answer_when(&self, ticket: &Ticket, seq: Seq, deadline: Mono, reply: &Reply<'_>, stamp: Option<Version>) {
        if seq <= self.engine.durable() {
            return self.answer(ticket, reply);
        }
        let mut frame = Vec::new();
        encode_reply(&mut frame, ticket.id, reply);
        self.hold(ticket, seq, deadline, frame, stamp);
    }

    /// Of which sequence a write under `interval` must wait: of none, unless the log is so far behind that more than `INTERVAL_MS_MAX` of
    /// acknowledged writes could be lost. While a disk does not answer, nothing is acknowledged ahead of it.
    pub fn ahead_of_log(&self, seq: Seq) -> Seq {
        let (oldest, since) = self.ahead.get();
        let now = self.io.now();
        if oldest <= self.engine.durable() {
            self.ahead.set((seq, now));
            return 0;
        }
        if now.since(since) < INTERVAL_AHEAD { 0 } else { seq }
    }

    /// The same for an answer that is encoded already, perhaps in several frames.
    pub fn answer_frames_when(&self, ticket: &Ticket, seq: Seq, deadline: Mono, frames: Vec<u8>) {
        if seq <= self.engine.durable() {
            return self.answer_frame(ticket, frames, true);
        }
        self.hold(ticket, seq, deadline, frames, None);
    }

    fn hold(&self, ticket: &Ticket, seq: Seq, deadline: Mono, frame: Vec<u8>, stamp: Option<Version>) {
        if !self.admit.begin() {
            return self.refuse(ticket, stamp);
        }
        let held = Held { seq, deadline, ticket: ticket.clone(), frame, stamp };
        self.commits.borrow_mut().hold(held);
    }

    fn refuse(&self, ticket: &Ticket, stamp: Option<Version>) {
        match stamp {
            Some(version) => self.unknown(ticket, version, "too many requests wait; the write may still happen"),
            None => self.fail(ticket, ErrorCode::Overloaded, route::TOO_MANY_WAIT),
        }
    }

    /// A write whose outcome nobody knows, with the stamp for a retry.
    pub fn unknown(&self, ticket: &Ticket, version: Version, message: &str) {
        self.stats.error(ErrorCode::Unknown);
        let error = ErrorReply { version: Some(version), ..ErrorReply::new(ErrorCode::Unknown, message) };
        self.answer(ticket, &Reply::Error(error));
    }

    /// The log went on, or failed: answers what waited for it.
    pub fn on_durable(&self, outcome: Result<Seq, String>) {
        let mut held = Vec::new();
        let mut commits = self.commits.borrow_mut();
        match &outcome {
            Ok(seq) => commits.ready(*seq, &mut held),
            Err(_) => commits.all(&mut held),
        }
        drop(commits);
        for held in held {
            self.admit.end();
            match &outcome {
                Ok(_) => self.answer_frame(&held.ticket, held.frame, true),
                Err(why) => self.give_up(&held, ErrorCode::Stopped, why),
            }
        }
        self.settle();
    }

    /// Answers what waited for the log longer than its client would.
    pub fn expire_held(&self) {
        let mut held = Vec::new();
        self.commits.borrow_mut().overdue(self.io.now(), &mut held);
        for held in &held {
            self.admit.end();
            self.give_up(held, ErrorCode::DeadlinePassed, "the log was too slow");
        }
        if !held.is_empty() {
            self.settle();
        }
    }

    fn give_up(&self, held: &Held<Ticket>, code: ErrorCode, why: &str) {
        match held.stamp {
            Some(version) => self.unknown(&held.ticket, version, why),
            None => self.fail(&held.ticket, code, why),
        }
    }

    /// Answers that wait for the log.
    pub fn held(&self) -> usize {
        self.commits.borrow().len()
    }

    fn finish(&self, conn: &Rc<Conn>) {
        conn.end_request();
        self.mark_dirty(conn);
    }

    /// The connection has something to send at the end of this turn.
    pub fn mark_dirty(&self, conn: &Rc<Conn>) {
        if !conn.dirty.replace(true) {
            self.dirty.borrow_mut().push(conn.clone());
        }
    }

    /// Ends a turn: what it left to send goes out, and the cores it wrote to are woken.
    pub fn settle(&self) {
        if let Some(cluster) = &self.cluster {
            self.settle_cluster(cluster);
        }
        // Taken out for the while: a send that cannot begin ends its connection at once.
        let mut dirty = self.dirty.take();
        for conn in dirty.drain(..) {
            conn.dirty.set(false);
            conn.flush();
        }
        if self.dirty.borrow().is_empty() {
            self.dirty.replace(dirty);
        }
        self.mailbox.wake();
    }

    fn settle_cluster(&self, cluster: &Rc<Cluster>) {
        let Some(shard) = self.this.upgrade() else { return };
        while let Some((id, attempt, frame)) = { self.local.borrow_mut().pop_front() } {
            shard.on_local_frame(id, attempt, &frame);
        }
        cluster.requests.flush(self, cluster);
        cluster.links.flush();
    }

    /// Connections open on this core.
    pub fn connections(&self) -> usize {
        self.connections.get()
    }

    fn count_connection(&self, more: isize) {
        self.connections.set(self.connections.get().checked_add_signed(more).expect("as many end as began"));
    }

    fn add_connection(&self, conn: &Rc<Conn>, socket: &Socket) {
        let mut open = self.open.borrow_mut();
        open.retain(|(conn, _)| conn.strong_count() > 0);
        open.push((Rc::downgrade(conn), socket.clone()));
    }

    fn open_connections(&self) -> Vec<(Rc<Conn>, Socket)> {
        let open = self.open.borrow();
        open.iter().filter_map(|(conn, socket)| Some((conn.upgrade()?, socket.clone()))).collect()
    }

    /// No new requests from now on.
    pub fn close(&self) {
        self.closing.set(true);
        self.pace.over();
        self.ended.raise();
    }

    pub fn is_closing(&self) -> bool {
        self.closing.get()
    }
}
