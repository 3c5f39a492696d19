//! What a shard counts, and the board on which all shards of a node publish it.

use crate::base::metrics::{Meaning, Report, counter, gauge};
use crate::wire::command::{COMMANDS, ErrorCode};
use std::cell::Cell;
use std::sync::Mutex;

/// Kinds of requests are small numbers; those of no command count at 0.
const KINDS: usize = 64;
const CODES: usize = 16;

/// Counters of one core. Plain cells: nobody else touches them.
pub struct Stats {
    requests: [Cell<u64>; KINDS],
    errors: [Cell<u64>; CODES],
    forwarded: Cell<u64>,
    cut: Cell<u64>,
    memory_hits: Cell<u64>,
    memory_misses: Cell<u64>,
    malformed: Cell<u64>,
    hints_not_kept: Cell<u64>,
}

impl Default for Stats {
    fn default() -> Stats {
        Stats {
            requests: [const { Cell::new(0) }; KINDS],
            errors: [const { Cell::new(0) }; CODES],
            forwarded: Cell::new(0),
            cut: Cell::new(0),
            memory_hits: Cell::new(0),
            memory_misses: Cell::new(0),
            malformed: Cell::new(0),
            hints_not_kept: Cell::new(0),
        }
    }
}

fn bump(cell: &Cell<u64>) {
    cell.set(cell.get() + 1);
}

impl Stats {
    #[inline]
    pub fn request(&self, kind: u16) {
        bump(&self.requests[if usize::from(kind) < KINDS { usize::from(kind) } else { 0 }]);
    }

    pub fn error(&self, code: ErrorCode) {
        bump(&self.errors[code as usize % CODES]);
    }

    pub fn forwarded(&self) {
        bump(&self.forwarded);
    }

    /// A connection was ended because others waited for what it held.
    pub fn cut(&self) {
        bump(&self.cut);
    }

    /// A link was closed because what came over it was no message.
    pub fn malformed(&self) {
        bump(&self.malformed);
    }

    /// A replica missed a write, and nothing was kept for it.
    pub fn hint_not_kept(&self) {
        bump(&self.hints_not_kept);
    }

    /// A read was answered from memory, or had to go on to a disk.
    #[inline]
    pub fn peeked(&self, hit: bool) {
        bump(if hit { &self.memory_hits } else { &self.memory_misses });
    }

    /// Everything counted so far.
    pub fn report(&self, report: &mut Report) {
        for row in COMMANDS {
            report.count(&REQUESTS, &[("command", row.name)], self.requests[usize::from(row.kind)].get());
        }
        for code in (1..).map_while(ErrorCode::from_u16) {
            let count = self.errors[code as usize].get();
            if count > 0 {
                report.count(&ERRORS, &[("code", &format!("{code:?}"))], count);
            }
        }
        report.count(&FORWARDED, &[], self.forwarded.get());
        report.count(&CUT, &[], self.cut.get());
        report.count(&MEMORY_HITS, &[], self.memory_hits.get());
        report.count(&MEMORY_MISSES, &[], self.memory_misses.get());
        if self.malformed.get() + self.hints_not_kept.get() > 0 {
            report.count(&MALFORMED, &[], self.malformed.get());
            report.count(&HINTS_NOT_LOGGED, &[], self.hints_not_kept.get());
        }
    }
}

static REQUESTS: Meaning = counter("requests_total", "Requests taken in, by command.");
static ERRORS: Meaning = counter("errors_total", "Requests answered with an error, by code.");
static FORWARDED: Meaning = counter("forwarded_total", "Requests sent on to the core that owns their key.");
static CUT: Meaning = counter("connections_cut_total", "Connections ended because others waited for the bytes that they held.");
static MEMORY_HITS: Meaning = counter("memory_hits_total", "Reads answered from memory.");
static MEMORY_MISSES: Meaning = counter("memory_misses_total", "Reads that memory could not answer.");
static MALFORMED: Meaning = counter("peer_frames_malformed_total", "Links closed, or messages dropped, because what came was no message.");
static HINTS_NOT_LOGGED: Meaning = counter("hints_not_logged_total", "Hints that the log of hints had no room for.");
/// Writes kept for replicas that missed them.
pub static HINTS: Meaning = gauge("hints", "Writes kept for replicas that missed them.");
pub static HINT_BYTES: Meaning = gauge("hint_bytes", "Bytes of the writes kept for replicas that missed them.");
pub static HINTS_SENT: Meaning = counter("hints_sent_total", "Hints that a replica has taken, or does not want.");
pub static HINTS_DROPPED: Meaning = counter("hints_dropped_total", "Hints not kept for want of room, or dropped for their age.");
/// Links to cores of other nodes that are up.
pub static LINKS: Meaning = gauge("links", "Links to cores of other nodes that are up.");
pub static COORDINATED: Meaning = gauge("coordinated", "Requests that this core coordinates now.");
pub static COMING: Meaning =
    gauge("vnodes_coming", "Vnodes that this node has yet to take over, counted for each replication factor that moves.");
pub static TAKEN_OVER: Meaning =
    gauge("vnodes_taken_over", "Vnodes that this node has taken over and that have yet to become its own, counted alike.");
pub static EPOCH: Meaning = gauge("topology_epoch", "Epoch of the topology in use.");
pub static VERSION: Meaning =
    gauge("cluster_version", "Version of what nodes of the cluster keep and say to each other, which all of them know.");
/// Connections that are open.
pub static CONNECTIONS: Meaning = gauge("connections", "Connections open.");
/// Requests that wait for a disk, a lock, another core or the log.
pub static WAITING: Meaning = gauge("requests_waiting", "Requests that wait for a disk, a lock, another core or the log.");

/// How fast writes go in.
pub static WRITE_RATE: Meaning =
    gauge("write_rate_bytes", "Bytes of writes a second that flushes and merges keep up with; 0 while nothing is slowed.");
/// Writes that were slowed down.
pub static WRITES_SLOWED: Meaning = counter("writes_slowed_total", "Writes that waited for flushes and merges.");
/// Writes that wait for their turn.
pub static WRITES_WAITING: Meaning = gauge("writes_waiting", "Writes that wait for flushes and merges now.");

const _: () = {
    let mut index = 0;
    while index < COMMANDS.len() {
        assert!((COMMANDS[index].kind as usize) < KINDS);
        index += 1;
    }
};

/// Where the shards of a node publish what they count, for the control core and `info`.
#[derive(Default)]
pub struct Board {
    rows: Mutex<Rows>,
}

#[derive(Default)]
struct Rows {
    reports: Vec<(u16, Report)>,
    stopped: Vec<(u16, String)>,
    /// How often each core published.
    beats: Vec<u64>,
}

impl Board {
    fn rows(&self) -> std::sync::MutexGuard<'_, Rows> {
        // Rows are replaced whole, so a panic elsewhere leaves nothing half done.
        self.rows.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Replaces a core's report.
    pub fn publish(&self, core: u16, report: Report) {
        let mut rows = self.rows();
        rows.reports.retain(|(other, _)| *other != core);
        rows.reports.push((core, report));
        rows.reports.sort_by_key(|(core, _)| *core);
        let at = usize::from(core);
        if rows.beats.len() <= at {
            rows.beats.resize(at + 1, 0);
        }
        rows.beats[at] += 1;
    }

    /// How often each of `cores` has published: a count that stands still is a core that does not turn.
    pub fn beats(&self, cores: usize) -> Vec<u64> {
        let mut beats = self.rows().beats.clone();
        beats.resize(cores, 0);
        beats
    }

    /// A shard acknowledges nothing any more.
    pub fn stopped(&self, core: u16, why: &str) {
        let mut rows = self.rows();
        if rows.stopped.iter().all(|(other, _)| *other != core) {
            rows.stopped.push((core, why.to_owned()));
        }
    }

    /// All shards' figures, labelled by core.
    pub fn report(&self) -> Report {
        let mut whole = Report::new();
        for (core, report) in &self.rows().reports {
            whole.absorb(report.clone(), ("core", &core.to_string()));
        }
        whole
    }

    /// The shards that stopped, in words.
    pub fn trouble(&self) -> Option<String> {
        let rows = self.rows();
        let say = |(core, why): &(u16, String)| format!("core {core} stopped acknowledging: {why}");
        (!rows.stopped.is_empty()).then(|| rows.stopped.iter().map(say).collect::<Vec<_>>().join("; "))
    }
}
