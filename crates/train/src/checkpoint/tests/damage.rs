//! Checkpoints that are damaged, incomplete, foreign, or lie.

use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use super::*;

/// Two checkpoints, steps 5 and 10; the directory of the second.
fn two(dir: &Path) -> PathBuf {
    save_in(&Layout::all()[3], dir, 5, 2).unwrap();
    save_in(&Layout::all()[6], dir, 10, 2).unwrap().dir
}

/// The message of a damaged newest checkpoint, after checking that it names the way out, and that the way works.
fn damaged(dir: &Path) -> String {
    let error = Checkpoint::open_verified(dir).unwrap_err();
    let CheckpointError::Damaged { fallback: Fallback(Some((5, good))), .. } = &error else {
        panic!("{error}");
    };
    assert_whole(&Checkpoint::open_verified(good).unwrap());
    let message = error.to_string();
    assert!(message.contains(&format!("--resume {}", dir.join("step-00000005").display())), "{message}");
    assert_eq!(newest_good(dir, None).unwrap().unwrap().0, 5);
    message
}

#[test]
fn checkpoint_with_a_flipped_bit_in_any_file_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let step = two(dir.path());
    for name in names_in(&step) {
        let path = step.join(&name);
        let good = fs::read(&path).unwrap();
        let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
        let stride = (good.len() / 200).max(1);
        for at in (0..good.len()).step_by(stride).chain([good.len() - 1]) {
            file.write_all_at(&[good[at] ^ 1 << (at % 8)], at as u64).unwrap();
            let error = Checkpoint::open_verified(dir.path()).unwrap_err().to_string();
            assert!(error.contains(&name), "byte {at} of {name}: {error}");
            file.write_all_at(&[good[at]], at as u64).unwrap();
        }
        file.write_all_at(&[good[20] ^ 4], 20).unwrap();
        let message = damaged(dir.path());
        assert!(message.contains(&name), "{message}");
        fs::write(&path, good).unwrap();
    }
    assert_whole(&Checkpoint::open_verified(dir.path()).unwrap());
}

#[test]
fn checkpoint_truncated_anywhere_is_refused_even_without_hashes() {
    let dir = tempfile::tempdir().unwrap();
    let step = two(dir.path());
    for name in names_in(&step) {
        let path = step.join(&name);
        let good = fs::read(&path).unwrap();
        let stride = if name == "manifest.json" { 97 } else { 1 };
        for len in (0..good.len()).step_by(stride) {
            fs::write(&path, &good[..len]).unwrap();
            let error = Checkpoint::open(dir.path()).unwrap_err().to_string();
            assert!(error.contains(&name), "{len} bytes of {name}: {error}");
        }
        damaged(dir.path());
        let mut longer = good.clone();
        longer.push(b' ');
        fs::write(&path, longer).unwrap();
        assert!(Checkpoint::open(dir.path()).is_err(), "{name}");
        fs::remove_file(&path).unwrap();
        let message = damaged(dir.path());
        assert!(message.contains(&format!("{name} is missing")), "{message}");
        fs::create_dir(&path).unwrap();
        assert!(damaged(dir.path()).contains("not a regular file"));
        fs::remove_dir(&path).unwrap();
        fs::write(&path, good).unwrap();
    }
    assert_whole(&Checkpoint::open_verified(dir.path()).unwrap());
}

#[test]
fn checkpoint_is_found_from_every_level_and_anything_else_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join("run");
    let checkpoints = run.join("checkpoints");
    let newest = two(&checkpoints);
    for path in [&run, &checkpoints, &newest] {
        assert_eq!(Checkpoint::open(path).unwrap().manifest().step, 10);
    }
    assert_eq!(Checkpoint::open(&checkpoints.join("step-00000005")).unwrap().manifest().step, 5);
    // a copy under any name is a checkpoint, under the name of another step it is not
    fs::rename(&newest, dir.path().join("best")).unwrap();
    assert_eq!(Checkpoint::open(&dir.path().join("best")).unwrap().manifest().step, 10);
    fs::rename(dir.path().join("best"), checkpoints.join("step-00000011")).unwrap();
    assert!(damaged(&checkpoints).contains("it is of step 10"));
    let partial = begin(&checkpoints, 12).unwrap();
    assert!(matches!(Checkpoint::open(&partial), Err(CheckpointError::Unfinished { .. })));
    assert!(matches!(Checkpoint::open(dir.path()), Err(CheckpointError::NotFound { .. })));
    assert!(matches!(Checkpoint::open(Path::new("/nonexistent")), Err(CheckpointError::NotFound { .. })));
    fs::write(dir.path().join("file"), "x").unwrap();
    assert!(Checkpoint::open(&dir.path().join("file")).is_err());
}

#[test]
fn checkpoint_of_another_model_names_the_key() {
    let dir = tempfile::tempdir().unwrap();
    two(dir.path());
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    checkpoint.check_model(&json!({ "family": "llama", "num_layers": 2, "embed": 6 })).unwrap();
    let other = json!({ "family": "llama", "num_layers": 3, "embed": 6 });
    let message = checkpoint.check_model(&other).unwrap_err().to_string();
    assert!(message.contains("`num_layers` is 2 in the checkpoint and 3 here"), "{message}");
    checkpoint.check_tokenizer("abc").unwrap();
    assert!(checkpoint.check_tokenizer("abd").unwrap_err().to_string().contains("tokenizer abc, not abd"));
}

/// Seals a changed manifest anew: the lie is in what it says, not in its checksum.
fn lie(step: &Path, change: impl FnOnce(&mut Manifest)) -> String {
    let path = step.join("manifest.json");
    let good = fs::read(&path).unwrap();
    let mut manifest = Manifest::load(&path).unwrap();
    change(&mut manifest);
    fs::write(&path, manifest.seal().unwrap()).unwrap();
    let error = Checkpoint::open(step).unwrap_err().to_string();
    fs::write(&path, good).unwrap();
    assert_whole(&Checkpoint::open_verified(step).unwrap());
    error
}

#[test]
fn checkpoint_whose_manifest_lies_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let step = &two(dir.path());
    fn entry<'a>(m: &'a mut Manifest, name: &str) -> &'a mut TensorEntry {
        m.tensors.get_mut(name).unwrap()
    }
    let embedding = "param:embedding";
    for name in
        ["../../x", "/etc/passwd", "shard-00000.safetensors/../../x", "", "shard-0.safetensors", "a\0b"]
    {
        let error = lie(step, |m| m.shards[0].file = name.into());
        assert!(error.contains("not the name of a shard"), "{error}");
        let error = lie(step, |m| entry(m, embedding).pieces[0].shard = name.into());
        assert!(error.contains("not among its shards"), "{error}");
    }
    assert!(lie(step, |m| m.shards[0].bytes += 1).contains("bytes instead of"));
    assert!(lie(step, |m| m.shards[1] = m.shards[0].clone()).contains("listed twice"));
    assert!(lie(step, |m| m.shards.truncate(1)).contains("not among"));
    assert!(lie(step, |m| drop(entry(m, embedding).pieces.pop())).contains("in no piece"));
    assert!(lie(step, |m| entry(m, embedding).pieces.clear()).contains("in no piece (0 of 78"));
    let twice = lie(step, |m| {
        let pieces = &mut entry(m, embedding).pieces;
        pieces.push(pieces[0].clone());
    });
    assert!(twice.contains("held by more than one piece"), "{twice}");
    assert!(lie(step, |m| entry(m, embedding).shape = vec![6, 13]).contains("impossible piece"));
    assert!(lie(step, |m| entry(m, embedding).dtype = DType::I32).contains("should hold"));
    assert!(lie(step, |m| entry(m, embedding).pieces[0].key = "counter".into()).contains("should hold"));
    assert!(lie(step, |m| entry(m, embedding).pieces[0].key = "../x".into()).contains("found none"));
    for huge in [usize::MAX, 1 << 62, 1 << 40] {
        let error = lie(step, |m| {
            let entry = entry(m, embedding);
            entry.shape = vec![huge, 6];
            entry.pieces.truncate(1);
            entry.pieces[0].tile = Tile::whole(&entry.shape);
        });
        assert!(error.contains("needs more than the"), "{error}");
        lie(step, |m| entry(m, embedding).pieces[0].tile.dims[0].base = huge);
        lie(step, |m| entry(m, embedding).pieces[0].tile.dims[0].free = vec![(huge, huge)]);
        lie(step, |m| entry(m, embedding).pieces[0].tile.dims[0].free = vec![(huge, 0)]);
        lie(step, |m| entry(m, embedding).pieces[0].tile.flat = Some((huge, huge)));
        lie(step, |m| m.shards.iter_mut().for_each(|s| s.bytes = huge as u64));
    }
    let swapped = lie(step, |m| {
        let pieces = &mut entry(m, embedding).pieces;
        let tile = pieces[0].tile.clone();
        pieces[0].tile = Tile::whole(&[13, 6]);
        pieces[0].tile.flat = Some((0, 1));
        pieces[1].tile = tile;
    });
    assert!(swapped.contains("piece"), "{swapped}");
    lie(step, |m| m.tensors.values_mut().for_each(|t| t.shape.clear()));
}

#[test]
fn checkpoint_with_a_shard_header_that_lies_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let step = &save_in(&Layout::one(), dir.path(), 10, 2).unwrap().dir;
    let path = step.join("shard-00000.safetensors");
    let good = fs::read(&path).unwrap();
    let header = u64::from_le_bytes(good[..8].try_into().unwrap()) as usize;
    let text = String::from_utf8(good[8..8 + header].to_vec()).unwrap();
    let with_length = |n: u64| [&n.to_le_bytes(), &good[8..]].concat();
    let with_text = |t: &str| {
        assert_ne!(t, text);
        [&(t.len() as u64).to_le_bytes(), t.as_bytes(), &good[8 + header..]].concat()
    };
    let deep = "[".repeat(100_000);
    for bytes in [
        with_length(u64::MAX),
        with_length(u64::MAX - 7),
        with_length(99_000_000),
        with_length(header as u64 - 1),
        with_length(0),
        with_text(&text.replace("F64", "F8_E4M3")),
        with_text(&text.replace("[11]", "[12]")),
        with_text(&text.replace("[11]", "[4294967296, 4294967296]")),
        with_text(&text.replace("[11]", "[-11]")),
        with_text(&text.replace("data_offsets", "offsets")),
        with_text("[]"),
        with_text("{}"),
        with_text(
            "{\"x\": {\"dtype\": \"F32\", \"shape\": [1], \"data_offsets\": [18446744073709551615, 3]}}",
        ),
        with_text(&deep),
        good[..8].to_vec(),
    ] {
        fs::write(&path, &bytes).unwrap();
        let error = lie_about_size(step, bytes.len() as u64);
        assert!(error.contains("shard-00000.safetensors is not valid"), "{error}");
    }
}

/// Opens with a manifest that agrees with the size of the changed shard.
fn lie_about_size(step: &Path, bytes: u64) -> String {
    let path = step.join("manifest.json");
    let mut manifest = Manifest::load(&path).unwrap();
    manifest.shards[0].bytes = bytes;
    fs::write(&path, manifest.seal().unwrap()).unwrap();
    Checkpoint::open(step).unwrap_err().to_string()
}

#[test]
fn checkpoint_of_a_newer_format_is_not_called_damaged() {
    let dir = tempfile::tempdir().unwrap();
    let error = lie(&two(dir.path()), |m| m.format_version = 2);
    assert!(error.contains("format version 2, this program reads version 1"), "{error}");
}

#[test]
fn checkpoint_file_that_shrinks_after_opening_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let step = two(dir.path());
    let checkpoint = Checkpoint::open_verified(&step).unwrap();
    let path = step.join("shard-00000.safetensors");
    let file = fs::OpenOptions::new().write(true).open(path).unwrap();
    file.set_len(file.metadata().unwrap().len() - 4).unwrap();
    let failed = tensors(10).iter().filter(|t| checkpoint.read_whole(t.name).is_err()).count();
    assert!(failed > 0);
}
