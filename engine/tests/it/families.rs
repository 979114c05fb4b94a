//! Every family against Transformers and PEFT, on the models and numbers under
//! `tests/fixtures/families`, which `scripts/goldens/families.py` writes.
//!
//! `HEIRLOOM_FIDELITY=FILE` appends what was measured to FILE, one line of JSON for each case;
//! `scripts/fidelity` makes the table in `docs/reference/families.md` of it.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::{Path, PathBuf};

use heirloom::base::{BaseFolder, supported};
use heirloom::dataset::stream::MicroBatch;
use heirloom::recipe::{Dtype, Lora};
use heirloom_engine::adapter;
use heirloom_engine::generate;
use heirloom_engine::model::Decoder;
use heirloom_engine::train::loss;
use serde_json::Value;
use tch::{Kind, Tensor};

use crate::support::{Golden, difference, fixture, logits, mean_gradient, with_adapter};

/// The bars: logits and losses, gradients, all in f32.
const LOGITS: f64 = 1e-5;
const GRADIENTS: f64 = 1e-4;
/// How much further from f32 our bfloat16 may be than Transformers' is. Chance alone moves the
/// number of so short a text: over ten seeds it was 0.92 to 0.98 by family, give or take 0.05.
const BFLOAT16: f64 = 1.2;

/// One test for each folder of the fixtures, named after it.
macro_rules! cases {
    ($($test:ident: $case:literal,)*) => {
        const CASES: &[&str] = &[$($case),*];
        $(
            #[test]
            fn $test() {
                Case::open($case).check();
            }
        )*
    };
}

cases! {
    deepseek_v2: "deepseek_v2",
    deepseek_v2_group: "deepseek_v2-group",
    deepseek_v3: "deepseek_v3",
    gemma: "gemma",
    gemma2: "gemma2",
    gemma3_text: "gemma3_text",
    gpt_oss: "gpt_oss",
    granite: "granite",
    llama: "llama",
    llama_bias: "llama-bias",
    llama_dynamic: "llama-dynamic",
    llama_linear: "llama-linear",
    llama_llama3: "llama-llama3",
    llama_longrope: "llama-longrope",
    llama_yarn: "llama-yarn",
    mistral: "mistral",
    mixtral: "mixtral",
    olmo2: "olmo2",
    phi3: "phi3",
    phi3_longrope: "phi3-longrope",
    qwen2: "qwen2",
    qwen2_sliding: "qwen2-sliding",
    qwen3: "qwen3",
    qwen3_moe: "qwen3_moe",
    qwen3_moe_step: "qwen3_moe-step",
    smollm3: "smollm3",
}

#[test]
fn every_fixture_has_its_test() {
    let folders = fs_err::read_dir(fixture("families")).unwrap();
    let folders: BTreeSet<String> =
        folders.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    let tested: BTreeSet<String> = CASES.iter().map(|case| (*case).to_owned()).collect();
    assert_eq!(folders, tested);
}

/// The documented families are the supported ones, and all of them were measured.
#[test]
fn the_document_lists_what_is_supported() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/reference/families.md");
    let text = fs_err::read_to_string(path).unwrap();
    let (listed, measured) = text.split_once("<!-- fidelity: begin -->").unwrap();
    let cells = |text: &str, column: usize| -> BTreeSet<String> {
        let rows = text.lines().filter(|line| line.starts_with("| `"));
        rows.filter_map(|row| row.split('`').nth(column).map(str::to_owned)).collect()
    };
    let supported: BTreeSet<String> = supported().map(str::to_owned).collect();
    assert_eq!(cells(listed, 1), supported);
    assert_eq!(cells(measured, 1), supported);
    let tested: BTreeSet<String> = CASES.iter().map(|case| (*case).to_owned()).collect();
    assert_eq!(cells(measured, 3), tested, "run scripts/fidelity");
}

/// A tiny model and what the reference computes with it.
struct Case {
    name: &'static str,
    folder: PathBuf,
    config: Value,
    golden: Golden,
}

impl Case {
    fn open(name: &'static str) -> Self {
        let folder = fixture(&format!("families/{name}"));
        let config = fs_err::read_to_string(folder.join("config.json")).unwrap();
        Self {
            name,
            config: serde_json::from_str(&config).unwrap(),
            golden: Golden::open(&format!("families/{name}/golden.safetensors")),
            folder,
        }
    }

    fn model(&self, dtype: Dtype) -> Decoder {
        Decoder::open(&BaseFolder::open(&self.folder, false).unwrap(), dtype).unwrap()
    }

    /// Measures everything, tells it, and holds it to the bars.
    fn check(&self) {
        let model = self.model(Dtype::Float32);
        let mut errors = BTreeMap::new();
        let (logits, nll) = self.forward(&model);
        errors.insert("logits", logits);
        errors.insert("loss", nll);
        errors.insert("gradient", self.gradient());
        errors.insert("incremental", self.incremental(&model));
        errors.insert("bfloat16", self.bfloat16());
        let (same, total) = self.greedy(&model);
        self.tell(&errors, same, total);

        assert_eq!(same, total, "{}: tokens of the greedy continuations", self.name);
        let bars = [
            ("logits", LOGITS),
            ("loss", LOGITS),
            ("incremental", LOGITS),
            ("gradient", GRADIENTS),
            ("bfloat16", BFLOAT16),
        ];
        for (what, bar) in bars {
            assert!(errors[what] <= bar, "{}: {what} {:e}, bar {bar:e}", self.name, errors[what]);
        }
        self.check_old_config(&model);
        self.check_all_linear(model);
    }

    fn documents(&self) -> Vec<MicroBatch> {
        let all = self.golden.packed();
        let mut start = 0;
        let mut documents = Vec::new();
        for length in &all.lengths {
            let end = start + *length as usize;
            documents.push(MicroBatch {
                tokens: all.tokens[start..end].to_vec(),
                weights: all.weights[start..end].to_vec(),
                lengths: vec![*length],
                ..MicroBatch::default()
            });
            start = end;
        }
        documents
    }

    /// Largest error of logits and of the tokens' losses, all documents packed and each alone.
    fn forward(&self, model: &Decoder) -> (f64, f64) {
        let found = tch::no_grad(|| logits(model, &self.golden.packed()));
        let mut apart = difference(&found, &self.golden.logits("logits."));
        let mut loss_apart = 0.0f64;
        for (k, document) in self.documents().iter().enumerate() {
            let found = tch::no_grad(|| logits(model, document));
            apart = apart.max(difference(&found, &self.golden.tensor(&format!("logits.{k}"))));
            let expected = self.golden.tensor(&format!("nll.{k}"));
            loss_apart = loss_apart.max(difference(&token_losses(&found, document), &expected));
            // The sum that training and evaluation take, which never has all logits at once.
            let every = MicroBatch {
                weights: (0..document.tokens.len())
                    .map(|token| if token > 0 { 1.0 } else { 0.0 })
                    .collect(),
                ..document.clone()
            };
            let sum = tch::no_grad(|| loss::nll_sum(model, &every, false)).unwrap().unwrap();
            let expected = expected.sum(Kind::Double).double_value(&[]);
            loss_apart = loss_apart.max((sum.double_value(&[]) / expected - 1.0).abs());
        }
        (apart, loss_apart)
    }

    /// Largest error of the gradient of A or B of any layer, each relative to its largest.
    fn gradient(&self) -> f64 {
        let model = self.model(Dtype::Float32);
        let (model, parameters) = with_adapter(model, &self.folder.join("adapter"));
        let (mean, gradient) = mean_gradient(&model, &parameters, &self.golden.packed());
        let expected = self.golden.numbers("loss")[0];
        assert!((mean / expected - 1.0).abs() <= LOGITS, "{}: {mean} {expected}", self.name);
        let mut worst = 0.0f64;
        let mut keys = BTreeSet::new();
        for (key, found) in parameters.split(&gradient) {
            let expected = self.golden.tensor(&format!("grad.{key}"));
            worst = worst.max(difference(&found, &expected));
            keys.insert(key.to_owned());
        }
        assert_eq!(keys, self.adapted(), "{}: what the adapter touches", self.name);
        worst
    }

    /// The keys of all that PEFT trains.
    fn adapted(&self) -> BTreeSet<String> {
        self.golden.names("grad.").into_iter().collect()
    }

    /// Largest error of logits where all but the first half comes token by token.
    fn incremental(&self, model: &Decoder) -> f64 {
        let mut worst = 0.0f64;
        for (k, document) in self.documents().iter().enumerate() {
            let length = document.tokens.len();
            let Some(prompt) = self.prompt_length(length) else { continue };
            let tokens: Vec<i64> = document.tokens.iter().map(|token| i64::from(*token)).collect();
            let found = tch::no_grad(|| {
                let first = Tensor::from_slice(&tokens[..prompt]);
                let (hidden, mut cache) =
                    model.prefill(&first, &[prompt as u32], length - prompt).unwrap();
                let mut rows = vec![model.logits(&hidden).unwrap()];
                for token in &tokens[prompt..] {
                    let hidden = model.decode(&Tensor::from_slice(&[*token]), &mut cache).unwrap();
                    rows.push(model.logits(&hidden).unwrap());
                }
                Tensor::cat(&rows, 0)
            });
            let start = prompt as i64 - 1;
            let expected = self.golden.tensor(&format!("logits.{k}"));
            worst = worst.max(difference(&found, &expected.narrow(0, start, found.size()[0])));
        }
        worst
    }

    /// How much of a document a cache may begin with: half, or, where frequencies change with
    /// the length, enough for them to be the whole document's; `None` where they never are.
    fn prompt_length(&self, length: usize) -> Option<usize> {
        let rope = &self.config["rope_parameters"];
        let number = |value: &Value| value.as_u64().map(|number| number as usize);
        match rope["rope_type"].as_str() {
            Some("dynamic") => {
                (length <= number(&self.config["max_position_embeddings"])?).then_some(length / 2)
            }
            Some("longrope") => {
                let short = number(&rope["original_max_position_embeddings"])?;
                Some(if length <= short { length / 2 } else { short + 1 })
            }
            _ => Some(length / 2),
        }
    }

    /// How far our bfloat16 is from f32, as a multiple of how far Transformers' is: of the root
    /// mean square of each token's logits, the median. It is not moved by the few tokens that
    /// rounding sends to another expert, there or here.
    fn bfloat16(&self) -> f64 {
        let model = self.model(Dtype::Bfloat16);
        let ours = tch::no_grad(|| logits(&model, &self.golden.packed()));
        assert_eq!(ours.kind(), Kind::BFloat16);
        let exact = self.golden.logits("logits.").to_kind(Kind::Double);
        let distance = |found: &Tensor| {
            let squares = (found - &exact).square().mean_dim(-1, false, Kind::Double);
            squares.sqrt().median().double_value(&[])
        };
        distance(&ours) / distance(&self.golden.logits("logits_bfloat16."))
    }

    /// How many tokens of the greedy continuations are the reference's, of how many; the
    /// prompts together and each alone.
    fn greedy(&self, model: &Decoder) -> (usize, usize) {
        let tokens = |name: String| -> Vec<u32> {
            let numbers = Vec::<i64>::try_from(self.golden.tensor(&name)).unwrap();
            numbers.into_iter().map(|token| token as u32).collect()
        };
        let count = self.golden.names("prompt.").len();
        let prompts: Vec<_> = (0..count).map(|k| tokens(format!("prompt.{k}"))).collect();
        let expected: Vec<_> = (0..count).map(|k| tokens(format!("greedy.{k}"))).collect();
        let run = |prompts: &[Vec<u32>]| {
            generate::greedy(model, prompts, &[], expected[0].len(), |_| {}).unwrap()
        };
        let mut found = run(&prompts);
        found.extend(prompts.iter().flat_map(|prompt| run(std::slice::from_ref(prompt))));
        let pairs = found.iter().zip(expected.iter().chain(&expected));
        let same = |(found, expected): (&Vec<u32>, &Vec<u32>)| {
            found.iter().zip(expected).filter(|(found, expected)| found == expected).count()
        };
        (pairs.map(same).sum(), expected.iter().map(Vec::len).sum::<usize>() * 2)
    }

    /// The same weights under the style of config that older checkpoints have.
    fn check_old_config(&self, model: &Decoder) {
        let old = self.folder.join("config.old.json");
        if !old.is_file() {
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        fs_err::copy(old, folder.path().join("config.json")).unwrap();
        let weights = "model.safetensors";
        fs_err::copy(self.folder.join(weights), folder.path().join(weights)).unwrap();
        let base = BaseFolder::open(folder.path(), false).unwrap();
        let again = Decoder::open(&base, Dtype::Float32).unwrap();
        let batch = self.golden.packed();
        let (first, second) = tch::no_grad(|| (logits(model, &batch), logits(&again, &batch)));
        assert_eq!(first, second, "{}: config.old.json gives other logits", self.name);
    }

    /// `all-linear` touches what PEFT's adapter in the fixture has.
    fn check_all_linear(&self, mut model: Decoder) {
        let lora = Lora::new(4, 8.0);
        let initial =
            adapter::initial(&model, &lora, |linear| linear.weight.dense(Kind::Float)).unwrap();
        let mut initial: BTreeMap<_, _> = initial.into_iter().collect();
        adapter::attach(&mut model, &lora, |key, _| Ok(initial.remove(key).unwrap())).unwrap();
        let keys: BTreeSet<String> = adapter::weights(&model).into_iter().map(|(k, _)| k).collect();
        assert_eq!(keys, self.adapted(), "{}: what all-linear touches", self.name);
    }

    /// Appends the numbers to the file that the environment names, if it does.
    fn tell(&self, errors: &BTreeMap<&str, f64>, same: usize, total: usize) {
        let Some(path) = std::env::var_os("HEIRLOOM_FIDELITY") else { return };
        let line = serde_json::json!({
            "case": self.name,
            "model_type": self.config["model_type"],
            "errors": errors,
            "greedy": [same, total],
        });
        let mut file = fs_err::OpenOptions::new().create(true).append(true).open(path).unwrap();
        // One write, so that lines of tests that run side by side stay whole.
        file.write_all(format!("{line}\n").as_bytes()).unwrap();
    }
}

/// Negative log-likelihood of every token but the first.
fn token_losses(logits: &Tensor, document: &MicroBatch) -> Tensor {
    let next: Vec<i64> = document.tokens[1..].iter().map(|token| i64::from(*token)).collect();
    let scores = logits.narrow(0, 0, next.len() as i64).log_softmax(-1, Kind::Float);
    -scores.gather(1, &Tensor::from_slice(&next).unsqueeze(1), false).squeeze_dim(1)
}
