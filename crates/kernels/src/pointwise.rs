//! Functions of one element and their gradients that are not worth a vector polynomial of their own, and products of
//! elements. GELU in its tanh form and SwiGLU, which large models run, are in `activation`.

use crate::cpu::Cpu;
use crate::float::Float;
use crate::parts::{COSTLY, LINE};
use crate::storage::Storage;

/// Which function.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PointwiseKind {
    /// `x Phi(x)`, with the distribution function of the standard normal distribution.
    GeluErf,
    /// `max(x, 0)`; its slope at 0 is 0.
    Relu,
    /// `x sigmoid(x)`.
    Silu,
    /// Hyperbolic tangent.
    Tanh,
}

/// `out = f(x)`.
pub fn pointwise<S: Storage>(cpu: &Cpu, kind: PointwiseKind, x: &[S], out: &mut [S]) {
    assert_eq!(x.len(), out.len(), "lengths differ");
    let value = move |x: f64| match kind {
        PointwiseKind::GeluErf => x * normal_distribution(x),
        PointwiseKind::Relu => relu(x),
        PointwiseKind::Silu => x * sigmoid(x),
        PointwiseKind::Tanh => x.tanh(),
    };
    cpu.divide(x.len(), LINE, COSTLY, out, |part, out| {
        for (out, &x) in out.iter_mut().zip(&x[part]) {
            *out = S::narrow(Float::from_f64(value(x.widen().to_f64())));
        }
    });
}

/// `dx = dy f'(x)`.
pub fn pointwise_backward<S: Storage>(cpu: &Cpu, kind: PointwiseKind, x: &[S], dy: &[S], dx: &mut [S]) {
    assert!(x.len() == dy.len() && x.len() == dx.len(), "lengths differ");
    let slope = move |x: f64| match kind {
        PointwiseKind::GeluErf => normal_distribution(x) + x * normal_density(x),
        PointwiseKind::Relu if x > 0.0 => 1.0,
        // what is not a number stays so
        PointwiseKind::Relu if x.is_nan() => x,
        PointwiseKind::Relu => 0.0,
        PointwiseKind::Silu => sigmoid(x) * (1.0 + x * sigmoid(-x)),
        PointwiseKind::Tanh => 1.0 - x.tanh() * x.tanh(),
    };
    cpu.divide(x.len(), LINE, COSTLY, dx, |part, dx| {
        for ((dx, &x), &dy) in dx.iter_mut().zip(&x[part.clone()]).zip(&dy[part]) {
            *dx = S::narrow(Float::from_f64(dy.widen().to_f64() * slope(x.widen().to_f64())));
        }
    });
}

/// `out = a b`.
pub fn multiply<S: Storage>(cpu: &Cpu, a: &[S], b: &[S], out: &mut [S]) {
    assert!(a.len() == b.len() && a.len() == out.len(), "lengths differ");
    cpu.divide(
        a.len(),
        LINE,
        COSTLY,
        out,
        #[inline(always)]
        |part, out| {
            for ((out, &a), &b) in out.iter_mut().zip(&a[part.clone()]).zip(&b[part]) {
                *out = S::narrow(a.widen() * b.widen());
            }
        },
    );
}

fn relu(x: f64) -> f64 {
    if x < 0.0 { 0.0 } else { x }
}

/// The logistic function, without overflow at either end.
fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// Density of the standard normal distribution.
fn normal_density(x: f64) -> f64 {
    const FACTOR: f64 = 0.398_942_280_401_432_7; // 1 / sqrt(2 pi)
    FACTOR * (-0.5 * x * x).exp()
}

/// The standard normal distribution function, without cancellation where it is small.
fn normal_distribution(x: f64) -> f64 {
    let z = x * std::f64::consts::FRAC_1_SQRT_2;
    match z {
        z if z < -0.46875 => 0.5 * erfc(-z),
        z if z > 0.46875 => 1.0 - 0.5 * erfc(z),
        z => 0.5 + 0.5 * erf_near_zero(z),
    }
}

/// The value of a polynomial whose highest coefficient comes first.
fn polynomial(coefficients: &[f64], x: f64) -> f64 {
    coefficients.iter().fold(0.0, |sum, c| sum * x + c)
}

/// The error function for |z| up to 0.46875.
///
/// # Source
/// Cody, "Rational Chebyshev approximations for the error function", 1969; so is [`erfc`].
#[allow(clippy::excessive_precision, reason = "coefficients as published")]
fn erf_near_zero(z: f64) -> f64 {
    const ABOVE: [f64; 5] = [
        1.857_777_061_846_031_5e-1,
        3.161_123_743_870_565_6,
        1.138_641_541_510_501_6e2,
        3.774_852_376_853_020_2e2,
        3.209_377_589_138_469_5e3,
    ];
    const BELOW: [f64; 5] = [
        1.0,
        2.360_129_095_234_412_1e1,
        2.440_246_379_344_441_7e2,
        1.282_616_526_077_372_3e3,
        2.844_236_833_439_170_6e3,
    ];
    z * polynomial(&ABOVE, z * z) / polynomial(&BELOW, z * z)
}

/// One minus the error function, for z of at least 0.46875.
#[allow(clippy::excessive_precision, reason = "coefficients as published")]
fn erfc(z: f64) -> f64 {
    const ABOVE: [f64; 9] = [
        2.153_115_354_744_038_5e-8,
        5.641_884_969_886_700_9e-1,
        8.883_149_794_388_376,
        6.611_919_063_714_163e1,
        2.986_351_381_974_001_3e2,
        8.819_522_212_417_691e2,
        1.712_047_612_634_070_6e3,
        2.051_078_377_826_071_5e3,
        1.230_339_354_797_997_2e3,
    ];
    const BELOW: [f64; 9] = [
        1.0,
        1.574_492_611_070_983_5e1,
        1.176_939_508_913_125e2,
        5.371_811_018_620_098_6e2,
        1.621_389_574_566_690_2e3,
        3.290_799_235_733_459_6e3,
        4.362_619_090_143_247e3,
        3.439_367_674_143_721_6e3,
        1.230_339_354_803_749_4e3,
    ];
    const FAR_ABOVE: [f64; 6] = [
        1.631_538_713_730_209_8e-2,
        3.053_266_349_612_323_4e-1,
        3.603_448_999_498_044_4e-1,
        1.257_817_261_112_292_5e-1,
        1.608_378_514_874_227_7e-2,
        6.587_491_615_298_378e-4,
    ];
    const FAR_BELOW: [f64; 6] = [
        1.0,
        2.568_520_192_289_822,
        1.872_952_849_923_467_3,
        5.279_051_029_514_284e-1,
        6.051_834_131_244_132e-2,
        2.335_204_976_268_691_8e-3,
    ];
    const ONE_OVER_ROOT_PI: f64 = 0.564_189_583_547_756_3;
    let scaled = if z <= 4.0 {
        polynomial(&ABOVE, z) / polynomial(&BELOW, z)
    } else {
        let y = 1.0 / (z * z);
        (ONE_OVER_ROOT_PI - y * polynomial(&FAR_ABOVE, y) / polynomial(&FAR_BELOW, y)) / z
    };
    (-z * z).exp() * scaled
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_close, dot, finite_difference, poisoned, random, scalar};

    const KINDS: [PointwiseKind; 4] =
        [PointwiseKind::GeluErf, PointwiseKind::Relu, PointwiseKind::Silu, PointwiseKind::Tanh];

    fn run<T: Float>(f: impl Fn(&mut [T]), len: usize) -> Vec<T> {
        let mut out = poisoned(len);
        f(&mut out);
        out
    }

    /// Values of Python's `math.erfc`.
    #[test]
    fn the_distribution_is_accurate_everywhere() {
        for (x, expected) in DISTRIBUTION {
            let value = normal_distribution(x);
            // the square in the exponent magnifies the rounding of x
            let tolerance = 4e-15 + 2.3e-16 * x * x;
            assert!((value / expected - 1.0).abs() < tolerance, "{x}: {value:e}, expected {expected:e}");
        }
    }

    #[test]
    fn gradients_are_differences() {
        let x: Vec<f64> = random::<f64>(1, 40).iter().map(|x| 3.0 * x).collect();
        let dy = random::<f64>(2, 40);
        for kind in KINDS {
            let slope = finite_difference(&x, |x| dot(&run(|o| pointwise(&scalar(), kind, x, o), 40), &dy));
            assert_close(&run(|o| pointwise_backward(&scalar(), kind, &x, &dy, o), 40), &slope, 1e-8);
        }
    }

    #[test]
    fn ends() {
        let x = [-200.0_f32, 200.0, 0.0, f32::NAN];
        let values = |kind| run(|o| pointwise(&scalar(), kind, &x, o), 4);
        let slopes = |kind| run(|o| pointwise_backward(&scalar(), kind, &x, &[1.0; 4], o), 4);
        for (kind, [low, high, zero], [d_low, d_high, d_zero]) in [
            (PointwiseKind::GeluErf, [0.0, 200.0, 0.0], [0.0, 1.0, 0.5]),
            (PointwiseKind::Relu, [0.0, 200.0, 0.0], [0.0, 1.0, 0.0]),
            (PointwiseKind::Silu, [0.0, 200.0, 0.0], [0.0, 1.0, 0.5]),
            (PointwiseKind::Tanh, [-1.0, 1.0, 0.0], [0.0, 0.0, 1.0]),
        ] {
            let (y, d) = (values(kind), slopes(kind));
            assert_eq!(y[..3], [low, high, zero], "{kind:?}");
            assert_eq!(d[..3], [d_low, d_high, d_zero], "{kind:?}");
            assert!(y[3].is_nan() && d[3].is_nan(), "{kind:?}");
        }
    }

    const DISTRIBUTION: [(f64, f64); 24] = [
        (-30.0, 4.906713927148764e-198),
        (-12.5, 3.73256429887781e-36),
        (-8.0, 6.220960574271819e-16),
        (-6.0, 9.865876450377012e-10),
        (-4.0, 3.1671241833119965e-05),
        (-2.5, 0.006209665325776139),
        (-1.3, 0.09680048458561034),
        (-0.7, 0.24196365222307306),
        (-0.6629, 0.2536973008682368),
        (-0.6, 0.2742531177500736),
        (-0.1, 0.460172162722971),
        (-1e-09, 0.49999999960105773),
        (0.0, 0.5),
        (1e-05, 0.500003989422804),
        (0.3, 0.6179114221889526),
        (0.66, 0.7453730853286639),
        (0.67, 0.7485711049046899),
        (1.0, 0.8413447460685429),
        (2.0, 0.9772498680518208),
        (3.5, 0.9997673709209645),
        (5.6, 0.9999999892824097),
        (5.7, 0.9999999940096286),
        (9.0, 1.0),
        (40.0, 1.0),
    ];
}
