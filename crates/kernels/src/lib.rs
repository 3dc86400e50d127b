//! CPU kernels: plain functions over row-major slices, and nothing else.
//!
//! Invariant: nothing here knows a rank, a mesh axis or a graph. A kernel that depends on *where*
//! an element lives (causal masks, padding, dropout, vocabulary shards) is told so by index tables
//! that give the global index of each local position along a dim.
//!
//! Kernels are generic over [`Storage`] (`f32`, `f64`, `bf16`, `f16`), compute in its wide type ([`Float`]),
//! overwrite their outputs unless their name says otherwise, and take the [`Cpu`] to run on: its instruction
//! set, for which each is compiled, and its threads, among which it divides work that is large enough.
//! Results do not depend on the instruction set beyond rounding, and are bitwise repeatable for a fixed
//! number of threads. On one thread kernels allocate nothing; on several, only what handing out work takes.
//! A slice of the wrong length is a bug of the caller and panics.

mod activation;
#[cfg(target_arch = "x86_64")]
mod amx;
mod attention;
mod attention_cached;
mod cpu;
mod elementwise;
mod embedding;
mod float;
mod gemm;
mod layout;
mod loss;
mod math;
mod norm;
mod optimizer;
mod parts;
mod pointwise;
mod random;
mod reduce;
mod rotary;
mod spread;
mod storage;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

pub use activation::{gelu, gelu_backward, swiglu, swiglu_backward};
pub use attention::relative::{
    RelativeBias, RelativeBuckets, relative_attention_backward, relative_attention_forward,
    relative_attention_scratch,
};
pub use attention::{
    AttentionDropout, AttentionShape, attention_backward, attention_forward, attention_scratch,
};
pub use attention_cached::{CachedShape, cache_write, cached_attention};
pub use cpu::{Cpu, InstructionSet};
pub use elementwise::{accumulate, add, add_bias, cast};
pub use embedding::{NOT_LOCAL, embedding_backward, embedding_forward};
pub use float::Float;
pub use gemm::{
    Base, FEW_ROWS, gemm, gemm_few_rows, gemm_prepacked, gemm_scratch_bytes, pack_weight, packed_len,
};
pub use layout::{pack, unpack};
pub use loss::{row_max, sum_exp, sum_exp_backward, token_loss, token_loss_backward};
pub use norm::{NormKind, add_norm_forward, norm_backward_input, norm_backward_weight, norm_forward};
pub use optimizer::{AdamStep, SgdStep, adam_in_place, adam_with_copy, sgd_in_place, sgd_with_copy};
pub use pointwise::{PointwiseKind, multiply, pointwise, pointwise_backward};
pub use random::{Key, NamedKey, dropout, normal_fill};
pub use reduce::{sum, sum_squares, weighted_sum};
pub use rotary::rotary;
pub use spread::spread;
pub use storage::Storage;
