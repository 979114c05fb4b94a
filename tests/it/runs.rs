//! Run folders: how they begin, and when they may go on.

use serde_json::Value;

use crate::world::World;

const TRAIN: [&str; 2] = ["train", "recipe.yaml"];
const RESUME: [&str; 3] = ["train", "recipe.yaml", "--resume"];

/// A world in which training has begun.
fn begun() -> World {
    let world = World::new();
    let ran = world.heirloom(&TRAIN);
    assert_eq!(ran.status, Some(0), "{}", ran.stderr);
    world
}

#[test]
fn check_prints_the_plan() {
    let world = World::new();
    let before = world.files();
    let ran = world.heirloom(&["check", "recipe.yaml"]);
    assert_eq!(ran.status, Some(0), "{}", ran.stderr);
    assert!(
        ran.stdout.contains("train: 2,600 of 2,840 used; left out: 60 missing"),
        "{}",
        ran.stdout
    );
    assert!(ran.stdout.contains(", in 1 epoch\n"), "{}", ran.stdout);
    assert_eq!(ran.stderr, "\nnext: heirloom train recipe.yaml\n");
    assert_eq!(world.files(), before);
    assert_eq!(world.heirloom(&["check", "recipe.yaml", "--quiet"]).stderr, "");
}

#[test]
fn check_prints_json() {
    let world = World::new();
    let ran = world.heirloom(&["check", "recipe.yaml", "--format", "json"]);
    let answer: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(answer["ok"], true);
    let plan = &answer["plan"];
    assert_eq!(plan["rows"]["train"]["excluded"]["withdrawn"], 60);
    assert_eq!(plan["parameters"]["frozen"], 0);
    let steps = plan["training"]["steps"].as_u64().unwrap();
    let tokens = plan["training"]["tokens"].as_u64().unwrap();
    assert!(steps >= tokens.div_ceil(4096), "{steps} steps for {tokens} tokens");
    let parts = plan["memory"].as_object().unwrap().values().map(|part| part.as_u64().unwrap());
    assert_eq!(plan["memory_bytes"].as_u64(), Some(parts.sum()));
}

#[test]
fn a_run_begins_with_its_papers_and_the_engine_gets_the_folder() {
    let world = World::new();
    let ran = world.heirloom(&TRAIN);
    let envelope: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(envelope["version"], heirloom::VERSION);
    assert_eq!(envelope["job"]["train"]["run"], "runs/small");
    let lock: Value = serde_json::from_str(&world.read("runs/small/recipe.lock")).unwrap();
    let digest = |text: &str| heirloom::files::sha256_of_bytes(text.as_bytes());
    assert_eq!(lock["recipe_sha256"], digest(&world.read("recipe.yaml")));
    let config =
        lock["base"].as_array().unwrap().iter().find(|file| file["path"] == "base/config.json");
    assert_eq!(config.unwrap()["sha256"], digest(&world.read("base/config.json")));
    let pinned = |name: &str| {
        lock["base"].as_array().unwrap().iter().any(|file| file["path"] == format!("base/{name}"))
    };
    assert!(pinned("chat_template.jinja") && pinned("generation_config.json"));
    let splits: Vec<&Value> =
        lock["data"].as_array().unwrap().iter().map(|data| &data["split"]).collect();
    assert_eq!(splits.len(), 5);
    assert_eq!(*splits[4], serde_json::json!({ "test": "catalogue" }));
    let report: Value =
        serde_json::from_str(&world.read("runs/small/consent_report.json")).unwrap();
    assert_eq!(report["seen"], 2840 + 220 + 320);
    assert_eq!(report["used"], 2600 + 200 + 300);
    assert_eq!(report["excluded"]["withdrawn"], 60 + 5 + 5);
    assert_eq!(report["ask"]["purpose"][0], "dpv:ServiceProvision");
    assert_eq!(report["files"].as_array().unwrap().len(), 5);
    assert!(world.read("runs/small/recipe.yaml").contains("clip_grad_norm: 1"));
}

#[test]
fn an_unfinished_run_is_not_overwritten_and_goes_on() {
    let world = begun();
    world.refuses(
        &TRAIN,
        "error: the run `runs/small` is already there, and not finished\n\n\
         hint: go on with `--resume`, or train anew with another `--run`\n",
    );
    let lock = world.read("runs/small/recipe.lock");
    let ran = world.heirloom(&RESUME);
    assert_eq!(ran.status, Some(0), "{}", ran.stderr);
    assert!(ran.stdout.contains("runs/small"));
    assert_eq!(world.read("runs/small/recipe.lock"), lock);
}

#[test]
fn a_finished_run_is_neither_overwritten_nor_resumed() {
    let world = begun();
    world.write("runs/small/summary.json", "{}");
    world.write("runs/small/eval/catalogue.json", "{}");
    for arguments in [TRAIN.as_slice(), RESUME.as_slice()] {
        world.refuses(
            arguments,
            "error: the run `runs/small` is already there, and finished\n\n\
             hint: export it with `heirloom export runs/small --to merged -o DIR`, or train anew \
             with another `--run`\n",
        );
    }
}

#[test]
fn a_run_that_never_began_cannot_go_on() {
    World::new().refuses(
        &RESUME,
        "error: there is no run `runs/small` to resume\n\nhint: leave `--resume` out to begin it\n",
    );
}

#[test]
fn a_foreign_folder_is_left_alone() {
    let world = World::new();
    world.write("runs/small/notes.txt", "mine");
    world.refuses(
        &TRAIN,
        "error: `runs/small` is already there, and not a run\n\n\
         hint: choose another folder with `--run`\n",
    );
}

#[test]
fn another_recipe_is_another_run() {
    let world = begun();
    world.refuses(
        &["train", "recipe.yaml", "--resume", "--set", "train.seed=18"],
        "error: the recipe is not the one that the run `runs/small` was begun with\n  \
         - seed: 17\n  + seed: 18\n\n\
         hint: undo the changes to the recipe and give the same `--set`, or train anew with \
         another `--run`\n",
    );
}

#[test]
fn changed_inputs_are_all_named_with_their_digests() {
    let world = begun();
    let before = heirloom::files::sha256_of_file(&world.path("base/tokenizer.json")).unwrap();
    let text = world.read("base/tokenizer.json") + "\n";
    world.write("base/tokenizer.json", &text);
    let now = heirloom::files::sha256_of_bytes(text.as_bytes());
    let gone = heirloom::files::sha256_of_file(&world.path("data/train-00002.parquet")).unwrap();
    fs_err::remove_file(world.path("data/train-00002.parquet")).unwrap();
    world.refuses(
        &RESUME,
        &format!(
            "error: 2 inputs have changed since the run began\n  \
             base/tokenizer.json\n    expected sha256 {before}\n    found    {now}\n  \
             data/train-00002.parquet\n    expected sha256 {gone}\n    found    no file\n\n\
             hint: put the inputs back as they were, or start a new run with another `--run`\n"
        ),
    );
}

#[test]
fn rows_that_may_be_used_no_longer_stop_a_run() {
    let world = begun();
    // As if one more row had been allowed when the run began.
    let path = "runs/small/recipe.lock";
    let mut lock: Value = serde_json::from_str(&world.read(path)).unwrap();
    let used = lock["data"][0]["rows"]["used"].as_u64().unwrap();
    lock["data"][0]["rows"]["used"] = (used + 1).into();
    lock["data"][0]["used_sha256"] = "0".repeat(64).into();
    world.write(path, lock.to_string());
    world.refuses(
        &RESUME,
        &format!(
            "error: 1 row of `data/train-00000.parquet` may be used no longer\n  \
             data/train-00000.parquet: {} rows when the run began, {used} now\n\n\
             hint: train anew with another `--run`: a run is one set of rows\n",
            used + 1
        ),
    );
}

#[test]
fn a_base_file_added_later_stops_a_run() {
    let world = World::new();
    let generation = world.read("base/generation_config.json");
    fs_err::remove_file(world.path("base/generation_config.json")).unwrap();
    let ran = world.heirloom(&TRAIN);
    assert_eq!(ran.status, Some(0), "{}", ran.stderr);
    world.write("base/generation_config.json", generation);
    world.refuses(
        &RESUME,
        "error: `base/generation_config.json` was not there when the run began\n\n\
         hint: move it away, or train anew with another `--run`: it would change the model or \
         its tokens\n",
    );
}

#[test]
fn another_version_than_the_one_that_began_a_run_stops_it() {
    let world = begun();
    let path = "runs/small/recipe.lock";
    let mut lock: Value = serde_json::from_str(&world.read(path)).unwrap();
    lock["heirloom"] = "0.0.1".into();
    world.write(path, lock.to_string());
    world.refuses(
        &RESUME,
        &format!(
            "error: the run was begun with version 0.0.1, and this is {}\n\n\
             hint: use version 0.0.1, which makes the same steps of the same rows, or train \
             anew with another `--run`\n",
            env!("CARGO_PKG_VERSION")
        ),
    );
}

#[test]
fn a_damaged_lock_is_refused() {
    let world = begun();
    world.write("runs/small/recipe.lock", "{");
    let ran = world.heirloom(&RESUME);
    assert_eq!(ran.status, Some(1));
    let expected = "error: `runs/small/recipe.lock` is not a lock of this version\n  caused by: ";
    assert!(ran.stderr.starts_with(expected), "{}", ran.stderr);
}

#[test]
fn targets_that_are_not_ready_are_refused() {
    let world = begun();
    world.refuses(
        &["export", "runs/small", "--to", "merged", "-o", "out"],
        "error: the run `runs/small` is not finished\n\n\
         hint: finish it with `heirloom train RECIPE --resume`\n",
    );
    world.refuses(
        &["generate", "data", "--prompt", "hello"],
        "error: `data` is neither a model, nor a run, nor an adapter\n\n\
         hint: give a folder with `config.json` (a model), `recipe.lock` (a run) or \
         `adapter_config.json` (an adapter)\n",
    );
    world.refuses(
        &["eval", "base", "--suite", "data/test.parquet"],
        "error: nothing says for what purpose `data/test.parquet` may be read\n\n\
         hint: add `--purpose` with a DPV term, such as `--purpose dpv:ServiceProvision`\n",
    );
}

#[test]
fn the_engine_is_told_which_text_to_measure() {
    let world = World::new();
    world.write("text.txt", "some words\n");
    let plain = ["eval", "base", "--suite", "perplexity", "--text", "text.txt"];
    let sized = [&plain[..], &["--window", "64", "--stride", "32", "--device", "cuda:1"]].concat();
    let job = |arguments: &[&str]| {
        let ran = world.heirloom(arguments);
        serde_json::from_str::<Value>(&ran.stdout).unwrap()["job"]["perplexity"].clone()
    };
    let (plain, sized) = (job(&plain), job(&sized));
    assert_eq!((&plain["target"]["base"], &plain["text"]), (&"base".into(), &"text.txt".into()));
    assert_eq!((&plain["window"], &plain["stride"]), (&Value::Null, &Value::Null));
    assert_eq!(
        (&plain["device"], &plain["target"]["storage"]["dtype"]),
        (&"cpu".into(), &"float32".into())
    );
    assert_eq!((&sized["window"], &sized["stride"]), (&64.into(), &32.into()));
    assert_eq!(sized["device"], "cuda:1");
}

#[test]
fn texts_that_cannot_be_measured_are_refused() {
    let world = World::new();
    world.write("text.txt", "some words\n");
    world.write("latin.txt", b"caf\xe9");
    world.refuses(
        &["eval", "base", "--suite", "perplexity"],
        "error: the suite `perplexity` needs a text\n\nhint: add `--text` with a file\n",
    );
    world.refuses(
        &["eval", "base", "--suite", "catalogue", "--text", "text.txt"],
        "error: `--text` belongs to the suite `perplexity`, not to `catalogue`\n\n\
         hint: give `--suite perplexity`\n",
    );
    world.refuses(
        &["eval", "base", "--suite", "perplexity", "--text", "latin.txt"],
        "error: `latin.txt` is not UTF-8 at byte 3\n\nhint: save the text as UTF-8\n",
    );
    world.refuses(
        &["eval", "base", "--suite", "perplexity", "--text", "data"],
        "error: `data` is not a regular file\n\nhint: give a text file\n",
    );
    let sizes = [["--window", "1"], ["--stride", "0"], ["--device", "gpu"]];
    for size in sizes {
        let text = ["eval", "base", "--suite", "perplexity", "--text", "text.txt"];
        let ran = world.heirloom(&[&text[..], &size].concat());
        assert_ne!(ran.status, Some(0));
        assert!(ran.stderr.contains(size[0]) && ran.stdout.is_empty(), "{}", ran.stderr);
    }
}

#[test]
fn the_engine_is_told_what_to_measure() {
    let world = begun();
    world.write("runs/small/summary.json", "{}");
    let arguments = ["eval", "runs/small", "--suite", "catalogue", "--baseline", "base"];
    let ran = world.heirloom(&arguments);
    let job = &serde_json::from_str::<Value>(&ran.stdout).unwrap()["job"]["evaluate"];
    assert_eq!(job["target"]["base"], "runs/small/model");
    assert_eq!(job["baseline"]["base"], "base");
    assert_eq!(job["suite"]["path"], "data/test.parquet");
    assert_eq!(job["gate"]["purpose"][0], "dpv:ServiceProvision");
    world.refuses(
        &["eval", "runs/small", "--suite", "catalog"],
        "error: `catalog` is neither a suite of the run nor a file\n\n\
         hint: the run's recipe has `catalogue`\n",
    );
    world.write("data/test.parquet", "changed");
    let ran = world.heirloom(&arguments);
    assert!(
        ran.stderr.starts_with("error: `data/test.parquet` has changed since"),
        "{}",
        ran.stderr
    );
}
