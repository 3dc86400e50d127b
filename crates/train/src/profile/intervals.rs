//! Sets of time: unions, and what two have in common. Numbers only.

/// Disjoint intervals in order.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Intervals(Vec<(f64, f64)>);

impl Intervals {
    /// The union.
    pub fn of(intervals: impl Iterator<Item = (f64, f64)>) -> Intervals {
        let mut sorted: Vec<(f64, f64)> = intervals.filter(|(start, end)| start < end).collect();
        sorted.sort_by(|a, b| a.0.total_cmp(&b.0));
        let mut union: Vec<(f64, f64)> = Vec::with_capacity(sorted.len());
        for (start, end) in sorted {
            match union.last_mut() {
                Some(last) if start <= last.1 => last.1 = last.1.max(end),
                _ => union.push((start, end)),
            }
        }
        Intervals(union)
    }

    /// Its length.
    pub fn seconds(&self) -> f64 {
        self.0.iter().map(|(start, end)| end - start).sum()
    }

    /// From its begin to its end, gaps included.
    pub fn span_seconds(&self) -> f64 {
        match (self.0.first(), self.0.last()) {
            (Some((start, _)), Some((_, end))) => end - start,
            _ => 0.0,
        }
    }

    /// Length of what it has in common with another.
    pub fn common_seconds(&self, other: &Intervals) -> f64 {
        let (mut a, mut b, mut seconds) = (self.0.iter().peekable(), other.0.iter().peekable(), 0.0);
        while let (Some(first), Some(second)) = (a.peek(), b.peek()) {
            seconds += (first.1.min(second.1) - first.0.max(second.0)).max(0.0);
            if first.1 < second.1 {
                a.next()
            } else {
                b.next()
            };
        }
        seconds
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(intervals: &[(f64, f64)]) -> Intervals {
        Intervals::of(intervals.iter().copied())
    }

    #[test]
    fn unions_and_common_parts() {
        let union = of(&[(5.0, 6.0), (0.0, 2.0), (1.0, 3.0), (3.0, 4.0), (9.0, 9.0)]);
        assert_eq!(union, Intervals(vec![(0.0, 4.0), (5.0, 6.0)]));
        assert_eq!((union.seconds(), union.span_seconds()), (5.0, 6.0));
        assert_eq!(union.common_seconds(&of(&[(3.5, 5.5), (5.75, 8.0)])), 1.25);
        assert_eq!((of(&[]).span_seconds(), of(&[]).common_seconds(&union)), (0.0, 0.0));
    }

    proptest! {
        #[test]
        fn agree_with_counting(a in prop::collection::vec((0..40u32, 0..9u32), 0..9), b in prop::collection::vec((0..40u32, 0..9u32), 0..9)) {
            let covers = |set: &[(u32, u32)], at: u32| set.iter().any(|(start, length)| (*start..start + length).contains(&at));
            let intervals = |set: &[(u32, u32)]| Intervals::of(set.iter().map(|(s, n)| (f64::from(*s), f64::from(s + n))));
            let count = |test: &dyn Fn(u32) -> bool| (0..60).filter(|at| test(*at)).count() as f64;
            prop_assert_eq!(intervals(&a).seconds(), count(&|at| covers(&a, at)));
            prop_assert_eq!(intervals(&a).common_seconds(&intervals(&b)), count(&|at| covers(&a, at) && covers(&b, at)));
        }
    }
}
