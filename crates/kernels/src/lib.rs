//! CPU kernels: plain functions over row-major slices, and nothing else.
//!
//! Invariant: nothing here knows a rank, a mesh axis or a graph. A kernel that depends on *where*
//! an element lives (causal masks, padding, dropout, vocabulary shards) is told so by index tables
//! that give the global index of each local position along a dim.
//!
//! All kernels are generic over [`Float`] (`f32`, `f64`), overwrite their outputs unless their name
//! says otherwise, allocate nothing (except [`gemm()`], which says what it allocates), and are compiled
//! once per instruction set, chosen at run time. Results do not depend on the instruction set beyond
//! rounding, and are bitwise repeatable on one machine. A slice of the wrong length is a bug of the
//! caller and panics.

mod activation;
#[cfg(target_arch = "x86_64")]
mod amx;
mod attention;
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
mod random;
mod reduce;
mod rotary;
mod storage;
#[cfg(test)]
mod testing;

pub use activation::{gelu, gelu_backward, swiglu, swiglu_backward};
pub use attention::{
    AttentionDropout, AttentionShape, attention_backward, attention_forward, attention_scratch,
};
pub use cpu::{Cpu, InstructionSet};
pub use elementwise::{accumulate, add, add_bias, scale};
pub use embedding::{NOT_LOCAL, embedding_backward, embedding_forward};
pub use float::Float;
pub use gemm::gemm;
pub use layout::{pack, unpack};
pub use loss::{row_max, sum_exp, sum_exp_backward, token_loss, token_loss_backward};
pub use norm::{NormKind, norm_backward_input, norm_backward_weight, norm_forward};
pub use optimizer::{AdamStep, SgdStep, adam, adam_in_place, sgd_in_place};
pub use random::{Key, NamedKey, dropout};
pub use reduce::{sum, sum_squares, weighted_sum};
pub use rotary::rotary;
pub use storage::Storage;
