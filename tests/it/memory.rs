//! Runs that do not fit into memory: refused before anything is loaded, with settings that fit.

use serde_json::Value;

use crate::world::{Ran, World};

const VARIABLE: &str = "HEIRLOOM_MEMORY";

fn ran(world: &World, arguments: &[&str], memory: &str) -> Ran {
    let output = world.command(arguments).env(VARIABLE, memory).output().unwrap();
    Ran {
        status: output.status.code(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

fn check(world: &World, sets: &[&str], memory: &str) -> (Option<i32>, Value) {
    let mut arguments = vec!["check", "recipe.yaml", "--format", "json"];
    arguments.extend(sets.iter().flat_map(|set| ["--set", set]));
    let ran = ran(world, &arguments, memory);
    (ran.status, serde_json::from_str(&ran.stdout).unwrap())
}

#[test]
fn check_names_settings_that_fit_and_they_do() {
    let world = World::new();
    // What is not trained is measured in passes of 8,192 tokens, whatever the settings.
    let sets = ["data.validation=[]", "data.test=[]", "eval.suites=[]"];
    let (status, answer) = check(&world, &sets, "unlimited");
    assert_eq!(status, Some(0));
    let plan = &answer["plan"];
    assert_eq!(plan["memory_limit_bytes"], Value::Null);
    assert_eq!(plan["fitting"], serde_json::json!([]));
    let needed = plan["memory_bytes"].as_u64().unwrap();

    let limit = (needed - 10_000_000).to_string();
    let (status, answer) = check(&world, &sets, &limit);
    assert_eq!((status, &answer["ok"]), (Some(1), &Value::Bool(false)));
    let message = answer["problems"][0]["message"].as_str().unwrap();
    assert!(message.starts_with("the run would take "), "{message}");
    assert!(message.contains("`HEIRLOOM_MEMORY` allows only"), "{message}");
    let fitting = answer["plan"]["fitting"].as_array().unwrap();
    assert!(!fitting.is_empty(), "{answer}");
    for setting in fitting {
        let set = setting["set"].as_array().unwrap();
        let mut sets = sets.to_vec();
        sets.extend(set.iter().map(|set| set.as_str().unwrap()));
        let (status, answer) = check(&world, &sets, &limit);
        assert_eq!(status, Some(0), "{setting}");
        assert_eq!(answer["plan"]["memory_bytes"], setting["memory_bytes"], "{setting}");
    }
}

#[test]
fn what_does_not_fit_is_not_begun() {
    let world = World::new();
    let before = world.files();
    for command in ["train", "bench"] {
        let ran = ran(&world, &[command, "recipe.yaml"], "1 MiB");
        assert_eq!((ran.status, ran.stdout.as_str()), (Some(1), ""), "{command}");
        assert!(ran.stderr.starts_with("error: the run would take "), "{}", ran.stderr);
        assert!(ran.stderr.contains("`HEIRLOOM_MEMORY` allows only 1.0 MiB\n"), "{}", ran.stderr);
        assert!(
            ran.stderr.contains("hint: use a smaller base or another machine"),
            "{}",
            ran.stderr
        );
        assert_eq!(world.files(), before, "{command} wrote something");
    }
    let ran = ran(&world, &["train", "recipe.yaml"], "unlimited");
    assert_eq!(ran.status, Some(0), "{}", ran.stderr);
}

#[test]
fn check_prints_the_plan_before_it_refuses() {
    let world = World::new();
    let ran = ran(&world, &["check", "recipe.yaml"], "1MiB");
    assert_eq!(ran.status, Some(1));
    assert!(ran.stdout.contains("\nmemory "), "{}", ran.stdout);
    assert!(!ran.stderr.contains("next:"), "{}", ran.stderr);
}

#[test]
fn an_amount_that_is_none_is_refused() {
    let world = World::new();
    let ran = ran(&world, &["train", "recipe.yaml"], "plenty");
    assert_eq!(ran.status, Some(1));
    assert_eq!(
        ran.stderr,
        "error: `HEIRLOOM_MEMORY` is `plenty`, which is no amount of memory\n\n\
         hint: write `24GiB`, a number of bytes or `unlimited`, or unset it\n"
    );
}
