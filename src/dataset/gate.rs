//! The gate as a run asks it: what is asked, and what the ledgers say.
//!
//! Owns asking both at once. Does not own the rules (`consent`) nor the ledgers (`ledger`).

use std::path::{Path, PathBuf};

use super::consent::{
    self, Ask, ConsentColumns, ConsentError, Counts, Dataset, InLedger, Reason, judge_rows,
};
use super::ledger::{Head, LedgerError, Withdrawals};
use super::source::{SourceError, SourceFile};

/// What is asked of every row, with every withdrawal that is known.
#[derive(Debug)]
pub struct Gate {
    ask: Ask,
    withdrawals: Withdrawals,
    /// Whether any of them is by a subject, for what is asked.
    by_subjects: bool,
}

impl Gate {
    /// Asks for `ask`, with the ledgers as they are.
    pub fn open(ask: Ask, ledgers: &[PathBuf]) -> Result<Self, LedgerError> {
        Ok(Self::new(ask, Withdrawals::open(ledgers)?))
    }

    /// Asks for `ask` as when the ledgers had these heads: what they have said since is left
    /// for the stream to heed, whose order must not change.
    pub fn as_of(ask: Ask, ledgers: &[PathBuf], heads: &[Head]) -> Result<Self, LedgerError> {
        let withdrawals = Withdrawals::open(ledgers)?;
        withdrawals.extends(heads)?;
        Ok(Self::new(ask, withdrawals.as_of(heads)))
    }

    fn new(ask: Ask, withdrawals: Withdrawals) -> Self {
        let by_subjects = withdrawals.by_subjects(&ask);
        Self { ask, withdrawals, by_subjects }
    }

    /// Checks that these are the ledgers of these heads, grown or not.
    pub fn extends(&self, heads: &[Head]) -> Result<(), LedgerError> {
        self.withdrawals.extends(heads)
    }

    /// What is asked.
    pub fn ask(&self) -> &Ask {
        &self.ask
    }

    /// What the ledgers say.
    pub fn withdrawals(&self) -> &Withdrawals {
        &self.withdrawals
    }

    /// How far the ledgers have grown.
    pub fn heads(&self) -> Vec<Head> {
        self.withdrawals.heads()
    }

    /// Refuses a file whose data set is too old, or has a ledger where none is given.
    pub fn check(&self, path: &Path, dataset: &Dataset) -> Result<(), ConsentError> {
        let given: Vec<PathBuf> =
            self.withdrawals.heads().into_iter().map(|head| head.path).collect();
        dataset.check(path, self.ask.at, &given)
    }

    /// What the ledgers say of a row.
    pub fn in_ledger(&self, record: &str, subject: Option<&[u8; 32]>) -> InLedger {
        match self.withdrawals.find(record, subject, &self.ask) {
            Some(_) => InLedger::Withdrawn,
            None if self.by_subjects => InLedger::Subjects,
            None => InLedger::Nothing,
        }
    }

    /// All that the ledgers may say of any row.
    fn may_say(&self) -> &'static [InLedger] {
        match (self.withdrawals.is_empty(), self.by_subjects) {
            (true, _) => &[InLedger::Nothing],
            (false, false) => &[InLedger::Nothing, InLedger::Withdrawn],
            (false, true) => &[InLedger::Subjects, InLedger::Withdrawn],
        }
    }

    /// The verdict on every row.
    pub fn verdicts(&self, rows: &ConsentColumns, dataset: &Dataset) -> Vec<Result<(), Reason>> {
        judge_rows(rows, &self.ask, dataset, |record, subject| self.in_ledger(record, subject))
    }

    /// Why every row of a row group is left out, where its statistics alone prove it.
    pub fn pruned(&self, file: &SourceFile, group: usize) -> Option<Reason> {
        consent::pruned(file, group, &self.ask, self.may_say())
    }

    /// Judges every row of a file.
    pub fn count(&self, file: &SourceFile) -> Result<Counts, SourceError> {
        let ledger = |record: &str, subject: Option<&[u8; 32]>| self.in_ledger(record, subject);
        consent::count(file, &self.ask, self.may_say(), &ledger)
    }
}
