//! Tests of reading: what is found, where, and in which words.

use std::path::Path;

use proptest::prelude::*;

use super::super::problem::RecipeError;
use super::super::*;
use super::{Literal, parse};

const GOOD: &str = "\
heirloom: 1
name: small
base: { model: base }
adapter:
  lora: { rank: 4, alpha: 8 }
data:
  purpose: [dpv:ServiceProvision]
  train: [{ path: train.parquet, format: chat }]
  test: [{ name: held-out, path: test.parquet, format: chat }]
  sequence_length: 128
train:
  epochs: 1
  tokens_per_step: 256
  optimizer: { adamw: { lr: 1e-3 } }
  seed: 1
eval:
  suites: [held-out]
  gates: [{ metric: held-out/exact_match, at_least: 0.5 }]
";

fn good(sets: &[&str]) -> Result<Literal, RecipeError> {
    read_text(GOOD, sets)
}

fn read_text(text: &str, sets: &[&str]) -> Result<Literal, RecipeError> {
    let sets: Vec<String> = sets.iter().map(|&set| set.to_owned()).collect();
    parse(Path::new("r.yaml"), text, &sets)
}

/// Every problem, one a line, with its hint.
fn problems(result: Result<Literal, RecipeError>) -> Vec<String> {
    match result.unwrap_err() {
        RecipeError::Problems { problems, .. } => problems
            .iter()
            .map(|problem| format!("{problem} | {}", problem.fault.hint().unwrap_or_default()))
            .collect(),
        other => panic!("{other}"),
    }
}

#[test]
fn a_layer_that_stays_unquantised_has_a_name() {
    let found = problems(good(&["base.quantization=nf4", "base.unquantized=['']"]));
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].contains("`base.unquantized[0]` is blank"), "{found:?}");
}

/// The one problem of the good recipe after one change.
fn problem_of(set: &str) -> String {
    let found = problems(good(&[set]));
    assert_eq!(found.len(), 1, "{found:?}");
    let at_the_option = found[0].strip_prefix(&format!("--set {set}: "));
    // A condition of a gate is wrong together with those in the file.
    let in_the_file = || found[0].strip_prefix("r.yaml:18:11: ");
    at_the_option.or_else(in_the_file).unwrap_or_else(|| panic!("{found:?}")).to_owned()
}

#[test]
fn a_good_recipe_is_read_with_its_defaults() {
    let literal = good(&[]).unwrap();
    let recipe = &literal.recipe;
    assert_eq!(recipe.base.dtype, Dtype::Float32);
    assert_eq!(recipe.data.processing, [DEFAULT_PROCESSING]);
    assert_eq!(recipe.train.clip_grad_norm, 1.0);
    assert_eq!(
        recipe.train.optimizer,
        Optimizer::Adamw(Adamw { lr: 1e-3, betas: (0.9, 0.999), eps: 1e-8, weight_decay: 0.0 })
    );
    assert_eq!(literal.sha256, crate::files::sha256_of_bytes(GOOD.as_bytes()));
}

#[test]
fn a_key_is_located_at_its_value_or_at_the_nearest_key_above() {
    let literal = good(&[]).unwrap();
    let at = |key: &str| match literal.locate(key) {
        problem::Place::File { line, column } => (line, column),
        place => panic!("{place:?}"),
    };
    assert_eq!(at("data.train[0].path"), (8, 19));
    assert_eq!(at("adapter.lora.targets"), (5, 3));
    assert_eq!(at("train.schedule.cosine.warmup_ratio"), (11, 1));
    assert_eq!(at("nowhere"), (1, 1));
}

#[test]
fn every_problem_is_found_in_one_reading() {
    let text = "\
heirloom: 1
name: small
base:
  modle: base
  dtype: bfloat61
adapter:
  loar: { rank: 4 }
data:
  purpose: ServiceProvision
  train:
    - { path: [a], format: chat }
    - { path: b }
  sequence_length: 128
train:
  epochs: many
  tokens_per_step: -5
  tokens_per_step: 256
  optimizer: { adamw: { lr: .inf, betas: [0.9] } }
  seed: 1
  shedule: { cosine: {} }
";
    assert_eq!(
        problems(read_text(text, &[])),
        [
            "r.yaml:4:3: unknown key `base.modle` | did you mean `model`?",
            "r.yaml:5:10: `base.dtype` cannot be `bfloat61` | did you mean `bfloat16`?",
            "r.yaml:7:3: `adapter` cannot be `loar` | did you mean `lora`?",
            "r.yaml:9:12: `data.purpose` must be a list (`[a, b]`), found `ServiceProvision` | \
             write, for example, `purpose: [dpv:ServiceProvision]`",
            "r.yaml:11:9: `data.train[0].path` must be text, found a list | \
             write, for example, `path: data/catalogue/train-*.parquet`",
            "r.yaml:12:7: `data.train[1].format` is missing | add `format: chat`",
            "r.yaml:15:11: `train.epochs` must be a whole number from 0 up, found `many` | \
             write, for example, `epochs: 3`",
            "r.yaml:16:20: `train.tokens_per_step` must be a whole number from 0 up, found `-5` | \
             write, for example, `tokens_per_step: 4096`",
            "r.yaml:17:3: `train.tokens_per_step` stands twice | keep one of the two",
            "r.yaml:18:29: `train.optimizer.adamw.lr` must be a number, found `.inf` | \
             write, for example, `lr: 2.0e-4`",
            "r.yaml:18:35: `train.optimizer.adamw.betas` must be a list of 2 values, found 1 | \
             write, for example, `betas: [0.9, 0.999]`",
            "r.yaml:20:3: unknown key `train.shedule` | did you mean `schedule`?",
        ]
    );
}

#[test]
fn each_rule_refuses_what_it_should() {
    for (set, expected) in [
        ("heirloom=2", "`heirloom` is 2, and this version reads format 1"),
        ("name=../etc", "`name` cannot be the name of a file"),
        ("name=.hidden", "`name` cannot be the name of a file"),
        ("base.from_scratch=true", "`base.from_scratch` draws new weights"),
        ("base.quantization=nf-4", "`base.quantization` cannot be `nf-4` | did you mean `nf4`?"),
        ("base.unquantized=[down_proj]", "`base.unquantized` leaves layers out of a quantisation"),
        ("adapter.lora.rank=0", "`adapter.lora.rank` must be at least 1"),
        ("adapter.lora.rank=65537", "`adapter.lora.rank` is 65537, more than the 65536"),
        ("adapter.lora.alpha=0", "`adapter.lora.alpha` must be greater than 0"),
        ("adapter.lora.dropout=1", "`adapter.lora.dropout` must be at least 0 and less than 1"),
        ("adapter.lora.targets=[]", "`adapter.lora.targets` is empty"),
        ("adapter={ unfrozen_parameters: [] }", "`adapter.unfrozen_parameters` has no name"),
        ("adapter={ unfrozen_parameters: [a, ''] }", "`adapter.unfrozen_parameters` has no name"),
        ("adapter={ from: '' }", "`adapter.from` is empty"),
        ("adapter.lora.rank_pattern={ q_proj: 0 }", "`adapter.lora.rank_pattern` gives `q_proj` a"),
        ("adapter.lora.alpha_pattern={ q: -1 }", "`adapter.lora.alpha_pattern` gives `q` an alpha"),
        ("adapter.lora.alpha_pattern=3", "`adapter.lora.alpha_pattern` must be a mapping"),
        ("adapter.lora.layers_to_transform=[1, 1]", "`adapter.lora.layers_to_transform` names a"),
        ("adapter.lora.bias=lora-only", "`adapter.lora.bias` cannot be `lora-only` | did you mean"),
        (
            "adapter.lora.init_lora_weights=pisa",
            "`adapter.lora.init_lora_weights` cannot be `pisa`",
        ),
        ("adapter.lora.init_lora_weights=loftq", "`adapter.lora.init_lora_weights` starts from wh"),
        (
            "adapter.lora.init_lora_weights=pissa_niter_1001",
            "`adapter.lora.init_lora_weights` is 1001",
        ),
        (
            "adapter.lora={ rank: 2, alpha: 4, dropout: 0.1, target_parameters: [a] }",
            "`adapter.lora.dropout` drops inputs, and PEFT has none for `target_parameters`",
        ),
        (
            "adapter.lora={ rank: 2, alpha: 4, use_dora: true, target_parameters: [a] }",
            "`adapter.lora.use_dora` trains lengths of rows, and PEFT has none",
        ),
        (
            "adapter.lora={ rank: 2, alpha: 4, init_lora_weights: pissa, target_parameters: [a] }",
            "`adapter.lora.init_lora_weights` is a start that decomposes weights",
        ),
        ("adapter={ vera: { rank: 0 } }", "`adapter.vera.rank` must be at least 1"),
        (
            "adapter={ vera: { rank: 8, d_initial: 0 } }",
            "`adapter.vera.d_initial` is 0, from which",
        ),
        ("adapter={ vera: { rank: 8, dropout: 1 } }", "`adapter.vera.dropout` must be at least 0"),
        ("adapter={ vera: { rank: 8, targets: [] } }", "`adapter.vera.targets` is empty"),
        (
            "adapter={ vera: { rank: 8, layers_to_transform: [1, 1] } }",
            "`adapter.vera.layers_to_transform` names a block twice",
        ),
        ("adapter.lora.targets=all-liner", "`adapter.lora.targets` must be `all-linear` or a list"),
        ("data.purpose=[]", "`data.purpose` is empty"),
        ("data.purpose=[Research]", "`data.purpose[0]` is not a term"),
        ("data.processing=['ai:']", "`data.processing[0]` is not a term"),
        ("data.max_hours=0", "`data.max_hours` must be at least 1"),
        ("data.train=[]", "`data.train` is empty"),
        ("data.test.0.max_new_tokens=0", "`data.test[0].max_new_tokens` must be at least 1"),
        ("train.epochs=0", "`train.epochs` must be at least 1"),
        ("train.epochs=100001", "`train.epochs` is 100001, more than the 100000"),
        ("train.max_steps=0", "`train.max_steps` must be at least 1"),
        ("train.tokens_per_step=100", "`train.tokens_per_step` is 100, not a multiple"),
        ("train.tokens_per_step=300", "`train.tokens_per_step` is 300, not a multiple"),
        ("train.micro_batch_tokens=64", "`train.micro_batch_tokens` is 64, less than one window"),
        ("train.tokens_per_step=2147483776", "`train.tokens_per_step` is 2147483776, more than"),
        ("train.micro_batch_tokens=2147483649", "`train.micro_batch_tokens` is 2147483649, more"),
        (
            "train.activation_checkpointing=full",
            "`train.activation_checkpointing` cannot be `full`",
        ),
        ("train.activation_offload=true", "`train.activation_offload` moves the inputs of"),
        ("train.clip_grad_norm=-1", "`train.clip_grad_norm` must not be negative"),
        ("train.optimizer.adamw.lr=0", "`train.optimizer.adamw.lr` must be greater than 0"),
        ("train.optimizer.adamw.betas=[1, 0]", "`train.optimizer.adamw.betas[0]` must be at least"),
        ("train.schedule={cosine: {warmup_ratio: 2}}", "`train.schedule.cosine.warmup_ratio` must"),
        ("train.schedule={linear: {warmup_ratio: 2}}", "`train.schedule.linear.warmup_ratio` must"),
        (
            "train.schedule={cosine_with_restarts: {num_cycles: 0}}",
            "`train.schedule.cosine_with_restarts.num_cycles` must be at least 1",
        ),
        (
            "train.schedule={warmup_stable_decay: {decay_ratio: 0.98}}",
            "`train.schedule.warmup_stable_decay.decay_ratio` and `warmup_ratio` are more than",
        ),
        (
            "train.schedule={inverse_sqrt: {timescale: 0}}",
            "`train.schedule.inverse_sqrt.timescale` must be at least 1",
        ),
        ("train.schedule={polynomial: {}}", "`train.schedule` cannot be `polynomial`"),
        ("train.optimizer={lion: {lr: 1, betas: [1, 0]}}", "`train.optimizer.lion.betas[0]` must"),
        (
            "train.optimizer={adamw_8bit: {lr: -1}}",
            "`train.optimizer.adamw_8bit.lr` must be greater than 0",
        ),
        (
            "train.optimizer={adafactor: {lr: 1, decay_rate: 0.8}}",
            "`train.optimizer.adafactor.decay_rate` must be less than 0",
        ),
        (
            "train.optimizer={adafactor: {lr: 1, relative_step: true}}",
            "unknown key `train.optimizer.adafactor.relative_step`",
        ),
        (
            "train.optimizer={muon: {lr: 1, adamw: {lr: 1}}}",
            "`train.optimizer.muon` is for the matrices of a base, and an adapter's are parts",
        ),
        ("train.param_groups=[{params: []}]", "`train.param_groups[0].params` is empty"),
        ("train.param_groups=[{params: ['a..b']}]", "`train.param_groups[0].params[0]` has an"),
        (
            "train.param_groups=[{params: [a], lr_ratio: 0}]",
            "`train.param_groups[0].lr_ratio` must be greater than 0",
        ),
        ("train.label_smoothing_factor=1", "`train.label_smoothing_factor` must be at least 0"),
        ("train.neftune_noise_alpha=0", "`train.neftune_noise_alpha` must be greater than 0"),
        ("train.loraplus_lr_ratio=0", "`train.loraplus_lr_ratio` must be greater than 0"),
        ("eval.suites.0=held-on", "`eval.suites[0]` names `held-on`"),
        ("eval.gates.0.metric=held-out/accuracy", "`eval.gates[0].metric` asks for `accuracy`"),
        ("eval.gates.0.metric=exact_match", "`eval.gates[0].metric` is not of the form"),
        ("eval.gates.0.at_most=1", "`eval.gates[0]` needs one condition"),
        ("train.epoch=3", "unknown key `train.epoch` | did you mean `epochs`?"),
        ("train.seed=99999999999999999999", "`train.seed` must be at most 18446744073709551615"),
    ] {
        // A suite that is not there has a gate that is about it, too.
        if set.starts_with("eval.suites") {
            assert!(problems(good(&[set]))[1].contains(expected), "{set}");
            continue;
        }
        let found = problem_of(set);
        assert!(found.starts_with(expected), "{set}: {found}");
    }
    assert!(problem_of("train.tokens_per_step=300").ends_with("| write 256"));
    assert!(problem_of("data.sequence_length=4").contains("at least 8"));
    // A step is a multiple of the window, so both are too large.
    let sets = ["data.sequence_length=2147483649", "train.tokens_per_step=2147483649"];
    let found = problems(good(&sets));
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(found[0].contains("`data.sequence_length` is 2147483649, more than"), "{found:?}");
}

#[test]
fn weights_that_are_all_new_have_no_baseline() {
    let found = problems(good(&[
        "adapter=full",
        "eval.gates.0={metric: held-out/loss, at_least_baseline: true}",
    ]));
    let expected = "`eval.gates[0].at_least_baseline` has nothing to compare with: \
                    `adapter: full` leaves no base beside the new weights | \
                    write `at_least: NUMBER` or `at_most: NUMBER` instead";
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].ends_with(expected), "{found:?}");
    assert!(good(&["eval.gates.0={metric: held-out/loss, at_least_baseline: true}"]).is_ok());
}

#[test]
fn weights_that_are_all_trained_are_not_quantised() {
    let found = problems(good(&["adapter=full", "base.quantization=nf4-double"]));
    assert_eq!(found.len(), 1, "{found:?}");
    let expected =
        "`base.quantization` is for frozen weights, and `adapter: full` trains every one";
    assert!(found[0].contains(expected), "{found:?}");
    assert!(good(&["base.quantization=nf4", "base.dtype=float32"]).is_ok());
}

#[test]
fn muon_is_for_full_training_and_loraplus_for_adapters() {
    let muon = "train.optimizer={muon: {lr: 1e-2, adamw: {lr: 1e-3}}}";
    assert!(good(&["adapter=full", muon]).is_ok());
    let found = problems(good(&["adapter=full", "train.optimizer={muon: {lr: 1e-2}}"]));
    assert_eq!(found.len(), 1, "{found:?}");
    let expected = "`train.optimizer.muon.adamw` is missing | add `adamw: { lr: 2.0e-4 }`";
    assert!(found[0].ends_with(expected), "{found:?}");
    assert!(good(&["train.loraplus_lr_ratio=16"]).is_ok());
    let found = problems(good(&["adapter=full", "train.loraplus_lr_ratio=16"]));
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].contains("`train.loraplus_lr_ratio` is about the two matrices"), "{found:?}");
}

#[test]
fn layers_stay_unquantised_by_their_path_or_a_part_of_it() {
    let mut storage = Storage { quantization: Quantization::Int8, ..Storage::default() };
    let name = "model.layers.1.mlp.down_proj";
    assert!(storage.quantizes(name));
    for (part, expected) in [
        (name, false),
        ("down_proj", false),
        ("mlp.down_proj", false),
        ("model.layers.1", false),
        ("model.layers.11", true),
        ("model.layers", false),
        ("proj", true),
        ("layers.1", true),
    ] {
        storage.unquantized = vec!["lm_head".to_owned(), part.to_owned()];
        assert_eq!(storage.quantizes(name), expected, "{part}");
    }
    storage = Storage::plain(Dtype::Bfloat16);
    assert!(!storage.quantizes(name));
}

#[test]
fn a_missing_suite_name_is_taken_twice_only_by_mistake() {
    let twice = "data.test=[{name: held-out, path: a, format: chat}, \
                 {name: held-out, path: b, format: chat}]";
    assert!(problem_of(twice).starts_with("`data.test[1].name` is `held-out`, like another"));
}

#[test]
fn overrides_reach_lists_and_make_what_is_missing() {
    let literal = good(&[
        "data.train.0.path=other.parquet",
        "train.schedule.constant.warmup_ratio=0.5",
        "train.micro_batch_tokens=128",
        "name=2024",
    ]);
    let recipe = literal.unwrap().recipe;
    assert_eq!(recipe.data.train[0].path, "other.parquet");
    let constant = Constant { warmup_ratio: 0.5, warmup_steps: None };
    assert_eq!(recipe.train.schedule, Schedule::Constant(constant));
    assert_eq!(recipe.train.micro_batch_tokens, Some(128));
    assert_eq!(recipe.name, "2024");
}

#[test]
fn overrides_that_cannot_be_applied_say_why() {
    for (set, expected) in [
        ("epochs", "this is not `key=value`"),
        ("=3", "this is not `key=value`"),
        ("data.train.3.path=x", "`data.train` is a list of 1; `3` is not one of 0 to 0"),
        ("name.x=3", "`name` has no keys"),
        ("train.seed=[1", "this is not YAML"),
    ] {
        assert!(problem_of(set).starts_with(expected), "{set}: {}", problem_of(set));
    }
}

#[test]
fn text_that_is_no_recipe_is_refused() {
    let first = |text: &str| problems(read_text(text, &[])).remove(0);
    assert!(first("").starts_with("r.yaml:1:1: there is nothing in this file"));
    assert!(first("# only a comment\n").contains("there is nothing in this file"));
    assert!(first("[1, 2]").starts_with("r.yaml:1:1: `the recipe` must be a mapping"));
    assert!(first("a: 1\n---\nb: 2\n").contains("a second YAML document begins here"));
    assert!(first("a.b[0]: 1").contains("unknown key `a.b[0]`"));
}

#[test]
fn a_written_recipe_reads_back_as_itself() {
    let recipe = good(&["train.optimizer.adamw.lr=2.0e-4", "name=on"]).unwrap().recipe;
    let text = write(&recipe).unwrap();
    assert_eq!(read_text(&text, &[]).unwrap().recipe, recipe, "{text}");
    for set in [
        "adapter=full",
        "adapter={ unfrozen_parameters: [layers.1, lm_head] }",
        "adapter.lora.from=runs/first/adapter",
        "adapter.lora.targets=[q_proj, v_proj]",
        "adapter.lora.rank_pattern={ v_proj: 3, layers.1.q_proj: 2 }",
        "adapter.lora.alpha_pattern={ v_proj: 0.5 }",
        "adapter.lora.init_lora_weights=pissa_niter_4",
        "adapter.lora.layers_to_transform=[0, 3]",
    ] {
        let recipe = good(&[set]).unwrap().recipe;
        assert_eq!(read_text(&write(&recipe).unwrap(), &[]).unwrap().recipe, recipe);
    }
}

proptest! {
    #[test]
    fn any_number_survives_writing(lr in 1e-300..1e300f64, seed: u64, path in "[ -~]{1,40}") {
        let mut recipe = good(&[]).unwrap().recipe;
        let Optimizer::Adamw(adamw) = &mut recipe.train.optimizer else { unreachable!() };
        adamw.lr = lr;
        recipe.train.seed = seed;
        recipe.data.train[0].path = path;
        let text = write(&recipe).unwrap();
        prop_assert_eq!(read_text(&text, &[]).unwrap().recipe, recipe);
    }

    #[test]
    fn no_text_makes_the_reader_panic(text in "[ -~\n]{0,200}") {
        let _ = read_text(&text, &[]);
    }

    #[test]
    fn no_change_to_a_recipe_makes_the_reader_panic(at in 0..GOOD.len(), with in "[ -~\n]{0,4}") {
        let mut text = GOOD.to_owned();
        text.replace_range(at..(at + with.len()).min(GOOD.len()), &with);
        let _ = read_text(&text, &[]);
    }
}

#[test]
fn words_about_bad_steps_and_trackers_are_checked() {
    for (set, expected) in [
        ("train.on_non_finite=ignore", "`train.on_non_finite` cannot be `ignore`"),
        ("train.on_non_finite=rollback", "`train.on_non_finite` cannot be `rollback`"),
        ("train.loss_spike={factor: 1.0}", "`train.loss_spike.factor` is 1, which ordinary"),
        ("train.loss_spike={window: 0}", "`train.loss_spike.window` must be at least 1"),
        ("train.loss_spike={window: 10001}", "`train.loss_spike.window` is 10001, more than"),
        ("train.loss_spike={action: none}", "`train.loss_spike.action` cannot be `none`"),
        ("train.early_stopping={patience: 2}", "`train.early_stopping` goes by the validation"),
        ("train.load_best_at_end=true", "`train.load_best_at_end` goes by the validation loss"),
        ("train.keep_best_checkpoint=true", "`train.keep_best_checkpoint` goes by the validation"),
        ("track=[tensorbord]", "`track[0]` cannot be `tensorbord`"),
        ("track=[jsonl, jsonl]", "`track[1]` is `jsonl`, like another before it"),
        ("track=[{wandb: {project: a/b}}]", "`track[0].wandb.project` has one of"),
        ("track=[{wandb: {mode: of}}]", "`track[0].wandb.mode` cannot be `of`"),
        ("track=[{wandb: {tags: [\"\"]}}]", "`track[0].wandb.tags[0]` must be 1 to 128 bytes"),
        ("track=[{mlflow: {tracking_uri: mlruns}}]", "`track[0].mlflow.tracking_uri` is no"),
        (
            "track=[{mlflow: {tracking_uri: \"http://me:secret@host\"}}]",
            "`track[0].mlflow.tracking_uri` holds a password",
        ),
    ] {
        let found = problem_of(set);
        assert!(found.starts_with(expected), "{set}: {found}");
        assert!(!found.ends_with("| "), "no hint: {found}");
    }
    // What is to be written stands in the sentence.
    let found = problem_of("track=[wandb]");
    assert!(found.starts_with("`track[0]` must be `wandb: { ... }` with settings"), "{found}");
    assert!(problem_of("train.on_non_finite=rollback").ends_with("did you mean `roll-back`?"));
    let text = format!("{GOOD}track:\n  - wandb: {{ project: \"a?\" }}\n");
    let found = problems(read_text(&text, &[]));
    assert!(found[0].starts_with("r.yaml:20:23: `track[0].wandb.project`"), "{found:?}");
}

/// A recipe of preferences, and changes to it.
fn preferring(objective: &str, format: &str, more: &[&str]) -> Result<Literal, RecipeError> {
    let objective = format!("objective={objective}");
    let format = format!("data.train[0].format={format}");
    good(&[&[objective.as_str(), &format, "data.train_on=completion"], more].concat())
}

#[test]
fn an_objective_refuses_what_it_cannot_use() {
    for (objective, format) in
        [("dpo", "preference"), ("orpo", "preference"), ("simpo", "preference"), ("kto", "kto")]
    {
        let literal = preferring(&format!("{{{objective}: {{}}}}"), format, &[]).unwrap();
        assert_eq!(literal.recipe.objective.name(), objective);
        let text = write(&literal.recipe).unwrap();
        assert_eq!(read_text(&text, &[]).unwrap().recipe, literal.recipe);
    }
    for (objective, format, more, expected) in [
        ("{dpo: {beta: 0}}", "preference", "", "`objective.dpo.beta` must be greater than 0"),
        ("{orpo: {beta: 0}}", "preference", "", "`objective.orpo.beta` must be greater than 0"),
        ("{kto: {desirable_weight: 0}}", "kto", "", "`objective.kto.desirable_weight` must be"),
        ("{simpo: {simpo_gamma: -1}}", "preference", "", "`objective.simpo.simpo_gamma` must not"),
        ("{dpo: {label_smoothing: 0.5}}", "preference", "", "`objective.dpo.label_smoothing` must"),
        (
            "{dpo: {label_smoothing: 0.1, loss_type: ipo}}",
            "preference",
            "",
            "`objective.dpo.label_smoothing` has no meaning with `loss_type: ipo`",
        ),
        ("{dpo: {loss_type: hing}}", "preference", "", "`objective.dpo.loss_type` cannot be"),
        ("{dpo: {gamma: 1}}", "preference", "", "unknown key `objective.dpo.gamma`"),
        ("{dpoo: {}}", "preference", "", "`objective` cannot be `dpoo` | did you mean `dpo`?"),
        ("{dpo: {}}", "kto", "", "`data.train[0].format` has no rows for `objective: dpo`"),
        ("{kto: {}}", "preference", "", "`data.train[0].format` has no rows for `objective: kto`"),
        ("supervised", "preference", "", "`data.train[0].format` holds answers that are judged"),
        ("{dpo: {}}", "preference", "data.test[0].format=kto", "`data.test[0].format` holds"),
        ("{dpo: {}}", "preference", "data.train_on=assistant", "`data.train_on` must be"),
        ("{dpo: {}}", "preference", "data.overlong=truncate", "`data.overlong` cuts answers"),
        ("{kto: {}}", "kto", "data.overlong=split", "`data.overlong` cuts answers"),
        (
            "{orpo: {}}",
            "preference",
            "train.label_smoothing_factor=0.1",
            "`train.label_smoothing_factor` smooths what tokens",
        ),
        ("{dpo: {}}", "preference", "adapter=full", "`adapter` trains the base itself"),
        ("{kto: {}}", "kto", "adapter={unfrozen_parameters: [a]}", "`adapter` trains the base"),
        ("{kto: {}}", "kto", "adapter={from: old}", "`adapter.from` goes on from an adapter"),
    ] {
        let more: Vec<&str> = Some(more).filter(|set| !set.is_empty()).into_iter().collect();
        let found = problems(preferring(objective, format, &more));
        assert_eq!(found.len(), 1, "{objective} {more:?}: {found:?}");
        assert!(found[0].contains(expected), "{objective} {more:?}: {found:?}");
    }
    // Without a reference there is nothing to compare with.
    assert!(preferring("{orpo: {}}", "preference", &["adapter={from: old}"]).is_ok());
    let loftq = ["adapter.lora.init_lora_weights=loftq", "base.quantization=nf4"];
    let found = problems(preferring("{dpo: {}}", "preference", &loftq));
    assert!(found[0].contains("`adapter.lora.init_lora_weights` is `loftq`"), "{found:?}");
    let pissa = ["adapter.lora.init_lora_weights=pissa"];
    assert!(preferring("{dpo: {}}", "preference", &pissa).is_ok());
}
