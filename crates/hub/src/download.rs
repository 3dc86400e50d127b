//! Directories from the hub by id. The only file that touches the network; it exists with the feature `download`.

use std::path::PathBuf;

use hf_hub::api::sync::{ApiBuilder, ApiRepo};
use hf_hub::{Repo, RepoType};

use crate::HubError;
use crate::config::CONFIG_FILE;
use crate::export::COMPANIONS;
use crate::weights::{INDEX_FILE, SINGLE_FILE};

/// Revision that is fetched unless another is asked for.
const DEFAULT_REVISION: &str = "main";

/// Fetches a model's directory into the hub's cache (or finds it there) and says where it is.
///
/// `id` is `owner/name`, as on the hub. Only `config.json`, safetensors and the tokenizer's files are fetched.
///
/// # Errors
/// An id that is none; no network; no such model; a model without safetensors.
pub fn download(id: &str, revision: Option<&str>) -> Result<PathBuf, HubError> {
    let failed =
        |file: &str, reason: String| HubError::Download { id: id.to_owned(), file: file.to_owned(), reason };
    if !is_id(id) {
        return Err(failed("it", "an id has the form owner/name".into()));
    }
    let revision = revision.unwrap_or(DEFAULT_REVISION);
    let api = ApiBuilder::from_env().build().map_err(|e| failed("it", e.to_string()))?;
    let repo = api.repo(Repo::with_revision(id.to_owned(), RepoType::Model, revision.to_owned()));
    let info = repo.info().map_err(|e| failed("its list of files", e.to_string()))?;
    let files: Vec<String> = info.siblings.into_iter().map(|file| file.rfilename).collect();
    let get = |repo: &ApiRepo, file: &str| repo.get(file).map_err(|e| failed(file, e.to_string()));
    let config = get(&repo, CONFIG_FILE)?;
    // as when reading: one file before shards
    let is_single = files.iter().any(|file| file == SINGLE_FILE);
    let weights = |file: &String| match is_single {
        true => file == SINGLE_FILE,
        false => file == INDEX_FILE || (file.ends_with(".safetensors") && !file.contains('/')),
    };
    let mut has_weights = false;
    for file in &files {
        if weights(file) {
            has_weights = true;
        } else if !COMPANIONS.contains(&file.as_str()) {
            continue;
        }
        get(&repo, file)?;
    }
    let dir = config.parent().map(PathBuf::from).unwrap_or_default();
    if has_weights { Ok(dir) } else { Err(HubError::NoWeights { dir, present: None }) }
}

fn is_id(id: &str) -> bool {
    let is_part = |part: &str| {
        !part.is_empty()
            && !part.starts_with('.')
            && part.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
    };
    let parts: Vec<&str> = id.split('/').collect();
    parts.len() <= 2 && parts.into_iter().all(is_part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids() {
        assert!(is_id("gpt2") && is_id("meta-llama/Llama-3.2-1B") && is_id("a/b_c.d"));
        for bad in ["", "a/b/c", "../x", "a/..", "/a", "a/", "a b", "a/b?c", "https://x"] {
            assert!(!is_id(bad), "{bad}");
            assert!(matches!(download(bad, None), Err(HubError::Download { .. })));
        }
    }
}
