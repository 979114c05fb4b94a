//! Feed-forward modules: gated units and mixtures of experts.

use heirloom::base::{self, Activation, ExpertWeights, GateUp, Router};
use tch::{Kind, Tensor};

use super::block::Mode;
use super::expert_update::{AdaptedExpert, ExpertParameter, Updates};
use super::linear::Linear;
use super::parts::{Rows, Tensors};
use super::weight::Weight;
use crate::error::Result;
use crate::ops::profile::scope;
use crate::ops::{self, experts};

/// Either kind.
#[derive(Debug)]
pub(super) enum FeedForward {
    /// A gated unit.
    Gated(Gated),
    /// A mixture of experts.
    Experts(Box<Experts>),
}

/// `down(activation(gate(x)) · up(x))`.
#[derive(Debug)]
pub(super) struct Gated {
    /// Gate and up, or one layer that gives both.
    gate_up: Vec<Linear>,
    down: Linear,
    activation: Activation,
}

/// A router, its experts, and what every token passes through beside them.
#[derive(Debug)]
pub(super) struct Experts {
    router: Router,
    weight: Tensor,
    bias: Option<Tensor>,
    correction: Option<Tensor>,
    answers: Answers,
    /// `gate_up_proj` and `down_proj` of all experts, for adapters.
    parameters: [ExpertParameter; 2],
    shared: Option<Gated>,
}

#[derive(Debug)]
enum Answers {
    /// Gate, up and down of every expert, `[out, in]`.
    Each { weights: Vec<[Weight; 3]>, activation: Activation },
    /// One tensor each for all experts, see `base::ExpertWeights::Stacked`.
    Stacked {
        gate_up: Tensor,
        gate_up_bias: Tensor,
        down: Tensor,
        down_bias: Tensor,
        alpha: f64,
        limit: f64,
    },
}

impl FeedForward {
    /// Takes the tensors of `feed_forward`.
    pub(super) fn build(feed_forward: &base::FeedForward, tensors: &mut Tensors) -> Result<Self> {
        match feed_forward {
            base::FeedForward::Gated(gated) => Ok(Self::Gated(Gated::build(gated, tensors)?)),
            base::FeedForward::Experts(experts) => {
                Ok(Self::Experts(Box::new(Experts::build(experts, tensors)?)))
            }
        }
    }

    /// Over rows `[n, hidden]`.
    pub(super) fn forward(&self, x: &Rows<'_>, mode: Mode) -> Result<Tensor> {
        let _scope = scope("feed-forward projections");
        match self {
            Self::Gated(gated) => gated.forward(x, mode),
            Self::Experts(experts) => experts.forward(x, mode),
        }
    }

    /// The linear layers, in the order of `Layer::linears`.
    pub(super) fn linears(&self) -> Vec<&Linear> {
        let gated = match self {
            Self::Gated(gated) => Some(gated),
            Self::Experts(experts) => experts.shared.as_ref(),
        };
        gated.map_or_else(Vec::new, |gated| gated.gate_up.iter().chain([&gated.down]).collect())
    }

    /// What an adapter can change, to be changed: linear layers, and the weights of routed
    /// experts.
    pub(super) fn adaptable_mut(
        &mut self,
    ) -> (Vec<&mut Linear>, Option<&mut [ExpertParameter; 2]>) {
        let (gated, parameters) = match self {
            Self::Gated(gated) => (Some(gated), None),
            Self::Experts(experts) => (experts.shared.as_mut(), Some(&mut experts.parameters)),
        };
        let linears = gated.map_or_else(Vec::new, |gated| {
            gated.gate_up.iter_mut().chain([&mut gated.down]).collect()
        });
        (linears, parameters)
    }

    /// The routed experts, if there are any.
    pub(super) fn experts(&self) -> Option<&Experts> {
        match self {
            Self::Gated(_) => None,
            Self::Experts(experts) => Some(experts),
        }
    }
}

impl Gated {
    fn build(gated: &base::Gated, tensors: &mut Tensors) -> Result<Self> {
        let first = match &gated.gate_up {
            GateUp::Separate(each) => each.as_slice(),
            GateUp::Fused(both) => std::slice::from_ref(both),
        };
        Ok(Self {
            gate_up: first.iter().map(|linear| tensors.linear(linear)).collect::<Result<_>>()?,
            down: tensors.linear(&gated.down)?,
            activation: gated.activation,
        })
    }

    fn forward(&self, x: &Rows<'_>, mode: Mode) -> Result<Tensor> {
        let Mode { train, again } = mode;
        let [gate, up] = match self.gate_up.as_slice() {
            [gate, up] => Linear::forward_all([gate, up], x, train)?,
            both => {
                let outputs = both
                    .iter()
                    .map(|linear| linear.forward_rows(x, train))
                    .collect::<Result<Vec<_>>>()?;
                let both = Tensor::f_cat(&outputs, -1)?;
                let half = both.size2()?.1 / 2;
                [both.f_narrow(-1, 0, half)?, both.f_narrow(-1, half, half)?]
            }
        };
        let inner = Rows::gated(&gate, &up, self.activation, again)?;
        self.down.forward_rows(&inner, train)
    }
}

impl Experts {
    fn build(experts: &base::Experts, tensors: &mut Tensors) -> Result<Self> {
        let base::Experts { router, experts, shared } = experts;
        let parameters = experts.parameters().map(ExpertParameter::new);
        let answers = match experts {
            ExpertWeights::Each { experts, activation, .. } => Answers::Each {
                weights: experts
                    .iter()
                    .map(|[gate, up, down]| {
                        Ok([tensors.weight(gate)?, tensors.weight(up)?, tensors.weight(down)?])
                    })
                    .collect::<Result<_>>()?,
                activation: *activation,
            },
            ExpertWeights::Stacked { name, alpha, limit, .. } => {
                let mut part = |part: &str| tensors.take(&format!("{name}.{part}"));
                Answers::Stacked {
                    gate_up: part("gate_up_proj")?,
                    gate_up_bias: part("gate_up_proj_bias")?,
                    down: part("down_proj")?,
                    down_bias: part("down_proj_bias")?,
                    alpha: *alpha,
                    limit: *limit,
                }
            }
        };
        let mut maybe =
            |name: &Option<String>| name.as_ref().map(|name| tensors.take(name)).transpose();
        Ok(Self {
            bias: maybe(&router.bias)?,
            correction: maybe(&router.correction_bias)?,
            weight: tensors.take(&router.weight)?,
            router: router.clone(),
            answers,
            parameters,
            shared: shared.as_ref().map(|shared| Gated::build(shared, tensors)).transpose()?,
        })
    }

    fn forward(&self, rows: &Rows<'_>, mode: Mode) -> Result<Tensor> {
        let x = &rows.x;
        let kind = if self.router.wide { Kind::Float } else { x.kind() };
        let bias = self.bias.as_ref().map(|bias| bias.f_to_kind(kind)).transpose()?;
        let logits = x.f_to_kind(kind)?.f_linear(&self.weight.f_to_kind(kind)?, bias)?;
        let (chosen, weights) = experts::choose(&logits, self.correction.as_ref(), &self.router)?;
        let [gate_up, down] = &self.parameters;
        let updates = [gate_up.updates(x.kind())?, down.updates(x.kind())?];
        let ask = |expert: usize, x: &Tensor| self.answers.ask(expert, x, &updates);
        let mixed = experts::mix(x, &chosen, &weights, ask)?;
        match &self.shared {
            Some(shared) => Ok(mixed.f_add(&shared.forward(rows, mode)?)?),
            None => Ok(mixed),
        }
    }

    /// `gate_up_proj` and `down_proj` of all experts.
    pub(super) fn parameters(&self) -> &[ExpertParameter; 2] {
        &self.parameters
    }

    /// Its weights that have an update, as the checkpoint has them.
    pub(super) fn adapted<'a>(&'a self, described: &ExpertWeights) -> Vec<AdaptedExpert<'a>> {
        let [gate_up, down] = &self.parameters;
        let all = match (&self.answers, described) {
            (Answers::Stacked { gate_up: both, down: last, .. }, _) => {
                let adapted = |parameter, weight| AdaptedExpert::all(parameter, weight);
                vec![adapted(gate_up, both), adapted(down, last)]
            }
            (Answers::Each { weights, .. }, ExpertWeights::Each { experts, .. }) => {
                let of = |(expert, (weights, names)): (usize, (&'a [Weight; 3], &[_; 3]))| {
                    let [first, second, third] = weights;
                    let [gate, up, last]: &[base::Linear; 3] = names;
                    let one = |parameter, linear: &base::Linear, weight, row: usize| {
                        let key = format!("{}.weight", linear.name);
                        AdaptedExpert::each(parameter, key, weight, expert, row as i64)
                    };
                    [
                        one(gate_up, gate, first, 0),
                        one(gate_up, up, second, gate.out_features),
                        one(down, last, third, 0),
                    ]
                };
                weights.iter().zip(experts).enumerate().flat_map(of).collect()
            }
            (Answers::Each { .. }, ExpertWeights::Stacked { .. }) => Vec::new(),
        };
        all.into_iter().filter(AdaptedExpert::is_adapted).collect()
    }
}

impl Answers {
    /// What one expert answers to rows `[m, hidden]`.
    fn ask(&self, expert: usize, x: &Tensor, updates: &[Option<Updates>; 2]) -> Result<Tensor> {
        let [of_gate_up, of_down] = updates;
        let answer = |inner: &Tensor, y: Tensor| match of_down {
            Some(updates) => updates.add(expert, &y, &updates.inner(expert, inner)?, 0),
            None => Ok(y),
        };
        match self {
            Self::Each { weights, activation } => {
                let [gate, up, down] = &weights[expert];
                let (mut gate, mut up) = (gate.linear(x, None)?, up.linear(x, None)?);
                if let Some(updates) = of_gate_up {
                    let (inner, width) = (updates.inner(expert, x)?, gate.size2()?.1);
                    gate = updates.add(expert, &gate, &inner, 0)?;
                    up = updates.add(expert, &up, &inner, width)?;
                }
                let inner = ops::gated(&gate, &up, *activation)?;
                let y = down.linear(&inner, None)?;
                answer(&inner, y)
            }
            Self::Stacked { gate_up, gate_up_bias, down, down_bias, alpha, limit } => {
                let product = |x: &Tensor, weight: &Tensor, bias: &Tensor| -> Result<Tensor> {
                    let part = |all: &Tensor| all.f_select(0, expert as i64)?.f_to_kind(x.kind());
                    Ok(x.f_matmul(&part(weight)?)?.f_add(&part(bias)?)?)
                };
                let mut both = product(x, gate_up, gate_up_bias)?;
                if let Some(updates) = of_gate_up {
                    both = updates.add(expert, &both, &updates.inner(expert, x)?, 0)?;
                }
                let inner = experts::clamped_swiglu(&both, *alpha, *limit)?;
                let y = product(&inner, down, down_bias)?;
                answer(&inner, y)
            }
        }
    }
}
