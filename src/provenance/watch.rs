//! What a running job hears of withdrawals.
//!
//! Owns looking at the ledgers again and saying which documents may be used no longer. Does
//! not own when a job looks, nor what it does then.

use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};

use jiff::Timestamp;

use super::affected::{self, AffectedError};
use crate::dataset::consent::Ask;
use crate::dataset::ledger::{Head, LedgerError, Withdrawals};
use crate::dataset::stream::{Record, Refused};
use crate::recipe::Consent;

/// The ledgers of a run, looked at now and then.
#[derive(Debug)]
pub struct Watch {
    /// What the run asks, and when it was last looked.
    now: RwLock<(Ask, Withdrawals)>,
}

impl Watch {
    /// Looks at the ledgers of a run, which must go on from where they were when it began.
    pub fn open(consent: &Consent, ask: Ask, began: &[Head]) -> Result<Arc<Self>, LedgerError> {
        let withdrawals = Withdrawals::open(&consent.ledgers)?;
        withdrawals.extends(began)?;
        let now = RwLock::new((until_now(ask), withdrawals));
        Ok(Arc::new(Self { now }))
    }

    /// Looks again; whether more may bind than before. Cheap while nothing has changed and the
    /// planned end is to come: after it, events take effect that were known all along.
    pub fn look(&self) -> Result<bool, LedgerError> {
        let mut now = self.now.write().unwrap_or_else(PoisonError::into_inner);
        let until = now.0.until;
        now.0 = until_now(now.0.clone());
        Ok(now.1.refresh()? || now.0.until > until)
    }

    /// How far the ledgers had grown at the last look.
    pub fn heads(&self) -> Vec<Head> {
        self.now.read().unwrap_or_else(PoisonError::into_inner).1.heads()
    }

    /// Whether there is any event to heed.
    pub fn is_empty(&self) -> bool {
        self.now.read().unwrap_or_else(PoisonError::into_inner).1.is_empty()
    }

    /// Says of every document, at any time, what is known by then.
    pub fn refused(self: &Arc<Self>) -> Refused {
        let watch = Arc::clone(self);
        Arc::new(move |record: &Record| {
            let now = watch.now.read().unwrap_or_else(PoisonError::into_inner);
            now.1.find(&record.id, record.subject.as_ref(), &now.0).is_some()
        })
    }

    /// Rows that a run has used and may use no longer, by its private index.
    pub fn concerned(&self, index: &Path) -> Result<u64, AffectedError> {
        let now = self.now.read().unwrap_or_else(PoisonError::into_inner);
        affected::used_rows(index, &now.1, &now.0)
    }
}

/// An event binds once it is in effect, also beyond the planned end.
fn until_now(ask: Ask) -> Ask {
    let until = ask.until.max(Timestamp::now());
    Ask { until, ..ask }
}
