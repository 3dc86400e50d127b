//! Against the values of scikit-learn, seqeval and sacrebleu (`fixtures/make.py`).

use metrics::{Average, Scores, Tokenizer, bleu, chrf, classification, entities, entity_scores};
use proptest::prelude::*;
use serde_json::Value;

fn expected(section: &str) -> Vec<Value> {
    let all: Value = serde_json::from_str(include_str!("../../fixtures/expected.json")).unwrap();
    all[section].as_array().unwrap().clone()
}

fn get<T: serde::de::DeserializeOwned>(value: &Value) -> T {
    serde_json::from_value(value.clone()).unwrap()
}

fn near(a: f64, b: f64) -> bool {
    (a - b).abs() <= 1e-12 * b.abs().max(1.0)
}

fn tokenizer(name: &str) -> Tokenizer {
    [Tokenizer::Mteval13a, Tokenizer::Chinese, Tokenizer::Character, Tokenizer::WhiteSpace]
        .into_iter()
        .find(|t| t.name() == name)
        .unwrap()
}

#[test]
fn words_are_sacrebleus() {
    for case in expected("words") {
        let text: String = get(&case["text"]);
        let name: String = get(&case["tokenizer"]);
        let words: Vec<String> = get(&case["words"]);
        assert_eq!(tokenizer(&name).words(&text), words, "{name}: {text:?}");
    }
}

#[test]
fn bleu_and_chrf_are_sacrebleus() {
    let cases = expected("translations");
    assert!(cases.len() > 30);
    for case in cases {
        let outputs: Vec<String> = get(&case["outputs"]);
        let references: Vec<Vec<String>> = get(&case["references"]);
        for (name, expected) in case["bleu"].as_object().unwrap() {
            let found = bleu(&outputs, &references, tokenizer(name)).unwrap();
            assert_eq!(found.matches, get::<[u64; 4]>(&expected["matches"]), "{name} {case}");
            assert_eq!(found.totals, get::<[u64; 4]>(&expected["totals"]), "{name} {case}");
            assert_eq!(found.output_words, get::<u64>(&expected["output_words"]));
            assert_eq!(found.reference_words, get::<u64>(&expected["reference_words"]), "{name} {case}");
            assert!(near(found.brevity_penalty, get(&expected["brevity_penalty"])), "{name} {case}");
            let precisions: [f64; 4] = get(&expected["precisions"]);
            assert!(found.precisions.iter().zip(precisions).all(|(a, b)| near(*a, b)), "{name} {case}");
            assert!(near(found.score, get(&expected["score"])), "{name}: {found:?} {expected}");
        }
        assert!(near(chrf(&outputs, &references).unwrap(), get(&case["chrf"])), "{case}");
    }
}

#[test]
fn entities_are_seqevals() {
    let cases = expected("tags");
    assert!(cases.len() > 20);
    for case in cases {
        let predictions: Vec<Vec<String>> = get(&case["predictions"]);
        let references: Vec<Vec<String>> = get(&case["references"]);
        let wanted: Vec<Vec<(String, usize, usize)>> = get(&case["entities"]);
        for (tags, wanted) in predictions.iter().zip(wanted) {
            let found: Vec<_> = entities(tags).into_iter().map(|e| (e.kind, e.start, e.last)).collect();
            assert_eq!(found, wanted, "{tags:?}");
        }
        let found = entity_scores(&predictions, &references).unwrap();
        let report = case["report"].as_object().unwrap();
        let same = |scores: Scores, key: &str| {
            let row = &report[key];
            near(scores.precision, get(&row["precision"]))
                && near(scores.recall, get(&row["recall"]))
                && near(scores.f1, get(&row["f1-score"]))
        };
        for (kind, counts) in &found.kinds {
            assert!(same(counts.scores(), kind), "{kind} {case}");
            assert_eq!(counts.actual as f64, get::<f64>(&report[kind]["support"]));
        }
        assert_eq!(found.kinds.len() + 3, report.len());
        assert!(same(found.average(Average::Micro), "micro avg"), "{case}");
        assert!(same(found.average(Average::Macro), "macro avg"), "{case}");
        assert!(same(found.average(Average::Weighted), "weighted avg"), "{case}");
        assert!(near(found.accuracy(), get(&case["accuracy"])), "{case}");
    }
}

#[test]
fn classes_are_scikit_learns() {
    for case in expected("classes") {
        let predictions: Vec<usize> = get(&case["predictions"]);
        let references: Vec<usize> = get(&case["references"]);
        let found = classification(&predictions, &references, get(&case["num_classes"])).unwrap();
        for (how, key) in
            [(Average::Micro, "micro"), (Average::Macro, "macro"), (Average::Weighted, "weighted")]
        {
            let scores = found.average(how);
            let wanted: [f64; 3] = get(&case[key]);
            assert!(
                [scores.precision, scores.recall, scores.f1].iter().zip(wanted).all(|(a, b)| near(*a, b)),
                "{key} {case}"
            );
        }
        assert!(near(found.accuracy(), found.average(Average::Micro).f1));
        let rows: Vec<[f64; 4]> = get(&case["classes"]);
        for (counts, [precision, recall, f1, support]) in found.classes.iter().zip(rows) {
            let found = counts.scores();
            assert!(near(found.precision, precision) && near(found.recall, recall) && near(found.f1, f1));
            assert_eq!(counts.actual as f64, support);
        }
        let most = found.classes.iter().map(|c| c.actual).max().unwrap();
        assert!(near(found.majority_baseline(), most as f64 / predictions.len() as f64));
    }
}

#[test]
fn what_does_not_belong_together_is_refused() {
    let none: Vec<Vec<String>> = vec![vec![]];
    assert!(bleu(&["a"], &none, Tokenizer::Mteval13a).unwrap_err().to_string().contains("segment 0"));
    assert!(chrf(&["a"], &none).is_err());
    assert!(bleu(&["a", "b"], &none, Tokenizer::Mteval13a).is_err() && chrf(&["a", "b"], &none).is_err());
    assert!(classification(&[0, 3], &[0, 1], 3).unwrap_err().to_string().contains("label 3 at index 1"));
    assert!(classification(&[0], &[0, 1], 3).is_err());
    assert!(entity_scores(&[vec!["O"]], &[vec!["O", "O"]]).unwrap_err().to_string().contains("sequence 0"));
    assert!(entity_scores(&[vec!["O"]], &[]).is_err());
    // nothing at all is 0, not a failure
    assert_eq!(classification(&[], &[], 2).unwrap().accuracy(), 0.0);
    assert_eq!(chrf::<&str, &str>(&[], &[]).unwrap(), 0.0);
    assert_eq!(bleu::<&str, &str>(&[], &[], Tokenizer::Chinese).unwrap().score, 0.0);
}

proptest! {
    #[test]
    fn any_text_has_a_score(output in ".{0,40}", reference in ".{0,40}") {
        for t in [Tokenizer::Mteval13a, Tokenizer::Chinese, Tokenizer::Character, Tokenizer::WhiteSpace] {
            let found = bleu(&[&output], &[vec![&reference]], t).unwrap();
            prop_assert!((0.0..=100.0 + 1e-9).contains(&found.score));
        }
        let itself = chrf(&[&output], &[vec![&output]]).unwrap();
        prop_assert!(itself == 0.0 || (itself - 100.0).abs() < 1e-9);
    }

    #[test]
    fn any_tags_have_entities(tags in prop::collection::vec("[OBIES.-]{0,4}[A-Z]{0,2}", 0..12)) {
        for entity in entities(&tags) {
            prop_assert!(entity.start <= entity.last && entity.last < tags.len());
        }
        let scores = entity_scores(std::slice::from_ref(&tags), std::slice::from_ref(&tags)).unwrap().average(Average::Micro);
        prop_assert!(scores.f1 == 0.0 || scores.f1 == 1.0);
    }
}
