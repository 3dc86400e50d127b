//! What this machine gives at its best to ranks and threads as a configuration has them: products within the cache,
//! and copies beyond it, measured while all ranks work at once.

use std::sync::Barrier;
use std::time::{Duration, Instant};

use half::{bf16, f16};
use kernels::Storage;

use crate::assemble;
use crate::config::{Config, Precision};
use crate::error::TrainError;

/// Rows and columns of the matrices of one thread: large enough for full speed, within the last cache.
const SIDE: usize = 384;
/// Bytes that all threads copy together, many times a cache; each at least [`LEAST_COPY_BYTES`].
const COPY_BYTES: usize = 256 << 20;
const LEAST_COPY_BYTES: usize = 8 << 20;
/// The best of some windows counts: something else may run during one.
const NUM_WINDOWS: usize = 5;
const WINDOW: Duration = Duration::from_millis(120);

/// Rates of all ranks together.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Peaks {
    /// Operations of products a second, in the precision that products are computed in.
    pub flops_per_second: f64,
    /// Bytes read plus bytes written.
    pub bytes_per_second: f64,
}

impl Peaks {
    /// Measures, for about a second, with as many threads as the configuration has.
    ///
    /// # Errors
    /// If threads cannot be made.
    pub fn measure(config: &Config) -> Result<Peaks, TrainError> {
        let products = match config.train.precision {
            Precision::F32 => products::<f32>,
            Precision::F64 => products::<f64>,
            Precision::Bf16 => products::<bf16>,
            Precision::Fp16 => products::<f16>,
        };
        let num_ranks = config.parallel.mesh.world_size();
        Ok(Peaks {
            flops_per_second: products(config)?,
            bytes_per_second: copies(num_ranks * config.parallel.threads_per_rank.max(1))?,
        })
    }
}

fn products<S: Storage>(config: &Config) -> Result<f64, TrainError> {
    let prepare = || {
        let cpu = assemble::cpu(config)?;
        let (m, n, k) = (SIDE * cpu.threads(), SIDE, SIDE);
        let filled = |len| vec![S::narrow(<S::Wide as kernels::Float>::from_f64(0.5)); len];
        let (a, b, mut c) = (filled(m * k), filled(k * n), filled(m * n));
        let scratch_bytes = kernels::gemm_scratch_bytes::<S>(cpu.threads(), m, n, k);
        // Kernels want it aligned to a cache line.
        let mut scratch = vec![0u8; scratch_bytes + 64];
        let offset = scratch.as_ptr().align_offset(64);
        Ok(move || {
            let scratch = &mut scratch[offset..offset + scratch_bytes];
            kernels::gemm(&cpu, m, n, k, &a, false, &b, false, &mut c, kernels::Base::Zero, scratch);
            2.0 * (m * n * k) as f64
        })
    };
    rate(config.parallel.mesh.world_size(), prepare)
}

fn copies(num_threads: usize) -> Result<f64, TrainError> {
    let bytes = (COPY_BYTES / num_threads).max(LEAST_COPY_BYTES);
    rate(num_threads, || {
        let (from, mut to) = (vec![1u8; bytes], vec![2u8; bytes]);
        Ok(move || {
            std::hint::black_box(&mut to).copy_from_slice(std::hint::black_box(&from));
            2.0 * bytes as f64
        })
    })
}

/// How much `workers` threads get done in a second together: each prepares, then repeats what it prepared, which
/// returns its amount.
fn rate<W: FnMut() -> f64>(
    workers: usize,
    prepare: impl Fn() -> Result<W, TrainError> + Sync,
) -> Result<f64, TrainError> {
    let together = Barrier::new(workers);
    let windows: Vec<Result<[f64; NUM_WINDOWS], TrainError>> = std::thread::scope(|scope| {
        let worker = || {
            let mut work = prepare();
            if let Ok(work) = &mut work {
                work();
            }
            let rates = [(); NUM_WINDOWS].map(|()| {
                // Also for one that failed: the others wait for it.
                together.wait();
                work.as_mut().map_or(0.0, |work| window(work))
            });
            work.map(|_| rates)
        };
        let threads: Vec<_> = (0..workers).map(|_| scope.spawn(worker)).collect();
        threads.into_iter().map(|thread| thread.join().expect("measuring does not panic")).collect()
    });
    let windows = windows.into_iter().collect::<Result<Vec<_>, _>>()?;
    let sums = (0..NUM_WINDOWS).map(|window| windows.iter().map(|rates| rates[window]).sum::<f64>());
    Ok(sums.fold(0.0, f64::max))
}

fn window(work: &mut impl FnMut() -> f64) -> f64 {
    let (started, mut amount) = (Instant::now(), 0.0);
    while started.elapsed() < WINDOW {
        amount += work();
    }
    amount / started.elapsed().as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_add_up_over_workers() {
        let prepare = || {
            Ok(|| {
                std::thread::sleep(Duration::from_millis(10));
                1.0
            })
        };
        // A sleep is at least as long as asked: never more than 100 a second each.
        let rate = rate(3, prepare).unwrap();
        assert!(rate > 0.0 && rate <= 300.0, "{rate}");
    }

    #[test]
    fn one_that_cannot_start_is_an_error_for_all() {
        let turn = std::sync::atomic::AtomicUsize::new(0);
        let prepare = || match turn.fetch_add(1, std::sync::atomic::Ordering::Relaxed) {
            0 => Err(TrainError::Missing { key: "parallel", remedy: "none".to_owned() }),
            _ => Ok(|| 1.0),
        };
        assert!(matches!(rate(2, prepare), Err(TrainError::Missing { .. })));
    }
}
