//! Forms of directories that exist in the wild beside today's: older names, copies of tied tables, other heads.

use hub::{Config, Directory, Family, Task};
use serde_json::json;

use crate::place::{copy, edit, rename, set_key};

#[test]
fn a_body_without_prefix_and_with_stored_masks() {
    let dir = copy("gpt2");
    rename(dir.path(), |name| vec![name.strip_prefix("transformer.").unwrap().to_owned()]);
    let weights = hub::Weights::open(dir.path()).unwrap();
    let mask = weights.get("wpe.weight").unwrap();
    let mut tensors: Vec<_> = weights.tensors().map(|t| (t.name.to_owned(), t)).collect();
    tensors.push(("h.0.attn.bias".into(), mask));
    let tensors: Vec<_> = tensors
        .into_iter()
        .map(|(name, t)| hub::NewTensor {
            name,
            shape: t.shape.to_vec(),
            dtype: t.dtype,
            bytes: t.bytes.into(),
        })
        .collect();
    hub::write_tensors(&dir.path().join("model.safetensors"), &tensors).unwrap();
    let directory = Directory::open(dir.path(), None).unwrap();
    let bound = directory.bind().unwrap();
    assert_eq!(bound.report().ignored, ["h.0.attn.bias"]);
    assert!(bound.report().extra.is_empty());
}

#[test]
fn a_tied_head_may_be_stored_twice_or_under_its_other_name() {
    let wte = "transformer.wte.weight";
    let dir = copy("gpt2");
    rename(dir.path(), |name| match name == wte {
        true => vec![name.to_owned(), "lm_head.weight".to_owned()],
        false => vec![name.to_owned()],
    });
    let directory = Directory::open(dir.path(), None).unwrap();
    assert_eq!(directory.bind().unwrap().report().ignored, ["lm_head.weight"]);
    let dir = copy("gpt2");
    rename(dir.path(), |name| vec![if name == wte { "lm_head.weight" } else { name }.to_owned()]);
    let directory = Directory::open(dir.path(), None).unwrap();
    let bound = directory.bind().unwrap();
    assert!(bound.report().ignored.is_empty());
    assert_eq!(bound.source("embedding.token").unwrap().unwrap().name, "lm_head.weight");
}

#[test]
fn a_head_that_differs_is_not_tied() {
    // a head of its own and a file that says tied: it is not, and the export says so
    let dir = copy("llama-untied");
    set_key(dir.path(), "tie_word_embeddings", true);
    let directory = Directory::open(dir.path(), None).unwrap();
    let Family::Llama(llama) = &directory.config().family else { panic!("a LLaMA") };
    assert!(!llama.tied);
    assert!(directory.table().get("head.weight").is_some());
    let text = directory.config().to_json(Task::CausalLm, hub::StoredType::F32);
    let value: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(value["tie_word_embeddings"], false);
}

/// Files of the time when the two biases of BERT's head were always one.
#[test]
fn an_untied_head_takes_the_only_bias_there_is() {
    let dir = copy("bert-untied");
    let [own, only] = ["cls.predictions.decoder.bias", "cls.predictions.bias"];
    let directory = Directory::open(dir.path(), None).unwrap();
    let bound = directory.bind().unwrap();
    assert_eq!(bound.source("head.bias").unwrap().unwrap().name, own);
    assert_eq!(bound.report().extra, [only]);
    rename(dir.path(), |name| if name == own { vec![] } else { vec![name.to_owned()] });
    let directory = Directory::open(dir.path(), None).unwrap();
    let bound = directory.bind().unwrap();
    assert_eq!(bound.source("head.bias").unwrap().unwrap().name, only);
    assert!(bound.report().extra.is_empty());
}

/// BERT has a padding token unless its file says that it has none; what comes from no file says all it knows.
#[test]
fn padding_that_no_file_names() {
    let dir = copy("bert-tag");
    let pad = || match Directory::open(dir.path(), None).unwrap().config().family.clone() {
        Family::Bert(bert) => bert.tokens.pad,
        other => panic!("a BERT, not {other:?}"),
    };
    set_key(dir.path(), "pad_token_id", serde_json::Value::Null);
    assert_eq!(pad(), None);
    edit(dir.path(), "config.json", |config| drop(config.as_object_mut().unwrap().remove("pad_token_id")));
    assert_eq!(pad(), Some(0));
    let Family::Bert(mut bert) = Directory::open(dir.path(), None).unwrap().config().family.clone() else {
        panic!("a BERT")
    };
    for pad in [None, Some(5)] {
        bert.tokens = hub::TokenIds { bos: None, eos: vec![2, 3], pad };
        let described = Config::new(Family::Bert(bert.clone())).to_json(Task::Tag, hub::StoredType::F32);
        let read = Config::parse(described.as_bytes(), "config.json".as_ref()).unwrap();
        assert_eq!(read.family, Family::Bert(bert.clone()));
    }
}

/// The length of pretraining may stand beside the scaling, where it counts more than within.
#[test]
fn the_length_of_pretraining_beside_the_scaling() {
    let dir = copy("llama-yarn");
    set_key(dir.path(), "original_max_position_embeddings", 32);
    let Family::Llama(llama) = Directory::open(dir.path(), None).unwrap().config().family.clone() else {
        panic!("a LLaMA")
    };
    let hub::RopeScaling::Yarn { original_max_positions, .. } = llama.rope.scaling else { panic!("YaRN") };
    assert_eq!(original_max_positions, 32);
}

#[test]
fn what_ends_a_text_is_said_by_the_file_on_generation_first() {
    let dir = copy("gpt2");
    let ends = || Directory::open(dir.path(), None).unwrap().ends().map_err(|e| e.to_string());
    assert_eq!(ends(), Ok(vec![1]));
    let write = |text: &str| std::fs::write(dir.path().join("generation_config.json"), text).unwrap();
    for (text, expected) in [
        (r#"{"eos_token_id": [7, 3]}"#, vec![7, 3]),
        (r#"{"eos_token_id": null}"#, vec![]),
        (r#"{"do_sample": true}"#, vec![1]),
    ] {
        write(text);
        assert_eq!(ends(), Ok(expected), "{text}");
    }
    write(r#"{"eos_token_id": "end"}"#);
    assert!(ends().unwrap_err().contains("generation_config.json: `eos_token_id`"));
    write("{");
    assert!(ends().unwrap_err().contains("generation_config.json"));
}

#[test]
fn a_missing_head_is_named_with_its_remedy() {
    let dir = copy("llama");
    set_key(dir.path(), "tie_word_embeddings", false);
    let error = Directory::open(dir.path(), None).unwrap().bind().unwrap_err().to_string();
    assert!(error.contains("`lm_head.weight`") && error.contains("tie_word_embeddings"), "{error}");
}

#[test]
fn older_t5_files() {
    let dir = copy("t5-gated");
    edit(dir.path(), "config.json", |config| {
        let config = config.as_object_mut().unwrap();
        config.remove("scale_decoder_outputs");
        config.insert("tie_word_embeddings".into(), false.into());
    });
    let Family::T5(t5) = Directory::open(dir.path(), None).unwrap().config().family.clone() else {
        panic!("a T5")
    };
    assert!(!t5.tied && !t5.scale_output);
    let dir = copy("t5-plain");
    rename(dir.path(), |name| match name {
        "shared.weight" => ["shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight"]
            .map(str::to_owned)
            .to_vec(),
        _ => vec![name.to_owned()],
    });
    let directory = Directory::open(dir.path(), None).unwrap();
    assert_eq!(directory.bind().unwrap().report().ignored.len(), 2);
}

#[test]
fn a_body_takes_the_head_of_another_task() {
    // as for fine-tuning: the body of a masked language model, a new classifier
    let directory = Directory::open(copy("bert-masked-lm").path(), Some(Task::Tag)).unwrap();
    let bound = directory.bind().unwrap();
    assert_eq!(bound.report().new, ["head.classifier.weight", "head.classifier.bias"]);
    assert!(bound.report().extra.iter().all(|name| name.starts_with("cls.predictions.")));
    assert_eq!(bound.read_all::<f32>("head.classifier.bias").unwrap(), None);
    let mut kept = [7f32; 2];
    assert!(!bound.read("head.classifier.bias", 0..2, &mut kept).unwrap());
    assert_eq!(kept, [7.0; 2]);
    // a bare body, as sentence encoders are published: names without prefix, a stored buffer
    let dir = copy("bert-embed");
    rename(dir.path(), |name| {
        let mut names = vec![
            name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"),
        ];
        if name == "embeddings.token_type_embeddings.weight" {
            names.push("embeddings.position_ids".to_owned());
        }
        names
    });
    let directory = Directory::open(dir.path(), Some(Task::Classify)).unwrap();
    let bound = directory.bind().unwrap();
    assert_eq!(bound.report().new, ["head.classifier.weight", "head.classifier.bias"]);
    assert_eq!(bound.report().ignored, ["embeddings.position_ids"]);
    assert_eq!(bound.source("head.pooler.weight").unwrap().unwrap().name, "pooler.dense.weight");
}

#[test]
fn a_description_made_here_reads_back() {
    for name in crate::place::ALL {
        let read = Directory::open(&crate::place::fixture(name), None).unwrap();
        let made = Config::new(read.config().family.clone());
        let text = made.to_json(read.task(), hub::StoredType::F32);
        let again = Config::parse(text.as_bytes(), "config.json".as_ref()).unwrap();
        let mut family = again.family.clone();
        // tokens with a role belong to the tokenizer's files, not to the model's shape
        match (&mut family, &read.config().family) {
            (Family::Gpt2(a), Family::Gpt2(b)) => a.tokens = b.tokens.clone(),
            (Family::Llama(a), Family::Llama(b)) => a.tokens = b.tokens.clone(),
            (Family::Bert(a), Family::Bert(b)) => a.tokens = b.tokens.clone(),
            (Family::T5(a), Family::T5(b)) => a.tokens = b.tokens.clone(),
            _ => {}
        }
        assert_eq!(family, read.config().family, "{name}");
        assert_eq!(again.default_task(), read.task(), "{name}");
    }
}

#[test]
fn older_rotary_keys_are_written_as_they_were() {
    let text = json!({
        "model_type": "llama", "vocab_size": 8, "hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1,
        "intermediate_size": 8, "rope_theta": 5e5, "max_position_embeddings": 64, "torch_dtype": "bfloat16",
        "rope_scaling": {"type": "linear", "factor": 2.0}, "unknown": {"kept": [1, null]},
    });
    let config = Config::parse(text.to_string().as_bytes(), "config.json".as_ref()).unwrap();
    let again: serde_json::Value =
        serde_json::from_str(&config.to_json(Task::CausalLm, hub::StoredType::Bf16)).unwrap();
    for key in ["rope_theta", "rope_scaling", "unknown", "torch_dtype"] {
        assert_eq!(again[key], text[key], "{key}");
    }
    assert!(again.get("rope_parameters").is_none() && again.get("dtype").is_none());
    let mut config = config;
    let Family::Llama(llama) = &mut config.family else { panic!("a LLaMA") };
    llama.rope.scaling = hub::RopeScaling::None;
    let again: serde_json::Value =
        serde_json::from_str(&config.to_json(Task::CausalLm, hub::StoredType::Bf16)).unwrap();
    assert_eq!(again["rope_scaling"], serde_json::Value::Null);
}
