//! Panels of lanes that are contiguous in depth, turned in the registers of AVX-512. Other panels are copied by
//! `pack`.

use std::arch::x86_64::*;

/// A panel of `width` lanes (a multiple of 4), `stride` elements from one lane's depths to the next lane's: lane i
/// at depth p goes to `out[p * width + i]`.
///
/// # Safety
/// The machine has AVX-512 F and DQ; every lane holds `depth` elements, `out` `depth * width`.
#[target_feature(enable = "avx512f,avx512dq")]
pub(super) unsafe fn turn_f32(data: *const f32, stride: usize, depth: usize, width: usize, out: *mut f32) {
    // SAFETY: blocks of four depths lie inside the lanes, and their results inside `out`; the rest is copied one by one.
    unsafe {
        for (at, lanes) in groups(width) {
            let (data, out) = (data.add(at * stride), out.add(at));
            let mask = ((1u32 << lanes) - 1) as __mmask16;
            for p in (0..depth / 4 * 4).step_by(4) {
                // Row r of four has, in its 128-bit lane q, depths p.. of lane 4 q + r.
                let row = |r: usize| {
                    let quad = |q: usize| _mm_loadu_ps(data.add((4 * q + r) * stride + p));
                    let mut x = _mm512_castps128_ps512(quad(0));
                    if lanes > 4 {
                        x = _mm512_insertf32x4::<1>(x, quad(1));
                    }
                    if lanes > 8 {
                        x = _mm512_insertf32x4::<2>(x, quad(2));
                    }
                    if lanes > 12 {
                        x = _mm512_insertf32x4::<3>(x, quad(3));
                    }
                    x
                };
                let (x0, x1, x2, x3) = (row(0), row(1), row(2), row(3));
                let (y0, y1) = (_mm512_unpacklo_ps(x0, x1), _mm512_unpackhi_ps(x0, x1));
                let (y2, y3) = (_mm512_unpacklo_ps(x2, x3), _mm512_unpackhi_ps(x2, x3));
                let turned = [
                    _mm512_shuffle_ps::<0x44>(y0, y2),
                    _mm512_shuffle_ps::<0xee>(y0, y2),
                    _mm512_shuffle_ps::<0x44>(y1, y3),
                    _mm512_shuffle_ps::<0xee>(y1, y3),
                ];
                for (q, turned) in turned.into_iter().enumerate() {
                    _mm512_mask_storeu_ps(out.add((p + q) * width), mask, turned);
                }
            }
            for p in depth / 4 * 4..depth {
                (0..lanes).for_each(|i| *out.add(p * width + i) = *data.add(i * stride + p));
            }
        }
    }
}

/// [`turn_f32`] of f64.
///
/// # Safety
/// As there.
#[target_feature(enable = "avx512f,avx512dq")]
pub(super) unsafe fn turn_f64(data: *const f64, stride: usize, depth: usize, width: usize, out: *mut f64) {
    // SAFETY: as in `turn_f32`, two depths at a time.
    unsafe {
        for at in (0..width).step_by(4) {
            let (data, out) = (data.add(at * stride), out.add(at));
            for p in (0..depth / 2 * 2).step_by(2) {
                let row = |r: usize| {
                    let pair = |q: usize| _mm_loadu_pd(data.add((2 * q + r) * stride + p));
                    _mm256_set_m128d(pair(1), pair(0))
                };
                let (x0, x1) = (row(0), row(1));
                _mm256_storeu_pd(out.add(p * width), _mm256_unpacklo_pd(x0, x1));
                _mm256_storeu_pd(out.add((p + 1) * width), _mm256_unpackhi_pd(x0, x1));
            }
            for p in depth / 2 * 2..depth {
                (0..4).for_each(|i| *out.add(p * width + i) = *data.add(i * stride + p));
            }
        }
    }
}

/// Lanes of a panel, 16 at a time: where each group starts, and how many it has.
fn groups(width: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..width).step_by(16).map(move |at| (at, (width - at).min(16)))
}
