//! First values of states: drawn by (seed, name, global element index), so they do not depend on the layout.

use graph::Init;
use kernels::{Cpu, Float, Key, normal_fill};
use mesh::Tile;

/// Fills the part of a state that `tile` covers; padding is zero.
pub(crate) fn fill<T: Float>(cpu: &Cpu, init: Init, seed: u64, name: &str, tile: &Tile, out: &mut [T]) {
    if tile.real_len() < out.len() {
        out.fill(T::ZERO);
    }
    let key = Key::new(seed, 0, name);
    tile.for_each_run(|run| {
        let out = &mut out[run.local..run.local + run.len];
        match init {
            Init::Zeros => out.fill(T::ZERO),
            Init::Ones => out.fill(T::ONE),
            Init::Normal { std } => normal_fill(cpu, &key, run.global as u64, std, out),
        }
    });
}
