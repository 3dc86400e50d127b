//! Frequencies of every published scaling against those of `transformers`.

use std::fs;

use hub::{Config, Family};
use serde_json::{Value, json};

use crate::place::fixture;

#[test]
fn frequencies_agree() {
    let cases: Vec<Value> = serde_json::from_slice(&fs::read(fixture("rotary.json")).unwrap()).unwrap();
    assert!(cases.len() > 50);
    for case in cases {
        let head_dim = case["head_dim"].as_u64().unwrap() as usize;
        for old_names in [false, true] {
            let mut config = json!({
                "model_type": "llama", "vocab_size": 8, "hidden_size": 2 * head_dim, "num_attention_heads": 2,
                "num_hidden_layers": 1, "intermediate_size": 8,
                "max_position_embeddings": case["max_position_embeddings"],
            });
            let mut parameters = case["parameters"].clone();
            if old_names {
                config["rope_theta"] = parameters["rope_theta"].take();
                parameters["type"] = parameters["rope_type"].take();
                config["rope_scaling"] = parameters;
            } else {
                config["rope_parameters"] = parameters;
            }
            let config = Config::parse(config.to_string().as_bytes(), "config.json".as_ref()).unwrap();
            let Family::Llama(llama) = &config.family else { panic!("a LLaMA") };
            let length = case["length"].as_u64().unwrap() as usize;
            let found = llama.rope.frequencies(llama.head_dim, llama.max_positions, length);
            assert_eq!(found.inverse.len(), head_dim / 2);
            let every = case["every"].as_u64().unwrap() as usize;
            for (ours, theirs) in
                found.inverse.iter().step_by(every).zip(case["inverse_frequencies"].as_array().unwrap())
            {
                let theirs = theirs.as_f64().unwrap();
                assert!((ours - theirs).abs() <= 1e-13 * theirs.abs(), "{ours} {theirs} {case}");
            }
            let factor = case["attention_factor"].as_f64().unwrap();
            assert!((found.attention_factor - factor).abs() <= 1e-15 * factor, "{case}");
        }
    }
}
