//! Matrix products of dense row-major matrices: what callers see. No loop and no instruction lives here, no
//! fused epilogue and no batching.

mod grid;
mod micro;
mod pack;
mod panels;
#[cfg(test)]
mod tests;

use crate::cpu::Cpu;
use crate::storage::Storage;

/// A matrix read through strides, in elements.
#[derive(Clone, Copy)]
struct View<'a, S> {
    data: &'a [S],
    row_stride: usize,
    column_stride: usize,
}

/// The whole of c, which parts of a product write at once, each its own rows and columns.
#[derive(Clone, Copy)]
struct Output<C> {
    start: *mut C,
    /// Elements from one row to the next.
    stride: usize,
    /// Whether results are added to what is there.
    accumulate: bool,
}

// SAFETY: parts that run at once write disjoint elements (see `grid`), and C is plain data.
unsafe impl<C: Send> Send for Output<C> {}
// SAFETY: as above.
unsafe impl<C: Send> Sync for Output<C> {}

/// `c = op(a) op(b)`, or `c += op(a) op(b)` with `accumulate`; op transposes where asked.
///
/// Products are summed in the [wide](Storage::Wide) type over all of k, and a `c` of a narrow type is rounded
/// once. c is divided among the threads; products too small to pay for that stay on the calling thread. The same
/// call on an equal `cpu` gives the same bits.
///
/// `scratch`: [`gemm_scratch_bytes`] bytes aligned to 64, whose contents are neither used nor kept. Nothing
/// else is allocated.
///
/// # Shape
/// `a` `[m, k]` (`[k, m]` if `trans_a`), `b` `[k, n]` (`[n, k]` if `trans_b`), `c` `[m, n]`.
///
/// # Source
/// Goto and van de Geijn, "Anatomy of High-Performance Matrix Multiplication" (2008); Van Zee and van de Geijn,
/// "BLIS: A Framework for Rapidly Instantiating BLAS Functionality" (2015). Threads share no packed panel here:
/// each packs what its part of c needs.
pub fn gemm<S: Storage, C: Storage<Wide = S::Wide>>(
    cpu: &Cpu,
    m: usize,
    n: usize,
    k: usize,
    a: &[S],
    trans_a: bool,
    b: &[S],
    trans_b: bool,
    c: &mut [C],
    accumulate: bool,
    scratch: &mut [u8],
) {
    assert_eq!(a.len(), m * k, "a has the wrong length");
    assert_eq!(b.len(), k * n, "b has the wrong length");
    assert_eq!(c.len(), m * n, "c has the wrong length");
    assert!(scratch.len() >= gemm_scratch_bytes::<S>(cpu.threads(), m, n, k), "scratch is too short");
    assert!(scratch.as_ptr().addr().is_multiple_of(64), "scratch is not aligned");
    if c.is_empty() {
        return;
    }
    if k == 0 {
        if !accumulate {
            c.fill(C::default());
        }
        return;
    }
    let (row_stride, column_stride) = if trans_a { (1, m) } else { (k, 1) };
    let a = View { data: a, row_stride, column_stride };
    let (row_stride, column_stride) = if trans_b { (1, k) } else { (n, 1) };
    let b = View { data: b, row_stride, column_stride };
    let c = Output { start: c.as_mut_ptr(), stride: n, accumulate };
    panels::multiply(cpu, [m, n, k], a, b, c, scratch);
}

/// Bytes of scratch that [`gemm`] needs on `threads` threads, whatever the instruction set and the type of c.
pub fn gemm_scratch_bytes<S: Storage>(threads: usize, m: usize, n: usize, k: usize) -> usize {
    if m == 0 || n == 0 || k == 0 {
        return 0;
    }
    threads.max(1) * panels::scratch_bytes::<S>(m, n, k)
}
