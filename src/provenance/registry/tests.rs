use super::*;

/// A registry in a folder of its own.
fn registry() -> (tempfile::TempDir, Registry) {
    let home = tempfile::tempdir().unwrap();
    let registry = Registry::at(&home.path().join("not/yet/there"));
    (home, registry)
}

fn run(id: &str) -> Entry {
    Entry::Run(RunEntry {
        run: id.repeat(64),
        path: "/somewhere".into(),
        created: Timestamp::UNIX_EPOCH,
        base: vec!["b".repeat(64)],
    })
}

fn bytes(registry: &Registry) -> Vec<u8> {
    fs::read(registry.path()).unwrap()
}

#[test]
fn what_is_entered_is_read_in_order() {
    let (_home, registry) = registry();
    assert_eq!(registry.read().unwrap(), []);
    let release = Entry::Release(ReleaseEntry {
        release: "c".repeat(64),
        path: "/elsewhere".into(),
        kind: ExportKind::Merged,
        run: None,
        base: vec![],
        weights: vec!["d".repeat(64)],
    });
    let (run, weights) = ("1".repeat(64), vec!["e".repeat(64)]);
    let trained = Entry::Trained(TrainedEntry { run, kind: ExportKind::Adapter, weights });
    let entries = [self::run("1"), trained, release];
    for entry in &entries {
        registry.enter(entry).unwrap();
    }
    assert_eq!(registry.read().unwrap(), entries);
    let text = String::from_utf8(bytes(&registry)).unwrap();
    assert!(text.starts_with(r#"{"run":{"run":"1111"#), "{text}");
}

#[test]
fn half_a_line_at_the_end_is_left_out_and_taken_away() {
    let (_home, registry) = registry();
    registry.enter(&run("1")).unwrap();
    let whole = bytes(&registry).len();
    registry.enter(&run("2")).unwrap();
    let both = bytes(&registry);
    for length in whole..both.len() {
        fs_err::write(registry.path(), &both[..length]).unwrap();
        assert_eq!(registry.read().unwrap(), [run("1")], "{length}");
    }
    registry.enter(&run("3")).unwrap();
    assert_eq!(registry.read().unwrap(), [run("1"), run("3")]);
    // The very first line, too.
    fs_err::write(registry.path(), &both[..9]).unwrap();
    assert_eq!(registry.read().unwrap(), []);
    registry.enter(&run("4")).unwrap();
    assert_eq!(registry.read().unwrap(), [run("4")]);
}

#[test]
fn a_line_that_is_no_entry_is_an_error_with_its_number() {
    for wrong in ["", "{}", "[]", r#"{"run":{}}"#, r#"{"ran":{}}"#, "\u{0}", "null"] {
        let (_home, registry) = registry();
        registry.enter(&run("1")).unwrap();
        let text = [&bytes(&registry)[..], wrong.as_bytes(), b"\n"].concat();
        fs_err::write(registry.path(), text).unwrap();
        let error = registry.read().unwrap_err();
        assert!(matches!(error, RegistryError::Line { line: 2, .. }), "{error}");
        assert!(error.hint().unwrap().contains("--search"));
    }
}

#[test]
fn a_file_that_is_no_registry_is_neither_read_nor_cut() {
    let (_home, registry) = registry();
    let endless = vec![b'x'; MAX_LINE_BYTES as usize + 5];
    fs::create_dir_all(registry.path().parent().unwrap()).unwrap();
    fs_err::write(registry.path(), &endless).unwrap();
    assert!(matches!(registry.read(), Err(RegistryError::Line { line: 1, .. })));
    assert!(matches!(registry.enter(&run("1")), Err(RegistryError::Write { .. })));
    assert_eq!(bytes(&registry), endless);
}

#[test]
fn an_entry_longer_than_a_line_is_not_written() {
    let (_home, registry) = registry();
    let base = vec!["b".repeat(64); MAX_LINE_BYTES as usize / 64];
    let path = PathBuf::from("/somewhere");
    let created = Timestamp::UNIX_EPOCH;
    let long = Entry::Run(RunEntry { run: "1".repeat(64), path, created, base });
    assert!(matches!(registry.enter(&long), Err(RegistryError::Write { .. })));
    assert_eq!(registry.read().unwrap(), []);
}

#[test]
fn many_at_once_all_land() {
    let (_home, registry) = registry();
    std::thread::scope(|scope| {
        for thread in ["1", "2", "3", "4"] {
            let registry = &registry;
            scope.spawn(move || (0..20).for_each(|_| registry.enter(&run(thread)).unwrap()));
        }
    });
    assert_eq!(registry.read().unwrap().len(), 80);
}

#[test]
fn the_place_is_the_variables_or_that_of_xdg() {
    let by = |pairs: &'static [(&str, &str)]| {
        let value = |name: &str| pairs.iter().find(|(key, _)| *key == name).map(|pair| pair.1);
        Registry::by(|name| value(name).map(OsString::from)).map(|registry| registry.path)
    };
    let path = |text: &str| Some(PathBuf::from(text));
    assert_eq!(by(&[]), None);
    assert_eq!(by(&[("HOME", "/h")]), path("/h/.local/share/heirloom/registry.jsonl"));
    let xdg = by(&[("HOME", "/h"), ("XDG_DATA_HOME", "/x")]);
    assert_eq!(xdg, path("/x/heirloom/registry.jsonl"));
    let relative = by(&[("HOME", "/h"), ("XDG_DATA_HOME", "x")]);
    assert_eq!(relative, path("/h/.local/share/heirloom/registry.jsonl"));
    let own = by(&[("HOME", "/h"), ("XDG_DATA_HOME", "/x"), ("HEIRLOOM_HOME", "own")]);
    assert_eq!(own, path("own/registry.jsonl"));
    let empty = by(&[("HOME", "/h"), ("HEIRLOOM_HOME", "")]);
    assert_eq!(empty, path("/h/.local/share/heirloom/registry.jsonl"));
}
