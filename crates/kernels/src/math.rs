//! Elementary functions as branch-free polynomials that compilers can vectorise.
//! Nothing here touches a slice.

/// exp by range reduction x = n ln 2 + r, |r| <= ln(2)/2, a minimax polynomial in r, and a scale by 2^n.
///
/// Three functions: `parts` gives the polynomial and n; the first of the others scales in two steps, so that
/// results near overflow and in the subnormal range stay right, the second (`flushed`) in one. Clamps keep n in
/// range; they are written so that NaN passes through. `ROUND` is 1.5 * 2^(mantissa bits) plus the exponent's
/// bias: adding it leaves n + bias in the low bits of the sum, which is cheaper than a float-to-int cast.
macro_rules! exp_polynomial {
    ($name:ident, $flushed:ident, $parts:ident, $float:ident, $int:ident, $mantissa:literal, $bias:literal,
     [$low:literal, $high:literal], [$flushed_low:literal, $flushed_high:literal],
     [$ln2_high:literal, $ln2_low:literal], [$first:literal, $($coefficient:literal),+]) => {
        /// The polynomial of r, and a number whose low bits are n plus the exponent's bias.
        #[inline(always)]
        fn $parts(x: $float) -> ($float, $int) {
            const ROUND: $float = (3 * ((1 as $int) << ($mantissa - 1)) + $bias) as $float;
            let shifted = x.mul_add(std::$float::consts::LOG2_E, ROUND);
            let n = shifted - ROUND;
            let r = n.mul_add(-$ln2_high, x);
            let r = n.mul_add(-$ln2_low, r);
            let mut p: $float = $first;
            $(p = p.mul_add(r, $coefficient);)+
            // e^r = 1 + r + r^2 p: both ends are exact.
            (p.mul_add(r, 1.0).mul_add(r, 1.0), shifted.to_bits() as $int)
        }

        /// e^x; 0 at -inf, +inf at +inf.
        #[inline(always)]
        pub(crate) fn $name(x: $float) -> $float {
            const ROUND: $float = (3 * ((1 as $int) << ($mantissa - 1))) as $float;
            let x = if x < $low { $low } else { x };
            let x = if x > $high { $high } else { x };
            let (p, biased) = $parts(x);
            let exponent = biased.wrapping_sub(ROUND.to_bits() as $int + $bias);
            let half = exponent >> 1;
            let rest = exponent.wrapping_sub(half);
            let power = |e: $int| $float::from_bits((e.wrapping_add($bias) << $mantissa) as _);
            p * power(half) * power(rest)
        }

        /// e^x, but 0 where that is subnormal, and +inf from half the largest number on.
        #[inline(always)]
        pub(crate) fn $flushed(x: $float) -> $float {
            let x = if x < $flushed_low { $flushed_low } else { x };
            let x = if x > $flushed_high { $flushed_high } else { x };
            let (p, biased) = $parts(x);
            // n + bias is from 0 to all ones: the bits of 0, of a power, or of infinity.
            p * $float::from_bits((biased << $mantissa) as _)
        }
    };
}

exp_polynomial!(
    exp_f32,
    exp_flushed_f32,
    exp_parts_f32,
    f32,
    i32,
    23,
    127,
    [-104.0, 89.0],
    [-88.3, 89.0],
    [0.693_359_4, -2.121_944_4e-4],
    [1.381_453_6e-3, 8.368_745e-3, 4.166_839e-2, 0.166_665_2, 0.499_999_93]
);
exp_polynomial!(
    exp_f64,
    exp_flushed_f64,
    exp_parts_f64,
    f64,
    i64,
    52,
    1023,
    [-746.0, 710.0],
    [-709.0, 710.0],
    [0.693_147_180_369_123_8, 1.908_214_929_270_587_7e-10],
    [
        2.500_002_394_031_581_3e-8,
        2.763_030_624_035_685e-7,
        2.755_758_678_327_844e-6,
        2.480_149_294_975_065e-5,
        1.984_126_950_580_247_8e-4,
        1.388_888_894_375_978e-3,
        8.333_333_333_494_961e-3,
        4.166_666_666_652_973e-2,
        0.166_666_666_666_664_1,
        0.500_000_000_000_001
    ]
);

/// 1 / (1 + e^-x) and 1 less that, relative errors below 1.3e-5, for `bf16` and `f16`, whose rounding hides them.
///
/// A shorter polynomial for e^-x, and for the quotient a guess from the bits of the divisor (error below 0.051) and
/// the first terms of a geometric series (7e-6): multiplications, of which a processor does twenty in the time of one
/// division. At least 1.6e-38, the end of the numbers for which the guess works.
#[inline(always)]
pub(crate) fn sigmoid_short(x: f32) -> (f32, f32) {
    const ROUND: f32 = 12_583_039.0; // 1.5 * 2^23 + 127, see `exp_polynomial`
    let x = if x < -87.0 { -87.0 } else { x };
    let x = if x > 87.0 { 87.0 } else { x };
    let shifted = x.mul_add(-std::f32::consts::LOG2_E, ROUND);
    // 2^r with r from -1/2 to 1/2.
    let r = x.mul_add(-std::f32::consts::LOG2_E, ROUND - shifted);
    let mut p = 9.570_007e-3_f32;
    for c in [5.591_868e-2_f32, 0.240_247_53, 0.693_121_7, 0.999_999_3] {
        p = p.mul_add(r, c);
    }
    let exp = p * f32::from_bits(shifted.to_bits() << 23);
    let divisor = 1.0 + exp;
    let guess = f32::from_bits(0x7ef3_11c7_u32.wrapping_sub(divisor.to_bits()));
    let error = (-divisor).mul_add(guess, 1.0);
    // 1 / (1 - error) is about (1 + error) (1 + error^2): two factors that do not wait for each other.
    let quotient = error.mul_add(guess, guess);
    let quotient = (error * error).mul_add(quotient, quotient);
    (quotient, exp * quotient)
}

/// Natural logarithm of a normal, positive, finite number: relative error about 3e-16.
///
/// ln(2^k m) = k ln 2 + 2 artanh(s), s = (m - 1) / (m + 1), with m between sqrt(1/2) and sqrt(2). No step depends
/// on the instruction set: all of them give the same bits.
#[inline(always)]
pub(crate) fn ln_normal(x: f64) -> f64 {
    const ROUND: f64 = 6_755_399_441_055_744.0; // 1.5 * 2^52, see `exp_polynomial`
    let above = x.to_bits().wrapping_sub(std::f64::consts::FRAC_1_SQRT_2.to_bits());
    // Logical shifts alone: AVX2 has no arithmetic one of 64 bits. x >= sqrt(1/2) 2^-1024 in all cases.
    let k = (above.wrapping_add(1024 << 52) >> 52).wrapping_sub(1024);
    let m = f64::from_bits(x.to_bits().wrapping_sub(k << 52));
    let k = f64::from_bits(ROUND.to_bits().wrapping_add(k)) - ROUND;
    let s = (m - 1.0) / (m + 1.0);
    let z = s * s;
    let mut p = 0.168_199_901_805_349_f64;
    for c in [
        0.181_236_290_121_356_56_f64,
        0.222_233_720_878_153_75,
        0.285_714_171_243_277_5,
        0.400_000_000_523_059_2,
        0.666_666_666_665_871_5,
    ] {
        p = p.mul_add(z, c);
    }
    let mantissa = (p * z).mul_add(s, s + s);
    k.mul_add(std::f64::consts::LN_2, mantissa)
}

/// (sin, cos) of 2 pi `turns` for |`turns`| below 2^48, absolute error about 1e-16, with the same bits on all
/// instruction sets.
#[inline(always)]
pub(crate) fn sin_cos_turns(turns: f64) -> (f64, f64) {
    const ROUND: f64 = 6_755_399_441_055_744.0; // 1.5 * 2^52, see `exp_polynomial`
    let quarters = 4.0 * turns;
    let shifted = quarters + ROUND;
    let quadrant = shifted.to_bits();
    let t = quarters - (shifted - ROUND);
    let z = t * t;
    let mut s = 5.634_457_460_566_986e-8_f64;
    for c in [
        -3.598_647_737_186_655_5e-6_f64,
        1.604_411_521_587_883_3e-4,
        -4.681_754_132_561_498e-3,
        7.969_262_624_605_974e-2,
        -0.645_964_097_506_245,
    ] {
        s = s.mul_add(z, c);
    }
    let sin = t * s.mul_add(z, std::f64::consts::FRAC_PI_2);
    let mut c = 4.655_331_403_671_524e-7_f64;
    for k in [
        -2.520_014_265_379_205_3e-5_f64,
        9.192_599_540_433_607e-4,
        -2.086_348_073_585_520_7e-2,
        0.253_669_507_899_958_7,
        -1.233_700_550_136_155_4,
    ] {
        c = c.mul_add(z, k);
    }
    quarter_turns(quadrant, sin, c.mul_add(z, 1.0))
}

/// (sin, cos) of an angle and `quadrant` quarters of a turn, from those of the angle.
#[inline(always)]
fn quarter_turns(quadrant: u64, sin: f64, cos: f64) -> (f64, f64) {
    let odd = quadrant & 1 == 1;
    let (s, c) = if odd { (cos, sin) } else { (sin, cos) };
    // The sign bits: sin is negative in quadrants 2 and 3, cos in 1 and 2.
    let sin_sign = (quadrant & 2) << 62;
    let cos_sign = (quadrant.wrapping_add(1) & 2) << 62;
    (f64::from_bits(s.to_bits() ^ sin_sign), f64::from_bits(c.to_bits() ^ cos_sign))
}

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
    quarter_turns(quadrant, sin, cos)
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

    #[test]
    fn flushed_exp_agrees_but_at_the_ends() {
        let mut worst = [0.0_f64; 2];
        for i in -870_000..=883_000 {
            let x = i as f32 * 1e-4;
            worst[0] = worst[0].max((f64::from(exp_flushed_f32(x)) / f64::from(x).exp() - 1.0).abs());
            let x = f64::from(i) * 8e-4;
            worst[1] = worst[1].max((exp_flushed_f64(x) / x.exp() - 1.0).abs());
        }
        assert!(worst[0] < 1.2e-7 && worst[1] < 5e-16, "{worst:?}");
        assert_eq!(
            [-1e30, -88.5, f32::NEG_INFINITY, 89.0, f32::INFINITY].map(exp_flushed_f32),
            [0.0, 0.0, 0.0, f32::INFINITY, f32::INFINITY]
        );
        assert_eq!(
            [-1e300, f64::NEG_INFINITY, 711.0, f64::INFINITY].map(exp_flushed_f64),
            [0.0, 0.0, f64::INFINITY, f64::INFINITY]
        );
        assert!(exp_flushed_f32(0.0) == 1.0 && exp_flushed_f64(0.0) == 1.0);
        assert!(exp_flushed_f32(f32::NAN).is_nan() && exp_flushed_f64(f64::NAN).is_nan());
    }

    #[test]
    fn short_sigmoid_is_within_its_error() {
        let mut worst = 0.0_f64;
        for i in -869_000..=869_000 {
            let x = i as f32 * 1e-4;
            let truth = 1.0 / (1.0 + (-f64::from(x)).exp());
            let complement = 1.0 / (1.0 + f64::from(x).exp());
            let (sigmoid, rest) = sigmoid_short(x);
            worst = worst.max((f64::from(sigmoid) / truth - 1.0).abs());
            worst = worst.max((f64::from(rest) / complement - 1.0).abs());
        }
        assert!(worst < 1.3e-5, "worst relative error {worst:e}");
        for x in [f32::NEG_INFINITY, -1e30, -88.0] {
            let (sigmoid, rest) = sigmoid_short(x);
            assert!(sigmoid < 2e-38 && (rest - 1.0).abs() < 1.3e-5, "{x}");
        }
        assert!(sigmoid_short(f32::NAN).0.is_nan() && sigmoid_short(f32::NAN).1.is_nan());
    }

    #[test]
    fn logarithms_and_turns_are_accurate() {
        let mut worst = [0.0_f64; 2];
        for i in 1..400_000 {
            let x = f64::from(i) / 400_000.0;
            worst[0] = worst[0].max((ln_normal(x) / x.ln() - 1.0).abs());
            let small = x * 2f64.powi(-(i % 60));
            worst[0] = worst[0].max((ln_normal(small) / small.ln() - 1.0).abs());
            let (sin, cos) = sin_cos_turns(x);
            // Reduced without rounding before the library sees it.
            let quarters = (4.0 * x).round();
            let (s, c) = ((4.0 * x - quarters) * std::f64::consts::FRAC_PI_2).sin_cos();
            let (s, c) = quarter_turns(quarters as u64, s, c);
            worst[1] = worst[1].max((sin - s).abs()).max((cos - c).abs());
        }
        assert!(worst[0] < 5e-16 && worst[1] < 4e-16, "{worst:?}");
        assert_eq!(ln_normal(1.0), 0.0);
        assert_eq!(
            [0.0, 0.25, 0.5, 0.75].map(sin_cos_turns),
            [(0.0, 1.0), (1.0, 0.0), (0.0, -1.0), (-1.0, 0.0)]
        );
    }
}
