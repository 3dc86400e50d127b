//! Element types as data ([`DType`]) and as Rust types ([`Plain`], [`Element`]). No arithmetic lives here.

use std::fmt;

use half::{bf16, f16};

/// The element type of a tensor, as data.
///
/// Exhaustive on purpose: a new type must fail to compile wherever a kernel or a reduction does not know it yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DType {
    /// IEEE 754 binary32.
    F32,
    /// IEEE 754 binary64.
    F64,
    /// bfloat16: the upper half of binary32.
    BF16,
    /// IEEE 754 binary16.
    F16,
    /// Two's complement 32-bit integer.
    I32,
}

impl DType {
    /// All of them.
    pub const ALL: [DType; 5] = [DType::F32, DType::F64, DType::BF16, DType::F16, DType::I32];

    /// The size of one element in bytes.
    pub const fn size_bytes(self) -> usize {
        match self {
            DType::BF16 | DType::F16 => 2,
            DType::F32 | DType::I32 => 4,
            DType::F64 => 8,
        }
    }

    /// The lower-case name, as users write it: `f32`, `f64`, `bf16`, `f16`, `i32`.
    pub const fn name(self) -> &'static str {
        match self {
            DType::F32 => "f32",
            DType::F64 => "f64",
            DType::BF16 => "bf16",
            DType::F16 => "f16",
            DType::I32 => "i32",
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

mod sealed {
    pub trait Sealed {}
}

/// A type that any bytes of the right number and alignment are a value of.
///
/// # Safety
/// Implementors have no padding, no invalid bit pattern, no interior mutability, no drop, and an alignment that
/// divides 64.
pub unsafe trait Plain: Copy + Send + Sync + 'static + sealed::Sealed {}

/// A [`Plain`] type that tensors are made of.
///
/// # Safety
/// `DTYPE.size_bytes()` equals `size_of::<Self>()`.
pub unsafe trait Element: Plain {
    /// This type, as data.
    const DTYPE: DType;
}

macro_rules! plain {
    ($($t:ty)*) => {$(
        impl sealed::Sealed for $t {}
        // SAFETY: a number (bf16 and f16 are transparent over u16): no padding, every bit pattern valid, alignment at most 8.
        unsafe impl Plain for $t {}
    )*};
}
plain!(u8 u16 u32 u64 i8 i16 i32 i64 f32 f64 bf16 f16);

// SAFETY: both are 4 bytes.
unsafe impl Element for f32 {
    const DTYPE: DType = DType::F32;
}
// SAFETY: both are 8 bytes.
unsafe impl Element for f64 {
    const DTYPE: DType = DType::F64;
}
// SAFETY: both are 2 bytes.
unsafe impl Element for bf16 {
    const DTYPE: DType = DType::BF16;
}
// SAFETY: both are 2 bytes.
unsafe impl Element for f16 {
    const DTYPE: DType = DType::F16;
}
// SAFETY: both are 4 bytes.
unsafe impl Element for i32 {
    const DTYPE: DType = DType::I32;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_agree_with_rust() {
        assert_eq!(f32::DTYPE.size_bytes(), size_of::<f32>());
        assert_eq!(f64::DTYPE.size_bytes(), size_of::<f64>());
        assert_eq!(bf16::DTYPE.size_bytes(), size_of::<bf16>());
        assert_eq!(f16::DTYPE.size_bytes(), size_of::<f16>());
        assert_eq!(i32::DTYPE.size_bytes(), size_of::<i32>());
        assert_eq!(DType::F64.to_string(), "f64");
    }
}
