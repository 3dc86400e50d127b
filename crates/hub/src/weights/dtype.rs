//! Types of stored numbers, and the real types they are converted to. No files.

use half::{bf16, f16};

/// The type of a stored tensor's elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum StoredType {
    /// One byte, 0 or 1.
    Bool,
    /// Unsigned, 8 bits.
    U8,
    /// Signed, 8 bits.
    I8,
    /// Unsigned, 16 bits.
    U16,
    /// Signed, 16 bits.
    I16,
    /// Unsigned, 32 bits.
    U32,
    /// Signed, 32 bits.
    I32,
    /// Unsigned, 64 bits.
    U64,
    /// Signed, 64 bits.
    I64,
    /// IEEE 754 binary16.
    F16,
    /// bfloat16.
    Bf16,
    /// IEEE 754 binary32.
    F32,
    /// IEEE 754 binary64.
    F64,
}

impl StoredType {
    const ALL: [StoredType; 13] = [
        StoredType::Bool,
        StoredType::U8,
        StoredType::I8,
        StoredType::U16,
        StoredType::I16,
        StoredType::U32,
        StoredType::I32,
        StoredType::U64,
        StoredType::I64,
        StoredType::F16,
        StoredType::Bf16,
        StoredType::F32,
        StoredType::F64,
    ];

    /// The name in a safetensors header.
    pub const fn name(self) -> &'static str {
        match self {
            StoredType::Bool => "BOOL",
            StoredType::U8 => "U8",
            StoredType::I8 => "I8",
            StoredType::U16 => "U16",
            StoredType::I16 => "I16",
            StoredType::U32 => "U32",
            StoredType::I32 => "I32",
            StoredType::U64 => "U64",
            StoredType::I64 => "I64",
            StoredType::F16 => "F16",
            StoredType::Bf16 => "BF16",
            StoredType::F32 => "F32",
            StoredType::F64 => "F64",
        }
    }

    /// The type that a safetensors header calls `name`.
    pub fn from_name(name: &str) -> Option<StoredType> {
        Self::ALL.into_iter().find(|t| t.name() == name)
    }

    /// Names of all types that can be read.
    pub(crate) fn names() -> String {
        Self::ALL.map(StoredType::name).join(", ")
    }

    /// Size of one element.
    pub const fn size_bytes(self) -> usize {
        match self {
            StoredType::Bool | StoredType::U8 | StoredType::I8 => 1,
            StoredType::U16 | StoredType::I16 | StoredType::F16 | StoredType::Bf16 => 2,
            StoredType::U32 | StoredType::I32 | StoredType::F32 => 4,
            StoredType::U64 | StoredType::I64 | StoredType::F64 => 8,
        }
    }

    /// Whether the elements are floating-point numbers.
    pub const fn is_real(self) -> bool {
        matches!(self, StoredType::F16 | StoredType::Bf16 | StoredType::F32 | StoredType::F64)
    }

    /// How `config.json` calls the type in `dtype` and `torch_dtype`.
    pub(crate) const fn torch_name(self) -> Option<&'static str> {
        match self {
            StoredType::F16 => Some("float16"),
            StoredType::Bf16 => Some("bfloat16"),
            StoredType::F32 => Some("float32"),
            StoredType::F64 => Some("float64"),
            _ => None,
        }
    }
}

impl std::fmt::Display for StoredType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

mod sealed {
    pub trait Sealed {}
}

/// A real number that tensors are read into and written from.
///
/// Every conversion goes through `f64`, which holds each of these types exactly, so a number that the target has is not
/// changed. Others are rounded to nearest even, to half precision by way of `f32`, as PyTorch does.
pub trait Real: Copy + Default + sealed::Sealed {
    /// The type under which such numbers are stored.
    const STORED: StoredType;

    /// The nearest number of this type.
    fn from_f64(value: f64) -> Self;

    /// The same number.
    fn to_f64(self) -> f64;
}

macro_rules! real {
    ($($t:ty, $stored:expr, $from:expr, $to:expr;)*) => {$(
        impl sealed::Sealed for $t {}
        impl Real for $t {
            const STORED: StoredType = $stored;
            #[inline]
            fn from_f64(value: f64) -> Self {
                $from(value)
            }
            #[inline]
            fn to_f64(self) -> f64 {
                $to(self)
            }
        }
    )*};
}
real! {
    f64, StoredType::F64, |x| x, |x| x;
    f32, StoredType::F32, |x| x as f32, f64::from;
    bf16, StoredType::Bf16, |x| bf16::from_f32(x as f32), bf16::to_f64;
    f16, StoredType::F16, |x| f16::from_f32(x as f32), f16::to_f64;
}

/// Element `index` of little-endian real numbers; `None` beyond the end or for types that are not real.
#[inline]
pub(crate) fn decode(stored: StoredType, bytes: &[u8], index: usize) -> Option<f64> {
    fn at<const N: usize>(bytes: &[u8], index: usize) -> Option<[u8; N]> {
        bytes.get(index * N..index * N + N)?.try_into().ok()
    }
    match stored {
        StoredType::F64 => at(bytes, index).map(f64::from_le_bytes),
        StoredType::F32 => at(bytes, index).map(|b| f64::from(f32::from_le_bytes(b))),
        StoredType::F16 => at(bytes, index).map(|b| f16::from_le_bytes(b).to_f64()),
        StoredType::Bf16 => at(bytes, index).map(|b| bf16::from_le_bytes(b).to_f64()),
        _ => None,
    }
}

/// Writes a number as little-endian `stored` at element `index`.
///
/// # Panics
/// If the element is beyond the end or the type is not real: the caller made the buffer for it.
#[inline]
pub(crate) fn encode(stored: StoredType, bytes: &mut [u8], index: usize, value: f64) {
    let size = stored.size_bytes();
    let place = &mut bytes[index * size..(index + 1) * size];
    match stored {
        StoredType::F64 => place.copy_from_slice(&value.to_le_bytes()),
        StoredType::F32 => place.copy_from_slice(&(value as f32).to_le_bytes()),
        StoredType::F16 => place.copy_from_slice(&<f16 as Real>::from_f64(value).to_le_bytes()),
        StoredType::Bf16 => place.copy_from_slice(&<bf16 as Real>::from_f64(value).to_le_bytes()),
        other => unreachable!("{other} is not a real type"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique() {
        for t in StoredType::ALL {
            assert_eq!(StoredType::from_name(t.name()), Some(t));
        }
        assert_eq!(StoredType::from_name("F8_E4M3"), None);
    }

    #[test]
    fn every_half_survives() {
        for bits in 0..=u16::MAX {
            for stored in [StoredType::F16, StoredType::Bf16] {
                let mut bytes = bits.to_le_bytes();
                let value = decode(stored, &bytes, 0).unwrap();
                encode(stored, &mut bytes, 0, value);
                assert!(value.is_nan() || bytes == bits.to_le_bytes(), "{stored} {bits:#x}");
            }
        }
    }

    #[test]
    fn narrowing_looks_at_all_bits() {
        // half way between two bf16 numbers and a little above, in bits that a conversion of the upper half would lose
        let value = 1.0 + 2f64.powi(-8) + 2f64.powi(-22);
        assert_eq!(<bf16 as Real>::from_f64(value).to_f64(), 1.0 + 2f64.powi(-7));
    }
}
