//! The documents against the program: what they tell people to type can be typed, and
//! (in `reference`) their tables say what the types say, (in `guide`) what they tell people to
//! write works.

mod guide;
mod reference;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use fs_err as fs;
use heirloom::recipe;

use crate::world::World;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap()
}

/// Documents whose commands are checked, relative to the repository.
fn documents() -> Vec<PathBuf> {
    let fixed =
        ["README.md", "CONTRIBUTING.md", "data/catalogue/README.md", "data/preference/README.md"];
    let mut found: Vec<PathBuf> = fixed.map(PathBuf::from).into();
    let mut folders = vec![root().join("docs")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "md") {
                found.push(path.strip_prefix(root()).unwrap().to_owned());
            }
        }
    }
    found.sort();
    found
}

/// The fenced blocks of one language, as lines.
fn blocks<'t>(text: &'t str, language: &str) -> Vec<Vec<&'t str>> {
    let mut blocks = Vec::new();
    let mut inside: Option<(&str, Vec<&str>)> = None;
    for line in text.lines() {
        match (line.strip_prefix("```"), &mut inside) {
            (Some(opened), None) => inside = Some((opened, Vec::new())),
            (Some(_), Some(_)) => {
                let found = inside.take().filter(|(found, _)| *found == language);
                blocks.extend(found.map(|(_, lines)| lines));
            }
            (None, Some((_, lines))) => lines.push(line),
            (None, None) => {}
        }
    }
    assert_eq!(inside, None, "a fence is left open");
    blocks
}

/// Lines of the fenced blocks of one language.
fn fenced<'t>(text: &'t str, language: &str) -> Vec<&'t str> {
    blocks(text, language).concat()
}

/// The words of a command as a shell takes them, up to a pipe or a redirection.
fn words(command: &str) -> Result<Vec<String>, String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    for letter in command.chars() {
        match (letter, quote) {
            ('"' | '\'', None) => (quote, word) = (Some(letter), word.or(Some(String::new()))),
            (_, Some(open)) if letter == open => quote = None,
            ('|' | '>', None) => break,
            (' ', None) => words.extend(word.take()),
            _ => word.get_or_insert_default().push(letter),
        }
    }
    words.extend(word);
    if quote.is_none() { Ok(words) } else { Err("a quote is left open".to_owned()) }
}

/// Folders that git ignores: what lies in them on this machine proves nothing.
const MADE: [&str; 5] = ["runs", "releases", "target", ".interop", "data/grow"];

/// What the quickstart leaves behind.
const OF_QUICKSTART: [&str; 4] = [
    "target/release",
    "runs/quickstart",
    "releases/quickstart-adapter",
    "releases/quickstart-merged",
];

/// A reader who types one document from its top.
#[derive(Default)]
struct Reader {
    made: BTreeSet<PathBuf>,
}

impl Reader {
    fn types(&mut self, command: &str) -> Result<(), String> {
        let words = words(command)?;
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let (&program, arguments) = words.split_first().ok_or("there is no command")?;
        // A program with a path is a path like any other.
        let output = |word: &str| ["-o", "--output", "--run"].contains(&word);
        for (index, word) in words.iter().enumerate() {
            let names_output = index > 0 && words.get(index - 1).is_some_and(|word| output(word));
            if names_output || (program == "cp" && index + 1 == words.len()) {
                self.made.insert(PathBuf::from(word));
            } else {
                self.knows(word)?;
            }
        }
        match program {
            "heirloom" | "target/release/heirloom" => self.heirloom(arguments),
            "cargo" => self.cargo(arguments),
            "export" | "cp" | "cd" | "jq" => Ok(()),
            _ if program.starts_with("scripts/") => {
                if program == "scripts/quickstart" {
                    self.made.extend(OF_QUICKSTART.map(PathBuf::from));
                }
                executable(program)
            }
            _ => Err(format!("nothing here knows how to check `{program}`")),
        }
    }

    /// A word that looks like a path is in the repository, or made by an earlier command.
    fn knows(&self, word: &str) -> Result<(), String> {
        let path = Path::new(word);
        let looks = word.contains('/') && !word.contains([' ', '$', '~', ':', '=', '*']);
        let made = self.made.iter().any(|made| path.starts_with(made));
        let kept = MADE.iter().all(|made| !path.starts_with(made)) && root().join(path).exists();
        if !looks || made || kept { Ok(()) } else { Err(format!("there is no `{word}` by then")) }
    }

    /// The real program takes the words, in a folder where it finds nothing to do.
    fn heirloom(&mut self, arguments: &[&str]) -> Result<(), String> {
        let ran = World::new().heirloom(arguments);
        if ran.stderr.contains("try '--help'") {
            return Err(ran.stderr);
        }
        let Some((&command @ ("check" | "train" | "bench"), rest)) = arguments.split_first() else {
            return Ok(());
        };
        let path = rest.first().ok_or("there is no recipe")?;
        if self.made.contains(Path::new(path)) {
            return Ok(());
        }
        let set = |pair: &&[&str]| pair.first() == Some(&"--set");
        let sets: Vec<String> = rest
            .windows(2)
            .filter(set)
            .filter_map(|pair| Some((*pair.get(1)?).to_owned()))
            .collect();
        let literal = recipe::read(&root().join(path), &sets).map_err(|error| error.to_string())?;
        if command == "train" && !rest.contains(&"--run") {
            self.made.insert(Path::new("runs").join(literal.recipe.name));
        }
        Ok(())
    }

    fn cargo(&mut self, arguments: &[&str]) -> Result<(), String> {
        let (&command, rest) = arguments.split_first().ok_or("`cargo` alone does nothing")?;
        if !["build", "clippy", "deny", "fmt", "run", "test"].contains(&command) {
            return Err(format!("`cargo {command}` is not used here"));
        }
        for pair in rest.windows(2) {
            let places = match pair {
                ["-p", "heirloom" | "heirloom-engine"] => continue,
                ["-p", _] => vec![],
                ["--example", name] => ["", "engine/"]
                    .iter()
                    .flat_map(|member| ["/main.rs", ".rs"].map(|end| (member, end)))
                    .map(|(member, end)| format!("{member}examples/{name}{end}"))
                    .collect(),
                ["--test", name] => vec![format!("tests/{name}/main.rs")],
                _ => continue,
            };
            if !places.iter().any(|place| root().join(place).is_file()) {
                return Err(format!("there is no {}", pair.join(" ")));
            }
        }
        if command == "build" && rest.contains(&"--release") {
            self.made.insert(PathBuf::from("target/release"));
        }
        Ok(())
    }
}

fn executable(path: &str) -> Result<(), String> {
    use std::os::unix::fs::PermissionsExt as _;
    let mode = fs::metadata(root().join(path)).map_err(|error| error.to_string())?;
    let may = mode.is_file() && mode.permissions().mode() & 0o111 != 0;
    if may { Ok(()) } else { Err(format!("`{path}` is not executable")) }
}

#[test]
fn every_command_can_be_typed() {
    let mut commands = 0;
    let mut complaints = Vec::new();
    for document in documents() {
        let text = read(document.to_str().unwrap());
        let mut reader = Reader::default();
        for line in fenced(&text, "console") {
            commands += 1;
            let typed = match line.strip_prefix("$ ") {
                Some(command) => reader.types(command),
                None => Err("a command begins with `$ `".to_owned()),
            };
            complaints.extend(
                typed.err().map(|what| format!("{}: {line}\n  {what}", document.display())),
            );
        }
        for language in ["sh", "bash", "shell"] {
            let hidden = fenced(&text, language).into_iter();
            complaints.extend(
                hidden.map(|line| {
                    format!("{}: {line}\n  not in a `console` fence", document.display())
                }),
            );
        }
    }
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
    assert!(commands > 30, "only {commands} commands were found");
}

/// The test above could pass by finding nothing wrong with anything.
#[test]
fn commands_that_cannot_be_typed_are_noticed() {
    for wrong in [
        "heirloom chekc recipes/quickstart.yaml",
        "heirloom check recipes/quickstart.yaml --fromat json",
        "heirloom check recipes/quickstart.yaml --format xml",
        "heirloom check recipes/quickstart.yaml --set train.epoch=1",
        "heirloom check recipes/slowstart.yaml",
        "heirloom generate data/seedling",
        "heirloom verify releases/never-made",
        "target/release/heirloom doctor",
        "scripts/libtorch-cpu.txt",
        "scripts/unheard-of",
        "cargo run --release --example unheard-of",
        "cargo test -p unheard-of",
        "rm recipes/quickstart.yaml",
        "heirloom generate data/seedling --prompt \"open",
    ] {
        assert!(Reader::default().types(wrong).is_err(), "`{wrong}` passes");
    }
    let mut reader = Reader::default();
    for right in ["cargo build --release", "target/release/heirloom doctor"] {
        reader.types(right).unwrap();
    }
}
