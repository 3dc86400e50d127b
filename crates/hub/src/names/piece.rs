//! One of our parameters as a piece of a stored tensor: which element is where. No families, no conversion.

use std::ops::Range;

/// A view of a stored tensor: element `(i, j, ...)` of our parameter is the stored element at
/// `offset + i * stride_i + j * stride_j + ...`, row-major.
///
/// Slices, transpositions, splits of a dim and merges of neighbours are all of this form, so a piece can be read and
/// written by the same numbers and a round trip changes nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    tensor: String,
    tensor_shape: Vec<usize>,
    offset: usize,
    /// `(size, stride)` of each of our dims.
    dims: Vec<(usize, usize)>,
}

impl Piece {
    /// All of the tensor called `tensor`, dims as stored.
    pub(super) fn of(tensor: impl Into<String>, shape: &[usize]) -> Piece {
        let mut dims: Vec<(usize, usize)> = shape.iter().map(|size| (*size, 1)).collect();
        let mut stride = 1;
        for dim in dims.iter_mut().rev() {
            dim.1 = stride;
            stride *= dim.0;
        }
        Piece { tensor: tensor.into(), tensor_shape: shape.to_vec(), offset: 0, dims }
    }

    /// Indices `range` of a dim.
    pub(super) fn slice(mut self, dim: usize, range: Range<usize>) -> Piece {
        let (size, stride) = self.dims[dim];
        assert!(range.end <= size, "a slice beyond the dim");
        self.offset += range.start * stride;
        self.dims[dim].0 = range.len();
        self
    }

    /// A dim as several, the first of which varies slowest.
    pub(super) fn split(mut self, dim: usize, sizes: &[usize]) -> Piece {
        let (size, mut stride) = self.dims.remove(dim);
        assert_eq!(sizes.iter().product::<usize>(), size, "a split keeps the number of elements");
        for part in sizes.iter().rev() {
            self.dims.insert(dim, (*part, stride));
            stride *= part;
        }
        self
    }

    /// Dims `range`, neighbours in the file, as one.
    pub(super) fn merge(mut self, range: Range<usize>) -> Piece {
        let size = self.dims[range.clone()].iter().map(|(size, _)| size).product();
        let stride = self.dims[range.end - 1].1;
        self.dims.splice(range, [(size, stride)]);
        self
    }

    /// Our dims in the order `order` of the present ones.
    pub(super) fn permute(mut self, order: &[usize]) -> Piece {
        self.dims = order.iter().map(|dim| self.dims[*dim]).collect();
        self
    }

    /// Name of the stored tensor.
    pub fn tensor(&self) -> &str {
        &self.tensor
    }

    /// Shape of the stored tensor.
    pub fn tensor_shape(&self) -> &[usize] {
        &self.tensor_shape
    }

    /// Shape of our parameter.
    pub fn shape(&self) -> Vec<usize> {
        self.dims.iter().map(|(size, _)| *size).collect()
    }

    /// Number of elements of our parameter.
    pub fn len(&self) -> usize {
        self.dims.iter().map(|(size, _)| size).product()
    }

    /// Whether our parameter has no elements; none has.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Visits elements `range` of our parameter (row-major) with the index of each in the stored tensor.
    ///
    /// # Panics
    /// If the range reaches beyond the parameter.
    pub fn for_each(&self, range: Range<usize>, mut visit: impl FnMut(usize, usize)) {
        assert!(range.end <= self.len(), "elements beyond the parameter");
        let Some((&(width, step), outer)) = self.dims.split_last() else {
            range.for_each(|i| visit(i, self.offset));
            return;
        };
        if range.is_empty() {
            return;
        }
        // counters of the outer dims at the first row
        let mut row = range.start / width;
        let mut counters: Vec<usize> = vec![0; outer.len()];
        let mut base = self.offset;
        let mut rest = row;
        for (counter, (size, stride)) in counters.iter_mut().zip(outer).rev() {
            *counter = rest % size;
            rest /= size;
            base += *counter * stride;
        }
        loop {
            let from = range.start.max(row * width);
            let to = range.end.min((row + 1) * width);
            for i in from..to {
                visit(i, base + (i - row * width) * step);
            }
            if to == range.end {
                return;
            }
            row += 1;
            for (counter, (size, stride)) in counters.iter_mut().zip(outer).rev() {
                *counter += 1;
                base += stride;
                if *counter < *size {
                    break;
                }
                base -= *counter * stride;
                *counter = 0;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn indices(piece: &Piece, range: Range<usize>) -> Vec<usize> {
        let mut found = Vec::new();
        piece.for_each(range.clone(), |i, at| {
            assert_eq!(i, range.start + found.len());
            found.push(at);
        });
        found
    }

    #[test]
    fn a_transposed_slice_of_a_fused_tensor() {
        // [3, 4] holds two tensors side by side; the second, with its columns split and put first
        let piece = Piece::of("fused", &[3, 4]).slice(1, 2..4).split(1, &[2, 1]).permute(&[1, 0, 2]);
        assert_eq!(piece.shape(), [2, 3, 1]);
        assert_eq!(indices(&piece, 0..6), [2, 6, 10, 3, 7, 11]);
        assert_eq!(indices(&piece, 2..5), [10, 3, 7]);
        assert!(indices(&piece, 3..3).is_empty());
    }

    #[test]
    fn merged_dims() {
        let piece = Piece::of("patches", &[2, 3, 2]).merge(1..3).permute(&[1, 0]);
        assert_eq!(piece.shape(), [6, 2]);
        assert_eq!(indices(&piece, 0..12), [0, 6, 1, 7, 2, 8, 3, 9, 4, 10, 5, 11]);
        assert_eq!(indices(&Piece::of("scalar", &[]), 0..1), [0]);
    }

    proptest! {
        #[test]
        fn any_range_is_a_part_of_all(sizes in [1..4usize, 1..4, 1..4], order in 0..6usize, cut in any::<[prop::sample::Index; 2]>()) {
            let orders = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];
            let piece = Piece::of("x", &sizes).permute(&orders[order]);
            let all = indices(&piece, 0..piece.len());
            let mut sorted = all.clone();
            sorted.sort_unstable();
            prop_assert!(sorted.into_iter().eq(0..piece.len()));
            let (a, b) = (cut[0].index(piece.len() + 1), cut[1].index(piece.len() + 1));
            let range = a.min(b)..a.max(b);
            prop_assert_eq!(indices(&piece, range.clone()), &all[range]);
        }
    }
}
