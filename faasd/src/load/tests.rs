//! Against real servers on loopback.

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;

use futures_util::{SinkExt, StreamExt};
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONNECTION, HeaderValue};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::core::load::record::{Fault, Phase};

/// A server in a runtime of its own, and what it has seen.
#[derive(Debug, Default)]
struct Seen {
    connections: AtomicU64,
    requests: AtomicU64,
    bytes: AtomicU64,
    /// Whether all answers are held back.
    held: AtomicBool,
    last_headers: Mutex<HeaderMap>,
}

async fn answer(request: Request<Incoming>, seen: Arc<Seen>) -> Result<Response<Full<Bytes>>, Infallible> {
    let number = seen.requests.fetch_add(1, Ordering::Relaxed) + 1;
    *seen.last_headers.lock().unwrap() = request.headers().clone();
    let path = request.uri().path().to_owned();
    let received = request.into_body().collect().await.map_or(0, |body| body.to_bytes().len());
    seen.bytes.fetch_add(received as u64, Ordering::Relaxed);
    while seen.held.load(Ordering::Relaxed) {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let mut response = Response::new(Full::from(match path.as_str() {
        "/large" => Bytes::from(vec![b'x'; 300_000]),
        "/empty" => Bytes::new(),
        _ => Bytes::from_static(b"hello"),
    }));
    if path == "/missing" {
        *response.status_mut() = hyper::StatusCode::NOT_FOUND;
    }
    if path == "/tenth" && number.is_multiple_of(10) {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    Ok(response)
}

/// Has `serve` take each connection, on a thread of its own.
fn server<F: Future<Output = ()> + Send + 'static>(
    serve: impl Fn(TcpStream, Arc<Seen>) -> F + Send + 'static,
) -> (SocketAddr, Arc<Seen>) {
    let listener = std::net::TcpListener::bind("localhost:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let (address, seen) = (listener.local_addr().unwrap(), Arc::new(Seen::default()));
    let theirs = Arc::clone(&seen);
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let listener = TcpListener::from_std(listener).unwrap();
            while let Ok((stream, _)) = listener.accept().await {
                theirs.connections.fetch_add(1, Ordering::Relaxed);
                tokio::spawn(serve(stream, Arc::clone(&theirs)));
            }
        });
    });
    (address, seen)
}

async fn http1(stream: TcpStream, seen: Arc<Seen>) {
    let service = service_fn(move |request| answer(request, Arc::clone(&seen)));
    let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

async fn http2(stream: TcpStream, seen: Arc<Seen>) {
    let service = service_fn(move |request| answer(request, Arc::clone(&seen)));
    let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
    let _ = builder.serve_connection(TokioIo::new(stream), service).await;
}

fn plan(mode: Mode) -> Plan {
    Plan {
        mode,
        protocol: Protocol::Http1,
        connections: 4,
        threads: 2,
        rate: None,
        timeout: Duration::from_secs(10),
        method: Method::GET,
        headers: HeaderMap::new(),
        payload: Payload::default(),
    }
}

const fn count(requests: u64) -> Chunk {
    Chunk { duration: None, requests: Some(requests) }
}

const fn time(millis: u64) -> Chunk {
    Chunk { duration: Some(Duration::from_millis(millis)), requests: None }
}

/// Runs a chunk against a path of a server.
async fn run(plan: Plan, address: SocketAddr, path: &str, chunk: Chunk) -> Record {
    let mut target = Target::parse(&format!("http://{address}{path}")).unwrap();
    target.resolve().await.unwrap();
    let (_sender, stop) = watch::channel(false);
    let load = Load::start(&Arc::new(plan), &Arc::new(target), &stop).unwrap();
    let record = load.run(chunk).await.unwrap();
    assert_eq!(load.progress(), (record.answered(), record.failed()));
    record
}

fn faults(record: &Record) -> Vec<Fault> {
    record.faults.keys().copied().collect()
}

#[tokio::test]
async fn connections_that_stay_are_opened_once() {
    let (address, seen) = server(http1);
    // A number that does not divide by threads or connections.
    let record = run(plan(Mode::KeepAlive), address, "/", count(1003)).await;
    assert_eq!((record.answered(), record.failed(), record.received_bytes), (1003, 0, 5 * 1003));
    assert_eq!(seen.requests.load(Ordering::Relaxed), 1003);
    assert_eq!((seen.connections.load(Ordering::Relaxed), record.connections), (4, 4));
    let headers = seen.last_headers.lock().unwrap();
    assert_eq!(headers["host"], address.to_string());
    assert!(headers["user-agent"].to_str().unwrap().starts_with("faas/"));
}

#[tokio::test]
async fn each_request_has_a_connection_of_its_own() {
    let (address, seen) = server(http1);
    let record = run(plan(Mode::Connect), address, "/", count(200)).await;
    assert_eq!((record.answered(), record.connections), (200, 200));
    assert_eq!(seen.connections.load(Ordering::Relaxed), 200);
    let phase = |phase| record.phases[phase as usize].len();
    assert_eq!((phase(Phase::Connect), phase(Phase::FirstByte), phase(Phase::Wait)), (200, 200, 0));
    let parts = [Phase::Connect, Phase::FirstByte].map(|phase| record.phases[phase as usize].mean());
    assert!(parts.iter().sum::<f64>() <= record.latency.mean() * 1.02, "the parts are within the whole");
}

#[tokio::test]
async fn a_server_that_closes_in_good_order_costs_no_request() {
    let (address, seen) = server(http1);
    let record = run(plan(Mode::KeepAlive), address, "/tenth", count(500)).await;
    assert_eq!((record.answered(), record.failed()), (500, 0), "{:?}", record.faults);
    let connections = seen.connections.load(Ordering::Relaxed);
    assert!(connections > 40 && record.connections == connections, "{connections} connections");
}

#[tokio::test]
async fn bodies_of_both_ways_are_counted() {
    let (address, seen) = server(http1);
    let upload = Plan { method: Method::POST, payload: Payload::generated(200_001), ..plan(Mode::Upload) };
    let record = run(upload, address, "/", count(20)).await;
    assert_eq!((record.answered(), record.sent_bytes), (20, 20 * 200_001));
    assert_eq!(seen.bytes.load(Ordering::Relaxed), record.sent_bytes);
    let record = run(plan(Mode::Download), address, "/large", count(20)).await;
    assert_eq!((record.answered(), record.received_bytes), (20, 20 * 300_000));
    let record = run(plan(Mode::KeepAlive), address, "/empty", count(20)).await;
    assert_eq!((record.answered(), record.received_bytes), (20, 0));
}

#[tokio::test]
async fn http2_is_spoken_from_the_first_byte() {
    let (address, seen) = server(http2);
    let record =
        run(Plan { protocol: Protocol::Http2, ..plan(Mode::KeepAlive) }, address, "/large", count(40)).await;
    assert_eq!((record.answered(), record.received_bytes), (40, 40 * 300_000), "{:?}", record.faults);
    assert_eq!(seen.connections.load(Ordering::Relaxed), 4);
    let record =
        run(Plan { protocol: Protocol::Http2, ..plan(Mode::Connect) }, address, "/", count(10)).await;
    assert_eq!((record.answered(), record.connections), (10, 10), "{:?}", record.faults);
    let record = run(plan(Mode::KeepAlive), address, "/", count(4)).await;
    assert_eq!((record.answered(), record.failed()), (0, 4), "HTTP/1.1 is not what this server speaks");
}

#[tokio::test]
async fn messages_of_a_websocket_are_answered() {
    let (address, seen) = server(|stream, seen| async move {
        let Ok(mut socket) = tokio_tungstenite::accept_async(stream).await else { return };
        while let Some(Ok(message)) = socket.next().await {
            if message.is_binary() {
                seen.requests.fetch_add(1, Ordering::Relaxed);
                let _ = socket.send(message).await;
            }
        }
    });
    let websocket = Plan { payload: Payload::generated(100), ..plan(Mode::Websocket) };
    let record = run(websocket.clone(), address, "/chat", count(301)).await;
    assert_eq!((record.answered(), record.sent_bytes, record.received_bytes), (301, 30_100, 30_100));
    assert_eq!(seen.requests.load(Ordering::Relaxed), 301);
    assert_eq!((seen.connections.load(Ordering::Relaxed), record.connections), (4, 4));
    let (address, _) = server(http1);
    let refused = run(websocket, address, "/missing", count(4)).await;
    assert_eq!(faults(&refused), [Fault::Status(404)]);
}

#[tokio::test]
async fn failures_are_told_apart() {
    let (address, seen) = server(http1);
    let record = run(plan(Mode::KeepAlive), address, "/missing", count(10)).await;
    assert_eq!((record.answered(), faults(&record)), (0, vec![Fault::Status(404)]));
    assert_eq!(seen.connections.load(Ordering::Relaxed), 4, "an answer that is an error ends no connection");

    seen.held.store(true, Ordering::Relaxed);
    let hasty = Plan { timeout: Duration::from_millis(50), ..plan(Mode::KeepAlive) };
    assert_eq!(faults(&run(hasty, address, "/", count(4)).await), [Fault::Timeout]);

    let nobody = {
        let listener = std::net::TcpListener::bind("[::1]:0").unwrap();
        listener.local_addr().unwrap()
    };
    assert_eq!(faults(&run(plan(Mode::KeepAlive), nobody, "/", count(4)).await), [Fault::Refused]);

    let (address, _) = server(|mut stream, _| async move {
        let _ = stream.read(&mut [0; 1024]).await;
    });
    assert_eq!(faults(&run(plan(Mode::KeepAlive), address, "/", count(4)).await), [Fault::Closed]);

    let (address, _) = server(|mut stream, _| async move {
        let _ = stream.read(&mut [0; 1024]).await;
        let _ = stream.write_all(b"220 mail.example.org\r\n\r\n").await;
    });
    assert_eq!(faults(&run(plan(Mode::KeepAlive), address, "/", count(4)).await), [Fault::Protocol]);

    let (address, _) = server(|stream, _| async move {
        // What was sent and not read has the kernel answer the close with a reset.
        let _ = stream.readable().await;
        let _ = socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO));
    });
    assert_eq!(faults(&run(plan(Mode::KeepAlive), address, "/", count(4)).await), [Fault::Reset]);
}

#[tokio::test]
async fn an_open_loop_keeps_its_rate() {
    let (address, seen) = server(http1);
    let record = run(Plan { rate: Some(1000.0), ..plan(Mode::KeepAlive) }, address, "/", time(500)).await;
    let sent = seen.requests.load(Ordering::Relaxed);
    assert_eq!(sent + record.unsent, 500, "neither more nor fewer, on a busy machine either");
    assert_eq!(record.answered(), sent);
    assert_eq!(record.phases[Phase::Wait as usize].len(), sent);
    // Counted ones all go, also when there are fewer than threads.
    for requests in [1, 7] {
        let open = Plan { rate: Some(1000.0), ..plan(Mode::KeepAlive) };
        assert_eq!(run(open, address, "/", count(requests)).await.answered(), requests);
    }
}

/// Holds the server's answers for half a second, some time after the load has begun.
fn pause(seen: &Arc<Seen>) -> std::thread::JoinHandle<()> {
    let seen = Arc::clone(seen);
    std::thread::spawn(move || {
        let before = seen.requests.load(Ordering::Relaxed);
        while seen.requests.load(Ordering::Relaxed) < before + 20 {
            std::thread::yield_now();
        }
        seen.held.store(true, Ordering::Relaxed);
        std::thread::sleep(Duration::from_millis(500));
        seen.held.store(false, Ordering::Relaxed);
    })
}

#[tokio::test]
async fn an_open_loop_shows_a_pause_that_a_closed_one_hides() {
    let (address, seen) = server(http1);
    let slow = |record: &Record| {
        record.latency.count_between(100_000_000, u64::MAX) as f64 / record.answered() as f64
    };
    let few = Plan { connections: 2, ..plan(Mode::KeepAlive) };

    let pausing = pause(&seen);
    let closed = run(few.clone(), address, "/", time(1500)).await;
    pausing.join().unwrap();
    let pausing = pause(&seen);
    let open = run(Plan { rate: Some(400.0), ..few }, address, "/", time(1500)).await;
    pausing.join().unwrap();

    // Of 1.5 s, 0.5 s nobody was answered. Who was due in the first 0.4 s of it waited 0.1 s or more: 27 %.
    assert!(slow(&open) > 0.15, "{} of the open loop's requests were slow", slow(&open));
    assert!(open.latency.value_at_quantile(0.99) > 300_000_000);
    // A closed one sends two, waits for them, and has counted two.
    assert!(closed.latency.max() > 400_000_000);
    assert!(slow(&closed) < 0.05, "{} of the closed loop's", slow(&closed));
    let wait = &open.phases[Phase::Wait as usize];
    assert!(wait.value_at_quantile(0.99) > 200_000_000, "what could not be sent had to wait");
}

#[tokio::test]
async fn it_stops_at_once_when_told_to() {
    let (address, seen) = server(http1);
    let mut target = Target::parse(&format!("http://{address}/")).unwrap();
    target.resolve().await.unwrap();
    let (sender, stop) = watch::channel(false);
    let load = Load::start(&Arc::new(plan(Mode::KeepAlive)), &Arc::new(target), &stop).unwrap();
    let stopping = async {
        while seen.requests.load(Ordering::Relaxed) < 100 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        // Also when an answer is not to be had.
        seen.held.store(true, Ordering::Relaxed);
        sender.send_replace(true);
    };
    let began = Instant::now();
    let (record, ()) = tokio::join!(load.run(time(60_000)), stopping);
    let record = record.unwrap();
    assert!(began.elapsed() < Duration::from_secs(20) && record.elapsed < Duration::from_secs(20));
    assert!(record.answered() > 50, "what was measured is kept: {}", record.answered());
}

#[tokio::test]
async fn a_name_is_looked_up_anew_if_asked_for() {
    let (address, _) = server(http1);
    let mut target = Target::parse(&format!("http://localhost:{}/", address.port())).unwrap();
    target.resolve().await.unwrap();
    target.resolve_each = true;
    let (_sender, stop) = watch::channel(false);
    let load = Load::start(&Arc::new(plan(Mode::Connect)), &Arc::new(target), &stop).unwrap();
    let record = load.run(count(10)).await.unwrap();
    assert_eq!(
        (record.answered(), record.phases[Phase::Dns as usize].len()),
        (10, 10),
        "{:?}",
        record.faults
    );
}
