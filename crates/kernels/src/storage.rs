//! The types tensors are stored in, beside the types they are computed in. No kernel lives here.

use crate::float::Float;
use half::{bf16, f16};

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
        }
    )*};
}
own_wide!(f32 f64);

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
}
