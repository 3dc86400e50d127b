//! A schedule drawn as a picture: time to the right, a row per rank, its live chunks below it. No files.

use std::fmt::Write;

use crate::draw::number;
use crate::{Action, Kind, Schedule, ScheduleError, Span, Timeline, Times};

/// Height of a rank's actions, of the curve of live chunks below them, and of both with a gap.
const ROW: f64 = 24.0;
const CURVE: f64 = 14.0;
const PITCH: f64 = 48.0;
/// Left of the rows, for their names; above them, for title and legend; below, for the time axis.
const LEFT: f64 = 74.0;
const TOP: f64 = 64.0;
const BOTTOM: f64 = 34.0;
/// Pictures wider than this lose their labels rather than grow.
const WIDEST: f64 = 2400.0;
/// Width of a letter of a label of 11 px, with room to breathe.
const LETTER: f64 = 6.6;

/// Fill of a kind, by chunk: later chunks are darker, with white letters.
fn colors(kind: Kind, chunk: usize) -> (&'static str, &'static str) {
    let shades: [(&str, &str); 4] = match kind {
        Kind::Forward => {
            [("#a9cbf0", "#10243c"), ("#3f7dc4", "#fff"), ("#74a7de", "#10243c"), ("#235a9c", "#fff")]
        }
        Kind::BackwardInput => {
            [("#a8dfc1", "#0e3020"), ("#2f9a68", "#fff"), ("#6cc398", "#0e3020"), ("#1b7048", "#fff")]
        }
        Kind::BackwardWeight => {
            [("#f7d58f", "#40300a"), ("#d08a18", "#fff"), ("#ecb64f", "#40300a"), ("#a56a08", "#fff")]
        }
        Kind::Backward => {
            [("#d3bdea", "#2a1540"), ("#8656b8", "#fff"), ("#ac8bd2", "#2a1540"), ("#653a95", "#fff")]
        }
    };
    shades[chunk % shades.len()]
}

impl Schedule {
    /// Draws the schedule to scale as SVG, with its makespan, bubble and, below each rank, its live chunks.
    ///
    /// A box has its microbatch as label and all else as tooltip; its colour says the kind, its shade
    /// the chunk. Overlapped pairs have a frame.
    ///
    /// # Errors
    /// As [`simulate`](Schedule::simulate).
    pub fn to_svg(&self, times: &Times) -> Result<String, ScheduleError> {
        let timeline = self.simulate(times)?;
        let scale = self.scale(&timeline);
        let width = (timeline.makespan * scale).max(560.0) + LEFT + 24.0;
        let height = TOP + PITCH * self.num_ranks as f64 + BOTTOM;
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width:.0}\" height=\"{height:.0}\" \
             viewBox=\"0 0 {width:.0} {height:.0}\" font-family=\"Helvetica, Arial, sans-serif\" font-size=\"11\">\n\
             <rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n"
        );
        self.heading(&mut svg, &timeline);
        self.axis(&mut svg, &timeline, scale);
        let live = timeline.live(|_| 1.0);
        let most = live.iter().flatten().map(|step| step.1).fold(1.0, f64::max);
        for (rank, spans) in timeline.ranks.iter().enumerate() {
            let y = TOP + PITCH * rank as f64;
            let _ = writeln!(
                svg,
                "<text x=\"{:.0}\" y=\"{:.1}\" text-anchor=\"end\" font-size=\"12\">rank {rank}</text>",
                LEFT - 8.0,
                y + ROW / 2.0 + 4.0
            );
            let idle = timeline.makespan * scale;
            let _ = writeln!(
                svg,
                "<rect x=\"{LEFT}\" y=\"{y}\" width=\"{idle:.2}\" height=\"{ROW}\" fill=\"#f1f1f1\"/>"
            );
            spans.iter().for_each(|span| self.action(&mut svg, span, y, scale));
            for &(_, position) in self.overlaps.iter().filter(|pair| pair.0 == rank) {
                let Some(pair) = spans.get(position..position + 2) else { continue };
                let (x, end) = (LEFT + pair[0].start * scale, LEFT + pair[1].end * scale);
                let _ = writeln!(
                    svg,
                    "<rect x=\"{:.2}\" y=\"{:.1}\" width=\"{:.2}\" height=\"{:.1}\" fill=\"none\" stroke=\"#222\" \
                     stroke-width=\"1.4\"/>",
                    x + 0.7,
                    y + 0.7,
                    end - x - 1.4,
                    ROW - 1.4
                );
            }
            curve(&mut svg, &live[rank], most, y + ROW + 3.0, scale);
        }
        svg.push_str("</svg>\n");
        Ok(svg)
    }

    /// Pixels per unit of time: the shortest action fits its label, if the whole fits `WIDEST`.
    fn scale(&self, timeline: &Timeline) -> f64 {
        let lengths = timeline.ranks.iter().flatten().map(|span| span.end - span.start);
        let shortest = lengths.filter(|&length| length > 0.0).fold(f64::INFINITY, f64::min);
        if !shortest.is_finite() || timeline.makespan <= 0.0 {
            return 0.0;
        }
        let letters = (self.num_microbatches - 1).to_string().len() as f64;
        ((letters * LETTER + 7.0).max(18.0) / shortest).min(WIDEST / timeline.makespan)
    }

    fn heading(&self, svg: &mut String, timeline: &Timeline) {
        let peak = self.peak_live().into_iter().max().unwrap_or(0);
        let chunks = self.num_stages / self.num_ranks;
        let name = self.name.replace('&', "&amp;").replace('<', "&lt;");
        let _ = writeln!(
            svg,
            "<text x=\"14\" y=\"22\" font-size=\"15\" font-weight=\"bold\">{name}</text>\n\
             <text x=\"14\" y=\"42\" fill=\"#444\">{} ranks, {}{} microbatches; makespan {}, bubble {} ({:.1} %), \
             at most {peak} live chunks</text>",
            self.num_ranks,
            if chunks > 1 { format!("{chunks} chunks each, ") } else { String::new() },
            self.num_microbatches,
            number(timeline.makespan),
            number(timeline.bubble),
            100.0 * timeline.bubble_fraction(),
        );
        // The legend: kinds in use, a shade for each chunk.
        let mut x = 14.0 + 15.0 * 0.62 * self.name.len() as f64 + 24.0;
        for (kind, name) in
            Kind::ALL.into_iter().zip(["forward", "input gradient", "weight gradient", "backward"])
        {
            if !self.ranks.iter().flatten().any(|action| action.kind == kind) {
                continue;
            }
            for chunk in 0..chunks.clamp(1, 4) {
                let (fill, _) = colors(kind, chunk);
                let _ =
                    writeln!(svg, "<rect x=\"{x:.1}\" y=\"12\" width=\"12\" height=\"12\" fill=\"{fill}\"/>");
                x += 13.0;
            }
            let _ = writeln!(svg, "<text x=\"{:.1}\" y=\"22\">{} {name}</text>", x + 3.0, kind.letter());
            x += 6.0 * (name.len() + 2) as f64 + 18.0;
        }
    }

    fn axis(&self, svg: &mut String, timeline: &Timeline, scale: f64) {
        let y = TOP + PITCH * self.num_ranks as f64;
        if scale <= 0.0 {
            return;
        }
        // Steps of 1, 2 or 5 times a power of ten, at least 60 pixels apart.
        let least = 60.0 / scale;
        let power = 10f64.powf(least.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].into_iter().map(|f| f * power).find(|&step| step >= least);
        let step = step.unwrap_or(10.0 * power);
        for tick in 0..=(timeline.makespan / step).floor() as usize {
            let x = LEFT + tick as f64 * step * scale;
            let _ = writeln!(
                svg,
                "<path d=\"M{x:.2} {:.0}V{y:.0}\" stroke=\"#ddd\"/><text x=\"{x:.2}\" y=\"{:.0}\" \
                 text-anchor=\"middle\" fill=\"#666\">{}</text>",
                TOP - 6.0,
                y + 14.0,
                number(tick as f64 * step)
            );
        }
    }

    fn action(&self, svg: &mut String, span: &Span, y: f64, scale: f64) {
        let Action { kind, stage, microbatch } = span.action;
        let (fill, ink) = colors(kind, self.chunk(stage));
        let (x, width) = (LEFT + span.start * scale, (span.end - span.start) * scale);
        let gap = if width > 4.0 { 1.0 } else { 0.0 };
        let _ = write!(
            svg,
            "<g><title>{} from {} to {}</title><rect x=\"{x:.2}\" y=\"{y}\" width=\"{:.2}\" height=\"{ROW}\" \
             fill=\"{fill}\"/>",
            span.action,
            number(span.start),
            number(span.end),
            width - gap
        );
        let label = microbatch.to_string();
        // All boxes of a length have a label or none has: room is for the longest.
        if (self.num_microbatches - 1).to_string().len() as f64 * LETTER + 3.0 <= width {
            let _ = write!(
                svg,
                "<text x=\"{:.2}\" y=\"{:.1}\" text-anchor=\"middle\" fill=\"{ink}\">{label}</text>",
                x + (width - gap) / 2.0,
                y + ROW / 2.0 + 4.0
            );
        }
        svg.push_str("</g>\n");
    }
}

/// Live chunks of a rank as steps, with their peak beside them.
fn curve(svg: &mut String, steps: &[(f64, f64)], most: f64, top: f64, scale: f64) {
    let (Some(first), bottom) = (steps.first(), top + CURVE) else { return };
    let mut path = format!("M{:.2} {bottom:.1}", LEFT + first.0 * scale);
    for &(time, live) in steps {
        let _ = write!(path, "H{:.2}V{:.2}", LEFT + time * scale, bottom - CURVE * live / most);
    }
    let peak = steps.iter().map(|step| step.1).fold(0.0, f64::max);
    let _ = writeln!(
        svg,
        "<path d=\"{path}Z\" fill=\"#c9ced6\"/><text x=\"{:.0}\" y=\"{:.1}\" text-anchor=\"end\" font-size=\"9\" \
         fill=\"#666\">live {peak}</text>",
        LEFT - 8.0,
        bottom - 2.0
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{generate, generators};

    #[test]
    fn every_schedule_is_drawn_within_its_picture() {
        for generator in generators() {
            let schedule = generate(generator.name, 3, 6, generator.chunks.unwrap_or(2)).unwrap();
            let svg = schedule.to_svg(&Times { comm: 0.5, ..Times::new(1.0, 2.0, 1.5) }).unwrap();
            let boxes = svg.matches("<g><title>").count();
            assert_eq!(boxes, schedule.ranks.iter().flatten().count(), "{}", generator.name);
            assert_eq!(svg.matches("<g>").count(), svg.matches("</g>").count());
            assert_eq!(svg.matches("stroke-width").count(), schedule.overlaps.len());
            assert!(!svg.contains("NaN") && !svg.contains("inf"), "{}", generator.name);
        }
    }

    #[test]
    fn names_are_escaped_and_nothing_takes_no_time() {
        let mut schedule = generate("1f1b", 2, 2, 1).unwrap();
        schedule.name = "<a & b>".to_string();
        let svg = schedule.to_svg(&Times::new(0.0, 0.0, 0.0)).unwrap();
        assert!(svg.contains("&lt;a &amp; b>") && !svg.contains("NaN"));
    }
}
