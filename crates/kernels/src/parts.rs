//! How kernels divide their outputs over a rank's threads. No kernel lives here.

use crate::cpu::Cpu;
use pulp::{Simd, WithSimd};
use std::marker::PhantomData;
use std::ops::Range;

/// Elements of work bound by memory that pay for a second thread. In tests small shapes are divided too.
pub(crate) const CHEAP: usize = if cfg!(test) { 40 } else { 32 * 1024 };
/// Elements that pay for it where each costs an exponential or so.
pub(crate) const COSTLY: usize = if cfg!(test) { 20 } else { 4 * 1024 };
/// Elements that parts are whole multiples of: no cache line is written by two threads.
pub(crate) const LINE: usize = if cfg!(test) { 5 } else { 64 };

/// Rows of `width` elements that pay for a second thread.
pub(crate) fn min_rows(min_elements: usize, width: usize) -> usize {
    min_elements.div_ceil(width.max(1))
}

/// The elements of a range of rows.
#[inline(always)]
pub(crate) fn rows_of<'a, T>(x: &'a [T], rows: &Range<usize>, width: usize) -> &'a [T] {
    &x[rows.start * width..rows.end * width]
}

/// A number below `parts` for a part of `0..len`, another one for each of at most `parts` equal parts.
///
/// Equal parts start at least `len / parts` apart.
#[inline(always)]
pub(crate) fn part_index(part: &Range<usize>, len: usize, parts: usize) -> usize {
    part.start * parts / len.max(1)
}

/// Bytes from where a kernel reads to where it will soon read: about what a core takes in during one access to memory.
/// Not a multiple of a page: reads that share their place in one with recent writes have to wait for them.
const AHEAD: usize = 2560;

/// Tells the processor that the elements some way behind `x` are soon wanted: all lines of as many as `x` has.
///
/// Its own prefetching stops at the end of each page, and kernels that alternate between reading a block and working
/// on it do not run far enough ahead by themselves.
#[inline(always)]
pub(crate) fn prefetch_after<T>(x: &[T]) {
    #[cfg(target_arch = "x86_64")]
    for line in (0..size_of_val(x)).step_by(64) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        let address = x.as_ptr().cast::<i8>().wrapping_add(line + AHEAD);
        // SAFETY: a hint, which reads nothing and faults nowhere.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(address) };
    }
}

/// A slice that several threads write, each its own elements.
pub(crate) struct Shared<'a, T> {
    start: *mut T,
    len: usize,
    borrow: PhantomData<&'a mut [T]>,
}

// SAFETY: it stands for a unique borrow of the slice, and each element is handed to one thread at a time
// (the promise of whoever calls `part`).
unsafe impl<T: Send> Send for Shared<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Shared<'_, T> {}

impl<'a, T> Shared<'a, T> {
    pub(crate) fn new(slice: &'a mut [T]) -> Self {
        Shared { start: slice.as_mut_ptr(), len: slice.len(), borrow: PhantomData }
    }

    /// The elements of `range`.
    ///
    /// # Safety
    /// No two parts that overlap are alive at once.
    #[inline(always)]
    pub(crate) unsafe fn part(&self, range: Range<usize>) -> &'a mut [T] {
        assert!(range.start <= range.end && range.end <= self.len, "a part lies inside its slice");
        // SAFETY: inside the slice, which is borrowed uniquely for 'a; the caller vouches for the rest.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(range.start), range.len()) }
    }
}

/// Outputs of a kernel that are divided alike: slices of as many rows, of any width each.
pub(crate) trait Outputs {
    /// What threads take their parts of.
    type Shared: Sync;
    fn share(self) -> Self::Shared;
    /// The part of some of `num_rows` rows.
    ///
    /// # Safety
    /// No two parts that overlap are alive at once.
    unsafe fn part(shared: &Self::Shared, num_rows: usize, rows: &Range<usize>) -> Self;
}

impl<'a, T: Send> Outputs for &'a mut [T] {
    type Shared = Shared<'a, T>;

    fn share(self) -> Shared<'a, T> {
        Shared::new(self)
    }

    #[inline(always)]
    unsafe fn part(shared: &Shared<'a, T>, num_rows: usize, rows: &Range<usize>) -> Self {
        let width = shared.len / num_rows.max(1);
        assert_eq!(shared.len, width * num_rows, "an output is whole rows");
        // SAFETY: rows that do not overlap hold elements that do not; the caller vouches for the rows.
        unsafe { shared.part(rows.start * width..rows.end * width) }
    }
}

impl<A: Outputs, B: Outputs> Outputs for (A, B) {
    type Shared = (A::Shared, B::Shared);

    fn share(self) -> Self::Shared {
        (self.0.share(), self.1.share())
    }

    #[inline(always)]
    unsafe fn part(shared: &Self::Shared, num_rows: usize, rows: &Range<usize>) -> Self {
        // SAFETY: the caller's promise is passed on.
        unsafe { (A::part(&shared.0, num_rows, rows), B::part(&shared.1, num_rows, rows)) }
    }
}

impl<A: Outputs> Outputs for Option<A> {
    type Shared = Option<A::Shared>;

    fn share(self) -> Self::Shared {
        self.map(A::share)
    }

    #[inline(always)]
    unsafe fn part(shared: &Self::Shared, num_rows: usize, rows: &Range<usize>) -> Self {
        // SAFETY: the caller's promise is passed on.
        shared.as_ref().map(|shared| unsafe { A::part(shared, num_rows, rows) })
    }
}

/// A closure without arguments as an operation for [`vectorised`](Cpu::vectorised).
///
/// A plain closure would reach its body through a shim, `FnOnce::call_once`, that compilers do not always
/// inline, and so compile it for the baseline instruction set.
pub(crate) struct Loop<F>(pub(crate) F);

impl<R, F: Fn() -> R> WithSimd for Loop<F> {
    type Output = R;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> R {
        (self.0)()
    }
}

/// One thread's part of a [`divide`](Cpu::divide); not a closure for the reason that [`Loop`] gives.
struct Part<'a, O, F> {
    rows: Range<usize>,
    outputs: O,
    work: &'a F,
}

impl<O, F: Fn(Range<usize>, O)> WithSimd for Part<'_, O, F> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        (self.work)(self.rows, self.outputs);
    }
}

/// Work on rows that needs vectors by name, which a closure cannot: it is not generic.
pub(crate) trait Rows<O>: Send + Sync {
    /// Works on some of the rows, and writes their outputs.
    fn run<V: Simd>(&self, simd: V, rows: Range<usize>, outputs: O);
}

/// One thread's part of a [`divide_rows`](Cpu::divide_rows).
struct RowsPart<'a, O, W> {
    rows: Range<usize>,
    outputs: O,
    work: &'a W,
}

impl<O, W: Rows<O>> WithSimd for RowsPart<'_, O, W> {
    type Output = ();

    #[inline(always)]
    fn with_simd<V: Simd>(self, simd: V) {
        self.work.run(simd, self.rows, self.outputs);
    }
}

impl Cpu {
    /// [`divide`](Cpu::divide) for [`Rows`].
    #[inline(always)]
    pub(crate) fn divide_rows<O: Outputs>(
        &self,
        num_rows: usize,
        unit: usize,
        min_part: usize,
        outputs: O,
        work: impl Rows<O>,
    ) {
        let shared = outputs.share();
        self.split(num_rows, unit, min_part, |rows| {
            // SAFETY: `split` calls this once for each part, and parts do not overlap.
            let outputs = unsafe { O::part(&shared, num_rows, &rows) };
            self.vectorised(RowsPart { rows, outputs, work: &work });
        });
    }

    /// Calls `work` with parts of `0..num_rows` and of the outputs, compiled for the instruction set: see
    /// [`split`](Cpu::split) and [`vectorised`](Cpu::vectorised), whose demands hold here too.
    #[inline(always)]
    pub(crate) fn divide<O: Outputs>(
        &self,
        num_rows: usize,
        unit: usize,
        min_part: usize,
        outputs: O,
        work: impl Fn(Range<usize>, O) + Send + Sync,
    ) {
        let shared = outputs.share();
        self.split(num_rows, unit, min_part, |rows| {
            // SAFETY: `split` calls this once for each part, and parts do not overlap.
            let outputs = unsafe { O::part(&shared, num_rows, &rows) };
            self.vectorised(Part { rows, outputs, work: &work });
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::InstructionSet;

    #[test]
    fn outputs_are_divided_alike() {
        let cpu = Cpu::new(3, InstructionSet::Scalar).unwrap();
        for num_rows in [0usize, 1, 2, 7, 100] {
            let (mut narrow, mut wide) = (vec![0; num_rows], vec![0; 3 * num_rows]);
            cpu.divide(num_rows, 1, 2, (&mut narrow[..], Some(&mut wide[..])), |rows, (narrow, mut wide)| {
                for (i, row) in rows.enumerate() {
                    narrow[i] += row + 1;
                    wide.as_mut().unwrap()[3 * i..][..3].fill(row + 1);
                }
            });
            assert!((0..num_rows).all(|row| narrow[row] == row + 1 && wide[3 * row + 2] == row + 1));
        }
    }

    #[test]
    fn parts_have_numbers_of_their_own() {
        for (len, parts) in [(1usize, 1usize), (5, 3), (64, 64), (100, 7)] {
            let part = len.div_ceil(parts);
            let numbers: Vec<usize> = (0..len)
                .step_by(part)
                .map(|start| part_index(&(start..len.min(start + part)), len, parts))
                .collect();
            assert!(numbers.is_sorted_by(|a, b| a < b) && numbers.iter().all(|&n| n < parts));
        }
    }
}
