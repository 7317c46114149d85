//! The machine: qemu, emulating every instruction, so that it runs wherever this runs, and inside another machine too.
//!
//! Its disks are never written to: what the machine writes goes to a file without a name, and is gone with it. It has no
//! network. Two lines lead in: the kernel's console, which is kept in a file, and the agent's (`guest/agent.sh`).

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::vm::image::Image;
use crate::{interrupt, run};

/// From power-on until the agent answers.
const BOOT_MAX: Duration = Duration::from_secs(240);

/// How much longer than its own limit a command may take to be ended inside.
const GRACE: Duration = Duration::from_secs(60);

/// How often a wait looks whether somebody has interrupted.
const LOOK: Duration = Duration::from_millis(200);

/// Lines that wait to be read.
const QUEUED_LINES: usize = 1024;

/// The byte before what the agent itself says (ASCII's record separator).
const MARK: char = '\u{1e}';

const MEMORY_MIB: u32 = 3072;

/// How long one run of `LIMIT COMMAND` may be, in bytes.
const COMMAND_BYTES_MAX: usize = 64 << 10;

/// A machine that runs, until it is dropped.
#[derive(Debug)]
pub struct Machine {
    qemu: Child,
    asked: Option<ChildStdin>,
    said: Receiver<String>,
    console: PathBuf,
    pub boot_time: Duration,
}

impl Machine {
    /// Boots it and waits until it takes commands.
    pub fn boot(image: &Image, payload: &Path, console: &Path) -> Result<Self> {
        Self::start(qemu(image, payload, console, ""), console)
    }

    /// The same, of one that may be rebooted: its disk keeps what is written for as long.
    pub fn boot_to_reboot(image: &Image, payload: &Path, console: &Path) -> Result<Self> {
        let mut command = qemu(image, payload, console, "");
        // The last word counts.
        command.args(["-action", "reboot=reset"]);
        Self::start(command, console)
    }

    fn start(mut command: Command, console: &Path) -> Result<Self> {
        let start = Instant::now();
        command.args(["-chardev", "stdio,id=agent,signal=off", "-device", "virtio-serial"]);
        command.args(["-device", "virtserialport,chardev=agent,name=faasd.agent"]);
        // A group of its own: Ctrl-C is for the task, which then ends the machine.
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).process_group(0);
        let mut qemu = command.spawn().with_context(|| format!("cannot run `{}`", run::line(&command)))?;
        let asked = qemu.stdin.take();
        let (sender, said) = sync_channel(QUEUED_LINES);
        let out = qemu.stdout.take().context("qemu's output")?;
        thread::spawn(move || {
            for line in BufReader::new(out).split(b'\n').map_while(Result::ok) {
                if sender.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                    break;
                }
            }
        });
        let mut machine = Self { qemu, asked, said, console: console.to_owned(), boot_time: Duration::ZERO };
        let ready =
            machine.until_marked(start + BOOT_MAX, &mut |_| {}).context("the machine does not boot")?;
        if ready != "ready" {
            bail!("the agent begins with {ready:?}");
        }
        machine.boot_time = start.elapsed();
        Ok(machine)
    }

    /// Runs a command in the machine, by bash and as root. What it prints goes to `line`, line by line; what comes back is
    /// its exit status, 124 if it took longer than `limit`.
    pub fn run(&mut self, command: &str, limit: Duration, line: &mut dyn FnMut(&str)) -> Result<i32> {
        if command.contains('\n') || command.len() > COMMAND_BYTES_MAX {
            bail!("a command is one line of at most {COMMAND_BYTES_MAX} bytes");
        }
        let asked = self.asked.as_mut().context("the machine is off")?;
        let sent = writeln!(asked, "{} {command}", limit.as_secs().max(1)).and_then(|()| asked.flush());
        sent.context("the machine is gone")?;
        let status = self.until_marked(Instant::now() + limit + GRACE, line)?;
        status.parse().with_context(|| format!("no exit status: {status:?}"))
    }

    /// The same for what must go well. What it printed is returned.
    pub fn succeed(&mut self, command: &str, limit: Duration) -> Result<String> {
        let mut said = String::new();
        let status = self.run(command, limit, &mut |line| {
            said.push_str(line);
            said.push('\n');
        })?;
        if status != 0 {
            bail!("in the machine, `{command}` failed with {status}:\n{said}");
        }
        Ok(said)
    }

    /// Shuts it down in order, and waits until it is up again and takes commands.
    pub fn reboot(&mut self) -> Result<()> {
        let start = Instant::now();
        // The agent's end is the machine's, unless told otherwise; what is told so is gone with the reboot.
        let stay = "mkdir -p /run/systemd/system/faasd-agent.service.d && printf '[Unit]\\nSuccessAction=none\\nFailureAction=none\\n' > /run/systemd/system/faasd-agent.service.d/stay.conf && systemctl daemon-reload && sync";
        self.succeed(stay, GRACE)?;
        let asked = self.asked.as_mut().context("the machine is off")?;
        let sent = writeln!(asked, "60 systemctl reboot").and_then(|()| asked.flush());
        sent.context("the machine is gone")?;
        // Exit statuses, as long as the first agent still says something.
        while self.until_marked(start + BOOT_MAX, &mut |_| {}).context("it does not come back")? != "ready" {}
        Ok(())
    }

    /// Passes lines on up to the agent's own.
    fn until_marked(&mut self, deadline: Instant, line: &mut dyn FnMut(&str)) -> Result<String> {
        loop {
            interrupt::check()?;
            match self.said.recv_timeout(LOOK) {
                Ok(text) => match text.split_once(MARK) {
                    Some((rest, own)) => {
                        if !rest.is_empty() {
                            line(rest);
                        }
                        return Ok(own.to_owned());
                    }
                    None => line(&text),
                },
                Err(RecvTimeoutError::Timeout) if Instant::now() < deadline => {}
                Err(RecvTimeoutError::Timeout) => bail!("it does not answer\n{}", self.last_words()),
                Err(RecvTimeoutError::Disconnected) => {
                    let status = self.qemu.wait()?;
                    bail!("it is off (qemu: {status})\n{}", self.last_words());
                }
            }
        }
    }

    /// The end of the console's log.
    fn last_words(&self) -> String {
        let text = fs::read(&self.console).unwrap_or_default();
        let text = String::from_utf8_lossy(&text).into_owned();
        let lines: Vec<&str> = text.lines().collect();
        let last = lines[lines.len().saturating_sub(25)..].join("\n");
        format!("{}:\n{last}", self.console.display())
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // Nothing that it has is kept, so nothing is shut down in order. It may have ended by itself.
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

/// A shell in the machine, on this terminal, until it is left.
pub fn shell(image: &Image, payload: &Path, console: &Path) -> Result<()> {
    let mut command = qemu(image, payload, console, "faasd.shell");
    // The terminal is raw while it runs; qemu puts it back.
    command.args(["-chardev", "stdio,id=shell,signal=off", "-serial", "chardev:shell"]);
    let status = command.status().with_context(|| format!("cannot run `{}`", run::line(&command)))?;
    if !status.success() {
        bail!("qemu: {status}");
    }
    Ok(())
}

/// What all machines have in common. It ends with this process, however that ends.
fn qemu(image: &Image, payload: &Path, console: &Path, words: &str) -> Command {
    let processors = thread::available_parallelism().map_or(2, |n| n.get().clamp(2, 4));
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--", "qemu-system-x86_64", "-nodefaults", "-display", "none"]);
    command.args(["-no-reboot", "-nic", "none", "-accel", "tcg,thread=multi,tb-size=512", "-cpu", "max"]);
    command.args(["-m", &MEMORY_MIB.to_string(), "-smp", &processors.to_string()]);
    // The kernel's own driver for NVMe needs no module, and so the machine no initial RAM disk.
    for (name, file) in [("root", &*image.disk), ("payload", payload)] {
        let file = file.display();
        command.args(["-drive", &format!("id={name},if=none,format=raw,snapshot=on,file={file}")]);
        command.args(["-device", &format!("nvme,serial={name},drive={name}")]);
    }
    command.arg("-kernel").arg(&image.kernel);
    command.arg("-append").arg(format!(
        "console=ttyS0 root=/dev/nvme0n1 rootwait rw panic=-1 mitigations=off systemd.show_status=false {words}"
    ));
    command.arg("-serial").arg(format!("file:{}", console.display()));
    command
}
