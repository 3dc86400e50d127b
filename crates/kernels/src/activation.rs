//! Nonlinear maps of one element at a time and their gradients: GELU and SwiGLU.

use crate::cpu::Cpu;
use crate::elementwise::{map, map2};
use crate::float::Float;
use crate::parts::{COSTLY, LINE, prefetch_after};
use crate::storage::{BLOCK, Buffer, Storage};

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
pub fn gelu<S: Storage>(cpu: &Cpu, x: &[S], out: &mut [S]) {
    assert_eq!(x.len(), out.len(), "lengths differ");
    let set = cpu.instruction_set();
    cpu.divide(
        x.len(),
        LINE,
        COSTLY,
        out,
        #[inline(always)]
        |part, out| {
            map(
                set,
                &x[part],
                out,
                #[inline(always)]
                |x| x * gelu_gate::<S>(x).0,
            );
        },
    );
}

/// `dx = dy gelu'(x)`.
pub fn gelu_backward<S: Storage>(cpu: &Cpu, x: &[S], dy: &[S], dx: &mut [S]) {
    assert!(x.len() == dy.len() && x.len() == dx.len(), "lengths differ");
    let set = cpu.instruction_set();
    let slope = S::Wide::from_f64(GELU_SLOPE);
    let cubic = S::Wide::from_f64(3.0 * GELU_SLOPE * GELU_CUBIC);
    cpu.divide(
        x.len(),
        LINE,
        COSTLY,
        dx,
        #[inline(always)]
        |part, dx| {
            map2(
                set,
                &x[part.clone()],
                &dy[part],
                dx,
                #[inline(always)]
                |x, dy| {
                    let inner = Float::mul_add(cubic * x, x, slope);
                    let (gate, rest) = gelu_gate::<S>(x);
                    dy * Float::mul_add(x * gate * rest, inner, gate)
                },
            );
        },
    );
}

/// What x is multiplied by, and 1 less that.
#[inline(always)]
fn gelu_gate<S: Storage>(x: S::Wide) -> (S::Wide, S::Wide) {
    let cubic = S::Wide::from_f64(GELU_SLOPE * GELU_CUBIC);
    S::sigmoid(x * Float::mul_add(cubic * x, x, S::Wide::from_f64(GELU_SLOPE)))
}

/// SwiGLU: `out = silu(gate) up`, silu(x) = x / (1 + exp(-x)).
///
/// # Source
/// Shazeer, "GLU Variants Improve Transformer", 2020.
pub fn swiglu<S: Storage>(cpu: &Cpu, gate: &[S], up: &[S], out: &mut [S]) {
    assert!(gate.len() == up.len() && gate.len() == out.len(), "lengths differ");
    let set = cpu.instruction_set();
    cpu.divide(
        gate.len(),
        LINE,
        COSTLY,
        out,
        #[inline(always)]
        |part, out| {
            map2(
                set,
                &gate[part.clone()],
                &up[part],
                out,
                #[inline(always)]
                |g, u| g * S::sigmoid(g).0 * u,
            );
        },
    );
}

/// The gradients of [`swiglu`] by gate and up.
pub fn swiglu_backward<S: Storage>(
    cpu: &Cpu,
    gate: &[S],
    up: &[S],
    d_out: &[S],
    d_gate: &mut [S],
    d_up: &mut [S],
) {
    let (len, set) = (gate.len(), cpu.instruction_set());
    assert!(up.len() == len && d_out.len() == len, "lengths differ");
    assert!(d_gate.len() == len && d_up.len() == len, "lengths differ");
    cpu.divide(
        len,
        LINE,
        COSTLY,
        (d_gate, d_up),
        #[inline(always)]
        |part, (d_gate, d_up)| {
            let (gate, up, d_out) = (&gate[part.clone()], &up[part.clone()], &d_out[part]);
            let blocks = d_gate.chunks_mut(BLOCK).zip(d_up.chunks_mut(BLOCK)).enumerate();
            let [mut gate_buffer, mut up_buffer] = [Buffer::new(), Buffer::new()];
            for (block, (d_gate, d_up)) in blocks {
                let here = block * BLOCK..block * BLOCK + d_gate.len();
                let (gate, up, d_out) = (&gate[here.clone()], &up[here.clone()], &d_out[here]);
                for soon in [gate, up, d_out, &*d_gate, &*d_up] {
                    prefetch_after(soon);
                }
                S::write_blocks(
                    set,
                    &mut gate_buffer,
                    d_gate,
                    #[inline(always)]
                    |_, d_gate| {
                        S::write_blocks(
                            set,
                            &mut up_buffer,
                            d_up,
                            #[inline(always)]
                            |_, d_up| swiglu_gradients(gate, up, d_out, d_gate, d_up),
                        );
                    },
                );
            }
        },
    );
}

/// One block of [`swiglu_backward`].
#[inline(always)]
fn swiglu_gradients<S: Storage>(
    gate: &[S],
    up: &[S],
    d_out: &[S],
    d_gate: &mut [S::Wide],
    d_up: &mut [S::Wide],
) {
    for ((d_gate, d_up), ((&g, &u), &d)) in d_gate.iter_mut().zip(d_up).zip(gate.iter().zip(up).zip(d_out)) {
        let (g, u, d) = (g.widen(), u.widen(), d.widen());
        let (s, rest) = S::sigmoid(g);
        *d_up = d * g * s;
        *d_gate = d * u * s * (S::Wide::ONE + g * rest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_close, dot, finite_difference, poisoned, random, scalar};
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
            assert_close(&run(|o| gelu(&scalar(), &x, o), len), &expected, 1e-14);
            assert_close(&run(|o| gelu(&scalar(), &x32, o), len), &expected, 2e-6);
            let slope = finite_difference(&x, |x| dot(&run(|o| gelu(&scalar(), x, o), len), &d));
            assert_close(&run(|o| gelu_backward(&scalar(), &x, &d, o), len), &slope, 1e-7);
            assert_close(&run(|o| gelu_backward(&scalar(), &x32, &d32, o), len), &slope, 1e-5);

            let expected: Vec<f64> = x.iter().zip(&up).map(|(g, u)| g / (1.0 + (-g).exp()) * u).collect();
            assert_close(&run(|o| swiglu(&scalar(), &x, &up, o), len), &expected, 1e-14);
            assert_close(&run(|o| swiglu(&scalar(), &x32, &up32, o), len), &expected, 5e-6);
            let by_gate = finite_difference(&x, |x| dot(&run(|o| swiglu(&scalar(), x, &up, o), len), &d));
            let by_up = finite_difference(&up, |u| dot(&run(|o| swiglu(&scalar(), &x, u, o), len), &d));
            let (mut dgate, mut dup) = (poisoned::<f64>(len), poisoned::<f64>(len));
            swiglu_backward(&scalar(), &x, &up, &d, &mut dgate, &mut dup);
            assert_close(&dgate, &by_gate, 1e-6);
            assert_close(&dup, &by_up, 1e-6);
            let (mut dgate, mut dup) = (poisoned::<f32>(len), poisoned::<f32>(len));
            swiglu_backward(&scalar(), &x32, &up32, &d32, &mut dgate, &mut dup);
            assert_close(&dgate, &by_gate, 2e-5);
            assert_close(&dup, &by_up, 2e-5);
        }
    }

    #[test]
    fn large_inputs_saturate_and_nan_propagates() {
        let x = [-200.0_f32, 200.0, f32::NAN];
        let ones = [1.0; 3];
        let y = run(|o| gelu(&scalar(), &x, o), 3);
        assert!(y[0] == 0.0 && y[1] == 200.0 && y[2].is_nan());
        let y = run(|o| swiglu(&scalar(), &x, &ones, o), 3);
        assert!(y[0] == 0.0 && y[1] == 200.0 && y[2].is_nan());
        let y = run(|o| gelu_backward(&scalar(), &x, &ones, o), 3);
        assert!(y[0] == 0.0 && y[1] == 1.0 && y[2].is_nan());
    }
}
