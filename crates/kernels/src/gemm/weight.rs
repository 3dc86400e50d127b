//! Right factors packed once for several products. How is decided where the products are.

#[cfg(target_arch = "x86_64")]
use super::tiles;
use super::{Base, Right, View, multiply, same_type};
use crate::cpu::Cpu;
use crate::storage::Storage;

/// Elements that [`pack_weight`] writes for a `[k, n]` matrix, whatever the instruction set.
pub fn packed_len<S: Storage>(k: usize, n: usize) -> usize {
    #[cfg(target_arch = "x86_64")]
    if same_type::<S, half::bf16>() {
        return tiles::packed_len(k, n);
    }
    k * n
}

/// Packs a right factor for [`gemm_prepacked`], so that products that share it need not each do so.
///
/// What `out` holds then means something only to a [`Cpu`] of the same instruction set.
///
/// # Shape
/// `b` `[k, n]` (`[n, k]` if `trans_b`), `out` [`packed_len`] elements.
pub fn pack_weight<S: Storage>(cpu: &Cpu, k: usize, n: usize, b: &[S], trans_b: bool, out: &mut [S]) {
    assert_eq!(b.len(), k * n, "b has the wrong length");
    assert_eq!(out.len(), packed_len::<S>(k, n), "out has the wrong length");
    #[cfg(target_arch = "x86_64")]
    if tiles::serve::<S>(cpu) {
        let b = View { data: b, stride: if trans_b { k } else { n }, transposed: trans_b };
        return tiles::pack_on_amx(cpu, [k, n], b, out);
    }
    let out = &mut out[..k * n];
    if trans_b {
        // Rows of the result in groups that share the lines read.
        const GROUP: usize = 16;
        for (group, out) in out.chunks_mut(GROUP * n.max(1)).enumerate() {
            for (column, b) in b.chunks_exact(k).enumerate() {
                for (row, out) in out.chunks_exact_mut(n).enumerate() {
                    out[column] = b[group * GROUP + row];
                }
            }
        }
    } else {
        out.copy_from_slice(b);
    }
}

/// [`gemm`](super::gemm()) with a right factor that [`pack_weight`] packed on an equal `cpu`: the same bits.
///
/// # Shape
/// `a` `[m, k]` (`[k, m]` if `trans_a`), `packed` [`packed_len`] elements, `c` `[m, n]`.
pub fn gemm_prepacked<S: Storage, C: Storage<Wide = S::Wide>>(
    cpu: &Cpu,
    m: usize,
    n: usize,
    k: usize,
    a: &[S],
    trans_a: bool,
    packed: &[S],
    c: &mut [C],
    base: Base<S::Wide>,
    scratch: &mut [u8],
) {
    assert_eq!(packed.len(), packed_len::<S>(k, n), "packed has the wrong length");
    multiply(cpu, [m, n, k], a, trans_a, Right::Packed(packed), c, base, scratch);
}
