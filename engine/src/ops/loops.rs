//! The loops of the shim (`engine/shim/elementwise.cpp`) and the kernels that do the same on
//! CUDA, as Rust calls them.
//!
//! Owns the unsafe calls, with all that makes them safe: shapes, dtypes, dense rows, room for
//! what is written. Does not own the graph; that is [`super::fused`].

#![expect(unsafe_code, reason = "loops and kernels over the elements of tensors")]

use std::ffi::c_void;
use std::ptr::{null, null_mut};

use heirloom::base::{Activation, NormKind};
use tch::{Device, Kind, Tensor};

use super::cuda::{self, Grid, Kernel, THREADS};
use super::rotary::Angles;
use super::{AdamWFactors, reference};
use crate::error::{EngineError, Result};

/// Whether loops or kernels take these tensors: all on one device that has some, all of one
/// dtype that they know.
pub(super) fn serve(tensors: &[&Tensor]) -> bool {
    let Some(first) = tensors.first() else { return false };
    let somebody = cuda::known(first.kind()) && cuda::by(first.device()).is_some();
    let alike = |t: &&Tensor| t.device() == first.device() && t.kind() == first.kind();
    somebody && tensors.iter().all(alike) && !reference::asked()
}

/// Does a job where its tensors lie, by the loop or by the kernel.
///
/// # Safety
///
/// See [`cuda::run`].
unsafe fn run<J>(
    like: &Tensor,
    job: &J,
    by_loop: unsafe extern "C" fn(*const J),
    kernel: Kernel,
    grid: Grid,
) -> Result<()> {
    // SAFETY: as the caller promises.
    unsafe {
        let by_loop = |job: &J| {
            by_loop(job);
            Ok(())
        };
        cuda::run(like, job, by_loop, kernel, like.kind(), grid)
    }
}

/// A tensor as rows whose elements lie side by side.
struct Rows {
    tensor: Tensor,
    /// Elements from one row to the next.
    stride: i64,
}

impl Rows {
    /// Copies only what does not lie so.
    fn of(tensor: &Tensor) -> Result<Self> {
        let (rows, width) = rows_and_width(tensor);
        let mut tensor = tensor.f_detach()?.f_reshape([rows, width])?;
        if width > 1 && tensor.stride2()?.1 != 1 {
            tensor = tensor.f_contiguous()?;
        }
        Ok(Self { stride: tensor.stride2()?.0, tensor })
    }

    fn start(&self) -> *const c_void {
        self.tensor.data_ptr()
    }
}

fn rows_and_width(tensor: &Tensor) -> (i64, i64) {
    let width = tensor.size().last().copied().unwrap_or(1);
    (tensor.numel() as i64 / width.max(1), width)
}

/// A dense gradient, of the shape and dtype that it must have.
fn gradient(given: &Tensor, like: &Tensor) -> Result<Tensor> {
    check(given.numel() == like.numel(), "a gradient has another shape than its tensor")?;
    Ok(given.f_to_kind(like.kind())?.f_contiguous()?)
}

/// Room that a loop or a kernel fills. In tests it begins as NaN, so that they see what it leaves out.
fn room(shape: &[i64], options: (Kind, Device)) -> Result<Tensor> {
    let mut room = Tensor::f_empty(shape, options)?;
    if cfg!(test) {
        let _ = room.f_fill_(f64::NAN)?;
    }
    Ok(room)
}

/// What the shim calls a dtype.
fn code(tensor: &Tensor) -> i32 {
    i32::from(tensor.kind() == Kind::BFloat16)
}

/// Tensors that do not fit each other: a defect of ours.
fn check(fits: bool, otherwise: &str) -> Result<()> {
    if fits { Ok(()) } else { Err(EngineError::Defect(otherwise.to_owned())) }
}

#[repr(C)]
struct RmsNormJob {
    kind: i32,
    round_first: i32,
    rows: i64,
    width: i64,
    x_stride: i64,
    branch_stride: i64,
    eps: f32,
    x: *const c_void,
    branch: *const c_void,
    sum: *mut c_void,
    weight: *const c_void,
    scales: *mut c_void,
    y: *mut c_void,
    y_gradient: *const c_void,
    x_gradient: *const c_void,
    result: *mut c_void,
    weight_gradient: *mut c_void,
}

#[repr(C)]
struct RotationJob {
    kind: i32,
    from_pairs: i32,
    to_pairs: i32,
    sign: f32,
    rows: i64,
    heads: i64,
    width: i64,
    half: i64,
    row_stride: i64,
    head_stride: i64,
    x: *const c_void,
    cos: *const c_void,
    sin: *const c_void,
    y: *mut c_void,
}

#[repr(C)]
struct GatedJob {
    kind: i32,
    activation: i32,
    rows: i64,
    width: i64,
    gate_stride: i64,
    up_stride: i64,
    gate: *const c_void,
    up: *const c_void,
    y: *mut c_void,
    y_gradient: *const c_void,
    gate_gradient: *mut c_void,
    up_gradient: *mut c_void,
}

#[repr(C)]
struct AdamWJob {
    count: i64,
    weights: *mut c_void,
    mean: *mut c_void,
    square: *mut c_void,
    gradient: *const c_void,
    factors: AdamWFactors,
}

unsafe extern "C" {
    fn heirloom_rms_norm(job: *const RmsNormJob);
    fn heirloom_rms_norm_backward(job: *const RmsNormJob);
    fn heirloom_rotate(job: *const RotationJob);
    fn heirloom_gated(job: *const GatedJob);
    fn heirloom_gated_backward(job: *const GatedJob);
    fn heirloom_adamw(job: *const AdamWJob);
}

/// A root-mean-square norm that was computed: what its backward pass needs.
pub(super) struct RmsNorm {
    /// What was normed.
    x: Rows,
    /// f32, as it is applied.
    weight: Tensor,
    /// For each row 1 / √(mean(x²) + ε), f32.
    scales: Tensor,
    /// Whether x̂ is rounded before the weight is applied.
    round_first: bool,
}

impl RmsNorm {
    /// The norm of `x`, or of its sum with `branch`; with the sum.
    pub(super) fn forward(
        x: &Tensor,
        branch: Option<&Tensor>,
        weight: &Tensor,
        eps: f64,
        kind: NormKind,
    ) -> Result<(Self, Option<Tensor>, Tensor)> {
        let shape = x.size();
        let (rows, width) = rows_and_width(x);
        check(weight.numel() as i64 == width, "a norm is as wide as its weight")?;
        check(weight.device() == x.device(), "a norm lies where its weight does")?;
        let same = branch.is_none_or(|branch| branch.size() == shape);
        check(same, "a residual has the shape of its branch")?;
        let weight = match kind {
            // Rounded to the dtype of the computation, as there.
            NormKind::WeightAfterRounding => weight.f_to_kind(x.kind())?.f_to_kind(Kind::Float)?,
            NormKind::WeightBeforeRounding => weight.f_to_kind(Kind::Float)?,
            NormKind::OnePlusWeight => weight.f_to_kind(Kind::Float)?.f_add_scalar(1.0)?,
        };
        let options = (x.kind(), x.device());
        let y = room(&shape, options)?;
        let sum = branch.map(|_| room(&shape, options)).transpose()?;
        let branch = branch.map(Rows::of).transpose()?;
        let mut norm = Self {
            x: Rows::of(x)?,
            weight: weight.f_detach()?.f_contiguous()?,
            scales: room(&[rows], (Kind::Float, x.device()))?,
            round_first: kind == NormKind::WeightAfterRounding,
        };
        let job = RmsNormJob {
            eps: eps as f32,
            branch: branch.as_ref().map_or(null(), Rows::start),
            branch_stride: branch.as_ref().map_or(0, |branch| branch.stride),
            sum: sum.as_ref().map_or(null_mut(), Tensor::data_ptr),
            y: y.data_ptr(),
            ..norm.job()
        };
        // SAFETY: all tensors live on; they are f32 or of the job's dtype, have as many rows as
        // it says, dense where no stride is said, and nothing else writes into the new ones.
        unsafe {
            run(x, &job, heirloom_rms_norm, cuda::RMS_NORM, Grid::rows(rows, width, THREADS))?;
        }
        if let Some(sum) = &sum {
            norm.x = Rows::of(sum)?;
        }
        Ok((norm, sum, y))
    }

    /// The gradient of what was normed, from that of the result; `more` is added to it.
    pub(super) fn backward(&self, y: &Tensor, more: Option<&Tensor>) -> Result<Tensor> {
        let x = &self.x.tensor;
        let result = room(&y.size(), (x.kind(), x.device()))?;
        let y = gradient(y, x)?;
        let more = more.map(|more| gradient(more, x)).transpose()?;
        let job = RmsNormJob {
            y_gradient: y.data_ptr(),
            x_gradient: more.as_ref().map_or(null(), |more| more.data_ptr().cast_const()),
            result: result.data_ptr(),
            ..self.job()
        };
        // SAFETY: as in `forward`.
        unsafe {
            let (kernel, grid) =
                (cuda::RMS_NORM_BACKWARD, Grid::rows(job.rows, job.width, THREADS));
            run(x, &job, heirloom_rms_norm_backward, kernel, grid)?;
        }
        Ok(result)
    }

    /// The gradient of the weight.
    pub(super) fn weight_backward(&self, y: &Tensor, kind: Kind) -> Result<Tensor> {
        let x = &self.x.tensor;
        let result = room(&self.weight.size(), (Kind::Float, x.device()))?;
        let y = gradient(y, x)?;
        let job = RmsNormJob {
            y_gradient: y.data_ptr(),
            weight_gradient: result.data_ptr(),
            ..self.job()
        };
        // SAFETY: as in `forward`.
        unsafe {
            let (kernel, grid) = (cuda::RMS_NORM_WEIGHT, Grid::columns(job.width));
            run(x, &job, heirloom_rms_norm_backward, kernel, grid)?;
        }
        Ok(result.f_to_kind(kind)?)
    }

    fn job(&self) -> RmsNormJob {
        let (rows, width) = rows_and_width(&self.x.tensor);
        RmsNormJob {
            kind: code(&self.x.tensor),
            round_first: i32::from(self.round_first),
            rows,
            width,
            x_stride: self.x.stride,
            branch_stride: 0,
            eps: 0.0,
            x: self.x.start(),
            branch: null(),
            sum: null_mut(),
            weight: self.weight.data_ptr(),
            scales: self.scales.data_ptr(),
            y: null_mut(),
            y_gradient: null(),
            x_gradient: null(),
            result: null_mut(),
            weight_gradient: null_mut(),
        }
    }
}

/// Whether the loop takes these angles for `x`, which it takes by itself.
pub(super) fn fit(x: &Tensor, angles: &Angles) -> bool {
    let (Ok((rows, _, width)), Ok((n, 1, half))) = (x.size3(), angles.cos.size3()) else {
        return false;
    };
    rows == n && 2 * half <= width && angles.sin.size() == angles.cos.size()
}

/// Turns `x` (`[n, heads, d]`) by its angles, or back, from pairs side by side or halves to
/// either.
pub(super) fn rotate(x: &Tensor, angles: &Angles, back: bool, pairs: [bool; 2]) -> Result<Tensor> {
    check(fit(x, angles), "a rotary embedding has angles for every row")?;
    let beside = [&angles.cos, &angles.sin].iter().all(|table| table.device() == x.device());
    check(beside, "a rotary embedding lies where its angles do")?;
    let (rows, heads, width) = x.size3()?;
    let y = room(&x.size(), (x.kind(), x.device()))?;
    let mut x = x.f_detach()?;
    if width > 1 && x.stride3()?.2 != 1 {
        x = x.f_contiguous()?;
    }
    let wide = |table: &Tensor| table.f_detach()?.f_to_kind(Kind::Float)?.f_contiguous();
    let (cos, sin) = (wide(&angles.cos)?, wide(&angles.sin)?);
    let (row_stride, head_stride, _) = x.stride3()?;
    let job = RotationJob {
        kind: code(&x),
        from_pairs: i32::from(pairs[0]),
        to_pairs: i32::from(pairs[1]),
        sign: if back { -1.0 } else { 1.0 },
        rows,
        heads,
        width,
        half: cos.size3()?.2,
        row_stride,
        head_stride,
        x: x.data_ptr(),
        cos: cos.data_ptr(),
        sin: sin.data_ptr(),
        y: y.data_ptr(),
    };
    // SAFETY: all tensors live on; shapes were checked, the angles are f32 and dense, and
    // nothing else writes into the new one.
    unsafe {
        let grid = Grid::rows(rows, heads * width, THREADS);
        run(&x, &job, heirloom_rotate, cuda::ROTATE, grid)?;
    }
    Ok(y)
}

/// A gated unit that was computed: what its backward pass needs.
pub(super) struct Gated {
    gate: Rows,
    up: Rows,
    activation: Activation,
}

impl Gated {
    /// `activation(gate) · up`.
    pub(super) fn forward(
        gate: &Tensor,
        up: &Tensor,
        activation: Activation,
    ) -> Result<(Self, Tensor)> {
        let shape = gate.size();
        check(up.size() == shape, "a gate has the shape of what it gates")?;
        let y = room(&shape, (gate.kind(), gate.device()))?;
        let gated = Self { gate: Rows::of(gate)?, up: Rows::of(up)?, activation };
        let job = GatedJob { y: y.data_ptr(), ..gated.job() };
        // SAFETY: all tensors live on; they have the job's dtype and shape, the new one is
        // dense, and nothing else writes into it.
        unsafe {
            let grid = Grid::rows(job.rows, job.width, THREADS);
            run(gate, &job, heirloom_gated, cuda::GATED, grid)?;
        }
        Ok((gated, y))
    }

    /// The gradients of the gate and of what it gates.
    pub(super) fn backward(&self, y: &Tensor) -> Result<[Tensor; 2]> {
        let gate = &self.gate.tensor;
        let options = (gate.kind(), gate.device());
        let results = [room(&y.size(), options)?, room(&y.size(), options)?];
        let y = gradient(y, gate)?;
        let job = GatedJob {
            y_gradient: y.data_ptr(),
            gate_gradient: results[0].data_ptr(),
            up_gradient: results[1].data_ptr(),
            ..self.job()
        };
        // SAFETY: as in `forward`.
        unsafe {
            let (kernel, grid) = (cuda::GATED_BACKWARD, Grid::rows(job.rows, job.width, THREADS));
            run(gate, &job, heirloom_gated_backward, kernel, grid)?;
        }
        Ok(results)
    }

    fn job(&self) -> GatedJob {
        let (rows, width) = rows_and_width(&self.gate.tensor);
        GatedJob {
            kind: code(&self.gate.tensor),
            activation: match self.activation {
                Activation::Silu => 0,
                Activation::Gelu => 1,
                Activation::GeluTanh => 2,
            },
            rows,
            width,
            gate_stride: self.gate.stride,
            up_stride: self.up.stride,
            gate: self.gate.start(),
            up: self.up.start(),
            y: null_mut(),
            y_gradient: null(),
            gate_gradient: null_mut(),
            up_gradient: null_mut(),
        }
    }
}

/// See [`super::adamw`]; only the gradient is not changed.
pub(super) fn adamw(
    [weights, mean, square]: [&mut Tensor; 3],
    gradient: &Tensor,
    factors: AdamWFactors,
) -> Result<()> {
    let tensors = [&*weights, &*mean, &*square, gradient];
    let dense = |t: &&Tensor| t.kind() == Kind::Float && t.is_contiguous();
    let alike = tensors.iter().all(|t| t.numel() == gradient.numel());
    check(alike && tensors.iter().all(dense), "an optimiser's state is laid out as its weights")?;
    let job = AdamWJob {
        count: gradient.numel() as i64,
        weights: weights.data_ptr(),
        mean: mean.data_ptr(),
        square: square.data_ptr(),
        gradient: gradient.data_ptr(),
        factors,
    };
    // SAFETY: the tensors live on, are dense f32 of as many elements, and are ours to change.
    unsafe { run(gradient, &job, heirloom_adamw, cuda::ADAMW, Grid::elements(job.count))? };
    Ok(())
}
