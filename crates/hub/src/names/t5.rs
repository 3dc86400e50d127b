//! T5's names.
//!
//! `S` is `encoder` or `decoder`; stored block sublayers are numbered, 0 self-attention, then cross-attention in the
//! decoder, the feed-forward block last.
//!
//! | ours | dims | stored |
//! |---|---|---|
//! | `embedding.token` | vocab, embed | `shared.weight` (also the head if tied) |
//! | `S.relative_bias` | buckets, kv_heads, group | `S.block.0.layer.0.SelfAttention.relative_attention_bias.weight` (for all layers of `S`) |
//! | `S.layers.L.attention.norm.gain` | embed | `S.block.L.layer.0.layer_norm.weight` |
//! | `S.layers.L.attention.{query,key,value}.weight` | embed, kv_heads, (group,) head_dim | `S.block.L.layer.0.SelfAttention.{q,k,v}.weight` |
//! | `S.layers.L.attention.output.weight` | kv_heads, group, head_dim, embed | `S.block.L.layer.0.SelfAttention.o.weight` |
//! | `decoder.layers.L.cross_attention...` | as above | `decoder.block.L.layer.1.{layer_norm,EncDecAttention...}` |
//! | `S.layers.L.mlp.norm.gain` | embed | `S.block.L.layer.{1,2}.layer_norm.weight` |
//! | `S.layers.L.mlp.up.weight` | embed, mlp | `S.block.L.layer.{1,2}.DenseReluDense.wi.weight`, gated: `wi_1` |
//! | `S.layers.L.mlp.gate.weight` | embed, mlp | gated only: `wi_0`, which is activated |
//! | `S.layers.L.mlp.down.weight` | mlp, embed | `S.block.L.layer.{1,2}.DenseReluDense.wo.weight` |
//! | `encoder.norm.gain` | embed | `encoder.final_layer_norm.weight` |
//! | `head.norm.gain` | embed | `decoder.final_layer_norm.weight` |
//! | `head.weight` | vocab, embed | `lm_head.weight`, if not tied |

use super::Piece;
use super::table::{Heads, Rows, Table};
use crate::{FeedForward, T5};

pub(super) fn table(c: &T5) -> Table {
    let mut rows = Rows::new();
    let shared = Piece::of("shared.weight", &[c.vocab_size, c.embed]);
    // files of one half hold the table under that half's name
    let halves = ["encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"];
    rows.add_shared("embedding.token", shared, if c.tied { &halves } else { &halves[..2] });
    for (stack, num_layers) in [("encoder", c.num_layers), ("decoder", c.num_decoder_layers)] {
        let stored = format!("{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight");
        let bias = Piece::of(stored, &[c.num_buckets, c.num_heads]).split(1, &[c.num_heads, 1]);
        rows.add(format!("{stack}.relative_bias"), bias);
        for layer in 0..num_layers {
            self::layer(c, &mut rows, stack, layer);
        }
        let norm = if stack == "encoder" { "encoder.norm" } else { "head.norm" };
        rows.norm(norm, &format!("{stack}.final_layer_norm"), c.embed, false);
    }
    if !c.tied {
        rows.add("head.weight", Piece::of("lm_head.weight", &[c.vocab_size, c.embed]));
    }
    Table {
        model_type: "t5",
        parameters: rows.finish(),
        prefix: "",
        has_prefix: true,
        ignored: &["decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"],
    }
}

fn layer(c: &T5, rows: &mut Rows, stack: &str, layer: usize) {
    let (ours, block) = (format!("{stack}.layers.{layer}"), format!("{stack}.block.{layer}.layer"));
    attention(c, rows, &format!("{ours}.attention"), &format!("{block}.0"), "SelfAttention");
    let mut last = 1;
    if stack == "decoder" {
        attention(c, rows, &format!("{ours}.cross_attention"), &format!("{block}.1"), "EncDecAttention");
        last = 2;
    }
    let (ours, theirs) = (format!("{ours}.mlp"), format!("{block}.{last}.DenseReluDense"));
    rows.norm(&format!("{ours}.norm"), &format!("{block}.{last}.layer_norm"), c.embed, false);
    let projections: &[(&str, &str)] = match c.feed_forward {
        FeedForward::Plain(_) => &[("up", "wi")],
        FeedForward::Gated(_) => &[("gate", "wi_0"), ("up", "wi_1")],
    };
    for (name, tensor) in projections {
        rows.linear(&format!("{ours}.{name}"), &format!("{theirs}.{tensor}"), &[c.embed], &[c.mlp], false);
    }
    rows.linear(&format!("{ours}.down"), &format!("{theirs}.wo"), &[c.mlp], &[c.embed], false);
}

fn attention(c: &T5, rows: &mut Rows, ours: &str, sublayer: &str, tensor: &str) {
    let heads = Heads::new(c.num_heads, c.num_heads, c.head_dim);
    let stored = format!("{sublayer}.{tensor}");
    rows.norm(&format!("{ours}.norm"), &format!("{sublayer}.layer_norm"), c.embed, false);
    rows.linear(&format!("{ours}.query"), &format!("{stored}.q"), &[c.embed], &heads.query, false);
    rows.linear(&format!("{ours}.key"), &format!("{stored}.k"), &[c.embed], &heads.key, false);
    rows.linear(&format!("{ours}.value"), &format!("{stored}.v"), &[c.embed], &heads.key, false);
    rows.linear(&format!("{ours}.output"), &format!("{stored}.o"), &heads.query, &[c.embed], false);
}
