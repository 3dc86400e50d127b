//! Random numbers by counter, and dropout: each value is a pure function of a key and a global
//! element index, so masks and initial weights do not depend on how tensors are split.
//!
//! Source: Philox4x32-10 of Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011.

use crate::cpu::Cpu;
use crate::float::Float;
use crate::math::{ln_normal, sin_cos_turns};
use crate::parts::{COSTLY, LINE, min_rows, rows_of};
use crate::storage::Storage;

/// A stable 64-bit hash of a name, computed once; [`NamedKey::at`] makes keys of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NamedKey(u64);

impl NamedKey {
    /// The key of the stream `name` at a step of a run with this seed. Steps stay below 2^56.
    pub const fn at(self, seed: u64, step: u64) -> Key {
        Key { key: mix(mix(seed) ^ self.0), step }
    }
}

/// A stream of random numbers, indexed by global element index.
///
/// Distinct steps never share values; distinct (seed, name) pairs collide with probability 2^-64.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    key: u64,
    step: u64,
}

/// Which of a key's separate streams: the top byte of the counter.
const BITS: u64 = 0;
const UNIFORM: u64 = 1 << 56;
const NORMAL: u64 = 2 << 56;

impl Key {
    /// The key of the stream `name` at a step of a run with this seed.
    pub const fn new(seed: u64, step: u64, name: &str) -> Key {
        Key::for_name(name).at(seed, step)
    }

    /// The part of a key that depends on the name alone (FNV-1a of its UTF-8 bytes).
    pub const fn for_name(name: &str) -> NamedKey {
        let bytes = name.as_bytes();
        let mut hash = 0xcbf2_9ce4_8422_2325_u64;
        let mut i = 0;
        while i < bytes.len() {
            hash = (hash ^ bytes[i] as u64).wrapping_mul(0x0000_0100_0000_01b3);
            i += 1;
        }
        NamedKey(hash)
    }

    /// 32 random bits for element `index`.
    #[inline(always)]
    pub fn bits(&self, index: u64) -> u32 {
        let words = self.block(BITS, index >> 2);
        // Selects rather than an index into the words: these vectorise.
        let [low, high] = if index & 1 == 0 { [words[0], words[2]] } else { [words[1], words[3]] };
        if index & 2 == 0 { low } else { high }
    }

    /// A uniform value in [0, 1) for element `index`, with 53 random bits.
    #[inline]
    pub fn uniform(&self, index: u64) -> f64 {
        let words = self.block(UNIFORM, index >> 1);
        let at = (index & 1) as usize * 2;
        unit(words[at], words[at + 1])
    }

    /// A standard normal value for element `index`.
    ///
    /// The same bits on every instruction set and from [`normal_fill`].
    #[inline]
    pub fn normal(&self, index: u64) -> f64 {
        let [even, odd] = self.normal_pair(index >> 1);
        if index & 1 == 0 { even } else { odd }
    }

    /// The normal values of elements 2 `pair` and 2 `pair` + 1, by the Box-Muller transform.
    ///
    /// Polynomials rather than the platform's `ln`, `sin` and `cos`, whose last bits differ between C libraries and
    /// which do not vectorise.
    #[inline(always)]
    fn normal_pair(&self, pair: u64) -> [f64; 2] {
        let [w0, w1, w2, w3] = self.block(NORMAL, pair);
        // 2 - x lies in (0, 1], so the logarithm is finite.
        let radius = (-2.0 * ln_normal(2.0 - from_one_to_two(w0, w1))).sqrt();
        let (sin, cos) = sin_cos_turns(from_one_to_two(w2, w3));
        [radius * cos, radius * sin]
    }

    #[inline(always)]
    fn block(&self, stream: u64, block: u64) -> [u32; 4] {
        let high = self.step ^ stream;
        philox(
            [block as u32, (block >> 32) as u32, high as u32, (high >> 32) as u32],
            [self.key as u32, (self.key >> 32) as u32],
        )
    }
}

/// The finaliser of SplitMix64: a bijection that spreads every input bit.
const fn mix(mut z: u64) -> u64 {
    z = z.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// 53 bits of two words as a value in [0, 1).
fn unit(low: u32, high: u32) -> f64 {
    let bits = (u64::from(high) << 32 | u64::from(low)) >> 11;
    bits as f64 * (1.0 / (1_u64 << 53) as f64)
}

/// 52 bits of two words as a value in [1, 2): they are its fraction.
#[inline(always)]
fn from_one_to_two(low: u32, high: u32) -> f64 {
    f64::from_bits(1023 << 52 | u64::from(high) << 20 | u64::from(low) >> 12)
}

/// Fills `out` with `std` times the [normal values](Key::normal) of the elements from `first_index` on: computed in
/// `f64`, then rounded.
pub fn normal_fill<T: Float>(cpu: &Cpu, key: &Key, first_index: u64, std: f64, out: &mut [T]) {
    cpu.divide(
        out.len(),
        LINE,
        COSTLY,
        out,
        #[inline(always)]
        |part, mut out| {
            let mut index = first_index + part.start as u64;
            if index % 2 == 1 {
                // The second half of a pair.
                let Some((first, rest)) = out.split_first_mut() else { return };
                *first = T::from_f64(std * key.normal(index));
                (out, index) = (rest, index + 1);
            }
            let (pairs, last) = out.as_chunks_mut::<2>();
            for (i, pair) in pairs.iter_mut().enumerate() {
                *pair = key.normal_pair(index / 2 + i as u64).map(
                    #[inline(always)]
                    |x| T::from_f64(std * x),
                );
            }
            if let [last] = last {
                *last = T::from_f64(std * key.normal(index + 2 * pairs.len() as u64));
            }
        },
    );
}

/// The Philox4x32-10 bijection.
///
/// Words are held as 64-bit integers below 2^32: a loop over counters then vectorises without
/// converting between widths.
#[inline(always)]
fn philox(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    const LOW: u64 = u32::MAX as u64;
    let [mut c0, mut c1, mut c2, mut c3] = counter.map(u64::from);
    let [mut k0, mut k1] = key;
    // Unrolled by hand: a loop over rounds keeps the loop over counters from being vectorised.
    macro_rules! round {
        () => {
            let p0 = (c0 & LOW) * 0xd251_1f53;
            let p1 = (c2 & LOW) * 0xcd9e_8d57;
            c0 = (p1 >> 32) ^ c1 ^ u64::from(k0);
            c1 = p1 & LOW;
            c2 = (p0 >> 32) ^ c3 ^ u64::from(k1);
            c3 = p0 & LOW;
        };
    }
    macro_rules! next_round {
        () => {
            k0 = k0.wrapping_add(0x9e37_79b9);
            k1 = k1.wrapping_add(0xbb67_ae85);
            round!();
        };
    }
    round!();
    next_round!();
    next_round!();
    next_round!();
    next_round!();
    next_round!();
    next_round!();
    next_round!();
    next_round!();
    next_round!();
    [c0 as u32, c1 as u32, c2 as u32, c3 as u32]
}

/// The rule of inverted dropout: keep an element if its 32 bits reach the threshold.
#[derive(Clone, Copy)]
pub(crate) struct DropoutRule<T> {
    /// p 2^32, up to 2^32 itself: at p = 1 nothing is kept.
    threshold: u64,
    /// 1 / (1 - p).
    keep_scale: T,
}

impl<T: Float> DropoutRule<T> {
    pub(crate) fn new(p: f64) -> Self {
        assert!((0.0..=1.0).contains(&p), "dropout probability {p}");
        DropoutRule { threshold: (p * 4_294_967_296.0) as u64, keep_scale: T::from_f64(1.0 / (1.0 - p)) }
    }

    /// Writes 1 / (1 - p) for kept and 0 for dropped elements of a row.
    ///
    /// The element at `i` has the global index `row_index + inner_index[i]`.
    #[inline(always)]
    pub(crate) fn factors(&self, key: &Key, row_index: u64, inner_index: &[u32], factors: &mut [T]) {
        let len = inner_index.len();
        let first = inner_index.first().map_or(0, |&i| row_index.wrapping_add(u64::from(i)));
        if first.is_multiple_of(4) && is_run(inner_index) {
            // Neighbours share a block of four words.
            let (blocks, rest) = factors.as_chunks_mut::<4>();
            for (block, factors) in blocks.iter_mut().enumerate() {
                let words = key.block(BITS, first / 4 + block as u64);
                for (factor, bits) in factors.iter_mut().zip(words) {
                    *factor = self.factor(bits);
                }
            }
            for (factor, &inner) in rest.iter_mut().zip(&inner_index[len - len % 4..]) {
                *factor = self.factor(key.bits(row_index.wrapping_add(u64::from(inner))));
            }
            return;
        }
        for (&inner, factor) in inner_index.iter().zip(factors) {
            *factor = self.factor(key.bits(row_index.wrapping_add(u64::from(inner))));
        }
    }

    #[inline(always)]
    fn factor(&self, bits: u32) -> T {
        if u64::from(bits) < self.threshold { T::ZERO } else { self.keep_scale }
    }
}

/// Whether indices count up by one.
#[inline(always)]
fn is_run(index: &[u32]) -> bool {
    let mut broken = false;
    for (i, &index_i) in index.iter().enumerate() {
        broken |= index_i != index[0].wrapping_add(i as u32);
    }
    !broken
}

/// Inverted dropout: `x / (1 - p)` or 0. The same call on the gradient is the backward.
///
/// # Shape
/// `x`, `out` `[rows, width]` with width the length of `inner_index`, the global indices along the
/// last dim; `index_of_row` gives the global linear index of a row's element with inner index 0.
pub fn dropout<S: Storage>(
    cpu: &Cpu,
    x: &[S],
    out: &mut [S],
    p: f64,
    key: &Key,
    index_of_row: impl Fn(usize) -> u64 + Send + Sync,
    inner_index: &[u32],
) {
    /// Columns at a time; their factors sit on the stack. A multiple of 4, so that blocks stay whole.
    const COLUMNS: usize = 256;
    assert_eq!(x.len(), out.len(), "lengths differ");
    let width = inner_index.len();
    if x.is_empty() {
        return;
    }
    assert!(x.len().is_multiple_of(width), "x is not whole rows");
    let rule = DropoutRule::new(p);
    cpu.divide(
        x.len() / width,
        1,
        min_rows(COSTLY, width),
        out,
        #[inline(always)]
        |rows, out| {
            let mut factors = [S::Wide::ZERO; COLUMNS];
            let x = rows_of(x, &rows, width).chunks_exact(width);
            for (row, (x, out)) in rows.zip(x.zip(out.chunks_exact_mut(width))) {
                let row_index = index_of_row(row);
                let blocks = x.chunks(COLUMNS).zip(out.chunks_mut(COLUMNS));
                for ((x, out), inner_index) in blocks.zip(inner_index.chunks(COLUMNS)) {
                    let factors = &mut factors[..x.len()];
                    rule.factors(key, row_index, inner_index, factors);
                    for ((out, &x), &factor) in out.iter_mut().zip(x).zip(factors.iter()) {
                        let kept = S::narrow(x.widen() * factor);
                        *out = if factor == S::Wide::ZERO { S::narrow(S::Wide::ZERO) } else { kept };
                    }
                }
            }
        },
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{cpus, poisoned, scalar};
    use proptest::prelude::*;

    #[test]
    fn philox_gives_the_published_answers() {
        // Known-answer vectors of Random123 (kat_vectors, philox4x32 10).
        assert_eq!(philox([0; 4], [0; 2]), [0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8]);
        assert_eq!(philox([u32::MAX; 4], [u32::MAX; 2]), [0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd]);
        assert_eq!(
            philox([0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344], [0xa4093822, 0x299f31d0]),
            [0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1]
        );
    }

    #[test]
    fn moments_are_right_and_streams_differ() {
        let key = Key::new(7, 3, "layers.0.weight");
        assert_eq!(key, Key::for_name("layers.0.weight").at(7, 3));
        let n = 200_000;
        let moments = |f: &dyn Fn(u64) -> f64| {
            let mean = (0..n).map(f).sum::<f64>() / n as f64;
            let var = (0..n).map(|i| (f(i) - mean).powi(2)).sum::<f64>() / n as f64;
            (mean, var)
        };
        let (mean, var) = moments(&|i| key.normal(i));
        assert!(mean.abs() < 0.01 && (var - 1.0).abs() < 0.02, "{mean} {var}");
        let (mean, var) = moments(&|i| key.uniform(i));
        assert!((mean - 0.5).abs() < 0.003 && (var - 1.0 / 12.0).abs() < 0.001);
        for other in [
            Key::new(8, 3, "layers.0.weight"),
            Key::new(7, 4, "layers.0.weight"),
            Key::new(7, 3, "layers.1.weight"),
        ] {
            let same = (0..1000).filter(|&i| key.bits(i) == other.bits(i)).count();
            assert!(same < 3);
            let correlation = moments(&|i| key.normal(i) * other.normal(i)).0;
            assert!(correlation.abs() < 0.01);
        }
    }

    #[test]
    fn the_stream_never_changes() {
        // Checkpoints and golden losses rest on these values.
        let key = Key::new(1, 2, "golden");
        let bits: Vec<u32> = (0..5).map(|i| key.bits(i)).collect();
        assert_eq!(bits, [333239656, 1836242049, 1295327953, 1463836967, 288602151]);
    }

    #[test]
    fn normal_values_never_change() {
        // First weights rest on these. They changed once, when the polynomials took the place of the C library's
        // functions and a block of random bits came to serve two elements.
        let key = Key::new(1, 2, "golden");
        let bits: Vec<u64> = (0..4).map(|i| key.normal(i).to_bits()).collect();
        assert_eq!(
            bits,
            [4580023207775779346, 13817229407421954032, 4608036703926987143, 4598638319836189482]
        );
    }

    #[test]
    fn normal_values_are_those_of_the_transform() {
        let key = Key::new(3, 4, "transform");
        for pair in 0..20_000 {
            let [w0, w1, w2, w3] = key.block(NORMAL, pair);
            let radius = (-2.0 * (2.0 - from_one_to_two(w0, w1)).ln()).sqrt();
            let angle = std::f64::consts::TAU * (from_one_to_two(w2, w3) - 1.0);
            assert!((key.normal(2 * pair) - radius * angle.cos()).abs() < 1e-14);
            assert!((key.normal(2 * pair + 1) - radius * angle.sin()).abs() < 1e-14);
        }
    }

    proptest! {
        #[test]
        fn filling_draws_the_same_bits_everywhere(len in 0usize..300, first in 0u64..1000, std in 0.01f64..3.0) {
            let key = Key::new(5, 0, "weights");
            let expected: Vec<f64> = (0..len as u64).map(|i| std * key.normal(first + i)).collect();
            for cpu in cpus() {
                let (mut wide, mut narrow) = (poisoned::<f64>(len), poisoned::<f32>(len));
                normal_fill(cpu, &key, first, std, &mut wide);
                normal_fill(cpu, &key, first, std, &mut narrow);
                for ((wide, narrow), expected) in wide.iter().zip(&narrow).zip(&expected) {
                    prop_assert_eq!(wide.to_bits(), expected.to_bits());
                    prop_assert_eq!(narrow.to_bits(), (*expected as f32).to_bits());
                }
            }
        }

        #[test]
        fn the_mask_does_not_depend_on_the_split(
            rows in 1usize..6, width in 1usize..40, ways in 1usize..4, p in 0.0f64..1.0,
        ) {
            let key = Key::new(5, 6, "mask");
            let x = vec![1.0_f32; rows * width];
            let all: Vec<u32> = (0..width as u32).collect();
            let mut whole = vec![f32::NAN; x.len()];
            dropout(&scalar(), &x, &mut whole, p, &key, |r| (r * width) as u64, &all);
            for (i, &y) in whole.iter().enumerate() {
                let keep = f64::from(key.bits(i as u64)) >= (p * 4_294_967_296.0).floor();
                prop_assert_eq!(y, if keep { (1.0 / (1.0 - p)) as f32 } else { 0.0 });
            }
            for shard in 0..ways {
                // Columns strided over `ways`, rows taken in reverse.
                let mine: Vec<u32> = (shard as u32..width as u32).step_by(ways).collect();
                let x = vec![1.0_f32; rows * mine.len()];
                let mut part = vec![f32::NAN; x.len()];
                dropout(&scalar(), &x, &mut part, p, &key, |r| ((rows - 1 - r) * width) as u64, &mine);
                for r in 0..rows {
                    for (c, &column) in mine.iter().enumerate() {
                        prop_assert_eq!(part[r * mine.len() + c], whole[(rows - 1 - r) * width + column as usize]);
                    }
                }
            }
        }
    }

    #[test]
    fn certain_dropout_drops_all_even_nan() {
        let key = Key::new(0, 0, "all");
        let mut out = [1.0_f32; 4];
        dropout(&scalar(), &[f32::NAN, 1.0, 2.0, 3.0], &mut out, 1.0, &key, |_| 0, &[0, 1, 2, 3]);
        assert_eq!(out, [0.0; 4]);
        dropout(&scalar(), &[f32::NAN, 1.0, 2.0, 3.0], &mut out, 0.0, &key, |_| 0, &[0, 1, 2, 3]);
        assert!(out[0].is_nan() && out[1..] == [1.0, 2.0, 3.0]);
    }
}
