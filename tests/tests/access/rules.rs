//! Rules, groups, defaults.

use anyhow::{Result, ensure};
use faasd_tests::{Bed, address};
use serde_json::{Value, json};

use crate::{refused, served, two};

/// How many connections the kernel has refused a subject, as the policy tells it.
fn refusals(policy: &Value, subject: &str) -> u64 {
    let all = policy["refused"].as_array().into_iter().flatten();
    all.filter(|one| one["subject"] == subject).filter_map(|one| one["connections"].as_u64()).sum()
}

pub fn single() -> Result<()> {
    let bed = two()?;
    bed.deploy_hello("hello", "")?;
    bed.deploy_hello("orders", "")?;
    let (hello, orders) = (address(&bed.describe("hello")?)?, address(&bed.describe("orders")?)?);
    let (client, other) = (bed.client(), bed.client_at(2));
    served(&other, hello)?;
    bed.faas(&["deny", "other", "hello"])?.ok()?;
    for _ in 0..3 {
        refused(&other, hello)?;
    }
    served(&client, hello)?;
    served(&other, orders)?;

    let policy = bed.json(&["policy", "hello"])?;
    ensure!(policy["rules"] == json!([{ "subject": "other", "action": "deny" }]), "{policy}");
    ensure!(refusals(&policy, "other") == 3, "{policy}");
    let metrics = client.curl("http://[fd00:faa5:0:100::1]:9464/metrics")?;
    for line in [
        "faasd_policy_refused_total{subject=\"other\",function=\"hello\"} 3",
        "faasd_subject_refused_total{subject=\"other\"} 3",
        "faasd_kernel_decisions_total{decision=\"denied\"} 3",
        "faasd_peer_last_handshake_timestamp_seconds{peer=\"other\"}",
    ] {
        ensure!(metrics.lines().any(|found| found.starts_with(line)), "{line} is not in\n{metrics}");
    }
    let described = bed.faas(&["describe", "hello"])?.ok()?;
    ensure!(described.contains("deny other"), "{described}");
    let events = bed.json(&["events", "hello"])?;
    ensure!(events.to_string().contains("other may not call it"), "{events}");

    // Several at once.
    bed.faas(&["allow", "other,client", "hello", "orders"])?.ok()?;
    served(&other, hello)?;
    bed.faas(&["policy", "forget", "other,client", "hello", "orders"])?.ok()?;
    ensure!(bed.json(&["policy", "hello"])?["rules"] == json!([]), "{}", bed.json(&["policy"])?);
    served(&other, hello)?;
    bed.finish()
}

pub fn groups() -> Result<()> {
    let bed = two()?;
    bed.deploy_hello("hello", "")?;
    let hello = address(&bed.describe("hello")?)?;
    let (client, other) = (bed.client(), bed.client_at(2));
    bed.faas(&["group", "add", "guests", "other"])?.ok()?;
    bed.faas(&["deny", "@guests", "hello"])?.ok()?;
    refused(&other, hello)?;
    served(&client, hello)?;
    bed.faas(&["group", "add", "guests", "client"])?.ok()?;
    refused(&client, hello)?;
    bed.faas(&["group", "rm", "guests", "client"])?.ok()?;
    served(&client, hello)?;
    // One group that denies wins; an own rule comes before both.
    bed.faas(&["group", "add", "friends", "other"])?.ok()?;
    bed.faas(&["allow", "@friends", "hello"])?.ok()?;
    refused(&other, hello)?;
    bed.faas(&["allow", "other", "hello"])?.ok()?;
    served(&other, hello)?;
    bed.faas(&["policy", "forget", "other", "hello"])?.ok()?;
    refused(&other, hello)?;
    let peers = bed.faas(&["vpn", "peers"])?.ok()?;
    ensure!(peers.contains("@friends @guests"), "{peers}");
    bed.faas(&["group", "rm", "guests"])?.ok()?;
    served(&other, hello)?;
    let groups = bed.json(&["group", "ls"])?["groups"].clone();
    let friends = json!([{ "name": "friends", "members": ["other"], "functions": ["hello"] }]);
    ensure!(groups == friends, "{groups}");
    bed.finish()
}

pub fn closed() -> Result<()> {
    let mut bed = Bed::new()?;
    bed.config = "access = \"closed\"\n".to_owned();
    bed.serve()?;
    bed.join()?;
    let number = bed.add_client()?;
    bed.join_as(number, "other", &[])?;
    bed.deploy_hello("hello", "")?;
    let hello = address(&bed.describe("hello")?)?;
    let (client, other) = (bed.client(), bed.client_at(2));
    refused(&client, hello)?;
    refused(&other, hello)?;
    // Whoever may use the server's API gets to it all the same.
    bed.faas(&["invoke", "hello"])?.ok()?;
    bed.faas(&["allow", "client", "hello"])?.ok()?;
    served(&client, hello)?;
    refused(&other, hello)?;
    bed.faas(&["policy", "default", "open", "hello"])?.ok()?;
    served(&other, hello)?;
    bed.faas(&["policy", "default", "inherit", "hello"])?.ok()?;
    refused(&other, hello)?;
    bed.faas(&["policy", "default", "open"])?.ok()?;
    served(&other, hello)?;
    bed.finish()
}

pub fn lifetime() -> Result<()> {
    let bed = two()?;
    bed.deploy_hello("hello", "")?;
    let hello = address(&bed.describe("hello")?)?;
    let other = bed.client_at(2);
    bed.faas(&["deny", "other", "hello"])?.ok()?;
    bed.faas(&["policy", "default", "closed", "hello"])?.ok()?;
    bed.deploy_hello("hello", "env = { A = \"another\" }")?;
    refused(&other, hello)?;
    bed.faas(&["rollback", "hello"])?.ok()?;
    refused(&other, hello)?;
    refused(&bed.client(), hello)?;
    bed.faas(&["rm", "hello", "--yes"])?.ok()?;
    bed.deploy_hello("hello", "")?;
    let policy = bed.json(&["policy", "hello"])?;
    ensure!(policy["rules"] == json!([]) && policy["default"] == "open", "{policy}");
    served(&other, hello)?;
    bed.finish()
}

pub fn mistakes() -> Result<()> {
    let bed = two()?;
    bed.deploy_hello("hello", "")?;
    for (arguments, why) in [
        (&["allow", "othr", "hello"][..], "no peer 'othr'; did you mean 'other'?"),
        (&["allow", "other", "helo"], "no function 'helo'; did you mean 'hello'?"),
        (&["deny", "@ops", "hello"], "no group '@ops'"),
        (&["deny", "fn:helo", "hello"], "did you mean 'fn:hello'?"),
        (&["deny", "Other", "hello"], "write PEER, @GROUP or fn:FUNCTION"),
        (&["group", "add", "ops", "@ops"], "a group cannot be in a group"),
        (&["group", "rm", "ops"], "no group '@ops'"),
        (&["policy", "default", "shut"], "open, closed, inherit"),
        (&["vpn", "role", "other", "root"], "write user or admin"),
        (&["vpn", "role", "othr", "admin"], "did you mean 'other'?"),
    ] {
        let said = bed.faas(arguments)?.failed()?;
        ensure!(said.contains(why), "{arguments:?}: {said}");
    }
    bed.finish()
}
