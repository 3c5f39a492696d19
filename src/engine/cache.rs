//! S3-FIFO (Yang et al., "FIFO queues are all you need for cache eviction", SOSP 2023): a small queue through which newcomers pass, a main
//! queue for what was asked for again, and a ghost queue of hashes that remembers who was turned away. A scan passes through the small
//! queue and cannot touch the main one.
//!
//! The budget is in bytes and covers keys, values and this structure's own memory. Generic over key and value, so that the engine can keep
//! blocks in one and single cells in another.

use crate::base::map::Seeded;
use hashbrown::{Equivalent, HashTable};
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::hash::{BuildHasher, Hash};

/// The small queue's share of the budget: 1 / this.
const SMALL_SHARE: usize = 10;
const USES_MAX: u8 = 3;
/// Entries of the main queue that may pass for another round a call, so that one insertion does not turn the whole queue.
const PASSES_MAX: usize = 64;
/// Slots looked at a call while entries of a removed group are being cleared away.
const SWEEP_SLOTS: usize = 16;

/// What a cache can be keyed by.
pub trait CacheKey: Hash + Eq {
    /// What `remove_group` names: a table's id.
    fn group(&self) -> u64;
    /// Bytes it holds on the heap.
    fn heap_bytes(&self) -> usize {
        0
    }
}

/// What a cache can hold: cheap to clone.
pub trait CacheValue: Clone {
    /// Bytes it keeps alive, its own heap structures included.
    fn heap_bytes(&self) -> usize;
}

/// Counters since the start, and the state now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheStats {
    pub hits: u64,
    pub misses: u64,
    pub insertions: u64,
    pub evictions: u64,
    pub entries: usize,
    pub bytes: usize,
    pub budget_bytes: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Queue {
    Small,
    Main,
}

#[derive(Debug)]
struct Node<K, V> {
    key: K,
    value: V,
    bytes: usize,
    uses: u8,
    queue: Queue,
}

/// A slot whose entry is gone stays in its queue until it comes to the front; then it is free.
#[derive(Debug)]
struct Slot<K, V> {
    node: Option<Node<K, V>>,
}

#[derive(Debug)]
struct State<K, V> {
    table: HashTable<u32>,
    slots: Vec<Slot<K, V>>,
    free: Vec<u32>,
    small: VecDeque<u32>,
    main: VecDeque<u32>,
    small_bytes: usize,
    bytes: usize,
    ghost: VecDeque<u64>,
    ghost_set: HashTable<u64>,
    main_entries: usize,
    doomed: Vec<(u64, usize)>,
    sweep_at: usize,
    budget: usize,
}

/// A cache of one core.
#[derive(Debug)]
pub struct Cache<K, V> {
    state: RefCell<State<K, V>>,
    hasher: Seeded,
    hits: Cell<u64>,
    misses: Cell<u64>,
    insertions: Cell<u64>,
    evictions: Cell<u64>,
}

impl<K: CacheKey, V: CacheValue> Cache<K, V> {
    /// Bytes counted for an entry beside key and value: its slot (vectors grow twofold), places in queue, free list, hash table and ghost.
    pub const ENTRY_BYTES: usize = 2 * size_of::<Slot<K, V>>() + 2 * 4 + 2 * 4 + 12 + 2 * 8 + 21;

    /// An empty cache of at most `budget_bytes`.
    pub fn new(budget_bytes: usize, hash_seed: u64) -> Cache<K, V> {
        let state = State {
            table: HashTable::new(),
            slots: Vec::new(),
            free: Vec::new(),
            small: VecDeque::new(),
            main: VecDeque::new(),
            small_bytes: 0,
            bytes: 0,
            ghost: VecDeque::new(),
            ghost_set: HashTable::new(),
            main_entries: 0,
            doomed: Vec::new(),
            sweep_at: 0,
            budget: budget_bytes,
        };
        let zero = || Cell::new(0);
        Cache { state: state.into(), hasher: Seeded(hash_seed), hits: zero(), misses: zero(), insertions: zero(), evictions: zero() }
    }

    /// The value at `key`; it counts as used.
    pub fn get<Q: Hash + Equivalent<K> + ?Sized>(&self, key: &Q) -> Option<V> {
        let mut state = self.state.borrow_mut();
        let state = &mut *state;
        let node =
            state.find(self.hasher.hash_one(key), |node| key.equivalent(node)).and_then(|slot| state.slots[slot as usize].node.as_mut());
        let node = node.filter(|node| !state.doomed.iter().any(|(group, _)| *group == node.key.group()));
        let Some(node) = node else {
            self.misses.set(self.misses.get() + 1);
            return None;
        };
        node.uses = (node.uses + 1).min(USES_MAX);
        self.hits.set(self.hits.get() + 1);
        Some(node.value.clone())
    }

    /// Puts a value in, in place of an older one. What is larger than the small queue's share is not taken.
    pub fn insert(&self, key: K, value: V) {
        let hash = self.hasher.hash_one(&key);
        let mut state = self.state.borrow_mut();
        let bytes = Self::ENTRY_BYTES + key.heap_bytes() + value.heap_bytes();
        state.sweep(SWEEP_SLOTS, &self.hasher);
        let found = state.find(hash, |other| *other == key);
        if bytes > state.budget / SMALL_SHARE || state.doomed.iter().any(|(group, _)| *group == key.group()) {
            found.map(|slot| state.take(slot, &self.hasher));
            return;
        }
        self.insertions.set(self.insertions.get() + 1);
        if let Some(slot) = found {
            state.replace(slot, value, bytes);
            return self.make_room(&mut state, 0);
        }
        let queue = if state.forget_ghost(hash) { Queue::Main } else { Queue::Small };
        self.make_room(&mut state, bytes);
        state.add(Node { key, value, bytes, uses: 0, queue }, hash, &self.hasher);
    }

    /// Takes one entry out.
    pub fn remove<Q: Hash + Equivalent<K> + ?Sized>(&self, key: &Q) -> Option<V> {
        let mut state = self.state.borrow_mut();
        let slot = state.find(self.hasher.hash_one(key), |node| key.equivalent(node))?;
        state.take(slot, &self.hasher).map(|node| node.value)
    }

    /// Every entry of a group is gone at once for readers; the memory comes back over the following insertions. Groups are not reused.
    pub fn remove_group(&self, group: u64) {
        let mut state = self.state.borrow_mut();
        let slots = state.slots.len();
        if slots > 0 {
            state.doomed.push((group, slots));
        }
        state.sweep(SWEEP_SLOTS, &self.hasher);
    }

    /// A new budget; a smaller one takes effect at once.
    pub fn set_budget(&self, bytes: usize) {
        let mut state = self.state.borrow_mut();
        state.budget = bytes;
        self.make_room(&mut state, 0);
    }

    pub fn stats(&self) -> CacheStats {
        let state = self.state.borrow();
        CacheStats {
            hits: self.hits.get(),
            misses: self.misses.get(),
            insertions: self.insertions.get(),
            evictions: self.evictions.get(),
            entries: state.table.len(),
            bytes: state.bytes,
            budget_bytes: state.budget,
        }
    }

    fn make_room(&self, state: &mut State<K, V>, bytes: usize) {
        let before = state.table.len();
        while state.bytes + bytes > state.budget && state.evict(&self.hasher) {}
        self.evictions.set(self.evictions.get() + (before - state.table.len()) as u64);
    }
}

impl<K: CacheKey, V: CacheValue> State<K, V> {
    fn find(&self, hash: u64, is: impl Fn(&K) -> bool) -> Option<u32> {
        self.table.find(hash, |&slot| self.slots[slot as usize].node.as_ref().is_some_and(|node| is(&node.key))).copied()
    }

    fn add(&mut self, node: Node<K, V>, hash: u64, hasher: &Seeded) {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot { node: None });
            (self.slots.len() - 1) as u32
        });
        self.bytes += node.bytes;
        match node.queue {
            Queue::Small => {
                self.small.push_back(slot);
                self.small_bytes += node.bytes;
            }
            Queue::Main => {
                self.main.push_back(slot);
                self.main_entries += 1;
            }
        }
        self.slots[slot as usize].node = Some(node);
        let slots = &self.slots;
        let rehash = |&slot: &u32| slots[slot as usize].node.as_ref().map_or(0, |node| hasher.hash_one(&node.key));
        self.table.insert_unique(hash, slot, rehash);
    }

    /// Takes the entry out of a slot that stays in its queue. The slot's own bytes stay counted until it comes to the front.
    fn take(&mut self, slot: u32, hasher: &Seeded) -> Option<Node<K, V>> {
        let node = self.detach(slot, hasher)?;
        self.bytes += Cache::<K, V>::ENTRY_BYTES;
        if node.queue == Queue::Small {
            self.small_bytes += Cache::<K, V>::ENTRY_BYTES;
        }
        // The small queue moves all the time; the main one might keep its empty slots for long, so it is turned until they are few.
        for _ in 0..2 * SWEEP_SLOTS {
            if (self.main.len() - self.main_entries) * 4 <= self.main.len() {
                break;
            }
            let Some(slot) = self.main.pop_front() else { break };
            match self.slots[slot as usize].node {
                Some(_) => self.main.push_back(slot),
                None => self.release(slot, Queue::Main),
            }
        }
        Some(node)
    }

    /// Another value under the same key.
    fn replace(&mut self, slot: u32, value: V, bytes: usize) {
        let Some(node) = self.slots[slot as usize].node.as_mut() else { return };
        node.value = value;
        let before = std::mem::replace(&mut node.bytes, bytes);
        self.bytes = self.bytes - before + bytes;
        if node.queue == Queue::Small {
            self.small_bytes = self.small_bytes - before + bytes;
        }
    }

    fn detach(&mut self, slot: u32, hasher: &Seeded) -> Option<Node<K, V>> {
        let node = self.slots[slot as usize].node.take()?;
        if let Ok(found) = self.table.find_entry(hasher.hash_one(&node.key), |&other| other == slot) {
            found.remove();
        }
        self.bytes -= node.bytes;
        match node.queue {
            Queue::Small => self.small_bytes -= node.bytes,
            Queue::Main => self.main_entries -= 1,
        }
        Some(node)
    }

    /// A slot at the front of its queue without an entry: free again.
    fn release(&mut self, slot: u32, queue: Queue) {
        self.free.push(slot);
        self.bytes -= Cache::<K, V>::ENTRY_BYTES;
        if queue == Queue::Small {
            self.small_bytes -= Cache::<K, V>::ENTRY_BYTES;
        }
    }

    /// One step towards less memory; false when nothing is left.
    fn evict(&mut self, hasher: &Seeded) -> bool {
        let mut passes = 0;
        loop {
            let from_small = self.main.is_empty() || self.small_bytes > self.budget / SMALL_SHARE;
            let (queue, front) = match from_small {
                true => (Queue::Small, self.small.pop_front()),
                false => (Queue::Main, self.main.pop_front()),
            };
            let Some(slot) = front else { return false };
            let Some(node) = self.slots[slot as usize].node.as_mut() else {
                self.release(slot, queue);
                return true;
            };
            match queue {
                Queue::Small if node.uses > 1 => {
                    node.queue = Queue::Main;
                    node.uses = 0;
                    self.small_bytes -= node.bytes;
                    self.main_entries += 1;
                    self.main.push_back(slot);
                }
                Queue::Main if node.uses > 0 && passes < PASSES_MAX => {
                    passes += 1;
                    node.uses -= 1;
                    self.main.push_back(slot);
                }
                _ => {
                    let gone = self.detach(slot, hasher);
                    self.free.push(slot);
                    if queue == Queue::Small
                        && let Some(node) = gone
                    {
                        self.remember_ghost(hasher.hash_one(&node.key));
                    }
                    return true;
                }
            }
        }
    }

    fn remember_ghost(&mut self, hash: u64) {
        // As many as the main queue has entries (and a few for the beginning), as the paper says.
        while self.ghost.len() > self.main_entries.max(self.table.len() / 2) {
            let Some(oldest) = self.ghost.pop_front() else { break };
            self.forget_ghost(oldest);
        }
        if self.ghost.len() < self.table.len() && self.ghost_set.find(hash, |&other| other == hash).is_none() {
            self.ghost_set.insert_unique(hash, hash, |&hash| hash);
            self.ghost.push_back(hash);
        }
    }

    /// True if it was remembered.
    fn forget_ghost(&mut self, hash: u64) -> bool {
        match self.ghost_set.find_entry(hash, |&other| other == hash) {
            Ok(found) => {
                found.remove();
                true
            }
            Err(_) => false,
        }
    }

    /// Looks at some slots for entries of removed groups.
    fn sweep(&mut self, slots: usize, hasher: &Seeded) {
        if self.doomed.is_empty() {
            return;
        }
        for _ in 0..slots.min(self.slots.len()) {
            self.sweep_at = (self.sweep_at + 1) % self.slots.len();
            let slot = &self.slots[self.sweep_at];
            let group = slot.node.as_ref().map(|node| node.key.group());
            if group.is_some_and(|group| self.doomed.iter().any(|(doomed, _)| *doomed == group)) {
                self.take(self.sweep_at as u32, hasher);
            }
            self.doomed.iter_mut().for_each(|(_, left)| *left = left.saturating_sub(1));
        }
        self.doomed.retain(|(_, left)| *left > 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::prng::Prng;
    use std::rc::Rc;

    impl CacheKey for (u64, u64) {
        fn group(&self) -> u64 {
            self.0
        }
    }

    impl CacheValue for Rc<Vec<u8>> {
        fn heap_bytes(&self) -> usize {
            self.len() + size_of::<Vec<u8>>() + 16
        }
    }

    type Blocks = Cache<(u64, u64), Rc<Vec<u8>>>;

    fn check(cache: &Blocks) {
        let state = cache.state.borrow();
        let live: usize = state.slots.iter().filter_map(|slot| slot.node.as_ref()).map(|node| node.bytes).sum();
        let dead = state.slots.iter().filter(|slot| slot.node.is_none()).count() - state.free.len();
        assert_eq!(state.bytes, live + dead * Blocks::ENTRY_BYTES);
        assert_eq!(state.table.len() + dead + state.free.len(), state.slots.len());
        assert_eq!(state.small.len() + state.main.len(), state.table.len() + dead);
        assert!(state.bytes <= state.budget, "{} of {}", state.bytes, state.budget);
        assert!(state.ghost_set.len() <= state.ghost.len());
    }

    #[test]
    fn bytes_never_exceed_the_budget_and_values_are_what_was_put() {
        for seed in 0..20 {
            let mut prng = Prng::new(seed);
            let cache = Blocks::new(60_000, seed);
            for step in 0..20_000u64 {
                let key = (prng.below(4) + 4 * (step / 3000), prng.below(80));
                match prng.below(20) {
                    0 => drop(cache.remove(&key)),
                    1 if prng.one_in(50) => cache.remove_group(step / 3000 * 4 - prng.below(2).min(step / 3000 * 4)),
                    2 if prng.one_in(50) => cache.set_budget(20_000 + prng.below(60_000) as usize),
                    3..=8 => cache.insert(key, Rc::new(vec![key.1 as u8; prng.below(2500) as usize])),
                    _ => {
                        if let Some(value) = cache.get(&key) {
                            assert!(value.iter().all(|&byte| byte == key.1 as u8));
                        }
                    }
                }
                if step % 7 == 0 {
                    check(&cache);
                }
            }
            assert!(cache.stats().hits > 500 && cache.stats().evictions > 500, "{:?}", cache.stats());
        }
    }

    #[test]
    fn a_scan_does_not_evict_the_hot_set() {
        let cache = Blocks::new(1 << 20, 1);
        let value = || Rc::new(vec![0u8; 4000]);
        let mut prng = Prng::new(3);
        let mut ask = |cache: &Blocks, rounds: u32| {
            (0..rounds)
                .filter(|_| {
                    let key = (1, prng.below(150));
                    let hit = cache.get(&key).is_some();
                    if !hit {
                        cache.insert(key, value());
                    }
                    hit
                })
                .count()
        };
        ask(&cache, 5000);
        let before = ask(&cache, 1000);
        assert!(before >= 990, "{before}");
        (0..10_000).for_each(|n| cache.insert((2, n), value()));
        let after = ask(&cache, 1000);
        assert!(after >= 950, "{after}");
    }

    #[test]
    fn a_removed_group_is_gone_at_once_and_its_memory_soon() {
        let cache = Blocks::new(1 << 20, 1);
        (0..200).for_each(|n| cache.insert((n % 2, n), Rc::new(vec![0; 1000])));
        cache.remove_group(1);
        assert!((0..100).all(|n| cache.get(&(1, 2 * n + 1)).is_none()));
        assert!((0..100).all(|n| cache.get(&(0, 2 * n)).is_some()));
        (0..40).for_each(|n| cache.insert((5, n), Rc::new(vec![0; 10])));
        assert!(cache.state.borrow().doomed.is_empty());
        assert_eq!(cache.stats().entries, 140);
        check(&cache);
    }

    #[test]
    fn the_memory_of_the_structure_is_within_what_is_counted_for_it() {
        let cache = Blocks::new(4 << 20, 1);
        let empty = Rc::new(Vec::new());
        (0..300_000u64).for_each(|n| {
            cache.insert((0, n % 40_000), empty.clone());
            cache.get(&(0, n % 40_000 / 2));
        });
        let state = cache.state.borrow();
        let real = state.slots.capacity() * size_of::<Slot<(u64, u64), Rc<Vec<u8>>>>()
            + (state.free.capacity() + state.small.capacity() + state.main.capacity()) * 4
            + state.ghost.capacity() * 8
            + state.table.allocation_size()
            + state.ghost_set.allocation_size();
        assert!(state.table.len() > 10_000);
        assert!(real <= state.budget, "{real} of {}", state.budget);
    }
}
