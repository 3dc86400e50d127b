//! Parity of many layouts against one rank, as a report; and the layouts that are worth comparing. How far two runs
//! are apart is measured in `parity`.

use std::collections::BTreeSet;
use std::time::Instant;

use comm::Job;
use serde::Serialize;

use crate::assemble;
use crate::config::Config;
use crate::corpus;
use crate::error::TrainError;
use crate::explain::{arena_bytes, check_memory};
use crate::parity::{self, Recorder, Recording};

/// Whether layouts agree with one rank.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ParityReport {
    /// Whether all do.
    pub ok: bool,
    /// Steps trained.
    pub steps: usize,
    /// Tolerance for losses and gradients.
    pub tolerance: f64,
    /// Tolerance for parameters after the steps.
    pub parameter_tolerance: f64,
    /// Each layout's findings.
    pub layouts: Vec<LayoutReport>,
}

/// How far one layout is from one rank, by the contract's measure.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LayoutReport {
    /// The layout as it was given.
    pub layout: String,
    /// Its mesh.
    pub mesh: String,
    /// Its schedule.
    pub schedule: String,
    /// Its ZeRO stage.
    pub zero: u8,
    /// Whether every error is within its tolerance and ranks agree bit for bit.
    pub ok: bool,
    /// Largest relative error of a loss.
    pub loss_error: f64,
    /// Largest error of a gradient.
    pub gradient_error: f64,
    /// The gradient that has it.
    pub worst_gradient: String,
    /// Largest error of a parameter or moment after the last step.
    pub parameter_error: f64,
    /// Elements that two ranks hold with different bits.
    pub num_disagreements: usize,
    /// How long the layout ran.
    pub seconds: f64,
}

/// Trains `steps` steps on synthetic batches on one rank, once, then in each of `layouts` (in the form of `--mesh`:
/// `dp=2,tp=2;zero=3`; none is the configuration's own), and compares. `observe` sees each finding as it comes.
///
/// # Errors
/// A layout that the model or the machine does not admit: nothing is trained then.
pub fn compare(
    config: &Config,
    layouts: &[String],
    steps: usize,
    tolerance: f64,
    observe: &mut dyn FnMut(&LayoutReport),
) -> Result<ParityReport, TrainError> {
    compare_in(None, config, layouts, steps, tolerance, observe)
}

/// As [`compare`], with the layouts on the ranks of a job, if there is one. Its first process has the findings; the
/// others report none.
///
/// # Errors
/// As [`compare`]; a layout with more or fewer ranks than the job; what keeps ranks from joining.
pub fn compare_in(
    job: Option<&Job>,
    config: &Config,
    layouts: &[String],
    steps: usize,
    tolerance: f64,
    observe: &mut dyn FnMut(&LayoutReport),
) -> Result<ParityReport, TrainError> {
    let config = &with_vocabulary(config)?;
    let planned = match layouts {
        [] => vec![(config.parallel.mesh.to_string(), config.clone())],
        some => some
            .iter()
            .map(|layout| Ok((layout.clone(), config.with_layout(layout)?)))
            .collect::<Result<Vec<_>, TrainError>>()?,
    };
    let one_rank = parity::reference(config)?;
    for layout in planned.iter().map(|(_, layout)| layout).chain([&one_rank]) {
        check_memory(&arena_bytes(layout)?)?;
    }
    let recorder = Recorder { steps, ..Recorder::default() };
    // Of several processes the first one compares; it alone trains the reference.
    let is_first = job.is_none_or(|job| job.process == 0);
    let reference = is_first.then(|| recorder.record(&one_rank)).transpose()?;
    let parameter_tolerance = parity::parameter_tolerance(config, tolerance);
    let mut reports = Vec::new();
    for (number, (layout, config)) in planned.into_iter().enumerate() {
        let start = Instant::now();
        let recording = match job {
            None => Some(recorder.record(&config)?),
            // Each layout has a world of its own.
            Some(job) => {
                let name = format!("{}/layout-{number}", job.name);
                recorder.record_in(&config, &Job { name, ..job.clone() })?
            }
        };
        let seconds = start.elapsed().as_secs_f64();
        if let (Some(recording), Some(reference)) = (&recording, &reference) {
            let tolerances = [tolerance, parameter_tolerance];
            let report = judge(layout, &config, recording, reference, tolerances, seconds);
            observe(&report);
            reports.push(report);
        }
    }
    let ok = reports.iter().all(|report| report.ok);
    Ok(ParityReport { ok, steps, tolerance, parameter_tolerance, layouts: reports })
}

fn judge(
    layout: String,
    config: &Config,
    recording: &Recording,
    reference: &Recording,
    [tolerance, parameter_tolerance]: [f64; 2],
    seconds: f64,
) -> LayoutReport {
    let distance = recording.distance(reference);
    // Not a number is within no tolerance.
    let ok = distance.loss_error <= tolerance
        && distance.gradient_error <= tolerance
        && distance.parameter_error <= parameter_tolerance
        && recording.num_disagreements == 0;
    LayoutReport {
        layout,
        mesh: config.parallel.mesh.to_string(),
        schedule: config.parallel.schedule.clone(),
        zero: config.parallel.zero,
        ok,
        loss_error: distance.loss_error,
        gradient_error: distance.gradient_error,
        worst_gradient: distance.worst_gradient.trim_start_matches("gradient:").to_owned(),
        parameter_error: distance.parameter_error,
        num_disagreements: recording.num_disagreements,
        seconds,
    }
}

/// The configuration with a vocabulary: batches are synthetic, so that of the tokenizer that would be trained will do.
pub(crate) fn with_vocabulary(config: &Config) -> Result<Config, TrainError> {
    let mut config = corpus::decided(config)?;
    if config.model.from.is_none() && config.model.vocab_size.is_none() {
        config.model.vocab_size = match &config.data.tokenizer {
            Some(path) => Some(data::Tokenizer::load(path)?.vocab_size()),
            None => config.data.tokenizer_vocab,
        };
    }
    Ok(config)
}

/// Settings beside the mesh, with the values that matter for a mesh.
type Setting = (&'static str, Vec<String>);

/// Layouts that together meet every mesh of 2, 4 and 8 ranks (up to `max_world`) that the model admits, each with
/// every ZeRO stage, schedule, number of microbatches and so on that matters to it, and every pair of those settings
/// somewhere: pairwise, not the full product.
///
/// # Errors
/// If the configuration has no model.
pub fn all_layouts(config: &Config, max_world: usize) -> Result<Vec<String>, TrainError> {
    let config = &with_vocabulary(config)?;
    assemble::model(config, None)?;
    let mut layouts = Vec::new();
    let mut met: BTreeSet<[(&str, String); 2]> = BTreeSet::new();
    for world in [2, 4, 8].into_iter().filter(|world| *world <= max_world) {
        for [dp, cp, tp, pp] in factorings(world) {
            let axes = [("dp", dp), ("cp", cp), ("tp", tp), ("pp", pp)];
            let named: Vec<String> =
                axes.iter().filter(|(_, n)| *n > 1).map(|(axis, n)| format!("{axis}={n}")).collect();
            let mesh = named.join(",");
            if !plans(config, &mesh) {
                continue;
            }
            let settings = settings(config, &mesh, axes.map(|(_, n)| n));
            let admitted: Vec<Vec<(&str, String)>> = combinations(&settings)
                .into_iter()
                .map(|c| [vec![("mesh", mesh.clone())], c].concat())
                .collect();
            cover(config, &admitted, &mut met, &mut layouts);
        }
    }
    Ok(layouts)
}

/// Takes combinations, most unmet pairs first, until all pairs of one mesh were met or refused.
fn cover(
    config: &Config,
    combinations: &[Vec<(&'static str, String)>],
    met: &mut BTreeSet<[(&'static str, String); 2]>,
    layouts: &mut Vec<String>,
) {
    let mut left: Vec<&Vec<(&str, String)>> = combinations.iter().collect();
    loop {
        let unmet = |c: &[(&'static str, String)]| pairs(c).filter(|pair| !met.contains(pair)).count();
        let scored = left.iter().enumerate().map(|(at, c)| (unmet(c), std::cmp::Reverse(at))).max();
        let Some((1.., std::cmp::Reverse(at))) = scored else { return };
        let chosen = left.remove(at);
        let layout = written(chosen);
        if plans(config, &layout) {
            met.extend(pairs(chosen));
            layouts.push(layout);
        }
    }
}

fn pairs<'a>(
    combination: &'a [(&'static str, String)],
) -> impl Iterator<Item = [(&'static str, String); 2]> + 'a {
    combination
        .iter()
        .enumerate()
        .flat_map(|(i, a)| combination[i + 1..].iter().map(|b| [a.clone(), b.clone()]))
}

/// `dp=2;zero=1;...`, the mesh first.
fn written(combination: &[(&'static str, String)]) -> String {
    let parts = combination.iter().map(|(key, value)| match *key {
        "mesh" => value.clone(),
        key => format!("{key}={value}"),
    });
    parts.collect::<Vec<_>>().join(";")
}

fn plans(config: &Config, layout: &str) -> bool {
    let plan = || {
        let config = config.with_layout(layout)?;
        assemble::training(&config, &assemble::model(&config, None)?)
    };
    plan().is_ok()
}

/// Every way to write `world` as a product of four axes.
fn factorings(world: usize) -> Vec<[usize; 4]> {
    let divisors = |n: usize| (1..=n).filter(move |d| n.is_multiple_of(*d));
    let mut all = Vec::new();
    for a in divisors(world) {
        for b in divisors(world / a) {
            all.extend(divisors(world / a / b).map(|c| [a, b, c, world / a / b / c]));
        }
    }
    all.reverse();
    all
}

fn settings(config: &Config, mesh: &str, [dp, cp, tp, pp]: [usize; 4]) -> Vec<Setting> {
    let all = |values: &[&str]| values.iter().map(|value| (*value).to_owned()).collect::<Vec<_>>();
    let microbatches = (1..=3usize).filter(|n| n * dp <= config.train.batch).map(|n| n.to_string());
    let mut settings: Vec<Setting> = vec![("num_microbatches", microbatches.collect())];
    settings.push(("recompute", all(&["none", "selective", "full"])));
    if dp > 1 {
        settings.push(("zero", all(&["0", "1", "2", "3"])));
    }
    if cp > 1 {
        settings.push(("context", all(&["gather", "striped"])));
    }
    if tp > 1 {
        settings.push(("sequence", all(&["false", "true"])));
    }
    if pp > 1 {
        // Some schedules need several stages on each rank, or a multiple of the ranks in microbatches.
        let possible = |name: &str| {
            let ways = [1, 2].map(|chunks| format!("{name};chunks={chunks}"));
            ways.into_iter().find(|way| {
                (1..=3).any(|n| plans(config, &format!("{mesh};schedule={way};num_microbatches={n}")))
            })
        };
        let schedules = schedule::generators().iter().filter_map(|generator| possible(generator.name));
        settings.push(("schedule", schedules.collect()));
    }
    settings
}

/// The full product, of which a part is taken.
fn combinations(settings: &[Setting]) -> Vec<Vec<(&'static str, String)>> {
    settings.iter().fold(vec![vec![]], |all, (key, values)| {
        let extended = |c: &Vec<(&'static str, String)>| {
            let c = c.clone();
            values.iter().map(move |value| [c.clone(), vec![(*key, value.clone())]].concat())
        };
        all.iter().flat_map(extended).collect()
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn config() -> Config {
        let text = "[model]\nfamily = \"llama\"\nnum_layers = 4\nembed = 16\nnum_heads = 4\nnum_kv_heads = 2\nmlp = 24\n\
                    vocab_size = 40\ndropout = 0.1\n[data]\nsequence_length = 16\n[train]\nbatch = 6\nprecision = \"f64\"\n\
                    warmup_steps = 0\n";
        Config::from_bytes(Path::new("small.toml"), text.as_bytes(), &[], None).unwrap()
    }

    #[test]
    fn layouts_agree_and_a_tolerance_of_nothing_fails() {
        let layouts = ["dp=2;zero=2", "tp=2,pp=2;num_microbatches=2"].map(str::to_owned);
        let mut seen = Vec::new();
        let report = compare(&config(), &layouts, 2, 1e-10, &mut |r| seen.push(r.layout.clone())).unwrap();
        assert!(report.ok, "{report:?}");
        assert_eq!(seen, layouts);
        assert_eq!(report.layouts[1].mesh, "tp=2,pp=2");
        assert_eq!(report.layouts[0].zero, 2);
        let strict = compare(&config(), &layouts, 1, 0.0, &mut |_| {}).unwrap();
        assert!(!strict.ok);
    }

    #[test]
    fn without_layouts_the_configuration_is_compared() {
        let config = config().with_layout("dp=2").unwrap();
        let report = compare(&config, &[], 1, 1e-10, &mut |_| {}).unwrap();
        assert_eq!((report.ok, report.layouts.len(), report.layouts[0].mesh.as_str()), (true, 1, "dp=2"));
    }

    #[test]
    fn a_layout_that_cannot_be_is_refused_before_training() {
        let layouts = ["dp=2", "tp=3"].map(str::to_owned);
        let message = compare(&config(), &layouts, 1, 1e-10, &mut |_| {}).unwrap_err().to_string();
        assert!(message.contains("tp"), "{message}");
    }

    #[test]
    fn all_layouts_meet_every_mesh_with_every_setting() {
        let layouts = all_layouts(&config(), 8).unwrap();
        let has =
            |parts: &[&str]| layouts.iter().any(|l| parts.iter().all(|p| l.split(';').any(|q| q == *p)));
        for mesh in ["dp=2", "cp=2", "tp=2", "pp=2", "dp=4", "tp=4", "dp=2,cp=2,tp=2", "dp=2,tp=2,pp=2"] {
            assert!(has(&[mesh]), "{mesh} is not in {layouts:?}");
        }
        for zero in ["zero=0", "zero=1", "zero=2", "zero=3"] {
            for other in
                ["dp=2", "dp=2,tp=2", "sequence=true", "schedule=gpipe", "recompute=full", "context=striped"]
            {
                assert!(has(&[zero, other]), "no {zero} with {other}");
            }
        }
        // heads cannot be split by 8, nor 4 layers be 8 stages
        assert!(!has(&["tp=8"]) && !has(&["pp=8"]) && !has(&["dp=8"]));
        assert!(layouts.len() < 400, "{}", layouts.len());
        assert!(all_layouts(&config(), 2).unwrap().iter().all(|l| !l.contains('4') && !l.contains("2,")));
        for layout in &layouts {
            config().with_layout(layout).unwrap();
        }
    }
}
