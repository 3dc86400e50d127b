//! Elementwise optimizer updates, each in one pass. Learning-rate schedules and bias corrections are
//! the caller's numbers.

use crate::cpu::Cpu;
use crate::float::Float;
use crate::parts::{CHEAP, LINE};
use crate::storage::{BLOCK, Storage};

/// The scalars of one Adam or AdamW step.
///
/// # Source
/// Kingma and Ba, 2015; Loshchilov and Hutter, 2019; formulas as in PyTorch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamStep {
    /// Learning rate.
    pub lr: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Weight decay: decoupled, or added to the gradient where `l2` is set.
    pub weight_decay: f64,
    /// 1 - beta1^t.
    pub bias_correction1: f64,
    /// 1 - beta2^t.
    pub bias_correction2: f64,
    /// Adam with an L2 penalty rather than AdamW.
    pub l2: bool,
}

/// The scalars of a step, in the element type.
#[derive(Clone, Copy)]
struct AdamScalars<T> {
    grad_scale: T,
    keep: T,
    penalty: T,
    blend1: T,
    beta2: T,
    blend2: T,
    eps: T,
    /// 1 / sqrt(bias_correction2): a division less for each element.
    per_root_correction2: T,
    step_size: T,
}

impl<T: Float> AdamScalars<T> {
    fn new(step: &AdamStep, grad_scale: T) -> Self {
        let (decoupled, penalty) = if step.l2 { (0.0, step.weight_decay) } else { (step.weight_decay, 0.0) };
        AdamScalars {
            grad_scale,
            keep: T::from_f64(1.0 - step.lr * decoupled),
            penalty: T::from_f64(penalty),
            blend1: T::from_f64(1.0 - step.beta1),
            beta2: T::from_f64(step.beta2),
            blend2: T::from_f64(1.0 - step.beta2),
            eps: T::from_f64(step.eps),
            per_root_correction2: T::from_f64(1.0 / step.bias_correction2.sqrt()),
            step_size: T::from_f64(step.lr / step.bias_correction1),
        }
    }

    /// (p, m, v) after the step.
    #[inline(always)]
    fn update(&self, p: T, g: T, m: T, v: T) -> (T, T, T) {
        let g = g * self.grad_scale + self.penalty * p;
        let m = m + (g - m) * self.blend1;
        let v = v * self.beta2 + self.blend2 * g * g;
        let denominator = Float::sqrt(v) * self.per_root_correction2 + self.eps;
        (p * self.keep - self.step_size * (m / denominator), m, v)
    }

    #[inline(always)]
    fn update_all(&self, p: &mut [T], g: &[T], m: &mut [T], v: &mut [T]) {
        for ((p, &g), (m, v)) in p.iter_mut().zip(g).zip(m.iter_mut().zip(v)) {
            (*p, *m, *v) = self.update(*p, g, *m, *v);
        }
    }
}

/// One Adam step that overwrites parameters `p` and moments `m`, `v`.
///
/// The gradient is multiplied by `grad_scale` first (clipping, 1 / number of tokens).
///
/// # Shape
/// All the same length.
pub fn adam_in_place<T: Float>(
    cpu: &Cpu,
    step: &AdamStep,
    grad_scale: T,
    p: &mut [T],
    g: &[T],
    m: &mut [T],
    v: &mut [T],
) {
    adam_with_copy::<T>(cpu, step, grad_scale, p, g, m, v, None);
}

/// [`adam_in_place`] that also writes the new parameters, rounded, to `copy`.
pub fn adam_with_copy<S: Storage>(
    cpu: &Cpu,
    step: &AdamStep,
    grad_scale: S::Wide,
    p: &mut [S::Wide],
    g: &[S::Wide],
    m: &mut [S::Wide],
    v: &mut [S::Wide],
    copy: Option<&mut [S]>,
) {
    let len = p.len();
    assert!(g.len() == len && m.len() == len && v.len() == len, "lengths differ");
    assert!(copy.as_ref().is_none_or(|copy| copy.len() == len), "copy has the wrong length");
    let scalars = AdamScalars::new(step, grad_scale);
    let set = cpu.instruction_set();
    cpu.divide(
        len,
        LINE,
        CHEAP,
        ((p, copy), (m, v)),
        #[inline(always)]
        |part, ((p, copy), (m, v))| {
            let Some(copy) = copy else {
                return scalars.update_all(p, &g[part], m, v);
            };
            // A block at a time: what is copied still sits in the innermost cache.
            let moments = m.chunks_mut(BLOCK).zip(v.chunks_mut(BLOCK));
            let state = p.chunks_mut(BLOCK).zip(g[part].chunks(BLOCK)).zip(moments);
            for (((p, g), (m, v)), copy) in state.zip(copy.chunks_mut(BLOCK)) {
                scalars.update_all(p, g, m, v);
                S::narrow_all(set, p, copy);
            }
        },
    );
}

/// The scalars of one step of stochastic gradient descent; formulas as in PyTorch (dampening 0).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SgdStep {
    /// Learning rate.
    pub lr: f64,
    /// Decay of the velocity; 0 for none.
    pub momentum: f64,
    /// Look ahead along the velocity (Nesterov's form).
    pub nesterov: bool,
    /// L2 penalty, added to the gradient.
    pub weight_decay: f64,
}

/// The scalars of a step, in the element type.
#[derive(Clone, Copy)]
struct SgdScalars<T> {
    grad_scale: T,
    lr: T,
    decay: T,
    momentum: T,
    nesterov: bool,
}

impl<T: Float> SgdScalars<T> {
    #[inline(always)]
    fn update_all(&self, p: &mut [T], g: &[T], velocity: Option<&mut [T]>) {
        match velocity {
            None => {
                for (p, &g) in p.iter_mut().zip(g) {
                    *p -= self.lr * (g * self.grad_scale + self.decay * *p);
                }
            }
            Some(velocity) => {
                for ((p, &g), velocity) in p.iter_mut().zip(g).zip(velocity) {
                    let g = g * self.grad_scale + self.decay * *p;
                    *velocity = self.momentum * *velocity + g;
                    let direction = if self.nesterov { g + self.momentum * *velocity } else { *velocity };
                    *p -= self.lr * direction;
                }
            }
        }
    }
}

/// One step of gradient descent that overwrites parameters and velocity.
///
/// The gradient is multiplied by `grad_scale` first. The velocity starts at zeros; without momentum
/// it is not touched and may be empty.
pub fn sgd_in_place<T: Float>(
    cpu: &Cpu,
    step: &SgdStep,
    grad_scale: T,
    p: &mut [T],
    g: &[T],
    velocity: &mut [T],
) {
    sgd_with_copy::<T>(cpu, step, grad_scale, p, g, velocity, None);
}

/// [`sgd_in_place`] that also writes the new parameters, rounded, to `copy`.
pub fn sgd_with_copy<S: Storage>(
    cpu: &Cpu,
    step: &SgdStep,
    grad_scale: S::Wide,
    p: &mut [S::Wide],
    g: &[S::Wide],
    velocity: &mut [S::Wide],
    copy: Option<&mut [S]>,
) {
    let len = p.len();
    assert_eq!(g.len(), len, "lengths differ");
    assert!(copy.as_ref().is_none_or(|copy| copy.len() == len), "copy has the wrong length");
    let scalars = SgdScalars {
        grad_scale,
        lr: S::Wide::from_f64(step.lr),
        decay: S::Wide::from_f64(step.weight_decay),
        momentum: S::Wide::from_f64(step.momentum),
        nesterov: step.nesterov,
    };
    let set = cpu.instruction_set();
    let velocity = (step.momentum != 0.0).then_some(velocity);
    assert!(velocity.as_ref().is_none_or(|velocity| velocity.len() == len), "lengths differ");
    cpu.divide(
        len,
        LINE,
        CHEAP,
        ((p, velocity), copy),
        #[inline(always)]
        |part, ((p, velocity), copy)| {
            let g = &g[part];
            let Some(copy) = copy else {
                return scalars.update_all(p, g, velocity);
            };
            let mut velocities = velocity.map(|velocity| velocity.chunks_mut(BLOCK));
            let state = p.chunks_mut(BLOCK).zip(g.chunks(BLOCK));
            for ((p, g), copy) in state.zip(copy.chunks_mut(BLOCK)) {
                scalars.update_all(p, g, velocities.as_mut().and_then(Iterator::next));
                S::narrow_all(set, p, copy);
            }
        },
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_close, random, scalar};
    use proptest::prelude::*;

    fn adam_step(t: i32, l2: bool) -> AdamStep {
        AdamStep {
            lr: 1e-2,
            beta1: 0.9,
            beta2: 0.95,
            eps: 1e-8,
            weight_decay: 0.1,
            bias_correction1: 1.0 - 0.9_f64.powi(t),
            bias_correction2: 1.0 - 0.95_f64.powi(t),
            l2,
        }
    }

    fn check_adam<T: Float>(len: usize, l2: bool, tolerance: f64) {
        let mut p: Vec<T> = random(1, len);
        let (mut m, mut v) = (vec![T::ZERO; len], vec![T::ZERO; len]);
        let mut expected: Vec<f64> = p.iter().map(|x| x.to_f64()).collect();
        let (mut m64, mut v64) = (vec![0.0; len], vec![0.0; len]);
        for t in 1..4 {
            let step = adam_step(t, l2);
            let g: Vec<T> = random(10 + t as u64, len);
            for i in 0..len {
                // The textbook form, with bias-corrected moments.
                let mut g = g[i].to_f64() * 0.5;
                if l2 {
                    g += 0.1 * expected[i];
                } else {
                    expected[i] -= 1e-2 * 0.1 * expected[i];
                }
                m64[i] = 0.9 * m64[i] + 0.1 * g;
                v64[i] = 0.95 * v64[i] + 0.05 * g * g;
                let (m, v): (f64, f64) = (m64[i] / step.bias_correction1, v64[i] / step.bias_correction2);
                expected[i] -= 1e-2 * m / (v.sqrt() + 1e-8);
            }
            let scale = T::from_f64(0.5);
            adam_in_place(&scalar(), &step, scale, &mut p, &g, &mut m, &mut v);
        }
        assert_close(&p, &expected, tolerance);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]
        #[test]
        fn adam_agrees_with_the_textbook(len in 0usize..50, l2: bool) {
            check_adam::<f64>(len, l2, 1e-12);
            check_adam::<f32>(len, l2, 1e-5);
        }

        #[test]
        fn sgd_agrees_with_the_textbook(len in 0usize..50, nesterov: bool, momentum in prop::sample::select(vec![0.0, 0.9])) {
            let step = SgdStep { lr: 0.1, momentum, nesterov, weight_decay: 0.01 };
            let mut p: Vec<f64> = random(1, len);
            let mut velocity = if momentum == 0.0 { Vec::new() } else { vec![0.0; len] };
            let (mut expected, mut buffer) = (p.clone(), vec![0.0; len]);
            for t in 0..3 {
                let g: Vec<f64> = random(t + 5, len);
                for i in 0..len {
                    let g = 2.0 * g[i] + 0.01 * expected[i];
                    buffer[i] = momentum * buffer[i] + g;
                    expected[i] -= 0.1 * if nesterov { g + momentum * buffer[i] } else { buffer[i] };
                }
                sgd_in_place(&scalar(), &step, 2.0, &mut p, &g, &mut velocity);
            }
            assert_close(&p, &expected, 1e-13);
        }
    }

    #[test]
    fn nan_gradients_reach_parameters() {
        let (mut p, mut m, mut v) = ([1.0_f32; 2], [0.0; 2], [0.0; 2]);
        adam_in_place(&scalar(), &adam_step(1, false), 1.0, &mut p, &[f32::NAN, 1.0], &mut m, &mut v);
        assert!(p[0].is_nan() && p[1].is_finite());
    }
}
