//! Everything that a machine without a network needs, in one tarball: the packages and the binaries, what they depend on,
//! and an image for functions, since the machine's own `/usr` may have no interpreter.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use super::arch::Arch;
use super::debian::{self, Archive};
use super::{KEYRING, Release, fresh, name, set_mode, sign, tarball};
use crate::openpgp::Key;
use crate::report::step;
use crate::{root, run};

/// What the packages depend on. An installed one that is newer stays as it is.
const DEPENDS: [&str; 4] = ["runc", "wireguard-tools", "iproute2", "passwd"];

/// The image: an interpreter with its library, certificates and time zones, and no shell.
const IMAGE: [&str; 5] = ["python3-minimal", "libpython3-stdlib", "libc6", "tzdata", "ca-certificates"];

const IMAGE_OF: &str = "bookworm";

/// What no function reads there.
const LEFT_OUT: &str = "cd \"$1\" && rm -rf usr/share/doc usr/share/man usr/share/locale usr/share/lintian usr/share/bug \
                        var/lib/apt var/lib/dpkg var/cache var/log etc/apt etc/dpkg && mkdir -p app proc sys dev run tmp";

pub fn make(release: &Release, key: &Key, arch: Arch) -> Result<()> {
    let to = release.airgap(arch);
    let top = release.work.join("airgap").join(tarball::top(&to)?);
    fresh(&top)?;
    for file in [release.deb(arch), release.rpm(arch), release.tarball(arch), release.file("install.sh")] {
        copy(&file, &top)?;
    }
    for file in KEYRING {
        copy(&release.file(file), &top)?;
    }
    let scratch = release.work.join("debian");
    for package in Archive::open(&scratch, arch)?.download_with_dependencies(&DEPENDS)? {
        copy(&package, &top)?;
        if name(&package)?.starts_with("runc_") {
            let unpacked = scratch.join("unpacked");
            debian::unpack(&package, &unpacked)?;
            let program = top.join("runc");
            fs::copy(unpacked.join("usr/sbin/runc"), &program)
                .context("the package runc has no /usr/sbin/runc")?;
            set_mode(&program, 0o755)?;
        }
    }
    fs::remove_dir_all(&scratch)?;
    step("dist", "an image for functions, from Debian's packages", || {
        image(release, arch, &top.join(format!("python3-{}.tar.gz", arch.debian())))
    })?;
    fs::write(top.join("README.txt"), readme(release, arch)?)?;
    sign(key, &top)?;
    tarball::pack(release, &top, &to)
}

/// As a root file system in a tar file, which `faas image import` takes.
fn image(release: &Release, arch: Arch, to: &Path) -> Result<()> {
    let tar = to.with_extension("");
    let epoch = release.epoch.to_string();
    let mut make = root::command("mmdebstrap", &[("SOURCE_DATE_EPOCH", epoch.as_ref())])?;
    // `extract`: packages' scripts are not run, so that any architecture's image is made on any machine.
    make.args(["--quiet", "--mode=root", "--variant=extract", "--format=tar"]);
    make.arg(format!("--architectures={}", arch.debian()));
    make.arg(format!("--include={}", IMAGE.join(",")));
    make.args(["--aptopt=Acquire::Languages \"none\"", "--aptopt=Acquire::Retries \"3\""]);
    make.arg(format!("--customize-hook={LEFT_OUT}"));
    run::quiet(make.arg(IMAGE_OF).arg(&tar))?;
    run::quiet(Command::new("gzip").args(["--no-name", "--best", "--force"]).arg(&tar)).map(drop)
}

fn readme(release: &Release, arch: Arch) -> Result<String> {
    let Release { version, .. } = release;
    let image = format!("python3-{}.tar.gz", arch.debian());
    Ok(format!(
        "faasd {version} for {machine}, with what it needs, for machines without a network.\n\n\
         As root, in this directory:\n\n    sh install.sh --offline .\n\n\
         It checks SHA256SUMS and its signature first. By hand, on Debian 12 or later and Ubuntu 24.04 or later:\n\n    \
         apt install ./{deb}        # apt takes the other packages here only if they are named too: ./*.deb\n\n\
         Elsewhere the .rpm, or {tarball}, which `runc` here goes with: it needs glibc 2.34 and libseccomp 2.5.\n\n\
         An image for functions in Python, where the machine has no python3 of its own:\n\n    \
         faas image import {image} --name python3\n    faas deploy hello ./hello --image python3\n",
        machine = arch.machine(),
        deb = name(&release.deb(arch))?,
        tarball = name(&release.tarball(arch))?,
    ))
}

fn copy(file: &Path, directory: &Path) -> Result<()> {
    let to = directory.join(name(file)?);
    fs::copy(file, &to).with_context(|| format!("copying {}", file.display()))?;
    Ok(())
}
