//! Turning a panic of a decoder into an error.
//!
//! The Parquet decoder asserts its way through some damaged files. A damaged file is the
//! user's to replace, not a defect of ours, so its panics end here, unprinted.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::sync::Once;

thread_local! {
    static CONTAINED: Cell<bool> = const { Cell::new(false) };
}

/// Runs `decode`; `None` when it panics. What it worked on must not be used again.
pub(crate) fn contain<T>(decode: impl FnOnce() -> T) -> Option<T> {
    static QUIET: Once = Once::new();
    QUIET.call_once(|| {
        let loud = take_hook();
        set_hook(Box::new(move |panic| {
            if !CONTAINED.get() {
                loud(panic);
            }
        }));
    });
    let outer = CONTAINED.replace(true);
    let result = catch_unwind(AssertUnwindSafe(decode));
    CONTAINED.set(outer);
    result.ok()
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_panic_becomes_nothing_and_the_next_call_works() {
        assert_eq!(super::contain(|| -> u8 { panic!("quiet") }), None);
        assert_eq!(super::contain(|| 1), Some(1));
        assert!(!super::CONTAINED.get());
    }
}
