//! `heirloom chat`: a conversation in the terminal, or over a pipe with a turn on each line.
//!
//! Owns the conversation and what its commands change. Lines are read by [`console`] and
//! understood by [`command`]. Answers are data (stdout), everything else is for people
//! (stderr). Nothing of a conversation is kept on disk.

mod command;
mod console;

use heirloom::cli::printer::Printer;
use heirloom::dataset::conversation::Message;
use heirloom::diagnose::Failure;
use heirloom::generation::input::{self, Request};
use heirloom::generation::text::Text;
use heirloom::generation::{Options, Settings};
use heirloom::job::Chat;

use self::command::{Command, HELP};
use self::console::Console;
use super::generate::{stats, within};
use crate::error::EngineError;
use crate::generate::reply::{Replies, replies};
use crate::generate::{self, Finish, Past, Timing};
use crate::model::Decoder;

/// Does the job.
pub(super) fn chat(job: &Chat, printer: Printer) -> Result<(), Failure> {
    let text = Text::open(job.target.words(), false)?;
    let mut session = Session {
        model: super::model(&job.target, text.vocab_size(), tch::Device::Cpu)?,
        text,
        job,
        options: job.options.clone(),
        settings: job.options.resolve(&job.target.base)?,
        adapter: job.target.adapter.is_some(),
        system: job.system.clone(),
        turns: Vec::new(),
        answers: 0,
        timing: None,
        past: None,
        printer,
    };
    let mut console = Console::open()?;
    printer.note(&session.settings.to_string());
    if console.is_terminal() {
        printer.note("/help lists the commands; Ctrl-C stops an answer, Ctrl-D leaves");
    }
    let (mut lines, mut failed) = (0, 0);
    while let Some(line) = console.read()? {
        match command::parse(&line) {
            Command::Exit => break,
            command => {
                lines += 1;
                failed += usize::from(!session.run(command, &console));
            }
        }
    }
    // At a terminal the failures were seen; a script sees the exit status alone.
    if failed > 0 && !console.is_terminal() {
        return Err(EngineError::Unanswered { failed, lines }.into());
    }
    Ok(())
}

/// A conversation under way.
struct Session<'j> {
    model: Decoder,
    text: Text,
    job: &'j Chat,
    options: Options,
    settings: Settings,
    /// Whether the adapter answers, or the base below it.
    adapter: bool,
    system: Option<String>,
    /// Without the system message.
    turns: Vec<Message>,
    /// Answers since the beginning or `/reset`: the number of the next one's random stream.
    answers: u64,
    /// Of the last answer.
    timing: Option<Timing>,
    /// The conversation as the model has it, so that a turn computes only what is new.
    past: Option<Past>,
    printer: Printer,
}

impl Session<'_> {
    /// A mistake is told, and the conversation goes on; says whether there was none.
    fn run(&mut self, command: Command, console: &Console) -> bool {
        let done = match command {
            Command::Nothing | Command::Exit => Ok(()),
            Command::Say(content) => self.say(content, console),
            Command::Again => self.again(console),
            Command::Reset => {
                self.reset();
                self.note("a new conversation")
            }
            Command::Adapter(wanted) => self.switch(wanted),
            Command::System(system) => {
                self.system = system;
                self.reset();
                self.note("a new conversation, with this system message")
            }
            Command::Set(key, value) => self.set(&key, &value),
            Command::Stats => {
                let line = self.timing.as_ref().map_or("no answer yet".to_owned(), stats);
                self.note(&line)
            }
            Command::Help => self.note(HELP),
            Command::Unknown(what) => self.note(&format!("{what}; /help lists the commands")),
        };
        done.inspect_err(|failure| self.printer.failure(failure)).is_ok()
    }

    fn note(&self, line: &str) -> Result<(), Failure> {
        self.printer.note(line);
        Ok(())
    }

    fn reset(&mut self) {
        self.turns.clear();
        self.answers = 0;
    }

    fn set(&mut self, key: &str, value: &str) -> Result<(), Failure> {
        let mut options = self.options.clone();
        options.set(key, value)?;
        self.settings = options.resolve(&self.job.target.base)?;
        self.options = options;
        self.note(&self.settings.to_string())
    }

    fn switch(&mut self, wanted: Option<bool>) -> Result<(), Failure> {
        if self.job.target.adapter.is_none() {
            return self.note("this model has no adapter");
        }
        self.adapter = wanted.unwrap_or(self.adapter);
        self.past = None;
        self.note(if self.adapter {
            "the adapter is on"
        } else {
            "the adapter is off: the base answers"
        })
    }

    fn say(&mut self, content: String, console: &Console) -> Result<(), Failure> {
        self.turns.push(Message { role: "user".to_owned(), content });
        let answered = self.answer(console);
        if answered.is_err() {
            // As if it had not been said: the next message must not follow on it.
            self.turns.pop();
        }
        answered
    }

    /// Answers the last message once more, for instance with the adapter off.
    fn again(&mut self, console: &Console) -> Result<(), Failure> {
        let Some(last) = self.turns.pop_if(|last| last.role == "assistant") else {
            return self.note("there is no answer yet");
        };
        let answered = self.answer(console);
        if answered.is_err() {
            self.turns.push(last);
        }
        answered
    }

    /// Adds the model's answer to the conversation, printing it as it comes.
    fn answer(&mut self, console: &Console) -> Result<(), Failure> {
        let prompt = input::Prompt::Messages(self.turns.clone());
        let request = Request { id: None, number: 1, prompt };
        let tokens = self.text.prompt(&request, self.system.as_deref())?;
        let (text, printer, past) = (&self.text, self.printer, self.past.take());
        let settings = within(&self.settings, &self.model, tokens.len());
        let prompt = generate::Prompt { tokens: &tokens, stream: self.answers };
        console.answering(true);
        let generate = |model: &Decoder| {
            replies(model, text, &settings, &[prompt], past, |_, piece| {
                printer.text(piece)?;
                Ok(!console.interrupted())
            })
        };
        let answered = if self.adapter || self.job.target.adapter.is_none() {
            generate(&self.model)
        } else {
            self.model.without_adapter(generate)?
        };
        console.answering(false);
        let Replies { rows, timing, past } = answered?;
        self.printer.data("")?;
        if self.job.stats {
            self.printer.note(&stats(&timing));
        }
        for reply in rows {
            if reply.finish == Finish::Interrupted {
                self.printer.note("(stopped)");
            }
            self.turns.push(Message { role: "assistant".to_owned(), content: reply.text });
        }
        self.answers += 1;
        self.timing = Some(timing);
        self.past = past;
        Ok(())
    }
}
