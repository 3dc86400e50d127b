//! The reduction of several ranks' elements into one, in rank order. Knows no group and takes no lock.

use crate::Reduce;
use half::{bf16, f16};
use memory::{DType, Element};

/// Elements per block: the accumulator of a block stays in the L1 cache.
const BLOCK: usize = 1024;

/// A type that sums are made in.
trait Number: Copy {
    const ZERO: Self;
    fn add(self, other: Self) -> Self;
    fn max(self, other: Self) -> Self;
}

/// A type that elements are stored in: read wider, reduced, rounded once.
trait Stored: Element {
    type Wide: Number;
    fn widen(self) -> Self::Wide;
    fn narrow(wide: Self::Wide) -> Self;
}

macro_rules! own_wide {
    ($($t:ty)*) => {$(
        impl Stored for $t {
            type Wide = $t;
            #[inline(always)]
            fn widen(self) -> $t {
                self
            }
            #[inline(always)]
            fn narrow(wide: $t) -> $t {
                wide
            }
        }
    )*};
}
own_wide!(f32 f64 i32);

macro_rules! half {
    ($($t:ty)*) => {$(
        impl Stored for $t {
            type Wide = f32;
            #[inline(always)]
            fn widen(self) -> f32 {
                self.to_f32()
            }
            #[inline(always)]
            fn narrow(wide: f32) -> $t {
                <$t>::from_f32(wide)
            }
        }
    )*};
}
half!(bf16 f16);

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
        match dtype {
            DType::F32 => reduce::<f32>(op, target, source, n, bytes),
            DType::F64 => reduce::<f64>(op, target, source, n, bytes),
            DType::BF16 => reduce::<bf16>(op, target, source, n, bytes),
            DType::F16 => reduce::<f16>(op, target, source, n, bytes),
            DType::I32 => reduce::<i32>(op, target, source, n, bytes),
        }
    }
}

unsafe fn reduce<T: Stored>(
    op: Reduce,
    target: *mut u8,
    source: impl Fn(usize) -> *const u8,
    n: usize,
    bytes: usize,
) {
    // SAFETY (both arms): passed on from the caller.
    unsafe {
        match op {
            Reduce::Sum => blocks::<T>(target, source, n, bytes, <T::Wide as Number>::add),
            Reduce::Max => blocks::<T>(target, source, n, bytes, <T::Wide as Number>::max),
        }
    }
}

unsafe fn blocks<T: Stored>(
    target: *mut u8,
    source: impl Fn(usize) -> *const u8,
    n: usize,
    bytes: usize,
    combine: impl Fn(T::Wide, T::Wide) -> T::Wide,
) {
    let (target, count) = (target.cast::<T>(), bytes / size_of::<T>());
    let mut sums = [T::Wide::ZERO; BLOCK];
    let mut begin = 0;
    while begin < count {
        let len = BLOCK.min(count - begin);
        // SAFETY: `begin + len <= count`, so every access is within its `bytes`. All sources of a block are read
        // before the block is written, so `target` may be one of them; nobody else writes them.
        unsafe {
            let part = |k: usize| std::slice::from_raw_parts(source(k).cast::<T>().add(begin), len);
            for (sum, &x) in sums.iter_mut().zip(part(0)) {
                *sum = x.widen();
            }
            for k in 1..n {
                for (sum, &x) in sums.iter_mut().zip(part(k)) {
                    *sum = combine(*sum, x.widen());
                }
            }
            for (i, &sum) in sums[..len].iter().enumerate() {
                target.add(begin + i).write(T::narrow(sum));
            }
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
    fn halves_are_rounded_once() {
        let parts = [1.0f32, 0.00390625, 0.00390625].map(|x| vec![bf16::from_f32(x); 1500]);
        assert_eq!(reduce(&parts, Reduce::Sum), vec![bf16::from_f32(1.0078125); 1500]);
        let parts = [65504.0f32, 65504.0, -65504.0].map(|x| vec![f16::from_f32(x); 3]);
        assert_eq!(reduce(&parts, Reduce::Sum), vec![f16::from_f32(65504.0); 3]);
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
