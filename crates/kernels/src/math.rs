//! Elementary functions as branch-free polynomials that compilers can vectorise.
//! Nothing here touches a slice.

/// exp by range reduction x = n ln 2 + r, |r| <= ln(2)/2, a Taylor polynomial in r, and a scale by
/// 2^n in two steps, so that results near overflow and in the subnormal range stay right.
///
/// The clamp keeps n in range; it is written so that NaN passes through. `round` is 1.5 * 2^(mantissa
/// bits): adding it leaves n in the low bits of the sum, which is cheaper than a float-to-int cast.
macro_rules! exp_polynomial {
    ($name:ident, $float:ident, $int:ident, $mantissa:literal, $bias:literal, $low:literal, $high:literal,
     $ln2_high:literal, $ln2_low:literal, [$($coefficient:expr),+]) => {
        #[inline(always)]
        pub(crate) fn $name(x: $float) -> $float {
            const ROUND: $float = 1.5 * ((1 as $int) << $mantissa) as $float;
            let x = if x < $low { $low } else { x };
            let x = if x > $high { $high } else { x };
            let shifted = x.mul_add(std::$float::consts::LOG2_E, ROUND);
            let n = shifted - ROUND;
            let exponent = (shifted.to_bits() as $int).wrapping_sub(ROUND.to_bits() as $int);
            let r = n.mul_add(-$ln2_high, x);
            let r = n.mul_add(-$ln2_low, r);
            let mut p: $float = 0.0;
            $(p = p.mul_add(r, $coefficient);)+
            let half = exponent >> 1;
            let rest = exponent.wrapping_sub(half);
            let power = |e: $int| $float::from_bits((e.wrapping_add($bias) << $mantissa) as _);
            p * power(half) * power(rest)
        }
    };
}

exp_polynomial!(
    exp_f32,
    f32,
    i32,
    23,
    127,
    -104.0,
    89.0,
    0.693_359_4,
    -2.121_944_4e-4,
    [1.0 / 5040.0, 1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0]
);
exp_polynomial!(
    exp_f64,
    f64,
    i64,
    52,
    1023,
    -746.0,
    710.0,
    0.693_147_180_369_123_8,
    1.908_214_929_270_587_7e-10,
    [
        1.0 / 6_227_020_800.0,
        1.0 / 479_001_600.0,
        1.0 / 39_916_800.0,
        1.0 / 3_628_800.0,
        1.0 / 362_880.0,
        1.0 / 40_320.0,
        1.0 / 5040.0,
        1.0 / 720.0,
        1.0 / 120.0,
        1.0 / 24.0,
        1.0 / 6.0,
        0.5,
        1.0,
        1.0
    ]
);

/// tanh as an odd rational function of degree 13 over 6 (coefficients as in Eigen's `ptanh`).
#[inline(always)]
pub(crate) fn tanh_f32(x: f32) -> f32 {
    const CLAMP: f32 = 7.905_311;
    let x = if x > CLAMP { CLAMP } else { x };
    let x = if x < -CLAMP { -CLAMP } else { x };
    let x2 = x * x;
    let mut p = -2.760_768_5e-16_f32;
    for c in
        [2.000_188e-13_f32, -8.604_672e-11, 5.122_297_3e-8, 1.485_722_4e-5, 6.372_619_5e-4, 4.893_524_6e-3]
    {
        p = p.mul_add(x2, c);
    }
    let mut q = 1.198_258_4e-6_f32;
    for c in [1.185_347_1e-4_f32, 2.268_434_6e-3, 4.893_525e-3] {
        q = q.mul_add(x2, c);
    }
    x * p / q
}

/// (sin x, cos x) for |x| up to 2^31, absolute error about 1e-16.
///
/// Source: the kernels of FreeBSD's msun (`k_sin.c`, `k_cos.c`), with a two-term reduction by pi/2
/// that leans on fused multiply-add.
#[inline(always)]
pub(crate) fn sin_cos(x: f64) -> (f64, f64) {
    const ROUND: f64 = 6_755_399_441_055_744.0; // 1.5 * 2^52, see `exp_polynomial`
    let shifted = x.mul_add(std::f64::consts::FRAC_2_PI, ROUND);
    let n = shifted - ROUND;
    let quadrant = shifted.to_bits();
    let r = n.mul_add(-std::f64::consts::FRAC_PI_2, x);
    let r = n.mul_add(-6.123_233_995_736_766e-17, r);
    let z = r * r;
    let mut s = 1.589_690_995_211_55e-10_f64;
    for c in [
        -2.505_076_025_340_686_3e-8_f64,
        2.755_731_370_707_006_8e-6,
        -1.984_126_982_985_795e-4,
        8.333_333_333_322_49e-3,
        -1.666_666_666_666_663_2e-1,
    ] {
        s = s.mul_add(z, c);
    }
    let sin = (s * z).mul_add(r, r);
    let mut c = -1.135_964_755_778_819_5e-11_f64;
    for k in [
        2.087_572_321_298_175e-9_f64,
        -2.755_731_435_139_066e-7,
        2.480_158_728_947_673e-5,
        -1.388_888_888_887_411e-3,
        4.166_666_666_666_66e-2,
        -0.5,
    ] {
        c = c.mul_add(z, k);
    }
    let cos = c.mul_add(z, 1.0);
    let odd = quadrant & 1 == 1;
    let (s, c) = if odd { (cos, sin) } else { (sin, cos) };
    // The sign bits: sin is negative in quadrants 2 and 3, cos in 1 and 2.
    let sin_sign = (quadrant & 2) << 62;
    let cos_sign = (quadrant.wrapping_add(1) & 2) << 62;
    (f64::from_bits(s.to_bits() ^ sin_sign), f64::from_bits(c.to_bits() ^ cos_sign))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::float::Float;

    #[test]
    fn exp_f32_is_accurate_and_handles_the_ends() {
        let mut worst = 0.0_f64;
        for i in -870_000..=887_000 {
            let x = i as f32 * 1e-4;
            let truth = f64::from(x).exp();
            worst = worst.max((f64::from(exp_f32(x)) / truth - 1.0).abs());
        }
        assert!(worst < 1.2e-7, "worst relative error {worst:e}");
        assert_eq!(exp_f32(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp_f32(-1e30), 0.0);
        assert_eq!(exp_f32(f32::INFINITY), f32::INFINITY);
        assert_eq!(exp_f32(1e30), f32::INFINITY);
        assert_eq!(exp_f32(0.0), 1.0);
        assert!(exp_f32(f32::NAN).is_nan());
        assert!((f64::from(exp_f32(-100.0)) - (-100f64).exp()).abs() < 2e-45);
    }

    #[test]
    fn exp_f64_is_accurate_and_handles_the_ends() {
        let mut worst = 0.0_f64;
        for i in -70_000..=70_900 {
            let x = f64::from(i) * 1e-2;
            worst = worst.max((exp_f64(x) / x.exp() - 1.0).abs());
        }
        assert!(worst < 5e-16, "worst relative error {worst:e}");
        assert_eq!(exp_f64(f64::NEG_INFINITY), 0.0);
        assert_eq!(exp_f64(f64::INFINITY), f64::INFINITY);
        assert_eq!(exp_f64(0.0), 1.0);
        assert!(exp_f64(f64::NAN).is_nan());
    }

    #[test]
    fn tanh_and_sigmoid_f32_are_accurate() {
        let mut worst = [0.0_f64; 2];
        for i in -200_000..=200_000 {
            let x = i as f32 * 1e-4 + 3e-6;
            let wide = f64::from(x);
            worst[0] = worst[0].max((f64::from(tanh_f32(x)) / wide.tanh() - 1.0).abs());
            let sigmoid = 1.0 / (1.0 + (-wide).exp());
            worst[1] = worst[1].max((f64::from(Float::sigmoid(x)) / sigmoid - 1.0).abs());
        }
        assert!(worst[0] < 5e-7 && worst[1] < 3e-7, "{worst:?}");
        assert_eq!(tanh_f32(0.0), 0.0);
        assert!(tanh_f32(f32::NAN).is_nan() && Float::sigmoid(f32::NAN).is_nan());
        assert!((tanh_f32(f32::INFINITY) - 1.0).abs() < 2e-7);
        assert!((tanh_f32(f32::NEG_INFINITY) + 1.0).abs() < 2e-7);
        assert_eq!(Float::sigmoid(f32::NEG_INFINITY), 0.0);
    }

    #[test]
    fn sin_cos_is_accurate() {
        let mut worst = 0.0_f64;
        for i in -200_000..200_000 {
            let x = f64::from(i) * 0.731;
            let (s, c) = sin_cos(x);
            worst = worst.max((s - x.sin()).abs()).max((c - x.cos()).abs());
        }
        assert!(worst < 3e-16, "worst absolute error {worst:e}");
        assert!(sin_cos(f64::NAN).0.is_nan());
    }
}
