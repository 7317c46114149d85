//! The systems that are installed into: Debian's smallest, each with what its packages and ours depend on beside it, so that
//! nothing is fetched while cases run, and apt still decides what it takes.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

use super::directory;
use crate::report::step;
use crate::{root, run};

/// A release of Debian, and what fetches there: one of the two that install.sh takes.
#[derive(Clone, Copy, Debug)]
pub struct Debian {
    pub name: &'static str,
    suite: &'static str,
    fetches: &'static str,
}

/// The older one verifies by gpgv, the newer one by sqv.
pub const TRIXIE: Debian = Debian { name: "Debian 13", suite: "trixie", fetches: "curl" };
pub const BOOKWORM: Debian = Debian { name: "Debian 12", suite: "bookworm", fetches: "wget" };

/// What is installed with the package, or by a case before it.
const OFFERED: &str = "runc wireguard-tools iproute2 passwd python3 procps systemd";

/// A source of packages that needs no network; the archive's own are gone.
const OFFER: &str = r#"set -e
mkdir -p "$1/srv/debian/partial"
chroot "$1" apt-get install -qq -y --download-only --no-install-recommends \
    -o Dir::Cache::archives=/srv/debian -o APT::Sandbox::User=root OFFERED
rm -rf "$1/srv/debian/partial" "$1/srv/debian/lock" "$1"/etc/apt/sources.list "$1"/etc/apt/sources.list.d/*
(cd "$1/srv/debian" && apt-ftparchive packages . >Packages)
echo "deb [trusted=yes] file:/srv/debian ./" >"$1/etc/apt/sources.list"
rm -rf "$1"/var/lib/apt/lists/*
chroot "$1" apt-get update -qq"#;

impl Debian {
    /// Its tree, made once for what is written here.
    pub fn ready(&self) -> Result<PathBuf> {
        let tree = directory().join(format!("{}-{}", self.suite, self.key()));
        if !tree.exists() {
            step("channels", &format!("{}'s smallest system", self.name), || self.make(&tree))?;
        }
        Ok(tree)
    }

    fn key(&self) -> String {
        let digest = Sha256::digest(format!("{}\n{}\n{OFFERED}\n{OFFER}", self.suite, self.fetches));
        digest.iter().take(6).map(|byte| format!("{byte:02x}")).collect()
    }

    fn make(&self, tree: &Path) -> Result<()> {
        let partial = directory().join(format!("partial-{}", self.suite));
        for old in fs::read_dir(directory())? {
            let old = old?.path();
            let name = old.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if name.starts_with(self.suite) || old == partial {
                super::remove_tree(&old)?;
            }
        }
        let mut make = root::command("mmdebstrap", &[])?;
        make.args(["--quiet", "--mode=root", "--variant=minbase", "--format=directory"]);
        make.args(["--aptopt=Acquire::Languages \"none\"", "--aptopt=Acquire::Retries \"3\""]);
        for path in ["doc", "man", "locale"] {
            make.arg(format!("--dpkgopt=path-exclude=/usr/share/{path}/*"));
        }
        make.arg(format!("--include={},ca-certificates", self.fetches));
        make.arg(format!("--customize-hook={}", OFFER.replace("OFFERED", OFFERED)));
        make.arg("--skip=cleanup/apt/lists").arg(self.suite).arg(&partial);
        run::quiet(&mut make)?;
        fs::rename(&partial, tree).with_context(|| format!("moving {}", partial.display()))
    }
}
