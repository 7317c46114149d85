//! Lists, page by page.

use schemars::JsonSchema;
use serde::Deserialize;

use super::ApiError;
use super::handlers::Result;
use crate::api::types::{PAGE, PAGE_MAX};

/// Which part of a list.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Listing {
    /// The most items
    #[schemars(range(min = 1, max = PAGE_MAX))]
    limit: usize,
    /// What comes after this name: the `next` of the page before
    after: String,
    /// What begins with this
    pub(super) prefix: String,
}

impl Default for Listing {
    fn default() -> Self {
        Self { limit: PAGE, after: String::new(), prefix: String::new() }
    }
}

impl Listing {
    /// Whether it can be answered.
    pub(super) fn check(&self) -> Result<()> {
        match (1..=PAGE_MAX).contains(&self.limit) {
            true => Ok(()),
            false => Err(ApiError::invalid(format!("'limit={}': use 1 to {PAGE_MAX}", self.limit))),
        }
    }

    /// That part, and what to ask for after it, if there is more. Whatever is added or removed between two pages: what
    /// was there all the time is seen once.
    pub(super) fn page<T>(self, items: Vec<T>, name: impl Fn(&T) -> String) -> (Vec<T>, Option<String>) {
        let mut named: Vec<(String, T)> = items
            .into_iter()
            .map(|item| (name(&item), item))
            .filter(|(name, _)| name.starts_with(&self.prefix) && *name > self.after)
            .collect();
        named.sort_by(|(a, _), (b, _)| a.cmp(b));
        let is_more = named.len() > self.limit;
        named.truncate(self.limit);
        let next = named.last().filter(|_| is_more).map(|(name, _)| name.clone());
        (named.into_iter().map(|(_, item)| item).collect(), next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_make_up_the_list() {
        let all: Vec<String> = ["b", "a", "c", "ab", "aa"].map(str::to_owned).to_vec();
        let page = |limit, after: &str, prefix: &str| {
            let listing = Listing { limit, after: after.into(), prefix: prefix.into() };
            let (items, next) = listing.page(all.clone(), String::clone);
            (items.join(" "), next)
        };
        assert_eq!(page(10, "", ""), ("a aa ab b c".into(), None));
        assert_eq!(page(2, "", ""), ("a aa".into(), Some("aa".into())));
        assert_eq!(page(2, "aa", ""), ("ab b".into(), Some("b".into())));
        assert_eq!(page(2, "b", ""), ("c".into(), None));
        assert_eq!(page(3, "", "a"), ("a aa ab".into(), None));
        assert_eq!(page(1, "a", "a"), ("aa".into(), Some("aa".into())));
        assert_eq!(page(1, "zzz", ""), (String::new(), None));
        assert!(Listing { limit: 0, ..Listing::default() }.check().is_err());
        assert!(Listing { limit: PAGE_MAX + 1, ..Listing::default() }.check().is_err());
    }
}
