//! Where the time of a step goes, by operation.
//!
//! Owns the clocks: [`scope`] times what is done while it lives, under a name. Scopes nest and
//! an operation's time is its own, without that of the scopes within it, so that all times add
//! up to the whole. A node of the graph (see `native`) that is made within a scope has its
//! backward pass timed under the same name. Does not own what the times are good for.
//!
//! Off, a scope costs one relaxed load. The clock is the processor's: of work that a device
//! does on its own it sees the launch alone.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

static ON: AtomicBool = AtomicBool::new(false);
static TOTALS: Mutex<BTreeMap<Key, Total>> = Mutex::new(BTreeMap::new());
/// Held while somebody measures: there is one set of totals.
static MEASURING: Mutex<()> = Mutex::new(());

thread_local! {
    /// The innermost open scope of this thread.
    static CURRENT: Cell<Option<&'static str>> = const { Cell::new(None) };
    /// Time of the closed scopes within it.
    static WITHIN: Cell<Duration> = const { Cell::new(Duration::ZERO) };
}

/// Name, and whether it is the backward pass.
type Key = (&'static str, bool);

#[derive(Clone, Copy, Debug, Default)]
struct Total {
    time: Duration,
    calls: u64,
}

/// What an operation took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Operation {
    /// As its scope calls it.
    pub name: &'static str,
    /// Whether it is the backward pass of nodes made in that scope.
    pub backward: bool,
    /// Without that of scopes within it.
    pub time: Duration,
    /// How often its scope was entered.
    pub calls: u64,
}

/// Times what is done until it is dropped.
#[derive(Debug)]
#[must_use = "a scope ends where it is dropped"]
pub struct Scope(Option<Open>);

#[derive(Debug)]
struct Open {
    key: Key,
    began: Instant,
    /// What was open before, and the time within it until then.
    outer: (Option<&'static str>, Duration),
}

/// Times an operation, if anybody wants to know.
pub fn scope(name: &'static str) -> Scope {
    Scope::open((name, false))
}

/// Times the backward pass of nodes that were made in a scope of this name.
pub(super) fn backward(name: Option<&'static str>) -> Scope {
    name.map_or(Scope(None), |name| Scope::open((name, true)))
}

/// The innermost open scope of this thread.
pub(super) fn current() -> Option<&'static str> {
    CURRENT.get()
}

/// Does some work with the clocks on; gives what it took, by name.
pub fn measure<T>(work: impl FnOnce() -> T) -> (T, Vec<Operation>) {
    let _one = MEASURING.lock().unwrap_or_else(PoisonError::into_inner);
    let totals = || TOTALS.lock().unwrap_or_else(PoisonError::into_inner);
    totals().clear();
    ON.store(true, Ordering::Relaxed);
    let result = work();
    ON.store(false, Ordering::Relaxed);
    let operation =
        |((name, backward), Total { time, calls })| Operation { name, backward, time, calls };
    let measured = std::mem::take(&mut *totals()).into_iter().map(operation).collect();
    (result, measured)
}

impl Scope {
    fn open(key: Key) -> Self {
        if !ON.load(Ordering::Relaxed) {
            return Self(None);
        }
        let outer = (CURRENT.replace(Some(key.0)), WITHIN.take());
        Self(Some(Open { key, began: Instant::now(), outer }))
    }
}

impl Drop for Scope {
    fn drop(&mut self) {
        let Some(Open { key, began, outer: (name, within) }) = self.0.take() else { return };
        let time = began.elapsed();
        let own = time.saturating_sub(WITHIN.get());
        CURRENT.set(name);
        WITHIN.set(within + time);
        let mut totals = TOTALS.lock().unwrap_or_else(PoisonError::into_inner);
        let total = totals.entry(key).or_default();
        total.time += own;
        total.calls += 1;
    }
}

#[cfg(test)]
mod tests {
    use std::thread::sleep;

    use tch::{Kind, Tensor};

    use super::*;
    use crate::ops::native::node;

    const NAP: Duration = Duration::from_millis(20);

    /// Other tests may run models meanwhile: only names of this test's own are looked at.
    fn find(measured: &[Operation], name: &str, backward: bool) -> Operation {
        let its = |operation: &&Operation| operation.name == name && operation.backward == backward;
        *measured.iter().find(its).unwrap_or_else(|| panic!("no `{name}`, {backward}"))
    }

    #[test]
    fn a_scope_counts_its_own_time_alone() {
        let whole = Instant::now();
        let ((), measured) = measure(|| {
            let _outer = scope("test outer");
            sleep(NAP);
            for _ in 0..2 {
                let _inner = scope("test inner");
                sleep(NAP);
            }
        });
        let whole = whole.elapsed();
        let (outer, inner) =
            (find(&measured, "test outer", false), find(&measured, "test inner", false));
        assert_eq!((outer.calls, inner.calls), (1, 2));
        assert!(outer.time >= NAP && inner.time >= 2 * NAP, "{outer:?} {inner:?}");
        assert!(outer.time + inner.time <= whole, "{outer:?} {inner:?} {whole:?}");
    }

    #[test]
    fn off_nothing_is_counted() {
        drop(scope("test off"));
        let ((), measured) = measure(|| ());
        assert!(measured.iter().all(|operation| operation.name != "test off"));
    }

    #[test]
    fn the_backward_pass_of_a_node_goes_by_the_scope_it_was_made_in() {
        let ((), measured) = measure(|| {
            let x = Tensor::from_slice(&[1.0f32]).set_requires_grad(true);
            let made = {
                let _scope = scope("test node");
                node(&[&x], vec![tch::no_grad(|| &x * 2.0)], |_| {
                    sleep(NAP);
                    Ok(vec![None])
                })
                .unwrap()
            };
            let _scope = scope("test backward");
            made[0].sum(Kind::Float).backward();
        });
        assert!(find(&measured, "test node", true).time >= NAP);
        assert_eq!(find(&measured, "test node", false).calls, 1);
        assert_eq!(find(&measured, "test backward", false).calls, 1);
    }

    #[test]
    fn an_error_or_a_panic_closes_its_scope() {
        let ((), _) = measure(|| {
            let fell = std::panic::catch_unwind(|| {
                let _scope = scope("test panic");
                panic!("out of reach");
            });
            assert!(fell.is_err());
            assert_eq!(current(), None);
        });
    }
}
