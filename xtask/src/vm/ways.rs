//! The ways by which a release comes onto a machine: its package, the tarball for machines without a network, and cloud-init
//! with the signed site. Each has its files on a disk of their own.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::life::Step::{self, Reboot, Run};
use super::package::{INSTALLED, LIVED, PURGED, USED};
use super::{directory, payload};
use crate::openpgp::Key;
use crate::{publish, repo};

/// The machine's own.
const URL: &str = "http://127.0.0.1";

const ARCHITECTURE: &str = "amd64";

/// A way, with the release directory that it begins with.
#[derive(Debug)]
pub enum Way<'a> {
    /// Or the package itself.
    Package(&'a Path),
    Airgap(&'a Path),
    CloudInit(&'a Path),
}

impl Way<'_> {
    /// The version, and the disk that the machine finds its files on.
    pub fn bring(&self) -> Result<(String, PathBuf)> {
        let tree = directory().join("media");
        if tree.exists() {
            fs::remove_dir_all(&tree)?;
        }
        fs::create_dir_all(&tree)?;
        let copy = |from: &Path, name: &str| {
            fs::copy(from, tree.join(name)).with_context(|| format!("copying {}", from.display())).map(drop)
        };
        copy(&repo::root().join("docs/INSTALL.md"), "INSTALL.md")?;
        let version = match *self {
            Self::Package(from) => {
                let (deb, version) = find(from, "faasd_", &format!("_{ARCHITECTURE}.deb"))?;
                copy(&deb, "faasd.deb")?;
                version
            }
            Self::Airgap(from) => {
                let (tarball, version) = find(from, "faasd-", &format!("-airgap-{ARCHITECTURE}.tar.gz"))?;
                copy(&tarball, &format!("faasd-{version}-airgap-{ARCHITECTURE}.tar.gz"))?;
                version
            }
            Self::CloudInit(from) => {
                let (_, version) = find(from, "faasd_", &format!("_{ARCHITECTURE}.deb"))?;
                let site = tree.join("site");
                publish::site(from, &site, URL, &Key::open()?, &[])?;
                // Only apt's part is used, and the rest is large.
                fs::remove_dir_all(site.join(&version))?;
                copy(&repo::root().join("packaging/cloud-init/user-data.yaml"), "user-data.yaml")?;
                version
            }
        };
        Ok((version, payload::of_tree(&tree)?))
    }

    pub const fn life(&self) -> &'static [&'static [Step]] {
        match self {
            Self::Package(_) => &[INSTALLED, USED, LIVED, PURGED],
            Self::Airgap(_) => &[CARRIED, USED, PURGED],
            Self::CloudInit(_) => &[FIRST_BOOT],
        }
    }
}

/// The file, or the one in a directory that is called so; and the version in its name.
fn find(path: &Path, prefix: &str, suffix: &str) -> Result<(PathBuf, String)> {
    let version = |file: &Path| {
        let name = file.file_name()?.to_str()?;
        Some(name.strip_prefix(prefix)?.strip_suffix(suffix)?.to_owned())
    };
    let mut files = vec![path.to_owned()];
    if path.is_dir() {
        let entries = path.read_dir().with_context(|| format!("reading {}", path.display()))?;
        files = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
        files.sort();
    }
    let found = files.into_iter().rev().find_map(|file| Some((version(&file)?, file)));
    let (version, file) =
        found.with_context(|| format!("no {prefix}VERSION{suffix} in {}", path.display()))?;
    Ok((file, version))
}

const CARRIED: &[Step] = &[
    Run(
        "what it depends on is not here, and cannot be fetched",
        concat!(
            "dpkg --purge --force-depends runc wireguard-tools; none command -v runc; none command -v wg; ",
            "rm -f /etc/apt/sources.list /etc/apt/sources.list.d/*; none apt-get install -y -q runc",
        ),
    ),
    Run(
        "the tarball brings everything, by the manual's commands",
        concat!(
            "cd /run; ln -s $MEDIA/faasd-*.tar.gz .; documented airgap >/run/install; sh -e /run/install; ",
            "soon systemctl is-active faasd.service faasd.socket faasd-functions.service; dpkg --audit",
        ),
    ),
    Run(
        "a function runs on the image that it brought",
        concat!(
            "cd /run; faas image import faasd-*/python3-*.tar.gz --name python3; faas new inside; ",
            "faas deploy inside ./inside --image python3; faas invoke inside; faas rm inside",
        ),
    ),
];

const FIRST_BOOT: &[Step] = &[
    Run(
        "the machine is told what to do at its first boot, by the manual's commands",
        concat!(
            "mkdir -p /srv/site; cp -R $MEDIA/site/. /srv/site; ",
            "printf '[Service]\\nExecStart=/usr/bin/python3 -m http.server 80 --bind 127.0.0.1 --directory /srv/site\\n[Install]\\nWantedBy=multi-user.target\\n' > /etc/systemd/system/site.service; ",
            "systemctl daemon-reload; systemctl enable --now site; soon curl -sf http://127.0.0.1/faasd.sources; ",
            "cd /root; mkdir -p packaging/cloud-init; cp $MEDIA/user-data.yaml packaging/cloud-init; ",
            "documented cloud-init >/run/fill-in; sh -e /run/fill-in; none grep @ user-data; ",
            "mkdir -p /var/lib/cloud/seed/nocloud; cp user-data /var/lib/cloud/seed/nocloud; ",
            "printf 'instance-id: node-1\\nlocal-hostname: node-1\\n' > /var/lib/cloud/seed/nocloud/meta-data; ",
            // What this system lacks beside those of clouds: Debian's archive, locales, a server for SSH.
            "rm -f /etc/apt/sources.list; printf 'apt: {preserve_sources_list: true}\\nlocale: false\\nssh_genkeytypes: []\\n' > /etc/cloud/cloud.cfg.d/lacks.cfg; ",
            "none test -e /usr/bin/faasd; rm /etc/cloud/cloud-init.disabled",
        ),
    ),
    Reboot,
    Run(
        "cloud-init ends well",
        "cloud-init status --wait --long || { tail -n 60 /var/log/cloud-init-output.log; exit 1; }; test $(hostname) = node-1",
    ),
    Run(
        "it is a node, and its function answers",
        concat!(
            "systemctl is-active faasd.service faasd.socket faasd-functions.service; systemctl is-enabled faasd.service; ",
            "test \"$(faas invoke hello)\" = hello; apt-cache policy faasd | grep http://127.0.0.1/apt; ",
            "faas vpn invite laptop | grep -q .; faas version",
        ),
    ),
];
