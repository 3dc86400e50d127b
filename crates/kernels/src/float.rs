//! The scalar types kernels compute in (`f32`, `f64`). Polynomials live in `math`; no kernel lives here.

use crate::math;
use crate::storage::Storage;
use std::fmt::Display;
use std::ops::{Add, AddAssign, Div, Mul, MulAssign, Neg, Sub, SubAssign};

pub(crate) use sealed::Sealed;

mod sealed {
    use pulp::Simd;

    /// Closes [`Float`](super::Float) to other types, and names the vector operations that register
    /// tiles need: there, plain loops do not reliably stay in registers.
    pub trait Sealed: Copy {
        /// A vector register full of elements.
        type Vector<S: Simd>: Copy;
        fn splat<S: Simd>(simd: S, value: Self) -> Self::Vector<S>;
        fn add_vectors<S: Simd>(simd: S, a: Self::Vector<S>, b: Self::Vector<S>) -> Self::Vector<S>;
        /// `a * b + c`.
        fn mul_add_vectors<S: Simd>(
            simd: S,
            a: Self::Vector<S>,
            b: Self::Vector<S>,
            c: Self::Vector<S>,
        ) -> Self::Vector<S>;
        /// The sum, accumulated in several vectors of this type: for short slices.
        fn sum_short<S: Simd>(simd: S, x: &[Self]) -> f64;
        /// The sum of products, accumulated in several vectors of this type: for short slices of one length.
        fn dot_short<S: Simd>(simd: S, x: &[Self], y: &[Self]) -> Self;
        /// The maximum of `x` and `start`; NaN in `x` is passed over.
        fn max_short<S: Simd>(simd: S, x: &[Self], start: Self) -> Self;
    }

    macro_rules! impl_sealed {
        ($float:ident, $vector:ident, $splat:ident, $add:ident, $mul_add:ident, $max:ident, $sum_of:ident,
         $max_of:ident, $as_simd:ident) => {
            impl Sealed for $float {
                type Vector<S: Simd> = S::$vector;
                #[inline(always)]
                fn splat<S: Simd>(simd: S, value: Self) -> S::$vector {
                    simd.$splat(value)
                }
                #[inline(always)]
                fn add_vectors<S: Simd>(simd: S, a: S::$vector, b: S::$vector) -> S::$vector {
                    simd.$add(a, b)
                }
                #[inline(always)]
                fn mul_add_vectors<S: Simd>(
                    simd: S,
                    a: S::$vector,
                    b: S::$vector,
                    c: S::$vector,
                ) -> S::$vector {
                    simd.$mul_add(a, b, c)
                }
                #[inline(always)]
                fn sum_short<S: Simd>(simd: S, x: &[Self]) -> f64 {
                    let (vectors, rest) = S::$as_simd(x);
                    let (groups, last) = vectors.as_chunks::<4>();
                    let mut sums = [simd.$splat(0.0); 4];
                    for group in groups {
                        for (sum, &x) in sums.iter_mut().zip(group) {
                            *sum = simd.$add(*sum, x);
                        }
                    }
                    for (sum, &x) in sums.iter_mut().zip(last) {
                        *sum = simd.$add(*sum, x);
                    }
                    let sum = simd.$add(simd.$add(sums[0], sums[1]), simd.$add(sums[2], sums[3]));
                    rest.iter().fold(f64::from(simd.$sum_of(sum)), |sum, &x| sum + f64::from(x))
                }
                #[inline(always)]
                fn dot_short<S: Simd>(simd: S, x: &[Self], y: &[Self]) -> Self {
                    let (x, x_rest) = S::$as_simd(x);
                    let (y, y_rest) = S::$as_simd(y);
                    let (x_groups, x_last) = x.as_chunks::<4>();
                    let (y_groups, y_last) = y.as_chunks::<4>();
                    let mut sums = [simd.$splat(0.0); 4];
                    for (x, y) in x_groups.iter().zip(y_groups) {
                        for (sum, (&x, &y)) in sums.iter_mut().zip(x.iter().zip(y)) {
                            *sum = simd.$mul_add(x, y, *sum);
                        }
                    }
                    for (sum, (&x, &y)) in sums.iter_mut().zip(x_last.iter().zip(y_last)) {
                        *sum = simd.$mul_add(x, y, *sum);
                    }
                    let sum = simd.$add(simd.$add(sums[0], sums[1]), simd.$add(sums[2], sums[3]));
                    x_rest.iter().zip(y_rest).fold(simd.$sum_of(sum), |sum, (x, y)| sum + x * y)
                }
                #[inline(always)]
                fn max_short<S: Simd>(simd: S, x: &[Self], start: Self) -> Self {
                    let (vectors, rest) = S::$as_simd(x);
                    let (groups, last) = vectors.as_chunks::<4>();
                    let mut max = [simd.$splat(start); 4];
                    // Of two operands of which one is NaN the second is taken.
                    for group in groups {
                        for (max, &x) in max.iter_mut().zip(group) {
                            *max = simd.$max(x, *max);
                        }
                    }
                    for (max, &x) in max.iter_mut().zip(last) {
                        *max = simd.$max(x, *max);
                    }
                    let max = simd.$max(simd.$max(max[0], max[1]), simd.$max(max[2], max[3]));
                    rest.iter().fold(simd.$max_of(max), |max, &x| if x > max { x } else { max })
                }
            }
        };
    }
    impl_sealed!(
        f32,
        f32s,
        splat_f32s,
        add_f32s,
        mul_add_e_f32s,
        max_f32s,
        reduce_sum_f32s,
        reduce_max_f32s,
        as_simd_f32s
    );
    impl_sealed!(
        f64,
        f64s,
        splat_f64s,
        add_f64s,
        mul_add_e_f64s,
        max_f64s,
        reduce_sum_f64s,
        reduce_max_f64s,
        as_simd_f64s
    );
}

/// A floating-point type with everything kernels need; implemented by `f32` and `f64` alone.
///
/// `exp`, `tanh` and `sigmoid` are branch-free polynomials, so that loops over them vectorise:
/// relative error about 1e-7 in `f32` and 1e-15 in `f64` (`tanh` in `f64` is the standard library's).
/// NaN propagates through all of them.
pub trait Float:
    sealed::Sealed
    + Storage<Wide = Self>
    + PartialOrd
    + Display
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Neg<Output = Self>
    + AddAssign
    + SubAssign
    + MulAssign
{
    /// 0.
    const ZERO: Self;
    /// 1.
    const ONE: Self;
    /// Negative infinity.
    const NEG_INFINITY: Self;

    /// The nearest value of this type.
    fn from_f64(value: f64) -> Self;
    /// The same value in double precision.
    fn to_f64(self) -> f64;
    /// e to the power of `self`: 0 at -inf, +inf at +inf.
    fn exp(self) -> Self;
    /// [`exp`](Float::exp) with one step less: 0 where that is subnormal, +inf from half the largest number on.
    fn exp_flushed(self) -> Self;
    /// Natural logarithm.
    fn ln(self) -> Self;
    /// Square root.
    fn sqrt(self) -> Self;
    /// Hyperbolic tangent.
    fn tanh(self) -> Self;
    /// Absolute value.
    fn abs(self) -> Self;
    /// `self * factor + addend` with one rounding.
    fn mul_add(self, factor: Self, addend: Self) -> Self;

    /// The larger of two values; `other` where `self` is NaN.
    #[inline(always)]
    fn max(self, other: Self) -> Self {
        if self > other { self } else { other }
    }

    /// Logistic function 1 / (1 + exp(-x)).
    #[inline(always)]
    fn sigmoid(self) -> Self {
        Self::ONE / (Self::ONE + Float::exp_flushed(-self))
    }
}

macro_rules! impl_float {
    ($float:ident, $exp:path, $exp_flushed:path, $tanh:path) => {
        impl Float for $float {
            const ZERO: Self = 0.0;
            const ONE: Self = 1.0;
            const NEG_INFINITY: Self = $float::NEG_INFINITY;

            #[inline(always)]
            fn from_f64(value: f64) -> Self {
                value as $float
            }
            #[inline(always)]
            fn to_f64(self) -> f64 {
                f64::from(self)
            }
            #[inline(always)]
            fn exp(self) -> Self {
                $exp(self)
            }
            #[inline(always)]
            fn exp_flushed(self) -> Self {
                $exp_flushed(self)
            }
            #[inline(always)]
            fn ln(self) -> Self {
                $float::ln(self)
            }
            #[inline(always)]
            fn sqrt(self) -> Self {
                $float::sqrt(self)
            }
            #[inline(always)]
            fn tanh(self) -> Self {
                $tanh(self)
            }
            #[inline(always)]
            fn abs(self) -> Self {
                $float::abs(self)
            }
            #[inline(always)]
            fn mul_add(self, factor: Self, addend: Self) -> Self {
                $float::mul_add(self, factor, addend)
            }
        }
    };
}

impl_float!(f32, math::exp_f32, math::exp_flushed_f32, math::tanh_f32);
impl_float!(f64, math::exp_f64, math::exp_flushed_f64, f64::tanh);
