//! Nonlinear maps of one element at a time and their gradients: GELU and SwiGLU.

use crate::float::{Float, vectorised};

/// 2 sqrt(2 / pi) and the cubic coefficient of the tanh form.
const GELU_SLOPE: f64 = 1.595_769_121_605_730_8;
const GELU_CUBIC: f64 = 0.044_715;

/// GELU in its tanh form: `0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))`.
///
/// Computed as `x sigmoid(2 sqrt(2/pi) (x + 0.044715 x^3))`, the same function without the
/// cancellation that `1 + tanh` suffers for negative x.
///
/// # Source
/// Hendrycks and Gimpel, "Gaussian Error Linear Units", 2016; the form of GPT-2 (`gelu_new`).
pub fn gelu<T: Float>(x: &[T], out: &mut [T]) {
    assert_eq!(x.len(), out.len(), "lengths differ");
    vectorised(
        #[inline(always)]
        || {
            for (out, &x) in out.iter_mut().zip(x) {
                *out = x * gelu_gate(x);
            }
        },
    );
}

/// `dx = dy gelu'(x)`.
pub fn gelu_backward<T: Float>(x: &[T], dy: &[T], dx: &mut [T]) {
    assert!(x.len() == dy.len() && x.len() == dx.len(), "lengths differ");
    vectorised(
        #[inline(always)]
        || {
            let slope = T::from_f64(GELU_SLOPE);
            let cubic = T::from_f64(3.0 * GELU_SLOPE * GELU_CUBIC);
            for ((dx, &x), &dy) in dx.iter_mut().zip(x).zip(dy) {
                let gate = gelu_gate(x);
                let inner = cubic * x * x + slope;
                *dx = dy * (gate + x * gate * (T::ONE - gate) * inner);
            }
        },
    );
}

#[inline(always)]
fn gelu_gate<T: Float>(x: T) -> T {
    let cubic = T::from_f64(GELU_SLOPE * GELU_CUBIC);
    Float::sigmoid(x * (cubic * x * x + T::from_f64(GELU_SLOPE)))
}

/// SwiGLU: `out = silu(gate) up`, silu(x) = x / (1 + exp(-x)).
///
/// # Source
/// Shazeer, "GLU Variants Improve Transformer", 2020.
pub fn swiglu<T: Float>(gate: &[T], up: &[T], out: &mut [T]) {
    assert!(gate.len() == up.len() && gate.len() == out.len(), "lengths differ");
    vectorised(
        #[inline(always)]
        || {
            for ((out, &g), &u) in out.iter_mut().zip(gate).zip(up) {
                *out = g * Float::sigmoid(g) * u;
            }
        },
    );
}

/// The gradients of [`swiglu`] by gate and up.
pub fn swiglu_backward<T: Float>(gate: &[T], up: &[T], dout: &[T], dgate: &mut [T], dup: &mut [T]) {
    let len = gate.len();
    assert!(up.len() == len && dout.len() == len, "lengths differ");
    assert!(dgate.len() == len && dup.len() == len, "lengths differ");
    vectorised(
        #[inline(always)]
        || {
            let inputs = gate.iter().zip(up).zip(dout);
            for ((dgate, dup), ((&g, &u), &d)) in dgate.iter_mut().zip(dup).zip(inputs) {
                let s = Float::sigmoid(g);
                *dup = d * g * s;
                *dgate = d * u * s * (T::ONE + g * (T::ONE - s));
            }
        },
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_close, dot, finite_difference, poisoned, random};
    use proptest::prelude::*;

    fn run<T: Float>(f: impl Fn(&mut [T]), len: usize) -> Vec<T> {
        let mut out = poisoned(len);
        f(&mut out);
        out
    }

    fn narrow(x: &[f64]) -> Vec<f32> {
        x.iter().map(|&x| x as f32).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]
        #[test]
        fn f64_and_f32_agree_with_definitions_and_differences(len in 0usize..40, seed in 0u64..99) {
            let wide = |s| random::<f64>(3 * seed + s, len).iter().map(|x| 3.0 * x).collect::<Vec<_>>();
            let (x, up, d) = (wide(0), wide(1), wide(2));
            let (x32, up32, d32) = (narrow(&x), narrow(&up), narrow(&d));

            let expected: Vec<f64> = x.iter().map(|x| {
                0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x)).tanh())
            }).collect();
            assert_close(&run(|o| gelu(&x, o), len), &expected, 1e-14);
            assert_close(&run(|o| gelu(&x32, o), len), &expected, 2e-6);
            let slope = finite_difference(&x, |x| dot(&run(|o| gelu(x, o), len), &d));
            assert_close(&run(|o| gelu_backward(&x, &d, o), len), &slope, 1e-7);
            assert_close(&run(|o| gelu_backward(&x32, &d32, o), len), &slope, 1e-5);

            let expected: Vec<f64> = x.iter().zip(&up).map(|(g, u)| g / (1.0 + (-g).exp()) * u).collect();
            assert_close(&run(|o| swiglu(&x, &up, o), len), &expected, 1e-14);
            assert_close(&run(|o| swiglu(&x32, &up32, o), len), &expected, 5e-6);
            let by_gate = finite_difference(&x, |x| dot(&run(|o| swiglu(x, &up, o), len), &d));
            let by_up = finite_difference(&up, |u| dot(&run(|o| swiglu(&x, u, o), len), &d));
            let (mut dgate, mut dup) = (poisoned::<f64>(len), poisoned::<f64>(len));
            swiglu_backward(&x, &up, &d, &mut dgate, &mut dup);
            assert_close(&dgate, &by_gate, 1e-6);
            assert_close(&dup, &by_up, 1e-6);
            let (mut dgate, mut dup) = (poisoned::<f32>(len), poisoned::<f32>(len));
            swiglu_backward(&x32, &up32, &d32, &mut dgate, &mut dup);
            assert_close(&dgate, &by_gate, 2e-5);
            assert_close(&dup, &by_up, 2e-5);
        }
    }

    #[test]
    fn large_inputs_saturate_and_nan_propagates() {
        let x = [-200.0_f32, 200.0, f32::NAN];
        let ones = [1.0; 3];
        let y = run(|o| gelu(&x, o), 3);
        assert!(y[0] == 0.0 && y[1] == 200.0 && y[2].is_nan());
        let y = run(|o| swiglu(&x, &ones, o), 3);
        assert!(y[0] == 0.0 && y[1] == 200.0 && y[2].is_nan());
        let y = run(|o| gelu_backward(&x, &ones, o), 3);
        assert!(y[0] == 0.0 && y[1] == 1.0 && y[2].is_nan());
    }
}
