//! `cargo xtask test-processes`: the tests of runs in several processes. Which services this machine has, what is built
//! for them, and which tests that makes possible; what they test is not decided here.

use std::path::Path;
use std::process::{Command, Stdio};

use crate::{cargo, root, run};

/// Something that a feature needs beyond the Rust toolchain.
struct Service {
    feature: &'static str,
    /// Programs that end well where it is installed.
    signs: &'static [&'static [&'static str]],
    packages: &'static str,
}

const SERVICES: [Service; 3] = [
    Service {
        feature: "gloo",
        signs: &[&[
            "c++",
            "-std=c++17",
            "-fsyntax-only",
            "-include",
            "gloo/context.h",
            "-x",
            "c++",
            "/dev/null",
        ]],
        packages: "libgloo-dev g++",
    },
    Service {
        feature: "mpi",
        signs: &[&["mpicc", "--version"], &["mpirun", "--version"]],
        packages: "libopenmpi-dev openmpi-bin libclang-dev openssh-client",
    },
    Service {
        feature: "etcd",
        signs: &[&["etcd", "--version"], &["protoc", "--version"]],
        packages: "etcd-server protobuf-compiler libprotobuf-dev",
    },
];

/// Modules of tests that `cargo xtask test` runs and features change nothing of.
const NOT_OF_PROCESSES: [&str; 6] =
    ["commands::", "kill::", "refusals::", "runs::", "threads::", "operations_do_not_allocate"];

fn is_fine(words: &[&str]) -> bool {
    let Some((program, arguments)) = words.split_first() else { return false };
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

/// Runs them; with `strict` a service that is missing is a failure, else it is named as skipped.
pub fn test(full: bool, strict: bool) -> Result<(), String> {
    let (mut features, mut missing) = (Vec::new(), Vec::new());
    for service in SERVICES {
        if service.signs.iter().all(|sign| is_fine(sign)) {
            features.push(service.feature);
        } else {
            println!("skipped: tests of {} (install {})", service.feature, service.packages);
            missing.push(service.feature);
        }
    }
    if strict && !missing.is_empty() {
        return Err(format!("{} must be tested here and cannot be", missing.join(", ")));
    }
    if !features.iter().any(|feature| ["gloo", "mpi"].contains(feature)) {
        println!("skipped: all tests of several processes");
        return Ok(());
    }
    let of =
        |package: &str| features.iter().map(move |f| format!("{package}/{f}")).collect::<Vec<_>>().join(",");
    let packages = ["-p", "phalanx-comm", "-p", "phalanx-cli"];
    let chosen = [of("phalanx-comm"), of("phalanx-cli"), "phalanx-cli/faults".to_owned()].join(",");
    let mut tests = cargo(&["test", "--release"]);
    tests.args(packages).args(["--features", &chosen, "--tests", "--"]);
    // One at a time: they measure how soon a failure is noticed.
    tests.arg("--test-threads=1");
    tests.args(NOT_OF_PROCESSES.iter().flat_map(|module| ["--skip", module]));
    match full {
        true => tests.env("PHALANX_FULL", "1"),
        false => tests.env_remove("PHALANX_FULL"),
    };
    run(tests)?;
    // `cargo xtask lint` sees the code of the default features alone.
    let mut clippy = cargo(&["clippy", "--release"]);
    clippy.args(packages).args(["--features", &chosen, "--all-targets", "--", "-D", "warnings"]);
    run(clippy)?;
    mpich(strict)?;
    // The command's tests have built it with these features.
    let phalanx = crate::target_dir().map_err(|failure| failure.to_string())?.join("release/phalanx");
    if !features.contains(&"gloo") {
        println!("skipped: several hosts, Slurm (they need the feature gloo)");
        return Ok(());
    }
    script("hosts.sh", &phalanx, strict)?;
    script("slurm.sh", &phalanx, strict)
}

/// The same collectives over MPICH, whose Debian packages stand beside OpenMPI's. The library is chosen when the bindings
/// are built, hence a target directory of its own.
fn mpich(strict: bool) -> Result<(), String> {
    if ![&["mpicc.mpich", "-v"][..], &["mpirun.mpich", "--version"]].into_iter().all(is_fine) {
        println!("skipped: collectives over MPICH (install libmpich-dev mpich libclang-dev)");
        return if strict { Err("MPICH must be tested here and cannot be".to_owned()) } else { Ok(()) };
    }
    let target = crate::target_dir().map_err(|failure| failure.to_string())?.join("mpich");
    let mut tests = cargo(&["test", "--release", "-p", "phalanx-comm", "--features", "mpi", "--test", "mpi"]);
    tests.env("MPICC", "mpicc.mpich").env("CARGO_TARGET_DIR", target);
    tests.env("PHALANX_TEST_MPIRUN", "mpirun.mpich");
    run(tests)
}

/// A test that is a script. It says itself what it cannot do here; with `strict` that is a failure.
fn script(name: &str, phalanx: &Path, strict: bool) -> Result<(), String> {
    let script = root().join("crates/cli/tests").join(name);
    println!("$ {} {}", script.display(), phalanx.display());
    let mut command = Command::new("bash");
    command.arg(&script).arg(phalanx);
    if strict {
        command.env("PHALANX_TEST_STRICT", "1");
    }
    let status = command.status().map_err(|e| format!("bash: {e}"))?;
    if status.success() { Ok(()) } else { Err(format!("{} ended with {status}", script.display())) }
}
