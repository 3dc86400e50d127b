//! Tests of whole saves and loads, by theme; this file has what they share: a small model's tensors and layouts.

mod damage;
mod kill;
mod layouts;

use std::fs;
use std::path::Path;

use mesh::{Axis, AxisSet, DimDigits, Mesh, Tile, TileDim};
use serde_json::json;

use super::*;

/// A tensor of the reference model: name, shape, elements.
struct Tensor {
    name: &'static str,
    dtype: DType,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

/// Odd sizes, a scalar, three types, NaNs with payloads, negative zeros; `salt` changes every element.
fn tensors(salt: u32) -> Vec<Tensor> {
    let shapes: [(&'static str, DType, &[usize]); 5] = [
        ("param:embedding", DType::F32, &[13, 6]),
        ("param:../../x/query", DType::F64, &[7, 3, 5]),
        ("adam_m:embedding", DType::F32, &[13, 6]),
        ("param:bias", DType::F64, &[11]),
        ("counter", DType::I32, &[]),
    ];
    shapes
        .into_iter()
        .enumerate()
        .map(|(t, (name, dtype, shape))| {
            let n: usize = shape.iter().product();
            let bits = |i: usize| ((i as u32) << 8 | (t as u32) << 4).wrapping_mul(2_654_435_761) ^ salt;
            let bytes = match dtype {
                DType::F64 => (0..n)
                    .flat_map(|i| match i % 5 {
                        0 => (0x7ff4_0000_0000_0000u64 | u64::from(bits(i))).to_le_bytes(), // signalling NaN
                        1 => (-0.0f64).to_le_bytes(),
                        _ => (u64::from(bits(i)) << 32 | u64::from(bits(i + 1))).to_le_bytes(),
                    })
                    .collect(),
                _ => (0..n)
                    .flat_map(|i| match i % 5 {
                        0 => (0x7fa0_0001u32 | bits(i) & 0xffff).to_le_bytes(), // signalling NaN
                        _ => bits(i).to_le_bytes(),
                    })
                    .collect(),
            };
            Tensor { name, dtype, shape: shape.to_vec(), bytes }
        })
        .collect()
}

/// How tensors are cut: the order of digits of each dim by position, and the axis that cuts flat (ZeRO).
#[derive(Debug, Clone)]
struct Layout {
    mesh: Mesh,
    orders: Vec<Vec<Option<Axis>>>,
    fixed: AxisSet,
    zero: Option<Axis>,
}

impl Layout {
    fn one() -> Layout {
        let mesh = Mesh::new(&[]).unwrap();
        Layout { mesh, orders: vec![vec![None]; 3], fixed: AxisSet::EMPTY, zero: None }
    }

    /// Each layout that tests save in and load in.
    fn all() -> Vec<Layout> {
        let (tp, cp, dp) = (Some(Axis::Tp), Some(Axis::Cp), Some(Axis::Dp));
        let layout = |sizes: &[(Axis, usize)], orders: [&[Option<Axis>]; 3], zero| Layout {
            mesh: Mesh::new(sizes).unwrap(),
            fixed: orders.iter().flat_map(|o| o.iter()).flatten().copied().collect(),
            orders: orders.iter().map(|o| o.to_vec()).collect(),
            zero,
        };
        vec![
            Layout::one(),
            layout(&[(Axis::Tp, 2)], [&[tp, None], &[None], &[None]], None),
            layout(&[(Axis::Tp, 3)], [&[None], &[None, tp], &[None]], None),
            layout(&[(Axis::Tp, 2), (Axis::Cp, 2)], [&[cp, None], &[tp, None], &[None]], None),
            layout(&[(Axis::Tp, 2), (Axis::Cp, 2)], [&[tp, None, cp], &[None], &[None]], None),
            layout(&[(Axis::Dp, 3)], [&[None], &[None], &[None]], dp),
            layout(&[(Axis::Dp, 2), (Axis::Tp, 2)], [&[None, tp], &[None], &[None]], dp),
            layout(&[(Axis::Dp, 4), (Axis::Tp, 2)], [&[None], &[None], &[tp, None]], dp),
        ]
    }

    /// What `rank` holds of a tensor, and whether it is the one to write it.
    fn tile(&self, rank: usize, shape: &[usize]) -> (Tile, bool) {
        let coord = self.mesh.coord(rank);
        let mut used = AxisSet::EMPTY;
        let mut dims: Vec<TileDim> = Vec::new();
        for (n, order) in shape.iter().zip(&self.orders) {
            let digits = DimDigits::new(*n, order, &self.mesh);
            used = self.fixed.iter().filter(|a| digits.has(*a)).fold(used, AxisSet::with);
            dims.push(digits.tile(self.fixed, &coord));
        }
        let n: usize = dims.iter().map(TileDim::extent).product();
        let flat = self.zero.map(|axis| {
            used = used.with(axis);
            let len = n.div_ceil(self.mesh.size(axis));
            (coord.get(axis) * len, len)
        });
        let owner = Axis::SPACE.iter().all(|a| used.contains(*a) || coord.get(*a) == 0);
        (Tile { dims, flat }, owner)
    }
}

/// The buffer of `tile`, padding filled with a value that must never come back.
fn cut(tensor: &Tensor, tile: &Tile) -> Vec<u8> {
    let size = tensor.dtype.size_bytes();
    let mut out = vec![0xee; tile.local_len() * size];
    tile.for_each_run(|run| {
        out[run.local * size..(run.local + run.len) * size]
            .copy_from_slice(&tensor.bytes[run.global * size..(run.global + run.len) * size]);
    });
    out
}

fn manifest(step: u64) -> Manifest {
    let mut manifest = Manifest::new(json!({ "family": "llama", "num_layers": 2, "embed": 6 }), step);
    manifest.data_position = u64::MAX - step;
    manifest.seed = 1 << 60;
    manifest.tokenizer_hash = Some("abc".into());
    manifest.extra.insert("loss_scale".into(), "65536".into());
    manifest
}

/// A save by all ranks of a layout, one after another.
fn save_in(
    layout: &Layout,
    checkpoints: &Path,
    step: u64,
    keep: usize,
) -> Result<Committed, CheckpointError> {
    let partial = begin(checkpoints, step)?;
    let tensors = tensors(step as u32);
    for rank in 0..layout.mesh.world_size() {
        let tiles: Vec<(Tile, bool)> = tensors.iter().map(|t| layout.tile(rank, &t.shape)).collect();
        let data: Vec<Vec<u8>> = tensors.iter().zip(&tiles).map(|(t, (tile, _))| cut(t, tile)).collect();
        let mut local = Vec::new();
        for ((tensor, (tile, owner)), data) in tensors.iter().zip(tiles).zip(&data) {
            if owner {
                local.push(LocalTensor { name: tensor.name, tile, data, dtype: tensor.dtype });
            }
        }
        write_shard(&partial, rank, &local)?;
    }
    commit(checkpoints, layout.mesh.world_size(), manifest(step), keep)
}

/// Whether a checkpoint holds exactly the tensors that `save_in` wrote at its step.
fn assert_whole(checkpoint: &Checkpoint) {
    for tensor in tensors(checkpoint.manifest().step as u32) {
        assert_eq!(checkpoint.read_whole(tensor.name).unwrap(), tensor.bytes, "{}", tensor.name);
    }
}

fn names_in(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}
