//! `heirloom bench` up to the engine.

use serde_json::Value;

use crate::world::World;

#[test]
fn the_engine_gets_recipe_and_lock_and_nothing_is_written() {
    let world = World::new();
    // An engine that shows what it reads.
    world.write("engine", "#!/bin/sh\nprintf '%s\\n' \"$1\"\ncat\n");
    let engine = world.path("engine");
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs_err::set_permissions(&engine, mode).unwrap();
    let before = world.files();
    let mut command =
        world.command(&["bench", "recipe.yaml", "--set", "train.seed=3", "--steps", "4"]);
    let output = command.env("HEIRLOOM_ENGINE", &engine).output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut lines = said.lines();
    let mut json = || serde_json::from_str::<Value>(lines.next().unwrap()).unwrap();
    let (envelope, work) = (json(), json());
    assert_eq!(envelope["job"]["bench"]["steps"], 4);
    assert_eq!(work["recipe"]["train"]["seed"], 3);
    assert!(work["lock"]["training"]["steps"].as_u64().unwrap() > 0);
    assert_eq!(work["lock"]["base"][0]["sha256"].as_str().unwrap().len(), 64);
    assert_eq!(world.files(), before);
}

#[test]
fn rows_that_must_not_be_used_are_refused_as_in_training() {
    let world = World::new();
    let said = |command: &str| {
        let ran =
            world.heirloom(&[command, "recipe.yaml", "--set", "data.purpose=[dpv:Marketing]"]);
        assert_eq!(ran.status, Some(1), "{}", ran.stdout);
        ran.stderr
    };
    let refused = said("train");
    assert!(refused.contains("dpv:Marketing") || refused.contains("purpose"), "{refused}");
    assert_eq!(said("bench"), refused);
}

#[test]
fn no_step_is_no_measurement() {
    let ran = World::new().heirloom(&["bench", "recipe.yaml", "--steps", "0"]);
    assert_eq!(ran.status, Some(1));
    assert!(ran.stderr.contains("it must be at least 1"), "{}", ran.stderr);
}
