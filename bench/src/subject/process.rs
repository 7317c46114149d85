//! Starting processes where a measurement wants them, and ending them without fail.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::net::{IpAddr, TcpListener};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use command_fds::{CommandFdExt, FdMapping};
use nix::time::ClockId;
use nix::unistd::Pid;

use crate::host::Cpus;
use crate::load::{self, Destination, Placement, Scenario, Seat};
use crate::tunnel::Link;

/// How long a subject may take to come up.
const START_MAX: Duration = Duration::from_secs(10);
/// How long a process may take to end when asked.
const STOP_MAX: Duration = Duration::from_secs(3);
/// Bytes of a process's last words in an error.
const LOG_TAIL_BYTES: i64 = 2048;

/// Where subjects run.
#[derive(Debug)]
pub struct Site {
    /// This program, which is also the acceptors and the stand-in function.
    pub program: PathBuf,
    /// The function's program instead of the stand-in.
    pub hello: Option<PathBuf>,
    /// The CPUs of all servers.
    pub server_cpus: Option<Cpus>,
    /// The network namespace of the servers that we start.
    pub netns: Option<Arc<File>>,
    /// Where they are dialled from, if not from there.
    pub client_netns: Option<Arc<File>>,
    /// What lies between the two.
    pub tunnel: Option<Link>,
    /// What the load's sockets are marked with.
    pub mark: Option<u32>,
    /// Where they listen.
    pub ip: IpAddr,
    pub dir: tempfile::TempDir,
    /// Where the load comes from.
    pub seat: Seat,
}

impl Site {
    /// An address that nobody listens on.
    ///
    /// # Errors
    /// Those of `bind(2)`.
    pub fn free_destination(&self) -> anyhow::Result<Destination> {
        let ip = self.ip;
        let address = self.seat.run(Placement::Apart, self.netns.as_deref(), || {
            Ok(TcpListener::bind((ip, 0)).with_context(|| format!("cannot listen on {ip}"))?.local_addr()?)
        })?;
        let netns = self.client_netns.as_ref().or(self.netns.as_ref()).cloned();
        Ok(Destination { address, netns, mark: self.mark })
    }

    /// The function's program, which `FAAS_LISTEN` or its descriptors tell how to serve.
    #[must_use]
    pub fn hello(&self) -> (PathBuf, Vec<String>) {
        match &self.hello {
            Some(program) => (program.clone(), Vec::new()),
            None => (self.program.clone(), vec!["hello".to_owned()]),
        }
    }

    /// Starts a process on the servers' CPUs and in their network namespace. It ends with this one, even if this one
    /// is killed. The wrappers (util-linux) replace themselves, so that the child's id is the program's.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn spawn(
        &self,
        name: &str,
        program: &Path,
        args: &[String],
        env: &[(&str, String)],
        descriptors: Vec<(OwnedFd, i32)>,
    ) -> anyhow::Result<Process> {
        let log = self.dir.path().join(format!("{name}.log"));
        let output = File::options().create(true).append(true).read(true).open(&log)?;
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "TERM", "--"]);
        if let Some(netns) = &self.netns {
            // By our own descriptor: the namespace has no name.
            let path = format!("/proc/{}/fd/{}", std::process::id(), netns.as_raw_fd());
            command.arg("nsenter").arg(format!("--net={path}")).arg("--");
        }
        if let Some(cpus) = &self.server_cpus {
            command.args(["taskset", "-c", &cpus.to_string()]);
        }
        command.arg(program).args(args).stdin(Stdio::null());
        command.stdout(output.try_clone()?).stderr(output.try_clone()?);
        command.env_remove("FAAS_LISTEN").envs(env.iter().map(|(key, value)| (*key, value)));
        let mappings =
            descriptors.into_iter().map(|(parent_fd, child_fd)| FdMapping { parent_fd, child_fd }).collect();
        command.fd_mappings(mappings)?;
        let child = command.spawn().with_context(|| {
            format!(
                "cannot start {}: setpriv, nsenter and taskset (util-linux) are needed",
                program.display()
            )
        })?;
        Ok(Process { name: name.to_owned(), child, log: output })
    }

    /// Waits until something answers a request there.
    ///
    /// # Errors
    /// If a process ends meanwhile, or the time is over.
    pub fn await_answer(&self, to: &Destination, processes: &mut [Process]) -> anyhow::Result<()> {
        let deadline = Instant::now() + START_MAX;
        loop {
            processes.iter_mut().try_for_each(Process::check)?;
            let netns = to.netns.as_deref();
            let answer = self.seat.run(Placement::Apart, netns, || Ok(load::fetch(to, Scenario::New)?));
            match answer {
                Ok(_) => return Ok(()),
                Err(fault) if Instant::now() > deadline => {
                    let words: String = processes.iter_mut().map(Process::last_words).collect();
                    return Err(fault).with_context(|| {
                        format!("{} does not answer after {START_MAX:?}{words}", to.address)
                    });
                }
                Err(_) => std::thread::sleep(Duration::from_millis(10)),
            }
        }
    }
}

/// A child process, ended when dropped.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: File,
}

impl Process {
    #[must_use]
    pub fn pid(&self) -> Pid {
        // The kernel's process ids are below 2^22.
        Pid::from_raw(self.child.id() as i32)
    }

    /// Fails if it has ended.
    ///
    /// # Errors
    /// With what it said last.
    pub fn check(&mut self) -> anyhow::Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => {
                let words = self.last_words();
                bail!("{} ended with {status}{words}", self.name)
            }
        }
    }

    fn last_words(&mut self) -> String {
        let mut words = String::new();
        let length = self.log.metadata().map_or(0, |meta| meta.len() as i64);
        let read = self
            .log
            .seek(SeekFrom::End(-length.min(LOG_TAIL_BYTES)))
            .and_then(|_| self.log.read_to_string(&mut words));
        match read {
            Ok(_) if !words.trim().is_empty() => format!("; {} said:\n{}", self.name, words.trim()),
            _ => String::new(),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        // It may have ended already, which is as well.
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let deadline = Instant::now() + STOP_MAX;
        while matches!(self.child.try_wait(), Ok(None)) {
            if Instant::now() > deadline {
                let _ = self.child.kill();
                let _ = self.child.wait();
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// CPU time of a process, with all its threads, those that have ended included.
pub(super) fn cpu(pid: Pid) -> nix::Result<Duration> {
    Ok(ClockId::pid_cpu_clock_id(pid)?.now()?.into())
}

/// The children of a process.
pub(super) fn children(pid: Pid) -> anyhow::Result<Vec<Pid>> {
    let path = format!("/proc/{pid}/task/{pid}/children");
    let list = std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    list.split_whitespace().map(|pid| Ok(Pid::from_raw(pid.parse()?))).collect()
}
