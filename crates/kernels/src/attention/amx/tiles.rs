//! Products of squares on AMX tiles: the only place in attention that names a tile. No mask, no softmax.

use half::bf16;
use std::arch::asm;

/// Lanes and depths of a square, rows and columns of a block.
pub(super) const SIDE: usize = 32;

/// 32 lanes of 32 depths of an operand, as 32 lines of 64 bytes.
///
/// As a left operand a line is a lane, contiguous in depth. As a right operand it is two tiles of 16 lines: line
/// `i` of tile `t` holds depths 2i and 2i+1 of lanes 16t..16t+16, lane after lane.
#[repr(C, align(64))]
pub(super) struct Square(pub(super) [[bf16; SIDE]; SIDE]);

/// 32 rows of 32 sums, each in two halves of 16.
#[repr(C, align(64))]
pub(super) struct Block(pub(super) [[[f32; 16]; 2]; SIDE]);

/// Some squares of an operand, `step` apart, one for each step of depth.
#[derive(Clone, Copy)]
pub(super) struct Depth<'a> {
    pub(super) squares: &'a [Square],
    pub(super) step: usize,
}

/// Successive squares.
pub(super) fn along(squares: &[Square]) -> Depth<'_> {
    Depth { squares, step: 1 }
}

/// `c = a b`, or `c += a b` with `accumulate`, over `steps` squares of depth.
///
/// # Safety
/// Inside [`with_tiles`](crate::amx::with_tiles).
#[inline]
pub(super) unsafe fn multiply(steps: usize, a: Depth, b: Depth, c: &mut Block, accumulate: bool) {
    assert!(steps > 0, "a product has a depth");
    assert!((steps - 1) * a.step < a.squares.len() && (steps - 1) * b.step < b.squares.len());
    // SAFETY: reads the squares that were asserted to exist, reads and writes the block; tiles are named as
    // clobbered and carry nothing from one call to the next; the caller vouches for their configuration.
    unsafe {
        asm!(
            "test {accumulate:e}, {accumulate:e}",
            "jz 2f",
            "tileloadd tmm0, [{c} + {row}*2]",
            "tileloadd tmm1, [{c} + {row}*2 + 64]",
            "tileloadd tmm2, [{c} + {row}*2 + 2048]",
            "tileloadd tmm3, [{c} + {row}*2 + 2112]",
            "jmp 3f",
            "2:",
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            "3:",
            "tileloadd tmm4, [{a} + {row}*1]",
            "tileloadd tmm6, [{b} + {row}*1]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tileloadd tmm7, [{b} + {row}*1 + 1024]",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tileloadd tmm5, [{a} + {row}*1 + 1024]",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "add {a}, {a_step}",
            "add {b}, {b_step}",
            "dec {steps}",
            "jnz 3b",
            "tilestored [{c} + {row}*2], tmm0",
            "tilestored [{c} + {row}*2 + 64], tmm1",
            "tilestored [{c} + {row}*2 + 2048], tmm2",
            "tilestored [{c} + {row}*2 + 2112], tmm3",
            accumulate = in(reg) u32::from(accumulate),
            steps = inout(reg) steps => _,
            row = in(reg) 64_usize,
            a = inout(reg) a.squares.as_ptr() => _,
            a_step = in(reg) a.step * size_of::<Square>(),
            b = inout(reg) b.squares.as_ptr() => _,
            b_step = in(reg) b.step * size_of::<Square>(),
            c = in(reg) c,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        );
    }
}
