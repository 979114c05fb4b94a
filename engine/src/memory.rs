//! Memory of tensors on the CPU.
//!
//! Owns how it is asked of the system, so that a run takes what its tensors need at once and
//! nothing else: what [`heirloom::recipe::memory`] predicts.
//!
//! The C library grows one heap for blocks below a threshold that it raises whenever a larger
//! one is freed, up to 32 MiB. A weight that stays, made beside pieces of a file that go,
//! leaves holes in the heap that later weights do not fit; of activations, whose sizes change
//! from layer to layer, likewise. `docs/log.md` has what that took. With a threshold that stays
//! low every tensor would be a mapping of its own, without holes, and the system would clear
//! its pages anew for each of the thousands of a step. So the shim (`engine/shim/memory.cpp`)
//! gives libtorch blocks that are mappings of their own and are kept when they are freed.

#![expect(unsafe_code, reason = "functions of C++ that take a pointer to what they fill in")]

/// Bytes of large tensors (64 KiB and more), which are nearly all.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// In use now.
    pub live: u64,
    /// In use at most, so far.
    pub peak: u64,
    /// Held of the system: those in use and those kept for the next.
    pub held: u64,
}

unsafe extern "C" {
    safe fn heirloom_memory_of_blocks();
    fn heirloom_memory_usage(usage: *mut Usage);
    safe fn heirloom_memory_give_back();
}

/// From here on libtorch's tensors on the CPU lie in blocks. Those that are there already stay
/// where they are.
pub fn use_blocks() {
    heirloom_memory_of_blocks();
}

/// What tensors take since [`use_blocks`].
pub fn usage() -> Usage {
    let mut usage = Usage::default();
    // SAFETY: it is filled in, and nothing else.
    unsafe { heirloom_memory_usage(&raw mut usage) };
    usage
}

/// Gives back to the system what is held and not in use: before something that is no tensor
/// takes much.
pub fn give_back() {
    heirloom_memory_give_back();
}

/// The most memory this process had resident, where the system tells.
pub fn resident_peak() -> Option<u64> {
    of_status("VmHWM:")
}

/// What it has resident now.
pub fn resident() -> Option<u64> {
    of_status("VmRSS:")
}

/// Bytes on a line of Linux's `/proc/self/status`.
fn of_status(name: &str) -> Option<u64> {
    let status = fs_err::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024)
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind, Tensor};

    use super::*;

    fn bytes(size: i64) -> Tensor {
        // Written to, so that overlapping blocks would be seen.
        Tensor::full([size], size % 251, (Kind::Uint8, Device::Cpu))
    }

    /// One test, since what is counted belongs to the process.
    #[test]
    fn blocks_are_used_again_and_no_more_is_held_than_was_needed_at_once() {
        use_blocks();
        let mut held = Vec::new();
        let mut state = 7u64;
        for _ in 0..2000 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let draw = (state >> 33) as usize;
            if held.len() > 20 || (draw.is_multiple_of(3) && !held.is_empty()) {
                drop(held.swap_remove(draw % held.len()));
            } else {
                let size = 1 + (draw % 3_000_000) as i64;
                held.push((size, bytes(size)));
            }
            for (size, tensor) in held.iter().step_by(7) {
                assert_eq!(tensor.int64_value(&[0]), size % 251);
                assert_eq!(tensor.int64_value(&[size - 1]), size % 251);
            }
        }
        for (size, tensor) in &held {
            assert_eq!(tensor.min().int64_value(&[]), size % 251);
            assert_eq!(tensor.max().int64_value(&[]), size % 251);
        }
        drop(held);
        let before = usage();
        assert!(before.peak >= 8_000_000 && before.held > before.live, "{before:?}");
        assert!(before.held <= before.peak, "{before:?}");
        give_back();
        // Other tests may have tensors meanwhile.
        assert!(usage().held < before.held, "{:?}", usage());
    }

    #[test]
    fn a_tensor_that_the_system_has_no_room_for_is_an_error() {
        use_blocks();
        let huge = Tensor::f_empty([1 << 46], (Kind::Float, Device::Cpu));
        let message = huge.unwrap_err().to_string();
        assert!(message.contains("not enough memory for a tensor of"), "{message}");
    }
}
