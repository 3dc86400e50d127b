//! Matrix multiplication of dense row-major matrices. No fused epilogues and no batching here.

use crate::float::Float;
use ::gemm::Parallelism;

/// `c = op(a) op(b)`, or `c += op(a) op(b)` with `accumulate`; op transposes where asked.
///
/// Runs on the calling thread alone if `threads` is 0 or 1, else on the global rayon pool.
/// The engine (crate `gemm`) allocates packing buffers, O(m k + n k) elements, and a flag per row
/// panel on each call that is not tiny; what the caller sees allocates nothing.
///
/// # Shape
/// `a` `[m, k]` (`[k, m]` if `trans_a`), `b` `[k, n]` (`[n, k]` if `trans_b`), `c` `[m, n]`.
pub fn gemm<T: Float>(
    m: usize,
    n: usize,
    k: usize,
    a: &[T],
    trans_a: bool,
    b: &[T],
    trans_b: bool,
    c: &mut [T],
    accumulate: bool,
    threads: usize,
) {
    assert_eq!(a.len(), m * k, "a has the wrong length");
    assert_eq!(b.len(), k * n, "b has the wrong length");
    assert_eq!(c.len(), m * n, "c has the wrong length");
    let parallelism = if threads <= 1 { Parallelism::None } else { Parallelism::Rayon(threads) };
    let (a_row, a_column) = if trans_a { (1, m) } else { (k, 1) };
    let (b_row, b_column) = if trans_b { (1, k) } else { (n, 1) };
    // SAFETY: the strides above visit exactly the m*k, k*n and m*n elements whose presence was
    // just asserted; `c` is a unique borrow, so it overlaps neither `a` nor `b`; T is f32 or f64
    // (Float is sealed), which the engine supports.
    unsafe {
        ::gemm::gemm(
            m,
            n,
            k,
            c.as_mut_ptr(),
            1,
            n as isize,
            accumulate,
            a.as_ptr(),
            a_column as isize,
            a_row as isize,
            b.as_ptr(),
            b_column as isize,
            b_row as isize,
            T::ONE,
            T::ONE,
            false,
            false,
            false,
            parallelism,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_close, poisoned, random};
    use proptest::prelude::*;

    fn check<T: Float>(m: usize, n: usize, k: usize, flags: u8, tolerance: f64) {
        let (trans_a, trans_b, accumulate) = (flags & 1 != 0, flags & 2 != 0, flags & 4 != 0);
        let a: Vec<T> = random(1, m * k);
        let b: Vec<T> = random(2, k * n);
        let mut c: Vec<T> = if accumulate { random(3, m * n) } else { poisoned(m * n) };
        let mut expected = vec![0.0; m * n];
        for i in 0..m {
            for j in 0..n {
                let mut sum = if accumulate { c[i * n + j].to_f64() } else { 0.0 };
                for p in 0..k {
                    let x = a[if trans_a { p * m + i } else { i * k + p }].to_f64();
                    let y = b[if trans_b { j * k + p } else { p * n + j }].to_f64();
                    sum += x * y;
                }
                expected[i * n + j] = sum;
            }
        }
        let threads = 1 + usize::from(flags & 8 != 0);
        gemm(m, n, k, &a, trans_a, &b, trans_b, &mut c, accumulate, threads);
        assert_close(&c, &expected, tolerance);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(100))]
        #[test]
        fn agrees_with_the_definition(m in 1usize..40, n in 1usize..70, k in 0usize..50, flags in 0u8..16) {
            check::<f64>(m, n, k, flags, 1e-13);
            check::<f32>(m, n, k, flags, 2e-5);
        }
    }

    #[test]
    fn large_enough_for_several_panels() {
        check::<f32>(150, 200, 700, 8, 1e-4);
        check::<f64>(150, 200, 700, 6, 1e-12);
    }
}
