//! What one layout writes, every other reads, bit for bit.

use super::*;

#[test]
fn checkpoint_of_any_layout_loads_in_any_other() {
    for from in Layout::all() {
        let dir = tempfile::tempdir().unwrap();
        let done = save_in(&from, dir.path(), 10, 2).unwrap();
        assert!(done.not_removed.is_empty());
        let checkpoint = Checkpoint::open_verified(dir.path()).unwrap();
        let stored = checkpoint.manifest();
        assert_eq!((stored.step, stored.data_position, stored.seed), (10, u64::MAX - 10, 1 << 60));
        assert_eq!(stored.extra["loss_scale"], "65536");
        assert_whole(&checkpoint);
        for to in Layout::all() {
            for rank in 0..to.mesh.world_size() {
                for tensor in tensors(10) {
                    let (tile, _) = to.tile(rank, &tensor.shape);
                    let size = tensor.dtype.size_bytes();
                    let mut expected = vec![0; tile.local_len() * size];
                    tile.for_each_run(|run| {
                        expected[run.local * size..(run.local + run.len) * size]
                            .copy_from_slice(&tensor.bytes[run.global * size..(run.global + run.len) * size]);
                    });
                    let mut out = vec![0x55; expected.len()];
                    checkpoint.read(tensor.name, &tile, tensor.dtype, &mut out).unwrap();
                    assert_eq!(out, expected, "{} from {from:?} to {to:?} rank {rank}", tensor.name);
                }
            }
        }
    }
}

#[test]
fn typed_reads_and_wrong_requests() {
    let dir = tempfile::tempdir().unwrap();
    save_in(&Layout::all()[3], dir.path(), 10, 2).unwrap();
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    let mut out = [0.0f64; 11];
    checkpoint.read_into("param:bias", &Tile::whole(&[11]), &mut out).unwrap();
    assert_eq!(bytemuck::cast_slice::<f64, u8>(&out), tensors(10)[3].bytes);
    let mut single = [0.0f32; 11];
    let message = |result: Result<(), CheckpointError>| result.unwrap_err().to_string();
    let wrong_type = message(checkpoint.read_into("param:bias", &Tile::whole(&[11]), &mut single));
    assert!(wrong_type.contains("holds F64 in the checkpoint and F32 is wanted"), "{wrong_type}");
    let wrong_shape = message(checkpoint.read_into("param:bias", &Tile::whole(&[12]), &mut out));
    assert!(wrong_shape.contains("shape [11] in the checkpoint and [12] here"), "{wrong_shape}");
    let wrong_buffer = message(checkpoint.read_into("param:bias", &Tile::whole(&[11]), &mut out[1..]));
    assert!(wrong_buffer.contains("80 bytes, its tile needs 88"), "{wrong_buffer}");
    assert!(
        message(checkpoint.read_into("nope", &Tile::whole(&[11]), &mut out)).contains("no tensor `nope`")
    );
}

#[test]
fn threads_write_and_read_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let layout = &Layout::all()[7];
    let partial = begin(dir.path(), 3).unwrap();
    std::thread::scope(|scope| {
        for rank in 0..8 {
            let partial = &partial;
            scope.spawn(move || {
                let tensors = tensors(3);
                let cuts: Vec<_> = tensors
                    .iter()
                    .map(|t| (t, layout.tile(rank, &t.shape)))
                    .filter(|(_, (_, owner))| *owner)
                    .map(|(t, (tile, _))| (t, cut(t, &tile), tile))
                    .collect();
                let local: Vec<_> = cuts
                    .iter()
                    .map(|(t, data, tile)| LocalTensor {
                        name: t.name,
                        tile: tile.clone(),
                        data,
                        dtype: t.dtype,
                    })
                    .collect();
                write_shard(partial, rank, &local).unwrap();
            });
        }
    });
    commit(dir.path(), 8, manifest(3), 1).unwrap();
    let checkpoint = Checkpoint::open_verified(dir.path()).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| assert_whole(&checkpoint));
        }
    });
}

#[test]
fn one_tensor_in_two_pieces_of_one_rank() {
    let dir = tempfile::tempdir().unwrap();
    let data: Vec<u8> = (0..40).collect();
    let half = |base: usize| Tile { dims: vec![TileDim { size: 10, base, free: vec![(5, 1)] }], flat: None };
    let local = [half(5), half(0)].map(|tile| LocalTensor {
        name: "param:x",
        data: &data[tile.dims[0].base * 4..][..20],
        tile,
        dtype: DType::F32,
    });
    save(dir.path(), manifest(1), &local, 2).unwrap();
    assert_eq!(Checkpoint::open(dir.path()).unwrap().read_whole("param:x").unwrap(), data);
}

#[test]
fn an_empty_tensor_and_a_rank_without_tensors() {
    let dir = tempfile::tempdir().unwrap();
    let empty = LocalTensor { name: "param:none", tile: Tile::whole(&[0, 4]), data: &[], dtype: DType::F32 };
    let partial = begin(dir.path(), 1).unwrap();
    assert_eq!(write_shard(&partial, 0, &[]).unwrap().shard, None);
    write_shard(&partial, 1, &[empty]).unwrap();
    commit(dir.path(), 2, manifest(1), 2).unwrap();
    assert_eq!(Checkpoint::open_verified(dir.path()).unwrap().read_whole("param:none").unwrap(), [0u8; 0]);
}

#[test]
fn what_ranks_write_must_be_one_whole_model() {
    let dir = tempfile::tempdir().unwrap();
    let data = [0u8; 48];
    let tensor = |name, base, n: usize, size, dtype: DType| LocalTensor {
        name,
        tile: Tile { dims: vec![TileDim { size, base, free: vec![(n, 1)] }], flat: None },
        data: &data[..n * dtype.size_bytes()],
        dtype,
    };
    let outcome = |ranks: &[&[LocalTensor]]| {
        let partial = begin(dir.path(), 1).unwrap();
        for (rank, local) in ranks.iter().enumerate() {
            if let Err(e) = write_shard(&partial, rank, local) {
                return e.to_string();
            }
        }
        commit(dir.path(), 2, manifest(1), 2).unwrap_err().to_string()
    };
    let a = || tensor("x", 0, 4, 8, DType::F32);
    for (ranks, expected) in [
        ([vec![a()], vec![a()]], "element 0 of tensor `x` is held by more than one piece (again by piece 1)"),
        (
            [vec![a()], vec![tensor("x", 5, 3, 8, DType::F32)]],
            "element 4 of tensor `x` is in no piece (7 of 8",
        ),
        ([vec![a()], vec![tensor("x", 4, 4, 9, DType::F32)]], "shard 1 says F32[9], an earlier one F32[8]"),
        ([vec![a()], vec![tensor("x", 4, 4, 8, DType::F64)]], "shard 1 says F64[8]"),
        ([vec![tensor("__metadata__", 0, 4, 4, DType::F32)], vec![]], "cannot be the name"),
        ([vec![tensor("x", usize::MAX, 4, 8, DType::F32)], vec![]], "impossible piece"),
    ] {
        let message = outcome(&[&ranks[0], &ranks[1]]);
        assert!(message.contains(expected), "{message}");
        assert!(matches!(Checkpoint::open(dir.path()), Err(CheckpointError::NotFound { partial: 1, .. })));
    }
    let short = LocalTensor { data: &data[..15], ..a() };
    assert!(outcome(&[&[short], &[]]).contains("has 15 bytes, its tile needs 16"));
    assert!(outcome(&[&[a()]]).contains("shard 1 of 2 has no report"));
    let partial = begin(dir.path(), 1).unwrap();
    write_shard(&partial, 0, &[a()]).unwrap();
    assert!(write_shard(&partial, 0, &[a()]).is_err(), "two ranks with one index");
    abandon(dir.path(), 1).unwrap();
    assert_eq!(names_in(dir.path()), [""; 0]);
}
