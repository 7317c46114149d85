//! Which instance gets a connection: the one with the fewest in flight.

/// What the choice goes by.
pub trait Candidate {
    /// Whether it can be given a connection now.
    fn available(&self) -> bool;

    /// Connections that it was given and has not reported finished.
    fn in_flight(&self) -> u64;
}

/// The index of the available candidate with the fewest connections in flight. Equals take turns: the search starts
/// after the one that was chosen `last`.
#[must_use]
pub fn least_in_flight<C: Candidate>(candidates: &[C], last: usize) -> Option<usize> {
    let count = candidates.len();
    (1..=count)
        .map(|step| (last + step) % count)
        .filter(|&i| candidates[i].available())
        .min_by_key(|&i| candidates[i].in_flight())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Debug, Clone)]
    struct Fake(bool, u64);

    impl Candidate for Fake {
        fn available(&self) -> bool {
            self.0
        }

        fn in_flight(&self) -> u64 {
            self.1
        }
    }

    #[test]
    fn equals_take_turns() {
        let three = vec![Fake(true, 1); 3];
        let mut last = 0;
        let order: Vec<_> = (0..6).map(|_| (last = least_in_flight(&three, last).unwrap(), last).1).collect();
        assert_eq!(order, [1, 2, 0, 1, 2, 0]);
    }

    proptest! {
        #[test]
        fn nobody_available_has_fewer(
            candidates in prop::collection::vec((any::<bool>(), 0u64..5), 0..8),
            last in 0usize..8,
        ) {
            let candidates: Vec<_> = candidates.into_iter().map(|(a, n)| Fake(a, n)).collect();
            match least_in_flight(&candidates, last) {
                Some(i) => {
                    prop_assert!(candidates[i].0);
                    prop_assert!(candidates.iter().filter(|c| c.0).all(|c| c.1 >= candidates[i].1));
                }
                None => prop_assert!(candidates.iter().all(|c| !c.0)),
            }
        }
    }
}
