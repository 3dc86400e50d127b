//! Whether the bf16 tiles of AMX may be used. The products are in `gemm`.

use std::sync::OnceLock;

/// Whether the processor has `amx-tile`, `amx-bf16` and `avx512-bf16` (which came before them, and rounds their
/// sums), and the operating system lets this process use them.
///
/// Permission is asked for once per process; later threads inherit it.
pub(crate) fn is_available() -> bool {
    static AVAILABLE: OnceLock<bool> = OnceLock::new();
    *AVAILABLE.get_or_init(|| has_tiles() && is_x86_feature_detected!("avx512bf16") && ask_permission())
}

fn has_tiles() -> bool {
    use std::arch::x86_64::{__cpuid, __cpuid_count};
    const AMX_BF16: u32 = 1 << 22;
    const AMX_TILE: u32 = 1 << 24;
    if __cpuid(0).eax < 7 {
        return false;
    }
    let features = __cpuid_count(7, 0).edx;
    features & AMX_BF16 != 0 && features & AMX_TILE != 0
}

/// `arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA)`: Linux saves tile data only for those who ask.
#[cfg(target_os = "linux")]
fn ask_permission() -> bool {
    const SYS_ARCH_PRCTL: i64 = 158;
    const ARCH_REQ_XCOMP_PERM: i64 = 0x1023;
    const XFEATURE_XTILEDATA: i64 = 18;
    let result: i64;
    // SAFETY: a system call that changes which registers the kernel saves, and touches no memory.
    unsafe {
        std::arch::asm!(
            "syscall",
            inlateout("rax") SYS_ARCH_PRCTL => result,
            in("rdi") ARCH_REQ_XCOMP_PERM,
            in("rsi") XFEATURE_XTILEDATA,
            out("rcx") _,
            out("r11") _,
            options(nostack),
        );
    }
    result == 0
}

#[cfg(not(target_os = "linux"))]
fn ask_permission() -> bool {
    false
}

/// The operand of `ldtilecfg`: eight tiles of 16 rows of 64 bytes, in palette 1.
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

/// Runs `work` with all eight tiles of this thread at their full size.
///
/// # Safety
/// AMX [is available](is_available).
pub(crate) unsafe fn with_tiles<R>(work: impl FnOnce() -> R) -> R {
    /// Gives the tiles back even if `work` panics: a dirty thread is slower to switch.
    struct Tiles;
    impl Drop for Tiles {
        fn drop(&mut self) {
            // SAFETY: made below alone, where the caller vouches for the instruction.
            unsafe { std::arch::asm!("tilerelease", options(nostack, nomem, preserves_flags)) };
        }
    }
    // SAFETY: the configuration is a valid one; the caller vouches for the instruction.
    unsafe {
        std::arch::asm!("ldtilecfg [{}]", in(reg) &CONFIGURATION, options(nostack, readonly, preserves_flags))
    };
    let _tiles = Tiles;
    work()
}
