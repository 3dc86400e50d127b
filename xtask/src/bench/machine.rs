//! What this machine is and what its memory gives.

use std::fs;
use std::process::Command;
use std::time::Instant;

use super::statistics::median;

/// Flags of `/proc/cpuinfo` that decide which kernels run.
const FLAGS: [&str; 6] = ["avx2", "fma", "avx512f", "avx512_bf16", "amx_tile", "amx_bf16"];
/// Bytes of a copy: many times a cache.
const COPY_BYTES: usize = 256 << 20;
const COPIES: usize = 7;

/// In one line: processor, cores, instruction sets, memory, date.
pub fn description() -> String {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |name: &str| {
        let line = cpuinfo.lines().find(|line| line.split(':').next().is_some_and(|key| key.trim() == name));
        line.and_then(|line| line.split(':').nth(1)).unwrap_or_default().trim().to_owned()
    };
    let flags = field("flags");
    let known: Vec<&str> = FLAGS.into_iter().filter(|flag| flags.split(' ').any(|f| f == *flag)).collect();
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let total = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:")).unwrap_or_default();
    let kib: f64 = total.trim().trim_end_matches(" kB").parse().unwrap_or(0.0);
    let date = Command::new("date").arg("+%F").output().map(|out| out.stdout).unwrap_or_default();
    format!(
        "{}, {} cores, {}, {:.0} GiB, {}",
        field("model name"),
        cores(),
        known.join(" "),
        kib / f64::from(1 << 20),
        String::from_utf8_lossy(&date).trim()
    )
}

/// Cores that this process may use.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Runnable processes, averaged over the last minute.
pub fn load() -> f64 {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().and_then(|load| load.parse().ok()).unwrap_or(f64::NAN)
}

/// Bytes that `threads` threads copy in a second, each between buffers of its own beyond the cache; memory moves
/// twice that and, where stores read the line first, three times.
pub fn copied_bytes_per_second(threads: usize) -> f64 {
    let mut buffers: Vec<(Vec<u8>, Vec<u8>)> =
        (0..threads).map(|_| (vec![1; COPY_BYTES], vec![2; COPY_BYTES])).collect();
    let seconds: Vec<f64> = (0..COPIES)
        .map(|_| {
            let started = Instant::now();
            std::thread::scope(|scope| {
                for (from, to) in &mut buffers {
                    scope.spawn(|| std::hint::black_box(to).copy_from_slice(std::hint::black_box(from)));
                }
            });
            started.elapsed().as_secs_f64()
        })
        .collect();
    (threads * COPY_BYTES) as f64 / median(&seconds)
}
