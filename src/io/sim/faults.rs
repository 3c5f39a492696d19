//! How the simulated world misbehaves: the settings, and the count of what happened.

use std::collections::BTreeMap;

/// How often and how badly. Chances are "once in n operations", 0 for never; times are means, drawn exponentially around a floor.
/// Every machine has a set of its own, which may be changed at any time.
#[derive(Clone, Debug, PartialEq)]
pub struct Faults {
    /// Mean time of a read from the disk, in microseconds.
    pub read_us: u64,
    /// Mean time of a write, in microseconds.
    pub write_us: u64,
    /// Mean time that a sync, or a write's durability, takes on top, in microseconds.
    pub sync_us: u64,
    /// Mean time of an operation on names, in microseconds.
    pub name_us: u64,
    /// A disk operation takes up to `slow_us_max` instead.
    pub slow_one_in: u64,
    pub slow_us_max: u64,
    /// A read fails (EIO).
    pub read_error_one_in: u64,
    /// A write fails (EIO); nothing, a part or all of it got there.
    pub write_error_one_in: u64,
    /// A sync or a durable write fails (EIO); what waited for it is lost or kept.
    pub sync_error_one_in: u64,
    /// One way through the network, in microseconds, and the mean of what comes on top.
    pub net_us: u64,
    pub net_jitter_us: u64,
    /// What is sent at once arrives in pieces, cut anywhere.
    pub chunk_one_in: u64,
    /// A segment on the way resets its connection.
    pub reset_one_in: u64,
    /// Bytes that one direction of a connection holds between sender and reader.
    pub window_bytes: usize,
    /// How long a connect to nobody waits, in milliseconds.
    pub connect_timeout_ms: u64,
    /// How long bytes that cannot pass are tried again before the connection is reset, in milliseconds.
    pub stall_timeout_ms: u64,
    /// How long the peers of a machine that died wait until they are told, in milliseconds.
    pub crash_reset_ms: u64,
    /// A core loses up to `pause_us_max` in a turn (a long slice, another process, a page fault).
    pub pause_one_in: u64,
    pub pause_us_max: u64,
}

impl Default for Faults {
    /// A world in which nothing fails, with the latencies of an NVMe drive and a network in one rack.
    fn default() -> Faults {
        Faults {
            read_us: 80,
            write_us: 20,
            sync_us: 60,
            name_us: 20,
            slow_one_in: 0,
            slow_us_max: 200_000,
            read_error_one_in: 0,
            write_error_one_in: 0,
            sync_error_one_in: 0,
            net_us: 30,
            net_jitter_us: 10,
            chunk_one_in: 0,
            reset_one_in: 0,
            window_bytes: 256 * 1024,
            connect_timeout_ms: 3_000,
            stall_timeout_ms: 10_000,
            crash_reset_ms: 500,
            pause_one_in: 0,
            pause_us_max: 5_000,
        }
    }
}

impl Faults {
    /// What a healthy system must take without an error to anybody: slow operations, pauses, streams in pieces.
    pub fn rough() -> Faults {
        Faults { slow_one_in: 500, chunk_one_in: 8, pause_one_in: 1_000, net_jitter_us: 100, window_bytes: 64 * 1024, ..Faults::default() }
    }

    /// `rough`, and failing reads, writes, syncs and connections.
    pub fn hostile() -> Faults {
        Faults { read_error_one_in: 2_000, write_error_one_in: 5_000, sync_error_one_in: 5_000, reset_one_in: 5_000, ..Faults::rough() }
    }
}

/// Counts by name, in order.
#[derive(Clone, Debug, Default)]
pub(super) struct Stats {
    pub(super) counts: BTreeMap<&'static str, u64>,
    /// Crash sites by operation and kind of file: "before write wal".
    pub(super) sites: BTreeMap<String, u64>,
}

impl Stats {
    pub(super) fn add(&mut self, name: &'static str) {
        *self.counts.entry(name).or_insert(0) += 1;
    }

    pub(super) fn site(&mut self, site: String) {
        *self.sites.entry(site).or_insert(0) += 1;
    }
}
