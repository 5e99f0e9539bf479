//! No allocation on behalf of a stranger larger than NATS has messages.
//!
//! The `nats` crate makes room for what a frame *says* it holds, up to 4 GiB,
//! and touches it all before it reads a byte. Nothing lies between its socket
//! and that line but the allocator, which may neither fail (that ends the
//! process) nor unwind. So a thread of the crate that asks for more stops here
//! for good; its session is noticed to be dead and replaced, as after a panic.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::connection;

/// A server takes messages of 64 MiB at most, headers included
/// (`MAX_PAYLOAD_MAX_SIZE` in nats-server's `server/const.go`).
const LARGEST: usize = (64 << 20) + (64 << 10);
/// Threads that may stop here, each with what it holds; then the process ends.
const STOPPED_LIMIT: usize = 4;

static STOPPED: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    static TRUSTED: Cell<bool> = const { Cell::new(false) };
}

/// Lets the current thread allocate as much as it likes.
pub fn trust_this_thread() {
    TRUSTED.set(true);
}

/// The system's allocator, for honest sizes.
pub struct Bounded;

/// Whether to go on with an allocation of `size`.
fn is_honest(size: usize) -> bool {
    // While a thread ends its storage is gone: then it allocates no more than
    // its destructors need.
    if size <= LARGEST || TRUSTED.try_with(Cell::get).unwrap_or(true) {
        return true;
    }
    connection::note_panic();
    if STOPPED.fetch_add(1, Ordering::SeqCst) >= STOPPED_LIMIT {
        return false;
    }
    loop {
        std::thread::park();
    }
}

// SAFETY: each call is handed to the system's allocator as it came, or not
// made: null stands for memory that is not to be had.
#[allow(unsafe_code)]
unsafe impl GlobalAlloc for Bounded {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if !is_honest(layout.size()) {
            return std::ptr::null_mut();
        }
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if !is_honest(layout.size()) {
            return std::ptr::null_mut();
        }
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, old: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if !is_honest(size) {
            return std::ptr::null_mut();
        }
        unsafe { System.realloc(old, layout, size) }
    }

    unsafe fn dealloc(&self, old: *mut u8, layout: Layout) {
        unsafe { System.dealloc(old, layout) }
    }
}
