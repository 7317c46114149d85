//! Connections that are ended: those that are meant, and no other.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv6Addr, TcpStream};
use std::time::Duration;

use faasd::core::address::FUNCTION_PREFIX;
use faasd::sys::bpf::Route;
use faasd::sys::sock_diag::{self, DestroyError, Filter};

use crate::access::{caller, is_refused, subject};
use crate::bed::{Bed, PORT, accept, address, dial, dial_as, peer};

fn other() -> Ipv6Addr {
    FUNCTION_PREFIX.host(0x66 << 16)
}

/// Whether both ends can still talk. If not, both are told so at once.
fn is_open((client, server): &mut (TcpStream, TcpStream)) -> bool {
    let mut byte = [0];
    server.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let error = match client.write_all(b"?") {
        Ok(()) => match server.read(&mut byte) {
            Ok(length) => {
                assert_eq!(length, 1);
                return true;
            }
            Err(_) => client.take_error().unwrap().unwrap(),
        },
        Err(error) => error,
    };
    // The second is of the end that is here, the third of one that had heard the last of its server before.
    let told = [ErrorKind::ConnectionReset, ErrorKind::ConnectionAborted, ErrorKind::BrokenPipe];
    assert!(told.contains(&error.kind()), "{error}");
    assert_eq!(server.read(&mut byte).unwrap_or(0), 0);
    false
}

#[test]
#[ignore = "needs root"]
fn exactly_those_that_match_are_ended() {
    const OTHERS: usize = 3_000;
    let bed = Bed::new();
    let mut kernel = bed.load();
    let (listener, other_listener) = (bed.listen(), bed.ingress.listen(other(), PORT, 4096).unwrap());
    for (slot, address, listener) in [(1, address(), &listener), (2, other(), &other_listener)] {
        kernel.set_listener(slot, slot, listener).unwrap();
        kernel.steering.set_route(address, PORT, Route::to(slot)).unwrap();
    }
    for (number, address) in [(7, peer(2)), (8, peer(3)), (9, caller())] {
        kernel.access.set_subject(address, subject(number, &[])).unwrap();
    }
    let mut crowd: Vec<_> =
        bed.inside(|| (0..OTHERS).map(|_| (dial().unwrap(), accept(&listener))).collect());
    // Who to where, twice each.
    let mut pairs = Vec::new();
    for (source, to, listener) in [
        (peer(2), address(), &listener),
        (peer(2), other(), &other_listener),
        (peer(3), address(), &listener),
        (caller(), address(), &listener),
        (caller(), other(), &other_listener),
    ] {
        for _ in 0..2 {
            let client = if source == caller() {
                bed.inside(|| dial_as(source, to)).unwrap()
            } else {
                bed.dial_from(source, to).unwrap()
            };
            pairs.push((source, to, (client, accept(listener))));
        }
    }
    // One that nobody has accepted yet, and one that the server has shut down: both are alive.
    let waiting = bed.dial_from(peer(2), address()).unwrap();
    pairs[0].2.1.shutdown(std::net::Shutdown::Write).unwrap();

    let ns = bed.ingress.ns();
    let destroy = |remote, local| sock_diag::destroy(ns, &Filter { remote, local }).unwrap();
    let mut check = |ended: &dyn Fn(Ipv6Addr, Ipv6Addr) -> bool| {
        pairs.retain_mut(|(source, to, pair)| {
            let open = is_open(pair);
            assert_eq!(open, !ended(*source, *to), "{source} to {to}");
            open
        });
    };
    assert!(matches!(sock_diag::destroy(ns, &Filter::default()), Err(DestroyError::Everything)));
    check(&|_, _| false);

    // A pair: a peer and a function. Three of them, and the one that waits.
    assert_eq!(destroy(Some(peer(2)), Some(address())), 3);
    check(&|source, to| source == peer(2) && to == address());
    let mut waiting = waiting;
    assert_eq!(waiting.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    assert_eq!(destroy(Some(peer(2)), Some(address())), 0);
    // All of one subject's: those that it opened from here have an end here, too, of which it is the local one.
    assert_eq!(destroy(Some(peer(2)), None), 2);
    check(&|source, _| source == peer(2));
    assert_eq!(destroy(Some(caller()), Some(other())), 2);
    check(&|source, to| source == caller() && to == other());
    assert_eq!(destroy(None, Some(caller())), 2);
    check(&|source, _| source == caller());
    // All of one function's.
    assert_eq!(destroy(None, Some(other())), 0);
    check(&|_, _| false);
    assert_eq!(pairs.len(), 2);
    assert!(crowd.iter_mut().all(is_open));
    // Listeners listen on.
    assert!(!is_refused(|| bed.dial_from(peer(3), address())));
    assert!(!is_refused(|| bed.dial_from(peer(3), other())));
    drop(crowd);
    bed.finish(kernel);
}

#[test]
#[ignore = "needs root"]
fn nobody_slips_through_while_a_subject_is_revoked() {
    const ROUNDS: usize = 30;
    let bed = Bed::new();
    let mut kernel = bed.load();
    let listener = bed.listen();
    kernel.set_listener(1, 1, &listener).unwrap();
    kernel.steering.set_route(address(), PORT, Route::to(1)).unwrap();
    for _ in 0..ROUNDS {
        kernel.access.set_subject(caller(), subject(7, &[])).unwrap();
        let access = &mut kernel.access;
        std::thread::scope(|scope| {
            // Opens as many as it can until it is refused.
            let opening = scope.spawn(|| {
                bed.inside(|| {
                    let mut streams = Vec::new();
                    while let Ok(stream) = dial_as(caller(), address()) {
                        streams.push(stream);
                    }
                    streams
                })
            });
            // In the midst of it.
            let mut accepted = vec![accept(&listener), accept(&listener)];
            access.clear_subject(caller()).unwrap();
            sock_diag::destroy(bed.ingress.ns(), &Filter { remote: Some(caller()), local: None }).unwrap();
            let streams = opening.join().unwrap();
            assert!(streams.len() >= 2);
            for mut stream in streams {
                stream.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
                assert_eq!(stream.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
            }
            accepted.clear();
        });
        // Nothing of it waits for the next round.
        let left = sock_diag::destroy(bed.ingress.ns(), &Filter { remote: Some(caller()), local: None });
        assert_eq!(left.unwrap(), 0);
        rustix::net::shutdown(&listener, rustix::net::Shutdown::Read).unwrap();
        rustix::net::listen(&listener, 4096).unwrap();
        kernel.set_listener(1, 1, &listener).unwrap();
    }
    bed.finish(kernel);
}
