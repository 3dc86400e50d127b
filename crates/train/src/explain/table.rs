//! An explanation for people: aligned columns, sizes in binary units, equal rows once. No new numbers.

use std::collections::BTreeMap;
use std::fmt;

use super::{Explanation, RankBytes};

/// Bytes in the largest unit that keeps a digit before the point.
pub(super) fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// A large number with its unit: `405.9 G`.
fn count(n: u64) -> String {
    match n {
        0..=9_999 => n.to_string(),
        10_000..=999_999 => format!("{:.1} thousand", n as f64 / 1e3),
        1_000_000..=999_999_999 => format!("{:.1} million", n as f64 / 1e6),
        _ => format!("{:.1} billion", n as f64 / 1e9),
    }
}

/// Rows with every column as wide as its widest cell; the first `left` columns are aligned to the left.
fn columns(f: &mut fmt::Formatter<'_>, rows: &[Vec<String>], left: usize) -> fmt::Result {
    let num_columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |c: usize| rows.iter().filter_map(|r| r.get(c)).map(|s| s.chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..num_columns).map(width).collect();
    for row in rows {
        let mut line = String::new();
        for (c, cell) in row.iter().enumerate() {
            let width = widths[c];
            match c < left {
                true => line.push_str(&format!("  {cell:<width$}")),
                false => line.push_str(&format!("  {cell:>width$}")),
            }
        }
        writeln!(f, "{}", line.trim_end())?;
    }
    Ok(())
}

fn row<const N: usize>(cells: [&str; N]) -> Vec<String> {
    cells.map(str::to_owned).to_vec()
}

fn number(n: usize, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{}: {} parameters ({}) on {} ({}), {}, ZeRO {}, schedule {} with {} (bubble {:.1} %)",
            self.name,
            count(self.num_parameters),
            self.num_parameters,
            number(self.world_size, "rank"),
            self.mesh,
            self.precision,
            self.zero,
            self.schedule,
            number(self.num_microbatches, "microbatch").replace("hs", "hes"),
            100.0 * self.bubble_fraction,
        )?;
        if let [shorter @ .., longest] = &self.length_buckets[..]
            && !shorter.is_empty()
        {
            let shorter: Vec<String> = shorter.iter().map(usize::to_string).collect();
            let shorter = shorter.join(", ");
            writeln!(f, "Batches are padded to {shorter} or {longest} tokens; figures are of the longest.")?;
        }
        self.memory(f)?;
        self.traffic(f)?;
        self.parameters(f)
    }
}

impl Explanation {
    fn memory(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\nMemory of a rank")?;
        let heads =
            ["stage", "ranks", "parameters", "gradients", "optimizer", "activations", "buffers", "arena"];
        let mut rows = vec![row(heads)];
        let mut stages: BTreeMap<usize, Vec<&RankBytes>> = BTreeMap::new();
        for rank in &self.per_rank {
            stages.entry(rank.stage).or_default().push(rank);
        }
        for (stage, ranks) in &stages {
            let (first, last) = (ranks[0], ranks[ranks.len() - 1]);
            // A stage's ranks follow each other: pp is the outermost axis.
            let numbers = if first.rank == last.rank {
                first.rank.to_string()
            } else {
                format!("{}-{}", first.rank, last.rank)
            };
            let bytes = [
                first.parameters_bytes,
                first.gradients_bytes,
                first.optimizer_bytes,
                first.activations_bytes,
                first.buffers_bytes,
                first.arena_bytes,
            ];
            rows.push([stage.to_string(), numbers].into_iter().chain(bytes.map(size)).collect());
        }
        columns(f, &rows, 2)?;
        writeln!(f, "  All ranks together: {}.", size(self.total_arena_bytes))?;
        writeln!(
            f,
            "  parameters: weights between steps. gradients: their sums over microbatches. optimizer: moments."
        )?;
        writeln!(f, "  activations: kept from forward to backward, for all microbatches in flight.")?;
        writeln!(f, "  buffers: temporaries of the largest block, results of the step, scratch of kernels.")?;
        let most = self.recomputed.iter().max_by(|a, b| a.extra_fraction.total_cmp(&b.extra_fraction));
        if let Some(most) = most {
            writeln!(
                f,
                "  recompute: stage {} computes {} again in the backward, about {:.1} % more work.",
                most.stage,
                number(most.operations, "operation"),
                100.0 * most.extra_fraction
            )?;
        }
        let Some(price) = &self.post_validation else { return Ok(()) };
        writeln!(
            f,
            "  post-validation: buffers hold a copy of all states, up to {} a rank, written once a step. An update that is \n  \
             taken back reads it, updates again and repeats up to {} ({:.1} % of a rank's work in a step).",
            size(price.saved_bytes),
            number(price.forwards_ahead, "forward"),
            100.0 * price.repeated_fraction
        )
    }

    fn traffic(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.communication.is_empty() {
            return writeln!(f, "\nCommunication: none.");
        }
        writeln!(f, "\nCommunication of a step, on the rank that has most of it")?;
        let mut rows = vec![row(["phase", "axis", "kind", "count", "tensors", "sent (ring)"])];
        for c in &self.communication {
            let sizes = [size(c.bytes_per_rank), size(c.sent_bytes_per_rank)];
            let cells = [c.phase.to_owned(), c.axis.clone(), c.kind.to_owned(), c.count.to_string()];
            rows.push(cells.into_iter().chain(sizes).collect());
        }
        columns(f, &rows, 3)
    }

    fn parameters(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\nParameters (`axis:dim` splits; flat: ZeRO's row of all elements)")?;
        let mut rows = vec![row(["parameter", "dims", "stored", "gradient", "updated"])];
        let mut seen: Vec<Vec<String>> = Vec::new();
        for p in &self.placements {
            let dims =
                p.dims.iter().zip(&p.shape).map(|(d, n)| format!("{d} {n}")).collect::<Vec<_>>().join(" x ");
            let layouts = [&p.layout, &p.gradient_layout, &p.optimizer_layout];
            let cells: Vec<String> =
                [without_numbers(&p.parameter), dims].into_iter().chain(layouts.map(String::clone)).collect();
            if !seen.contains(&cells) {
                seen.push(cells.clone());
                rows.push(cells);
            }
        }
        columns(f, &rows, 5)
    }
}

/// `layers.*.mlp.up.weight`: equal layers share a row.
fn without_numbers(name: &str) -> String {
    let part = |part: &str| if part.parse::<usize>().is_ok() { "*".to_owned() } else { part.to_owned() };
    name.split('.').map(part).collect::<Vec<_>>().join(".")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_counts_read_well() {
        assert_eq!(
            [0, 1023, 1024, 1536 * 1024, 3 << 30, u64::MAX].map(size),
            ["0 B", "1023 B", "1.0 KiB", "1.5 MiB", "3.0 GiB", "16.0 EiB"]
        );
        assert_eq!(
            [9_999, 12_345, 6_100_000, 405_853_388_800].map(count),
            ["9999", "12.3 thousand", "6.1 million", "405.9 billion"]
        );
        assert_eq!(without_numbers("layers.12.mlp.up.weight"), "layers.*.mlp.up.weight");
    }
}
