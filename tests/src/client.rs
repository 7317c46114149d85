//! A client's side of the bed.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{Ipv6Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::Result;
use faasd::sys::netns::NetNs;

use crate::Bed;
use crate::bed::{DEADLINE, Output, program, run};

/// A machine that may be in the network: a namespace, with files of its own.
#[derive(Clone, Copy, Debug)]
pub struct Client<'a> {
    pub(crate) bed: &'a Bed,
    /// From 1.
    pub(crate) number: usize,
}

impl Client<'_> {
    /// Runs a program on the client, with the client's own resolv.conf.
    ///
    /// # Errors
    /// If it cannot be run; that it fails is no error here.
    pub fn run(&self, arguments: &[&str]) -> Result<Output> {
        run(&mut self.command(arguments)?)
    }

    /// Starts a program on the client, its output in pipes.
    ///
    /// # Errors
    /// If it cannot be run.
    pub fn beside(&self, arguments: &[&str]) -> Result<Child> {
        let mut command = self.command(arguments)?;
        Ok(command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?)
    }

    fn command(&self, arguments: &[&str]) -> Result<Command> {
        let resolv = self.bed.path(&self.named("resolv.conf"));
        if !resolv.exists() {
            fs::write(&resolv, "")?;
        }
        // A mount namespace of its own, in which the file lies over the machine's.
        const SCRIPT: &str = r#"mount --bind "$1" /etc/resolv.conf && exec nsenter --net="$2" -- "${@:3}""#;
        let mut command = Command::new("unshare");
        command.args(["--mount", "bash", "-c", SCRIPT, "bash"]).arg(&resolv);
        command.arg(format!("/run/netns/{}", self.bed.netns(&self.named("c")))).args(arguments);
        Ok(command)
    }

    /// Runs `faas` on the client, which knows of the server by its membership alone.
    ///
    /// # Errors
    /// If it cannot be run; that it fails is no error here.
    pub fn faas(&self, arguments: &[&str]) -> Result<Output> {
        let faas = program("faas").display().to_string();
        self.run(&[&[faas.as_str()], arguments].concat())
    }

    /// `faas vpn VERB` with the client's own places.
    ///
    /// # Errors
    /// If it cannot be run; that it fails is no error here.
    pub fn vpn(&self, arguments: &[&str]) -> Result<Output> {
        let state = self.state();
        let places = ["--state-dir", &state, "--interface", &self.bed.netns(&self.named("t"))];
        self.faas(&[&["vpn"], arguments, &places].concat())
    }

    /// Where the client keeps its membership.
    #[must_use]
    pub fn state(&self) -> String {
        self.bed.path(&self.named("client")).display().to_string()
    }

    /// The first client has what it has without a number.
    pub(crate) fn named(&self, what: &str) -> String {
        if self.number == 1 { what.to_owned() } else { format!("{what}{}", self.number) }
    }

    /// `curl` a URL.
    ///
    /// # Errors
    /// If it fails, also by a status of 400 and above.
    pub fn curl(&self, url: &str) -> Result<String> {
        self.run(&["curl", "-sS", "--fail-with-body", "--max-time", "20", url])?.ok()
    }

    /// The client's namespace.
    ///
    /// # Errors
    /// If there is none.
    pub fn netns(&self) -> io::Result<NetNs> {
        NetNs::open(&Path::new("/run/netns").join(self.bed.netns(&self.named("c"))))
    }

    /// Runs `work` on a thread in the client's namespace: its sockets are the client's.
    ///
    /// # Errors
    /// What `work` returns.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
        self.netns()?.run(work)
    }

    /// A TCP connection of the client's to a function.
    ///
    /// # Errors
    /// Those of `connect(2)`.
    pub fn connect(&self, address: Ipv6Addr, port: u16) -> io::Result<TcpStream> {
        self.within(|| {
            let stream = TcpStream::connect_timeout(&SocketAddr::from((address, port)), DEADLINE)?;
            stream.set_read_timeout(Some(DEADLINE))?;
            stream.set_nodelay(true)?;
            Ok(stream)
        })
    }
}

/// One request on a connection that is kept alive: the status and the body.
///
/// # Errors
/// Those of the socket, and of an answer that is none.
pub fn get(stream: &mut TcpStream, path: &str) -> io::Result<(u16, Vec<u8>)> {
    exchange(stream, path).map(|(status, body, _)| (status, body))
}

/// The same, and whether the answer says that it is the connection's last.
///
/// # Errors
/// As [`get`].
pub fn exchange(stream: &mut TcpStream, path: &str) -> io::Result<(u16, Vec<u8>, bool)> {
    // At once: a function may answer when it has seen the first line, and close.
    let request = format!("GET {path} HTTP/1.1\r\nHost: {}\r\n\r\n", stream.peer_addr()?);
    stream.write_all(request.as_bytes())?;
    let invalid = || io::Error::from(io::ErrorKind::InvalidData);
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).map_err(|_| invalid())?.to_ascii_lowercase();
    let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).ok_or_else(invalid)?;
    let length = head.lines().find_map(|l| l.strip_prefix("content-length:")?.trim().parse().ok());
    let mut body = vec![0; length.ok_or_else(invalid)?];
    stream.read_exact(&mut body)?;
    let is_last = head.lines().any(|line| line.trim_end() == "connection: close");
    Ok((status, body, is_last))
}
