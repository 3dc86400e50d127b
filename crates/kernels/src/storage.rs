//! The types tensors are stored in, beside the types they are computed in. No kernel lives here.

use crate::cpu::InstructionSet;
use crate::float::Float;
use crate::math::sigmoid_short;
use half::{bf16, f16};

/// Elements converted at a time; they sit on the stack (1 or 2 KiB).
pub(crate) const BLOCK: usize = 256;

/// A block on the stack, whose vectors each lie in one cache line.
#[repr(align(64))]
pub struct Buffer<T>(pub(crate) [T; BLOCK]);

impl<T: Float> Buffer<T> {
    #[inline(always)]
    pub(crate) fn new() -> Self {
        Buffer([T::ZERO; BLOCK])
    }
}

/// A type that tensors are stored in: read as [`Wide`](Storage::Wide), computed on, rounded once when written.
///
/// `f32` and `f64` are their own wide type; `bf16` and `f16` are computed in `f32`. Conversions are branch-free
/// enough to vectorise.
pub trait Storage: Copy + Send + Sync + Default + PartialEq + std::fmt::Debug + 'static {
    /// What it is computed in.
    type Wide: Float;

    /// The same value, wider; exact.
    fn widen(self) -> Self::Wide;
    /// The nearest value, ties to even; NaN stays NaN, what is too large becomes infinite.
    fn narrow(value: Self::Wide) -> Self;

    /// Logistic function 1 / (1 + exp(-x)) and 1 less that, as exact as the type can show.
    #[doc(hidden)]
    fn sigmoid(x: Self::Wide) -> (Self::Wide, Self::Wide);

    /// [`narrow`](Storage::narrow) of each element. The processor's own conversion may take subnormal numbers for 0.
    #[doc(hidden)]
    fn narrow_all(set: InstructionSet, from: &[Self::Wide], into: &mut [Self]);

    /// The elements of at most a [`BLOCK`], wide: `x` itself or a copy in `buffer`.
    #[doc(hidden)]
    fn wide_block<'a>(x: &'a [Self], buffer: &'a mut Buffer<Self::Wide>) -> &'a [Self::Wide];

    /// Fills `out` by calling `write` with the position and the wide elements of one part after another, which lie
    /// in `buffer` or in `out` itself.
    ///
    /// Conversions then run over whole blocks, apart from the arithmetic: with both in one loop compilers do
    /// worse, and the processor's own conversions are out of reach.
    #[doc(hidden)]
    fn write_blocks(
        set: InstructionSet,
        buffer: &mut Buffer<Self::Wide>,
        out: &mut [Self],
        write: impl FnMut(usize, &mut [Self::Wide]),
    );
}

macro_rules! own_wide {
    ($($float:ty)*) => {$(
        impl Storage for $float {
            type Wide = $float;
            #[inline(always)]
            fn widen(self) -> $float {
                self
            }
            #[inline(always)]
            fn narrow(value: $float) -> $float {
                value
            }
            #[inline(always)]
            fn sigmoid(x: $float) -> ($float, $float) {
                let sigmoid = Float::sigmoid(x);
                (sigmoid, 1.0 - sigmoid)
            }
            #[inline(always)]
            fn narrow_all(_: InstructionSet, from: &[$float], into: &mut [$float]) {
                into.copy_from_slice(from);
            }
            #[inline(always)]
            fn wide_block<'a>(x: &'a [$float], _: &'a mut Buffer<$float>) -> &'a [$float] {
                x
            }
            #[inline(always)]
            fn write_blocks(
                _: InstructionSet,
                _: &mut Buffer<$float>,
                out: &mut [$float],
                mut write: impl FnMut(usize, &mut [$float]),
            ) {
                write(0, out);
            }
        }
    )*};
}
own_wide!(f32 f64);

/// What types have in common that are not their own wide type: conversions of blocks, and short polynomials.
macro_rules! narrow_storage {
    () => {
        #[inline(always)]
        fn sigmoid(x: f32) -> (f32, f32) {
            sigmoid_short(x)
        }

        #[inline(always)]
        fn wide_block<'a>(x: &'a [Self], buffer: &'a mut Buffer<f32>) -> &'a [f32] {
            let buffer = &mut buffer.0[..x.len()];
            for (wide, &x) in buffer.iter_mut().zip(x) {
                *wide = x.widen();
            }
            buffer
        }

        #[inline(always)]
        fn write_blocks(
            set: InstructionSet,
            buffer: &mut Buffer<f32>,
            out: &mut [Self],
            mut write: impl FnMut(usize, &mut [f32]),
        ) {
            for (block, out) in out.chunks_mut(BLOCK).enumerate() {
                let buffer = &mut buffer.0[..out.len()];
                write(block * BLOCK, buffer);
                Self::narrow_all(set, buffer, out);
            }
        }
    };
}

impl Storage for bf16 {
    type Wide = f32;

    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }

    #[inline(always)]
    fn narrow(value: f32) -> bf16 {
        let bits = value.to_bits();
        let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
        // A NaN keeps its upper half, with a bit set so that it stays one.
        let nan = (bits >> 16) | 0x40;
        bf16::from_bits(if value.is_nan() { nan as u16 } else { rounded as u16 })
    }

    #[inline(always)]
    fn narrow_all(set: InstructionSet, from: &[f32], into: &mut [bf16]) {
        #[cfg(target_arch = "x86_64")]
        if set >= InstructionSet::Avx512 && std::arch::is_x86_feature_detected!("avx512bf16") {
            // SAFETY: the machine has the instructions: those of the set and those just asked for.
            return unsafe { convert::narrow_bf16(from, into) };
        }
        let _ = set;
        for (into, &from) in into.iter_mut().zip(from) {
            *into = bf16::narrow(from);
        }
    }

    narrow_storage!();
}

impl Storage for f16 {
    type Wide = f32;

    #[inline(always)]
    fn widen(self) -> f32 {
        let bits = u32::from(self.to_bits());
        let sign = (bits & 0x8000) << 16;
        let magnitude = bits & 0x7fff;
        // Exponent and fraction moved into place are the value times 2^-112, subnormals included.
        let finite = f32::from_bits(magnitude << 13) * f32::from_bits(0x7780_0000);
        let special = f32::from_bits(0x7f80_0000 | (magnitude << 13));
        let value = if magnitude >= 0x7c00 { special } else { finite };
        f32::from_bits(value.to_bits() | sign)
    }

    #[inline(always)]
    fn narrow(value: f32) -> f16 {
        let bits = value.to_bits();
        let sign = (bits >> 16) & 0x8000;
        let magnitude = bits & 0x7fff_ffff;
        // Normal: rebias the exponent and round to even on the 13 bits that go.
        let rebased = magnitude.wrapping_sub(112 << 23);
        let normal = rebased.wrapping_add(0xfff + ((rebased >> 13) & 1)) >> 13;
        // Subnormal: adding one half moves the last bit kept to the last bit of the sum, which rounds.
        let subnormal = (f32::from_bits(magnitude) + 0.5).to_bits().wrapping_sub(0x3f00_0000);
        let finite = if magnitude < 113 << 23 { subnormal } else { normal };
        let large = if magnitude >= 0x477f_f000 { 0x7c00 } else { finite };
        let result = if magnitude > 0x7f80_0000 { 0x7e00 } else { large };
        f16::from_bits((sign | result) as u16)
    }

    #[inline(always)]
    fn narrow_all(set: InstructionSet, from: &[f32], into: &mut [f16]) {
        #[cfg(target_arch = "x86_64")]
        if set >= InstructionSet::Avx512 {
            // SAFETY: the machine has the instructions of the set.
            return unsafe { convert::narrow_f16(from, into) };
        }
        let _ = set;
        for (into, &from) in into.iter_mut().zip(from) {
            *into = f16::narrow(from);
        }
    }

    narrow_storage!();
}

/// Conversions that AVX-512 has instructions for.
#[cfg(target_arch = "x86_64")]
mod convert {
    use half::{bf16, f16};
    use std::arch::x86_64::*;

    /// Vectors of 16 elements and a last one, of which the mask says how much there is.
    macro_rules! narrow_vectors {
        ($from:ident, $into:ident, $narrow:expr) => {
            assert_eq!($from.len(), $into.len(), "lengths differ");
            let whole = $from.len() / 16 * 16;
            for at in (0..whole).step_by(16) {
                // SAFETY: both slices reach to `whole`, a multiple of 16, and no alignment is asked for.
                unsafe {
                    let x = _mm512_loadu_ps($from.as_ptr().add(at));
                    _mm256_storeu_si256($into.as_mut_ptr().add(at).cast(), $narrow(x));
                }
            }
            let mask = (1_u16 << ($from.len() - whole)) - 1;
            // SAFETY: the mask covers what is left of both slices; the rest is neither read nor written.
            unsafe {
                let x = _mm512_maskz_loadu_ps(mask, $from.as_ptr().add(whole));
                _mm256_mask_storeu_epi16($into.as_mut_ptr().add(whole).cast(), mask, $narrow(x));
            }
        };
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    pub(super) fn narrow_bf16(from: &[f32], into: &mut [bf16]) {
        narrow_vectors!(from, into, |x| {
            // SAFETY: both are 256 bits without invalid values.
            std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(x))
        });
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    pub(super) fn narrow_f16(from: &[f32], into: &mut [f16]) {
        narrow_vectors!(
            from,
            into,
            |x| _mm512_cvtps_ph::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x)
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_half_survives_the_way_out_and_back() {
        for bits in 0..=u16::MAX {
            let (b, h) = (bf16::from_bits(bits), f16::from_bits(bits));
            assert!(b.widen().to_bits() == b.to_f32().to_bits() || b.is_nan() && b.widen().is_nan());
            assert!(h.widen().to_bits() == h.to_f32().to_bits() || h.is_nan() && h.widen().is_nan());
            assert!(bf16::narrow(b.widen()).to_bits() == bits || b.is_nan());
            assert!(f16::narrow(h.widen()).to_bits() == bits || h.is_nan());
        }
    }

    #[test]
    fn rounding_agrees_with_the_reference_on_every_upper_half() {
        for upper in 0..=u16::MAX {
            for lower in [0u32, 1, 0x0fff, 0x1000, 0x1001, 0x2fff, 0x3000, 0x7fff, 0x8000, 0x8001, 0xffff] {
                let x = f32::from_bits((u32::from(upper) << 16) | lower);
                let (b, h) = (bf16::narrow(x), f16::narrow(x));
                if x.is_nan() {
                    assert!(b.is_nan() && h.is_nan());
                } else {
                    assert_eq!(b.to_bits(), bf16::from_f32(x).to_bits(), "{x:e}");
                    assert_eq!(h.to_bits(), f16::from_f32(x).to_bits(), "{x:e}");
                }
            }
        }
    }

    #[test]
    fn blocks_are_rounded_as_single_elements_are() {
        fn check<S: Storage<Wide = f32>>(smallest: f32) {
            let from: Vec<f32> = (0..=u16::MAX)
                .flat_map(|upper| {
                    [0, 0x1000, 0x3001, 0x8000, 0xffff].map(|lower| u32::from(upper) << 16 | lower)
                })
                .map(f32::from_bits)
                .collect();
            for set in InstructionSet::ALL.into_iter().filter(|set| set.is_available()) {
                for len in [from.len(), 0, 1, 15, 16, 17, 300] {
                    let mut into = vec![S::default(); len];
                    S::narrow_all(set, &from[from.len() - len..], &mut into);
                    for (&into, &from) in into.iter().zip(&from[from.len() - len..]) {
                        let same = into == S::narrow(from) || from.is_nan() && into.widen().is_nan();
                        assert!(same || from.abs() < smallest && into.widen() == 0.0, "{from:e}, {set}");
                    }
                }
            }
        }
        check::<bf16>(f32::MIN_POSITIVE);
        check::<f16>(0.0);
    }
}
