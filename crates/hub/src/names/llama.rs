//! LLaMA's names.
//!
//! | ours | dims | stored |
//! |---|---|---|
//! | `embedding.token` | vocab, embed | `model.embed_tokens.weight` (also the head if tied) |
//! | `layers.L.attention.norm.gain` | embed | `model.layers.L.input_layernorm.weight` |
//! | `layers.L.attention.query.weight` | embed, kv_heads, group, head_dim | `model.layers.L.self_attn.q_proj.weight` |
//! | `layers.L.attention.{key,value}.weight` | embed, kv_heads, head_dim | `model.layers.L.self_attn.{k,v}_proj.weight` |
//! | `layers.L.attention.output.weight` | kv_heads, group, head_dim, embed | `model.layers.L.self_attn.o_proj.weight` |
//! | `layers.L.mlp.norm.gain` | embed | `model.layers.L.post_attention_layernorm.weight` |
//! | `layers.L.mlp.{gate,up}.weight` | embed, mlp | `model.layers.L.mlp.{gate,up}_proj.weight` |
//! | `layers.L.mlp.down.weight` | mlp, embed | `model.layers.L.mlp.down_proj.weight` |
//! | `head.norm.gain` | embed | `model.norm.weight` |
//! | `head.weight` | vocab, embed | `lm_head.weight`, if not tied |
//!
//! With `attention_bias` or `mlp_bias` each projection has a `.bias` with the weight's output dims. Weights are stored
//! `[output, input]`; query heads that share a key-value head are neighbours; rotary pairs are half a head apart.

use super::Piece;
use super::table::{Heads, Rows, Table};
use crate::Llama;

pub(super) fn table(c: &Llama) -> Table {
    let mut rows = Rows::new();
    let embed = c.embed;
    let heads = Heads::new(c.num_heads, c.num_kv_heads, c.head_dim);
    let token = Piece::of("model.embed_tokens.weight", &[c.vocab_size, embed]);
    rows.add_shared("embedding.token", token, if c.tied { &["lm_head.weight"] } else { &[] });
    for layer in 0..c.num_layers {
        let (ours, theirs) = (format!("layers.{layer}"), format!("model.layers.{layer}"));
        let attention = format!("{ours}.attention");
        let stored = format!("{theirs}.self_attn");
        rows.norm(&format!("{attention}.norm"), &format!("{theirs}.input_layernorm"), embed, false);
        let bias = c.attention_bias;
        rows.linear(&format!("{attention}.query"), &format!("{stored}.q_proj"), &[embed], &heads.query, bias);
        rows.linear(&format!("{attention}.key"), &format!("{stored}.k_proj"), &[embed], &heads.key, bias);
        rows.linear(&format!("{attention}.value"), &format!("{stored}.v_proj"), &[embed], &heads.key, bias);
        rows.linear(
            &format!("{attention}.output"),
            &format!("{stored}.o_proj"),
            &heads.query,
            &[embed],
            bias,
        );
        rows.norm(&format!("{ours}.mlp.norm"), &format!("{theirs}.post_attention_layernorm"), embed, false);
        for (name, input, output) in [("gate", embed, c.mlp), ("up", embed, c.mlp), ("down", c.mlp, embed)] {
            let (ours, theirs) = (format!("{ours}.mlp.{name}"), format!("{theirs}.mlp.{name}_proj"));
            rows.linear(&ours, &theirs, &[input], &[output], c.mlp_bias);
        }
    }
    rows.norm("head.norm", "model.norm", embed, false);
    if !c.tied {
        rows.add("head.weight", Piece::of("lm_head.weight", &[c.vocab_size, embed]));
    }
    Table {
        model_type: "llama",
        parameters: rows.finish(),
        prefix: "model.",
        has_prefix: true,
        ignored: &["rotary_emb.inv_freq"],
    }
}
