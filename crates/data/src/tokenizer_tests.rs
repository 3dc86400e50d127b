//! Tests of tokenizer.rs. No code that is not a test.

use proptest::prelude::*;

use super::*;

/// Deterministic prose with a skewed word distribution and many ties.
fn prose(num_words: usize) -> String {
    let words =
        ["the", "rain", "in", "Spain", "stays", "mainly", "plain", "déjà", "vu", "雨", "it's", "42", "brow"];
    let mut state = 1u64;
    let mut text = String::new();
    for i in 0..num_words {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        let draw = (state >> 33) as usize;
        text += words[(draw % words.len()) * (draw / 64 % 2)];
        text += if draw.is_multiple_of(3) { words[draw / 7 % words.len()] } else { "" };
        text += match i % 23 {
            22 => ".\n\n",
            11 => ",\n",
            _ => " ",
        };
    }
    text
}

fn file(directory: &tempfile::TempDir, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
    let path = directory.path().join(name);
    fs::write(&path, content).unwrap();
    path
}

fn trained(vocab_size: usize) -> Tokenizer {
    let directory = tempfile::tempdir().unwrap();
    Tokenizer::train(&[file(&directory, "a.txt", prose(4000))], vocab_size).unwrap()
}

#[test]
fn training_gives_the_same_bytes_on_every_run() {
    let directory = tempfile::tempdir().unwrap();
    let files = [file(&directory, "a.txt", prose(3000)), file(&directory, "b.txt", prose(999))];
    let first = Tokenizer::train(&files, 400).unwrap();
    for _ in 0..10 {
        assert_eq!(Tokenizer::train(&files, 400).unwrap().json, first.json);
    }
    let reversed = [files[1].clone(), files[0].clone()];
    assert_eq!(
        Tokenizer::train(&reversed, 400).unwrap().json,
        first.json,
        "the order of files does not matter"
    );
}

#[test]
fn training_gives_the_same_bytes_on_every_machine() {
    // A golden value: if a new release of the library changes it, cached vocabularies and golden losses move too.
    assert_eq!(
        trained(300).hash().to_string(),
        "403b4ec065f3c4706fc4a3ba9570201f290603f0c779e7c5c67b58d689e683fe"
    );
}

#[test]
fn the_vocabulary_has_its_size_and_special_tokens_first() {
    let tokenizer = trained(300);
    assert_eq!(tokenizer.vocab_size(), 300);
    assert_eq!((tokenizer.start_id(), tokenizer.end_id(), tokenizer.pad_id()), (Some(0), Some(0), Some(1)));
    assert!(trained(100_000).vocab_size() < 2_000, "a small text has few merges");
}

#[test]
fn save_and_load_are_the_same_tokenizer() {
    let directory = tempfile::tempdir().unwrap();
    let tokenizer = trained(300);
    let path = directory.path().join("new/tokenizer.json");
    tokenizer.save(&path).unwrap();
    let loaded = Tokenizer::load(&path).unwrap();
    assert_eq!(loaded.hash(), tokenizer.hash());
    assert_eq!(loaded.encode("the rain").unwrap(), tokenizer.encode("the rain").unwrap());
}

#[test]
fn special_names_in_text_are_text() {
    let tokenizer = trained(300);
    let tokens = tokenizer.encode("a <|endoftext|> b <|pad|>").unwrap();
    assert!(tokens.iter().all(|&token| token > 1), "{tokens:?}");
    assert_eq!(tokenizer.decode(&tokens).unwrap(), "a <|endoftext|> b <|pad|>");
    assert_eq!(tokenizer.decode(&[0, tokens[0], 1]).unwrap(), "a");
    let asked = tokenizer.clone().reading_special_names();
    let [a, b] = ["a ", " b "].map(|text| tokenizer.encode(text).unwrap());
    assert_eq!(asked.encode_framed("a <|endoftext|> b <|pad|>").unwrap(), [&a[..], &[0], &b, &[1]].concat());
}

#[test]
fn held_out_text_does_not_shape_the_vocabulary() {
    let directory = tempfile::tempdir().unwrap();
    let one = file(&directory, "one", prose(1000) + "\u{c}" + &"zyx ".repeat(200));
    let other = file(&directory, "two", prose(1000) + "\u{c}" + &"uvw ".repeat(200));
    let on_split =
        |path: &PathBuf| Tokenizer::train_on_split(std::slice::from_ref(path), 350, 0.2).unwrap().hash();
    assert_eq!(on_split(&one), on_split(&other));
    assert_ne!(
        Tokenizer::train(&[one], 350).unwrap().hash(),
        Tokenizer::train(&[other], 350).unwrap().hash()
    );
}

#[test]
fn runs_without_white_space_are_cut_for_training() {
    let pieces = |text: &str| without_long_runs(text, 4);
    assert_eq!(pieces("abcd ef\nghij klmnopqrs t"), ["abcd ef\nghij klmn", "opqr", "s t"]);
    assert_eq!(pieces("ééé\u{1f600}\u{1f600}"), ["éé", "é", "\u{1f600}", "\u{1f600}"]);
    assert_eq!((pieces(""), pieces("ab cd")), (vec![String::new()], vec!["ab cd".to_owned()]));
    // In one piece this takes the library many minutes.
    let directory = tempfile::tempdir().unwrap();
    let tokenizer = Tokenizer::train(&[file(&directory, "run", "a".repeat(2 << 20))], 300).unwrap();
    assert!(tokenizer.encode(&"a".repeat(4096)).unwrap().len() <= 4);
}

#[test]
fn long_texts_are_encoded_as_if_whole() {
    let tokenizer = trained(350);
    let text = prose(30_000);
    assert!(text.len() > 4 * CHUNK_BYTES && chunks(&text, CHUNK_BYTES).len() > 3);
    assert_eq!(chunks(&text, CHUNK_BYTES).concat(), text);
    assert_eq!(tokenizer.encode(&text).unwrap(), tokenizer.encode_whole(&text).unwrap());
    assert_eq!(tokenizer.decode(&tokenizer.encode(&text).unwrap()).unwrap(), text);
}

#[test]
fn a_foreign_tokenizer_keeps_its_names_and_loses_padding_and_truncation() {
    let directory = tempfile::tempdir().unwrap();
    let special = |id: u32, name: &str| {
        serde_json::json!({"id": id, "content": name, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true})
    };
    let json = serde_json::json!({
        "version": "1.0",
        "truncation": {"max_length": 2, "strategy": "LongestFirst", "stride": 0, "direction": "Right"},
        "padding": {"strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 0,
            "pad_type_id": 0, "pad_token": "[PAD]"},
        "added_tokens": [special(0, "[PAD]"), special(2, "[CLS]"), special(3, "[SEP]")],
        "normalizer": {"type": "Lowercase"},
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": null,
        "decoder": null,
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "rain": 4, "##y": 5, "day": 9}}
    });
    let path = file(&directory, "tokenizer.json", json.to_string());
    let tokenizer = Tokenizer::load(&path).unwrap();
    assert_eq!((tokenizer.start_id(), tokenizer.end_id(), tokenizer.pad_id()), (Some(2), Some(3), Some(0)));
    assert_eq!(tokenizer.vocab_size(), 10, "the largest id counts, not the number of words");
    assert_eq!(tokenizer.encode("Rainy rain day").unwrap(), [4, 5, 4, 9]);
    let copy = directory.path().join("copy.json");
    tokenizer.save(&copy).unwrap();
    assert_eq!(fs::read(copy).unwrap(), fs::read(path).unwrap());
}

#[test]
fn mistakes_are_named() {
    let directory = tempfile::tempdir().unwrap();
    let text = file(&directory, "a.txt", "text");
    assert!(matches!(
        Tokenizer::train(std::slice::from_ref(&text), 257),
        Err(DataError::VocabTooSmall { asked: 257, least: 258 })
    ));
    assert!(matches!(Tokenizer::train(&[], 300), Err(DataError::NoFiles)));
    let missing = directory.path().join("no.txt");
    assert!(
        matches!(Tokenizer::train(std::slice::from_ref(&missing), 300), Err(DataError::MissingFile { path }) if path == missing)
    );
    assert!(matches!(Tokenizer::load(&missing), Err(DataError::MissingFile { .. })));
    assert!(matches!(Tokenizer::load(directory.path()), Err(DataError::IsDirectory { .. })));
    assert!(matches!(Tokenizer::load(&text), Err(DataError::TokenizerMalformed { .. })));
    let empty = file(&directory, "empty.txt", " \n\n");
    assert!(matches!(Tokenizer::train(&[empty], 300), Err(DataError::EmptyText { num_bytes: 3, .. })));
    let latin = file(&directory, "latin.txt", b"caf\xe9 au lait");
    assert!(matches!(Tokenizer::train(&[latin], 300), Err(DataError::NotUtf8 { byte_offset: 3, .. })));
    let binary = file(&directory, "binary", b"\x7fELF\0\xff");
    assert!(matches!(Tokenizer::train(&[binary], 300), Err(DataError::Binary { byte_offset: 4, .. })));
    let bad = Tokenizer::train_on_split(&[text], 300, 1.0);
    assert!(matches!(bad, Err(DataError::ValidationOutOfRange { .. })));
    let beyond = trained(300).decode(&[5, 300]);
    assert!(matches!(beyond, Err(DataError::TokenOutOfRange { token: 300, index: 1, vocab_size: 300 })));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_text_survives(text in "\\PC{0,200}") {
        let tokenizer = shared();
        prop_assert_eq!(tokenizer.decode(&tokenizer.encode(&text).unwrap()).unwrap(), text);
    }

    #[test]
    fn chunks_cut_where_the_pre_tokenizer_cuts(lines in prop::collection::vec("[ab,' é1]{0,3}(\n| \n|\n\n|\r\n|\t\n ){1,2}", 1..40)) {
        let text = lines.concat();
        let tokenizer = shared();
        prop_assert_eq!(tokenizer.encode_in_chunks(&text, 1).unwrap(), tokenizer.encode_whole(&text).unwrap());
    }

    #[test]
    fn damaged_files_are_errors_or_tokenizers(at in 0..20_000usize, byte in any::<u8>(), cut in any::<bool>()) {
        let mut bytes = shared().json.clone().into_bytes();
        let at = at % bytes.len();
        bytes[at] = byte;
        if cut { bytes.truncate(at); }
        let directory = tempfile::tempdir().unwrap();
        if let Ok(tokenizer) = Tokenizer::load(&file(&directory, "t.json", &bytes)) {
            let _ = tokenizer.encode("the rain");
        }
    }

    #[test]
    fn wrong_values_are_errors_or_tokenizers(at in 0..1000usize, replacement in 0..8usize) {
        let mut json: serde_json::Value = serde_json::from_str(&shared().json).unwrap();
        json["model"]["vocab"].as_object_mut().unwrap().retain(|_, id| id.as_u64().unwrap() < 4);
        json["model"]["merges"] = serde_json::json!([["!", "\""]]);
        let num_values = count(&json);
        let new = [
            serde_json::json!(null), serde_json::json!(-1), serde_json::json!(1e300), serde_json::json!(""), serde_json::json!([]),
            serde_json::json!({}), serde_json::json!(["<"]), serde_json::json!(true)
        ];
        let mut at = at % num_values;
        replace(&mut json, &mut at, &new[replacement]);
        let directory = tempfile::tempdir().unwrap();
        if let Ok(tokenizer) = Tokenizer::load(&file(&directory, "t.json", json.to_string())) {
            let _ = tokenizer.encode("the rain!\"");
        }
    }
}

fn count(json: &serde_json::Value) -> usize {
    1 + match json {
        serde_json::Value::Array(values) => values.iter().map(count).sum(),
        serde_json::Value::Object(values) => values.values().map(count).sum::<usize>(),
        _ => 0,
    }
}

/// Replaces the value that comes at place `at` in a walk of the tree.
fn replace(json: &mut serde_json::Value, at: &mut usize, new: &serde_json::Value) {
    if *at == 0 {
        *json = new.clone();
    }
    *at = at.wrapping_sub(1);
    match json {
        serde_json::Value::Array(values) => values.iter_mut().for_each(|value| replace(value, at, new)),
        serde_json::Value::Object(values) => values.values_mut().for_each(|value| replace(value, at, new)),
        _ => {}
    }
}

fn shared() -> &'static Tokenizer {
    static TOKENIZER: std::sync::OnceLock<Tokenizer> = std::sync::OnceLock::new();
    TOKENIZER.get_or_init(|| trained(300))
}
