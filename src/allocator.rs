//! How the C library keeps the memory of this process.
//!
//! Owns three settings and a request, for programs that read more data than they hold. Rows are
//! made by some threads and freed by another, between buffers that are a thousand times their
//! size: left alone, the C library keeps what lies free between those that live, and more of
//! it the longer a run takes. `docs/log.md` has what each of them is worth. They change where
//! memory lies, never what is computed; other systems and C libraries are left as they are.

/// Buffers get pages of their own from this size on, which return to the system when they are
/// freed. The C library begins with twice as much, and raises it, up to 32 MiB, with every
/// large buffer that is freed; setting it stops that. What decompresses a column takes 96 kB,
/// mostly never touched, and there are hundreds of them at a time: in a heap, they would come
/// to lie on pages that were touched before.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const OWN_PAGES_BYTES: i32 = 64 << 10;

/// Settles, for the rest of the process, that large buffers return to the system when freed,
/// that heaps grow by no more than is asked for, and that there are as many of them as
/// processors, not eight times as many. For the start of
/// a program, before its threads; not for one that trains, which asks for the same large
/// tensors again at every step, and would wait for their pages to be cleared each time.
pub fn settle() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let heaps = i32::try_from(processors).unwrap_or(i32::MAX);
        #[expect(unsafe_code, reason = "a function of the C library that no crate wraps")]
        // SAFETY: it takes no pointer; what it does not know, it leaves as it is.
        unsafe {
            libc::mallopt(libc::M_MMAP_THRESHOLD, OWN_PAGES_BYTES);
            // Nor does a heap grow by more than is asked for, where they would find room, too.
            libc::mallopt(libc::M_TOP_PAD, 0);
            libc::mallopt(libc::M_ARENA_MAX, heaps);
        }
    }
}

/// Returns whole pages that nothing uses to the system; nothing where the C library cannot.
pub fn trim() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        #[expect(unsafe_code, reason = "a function of the C library that no crate wraps")]
        // SAFETY: it takes no pointer, and may be called by any thread at any time.
        unsafe {
            libc::malloc_trim(0)
        };
    }
}
