//! One run of one program in a process of its own, timed from outside by the lines it prints.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use super::model::Model;
use super::statistics::median;
use crate::Failure;

/// Lines of a failed program's messages that are shown.
const SHOWN_LINES: usize = 15;
/// The unit of processor time in `/proc`, the same on every Linux that programs see.
const TICKS_PER_SECOND: f64 = 100.0;

/// What a run showed.
#[derive(Debug, Clone)]
pub struct Run {
    /// From the start of the process until step 1 begins.
    pub until_first_step_seconds: f64,
    /// From there until it is done: a compiler that waits for the first batch works here.
    pub first_step_seconds: f64,
    /// Tokens of a step over the median time between two of them.
    pub tokens_per_second: f64,
    /// The same by the processor time of all its threads: what a core gives while it is not taken away.
    pub tokens_per_cpu_second: f64,
    /// Most memory that the process ever had resident.
    pub peak_bytes: f64,
    /// Of every step, the uncounted ones included.
    pub losses: Vec<f64>,
}

/// `program` on the first `cores` cores and no others.
pub fn pinned(program: &Path, cores: usize) -> Command {
    let cores: Vec<String> = (0..cores).map(|core| core.to_string()).collect();
    let mut command = Command::new("taskset");
    command.arg("-c").arg(cores.join(",")).arg(program);
    command
}

/// Runs a program that prints a JSON line with `step`, `loss` and `step_seconds` after every step, until it has shown
/// the model's steps; then ends it. `tokens` is what a step takes over all ranks; `log` receives stderr.
pub fn run(mut command: Command, model: &Model, tokens: usize, log: &Path) -> Result<Run, Failure> {
    let messages = File::create(log).map_err(|error| Failure::file(log, &error))?;
    // A group of its own, so that the ranks that a program starts end with it.
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(messages).process_group(0);
    let started = Instant::now();
    let program = command.get_program().to_string_lossy().into_owned();
    let mut child =
        command.spawn().map_err(|error| Failure::Usage(format!("{program} cannot be run: {error}")))?;
    let shown = watch(&mut child, started, model.warmup + model.steps);
    end(&mut child);
    let (steps, peak_bytes) = shown.map_err(|reason| {
        let text = std::fs::read_to_string(log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        let tail = lines[lines.len().saturating_sub(SHOWN_LINES)..].join("\n");
        Failure::Failed(format!("{reason}; its last messages:\n{tail}"))
    })?;
    let counted = &steps[model.warmup - 1..];
    let between: Vec<f64> = counted.windows(2).map(|pair| pair[1].at - pair[0].at).collect();
    let cpu_seconds = counted[model.steps].cpu_seconds - counted[0].cpu_seconds;
    let first = &steps[0];
    Ok(Run {
        until_first_step_seconds: first.at - first.seconds,
        first_step_seconds: first.seconds,
        tokens_per_second: tokens as f64 / median(&between),
        tokens_per_cpu_second: (tokens * model.steps) as f64 / cpu_seconds,
        peak_bytes,
        losses: steps.iter().map(|step| step.loss).collect(),
    })
}

/// A step's line.
struct Step {
    /// When it came, from the start of the process.
    at: f64,
    cpu_seconds: f64,
    loss: f64,
    seconds: f64,
}

/// Reads lines until there are enough, then what memory the process took.
fn watch(child: &mut Child, started: Instant, num_steps: usize) -> Result<(Vec<Step>, f64), String> {
    let stdout = child.stdout.take().expect("it was piped");
    let mut steps = Vec::with_capacity(num_steps);
    for line in BufReader::new(stdout).lines() {
        let at = started.elapsed().as_secs_f64();
        let line = line.map_err(|error| format!("the program's output cannot be read: {error}"))?;
        let (Some(loss), Some(seconds)) = (number(&line, "loss"), number(&line, "step_seconds")) else {
            return Err(format!("the program printed `{line}` in place of a step"));
        };
        if !loss.is_finite() {
            return Err(format!("the loss of step {} is {loss}", steps.len() + 1));
        }
        steps.push(Step { at, cpu_seconds: cpu_seconds(child.id())?, loss, seconds });
        if steps.len() == num_steps {
            return Ok((steps, peak_bytes(child.id())?));
        }
    }
    Err(format!("the program ended after {} of {num_steps} steps", steps.len()))
}

/// Ends the process and all that it started.
fn end(child: &mut Child) {
    // A process that is gone already is as good.
    let _ = Command::new("sh")
        .arg("-c")
        .arg(format!("kill -KILL -{}", child.id()))
        .stderr(Stdio::null())
        .status();
    let _ = child.wait();
}

/// Processor time that the process has taken, its children's not included.
fn cpu_seconds(process: u32) -> Result<f64, String> {
    let path = format!("/proc/{process}/stat");
    let stat = std::fs::read_to_string(&path).map_err(|error| format!("{path}: {error}"))?;
    // The second field is a name in parentheses that may hold anything; user and system time are fields 14 and 15.
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |at: usize| fields.get(at - 3).and_then(|field| field.parse::<f64>().ok());
    match (ticks(14), ticks(15)) {
        (Some(user), Some(system)) => Ok((user + system) / TICKS_PER_SECOND),
        _ => Err(format!("{path} cannot be read")),
    }
}

/// The process's own account of its largest resident set.
fn peak_bytes(process: u32) -> Result<f64, String> {
    let path = format!("/proc/{process}/status");
    let status = std::fs::read_to_string(&path).map_err(|error| format!("{path}: {error}"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib: Option<f64> = line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok());
    kib.map(|kib| kib * 1024.0).ok_or_else(|| format!("{path} has no VmHWM"))
}

/// The number under a key of a flat JSON object.
fn number(json: &str, key: &str) -> Option<f64> {
    let (_, rest) = json.split_once(&format!("\"{key}\":"))?;
    rest.split([',', '}']).next()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.arg("-c").arg(script);
        command
    }

    fn of_script(name: &str, script: &str) -> Result<Run, Failure> {
        let log = std::env::temp_dir().join(format!("phalanx-bench-{}-{name}.log", std::process::id()));
        let result = run(shell(script), &super::super::model::TINY, 100, &log);
        std::fs::remove_file(log).expect("the log was written");
        result
    }

    #[test]
    fn numbers_are_found() {
        let line = r#"{"step":3,"loss":6.25e0,"step_seconds": 0.5}"#;
        assert_eq!((number(line, "loss"), number(line, "step_seconds")), (Some(6.25), Some(0.5)));
        assert_eq!((number(line, "losses"), number("{}", "loss")), (None, None));
    }

    #[test]
    fn a_run_is_timed_and_ended() {
        let endless =
            r#"while :; do sleep 0.05; echo "{\"step\":1,\"loss\":2.5,\"step_seconds\":0.01}"; done"#;
        let run = of_script("endless", endless).unwrap();
        assert_eq!(run.losses, [2.5; 5]);
        assert!(run.until_first_step_seconds > 0.0 && run.first_step_seconds == 0.01);
        // A step takes 50 ms or, on a busy machine, more.
        assert!(run.tokens_per_second > 0.0 && run.tokens_per_second <= 100.0 / 0.049, "{run:?}");
        assert!(run.peak_bytes > 0.0 && run.tokens_per_cpu_second > run.tokens_per_second);
    }

    #[test]
    fn a_failed_run_says_why() {
        for (name, script, reason) in [
            (
                "silent",
                "echo 'no such model' >&2",
                "ended after 0 of 5 steps; its last messages:\nno such model",
            ),
            ("nonsense", "echo hello", "printed `hello`"),
            ("infinite", r#"echo '{"loss":NaN,"step_seconds":1}'"#, "the loss of step 1 is NaN"),
        ] {
            let Err(Failure::Failed(message)) = of_script(name, script) else { panic!("{name}") };
            assert!(message.contains(reason), "{message}");
        }
    }
}
