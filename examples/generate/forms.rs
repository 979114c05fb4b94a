//! The forms of the general domain: ways to write a scene's slots down, each asked for by
//! its own word.
//!
//! Owns layouts and the sentences that ask for them. Does not own scenes.

use crate::scenes::{Scene, Slot};
use crate::words::{Rng, capitalised};

/// A way to write a scene down.
pub(crate) struct Form {
    /// What people call it.
    name: &'static str,
    /// The scene in this form.
    pub(crate) write: fn(&Scene) -> String,
}

/// Every slot as `one` makes it, with `glue` between.
fn each(scene: &Scene, glue: &str, one: impl Fn(&Slot) -> String) -> String {
    scene.slots.iter().map(one).collect::<Vec<_>>().join(glue)
}

/// All values, with `glue` between.
fn values(scene: &Scene, glue: &str) -> String {
    each(scene, glue, |slot| slot.value.clone())
}

/// All values from the last to the first, with `glue` between.
fn backwards(scene: &Scene, glue: &str) -> String {
    scene.slots.iter().rev().map(|slot| slot.value.as_str()).collect::<Vec<_>>().join(glue)
}

/// Values with their places, counted from one.
fn counted(scene: &Scene, glue: &str, close: &str) -> String {
    let numbered = scene.slots.iter().enumerate();
    let lines = numbered.map(|(index, slot)| format!("{}{close} {}", index + 1, slot.value));
    lines.collect::<Vec<_>>().join(glue)
}

/// The forms.
pub(crate) const FORMS: &[Form] = &[
    Form { name: "card", write: |s| each(s, " | ", |t| format!("{}: {}", t.label, t.value)) },
    Form { name: "slip", write: |s| values(s, " / ") },
    Form { name: "row", write: |s| values(s, ", ") },
    Form { name: "tag", write: |s| each(s, " ", |t| format!("[ {} ]", t.value)) },
    Form { name: "route", write: |s| values(s, " > ") },
    Form { name: "numbered list", write: |s| counted(s, "\n", ".") },
    Form { name: "plain list", write: |s| each(s, "\n", |t| format!("- {}", t.value)) },
    Form { name: "ledger", write: |s| each(s, "; ", |t| format!("{} = {}", t.label, t.value)) },
    Form { name: "log", write: |s| format!("{}: {}", s.verb, values(s, " * ")) },
    Form {
        name: "record",
        write: |s| format!("{{ {} }}", each(s, ", ", |t| format!("{}: {}", t.label, t.value))),
    },
    Form { name: "memo", write: |s| format!("Memo. {}.", values(s, ". ")) },
    Form {
        name: "ticket",
        write: |s| format!("{} ( {} )", s.verb.to_uppercase(), values(s, " , ")),
    },
    Form { name: "mirror", write: |s| backwards(s, " / ") },
    Form { name: "table", write: |s| format!("| {} |", values(s, " | ")) },
    Form { name: "headline", write: |s| format!("{}! {}", capitalised(s.verb), values(s, " - ")) },
    Form {
        name: "stub",
        write: |s| s.slots[..2].iter().map(|t| t.value.as_str()).collect::<Vec<_>>().join(" + "),
    },
    Form {
        name: "tail",
        write: |s| {
            s.slots[s.slots.len() - 2..]
                .iter()
                .map(|t| t.value.as_str())
                .collect::<Vec<_>>()
                .join(" & ")
        },
    },
    Form {
        name: "sheet",
        write: |s| each(s, "\n", |t| format!("{}: {}", capitalised(t.label), t.value)),
    },
    Form { name: "quote", write: |s| each(s, " ", |t| format!("\" {} \"", t.value)) },
    Form { name: "index", write: |s| counted(s, " ", ")") },
    Form { name: "telegram", write: |s| format!("{} STOP", values(s, " STOP ")) },
    Form { name: "stack", write: |s| backwards(s, "\n") },
    Form { name: "badge", write: |s| format!("*** {} ***", s.slots[0].value) },
    Form { name: "wire", write: |s| format!("{} # {}", s.verb.to_uppercase(), values(s, " # ")) },
    Form { name: "envelope", write: |s| format!("To {}\n{}", s.slots[0].value, s.slots[1].value) },
    Form { name: "chain", write: |s| values(s, " -> ") },
    Form { name: "bill", write: |s| format!("{} $ {}", s.verb, backwards(s, " $ ")) },
    Form {
        name: "receipt",
        write: |s| each(s, " ~ ", |t| format!("{} {}", t.label.to_uppercase(), t.value)),
    },
    Form { name: "poster", write: |s| format!("{}!", values(s, "! ")) },
    Form { name: "file name", write: |s| format!("{} _ {}", s.verb, values(s, " _ ")) },
    Form { name: "question", write: |s| format!("{}?", values(s, "? ")) },
    Form { name: "address", write: |s| format!("{} @ {}", s.slots[0].value, s.slots[1].value) },
    Form { name: "sign", write: |s| format!("< {} >", values(s, " >< ")) },
    Form { name: "ratio", write: |s| values(s, " : ") },
    Form {
        name: "note",
        write: |s| format!("{} {}", s.verb, each(s, ", ", |t| format!("{} {}", t.label, t.value))),
    },
    Form { name: "minute", write: |s| each(s, " % ", |t| format!("{} {}", t.value, t.label)) },
];

/// Asks for `form`.
pub(crate) fn order(rng: &mut Rng, form: &Form) -> String {
    let name = form.name;
    match rng.below(5) {
        0 => format!("Write the {name}."),
        1 => format!("Show me the {name}."),
        2 => format!("The {name}, please."),
        3 => format!("{}:", capitalised(name)),
        _ => format!("I need the {name}."),
    }
}

/// Signs that may stand between values in a pattern.
const SIGNS: &[&str] = &[
    "-", "--", "/", "//", "|", "||", ":", "::", ";", ",", ".", "*", "**", "+", "=", "==", "~", "^",
    "&", "%", "$", "!", "?", "<", ">", "=>", "@", "#", "_", "\\", "'", "`",
];

/// Asks for some slots in an order and with signs that the prompt shows.
pub(crate) fn pattern(rng: &mut Rng, scene: &Scene) -> (String, String) {
    let mut places: Vec<usize> = (0..scene.slots.len()).collect();
    rng.shuffle(&mut places);
    places.truncate(rng.between(2, places.len()));
    let sign = rng.pick(SIGNS);
    let head = if rng.percent(30) { format!("{} ", rng.pick(SIGNS)) } else { String::new() };
    let join = |part: fn(&Slot) -> &str| {
        let parts: Vec<&str> = places.iter().map(|&place| part(&scene.slots[place])).collect();
        format!("{head}{}", parts.join(&format!(" {sign} ")))
    };
    let lead = rng.pick(&["Write:", "Use this pattern:", "Like this:", "Fill in:"]);
    (format!("{lead} {}", join(|slot| slot.label)), join(|slot| &slot.value))
}

/// Asks for one or two slots by name.
pub(crate) fn pick_out(rng: &mut Rng, scene: &Scene) -> (String, String) {
    let mut places: Vec<usize> = (0..scene.slots.len()).collect();
    rng.shuffle(&mut places);
    let (one, two) = (&scene.slots[places[0]], &scene.slots[places[1]]);
    match rng.below(4) {
        0 => (format!("Only the {}.", one.label), one.value.clone()),
        1 => {
            (format!("What is the {}?", one.label), format!("The {} is {}.", one.label, one.value))
        }
        2 => (
            format!("Only the {} and the {}.", one.label, two.label),
            format!("{} and {}", one.value, two.value),
        ),
        _ => (
            format!("Tell me the {}, then the {}.", one.label, two.label),
            format!("{}: {}\n{}: {}", one.label, one.value, two.label, two.value),
        ),
    }
}
