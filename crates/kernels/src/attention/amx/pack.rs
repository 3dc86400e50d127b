//! Between rows of tensors and squares or blocks, with AVX-512. No product, no softmax.
//!
//! Rows and columns that are not there are zeros in squares, and are not written.

use super::keys::key_tile;
use super::tiles::{Block, SIDE, Square};
use crate::attention::AttentionShape;
use crate::parts::Shared;
use half::bf16;
use std::arch::x86_64::*;

/// Rows of one head in a tensor.
#[derive(Clone, Copy)]
pub(super) struct Rows<'a> {
    data: &'a [bf16],
    start: usize,
    /// Elements from one row to the next.
    stride: usize,
    head_dim: usize,
}

impl<'a> Rows<'a> {
    /// `count` rows of `head_dim` elements, the first at `start`.
    pub(super) fn new(data: &'a [bf16], start: usize, stride: usize, head_dim: usize, count: usize) -> Self {
        assert!(
            count == 0 || start + (count - 1) * stride + head_dim <= data.len(),
            "rows lie in their tensor"
        );
        Rows { data, start, stride, head_dim }
    }

    /// Whether all keys but padding are finite.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    pub(super) fn are_finite(self, shape: &AttentionShape) -> bool {
        let mut finite = true;
        for block in 0..shape.k_len.div_ceil(SIDE) {
            finite &= key_tile(shape, self, block).is_finite();
        }
        finite
    }
}

/// Rows of one head in a tensor that threads write.
#[derive(Clone, Copy)]
pub(super) struct RowsMut<'a> {
    pub(super) to: &'a Shared<'a, bf16>,
    pub(super) start: usize,
    pub(super) stride: usize,
    pub(super) head_dim: usize,
}

impl<'a> RowsMut<'a> {
    /// Row `i`.
    ///
    /// # Safety
    /// It is this thread's, and borrowed once at a time.
    #[inline]
    pub(super) unsafe fn row(&self, i: usize) -> &'a mut [bf16] {
        let at = self.start + i * self.stride;
        // SAFETY: vouched for by the caller.
        unsafe { self.to.part(at..at + self.head_dim) }
    }
}

/// Up to 32 of the rows, those whose bit is set in `real`; real rows exist.
#[derive(Clone, Copy)]
pub(super) struct Tile<'a> {
    pub(super) rows: Rows<'a>,
    pub(super) first: usize,
    pub(super) real: u32,
}

impl Tile<'_> {
    /// Columns 32 `step`.. of row `row`, up to 32 of them.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    fn line(self, row: usize, step: usize) -> __m512i {
        let Rows { data, start, stride, head_dim } = self.rows;
        let columns = if self.real >> row & 1 == 1 { columns_of(head_dim, step) } else { 0 };
        let from = data.as_ptr().wrapping_add(start + (self.first + row) * stride + step * SIDE);
        // SAFETY: the columns of a real row lie in the tensor; nothing else is touched.
        unsafe { _mm512_maskz_loadu_epi16(columns, from.cast()) }
    }

    /// Whether all elements are finite.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    pub(super) fn is_finite(self) -> bool {
        let exponent = _mm512_set1_epi16(0x7f80);
        let mut special = 0;
        for step in 0..self.rows.head_dim.div_ceil(SIDE) {
            for row in 0..SIDE {
                let bits = _mm512_and_si512(self.line(row, step), exponent);
                special |= _mm512_cmpeq_epi16_mask(bits, exponent);
            }
        }
        special == 0
    }

    /// The inner product of row `row` and that of another tensor, 0 if there is none.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    pub(super) fn dot(self, other: Tile, row: usize) -> f32 {
        let mut sums = _mm512_setzero_ps();
        for step in 0..self.rows.head_dim.div_ceil(SIDE) {
            sums = _mm512_dpbf16_ps(sums, bf16s(self.line(row, step)), bf16s(other.line(row, step)));
        }
        _mm512_reduce_add_ps(sums)
    }

    /// A left operand: lanes are rows, depths are columns.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    pub(super) fn left(self, step: usize, to: &mut Square) {
        for (row, line) in to.0.iter_mut().enumerate() {
            put_words(line, self.line(row, step));
        }
    }

    /// A left operand: lanes are columns, depths are rows.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    pub(super) fn left_transposed(self, step: usize, to: &mut Square) {
        for half in 0..2 {
            let mut pairs = [_mm512_setzero_si512(); 16];
            for (pair, value) in pairs.iter_mut().enumerate() {
                let (even, odd) = (self.line(2 * pair, step), self.line(2 * pair + 1, step));
                *value = if half == 0 {
                    _mm512_unpacklo_epi16(even, odd)
                } else {
                    _mm512_unpackhi_epi16(even, odd)
                };
            }
            for (i, value) in transpose(pairs).into_iter().enumerate() {
                put_words(&mut to.0[unpacked(half, i)], value);
            }
        }
    }

    /// A right operand: lanes are rows, depths are columns.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    pub(super) fn right(self, step: usize, to: &mut Square) {
        for tile in 0..2 {
            let mut rows = [_mm512_setzero_si512(); 16];
            for (row, value) in rows.iter_mut().enumerate() {
                *value = self.line(tile * 16 + row, step);
            }
            for (pair, value) in transpose(rows).into_iter().enumerate() {
                put_words(&mut to.0[tile * 16 + pair], value);
            }
        }
    }

    /// A right operand: lanes are columns, depths are rows.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    pub(super) fn right_transposed(self, step: usize, to: &mut Square) {
        let zip =
            |first: u16| -> [u16; 32] { std::array::from_fn(|i| first + i as u16 / 2 + i as u16 % 2 * 32) };
        // SAFETY: arrays of 64 bytes.
        let [low, high] = [zip(0), zip(16)].map(|order| unsafe { _mm512_loadu_si512(order.as_ptr().cast()) });
        for pair in 0..16 {
            let (even, odd) = (self.line(2 * pair, step), self.line(2 * pair + 1, step));
            put_words(&mut to.0[pair], _mm512_permutex2var_epi16(even, low, odd));
            put_words(&mut to.0[16 + pair], _mm512_permutex2var_epi16(even, high, odd));
        }
    }
}

/// Which of 32 columns from 32 `step` there are.
#[inline]
fn columns_of(head_dim: usize, step: usize) -> u32 {
    let left = head_dim - step * SIDE;
    if left >= SIDE { u32::MAX } else { (1 << left) - 1 }
}

/// Which of 32 words the double word `i` of their `_mm512_unpacklo_epi16` (`half` 0) or `unpackhi` (1) with others
/// is made of.
#[inline]
pub(super) const fn unpacked(half: usize, i: usize) -> usize {
    i / 4 * 8 + half * 4 + i % 4
}

/// Two vectors of 16 lanes in the order that [`unpacked`] gives.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn unpack_lanes(x: [__m512; 2]) -> [__m512; 2] {
    const ORDER: [[i32; 16]; 2] = {
        let mut order = [[0; 16]; 2];
        let mut i = 0;
        while i < 32 {
            order[i / 16][i % 16] = unpacked(i / 16, i % 16) as i32;
            i += 1;
        }
        order
    };
    // SAFETY: arrays of 64 bytes.
    let [low, high] = [0, 1].map(|half| unsafe { _mm512_loadu_si512(ORDER[half].as_ptr().cast()) });
    [_mm512_permutex2var_ps(x[0], low, x[1]), _mm512_permutex2var_ps(x[0], high, x[1])]
}

#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn floats(x: &[f32; 16]) -> __m512 {
    // SAFETY: 64 bytes.
    unsafe { _mm512_loadu_ps(x.as_ptr()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn put(to: &mut [f32; 16], x: __m512) {
    // SAFETY: 64 bytes.
    unsafe { _mm512_storeu_ps(to.as_mut_ptr(), x) }
}

#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn put_words(to: &mut [bf16; 32], x: __m512i) {
    // SAFETY: 64 bytes.
    unsafe { _mm512_storeu_si512(to.as_mut_ptr().cast(), x) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn bf16s(words: __m512i) -> __m512bh {
    // SAFETY: vectors of 64 bytes without invalid values.
    unsafe { std::mem::transmute(words) }
}

/// 32 lanes rounded to bf16.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
pub(super) fn round(x: [__m512; 2]) -> __m512i {
    // SAFETY: vectors of 64 bytes without invalid values.
    unsafe { std::mem::transmute(_mm512_cvtne2ps_pbh(x[1], x[0])) }
}

/// `to = x` rounded, in columns 32 `step`.. of a row of a tensor.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
fn put_line(to: &mut [bf16], step: usize, x: [__m512; 2]) {
    let columns = columns_of(to.len(), step);
    // SAFETY: these columns are in the row.
    unsafe { _mm512_mask_storeu_epi16(to.as_mut_ptr().add(step * SIDE).cast(), columns, round(x)) }
}

/// Writes columns 32 `step`.. of row `row` of a tensor from the same row of a block, times `factor`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub(super) fn put_row(block: &Block, row: usize, factor: __m512, step: usize, to: &mut [bf16]) {
    let halves = [0, 1].map(|half| _mm512_mul_ps(floats(&block.0[row][half]), factor));
    put_line(to, step, halves);
}

/// Writes columns 32 `step`.. of `count` rows of a tensor from the columns of a block, times the column's factor;
/// columns are in the order that [`unpacked`] gives.
///
/// # Safety
/// The rows are this thread's, and not borrowed.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub(super) unsafe fn put_columns(
    block: &Block,
    factors: [__m512; 2],
    step: usize,
    count: usize,
    to: RowsMut,
) {
    for (half, factor) in factors.into_iter().enumerate() {
        let mut columns = [[_mm512_setzero_ps(); 16]; 2];
        for (part, columns) in columns.iter_mut().enumerate() {
            let mut rows = [_mm512_setzero_si512(); 16];
            for (i, value) in rows.iter_mut().enumerate() {
                let x = floats(&block.0[part * 16 + i][half]);
                *value = _mm512_castps_si512(_mm512_mul_ps(x, factor));
            }
            for (to, from) in columns.iter_mut().zip(transpose(rows)) {
                *to = _mm512_castsi512_ps(from);
            }
        }
        let [low, high] = columns;
        for (i, line) in low.into_iter().zip(high).enumerate() {
            let column = unpacked(half, i);
            if column < count {
                // SAFETY: vouched for by the caller.
                put_line(unsafe { to.row(column) }, step, line.into());
            }
        }
    }
}

/// Turns rows of 32 lanes into a block whose columns they are.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn transpose_rows(rows: &[[[f32; 16]; 2]; SIDE], to: &mut Block) {
    for (part, quarter) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
        let mut lines = [_mm512_setzero_si512(); 16];
        for (i, value) in lines.iter_mut().enumerate() {
            *value = _mm512_castps_si512(floats(&rows[part * 16 + i][quarter]));
        }
        for (i, value) in transpose(lines).into_iter().enumerate() {
            put(&mut to.0[quarter * 16 + i][part], _mm512_castsi512_ps(value));
        }
    }
}

/// The transpose of 16 rows of 16 double words.
#[inline]
#[target_feature(enable = "avx512f")]
pub(in super::super) fn transpose(rows: [__m512i; 16]) -> [__m512i; 16] {
    let mut pairs = [_mm512_setzero_si512(); 16];
    for i in 0..8 {
        pairs[2 * i] = _mm512_unpacklo_epi32(rows[2 * i], rows[2 * i + 1]);
        pairs[2 * i + 1] = _mm512_unpackhi_epi32(rows[2 * i], rows[2 * i + 1]);
    }
    // Quad 4g + j: in each quarter its column j of rows 4g..4g+4.
    let mut quads = [_mm512_setzero_si512(); 16];
    for g in 0..4 {
        for j in 0..2 {
            let (above, below) = (pairs[4 * g + j], pairs[4 * g + 2 + j]);
            quads[4 * g + 2 * j] = _mm512_unpacklo_epi64(above, below);
            quads[4 * g + 2 * j + 1] = _mm512_unpackhi_epi64(above, below);
        }
    }
    let mut columns = [_mm512_setzero_si512(); 16];
    for j in 0..4 {
        let even_above = _mm512_shuffle_i32x4::<0x88>(quads[j], quads[4 + j]);
        let odd_above = _mm512_shuffle_i32x4::<0xdd>(quads[j], quads[4 + j]);
        let even_below = _mm512_shuffle_i32x4::<0x88>(quads[8 + j], quads[12 + j]);
        let odd_below = _mm512_shuffle_i32x4::<0xdd>(quads[8 + j], quads[12 + j]);
        columns[j] = _mm512_shuffle_i32x4::<0x88>(even_above, even_below);
        columns[8 + j] = _mm512_shuffle_i32x4::<0xdd>(even_above, even_below);
        columns[4 + j] = _mm512_shuffle_i32x4::<0x88>(odd_above, odd_below);
        columns[12 + j] = _mm512_shuffle_i32x4::<0xdd>(odd_above, odd_below);
    }
    columns
}
