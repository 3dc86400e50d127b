//! Squares of 32 by 32 elements reordered for tiles, with AVX-512. Which squares those are is decided in `panel`.

use super::unit::{SIDE, SQUARE, STEP};
use half::bf16;
use std::arch::x86_64::*;

/// How a packed square is ordered, by what its rows and columns are in memory.
///
/// For a: lane after lane, each contiguous in depth. For b ("pairs"): two tiles of 16 lanes, in each 16 rows of
/// two successive depths, lane after lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    /// Rows are lanes; for a.
    Lanes,
    /// Rows are depths; for a.
    LanesFromDepths,
    /// Rows are depths; for b.
    Pairs,
    /// Rows are lanes; for b.
    PairsFromLanes,
}

impl Order {
    /// Whether rows in memory are depths, not lanes.
    pub(super) fn reads_depths(self) -> bool {
        matches!(self, Order::LanesFromDepths | Order::Pairs)
    }

    /// Where element (lane, depth) of a square goes.
    #[cfg(test)]
    pub(super) fn place(self, lane: usize, depth: usize) -> usize {
        match self {
            Order::Lanes | Order::LanesFromDepths => lane * STEP + depth,
            Order::Pairs | Order::PairsFromLanes => {
                (lane / 16) * (SQUARE / 2) + (depth / 2) * 32 + (lane % 16) * 2 + depth % 2
            }
        }
    }
}

/// Packs 32 rows of 32 elements, `stride` apart, into 1024.
///
/// # Safety
/// The machine has AVX-512 F and BW; 32 rows can be read and 1024 elements written.
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) unsafe fn pack(order: Order, from: *const bf16, stride: usize, to: *mut bf16) {
    // SAFETY: each reads and writes what the caller vouches for.
    unsafe {
        match order {
            Order::Lanes => copy(from, stride, to),
            Order::LanesFromDepths => lanes_from_depths(from, stride, to),
            Order::Pairs => pairs(from, stride, to),
            Order::PairsFromLanes => pairs_from_lanes(from, stride, to),
        }
    }
}

/// Row `index` of 32 elements.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn row(from: *const bf16, stride: usize, index: usize) -> __m512i {
    // SAFETY: the callers pass what theirs vouch for, and indices below 32.
    unsafe { _mm512_loadu_si512(from.add(index * stride).cast()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn store(to: *mut bf16, at: usize, value: __m512i) {
    // SAFETY: the callers pass what theirs vouch for, and at most 1024 - 32.
    unsafe { _mm512_storeu_si512(to.add(at).cast(), value) }
}

#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn copy(from: *const bf16, stride: usize, to: *mut bf16) {
    for lane in 0..SIDE {
        // SAFETY: as the caller vouches.
        unsafe { store(to, lane * STEP, row(from, stride, lane)) };
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn pairs(from: *const bf16, stride: usize, to: *mut bf16) {
    // Words of two rows, one after the other, of lanes 0..16 and 16..32.
    let (mut low, mut high) = ([0u16; 32], [0u16; 32]);
    for lane in 0..16 {
        for odd in 0..2 {
            low[2 * lane + odd] = (lane + 32 * odd) as u16;
            high[2 * lane + odd] = (16 + lane + 32 * odd) as u16;
        }
    }
    // SAFETY: arrays of 64 bytes; rows and places as the caller vouches.
    unsafe {
        let low = _mm512_loadu_si512(low.as_ptr().cast());
        let high = _mm512_loadu_si512(high.as_ptr().cast());
        for pair in 0..STEP / 2 {
            let (even, odd) = (row(from, stride, 2 * pair), row(from, stride, 2 * pair + 1));
            store(to, pair * 32, _mm512_permutex2var_epi16(even, low, odd));
            store(to, SQUARE / 2 + pair * 32, _mm512_permutex2var_epi16(even, high, odd));
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn pairs_from_lanes(from: *const bf16, stride: usize, to: *mut bf16) {
    for tile in 0..2 {
        // SAFETY: as the caller vouches.
        unsafe {
            let mut rows = [_mm512_setzero_si512(); 16];
            for (lane, value) in rows.iter_mut().enumerate() {
                *value = row(from, stride, tile * 16 + lane);
            }
            for (pair, value) in transpose(rows).into_iter().enumerate() {
                store(to, tile * SQUARE / 2 + pair * 32, value);
            }
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn lanes_from_depths(from: *const bf16, stride: usize, to: *mut bf16) {
    for half in 0..2 {
        // SAFETY: as the caller vouches.
        unsafe {
            let mut rows = [_mm512_setzero_si512(); 16];
            for (pair, value) in rows.iter_mut().enumerate() {
                let (even, odd) = (row(from, stride, 2 * pair), row(from, stride, 2 * pair + 1));
                // Of every eight lanes, these keep the lower or the upper four.
                *value = if half == 0 {
                    _mm512_unpacklo_epi16(even, odd)
                } else {
                    _mm512_unpackhi_epi16(even, odd)
                };
            }
            for (i, value) in transpose(rows).into_iter().enumerate() {
                let lane = i / 4 * 8 + half * 4 + i % 4;
                store(to, lane * STEP, value);
            }
        }
    }
}

/// The transpose of 16 rows of 16 double words.
#[inline]
#[target_feature(enable = "avx512f")]
fn transpose(rows: [__m512i; 16]) -> [__m512i; 16] {
    let mut double = rows;
    for i in 0..8 {
        double[2 * i] = _mm512_unpacklo_epi32(rows[2 * i], rows[2 * i + 1]);
        double[2 * i + 1] = _mm512_unpackhi_epi32(rows[2 * i], rows[2 * i + 1]);
    }
    // quad[4 i + j]: in each 128 bits q, column 4 q + j of rows 4 i to 4 i + 3.
    let mut quad = rows;
    for i in 0..4 {
        quad[4 * i] = _mm512_unpacklo_epi64(double[4 * i], double[4 * i + 2]);
        quad[4 * i + 1] = _mm512_unpackhi_epi64(double[4 * i], double[4 * i + 2]);
        quad[4 * i + 2] = _mm512_unpacklo_epi64(double[4 * i + 1], double[4 * i + 3]);
        quad[4 * i + 3] = _mm512_unpackhi_epi64(double[4 * i + 1], double[4 * i + 3]);
    }
    let mut columns = rows;
    for j in 0..4 {
        // 128-bit parts 0 and 2, then 1 and 3, of the first and second, third and fourth group of rows.
        let even_low = _mm512_shuffle_i32x4::<0x88>(quad[j], quad[4 + j]);
        let even_high = _mm512_shuffle_i32x4::<0x88>(quad[8 + j], quad[12 + j]);
        let odd_low = _mm512_shuffle_i32x4::<0xdd>(quad[j], quad[4 + j]);
        let odd_high = _mm512_shuffle_i32x4::<0xdd>(quad[8 + j], quad[12 + j]);
        columns[j] = _mm512_shuffle_i32x4::<0x88>(even_low, even_high);
        columns[8 + j] = _mm512_shuffle_i32x4::<0xdd>(even_low, even_high);
        columns[4 + j] = _mm512_shuffle_i32x4::<0x88>(odd_low, odd_high);
        columns[12 + j] = _mm512_shuffle_i32x4::<0xdd>(odd_low, odd_high);
    }
    columns
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::InstructionSet;

    #[test]
    fn squares_agree_with_the_definition() {
        if !InstructionSet::Avx512.is_available() {
            return eprintln!("skipped, for this machine has no AVX-512");
        }
        for order in [Order::Lanes, Order::LanesFromDepths, Order::Pairs, Order::PairsFromLanes] {
            for stride in [32, 33, 71] {
                let from: Vec<bf16> = (0..32 * stride).map(|i| bf16::from_bits(i as u16)).collect();
                let mut to = vec![bf16::NAN; SQUARE];
                // SAFETY: 32 rows of `stride` elements; the instructions are there.
                unsafe { pack(order, from.as_ptr(), stride, to.as_mut_ptr()) };
                for row in 0..32 {
                    for column in 0..32 {
                        let (lane, depth) = if order.reads_depths() { (column, row) } else { (row, column) };
                        let (is, expected) = (to[order.place(lane, depth)], from[row * stride + column]);
                        assert_eq!(is.to_bits(), expected.to_bits(), "{order:?} ({lane}, {depth})");
                    }
                }
            }
        }
    }
}
