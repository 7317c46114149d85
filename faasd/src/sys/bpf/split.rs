//! How a route's connections are shared out, in the kernel program's terms.

use faasd_common::{BRANCHES_MAX, Split};

use super::BpfError;

/// One of the slots that a route's connections are shared out to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Branch {
    pub slot: u32,
    /// Its share of the sum of all weights.
    pub weight: u32,
    /// Whether connections that fall to it are refused.
    pub shed: bool,
}

pub(super) fn split(branches: &[Branch]) -> Result<Split, BpfError> {
    let weighed: Vec<_> = branches.iter().filter(|branch| branch.weight > 0).collect();
    let total: u64 = weighed.iter().map(|branch| u64::from(branch.weight)).sum();
    let refused = || BpfError::Split { branches: weighed.len(), total };
    if weighed.is_empty() || weighed.len() > BRANCHES_MAX {
        return Err(refused());
    }
    let total = u32::try_from(total).map_err(|_| refused())?;
    let mut split = Split {
        len: weighed.len() as u32,
        total,
        shed: 0,
        upto: [total; BRANCHES_MAX],
        slots: [0; BRANCHES_MAX],
    };
    let mut upto = 0;
    for (i, branch) in weighed.into_iter().enumerate() {
        upto += branch.weight;
        split.upto[i] = upto;
        split.slots[i] = branch.slot;
        split.shed |= u32::from(branch.shed) << i;
    }
    Ok(split)
}

pub(super) fn branches(split: &Split) -> Vec<Branch> {
    let mut below = 0;
    (0..BRANCHES_MAX.min(split.len as usize))
        .map(|i| {
            let weight = split.upto[i] - below;
            below = split.upto[i];
            Branch { slot: split.slots[i], weight, shed: split.shed >> i & 1 == 1 }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn branch(slot: u32, weight: u32, shed: bool) -> Branch {
        Branch { slot, weight, shed }
    }

    #[test]
    fn a_split_is_what_was_asked_for_without_those_that_have_no_share() {
        let asked = [branch(7, 90, false), branch(8, 0, false), branch(9, 10, true)];
        let made = split(&asked).unwrap();
        assert_eq!(
            (made.len, made.total, made.shed, made.upto[..3].to_vec()),
            (2, 100, 0b10, vec![90, 100, 100])
        );
        assert_eq!(branches(&made), [asked[0], asked[2]]);
    }

    #[test]
    fn a_split_has_limits() {
        assert!(split(&[]).is_err());
        assert!(split(&[branch(1, 0, false)]).is_err());
        assert!(split(&[branch(1, 1, false); BRANCHES_MAX]).is_ok());
        assert!(split(&[branch(1, 1, false); BRANCHES_MAX + 1]).is_err());
        assert!(split(&[branch(1, u32::MAX, false)]).is_ok());
        assert!(split(&[branch(1, u32::MAX, false), branch(2, 1, false)]).is_err());
    }
}
