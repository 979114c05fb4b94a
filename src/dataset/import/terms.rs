//! Words of consent: those of the columns, and the terms of DPV and of the GDPR for them.
//!
//! Reference: W3C DPV 2.3. Its `ConsentTerminated` of the guide to ISO/IEC TS 27560 is no
//! term of the vocabulary.

use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;

use crate::dataset::consent::purposes;
use crate::recipe::problem::{listed, offer};

/// Legal bases, by their word in the column and the terms of vocabularies.
const BASES: [(&str, &[&str]); 8] = [
    ("consent", &["eu-gdpr:A6-1-a", "eu-gdpr:A6-1-a-explicit-consent", "dpv:Consent"]),
    ("contract", &["eu-gdpr:A6-1-b", "dpv:Contract"]),
    ("legal_obligation", &["eu-gdpr:A6-1-c", "dpv:LegalObligation"]),
    ("vital_interest", &["eu-gdpr:A6-1-d", "dpv:VitalInterest"]),
    ("public_task", &["eu-gdpr:A6-1-e", "dpv:PublicInterest"]),
    ("legitimate_interest", &["eu-gdpr:A6-1-f", "dpv:LegitimateInterest"]),
    ("not_personal_data", &[]),
    ("unknown", &[]),
];

/// Where a consent may stand.
const STATUSES: [(&str, &[&str]); 12] = [
    ("given", &["dpv:ConsentGiven"]),
    ("renewed", &["dpv:RenewedConsentGiven"]),
    ("requested", &["dpv:ConsentRequested"]),
    ("deferred", &["dpv:ConsentRequestDeferred"]),
    ("refused", &["dpv:ConsentRefused"]),
    ("expired", &["dpv:ConsentExpired"]),
    ("withdrawn", &["dpv:ConsentWithdrawn"]),
    ("revoked", &["dpv:ConsentRevoked"]),
    ("invalidated", &["dpv:ConsentInvalidated"]),
    ("objected", &["dpv:LegitimateInterestObjected"]),
    ("unknown", &["dpv:ConsentUnknown"]),
    ("not_applicable", &[]),
];

const CATEGORIES: [(&str, &[&str]); 3] = [
    ("none", &[]),
    ("sensitive", &["dpv:SensitivePersonalData"]),
    ("special", &["dpv:SpecialCategoryPersonalData"]),
];

/// Processing that concerns models: what a consent record says of the rest is of no use here.
const OF_MODELS: [&str; 4] =
    ["ai:ModelFineTuning", "ai:ModelTraining", "dpv:MakeAvailable", "dpv:DiscloseByTransmission"];

/// Prefixes by which the same vocabularies are also known, the longer first.
const PREFIXES: [(&str, &str); 7] = [
    ("https://w3id.org/dpv/ai#", "ai:"),
    ("https://w3id.org/dpv/legal/eu/gdpr#", "eu-gdpr:"),
    ("https://w3id.org/dpv#", "dpv:"),
    ("http://purl.org/dc/terms/", "dct:"),
    ("http://www.w3.org/ns/odrl/2/", "odrl:"),
    ("dpv-ai:", "ai:"),
    ("eu-gdpr:", "eu-gdpr:"),
];

/// A term by the prefixes that are used here.
pub(super) fn curie(term: &str) -> String {
    let known = PREFIXES.iter().find_map(|(long, short)| Some((term.strip_prefix(long)?, short)));
    known.map_or_else(|| term.to_owned(), |(name, prefix)| format!("{prefix}{name}"))
}

fn find(table: &[(&'static str, &[&str])], word: &str) -> Option<&'static str> {
    let term = curie(word);
    let found = table.iter().find(|(name, terms)| *name == word || terms.contains(&term.as_str()));
    found.map(|(name, _)| *name)
}

/// The word of a legal basis.
pub(super) fn basis(word: &str) -> Option<&'static str> {
    find(&BASES, word)
}

/// The word of a status.
pub(super) fn status(word: &str) -> Option<&'static str> {
    find(&STATUSES, word)
}

/// The word of a category of personal data.
pub(super) fn category(word: &str) -> Option<&'static str> {
    find(&CATEGORIES, word)
}

/// A term of `purposes` or `processing`: one that DPV has, or a purpose of another vocabulary,
/// which allows itself alone.
pub(super) fn term(field: &str, word: &str) -> Option<String> {
    let term = curie(word);
    let (prefix, name) = term.split_once(':')?;
    let word = |text: &str| {
        !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || "-_".contains(c))
    };
    let defined = match (field, prefix) {
        ("processing", _) => purposes::is_known_processing(&term),
        (_, "dpv") => purposes::is_known(&term),
        _ => word(prefix) && word(name),
    };
    defined.then_some(term)
}

/// Whether a processing concerns models.
pub(super) fn is_of_models(processing: &str) -> bool {
    OF_MODELS.contains(&processing)
}

/// Whether a word can be the value of a field.
pub(super) fn is_defined(field: &str, word: &str) -> bool {
    match field {
        "basis" => basis(word).is_some(),
        "status" => status(word).is_some(),
        "special_category" => category(word).is_some(),
        "purposes" | "processing" => term(field, word).is_some(),
        "given_at" | "expires_at" | "withdrawn_at" => instant(word).is_some(),
        // Two ids that differ by a space would be two people to a withdrawal.
        _ => !word.is_empty() && word.trim() == word,
    }
}

/// What could be written instead of a word that is no value of a field.
pub(super) fn offered(field: &str, word: &str) -> String {
    let of = |table: &[(&'static str, &[&str])]| {
        let names: Vec<&str> = table.iter().map(|(name, _)| *name).collect();
        offer(word, names.iter().copied())
    };
    match field {
        "basis" => of(&BASES),
        "status" => of(&STATUSES),
        "special_category" => of(&CATEGORIES),
        "processing" => match purposes::nearest_processing(word) {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!("the terms that matter are {}", listed(OF_MODELS.into_iter())),
        },
        "purposes" => match purposes::nearest(word) {
            Some(near) => format!("did you mean `{near}`?"),
            None => "write a term of DPV, such as `dpv:ServiceProvision`".to_owned(),
        },
        "given_at" | "expires_at" | "withdrawn_at" => {
            "write an instant with its zone, such as `2026-06-01T00:00:00Z`".to_owned()
        }
        _ => "write a word".to_owned(),
    }
}

/// An instant with its zone, or a day, which begins at midnight UTC.
pub(super) fn instant(text: &str) -> Option<Timestamp> {
    text.parse().ok().or_else(|| {
        // `Date` would also read the day of an instant without a zone.
        let date = text.parse::<Date>().ok().filter(|date| date.to_string() == text)?;
        Some(date.to_zoned(TimeZone::UTC).ok()?.timestamp())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terms_of_vocabularies_are_the_words_of_columns() {
        assert_eq!(basis("https://w3id.org/dpv/legal/eu/gdpr#A6-1-f"), Some("legitimate_interest"));
        assert_eq!(status("dpv:RenewedConsentGiven"), Some("renewed"));
        // Of the guide, and of no vocabulary.
        assert_eq!(status("dpv:ConsentTerminated"), None);
        assert_eq!(status("Given"), None);
        assert_eq!(term("processing", "dpv-ai:ModelFineTuning").unwrap(), "ai:ModelFineTuning");
        assert!(term("processing", "dpv:Collect").is_some_and(|term| !is_of_models(&term)));
        assert_eq!(term("processing", "ai:Anything"), None);
        assert_eq!(term("purposes", "dpv:CustomerCares"), None);
        assert_eq!(term("purposes", "duo:0000042").unwrap(), "duo:0000042");
        assert_eq!(
            term("purposes", "https://w3id.org/dpv#CustomerCare").unwrap(),
            "dpv:CustomerCare"
        );
        for word in ["", "care", "dpv:", "dpv:a b", ":x", "dpv:Customer Care"] {
            assert_eq!(term("purposes", word), None, "{word}");
        }
    }

    #[test]
    fn an_instant_without_a_zone_is_none() {
        assert!(instant("2026-01-02T03:04:05").is_none());
        assert!(instant("2026-13-02").is_none());
        assert_eq!(instant("2026-01-02").unwrap().to_string(), "2026-01-02T00:00:00Z");
        assert_eq!(
            instant("2026-01-02T03:04:05+02:00").unwrap().to_string(),
            "2026-01-02T01:04:05Z"
        );
    }
}
