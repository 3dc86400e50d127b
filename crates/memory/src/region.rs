//! [`Region`] and [`RegionMut`]: spans of an arena while they are checked out, and loans of them to another thread.
//! Only an [`Arena`] makes them.

use crate::{Arena, Plain, Span};
use std::fmt;
use std::ops::Deref;
use std::ptr::NonNull;
use std::rc::Rc;

/// How a region keeps its arena.
pub(crate) enum Owner<'a> {
    /// It does not outlive a borrow.
    Borrowed(&'a Arena),
    /// The arena lives as long as the region.
    Shared(Rc<Arena>),
}

impl Deref for Owner<'_> {
    type Target = Arena;

    fn deref(&self) -> &Arena {
        match self {
            Owner::Borrowed(arena) => arena,
            Owner::Shared(arena) => arena,
        }
    }
}

/// A span of an arena, checked out for reading; released on drop.
#[must_use = "a region is released when dropped"]
pub struct Region<'a> {
    pub(crate) base: NonNull<u8>,
    pub(crate) span: Span,
    pub(crate) slot: usize,
    /// None for a loan, which the table does not know.
    pub(crate) arena: Option<Owner<'a>>,
}

/// A span of an arena, checked out exclusively; released on drop.
#[must_use = "a region is released when dropped"]
pub struct RegionMut<'a> {
    pub(crate) base: NonNull<u8>,
    pub(crate) span: Span,
    pub(crate) slot: usize,
    /// None for a loan, which the table does not know.
    pub(crate) arena: Option<Owner<'a>>,
}

/// The number of `T` in a span. A remainder is a bug of whoever laid out the arena.
fn count_of<T: Plain>(span: Span) -> usize {
    assert!(
        span.len.is_multiple_of(size_of::<T>()),
        "span {span} is no whole number of {}",
        std::any::type_name::<T>()
    );
    span.len / size_of::<T>()
}

macro_rules! common {
    ($name:ident) => {
        impl $name<'_> {
            /// Where in the arena it is.
            pub fn span(&self) -> Span {
                self.span
            }

            /// Its length in bytes.
            pub fn len_bytes(&self) -> usize {
                self.span.len
            }

            /// Its first byte. Peers may read there while a collective owns the region.
            pub fn as_ptr(&self) -> *const u8 {
                self.base.as_ptr()
            }

            /// Its content as elements.
            ///
            /// # Panics
            /// If its length is no multiple of the element's size.
            pub fn as_slice<T: Plain>(&self) -> &[T] {
                let count = count_of::<T>(self.span);
                // SAFETY: in bounds and 64-byte aligned (checked at check-out); zeroed at first and any bits are a
                // `T`; the table keeps writers away while `self` lives, and `&self` keeps ours away.
                unsafe { std::slice::from_raw_parts(self.base.as_ptr().cast::<T>(), count) }
            }
        }

        impl Drop for $name<'_> {
            fn drop(&mut self) {
                if let Some(arena) = &self.arena {
                    arena.check_in(self.slot);
                }
            }
        }

        impl fmt::Debug for $name<'_> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}{}", stringify!($name), self.span)
            }
        }
    };
}
common!(Region);
common!(RegionMut);

impl Region<'_> {
    /// A second handle on the same bytes, for whoever works on them in the owner's place. The table knows only the
    /// first one: that is what keeps the bytes checked out.
    ///
    /// # Safety
    /// The loan ends before `self` does.
    pub unsafe fn lend(&self) -> Region<'static> {
        Region { base: self.base, span: self.span, slot: self.slot, arena: None }
    }
}

impl RegionMut<'_> {
    /// A second handle on the same bytes, as [`Region::lend`].
    ///
    /// # Safety
    /// The loan ends before `self` does, and nobody uses `self` before that.
    pub unsafe fn lend(&mut self) -> RegionMut<'static> {
        RegionMut { base: self.base, span: self.span, slot: self.slot, arena: None }
    }

    /// Its first byte, for writing.
    pub fn as_mut_ptr(&mut self) -> *mut u8 {
        self.base.as_ptr()
    }

    /// Its content as elements that may be changed.
    ///
    /// # Panics
    /// If its length is no multiple of the element's size.
    pub fn as_mut_slice<T: Plain>(&mut self) -> &mut [T] {
        let count = count_of::<T>(self.span);
        // SAFETY: as in `as_slice`; the table keeps every other region away, and `&mut self` our own slices.
        unsafe { std::slice::from_raw_parts_mut(self.base.as_ptr().cast::<T>(), count) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_span_seen_as_several_types() {
        let arena = Arena::reserve(64).unwrap();
        let mut region = arena.write(Span::new(0, 8)).unwrap();
        region.as_mut_slice::<u8>()[3] = 0x80;
        assert_eq!(region.as_slice::<i32>(), &[i32::MIN, 0]);
        assert_eq!(region.as_slice::<f64>().len(), 1);
        assert_eq!(format!("{region:?}"), "RegionMut[0..8)");
    }

    #[test]
    fn a_loan_reaches_the_bytes_and_gives_nothing_back() {
        let arena = Arena::reserve(64).unwrap();
        let mut region = arena.write(Span::new(0, 16)).unwrap();
        // SAFETY: each loan is dropped at the end of its statement, before the region.
        unsafe {
            region.lend().as_mut_slice::<i32>()[3] = 7;
            drop(region.lend());
        }
        assert_eq!((arena.num_live(), region.as_slice::<i32>()[3]), (1, 7));
        drop(region);
        let region = arena.read(Span::new(0, 16)).unwrap();
        // SAFETY: as above.
        assert_eq!(unsafe { region.lend() }.as_slice::<i32>()[3], 7);
        assert_eq!(arena.num_live(), 1);
    }

    #[test]
    #[should_panic(expected = "no whole number")]
    fn a_remainder_is_a_bug() {
        let arena = Arena::reserve(64).unwrap();
        let _ = arena.read(Span::new(0, 12)).unwrap().as_slice::<f64>();
    }
}
