//! Records as a trace that Chrome (`chrome://tracing`) and Perfetto show: a process per rank, a track per queue.

use std::io::{self, Write};

use runtime::Queue;
use serde_json::{Value, json};

use super::Record;

/// Writes the records, which come rank by rank and in the order of their starts, as one JSON document.
///
/// Communication that is under way at once lies on tracks of its own (`communication`, `communication 2`, ...), since
/// what shares a track must nest.
///
/// # Errors
/// The writer's.
///
/// # Source
/// "Trace Event Format", Google: complete events (`X`), in microseconds, and metadata events (`M`).
pub fn write_trace(records: &[Record], to: &mut dyn Write) -> io::Result<()> {
    write!(to, "{{\"displayTimeUnit\":\"ms\",\"traceEvents\":[")?;
    let mut separator = "\n";
    let mut put = |to: &mut dyn Write, event: &Value| -> io::Result<()> {
        write!(to, "{separator}{event}")?;
        separator = ",\n";
        Ok(())
    };
    for of_rank in records.chunk_by(|a, b| a.rank == b.rank) {
        let rank = of_rank[0].rank;
        put(
            to,
            &json!({"ph": "M", "pid": rank, "name": "process_name", "args": {"name": format!("rank {rank}")}}),
        )?;
        // When each track is free again.
        let mut busy_until: Vec<f64> = Vec::new();
        for record in of_rank {
            let track = match record.queue {
                Queue::Compute => 0,
                Queue::Communication => {
                    let free = busy_until.iter().skip(1).position(|end| *end <= record.start_seconds);
                    free.map_or(busy_until.len().max(1), |at| at + 1)
                }
            };
            for new in busy_until.len()..=track {
                busy_until.push(0.0);
                put(
                    to,
                    &json!({"ph": "M", "pid": rank, "tid": new, "name": "thread_name", "args": {"name": track_name(new)}}),
                )?;
            }
            busy_until[track] = record.end_seconds;
            put(to, &event(record, track))?;
        }
    }
    writeln!(to, "\n]}}")
}

fn track_name(track: usize) -> String {
    match track {
        0 => "compute".to_owned(),
        1 => "communication".to_owned(),
        _ => format!("communication {track}"),
    }
}

fn event(record: &Record, track: usize) -> Value {
    let micros = |seconds: f64| (seconds * 1e9).round() / 1e3;
    json!({
        "ph": "X",
        "pid": record.rank,
        "tid": track,
        "ts": micros(record.start_seconds),
        "dur": micros(record.end_seconds - record.start_seconds),
        "name": &*record.name,
        "cat": record.class,
        "args": {
            "class": record.class,
            "step": record.step,
            "stage": record.stage,
            "microbatch": record.microbatch,
            "flops": record.flops,
            "bytes": record.bytes,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::super::record::Record;
    use super::*;

    fn record(rank: usize, queue: Queue, start: f64, end: f64) -> Record {
        let class = if queue == Queue::Compute { "contract" } else { "all_reduce" };
        Record {
            rank,
            queue,
            name: "layers.0.\"x\"".into(),
            class,
            start_seconds: start,
            end_seconds: end,
            flops: 10.0,
            bytes: 4.0,
            stage: Some(1),
            microbatch: 2,
            step: 3,
        }
    }

    #[test]
    fn a_trace_has_a_track_per_rank_and_queue() {
        let records = [
            record(0, Queue::Compute, 1.0, 2.0),
            record(0, Queue::Communication, 1.5, 3.0),
            record(0, Queue::Communication, 2.0, 2.5),
            record(0, Queue::Communication, 3.0, 4.0),
            record(1, Queue::Communication, 1.0, 1.25),
        ];
        let mut text = Vec::new();
        write_trace(&records, &mut text).unwrap();
        let trace: Value = serde_json::from_slice(&text).unwrap();
        let events = trace["traceEvents"].as_array().unwrap();
        let complete: Vec<_> = events
            .iter()
            .filter(|e| e["ph"] == "X")
            .map(|e| [&e["pid"], &e["tid"]].map(|v| v.as_u64().unwrap()))
            .collect();
        assert_eq!(complete, [[0, 0], [0, 1], [0, 2], [0, 1], [1, 1]]);
        let names: Vec<_> =
            events.iter().filter(|e| e["ph"] == "M").map(|e| e["args"]["name"].as_str().unwrap()).collect();
        assert_eq!(
            names,
            ["rank 0", "compute", "communication", "communication 2", "rank 1", "compute", "communication"]
        );
        let first = &events[2];
        assert_eq!(
            (&first["ts"], &first["dur"], &first["name"]),
            (&json!(1e6), &json!(1e6), &json!("layers.0.\"x\""))
        );
        assert_eq!((&first["args"]["stage"], &first["args"]["microbatch"]), (&json!(1), &json!(2)));
    }

    #[test]
    fn no_records_are_a_trace_too() {
        let mut text = Vec::new();
        write_trace(&[], &mut text).unwrap();
        let trace: Value = serde_json::from_slice(&text).unwrap();
        assert_eq!(trace["traceEvents"], json!([]));
    }
}
