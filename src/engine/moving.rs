//! What the old logs hold, when the data moves to another list of cores.
//!
//! Each old log is read by one shard of the new order, not by all, so that the work grows with the logs and not with logs times cores.
//! (With more new shards than old logs, several share a log: each looks at the block headers of that one log and replays its part of the
//! groups.) A reader fills memtables of its usual size and writes each as tables with one owner each: no shard opens, or keeps filters
//! of, what belongs to others. The tables' records wait here until all shards have read; then every shard makes its first manifest of
//! what it inherits and of the tables that were written for it, whoever wrote them.
//!
//! Nothing of the old order is changed. A crash, a full disk or any failure before `NodeStore::commit` leaves it in force, and the tables
//! that were written, which no manifest in force names, go at the next start.

use super::format::manifest::{Edit, Level, Part, TableId, TableRecord, VnodeRecord};
use super::format::wal::VnodesRecord;
use super::manifest::State;
use super::memtable::Memtable;
use super::recover::NodeStore;
use super::store::EngineConfig;
use super::store_open::{OpenReport, Replayed, tables_config};
use super::tables::{Output, TablesConfig, Workshop, or_full};
use super::vnode_set::VnodeSet;
use super::wal_replay::WalReader;
use super::{EngineError, Seq};
use crate::io::Io;
use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Mutex;

/// A move that is under way, shared by the shards of the new order.
pub(super) struct Moving {
    /// The old shards' manifests.
    states: Vec<State>,
    /// What each new shard has read.
    found: Mutex<BTreeMap<u16, Found>>,
}

/// What a shard has read of the old logs.
#[derive(Default)]
struct Found {
    tables: Vec<Written>,
    /// Records of vnodes and the old shard that wrote them, in its order.
    vnodes: Vec<(u16, VnodesRecord)>,
    /// No stamp that the logs know of lies above.
    clock: u64,
    /// The last sequence of any of the logs.
    last: Seq,
    /// The number of this shard's next table.
    next_table: u64,
}

/// A table that was written for a shard.
struct Written {
    owner: u16,
    /// Part of the log and flush of the part: later ones hold later records of the same vnodes.
    order: (u32, u32),
    record: TableRecord,
}

/// What one shard reads of one old log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Share {
    log: u16,
    /// Which of so many parts.
    part: u32,
    parts: u32,
}

/// What shard `core` of `new` reads of the logs of `old` shards.
fn shares(core: u16, old: u16, new: u16) -> Vec<Share> {
    if new <= old {
        return (core..old).step_by(usize::from(new)).map(|log| Share { log, part: 0, parts: 1 }).collect();
    }
    let log = core % old;
    vec![Share { log, part: u32::from(core / old), parts: u32::from(new - log).div_ceil(u32::from(old)) }]
}

impl Moving {
    /// From shards with these manifests.
    pub(super) fn new(states: Vec<State>) -> Moving {
        Moving { states, found: Mutex::default() }
    }

    /// Reads shard `config.core`'s share of the old logs.
    ///
    /// # Errors
    /// Damage, with file and offset; `DiskFull`; of the disk.
    pub(super) async fn read(&self, io: &Io, store: &NodeStore, config: &EngineConfig) -> Result<OpenReport, EngineError> {
        let next_table = self.states.iter().map(|state| state.next_table).max().unwrap_or(0);
        let mut report = OpenReport { moved: true, ..OpenReport::default() };
        let mut reading = Reading {
            io,
            store,
            config,
            tables: &tables_config(store, config),
            numbers: Cell::new(next_table),
            last_entries: self.last_entries(),
            found: Found::default(),
        };
        let dirs = store.previous_dirs();
        for share in shares(config.core, dirs.len() as u16, store.cores()) {
            let log = usize::from(share.log);
            let reader = WalReader::open(io, &dirs[log], store.identity(), self.states[log].released, None).await?;
            reading.read(reader, share, &mut report).await?;
        }
        let found = Found { next_table: reading.numbers.get(), ..reading.found };
        self.found.lock().expect("nobody panics with it").insert(config.core, found);
        Ok(report)
    }

    /// Entries of the last level of the whole node.
    fn last_entries(&self) -> u64 {
        let last = self.states.iter().flat_map(|state| state.tables.values()).filter(|table| table.level == Level::Last);
        let entries: BTreeMap<TableId, u64> = last.map(|table| (table.id, table.entries)).collect();
        entries.values().sum()
    }

    /// What shard `core` begins with, after all shards have read: what it inherits, and what was read for it.
    pub(super) fn state(&self, store: &NodeStore, core: u16) -> State {
        let found = self.found.lock().expect("nobody panics with it");
        assert_eq!(found.len(), usize::from(store.cores()), "every shard reads its share before one opens");
        // The new log goes on above every old sequence, so that what an old table or record says of sequences stays below.
        let base = found.values().map(|found| found.last).max().unwrap_or(0);
        let mut state = store.inherit(core, &self.states, base);
        state.next_table = state.next_table.max(found[&core].next_table);
        state.clock_ceiling = found.values().map(|found| found.clock).max().unwrap_or(0).max(state.clock_ceiling);
        // Those who share a log come in the order of its parts.
        for (from, one) in found.values().flat_map(|found| &found.vnodes) {
            let belongs = |vnode: u32| store.previous_owner(vnode) == *from && store.owner(vnode) == core;
            let edits = vnode_edits(one, store.vnodes(), &belongs);
            edits.iter().for_each(|edit| state.apply(edit).expect("records of vnodes always fit"));
        }
        let ours = || found.values().flat_map(|found| &found.tables).filter(|written| written.owner == core);
        let orders: BTreeSet<_> = ours().map(|written| written.order).collect();
        let runs: BTreeMap<_, u64> = orders.into_iter().zip(state.next_run..).collect();
        for Written { order, record, .. } in ours() {
            // Of one order there is at most one flush of a log: what they hold lies beside each other and makes one run.
            let add = Edit::AddTable(TableRecord { run: runs[order], ..record.clone() });
            state.apply(&add).expect("a shard gives each number once");
        }
        state
    }
}

/// One shard at its reading.
struct Reading<'a> {
    io: &'a Io,
    store: &'a NodeStore,
    config: &'a EngineConfig,
    tables: &'a TablesConfig,
    numbers: Cell<u64>,
    last_entries: u64,
    found: Found,
}

impl Reading<'_> {
    async fn read(&mut self, mut reader: WalReader, share: Share, report: &mut OpenReport) -> Result<(), EngineError> {
        reader.keep_part(share.part, share.parts);
        let (vnodes, mut flush) = (self.store.vnodes(), 0);
        let mut replayed = Replayed::new(self.config, vnodes);
        while reader.next_group(&mut |seq, record| replayed.take(seq, record)).await? {
            if let Some(full) = replayed.full(self.config, vnodes) {
                self.flush(&full, (share.part, flush)).await?;
                flush += 1;
            }
        }
        if !replayed.active.is_empty() {
            self.flush(&replayed.active, (share.part, flush)).await?;
            flush += 1;
        }
        report.flushes += u64::from(flush);
        report.wal.records += reader.records;
        report.wal.bytes += reader.bytes;
        // Counted once, by the first of those who share a log.
        if let Some((_, blocks)) = reader.plan.torn.filter(|_| share.part == 0) {
            report.wal.torn_groups += 1;
            report.wal.torn_blocks += blocks;
        }
        let found = &mut self.found;
        found.clock = found.clock.max(reader.ceiling).max(replayed.newest.hlc());
        found.last = found.last.max(reader.plan.last);
        found.vnodes.extend(replayed.vnodes.into_iter().map(|record| (share.log, record)));
        Ok(())
    }

    /// Writes a memtable as tables of level 0, a run for each owner.
    async fn flush(&mut self, memtable: &Memtable, order: (u32, u32)) -> Result<(), EngineError> {
        let mut owned: BTreeMap<u16, BTreeSet<u32>> = BTreeMap::new();
        for vnode in memtable.vnodes() {
            owned.entry(self.store.owner(vnode)).or_default().insert(vnode);
        }
        let (io, config, stats) = (self.io, self.tables, Rc::default());
        // Which namespaces are packed is told when the node has started; the next merge packs these.
        let packed = Default::default();
        let shop = Workshop { io, config, identity: self.store.identity(), numbers: &self.numbers, stats: &stats, packed: &packed };
        // The other logs' flushes of the same order are of about the same size.
        let entries = memtable.len() as u64 * u64::from(self.store.previous_cores().unwrap_or(1));
        for (owner, vnodes) in owned {
            // Marked with its vnodes, since other shards' tables lie between them in the same run.
            let part = Part { vnodes: VnodeSet::of(vnodes.iter().copied()), from: Vec::new() };
            let mut output = Output::new(shop, (Level::Zero, 0), memtable.seqs().unwrap_or_default(), entries, self.last_entries);
            let written = output.write_entries(memtable.sorted_of(|vnode| vnodes.contains(&vnode)), |_| {}).await;
            if let Err(error) = written {
                output.abandon().await;
                return Err(or_full(error));
            }
            let records = output.take().into_iter().map(|new| TableRecord { parts: vec![part.clone()], ..new.record });
            self.found.tables.extend(records.map(|record| Written { owner, order, record }));
        }
        Ok(())
    }
}

/// What a record of the log changes in the manifest, for the vnodes that belong here.
pub(super) fn vnode_edits(one: &VnodesRecord, vnodes: u32, belongs: &dyn Fn(u32) -> bool) -> Vec<Edit> {
    let edit = |vnode: u32, record: VnodeRecord| Edit::Vnodes { namespace: one.namespace, first: vnode, last: vnode, record };
    (one.first..=one.last.min(vnodes - 1)).filter(|&vnode| belongs(vnode)).map(|vnode| edit(vnode, one.record)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_of_every_log_is_read_once_and_nobody_reads_more_than_a_fair_share_of_logs() {
        for (old, new) in (1..12).flat_map(|old| (1..12).map(move |new| (old, new))) {
            let mut read: BTreeMap<u16, Vec<Share>> = BTreeMap::new();
            for core in 0..new {
                let ours = shares(core, old, new);
                assert!(!ours.is_empty() || core >= old, "{core} of {old} → {new} is idle");
                assert!(ours.len() <= usize::from(old.div_ceil(new)), "{core} of {old} → {new}: {ours:?}");
                ours.into_iter().for_each(|share| read.entry(share.log).or_default().push(share));
            }
            assert_eq!(read.len(), usize::from(old), "{old} → {new}");
            for (log, parts) in read {
                // By rising cores the parts rise: the order of what a log says of vnodes.
                let wanted = (0..parts.len() as u32).map(|part| Share { log, part, parts: parts.len() as u32 });
                assert!(parts.iter().copied().eq(wanted), "{old} → {new}: {parts:?}");
            }
        }
    }
}
