//! Rows in stores and on servers, with everything that can go wrong there: the same rows as
//! from the file, or an error that says what to do.

pub(crate) mod server;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use arrow::array::{ArrayRef, ListBuilder, StringArray, StringBuilder, StructBuilder};
use arrow::datatypes::{DataType, Field, Fields};
use arrow::record_batch::RecordBatch;
use heirloom::dataset::source::remote::{Access, Failure, Listener, Patience, Pin};
use heirloom::dataset::source::{Columns, SourceError, SourceFile, pin_by, resolve_by};
use heirloom::diagnose::Diagnose;
use parquet::arrow::ArrowWriter;
use parquet::file::properties::WriterProperties;
use server::{Fault, KEY, Server, Stored};
use sha2::{Digest, Sha256};

const ROWS: usize = 3000;
const GROUP: usize = 2000;
const CONTENT: Columns<'static> = Columns::And(&["messages"]);

/// Longer than the tests' patience with a silent server.
const LONG: Duration = Duration::from_millis(900);

/// Some 6 MB in two row groups, so that a column chunk has several blocks.
fn parquet() -> Vec<u8> {
    static BYTES: LazyLock<Vec<u8>> = LazyLock::new(written);
    BYTES.clone()
}

fn written() -> Vec<u8> {
    let mut state = 1_u64;
    let mut noise = |length: usize| -> String {
        let mut text = String::with_capacity(length);
        for _ in 0..length {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            text.push(char::from(b' ' + (state >> 58) as u8));
        }
        text
    };
    let ids: StringArray = (0..ROWS).map(|row| Some(format!("row-{row:05}"))).collect();
    let text = |name| Field::new(name, DataType::Utf8, true);
    let fields = Fields::from(vec![text("role"), text("content")]);
    let mut messages = ListBuilder::new(StructBuilder::from_fields(fields, 0));
    for _ in 0..ROWS {
        for role in ["user", "assistant"] {
            let turn = messages.values();
            turn.field_builder::<StringBuilder>(0).unwrap().append_value(role);
            turn.field_builder::<StringBuilder>(1).unwrap().append_value(noise(1000));
            turn.append(true);
        }
        messages.append(true);
    }
    let batch = RecordBatch::try_from_iter([
        ("record_id", Arc::new(ids) as ArrayRef),
        ("messages", Arc::new(messages.finish()) as ArrayRef),
    ])
    .unwrap();
    let properties = WriterProperties::builder().set_max_row_group_row_count(Some(GROUP)).build();
    let mut bytes = Vec::new();
    let mut writer = ArrowWriter::try_new(&mut bytes, batch.schema(), Some(properties)).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    bytes
}

/// A server with one object, the file that it is, and someone who reads it.
struct Place {
    server: Server,
    _folder: tempfile::TempDir,
    local: PathBuf,
    bytes: Vec<u8>,
    access: Access,
    said: Arc<Mutex<Vec<String>>>,
}

fn access(variables: &[(&str, &str)]) -> (Access, Arc<Mutex<Vec<String>>>) {
    let said = Arc::new(Mutex::new(Vec::new()));
    let listener: Listener = {
        let said = Arc::clone(&said);
        Arc::new(move |words: &str| said.lock().unwrap().push(words.to_owned()))
    };
    let patience = Patience {
        attempts: 4,
        first_pause: Duration::from_millis(2),
        silence: Duration::from_millis(300),
        answer: Duration::from_secs(5),
    };
    let variables: BTreeMap<String, String> =
        variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    (Access::new(variables, patience, listener), said)
}

impl Place {
    fn new() -> Self {
        let (server, folder, bytes) = (Server::new(), tempfile::tempdir().unwrap(), parquet());
        server.put("/data/rows.parquet", &bytes);
        let local = folder.path().join("rows.parquet");
        heirloom::files::write_atomically(&local, &bytes).unwrap();
        let endpoint = server.endpoint.clone();
        let (access, said) = access(&[
            ("AWS_ENDPOINT_URL", &endpoint),
            ("AWS_ALLOW_HTTP", "true"),
            ("AWS_ACCESS_KEY_ID", KEY),
            ("AWS_SECRET_ACCESS_KEY", "do-not-show"),
            ("AWS_REGION", "eu-central-1"),
        ]);
        Self { server, _folder: folder, local, bytes, access, said }
    }

    fn web(&self) -> PathBuf {
        PathBuf::from(format!("{}/data/rows.parquet", self.server.endpoint))
    }

    fn open(&self, path: &Path) -> Result<SourceFile, SourceError> {
        SourceFile::open_by(&self.access, path)
    }

    /// Reads it from the web, which must fail.
    fn failure(&self) -> Failure {
        let opened = self.open(&self.web());
        let failed = opened.and_then(|file| rows(&file, 0, 0, CONTENT)).unwrap_err();
        let SourceError::Remote { name, failure } = &failed else { panic!("{failed:?}") };
        assert!(failed.to_string().contains("rows.parquet") && failed.hint().is_some());
        assert_eq!(Path::new(name), self.web());
        failure.clone()
    }
}

fn rows(
    file: &SourceFile,
    group: usize,
    skip: u64,
    columns: Columns<'_>,
) -> Result<Vec<RecordBatch>, SourceError> {
    file.slices(group, skip, 256, columns).collect()
}

fn assert_same(place: &Place, path: &Path) {
    let local = SourceFile::open(&place.local).unwrap();
    let remote = place.open(path).unwrap();
    assert_eq!(remote.path(), path);
    assert_eq!((remote.bytes(), remote.group_rows()), (local.bytes(), local.group_rows()));
    for (group, skip) in [(0, 0), (1, 0), (0, 1999), (0, 1234)] {
        for columns in [Columns::Consent, CONTENT] {
            let expected = rows(&local, group, skip, columns).unwrap();
            assert_eq!(rows(&remote, group, skip, columns).unwrap(), expected, "{group} {skip}");
        }
    }
}

#[test]
fn rows_are_the_same_as_from_the_file() {
    let place = Place::new();
    assert_same(&place, &place.web());
    assert_same(&place, Path::new("s3://data/rows.parquet"));
    assert!(place.said.lock().unwrap().is_empty());
    for request in place.server.requests() {
        let part = request.headers.contains_key("range");
        assert!(part || request.method == "HEAD", "{request:?}");
        assert_eq!(part, request.headers.contains_key("if-match"), "{request:?}");
    }
}

#[test]
fn requests_bring_several_blocks_and_each_once() {
    let place = Place::new();
    let file = place.open(&place.web()).unwrap();
    place.server.requests();
    rows(&file, 0, 0, CONTENT).unwrap();
    let requests = place.server.requests();
    let blocks = place.bytes.len().div_ceil(1 << 20);
    assert!(requests.len() < blocks, "{} requests for {blocks} blocks", requests.len());
    let ranges: std::collections::BTreeSet<_> =
        requests.iter().map(|request| request.headers["range"].clone()).collect();
    assert_eq!(ranges.len(), requests.len());
}

#[test]
fn a_late_row_is_reached_without_what_comes_before() {
    let place = Place::new();
    let file = place.open(&place.web()).unwrap();
    place.server.requests();
    rows(&file, 0, 1990, Columns::Consent).unwrap();
    assert!(place.server.requests().len() <= 2);
}

#[test]
fn many_readers_at_once_read_what_one_reads() {
    let place = Place::new();
    let local = SourceFile::open(&place.local).unwrap();
    let file = place.open(&place.web()).unwrap();
    thread::scope(|scope| {
        for reader in 0..8_u64 {
            let (file, local) = (&file, &local);
            scope.spawn(move || {
                let (group, skip) = (reader as usize % 2, 100 * reader);
                let expected = rows(local, group, skip, CONTENT).unwrap();
                assert_eq!(rows(file, group, skip, CONTENT).unwrap(), expected);
            });
        }
    });
}

#[test]
fn what_passes_is_tried_again_and_changes_no_row() {
    for fault in [
        Fault::Silence(LONG),
        Fault::SilenceAfter(5000, LONG),
        Fault::CutAfter(0),
        Fault::CutAfter(70_000),
        Fault::CutHead,
        Fault::Garbage,
        Fault::Short,
        Fault::Status(500, ""),
        Fault::Status(503, "Retry-After: 0"),
        Fault::Status(429, "Retry-After: 0"),
    ] {
        let place = Place::new();
        // One in the footer, a burst in the rows.
        place.server.fault(fault.clone());
        let file = place.open(&place.web()).unwrap();
        for _ in 0..3 {
            place.server.fault(fault.clone());
        }
        let local = SourceFile::open(&place.local).unwrap();
        let expected = rows(&local, 0, 0, CONTENT).unwrap();
        assert_eq!(rows(&file, 0, 0, CONTENT).unwrap(), expected, "{fault:?}");
        let said = place.said.lock().unwrap();
        assert!(said.len() >= 4 && said[0].contains("trying again"), "{fault:?} {said:?}");
    }
}

#[test]
fn what_never_passes_is_given_up_and_says_how_to_go_on() {
    for fault in [Fault::Status(503, ""), Fault::CutHead, Fault::Silence(LONG)] {
        let place = Place::new();
        let file = place.open(&place.web()).unwrap();
        place.server.requests();
        place.server.always(fault.clone());
        let began = Instant::now();
        let error = rows(&file, 1, 0, CONTENT).unwrap_err();
        assert!(began.elapsed() < Duration::from_secs(20), "{fault:?}");
        let SourceError::Remote { failure, .. } = &error else { panic!("{error:?}") };
        assert!(matches!(failure, Failure::GaveUp { attempts: 4, .. }), "{failure:?}");
        assert!(error.hint().unwrap().contains("--resume"));
        // After the error, nothing more comes, and the file can be read once it is back.
        let mut slices = file.slices(1, 0, 10, CONTENT);
        assert!(slices.next().unwrap().is_err() && slices.next().is_none());
    }
}

#[test]
fn what_cannot_pass_is_refused_at_once() {
    type Check = fn(&Failure) -> bool;
    let cases: [(Fault, Check); 11] = [
        (Fault::Status(404, ""), |f| *f == Failure::Absent),
        (Fault::Status(410, ""), |f| *f == Failure::Absent),
        (Fault::Refusal(403, "AccessDenied"), |f| {
            *f == Failure::Refused { status: 403, code: Some("AccessDenied".to_owned()) }
        }),
        (Fault::Status(401, ""), |f| matches!(f, Failure::Refused { status: 401, code: None })),
        (Fault::Status(302, "Location: http://elsewhere/x?signature=secret"), |f| {
            *f == Failure::Redirect { to: Some("http://elsewhere/x".to_owned()) }
        }),
        (Fault::Status(301, "x-amz-bucket-region: eu-west-3"), |f| {
            *f == Failure::Region { region: "eu-west-3".to_owned() }
        }),
        (Fault::Status(501, ""), |f| *f == Failure::Status { status: 501 }),
        (Fault::Status(416, ""), |f| *f == Failure::Changed),
        (Fault::WholeFile, |f| *f == Failure::NoRanges),
        (Fault::WrongRange, |f| matches!(f, Failure::Answer { .. })),
        (Fault::Endless, |f| matches!(f, Failure::Answer { .. })),
    ];
    for (fault, is_right) in cases {
        let place = Place::new();
        for _ in 0..20 {
            place.server.fault(fault.clone());
        }
        let began = Instant::now();
        let failure = place.failure();
        assert!(is_right(&failure), "{fault:?} {failure:?}");
        assert!(began.elapsed() < Duration::from_secs(5), "{fault:?}");
        assert!(place.said.lock().unwrap().is_empty(), "{fault:?}");
        assert_eq!(place.server.requests().len(), 2, "{fault:?}");
        let words = format!("{failure} {}", failure.hint().unwrap());
        assert!(!words.contains("secret"), "{words}");
    }
}

#[test]
fn an_object_that_changes_is_an_error_and_no_mixture() {
    let next = |etag: Option<&str>, modified| Stored {
        bytes: parquet(),
        etag: etag.map(str::to_owned),
        modified,
    };
    let day = Some("Sun, 22 Nov 2026 10:00:00 GMT");
    let (one, before) = (Some("\"one\""), Some("Sat, 21 Nov 2026 10:00:00 GMT"));
    for (etag, modified, then, deaf) in [
        (one, before, next(Some("\"two\""), before), false),
        (one, before, next(Some("\"two\""), before), true),
        (None, before, next(None, day), false),
        (Some("W/\"one\""), before, next(Some("W/\"two\""), day), false),
    ] {
        let place = Place::new();
        place.server.put_as("/data/rows.parquet", &place.bytes, etag, modified);
        if deaf {
            place.server.ignore_if_match();
        }
        place.server.change_after(2, "/data/rows.parquet", then);
        assert_eq!(place.failure(), Failure::Changed, "{etag:?} {deaf}");
    }
    let place = Place::new();
    place.server.put_as("/data/rows.parquet", &place.bytes, None, None);
    assert_eq!(place.failure(), Failure::NoVersion);
}

#[test]
fn an_object_cut_short_is_not_readable_as_parquet() {
    let place = Place::new();
    for length in [0, 3, 8, 100_000, place.bytes.len() - 1] {
        place.server.put("/data/rows.parquet", &place.bytes[..length]);
        let error = place.open(&place.web()).unwrap_err();
        assert!(matches!(error, SourceError::NotParquet { .. }), "{length} {error:?}");
    }
}

#[test]
fn a_pattern_lists_the_bucket_by_its_folder() {
    let place = Place::new();
    for key in ["a b/ü 1.parquet", "a b/2&3.parquet", "a b/x[1].parquet", "a b/c/4.parquet"] {
        place.server.put(&format!("/data/{key}"), &place.bytes);
    }
    place.server.put("/data/a b/notes.txt", b"no rows");
    let names = |pattern: &str| -> Vec<String> {
        let found = resolve_by(&place.access, pattern).unwrap();
        found.iter().map(|path| path.to_str().unwrap().to_owned()).collect()
    };
    let here =
        ["s3://data/a b/2&3.parquet", "s3://data/a b/x[1].parquet", "s3://data/a b/ü 1.parquet"];
    assert_eq!(names("s3://data/a b/*.parquet"), here);
    assert_eq!(names("s3://data/a b/x[1].parquet"), here[1..2]);
    assert_eq!(names("s3://data/**/4.parquet"), ["s3://data/a b/c/4.parquet"]);
    assert_eq!(names("s3://data/a b/2&3.parquet"), here[..1]);
    for name in here {
        assert_same(&place, Path::new(name));
    }
    for request in place.server.requests() {
        assert!(request.headers.contains_key("authorization"), "{request:?}");
        assert!(!request.path.contains("do-not-show") && !request.path.contains('+'));
    }
}

#[test]
fn a_pattern_that_names_nothing_or_too_much_is_refused() {
    let place = Place::new();
    let refused = |pattern: &str| match resolve_by(&place.access, pattern).unwrap_err() {
        SourceError::Remote { failure, .. } => failure,
        other => panic!("{other:?}"),
    };
    assert_eq!(refused("s3://data/nowhere/*.parquet"), Failure::NoMatch);
    assert_eq!(refused("s3://data/*.csv"), Failure::NoMatch);
    let web = format!("{}/data/*.parquet", place.server.endpoint);
    assert_eq!(refused(&web), Failure::NoListing);
    assert!(matches!(refused("s3://data/"), Failure::Address { .. }));
    assert!(matches!(
        resolve_by(&place.access, "s3://data/a***"),
        Err(SourceError::Pattern { .. })
    ));
}

#[test]
fn a_listing_without_end_ends() {
    let place = Place::new();
    place.server.list_without_end();
    let error = resolve_by(&place.access, "s3://data/*.parquet").unwrap_err();
    assert!(
        matches!(&error, SourceError::Remote { failure: Failure::Answer { .. }, .. }),
        "{error:?}"
    );
}

#[test]
fn wrong_credentials_are_refused_by_name() {
    let place = Place::new();
    let (access, _) = access(&[
        ("AWS_ENDPOINT_URL", &place.server.endpoint),
        ("AWS_ALLOW_HTTP", "true"),
        ("AWS_ACCESS_KEY_ID", "OTHER"),
        ("AWS_SECRET_ACCESS_KEY", "do-not-show"),
    ]);
    for error in [
        resolve_by(&access, "s3://data/*.parquet").unwrap_err(),
        SourceFile::open_by(&access, Path::new("s3://data/rows.parquet")).unwrap_err(),
    ] {
        let SourceError::Remote { failure, .. } = &error else { panic!("{error:?}") };
        assert!(matches!(failure, Failure::Refused { status: 403, .. }), "{failure:?}");
        let words = format!("{error} {error:?} {}", error.hint().unwrap());
        assert!(!words.contains("do-not-show") && words.contains("AWS_SECRET_ACCESS_KEY"));
    }
}

/// No request at all is made where the environment does not say who asks, or whom.
#[test]
fn nobody_is_asked_whom_nobody_named() {
    let place = Place::new();
    let endpoint = place.server.endpoint.as_str();
    let keys = [("AWS_ACCESS_KEY_ID", KEY), ("AWS_SECRET_ACCESS_KEY", "do-not-show")];
    let open = ("AWS_ALLOW_HTTP", "true");
    for (variables, expected) in [
        (vec![("AWS_ENDPOINT_URL", endpoint), open], "NoCredentials"),
        (vec![("AWS_ENDPOINT_URL", endpoint), open, ("AWS_PROFILE", "me")], "NoCredentials"),
        (vec![("AWS_ENDPOINT_URL", endpoint), open, ("AWS_ROLE_ARN", "r")], "NoCredentials"),
        (vec![("AWS_ENDPOINT_URL", endpoint), open, keys[0]], "Environment"),
        (vec![("AWS_ENDPOINT_URL", endpoint), keys[0], keys[1]], "Unencrypted"),
    ] {
        let began = Instant::now();
        let (access, _) = access(&variables);
        let path = Path::new("s3://data/rows.parquet");
        let error = SourceFile::open_by(&access, path).unwrap_err();
        let SourceError::Remote { failure, .. } = &error else { panic!("{error:?}") };
        assert!(format!("{failure:?}").starts_with(expected), "{failure:?}");
        assert!(!format!("{error} {error:?}").contains("do-not-show"));
        assert!(began.elapsed() < Duration::from_secs(1));
    }
    assert!(place.server.requests().is_empty());
}

#[test]
fn a_public_bucket_is_read_without_a_signature() {
    let place = Place::new();
    let (access, _) = access(&[
        ("AWS_ENDPOINT_URL", &place.server.endpoint),
        ("AWS_ALLOW_HTTP", "true"),
        ("AWS_SKIP_SIGNATURE", "true"),
    ]);
    let found = resolve_by(&access, "s3://data/*.parquet").unwrap();
    SourceFile::open_by(&access, &found[0]).unwrap();
    let requests = place.server.requests();
    assert!(!requests.is_empty());
    assert!(requests.iter().all(|request| !request.headers.contains_key("authorization")));
}

#[test]
fn a_pin_is_of_the_version_and_its_footer() {
    let place = Place::new();
    let pin = |path: &Path| pin_by(&place.access, path).unwrap().unwrap();
    let first = pin(&place.web());
    assert_eq!(first.bytes, place.bytes.len() as u64);
    assert_eq!(first.etag.as_deref(), Some("\"one\""));
    assert_eq!(first.last_modified.unwrap().to_string(), "2026-11-21T10:00:00Z");
    assert_eq!(pin(Path::new("s3://data/rows.parquet")), first);
    // The footer as it lies at the end of the file.
    let end = place.bytes.len() - 8;
    let length = u32::from_le_bytes(place.bytes[end..end + 4].try_into().unwrap()) as usize;
    let digest = Sha256::digest(&place.bytes[end - length..]);
    assert_eq!(first.footer_sha256, heirloom::files::hex(&digest));
    let written = serde_json::to_string(&first).unwrap();
    assert_eq!(serde_json::from_str::<Pin>(&written).unwrap(), first);
    assert!(pin_by(&place.access, &place.local).unwrap().is_none());
    place.server.put("/data/rows.parquet", b"PAR1");
    assert!(pin_by(&place.access, &place.web()).is_err());
}
