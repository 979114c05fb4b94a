use std::path::PathBuf;

use proptest::prelude::*;
use tempfile::TempDir;

use super::super::chat::ChatError;
use super::super::fixture::{self, Row, TEMPLATE, row};
use super::super::gate::Gate;
use super::super::source::SourceError;
use super::super::survey::Survey;
use super::*;
use crate::recipe::lock::Split;
use crate::recipe::{Overlong, Packing, StoppingStrategy, SurveyOf, TrainOn};

fn survey(
    spec: &Spec,
    encoder: &Arc<ChatEncoder>,
    positions: usize,
) -> Result<Survey, DatasetError> {
    super::super::survey::survey(spec, encoder, positions, &|_| {})
}

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
        let file = |source, name| SplitFile {
            split: Split::Train,
            path: self.folder.path().join(name),
            source,
            ..fixture::split_file(Split::Train, PathBuf::new())
        };
        fixture::training(vec![file(0, "a.parquet"), file(1, "b.parquet")])
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
    let (shuffle_seed, packing) = (None, Packing::None);
    let in_order = Spec { shuffle_seed, packing, epochs: 1, ..world.spec() };
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
    assert_eq!(steps.last().unwrap().position, Position { epoch: 2, ..Position::default() });
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
        let pool: Pool = Arc::new(move |work| pool.install(work));
        let (from, share) = (Position::default(), Share::default());
        let stream = Stream::open_on(world.spec(), encoder, from, share, pool);
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
    let mut ask = fixture::ask();
    ask.processing.push("dpv:MakeAvailable".to_owned());
    spec.gate = Arc::new(Gate::open(ask, &[]).unwrap());
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

/// How a recipe may ask for the same rows.
fn specs() -> impl Strategy<Value = Spec> {
    let packing =
        prop_oneof![Just(Packing::None), Just(Packing::BestFit), Just(Packing::FirstFitDecreasing)];
    let overlong =
        prop_oneof![Just(Overlong::Drop), Just(Overlong::Truncate), Just(Overlong::Split)];
    let weights = prop_oneof![
        Just((Vec::new(), StoppingStrategy::FirstExhausted)),
        Just((vec![1.0, 3.0], StoppingStrategy::FirstExhausted)),
        Just((vec![0.7, 0.3], StoppingStrategy::AllExhausted)),
    ];
    let split = prop_oneof![Just(0.0), Just(0.3)];
    let numbers = (1_usize..5, 20_usize..120);
    let seed = proptest::option::of(any::<u64>());
    (packing, overlong, weights, split, numbers, seed).prop_map(
        |(packing, overlong, (weights, stopping), validation_split, numbers, shuffle_seed)| Spec {
            packing,
            overlong,
            weights,
            stopping,
            validation_split,
            windows_per_step: numbers.0,
            sequence_length: numbers.1,
            shuffle_seed,
            ..World::new(&mixed_rows(1), 1).spec()
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..Default::default() })]

    #[test]
    fn reopening_after_any_step_yields_exactly_the_following_steps(
        count in 30_usize..80,
        group_rows in 1_usize..19,
        spec in specs(),
    ) {
        let mut rows = mixed_rows(count);
        // What comes before the answer decides on which side a row is.
        rows.iter_mut().enumerate().for_each(|(id, row)| row.messages[0].1 = format!("{}", id % 9));
        let world = World::new(&rows, group_rows);
        let spec = Spec { files: world.spec().files, ..spec };
        let steps = world.steps(&spec, Position::default());
        for (index, step) in steps.iter().enumerate() {
            let again = world.steps(&spec, step.position.clone());
            prop_assert_eq!(&again[..], &steps[index + 1..]);
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
        // However many processes share the steps, together they take them all.
        for world_size in [2, 3] {
            let shares: Vec<Vec<Step>> = (0..world_size)
                .map(|rank| {
                    let share = Share { rank, world_size };
                    let encoder = world.encoder.clone();
                    let stream = Stream::open_share(spec.clone(), encoder, Position::default(), share);
                    stream.unwrap().map(|step| step.unwrap()).collect()
                })
                .collect();
            for (index, whole) in steps.iter().enumerate() {
                let of = |step: &Step| {
                    let batches = step.micro_batches.iter();
                    batches.flat_map(documents).collect::<Vec<_>>()
                };
                let mut all = of(whole);
                let mut parts: Vec<_> = shares.iter().flat_map(|steps| of(&steps[index])).collect();
                all.sort();
                parts.sort();
                prop_assert_eq!(all, parts);
                prop_assert!(shares.iter().all(|steps| steps[index].position == whole.position));
            }
        }
    }
}

/// The tokens of each document.
fn documents(batch: &MicroBatch) -> Vec<Vec<u32>> {
    let mut tokens = batch.tokens.as_slice();
    batch
        .lengths
        .iter()
        .map(|length| {
            let (document, rest) = tokens.split_at(*length as usize);
            tokens = rest;
            document.to_vec()
        })
        .collect()
}

#[test]
fn a_mixture_draws_by_weight_and_ends_as_it_is_told() {
    let world = World::new(&mixed_rows(3000), 40);
    let mixed = |stopping| {
        let weights = vec![3.0, 1.0];
        let spec = Spec { weights, stopping, epochs: 1, ..world.spec() };
        visited(&world, &world.steps(&spec, Position::default()), 0)
    };
    // The first file has 1000 rows (800 usable), the second 2000 (1600 usable).
    let first = mixed(StoppingStrategy::FirstExhausted);
    let of_first = first.iter().filter(|id| **id < 1000).count();
    assert_eq!(of_first, 800);
    // Drawn at odds of three to one: 267 of the other, give or take four deviations of 19.
    assert!((190..345).contains(&(first.len() - of_first)), "{}", first.len());
    let all = mixed(StoppingStrategy::AllExhausted);
    let unique: std::collections::BTreeSet<&usize> = all.iter().collect();
    assert_eq!(unique.len(), 2400);
    let of_second = all.iter().filter(|id| **id >= 1000).count();
    assert_eq!(of_second, 1600);
    assert!((4400..5200).contains(&(all.len() - of_second)), "{}", all.len());
}

#[test]
fn a_source_of_which_nothing_is_left_ends_a_mixture_with_its_name() {
    let mut rows = mixed_rows(30);
    rows[..10].iter_mut().for_each(|row| row.status = Some("withdrawn"));
    let world = World::new(&rows, 4);
    for stopping in [StoppingStrategy::FirstExhausted, StoppingStrategy::AllExhausted] {
        let spec = Spec { weights: vec![1.0, 1.0], stopping, ..world.spec() };
        let error = world.first_error(&spec);
        let DatasetError::EmptySource { source_index: 0, counts } = error else {
            panic!("{error:?}")
        };
        assert_eq!((counts.seen, counts.used), (10, 0));
    }
}

#[test]
fn a_source_whose_rows_are_all_too_long_ends_a_mixture_with_that_reason() {
    let world = World::new(&mixed_rows(30), 4);
    let spec = Spec {
        weights: vec![1.0, 1.0],
        overlong: Overlong::Drop,
        sequence_length: 4,
        ..world.spec()
    };
    let error = world.first_error(&spec);
    assert!(matches!(error, DatasetError::SpentSource { .. }), "{error:?}");
}

#[test]
fn an_overlong_row_is_cut_as_the_recipe_says() {
    let mut rows = mixed_rows(30);
    rows[17].messages[1].1 = format!("0017{}", "x".repeat(96));
    let world = World::new(&rows, 4);
    let tokens = |overlong| {
        let spec = Spec { overlong, epochs: 1, ..world.spec() };
        let steps = world.steps(&spec, Position::default());
        let size = survey(&spec, &world.encoder, usize::MAX).unwrap().size;
        assert_eq!((size.cut_overlong, size.dropped_overlong), (1, 0));
        let batches = steps.iter().flat_map(|step| &step.micro_batches);
        batches.map(|batch| batch.tokens.len()).sum::<usize>()
    };
    let whole = survey(&Spec { sequence_length: 500, ..world.spec() }, &world.encoder, usize::MAX);
    let whole = whole.unwrap().size.tokens as usize;
    assert_eq!(tokens(Overlong::Split), whole);
    let row = world.encoder.encode(
        &[("user", "q"), ("assistant", &rows[17].messages[1].1)].map(|(role, content)| {
            super::super::chat::Message { role: role.to_owned(), content: content.to_owned() }
        }),
        TrainOn::Assistant,
    );
    assert_eq!(tokens(Overlong::Truncate), whole - (row.unwrap().tokens.len() - 64));
}

#[test]
fn a_sample_estimates_what_a_survey_counts() {
    let world = World::new(&mixed_rows(3000), 40);
    for weights in [vec![], vec![3.0, 1.0]] {
        let spec = Spec { weights, sequence_length: 512, ..world.spec() };
        let counted = survey(&spec, &world.encoder, usize::MAX).unwrap().size;
        let sample = Spec { survey: SurveyOf::Sample, ..spec };
        let survey = survey(&sample, &world.encoder, usize::MAX).unwrap();
        let estimated = survey.size;
        assert!(estimated.estimated && !counted.estimated);
        let near = |one: u64, other: u64| one.abs_diff(other) * 20 <= other;
        assert!(near(estimated.steps, counted.steps), "{estimated:?} {counted:?}");
        assert!(near(estimated.tokens, counted.tokens), "{estimated:?} {counted:?}");
        // The gate has seen every row all the same.
        let used: u64 = survey.files.iter().map(|file| file.rows.used).sum();
        assert_eq!(used, 2400);
    }
}

#[test]
fn a_row_that_may_no_longer_be_used_leaves_and_moves_no_other() {
    let world = World::new(&mixed_rows(60), 7);
    let open = |from| Stream::open(world.spec(), world.encoder.clone(), from).unwrap();
    let gone: Refused = Arc::new(|record| record.id == "row-0003" || record.id == "row-0017");
    let before: Vec<Step> = open(Position::default()).map(|step| step.unwrap()).collect();
    let without = |from| -> Vec<Step> {
        open(from).without(gone.clone()).map(|step| step.unwrap()).collect()
    };
    let after = without(Position::default());
    let positions = |steps: &[Step]| steps.iter().map(|s| s.position.clone()).collect::<Vec<_>>();
    assert_eq!(positions(&before), positions(&after));
    let left: Vec<usize> = visited(&world, &before, 1);
    let left: Vec<usize> = left.into_iter().filter(|id| ![3, 17].contains(id)).collect();
    assert_eq!(visited(&world, &after, 1), left);
    let middle = after.len() / 2;
    assert_eq!(without(after[middle].position.clone()), after[middle + 1..]);
}
