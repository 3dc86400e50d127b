//! The real binary on small configurations: what it prints, how it exits, and what it leaves behind.

mod commands;
mod hugging_face;
mod kill;
#[cfg(feature = "gloo")]
mod launch;
#[cfg(feature = "mpi")]
mod launch_mpi;
mod place;
mod refusals;
mod runs;
