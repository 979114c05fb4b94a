//! The generator's randomness and its vocabulary: numbers, names, codes, days.
//!
//! Owns a pseudo-random generator of its own (splitmix64, Steele, Lea and Flood 2014), so that
//! the same seed gives the same bytes whatever a library's next version does. Does not own
//! sentences.

/// A splitmix64 stream.
#[derive(Clone, Debug)]
pub(crate) struct Rng(u64);

impl Rng {
    /// A stream for one purpose: `seed` is the data set's, `stream` tells its parts apart.
    pub(crate) fn new(seed: u64, stream: u64) -> Self {
        let mut rng = Self(seed ^ stream.wrapping_mul(0xD134_2543_DE82_EF95));
        rng.next();
        rng
    }

    /// The next 64 bits.
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number in `0..below`.
    pub(crate) fn below(&mut self, below: usize) -> usize {
        (self.next() % below as u64) as usize
    }

    /// A number in `low..=high`.
    pub(crate) fn between(&mut self, low: usize, high: usize) -> usize {
        low + self.below(high - low + 1)
    }

    /// True `percent` times in a hundred.
    pub(crate) fn percent(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    /// One of `items`.
    pub(crate) fn pick<'a, T: ?Sized>(&mut self, items: &[&'a T]) -> &'a T {
        items[self.below(items.len())]
    }

    /// Puts `items` into a random order.
    pub(crate) fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last + 1));
        }
    }
}

/// The syllables of one kind of made-up name.
pub(crate) struct Syllables {
    pub(crate) onsets: &'static [&'static str],
    pub(crate) vowels: &'static [&'static str],
    pub(crate) codas: &'static [&'static str],
}

/// Syllables of the general domain: many and plain, so that nothing but copying works.
pub(crate) const PLAIN: Syllables = Syllables {
    onsets: &[
        "b", "c", "d", "f", "g", "h", "j", "k", "l", "m", "n", "p", "r", "s", "t", "v", "w", "y",
        "z", "br", "ch", "cl", "cr", "dr", "fl", "fr", "gl", "gr", "kn", "pl", "pr", "qu", "sc",
        "sh", "sk", "sl", "sm", "sp", "st", "sw", "th", "tr", "tw", "wh", "",
    ],
    vowels: &[
        "a", "e", "i", "o", "u", "a", "e", "i", "o", "u", "ai", "ea", "ee", "ie", "oa", "oo", "ou",
        "y",
    ],
    codas: &[
        "", "", "", "", "", "", "", "", "", "", "", "", "", "", "b", "ck", "d", "ff", "g", "l",
        "ll", "m", "n", "nd", "ng", "nt", "p", "r", "rd", "rn", "rt", "s", "sh", "ss", "st", "t",
        "th", "tt", "x", "zz",
    ],
};

impl Syllables {
    /// A made-up word of `count` syllables, in lower case.
    pub(crate) fn word(&self, rng: &mut Rng, count: usize) -> String {
        let mut word = String::new();
        for _ in 0..count {
            word.push_str(rng.pick(self.onsets));
            word.push_str(rng.pick(self.vowels));
            word.push_str(rng.pick(self.codas));
        }
        word
    }

    /// A made-up name of two or three syllables, capitalised, at most `longest` letters.
    pub(crate) fn name(&self, rng: &mut Rng, longest: usize) -> String {
        loop {
            let count = if rng.percent(70) { 2 } else { 3 };
            let word = self.word(rng, count);
            if (3..=longest).contains(&word.len()) {
                return capitalised(&word);
            }
        }
    }
}

/// `word` with its first letter in upper case.
pub(crate) fn capitalised(word: &str) -> String {
    let mut letters = word.chars();
    letters.next().map(|first| first.to_uppercase().chain(letters).collect()).unwrap_or_default()
}

/// First names that people have.
const FIRST: &[&str] = &[
    "Ada", "Alan", "Amina", "Ana", "Ben", "Bela", "Carlo", "Chen", "Clara", "Dan", "Dora", "Ed",
    "Elif", "Emma", "Eva", "Finn", "Gita", "Hana", "Hugo", "Ida", "Igor", "Ines", "Ivan", "Jan",
    "Jo", "Kai", "Karim", "Kim", "Lars", "Lena", "Leo", "Lily", "Mara", "Max", "Mei", "Mina",
    "Nadia", "Nils", "Nora", "Omar", "Otto", "Paul", "Pia", "Rosa", "Ruth", "Sam", "Sara", "Tom",
    "Uma", "Vera", "Will", "Yara", "Yusuf", "Zoe",
];

/// A person: a first name, a made-up one, or both.
pub(crate) fn person(rng: &mut Rng) -> String {
    match rng.below(4) {
        0 => rng.pick(FIRST).to_owned(),
        1 => PLAIN.name(rng, 9),
        2 => format!("{} {}", rng.pick(FIRST), PLAIN.name(rng, 9)),
        _ => format!("{} {}", PLAIN.name(rng, 8), PLAIN.name(rng, 9)),
    }
}

/// A town that is nowhere.
pub(crate) fn town(rng: &mut Rng) -> String {
    let mut name = PLAIN.name(rng, 9);
    if rng.percent(30) {
        name.push_str(rng.pick(&["ton", "ham", "ford", "by", "wick", "burg", "field"]));
    }
    name
}

/// A code such as `KX-4071`.
pub(crate) fn code(rng: &mut Rng) -> String {
    let letters: String = (0..rng.between(1, 3)).map(|_| letter(rng)).collect();
    let digits: String = (0..rng.between(2, 4)).map(|_| digit(rng)).collect();
    match rng.below(4) {
        0 => format!("{letters}-{digits}"),
        1 => format!("{digits}{letters}"),
        2 => format!("{letters}{digits}"),
        _ => format!("{digits}-{letters}"),
    }
}

/// `count` digits, each any digit.
pub(crate) fn digits(rng: &mut Rng, count: usize) -> String {
    (0..count).map(|_| digit(rng)).collect()
}

fn letter(rng: &mut Rng) -> char {
    char::from(b'A' + rng.below(26) as u8)
}

fn digit(rng: &mut Rng) -> char {
    char::from(b'0' + rng.below(10) as u8)
}

/// A time of day, such as `7:45`.
pub(crate) fn time(rng: &mut Rng) -> String {
    format!("{}:{}{}", rng.between(1, 23), rng.below(6), rng.pick(&["0", "5"]))
}

/// Days of the week.
pub(crate) const DAYS: &[&str] =
    &["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"];

/// Months of the year.
pub(crate) const MONTHS: &[&str] = &[
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

/// Numbers below twenty, in words.
const SMALL: &[&str] = &[
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
];

/// Tens, in words.
const TENS: &[&str] = &["", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy"];

/// `number` (below 80) in words.
pub(crate) fn in_words(number: usize) -> String {
    match (number / 10, number % 10) {
        (0 | 1, _) => SMALL[number].to_owned(),
        (tens, 0) => TENS[tens].to_owned(),
        (tens, ones) => format!("{}-{}", TENS[tens], SMALL[ones]),
    }
}

/// `number` as a person may write it: in words or in digits.
pub(crate) fn written(rng: &mut Rng, number: usize) -> String {
    if number < 80 && rng.percent(65) { in_words(number) } else { number.to_string() }
}

/// Short common words that the scenes use too.
pub(crate) const COMMON: &str = "after again age am and animal as aside at back bags band be \
    before book by card chair chairs clock clocks coats code come comes cup cups day days \
    dozen drum drums eight eleven end envelope fan fans file first five flight for four from \
    gloves go guest half has hats he host hotel house in is it kettle kettles keys kilos lamp \
    lamps large last ledger like list loser me minute mirror mirrors month morn morning name \
    need nights number of on one owner pattern pen pens phone phones place plates please plus \
    put question radio radios ratio rings room ropes score seats second shirts six sky slip \
    small spoon spoons start stays street table tag takes telegram ten tents than the then \
    thing third this three ticket time title to towels town track twelve twenty two vases \
    wants warmth was we weight wheels winner with would year you";
