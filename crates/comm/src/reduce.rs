//! The reduction of several ranks' elements into one, in rank order. Knows no group and takes no lock.

use crate::Reduce;
use memory::{DType, Element};

/// Elements per block: the accumulator of a block stays in the L1 cache.
const BLOCK: usize = 1024;

trait Number: Element {
    const ZERO: Self;
    fn add(self, other: Self) -> Self;
    fn max(self, other: Self) -> Self;
}

macro_rules! float {
    ($($t:ty)*) => {$(
        impl Number for $t {
            const ZERO: Self = 0.0;
            #[inline(always)]
            fn add(self, other: Self) -> Self {
                self + other
            }
            // A NaN must not be lost: it is how an overflow shows itself.
            #[inline(always)]
            #[allow(clippy::eq_op)]
            fn max(self, other: Self) -> Self {
                if other > self || other != other { other } else { self }
            }
        }
    )*};
}
float!(f32 f64);

impl Number for i32 {
    const ZERO: Self = 0;
    #[inline(always)]
    fn add(self, other: Self) -> Self {
        self.wrapping_add(other)
    }
    #[inline(always)]
    fn max(self, other: Self) -> Self {
        Ord::max(self, other)
    }
}

/// Writes to `target` the reduction of `source(0)`, `source(1)`, ... `source(n - 1)`, in this order for every
/// element. `target` may be one of the sources.
///
/// # Safety
/// `target` and all sources have `bytes` bytes, a whole number of `dtype`, aligned for it; `target` is writable by
/// this thread alone, the sources are written by nobody meanwhile (but through `target`), and each source is either
/// `target` itself or apart from it.
pub(crate) unsafe fn fold(
    dtype: DType,
    op: Reduce,
    target: *mut u8,
    source: impl Fn(usize) -> *const u8,
    n: usize,
    bytes: usize,
) {
    // SAFETY (all arms): passed on from the caller.
    unsafe {
        match (dtype, op) {
            (DType::F32, Reduce::Sum) => blocks::<f32>(target, source, n, bytes, f32::add),
            (DType::F64, Reduce::Sum) => blocks::<f64>(target, source, n, bytes, f64::add),
            (DType::I32, Reduce::Sum) => blocks::<i32>(target, source, n, bytes, i32::add),
            (DType::F32, Reduce::Max) => blocks::<f32>(target, source, n, bytes, <f32 as Number>::max),
            (DType::F64, Reduce::Max) => blocks::<f64>(target, source, n, bytes, <f64 as Number>::max),
            (DType::I32, Reduce::Max) => blocks::<i32>(target, source, n, bytes, <i32 as Number>::max),
        }
    }
}

unsafe fn blocks<T: Number>(
    target: *mut u8,
    source: impl Fn(usize) -> *const u8,
    n: usize,
    bytes: usize,
    combine: impl Fn(T, T) -> T,
) {
    let (target, count) = (target.cast::<T>(), bytes / size_of::<T>());
    let mut sums = [T::ZERO; BLOCK];
    let mut begin = 0;
    while begin < count {
        let len = BLOCK.min(count - begin);
        // SAFETY: `begin + len <= count`, so every access is within its `bytes`; `sums` is ours. All sources of a
        // block are read before the block is written, so `target` may be one of them; nobody else writes them.
        unsafe {
            std::ptr::copy_nonoverlapping(source(0).cast::<T>().add(begin), sums.as_mut_ptr(), len);
            for k in 1..n {
                let part = std::slice::from_raw_parts(source(k).cast::<T>().add(begin), len);
                for (sum, &x) in sums[..len].iter_mut().zip(part) {
                    *sum = combine(*sum, x);
                }
            }
            std::ptr::copy_nonoverlapping(sums.as_ptr(), target.add(begin), len);
        }
        begin += len;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reduce<T: Element>(sources: &[Vec<T>], op: Reduce) -> Vec<T> {
        let mut target = sources[0].clone();
        let bytes = std::mem::size_of_val(&target[..]);
        // SAFETY: equal lengths; the target is apart from the sources.
        unsafe {
            let source = |k: usize| sources[k].as_ptr().cast::<u8>();
            fold(T::DTYPE, op, target.as_mut_ptr().cast(), source, sources.len(), bytes);
        }
        target
    }

    #[test]
    fn the_order_is_that_of_the_ranks() {
        let sources: Vec<Vec<f32>> = [1e8, 1.0, -1e8, 1.0].iter().map(|&x| vec![x; 2500]).collect();
        assert_eq!(reduce(&sources, Reduce::Sum), vec![((1e8f32 + 1.0) - 1e8) + 1.0; 2500]);
    }

    #[test]
    fn the_target_may_be_a_source() {
        let mut a: Vec<f64> = (0..3001).map(f64::from).collect();
        let b: Vec<f64> = a.iter().map(|x| 2.0 * x).collect();
        let target = a.as_mut_ptr().cast::<u8>();
        // SAFETY: equal lengths; source 1 is the target itself, source 0 apart from it.
        unsafe {
            let source = |k: usize| if k == 0 { b.as_ptr().cast::<u8>() } else { target.cast_const() };
            fold(DType::F64, Reduce::Sum, target, source, 2, 3001 * 8);
        }
        assert!(a.iter().enumerate().all(|(i, &x)| x == 3.0 * i as f64));
    }

    #[test]
    fn a_nan_wins_and_integers_wrap() {
        for order in [[f32::NAN, 1.0], [1.0, f32::NAN]] {
            assert!(reduce(&order.map(|x| vec![x]), Reduce::Max)[0].is_nan());
        }
        assert_eq!(reduce(&[vec![i32::MAX, 3], vec![1, 5]], Reduce::Sum), [i32::MIN, 8]);
        assert_eq!(reduce(&[vec![-4, 3], vec![-5, 5]], Reduce::Max), [-4, 5]);
    }
}
