//! What becomes of a training row that is longer than a window.

use super::super::chat::Document;
use crate::recipe::Overlong;

/// What becomes of a row that is longer than a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    /// What the recipe says.
    pub how: Overlong,
    /// Tokens of a window.
    pub window: usize,
    /// Pieces that are trained on.
    pub pieces: usize,
    /// Pieces that are left out, because nothing in them is trained.
    pub left_out: usize,
    /// Tokens that would carry loss, were the row not too long.
    pub lost: u64,
}

impl Cut {
    /// `None` where the row fits.
    pub(super) fn of(document: &Document, how: Overlong, window: usize) -> Option<Self> {
        if document.tokens.len() <= window {
            return None;
        }
        let most = match how {
            Overlong::Refuse | Overlong::Drop => 0,
            Overlong::Truncate => 1,
            Overlong::Split => usize::MAX,
        };
        let pieces = document.clone().split(window).into_iter().take(most);
        let trained: Vec<u64> = pieces.map(|piece| piece.trained_tokens()).collect();
        let pieces = trained.iter().filter(|trained| **trained > 0).count();
        let lost = document.trained_tokens() - trained.iter().sum::<u64>();
        Some(Self { how, window, pieces, left_out: trained.len() - pieces, lost })
    }

    /// Whether a window ends before this token.
    pub fn is_before(&self, token: usize) -> bool {
        match self.how {
            Overlong::Truncate => token == self.window,
            Overlong::Split => token > 0 && token.is_multiple_of(self.window.max(1)),
            Overlong::Refuse | Overlong::Drop => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 10 tokens, of which those from 6 on are trained.
    fn document() -> Document {
        let weights = (0..10).map(|token| f32::from(u8::from(token >= 6))).collect();
        Document { tokens: (0..10).collect(), weights, ..Document::default() }
    }

    #[test]
    fn what_is_lost_is_what_a_run_leaves_out() {
        let cut = |how, window| {
            let cut = Cut::of(&document(), how, window)?;
            Some((cut.pieces, cut.left_out, cut.lost))
        };
        assert_eq!(cut(Overlong::Drop, 10), None);
        assert_eq!(cut(Overlong::Drop, 9), Some((0, 0, 4)));
        assert_eq!(cut(Overlong::Refuse, 9), Some((0, 0, 4)));
        assert_eq!(cut(Overlong::Truncate, 8), Some((1, 0, 2)));
        assert_eq!(cut(Overlong::Truncate, 4), Some((0, 1, 4)));
        // The first token of a piece follows from nothing and carries no loss.
        assert_eq!(cut(Overlong::Split, 4), Some((2, 1, 1)));
        assert_eq!(cut(Overlong::Split, 6), Some((1, 1, 1)));
    }
}
