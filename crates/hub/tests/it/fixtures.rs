//! What `transformers` saved is opened, understood, and wholly accounted for.

use std::collections::BTreeSet;

use hub::{Activation, Directory, Family, FeedForward, RopeScaling, Task, Weights};

use crate::place::{ALL, fixture};

fn open(name: &str) -> Directory {
    Directory::open(&fixture(name), None).unwrap()
}

#[test]
fn every_tensor_is_used_and_every_element_once() {
    for name in ALL {
        let directory = open(name);
        let bound = directory.bind().unwrap_or_else(|e| panic!("{name}: {e}"));
        let report = bound.report();
        // a bare BERT has a pooler, which embeddings do not use, and an untied head a second bias, which it does not
        let extra: &[&str] = match name {
            "bert-embed" => &["pooler.dense.bias", "pooler.dense.weight"],
            "bert-untied" => &["cls.predictions.bias"],
            _ => &[],
        };
        assert_eq!(report.extra, extra, "{name}");
        assert!(report.new.is_empty() && report.ignored.is_empty(), "{name}: {report:?}");
        for (tensor, shape) in directory.table().tensors() {
            let mut hits = vec![0; shape.iter().product()];
            for parameter in directory.table().parameters().iter().filter(|p| p.piece.tensor() == tensor) {
                parameter.piece.for_each(0..parameter.piece.len(), |_, at| hits[at] += 1);
            }
            assert!(hits.iter().all(|n| *n == 1), "{name}: {tensor}");
        }
        let names: BTreeSet<&str> = directory.table().parameters().iter().map(|p| p.name.as_str()).collect();
        assert_eq!(names.len(), directory.table().parameters().len(), "{name}: two parameters of one name");
    }
}

#[test]
fn gradients_of_the_reference_have_the_names_of_the_table() {
    for name in ALL.into_iter().filter(|name| *name != "bert-embed") {
        let directory = open(name);
        let expected = Weights::open_file(&fixture(name).join("expected.safetensors")).unwrap();
        let gradients: BTreeSet<&str> =
            expected.names().filter(|n| !["loss", "logits"].contains(n)).collect();
        let tensors = directory.table().tensors();
        assert_eq!(gradients, tensors.keys().copied().collect(), "{name}");
        for (tensor, shape) in tensors {
            assert_eq!(expected.get(tensor).unwrap().shape, shape, "{name}: {tensor}");
        }
        assert_eq!(expected.get("loss").unwrap().shape, [0usize; 0]);
        assert_eq!(expected.get("logits").unwrap().reals::<f64>().unwrap().len() % 4, 0);
    }
}

#[test]
fn tasks_follow_the_architecture() {
    for (name, task) in [
        ("gpt2", Task::CausalLm),
        ("llama-untied", Task::CausalLm),
        ("bert-masked-lm", Task::MaskedLm),
        ("bert-classify", Task::Classify),
        ("bert-tag", Task::Tag),
        ("bert-embed", Task::Embed),
        ("t5-plain", Task::Seq2Seq),
        ("vit", Task::ImageClassify),
    ] {
        assert_eq!(open(name).task(), task, "{name}");
    }
}

#[test]
fn descriptions() {
    let Family::Gpt2(gpt2) = open("gpt2").config().family.clone() else { panic!("a GPT-2") };
    assert_eq!((gpt2.embed, gpt2.num_heads, gpt2.mlp, gpt2.max_positions), (16, 4, 64, 24));
    assert_eq!(
        (gpt2.activation, gpt2.tied, gpt2.tokens.eos.as_slice()),
        (Activation::GeluTanh, true, &[1][..])
    );
    let Family::Llama(llama) = open("llama-untied").config().family.clone() else { panic!("a LLaMA") };
    assert_eq!((llama.num_heads, llama.num_kv_heads, llama.head_dim, llama.tied), (4, 2, 4, false));
    assert_eq!(llama.rope.theta, 5000.0);
    assert!(matches!(llama.rope.scaling, RopeScaling::Llama3 { original_max_positions: 16, .. }));
    let Family::Bert(bert) = open("bert-tag").config().family.clone() else { panic!("a BERT") };
    assert_eq!(bert.labels.names, ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]);
    assert_eq!((bert.activation, bert.num_segments), (Activation::GeluErf, 2));
    let Family::T5(plain) = open("t5-plain").config().family.clone() else { panic!("a T5") };
    assert_eq!(plain.feed_forward, FeedForward::Plain(Activation::Relu));
    assert!(plain.tied && plain.scale_output && plain.num_decoder_layers == 3);
    let Family::T5(gated) = open("t5-gated").config().family.clone() else { panic!("a T5") };
    assert_eq!(gated.feed_forward, FeedForward::Gated(Activation::GeluTanh));
    // its config.json says tied, as newer versions write; the files hold a head of its own
    assert!(!gated.tied && !gated.scale_output);
    let Family::Vit(vit) = open("vit").config().family.clone() else { panic!("a ViT") };
    assert_eq!((vit.num_patches(), vit.labels.names.len()), (4, 5));
}

#[test]
fn elements_are_where_the_names_say() {
    let directory = open("gpt2");
    let bound = directory.bind().unwrap();
    let fused =
        directory.weights().get("transformer.h.1.attn.c_attn.weight").unwrap().reals::<f32>().unwrap();
    let value = bound.read_all::<f32>("layers.1.attention.value.weight").unwrap().unwrap();
    // [embed, kv_heads, head_dim] = [16, 4, 4] out of [16, 48], the last third
    for (i, v) in value.iter().enumerate() {
        assert_eq!(*v, fused[i / 16 * 48 + 32 + i % 16]);
    }
    let directory = open("llama");
    let bound = directory.bind().unwrap();
    let stored =
        directory.weights().get("model.layers.0.self_attn.q_proj.weight").unwrap().reals::<f64>().unwrap();
    let query = bound.read_all::<f64>("layers.0.attention.query.weight").unwrap().unwrap();
    // [embed, kv_heads, group, head_dim] = [16, 2, 2, 4], stored [heads * head_dim, embed]
    for (i, q) in query.iter().enumerate() {
        assert_eq!(*q, stored[i % 16 * 16 + i / 16]);
    }
    // any part is the same part of the whole, in any precision
    let mut part = [0f32; 7];
    assert!(bound.read("layers.0.attention.query.weight", 50..57, &mut part).unwrap());
    assert!(part.iter().zip(&query[50..57]).all(|(a, b)| f64::from(*a) == *b));
    assert!(bound.read("layers.0.attention.query.weight", 250..257, &mut part).is_err());
    assert!(bound.read("layers.0.attention.query.weight", 0..8, &mut part).is_err());
    assert!(bound.read("layers.0.attention.quarry.weight", 0..7, &mut part).is_err());
}

#[test]
fn batches_are_read() {
    let batch = Weights::open_file(&fixture("gpt2").join("batch.safetensors")).unwrap();
    let ids = batch.get("input_ids").unwrap();
    assert_eq!(ids.shape, [4, 11]);
    assert_eq!(ids.integers().unwrap().len(), 44);
    assert!(batch.get("labels").unwrap().integers().unwrap().contains(&-100));
    assert!(ids.reals::<f32>().unwrap_err().to_string().contains("`input_ids` has type I64"));
    let pixels = Weights::open_file(&fixture("vit").join("batch.safetensors")).unwrap();
    let pixels = pixels.get("pixel_values").unwrap();
    assert_eq!(pixels.shape, [4, 3, 8, 8]);
    assert!(pixels.integers().is_err());
}
