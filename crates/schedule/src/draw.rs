//! A schedule drawn as text for a terminal: time to the right, one row per rank. No colours, no files.

use crate::{Schedule, ScheduleError, Timeline, Times};

/// Columns beyond which time is squeezed rather than drawn to fit the labels.
const MAX_COLUMNS: f64 = 160.0;

impl Schedule {
    /// Draws the schedule to scale, with its makespan, bubble and peak live chunks below.
    ///
    /// Each action is `|` and its text form (the letter alone where that does not fit); `.` is idle.
    ///
    /// # Errors
    /// As [`simulate`](Schedule::simulate).
    pub fn draw(&self, times: &Times) -> Result<String, ScheduleError> {
        let timeline = self.simulate(times)?;
        let scale = scale(&timeline);
        let column = |time: f64| (time * scale).round() as usize;
        let rank_width = (self.num_ranks - 1).to_string().len();
        let mut text = String::new();
        for (rank, spans) in timeline.ranks.iter().enumerate() {
            let mut cells = vec!['.'; column(timeline.makespan)];
            for span in spans {
                let Some(cells) = cells.get_mut(column(span.start)..column(span.end)) else { continue };
                let name = span.action.to_string();
                let label =
                    if name.len() < cells.len() { name } else { span.action.kind.letter().to_string() };
                cells.fill(' ');
                let bordered: Vec<char> =
                    if cells.len() > 1 { format!("|{label}") } else { label }.chars().collect();
                for (cell, letter) in cells.iter_mut().zip(bordered) {
                    *cell = letter;
                }
            }
            let row: String = cells.into_iter().collect();
            text.push_str(&format!("rank {rank:rank_width$} {row}|\n"));
        }
        let peak = self.peak_live();
        let peak: Vec<String> = peak.iter().map(usize::to_string).collect();
        text.push_str(&format!(
            "{}: {} stages, {} microbatches; makespan {}, bubble {} ({:.1} %); peak live chunks {}\n",
            self.name,
            self.num_stages,
            self.num_microbatches,
            number(timeline.makespan),
            number(timeline.bubble),
            100.0 * timeline.bubble_fraction(),
            peak.join(" "),
        ));
        Ok(text)
    }
}

/// At most four decimals, none that say nothing.
fn number(value: f64) -> String {
    let text = format!("{value:.4}");
    text.trim_end_matches('0').trim_end_matches('.').to_string()
}

/// Columns per unit of time: the shortest action just fits its label, if the whole fits `MAX_COLUMNS`.
fn scale(timeline: &Timeline) -> f64 {
    let spans = || timeline.ranks.iter().flatten().filter(|span| span.end > span.start);
    let shortest = spans().map(|span| span.end - span.start).fold(f64::INFINITY, f64::min);
    let label = spans().map(|span| span.action.to_string().len()).max().unwrap_or(0);
    if !shortest.is_finite() || timeline.makespan <= 0.0 {
        return 0.0;
    }
    let natural = (label + 1) as f64 / shortest;
    let squeezed = MAX_COLUMNS / timeline.makespan;
    let even = (squeezed * shortest).floor() / shortest;
    if natural <= squeezed {
        natural
    } else if even > 0.0 {
        even
    } else {
        squeezed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generate;

    fn draw(name: &str, p: usize, m: usize, times: Times) -> String {
        generate(name, p, m, 1).unwrap().draw(&times).unwrap()
    }

    #[test]
    fn gpipe_drawn() {
        insta::assert_snapshot!(draw("gpipe", 3, 3, Times::new(1.0, 1.0, 1.0)), @r"
        rank 0 |0F0|0F1|0F2........................|0B0    |0B1    |0B2    |
        rank 1 ....|1F0|1F1|1F2............|1B0    |1B1    |1B2    ........|
        rank 2 ........|2F0|2F1|2F2|2B0    |2B1    |2B2    ................|
        gpipe: 3 stages, 3 microbatches; makespan 15, bubble 6 (40.0 %); peak live chunks 3 3 3
        ");
    }

    #[test]
    fn one_f_one_b_drawn() {
        insta::assert_snapshot!(draw("1f1b", 3, 4, Times { comm: 0.5, ..Times::new(1.0, 1.0, 1.0) }), @r"
        rank 0 |0F0|0F1|0F2........................|0B0    |0F3|0B1    ........|0B2    ........|0B3    |
        rank 1 ......|1F0|1F1............|1B0    |1F2|1B1    ....|1F3|1B2    ........|1B3    ..........|
        rank 2 ............|2F0|2B0    |2F1|2B1    ....|2F2|2B2    ....|2F3|2B3    ....................|
        1f1b: 3 stages, 4 microbatches; makespan 22, bubble 10 (45.5 %); peak live chunks 3 2 1
        ");
    }

    #[test]
    fn long_schedules_are_squeezed() {
        insta::assert_snapshot!(draw("1f1b", 2, 40, Times::new(1.0, 1.0, 1.0)), @r"
        rank 0 FF..|BF|BF|BF|BF|BF|BF|BF|BF|BF|BF|BF|BF|BF|BF|BF|BF|BF|BF|BF|BF|BF|BF|BF|BF|BF|BF|BF|BF|BF|BF|BF|BF|BF|BF|BF|BF|BF|BF|B.|B|
        rank 1 .F|BF|BF|BF|BF|BF|BF|BF|BF|BF|BF|BF|BF|BF|BF|BF|BF|BF|BF|BF|BF|BF|BF|BF|BF|BF|BF|BF|BF|BF|BF|BF|BF|BF|BF|BF|BF|BF|BF|BF|B..|
        1f1b: 2 stages, 40 microbatches; makespan 123, bubble 3 (2.4 %); peak live chunks 2 1
        ");
    }

    #[test]
    fn a_schedule_that_takes_no_time_draws_nothing() {
        insta::assert_snapshot!(draw("1f1b", 1, 1, Times::new(0.0, 0.0, 0.0)), @r"
        rank 0 |
        1f1b: 1 stages, 1 microbatches; makespan 0, bubble 0 (0.0 %); peak live chunks 1
        ");
    }
}
