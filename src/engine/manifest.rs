//! A shard's manifest: the durable truth about which tables its tree is made of.
//!
//! The state lives in memory; each change is a group of edits that is durable before it takes effect, one group at a time, in the
//! order in which `commit` was called. The file is allocated in full when it is made, so that a full disk cannot stop a compaction
//! that would free room. When it is full, the state is written into a new file and `CURRENT` is switched to it by a rename.

use super::format::Identity;
use super::format::manifest::{
    Bad, Edit, GROUP_BYTES_MAX, MergeRecord, Replay, TableId, TableRecord, VnodeRecord, group_blocks, header_block, put_edit, replay,
};
use super::{EngineError, is_disk_full};
use crate::base::codec::Malformed;
use crate::base::record::NamespaceId;
use crate::io::buffer::Buf;
use crate::io::op::OpenHow;
use crate::io::{File, Io};
use crate::limits::BLOCK_BYTES;
use std::cell::{Cell, Ref, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::future::poll_fn;
use std::path::{Path, PathBuf};
use std::task::{Poll, Waker};

/// The name of the file that names the manifest in force.
pub const CURRENT: &str = "CURRENT";
const CURRENT_NEW: &str = "CURRENT.new";
const PREFIX: &str = "MANIFEST-";
/// A manifest file is at least this long.
const FILE_BYTES_MIN: usize = 256 * 1024;
/// Edits of a snapshot of the state are cut into groups of about this many bytes.
const SNAPSHOT_GROUP_BYTES: usize = 1024 * 1024;
const _: () = assert!(SNAPSHOT_GROUP_BYTES < GROUP_BYTES_MAX / 2);
const WRITE_BYTES: usize = 1024 * 1024;
/// The largest manifest that is read; a state of the largest node is some MiB.
const FILE_BYTES_MAX: u64 = 1 << 30;

/// Records of vnodes, kept as ranges of equal ones.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VnodeRecords {
    /// (namespace, first vnode) → last vnode and the record. Ranges do not overlap.
    ranges: BTreeMap<(NamespaceId, u32), (u32, VnodeRecord)>,
}

impl VnodeRecords {
    /// The record of a vnode; all zero where none was ever set.
    pub fn get(&self, namespace: NamespaceId, vnode: u32) -> VnodeRecord {
        let below = self.ranges.range((namespace, 0)..=(namespace, vnode)).next_back();
        below.filter(|(_, (last, _))| *last >= vnode).map_or_else(VnodeRecord::default, |(_, (_, record))| *record)
    }

    /// Replaces the records of the vnodes `first..=last`.
    pub fn set(&mut self, namespace: NamespaceId, first: u32, last: u32, record: VnodeRecord) {
        assert!(first <= last);
        let overlapping: Vec<_> = self.ranges.range((namespace, 0)..=(namespace, last)).filter(|(_, (end, _))| *end >= first).collect();
        let overlapping: Vec<_> = overlapping.into_iter().map(|(&(_, start), &(end, old))| (start, end, old)).collect();
        for (start, end, old) in overlapping {
            self.ranges.remove(&(namespace, start));
            if start < first {
                self.ranges.insert((namespace, start), (first - 1, old));
            }
            if end > last {
                self.ranges.insert((namespace, last + 1), (end, old));
            }
        }
        let (mut first, mut last) = (first, last);
        if let Some((&(_, start), &(end, old))) = self.ranges.range((namespace, 0)..(namespace, first)).next_back()
            && (end + 1, old) == (first, record)
        {
            first = start;
        }
        if let Some(&(end, old)) = last.checked_add(1).and_then(|next| self.ranges.get(&(namespace, next)))
            && old == record
        {
            self.ranges.remove(&(namespace, last + 1));
            last = end;
        }
        self.ranges.insert((namespace, first), (last, record));
    }

    /// All ranges: namespace, first and last vnode, record.
    pub fn iter(&self) -> impl Iterator<Item = (NamespaceId, u32, u32, VnodeRecord)> {
        self.ranges.iter().map(|(&(namespace, first), &(last, record))| (namespace, first, last, record))
    }
}

/// A merge of level 0 may go before the rest of one into the last level.
const MERGES_MAX: usize = 2;

/// What a manifest says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    pub tables: BTreeMap<TableId, TableRecord>,
    pub vnodes: VnodeRecords,
    /// The log may reuse what lies below.
    pub released: u64,
    /// No stamp was given at or above.
    pub clock_ceiling: u64,
    /// The number of the next table, and of the next run.
    pub next_table: u64,
    pub next_run: u64,
    /// Merges under way, each begun within the one before it.
    pub merges: Vec<MergeRecord>,
}

impl State {
    /// Applies one edit.
    ///
    /// # Errors
    /// The edit does not fit to what was said before.
    pub fn apply(&mut self, edit: &Edit) -> Result<(), Malformed> {
        const UNKNOWN: Malformed = Malformed("edit of a table that is not there");
        match edit {
            Edit::AddTable(record) => {
                if self.tables.contains_key(&record.id) {
                    return Err(Malformed("a table is added twice"));
                }
                self.next_run = self.next_run.max(record.run.saturating_add(1));
                self.tables.insert(record.id, record.clone());
            }
            Edit::RemoveTable(id) => drop(self.tables.remove(id).ok_or(UNKNOWN)?),
            Edit::RaiseFrom { id, from } => {
                let table = self.tables.get_mut(id).ok_or(UNKNOWN)?;
                if table.from > *from {
                    return Err(Malformed("the start of a table falls"));
                }
                table.from.clone_from(from);
            }
            Edit::LinkTable(id) => self.tables.get_mut(id).ok_or(UNKNOWN)?.linked = true,
            Edit::Released(seq) => self.released = self.released.max(*seq),
            Edit::ClockCeiling(hlc) => self.clock_ceiling = self.clock_ceiling.max(*hlc),
            Edit::Vnodes { namespace, first, last, record } => self.vnodes.set(*namespace, *first, *last, *record),
            Edit::Numbers { table, run } => {
                self.next_table = self.next_table.max(*table);
                self.next_run = self.next_run.max(*run);
            }
            Edit::Merge(None) => drop(self.merges.pop()),
            Edit::Merge(Some(merge)) => match self.merges.iter().position(|known| known.run == merge.run) {
                Some(at) if at + 1 == self.merges.len() => self.merges[at] = merge.clone(),
                None if self.merges.len() < MERGES_MAX => self.merges.push(merge.clone()),
                _ => return Err(Malformed("a merge within too many others, or one that waits for another goes on")),
            },
        }
        Ok(())
    }

    /// The edits that make this state from nothing.
    pub fn edits(&self) -> Vec<Edit> {
        let mut edits = vec![Edit::Released(self.released), Edit::ClockCeiling(self.clock_ceiling)];
        edits.push(Edit::Numbers { table: self.next_table, run: self.next_run });
        edits.extend(self.vnodes.iter().map(|(namespace, first, last, record)| Edit::Vnodes { namespace, first, last, record }));
        edits.extend(self.tables.values().cloned().map(Edit::AddTable));
        edits.extend(self.merges.iter().cloned().map(|merge| Edit::Merge(Some(merge))));
        edits
    }
}

/// One at a time.
#[derive(Default)]
pub(super) struct Turns {
    busy: Cell<bool>,
    waiting: RefCell<VecDeque<Waker>>,
}

/// While it lives, nobody else has the turn.
pub(super) struct TurnGuard<'a>(&'a Turns);

impl Turns {
    pub(super) async fn take(&self) -> TurnGuard<'_> {
        poll_fn(|context| {
            if !self.busy.replace(true) {
                return Poll::Ready(());
            }
            self.waiting.borrow_mut().push_back(context.waker().clone());
            Poll::Pending
        })
        .await;
        TurnGuard(self)
    }
}

impl Drop for TurnGuard<'_> {
    fn drop(&mut self) {
        self.0.busy.set(false);
        // All wake, since one that was dropped while it waited would otherwise swallow the turn.
        self.0.waiting.take().into_iter().for_each(Waker::wake);
    }
}

/// The file in force and where it goes on.
struct Log {
    file: File,
    number: u64,
    next_group: u64,
    end_bytes: u64,
    file_bytes: u64,
}

/// A shard's manifest, open.
pub struct Manifest {
    io: Io,
    dir: PathBuf,
    identity: Identity,
    log: RefCell<Log>,
    state: RefCell<State>,
    turns: Turns,
    stopped: RefCell<Option<String>>,
}

fn file_name(number: u64) -> String {
    format!("{PREFIX}{number}")
}

fn to_buf(io: &Io, bytes: &[u8]) -> Buf {
    let mut buf = io.buf_to_fill(bytes.len());
    let (content, rest) = buf.split_at_mut(bytes.len());
    content.copy_from_slice(bytes);
    rest.fill(0);
    buf
}

/// The whole of a small file.
///
/// # Errors
/// Of the reads, and a file above `FILE_BYTES_MAX`.
pub async fn read_file(io: &Io, path: &Path) -> Result<FileBytes, EngineError> {
    let file = io.open(path, OpenHow::Read).await?;
    let bytes = io.size(&file).await?;
    if bytes > FILE_BYTES_MAX {
        return Err(EngineError::corrupt(&path.display().to_string(), 0, Malformed("the file is too long")));
    }
    let (buf, bytes) = io.read_into(&file, 0, io.buf_to_fill(bytes as usize)).await?;
    Ok(FileBytes { buf, bytes })
}

/// What `read_file` gives.
pub struct FileBytes {
    buf: Buf,
    bytes: usize,
}

impl std::ops::Deref for FileBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.buf[..self.bytes]
    }
}

/// Writes a whole manifest of `state` under `number` into a folder, durable. Gives the file, its next group, its end and its length.
async fn write_whole(io: &Io, dir: &Path, identity: Identity, number: u64, state: &State) -> Result<Log, EngineError> {
    let mut bytes = header_block(identity, number);
    let (mut group, mut next_group, mut pending) = (Vec::new(), 0, 0);
    for edit in state.edits() {
        let mut encoded = Vec::new();
        put_edit(&mut encoded, &edit);
        pending += encoded.len();
        group.push(edit);
        if pending >= SNAPSHOT_GROUP_BYTES {
            bytes.extend_from_slice(&group_blocks(identity, number, next_group, &group));
            (next_group, pending) = (next_group + 1, 0);
            group.clear();
        }
    }
    bytes.extend_from_slice(&group_blocks(identity, number, next_group, &group));
    next_group += 1;
    let end_bytes = bytes.len() as u64;
    bytes.resize((bytes.len() * 4).max(FILE_BYTES_MIN).next_multiple_of(BLOCK_BYTES), 0);
    let file = io.open(&dir.join(file_name(number)), OpenHow::Create).await?;
    for (index, part) in bytes.chunks(WRITE_BYTES).enumerate() {
        io.write(&file, (index * WRITE_BYTES) as u64, to_buf(io, part), false).await?;
    }
    io.sync(&file).await?;
    // The name, too, before `CURRENT` can name it.
    io.sync_dir(dir).await?;
    Ok(Log { file, number, next_group, end_bytes, file_bytes: bytes.len() as u64 })
}

/// Makes `CURRENT` name a manifest, durably once the folder is synced. An error that says that there is no room has changed nothing.
async fn switch(io: &Io, dir: &Path, number: u64) -> std::io::Result<()> {
    let new = dir.join(CURRENT_NEW);
    let file = io.open(&new, OpenHow::Create).await?;
    io.write(&file, 0, to_buf(io, format!("{}\n", file_name(number)).as_bytes()), true).await?;
    drop(file);
    io.rename(&new, &dir.join(CURRENT)).await
}

/// Removes what a crash has left of manifests that are not in force.
async fn sweep(io: &Io, dir: &Path, in_force: Option<u64>) -> std::io::Result<()> {
    let keep = in_force.map(file_name);
    for entry in io.list(dir).await? {
        if entry.name == CURRENT_NEW || entry.name.starts_with(PREFIX) && Some(&entry.name) != keep.as_ref() {
            io.remove(&dir.join(&entry.name)).await?;
        }
    }
    Ok(())
}

/// Writes a manifest of `state` into a folder that has none, durable when it returns: for snapshots, and for `Manifest::create`.
///
/// # Errors
/// Of the writes.
pub async fn write_new(io: &Io, dir: &Path, identity: Identity, state: &State) -> Result<(), EngineError> {
    sweep(io, dir, None).await?;
    drop(write_whole(io, dir, identity, 1, state).await?);
    switch(io, dir, 1).await?;
    Ok(io.sync_dir(dir).await?)
}

/// A folder has a manifest.
pub async fn exists(io: &Io, dir: &Path) -> std::io::Result<bool> {
    Ok(io.list(dir).await?.iter().any(|entry| entry.name == CURRENT))
}

/// Makes the manifest in force durable before anything is removed because it no longer names it. What a killed process left in the disk's
/// cache only, a sync would bring there; but what a sync has failed for once is shown until the power fails and brought there by no later
/// one (Rebello et al., 2020), so it is written anew, under the next number. Where there is no room for that a sync must do.
///
/// # Errors
/// Damage, with file and offset; a format of the future; of the writes.
pub async fn settle(io: &Io, dir: &Path, identity: Identity) -> Result<(), EngineError> {
    let (state, number, _) = load(io, dir, identity).await?;
    remove_left(io, dir, number + 1).await?;
    match supersede(io, dir, identity, number, &state).await {
        Ok(_) => Ok(io.remove(&dir.join(file_name(number))).await?),
        Err(EngineError::DiskFull) => {
            io.sync_dir(dir).await?;
            let file = io.open(&dir.join(file_name(number)), OpenHow::ReadWrite).await?;
            Ok(io.sync(&file).await?)
        }
        Err(other) => Err(other),
    }
}

/// Puts a manifest of `state` in force in the place of the one that has the number `old`, whose file stays.
///
/// # Errors
/// `DiskFull`: nothing has changed. Else it is not known which of the two a loss of power leaves in force.
async fn supersede(io: &Io, dir: &Path, identity: Identity, old: u64, state: &State) -> Result<Log, EngineError> {
    let written = async {
        let log = write_whole(io, dir, identity, old + 1, state).await?;
        switch(io, dir, log.number).await?;
        Ok(log)
    };
    let log = match written.await {
        Err(EngineError::Io(error)) if is_disk_full(&error) => {
            remove_left(io, dir, old + 1).await?;
            return Err(EngineError::DiskFull);
        }
        other => other?,
    };
    io.sync_dir(dir).await?;
    Ok(log)
}

/// Removes what was left of an attempt to put a manifest in force that came to nothing.
async fn remove_left(io: &Io, dir: &Path, number: u64) -> std::io::Result<()> {
    for left in [CURRENT_NEW.to_owned(), file_name(number)] {
        match io.remove(&dir.join(left)).await {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            other => other?,
        }
    }
    Ok(())
}

/// The name and the number of the manifest in force.
async fn current(io: &Io, dir: &Path) -> Result<(String, u64), EngineError> {
    let current = read_file(io, &dir.join(CURRENT)).await?;
    let name = current.split(|&byte| byte == b'\n').next().and_then(|line| std::str::from_utf8(line).ok());
    let number = name.and_then(|name| name.strip_prefix(PREFIX)).and_then(|number| number.parse::<u64>().ok());
    let damaged = || EngineError::corrupt(&dir.join(CURRENT).display().to_string(), 0, Malformed("names no manifest"));
    number.map(|number| (file_name(number), number)).ok_or_else(damaged)
}

/// Reads the manifest in force, changing nothing: for recovery and for `verify`. Also gives the manifest's number and how it ended.
///
/// # Errors
/// Damage, with file and offset; a format of the future.
pub async fn load(io: &Io, dir: &Path, identity: Identity) -> Result<(State, u64, Replay), EngineError> {
    let (name, number) = current(io, dir).await?;
    let damaged = |file: &str, offset, what| EngineError::corrupt(&dir.join(file).display().to_string(), offset, what);
    let bytes = read_file(io, &dir.join(&name)).await?;
    let found = replay(&bytes, identity, number).map_err(|bad| match bad {
        Bad::Damaged(offset, what) => damaged(&name, offset, what),
        Bad::TooNew => EngineError::Unsupported { file: name.clone(), what: "a later format of the manifest".to_owned() },
    })?;
    let mut state = State::default();
    for edit in &found.edits {
        state.apply(edit).map_err(|what| damaged(&name, found.end_bytes, what))?;
    }
    Ok((state, number, found))
}

impl Manifest {
    /// Makes the manifest of a folder that has none.
    ///
    /// # Errors
    /// Of the writes.
    pub async fn create(io: &Io, dir: &Path, identity: Identity, state: &State) -> Result<Manifest, EngineError> {
        write_new(io, dir, identity, state).await?;
        Manifest::open_settled(io, dir, identity).await
    }

    /// Opens a folder's manifest. A torn end is cut: what was not acknowledged.
    ///
    /// # Errors
    /// Damage, with file and offset; a format of the future; of the writes that make it durable.
    pub async fn open(io: &Io, dir: &Path, identity: Identity) -> Result<Manifest, EngineError> {
        settle(io, dir, identity).await?;
        Manifest::open_settled(io, dir, identity).await
    }

    /// The same for a manifest that is known to be durable.
    ///
    /// # Errors
    /// As `open`.
    pub async fn open_settled(io: &Io, dir: &Path, identity: Identity) -> Result<Manifest, EngineError> {
        let (state, number, found) = load(io, dir, identity).await?;
        sweep(io, dir, Some(number)).await?;
        let file = io.open(&dir.join(file_name(number)), OpenHow::ReadWrite).await?;
        let file_bytes = io.size(&file).await?;
        let log = Log { file, number, next_group: found.next_group, end_bytes: found.end_bytes, file_bytes };
        let manifest = Manifest {
            io: io.clone(),
            dir: dir.to_owned(),
            identity,
            log: RefCell::new(log),
            state: RefCell::new(state),
            turns: Turns::default(),
            stopped: RefCell::default(),
        };
        if found.torn {
            manifest.rewrite().await?;
        }
        Ok(manifest)
    }

    /// What holds now.
    pub fn state(&self) -> Ref<'_, State> {
        self.state.borrow()
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Whose it is.
    pub fn identity(&self) -> Identity {
        self.identity
    }

    /// Draws a number for a table. Only a number that a committed edit names is remembered; a file of another one is an orphan.
    pub fn draw_table(&self) -> u64 {
        let mut state = self.state.borrow_mut();
        state.next_table += 1;
        state.next_table - 1
    }

    /// Draws a number for a run.
    pub fn draw_run(&self) -> u64 {
        let mut state = self.state.borrow_mut();
        state.next_run += 1;
        state.next_run - 1
    }

    /// Makes edits durable, then applies them, then calls `then` before any other commit takes effect. All or none.
    ///
    /// # Errors
    /// `DiskFull`: nothing has changed, try again. `Stopped`: a write failed and it is not known what is on disk; no later commit works.
    pub async fn commit(&self, edits: Vec<Edit>, then: impl FnOnce(&State)) -> Result<(), EngineError> {
        let _turn = self.turns.take().await;
        self.commit_in_turn(edits, then).await
    }

    /// The same with edits that are made of the state when their turn has come: for what is read, changed and written back, which else
    /// could undo what another such commit has changed meanwhile. Without edits nothing is written.
    ///
    /// # Errors
    /// As `commit`.
    pub async fn update(&self, edits: impl FnOnce(&State) -> Vec<Edit>) -> Result<(), EngineError> {
        let _turn = self.turns.take().await;
        let edits = edits(&self.state.borrow());
        if edits.is_empty() { Ok(()) } else { self.commit_in_turn(edits, |_| ()).await }
    }

    async fn commit_in_turn(&self, edits: Vec<Edit>, then: impl FnOnce(&State)) -> Result<(), EngineError> {
        if let Some(why) = &*self.stopped.borrow() {
            return Err(EngineError::Stopped(why.clone()));
        }
        let result = self.append(edits).await;
        match &result {
            Ok(()) => then(&self.state.borrow()),
            Err(EngineError::DiskFull) => {}
            Err(why) => *self.stopped.borrow_mut() = Some(format!("the manifest could not be written: {why}")),
        }
        result
    }

    async fn append(&self, mut edits: Vec<Edit>) -> Result<(), EngineError> {
        let (number, next_group, end_bytes, file_bytes, file) = {
            let log = self.log.borrow();
            (log.number, log.next_group, log.end_bytes, log.file_bytes, log.file.clone())
        };
        // The numbers that were drawn are remembered with the first edit that can name one.
        edits.push({
            let state = self.state.borrow();
            Edit::Numbers { table: state.next_table, run: state.next_run }
        });
        let blocks = group_blocks(self.identity, number, next_group, &edits);
        let len = blocks.len() as u64;
        if end_bytes + len > file_bytes {
            // The new file holds the state with the edits in it, so the switch makes them durable.
            let mut state = self.state.borrow().clone();
            edits.iter().for_each(|edit| state.apply(edit).expect("our own edit fits to our own state"));
            return self.replace(state).await;
        }
        match self.io.write(&file, end_bytes, to_buf(&self.io, &blocks), true).await {
            Err(error) if is_disk_full(&error) => return Err(EngineError::DiskFull),
            other => other?,
        };
        let mut state = self.state.borrow_mut();
        edits.iter().for_each(|edit| state.apply(edit).expect("our own edit fits to our own state"));
        let mut log = self.log.borrow_mut();
        (log.next_group, log.end_bytes) = (next_group + 1, end_bytes + len);
        Ok(())
    }

    /// Makes sure that no restart stamps at or below `hlc`.
    ///
    /// # Errors
    /// As `commit`.
    pub async fn raise_ceiling(&self, hlc: u64) -> Result<(), EngineError> {
        if hlc <= self.state().clock_ceiling {
            return Ok(());
        }
        self.commit(vec![Edit::ClockCeiling(hlc)], |_| ()).await
    }

    /// Writes the state into a new file.
    ///
    /// # Errors
    /// As `commit`.
    pub async fn rewrite(&self) -> Result<(), EngineError> {
        let state = self.state.borrow().clone();
        self.replace(state).await
    }

    async fn replace(&self, state: State) -> Result<(), EngineError> {
        let old = self.log.borrow().number;
        let log = supersede(&self.io, &self.dir, self.identity, old, &state).await?;
        *self.log.borrow_mut() = log;
        {
            // Numbers may have been drawn meanwhile.
            let mut current = self.state.borrow_mut();
            let (table, run) = (current.next_table.max(state.next_table), current.next_run.max(state.next_run));
            *current = State { next_table: table, next_run: run, ..state };
        }
        self.io.remove(&self.dir.join(file_name(old))).await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::prng::Prng;
    use crate::base::record::Version;

    fn record(number: u64) -> TableRecord {
        TableRecord { id: TableId { shard: 0, number }, run: number, first: b"a".to_vec(), last: b"z".to_vec(), ..TableRecord::default() }
    }

    #[test]
    fn the_records_of_vnodes_answer_as_an_array_would_and_merge_into_few_ranges() {
        let mut prng = Prng::new(5);
        let (mut records, mut model) = (VnodeRecords::default(), vec![VnodeRecord::default(); 64]);
        for _ in 0..3000 {
            let (a, b) = (prng.below(64) as u32, prng.below(64) as u32);
            let record = VnodeRecord { floor: Version::put(prng.below(3), 0), ..VnodeRecord::default() };
            records.set(1, a.min(b), a.max(b), record);
            model[a.min(b) as usize..=a.max(b) as usize].fill(record);
            records.set(0, 0, a, record);
            (0..64).for_each(|vnode| assert_eq!(records.get(1, vnode), model[vnode as usize]));
        }
        records.set(1, 0, u32::MAX, VnodeRecord::default());
        assert_eq!(records.iter().filter(|range| range.0 == 1).count(), 1);
    }

    #[test]
    fn a_state_is_made_again_from_its_own_edits_and_nonsense_is_refused() {
        let mut state = State { released: 4, clock_ceiling: 9, next_table: 12, next_run: 13, ..State::default() };
        state.apply(&Edit::AddTable(record(3))).unwrap();
        state.apply(&Edit::AddTable(record(4))).unwrap();
        state.apply(&Edit::RaiseFrom { id: record(3).id, from: b"m".to_vec() }).unwrap();
        state.apply(&Edit::LinkTable(record(4).id)).unwrap();
        let merge = |run, inputs| MergeRecord { inputs, run, ..MergeRecord::default() };
        state.apply(&Edit::Merge(Some(merge(5, vec![3, 4])))).unwrap();
        state.apply(&Edit::Merge(Some(merge(6, vec![7])))).unwrap();
        let vnode = VnodeRecord { drop_seq: 5, ..VnodeRecord::default() };
        state.apply(&Edit::Vnodes { namespace: 1, first: 2, last: 3, record: vnode }).unwrap();
        let mut again = State::default();
        state.edits().iter().for_each(|edit| again.apply(edit).unwrap());
        assert_eq!(again, state);
        assert!(state.apply(&Edit::AddTable(record(3))).is_err());
        assert!(state.apply(&Edit::RemoveTable(record(9).id)).is_err());
        assert!(state.apply(&Edit::RaiseFrom { id: record(3).id, from: b"l".to_vec() }).is_err());
        assert!(state.apply(&Edit::Merge(Some(merge(7, vec![8])))).is_err(), "three at a time");
        assert!(state.apply(&Edit::Merge(Some(merge(5, vec![4])))).is_err(), "it waits");
        let ends = |state: &mut State, edit: Option<MergeRecord>, left: &[u64]| {
            state.apply(&Edit::Merge(edit)).unwrap();
            assert_eq!(state.merges.iter().map(|merge| merge.run).collect::<Vec<_>>(), left);
        };
        ends(&mut state, Some(MergeRecord { done: b"k".to_vec(), ..merge(6, vec![7]) }), &[5, 6]);
        ends(&mut state, None, &[5]);
        ends(&mut state, Some(merge(5, vec![4])), &[5]);
        ends(&mut state, None, &[]);
    }
}
