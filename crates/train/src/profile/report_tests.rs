//! Reports over records whose sums are known.

use super::*;

fn place(world_size: usize) -> Place {
    Place {
        name: "tiny".to_owned(),
        layout: "dp=2".to_owned(),
        world_size,
        threads_per_rank: 1,
        precision: "f32".to_owned(),
        instruction_set: "avx2".to_owned(),
        tokens_per_step: 100,
    }
}

fn record(rank: usize, step: u64, class: &'static str, start: f64, end: f64) -> Record {
    let queue = if class == "all_reduce" { Queue::Communication } else { Queue::Compute };
    let flops = if class == "contract" { 6e9 } else { 0.0 };
    Record {
        rank,
        queue,
        name: class.into(),
        class,
        start_seconds: start,
        end_seconds: end,
        flops,
        bytes: 1e9,
        stage: None,
        microbatch: 0,
        step,
    }
}

/// Two ranks, two steps of 4 seconds: 2 of products, 1 of norms; an all_reduce of 2, half of it behind the norms. The
/// second rank has nothing to do at the end.
fn records() -> Vec<Record> {
    let of = |rank, step, begin: f64| {
        let mut records = vec![
            record(rank, step, "contract", begin, begin + 2.0),
            record(rank, step, "all_reduce", begin + 2.0, begin + 4.0),
            record(rank, step, "norm", begin + 2.5, begin + 3.5),
        ];
        records.truncate(if rank == 1 { 1 } else { 3 });
        records
    };
    [of(0, 1, 10.0), of(0, 2, 20.0), of(1, 1, 10.0), of(1, 2, 20.0)].concat()
}

fn report() -> Report {
    let peaks = Peaks { flops_per_second: 12e9, bytes_per_second: 8e9 };
    Report::new(&place(2), &peaks, 9e9, &records())
}

#[test]
fn steps_and_classes_sum_up() {
    let report = report();
    assert_eq!((report.steps, report.step_seconds, report.tokens_per_second), (2, 4.0, 25.0));
    let classes: Vec<_> =
        report.classes.iter().map(|c| (c.class, c.queue, c.count, c.seconds, c.fraction)).collect();
    assert_eq!(
        classes,
        [
            ("contract", "compute", 1.0, 2.0, 0.5),
            ("all_reduce", "communication", 0.5, 1.0, 0.25),
            ("norm", "compute", 0.5, 0.5, 0.125)
        ]
    );
    let contract = &report.classes[0];
    // 6 GFLOP in 2 s on one of two ranks that give 12 together; 1 GB in 2 s of 4 a rank.
    assert_eq!((contract.gflops, contract.fraction_of_peak), (Some(3.0), Some(0.5)));
    assert_eq!((contract.gigabytes_per_second, contract.fraction_of_bandwidth), (0.5, Some(0.125)));
    assert_eq!((report.classes[1].fraction_of_bandwidth, report.classes[2].gflops), (None, None));
}

#[test]
fn communication_is_exposed_or_hidden() {
    let report = report();
    // Of rank 0; the mean has two ranks.
    let expected = Communication { seconds: 1.0, exposed_seconds: 0.5, hidden_seconds: 0.5, bytes: 0.5e9 };
    assert_eq!(report.communication, expected);
    // Rank 0 is busy all 4 seconds, rank 1 for 2.
    assert_eq!(report.other_seconds, 1.0);
}

#[test]
fn utilisation_counts_what_the_model_needs() {
    let report = report();
    assert_eq!(report.executed_over_needed, 12.0 / 9.0);
    assert_eq!(report.model_flop_utilisation, 9.0 / 4.0 / 12.0);
}

#[test]
fn a_report_reads_well_and_is_json() {
    let text = report().to_string();
    for part in ["tiny: 2 ranks (dp=2) of 1 thread, f32 on avx2; 2 steps of 4000.00 ms", "500.000 hidden"] {
        assert!(text.contains(part), "no `{part}` in\n{text}");
    }
    let json = serde_json::to_value(report()).unwrap();
    assert_eq!((&json["world_size"], &json["communication"]["exposed_seconds"]), (&2.into(), &0.5.into()));
    assert!(json["classes"][2].get("gflops").is_none());
}

#[test]
fn nothing_is_a_report_of_zeros() {
    let report = Report::new(&place(1), &Peaks { flops_per_second: 1.0, bytes_per_second: 1.0 }, 0.0, &[]);
    assert_eq!((report.steps, report.step_seconds, report.model_flop_utilisation), (0, 0.0, 0.0));
    assert!(!report.to_string().contains("NaN"));
}
