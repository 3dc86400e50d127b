//! Directories made by `transformers` (`fixtures/make.py`), good and spoilt, read and written.

mod bad_config;
mod bad_files;
mod fixtures;
mod fuzz;
mod place;
mod rotary;
mod round_trip;
mod variants;
