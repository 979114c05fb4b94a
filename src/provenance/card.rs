//! The model card: `README.md` of a release.
//!
//! Owns the hub's metadata (YAML) and the text. Renders facts only, the same bytes for the
//! same facts; whatever came from a file or a user is escaped, so that it can neither leave
//! its place in the Markdown nor change the metadata.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::Serialize;

use super::MANIFEST;
use super::counts::Rows;
use super::origin::{Origin, UNKNOWN_LICENCE};
use super::statement::{Evaluation, Training};
use crate::dataset::consent::{Ask, Reason};
use crate::job::ExportKind;
use crate::recipe::lock::LockedTeacher;
use crate::recipe::{Adapter, PUBLISHING, Recipe};

/// What a card tells.
#[derive(Debug)]
pub struct Card<'a> {
    /// What was run.
    pub recipe: &'a Recipe,
    /// Shape of the release.
    pub kind: ExportKind,
    /// What it came from.
    pub origin: &'a Origin,
    /// Whose distributions it learned, if a model taught it.
    pub teacher: Option<&'a LockedTeacher>,
    /// What was asked of every row.
    pub ask: &'a Ask,
    /// Rows by split, as they may be published.
    pub rows: &'a BTreeMap<String, Rows>,
    /// How training went.
    pub training: &'a Training,
    /// What was measured.
    pub evaluations: &'a [Evaluation],
}

/// The metadata of the hub, in the order in which it is written.
#[derive(Serialize)]
struct Metadata {
    license: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    license_name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    license_link: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    base_model: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    base_model_relation: Option<&'static str>,
    library_name: &'static str,
    pipeline_tag: &'static str,
    tags: Vec<String>,
    #[serde(rename = "model-index", skip_serializing_if = "Vec::is_empty")]
    model_index: Vec<IndexEntry>,
}

#[derive(Serialize)]
struct IndexEntry {
    name: String,
    results: Vec<IndexResult>,
}

#[derive(Serialize)]
struct IndexResult {
    task: BTreeMap<&'static str, &'static str>,
    dataset: BTreeMap<&'static str, String>,
    metrics: Vec<IndexMetric>,
}

#[derive(Serialize)]
struct IndexMetric {
    r#type: &'static str,
    name: &'static str,
    value: f64,
}

/// The card as Markdown.
pub fn render(card: &Card) -> Result<String, serde_saphyr::ser::Error> {
    let mut text = format!("---\n{}---\n", serde_saphyr::to_string(&metadata(card))?);
    for section in [
        card.what_it_is(),
        card.how_to_use(),
        card.data(),
        card.evaluation(),
        card.limits(),
        card.how_to_verify(),
    ] {
        text.push('\n');
        text.push_str(&section);
    }
    Ok(text)
}

fn metadata(card: &Card) -> Metadata {
    let licence = &card.origin.licence;
    let base = (!card.recipe.base.from_scratch).then(|| visible(&card.origin.name));
    let (library_name, relation) = match card.kind {
        ExportKind::Adapter => ("peft", "adapter"),
        ExportKind::Merged => ("transformers", "finetune"),
    };
    let mut tags = vec!["heirloom".to_owned()];
    if let Adapter::Lora(lora) = &card.recipe.adapter {
        tags.push(if lora.vera.is_some() { "vera" } else { "lora" }.to_owned());
    }
    if let (ExportKind::Adapter, Some(base)) = (card.kind, &base) {
        // The tag that PEFT itself writes.
        tags.push(format!("base_model:adapter:{base}"));
    }
    let results: Vec<IndexResult> = card.evaluations.iter().map(index_result).collect();
    let entry = IndexEntry { name: visible(&card.recipe.name), results };
    Metadata {
        license: visible(&licence.hub),
        license_name: licence.license_name.as_deref().map(visible),
        license_link: licence.license_link.as_deref().map(visible),
        base_model_relation: base.is_some().then_some(relation),
        base_model: base,
        library_name,
        pipeline_tag: "text-generation",
        tags,
        // An entry without results is not valid.
        model_index: if entry.results.is_empty() { Vec::new() } else { vec![entry] },
    }
}

fn index_result(evaluation: &Evaluation) -> IndexResult {
    let suite = visible(&evaluation.suite);
    let scores = &evaluation.target;
    IndexResult {
        task: [("type", "text-generation")].into(),
        dataset: [("type", suite.clone()), ("name", suite), ("split", "test".to_owned())].into(),
        metrics: vec![
            IndexMetric { r#type: "exact_match", name: "Exact match", value: scores.exact_match },
            IndexMetric { r#type: "loss", name: "Loss, nats per token", value: scores.loss },
        ],
    }
}

impl Card<'_> {
    fn what_it_is(&self) -> String {
        let base = markdown(&self.origin.name);
        let what = match (&self.recipe.adapter, self.kind, self.recipe.base.from_scratch) {
            (_, _, true) => format!("A model trained from scratch in the shape of {base}"),
            (Adapter::Lora(lora), ExportKind::Adapter, _) => {
                let method = if lora.vera.is_some() { "VeRA" } else { "LoRA" };
                format!("A {method} adapter for {base}")
            }
            (Adapter::Lora(lora), ExportKind::Merged, _) => {
                let method = if lora.vera.is_some() { "VeRA" } else { "LoRA" };
                format!("{base}, adapted with {method} and merged into whole weights")
            }
            (Adapter::Full(names), _, _) if names.is_empty() => {
                format!("{base}, trained further in all its weights")
            }
            (Adapter::Full(_), _, _) => format!("{base}, trained further in some of its weights"),
        };
        let Training { steps, tokens, seconds, peak_memory_bytes, .. } = self.training;
        let mut text = format!("# {}\n\n{what}.\n", markdown(&self.recipe.name));
        let _ = write!(
            text,
            "\nMade by [Heirloom](https://github.com/heirloom-ml/heirloom) {} in {steps} optimiser \
             steps over {tokens} tokens, in {seconds:.0} seconds",
            crate::VERSION,
        );
        if let Some(bytes) = peak_memory_bytes {
            let _ = write!(text, " and at most {} MiB of memory", bytes.div_ceil(1 << 20));
        }
        text.push_str(".\n\n");
        let licence = &self.origin.licence;
        if licence.hub == UNKNOWN_LICENCE {
            text.push_str("The base states no licence: whether this may be shared is not known.\n");
        } else {
            let _ = write!(text, "Licence, from the base: {}", markdown(&licence.hub));
            for detail in [&licence.license_name, &licence.license_link].into_iter().flatten() {
                let _ = write!(text, ", {}", markdown(detail));
            }
            text.push_str(".\n");
        }
        if let Some(teacher) = self.teacher {
            let _ = write!(
                text,
                "\nWhat it learned of the rows is what another model, {}, would say to them: ",
                markdown(&teacher.name)
            );
            match teacher.licence.hub.as_str() {
                UNKNOWN_LICENCE => text.push_str(
                    "that model states no licence, and whether it may teach others is not known.\n",
                ),
                hub => {
                    let _ = writeln!(text, "its licence is {}.", markdown(hub));
                }
            }
        }
        text
    }

    fn how_to_use(&self) -> String {
        let load = match self.kind {
            ExportKind::Adapter => format!(
                "from peft import PeftModel\n\
                 from transformers import AutoModelForCausalLM, AutoTokenizer\n\n\
                 base = {base}\n\
                 model = AutoModelForCausalLM.from_pretrained(base)\n\
                 model = PeftModel.from_pretrained(model, \".\")  # this folder\n\
                 tokenizer = AutoTokenizer.from_pretrained(base)\n",
                base = python_string(&self.origin.name),
            ),
            ExportKind::Merged => {
                "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n\
                 model = AutoModelForCausalLM.from_pretrained(\".\")  # this folder\n\
                 tokenizer = AutoTokenizer.from_pretrained(\".\")\n"
                    .to_owned()
            }
        };
        let mut text = format!("## How to use\n\n```python\n{load}```\n");
        if self.kind == ExportKind::Adapter {
            let _ = write!(
                text,
                "\nThe adapter fits exactly one base: the files whose digests `{MANIFEST}` gives \
                 under `base_model`.\n"
            );
        }
        text
    }

    fn data(&self) -> String {
        let mut text = format!(
            "## Data and consent\n\n\
             Every row was used only if its recorded consent allowed this purpose ({}) and this \
             processing ({}) until after the planned end of training. Counts below 5 are not \
             given exactly.\n\n\
             | Rows | Read | Used | Left out |\n| --- | --- | --- | --- |\n",
            list(&self.ask.purpose),
            list(&self.ask.processing),
        );
        for (split, rows) in self.rows {
            let reasons: Vec<String> = rows
                .excluded
                .iter()
                .filter(|(_, rows)| !rows.is_zero())
                .map(|(reason, rows)| format!("{}: {rows}", words(*reason)))
                .collect();
            let left_out = if reasons.is_empty() { "none".to_owned() } else { reasons.join("; ") };
            let split = markdown(split);
            let _ = writeln!(text, "| {split} | {} | {} | {left_out} |", rows.seen(), rows.used);
        }
        text
    }

    fn evaluation(&self) -> String {
        let mut text = "## Evaluation\n\n".to_owned();
        if self.evaluations.is_empty() {
            text.push_str("Nothing was measured.\n");
            return text;
        }
        text.push_str(
            "Exact match is the share of generated answers that equal the reference; loss is in \
             nats per token of the reference. The rows are those that the recipe sets aside as tests.\n\n\
             | Suite | Rows | Measure | Base | This model |\n| --- | --- | --- | --- | --- |\n",
        );
        for Evaluation { suite, rows, target, baseline } in self.evaluations {
            let suite = markdown(suite);
            let percent = |share: f64| format!("{:.1} %", share * 100.0);
            let loss = |loss: f64| format!("{loss:.4}");
            let base = |cell: Option<String>| cell.unwrap_or_else(|| "not measured".to_owned());
            let _ = writeln!(
                text,
                "| {suite} | {rows} | exact match | {} | {} |\n| {suite} | {rows} | loss | {} | {} |",
                base(baseline.map(|scores| percent(scores.exact_match))),
                percent(target.exact_match),
                base(baseline.map(|scores| loss(scores.loss))),
                loss(target.loss),
            );
        }
        text
    }

    fn limits(&self) -> String {
        let mut text = "## Limits\n\n\
            - Nothing was measured beyond the table above: neither safety, nor bias, nor how much \
            of the rows can be drawn out again.\n\
            - What the base model cannot do or does wrongly, this one may still.\n\
            - Consent was judged when training began. A later withdrawal does not change these \
            weights.\n"
            .to_owned();
        let withdrawn = &self.training.withdrawn_rows;
        if !withdrawn.is_zero() {
            let _ = writeln!(
                text,
                "- Rows that were withdrawn while training went on, and left out from then on: \
                 {withdrawn}. They count as used above, and what was learned of them before \
                 remains."
            );
        }
        if !self.ask.processing.iter().any(|processing| processing == PUBLISHING) {
            let _ = writeln!(
                text,
                "- The rows were not asked whether the result may be published \
                 (`{PUBLISHING}`)."
            );
        }
        text
    }

    fn how_to_verify(&self) -> String {
        format!(
            "## How to verify\n\n\
             `{MANIFEST}` (in-toto Statement v1, SLSA provenance v1) names every file of this \
             release, the recipe, the base and the data by SHA-256. It is not signed: it shows \
             damage, not who made it.\n\n\
             ```sh\n\
             heirloom verify .\n\
             # or, without Heirloom:\n\
             jq -r '.subject[] | \"\\(.digest.sha256)  \\(.name)\"' {MANIFEST} | sha256sum --check\n\
             ```\n"
        )
    }
}

/// Why rows were left out, for readers.
fn words(reason: Reason) -> &'static str {
    match reason {
        Reason::Missing => "no consent recorded",
        Reason::Unknown => "consent unknown",
        Reason::Withdrawn => "withdrawn or refused",
        Reason::NotGiven => "never given",
        Reason::Expired => "expired too early",
        Reason::Purpose => "not for this purpose",
        Reason::Processing => "not for this processing",
    }
}

fn list(terms: &[String]) -> String {
    terms.iter().map(|term| markdown(term)).collect::<Vec<_>>().join(", ")
}

/// `text` on one line, with characters that are invisible or turn the writing direction
/// made visible: a name must look like what it is.
fn visible(text: &str) -> String {
    let invisible = |c: char| {
        c.is_control()
            || matches!(c, '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}'
                | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}'
                | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
    };
    text.chars().map(|c| if invisible(c) { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

/// `text` as Markdown that shows it literally (CommonMark 6.1 lets any ASCII punctuation be
/// escaped).
fn markdown(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in visible(text).chars() {
        if "\\`*_[]<>&|~#!$@".contains(c) {
            escaped.push('\\');
        }
        escaped.push(c);
    }
    escaped
}

/// `text` as a Python string: JSON's escapes mean the same there, and leave no line break
/// with which to end the code block.
fn python_string(text: &str) -> String {
    serde_json::Value::from(visible(text)).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markdown_in_a_name_is_shown_and_not_obeyed() {
        let name = "a|b\n# c [d](javascript:x) <script> `e` &amp; ![f](g)\u{202e}";
        let shown = markdown(name);
        assert_eq!(
            shown,
            "a\\|b\u{fffd}\\# c \\[d\\](javascript:x) \\<script\\> \\`e\\` \\&amp; \
             \\!\\[f\\](g)\u{fffd}"
        );
    }

    #[test]
    fn a_name_cannot_leave_its_code_block() {
        assert_eq!(python_string("a\"\n```\nb\\"), "\"a\\\"\u{fffd}```\u{fffd}b\\\\\"");
    }
}
