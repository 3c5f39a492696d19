//! The simulated disk of one machine: a tree of names over files, each kept twice, as a running system sees it (cached) and as
//! it would be found after the power failed (durable), with the list of changes that lie between the two.
//!
//! A crash draws lots over that list. Writes: each is lost, kept, or kept in some of its 512-byte sectors; a write that was kept
//! never goes over one that completed after it. A length: grown without its data, or not grown with its data gone. Changes of
//! length are kept as a prefix, in the order in which they were made. Names: each creation, rename, link and removal by itself,
//! but one that touches a name can only have happened if the earlier ones that touch it did; a rename between folders is durable when
//! either is synced. A file whose last durable name is gone
//! is gone, however well its data was synced.
//!
//! Blocks are shared between the two views (copy on write), so that a synced write costs one copy of its bytes.

use super::faults::Stats;
use crate::base::prng::Prng;
use crate::io::op::{Entry, OpenHow};
use crate::limits::BLOCK_BYTES;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::path::{Component, Path};
use std::rc::Rc;

/// What a disk writes whole.
pub const SECTOR_BYTES: usize = 512;
/// Changes of one file that may wait for a sync; beyond it the oldest become durable, as a kernel writes back.
const CHANGES_MAX: usize = 4096;
/// Blocks of the largest file that the simulation takes (64 GiB): a larger offset is a mistake of ours.
const FILE_BLOCKS_MAX: usize = 16 << 20;

static ZERO: [u8; BLOCK_BYTES] = [0; BLOCK_BYTES];

pub(super) type Ino = usize;
type Block = Rc<[u8]>;

pub(super) fn os_error(code: i32) -> io::Error {
    io::Error::from_raw_os_error(code)
}

/// The bytes of a file: blocks that were written, and a length.
#[derive(Clone, Default)]
struct Content {
    blocks: Vec<Option<Block>>,
    bytes: u64,
}

impl Content {
    fn put(&mut self, index: usize, block: Option<Block>) -> Option<Block> {
        if index >= self.blocks.len() {
            block.as_ref()?;
            self.blocks.resize(index + 1, None);
        }
        std::mem::replace(&mut self.blocks[index], block)
    }

    fn get(&self, index: usize) -> Option<&Block> {
        self.blocks.get(index).and_then(Option::as_ref)
    }

    /// Sets the length; what lay beyond it is zeros if it grows again.
    fn resize(&mut self, bytes: u64) {
        let whole = (bytes / BLOCK_BYTES as u64) as usize;
        let rest = (bytes % BLOCK_BYTES as u64) as usize;
        self.blocks.truncate(whole + usize::from(rest > 0));
        if rest > 0
            && let Some(block) = self.get(whole)
        {
            let mut cut = block.to_vec();
            cut[rest..].fill(0);
            self.put(whole, Some(cut.into()));
        }
        self.bytes = bytes;
    }

    fn punch(&mut self, first: usize, count: usize) {
        let end = (first + count).min(self.blocks.len());
        if first < end {
            self.blocks[first..end].fill(None);
        }
    }

    fn allocated(&self) -> u64 {
        self.blocks.iter().flatten().count() as u64
    }
}

/// A change of a file that is not yet durable.
enum Change {
    Write { first: usize, blocks: Vec<Option<Block>>, end: u64, tear: bool },
    Resize { bytes: u64 },
    Punch { first: usize, count: usize },
}

#[derive(Default)]
struct FileBody {
    cached: Content,
    durable: Content,
    changes: VecDeque<(u64, Change)>,
}

#[derive(Default)]
struct DirBody {
    cached: BTreeMap<String, Ino>,
    durable: BTreeMap<String, Ino>,
}

enum Body {
    File(FileBody),
    Dir(DirBody),
}

struct Inode {
    body: Body,
    opens: u32,
    links: u32,
    links_durable: u32,
    /// Directory changes that are not yet durable and name it.
    changes: u32,
    released: bool,
}

/// Entries of directories that change together.
struct DirChange {
    seq: u64,
    label: DirLabel,
    sets: Vec<(Ino, String, Option<Ino>)>,
}

#[derive(Clone, Copy)]
struct DirLabel {
    kept: &'static str,
    lost: &'static str,
}

macro_rules! label {
    ($name:literal) => {
        DirLabel { kept: concat!("kept ", $name), lost: concat!("lost ", $name) }
    };
}

pub(super) struct Disk {
    inodes: Vec<Option<Inode>>,
    free: Vec<Ino>,
    changes: Vec<DirChange>,
    used_blocks: u64,
    pub(super) capacity_blocks: u64,
    seq: u64,
    zero: Block,
}

const ROOT: Ino = 0;

impl Disk {
    pub(super) fn new() -> Disk {
        let mut disk = Disk {
            inodes: Vec::new(),
            free: Vec::new(),
            changes: Vec::new(),
            used_blocks: 0,
            capacity_blocks: u64::MAX,
            seq: 0,
            zero: Rc::from(&ZERO[..]),
        };
        let root = disk.make(Body::Dir(DirBody::default()));
        assert_eq!(root, ROOT);
        let inode = disk.inode_mut(root);
        inode.links = 1;
        inode.links_durable = 1;
        disk
    }

    /// Everything that completed until now has a number up to this.
    pub(super) fn mark(&self) -> u64 {
        self.seq
    }

    /// The inodes that are kept; the root is one.
    #[cfg(test)]
    pub(super) fn inodes(&self) -> usize {
        self.inodes.iter().flatten().count()
    }

    #[cfg(test)]
    pub(super) fn allocated_blocks(&self, ino: Ino) -> u64 {
        self.file(ino).cached.allocated()
    }

    pub(super) fn used_bytes(&self) -> u64 {
        self.used_blocks * BLOCK_BYTES as u64
    }

    fn make(&mut self, body: Body) -> Ino {
        let inode = Inode { body, opens: 0, links: 0, links_durable: 0, changes: 0, released: false };
        match self.free.pop() {
            Some(ino) => {
                self.inodes[ino] = Some(inode);
                ino
            }
            None => {
                self.inodes.push(Some(inode));
                self.inodes.len() - 1
            }
        }
    }

    fn inode(&self, ino: Ino) -> &Inode {
        self.inodes[ino].as_ref().expect("an inode that is named lives")
    }

    fn inode_mut(&mut self, ino: Ino) -> &mut Inode {
        self.inodes[ino].as_mut().expect("an inode that is named lives")
    }

    fn file(&self, ino: Ino) -> &FileBody {
        match &self.inode(ino).body {
            Body::File(file) => file,
            Body::Dir(_) => panic!("a handle of a folder used as a file"),
        }
    }

    fn file_mut(&mut self, ino: Ino) -> &mut FileBody {
        match &mut self.inode_mut(ino).body {
            Body::File(file) => file,
            Body::Dir(_) => panic!("a handle of a folder used as a file"),
        }
    }

    fn dir(&self, ino: Ino) -> io::Result<&DirBody> {
        match &self.inode(ino).body {
            Body::Dir(dir) => Ok(dir),
            Body::File(_) => Err(os_error(libc::ENOTDIR)),
        }
    }

    fn dir_mut(&mut self, ino: Ino) -> &mut DirBody {
        match &mut self.inode_mut(ino).body {
            Body::Dir(dir) => dir,
            Body::File(_) => panic!("a file used as a folder"),
        }
    }

    /// Gives space back when the last name and handle are gone, and forgets the inode when nothing can bring it back.
    fn settle(&mut self, ino: Ino) {
        let inode = self.inode_mut(ino);
        if inode.links > 0 || inode.opens > 0 {
            return;
        }
        if !inode.released {
            inode.released = true;
            if let Body::File(file) = &inode.body {
                self.used_blocks -= file.cached.allocated();
            }
        }
        let inode = self.inode(ino);
        if inode.links_durable == 0 && inode.changes == 0 {
            self.inodes[ino] = None;
            self.free.push(ino);
        }
    }
}

// Files.
impl Disk {
    pub(super) fn hold(&mut self, ino: Ino) {
        self.inode_mut(ino).opens += 1;
    }

    pub(super) fn close(&mut self, ino: Ino) {
        self.inode_mut(ino).opens -= 1;
        self.settle(ino);
    }

    /// The inode, held open once.
    pub(super) fn open(&mut self, path: &Path, how: OpenHow) -> io::Result<Ino> {
        let ino = if how == OpenHow::Create {
            let (dir, name) = self.parent(path)?;
            if self.dir(dir)?.cached.contains_key(&name) {
                return Err(os_error(libc::EEXIST));
            }
            let ino = self.make(Body::File(FileBody::default()));
            self.change(label!("create"), vec![(dir, name, Some(ino))]);
            ino
        } else {
            self.find(path)?
        };
        if matches!(self.inode(ino).body, Body::Dir(_)) {
            return Err(os_error(libc::EISDIR));
        }
        self.hold(ino);
        Ok(ino)
    }

    pub(super) fn read(&self, ino: Ino, offset: u64, buf: &mut [u8]) -> usize {
        let content = &self.file(ino).cached;
        let bytes = content.bytes.saturating_sub(offset).min(buf.len() as u64) as usize;
        let first = (offset / BLOCK_BYTES as u64) as usize;
        for (at, part) in buf[..bytes].chunks_mut(BLOCK_BYTES).enumerate() {
            match content.get(first + at) {
                Some(block) => part.copy_from_slice(&block[..part.len()]),
                None => part.fill(0),
            }
        }
        bytes
    }

    fn cut_blocks(&self, bytes: &[u8]) -> Vec<Option<Block>> {
        let block = |part: &[u8]| {
            let zero = part[..16] == ZERO[..16] && part == ZERO;
            Some(if zero { self.zero.clone() } else { Rc::from(part) })
        };
        bytes.chunks(BLOCK_BYTES).map(block).collect()
    }

    /// Writes what there is space for, which may be a part of it.
    ///
    /// # Errors
    /// `ENOSPC` when it does not all fit.
    pub(super) fn write(&mut self, ino: Ino, offset: u64, bytes: &[u8], sync: bool, tear: bool, partial: bool) -> io::Result<()> {
        let first = (offset / BLOCK_BYTES as u64) as usize;
        let mut blocks = self.cut_blocks(bytes);
        assert!(first + blocks.len() <= FILE_BLOCKS_MAX, "a write at {offset} is beyond every file of ours");
        let space = self.capacity_blocks.saturating_sub(self.used_blocks);
        let cached = &self.file(ino).cached;
        let mut wanted = 0;
        let mut fits = blocks.len();
        for at in 0..blocks.len() {
            wanted += u64::from(cached.get(first + at).is_none());
            if wanted > space {
                fits = at;
                break;
            }
        }
        let full = fits < blocks.len();
        if full {
            if !partial || fits == 0 {
                return Err(os_error(libc::ENOSPC));
            }
            blocks.truncate(fits);
        }
        self.apply_write(ino, first, blocks, sync && !full, tear);
        if full { Err(os_error(libc::ENOSPC)) } else { Ok(()) }
    }

    fn apply_write(&mut self, ino: Ino, first: usize, blocks: Vec<Option<Block>>, sync: bool, tear: bool) {
        self.seq += 1;
        let seq = self.seq;
        let end = ((first + blocks.len()) * BLOCK_BYTES) as u64;
        let file = self.file_mut(ino);
        let mut fresh = 0;
        for (at, block) in blocks.iter().enumerate() {
            fresh += u64::from(file.cached.put(first + at, block.clone()).is_none());
        }
        file.cached.bytes = file.cached.bytes.max(end);
        if sync {
            file.settle_metadata();
            file.strip(file.changes.len(), first, blocks.len());
            for (at, block) in blocks.into_iter().enumerate() {
                file.durable.put(first + at, block);
            }
            file.durable.bytes = file.durable.bytes.max(end);
        } else {
            file.push(seq, Change::Write { first, blocks, end, tear });
        }
        self.used_blocks += fresh;
    }

    /// A write that failed: nothing of it, some sectors, or all of it got there, durable or not.
    pub(super) fn write_failed(&mut self, ino: Ino, offset: u64, bytes: &[u8], sync: bool, rng: &mut Prng) {
        if rng.one_in(3) {
            return;
        }
        let first = (offset / BLOCK_BYTES as u64) as usize;
        let mut blocks = self.cut_blocks(bytes);
        let file = self.file(ino);
        if rng.one_in(2) {
            let kept = sectors(blocks.len(), rng);
            for (at, block) in blocks.iter_mut().enumerate() {
                *block = Some(mix(file.cached.get(first + at), block.as_ref(), &kept[at * 8..at * 8 + 8]));
            }
        }
        let fresh = (0..blocks.len()).filter(|at| file.cached.get(first + at).is_none()).count() as u64;
        if self.capacity_blocks.saturating_sub(self.used_blocks) >= fresh {
            self.apply_write(ino, first, blocks, sync && rng.one_in(2), false);
        }
    }

    /// All changes numbered up to `mark` are durable.
    pub(super) fn sync(&mut self, ino: Ino, mark: u64) {
        let file = self.file_mut(ino);
        while file.changes.front().is_some_and(|(seq, _)| *seq <= mark) {
            file.write_back();
        }
    }

    /// A sync that failed: the system forgets what was waiting, whether it got there or not, and keeps showing it until a crash.
    pub(super) fn sync_failed(&mut self, ino: Ino, mark: u64, rng: &mut Prng, stats: &mut Stats) {
        let file = self.file_mut(ino);
        while file.changes.front().is_some_and(|(seq, _)| *seq <= mark) {
            if rng.one_in(2) {
                file.write_back();
            } else {
                file.changes.pop_front();
                stats.add("change dropped by a failed sync");
            }
        }
    }

    pub(super) fn size(&self, ino: Ino) -> u64 {
        self.file(ino).cached.bytes
    }

    pub(super) fn resize(&mut self, ino: Ino, bytes: u64) {
        self.seq += 1;
        let seq = self.seq;
        let file = self.file_mut(ino);
        let before = file.cached.allocated();
        file.cached.resize(bytes);
        let freed = before - file.cached.allocated();
        file.push(seq, Change::Resize { bytes });
        self.used_blocks -= freed;
    }

    /// Blocks that lie wholly in the range are given back, the rest of it is zeroed by nothing: ranges are block-aligned.
    pub(super) fn punch(&mut self, ino: Ino, offset: u64, bytes: u64) {
        self.seq += 1;
        let seq = self.seq;
        let first = (offset / BLOCK_BYTES as u64) as usize;
        let count = (bytes / BLOCK_BYTES as u64) as usize;
        let file = self.file_mut(ino);
        let before = file.cached.allocated();
        file.cached.punch(first, count);
        let freed = before - file.cached.allocated();
        file.push(seq, Change::Punch { first, count });
        self.used_blocks -= freed;
    }
}

impl FileBody {
    fn push(&mut self, seq: u64, change: Change) {
        self.changes.push_back((seq, change));
        if self.changes.len() > CHANGES_MAX {
            self.write_back();
        }
    }

    /// The oldest change becomes durable.
    fn write_back(&mut self) {
        match self.changes.pop_front().expect("there is a change").1 {
            Change::Write { first, blocks, end, .. } => {
                for (at, block) in blocks.into_iter().enumerate() {
                    if block.is_some() {
                        self.durable.put(first + at, block);
                    }
                }
                self.durable.bytes = self.durable.bytes.max(end);
            }
            Change::Resize { bytes } => self.durable.resize(bytes),
            Change::Punch { first, count } => self.durable.punch(first, count),
        }
    }

    /// A later change that is already durable takes these blocks out of the first `until` changes.
    fn strip(&mut self, until: usize, strip_first: usize, count: usize) {
        for (_, change) in self.changes.iter_mut().take(until) {
            if let Change::Write { first, blocks, .. } = change {
                let from = strip_first.max(*first);
                let to = (strip_first + count).min(*first + blocks.len());
                for at in from..to {
                    blocks[at - *first] = None;
                }
            }
        }
    }

    /// Changes of length and of holes become durable: a durable write carries the file's metadata with it.
    fn settle_metadata(&mut self) {
        let mut at = 0;
        while at < self.changes.len() {
            let range = match self.changes[at].1 {
                Change::Write { .. } => {
                    at += 1;
                    continue;
                }
                Change::Resize { bytes } => {
                    self.durable.resize(bytes);
                    for (_, change) in self.changes.iter_mut().take(at) {
                        if let Change::Write { end, .. } = change {
                            *end = bytes.min(*end);
                        }
                    }
                    let kept = bytes.div_ceil(BLOCK_BYTES as u64) as usize;
                    (kept, FILE_BLOCKS_MAX)
                }
                Change::Punch { first, count } => {
                    self.durable.punch(first, count);
                    (first, count)
                }
            };
            self.strip(at, range.0, range.1);
            self.changes.remove(at);
        }
    }

    fn crash(&mut self, keep_of_8: u64, rng: &mut Prng, stats: &mut Stats) {
        let mut lengths_kept = true;
        for (_, change) in std::mem::take(&mut self.changes) {
            let keep = rng.below(8) < keep_of_8;
            match change {
                Change::Write { first, blocks, end, tear } => {
                    self.crash_write(first, blocks, tear, keep, rng, stats);
                    // The length goes its own way, one time in four.
                    if end > self.durable.bytes && (keep || tear) != rng.one_in(4) {
                        self.durable.bytes = end;
                        stats.add(if keep || tear { "kept length" } else { "length without data" });
                    }
                }
                Change::Resize { bytes } => {
                    lengths_kept &= keep;
                    stats.add(if lengths_kept { "kept resize" } else { "lost resize" });
                    if lengths_kept {
                        self.durable.resize(bytes);
                    }
                }
                Change::Punch { first, count } => {
                    stats.add(if keep { "kept punch" } else { "lost punch" });
                    if keep {
                        self.durable.punch(first, count);
                    }
                }
            }
        }
        self.durable.resize(self.durable.bytes);
        self.cached = self.durable.clone();
    }

    fn crash_write(&mut self, first: usize, blocks: Vec<Option<Block>>, tear: bool, keep: bool, rng: &mut Prng, stats: &mut Stats) {
        if !keep && !tear {
            stats.add("lost unsynced write");
            return;
        }
        let torn = tear || rng.one_in(3);
        stats.add(if torn { "torn write" } else { "kept unsynced write" });
        let kept = if torn { sectors(blocks.len(), rng) } else { Vec::new() };
        for (at, block) in blocks.into_iter().enumerate() {
            if block.is_none() {
                continue;
            }
            let block = if torn { Some(mix(self.durable.get(first + at), block.as_ref(), &kept[at * 8..at * 8 + 8])) } else { block };
            self.durable.put(first + at, block);
        }
    }
}

/// Which sectors of a torn write got there: the first ones, the last ones, or any; never none and never all.
fn sectors(blocks: usize, rng: &mut Prng) -> Vec<bool> {
    let count = blocks * BLOCK_BYTES / SECTOR_BYTES;
    let cut = 1 + rng.below(count as u64 - 1) as usize;
    let mut kept: Vec<bool> = match rng.below(3) {
        0 => (0..count).map(|at| at < cut).collect(),
        1 => (0..count).map(|at| at >= cut).collect(),
        _ => (0..count).map(|_| rng.one_in(2)).collect(),
    };
    if kept.iter().all(|kept| *kept) {
        kept[cut] = false;
    } else if kept.iter().all(|kept| !*kept) {
        kept[cut] = true;
    }
    kept
}

/// The new block's sectors where they are kept, the old one's elsewhere.
fn mix(old: Option<&Block>, new: Option<&Block>, kept: &[bool]) -> Block {
    let mut mixed = old.map_or_else(|| ZERO.to_vec(), |old| old.to_vec());
    let new = new.expect("a write has its blocks");
    for (at, _) in kept.iter().enumerate().filter(|(_, kept)| **kept) {
        let range = at * SECTOR_BYTES..(at + 1) * SECTOR_BYTES;
        mixed[range.clone()].copy_from_slice(&new[range]);
    }
    mixed.into()
}

// Names.
impl Disk {
    fn names(path: &Path) -> io::Result<Vec<&str>> {
        let mut names = Vec::new();
        for component in path.components() {
            match component {
                Component::RootDir | Component::CurDir => {}
                Component::Normal(name) => names.push(name.to_str().ok_or_else(|| os_error(libc::EILSEQ))?),
                Component::ParentDir | Component::Prefix(_) => return Err(os_error(libc::EINVAL)),
            }
        }
        Ok(names)
    }

    fn walk(&self, names: &[&str]) -> io::Result<Ino> {
        let mut ino = ROOT;
        for name in names {
            ino = *self.dir(ino)?.cached.get(*name).ok_or_else(|| os_error(libc::ENOENT))?;
        }
        Ok(ino)
    }

    pub(super) fn find(&self, path: &Path) -> io::Result<Ino> {
        self.walk(&Disk::names(path)?)
    }

    fn parent(&self, path: &Path) -> io::Result<(Ino, String)> {
        let names = Disk::names(path)?;
        let (last, folders) = names.split_last().ok_or_else(|| os_error(libc::EINVAL))?;
        let dir = self.walk(folders)?;
        self.dir(dir)?;
        Ok((dir, (*last).to_string()))
    }

    fn change(&mut self, label: DirLabel, sets: Vec<(Ino, String, Option<Ino>)>) {
        self.seq += 1;
        let mut unnamed = Vec::new();
        for (dir, name, target) in &sets {
            self.inode_mut(*dir).changes += 1;
            if let Some(target) = target {
                let inode = self.inode_mut(*target);
                inode.changes += 1;
                inode.links += 1;
            }
            let body = self.dir_mut(*dir);
            let before = match target {
                Some(target) => body.cached.insert(name.clone(), *target),
                None => body.cached.remove(name),
            };
            if let Some(before) = before {
                self.inode_mut(before).links -= 1;
                unnamed.push(before);
            }
        }
        self.changes.push(DirChange { seq: self.seq, label, sets });
        for ino in unnamed {
            self.settle(ino);
        }
    }

    /// The change is durable or forgotten; either way nothing waits for it any more.
    fn finish(&mut self, change: DirChange, keep: bool) {
        for (dir, name, target) in change.sets {
            if keep {
                if let Some(target) = target {
                    self.inode_mut(target).links_durable += 1;
                }
                let body = self.dir_mut(dir);
                let before = match target {
                    Some(target) => body.durable.insert(name, target),
                    None => body.durable.remove(&name),
                };
                if let Some(before) = before {
                    self.inode_mut(before).links_durable -= 1;
                    self.settle(before);
                }
            }
            if let Some(target) = target {
                self.inode_mut(target).changes -= 1;
                self.settle(target);
            }
            self.inode_mut(dir).changes -= 1;
            self.settle(dir);
        }
    }

    pub(super) fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        let (from_dir, from_name) = self.parent(from)?;
        let (to_dir, to_name) = self.parent(to)?;
        let ino = *self.dir(from_dir)?.cached.get(&from_name).ok_or_else(|| os_error(libc::ENOENT))?;
        if let Some(there) = self.dir(to_dir)?.cached.get(&to_name) {
            if *there == ino {
                return Ok(());
            }
            if matches!(self.inode(*there).body, Body::Dir(_)) || matches!(self.inode(ino).body, Body::Dir(_)) {
                return Err(os_error(libc::ENOTEMPTY));
            }
        }
        self.change(label!("rename"), vec![(to_dir, to_name, Some(ino)), (from_dir, from_name, None)]);
        Ok(())
    }

    pub(super) fn link(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        let ino = self.find(from)?;
        let (dir, name) = self.parent(to)?;
        if self.dir(dir)?.cached.contains_key(&name) {
            return Err(os_error(libc::EEXIST));
        }
        if matches!(self.inode(ino).body, Body::Dir(_)) {
            return Err(os_error(libc::EPERM));
        }
        self.change(label!("link"), vec![(dir, name, Some(ino))]);
        Ok(())
    }

    pub(super) fn unlink(&mut self, path: &Path) -> io::Result<()> {
        let (dir, name) = self.parent(path)?;
        let ino = *self.dir(dir)?.cached.get(&name).ok_or_else(|| os_error(libc::ENOENT))?;
        if matches!(self.inode(ino).body, Body::Dir(_)) {
            return Err(os_error(libc::EISDIR));
        }
        self.change(label!("unlink"), vec![(dir, name, None)]);
        Ok(())
    }

    pub(super) fn make_dir(&mut self, path: &Path) -> io::Result<()> {
        if let Ok(there) = self.find(path) {
            return self.dir(there).map(|_| ()).map_err(|_| os_error(libc::EEXIST));
        }
        let (dir, name) = self.parent(path)?;
        let ino = self.make(Body::Dir(DirBody::default()));
        self.change(label!("make dir"), vec![(dir, name, Some(ino))]);
        Ok(())
    }

    pub(super) fn remove_dir(&mut self, path: &Path) -> io::Result<()> {
        let (dir, name) = self.parent(path)?;
        let ino = *self.dir(dir)?.cached.get(&name).ok_or_else(|| os_error(libc::ENOENT))?;
        if !self.dir(ino)?.cached.is_empty() {
            return Err(os_error(libc::ENOTEMPTY));
        }
        self.change(label!("remove dir"), vec![(dir, name, None)]);
        Ok(())
    }

    /// The changes of a folder's names up to `mark` are durable, and those that they stand on.
    pub(super) fn sync_dir(&mut self, path: &Path, mark: u64) -> io::Result<()> {
        let dir = self.find(path)?;
        self.dir(dir)?;
        let mut forced = BTreeSet::new();
        let mut keep = vec![false; self.changes.len()];
        for (at, change) in self.changes.iter().enumerate().rev() {
            let named = |set: &(Ino, String, Option<Ino>)| forced.contains(&(set.0, set.1.clone()));
            if (change.seq <= mark && change.sets.iter().any(|set| set.0 == dir)) || change.sets.iter().any(named) {
                keep[at] = true;
                forced.extend(change.sets.iter().map(|set| (set.0, set.1.clone())));
            }
        }
        for (change, keep) in std::mem::take(&mut self.changes).into_iter().zip(keep) {
            if keep {
                self.finish(change, true);
            } else {
                self.changes.push(change);
            }
        }
        Ok(())
    }

    /// A folder's sync that failed: its waiting changes are forgotten, whether they got there or not.
    pub(super) fn sync_dir_failed(&mut self, path: &Path, rng: &mut Prng, stats: &mut Stats) {
        let Ok(dir) = self.find(path) else { return };
        for change in std::mem::take(&mut self.changes) {
            if change.sets.iter().any(|set| set.0 == dir) {
                let keep = rng.one_in(2);
                if !keep {
                    stats.add("change dropped by a failed sync");
                }
                self.finish(change, keep);
            } else {
                self.changes.push(change);
            }
        }
    }

    pub(super) fn list(&self, path: &Path) -> io::Result<Vec<Entry>> {
        let dir = self.dir(self.find(path)?)?;
        let entry = |(name, ino): (&String, &Ino)| match &self.inode(*ino).body {
            Body::File(file) => Entry { name: name.clone(), is_dir: false, bytes: file.cached.bytes },
            Body::Dir(_) => Entry { name: name.clone(), is_dir: true, bytes: 0 },
        };
        Ok(dir.cached.iter().map(entry).collect())
    }
}

// Accidents.
impl Disk {
    /// The power fails: draws what of the changes that no sync made durable got there, and forgets everything else.
    pub(super) fn crash(&mut self, rng: &mut Prng, stats: &mut Stats) {
        // Some crashes keep nearly everything, some nearly nothing.
        let keep_of_8 = rng.below(9);
        let mut lost = BTreeSet::new();
        for change in std::mem::take(&mut self.changes) {
            let keep = rng.below(8) < keep_of_8 && !change.sets.iter().any(|set| lost.contains(&(set.0, set.1.clone())));
            if !keep {
                lost.extend(change.sets.iter().map(|set| (set.0, set.1.clone())));
            }
            stats.add(if keep { change.label.kept } else { change.label.lost });
            self.finish(change, keep);
        }
        for inode in self.inodes.iter_mut().flatten() {
            inode.opens = 0;
            inode.links = 0;
            inode.released = false;
            match &mut inode.body {
                Body::File(file) => file.crash(keep_of_8, rng, stats),
                Body::Dir(dir) => dir.cached = dir.durable.clone(),
            }
        }
        self.collect();
    }

    /// Counts names from the root; what none leads to is gone.
    fn collect(&mut self) {
        let mut reached = vec![0u32; self.inodes.len()];
        let mut todo = vec![ROOT];
        reached[ROOT] = 1;
        self.used_blocks = 0;
        while let Some(ino) = todo.pop() {
            match &self.inode(ino).body {
                Body::File(file) => self.used_blocks += file.cached.allocated(),
                Body::Dir(dir) => {
                    for child in dir.cached.values() {
                        reached[*child] += 1;
                        if reached[*child] == 1 {
                            todo.push(*child);
                        }
                    }
                }
            }
        }
        for (ino, links) in reached.into_iter().enumerate() {
            if links == 0 && self.inodes[ino].take().is_some() {
                self.free.push(ino);
            } else if let Some(inode) = &mut self.inodes[ino] {
                inode.links = links;
                inode.links_durable = links;
            }
        }
    }

    /// The process ends, the system stays: handles are gone, nothing else is.
    pub(super) fn kill(&mut self) {
        for ino in 0..self.inodes.len() {
            if let Some(inode) = &mut self.inodes[ino] {
                inode.opens = 0;
                self.settle(ino);
            }
        }
    }

    /// Flips a bit of what lies on the disk.
    ///
    /// # Errors
    /// `ENOENT` where there is no such file or no written block at that offset.
    pub(super) fn rot(&mut self, path: &Path, offset: u64, bit: u8) -> io::Result<()> {
        let ino = self.find(path)?;
        self.dir(ino).is_err().then_some(()).ok_or_else(|| os_error(libc::EISDIR))?;
        let index = (offset / BLOCK_BYTES as u64) as usize;
        let file = self.file_mut(ino);
        let mut hit = false;
        for content in [&mut file.cached, &mut file.durable] {
            if offset < content.bytes
                && let Some(block) = content.get(index)
            {
                let mut rotten = block.to_vec();
                rotten[offset as usize % BLOCK_BYTES] ^= 1 << bit;
                content.put(index, Some(rotten.into()));
                hit = true;
            }
        }
        hit.then_some(()).ok_or_else(|| os_error(libc::ENOENT))
    }

    /// Every path with its file's length, in order; folders end in `/`.
    pub(super) fn tree(&self) -> BTreeMap<String, u64> {
        let mut all = BTreeMap::new();
        let mut todo = vec![(String::new(), ROOT)];
        while let Some((path, ino)) = todo.pop() {
            match &self.inode(ino).body {
                Body::File(file) => {
                    all.insert(path, file.cached.bytes);
                }
                Body::Dir(dir) => {
                    todo.extend(dir.cached.iter().map(|(name, child)| (format!("{path}/{name}"), *child)));
                    all.insert(path + "/", 0);
                }
            }
        }
        all
    }
}
