//! Explanations against what the runtime reserves and against arithmetic by hand.

use std::path::Path;

use super::*;

const SMALL: &str = "[model]\nfamily = \"llama\"\nnum_layers = 4\nembed = 16\nnum_heads = 4\nnum_kv_heads = 2\nmlp = 24\n\
                     vocab_size = 40\ntied = false\n[data]\nsequence_length = 8\n[train]\nbatch = 8\n";

fn config(layout: &str) -> Config {
    Config::from_bytes(Path::new("small.toml"), SMALL.as_bytes(), &[], Some(layout)).unwrap()
}

#[test]
fn arenas_are_what_the_runtime_would_reserve_and_parts_sum_to_them() {
    for layout in [
        "dp=1",
        "dp=2;zero=3",
        "tp=2;sequence=true",
        "pp=2,dp=2;num_microbatches=2;zero=2",
        "cp=2,pp=4",
        "pp=2;num_microbatches=4;recompute=selective",
        "pp=2;num_microbatches=4;schedule=zb-h2;recompute=full;post_validation=true",
    ] {
        let config = config(layout);
        let explanation = explain(&config).unwrap();
        assert_eq!(explanation.per_rank.len(), explanation.world_size);
        let built = assemble::model(&config, None).unwrap();
        let steps = assemble::steps(&config, &built).unwrap();
        for (number, rank) in explanation.per_rank.iter().enumerate() {
            assert_eq!(rank.rank, number);
            assert_eq!(rank.stage, steps[0].plan.mesh.coord(number).get(Axis::Pp));
            let program = |s: &Stepper| s.program(rank.stage, &Chooser::Policy, false).unwrap();
            let programs: Vec<Program> = steps.iter().map(program).collect();
            let bound: Vec<_> = steps.iter().map(|s| &s.plan).zip(&programs).collect();
            let memory = RankMemory::of(&bound, 1);
            assert_eq!(rank.arena_bytes, memory.arena_bytes() as u64, "{layout}");
            assert_eq!(rank.parameters_bytes + rank.optimizer_bytes, memory.state_bytes as u64, "{layout}");
            let parts = rank.parameters_bytes
                + rank.gradients_bytes
                + rank.optimizer_bytes
                + rank.activations_bytes
                + rank.buffers_bytes;
            assert_eq!(parts, rank.arena_bytes, "{layout}");
        }
    }
}

#[test]
fn communication_is_counted_by_hand() {
    let one = explain(&config("dp=1")).unwrap();
    assert_eq!((one.communication, one.bubble_fraction), (vec![], 0.0));
    // One pipeline boundary: activations of a microbatch forth, their gradients back.
    let two = explain(&config("pp=2;num_microbatches=4")).unwrap();
    let activations = 4 * 2 * 8 * 16 * 4;
    for (phase, kind) in
        [("forward", "send"), ("forward", "recv"), ("backward", "send"), ("backward", "recv")]
    {
        let found =
            two.communication.iter().find(|c| c.phase == phase && c.kind == kind && c.axis == "pp").unwrap();
        assert_eq!((found.count, found.bytes_per_rank), (4, activations), "{phase} {kind}");
    }
    // Plain data parallelism: every gradient once, and the statistics.
    let dp = explain(&config("dp=2")).unwrap();
    let reduced: u64 = dp
        .communication
        .iter()
        .filter(|c| c.kind == "all_reduce" && c.axis == "dp")
        .map(|c| c.bytes_per_rank)
        .sum();
    let gradients = dp.num_parameters * 4;
    assert!((gradients..gradients + 1024).contains(&reduced), "{reduced} is not about {gradients}");
}

#[test]
fn placements_name_dims() {
    let explanation = explain(&config("dp=2,tp=2;zero=3")).unwrap();
    let query =
        explanation.placements.iter().find(|p| p.parameter == "layers.0.attention.query.weight").unwrap();
    assert_eq!(query.dims, ["embed", "kv_heads", "group", "head_dim"]);
    assert_eq!(query.shape, [16, 2, 2, 4]);
    assert_eq!(query.layout, "dp:flat tp:kv_heads");
    let total: u64 =
        explanation.placements.iter().map(|p| p.shape.iter().map(|n| *n as u64).product::<u64>()).sum();
    assert_eq!(total, explanation.num_parameters);
}

#[test]
fn listings_name_every_instruction() {
    let config = config("pp=2,dp=2;num_microbatches=2");
    let listings = listing(&config).unwrap();
    assert_eq!(listings.len(), 2);
    let text = listings[1].lines.join("\n");
    for part in [
        "recv",
        "contract layers.3.mlp.down",
        "[batch seq embed]",
        "all_reduce(sum) over dp",
        "wait #",
        "KiB",
    ] {
        assert!(text.contains(part), "no `{part}` in\n{text}");
    }
    assert!(text.lines().all(|line| line.starts_with("  ") || line.ends_with(':')));
}

#[test]
fn a_table_has_no_empty_ends() {
    let text = explain(&config("pp=2,dp=2;zero=1")).unwrap().to_string();
    assert!(text.lines().all(|line| line == line.trim_end()));
    for part in ["Memory of a rank", "0-1", "2-3", "layers.*.mlp.up.weight", "embed 16 x mlp 24"] {
        assert!(text.contains(part), "no `{part}` in\n{text}");
    }
}

#[test]
fn what_does_not_fit_is_refused_with_the_sum() {
    let mib = 1 << 20;
    fits(&[3 * mib, 4 * mib], 7 * mib).unwrap();
    let message = fits(&[3 * mib, 4 * mib, 3 * mib], 9 * mib).unwrap_err().to_string();
    assert!(message.contains("needs 10 MiB (1 rank x 4 MiB + 2 ranks x 3 MiB)"), "{message}");
    assert!(message.contains("has 9 MiB free"), "{message}");
    assert!(fits(&[u64::MAX, u64::MAX], u64::MAX - 1).is_err());
    check_memory(&[1]).unwrap();
}

#[test]
fn absurd_sizes_are_refused_before_any_arithmetic_overflows() {
    for (set, key) in [
        ("model.num_layers=1000000", "model.num_layers"),
        ("model.mlp=1099511627776", ""),
        ("model.embed=1099511627776", "model.embed"),
        ("model.mlp=1000000000", ""),
        ("model.vocab_size=1099511627776", ""),
        ("train.batch=1000000000000", "train.batch"),
        ("data.sequence_length=1099511627776", "data.sequence_length"),
    ] {
        let sets = [set.to_owned()];
        let config = Config::from_bytes(Path::new("small.toml"), SMALL.as_bytes(), &sets, None).unwrap();
        let result = explain(&config);
        assert_eq!(result.is_err(), !key.is_empty(), "{set}");
        let message = result.err().map_or(String::new(), |e| e.to_string());
        assert!(message.contains(key), "{set}: {message}");
    }
}

#[test]
fn the_largest_published_model_is_explained_at_once() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/llama3-405b.toml");
    let config = Config::load(&path, &[], None).unwrap();
    let start = std::time::Instant::now();
    let explanation = explain(&config).unwrap();
    let seconds = start.elapsed().as_secs_f64();
    println!("{seconds:.2} s\n{explanation}");
    assert_eq!((explanation.world_size, explanation.per_rank.len()), (16384, 16384));
    assert_eq!(explanation.num_parameters, 405_853_388_800);
    if !cfg!(debug_assertions) {
        assert!(seconds < 2.0, "{seconds} s");
    }
}
