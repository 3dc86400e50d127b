//! The causal self-attention block of a decoder, with grouped key-value heads.

use graph::{Graph, ValueId};

use crate::decoder::{Decoder, Dims, Family, Inputs, Rotation};

/// `x + project(attention(norm(x)))`.
///
/// Keys and values are renamed from `seq` to `key_seq`: a context-parallel plan gathers them there, and nowhere else.
pub(crate) fn block(
    model: &Decoder,
    g: &mut Graph,
    d: &Dims,
    inputs: &Inputs,
    layer: usize,
    x: ValueId,
) -> ValueId {
    let normed = model.norm(g, d, x);
    let head = [d.kv_heads, d.group, d.head_dim];
    let kv_head = [d.kv_heads, d.head_dim];
    let queries = [d.batch, d.seq, d.kv_heads, d.group, d.head_dim];
    let keys = [d.batch, d.seq, d.kv_heads, d.head_dim];
    let query_weight = [d.embed, d.kv_heads, d.group, d.head_dim];
    let kv_weight = [d.embed, d.kv_heads, d.head_dim];
    let std = model.std();
    let bias = model.has_attention_bias();
    let mut q = model.project(g, "query", normed, &query_weight, bias.then_some(&head[..]), &queries, std);
    let mut k = model.project(g, "key", normed, &kv_weight, bias.then_some(&kv_head[..]), &keys, std);
    let v = model.project(g, "value", normed, &kv_weight, bias.then_some(&kv_head[..]), &keys, std);
    if model.family == Family::Llama {
        let Rotation { frequencies, factor } = model.rotation();
        let rotary = graph::Op::Rotary { frequencies, factor, inverse: false };
        q = g.elementwise(rotary.clone(), "query.rotary", &[q, inputs.positions]);
        k = g.elementwise(rotary, "key.rotary", &[k, inputs.positions]);
    }
    let k = g.rename("key.context", k, d.seq, d.key_seq);
    let v = g.rename("value.context", v, d.seq, d.key_seq);
    let scale = model.attention_scale(layer);
    let o = g.attention("core", q, k, v, inputs.key_index, true, scale, model.dropout);
    let stream = [d.batch, d.seq, d.embed];
    let weight = [d.kv_heads, d.group, d.head_dim, d.embed];
    let bias = bias.then_some(&stream[2..]);
    let y = model.project(g, "output", o, &weight, bias, &stream, model.residual_std());
    let y = g.dropout("dropout", y, model.dropout);
    g.add("residual", &[x, y])
}
