//! Recipes with a chat template and tokens of their own.

use serde_json::Value;

use crate::world::{RECIPE, World};

/// A template that closes turns with the base's own token and opens them with another.
const TEMPLATE: &str = "{% for m in messages %}\
    {{ '<|im_start|>' + m.role + '\n' + m.content + '<|end|>\n' }}{% endfor %}\
    {% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

/// The recipe with `words` at its base.
fn world(template: &str, words: &str) -> World {
    let world = World::new();
    world.write("chat.jinja", template);
    let base = format!("from_scratch: true, chat_template: chat.jinja{words}");
    world.write("recipe.yaml", RECIPE.replace("from_scratch: true", &base));
    world
}

#[test]
fn a_marker_that_is_read_as_text_is_a_warning() {
    let world = world(TEMPLATE, "");
    let ran = world.heirloom(&["check", "recipe.yaml"]);
    assert_eq!(ran.status, Some(0), "{}", ran.stderr);
    let warning = "warning: the chat template writes `<|im_start|>`, which this tokenizer reads \
                   as several tokens\n  hint: if they are meant as tokens, name them in \
                   `base.added_tokens`";
    assert!(ran.stderr.contains(warning), "{}", ran.stderr);
    let ran = world.heirloom(&["check", "recipe.yaml", "--format", "json"]);
    let answer: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(answer["plan"]["warnings"].as_array().unwrap().len(), 1);
}

#[test]
fn an_added_token_ends_the_warning_and_counts_its_row() {
    let parameters = |words: &str| {
        let world = world(TEMPLATE, words);
        let ran = world.heirloom(&["check", "recipe.yaml", "--format", "json"]);
        let answer: Value = serde_json::from_str(&ran.stdout).unwrap();
        let plan = &answer["plan"];
        let tokens = plan["training"]["tokens"].as_u64().unwrap();
        let warnings = plan["warnings"].as_array().unwrap().len();
        assert_eq!(plan["added_tokens"], u64::from(!words.is_empty()));
        (plan["parameters"]["trainable"].as_u64().unwrap(), tokens, warnings)
    };
    let (without, tokens, warnings) = parameters("");
    assert_eq!(warnings, 1);
    let (with, fewer, warnings) = parameters(", added_tokens: ['<|im_start|>']");
    assert_eq!((with - without, warnings), (256, 0), "one row of the tied embedding");
    assert!(fewer < tokens);
}

#[test]
fn an_answer_without_an_end_points_to_added_tokens() {
    let world = world(&TEMPLATE.replace("<|end|>", "<|im_end|>"), "");
    let ran = world.heirloom(&["check", "recipe.yaml"]);
    assert_eq!(ran.status, Some(1));
    assert!(ran.stderr.contains("with no special token"), "{}", ran.stderr);
    assert!(ran.stderr.contains("`base.added_tokens`"), "{}", ran.stderr);
}

#[test]
fn a_template_that_is_wrong_is_placed_at_its_key() {
    let world = world("{% for %}", "");
    let ran = world.heirloom(&["check", "recipe.yaml"]);
    assert_eq!(ran.status, Some(1));
    assert!(ran.stderr.contains("recipe.yaml:3:"), "{}", ran.stderr);
    assert!(ran.stderr.contains("chat template in `chat.jinja` is wrong"), "{}", ran.stderr);
}

/// The template is an input like any other.
#[test]
fn the_template_is_pinned_in_the_lock() {
    let world = world(TEMPLATE, ", added_tokens: ['<|im_start|>']");
    let ran = world.heirloom(&["train", "recipe.yaml"]);
    assert_eq!(ran.status, Some(0), "{}", ran.stderr);
    let lock: Value = serde_json::from_str(&world.read("runs/small/recipe.lock")).unwrap();
    let paths: Vec<&str> =
        lock["base"].as_array().unwrap().iter().filter_map(|file| file["path"].as_str()).collect();
    assert_eq!(paths.iter().filter(|path| **path == "chat.jinja").count(), 1, "{paths:?}");
    world.write("chat.jinja", TEMPLATE.replace("<|end|>", "<|end|>\n"));
    let ran = world.heirloom(&["train", "recipe.yaml", "--resume"]);
    assert_eq!(ran.status, Some(1));
    assert!(ran.stderr.contains("`chat.jinja` has changed since the run began"), "{}", ran.stderr);
}
