//! BERT's names.
//!
//! | ours | dims | stored |
//! |---|---|---|
//! | `embedding.token` | vocab, embed | `bert.embeddings.word_embeddings.weight` (also the head if tied) |
//! | `embedding.position` | positions, embed | `bert.embeddings.position_embeddings.weight` |
//! | `embedding.segment` | segments, embed | `bert.embeddings.token_type_embeddings.weight` |
//! | `embedding.norm.{gain,bias}` | embed | `bert.embeddings.LayerNorm.{weight,bias}` |
//! | `layers.L.attention.{query,key,value}.weight` | embed, kv_heads, (group,) head_dim | `bert.encoder.layer.L.attention.self.{query,key,value}.weight` |
//! | `layers.L.attention.output.weight` | kv_heads, group, head_dim, embed | `bert.encoder.layer.L.attention.output.dense.weight` |
//! | `layers.L.attention.norm.{gain,bias}` | embed | `bert.encoder.layer.L.attention.output.LayerNorm.{weight,bias}` |
//! | `layers.L.mlp.up.weight` | embed, mlp | `bert.encoder.layer.L.intermediate.dense.weight` |
//! | `layers.L.mlp.down.weight` | mlp, embed | `bert.encoder.layer.L.output.dense.weight` |
//! | `layers.L.mlp.norm.{gain,bias}` | embed | `bert.encoder.layer.L.output.LayerNorm.{weight,bias}` |
//!
//! The norms of a layer stand after its residual sums. Each projection has a `.bias` with the weight's output dims.
//! Heads by task:
//!
//! | task | ours | dims | stored |
//! |---|---|---|---|
//! | masked-lm | `head.transform.weight`, `.bias` | embed, transform | `cls.predictions.transform.dense.{weight,bias}` |
//! | | `head.norm.{gain,bias}` | transform | `cls.predictions.transform.LayerNorm.{weight,bias}` |
//! | | `head.weight` | vocab, transform | `cls.predictions.decoder.weight`, if not tied |
//! | | `head.bias` | vocab | `cls.predictions.bias`, if not tied `cls.predictions.decoder.bias` |
//! | classify | `head.pooler.weight`, `.bias` | embed, pooled | `bert.pooler.dense.{weight,bias}` |
//! | | `head.classifier.weight`, `.bias` | pooled, labels | `classifier.{weight,bias}` |
//! | tag | `head.classifier.weight`, `.bias` | embed, labels | `classifier.{weight,bias}` |
//! | embed | none | | names have no `bert.` |

use super::Piece;
use super::table::{Heads, Rows, Table, linear};
use crate::{Bert, Task};

pub(super) fn table(c: &Bert, task: Task) -> Table {
    let mut rows = Rows::new();
    let embed = c.embed;
    let has_prefix = task != Task::Embed;
    let prefix = if has_prefix { "bert." } else { "" };
    let heads = Heads::new(c.num_heads, c.num_heads, embed / c.num_heads);
    let tables = format!("{prefix}embeddings");
    let token = Piece::of(format!("{tables}.word_embeddings.weight"), &[c.vocab_size, embed]);
    let shares_head = task == Task::MaskedLm && c.tied;
    rows.add_shared(
        "embedding.token",
        token,
        if shares_head { &["cls.predictions.decoder.weight"] } else { &[] },
    );
    for (name, tensor, size) in [
        ("position", "position_embeddings", c.max_positions),
        ("segment", "token_type_embeddings", c.num_segments),
    ] {
        rows.add(format!("embedding.{name}"), Piece::of(format!("{tables}.{tensor}.weight"), &[size, embed]));
    }
    rows.norm("embedding.norm", &format!("{tables}.LayerNorm"), embed, true);
    for layer in 0..c.num_layers {
        let (ours, theirs) = (format!("layers.{layer}"), format!("{prefix}encoder.layer.{layer}"));
        let attention = format!("{ours}.attention");
        let stored = format!("{theirs}.attention");
        rows.linear(
            &format!("{attention}.query"),
            &format!("{stored}.self.query"),
            &[embed],
            &heads.query,
            true,
        );
        rows.linear(&format!("{attention}.key"), &format!("{stored}.self.key"), &[embed], &heads.key, true);
        rows.linear(
            &format!("{attention}.value"),
            &format!("{stored}.self.value"),
            &[embed],
            &heads.key,
            true,
        );
        rows.linear(
            &format!("{attention}.output"),
            &format!("{stored}.output.dense"),
            &heads.query,
            &[embed],
            true,
        );
        rows.norm(&format!("{attention}.norm"), &format!("{stored}.output.LayerNorm"), embed, true);
        rows.linear(
            &format!("{ours}.mlp.up"),
            &format!("{theirs}.intermediate.dense"),
            &[embed],
            &[c.mlp],
            true,
        );
        rows.linear(&format!("{ours}.mlp.down"), &format!("{theirs}.output.dense"), &[c.mlp], &[embed], true);
        rows.norm(&format!("{ours}.mlp.norm"), &format!("{theirs}.output.LayerNorm"), embed, true);
    }
    match task {
        Task::MaskedLm => masked_lm(c, &mut rows),
        Task::Classify => {
            head(&mut rows, "head.pooler", "bert.pooler.dense", embed, embed);
            head(&mut rows, "head.classifier", "classifier", embed, c.labels.names.len());
        }
        Task::Tag => head(&mut rows, "head.classifier", "classifier", embed, c.labels.names.len()),
        _ => {}
    }
    Table {
        model_type: "bert",
        parameters: rows.finish(),
        prefix: "bert.",
        has_prefix,
        ignored: &["embeddings.position_ids", "embeddings.token_type_ids", "cls.predictions.decoder.bias"],
    }
}

fn masked_lm(c: &Bert, rows: &mut Rows) {
    let embed = c.embed;
    head(rows, "head.transform", "cls.predictions.transform.dense", embed, embed);
    rows.add_head("head.norm.gain", Piece::of("cls.predictions.transform.LayerNorm.weight", &[embed]));
    rows.add_head("head.norm.bias", Piece::of("cls.predictions.transform.LayerNorm.bias", &[embed]));
    let bias = |name: &str| Piece::of(name, &[c.vocab_size]);
    if c.tied {
        rows.add_head("head.bias", bias("cls.predictions.bias"));
    } else {
        // the bias of the decoder is the one that is added, and untied it is a tensor of its own
        rows.add_head("head.weight", Piece::of("cls.predictions.decoder.weight", &[c.vocab_size, embed]));
        rows.add_head("head.bias", bias("cls.predictions.decoder.bias"));
    }
}

fn head(rows: &mut Rows, name: &str, tensor: &str, input: usize, output: usize) {
    let (weight, bias) = linear(tensor, &[input], &[output]);
    rows.add_head(&format!("{name}.weight"), weight);
    rows.add_head(&format!("{name}.bias"), bias);
}
