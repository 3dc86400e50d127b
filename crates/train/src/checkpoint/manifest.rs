//! The manifest: what a checkpoint holds and which file has it. It is sealed by a checksum over its own bytes, so a
//! flipped bit anywhere in it is found.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use mesh::Tile;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::dtype::DType;
use super::error::CheckpointError;

/// The version of the format that this program writes and reads.
pub const FORMAT_VERSION: u64 = 1;
/// Largest manifest that is read.
const MAX_BYTES: u64 = 1 << 30;
/// What precedes the checksum's digits in the text.
const SEAL_KEY: &str = "\"checksum\": \"";
/// The checksum's digits while the checksum is computed.
const BLANK: [u8; 64] = [b'0'; 64];

/// What one checkpoint holds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Manifest {
    /// Version of the format, [`FORMAT_VERSION`].
    pub format_version: u64,
    /// Version of the program that wrote it.
    pub phalanx_version: String,
    /// The model's description; a load compares it key by key.
    pub model: Value,
    /// Hash of the tokenizer's file, if there is one.
    pub tokenizer_hash: Option<String>,
    /// Optimizer steps taken.
    pub step: u64,
    /// Position in the stream of training data.
    pub data_position: u64,
    /// Seed of the run: random numbers are counted from it.
    pub seed: u64,
    /// Whatever else the run must remember.
    pub extra: BTreeMap<String, String>,
    /// The mesh that wrote it, for people; a load does not need it.
    pub layout: String,
    /// Every tensor by name.
    pub tensors: BTreeMap<String, TensorEntry>,
    /// Every data file.
    pub shards: Vec<ShardEntry>,
    /// blake3 of this text with these digits set to 0.
    pub checksum: String,
}

/// One tensor and where its elements are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TensorEntry {
    /// Type of the elements.
    pub dtype: DType,
    /// Global shape, without padding.
    pub shape: Vec<usize>,
    /// Parts that together hold each element once.
    pub pieces: Vec<Piece>,
}

/// The elements of one tensor that one rank wrote.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Piece {
    /// File name of the shard, one of [`Manifest::shards`].
    pub shard: String,
    /// Name of the array in that file.
    pub key: String,
    /// Which elements, in which order (padding is not stored).
    pub tile: Tile,
}

/// One data file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardEntry {
    /// File name, `shard-NNNNN.safetensors`.
    pub file: String,
    /// Size.
    pub bytes: u64,
    /// Hash of the whole file, in hexadecimal.
    pub blake3: String,
}

impl Manifest {
    /// A manifest of a model after `step` steps, everything else empty. [`commit`](super::commit) fills in versions,
    /// tensors, shards and checksum.
    pub fn new(model: Value, step: u64) -> Manifest {
        Manifest {
            format_version: FORMAT_VERSION,
            phalanx_version: env!("CARGO_PKG_VERSION").into(),
            model,
            tokenizer_hash: None,
            step,
            data_position: 0,
            seed: 0,
            extra: BTreeMap::new(),
            layout: String::new(),
            tensors: BTreeMap::new(),
            shards: Vec::new(),
            checksum: String::new(),
        }
    }

    /// The text to store, with its checksum.
    pub(super) fn seal(mut self) -> Result<Vec<u8>, serde_json::Error> {
        self.checksum = String::from_utf8_lossy(&BLANK).into_owned();
        let mut text = serde_json::to_vec_pretty(&self)?;
        text.push(b'\n');
        let digits = blake3::hash(&text).to_hex();
        if let Some(at) = seal_position(&text) {
            text[at..at + BLANK.len()].copy_from_slice(digits.as_bytes());
        }
        Ok(text)
    }

    /// Reads a stored manifest and checks its seal; what it says about files is not checked here.
    pub(super) fn load(path: &Path) -> Result<Manifest, CheckpointError> {
        let bad = |reason: String| CheckpointError::BadManifest { path: path.to_owned(), reason };
        let meta = std::fs::metadata(path).map_err(CheckpointError::io("open", path))?;
        if !meta.is_file() || meta.len() > MAX_BYTES {
            return Err(bad(format!("it is not a regular file of at most {MAX_BYTES} bytes")));
        }
        let file = File::open(path).map_err(CheckpointError::io("open", path))?;
        let mut text = Vec::new();
        file.take(MAX_BYTES).read_to_end(&mut text).map_err(CheckpointError::io("read", path))?;
        Manifest::unseal(text).map_err(|problem| match problem {
            Unsealed::Bad(reason) => bad(reason),
            Unsealed::Version(found) => CheckpointError::UnsupportedVersion {
                path: path.to_owned(),
                found,
                supported: FORMAT_VERSION,
            },
        })
    }

    fn unseal(mut text: Vec<u8>) -> Result<Manifest, Unsealed> {
        #[derive(Deserialize)]
        struct Version {
            format_version: u64,
        }
        let checksum = seal_position(&text).map(|at| {
            let stored = String::from_utf8_lossy(&text[at..at + BLANK.len()]).into_owned();
            text[at..at + BLANK.len()].copy_from_slice(&BLANK);
            stored
        });
        let sealed = checksum.as_ref().map(|stored| *stored == *blake3::hash(&text).to_hex());
        let version = serde_json::from_slice::<Version>(&text).map(|v| v.format_version);
        match (version, sealed) {
            // another version may be sealed in another way
            (Ok(found), Some(true) | None) if found != FORMAT_VERSION => {
                return Err(Unsealed::Version(found));
            }
            (_, Some(true)) => {}
            (Err(e), _) => return Err(Unsealed::Bad(e.to_string())),
            (Ok(_), Some(false)) => {
                return Err(Unsealed::Bad(
                    "it has changed since it was written (its checksum differs)".into(),
                ));
            }
            (Ok(_), None) => return Err(Unsealed::Bad("it has no checksum".into())),
        }
        let manifest: Manifest = serde_json::from_slice(&text).map_err(|e| Unsealed::Bad(e.to_string()))?;
        Ok(Manifest { checksum: checksum.unwrap_or_default(), ..manifest })
    }
}

enum Unsealed {
    Bad(String),
    Version(u64),
}

/// Where the checksum's digits begin.
fn seal_position(text: &[u8]) -> Option<usize> {
    let at = text.windows(SEAL_KEY.len()).rposition(|w| w == SEAL_KEY.as_bytes())? + SEAL_KEY.len();
    (text.len() >= at + BLANK.len()).then_some(at)
}

/// The first key (in name order, dotted) at which two descriptions differ, with both values.
pub(super) fn first_difference(saved: &Value, wanted: &Value) -> Option<(String, String, String)> {
    fn go(path: &str, saved: Option<&Value>, wanted: Option<&Value>) -> Option<(String, String, String)> {
        if let (Some(Value::Object(a)), Some(Value::Object(b))) = (saved, wanted) {
            let keys: std::collections::BTreeSet<&String> = a.keys().chain(b.keys()).collect();
            return keys.into_iter().find_map(|key| {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                go(&path, a.get(key), b.get(key))
            });
        }
        if let (Some(Value::Array(a)), Some(Value::Array(b))) = (saved, wanted)
            && a.len() == b.len()
        {
            return (0..a.len()).find_map(|i| go(&format!("{path}[{i}]"), a.get(i), b.get(i)));
        }
        let same = match (saved, wanted) {
            (Some(Value::Number(a)), Some(Value::Number(b))) => {
                a == b || a.is_f64() != b.is_f64() && a.as_f64() == b.as_f64()
            }
            _ => saved == wanted,
        };
        let show = |v: Option<&Value>| v.map_or_else(|| "absent".into(), Value::to_string);
        (!same)
            .then(|| (if path.is_empty() { "model".into() } else { path.into() }, show(saved), show(wanted)))
    }
    go("", Some(saved), Some(wanted))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_seal_breaks_at_every_flipped_bit() {
        let mut manifest = Manifest::new(json!({ "family": "llama", "embed": 8 }), 7);
        manifest.extra.insert("note \"checksum\": \"".into(), "\"checksum\": \"0000".into());
        let text = manifest.seal().unwrap();
        let back = Manifest::unseal(text.clone()).ok().unwrap();
        assert_eq!((back.step, &back.model["embed"]), (7, &json!(8)));
        for at in 0..text.len() {
            for bit in 0..8 {
                let mut text = text.clone();
                text[at] ^= 1 << bit;
                assert!(Manifest::unseal(text).is_err(), "byte {at} bit {bit}");
            }
        }
        for len in 0..text.len() {
            assert!(Manifest::unseal(text[..len].to_vec()).is_err(), "length {len}");
        }
    }

    #[test]
    fn a_newer_format_is_told_from_damage() {
        let mut manifest = Manifest::new(json!({}), 7);
        manifest.format_version = 9;
        assert!(matches!(Manifest::unseal(manifest.seal().unwrap()), Err(Unsealed::Version(9))));
        assert!(matches!(Manifest::unseal(b"{\"format_version\": 3}".to_vec()), Err(Unsealed::Version(3))));
    }

    #[test]
    fn the_first_difference_is_named() {
        let a = json!({ "embed": 8, "eps": 1e-5, "rope": { "theta": 1e4, "kind": "x" }, "list": [1, 2] });
        assert_eq!(first_difference(&a, &a), None);
        let mut b = a.clone();
        b["rope"]["theta"] = json!(10000);
        assert_eq!(first_difference(&a, &b), None);
        b["rope"]["theta"] = json!(5);
        let expected = ("rope.theta".to_string(), "10000.0".to_string(), "5".to_string());
        assert_eq!(first_difference(&a, &b), Some(expected));
        b["list"][1] = json!(3);
        b["bias"] = json!(true);
        assert_eq!(first_difference(&a, &b), Some(("bias".into(), "absent".into(), "true".into())));
        assert_eq!(first_difference(&json!(1), &json!(2)).unwrap().0, "model");
    }
}
