//! Decoding: our processors against Transformers', and the two commands as people use them.

use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use heirloom::generation::{Sampling, Settings};
use heirloom_engine::generate::{self, Finish, Limits, Prompt, batch, sampler::Sampler};
use serde_json::{Value, json};
use tch::{Kind, Tensor};

use crate::support::{Golden, fixture, model};

/// The settings that a case of `sampling/cases.json` means.
fn settings(case: &Value) -> Settings {
    let number = |key: &str, default: f64| case.get(key).map_or(default, |v| v.as_f64().unwrap());
    let sampling = Sampling {
        temperature: number("temperature", 1.0),
        top_k: number("top_k", 0.0) as usize,
        top_p: number("top_p", 1.0),
        min_p: number("min_p", 0.0),
        seed: 0,
    };
    let sampled = case.get("do_sample") != Some(&Value::Bool(false));
    Settings {
        sampling: sampled.then_some(sampling),
        repetition_penalty: number("repetition_penalty", 1.0),
        ..Settings::greedy(1)
    }
}

#[test]
fn scores_are_those_of_transformers_processors() {
    let golden = Golden::open("sampling/scores.safetensors");
    let (logits, context) = (golden.tensor("logits"), golden.tensor("context"));
    let (rows, vocab_size) = logits.size2().unwrap();
    let context: Vec<Vec<u32>> = Vec::<Vec<i64>>::try_from(&context)
        .unwrap()
        .into_iter()
        .map(|row| row.into_iter().map(|token| token as u32).collect())
        .collect();
    let context: Vec<&[u32]> = context.iter().map(Vec::as_slice).collect();
    let cases = fs_err::read_to_string(fixture("sampling/cases.json")).unwrap();
    let cases: serde_json::Map<String, Value> = serde_json::from_str(&cases).unwrap();
    assert!(cases.len() >= 16);
    for (name, case) in &cases {
        let streams: Vec<u64> = (0..rows as u64).collect();
        let mut sampler = Sampler::new(&settings(case), &streams);
        sampler.see_prompts(&context, vocab_size).unwrap();
        let found = sampler.scores(&logits).unwrap();
        let expected = golden.tensor(&format!("scores.{name}"));
        // The same tokens stay, ties and all, and the same bits are left of them.
        assert!(found.equal(&expected), "{name}");
        let kept = expected.isfinite().sum(Kind::Int64).int64_value(&[]);
        assert!(kept >= rows, "{name}: {kept}");
    }
}

/// The answers of a batch, by row.
fn answers(prompts: &[&[u32]], settings: &Settings) -> Vec<Vec<u32>> {
    let model = model("tiny-llama", heirloom::recipe::Dtype::Float32);
    let prompts: Vec<Prompt<'_>> = prompts
        .iter()
        .enumerate()
        .map(|(stream, tokens)| Prompt { tokens, stream: stream as u64 })
        .collect();
    let limits = Limits { max_new_tokens: settings.max_new_tokens, eos: &[] };
    let generated = batch::run(&model, &prompts, settings, limits, None, |_, _| {
        Ok::<_, heirloom_engine::error::EngineError>(None)
    });
    let generated = generated.unwrap();
    assert!(generated.rows.iter().all(|answer| answer.finish == Finish::Length));
    generated.rows.into_iter().map(|answer| answer.tokens).collect()
}

#[test]
fn a_row_is_sampled_alone_as_beside_others() {
    let sampling = Sampling { temperature: 1.5, top_k: 0, top_p: 0.95, min_p: 0.0, seed: 9 };
    let settings =
        Settings { sampling: Some(sampling), repetition_penalty: 1.1, ..Settings::greedy(12) };
    let (one, other) = ([5, 6, 7].as_slice(), [9, 10, 11, 12, 13, 14].as_slice());
    let together = answers(&[one, other], &settings);
    assert_eq!(together[0], answers(&[one], &settings)[0]);
    assert_ne!(together[0], together[1]);
    let seeded = Settings { sampling: Some(Sampling { seed: 10, ..sampling }), ..settings.clone() };
    assert_ne!(answers(&[one], &seeded)[0], together[0]);
}

/// A conversation that goes on from what was computed, against one that is computed anew.
#[test]
fn going_on_from_a_past_gives_what_the_whole_gives() {
    let model = model("tiny-llama", heirloom::recipe::Dtype::Float32);
    let limits = Limits { max_new_tokens: 6, eos: &[] };
    let answer = |tokens: &[u32], past| {
        let prompt = Prompt { tokens, stream: 0 };
        let settings = Settings::greedy(6);
        let generated = batch::run(&model, &[prompt], &settings, limits, past, |_, _| {
            Ok::<_, heirloom_engine::error::EngineError>(None)
        });
        generated.unwrap()
    };
    let mut tokens = vec![5, 6, 7];
    let mut past = None;
    for turn in [[20, 21], [30, 31], [40, 41]] {
        let (going_on, anew) = (answer(&tokens, past), answer(&tokens, None));
        assert_eq!(going_on.rows[0].tokens, anew.rows[0].tokens);
        // The last token of an answer was not computed; two of the next turn follow it.
        assert_eq!(going_on.timing.prompt_tokens, 3);
        tokens.extend(&going_on.rows[0].tokens);
        tokens.extend(turn);
        past = going_on.past;
    }
    // Another conversation has nothing to go on from.
    assert_eq!(answer(&[1, 2, 3, 4, 5, 6, 7, 8], past).timing.prompt_tokens, 8);
}

/// Rows end at different times; those that go on must not notice.
#[test]
fn a_row_that_ends_leaves_the_others_as_they_were() {
    let model = model("tiny-llama", heirloom::recipe::Dtype::Float32);
    let (one, other) = ([5, 6, 7].as_slice(), [9, 10, 11, 12, 13, 14].as_slice());
    let sampling = Sampling { temperature: 1.5, top_k: 0, top_p: 0.95, min_p: 0.0, seed: 9 };
    let settings =
        Settings { sampling: Some(sampling), repetition_penalty: 1.1, ..Settings::greedy(12) };
    let whole = answers(&[one, other], &settings);
    let prompts = [Prompt { tokens: one, stream: 0 }, Prompt { tokens: other, stream: 1 }];
    let limits = Limits { max_new_tokens: 12, eos: &[] };
    let mut told = [0, 0];
    let generated = batch::run(&model, &prompts, &settings, limits, None, |row, _| {
        told[row] += 1;
        Ok::<_, heirloom_engine::error::EngineError>((row == 0).then_some(Finish::Stop))
    });
    let rows = generated.unwrap().rows;
    assert_eq!((rows[0].tokens.as_slice(), rows[0].finish), (&whole[0][..1], Finish::Stop));
    assert_eq!((&rows[1].tokens, rows[1].finish), (&whole[1], Finish::Length));
    assert_eq!(told, [1, 12]);
}

/// The loop with its cache against whole passes over everything so far.
#[test]
fn greedy_decoding_with_the_cache_equals_whole_passes() {
    let model = model("tiny-llama", heirloom::recipe::Dtype::Float32);
    let prompts = [vec![5, 6, 7], vec![9, 10, 11, 12, 13, 14], vec![3]];
    let found = generate::greedy(&model, &prompts, &[], 10, |_| {}).unwrap();
    for (prompt, answer) in prompts.iter().zip(found) {
        let mut tokens: Vec<i64> = prompt.iter().map(|token| i64::from(*token)).collect();
        for token in answer {
            let length = tokens.len();
            let layout =
                heirloom_engine::ops::Layout::new(&[length as u32], tch::Device::Cpu).unwrap();
            let hidden = model.hidden(&Tensor::from_slice(&tokens), &layout, false).unwrap();
            let logits = model.logits(&hidden).unwrap();
            let next = logits.get(length as i64 - 1).argmax(-1, false).int64_value(&[]);
            assert_eq!(next, i64::from(token));
            tokens.push(next);
        }
    }
}

#[test]
fn an_answer_ends_at_an_end_of_sequence_token_that_is_kept_off() {
    let model = model("tiny-llama", heirloom::recipe::Dtype::Float32);
    let prompts = [vec![5, 6, 7], vec![9, 10, 11, 12, 13, 14]];
    let whole = generate::greedy(&model, &prompts, &[], 8, |_| {}).unwrap();
    let eos = whole[0][3];
    let ended = generate::greedy(&model, &prompts, &[eos], 8, |_| {}).unwrap();
    for (whole, ended) in whole.iter().zip(&ended) {
        let expected = whole.iter().position(|token| *token == eos).unwrap_or(whole.len());
        assert_eq!(ended, &whole[..expected]);
    }
    assert!(ended[0].len() <= 3);
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

/// `heirloom`, with this engine, in the repository.
fn heirloom(arguments: &[&str]) -> Command {
    let engine = Path::new(env!("CARGO_BIN_EXE_heirloom-engine"));
    let program = engine.with_file_name("heirloom");
    assert!(program.is_file(), "build the whole workspace: `cargo build`");
    let mut command = Command::new(program);
    command.current_dir(root()).args(arguments).env("HEIRLOOM_ENGINE", engine);
    command.env("OMP_NUM_THREADS", "1").stdin(Stdio::piped());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn said(output: Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// How the program ends and what it prints when these lines come from a pipe.
fn typed(arguments: &[&str], lines: &[u8]) -> (Option<i32>, String, String) {
    let mut child = heirloom(arguments).spawn().unwrap();
    child.stdin.take().unwrap().write_all(lines).unwrap();
    let output = child.wait_with_output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

const LETTER: &str = "Where is order 40718? It is for Marla Quist.";
const SEEDLING: &str = "data/seedling";

fn answer(arguments: &[&str]) -> String {
    said(heirloom(&[&["generate", SEEDLING, LETTER], arguments].concat()).output().unwrap())
}

/// A file in a folder of its own.
fn file(name: &str, content: &str) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    fs_err::write(&path, content).unwrap();
    (folder, path)
}

#[test]
fn a_stop_string_ends_an_answer_before_it() {
    let whole = answer(&[]);
    // From the middle of a word, so that the string begins inside a token.
    let start = whole.char_indices().nth(whole.chars().count() / 2).unwrap().0;
    let stop: String = whole[start..].trim_end().chars().take(7).collect();
    let expected = whole.split(&stop).next().unwrap();
    assert_eq!(answer(&["--stop", &stop, "--stop", "never said"]), format!("{expected}\n"));
}

#[test]
fn the_same_seed_gives_the_same_answer() {
    let sampled = |seed| answer(&["--temperature", "1.5", "--top-k", "0", "--seed", seed]);
    assert_eq!(sampled("1"), sampled("1"));
    assert_ne!(sampled("1"), sampled("2"));
    assert_eq!(answer(&["--temperature", "0"]), answer(&[]));
    assert_eq!(answer(&["--top-k", "1"]), answer(&["--greedy"]));
}

#[test]
fn a_file_of_requests_gives_their_answers_in_its_order() {
    let messages =
        json!([{"role": "user", "content": LETTER}, {"role": "assistant", "content": "x"}]);
    let lines = [
        json!({"id": "long", "prompt": format!("{LETTER} Please hurry, and tell me all of it.")}),
        json!({"id": 7, "messages": messages}),
        json!({"prompt": LETTER}),
    ];
    let (folder, input) = file("in.jsonl", &lines.map(|line| line.to_string() + "\n").concat());
    let output = folder.path().join("out.jsonl");
    let (input, path) = (input.to_str().unwrap(), output.to_str().unwrap());
    let run = |more: &[&str]| {
        let arguments = ["generate", SEEDLING, "--input", input, "--batch-size", "2"];
        said(heirloom(&[&arguments, more].concat()).output().unwrap())
    };
    assert_eq!(run(&["-o", path]), "");
    let written = fs_err::read_to_string(&output).unwrap();
    assert_eq!(run(&[]), written);
    let found: Vec<Value> =
        written.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(found.len(), 3);
    assert_eq!((&found[0]["id"], &found[1]["id"]), (&json!("long"), &json!(7)));
    assert_eq!(found[2].get("id"), None);
    assert_eq!(found[2]["number"], 3);
    let single = answer(&[]);
    for row in &found[1..] {
        assert_eq!(row["text"], single.trim_end_matches('\n'));
        assert_eq!(row["finish_reason"], "eos");
        assert!(row["prompt_tokens"].as_u64().unwrap() > 10);
        assert!(row["completion_tokens"].as_u64().unwrap() > 0);
        assert_eq!(row["settings"]["max_new_tokens"], 128);
    }
    let cut = run(&["--max-new-tokens", "3", "--ignore-eos"]);
    let cut: Value = serde_json::from_str(cut.lines().next().unwrap()).unwrap();
    assert_eq!((&cut["finish_reason"], &cut["completion_tokens"]), (&json!("length"), &json!(3)));
}

#[test]
fn raw_text_goes_on_without_the_template() {
    let raw = said(
        heirloom(&[
            "generate",
            SEEDLING,
            &format!("<|user|>\n{LETTER}<|end|>\n<|assistant|>\n"),
            "--raw",
        ])
        .output()
        .unwrap(),
    );
    assert_eq!(raw, answer(&[]));
    let (_folder, path) = file("letter.txt", LETTER);
    let file = heirloom(&["generate", SEEDLING, "--file", path.to_str().unwrap()]).output();
    assert_eq!(said(file.unwrap()), raw);
}

#[test]
fn a_mistake_in_the_input_is_told_and_nothing_is_written() {
    let (folder, input) =
        file("in.jsonl", "{\"prompt\": \"a secret\"}\n{\"promt\": \"a secret\"}\n");
    let output = folder.path().join("out.jsonl");
    let ran = heirloom(&["generate", SEEDLING, "--input", input.to_str().unwrap()])
        .arg("-o")
        .arg(&output)
        .output()
        .unwrap();
    let told = String::from_utf8(ran.stderr).unwrap();
    assert_eq!((ran.status.code(), output.exists()), (Some(1), false));
    assert!(told.contains("line 2: it has neither `prompt` nor `messages`"), "{told}");
    assert!(!told.contains("secret"), "{told}");
}

#[test]
fn a_chat_remembers_forgets_and_goes_on_after_a_mistake() {
    let one = answer(&[]);
    let lines = format!(
        "{LETTER}\n/again\nWho are you?\n/reset\n{LETTER}\n/adapter off\n/set temperature much\n\
         /set top_q 1\n/nonsense\n/stats\n/set max_new_tokens 2\n{LETTER}\n/exit\nnot read\n"
    );
    let (status, said, noted) = typed(&["chat", SEEDLING], lines.as_bytes());
    assert_eq!(status, Some(1));
    assert!(noted.contains("error: 2 of 12 lines could not be done"), "{noted}");
    let said: Vec<&str> = said.lines().collect();
    let one: Vec<&str> = one.lines().collect();
    assert_eq!(one.len(), 1, "the tests below count lines");
    assert_eq!((said[0], said[1], said[3]), (one[0], one[0], one[0]));
    assert_eq!(said.len(), 5);
    // The second letter in one conversation is answered with the first in mind.
    assert!(said[4].len() < one[0].len());
    for words in [
        "greedy, at most 128 new tokens",
        "a new conversation",
        "this model has no adapter",
        "`much` is no value of `temperature`",
        "there is no setting `top_q`",
        "there is no such command; /help lists the commands",
        "tokens per second",
        "greedy, at most 2 new tokens",
    ] {
        assert!(noted.contains(words), "{words}: {noted}");
    }
}

#[test]
fn a_chat_over_a_pipe_fails_when_an_answer_did() {
    let short = ["chat", SEEDLING, "--max-new-tokens", "1"];
    let (status, _, noted) = typed(&short, b"hi\n");
    assert_eq!(status, Some(0), "{noted}");
    let long = format!("{}\nhi\n", "one two three ".repeat(2000));
    let (status, said, noted) = typed(&short, long.as_bytes());
    assert_eq!((status, said.lines().count()), (Some(1), 1), "{noted}");
    assert!(noted.contains("`/reset` begins a chat anew"), "{noted}");
    assert!(noted.contains("error: 1 of 2 lines could not be done"), "{noted}");
}

#[test]
fn a_line_that_is_no_text_is_told_once() {
    let (status, _, noted) = typed(&["chat", SEEDLING], b"\xff\xfe\n");
    assert_eq!((status, noted.matches("a line is not UTF-8").count()), (Some(1), 1), "{noted}");
}

#[test]
fn ctrl_c_ends_an_answer_and_not_the_chat() {
    let arguments = ["chat", SEEDLING, "--ignore-eos", "--max-new-tokens", "1900"];
    let mut child = heirloom(&arguments).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    writeln!(stdin, "{LETTER}").unwrap();
    let mut stdout = child.stdout.take().unwrap();
    let mut begun = [0];
    stdout.read_exact(&mut begun).unwrap();
    let interrupt = Command::new("kill").args(["-INT", &child.id().to_string()]).status();
    assert!(interrupt.unwrap().success());
    writeln!(stdin, "/set max_new_tokens 3\n{LETTER}").unwrap();
    drop(stdin);
    let mut said = String::new();
    stdout.read_to_string(&mut said).unwrap();
    let output = child.wait_with_output().unwrap();
    let noted = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{noted}");
    assert_eq!(noted.matches("(stopped)").count(), 1, "{noted}");
    // The second answer is there, and short.
    assert!(said.lines().last().unwrap().len() < 60, "{said}");
}
