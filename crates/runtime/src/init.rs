//! First values of states: drawn by (seed, name, global element index), so they do not depend on the layout.

use graph::Init;
use kernels::{Cpu, Float, Key, normal_fill};
use mesh::{Run, Tile};

/// Fills the part of a state that `tile` covers; padding is zero.
pub(crate) fn fill<T: Float>(cpu: &Cpu, init: Init, seed: u64, name: &str, tile: &Tile, out: &mut [T]) {
    if tile.real_len() < out.len() {
        out.fill(T::ZERO);
    }
    let key = Key::new(seed, 0, name);
    let mut draw = |run: Run| {
        let out = &mut out[run.local..run.local + run.len];
        match init {
            Init::Zeros => out.fill(T::ZERO),
            Init::Ones => out.fill(T::ONE),
            Init::Normal { std } => normal_fill(cpu, &key, run.global as u64, std, out),
        }
    };
    // Runs end with their row. Those that follow on each other are drawn at once: long ones pay for all threads.
    let mut pending: Option<Run> = None;
    tile.for_each_run(|run| match &mut pending {
        Some(first) if first.local + first.len == run.local && first.global + first.len == run.global => {
            first.len += run.len;
        }
        _ => {
            if let Some(run) = pending.replace(run) {
                draw(run);
            }
        }
    });
    if let Some(run) = pending {
        draw(run);
    }
}
