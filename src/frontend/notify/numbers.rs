//! The numbers of descriptors that clients get: high ones, so that a filter, which sees numbers alone, catches few other calls.
//!
//! # Theory of operation
//!
//! The kernel gives the lowest free number, and programs expect that of their own files only. So the device's are taken from the
//! upper end of two ranges, where a client's own come last. The first range ends at 1,024, because `select` goes no further. The second
//! lies below the client's soft limit, for programs that open the device hundreds of times; it ends at 65,536, because the kernel
//! keeps a table as long as the highest number.

use std::ops::Range;

/// What `select` can wait for (`FD_SETSIZE`).
const OF_SELECT: u32 = 1024;
/// The length of the first range, and of the second.
const FIRST: u32 = 64;
const SECOND: u32 = 4096;
/// Where the second range ends at most.
const HIGHEST: u32 = 65_536;

/// The ranges, in the order in which they are filled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Numbers([Range<u32>; 2]);

impl Numbers {
    /// For a program with a soft limit of descriptors.
    pub(super) fn below(limit: u64) -> Self {
        let limit = u32::try_from(limit).unwrap_or(u32::MAX).min(HIGHEST);
        let end = limit.min(OF_SELECT);
        // A program with few descriptors needs them for itself.
        let first = end - FIRST.min(end / 4)..end;
        let second = limit.saturating_sub(SECOND).max(end)..limit.max(end);
        Self([first, second])
    }

    /// Those of the ranges that are not empty, lowest first.
    pub(super) fn ranges(&self) -> impl Iterator<Item = Range<u32>> {
        self.0.iter().filter(|range| !range.is_empty()).cloned()
    }

    pub(super) fn contains(&self, number: u32) -> bool {
        self.0.iter().any(|range| range.contains(&number))
    }

    /// All from a number on, in the order in which they are to be given.
    pub(super) fn from(&self, least: u32) -> impl Iterator<Item = u32> {
        self.0.clone().into_iter().flat_map(Iterator::rev).filter(move |number| *number >= least)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranges(limit: u64) -> Vec<(u32, u32)> {
        Numbers::below(limit).ranges().map(|range| (range.start, range.end)).collect()
    }

    #[test]
    fn ranges_follow_the_limit() {
        assert_eq!(ranges(256), [(192, 256)]);
        assert_eq!(ranges(20), [(15, 20)]);
        assert_eq!(ranges(1024), [(960, 1024)]);
        assert_eq!(ranges(1500), [(960, 1024), (1024, 1500)]);
        assert_eq!(ranges(20_000), [(960, 1024), (15_904, 20_000)]);
        assert_eq!(ranges(1 << 20), [(960, 1024), (61_440, 65_536)]);
        assert_eq!(ranges(u64::MAX), [(960, 1024), (61_440, 65_536)]);
        assert_eq!(ranges(0), []);
    }

    #[test]
    fn numbers_are_given_from_above_and_those_of_select_first() {
        let numbers = Numbers::below(1 << 20);
        let given: Vec<u32> = numbers.from(0).collect();
        assert_eq!((given[0], given[63], given[64]), (1023, 960, 65_535));
        assert_eq!(given.len(), 64 + 4096);
        assert_eq!(numbers.from(1000).count(), 24 + 4096);
        assert!(numbers.contains(960) && !numbers.contains(959) && !numbers.contains(2000));
    }
}
