//! What a line that is typed in a chat means.

/// A line, understood.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Command {
    Nothing,
    Say(String),
    Again,
    Reset,
    /// On, off, or which of the two it is.
    Adapter(Option<bool>),
    System(Option<String>),
    Set(String, String),
    Stats,
    Help,
    Exit,
    /// What is wrong with it.
    Unknown(String),
}

pub(super) const HELP: &str = "\
/again              answer the last message once more
/reset              begin a new conversation
/adapter on|off     let the adapted model answer, or the base below it
/system TEXT        begin a new conversation with this system message (none: without)
/set NAME VALUE     change a setting, such as `temperature 0.7`; `default` takes it back
/stats              how fast the last answer was
/exit               leave, as Ctrl-D does
A message that begins with `/` is typed with a space before it.";

/// White space at both ends is no part of a message.
pub(super) fn parse(line: &str) -> Command {
    let Some(command) = line.strip_prefix('/') else {
        let said = line.trim();
        return if said.is_empty() { Command::Nothing } else { Command::Say(said.to_owned()) };
    };
    let (name, rest) = command.split_once(char::is_whitespace).unwrap_or((command, ""));
    let rest = rest.trim();
    match (name, rest) {
        ("again", "") => Command::Again,
        ("reset", "") => Command::Reset,
        ("stats", "") => Command::Stats,
        ("help", "") => Command::Help,
        ("exit" | "quit", "") => Command::Exit,
        ("adapter", "") => Command::Adapter(None),
        ("adapter", "on") => Command::Adapter(Some(true)),
        ("adapter", "off") => Command::Adapter(Some(false)),
        ("adapter", _) => Command::Unknown("the adapter is `on` or `off`".to_owned()),
        ("system", "") => Command::System(None),
        ("system", text) => Command::System(Some(text.to_owned())),
        ("set", _) => match rest.split_once(char::is_whitespace) {
            Some((key, value)) => Command::Set(key.to_owned(), value.trim().to_owned()),
            None => Command::Unknown("`/set` takes a name and a value".to_owned()),
        },
        _ => Command::Unknown("there is no such command".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_messages_or_commands() {
        let said = |text: &str| Command::Say(text.to_owned());
        for (line, expected) in [
            ("  ", Command::Nothing),
            (" hello /reset ", said("hello /reset")),
            (" /reset", said("/reset")),
            ("/reset", Command::Reset),
            ("/adapter off ", Command::Adapter(Some(false))),
            ("/adapter", Command::Adapter(None)),
            ("/system Be  kind.", Command::System(Some("Be  kind.".to_owned()))),
            ("/system", Command::System(None)),
            ("/set top_p  0.9", Command::Set("top_p".to_owned(), "0.9".to_owned())),
            ("/quit", Command::Exit),
        ] {
            assert_eq!(parse(line), expected, "{line}");
        }
        for wrong in ["/", "/rset", "/reset now", "/adapter maybe", "/set temperature"] {
            assert!(matches!(parse(wrong), Command::Unknown(_)), "{wrong}");
        }
    }
}
