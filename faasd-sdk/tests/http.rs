//! HTTP on connections that are handed over.
#![expect(clippy::unwrap_used, reason = "a helper fails as its test does")]

use std::convert::Infallible;
use std::io::{IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::thread::JoinHandle;
use std::time::Duration;

use faasd_sdk::http::{Full, Incoming, Request, Response, Server, StatusCode, upgrade};
use faasd_sdk::wire::{self, Kind, Record};
use faasd_sdk::{Error, Receiver, StatusPage};
use hyper_util::rt::TokioIo;
use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};

/// The daemon's end of an instance that runs in a thread.
struct Daemon {
    socket: OwnedFd,
    status: StatusPage,
    instance: Option<JoinHandle<Result<(), Error>>>,
    listener: TcpListener,
}

async fn service(
    mut request: Request<Incoming>,
) -> Result<Response<Full<faasd_sdk::http::Bytes>>, Infallible> {
    let mut response = Response::new(Full::from(format!("at {}\n", request.uri().path())));
    match request.uri().path() {
        "/upgrade" => {
            let upgrade = upgrade::on(&mut request);
            tokio::spawn(async {
                let (mut read, mut write) = tokio::io::split(TokioIo::new(upgrade.await.unwrap()));
                tokio::io::copy(&mut read, &mut write).await.unwrap();
            });
            response = Response::default();
            *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
            for (name, value) in [("connection", "upgrade"), ("upgrade", "echo")] {
                response.headers_mut().insert(name, value.parse().unwrap());
            }
        }
        "/panic" => panic!("as it was asked to"),
        "/503" => *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE,
        "/slow" => tokio::time::sleep(Duration::from_millis(100)).await,
        _ => {}
    }
    Ok(response)
}

impl Daemon {
    fn start() -> Self {
        let (socket, theirs) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
                .unwrap();
        let (status, page) = StatusPage::create().unwrap();
        let receiver = Receiver::new(theirs, StatusPage::map(page).unwrap());
        let instance = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(Server::new().serve(receiver, service))
        });
        let daemon = Self {
            socket,
            status,
            instance: Some(instance),
            listener: TcpListener::bind("[::1]:0").unwrap(),
        };
        assert_eq!(daemon.heard(), Kind::Ready);
        daemon
    }

    fn heard(&self) -> Kind {
        let mut bytes = [0; 64];
        let (_, length) = rustix::net::recv(&self.socket, &mut bytes, RecvFlags::empty()).unwrap();
        wire::Message::parse(&bytes[..length]).unwrap().kind
    }

    /// A client whose connection was handed over; `first` was sent before.
    fn dial(&self, first: &str) -> TcpStream {
        let mut client = TcpStream::connect(self.listener.local_addr().unwrap()).unwrap();
        client.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        client.write_all(first.as_bytes()).unwrap();
        let (accepted, _) = self.listener.accept().unwrap();
        let mut bytes = wire::header(Kind::Connections, 1).to_vec();
        bytes.extend(Record::default().encode());
        let descriptors = [accepted.as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        assert!(control.push(SendAncillaryMessage::ScmRights(&descriptors)));
        self.status.add_sent(1);
        rustix::net::sendmsg(&self.socket, &[IoSlice::new(&bytes)], &mut control, SendFlags::empty())
            .unwrap();
        client
    }

    fn drain(&mut self) -> Result<(), Error> {
        rustix::net::send(&self.socket, &wire::header(Kind::Drain, 0), SendFlags::empty()).unwrap();
        self.instance.take().unwrap().join().unwrap()
    }
}

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n")
}

/// Reads one answer with a body that ends in a newline; its head and body.
fn answer(client: &mut TcpStream) -> String {
    let mut text = Vec::new();
    let mut byte = [0];
    loop {
        client.read_exact(&mut byte).unwrap();
        text.push(byte[0]);
        let Some(head) = text.windows(4).position(|w| w == b"\r\n\r\n") else { continue };
        if byte[0] == b'\n' && text.len() > head + 4 {
            return String::from_utf8(text).unwrap();
        }
    }
}

#[test]
fn keep_alive_and_pipelined_requests_are_answered_in_order() {
    let mut daemon = Daemon::start();
    let mut client = daemon.dial(&get("/a"));
    assert!(answer(&mut client).ends_with("at /a\n"));
    client.write_all(get("/b").as_bytes()).unwrap();
    assert!(answer(&mut client).ends_with("at /b\n"));
    client.write_all([get("/c"), get("/slow"), get("/d")].concat().as_bytes()).unwrap();
    for path in ["/c", "/slow", "/d"] {
        assert!(answer(&mut client).ends_with(&format!("at {path}\n")));
    }
    assert_eq!((daemon.status.requests(), daemon.status.in_flight()), (5, 1));
    drop(client);
    daemon.drain().unwrap();
    assert_eq!(daemon.heard(), Kind::Drained);
    assert_eq!((daemon.status.received(), daemon.status.finished()), (1, 1));
}

#[test]
fn an_upgraded_connection_is_open_until_the_service_drops_it() {
    let mut daemon = Daemon::start();
    let mut client =
        daemon.dial("GET /upgrade HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\nearly");
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        client.read_exact(&mut byte).unwrap();
        head.extend(byte);
    }
    assert!(head.starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&head));
    let mut said = [0; 5];
    client.read_exact(&mut said).unwrap();
    assert_eq!(&said, b"early");
    let mut idle = daemon.dial(&get("/"));
    answer(&mut idle);
    rustix::net::send(&daemon.socket, &wire::header(Kind::Drain, 0), SendFlags::empty()).unwrap();
    // The drain has begun with the first answer that says that it is the last.
    while {
        idle.write_all(get("/").as_bytes()).unwrap();
        !answer(&mut idle).contains("connection: close")
    } {}
    client.write_all(b"still").unwrap();
    client.read_exact(&mut said).unwrap();
    assert_eq!(&said, b"still");
    assert!(daemon.status.in_flight() >= 1);
    drop(client);
    daemon.instance.take().unwrap().join().unwrap().unwrap();
    assert_eq!(daemon.heard(), Kind::Drained);
    assert_eq!(daemon.status.in_flight(), 0);
}

#[test]
fn a_panic_is_an_error_500_and_the_connection_goes_on() {
    let daemon = Daemon::start();
    let mut client = daemon.dial(&get("/panic"));
    assert!(answer(&mut client).starts_with("HTTP/1.1 500"));
    client.write_all(get("/503").as_bytes()).unwrap();
    assert!(answer(&mut client).starts_with("HTTP/1.1 503"));
    client.write_all(get("/ok").as_bytes()).unwrap();
    assert!(answer(&mut client).starts_with("HTTP/1.1 200"));
    assert_eq!((daemon.status.requests(), daemon.status.errors()), (3, 2));
}

#[test]
fn the_drain_answers_what_has_begun_and_once_more_what_is_idle() {
    let mut daemon = Daemon::start();
    let mut idle = daemon.dial(&get("/"));
    answer(&mut idle);
    let mut silent = daemon.dial(&get("/"));
    answer(&mut silent);
    let mut fresh = daemon.dial("");
    let mut slow = daemon.dial(&get("/slow"));
    let reader = std::thread::spawn(move || {
        let text = answer(&mut slow);
        let rest = slow.read(&mut [0]).unwrap();
        (text, rest)
    });
    rustix::net::send(&daemon.socket, &wire::header(Kind::Drain, 0), SendFlags::empty()).unwrap();
    // The drain has begun with the first answer that says that it is the last.
    while {
        idle.write_all(get("/").as_bytes()).unwrap();
        !answer(&mut idle).contains("connection: close")
    } {}
    assert_eq!(idle.read(&mut [0]).unwrap(), 0);
    fresh.write_all(get("/late").as_bytes()).unwrap();
    let text = answer(&mut fresh);
    assert!(text.contains("connection: close") && text.ends_with("at /late\n"), "{text}");
    assert_eq!(fresh.read(&mut [0]).unwrap(), 0);
    let (text, rest) = reader.join().unwrap();
    assert!(text.ends_with("at /slow\n"));
    assert_eq!(rest, 0);
    // Who asks for nothing more is waited for a while, and then closed.
    assert_eq!(silent.read(&mut [0]).unwrap(), 0);
    daemon.instance.take().unwrap().join().unwrap().unwrap();
    assert_eq!(daemon.heard(), Kind::Drained);
    assert_eq!(daemon.status.in_flight(), 0);
}

#[test]
fn a_connection_that_was_parked_serves_on() {
    let daemon = Daemon::start();
    let mut client = daemon.dial(&get("/a"));
    assert!(answer(&mut client).ends_with("at /a\n"));
    // Half a head, then a pause longer than two ticks of the server's clock, within which nothing happens.
    let mut half = daemon.dial("GET /half HTTP/1.1\r\nho");
    let paused = get("/slow").repeat(60);
    let mut clock = daemon.dial(&paused);
    for _ in 0..60 {
        answer(&mut clock);
    }
    half.write_all(b"st: x\r\n\r\n").unwrap();
    assert!(answer(&mut half).ends_with("at /half\n"));
    client.write_all(get("/b").as_bytes()).unwrap();
    assert!(answer(&mut client).ends_with("at /b\n"));
    assert_eq!(daemon.status.in_flight(), 3);
}
