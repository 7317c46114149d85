//! Daemons that cannot serve.

use std::fs::{self, Permissions};
use std::net::{Ipv6Addr, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use faasd_tests::{Bed, Traces, program};
use rustix::process::Signal;

use crate::check::{has_instances, says};

/// That the daemon refuses to serve, says why, and leaves nothing of its own behind.
fn refuses(bed: &mut Bed, words: &[&str]) -> Result<()> {
    let before = bed.traces()?;
    let _ = fs::remove_file(bed.path("faasd.log"));
    let output = bed.serve_in_vain()?;
    ensure!(!output.err.contains("leaves something behind"), "{}", output.err);
    says(output, words)?;
    bed.traces()?.compare(&before)?;
    let left: Vec<_> = fs::read_dir(bed.path("run")).into_iter().flatten().flatten().collect();
    ensure!(left.is_empty(), "{left:?}");
    Ok(())
}

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

/// A directory for the search path with everything but runc, or with a runc of the test's.
fn search_path(bed: &Bed, runc: Option<&str>) -> Result<String> {
    let dir = bed.path("bin");
    fs::create_dir_all(&dir)?;
    if let Some(script) = runc {
        fs::write(dir.join("runc"), script)?;
        fs::set_permissions(dir.join("runc"), Permissions::from_mode(0o755))?;
    }
    Ok(format!("PATH={}", dir.display()))
}

pub fn wants() -> Result<()> {
    let mut bed = Bed::new()?;
    let refused = |bed: &mut Bed, wrapper: Vec<String>, said: &[&str]| {
        let what = wrapper.join(" ");
        bed.wrapper = wrapper;
        refuses(bed, said).with_context(|| what)
    };
    let path = search_path(&bed, None)?;
    refused(&mut bed, vec!["env".into(), path], &["none was found", "apt install runc"])?;
    let path = search_path(&bed, Some("#!/bin/sh\necho runc version 1.0.0\n"))?;
    refused(&mut bed, vec!["env".into(), path], &["this is 1.0.0", "1.1 or later", "apt install runc"])?;
    let path = search_path(&bed, Some("#!/bin/sh\necho hello\n"))?;
    refused(&mut bed, vec!["env".into(), path], &["'hello'", "is it runc?"])?;

    refused(&mut bed, words("setpriv --reuid 65534 --regid 65534 --clear-groups"), &["needs root", "sudo"])?;
    refused(&mut bed, words("setpriv --bounding-set -bpf,-sys_admin"), &["CAP_SYS_ADMIN"])?;
    // A mount namespace without a /sys/fs/bpf to mount anything on.
    let place = bed.path("cgroup");
    fs::create_dir(&place)?;
    let script = "mount --rbind /sys/fs/cgroup $0 && mount -t tmpfs none /sys/fs && mkdir /sys/fs/cgroup && \
                  mount --rbind $0 /sys/fs/cgroup && umount --recursive --lazy $0 && exec \"$@\"";
    let wrapper =
        ["unshare", "--mount", "bash", "-c", script, &place.display().to_string()].map(str::to_owned);
    refused(&mut bed, wrapper.to_vec(), &["/sys/fs/bpf", "No such file"])?;

    bed.wrapper.clear();
    bed.serve()?;
    bed.finish()
}

pub fn settings() -> Result<()> {
    let mut bed = Bed::new()?;
    for (config, said) in [
        ("listenport = 51820", ["unknown field", "did you mean `listen_port`"]),
        ("listen_port = 'x'", ["faasd.toml", "listen_port"]),
        ("acceptors = 0", ["`acceptors` is 0", "1 to 64"]),
        ("http_port = 53", ["`http_port` is 53", "DNS"]),
        ("mtu_bytes = 100", ["`mtu_bytes` is 100", "1280"]),
        ("vpn_prefix = 'fd00::/48'", ["'fd00::/48'", "no IPv6 /64"]),
        ("interface = 'a name that is far too long'", ["a name that is far too long", "15 characters"]),
        ("interface = 'lo'", ["lo", "another name"]),
        ("wireguard = 'magic'", ["magic", "userspace"]),
    ] {
        bed.config = config.to_owned();
        refuses(&mut bed, &said).with_context(|| config.to_owned())?;
    }
    bed.config.clear();

    let key = bed.path("wireguard/server_private.key");
    fs::create_dir_all(bed.path("wireguard"))?;
    fs::write(&key, "not a key\n")?;
    fs::set_permissions(&key, Permissions::from_mode(0o600))?;
    refuses(&mut bed, &["server_private.key is malformed", "remove it and the interface to make a new key"])?;
    fs::write(&key, "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAEE=\n")?;
    fs::set_permissions(&key, Permissions::from_mode(0o644))?;
    refuses(&mut bed, &["can be read by others", "0644", "chmod 600"])?;
    ensure!(fs::read_to_string(&key)?.starts_with("AAAA"), "the key was changed");
    fs::set_permissions(&key, Permissions::from_mode(0o600))?;
    bed.serve()?;
    bed.finish()
}

pub fn ports() -> Result<()> {
    let mut bed = Bed::new()?;
    // The tunnel's own port, in the server's namespace.
    let taken = bed.server()?.run(|| UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 51820)))?;
    refuses(&mut bed, &["51820", "listen_port"])?;
    drop(taken);

    // A port of the daemon's in the ingress, which one daemon made and the next one finds.
    bed.serve()?;
    bed.deploy_hello("hello", "")?;
    bed.end_daemon(Signal::TERM)?;
    let taken = bed.ingress()?.run(|| UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 53)))?;
    says(bed.serve_in_vain()?, &["cannot listen on [fd00:faa5:0:100::1]:53", "something else has the port"])?;
    drop(taken);
    // What the first one left is still there for the third.
    has_instances(&bed, 1)?;
    bed.serve()?;
    ensure!(bed.describe("hello")?["instances"][0]["adopted"] == true, "{}", bed.log());
    bed.finish()
}

/// Runs a further daemon with the bed's places to its end.
fn second(bed: &Bed) -> Result<faasd_tests::Output> {
    let place = |name: &str| bed.path(name).display().to_string();
    let output = Command::new("timeout")
        .args(["20", "nsenter", &format!("--net=/run/netns/{}s", bed.name())])
        .arg(program("faasd"))
        .args(["serve", "--instance", bed.name()])
        .args(["--config", &place("faasd.toml"), "--state", &place("state"), "--run", &place("run")])
        .args(["--wireguard", &place("wireguard"), "--endpoint", "[fd00:1::1]:51820"])
        .output()?;
    Ok(faasd_tests::Output {
        status: output.status.code(),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

pub fn second_daemon() -> Result<()> {
    let bed = Bed::joined()?;
    bed.deploy_hello("hello", "")?;
    let before = bed.describe("hello")?;
    let output = second(&bed)?;
    ensure!(output.status == Some(1), "{output:?}");
    says(output, &["another faasd runs with", "stop it first"])?;
    ensure!(bed.client().curl("http://hello.faas/")?.contains("hello"));
    let after = bed.describe("hello")?;
    ensure!(before["instances"][0]["id"] == after["instances"][0]["id"], "{after}");
    bed.deploy_hello("hello", "env.A = 'b'")?;
    // Nor can what it serves be torn down under it.
    let place = |name: &str| bed.path(name).display().to_string();
    let torn = Command::new(program("faasd"))
        .args(["teardown", "--instance", bed.name(), "--run", &place("run"), "--state", &place("state")])
        .args(["--config", &place("faasd.toml")])
        .output()?;
    let said = String::from_utf8_lossy(&torn.stderr);
    ensure!(!torn.status.success() && said.contains("stop it first"), "{said}");
    ensure!(bed.client().curl("http://hello.faas/")?.contains("hello"));
    bed.finish()
}

pub fn race_of_two() -> Result<()> {
    for _ in 0..3 {
        let mut bed = Bed::new()?;
        fs::write(bed.path("faasd.toml"), "")?;
        let place = |name: &str| bed.path(name).display().to_string();
        // Their output goes to files: what serves on after a daemon would keep a pipe open.
        let start = |log: &str| -> Result<std::process::Child> {
            Ok(Command::new("timeout")
                .args(["-k", "1", "5", "nsenter", &format!("--net=/run/netns/{}s", bed.name())])
                .arg(program("faasd"))
                .args(["serve", "--instance", bed.name(), "--config", &place("faasd.toml")])
                .args(["--state", &place("state"), "--run", &place("run")])
                .args(["--wireguard", &place("wireguard"), "--endpoint", "[fd00:1::1]:51820"])
                .stdout(fs::File::create("/dev/null")?)
                .stderr(fs::File::create(bed.path(log))?)
                .spawn()?)
        };
        let (mut a, mut b) = (start("a.log")?, start("b.log")?);
        let codes = [a.wait()?.code(), b.wait()?.code()];
        let all =
            [fs::read_to_string(bed.path("a.log"))?, fs::read_to_string(bed.path("b.log"))?].join("---\n");
        ensure!(codes.iter().filter(|code| **code == Some(1)).count() == 1, "{codes:?}\n{all}");
        ensure!(all.contains("another faasd runs with"), "{all}");
        // The other one served until `timeout` ended it; what it left is good for the next.
        ensure!(all.contains("faasd serves"), "{all}");
        bed.serve()?;
        bed.finish()?;
    }
    Ok(())
}

pub fn layout() -> Result<()> {
    let mut bed = Bed::serving()?;
    bed.deploy_hello("hello", "")?;
    bed.end_daemon(Signal::TERM)?;
    let traces = bed.traces()?;
    let pin = std::path::Path::new("/sys/fs/bpf").join(bed.name().replace('.', "_")).join("CONFIG");
    let map = aya::maps::MapData::from_pin(&pin).with_context(|| format!("open {}", pin.display()))?;
    // Its words, of which the first is `layout`.
    let mut config: aya::maps::Array<_, [u32; size_of::<faasd_common::Config>() / 4]> =
        aya::maps::Map::Array(map).try_into()?;
    let mut other = config.get(&0, 0)?;
    other[0] = 999;
    config.set(0, other, 0)?;

    says(
        bed.serve_in_vain()?,
        &["have layout 999", "this faasd has layout", "`faasd teardown`", "start again"],
    )?;
    // The refusal leaves everything as it was: instances serve on.
    has_instances(&bed, 1)?;
    let now: Traces = bed.traces()?;
    now.compare(&traces)?;

    let place = |name: &str| bed.path(name).display().to_string();
    let torn = Command::new("nsenter")
        .arg(format!("--net=/run/netns/{}s", bed.name()))
        .arg(program("faasd"))
        .args(["teardown", "--instance", bed.name(), "--config", &place("faasd.toml")])
        .args(["--state", &place("state"), "--run", &place("run"), "--wireguard", &place("wireguard")])
        .output()?;
    ensure!(torn.status.success(), "{}", String::from_utf8_lossy(&torn.stderr));
    has_instances(&bed, 0)?;
    bed.serve()?;
    ensure!(bed.describe("hello")?["name"] == "hello");
    ensure!(bed.faas(&["invoke", "hello"])?.ok()?.contains("hello"));
    bed.finish()
}
