//! Help, version, exit status, pipes.

use std::io::Read as _;
use std::process::Stdio;

use crate::world::World;

#[test]
fn help_is_data_and_shows_examples() {
    let world = World::new();
    let ran = world.heirloom(&["--help"]);
    assert_eq!((ran.status, ran.stderr.as_str()), (Some(0), ""));
    assert!(ran.stdout.contains("heirloom train recipes/quickstart.yaml"), "{}", ran.stdout);
    for command in ["check", "train", "bench", "eval", "generate", "chat", "export", "verify"] {
        let ran = world.heirloom(&[command, "--help"]);
        assert!(ran.stdout.contains(&format!("  heirloom {command} ")), "{}", ran.stdout);
    }
}

#[test]
fn help_names_the_hub_and_how_windows_count() {
    let world = World::new();
    for command in ["eval", "generate", "chat"] {
        let ran = world.heirloom(&[command, "--help"]);
        assert!(ran.stdout.contains("hf://org/name@revision"), "{}", ran.stdout);
    }
    let words = world.heirloom(&["eval", "--help"]).stdout;
    let words = words.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(words.contains("score each token once, and the mean is over scored tokens"), "{words}");
}

#[test]
fn a_negative_number_is_out_of_range_and_no_option() {
    let world = World::new();
    for (option, told) in [
        ("--top-k", "it must be a whole number, 0 or more"),
        ("--max-new-tokens", "it must be a whole number, 0 or more"),
        ("--seed", "it must be a whole number, 0 or more"),
        ("--eos-token-id", "it must be a whole number, 0 or more"),
        ("--batch-size", "it must be a whole number, at least 1"),
        ("--temperature", "`temperature` is -1, not 0 or more"),
        ("--top-p", "`top_p` is -1, not between 0 and 1"),
        ("--min-p", "`min_p` is -1, not between 0 and 1"),
        ("--repetition-penalty", "`repetition_penalty` is -1, not above 0"),
    ] {
        let ran = world.heirloom(&["generate", "base", "hi", option, "-1"]);
        assert_eq!(ran.status, Some(1));
        assert!(ran.stderr.contains(told) && !ran.stderr.contains("'-- -1'"), "{}", ran.stderr);
    }
}

#[test]
fn answers_over_their_own_requests_or_a_pipe_are_refused() {
    let world = World::new();
    let requests = "{\"prompt\": \"hi\"}\n";
    world.write("a.jsonl", requests);
    std::os::unix::fs::symlink("a.jsonl", world.path("link.jsonl")).unwrap();
    for output in ["a.jsonl", "./a.jsonl", "link.jsonl"] {
        let ran = world.heirloom(&["generate", "base", "--input", "a.jsonl", "-o", output]);
        assert_eq!(ran.status, Some(1));
        let told = "error: `--output` names the file of the requests, `a.jsonl`";
        assert!(ran.stderr.starts_with(told), "{}", ran.stderr);
    }
    assert_eq!(world.read("a.jsonl"), requests);
    let pipe = world.path("pipe");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let ran = world.heirloom(&["generate", "base", "--input", "a.jsonl", "-o", "pipe"]);
    let told = "error: `pipe` is there and is not a regular file\n\nhint: name a regular file";
    assert!(ran.stderr.starts_with(told), "{}", ran.stderr);
    use std::os::unix::fs::FileTypeExt as _;
    assert!(pipe.symlink_metadata().unwrap().file_type().is_fifo());
}

#[test]
fn version_is_that_of_the_workspace() {
    let ran = World::new().heirloom(&["--version"]);
    assert_eq!(ran.stdout, format!("heirloom {}\n", heirloom::VERSION));
}

#[test]
fn a_mistake_on_the_command_line_is_the_users() {
    let ran = World::new().heirloom(&["chekc"]);
    assert_eq!((ran.status, ran.stdout.as_str()), (Some(1), ""));
    assert!(ran.stderr.contains("check"), "{}", ran.stderr);
}

#[test]
fn a_reader_that_leaves_early_is_no_error() {
    let world = World::new();
    let mut command = world.command(&["completions", "zsh"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!((child.wait().unwrap().code(), said.as_str()), (Some(0), ""));
}

#[test]
fn colour_only_where_it_is_wanted() {
    let world = World::new();
    let plain = world.heirloom(&["check", "nowhere.yaml"]);
    assert!(!plain.stderr.contains('\x1b'));
    let forced = |no_color: Option<&str>| {
        let mut command = world.command(&["check", "nowhere.yaml"]);
        command.env("CLICOLOR_FORCE", "1");
        if let Some(value) = no_color {
            command.env("NO_COLOR", value).env_remove("CLICOLOR_FORCE");
        }
        String::from_utf8(command.output().unwrap().stderr).unwrap().contains('\x1b')
    };
    assert!(forced(None));
    assert!(!forced(Some("1")));
}

#[test]
fn a_missing_engine_says_how_to_build_it() {
    let world = World::new();
    let mut command = world.command(&["train", "recipe.yaml"]);
    let output = command.env("HEIRLOOM_ENGINE", "nowhere/engine").output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(
        String::from_utf8(output.stderr).unwrap(),
        "error: there is no program `nowhere/engine`\n\n\
         hint: build it beside this program with `scripts/setup` and then `cargo build --release`, \
         or set `HEIRLOOM_ENGINE` to where it is\n"
    );
    assert!(!world.path("runs").exists());
}

#[test]
fn doctor_tells_that_an_engine_is_not_one() {
    let ran = World::new().heirloom(&["doctor"]);
    // The script that stands in for the engine prints `--version` back.
    assert_eq!(ran.status, Some(1));
    assert!(ran.stdout.contains("which is not version"), "{}", ran.stdout);
    assert!(ran.stdout.contains("cores "), "{}", ran.stdout);
}
