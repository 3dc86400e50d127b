//! Descriptions that cannot be followed are refused by the key that says so.

use std::fs;

use hub::{Config, Directory, HubError, Task};
use serde_json::{Value, json};

use crate::place::{copy, edit, fixture, set_key};

/// The message of a fixture's `config.json` with one key changed.
fn refusal(name: &str, key: &str, value: Value) -> String {
    let mut config: Value =
        serde_json::from_slice(&fs::read(fixture(name).join("config.json")).unwrap()).unwrap();
    let (outer, inner) = key.split_once('.').map_or((key, None), |(a, b)| (a, Some(b)));
    match inner {
        Some(inner) => config[outer][inner] = value,
        None => config[outer] = value,
    }
    match Config::parse(config.to_string().as_bytes(), "DIR/config.json".as_ref()) {
        Err(error) => error.to_string(),
        Ok(_) => panic!("{name}: {key} was accepted"),
    }
}

#[test]
fn unsupported_values_name_their_key() {
    for (name, key, value, supported) in [
        ("gpt2", "model_type", json!("mamba"), "\"llama\""),
        ("gpt2", "model_type", Value::Null, "\"gpt2\""),
        ("gpt2", "activation_function", json!("quick_gelu"), "\"gelu_new\""),
        ("gpt2", "scale_attn_weights", json!("no"), "true, false"),
        ("gpt2", "scale_attn_by_inverse_layer_idx", json!(1), "true, false"),
        ("gpt2", "reorder_and_upcast_attn", json!(true), "false"),
        ("gpt2", "add_cross_attention", json!(true), "false"),
        ("gpt2", "n_head", json!(5), "a divisor of the width 16"),
        ("gpt2", "n_layer", json!(1_000_000_000u64), "from 1 to"),
        ("gpt2", "n_embd", json!(0), "from 1 to"),
        ("gpt2", "vocab_size", json!(-3), "from 1 to"),
        ("gpt2", "vocab_size", json!("many"), "from 1 to"),
        ("gpt2", "attn_pdrop", json!(1.0), "below 1"),
        ("gpt2", "quantization_config", json!({"bits": 4}), "not quantized"),
        ("gpt2", "tie_word_embeddings", json!("yes"), "true, false"),
        ("gpt2", "eos_token_id", json!("end"), "token id"),
        ("llama", "hidden_act", json!("mish"), "\"silu\""),
        ("llama", "num_key_value_heads", json!(3), "a divisor of num_attention_heads = 4"),
        ("llama", "head_dim", json!(5), "even"),
        ("llama", "num_attention_heads", json!(16_000_000), "product"),
        ("llama", "rms_norm_eps", json!(0.0), "above 0"),
        ("llama", "rope_parameters", json!("ntk"), "an object"),
        ("llama", "rope_parameters.rope_type", json!("proportional"), "\"yarn\""),
        ("llama-relu", "rope_parameters.short_factor", json!([1.0, 2.0, 3.0]), "2 numbers above 0"),
        ("llama-relu", "rope_parameters.long_factor", json!([1.0, 0.0]), "2 numbers above 0"),
        ("llama-relu", "rope_parameters.original_max_position_embeddings", json!(1), "2 or more"),
        ("llama", "rope_parameters.partial_rotary_factor", json!(0.5), "1.0"),
        ("llama", "partial_rotary_factor", json!(0.5), "1.0"),
        ("llama-linear", "rope_parameters.factor", json!(0.5), "at least 1"),
        ("llama-linear", "rope_parameters.factor", Value::Null, "above 0"),
        ("llama-untied", "rope_parameters.high_freq_factor", json!(1.0), "above low_freq_factor"),
        ("bert-tag", "position_embedding_type", json!("relative_key"), "\"absolute\""),
        ("bert-tag", "is_decoder", json!(true), "false"),
        ("bert-tag", "id2label", json!({"0": "a", "2": "b"}), "without gaps"),
        ("bert-tag", "id2label", json!({}), "without gaps"),
        ("t5-plain", "feed_forward_proj", json!("gated-mish"), "\"gated-gelu\""),
        ("t5-plain", "is_encoder_decoder", json!(false), "true"),
        ("t5-plain", "relative_attention_num_buckets", json!(3), "4 or more"),
        ("t5-plain", "relative_attention_max_distance", json!(4), "more than half the buckets"),
        ("vit", "patch_size", json!(3), "divisors of image_size = [8, 8]"),
        ("vit", "image_size", json!([8, 8, 8]), "[height, width]"),
        ("vit", "patch_size", json!([1_000_000_000u64, 4]), "from 1 to"),
        ("vit", "hidden_act", json!("mish"), "\"gelu\""),
    ] {
        let message = refusal(name, key, value);
        assert!(message.contains(&format!("`{key}`")) && message.contains(supported), "{key}: {message}");
        assert!(message.starts_with("DIR/config.json: "), "{message}");
    }
}

#[test]
fn old_rope_scaling_is_refused_by_its_own_name() {
    let mut config: Value =
        serde_json::from_slice(&fs::read(fixture("llama").join("config.json")).unwrap()).unwrap();
    config.as_object_mut().unwrap().remove("rope_parameters");
    config["rope_scaling"] = json!({"type": "su", "factor": 2.0});
    let error = Config::parse(config.to_string().as_bytes(), "config.json".as_ref()).unwrap_err().to_string();
    assert!(error.contains("`rope_scaling.type` = \"su\"") && error.contains("\"llama3\""), "{error}");
}

#[test]
fn missing_keys_and_files() {
    let dir = copy("t5-plain");
    edit(dir.path(), "config.json", |config| {
        config.as_object_mut().unwrap().remove("d_kv");
    });
    let error = Directory::open(dir.path(), None).unwrap_err().to_string();
    assert!(error.contains("`d_kv` is missing; a t5 model needs it"), "{error}");
    fs::write(dir.path().join("config.json"), [b'{', 0xff, 0xfe]).unwrap();
    assert!(matches!(Directory::open(dir.path(), None), Err(HubError::Json { .. })));
    fs::write(dir.path().join("config.json"), "[".repeat(100_000)).unwrap();
    assert!(matches!(Directory::open(dir.path(), None), Err(HubError::Json { .. })));
    fs::remove_file(dir.path().join("config.json")).unwrap();
    assert!(matches!(Directory::open(dir.path(), None), Err(HubError::NoConfig { .. })));
    fs::create_dir(dir.path().join("config.json")).unwrap();
    assert!(matches!(Directory::open(dir.path(), None), Err(HubError::NotAFile { .. })));
}

#[test]
fn tasks_that_a_family_does_not_do() {
    let error = Directory::open(&fixture("gpt2"), Some(Task::Tag)).unwrap_err().to_string();
    assert!(error.contains("\"gpt2\" does not do task = \"tag\"; it does causal-lm"), "{error}");
    // tags are one label out of several whatever it says, and one label is no regression of them
    let dir = copy("bert-tag");
    set_key(dir.path(), "id2label", json!({"0": "O"}));
    assert_eq!(Directory::open(dir.path(), None).unwrap().config().labels().unwrap().names, ["O"]);
    let dir = copy("bert-classify");
    set_key(dir.path(), "problem_type", "multi_label_classification");
    let error = Directory::open(dir.path(), None).unwrap_err().to_string();
    assert!(error.contains("`problem_type`") && error.contains("single_label_classification"), "{error}");
    set_key(dir.path(), "problem_type", Value::Null);
    set_key(dir.path(), "id2label", json!({"0": "score"}));
    let error = Directory::open(dir.path(), None).unwrap_err().to_string();
    assert!(error.contains("`id2label`") && error.contains("regression"), "{error}");
}

#[test]
fn long_values_are_shortened() {
    let message = refusal("gpt2", "activation_function", json!("x".repeat(10_000)));
    assert!(message.len() < 300, "{message}");
}
