//! Questions with answers to other questions.
//!
//! KTO measures how far a model has moved from its base on answers that nobody judged: those
//! of the same step, each to the question after its own. Which step a row is in does not
//! depend on micro-batches nor on processes, so neither does the measure.
//!
//! Reference: `KTOTrainer` of TRL, which shifts answers by one within each batch of
//! `per_device_train_batch_size` and cuts what is too long at its end.

use super::super::chat::{Document, Judged};

/// Every document that is judged by itself, in order, with the answer of the one before it; the
/// first with that of the last. None is longer than `most` tokens.
pub fn mismatched<'d>(documents: impl Iterator<Item = &'d Document>, most: usize) -> Vec<Document> {
    let judged = documents.filter(|document| matches!(document.judged, Judged::Alone(_)));
    let judged: Vec<&Document> = judged.collect();
    let answers = judged.iter().cycle().skip(judged.len().saturating_sub(1));
    let both = judged.iter().zip(answers);
    both.map(|(question, answer)| joined(question, answer, most)).collect()
}

/// The tokens of one up to its answer, then those of the answer of the other.
fn joined(question: &Document, answer: &Document, most: usize) -> Document {
    let begin = |document: &Document| document.trained().take_while(|trained| !trained).count();
    let (asked, from) = (begin(question), begin(answer));
    let mut joined = question.clone();
    joined.truncate(asked);
    joined.tokens.extend(answer.tokens.get(from..).unwrap_or_default());
    joined.weights.extend(answer.weights.get(from..).unwrap_or_default());
    joined.truncate(most);
    joined
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document(asked: &[u32], answered: &[u32]) -> Document {
        let weights = asked.iter().map(|_| 0.0).chain(answered.iter().map(|_| 1.0));
        let tokens = [asked, answered].concat();
        Document { tokens, weights: weights.collect(), ..Document::default() }
    }

    #[test]
    fn every_question_gets_the_answer_before_it() {
        let rows = [
            document(&[1, 2], &[10]).labelled(true),
            document(&[3], &[11, 12]).labelled(false),
            document(&[4, 5], &[13, 14, 15]).labelled(true),
        ];
        let found = mismatched(rows.iter(), 4);
        let tokens: Vec<&[u32]> = found.iter().map(|row| row.tokens.as_slice()).collect();
        assert_eq!(tokens, [[1, 2, 13, 14].as_slice(), &[3, 10], &[4, 5, 11, 12]]);
        let trained: Vec<u64> = found.iter().map(Document::trained_tokens).collect();
        assert_eq!(trained, [2, 1, 2]);
    }

    #[test]
    fn one_question_gets_its_own_and_what_is_not_judged_none() {
        let row = document(&[1], &[2]).labelled(true);
        assert_eq!(mismatched([&row].into_iter(), 9), std::slice::from_ref(&row));
        let rows = [document(&[1], &[2]), document(&[1], &[2])];
        assert!(mismatched(rows.iter(), 9).is_empty());
        assert!(mismatched([].into_iter(), 9).is_empty());
    }
}
