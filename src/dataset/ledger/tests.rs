use std::io::Write as _;

use proptest::prelude::*;

use super::*;

/// A ledger in a folder of its own.
struct World {
    folder: tempfile::TempDir,
}

impl World {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("withdrawals.jsonl")
    }

    /// A ledger on the records `r1`, `r2` and so on.
    fn with(events: usize) -> Self {
        let world = Self::new();
        for number in 1..=events {
            world.append(event(&format!("r{number}")));
        }
        world
    }

    fn append(&self, event: NewEvent) -> Appended {
        append(&self.path(), event, now()).unwrap()
    }

    fn open(&self) -> Result<Withdrawals, LedgerError> {
        Withdrawals::open(&[self.path()])
    }

    fn lines(&self) -> Vec<String> {
        let text = fs::read_to_string(self.path()).unwrap();
        text.lines().map(str::to_owned).collect()
    }

    fn write(&self, bytes: impl AsRef<[u8]>) {
        crate::files::write_atomically(&self.path(), bytes.as_ref()).unwrap();
    }

    fn write_lines(&self, lines: &[String]) {
        self.write(lines.iter().map(|line| format!("{line}\n")).collect::<String>());
    }

    /// The line and the fault that opening it finds.
    fn fault(&self) -> (u64, Fault) {
        match self.open().unwrap_err() {
            LedgerError::Line { path, line, fault } => {
                assert_eq!(path, self.path());
                (line, fault)
            }
            other => panic!("{other}"),
        }
    }
}

fn now() -> Timestamp {
    "2026-06-01T00:00:00Z".parse().unwrap()
}

fn event(record_id: &str) -> NewEvent {
    NewEvent {
        record_id: Some(record_id.to_owned()),
        subject_ref: None,
        event: Kind::Withdrawn,
        scope: Scope::default(),
        effective_at: now(),
        evidence_sha256: None,
    }
}

fn ask() -> Ask {
    Ask {
        purpose: vec!["dpv:ServiceProvision".to_owned()],
        processing: vec!["ai:ModelFineTuning".to_owned()],
        at: now(),
        until: "2026-06-02T00:00:00Z".parse().unwrap(),
    }
}

fn scope(purpose: &str, processing: &str) -> Scope {
    Scope { purposes: vec![purpose.to_owned()], processing: vec![processing.to_owned()] }
}

fn digest(line: &str) -> Digest {
    Digest(Sha256::digest(line.as_bytes()).into())
}

#[test]
fn a_ledger_is_written_as_its_reference_shows_it() {
    let world = World::with(1);
    let mut subject = event("");
    subject.record_id = None;
    subject.subject_ref = Some(Digest([0xab; 32]));
    subject.evidence_sha256 = Some(Digest([1; 32]));
    let second = world.append(subject);
    let lines = world.lines();
    let id = &second.line.event_id;
    assert_eq!(
        lines[1],
        format!(
            r#"{{"seq":2,"event_id":"{id}","record_id":null,"subject_ref":"{}","event":"withdrawn","scope":{{"purposes":["*"],"processing":["*"]}},"effective_at":"2026-06-01T00:00:00Z","recorded_at":"2026-06-01T00:00:00Z","evidence_sha256":"{}","prev_sha256":"{}"}}"#,
            "ab".repeat(32),
            "01".repeat(32),
            digest(&lines[0])
        )
    );
    assert!(id.starts_with("urn:uuid:") && id.len() == 45, "{id}");
    assert!(lines[0].ends_with(&format!(r#""prev_sha256":"{}"}}"#, "0".repeat(64))));
}

#[test]
fn only_the_first_event_begins_the_ledger() {
    let world = World::new();
    assert!(world.append(event("r1")).created);
    assert!(!world.append(event("r2")).created);
    // An empty file is a ledger without events.
    world.write("");
    assert!(world.open().unwrap().is_empty());
    let appended = world.append(event("r1"));
    assert!(!appended.created);
    assert_eq!(appended.line.seq, 1);
}

#[test]
fn an_event_is_found_on_its_record_and_on_no_other() {
    let world = World::with(3);
    let ledger = world.open().unwrap();
    let found = ledger.find("r2", None, &ask()).unwrap();
    assert_eq!((found.seq, found.kind, ledger.ledger(found)), (2, Kind::Withdrawn, &*world.path()));
    assert_eq!(ledger.scope(found), Some(&Scope::default()));
    assert_eq!(ledger.find("r4", Some(&[7; 32]), &ask()), None);
    assert_eq!(Withdrawals::default().find("r2", None, &ask()), None);
}

#[test]
fn a_withdrawn_subject_covers_all_its_records() {
    let world = World::new();
    world.append(NewEvent { record_id: None, subject_ref: Some(Digest([9; 32])), ..event("") });
    let ledger = world.open().unwrap();
    for record in ["a", "b", "c"] {
        assert!(ledger.find(record, Some(&[9; 32]), &ask()).is_some(), "{record}");
        assert!(ledger.find(record, Some(&[8; 32]), &ask()).is_none(), "{record}");
        assert!(ledger.find(record, None, &ask()).is_none(), "{record}");
    }
}

#[test]
fn every_event_on_a_record_counts_and_not_only_the_newest() {
    let world = World::new();
    world.append(NewEvent { scope: scope(ANY, ANY), ..event("r") });
    world.append(NewEvent { scope: scope("dpv:Marketing", "dpv:MakeAvailable"), ..event("r") });
    world.append(event("other"));
    let ledger = world.open().unwrap();
    assert_eq!(ledger.find("r", None, &ask()).unwrap().seq, 1);
    let all: Vec<u32> = ledger.on("r", None).map(|event| event.seq).collect();
    assert_eq!(all, [2, 1]);
}

#[test]
fn an_event_that_begins_before_the_planned_end_holds_from_the_start() {
    for (effective_at, holds) in [
        ("2020-01-01T00:00:00Z", true),
        ("2026-06-01T12:00:00Z", true),
        ("2026-06-02T00:00:00Z", true),
        ("2026-06-02T00:00:01Z", false),
    ] {
        let world = World::new();
        world.append(NewEvent { effective_at: effective_at.parse().unwrap(), ..event("r") });
        assert_eq!(
            world.open().unwrap().find("r", None, &ask()).is_some(),
            holds,
            "{effective_at}"
        );
    }
}

#[test]
fn a_scope_holds_only_for_what_it_names_and_in_doubt_for_all() {
    for (purpose, processing, holds) in [
        (ANY, ANY, true),
        ("dpv:ServiceProvision", ANY, true),
        (ANY, "ai:ModelFineTuning", true),
        (ANY, "ai:ModelTraining", true),
        (ANY, "dpv:MakeAvailable", false),
        (ANY, "dpv:Use", true),
        ("dpv:Marketing", ANY, false),
        ("dpv:ServiceManagement", ANY, true),
        ("dpv:RequestedServiceProvision", ANY, true),
        ("dpv:DeliveryOfGoods", ANY, true),
        ("dpv:ServiceOptimisation", ANY, false),
        ("dpv:Misspelt", ANY, true),
        ("dpv:ServiceProvision", "dpv:DiscloseByTransmission", false),
    ] {
        let scope = scope(purpose, processing);
        assert_eq!(scope.meets(&ask()), holds, "{scope:?}");
    }
    let nothing = Ask { purpose: vec![], processing: vec![], ..ask() };
    assert!(scope("dpv:Marketing", "dpv:MakeAvailable").meets(&nothing));
    let two = Ask {
        purpose: vec!["dpv:Marketing".to_owned(), "dpv:Personalisation".to_owned()],
        ..ask()
    };
    assert!(scope("dpv:Marketing", ANY).meets(&two), "one of the purposes is enough");
}

#[test]
fn a_line_edited_in_the_middle_breaks_the_chain() {
    let world = World::with(4);
    let mut lines = world.lines();
    let before = digest(&lines[1]);
    lines[1] = lines[1].replace("\"r2\"", "\"rX\"");
    let found = before;
    let expected = digest(&lines[1]);
    world.write_lines(&lines);
    assert_eq!(world.fault(), (3, Fault::BrokenChain { expected, found }));
}

#[test]
fn white_space_alone_breaks_the_chain_too() {
    let world = World::with(2);
    let mut lines = world.lines();
    lines[0].push(' ');
    world.write_lines(&lines);
    assert!(matches!(world.fault(), (2, Fault::BrokenChain { .. })));
}

#[test]
fn lines_left_out_turned_round_or_doubled_are_told_by_their_numbers() {
    let world = World::with(4);
    let lines = world.lines();
    for (order, line, found) in [
        (vec![0, 2, 3], 2, 3),
        (vec![1, 2, 3], 1, 2),
        (vec![0, 2, 1, 3], 2, 3),
        (vec![0, 1, 1, 2], 3, 2),
    ] {
        let changed: Vec<String> = order.iter().map(|index| lines[*index].clone()).collect();
        world.write_lines(&changed);
        assert_eq!(world.fault(), (line, Fault::Sequence { expected: line, found }), "{order:?}");
    }
}

#[test]
fn a_file_cut_anywhere_but_between_lines_is_cut_short() {
    let world = World::with(2);
    let whole = fs::read(world.path()).unwrap();
    let first = whole.iter().position(|byte| *byte == b'\n').unwrap() + 1;
    for length in 1..whole.len() {
        world.write(&whole[..length]);
        match length {
            _ if length == first => assert_eq!(world.open().unwrap().len(), 1),
            _ if length < first => assert_eq!(world.fault(), (1, Fault::CutShort)),
            _ => assert_eq!(world.fault(), (2, Fault::CutShort)),
        }
    }
}

/// A first line with one thing in it replaced.
fn first_with(from: &str, to: &str) -> World {
    let world = World::with(1);
    let line = world.lines().remove(0);
    assert!(line.contains(from), "{line}");
    world.write_lines(&[line.replacen(from, to, 1)]);
    world
}

#[test]
fn keys_are_all_there_once_and_no_others() {
    let duplicate = first_with(r#""seq":1,"#, r#""seq":1,"seq":1,"#).fault();
    assert!(
        matches!(&duplicate, (1, Fault::DuplicateKey { key, .. }) if key == "seq"),
        "{duplicate:?}"
    );
    let nested = first_with(r#""purposes":["*"]"#, r#""purposes":["*"],"purposes":[]"#).fault();
    assert!(
        matches!(&nested, (1, Fault::DuplicateKey { key, .. }) if key == "purposes"),
        "{nested:?}"
    );
    let unknown = |key: &str| (1, Fault::UnknownKey { key: key.to_owned() });
    assert_eq!(first_with(r#""seq":1,"#, r#""seq":1,"note":2,"#).fault(), unknown("note"));
    assert_eq!(first_with(r#""purposes":"#, r#""porpoises":"#).fault(), unknown("porpoises"));
    for (key, member) in [
        ("seq", r#""seq":1,"#),
        ("subject_ref", r#""subject_ref":null,"#),
        ("evidence_sha256", r#""evidence_sha256":null,"#),
        ("processing", r#","processing":["*"]"#),
    ] {
        assert_eq!(first_with(member, "").fault(), (1, Fault::MissingKey { key }));
    }
}

#[test]
fn values_that_mean_nothing_are_refused() {
    for (from, to, what) in [
        (r#""r1""#, "null", "neither a record nor a subject"),
        (r#""r1""#, r#""""#, "`record_id` is empty"),
        (r#"["*"]"#, "[]", "its scope is for nothing"),
        ("urn:uuid:", "urn:uuid:x", "`event_id` is not"),
        ("urn:uuid:", "", "`event_id` is not"),
        ("withdrawn", "forgotten", "unknown variant"),
        (r#""subject_ref":null"#, r#""subject_ref":"ab""#, "64 lower-case hexadecimal digits"),
        ("2026-06-01T00:00:00Z", "2026-06-01T00:00:00", "offset"),
        ("2026-06-01T00:00:00Z", "yesterday", ""),
        (r#""seq":1"#, r#""seq":-1"#, "expected u64"),
        (r#""seq":1"#, r#""seq":"1""#, "expected u64"),
    ] {
        match first_with(from, to).fault() {
            (1, Fault::Value { what: told }) => assert!(told.contains(what), "{told}"),
            other => panic!("{to}: {other:?}"),
        }
    }
    let large = "A".repeat(64);
    let upper = first_with(&"0".repeat(64), &large).fault();
    assert!(matches!(upper, (1, Fault::Value { .. })), "{upper:?}");
}

#[test]
fn what_is_no_json_no_text_or_no_object_is_refused() {
    let world = World::with(1);
    for bytes in ["\n", "{\n", "{} {}\n", "[]\n", "null\n", "\u{feff}{}\n", "withdrawn\n"] {
        world.write(bytes);
        assert!(matches!(world.fault(), (1, Fault::NotJson { .. })), "{bytes:?}");
    }
    world.write([b"{\"seq\": \"\xff\"}".as_slice(), b"\n"].concat());
    assert_eq!(world.fault(), (1, Fault::NotUtf8 { column: 10 }));
}

#[test]
fn a_line_without_an_end_is_not_read_into_memory() {
    let world = World::with(1);
    world.write("{".repeat(MAX_LINE_BYTES + 1));
    assert_eq!(world.fault(), (1, Fault::TooLong));
    world.write("{".repeat(MAX_LINE_BYTES));
    assert_eq!(world.fault(), (1, Fault::CutShort));
    let nested = "[".repeat(MAX_LINE_BYTES);
    world.write(nested + "\n");
    assert!(matches!(world.fault(), (1, Fault::NotJson { .. })));
}

#[test]
fn events_recorded_backwards_are_refused_and_never_written() {
    let world = World::with(1);
    let early: Timestamp = "2026-05-01T00:00:00Z".parse().unwrap();
    // The clock was set back.
    let line = append(&world.path(), event("r2"), early).unwrap().line;
    assert_eq!(line.recorded_at, now());
    let mut lines = world.lines();
    lines[1] = lines[1].replace(
        r#""recorded_at":"2026-06-01T00:00:00Z""#,
        r#""recorded_at":"2026-05-01T00:00:00Z""#,
    );
    world.write_lines(&lines);
    assert_eq!(world.fault(), (2, Fault::Order { before: now(), found: early }));
}

#[test]
fn a_ledger_that_is_gone_or_no_file_is_an_error() {
    let world = World::new();
    let gone = world.open().unwrap_err();
    assert!(matches!(gone, LedgerError::Read { .. }), "{gone}");
    fs::create_dir(world.path()).unwrap();
    for error in [world.open().unwrap_err(), append(&world.path(), event("r"), now()).unwrap_err()]
    {
        let source = std::error::Error::source(&error).unwrap().to_string();
        assert!(source.ends_with("is not a regular file"), "{source}");
    }
}

#[test]
fn nothing_is_appended_to_a_broken_ledger() {
    let world = World::with(3);
    let mut lines = world.lines();
    lines[0] = lines[0].replace("\"r1\"", "\"rX\"");
    world.write_lines(&lines);
    let before = fs::read(world.path()).unwrap();
    let refused = append(&world.path(), event("r4"), now()).unwrap_err();
    assert!(matches!(refused, LedgerError::Line { line: 2, .. }), "{refused}");
    assert_eq!(fs::read(world.path()).unwrap(), before);
}

#[test]
fn an_event_that_no_reader_would_take_is_not_written() {
    let world = World::with(1);
    let before = fs::read(world.path()).unwrap();
    let wrong = [
        event(""),
        event(&"x".repeat(MAX_LINE_BYTES)),
        NewEvent { scope: Scope { purposes: vec![], processing: vec![] }, ..event("r") },
        NewEvent { record_id: None, ..event("") },
    ];
    for event in wrong {
        let refused = append(&world.path(), event, now()).unwrap_err();
        assert!(matches!(refused, LedgerError::Event { .. }), "{refused}");
    }
    assert_eq!(fs::read(world.path()).unwrap(), before);
    fs::remove_file(world.path()).unwrap();
    append(&world.path(), event(""), now()).unwrap_err();
    assert!(!world.path().exists(), "a ledger was begun with nothing");
}

#[test]
fn a_private_ledger_stays_private_and_a_link_a_link() {
    use std::os::unix::fs::PermissionsExt as _;
    let world = World::with(1);
    fs::set_permissions(world.path(), std::fs::Permissions::from_mode(0o640)).unwrap();
    let link = world.folder.path().join("link");
    fs::os::unix::fs::symlink("withdrawals.jsonl", &link).unwrap();
    append(&link, event("r2"), now()).unwrap();
    assert_eq!(fs::metadata(world.path()).unwrap().permissions().mode() & 0o777, 0o640);
    assert!(link.symlink_metadata().unwrap().is_symlink());
    assert_eq!(world.open().unwrap().len(), 2);
}

#[test]
fn many_at_once_all_land() {
    let world = World::new();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let world = &world;
            scope.spawn(move || {
                for number in 0..10 {
                    world.append(event(&format!("{thread}-{number}")));
                }
            });
        }
    });
    let ledger = world.open().unwrap();
    assert_eq!(ledger.len(), 40);
    for thread in 0..4 {
        for number in 0..10 {
            assert!(ledger.find(&format!("{thread}-{number}"), None, &ask()).is_some());
        }
    }
    assert_eq!(fs::read_dir(world.folder.path()).unwrap().count(), 1, "something is left over");
}

#[test]
fn a_reader_never_meets_half_a_line() {
    let world = World::with(1);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            for number in 0..100 {
                world.append(event(&format!("w{number}")));
            }
        });
        let mut seen = 0;
        while !writer.is_finished() {
            let now = world.open().unwrap().len();
            assert!(now >= seen);
            seen = now;
        }
    });
    assert_eq!(world.open().unwrap().len(), 101);
}

#[test]
fn a_ledger_extends_what_it_was_and_nothing_else() {
    let world = World::with(3);
    let ledger = world.open().unwrap();
    let heads = ledger.heads();
    assert_eq!((heads[0].seq, heads[0].sha256), (3, digest(&world.lines()[2])));
    let text = serde_json::to_string(&heads).unwrap();
    assert_eq!(serde_json::from_str::<Vec<Head>>(&text).unwrap(), heads);
    ledger.extends(&heads).unwrap();
    world.append(event("r4"));
    let grown = world.open().unwrap();
    grown.extends(&heads).unwrap();
    let newer: Vec<u32> = grown.since(&heads).map(|event| event.seq).collect();
    assert_eq!(newer, [4]);
    assert_eq!(ledger.since(&heads).count(), 0);

    // Cut at a line's end, where the chain itself shows nothing.
    world.write_lines(&world.lines()[..2]);
    let cut = world.open().unwrap().extends(&heads).unwrap_err();
    assert!(matches!(cut, LedgerError::NotAnExtension { seq: 3, found: None, .. }), "{cut}");
    // Written anew, with as many lines and with more.
    for events in [3, 5] {
        let other = World::with(events);
        world.write(fs::read(other.path()).unwrap());
        let other = world.open().unwrap().extends(&heads).unwrap_err();
        assert!(
            matches!(other, LedgerError::NotAnExtension { seq: 3, found: Some(_), .. }),
            "{other}"
        );
    }
}

#[test]
fn an_empty_ledger_may_grow_and_another_ledger_is_none() {
    let world = World::new();
    world.write("");
    let heads = world.open().unwrap().heads();
    world.append(event("r"));
    let grown = world.open().unwrap();
    grown.extends(&heads).unwrap();
    let other = grown.extends(&[]).unwrap_err();
    assert!(matches!(other, LedgerError::OtherLedgers { .. }), "{other}");
    let other = Withdrawals::default().extends(&heads).unwrap_err();
    assert!(matches!(other, LedgerError::OtherLedgers { .. }), "{other}");
}

#[test]
fn looking_again_finds_what_is_new_and_what_is_wrong() {
    let world = World::with(2);
    let mut ledger = world.open().unwrap();
    let heads = ledger.heads();
    assert!(!ledger.refresh().unwrap());
    world.append(event("r3"));
    assert!(ledger.refresh().unwrap());
    assert!(!ledger.refresh().unwrap());
    assert!(ledger.find("r3", None, &ask()).is_some());
    assert_eq!(ledger.since(&heads).count(), 1);
    // Touched, and the same.
    world.write_lines(&world.lines());
    assert!(!ledger.refresh().unwrap());
    world.write_lines(&world.lines()[..2]);
    assert!(matches!(ledger.refresh().unwrap_err(), LedgerError::NotAnExtension { .. }));
    // Appended to by hand, without a chain.
    let line = world.lines()[1].replace("\"seq\":2", "\"seq\":3");
    let file = fs::OpenOptions::new().append(true).open(world.path());
    file.unwrap().write_all(format!("{line}\n").as_bytes()).unwrap();
    let broken = ledger.refresh().unwrap_err();
    assert!(matches!(broken, LedgerError::Line { line: 3, .. }), "{broken}");
    assert_eq!(ledger.len(), 3, "what was known before is not forgotten");
    fs::remove_file(world.path()).unwrap();
    assert!(matches!(ledger.refresh().unwrap_err(), LedgerError::Read { .. }));
}

#[test]
fn several_ledgers_are_one_to_ask() {
    let (one, other) = (World::with(2), World::with(1));
    other.append(event("only-here"));
    let ledger = Withdrawals::open(&[one.path(), other.path()]).unwrap();
    assert_eq!(ledger.len(), 4);
    let found = ledger.find("only-here", None, &ask()).unwrap();
    assert_eq!((found.seq, ledger.ledger(found)), (2, &*other.path()));
    let heads = ledger.heads();
    other.append(event("new"));
    let grown = Withdrawals::open(&[one.path(), other.path()]).unwrap();
    let newer: Vec<_> = grown.since(&heads).map(|event| grown.ledger(event)).collect();
    assert_eq!(newer, [other.path()]);
}

proptest! {
    /// Whatever is done to the bytes of a ledger but cutting whole lines off its end, it is
    /// refused: only the last line has no other line to answer for it, and there only changes
    /// that leave it an event.
    #[test]
    fn no_change_before_the_last_line_goes_unnoticed(at in 0_usize..4000, byte: u8) {
        let world = World::with(4);
        let mut bytes = fs::read(world.path()).unwrap();
        let last = bytes[..bytes.len() - 1].iter().rposition(|byte| *byte == b'\n').unwrap();
        let at = at % last;
        prop_assume!(bytes[at] != byte);
        bytes[at] = byte;
        world.write(&bytes);
        prop_assert!(world.open().is_err());
    }

    /// No bytes make a reader panic.
    #[test]
    fn any_bytes_are_an_error_or_a_ledger(bytes: Vec<u8>) {
        let world = World::new();
        world.write(&bytes);
        prop_assert_eq!(world.open().is_ok(), bytes.is_empty());
    }
}
