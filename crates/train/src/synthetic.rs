//! Batches without data, for parity: random tokens, and masks that leave every sequence another number of tokens.

use mesh::{Tile, TileDim};
use runtime::{Batch, Destination, RuntimeError};

/// Tokens and masks by (seed, step, global position), so that no layout sees another batch.
#[derive(Debug, Clone)]
pub struct Synthetic {
    /// Seed of the batch.
    pub seed: u64,
    /// Number of the step.
    pub step: u64,
    /// Token ids below this.
    pub vocab_size: usize,
}

impl Synthetic {
    fn draw(&self, row: usize, column: usize, stream: u64) -> u64 {
        // SplitMix64's mixing of a counter (Steele et al., 2014).
        let counter = (row as u64) << 40 ^ (column as u64) << 8 ^ stream ^ self.step << 56;
        let mut z = counter.wrapping_add(self.seed).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn token(&self, row: usize, column: usize) -> i32 {
        (self.draw(row, column, 1) % self.vocab_size as u64) as i32
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
        let [rows, columns] = &tile.dims[..] else {
            return Err(RuntimeError::Batch(format!("`{input}` is not [batch, seq]")));
        };
        match to {
            Destination::I32(to) => fill(rows, columns, to, 0, |row, column| match input {
                "tokens" => self.token(row, column),
                "targets" => self.token(row, column + 1),
                _ => column as i32,
            }),
            Destination::F32(to) => {
                fill(rows, columns, to, 0.0, |r, c| self.weight(r, c, columns.size) as f32)
            }
            Destination::F64(to) => fill(rows, columns, to, 0.0, |r, c| self.weight(r, c, columns.size)),
            Destination::BF16(_) | Destination::F16(_) => {
                return Err(RuntimeError::Batch(format!("`{input}` is no input of a text")));
            }
        }
        Ok(())
    }
}

fn fill<T: Copy>(
    rows: &TileDim,
    columns: &TileDim,
    to: &mut [T],
    padding: T,
    value: impl Fn(usize, usize) -> T,
) {
    let width = columns.extent();
    for (i, row) in rows.indices().enumerate() {
        for (j, column) in columns.indices().enumerate() {
            let real = row < rows.size && column < columns.size;
            to[i * width + j] = if real { value(row, column) } else { padding };
        }
    }
}
