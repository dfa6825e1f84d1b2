//! What the C library's allocator keeps of memory that is free already.

/// Has the allocator keep little: one heap for all threads, whose end goes back to the kernel as soon as 128 KiB of it are free,
/// and mappings of their own, which go back at once, for what is larger than that.
///
/// Left to itself the GNU library gives each thread a heap of its own, where what a list of thousands of nodes took once stays
/// for good, and asks for ever larger blocks before it returns any (mallopt(3): both thresholds follow the largest block that was
/// freed, up to 32 MiB). To be called before there is a second thread. Other C libraries keep little by themselves.
pub fn keep_little() {
    #[cfg(target_env = "gnu")]
    for (parameter, value) in
        [(libc::M_ARENA_MAX, 1), (libc::M_TRIM_THRESHOLD, THRESHOLD), (libc::M_MMAP_THRESHOLD, THRESHOLD)]
    {
        // SAFETY: two numbers; what it cannot make use of it refuses, and then all stays as it was.
        unsafe { libc::mallopt(parameter, value) };
    }
}

/// The library's own first value of both thresholds, in bytes; one that is set stays.
#[cfg(target_env = "gnu")]
const THRESHOLD: libc::c_int = 128 << 10;

/// Has the allocator give back what is free between blocks in use, page by page (malloc_trim(3)); by itself it does so at the end of
/// the heap only. It looks at all that is free, which takes milliseconds where that is much.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes the number of bytes that shall stay free at the end of the heap, and touches nothing that is in use.
    unsafe {
        libc::malloc_trim(0);
    }
}
