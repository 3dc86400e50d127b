//! The pages under an arena: an anonymous mapping, or the plain allocator where Miri looks on. Knows no regions.

use std::io;
use std::ptr::NonNull;

/// Zeroed pages, given back on drop.
pub(crate) struct Backing {
    base: NonNull<u8>,
    len: usize,
    #[cfg(not(miri))]
    _map: memmap2::MmapMut,
}

#[cfg(not(miri))]
impl Backing {
    /// Maps `len` zero bytes; a page costs memory only once it is touched.
    pub(crate) fn zeroed(len: usize) -> io::Result<Backing> {
        // Linux refuses an empty mapping; an arena of no bytes is still an arena.
        let mut map = memmap2::MmapOptions::new().len(len.max(1)).no_reserve_swap().map_anon()?;
        // Fewer faults and fewer TLB misses; only advice, so a refusal is no error.
        #[cfg(target_os = "linux")]
        if len >= 8 << 20 {
            let _ = map.advise(memmap2::Advice::HugePage);
        }
        let base = NonNull::new(map.as_mut_ptr()).ok_or_else(|| io::Error::other("mapped at null"))?;
        Ok(Backing { base, len, _map: map })
    }
}

#[cfg(miri)]
impl Backing {
    pub(crate) fn zeroed(len: usize) -> io::Result<Backing> {
        // SAFETY: the layout is not empty.
        let base = unsafe { std::alloc::alloc_zeroed(Self::layout(len)) };
        let base = NonNull::new(base).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Backing { base, len })
    }

    fn layout(len: usize) -> std::alloc::Layout {
        std::alloc::Layout::from_size_align(len.max(1), 4096).expect("an arena below isize::MAX bytes")
    }
}

#[cfg(miri)]
impl Drop for Backing {
    fn drop(&mut self) {
        // SAFETY: allocated in `zeroed` with this very layout.
        unsafe { std::alloc::dealloc(self.base.as_ptr(), Self::layout(self.len)) }
    }
}

impl Backing {
    pub(crate) fn base(&self) -> NonNull<u8> {
        self.base
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }
}
