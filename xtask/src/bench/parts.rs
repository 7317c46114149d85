//! What the harness measures: the lanes beside everything else, in several circumstances.

use std::ffi::OsString;

use anyhow::Result;

use super::measure::{self, Target, command, deploy, deploy_one, harness};
use super::platform::{Place, Platform};
use super::{Job, built};
use crate::run;

/// Connections that are held open to see what they cost the daemon.
const IDLE_CONNECTIONS: &str = "10000";

/// Functions that are declared beside the one that is measured.
const DECLARED: &str = "10000";

/// Where the daemon tells its metrics, within the tunnel.
const METRICS: &str = "[fd00:faa5:0:100::1]:9464";

/// How often they are scraped, in milliseconds.
const SCRAPED_MS: [(&str, &str); 2] = [("every-second", "1000"), ("back-to-back", "0")];

/// New connections and kept ones, by one client and many, and what idle ones cost.
pub fn lanes(job: &Job) -> Result<()> {
    let quick: &[&str] =
        &["--rounds", "6", "--subjects", "control,nginx,haproxy,caddy,chain,acceptor-uring,bare-confined"];
    let usual: &[&str] = &["--rounds", "40"];
    let options = [&["--idle", IDLE_CONNECTIONS][..], if job.quick { quick } else { usual }].concat();
    with_platform(|platform| Ok((deploy(&platform.server())?, options)), job)
}

/// Bodies and WebSockets.
pub fn bodies(job: &Job) -> Result<()> {
    let options = [
        "--scenarios",
        "download-1m,download-64m,upload-1m,upload-64m,websocket",
        "--subjects",
        "control,nginx,haproxy,caddy,chain",
        "--rounds",
        if job.quick { "5" } else { "20" },
    ];
    with_platform(|platform| Ok((deploy(&platform.server())?, options.to_vec())), job)
}

/// One lane as it is, and with its daemon's metrics scraped meanwhile by a peer.
pub fn scrape(job: &Job) -> Result<()> {
    let platform = Platform::with_client(Place::here())?;
    let measured = (|| {
        let mut server = platform.server();
        // The load is not what comes through the tunnel.
        server.tunnel.clear();
        let ingress = server.run.join("ingress");
        let peer = std::mem::replace(&mut server.from, ingress);
        let lane = deploy(&server)?.swap_remove(0);
        let mut targets = vec![lane.against(&lane.name, &lane.name), lane.against("control", &lane.name)];
        for (name, every) in SCRAPED_MS {
            let scraped = format!("metrics={METRICS},every={every},scraper={}", peer.display());
            targets.push(lane.also(name, &format!("base={},{scraped}", lane.name)));
        }
        let rounds = if job.quick { "5" } else { "15" };
        let options = ["--subjects", "bare", "--clients", "64", "--rounds", rounds, "--chunk-ms", "1000"];
        measured(job, &targets, options.map(OsString::from).to_vec())
    })();
    measured.and(platform.end())
}

/// Through a tunnel, beside a bare server through another one of the same kind.
pub fn tunnelled(job: &Job) -> Result<()> {
    let place = Place::here();
    let faasd = place.program("faasd").into_os_string();
    let platform = Platform::with_client(place)?;
    let options = [
        "--load",
        "apart",
        "--subjects",
        "control,bare-confined",
        "--rounds",
        if job.quick { "6" } else { "20" },
    ];
    let measured = deploy(&platform.server()).and_then(|targets| {
        let mut arguments = vec![OsString::from("--tunnel"), faasd];
        arguments.extend(options.map(OsString::from));
        measured(job, &targets, arguments)
    });
    measured.and(platform.end())
}

/// One function alone, beside the same one among ten thousand.
pub fn many(job: &Job) -> Result<()> {
    let alone = Platform::start(Place::here())?;
    let mut among = Platform::start(Place::here().beside())?;
    let measured = (|| {
        let mut targets: Vec<Target> = deploy(&alone.server())?
            .into_iter()
            .map(|target| target.against(&target.name, &target.name))
            .collect();
        targets.extend(
            targets
                .clone()
                .iter()
                .map(|target| target.against(&format!("{}-control", target.name), &target.name)),
        );
        deploy(&among.server())?;
        let asleep =
            "contract = \"fd\"\ncommand = [\"./hello\"]\n[scale]\nmin = 0\nprepared = 0\nidle = \"1s\"\n";
        deploy_one(&among.server(), "declared", asleep)?;
        among.between(|place| {
            let mut declare = harness("declare");
            declare.arg("--store").arg(place.store());
            run::quiet(declare.args(["--like", "declared", "--count", DECLARED])).map(drop)
        })?;
        for target in measure::targets(&among.server())? {
            let name = format!("{}-{DECLARED}", target.name);
            targets.push(target.against(&name, &target.name));
        }
        let rounds = if job.quick { "8" } else { "25" };
        let options = ["--subjects", "bare", "--scenarios", "new", "--rounds", rounds];
        measured(job, &targets, options.map(OsString::from).to_vec())
    })();
    measured.and(among.end()).and(alone.end())
}

/// Starts the platform, measures, and ends it.
fn with_platform<'a>(
    prepare: impl FnOnce(&Platform) -> Result<(Vec<Target>, Vec<&'a str>)>,
    job: &Job,
) -> Result<()> {
    let platform = Platform::start(Place::here())?;
    let measured = prepare(&platform).and_then(|(targets, options)| {
        measured(job, &targets, options.into_iter().map(OsString::from).collect())
    });
    // Why the measurement failed matters more than what could not be cleaned up after it.
    measured.and(platform.end())
}

fn measured(job: &Job, targets: &[Target], mut arguments: Vec<OsString>) -> Result<()> {
    if job.quick {
        arguments.push("--quick".into());
    }
    arguments.extend([OsString::from("--out"), job.out.clone().into()]);
    arguments.extend(job.rest.iter().cloned());
    run::run(&mut command(targets, &arguments))
}

/// Subjects and rules, which takes no daemon.
pub fn access(job: &Job) -> Result<()> {
    let mut command = harness("access");
    command.arg("--out").arg(&job.out);
    if job.quick {
        command.args(["--rounds", "20", "--changes", "300"]);
    }
    run::run(command.args(&job.rest))
}

/// Tables and plots.
pub fn render(results: &std::path::Path) -> Result<()> {
    let docs = crate::repo::root().join("docs");
    let mut command = std::process::Command::new(built("faasd-bench"));
    command.arg("render").arg("--results").arg(results);
    command.arg("--document").arg(docs.join("BENCHMARKS.md")).arg("--plots").arg(docs.join("benchmarks"));
    run::run(&mut command)
}
