//! What the systems under test are offered: the release as a site, the version before it, and each of them spoilt in one way.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::{directory, remove_tree};
use crate::dist::{self, KEYRING, SUMS};
use crate::openpgp::Key;
use crate::publish::{self, Release};
use crate::{packages, repo, run};

/// Where the web server has the site.
const URL: &str = "http://127.0.0.1/site";

/// Lower than any that is released.
const PREVIOUS: &str = "0.0.1";

const ARCHITECTURE: &str = "amd64";

/// Makes it anew; where it is.
pub fn make(from: &Path) -> Result<PathBuf> {
    let share = directory().join("share");
    remove_tree(&share)?;
    fs::create_dir_all(&share)?;
    let key = Key::open()?;
    let release = Release::open(from, &key.fingerprint)?;
    let site = share.join("site");

    let before = share.join("before");
    previous(&release, &before, &key)?;
    publish::site(&before, &site, URL, &key, &[])?;
    publish::site(from, &site, URL, &key, &[])?;
    fs::write(share.join("previous"), PREVIOUS)?;
    fs::copy(repo::root().join("docs/INSTALL.md"), share.join("INSTALL.md")).context("docs/INSTALL.md")?;
    fs::write(share.join("fingerprint"), &key.fingerprint)?;
    copy_tree(from, &share.join("release"))?;
    if let Some(name) = release.with_suffix(&format!("-airgap-{ARCHITECTURE}.tar.gz")).next() {
        let to = share.join("airgap");
        fs::create_dir(&to)?;
        let mut tar = Command::new("tar");
        run::quiet(tar.args(["--strip-components=1", "-xzf"]).arg(from.join(name)).arg("-C").arg(&to))?;
    }
    spoil(&release, &share, &key)?;
    stand_in(&share.join("stand-in"))?;
    Ok(share)
}

/// The same package with a lower version: what is upgraded from.
fn previous(release: &Release, to: &Path, key: &Key) -> Result<()> {
    fs::create_dir_all(to)?;
    let suffix = format!("_{ARCHITECTURE}.deb");
    let deb = release.with_suffix(&suffix).find(|name| name.starts_with("faasd_"));
    let deb = deb.with_context(|| format!("the release has no package for {ARCHITECTURE}"))?;
    let tree = to.join("tree");
    run::quiet(Command::new("dpkg-deb").arg("-R").arg(release.directory.join(deb)).arg(&tree))?;
    let control = tree.join("DEBIAN/control");
    let text = fs::read_to_string(&control)?;
    fs::write(
        &control,
        text.replace(&format!("Version: {}\n", release.version), &format!("Version: {PREVIOUS}\n")),
    )?;
    let mut build = Command::new("dpkg-deb");
    build.args(["--root-owner-group", "-Zgzip", "-z1", "-b"]).arg(&tree);
    run::quiet(build.arg(to.join(format!("faasd_{PREVIOUS}_{ARCHITECTURE}.deb"))))?;
    fs::remove_dir_all(&tree)?;
    fs::copy(release.directory.join("install.sh"), to.join("install.sh"))?;
    key.export(&to.join(KEYRING[0]), false)?;
    dist::sign(key, to)
}

/// Copies of the site's release, below `bad`, each with one fault.
fn spoil(release: &Release, share: &Path, key: &Key) -> Result<()> {
    let bad = share.join("bad");
    let version = &release.version;
    let deb = format!("faasd_{version}_{ARCHITECTURE}.deb");
    let release_of = |fault: &str| -> Result<PathBuf> {
        let to = bad.join(fault).join(version);
        fs::create_dir_all(&to)?;
        let signature = format!("{SUMS}.sig");
        for name in [deb.as_str(), SUMS, signature.as_str(), KEYRING[0]] {
            fs::copy(release.directory.join(name), to.join(name))
                .with_context(|| format!("copying {name}"))?;
        }
        Ok(to)
    };

    flip(&release_of("package")?.join(&deb))?;
    let half = release_of("half")?.join(&deb);
    fs::File::options().write(true).open(&half)?.set_len(fs::metadata(&half)?.len() / 2)?;
    // A list that goes with the changed package, and a signature that does not go with the list.
    let checksum = release_of("checksum")?;
    flip(&checksum.join(&deb))?;
    let signature = fs::read(checksum.join(format!("{SUMS}.sig")))?;
    dist::sign(key, &checksum)?;
    fs::write(checksum.join(format!("{SUMS}.sig")), signature)?;
    flip(&release_of("signature")?.join(format!("{SUMS}.sig")))?;
    // Somebody else's release, whole and signed, with a keyring that says so.
    let nobody = Key::unknown()?;
    let other = release_of("key")?;
    nobody.export(&other.join(KEYRING[0]), false)?;
    dist::sign(&nobody, &other)?;

    copy_tree(&share.join("site/apt"), &bad.join("repository/apt"))?;
    let suite = bad.join("repository/apt/dists/stable");
    nobody.clear_sign(&suite.join("Release"), &suite.join("InRelease"))?;
    nobody.detach_sign(&suite.join("Release"), &suite.join("Release.gpg"), true)?;
    copy_tree(&share.join("site/apt"), &bad.join("pool/apt"))?;
    flip(&bad.join("pool/apt/pool/main/f/faasd").join(&deb))?;
    copy_tree(&share.join("site/rpm"), &bad.join("pool/rpm"))?;
    for entry in fs::read_dir(bad.join("pool/rpm"))? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "rpm") {
            flip(&path)?;
        }
    }
    Ok(())
}

/// Changes one byte, where a file has its content.
fn flip(file: &Path) -> Result<()> {
    let opened =
        fs::File::options().read(true).write(true).open(file).with_context(|| file.display().to_string())?;
    let place = opened.metadata()?.len() * 3 / 4;
    let mut byte = [0];
    opened.read_exact_at(&mut byte, place)?;
    Ok(opened.write_all_at(&[byte[0] ^ 0x55], place)?)
}

/// A package that has the names of Fedora's that ours depends on: here is no Fedora.
fn stand_in(to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    let description = to.join("nfpm.yaml");
    fs::write(
        &description,
        "name: stand-in\narch: all\nversion: 1.0.0\nmaintainer: nobody <nobody@example.org>\ndescription: stand-in\n\
         provides: ['runc = 1.1.12', wireguard-tools, iproute, shadow-utils, systemd, /bin/sh, \
         'libc.so.6(GLIBC_2.28)(64bit)']\n",
    )?;
    let nfpm = packages::dist_directory().join("bin/nfpm");
    if !nfpm.is_file() {
        bail!("there is no nfpm: `cargo xtask setup --for dist`");
    }
    let mut make = Command::new(nfpm);
    make.arg("package").arg("--config").arg(&description).args(["--packager", "rpm", "--target"]).arg(to);
    run::quiet(make.current_dir(repo::root()))?;
    run::quiet(Command::new("createrepo_c").arg("--quiet").arg(to)).map(drop)
}

fn copy_tree(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    run::quiet(Command::new("cp").arg("-R").arg(from.join(".")).arg(to)).map(drop)
}
