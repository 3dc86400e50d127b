//! The element types that a checkpoint stores. Conversions do not live here: a checkpoint gives back the bits it got.

use serde::{Deserialize, Serialize};

/// Type of the elements of a stored tensor; little endian on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub enum DType {
    /// IEEE single precision.
    F32,
    /// IEEE double precision.
    F64,
    /// Signed 32-bit integers.
    I32,
}

impl DType {
    /// Bytes of one element.
    pub fn size_bytes(self) -> usize {
        match self {
            DType::F32 | DType::I32 => 4,
            DType::F64 => 8,
        }
    }

    /// The name that safetensors uses.
    pub fn name(self) -> &'static str {
        match self {
            DType::F32 => "F32",
            DType::F64 => "F64",
            DType::I32 => "I32",
        }
    }

    /// The type with that safetensors name.
    pub fn from_name(name: &str) -> Option<DType> {
        [DType::F32, DType::F64, DType::I32].into_iter().find(|d| d.name() == name)
    }
}

impl std::fmt::Display for DType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// A Rust type whose slices can be filled from a checkpoint.
pub trait Element: bytemuck::Pod {
    /// How the checkpoint calls it.
    const DTYPE: DType;
}

impl Element for f32 {
    const DTYPE: DType = DType::F32;
}
impl Element for f64 {
    const DTYPE: DType = DType::F64;
}
impl Element for i32 {
    const DTYPE: DType = DType::I32;
}
