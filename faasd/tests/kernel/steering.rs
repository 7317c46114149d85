//! How connections are shared out, and counted while they live.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use faasd::sys::bpf::{Branch, Kernel, Owner, Route};
use faasd_common::Decision;
use rustix::event::{PollFd, PollFlags, Timespec};

use crate::bed::{Bed, DEADLINE, PORT, Server, accept, address, dial, reset, see_off, wait_until};

/// Connects `count` times, and says how often it was refused. The client closes first and keeps the TIME_WAIT: a SYN that
/// meets one at the server's end is not refused, but told to come again.
fn dials(bed: &Bed, count: u64) -> u64 {
    let each = |_: &u64| match dial() {
        Ok(_) => false,
        Err(e) if e.kind() == ErrorKind::ConnectionRefused => true,
        Err(e) => panic!("{e}"),
    };
    bed.inside(|| (0..count).filter(each).count() as u64)
}

/// Whether `found` of `all` is a share of `percent` by chance: within five standard deviations.
fn is_share(found: u64, all: u64, percent: u64) -> bool {
    let (all, share) = (all as f64, percent as f64 / 100.0);
    (found as f64 - all * share).abs() < 5.0 * (all * share * (1.0 - share)).sqrt()
}

#[test]
#[ignore = "needs root"]
fn connections_are_shared_out_by_weight() {
    const ALL: u64 = 10_000;
    let bed = Bed::new();
    let mut kernel = bed.load();
    let (mut stable, canary) =
        (Server::start(bed.listen(), 1, see_off), Server::start(bed.listen(), 1, see_off));
    // The route has the number 1, and so has no branch of it: one of them is served by its own listener, one is seated.
    kernel.set_listener(2, 1, &stable.listener).unwrap();
    kernel.set_seat(9, 1, &canary.listener).unwrap();
    kernel.steering.set_pool(3, &[9]).unwrap();
    let branches = |shed| [Branch { slot: 2, weight: 90, shed: false }, Branch { slot: 3, weight: 10, shed }];
    kernel.steering.set_split(1, &branches(false)).unwrap();
    kernel.steering.set_route(address(), PORT, Route { flags: Route::SPLIT, ..Route::to(1) }).unwrap();
    assert_eq!(kernel.steering.splits().unwrap(), [(1, branches(false).to_vec())]);

    assert_eq!(dials(&bed, ALL), 0);
    wait_until("all are accepted", || stable.accepted() + canary.accepted() == ALL);
    assert!(is_share(canary.accepted(), ALL, 10), "{} of {ALL}", canary.accepted());
    // What comes late for a connection that is gone is steered and counted like a new one: these counts are no less.
    let counted = [kernel.steered(2), kernel.steered(3), kernel.warm(3)].map(Result::unwrap);
    let accepted = [stable.accepted(), canary.accepted(), canary.accepted()];
    assert!(counted.iter().zip(accepted).all(|(counted, accepted)| *counted >= accepted), "{counted:?}");
    assert_eq!(kernel.warm(2).unwrap(), 0);

    // A branch that is shed refuses its share, and none but its share.
    let before = stable.accepted();
    kernel.steering.set_split(1, &branches(true)).unwrap();
    let refused = dials(&bed, ALL);
    assert!(is_share(refused, ALL, 10), "{refused} of {ALL}");
    wait_until("the others are accepted", || stable.accepted() - before == ALL - refused);
    let decision = |kernel: &Kernel, which: Decision| kernel.decisions().unwrap()[which as usize];
    assert!(decision(&kernel, Decision::Shed) >= refused);

    // Where nobody listens, the other branch takes it: all of it, whichever it is.
    kernel.steering.set_split(1, &branches(false)).unwrap();
    stable.stop();
    let before = canary.accepted();
    assert_eq!(dials(&bed, 500), 0);
    wait_until("all are accepted", || canary.accepted() - before == 500);
    stable = Server::start(bed.listen(), 1, see_off);
    kernel.set_listener(2, 1, &stable.listener).unwrap();
    canary.stop();
    assert_eq!(dials(&bed, 500), 0);
    wait_until("all are accepted", || stable.accepted() == 500);
    // But not what is shed.
    kernel.steering.set_split(1, &[Branch { slot: 2, weight: 1, shed: true }, branches(false)[1]]).unwrap();
    assert_eq!(dials(&bed, 100), 100);
    assert_eq!(stable.accepted(), 500);

    // A share that is gone leaves the route's own slot, where nobody is.
    kernel.steering.clear_split(1).unwrap();
    assert_eq!(kernel.steering.splits().unwrap(), []);
    let before = decision(&kernel, Decision::NoListener);
    assert_eq!(dials(&bed, 10), 10);
    assert!(decision(&kernel, Decision::NoListener) - before >= 10);

    // A route refuses and takes on again as its flags say.
    kernel.steering.set_route(address(), PORT, Route { flags: Route::SHED, ..Route::to(2) }).unwrap();
    let before = decision(&kernel, Decision::Shed);
    let start = Instant::now();
    assert_eq!(dials(&bed, 100), 100);
    assert!(start.elapsed() < Duration::from_secs(1), "by RST, not by a timeout: {:?}", start.elapsed());
    assert!(decision(&kernel, Decision::Shed) - before >= 100);
    kernel.steering.set_route(address(), PORT, Route::to(2)).unwrap();
    assert_eq!(dials(&bed, 10), 0);
    stable.stop();
    bed.finish(kernel);
}

/// The ways in which a connection comes to its end. The first byte says which.
const ENDS: &[u8] = b"csxhra";

/// One connection, from its client's side.
fn visit(end: u8) {
    let mut stream = dial().unwrap();
    if end == b'a' {
        // Before anybody has accepted it, as often as not.
        return reset(stream);
    }
    stream.write_all(&[end]).unwrap();
    match end {
        b'c' => drop(stream),
        b'r' => reset(stream),
        b's' => assert_eq!(stream.read(&mut [0]).unwrap(), 0),
        b'x' => assert_eq!(stream.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset),
        b'h' => {
            stream.shutdown(Shutdown::Write).unwrap();
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).unwrap();
            assert_eq!(answer, b"heard");
        }
        other => panic!("{other}"),
    }
}

/// And from its server's.
fn serve(mut stream: TcpStream, kept: &Mutex<Vec<TcpStream>>) {
    let mut end = [0];
    if !stream.read(&mut end).is_ok_and(|bytes| bytes == 1) {
        return;
    }
    match end[0] {
        b's' => drop(stream),
        b'x' => reset(stream),
        b'k' => kept.lock().unwrap().push(stream),
        b'h' => {
            assert_eq!(stream.read(&mut end).unwrap(), 0);
            stream.write_all(b"heard").unwrap();
        }
        // The client's end: FIN or RST.
        _ => while stream.read(&mut end).is_ok_and(|bytes| bytes > 0) {},
    }
}

#[test]
#[ignore = "needs root"]
fn live_connections_are_counted_exactly() {
    const CLIENTS: usize = 4;
    const EACH_TIME: u64 = 2_000;
    const KEPT: u64 = 10;
    let bed = Bed::new();
    let mut kernel = bed.load();
    let kept = Arc::new(Mutex::new(Vec::new()));
    let server = {
        let kept = Arc::clone(&kept);
        Server::start(bed.listen(), 4, move |stream| serve(stream, &kept))
    };
    kernel.set_seat(5, 4, &server.listener).unwrap();
    kernel.steering.set_pool(4, &[5]).unwrap();
    kernel.steering.set_route(address(), PORT, Route::to(4)).unwrap();

    // Some stay, so that none that is counted as ended twice is hidden below zero.
    let stay = || {
        let mut stream = dial().unwrap();
        stream.write_all(b"k").unwrap();
        stream
    };
    let staying: Vec<_> = bed.inside(|| (0..KEPT).map(|_| stay()).collect());
    wait_until("all that stay are kept", || kept.lock().unwrap().len() as u64 == KEPT);
    assert_eq!(kernel.live(5).unwrap(), KEPT);

    let (done, stop, start) = (AtomicU64::new(0), AtomicBool::new(false), Instant::now());
    kernel = thread::scope(|scope| {
        for client in 0..CLIENTS {
            let (bed, done, stop) = (&bed, &done, &stop);
            let goes_on = move || !stop.load(Ordering::Relaxed) && start.elapsed() < 3 * DEADLINE;
            scope.spawn(move || {
                bed.inside(|| {
                    for end in ENDS.iter().cycle().skip(client).take_while(|_| goes_on()) {
                        visit(*end);
                        done.fetch_add(1, Ordering::Relaxed);
                    }
                });
            });
        }
        // A new daemon takes over meanwhile, three times. Its predecessor's programs stay attached beside its own.
        for takeover in 0..3 {
            drop(kernel);
            if takeover > 0 {
                bed.drop_kept_programs();
            }
            bed.keep_programs();
            kernel = bed.load();
            // What it finds seated it seats again, where it was.
            let owner = kernel.owner_of(&server.listener).unwrap();
            assert_eq!(owner, Some(Owner { slot: 4, seat: 5, counted: 0 }));
            kernel.set_seat(5, 4, &server.listener).unwrap();
            let before = done.load(Ordering::Relaxed);
            wait_until("many more came", || done.load(Ordering::Relaxed) >= before + EACH_TIME);
            assert!(kernel.live(5).unwrap() >= KEPT);
        }
        stop.store(true, Ordering::Relaxed);
        kernel
    });
    let all = done.load(Ordering::Relaxed) + KEPT;
    // As above.
    assert!(kernel.warm(4).unwrap() >= all);
    // While two programs are attached, one of them decides.
    assert_eq!(kernel.decisions().unwrap()[Decision::NoListener as usize], 0);
    wait_until("those that ended are counted", || kernel.live(5).unwrap() <= KEPT);
    wait_until("all are accepted", || server.accepted() == all);
    assert_eq!(kernel.live(5).unwrap(), KEPT);

    // A half-closed connection is live, and one that was marked anew is still counted.
    for stream in &staying {
        stream.shutdown(Shutdown::Write).unwrap();
    }
    let streams = std::mem::take(&mut *kept.lock().unwrap());
    for mut stream in &streams {
        assert_eq!(stream.read(&mut [0]).unwrap(), 0);
        kernel.mark(8, stream).unwrap();
        assert_eq!(
            kernel.owner_of(stream).unwrap(),
            Some(Owner { slot: 8, seat: 5, counted: Owner::OPENED })
        );
    }
    assert_eq!(kernel.live(5).unwrap(), KEPT);
    drop(streams);
    assert_eq!(kernel.live(5).unwrap(), 0);
    drop(staying);
    server.stop();
    bed.finish(kernel);
}

#[test]
#[ignore = "needs root"]
fn a_connection_counts_where_it_was_made() {
    let bed = Bed::new();
    let mut kernel = bed.load();
    let (waiting, instance) = (bed.listen(), bed.listen());
    kernel.steering.set_route(address(), PORT, Route::to(4)).unwrap();
    kernel.set_listener(4, 4, &waiting).unwrap();
    let leave = |listener: &OwnedFd| rustix::net::shutdown(listener, rustix::net::Shutdown::Read).unwrap();

    // A connection whose listener has no seat is counted in none.
    let client = bed.inside(|| dial().unwrap());
    let connection = accept(&waiting);
    let not_counted = Owner { slot: 4, seat: Owner::NO_SEAT, counted: Owner::OPENED };
    assert_eq!(kernel.owner_of(&connection).unwrap(), Some(not_counted));
    drop((client, connection));

    // Those that waited, and went to an instance, are counted where they waited.
    kernel.count_at(6, 4, &waiting).unwrap();
    kernel.set_listener(4, 4, &waiting).unwrap();
    let clients: Vec<_> = bed.inside(|| (0..3).map(|_| dial().unwrap()).collect());
    wait_until("they wait", || kernel.live(6).unwrap() == 3);
    kernel.set_seat(5, 4, &instance).unwrap();
    leave(&waiting);
    let connections: Vec<_> = clients.iter().map(|_| accept(&instance)).collect();
    assert_eq!((kernel.live(6).unwrap(), kernel.live(5).unwrap()), (3, 0));
    drop(connections);
    drop(clients);
    wait_until("they are gone", || kernel.live(6).unwrap() == 0);

    // One that was a mere request when its listener went is the other's from the start. The kernel holds it back at
    // that stage until data comes.
    let defer = "import socket; socket.socket(fileno=0).setsockopt(6, socket.TCP_DEFER_ACCEPT, 60)";
    let mut python = Command::new("python3");
    python.args(["-c", defer]).stdin(waiting.as_fd().try_clone_to_owned().unwrap());
    assert!(python.status().unwrap().success());
    rustix::net::listen(&waiting, 128).unwrap();
    kernel.set_listener(4, 4, &waiting).unwrap();
    let mut client = bed.inside(|| dial().unwrap());
    assert_eq!((kernel.live(6).unwrap(), kernel.live(5).unwrap()), (0, 0));
    leave(&waiting);
    client.write_all(b"k").unwrap();
    let connection = accept(&instance);
    assert_eq!((kernel.live(6).unwrap(), kernel.live(5).unwrap()), (0, 1));

    // Taken apart and closed: it ends once.
    rustix::net::connect_unspec(&connection).unwrap();
    assert_eq!((kernel.live(6).unwrap(), kernel.live(5).unwrap()), (0, 0));
    let ended = Owner { slot: 4, seat: 5, counted: Owner::CLOSED };
    assert_eq!(kernel.owner_of(&connection).unwrap(), Some(ended));
    kernel.steering.set_pool(4, &[5]).unwrap();
    let other = bed.inside(|| dial().unwrap());
    let second = accept(&instance);
    drop((connection, client));
    assert_eq!(kernel.live(5).unwrap(), 1);
    drop((other, second));
    wait_until("it is gone", || kernel.live(5).unwrap() == 0);
    bed.finish(kernel);
}

/// An instance by hand: a listener from which the test accepts.
struct Seat(OwnedFd);

impl Seat {
    /// The next connection of a client's, and the place of the seat that it came to.
    fn next(bed: &Bed, seats: &[Self]) -> (usize, TcpStream, TcpStream) {
        let client = bed.inside(|| dial().unwrap());
        let came = |(place, seat): (usize, &Self)| {
            let mut poll = [PollFd::new(&seat.0, PollFlags::IN)];
            rustix::event::poll(&mut poll, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).unwrap();
            // One that has left hangs up as well.
            (poll[0].revents() == PollFlags::IN).then(|| (place, accept(&seat.0)))
        };
        // By loopback the handshake is through when `connect` returns.
        let (place, server) = seats.iter().enumerate().find_map(came).expect("it came to no seat");
        (place, client, server)
    }
}

#[test]
#[ignore = "needs root"]
fn the_instance_with_the_fewest_connections_is_given_the_next() {
    const SEATS: usize = 5;
    let bed = Bed::new();
    let mut kernel = bed.load();
    let seats: Vec<_> = (0..SEATS).map(|_| Seat(bed.listen())).collect();
    let numbers: Vec<u32> = (10..).take(SEATS).collect();
    for (seat, number) in seats.iter().zip(&numbers) {
        kernel.set_seat(*number, 4, &seat.0).unwrap();
    }
    kernel.steering.set_route(address(), PORT, Route::to(4)).unwrap();
    // One is busy before the others are there.
    kernel.steering.set_pool(4, &numbers[..1]).unwrap();
    let mut open: Vec<Vec<_>> = (0..SEATS).map(|_| Vec::new()).collect();
    let take = |open: &mut Vec<Vec<_>>| {
        let (place, client, server) = Seat::next(&bed, &seats);
        open[place].push((client, server));
        place
    };
    (0..6).for_each(|_| assert_eq!(take(&mut open), 0));
    // The others are given all until each has as many, and none of them is ever two ahead of another.
    kernel.steering.set_pool(4, &numbers).unwrap();
    for _ in 0..6 * (SEATS - 1) {
        assert_ne!(take(&mut open), 0);
        let counts = open[1..].iter().map(Vec::len);
        assert!(counts.clone().max().unwrap() - counts.min().unwrap() <= 1);
    }
    assert!(open.iter().all(|connections| connections.len() == 6));
    for (number, connections) in numbers.iter().zip(&open) {
        assert_eq!(kernel.live(*number).unwrap(), connections.len() as u64);
    }
    // Ends count at once: whoever has lost two is given the next two.
    open[3].truncate(4);
    wait_until("two have ended", || kernel.live(numbers[3]).unwrap() == 4);
    assert_eq!([take(&mut open), take(&mut open)], [3, 3]);
    // The counts are the kernel's: another daemon goes on with them.
    open[2].truncate(3);
    drop(kernel);
    kernel = bed.load();
    wait_until("three have ended", || kernel.live(numbers[2]).unwrap() == 3);
    assert_eq!([take(&mut open), take(&mut open), take(&mut open)], [2, 2, 2]);
    // One that dies is passed over, however few it has, and leaves no connection astray.
    open[1].clear();
    wait_until("all have ended", || kernel.live(numbers[1]).unwrap() == 0);
    rustix::net::shutdown(&seats[1].0, rustix::net::Shutdown::Read).unwrap();
    let before: usize = open.iter().map(Vec::len).sum();
    for _ in 0..SEATS - 1 {
        assert_ne!(take(&mut open), 1);
    }
    assert_eq!(open.iter().map(Vec::len).sum::<usize>(), before + SEATS - 1);
    drop(open);
    wait_until("nobody has any", || numbers.iter().all(|number| kernel.live(*number).unwrap() == 0));
    bed.finish(kernel);
}

/// Of more instances than are compared, the busy ones are mostly avoided and none is left out.
#[test]
#[ignore = "needs root"]
fn a_large_pool_is_used_as_a_whole() {
    const SEATS: usize = faasd_common::POOL_SEATS_MAX;
    let bed = Bed::new();
    let mut kernel = bed.load();
    let seats: Vec<_> = (0..SEATS).map(|_| Seat(bed.listen())).collect();
    let numbers: Vec<u32> = (10..).take(SEATS).collect();
    for (seat, number) in seats.iter().zip(&numbers) {
        kernel.set_seat(*number, 4, &seat.0).unwrap();
    }
    kernel.steering.set_route(address(), PORT, Route::to(4)).unwrap();
    kernel.steering.set_pool(4, &numbers).unwrap();
    let mut open: Vec<Vec<_>> = (0..SEATS).map(|_| Vec::new()).collect();
    for _ in 0..SEATS * 8 {
        let (place, client, server) = Seat::next(&bed, &seats);
        open[place].push((client, server));
    }
    let counts: Vec<_> = open.iter().map(Vec::len).collect();
    assert!(counts.iter().all(|count| (6..=10).contains(count)), "{counts:?}");
    drop(open);
    bed.finish(kernel);
}
