use std::io::Write as _;

use fs_err as fs;
use tempfile::TempDir;

use super::super::reject::Reason;
use super::*;

/// What is found in a row: the line, and the JSON or the reason.
type Found = (u64, Result<String, Reason>);

/// What is found in a file.
fn found(name: &str, content: impl AsRef<[u8]>) -> Vec<Found> {
    found_or_not(name, content).unwrap()
}

fn found_or_not(name: &str, content: impl AsRef<[u8]>) -> Result<Vec<Found>, ImportError> {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join(name);
    crate::files::write_atomically(&path, content.as_ref()).unwrap();
    let size = fs::metadata(&path).unwrap().len();
    let mut found = Vec::new();
    read(&path, None, &mut |line, row, behind| {
        assert!(behind <= size, "{behind} of {size}");
        let row = row.map(|row| serde_json::to_string(&row).unwrap());
        found.push((line, row.map_err(|reject| reject.reason)));
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(found)
}

fn good(line: u64, json: &str) -> Found {
    (line, Ok(json.to_owned()))
}

fn bad(line: u64, reason: Reason) -> Found {
    (line, Err(reason))
}

#[test]
fn lines_of_json_are_rows_and_empty_ones_are_not() {
    let text = "\u{feff}{\"a\":1}\r\n\n  \n{\"b\":\"\u{2028}\"}\n{\"c\":3}";
    let expected = [good(1, "{\"a\":1}"), good(4, "{\"b\":\"\u{2028}\"}"), good(5, "{\"c\":3}")];
    assert_eq!(found("a.jsonl", text), expected);
    // Much of what is called `.json` is lines.
    assert_eq!(found("a.json", text), expected);
    assert_eq!(found("a.jsonl", ""), []);
}

#[test]
fn an_array_is_cut_into_its_elements() {
    let text = " [\n{\"a\":\"],[{\\\"\\\\\"},\n {\"b\":[{},[1]]}\n,7, [] ]\n";
    assert_eq!(
        found("a.json", text),
        [
            good(2, "{\"a\":\"],[{\\\"\\\\\"}"),
            good(3, "{\"b\":[{},[1]]}"),
            bad(4, Reason::NotAnObject),
            bad(4, Reason::NotAnObject),
        ]
    );
    assert_eq!(found("a.json", "[]"), []);
    assert_eq!(found("a.json", "[ ]\n"), []);
}

#[test]
fn an_array_that_is_cut_short_does_not_end_quietly() {
    for (text, line) in [
        ("[{\"a\":1},\n", 2),
        ("[{\"a\":1},\n{\"b\"", 2),
        ("[{\"a\":1},\n{\"b\":1}", 2),
        ("[{\"a\":1}]\n{\"b\":1}", 2),
        ("[{\"a\":1}\n{\"b\":1},\"", 2),
    ] {
        let found = found("a.json", text);
        let last = found.last().unwrap();
        assert_eq!(last, &bad(line, Reason::NotJson), "{text}: {found:?}");
    }
}

#[test]
fn a_truncated_line_spoils_nothing_but_itself() {
    let found = found("a.jsonl", "{\"a\":1}\n{\"a\":\n{\"a\":2}\n{\"a\":");
    assert_eq!(
        found,
        [
            good(1, "{\"a\":1}"),
            bad(2, Reason::NotJson),
            good(3, "{\"a\":2}"),
            bad(4, Reason::NotJson)
        ]
    );
}

#[test]
fn invalid_utf8_is_a_bad_row() {
    let found = found("a.jsonl", b"{\"a\":\"\xff\xfe\"}\n{\"a\":2}\n");
    assert_eq!(found, [bad(1, Reason::NotUtf8), good(2, "{\"a\":2}")]);
}

#[test]
fn a_deep_nest_is_a_bad_row_and_exhausts_no_stack() {
    let deep = format!("{}\n{{\"a\":2}}\n", "{\"a\":".repeat(1_000_000));
    assert_eq!(found("a.jsonl", deep), [bad(1, Reason::TooDeep), good(2, "{\"a\":2}")]);
    let deep = "[".repeat(1_000_000);
    assert_eq!(found("a.json", deep).len(), 1);
}

#[test]
fn a_line_without_an_end_is_not_kept_in_memory() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("a.jsonl");
    // Zeros that take no place on the disk: a line longer than any row, and a row behind it.
    let mut file = fs::File::create(&path).unwrap();
    file.file().set_len(2 * MAX_ROW_BYTES as u64).unwrap();
    use std::io::Seek as _;
    file.seek(std::io::SeekFrom::End(0)).unwrap();
    file.write_all(b"\n{\"a\":1}\n").unwrap();
    let mut lines = Vec::new();
    read(&path, None, &mut |line, row, _| {
        lines.push((line, row.map_err(|reject| reject.reason).is_ok()));
        Ok(ControlFlow::Continue(()))
    })
    .unwrap();
    assert_eq!(lines, [(1, false), (2, true)]);
}

#[test]
fn csv_has_texts_and_empty_values_are_none() {
    let text = "id,say\r\n1,\"a \"\"b\"\",\nc\"\r\n\r\n2,\r\n";
    assert_eq!(found("a.csv", text), found("a.csv", text.replace('\r', "")));
    assert_eq!(
        found("a.csv", text),
        [good(2, r#"{"id":"1","say":"a \"b\",\nc"}"#), good(5, r#"{"id":"2","say":null}"#)]
    );
}

#[test]
fn csv_rows_of_another_width_or_encoding_are_bad_rows() {
    let text = b"a,b\n1,2,3\n4\n\xff,5\n6,7\n";
    assert_eq!(
        found("a.csv", text),
        [
            bad(2, Reason::FieldCount),
            bad(3, Reason::FieldCount),
            bad(4, Reason::NotUtf8),
            good(5, r#"{"a":"6","b":"7"}"#),
        ]
    );
}

#[test]
fn a_quote_that_is_left_open_does_not_swallow_the_file() {
    let mut text = b"a,b\n1,\"".to_vec();
    text.resize(MAX_ROW_BYTES + (1 << 20), b'x');
    let error = found_or_not("a.csv", text).unwrap_err();
    assert!(error.to_string().contains("perhaps a quote is left open"), "{error}");
    let error = found_or_not("a.csv", "a,a\n1,2\n").unwrap_err();
    assert!(error.to_string().contains("stands there twice"), "{error}");
}

#[test]
fn what_is_no_parquet_is_said_to_be_none() {
    for bytes in [&b""[..], b"PAR1", b"PAR1....PAR1", b"{\"a\":1}"] {
        let error = found_or_not("a.parquet", bytes).unwrap_err();
        assert!(matches!(error, ImportError::NotParquet { .. }), "{error}");
    }
    let error = found_or_not("a.txt", "x").unwrap_err();
    assert!(error.to_string().ends_with("is no `.jsonl`, `.json`, `.csv` or `.parquet`"));
}
