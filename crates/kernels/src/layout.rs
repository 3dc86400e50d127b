//! Moving one digit of an index to the front and back: what surrounds a collective. Copies only.

use crate::cpu::Cpu;
use crate::parts::{CHEAP, min_rows};

/// Moves the middle digit to the front: `[outer, n, inner]` to `[n, outer, inner]`.
pub fn pack<E: Copy + Send + Sync>(cpu: &Cpu, x: &[E], outer: usize, n: usize, inner: usize, out: &mut [E]) {
    swap_leading(cpu, x, outer, n, inner, out);
}

/// The inverse of [`pack`]: `[n, outer, inner]` to `[outer, n, inner]`.
pub fn unpack<E: Copy + Send + Sync>(
    cpu: &Cpu,
    x: &[E],
    outer: usize,
    n: usize,
    inner: usize,
    out: &mut [E],
) {
    swap_leading(cpu, x, n, outer, inner, out);
}

/// `[a, b, inner]` to `[b, a, inner]`.
fn swap_leading<E: Copy + Send + Sync>(cpu: &Cpu, x: &[E], a: usize, b: usize, inner: usize, out: &mut [E]) {
    assert_eq!(x.len(), a * b * inner, "x has the wrong length");
    assert_eq!(out.len(), x.len(), "out has the wrong length");
    if x.is_empty() {
        return;
    }
    cpu.divide(a * b, 1, min_rows(CHEAP, inner), out, |rows, mut out| {
        let (mut i, mut j) = (rows.start % a, rows.start / a);
        while !out.is_empty() {
            // A run of rows with the same j.
            let run = (a - i).min(out.len() / inner);
            let (here, rest) = out.split_at_mut(run * inner);
            if inner == 1 {
                // A copy_from_slice of one element costs a call of memcpy.
                for (out, &x) in here.iter_mut().zip(x[i * b + j..].iter().step_by(b)) {
                    *out = x;
                }
            } else {
                let from = x[(i * b + j) * inner..].chunks(b * inner);
                for (out, from) in here.chunks_exact_mut(inner).zip(from) {
                    out.copy_from_slice(&from[..inner]);
                }
            }
            (i, j, out) = (0, j + 1, rest);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::scalar;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn pack_moves_the_digit_and_unpack_undoes_it(outer in 0usize..5, n in 0usize..5, inner in 0usize..4) {
            let x: Vec<i32> = (0..(outer * n * inner) as i32).collect();
            let mut packed = vec![-1; x.len()];
            pack(&scalar(), &x, outer, n, inner, &mut packed);
            for o in 0..outer {
                for j in 0..n {
                    for i in 0..inner {
                        prop_assert_eq!(packed[(j * outer + o) * inner + i], x[(o * n + j) * inner + i]);
                    }
                }
            }
            let mut back = vec![-1; x.len()];
            unpack(&scalar(), &packed, outer, n, inner, &mut back);
            prop_assert_eq!(back, x);
        }
    }
}
