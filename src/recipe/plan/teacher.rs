//! The model that teaches, or what it said before, and what keeps it from teaching this base.

use std::path::{Path, PathBuf};

use super::begin::pin;
use super::{Looking, named};
use crate::base::{Architecture, BaseFolder};
use crate::dataset::logits::Header;
use crate::dataset::source::SourceError;
use crate::dataset::survey::SurveyedFile;
use crate::dataset::vocabulary::{Unlike, Vocabulary};
use crate::hub;
use crate::provenance::origin::Origin;
use crate::recipe::lock::{LockedFile, LockedTeacher, Split};
use crate::recipe::{Distillation, Module, Teacher, is_part};

/// Where the words of a teacher stand.
const KEY: &str = "objective.distillation.teacher";
/// Where a file of what one said is named.
const LOGITS: &str = "objective.distillation.logits";

/// Whom a run learns from.
#[derive(Clone, Debug)]
pub(super) enum Taught {
    /// A model beside the base.
    Live(Box<Live>),
    /// What a model said before, by the footer of the file.
    Stored(PathBuf, Box<Header>),
}

/// A model that teaches.
#[derive(Clone, Debug)]
pub(super) struct Live {
    architecture: Architecture,
    origin: Origin,
    /// Its files, and what the recipe calls them.
    files: Vec<(PathBuf, PathBuf)>,
}

impl Taught {
    /// The model that is loaded, if one is.
    pub(super) fn architecture(&self) -> Option<&Architecture> {
        match self {
            Self::Live(live) => Some(&live.architecture),
            Self::Stored(..) => None,
        }
    }

    /// Digests what is read.
    pub(super) fn pin(&self) -> Result<LockedTeacher, SourceError> {
        match self {
            Self::Live(live) => live.pin(),
            Self::Stored(path, header) => {
                Ok(LockedTeacher { logits: Some(pin(path)?), ..header.teacher.clone() })
            }
        }
    }
}

impl Live {
    fn pin(&self) -> Result<LockedTeacher, SourceError> {
        let pinned =
            |(file, name): &(PathBuf, PathBuf)| Ok(LockedFile { path: name.clone(), ..pin(file)? });
        let Origin { name, uri, licence, .. } = self.origin.clone();
        let files = self.files.iter().map(pinned).collect::<Result<_, SourceError>>()?;
        Ok(LockedTeacher { name, uri, licence, files, logits: None })
    }
}

impl Looking<'_> {
    /// Whom the recipe learns from, if it is from a teacher.
    pub(super) fn taught(&mut self, base: &BaseFolder, words: &Vocabulary) -> Option<Taught> {
        let recipe = &self.literal.recipe;
        let distillation = recipe.objective.distillation()?;
        let live = match &distillation.teacher {
            Some(teacher) => Some(self.teacher(teacher, words)?),
            None => None,
        };
        let Some(path) = &distillation.logits else {
            return live.map(|live| Taught::Live(Box::new(live)));
        };
        let header = self.take(LOGITS, Header::read(path))?;
        self.said(path, &header, distillation, (base, words));
        if let Some(live) = live {
            let now = self.take(&format!("{KEY}.model"), live.pin())?;
            let digests = |files: &[LockedFile]| -> Vec<String> {
                files.iter().map(|file| file.sha256.clone()).collect()
            };
            let held = distillation.teacher.as_ref().map(Teacher::storage);
            if held.is_some_and(|held| held != header.storage) {
                let what = format!(
                    "is `{}`, which was said by the teacher in another precision than `{KEY}` has",
                    path.display()
                );
                let hint = "make it again with `heirloom logits`, or leave `teacher` out";
                self.rule(LOGITS, what, hint.to_owned());
            }
            if digests(&now.files) != digests(&header.teacher.files) {
                let what = format!(
                    "is `{}`, which was said by another model than `{KEY}` is",
                    path.display()
                );
                let hint = "make it again with `heirloom logits`, or leave `teacher` out";
                self.rule(LOGITS, what, hint.to_owned());
            }
        }
        Some(Taught::Stored(path.clone(), Box::new(header)))
    }

    /// A model that teaches: it must read the tokens of the base as the base does.
    fn teacher(&mut self, teacher: &Teacher, words: &Vocabulary) -> Option<Live> {
        let recipe = &self.literal.recipe;
        let model = format!("{KEY}.model");
        let folder = self.take(&model, hub::local(&teacher.model))?;
        let base = self.take(&model, BaseFolder::open(&folder, false))?;
        let (window, positions) =
            (recipe.data.sequence_length, base.architecture.max_position_embeddings);
        if window > positions {
            self.rule(
                "data.sequence_length",
                format!("is {window}, more than the {positions} positions of the teacher"),
                format!("write {positions} or less"),
            );
        }
        let is_table = |name: &str| Module::ALL.iter().any(|module| module.name() == name);
        self.layers(
            &format!("{KEY}.unquantized"),
            &teacher.unquantized,
            &base.architecture.quantizable_layers(),
            |layer, name| is_table(name) || is_part(layer, name),
        );
        if let Some(unlike) = self.take(&model, words.unlike(&folder))? {
            self.unlike(&model, teacher, unlike);
            return None;
        }
        self.take(&model, base.fits_tokenizer(words.encoder.vocab_size()))?;
        let origin = self.take(&model, Origin::read(&folder))?;
        let files = base.files().into_iter().zip(named(&base, &teacher.model)).collect();
        Some(Live { architecture: base.architecture, origin, files })
    }

    fn unlike(&mut self, key: &str, teacher: &Teacher, unlike: Unlike) {
        let Unlike { id, ours, theirs } = unlike;
        let said = |token: Option<String>| match token {
            Some(token) => format!("`{}`", token.escape_debug()),
            None => "no token".to_owned(),
        };
        let what = format!(
            "is `{}`, to which {id} is {}, and to the base {}: a teacher has the tokens of the \
             base",
            teacher.model.display(),
            said(theirs),
            said(ours)
        );
        let hint = "name a teacher of the same family, or let this one answer the prompts \
                    (`heirloom generate`) and train on its answers";
        self.rule(key, what, hint.to_owned());
    }

    /// What was said is of use only to the tokens that it was said to.
    fn said(
        &mut self,
        path: &Path,
        header: &Header,
        distillation: &Distillation,
        (base, words): (&BaseFolder, &Vocabulary),
    ) {
        let again = "make it again with `heirloom logits RECIPE -o FILE`".to_owned();
        let refuse = |this: &mut Self, what: String| {
            let what = format!("is `{}`, which {what}", path.display());
            this.rule(LOGITS, what, again.clone());
        };
        if header.temperature != distillation.temperature {
            let (then, now) = (header.temperature, distillation.temperature);
            refuse(self, format!("was made at `temperature: {then}`, and the recipe says {now}"));
        }
        let now = Header::settings(&self.literal.recipe);
        let differs = now.iter().find(|(key, now)| header.settings.get(*key) != Some(now));
        if let Some((key, now)) = differs {
            let then = header.settings.get(key).map_or("nothing", String::as_str);
            refuse(self, format!("was made with `{key}: {then}`, and the recipe says {now}"));
        }
        if let Some(now) = self.take("base.model", words.digests(base.folder())) {
            let names = now.keys().chain(header.words.keys());
            let differs = names.into_iter().find(|name| now.get(*name) != header.words.get(*name));
            if let Some(name) = differs {
                refuse(self, format!("was made with another `{name}` than the base has"));
            }
        }
        if header.vocabulary > base.architecture.vocab_size {
            let (then, rows) = (header.vocabulary, base.architecture.vocab_size);
            refuse(self, format!("is about {then} tokens, and the base has {rows}"));
        }
    }

    /// What was said was said to these files of rows.
    pub(super) fn heard(&mut self, taught: Option<&Taught>, files: &[SurveyedFile]) {
        let Some(Taught::Stored(path, header)) = taught else { return };
        let files = files.iter().map(|file| &file.file);
        for file in files.filter(|file| !matches!(file.split, Split::Test(_))) {
            let Some(now) = self.take(LOGITS, pin(&file.path)) else { return };
            if !header.data.contains(&now.sha256) {
                let what = format!(
                    "is `{}`, which was made of other rows than `{}` holds",
                    path.display(),
                    file.path.display()
                );
                let hint = "make it again with `heirloom logits RECIPE -o FILE`";
                self.rule(LOGITS, what, hint.to_owned());
            }
        }
    }
}
