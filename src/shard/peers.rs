//! Links to the cores of other nodes: opened when somebody has something to say, all of a turn's messages in one send.
//!
//! A link carries this core's questions and their answers; what the other core asks comes over a link of its own (`replicate`). Its first
//! three frames show both sides that the other has the cluster's key (`wire::peer_hello`). A link that breaks, or cannot be had, is told
//! to every request that waits for its node. It is tried again after a pause, and until it is up no request waits for it. What waits to be
//! sent is bounded: beyond the bound the node counts as gone for the message.

use super::Shard;
use super::cluster::Cluster;
use super::session::within;
use crate::base::map::{Map, Seeded};
use crate::base::time::Mono;
use crate::io::signal::{Signal, race};
use crate::io::{Class, Io, OnSent, Socket};
use crate::limits::{
    HELLO_BYTES_MAX, LINK_BYTES_MAX, LINK_CONNECT_MS_MAX, LINK_RETRY_MS, LINK_RETRY_MS_MAX, LINKS_MAX, PEER_FRAME_BYTES_MAX,
};
use crate::wire::command::Reply;
use crate::wire::frame::{FrameReader, HEADER_BYTES};
use crate::wire::native::decode_reply;
use crate::wire::peer::{AnyMessage, Head, Message, decode_any, encode, encode_move, encode_repair};
use crate::wire::peer_hello::{self, PEER_VERSION, PEER_VERSION_MIN, PeerHello, transcript};
use crate::wire::peer_moves::MoveMessage;
use crate::wire::peer_repair::RepairMessage;
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

/// A sentence about one peer is said again after this long.
const NOTICE_EVERY: Duration = Duration::from_secs(10);
/// Peers and reasons that are remembered for that.
const NOTICES_MAX: usize = 256;
/// A buffer that grew for one large message is not kept for small ones.
const SPARE_BYTES_MAX: usize = 1024 * 1024;

/// A core of another node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct At {
    pub node: u64,
    pub core: u16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Nobody wanted it yet.
    Idle,
    /// What is written waits for it.
    Connecting,
    Up,
    /// It broke or cannot be had; it is tried again and again.
    Down,
}

/// One link. What is written to it goes out at the end of the turn, or when it is up.
pub struct Link {
    pub at: At,
    /// Its number among the core's links.
    pub index: u32,
    state: Cell<State>,
    /// Counts the connections that it had, so that what ends late is told from what is there.
    life: Cell<u32>,
    out: RefCell<Vec<u8>>,
    spare: Cell<Vec<u8>>,
    sending: Cell<usize>,
    socket: RefCell<Option<(Io, Socket)>>,
    dirty: Cell<bool>,
    /// Its node is said to be there: no need to wait for the next attempt.
    redial: Signal,
}

/// A send of one life of a link.
struct Sending {
    link: Rc<Link>,
    life: u32,
}

impl Link {
    fn flush(self: &Rc<Link>) {
        if self.state.get() != State::Up || self.sending.get() > 0 || self.out.borrow().is_empty() {
            return;
        }
        let Some((io, socket)) = self.socket.borrow().clone() else { return };
        let out = self.out.replace(self.spare.take());
        self.sending.set(out.len());
        io.send_to(&socket, out, Rc::new(Sending { link: self.clone(), life: self.life.get() }));
    }

    fn bytes(&self) -> usize {
        self.out.borrow().len() + self.sending.get()
    }
}

impl OnSent for Sending {
    fn sent(self: Rc<Sending>, outcome: std::io::Result<Vec<u8>>) {
        let link = &self.link;
        if link.life.get() != self.life {
            return;
        }
        link.sending.set(0);
        match outcome {
            // The reader sees the end, and tells.
            Err(_) => {
                if let Some((io, socket)) = &*link.socket.borrow() {
                    io.close(socket);
                }
            }
            Ok(emptied) => {
                if emptied.capacity() <= SPARE_BYTES_MAX {
                    link.spare.set(emptied);
                }
                link.flush();
            }
        }
    }
}

/// The links of one core.
pub struct Links {
    by_place: RefCell<Map<(u64, u64), u32>>,
    all: RefCell<Vec<Rc<Link>>>,
    dirty: RefCell<Vec<Rc<Link>>>,
    /// How many are down.
    down: Cell<usize>,
}

/// The node cannot be told anything now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unreachable;

impl Links {
    /// `seed` of the table, see `base::map`.
    pub fn new(seed: u64) -> Links {
        Links {
            by_place: RefCell::new(Map::with_hasher(Seeded(seed))),
            all: RefCell::default(),
            dirty: RefCell::default(),
            down: Cell::new(0),
        }
    }

    /// No link to the node is known to be broken.
    pub fn is_reachable(&self, node: u64) -> bool {
        self.down.get() == 0 || !self.all.borrow().iter().any(|link| link.at.node == node && link.state.get() == State::Down)
    }

    fn set_state(&self, link: &Link, state: State) {
        let before = link.state.replace(state);
        self.down.set(self.down.get() + usize::from(state == State::Down) - usize::from(before == State::Down));
    }

    /// Links that are up.
    pub fn up(&self) -> usize {
        self.all.borrow().iter().filter(|link| link.state.get() == State::Up).count()
    }

    /// Bytes that wait to be sent.
    pub fn bytes(&self) -> usize {
        self.all.borrow().iter().map(|link| link.bytes()).sum()
    }

    fn get(&self, at: At) -> Option<Rc<Link>> {
        if let Some(&index) = self.by_place.borrow().get(&(at.node, u64::from(at.core))) {
            return Some(self.all.borrow()[index as usize].clone());
        }
        let mut all = self.all.borrow_mut();
        if all.len() >= LINKS_MAX {
            return None;
        }
        let index = all.len() as u32;
        all.push(Rc::new(Link {
            at,
            index,
            state: Cell::new(State::Idle),
            life: Cell::new(0),
            out: RefCell::default(),
            spare: Cell::default(),
            sending: Cell::new(0),
            socket: RefCell::default(),
            dirty: Cell::new(false),
            redial: Signal::default(),
        }));
        self.by_place.borrow_mut().insert((at.node, u64::from(at.core)), index);
        all.last().cloned()
    }

    pub fn by_index(&self, index: u32) -> Option<Rc<Link>> {
        self.all.borrow().get(index as usize).cloned()
    }

    fn mark_dirty(&self, link: &Rc<Link>) {
        if !link.dirty.replace(true) {
            self.dirty.borrow_mut().push(link.clone());
        }
    }

    /// The turn ends: what was written goes out.
    pub fn flush(&self) {
        if self.dirty.borrow().is_empty() {
            return;
        }
        for link in self.dirty.take() {
            link.dirty.set(false);
            link.flush();
        }
    }

    /// A node is said to be there again.
    pub fn redial(&self, node: u64) {
        self.all.borrow().iter().filter(|link| link.at.node == node).for_each(|link| link.redial.raise());
    }

    /// Ends the connections to a node: it is dead, or another one has its place.
    pub fn cut(&self, node: u64) {
        for link in self.all.borrow().iter().filter(|link| link.at.node == node) {
            if let Some((io, socket)) = &*link.socket.borrow() {
                io.close(socket);
            }
        }
    }
}

impl Shard {
    /// The link to a core, which begins to connect where it does not already.
    pub(super) fn link(self: &Rc<Shard>, cluster: &Cluster, at: At) -> Result<Rc<Link>, Unreachable> {
        let link = cluster.links.get(at).ok_or(Unreachable)?;
        match link.state.get() {
            State::Down => return Err(Unreachable),
            State::Idle => {
                cluster.links.set_state(&link, State::Connecting);
                let (shard, dialled) = (self.clone(), link.clone());
                drop(self.io.spawn(Class::Replication, async move { keep_up(shard, dialled).await }));
            }
            State::Connecting | State::Up => {}
        }
        if link.bytes() > LINK_BYTES_MAX { Err(Unreachable) } else { Ok(link) }
    }

    /// Writes a message to a link; it leaves at the end of the turn.
    pub(super) fn say(&self, cluster: &Cluster, link: &Rc<Link>, id: u64, head: Head, message: &Message<'_>) {
        encode(&mut link.out.borrow_mut(), id, head, message);
        cluster.links.mark_dirty(link);
    }

    /// The same for a message of repair.
    pub(super) fn say_repair(&self, cluster: &Cluster, link: &Rc<Link>, id: u64, head: Head, message: &RepairMessage) {
        encode_repair(&mut link.out.borrow_mut(), id, head, message);
        cluster.links.mark_dirty(link);
    }

    /// The same for a message of moves.
    pub(super) fn say_move(&self, cluster: &Cluster, link: &Rc<Link>, id: u64, head: Head, message: &MoveMessage) {
        encode_move(&mut link.out.borrow_mut(), id, head, message);
        cluster.links.mark_dirty(link);
    }

    /// Says something about a peer, once in a while.
    pub(super) fn notice(&self, about: u64, what: &'static str, sentence: impl FnOnce() -> String) {
        let Some(cluster) = &self.cluster else { return };
        if cluster.notices.is_due(self.io.now(), about, what) {
            self.node.warn(&sentence());
        }
    }
}

/// What was said about whom lately.
#[derive(Default)]
pub struct Notices {
    said: RefCell<Vec<(u64, &'static str, Mono)>>,
}

impl Notices {
    fn is_due(&self, now: Mono, about: u64, what: &'static str) -> bool {
        let mut said = self.said.borrow_mut();
        said.retain(|(_, _, at)| now.since(*at) < NOTICE_EVERY);
        let is_due = said.len() < NOTICES_MAX && !said.iter().any(|(node, known, _)| (*node, *known) == (about, what));
        if is_due {
            said.push((about, what, now));
        }
        is_due
    }
}

/// Dials again and again while the shard lives and the node has an address.
async fn keep_up(shard: Rc<Shard>, link: Rc<Link>) {
    let Some(cluster) = shard.cluster.clone() else { return };
    let mut pause_ms = LINK_RETRY_MS;
    while !shard.is_closing() && !shard.io.is_shutting_down() && cluster.address_of(link.at.node).is_some() {
        let was_up = dial(&shard, &cluster, &link).await;
        pause_ms = if was_up { LINK_RETRY_MS } else { (pause_ms * 2).min(LINK_RETRY_MS_MAX) };
        race(shard.io.sleep(Duration::from_millis(pause_ms)), link.redial.wait()).await;
    }
    cluster.links.set_state(&link, State::Idle);
}

/// A link's life from the dial to its end; whether it was up.
async fn dial(shard: &Rc<Shard>, cluster: &Rc<Cluster>, link: &Rc<Link>) -> bool {
    let mut was_up = false;
    let until = shard.io.now().plus(Duration::from_millis(LINK_CONNECT_MS_MAX));
    match within(&shard.io, until, greet(shard, cluster, link.at)).await {
        Some(Ok((socket, reader, rest))) => {
            link.life.set(link.life.get() + 1);
            *link.socket.borrow_mut() = Some((shard.io.clone(), socket.clone()));
            cluster.links.set_state(link, State::Up);
            was_up = true;
            cluster.repair.is_back(link.at.node);
            link.flush();
            listen(shard, cluster, link, &socket, reader, rest).await;
            shard.io.close(&socket);
        }
        Some(Err(Some(why))) => shard.notice(link.at.node, "refused", || format!("no link to node {}: {why}", link.at.node)),
        Some(Err(None)) | None => {}
    }
    link.life.set(link.life.get() + 1);
    *link.socket.borrow_mut() = None;
    link.sending.set(0);
    *link.out.borrow_mut() = Vec::new();
    cluster.links.set_state(link, State::Down);
    cluster.detector.borrow_mut().reset(link.at.node);
    cluster.requests.on_broken_link(shard, link);
    shard.settle();
    was_up
}

type Greeted = (Socket, FrameReader, Vec<u8>);

/// Connects and says hello. The error is a sentence where the other refuses, or is not whom it should be.
async fn greet(shard: &Rc<Shard>, cluster: &Cluster, at: At) -> Result<Greeted, Option<String>> {
    let io = &shard.io;
    let address = cluster.address_of(at.node).ok_or_else(|| Some("its address is no IP address and port".to_owned()))?;
    let socket = io.connect(address).await.map_err(|_| None)?;
    let topology = cluster.topology();
    let (one, two) = (io.random_u64().to_le_bytes(), io.random_u64().to_le_bytes());
    let mut nonce = [0; 16];
    nonce[..8].copy_from_slice(&one);
    nonce[8..].copy_from_slice(&two);
    let hello = PeerHello {
        version_min: PEER_VERSION_MIN,
        version_max: PEER_VERSION,
        cluster: topology.cluster(),
        vnodes: topology.vnodes(),
        from: cluster.me,
        to: at.node,
        boot: cluster.boot,
        core: at.core,
        epoch: topology.epoch(),
        wall_ms: io.wall_ms(),
        nonce,
    };
    let mut bytes = Vec::new();
    peer_hello::encode_hello(&mut bytes, &hello);
    io.send(&socket, bytes).await.map_err(|_| None)?;
    let mut said = Vec::new();
    let welcome = loop {
        let chunk = io.receive_chunk(&socket).await.map_err(|_| None)?.ok_or(None)?;
        said.extend_from_slice(&chunk);
        let mut reader = FrameReader::new(HELLO_BYTES_MAX);
        let Some(frame) = reader.feed(&said).next() else { continue };
        let frame = frame.map_err(|_| Some("what answers there is no node of ringkv".to_owned()))?;
        if frame.kind == crate::wire::native::kind::ERROR {
            let why = match decode_reply(frame.kind, frame.body) {
                Ok(Reply::Error(error)) => error.message.to_owned(),
                _ => "it refuses".to_owned(),
            };
            return Err(Some(why));
        }
        let welcome = peer_hello::decode_welcome(&frame).map_err(|error| Some(error.what.to_owned()))?;
        let used = HEADER_BYTES + frame.body.len();
        said.drain(..used);
        break welcome;
    };
    if welcome.from != at.node {
        return Err(Some(format!("at {address} is node {}", welcome.from)));
    }
    if !cluster.key.is_proven(&transcript(false, &hello, &welcome.nonce), &welcome.proof) {
        return Err(Some("it has another cluster key".to_owned()));
    }
    let mut proof = Vec::new();
    peer_hello::encode_proof(&mut proof, &cluster.key.prove(&transcript(true, &hello, &welcome.nonce)));
    io.send(&socket, proof).await.map_err(|_| None)?;
    Ok((socket, FrameReader::new(PEER_FRAME_BYTES_MAX), said))
}

/// Takes answers in until the link ends.
async fn listen(shard: &Rc<Shard>, cluster: &Rc<Cluster>, link: &Rc<Link>, socket: &Socket, mut reader: FrameReader, rest: Vec<u8>) {
    if !take_in(shard, cluster, link, &mut reader, &rest) {
        return;
    }
    loop {
        shard.settle();
        match shard.io.receive_chunk(socket).await {
            Ok(Some(chunk)) if take_in(shard, cluster, link, &mut reader, &chunk) => reader.release(),
            _ => return,
        }
    }
}

/// False: the stream cannot be trusted any more.
fn take_in(shard: &Rc<Shard>, cluster: &Rc<Cluster>, link: &Rc<Link>, reader: &mut FrameReader, chunk: &[u8]) -> bool {
    for frame in reader.feed(chunk) {
        let Ok(frame) = frame else { return malformed(shard, link) };
        match decode_any(&frame) {
            Ok((head, AnyMessage::Plain(message))) => cluster.requests.on_answer(shard, link, frame.id, head, &message),
            Ok((head, AnyMessage::Move(message))) => cluster.requests.on_move_answer(shard, link, frame.id, head, message),
            Ok((head, AnyMessage::Repair(message))) => cluster.requests.on_repair_answer(frame.id, head, message),
            Err(_) => return malformed(shard, link),
        }
    }
    true
}

fn malformed(shard: &Rc<Shard>, link: &Rc<Link>) -> bool {
    shard.stats.malformed();
    shard.notice(link.at.node, "malformed", || format!("the link to node {} is closed: what came over it is no message", link.at.node));
    false
}
