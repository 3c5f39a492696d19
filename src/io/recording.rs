//! A recording of what was written, flushed and named, from which the disk after a power failure at any instant can be made.
//!
//! What a failure may leave, as POSIX allows it: a write without sync survives or not, each for itself, until a sync of its file that
//! was asked for after the write had completed; the same for names (create, rename, link, unlink) until a sync of their folder. Writes
//! with sync survive. An operation counts from its completion.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// An entry. `covers` is how many entries there were when the flush was asked for: it makes no later one durable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Recorded {
    Create { path: PathBuf, file: u64 },
    Write { file: u64, offset: u64, bytes: Vec<u8>, sync: bool },
    Sync { file: u64, covers: usize },
    Resize { file: u64, bytes: u64 },
    Punch { file: u64, offset: u64, bytes: u64 },
    Rename { from: PathBuf, to: PathBuf },
    Link { from: PathBuf, to: PathBuf },
    Unlink { path: PathBuf },
    MakeDir { path: PathBuf },
    SyncDir { path: PathBuf, covers: usize },
}

#[derive(Default)]
struct Log {
    root: PathBuf,
    entries: Vec<Recorded>,
    /// Files that were there before: name, number, content when first opened.
    before: Vec<(PathBuf, u64, Vec<u8>)>,
    names: BTreeMap<PathBuf, u64>,
    files: u64,
}

/// A recording; clones are the same one. Give it to the drivers of all cores that write below `root`.
#[derive(Clone)]
pub struct Recording {
    log: Arc<Mutex<Log>>,
}

impl Recording {
    /// An empty recording of what happens below `root`.
    pub fn new(root: &Path) -> Recording {
        Recording { log: Arc::new(Mutex::new(Log { root: root.into(), ..Log::default() })) }
    }

    fn log(&self) -> MutexGuard<'_, Log> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.log().entries.len()
    }

    /// Nothing was recorded yet.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All entries, copied.
    pub fn entries(&self) -> Vec<Recorded> {
        self.log().entries.clone()
    }

    /// A file was opened: its number.
    pub(super) fn opened(&self, path: &Path, created: bool) -> u64 {
        let mut log = self.log();
        if !created && let Some(file) = log.names.get(path) {
            return *file;
        }
        log.files += 1;
        let file = log.files;
        log.names.insert(path.into(), file);
        if created {
            log.entries.push(Recorded::Create { path: path.into(), file });
        } else {
            let content = std::fs::read(path).unwrap_or_default();
            log.before.push((path.into(), file, content));
        }
        file
    }

    pub(super) fn push(&self, entry: Recorded) {
        let mut log = self.log();
        rename(&mut log.names, &entry);
        log.entries.push(entry);
    }

    /// Makes below `dir` what a failure after the first `n` entries may leave: everything durable, and of the rest the entries for which
    /// `keep_unsynced` says true (it is asked in order, with the entry's number).
    pub fn apply_prefix(&self, n: usize, dir: &Path, keep_unsynced: &mut dyn FnMut(usize) -> bool) -> io::Result<()> {
        let log = self.log();
        let entries = &log.entries[..n];
        let mut files: BTreeMap<u64, Vec<u8>> = BTreeMap::new();
        let mut names: BTreeMap<PathBuf, u64> = BTreeMap::new();
        for (path, file, content) in &log.before {
            names.insert(path.clone(), *file);
            files.insert(*file, content.clone());
        }
        let mut folders = Vec::new();
        let flushed = Flushed::of(entries);
        for (number, entry) in entries.iter().enumerate() {
            if !flushed.is_durable(number, entry) && !keep_unsynced(number) {
                continue;
            }
            if let Recorded::MakeDir { path } = entry {
                folders.push(path.clone());
            }
            rename(&mut names, entry);
            change(&mut files, entry);
        }
        let inside = |path: &Path| path.strip_prefix(&log.root).map(|below| dir.join(below)).map_err(io::Error::other);
        std::fs::create_dir_all(dir)?;
        for folder in &folders {
            std::fs::create_dir_all(inside(folder)?)?;
        }
        for (path, file) in &names {
            let path = inside(path)?;
            std::fs::create_dir_all(path.parent().expect("below the root"))?;
            std::fs::write(path, files.get(file).map_or(&[][..], |content| content))?;
        }
        Ok(())
    }
}

/// Up to which entry the flushes of a prefix reach, a file and a folder each.
#[derive(Default)]
struct Flushed<'a> {
    files: BTreeMap<u64, usize>,
    folders: BTreeMap<&'a Path, usize>,
}

impl<'a> Flushed<'a> {
    fn of(entries: &'a [Recorded]) -> Flushed<'a> {
        let mut flushed = Flushed::default();
        for entry in entries {
            let (reach, covers) = match entry {
                Recorded::Sync { file, covers } => (flushed.files.entry(*file).or_default(), *covers),
                Recorded::SyncDir { path, covers } => (flushed.folders.entry(path).or_default(), *covers),
                _ => continue,
            };
            *reach = (*reach).max(covers);
        }
        flushed
    }

    /// Whether nothing can undo this entry.
    fn is_durable(&self, number: usize, entry: &Recorded) -> bool {
        let file = |file: &u64| self.files.get(file).is_some_and(|covers| *covers > number);
        let name = |path: &Path| path.parent().and_then(|folder| self.folders.get(folder)).is_some_and(|covers| *covers > number);
        match entry {
            Recorded::Write { sync: true, .. } | Recorded::Sync { .. } | Recorded::SyncDir { .. } => true,
            Recorded::Write { file: f, .. } | Recorded::Resize { file: f, .. } | Recorded::Punch { file: f, .. } => file(f),
            Recorded::Create { path, .. } | Recorded::Unlink { path } | Recorded::MakeDir { path } => name(path),
            Recorded::Link { to, .. } => name(to),
            Recorded::Rename { from, to } => name(from) && name(to),
        }
    }
}

/// What an entry does to the names. One whose source was lost does nothing.
fn rename(names: &mut BTreeMap<PathBuf, u64>, entry: &Recorded) {
    match entry {
        Recorded::Create { path, file } => drop(names.insert(path.clone(), *file)),
        Recorded::Rename { from, to } => {
            if let Some(file) = names.remove(from) {
                names.insert(to.clone(), file);
            }
        }
        Recorded::Link { from, to } => {
            if let Some(file) = names.get(from).copied() {
                names.insert(to.clone(), file);
            }
        }
        Recorded::Unlink { path } => drop(names.remove(path)),
        _ => {}
    }
}

/// What an entry does to the files' contents.
fn change(files: &mut BTreeMap<u64, Vec<u8>>, entry: &Recorded) {
    match entry {
        Recorded::Create { file, .. } => drop(files.entry(*file).or_default()),
        Recorded::Write { file, offset, bytes, .. } => {
            let content = files.entry(*file).or_default();
            let (begin, end) = (*offset as usize, *offset as usize + bytes.len());
            content.resize(content.len().max(end), 0);
            content[begin..end].copy_from_slice(bytes);
        }
        Recorded::Resize { file, bytes } => files.entry(*file).or_default().resize(*bytes as usize, 0),
        Recorded::Punch { file, offset, bytes } => {
            let content = files.entry(*file).or_default();
            let begin = (*offset as usize).min(content.len());
            let end = (offset.saturating_add(*bytes) as usize).min(content.len());
            content[begin..end].fill(0);
        }
        _ => {}
    }
}
