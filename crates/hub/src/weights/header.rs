//! The header of a safetensors file: where each tensor lies. Every number is checked against the file's size.

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Error, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::StoredType;
use super::json::Members;

/// The one key of a header that is not a tensor.
pub(crate) const METADATA: &str = "__metadata__";
/// Largest header that the format allows.
const MAX_HEADER_BYTES: usize = 100_000_000;
/// More dims than any tensor of any model has.
const MAX_DIMS: usize = 16;
/// Bytes before the header: its length.
const LENGTH_BYTES: usize = 8;

/// Where a tensor lies in its file.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Entry {
    pub dtype: StoredType,
    pub shape: Vec<usize>,
    /// First byte, counted from the start of the file.
    pub start: usize,
    pub bytes: usize,
}

/// All tensors of a file, by name.
#[derive(Debug, Clone, Default)]
pub(crate) struct Header {
    pub entries: BTreeMap<String, Entry>,
}

/// What is wrong with a header, and with which tensor if with one.
#[derive(Debug)]
pub(crate) struct Problem {
    pub tensor: Option<String>,
    pub reason: String,
}

impl Problem {
    fn file(reason: String) -> Problem {
        Problem { tensor: None, reason }
    }

    fn tensor(name: &str, reason: String) -> Problem {
        Problem { tensor: Some(name.to_owned()), reason }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTensor {
    dtype: String,
    shape: Shape,
    data_offsets: (usize, usize),
}

/// Sizes of dims, few: a shape must not become much larger in memory than it is in the file.
struct Shape(Vec<usize>);

impl<'de> Deserialize<'de> for Shape {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visit;
        impl<'de> Visitor<'de> for Visit {
            type Value = Shape;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a list of at most {MAX_DIMS} sizes")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut sizes: A) -> Result<Shape, A::Error> {
                let mut shape = Vec::new();
                while let Some(size) = sizes.next_element()? {
                    if shape.len() == MAX_DIMS {
                        return Err(A::Error::custom(format_args!("it has more than {MAX_DIMS} dims")));
                    }
                    shape.push(size);
                }
                Ok(Shape(shape))
            }
        }
        deserializer.deserialize_seq(Visit)
    }
}

impl Header {
    /// Reads the header of a file's bytes. Tensors must fill the rest of the file exactly, as the format demands.
    pub(crate) fn parse(file: &[u8]) -> Result<Header, Problem> {
        let Some((length, rest)) = file.split_first_chunk::<LENGTH_BYTES>() else {
            return Err(Problem::file(format!("{} bytes hold no safetensors header", file.len())));
        };
        let declared = u64::from_le_bytes(*length);
        let text = usize::try_from(declared)
            .ok()
            .filter(|length| *length <= MAX_HEADER_BYTES)
            .and_then(|length| rest.get(..length))
            .ok_or_else(|| {
                let len = file.len();
                Problem::file(format!("a header of {declared} bytes does not fit a file of {len} bytes"))
            })?;
        let members: Members<&RawValue> = serde_json::from_slice(text)
            .map_err(|e| Problem::file(format!("its header is not what safetensors writes: {e}")))?;
        let data_start = LENGTH_BYTES + text.len();
        let mut entries = BTreeMap::new();
        for (name, raw) in members.0 {
            if name != METADATA {
                let entry = entry(&name, raw, data_start, file.len())?;
                entries.insert(name, entry);
            }
        }
        check_cover(&entries, data_start, file.len())?;
        Ok(Header { entries })
    }
}

fn entry(name: &str, raw: &RawValue, data_start: usize, file_bytes: usize) -> Result<Entry, Problem> {
    let raw: RawTensor = serde_json::from_str(raw.get())
        .map_err(|e| Problem::tensor(name, format!("its header entry: {e}")))?;
    let Some(dtype) = StoredType::from_name(&raw.dtype) else {
        let known = StoredType::names();
        return Err(Problem::tensor(name, format!("type `{}` is not known; known are {known}", raw.dtype)));
    };
    let (start, end) = raw.data_offsets;
    let data_bytes = file_bytes - data_start;
    let bytes = raw.shape.0.iter().try_fold(dtype.size_bytes(), |n, size| n.checked_mul(*size));
    if start > end || end > data_bytes || bytes != Some(end - start) {
        let shape = &raw.shape.0;
        return Err(Problem::tensor(
            name,
            format!("{dtype} of shape {shape:?} cannot lie at bytes {start}..{end} of {data_bytes}"),
        ));
    }
    Ok(Entry { dtype, shape: raw.shape.0, start: data_start + start, bytes: end - start })
}

/// Tensors lie one after another without overlap or gap, to the end of the file.
fn check_cover(
    entries: &BTreeMap<String, Entry>,
    data_start: usize,
    file_bytes: usize,
) -> Result<(), Problem> {
    let mut order: Vec<(&String, &Entry)> = entries.iter().collect();
    order.sort_by_key(|(_, e)| (e.start, e.bytes));
    let mut at = data_start;
    for (name, entry) in order {
        if entry.start != at {
            let what =
                if entry.start < at { "overlaps the tensor before it" } else { "leaves a gap before it" };
            return Err(Problem::tensor(
                name,
                format!("at byte {} it {what} (which ends at {at})", entry.start),
            ));
        }
        at += entry.bytes;
    }
    if at == file_bytes {
        Ok(())
    } else {
        Err(Problem::file(format!(
            "its tensors end at byte {at} of {file_bytes}; the file is cut short or has a tail"
        )))
    }
}
