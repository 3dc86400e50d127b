//! Embedding lookup in a table of which only some rows may be local, and its gradient.

use crate::cpu::Cpu;
use crate::float::Float;
use crate::parts::{CHEAP, LINE, Loop, Shared, min_rows};
use crate::storage::Storage;

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
pub fn embedding_forward<S: Storage>(
    cpu: &Cpu,
    ids: &[i32],
    local_row: &[u32],
    table: &[S],
    width: usize,
    out: &mut [S],
) {
    assert_eq!(out.len(), ids.len() * width, "out has the wrong length");
    if width == 0 {
        return;
    }
    cpu.divide(ids.len(), 1, min_rows(CHEAP, width), out, |part, out| {
        for (&id, out) in ids[part].iter().zip(out.chunks_exact_mut(width)) {
            match lookup(id, local_row) {
                Some(row) => out.copy_from_slice(&table[row * width..][..width]),
                None => out.fill(S::narrow(S::Wide::ZERO)),
            }
        }
    });
}

/// Adds each row of `d_out` into the row of its id, in the order of `ids`, starting from zeros.
///
/// # Shape
/// `ids` `[n]`, `local_row` `[vocab]`, `d_out` `[n, width]`, `d_table` `[local rows, width]`, overwritten.
pub fn embedding_backward<S: Storage>(
    cpu: &Cpu,
    ids: &[i32],
    local_row: &[u32],
    d_out: &[S],
    width: usize,
    d_table: &mut [S::Wide],
) {
    assert_eq!(d_out.len(), ids.len() * width, "d_out has the wrong length");
    cpu.divide(d_table.len(), LINE, CHEAP, &mut *d_table, |_, part| part.fill(S::Wide::ZERO));
    if width == 0 {
        return;
    }
    assert!(d_table.len().is_multiple_of(width), "d_table is not whole rows");
    let num_rows = d_table.len() / width;
    let d_table = Shared::new(d_table);
    // Threads share columns, not rows: some ids are far more frequent than others.
    cpu.split(width, LINE, min_rows(CHEAP, ids.len()), |columns| {
        cpu.vectorised(Loop(
            #[inline(always)]
            || {
                for (&id, d_out) in ids.iter().zip(d_out.chunks_exact(width)) {
                    let Some(row) = lookup(id, local_row) else { continue };
                    assert!(row < num_rows, "a local row lies in the table");
                    let at = row * width;
                    // SAFETY: columns of other threads are other elements, and this row's part goes out of
                    // scope before the next one is taken.
                    let sums = unsafe { d_table.part(at + columns.start..at + columns.end) };
                    for (sum, &d) in sums.iter_mut().zip(&d_out[columns.clone()]) {
                        *sum += d.widen();
                    }
                }
            },
        ));
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_close, dot, poisoned, random, scalar};
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
                embedding_forward(&scalar(), &ids, &local_row, &local, width, &mut out);
                total.iter_mut().zip(&out).for_each(|(t, o)| *t += o);
                let mut dtable = poisoned(local.len());
                embedding_backward(&scalar(), &ids, &local_row, &dy, width, &mut dtable);
                inner += dot(&dtable, &local);
            }
            assert_close(&total, &expected, 0.0);
            // The lookup is linear in the table, so its backward is its adjoint.
            prop_assert!((inner - dot(&dy, &expected)).abs() < 1e-9);
        }
    }
}
