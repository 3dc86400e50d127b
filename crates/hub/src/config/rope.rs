//! Rotary position embedding and its published scalings, as numbers: one inverse frequency per pair.

use std::path::Path;

use serde_json::{Map, Value};

use super::keys::Keys;
use super::set;
use crate::HubError;

/// Base of the frequencies when the file names none.
const DEFAULT_THETA: f64 = 10_000.0;

/// How the frequencies are stretched for sequences longer than those of pretraining.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// All divided by a factor (position interpolation; Chen et al., 2023).
    Linear {
        /// The factor.
        factor: f64,
    },
    /// A base that grows with the sequence beyond the pretrained length ("NTK-aware").
    Dynamic {
        /// The factor.
        factor: f64,
    },
    /// High frequencies kept, low ones divided, between two numbers of rotations (YaRN; Peng et al., 2023).
    Yarn {
        /// The factor.
        factor: f64,
        /// Length of pretraining.
        original_max_positions: usize,
        /// Rotations from which on a frequency is kept.
        beta_fast: f64,
        /// Rotations up to which a frequency is divided.
        beta_slow: f64,
        /// Factor on cosine and sine.
        attention_factor: f64,
        /// Whether the borders are rounded to whole pairs.
        truncate: bool,
    },
    /// A divisor for each frequency, one list up to the pretrained length and another beyond it (LongRoPE; Ding et al.,
    /// 2024).
    LongRope {
        /// Divisors for sequences up to the pretrained length.
        short: Vec<f64>,
        /// Divisors for longer ones.
        long: Vec<f64>,
        /// Length of pretraining.
        original_max_positions: usize,
        /// Factor on cosine and sine.
        attention_factor: f64,
    },
    /// The scaling of Llama 3.1.
    Llama3 {
        /// The factor.
        factor: f64,
        /// Of the pretrained length: wavelengths above the length divided by it are stretched fully.
        low_freq_factor: f64,
        /// Of the pretrained length: wavelengths below the length divided by it are kept.
        high_freq_factor: f64,
        /// Length of pretraining.
        original_max_positions: usize,
    },
}

/// Rotary positions of a model.
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    /// Base of the frequencies.
    pub theta: f64,
    /// Their scaling.
    pub scaling: RopeScaling,
}

/// What a rotary embedding multiplies positions with.
#[derive(Debug, Clone, PartialEq)]
pub struct Frequencies {
    /// Angle per position of each pair: half a head's width of them.
    pub inverse: Vec<f64>,
    /// Factor on cosine and sine.
    pub attention_factor: f64,
}

impl Rope {
    /// Reads `rope_parameters`, or `rope_theta` and `rope_scaling` of older files.
    pub(super) fn read(keys: &Keys<'_>, head_dim: usize, max_positions: usize) -> Result<Rope, HubError> {
        if keys.optional_number("partial_rotary_factor")?.is_some_and(|f| f != 1.0) {
            return Err(keys.refuse("partial_rotary_factor", "1.0"));
        }
        let new = keys.get("rope_parameters");
        let (name, nested) = match new {
            Some(value) => ("rope_parameters", Some(value)),
            None => ("rope_scaling", keys.get("rope_scaling")),
        };
        let theta = keys.positive_or("rope_theta", DEFAULT_THETA)?;
        let Some(nested) = nested else { return Ok(Rope { theta, scaling: RopeScaling::None }) };
        let map = nested.as_object().ok_or_else(|| keys.refuse(name, "an object"))?;
        let prefix = format!("{name}.");
        let nested = Keys { map, prefix: &prefix, ..*keys };
        if nested.optional_number("partial_rotary_factor")?.is_some_and(|f| f != 1.0) {
            return Err(nested.refuse("partial_rotary_factor", "1.0"));
        }
        let theta = nested.positive_or("rope_theta", theta)?;
        // beside the object it comes first, for `transformers` too
        let pretrained = match keys.optional_size("original_max_position_embeddings")? {
            Some(length) => length,
            None => nested.size_or("original_max_position_embeddings", max_positions)?,
        };
        Ok(Rope { theta, scaling: RopeScaling::read(&nested, head_dim, max_positions, pretrained)? })
    }

    /// Writes the form that the file has, the newer one if it has none. What already says the same is left as it is:
    /// much of it may be derived from other keys.
    pub(super) fn write(&self, map: &mut Map<String, Value>, head_dim: usize, max_positions: usize) {
        let keys = Keys { path: Path::new(""), model_type: "", map, prefix: "" };
        let is_said = map.contains_key("rope_parameters") || map.contains_key("rope_theta");
        if is_said && Rope::read(&keys, head_dim, max_positions).is_ok_and(|old| old == *self) {
            return;
        }
        let old = map.contains_key("rope_scaling") || map.contains_key("rope_theta");
        if old && !map.contains_key("rope_parameters") {
            set(map, "rope_theta", self.theta);
            match &self.scaling {
                RopeScaling::None => {
                    // `default` and null say the same
                    let is_default =
                        map.get("rope_scaling").is_none_or(|v| v.is_null() || kind(v) == Some("default"));
                    if !is_default {
                        map.insert("rope_scaling".into(), Value::Null);
                    }
                }
                scaling => scaling.write(object(map, "rope_scaling")),
            }
            return;
        }
        let nested = object(map, "rope_parameters");
        set(nested, "rope_theta", self.theta);
        self.scaling.write(nested);
    }

    /// The frequencies for sequences of up to `sequence_length` tokens.
    ///
    /// # Source
    /// `transformers`, `modeling_rope_utils.py`; each scaling's paper is named at [`RopeScaling`].
    pub fn frequencies(&self, head_dim: usize, max_positions: usize, sequence_length: usize) -> Frequencies {
        let dim = head_dim as f64;
        let with_base = |theta: f64| -> Vec<f64> {
            (0..head_dim / 2).map(|i| theta.powf(-((2 * i) as f64) / dim)).collect()
        };
        let plain = with_base(self.theta);
        let mut attention_factor = 1.0;
        let inverse = match &self.scaling {
            RopeScaling::None => plain,
            RopeScaling::Linear { factor } => plain.into_iter().map(|f| f / factor).collect(),
            RopeScaling::Dynamic { factor } => {
                let stretch = sequence_length.max(max_positions) as f64 / max_positions as f64;
                let growth = factor * stretch - (factor - 1.0);
                with_base(self.theta * growth.powf(dim / (dim - 2.0)))
            }
            RopeScaling::LongRope { short, long, original_max_positions, attention_factor: on_values } => {
                attention_factor = *on_values;
                let divisors = if sequence_length > *original_max_positions { long } else { short };
                plain.iter().zip(divisors).map(|(f, divisor)| f / divisor).collect()
            }
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_positions } => {
                let length = *original_max_positions as f64;
                let stretched = |f: f64| {
                    let rotations = length * f / std::f64::consts::TAU;
                    if rotations < *low_freq_factor {
                        f / factor
                    } else if rotations > *high_freq_factor {
                        f
                    } else {
                        let smooth = (rotations - low_freq_factor) / (high_freq_factor - low_freq_factor);
                        (1.0 - smooth) * f / factor + smooth * f
                    }
                };
                plain.into_iter().map(stretched).collect()
            }
            RopeScaling::Yarn {
                factor,
                original_max_positions,
                beta_fast,
                beta_slow,
                attention_factor: on_values,
                truncate,
            } => {
                attention_factor = *on_values;
                let length = *original_max_positions as f64;
                // the pair that turns so many times within the pretrained length
                let pair = |rotations: f64| {
                    dim * (length / (rotations * std::f64::consts::TAU)).ln() / (2.0 * self.theta.ln())
                };
                let (mut low, mut high) = (pair(*beta_fast), pair(*beta_slow));
                if *truncate {
                    (low, high) = (low.floor(), high.ceil());
                }
                (low, high) = (low.max(0.0), high.min(dim - 1.0));
                if low == high {
                    high += 0.001;
                }
                let kept = |i: usize| 1.0 - ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
                plain.iter().enumerate().map(|(i, f)| f / factor * (1.0 - kept(i)) + f * kept(i)).collect()
            }
        };
        Frequencies { inverse, attention_factor }
    }
}

impl RopeScaling {
    /// `original_max_positions`: length of pretraining.
    fn read(
        keys: &Keys<'_>,
        head_dim: usize,
        max_positions: usize,
        original_max_positions: usize,
    ) -> Result<RopeScaling, HubError> {
        const KINDS: &str = "\"default\", \"linear\", \"dynamic\", \"yarn\", \"longrope\", \"llama3\"";
        // `type` is the older name
        let key = if keys.get("rope_type").is_some() { "rope_type" } else { "type" };
        let needed =
            |name: &str| keys.optional_positive(name)?.ok_or_else(|| keys.refuse(name, "a number above 0"));
        let factor = || match needed("factor")? {
            factor if factor >= 1.0 => Ok(factor),
            _ => Err(keys.refuse("factor", "a number of at least 1")),
        };
        match keys.optional_text(key)? {
            None | Some("default") => Ok(RopeScaling::None),
            Some("linear") => Ok(RopeScaling::Linear { factor: factor()? }),
            Some("dynamic") if head_dim > 2 => Ok(RopeScaling::Dynamic { factor: factor()? }),
            Some("dynamic") => Err(keys.refuse(key, "another type for heads of width 2")),
            Some("llama3") => {
                let (low, high) = (needed("low_freq_factor")?, needed("high_freq_factor")?);
                if high <= low {
                    return Err(
                        keys.refuse("high_freq_factor", format!("a number above low_freq_factor = {low}"))
                    );
                }
                Ok(RopeScaling::Llama3 {
                    factor: factor()?,
                    low_freq_factor: low,
                    high_freq_factor: high,
                    original_max_positions,
                })
            }
            Some("yarn") => RopeScaling::read_yarn(keys, factor()?, original_max_positions),
            Some("longrope") => {
                RopeScaling::read_longrope(keys, head_dim, max_positions, original_max_positions)
            }
            Some(_) => Err(keys.refuse(key, KINDS)),
        }
    }

    fn read_yarn(
        keys: &Keys<'_>,
        factor: f64,
        original_max_positions: usize,
    ) -> Result<RopeScaling, HubError> {
        let temperature = |scale: f64| if factor <= 1.0 { 1.0 } else { 0.1 * scale * factor.ln() + 1.0 };
        let scale = |key| Ok::<_, HubError>(keys.optional_number(key)?.filter(|s| *s != 0.0));
        let attention_factor =
            match (keys.optional_positive("attention_factor")?, scale("mscale")?, scale("mscale_all_dim")?) {
                (Some(given), _, _) => given,
                (None, Some(one), Some(all)) => temperature(one) / temperature(all),
                _ => temperature(1.0),
            };
        Ok(RopeScaling::Yarn {
            factor,
            original_max_positions,
            beta_fast: keys.positive_or("beta_fast", 32.0)?,
            beta_slow: keys.positive_or("beta_slow", 1.0)?,
            attention_factor,
            truncate: keys.flag_or("truncate", true)?,
        })
    }

    fn read_longrope(
        keys: &Keys<'_>,
        head_dim: usize,
        max_positions: usize,
        original_max_positions: usize,
    ) -> Result<RopeScaling, HubError> {
        let num = head_dim / 2;
        let divisors = |key: &str| {
            let list = keys.get(key).and_then(Value::as_array).filter(|list| list.len() == num);
            let numbers: Option<Vec<f64>> =
                list.and_then(|list| list.iter().map(|v| v.as_f64().filter(|x| *x > 0.0)).collect());
            numbers.ok_or_else(|| {
                keys.refuse(key, format!("a list of {num} numbers above 0, half the width of a head"))
            })
        };
        let length = original_max_positions as f64;
        let factor = keys.optional_positive("factor")?.unwrap_or(max_positions as f64 / length);
        let by_length = if factor <= 1.0 { 1.0 } else { (1.0 + factor.ln() / length.ln()).sqrt() };
        let attention_factor = keys.optional_positive("attention_factor")?.unwrap_or(by_length);
        if !attention_factor.is_finite() {
            return Err(keys.refuse("original_max_position_embeddings", "2 or more"));
        }
        Ok(RopeScaling::LongRope {
            short: divisors("short_factor")?,
            long: divisors("long_factor")?,
            original_max_positions,
            attention_factor,
        })
    }

    fn name(&self) -> &'static str {
        match self {
            RopeScaling::None => "default",
            RopeScaling::Linear { .. } => "linear",
            RopeScaling::Dynamic { .. } => "dynamic",
            RopeScaling::Yarn { .. } => "yarn",
            RopeScaling::LongRope { .. } => "longrope",
            RopeScaling::Llama3 { .. } => "llama3",
        }
    }

    fn write(&self, map: &mut Map<String, Value>) {
        let key =
            if map.contains_key("type") && !map.contains_key("rope_type") { "type" } else { "rope_type" };
        set(map, key, self.name());
        match self {
            RopeScaling::None => {}
            RopeScaling::Linear { factor } | RopeScaling::Dynamic { factor } => set(map, "factor", *factor),
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_positions } => {
                set(map, "factor", *factor);
                set(map, "low_freq_factor", *low_freq_factor);
                set(map, "high_freq_factor", *high_freq_factor);
                set(map, "original_max_position_embeddings", *original_max_positions);
            }
            RopeScaling::LongRope { short, long, original_max_positions, attention_factor } => {
                set(map, "short_factor", short.clone());
                set(map, "long_factor", long.clone());
                set(map, "original_max_position_embeddings", *original_max_positions);
                set(map, "attention_factor", *attention_factor);
            }
            RopeScaling::Yarn {
                factor,
                original_max_positions,
                beta_fast,
                beta_slow,
                attention_factor,
                truncate,
            } => {
                set(map, "factor", *factor);
                set(map, "original_max_position_embeddings", *original_max_positions);
                set(map, "beta_fast", *beta_fast);
                set(map, "beta_slow", *beta_slow);
                set(map, "attention_factor", *attention_factor);
                if !truncate {
                    set(map, "truncate", false);
                }
            }
        }
    }
}

fn kind(scaling: &Value) -> Option<&str> {
    scaling.get("rope_type").or_else(|| scaling.get("type")).and_then(Value::as_str)
}

/// The object at `key`, made if it is not there.
fn object<'a>(map: &'a mut Map<String, Value>, key: &str) -> &'a mut Map<String, Value> {
    let value = map.entry(key).or_insert_with(|| Value::Object(Map::new()));
    if !value.is_object() {
        *value = Value::Object(Map::new());
    }
    match value {
        Value::Object(object) => object,
        _ => unreachable!("it was made an object above"),
    }
}
