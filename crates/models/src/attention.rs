//! The causal self-attention block of a decoder, with grouped key-value heads.

use graph::{Graph, ValueId};

use crate::cache::Cache;
use crate::decoder::{Decoder, Dims, Family, Inputs, Rotation};
use crate::parts;

/// `x + project(attention(norm(x)))`.
///
/// Keys and values are renamed from `seq` to `key_seq`: a context-parallel plan gathers them there, and nowhere else.
/// With a cache they are kept; where queries say how far its keys are behind them, it is what they see.
pub(crate) fn block(
    model: &Decoder,
    g: &mut Graph,
    d: &Dims,
    inputs: &Inputs,
    layer: usize,
    x: ValueId,
) -> ValueId {
    let normed = model.norm(g, x);
    let heads = [d.kv_heads, d.group, d.head_dim];
    let kv_heads = [d.kv_heads, d.head_dim];
    let has_bias = model.has_attention_bias();
    let mut q = parts::linear(g, "query", normed, &[d.embed], &heads, has_bias);
    let mut k = parts::linear(g, "key", normed, &[d.embed], &kv_heads, has_bias);
    let v = parts::linear(g, "value", normed, &[d.embed], &kv_heads, has_bias);
    if model.family == Family::Llama {
        let Rotation { frequencies, factor } = model.rotation();
        let rotary = graph::Op::Rotary { frequencies, factor, inverse: false };
        q = g.elementwise(rotary.clone(), "query.rotary", &[q, inputs.positions]);
        k = g.elementwise(rotary, "key.rotary", &[k, inputs.positions]);
    }
    let scale = model.attention_scale(layer);
    let o = match inputs.cache {
        Some(cache @ Cache { distance: Some(distance), .. }) => {
            let [k, v] = cache.write(g, [k, v]);
            g.cached_attention("core", [q, k, v], distance, scale, None)
        }
        cache => {
            let k = g.rename("key.context", k, d.seq, d.key_seq);
            let v = g.rename("value.context", v, d.seq, d.key_seq);
            if let Some(cache) = cache {
                cache.write(g, [k, v]);
            }
            g.attention("core", q, k, v, inputs.key_index, true, scale, model.dropout.attention)
        }
    };
    let y = parts::linear_drawn(g, "output", o, &heads, &[d.embed], has_bias, model.residual_std());
    let y = g.dropout("dropout", y, model.dropout.residual);
    g.add("residual", &[x, y])
}
