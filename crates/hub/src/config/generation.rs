//! `generation_config.json`: what of it decides which text is written, beside what flags say.

use std::path::Path;

use serde_json::{Map, Value};

use super::keys::Keys;
use crate::HubError;
use crate::weights::read_regular;

/// Name of the file.
const GENERATION_FILE: &str = "generation_config.json";

/// Tokens of which each ends a text, if a directory's file says so; none of them if it says null.
///
/// # Errors
/// A file that is not JSON, or tokens that are none.
pub(crate) fn ends(dir: &Path, vocab_size: usize) -> Result<Option<Vec<u32>>, HubError> {
    let path = dir.join(GENERATION_FILE);
    if !path.exists() {
        return Ok(None);
    }
    let map: Map<String, Value> = serde_json::from_slice(&read_regular(&path)?)
        .map_err(|e| HubError::Json { path: path.clone(), reason: e.to_string() })?;
    if !map.contains_key("eos_token_id") {
        return Ok(None);
    }
    let keys = Keys { path: &path, model_type: "", map: &map, prefix: "" };
    keys.tokens("eos_token_id", vocab_size).map(Some)
}
