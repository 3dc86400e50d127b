//! Embedding lookup in a table of which only some rows may be local, and its gradient.

use crate::float::Float;

/// Marks, in a `local_row` table, an id whose row is held elsewhere.
pub const NOT_LOCAL: u32 = u32::MAX;

/// The local row of a global id, if it is in range and local.
#[inline(always)]
pub(crate) fn lookup(id: i32, local_row: &[u32]) -> Option<usize> {
    let row = *local_row.get(usize::try_from(id).ok()?)?;
    (row != NOT_LOCAL).then_some(row as usize)
}

/// Copies the table's row of each id; ids whose row is not local, or out of range, give zeros.
///
/// # Shape
/// `ids` `[n]`, `local_row` `[vocab]`, `table` `[local rows, width]`, `out` `[n, width]`.
pub fn embedding_forward<T: Float>(ids: &[i32], local_row: &[u32], table: &[T], width: usize, out: &mut [T]) {
    assert_eq!(out.len(), ids.len() * width, "out has the wrong length");
    if width == 0 {
        return;
    }
    for (&id, out) in ids.iter().zip(out.chunks_exact_mut(width)) {
        match lookup(id, local_row) {
            Some(row) => out.copy_from_slice(&table[row * width..][..width]),
            None => out.fill(T::ZERO),
        }
    }
}

/// Adds each row of `dy` into the row of its id, in the order of `ids`, starting from zeros.
///
/// # Shape
/// `ids` `[n]`, `local_row` `[vocab]`, `dy` `[n, width]`, `dtable` `[local rows, width]`, overwritten.
pub fn embedding_backward<T: Float>(
    ids: &[i32],
    local_row: &[u32],
    dy: &[T],
    width: usize,
    dtable: &mut [T],
) {
    assert_eq!(dy.len(), ids.len() * width, "dy has the wrong length");
    dtable.fill(T::ZERO);
    if width == 0 {
        return;
    }
    for (&id, dy) in ids.iter().zip(dy.chunks_exact(width)) {
        if let Some(row) = lookup(id, local_row) {
            for (sum, &d) in dtable[row * width..][..width].iter_mut().zip(dy) {
                *sum += d;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_close, dot, poisoned, random};
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn shards_add_up_to_the_whole_lookup(
            ids in prop::collection::vec(-2i32..13, 0..20), width in 1usize..9, shards in 1usize..4,
        ) {
            let vocab = 11;
            let table: Vec<f64> = random(1, vocab * width);
            let mut expected = vec![0.0; ids.len() * width];
            for (i, &id) in ids.iter().enumerate() {
                if (0..vocab as i32).contains(&id) {
                    expected[i * width..][..width].copy_from_slice(&table[id as usize * width..][..width]);
                }
            }
            let mut total = vec![0.0; ids.len() * width];
            let dy: Vec<f64> = random(2, ids.len() * width);
            let mut inner = 0.0;
            for shard in 0..shards {
                let mine: Vec<usize> = (shard..vocab).step_by(shards).collect();
                let mut local_row = vec![NOT_LOCAL; vocab];
                for (row, &id) in mine.iter().enumerate() {
                    local_row[id] = row as u32;
                }
                let local: Vec<f64> = mine.iter().flat_map(|&id| table[id * width..][..width].to_vec()).collect();
                let mut out = poisoned(ids.len() * width);
                embedding_forward(&ids, &local_row, &local, width, &mut out);
                total.iter_mut().zip(&out).for_each(|(t, o)| *t += o);
                let mut dtable = poisoned(local.len());
                embedding_backward(&ids, &local_row, &dy, width, &mut dtable);
                inner += dot(&dtable, &local);
            }
            assert_close(&total, &expected, 0.0);
            // The lookup is linear in the table, so its backward is its adjoint.
            prop_assert!((inner - dot(&dy, &expected)).abs() < 1e-9);
        }
    }
}
