//! Which keys of a block 32 queries see, with AVX-512. Nothing here reads a tensor.

use super::extents;
use super::pack::{Rows, Tile};
use super::softmax::Mask;
use super::tiles::SIDE;
use crate::attention::AttentionShape;
use std::arch::x86_64::*;
use std::ops::Range;

/// Which of 32 things from `first` there are, of `len`.
#[inline]
fn those_below(len: usize, first: usize) -> u32 {
    let left = len - first;
    if left >= SIDE { u32::MAX } else { (1 << left) - 1 }
}

/// 32 indices from `first`; `beyond` stands for those that are not there.
#[inline]
#[target_feature(enable = "avx512f")]
fn load(indices: &[u32], first: usize, beyond: u32) -> [__m512i; 2] {
    let there = those_below(indices.len(), first);
    let beyond = _mm512_set1_epi32(beyond as i32);
    let from = indices.as_ptr().wrapping_add(first);
    // SAFETY: only indices that are there are read.
    unsafe {
        [
            _mm512_mask_loadu_epi32(beyond, there as u16, from.cast()),
            _mm512_mask_loadu_epi32(beyond, (there >> 16) as u16, from.wrapping_add(16).cast()),
        ]
    }
}

/// Block `block` of keys, without those that are padding.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn key_tile<'a>(shape: &AttentionShape, rows: Rows<'a>, block: usize) -> Tile<'a> {
    let first = block * SIDE;
    let size = _mm512_set1_epi32(shape.k_size as i32);
    // An index of u32::MAX is never below the size.
    let [low, high] = load(shape.k_index, first, u32::MAX);
    let real = [_mm512_cmplt_epu32_mask(low, size), _mm512_cmplt_epu32_mask(high, size)];
    Tile { rows, first, real: u32::from(real[1]) << 16 | u32::from(real[0]) }
}

/// Up to 32 queries from `first`.
#[inline]
pub(super) fn query_tile<'a>(shape: &AttentionShape, rows: Rows<'a>, first: usize) -> Tile<'a> {
    Tile { rows, first, real: those_below(shape.q_len, first) }
}

/// The keys of a block, by their global indices.
pub(super) struct Keys {
    /// `u32::MAX`, which nobody sees, for those beyond the last.
    pub(super) index: [u32; SIDE],
    lowest: u32,
    highest: u32,
    /// How many there are.
    pub(super) len: usize,
}

impl Keys {
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(super) fn new(shape: &AttentionShape, block: usize) -> Keys {
        let first = block * SIDE;
        let [low, high] = load(shape.k_index, first, u32::MAX);
        let mut index = [0; SIDE];
        // SAFETY: two vectors are 32 indices.
        unsafe {
            _mm512_storeu_si512(index.as_mut_ptr().cast(), low);
            _mm512_storeu_si512(index.as_mut_ptr().add(16).cast(), high);
        }
        Keys {
            index,
            lowest: _mm512_reduce_min_epu32(_mm512_min_epu32(low, high)),
            highest: _mm512_reduce_max_epu32(_mm512_max_epu32(low, high)),
            len: SIDE.min(shape.k_len - first),
        }
    }
}

/// One past the last global key index that each of 32 queries sees. Queries beyond the last see no more than the
/// others do, so that no key matters to them alone.
#[derive(Clone, Copy)]
pub(super) struct Limits {
    each: [[u32; 16]; 2],
    lowest: u32,
    highest: u32,
}

impl Limits {
    /// Those of queries that see nothing.
    pub(super) const NONE: Limits = Limits { each: [[0; 16]; 2], lowest: 0, highest: 0 };

    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(super) fn new(shape: &AttentionShape, first: usize) -> Limits {
        let size = shape.k_size as u32;
        if !shape.causal || size == 0 {
            return Limits { each: [[size; 16]; 2], lowest: size, highest: size };
        }
        // min(index + 1, size), but the sum must not overflow.
        let (one, less) = (_mm512_set1_epi32(1), _mm512_set1_epi32((size - 1) as i32));
        let there = those_below(shape.q_len, first);
        let (first_half, second_half) = (there as u16, (there >> 16) as u16);
        let mut limits = load(shape.q_index, first, 0);
        let mut each = [[0; 16]; 2];
        for ((limits, each), there) in limits.iter_mut().zip(&mut each).zip([first_half, second_half]) {
            *limits = _mm512_maskz_add_epi32(there, _mm512_min_epu32(*limits, less), one);
            // SAFETY: an array of 64 bytes.
            unsafe { _mm512_storeu_si512(each.as_mut_ptr().cast(), *limits) };
        }
        let [low, high] = limits;
        let lowest = _mm512_mask_reduce_min_epu32(first_half, low)
            .min(_mm512_mask_reduce_min_epu32(second_half, high));
        let highest = _mm512_mask_reduce_max_epu32(first_half, low)
            .max(_mm512_mask_reduce_max_epu32(second_half, high));
        Limits { each, lowest, highest }
    }

    /// Whether any query sees a key of the block.
    #[inline]
    pub(super) fn see(&self, keys: &Keys) -> bool {
        keys.lowest < self.highest
    }

    /// Whether every query sees every key of the block.
    #[inline]
    pub(super) fn see_all(&self, keys: &Keys) -> bool {
        keys.highest < self.lowest
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(super) fn mask<'a>(&self, keys: &'a Keys) -> Mask<'a> {
        let [low, high] = &self.each;
        // SAFETY: arrays of 64 bytes.
        let limits =
            unsafe { [_mm512_loadu_si512(low.as_ptr().cast()), _mm512_loadu_si512(high.as_ptr().cast())] };
        Mask { index: &keys.index, limits }
    }

    /// The blocks from the first to the last that any query sees.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(super) fn blocks_seen(&self, shape: &AttentionShape) -> Range<usize> {
        let (num_blocks, _) = extents(shape);
        let (mut first, mut end) = (0, num_blocks);
        while first < end && !self.see(&Keys::new(shape, first)) {
            first += 1;
        }
        while end > first && !self.see(&Keys::new(shape, end - 1)) {
            end -= 1;
        }
        first..end
    }
}
