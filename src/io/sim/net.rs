//! The simulated network: streams between machines.
//!
//! Within a stream bytes come in order, once, unless it is reset. They come late, in pieces, or, while a link is cut, not at all: then
//! they wait for the link, and after a while both ends are reset. A direction holds a window of bytes; what does not fit waits at
//! the sender, whose operation ends when its last byte has entered the window. A machine that died says nothing; its peers are
//! reset later. A closed end answers data with a reset.

use super::disk::os_error;
use super::driver::{Handle, InFlight};
use super::world::{Doom, Event, MachineId, State, World};
use crate::io::buffer::Chunk;
use crate::io::op::{Done, Fd, OpId, Parcel, Parcelled, cancelled};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};

/// What one completion of a receive brings at most, as a buffer of a ring does.
const SEGMENT_BYTES_MAX: usize = 16 * 1024;
/// Connections that wait to be accepted.
const BACKLOG_MAX: usize = 1024;
/// One way within a machine.
const LOOPBACK_NS: u64 = 5_000;
/// The first port that is drawn for who asks for none.
const PORT_DRAWN_MIN: u16 = 32_768;
/// No core has the end: not accepted yet, or between two cores.
const NOWHERE: usize = usize::MAX;

#[derive(Default)]
pub(super) struct Net {
    conns: BTreeMap<u64, Conn>,
    conns_made: u64,
    /// By machine and port.
    listeners: BTreeMap<(usize, u16), Listening>,
    cuts: BTreeSet<(usize, usize)>,
    ports_drawn: u16,
    /// Streams between two cores, and those of them that nobody will take.
    parcels: usize,
    dropped: Dropped,
}

/// Ends whose parcels were dropped: stream and side.
type Dropped = Arc<Mutex<Vec<(u64, usize)>>>;

/// A stream between two cores; it closes when this is dropped.
#[derive(Debug)]
pub struct SimParcel {
    conn: u64,
    side: usize,
    dropped: Option<Dropped>,
}

impl Drop for SimParcel {
    fn drop(&mut self) {
        if let Some(dropped) = &self.dropped {
            dropped.lock().expect("no holder of it panics").push((self.conn, self.side));
        }
    }
}

struct Listening {
    slot: usize,
    accept: Option<OpId>,
    backlog: VecDeque<u64>,
}

struct Conn {
    ends: [End; 2],
    /// `pipes[i]` carries what end `i` sends.
    pipes: [Pipe; 2],
}

struct End {
    machine: usize,
    slot: usize,
    address: SocketAddr,
    receive: Option<OpId>,
    /// Closed by its owner, or its machine fell.
    gone: bool,
    /// Its machine fell: it answers nothing.
    dead: bool,
    reset: bool,
}

#[derive(Default)]
struct Pipe {
    /// An empty segment is the end of the stream.
    transit: VecDeque<(u64, Vec<u8>)>,
    ready: VecDeque<Vec<u8>>,
    ended: bool,
    /// Bytes in transit and ready.
    held: usize,
    sends: VecDeque<(OpId, Vec<u8>, usize)>,
    last_at: u64,
    stalled: Option<u64>,
    unacked: Option<u64>,
}

impl End {
    fn new(machine: usize, slot: usize, address: SocketAddr) -> End {
        End { machine, slot, address, receive: None, gone: false, dead: false, reset: false }
    }
}

// Connecting.
impl State {
    fn net_delay_ns(&mut self, from: usize, to: usize) -> u64 {
        if from == to {
            return LOOPBACK_NS;
        }
        let faults = &self.machines[from].faults;
        let jitter = if faults.net_jitter_us == 0 { 0.0 } else { self.rng.exponential(faults.net_jitter_us as f64 * 1000.0) };
        self.machines[from].faults.net_us * 1000 + jitter as u64
    }

    fn draw_port(&mut self, machine: usize) -> u16 {
        loop {
            self.net.ports_drawn = self.net.ports_drawn.wrapping_add(1).max(PORT_DRAWN_MIN);
            if !self.net.listeners.contains_key(&(machine, self.net.ports_drawn)) {
                return self.net.ports_drawn;
            }
        }
    }

    pub(super) fn net_listen(&mut self, slot: usize, mut address: SocketAddr) -> io::Result<Done> {
        let machine = self.cores[slot].machine;
        if self.machine_of(machine, address.ip()) != Some(machine) {
            return Err(os_error(libc::EADDRNOTAVAIL));
        }
        if address.port() == 0 {
            address.set_port(self.draw_port(machine));
        }
        let key = (machine, address.port());
        if self.net.listeners.contains_key(&key) {
            return Err(os_error(libc::EADDRINUSE));
        }
        self.net.listeners.insert(key, Listening { slot, accept: None, backlog: VecDeque::new() });
        Ok(Done::Bound(self.add_handle(slot, Handle::Listener(address.port())), address))
    }

    /// The machine that an address names, seen from `from`.
    fn machine_of(&self, from: usize, ip: IpAddr) -> Option<usize> {
        if ip.is_loopback() || ip.is_unspecified() {
            return Some(from);
        }
        let IpAddr::V4(ip) = ip else { return None };
        let machine = (u32::from(ip).wrapping_sub(0x0A00_0001)) as usize;
        (machine < self.machines.len()).then_some(machine)
    }

    pub(super) fn net_connect(&mut self, slot: usize, id: OpId, address: SocketAddr) -> io::Result<Option<Done>> {
        let from = self.cores[slot].machine;
        let machine = self.machine_of(from, address.ip()).ok_or_else(|| os_error(libc::ENETUNREACH))?;
        let delay = self.net_delay_ns(from, machine);
        self.cores[slot].ops.insert(id, InFlight::Connect);
        self.at(self.now + delay, Event::Syn { slot, id, machine, port: address.port() });
        Ok(None)
    }

    pub(super) fn net_syn(&mut self, slot: usize, id: OpId, machine: usize, port: u16) {
        if !matches!(self.cores[slot].ops.get(&id), Some(InFlight::Connect)) {
            return;
        }
        let from = self.cores[slot].machine;
        let delay = self.net_delay_ns(machine, from);
        if self.net.cuts.contains(&(from, machine)) || self.net.cuts.contains(&(machine, from)) || !self.machines[machine].up {
            let timeout_ms = self.machines[from].faults.connect_timeout_ms;
            self.stats.add("connect timed out");
            return self.at(self.now + timeout_ms * 1_000_000, Event::ConnectFailed { slot, id, code: libc::ETIMEDOUT });
        }
        let client = SocketAddr::new(World::ip(MachineId(from)), self.draw_port(from));
        let conn = self.net.conns_made;
        match self.net.listeners.get_mut(&(machine, port)) {
            Some(listening) if listening.backlog.len() < BACKLOG_MAX => {
                listening.backlog.push_back(conn);
                let listener = listening.slot;
                self.net.conns_made += 1;
                let server = SocketAddr::new(World::ip(MachineId(machine)), port);
                let ends = [End::new(from, NOWHERE, client), End::new(machine, NOWHERE, server)];
                self.net.conns.insert(conn, Conn { ends, pipes: Default::default() });
                self.at(self.now + delay, Event::Connected { slot, id, conn });
                self.net_offer(listener, port);
            }
            _ => {
                self.stats.add("connect refused");
                self.at(self.now + delay, Event::ConnectFailed { slot, id, code: libc::ECONNREFUSED });
            }
        }
    }

    pub(super) fn net_connect_failed(&mut self, slot: usize, id: OpId, code: i32) {
        if self.cores[slot].ops.remove(&id).is_some() {
            self.complete(slot, id, Err(os_error(code)), false);
        }
    }

    pub(super) fn net_connected(&mut self, slot: usize, id: OpId, conn: u64) {
        if self.cores[slot].ops.remove(&id).is_none() {
            // Given up meanwhile.
            return self.net_close(conn, 0);
        }
        match self.net.conns.get_mut(&conn) {
            Some(there) if !there.ends[0].reset => {
                there.ends[0].slot = slot;
                let fd = self.add_handle(slot, Handle::Socket { conn, side: 0 });
                self.complete(slot, id, Ok(Done::Opened(fd)), false);
            }
            _ => {
                self.net_close(conn, 0);
                self.complete(slot, id, Err(os_error(libc::ECONNRESET)), false);
            }
        }
    }

    fn listening(&mut self, slot: usize, port: u16) -> Option<&mut Listening> {
        let machine = self.cores[slot].machine;
        self.net.listeners.get_mut(&(machine, port)).filter(|listening| listening.slot == slot)
    }

    pub(super) fn net_accept(&mut self, slot: usize, id: OpId, port: u16) -> io::Result<Option<Done>> {
        let listening = self.listening(slot, port).expect("a listener's handle has its listener");
        if listening.accept.is_some() {
            return Err(os_error(libc::EBUSY));
        }
        listening.accept = Some(id);
        self.cores[slot].ops.insert(id, InFlight::Accept { port });
        self.net_offer(slot, port);
        Ok(None)
    }

    pub(super) fn net_disarm_accept(&mut self, slot: usize, port: u16) {
        if let Some(listening) = self.listening(slot, port) {
            listening.accept = None;
        }
    }

    /// Gives the connections that wait to who accepts.
    fn net_offer(&mut self, slot: usize, port: u16) {
        while let Some(listening) = self.listening(slot, port)
            && let Some(id) = listening.accept
            && let Some(conn) = listening.backlog.pop_front()
        {
            let Some(there) = self.net.conns.get_mut(&conn) else { continue };
            there.ends[1].slot = slot;
            let peer = there.ends[0].address;
            let fd = self.add_handle(slot, Handle::Socket { conn, side: 1 });
            self.complete(slot, id, Ok(Done::Accepted(fd, peer)), true);
        }
    }

    pub(super) fn net_close_listener(&mut self, slot: usize, port: u16) {
        let key = (self.cores[slot].machine, port);
        let Listening { accept, backlog, .. } = self.net.listeners.remove(&key).expect("a listener's handle has its listener");
        if let Some(id) = accept {
            self.cores[slot].ops.remove(&id);
            self.complete(slot, id, Err(cancelled()), false);
        }
        for conn in backlog {
            self.net_reset_peer(conn, 1);
            self.net_close(conn, 1);
        }
    }
}

// Streams.
impl State {
    pub(super) fn net_receive(&mut self, slot: usize, id: OpId, conn: u64, side: usize) -> io::Result<Option<Done>> {
        let there = self.net.conns.get_mut(&conn).expect("a socket's handle has its stream");
        let end = &mut there.ends[side];
        if end.reset {
            return Err(os_error(libc::ECONNRESET));
        }
        if end.receive.is_some() {
            return Err(os_error(libc::EBUSY));
        }
        end.receive = Some(id);
        self.cores[slot].ops.insert(id, InFlight::Receive { conn, side });
        self.net_deliver(conn, 1 - side);
        Ok(None)
    }

    pub(super) fn net_disarm_receive(&mut self, conn: u64, side: usize) {
        if let Some(there) = self.net.conns.get_mut(&conn) {
            there.ends[side].receive = None;
        }
    }

    pub(super) fn net_send(&mut self, slot: usize, id: OpId, conn: u64, side: usize, bytes: Vec<u8>) -> io::Result<Option<Done>> {
        let there = self.net.conns.get_mut(&conn).expect("a socket's handle has its stream");
        if there.ends[side].reset {
            return Err(os_error(libc::ECONNRESET));
        }
        let word = xxhash_rust::xxh3::xxh3_64(&bytes);
        there.pipes[side].sends.push_back((id, bytes, 0));
        self.cores[slot].ops.insert(id, InFlight::Send { conn, side });
        self.note(word);
        self.net_pump(conn, side);
        Ok(None)
    }

    /// The stream has been broken where a part of it was sent already; only a close can follow.
    pub(super) fn net_forget_send(&mut self, conn: u64, side: usize, id: OpId) {
        if let Some(there) = self.net.conns.get_mut(&conn) {
            there.pipes[side].sends.retain(|(send, _, _)| *send != id);
        }
    }

    /// Puts bytes that wait at the sender onto the way, as the window allows.
    fn net_pump(&mut self, conn: u64, side: usize) {
        loop {
            let Some(there) = self.net.conns.get_mut(&conn) else { return };
            let (from, to) = (there.ends[side].machine, there.ends[1 - side].machine);
            let slot = there.ends[side].slot;
            let window = self.machines[from].faults.window_bytes;
            let pipe = &mut there.pipes[side];
            let space = window.saturating_sub(pipe.held);
            let Some((id, bytes, sent)) = pipe.sends.front_mut() else { return };
            let mut count = (bytes.len() - *sent).min(space).min(SEGMENT_BYTES_MAX);
            if count == 0 && *sent < bytes.len() {
                return;
            }
            let one_in = self.machines[from].faults.chunk_one_in;
            if one_in > 0 && count > 1 && self.rng.one_in(one_in) {
                count = 1 + self.rng.below(count as u64 - 1) as usize;
                self.stats.add("chunked delivery");
            }
            let segment = bytes[*sent..*sent + count].to_vec();
            *sent += count;
            pipe.held += count;
            if *sent == bytes.len() {
                let id = *id;
                let (_, mut bytes, _) = pipe.sends.pop_front().expect("it is in front");
                bytes.clear();
                self.cores[slot].ops.remove(&id);
                self.complete(slot, id, Ok(Done::Sent(bytes)), false);
            }
            if count > 0 {
                self.net_dispatch(conn, side, from, to, segment);
            }
        }
    }

    fn net_dispatch(&mut self, conn: u64, side: usize, from: usize, to: usize, segment: Vec<u8>) {
        let delay = self.net_delay_ns(from, to);
        let now = self.now;
        let pipe = &mut self.net.conns.get_mut(&conn).expect("its sender looked it up").pipes[side];
        let at = pipe.last_at.max(now + delay);
        pipe.last_at = at;
        pipe.transit.push_back((at, segment));
        self.at(at, Event::Arrive { conn, side });
    }

    pub(super) fn net_arrive(&mut self, conn: u64, side: usize) {
        let now = self.now;
        let Some(there) = self.net.conns.get_mut(&conn) else { return };
        let (from, to) = (there.ends[side].machine, there.ends[1 - side].machine);
        let timeout_ns = self.machines[from].faults.stall_timeout_ms * 1_000_000;
        let pipe = &mut there.pipes[side];
        if pipe.transit.front().is_none_or(|(at, _)| *at > now) {
            return;
        }
        if self.net.cuts.contains(&(from, to)) {
            if pipe.stalled.is_none() {
                pipe.stalled = Some(now);
                self.stats.add("stalled by a partition");
                self.at(now + timeout_ns, Event::StallCheck { conn, side, since: now });
            }
            return;
        }
        pipe.stalled = None;
        if self.net.cuts.contains(&(to, from)) && pipe.unacked.is_none() {
            pipe.unacked = Some(now);
            self.at(now + timeout_ns, Event::StallCheck { conn, side, since: now });
        }
        let reset_one_in = self.machines[from].faults.reset_one_in;
        if reset_one_in > 0 && self.rng.one_in(reset_one_in) {
            self.stats.add("reset");
            return self.net_reset_both(conn);
        }
        let there = self.net.conns.get_mut(&conn).expect("looked up above");
        let pipe = &mut there.pipes[side];
        let mut refused = false;
        while pipe.transit.front().is_some_and(|(at, _)| *at <= now) {
            let (_, segment) = pipe.transit.pop_front().expect("looked at");
            let end = &there.ends[1 - side];
            match (end.dead, end.gone || end.reset) {
                (true, _) => {}
                (false, true) => refused |= !segment.is_empty(),
                _ if segment.is_empty() => pipe.ended = true,
                _ => pipe.ready.push_back(segment),
            }
        }
        if refused {
            return self.net_reset_peer(conn, 1 - side);
        }
        self.net_deliver(conn, side);
    }

    /// Gives what has arrived of end `side`'s bytes to the other end, if that one receives.
    fn net_deliver(&mut self, conn: u64, side: usize) {
        let Some(there) = self.net.conns.get_mut(&conn) else { return };
        let end = &mut there.ends[1 - side];
        let Some(id) = end.receive else { return };
        let slot = end.slot;
        let pipe = &mut there.pipes[side];
        let ready = std::mem::take(&mut pipe.ready);
        let ended = pipe.ended && pipe.transit.is_empty();
        pipe.held -= ready.iter().map(Vec::len).sum::<usize>();
        if ended {
            end.receive = None;
        }
        for bytes in ready {
            self.complete(slot, id, Ok(Done::Received(Chunk::from(bytes))), true);
        }
        if ended {
            self.cores[slot].ops.remove(&id);
            self.complete(slot, id, Ok(Done::Received(Chunk::from(Vec::new()))), false);
        }
        self.net_pump(conn, side);
    }

    /// The owner of an end closes it: what it sent still arrives, then the stream ends.
    pub(super) fn net_close(&mut self, conn: u64, side: usize) {
        let Some(there) = self.net.conns.get_mut(&conn) else { return };
        let end = &mut there.ends[side];
        if end.gone {
            return;
        }
        end.gone = true;
        let slot = end.slot;
        let reset = end.reset;
        let mut pending: Vec<OpId> = end.receive.take().into_iter().collect();
        pending.extend(there.pipes[side].sends.drain(..).map(|(id, _, _)| id));
        let unread = !there.pipes[1 - side].ready.is_empty();
        let (from, to) = (there.ends[side].machine, there.ends[1 - side].machine);
        let over = there.ends[1 - side].gone;
        for id in pending {
            self.cores[slot].ops.remove(&id);
            self.complete(slot, id, Err(cancelled()), false);
        }
        if over {
            self.net.conns.remove(&conn);
        } else if unread {
            self.net_reset_peer(conn, side);
        } else if !reset {
            self.net_dispatch(conn, side, from, to, Vec::new());
        }
    }

    /// End `side` sends a reset: the other end learns of it later.
    fn net_reset_peer(&mut self, conn: u64, side: usize) {
        let Some(there) = self.net.conns.get(&conn) else { return };
        let (from, to) = (there.ends[side].machine, there.ends[1 - side].machine);
        let delay = self.net_delay_ns(from, to);
        self.stats.add("reset by a closed end");
        self.at(self.now + delay, Event::Reset { conn, side: 1 - side });
    }

    /// End `side` learns that its stream was reset.
    pub(super) fn net_reset_end(&mut self, conn: u64, side: usize) {
        let Some(there) = self.net.conns.get_mut(&conn) else { return };
        let end = &mut there.ends[side];
        if end.gone || end.reset {
            return;
        }
        end.reset = true;
        let slot = end.slot;
        let mut pending: Vec<OpId> = end.receive.take().into_iter().collect();
        pending.extend(there.pipes[side].sends.drain(..).map(|(id, _, _)| id));
        // What was on its way here is lost; what the other end sends from now on is answered with a reset.
        let Pipe { transit, ready, held, stalled, unacked, .. } = &mut there.pipes[1 - side];
        transit.clear();
        ready.clear();
        (*held, *stalled, *unacked) = (0, None, None);
        for id in pending {
            self.cores[slot].ops.remove(&id);
            self.complete(slot, id, Err(os_error(libc::ECONNRESET)), false);
        }
        self.net_pump(conn, 1 - side);
    }

    /// One end learns at once, the other after a delay; which, is drawn.
    fn net_reset_both(&mut self, conn: u64) {
        let first = self.rng.below(2) as usize;
        self.net_reset_end(conn, first);
        let Some(there) = self.net.conns.get(&conn) else { return };
        let (from, to) = (there.ends[first].machine, there.ends[1 - first].machine);
        let delay = self.net_delay_ns(from, to);
        self.at(self.now + delay, Event::Reset { conn, side: 1 - first });
    }

    pub(super) fn net_detach(&mut self, slot: usize, socket: Fd) -> io::Result<Option<Done>> {
        let Some(Handle::Socket { conn, side }) = self.take_handle(slot, socket.0) else { return Err(os_error(libc::EBADF)) };
        let there = self.net.conns.get_mut(&conn).expect("a socket's handle has its stream");
        assert!(there.ends[side].receive.is_none() && there.pipes[side].sends.is_empty(), "a socket is detached with operations in flight");
        there.ends[side].slot = NOWHERE;
        self.net.parcels += 1;
        let parcel = SimParcel { conn, side, dropped: Some(self.net.dropped.clone()) };
        Ok(Some(Done::Detached(Parcel(Parcelled::Sim(parcel)))))
    }

    pub(super) fn net_attach(&mut self, slot: usize, parcel: Parcel) -> io::Result<Option<Done>> {
        let Parcelled::Sim(mut parcel) = parcel.0 else { return Err(os_error(libc::EINVAL)) };
        let SimParcel { conn, side, .. } = parcel;
        parcel.dropped = None;
        self.net.parcels -= 1;
        let there = self.net.conns.get_mut(&conn).expect("a parcelled stream stays");
        assert_eq!(there.ends[side].machine, self.cores[slot].machine, "a stream is handed on within a machine");
        there.ends[side].slot = slot;
        Ok(Some(Done::Opened(self.add_handle(slot, Handle::Socket { conn, side }))))
    }
}

// Accidents.
impl State {
    /// Closes the streams whose parcels were dropped.
    pub(super) fn net_drop_parcels(&mut self) {
        if self.net.parcels == 0 {
            return;
        }
        let dropped = std::mem::take(&mut *self.net.dropped.lock().expect("no holder of it panics"));
        for (conn, side) in dropped {
            self.net.parcels -= 1;
            self.net_close(conn, side);
        }
    }

    fn conns_between(&self, a: usize, b: usize) -> Vec<u64> {
        let between = |conn: &Conn| {
            let (x, y) = (conn.ends[0].machine, conn.ends[1].machine);
            (x, y) == (a, b) || (y, x) == (a, b)
        };
        self.net.conns.iter().filter(|(_, conn)| between(conn)).map(|(at, _)| *at).collect()
    }

    pub(super) fn net_reset_between(&mut self, a: usize, b: usize) {
        for conn in self.conns_between(a, b) {
            self.stats.add("reset");
            self.net_reset_both(conn);
        }
    }

    pub(super) fn net_is_cut(&self, a: usize, b: usize) -> bool {
        self.net.cuts.contains(&(a, b))
    }

    pub(super) fn net_cut(&mut self, a: usize, b: usize) {
        if self.net.cuts.insert((a, b)) {
            self.stats.add("partition");
        }
    }

    pub(super) fn net_heal(&mut self, a: usize, b: usize) {
        if !self.net.cuts.remove(&(a, b)) {
            return;
        }
        for conn in self.conns_between(a, b) {
            for side in 0..2 {
                let delay = self.net_delay_ns(a, b);
                let there = self.net.conns.get_mut(&conn).expect("just listed");
                let (from, to) = (there.ends[side].machine, there.ends[1 - side].machine);
                let pipe = &mut there.pipes[side];
                if (from, to) == (b, a) {
                    pipe.unacked = None;
                }
                if (from, to) == (a, b) && pipe.stalled.take().is_some() {
                    pipe.last_at = pipe.last_at.max(self.now + delay);
                    let at = pipe.last_at;
                    self.at(at, Event::Arrive { conn, side });
                }
            }
        }
    }

    pub(super) fn net_stall_check(&mut self, conn: u64, side: usize, since: u64) {
        let Some(there) = self.net.conns.get(&conn) else { return };
        let pipe = &there.pipes[side];
        if pipe.stalled == Some(since) || pipe.unacked == Some(since) {
            self.stats.add("reset after a stall");
            self.net_reset_end(conn, 0);
            self.net_reset_end(conn, 1);
        }
    }

    /// A machine's ends are gone without a word; the other ends are told later.
    pub(super) fn net_fall(&mut self, machine: usize, doom: Doom) {
        self.net.listeners.retain(|(at, _), _| *at != machine);
        let fallen: Vec<(u64, usize)> = self
            .net
            .conns
            .iter()
            .flat_map(|(at, conn)| [0, 1].into_iter().filter(|side| conn.ends[*side].machine == machine).map(|side| (*at, side)))
            .collect();
        for (conn, side) in fallen {
            let there = self.net.conns.get_mut(&conn).expect("just listed");
            let end = &mut there.ends[side];
            end.gone = true;
            end.dead = true;
            end.receive = None;
            there.pipes[side].sends.clear();
            let peer = there.ends[1 - side].machine;
            if there.ends[1 - side].gone {
                self.net.conns.remove(&conn);
                continue;
            }
            let delay = match doom {
                Doom::Crash => self.machines[peer].faults.crash_reset_ms * 1_000_000,
                Doom::Kill => self.net_delay_ns(machine, peer),
            };
            self.stats.add("reset by a fall");
            self.at(self.now + delay, Event::Reset { conn, side: 1 - side });
        }
    }
}
