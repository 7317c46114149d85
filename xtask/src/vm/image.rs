//! The machine's disk: Debian 12 as it is installed, with the stock kernel of its cloud images. Made once and kept, under
//! a name that says what went in.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

use crate::report::step;
use crate::{repo, root, run};

const RELEASE: &str = "bookworm";

/// What a server and a client have installed, and the kernel.
const PACKAGES: &[&str] = &[
    "linux-image-cloud-amd64",
    "systemd-sysv",
    "systemd-resolved",
    "dbus",
    "udev",
    "kmod",
    "iproute2",
    "iputils-ping",
    "procps",
    "ca-certificates",
    "runc",
    "wireguard-tools",
    "python3",
    "curl",
    "dnsutils",
    "cloud-init",
];

/// Nobody reads there, and a smaller disk is made sooner.
const LEFT_OUT: [&str; 3] = ["/usr/share/man/*", "/usr/share/doc/*", "/usr/share/locale/*"];

/// Services that would take time of an emulated processor and do nothing for a machine that lives for minutes.
const MASKED: [&str; 12] = [
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "e2scrub_reap.service",
    "fstrim.timer",
    "getty@tty1.service",
    "serial-getty@ttyS0.service",
    "systemd-hwdb-update.service",
    "systemd-timesyncd.service",
    "systemd-update-utmp.service",
    "systemd-pstore.service",
];

/// Emulated processors have no use for them, and loading them takes seconds.
const NO_MODULES: &str =
    "blacklist kvm\nblacklist kvm_amd\nblacklist kvm_intel\nblacklist psmouse\nblacklist ata_piix\n";

/// cloud-init begins when a case takes this away: it is asleep in all others, and costs their boot nothing.
const CLOUD_INIT_SLEEPS: &str = "etc/cloud/cloud-init.disabled";

/// Where it looks for what to do: a directory here, as with a disk of that kind on a machine without a cloud.
const CLOUD: &str = "datasource_list: [NoCloud]\n";

/// Files of ours: where, what, and how they may be used.
const FILES: [(&str, &str, u32); 7] = [
    ("usr/local/sbin/faasd-agent", include_str!("guest/agent.sh"), 0o755),
    ("etc/systemd/system/faasd-agent.service", include_str!("guest/faasd-agent.service"), 0o644),
    ("etc/systemd/system/faasd-shell.service", include_str!("guest/faasd-shell.service"), 0o644),
    ("etc/modprobe.d/faasd-vm.conf", NO_MODULES, 0o644),
    ("etc/hostname", "faasd-vm\n", 0o644),
    ("etc/cloud/cloud.cfg.d/99-faasd-vm.cfg", CLOUD, 0o644),
    (CLOUD_INIT_SLEEPS, "", 0o644),
];

const SERVICES: [&str; 3] = ["faasd-agent.service", "faasd-shell.service", "systemd-resolved.service"];

/// Room for what tests write; the file has holes where nothing is.
const DISK: &str = "4G";

/// A machine's root file system and the kernel that boots it.
#[derive(Clone, Debug)]
pub struct Image {
    pub disk: PathBuf,
    pub kernel: PathBuf,
}

impl Image {
    /// The one that is there, or a new one.
    pub fn ready(rebuild: bool) -> Result<Self> {
        let name = format!("debian-12-{}", key());
        let directory = super::directory();
        fs::create_dir_all(&directory).with_context(|| format!("making {}", directory.display()))?;
        let image = Self {
            disk: directory.join(format!("{name}.img")),
            kernel: directory.join(format!("{name}.vmlinuz")),
        };
        if rebuild || !(image.disk.exists() && image.kernel.exists()) {
            forget(&directory)?;
            let made = image.make(&directory);
            let removed = remove_tree(&tree(&directory));
            made.and(removed)?;
        }
        Ok(image)
    }

    fn make(&self, directory: &Path) -> Result<()> {
        let tree = tree(directory);
        let files = directory.join("files");
        lay_out(&files)?;
        step("vm", &format!("Debian {RELEASE} from its packages"), || bootstrap(&tree, &files))?;
        let partial = directory.join("partial.img");
        step("vm", "its disk", || {
            let kernels =
                run::stdout(root::command("sh", &[])?.args(["-c", "ls \"$0\"/boot/vmlinuz-*"]).arg(&tree))?;
            let kernel = kernels.lines().next_back().context("the packages brought no kernel")?;
            run::quiet(root::command("install", &[])?.args(["-m", "644", kernel]).arg(&self.kernel))?;
            disk(root::command("mke2fs", &[])?, &tree, &partial, DISK)
        })?;
        fs::rename(&partial, &self.disk).with_context(|| format!("naming {}", self.disk.display()))
    }
}

/// An ext4 file system with everything below `tree`, by `mke2fs`; nothing is mounted for it.
pub fn disk(mut make: Command, tree: &Path, file: &Path, size: &str) -> Result<()> {
    make.args(["-q", "-F", "-t", "ext4", "-O", "^has_journal", "-m", "0", "-d"])
        .arg(tree)
        .arg(file)
        .arg(size);
    run::quiet(&mut make).map(drop)
}

fn tree(directory: &Path) -> PathBuf {
    directory.join("root")
}

/// A digest of everything that the image is made from, except for the archive's state on the day.
fn key() -> String {
    let mut digest = Sha256::new();
    let mut add = |text: &str| {
        digest.update(text.len().to_le_bytes());
        digest.update(text);
    };
    add(RELEASE);
    add(DISK);
    for list in [PACKAGES, &LEFT_OUT, &MASKED, &SERVICES] {
        list.iter().for_each(|entry| add(entry));
    }
    for (name, text, mode) in FILES {
        add(name);
        add(text);
        add(&mode.to_string());
    }
    digest.finalize().iter().take(6).map(|byte| format!("{byte:02x}")).collect()
}

/// Images of other keys, and what an interrupted run has left.
fn forget(directory: &Path) -> Result<()> {
    remove_tree(&tree(directory))?;
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.starts_with("debian-") || name == "partial.img" {
            fs::remove_file(&path).with_context(|| format!("removing {}", path.display()))?;
        }
    }
    Ok(())
}

/// The tree is root's.
fn remove_tree(tree: &Path) -> Result<()> {
    if !tree.exists() {
        return Ok(());
    }
    run::quiet(root::command("rm", &[])?.args(["-rf", "--one-file-system", "--"]).arg(tree)).map(drop)
}

/// Our files as they will lie in the tree.
fn lay_out(files: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    if files.exists() {
        fs::remove_dir_all(files)?;
    }
    for (name, text, mode) in FILES {
        let path = files.join(name);
        fs::create_dir_all(path.parent().unwrap_or(files))?;
        fs::write(&path, text)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(mode))?;
    }
    Ok(())
}

fn bootstrap(tree: &Path, files: &Path) -> Result<()> {
    // The kernel finds its disk by itself; an initial RAM disk would only take time to make and to boot.
    let no_initrd: [(&str, &std::ffi::OsStr); 1] = [("INITRD", "No".as_ref())];
    let mut command = root::command("mmdebstrap", &no_initrd)?;
    command.args(["--quiet", "--mode=root", "--variant=minbase", "--format=directory"]);
    command.args(["--aptopt=Acquire::Languages \"none\"", "--aptopt=Acquire::Retries \"3\""]);
    command.args(LEFT_OUT.map(|path| format!("--dpkgopt=path-exclude={path}")));
    command.arg(format!("--include={}", PACKAGES.join(",")));
    // Owned by root, whoever owns them here.
    let files = files.display();
    command.arg(format!("--customize-hook=tar -C '{files}' --owner=0 --group=0 -c . | tar -C \"$1\" -x"));
    command.arg(format!("--customize-hook=chroot \"$1\" systemctl --quiet mask {}", MASKED.join(" ")));
    command.arg(format!("--customize-hook=chroot \"$1\" systemctl --quiet enable {}", SERVICES.join(" ")));
    command.arg("--customize-hook=chroot \"$1\" systemd-machine-id-setup >/dev/null 2>&1");
    command.arg(RELEASE).arg(tree);
    command.current_dir(repo::root());
    run::quiet(&mut command).map(drop)
}

/// A copy of a program without what only a debugger reads, which is most of it.
pub fn strip(from: &Path, to: &Path) -> Result<()> {
    run::quiet(Command::new("strip").arg("--strip-debug").arg("-o").arg(to).arg(from)).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_an_image_is_the_same_each_time() {
        assert_eq!(key(), key());
        assert_eq!(key().len(), 12);
    }

    #[test]
    fn what_is_enabled_is_not_masked() {
        assert!(SERVICES.iter().all(|service| !MASKED.contains(service)));
        for service in SERVICES.iter().filter(|service| service.starts_with("faasd-")) {
            assert!(FILES.iter().any(|(name, ..)| name.ends_with(service)), "{service}");
        }
    }
}
