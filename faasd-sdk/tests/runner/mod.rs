//! A runner under test, driven over real sockets from the daemon's end.
#![allow(dead_code, reason = "each test program uses a part")]

use std::io::{BufRead, BufReader, IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output};
use std::time::{Duration, Instant};

use command_fds::{CommandFdExt, FdMapping};
use faasd_sdk::StatusPage;
use faasd_sdk::wire::{self, Kind, Record};
use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};

pub struct Runner {
    pub child: Child,
    pub socket: OwnedFd,
    pub status: StatusPage,
    pub listener: TcpListener,
    dir: PathBuf,
}

/// A program beside the runners, or the system's own, as it is in a container.
pub fn runner(file: &str) -> String {
    format!("{}/../faasd/src/runtime/runners/{file}", env!("CARGO_MANIFEST_DIR"))
}

pub fn program(name: &str) -> String {
    let system = format!("/usr/bin/{name}");
    if Path::new(&system).exists() { system } else { name.to_owned() }
}

/// A directory with one file.
pub fn directory(name: &str, file: &str, text: &str) -> PathBuf {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::write(dir.join(file), text).unwrap();
    dir
}

pub fn pair() -> (OwnedFd, OwnedFd, StatusPage, OwnedFd) {
    let (ours, theirs) =
        rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
            .unwrap();
    rustix::net::sockopt::set_socket_timeout(
        &ours,
        rustix::net::sockopt::Timeout::Recv,
        Some(Duration::from_secs(30)),
    )
    .unwrap();
    let (status, page) = StatusPage::create().unwrap();
    (ours, theirs, status, page)
}

impl Runner {
    /// Starts a runner that is handed connections.
    pub fn start(dir: PathBuf, command: Command) -> Self {
        let runner = Self::spawn(dir, command);
        assert_eq!(runner.heard(), Kind::Ready);
        assert!(runner.status.ready());
        runner
    }

    /// Starts one that says by itself how far it is.
    pub fn spawn(dir: PathBuf, mut command: Command) -> Self {
        let (socket, theirs, status, page) = pair();
        command
            .fd_mappings(vec![
                FdMapping { parent_fd: theirs, child_fd: wire::SOCKET_FD },
                FdMapping { parent_fd: page, child_fd: wire::STATUS_FD },
            ])
            .unwrap();
        let child = command.spawn().unwrap();
        drop(command);
        Self { child, socket, status, listener: TcpListener::bind("[::1]:0").unwrap(), dir }
    }

    pub fn say(&self, kind: Kind) {
        rustix::net::send(&self.socket, &wire::header(kind, 0), SendFlags::empty()).unwrap();
    }

    pub fn heard(&self) -> Kind {
        let mut bytes = [0; 64];
        let (_, length) = rustix::net::recv(&self.socket, &mut bytes, RecvFlags::empty()).unwrap();
        wire::Message::parse(&bytes[..length]).unwrap().kind
    }

    pub fn accept(&self) -> (TcpStream, TcpStream) {
        let client = TcpStream::connect(self.listener.local_addr().unwrap()).unwrap();
        client.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        (client, self.listener.accept().unwrap().0)
    }

    pub fn hand_over(&self, accepted: &[TcpStream]) {
        let mut bytes = wire::header(Kind::Connections, accepted.len() as u16).to_vec();
        accepted.iter().for_each(|_| bytes.extend(Record::default().encode()));
        let descriptors: Vec<_> = accepted.iter().map(AsFd::as_fd).collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(wire::CONNECTIONS_MAX))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        assert!(control.push(SendAncillaryMessage::ScmRights(&descriptors)));
        self.status.add_sent(accepted.len() as u64);
        rustix::net::sendmsg(&self.socket, &[IoSlice::new(&bytes)], &mut control, SendFlags::empty())
            .unwrap();
    }

    pub fn dial(&self) -> BufReader<TcpStream> {
        let (client, accepted) = self.accept();
        self.hand_over(&[accepted]);
        BufReader::new(client)
    }

    pub fn drain(mut self) -> Output {
        self.say(Kind::Drain);
        assert_eq!(self.heard(), Kind::Drained);
        let mut stderr = Vec::new();
        self.child.stderr.take().unwrap().read_to_end(&mut stderr).unwrap();
        let status = self.child.wait().unwrap();
        assert_eq!(self.status.in_flight(), 0);
        Output { status, stdout: Vec::new(), stderr }
    }

    /// Waits until the counters say so: the runner counts after it has answered.
    pub fn until(&self, what: impl Fn(&StatusPage) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while !what(&self.status) {
            assert!(Instant::now() < deadline, "{:?}", self.status);
            std::thread::yield_now();
        }
    }
}

impl Drop for Runner {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
}

pub fn answer(client: &mut BufReader<TcpStream>, head_only: bool) -> Answer {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        assert_ne!(client.read_line(&mut head).unwrap(), 0, "the connection ended after {head:?}");
    }
    let lower = head.to_ascii_lowercase();
    let field = |name: &str| lower.lines().find_map(|l| Some(l.strip_prefix(name)?.trim().to_owned()));
    let mut body = Vec::new();
    if field("transfer-encoding:").is_some() {
        loop {
            let mut line = String::new();
            client.read_line(&mut line).unwrap();
            let size = usize::from_str_radix(line.trim(), 16).unwrap();
            let mut chunk = vec![0; size + 2];
            client.read_exact(&mut chunk).unwrap();
            if size == 0 {
                break;
            }
            body.extend(&chunk[..size]);
        }
    } else if let Some(length) = field("content-length:").filter(|_| !head_only) {
        body = vec![0; length.parse().unwrap()];
        client.read_exact(&mut body).unwrap();
    }
    Answer { status: head[9..12].parse().unwrap(), head, body }
}

pub fn ask(client: &mut BufReader<TcpStream>, request: &str) -> Answer {
    client.get_mut().write_all(request.as_bytes()).unwrap();
    answer(client, request.starts_with("HEAD"))
}

pub fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n")
}
