//! Types that the daemon and its kernel program both read: map keys, map values, counters.
//!
//! `no_std`, `repr(C)`, no padding that is not named. A change of any size, order or meaning here is a new
//! [`LAYOUT`]: a daemon refuses maps that another layout pinned.
#![no_std]
