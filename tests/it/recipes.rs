//! Recipes that are wrong by themselves.

use crate::world::{RECIPE, World};

#[test]
fn an_unknown_key() {
    let world = World::new();
    world.write("recipe.yaml", RECIPE.replace("epochs", "epoch"));
    for command in ["check", "train"] {
        world.refuses(
            &[command, "recipe.yaml"],
            "error: recipe.yaml:12:3: unknown key `train.epoch`\n\n\
             hint: did you mean `epochs`?\n",
        );
    }
}

#[test]
fn a_wrong_type() {
    let world = World::new();
    world.write("recipe.yaml", RECIPE.replace("epochs: 1", "epochs: one"));
    world.refuses(
        &["train", "recipe.yaml"],
        "error: recipe.yaml:12:11: `train.epochs` must be a whole number from 0 up, found `one`\n\
         \n\
         hint: write, for example, `epochs: 3`\n",
    );
}

#[test]
fn everything_at_once() {
    let world = World::new();
    let text = RECIPE.replace("model: base", "modle: base").replace("seed: 17", "seed: x");
    world.write("recipe.yaml", text.replace("tokens_per_step: 4096", "tokens_per_step: 1000"));
    world.refuses(
        &["check", "recipe.yaml", "--set", "train.max_step=3"],
        "error: the recipe `recipe.yaml` has 4 problems\n  \
         recipe.yaml:3:9: unknown key `base.modle`\n    \
         did you mean `model`?\n  \
         recipe.yaml:13:20: `train.tokens_per_step` is 1000, not a multiple of \
         `data.sequence_length` (512)\n    \
         write 1024\n  \
         recipe.yaml:15:9: `train.seed` must be a whole number from 0 up, found `x`\n    \
         write, for example, `seed: 17`\n  \
         --set train.max_step=3: unknown key `train.max_step`\n    \
         did you mean `max_steps`?\n",
    );
}

#[test]
fn problems_as_json() {
    let world = World::new();
    world.write("recipe.yaml", RECIPE.replace("epochs", "epoch"));
    let ran = world.heirloom(&["check", "recipe.yaml", "--format", "json", "--set", "name=-"]);
    let answer: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(ran.status, Some(1));
    assert_eq!(answer["ok"], false);
    assert!(answer["plan"].is_null());
    assert_eq!(
        answer["problems"][0],
        serde_json::json!({
            "file": "recipe.yaml", "line": 12, "column": 3, "set": null,
            "message": "unknown key `train.epoch`", "hint": "did you mean `epochs`?",
        })
    );
    assert_eq!(answer["problems"][1]["set"], "name=-");
}

#[test]
fn text_that_is_not_yaml() {
    let world = World::new();
    world.write("recipe.yaml", "heirloom: 1\nname: [small\n");
    world.refuses(
        &["check", "recipe.yaml"],
        "error: recipe.yaml:2:7: this is not YAML: unclosed bracket '['\n\n\
         hint: check the indentation, the quotes and the brackets up to here\n",
    );
}

#[test]
fn bytes_that_are_not_text() {
    let world = World::new();
    world.write("recipe.yaml", b"heirloom: 1\nname: \xff\n");
    world.refuses(
        &["check", "recipe.yaml"],
        "error: the recipe `recipe.yaml` is not UTF-8 at byte 18\n\n\
         hint: save the recipe as UTF-8 text\n",
    );
}

#[test]
fn a_recipe_that_is_not_there() {
    let world = World::new();
    world.refuses(
        &["check", "recipes/small.yaml"],
        "error: cannot read the recipe `recipes/small.yaml`\n  \
         caused by: failed to open file `recipes/small.yaml`: No such file or directory (os error 2)\n\n\
         hint: check the path for a typing mistake\n",
    );
}

#[test]
fn a_flood_of_bytes_is_not_read() {
    let world = World::new();
    world.refuses(
        &["check", "/dev/zero"],
        "error: the recipe `/dev/zero` is larger than 1048576 bytes\n\n\
         hint: give the recipe, a short YAML file, and not the data\n",
    );
}
