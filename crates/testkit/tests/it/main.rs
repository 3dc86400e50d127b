//! The release gate: every layout trains the same model, and the tests that say so can fail.

mod families;
mod finite_differences;
mod length_buckets;
mod mixed_precision;
mod mutants;
mod overlap;
mod parity;
mod post_validation;
mod random_legal;
mod recompute;
mod schedules;
mod tasks;
mod virtual_clock;
