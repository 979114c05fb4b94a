//! A row in tokens.
//!
//! Owns what a document is, how it is cut, and how answers that are compared are one of them.
//! Whether a cut one is still worth training on is the caller's to say.

use std::ops::Range;

/// A row in tokens, each with its weight in the loss.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Document {
    /// Token ids.
    pub tokens: Vec<u32>,
    /// How much predicting `tokens[i]` (from the tokens before it) counts in the loss; 0: it
    /// carries none. `weights[0]` is always 0: nothing comes before it.
    pub weights: Vec<f32>,
    /// What is thought of it.
    pub judged: Judged,
}

/// What is thought of a row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Judged {
    /// Nothing: it is to be learned.
    #[default]
    Not,
    /// It ends as it should, or not.
    Alone(Verdict),
    /// Two conversations, one after the other, which do not see each other: the better one of
    /// so many tokens, and the worse one.
    Preferred {
        /// Tokens of the better one.
        chosen: usize,
    },
}

/// What is thought of an answer, in TRL's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is the better one, or one that is wanted.
    Chosen,
    /// It is the worse one, or one that is not wanted.
    Rejected,
}

impl Verdict {
    /// Its word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Chosen => "chosen",
            Self::Rejected => "rejected",
        }
    }
}

impl Document {
    /// Both conversations of a preference.
    pub fn preferred([chosen, rejected]: [Self; 2]) -> Self {
        let judged = Judged::Preferred { chosen: chosen.tokens.len() };
        let tokens = [chosen.tokens, rejected.tokens].concat();
        Self { tokens, weights: [chosen.weights, rejected.weights].concat(), judged }
    }

    /// The same with a verdict on how it ends.
    pub fn labelled(self, desirable: bool) -> Self {
        let verdict = if desirable { Verdict::Chosen } else { Verdict::Rejected };
        Self { judged: Judged::Alone(verdict), ..self }
    }

    /// What of it is a conversation by itself, each with the verdict on it.
    pub fn parts(&self) -> impl Iterator<Item = (Range<usize>, Option<Verdict>)> + use<> {
        let all = self.tokens.len();
        let parts = match self.judged {
            Judged::Not => [Some((0..all, None)), None],
            Judged::Alone(verdict) => [Some((0..all, Some(verdict))), None],
            Judged::Preferred { chosen } => {
                let chosen = chosen.min(all);
                [
                    Some((0..chosen, Some(Verdict::Chosen))),
                    Some((chosen..all, Some(Verdict::Rejected))),
                ]
            }
        };
        parts.into_iter().flatten()
    }

    /// One of [`Document::parts`], by itself.
    pub fn part(&self, part: Range<usize>) -> Self {
        let tokens = self.tokens.get(part.clone()).unwrap_or_default().to_vec();
        let weights = self.weights.get(part).unwrap_or_default().to_vec();
        Self { tokens, weights, judged: Judged::Not }
    }

    /// Tokens of the longest conversation.
    pub fn longest(&self) -> usize {
        self.parts().map(|(part, _)| part.len()).max().unwrap_or_default()
    }

    /// Whether `tokens[i]` carries loss, for every `i`.
    pub fn trained(&self) -> impl Iterator<Item = bool> + '_ {
        self.weights.iter().map(|weight| *weight > 0.0)
    }

    /// Tokens that carry loss.
    pub fn trained_tokens(&self) -> u64 {
        self.trained().filter(|trained| *trained).count() as u64
    }

    /// Cuts off what goes beyond `length` tokens.
    pub fn truncate(&mut self, length: usize) {
        self.tokens.truncate(length);
        self.weights.truncate(length);
    }

    /// Cuts the document into pieces of `length` tokens and what is left. They do not see each
    /// other, so the first token of each carries no loss. A length of 0 cuts nothing.
    pub fn split(self, length: usize) -> Vec<Self> {
        if length == 0 || self.tokens.len() <= length {
            return vec![self];
        }
        let pieces = self.tokens.chunks(length).zip(self.weights.chunks(length));
        pieces
            .map(|(tokens, weights)| {
                let (tokens, weights) = (tokens.to_vec(), weights.to_vec());
                let mut piece = Self { tokens, weights, judged: Judged::Not };
                piece.open();
                piece
            })
            .collect()
    }

    /// Nothing comes before the first token.
    pub(super) fn open(&mut self) {
        if let Some(first) = self.weights.first_mut() {
            *first = 0.0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document(tokens: u32) -> Document {
        let weights = (0..tokens).map(|token| f32::from(u8::from(token > 0))).collect();
        Document { tokens: (0..tokens).collect(), weights, judged: Judged::Not }
    }

    #[test]
    fn a_preference_is_two_conversations_in_one() {
        let pair = Document::preferred([document(3), document(2)]);
        assert_eq!(
            (pair.tokens.as_slice(), pair.trained_tokens()),
            ([0, 1, 2, 0, 1].as_slice(), 3)
        );
        let parts: Vec<_> = pair.parts().collect();
        let expected = [(0..3, Some(Verdict::Chosen)), (3..5, Some(Verdict::Rejected))];
        assert_eq!((parts.as_slice(), pair.longest()), (expected.as_slice(), 3));
        let alone: Vec<_> = document(3).labelled(false).parts().collect();
        assert_eq!(alone, [(0..3, Some(Verdict::Rejected))]);
        assert_eq!(document(3).parts().collect::<Vec<_>>(), [(0..3, None)]);
    }

    #[test]
    fn a_document_is_cut_where_it_is_too_long() {
        let mut cut = document(5);
        cut.truncate(3);
        assert_eq!((cut.tokens.as_slice(), cut.trained_tokens()), ([0, 1, 2].as_slice(), 2));
        cut.truncate(9);
        assert_eq!(cut.tokens.len(), 3);
    }

    #[test]
    fn pieces_have_all_tokens_and_the_first_of_each_carries_no_loss() {
        let pieces = document(7).split(3);
        let tokens: Vec<&[u32]> = pieces.iter().map(|piece| piece.tokens.as_slice()).collect();
        assert_eq!(tokens, [[0, 1, 2].as_slice(), &[3, 4, 5], &[6]]);
        let trained: Vec<u64> = pieces.iter().map(Document::trained_tokens).collect();
        assert_eq!(trained, [2, 2, 0]);
        assert_eq!(document(3).split(3), [document(3)]);
        assert_eq!(document(3).split(0), [document(3)]);
    }
}
