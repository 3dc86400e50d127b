//! Activations of feed-forward blocks and heads.

use graph::{Graph, Op, Pointwise, ValueId};

/// An activation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Activation {
    /// GELU in its tanh form (Hendrycks and Gimpel, 2016).
    #[default]
    GeluTanh,
    /// GELU by the error function.
    GeluErf,
    /// Rectified linear.
    Relu,
    /// `x sigmoid(x)`.
    Silu,
    /// Hyperbolic tangent.
    Tanh,
}

impl Activation {
    /// Writes the activation of `x`.
    pub(crate) fn write(self, g: &mut Graph, x: ValueId) -> ValueId {
        let (op, name) = match self {
            Activation::GeluTanh => (Op::Gelu, "gelu"),
            Activation::GeluErf => (Op::Pointwise(Pointwise::GeluErf), "gelu"),
            Activation::Relu => (Op::Pointwise(Pointwise::Relu), "relu"),
            Activation::Silu => (Op::Pointwise(Pointwise::Silu), "silu"),
            Activation::Tanh => (Op::Pointwise(Pointwise::Tanh), "tanh"),
        };
        g.elementwise(op, name, &[x])
    }
}
