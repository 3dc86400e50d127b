//! First values of states: drawn by (seed, name, global element index), so they do not depend on the layout.

use graph::Init;
use kernels::{Float, Key};
use mesh::Tile;

/// Fills the part of a state that `tile` covers; padding is zero.
pub(crate) fn fill<T: Float>(init: Init, seed: u64, name: &str, tile: &Tile, out: &mut [T]) {
    out.fill(T::ZERO);
    let key = Key::new(seed, 0, name);
    tile.for_each_run(|run| {
        for (i, x) in out[run.local..run.local + run.len].iter_mut().enumerate() {
            *x = match init {
                Init::Zeros => T::ZERO,
                Init::Ones => T::ONE,
                Init::Normal { std } => T::from_f64(std * key.normal((run.global + i) as u64)),
            };
        }
    });
}
