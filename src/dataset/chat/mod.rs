//! Conversations to tokens: chat template, tokenizer, loss mask.
//!
//! Owns the encoder and its mask over tokens. What the assistant wrote is found in the
//! rendered text by [`spans`], never guessed. Does not own rendering (`template`) nor where
//! rows come from. Errors carry positions, never what was said.
//!
//! Reference: Transformers' `apply_chat_template`, which tokenises without adding special
//! tokens (the template writes them; adding them again doubles the first).

mod document;
mod error;
mod mask;
mod plain;
mod shape;
mod spans;

use std::collections::BTreeSet;
use std::ops::Range;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use tokenizers::Tokenizer;

pub use super::conversation::{Conversation, Message};
pub use document::{Document, Judged, Verdict};
pub use error::ChatError;

use self::mask::{Found, Wanted};
use self::shape::{Fitted, Shapes};
use self::spans::Turn;
use super::conversation::Values;
use super::sample::Sample;
use super::template::{Ask, Cause, Failed, Template};
use super::tokenizer::pieces::{self, Pieces, Tokens};
use super::tokenizer::{Files, TemplateSource};
use crate::recipe::{EndOfTurn, TrainOn};

/// The role whose turns are learned.
const ASSISTANT: &str = "assistant";

/// Which tokens carry loss.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LossMask {
    /// Whose.
    pub train_on: TrainOn,
    /// Which of those that end a turn.
    pub end_of_turn: EndOfTurn,
}

impl From<TrainOn> for LossMask {
    fn from(train_on: TrainOn) -> Self {
        Self { train_on, ..Self::default() }
    }
}

/// Turns conversations into tokens with the base model's own template and tokenizer.
#[derive(Debug)]
pub struct ChatEncoder {
    folder: PathBuf,
    tokenizer: Tokenizer,
    pieces: Option<Pieces>,
    template: Option<Template>,
    /// What some models use in the place of `template` where there are tools.
    tool_template: Option<Template>,
    /// What is known of conversations without tools.
    shapes: Shapes,
    /// Tokens that can close a turn: all special ones, and `eos_token`.
    closing: BTreeSet<u32>,
    stop: Vec<u32>,
    bos: Option<u32>,
    eos: Option<u32>,
    pad: Option<u32>,
    /// What the post-processor puts before and after a text.
    affixes: Option<(Vec<u32>, Vec<u32>)>,
    vocab_size: usize,
}

impl ChatEncoder {
    /// Reads `tokenizer.json`, `tokenizer_config.json`, the chat templates and
    /// `generation_config.json` (all but the first where there are any) of a base folder.
    pub fn open(base_folder: &Path) -> Result<Self, ChatError> {
        let encoder = Self::open_for_texts(base_folder)?;
        encoder.check_template()?;
        Ok(encoder)
    }

    /// Refuses a base that has no chat template.
    pub fn check_template(&self) -> Result<(), ChatError> {
        if self.template.is_none() && self.tool_template.is_none() {
            return Err(ChatError::NoTemplate { folder: self.folder.clone() });
        }
        Ok(())
    }

    /// [`ChatEncoder::open`], where rows may need no template: one that is missing is an error
    /// of the first conversation.
    pub fn open_for_texts(base_folder: &Path) -> Result<Self, ChatError> {
        let Files { tokenizer, affixes, special_tokens, templates, generation_stop } =
            Files::read(base_folder)?;
        let id =
            |name: &str| special_tokens.get(name).and_then(|token| tokenizer.token_to_id(token));
        let (bos, eos, pad) = (id("bos_token"), id("eos_token"), id("pad_token"));
        let now = Timestamp::now();
        let compile = |source: TemplateSource| {
            Template::compile(&source.source, special_tokens.clone(), now).map_err(
                |Failed { line, reason, .. }| ChatError::TemplateSyntax {
                    path: source.path,
                    line,
                    reason,
                },
            )
        };
        let added = tokenizer.get_added_tokens_decoder();
        let mut closing: BTreeSet<u32> =
            added.iter().filter(|(_, token)| token.special).map(|(id, _)| *id).collect();
        closing.extend(eos);
        let largest = tokenizer.get_vocab(true).into_values().max();
        let vocab_size = largest.map_or(0, |id| id as usize + 1);
        let mut encoder = Self {
            folder: base_folder.to_owned(),
            shapes: Shapes::default(),
            pieces: Pieces::of(&tokenizer),
            tokenizer,
            template: templates.default.map(compile).transpose()?,
            tool_template: templates.tool_use.map(compile).transpose()?,
            closing,
            stop: Vec::new(),
            bos,
            eos,
            pad,
            affixes,
            vocab_size,
        };
        let mut stop: BTreeSet<u32> = generation_stop.into_iter().chain(eos).collect();
        encoder.stop = stop.iter().copied().collect();
        stop.extend(encoder.probe_end_of_turn());
        encoder.stop = stop.into_iter().collect();
        Ok(encoder)
    }

    /// Fixes what the template's `strftime_now` answers (in UTC), so that the tokens of a
    /// resumed run are those of the run that it resumes.
    pub fn with_clock(mut self, now: Timestamp) -> Self {
        for template in [&mut self.template, &mut self.tool_template].into_iter().flatten() {
            template.set_clock(now);
        }
        self.shapes = Shapes::default();
        self
    }

    /// The text that the template makes of a conversation.
    pub fn render(
        &self,
        conversation: impl Into<Conversation>,
        add_generation_prompt: bool,
    ) -> Result<String, ChatError> {
        let conversation = conversation.into();
        let template = self.template_for(&conversation)?;
        let values = values_of(&conversation)?;
        let ask = if add_generation_prompt { Ask::Answer } else { Ask::Nothing };
        Ok(template.render(&values.others, &values.messages, ask)?)
    }

    /// Tokenises a whole conversation with its mask.
    pub fn encode(
        &self,
        conversation: impl Into<Conversation>,
        mask: impl Into<LossMask>,
    ) -> Result<Document, ChatError> {
        self.encode_conversation(&conversation.into(), mask.into())
    }

    /// Tokenises what a row holds, with its mask and what is thought of it.
    pub fn encode_sample(
        &self,
        sample: &Sample,
        mask: impl Into<LossMask>,
    ) -> Result<Document, ChatError> {
        let mask = mask.into();
        match sample {
            Sample::Conversation(conversation) => self.encode_conversation(conversation, mask),
            Sample::Labelled { conversation, desirable } => {
                Ok(self.encode_answer(conversation, mask)?.labelled(*desirable))
            }
            Sample::Preference { chosen, rejected } => {
                let chosen = self.encode_answer(chosen, mask)?;
                Ok(Document::preferred([chosen, self.encode_answer(rejected, mask)?]))
            }
            Sample::Text(text) => self.encode_text(text, mask),
            Sample::Completion { prompt, completion } => {
                self.encode_completion(prompt, completion, mask)
            }
        }
    }

    /// Tokenises a conversation that is judged: what is asked of it is how likely it is, and no
    /// token of that counts more than another.
    fn encode_answer(
        &self,
        conversation: &Conversation,
        mask: LossMask,
    ) -> Result<Document, ChatError> {
        let document = self.encode_conversation(conversation, mask)?;
        match document.weights.iter().all(|weight| *weight == 0.0 || *weight == 1.0) {
            true => Ok(document),
            false => Err(ChatError::WeightedAnswer),
        }
    }

    fn encode_conversation(
        &self,
        conversation: &Conversation,
        mask: LossMask,
    ) -> Result<Document, ChatError> {
        let template = self.template_for(conversation)?;
        let values = values_of(conversation)?;
        let mut wanted = mask::wanted(conversation, mask.train_on)?;
        let all = mask.train_on == TrainOn::All;
        let text = template.render(&values.others, &values.messages, Ask::Nothing)?;
        let sought = Sought { template, conversation, values: &values, text: &text };
        let fitted = self.shapes.fit(template, conversation, &text);
        let found = if template.marks_assistant() && !all {
            sought.marks(fitted.as_ref(), &mut wanted)?
        } else {
            Found::Turns(sought.turns(fitted.as_ref(), &wanted))
        };
        let others = if all { sought.weights_of_others()? } else { Vec::new() };
        let tokens = self.tokens(&text)?;
        let mut document = match found {
            Found::Turns(turns) if all => {
                self.weigh_all(&text, tokens, turns, (&wanted, &others), mask)?
            }
            found => self.weigh_turns(&text, tokens, found, &wanted, mask)?,
        };
        self.keep_one_bos(&mut document);
        document.open();
        if document.trained_tokens() == 0 {
            return Err(ChatError::NothingTrained);
        }
        Ok(document)
    }

    /// A template that writes `bos_token` before a conversation that begins with it.
    fn keep_one_bos(&self, document: &mut Document) {
        let Some(bos) = self.bos else { return };
        let doubled = document.tokens.iter().take_while(|token| **token == bos).count();
        if doubled > 1 {
            document.tokens.drain(1..doubled);
            document.weights.drain(1..doubled);
        }
    }

    /// Tokens that ask the assistant for its next turn, at least one.
    pub fn prompt(&self, conversation: impl Into<Conversation>) -> Result<Vec<u32>, ChatError> {
        let text = self.render(conversation, true)?;
        let tokens = self.tokens(&text)?.ids;
        let weights = vec![0.0; tokens.len()];
        let mut prompt = Document { tokens, weights, ..Document::default() };
        self.keep_one_bos(&mut prompt);
        let tokens = prompt.tokens;
        if tokens.is_empty() { Err(ChatError::EmptyPrompt) } else { Ok(tokens) }
    }

    /// The text of generated tokens, special tokens left out.
    pub fn decode(&self, tokens: &[u32]) -> Result<String, ChatError> {
        self.tokenizer.decode(tokens, true).map_err(|_| ChatError::Tokenize)
    }

    /// Tokens at which generation ends: `eos_token`, those of `generation_config.json`, and
    /// the token with which the template closes the assistant's turn. Sorted.
    pub fn stop_ids(&self) -> &[u32] {
        &self.stop
    }

    /// The id of a token that is spelt so.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.tokenizer.token_to_id(token)
    }

    /// Rows that an embedding needs: the largest token id plus one.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// The tokenizer.
    pub(super) fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// `tool_use` where there are tools and such a template, as in Transformers.
    fn template_for(&self, conversation: &Conversation) -> Result<&Template, ChatError> {
        let tools = conversation.tools.as_ref().and(self.tool_template.as_ref());
        tools.or(self.template.as_ref()).ok_or_else(|| match self.tool_template {
            Some(_) => ChatError::NoDefaultTemplate,
            None => ChatError::NoTemplate { folder: self.folder.clone() },
        })
    }

    fn tokens(&self, text: &str) -> Result<Tokens, ChatError> {
        let tokens = pieces::tokens(&self.tokenizer, self.pieces.as_ref(), text);
        tokens.map_err(|_| ChatError::Tokenize)
    }

    /// The token that closes the assistant's turn in a small conversation; `None` where the
    /// template refuses that one: each row is still judged by itself.
    fn probe_end_of_turn(&self) -> Option<u32> {
        let turn = |role: &str| Message { role: role.to_owned(), content: "a".to_owned() };
        let small = [turn("user"), turn(ASSISTANT)];
        let conversation = Conversation::from(small.as_slice());
        let values = Values::new(&conversation);
        let template = self.template.as_ref().or(self.tool_template.as_ref())?;
        let text = template.render(&values.others, &values.messages, Ask::Nothing).ok()?;
        let tokens = self.tokens(&text).ok()?;
        let wanted = [Wanted { message: 1, weight: 1.0 }];
        let turn = spans::turns(template, &conversation, &values, &text, &wanted).pop()?.ok()?;
        self.end_of_turn(&text, &turn, &tokens)
    }
}

/// A rendered conversation in which turns are looked for.
struct Sought<'a> {
    template: &'a Template,
    conversation: &'a Conversation,
    values: &'a Values,
    text: &'a str,
}

impl Sought<'_> {
    fn turns(&self, fitted: Option<&Fitted>, wanted: &[Wanted]) -> Vec<Result<Turn, ChatError>> {
        let search =
            || spans::turns(self.template, self.conversation, self.values, self.text, wanted);
        let Some(turns) = fitted.and_then(|fitted| fitted.turns(wanted)) else { return search() };
        #[cfg(debug_assertions)]
        for (quick, turn) in turns.iter().zip(search()) {
            assert!(turn.is_err() || turn.is_ok_and(|turn| turn == *quick), "{quick:?}");
        }
        turns.into_iter().map(Ok).collect()
    }

    /// Those of the marks that are wanted: in order, where every turn has one; else those
    /// inside the wanted turns, which have to be found.
    fn marks(&self, fitted: Option<&Fitted>, wanted: &mut Vec<Wanted>) -> Result<Found, ChatError> {
        let marks = match fitted.and_then(Fitted::marks) {
            Some(marks) => {
                #[cfg(debug_assertions)]
                assert!(
                    self.template.marks_in(self.values, self.text).is_ok_and(|all| all == marks)
                );
                marks
            }
            None => self.template.marks_in(self.values, self.text)?,
        };
        let turns = self.conversation.messages.iter().enumerate();
        let turns = turns.filter(|(_, turn)| spans::is_assistant(turn)).map(|(index, _)| index);
        let turns: Vec<usize> = turns.collect();
        if wanted.len() == turns.len() && wanted.iter().all(|turn| turn.weight == 1.0) {
            return Ok(Found::Marks(marks));
        }
        if marks.len() == turns.len() {
            let marks = marks.into_iter().zip(turns);
            let chosen = marks.filter(|(_, turn)| wanted.iter().any(|w| w.message == *turn));
            return Ok(Found::Marks(chosen.map(|(mark, _)| mark).collect()));
        }
        let (mut chosen, mut of) = (Vec::new(), Vec::new());
        for (turn, wanted) in self.turns(fitted, wanted).into_iter().zip(wanted.iter()) {
            let turn = turn?;
            let inside = |mark: &&Range<usize>| mark.start >= turn.start && mark.end <= turn.end;
            for mark in marks.iter().filter(inside) {
                chosen.push(mark.clone());
                of.push(*wanted);
            }
        }
        *wanted = of;
        Ok(Found::Marks(chosen))
    }

    /// The words of others than the assistant that say how much they count.
    fn weights_of_others(&self) -> Result<Vec<(Range<usize>, f32)>, ChatError> {
        let mut found = Vec::new();
        for (index, message) in self.conversation.messages.iter().enumerate() {
            let Some(weight) = mask::weight_of(message, index)? else { continue };
            if weight == 1.0 || spans::is_assistant(message) {
                continue;
            }
            let (template, conversation) = (self.template, self.conversation);
            let words = spans::words(template, conversation, self.values, self.text, index);
            found.push((words.ok_or(ChatError::NotVerbatim { message: index })?, weight));
        }
        Ok(found)
    }
}

fn values_of(conversation: &Conversation) -> Result<Values, ChatError> {
    if conversation.messages.is_empty() {
        return Err(ChatError::Empty);
    }
    Ok(Values::new(conversation))
}

impl From<Failed> for ChatError {
    fn from(Failed { cause, line, reason }: Failed) -> Self {
        match cause {
            Cause::Refusal => Self::Refused { line, reason },
            Cause::Limit => Self::TemplateLimit { line, reason },
            Cause::Construct => Self::TemplateConstruct { line, reason },
        }
    }
}

#[cfg(test)]
mod golden_tests;
#[cfg(test)]
mod mask_tests;
#[cfg(test)]
mod tests;
