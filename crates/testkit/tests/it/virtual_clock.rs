//! Pipelines in virtual time: what is executed is what is simulated, for more ranks than the machine has cores.

use std::path::Path;

use testkit::{Small, full, measure};
use train::config::Config;
use train::pipeline_profile::{Profile, Step, profile};
use train::virtual_clock::Links;

const SCHEDULES: &[(&str, usize)] = &[
    ("gpipe", 1),
    ("1f1b", 1),
    ("zb-h1", 1),
    ("zb-h2", 1),
    ("auto", 1),
    ("looped", 2),
    ("interleaved", 2),
    ("zb-v", 2),
    ("dualpipe-v", 2),
    ("auto", 2),
];

/// Numbers of pipeline ranks.
fn sizes() -> &'static [usize] {
    if full() { &[4, 8, 16] } else { &[4] }
}

fn run(name: &str, chunks: usize, pipeline_ranks: usize, links: Links) -> Profile {
    let layers = pipeline_ranks * chunks;
    let small = Small { num_layers: layers, batch: 3 * pipeline_ranks, dropout: 0.0, ..Small::default() };
    let layout = format!(
        "pp={pipeline_ranks};schedule={name};chunks={chunks};num_microbatches={}",
        3 * pipeline_ranks
    );
    profile(&small.layout(&layout), links, 2).unwrap_or_else(|e| panic!("{layout}: {e}"))
}

/// Five steps of a model with one layer on each stage, whose actions take some tenths of a millisecond.
fn timed(name: &str, chunks: usize, pipeline_ranks: usize) -> Profile {
    let (layers, microbatches) = (pipeline_ranks * chunks, 2 * pipeline_ranks);
    let text = format!(
        "[model]\nfamily = \"gpt2\"\nnum_layers = {layers}\nembed = 64\nnum_heads = 4\nvocab_size = 100\n\
         tied = false\n[data]\nsequence_length = 64\n[train]\nbatch = {microbatches}\nprecision = \"f32\"\n"
    );
    let layout =
        format!("pp={pipeline_ranks};schedule={name};chunks={chunks};num_microbatches={microbatches}");
    let config = Config::from_bytes(Path::new("timed.toml"), text.as_bytes(), &[], Some(&layout)).unwrap();
    let links = Links { latency_seconds: 1e-5, bytes_per_second: 1e9 };
    profile(&config, links, 5).unwrap_or_else(|e| panic!("{layout}: {e}"))
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

#[test]
fn the_executed_makespan_is_the_simulated_one_at_the_same_times() {
    let slow = Links { latency_seconds: 1e-4, bytes_per_second: 1e8 };
    for pipeline_ranks in sizes() {
        for (name, chunks) in SCHEDULES {
            for links in [Links::default(), slow] {
                let profile = run(name, *chunks, *pipeline_ranks, links);
                for step in &profile.steps {
                    let simulated = profile.simulate(&step.durations()).unwrap();
                    let error = (simulated.makespan - step.makespan()).abs();
                    assert!(
                        error <= 1e-9,
                        "{name} on {pipeline_ranks}: executed {}, simulated {}",
                        step.makespan(),
                        simulated.makespan
                    );
                    assert!(step.makespan() > 0.0);
                    // The order and the number of actions are the schedule's.
                    for (executed, listed) in step.ranks.iter().zip(&profile.schedule.ranks) {
                        assert!(executed.iter().map(|e| e.action).eq(listed.iter().copied()));
                    }
                }
            }
        }
    }
}

#[test]
fn the_executed_makespan_is_near_the_one_simulated_from_times_before() {
    for pipeline_ranks in sizes() {
        for (name, chunks) in SCHEDULES {
            let error = || {
                let profile = timed(name, *chunks, *pipeline_ranks);
                let predicted = profile.simulate(&profile.expected()).unwrap().makespan;
                median(profile.steps.iter().map(|step| predicted / step.makespan() - 1.0).collect())
            };
            let tries = measure(error, |error| error.abs() <= 0.07);
            let percent: Vec<String> = tries.iter().map(|error| format!("{:+.1}", 100.0 * error)).collect();
            println!("{pipeline_ranks} ranks, {name} with {chunks} chunks: {} %", percent.join(", "));
            assert!(tries[tries.len() - 1].abs() <= 0.07, "{name} on {pipeline_ranks}: off by {percent:?} %");
        }
    }
}

#[test]
fn measured_bubbles_are_near_their_forms() {
    println!("| ranks | schedule | F, I, W (ms) | bubble measured (ms) | by the form (ms) | of the span |");
    println!("|---|---|---|---|---|---|");
    for pipeline_ranks in sizes() {
        let mut fractions = Vec::new();
        for (name, chunks) in [("1f1b", 1), ("zb-h1", 1), ("zb-v", 2)] {
            let bubble = || {
                let profile = timed(name, chunks, *pipeline_ranks);
                let timeline = |step: &Step| profile.simulate(&step.durations()).unwrap();
                let measured = median(profile.steps.iter().map(|s| timeline(s).bubble).collect());
                let span = median(profile.steps.iter().map(|s| timeline(s).longest_span).collect());
                let form = profile.on_paper().unwrap().bubble;
                let times: Vec<String> = profile
                    .report()
                    .unwrap()
                    .action_seconds
                    .iter()
                    .map(|(kind, seconds)| format!("{kind} {:.3}", seconds * 1e3))
                    .collect();
                println!(
                    "| {pipeline_ranks} | {name} | {} | {:.3} | {:.3} | {:.1} % |",
                    times.join(", "),
                    measured * 1e3,
                    form * 1e3,
                    100.0 * measured / span
                );
                ((measured - form) / span, measured / span)
            };
            let tries = measure(bubble, |(error, _)| error.abs() <= 0.07);
            let (error, fraction) = tries[tries.len() - 1];
            assert!(error.abs() <= 0.07, "{name} on {pipeline_ranks}: off by, and of the span: {tries:?}");
            fractions.push(fraction);
        }
        let [one, h1, v] = fractions[..] else { unreachable!("three schedules") };
        assert!(h1 < one && v < one, "bubbles of {pipeline_ranks} ranks: {fractions:?}");
    }
}

#[test]
fn a_slow_link_shows_in_the_makespan() {
    let slow = Links { latency_seconds: 0.05, bytes_per_second: f64::INFINITY };
    let (fast, slow) = (run("1f1b", 1, 4, Links::default()), run("1f1b", 1, 4, slow));
    // Six messages on the way of the first microbatch alone.
    assert!(slow.steps[1].makespan() > fast.steps[1].makespan() + 6.0 * 0.05 - 0.02);
}
