//! Where the documents of a micro-batch lie, computed once and shared by every layer.
//!
//! Documents are laid end to end without padding, so that no linear layer pays for
//! padding. Attention in libtorch's calls alone needs documents as a batch: they are grouped by
//! length, each group padded to its longest document.

use std::sync::Arc;

use tch::{Device, Kind, Tensor};

use crate::error::{EngineError, Result};

/// A document joins a group while the group's longest is at most this much longer.
///
/// 1.25 costs at most a quarter of padded attention and keeps the number of attention
/// calls a layer to about ten for lengths between 32 and 512.
const MAX_STRETCH: f64 = 1.25;

/// The shape of one micro-batch.
#[derive(Debug)]
pub struct Layout {
    /// Documents that attend together.
    pub groups: Vec<Group>,
    /// For every packed row, its row in the concatenation of the groups' outputs, `[n]`
    /// i64; `None` when that is the packed order already.
    pub scatter: Option<Tensor>,
    /// Position of every row within its document, `[n]` i64.
    pub positions: Tensor,
    /// Rows of every document, in packed order.
    pub lengths: Vec<i64>,
    /// First row of every document, and the end of the last.
    pub starts: Arc<[i64]>,
    /// The same on a device of CUDA, `[documents + 1]` i32, for its kernels; `None` elsewhere.
    pub offsets: Option<Tensor>,
    /// Longest document.
    pub longest: usize,
}

/// Documents of similar length, padded to the longest.
#[derive(Debug)]
pub struct Group {
    /// How many.
    pub documents: i64,
    /// Rows of each, padding included.
    pub length: i64,
    /// Packed row of every padded row, `[documents * length]` i64; padding repeats the
    /// document's first row. `None` when the packed rows are the padded ones already.
    pub gather: Option<Tensor>,
}

impl Layout {
    /// Lays out documents of these lengths.
    pub fn new(lengths: &[u32], device: Device) -> Result<Self> {
        let lengths: Vec<usize> = lengths.iter().map(|length| *length as usize).collect();
        let mut starts = Vec::with_capacity(lengths.len());
        let mut rows = 0;
        for length in &lengths {
            starts.push(rows);
            rows += length;
        }
        let positions: Vec<i64> = lengths.iter().flat_map(|length| 0..*length as i64).collect();
        let positions = Tensor::f_from_slice(&positions)?.f_to(device)?;
        let bounds = starts.iter().copied().chain([rows]);
        let bounds: Arc<[i64]> = bounds.map(|row| row as i64).collect();
        let offsets = device.is_cuda().then(|| on_device(&bounds, device)).transpose()?;
        let longest = lengths.iter().copied().max().unwrap_or(0);
        let counts = lengths.iter().map(|length| *length as i64).collect();
        if lengths.iter().all(|length| *length == longest) {
            let (documents, length) = (lengths.len() as i64, longest as i64);
            let groups = vec![Group { documents, length, gather: None }];
            let (scatter, starts, lengths) = (None, bounds, counts);
            return Ok(Self { groups, scatter, positions, lengths, starts, offsets, longest });
        }
        let mut order: Vec<usize> = (0..lengths.len()).collect();
        order.sort_by_key(|document| (std::cmp::Reverse(lengths[*document]), *document));
        let mut scatter = vec![0i64; rows];
        let mut groups = Vec::new();
        let mut padded_rows = 0;
        for members in order
            .chunk_by(|first, next| stretch_class(lengths[*first]) == stretch_class(lengths[*next]))
        {
            let length = lengths[members[0]];
            let mut gather = Vec::with_capacity(members.len() * length);
            for document in members {
                let start = starts[*document];
                for row in 0..length {
                    let real = row < lengths[*document];
                    gather.push((start + if real { row } else { 0 }) as i64);
                    if real {
                        scatter[start + row] = padded_rows;
                    }
                    padded_rows += 1;
                }
            }
            groups.push(Group {
                documents: members.len() as i64,
                length: length as i64,
                gather: Some(Tensor::f_from_slice(&gather)?.f_to(device)?),
            });
        }
        let scatter = Some(Tensor::f_from_slice(&scatter)?.f_to(device)?);
        let (lengths, starts) = (counts, bounds);
        Ok(Self { groups, scatter, positions, lengths, starts, offsets, longest })
    }

    /// The same layout under another owner.
    #[must_use]
    pub fn share(&self) -> Self {
        let share = |tensor: &Option<Tensor>| tensor.as_ref().map(Tensor::shallow_clone);
        let groups = self.groups.iter();
        let group = |group: &Group| Group { gather: share(&group.gather), ..*group };
        Self {
            groups: groups.map(group).collect(),
            scatter: share(&self.scatter),
            positions: self.positions.shallow_clone(),
            offsets: share(&self.offsets),
            lengths: self.lengths.clone(),
            starts: Arc::clone(&self.starts),
            longest: self.longest,
        }
    }

    /// Refuses documents that are longer than `limit` with `extra` more tokens.
    pub fn check_length(&self, extra: usize, limit: usize) -> Result<()> {
        let tokens = self.longest.saturating_add(extra);
        if tokens > limit {
            return Err(EngineError::TooLong { tokens, extra, limit });
        }
        Ok(())
    }
}

/// Offsets as kernels take them.
fn on_device(starts: &[i64], device: Device) -> Result<Tensor> {
    Ok(Tensor::f_from_slice(starts)?.f_to_kind(Kind::Int)?.f_to(device)?)
}

/// Lengths of one class differ by at most [`MAX_STRETCH`].
fn stretch_class(length: usize) -> i64 {
    ((length.max(1) as f64).ln() / MAX_STRETCH.ln()).floor() as i64
}
