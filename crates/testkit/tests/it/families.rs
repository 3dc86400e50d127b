//! Every family's gradients on one rank against central differences of its loss, with padding and unequal weights: the
//! operations that decoders do not have. Parity cannot see an error that every layout shares.

use std::sync::Arc;
use std::time::Duration;

use memory::DType;
use mesh::Tile;
use models::{
    Activation, Bert, BertHead, Decoder, Dropout, Encoder, Family, FeedForward, Given, Model, PairLoss,
    Precision, Rotation, Step, T5, Variant, Vit, Widths, gradients_step,
};
use plan::{Chooser, Parallel, Plan};
use runtime::{Batch, Destination, Executor, RuntimeError, StepInput};
use train::{TrainError, ranks};

const STEP: f64 = 1e-5;
const SEQ: usize = 5;
/// Smallest vocabulary, number of labels, segments and positions of the models below.
const LEAST: u64 = 2;

/// Numbers by the name and the global place of an element.
struct Drawn;

fn draw(name: &str, at: usize) -> u64 {
    let start = name.bytes().fold(1u64, |h, b| h.wrapping_mul(31).wrapping_add(u64::from(b)));
    // SplitMix64's mixing (Steele et al., 2014).
    let mut z = start.wrapping_add(at as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl Batch for Drawn {
    fn load(&mut self, input: &str, tile: &Tile, to: Destination<'_>) -> Result<(), RuntimeError> {
        let real = |at: usize| 0.2 + (draw(input, at) % 97) as f64 / 97.0;
        let integer = |at: usize| match input {
            // the first sequence is padded in front, the others at other places
            "key_index" if at < 2 || draw(input, at).is_multiple_of(4) => -1,
            "key_index" => (at % SEQ) as i32,
            "positions" => (at % SEQ) as i32,
            _ => (draw(input, at) % LEAST) as i32,
        };
        match to {
            Destination::I32(to) => tile.for_each_run(|run| {
                (0..run.len).for_each(|i| to[run.local + i] = integer(run.global + i));
            }),
            Destination::F64(to) => tile.for_each_run(|run| {
                (0..run.len).for_each(|i| to[run.local + i] = real(run.global + i));
            }),
            _ => return Err(RuntimeError::Batch(format!("`{input}` is not wanted in f64"))),
        }
        Ok(())
    }
}

fn check(name: &str, model: &dyn Model, key_index: bool) -> Result<(), TrainError> {
    let given = Given { key_index, labels: true };
    let step = Step { target_length: 4, ..Step::new(3, SEQ) };
    let graph = gradients_step(model, step, &given, Precision::Uniform)?;
    let plan = Plan::new(&graph, &Parallel::default(), DType::F64)?;
    let program = plan::lower(&graph, &plan, 0, &Chooser::Policy, true)?;
    ranks::run(1, Duration::from_secs(60), |world| {
        let programs = vec![(Arc::new(plan.clone()), Arc::new(program.clone()))];
        let mut executor = Executor::new(world, programs, kernels::Cpu::single(), None)?;
        // Larger than first weights are, so that attention is far from uniform and biases matter.
        let start = |name: &str, i: usize| {
            let drawn = (draw(name, i) % 1000) as f64 / 500.0 - 1.0;
            if name.ends_with("gain") { 1.0 + 0.3 * drawn } else { 0.5 * drawn }
        };
        let loss_with = |executor: &mut Executor, change: Option<(&str, usize, f64)>| {
            executor.fill_states(|name, _, _, bytes| {
                for (i, to) in bytes.as_chunks_mut::<8>().0.iter_mut().enumerate() {
                    let delta = change.filter(|(changed, at, _)| *changed == name && *at == i);
                    *to = (start(name, i) + delta.map_or(0.0, |(_, _, delta)| delta)).to_le_bytes();
                }
                Ok::<(), TrainError>(())
            })?;
            executor.run(0, &mut Drawn, &StepInput { seed: 1, step: 1, scalars: &[] })?;
            let mut statistics = [0.0];
            executor.read_output(0, "statistics", &mut statistics)?;
            Ok::<f64, TrainError>(statistics[0])
        };
        loss_with(&mut executor, None)?;
        let names: Vec<String> = graph
            .outputs()
            .iter()
            .filter_map(|(n, _)| n.strip_prefix("gradient:").map(str::to_owned))
            .collect();
        let gradients: Vec<Vec<f64>> = names
            .iter()
            .map(|n| Ok(executor.output(0, &format!("gradient:{n}"))?.1))
            .collect::<Result<_, TrainError>>()?;
        let largest = |g: &[f64]| g.iter().fold(0.0f64, |m, g| m.max(g.abs()));
        let floor = 1e-3 * gradients.iter().map(|g| largest(g)).fold(0.0, f64::max);
        for (parameter, gradient) in names.iter().zip(&gradients) {
            for element in (0..gradient.len()).step_by((gradient.len() / 5).max(1)) {
                let mut moved = |delta| loss_with(&mut executor, Some((parameter, element, delta)));
                let difference = (moved(STEP)? - moved(-STEP)?) / (2.0 * STEP);
                let error = (difference - gradient[element]).abs() / largest(gradient).max(floor);
                assert!(
                    error < 1e-6,
                    "{name}: {parameter}[{element}]: {difference} but gradient {}: {error:e}",
                    gradient[element]
                );
            }
        }
        assert!(names.len() > 10 && gradients.iter().filter(|g| largest(g) > floor).count() > 8, "{name}");
        Ok(())
    })?;
    Ok(())
}

const WIDTHS: Widths = Widths { embed: 6, num_heads: 2, head_dim: 3, mlp: 7 };

fn encoder(activation: Activation) -> Encoder {
    Encoder {
        num_layers: 2,
        widths: WIDTHS,
        activation,
        norm_eps: 1e-5,
        qkv_bias: true,
        dropout: Dropout::NONE,
    }
}

#[test]
fn encoders() {
    let heads = [
        BertHead::MaskedLm { tied: true },
        BertHead::MaskedLm { tied: false },
        BertHead::Classify { labels: 3 },
        BertHead::Tag { labels: 4 },
        BertHead::Embed { loss: PairLoss::Ranking { scale: 3.0 } },
        BertHead::Embed { loss: PairLoss::Cosine },
    ];
    for (head, activation) in heads.into_iter().zip([
        Activation::GeluErf,
        Activation::GeluTanh,
        Activation::GeluErf,
        Activation::Tanh,
        Activation::GeluErf,
        Activation::GeluTanh,
    ]) {
        let bert = Bert {
            encoder: encoder(activation),
            vocab_size: 9,
            max_positions: SEQ,
            num_segments: 2,
            padding: None,
            head,
        };
        for key_index in [true, false] {
            check("bert", &bert, key_index).unwrap_or_else(|e| panic!("{head:?}: {e}"));
        }
    }
    let vit = Vit { encoder: encoder(Activation::GeluErf), num_patches: SEQ - 1, patch: 4, labels: 3 };
    check("vit", &vit, false).unwrap_or_else(|e| panic!("{e}"));
}

#[test]
fn encoder_decoders() {
    for (tied, feed_forward) in [
        (true, FeedForward::Plain(Activation::GeluTanh)),
        (false, FeedForward::Gated(Activation::GeluErf)),
        (true, FeedForward::Gated(Activation::Silu)),
    ] {
        let t5 = T5 {
            num_layers: 2,
            num_decoder_layers: 1,
            widths: Widths { head_dim: 4, ..WIDTHS },
            vocab_size: 9,
            feed_forward,
            num_buckets: 8,
            max_distance: 5,
            norm_eps: 1e-5,
            scale_output: tied,
            tied,
            dropout: Dropout::NONE,
        };
        for key_index in [true, false] {
            check("t5", &t5, key_index).unwrap_or_else(|e| panic!("{feed_forward:?}: {e}"));
        }
    }
}

#[test]
fn variants_of_decoders() {
    let rotation = Rotation { frequencies: [0.9, 0.3].into(), factor: 1.2 };
    let llama =
        Variant { attention_bias: true, mlp_bias: true, rotation: Some(rotation), ..Variant::default() };
    let gpt2 = Variant {
        activation: Activation::GeluErf,
        scale_by_layer: true,
        unscaled_attention: true,
        ..Variant::default()
    };
    for (family, num_kv_heads, variant) in [(Family::Llama, 1, llama), (Family::Gpt2, 2, gpt2)] {
        let decoder = Decoder {
            family,
            num_layers: 2,
            embed: 6,
            num_heads: 2,
            num_kv_heads,
            head_dim: 4,
            mlp: 7,
            vocab_size: 9,
            max_positions: SEQ,
            tied: true,
            dropout: Dropout::NONE,
            rope_theta: 100.0,
            norm_eps: 1e-5,
            variant,
        };
        check("decoder", &decoder, true).unwrap_or_else(|e| panic!("{family:?}: {e}"));
    }
}
