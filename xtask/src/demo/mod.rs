//! `cargo xtask demo`: the whole platform on one machine, step by step, as a person would type it.
//!
//! ```text
//!  netns faasd-demo-client                        netns faasd-demo-server
//!  faas vpn connect, dig, curl ── veth, tunnel ── faasd, and the container of the function
//! ```
//!
//! Nothing outside these two namespaces is touched but names that begin with `faasd-demo`, and all of it is undone at
//! the end, after an error, and on Ctrl-C.

mod lab;
mod measure;
mod scrape;
mod undo;

use anyhow::{Context, Result, ensure};

use crate::report::step;
use crate::setup::{self, Scope};
use crate::{bench, interrupt, root, run};
use lab::{Lab, Side};
use undo::Undo;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Leave everything running, to play with
    #[arg(long, conflicts_with = "down")]
    keep: bool,
    /// End a demo that was left running
    #[arg(long)]
    down: bool,
    /// Leave out the measurement
    #[arg(long)]
    no_bench: bool,
    /// Set-up and build are done
    #[arg(long, hide = true)]
    built: bool,
}

pub fn main(args: &Args) -> Result<()> {
    if !args.down && !args.built {
        setup::ensure(Scope::Demo)?;
        step("demo", "building faasd, faas and the benchmark as they are shipped", bench::build)?;
    }
    if !root::is_root() {
        return again_as_root(args);
    }
    if args.down {
        Undo::everything().finish()?;
        println!("demo: nothing of it is left");
        return Ok(());
    }
    interrupt::catch()?;
    let mut undo = Undo::default();
    let played = play(&mut undo, !args.no_bench);
    if args.keep && played.is_ok() {
        undo.forget();
        explain();
        return Ok(());
    }
    println!("\n# The end: everything is undone, in reverse order.");
    let undone = undo.finish();
    // Why the demo failed matters more than what could not be cleaned up after it.
    played?;
    undone?;
    println!("demo: done; nothing of it is left");
    Ok(())
}

/// Namespaces and the daemon need root; the build must not leave root's files in the user's checkout.
fn again_as_root(args: &Args) -> Result<()> {
    let program = std::env::current_exe().context("finding this program")?;
    let target = crate::repo::target_dir();
    let mut command = root::command(program, &[("CARGO_TARGET_DIR", target.as_os_str())])?;
    command.args(["demo", "--built"]);
    for (wanted, flag) in [(args.keep, "--keep"), (args.down, "--down"), (args.no_bench, "--no-bench")] {
        if wanted {
            command.arg(flag);
        }
    }
    run::run(&mut command)
}

fn play(undo: &mut Undo, measured: bool) -> Result<()> {
    println!("\n# Two machines: network namespaces, joined by a cable.");
    let lab = Lab::build(undo)?;

    println!("\n# The server.");
    lab.start_daemon(undo)?;
    lab.faas(Side::Server, &["vpn", "invite", "laptop", "--endpoint", lab::ENDPOINT])
        .and_then(|said| join(&lab, undo, &said))?;
    // It scrapes while the rest goes on.
    scrape::start(&lab)?;

    println!("\n# A function, from nothing.");
    lab.faas(Side::Server, &["new", "hello", "--lang", "python"])?;
    lab.faas(Side::Server, &["deploy", "hello", "./hello"])?;
    lab.faas(Side::Server, &["ls"])?;

    println!("\n# The client asks for its name and calls it: plain DNS, plain HTTP.");
    let address = lab.on(Side::Client, "dig", &["+short", "AAAA", "hello.faas"])?;
    ensure!(!address.trim().is_empty(), "the name hello.faas has no address");
    let body = lab.on(Side::Client, "curl", &["-sS", "--fail", "--max-time", "10", "http://hello.faas/"])?;
    ensure!(!body.trim().is_empty(), "hello.faas answered nothing");

    println!("\n# What the kernel counted: connections, not requests.");
    lab.faas(Side::Server, &["describe", "hello"])?;

    println!("\n# What Prometheus on the client's machine knows of it, scraped through the tunnel.");
    scrape::show(&lab)?;

    if measured {
        println!("\n# The same program with and without the platform, interleaved in one run.");
        measure::run(&lab)?;
    }
    Ok(())
}

/// The invitation is the last word of what `invite` printed.
fn join(lab: &Lab, undo: &mut Undo, said: &str) -> Result<()> {
    let invitation = said.split_whitespace().find(|word| word.starts_with("faas1-"));
    let invitation = invitation.context("`faas vpn invite` printed no invitation")?;
    println!("\n# The client joins the tunnel.");
    undo.add(undo::Part::Client);
    lab.faas(Side::Client, &["vpn", "connect", invitation, "--interface", lab::TUNNEL]).map(drop)
}

fn explain() {
    println!("\nIt is left running. As root:");
    println!("  ip netns exec {} curl http://hello.faas/", Side::Client.netns());
    println!("  {} --socket {} ls", lab::faas_program().display(), lab::socket().display());
    println!("  ip netns exec {} curl http://{}/", Side::Client.netns(), scrape::LISTEN);
    println!("  less {}", lab::log().display());
    println!("To end it: cargo xtask demo --down");
}
