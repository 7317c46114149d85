//! The bed itself.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use faasd::sys::netns::NetNs;
use serde_json::Value;

use crate::client::Client;
use crate::leaks::Traces;
use crate::wireguard;

/// No condition is waited for longer. An emulated machine is ten times slower.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// Waits until something holds.
///
/// # Errors
/// If it does not within [`DEADLINE`]; `what` says what was waited for.
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) -> Result<()> {
    let deadline = Instant::now() + DEADLINE;
    while !holds() {
        ensure!(Instant::now() < deadline, "not within {DEADLINE:?}: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// What is put before every daemon: `FAASD_TEST_WRAPPER`, words with spaces between them. So all that is tested is tried with
/// fewer rights, or under a debugger.
fn wrapper() -> Vec<String> {
    let words = std::env::var("FAASD_TEST_WRAPPER").unwrap_or_default();
    words.split_whitespace().map(str::to_owned).collect()
}

/// A program of this build: `faasd`, `faas`, `escape-function`, `examples/hello`.
///
/// # Panics
/// If this test program is not where cargo puts one.
#[must_use]
pub fn program(name: &str) -> PathBuf {
    if let Some(dir) = std::env::var_os("FAASD_BIN_DIR") {
        return Path::new(&dir).join(name);
    }
    #[expect(clippy::expect_used, reason = "without programs there is nothing to test")]
    let own = std::env::current_exe().expect("the test's own path");
    // target/PROFILE/deps/TEST
    own.ancestors().nth(2).map_or_else(|| PathBuf::from(name), |dir| dir.join(name))
}

/// The compiled function that most tests deploy: the SDK's example.
#[must_use]
pub fn hello_program() -> PathBuf {
    program("examples/hello")
}

/// What a program said.
#[derive(Clone, Debug)]
pub struct Output {
    pub status: Option<i32>,
    pub out: String,
    pub err: String,
}

impl Output {
    /// What was printed, if all went well.
    ///
    /// # Errors
    /// With everything that was said, if not.
    pub fn ok(self) -> Result<String> {
        ensure!(self.status == Some(0), "exit {:?}\n{}{}", self.status, self.out, self.err);
        Ok(self.out)
    }

    /// What was complained about, if it failed.
    ///
    /// # Errors
    /// If it did not fail.
    pub fn failed(self) -> Result<String> {
        ensure!(self.status != Some(0), "it went well, and should not have:\n{}", self.out);
        Ok(self.err)
    }
}

pub(crate) fn run(command: &mut Command) -> Result<Output> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("cannot run {command:?}"))?;
    Ok(Output {
        status: output.status.code(),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

/// A server and its clients.
#[derive(Debug)]
pub struct Bed {
    name: String,
    dir: tempfile::TempDir,
    daemon: Option<Child>,
    /// Written to `faasd.toml`.
    pub config: String,
    /// Put before the daemon's own command, such as `["env", "PATH=/nowhere"]`.
    pub wrapper: Vec<String>,
    before: Traces,
    /// How many there are, numbered from 1.
    clients: usize,
    joined: BTreeSet<usize>,
}

impl Bed {
    /// A server and one client. No daemon runs yet.
    ///
    /// # Errors
    /// If `ip` fails.
    pub fn new() -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        // Short: interfaces' names have 15 characters. Padded: no name is the beginning of another.
        let name = format!("ft{}x{:02}", std::process::id() % 100_000, NEXT.fetch_add(1, Ordering::Relaxed));
        let dir = tempfile::Builder::new().prefix(&format!("faasd-{name}-")).tempdir_in("/var/tmp")?;
        // Containers have users of their own, and must find their code below.
        fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
        let mut bed = Self {
            before: Traces::of(&name)?,
            name,
            dir,
            daemon: None,
            config: String::new(),
            wrapper: wrapper(),
            clients: 0,
            joined: BTreeSet::new(),
        };
        bed.add_namespace("s")?;
        bed.add_client()?;
        Ok(bed)
    }

    /// Another client, and a cable from the server to it. Returns its number.
    ///
    /// # Errors
    /// If `ip` fails.
    pub fn add_client(&mut self) -> Result<usize> {
        let number = self.clients + 1;
        ensure!(number < 10_000, "a bed has addresses for 9999 clients");
        self.clients = number;
        let client = self.client_at(number);
        let (s, c) = (self.netns("s"), self.netns(&client.named("c")));
        self.add_namespace(&client.named("c"))?;
        // Who makes a thousand connections a second has none of its 28,000 ports left after half a minute otherwise.
        client.within(|| fs::write("/proc/sys/net/ipv4/tcp_tw_reuse", "1"))?;
        // The ends of the first cable are called like their namespaces.
        let end = self.netns(&client.named("s"));
        self.ip(&["link", "add", &end, "netns", &s, "type", "veth", "peer", "name", &c, "netns", &c])?;
        for (ns, link, host) in [(&s, &end, 1), (&c, &c, 2)] {
            self.ip(&["-n", ns, "addr", "add", &format!("fd00:{number}::{host}/64"), "dev", link, "nodad"])?;
            self.ip(&["-n", ns, "link", "set", link, "up"])?;
        }
        Ok(number)
    }

    fn add_namespace(&self, which: &str) -> Result<()> {
        let ns = self.netns(which);
        self.ip(&["netns", "add", &ns])?;
        self.ip(&["-n", &ns, "link", "set", "lo", "up"])
    }

    /// A bed with a daemon that serves.
    ///
    /// # Errors
    /// If it does not begin to serve.
    pub fn serving() -> Result<Self> {
        let mut bed = Self::new()?;
        bed.serve()?;
        Ok(bed)
    }

    /// A bed with a daemon and a client that has joined.
    ///
    /// # Errors
    /// If either fails.
    pub fn joined() -> Result<Self> {
        let mut bed = Self::serving()?;
        bed.join()?;
        Ok(bed)
    }

    /// Starts the daemon and waits until it serves.
    ///
    /// # Errors
    /// If it ends or does not serve in time; its log is part of the error.
    pub fn serve(&mut self) -> Result<()> {
        self.start_daemon()?;
        let deadline = Instant::now() + DEADLINE;
        loop {
            if self.faas(&["ls", "-o", "json"])?.status == Some(0) {
                return Ok(());
            }
            let ended = match &mut self.daemon {
                Some(daemon) => daemon.try_wait()?,
                None => None,
            };
            if ended.is_some() || Instant::now() > deadline {
                bail!("the daemon does not serve ({ended:?}):\n{}", self.log());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Starts the daemon and waits until it gives up.
    ///
    /// # Errors
    /// If it serves instead.
    pub fn serve_in_vain(&mut self) -> Result<Output> {
        self.start_daemon()?;
        let Some(mut daemon) = self.daemon.take() else { bail!("no daemon") };
        let deadline = Instant::now() + DEADLINE;
        loop {
            if let Some(status) = daemon.try_wait()? {
                return Ok(Output { status: status.code(), out: String::new(), err: self.log() });
            }
            if Instant::now() > deadline {
                daemon.kill()?;
                daemon.wait()?;
                bail!("the daemon goes on:\n{}", self.log());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn start_daemon(&mut self) -> Result<()> {
        // A test that is about it says so itself.
        let choice = match self.config.contains("wireguard") {
            true => String::new(),
            false => format!("wireguard = \"{}\"\n", wireguard::choice()),
        };
        fs::write(self.path("faasd.toml"), choice + &self.config)?;
        let log = File::options().create(true).append(true).open(self.path("faasd.log"))?;
        let mut command = Command::new("nsenter");
        // Not `ip netns exec`, which mounts a new /sys over the cgroups.
        command.arg(format!("--net=/run/netns/{}", self.netns("s"))).args(&self.wrapper);
        command.arg(program("faasd")).arg("serve").args(self.places());
        command.args(["--endpoint", "[fd00:1::1]:51820"]).process_group(0);
        let daemon = command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn()?;
        self.daemon = Some(daemon);
        Ok(())
    }

    fn places(&self) -> Vec<String> {
        let place = |flag: &str, name: &str| [flag.to_owned(), self.path(name).display().to_string()];
        [
            place("--config", "faasd.toml"),
            place("--state", "state"),
            place("--run", "run"),
            place("--wireguard", "wireguard"),
            ["--instance".to_owned(), self.name.clone()],
        ]
        .concat()
    }

    /// The daemon's process id.
    ///
    /// # Panics
    /// If no daemon was started.
    #[must_use]
    #[expect(clippy::expect_used, reason = "a test that asks has started one")]
    pub fn daemon(&self) -> u32 {
        self.daemon.as_ref().expect("a daemon").id()
    }

    /// Ends the daemon by a signal and waits for its end.
    ///
    /// # Errors
    /// If it does not end.
    pub fn end_daemon(&mut self, signal: rustix::process::Signal) -> Result<Option<i32>> {
        let Some(mut daemon) = self.daemon.take() else { bail!("no daemon runs") };
        if let Some(pid) = rustix::process::Pid::from_raw(daemon.id() as i32) {
            rustix::process::kill_process(pid, signal)?;
        }
        let deadline = Instant::now() + DEADLINE;
        loop {
            if let Some(status) = daemon.try_wait()? {
                return Ok(status.code());
            }
            ensure!(Instant::now() < deadline, "the daemon goes on after {signal:?}:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Invites the first client, as `client`, and lets it join, by the real command.
    ///
    /// # Errors
    /// If it cannot.
    pub fn join(&mut self) -> Result<()> {
        self.join_as(1, "client", &[])
    }

    /// Invites a client under a name, with flags for the invitation, and lets it join.
    ///
    /// # Errors
    /// If it cannot.
    pub fn join_as(&mut self, number: usize, name: &str, flags: &[&str]) -> Result<()> {
        // The server's end of the client's own cable.
        let endpoint = format!("[fd00:{number}::1]:51820");
        let invite = ["vpn", "invite", name, "--endpoint", &endpoint];
        let invitation = self.faas(&[&invite, flags].concat())?.ok()?;
        let connect = ["connect", invitation.trim(), "--wireguard", wireguard::choice()];
        self.client_at(number).vpn(&connect)?.ok()?;
        self.joined.insert(number);
        Ok(())
    }

    /// Has a client leave, which the server is not told.
    ///
    /// # Errors
    /// If it cannot.
    pub fn leave(&mut self, number: usize) -> Result<()> {
        self.client_at(number).vpn(&["disconnect"])?.ok()?;
        self.joined.remove(&number);
        Ok(())
    }

    /// Runs `faas` on the server.
    ///
    /// # Errors
    /// If it cannot be run; that it fails is no error here.
    pub fn faas(&self, arguments: &[&str]) -> Result<Output> {
        run(Command::new(program("faas")).arg("--socket").arg(self.path("run/faasd.sock")).args(arguments))
    }

    /// Starts `faas` on the server, its output in a pipe.
    ///
    /// # Errors
    /// If it cannot be run.
    pub fn faas_beside(&self, arguments: &[&str]) -> io::Result<Child> {
        let mut command = Command::new(program("faas"));
        command.arg("--socket").arg(self.path("run/faasd.sock")).args(arguments);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()
    }

    /// What a verb prints as JSON.
    ///
    /// # Errors
    /// If it fails or prints something else.
    pub fn json(&self, arguments: &[&str]) -> Result<Value> {
        let out = self.faas(&[arguments, &["-o", "json"]].concat())?.ok()?;
        serde_json::from_str(&out).with_context(|| format!("no JSON: {out}"))
    }

    /// `faas describe` as JSON.
    ///
    /// # Errors
    /// If there is no such function.
    pub fn describe(&self, name: &str) -> Result<Value> {
        self.json(&["describe", name])
    }

    /// Writes a function's files and deploys them.
    ///
    /// # Errors
    /// If they cannot be written; that the deploy fails is told by the output.
    pub fn deploy(&self, name: &str, files: &[(&str, &[u8])]) -> Result<Output> {
        self.deploy_with(name, files, &[])
    }

    /// The same, with flags for the command.
    ///
    /// # Errors
    /// If they cannot be written; that the deploy fails is told by the output.
    pub fn deploy_with(&self, name: &str, files: &[(&str, &[u8])], flags: &[&str]) -> Result<Output> {
        let dir = self.path("functions").join(name);
        fs::create_dir_all(&dir)?;
        for (file, content) in files {
            let path = dir.join(file);
            fs::write(&path, content)?;
            let mode = if content.starts_with(b"\x7fELF") { 0o755 } else { 0o644 };
            fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(mode))?;
        }
        let dir = dir.display().to_string();
        self.faas(&[&["deploy", name, &dir], flags].concat())
    }

    /// Deploys a compiled program that speaks the hand-off protocol. `more` is appended to its `faas.toml`.
    ///
    /// # Errors
    /// If the program cannot be read.
    pub fn deploy_program(&self, name: &str, program: &Path, more: &str) -> Result<Output> {
        let code = fs::read(program).with_context(|| format!("cannot read {}", program.display()))?;
        let toml = format!("contract = \"fd\"\ncommand = [\"./program\"]\n{more}\n");
        self.deploy(name, &[("program", &code), ("faas.toml", toml.as_bytes())])
    }

    /// Deploys the SDK's example.
    ///
    /// # Errors
    /// If the deploy fails.
    pub fn deploy_hello(&self, name: &str, more: &str) -> Result<()> {
        self.deploy_program(name, &hello_program(), more)?.ok().map(drop)
    }

    /// The first client.
    #[must_use]
    pub fn client(&self) -> Client<'_> {
        self.client_at(1)
    }

    /// The client with this number, from 1.
    #[must_use]
    pub fn client_at(&self, number: usize) -> Client<'_> {
        Client { bed: self, number }
    }

    /// The ingress namespace of the running daemon.
    ///
    /// # Errors
    /// If there is none.
    pub fn ingress(&self) -> io::Result<NetNs> {
        NetNs::open(&self.path("run/ingress"))
    }

    /// The server's own namespace.
    ///
    /// # Errors
    /// If there is none.
    pub fn server(&self) -> io::Result<NetNs> {
        NetNs::open(&Path::new("/run/netns").join(self.netns("s")))
    }

    /// Everything that this bed has on the machine now, by kind.
    ///
    /// # Errors
    /// If the machine cannot be looked at.
    pub fn traces(&self) -> Result<Traces> {
        Traces::of(&self.name)
    }

    /// The daemon's name: cgroups and pins are called after it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// What the daemons of this bed have logged.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.path("faasd.log")).unwrap_or_default()
    }

    pub(crate) fn netns(&self, which: &str) -> String {
        format!("{}{which}", self.name)
    }

    fn ip(&self, arguments: &[&str]) -> Result<()> {
        run(Command::new("ip").args(arguments))?.ok().map(drop).with_context(|| format!("ip {arguments:?}"))
    }

    /// Ends everything, and fails if anything is left.
    ///
    /// # Errors
    /// What is left, by kind.
    pub fn finish(mut self) -> Result<()> {
        let done = self.tear_down();
        done?;
        // What ended last may not have been reaped yet.
        let compare = || Traces::of(&self.name)?.compare(&self.before);
        let clean = eventually("nothing is left over", || compare().is_ok());
        clean.and_then(|()| compare()).or_else(|_| compare())
    }

    fn tear_down(&mut self) -> Result<()> {
        let mut errors = Vec::new();
        let mut tried = |what: &str, result: Result<()>| {
            if let Err(e) = result {
                errors.push(format!("{what}: {e:#}"));
            }
        };
        for number in std::mem::take(&mut self.joined) {
            let left = self.client_at(number).vpn(&["disconnect"]);
            tried("disconnect", left.and_then(|o| o.ok().map(drop)));
        }
        if self.daemon.is_some() {
            tried("stop", self.end_daemon(rustix::process::Signal::TERM).map(drop));
        }
        let mut teardown = Command::new("nsenter");
        teardown.arg(format!("--net=/run/netns/{}", self.netns("s"))).arg(program("faasd"));
        tried("teardown", run(teardown.arg("teardown").args(self.places())).and_then(|o| o.ok().map(drop)));
        let clients = (1..=self.clients).map(|number| self.client_at(number).named("c"));
        for which in std::iter::once("s".to_owned()).chain(clients) {
            tried("netns", self.ip(&["netns", "del", &self.netns(&which)]));
        }
        ensure!(errors.is_empty(), "{}\n{}", errors.join("\n"), self.log());
        Ok(())
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        // After `finish` there is nothing to do; after a failed test nobody is to stumble over the rest.
        if Path::new("/run/netns").join(self.netns("s")).exists()
            && let Err(e) = self.tear_down()
        {
            eprintln!("{e:#}");
        }
    }
}
