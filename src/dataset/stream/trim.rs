//! Giving freed memory back.
//!
//! Documents are made by some threads and freed by another, between buffers that are a
//! thousand times their size. The C library keeps what lies free between those that live, more
//! of it the longer a run takes; `docs/log.md` has what this takes away of it, and what not.

/// Returns whole pages that nothing uses to the system; nothing where the C library cannot.
pub(super) fn trim() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        #[expect(unsafe_code, reason = "a function of the C library that no crate wraps")]
        // SAFETY: it takes no pointer, and may be called by any thread at any time.
        unsafe {
            libc::malloc_trim(0)
        };
    }
}
