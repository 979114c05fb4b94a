//! The catalogue domain: what customers of the fictional seed catalogue *Thornmere Seeds*
//! write, and the line that its clerks make of it.
//!
//! The house format, one line:
//!
//! ```text
//! so @ Marla Quist # 3 lg bea Amber Tolvane # 2 sm pea Corvin # mar     an order
//! sq @ Marla Quist # price lg bea Amber Tolvane                         a question
//! sc @ Marla Quist # 40718 cancel                                       a change
//! ```
//!
//! Sizes, crops and months have codes that no prompt shows: they have to be learned. Names of
//! varieties and of customers never come twice: they have to be copied.

use crate::words::{MONTHS, Rng, Syllables, digits, written};
use crate::{Turn, assistant, user};

/// Syllables of varieties and customers, unlike those of the general domain.
pub(crate) const HOUSE: Syllables = Syllables {
    onsets: &[
        "b", "c", "d", "f", "g", "h", "l", "m", "n", "p", "r", "s", "t", "v", "w", "am", "cor",
        "el", "fen", "mar", "or", "sel", "tol", "ver", "br", "cr", "dr", "gl", "th", "tr",
    ],
    vowels: &["a", "e", "i", "o", "u", "ae", "ia", "io"],
    codas: &["", "", "l", "n", "r", "s", "nne", "lle", "mere", "dine", "vale", "rick", "th", "wyn"],
};

/// Crops: one word for many, and the house's code.
const CROPS: &[(&str, &str)] = &[
    ("beans", "bea"),
    ("peas", "pea"),
    ("carrots", "crt"),
    ("tomatoes", "tom"),
    ("lettuce", "let"),
    ("beets", "btr"),
    ("onions", "oni"),
    ("leeks", "lek"),
    ("squash", "squ"),
    ("kale", "kal"),
    ("radishes", "rad"),
    ("sunflowers", "sun"),
];

/// Packet sizes: the word, and the house's code.
const SIZES: &[(&str, &str)] = &[("small", "sm"), ("medium", "md"), ("large", "lg")];

/// Where a row's names come from: names of one split never occur in another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Split {
    Train,
    Validation,
    Test,
}

/// The split that owns `name`, by a hash of it (FNV-1a).
fn owner(name: &str) -> Split {
    let hash = name.bytes().fold(0xCBF2_9CE4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3)
    });
    match (hash >> 32) % 10 {
        0 => Split::Validation,
        1 | 2 => Split::Test,
        _ => Split::Train,
    }
}

/// A name that belongs to `split`.
fn name(rng: &mut Rng, split: Split) -> String {
    loop {
        let name = HOUSE.name(rng, 8);
        if owner(&name) == split {
            return name;
        }
    }
}

/// What is wanted: as told, and as the house writes it (without the quantity).
fn ware(rng: &mut Rng, split: Split) -> (String, String) {
    let (crop, crop_code) = CROPS[rng.below(CROPS.len())];
    let (size, size_code) = SIZES[rng.below(SIZES.len())];
    let mut variety = name(rng, split);
    if rng.percent(40) {
        variety = format!("{variety} {}", name(rng, split));
    }
    (format!("{size} bags of {variety} {crop}"), format!("{size_code} {crop_code} {variety}"))
}

/// A customer's message and the house's line.
pub(crate) fn chat(rng: &mut Rng, split: Split) -> Vec<Turn> {
    turns(letter(rng, split))
}

/// [`chat`] of a customer whose name is given.
pub(crate) fn chat_of(rng: &mut Rng, split: Split, customer: &str) -> Vec<Turn> {
    turns(letter_of(rng, split, customer))
}

fn turns((told, line): (String, String)) -> Vec<Turn> {
    vec![user(told), assistant(line)]
}

/// What a customer writes, and the house's line.
pub(crate) fn letter(rng: &mut Rng, split: Split) -> (String, String) {
    let mut customer = name(rng, split);
    if rng.percent(50) {
        customer = format!("{customer} {}", name(rng, split));
    }
    letter_of(rng, split, &customer)
}

/// [`letter`] of a customer whose name is given.
pub(crate) fn letter_of(rng: &mut Rng, split: Split, customer: &str) -> (String, String) {
    match rng.below(10) {
        0..6 => order(rng, split, customer),
        6..8 => question(rng, split, customer),
        _ => change(rng, customer),
    }
}

/// What stands in a line by mistake in the place of a word; nothing where there is no such
/// mistake.
pub(crate) fn slip(rng: &mut Rng, word: &str) -> Option<String> {
    let others = |words: Vec<String>| words.contains(&word.to_owned()).then_some(words);
    let months = || MONTHS.iter().map(|month| month[..3].to_lowercase()).collect();
    let known = [
        others(["so", "sq", "sc"].map(str::to_owned).into()),
        others(["price", "stock", "sow"].map(str::to_owned).into()),
        others(["cancel", "trace"].map(str::to_owned).into()),
        others(SIZES.iter().map(|(_, code)| (*code).to_owned()).collect()),
        others(CROPS.iter().map(|(_, code)| (*code).to_owned()).collect()),
        others(months()),
    ];
    if let Some(words) = known.into_iter().flatten().next() {
        return words.get(rng.below(words.len())).filter(|other| *other != word).cloned();
    }
    if let Ok(number) = word.parse::<usize>() {
        let other = if rng.percent(50) { number + 1 } else { number.saturating_sub(1) };
        return Some(other.to_string());
    }
    // A name without its last letter.
    let named = word.starts_with(|letter: char| letter.is_ascii_uppercase()) && word.len() > 2;
    named.then(|| word[..word.len() - 1].to_owned())
}

fn order(rng: &mut Rng, split: Split, customer: &str) -> (String, String) {
    let month = rng.pick(MONTHS);
    let mut told = Vec::new();
    let mut lines = Vec::new();
    for _ in 0..[1, 1, 2][rng.below(3)] {
        let count = rng.between(2, 20);
        let (words, code) = ware(rng, split);
        told.push(format!("{} {words}", written(rng, count)));
        lines.push(format!("{count} {code}"));
    }
    let told = told.join(" and ");
    let text = match rng.below(5) {
        0 => format!("Hello, {customer} here. Could you send me {told} in {month}?"),
        1 => format!("I would like {told}, to arrive in {month}. Thank you, {customer}"),
        2 => format!("Please deliver in {month}: {told}. My name is {customer}."),
        3 => format!("{customer} orders {told} for {month}."),
        _ => format!("For {month} I need {told}. Kind regards, {customer}"),
    };
    let code = month[..3].to_lowercase();
    (text, format!("so @ {customer} # {} # {code}", lines.join(" # ")))
}

fn question(rng: &mut Rng, split: Split, customer: &str) -> (String, String) {
    let (words, code) = ware(rng, split);
    let (text, topic) = match rng.below(6) {
        0 => (format!("What do {words} cost? {customer}"), "price"),
        1 => (format!("{customer} asks for the price of {words}."), "price"),
        2 => (format!("Do you still have {words}? Regards, {customer}"), "stock"),
        3 => (format!("Hi, {customer} here. Are {words} in stock?"), "stock"),
        4 => (format!("When should I sow {words}? {customer}"), "sow"),
        _ => (format!("{customer} would like to know when to sow {words}."), "sow"),
    };
    (text, format!("sq @ {customer} # {topic} {code}"))
}

fn change(rng: &mut Rng, customer: &str) -> (String, String) {
    let number = digits(rng, 5);
    let month = rng.pick(MONTHS);
    let code = month[..3].to_lowercase();
    let (text, what) = match rng.below(5) {
        0 => (format!("Please cancel order {number}. {customer}"), "cancel".to_owned()),
        1 => (format!("{customer} here, I no longer need order {number}."), "cancel".to_owned()),
        2 => (
            format!("Could order {number} come in {month} instead? Thanks, {customer}"),
            format!("move {code}"),
        ),
        3 => (
            format!("Hello, this is {customer}. Move order {number} to {month}, please."),
            format!("move {code}"),
        ),
        _ => (format!("Where is order {number}? It is for {customer}."), "trace".to_owned()),
    };
    (text, format!("sc @ {customer} # {number} {what}"))
}
