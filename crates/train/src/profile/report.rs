//! Records summed up: time by class of operation beside the machine's best, communication that compute hides and that
//! it does not, and how much of the machine the model used. Everything is the mean over steps and ranks.

use std::collections::BTreeMap;
use std::fmt;

use runtime::Queue;
use serde::Serialize;

use super::intervals::Intervals;
use super::{Peaks, Record};

/// What was profiled.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Place {
    /// The configuration's.
    pub name: String,
    /// The mesh, for people.
    pub layout: String,
    /// Ranks.
    pub world_size: usize,
    /// Of each rank.
    pub threads_per_rank: usize,
    /// Of computation.
    pub precision: String,
    /// That kernels used.
    pub instruction_set: String,
    /// Positions of all sequences of a step.
    pub tokens_per_step: usize,
}

/// A step, the mean of all profiled ones.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// What was profiled.
    #[serde(flatten)]
    pub place: Place,
    /// Profiled steps.
    pub steps: usize,
    /// From the first begin on any rank to the last end on any.
    pub step_seconds: f64,
    /// Positions a second.
    pub tokens_per_second: f64,
    /// Products of all ranks at their best, within the cache.
    pub peak_gflops: f64,
    /// Memory of all ranks at its best: bytes read and written by copies beyond the cache.
    pub peak_gigabytes_per_second: f64,
    /// By class, longest first.
    pub classes: Vec<Share>,
    /// Between ranks.
    pub communication: Communication,
    /// Of a step and a rank, what no record covers: the loop itself, and waiting for the step's last rank.
    pub other_seconds: f64,
    /// Operations in products of a step, each needed one once.
    pub model_gflop: f64,
    /// Operations that were executed over those that the model needs: more where layouts repeat or recompute.
    pub executed_over_needed: f64,
    /// The model's operations a second over the peak.
    pub model_flop_utilisation: f64,
}

/// What one class of operations takes of a rank's step.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Share {
    /// Its name.
    pub class: &'static str,
    /// `compute` or `communication`.
    pub queue: &'static str,
    /// Executions.
    pub count: f64,
    /// Time. Of communication: from start to the end of the wait, hidden or not.
    pub seconds: f64,
    /// Of the step's time.
    pub fraction: f64,
    /// Operations of products in this time; none for classes without any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gflops: Option<f64>,
    /// Those over a rank's part of the peak. Above 1 where ranks take turns on too few cores, and each has more of
    /// them than its part.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fraction_of_peak: Option<f64>,
    /// Bytes in this time; of communication, those sent.
    pub gigabytes_per_second: f64,
    /// Those over a rank's part of memory's peak; of compute alone. Above 1 where the cache serves.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fraction_of_bandwidth: Option<f64>,
}

/// Communication of a rank in a step.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Communication {
    /// Time in which something was under way.
    pub seconds: f64,
    /// Of this, without compute on the same rank.
    pub exposed_seconds: f64,
    /// Of this, behind compute on the same rank.
    pub hidden_seconds: f64,
    /// Sent.
    pub bytes: f64,
}

#[derive(Default)]
struct Sum {
    count: f64,
    seconds: f64,
    flops: f64,
    bytes: f64,
}

impl Report {
    /// Sums up the records of whole steps. `model_flops` are the operations in products that a step needs.
    pub fn new(place: &Place, peaks: &Peaks, model_flops: f64, records: &[Record]) -> Report {
        let mut by_step: BTreeMap<u64, BTreeMap<usize, Vec<&Record>>> = BTreeMap::new();
        for record in records {
            by_step.entry(record.step).or_default().entry(record.rank).or_default().push(record);
        }
        let steps = by_step.len();
        // Of a rank in a step, in the mean.
        let mean = 1.0 / (steps * place.world_size).max(1) as f64;
        let mut sums: BTreeMap<(Queue, &'static str), Sum> = BTreeMap::new();
        for record in records {
            let sum = sums.entry((record.queue, record.class)).or_default();
            sum.count += mean;
            sum.seconds += mean * (record.end_seconds - record.start_seconds);
            sum.flops += mean * record.flops;
            sum.bytes += mean * record.bytes;
        }
        let time = |record: &&Record| (record.start_seconds, record.end_seconds);
        let (mut all_seconds, mut busy, mut exposed, mut hidden) = (0.0, 0.0, 0.0, 0.0);
        for of_step in by_step.values() {
            all_seconds += Intervals::of(of_step.values().flatten().map(time)).span_seconds();
            for of_rank in of_step.values() {
                let of = |queue| Intervals::of(of_rank.iter().filter(|r| r.queue == queue).map(time));
                let (compute, communication) = (of(Queue::Compute), of(Queue::Communication));
                let common = communication.common_seconds(&compute);
                hidden += mean * common;
                exposed += mean * (communication.seconds() - common);
                busy += mean * (compute.seconds() + communication.seconds() - common);
            }
        }
        let step_seconds = all_seconds / steps.max(1) as f64;
        let executed = sums.values().map(|sum| sum.flops).sum::<f64>() * place.world_size as f64;
        let sent = sums.iter().filter(|((queue, _), _)| *queue == Queue::Communication);
        let bytes = sent.map(|(_, sum)| sum.bytes).sum();
        let ranks = place.world_size as f64;
        let mut classes: Vec<Share> = sums
            .iter()
            .map(|((queue, class), sum)| {
                let flops = (sum.flops > 0.0).then(|| over(sum.flops, sum.seconds));
                let bytes = over(sum.bytes, sum.seconds);
                let computes = *queue == Queue::Compute;
                Share {
                    class,
                    queue: if computes { "compute" } else { "communication" },
                    count: sum.count,
                    seconds: sum.seconds,
                    fraction: over(sum.seconds, step_seconds),
                    gflops: flops.map(|flops| flops / 1e9),
                    fraction_of_peak: flops.map(|flops| over(flops, peaks.flops_per_second / ranks)),
                    gigabytes_per_second: bytes / 1e9,
                    fraction_of_bandwidth: computes.then(|| over(bytes, peaks.bytes_per_second / ranks)),
                }
            })
            .collect();
        classes.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
        Report {
            place: place.clone(),
            steps,
            step_seconds,
            tokens_per_second: over(place.tokens_per_step as f64, step_seconds),
            peak_gflops: peaks.flops_per_second / 1e9,
            peak_gigabytes_per_second: peaks.bytes_per_second / 1e9,
            classes,
            communication: Communication {
                seconds: exposed + hidden,
                exposed_seconds: exposed,
                hidden_seconds: hidden,
                bytes,
            },
            other_seconds: (step_seconds - busy).max(0.0),
            model_gflop: model_flops / 1e9,
            executed_over_needed: over(executed, model_flops),
            model_flop_utilisation: over(over(model_flops, step_seconds), peaks.flops_per_second),
        }
    }
}

/// A quotient; 0 where there is nothing to divide by.
fn over(amount: f64, by: f64) -> f64 {
    if by > 0.0 { amount / by } else { 0.0 }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Place { name, layout, world_size, threads_per_rank, precision, instruction_set, .. } =
            &self.place;
        let plural =
            |count: usize, what: &str| format!("{count} {what}{}", if count == 1 { "" } else { "s" });
        writeln!(
            f,
            "{name}: {} ({layout}) of {}, {precision} on {instruction_set}; {} of {:.2} ms, {:.0} tokens/s",
            plural(*world_size, "rank"),
            plural(*threads_per_rank, "thread"),
            plural(self.steps, "step"),
            1e3 * self.step_seconds,
            self.tokens_per_second
        )?;
        writeln!(
            f,
            "Measured peaks of all ranks together: {:.1} GFLOP/s, memory {:.1} GB/s",
            self.peak_gflops, self.peak_gigabytes_per_second
        )?;
        writeln!(f, "\nTime of a rank in a step")?;
        writeln!(
            f,
            "  {:<24}{:>7}{:>11}{:>9}{:>10}{:>9}{:>9}{:>11}",
            "class", "count", "ms", "of step", "GFLOP/s", "of peak", "GB/s", "of memory"
        )?;
        let percent = |fraction: f64| format!("{:.1} %", 100.0 * fraction);
        for share in &self.classes {
            let gflops = share.gflops.map_or(String::new(), |gflops| format!("{gflops:.1}"));
            writeln!(
                f,
                "  {:<24}{:>7.0}{:>11.3}{:>9}{:>10}{:>9}{:>9.2}{:>11}",
                share.class,
                share.count,
                1e3 * share.seconds,
                percent(share.fraction),
                gflops,
                share.fraction_of_peak.map_or(String::new(), percent),
                share.gigabytes_per_second,
                share.fraction_of_bandwidth.map_or(String::new(), percent)
            )?;
        }
        let other = percent(over(self.other_seconds, self.step_seconds));
        writeln!(f, "  {:<24}{:>7}{:>11.3}{other:>9}", "(other)", "", 1e3 * self.other_seconds)?;
        let Communication { seconds, exposed_seconds, hidden_seconds, bytes } = self.communication;
        writeln!(
            f,
            "\nCommunication of a rank in a step: {:.3} ms, {:.3} exposed and {:.3} hidden behind compute; {:.2} MB sent",
            1e3 * seconds,
            1e3 * exposed_seconds,
            1e3 * hidden_seconds,
            bytes / 1e6
        )?;
        writeln!(
            f,
            "Model FLOP utilisation: {} ({:.3} GFLOP needed in a step, {:.2} times that executed)",
            percent(self.model_flop_utilisation),
            self.model_gflop,
            self.executed_over_needed
        )
    }
}

#[cfg(test)]
#[path = "report_tests.rs"]
mod tests;
