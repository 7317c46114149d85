//! The acceptor on real sockets, with instances that are no containers: a thread, or nobody, at the far end.

use std::io::Read;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use faasd_sdk::wire;
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, socketpair, sockopt};

use super::*;
use crate::sys::scm;

const DEADLINE: Duration = Duration::from_secs(10);

struct Bed {
    acceptors: Option<Acceptors>,
    events: tokio::sync::mpsc::Receiver<Event>,
    address: SocketAddr,
    stats: Arc<Stats>,
    callers: Arc<Callers>,
}

/// The instance's end.
struct Far {
    socket: OwnedFd,
    page: Arc<StatusPage>,
}

impl Bed {
    fn new() -> Self {
        let (sender, events) = tokio::sync::mpsc::channel(16);
        let callers = Arc::new(Callers::default());
        let acceptors = Acceptors::start(1, &sender, &callers).unwrap();
        let listener = TcpListener::bind("[::1]:0").unwrap();
        let address = listener.local_addr().unwrap();
        let stats = Arc::new(Stats::default());
        let listener = OwnedFd::from(listener);
        acceptors
            .send(Command::AddFunction { slot: 0, listener: listener.into(), stats: Arc::clone(&stats) })
            .unwrap();
        Self { acceptors: Some(acceptors), events, address, stats, callers }
    }

    fn send(&self, command: Command) {
        self.acceptors.as_ref().unwrap().send(command).unwrap();
    }

    fn instance(&self, key: u32) -> Far {
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
        // Small enough to fill in a test; the kernel rounds up.
        sockopt::set_socket_send_buffer_size(&ours, 4096).unwrap();
        let page = Arc::new(StatusPage::create().unwrap().0);
        let receive_end = theirs.try_clone().unwrap();
        let instance = Instance { key, socket: ours, receive_end, page: Arc::clone(&page) };
        self.send(Command::AddInstance { slot: 0, instance });
        Far { socket: theirs, page }
    }

    fn connect(&self) -> TcpStream {
        let client = TcpStream::connect(self.address).unwrap();
        client.set_read_timeout(Some(DEADLINE)).unwrap();
        client
    }

    fn waiting(&mut self) -> Event {
        let deadline = Instant::now() + DEADLINE;
        loop {
            match self.events.try_recv() {
                Ok(event) => return event,
                Err(_) if Instant::now() < deadline => std::thread::yield_now(),
                Err(e) => panic!("no event: {e}"),
            }
        }
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        self.acceptors.take().unwrap().stop();
    }
}

impl Far {
    /// Receives until `count` connections are here.
    fn take(&self, count: usize) -> Vec<(Arrival, TcpStream)> {
        let mut all = Vec::new();
        let mut bytes = [0; wire::MESSAGE_BYTES_MAX];
        sockopt::set_socket_timeout(&self.socket, sockopt::Timeout::Recv, Some(DEADLINE)).unwrap();
        while all.len() < count {
            let (n, fds) = scm::recv(&self.socket, &mut bytes, RecvFlags::empty()).unwrap();
            let arrivals: Vec<_> = wire::Message::parse(&bytes[..n]).unwrap().arrivals().collect();
            all.extend(arrivals.into_iter().zip(fds.into_iter().map(TcpStream::from)));
        }
        all
    }
}

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !holds() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        std::thread::yield_now();
    }
}

#[test]
fn a_connection_waits_for_the_first_instance() {
    let mut bed = Bed::new();
    let mut client = bed.connect();
    assert!(matches!(bed.waiting(), Event::Waiting { slot: 0 }));
    // It waits in the kernel's queue: nothing was accepted.
    assert_eq!(bed.stats.accepted(), 0);
    let far = bed.instance(2);
    let taken = far.take(1);
    assert_eq!(taken[0].1.peer_addr().unwrap(), client.local_addr().unwrap());
    drop(taken);
    // The function's is the only copy: its close is the client's end of file.
    assert_eq!(client.read(&mut [0; 1]).unwrap(), 0);
    assert_eq!((bed.stats.handed_off(), far.page.sent()), (1, 1));
}

#[test]
fn the_least_loaded_instance_is_chosen() {
    let bed = Bed::new();
    let (a, b) = (bed.instance(2), bed.instance(4));
    let _first = (0..10).map(|_| bed.connect()).collect::<Vec<_>>();
    eventually("ten are handed over", || bed.stats.handed_off() == 10);
    assert_eq!((a.page.sent(), b.page.sent()), (5, 5));
    // One instance gets through its connections: the next ones are its own.
    b.page.add_finished(5);
    let _second = (0..5).map(|_| bed.connect()).collect::<Vec<_>>();
    eventually("five more are", || bed.stats.handed_off() == 15);
    assert_eq!((a.page.sent(), b.page.sent()), (5, 10));
    assert_eq!((a.take(5).len(), b.take(10).len()), (5, 10));
}

#[test]
fn what_a_dead_instance_had_not_received_goes_to_another() {
    let mut bed = Bed::new();
    let dead = bed.instance(2);
    let clients = (0..100).map(|_| bed.connect()).collect::<Vec<_>>();
    eventually("all are accepted", || bed.stats.accepted() == 100 || bed.stats.waiting() > 0);
    drop(dead);
    bed.send(Command::RemoveInstance { slot: 0, key: 2 });
    assert!(matches!(bed.waiting(), Event::Waiting { slot: 0 }));
    let heir = bed.instance(4);
    let taken = heir.take(100);
    let mut ports: Vec<_> = taken.iter().map(|(_, c)| c.peer_addr().unwrap().port()).collect();
    let mut expected: Vec<_> = clients.iter().map(|c| c.local_addr().unwrap().port()).collect();
    ports.sort_unstable();
    expected.sort_unstable();
    assert_eq!(ports, expected);
    let requeued = taken.iter().filter(|(arrival, _)| arrival.record.attempt == 1).count();
    assert_eq!(requeued as u64, bed.stats.requeued());
    assert!(requeued > 0);
}

#[test]
fn a_full_instance_is_given_more_when_it_has_room() {
    let bed = Bed::new();
    let far = bed.instance(2);
    // One after the other, so that each is a message of its own: the socket's buffer fills.
    let mut clients = Vec::new();
    while bed.stats.waiting() == 0 {
        assert!(clients.len() < 4000, "the instance never filled up");
        clients.push(bed.connect());
    }
    let more = (0..20).map(|_| bed.connect()).collect::<Vec<_>>();
    let total = clients.len() + more.len();
    assert_eq!(far.take(total).len(), total);
    eventually("the books are balanced", || {
        far.page.sent() == total as u64 && bed.stats.handed_off() == total as u64
    });
}

#[test]
fn a_draining_instance_gets_no_more_but_keeps_what_it_has() {
    let bed = Bed::new();
    let (old, new) = (bed.instance(2), bed.instance(4));
    bed.send(Command::DrainInstance { slot: 0, key: 2 });
    let _clients = (0..8).map(|_| bed.connect()).collect::<Vec<_>>();
    assert_eq!(new.take(8).len(), 8);
    assert_eq!(old.page.sent(), 0);
}

#[test]
fn who_leaves_last_gets_what_was_accepted() {
    let mut bed = Bed::new();
    let far = bed.instance(2);
    // Its socket is full, and more is accepted.
    let mut clients = Vec::new();
    while bed.stats.waiting() == 0 {
        assert!(clients.len() < 4000, "the instance never filled up");
        clients.push(bed.connect());
    }
    bed.send(Command::DrainInstance { slot: 0, key: 2 });
    // Nobody else takes connections from the acceptor.
    bed.send(Command::Yield { slot: 0, heir: None });
    let mut taken = 0;
    let event = loop {
        taken += far.take(bed.stats.accepted() as usize - taken).len();
        if let Ok(event) = bed.events.try_recv() {
            break event;
        }
    };
    assert!(matches!(event, Event::Left { key: 2 }), "{event:?}");
    let books = [bed.stats.accepted(), bed.stats.handed_off(), bed.stats.refused()];
    assert_eq!(books, [taken as u64, taken as u64, 0]);
    // What comes now is for somebody else.
    let _client = bed.connect();
    assert!(matches!(bed.waiting(), Event::Waiting { slot: 0 }));
}

#[test]
fn who_leaves_others_or_nothing_has_left_at_once() {
    let mut bed = Bed::new();
    let (_old, _new) = (bed.instance(2), bed.instance(4));
    for key in [2, 2, 4, 6] {
        bed.send(Command::DrainInstance { slot: 0, key });
        assert!(matches!(bed.waiting(), Event::Left { key: left } if left == key), "{key}");
    }
    bed.send(Command::DrainInstance { slot: 1, key: 8 });
    assert!(matches!(bed.waiting(), Event::Left { key: 8 }));
}

#[test]
fn who_cannot_be_served_is_refused_at_once() {
    let mut bed = Bed::new();
    let mut clients = (0..3).map(|_| bed.connect()).collect::<Vec<_>>();
    assert!(matches!(bed.waiting(), Event::Waiting { slot: 0 }));
    bed.send(Command::Refuse { slot: 0 });
    for client in &mut clients {
        assert_eq!(client.read(&mut [0; 1]).unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    }
    assert_eq!(bed.stats.refused(), 3);
    // The next connection is reported again, unless it came so soon that it was refused with the others.
    let deadline = Instant::now() + DEADLINE;
    let mut client = bed.connect();
    client.set_nonblocking(true).unwrap();
    while bed.events.try_recv().is_err() {
        assert!(Instant::now() < deadline, "neither reported nor refused");
        if client.read(&mut [0; 1]).is_err_and(|e| e.kind() == io::ErrorKind::ConnectionReset) {
            client = bed.connect();
            client.set_nonblocking(true).unwrap();
        }
        std::thread::yield_now();
    }
}

#[test]
fn a_slot_is_used_again() {
    let mut bed = Bed::new();
    let _far = bed.instance(2);
    bed.send(Command::RemoveFunction { slot: 0 });
    let listener = TcpListener::bind("[::1]:0").unwrap();
    bed.address = listener.local_addr().unwrap();
    let stats = Arc::new(Stats::default());
    bed.send(Command::AddFunction {
        slot: 0,
        listener: OwnedFd::from(listener).into(),
        stats: Arc::clone(&stats),
    });
    let _client = bed.connect();
    assert!(matches!(bed.waiting(), Event::Waiting { slot: 0 }));
    let far = bed.instance(4);
    assert_eq!(far.take(1).len(), 1);
    assert_eq!((stats.accepted(), bed.stats.accepted()), (1, 0));
}

/// What is said of a caller is the kernel's word for its address, and the name that it had when it was accepted.
#[test]
fn it_is_said_who_dialled_also_to_who_gets_it_later() {
    let mut bed = Bed::new();
    let localhost = std::net::Ipv6Addr::LOCALHOST;
    let first = bed.instance(2);
    let unknown = bed.connect();
    let caller = first.take(1)[0].0.caller;
    assert_eq!((caller.socket_address(), caller.name.as_str()), (unknown.local_addr().ok(), ""));
    bed.callers.set(localhost, "laptop");
    // One after the other, no more than its socket has room for: each of them is a message of its own.
    let clients: Vec<_> = (2..5)
        .map(|count| {
            let client = bed.connect();
            eventually("it is handed over", || bed.stats.handed_off() == count);
            client
        })
        .collect();
    bed.callers.set(localhost, "other");
    drop(first);
    bed.send(Command::RemoveInstance { slot: 0, key: 2 });
    assert!(matches!(bed.waiting(), Event::Waiting { slot: 0 }));
    let taken = bed.instance(4).take(3);
    assert!(taken.iter().all(|(arrival, _)| arrival.record.attempt == 1));
    assert!(taken.iter().all(|(arrival, _)| arrival.caller.name.as_str() == "laptop"));
    assert!(
        taken.iter().map(|(a, _)| a.caller.socket_address()).eq(clients.iter().map(|c| c.local_addr().ok()))
    );
    bed.callers.clear(localhost);
}
