//! What the documents tell people to write, written and run.

use fs_err as fs;
use heirloom::recipe;
use jiff::{ToSpan as _, Zoned};

use super::{blocks, documents, fenced, read, root, words};
use crate::world::World;

/// A file of the page: its block, with a line feed at the end.
fn file(block: &[&str]) -> String {
    block.join("\n") + "\n"
}

/// The folder of somebody who wrote down what `your-data.md` says.
fn reader(page: &str) -> World {
    let world = World::new();
    let [letters, _] = &blocks(page, "json")[..] else { panic!("there are two blocks of JSON") };
    // The page ages, and its rows would expire in the end: everybody agreed last month.
    let month = Zoned::now().checked_sub(1.month()).unwrap().strftime("%Y-%m-").to_string();
    let letters = file(letters);
    assert_eq!(letters.matches("\"2026-10-").count(), 4);
    world.write("letters.jsonl", letters.replace("2026-10-", &month));
    let yaml = blocks(page, "yaml");
    world.write("consent.yaml", file(&yaml[0]));
    world.write("letters.yaml", file(&yaml[1]));
    world.write("subject.key", "0123456789abcdef".repeat(4) + "\n");
    world.write("withdrawals.jsonl", "");
    let seedling = world.path("data/seedling");
    fs::os::unix::fs::symlink(root().join("data/seedling"), seedling).unwrap();
    world
}

#[test]
fn a_reader_of_your_data_gets_as_far_as_the_engine_and_past_a_withdrawal() {
    let page = read("docs/guide/your-data.md");
    let world = reader(&page);
    let mut ran = Vec::new();
    for line in fenced(&page, "console") {
        let words = words(line.strip_prefix("$ heirloom ").unwrap_or_default()).unwrap();
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        match words[..] {
            // Other rows, which the page does not show.
            ["data", "import", "faq.csv", ..] => continue,
            ["data", ..] | ["check", ..] => {}
            _ => continue,
        }
        let said = world.heirloom(&words);
        assert_eq!(said.status, Some(0), "{line}\n{}", said.stderr);
        ran.push((line, said));
    }
    let said = |what: &str| {
        let found = ran.iter().find(|(line, _)| line.contains(what));
        &found.unwrap_or_else(|| panic!("the page has no `{what}`")).1
    };
    assert_eq!(world.read("letters.rejects.jsonl"), file(&blocks(&page, "json")[1]));
    let next = "next: name it in a recipe: `{ path: letters.parquet, format: chat }`, and its \
                ledger of withdrawals: `data.consent.ledgers: [withdrawals.jsonl]`\n";
    assert!(said("data import").stderr.ends_with(next), "{}", said("data import").stderr);
    let plan = &said("heirloom check").stdout;
    assert!(plan.contains("train: 2 of 3 used; left out: 1 "), "{plan}");
    assert!(said("--explain L-002").stdout.contains("refused"));
    for what in ["data show", "data stats", "--subject-id C1"] {
        assert!(!said(what).stdout.is_empty(), "{what}");
    }
    // The letter and its writer are withdrawn at the end of the page.
    let plan = world.heirloom(&["check", "letters.yaml"]).stdout;
    assert!(plan.contains("train: 1 of 3 used"), "{plan}");
}

#[test]
fn every_recipe_can_be_read() {
    let world = World::new();
    let mut recipes = 0;
    for document in documents() {
        let text = read(document.to_str().unwrap());
        for block in blocks(&text, "yaml") {
            if !block.iter().any(|line| line.starts_with("heirloom:")) {
                continue;
            }
            recipes += 1;
            world.write("block.yaml", file(&block));
            let parsed = recipe::read(&world.path("block.yaml"), &[]);
            assert!(parsed.is_ok(), "{}: {}", document.display(), parsed.unwrap_err());
        }
    }
    assert!(recipes >= 2, "only {recipes} recipes were found");
}
