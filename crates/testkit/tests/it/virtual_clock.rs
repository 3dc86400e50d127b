//! Pipelines in virtual time: what is executed is what is simulated, for more ranks than the machine has cores.

use testkit::{Small, full};
use train::pipeline_profile::{Profile, profile};
use train::virtual_clock::Links;

const SCHEDULES: &[(&str, usize)] = &[
    ("gpipe", 1),
    ("1f1b", 1),
    ("zb-h1", 1),
    ("zb-h2", 1),
    ("looped", 2),
    ("interleaved", 2),
    ("zb-v", 2),
    ("dualpipe-v", 2),
];

fn run(name: &str, chunks: usize, pipeline_ranks: usize, links: Links) -> Profile {
    let layers = pipeline_ranks * chunks;
    let small = Small { num_layers: layers, batch: 3 * pipeline_ranks, dropout: 0.0, ..Small::default() };
    let layout = format!(
        "pp={pipeline_ranks};schedule={name};chunks={chunks};num_microbatches={}",
        3 * pipeline_ranks
    );
    profile(&small.layout(&layout), links, 2).unwrap_or_else(|e| panic!("{layout}: {e}"))
}

#[test]
fn the_executed_makespan_is_the_simulated_one_at_the_same_times() {
    let slow = Links { latency_seconds: 1e-4, bytes_per_second: 1e8 };
    let sizes: &[usize] = if full() { &[4, 8, 16] } else { &[4] };
    for pipeline_ranks in sizes {
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
fn a_slow_link_shows_in_the_makespan() {
    let slow = Links { latency_seconds: 0.05, bytes_per_second: f64::INFINITY };
    let (fast, slow) = (run("1f1b", 1, 4, Links::default()), run("1f1b", 1, 4, slow));
    // Six messages on the way of the first microbatch alone.
    assert!(slow.steps[1].makespan() > fast.steps[1].makespan() + 6.0 * 0.05 - 0.02);
}
