//! The release gate: every layout trains the same model.

mod parity;
