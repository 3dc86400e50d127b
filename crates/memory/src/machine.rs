//! How much memory the machine and its control group leave to this process. Reads `/proc` and `/sys`; decides nothing.

use std::fs;
use std::path::{Path, PathBuf};

/// The bytes this process could still touch without swapping: the system's estimate, or what the control group
/// (v1 or v2, at any level) leaves if that is less. `None` where the system does not say.
pub fn available_bytes() -> Option<u64> {
    let system = kilobytes(&fs::read_to_string("/proc/meminfo").ok()?, "MemAvailable:")?;
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    Some(
        control_group_available_bytes(Path::new("/sys/fs/cgroup"), &groups)
            .map_or(system, |group| group.min(system)),
    )
}

/// The most bytes this process has had resident at once. `None` where the system does not say.
pub fn peak_resident_bytes() -> Option<u64> {
    kilobytes(&fs::read_to_string("/proc/self/status").ok()?, "VmHWM:")
}

/// Processor time that the calling thread has used. `None` where the system does not say.
pub fn thread_cpu_seconds() -> Option<f64> {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the system writes one `timespec` to the place it is given.
    let result = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    (result == 0).then_some(time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9)
}

/// Gives memory that was freed back to the system: building a tokenizer or a token cache takes much for a moment, and
/// the allocator would keep it beside the arenas. Does nothing where the allocator has no such call.
pub fn release_freed() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: `malloc_trim` takes no pointer and touches only pages that the allocator holds as free; glibc documents
    // it as thread-safe.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Prepares the allocator for ranks: they allocate next to nothing while they run, so threads that start from now on
/// share one heap, and what a library frees goes back to the system instead of
/// staying with each thread. Does nothing where the allocator has no such settings.
pub fn keep_heap_small() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: `mallopt` takes two numbers and no pointer; glibc documents it as thread-safe, and these limits affect
    // only where later allocations are made and when free memory is given back.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
        libc::mallopt(libc::M_MMAP_THRESHOLD, 256 << 10);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 1 << 20);
    }
}

#[cfg(test)]
pub(crate) fn resident_bytes() -> Option<u64> {
    kilobytes(&fs::read_to_string("/proc/self/status").ok()?, "VmRSS:")
}

/// The value in bytes of the line `key  1234 kB`.
fn kilobytes(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// The least that any control group on the way from ours up to the root leaves.
fn control_group_available_bytes(root: &Path, groups: &str) -> Option<u64> {
    groups
        .lines()
        .filter_map(|line| {
            let mut fields = line.splitn(3, ':');
            let (_, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
            let (top, files) = if controllers.is_empty() {
                (root.to_path_buf(), ["memory.max", "memory.current", "inactive_file"])
            } else if controllers.split(',').any(|c| c == "memory") {
                (
                    root.join("memory"),
                    ["memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"],
                )
            } else {
                return None;
            };
            // In a container the path may be of another namespace: then only the levels that exist count.
            let relative = PathBuf::from(path.trim_start_matches('/'));
            relative.ancestors().filter_map(|level| left_bytes(&top.join(level), files)).min()
        })
        .min()
}

/// Limit minus use, where file pages that can be dropped at once do not count as use.
fn left_bytes(group: &Path, [limit, usage, reclaimable]: [&str; 3]) -> Option<u64> {
    let number = |file: &str| fs::read_to_string(group.join(file)).ok()?.trim().parse::<u64>().ok();
    let (limit, usage) = (number(limit)?, number(usage)?); // v2 writes "max" for no limit: no number
    let stat = fs::read_to_string(group.join("memory.stat")).unwrap_or_default();
    let cached =
        stat.lines().find_map(|line| line.strip_prefix(reclaimable)?.trim().parse::<u64>().ok()).unwrap_or(0);
    Some(limit.saturating_sub(usage.saturating_sub(cached)))
}

#[cfg(all(test, not(miri)))]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_os = "linux")]
    fn this_machine_answers() {
        let available = available_bytes().unwrap();
        assert!(available > 1 << 20, "{available}");
        assert!(peak_resident_bytes().unwrap() >= resident_bytes().unwrap() / 2);
    }

    #[test]
    fn sleeping_takes_no_processor_time() {
        let before = thread_cpu_seconds().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(50));
        assert!(thread_cpu_seconds().unwrap() - before < 0.02);
    }

    #[test]
    fn lines_of_proc() {
        assert_eq!(kilobytes("A: 1 kB\nMemAvailable:   12 kB\n", "MemAvailable:"), Some(12 * 1024));
        assert_eq!(kilobytes("MemAvailable: x kB", "MemAvailable:"), None);
    }

    #[test]
    fn the_tightest_group_counts() {
        let root = std::env::temp_dir().join(format!("phalanx-cgroup-{}", std::process::id()));
        let write = |dir: &str, name: &str, text: &str| {
            fs::create_dir_all(root.join(dir)).unwrap();
            fs::write(root.join(dir).join(name), text).unwrap();
        };
        write("a/b", "memory.max", "max\n");
        write("a/b", "memory.current", "10\n");
        write("a", "memory.max", "1000\n");
        write("a", "memory.current", "400\n");
        write("a", "memory.stat", "anon 5\ninactive_file 100\n");
        write("memory/v1", "memory.limit_in_bytes", "600\n");
        write("memory/v1", "memory.usage_in_bytes", "100\n");
        assert_eq!(control_group_available_bytes(&root, "0::/a/b\n"), Some(700));
        assert_eq!(control_group_available_bytes(&root, "4:cpu,memory:/v1\n0::/a/b\n"), Some(500));
        assert_eq!(control_group_available_bytes(&root, "4:cpu:/v1\n"), None);
        fs::remove_dir_all(&root).unwrap();
    }
}
