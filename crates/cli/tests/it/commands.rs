//! Commands that train nothing for long: explain, parity, schedule, data, tokenizer, completions, help.

use std::process::Stdio;

use serde_json::{Value, json};

use crate::place::{Place, stderr, stdout};

#[test]
fn explain_needs_no_text_and_its_parts_sum() {
    let place = Place::new();
    std::fs::remove_file(place.path().join("text.txt")).unwrap();
    let explained =
        place.json(&["explain", "small.toml", "--mesh", "dp=2,pp=2;zero=2;num_microbatches=2", "--json"]);
    assert_eq!(explained["world_size"], 4);
    let ranks = explained["per_rank"].as_array().unwrap();
    let stages: Vec<u64> = ranks.iter().map(|r| r["stage"].as_u64().unwrap()).collect();
    assert_eq!(stages, [0, 0, 1, 1]);
    for rank in ranks {
        let bytes = |key: &str| rank[key].as_u64().unwrap_or_else(|| panic!("{key} in {rank}"));
        let parts =
            ["parameters_bytes", "gradients_bytes", "optimizer_bytes", "activations_bytes", "buffers_bytes"];
        assert_eq!(parts.iter().map(|key| bytes(key)).sum::<u64>(), bytes("arena_bytes"));
    }
    for entry in explained["communication"].as_array().unwrap() {
        let kinds = ["all_reduce", "reduce_scatter", "all_gather", "all_to_all", "send", "recv"];
        assert!(kinds.contains(&entry["kind"].as_str().unwrap()), "{entry}");
        assert!(entry["axis"].is_string() && entry["phase"].is_string(), "{entry}");
        assert!(entry["count"].as_u64() > Some(0) && entry["bytes_per_rank"].as_u64() > Some(0), "{entry}");
    }
    let placement = &explained["placements"][0];
    assert_eq!(placement["parameter"], "embedding.token");
    assert_eq!(placement["dims"], json!(["vocab", "embed"]));
    assert!(explained.get("programs").is_none());
    assert_eq!(place.contents().len(), 1, "only the configuration is there");
}

#[test]
fn explain_lists_programs_and_prints_tables() {
    let place = Place::new();
    let arguments = ["explain", "small.toml", "--mesh", "tp=2,pp=2", "--program"];
    let text = place.succeed(&arguments);
    for part in
        ["Memory of a rank", "Communication of a step", "tp:kv_heads", "Program of stage 1", "  wait #0"]
    {
        assert!(text.contains(part), "no `{part}` in\n{text}");
    }
    let listed = place.json(&[&arguments[..], &["--json"]].concat());
    assert_eq!(listed["programs"].as_array().map(Vec::len), Some(2));
    assert_eq!(listed["programs"][1]["actions"], json!(["1F0", "1B0"]));
}

#[test]
fn parity_agrees_or_exits_with_1() {
    let place = Place::new();
    let layouts = ["--mesh", "dp=2", "--mesh", "dp=2,tp=2;zero=3;sequence=true"];
    let base = ["parity", "small.toml", "--set", "model.dropout=0.1"];
    let report = place.json(&[&base[..], &layouts, &["--json"]].concat());
    assert_eq!(report["ok"], true, "{report}");
    let second = &report["layouts"][1];
    assert_eq!(
        (&second["mesh"], &second["schedule"], &second["zero"]),
        (&json!("dp=2,tp=2"), &json!("1f1b"), &json!(3))
    );
    for key in ["loss_error", "gradient_error", "parameter_error"] {
        assert!(second[key].as_f64().unwrap() < 1e-8, "{key} in {second}");
    }
    assert!(second["worst_gradient"].is_string());
    let strict = place.run([&base[..], &layouts, &["--tolerance", "0", "--json"]].concat());
    assert_eq!(strict.status.code(), Some(1), "{}", stderr(&strict));
    let strict: Value = serde_json::from_str(&stdout(&strict)).unwrap();
    assert_eq!(strict["ok"], false);
    let text = place.succeed(&base);
    assert!(text.contains("1 of 1 layout agreed"), "{text}");
}

#[test]
fn parity_of_all_layouts_of_two_ranks() {
    let place = Place::new();
    let small = ["--set", "model.num_layers=3", "--max-world", "2", "--steps", "2"];
    let report = place.json(&[&["parity", "small.toml", "--all", "--json"], &small[..]].concat());
    assert_eq!(report["ok"], true, "{report}");
    let meshes: Vec<&str> =
        report["layouts"].as_array().unwrap().iter().map(|l| l["mesh"].as_str().unwrap()).collect();
    for mesh in ["dp=2", "cp=2", "tp=2", "pp=2"] {
        assert!(meshes.contains(&mesh), "no {mesh} in {meshes:?}");
    }
}

#[test]
fn a_profile_accounts_for_the_step_and_leaves_a_trace() {
    let place = Place::new();
    std::fs::remove_file(place.path().join("text.txt")).unwrap();
    let arguments = [
        "profile",
        "small.toml",
        "--mesh",
        "dp=2,pp=2;num_microbatches=2",
        "--steps",
        "2",
        "--trace",
        "t.json",
    ];
    let report = place.json(&[&arguments[..], &["--json"]].concat());
    let number = |value: &Value| value.as_f64().unwrap_or_else(|| panic!("{value}"));
    assert_eq!((&report["world_size"], &report["steps"]), (&json!(4), &json!(2)));
    let classes = report["classes"].as_array().unwrap();
    let class = |name: &str| classes.iter().find(|c| c["class"] == name).unwrap_or_else(|| panic!("{name}"));
    let products = class("contract");
    for key in ["count", "seconds", "gflops", "fraction_of_peak", "gigabytes_per_second"] {
        assert!(number(&products[key]) > 0.0, "{key} in {products}");
    }
    assert!(number(&class("send")["seconds"]) > 0.0 && number(&class("all_reduce")["seconds"]) > 0.0);
    let communication = &report["communication"];
    let [all, exposed, hidden] =
        ["seconds", "exposed_seconds", "hidden_seconds"].map(|key| number(&communication[key]));
    assert!(exposed > 0.0 && hidden >= 0.0 && (exposed + hidden - all).abs() < 1e-9, "{communication}");
    // Compute lies side by side on a rank: with what is exposed and the rest it fills the step.
    let compute: f64 =
        classes.iter().filter(|c| c["queue"] == "compute").map(|c| number(&c["seconds"])).sum();
    let step = number(&report["step_seconds"]);
    assert!((compute + exposed + number(&report["other_seconds"]) - step).abs() < 1e-6 * step, "{report}");
    let needed = number(&report["executed_over_needed"]);
    assert!((0.99..1.5).contains(&needed), "no layout does less than the model needs: {needed}");
    assert!(number(&report["model_flop_utilisation"]) > 0.0);
    let trace: Value = serde_json::from_slice(&std::fs::read(place.path().join("t.json")).unwrap()).unwrap();
    let events = trace["traceEvents"].as_array().unwrap();
    for rank in 0..4 {
        for track in [0, 1] {
            assert!(events.iter().any(|e| e["pid"] == rank && e["tid"] == track && e["ph"] == "X"));
        }
    }
    let text = place.succeed(&["profile", "small.toml", "--set", "parallel.recompute=full", "--steps", "1"]);
    for part in ["Time of a rank in a step", "contract", "Model FLOP utilisation"] {
        assert!(text.contains(part), "no `{part}` in\n{text}");
    }
    let refused = place.run(["profile", "small.toml", "--trace", "no/such/t.json"]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(stderr(&refused).contains("give another file to --trace"), "{}", stderr(&refused));
}

#[test]
fn schedules_are_timed_and_survive_csv() {
    let place = Place::new();
    let base = ["schedule", "1f1b", "--stages", "4", "--microbatches", "8", "--json", "--csv", "s.csv"];
    let made = place.json(&base);
    assert_eq!((&made["makespan"], &made["bubble"]), (&json!(33.0), &json!(9.0)));
    assert!((made["bubble_fraction"].as_f64().unwrap() - 9.0 / 33.0).abs() < 1e-12);
    assert_eq!(made["peak_live_chunks"], json!([4, 3, 2, 1]));
    assert_eq!(made["ranks"][3][0], "3F0");
    let read = place.json(&["schedule", "--from-csv", "s.csv", "--json"]);
    assert_eq!((&read["ranks"], &read["makespan"]), (&made["ranks"], &made["makespan"]));
    let timed = place.json(&["schedule", "--from-csv", "s.csv", "--json", "--times", "1,2,1,0.5"]);
    assert!(timed["makespan"].as_f64() > made["makespan"].as_f64());
    assert!(
        place.succeed(&["schedule", "gpipe", "--stages", "2", "--microbatches", "2"]).contains("|0F0|0F1")
    );
}

#[test]
fn text_is_prepared_once() {
    let place = Place::new();
    let first = place.json(&["data", "prepare", "small.toml", "--json"]);
    assert_eq!((&first["cached"], &first["vocab_size"]), (&json!(false), &json!(300)));
    assert!(first["train"]["tokens"].as_u64() > first["heldout"]["tokens"].as_u64());
    let again = place.json(&["data", "prepare", "small.toml", "--json"]);
    assert_eq!((&again["cached"], &again["cache"]), (&json!(true), &first["cache"]));
    assert!(place.succeed(&["data", "prepare", "small.toml"]).contains("vocabulary: 300"));
    let trained =
        place.json(&["tokenizer", "train", "text.txt", "--vocab", "280", "--out", "t.json", "--json"]);
    assert_eq!(trained["vocab_size"], 280);
    assert!(place.path().join("t.json").is_file());
}

#[test]
fn every_command_has_help_with_an_example() {
    let place = Place::new();
    for command in [
        &["train"][..],
        &["generate"],
        &["explain"],
        &["parity"],
        &["profile"],
        &["gradients"],
        &["export"],
        &["schedule"],
        &["data", "prepare"],
        &["tokenizer", "train"],
        &["completions"],
        &[],
    ] {
        let text = place.succeed(&[command, &["--help"]].concat());
        let example = format!("phalanx {}", command.join(" "));
        assert!(text.contains("Example") && text.contains(&example), "{command:?}: {text}");
    }
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        assert!(place.succeed(&["completions", shell]).contains("phalanx"), "{shell}");
    }
    assert!(place.succeed(&["--version"]).starts_with("phalanx "));
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let place = Place::new();
    let mut child =
        place.command(["completions", "zsh"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    assert_eq!(stderr(&output), "");
}
