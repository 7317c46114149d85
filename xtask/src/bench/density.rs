//! `cargo xtask bench density`: what a thousand functions cost against one, in one run on one machine.
//!
//! First with one function, then with all of them: how long a deploy, a look-up, a page of the list and a DNS query
//! take, and what a new connection to the first function costs against a bare server. Then what the daemon and its
//! instances hold of memory.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::Job;
use super::measure::{self, Server, Target};
use super::platform::{Place, Platform};
use crate::{interrupt, run};

/// Functions that are declared, and those of them that keep an instance.
const DECLARED: usize = 1000;
const WARM: usize = 200;
/// The same of a quick run, in which they are deployed in half a minute.
const QUICK: (usize, usize) = (200, 50);

/// How often each thing is timed.
const SAMPLES: usize = 21;

/// What is measured, with one function and with all.
#[derive(Debug)]
struct Costs {
    deploy: Duration,
    look_up: Duration,
    page: Duration,
    dns: Duration,
    /// Of p50 against bare's.
    connection: f64,
    daemon_kib: u64,
}

/// Measures, and prints what it found.
pub fn run(job: &Job) -> Result<()> {
    let platform = Platform::start(Place::here())?;
    let measured = measure(job, &platform.server());
    measured.and(platform.end())
}

fn measure(job: &Job, server: &Server<'_>) -> Result<()> {
    let (declared, warm) = if job.quick { QUICK } else { (DECLARED, WARM) };
    let target = measure::deploy(server)?.swap_remove(0);
    println!("density: one function");
    let one = costs(server, &target, "few")?;
    println!("density: {declared} functions, {warm} of them with an instance");
    let began = Instant::now();
    fill(server, declared, warm)?;
    let filled = began.elapsed();
    let all = costs(server, &target, "many")?;
    let instances = instances(server)?;
    report(job, &one, &all, &instances, (declared, filled))
}

fn fill(server: &Server<'_>, declared: usize, warm: usize) -> Result<()> {
    for number in 0..declared {
        interrupt::check()?;
        let scale = if number < warm { "min = 1" } else { "min = 0\nprepared = 0\nidle = \"1s\"" };
        deploy(server, &format!("f{number}"), scale)?;
    }
    // What only showed that it can is put to sleep before anything is measured.
    run::wait_for("the others to sleep", Duration::from_secs(60), || {
        let running =
            list(server)?.iter().filter(|f| f["instances"].as_array().is_some_and(|i| !i.is_empty())).count();
        Ok((running <= warm + 2).then_some(()))
    })
}

fn deploy(server: &Server<'_>, name: &str, scale: &str) -> Result<Duration> {
    let file = format!(
        "contract = \"fd\"\ncommand = [\"./hello\"]\n[scale]\n{scale}\n[limits]\nmemory = \"16MiB\"\ntmp = \"1MiB\"\n"
    );
    let began = Instant::now();
    measure::deploy_one(server, name, &file)?;
    Ok(began.elapsed())
}

fn costs(server: &Server<'_>, target: &Target, label: &str) -> Result<Costs> {
    let timed = |arguments: &[&str]| {
        let sample = |_| {
            let began = Instant::now();
            (server.faas)(arguments)?;
            Ok(began.elapsed())
        };
        (0..SAMPLES).map(sample).collect::<Result<Vec<_>>>().map(median)
    };
    let deploys = (0..SAMPLES).map(|n| deploy(server, &format!("{label}{n}"), "min = 0\nidle = \"1s\""));
    let deploy = median(deploys.collect::<Result<Vec<_>>>()?);
    for n in 0..SAMPLES {
        (server.faas)(&["rm", "--yes", &format!("{label}{n}")])?;
    }
    Ok(Costs {
        deploy,
        look_up: timed(&["describe", "handoff", "-o", "json"])?,
        page: timed(&["ls", "handoff", "-o", "json"])?,
        dns: dns(server)?,
        connection: connection(server, target)?,
        daemon_kib: memory(server.pid)?,
    })
}

/// The time of a query, as `dig` tells it.
fn dns(server: &Server<'_>) -> Result<Duration> {
    let names = server.work.join("names");
    fs::write(&names, "handoff.faas AAAA\n".repeat(SAMPLES * 5))?;
    let mut command = Command::new("nsenter");
    command.arg(format!("--net={}", server.run.join("ingress").display()));
    command.args(["dig", "-u", "@fd00:faa5:0:100::1", "+noall", "+stats", "-f"]).arg(&names);
    let said = run::stdout(&mut command)?;
    let times =
        said.lines().filter_map(|line| line.strip_prefix(";; Query time: ")?.split(' ').next()?.parse().ok());
    let times: Vec<Duration> = times.map(Duration::from_micros).collect();
    if times.is_empty() {
        bail!("dig tells no times: {said}");
    }
    Ok(median(times))
}

/// What a new connection to the first function costs against a bare server, interleaved.
fn connection(server: &Server<'_>, target: &Target) -> Result<f64> {
    let out = server.work.join("connection.json");
    let arguments = ["--quick", "--scenarios", "new", "--clients", "1", "--subjects", "control", "--out"];
    let mut arguments: Vec<_> = arguments.map(Into::into).to_vec();
    arguments.push(out.clone().into_os_string());
    run::quiet(&mut measure::command(std::slice::from_ref(target), &arguments))?;
    let results: Value = serde_json::from_str(&fs::read_to_string(&out)?)?;
    find_ratio(&results).with_context(|| format!("{} has no ratio of p50 for handoff", out.display()))
}

fn find_ratio(results: &Value) -> Option<f64> {
    let rows = results["results"].as_array()?;
    rows.iter().find(|row| row["subject"] == "handoff")?["p50_ratio"].as_f64()
}

fn list(server: &Server<'_>) -> Result<Vec<Value>> {
    let listed: Value = serde_json::from_str(&(server.faas)(&["ls", "-o", "json"])?)?;
    Ok(listed["functions"].as_array().cloned().unwrap_or_default())
}

/// Proportional set sizes of the instances that run, in KiB.
fn instances(server: &Server<'_>) -> Result<Vec<u64>> {
    let functions = list(server)?;
    let all = functions.iter().flat_map(|f| f["instances"].as_array().into_iter().flatten());
    let pids = all.filter(|i| i["phase"] == "ready").filter_map(|i| u32::try_from(i["pid"].as_u64()?).ok());
    pids.map(memory).collect()
}

/// A process's proportional set size, in KiB.
fn memory(pid: u32) -> Result<u64> {
    let path = Path::new("/proc").join(pid.to_string()).join("smaps_rollup");
    let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    let pss =
        text.lines().find_map(|line| line.strip_prefix("Pss:")?.split_whitespace().next()?.parse().ok());
    pss.context("smaps_rollup has no Pss")
}

fn median<T: Ord + Copy>(mut all: Vec<T>) -> T {
    all.sort();
    all[all.len() / 2]
}

fn report(
    job: &Job,
    one: &Costs,
    all: &Costs,
    instances: &[u64],
    (declared, filled): (usize, Duration),
) -> Result<()> {
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    let rows = [
        ("deploy, ms", ms(one.deploy), ms(all.deploy)),
        ("`faas describe`, ms", ms(one.look_up), ms(all.look_up)),
        ("`faas ls PREFIX`, ms", ms(one.page), ms(all.page)),
        ("DNS query, ms", ms(one.dns), ms(all.dns)),
        ("new connection, p50 against bare", one.connection, all.connection),
        ("the daemon (PSS), MiB", one.daemon_kib as f64 / 1024.0, all.daemon_kib as f64 / 1024.0),
    ];
    println!("\n{:<34} {:>9} {:>9} {:>7}", "", "one", declared, "ratio");
    for (what, one, all) in rows {
        println!("{what:<34} {one:>9.2} {all:>9.2} {:>7.2}", all / one);
    }
    let kib = if instances.is_empty() { 0 } else { median(instances.to_vec()) };
    println!(
        "\n{} instances of {kib} KiB each (median PSS); declared in {:.0} s",
        instances.len(),
        filled.as_secs_f64()
    );
    let row = |(what, one, all): &(&str, f64, f64)| json!({"what": what, "one": one, "all": all, "ratio": all / one});
    job.write(&json!({
        "declared": declared, "rows": rows.iter().map(row).collect::<Vec<_>>(), "instances": instances.len(),
        "instance_kib": kib, "declared_in_s": filled.as_secs_f64(),
    }))
}
