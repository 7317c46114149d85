//! The CPU time and memory of functions: of their instances' control groups, read when somebody asks.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::flows::{self, Flow};
use super::owner::Listed;
use crate::api::types::{Function, FunctionUsage, Instance, Phase};
use crate::core::name::FunctionName;
use crate::runtime::instance::Runtime;
use crate::sys::cgroup::Used;

/// What each function has used.
pub type UsedBy = BTreeMap<FunctionName, Used>;

/// What the instances of each function have used.
#[derive(Debug)]
pub struct Consumption {
    runtime: Arc<Runtime>,
    seen: Mutex<BTreeMap<FunctionName, Seen>>,
}

/// Of one function.
#[derive(Debug, Default)]
struct Seen {
    /// CPU time of instances that have ended, as it was when they were looked at last.
    ended: Duration,
    /// Of each instance.
    live: HashMap<String, Duration>,
}

impl Consumption {
    #[must_use]
    pub fn new(runtime: Arc<Runtime>) -> Self {
        Self { runtime, seen: Mutex::default() }
    }

    /// Of each of these functions, which are all whose names begin with `prefix`. Blocks, for two small files an instance.
    #[must_use]
    pub fn look<'a>(&self, prefix: &str, functions: impl Iterator<Item = &'a Function>) -> UsedBy {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let mut before = std::mem::take(&mut *seen);
        let mut all = BTreeMap::new();
        for function in functions {
            let mut of = before.remove(&function.name).unwrap_or_default();
            let live = function.instances.iter().map(|instance| {
                let used = self.runtime.used(&instance.id);
                (instance.id.clone(), used)
            });
            all.insert(function.name.clone(), of.update(live));
            seen.insert(function.name.clone(), of);
        }
        // What should be among them and is not has been removed.
        seen.extend(before.into_iter().filter(|(name, _)| !name.as_str().starts_with(prefix)));
        all
    }
}

/// What functions use, for whoever asks.
#[must_use]
pub fn usage(listed: &[Listed], used: &UsedBy, flows: &flows::Seen) -> Vec<FunctionUsage> {
    let mut by_function: HashMap<&FunctionName, Flow> = HashMap::new();
    for ((_, function), flow) in &flows.flows {
        by_function.entry(function).or_default().merge(flow);
    }
    let one = |listed: &Listed| {
        let function = &listed.function;
        let used = used.get(&function.name).copied().unwrap_or_default();
        let flow = by_function.remove(&function.name).unwrap_or_default();
        let (open_sum, open) = flow.open_rtt_us;
        // Instances write half of these numbers, and may write anything.
        let sum = |of: fn(&Instance) -> u64| function.instances.iter().map(of).fold(0, u64::saturating_add);
        FunctionUsage {
            name: function.name.clone(),
            state: function.state,
            ready: function.instances.iter().filter(|instance| instance.phase == Phase::Ready).count(),
            instances: function.instances.len(),
            connections: function.connections.steered.saturating_add(function.connections.forwarded),
            in_flight: sum(|instance| instance.in_flight),
            queues: listed.queues,
            requests: sum(|instance| instance.requests).saturating_add(listed.lives.requests),
            errors: sum(|instance| instance.errors).saturating_add(listed.lives.errors),
            cpu_us: used.cpu.as_micros() as u64,
            memory_bytes: used.memory_bytes,
            received_bytes: flow.received_bytes,
            sent_bytes: flow.sent_bytes,
            retransmits: flow.retransmits,
            rtt_us: open_sum.checked_div(open),
            ended_rtt_us_sum: flow.rtt_sum_us,
            ended_rtts: flow.rtt.iter().sum(),
        }
    };
    listed.iter().map(one).collect()
}

impl Seen {
    fn update(&mut self, live: impl Iterator<Item = (String, Used)>) -> Used {
        let mut before = std::mem::take(&mut self.live);
        let mut all = Used::default();
        for (id, used) in live {
            // Its group may be gone already, and reads as 0.
            let cpu = before.remove(&id).unwrap_or_default().max(used.cpu);
            all.cpu += cpu;
            all.memory_bytes += used.memory_bytes;
            self.live.insert(id, cpu);
        }
        self.ended += before.into_values().sum::<Duration>();
        all.cpu += self.ended;
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_time_never_falls() {
        let mut seen = Seen::default();
        let mut look = |live: &[(&str, u64)]| {
            let used = |ms: &u64| Used { cpu: Duration::from_millis(*ms), memory_bytes: 1 };
            let used = seen.update(live.iter().map(|(id, ms)| ((*id).to_owned(), used(ms))));
            (used.cpu.as_millis(), used.memory_bytes)
        };
        assert_eq!(look(&[("a", 5), ("b", 7)]), (12, 2));
        assert_eq!(look(&[("b", 9), ("c", 1)]), (15, 2));
        // Its group went first.
        assert_eq!(look(&[("b", 0), ("c", 2)]), (16, 2));
        assert_eq!(look(&[]), (16, 0));
    }
}
