//! Moving one digit of an index to the front and back: what surrounds a collective. Copies only.

/// Moves the middle digit to the front: `[outer, n, inner]` to `[n, outer, inner]`.
pub fn pack<E: Copy>(x: &[E], outer: usize, n: usize, inner: usize, out: &mut [E]) {
    swap_leading(x, outer, n, inner, out);
}

/// The inverse of [`pack`]: `[n, outer, inner]` to `[outer, n, inner]`.
pub fn unpack<E: Copy>(x: &[E], outer: usize, n: usize, inner: usize, out: &mut [E]) {
    swap_leading(x, n, outer, inner, out);
}

/// `[a, b, inner]` to `[b, a, inner]`.
fn swap_leading<E: Copy>(x: &[E], a: usize, b: usize, inner: usize, out: &mut [E]) {
    assert_eq!(x.len(), a * b * inner, "x has the wrong length");
    assert_eq!(out.len(), x.len(), "out has the wrong length");
    if inner == 1 {
        // A copy_from_slice of one element costs a call of memcpy.
        for (j, out) in out.chunks_exact_mut(a.max(1)).enumerate() {
            for (i, out) in out.iter_mut().enumerate() {
                *out = x[i * b + j];
            }
        }
        return;
    }
    for i in 0..a {
        for j in 0..b {
            let from = &x[(i * b + j) * inner..][..inner];
            out[(j * a + i) * inner..][..inner].copy_from_slice(from);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn pack_moves_the_digit_and_unpack_undoes_it(outer in 0usize..5, n in 0usize..5, inner in 0usize..4) {
            let x: Vec<i32> = (0..(outer * n * inner) as i32).collect();
            let mut packed = vec![-1; x.len()];
            pack(&x, outer, n, inner, &mut packed);
            for o in 0..outer {
                for j in 0..n {
                    for i in 0..inner {
                        prop_assert_eq!(packed[(j * outer + o) * inner + i], x[(o * n + j) * inner + i]);
                    }
                }
            }
            let mut back = vec![-1; x.len()];
            unpack(&packed, outer, n, inner, &mut back);
            prop_assert_eq!(back, x);
        }
    }
}
