//! A function as `faas describe` shows it.

use std::net::Ipv6Addr;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::{Bed, eventually};

/// Where clients dial a function.
///
/// # Errors
/// If it has no address.
pub fn address(function: &Value) -> Result<Ipv6Addr> {
    Ok(function["address"].as_str().context("no address")?.parse()?)
}

/// How many of a function's instances there are, beyond containers that are only prepared.
#[must_use]
pub fn started(function: &Value) -> usize {
    let instances = function["instances"].as_array().into_iter().flatten();
    instances.filter(|instance| instance["phase"] != "prepared").count()
}

/// The process ids of a function's instances that are ready.
#[must_use]
pub fn ready(function: &Value) -> Vec<u32> {
    let instances = function["instances"].as_array().into_iter().flatten();
    instances.filter(|i| i["phase"] == "ready").filter_map(|i| i["pid"].as_u64()?.try_into().ok()).collect()
}

/// The one instance of a function: its process id.
///
/// # Errors
/// If there is another number of them, or it is not ready.
pub fn only(function: &Value) -> Result<u32> {
    let instances = started(function);
    let pids = ready(function);
    ensure!((instances, pids.len()) == (1, 1), "not one instance: {function}");
    Ok(pids[0])
}

/// Waits until a function is as it should be.
///
/// # Errors
/// How it is instead.
pub fn until(bed: &Bed, name: &str, what: &str, holds: impl Fn(&Value) -> bool) -> Result<Value> {
    let mut last = Ok(Value::Null);
    let came = eventually(what, || {
        last = bed.describe(name);
        last.as_ref().is_ok_and(&holds)
    });
    let last = last?;
    came.with_context(|| last.to_string())?;
    Ok(last)
}
