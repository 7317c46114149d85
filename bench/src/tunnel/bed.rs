//! Two namespaces, a pair of interfaces between them, and tunnels over it.

use std::fs::File;
use std::net::Ipv6Addr;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use nix::sched::{CloneFlags, setns};

use crate::host;

/// Where all the subjects put their configuration sockets, and `wg` looks for them.
const SOCKETS: &str = "/var/run/wireguard";

/// How long a subject may take until its interface and socket are there.
const START_DEADLINE: Duration = Duration::from_secs(10);

/// The MTU that remains of the pair's 1500 bytes, over IPv6.
const MTU: &str = "1420";

/// The namespaces.
#[derive(Debug)]
pub struct Bed {
    ends: [File; 2],
}

/// A way from the first namespace to the second.
#[derive(Debug)]
pub struct Link {
    pub name: &'static str,
    /// The second namespace's address.
    pub address: Ipv6Addr,
    processes: Vec<Process>,
}

/// A tunnel process, ended with its interface's socket removed.
#[derive(Debug)]
struct Process {
    child: Child,
    socket: PathBuf,
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_file(&self.socket);
        let _ = std::fs::remove_file(self.socket.with_extension("lock"));
    }
}

impl Bed {
    /// Makes the namespaces and the pair between them.
    pub fn new() -> anyhow::Result<Self> {
        let bed = Self { ends: [host::fresh_netns()?, host::fresh_netns()?] };
        let other =
            format!("/proc/{}/fd/{}", std::process::id(), std::os::fd::AsRawFd::as_raw_fd(&bed.ends[1]));
        bed.ip(0, &format!("link add bench0 type veth peer name bench0 netns {other}"))?;
        for (end, address) in [(0, address(0, 1)), (1, address(0, 2))] {
            bed.ip(end, &format!("addr add {address}/64 dev bench0 nodad"))?;
            bed.ip(end, "link set bench0 up")?;
        }
        Ok(bed)
    }

    /// A namespace.
    ///
    /// # Errors
    /// Of `dup(2)`.
    pub fn end(&self, end: usize) -> std::io::Result<File> {
        self.ends[end].try_clone()
    }

    /// Runs something in a namespace, on a thread of its own.
    pub fn within<T: Send>(
        &self,
        end: usize,
        work: impl FnOnce() -> anyhow::Result<T> + Send,
    ) -> anyhow::Result<T> {
        std::thread::scope(|scope| {
            let run = || {
                setns(self.ends[end].as_fd(), CloneFlags::CLONE_NEWNET)
                    .context("cannot enter the namespace")?;
                work()
            };
            scope.spawn(run).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    fn ip(&self, end: usize, line: &str) -> anyhow::Result<String> {
        self.command(end, "ip", line)
    }

    fn command(&self, end: usize, program: &str, line: &str) -> anyhow::Result<String> {
        self.command_fed(end, program, line, Stdio::null())
    }

    fn command_fed(&self, end: usize, program: &str, line: &str, input: Stdio) -> anyhow::Result<String> {
        let run = || Ok(Command::new(program).args(line.split(' ')).stdin(input).output()?);
        let output = self.within(end, run).with_context(|| format!("cannot run {program}"))?;
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        ensure!(output.status.success(), "{program} {line}: {said}");
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    /// The pair itself.
    pub fn plain(&self) -> Link {
        Link { name: super::NONE, address: address(0, 2), processes: Vec::new() }
    }

    /// A tunnel whose two ends `program` makes, each for the interface of the given name.
    pub fn tunnel(
        &self,
        name: &'static str,
        number: usize,
        program: impl Fn(&str) -> Command,
    ) -> anyhow::Result<Link> {
        let interface = |end| format!("fb{}-{number}{end}", std::process::id() % 100_000);
        let mut processes = Vec::new();
        for end in 0..2 {
            let mut command = program(&interface(end));
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            let child = self.within(end, || Ok(command.spawn()?))?;
            let socket = Path::new(SOCKETS).join(format!("{}.sock", interface(end)));
            let mut process = Process { child, socket };
            let start = Instant::now();
            while !process.socket.exists() || self.ip(end, &format!("link show {}", interface(end))).is_err()
            {
                ensure!(process.child.try_wait()?.is_none(), "its process ended at once");
                ensure!(
                    start.elapsed() < START_DEADLINE,
                    "it is not ready after {} s",
                    START_DEADLINE.as_secs()
                );
                std::thread::sleep(Duration::from_millis(20));
            }
            processes.push(process);
        }
        let keys = tempfile::tempdir()?;
        let mut public = Vec::new();
        for end in 0..2 {
            let private = self.command(end, "wg", "genkey")?;
            let file = keys.path().join(end.to_string());
            std::fs::write(&file, &private)?;
            let port = 7000 + 2 * number + end;
            let set = format!("set {} private-key {} listen-port {port}", interface(end), file.display());
            self.command(end, "wg", &set)?;
            // Not asked back: boringtun tells it only some time later.
            public.push(self.command_fed(end, "wg", "pubkey", File::open(&file)?.into())?);
        }
        for (end, other) in [(0, 1), (1, 0)] {
            let interface = interface(end);
            let (far, port) = (address(0, other + 1), 7000 + 2 * number + other);
            let (theirs, key) = (address(number, other + 1), &public[other]);
            self.command(
                end,
                "wg",
                &format!("set {interface} peer {key} endpoint [{far}]:{port} allowed-ips {theirs}/128"),
            )?;
            self.ip(end, &format!("addr add {}/64 dev {interface} nodad", address(number, end + 1)))?;
            self.ip(end, &format!("link set {interface} mtu {MTU} up"))?;
        }
        Ok(Link { name, address: address(number, 2), processes })
    }
}

impl Link {
    /// The processor time of both ends' processes; none without one.
    pub fn cpu(&self) -> Option<Duration> {
        let time = |process: &Process| {
            let pid = nix::unistd::Pid::from_raw(process.child.id().cast_signed());
            Some(Duration::from(nix::time::ClockId::pid_cpu_clock_id(pid).ok()?.now().ok()?))
        };
        if self.processes.is_empty() {
            return None;
        }
        self.processes.iter().map(time).sum()
    }
}

fn address(number: usize, host: usize) -> Ipv6Addr {
    Ipv6Addr::new(0xfdbe, 0, 0, number as u16, 0, 0, 0, host as u16)
}
