//! Random damage to good files: an error or a model, never a panic.

use std::fs;

use hub::{Config, Directory, Weights};
use proptest::prelude::*;

use crate::place::{ALL, copy, fixture};

/// One change of a file's bytes.
#[derive(Debug, Clone)]
enum Damage {
    Set(prop::sample::Index, u8),
    Flip(prop::sample::Index, u8),
    Cut(prop::sample::Index),
    Insert(prop::sample::Index, Vec<u8>),
    Remove(prop::sample::Index, usize),
    Repeat(prop::sample::Index, usize),
}

fn damage() -> impl Strategy<Value = Damage> {
    let at = any::<prop::sample::Index>;
    let text = prop::sample::select(vec![
        "null",
        "-1",
        "1e99",
        "99999999999999999999",
        "\"",
        "{",
        "[",
        "}",
        "../",
        "\u{0}",
    ]);
    prop_oneof![
        (at(), any::<u8>()).prop_map(|(i, b)| Damage::Set(i, b)),
        (at(), 0..8u8).prop_map(|(i, b)| Damage::Flip(i, b)),
        at().prop_map(Damage::Cut),
        (at(), prop::collection::vec(any::<u8>(), 1..12)).prop_map(|(i, b)| Damage::Insert(i, b)),
        (at(), text).prop_map(|(i, t)| Damage::Insert(i, t.as_bytes().to_vec())),
        (at(), 1..40usize).prop_map(|(i, n)| Damage::Remove(i, n)),
        (at(), 1..200usize).prop_map(|(i, n)| Damage::Repeat(i, n)),
    ]
}

/// `reach` limits the damage to the first bytes, where a header is.
fn apply(bytes: &mut Vec<u8>, damages: &[Damage], reach: usize) {
    for damage in damages {
        let len = bytes.len().min(reach);
        if len == 0 {
            return;
        }
        match damage {
            Damage::Set(i, b) => bytes[i.index(len)] = *b,
            Damage::Flip(i, b) => bytes[i.index(len)] ^= 1 << b,
            Damage::Cut(i) => bytes.truncate(i.index(len)),
            Damage::Insert(i, b) => {
                let at = i.index(len);
                bytes.splice(at..at, b.iter().copied());
            }
            Damage::Remove(i, n) => {
                let at = i.index(len);
                bytes.drain(at..(at + n).min(bytes.len()));
            }
            Damage::Repeat(i, n) => {
                let at = i.index(len);
                let part = bytes[at..(at + n).min(bytes.len())].to_vec();
                bytes.splice(at..at, part);
            }
        }
    }
}

/// Goes as far as a program would.
fn use_directory(dir: &std::path::Path) {
    let Ok(directory) = Directory::open(dir, None) else { return };
    let Ok(bound) = directory.bind() else { return };
    for parameter in directory.table().parameters() {
        let _ = bound.read_all::<f32>(&parameter.name).unwrap();
    }
    let _ = directory.config().to_json(directory.task(), hub::StoredType::F32);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn weights(damages in prop::collection::vec(damage(), 1..5), reach in prop::sample::select(vec![16usize, 3000, usize::MAX])) {
        let dir = copy("bert-tag");
        let path = dir.path().join("model.safetensors");
        let mut bytes = fs::read(&path).unwrap();
        apply(&mut bytes, &damages, reach);
        fs::write(&path, &bytes).unwrap();
        use_directory(dir.path());
        if let Ok(weights) = Weights::open_file(&path) {
            for tensor in weights.tensors() {
                let _ = (tensor.reals::<f64>(), tensor.integers());
            }
        }
    }

    #[test]
    fn indices(damages in prop::collection::vec(damage(), 1..4)) {
        let dir = copy("llama-untied");
        let path = dir.path().join("model.safetensors.index.json");
        let mut bytes = fs::read(&path).unwrap();
        apply(&mut bytes, &damages, usize::MAX);
        fs::write(&path, &bytes).unwrap();
        use_directory(dir.path());
    }

    #[test]
    fn descriptions(fixture_number in 0..ALL.len(), damages in prop::collection::vec(damage(), 1..4)) {
        let path = fixture(ALL[fixture_number]).join("config.json");
        let mut bytes = fs::read(&path).unwrap();
        apply(&mut bytes, &damages, usize::MAX);
        if let Ok(config) = Config::parse(&bytes, &path) {
            let _ = config.to_json(config.default_task(), hub::StoredType::F32);
        }
    }

    #[test]
    fn numbers_in_descriptions(fixture_number in 0..ALL.len(), key in any::<prop::sample::Index>(), value in prop_oneof![
        any::<u32>().prop_map(u64::from), 0..70u64, Just(u64::MAX), Just((1 << 24) - 1), Just(1 << 24),
    ]) {
        let dir = copy(ALL[fixture_number]);
        crate::place::edit(dir.path(), "config.json", |config| {
            let config = config.as_object_mut().unwrap();
            let numbers: Vec<String> = config.iter().filter(|(_, v)| v.is_u64()).map(|(k, _)| k.clone()).collect();
            config.insert(numbers[key.index(numbers.len())].clone(), value.into());
        });
        use_directory(dir.path());
    }
}
