//! The real binary on small configurations: what it prints, how it exits, and what it leaves behind.

mod commands;
#[cfg(all(feature = "gloo", feature = "etcd"))]
mod etcd;
#[cfg(all(feature = "faults", any(feature = "gloo", feature = "mpi")))]
mod faults;
mod hugging_face;
#[cfg(any(feature = "gloo", feature = "mpi"))]
mod job;
mod kill;
#[cfg(feature = "gloo")]
mod launch;
#[cfg(feature = "mpi")]
mod launch_mpi;
#[cfg(all(feature = "gloo", feature = "etcd"))]
mod manifests;
#[cfg(any(feature = "gloo", feature = "mpi"))]
mod parity_processes;
mod place;
mod refusals;
mod runs;
mod tasks;
