//! From files as they are found to a trained adapter, one format after the other; and what
//! weights of words do to the loss.

use std::path::{Path, PathBuf};
use std::process::Command;

use fs_err as fs;
use heirloom::recipe::Dtype;
use serde_json::{Value, json};
use tch::Kind;
use tempfile::TempDir;

use crate::runs::{heirloom, root};
use crate::support::{Golden, difference, fixture, logits, model, with_adapter};
use heirloom_engine::train::loss;

const DECLARATION: &str = "\
dataset_id: urn:uuid:f47ac10b-58cc-4372-a567-0e02b2c3d479
controller: Example Org
jurisdictions: [IE]
license: CC-BY-4.0
expiry: endless
sources:
  rules: { origin: written by rule }
default:
  basis: not_personal_data
  justification: there is nobody in them
  purposes: [dpv:ServiceProvision]
  processing: [ai:ModelFineTuning]
  source: rules
";

/// A template that writes what the bundled one does not know.
const TEMPLATE: &str = "\
{%- if tools %}{{- '<|system|>\\n' + (tools | tojson) + '<|end|>\\n' -}}{%- endif -%}
{%- for message in messages -%}
{{- '<|' + message.role + '|>\\n' -}}
{%- if message.reasoning_content %}{{- '<think>' + message.reasoning_content + '</think>\\n' -}}{%- endif -%}
{{- message.content or '' -}}
{%- for call in message.tool_calls or [] -%}
{{- call.function.name + (call.function.arguments | tojson) -}}
{%- endfor -%}
{{- '<|end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|assistant|>\\n' -}}{%- endif -%}
";

struct Place(TempDir);

impl Place {
    fn new() -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        fs::write(place.path("consent.yaml"), DECLARATION).unwrap();
        fs::write(place.path("template.jinja"), TEMPLATE).unwrap();
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn heirloom(&self, arguments: &[&str]) -> String {
        let mut command = Command::new(heirloom());
        command.current_dir(root()).args(arguments);
        command.env("OMP_NUM_THREADS", "1").env("HEIRLOOM_HOME", self.0.path());
        let output = command.output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{said}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Imports rows, and says by which format a recipe reads them.
    fn import(&self, name: &str, rows: impl Iterator<Item = Value>) -> (PathBuf, String) {
        let lines: String = rows.map(|row| format!("{row}\n")).collect();
        let folder = self.path(name);
        fs::create_dir(&folder).unwrap();
        let (from, to) = (folder.join("rows.jsonl"), folder.join("rows.parquet"));
        fs::write(&from, lines).unwrap();
        let consent = self.path("consent.yaml");
        let [from, out, consent] = [&from, &to, &consent].map(|path| path.to_str().unwrap());
        let import = ["data", "import", from, "-o", out, "--consent", consent];
        let told = self.heirloom(&[import.as_slice(), &["--output-format", "json"]].concat());
        let told: Value = serde_json::from_str(&told).unwrap();
        (to, told["format"].as_str().unwrap().to_owned())
    }

    /// Trains on them, and gives back the summary.
    fn train(&self, name: &str, rows: &Path, format: &str, data: &str) -> Value {
        let recipe = format!(
            "heirloom: 1
name: {name}
base: {{ model: data/seedling, chat_template: {} }}
adapter:
  lora: {{ rank: 2, alpha: 4, targets: [q_proj] }}
data:
  purpose: [dpv:ServiceProvision]
  train: [{{ path: {}, format: {format} }}]
  sequence_length: 128
{data}
train:
  epochs: 2
  tokens_per_step: 256
  optimizer: {{ adamw: {{ lr: 1.0e-3 }} }}
  seed: 3
",
            self.path("template.jinja").display(),
            rows.display(),
        );
        let (path, run) = (self.path(&format!("{name}.yaml")), self.path(&format!("run-{name}")));
        fs::write(&path, recipe).unwrap();
        self.heirloom(&["train", path.to_str().unwrap(), "--run", run.to_str().unwrap()]);
        assert!(run.join("adapter/adapter_model.safetensors").is_file());
        serde_json::from_slice(&fs::read(run.join("summary.json")).unwrap()).unwrap()
    }
}

fn rows(of: impl Fn(usize) -> Value) -> impl Iterator<Item = Value> {
    (0..24).map(of)
}

#[test]
fn every_format_trains() {
    let place = Place::new();
    let asked = |row: usize| format!("How many bags, order {row}?");
    let tools = json!([{"type": "function", "function": {"name": "count", "parameters": {}}}]);
    type Of<'a> = &'a dyn Fn(usize) -> Value;
    let formats: [(&str, &str, &str, Of<'_>); 7] = [
        ("tools", "chat", "", &|row| {
            let call = json!([{"type": "function", "function": {"name": "count", "arguments": {"order": row}}}]);
            json!({"tools": tools, "messages": [
                {"role": "user", "content": asked(row)},
                {"role": "assistant", "reasoning_content": "I have to count", "tool_calls": call},
                {"role": "tool", "name": "count", "content": "7"},
                {"role": "assistant", "content": "Seven.", "weight": 2.0},
            ]})
        }),
        ("weights", "chat", "", &|row| {
            json!({"messages": [
                {"role": "user", "content": asked(row)},
                {"role": "assistant", "content": "Five.", "weight": 0.0},
                {"role": "user", "content": "Really?"},
                {"role": "assistant", "content": "No, seven.", "weight": 0.5},
            ]})
        }),
        ("sharegpt", "chat", "  train_on: last\n", &|row| {
            json!({"conversations": [
                {"from": "human", "value": asked(row)}, {"from": "gpt", "value": "Seven."},
            ]})
        }),
        ("alpaca", "chat", "", &|row| json!({"instruction": asked(row), "output": "Seven."})),
        (
            "strings",
            "prompt-completion",
            "  train_on: completion\n",
            &|row| json!({"prompt": asked(row), "completion": " Seven."}),
        ),
        ("turns", "prompt-completion", "  train_on: completion\n", &|row| {
            json!({
                "prompt": [{"role": "user", "content": asked(row)}],
                "completion": [{"role": "assistant", "content": "Seven."}],
            })
        }),
        ("text", "text", "  train_on: all\n", &|row| json!({"text": asked(row)})),
    ];
    for (name, format, data, of) in formats {
        let (file, found) = place.import(name, rows(of));
        assert_eq!(found, format, "{name}");
        let summary = place.train(name, &file, format, data);
        let number = |key: &str| summary[key].as_u64().unwrap();
        assert!(number("steps") > 2 && number("trained_tokens") > 0, "{name}: {summary}");
        assert!(number("trained_tokens") < number("tokens"), "{name}: {summary}");
        // What one message weighs nothing for is not trained.
        let again = place.train(
            &format!("{name}-sample"),
            &file,
            format,
            &format!("{data}  survey: sample\n"),
        );
        for key in ["steps", "tokens", "trained_tokens"] {
            assert_eq!(again[key], summary[key], "{name}: {key}, by a sample");
        }
    }
}

/// The weighted mean as it is written in the reference, in f64 from the logits.
#[test]
fn weights_weigh_loss_and_gradient_as_they_are_written_down() {
    let base = model("tiny-llama", Dtype::Float32);
    let (model, parameters) = with_adapter(base, &fixture("lora-all-linear/adapter"));
    let mut batch = Golden::open("lora-all-linear/lora.safetensors").packed();
    let trained = batch.weights.iter_mut().filter(|weight| **weight > 0.0);
    trained.zip([0.5, 2.0, 1.0].into_iter().cycle()).for_each(|(weight, of)| *weight = of);

    let all = logits(&model, &batch).to_kind(Kind::Double);
    let vocabulary = all.size()[1] as usize;
    let numbers: Vec<f64> = Vec::try_from(all.view(-1)).unwrap();
    let (mut plain, mut weight) = (0.0_f64, 0.0_f64);
    for (position, of) in batch.weights.iter().enumerate().filter(|(_, of)| **of > 0.0) {
        let row = &numbers[(position - 1) * vocabulary..position * vocabulary];
        let largest = row.iter().copied().fold(f64::MIN, f64::max);
        let sum: f64 = row.iter().map(|logit| (logit - largest).exp()).sum();
        let nll = largest + sum.ln() - row[batch.tokens[position] as usize];
        plain += f64::from(*of) * nll;
        weight += f64::from(*of);
    }
    assert_eq!(weight, batch.weight());
    let sum = loss::nll_sum(&model, &batch, true).unwrap().unwrap();
    let mean = &sum / batch.weight();
    let (found, expected) = (mean.double_value(&[]), plain / weight);
    assert!((found - expected).abs() <= 1e-6 * expected, "{found} {expected}");
    let gradient = parameters.zero_gradient().unwrap();
    parameters.add_gradient(&mean, &gradient).unwrap();

    let positions: Vec<i64> =
        (0..batch.tokens.len()).filter(|i| batch.weights[*i] > 0.0).map(|i| i as i64).collect();
    let pick = |of: &dyn Fn(usize) -> f64| -> tch::Tensor {
        tch::Tensor::from_slice(&positions.iter().map(|i| of(*i as usize)).collect::<Vec<f64>>())
    };
    let before = tch::Tensor::from_slice(&positions.iter().map(|i| i - 1).collect::<Vec<i64>>());
    let targets = pick(&|i| f64::from(batch.tokens[i])).to_kind(Kind::Int64);
    let weights = pick(&|i| f64::from(batch.weights[i]));
    let said = logits(&model, &batch).to_kind(Kind::Double).log_softmax(-1, Kind::Double);
    let said = said.index_select(0, &before).gather(1, &targets.unsqueeze(1), false).squeeze_dim(1);
    let reference = -(said * &weights).sum(Kind::Double) / weights.sum(Kind::Double);
    let expected = parameters.zero_gradient().unwrap();
    parameters.add_gradient(&reference, &expected).unwrap();
    assert!(difference(&gradient, &expected) < 1e-5, "{}", difference(&gradient, &expected));
    // A weight does something: the plain mean points elsewhere.
    for weight in &mut batch.weights {
        *weight = weight.ceil().min(1.0);
    }
    let plain = parameters.zero_gradient().unwrap();
    let mean = loss::nll_sum(&model, &batch, true).unwrap().unwrap() / batch.weight();
    parameters.add_gradient(&mean, &plain).unwrap();
    assert!(difference(&plain, &expected) > 1e-3);
}
