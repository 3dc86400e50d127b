//! The tables name exactly the parameters that the models' graphs declare, with the same shapes.

use std::collections::BTreeMap;

use graph::StateKind;
use hub::{Directory, Family};
use models::Decoder;

use crate::place::fixture;

fn of_graph(decoder: &Decoder) -> BTreeMap<String, Vec<usize>> {
    let step = models::Step { batch: 1, sequence_length: 4 };
    let graph = models::evaluate_step(decoder, step, models::Precision::Uniform);
    graph
        .states()
        .filter(|(_, state)| state.kind == StateKind::Parameter)
        .map(|(value, state)| (state.name.clone(), graph.shape(value)))
        .collect()
}

fn of_table(directory: &Directory) -> BTreeMap<String, Vec<usize>> {
    directory.table().parameters().iter().map(|p| (p.name.clone(), p.piece.shape())).collect()
}

#[test]
fn decoders() {
    for name in ["gpt2", "llama", "llama-untied"] {
        let directory = Directory::open(&fixture(name), None).unwrap();
        let decoder = match &directory.config().family {
            Family::Gpt2(c) => Decoder {
                family: models::Family::Gpt2,
                num_layers: c.num_layers,
                embed: c.embed,
                num_heads: c.num_heads,
                num_kv_heads: c.num_heads,
                head_dim: c.embed / c.num_heads,
                mlp: c.mlp,
                vocab_size: c.vocab_size,
                max_positions: c.max_positions,
                tied: c.tied,
                dropout: 0.0,
                rope_theta: 0.0,
                norm_eps: c.norm_eps,
            },
            Family::Llama(c) => Decoder {
                family: models::Family::Llama,
                num_layers: c.num_layers,
                embed: c.embed,
                num_heads: c.num_heads,
                num_kv_heads: c.num_kv_heads,
                head_dim: c.head_dim,
                mlp: c.mlp,
                vocab_size: c.vocab_size,
                max_positions: c.max_positions,
                tied: c.tied,
                dropout: 0.0,
                rope_theta: c.rope.theta,
                norm_eps: c.norm_eps,
            },
            other => panic!("{} is no decoder", other.model_type()),
        };
        assert_eq!(of_table(&directory), of_graph(&decoder), "{name}");
    }
}
