//! Buffers that the kernel fills with what a socket received: a provided-buffer ring (io_uring_register_buf_ring(3)).
//!
//! A received chunk lies where the kernel put it, and the buffer goes back to the ring when the chunk is dropped. A reader who keeps
//! many chunks must not starve the other connections: while less than a quarter of the buffers is with the kernel, a chunk is copied out.
//!
//! A driver without io_uring takes the buffers from the ring itself (`fill`), in the kernel's place.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::cell::Cell;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::types::BufRingEntry;

const PAGE_BYTES: usize = 4096;

/// The ring of descriptors and the memory of its buffers.
#[derive(Debug)]
pub(super) struct BufferRing {
    descriptors: *mut BufRingEntry,
    memory: *mut u8,
    count: u16,
    buffer_bytes: u32,
    tail: Cell<u16>,
    /// The next entry that `fill` takes; the kernel has its own.
    head: Cell<u16>,
    /// Buffers that the kernel may fill (or has filled in completions that were not taken yet).
    free: Cell<u16>,
}

impl BufferRing {
    /// `count` buffers (a power of two) of `buffer_bytes`, all free.
    pub(super) fn new(count: u16, buffer_bytes: u32) -> BufferRing {
        assert!(count.is_power_of_two() && count <= 1 << 15 && buffer_bytes > 0);
        let descriptors: *mut BufRingEntry = allocate(Self::descriptors_layout(count)).cast();
        let memory = allocate(Self::memory_layout(count, buffer_bytes));
        let ring = BufferRing { descriptors, memory, count, buffer_bytes, tail: Cell::new(0), head: Cell::new(0), free: Cell::new(0) };
        (0..count).for_each(|buffer| ring.give_back(buffer));
        ring
    }

    fn descriptors_layout(count: u16) -> Layout {
        Layout::from_size_align(usize::from(count) * size_of::<BufRingEntry>(), PAGE_BYTES).expect("bounded by 2^15 entries")
    }

    fn memory_layout(count: u16, buffer_bytes: u32) -> Layout {
        Layout::from_size_align(usize::from(count) * buffer_bytes as usize, PAGE_BYTES).expect("bounded by 2^47 bytes")
    }

    pub(super) fn address(&self) -> u64 {
        self.descriptors as u64
    }

    pub(super) fn count(&self) -> u16 {
        self.count
    }

    pub(super) fn has_free(&self) -> bool {
        self.free.get() > 0
    }

    /// What the kernel does with a ring that it knows: takes the next free buffer and lets `receive` fill it from its start. The buffer
    /// and its length; `None` if no buffer is free, and nothing was received. A buffer that was not filled stays in the ring.
    pub(super) fn fill(&self, receive: impl FnOnce(&mut [u8]) -> std::io::Result<usize>) -> Option<std::io::Result<(u16, u32)>> {
        if !self.has_free() {
            return None;
        }
        // SAFETY: entries from head to tail were written by `give_back`, and the index is masked into the allocation.
        let buffer = unsafe { (*self.descriptors.add(usize::from(self.head.get() & (self.count - 1)))).bid() };
        // SAFETY: the buffer lies within the allocation, and a free one has no chunk, so this borrow is the only one.
        let room = unsafe {
            let start = self.memory.add(usize::from(buffer) * self.buffer_bytes as usize);
            std::slice::from_raw_parts_mut(start, self.buffer_bytes as usize)
        };
        let filled = receive(room);
        if filled.as_ref().is_ok_and(|bytes| *bytes > 0) {
            self.head.set(self.head.get().wrapping_add(1));
        }
        Some(filled.map(|bytes| (buffer, bytes as u32)))
    }

    /// `buffer` was filled and told so: by the kernel, or by `fill`.
    pub(super) fn taken(&self, buffer: u16) {
        assert!(buffer < self.count && self.free.get() > 0);
        self.free.set(self.free.get() - 1);
    }

    /// A chunk of this ring should be copied out: too many buffers are away.
    pub(super) fn is_short(&self) -> bool {
        self.free.get() < self.count / 4
    }

    pub(super) fn bytes(&self, buffer: u16, len: u32) -> &[u8] {
        assert!(buffer < self.count && len <= self.buffer_bytes);
        // SAFETY: within the allocation by the assertion; the kernel has handed the buffer over (`taken`) and gets it back only by
        // `give_back`, which the one owner of the chunk calls when it is dropped.
        unsafe { std::slice::from_raw_parts(self.memory.add(usize::from(buffer) * self.buffer_bytes as usize), len as usize) }
    }

    /// The kernel may fill this buffer again.
    pub(super) fn give_back(&self, buffer: u16) {
        assert!(buffer < self.count && self.free.get() < self.count);
        let tail = self.tail.get();
        // SAFETY: the index is masked into the allocation of `count` entries; the kernel does not read entries at or after the tail,
        // and only this thread writes them. The tail lies in the reserved field of the first entry, which no setter touches.
        unsafe {
            let entry = &mut *self.descriptors.add(usize::from(tail & (self.count - 1)));
            entry.set_addr(self.memory.add(usize::from(buffer) * self.buffer_bytes as usize) as u64);
            entry.set_len(self.buffer_bytes);
            entry.set_bid(buffer);
            let shared = BufRingEntry::tail(self.descriptors).cast_mut();
            AtomicU16::from_ptr(shared).store(tail.wrapping_add(1), Ordering::Release);
        }
        self.tail.set(tail.wrapping_add(1));
        self.free.set(self.free.get() + 1);
    }
}

impl Drop for BufferRing {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with these layouts; the driver unregisters the ring before it lets go of it, and chunks hold it.
        unsafe {
            dealloc(self.descriptors.cast(), Self::descriptors_layout(self.count));
            dealloc(self.memory, Self::memory_layout(self.count, self.buffer_bytes));
        }
    }
}

fn allocate(layout: Layout) -> *mut u8 {
    // SAFETY: the layout's size is not zero (`new` asserts both factors).
    let memory = unsafe { alloc_zeroed(layout) };
    if memory.is_null() {
        handle_alloc_error(layout);
    }
    memory
}
