//! The general domain: short chats about everyday things, which teach a model to copy names
//! and numbers, to pick and order what is asked for, and to keep to a form.
//!
//! Owns which chats there are; the scenes' sentences are in `scenes`, the forms in `forms`.
//! Every answer is a function of its prompt. Nothing here may use the words or the forms of
//! the catalogue domain: that is what an adapted model has to learn.

use crate::forms::{self, FORMS};
use crate::scenes::{self, Scene};
use crate::words::{self, PLAIN, Rng};
use crate::{Turn, assistant, system, user};

/// How plain the chats are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lesson {
    /// So many chats in a hundred are exercises in copying.
    pub(crate) drills: usize,
    /// Most things that such an exercise copies.
    pub(crate) longest: usize,
}

/// One chat.
pub(crate) fn chat(rng: &mut Rng, lesson: Lesson) -> Vec<Turn> {
    if rng.percent(lesson.drills) {
        let neighbours = lesson.longest >= NEIGHBOURS && rng.percent(35);
        return if neighbours { neighbour(rng) } else { echo(rng, lesson.longest) };
    }
    match rng.below(100) {
        0..4 => greeting(rng),
        4..7 => sum(rng),
        _ => scene(rng),
    }
}

/// A scene told once, then written in up to three forms.
fn scene(rng: &mut Rng) -> Vec<Turn> {
    let scene = scenes::scene(rng);
    let mut turns = Vec::new();
    let (order, answer) = task(rng, &scene);
    match rng.below(10) {
        0 | 1 => {
            turns.push(system(order));
            turns.push(user(scene.text.clone()));
        }
        2..5 => turns.push(user(format!("{order}\n{}", scene.text))),
        5 | 6 => turns.push(user(format!("{} {order}", scene.text))),
        _ => turns.push(user(format!("{}\n{order}", scene.text))),
    }
    turns.push(assistant(answer));
    let more = [0, 0, 0, 1, 1, 2][rng.below(6)];
    for _ in 0..more {
        let (order, answer) = task(rng, &scene);
        let lead = rng.pick(&["", "", "Now: ", "Thanks. ", "And again. "]);
        turns.push(user(format!("{lead}{order}")));
        turns.push(assistant(answer));
    }
    turns
}

/// Something to do with a scene, and its result.
fn task(rng: &mut Rng, scene: &Scene) -> (String, String) {
    match rng.below(100) {
        0..60 => {
            let form = &FORMS[rng.below(FORMS.len())];
            (forms::order(rng, form), (form.write)(scene))
        }
        60..80 => forms::pattern(rng, scene),
        _ => forms::pick_out(rng, scene),
    }
}

/// Fewest and most words of a [`litany`].
const LITANY: (usize, usize) = (6, 36);

/// Common words in a random order, none twice, said again.
///
/// Each is one token and stands once in the prompt, so that what comes after it is never in
/// doubt: a model finds out to look for the last token and copy the next one after about
/// half a million tokens of these; from names in syllables alone it had not after two.
pub(crate) fn litany(rng: &mut Rng) -> Vec<Turn> {
    let mut words: Vec<&str> = words::COMMON.split(' ').collect();
    rng.shuffle(&mut words);
    words.truncate(rng.between(LITANY.0, LITANY.1));
    let said = words.join(" ");
    let order = rng.pick(&["Repeat", "Say after me", "Copy this", "Read it back"]);
    vec![user(format!("{order}: {said}")), assistant(said)]
}

/// Fewest things in a list that has a before and an after.
const NEIGHBOURS: usize = 4;

/// Words and codes, said again as they are or the other way round.
fn echo(rng: &mut Rng, longest: usize) -> Vec<Turn> {
    let mut items = odd_items(rng, 1, longest);
    let glue = rng.pick(&[" ", ", ", " / ", " - ", "; "]);
    let said = items.join(glue);
    let (order, answer) = match rng.below(8) {
        0 if longest >= NEIGHBOURS => {
            items.reverse();
            (rng.pick(&["Backwards", "From the end", "In reverse"]), items.join(glue))
        }
        1 => (rng.pick(&["Twice", "Say it two times"]), format!("{said}\n{said}")),
        _ => (rng.pick(&["Repeat", "Say after me", "Copy this", "Read it back"]), said.clone()),
    };
    vec![user(format!("{order}: {said}")), assistant(answer)]
}

/// Lists in which the one before or after, the first or the last, is asked for.
fn neighbour(rng: &mut Rng) -> Vec<Turn> {
    let items = odd_items(rng, NEIGHBOURS, 7);
    let mut turns = Vec::new();
    for round in 0..rng.between(1, 3) {
        let at = rng.between(1, items.len() - 2);
        let (question, answer) = match rng.below(5) {
            0 | 1 => (format!("What comes after {}?", items[at]), &items[at + 1]),
            2 => (format!("What comes before {}?", items[at]), &items[at - 1]),
            3 => ("What is the first?".to_owned(), &items[0]),
            _ => ("What is the last?".to_owned(), &items[items.len() - 1]),
        };
        let list = items.join(", ");
        let asked = if round == 0 { format!("List: {list}. {question}") } else { question };
        turns.push(user(asked));
        turns.push(assistant(answer.clone()));
    }
    turns
}

/// Between `low` and `high` different names, codes and numbers.
fn odd_items(rng: &mut Rng, low: usize, high: usize) -> Vec<String> {
    let count = rng.between(low, high);
    let mut items: Vec<String> = Vec::with_capacity(count);
    while items.len() < count {
        let item = match rng.below(8) {
            0 => words::code(rng),
            1 => {
                let count = rng.between(2, 5);
                words::digits(rng, count)
            }
            2 | 3 => words::person(rng),
            4 => PLAIN.name(rng, 8).to_uppercase(),
            _ => PLAIN.name(rng, 10),
        };
        if !items.contains(&item) {
            items.push(item);
        }
    }
    items
}

/// Manners.
fn greeting(rng: &mut Rng) -> Vec<Turn> {
    let name = words::person(rng);
    let (said, answer) = match rng.below(3) {
        0 => (format!("Hello, I am {name}."), format!("Hello, {name}. How can I help?")),
        1 => (format!("This is {name}, good morning!"), format!("Good morning, {name}.")),
        _ => (format!("Please thank {name} for me."), format!("Thank you, {name}!")),
    };
    vec![user(said), assistant(answer)]
}

/// Small sums.
fn sum(rng: &mut Rng) -> Vec<Turn> {
    let (a, b) = (rng.between(1, 12), rng.between(1, 12));
    let said = format!("What is {} plus {}?", words::written(rng, a), words::written(rng, b));
    vec![user(said), assistant(format!("{a} + {b} = {}", a + b))]
}
