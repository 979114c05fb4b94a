//! Added tokens from a recipe to its releases, in this process.

use std::path::{Path, PathBuf};

use heirloom::base::BaseFolder;
use heirloom::cli::printer::Printer;
use heirloom::dataset::chat::{ChatEncoder, Message};
use heirloom::dataset::stream::MicroBatch;
use heirloom::diagnose::Failure;
use heirloom::job::{Device, Export, ExportKind, Job};
use heirloom::recipe::plan::Plan;
use heirloom::recipe::{Dtype, Module};
use heirloom::run::RunFolder;
use heirloom_engine::adapter::{peft, tokens};
use heirloom_engine::jobs;
use heirloom_engine::model::Decoder;
use serde_json::{Value, json};
use tch::Tensor;

use crate::support::{difference, logits};

/// A base without chat tokens, a template that writes some, and rows to learn from.
struct Place(tempfile::TempDir);

const CHATML: &str = "{% for m in messages %}\
    {{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}\
    {% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

impl Place {
    /// The bundled base, which ties its embedding and its output, or one grown like it that
    /// does not.
    fn new(tied: bool) -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        fs_err::write(place.path("chatml.jinja"), CHATML).unwrap();
        if !tied {
            let seedling = place.root().join("data/seedling");
            let base = place.path("base");
            fs_err::create_dir(&base).unwrap();
            for name in ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"] {
                fs_err::copy(seedling.join(name), base.join(name)).unwrap();
            }
            let text = fs_err::read_to_string(seedling.join("config.json")).unwrap();
            let text =
                text.replace("\"tie_word_embeddings\": true", "\"tie_word_embeddings\": false");
            fs_err::write(base.join("config.json"), text).unwrap();
            place.train("grown", "adapter: full", "from_scratch: true, ").unwrap();
            fs_err::remove_dir_all(&base).unwrap();
            fs_err::rename(place.path("grown/model"), &base).unwrap();
        }
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn root(&self) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
    }

    fn base(&self) -> PathBuf {
        let own = self.path("base");
        if own.is_dir() { own } else { self.root().join("data/seedling") }
    }

    /// Runs three steps, in this process.
    fn train(&self, name: &str, adapter: &str, words: &str) -> Result<PathBuf, Failure> {
        let (base, rows) = (self.base(), self.root().join("data/catalogue/validation.parquet"));
        let recipe = format!(
            "heirloom: 1\nname: {name}\n\
             base: {{ model: {base}, {words} }}\n{adapter}\n\
             data:\n  purpose: [dpv:ServiceProvision]\n  sequence_length: 256\n  train:\n    \
             - {{ path: {rows}, format: chat }}\n\
             train: {{ epochs: 1, max_steps: 3, tokens_per_step: 512, seed: 3,\n  \
             optimizer: {{ adamw: {{ lr: 1.0e-2 }} }}, checkpoint_every: 1 }}\n",
            base = base.display(),
            rows = rows.display(),
        );
        let path = self.path(&format!("{name}.yaml"));
        fs_err::write(&path, recipe).unwrap();
        let literal = heirloom::recipe::read(&path, &[])?;
        let run = RunFolder::new(self.path(name));
        Plan::make(&literal, jiff::Timestamp::now(), &|_| {})?.begin(&run, |_, _| Ok(()))?;
        jobs::run(&Job::Train { run: run.path().to_owned(), device: Device::Cpu }, Printer::Quiet)?;
        Ok(run.path().to_owned())
    }

    /// `base` with added tokens and a template.
    fn chatml(&self) -> String {
        format!(
            "chat_template: {}, added_tokens: [\"<|im_start|>\", \"<|im_end|>\"]",
            self.path("chatml.jinja").display()
        )
    }

    fn export(&self, run: &Path, to: ExportKind) -> PathBuf {
        let output = self.path(&format!("release-{to:?}"));
        let job =
            Job::Export(Export { run: run.to_owned(), to, output: output.clone(), force: false });
        jobs::run(&job, Printer::Quiet).unwrap();
        output
    }
}

const LORA: &str = "adapter: { lora: { rank: 4, alpha: 8, targets: [q_proj, v_proj] } }";

fn prompt_logits(model: &Decoder, folder: &Path) -> (Vec<u32>, Tensor) {
    let message = Message { role: "user".to_owned(), content: "Do you have leeks?".to_owned() };
    let ids = ChatEncoder::open(folder).unwrap().prompt([message].as_slice()).unwrap();
    let batch = MicroBatch {
        weights: vec![0.0; ids.len()],
        lengths: vec![ids.len() as u32],
        tokens: ids.clone(),
        ..MicroBatch::default()
    };
    (ids, tch::no_grad(|| logits(model, &batch)))
}

/// From a base without the template's tokens to both kinds of release.
#[test]
fn a_base_learns_the_tokens_of_a_template() {
    for tied in [true, false] {
        let place = Place::new(tied);
        let run = place.train("chatml", LORA, &place.chatml()).unwrap();
        let config = fs_err::read_to_string(run.join("adapter").join(peft::CONFIG)).unwrap();
        let config: Value = serde_json::from_str(&config).unwrap();
        let ids = json!([1024, 1025]);
        let expected =
            if tied { ids } else { json!({"embed_tokens": ids.clone(), "lm_head": ids}) };
        assert_eq!(config["trainable_token_indices"], expected);

        let adapter = place.export(&run, ExportKind::Adapter);
        let base = open(&place.base());
        let (mut with, rows) = (base, peft::rows(&adapter).unwrap());
        assert_eq!(rows, 1026);
        with.grow(rows).unwrap();
        let mut model = Decoder::open(&with, Dtype::Float32).unwrap();
        peft::attach(&mut model, &adapter).unwrap();
        let (ids, found) = prompt_logits(&model, &adapter);
        assert!(ids.contains(&1024) && ids.contains(&1025));
        for module in Module::ALL {
            let values = model.replaced.of(module).unwrap().values();
            assert_ne!(values.get(0), values.get(1), "both rows have moved from the mean");
        }

        let merged = place.export(&run, ExportKind::Merged);
        let whole = BaseFolder::open(&merged, false).unwrap();
        assert_eq!(whole.architecture.vocab_size, 1026);
        assert_eq!(whole.architecture.tie_word_embeddings, tied);
        let whole = Decoder::open(&whole, Dtype::Float32).unwrap();
        let (ids_merged, merged_logits) = prompt_logits(&whole, &merged);
        assert_eq!(ids_merged, ids);
        // Merged weights are rounded to the bfloat16 of the base.
        let apart = difference(&merged_logits, &found);
        assert!(apart <= 5e-2, "{apart:e}");
        let generation = fs_err::read_to_string(merged.join("generation_config.json")).unwrap();
        let generation: Value = serde_json::from_str(&generation).unwrap();
        assert!(generation["eos_token_id"].as_array().unwrap().contains(&json!(1025)));
    }
}

/// Rows that are there already are used before the embedding grows, as they are.
#[test]
fn spare_rows_are_used_first() {
    let place = Place::new(false);
    let text = fs_err::read_to_string(place.path("base/config.json")).unwrap();
    let text = text.replace("\"vocab_size\": 1024", "\"vocab_size\": 1030");
    fs_err::write(place.path("base/config.json"), text).unwrap();
    let spare = place.train("spare", "adapter: full", "from_scratch: true, ").unwrap();
    fs_err::remove_dir_all(place.path("base")).unwrap();
    fs_err::rename(spare.join("model"), place.path("base")).unwrap();

    let run = place.train("chatml", LORA, &place.chatml()).unwrap();
    let base = open(&place.base());
    let mut model = Decoder::open(&base, Dtype::Float32).unwrap();
    let lora = peft::describe(&run.join("adapter")).unwrap().lora;
    for (_, start) in tokens::initial(&model, &lora).unwrap() {
        assert_ne!(start.get(0), start.get(1), "each row as it is");
    }
    // No base has to grow for it.
    peft::attach(&mut model, &run.join("adapter")).unwrap();
    let merged = place.export(&run, ExportKind::Merged);
    let merged = open(&merged);
    assert_eq!(merged.architecture.vocab_size, 1030);
    let merged = Decoder::open(&merged, Dtype::Float32).unwrap();
    for module in Module::ALL {
        // A row that no token has yet.
        assert_eq!(merged.table(module).get(1029), model.table(module).get(1029));
        assert_ne!(merged.table(module).get(1025), model.table(module).get(1025));
    }
}

/// A run with trained rows goes on from a checkpoint to the same bytes.
#[test]
fn trained_rows_resume_to_the_same_bytes() {
    let place = Place::new(true);
    let weights = |run: &Path| fs_err::read(run.join("adapter").join(peft::WEIGHTS)).unwrap();
    let run = place.train("chatml", LORA, &place.chatml()).unwrap();
    let undisturbed = weights(&run);
    // As if it had been killed after the second step.
    fs_err::remove_dir_all(run.join("adapter")).unwrap();
    fs_err::remove_file(run.join("summary.json")).unwrap();
    fs_err::remove_dir_all(run.join("checkpoints/step-000003")).unwrap();
    assert!(run.join("checkpoints/step-000002").is_dir());
    jobs::run(&Job::Train { run: run.clone(), device: Device::Cpu }, Printer::Quiet).unwrap();
    assert_eq!(weights(&run), undisturbed);
}

#[test]
fn modules_trained_whole_untie_a_merged_model() {
    let place = Place::new(true);
    let lora = LORA.replace("rank: 4", "rank: 4, modules_to_save: [embed_tokens, lm_head]");
    let run = place.train("whole", &lora, &place.chatml()).unwrap();
    let merged = place.export(&run, ExportKind::Merged);
    let base = BaseFolder::open(&merged, false).unwrap();
    assert!(!base.architecture.tie_word_embeddings);
    let whole = Decoder::open(&base, Dtype::Float32).unwrap();
    assert_ne!(whole.embedding, whole.output);
    let mut base = open(&place.base());
    base.grow(peft::rows(&run.join("adapter")).unwrap()).unwrap();
    let mut model = Decoder::open(&base, Dtype::Float32).unwrap();
    peft::attach(&mut model, &run.join("adapter")).unwrap();
    let apart = difference(&prompt_logits(&whole, &merged).1, &prompt_logits(&model, &merged).1);
    assert!(apart <= 5e-2, "{apart:e}");
}

#[test]
fn full_training_and_growing_from_scratch_take_added_tokens_too() {
    let place = Place::new(true);
    for (name, scratch) in [("full", ""), ("scratch", "from_scratch: true, ")] {
        let words = format!("{scratch}{}", place.chatml());
        let run = place.train(name, "adapter: full", &words).unwrap();
        let model = BaseFolder::open(&run.join("model"), false).unwrap();
        assert_eq!(model.architecture.vocab_size, 1026);
        let decoder = Decoder::open(&model, Dtype::Float32).unwrap();
        let (ids, _) = prompt_logits(&decoder, &run.join("model"));
        assert!(ids.contains(&1024));
    }
}

#[test]
fn recipes_that_name_rows_wrongly_are_refused_where_they_say_so() {
    let place = Place::new(true);
    for (adapter, words, expected) in [
        ("trainable_token_indices: [1024]", "", "names 1024, and the embedding has 1024 rows"),
        ("trainable_token_indices: [\"<|x|>\"]", "", "`<|x|>`, which is no token of the base"),
        ("trainable_token_indices: [3, 3]", "", "names a token of `embed_tokens` twice"),
        ("trainable_token_indices: {lm_head: [3]}", "", "other rows of `lm_head`"),
        ("modules_to_save: [lm_head]", "", "names one of two modules that are tied"),
        ("modules_to_save: [lm_head, lm_head]", "", "like another before it"),
        ("modules_to_save: [norm]", "", "cannot be `norm`"),
        (
            "modules_to_save: [embed_tokens, lm_head], trainable_token_indices: [3]",
            "",
            "of which single rows are named too",
        ),
        ("dropout: 0.0", "added_tokens: [\"<|a|>\", \"<|a|>\"]", "like another before it"),
        ("dropout: 0.0", "added_tokens: [\"\"]", "is blank"),
        ("dropout: 0.0", "chat_template: nowhere.jinja", "cannot read the chat template"),
    ] {
        let lora = LORA.replace("rank: 4", &format!("rank: 4, {adapter}"));
        let failure = place.train("wrong", &lora, words).unwrap_err();
        let said = format!("{failure} {:?}", failure.details());
        assert!(said.contains(expected), "{adapter} {words}: {said}");
        assert!(!place.path("wrong").exists());
    }
    // A token by its text, an existing one that is added, nothing at all.
    let lora = LORA.replace("rank: 4", "rank: 4, trainable_token_indices: [\"<|user|>\"]");
    let run = place.train("named", &lora, "added_tokens: [\"<|user|>\"]").unwrap();
    let lora = peft::describe(&run.join("adapter")).unwrap().lora;
    assert_eq!(lora.trainable_token_indices.ids(Module::EmbedTokens), [3]);
    let lora = LORA.replace("rank: 4", "rank: 4, trainable_token_indices: []");
    let run = place.train("none", &lora, "added_tokens: []").unwrap();
    assert!(!run.join("adapter/tokenizer.json").exists());
}

fn open(folder: &Path) -> BaseFolder {
    BaseFolder::open(folder, false).unwrap()
}
