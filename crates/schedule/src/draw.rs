//! A schedule drawn as text for a terminal: time to the right, one row per rank. No colours, no files.

use crate::{Action, Schedule, ScheduleError, Timeline, Times};

/// Columns beyond which time is squeezed rather than drawn to fit the labels.
const MAX_COLUMNS: f64 = 160.0;

impl Schedule {
    /// Draws the schedule to scale, with its makespan, bubble and peak live chunks below.
    ///
    /// Each action is `|` and its text form (letter and microbatch, or the letter alone, where that does
    /// not fit); `.` is idle.
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
                let label = self.label(span.action, cells.len());
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
        if text.contains(['f', 'i', 'w', 'b']) {
            text.push_str("lower case: a rank's second, fourth, ... chunk\n");
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

    /// The longest text that fits into so many columns behind its `|`: `4F12`, then `f12` (lower case for a
    /// rank's second chunk), then `f`.
    fn label(&self, action: Action, columns: usize) -> String {
        let full = action.to_string();
        if full.len() < columns {
            return full;
        }
        let letter = match self.chunk(action.stage) % 2 {
            0 => action.kind.letter(),
            _ => action.kind.letter().to_ascii_lowercase(),
        };
        let short = format!("{letter}{}", action.microbatch);
        if short.len() < columns { short } else { letter.to_string() }
    }

    /// Which of its rank's stages a stage is, counted from 0.
    pub(crate) fn chunk(&self, stage: usize) -> usize {
        let rank = self.placement.get(stage);
        self.placement.iter().take(stage).filter(|&other| Some(other) == rank).count()
    }
}

/// At most four decimals, none that say nothing.
pub(crate) fn number(value: f64) -> String {
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
    fn chunks_are_told_apart() {
        let draw = |name, p, m| generate(name, p, m, 2).unwrap().draw(&Times::new(1.0, 1.0, 1.0)).unwrap();
        insta::assert_snapshot!(draw("zb-v", 4, 8), @r"
        rank 0 |F0|F1|F2|F3|F4|F5|F6|f0|i0|w0|f1|i1|w1|f2|i2|w2|f3|i3|w3|F7|I0|W0|f4|i4|w4|I1|W1|f5|i5|w5|I2|W2|f6|i6|w6|I3|W3|f7|i7|w7|I4|W4|I5|W5|I6|W6|I7|W7.........|
        rank 1 ...|F0|F1|F2|F3|F4|f0|F5|f1|i0|w0|f2|i1|w1|f3|i2|w2|F6|I0|W0|f4|i3|w3|F7|I1|W1|f5|i4|w4|I2|W2|f6|i5|w5|I3|W3|f7|i6|w6|I4|i7|I5|W4|I6|W5|I7|W6|w7|W7......|
        rank 2 ......|F0|F1|F2|f0|F3|f1|F4|f2|i0|w0|f3|i1|w1|F5|I0|W0|f4|i2|w2|F6|I1|W1|f5|i3|w3|F7|I2|W2|f6|i4|w4|I3|W3|f7|i5|w5|I4|i6|I5|i7|I6|W4|I7|W5|w6|w7|W6|W7...|
        rank 3 .........|F0|f0|F1|f1|F2|f2|F3|f3|i0|w0|F4|I0|W0|f4|i1|w1|F5|I1|W1|f5|i2|w2|F6|I2|W2|f6|i3|w3|F7|I3|W3|f7|i4|w4|I4|i5|I5|i6|I6|i7|I7|W4|w5|w6|w7|W5|W6|W7|
        lower case: a rank's second, fourth, ... chunk
        zb-v: 8 stages, 8 microbatches; makespan 51, bubble 0 (0.0 %); peak live chunks 8 8 8 8
        ");
        insta::assert_snapshot!(draw("dualpipe-v", 2, 6), @r"
        rank 0 |0F0|0F1|0F2|3F0|3I0|3W0|3F1|0F3|3B1    ....|3F2|0B0    |0F4|3B2    |3F3|0B1    |0F5|3B3    |3F4|0B2    |3B4    ....|3F5|0B3    |3B5    |0I4|0W4|0I5|0W5|
        rank 1 ....|1F0|2F0|1F1|2F1|1F2|2B0    |2F2|1B0    |1F3|2B1    |2F3|1B1    |1F4|2B2    |2F4|1B2    |1F5|2B3    |2F5|1B3    |2B4    |1B4    ....|2I5|1I5|2W5|1W5|
        dualpipe-v: 4 stages, 6 microbatches; makespan 38, bubble 2 (5.3 %); peak live chunks 5 5
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
