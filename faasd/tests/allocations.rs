//! The path of a connection allocates nothing once its queues have their working size. A program of its own, since the
//! whole process's allocations are counted.

use std::alloc::System;
use std::net::{Ipv6Addr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use faasd::dataplane::{Acceptors, Callers, Command, Instance, Stats};
use faasd_sdk::status::StatusPage;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Fewer than an instance's socket holds by default, as nobody receives here: 278 messages.
const CONNECTIONS: u64 = 100;

#[test]
fn the_path_of_a_connection_allocates_nothing() {
    let (events, _inbox) = tokio::sync::mpsc::channel(16);
    // As many as a large installation has, with the client among them.
    let callers = Arc::new(Callers::default());
    let peer = |n: u128| (Ipv6Addr::from(0xfd00_u128 << 112 | n), format!("peer-{n}"));
    callers.replace((0..10_000).map(peer).chain([(Ipv6Addr::LOCALHOST, "laptop".to_owned())]));
    let acceptors = Acceptors::start(1, &events, &callers).unwrap();
    let listener = TcpListener::bind("[::1]:0").unwrap();
    let address = listener.local_addr().unwrap();
    let stats = Arc::new(Stats::default());
    let function =
        Command::AddFunction { slot: 0, listener: OwnedFd::from(listener).into(), stats: Arc::clone(&stats) };
    acceptors.send(function).unwrap();
    let (socket, receive_end) =
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
    let page = Arc::new(StatusPage::create().unwrap().0);
    let instance = Instance { key: 2, socket, receive_end, page };
    acceptors.send(Command::AddInstance { slot: 0, instance }).unwrap();

    let mut clients = Vec::with_capacity(2 * CONNECTIONS as usize);
    let mut hand_over = |until: u64| {
        while stats.accepted() < until {
            clients.push(TcpStream::connect(address).unwrap());
            let deadline = Instant::now() + Duration::from_secs(10);
            while stats.handed_off() < clients.len() as u64 {
                assert!(Instant::now() < deadline, "a connection was not handed over");
                std::hint::spin_loop();
            }
        }
    };
    hand_over(CONNECTIONS);
    let region = Region::new(ALLOCATOR);
    hand_over(2 * CONNECTIONS);
    let change = region.change();
    assert_eq!((change.allocations, change.reallocations), (0, 0), "{change:?}");
    acceptors.stop();
}
