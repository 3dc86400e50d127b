//! The device that kernels run on: an instruction set and the threads of one rank. No kernel lives here.

use std::fmt;
use std::ops::Range;
use std::str::FromStr;
use std::sync::Arc;

/// Which instructions kernels may use. Each set includes those before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum InstructionSet {
    /// What every machine of the target has.
    Scalar,
    /// AVX2 and FMA (x86-64-v3).
    Avx2,
    /// AVX-512 F, BW, CD, DQ and VL (x86-64-v4).
    Avx512,
    /// AVX-512 and the bf16 tiles of AMX.
    Amx,
}

impl InstructionSet {
    /// All of them, smallest first.
    pub const ALL: [InstructionSet; 4] =
        [InstructionSet::Scalar, InstructionSet::Avx2, InstructionSet::Avx512, InstructionSet::Amx];

    /// The name in settings: `scalar`, `avx2`, `avx512`, `amx`.
    pub const fn name(self) -> &'static str {
        match self {
            InstructionSet::Scalar => "scalar",
            InstructionSet::Avx2 => "avx2",
            InstructionSet::Avx512 => "avx512",
            InstructionSet::Amx => "amx",
        }
    }

    /// The largest set that this machine, and its kernel, allow.
    pub fn best() -> InstructionSet {
        let available = |set: &InstructionSet| set.is_available();
        InstructionSet::ALL.into_iter().rev().find(available).unwrap_or(InstructionSet::Scalar)
    }

    /// Whether this machine can run it.
    pub fn is_available(self) -> bool {
        match self {
            InstructionSet::Scalar => true,
            #[cfg(target_arch = "x86_64")]
            InstructionSet::Avx2 => pulp::x86::V3::try_new().is_some(),
            #[cfg(target_arch = "x86_64")]
            InstructionSet::Avx512 => pulp::x86::V4::try_new().is_some(),
            #[cfg(target_arch = "x86_64")]
            InstructionSet::Amx => InstructionSet::Avx512.is_available() && crate::amx::is_available(),
            #[cfg(not(target_arch = "x86_64"))]
            _ => false,
        }
    }
}

impl fmt::Display for InstructionSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for InstructionSet {
    type Err = ();

    fn from_str(name: &str) -> Result<InstructionSet, ()> {
        InstructionSet::ALL.into_iter().find(|set| set.name() == name).ok_or(())
    }
}

/// The processor as one rank sees it. Every kernel takes one.
///
/// Results depend on the instruction set by rounding, and on nothing else: work is divided by the number of
/// threads alone, so that a fixed number gives the same bits from run to run.
#[derive(Debug, Clone)]
pub struct Cpu {
    instruction_set: InstructionSet,
    /// None for one thread: kernels then run where they are called.
    pool: Option<Arc<rayon::ThreadPool>>,
}

impl Cpu {
    /// One thread, the best instruction set.
    pub fn single() -> Cpu {
        Cpu { instruction_set: InstructionSet::best(), pool: None }
    }

    /// `threads` threads (0 counts as 1) and an instruction set that [is available](InstructionSet::is_available).
    ///
    /// To be called on the rank's thread, which becomes one of them, so that divided work starts without a hand-over;
    /// a thread that belongs to an earlier `Cpu` hands over instead.
    ///
    /// # Errors
    /// If the system refuses the threads.
    pub fn new(threads: usize, instruction_set: InstructionSet) -> std::io::Result<Cpu> {
        assert!(instruction_set.is_available(), "{instruction_set} is not available on this machine");
        let builder = || rayon::ThreadPoolBuilder::new().num_threads(threads);
        let pool = if threads <= 1 {
            None
        } else {
            let pool = builder().use_current_thread().build().or_else(|_| builder().build());
            Some(Arc::new(pool.map_err(std::io::Error::other)?))
        };
        Ok(Cpu { instruction_set, pool })
    }

    /// The instruction set.
    pub fn instruction_set(&self) -> InstructionSet {
        self.instruction_set
    }

    /// Number of threads, at least 1.
    pub fn threads(&self) -> usize {
        self.pool.as_ref().map_or(1, |pool| pool.current_num_threads())
    }

    /// Calls `work` on parts that together are `0..len`, at once on several threads if `len` is at least twice
    /// `min_part`. Parts are multiples of `unit` long, but for the last.
    pub(crate) fn split(
        &self,
        len: usize,
        unit: usize,
        min_part: usize,
        work: impl Fn(Range<usize>) + Send + Sync,
    ) {
        self.split_dyn(len, unit, min_part, &work);
    }

    /// [`split`](Cpu::split), compiled once rather than once per kernel and type.
    fn split_dyn(
        &self,
        len: usize,
        unit: usize,
        min_part: usize,
        work: &(dyn Fn(Range<usize>) + Send + Sync),
    ) {
        let parts = self.threads().min(len / min_part.max(1)).max(1);
        let Some(pool) = self.pool.as_ref().filter(|_| parts > 1) else {
            return work(0..len);
        };
        let part = len.div_ceil(parts).next_multiple_of(unit.max(1));
        pool.install(|| {
            rayon::scope(|scope| {
                for start in (part..len).step_by(part) {
                    scope.spawn(move |_| work(start..(start + part).min(len)));
                }
                work(0..part.min(len));
            });
        });
    }

    /// Runs `body` compiled for the instruction set.
    ///
    /// `body` must be an `#[inline(always)]` closure that calls only `#[inline(always)]` functions in its hot
    /// loops: whatever is not inlined is compiled for the baseline instruction set instead.
    #[inline(always)]
    pub(crate) fn vectorised<Op: pulp::WithSimd>(&self, body: Op) -> Op::Output {
        use pulp::Simd;
        #[cfg(target_arch = "x86_64")]
        match self.instruction_set {
            InstructionSet::Scalar => {}
            InstructionSet::Avx2 => {
                if let Some(simd) = pulp::x86::V3::try_new() {
                    return Simd::vectorize(simd, body);
                }
            }
            InstructionSet::Avx512 | InstructionSet::Amx => {
                if let Some(simd) = pulp::x86::V4::try_new() {
                    return Simd::vectorize(simd, body);
                }
            }
        }
        Simd::vectorize(pulp::Scalar::new(), body)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[test]
    fn parts_cover_everything_once() {
        let cpu = Cpu::new(3, InstructionSet::best()).unwrap();
        for len in [0usize, 1, 5, 64, 1000] {
            let hits: Vec<AtomicU32> = (0..len).map(|_| AtomicU32::new(0)).collect();
            cpu.split(len, 8, 16, |part| {
                for hit in &hits[part] {
                    hit.fetch_add(1, Ordering::Relaxed);
                }
            });
            assert!(hits.iter().all(|h| h.load(Ordering::Relaxed) == 1), "{len}");
        }
    }

    #[test]
    fn names_read_back() {
        for set in InstructionSet::ALL {
            assert_eq!(set.name().parse(), Ok(set));
        }
        assert!(InstructionSet::best().is_available());
    }
}
