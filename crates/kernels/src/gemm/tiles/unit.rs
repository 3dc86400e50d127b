//! The instructions that products on tiles are made of: AMX, and what packs for it. No loop over a matrix here.

use super::square::{self, Order};
use crate::amx::with_tiles;
use half::bf16;
use std::arch::asm;
use std::arch::x86_64::*;
use std::mem::offset_of;

/// Rows and columns of a block of c: two tiles each way, which with two tiles of a and two of b are all eight.
pub(super) const SIDE: usize = 32;
/// Depth of one step: a row of a tile.
pub(super) const STEP: usize = 32;
/// Rows ahead that a block can call for.
pub(super) const MOST_AHEAD: usize = 3;
/// Elements of a and of b in a step.
pub(super) const SQUARE: usize = SIDE * STEP;

/// A block of c, the panels it is the product of, and what else is done meanwhile.
///
/// A step of a is 32 rows of 32 elements, `a_stride` apart; the next begins `a_step` elements on. A step of b is
/// 1024 contiguous elements in the order [`Order::Pairs`] gives.
#[repr(C)]
pub(super) struct Block {
    pub(super) steps: usize,
    pub(super) a: *const bf16,
    pub(super) a_stride: usize,
    pub(super) a_step: usize,
    pub(super) b: *const bf16,
    /// What the sums start from, and elements between its rows; null for zero.
    pub(super) from: *const f32,
    pub(super) from_stride: usize,
    /// Where the sums go.
    pub(super) to: *mut f32,
    pub(super) to_stride: usize,
    /// Of so many rows ([`MOST_AHEAD`] at most), the lines of as many steps, to bring closer.
    pub(super) ahead_rows: usize,
    pub(super) ahead: *const bf16,
    pub(super) ahead_stride: usize,
    /// Sums of an earlier block, 32 to a row, to round before this one's are stored (they may be in one place);
    /// null for none.
    pub(super) round: *const f32,
    /// Where they go, and elements between its rows.
    pub(super) round_to: *mut bf16,
    pub(super) round_stride: usize,
    /// Whether these rows go past the caches: they begin at multiples of 64 bytes.
    pub(super) stream: bool,
}

/// What runs blocks. Tests put a model in its place on machines without tiles.
pub(super) trait Unit {
    /// Runs `work` with this thread ready for [`Unit::multiply`]. Afterwards other threads see what it wrote.
    ///
    /// # Safety
    /// The machine has the instructions.
    unsafe fn ready(work: impl FnOnce());

    /// The 32 by 32 sums of one block.
    ///
    /// # Safety
    /// Inside [`Unit::ready`]; the block's pointers reach what its documentation says, but for
    /// `ahead`, which may dangle.
    unsafe fn multiply(block: &Block);

    /// Packs 32 by 32 elements, `stride` apart from row to row, into 1024.
    ///
    /// # Safety
    /// The machine has the instructions; 32 rows can be read and 1024 elements written.
    unsafe fn pack(order: Order, from: *const bf16, stride: usize, to: *mut bf16);

    /// Rounds 32 by 32 sums into rows `stride` apart.
    ///
    /// # Safety
    /// The machine has the instructions; the rows can be written.
    unsafe fn round(sums: &Sums, to: *mut bf16, stride: usize);
}

/// The sums of a block.
#[repr(align(64))]
pub(super) struct Sums(pub(super) [[f32; SIDE]; SIDE]);

/// AMX tiles and AVX-512.
pub(super) struct Amx;

impl Unit for Amx {
    unsafe fn ready(work: impl FnOnce()) {
        // SAFETY: vouched for by the caller.
        unsafe { with_tiles(work) }
        // Stores past the caches are not ordered by what orders others.
        // SAFETY: every x86-64 machine has it.
        unsafe { _mm_sfence() };
    }

    #[inline]
    unsafe fn multiply(block: &Block) {
        // SAFETY: vouched for by the caller.
        unsafe { if block.stream { multiply_and_stream(block) } else { multiply(block) } }
    }

    #[inline]
    unsafe fn pack(order: Order, from: *const bf16, stride: usize, to: *mut bf16) {
        // SAFETY: vouched for by the caller.
        unsafe { square::pack(order, from, stride, to) }
    }

    unsafe fn round(sums: &Sums, to: *mut bf16, stride: usize) {
        #[target_feature(enable = "avx512f,avx512bf16")]
        unsafe fn convert(sums: &Sums, to: *mut bf16, stride: usize) {
            for (row, sums) in sums.0.iter().enumerate() {
                // SAFETY: 32 elements are read, and written unaligned where the caller vouches for them.
                unsafe {
                    let low = _mm512_loadu_ps(sums.as_ptr());
                    let high = _mm512_loadu_ps(sums.as_ptr().add(16));
                    let to = to.add(row * stride).cast::<__m512bh>();
                    to.write_unaligned(_mm512_cvtne2ps_pbh(high, low));
                }
            }
        }
        // SAFETY: the caller vouches for the instructions and the rows.
        unsafe { convert(sums, to, stride) }
    }
}

/// [`Unit::multiply`], with the instruction that stores rounded sums and what prepares the next store.
macro_rules! define_multiply {
    ($name:ident, $store:literal, $prepare:literal) => {
        /// # Safety
        /// As [`Unit::multiply`]; the machine has AVX-512 with bf16, and AMX.
        #[target_feature(enable = "avx512f")]
        unsafe fn $name(block: &Block) {
            debug_assert!(block.steps > 0 && block.ahead_rows <= MOST_AHEAD);
            // The panel of a is read again for the next panel of b, from the first cache, where the hint of `t1` keeps
            // the panel of b, which is not, from taking its place. Four rows are rounded in a step, and the next
            // block's part of each called for.
            //
            // SAFETY: reads and writes what the caller vouches for; tiles are named as clobbered and carry nothing
            // from one block to the next; a prefetch may name any address.
            unsafe {
                asm!(
                    "mov {t}, [{block} + {FROM}]",
                    "mov {u}, [{block} + {FROM_STRIDE}]",
                    "shl {u}, 2",
                    "test {t}, {t}",
                    "jz 2f",
                    "tileloadd tmm0, [{t} + {u}*1]",
                    "tileloadd tmm1, [{t} + {u}*1 + 64]",
                    "mov {a}, {u}",
                    "shl {a}, 4",
                    "add {t}, {a}",
                    "tileloadd tmm2, [{t} + {u}*1]",
                    "tileloadd tmm3, [{t} + {u}*1 + 64]",
                    "jmp 3f",
                    "2:",
                    "tilezero tmm0",
                    "tilezero tmm1",
                    "tilezero tmm2",
                    "tilezero tmm3",
                    "3:",
                    "mov {a}, [{block} + {A}]",
                    "mov {a_stride}, [{block} + {A_STRIDE}]",
                    "add {a_stride}, {a_stride}",
                    "mov {low}, {a_stride}",
                    "shl {low}, 4",
                    "add {low}, {a}",
                    "mov {a_step}, [{block} + {A_STEP}]",
                    "add {a_step}, {a_step}",
                    "mov {b}, [{block} + {B}]",
                    "mov {steps}, [{block} + {STEPS}]",
                    "mov {ahead}, [{block} + {AHEAD}]",
                    "mov {round}, [{block} + {ROUND}]",
                    "mov {to}, [{block} + {ROUND_TO}]",
                    "mov {rounded:e}, 8",
                    "mov {u:e}, 64",
                    "4:",
                    "tileloaddt1 tmm6, [{b} + {u}*1]",
                    "tileloadd tmm4, [{a} + {a_stride}*1]",
                    "tdpbf16ps tmm0, tmm4, tmm6",
                    "tileloaddt1 tmm7, [{b} + {u}*1 + 1024]",
                    "tdpbf16ps tmm1, tmm4, tmm7",
                    "tileloadd tmm5, [{low} + {a_stride}*1]",
                    "tdpbf16ps tmm2, tmm5, tmm6",
                    "tdpbf16ps tmm3, tmm5, tmm7",
                    // Lines ahead.
                    "mov {t}, [{block} + {AHEAD_ROWS}]",
                    "test {t}, {t}",
                    "jz 5f",
                    "prefetcht1 [{ahead}]",
                    "cmp {t:e}, 2",
                    "jb 6f",
                    "mov {t}, [{block} + {AHEAD_STRIDE}]",
                    "prefetcht1 [{ahead} + {t}*2]",
                    "je 6f",
                    "prefetcht1 [{ahead} + {t}*4]",
                    "6:",
                    "add {ahead}, 64",
                    "5:",
                    // Four rows rounded.
                    "test {round}, {round}",
                    "jz 7f",
                    "mov {t}, [{block} + {ROUND_STRIDE}]",
                    ".rept 4",
                    "vmovups zmm16, [{round} + 64]",
                    "vcvtne2ps2bf16 zmm16, zmm16, [{round}]",
                    concat!($store, " [{to}], zmm16"),
                    $prepare,
                    "add {round}, 128",
                    "lea {to}, [{to} + {t}*2]",
                    ".endr",
                    "dec {rounded:e}",
                    "jnz 7f",
                    "xor {round:e}, {round:e}",
                    "7:",
                    "add {a}, {a_step}",
                    "add {low}, {a_step}",
                    "add {b}, 2048",
                    "dec {steps}",
                    "jnz 4b",
                    // Rows that the steps did not suffice for.
                    "test {round}, {round}",
                    "jz 9f",
                    "mov {t}, [{block} + {ROUND_STRIDE}]",
                    "shl {rounded:e}, 2",
                    "8:",
                    "vmovups zmm16, [{round} + 64]",
                    "vcvtne2ps2bf16 zmm16, zmm16, [{round}]",
                    concat!($store, " [{to}], zmm16"),
                    "add {round}, 128",
                    "lea {to}, [{to} + {t}*2]",
                    "dec {rounded:e}",
                    "jnz 8b",
                    "9:",
                    "mov {t}, [{block} + {TO}]",
                    "mov {u}, [{block} + {TO_STRIDE}]",
                    "shl {u}, 2",
                    "tilestored [{t} + {u}*1], tmm0",
                    "tilestored [{t} + {u}*1 + 64], tmm1",
                    "mov {a}, {u}",
                    "shl {a}, 4",
                    "add {t}, {a}",
                    "tilestored [{t} + {u}*1], tmm2",
                    "tilestored [{t} + {u}*1 + 64], tmm3",
                    block = in(reg) block,
                    STEPS = const offset_of!(Block, steps),
                    A = const offset_of!(Block, a),
                    A_STRIDE = const offset_of!(Block, a_stride),
                    A_STEP = const offset_of!(Block, a_step),
                    B = const offset_of!(Block, b),
                    FROM = const offset_of!(Block, from),
                    FROM_STRIDE = const offset_of!(Block, from_stride),
                    TO = const offset_of!(Block, to),
                    TO_STRIDE = const offset_of!(Block, to_stride),
                    AHEAD_ROWS = const offset_of!(Block, ahead_rows),
                    AHEAD = const offset_of!(Block, ahead),
                    AHEAD_STRIDE = const offset_of!(Block, ahead_stride),
                    ROUND = const offset_of!(Block, round),
                    ROUND_TO = const offset_of!(Block, round_to),
                    ROUND_STRIDE = const offset_of!(Block, round_stride),
                    steps = out(reg) _,
                    a = out(reg) _,
                    low = out(reg) _,
                    a_stride = out(reg) _,
                    a_step = out(reg) _,
                    b = out(reg) _,
                    ahead = out(reg) _,
                    round = out(reg) _,
                    rounded = out(reg) _,
                    to = out(reg) _,
                    t = out(reg) _,
                    u = out(reg) _,
                    out("zmm16") _,
                    out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                    out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                    options(nostack),
                );
            }
        }
    };
}

define_multiply!(multiply, "vmovups", "prefetchw [{to} + 64]");
// A line that is written as a whole need not be read first.
define_multiply!(multiply_and_stream, "vmovntps", "");
