//! The scenes of the general domain: an everyday sentence or two, and what it says as slots.
//!
//! Owns sentences and their slots. Does not own what is asked about them.

use crate::words::{self, DAYS, MONTHS, PLAIN, Rng, written};

/// One thing that a scene says.
#[derive(Clone, Debug)]
pub(crate) struct Slot {
    /// What it is: `town`.
    pub(crate) label: &'static str,
    /// As an answer writes it: numbers in digits, units short.
    pub(crate) value: String,
}

/// Something told.
#[derive(Clone, Debug)]
pub(crate) struct Scene {
    /// What kind of thing happened, in one word.
    pub(crate) verb: &'static str,
    /// As it was told.
    pub(crate) text: String,
    /// What it says, in the order in which forms list it; at least two.
    pub(crate) slots: Vec<Slot>,
}

fn slot(label: &'static str, value: impl Into<String>) -> Slot {
    Slot { label, value: value.into() }
}

/// A number: as told, and as an answer writes it.
fn number(rng: &mut Rng, low: usize, high: usize) -> (String, String) {
    let number = rng.between(low, high);
    (written(rng, number), number.to_string())
}

/// Some scene.
pub(crate) fn scene(rng: &mut Rng) -> Scene {
    const SCENES: &[fn(&mut Rng) -> Scene] = &[
        visit, parcel, table, loan, game, train, shopping, shopping, shopping, phone, weather, pet,
        meeting, repair, flight, race, hotel, song,
    ];
    SCENES[rng.below(SCENES.len())](rng)
}

fn visit(rng: &mut Rng) -> Scene {
    let (name, town, day, time) =
        (words::person(rng), words::town(rng), rng.pick(DAYS), words::time(rng));
    let text = match rng.below(4) {
        0 => format!("{name} from {town} comes on {day} at {time}."),
        1 => format!("On {day} at {time} we expect {name} of {town}."),
        2 => format!("Expect a guest from {town} at {time} on {day}: {name}."),
        _ => format!("Hi, {name} here. I come over from {town} on {day}, about {time}."),
    };
    let slots = vec![slot("name", name), slot("town", town), slot("day", day), slot("time", time)];
    Scene { verb: "visit", text, slots }
}

fn parcel(rng: &mut Rng) -> Scene {
    let (code, name, town) = (words::code(rng), words::person(rng), words::town(rng));
    let (told, weight) = number(rng, 1, 40);
    let text = match rng.below(3) {
        0 => format!("The parcel {code} for {name} weighs {told} kilos and goes to {town}."),
        1 => format!("To {town}: {told} kilos, number {code}, for {name}."),
        _ => format!("{name} in {town} waits for {code}, a box of {told} kilos."),
    };
    let slots = vec![
        slot("code", code),
        slot("name", name),
        slot("weight", format!("{weight} kg")),
        slot("town", town),
    ];
    Scene { verb: "parcel", text, slots }
}

fn table(rng: &mut Rng) -> Scene {
    let (name, day, time) = (words::person(rng), rng.pick(DAYS), words::time(rng));
    let (told, seats) = number(rng, 2, 15);
    let text = match rng.below(4) {
        0 => format!("{name} would like a table for {told} at {time} on {day}."),
        1 => format!("A table for {told}, please, {day} at {time}. My name is {name}."),
        2 => format!("We are {told} and we come at {time} this {day}. Ask for {name}."),
        _ => format!("Could you keep {told} seats on {day}, from {time}? Thanks, {name}"),
    };
    let slots =
        vec![slot("name", name), slot("seats", seats), slot("day", day), slot("time", time)];
    Scene { verb: "table", text, slots }
}

fn loan(rng: &mut Rng) -> Scene {
    let name = words::person(rng);
    let title = format!("{} {}", PLAIN.name(rng, 9), PLAIN.name(rng, 9));
    let month = rng.pick(MONTHS);
    let (told, day) = number(rng, 1, 30);
    let text = match rng.below(3) {
        0 => format!("{name} borrowed the book {title} until day {told} of {month}."),
        1 => format!("The book {title} is due in {month}, day {told}; {name} has it."),
        _ => format!("Hello, {name} speaking. In {month} I bring {title} back, on day {told}."),
    };
    let slots = vec![
        slot("title", title),
        slot("name", name),
        slot("day", day),
        slot("month", &month[..3]),
    ];
    Scene { verb: "loan", text, slots }
}

fn game(rng: &mut Rng) -> Scene {
    let (one, two, town) = (words::town(rng), words::town(rng), words::town(rng));
    let (won, lost) = (rng.between(5, 19), rng.between(0, 4));
    let (a, b) = (written(rng, won), written(rng, lost));
    let text = match rng.below(3) {
        0 => format!("{one} beat {two} by {a} to {b} in {town}."),
        1 => format!("In {town}, {two} lost to {one}, {a} to {b}."),
        _ => format!("What a game in {town}! {a} to {b} for {one} against {two}."),
    };
    let slots = vec![
        slot("winner", one),
        slot("loser", two),
        slot("score", format!("{won} - {lost}")),
        slot("place", town),
    ];
    Scene { verb: "game", text, slots }
}

fn train(rng: &mut Rng) -> Scene {
    let (from, to, time) = (words::town(rng), words::town(rng), words::time(rng));
    let (told, track) = number(rng, 1, 24);
    let text = match rng.below(3) {
        0 => format!("The {time} train from {from} to {to} leaves from track {told}."),
        1 => format!("Track {told}: to {to}, coming from {from}, at {time}."),
        _ => format!("I go to {to} by the {time} from {from}. It stops at track {told}."),
    };
    let slots =
        vec![slot("time", time), slot("start", from), slot("end", to), slot("track", track)];
    Scene { verb: "train", text, slots }
}

/// Goods: one, several.
const GOODS: &[(&str, &str)] = &[
    ("bag", "bags"),
    ("lamp", "lamps"),
    ("kettle", "kettles"),
    ("chair", "chairs"),
    ("clock", "clocks"),
    ("coat", "coats"),
    ("cup", "cups"),
    ("drum", "drums"),
    ("fan", "fans"),
    ("glove", "gloves"),
    ("hat", "hats"),
    ("key", "keys"),
    ("mirror", "mirrors"),
    ("pen", "pens"),
    ("phone", "phones"),
    ("plate", "plates"),
    ("radio", "radios"),
    ("ring", "rings"),
    ("rope", "ropes"),
    ("shirt", "shirts"),
    ("spoon", "spoons"),
    ("tent", "tents"),
    ("towel", "towels"),
    ("vase", "vases"),
    ("wheel", "wheels"),
];

/// How a person may write small quantities that have words of their own.
fn quantity(rng: &mut Rng) -> (String, usize) {
    match rng.below(12) {
        0 => ("a".to_owned(), 1),
        1 => (rng.pick(&["a pair of", "a couple of"]).to_owned(), 2),
        2 => ("half a dozen".to_owned(), 6),
        3 => ("a dozen".to_owned(), 12),
        _ => {
            let count = rng.between(1, 30);
            (written(rng, count), count)
        }
    }
}

/// Things of a made-up make: as told, and as an answer writes it.
fn goods(rng: &mut Rng) -> (String, String) {
    let (told, count) = quantity(rng);
    let (one, several) = GOODS[rng.below(GOODS.len())];
    let noun = if count == 1 { one } else { several };
    let mut make = PLAIN.name(rng, 9);
    if rng.percent(50) {
        make = format!("{make} {}", PLAIN.name(rng, 9));
    }
    let size = rng.pick(&["small", "large", "", ""]);
    let (before, after) = if size.is_empty() {
        (String::new(), String::new())
    } else {
        (format!("{size} "), format!("{size} "))
    };
    (format!("{told} {before}{make} {noun}"), format!("{count} {after}{noun} {make}"))
}

fn shopping(rng: &mut Rng) -> Scene {
    const PLACES: &[&str] = &["first", "second", "third"];
    let name = words::person(rng);
    let items: Vec<_> = (0..rng.between(1, 3)).map(|_| goods(rng)).collect();
    let told: Vec<&str> = items.iter().map(|(told, _)| told.as_str()).collect();
    let told = match told.split_last() {
        Some((last, [])) => (*last).to_owned(),
        Some((last, rest)) => format!("{} and {last}", rest.join(", ")),
        None => String::new(),
    };
    let text = match rng.below(4) {
        0 => format!("{name} wants {told}."),
        1 => format!("Please get {told} for {name}."),
        2 => format!("Good day, I am {name} and I would like {told}."),
        _ => format!("Could you put aside {told}? Thank you, {name}"),
    };
    let mut slots = vec![slot("name", name)];
    for (label, (_, value)) in PLACES.iter().zip(items) {
        slots.push(slot(label, value));
    }
    Scene { verb: "shopping", text, slots }
}

fn phone(rng: &mut Rng) -> Scene {
    let (name, street, number) = (words::person(rng), PLAIN.name(rng, 9), words::digits(rng, 6));
    let house = rng.between(1, 99).to_string();
    let text = match rng.below(3) {
        0 => format!("{name} lives at {house} {street} Street, phone {number}."),
        1 => format!("Call {name} on {number}. The house is {house} {street} Street."),
        _ => format!("My number is {number}, my street {street} Street {house}. {name}"),
    };
    let slots = vec![
        slot("name", name),
        slot("phone", number),
        slot("street", street),
        slot("house", house),
    ];
    Scene { verb: "contact", text, slots }
}

fn weather(rng: &mut Rng) -> Scene {
    let (town, day) = (words::town(rng), rng.pick(DAYS));
    let sky = rng.pick(&["sunny", "cloudy", "windy", "rainy", "foggy", "dry", "snowy"]);
    let (told, warmth) = number(rng, 1, 35);
    let text = match rng.below(3) {
        0 => format!("In {town} it is {sky} on {day}, with {told} degrees."),
        1 => format!("{day} brings {told} degrees to {town}; it stays {sky}."),
        _ => format!("A {sky} {day} in {town}: {told} degrees."),
    };
    let slots = vec![
        slot("town", town),
        slot("day", &day[..3]),
        slot("sky", sky),
        slot("warmth", format!("{warmth} C")),
    ];
    Scene { verb: "weather", text, slots }
}

fn pet(rng: &mut Rng) -> Scene {
    let (name, pet) = (words::person(rng), PLAIN.name(rng, 9));
    let colour = rng.pick(&["black", "white", "brown", "grey", "red", "golden"]);
    let animal = rng.pick(&["cat", "dog", "horse", "goat", "parrot", "rabbit", "mouse"]);
    let (told, age) = number(rng, 1, 19);
    let text = match rng.below(3) {
        0 => format!("{name} has a {colour} {animal} called {pet}, {told} years old."),
        1 => format!("{pet} is the {colour} {animal} of {name} and is {told} now."),
        _ => format!("My {animal} {pet} is {colour} and turns {told}. {name}"),
    };
    let slots = vec![
        slot("owner", name),
        slot("animal", format!("{colour} {animal}")),
        slot("name", pet),
        slot("age", age),
    ];
    Scene { verb: "pet", text, slots }
}

fn meeting(rng: &mut Rng) -> Scene {
    let (one, two, time) = (words::person(rng), words::person(rng), words::time(rng));
    let room = rng.between(1, 399).to_string();
    let text = match rng.below(3) {
        0 => format!("{one} meets {two} in room {room} at {time}."),
        1 => format!("At {time} {two} will be in room {room}, as {one} asked."),
        _ => format!("Room {room} is for {one}, who sees {two} at {time}."),
    };
    let slots = vec![slot("host", one), slot("guest", two), slot("room", room), slot("time", time)];
    Scene { verb: "meeting", text, slots }
}

fn repair(rng: &mut Rng) -> Scene {
    let (name, code) = (words::person(rng), words::code(rng));
    let thing = format!("{} {}", PLAIN.name(rng, 9), GOODS[rng.below(GOODS.len())].0);
    let (told, days) = number(rng, 2, 30);
    let text = match rng.below(3) {
        0 => format!("{name} brought a broken {thing}, number {code}, ready in {told} days."),
        1 => format!("In {told} days {name} gets the {thing} back. The number is {code}."),
        _ => format!("Number {code}: the {thing} of {name} takes {told} days."),
    };
    let slots =
        vec![slot("code", code), slot("thing", thing), slot("owner", name), slot("days", days)];
    Scene { verb: "repair", text, slots }
}

fn flight(rng: &mut Rng) -> Scene {
    let (code, name, to) = (words::code(rng), words::person(rng), words::town(rng));
    let month = rng.pick(MONTHS);
    let text = match rng.below(3) {
        0 => format!("{name} flies to {to} in {month} with {code}."),
        1 => format!("Flight {code} takes {name} to {to}, some time in {month}."),
        _ => format!("For {month}: {to}, flight {code}, one seat for {name}."),
    };
    let slots =
        vec![slot("flight", code), slot("end", to), slot("month", &month[..3]), slot("name", name)];
    Scene { verb: "flight", text, slots }
}

fn race(rng: &mut Rng) -> Scene {
    let (one, two, three) = (words::person(rng), words::person(rng), words::person(rng));
    let text = match rng.below(3) {
        0 => format!("{one} won, {two} came second and {three} third."),
        1 => format!("Third was {three}, second {two}; the race went to {one}."),
        _ => format!("{two} was faster than {three} but not than {one}."),
    };
    let slots = vec![slot("first", one), slot("second", two), slot("third", three)];
    Scene { verb: "race", text, slots }
}

fn hotel(rng: &mut Rng) -> Scene {
    let (name, hotel, month) = (words::person(rng), PLAIN.name(rng, 10), rng.pick(MONTHS));
    let (told, nights) = number(rng, 2, 21);
    let text = match rng.below(3) {
        0 => format!("{name} stays {told} nights at the {hotel} in {month}."),
        1 => format!("Please book the {hotel} in {month}, {told} nights, for {name}."),
        _ => format!("For {told} nights of {month} the {hotel} has a room for {name}."),
    };
    let slots = vec![
        slot("hotel", hotel),
        slot("nights", nights),
        slot("month", &month[..3]),
        slot("name", name),
    ];
    Scene { verb: "hotel", text, slots }
}

fn song(rng: &mut Rng) -> Scene {
    let title = format!("{} {}", PLAIN.name(rng, 9), PLAIN.name(rng, 9));
    let (band, year) = (PLAIN.name(rng, 10), rng.between(1950, 2020).to_string());
    let text = match rng.below(3) {
        0 => format!("{band} sang {title} in {year}."),
        1 => format!("The song {title} is from {year}; {band} made it."),
        _ => format!("In {year} everyone knew {title} by {band}."),
    };
    let slots = vec![slot("title", title), slot("band", band), slot("year", year)];
    Scene { verb: "song", text, slots }
}
