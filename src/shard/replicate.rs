//! The other side of a link: what cores of other nodes ask of this one as a replica, and what this core asks of itself.
//!
//! `cluster::replica` judges; here is what it needs of storage. Answers are encoded at once and wait in `commits` until the log has what
//! they say. What memory cannot answer is read in a task.

use super::budget::Lease;
use super::cluster::Cluster;
use super::conn::Conn;
use super::coordinate::RequestId;
use super::forget::Verdict;
use super::session::{Counted, within};
use super::visit::ANY_NODE;
use super::{Origin, Shard, Ticket, late};
use crate::base::record::{Body, Cell, Kind, NAMESPACE_SYSTEM, NamespaceId, Version, token_of};
use crate::base::time::{Mono, WallMs};
use crate::cluster::coordinator::Outcome;
use crate::cluster::gossip::CLUSTER_UNKNOWN;
use crate::cluster::replica::{Act, Fence, Held, Replica, Side};
use crate::cluster::topology_codec;
use crate::engine::{Batch, EngineError, KeyRef, PREFETCH_MAX, Seq};
use crate::io::{Class, Parcel, Socket};
use crate::limits::{
    CHUNK_BYTES, CORE_CONNECTIONS_MAX, DEADLINE_MS_MAX, GOSSIP_CLOCK_MS_MAX, HELLO_BYTES_MAX, HELLO_MS_MAX, KEY_BYTES_MAX,
    PEER_FRAME_BYTES_MAX,
};
use crate::wire::command::{Durability, ErrorCode, ErrorReply, Reply};
use crate::wire::frame::{Frame, FrameReader, HEADER_BYTES};
use crate::wire::peer::{AnyMessage, Head, Holds, Message, OwnedCell, Place, Refusal, Road, decode, decode_any, encode};
use crate::wire::peer_hello::{self, PeerHello, PeerWelcome, negotiate, transcript};
use crate::wire::peer_repair::{ForgetBody, RepairMessage};
use std::rc::Rc;
use std::time::Duration;

/// How a cell is read: whole or for its digest, and as of which clock.
#[derive(Clone, Copy, Debug)]
pub struct AsAsked {
    pub full: bool,
    pub now_ms: WallMs,
    /// The version of what is not there, from before it was looked for (G4).
    pub absent: Version,
}

impl AsAsked {
    pub fn new(full: bool, now_ms: WallMs) -> AsAsked {
        AsAsked { full, now_ms, absent: Version::ZERO }
    }
}

/// A cell on its way to a replica.
#[derive(Clone, Copy)]
pub struct Incoming<'a> {
    pub head: Head,
    pub place: &'a Place<'a>,
    pub road: Road,
    pub cell: &'a Cell<'a>,
}

/// What a cell holds, beside its versions.
fn cell_bytes(cell: &Cell<'_>) -> usize {
    if let Body::Bytes(value) = cell.body { value.len() } else { 0 }
}

fn held_of(cell: &Cell<'_>, seq: Seq) -> Held {
    Held { version: cell.version, expiry: cell.expiry.version, is_gone: cell.body == Body::Tombstone, seq }
}

/// A link is read on after this long, however far behind merges are: what cannot be stored is refused.
pub(super) const PACE_MAX: Duration = Duration::from_millis(50);

/// What a link's first frame leads to.
pub enum Greeted {
    /// The error to send, and close.
    Refuse(Vec<u8>),
    Welcome {
        hello: PeerHello,
        nonce: [u8; 16],
        welcome: Vec<u8>,
    },
}

/// A link that was taken, on its way to the core that it is for.
pub struct PeerConnection {
    pub parcel: Parcel,
    pub hello: PeerHello,
    pub nonce: [u8; 16],
    /// What came behind the hello.
    pub rest: Vec<u8>,
}

impl Shard {
    /// Judges a link's first frame.
    pub(super) fn greet_peer(&self, frame: &Frame<'_>) -> Greeted {
        let refuse = |message: &str| {
            let mut bytes = Vec::new();
            crate::wire::native::encode_reply(&mut bytes, frame.id, &Reply::Error(ErrorReply::new(ErrorCode::Unauthorized, message)));
            Greeted::Refuse(bytes)
        };
        let Some(cluster) = &self.cluster else { return refuse("this node is in no cluster") };
        let hello = match peer_hello::decode_hello(frame) {
            Ok(hello) => hello,
            Err(error) => return refuse(error.what),
        };
        if let Err(why) = self.judge_peer(cluster, &hello) {
            self.notice(hello.from, "turned away", || format!("a link of node {} is refused: {why}", hello.from));
            return refuse(&why);
        }
        let mut nonce = [0; 16];
        nonce[..8].copy_from_slice(&self.io.random_u64().to_le_bytes());
        nonce[8..].copy_from_slice(&self.io.random_u64().to_le_bytes());
        let proof = cluster.key.prove(&transcript(false, &hello, &nonce));
        let version = negotiate(hello.version_min, hello.version_max).expect("just judged");
        let (epoch, wall_ms) = (cluster.epoch(), self.io.wall_ms());
        let mut welcome = Vec::new();
        peer_hello::encode_welcome(
            &mut welcome,
            &PeerWelcome { version, from: cluster.me, boot: cluster.boot, epoch, wall_ms, nonce, proof },
        );
        Greeted::Welcome { hello, nonce, welcome }
    }

    /// Why a link is refused, in a sentence for both sides.
    fn judge_peer(&self, cluster: &Cluster, hello: &PeerHello) -> Result<(), String> {
        let (topology, me) = (cluster.topology(), cluster.me);
        let off_ms = hello.wall_ms.abs_diff(self.io.wall_ms());
        match () {
            () if negotiate(hello.version_min, hello.version_max).is_none() => {
                Err("no version of the messages between nodes in common".into())
            }
            () if off_ms > GOSSIP_CLOCK_MS_MAX => {
                Err(format!("the clocks differ by {off_ms} ms: set them (at most {GOSSIP_CLOCK_MS_MAX} ms)"))
            }
            // Who is of no cluster yet asks for the topology; that it has the key is seen behind this.
            () if (hello.cluster, hello.from, hello.to, hello.core) == (CLUSTER_UNKNOWN, ANY_NODE, ANY_NODE, 0) => Ok(()),
            () if hello.cluster != topology.cluster() => Err(format!(
                "this is a node of cluster {:016x}, not of {:016x}; were both founded with the same list?",
                topology.cluster(),
                hello.cluster
            )),
            () if hello.vnodes != topology.vnodes() => {
                Err(format!("this cluster has {} vnodes, not {}, and keeps them for its life", topology.vnodes(), hello.vnodes))
            }
            () if hello.to != me => Err(format!("this is node {me}, not {}: the address in the topology is another node's", hello.to)),
            () if hello.from == me && hello.boot != cluster.boot => Err(format!("node id {me} is taken: this node has it")),
            () if hello.core >= self.node.cores => {
                Err(format!("this node has {} cores, and core {} is wanted", self.node.cores, hello.core))
            }
            () => Ok(()),
        }
    }

    /// A cell for this core as a replica: what to answer, and when the log has what that says. None: only the disk knows whether it may be
    /// stored, as it is so old; `later` says whom to answer then.
    pub(super) fn replicate_store(
        self: &Rc<Shard>,
        cluster: &Cluster,
        incoming: &Incoming<'_>,
        later: impl FnOnce() -> (Ticket, Mono),
    ) -> Option<(Message<'static>, Seq)> {
        let place = incoming.place;
        let held = self.known_of(self.key(place.namespace, place.key), place.kind, place.element);
        match self.store_judged(cluster, incoming, held, false) {
            Some(answer) => Some(answer),
            None => {
                let Some(lease) = cluster.repair.room_for(place.key.len() + cell_bytes(incoming.cell)).filter(|_| self.admit.begin())
                else {
                    return Some((Message::Refused { why: Refusal::Overloaded }, 0));
                };
                let (ticket, deadline) = later();
                self.store_when_read(incoming, ticket, deadline, lease);
                None
            }
        }
    }

    /// What memory knows of a place, but for what may be forgotten any moment.
    fn known_of(&self, key: KeyRef<'_>, kind: Kind, element: &[u8]) -> Option<Held> {
        let vnode = self.engine.vnode_of(key);
        let kept = |cell: &Cell<'_>, seq| (!self.engine.may_forget(key.namespace, vnode, cell)).then(|| held_of(cell, seq));
        self.engine.held(key, kind, element, kept).flatten()
    }

    /// `held`: what is known of the place; all that there is where `is_all`. None: that is not enough.
    fn store_judged(
        &self,
        cluster: &Cluster,
        incoming: &Incoming<'_>,
        held: Option<Held>,
        is_all: bool,
    ) -> Option<(Message<'static>, Seq)> {
        let &Incoming { head, place, road, cell } = incoming;
        let refused = |why| Some((Message::Refused { why }, 0));
        let Some(durability) = self.namespace_durability(place.namespace).filter(|_| place.namespace != NAMESPACE_SYSTEM) else {
            // Its table is on the way.
            return refused(Refusal::Behind { epoch: cluster.epoch() });
        };
        let key = self.key(place.namespace, place.key);
        let pair = (place.namespace, self.engine.vnode_of(key));
        let told = match cluster.moves.told(cluster.epoch(), pair.1, pair.0, cluster.rf(pair.0)) {
            Ok(told) => told,
            Err(why) => return refused(why),
        };
        let verdict = cluster.forget.verdict(&self.engine, pair, told, (road, cell), held, is_all);
        let (fence, kept, held) = match verdict {
            Verdict::Take(kept) => (Fence::Open, kept, held),
            // A tombstone that was forgotten here is here in its absence.
            Verdict::IsHere => {
                (Fence::UnlessHeld, *cell, held.map(|held| if held.version < cell.version { held_of(cell, held.seq) } else { held }))
            }
            Verdict::UnlessHeld => (Fence::UnlessHeld, *cell, held),
            Verdict::Look => return None,
        };
        let topology = cluster.topology();
        let (act, side) = self.engine.with_clock(|clock| {
            let mut replica = self.replica(cluster, &topology, place.namespace, clock);
            replica.on_store(head, place, road, cell, held, |_, _, _| fence)
        });
        self.on_side(cluster, side);
        match act {
            Act::Refuse { why } => refused(why),
            Act::AnswerWhenDurable { seq, holds } => Some((Message::Stored { holds }, super::execute::shown_after(durability, seq))),
            Act::Append => {
                let mut batch = Batch::new(durability == Durability::Sync);
                batch.put_copy(key, place.kind, place.element, &kept);
                match self.engine.write_admitted(&batch) {
                    Ok(seq) => {
                        cluster.repair.trees.mark_dirty(place.namespace, key.token);
                        let early = cluster.planted == Some(crate::cluster::coordinator::Planted::AckBeforeSync);
                        let seq = match durability {
                            Durability::Interval => self.ahead_of_log(seq),
                            Durability::Sync if early => 0,
                            Durability::Sync => seq,
                        };
                        Some((Message::Stored { holds: Holds::Stored }, seq))
                    }
                    Err(error) => refused(refusal_of(&error)),
                }
            }
        }
    }

    /// Judges a cell by what the disk holds, too; and answers.
    fn store_when_read(self: &Rc<Shard>, incoming: &Incoming<'_>, ticket: Ticket, deadline: Mono, lease: Lease) {
        let Some(cluster) = self.cluster.clone() else { return };
        let (shard, &Incoming { head, place, road, cell }) = (self.clone(), incoming);
        let (namespace, kind, cell) = (place.namespace, place.kind, OwnedCell::new(cell));
        let (key, element) = (place.key.to_vec(), place.element.to_vec());
        drop(self.io.spawn(Class::Replication, async move {
            let _lease = lease;
            let place = Place { namespace, key: &key, kind, element: &element };
            let permit = shard.admit.read(CHUNK_BYTES).await;
            let found = shard.engine.read_element(shard.key(namespace, &key), kind, &element).await;
            drop(permit);
            let (answer, seq) = match found {
                Ok(found) => {
                    let of = shard.key(namespace, &key);
                    let is_kept = |cell: &Cell<'_>| !shard.engine.may_forget(namespace, shard.engine.vnode_of(of), cell);
                    let on_disk = found.cell().filter(is_kept).map(|cell| held_of(&cell, found.settled));
                    // What was stored meanwhile is in memory.
                    let held = on_disk.into_iter().chain(shard.known_of(of, kind, &element)).reduce(Held::join);
                    let incoming = Incoming { head, place: &place, road, cell: &cell.as_cell() };
                    let answer = shard.store_judged(&cluster, &incoming, held, true);
                    answer.unwrap_or((Message::Refused { why: Refusal::Fenced }, 0))
                }
                Err(error) => (Message::Refused { why: refusal_of(&error) }, 0),
            };
            shard.answer_peer(&ticket, seq, deadline, &answer);
            shard.admit.end();
            shard.settle();
        }));
    }

    /// Whether this core may be asked for a cell.
    pub(super) fn may_read(&self, cluster: &Cluster, head: Head, place: &Place<'_>) -> Result<(), Refusal> {
        if self.namespace_durability(place.namespace).is_none() || place.namespace == NAMESPACE_SYSTEM {
            return Err(Refusal::Behind { epoch: cluster.epoch() });
        }
        if !cluster.moves.is_open(self.engine.vnode_of(self.key(place.namespace, place.key)), cluster.rf(place.namespace)) {
            return Err(Refusal::Behind { epoch: cluster.epoch() });
        }
        let topology = cluster.topology();
        let (verdict, side) = self.engine.with_clock(|clock| self.replica(cluster, &topology, place.namespace, clock).on_read(head, place));
        self.on_side(cluster, side);
        verdict
    }

    fn replica<'a>(
        &self,
        cluster: &Cluster,
        topology: &'a crate::cluster::topology::Topology,
        namespace: NamespaceId,
        clock: &'a mut crate::base::time::HybridClock,
    ) -> Replica<'a> {
        Replica {
            me: cluster.me,
            topology,
            rf: cluster.rf(namespace),
            votes: topology.is_founded(),
            clock,
            now_ms: self.io.wall_ms(),
            planted: cluster.planted,
        }
    }

    fn on_side(&self, cluster: &Cluster, side: Option<Side>) {
        match side {
            None => {}
            Some(Side::FetchTopology { epoch }) => cluster.wants_topology.set(cluster.wants_topology.get().max(epoch)),
            Some(Side::Skewed { ahead_ms }) => self.notice(0, "a stamp", || {
                format!("a write is refused: its version lies {ahead_ms} ms ahead of this node's clock, so some node's clock is wrong")
            }),
        }
    }

    /// This core's own answer to itself, told when the log has what it says.
    pub(super) fn hold_local(&self, id: RequestId, attempt: u32, deadline: Mono, seq: Seq, message: &Message<'_>) {
        let mut frame = Vec::new();
        encode(&mut frame, 0, Head { epoch: 0, deadline_ms: 0 }, message);
        self.answer_frames_when(&Ticket { origin: Origin::Local(id), id: u64::from(attempt) }, seq, deadline, frame);
    }

    /// An answer of this core to itself.
    pub(super) fn on_local_frame(self: &Rc<Shard>, id: RequestId, attempt: u32, frame: &[u8]) {
        let Some(cluster) = self.cluster.clone() else { return };
        let mut reader = FrameReader::new(PEER_FRAME_BYTES_MAX);
        for frame in reader.feed(frame) {
            let frame = frame.expect("our own frame");
            let (_, message) = decode(&frame).expect("our own message");
            cluster.requests.on_local(self, id, attempt, &message);
        }
    }

    /// Reads what memory does not hold, for a request of this core.
    pub(super) fn read_later(
        self: &Rc<Shard>,
        id: RequestId,
        attempt: u32,
        namespace: NamespaceId,
        key: Vec<u8>,
        asked: AsAsked,
        deadline: Mono,
    ) {
        let shard = self.clone();
        drop(self.io.spawn(Class::Foreground, async move {
            let place = Place { namespace, key: &key, kind: Kind::Head, element: b"" };
            let ticket = Ticket { origin: Origin::Local(id), id: u64::from(attempt) };
            shard.read_for(&ticket, &place, asked, deadline).await;
            shard.settle();
        }));
    }

    /// Reads a cell for a replica's answer, and gives that when it may be shown.
    async fn read_for(&self, ticket: &Ticket, place: &Place<'_>, asked: AsAsked, deadline: Mono) {
        let permit = self.admit.read(CHUNK_BYTES).await;
        if self.io.now() >= deadline {
            return self.refuse_peer(ticket, Refusal::DeadlinePassed);
        }
        let key = self.key(place.namespace, place.key);
        let asked = AsAsked { absent: self.absent(place), ..asked };
        let durability = self.namespace_durability(place.namespace).unwrap_or_default();
        let found = match place.kind {
            Kind::Head => self.engine.read(key).await,
            kind => self.engine.read_element(key, kind, place.element).await,
        };
        let found = match found {
            Ok(found) => found,
            Err(error) => return self.refuse_peer(ticket, refusal_of(&error)),
        };
        match found.cell() {
            Some(cell @ Cell { body: Body::Chunked { len }, .. }) if asked.full && !cell.is_expired(asked.now_ms) => {
                drop(permit);
                self.read_large(ticket, place, (len as usize, asked), deadline).await;
            }
            cell => self.show_peer(ticket, asked, cell, super::execute::shown_after(durability, found.settled), deadline),
        }
    }

    /// A string in chunks, once there is room for it.
    async fn read_large(&self, ticket: &Ticket, place: &Place<'_>, (len, asked): (usize, AsAsked), deadline: Mono) {
        let room = match &ticket.origin {
            Origin::Peer(conn) => match within(&self.io, deadline, conn.promise(len)).await {
                Some(Some(promise)) => Some(promise),
                _ => return self.refuse_peer(ticket, Refusal::Overloaded),
            },
            _ => None,
        };
        let _permit = self.admit.read(len).await;
        match self.engine.read_whole(self.key(place.namespace, place.key)).await {
            Ok(whole) => {
                let durability = self.namespace_durability(place.namespace).unwrap_or_default();
                let seq = super::execute::shown_after(durability, whole.settled());
                self.show_peer(ticket, asked, whole.cell(), seq, deadline);
            }
            Err(error) => self.refuse_peer(ticket, refusal_of(&error)),
        }
        drop(room);
    }

    fn show_peer(&self, ticket: &Ticket, asked: AsAsked, cell: Option<Cell<'_>>, seq: Seq, deadline: Mono) {
        let mut scratch = Vec::new();
        let shown = Replica::shown(cell, asked.now_ms, || asked.absent);
        let message = Replica::read_answer(asked.full, shown, asked.now_ms, &mut scratch);
        self.answer_peer(ticket, seq, deadline, &message);
    }

    /// The version of a place where nothing is, now.
    pub(super) fn absent(&self, place: &Place<'_>) -> Version {
        let Some(cluster) = &self.cluster else { return Version::ZERO };
        cluster.forget.absent(&self.engine, place.namespace, self.engine.vnode_of(self.key(place.namespace, place.key)))
    }

    /// Answers a question of a link or of this core, when the log has `seq`.
    pub(super) fn answer_peer(&self, ticket: &Ticket, seq: Seq, deadline: Mono, message: &Message<'_>) {
        let epoch = self.cluster.as_ref().map_or(0, |cluster| cluster.epoch());
        let mut frame = Vec::new();
        encode(&mut frame, if matches!(ticket.origin, Origin::Local(_)) { 0 } else { ticket.id }, Head { epoch, deadline_ms: 0 }, message);
        self.answer_frames_when(ticket, seq, deadline, frame);
    }

    pub(super) fn refuse_peer(&self, ticket: &Ticket, why: Refusal) {
        self.answer_peer(ticket, 0, Mono::default(), &Message::Refused { why });
    }

    /// A node's error, in the words that nodes have for it.
    pub(super) fn refuse_as(&self, ticket: &Ticket, code: ErrorCode) {
        let why = match code {
            ErrorCode::DiskFull => Refusal::DiskFull,
            ErrorCode::Stopped => Refusal::Stopped,
            ErrorCode::DeadlinePassed => Refusal::DeadlinePassed,
            _ => Refusal::Overloaded,
        };
        self.refuse_peer(ticket, why);
    }

    /// How a coordinated request ended, in the words of the native protocol.
    pub(super) fn answer_outcome(&self, ticket: &Ticket, outcome: Outcome) {
        match outcome {
            Outcome::Done { version } | Outcome::Stamped { version } => self.answer(ticket, &Reply::Done { version }),
            Outcome::Unknown { version, why } => self.unknown(ticket, version, unknown_because(why)),
            Outcome::Unavailable { need, alive, version } => {
                self.stats.error(ErrorCode::Unavailable);
                let message = format!("the level needs {need} replicas of the key, and {alive} can be reached");
                self.answer(
                    ticket,
                    &Reply::Error(ErrorReply { need, alive, version, ..ErrorReply::new(ErrorCode::Unavailable, &message) }),
                );
            }
            Outcome::DeadlinePassed => {
                self.fail(ticket, ErrorCode::DeadlinePassed, "the deadline passed before enough replicas had answered")
            }
            Outcome::BadVersion { .. } => self.fail(ticket, ErrorCode::BadRequest, super::execute::FOREIGN_VERSION),
            Outcome::Overloaded => self.fail(ticket, ErrorCode::Overloaded, "too many requests are in flight"),
            Outcome::Read => unreachable!("a get's answer has its cell"),
        }
    }
}

fn unknown_because(why: Option<Refusal>) -> &'static str {
    match why {
        None => "not enough replicas have said in time that they hold the write; it may still happen",
        Some(Refusal::DiskFull) => "a replica's disk is full; the write may still happen",
        Some(Refusal::Fenced) => "the write is so old that replicas may have forgotten what came after it",
        Some(Refusal::ClockAhead { .. }) => "a replica's clock is behind the write's version; the write may still happen",
        Some(Refusal::Stopped) => "a replica has stopped acknowledging; the write may still happen",
        Some(_) => "replicas refused the write; it may still happen",
    }
}

pub(super) fn refusal_of(error: &EngineError) -> Refusal {
    match error {
        EngineError::DiskFull => Refusal::DiskFull,
        EngineError::Superseded => Refusal::Fenced,
        EngineError::Overloaded | EngineError::TooLarge => Refusal::Overloaded,
        EngineError::Stopped(_) | EngineError::Io(_) | EngineError::Corrupt { .. } | EngineError::Unsupported { .. } => Refusal::Stopped,
    }
}

/// A link from core 0.
pub async fn adopt(shard: Rc<Shard>, peer: PeerConnection) {
    let PeerConnection { parcel, hello, nonce, rest } = peer;
    let _counted = Counted::new(&shard);
    match shard.io.attach(parcel).await {
        Ok(socket) if shard.connections() <= CORE_CONNECTIONS_MAX => serve(&shard, socket, &hello, &nonce, rest).await,
        Ok(socket) => shard.io.close(&socket),
        Err(_) => {}
    }
}

/// Serves a link whose hello was answered: its proof first, then messages until it ends.
pub async fn serve(shard: &Rc<Shard>, socket: Socket, hello: &PeerHello, nonce: &[u8; 16], rest: Vec<u8>) {
    let Some(cluster) = shard.cluster.clone() else { return shard.io.close(&socket) };
    let until = shard.io.now().plus(Duration::from_millis(HELLO_MS_MAX));
    let proven = within(&shard.io, until, prove(shard, &cluster, &socket, hello, nonce, rest)).await;
    let Some(Proven::Yes(rest)) = proven else {
        if matches!(proven, Some(Proven::No)) {
            shard.notice(hello.from, "unproven", || format!("a link of node {} is refused: it has another cluster key", hello.from));
        }
        return shard.io.close(&socket);
    };
    let conn = Rc::new(Conn::new(&shard.admit, Some((shard.io.clone(), socket.clone()))));
    shard.add_connection(&conn, &socket);
    read(shard, &cluster, &socket, &conn, hello.from, rest).await;
    conn.close();
    let until = shard.io.now().plus(Duration::from_secs(1));
    let _ = within(&shard.io, until, conn.drained.until(|| !conn.is_sending())).await;
    shard.io.close(&socket);
}

/// Whether a dialler has the cluster's key.
enum Proven {
    /// With the bytes behind its proof.
    Yes(Vec<u8>),
    No,
    /// It went away before it said.
    Gone,
}

async fn prove(shard: &Shard, cluster: &Cluster, socket: &Socket, hello: &PeerHello, nonce: &[u8; 16], mut said: Vec<u8>) -> Proven {
    const FRAME_BYTES: usize = HEADER_BYTES + peer_hello::PROOF_BYTES;
    while said.len() < FRAME_BYTES {
        match shard.io.receive_chunk(socket).await {
            Ok(Some(chunk)) => said.extend_from_slice(&chunk),
            _ => return Proven::Gone,
        }
    }
    let mut reader = FrameReader::new(HELLO_BYTES_MAX);
    let proof = match reader.feed(&said[..FRAME_BYTES]).next() {
        Some(Ok(frame)) => peer_hello::decode_proof(&frame),
        _ => return Proven::No,
    };
    match proof {
        Ok(proof) if cluster.key.is_proven(&transcript(true, hello, nonce), &proof) => Proven::Yes(said.split_off(FRAME_BYTES)),
        _ => Proven::No,
    }
}

async fn read(shard: &Rc<Shard>, cluster: &Rc<Cluster>, socket: &Socket, conn: &Rc<Conn>, from: u64, rest: Vec<u8>) {
    let mut reader = FrameReader::new(PEER_FRAME_BYTES_MAX);
    if !take_in(shard, cluster, conn, &mut reader, from, &rest) {
        return;
    }
    drop(rest);
    loop {
        shard.settle();
        conn.room().await;
        if conn.closed.get() || shard.is_closing() {
            return;
        }
        match shard.io.receive_chunk(socket).await {
            Ok(Some(chunk)) if take_in(shard, cluster, conn, &mut reader, from, &chunk) => {
                // What came is stored already; the next has to wait for what that took. Others' writes are paced at their coordinators too.
                let turn = shard.pace.join(chunk.len(), shard.io.now(), &shard.engine);
                reader.release();
                drop(chunk);
                let _ = within(&shard.io, shard.io.now().plus(PACE_MAX), turn.come()).await;
            }
            _ => return,
        }
    }
}

/// False: what came is no message.
fn take_in(shard: &Rc<Shard>, cluster: &Rc<Cluster>, conn: &Rc<Conn>, reader: &mut FrameReader, from: u64, chunk: &[u8]) -> bool {
    let mut frames = reader.feed(chunk);
    loop {
        // As with requests of clients, lookups are prefetched for some questions at a time.
        let mut ahead = [const { None }; PREFETCH_MAX];
        let mut is_sound = true;
        for slot in &mut ahead {
            let Some(frame) = frames.next() else { break };
            let decoded = frame.ok().and_then(|frame| Some((frame.id, decode_any(&frame).ok()?)));
            *slot = decoded.filter(|(_, (_, message))| is_question(message));
            is_sound = slot.is_some();
            if !is_sound {
                break;
            }
        }
        shard.engine.prefetch(ahead.iter().flatten().filter_map(|(_, (_, message))| lookup_of(message)));
        let is_last = ahead[PREFETCH_MAX - 1].is_none();
        for (id, (head, message)) in ahead.into_iter().flatten() {
            conn.begin_request();
            let ticket = Ticket { origin: Origin::Peer(conn.clone()), id };
            if !late::is_held_up(shard, cluster, &ticket, from, head, &message) {
                shard.handle_question(cluster, ticket, from, head, message);
            }
        }
        if !is_sound {
            shard.stats.malformed();
            shard.notice(from, "malformed", || format!("a link of node {from} is closed: what came over it is no question"));
            return false;
        }
        if is_last {
            return true;
        }
    }
}

/// The key that a question looks up in memory, for `Engine::prefetch`.
fn lookup_of<'a>(message: &AnyMessage<'a>) -> Option<KeyRef<'a>> {
    match message {
        AnyMessage::Plain(Message::Store { place, .. } | Message::Read { place, .. }) => {
            Some(KeyRef { namespace: place.namespace, token: token_of(place.key), key: place.key })
        }
        _ => None,
    }
}

/// What may be asked. A large string comes whole, never as a head that names chunks, and chunks never come alone.
fn is_question(message: &AnyMessage<'_>) -> bool {
    let message = match message {
        AnyMessage::Plain(message) => message,
        AnyMessage::Repair(RepairMessage::Ask(_)) => return true,
        AnyMessage::Repair(RepairMessage::Forget(forget)) => return matches!(forget.body, ForgetBody::Fence | ForgetBody::Floor),
        AnyMessage::Repair(RepairMessage::Answer(_)) => return false,
        AnyMessage::Move(message) => return message.is_question(),
    };
    match message {
        Message::Store { place, cell, .. } => {
            place.kind != Kind::Chunk && !matches!(cell.body, Body::Chunked { .. }) && place.key.len() <= KEY_BYTES_MAX
        }
        Message::Read { place, .. } => place.kind != Kind::Chunk,
        Message::AskClock | Message::Correct | Message::FetchTopology | Message::Topology { .. } | Message::Namespaces { .. } => true,
        #[cfg(feature = "next-version")]
        Message::NamespacesNext { .. } => true,
        _ => false,
    }
}

impl Shard {
    pub(super) fn handle_question(self: &Rc<Shard>, cluster: &Rc<Cluster>, ticket: Ticket, from: u64, head: Head, message: AnyMessage<'_>) {
        match message {
            AnyMessage::Plain(message) => self.handle_peer(cluster, ticket, from, head, &message),
            AnyMessage::Repair(RepairMessage::Ask(ask)) => self.handle_repair(cluster, ticket, from, head, ask),
            AnyMessage::Repair(RepairMessage::Forget(forget)) => self.handle_forget(cluster, ticket, from, head, forget),
            AnyMessage::Move(message) => self.handle_move(cluster, ticket, from, head, message),
            AnyMessage::Repair(RepairMessage::Answer(_)) => unreachable!("only questions come this far"),
        }
    }

    fn handle_peer(self: &Rc<Shard>, cluster: &Rc<Cluster>, ticket: Ticket, from: u64, head: Head, message: &Message<'_>) {
        let deadline = self.io.now().plus(Duration::from_millis(u64::from(head.deadline_ms.min(DEADLINE_MS_MAX))));
        match message {
            Message::AskClock => {
                let topology = cluster.topology();
                let (answer, side) =
                    self.engine.with_clock(|clock| self.replica(cluster, &topology, NAMESPACE_SYSTEM, clock).on_ask_clock(head));
                self.on_side(cluster, side);
                self.answer_peer(&ticket, 0, deadline, &answer);
            }
            Message::Store { place, road, cell } => {
                let token = token_of(place.key);
                if self.owner(token) != self.core() {
                    return self.refuse_peer(&ticket, Refusal::NotReplica);
                }
                let incoming = Incoming { head, place, road: *road, cell };
                if let Some((answer, seq)) = self.replicate_store(cluster, &incoming, || (ticket.clone(), deadline)) {
                    self.answer_peer(&ticket, seq, deadline, &answer);
                }
            }
            Message::Read { place, full, now_ms } => {
                if self.owner(token_of(place.key)) != self.core() {
                    return self.refuse_peer(&ticket, Refusal::NotReplica);
                }
                match self.may_read(cluster, head, place) {
                    Err(why) => self.refuse_peer(&ticket, why),
                    Ok(()) => self.read_for_peer(ticket, place, AsAsked::new(*full, *now_ms), deadline),
                }
            }
            Message::FetchTopology => {
                let mut bytes = Vec::new();
                topology_codec::encode(&cluster.topology(), &mut bytes);
                self.answer_peer(&ticket, 0, deadline, &Message::Topology { bytes: &bytes });
            }
            Message::Correct if cluster.address_of(from).is_some() => {
                self.fetch_topology(cluster, from);
                self.end_question(&ticket);
            }
            // Who came since the topology that is known here: it can be asked over its own link only.
            Message::Correct => match self.may_ask_topology(cluster) {
                true => self.answer_peer(&ticket, 0, deadline, &Message::FetchTopology),
                false => self.end_question(&ticket),
            },
            Message::Topology { bytes } => {
                self.on_topology_bytes(cluster, bytes);
                self.end_question(&ticket);
            }
            Message::Namespaces { bytes } => self.take_namespaces(ticket, bytes, deadline),
            #[cfg(feature = "next-version")]
            Message::NamespacesNext { bytes } => self.take_namespaces(ticket, bytes, deadline),
            _ => unreachable!("only questions come this far"),
        }
        if cluster.wants_topology.take().max(head.epoch) > cluster.epoch() {
            self.fetch_topology(cluster, from);
        }
    }

    fn read_for_peer(self: &Rc<Shard>, ticket: Ticket, place: &Place<'_>, asked: AsAsked, deadline: Mono) {
        if place.kind == Kind::Head {
            let durability = self.namespace_durability(place.namespace).unwrap_or_default();
            let peeked = self.engine.peek(self.key(place.namespace, place.key), |cell, settled| {
                if asked.full && matches!(cell, Some(Cell { body: Body::Chunked { .. }, .. })) {
                    return false;
                }
                let seq = super::execute::shown_after(durability, settled);
                let is_live = cell.is_some_and(|cell| cell.is_live(asked.now_ms));
                let asked = if is_live { asked } else { AsAsked { absent: self.absent(place), ..asked } };
                self.show_peer(&ticket, asked, cell.copied(), seq, deadline);
                true
            });
            self.stats.peeked(peeked.is_ok());
            if peeked == Ok(true) {
                return;
            }
        }
        if !self.admit.begin() {
            return self.refuse_peer(&ticket, Refusal::Overloaded);
        }
        let (shard, namespace, kind) = (self.clone(), place.namespace, place.kind);
        let (key, element) = (place.key.to_vec(), place.element.to_vec());
        drop(self.io.spawn(Class::Replication, async move {
            let place = Place { namespace, key: &key, kind, element: &element };
            shard.read_for(&ticket, &place, asked, deadline).await;
            shard.admit.end();
            shard.settle();
        }));
    }

    /// A message that nobody waits for an answer to.
    fn end_question(&self, ticket: &Ticket) {
        self.answer_frame(ticket, Vec::new(), true);
    }
}
