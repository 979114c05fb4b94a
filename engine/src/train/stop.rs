//! What SIGINT and SIGTERM do: Ctrl-C, and the grace that Slurm and Kubernetes give.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::Result;

/// Listens to signals.
#[derive(Debug)]
pub struct Stop {
    /// Set by the first signal; a second one ends the program at once.
    pub asked: Arc<AtomicBool>,
    armed: Arc<AtomicBool>,
}

impl Stop {
    /// Listens from now on.
    pub fn on_signals() -> Result<Self> {
        let stop = Self { asked: Arc::default(), armed: Arc::default() };
        for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
            // In this order: the first signal only arms the end that the second one brings.
            signal_hook::flag::register_conditional_shutdown(signal, 1, Arc::clone(&stop.armed))?;
            signal_hook::flag::register(signal, Arc::clone(&stop.armed))?;
            signal_hook::flag::register(signal, Arc::clone(&stop.asked))?;
        }
        Ok(stop)
    }

    /// From now on the first signal ends the program.
    pub fn end_at_once(&self) {
        self.armed.store(true, Ordering::Relaxed);
    }
}
