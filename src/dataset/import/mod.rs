//! The importer: rows as they are found, to consent-bearing Parquet.
//!
//! Owns reading sources ([`rows`]), what a row holds ([`content`]) and what is known of its
//! consent ([`consent`], from what `consent.yaml` declares: [`declared`]), the rows that are
//! set aside ([`reject`]) and the file that is written ([`write`]). Does not own the formats
//! (`dataset::format`), the sidecars (`dataset::describe`) nor the gate: a row that may never be used is imported all the same,
//! and says so.
//!
//! Memory is bounded by a row group, whatever the size of the sources. The same sources, the
//! same declaration and the same instant of the snapshot give the same bytes.

mod consent;
mod content;
pub mod declared;
mod detect;
mod error;
mod footer;
mod mapped;
mod record;
mod reject;
mod rows;
mod seen;
mod terms;
mod write;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde_json::Value;
use uuid::Uuid;

pub use error::ImportError;
pub use reject::{Reason, Reject};
pub use write::{GROUP_BYTES, GROUP_ROWS};

use super::conversation::Json;
use super::describe::{self, About};
use super::format::{self, Kind, Wrong};
use super::source;
use crate::files;
use crate::recipe::Format;
use consent::{Consents, RowConsent};
use content::{Content, Shape};
use mapped::Mapped;
use reject::Rejects;
use seen::Seen;
use write::{Layout, Row, Writer};

/// What is imported, and where to.
#[derive(Clone, Debug)]
pub struct Options {
    /// Files or globs.
    pub sources: Vec<String>,
    /// The file that is written.
    pub output: PathBuf,
    /// The declaration of consent.
    pub consent: PathBuf,
    /// The format, where it is said.
    pub format: Option<Format>,
    /// Columns that have another name: the format's word, then the column.
    pub columns: BTreeMap<String, String>,
    /// Where bad rows are named; beside the output unless it is said.
    pub rejects: Option<PathBuf>,
    /// Whether the output may replace what is there.
    pub force: bool,
    /// The instant of the snapshot, where the declaration has none.
    pub now: Timestamp,
}

/// An import of which everything but the rows has been looked at.
#[derive(Debug)]
pub struct Import {
    sources: Vec<PathBuf>,
    output: PathBuf,
    rejects: PathBuf,
    /// The format of the sources.
    pub format: Format,
    /// Their columns of another name.
    pub columns: BTreeMap<String, String>,
    /// Bytes of all sources.
    pub bytes: u64,
    shape: Option<Shape>,
    consents: Consents,
    footer: String,
    about: About,
    namespace: Uuid,
}

/// What came of an import.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Rows written.
    pub rows: u64,
    /// Rows set aside, by reason.
    pub rejected: BTreeMap<&'static str, u64>,
    /// Rows written, by where their consent stands.
    pub statuses: BTreeMap<&'static str, u64>,
    /// Rows that name no end of their consent where the data set does not say `endless`: no
    /// run will use them.
    pub without_end: u64,
    /// Rows that rest on consent where no column of subjects is mapped: a subject who
    /// withdraws will not be found in them.
    pub without_subject: u64,
    /// The format by which a recipe reads what was written.
    pub format: Format,
    /// Columns and keys of messages that were not taken over, at most 32.
    pub left_aside: BTreeSet<String>,
    /// The ledger of withdrawals that a recipe has to name.
    pub ledger: Option<String>,
    /// The file that was written.
    pub output: PathBuf,
    /// The file that names the rows set aside.
    pub rejects: PathBuf,
}

/// How one pass over the sources ended.
enum Pass {
    Done(Outcome),
    /// A row needs columns that were not foreseen.
    Wider(BTreeSet<&'static str>),
}

impl Import {
    /// Looks at everything but the rows: the declaration, the records, the places that are
    /// written to, and the format by the first rows.
    pub fn prepare(options: Options) -> Result<Self, ImportError> {
        let mut sources = Vec::new();
        for pattern in &options.sources {
            if let Some(address) = address(pattern) {
                return Err(ImportError::Address { address });
            }
            sources.extend(source::resolve(pattern)?);
        }
        let declared = declared::read(&options.consent)?;
        let rejects =
            options.rejects.unwrap_or_else(|| options.output.with_extension("rejects.jsonl"));
        for path in [&options.output, &rejects] {
            let place = files::place_of_file(path).map_err(ImportError::Write)?;
            let place = place.canonicalize().ok();
            let mut read = sources.iter().chain([&options.consent]);
            let is_read = place.is_some() && read.any(|source| source.canonicalize().ok() == place);
            if is_read || options.output == rejects {
                return Err(ImportError::Same { path: path.clone() });
            }
            if path.exists() && !options.force {
                return Err(ImportError::Exists { path: path.clone() });
            }
        }
        let mut bytes = 0;
        for path in &sources {
            bytes += fs_err::metadata(path).map_err(ImportError::read(path))?.len();
        }
        let footer = footer::write(&declared, options.now)?;
        let about = footer::about(&declared, &options.output, &footer);
        // Before hours are spent on rows that could not be described where they lie.
        describe::check_place(
            folder_of(&options.output),
            std::slice::from_ref(&options.output),
            &about.consent,
        )?;
        let namespace = footer::namespace(&declared.dataset_id);
        let consents = Consents::new(declared)?;
        let first = first_rows(&sources)?;
        let (format, columns) = match options.format {
            Some(format) => (format, options.columns),
            None => detect::detect(&first, &options.columns).ok_or_else(|| {
                let keys: BTreeSet<String> =
                    first.iter().flat_map(|row| row.keys()).cloned().collect();
                let path = sources.first().cloned().unwrap_or_default();
                ImportError::Format { path, keys: keys.into_iter().collect() }
            })?,
        };
        format::check_names(format, &columns)?;
        let mut import = Self {
            sources,
            output: options.output,
            rejects,
            format,
            columns,
            bytes,
            shape: None,
            consents,
            footer,
            about,
            namespace,
        };
        let mapped = import.mapped();
        import.sources.iter().try_for_each(|path| mapped.check_header(path))?;
        // Texts or messages: the first row that can be read decides.
        import.shape = first
            .into_iter()
            .find_map(|mut row| Some(import.content(&mut row, &mut BTreeSet::new()).ok()?.shape));
        Ok(import)
    }

    /// Reads all rows and writes the file; `progress` hears how many bytes are behind.
    pub fn run(&self, progress: &dyn Fn(u64)) -> Result<Outcome, ImportError> {
        let mut optional = BTreeSet::new();
        loop {
            match self.pass(&optional, progress)? {
                Pass::Done(outcome) => {
                    describe::write(
                        folder_of(&self.output),
                        std::slice::from_ref(&self.output),
                        &self.about,
                    )?;
                    return Ok(outcome);
                }
                // At most once for each optional column, and as a rule within the first rows.
                Pass::Wider(more) => optional.extend(more),
            }
        }
    }

    fn pass(
        &self,
        optional: &BTreeSet<&'static str>,
        progress: &dyn Fn(u64),
    ) -> Result<Pass, ImportError> {
        let mut ended = None;
        let written = files::write_atomically_with(&self.rejects, |rejects| {
            let written = files::write_atomically_with(&self.output, |output| {
                let pass = self.read(output, rejects, optional, progress);
                let done = matches!(pass, Ok(Pass::Done(_)));
                ended = Some(pass);
                if done { Ok(()) } else { Err(io::Error::other("given up")) }
            });
            match &ended {
                // Why nothing was imported is worth keeping.
                Some(Err(ImportError::Nothing { .. })) => Ok(()),
                _ => written,
            }
        });
        match ended {
            Some(Ok(Pass::Done(outcome))) => {
                written.map_err(ImportError::Write)?;
                Ok(Pass::Done(outcome))
            }
            Some(ended) => ended,
            None => Err(ImportError::Write(written.err().unwrap_or(io::ErrorKind::Other.into()))),
        }
    }

    fn read(
        &self,
        output: &mut (dyn Write + Send),
        rejects: &mut (dyn Write + Send),
        optional: &BTreeSet<&'static str>,
        progress: &dyn Fn(u64),
    ) -> Result<Pass, ImportError> {
        let shape = self.shape.unwrap_or(Shape::Chat);
        let layout = Layout { shape, optional: optional.clone() };
        let writer = Writer::new(output, layout, self.footer.clone())?;
        let mut reading = Reading {
            import: self,
            writer,
            rejects: Rejects::new(rejects),
            seen: Seen::new(folder_of(&self.output)),
            shape,
            wanted: self.wanted(),
            mapped: self.mapped(),
            outcome: self.nothing_yet(shape),
            wider: BTreeSet::new(),
        };
        let mut behind = 0;
        for path in &self.sources {
            let wanted = reading.wanted.clone();
            let has_header = rows::columns(path)?.is_some();
            rows::read(path, Some(&wanted), &mut |line, row, bytes| {
                progress(behind + bytes);
                if let (false, Ok(row)) = (has_header, &row) {
                    reading.mapped.check_row(path, row)?;
                }
                reading.visit(path, line, row)?;
                let wide = reading.wider.is_subset(optional);
                Ok(if wide { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
            })?;
            if !reading.wider.is_subset(optional) {
                return Ok(Pass::Wider(reading.wider));
            }
            behind += fs_err::metadata(path).map_err(ImportError::read(path))?.len();
        }
        reading.finish().map(Pass::Done)
    }

    fn nothing_yet(&self, shape: Shape) -> Outcome {
        Outcome {
            rows: 0,
            rejected: BTreeMap::new(),
            statuses: BTreeMap::new(),
            without_end: 0,
            without_subject: 0,
            format: shape.format(),
            left_aside: BTreeSet::new(),
            ledger: self.consents.declared.ledger.clone(),
            output: self.output.clone(),
            rejects: self.rejects.clone(),
        }
    }

    /// The column of a field.
    fn column<'a>(&'a self, field: &'a str) -> &'a str {
        self.columns.get(field).map_or(field, String::as_str)
    }

    /// The columns that are read.
    fn wanted(&self) -> BTreeSet<String> {
        let fields = format::fields(self.format).iter();
        let fields = fields.map(|field| self.column(field.name).to_owned());
        fields.chain(self.consents.columns()).collect()
    }

    /// What is mapped, for the sources to be compared with.
    fn mapped(&self) -> Mapped {
        Mapped::new(&self.consents, &self.columns, self.wanted())
    }

    /// Where an id is first. Lines are not remembered for every id: this is asked once, of an
    /// import that has failed.
    fn first_of(&self, id: &str) -> Result<Option<(PathBuf, u64)>, ImportError> {
        let mut first = None;
        for path in &self.sources {
            rows::read(path, Some(&self.wanted()), &mut |line, row, _| {
                let found = row.and_then(|row| self.consents.record_id(&row));
                if found.is_ok_and(|found| found.as_deref() == Some(id)) {
                    first = Some((path.clone(), line));
                    return Ok(ControlFlow::Break(()));
                }
                Ok(ControlFlow::Continue(()))
            })?;
            if first.is_some() {
                break;
            }
        }
        Ok(first)
    }

    /// What a row holds. Its values are taken out of it.
    fn content(
        &self,
        row: &mut Json,
        left_aside: &mut BTreeSet<String>,
    ) -> Result<Content, Reject> {
        let mut take = |field: &'static str| {
            let value = row.get_mut(self.column(field)).map(Value::take);
            value.map(|value| unfolded(self.format, field, value)).transpose()
        };
        let sample = format::read(self.format, &mut take).map_err(|mut error| {
            error.column = self.column(&error.column).to_owned();
            error
        })?;
        Content::new(sample, left_aside)
    }
}

/// What is an address rather than a path, without its query, which may be a signature.
fn address(source: &str) -> Option<String> {
    let is_letter = |c: char| c.is_ascii_alphanumeric();
    let (scheme, _) = source.split_once("://")?;
    let is_address = !scheme.is_empty() && scheme.chars().all(is_letter);
    is_address.then(|| source.split(['?', '#']).next().unwrap_or_default().to_owned())
}

/// The folder in which a file lies.
fn folder_of(path: &Path) -> &Path {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    folder.unwrap_or(Path::new("."))
}

/// Lists that a source without lists has as JSON text.
fn unfolded(format: Format, field: &str, value: Value) -> Result<Value, Wrong> {
    let kind = format::fields(format).iter().find(|known| known.name == field);
    let is_list =
        kind.is_some_and(|field| matches!(field.kind, Kind::Messages | Kind::Turns | Kind::Pairs));
    match value {
        // Nor is it JSON that can be relied on if an object in it has a key twice.
        Value::String(text) if is_list => match crate::json::check(&text) {
            Ok(()) => serde_json::from_str(&text).map_err(|_| Wrong::NotJson),
            Err(_) => Err(Wrong::NotJson),
        },
        value => Ok(value),
    }
}

/// The first rows that are objects.
fn first_rows(sources: &[PathBuf]) -> Result<Vec<Json>, ImportError> {
    let (mut first, mut any) = (Vec::new(), false);
    for path in sources {
        rows::read(path, None, &mut |_, row, _| {
            any = true;
            first.extend(row);
            let enough = first.len() >= detect::ROWS;
            Ok(if enough { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
        })?;
        if first.len() >= detect::ROWS {
            break;
        }
    }
    if any { Ok(first) } else { Err(ImportError::NoRow { paths: sources.to_vec() }) }
}

/// One pass over the sources.
struct Reading<'a, 'o, 'r> {
    import: &'a Import,
    writer: Writer<&'o mut (dyn Write + Send)>,
    rejects: Rejects<'r>,
    /// Contents, or ids and their consents where rows bring ids of their own.
    seen: Seen,
    shape: Shape,
    wanted: BTreeSet<String>,
    mapped: Mapped,
    outcome: Outcome,
    wider: BTreeSet<&'static str>,
}

impl Reading<'_, '_, '_> {
    fn visit(
        &mut self,
        path: &Path,
        line: u64,
        row: Result<Json, Reject>,
    ) -> Result<(), ImportError> {
        let mut row = match row {
            Ok(row) => row,
            Err(reject) => return self.set_aside(path, line, &reject),
        };
        // Before the content is taken out: a column may be both.
        let consent = self.import.consents.of(&row);
        self.agrees(path, line, &row, &consent)?;
        let known = consent.and_then(|consent| {
            for key in row.keys().filter(|key| !self.wanted.contains(*key)) {
                content::leave_aside(&mut self.outcome.left_aside, key);
            }
            let content = self.import.content(&mut row, &mut self.outcome.left_aside)?;
            if content.shape != self.shape {
                return Err(Reason::OtherShape.into());
            }
            let digest = content.digest()?;
            Ok((consent, content, digest))
        });
        let (consent, content, (digest, bytes)) = match known {
            Ok(known) => known,
            Err(reject) => return self.set_aside(path, line, &reject),
        };
        let needs = content.needs();
        if !needs.is_empty() {
            self.wider.extend(needs);
        }
        let Some(record_id) = self.record_id(&consent, &digest)? else {
            return self.set_aside(path, line, &Reason::DuplicateRecordId.of("record_id"));
        };
        let declared = &self.import.consents.declared;
        let endless = declared.expiry.as_deref() == Some("endless");
        self.outcome.rows += 1;
        *self.outcome.statuses.entry(consent.status).or_default() += 1;
        let is_nobodys = consent.basis == "consent" && declared.columns.subject.is_none();
        self.outcome.without_subject += u64::from(is_nobodys);
        self.outcome.without_end += u64::from(consent.expires_at.is_none() && !endless);
        self.writer.add(Row { record_id, content, consent }, bytes)
    }

    fn set_aside(&mut self, path: &Path, line: u64, reject: &Reject) -> Result<(), ImportError> {
        self.rejects.add(path, line, reject).map_err(ImportError::Write)
    }

    /// Refuses a row whose id earlier rows have with another consent. Also of rows that are
    /// set aside: a withdrawal counts even where nothing else of its row can be used.
    fn agrees(
        &mut self,
        path: &Path,
        line: u64,
        row: &Json,
        consent: &Result<RowConsent, Reject>,
    ) -> Result<(), ImportError> {
        let Ok(Some(id)) = self.import.consents.record_id(row) else { return Ok(()) };
        let said = match consent {
            Ok(consent) => format!("{consent:?}"),
            Err(reject) => format!("{reject:?}"),
        };
        let of_id = self.times(&["rows of an id", &id])?;
        if of_id == self.times(&["rows of an id and a consent", &id, &said])? {
            return Ok(());
        }
        let second = (path.to_owned(), line);
        let first = self.import.first_of(&id)?.unwrap_or_else(|| second.clone());
        Err(ImportError::Conflict { first, second })
    }

    /// How often the same was asked before.
    fn times(&mut self, of: &[&str]) -> Result<u32, ImportError> {
        use sha2::{Digest as _, Sha256};
        let digest: [u8; 32] = Sha256::digest(serde_json::json!(of).to_string()).into();
        let first = digest.first_chunk().copied().unwrap_or_default();
        self.seen.count(u128::from_be_bytes(first)).map_err(ImportError::Write)
    }

    /// The id that a row brings, unless an earlier one has it; or else one of its content, and
    /// of how often that was there before, so that it does not change when other rows do.
    fn record_id(
        &mut self,
        consent: &RowConsent,
        digest: &[u8; 32],
    ) -> Result<Option<String>, ImportError> {
        use sha2::{Digest as _, Sha256};
        let mut count = |digest: &[u8]| {
            let first = digest.first_chunk().copied().unwrap_or_default();
            self.seen.count(u128::from_be_bytes(first)).map_err(ImportError::Write)
        };
        if let Some(id) = &consent.record_id {
            let before = count(&Sha256::digest(id.as_bytes()))?;
            return Ok((before == 0).then(|| id.clone()));
        }
        let mut name = digest.to_vec();
        name.extend(count(digest)?.to_be_bytes());
        Ok(Some(Uuid::new_v5(&self.import.namespace, &name).to_string()))
    }

    fn finish(mut self) -> Result<Outcome, ImportError> {
        self.mapped.check_end()?;
        let rejected = self.rejects.total();
        self.outcome.rejected = std::mem::take(&mut self.rejects.counts);
        if self.outcome.rows == 0 {
            let reasons = self.outcome.rejected.into_iter().collect();
            let rejects = self.outcome.rejects;
            return Err(ImportError::Nothing { seen: rejected, rejects, reasons });
        }
        self.writer.finish()?;
        Ok(self.outcome)
    }
}
