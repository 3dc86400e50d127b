//! Products of few rows with a large right factor, as decoding has them: the factor is read once, where it lies, and
//! nothing is packed.

use super::Base;
use crate::cpu::Cpu;
use crate::float::Float;
use crate::parts::{LINE, Shared};
use crate::reduce::dot;
use crate::storage::Storage;
use pulp::{Simd, WithSimd};
use std::ops::Range;

/// Most rows that are multiplied so.
pub const FEW_ROWS: usize = 8;

/// Columns whose sums are on the stack at a time: long runs of memory.
const COLUMNS: usize = 512;
/// Rows of the right factor that are added to these sums at once.
const DEPTH: usize = 4;
/// Elements of the right factor that pay for a second thread.
const WORTHWHILE: usize = if cfg!(test) { 200 } else { 1 << 16 };

/// [`gemm`](super::gemm()) of at most [`FEW_ROWS`] rows, within rounding. Needs no scratch.
///
/// # Shape
/// `a` `[m, k]`, `b` `[k, n]` (`[n, k]` if `trans_b`), `c` `[m, n]`.
pub fn gemm_few_rows<S: Storage, C: Storage<Wide = S::Wide>>(
    cpu: &Cpu,
    [m, n, k]: [usize; 3],
    a: &[S],
    b: &[S],
    trans_b: bool,
    c: &mut [C],
    base: Base<S::Wide>,
) {
    assert_eq!(a.len(), m * k, "a has the wrong length");
    assert_eq!(b.len(), k * n, "b has the wrong length");
    assert_eq!(c.len(), m * n, "c has the wrong length");
    if let Base::Row(row) = base {
        assert_eq!(row.len(), n, "the bias has the wrong length");
    }
    let call = Call { m, n, k, a, b, trans_b, c: Shared::new(c), base };
    match m {
        0 => {}
        1 => call.run::<1>(cpu),
        2 => call.run::<2>(cpu),
        3 | 4 => call.run::<4>(cpu),
        5..=FEW_ROWS => call.run::<FEW_ROWS>(cpu),
        _ => panic!("{m} rows are not few"),
    }
}

struct Call<'a, S: Storage, C> {
    m: usize,
    n: usize,
    k: usize,
    a: &'a [S],
    b: &'a [S],
    trans_b: bool,
    c: Shared<'a, C>,
    base: Base<'a, S::Wide>,
}

impl<S: Storage, C: Storage<Wide = S::Wide>> Call<'_, S, C> {
    fn run<const M: usize>(&self, cpu: &Cpu) {
        cpu.split(self.n, LINE, WORTHWHILE.div_ceil(self.k.max(1)), |columns| {
            for start in columns.clone().step_by(COLUMNS) {
                cpu.vectorised(Block::<S, C, M> {
                    call: self,
                    columns: start..columns.end.min(start + COLUMNS),
                });
            }
        });
    }
}

/// Some columns of all rows, of which there are at most `M`; what is left of `M` repeats the first.
struct Block<'a, S: Storage, C, const M: usize> {
    call: &'a Call<'a, S, C>,
    columns: Range<usize>,
}

impl<S: Storage, C: Storage<Wide = S::Wide>, const M: usize> WithSimd for Block<'_, S, C, M> {
    type Output = ();

    #[inline(always)]
    fn with_simd<V: Simd>(self, simd: V) {
        let Call { m, n, k, a, b, trans_b, c, base } = self.call;
        let (m, n, k, columns) = (*m, *n, *k, self.columns);
        let mut rows = [&a[..k]; M];
        for (i, row) in rows.iter_mut().enumerate().take(m) {
            *row = &a[i * k..][..k];
        }
        let mut sums = [[S::Wide::ZERO; COLUMNS]; M];
        if *trans_b {
            let factors = b[columns.start * k..columns.end * k].chunks_exact(k.max(1));
            for (column, factor) in factors.enumerate() {
                for (sums, row) in sums.iter_mut().zip(&rows) {
                    sums[column] = dot(simd, row, factor);
                }
            }
        } else {
            let factor = |depth: usize| &b[depth * n..][columns.clone()];
            for depth in (0..k).step_by(DEPTH) {
                for (row, sums) in rows.iter().zip(&mut sums) {
                    let sums = &mut sums[..columns.len()];
                    match row[depth..] {
                        [a0, a1, a2, a3, ..] => {
                            let a = [a0, a1, a2, a3].map(S::widen);
                            add_rows(a, [0, 1, 2, 3].map(|d| factor(depth + d)), sums);
                        }
                        ref last => {
                            for (d, a) in last.iter().enumerate() {
                                for (sum, b) in sums.iter_mut().zip(factor(depth + d)) {
                                    *sum += a.widen() * b.widen();
                                }
                            }
                        }
                    }
                }
            }
        }
        for (i, sums) in sums.iter().enumerate().take(m) {
            // SAFETY: these columns are this call's alone, and rows do not overlap.
            let c = unsafe { c.part(i * n + columns.start..i * n + columns.end) };
            for (column, (c, sum)) in c.iter_mut().zip(sums).enumerate() {
                let start = match base {
                    Base::Zero => S::Wide::ZERO,
                    Base::Current => c.widen(),
                    Base::Row(row) => row[columns.start + column],
                };
                *c = C::narrow(start + *sum);
            }
        }
    }
}

/// `sums += a b` for some rows of b. One plain loop over long slices: shorter ones are not vectorised reliably.
#[inline(always)]
fn add_rows<S: Storage>(a: [S::Wide; DEPTH], b: [&[S]; DEPTH], sums: &mut [S::Wide]) {
    let [a0, a1, a2, a3] = a;
    let [b0, b1, b2, b3] = b;
    for ((((sum, b0), b1), b2), b3) in sums.iter_mut().zip(b0).zip(b1).zip(b2).zip(b3) {
        *sum += a0 * b0.widen() + a1 * b1.widen() + (a2 * b2.widen() + a3 * b3.widen());
    }
}
