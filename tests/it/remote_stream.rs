//! The stream over rows that lie on a server: the batches of the local file, whatever goes
//! wrong on the way, or an error after which it goes on exactly where it was. And what a
//! recipe that names such rows is held to.

use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Once};
use std::time::Duration;

use arrow::array::{ArrayRef, BinaryArray};
use arrow::record_batch::RecordBatch;
use fs_err as fs;
use heirloom::dataset::chat::ChatEncoder;
use heirloom::dataset::error::DatasetError;
use heirloom::dataset::gate::Gate;
use heirloom::dataset::source::SourceError;
use heirloom::dataset::source::remote::{Failure, Patience, be_patient, on_retry};
use heirloom::dataset::spec::Spec;
use heirloom::dataset::stream::{Position, Step, Stream};
use heirloom::diagnose::Diagnose as _;
use heirloom::recipe::{self, plan};
use jiff::Timestamp;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::file::properties::WriterProperties;
use serde_json::Value;

use crate::remote::server::{Fault, Server, Stored};
use crate::world::World;

const GROUPS: usize = 12;
const GROUP_ROWS: usize = 30;

/// Bytes beside each row that nobody asks for: they keep row groups apart, so that each
/// needs requests of its own.
const BALLAST: usize = 60_000;

/// Longer than the tests' patience with a silent server.
const LONG: Duration = Duration::from_millis(900);

const RECIPE: &str = "\
heirloom: 1
name: small
base: { model: base, from_scratch: true }
adapter: full
data:
  purpose: [dpv:ServiceProvision]
  train: [{ path: \"ROWS\", format: chat }]
  sequence_length: 512
train:
  epochs: 2
  tokens_per_step: 2048
  optimizer: { adamw: { lr: 1.0e-3 } }
  seed: 17
";

/// Bundled rows, far apart.
fn parquet() -> &'static [u8] {
    static BYTES: LazyLock<Vec<u8>> = LazyLock::new(written);
    &BYTES
}

fn written() -> Vec<u8> {
    let bundled = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/catalogue/train-00000.parquet");
    let file = fs::File::open(bundled).unwrap().into_parts().0;
    let builder = ParquetRecordBatchReaderBuilder::try_new(file).unwrap();
    let footer = builder.metadata().file_metadata().key_value_metadata().cloned();
    let footer = footer.map(|pairs| {
        // The schema is that of other columns.
        pairs.into_iter().filter(|pair| pair.key != "ARROW:schema").collect()
    });
    let mut reader = builder.with_batch_size(GROUPS * GROUP_ROWS).build().unwrap();
    let rows: RecordBatch = reader.next().unwrap().unwrap();
    assert_eq!(rows.num_rows(), GROUPS * GROUP_ROWS);
    let ballast = (0..rows.num_rows()).map(|row| vec![row as u8; BALLAST]);
    let ballast: ArrayRef = Arc::new(BinaryArray::from_iter_values(ballast));
    let schema = rows.schema();
    let names = schema.fields().iter().map(|field| field.name().as_str());
    let columns = names.zip(rows.columns().iter().cloned()).chain([("ballast", ballast)]);
    let columns = columns.map(|(name, column)| (name, column, name != "record_id"));
    let rows = RecordBatch::try_from_iter_with_nullable(columns).unwrap();
    let properties = WriterProperties::builder()
        .set_max_row_group_row_count(Some(GROUP_ROWS))
        .set_dictionary_enabled(false)
        .set_key_value_metadata(footer)
        .build();
    let mut bytes = Vec::new();
    let mut writer = ArrowWriter::try_new(&mut bytes, rows.schema(), Some(properties)).unwrap();
    writer.write(&rows).unwrap();
    writer.close().unwrap();
    bytes
}

/// A world whose recipe names rows on a server, and the same rows as a file.
struct Place {
    world: World,
    server: Server,
    encoder: Arc<ChatEncoder>,
    now: Timestamp,
    shuffled: bool,
}

impl Place {
    fn new() -> Self {
        static ONCE: Once = Once::new();
        ONCE.call_once(|| {
            be_patient(Patience {
                attempts: 8,
                first_pause: Duration::from_millis(1),
                silence: Duration::from_millis(300),
                answer: Duration::from_secs(5),
            });
            on_retry(Arc::new(|_: &str| ()));
        });
        let (world, server) = (World::new(), Server::new());
        server.put("/rows.parquet", parquet());
        world.write("rows.parquet", parquet());
        world.write("recipe.yaml", RECIPE.replace("ROWS", &address(&server)));
        let encoder = ChatEncoder::open(&world.path("base")).unwrap();
        let now = Timestamp::now();
        Self { world, server, encoder: Arc::new(encoder.with_clock(now)), now, shuffled: true }
    }

    #[expect(clippy::result_large_err, reason = "the error is looked at, and that is all")]
    fn stream(&self, rows: &str, from: Position) -> Result<Stream, DatasetError> {
        let path = self.world.path("of-test.yaml");
        // Pools of single documents are small: several lie between one end and the other.
        let packing = if self.shuffled { "best-fit" } else { "none" };
        let order = format!("  shuffle: {}\n  packing: {packing}\ntrain:", self.shuffled);
        fs::write(
            &path,
            RECIPE.replace("ROWS", rows).replace("train:\n  epochs", &format!("{order}\n  epochs")),
        )
        .unwrap();
        let recipe = recipe::read(&path, &[]).unwrap().recipe;
        let gate = Gate::open(plan::ask(&recipe.data, self.now), &[]).unwrap();
        let spec = Spec::new(&recipe, Arc::new(gate)).unwrap();
        Stream::open(spec, Arc::clone(&self.encoder), from)
    }

    fn local(&self) -> Vec<Step> {
        let rows = self.world.path("rows.parquet");
        let steps = self.stream(rows.to_str().unwrap(), Position::default()).unwrap();
        steps.map(Result::unwrap).collect()
    }

    #[expect(clippy::result_large_err, reason = "as above")]
    fn remote(&self, from: Position) -> Result<Stream, DatasetError> {
        self.stream(&address(&self.server), from)
    }

    /// Puts another version in the place of the rows.
    fn replace(&self, bytes: &[u8], etag: &str) {
        let modified = Some("Sun, 22 Nov 2026 10:00:00 GMT");
        self.server.put_as("/rows.parquet", bytes, Some(etag), modified);
    }
}

fn address(server: &Server) -> String {
    format!("{}/rows.parquet", server.endpoint)
}

#[test]
fn batches_are_those_of_the_file_whatever_goes_wrong_on_the_way() {
    let place = Place::new();
    let local = place.local();
    assert!(local.len() > 10, "{} steps", local.len());
    let clean: Vec<Step> = place.remote(Position::default()).unwrap().map(Result::unwrap).collect();
    assert_eq!(clean, local);
    let parts = place.server.requests().len();
    assert!(parts >= GROUPS, "only {parts} requests: faults would find nothing to hit");
    // Two threads ask in turn: of every second request one might meet only the faulty ones.
    for (one_in, fault) in [
        (5, Fault::Silence(LONG)),
        (5, Fault::SilenceAfter(5000, LONG)),
        (3, Fault::CutAfter(0)),
        (3, Fault::CutAfter(70_000)),
        (3, Fault::CutHead),
        (3, Fault::Garbage),
        (3, Fault::Short),
        (3, Fault::Status(500, "")),
        (3, Fault::Status(503, "Retry-After: 0")),
    ] {
        place.server.often(one_in, fault.clone());
        // And a burst of them to begin with.
        for _ in 0..3 {
            place.server.fault(fault.clone());
        }
        let steps: Vec<Step> =
            place.remote(Position::default()).unwrap().map(Result::unwrap).collect();
        assert!(steps == local, "{fault:?}");
        assert!(place.server.requests().len() > parts, "{fault:?}: nothing went wrong");
        place.server.recover();
    }
}

#[test]
fn a_server_that_dies_ends_the_stream_which_goes_on_where_it_was() {
    // A shuffled pass over so few row groups begins with all of them.
    let place = Place { shuffled: false, ..Place::new() };
    let local = place.local();
    place.remote(Position::default()).unwrap().for_each(|step| drop(step.unwrap()));
    let parts = place.server.requests().len();
    let mut broken_off = std::collections::BTreeSet::new();
    for fault in [Fault::CutHead, Fault::Status(503, "Retry-After: 0")] {
        for after in (2..parts).step_by(parts.div_ceil(7)) {
            place.server.dies_after(after, fault.clone());
            let mut steps = Vec::new();
            let error = match place.remote(Position::default()) {
                Err(error) => error,
                Ok(mut stream) => loop {
                    match stream.next() {
                        Some(Ok(step)) => steps.push(step),
                        Some(Err(error)) => {
                            assert!(stream.next().is_none(), "something came after the error");
                            break error;
                        }
                        None => panic!("{after} of {parts}: it ended as if nothing had happened"),
                    }
                },
            };
            let DatasetError::Source(SourceError::Remote { name, failure }) = &error else {
                panic!("{error:?}")
            };
            assert_eq!(*name, address(&place.server));
            assert!(matches!(failure, Failure::GaveUp { attempts: 8, .. }), "{failure:?}");
            assert!(error.hint().unwrap().contains("--resume"));
            broken_off.insert(steps.len());
            assert_eq!(steps, local[..steps.len()]);

            place.server.recover();
            let from = steps.last().map(|step| step.position.clone()).unwrap_or_default();
            let rest: Vec<Step> = place.remote(from).unwrap().map(Result::unwrap).collect();
            assert!(rest == local[steps.len()..], "{after}");
        }
    }
    assert!(broken_off.len() > 1, "it broke off at one place only: {broken_off:?}");
}

#[test]
fn a_recipe_with_rows_on_a_server_is_checked_locked_and_held_to_their_version() {
    let place = Place::new();
    let world = &place.world;
    let ran = world.heirloom(&["check", "recipe.yaml"]);
    assert_eq!(ran.status, Some(0), "{}", ran.stderr);
    let local = RECIPE.replace("ROWS", "rows.parquet");
    world.write("local.yaml", local);
    let numbers = |recipe: &str| {
        let ran = world.heirloom(&["check", recipe, "--format", "json"]);
        let plan: Value = serde_json::from_str::<Value>(&ran.stdout).unwrap()["plan"].take();
        (plan["training"].clone(), plan["rows"].clone())
    };
    assert_eq!(numbers("recipe.yaml"), numbers("local.yaml"));

    let ran = world.heirloom(&["train", "recipe.yaml"]);
    assert_eq!(ran.status, Some(0), "{}", ran.stderr);
    let lock = world.read("runs/small/recipe.lock");
    let data = &serde_json::from_str::<Value>(&lock).unwrap()["data"][0];
    assert!(data.to_string().contains(&address(&place.server)), "{data}");
    let pinned = data.to_string();
    assert!(pinned.contains("\\\"one\\\"") && pinned.contains("footer_sha256"), "{pinned}");
    assert_eq!(world.heirloom(&["train", "recipe.yaml", "--resume"]).status, Some(0));

    // Another version, and another content under the name of the same version.
    let shorter = [parquet(), b""].concat();
    let mut changed = parquet().to_vec();
    let end = changed.len() - 20;
    changed[end] ^= 1;
    for (bytes, etag) in [(&shorter, "\"two\""), (&changed, "\"one\"")] {
        place.replace(bytes, etag);
        let ran = world.heirloom(&["train", "recipe.yaml", "--resume"]);
        assert_eq!((ran.status, ran.stdout.as_str()), (Some(1), ""), "{etag}: {}", ran.stderr);
        assert!(ran.stderr.contains("rows.parquet"), "{}", ran.stderr);
        assert!(ran.stderr.contains("hint: "), "{}", ran.stderr);
        assert_eq!(world.read("runs/small/recipe.lock"), lock);
    }
    place.server.put("/rows.parquet", parquet());
    let ran = world.heirloom(&["train", "recipe.yaml", "--resume"]);
    assert_eq!(ran.status, Some(0), "{}", ran.stderr);
}

/// The version changes between two passes over the rows.
#[test]
fn a_stream_never_mixes_two_versions() {
    let place = Place::new();
    let local = place.local();
    let stored = Stored {
        bytes: parquet().to_vec(),
        etag: Some("\"two\"".to_owned()),
        modified: Some("Sun, 22 Nov 2026 10:00:00 GMT"),
    };
    place.server.change_after(8, "/rows.parquet", stored);
    let mut steps = Vec::new();
    let stream = place.remote(Position::default()).unwrap();
    let mut error = None;
    for step in stream {
        match step {
            Ok(step) => steps.push(step),
            Err(failed) => error = Some(failed),
        }
    }
    let error = error.unwrap();
    let changed = matches!(
        &error,
        DatasetError::Source(SourceError::Remote { failure: Failure::Changed, .. })
    );
    assert!(changed, "{error:?}");
    assert_eq!(steps, local[..steps.len()]);
}

#[test]
fn a_dead_server_costs_a_command_its_words_and_nothing_else() {
    let place = Place::new();
    let dead = PathBuf::from("http://127.0.0.1:1/rows.parquet");
    place.world.write("recipe.yaml", RECIPE.replace("ROWS", dead.to_str().unwrap()));
    let before = place.world.files();
    let mut child = place.world.command(&["train", "recipe.yaml"]);
    let child = child.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    let mut child = child.spawn().unwrap();
    // It tries again with pauses; nobody has to wait for that to see that it began nothing.
    std::thread::sleep(Duration::from_secs(2));
    assert!(child.try_wait().unwrap().is_none(), "it gave up at once");
    child.kill().unwrap();
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("trying again"), "{said}");
    assert_eq!(place.world.files(), before);
}
