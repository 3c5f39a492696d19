//! Carrying out a merge, a slice at a time.
//!
//! A merge of runs goes through the places from the first to the last. Each time that an output table is full and durable, one edit of the
//! manifest shows it, drops the inputs that are consumed, raises the start of those that are consumed in part, and says how far the merge
//! has come. The consumed fronts are given back to the file system. So a merge takes the room of one output table beyond its
//! inputs, may stop anywhere (a crash included) and goes on from there, and readers always see one whole tree.

use super::EngineError;
use super::Planted;
use super::format::manifest::{Edit, Level, MergeRecord, TableId, TableRecord};
use super::format::place_namespace_token;
use super::levels::TableRef;
use super::merge::{Merge, MergeStep, Rules, Source, Tally, World};
use super::pick::{RunShape, choose};
use super::table::Table;
use super::table_iter::TableIter;
use super::tables::{Memory, Output, Tables, Underway, or_full, prefix_of, share, sizes};
use crate::base::record::{NamespaceId, Version, vnode_of};
use crate::base::time::WallMs;
use crate::engine::format::manifest::VnodeRecord;
use crate::io::Io;
use std::collections::{BTreeSet, VecDeque};
use std::rc::Rc;

/// An output table is also ended when so many times its size has gone in, so that inputs of garbage alone are given back.
const CONSUMED_SIZES_MAX: u64 = 4;
/// Turns of the background class that a merge leaves out after each of its own while deadlines are counted late: counting then has four
/// of five, and the merge still goes on.
const LATE_EXPIRY_TURNS: usize = 3;

/// What a merge has done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Merged {
    pub level: Level,
    pub tally: Tally,
    /// Bytes of tables that were written.
    pub written_bytes: u64,
    /// No: it gave way to another merge.
    pub is_done: bool,
}

/// One table as a source. It holds the open table, not its place in a tree, so that its front may be given back meanwhile.
struct Input {
    table: Rc<Table>,
    start: Vec<u8>,
    record: TableRecord,
}

impl Input {
    fn new(table: &TableRef<Table>, done: &[u8]) -> Input {
        Input { table: table.table.clone(), start: table.start().max(done).to_vec(), record: table.record.clone() }
    }
}

/// One run as a source: its tables one after another, what is not valid in them left out.
struct RunSource {
    io: Io,
    vnodes: u32,
    tables: VecDeque<Input>,
    current: Option<(TableIter, TableRecord)>,
}

impl Source for RunSource {
    async fn advance(&mut self) -> Result<bool, EngineError> {
        loop {
            if let Some((iter, record)) = &mut self.current {
                while iter.advance().await? {
                    if record.parts.is_empty() {
                        return Ok(true);
                    }
                    let vnode = vnode_of(place_namespace_token(iter.place()).1, self.vnodes);
                    if record.is_valid(iter.place(), vnode) {
                        return Ok(true);
                    }
                    if self.io.slice_is_over() {
                        self.io.yield_now().await;
                    }
                }
            }
            self.current = None;
            let Some(input) = self.tables.pop_front() else { return Ok(false) };
            self.current = Some((input.table.iter(&input.start, None).reading_ahead(), input.record));
        }
    }
    fn place(&self) -> &[u8] {
        self.current.as_ref().map_or(&[], |(iter, _)| iter.place())
    }
    fn cell(&self) -> &[u8] {
        self.current.as_ref().map_or(&[], |(iter, _)| iter.cell())
    }
    fn last_seq(&self) -> u64 {
        self.current.as_ref().map_or(0, |(_, record)| record.seqs.1)
    }
    fn position(&self) -> (String, u64) {
        self.current.as_ref().map_or_else(Default::default, |(iter, _)| iter.position())
    }
}

/// The shard around a merge.
struct Around<'a, M> {
    tables: &'a Tables,
    memory: &'a M,
    inputs: BTreeSet<TableId>,
}

impl<M: Memory> World for Around<'_, M> {
    fn vnodes(&self) -> u32 {
        self.tables.config.vnodes
    }
    fn owns(&self, vnode: u32) -> bool {
        self.memory.owns(vnode)
    }
    fn vnode_record(&self, namespace: NamespaceId, vnode: u32) -> VnodeRecord {
        self.tables.manifest.state().vnodes.get(namespace, vnode)
    }
    fn remnant_floor(&self, namespace: NamespaceId, vnode: u32) -> Version {
        self.memory.remnant_floor(namespace, vnode)
    }
    fn may_exist_elsewhere(&self, prefix: &[u8], vnode: u32, version: Version) -> bool {
        let namespace = NamespaceId::from_be_bytes(prefix[..4].try_into().expect("a place begins with its namespace"));
        self.memory.oldest(namespace, vnode).is_some_and(|oldest| oldest < version)
            || self.tables.may_hold_elsewhere(prefix, vnode, &self.inputs, |(least, _)| least < version)
    }
    fn may_be_newer_elsewhere(&self, place: &[u8], vnode: u32, version: Version) -> bool {
        self.memory.newest(place).is_some_and(|newest| newest > version)
            || self.tables.may_hold_elsewhere(prefix_of(place), vnode, &self.inputs, |(_, greatest)| greatest > version)
    }
}

impl Tables {
    /// Carries out the next merge that is due, to its end or until another goes first. None where none is due.
    ///
    /// # Errors
    /// `DiskFull`: what is done stays done; call again when there may be room. Others: damage, or as `Manifest::commit`.
    pub async fn compact(&self, memory: &impl Memory) -> Result<Option<Merged>, EngineError> {
        let shape = self.shape();
        let Some(choice) = choose(&shape, &self.config.policy) else { return Ok(None) };
        let (above, last): (Vec<_>, Vec<_>) =
            shape.runs.iter().filter(|run| choice.inputs.contains(&run.id)).partition(|run| run.level < Level::Last);
        let sum = |runs: Vec<&RunShape>| runs.iter().map(|run| run.bytes).sum::<u64>() as f64;
        let (above, last) = (sum(above), sum(last));
        let begun = self.manifest.state().merges.last().filter(|merge| choice.run == Some(merge.run)).cloned();
        let merge = match begun {
            Some(merge) => merge,
            None => {
                let run = choice.run.unwrap_or_else(|| self.manifest.draw_run());
                let merge = MergeRecord { inputs: choice.inputs, level: choice.level, run, done: Vec::new() };
                self.manifest.commit(vec![Edit::Merge(Some(merge.clone()))], |_| {}).await?;
                merge
            }
        };
        let (left, done) = self.bytes_of(&merge);
        self.look_at_merges(true);
        self.merging.begin(self.io.now(), left + done, left);
        let merged = self.carry_out(merge, memory).await;
        self.merging.end(self.io.now());
        self.look_at_merges(false);
        let merged = merged?;
        if merged.level == Level::Last && merged.tally.bytes_in > 0 {
            // What vanished was replaced by what came from above, or took it along.
            let gone = (merged.tally.bytes_in - merged.tally.bytes_out.min(merged.tally.bytes_in)) as f64 / merged.tally.bytes_in as f64;
            self.overwritten_share.set((gone * (above + last) / above.max(1.0)).min(1.0));
        }
        Ok(Some(merged))
    }

    /// About the bytes of places and cells that a merge still has to go through, and those that it has written.
    pub(super) fn bytes_of(&self, merge: &MergeRecord) -> (u64, u64) {
        let tree = self.tree();
        let raw = |table: &Rc<TableRef<Table>>| {
            let left = sizes(table, 0).0 as f64 / table.record.bytes.max(1) as f64;
            (table.table.info().counts.raw_bytes as f64 * left) as u64
        };
        let (mut left, mut done) = (0, 0);
        for run in tree.runs.iter().filter(|run| run.id == merge.run || merge.inputs.contains(&run.id)) {
            for table in &run.tables {
                *(if table.record.last >= merge.done { &mut left } else { &mut done }) += raw(table);
            }
        }
        (left, done)
    }

    /// Looks at what the pace of writes depends on, as the manifest has it now. `goes_on`: the last merge that was begun does.
    pub(super) fn look_at_merges(&self, goes_on: bool) {
        let (state, tree, mut underway) = (self.manifest.state(), self.tree(), Underway::default());
        for (at, merge) in state.merges.iter().enumerate() {
            let level0 = tree.level0_runs_where(|id| merge.inputs.contains(&id));
            if goes_on && at + 1 == state.merges.len() {
                (underway.level0, underway.is_into_last) = (level0, merge.level == Level::Last);
            } else {
                let (left, done) = self.bytes_of(merge);
                underway.held += level0;
                underway.held_flushes += level0 as f64 * left as f64 / (left + done).max(1) as f64;
                underway.held_left += left;
            }
        }
        let into_last = state.merges.iter().find(|merge| merge.level == Level::Last);
        for run in &tree.runs {
            let is_input = into_last.is_some_and(|merge| merge.inputs.contains(&run.id));
            let bytes = || run.tables.iter().map(|table| table.record.bytes).sum::<u64>();
            match run.level {
                Level::One if !is_input => underway.above += bytes(),
                Level::Last => underway.last += bytes(),
                Level::Zero | Level::One => {}
            }
        }
        self.underway.set(underway);
    }

    async fn carry_out(&self, mut merge: MergeRecord, memory: &impl Memory) -> Result<Merged, EngineError> {
        let (sources, inputs, seqs) = self.sources(&merge);
        let around = Around { tables: self, memory, inputs };
        let drop_early = self.config.planted == Some(Planted::TombstoneDroppedEarly);
        let expired_ms = self.expiry.counted_ms_of(around.inputs.iter());
        let mut steps = Merge::start(sources, Rules { expired_ms, level: merge.level, drop_early }).await?;
        let entries = {
            let tree = self.tree();
            let inputs = tree.tables().filter(|table| around.inputs.contains(&table.record.id));
            inputs.map(|table| (table.record.entries as f64 * share(table)) as u64).sum()
        };
        let mut output = self.output((merge.level, merge.run), seqs, entries);
        let mut written_bytes = 0;
        loop {
            match self.fill(&mut steps, &mut output, &around).await {
                Ok(()) => {}
                Err(error) => {
                    output.abandon().await;
                    return Err(or_full(error));
                }
            }
            let next = steps.next_place().map(<[u8]>::to_vec);
            let is_last = next.is_none();
            merge.done = next.unwrap_or_default();
            let (bytes, counted_ms) = self.end_slice(&merge, &mut output, &around.inputs, is_last, memory).await?;
            written_bytes += bytes;
            steps.set_expired_ms(counted_ms);
            drop(self.reap().await);
            if is_last || choose(&self.shape(), &self.config.policy).is_none_or(|next| next.run != Some(merge.run)) {
                return Ok(Merged { level: merge.level, tally: steps.tally(), written_bytes, is_done: is_last });
            }
            if memory.is_closing() || self.io.is_shutting_down() {
                return Err(EngineError::Stopped("the shard is closing".to_owned()));
            }
        }
    }

    /// The runs that a merge still has to read, the tables in them, and the log records that they hold.
    fn sources(&self, merge: &MergeRecord) -> (Vec<RunSource>, BTreeSet<TableId>, (u64, u64)) {
        let (mut sources, mut ids, mut seqs) = (Vec::new(), BTreeSet::new(), None::<(u64, u64)>);
        for run in self.tree().runs.iter().filter(|run| merge.inputs.contains(&run.id)) {
            // What a slice has written already lies below `done`, in the run that grows.
            let mut tables = VecDeque::new();
            for table in run.tables.iter().filter(|table| table.record.last >= merge.done) {
                ids.insert(table.record.id);
                let of = table.record.seqs;
                seqs = Some(seqs.map_or(of, |all| (all.0.min(of.0), all.1.max(of.1))));
                tables.push_back(Input::new(table, &merge.done));
            }
            sources.push(RunSource { io: self.io.clone(), vnodes: self.config.vnodes, tables, current: None });
        }
        (sources, ids, seqs.unwrap_or((0, 0)))
    }

    /// Merges until an output table is full or the inputs end.
    async fn fill(&self, steps: &mut Merge<RunSource>, output: &mut Output<'_>, around: &impl World) -> Result<(), EngineError> {
        let mut counted = steps.tally().bytes_in;
        let consumed_max = counted + self.config.table_bytes * CONSUMED_SIZES_MAX;
        while !output.is_above(self.config.table_bytes) && steps.tally().bytes_in < consumed_max {
            match steps.step(around).await? {
                MergeStep::Entry => output.add(steps.place(), steps.cell()).await?,
                MergeStep::Nothing => {}
                MergeStep::End => break,
            }
            if self.io.slice_is_over() {
                let bytes_in = steps.tally().bytes_in;
                self.merging.advance(self.io.now(), bytes_in - std::mem::replace(&mut counted, bytes_in));
                self.give_way().await;
            }
        }
        self.merging.advance(self.io.now(), steps.tally().bytes_in - counted);
        output.finish().await
    }

    /// Ends a merge's turn.
    async fn give_way(&self) {
        self.io.yield_now().await;
        for _ in 0..LATE_EXPIRY_TURNS {
            if !self.expiry.is_late() {
                return;
            }
            self.io.yield_now().await;
        }
    }

    /// Shows what a slice has written and hides what it consumed. Gives the bytes written, and up to when all deadlines are counted.
    async fn end_slice(
        &self,
        merge: &MergeRecord,
        output: &mut Output<'_>,
        inputs: &BTreeSet<TableId>,
        is_last: bool,
        memory: &impl Memory,
    ) -> Result<(u64, WallMs), EngineError> {
        let new = output.take();
        let written_bytes = new.iter().map(|new| new.record.bytes).sum();
        // Deadlines are counted up to one instant in all inputs, so that none is counted twice or never.
        let _turn = self.expiry.turn().await;
        let counted_ms: WallMs = self.count_expired(memory).await?;
        let mut edits: Vec<Edit> = new.iter().map(|new| Edit::AddTable(new.record.clone())).collect();
        {
            let state = self.manifest.state();
            for record in inputs.iter().filter_map(|id| state.tables.get(id)) {
                if is_last || record.last < merge.done {
                    edits.push(Edit::RemoveTable(record.id));
                } else if record.first.as_slice().max(&record.from) < merge.done.as_slice() {
                    edits.push(Edit::RaiseFrom { id: record.id, from: merge.done.clone() });
                }
            }
        }
        edits.push(Edit::Merge((!is_last).then(|| merge.clone())));
        self.adopt(edits, new, counted_ms).await?;
        self.look_at_merges(true);
        memory.found_room();
        Ok((written_bytes, counted_ms))
    }
}
