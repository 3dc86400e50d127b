//! The shipped example texts, from files to samples to baselines. No unit tests; the network is not touched.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use data::{ContentHash, Dataset, Origin, Sampler, Split, TokenStore, Tokenizer, Walk, baselines};

fn examples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/data")
}

fn austen() -> Vec<PathBuf> {
    ["austen/northangerabbey.txt", "austen/persuasion.txt"].map(|name| examples().join(name)).to_vec()
}

#[test]
fn shipped_files_are_the_noted_ones() {
    let sums = fs::read_to_string(examples().join("SHA256SUMS")).unwrap();
    assert_eq!(sums.lines().count(), 13);
    for line in sums.lines() {
        let (sum, name) = line.split_once("  ").unwrap();
        let content = fs::read(examples().join(name)).unwrap();
        assert_eq!(ContentHash::of(&content).to_string(), sum, "{name}");
    }
}

#[test]
fn austen_from_text_to_baselines() {
    let cache = tempfile::tempdir().unwrap();
    let tokenizer = Tokenizer::train_on_split(&austen(), 2048, 0.05).unwrap();
    assert_eq!(tokenizer.vocab_size(), 2048);
    let store = TokenStore::open_or_build(&austen(), &tokenizer, cache.path(), 0.05).unwrap();
    assert_eq!(store.origin(), &Origin::Built);
    let num_bytes = [Split::Train, Split::HeldOut].map(|split| store.num_bytes(split));
    let num_tokens = [Split::Train, Split::HeldOut].map(|split| store.num_tokens(split));
    assert_eq!(num_bytes.iter().sum::<u64>(), 433_411 + 466_854);
    let fraction = num_bytes[1] as f64 / 900_265.0;
    assert!((0.0499..=0.05).contains(&fraction), "{fraction}");
    let scores = baselines(&store).unwrap();
    println!(
        "bytes {num_bytes:?} tokens {num_tokens:?} bytes/token {:.3} {scores:?} cache {} bytes",
        num_bytes.iter().sum::<u64>() as f64 / num_tokens.iter().sum::<usize>() as f64,
        fs::metadata(store.path()).unwrap().len(),
    );
    // Measured when this was written; the bar that a model of this text must pass.
    assert!(
        (scores.unigram.bits_per_byte - 2.696).abs() < 0.01
            && (scores.bigram.bits_per_byte - 1.923).abs() < 0.01
    );
    let train: Vec<u32> = (0..num_tokens[0]).map(|i| store.token(Split::Train, i)).collect();
    let text: String = austen().iter().map(|path| fs::read_to_string(path).unwrap()).collect();
    let decoded = tokenizer.decode(&train).unwrap();
    assert!(text.starts_with(&decoded[..400_000]));
    assert_eq!(decoded.len() as u64, num_bytes[0]);
}

#[test]
fn a_world_of_any_size_sees_the_same_epoch() {
    let cache = tempfile::tempdir().unwrap();
    let tokenizer = Tokenizer::train(&austen(), 300).unwrap();
    let store = Arc::new(TokenStore::open_or_build(&austen(), &tokenizer, cache.path(), 0.05).unwrap());
    let dataset = Dataset::packed(store, Split::Train, 1024).unwrap();
    let sampler = Sampler::new(dataset.num_samples(), 7).unwrap();
    let batch = 8;
    let whole: Vec<usize> = sampler.samples_of_step(3, batch).collect();
    for num_ranks in [1, 2, 4] {
        let per_rank = batch / num_ranks;
        let joined: Vec<usize> = (0..num_ranks)
            .flat_map(|rank| {
                (0..per_rank).map(move |i| sampler.sample((3 * batch + rank * per_rank + i) as u64))
            })
            .collect();
        assert_eq!(joined, whole);
    }
}

#[test]
fn tang_poems_are_one_document_each() {
    let cache = tempfile::tempdir().unwrap();
    let texts = [examples().join("tang/tang.txt")];
    let tokenizer = Tokenizer::train_on_split(&texts, 1024, 0.05).unwrap();
    let store = Arc::new(TokenStore::open_or_build(&texts, &tokenizer, cache.path(), 0.05).unwrap());
    assert_eq!(store.num_documents(Split::Train) + store.num_documents(Split::HeldOut), 480);
    assert_eq!(store.num_documents(Split::HeldOut), 23);
    let longest =
        (0..store.num_documents(Split::Train)).map(|i| store.document(Split::Train, i).len()).max().unwrap();
    println!(
        "bytes {} + {}, tokens {} + {}, longest poem {longest} tokens, {:?}",
        store.num_bytes(Split::Train),
        store.num_bytes(Split::HeldOut),
        store.num_tokens(Split::Train),
        store.num_tokens(Split::HeldOut),
        baselines(&store).unwrap()
    );
    let dataset = Dataset::padded(store.clone(), Split::HeldOut, longest).unwrap();
    assert_eq!(dataset.num_samples(), 23);
    let index: Vec<u32> = (0..longest as u32).collect();
    let (mut tokens, mut targets, mut weights) = (vec![0; longest], vec![0; longest], vec![0.0; longest]);
    let mut predicted = 0.0;
    let walk = Walk::new(dataset.num_samples(), 10);
    for sample in (0..walk.num_steps()).flat_map(|step| walk.samples_of_step(step)) {
        match sample {
            Some(sample) => dataset.fill(sample, &index, &mut tokens, &mut targets, &mut weights),
            None => dataset.fill_padding(&mut tokens, &mut targets, &mut weights),
        }
        predicted += weights.iter().sum::<f32>();
        if let Some(sample) = sample {
            let poem: Vec<u32> = tokens.iter().map(|&token| token as u32).collect();
            let lines = tokenizer.decode(&poem).unwrap();
            assert_eq!((poem[0], poem[dataset.num_valid(sample) - 1]), (0, 0), "{lines}");
            assert!(lines.lines().count() >= 4 && lines.ends_with("。\n"), "{lines}");
        }
    }
    assert_eq!(predicted as usize, dataset.num_targets());
}
