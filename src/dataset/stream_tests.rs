use proptest::prelude::*;
use tempfile::TempDir;

use super::super::chat::ChatError;
use super::super::fixture::{self, Row, TEMPLATE, row};
use super::super::source::SourceError;
use super::super::survey::survey;
use super::*;
use crate::recipe::{Overlong, Packing, TrainOn};

/// A base folder and two training files of `rows`, the first in groups of `group_rows`.
struct World {
    folder: TempDir,
    encoder: Arc<ChatEncoder>,
}

impl World {
    fn new(rows: &[Row], group_rows: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fixture::base_folder(folder.path(), TEMPLATE);
        let encoder = Arc::new(ChatEncoder::open(folder.path()).unwrap());
        let (a, b) = rows.split_at(rows.len() / 3);
        fixture::write_rows(&folder.path().join("a.parquet"), a, group_rows);
        fixture::write_rows(&folder.path().join("b.parquet"), b, group_rows + 2);
        Self { folder, encoder }
    }

    fn spec(&self) -> Spec {
        let file = |name| SplitFile { split: Split::Train, path: self.folder.path().join(name) };
        Spec {
            files: vec![file("a.parquet"), file("b.parquet")],
            ask: fixture::ask(),
            sequence_length: 64,
            packing: Packing::BestFit,
            overlong: Overlong::Refuse,
            train_on: TrainOn::Assistant,
            shuffle_seed: Some(17),
            windows_per_step: 3,
            micro_batch_tokens: 128,
            epochs: 2,
            max_steps: None,
            max_new_tokens: Default::default(),
        }
    }

    fn steps(&self, spec: &Spec, from: Position) -> Vec<Step> {
        let stream = Stream::open(spec.clone(), self.encoder.clone(), from).unwrap();
        stream.map(|step| step.unwrap()).collect()
    }

    fn first_error(&self, spec: &Spec) -> DatasetError {
        let stream = Stream::open(spec.clone(), self.encoder.clone(), Position::default());
        stream.unwrap().find_map(Result::err).unwrap()
    }
}

/// Rows whose answers spell their numbers and differ in length; every fifth is withdrawn.
fn mixed_rows(count: usize) -> Vec<Row> {
    (0..count)
        .map(|id| {
            let mut row = row(id, "q", &format!("{id:04}{}", "x".repeat(id * 7 % 23)));
            if id % 5 == 4 {
                row.status = Some("withdrawn");
            }
            row
        })
        .collect()
}

/// The numbers that a pass visits, in order.
fn visited(world: &World, steps: &[Step], epoch: u32) -> Vec<usize> {
    let mut numbers = Vec::new();
    for batch in steps.iter().filter(|s| s.epoch == epoch).flat_map(|s| &s.micro_batches) {
        let mut start = 0;
        for length in &batch.lengths {
            let document = start..start + *length as usize;
            start = document.end;
            let answer: Vec<u32> =
                document.filter(|i| batch.weights[*i] > 0.0).map(|i| batch.tokens[i]).collect();
            numbers.push(world.encoder.decode(&answer).unwrap()[..4].parse().unwrap());
        }
    }
    numbers
}

#[test]
fn every_pass_visits_every_usable_row_once_in_an_order_of_its_own() {
    let world = World::new(&mixed_rows(200), 7);
    let steps = world.steps(&world.spec(), Position::default());
    let usable: Vec<usize> = (0..200).filter(|id| id % 5 != 4).collect();
    let passes = [visited(&world, &steps, 0), visited(&world, &steps, 1)];
    assert_ne!(passes[0], passes[1]);
    for mut pass in passes {
        assert_ne!(pass, usable);
        pass.sort_unstable();
        assert_eq!(pass, usable);
    }
    let in_order = Spec { shuffle_seed: None, epochs: 1, ..world.spec() };
    let steps = world.steps(&in_order, Position::default());
    assert_eq!(visited(&world, &steps, 0), usable);
}

#[test]
fn steps_keep_to_their_sizes_and_say_where_a_pass_ends() {
    let world = World::new(&mixed_rows(200), 7);
    let spec = world.spec();
    let steps = world.steps(&spec, Position::default());
    for step in &steps {
        let tokens: usize = step.micro_batches.iter().map(|batch| batch.tokens.len()).sum();
        assert!(tokens <= spec.sequence_length * spec.windows_per_step);
        for batch in &step.micro_batches {
            assert!(batch.tokens.len() <= spec.micro_batch_tokens);
            assert_eq!(batch.lengths.iter().sum::<u32>() as usize, batch.tokens.len());
            assert_eq!(batch.weights.len(), batch.tokens.len());
            assert!(batch.trained_tokens() > 0);
        }
    }
    let ends: Vec<u32> = steps.iter().filter(|s| s.ends_epoch).map(|s| s.epoch).collect();
    assert_eq!(ends, [0, 1]);
    assert!(steps.last().unwrap().ends_epoch);
    assert_eq!(steps.last().unwrap().position, Position { epoch: 2, block: 0, row: 0 });
}

#[test]
fn without_packing_every_conversation_has_its_window() {
    let world = World::new(&mixed_rows(20), 7);
    let spec = Spec { packing: Packing::None, epochs: 1, micro_batch_tokens: 1, ..world.spec() };
    let steps = world.steps(&spec, Position::default());
    let lengths = |step: &Step| step.micro_batches.iter().map(|b| b.lengths.len()).collect();
    let shape: Vec<Vec<usize>> = steps.iter().map(lengths).collect();
    assert_eq!(shape, [vec![1; 3], vec![1; 3], vec![1; 3], vec![1; 3], vec![1; 3], vec![1]]);
}

#[test]
fn the_number_of_threads_changes_nothing() {
    let world = World::new(&mixed_rows(300), 7);
    let steps = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let encoder = world.encoder.clone();
        let stream = Stream::open_on(world.spec(), encoder, Position::default(), move |work| {
            pool.install(work);
        });
        stream.unwrap().map(|step| step.unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(steps(1), steps(5));
}

#[test]
fn a_stream_that_is_dropped_lets_its_thread_go() {
    let world = World::new(&mixed_rows(2000), 50);
    let mut stream = Stream::open(
        Spec { epochs: u32::MAX, ..world.spec() },
        world.encoder.clone(),
        Position::default(),
    )
    .unwrap();
    assert!(stream.next().is_some());
    drop(stream);
    // Only the thread holds the other reference.
    for _ in 0..1000 {
        if Arc::strong_count(&world.encoder) == 1 {
            return;
        }
        thread::sleep(std::time::Duration::from_millis(10));
    }
    panic!("the reading thread goes on for nobody");
}

#[test]
fn a_conversation_longer_than_a_window_is_refused_or_dropped() {
    let mut rows = mixed_rows(30);
    rows[17].messages[1].1 = "x".repeat(100);
    let world = World::new(&rows, 4);
    let error = world.first_error(&world.spec());
    // The second file starts at row 10.
    assert!(
        matches!(&error, DatasetError::Overlong { row: 7, path, .. } if path.ends_with("b.parquet")),
        "{error:?}"
    );
    assert!(matches!(
        survey(&world.spec(), &world.encoder, usize::MAX),
        Err(DatasetError::Overlong { row: 7, .. })
    ));
    let drop = Spec { overlong: Overlong::Drop, ..world.spec() };
    let steps = world.steps(&drop, Position::default());
    assert!(!visited(&world, &steps, 0).contains(&17));
    let size = survey(&drop, &world.encoder, usize::MAX).unwrap().size;
    assert_eq!(size.dropped_overlong, 1);
    assert_eq!(size.steps, steps.len() as u64);
    let tiny = Spec { sequence_length: 4, ..drop };
    assert!(matches!(world.first_error(&tiny), DatasetError::AllOverlong { dropped: 24, .. }));
    assert!(matches!(
        survey(&tiny, &world.encoder, usize::MAX),
        Err(DatasetError::AllOverlong { dropped: 24, .. })
    ));
}

#[test]
fn a_gate_that_lets_nothing_through_is_an_error_with_its_counts() {
    let world = World::new(&mixed_rows(30), 4);
    let mut spec = world.spec();
    spec.ask.processing.push("dpv:MakeAvailable".to_owned());
    let expected = "no row of `data.train` is left after the consent gate: \
                    30 rows seen, 6 withdrawn, 24 not for this processing";
    assert_eq!(world.first_error(&spec).to_string(), expected);
    assert_eq!(survey(&spec, &world.encoder, usize::MAX).unwrap_err().to_string(), expected);
}

#[test]
fn a_chat_with_no_assistant_turn_is_named_by_file_and_row_and_never_quoted() {
    let mut rows = mixed_rows(30);
    rows[3].messages = vec![("user", "my secret".to_owned())];
    let world = World::new(&rows, 4);
    for error in [
        world.first_error(&world.spec()),
        survey(&world.spec(), &world.encoder, usize::MAX).unwrap_err(),
    ] {
        let DatasetError::Row { path, row: 3, record_id, source } = &error else {
            panic!("{error:?}")
        };
        assert!(path.ends_with("a.parquet") && record_id == "row-0003");
        assert!(matches!(source, ChatError::NoAssistant));
        assert!(!format!("{error} {error:?}").contains("secret"));
    }
    // What may not be used is not looked at.
    rows[3].status = Some("withdrawn");
    let world = World::new(&rows, 4);
    assert!(!world.steps(&world.spec(), Position::default()).is_empty());
}

#[test]
fn a_file_that_breaks_later_ends_the_stream_with_an_error() {
    let world = World::new(&mixed_rows(300), 4);
    let path = world.folder.path().join("b.parquet");
    let mut stream = Stream::open(
        Spec { epochs: 50, ..world.spec() },
        world.encoder.clone(),
        Position::default(),
    )
    .unwrap();
    fs_err::remove_file(path).unwrap();
    let error = stream.find_map(Result::err).unwrap();
    assert!(matches!(error, DatasetError::Source(SourceError::Read(_))), "{error:?}");
    assert!(stream.next().is_none());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 8, failure_persistence: None, ..Default::default() })]

    #[test]
    fn reopening_after_any_step_yields_exactly_the_following_steps(
        count in 1_usize..80,
        group_rows in 1_usize..9,
        packing: bool,
        seed in proptest::option::of(any::<u64>()),
        windows_per_step in 1_usize..5,
        sequence_length in 50_usize..120,
    ) {
        let world = World::new(&mixed_rows(count), group_rows);
        let spec = Spec {
            packing: if packing { Packing::BestFit } else { Packing::None },
            shuffle_seed: seed, windows_per_step, sequence_length, ..world.spec()
        };
        let steps = world.steps(&spec, Position::default());
        for (index, step) in steps.iter().enumerate() {
            prop_assert_eq!(&world.steps(&spec, step.position)[..], &steps[index + 1..]);
        }
        // The survey counts the very same steps and tokens.
        let size = survey(&spec, &world.encoder, usize::MAX).unwrap().size;
        let of_epoch = |epoch| steps.iter().filter(|s| s.epoch == epoch).count() as u64;
        prop_assert_eq!(&size.steps_by_epoch[..], &[of_epoch(0), of_epoch(1)]);
        let batches = steps.iter().filter(|s| s.epoch == 0).flat_map(|s| &s.micro_batches);
        let (tokens, trained) = batches.fold((0, 0), |(tokens, trained), batch| {
            (tokens + batch.tokens.len() as u64, trained + batch.trained_tokens())
        });
        prop_assert_eq!((size.tokens, size.trained_tokens), (tokens, trained));
    }
}
