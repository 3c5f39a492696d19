//! Memory for tables that are read here and there: on huge pages where the kernel gives them.
//!
//! A random access into a few hundred MiB of 4 KiB pages misses the translation cache nearly always, and on a virtual machine such a miss
//! walks two page tables. With 2 MiB pages it hits. The memory is reserved at once and taken from the host only where it is touched.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};

const HUGE_PAGE_BYTES: usize = 2 * 1024 * 1024;
const LINE_BYTES: usize = 64;

/// Zeroed bytes of a fixed length, aligned to a cache line at least.
#[derive(Debug)]
pub struct Pages {
    start: *mut u8,
    bytes: usize,
    home: Home,
}

#[derive(Debug)]
enum Home {
    /// Small ones, and all where the address space is limited.
    Heap(Layout),
    Mapping {
        base: *mut libc::c_void,
        bytes: usize,
    },
}

impl Pages {
    /// `bytes` of zeros.
    pub fn new(bytes: usize) -> Pages {
        let mapped = if bytes >= HUGE_PAGE_BYTES && !cfg!(miri) { Pages::map(bytes) } else { None };
        mapped.unwrap_or_else(|| {
            let layout = Layout::from_size_align(bytes.max(1), LINE_BYTES).expect("less than the address space");
            // SAFETY: the layout is not of size 0.
            let start = unsafe { alloc_zeroed(layout) };
            if start.is_null() {
                handle_alloc_error(layout);
            }
            Pages { start, bytes, home: Home::Heap(layout) }
        })
    }

    fn map(bytes: usize) -> Option<Pages> {
        let mapped_bytes = bytes.checked_next_multiple_of(HUGE_PAGE_BYTES)?.checked_add(HUGE_PAGE_BYTES)?;
        let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE);
        // SAFETY: a new anonymous mapping at an address of the kernel's choice touches nobody's memory.
        let base = unsafe { libc::mmap(std::ptr::null_mut(), mapped_bytes, protection, flags, -1, 0) };
        if base == libc::MAP_FAILED {
            return None;
        }
        let skip = base.cast::<u8>().align_offset(HUGE_PAGE_BYTES);
        // SAFETY: `skip` is below HUGE_PAGE_BYTES, and the mapping is longer than that by `bytes` at least.
        let start = unsafe { base.cast::<u8>().add(skip) };
        // SAFETY: the range lies in the mapping. It is advice: a kernel without huge pages refuses it, and nothing else changes.
        let _ = unsafe { libc::madvise(start.cast(), mapped_bytes - HUGE_PAGE_BYTES, libc::MADV_HUGEPAGE) };
        Some(Pages { start, bytes, home: Home::Mapping { base, bytes: mapped_bytes } })
    }

    /// The same as words, without what is left of the last one.
    #[inline]
    pub fn words(&self) -> &[u32] {
        // SAFETY: `start` is aligned to a line, so many whole words lie in the `bytes` initialized bytes from there, and any bits are a
        // u32. They live as long as `self`, which is borrowed.
        unsafe { std::slice::from_raw_parts(self.start.cast(), self.bytes / 4) }
    }

    #[inline]
    pub fn words_mut(&mut self) -> &mut [u32] {
        // SAFETY: as in `words`; `self` is borrowed alone.
        unsafe { std::slice::from_raw_parts_mut(self.start.cast(), self.bytes / 4) }
    }
}

impl std::ops::Deref for Pages {
    type Target = [u8];
    #[inline]
    fn deref(&self) -> &[u8] {
        // SAFETY: so many bytes from `start` are this value's own, initialized to zero, and live as long as it.
        unsafe { std::slice::from_raw_parts(self.start, self.bytes) }
    }
}

impl std::ops::DerefMut for Pages {
    #[inline]
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`; `self` is borrowed alone.
        unsafe { std::slice::from_raw_parts_mut(self.start, self.bytes) }
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        match self.home {
            // SAFETY: exactly what `new` allocated, with its layout.
            Home::Heap(layout) => unsafe { dealloc(self.start, layout) },
            Home::Mapping { base, bytes } => {
                // SAFETY: exactly the mapping that `map` made, and no slice of it outlives `self`.
                let unmapped = unsafe { libc::munmap(base, bytes) };
                debug_assert_eq!(unmapped, 0);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_and_large_ones_are_zeroed_aligned_and_of_their_length() {
        for bytes in [0, 1, 63, 64, 4097, HUGE_PAGE_BYTES - 1, HUGE_PAGE_BYTES, 2 * HUGE_PAGE_BYTES + 5] {
            let mut pages = Pages::new(bytes);
            assert_eq!(pages.len(), bytes);
            assert!(pages.is_empty() || (pages.as_ptr() as usize).is_multiple_of(LINE_BYTES));
            assert!(pages.iter().all(|&byte| byte == 0));
            assert_eq!(pages.words().len(), bytes / 4);
            if let Some(last) = pages.last_mut() {
                *last = 7;
                assert_eq!(pages[bytes - 1], 7);
            }
        }
    }
}
