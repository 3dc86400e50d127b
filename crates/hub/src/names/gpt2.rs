//! GPT-2's names.
//!
//! | ours | dims | stored | |
//! |---|---|---|---|
//! | `embedding.token` | vocab, embed | `transformer.wte.weight` | also the head if tied |
//! | `embedding.position` | positions, embed | `transformer.wpe.weight` | |
//! | `layers.L.attention.norm.{gain,bias}` | embed | `transformer.h.L.ln_1.{weight,bias}` | |
//! | `layers.L.attention.query.weight` | embed, kv_heads, group, head_dim | `transformer.h.L.attn.c_attn.weight` `[embed, 3 embed]` | columns `0..embed` |
//! | `layers.L.attention.{key,value}.weight` | embed, kv_heads, head_dim | the same | the next two thirds |
//! | `layers.L.attention.output.weight` | kv_heads, group, head_dim, embed | `transformer.h.L.attn.c_proj.weight` | |
//! | `layers.L.mlp.norm.{gain,bias}` | embed | `transformer.h.L.ln_2.{weight,bias}` | |
//! | `layers.L.mlp.up.weight` | embed, mlp | `transformer.h.L.mlp.c_fc.weight` | |
//! | `layers.L.mlp.down.weight` | mlp, embed | `transformer.h.L.mlp.c_proj.weight` | |
//! | `head.norm.{gain,bias}` | embed | `transformer.ln_f.{weight,bias}` | |
//! | `head.weight` | vocab, embed | `lm_head.weight` | if not tied |
//!
//! Each projection has a `.bias` with the weight's output dims, in the stored tensor of the same name. GPT-2 stores
//! weights `[input, output]`, unlike every other family.

use super::Piece;
use super::table::{Heads, Rows, Table};
use crate::Gpt2;

pub(super) fn table(c: &Gpt2) -> Table {
    let mut rows = Rows::new();
    let embed = c.embed;
    let heads = Heads::new(c.num_heads, c.num_heads, embed / c.num_heads);
    let token = Piece::of("transformer.wte.weight", &[c.vocab_size, embed]);
    rows.add_shared("embedding.token", token, if c.tied { &["lm_head.weight"] } else { &[] });
    rows.add("embedding.position", Piece::of("transformer.wpe.weight", &[c.max_positions, embed]));
    for layer in 0..c.num_layers {
        let (ours, theirs) = (format!("layers.{layer}"), format!("transformer.h.{layer}"));
        rows.norm(&format!("{ours}.attention.norm"), &format!("{theirs}.ln_1"), embed, true);
        let fused = format!("{theirs}.attn.c_attn");
        for (third, name, dims) in
            [(0, "query", &heads.query[..]), (1, "key", &heads.key[..]), (2, "value", &heads.key[..])]
        {
            let columns = third * embed..(third + 1) * embed;
            let weight = Piece::of(format!("{fused}.weight"), &[embed, 3 * embed]);
            let bias = Piece::of(format!("{fused}.bias"), &[3 * embed]);
            rows.add(
                format!("{ours}.attention.{name}.weight"),
                weight.slice(1, columns.clone()).split(1, dims),
            );
            rows.add(format!("{ours}.attention.{name}.bias"), bias.slice(0, columns).split(0, dims));
        }
        let output = Piece::of(format!("{theirs}.attn.c_proj.weight"), &[embed, embed]);
        rows.add(format!("{ours}.attention.output.weight"), output.split(0, &heads.query));
        rows.add(
            format!("{ours}.attention.output.bias"),
            Piece::of(format!("{theirs}.attn.c_proj.bias"), &[embed]),
        );
        rows.norm(&format!("{ours}.mlp.norm"), &format!("{theirs}.ln_2"), embed, true);
        for (name, tensor, [input, output]) in
            [("up", "c_fc", [embed, c.mlp]), ("down", "c_proj", [c.mlp, embed])]
        {
            let weight = Piece::of(format!("{theirs}.mlp.{tensor}.weight"), &[input, output]);
            rows.add(format!("{ours}.mlp.{name}.weight"), weight);
            rows.add(
                format!("{ours}.mlp.{name}.bias"),
                Piece::of(format!("{theirs}.mlp.{tensor}.bias"), &[output]),
            );
        }
    }
    rows.norm("head.norm", "transformer.ln_f", embed, true);
    if !c.tied {
        rows.add("head.weight", Piece::of("lm_head.weight", &[c.vocab_size, embed]));
    }
    Table {
        model_type: "gpt2",
        parameters: rows.finish(),
        prefix: "transformer.",
        has_prefix: true,
        // causal masks, which older versions stored
        ignored: &[".attn.bias", ".attn.masked_bias"],
    }
}
