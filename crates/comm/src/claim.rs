//! What ranks must agree on in a collective, in numbers and words, and how an all_reduce is cut: the parts that every
//! backend shares. Moves no data.

use crate::pending::Ticket;
use crate::{Collective, Reduce};
use memory::DType;
use std::ops::Range;

/// Segments of an all_reduce start at multiples of this, as regions do.
const SEGMENT_ALIGN: usize = 64;

/// What a rank brings to a collective and all must agree on.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Claim {
    pub(crate) what: u64,
    pub(crate) bytes: usize,
    pub(crate) sequence: u64,
}

/// Operation, type, reduction and root in one word.
pub(crate) fn pack(ticket: &Ticket) -> u64 {
    let dtype = ticket.dtype.map_or(0xff, |d| d as u64);
    let reduce = ticket.reduce.map_or(0xff, |r| r as u64);
    ticket.operation as u64 | dtype << 8 | reduce << 16 | (ticket.peer as u64) << 32
}

/// The claim in words.
pub(crate) fn describe(claim: Claim) -> Box<str> {
    use Collective::*;
    let operation = [AllReduce, ReduceScatter, AllGather, AllToAll, Broadcast, Send, Recv, Barrier, Split]
        .into_iter()
        .find(|&c| c as u64 == claim.what & 0xff);
    let dtype = DType::ALL.into_iter().find(|&d| d as u64 == claim.what >> 8 & 0xff);
    let reduce = [Reduce::Sum, Reduce::Max].into_iter().find(|&r| r as u64 == claim.what >> 16 & 0xff);
    let mut text = operation.map_or("unknown", Collective::name).to_string();
    if let (Some(dtype), Some(reduce)) = (dtype, reduce) {
        text += &format!("({dtype}, {reduce})");
    }
    if operation == Some(Broadcast) {
        text += &format!("(root {})", claim.what >> 32);
    }
    format!("{text} #{} of {} bytes", claim.sequence, claim.bytes).into()
}

/// Whether the regions of an operation fit each other in a group of `n`, in whole elements.
pub(crate) fn sizes_fit(
    operation: Collective,
    n: usize,
    send_bytes: usize,
    recv_bytes: usize,
    element_bytes: usize,
) -> bool {
    let fit = match operation {
        Collective::ReduceScatter => recv_bytes.checked_mul(n) == Some(send_bytes),
        Collective::AllGather => send_bytes.checked_mul(n) == Some(recv_bytes),
        Collective::AllToAll => send_bytes == recv_bytes && send_bytes.is_multiple_of(n),
        _ => send_bytes == recv_bytes,
    };
    fit && recv_bytes.is_multiple_of(element_bytes)
}

/// The segment of an all_reduce that a rank reduces: equal parts, rounded up to [`SEGMENT_ALIGN`].
pub(crate) fn segment(bytes: usize, n: usize, rank: usize) -> Range<usize> {
    let part = bytes.div_ceil(n).next_multiple_of(SEGMENT_ALIGN);
    (rank * part).min(bytes)..((rank + 1) * part).min(bytes)
}

/// FNV-1a over 8-byte words: enough to tell bits apart, not to resist an attacker.
pub(crate) fn checksum(bytes: &[u8]) -> u64 {
    let mix = |hash: u64, word: u64| (hash ^ word).wrapping_mul(0x100_0000_01b3).rotate_left(23);
    let (words, rest) = bytes.as_chunks::<8>();
    let hash = words.iter().fold(0xcbf2_9ce4_8422_2325, |hash, word| mix(hash, u64::from_ne_bytes(*word)));
    rest.iter().fold(hash, |hash, &byte| mix(hash, u64::from(byte)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_cover_every_byte_once() {
        for bytes in [0, 1, 63, 64, 65, 8192, 9000, 100_003] {
            for n in 1..10 {
                let mut end = 0;
                for rank in 0..n {
                    let s = segment(bytes, n, rank);
                    assert_eq!(s.start, end);
                    end = s.end;
                }
                assert_eq!(end, bytes);
            }
        }
    }

    #[test]
    fn every_element_type_has_a_name_in_a_mismatch() {
        for dtype in DType::ALL {
            let what = Collective::AllReduce as u64 | (dtype as u64) << 8 | (Reduce::Max as u64) << 16;
            let text = describe(Claim { what, bytes: 8, sequence: 3 });
            assert_eq!(*text, *format!("all_reduce({dtype}, max) #3 of 8 bytes"));
        }
    }

    #[test]
    fn one_bit_changes_the_checksum() {
        let mut bytes = vec![7u8; 1003];
        let whole = checksum(&bytes);
        for i in 0..bytes.len() {
            bytes[i] ^= 1;
            assert_ne!(checksum(&bytes), whole);
            bytes[i] ^= 1;
        }
    }
}
