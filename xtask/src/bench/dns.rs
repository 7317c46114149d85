//! `cargo xtask bench dns`: our name server beside Knot and NSD, with the same zone, interleaved in one run.
//!
//! Each server has one worker on one core, and `dnsperf` another core. What counts is what a second of the server's CPU
//! answers: whether the load can fill the server does not matter then. Where it runs does matter: beside the load, on
//! the load's own core, a server would receive larger batches at half the price.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::{Job, built};
use crate::{interrupt, run};

/// How many functions the zone has.
const SIZES: [usize; 2] = [1_000, 100_000];
/// Rounds of each server with each zone, and seconds of one of them.
const ROUNDS: usize = 5;
const SECONDS: u32 = 4;
const QUICK: (usize, u32) = (2, 1);

/// The first one is where Knot puts its first worker, whatever it was told by `taskset`.
const SERVER_CPU: &str = "0";
const LOAD_CPU: &str = "1";
/// Questions in the file that is asked again and again, of which one in ten has no answer.
const QUESTIONS: usize = 50_000;
/// Changes that are timed.
const UPDATES: &str = "2000";

const READY: Duration = Duration::from_secs(30);

/// A server while it runs. Its process and its children are a group of their own.
struct Server {
    name: &'static str,
    child: Child,
    port: u16,
    /// Answers of a second of its CPU, round by round.
    rates: Vec<f64>,
    lost: u64,
    pss_kib: u64,
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(group) = rustix::process::Pid::from_raw(self.child.id() as i32) {
            let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
        }
        let _ = self.child.wait();
    }
}

/// Measures, and prints what it found.
pub fn run(job: &Job) -> Result<()> {
    interrupt::catch()?;
    let (rounds, seconds) = if job.quick { QUICK } else { (ROUNDS, SECONDS) };
    let mut rows = Vec::new();
    for functions in SIZES {
        rows.extend(measure(functions, rounds, seconds)?);
    }
    report(job, &rows)
}

fn measure(functions: usize, rounds: usize, seconds: u32) -> Result<Vec<Value>> {
    let work = std::env::temp_dir().join(format!("faasd-bench-dns-{}", std::process::id()));
    fs::create_dir_all(&work)?;
    let measured = measure_in(&work, functions, rounds, seconds);
    fs::remove_dir_all(&work)?;
    measured
}

fn measure_in(work: &Path, functions: usize, rounds: usize, seconds: u32) -> Result<Vec<Value>> {
    println!("dns: {functions} functions");
    let questions = work.join("questions");
    fs::write(&questions, self::questions(functions))?;
    // Ours writes the zone that the others read.
    let mut servers = vec![ours(work, functions)?];
    servers.push(knot(work)?);
    servers.push(nsd(work)?);
    for round in 0..rounds {
        // Each is first as often as the others.
        let count = servers.len();
        servers.rotate_left(round % count);
        for server in &mut servers {
            interrupt::check()?;
            load(server, &questions, seconds)?;
        }
    }
    for server in &mut servers {
        server.pss_kib = processes(server)?.into_iter().map(pss_kib).sum::<Result<u64>>()?;
    }
    let latency = updates(functions)?;
    servers.sort_by_key(|server| server.name);
    let row = |server: &Server| {
        let own = (server.name == OURS).then_some(&latency);
        json!({
            "server": server.name, "functions": functions, "per_cpu_second": median(&server.rates),
            "rounds": server.rates, "lost": server.lost, "pss_kib": server.pss_kib, "update_to_answer": own,
        })
    };
    Ok(servers.iter().map(row).collect())
}

const OURS: &str = "faasd";

/// Nine of ten are there; the order is scattered, and the same in each run.
fn questions(functions: usize) -> String {
    let mut text = String::new();
    for i in 0..QUESTIONS {
        let n = i * 7919 % functions;
        match i % 10 {
            0 => text.push_str(&format!("none{n}.faas AAAA\n")),
            _ => text.push_str(&format!("f{n}.faas AAAA\n")),
        }
    }
    text
}

fn ours(work: &Path, functions: usize) -> Result<Server> {
    let port = free_port()?;
    let mut command = pinned(SERVER_CPU, built("examples/dns"));
    command.args(["--port", &port.to_string(), "--functions", &functions.to_string(), "--files"]).arg(work);
    start(OURS, command, port, work)
}

fn knot(work: &Path) -> Result<Server> {
    let port = free_port()?;
    let config = format!(
        "server:\n    rundir: {dir}\n    listen: ::1@{port}\n    udp-workers: 1\n    tcp-workers: 1\n    \
         background-workers: 1\n\
         database:\n    storage: {dir}\n\
         log:\n  - target: stderr\n    any: warning\n\
         template:\n  - id: default\n    storage: {dir}\n    zonefile-sync: -1\n    journal-content: none\n\
         zone:\n  - domain: faas\n    file: faas.db\n",
        dir = work.display()
    );
    let file = work.join("knot.conf");
    fs::write(&file, config)?;
    let mut command = pinned(SERVER_CPU, program("knotd")?);
    command.arg("-c").arg(file);
    start("knot", command, port, work)
}

fn nsd(work: &Path) -> Result<Server> {
    let port = free_port()?;
    let config = format!(
        "server:\n  server-count: 1\n  ip-address: ::1@{port}\n  zonesdir: \"{dir}\"\n  username: \"\"\n  \
         chroot: \"\"\n  pidfile: \"{dir}/nsd.pid\"\n  zonelistfile: \"{dir}/nsd.zones\"\n  \
         xfrdfile: \"{dir}/nsd.xfrd\"\n  database: \"\"\n  rrl-ratelimit: 0\n\
         remote-control:\n  control-enable: no\n\
         zone:\n  name: faas\n  zonefile: faas.db\n",
        dir = work.display()
    );
    let file = work.join("nsd.conf");
    fs::write(&file, config)?;
    let mut command = pinned(SERVER_CPU, program("nsd")?);
    command.arg("-d").arg("-c").arg(file);
    start("nsd", command, port, work)
}

fn program(name: &str) -> Result<PathBuf> {
    run::which(name)
        .with_context(|| format!("there is no {name}: `cargo xtask setup --for bench` installs it"))
}

fn pinned(cpu: &str, program: PathBuf) -> Command {
    let mut command = Command::new("taskset");
    command.args(["-c", cpu]).arg(program);
    command
}

fn free_port() -> Result<u16> {
    Ok(std::net::UdpSocket::bind("[::1]:0")?.local_addr()?.port())
}

fn start(name: &'static str, mut command: Command, port: u16, work: &Path) -> Result<Server> {
    let log = fs::File::create(work.join(format!("{name}.log")))?;
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).process_group(0);
    let child = command.spawn().with_context(|| run::line(&command))?;
    let mut server = Server { name, child, port, rates: Vec::new(), lost: 0, pss_kib: 0 };
    let answers = || {
        let mut dig = Command::new("dig");
        dig.args(["@::1", "-p", &port.to_string(), "+short", "+time=1", "+tries=1", "f1.faas", "AAAA"]);
        Ok(run::stdout(&mut dig).is_ok_and(|said| said.starts_with("fd00:")).then_some(()))
    };
    if let Err(error) = run::wait_for(name, READY, answers) {
        let said = fs::read_to_string(work.join(format!("{name}.log"))).unwrap_or_default();
        let ended = server.child.try_wait()?;
        bail!("{error}; it ended: {ended:?}\n{said}");
    }
    Ok(server)
}

/// Asks one server for some seconds.
fn load(server: &mut Server, questions: &Path, seconds: u32) -> Result<()> {
    let (before, busy_before) = (cpu_ticks(server)?, busy_ticks(SERVER_CPU)?);
    let mut dnsperf = pinned(LOAD_CPU, program("dnsperf")?);
    dnsperf.args(["-s", "::1", "-p", &server.port.to_string(), "-l", &seconds.to_string()]);
    dnsperf.args(["-c", "8", "-T", "1", "-q", "200", "-d"]).arg(questions);
    let said = run::stdout(&mut dnsperf)?;
    let (spent, busy) = (cpu_ticks(server)? - before, busy_ticks(SERVER_CPU)? - busy_before);
    // A clock that ticks a hundred times a second is read twice.
    if spent > busy + busy / 10 + 2 {
        bail!("{} ran {spent} ticks, and CPU {SERVER_CPU} {busy}: it left that CPU", server.name);
    }
    let count = |what: &str| {
        let line = said.lines().find_map(|line| line.trim().strip_prefix(what));
        line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok())
            .with_context(|| format!("dnsperf does not tell `{what}`:\n{said}"))
    };
    let completed = count("Queries completed:")?;
    server.lost += count("Queries lost:")?;
    server.rates.push(completed as f64 / (spent as f64 / rustix::param::clock_ticks_per_second() as f64));
    Ok(())
}

/// The processes of a server.
fn processes(server: &Server) -> Result<Vec<u32>> {
    let mut all = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let Ok(pid) = entry?.file_name().to_string_lossy().parse::<u32>() else { continue };
        if stat(pid).is_some_and(|fields| fields.get(2) == Some(&u64::from(server.child.id()))) {
            all.push(pid);
        }
    }
    Ok(all)
}

/// The numbers after a process's state in `/proc/PID/stat`, a zero in the place of the state itself: parent, group, …
fn stat(pid: u32) -> Option<Vec<u64>> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, fields) = text.rsplit_once(')')?;
    Some(fields.split_whitespace().map(|field| field.parse().unwrap_or(0)).collect())
}

/// What a server's processes have used of their CPU, in the kernel and outside.
fn cpu_ticks(server: &Server) -> Result<u64> {
    let all = processes(server)?;
    Ok(all.into_iter().filter_map(stat).map(|fields| fields[11] + fields[12]).sum())
}

/// What a CPU has spent on anything.
fn busy_ticks(cpu: &str) -> Result<u64> {
    let text = fs::read_to_string("/proc/stat")?;
    let line = text.lines().find_map(|line| line.strip_prefix("cpu")?.strip_prefix(cpu)?.strip_prefix(' '));
    let fields = line.with_context(|| format!("/proc/stat has no cpu{cpu}"))?.split_whitespace();
    let fields: Vec<u64> = fields.map(|field| field.parse().unwrap_or(0)).collect();
    // User, nice, system; then idle and waiting, which are not counted; interrupts, soft interrupts.
    Ok([0, 1, 2, 5, 6].iter().filter_map(|i| fields.get(*i)).sum())
}

fn pss_kib(pid: u32) -> Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let pss =
        text.lines().find_map(|line| line.strip_prefix("Pss:")?.split_whitespace().next()?.parse().ok());
    pss.context("smaps_rollup has no Pss")
}

/// The time from a change to its answer.
fn updates(functions: usize) -> Result<Value> {
    let mut command = Command::new(built("examples/dns"));
    command.args(["--port", &free_port()?.to_string(), "--functions", &functions.to_string()]);
    let said = run::stdout(command.args(["--updates", UPDATES]))?;
    serde_json::from_str(&said).with_context(|| format!("the server tells no times: {said}"))
}

fn median(all: &[f64]) -> f64 {
    let mut all = all.to_vec();
    all.sort_by(f64::total_cmp);
    all.get(all.len() / 2).copied().unwrap_or(f64::NAN)
}

fn report(job: &Job, rows: &[Value]) -> Result<()> {
    let number = |row: &Value, key: &str| row[key].as_f64().unwrap_or(f64::NAN);
    println!(
        "\n{:<8} {:>9} {:>14} {:>9} {:>9} {:>6}",
        "", "functions", "per CPU second", "to knot", "PSS MiB", "lost"
    );
    for row in rows {
        let knot =
            rows.iter().find(|other| other["server"] == "knot" && other["functions"] == row["functions"]);
        let rate = number(row, "per_cpu_second");
        println!(
            "{:<8} {:>9} {:>14.0} {:>9.2} {:>9.1} {:>6}",
            row["server"].as_str().unwrap_or_default(),
            row["functions"],
            rate,
            rate / knot.map_or(f64::NAN, |knot| number(knot, "per_cpu_second")),
            number(row, "pss_kib") / 1024.0,
            row["lost"],
        );
    }
    for row in rows.iter().filter(|row| row["server"] == OURS) {
        let took = &row["update_to_answer"];
        println!(
            "{} functions: from a change to its answer p50 {} µs, p99 {} µs",
            row["functions"], took["p50_us"], took["p99_us"]
        );
    }
    job.write(&json!({ "rows": rows }))
}
