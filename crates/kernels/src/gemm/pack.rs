//! Copies of blocks of a matrix as panels that the inner loops read front to back. No product lives here.

use crate::float::Float;
use crate::storage::Storage;
use pulp::{Simd, WithSimd};

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
            4 => self.run::<4>(),
            6 => self.run::<6>(),
            8 => self.run::<8>(),
            16 => self.run::<16>(),
            12 => self.run::<12>(),
            32 => self.run::<32>(),
            width => unreachable!("no panel is {width} wide"),
        }
    }
}

impl<S: Storage> Pack<'_, S> {
    #[inline(always)]
    fn run<const WIDTH: usize>(self) {
        let Pack { data, lane_stride, depth_stride, lanes, depth, out, .. } = self;
        for (panel, out) in out.chunks_exact_mut(WIDTH * depth).take(lanes.div_ceil(WIDTH)).enumerate() {
            let lane = panel * WIDTH;
            let data = &data[lane * lane_stride..];
            if lane + WIDTH > lanes {
                out.fill(S::Wide::ZERO);
                for p in 0..depth {
                    for i in 0..lanes - lane {
                        out[p * WIDTH + i] = data[i * lane_stride + p * depth_stride].widen();
                    }
                }
            } else if lane_stride == 1 {
                for (p, out) in out.as_chunks_mut::<WIDTH>().0.iter_mut().enumerate() {
                    let row: &[S; WIDTH] = data[p * depth_stride..].first_chunk().unwrap();
                    for (out, x) in out.iter_mut().zip(row) {
                        *out = x.widen();
                    }
                }
            } else {
                transpose::<S, WIDTH>(data, lane_stride, depth_stride, depth, out);
            }
        }
    }
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
