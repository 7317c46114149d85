//! `cargo xtask vm`: what turns on the kernel, tried on another one than this machine's: that of Debian's cloud images, with
//! WireGuard of its own and control groups v2 and nothing else.

mod image;
mod life;
mod machine;
mod package;
mod payload;
mod suite;
mod ways;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::setup::{self, Scope};
use crate::{interrupt, lock, repo, root, run, test};
use image::Image;
use machine::Machine;
use payload::Payload;
use ways::Way;

/// A command of `--run` takes no longer.
const RUN_MAX: Duration = Duration::from_secs(3600);

/// Mounts take no time.
const MOUNT_MAX: Duration = Duration::from_secs(60);

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only what shows the most in the least time
    #[arg(long)]
    quick: bool,
    /// A shell in the machine instead of the tests; leaving it ends the machine
    #[arg(long, conflicts_with_all = ["quick", "filter", "run"])]
    shell: bool,
    /// A command in the machine instead of the tests: its output and its exit status are this task's
    #[arg(long, value_name = "COMMAND", conflicts_with_all = ["quick", "filter"])]
    run: Option<String>,
    /// The life of a package instead of the tests: faasd_VERSION_amd64.deb, or the release directory that has it
    #[arg(long, value_name = "DEB", conflicts_with_all = ["quick", "filter", "run", "shell"])]
    package: Option<PathBuf>,
    /// Of a release directory: the tarball for machines without a network, installed and used
    #[arg(long, value_name = "DIR", conflicts_with_all = ["quick", "filter", "run", "shell", "package"])]
    airgap: Option<PathBuf>,
    /// Of a release directory: its site, and a first boot by cloud-init that makes a node
    #[arg(long, value_name = "DIR", conflicts_with_all = ["quick", "filter", "run", "shell", "package", "airgap"])]
    cloud_init: Option<PathBuf>,
    /// Make the machine's system anew, from the packages of today
    #[arg(long)]
    rebuild: bool,
    /// Only tests whose name contains this
    filter: Option<String>,
}

pub fn main(args: &Args) -> Result<()> {
    let start = Instant::now();
    setup::ensure(Scope::Vm)?;
    let _alone = lock::hold(&directory().join("lock"), "vm")?;
    if args.rebuild {
        // Asked now, so that nobody waits to hear it.
        root::command("true", &[])?;
    }
    if let Some(way) = args.way() {
        let done = live(&way, args.rebuild);
        println!("vm: finished after {:.0} s", start.elapsed().as_secs_f64());
        return done;
    }
    let programs = build()?;
    let image = Image::ready(args.rebuild)?;
    let tests: Vec<PathBuf> = programs.iter().map(|program| program.path.clone()).collect();
    let payload = Payload::make(&tests)?;
    let console = directory().join("console.log");
    if args.shell {
        println!("vm: a shell; to have this build in its place: {}", payload.mounting());
        return machine::shell(&image, &payload.disk, &console);
    }

    interrupt::catch()?;
    println!("vm: booting; the console is in {} …", console.display());
    let mut machine = Machine::boot(&image, &payload.disk, &console)?;
    println!("vm: up after {:.1} s", machine.boot_time.as_secs_f64());
    machine.succeed(&payload.mounting(), MOUNT_MAX)?;
    let done = match &args.run {
        Some(command) => match machine.run(command, RUN_MAX, &mut |line| println!("{line}"))? {
            0 => Ok(()),
            status => bail!("exit status {status}"),
        },
        None => suite::run(&mut machine, &programs, args.quick, args.filter.as_deref()),
    };
    println!("vm: finished after {:.0} s", start.elapsed().as_secs_f64());
    done
}

impl Args {
    fn way(&self) -> Option<Way<'_>> {
        let package = self.package.as_deref().map(Way::Package);
        let airgap = || self.airgap.as_deref().map(Way::Airgap);
        package.or_else(airgap).or_else(|| self.cloud_init.as_deref().map(Way::CloudInit))
    }
}

fn live(way: &Way<'_>, rebuild: bool) -> Result<()> {
    if matches!(way, Way::CloudInit(_)) {
        setup::ensure(Scope::Publish)?;
    }
    let (version, disk) = way.bring()?;
    let image = Image::ready(rebuild)?;
    let console = directory().join("console.log");
    interrupt::catch()?;
    println!("vm: booting; the console is in {} …", console.display());
    let mut machine = Machine::boot_to_reboot(&image, &disk, &console)?;
    println!("vm: up after {:.1} s", machine.boot_time.as_secs_f64());
    life::run(&mut machine, &version, way.life())
}

/// The programs that a machine needs, and no others: to build all takes longer than what is done with them.
fn build() -> Result<Vec<test::Program>> {
    let crates = ["-p", "faasd", "-p", "faasd-tests"];
    run::run(repo::cargo().args(["build", "-p", "faasd-sdk", "--example", "hello", "--locked", "--quiet"]))?;
    let tests: Vec<&str> = crates
        .into_iter()
        .chain(suite::targets().iter().flat_map(|(_, target)| ["--test", target]))
        .collect();
    test::build("vm", &crates, &tests)
}

/// Images, disks and logs.
fn directory() -> PathBuf {
    repo::target_dir().join("vm")
}
