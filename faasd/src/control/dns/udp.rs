//! DNS over UDP: threads that wait for nothing but queries, and tasks for what has to be asked elsewhere.

use std::io;
use std::net::{SocketAddr, SocketAddrV6, UdpSocket};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::net::{SendFlags, sendto};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::Shared;
use super::metrics::{Outcome, Tally};
use crate::core::zone::{self, ANSWER_BYTES_MAX, Caller, UDP_PAYLOAD_BYTES_MAX, Verdict, Zone};
use crate::sys::udp::Batch;

/// A query for a name that is in none of our zones.
pub(super) struct Elsewhere {
    query: Vec<u8>,
    source: SocketAddrV6,
    socket: Arc<UdpSocket>,
}

/// A thread wakes as often to see whether it is to end, should nothing else wake it.
const LOOK_UP: Duration = Duration::from_secs(1);
/// How long to wait when the system has no memory for a message.
const PAUSE: Duration = Duration::from_millis(20);

pub(super) fn start(
    socket: Arc<UdpSocket>,
    shared: Arc<Shared>,
    elsewhere: mpsc::Sender<Elsewhere>,
) -> io::Result<JoinHandle<()>> {
    socket.set_nonblocking(false)?;
    socket.set_read_timeout(Some(LOOK_UP))?;
    thread::Builder::new().name("dns".to_owned()).spawn(move || serve(&socket, &shared, &elsewhere))
}

fn serve(socket: &Arc<UdpSocket>, shared: &Shared, elsewhere: &mpsc::Sender<Elsewhere>) {
    let mut batch = Batch::<{ UDP_PAYLOAD_BYTES_MAX as usize }, ANSWER_BYTES_MAX>::default();
    let mut limited: u32 = 0;
    while !shared.stopped.load(Ordering::Acquire) {
        let count = match batch.receive(socket.as_fd()) {
            Ok(_) if shared.stopped.load(Ordering::Acquire) => return,
            Ok(count) => count,
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => continue,
            Err(error) => {
                tracing::warn!(%error, "cannot receive DNS queries");
                thread::sleep(PAUSE);
                continue;
            }
        };
        let zone = shared.names.load();
        let now_ns = u64::try_from(shared.began.elapsed().as_nanos()).unwrap_or(u64::MAX);
        let caller = shared.caller();
        let mut tally = Tally::default();
        for i in 0..count {
            let (query, source, out) = batch.exchange(i);
            let (length, outcome) = if shared.limit.admits(*source.ip(), now_ns) {
                match zone::answer(&zone, query, caller, out) {
                    Verdict::Answer(length, outcome) => (length, Some(outcome.into())),
                    Verdict::Silence => continue,
                    Verdict::Elsewhere => {
                        let (query, socket) = (query.to_vec(), Arc::clone(socket));
                        match elsewhere.try_send(Elsewhere { query, source, socket }) {
                            Ok(()) => (0, None),
                            // As many wait for their turn as may; this one asks again.
                            Err(_) => (0, Some(Outcome::Failed)),
                        }
                    }
                    Verdict::Transfer(origin, question) => {
                        let is_known = shared.secondaries.contains(&(*source.ip()).into());
                        transfer(&zone, origin, query, &question, is_known, out)
                    }
                }
            } else {
                // Who really is there and in need comes by TCP; every second time, since an answer costs as well.
                limited = limited.wrapping_add(1);
                let told = limited.is_multiple_of(2).then(|| truncated(query, caller, out)).flatten();
                (told.unwrap_or(0), Some(Outcome::Limited))
            };
            shared.log(query, source.into(), false, outcome);
            outcome.inspect(|outcome| tally.count(*outcome));
            batch.answer(i, length);
        }
        drop(zone);
        // Before the answers: who has one finds it counted.
        shared.metrics.count_all(&tally);
        batch.send(socket.as_fd());
    }
}

fn truncated(query: &[u8], caller: Caller, out: &mut [u8; ANSWER_BYTES_MAX]) -> Option<usize> {
    zone::truncated_answer(query, caller.recursion, out)
}

/// A secondary is told the serial, with which it comes by TCP if that is news to it (RFC 1995, 2).
fn transfer(
    zone: &Zone,
    origin: zone::Origin,
    query: &[u8],
    question: &zone::Question,
    is_known: bool,
    out: &mut [u8; ANSWER_BYTES_MAX],
) -> (usize, Option<Outcome>) {
    match is_known && question.is_incremental() {
        true => (zone::soa_answer(zone, origin, query, question, out), Some(Outcome::Answered)),
        false => (zone::refusal(query, question, out), Some(Outcome::Refused)),
    }
}

/// Answers queries for other names, each on a task of its own. What they wait for is bounded by the forwarder.
pub(super) async fn forward(shared: Arc<Shared>, mut queries: mpsc::Receiver<Elsewhere>) {
    let mut tasks = JoinSet::new();
    while let Some(Elsewhere { query, source, socket }) = queries.recv().await {
        while tasks.try_join_next().is_some() {}
        let shared = Arc::clone(&shared);
        tasks.spawn(async move {
            let answer = shared.forwarder.answer(&query, SocketAddr::from(source).ip(), false).await;
            if let Some(answer) = answer
                && let Err(error) = sendto(&*socket, &answer, SendFlags::DONTWAIT, &source)
            {
                // The client is gone, or asks again.
                tracing::debug!(%error, %source, "a DNS answer could not be sent");
            }
        });
    }
}
