//! The innermost loops over packed panels: one register tile after another. No packing and no threads here.

use crate::cpu::InstructionSet;
use crate::float::Float;
use pulp::{Simd, WithSimd};
use std::mem::MaybeUninit;

/// Rows and columns of a register tile: of a's panels and of b's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shape {
    pub(super) rows: usize,
    pub(super) columns: usize,
}

/// Elements of the largest tile.
const LARGEST: usize = 12 * 32;
/// Bytes of the longest vector.
const LONGEST: usize = 64;
/// Bytes of a line of the caches.
const LINE: usize = 64;
/// Steps by which the panel of b, which comes from the second cache, is asked for ahead of its use.
const AHEAD: usize = 10;

impl Shape {
    /// The tile whose sums, with one row of b and an element of a, fill the registers of the instruction set.
    pub(super) const fn of<T: Float>(set: InstructionSet) -> Shape {
        let longest = LONGEST / size_of::<T>();
        match set {
            InstructionSet::Scalar => Shape { rows: 4, columns: 8 },
            InstructionSet::Avx2 => Shape { rows: 6, columns: longest },
            InstructionSet::Avx512 | InstructionSet::Amx => Shape { rows: 12, columns: 2 * longest },
        }
    }
}

/// `c = base + a b` of packed panels.
pub(super) struct Multiply<'a, T: Float> {
    pub(super) shape: Shape,
    pub(super) rows: usize,
    pub(super) columns: usize,
    pub(super) depth: usize,
    /// Panels of `shape.rows` rows, the last padded.
    pub(super) a: &'a [T],
    /// Panels of `shape.columns` columns, the last padded.
    pub(super) b: &'a [T],
    /// Row-major; `rows` rows of `columns` elements are written.
    pub(super) c: *mut T,
    pub(super) c_stride: usize,
    /// What comes nearer meanwhile; if nothing, each next panel of a does.
    pub(super) ahead: Option<Ahead>,
    /// What is added: as many rows and columns as c, and the elements from one of its rows to the next.
    pub(super) base: Option<(*const T, usize)>,
}

/// Rows in memory of which each tile brings one nearer, a few bytes a step: lines of a and b need not wait for it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ahead {
    start: *const u8,
    /// Bytes from one row to the next.
    stride: usize,
    rows: usize,
    /// Bytes a step.
    pace: usize,
}

impl Ahead {
    /// `rows` rows of one element a step, `stride` elements apart.
    pub(super) fn new<S>(start: *const S, stride: usize, rows: usize) -> Ahead {
        Ahead { start: start.cast(), stride: stride * size_of::<S>(), rows, pace: size_of::<S>() }
    }

    /// The row for one tile: the last for all that find none left.
    #[inline(always)]
    fn row(&self, tile: usize) -> *const u8 {
        self.start.wrapping_add(tile.min(self.rows - 1) * self.stride)
    }
}

impl<T: Float> WithSimd for Multiply<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        if S::IS_SCALAR {
            self.run::<S, 4, 8>(simd);
        } else if S::REGISTER_COUNT >= 32 {
            self.run::<S, 12, 2>(simd);
        } else {
            self.run::<S, 6, 2>(simd);
        }
    }
}

impl<T: Float> Multiply<'_, T> {
    /// Tiles of H rows and W vectors. A panel of a stays in the first cache while all of b passes.
    #[inline(always)]
    fn run<S: Simd, const H: usize, const W: usize>(self, simd: S) {
        let Multiply { shape, rows, columns, depth, a, b, c, c_stride, base, ahead } = self;
        let width = W * (size_of::<T::Vector<S>>() / size_of::<T>());
        assert_eq!([shape.rows, shape.columns], [H, width]);
        let (a_panels, b_panels) = (a.chunks_exact(H * depth), b.chunks_exact(width * depth));
        assert!(a_panels.len() >= rows.div_ceil(H) && b_panels.len() >= columns.div_ceil(width));
        let tiles = columns.div_ceil(width);
        let pace = ahead.map_or((H * size_of::<T>()).div_ceil(tiles.max(1)), |ahead| ahead.pace);
        let mut edge = [const { MaybeUninit::<T>::uninit() }; LARGEST];
        for (row, a) in (0..rows).step_by(H).zip(a_panels) {
            for (i, b) in b_panels.clone().take(tiles).enumerate() {
                let column = i * width;
                let next = match ahead {
                    Some(ahead) => ahead.row(row / H * tiles + i),
                    None => a.as_ptr_range().end.cast::<u8>().wrapping_add(i * pace * depth),
                };
                let (height, valid) = (H.min(rows - row), width.min(columns - column));
                let whole = height == H && valid == width;
                // SAFETY: the panels hold H and `width` elements for each of `depth` steps. A whole tile lies
                // inside the rows and columns that the maker of `self` vouches for; of another, only the part
                // inside is copied there, of `edge` only what `tile` wrote. One call serves both: of two, the
                // compiler keeps one in registers.
                unsafe {
                    let c = c.add(row * c_stride + column);
                    let base = base.map(|(base, stride)| (base.add(row * stride + column), stride));
                    let (to, stride) = if whole { (c, c_stride) } else { (edge.as_mut_ptr().cast(), width) };
                    let (from, from_stride) = base.filter(|_| whole).unwrap_or((std::ptr::null(), 0));
                    tile::<T, S, H, W>(
                        simd,
                        depth,
                        a.as_ptr(),
                        b.as_ptr(),
                        to,
                        stride,
                        from,
                        from_stride,
                        next,
                        pace,
                    );
                    if !whole {
                        for (i, edge) in edge.chunks_exact(width).take(height).enumerate() {
                            for (j, &sum) in edge[..valid].iter().enumerate() {
                                let sum = sum.assume_init();
                                *c.add(i * c_stride + j) = match base {
                                    Some((base, stride)) => *base.add(i * stride + j) + sum,
                                    None => sum,
                                };
                            }
                        }
                    }
                }
            }
        }
    }
}

/// One register tile of H rows and W vectors of columns.
///
/// # Safety
/// `a` holds `depth * H` elements, `b` as many rows of W vectors; c has H rows of W vectors, `c_stride` elements
/// apart, that nothing else reads or writes meanwhile. `base` is null, or has such rows too. Nothing is read at
/// `next`, which comes nearer by `pace` bytes a step.
#[inline(always)]
unsafe fn tile<T: Float, S: Simd, const H: usize, const W: usize>(
    simd: S,
    depth: usize,
    mut a: *const T,
    b: *const T,
    c: *mut T,
    c_stride: usize,
    base: *const T,
    base_stride: usize,
    mut next: *const u8,
    pace: usize,
) {
    let zero = T::splat(simd, T::ZERO);
    let mut sums = [[zero; W]; H];
    let mut b = b.cast::<[T::Vector<S>; W]>();
    for _ in 0..depth {
        let ahead = b.wrapping_add(AHEAD).cast::<u8>();
        (0..size_of::<[T::Vector<S>; W]>()).step_by(LINE).for_each(|at| prefetch(ahead.wrapping_add(at)));
        prefetch(next);
        next = next.wrapping_add(pace);
        // SAFETY: both advance by one of `depth` steps; vectors are plain elements, here read unaligned.
        unsafe {
            let row = b.read_unaligned();
            for (i, sums) in sums.iter_mut().enumerate() {
                let a = T::splat(simd, *a.add(i));
                for (sum, &b) in sums.iter_mut().zip(&row) {
                    *sum = T::mul_add_vectors(simd, a, b, *sum);
                }
            }
            (a, b) = (a.add(H), b.add(1));
        }
    }
    for (i, sums) in sums.iter_mut().enumerate() {
        // SAFETY: i < H, and the caller vouches for H rows of c and of the base.
        unsafe {
            if !base.is_null() {
                let base = base.add(i * base_stride).cast::<[T::Vector<S>; W]>().read_unaligned();
                for (sum, base) in sums.iter_mut().zip(base) {
                    *sum = T::add_vectors(simd, base, *sum);
                }
            }
            c.add(i * c_stride).cast::<[T::Vector<S>; W]>().write_unaligned(*sums);
        }
    }
}

/// Asks for a line of memory ahead of its use.
#[inline(always)]
fn prefetch<T>(at: *const T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch reads nothing, whatever the address.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(at.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}
