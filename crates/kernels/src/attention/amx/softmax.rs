//! From blocks of scores to squares of weights and of their gradients, with AVX-512. Lanes are queries, rows are
//! keys, so that nothing is summed across lanes. No product, no memory of tensors.

use super::pack::{floats, put_words, round};
use super::tiles::{Block, SIDE, Square};
use std::arch::x86_64::*;

/// A vector for each half of 32 queries.
pub(super) type Lanes = [__m512; 2];

/// Which keys of a block each of 32 queries sees.
#[derive(Clone, Copy)]
pub(super) struct Mask<'a> {
    /// Global indices of the keys; `u32::MAX`, which nobody sees, for those beyond the last.
    pub(super) index: &'a [u32; SIDE],
    pub(super) limits: [__m512i; 2],
}

impl Mask<'_> {
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn lanes(self, key: usize, half: usize) -> __mmask16 {
        _mm512_cmplt_epu32_mask(_mm512_set1_epi32(self.index[key] as i32), self.limits[half])
    }
}

/// 2 to the power of x, with a relative error below 4e-6: far less than rounding to bf16 adds.
///
/// The fraction in [0, 1) is x - floor(x), and `scalef` scales by 2^floor(x), to 0 and to infinity too. The
/// coefficients are the minimax ones of the relative error, given that 2^0 is 1.
#[inline]
#[target_feature(enable = "avx512f,avx512dq")]
pub(super) fn exp2(x: __m512) -> __m512 {
    const FLOOR: i32 = 0x09;
    let r = _mm512_reduce_ps::<FLOOR>(x);
    let mut p = _mm512_set1_ps(0.013_426_684);
    for coefficient in [0.052_242_473, 0.241_280_2, 0.693_044_84, 1.0] {
        p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(coefficient));
    }
    _mm512_scalef_ps(p, x)
}

/// The logarithm of x to base 2 with an error below 1e-7 max(1, |log2 x|), of what is 0 or more, or NaN.
///
/// x = m 2^e with m in [2/3, 4/3); ln m = 2 atanh(s) with s = (m - 1) / (m + 1), |s| <= 1/5, by its series.
#[inline]
#[target_feature(enable = "avx512f,avx512dq")]
pub(super) fn log2(x: __m512) -> __m512 {
    // A mantissa in [1, 2), halved together with its exponent's step from 4/3 on.
    let mantissa = _mm512_getmant_ps::<_MM_MANT_NORM_1_2, _MM_MANT_SIGN_SRC>(x);
    let exponent = _mm512_getexp_ps(x);
    let one = _mm512_set1_ps(1.0);
    let large = _mm512_cmp_ps_mask::<_CMP_GE_OQ>(mantissa, _mm512_set1_ps(4.0 / 3.0));
    let mantissa = _mm512_mask_mul_ps(mantissa, large, mantissa, _mm512_set1_ps(0.5));
    let exponent = _mm512_mask_add_ps(exponent, large, exponent, one);
    let s = _mm512_div_ps(_mm512_sub_ps(mantissa, one), _mm512_add_ps(mantissa, one));
    let square = _mm512_mul_ps(s, s);
    let mut series = _mm512_set1_ps(1.0 / 9.0);
    for coefficient in [1.0 / 7.0, 1.0 / 5.0, 1.0 / 3.0, 1.0] {
        series = _mm512_fmadd_ps(series, square, _mm512_set1_ps(coefficient));
    }
    let factor = _mm512_mul_ps(s, _mm512_set1_ps(2.0 * std::f32::consts::LOG2_E));
    _mm512_fmadd_ps(series, factor, exponent)
}

/// The largest of `max` and the scaled scores that each query sees.
#[inline]
#[target_feature(enable = "avx512f,avx512dq")]
pub(super) fn maxima<const MASKED: bool>(scores: &Block, mask: Mask, scale: __m512, max: &mut Lanes) {
    // Two chains for each half: a maximum takes four cycles.
    let mut chains = [*max; 2];
    let (pairs, _) = scores.0.as_chunks::<2>();
    for (pair, rows) in pairs.iter().enumerate() {
        for odd in 0..2 {
            for half in 0..2 {
                let max = chains[odd][half];
                let score = _mm512_mul_ps(floats(&rows[odd][half]), scale);
                // The second operand is what remains if the score is NaN.
                chains[odd][half] = if MASKED {
                    _mm512_mask_max_ps(max, mask.lanes(2 * pair + odd, half), score, max)
                } else {
                    _mm512_max_ps(score, max)
                };
            }
        }
    }
    for half in 0..2 {
        max[half] = _mm512_max_ps(chains[0][half], chains[1][half]);
    }
}

/// The weights 2^(scale score - shift) as a right operand, their depths keys; their sums are added to `sum`.
///
/// `factors` multiply the weights, not the sums. The lanes of the operand are [`unpacked`](super::pack::unpacked).
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512bf16")]
pub(super) fn weights<const MASKED: bool>(
    scores: &Block,
    mask: Mask,
    scale: __m512,
    shift: Lanes,
    factors: Option<&Block>,
    weights: &mut Square,
    sum: &mut Lanes,
) {
    let mut sums = [*sum, [_mm512_setzero_ps(); 2]];
    for pair in 0..16 {
        let mut words = [_mm512_setzero_si512(); 2];
        for odd in 0..2 {
            let key = 2 * pair + odd;
            let mut p = [_mm512_setzero_ps(); 2];
            for half in 0..2 {
                let x = _mm512_fmsub_ps(floats(&scores.0[key][half]), scale, shift[half]);
                p[half] = exp2(x);
                if MASKED {
                    p[half] = _mm512_maskz_mov_ps(mask.lanes(key, half), p[half]);
                }
                sums[odd][half] = _mm512_add_ps(sums[odd][half], p[half]);
                if let Some(factors) = factors {
                    p[half] = _mm512_mul_ps(p[half], floats(&factors.0[key][half]));
                }
            }
            words[odd] = round(p);
        }
        put_words(&mut weights.0[pair], _mm512_unpacklo_epi16(words[0], words[1]));
        put_words(&mut weights.0[16 + pair], _mm512_unpackhi_epi16(words[0], words[1]));
    }
    for half in 0..2 {
        sum[half] = _mm512_add_ps(sums[0][half], sums[1][half]);
    }
}

/// What the backward pass knows of 32 queries.
#[derive(Clone, Copy, Default)]
pub(super) struct Known {
    /// lse / ln 2.
    pub(super) shift: [[f32; 16]; 2],
    /// The inner product of each query's output and its gradient.
    pub(super) delta: [[f32; 16]; 2],
}

/// The weights and the gradients by the scores, as left operands (lanes keys, depths queries), and the gradients
/// also as a right operand (lanes queries, [`unpacked`](super::pack::unpacked), depths keys).
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512bf16")]
pub(super) fn gradients<const MASKED: bool>(
    scores: &Block,
    d_weights: &Block,
    mask: Mask,
    scale: __m512,
    known: &Known,
    factors: Option<&Block>,
    weights: &mut Square,
    d_scores: &mut Square,
    d_scores_right: &mut Square,
) {
    let shift: Lanes = [floats(&known.shift[0]), floats(&known.shift[1])];
    let delta: Lanes = [floats(&known.delta[0]), floats(&known.delta[1])];
    for pair in 0..16 {
        let mut words = [_mm512_setzero_si512(); 2];
        for (odd, words) in words.iter_mut().enumerate() {
            let key = 2 * pair + odd;
            let (mut p, mut d) = ([_mm512_setzero_ps(); 2], [_mm512_setzero_ps(); 2]);
            for half in 0..2 {
                let x = _mm512_fmsub_ps(floats(&scores.0[key][half]), scale, shift[half]);
                p[half] = exp2(x);
                let d_weight = floats(&d_weights.0[key][half]);
                let difference = if let Some(factors) = factors {
                    _mm512_fmsub_ps(d_weight, floats(&factors.0[key][half]), delta[half])
                } else {
                    _mm512_sub_ps(d_weight, delta[half])
                };
                if MASKED {
                    // After the fact, so that a NaN among what is known does not reach keys that are not seen.
                    let lanes = mask.lanes(key, half);
                    d[half] = _mm512_maskz_mul_ps(lanes, p[half], difference);
                    p[half] = _mm512_maskz_mov_ps(lanes, p[half]);
                } else {
                    d[half] = _mm512_mul_ps(p[half], difference);
                }
                if let Some(factors) = factors {
                    p[half] = _mm512_mul_ps(p[half], floats(&factors.0[key][half]));
                }
            }
            put_words(&mut weights.0[key], round(p));
            *words = round(d);
            put_words(&mut d_scores.0[key], *words);
        }
        put_words(&mut d_scores_right.0[pair], _mm512_unpacklo_epi16(words[0], words[1]));
        put_words(&mut d_scores_right.0[16 + pair], _mm512_unpackhi_epi16(words[0], words[1]));
    }
}
