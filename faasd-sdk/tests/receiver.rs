//! The receiver, driven from the daemon's end of a socket pair.
#![expect(clippy::unwrap_used, reason = "a helper fails as its test does")]

use std::io::{IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use faasd_sdk::wire::{self, Kind, Record, WireError};
use faasd_sdk::{Error, Event, Receiver, StatusPage};
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};

/// The daemon's end.
struct Daemon {
    socket: OwnedFd,
    status: StatusPage,
}

fn pair() -> (Daemon, Receiver) {
    let (socket, theirs) =
        rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
            .unwrap();
    let (status, page) = StatusPage::create().unwrap();
    (Daemon { socket, status }, Receiver::new(theirs, StatusPage::map(page).unwrap()))
}

impl Daemon {
    fn send(&self, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(128))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() {
            assert!(control.push(SendAncillaryMessage::ScmRights(descriptors)));
        }
        rustix::net::sendmsg(&self.socket, &[IoSlice::new(bytes)], &mut control, SendFlags::empty()).unwrap();
    }

    fn connections(&self, records: &[Record], descriptors: &[BorrowedFd<'_>]) {
        let mut bytes = wire::header(Kind::Connections, records.len() as u16).to_vec();
        records.iter().for_each(|r| bytes.extend(r.encode()));
        self.status.add_sent(records.len() as u64);
        self.send(&bytes, descriptors);
    }

    fn heard(&self) -> Kind {
        let mut bytes = [0; 64];
        let (_, length) =
            rustix::net::recv(&self.socket, &mut bytes, rustix::net::RecvFlags::DONTWAIT).unwrap();
        wire::Message::parse(&bytes[..length]).unwrap().kind
    }
}

/// A connected pair of TCP sockets: the client's end and the accepted one.
fn tcp() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("[::1]:0").unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (client, listener.accept().unwrap().0)
}

fn record(id: u64) -> Record {
    Record { id, ..Record::default() }
}

#[test]
fn connections_arrive_in_order_and_are_counted() {
    let (daemon, mut receiver) = pair();
    receiver.ready().unwrap();
    assert_eq!(daemon.heard(), Kind::Ready);
    assert!(daemon.status.ready());

    let mut pairs: Vec<_> = (0..wire::CONNECTIONS_MAX as u64).map(|id| (id, tcp())).collect();
    let records: Vec<_> = pairs.iter().map(|(id, _)| record(*id)).collect();
    let descriptors: Vec<_> = pairs.iter().map(|(_, (_, accepted))| accepted.as_fd()).collect();
    daemon.connections(&records, &descriptors);

    let Event::Connections(batch) = receiver.recv().unwrap() else { panic!("no connections") };
    assert_eq!(batch.len(), wire::CONNECTIONS_MAX);
    let taken: Vec<_> = batch.collect();
    assert_eq!((daemon.status.received(), daemon.status.in_flight()), (64, 64));
    for (connection, (id, (client, _))) in taken.into_iter().zip(&mut pairs) {
        assert_eq!(connection.record.id, *id);
        assert!(rustix::io::fcntl_getfd(&connection.stream).unwrap().contains(rustix::io::FdFlags::CLOEXEC));
        let (mut stream, guard) = connection.into_tcp();
        stream.write_all(&[*id as u8]).unwrap();
        drop(guard);
        let mut byte = [0];
        client.read_exact(&mut byte).unwrap();
        assert_eq!(u64::from(byte[0]), *id);
    }
    assert_eq!((daemon.status.finished(), daemon.status.in_flight()), (64, 0));
    assert!(receiver.try_recv().unwrap().is_none());
}

#[test]
fn what_is_not_taken_is_closed_and_counted() {
    let (daemon, mut receiver) = pair();
    let (mut client, accepted) = tcp();
    daemon.connections(&[record(1)], &[accepted.as_fd()]);
    drop(accepted);
    drop(receiver.recv().unwrap());
    assert_eq!(client.read(&mut [0]).unwrap(), 0);
    assert_eq!(daemon.status.in_flight(), 0);
}

#[test]
fn the_drain_waits_for_the_last_connection() {
    let (daemon, mut receiver) = pair();
    let (_client, accepted) = tcp();
    daemon.connections(&[record(1)], &[accepted.as_fd()]);
    daemon.send(&wire::header(Kind::Drain, 0), &[]);
    let Event::Connections(mut batch) = receiver.recv().unwrap() else { panic!("no connections") };
    let connection = batch.next().unwrap();
    drop(batch);
    assert!(matches!(receiver.recv().unwrap(), Event::Drain));
    let soon = Instant::now() + Duration::from_millis(20);
    assert!(matches!(receiver.drained(Some(soon)), Err(Error::StillOpen { open: 1 })));
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| receiver.drained(Some(Instant::now() + Duration::from_secs(10))));
        drop(connection);
        waiter.join().unwrap().unwrap();
    });
    assert_eq!(daemon.heard(), Kind::Drained);
}

#[test]
fn a_platform_that_is_gone_is_noticed() {
    let (daemon, mut receiver) = pair();
    drop(daemon);
    assert!(matches!(receiver.recv().unwrap(), Event::Closed));
    receiver.drained(None).unwrap();
}

#[test]
fn descriptors_without_a_record_are_dropped() {
    // There is room for 64 descriptors: the kernel closes the other six, and no record misses one.
    let (daemon, mut receiver) = pair();
    let (_client, accepted) = tcp();
    let records: Vec<_> = (0..64).map(record).collect();
    daemon.connections(&records, &vec![accepted.as_fd(); 70]);
    match receiver.recv() {
        Ok(Event::Connections(batch)) => assert_eq!(batch.len(), 64),
        other => panic!("{other:?}"),
    }
}

#[test]
fn malformed_messages_are_refused() {
    let (_client, accepted) = tcp();
    let fd = [accepted.as_fd()];
    let mut one = wire::header(Kind::Connections, 1).to_vec();
    one.extend(record(1).encode());
    let mut old = one.clone();
    old[0] = 2;
    type Case<'a> = (&'a [u8], &'a [BorrowedFd<'a>], fn(&WireError) -> bool);
    let cases: [Case<'_>; 6] = [
        (&one, &[], |e| matches!(e, WireError::Count { records: 1, descriptors: 0 })),
        (&one[..20], &fd, |e| matches!(e, WireError::Short(20))),
        (&old, &fd, |e| matches!(e, WireError::Version(2))),
        (&wire::header(Kind::Drain, 0), &fd, |e| {
            matches!(e, WireError::Count { records: 0, descriptors: 1 })
        }),
        (&wire::header(Kind::Ready, 0), &[], |e| matches!(e, WireError::Kind(3))),
        // Longer than any receiver has room for.
        (&[0; 4 * wire::MESSAGE_BYTES_MAX], &[], |e| matches!(e, WireError::Short(_))),
    ];
    for (bytes, descriptors, expected) in cases {
        let (daemon, mut receiver) = pair();
        daemon.send(bytes, descriptors);
        match receiver.recv() {
            Err(Error::Wire(e)) if expected(&e) => {}
            other => panic!("{} bytes: {other:?}", bytes.len()),
        }
        assert_eq!(daemon.status.received(), 0);
    }
}

/// Lowers the limit of open files in a process of its own, where the kernel then truncates.
#[test]
fn at_the_limit_of_open_files_what_is_lost_is_told() {
    const CHILD: &str = "FAASD_TEST_TRUNCATION";
    if std::env::var_os(CHILD).is_none() {
        let output = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "at_the_limit_of_open_files_what_is_lost_is_told", "--test-threads=1"])
            .env(CHILD, "1")
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        return;
    }
    let (daemon, mut receiver) = pair();
    let (_client, accepted) = tcp();
    let records: Vec<_> = (0..8).map(record).collect();
    daemon.connections(&records, &[accepted.as_fd(); 8]);
    let next: OwnedFd = accepted.as_fd().try_clone_to_owned().unwrap();
    let free = std::os::fd::AsRawFd::as_raw_fd(&next) as u64;
    drop(next);
    let limit = rustix::process::Rlimit { current: Some(free + 3), maximum: None };
    let maximum = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum;
    rustix::process::setrlimit(
        rustix::process::Resource::Nofile,
        rustix::process::Rlimit { maximum, ..limit },
    )
    .unwrap();
    let Event::Connections(batch) = receiver.recv().unwrap() else { panic!("no connections") };
    let kept: Vec<_> = batch.collect();
    assert!((1..8).contains(&kept.len()), "{}", kept.len());
    let lost = 8 - kept.len();
    assert!(matches!(receiver.recv(), Err(Error::Truncated { lost: told }) if told == lost));
    assert_eq!((daemon.status.received(), daemon.status.finished()), (8, lost as u64));
    assert_eq!(daemon.status.errors(), lost as u64);
    // And it goes on.
    drop(kept);
    daemon.connections(&[record(9)], &[accepted.as_fd()]);
    assert!(matches!(receiver.recv().unwrap(), Event::Connections(_)));
}
