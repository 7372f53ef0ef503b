//! How the C library's allocator keeps memory.
//!
//! By itself it gives every few threads an arena of their own, up to eight a processor. The daemon
//! has many threads that each do a little of a build, so that every arena would end up with a few
//! live pieces between much that is free: several times the memory in use. Other C libraries have
//! one arena and need nothing. It also learns from what is freed to take ever larger pieces from
//! its arenas, where the buffers of builds leave holes that the tables' growth does not fill.

/// Fewer arenas, large pieces outside them; called once, before threads are started.
pub fn set_up() {
    #[cfg(target_env = "gnu")]
    {
        let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let arenas = i32::try_from(processors).unwrap_or(MOST_ARENAS).clamp(2, MOST_ARENAS);
        // SAFETY: takes two numbers each time; no other thread runs yet.
        unsafe {
            libc::mallopt(libc::M_ARENA_MAX, arenas);
            libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE);
            libc::mallopt(libc::M_TRIM_THRESHOLD, LARGE);
        }
    }
}

/// Gives free memory back to the system; for moments in which little happens.
pub fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: locks each arena itself.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Enough for as many threads as allocate at the same moment.
#[cfg(target_env = "gnu")]
const MOST_ARENAS: i32 = 8;

/// Pieces of this many bytes are mapped each by itself and given back when freed.
#[cfg(target_env = "gnu")]
const LARGE: i32 = 256 << 10;
