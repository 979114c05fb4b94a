//! What the engine can be asked to do, from start to end: the one place that knows the
//! order of the rooms.

use std::time::Duration;

use heirloom::base::BaseFolder;
use heirloom::cli::printer::Printer;
use heirloom::dataset::chat::ChatEncoder;
use heirloom::dataset::stream::{HeldOut, Spec, Stream};
use heirloom::diagnose::Failure;
use heirloom::files::{self, FolderInProgress};
use heirloom::job::{Evaluate, Export, ExportKind, Generate, Job, Target, Verbosity};
use heirloom::provenance::release::{self, Facts};
use heirloom::recipe::lock::{Lock, Split};
use heirloom::recipe::{Adapter, Recipe, Suite, read};
use heirloom::run::{EvalReport, RunFolder, Sample, Summary};

use crate::adapter::peft;
use crate::error::{EngineError, Result};
use crate::eval;
use crate::export;
use crate::generate;
use crate::model::{Llama, weights};
use crate::train::{self, Outcome, Trainer};
