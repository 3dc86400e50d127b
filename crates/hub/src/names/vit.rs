//! ViT's names.
//!
//! | ours | dims | stored |
//! |---|---|---|
//! | `embedding.class` | embed | `vit.embeddings.cls_token` `[1, 1, embed]` |
//! | `embedding.position` | positions, embed | `vit.embeddings.position_embeddings` `[1, positions, embed]` (the class token's first) |
//! | `embedding.patch.weight` | patch, embed | `vit.embeddings.patch_embeddings.projection.weight` `[embed, channels, height, width]` |
//! | `embedding.patch.bias` | embed | `vit.embeddings.patch_embeddings.projection.bias` |
//! | `layers.L.attention.norm.{gain,bias}` | embed | `vit.encoder.layer.L.layernorm_before.{weight,bias}` |
//! | `layers.L.attention.{query,key,value}.weight` | embed, kv_heads, (group,) head_dim | `vit.encoder.layer.L.attention.attention.{query,key,value}.weight` |
//! | `layers.L.attention.output.weight` | kv_heads, group, head_dim, embed | `vit.encoder.layer.L.attention.output.dense.weight` |
//! | `layers.L.mlp.norm.{gain,bias}` | embed | `vit.encoder.layer.L.layernorm_after.{weight,bias}` |
//! | `layers.L.mlp.up.weight` | embed, mlp | `vit.encoder.layer.L.intermediate.dense.weight` |
//! | `layers.L.mlp.down.weight` | mlp, embed | `vit.encoder.layer.L.output.dense.weight` |
//! | `head.norm.{gain,bias}` | embed | `vit.layernorm.{weight,bias}` |
//! | `head.classifier.weight`, `.bias` | embed, labels | `classifier.{weight,bias}` |
//!
//! Each projection has a `.bias` with the weight's output dims (query, key and value if `qkv_bias`). A patch is one
//! row of numbers: channels slowest, then its rows, then its columns.

use super::Piece;
use super::table::{Heads, Rows, Table, linear};
use crate::Vit;

pub(super) fn table(c: &Vit) -> Table {
    let mut rows = Rows::new();
    let embed = c.embed;
    let heads = Heads::new(c.num_heads, c.num_heads, embed / c.num_heads);
    let positions = c.num_patches() + 1;
    rows.add("embedding.class", Piece::of("vit.embeddings.cls_token", &[1, 1, embed]).merge(0..3));
    let position = Piece::of("vit.embeddings.position_embeddings", &[1, positions, embed]);
    rows.add("embedding.position", position.merge(0..2));
    let stored = "vit.embeddings.patch_embeddings.projection";
    let [height, width] = c.patch_size;
    let patch = Piece::of(format!("{stored}.weight"), &[embed, c.num_channels, height, width]);
    rows.add("embedding.patch.weight", patch.merge(1..4).permute(&[1, 0]));
    rows.add("embedding.patch.bias", Piece::of(format!("{stored}.bias"), &[embed]));
    for layer in 0..c.num_layers {
        let (ours, theirs) = (format!("layers.{layer}"), format!("vit.encoder.layer.{layer}"));
        let attention = format!("{ours}.attention");
        let stored = format!("{theirs}.attention");
        let bias = c.qkv_bias;
        rows.norm(&format!("{attention}.norm"), &format!("{theirs}.layernorm_before"), embed, true);
        rows.linear(
            &format!("{attention}.query"),
            &format!("{stored}.attention.query"),
            &[embed],
            &heads.query,
            bias,
        );
        rows.linear(
            &format!("{attention}.key"),
            &format!("{stored}.attention.key"),
            &[embed],
            &heads.key,
            bias,
        );
        rows.linear(
            &format!("{attention}.value"),
            &format!("{stored}.attention.value"),
            &[embed],
            &heads.key,
            bias,
        );
        rows.linear(
            &format!("{attention}.output"),
            &format!("{stored}.output.dense"),
            &heads.query,
            &[embed],
            true,
        );
        rows.norm(&format!("{ours}.mlp.norm"), &format!("{theirs}.layernorm_after"), embed, true);
        rows.linear(
            &format!("{ours}.mlp.up"),
            &format!("{theirs}.intermediate.dense"),
            &[embed],
            &[c.mlp],
            true,
        );
        rows.linear(&format!("{ours}.mlp.down"), &format!("{theirs}.output.dense"), &[c.mlp], &[embed], true);
    }
    rows.norm("head.norm", "vit.layernorm", embed, true);
    let (weight, bias) = linear("classifier", &[embed], &[c.labels.names.len()]);
    rows.add_head("head.classifier.weight", weight);
    rows.add_head("head.classifier.bias", bias);
    Table {
        model_type: "vit",
        parameters: rows.finish(),
        prefix: "vit.",
        has_prefix: true,
        ignored: &["embeddings.mask_token"],
    }
}
