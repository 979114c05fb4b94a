//! A second look at a run, when it goes on.

use std::path::PathBuf;
use std::sync::Arc;

use jiff::Timestamp;

use super::{Tick, ask, named};
use crate::base::BaseFolder;
use crate::dataset::gate::Gate;
use crate::dataset::spec::Spec;
use crate::dataset::survey::{SurveyedFile, judge_again};
use crate::diagnose::Failure;
use crate::hub;
use crate::recipe::lock::Lock;
use crate::recipe::{Literal, OnWithdrawal};

/// What is no longer as it was when a run began, and what its gate says now.
#[derive(Clone, Debug)]
pub struct Again {
    /// Files of the base that are read, sorted, below what the recipe calls the base.
    pub base_files: Vec<PathBuf>,
    /// The files of rows, in the order of the lock.
    pub data: Vec<SurveyedFile>,
}

impl Again {
    /// Judges the rows of a run anew, when it goes on at `now`. What does not depend on the
    /// time was seen when it began, and the lock has its digests: no row is tokenised.
    pub fn look(
        literal: &Literal,
        lock: &Lock,
        now: Timestamp,
        tick: Tick<'_>,
    ) -> Result<Self, Failure> {
        let recipe = &literal.recipe;
        let folder = hub::local(&recipe.base.model)?;
        let base = BaseFolder::open(&folder, recipe.base.from_scratch)?;
        let ledgers = &recipe.data.consent.ledgers;
        let asked = ask(&recipe.data, now);
        let gate = match recipe.data.consent.on_withdrawal {
            OnWithdrawal::Stop => Gate::open(asked, ledgers)?,
            // What the ledgers have said since, the job heeds as it goes.
            OnWithdrawal::Drop => Gate::as_of(asked, ledgers, &lock.ledgers)?,
        };
        gate.extends(&lock.ledgers)?;
        let spec = Spec::judged_by(recipe, lock, Arc::new(gate));
        let data = judge_again(&spec, tick)?;
        Ok(Self { base_files: named(&base, &recipe.base.model), data })
    }
}
