//! Sets of pairs of small numbers, most of which have one or two.
//!
//! A store has two for each of its keys, and a node of a balanced tree takes a hundred bytes however
//! little is in it. So a set begins as a sorted list and becomes a tree when it is large. Invariant:
//! the list is sorted and has no pair twice.

use std::collections::BTreeSet;

/// Beyond this many, finding the place in a list costs more than a tree takes.
const FEW: usize = 64;

/// A set of pairs, in order.
pub(crate) enum Pairs {
    Few(Vec<(u32, u32)>),
    Many(BTreeSet<(u32, u32)>),
}

impl Default for Pairs {
    fn default() -> Self {
        Self::Few(Vec::new())
    }
}

impl Pairs {
    /// Adds a pair; false if it was there.
    pub(crate) fn insert(&mut self, pair: (u32, u32)) -> bool {
        match self {
            Self::Many(pairs) => pairs.insert(pair),
            Self::Few(pairs) => {
                let Err(place) = pairs.binary_search(&pair) else { return false };
                if pairs.len() < FEW {
                    // Little more than needed: most lists never grow again.
                    if pairs.len() == pairs.capacity() {
                        pairs.reserve_exact(1 + pairs.len() / 2);
                    }
                    pairs.insert(place, pair);
                } else {
                    let mut many: BTreeSet<_> = std::mem::take(pairs).into_iter().collect();
                    many.insert(pair);
                    *self = Self::Many(many);
                }
                true
            }
        }
    }

    /// Removes a pair; false if it was not there.
    pub(crate) fn remove(&mut self, pair: (u32, u32)) -> bool {
        match self {
            Self::Many(pairs) => pairs.remove(&pair),
            Self::Few(pairs) => {
                let place = pairs.binary_search(&pair);
                place.map(|place| pairs.remove(place)).is_ok()
            }
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        match self {
            Self::Few(pairs) => pairs.is_empty(),
            Self::Many(pairs) => pairs.is_empty(),
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (u32, u32)> {
        let (few, many) = match self {
            Self::Few(pairs) => (Some(pairs), None),
            Self::Many(pairs) => (None, Some(pairs)),
        };
        few.into_iter().flatten().chain(many.into_iter().flatten()).copied()
    }

    /// The pairs that begin with `first`.
    pub(crate) fn starting(&self, first: u32) -> impl Iterator<Item = (u32, u32)> {
        let (few, many) = match self {
            Self::Few(pairs) => {
                let begin = pairs.partition_point(|pair| pair.0 < first);
                let end = pairs.partition_point(|pair| pair.0 <= first);
                (Some(&pairs[begin..end]), None)
            }
            Self::Many(pairs) => (None, Some(pairs.range((first, 0)..=(first, u32::MAX)))),
        };
        few.into_iter().flatten().chain(many.into_iter().flatten()).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_is_the_same_small_and_large() {
        let mut pairs = Pairs::default();
        let mut plain = BTreeSet::new();
        let mut state = 1u32;
        for round in 0..4000 {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let pair = (state >> 28, (state >> 20) & 15);
            // It grows, then shrinks.
            if (state >> 8) % 4000 > round {
                assert_eq!(pairs.insert(pair), plain.insert(pair));
            } else {
                assert_eq!(pairs.remove(pair), plain.remove(&pair));
            }
            assert_eq!(pairs.is_empty(), plain.is_empty());
            let begun = plain.range((3, 0)..=(3, u32::MAX)).copied();
            assert!(pairs.starting(3).eq(begun));
            assert!(pairs.iter().eq(plain.iter().copied()));
        }
        assert!(matches!(pairs, Pairs::Many(_)));
    }
}
