//! Places for what lives at known times: no two that live at once overlap. What they are is unknown here.

use std::cmp::Reverse;

/// Into how many stretches time is divided, so that what lives shortly is compared with its neighbours in time alone.
const STRETCHES: usize = 256;

/// Orders that are tried at most, and how many places may be looked for in all of them, beyond the first two.
const ATTEMPTS: usize = 64;
const PLACES: usize = 1 << 17;

/// Something of a size that lives from one moment to another, both included.
#[derive(Debug, Clone)]
pub(crate) struct Life<T> {
    pub of: T,
    pub bytes: usize,
    pub first: usize,
    pub last: usize,
}

/// An offset for each, and where the last one ends: each at the lowest address that is free while it lives, in the best
/// of several orders. By size is nearly always near what lives at once. Where it is not, by time, and then again and
/// again with what lay highest moved to the front. The first order within 4 % will do.
pub(crate) fn place<T: Copy + Ord>(mut lives: Vec<Life<T>>) -> (Vec<(T, usize)>, usize) {
    let enough = peak(&lives) * 26 / 25;
    lives.sort_by_key(|l| (Reverse(l.bytes), l.first, l.of));
    let mut best = first_fit(&lives);
    lives.sort_by_key(|l| (l.first, Reverse(l.bytes), l.of));
    for _ in 0..(PLACES / lives.len().max(1)).clamp(1, ATTEMPTS) {
        if best.1 <= enough {
            break;
        }
        let found = first_fit(&lives);
        let end = |index: usize| found.0[index].1 + lives[index].bytes;
        let highest = (0..lives.len()).max_by_key(|index| end(*index)).unwrap_or(0);
        lives[..=highest].rotate_right(1);
        if found.1 < best.1 {
            best = found;
        }
    }
    best
}

/// The most bytes that live at once.
fn peak<T>(lives: &[Life<T>]) -> usize {
    let mut changes: Vec<(usize, isize)> = Vec::with_capacity(2 * lives.len());
    for life in lives {
        changes.extend([(life.first, life.bytes as isize), (life.last + 1, -(life.bytes as isize))]);
    }
    changes.sort_unstable();
    let live = changes.into_iter().scan(0, |live, (_, change)| {
        *live += change;
        Some(*live)
    });
    live.max().unwrap_or(0) as usize
}

/// What has its place, by address.
type Taken<'a, T> = Vec<(usize, &'a Life<T>)>;

/// In the given order.
fn first_fit<T: Copy>(lives: &[Life<T>]) -> (Vec<(T, usize)>, usize) {
    let end = lives.iter().map(|life| life.last + 1).max().unwrap_or(0);
    let length = end.div_ceil(STRETCHES).max(1);
    let mut everywhere: Taken<T> = Vec::with_capacity(lives.len());
    let mut stretches: Vec<Taken<T>> = (0..STRETCHES).map(|_| Vec::new()).collect();
    let mut offsets: Vec<(T, usize)> = Vec::with_capacity(lives.len());
    let mut extent = 0;
    for life in lives {
        let (first, last) = (life.first / length, life.last / length);
        let offset = lowest(life, if first == last { &stretches[first] } else { &everywhere });
        for taken in stretches[first..=last].iter_mut().chain([&mut everywhere]) {
            let at = taken.partition_point(|(start, _)| *start < offset);
            taken.insert(at, (offset, life));
        }
        offsets.push((life.of, offset));
        extent = extent.max(offset + life.bytes);
    }
    (offsets, extent)
}

/// The lowest address that nobody has while `life` lasts.
fn lowest<T>(life: &Life<T>, taken: &[(usize, &Life<T>)]) -> usize {
    let mut offset = 0;
    for (start, other) in taken {
        if other.first <= life.last && life.first <= other.last {
            if *start >= offset + life.bytes {
                break;
            }
            offset = offset.max(start + other.bytes);
        }
    }
    offset
}
