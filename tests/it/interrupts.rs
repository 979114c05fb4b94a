//! Ctrl-C and `kill -9` at any moment before there is a run: what is there is whole, and what
//! is left over does not look finished.

use std::os::unix::process::ExitStatusExt as _;
use std::process::Stdio;
use std::thread::sleep;
use std::time::Duration;

use serde_json::json;

use crate::world::World;

/// What our unfinished files and folders are called.
const UNFINISHED: &str = ".heirloom-";

/// Rows about nobody.
pub(crate) const DECLARATION: &str = "\
dataset_id: urn:uuid:f47ac10b-58cc-4372-a567-0e02b2c3d479
controller: Example Org
jurisdictions: [IE]
license: CC-BY-4.0
expiry: endless
snapshot_at: 2026-06-01T00:00:00Z
sources:
  rules: { origin: written by rule }
default:
  basis: not_personal_data
  justification: there is nobody in them
  purposes: [dpv:ServiceProvision]
  processing: [ai:ModelFineTuning]
  source: rules
";

/// Stops a command by each signal after each of some delays, and looks at what is new. Gives
/// back how often it was still at work.
fn stopped(
    world: &World,
    arguments: &[&str],
    delays: impl Iterator<Item = u64> + Clone,
    mut look: impl FnMut(&[String], bool),
) -> usize {
    let before = world.files();
    let mut caught = 0;
    for signal in ["-INT", "-KILL"] {
        for delay in delays.clone() {
            let mut command = world.command(arguments);
            command.stdout(Stdio::null()).stderr(Stdio::null());
            let mut child = command.spawn().unwrap();
            sleep(Duration::from_millis(delay));
            let id = child.id().to_string();
            std::process::Command::new("kill").args([signal, &id]).status().unwrap();
            let status = child.wait().unwrap();
            let at_work = status.signal().is_some() || status.code() == Some(1);
            assert!(at_work || status.success(), "{signal} after {delay} ms: {status}");
            caught += usize::from(at_work);
            let new: Vec<String> =
                world.files().into_iter().filter(|name| !before.contains(name)).collect();
            look(&new, at_work);
            for name in new.iter().rev() {
                let path = world.path(name);
                if path.is_dir() {
                    fs_err::remove_dir_all(path).unwrap();
                } else if path.exists() {
                    fs_err::remove_file(path).unwrap();
                }
            }
        }
    }
    caught
}

fn is_unfinished(name: &str) -> bool {
    name.split('/').any(|part| part.starts_with(UNFINISHED))
}

#[test]
fn an_import_that_is_stopped_leaves_nothing_that_looks_finished() {
    let world = World::new();
    world.write("consent.yaml", DECLARATION);
    let rows: String = (0..60_000)
        .map(|row| {
            let said = format!("{row} marigolds, please, by the end of the week");
            let chat = json!([{"role": "user", "content": said},
                              {"role": "assistant", "content": "With pleasure."}]);
            let row = match row % 10 {
                // Some are set aside, so that there is a second file to be half-written.
                9 => json!({"messages": []}),
                _ => json!({"messages": chat}),
            };
            format!("{row}\n")
        })
        .collect();
    world.write("rows.jsonl", rows);
    let import =
        ["data", "import", "rows.jsonl", "-o", "out/out.parquet", "--consent", "consent.yaml"];
    fs_err::create_dir(world.path("out")).unwrap();
    let mut begun = 0;
    let delays = [5, 20, 60, 150, 300, 600, 1000, 1500, 2200].into_iter();
    let caught = stopped(&world, &import, delays, |new, at_work| {
        begun += usize::from(new.iter().any(|name| is_unfinished(name)));
        let finished: Vec<&String> = new.iter().filter(|name| !is_unfinished(name)).collect();
        if at_work && finished.iter().all(|name| *name != "out/out.parquet") {
            assert!(finished.is_empty(), "{finished:?}");
        }
        // What goes by its name is whole.
        if finished.iter().any(|name| *name == "out/out.parquet") {
            let path = world.path("out/out.parquet");
            let file = heirloom::dataset::source::SourceFile::open(&path).unwrap();
            assert_eq!(file.group_rows().iter().sum::<u64>(), 54_000);
        }
    });
    assert!(caught >= 6, "only {caught} were still at work");
    assert!(begun >= 1, "none had begun to write");
    // What a kill left over is in nobody's way.
    world.write("out/.heirloom-left-over", "half");
    let ran = world.heirloom(&import);
    assert_eq!(ran.status, Some(0), "{}", ran.stderr);
}

#[test]
fn training_that_is_stopped_while_it_plans_leaves_no_run() {
    let world = World::new();
    let train = ["train", "recipe.yaml"];
    let delays = [5, 20, 60, 120, 200, 300, 450, 700, 1000, 1400].into_iter();
    let caught = stopped(&world, &train, delays, |new, _| {
        let finished: Vec<&String> = new.iter().filter(|name| !is_unfinished(name)).collect();
        if finished.iter().any(|name| name.starts_with("runs/small")) {
            // It had begun: then with all its papers.
            for paper in [
                "recipe.yaml",
                "recipe.lock",
                "consent_report.json",
                "record_tree.json",
                "record_index.parquet",
                "record_key",
            ] {
                let name = format!("runs/small/{paper}");
                assert!(finished.contains(&&name), "{name} is missing: {finished:?}");
            }
        } else {
            assert!(finished.iter().all(|name| *name == "runs"), "{finished:?}");
        }
    });
    assert!(caught >= 4, "only {caught} were still planning");
    let ran = world.heirloom(&train);
    assert_eq!(ran.status, Some(0), "{}", ran.stderr);
}
