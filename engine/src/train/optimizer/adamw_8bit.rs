//! AdamW with both running means in blocks of eight bits.
//!
//! Reference: `bitsandbytes.optim.AdamW8bit` (`optimizer_update_8bit_blockwise`): blocks of 256,
//! each weight beginning with one; a dynamic map with a sign for the mean, one without for the
//! square (`create_dynamic_map`); small tensors and the embedding in 32 bits.

use heirloom::recipe::Adamw;
use tch::{Device, Kind, Tensor};

use super::adamw::{self, AdamW};
use super::{Algorithm, Time};
use crate::error::Result;
use crate::ops::optimizers::{BLOCK, Blocks, adamw_8bit};
use crate::train::parameters::Parameters;

/// AdamW in eight bits over the weights that are not left, in 32 over those that are.
#[derive(Debug)]
pub(super) struct AdamW8bit {
    settings: Adamw,
    mean: Blocks,
    square: Blocks,
    maps: [Tensor; 2],
    left: AdamW,
}

impl AdamW8bit {
    pub(super) fn new(settings: Adamw, parameters: &Parameters) -> Result<Self> {
        let (own, device) = (parameters.own(), parameters.flat.device());
        // Codes of nothing with scales of nothing, as there.
        let zeros = || -> Result<Blocks> {
            Ok(Blocks {
                codes: Tensor::f_zeros([own], (Kind::Uint8, device))?,
                absmax: Tensor::f_zeros([own / BLOCK], (Kind::Float, device))?,
            })
        };
        let left = AdamW::new(settings.clone(), own, parameters)?;
        let maps = [map(true)?.f_to(device)?, map(false)?.f_to(device)?];
        Ok(Self { settings, mean: zeros()?, square: zeros()?, maps, left })
    }
}

impl Algorithm for AdamW8bit {
    fn update(&mut self, parameters: &mut Parameters, gradient: &Tensor, time: Time) -> Result<()> {
        for segment in parameters.segments.iter().filter(|segment| !segment.group.left) {
            let part = |blocks: &Blocks| -> Result<Blocks> {
                let (start, end) = (segment.elements.start / BLOCK, segment.elements.end / BLOCK);
                let absmax = blocks.absmax.f_narrow(0, start, end - start)?;
                Ok(Blocks { codes: segment.of(&blocks.codes)?, absmax })
            };
            let (mut mean, mut square) = (part(&self.mean)?, part(&self.square)?);
            let factors = adamw::factors(&self.settings, segment, time);
            let mut weights = segment.of(&parameters.flat)?;
            let maps = [&self.maps[0], &self.maps[1]];
            let state = [&mut mean, &mut square];
            adamw_8bit(&mut weights, state, maps, &segment.of(gradient)?, factors)?;
        }
        self.left.update(parameters, gradient, time)
    }

    fn state(&self) -> Vec<(&'static str, Tensor)> {
        let mut state = vec![
            ("mean_absmax", self.mean.absmax.shallow_clone()),
            ("mean_codes", self.mean.codes.shallow_clone()),
            ("square_absmax", self.square.absmax.shallow_clone()),
            ("square_codes", self.square.codes.shallow_clone()),
        ];
        state.extend(self.left.state());
        state
    }
}

/// What codes of eight bits stand for, ascending, as bitsandbytes' `create_dynamic_map`: of each
/// power of ten from 10⁻⁶ on twice as many numbers as of the one before, and 0 and 1.
fn map(signed: bool) -> Result<Tensor> {
    const POWERS: [f64; 7] = [1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0];
    let mut parts = vec![Tensor::f_from_slice(&[0.0f32, 1.0])?];
    for (place, power) in POWERS.into_iter().enumerate() {
        let count = (if signed { 1 } else { 2 }) << place;
        let bounds = Tensor::f_linspace(0.1, 1.0, count + 1, (Kind::Float, Device::Cpu))?;
        let both = bounds.f_narrow(0, 0, count)?.f_add(&bounds.f_narrow(0, 1, count)?)?;
        let numbers = both.f_div_scalar(2.0)?.f_mul_scalar(power)?;
        if signed {
            parts.push(numbers.f_neg()?);
        }
        parts.push(numbers);
    }
    Ok(Tensor::f_cat(&parts, 0)?.f_sort(0, false)?.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_have_256_numbers_each_once() {
        for (signed, least) in [(true, -0.993), (false, 0.0)] {
            let map = Vec::<f32>::try_from(map(signed).unwrap()).unwrap();
            assert_eq!(map.len(), 256);
            assert!(map.windows(2).all(|pair| pair[0] < pair[1]), "{map:?}");
            assert!((f64::from(map[0]) - least).abs() < 1e-3 && map[255] == 1.0, "{map:?}");
        }
    }
}
