//! Matrix products of dense row-major matrices: what callers see. No loop and no instruction lives here, no
//! fused epilogue and no batching.

mod few;
mod grid;
mod micro;
mod pack;
mod panels;
#[cfg(test)]
mod tests;
#[cfg(target_arch = "x86_64")]
mod tiles;
#[cfg(target_arch = "x86_64")]
mod turn;
mod weight;

use crate::cpu::Cpu;
use crate::storage::Storage;
pub use few::{FEW_ROWS, gemm_few_rows};
use std::any::TypeId;
use std::ops::Range;
pub use weight::{gemm_prepacked, pack_weight, packed_len};

/// A factor: a dense row-major matrix, or the transpose of one.
#[derive(Clone, Copy)]
struct View<'a, S> {
    data: &'a [S],
    /// Elements from one row in memory to the next.
    stride: usize,
    transposed: bool,
}

impl<S> View<'_, S> {
    fn row_stride(&self) -> usize {
        if self.transposed { 1 } else { self.stride }
    }

    fn column_stride(&self) -> usize {
        if self.transposed { self.stride } else { 1 }
    }
}

/// The right factor: as it is in memory, or as [`pack_weight`] left it.
#[derive(Clone, Copy)]
enum Right<'a, S> {
    Plain(View<'a, S>),
    Packed(&'a [S]),
}

/// What a product is added to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Base<'a, T> {
    /// Nothing: c is overwritten.
    Zero,
    /// What c holds.
    Current,
    /// The same row on every row of c: a bias `[n]`. c is overwritten.
    Row(&'a [T]),
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

/// Rows of one buffer that parts of a product write at once, each its own.
#[derive(Clone, Copy)]
struct Shared<T> {
    start: *mut T,
    /// Elements of a row.
    stride: usize,
}

// SAFETY: `rows` lets its callers vouch that no two use one row; T is plain data.
unsafe impl<T: Send> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Shared<T> {}

impl<T> Shared<T> {
    /// Some of the rows.
    ///
    /// # Safety
    /// The rows exist for all of `'a`, and nothing else uses them meanwhile.
    unsafe fn rows<'a>(self, rows: Range<usize>) -> &'a mut [T] {
        // SAFETY: vouched for by the caller.
        unsafe {
            let start = self.start.add(rows.start * self.stride);
            std::slice::from_raw_parts_mut(start, rows.len() * self.stride)
        }
    }
}

fn same_type<A: 'static, B: 'static>() -> bool {
    TypeId::of::<A>() == TypeId::of::<B>()
}

/// `c = base + op(a) op(b)`; op transposes where asked.
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
    base: Base<S::Wide>,
    scratch: &mut [u8],
) {
    assert_eq!(b.len(), k * n, "b has the wrong length");
    let b = Right::Plain(View { data: b, stride: if trans_b { k } else { n }, transposed: trans_b });
    multiply(cpu, [m, n, k], a, trans_a, b, c, base, scratch);
}

/// [`gemm`] of a right factor in either form.
fn multiply<S: Storage, C: Storage<Wide = S::Wide>>(
    cpu: &Cpu,
    [m, n, k]: [usize; 3],
    a: &[S],
    trans_a: bool,
    b: Right<S>,
    c: &mut [C],
    base: Base<S::Wide>,
    scratch: &mut [u8],
) {
    assert_eq!(a.len(), m * k, "a has the wrong length");
    assert_eq!(c.len(), m * n, "c has the wrong length");
    assert!(scratch.len() >= gemm_scratch_bytes::<S>(cpu.threads(), m, n, k), "scratch is too short");
    if c.is_empty() {
        return;
    }
    if let Base::Row(row) = base {
        assert_eq!(row.len(), n, "the bias has the wrong length");
    }
    if k == 0 {
        match base {
            Base::Zero => c.fill(C::default()),
            Base::Current => {}
            Base::Row(row) => c.chunks_exact_mut(n).for_each(|c| {
                c.iter_mut().zip(row).for_each(|(c, &x)| *c = C::narrow(x));
            }),
        }
        return;
    }
    let a = View { data: a, stride: if trans_a { m } else { k }, transposed: trans_a };
    let out = Output { start: c.as_mut_ptr(), stride: n, accumulate: base == Base::Current };
    let bias = if let Base::Row(row) = base { Some(row) } else { None };
    match b {
        #[cfg(target_arch = "x86_64")]
        b if tiles::serve::<S>(cpu) => {
            tiles::multiply_on_amx(cpu, [m, n, k], a, b, out, bias, scratch);
        }
        Right::Plain(b) => panels::multiply(cpu, [m, n, k], a, b, out, bias, scratch),
        Right::Packed(b) => {
            let b = View { data: &b[..k * n], stride: n, transposed: false };
            panels::multiply(cpu, [m, n, k], a, b, out, bias, scratch);
        }
    }
}

/// Bytes of scratch that [`gemm`] needs on `threads` threads, whatever the instruction set and the type of c.
pub fn gemm_scratch_bytes<S: Storage>(threads: usize, m: usize, n: usize, k: usize) -> usize {
    if m == 0 || n == 0 || k == 0 {
        return 0;
    }
    let mut part = panels::scratch_bytes::<S>([m, n, k]);
    #[cfg(target_arch = "x86_64")]
    if same_type::<S, half::bf16>() {
        part = part.max(tiles::scratch_bytes([m, n, k]));
    }
    threads.max(1) * part
}
