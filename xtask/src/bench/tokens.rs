//! The tokens that both programs train on: drawn by a counter, in the forms that each reads, in the same order.

use std::fmt::Write;
use std::path::Path;

use super::model::Model;
use super::write;
use crate::Failure;

/// Seed of the training order.
pub const SEED: u64 = 1;
/// Sequences of the corpus, in batches of one rank.
const BATCHES: usize = 64;

/// Writes the corpus into `dir`: `tokens.txt` with `tokenizer.json`, in which a word is a token's number; and
/// `tokens.bin`, little-endian 32-bit numbers, a row of `sequence + 1` for each sequence in the order of training.
pub fn write_corpus(model: &Model, dir: &Path) -> Result<(), Failure> {
    let num_samples = BATCHES * model.batch;
    let num_tokens = num_samples * model.sequence + 1;
    let tokens: Vec<u32> = (0..num_tokens as u64).map(|at| token(at, model.vocab)).collect();

    let mut text = String::new();
    for line in tokens.chunks(model.sequence) {
        let words: Vec<String> = line.iter().map(u32::to_string).collect();
        text.push_str(&words.join(" "));
        text.push('\n');
    }
    write(&dir.join("tokens.txt"), text.as_bytes())?;

    let mut tokenizer = String::from(
        "{\"version\":\"1.0\",\"truncation\":null,\"padding\":null,\"added_tokens\":[],\"normalizer\":null,\
         \"pre_tokenizer\":{\"type\":\"WhitespaceSplit\"},\"post_processor\":null,\"decoder\":null,\
         \"model\":{\"type\":\"WordLevel\",\"unk_token\":\"0\",\"vocab\":{\"0\":0",
    );
    for id in 1..model.vocab {
        write!(tokenizer, ",\"{id}\":{id}").expect("a string takes all");
    }
    tokenizer.push_str("}}}\n");
    write(&dir.join("tokenizer.json"), tokenizer.as_bytes())?;

    let rows = (0..num_samples as u64).map(|position| sample(position, num_samples as u64) * model.sequence);
    let in_order = rows.flat_map(|begin| &tokens[begin..=begin + model.sequence]);
    let bytes: Vec<u8> = in_order.flat_map(|token| token.to_le_bytes()).collect();
    write(&dir.join("tokens.bin"), &bytes)
}

/// The token at a position of the corpus: small numbers are likely, so that there is something to learn at once.
fn token(at: u64, vocab: usize) -> u32 {
    let uniform = (mix(at.wrapping_mul(0x9e37_79b9_7f4a_7c15)) >> 11) as f64 / (1u64 << 53) as f64;
    (uniform.powi(3) * vocab as f64) as u32
}

/// The sequence that stands at a position of Phalanx's training order of the first epoch: `Sampler` of `phalanx-data`,
/// whose order is fixed because checkpoints store positions in it. Written again because the tasks build on nothing.
fn sample(position: u64, num_samples: u64) -> usize {
    let key = mix(SEED ^ mix(0x9e37_79b9_7f4a_7c15));
    let bits = (u64::BITS - (num_samples - 1).leading_zeros()).max(2);
    let half_bits = bits.div_ceil(2);
    let mask = (1u64 << half_bits) - 1;
    let mut value = position;
    loop {
        let (mut left, mut right) = (value >> half_bits, value & mask);
        for round in 0..8u64 {
            let scrambled = mix(key ^ mix(right.wrapping_add(round << 56)));
            (left, right) = (right, left ^ (scrambled & mask));
        }
        value = left << half_bits | right;
        if value < num_samples {
            return value as usize;
        }
    }
}

/// SplitMix64's finalizer.
fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_is_that_of_training() {
        // The golden order in phalanx-data's sampler.
        let order: Vec<usize> = (0..10).map(|position| sample(position, 10)).collect();
        assert_eq!(order, [1, 0, 9, 2, 7, 3, 8, 4, 5, 6]);
    }

    #[test]
    fn tokens_stay_within_the_vocabulary_and_are_uneven() {
        let tokens: Vec<u32> = (0..10_000).map(|at| token(at, 512)).collect();
        assert!(tokens.iter().all(|&token| token < 512));
        let small = tokens.iter().filter(|&&token| token < 64).count();
        assert!((4_500..5_500).contains(&small), "{small}: half of u^3 is below 1/8");
    }
}
