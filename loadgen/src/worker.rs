//! One thread of the generator: an epoll loop over its connections.
//!
//! A turn: take what is due from the plan, fill connections that have room, hand each connection's bytes to the kernel in one write, wait
//! for answers or for the next planned time, read all that is there. Clocks are read a few times a turn, not once a request.
//!
//! Latency counts from the planned time to the reading of the answer. Lateness is what the generator itself adds: from the instant at
//! which a request could have been sent (its planned time, or when its connection had room again) to the write that sent it.

use crate::books::{Books, NO_ANSWER};
use crate::connection::{Connection, Planned};
use crate::dialer::{Dialer, Told};
use crate::keys::KeyNames;
use crate::ledger::{ReadTicket, WriteTicket};
use crate::plan::OpKind;
use crate::poll::{Poll, Ready, is_interrupted, sharpen_timers, thread_cpu_ns};
use crate::progress::{Intervals, tell};
use crate::protocol::in_order::{Decoded, decode, name};
use crate::protocol::{Common, Greeted, Reader, Target, Topology, encode, native};
use crate::report::Tally;
use crate::source::{Router, Source, Work};
use crate::value::Stamp;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Planned requests that may wait in a thread before it stops looking ahead. Their planned times stay what they are.
const BACKLOG_MAX: usize = 1 << 20;
/// No wait is longer than this, so that progress and ends are seen.
const WAIT_NS_MAX: u64 = 50_000_000;
/// To sleep for less costs more than to look again.
const SLEEP_NS_MIN: u64 = 3000;
/// Between two tries to reach a lost server.
const RECONNECT_NS: u64 = 100_000_000;
/// A server may take so long to a hello.
const DIAL_TIMEOUT: Duration = Duration::from_secs(5);
/// Between two looks for silent connections.
const LOOK_NS: u64 = 10_000_000;
/// No wait is longer than this while a connection is lost.
const WAIT_TROUBLED_NS_MAX: u64 = 5_000_000;
/// A server that is gone for longer is gone for good.
const OUTAGE_NS_MAX: u64 = 120_000_000_000;
/// Before a refused request of a fill is tried again.
const RETRY_NS: u64 = 10_000_000;
const READ_BYTES: usize = 256 * 1024;

/// What all threads of a phase share.
pub struct Shared {
    pub start: Instant,
    pub common: Common,
    pub run: u32,
    pub target: Target,
    pub credential: Vec<u8>,
    pub is_routed: bool,
    pub reconnects: bool,
    /// How long a connection may be silent while requests wait on it; for ever, if `None`.
    pub patience: Option<Duration>,
    pub spins: bool,
    /// So long after its end a phase waits for answers.
    pub grace: Duration,
    /// Some thread found the server gone: all stop.
    pub stop: AtomicBool,
}

/// A thread's part of a phase.
pub struct Worker<'a> {
    shared: &'a Shared,
    books: Books<'a>,
    source: Source,
    names: KeyNames,
    topology: Topology,
    conns: Vec<Connection>,
    /// Connections a server core, by index.
    by_core: Vec<Vec<usize>>,
    served: Vec<bool>,
    /// Connections that may have something to send.
    listed: Vec<usize>,
    backlog: usize,
    poll: Poll,
    ready: Vec<Ready>,
    /// When the requests of this turn could have been sent.
    sendable_ns: Vec<u64>,
    chunk: Vec<u8>,
    value: Vec<u8>,
    untracked_seq: u32,
    lost_since_ns: Option<u64>,
    dialer: Option<Dialer>,
    /// When silent connections are looked for again.
    look_ns: u64,
    died: Option<String>,
}

/// What a thread hands back.
pub struct Outcome {
    pub tally: Tally,
    /// When the last answer came, from the start.
    pub last_ns: u64,
    pub died: Option<String>,
}

impl<'a> Worker<'a> {
    /// # Errors
    /// The system's, where it gives no epoll.
    pub fn new(
        shared: &'a Shared,
        books: Books<'a>,
        source: Source,
        names: KeyNames,
        topology: Topology,
        conns: Vec<Connection>,
    ) -> std::io::Result<Worker<'a>> {
        let poll = Poll::new()?;
        for (index, conn) in conns.iter().enumerate() {
            let stream = conn.stream.as_ref().expect("a new connection has a stream");
            poll.add(stream.as_raw_fd(), index)?;
        }
        let mut worker = Worker {
            shared,
            books,
            source,
            names,
            topology,
            conns,
            by_core: Vec::new(),
            served: Vec::new(),
            listed: Vec::new(),
            backlog: 0,
            poll,
            ready: Vec::new(),
            sendable_ns: Vec::new(),
            chunk: vec![0; READ_BYTES],
            value: Vec::new(),
            untracked_seq: 0,
            lost_since_ns: None,
            dialer: None,
            look_ns: 0,
            died: None,
        };
        worker.map_cores();
        (0..worker.conns.len()).for_each(|at| worker.list(at));
        Ok(worker)
    }

    /// Runs the phase to its end.
    pub fn run(mut self, intervals: &Intervals) -> Outcome {
        sharpen_timers();
        let (cpu_start_ns, began_ns) = (thread_cpu_ns(), self.now_ns());
        loop {
            let now_ns = self.now_ns();
            if self.books.publish(now_ns, intervals) && is_interrupted() {
                self.died = Some(format!("interrupted after {:.3} s", now_ns as f64 / 1e9));
            }
            self.plan(now_ns);
            self.fill(now_ns);
            if self.died.is_some() || self.shared.stop.load(Ordering::Relaxed) || self.is_over(now_ns) {
                break;
            }
            self.lose_silent(now_ns);
            self.revive(now_ns);
            self.wait_and_read();
        }
        self.wind_up();
        let now_ns = self.now_ns();
        self.books.publish_rest(now_ns, intervals);
        let wall_ns = (self.now_ns() - began_ns).max(1);
        let tally = &mut self.books.tally;
        (tally.cpu_ns, tally.wall_ns) = (thread_cpu_ns() - cpu_start_ns, wall_ns);
        // A thread that never sleeps is always busy; its lateness tells.
        tally.busy_max = if self.shared.spins { 0.0 } else { tally.cpu_ns as f64 / wall_ns as f64 };
        Outcome { tally: self.books.tally, last_ns: self.books.last_ns, died: self.died }
    }

    fn now_ns(&self) -> u64 {
        self.shared.start.elapsed().as_nanos() as u64
    }

    fn ledger_ms(&self) -> u32 {
        self.books.ledger.map_or(0, |ledger| ledger.now_ms())
    }

    fn list(&mut self, at: usize) {
        if !std::mem::replace(&mut self.conns[at].is_listed, true) {
            self.listed.push(at);
        }
    }

    /// Sorts connections by the server's cores.
    fn map_cores(&mut self) {
        self.by_core = vec![Vec::new(); usize::from(self.topology.cores)];
        for (index, conn) in self.conns.iter().enumerate() {
            if let Some(core) = self.by_core.get_mut(usize::from(conn.core)) {
                core.push(index);
            }
        }
        self.served = self.by_core.iter().map(|conns| !conns.is_empty()).collect();
    }

    /// Takes what is due from the open plan and gives it to connections.
    fn plan(&mut self, now_ns: u64) {
        let until_ns = now_ns.min(self.books.window.until_ns - 1);
        while self.backlog < BACKLOG_MAX {
            let Some(planned) = self.source.arrival(until_ns) else { break };
            let at = self.route(planned.key);
            self.conns[at].backlog.push_back(planned);
            self.backlog += 1;
            self.list(at);
        }
    }

    /// A connection for a key: a random one to the core that owns it.
    fn route(&mut self, key: u64) -> usize {
        let random = &mut self.source.random;
        if self.shared.is_routed && self.topology.cores > 1 {
            let core = self.topology.core_of(self.names.name(key));
            let conns = &self.by_core[usize::from(core)];
            if !conns.is_empty() {
                let first = random.below(conns.len() as u64) as usize;
                return self.live(first, conns.len(), |at| conns[at]);
            }
        }
        let first = random.below(self.conns.len() as u64) as usize;
        self.live(first, self.conns.len(), |at| at)
    }

    /// Out of `count` connections the first live one from `first` on; `first`, where none lives.
    fn live(&self, first: usize, count: usize, conn: impl Fn(usize) -> usize) -> usize {
        if self.lost_since_ns.is_none() {
            return conn(first);
        }
        let mut order = (first..count).chain(0..first).map(&conn);
        order.find(|at| self.conns[*at].stream.is_some()).unwrap_or_else(|| conn(first))
    }

    /// Fills all connections that have room and hands their bytes over. Writes take their time, so the plan is looked at again after each.
    fn fill(&mut self, mut now_ns: u64) {
        let ledger_ms = self.ledger_ms();
        let may_start = now_ns < self.books.window.until_ns;
        let mut listed = std::mem::take(&mut self.listed);
        for at in listed.drain(..) {
            self.conns[at].is_listed = false;
            let mut hungry = false;
            while self.conns[at].has_room() {
                let Some(planned) = self.next_for(at, now_ns, may_start) else {
                    hungry = may_start && self.source.is_exhaustive();
                    break;
                };
                let sendable_ns = planned.at_ns.max(self.conns[at].slots.freed_ns);
                self.sendable_ns.push(sendable_ns);
                self.send(at, planned, (now_ns, ledger_ms));
            }
            self.flush(at);
            if hungry {
                self.list(at);
            }
            if !self.sendable_ns.is_empty() {
                now_ns = self.now_ns();
                let window = self.books.window;
                for sendable_ns in self.sendable_ns.drain(..).filter(|at_ns| window.contains(*at_ns)) {
                    self.books.tally.lateness.record(now_ns.saturating_sub(sendable_ns));
                }
                self.plan(now_ns);
            }
        }
        if self.listed.is_empty() {
            // Keep the allocation.
            self.listed = listed;
        }
    }

    fn next_for(&mut self, at: usize, now_ns: u64, may_start: bool) -> Option<Planned> {
        let conn = &mut self.conns[at];
        if let Some(planned) = conn.backlog.pop_front() {
            self.backlog -= 1;
            return Some(planned);
        }
        if !may_start || matches!(self.source.work, Work::Open(_)) {
            return None;
        }
        let core = (self.shared.is_routed && self.topology.cores > 1).then_some(conn.core);
        let (topology, served) = (self.topology, &self.served);
        let mut router = Router { names: &mut self.names, topology, served, ledger: self.books.ledger };
        self.source.next(core, &mut router, now_ns)
    }

    /// Encodes one request into its connection.
    fn send(&mut self, at: usize, mut planned: Planned, (now_ns, ledger_ms): (u64, u32)) {
        let conn = &mut self.conns[at];
        let (mut write, mut read) = (WriteTicket::default(), ReadTicket::default());
        if let Some(ledger) = self.books.ledger {
            if planned.kind != OpKind::Get {
                match ledger.begin_write(planned.key, planned.kind == OpKind::Del, ledger_ms) {
                    Some(ticket) => write = ticket,
                    // Too many writes of this key follow each other: look at it instead.
                    None => planned.kind = OpKind::Get,
                }
            }
            if planned.kind == OpKind::Get {
                read = ledger.begin_read(planned.key, ledger_ms);
            }
        }
        if planned.kind == OpKind::Put {
            self.untracked_seq = self.untracked_seq.wrapping_add(1);
            let seq = if write.seq > 0 { write.seq } else { self.untracked_seq };
            let stamp = Stamp { run: self.shared.run, key: planned.key, seq, writer: conn.number };
            self.books.values.write(stamp, &mut self.value);
        }
        let name = self.names.name(planned.key);
        if self.topology.cores > 1 && self.topology.core_of(name) != conn.core {
            self.books.tally.hops += 1;
        }
        if conn.slots.inflight() == 0 {
            conn.heard_ns = conn.heard_ns.max(now_ns);
        }
        let id = conn.slots.take(planned, write, read);
        encode(&mut conn.out, id, &self.shared.common, planned.kind, name, &self.value);
    }

    fn flush(&mut self, at: usize) {
        let conn = &mut self.conns[at];
        match conn.flush() {
            Ok(done) if done == conn.is_blocked => {
                conn.is_blocked = !done;
                let fd = conn.stream.as_ref().map(AsRawFd::as_raw_fd);
                if let Some(Err(error)) = fd.map(|fd| self.poll.watch_writes(fd, at, !done)) {
                    self.lose(at, &error.to_string());
                }
            }
            Ok(_) => {}
            Err(error) => self.lose(at, &error.to_string()),
        }
    }

    fn wait_and_read(&mut self) {
        let now_ns = self.now_ns();
        let next_ns = if self.backlog >= BACKLOG_MAX { None } else { self.source.next_arrival_ns() };
        let mut wait_ns = next_ns.map_or(WAIT_NS_MAX, |next_ns| next_ns.saturating_sub(now_ns)).min(WAIT_NS_MAX);
        let until_ns = self.books.window.until_ns;
        if now_ns < until_ns {
            wait_ns = wait_ns.min(until_ns - now_ns);
        } else {
            wait_ns = wait_ns.max(100_000);
        }
        if self.lost_since_ns.is_some() {
            wait_ns = wait_ns.min(WAIT_TROUBLED_NS_MAX);
        }
        if self.shared.spins || wait_ns < SLEEP_NS_MIN {
            wait_ns = 0;
        }
        let mut ready = std::mem::take(&mut self.ready);
        ready.clear();
        if let Err(error) = self.poll.wait(wait_ns, &mut ready) {
            self.died = Some(format!("epoll: {error}"));
        }
        if self.shared.spins && ready.is_empty() {
            // The kernel's workers of this CPU may be what an answer waits for: without this they wait for the next tick.
            std::thread::yield_now();
        }
        for event in &ready {
            if event.writable {
                self.list(event.token);
            }
            if event.readable {
                self.read(event.token);
            }
        }
        self.ready = ready;
    }

    /// Reads all that is there.
    fn read(&mut self, at: usize) {
        use std::io::Read;
        loop {
            let Some(stream) = self.conns[at].stream.as_mut() else { return };
            let len = match stream.read(&mut self.chunk) {
                Ok(0) => return self.lose(at, "the server closed it"),
                Ok(len) => len,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => return self.lose(at, &error.to_string()),
            };
            let now = (self.now_ns(), self.ledger_ms());
            self.conns[at].heard_ns = now.0;
            if let Err(reason) = self.take_answers(at, len, now) {
                return self.lose(at, &reason);
            }
            self.list(at);
            if len < self.chunk.len() {
                return;
            }
        }
    }

    /// Takes the answers in the first `len` bytes of the chunk.
    fn take_answers(&mut self, at: usize, len: usize, now: (u64, u32)) -> Result<(), String> {
        let Worker { books, source, died, chunk, conns, .. } = self;
        let Connection { reader, slots, .. } = &mut conns[at];
        let mut settle = |refused: Option<Planned>| {
            let Some(planned) = refused.filter(|_| source.is_exhaustive()) else { return };
            if !source.retry(Planned { at_ns: now.0 + RETRY_NS, ..planned }) {
                *died = Some("the server refused too often".into());
            }
        };
        match reader {
            Reader::Native(reader) => {
                for frame in reader.feed(&chunk[..len]) {
                    let frame = frame.map_err(|error| format!("its framing is lost: {error:?}"))?;
                    let slot = slots.get(frame.id).ok_or_else(|| native::stray(&frame))?;
                    settle(books.answer(slots, frame.id, native::decode(&frame, slot.planned.kind), now));
                }
                Ok(())
            }
            Reader::InOrder(reader) => {
                let protocol = reader.protocol();
                reader.feed(&chunk[..len], |input| {
                    let (id, kind) = slots.oldest().ok_or_else(|| format!("an answer to no request: {:?}", name(input)))?;
                    let (answer, used) = match decode(protocol, input, kind) {
                        Decoded::More => return Ok(0),
                        Decoded::Answer(answer, used) => (Ok(answer), used),
                        Decoded::Odd(reason, used) => (Err(reason), used),
                        Decoded::Broken(reason) => return Err(format!("{reason}: {:?}", name(input))),
                    };
                    settle(books.answer(slots, id, answer, now));
                    Ok(used)
                })
            }
        }
    }

    /// A connection is gone; what was in flight on it has an unknown outcome.
    fn lose(&mut self, at: usize, reason: &str) {
        let now = (self.now_ns(), self.ledger_ms());
        self.conns[at].stream = None;
        for slot in self.conns[at].slots.drain() {
            self.books.abandon(&slot, "connection lost", now);
            // What must all be asked is asked again.
            if self.source.is_exhaustive() {
                self.source.retry(Planned { at_ns: now.0, ..slot.planned });
            }
        }
        if !self.shared.reconnects {
            let seconds = now.0 as f64 / 1e9;
            self.died = Some(format!("the server went away after {seconds:.3} s: connection {}: {reason}", self.conns[at].number));
            return;
        }
        if self.lost_since_ns.is_none() {
            tell(&format!("connection {} lost ({reason}); trying to reconnect", self.conns[at].number));
        }
        self.lost_since_ns.get_or_insert(now.0);
        self.conns[at].retry_ns = now.0;
        // What was not sent yet goes to other nodes.
        for planned in std::mem::take(&mut self.conns[at].backlog) {
            let to = self.route(planned.key);
            self.conns[to].backlog.push_back(planned);
            self.list(to);
        }
    }

    /// Loses connections on which requests wait and nothing comes.
    fn lose_silent(&mut self, now_ns: u64) {
        let Some(patience) = self.shared.patience.filter(|_| now_ns >= self.look_ns) else { return };
        self.look_ns = now_ns + LOOK_NS;
        for at in 0..self.conns.len() {
            if self.conns[at].is_silent(now_ns, patience.as_nanos() as u64) {
                self.lose(at, "silence");
            }
        }
    }

    /// Brings lost connections back: at the next address where there are several.
    fn revive(&mut self, now_ns: u64) {
        let Some(lost_since_ns) = self.lost_since_ns else { return };
        while let Some(Told { conn, greeted }) = self.dialer.as_ref().and_then(Dialer::told) {
            match greeted {
                Some(greeted) => self.take_back(conn, greeted, now_ns),
                None => (self.conns[conn].is_dialled, self.conns[conn].retry_ns) = (false, now_ns + RECONNECT_NS),
            }
        }
        if self.conns.iter().all(|conn| conn.stream.is_some()) {
            self.lost_since_ns = None;
            return;
        }
        if now_ns.saturating_sub(lost_since_ns) > OUTAGE_NS_MAX {
            self.died = Some("the server did not come back".into());
            return;
        }
        if let Err(error) = self.dial_lost(now_ns) {
            self.died = Some(format!("connections cannot be made again: {error}"));
        }
    }

    fn dial_lost(&mut self, now_ns: u64) -> std::io::Result<()> {
        let (target, count) = (&self.shared.target, self.conns.len());
        for (at, conn) in self.conns.iter_mut().enumerate() {
            if conn.stream.is_some() || conn.is_dialled || now_ns < conn.retry_ns {
                continue;
            }
            let dialer = match &mut self.dialer {
                Some(dialer) => dialer,
                none => {
                    let timeout = self.shared.patience.unwrap_or(DIAL_TIMEOUT);
                    none.insert(Dialer::start(target, &self.shared.credential, timeout, count)?)
                }
            };
            let core = (conn.number % u32::from(self.topology.cores)) as u16;
            if !dialer.ask(at, core, (conn.address + 1) % target.addresses.len()) {
                return Err(std::io::Error::other("their thread has ended"));
            }
            conn.is_dialled = true;
        }
        Ok(())
    }

    fn take_back(&mut self, at: usize, greeted: Greeted, now_ns: u64) {
        if let Err(error) = self.poll.add(greeted.stream.as_raw_fd(), at) {
            self.died = Some(format!("epoll: {error}"));
            return;
        }
        self.topology = greeted.topology;
        self.conns[at].revive(greeted, now_ns);
        self.books.tally.reconnects += 1;
        self.list(at);
        self.map_cores();
    }

    fn inflight(&self) -> usize {
        self.conns.iter().map(|conn| conn.slots.inflight()).sum()
    }

    fn is_over(&self, now_ns: u64) -> bool {
        if self.source.is_exhaustive() {
            return self.source.is_empty() && self.inflight() == 0;
        }
        let until_ns = self.books.window.until_ns;
        now_ns >= until_ns && ((self.inflight() == 0 && self.backlog == 0) || now_ns >= until_ns + self.shared.grace.as_nanos() as u64)
    }

    /// Counts what was never answered and what was planned but never sent.
    fn wind_up(&mut self) {
        let (now_ns, ledger_ms) = (self.now_ns(), self.ledger_ms());
        let until_ns = now_ns.min(self.books.window.until_ns - 1);
        let window = self.books.window;
        for conn in &mut self.conns {
            for slot in conn.slots.drain() {
                self.books.abandon(&slot, NO_ANSWER, (now_ns, ledger_ms));
            }
            self.books.tally.unsent += conn.backlog.iter().filter(|planned| window.contains(planned.at_ns)).count() as u64;
        }
        while let Some(planned) = self.source.arrival(until_ns) {
            self.books.tally.unsent += u64::from(window.contains(planned.at_ns));
        }
    }
}
