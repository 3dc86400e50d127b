//! Copies of blocks of a matrix as panels that the inner loops read front to back. No product lives here.

use super::same_type;
#[cfg(target_arch = "x86_64")]
use super::turn;
use crate::float::Float;
use crate::storage::Storage;
use pulp::{Simd, WithSimd};

/// Lanes that are copied at once: a multiple of every width.
const GROUP: usize = 96;

/// A block to pack: `lanes` vectors of `depth` elements each, rows of a or columns of b.
pub(super) struct Pack<'a, S: Storage> {
    pub(super) data: &'a [S],
    pub(super) lane_stride: usize,
    pub(super) depth_stride: usize,
    pub(super) lanes: usize,
    pub(super) depth: usize,
    /// Lanes of a panel.
    pub(super) width: usize,
    /// Element (lane, p) goes to `panel * width * depth + p * width + lane % width`, panel = lane / width;
    /// lanes that the last panel lacks are zero.
    pub(super) out: &'a mut [S::Wide],
}

impl<S: Storage> WithSimd for Pack<'_, S> {
    type Output = ();

    #[inline(always)]
    fn with_simd<Set: Simd>(self, _: Set) {
        // The width is a constant in each: loops of unknown short length would dominate the copy.
        match self.width {
            4 => self.run::<Set, 4>(),
            6 => self.run::<Set, 6>(),
            8 => self.run::<Set, 8>(),
            16 => self.run::<Set, 16>(),
            12 => self.run::<Set, 12>(),
            32 => self.run::<Set, 32>(),
            width => unreachable!("no panel is {width} wide"),
        }
    }
}

impl<S: Storage> Pack<'_, S> {
    #[inline(always)]
    fn run<Set: Simd, const WIDTH: usize>(self) {
        let Pack { data, lane_stride, depth_stride, lanes, depth, out, .. } = self;
        let whole = lanes / WIDTH;
        let (panels, last) = out[..lanes.div_ceil(WIDTH) * WIDTH * depth].split_at_mut(whole * WIDTH * depth);
        if lane_stride == 1 {
            for (group, panels) in panels.chunks_mut(GROUP * depth).enumerate() {
                copy::<S, WIDTH>(&data[group * GROUP..], depth_stride, depth, panels);
            }
        } else {
            for (panel, out) in panels.chunks_exact_mut(WIDTH * depth).enumerate() {
                let data = &data[panel * WIDTH * lane_stride..];
                if depth_stride != 1 || !turned::<S, Set>(data, lane_stride, depth, WIDTH, out) {
                    transpose::<S, WIDTH>(data, lane_stride, depth_stride, depth, out);
                }
            }
        }
        last.fill(S::Wide::ZERO);
        for (p, out) in last.as_chunks_mut::<WIDTH>().0.iter_mut().enumerate() {
            for (i, out) in out[..lanes - whole * WIDTH].iter_mut().enumerate() {
                *out = data[(whole * WIDTH + i) * lane_stride + p * depth_stride].widen();
            }
        }
    }
}

/// Full panels from lanes that are beside each other: row after row, so that a page is visited once.
#[inline(always)]
fn copy<S: Storage, const WIDTH: usize>(data: &[S], depth_stride: usize, depth: usize, out: &mut [S::Wide]) {
    let panels = out.len() / (WIDTH * depth);
    for p in 0..depth {
        let row = &data[p * depth_stride..][..panels * WIDTH];
        for (panel, row) in row.as_chunks::<WIDTH>().0.iter().enumerate() {
            let at = (panel * depth + p) * WIDTH;
            // By way of a copy that cannot overlap what is read: the compiler needs to see that.
            let mut wide = [S::Wide::ZERO; WIDTH];
            for (wide, x) in wide.iter_mut().zip(row) {
                *wide = x.widen();
            }
            *out[at..].first_chunk_mut().unwrap() = wide;
        }
    }
}

/// A full panel from lanes that are contiguous in depth, if this is AVX-512 and the elements are copied as they are.
#[inline(always)]
fn turned<S: Storage, Set: Simd>(
    data: &[S],
    stride: usize,
    depth: usize,
    width: usize,
    out: &mut [S::Wide],
) -> bool {
    #[cfg(target_arch = "x86_64")]
    if same_type::<Set, pulp::x86::V4>() {
        assert!(data.len() >= (width - 1) * stride + depth && out.len() >= width * depth);
        let (data, out) = (data.as_ptr(), out.as_mut_ptr());
        // SAFETY: the lanes and the panel are whole, as asserted; a `V4` exists only where its instructions do.
        unsafe {
            if same_type::<S, f32>() {
                turn::turn_f32(data.cast(), stride, depth, width, out.cast());
                return true;
            }
            if same_type::<S, f64>() {
                turn::turn_f64(data.cast(), stride, depth, width, out.cast());
                return true;
            }
        }
    }
    let _ = (data, stride, depth, width, out);
    false
}

/// A full panel from lanes that are contiguous in depth.
#[inline(always)]
fn transpose<S: Storage, const WIDTH: usize>(
    data: &[S],
    lane_stride: usize,
    depth_stride: usize,
    depth: usize,
    out: &mut [S::Wide],
) {
    const STEP: usize = 8;
    let mut p = 0;
    while depth_stride == 1 && p + STEP <= depth {
        let mut block = [[S::Wide::ZERO; STEP]; WIDTH];
        for (i, block) in block.iter_mut().enumerate() {
            let row: &[S; STEP] = data[i * lane_stride + p..].first_chunk().unwrap();
            for (out, x) in block.iter_mut().zip(row) {
                *out = x.widen();
            }
        }
        let out: &mut [S::Wide] = &mut out[p * WIDTH..(p + STEP) * WIDTH];
        for (q, out) in out.as_chunks_mut::<WIDTH>().0.iter_mut().enumerate() {
            for (out, block) in out.iter_mut().zip(&block) {
                *out = block[q];
            }
        }
        p += STEP;
    }
    for p in p..depth {
        for i in 0..WIDTH {
            out[p * WIDTH + i] = data[i * lane_stride + p * depth_stride].widen();
        }
    }
}
