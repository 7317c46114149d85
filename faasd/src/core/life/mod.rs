//! One function's life, as policy.

mod types;

pub use types::{Action, Demand, Event, Machine, Outlook, Phase, Plan, Revision, Share, Time};
