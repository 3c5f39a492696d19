//! The shell of gossip: what stands between `cluster::gossip`, which has no hands, and sockets, clocks, the shards and the operator.
//!
//! Here is what is the same wherever a node runs; `on_glommio` and `on_thread` carry it, and the simulator's `air`. All keep to one order:
//! datagrams that lie in the socket are taken in before a tick, since an unread answer must not become a suspicion. What a stranger can
//! make grow is bounded: `EXCHANGES_MAX` streams each way, `EXCHANGE_MAX` a stream, `limits::GOSSIP_SYNC_BYTES_MAX` a message.

pub(super) mod on_glommio;
pub(super) mod on_thread;

use crate::base::metrics::{Meaning, Report, counter, gauge};
use crate::base::time::Mono;
use crate::cluster::board::{Member, MemberBoard, Members, NewerTopology};
use crate::cluster::gossip::member::{Address, State};
use crate::cluster::gossip::wire::Key;
use crate::cluster::gossip::{Config, Counters, Effect, Gossip, Me, Now, Timing};
use crate::io::{SocketAddr, host};
use crate::limits::GOSSIP_DATAGRAM_BYTES_MAX;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Streams at a time, each way. A node is asked seldom; more at once are closed, and the other asks again.
pub(super) const EXCHANGES_MAX: usize = 4;
/// From the first byte of a stream to its last.
pub(super) const EXCHANGE_MAX: Duration = Duration::from_millis(1500);
/// After a goodbye, no longer.
pub(super) const LEAVE_MAX: Duration = Duration::from_millis(500);
/// One byte more than a datagram may have, so that one which is too long shows.
pub(super) const ROOM_BYTES: usize = GOSSIP_DATAGRAM_BYTES_MAX + 1;
/// Between two looks at the figures.
const FIGURES_EVERY: Duration = Duration::from_millis(500);

/// Tells the operator a sentence, from any thread.
pub type Warn = Arc<dyn Fn(&str) + Send + Sync>;

/// What gossip is started with.
pub struct GossipSetup {
    /// Where its two sockets are bound; port 0 draws a free one.
    pub listen: SocketAddr,
    /// `CLUSTER_UNKNOWN` for a node that joins one it has not met.
    pub cluster: u64,
    /// A power of two.
    pub vnodes: u32,
    pub key: Key,
    /// Gossip's port in it may be 0: then it is the one that was bound.
    pub me: Me,
    pub seeds: Vec<Address>,
    pub timing: Timing,
    pub board: Arc<MemberBoard>,
    pub figures: Arc<GossipFigures>,
    /// Is told who was refused and why.
    pub warn: Warn,
}

/// What gossip has counted, for the admin port.
#[derive(Default)]
pub struct GossipFigures {
    latest: Mutex<Option<Latest>>,
}

struct Latest {
    counters: Counters,
    refusals: Vec<(&'static str, u64)>,
    states: BTreeMap<State, u64>,
    epoch: u64,
    memory_bytes: usize,
}

impl GossipFigures {
    /// Adds the figures; none before gossip has begun.
    pub fn report(&self, report: &mut Report) {
        let latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(Latest { counters, refusals, states, epoch, memory_bytes }) = &*latest else { return };
        for (meaning, count) in counted(counters) {
            report.count(meaning, &[], count);
        }
        for (reason, count) in refusals {
            report.count(&REFUSALS, &[("reason", reason)], *count);
        }
        for state in [State::Alive, State::Suspect, State::Dead, State::Left] {
            report.count(&MEMBERS, &[("state", &state.to_string())], states.get(&state).copied().unwrap_or(0));
        }
        report.count(&EPOCH, &[], *epoch);
        report.count(&MEMORY, &[], *memory_bytes as u64);
    }
}

fn counted(counters: &Counters) -> [(&'static Meaning, u64); 14] {
    [
        (&RECEIVED, counters.datagrams_received),
        (&SENT, counters.datagrams_sent),
        (&SENT_BYTES, counters.bytes_sent),
        (&MALFORMED, counters.malformed),
        (&REPLAYED, counters.replayed),
        (&LATE, counters.late),
        (&MISADDRESSED, counters.misaddressed),
        (&PROBES, counters.probes),
        (&PROBES_FAILED, counters.probes_failed),
        (&SUSPICIONS, counters.suspicions),
        (&DEATHS, counters.deaths),
        (&REFUTATIONS, counters.refutations),
        (&PAUSES, counters.pauses),
        (&SYNCS, counters.syncs),
    ]
}

static RECEIVED: Meaning = counter("gossip_datagrams_received_total", "Datagrams of gossip taken in, good or not.");
static SENT: Meaning = counter("gossip_datagrams_sent_total", "Datagrams of gossip sent.");
static SENT_BYTES: Meaning = counter("gossip_sent_bytes_total", "Bytes of gossip sent in datagrams.");
static MALFORMED: Meaning = counter("gossip_malformed_total", "Messages of gossip that could not be read.");
static REPLAYED: Meaning = counter("gossip_replayed_total", "Datagrams of gossip seen before, or too old to tell.");
static LATE: Meaning = counter("gossip_late_total", "Datagrams of gossip that were stale because this node did not run.");
static MISADDRESSED: Meaning = counter("gossip_misaddressed_total", "Probes that were meant for another node.");
static PROBES: Meaning = counter("gossip_probes_total", "Members probed.");
static PROBES_FAILED: Meaning = counter("gossip_probes_failed_total", "Probes that nobody answered.");
static SUSPICIONS: Meaning = counter("gossip_suspicions_total", "Members that became suspects.");
static DEATHS: Meaning = counter("gossip_deaths_total", "Members that were found dead.");
static REFUTATIONS: Meaning = counter("gossip_refutations_total", "Statements about this node that it contradicted.");
static PAUSES: Meaning = counter("gossip_pauses_total", "Times that the control core was not woken when it should have been.");
static SYNCS: Meaning = counter("gossip_syncs_total", "Tables of members sent over a stream.");
static REFUSALS: Meaning = counter("gossip_refusals_total", "Messages refused by this node or of it, by reason.");
static MEMBERS: Meaning = gauge("gossip_members", "Nodes of the cluster that this node knows, itself among them, by state.");
static EPOCH: Meaning = gauge("gossip_topology_epoch", "The newest topology that this node has heard of.");
static MEMORY: Meaning = gauge("gossip_memory_bytes", "Memory of the table of members.");

/// What the carrier is to do: datagrams to send, and whom to ask for its table.
#[derive(Default)]
pub struct Todo {
    pub sends: Vec<(SocketAddr, Vec<u8>)>,
    pub syncs: Vec<SocketAddr>,
}

/// Gossip with all that is not a socket.
pub struct Shell {
    gossip: Gossip,
    /// Where the sockets are.
    local: SocketAddr,
    board: Arc<MemberBoard>,
    figures: Arc<GossipFigures>,
    figures_due: Mono,
    warn: Warn,
    /// Empty between two events; its memory is kept.
    effects: Vec<Effect>,
}

impl Shell {
    /// `local`: where the sockets were bound.
    pub fn new(setup: GossipSetup, local: SocketAddr, now: Now, seed: u64) -> Shell {
        let GossipSetup { cluster, vnodes, key, mut me, seeds, timing, board, figures, warn, .. } = setup;
        if me.profile.gossip.port == 0 {
            me.profile.gossip.port = local.port();
        }
        let gossip = Gossip::new(Config { cluster, vnodes, key, timing }, me, &seeds, now, seed);
        let shell = Shell { gossip, local, board, figures, figures_due: now.mono, warn, effects: Vec::new() };
        shell.publish(now);
        shell
    }

    /// Where the sockets are.
    pub fn local(&self) -> SocketAddr {
        self.local
    }

    pub fn wakes_at(&self) -> Mono {
        self.gossip.wakes_at()
    }

    /// How long until `tick`; zero: it is due.
    pub fn pause(&self, now: Now) -> Duration {
        self.wakes_at().since(now.mono)
    }

    /// Does what is due.
    pub fn tick(&mut self, now: Now) -> Todo {
        let newest = self.board.topology();
        self.gossip.learn_topology(now, newest.epoch, newest.hash);
        let mut effects = std::mem::take(&mut self.effects);
        self.gossip.on_tick(now, &mut effects);
        if now.mono >= self.figures_due {
            self.figures_due = now.mono.plus(FIGURES_EVERY);
            self.count(now);
        }
        self.carry_out(now, effects)
    }

    pub fn take_datagram(&mut self, now: Now, from: SocketAddr, bytes: &[u8]) -> Todo {
        let mut effects = std::mem::take(&mut self.effects);
        self.gossip.on_datagram(now, to_address(from), bytes, &mut effects);
        self.carry_out(now, effects)
    }

    /// What goes back over the stream, if anything does.
    pub fn take_stream(&mut self, now: Now, from: SocketAddr, bytes: &[u8]) -> (Option<Vec<u8>>, Todo) {
        let mut effects = std::mem::take(&mut self.effects);
        let answer = self.gossip.on_stream(now, to_address(from), bytes, &mut effects);
        (answer, self.carry_out(now, effects))
    }

    pub fn sync_request(&mut self, now: Now) -> Vec<u8> {
        self.gossip.sync_request(now)
    }

    /// Says goodbye; the carrier goes on while it is not told, `LEAVE_MAX` at most.
    pub fn leave(&mut self, now: Now) {
        self.gossip.leave(now);
    }

    pub fn is_told(&self) -> bool {
        self.gossip.live() == 0 || !self.gossip.has_news()
    }

    fn carry_out(&mut self, now: Now, mut effects: Vec<Effect>) -> Todo {
        let (mut todo, mut changed) = (Todo::default(), false);
        for effect in effects.drain(..) {
            match effect {
                Effect::Send { to, datagram } => todo.sends.push((self.to_socket(to), datagram)),
                Effect::Sync { with } => todo.syncs.push(self.to_socket(with)),
                Effect::Changed { .. } => changed = true,
                Effect::NewerTopology { newest, from } => self.board.hear_of(NewerTopology { newest, from }),
                Effect::TopologyConflict { epoch, from } => {
                    (self.warn)(&format!("node {from} holds another topology than this node under the same epoch {epoch}"))
                }
                Effect::Refused(refusal) => (self.warn)(&refusal.to_string()),
            }
        }
        self.effects = effects;
        if changed {
            self.publish(now);
        }
        todo
    }

    /// (The long dead are forgotten without a word: on the board they stay until the next change.)
    fn publish(&self, now: Now) {
        let others = self.gossip.members(now.mono);
        let list = others.chain([*self.gossip.me()]).map(Member::from);
        self.board.publish(Members::new(self.gossip.cluster(), self.gossip.me().node, list));
    }

    fn count(&self, now: Now) {
        let mut states = BTreeMap::from([(self.gossip.me().state, 1)]);
        for member in self.gossip.members(now.mono) {
            *states.entry(member.state).or_default() += 1;
        }
        let latest = Latest {
            counters: *self.gossip.counters(),
            refusals: self.gossip.refusals().collect(),
            states,
            epoch: self.gossip.newest_topology().epoch,
            memory_bytes: self.gossip.memory_bytes(),
        };
        *self.figures.latest.lock().unwrap_or_else(PoisonError::into_inner) = Some(latest);
    }

    /// As the sockets' family spells it.
    fn to_socket(&self, address: Address) -> SocketAddr {
        match address.as_v4() {
            Some(ip) if self.local.is_ipv4() => SocketAddr::from((ip, address.port)),
            _ => SocketAddr::from((address.ip, address.port)),
        }
    }
}

/// The host's clocks.
pub(super) fn now() -> Now {
    Now { mono: host::mono(), wall_ms: host::wall_ms() }
}

/// As gossip spells it: IPv4 mapped into IPv6.
pub fn to_address(socket: SocketAddr) -> Address {
    match socket {
        SocketAddr::V4(v4) => Address::v4(v4.ip().octets(), v4.port()),
        SocketAddr::V6(v6) => Address { ip: v6.ip().octets(), port: v6.port() },
    }
}
