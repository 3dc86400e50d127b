//! `phalanx bench-comm`: latency and bandwidth of each collective over each group, beside what the machine itself can
//! do: memcpy for threads, a raw socket for processes.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Barrier, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use phalanx::comm::threads::{Options, World};
use phalanx::comm::{CommError, Communicator, Job, Pending, Reduce};
use phalanx::memory::{Arena, DType, Span};
use phalanx::mesh::{Axis, Mesh};
use phalanx::training::config::parse_mesh;
use serde::Serialize;

use crate::arguments::BenchCommArguments;
use crate::failure::Verdict;
use crate::{output, place};

const SIZES: [usize; 4] = [4 << 10, 64 << 10, 1 << 20, 16 << 20];
/// How long any operation may take.
const DEADLINE: Duration = Duration::from_secs(60);
/// Fewest and most repetitions of a measurement.
const REPEATS: [usize; 2] = [5, 20_000];

/// One row.
#[derive(Debug, Clone, Serialize)]
struct Measurement {
    backend: String,
    /// The axes of the group: `world`, `dp`, `tp`, ...
    group: String,
    ranks: usize,
    operation: &'static str,
    /// The vector of an all_reduce; all pieces of the other collectives together.
    bytes: usize,
    repeats: usize,
    median_seconds: f64,
    /// The fastest.
    min_seconds: f64,
    /// What each rank must move at least, over the median.
    bytes_per_second: f64,
    /// What each rank of the machine itself moves: memcpy by all ranks at once, or a raw socket.
    machine_bytes_per_second: f64,
}

#[derive(Debug, Serialize)]
struct Report {
    backend: String,
    world_size: usize,
    /// What the last column was measured with.
    machine: &'static str,
    measurements: Vec<Measurement>,
}

pub fn run(arguments: &BenchCommArguments) -> anyhow::Result<Verdict> {
    let sizes = if arguments.bytes.is_empty() { SIZES.to_vec() } else { arguments.bytes.clone() };
    // Whole elements in every piece of every group of up to a few hundred ranks.
    let bench =
        Bench { sizes: sizes.iter().map(|b| b.div_ceil(64) * 64).collect(), seconds: arguments.seconds };
    let report = match place::find()? {
        Some(job) => {
            if arguments.ranks.is_some_and(|ranks| ranks != job.world_size()) {
                bail!("{} ranks were started; leave --ranks out", job.world_size());
            }
            bench.over_processes(&job, mesh(arguments, job.world_size())?.as_ref())?
        }
        None => {
            let ranks = arguments.ranks.unwrap_or(2);
            Some(bench.over_threads(ranks, mesh(arguments, ranks)?.as_ref())?)
        }
    };
    let Some(report) = report else { return Ok(Verdict::Success) };
    if arguments.json {
        output::json(&report)?;
    } else {
        output::bytes(table(&report).as_bytes())?;
    }
    Ok(Verdict::Success)
}

fn mesh(arguments: &BenchCommArguments, world_size: usize) -> anyhow::Result<Option<Mesh>> {
    let Some(text) = &arguments.mesh else { return Ok(None) };
    let sizes = parse_mesh(text)?;
    if sizes.world_size() != world_size {
        bail!("--mesh {text} has {} ranks, but {world_size} are measured", sizes.world_size());
    }
    let axes = [(Axis::Dp, sizes.dp), (Axis::Cp, sizes.cp), (Axis::Tp, sizes.tp), (Axis::Pp, sizes.pp)];
    Ok(Some(Mesh::new(&axes)?))
}

struct Bench {
    sizes: Vec<usize>,
    seconds: f64,
}

impl Bench {
    fn over_threads(&self, ranks: usize, mesh: Option<&Mesh>) -> anyhow::Result<Report> {
        let options = Options { deadline: DEADLINE, ..Options::default() };
        let machine: Vec<f64> = self.sizes.iter().map(|bytes| memcpy_speed(ranks, *bytes)).collect();
        let machine = &machine[..];
        let results: Vec<Result<Vec<Measurement>, CommError>> = std::thread::scope(|scope| {
            let threads: Vec<_> = World::new(ranks, options)
                .into_iter()
                .map(|world| scope.spawn(move || self.rank(&world, "threads", mesh, machine)))
                .collect();
            threads.into_iter().map(|t| t.join().expect("a rank panicked: a bug")).collect()
        });
        let mut all = results.into_iter().collect::<Result<Vec<_>, _>>()?;
        let measurements = all.swap_remove(0);
        Ok(Report {
            backend: "threads".to_owned(),
            world_size: ranks,
            machine: "memcpy by all ranks at once",
            measurements,
        })
    }

    fn over_processes(&self, job: &Job, mesh: Option<&Mesh>) -> anyhow::Result<Option<Report>> {
        let backend = job.backend.to_string();
        // Alone, before the others talk.
        let machine =
            if job.process == 0 { socket_speed().context("cannot measure a loopback socket")? } else { 0.0 };
        let machine = &vec![machine; self.sizes.len()][..];
        let results: Vec<anyhow::Result<Vec<Measurement>>> = std::thread::scope(|scope| {
            let threads: Vec<_> = job
                .ranks()
                .map(|rank| {
                    let backend = &backend;
                    scope.spawn(move || Ok(self.rank(&*job.join(rank, DEADLINE)?, backend, mesh, machine)?))
                })
                .collect();
            threads.into_iter().map(|t| t.join().expect("a rank panicked: a bug")).collect()
        });
        let mut all = results.into_iter().collect::<anyhow::Result<Vec<_>>>()?;
        let (world_size, measurements) = (job.world_size(), all.swap_remove(0));
        Ok((job.process == 0).then_some(Report {
            backend,
            world_size,
            machine: "a loopback socket",
            measurements,
        }))
    }

    /// Measures on one rank, in step with all others. `machine` has what the machine moves by itself at each size.
    fn rank(
        &self,
        world: &dyn Communicator,
        backend: &str,
        mesh: Option<&Mesh>,
        machine: &[f64],
    ) -> Result<Vec<Measurement>, CommError> {
        let largest = self.sizes.iter().max().copied().unwrap_or(0);
        let room = 3 * (largest + 64 * world.world_size()).next_multiple_of(64) + 4096;
        let arena = Arena::reserve(room).expect("memory for the messages");
        let mut measurements = Vec::new();
        let mut measure = |group: &dyn Communicator, name: &str| -> Result<(), CommError> {
            for (&bytes, &machine_bytes_per_second) in self.sizes.iter().zip(machine) {
                for operation in OPERATIONS {
                    let (times, moved) = self.times(world, group, &arena, operation, bytes)?;
                    let median_seconds = times[times.len() / 2];
                    measurements.push(Measurement {
                        backend: backend.to_owned(),
                        group: name.to_owned(),
                        ranks: group.world_size(),
                        operation,
                        bytes,
                        repeats: times.len(),
                        median_seconds,
                        min_seconds: times[0],
                        bytes_per_second: moved / median_seconds,
                        machine_bytes_per_second,
                    });
                }
            }
            Ok(())
        };
        measure(world, "world")?;
        for axis in
            mesh.map(|mesh| Axis::SPACE.into_iter().filter(|a| mesh.size(*a) > 1)).into_iter().flatten()
        {
            let Some(mesh) = mesh else { break };
            let members = mesh.group(&mesh.coord(world.rank()), [axis].into_iter().collect());
            if members.len() < world.world_size() {
                let group = world.split(&members, axis.name())?;
                measure(&*group, axis.name())?;
            }
        }
        Ok(measurements)
    }

    /// Sorted times of one operation, and the bytes that each rank must move.
    fn times(
        &self,
        world: &dyn Communicator,
        group: &dyn Communicator,
        arena: &Arena,
        operation: &str,
        bytes: usize,
    ) -> Result<(Vec<f64>, f64), CommError> {
        let once = || -> Result<f64, CommError> {
            let begun = Instant::now();
            perform(group, arena, operation, bytes)?;
            Ok(begun.elapsed().as_secs_f64())
        };
        once()?;
        let estimate = once()?.max(1e-7);
        // All ranks must repeat equally often: rank 0 says how often.
        let span = Span::new(0, 8);
        arena.write(span).expect("free").as_mut_slice::<f64>()[0] = estimate;
        world.broadcast(arena.write(span).expect("free"), 0)?.wait()?;
        let agreed = arena.read(span).expect("free").as_slice::<f64>()[0];
        let repeats = ((self.seconds / agreed) as usize).clamp(REPEATS[0], REPEATS[1]);
        world.barrier()?;
        let mut times = (0..repeats).map(|_| once()).collect::<Result<Vec<f64>, _>>()?;
        times.sort_by(f64::total_cmp);
        let (n, b) = (group.world_size() as f64, bytes as f64);
        let moved = match operation {
            "all_reduce" => 2.0 * b * (n - 1.0) / n,
            "broadcast" | "send_recv" => b,
            "barrier" => 0.0,
            _ => b * (n - 1.0) / n,
        };
        Ok((times, moved))
    }
}

const OPERATIONS: [&str; 7] =
    ["all_reduce", "reduce_scatter", "all_gather", "all_to_all", "broadcast", "send_recv", "barrier"];

fn perform(group: &dyn Communicator, arena: &Arena, operation: &str, bytes: usize) -> Result<(), CommError> {
    let n = group.world_size();
    let piece = (bytes / n / 64 * 64).max(64);
    let (a, b) = (Span::new(0, piece * n), Span::new((piece * n).next_multiple_of(64), piece * n));
    let whole = Span::new(0, bytes);
    let one = Span::new(b.offset, piece);
    let read = |span| arena.read(span).expect("free");
    let write = |span| arena.write(span).expect("free");
    match operation {
        "all_reduce" => group.all_reduce(write(whole), DType::F32, Reduce::Sum).and_then(Pending::wait),
        "reduce_scatter" => {
            group.reduce_scatter(read(a), write(one), DType::F32, Reduce::Sum).and_then(Pending::wait)
        }
        "all_gather" => group.all_gather(read(one), write(a)).and_then(Pending::wait),
        "all_to_all" => group.all_to_all(read(a), write(b)).and_then(Pending::wait),
        "broadcast" => group.broadcast(write(whole), 0).and_then(Pending::wait),
        "send_recv" => {
            let (next, before) = ((group.rank() + 1) % n, (group.rank() + n - 1) % n);
            let into = Span::new(bytes.next_multiple_of(64), bytes);
            let sent = group.send(read(whole), next, 0)?;
            group.recv(write(into), before, 0).and_then(Pending::wait)?;
            sent.wait()
        }
        _ => group.barrier(),
    }
}

/// Bytes a second that each of so many threads copies while all copy `bytes` at a time: by the median of the slowest.
fn memcpy_speed(threads: usize, bytes: usize) -> f64 {
    const IN_ALL: usize = 256 << 20;
    let repeats = (IN_ALL / bytes.max(1)).clamp(REPEATS[0], REPEATS[1]);
    let (start, slowest) = (Barrier::new(threads), Mutex::new(0.0f64));
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let (from, mut to) = (vec![1u8; bytes], vec![0u8; bytes]);
                let mut copy = || {
                    let begun = Instant::now();
                    to.copy_from_slice(std::hint::black_box(&from));
                    std::hint::black_box(&mut to);
                    begun.elapsed().as_secs_f64()
                };
                copy();
                start.wait();
                let mut times: Vec<f64> = (0..repeats).map(|_| copy()).collect();
                times.sort_by(f64::total_cmp);
                if let Ok(mut slowest) = slowest.lock() {
                    *slowest = slowest.max(times[repeats / 2]);
                }
            });
        }
    });
    bytes as f64 / slowest.into_inner().unwrap_or(f64::INFINITY)
}

/// Bytes a second over one loopback connection, one way.
fn socket_speed() -> std::io::Result<f64> {
    const BYTES: usize = 256 << 20;
    const BLOCK: usize = 1 << 20;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let sender = std::thread::spawn(move || -> std::io::Result<()> {
        let mut connection = TcpStream::connect(address)?;
        let block = vec![1u8; BLOCK];
        (0..BYTES / BLOCK).try_for_each(|_| connection.write_all(&block))
    });
    let (mut connection, _) = listener.accept()?;
    let mut block = vec![0u8; BLOCK];
    connection.read_exact(&mut block)?;
    let begun = Instant::now();
    let mut received = 0;
    while received < BYTES - BLOCK {
        received += connection.read(&mut block)?.max(1);
    }
    let speed = received as f64 / begun.elapsed().as_secs_f64();
    sender.join().map_err(|_| std::io::ErrorKind::Other)??;
    Ok(speed)
}

fn table(report: &Report) -> String {
    let mut lines = vec![format!(
        "{:<8} {:>5}  {:<14} {:>10} {:>12} {:>12} {:>10} {:>8}",
        "group", "ranks", "operation", "bytes", "median us", "best us", "GB/s", "of machine"
    )];
    for m in &report.measurements {
        let of_machine = m.bytes_per_second / m.machine_bytes_per_second;
        lines.push(format!(
            "{:<8} {:>5}  {:<14} {:>10} {:>12.1} {:>12.1} {:>10.3} {:>7.0} %",
            m.group,
            m.ranks,
            m.operation,
            m.bytes,
            m.median_seconds * 1e6,
            m.min_seconds * 1e6,
            m.bytes_per_second / 1e9,
            of_machine * 100.0
        ));
    }
    lines.push(format!(
        "backend {}, {} ranks; GB/s: what each rank must move at least; of machine: beside {} of as many bytes",
        report.backend, report.world_size, report.machine
    ));
    lines.join("\n") + "\n"
}
