//! A hint to the processor: this line of memory is needed soon.

/// Begins to load the cache line that holds the first element. Where the processor has no such instruction, nothing.
#[inline(always)]
pub fn prefetch<T>(slice: &[T]) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    // SAFETY: a prefetch reads nothing that the program can see and faults at no address; the pointer is a reference's.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(slice.as_ptr().cast());
    }
    #[cfg(any(not(target_arch = "x86_64"), miri))]
    let _ = slice;
}
