//! Attention of bf16 on AMX tiles: the passes' common parts. `tiles` multiplies, `softmax` is what happens between
//! products, `pack` moves between tensors and tiles, `keys` says which keys are seen, `forward` and `backward` are
//! the two passes.
//!
//! Scores are computed with keys as rows and queries as lanes of vectors, in f32. Weights, and in the backward pass
//! the gradients by the scores, are rounded to bf16 for the products that follow; those are summed in f32.

mod backward;
mod forward;
mod keys;
mod pack;
mod softmax;
mod tiles;

pub(super) use pack::transpose;

use super::{AttentionShape, Head, HeadDropout, Scratch};
use crate::cpu::{Cpu, InstructionSet};
use crate::parts::Shared;
use backward::Backward;
use forward::Forward;
use half::bf16;
use keys::{Keys, Limits, key_tile, query_tile};
use pack::{Rows, RowsMut};
use std::any::TypeId;
use std::arch::x86_64::*;
use std::ops::Range;
use tiles::{Block, SIDE, Square};

/// The same tensors as bf16, if they are and the processor's tiles are to be used.
pub(super) fn serve<'a, S: 'static, const N: usize>(cpu: &Cpu, x: [&'a [S]; N]) -> Option<[&'a [bf16]; N]> {
    let serves = cpu.instruction_set() == InstructionSet::Amx && TypeId::of::<S>() == TypeId::of::<bf16>();
    serves.then(|| x.map(cast))
}

/// The slice, of a type that the caller knows is another name of its own.
pub(super) fn cast<A: 'static, B: 'static>(x: &[A]) -> &[B] {
    assert_eq!(TypeId::of::<A>(), TypeId::of::<B>());
    // SAFETY: the same type.
    unsafe { std::slice::from_raw_parts(x.as_ptr().cast(), x.len()) }
}

/// As [`cast`].
pub(super) fn cast_mut<A: 'static, B: 'static>(x: &mut [A]) -> &mut [B] {
    assert_eq!(TypeId::of::<A>(), TypeId::of::<B>());
    // SAFETY: the same type, borrowed uniquely.
    unsafe { std::slice::from_raw_parts_mut(x.as_mut_ptr().cast(), x.len()) }
}

/// [`attention_forward`](super::attention_forward) where [`serve`] gives tensors.
pub(super) fn forward(
    cpu: &Cpu,
    shape: &AttentionShape,
    q: &[bf16],
    k: &[bf16],
    v: &[bf16],
    o: &mut [bf16],
    lse: &mut [f32],
    scratch: &mut [f32],
) {
    let (o, lse) = (&Shared::new(o), &Shared::new(lse));
    shape.divide(cpu, 0, scratch, |shape, heads, scratch| {
        // SAFETY: `Cpu` has made sure of AMX, which is only said to be available beside AVX-512 and its bf16.
        unsafe { Forward { shape, heads, q, k, v, o, lse, scratch }.run() };
    });
}

/// [`attention_backward`](super::attention_backward) where [`serve`] gives tensors.
pub(super) fn backward(
    cpu: &Cpu,
    shape: &AttentionShape,
    q: &[bf16],
    k: &[bf16],
    v: &[bf16],
    o: &[bf16],
    lse: &[f32],
    d_o: &[bf16],
    dq: &mut [bf16],
    dk: &mut [bf16],
    dv: &mut [bf16],
    scratch: &mut [f32],
) {
    let (dq, dk, dv) = (&Shared::new(dq), &Shared::new(dk), &Shared::new(dv));
    shape.divide(cpu, 0, scratch, |shape, heads, scratch| {
        // SAFETY: as in `forward`.
        unsafe { Backward { shape, heads, q, k, v, o, lse, d_o, dq, dk, dv, scratch }.run() };
    });
}

/// Elements of f32 that a square takes.
const SQUARE: usize = size_of::<Square>() / size_of::<f32>();
/// Elements of f32 that a block takes.
const BLOCK: usize = size_of::<Block>() / size_of::<f32>();

/// Elements of f32 that each thread needs, in either pass.
pub(super) fn scratch_per_thread(shape: &AttentionShape) -> usize {
    forward::scratch(shape).max(backward::scratch(shape))
}

/// Extents in squares: blocks of keys, steps of the head width.
fn extents(shape: &AttentionShape) -> (usize, usize) {
    (shape.k_len.div_ceil(SIDE), shape.head_dim.div_ceil(SIDE))
}

fn take_squares<'a>(scratch: &mut Scratch<'a, f32>, count: usize) -> &'a mut [Square] {
    // SAFETY: any bits are a bf16.
    let (before, squares, _) = unsafe { scratch.take(count * SQUARE).align_to_mut() };
    assert!(before.is_empty(), "scratch is aligned");
    squares
}

fn take_blocks<'a>(scratch: &mut Scratch<'a, f32>, count: usize) -> &'a mut [Block] {
    // SAFETY: a block is plain f32.
    let (before, blocks, _) = unsafe { scratch.take(count * BLOCK).align_to_mut() };
    assert!(before.is_empty(), "scratch is aligned");
    blocks
}

/// The elements of blocks, for what works without blocks.
fn elements(blocks: &mut [Block]) -> &mut [f32] {
    // SAFETY: a block is plain f32.
    unsafe { blocks.align_to_mut().1 }
}

/// The keys or values of a head.
fn key_rows<'a>(shape: &AttentionShape, data: &'a [bf16], batch: usize, kv: usize) -> Rows<'a> {
    let start = shape.k_row(batch, 0, kv) * shape.head_dim;
    Rows::new(data, start, shape.kv_heads * shape.head_dim, shape.head_dim, shape.k_len)
}

/// The queries of a head, or what is shaped like them.
fn query_rows<'a>(shape: &AttentionShape, data: &'a [bf16], batch: usize, head: Head) -> Rows<'a> {
    let start = shape.q_row(batch, 0, head) * shape.head_dim;
    let stride = shape.kv_heads * shape.group * shape.head_dim;
    Rows::new(data, start, stride, shape.head_dim, shape.q_len)
}

/// The keys of a head, to be written.
fn key_rows_mut<'a>(
    shape: &AttentionShape,
    to: &'a Shared<'a, bf16>,
    batch: usize,
    kv: usize,
) -> RowsMut<'a> {
    let start = shape.k_row(batch, 0, kv) * shape.head_dim;
    RowsMut { to, start, stride: shape.kv_heads * shape.head_dim, head_dim: shape.head_dim }
}

/// The queries of a head from `first`, to be written.
fn query_rows_mut<'a>(
    shape: &AttentionShape,
    to: &'a Shared<'a, bf16>,
    batch: usize,
    head: Head,
    first: usize,
) -> RowsMut<'a> {
    let start = shape.q_row(batch, first, head) * shape.head_dim;
    RowsMut { to, start, stride: shape.kv_heads * shape.group * shape.head_dim, head_dim: shape.head_dim }
}

/// Dropout's factors of 32 queries from `first` and a block of keys, as the scores are.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq")]
fn factors_of(
    shape: &AttentionShape,
    dropout: &HeadDropout<f32>,
    first: usize,
    keys: &Keys,
    rows: &mut Block,
    to: &mut Block,
) {
    for (i, row) in rows.0.iter_mut().enumerate() {
        let query = (first + i).min(shape.q_len - 1);
        let (real, rest) = row.as_flattened_mut().split_at_mut(keys.len);
        dropout.factors(query, &keys.index[..keys.len], real);
        rest.fill(1.0);
    }
    pack::transpose_rows(&rows.0, to);
}
