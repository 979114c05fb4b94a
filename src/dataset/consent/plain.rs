//! The gate once more: slow, plain, written from the prose of `docs/concepts/consent.md`
//! alone, and held against the real one on random rows.

use std::collections::HashSet;
use std::sync::Arc;

use arrow::array::{
    ArrayRef, FixedSizeBinaryArray, ListBuilder, StringArray, StringBuilder,
    TimestampMicrosecondArray,
};
use arrow::compute::cast;
use arrow::datatypes::DataType;
use arrow::record_batch::RecordBatch;
use jiff::Timestamp;

use super::{Ask, COLUMNS, ConsentColumns, Dataset, InLedger, Reason, judge, judge_rows};

/// How many random rows are judged; `1000000` is the number that the gate was accepted with.
const ROWS_VARIABLE: &str = "HEIRLOOM_GATE_ROWS";
const DEFAULT_ROWS: usize = 100_000;
const ROWS_PER_BATCH: usize = 500;

/// 2026-05-28, in microseconds, and an hour.
const START: i64 = 1_780_000_000_000_000;
const HOUR: i64 = 3_600_000_000;

#[rustfmt::skip]
const BASES: [Option<&str>; 12] = [
    None, Some("consent"), Some("contract"), Some("legal_obligation"), Some("vital_interest"),
    Some("public_task"), Some("legitimate_interest"), Some("not_personal_data"), Some("unknown"),
    Some("Consent"), Some(""), Some("consent "),
];
#[rustfmt::skip]
const STATUSES: [Option<&str>; 15] = [
    None, Some("given"), Some("renewed"), Some("requested"), Some("deferred"), Some("refused"),
    Some("expired"), Some("withdrawn"), Some("revoked"), Some("invalidated"), Some("objected"),
    Some("unknown"), Some("not_applicable"), Some("probably"), Some("GIVEN"),
];
#[rustfmt::skip]
const PURPOSES: [Option<&str>; 9] = [
    None, Some("dpv:ServiceProvision"), Some("dpv:ServiceManagement"), Some("dpv:DeliveryOfGoods"),
    Some("dpv:CommercialPurpose"), Some("dpv:ResearchAndDevelopment"),
    Some("dpv:CommercialResearch"), Some("dpv:Purpose"), Some("ex:Own"),
];
#[rustfmt::skip]
const PROCESSING: [Option<&str>; 6] = [
    None, Some("ai:ModelFineTuning"), Some("ai:ModelTraining"), Some("dpv:MakeAvailable"),
    Some("dpv:Disclose"), Some("dpv:Transform"),
];
const SOURCES: [Option<&str>; 4] = [None, Some("letters"), Some("web"), Some("blank")];
const RECORDS: [Option<&str>; 3] = [None, Some(""), Some("urn:uuid:1")];

/// What each allowed purpose stands for, among those that are asked here.
const ALLOWS: [(&str, &[&str]); 7] = [
    ("dpv:ServiceProvision", &["dpv:ServiceProvision", "dpv:DeliveryOfGoods"]),
    ("dpv:ServiceManagement", &["dpv:ServiceProvision", "dpv:DeliveryOfGoods"]),
    ("dpv:DeliveryOfGoods", &["dpv:DeliveryOfGoods"]),
    ("dpv:CommercialPurpose", &["dpv:CommercialResearch"]),
    ("dpv:ResearchAndDevelopment", &["dpv:CommercialResearch"]),
    ("dpv:CommercialResearch", &["dpv:CommercialResearch"]),
    ("ex:Own", &["ex:Own"]),
];
const ASKED: [&str; 4] =
    ["dpv:ServiceProvision", "dpv:DeliveryOfGoods", "dpv:CommercialResearch", "ex:Own"];
const ASKED_PROCESSING: [&str; 3] = ["ai:ModelFineTuning", "ai:ModelTraining", "dpv:MakeAvailable"];

type List = Option<Vec<Option<&'static str>>>;

#[derive(Clone, Debug)]
pub(in crate::dataset) struct Row {
    basis: Option<&'static str>,
    status: Option<&'static str>,
    purposes: List,
    processing: List,
    given_at: Option<i64>,
    expires_at: Option<i64>,
    withdrawn_at: Option<i64>,
    record: Option<&'static str>,
    source: Option<&'static str>,
    pub(in crate::dataset) subject: bool,
    pub(in crate::dataset) in_ledger: bool,
}

/// What is said of the data set: nothing, or whether consent may be endless.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(in crate::dataset) enum Said {
    Nothing,
    EndsByItself,
    Endless,
}

/// What is the same for a batch of rows.
#[derive(Clone, Debug)]
pub(in crate::dataset) struct Run {
    purpose: Vec<&'static str>,
    processing: Vec<&'static str>,
    start: i64,
    pub(in crate::dataset) end: i64,
    pub(in crate::dataset) said: Said,
    /// A consent column that the file lacks.
    lacks: Option<&'static str>,
    /// A subject has withdrawn, be it that of any row or not.
    pub(in crate::dataset) by_subject: bool,
}

/// The rules, one sentence of the prose after the other.
pub(in crate::dataset) fn plainly(row: &Row, run: &Run) -> &'static str {
    // "A withdrawal in the ledger comes before everything else."
    if row.in_ledger {
        return "withdrawn";
    }
    // missing: "a consent column is absent; basis, status, purposes or processing is null;"
    if run.lacks.is_some()
        || row.basis.is_none()
        || row.status.is_none()
        || row.purposes.is_none()
        || row.processing.is_none()
    {
        return "missing";
    }
    let basis = row.basis.unwrap();
    let status = row.status.unwrap();
    // "the basis is consent and no record of it is named;"
    if basis == "consent" && (row.record.is_none() || row.record == Some("")) {
        return "missing";
    }
    // "a subject has withdrawn in a ledger, and a row of personal data does not say whose it is;"
    let personal = basis == "consent"
        || basis == "contract"
        || basis == "legal_obligation"
        || basis == "vital_interest"
        || basis == "public_task"
        || basis == "legitimate_interest";
    if run.by_subject && personal && !row.subject {
        return "missing";
    }
    if run.said != Said::Nothing {
        // "there is no end, and the data set does not say that there need be none;"
        if row.expires_at.is_none() && run.said != Said::Endless {
            return "missing";
        }
        // "the row is said to be about nobody, and its source does not say why"
        if basis == "not_personal_data" && row.source != Some("letters") {
            return "missing";
        }
    }
    // unknown: "a basis or status that nobody defined, or `unknown`;"
    let bases = [
        "consent",
        "contract",
        "legal_obligation",
        "vital_interest",
        "public_task",
        "legitimate_interest",
        "not_personal_data",
    ];
    if !bases.contains(&basis) {
        return "unknown";
    }
    if status == "unknown" || status == "probably" || status == "GIVEN" {
        return "unknown";
    }
    // "nothing is said of the data set"
    if run.said == Said::Nothing {
        return "unknown";
    }
    // "basis and status contradict each other; a row about nobody names somebody;"
    if basis == "not_personal_data" && status != "not_applicable" {
        return "unknown";
    }
    if basis == "not_personal_data" && row.subject {
        return "unknown";
    }
    if basis == "consent" && status == "not_applicable" {
        return "unknown";
    }
    // withdrawn: "withdrawn, revoked, invalidated, refused or objected to;"
    if status == "withdrawn"
        || status == "revoked"
        || status == "invalidated"
        || status == "refused"
        || status == "objected"
    {
        return "withdrawn";
    }
    // "or its date of withdrawal lies before the planned end of the run"
    if let Some(at) = row.withdrawn_at
        && at <= run.end
    {
        return "withdrawn";
    }
    // not-given: "the basis is consent, and it is requested, deferred, or given only later"
    if basis == "consent" {
        if status == "requested" || status == "deferred" {
            return "not-given";
        }
        if let Some(at) = row.given_at
            && at > run.start
        {
            return "not-given";
        }
    }
    // expired: "expired, or ends by the planned end of the run"
    if status == "expired" {
        return "expired";
    }
    if let Some(at) = row.expires_at
        && at <= run.end
    {
        return "expired";
    }
    // purpose: "not for every purpose that is asked; nothing asked is only for nobody"
    if run.purpose.is_empty() && basis != "not_personal_data" {
        return "purpose";
    }
    for asked in &run.purpose {
        let mut allowed = false;
        for own in row.purposes.as_ref().unwrap().iter().flatten() {
            for (wider, narrower) in ALLOWS {
                if wider == *own && narrower.contains(asked) {
                    allowed = true;
                }
            }
        }
        if !allowed {
            return "purpose";
        }
    }
    // processing: "not for every processing that is asked; to train is to fine-tune, too"
    if run.processing.is_empty() && basis != "not_personal_data" {
        return "processing";
    }
    for asked in &run.processing {
        let own = row.processing.as_ref().unwrap();
        let trains = *asked == "ai:ModelFineTuning" && own.contains(&Some("ai:ModelTraining"));
        if !own.contains(&Some(asked)) && !trains {
            return "processing";
        }
    }
    "used"
}

/// SplitMix64 (Steele, Lea and Flood 2014).
pub(in crate::dataset) struct Random(pub(in crate::dataset) u64);

impl Random {
    pub(in crate::dataset) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub(in crate::dataset) fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    pub(in crate::dataset) fn one_of<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }

    pub(in crate::dataset) fn percent(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    fn list(&mut self, of: &[Option<&'static str>]) -> List {
        (!self.percent(5)).then(|| (0..self.below(4)).map(|_| self.one_of(of)).collect())
    }

    fn some_of(&mut self, of: &[&'static str]) -> Vec<&'static str> {
        let most = if self.percent(10) { 0 } else { 1 + self.below(2) };
        let words: HashSet<_> = (0..most).map(|_| self.one_of(of)).collect();
        words.into_iter().collect()
    }

    /// Null, at one of the two limits or a microsecond beside them, or far away.
    fn instant(&mut self, run: &Run) -> Option<i64> {
        let far = [i64::MIN, -START, START - 900 * HOUR, START + 900 * HOUR, i64::MAX];
        match self.below(4) {
            0 => None,
            1 => Some(run.start - 1 + self.below(3) as i64),
            2 => Some(run.end - 1 + self.below(3) as i64),
            _ => Some(self.one_of(&far)),
        }
    }

    pub(in crate::dataset) fn run(&mut self) -> Run {
        Run {
            purpose: self.some_of(&ASKED),
            processing: self.some_of(&ASKED_PROCESSING),
            start: START,
            end: START + self.below(3) as i64 * HOUR,
            said: self.one_of(&[Said::Nothing, Said::EndsByItself, Said::Endless, Said::Endless]),
            lacks: self.percent(5).then(|| self.one_of(&COLUMNS)),
            by_subject: self.percent(20),
        }
    }

    /// Any combination is possible; half of the rows are good but for a column or two, so that
    /// every rule is reached and not only the first ones.
    pub(in crate::dataset) fn row(&mut self, run: &Run) -> Row {
        let any = Row {
            basis: self.one_of(&BASES),
            status: self.one_of(&STATUSES),
            purposes: self.list(&PURPOSES),
            processing: self.list(&PROCESSING),
            given_at: self.instant(run),
            expires_at: self.instant(run),
            withdrawn_at: self.instant(run),
            record: self.one_of(&RECORDS),
            source: self.one_of(&SOURCES),
            subject: self.percent(50),
            in_ledger: self.percent(10),
        };
        if self.percent(50) {
            return any;
        }
        let mut row = Row {
            basis: Some("consent"),
            status: Some("given"),
            purposes: Some(ASKED.map(Some).into()),
            processing: Some(ASKED_PROCESSING.map(Some).into()),
            given_at: None,
            expires_at: Some(START + 900 * HOUR),
            withdrawn_at: None,
            record: Some("urn:uuid:1"),
            source: Some("letters"),
            subject: any.subject,
            in_ledger: false,
        };
        if self.percent(20) {
            (row.basis, row.status) = (Some("not_personal_data"), Some("not_applicable"));
            row.subject = false;
        }
        for _ in 0..self.below(3) {
            match self.below(11) {
                0 => row.basis = any.basis,
                1 => row.status = any.status,
                2 => row.purposes = any.purposes.clone(),
                3 => row.processing = any.processing.clone(),
                4 => row.given_at = any.given_at,
                5 => row.expires_at = any.expires_at,
                6 => row.withdrawn_at = any.withdrawn_at,
                7 => row.record = any.record,
                8 => row.source = any.source,
                9 => row.subject = any.subject,
                _ => row.in_ledger = true,
            }
        }
        row
    }
}

/// The rows as a file has them; those in the ledger are called `gone`.
pub(in crate::dataset) fn batch(rows: &[Row], run: &Run, coded: bool) -> RecordBatch {
    let texts = |of: fn(&Row) -> Option<&'static str>| -> ArrayRef {
        let texts: ArrayRef = Arc::new(rows.iter().map(of).collect::<StringArray>());
        if !coded {
            return texts;
        }
        let codes = DataType::Dictionary(DataType::Int16.into(), DataType::Utf8.into());
        cast(&texts, &codes).unwrap()
    };
    let lists = |of: fn(&Row) -> &List| -> ArrayRef {
        let mut builder = ListBuilder::new(StringBuilder::new());
        rows.iter().for_each(|row| builder.append_option(of(row).clone()));
        Arc::new(builder.finish())
    };
    let instants = |of: fn(&Row) -> Option<i64>| -> ArrayRef {
        let instants: TimestampMicrosecondArray = rows.iter().map(of).collect();
        Arc::new(instants.with_timezone("UTC"))
    };
    let subjects = rows.iter().map(|row| row.subject.then_some([7_u8; 32]));
    let subjects = FixedSizeBinaryArray::try_from_sparse_iter_with_size(subjects, 32).unwrap();
    let columns = [
        ("record_id", texts(|row| Some(if row.in_ledger { "gone" } else { "here" }))),
        ("subject_ref", Arc::new(subjects) as ArrayRef),
        ("consent_basis", texts(|row| row.basis)),
        ("consent_status", texts(|row| row.status)),
        ("consent_purposes", lists(|row| &row.purposes)),
        ("consent_processing", lists(|row| &row.processing)),
        ("consent_given_at", instants(|row| row.given_at)),
        ("consent_expires_at", instants(|row| row.expires_at)),
        ("consent_withdrawn_at", instants(|row| row.withdrawn_at)),
        ("consent_record_id", texts(|row| row.record)),
        ("source_id", texts(|row| row.source)),
    ];
    let kept = columns.into_iter().filter(|(name, _)| Some(*name) != run.lacks);
    RecordBatch::try_from_iter(kept).unwrap()
}

/// What the footer of a file says of the data set.
pub(in crate::dataset) fn footer(said: Said) -> Option<String> {
    let expiry = if said == Said::Endless { "endless" } else { "P12M" };
    let footer = serde_json::json!({
        "schema": "consent/v1", "defaults": {"expiry": expiry},
        "sources": {"letters": {"justification": "a rule wrote them"},
                    "web": {"origin": "found"}, "blank": {"justification": ""}},
    });
    (said != Said::Nothing).then(|| footer.to_string())
}

fn dataset(said: Said) -> Dataset {
    Dataset::parse(footer(said).as_deref())
}

pub(in crate::dataset) fn ask(run: &Run) -> Ask {
    let owned = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
    Ask {
        purpose: owned(&run.purpose),
        processing: owned(&run.processing),
        at: Timestamp::from_microsecond(run.start).unwrap(),
        until: Timestamp::from_microsecond(run.end).unwrap(),
    }
}

pub(in crate::dataset) fn word(verdict: Result<(), Reason>) -> &'static str {
    verdict.map_or_else(Reason::key, |()| "used")
}

#[test]
fn the_gate_agrees_with_the_rules_written_plainly() {
    let rows = std::env::var(ROWS_VARIABLE).ok().and_then(|rows| rows.parse().ok());
    let rows: usize = rows.unwrap_or(DEFAULT_ROWS);
    let mut random = Random(4);
    let mut found = std::collections::BTreeMap::<&str, usize>::new();
    for number in 0..rows.div_ceil(ROWS_PER_BATCH) {
        let run = random.run();
        let rows: Vec<Row> = (0..ROWS_PER_BATCH).map(|_| random.row(&run)).collect();
        let columns = ConsentColumns::new(&batch(&rows, &run, number % 2 == 1)).unwrap();
        let (ask, dataset) = (ask(&run), dataset(run.said));
        let says = |gone| match (gone, run.by_subject) {
            (true, _) => InLedger::Withdrawn,
            (false, true) => InLedger::Subjects,
            (false, false) => InLedger::Nothing,
        };
        let verdicts = judge_rows(&columns, &ask, &dataset, |record, _| says(record == "gone"));
        assert_eq!(verdicts.len(), rows.len());
        for (index, row) in rows.iter().enumerate() {
            let expected = plainly(row, &run);
            let single = judge(&columns.row(index), &ask, &dataset, says(row.in_ledger));
            assert_eq!(word(single), expected, "one row: {row:?} {run:?}");
            assert_eq!(word(verdicts[index]), expected, "columns: {row:?} {run:?}");
            *found.entry(expected).or_default() += 1;
        }
    }
    // Every verdict is met often enough to mean something.
    assert_eq!(found.len(), 1 + Reason::ALL.len(), "{found:?}");
    assert!(found.values().all(|count| *count > rows / 200), "{found:?}");
}
