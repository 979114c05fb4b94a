//! Decoding with a cache of keys and values: many sequences that grow token by token.

use tch::{Kind, Tensor};

use super::block::Mode;
use super::decoder::Decoder;
use crate::error::{EngineError, Result};
use crate::ops::Layout;
use crate::ops::attention;
use crate::ops::rotary::{Angles, Rotary};

/// Keys and values of a batch of sequences.
///
/// Row `b` has `lengths[b]` tokens; its keys lie at `0..lengths[b]` of its row.
#[derive(Debug)]
pub struct Cache {
    /// Per block, `[rows, kv_heads, capacity, d]`.
    keys: Vec<Tensor>,
    /// Per block, `[rows, kv_heads, capacity, e]`.
    values: Vec<Tensor>,
    lengths: Vec<i64>,
    capacity: i64,
    /// The tokens of every row, where the model may have to compute them anew.
    history: Option<Vec<Vec<i64>>>,
}

impl Cache {
    /// Tokens in each row.
    pub fn lengths(&self) -> &[i64] {
        &self.lengths
    }

    /// Keeps these rows, in this order, and forgets the others.
    pub fn keep(&mut self, rows: &[i64]) -> Result<()> {
        let device = self.keys.first().map_or(tch::Device::Cpu, Tensor::device);
        let index = Tensor::f_from_slice(rows)?.f_to(device)?;
        for tensor in self.keys.iter_mut().chain(&mut self.values) {
            *tensor = tensor.f_index_select(0, &index)?;
        }
        self.lengths =
            rows.iter().filter_map(|row| self.lengths.get(*row as usize).copied()).collect();
        if let Some(history) = &mut self.history {
            *history = rows.iter().filter_map(|row| history.get(*row as usize).cloned()).collect();
        }
        Ok(())
    }

    /// Makes room for rows of `tokens` tokens, at least doubling what there is.
    fn reserve(&mut self, tokens: i64) -> Result<()> {
        if tokens <= self.capacity {
            return Ok(());
        }
        let more = tokens.max(2 * self.capacity) - self.capacity;
        for tensor in self.keys.iter_mut().chain(&mut self.values) {
            *tensor = tensor.f_constant_pad_nd([0, 0, 0, more])?;
        }
        self.capacity += more;
        Ok(())
    }
}

impl Decoder {
    /// Runs prompts of these lengths, laid end to end in `tokens`, and keeps their keys
    /// and values with room for `extra` more tokens each.
    ///
    /// Gives the hidden state of each prompt's last token, `[rows, hidden_size]`.
    pub fn prefill(
        &self,
        tokens: &Tensor,
        lengths: &[u32],
        extra: usize,
    ) -> Result<(Tensor, Cache)> {
        let layout = Layout::new(lengths, tokens.device())?;
        layout.check_length(extra, self.architecture.max_position_embeddings)?;
        let angles = self.angles_of(&layout)?;
        let ends: Vec<i64> = layout
            .lengths
            .iter()
            .scan(0, |end, length| {
                *end += length;
                Some(*end)
            })
            .collect();
        let capacity = layout.longest as i64 + extra as i64;
        // For every cached row the packed row it comes from; beyond a prompt, its first.
        let gather: Vec<i64> = ends
            .iter()
            .zip(&layout.lengths)
            .flat_map(|(end, length)| {
                let start = end - length;
                (0..capacity).map(move |row| start + if row < *length { row } else { 0 })
            })
            .collect();
        let gather = Tensor::f_from_slice(&gather)?.f_to(tokens.device())?;
        let rows = lengths.len() as i64;
        let spread = |x: &Tensor| -> Result<Tensor> {
            let (_, heads, width) = x.size3()?;
            let padded = x.f_index_select(0, &gather)?.f_view([rows, capacity, heads, width])?;
            Ok(padded.f_transpose(1, 2)?.f_contiguous()?)
        };
        let (mut keys, mut values) = (Vec::new(), Vec::new());
        let mut x = self.embed(tokens)?;
        for block in &self.blocks {
            x = block.forward(&x, &angles, Mode::default(), |q, k, v, scores| {
                keys.push(spread(&k)?);
                values.push(spread(&v)?);
                attention::packed(&q, &k, &v, &layout, scores, false)
            })?;
        }
        let last: Vec<i64> = ends.iter().map(|end| end - 1).collect();
        let last = Tensor::f_from_slice(&last)?.f_to(tokens.device())?;
        let hidden = self.final_norm(&x.f_index_select(0, &last)?)?;
        let history = if self.may_restart() {
            let ids = Vec::<i64>::try_from(tokens)?;
            let row =
                |(end, length): (&i64, &i64)| ids[(end - length) as usize..*end as usize].to_vec();
            Some(ends.iter().zip(&layout.lengths).map(row).collect())
        } else {
            None
        };
        Ok((hidden, Cache { keys, values, lengths: layout.lengths, capacity, history }))
    }

    /// Appends one token to every row (`tokens` is `[rows]`, i64) and gives its hidden
    /// state, `[rows, hidden_size]`.
    pub fn decode(&self, tokens: &Tensor, cache: &mut Cache) -> Result<Tensor> {
        self.extend(tokens, cache)
    }

    /// Appends as many tokens to every row (`tokens` is `[rows * m]`, i64, row by row) and
    /// gives the hidden state of the last ones, `[rows, hidden_size]`.
    ///
    /// New keys are rotated for the length that the row has then and cached ones stay as they
    /// are, as with Transformers' cache. Phi-3 alone is computed anew, there and here, when a
    /// row grows beyond the length where the factors of LongRoPE change.
    pub fn extend(&self, tokens: &Tensor, cache: &mut Cache) -> Result<Tensor> {
        let (rows, device) = (cache.lengths.len() as i64, tokens.device());
        let new = tokens.numel() as i64 / rows.max(1);
        let used = cache.lengths.iter().max().copied().unwrap_or(0) + new;
        let limit = self.architecture.max_position_embeddings;
        if used as usize > limit {
            let (tokens, extra) = (used as usize, new as usize);
            return Err(EngineError::TooLong { tokens, extra, limit });
        }
        if let Some(restarted) = self.restart(tokens, new, cache)? {
            return Ok(restarted);
        }
        cache.reserve(used)?;
        let positions: Vec<i64> =
            cache.lengths.iter().flat_map(|length| *length..length + new).collect();
        let positions = Tensor::f_from_slice(&positions)?.f_to(device)?;
        let angles = self.angles_at(&positions, cache, new)?;
        // A new token sees the keys up to its own position: `[rows, 1, new, used]`.
        let columns = Tensor::f_arange(used, (Kind::Int64, device))?.f_unsqueeze(0)?;
        let column = positions.f_unsqueeze(1)?;
        let shape = [rows, 1, new, used];
        let causal = columns.f_le_tensor(&column)?;
        let row_index = Tensor::f_arange(rows, (Kind::Int64, device))?;
        let row_index = row_index.f_repeat_interleave_self_int(new, None, None)?;
        let mut x = self.embed(tokens)?;
        for (layer, block) in self.blocks.iter().enumerate() {
            let (keys, values) = (&mut cache.keys[layer], &mut cache.values[layer]);
            x = block.forward(&x, &angles, Mode::default(), |q, k, v, scores| {
                let place = [Some(&row_index), None, Some(&positions)];
                let _ = keys.f_index_put_(&place, &k, false)?;
                let _ = values.f_index_put_(&place, &v, false)?;
                let visible = match scores.window {
                    Some(window) if window < used => causal
                        .f_logical_and(&columns.f_gt_tensor(&column.f_sub_scalar(window)?)?)?,
                    _ => causal.shallow_clone(),
                };
                let (_, heads, width) = q.size3()?;
                let q = q.f_view([rows, new, heads, width])?.f_transpose(1, 2)?;
                let (k, v) = (keys.f_narrow(2, 0, used)?, values.f_narrow(2, 0, used)?);
                attention::cached(&q, &k, &v, &visible.f_view(shape)?, scores)
            })?;
        }
        for length in &mut cache.lengths {
            *length += new;
        }
        let last = x.f_view([rows, new, -1])?.f_select(1, new - 1)?;
        self.final_norm(&last)
    }

    /// Whether rows may have to be computed anew, so that their tokens are kept.
    fn may_restart(&self) -> bool {
        self.architecture.model_type == "phi3"
            && self.ropes.iter().any(|rope| rope.changes(0, i64::MAX))
    }

    /// Appends tokens by computing all rows anew, where that is needed.
    fn restart(&self, tokens: &Tensor, new: i64, cache: &mut Cache) -> Result<Option<Tensor>> {
        let Some(history) = &mut cache.history else { return Ok(None) };
        let ids = Vec::<i64>::try_from(tokens)?;
        for (row, ids) in history.iter_mut().zip(ids.chunks(new.max(1) as usize)) {
            row.extend_from_slice(ids);
        }
        let grows = |length: &i64| self.ropes.iter().any(|r| r.changes(*length, length + new));
        if !cache.lengths.iter().any(grows) {
            return Ok(None);
        }
        let lengths: Vec<u32> = history.iter().map(|row| row.len() as u32).collect();
        let room =
            cache.capacity as usize - (cache.lengths.iter().max().copied().unwrap_or(0)) as usize;
        let all = Tensor::f_from_slice(&history.concat())?.f_to(tokens.device())?;
        let (hidden, fresh) = self.prefill(&all, &lengths, room.saturating_sub(new as usize))?;
        *cache = fresh;
        Ok(Some(hidden))
    }

    fn angles_at(&self, positions: &Tensor, cache: &Cache, new: i64) -> Result<Vec<Angles>> {
        let lengths = cache.lengths.iter().map(|length| length + new);
        let rows = cache.lengths.iter().map(|_| new);
        let of = |rope: &Rotary| rope.angles(positions, lengths.clone(), rows.clone(), self.kind);
        self.ropes.iter().map(of).collect()
    }
}
