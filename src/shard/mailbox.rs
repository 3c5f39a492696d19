//! Messages between the cores of a node: bounded single-producer single-consumer queues, a pair for every two cores.
//!
//! A forward is a request's frame as it came, so that the owner decodes it once and nothing is encoded twice; the answer is the frame
//! that the client gets. The number of forwards in flight is bounded so that no queue can be full, which is why sending never waits and
//! two cores can never block each other. Wakes are gathered: one for all that a turn sent, none to a core that is awake.

use crate::cluster::topology::Topology;
use crate::engine::recover::NodeStore;
use crate::io::spsc::{self, Consumer, Producer};
use crate::io::{Io, Parcel};
use crate::limits::{FORWARDS_MAX, MAILBOX_MAX};
use crate::wire::native::Form;
use std::cell::{Cell, RefCell};
use std::sync::Arc;

use super::Ticket;
use super::admit::Kept;
use super::conn::Promise;
use super::namespaces::NamespaceTable;
use super::replicate::PeerConnection;
use super::session::Greeting;

/// Places that no connection takes, beside those of forwards and their answers.
const OTHERS_MAX: usize = 512;
const _: () = assert!(FORWARDS_MAX * 3 + OTHERS_MAX < MAILBOX_MAX, "connections can be handed over");

/// What one core says to another.
pub enum Mail {
    /// A request for a key that the receiver owns. `ticket` comes back in the answer. `room`: bytes that its answer may have.
    Request { ticket: u32, form: Form, id: u64, body: Vec<u8>, room: usize },
    /// The answer has more bytes than there was room for: ask again when the client has room for `bytes`.
    NeedsRoom { ticket: u32, bytes: usize, form: Form, body: Vec<u8> },
    /// An answer's frame; `last` unless more frames follow.
    Reply { ticket: u32, last: bool, frame: Vec<u8> },
    /// A connection that belongs to the receiver, and what it sent behind the hello.
    Connection { parcel: Parcel, greeting: Greeting, rest: Vec<u8> },
    /// A link of another node that belongs to the receiver.
    Peer(PeerConnection),
    /// A topology that a peer gave, for core 0 to make durable.
    Learn(Arc<Topology>),
    /// A topology that is durable.
    Topology(Arc<Topology>),
    /// The namespaces as they are now.
    Namespaces(Arc<NamespaceTable>),
    /// An operator wants replicas compared anew.
    CompareAnew,
    /// The data folder is open: open your part of it.
    Open(Arc<NodeStore>),
    /// The sender has read its share of the old cores' logs; from core 0: all have.
    LogsRead,
    /// The sender's part is open, or why not.
    Opened(Result<(), String>),
    /// Everyone is open: serve.
    Serve,
}

/// The ends of one core's queues.
pub struct MailboxEnds {
    ends: Vec<Option<(Producer<Mail>, Consumer<Mail>)>>,
}

/// One core's mailbox.
pub struct Mailbox {
    io: Io,
    peers: Vec<Option<Peer>>,
    forwards: RefCell<Vec<Option<Forward>>>,
    free: RefCell<Vec<u32>>,
}

/// A request at another core: whom its answer is for, and its bytes as they count here.
struct Forward {
    ticket: Ticket,
    _held: Holds,
}

/// What a forward holds on to until its answer has come.
#[derive(Default)]
pub struct Holds {
    /// The request's bytes, as they count against its connection.
    pub kept: Option<Kept>,
    /// Room on its connection for the answer.
    pub room: Option<Promise>,
    /// Bytes that the answer may have.
    pub bytes: usize,
}

struct Peer {
    to: Producer<Mail>,
    from: Consumer<Mail>,
    outstanding: Cell<usize>,
    unwoken: Cell<bool>,
}

/// The queues of a node of `cores` cores.
pub fn mesh(cores: usize) -> Vec<MailboxEnds> {
    let mut all: Vec<MailboxEnds> = (0..cores).map(|_| MailboxEnds { ends: (0..cores).map(|_| None).collect() }).collect();
    let pairs = (0..cores).flat_map(|one| (one + 1..cores).map(move |two| (one, two)));
    for (one, two) in pairs {
        let (there, arrives) = spsc::channel(MAILBOX_MAX);
        let (back, returns) = spsc::channel(MAILBOX_MAX);
        all[one].ends[two] = Some((there, returns));
        all[two].ends[one] = Some((back, arrives));
    }
    all
}

impl MailboxEnds {
    /// Something has come in.
    fn any_waiting(peers: &[Option<Peer>]) -> bool {
        peers.iter().flatten().any(|peer| !peer.from.is_empty())
    }
}

impl Mailbox {
    pub fn new(io: Io, ends: MailboxEnds) -> Mailbox {
        let peer = |(to, from)| Peer { to, from, outstanding: Cell::new(0), unwoken: Cell::new(false) };
        let peers = ends.ends.into_iter().map(|end| end.map(peer)).collect();
        Mailbox { io, peers, forwards: RefCell::default(), free: RefCell::default() }
    }

    /// How many cores there are.
    pub fn cores(&self) -> usize {
        self.peers.len()
    }

    /// Something has come in.
    pub fn any_waiting(&self) -> bool {
        MailboxEnds::any_waiting(&self.peers)
    }

    /// The next message and who sent it.
    pub fn pop(&self, core: usize) -> Option<Mail> {
        self.peers[core].as_ref()?.from.pop()
    }

    /// Sends a message that is no forward. Bounded by what may be under way, so there is always room.
    pub fn send(&self, core: usize, mail: Mail) {
        let peer = self.peers[core].as_ref().expect("a core does not write to itself");
        assert!(peer.to.push(mail).is_ok(), "the bounds on forwards keep a mailbox from filling");
        peer.unwoken.set(true);
    }

    /// Another connection may be handed over; what is left then is for forwards and answers.
    pub fn has_room_for_connections(&self, core: usize) -> bool {
        self.peers[core].as_ref().is_some_and(|peer| peer.to.room() > FORWARDS_MAX * 3 + OTHERS_MAX)
    }

    /// Sends a request on, or gives the ticket back where too many are on their way to that core.
    pub fn forward(&self, core: usize, ticket: Ticket, held: Holds, form: Form, body: Vec<u8>) -> Result<(), Ticket> {
        let id = ticket.id;
        let peer = self.peers[core].as_ref().expect("a core does not forward to itself");
        if peer.outstanding.get() >= FORWARDS_MAX {
            return Err(ticket);
        }
        peer.outstanding.set(peer.outstanding.get() + 1);
        let mut forwards = self.forwards.borrow_mut();
        let slot = self.free.borrow_mut().pop().unwrap_or_else(|| {
            forwards.push(None);
            forwards.len() as u32 - 1
        });
        let room = held.bytes;
        forwards[slot as usize] = Some(Forward { ticket, _held: held });
        drop(forwards);
        self.send(core, Mail::Request { ticket: slot, form, id, body, room });
        Ok(())
    }

    /// Whom an answer from `core` is for; the last answer ends the forward.
    pub fn claim(&self, core: usize, slot: u32, last: bool) -> Ticket {
        let mut forwards = self.forwards.borrow_mut();
        let entry = &mut forwards[slot as usize];
        if !last {
            return entry.as_ref().expect("an answer to a forward under way").ticket.clone();
        }
        let peer = self.peers[core].as_ref().expect("an answer from another core");
        peer.outstanding.set(peer.outstanding.get() - 1);
        self.free.borrow_mut().push(slot);
        entry.take().expect("an answer to a forward under way").ticket
    }

    /// Wakes the cores that were written to since the last time.
    pub fn wake(&self) {
        for (core, peer) in self.peers.iter().enumerate() {
            if let Some(peer) = peer
                && peer.unwoken.take()
            {
                self.io.wake(core);
            }
        }
    }
}
