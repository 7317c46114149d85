//! Who is let in: subjects, and the rules about them.

use std::io::{self, ErrorKind};
use std::net::{Ipv6Addr, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use aya::maps::{Array, Map, MapData};
use faasd::core::address::{FUNCTION_PREFIX, VPN_PREFIX};
use faasd::sys::bpf::{BpfError, GROUPS_MAX, Kernel, Refusal, Route, Rule, Subject, SubjectCounts};
use faasd_common::{Decision, LAYOUT, REFUSALS_MAX, maps};

use crate::bed::{Bed, DEADLINE, PORT, Server, address, dial, dial_as, peer, see_off, wait_until};

/// A function that calls.
pub fn caller() -> Ipv6Addr {
    FUNCTION_PREFIX.host(0x99 << 16)
}

/// A function that is called, by its own address.
fn callee() -> Ipv6Addr {
    FUNCTION_PREFIX.host(0x88 << 16)
}

pub fn subject(number: u32, groups: &[u32]) -> Subject {
    let mut all = [0; GROUPS_MAX];
    all[..groups.len()].copy_from_slice(groups);
    Subject { number, groups: all }
}

/// Whether a connection was refused, by RST and not by a timeout.
pub fn is_refused(dialled: impl FnOnce() -> io::Result<TcpStream>) -> bool {
    let start = Instant::now();
    match dialled() {
        Ok(_) => false,
        Err(e) if e.kind() == ErrorKind::ConnectionRefused => {
            assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
            true
        }
        Err(e) => panic!("{e}"),
    }
}

/// Which decisions there are more of after `work`. (How many more is another matter: what comes late for a connection
/// that is gone is decided on like a new one.)
pub fn decided(kernel: &mut Kernel, work: impl FnOnce(&mut Kernel)) -> Vec<&'static str> {
    let before = kernel.decisions().unwrap();
    work(kernel);
    let changed = kernel.decisions().unwrap().into_iter().zip(before).map(|(after, before)| after > before);
    Decision::NAMES.into_iter().zip(changed).filter(|(_, changed)| *changed).map(|(name, _)| name).collect()
}

/// Whether as many were admitted, or some more for the same reason, and all else is as it should be.
fn are(counts: SubjectCounts, expected: SubjectCounts) -> bool {
    counts.admitted >= expected.admitted
        && SubjectCounts { admitted: expected.admitted, ..counts } == expected
}

/// A server at [`callee`] and at one of its revisions' addresses, and at [`address`], all of slot 1.
fn serve(bed: &Bed, kernel: &mut Kernel, flags: u32) -> Server {
    let server = Server::start(bed.listen(), 2, see_off);
    kernel.set_listener(1, 1, &server.listener).unwrap();
    for address in [address(), callee(), FUNCTION_PREFIX.host((0x88 << 16) | 3)] {
        kernel.steering.set_route(address, PORT, Route { flags, ..Route::to(1) }).unwrap();
    }
    server
}

#[test]
#[ignore = "needs root"]
fn only_subjects_are_let_in() {
    let bed = Bed::new();
    let mut kernel = bed.load();
    let server = serve(&bed, &mut kernel, 0);
    let by_tunnel = || bed.dial_from(peer(2), address());
    let by_loopback = || bed.inside(|| dial_as(caller(), address()));

    // The daemon itself is let in, and nobody else.
    assert_eq!(decided(&mut kernel, |_| assert!(!is_refused(|| bed.inside(dial)))), ["steered"]);
    assert_eq!(decided(&mut kernel, |_| assert!(is_refused(by_tunnel))), ["stranger"]);
    assert_eq!(decided(&mut kernel, |_| assert!(is_refused(by_loopback))), ["stranger"]);

    // Each by its own way alone.
    kernel.access.set_subject(peer(2), subject(7, &[])).unwrap();
    kernel.access.set_subject(caller(), subject(8, &[])).unwrap();
    assert_eq!(decided(&mut kernel, |_| assert!(!is_refused(by_tunnel))), ["steered"]);
    assert_eq!(decided(&mut kernel, |_| assert!(!is_refused(by_loopback))), ["steered"]);
    let other = || bed.dial_from(peer(3), address());
    assert_eq!(decided(&mut kernel, |_| assert!(is_refused(other))), ["stranger"]);

    // What it tries is counted with its number, which lasts over a change of its groups.
    let nowhere = || bed.dial_from(peer(2), FUNCTION_PREFIX.host(0x5555));
    assert_eq!(decided(&mut kernel, |_| assert!(is_refused(nowhere))), ["unknown"]);
    kernel.access.set_subject(peer(2), subject(7, &[20])).unwrap();
    let counts = SubjectCounts { admitted: 1, refused: 0, unknown: 1 };
    assert!(are(kernel.access.subject_counts(7).unwrap().unwrap(), counts));
    let mut subjects = kernel.access.subjects().unwrap();
    subjects.sort_by_key(|(address, _)| *address);
    assert_eq!(subjects, [(peer(2), subject(7, &[20])), (caller(), subject(8, &[]))]);

    // A new daemon finds all of that as it was.
    drop(kernel);
    let mut kernel = bed.load();
    assert_eq!(decided(&mut kernel, |_| assert!(!is_refused(by_tunnel))), ["steered"]);
    assert!(are(kernel.access.subject_counts(7).unwrap().unwrap(), SubjectCounts { admitted: 2, ..counts }));

    // Revoked: from the next connection on.
    kernel.access.clear_subject(peer(2)).unwrap();
    kernel.access.clear_subject(peer(2)).unwrap();
    assert_eq!(decided(&mut kernel, |_| assert!(is_refused(by_tunnel))), ["stranger"]);
    assert_eq!(kernel.access.subject_counts(7).unwrap(), None);

    // Who takes the address has a number of its own, and its own counts.
    kernel.access.set_subject(peer(2), subject(9, &[])).unwrap();
    assert!(!is_refused(by_tunnel));
    let counts = SubjectCounts { admitted: 1, ..SubjectCounts::default() };
    assert!(are(kernel.access.subject_counts(9).unwrap().unwrap(), counts));
    kernel.access.set_subject(peer(2), subject(10, &[])).unwrap();
    assert_eq!(kernel.access.subject_counts(9).unwrap(), None);
    server.stop();
    bed.finish(kernel);
}

#[test]
#[ignore = "needs root"]
fn services_are_for_subjects_and_for_who_is_invited() {
    const SERVICE: u16 = 9464;
    let bed = Bed::new();
    let mut kernel = bed.load();
    let function = serve(&bed, &mut kernel, 0);
    let server = VPN_PREFIX.server();
    let service = Server::start(bed.ingress.listen_service(server, SERVICE).unwrap().into(), 1, see_off);
    kernel.steering.set_route(server, SERVICE, Route::SERVICE).unwrap();
    // As DNS is: the same port by UDP.
    let answering = bed.ingress.udp(server, SERVICE, 1).unwrap().swap_remove(0);
    let answers = thread::spawn(move || {
        let mut question = [0; 16];
        loop {
            let (length, from) = answering.recv_from(&mut question).unwrap();
            if &question[..length] == b"end" {
                break;
            }
            answering.send_to(b"answer", from).unwrap();
        }
    });
    let dial = |source| bed.dial_port(source, server, SERVICE);
    let ask = |source, port| bed.ask(source, server, port);
    let refused = ErrorKind::ConnectionRefused;

    assert_eq!(decided(&mut kernel, |_| assert!(is_refused(|| dial(peer(2))))), ["stranger"]);
    assert_eq!(ask(peer(2), SERVICE).unwrap_err().kind(), refused);
    for invited_or_joined in [Subject::INVITED, subject(7, &[])] {
        kernel.access.set_subject(peer(2), invited_or_joined).unwrap();
        assert_eq!(decided(&mut kernel, |_| assert!(!is_refused(|| dial(peer(2))))), ["service"]);
        assert_eq!(ask(peer(2), SERVICE).unwrap(), b"answer");
        assert_eq!(ask(peer(2), 5353).unwrap_err().kind(), refused);
        // A function is for who has joined.
        let has_joined = invited_or_joined != Subject::INVITED;
        assert_eq!(is_refused(|| bed.dial_from(peer(2), address())), !has_joined);
    }
    // The daemon asks itself, with whatever port it has.
    let own = bed.inside(|| {
        let socket = UdpSocket::bind((server, 0)).unwrap();
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        socket.send_to(b"question", (server, SERVICE)).unwrap();
        let mut answer = [0; 16];
        let (length, _) = socket.recv_from(&mut answer).unwrap();
        socket.send_to(b"end", (server, SERVICE)).unwrap();
        answer[..length].to_vec()
    });
    assert_eq!(own, b"answer");
    answers.join().unwrap();
    service.stop();
    function.stop();
    bed.finish(kernel);
}

#[test]
#[ignore = "needs root"]
fn rules_are_asked_in_their_order() {
    const NUMBER: u32 = 7;
    const GROUPS: [u32; 3] = [20, 21, 22];
    let bed = Bed::new();
    let mut kernel = bed.load();
    let server = serve(&bed, &mut kernel, 0);
    kernel.access.set_subject(peer(2), subject(NUMBER, &GROUPS)).unwrap();
    let (open, closed) = (Route::GUARDED, Route::GUARDED | Route::CLOSED);
    let (allow, deny) = (Some(true), Some(false));
    // What the function does without a rule; the subject's own rule; its groups'; and whether it is let in.
    let cases = [
        (open, None, [None; 3], true),
        (closed, None, [None; 3], false),
        (closed, allow, [None; 3], true),
        (open, deny, [None; 3], false),
        // Its own comes before its groups'.
        (closed, allow, [deny; 3], true),
        (open, deny, [allow; 3], false),
        // One group is enough, wherever it stands.
        (closed, None, [allow, None, None], true),
        (closed, None, [None, None, allow], true),
        (open, None, [None, deny, None], false),
        // Among groups one that denies wins, before and after one that allows.
        (open, None, [allow, deny, None], false),
        (open, None, [deny, allow, allow], false),
        (closed, None, [allow, None, deny], false),
        // Without a guard nobody asks.
        (0, deny, [deny; 3], true),
    ];
    let revision = FUNCTION_PREFIX.host((0x88 << 16) | 3);
    let mut expected = SubjectCounts::default();
    for (flags, own, groups, admitted) in cases {
        for address in [callee(), revision] {
            kernel.steering.set_route(address, PORT, Route { flags, ..Route::to(1) }).unwrap();
        }
        let rules = [NUMBER].into_iter().chain(GROUPS).zip([own].into_iter().chain(groups));
        for (number, rule) in rules.clone() {
            match rule {
                Some(allow) => kernel.access.set_rule(number, callee(), allow).unwrap(),
                None => kernel.access.clear_rule(number, callee()).unwrap(),
            }
        }
        let key = |rule: &Rule| rule.subject;
        let mut there = kernel.access.rules().unwrap();
        there.sort_by_key(key);
        let rule =
            |(subject, allow): (u32, Option<bool>)| Some(Rule { subject, function: callee(), allow: allow? });
        assert_eq!(there, rules.filter_map(rule).collect::<Vec<_>>());

        let case = format!("{flags} {own:?} {groups:?}");
        for address in [callee(), revision] {
            let decision = if admitted { "steered" } else { "denied" };
            let dialled = || bed.dial_from(peer(2), address);
            let decisions = decided(&mut kernel, |_| assert_eq!(is_refused(dialled), !admitted, "{case}"));
            assert_eq!(decisions, [decision], "{case}");
            *if admitted { &mut expected.admitted } else { &mut expected.refused } += 1;
        }
        assert!(are(kernel.access.subject_counts(NUMBER).unwrap().unwrap(), expected), "{case}");
    }
    // Refusals are counted where they were, by the function's own address.
    let refusals = kernel.access.refusals().unwrap();
    assert_eq!(refusals, [Refusal { subject: NUMBER, function: callee(), count: expected.refused }]);

    // What is said of others is of no matter, nor what is said about other functions.
    kernel.steering.set_route(callee(), PORT, Route { flags: closed, ..Route::to(1) }).unwrap();
    kernel.access.set_rule(NUMBER, caller(), true).unwrap();
    kernel.access.set_rule(23, callee(), true).unwrap();
    for number in [NUMBER].into_iter().chain(GROUPS) {
        kernel.access.clear_rule(number, callee()).unwrap();
    }
    assert!(is_refused(|| bed.dial_from(peer(2), callee())));
    // The last place for a group counts as the first.
    kernel.access.set_subject(peer(2), subject(NUMBER, &[0, 0, 0, 0, 0, 0, 0, 23])).unwrap();
    assert!(!is_refused(|| bed.dial_from(peer(2), callee())));
    server.stop();
    bed.finish(kernel);
}

#[test]
#[ignore = "needs root"]
fn who_changes_is_at_each_moment_the_one_or_the_other() {
    const DIALS: usize = 3_000;
    let bed = Bed::new();
    let mut kernel = bed.load();
    let server = serve(&bed, &mut kernel, Route::GUARDED | Route::CLOSED);
    // Either group lets it in; neither, or the memory of another's entry, would not.
    let turns = [subject(7, &[20]), subject(7, &[0, 21])];
    for group in [20, 21] {
        kernel.access.set_rule(group, callee(), true).unwrap();
    }
    kernel.access.set_subject(caller(), turns[0]).unwrap();
    let stop = AtomicBool::new(false);
    let access = &mut kernel.access;
    let changes = thread::scope(|scope| {
        let changing = scope.spawn(|| {
            let mut changes = 0u64;
            while !stop.load(Ordering::Relaxed) {
                for (number, turn) in (100..).zip(turns) {
                    access.set_subject(caller(), turn).unwrap();
                    // Takes the memory of what was just replaced.
                    access.set_subject(FUNCTION_PREFIX.host(0x4444), subject(number, &[])).unwrap();
                    access.clear_subject(FUNCTION_PREFIX.host(0x4444)).unwrap();
                    changes += 1;
                }
            }
            changes
        });
        let refused =
            bed.inside(|| (0..DIALS).filter(|_| is_refused(|| dial_as(caller(), callee()))).count());
        stop.store(true, Ordering::Relaxed);
        assert_eq!(refused, 0);
        changing.join().unwrap()
    });
    assert!(changes > 100, "{changes}");
    let counts = SubjectCounts { admitted: DIALS as u64, ..SubjectCounts::default() };
    wait_until("all are accepted", || server.accepted() == DIALS as u64);
    assert!(are(kernel.access.subject_counts(7).unwrap().unwrap(), counts));
    server.stop();
    bed.finish(kernel);
}

#[test]
#[ignore = "needs root"]
fn refusals_are_kept_within_bounds() {
    let bed = Bed::new();
    let mut kernel = bed.load();
    let server = serve(&bed, &mut kernel, Route::GUARDED | Route::CLOSED);
    // More pairs than are kept.
    let all = u64::from(REFUSALS_MAX) + 2_000;
    for number in 1..=all {
        let to = Route { flags: Route::GUARDED | Route::CLOSED, ..Route::to(1) };
        kernel.steering.set_route(FUNCTION_PREFIX.host(number << 16), PORT, to).unwrap();
    }
    kernel.access.set_subject(caller(), subject(7, &[])).unwrap();
    let refused = |number: u64| is_refused(|| dial_as(caller(), FUNCTION_PREFIX.host(number << 16)));
    assert!(bed.inside(|| (1..=all).all(refused)));
    let counts = SubjectCounts { refused: all, ..SubjectCounts::default() };
    assert!(are(kernel.access.subject_counts(7).unwrap().unwrap(), counts));
    let kept = kernel.access.refusals().unwrap();
    assert!(kept.len() <= REFUSALS_MAX as usize && kept.len() > 1_000, "{}", kept.len());
    // Who is refused now is among them.
    assert!(bed.inside(|| refused(1)));
    assert!(kernel.access.refusals().unwrap().iter().any(|r| r.function == FUNCTION_PREFIX.host(1 << 16)));
    // A number that nobody has any more leaves nothing to whoever is given it next.
    kernel.access.set_subject(peer(2), subject(8, &[])).unwrap();
    kernel.access.forget_counts(|number| number == 7).unwrap();
    assert_eq!(kernel.access.refusals().unwrap(), []);
    assert!(kernel.access.subject_counts(7).unwrap().is_none());
    assert!(kernel.access.subject_counts(8).unwrap().is_some());
    server.stop();
    bed.finish(kernel);
}

#[test]
#[ignore = "needs root"]
fn maps_of_another_layout_are_refused() {
    let bed = Bed::new();
    drop(bed.load());
    // As an older version would have left it: the first word of the one entry.
    let pin = bed.pins().join(maps::CONFIG);
    let map = Map::Array(MapData::from_pin(&pin).unwrap());
    let mut config: Array<_, [u32; 8]> = map.try_into().unwrap();
    let [_, rest @ ..] = config.get(&0, 0).unwrap();
    assert_eq!(config.get(&0, 0).unwrap()[0], LAYOUT);
    let mut older = [LAYOUT - 1; 8];
    older[1..].copy_from_slice(&rest);
    config.set(0, older, 0).unwrap();
    match bed.try_load() {
        Err(BpfError::Layout { found, .. }) => assert_eq!(found, (LAYOUT - 1).to_string()),
        other => panic!("{other:?}"),
    }
    // What is there stays: nobody's connections are cut off by a daemon that does not start.
    assert!(pin.exists());
}
