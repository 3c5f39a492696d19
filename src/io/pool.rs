//! The buffers of one core's disk operations, used again and again: no allocation, no zeroing and no page fault for each.
//!
//! Two kinds of memory. The slab is one allocation, cut at the start into buffers of a few blocks, which are what reads of clients and
//! groups of the log ask for; io_uring registers it whole, so that the kernel need not pin its pages for each operation. What is larger,
//! or comes when the slab is all out, is allocated, and kept for the next one within `POOL_IDLE_BYTES_MAX`.
//!
//! All of this memory was written once, with zeros or by an earlier operation: it is stale at worst, never uninitialized.

use crate::limits::{BLOCK_BYTES, POOL_BUFFER_BYTES_MAX, POOL_IDLE_BYTES_MAX, POOL_SLAB_BYTES};
use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::cell::{Cell, RefCell};
use std::ptr::NonNull;

/// Buffers of the slab: blocks of each (a power of two, ascending), and how many.
const LOTS: [(usize, usize); 4] = [(1, 128), (2, 128), (4, 16), (8, 8)];
/// Sizes of buffers that are kept: powers of two, in blocks.
const CLASSES: usize = (POOL_BUFFER_BYTES_MAX / BLOCK_BYTES).ilog2() as usize + 1;

const _: () = assert!(
    POOL_SLAB_BYTES == (LOTS[0].0 * LOTS[0].1 + LOTS[1].0 * LOTS[1].1 + LOTS[2].0 * LOTS[2].1 + LOTS[3].0 * LOTS[3].1) * BLOCK_BYTES
);
const _: () = assert!(POOL_BUFFER_BYTES_MAX.is_power_of_two() && POOL_BUFFER_BYTES_MAX >= BLOCK_BYTES);

/// Whole blocks of initialized memory, aligned to a block. Freed by whoever has it last (`free`), or never.
#[derive(Debug)]
pub(super) struct Blocks {
    start: NonNull<u8>,
    bytes: usize,
    in_slab: bool,
}

impl Blocks {
    /// No memory at all.
    pub(super) const NONE: Blocks = Blocks { start: NonNull::dangling(), bytes: 0, in_slab: false };

    /// Zeroed memory of its own; `bytes` are whole blocks.
    pub(super) fn zeroed(bytes: usize) -> Blocks {
        if bytes == 0 {
            return Blocks::NONE;
        }
        let layout = layout(bytes);
        // SAFETY: the layout's size is not zero.
        let start = NonNull::new(unsafe { alloc_zeroed(layout) }).unwrap_or_else(|| handle_alloc_error(layout));
        Blocks { start, bytes, in_slab: false }
    }

    pub(super) fn is_in_slab(&self) -> bool {
        self.in_slab
    }

    pub(super) fn as_slice(&self) -> &[u8] {
        // SAFETY: `bytes` initialized bytes from `start` on (none if dangling) that belong to this value alone.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.bytes) }
    }

    pub(super) fn as_slice_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and the borrow is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.bytes) }
    }

    /// Gives memory of its own back to the allocator; a part of a slab is only forgotten.
    pub(super) fn free(self) {
        if self.bytes > 0 && !self.in_slab {
            // SAFETY: allocated by `zeroed` with this layout, and `self` is gone.
            unsafe { dealloc(self.start.as_ptr(), layout(self.bytes)) }
        }
    }
}

fn layout(bytes: usize) -> Layout {
    Layout::from_size_align(bytes, BLOCK_BYTES).expect("buffers are far smaller than the address space")
}

/// One core's pool. Every buffer from it holds it, so it lives as long as the last of them.
#[derive(Debug)]
pub(super) struct Pool {
    slab: Blocks,
    /// Free parts of the slab, a list for each entry of `LOTS`.
    lots: RefCell<[Vec<Blocks>; LOTS.len()]>,
    /// Free memory outside the slab, by size.
    idle: RefCell<[Vec<Blocks>; CLASSES]>,
    idle_bytes: Cell<usize>,
}

impl Pool {
    pub(super) fn new() -> Pool {
        let slab = Blocks::zeroed(POOL_SLAB_BYTES);
        let mut at = 0;
        let lots = LOTS.map(|(blocks, count)| {
            let part = |_| {
                let bytes = blocks * BLOCK_BYTES;
                // SAFETY: the lots together are as large as the slab (asserted above), so this ends inside it.
                let start = unsafe { slab.start.add(at) };
                at += bytes;
                Blocks { start, bytes, in_slab: true }
            };
            (0..count).map(part).collect()
        });
        Pool { slab, lots: RefCell::new(lots), idle: RefCell::default(), idle_bytes: Cell::new(0) }
    }

    /// Where the slab begins, for its registration; it is `POOL_SLAB_BYTES` long.
    pub(super) fn slab_address(&self) -> *mut u8 {
        self.slab.start.as_ptr()
    }

    /// Memory of at least `bytes` (whole blocks, not none) with stale content.
    pub(super) fn take(&self, bytes: usize) -> Blocks {
        let blocks = bytes / BLOCK_BYTES;
        let fits = LOTS.iter().position(|lot| lot.0 >= blocks);
        if let Some(part) = fits.and_then(|lot| self.lots.borrow_mut()[lot].pop()) {
            return part;
        }
        match self.idle.borrow_mut().get_mut(class(blocks)).map(Vec::pop) {
            Some(Some(kept)) => {
                self.idle_bytes.set(self.idle_bytes.get() - kept.bytes);
                kept
            }
            Some(None) => Blocks::zeroed(blocks.next_power_of_two() * BLOCK_BYTES),
            None => Blocks::zeroed(bytes),
        }
    }

    /// Takes memory back that `take` gave.
    pub(super) fn give_back(&self, memory: Blocks) {
        let blocks = memory.bytes / BLOCK_BYTES;
        if memory.in_slab {
            let lot = LOTS.iter().position(|lot| lot.0 == blocks).expect("cut as the lots say");
            self.lots.borrow_mut()[lot].push(memory);
        } else if memory.bytes <= POOL_BUFFER_BYTES_MAX && self.idle_bytes.get() + memory.bytes <= POOL_IDLE_BYTES_MAX {
            self.idle_bytes.set(self.idle_bytes.get() + memory.bytes);
            self.idle.borrow_mut()[class(blocks)].push(memory);
        } else {
            memory.free();
        }
    }

    #[cfg(test)]
    fn idle_bytes(&self) -> usize {
        self.idle_bytes.get()
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.idle.get_mut().iter_mut().flat_map(std::mem::take).for_each(Blocks::free);
        std::mem::replace(&mut self.slab, Blocks::NONE).free();
    }
}

fn class(blocks: usize) -> usize {
    blocks.next_power_of_two().ilog2() as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all_of(pool: &Pool, bytes: usize, count: usize) -> Vec<Blocks> {
        (0..count).map(|_| pool.take(bytes)).collect()
    }

    #[test]
    fn buffers_lie_apart_and_aligned_and_the_slab_comes_first() {
        let pool = Pool::new();
        let mut taken: Vec<Blocks> = LOTS.iter().flat_map(|(blocks, count)| all_of(&pool, blocks * BLOCK_BYTES, *count)).collect();
        assert!(taken.iter().all(Blocks::is_in_slab));
        taken.extend(LOTS.iter().map(|(blocks, _)| pool.take(blocks * BLOCK_BYTES)));
        assert_eq!(taken.iter().filter(|memory| !memory.is_in_slab()).count(), LOTS.len(), "the slab is all out");
        let mut ranges: Vec<_> = taken.iter().map(|memory| memory.as_slice().as_ptr_range()).collect();
        ranges.sort_by_key(|range| range.start);
        assert!(ranges.iter().all(|range| range.start.addr().is_multiple_of(BLOCK_BYTES)));
        assert!(ranges.windows(2).all(|pair| pair[0].end <= pair[1].start));
        taken.into_iter().for_each(|memory| pool.give_back(memory));
        assert!(pool.take(BLOCK_BYTES).is_in_slab(), "they came back");
    }

    #[test]
    fn what_came_back_is_given_again_and_idle_memory_is_bounded() {
        let pool = Pool::new();
        let mut large = pool.take(3 * POOL_BUFFER_BYTES_MAX / 4);
        assert_eq!(large.bytes, POOL_BUFFER_BYTES_MAX, "rounded up, so that all of a size fit");
        large.as_slice_mut()[0] = 7;
        let start = large.as_slice().as_ptr();
        pool.give_back(large);
        assert_eq!(pool.idle_bytes(), POOL_BUFFER_BYTES_MAX);
        let again = pool.take(POOL_BUFFER_BYTES_MAX);
        assert_eq!((again.as_slice().as_ptr(), again.as_slice()[0], pool.idle_bytes()), (start, 7, 0));
        pool.give_back(again);

        let many = all_of(&pool, POOL_BUFFER_BYTES_MAX, 2 * POOL_IDLE_BYTES_MAX / POOL_BUFFER_BYTES_MAX);
        many.into_iter().for_each(|memory| pool.give_back(memory));
        assert_eq!(pool.idle_bytes(), POOL_IDLE_BYTES_MAX);

        let largest = pool.take(POOL_BUFFER_BYTES_MAX + BLOCK_BYTES);
        assert_eq!(largest.bytes, POOL_BUFFER_BYTES_MAX + BLOCK_BYTES, "too large to be kept: exactly what was asked for");
        pool.give_back(largest);
        assert_eq!(pool.idle_bytes(), POOL_IDLE_BYTES_MAX);
    }
}
