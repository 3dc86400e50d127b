//! Batches without data, for parity: random tokens and numbers, and masks that leave every sequence another number of
//! tokens, keys and targets.

use mesh::Tile;
use runtime::{Batch, Destination, RuntimeError};

use crate::assemble::Built;

/// Tokens and masks by (seed, step, global position), so that no layout sees another batch.
#[derive(Debug, Clone)]
pub struct Synthetic {
    /// Seed of the batch.
    pub seed: u64,
    /// Number of the step.
    pub step: u64,
    /// Token ids below this.
    pub vocab_size: usize,
    /// Targets below this.
    pub num_classes: usize,
    /// Whether rows are texts of pairs.
    pub is_of_pairs: bool,
}

impl Synthetic {
    /// The batch of a step for a model.
    pub fn of(built: &Built, seed: u64, step: u64) -> Synthetic {
        let Built { vocab_size, num_classes, is_of_pairs, .. } = *built;
        Synthetic { seed, step, vocab_size, num_classes, is_of_pairs }
    }

    fn draw(&self, row: usize, column: usize, stream: u64) -> u64 {
        // SplitMix64's mixing of a counter (Steele et al., 2014).
        let counter = (row as u64) << 40 ^ (column as u64) << 8 ^ stream ^ self.step << 56;
        let mut z = counter.wrapping_add(self.seed).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn token(&self, row: usize, column: usize, limit: usize) -> i32 {
        (self.draw(row, column, 1) % limit as u64) as i32
    }

    /// Keys end at a random place of each sequence.
    fn key(&self, row: usize, column: usize, length: usize) -> i32 {
        let end = 1 + self.draw(row, 0, 5) as usize % length;
        if column < end { column as i32 } else { -1 }
    }

    fn integer(&self, input: &str, row: usize, column: usize, length: usize) -> i32 {
        match input {
            "tokens" | "target_tokens" => self.token(row, column, self.vocab_size),
            "targets" => self.token(row, column + 1, self.num_classes),
            "segments" => (self.draw(row, column, 6) % 2) as i32,
            "key_index" => self.key(row, column, length),
            _ => column as i32,
        }
    }

    fn real(&self, input: &str, row: usize, column: usize, place: usize, length: usize) -> f64 {
        match input {
            // Of a pair's row, all that is seen.
            "select" if self.is_of_pairs => f64::from(u8::from(self.key(row, column, length) >= 0)),
            "candidates" => (self.draw(row, column, 8) % 64) as f64 / 64.0,
            "partner" => f64::from(u8::from(column == row ^ 1)),
            "select" | "is_class" => f64::from(u8::from(column == 0)),
            "is_patch" => f64::from(u8::from(column > 0)),
            "patches" if column == 0 => 0.0,
            "patches" => (self.draw(row, column << 16 | place, 7) % 128) as f64 / 64.0 - 1.0,
            _ => self.weight(row, column, length),
        }
    }

    /// Zero after a random end of each sequence, and here and there before it; fractions elsewhere.
    fn weight(&self, row: usize, column: usize, length: usize) -> f64 {
        let end = 1 + self.draw(row, 0, 2) as usize % length;
        let kept = column < end && !self.draw(row, column, 3).is_multiple_of(7);
        if kept { 0.5 + (self.draw(row, column, 4) % 64) as f64 / 64.0 } else { 0.0 }
    }
}

impl Batch for Synthetic {
    fn load(&mut self, input: &str, tile: &Tile, to: Destination<'_>) -> Result<(), RuntimeError> {
        let length = tile.dims.get(1).map_or(1, |columns| columns.size);
        let real = |[row, column, place]: [usize; 3]| self.real(input, row, column, place, length);
        let none = if input == "key_index" { -1 } else { 0 };
        match to {
            Destination::I32(to) => {
                fill(tile, to, none, |[row, column, _]| self.integer(input, row, column, length));
            }
            Destination::F32(to) => fill(tile, to, 0.0, |at| real(at) as f32),
            Destination::F64(to) => fill(tile, to, 0.0, real),
            Destination::BF16(to) => fill(tile, to, half::bf16::ZERO, |at| half::bf16::from_f64(real(at))),
            Destination::F16(to) => fill(tile, to, half::f16::ZERO, |at| half::f16::from_f64(real(at))),
        }
        Ok(())
    }
}

/// Fills what a tile has of a tensor of up to three dims with a function of the global index.
fn fill<T: Copy>(tile: &Tile, to: &mut [T], padding: T, value: impl Fn([usize; 3]) -> T) {
    to.fill(padding);
    let size = |dim: usize| tile.dims.get(dim).map_or(1, |dim| dim.size);
    let (columns, places) = (size(1), size(2));
    tile.for_each_run(|run| {
        for (i, to) in to[run.local..run.local + run.len].iter_mut().enumerate() {
            let at = run.global + i;
            *to = value([at / (columns * places), at / places % columns, at % places]);
        }
    });
}
