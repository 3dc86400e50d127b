//! Findings as a table, JSON and CSV. Nothing is measured here.

use std::fmt::Write;

use super::statistics::Estimate;

/// One measure of two programs.
#[derive(Debug, Clone)]
pub struct Row {
    /// What is measured, with its unit.
    pub measure: String,
    /// Median of the first.
    pub ours: f64,
    /// Median of the second.
    pub theirs: f64,
    /// First over second, by rounds; none if there was no second.
    pub ratio: Option<Estimate>,
}

/// Rows under one title.
#[derive(Debug, Clone)]
pub struct Table {
    pub title: String,
    /// The programs.
    pub ours: String,
    pub theirs: String,
    pub rows: Vec<Row>,
    /// What a reader must know beside the numbers.
    pub notes: Vec<String>,
}

impl Table {
    /// For people.
    pub fn text(&self) -> String {
        let with_ratios = self.rows.iter().any(|row| row.ratio.is_some());
        let header = match with_ratios {
            true => ["", &self.ours, &self.theirs, "ratio", "interval", "rounds"].to_vec(),
            false => ["", &self.ours].to_vec(),
        };
        let mut lines = vec![header.into_iter().map(str::to_owned).collect::<Vec<_>>()];
        for row in &self.rows {
            let mut cells = vec![row.measure.clone(), short(row.ours)];
            if let Some(ratio) = &row.ratio {
                cells.push(short(row.theirs));
                cells.push(format!("{:.3}", ratio.median));
                cells.push(format!("{:.3}-{:.3} ({:.0} %)", ratio.low, ratio.high, 100.0 * ratio.coverage));
                cells.push(ratio.count.to_string());
            }
            lines.push(cells);
        }
        let mut text = format!("{}\n{}", self.title, aligned(&lines));
        for note in &self.notes {
            writeln!(text, "  {note}").expect("a string takes all");
        }
        text
    }

    /// For programs.
    pub fn json(&self) -> String {
        let rows: Vec<String> = self
            .rows
            .iter()
            .map(|row| {
                let ratio = row.ratio.as_ref().map_or(String::new(), |ratio| {
                    let Estimate { median, low, high, coverage, count } = ratio;
                    format!(
                        ", \"theirs\": {}, \"ratio\": {median}, \"low\": {low}, \"high\": {high}, \
                         \"coverage\": {coverage}, \"rounds\": {count}",
                        row.theirs
                    )
                });
                format!("{{\"measure\": {}, \"ours\": {}{ratio}}}", quoted(&row.measure), row.ours)
            })
            .collect();
        let notes: Vec<String> = self.notes.iter().map(|note| quoted(note)).collect();
        format!(
            "{{\"title\": {}, \"ours\": {}, \"theirs\": {}, \"rows\": [\n  {}\n], \"notes\": [{}]}}",
            quoted(&self.title),
            quoted(&self.ours),
            quoted(&self.theirs),
            rows.join(",\n  "),
            notes.join(", ")
        )
    }
}

/// All tables of a call with what they depend on, as one JSON document.
pub fn document(command: &str, machine: &str, torch: Option<&str>, tables: &[Table]) -> String {
    let tables: Vec<String> = tables.iter().map(Table::json).collect();
    format!(
        "{{\"command\": {}, \"machine\": {}, \"torch\": {}, \"tables\": [\n{}\n]}}\n",
        quoted(command),
        quoted(machine),
        torch.map_or("null".to_owned(), quoted),
        tables.join(",\n")
    )
}

fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            c if c.is_control() => write!(quoted, "\\u{:04x}", u32::from(c)).expect("a string takes all"),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

/// Three or four digits.
fn short(number: f64) -> String {
    match number.abs() {
        size if size >= 100.0 => format!("{number:.0}"),
        size if size >= 10.0 => format!("{number:.1}"),
        size if size >= 1.0 => format!("{number:.2}"),
        _ => format!("{number:.3}"),
    }
}

/// Columns under each other, the first to the left and the others to the right.
fn aligned(lines: &[Vec<String>]) -> String {
    let columns = lines.iter().map(Vec::len).max().unwrap_or(0);
    let cell = |line: &[String], column: usize| line.get(column).map_or(0, |cell| cell.chars().count());
    let widths: Vec<usize> =
        (0..columns).map(|column| lines.iter().map(|line| cell(line, column)).max().unwrap_or(0)).collect();
    let mut text = String::new();
    for line in lines {
        let mut out = String::from(" ");
        for (column, (cell, &width)) in line.iter().zip(&widths).enumerate() {
            match column {
                0 => write!(out, " {cell:<width$}"),
                _ => write!(out, "  {cell:>width$}"),
            }
            .expect("a string takes all");
        }
        text.push_str(out.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        Table {
            title: "a \"small\" one".to_owned(),
            ours: "phalanx".to_owned(),
            theirs: "PyTorch".to_owned(),
            rows: vec![Row {
                measure: "tokens/s".to_owned(),
                ours: 1234.5,
                theirs: 617.25,
                ratio: Some(Estimate::of_ratios(&[2.0, 4.0, 9.0], &[1.0, 2.0, 3.0])),
            }],
            notes: vec!["quiet".to_owned()],
        }
    }

    #[test]
    fn tables_line_up() {
        let text = table().text();
        let expected = "a \"small\" one\n            phalanx  PyTorch  ratio            interval  rounds\n  \
                        tokens/s     1234      617  2.000  2.000-3.000 (75 %)       3\n  quiet\n";
        assert_eq!(text, expected);
    }

    #[test]
    fn documents_are_json() {
        let text = document("bench \\ x", "a\tb", None, &[table()]);
        for part in
            ["\"bench \\\\ x\"", "\"a\\u0009b\"", "\"torch\": null", "a \\\"small\\\" one", "\"rounds\": 3"]
        {
            assert!(text.contains(part), "{part} in {text}");
        }
    }
}
