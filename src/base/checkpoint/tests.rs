//! Checkpoints as they are published, and as nobody should publish them.

use fs_err as fs;
use proptest::prelude::*;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::*;
use crate::diagnose::Diagnose as _;

/// A safetensors file with this header and so many zero bytes of data.
fn file(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.resize(bytes.len() + data, 0);
    bytes
}

/// A file of f32 tensors of these names and shapes.
fn tensors(named: &[(&str, &[usize])]) -> Vec<u8> {
    let stored: Vec<Stored<'_>> =
        named.iter().map(|(name, shape)| (*name, "F32", *shape)).collect();
    typed(&stored)
}

/// Name, dtype and shape.
type Stored<'a> = (&'a str, &'a str, &'a [usize]);

/// A file of tensors.
fn typed(named: &[Stored<'_>]) -> Vec<u8> {
    let (mut header, mut end) = (serde_json::Map::new(), 0);
    for (name, dtype, shape) in named {
        let width = match *dtype {
            "F32" | "I32" => 4,
            "BF16" => 2,
            _ => 1,
        };
        let start = end;
        end += shape.iter().product::<usize>() * width;
        let info = json!({ "dtype": dtype, "shape": shape, "data_offsets": [start, end] });
        header.insert((*name).to_owned(), info);
    }
    file(&Value::Object(header).to_string(), end)
}

fn folder(files: &[(&str, &[u8])]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        fs::write(folder.path().join(name), bytes).unwrap();
    }
    folder
}

fn index(weight_map: &[(&str, &str)]) -> Vec<u8> {
    let map: serde_json::Map<String, Value> =
        weight_map.iter().map(|(tensor, shard)| ((*tensor).to_owned(), json!(shard))).collect();
    json!({ "metadata": { "total_size": 1 }, "weight_map": map }).to_string().into()
}

/// Opens a folder that must be refused; the error with its causes, details and hint.
fn refused(folder: &TempDir) -> String {
    let error = Checkpoint::open_folder(folder.path()).unwrap_err();
    let mut words = vec![error.to_string()];
    let mut cause = std::error::Error::source(&error);
    while let Some(error) = cause {
        words.push(error.to_string());
        cause = error.source();
    }
    words.extend(error.details());
    words.extend(error.hint());
    words.join("\n").replace(&folder.path().display().to_string(), "FOLDER")
}

/// Opens a file that must be refused, for the reason that the header gives.
fn refused_file(bytes: &[u8]) -> HeaderError {
    let folder = folder(&[("model.safetensors", bytes)]);
    match Checkpoint::open_folder(folder.path()) {
        Err(BaseError::Weights(WeightsError::Safetensors { source, .. })) => source,
        other => panic!("{other:?}"),
    }
}

const SHARD: &str = "model-00001-of-00002.safetensors";
const OTHER: &str = "model-00002-of-00002.safetensors";

/// Two honest shards with an index of these words.
fn shards(weight_map: &[(&str, &str)]) -> TempDir {
    folder(&[
        (SHARD, &tensors(&[("a", &[2]), ("b", &[3])])),
        (OTHER, &tensors(&[("c", &[4])])),
        (index::INDEX, &index(weight_map)),
    ])
}

#[test]
fn shards_and_their_index_are_one_checkpoint() {
    // Its total size is as wrong as in many published ones.
    let folder = shards(&[("a", SHARD), ("b", SHARD), ("c", OTHER)]);
    let checkpoint = Checkpoint::open_folder(folder.path()).unwrap();
    assert_eq!(checkpoint.names().collect::<Vec<_>>(), ["a", "b", "c"]);
    assert_eq!(checkpoint.get("b").unwrap().shape, [3]);
    assert_eq!(checkpoint.get("c").unwrap().bytes.len(), 16);
    assert_eq!(checkpoint.files().count(), 2);
}

#[test]
fn shards_that_are_missing_are_all_named() {
    let folder = shards(&[("a", SHARD), ("x", "one.safetensors"), ("y", "two.safetensors")]);
    assert_eq!(
        refused(&folder),
        "2 of the 3 shards that `FOLDER/model.safetensors.index.json` names are missing\n\
         `one.safetensors` is missing\n`two.safetensors` is missing\n\
         copy or download the folder again, with all its files"
    );
}

#[test]
fn an_index_and_shards_that_disagree_are_refused_with_all_differences() {
    // `a` is elsewhere, `b` is not named, `d` is nowhere.
    let folder = shards(&[("a", OTHER), ("c", OTHER), ("d", SHARD)]);
    let words = refused(&folder);
    assert!(
        words.starts_with(
            "the shards do not hold what `FOLDER/model.safetensors.index.json` says: \
             3 misplaced tensors\n"
        ),
        "{words}"
    );
    for line in [
        format!("`a` is in `{SHARD}`, not in `{OTHER}`"),
        format!("`b` in `{SHARD}` is not in the index"),
        format!("`d` is not in `{SHARD}`"),
    ] {
        assert!(words.lines().any(|word| word == line), "{words}");
    }
}

#[test]
fn a_tensor_in_two_shards_is_refused() {
    let folder = folder(&[
        (SHARD, &tensors(&[("a", &[2])])),
        (OTHER, &tensors(&[("a", &[2]), ("b", &[2])])),
        (index::INDEX, &index(&[("a", SHARD), ("b", OTHER)])),
    ]);
    assert!(refused(&folder).contains(&format!("`a` in `{OTHER}` is not in the index")));
}

#[test]
fn a_single_file_beside_an_index_of_others_is_refused() {
    let folder = shards(&[("a", SHARD), ("b", SHARD), ("c", OTHER)]);
    fs::write(folder.path().join(index::SINGLE), tensors(&[("a", &[2])])).unwrap();
    assert!(refused(&folder).contains("are two checkpoints in one folder"));
}

#[test]
fn an_index_of_a_single_file_is_read() {
    let folder = folder(&[
        (index::SINGLE, &tensors(&[("a", &[2])])),
        (index::INDEX, &index(&[("a", index::SINGLE)])),
    ]);
    assert_eq!(Checkpoint::open_folder(folder.path()).unwrap().names().count(), 1);
}

#[test]
fn path_traversal_in_an_index_is_refused() {
    let outside = ["../x", "..", ".", "", "/etc/passwd", "a/../../x", "..\\x", "C:\\x", "a\0b"];
    for shard in outside {
        let words = refused(&shards(&[("a", shard)]));
        assert!(words.contains("outside the folder"), "{shard:?}: {words}");
        assert!(!words.contains('\0'), "{words:?}");
    }
}

#[test]
fn links_of_the_hub_cache_are_followed() {
    let blobs = folder(&[("blob", &tensors(&[("a", &[2])]))]);
    let snapshot = tempfile::tempdir().unwrap();
    let link = snapshot.path().join(index::SINGLE);
    std::os::unix::fs::symlink(blobs.path().join("blob"), &link).unwrap();
    assert!(Checkpoint::open_folder(snapshot.path()).is_ok());
    // A download that was not finished: the link is there and what it points to is not.
    fs::remove_file(blobs.path().join("blob")).unwrap();
    assert!(refused(&snapshot).starts_with("cannot read `FOLDER/model.safetensors`"));
}

#[test]
fn hostile_indexes_are_refused() {
    let deep = "[".repeat(100_000);
    for text in [
        "",
        "{",
        "null",
        "[]",
        "{}",
        r#"{"weight_map": []}"#,
        r#"{"weight_map": {}}"#,
        r#"{"weight_map": {"a": 1}}"#,
        r#"{"weight_map": {"a": "x", "a": "y"}}"#,
        r#"{"weight_map": {"a": NaN}}"#,
        "\u{feff}{}",
        &deep,
    ] {
        let folder = folder(&[(index::INDEX, text.as_bytes())]);
        assert!(Checkpoint::open_folder(folder.path()).is_err(), "{text:.40}");
    }
    let folder = folder(&[(index::INDEX, b"\xff\xfe")]);
    assert!(Checkpoint::open_folder(folder.path()).is_err());
}

#[test]
fn what_is_no_file_is_refused_without_waiting() {
    for name in [index::SINGLE, index::INDEX] {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join(name)).unwrap();
        assert!(refused(&folder).contains("is not a regular file"));
    }
    let folder = tempfile::tempdir().unwrap();
    let pipe = folder.path().join(index::SINGLE);
    // Opening a pipe that nobody writes to would never return.
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    assert!(refused(&folder).contains("is not a regular file"));
    fs::remove_file(&pipe).unwrap();
    std::os::unix::fs::symlink("/dev/zero", &pipe).unwrap();
    assert!(refused(&folder).contains("is not a regular file"));
}

#[test]
fn pickle_files_are_refused_with_the_command_that_converts_them() {
    for name in ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "model.pt", "a.PTH"] {
        let words = refused(&folder(&[(name, b""), ("training_args.bin", b"")]));
        assert!(words.contains(&format!("`FOLDER/{name}` is a pickle file, which can run code")));
        assert!(words.contains("AutoModelForCausalLM as M"), "{words}");
        assert!(words.contains("save_pretrained(o)"), "{words}");
    }
    // Beside safetensors they do not matter; and not every such file is a model.
    let both = folder(&[(index::SINGLE, &tensors(&[("a", &[1])])), ("model.bin", b"")]);
    assert!(Checkpoint::open_folder(both.path()).is_ok());
    let words = refused(&folder(&[("training_args.bin", b""), ("optimizer.pt", b"")]));
    assert!(words.starts_with("`FOLDER` has no `model.safetensors`"), "{words}");
}

#[test]
fn an_index_that_names_pickle_shards_is_told_so() {
    let shards = br#"{"weight_map": {"a": "pytorch_model-00001-of-00001.bin"}}"#;
    let files: [(&str, &[u8]); 2] =
        [(index::INDEX, shards), ("pytorch_model-00001-of-00001.bin", b"\x80\x02}q\x00.")];
    // Also where the shard itself was not downloaded.
    for files in [&files[..], &files[..1]] {
        let words = refused(&folder(files));
        let told = "`FOLDER/pytorch_model-00001-of-00001.bin` is a pickle file";
        assert!(words.starts_with(told), "{words}");
        assert!(words.contains("save_pretrained(o)"), "{words}");
    }
}

#[test]
fn a_folder_name_cannot_add_to_the_command() {
    let error = WeightsError::Pickle { path: "x".into(), folder: "x'; evil(\"".into() };
    let hint = error.hint().unwrap();
    assert!(hint.contains("'FOLDER'") && !hint.contains("evil"), "{hint}");
}

#[test]
fn files_that_are_cut_off_are_refused() {
    let whole = tensors(&[("a", &[2, 3]), ("b", &[4])]);
    for length in 0..whole.len() {
        refused_file(&whole[..length]);
    }
    let mut longer = whole;
    longer.push(0);
    assert!(matches!(refused_file(&longer), HeaderError::Data { promised: 40, found: 41 }));
}

#[test]
fn absurd_header_lengths_are_refused() {
    for length in [u64::MAX, 1 << 63, 8 << 60, 100_000_001] {
        let bytes = [&length.to_le_bytes()[..], b"{}"].concat();
        assert!(matches!(refused_file(&bytes), HeaderError::TooLarge { .. }));
    }
    let bytes = [&100_000_000u64.to_le_bytes()[..], b"{}"].concat();
    assert!(matches!(refused_file(&bytes), HeaderError::HeaderCut { .. }));
    assert!(matches!(refused_file(b"\0\0\0"), HeaderError::TooShort { bytes: 3 }));
    assert!(matches!(refused_file(b""), HeaderError::TooShort { bytes: 0 }));
}

/// A header of one tensor `a`.
fn one(dtype: &str, shape: &str, offsets: &str) -> String {
    format!(r#"{{"a":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}}}"#)
}

#[test]
fn shapes_and_offsets_that_lie_are_refused() {
    for (header, data) in [
        // Another size than the shape has.
        (one("F32", "[2]", "[0,4]"), 4),
        (one("F32", "[]", "[0,8]"), 8),
        // Past the end, backwards, not from the beginning.
        (one("F32", "[2]", "[0,8]"), 4),
        (one("F32", "[2]", "[8,0]"), 8),
        (one("F32", "[1]", "[4,8]"), 8),
        // Products and sums beyond 64 bits.
        (one("F32", "[4294967296,4294967296]", "[0,0]"), 0),
        (one("F32", "[9223372036854775808]", "[0,0]"), 0),
        (one("U8", "[18446744073709551615]", "[0,18446744073709551615]"), 0),
        (one("F32", "[18446744073709551616]", "[0,0]"), 0),
        // Numbers that are no sizes.
        (one("F32", "[-1]", "[0,4]"), 4),
        (one("F32", "[1.0]", "[0,4]"), 4),
        (one("F32", "[1e0]", "[0,4]"), 4),
        (one("F32", "[NaN]", "[0,4]"), 4),
        (one("F32", "[1]", "[0,4,8]"), 4),
        (one("F32", "[1]", "[0]"), 4),
        // Half a byte; a dtype that is none.
        (one("F4", "[1]", "[0,1]"), 1),
        (one("F99", "[1]", "[0,1]"), 1),
    ] {
        refused_file(&file(&header, data));
    }
}

#[test]
fn overlapping_tensors_and_holes_are_refused() {
    let two = |a: &str, b: &str| {
        format!(
            r#"{{"a":{{"dtype":"F32","shape":[2],"data_offsets":{a}}},
                 "b":{{"dtype":"F32","shape":[2],"data_offsets":{b}}}}}"#
        )
    };
    for (a, b, data) in [
        ("[0,8]", "[0,8]", 8),
        ("[0,8]", "[4,12]", 12),
        ("[0,8]", "[12,20]", 20),
        ("[4,12]", "[12,20]", 20),
    ] {
        assert!(matches!(refused_file(&file(&two(a, b), data)), HeaderError::Tensor(_)));
    }
    let folder = folder(&[(index::SINGLE, &file(&two("[8,16]", "[0,8]"), 16))]);
    assert!(Checkpoint::open_folder(folder.path()).is_ok(), "in another order than by name");
}

#[test]
fn a_tensor_that_stands_twice_in_a_header_is_refused() {
    let tensor = r#""a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}"#;
    let error = refused_file(&file(&format!("{{{tensor},{tensor}}}"), 8));
    assert!(error.to_string().contains("`a` stands twice"), "{error}");
}

#[test]
fn headers_that_are_no_objects_of_tensors_are_refused() {
    let deep = "[".repeat(100_000);
    let metadata = r#"{"__metadata__":{"format":1}}"#;
    for header in ["", "null", "[]", "{", "{}}", r#"{"a":null}"#, metadata, "NaN", &deep] {
        assert!(matches!(refused_file(&file(header, 0)), HeaderError::Json(_)), "{header:.40}");
    }
    let bytes = [&2u64.to_le_bytes()[..], b"\xff\xfe"].concat();
    assert!(matches!(refused_file(&bytes), HeaderError::NotText { offset: 0 }));
}

#[test]
fn quantised_tensors_are_found_by_their_parts() {
    let bytes = typed(&[
        ("blocks.weight", "F8_E4M3", &[130, 256]),
        ("blocks.weight_scale_inv", "F32", &[2, 2]),
        ("one.weight", "F8_E4M3", &[4, 4]),
        ("one.weight_scale", "BF16", &[1]),
        ("experts.up_blocks", "U8", &[2, 6, 3, 16]),
        ("experts.up_scales", "U8", &[2, 6, 3]),
        ("plain.weight", "BF16", &[4]),
    ]);
    let folder = folder(&[(index::SINGLE, &bytes)]);
    let checkpoint = Checkpoint::open_folder(folder.path()).unwrap();
    let expected = [
        ("blocks.weight".to_owned(), vec![130, 256]),
        ("one.weight".to_owned(), vec![4, 4]),
        ("experts.up".to_owned(), vec![2, 96, 6]),
        ("plain.weight".to_owned(), vec![4]),
    ];
    assert_eq!(checkpoint.expect(&expected, |_| false), Ok(()));
    let block = |name: &str| match checkpoint.stored(name) {
        Some(StoredTensor::Fp8 { block, .. }) => block,
        other => panic!("{other:?}"),
    };
    assert_eq!((block("blocks.weight"), block("one.weight")), ([128, 128], [4, 4]));
    assert!(matches!(checkpoint.stored("experts.up"), Some(StoredTensor::Mxfp4 { .. })));
    assert!(matches!(checkpoint.stored("plain.weight"), Some(StoredTensor::Plain(_))));
    // Codes are no weights, whatever an architecture may call them.
    let codes = [("experts.up_blocks".to_owned(), vec![2, 6, 3, 16])];
    assert!(checkpoint.expect(&codes, |_| false).is_err());
}

#[test]
fn quantised_tensors_without_honest_scales_are_refused() {
    let cases: [(&[Stored<'_>], &str); 6] = [
        (&[("w", "F8_E4M3", &[4, 4])], "`w` has dtype F8_E4M3 and no `w_scale_inv` beside it"),
        (
            &[("w", "F8_E4M3", &[4, 4]), ("w_scale_inv", "F32", &[3, 1])],
            "`w_scale_inv` has shape [3, 1] instead of [1, 1]",
        ),
        (
            &[("w", "F8_E4M3", &[4, 4]), ("w_scale_inv", "I32", &[1, 1])],
            "`w_scale_inv` has dtype I32, which cannot be loaded",
        ),
        (&[("w", "F8_E5M2", &[4, 4])], "`w` has dtype F8_E5M2, which cannot be loaded"),
        (
            &[("w", "F8_E4M3", &[4, 5]), ("w_scale_inv", "F32", &[1, 1])],
            "`w` has shape [4, 5] instead of [4, 4]",
        ),
        (
            &[("w", "F8_E4M3", &[4, 4]), ("w_scale_inv", "F32", &[0, 1])],
            "`w_scale_inv` has shape [0, 1] instead of [1, 1]",
        ),
    ];
    for (stored, words) in cases {
        let folder = folder(&[(index::SINGLE, &typed(stored))]);
        let checkpoint = Checkpoint::open_folder(folder.path()).unwrap();
        let problems = checkpoint.expect(&[("w".to_owned(), vec![4, 4])], |_| false).unwrap_err();
        assert_eq!(problems.iter().map(Mismatch::to_string).collect::<Vec<_>>(), [words]);
    }
    for (blocks, scales, width) in [
        ([2, 6, 3, 16], [2, 6, 2], 96),
        ([2, 6, 3, 8], [2, 6, 3], 96),
        ([2, 6, 3, 16], [2, 6, 3], 97),
    ] {
        let stored = [("w_blocks", "U8", &blocks[..]), ("w_scales", "U8", &scales[..])];
        let folder = folder(&[(index::SINGLE, &typed(&stored))]);
        let checkpoint = Checkpoint::open_folder(folder.path()).unwrap();
        let expected = [("w".to_owned(), vec![2, width, 6])];
        let problems = checkpoint.expect(&expected, |_| false).unwrap_err();
        assert!(matches!(problems.as_slice(), [Mismatch::Shape { .. }]), "{problems:?}");
    }
}

#[test]
fn a_block_is_as_configured_even_where_it_is_larger_than_the_tensor() {
    let stored = [("w", "F8_E4M3", &[40, 8][..]), ("w_scale_inv", "F32", &[3, 1][..])];
    let folder = folder(&[(index::SINGLE, &typed(&stored))]);
    let mut checkpoint = Checkpoint::open_folder(folder.path()).unwrap();
    // 128 rows a block would be one, and forty are no three equal ones.
    assert!(checkpoint.stored("w").is_none());
    checkpoint.set_fp8_block([16, usize::MAX]);
    let Some(StoredTensor::Fp8 { block, .. }) = checkpoint.stored("w") else {
        panic!("it is not found");
    };
    assert_eq!(block, [16, 8]);
    checkpoint.set_fp8_block([0, 0]);
    assert!(checkpoint.stored("w").is_none());
}

#[test]
fn every_difference_is_told_with_the_nearest_name() {
    let mut stored: Vec<(String, &[usize])> = Vec::new();
    for layer in 0..40 {
        stored.push((format!("model.layers.{layer}.self_attn.query.weight"), &[2, 2]));
        stored.push((format!("model.layers.{layer}.norm.weight"), &[3]));
    }
    let named: Vec<(&str, &[usize])> =
        stored.iter().map(|(name, shape)| (name.as_str(), *shape)).collect();
    let folder = folder(&[(index::SINGLE, &tensors(&named))]);
    let checkpoint = Checkpoint::open_folder(folder.path()).unwrap();
    let expected: Vec<(String, Vec<usize>)> = (0..40)
        .flat_map(|layer| {
            let query = format!("model.layers.{layer}.self_attn.q_proj.weight");
            [(query, vec![2, 2]), (format!("model.layers.{layer}.norm.weight"), vec![2])]
        })
        .collect();
    let problems = checkpoint.expect(&expected, |_| false).unwrap_err();
    let error = WeightsError::Tensors { folder: "base".into(), problems };
    assert_eq!(
        error.to_string(),
        "the weights in `base` do not fit its `config.json`: 40 missing, 40 unexpected, \
         40 misshapen tensors"
    );
    assert_eq!(
        error.details(),
        [
            "`model.layers.{0..39}.self_attn.q_proj.weight` is missing (nearest: \
             `model.layers.{0..39}.self_attn.query.weight`)",
            "`model.layers.{0..39}.self_attn.query.weight` is unexpected (nearest: \
             `model.layers.{0..39}.self_attn.q_proj.weight`)",
            "`model.layers.{0..39}.norm.weight` has shape [3] instead of [2]",
        ]
    );
}

#[test]
fn tied_tensors_are_one_as_in_the_reference() {
    let open = |names: &[&str], second: u8| {
        let named: Vec<(&str, &[usize])> = names.iter().map(|name| (*name, &[2][..])).collect();
        let mut bytes = tensors(&named);
        *bytes.last_mut().unwrap() = second;
        let folder = folder(&[(index::SINGLE, &bytes)]);
        Checkpoint::open_folder(folder.path()).unwrap()
    };
    let mut both = open(&["embed", "head"], 0);
    assert!(both.tie("embed", "head") && both.get("head").is_some());
    assert!(!open(&["embed", "head"], 1).tie("embed", "head"), "other values are not tied");
    assert!(open(&["embed"], 0).tie("embed", "head"));
    let mut head = open(&["head"], 7);
    assert!(head.tie("embed", "head") && head.get("head").is_none());
    assert_eq!(head.get("embed").unwrap().bytes.last(), Some(&7));
}

#[test]
fn bytes_that_were_given_back_are_read_again() {
    let mut bytes = tensors(&[("a", &[5000]), ("b", &[3000])]);
    for (index, byte) in bytes.iter_mut().rev().take(32_000).enumerate() {
        *byte = (index % 251) as u8;
    }
    let folder = folder(&[(index::SINGLE, &bytes)]);
    let checkpoint = Checkpoint::open_folder(folder.path()).unwrap();
    let view = checkpoint.get("a").unwrap();
    let before = view.bytes.to_vec();
    view.release(0..20_000);
    view.release(9_000..9_001);
    assert_eq!(view.bytes, before);
    // Beyond its end there is nothing to give; nothing happens.
    view.release(0..usize::MAX / 2);
    assert_eq!(view.bytes, before);
}

/// A small honest file to damage.
fn honest() -> Vec<u8> {
    typed(&[
        ("w", "F8_E4M3", &[4, 4]),
        ("w_scale_inv", "F32", &[1, 1]),
        ("x_blocks", "U8", &[1, 2, 1, 16]),
        ("x_scales", "U8", &[1, 2, 1]),
        ("y", "BF16", &[3]),
    ])
}

proptest! {
    /// However a file is damaged, it is refused or read, and nothing else happens.
    #[test]
    fn damaged_files_never_panic(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        length in any::<prop::sample::Index>(),
        cut in any::<bool>(),
    ) {
        let mut bytes = honest();
        for (place, byte) in &changes {
            let place = place.index(bytes.len());
            bytes[place] = *byte;
        }
        if cut {
            bytes.truncate(length.index(bytes.len()));
        }
        let folder = folder(&[(index::SINGLE, &bytes)]);
        if let Ok(checkpoint) = Checkpoint::open_folder(folder.path()) {
            let names: Vec<String> = checkpoint.names().map(str::to_owned).collect();
            for name in names.iter().map(String::as_str).chain(["x"]) {
                let _ = (checkpoint.get(name), checkpoint.stored(name));
            }
            let expected = [("w".to_owned(), vec![4, 4]), ("x".to_owned(), vec![1, 32, 2])];
            if let Err(problems) = checkpoint.expect(&expected, |_| false) {
                let _ = WeightsError::Tensors { folder: "f".into(), problems }.details();
            }
        }
    }

    #[test]
    fn damaged_indexes_never_panic(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
    ) {
        let mut bytes = index(&[("a", SHARD), ("b", SHARD), ("c", OTHER)]);
        for (place, byte) in &changes {
            let place = place.index(bytes.len());
            bytes[place] = *byte;
        }
        let folder = shards(&[]);
        fs::write(folder.path().join(index::INDEX), bytes).unwrap();
        if let Err(error) = Checkpoint::open_folder(folder.path()) {
            let _ = (error.to_string(), error.details(), error.hint());
        }
    }
}
