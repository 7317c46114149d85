//! One function's life, as policy.

mod types;

pub use types::{Action, Demand, Event, Machine, Outlook, Phase, Plan, Revision, Share, Time};
#[derive(Clone, Debug, Default)]
pub struct Lifecycle;
impl Lifecycle {
    pub fn new(_: u64) -> Self {
        Self
    }
    pub fn adopted(_: u64, _: Vec<Share>, _: impl IntoIterator<Item = (u32, Revision)>, _: Time) -> Self {
        Self
    }
    pub fn step(&mut self, _: Event, _: Time, _: &mut dyn Machine) -> Vec<Action> {
        vec![]
    }
    pub fn next_tick(&self) -> Option<Time> {
        None
    }
    pub fn wants_load(&self) -> bool {
        false
    }
    pub fn outlook(&self) -> Outlook {
        Outlook::Cold
    }
    pub fn reason(&self) -> Option<&str> {
        None
    }
    pub fn retry_at(&self) -> Option<Time> {
        None
    }
    pub fn failures(&self) -> u32 {
        0
    }
    pub fn phase(&self, _: u32) -> Option<Phase> {
        None
    }
    pub fn takes_connections(&self, _: u32) -> bool {
        false
    }
    pub fn is_removed(&self) -> bool {
        false
    }
}
