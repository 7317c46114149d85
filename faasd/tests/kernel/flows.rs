//! What the kernel's books say of connections, while they are open and when they have ended.

use std::io::{Read, Write};
use std::net::Shutdown;

use faasd::core::address::FUNCTION_PREFIX;
use faasd::sys::bpf::{Flows, Route};
use faasd::sys::sock_diag::open::{self, Open};
use faasd_common::{Flow, RTT_BUCKETS};

use crate::access::{caller, subject};
use crate::bed::{Bed, accept, address, dial_as, peer, reset, wait_until};

const ASKED: usize = 300_000;
const ANSWERED: usize = 700_000;

/// Of the pair, if there is one.
fn flow(flows: &Flows, number: u32) -> Flow {
    let all = flows.ended().unwrap();
    // Kept by the function's own address, whichever of its revisions' was dialled.
    let function = FUNCTION_PREFIX.function_at(address()).unwrap();
    all.into_iter().find(|(n, to, _)| (*n, *to) == (number, function)).map_or_else(Flow::default, |f| f.2)
}

#[test]
#[ignore = "needs root"]
fn bytes_and_retransmits_are_those_of_the_connections() {
    let bed = Bed::new();
    let mut kernel = bed.load();
    let flows = Flows::open(&bed.pins()).unwrap();
    let listener = bed.listen();
    kernel.set_listener(1, 1, &listener).unwrap();
    kernel.steering.set_route(address(), crate::bed::PORT, Route::to(1)).unwrap();
    for (number, address) in [(7, peer(2)), (9, caller())] {
        kernel.access.set_subject(address, subject(number, &[])).unwrap();
    }
    let look = || open::list(bed.ingress.ns(), flows.marks()).unwrap().unwrap();
    assert_eq!(look(), []);

    let (mut client, mut server) = (bed.dial_from(peer(2), address()).unwrap(), accept(&listener));
    std::thread::scope(|scope| {
        scope.spawn(|| client.write_all(&vec![1; ASKED]).unwrap());
        server.read_exact(&mut vec![0; ASKED]).unwrap();
    });
    std::thread::scope(|scope| {
        scope.spawn(|| server.write_all(&vec![2; ANSWERED]).unwrap());
        client.read_exact(&mut vec![0; ANSWERED]).unwrap();
    });
    let is_read = |one: &Open| one.received_bytes == ASKED as u64 && one.sent_bytes == ANSWERED as u64;
    wait_until("the last byte is acknowledged", || matches!(&look()[..], [one] if is_read(one)));
    let seen = look()[0];
    assert_eq!((seen.local, seen.remote, seen.retransmits), (address(), peer(2), 0));
    assert!(seen.rtt_us > 0);
    assert_eq!(flow(&flows, 7), Flow::default());

    // The peer hears nothing for a while.
    let neighbour = |mac: &str| {
        bed.ip(bed.ingress.ns(), &format!("neighbour replace {} lladdr {mac} dev wg0", peer(2)));
    };
    neighbour("02:00:00:00:00:99");
    server.write_all(b"lost").unwrap();
    wait_until("it is sent again", || look()[0].retransmits > 0);
    neighbour("02:00:00:00:00:02");
    client.read_exact(&mut [0; 4]).unwrap();

    // The client closes first, and each end hears of it: no byte is counted that was none.
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(server.read(&mut [0]).unwrap(), 0);
    drop(server);
    assert_eq!(client.read(&mut [0]).unwrap(), 0);
    wait_until("its end is counted", || flow(&flows, 7).ended == 1);
    let ended = flow(&flows, 7);
    assert_eq!((ended.received, ended.sent), (ASKED as u64, ANSWERED as u64 + 4));
    assert!(ended.retransmits > 0 && ended.rtt_sum_us > 0, "{ended:?}");
    assert_eq!(ended.rtt.iter().sum::<u64>(), 1);
    assert_eq!(look(), []);

    // A function's: the end that it calls from is not the called one's, and has no part in it. This one is reset.
    let mut client = bed.inside(|| dial_as(caller(), address())).unwrap();
    let server = accept(&listener);
    client.write_all(b"call").unwrap();
    wait_until("it is seen", || matches!(&look()[..], [one] if one.received_bytes == 4));
    assert_eq!((look()[0].local, look()[0].remote), (address(), caller()));
    reset(client);
    wait_until("its end is counted", || flow(&flows, 9).ended == 1);
    assert_eq!((flow(&flows, 9).received, flow(&flows, 9).sent, flow(&flows, 7)), (4, 0, ended));
    assert_eq!(ended.rtt.len(), RTT_BUCKETS);
    drop((server, flows));
    bed.finish(kernel);
}
