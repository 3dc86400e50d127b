//! The real binary on small configurations: what it prints, how it exits, and what it leaves behind.

mod commands;
mod kill;
mod place;
mod refusals;
mod runs;
