//! A row in tokens.
//!
//! Owns what a document is and how it is cut. Whether a cut one is still worth training on is
//! the caller's to say.

/// A row in tokens, each with its weight in the loss.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Document {
    /// Token ids.
    pub tokens: Vec<u32>,
    /// How much predicting `tokens[i]` (from the tokens before it) counts in the loss; 0: it
    /// carries none. `weights[0]` is always 0: nothing comes before it.
    pub weights: Vec<f32>,
}

impl Document {
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
                let mut piece = Self { tokens: tokens.to_vec(), weights: weights.to_vec() };
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
        Document { tokens: (0..tokens).collect(), weights }
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
