//! The instructions that products on tiles are made of: AMX, and what packs for it. No loop over a matrix here.

use super::square::{self, Order};
use half::bf16;
use std::arch::asm;
use std::arch::x86_64::*;

/// Rows and columns of a block of c: two tiles each way, which with two tiles of a and two of b are all eight.
pub(super) const SIDE: usize = 32;
/// Depth of one step: a row of a tile.
pub(super) const STEP: usize = 32;
/// Elements of a and of b in a step.
pub(super) const SQUARE: usize = SIDE * STEP;

/// A block of c and the panels it is the product of.
///
/// A step of a is 32 rows of 32 elements, `a_stride` apart; the next begins `a_step` elements on. A step of b is
/// 1024 contiguous elements in the order [`Order::Pairs`] gives.
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
    /// An a of the same strides to bring closer meanwhile; null for none.
    pub(super) ahead: *const bf16,
}

/// What runs blocks. Tests put a model in its place on machines without tiles.
pub(super) trait Unit {
    /// Prepares this thread for [`Unit::multiply`].
    ///
    /// # Safety
    /// The machine has the instructions.
    unsafe fn begin();

    /// Gives back what `begin` took.
    ///
    /// # Safety
    /// As `begin`.
    unsafe fn end();

    /// The 32 by 32 sums of one block.
    ///
    /// # Safety
    /// After `begin`, on the same thread; the block's pointers reach what its documentation says, but for
    /// `ahead`, which may dangle.
    unsafe fn multiply(block: Block);

    /// Packs 32 by 32 elements, `stride` apart from row to row, into 1024.
    ///
    /// # Safety
    /// The machine has the instructions; 32 rows can be read and 1024 elements written.
    unsafe fn pack(order: Order, from: *const bf16, stride: usize, to: *mut bf16);

    /// Rounds 32 sums.
    ///
    /// # Safety
    /// The machine has the instructions.
    unsafe fn round(sums: &[f32; SIDE], to: &mut [bf16; SIDE]);
}

/// AMX tiles and AVX-512.
pub(super) struct Amx;

/// The operand of `ldtilecfg`: eight tiles of 16 rows of 64 bytes.
#[repr(C, align(64))]
struct Configuration {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

static CONFIGURATION: Configuration = Configuration {
    palette: 1,
    start_row: 0,
    reserved: [0; 14],
    row_bytes: [64, 64, 64, 64, 64, 64, 64, 64, 0, 0, 0, 0, 0, 0, 0, 0],
    rows: [16, 16, 16, 16, 16, 16, 16, 16, 0, 0, 0, 0, 0, 0, 0, 0],
};

impl Unit for Amx {
    unsafe fn begin() {
        // SAFETY: the configuration is a valid one of palette 1; the caller vouches for the instruction.
        unsafe {
            asm!("ldtilecfg [{}]", in(reg) &CONFIGURATION, options(nostack, readonly, preserves_flags))
        };
    }

    unsafe fn end() {
        // SAFETY: tiles hold nothing between blocks; the caller vouches for the instruction.
        unsafe { asm!("tilerelease", options(nostack, nomem, preserves_flags)) };
    }

    #[inline]
    unsafe fn multiply(block: Block) {
        debug_assert!(block.steps > 0);
        // SAFETY: reads and writes what the caller vouches for; tiles are named as clobbered and carry nothing
        // from one block to the next; a prefetch may name any address. `from` and `from_stride` serve as the
        // second tile of a and as the stride of b once the sums are loaded.
        unsafe {
            asm!(
                "test {from}, {from}",
                "jz 2f",
                "tileloadd tmm0, [{from} + {from_stride}*1]",
                "tileloadd tmm1, [{from} + {from_stride}*1 + 64]",
                "mov {t}, {from_stride}",
                "shl {t}, 4",
                "add {from}, {t}",
                "tileloadd tmm2, [{from} + {from_stride}*1]",
                "tileloadd tmm3, [{from} + {from_stride}*1 + 64]",
                "jmp 3f",
                "2:",
                "tilezero tmm0",
                "tilezero tmm1",
                "tilezero tmm2",
                "tilezero tmm3",
                "3:",
                "mov {from}, {a_stride}",
                "shl {from}, 4",
                "add {from}, {a}",
                "mov {from_stride:e}, 64",
                "4:",
                "tileloadd tmm4, [{a} + {a_stride}*1]",
                "tileloadd tmm6, [{b} + {from_stride}*1]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tileloadd tmm7, [{b} + {from_stride}*1 + 1024]",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tileloadd tmm5, [{from} + {a_stride}*1]",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "test {ahead}, {ahead}",
                "jz 5f",
                "mov {t}, {ahead}",
                ".rept 16",
                "prefetcht1 [{t}]",
                "prefetcht1 [{t} + {a_stride}*1]",
                "lea {t}, [{t} + {a_stride}*2]",
                ".endr",
                "add {ahead}, {a_step}",
                "5:",
                "add {a}, {a_step}",
                "add {from}, {a_step}",
                "add {b}, 2048",
                "dec {steps}",
                "jnz 4b",
                "tilestored [{to} + {to_stride}*1], tmm0",
                "tilestored [{to} + {to_stride}*1 + 64], tmm1",
                "mov {t}, {to_stride}",
                "shl {t}, 4",
                "add {t}, {to}",
                "tilestored [{t} + {to_stride}*1], tmm2",
                "tilestored [{t} + {to_stride}*1 + 64], tmm3",
                from = inout(reg) block.from => _,
                from_stride = inout(reg) block.from_stride * size_of::<f32>() => _,
                a = inout(reg) block.a => _,
                a_stride = in(reg) block.a_stride * size_of::<bf16>(),
                a_step = in(reg) block.a_step * size_of::<bf16>(),
                b = inout(reg) block.b => _,
                to = in(reg) block.to,
                to_stride = in(reg) block.to_stride * size_of::<f32>(),
                ahead = inout(reg) block.ahead => _,
                steps = inout(reg) block.steps => _,
                t = out(reg) _,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack),
            );
        }
    }

    #[inline]
    unsafe fn pack(order: Order, from: *const bf16, stride: usize, to: *mut bf16) {
        // SAFETY: vouched for by the caller.
        unsafe { square::pack(order, from, stride, to) }
    }

    #[inline]
    unsafe fn round(sums: &[f32; SIDE], to: &mut [bf16; SIDE]) {
        #[target_feature(enable = "avx512f,avx512bf16")]
        #[inline]
        fn convert(sums: &[f32; SIDE], to: &mut [bf16; SIDE]) {
            // SAFETY: 32 elements are read and written, unaligned.
            unsafe {
                let (low, high) = (sums.as_ptr(), sums.as_ptr().add(16));
                let rounded = _mm512_cvtne2ps_pbh(_mm512_loadu_ps(high), _mm512_loadu_ps(low));
                to.as_mut_ptr().cast::<__m512bh>().write_unaligned(rounded);
            }
        }
        // SAFETY: the caller vouches for the instructions.
        unsafe { convert(sums, to) }
    }
}
