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
    for command in ["check", "train", "eval", "generate", "chat", "export", "verify"] {
        let ran = world.heirloom(&[command, "--help"]);
        assert!(ran.stdout.contains(&format!("  heirloom {command} ")), "{}", ran.stdout);
    }
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
