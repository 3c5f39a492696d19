//! The tree of a shard: which tables there are, in which order to look, and when a table's file may go.
//!
//! A `Tree` never changes; a read holds the one it began with. Each commit of the manifest gives a new one (`Levels::adopt`). What the new
//! one no longer shows waits until no older tree shows it either; only then is the file removed, or its consumed front given back.
//! A file may be shared by several shards of the node (after a change of the core list): each holds it by an `Arc`, and the last one
//! to let go removes it. Nobody locks anything.

use super::EngineError;
use super::format::block::leading;
use super::format::manifest::{Level, TableId, TableRecord};
use super::manifest::State;
use super::pick::{RunShape, TreeShape};
use crate::base::record::{Cell, Version};
use std::cell::{OnceCell, RefCell};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A table's file, held by every shard whose tree shows it.
#[derive(Debug)]
pub struct TableFile {
    pub id: TableId,
    pub path: PathBuf,
    /// A shard has ended whose manifest names it: it stays.
    is_named: AtomicBool,
}

impl TableFile {
    /// The file of a table in the folder of tables.
    pub fn new(dir: &Path, id: TableId) -> Arc<TableFile> {
        Arc::new(TableFile { id, path: dir.join(id.file_name()), is_named: AtomicBool::new(false) })
    }

    /// Lets go of it. Who lets go last gets the path of the file, to remove it.
    pub fn let_go(file: Arc<TableFile>) -> Option<PathBuf> {
        Arc::into_inner(file).filter(|file| !file.is_named.load(Ordering::Acquire)).map(|file| file.path)
    }
}

/// A table as one tree shows it. `T` is the open table (`()` in tests of the order alone).
#[derive(Debug)]
pub struct TableRef<T> {
    pub record: TableRecord,
    pub table: Rc<T>,
    pub file: Arc<TableFile>,
    /// See `share`.
    share: OnceCell<f64>,
}

impl<T> TableRef<T> {
    fn new(record: TableRecord, table: Rc<T>, file: Arc<TableFile>) -> Rc<TableRef<T>> {
        Rc::new(TableRef { record, table, file, share: OnceCell::new() })
    }

    /// The share of the table that is valid here, counted in vnodes. `vnodes` gives those that it holds, once for each namespace.
    pub fn share(&self, vnodes: impl FnOnce(&T) -> Vec<u32>) -> f64 {
        *self.share.get_or_init(|| {
            if self.record.parts.is_empty() {
                return 1.0;
            }
            let count = |(valid, all), vnode| (valid + u32::from(self.record.start_of(vnode).is_some()), all + 1);
            let (valid, all) = vnodes(&self.table).into_iter().fold((0, 0), count);
            f64::from(valid) / f64::from(all.max(1))
        })
    }

    /// The first place that is valid in it, or below it.
    pub fn start(&self) -> &[u8] {
        (&self.record.first[..]).max(&self.record.from[..])
    }

    /// It may hold this place.
    pub fn covers(&self, place: &[u8]) -> bool {
        self.start() <= place && place <= &self.record.last[..]
    }

    /// All that it holds of a vnode is void, since the vnode was dropped after it was written.
    pub fn is_void(&self, drop_seq: u64) -> bool {
        self.record.seqs.1 < drop_seq
    }
}

/// Tables that do not overlap, in order of places. Several of one number where the tables come from several shards: each shard's places
/// lie between the others'.
#[derive(Debug)]
pub struct Run<T> {
    pub id: u64,
    pub level: Level,
    pub tables: Vec<Rc<TableRef<T>>>,
    /// The first bytes of each table's start and last place, side by side: a search that seldom touches a table but the one it finds.
    heads: Vec<(u128, u128)>,
}

/// A place's first bytes as a number that compares as they do.
#[inline]
fn head(place: &[u8]) -> u128 {
    u128::from_be_bytes(leading(place))
}

impl<T> Run<T> {
    fn new(id: u64, level: Level, tables: Vec<Rc<TableRef<T>>>) -> Run<T> {
        let heads = tables.iter().map(|table| (head(table.start()), head(&table.record.last))).collect();
        Run { id, level, tables, heads }
    }

    /// The table that may hold a place.
    pub fn find(&self, place: &[u8]) -> Option<&Rc<TableRef<T>>> {
        let head = head(place);
        let mut after = self.heads.partition_point(|&(start, _)| start <= head);
        // Of equal heads the rest decides.
        while after > 0 && self.heads[after - 1].0 == head && self.tables[after - 1].start() > place {
            after -= 1;
        }
        let at = after.checked_sub(1)?;
        let ((start, last), table) = (self.heads[at], &self.tables[at]);
        let is_inside = start < head && head < last;
        (is_inside || head <= last && table.covers(place)).then_some(table)
    }

    /// The tables that may hold places in `from..to` (no `to`: to the end).
    pub fn overlapping(&self, from: &[u8], to: Option<&[u8]>) -> &[Rc<TableRef<T>>] {
        let first = self.tables.partition_point(|table| &table.record.last[..] < from);
        let end = self.tables.partition_point(|table| to.is_none_or(|to| table.start() < to));
        &self.tables[first.min(end)..end]
    }
}

/// An immutable tree.
#[derive(Debug)]
pub struct Tree<T> {
    /// Newest first: level 0, level 1, last.
    pub runs: Vec<Run<T>>,
    /// For each run the greatest version in it and all older ones. See `newest_from`.
    newest: OnceCell<Vec<Version>>,
}

/// What was found is newer than anything of this version or an older one, in its value and in its expiry: nothing there can change it.
pub fn is_settled(found: &Cell<'_>, newest_elsewhere: Version) -> bool {
    found.version.min(found.expiry.version) > newest_elsewhere
}

fn greatest(versions: impl Iterator<Item = Version>) -> Version {
    versions.max().unwrap_or(Version::ZERO)
}

impl<T> Tree<T> {
    /// A tree without tables.
    pub fn empty() -> Tree<T> {
        Tree { runs: Vec::new(), newest: OnceCell::new() }
    }

    fn new(tables: impl Iterator<Item = Rc<TableRef<T>>>) -> Tree<T> {
        let mut runs = BTreeMap::<_, Vec<_>>::new();
        for table in tables {
            runs.entry((table.record.level, Reverse(table.record.run))).or_default().push(table);
        }
        let runs = runs.into_iter().flat_map(|((level, Reverse(id)), mut tables)| {
            tables.sort_unstable_by(|a, b| a.start().cmp(b.start()));
            lanes(tables).into_iter().map(move |tables| Run::new(id, level, tables))
        });
        Tree { runs: runs.collect(), newest: OnceCell::new() }
    }

    /// The tables that may hold `place`, which is one of `vnode`, in the order in which to look, each with the number of its run. Tables
    /// void by `drop_seq` are left out. A read stops before a run when what it found `is_settled` against what is still to be expected:
    /// `newest_from`, and where that does not decide, `newest_of_vnode`.
    pub fn lookup(&self, place: &[u8], vnode: u32, drop_seq: u64, first_run: usize) -> impl Iterator<Item = (usize, &Rc<TableRef<T>>)> {
        let tables = self.runs.iter().enumerate().skip(first_run).filter_map(move |(at, run)| Some((at, run.find(place)?)));
        tables.filter(move |(_, table)| !table.is_void(drop_seq) && table.record.is_valid(place, vnode))
    }

    /// The greatest version in this run and all older ones. Runs are in order of age, so this is nearly always enough. `newest` gives the
    /// greatest version of any cell in a table.
    #[inline]
    pub fn newest_from(&self, run: usize, newest: impl Fn(&T) -> Version) -> Version {
        let of_runs = self.newest.get_or_init(|| {
            let mut of_runs: Vec<_> = self.runs.iter().map(|run| greatest(run.tables.iter().map(|table| newest(&table.table)))).collect();
            for at in (1..of_runs.len()).rev() {
                of_runs[at - 1] = of_runs[at - 1].max(of_runs[at]);
            }
            of_runs
        });
        of_runs.get(run).copied().unwrap_or(Version::ZERO)
    }

    /// The greatest version of the place's vnode in this run and all older ones, where the place may lie. `newest` gives the greatest of
    /// that vnode in a table, None where it holds nothing of it.
    pub fn newest_of_vnode(&self, run: usize, place: &[u8], vnode: u32, drop_seq: u64, newest: impl Fn(&T) -> Option<Version>) -> Version {
        greatest(self.lookup(place, vnode, drop_seq, run).filter_map(|(_, table)| newest(&table.table)))
    }

    /// Every table, newest run first.
    pub fn tables(&self) -> impl Iterator<Item = &Rc<TableRef<T>>> {
        self.runs.iter().flat_map(|run| &run.tables)
    }

    /// Flushes that no merge has taken yet.
    pub fn level0_runs(&self) -> usize {
        self.level0_runs_where(|_| true)
    }

    /// Those whose number is meant.
    pub fn level0_runs_where(&self, is_meant: impl Fn(u64) -> bool) -> usize {
        let level0 = || self.runs.iter().filter(|run| run.level == Level::Zero && is_meant(run.id));
        // Those of one number stand beside each other.
        level0().zip(level0().skip(1)).filter(|(a, b)| a.id != b.id).count() + level0().count().min(1)
    }

    /// What the picker wants to know. `bytes` gives a table's bytes from its start on and those of them known to be dead.
    pub fn shape(&self, state: &State, (overwritten_share, left): (f64, u64), bytes: impl Fn(&TableRef<T>) -> (u64, u64)) -> TreeShape {
        let runs = self.runs.chunk_by(|a, b| (a.level, a.id) == (b.level, b.id)).map(|lanes| {
            let tables = lanes.iter().flat_map(|run| &run.tables);
            let sums = tables.map(|table| bytes(table)).fold((0, 0), |a, b| (a.0 + b.0, a.1 + b.1));
            RunShape { id: lanes[0].id, level: lanes[0].level, bytes: sums.0, dead_bytes: sums.1 }
        });
        TreeShape { runs: runs.collect(), merges: state.merges.clone(), left, overwritten_share }
    }

    /// Checks the order that everything here relies on.
    ///
    /// # Errors
    /// Two tables of one run overlap: the manifest does not fit to a tree.
    pub fn check(&self) -> Result<(), EngineError> {
        let runs = self.runs.chunk_by(|a, b| (a.level, a.id) == (b.level, b.id));
        // A single lane has no overlap by its making.
        for lanes in runs.filter(|lanes| lanes.len() > 1) {
            // Only tables that come from another list of cores may lie between each other.
            let wholes = lanes.iter().flat_map(|run| &run.tables).filter(|table| table.record.parts.is_empty());
            let mut wholes: Vec<_> = wholes.collect();
            wholes.sort_unstable_by(|a, b| a.start().cmp(b.start()));
            if let Some(pair) = wholes.windows(2).find(|pair| pair[0].record.last[..] >= *pair[1].start()) {
                let what = format!("tables {:?} and {:?} of run {} overlap", pair[0].record.id, pair[1].record.id, lanes[0].id);
                return Err(EngineError::Corrupt { file: pair[1].file.path.display().to_string(), offset: 0, what });
            }
        }
        Ok(())
    }
}

/// Puts tables, in order of their starts, into as few rows as it takes for none to overlap another of its row.
fn lanes<T>(tables: Vec<Rc<TableRef<T>>>) -> Vec<Vec<Rc<TableRef<T>>>> {
    if tables.windows(2).all(|pair| pair[0].record.last[..] < *pair[1].start()) {
        return vec![tables];
    }
    let mut lanes: Vec<Vec<Rc<TableRef<T>>>> = Vec::new();
    for table in tables {
        let is_free = |lane: &&mut Vec<Rc<TableRef<T>>>| lane.last().is_none_or(|last| &last.record.last[..] < table.start());
        match lanes.iter_mut().find(is_free) {
            Some(lane) => lane.push(table),
            None => lanes.push(vec![table]),
        }
    }
    lanes
}

/// Something that an older tree may still show.
#[derive(Debug)]
struct Retired<T> {
    table: Rc<TableRef<T>>,
    /// No: only its front is void.
    is_gone: bool,
}

/// What may be done to a file now, because no tree shows it any more.
#[derive(Debug)]
pub enum Release<T> {
    /// This shard does not need the file. Remove it if nobody else holds it (`TableFile::let_go`).
    Remove(Arc<TableFile>),
    /// Everything below the start of this table can be given back.
    Punch(Rc<TableRef<T>>),
}

/// The current tree of a shard and what older ones still need.
#[derive(Debug)]
pub struct Levels<T> {
    current: RefCell<Rc<Tree<T>>>,
    tables: RefCell<BTreeMap<TableId, Rc<TableRef<T>>>>,
    retired: RefCell<VecDeque<Retired<T>>>,
}

impl<T> Default for Levels<T> {
    fn default() -> Levels<T> {
        Levels { current: RefCell::new(Rc::new(Tree::empty())), tables: RefCell::default(), retired: RefCell::default() }
    }
}

impl<T> Levels<T> {
    /// The tree as it is now; a read keeps it for as long as it looks.
    pub fn current(&self) -> Rc<Tree<T>> {
        self.current.borrow().clone()
    }

    /// Makes the tree follow the manifest. `opened` holds the tables that it does not know yet.
    ///
    /// # Errors
    /// Tables of one run overlap. Panics if a table of the state is neither known nor in `opened`.
    pub fn adopt(&self, state: &State, opened: Vec<(TableId, Rc<T>, Arc<TableFile>)>) -> Result<(), EngineError> {
        let mut opened: BTreeMap<_, _> = opened.into_iter().map(|(id, table, file)| (id, (table, file))).collect();
        let mut tables = self.tables.borrow_mut();
        let mut retired = self.retired.borrow_mut();
        let mut next = BTreeMap::new();
        for (&id, record) in &state.tables {
            let table = match tables.remove(&id) {
                Some(known) if known.record == *record => known,
                Some(known) => {
                    let changed = TableRef::new(record.clone(), known.table.clone(), known.file.clone());
                    retired.push_back(Retired { table: known, is_gone: false });
                    changed
                }
                None => {
                    let (table, file) = opened.remove(&id).unwrap_or_else(|| panic!("table {id:?} is not open"));
                    TableRef::new(record.clone(), table, file)
                }
            };
            next.insert(id, table);
        }
        retired.extend(std::mem::take(&mut *tables).into_values().map(|table| Retired { table, is_gone: true }));
        *tables = next;
        let tree = Tree::new(tables.values().cloned());
        *self.current.borrow_mut() = Rc::new(tree);
        self.current.borrow().check()
    }

    /// What no tree shows any more, in order. Call it after a commit and whenever reads have ended.
    pub fn release(&self) -> Vec<Release<T>> {
        let retired = self.retired.take();
        let mut versions: BTreeMap<TableId, usize> = BTreeMap::new();
        retired.iter().for_each(|one| *versions.entry(one.table.record.id).or_default() += 1);
        // An open iterator holds the table itself, beside its retired versions.
        let is_read = |one: &Retired<T>| one.is_gone && Rc::strong_count(&one.table.table) > versions[&one.table.record.id];
        let is_held = |one: &Retired<T>| Rc::strong_count(&one.table) > 1 || is_read(one);
        // While any older version of a table is shown, its front up to that version's start is read.
        let held: BTreeSet<TableId> = retired.iter().filter(|one| is_held(one)).map(|one| one.table.record.id).collect();
        let (waiting, free): (VecDeque<_>, VecDeque<_>) = retired.into_iter().partition(|one| held.contains(&one.table.record.id));
        let mut released = Vec::new();
        for Retired { table, is_gone } in free {
            if is_gone {
                released.push(Release::Remove(table.file.clone()));
            } else if let Some(now) = self.tables.borrow().get(&table.record.id).filter(|now| !now.record.shared && !now.record.linked) {
                released.push(Release::Punch(now.clone()));
            }
        }
        *self.retired.borrow_mut() = waiting;
        released
    }

    /// Ends it before the shard begins: another one of the same shard holds the files.
    pub fn forget(&self) {
        self.tables.take();
    }

    /// Tables that wait for older trees to go.
    pub fn retired(&self) -> usize {
        self.retired.borrow().len()
    }
}

/// A shard that ends while others go on (they do not stop in one instant) lets go of nothing that its manifest names.
impl<T> Drop for Levels<T> {
    fn drop(&mut self) {
        self.tables.take().values().for_each(|table| table.file.is_named.store(true, Ordering::Release));
    }
}

#[cfg(test)]
mod tests {
    use super::super::format::manifest::Edit;
    use super::*;

    fn record(number: u64, level: Level, run: u64, first: &str, last: &str) -> TableRecord {
        let id = TableId { shard: 0, number };
        TableRecord { id, level, run, first: first.into(), last: last.into(), seqs: (1, number), ..TableRecord::default() }
    }

    fn apply(levels: &Levels<u64>, state: &mut State, edits: &[Edit]) -> Result<(), EngineError> {
        let mut opened = Vec::new();
        for edit in edits {
            state.apply(edit).unwrap();
            if let Edit::AddTable(record) = edit {
                opened.push((record.id, Rc::new(record.id.number), TableFile::new(Path::new("t"), record.id)));
            }
        }
        levels.adopt(state, opened)
    }

    fn example() -> (Levels<u64>, State) {
        let (levels, mut state) = (Levels::default(), State::default());
        let records = [
            record(1, Level::Last, 1, "a", "f"),
            record(2, Level::Last, 1, "g", "p"),
            record(3, Level::One, 4, "b", "x"),
            record(4, Level::Zero, 6, "a", "z"),
            record(5, Level::Zero, 7, "c", "d"),
        ];
        apply(&levels, &mut state, &records.map(Edit::AddTable)).unwrap();
        (levels, state)
    }

    fn numbers(tree: &Tree<u64>, place: &str, drop_seq: u64) -> Vec<u64> {
        tree.lookup(place.as_bytes(), 0, drop_seq, 0).map(|(_, table)| *table.table).collect()
    }

    #[test]
    fn a_read_looks_at_the_newest_first_and_only_where_the_place_may_lie() {
        let (levels, _) = example();
        let tree = levels.current();
        assert_eq!(numbers(&tree, "d", 0), [5, 4, 3, 1]);
        assert_eq!(numbers(&tree, "h", 0), [4, 3, 2]);
        assert_eq!(numbers(&tree, "ff", 0), [4, 3]);
        assert_eq!(numbers(&tree, "zz", 0), [0u64; 0]);
        assert_eq!(numbers(&tree, "d", 4), [5, 4], "what was written before a drop is void");
        let common = "a head of sixteen bytes and more: ";
        let (levels, mut state) = (Levels::default(), State::default());
        let records = [1, 2, 3].map(|n| record(n, Level::Last, 1, &format!("{common}{n}a"), &format!("{common}{n}z")));
        apply(&levels, &mut state, &records.map(Edit::AddTable)).unwrap();
        for (place, expected) in [("2a", &[2][..]), ("2m", &[2]), ("3z", &[3]), ("1", &[]), ("2zz", &[])] {
            assert_eq!(numbers(&levels.current(), &format!("{common}{place}"), 0), expected, "{place}");
        }
        assert_eq!(tree.runs[3].overlapping(b"f", Some(b"g")).len(), 1);
        assert_eq!(tree.runs[3].overlapping(b"f", None).len(), 2);
        assert_eq!(tree.runs[3].overlapping(b"q", None).len(), 0);
    }

    #[test]
    fn a_read_knows_the_greatest_version_still_to_come_and_stops_only_above_it() {
        let (levels, _) = example();
        let tree = levels.current();
        let newest = |number: u64| Version::put([0, 6, 12, 3, 4, 7][number as usize], 0);
        let of_vnode = |run| tree.newest_of_vnode(run, b"d", 0, 0, |&number| (number != 3).then(|| newest(number))).hlc();
        assert_eq!([0, 1, 2, 3, 4].map(of_vnode), [7, 6, 6, 6, 0]);
        assert_eq!([0, 1, 2, 3, 4].map(|run| tree.newest_from(run, |&number| newest(number)).hlc()), [12, 12, 12, 12, 0]);
        let put = Cell::value(Version::put(10, 0), b"");
        assert!(is_settled(&put, Version::put(9, 0)) && !is_settled(&put, Version::put(10, 0)));
        let expire = Cell::expire(Version::put(20, 0), 5);
        assert!(!is_settled(&expire, Version::put(9, 0)), "a deadline alone does not say what the value is");
        assert!(!is_settled(&crate::base::record::join(Cell::value(Version::put(8, 0), b""), expire), Version::put(9, 0)));
    }

    #[test]
    fn files_go_only_when_no_tree_shows_them_and_fronts_only_after_older_trees() {
        let (levels, mut state) = example();
        let before = levels.current();
        let id = TableId { shard: 0, number: 3 };
        apply(&levels, &mut state, &[Edit::RaiseFrom { id, from: b"h".to_vec() }]).unwrap();
        let between = levels.current();
        apply(&levels, &mut state, &[Edit::RaiseFrom { id, from: b"m".to_vec() }]).unwrap();
        assert!(levels.release().is_empty());
        assert_eq!((numbers(&before, "d", 0), numbers(&levels.current(), "d", 0)), (vec![5, 4, 3, 1], vec![5, 4, 1]));
        drop(before);
        assert!(levels.release().is_empty(), "an older tree still shows a part of the front");
        drop(between);
        let released = levels.release();
        assert!(matches!(&released[..], [Release::Punch(a), Release::Punch(b)] if a.start() == b"m" && b.start() == b"m"));
        drop(released);
        let reader = levels.current();
        apply(&levels, &mut state, &[Edit::RaiseFrom { id, from: b"n".to_vec() }]).unwrap();
        apply(&levels, &mut state, &[Edit::RemoveTable(id)]).unwrap();
        assert!(levels.release().is_empty());
        drop(reader);
        let released = levels.release();
        assert!(matches!(&released[..], [Release::Remove(file)] if file.id == id && Arc::strong_count(file) == 1));
        assert_eq!(levels.retired(), 0);
    }

    #[test]
    fn who_lets_go_of_a_shared_file_last_removes_it_unless_a_shard_has_ended_that_still_names_it() {
        for has_ended in [false, true] {
            let (id, file) = (TableId { shard: 0, number: 3 }, TableFile::new(Path::new("t"), TableId { shard: 0, number: 3 }));
            let shards = [(); 2].map(|()| {
                let (levels, mut state) = (Levels::default(), State::default());
                state.apply(&Edit::AddTable(record(3, Level::One, 4, "b", "x"))).unwrap();
                levels.adopt(&state, vec![(id, Rc::new(3u64), file.clone())]).unwrap();
                levels
            });
            drop(file);
            let [one, other] = shards;
            let let_go = |levels: &Levels<u64>| {
                levels.adopt(&State::default(), Vec::new()).unwrap();
                let [Release::Remove(file)] = &mut levels.release()[..] else { panic!("one file") };
                TableFile::let_go(std::mem::replace(file, TableFile::new(Path::new("t"), id)))
            };
            if has_ended {
                drop(one);
                assert_eq!(let_go(&other), None);
            } else {
                assert_eq!(let_go(&one), None);
                assert!(let_go(&other).is_some());
            }
        }
    }

    #[test]
    fn a_run_finds_the_table_that_covers_a_place_also_where_their_beginnings_are_the_same() {
        let mut prng = crate::base::prng::Prng::new(11);
        let mut found = 0;
        for _ in 0..300 {
            let mut draw = |len_max: u64| -> Vec<u8> {
                let (common, len) = (prng.below(19) as usize, prng.below(len_max));
                let rest = (0..len).map(|_| prng.below(3) as u8);
                b"0123456789abcdefgh"[..common].iter().copied().chain(rest).collect()
            };
            let ends: BTreeSet<Vec<u8>> = (0..12).map(|_| draw(4)).collect();
            let ends: Vec<&[u8]> = ends.iter().map(Vec::as_slice).collect();
            let tables = ends.chunks_exact(2).enumerate().map(|(n, ends)| {
                let id = TableId { shard: 0, number: n as u64 };
                let record = TableRecord { id, first: ends[0].to_vec(), last: ends[1].to_vec(), ..TableRecord::default() };
                TableRef::new(record, Rc::new(()), TableFile::new(Path::new("t"), id))
            });
            let run = Run::new(1, Level::Zero, tables.collect());
            let places: Vec<Vec<u8>> = (0..60).map(|_| draw(5)).collect();
            for place in ends.iter().copied().chain(places.iter().map(Vec::as_slice)) {
                let expected = run.tables.iter().find(|table| table.covers(place)).map(|table| table.record.id);
                assert_eq!(run.find(place).map(|table| table.record.id), expected, "{place:?}");
                found += u32::from(expected.is_some());
            }
        }
        assert!(found > 5_000, "{found}");
    }

    #[test]
    fn shared_and_linked_files_keep_their_fronts() {
        let (levels, mut state) = example();
        let id = TableId { shard: 0, number: 3 };
        apply(&levels, &mut state, &[Edit::LinkTable(id)]).unwrap();
        apply(&levels, &mut state, &[Edit::RaiseFrom { id, from: b"h".to_vec() }]).unwrap();
        assert!(levels.release().is_empty());
        assert_eq!(levels.retired(), 0);
    }

    #[test]
    fn tables_of_one_run_that_overlap_are_refused() {
        let (levels, mut state) = example();
        assert!(apply(&levels, &mut state, &[Edit::AddTable(record(8, Level::Last, 1, "p", "q"))]).is_err());
    }
}
