//! [`Arena`]: one allocation per rank, and the table of spans that are checked out of it.
//! What a span is for is decided elsewhere, before the first step.

use crate::backing::Backing;
use crate::region::Owner;
use crate::{MemoryError, Region, RegionMut};
use std::cell::Cell;
use std::fmt;
use std::marker::PhantomData;
use std::mem::ManuallyDrop;
use std::rc::Rc;

/// Every span starts at a multiple of this many bytes (a cache line, and an AVX-512 register).
pub const SPAN_ALIGN: usize = 64;

/// How many regions of one arena may be live at once.
pub const LIVE_REGIONS: usize = 256;

const WORDS: usize = LIVE_REGIONS / 64;

/// A stretch of an arena, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Span {
    /// Where it starts: a multiple of [`SPAN_ALIGN`].
    pub offset: usize,
    /// How long it is; any length, also 0.
    pub len: usize,
}

impl Span {
    /// A span of `len` bytes from `offset`.
    pub const fn new(offset: usize, len: usize) -> Span {
        Span { offset, len }
    }

    /// Whether the two share a byte. An empty span shares none.
    pub const fn overlaps(self, other: Span) -> bool {
        // Both ends are within an arena (checked before), so the sums do not overflow.
        self.len > 0
            && other.len > 0
            && self.offset < other.offset.saturating_add(other.len)
            && other.offset < self.offset.saturating_add(self.len)
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}..{})", self.offset, self.offset.saturating_add(self.len))
    }
}

/// One allocation, page aligned and zeroed lazily (an untouched page costs nothing), owned by one rank's thread.
///
/// It may move to another thread but not be shared: regions are counted without atomics. An arena that is dropped
/// while a region was leaked (`mem::forget`) keeps its pages for ever: whoever still holds the address, a peer or a
/// device, may use it without harm. That is what lets a pending collective own a region safely.
pub struct Arena {
    backing: ManuallyDrop<Backing>,
    live: Live,
    not_sync: PhantomData<Cell<u8>>,
}

// SAFETY: the pages are owned by the arena alone, and regions borrow it or share its `Rc`, which does not move between
// threads, so none is live while it moves. (A leaked region only marks its slot in the table for ever.)
unsafe impl Send for Arena {}

impl Arena {
    /// Reserves `bytes` zero bytes of address space.
    ///
    /// # Errors
    /// [`MemoryError::Reserve`] if the system refuses.
    pub fn reserve(bytes: usize) -> Result<Arena, MemoryError> {
        let backing = Backing::zeroed(bytes).map_err(|source| MemoryError::Reserve { bytes, source })?;
        Ok(Arena { backing: ManuallyDrop::new(backing), live: Live::default(), not_sync: PhantomData })
    }

    /// The size in bytes.
    pub fn len(&self) -> usize {
        self.backing.len()
    }

    /// Whether it has no bytes at all.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many regions are checked out now.
    pub fn num_live(&self) -> usize {
        self.live.count()
    }

    /// Checks `span` out for reading; other readers may overlap it.
    ///
    /// # Errors
    /// [`MemoryError::Overlap`] if a live region writes there; `OutOfBounds`, `Misaligned`, `TooManyLive`.
    pub fn read(&self, span: Span) -> Result<Region<'_>, MemoryError> {
        let slot = self.check_out(span, false)?;
        // SAFETY: the span is within the mapping (checked).
        let base = unsafe { self.backing.base().add(span.offset) };
        Ok(Region { base, span, slot, arena: Some(Owner::Borrowed(self)) })
    }

    /// As [`Arena::read`], for a region that outlives any borrow: it keeps the arena.
    ///
    /// # Errors
    /// As [`Arena::read`].
    pub fn read_shared(self: &Rc<Self>, span: Span) -> Result<Region<'static>, MemoryError> {
        let slot = self.check_out(span, false)?;
        // SAFETY: the span is within the mapping (checked).
        let base = unsafe { self.backing.base().add(span.offset) };
        Ok(Region { base, span, slot, arena: Some(Owner::Shared(self.clone())) })
    }

    /// Checks `span` out exclusively.
    ///
    /// # Errors
    /// [`MemoryError::Overlap`] if any live region overlaps, naming both; `OutOfBounds`, `Misaligned`, `TooManyLive`.
    pub fn write(&self, span: Span) -> Result<RegionMut<'_>, MemoryError> {
        let slot = self.check_out(span, true)?;
        // SAFETY: the span is within the mapping (checked).
        let base = unsafe { self.backing.base().add(span.offset) };
        Ok(RegionMut { base, span, slot, arena: Some(Owner::Borrowed(self)) })
    }

    /// As [`Arena::write`], for a region that outlives any borrow: it keeps the arena.
    ///
    /// # Errors
    /// As [`Arena::write`].
    pub fn write_shared(self: &Rc<Self>, span: Span) -> Result<RegionMut<'static>, MemoryError> {
        let slot = self.check_out(span, true)?;
        // SAFETY: the span is within the mapping (checked).
        let base = unsafe { self.backing.base().add(span.offset) };
        Ok(RegionMut { base, span, slot, arena: Some(Owner::Shared(self.clone())) })
    }

    fn check_out(&self, span: Span, exclusive: bool) -> Result<usize, MemoryError> {
        if !span.offset.is_multiple_of(SPAN_ALIGN) {
            return Err(MemoryError::Misaligned { span, align: SPAN_ALIGN });
        }
        if span.offset.checked_add(span.len).is_none_or(|end| end > self.len()) {
            return Err(MemoryError::OutOfBounds { span, arena_bytes: self.len() });
        }
        if let Some((live, live_exclusive)) = self.live.conflict(span, exclusive) {
            return Err(MemoryError::Overlap {
                wanted: span,
                wanted_exclusive: exclusive,
                live,
                live_exclusive,
            });
        }
        self.live.insert(span, exclusive).ok_or(MemoryError::TooManyLive { span, limit: LIVE_REGIONS })
    }

    pub(crate) fn check_in(&self, slot: usize) {
        self.live.remove(slot);
    }
}

impl fmt::Debug for Arena {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Arena").field("len", &self.len()).field("num_live", &self.num_live()).finish()
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        if self.live.count() == 0 {
            // SAFETY: dropped once, here, and not used again; no region is left that could point into it.
            unsafe { ManuallyDrop::drop(&mut self.backing) }
        }
    }
}

/// The live spans: a bit per slot says that it is taken, another that it writes.
struct Live {
    readers: [Cell<u64>; WORDS],
    writers: [Cell<u64>; WORDS],
    spans: [Cell<Span>; LIVE_REGIONS],
}

impl Default for Live {
    fn default() -> Live {
        Live {
            readers: [const { Cell::new(0) }; WORDS],
            writers: [const { Cell::new(0) }; WORDS],
            spans: [const { Cell::new(Span::new(0, 0)) }; LIVE_REGIONS],
        }
    }
}

impl Live {
    fn conflict(&self, span: Span, exclusive: bool) -> Option<(Span, bool)> {
        for word in 0..WORDS {
            let writers = self.writers[word].get();
            let mut bits = if exclusive { writers | self.readers[word].get() } else { writers };
            while bits != 0 {
                let bit = bits.trailing_zeros() as usize;
                bits &= bits - 1;
                let live = self.spans[word * 64 + bit].get();
                if live.overlaps(span) {
                    return Some((live, writers >> bit & 1 == 1));
                }
            }
        }
        None
    }

    fn insert(&self, span: Span, exclusive: bool) -> Option<usize> {
        for word in 0..WORDS {
            let free = !(self.readers[word].get() | self.writers[word].get());
            if free != 0 {
                let bit = free.trailing_zeros() as usize;
                let set = if exclusive { &self.writers } else { &self.readers };
                set[word].set(set[word].get() | 1 << bit);
                self.spans[word * 64 + bit].set(span);
                return Some(word * 64 + bit);
            }
        }
        None
    }

    fn remove(&self, slot: usize) {
        let (word, keep) = (slot / 64, !(1 << (slot % 64)));
        self.readers[word].set(self.readers[word].get() & keep);
        self.writers[word].set(self.writers[word].get() & keep);
    }

    fn count(&self) -> usize {
        (0..WORDS).map(|w| (self.readers[w].get() | self.writers[w].get()).count_ones() as usize).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_are_read_back_and_start_as_zero() {
        let arena = Arena::reserve(1024).unwrap();
        let span = Span::new(64, 40);
        assert_eq!(arena.read(span).unwrap().as_slice::<f32>(), &[0.0; 10]);
        arena.write(span).unwrap().as_mut_slice::<f32>().copy_from_slice(&[1.5; 10]);
        assert_eq!(arena.read(span).unwrap().as_slice::<f32>(), &[1.5; 10]);
        assert_eq!(arena.num_live(), 0);
    }

    #[test]
    fn an_overlap_names_both_spans() {
        let arena = Arena::reserve(1024).unwrap();
        let live = arena.write(Span::new(128, 128)).unwrap();
        let error = arena.read(Span::new(64, 65)).unwrap_err().to_string();
        assert_eq!(error, "span [64..129) (to read) overlaps live span [128..256) (being written)");
        assert!(arena.write(Span::new(192, 1)).is_err());
        assert!(arena.write(Span::new(64, 64)).is_ok(), "neighbours do not overlap");
        assert!(arena.write(Span::new(192, 0)).is_ok(), "an empty span overlaps nothing");
        drop(live);
        let (a, b) = (arena.read(Span::new(64, 65)).unwrap(), arena.read(Span::new(64, 200)).unwrap());
        assert!(matches!(
            arena.write(Span::new(128, 4)),
            Err(MemoryError::Overlap { wanted_exclusive: true, live_exclusive: false, .. })
        ));
        assert_eq!((a.len_bytes(), b.len_bytes()), (65, 200));
    }

    #[test]
    fn bad_spans_are_refused() {
        let arena = Arena::reserve(100).unwrap();
        assert!(matches!(arena.read(Span::new(32, 4)), Err(MemoryError::Misaligned { .. })));
        assert!(matches!(arena.read(Span::new(64, 37)), Err(MemoryError::OutOfBounds { .. })));
        assert!(matches!(arena.read(Span::new(64, usize::MAX)), Err(MemoryError::OutOfBounds { .. })));
        assert!(arena.read(Span::new(64, 36)).is_ok());
        assert!(Arena::reserve(0).unwrap().write(Span::default()).is_ok());
    }

    #[test]
    fn the_table_is_bounded() {
        let arena = Arena::reserve(64 * (LIVE_REGIONS + 1)).unwrap();
        let regions: Vec<_> =
            (0..LIVE_REGIONS).map(|i| arena.write(Span::new(i * 64, 64)).unwrap()).collect();
        let error = arena.read(Span::new(LIVE_REGIONS * 64, 64)).unwrap_err();
        assert!(matches!(error, MemoryError::TooManyLive { limit: LIVE_REGIONS, .. }));
        drop(regions);
        assert!(arena.read(Span::new(LIVE_REGIONS * 64, 64)).is_ok());
    }

    #[test]
    fn a_leaked_region_keeps_its_pages() {
        let arena = Arena::reserve(4096).unwrap();
        let mut region = arena.write(Span::new(0, 64)).unwrap();
        let address = region.as_mut_ptr();
        std::mem::forget(region);
        assert!(arena.read(Span::new(0, 4)).is_err(), "it stays checked out");
        drop(arena);
        // SAFETY: the pages outlive the arena because the region was leaked; nobody else uses them.
        unsafe {
            address.write(7);
            assert_eq!(address.read(), 7);
        }
    }

    #[test]
    #[cfg(not(miri))]
    fn untouched_pages_cost_nothing() {
        let before = crate::machine::resident_bytes().unwrap_or(0);
        let arena = Arena::reserve(64 << 30).unwrap();
        arena.write(Span::new(32 << 30, 8)).unwrap().as_mut_slice::<f64>()[0] = 1.0;
        let after = crate::machine::resident_bytes().unwrap_or(0);
        assert!(after.saturating_sub(before) < 256 << 20, "{before} -> {after}");
    }
}
