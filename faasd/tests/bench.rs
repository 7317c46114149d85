//! `faas bench` as people run it, against a server on loopback.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use faasd::core::load::report::Report;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

/// Answers each request; `/slow` after 2 ms, `/missing` with 404.
fn server() -> (SocketAddr, Arc<AtomicU64>) {
    let listener = std::net::TcpListener::bind("[::1]:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let (address, count) = (listener.local_addr().unwrap(), Arc::new(AtomicU64::new(0)));
    let counted = Arc::clone(&count);
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let listener = TcpListener::from_std(listener).unwrap();
            while let Ok((stream, _)) = listener.accept().await {
                let counted = Arc::clone(&counted);
                let service = service_fn(move |request| answer(request, Arc::clone(&counted)));
                let http1 = hyper::server::conn::http1::Builder::new();
                tokio::spawn(async move {
                    let _ = http1.serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
    });
    (address, count)
}

async fn answer(
    request: Request<Incoming>,
    count: Arc<AtomicU64>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    count.fetch_add(1, Ordering::Relaxed);
    if request.uri().path() == "/slow" {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let mut response = Response::new(Full::from("hello"));
    if request.uri().path() == "/missing" {
        *response.status_mut() = StatusCode::NOT_FOUND;
    }
    Ok(response)
}

fn faas(dir: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_faas"));
    command.arg("bench").args(args).current_dir(dir).env("FAAS_SOCKET", dir.join("nowhere.sock"));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

struct Ran {
    code: Option<i32>,
    out: String,
    err: String,
}

fn ran(output: Output) -> Ran {
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Ran { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
}

fn run(dir: &Path, args: &[&str]) -> Ran {
    ran(faas(dir, args).output().unwrap())
}

#[test]
fn a_report_is_for_people_and_for_programs() {
    let dir = tempfile::tempdir().unwrap();
    let (address, count) = server();
    let url = format!("http://{address}/");
    let files = ["--out", "r.html", "--out", "r.png", "--out", "r.csv", "--out", "r.json"];
    let args = [&[url.as_str(), "-n", "500", "-c", "3", "--threads", "2"], &files[..]].concat();
    let table = run(dir.path(), &args);
    assert_eq!(table.code, Some(0), "{}", table.err);
    assert_eq!(count.load(Ordering::Relaxed), 500);
    for part in ["3 connections, 2 threads", "500 in ", "P99.9", "first-byte", "█", "3 opened"] {
        assert!(table.out.contains(part), "{part}: {}", table.out);
    }
    assert!(!table.out.contains('\x1b') && !table.err.contains('\x1b'), "escape codes in a pipe");
    let read = |name: &str| std::fs::read(dir.path().join(name)).unwrap();
    assert!(read("r.html").starts_with(b"<!doctype html>"));
    assert!(read("r.png").starts_with(b"\x89PNG"));
    assert_eq!(String::from_utf8(read("r.csv")).unwrap().lines().count(), 2);
    let report: Report = serde_json::from_slice(&read("r.json")).unwrap();
    let target = &report.targets[0];
    assert_eq!((target.answered, target.failed, target.received_bytes), (500, 0, 2500));
    assert_eq!(target.histogram.iter().map(|bin| bin.count).sum::<u64>(), 500);
    assert!(target.client_busy > 0.0 && target.client_busy <= 1.0, "{}", target.client_busy);
    let latency = target.latency.unwrap();
    assert!(latency.min_us <= latency.p50_us && latency.p50_us <= latency.p99_us);
}

#[test]
fn two_targets_are_measured_in_turns() {
    let dir = tempfile::tempdir().unwrap();
    let (address, _) = server();
    let (fast, slow) = (format!("http://{address}/"), format!("http://{address}/slow"));
    let args =
        [fast.as_str(), "--compare", &slow, "-t", "1500ms", "--warm-up", "100ms", "-c", "2", "-o", "json"];
    let compared = run(dir.path(), &args);
    assert_eq!(compared.code, Some(0), "{}", compared.err);
    let report: Report = serde_json::from_str(&compared.out).unwrap();
    let found = report.comparison.unwrap();
    assert_eq!(found.pairs, 6);
    // 2 ms against a fraction of one, on any machine.
    assert!(found.p50.ratio > 1.5 && found.p50.differs(), "{found:?}");
    assert!(found.requests_per_second.unwrap().ratio < 0.7, "{found:?}");
    assert_eq!(report.targets.len(), 2);
}

#[test]
fn what_all_fails_is_a_failure_and_told_by_kind() {
    let dir = tempfile::tempdir().unwrap();
    let (address, _) = server();
    let missing = run(dir.path(), &[&format!("http://{address}/missing"), "-n", "20"]);
    assert_eq!(missing.code, Some(1), "{}", missing.out);
    assert!(missing.out.contains("status-404") && missing.err.contains("has answered no request"));
    let nobody = std::net::TcpListener::bind("[::1]:0").unwrap().local_addr().unwrap();
    let refused = run(dir.path(), &[&format!("http://{nobody}/"), "-n", "4"]);
    assert_eq!(refused.code, Some(1), "{}", refused.out);
    assert!(refused.out.contains("refused") && refused.err.contains("refused"), "{}", refused.err);
}

#[test]
fn an_interrupt_ends_with_the_report() {
    let dir = tempfile::tempdir().unwrap();
    let (address, count) = server();
    let url = format!("http://{address}/");
    let began = Instant::now();
    let child = faas(dir.path(), &[&url, "-t", "10m", "--warm-up", "0s", "-o", "json"]).spawn().unwrap();
    while count.load(Ordering::Relaxed) < 500 {
        assert!(began.elapsed() < Duration::from_secs(60), "it does not begin");
        std::thread::yield_now();
    }
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let ended = ran(child.wait_with_output().unwrap());
    assert_eq!(ended.code, Some(0), "{}", ended.err);
    let report: Report = serde_json::from_str(&ended.out).unwrap();
    assert!(report.interrupted && report.targets[0].answered > 100);
    assert!(report.targets[0].seconds < 60.0, "{}", report.targets[0].seconds);
}

#[test]
fn what_makes_no_sense_is_said_before_anything_is_sent() {
    let dir = tempfile::tempdir().unwrap();
    for (args, code, why) in [
        (&["https://x.example/"][..], 64, "TLS"),
        (&["ftp://x/"], 64, "scheme"),
        (&["Not_A_Name"], 64, "http://"),
        (&["http://[::1]:9/", "--mode", "cold"], 64, "function's name"),
        (&["http://[::1]:9/", "--mode", "websocket", "--http2"], 64, "HTTP/1.1"),
        (&["http://[::1]:9/", "--mode", "keepalive"], 64, "keep-alive"),
        (&["http://[::1]:9/", "--rate", "0"], 64, "0.001"),
        (&["http://[::1]:9/", "--out", "report.pdf"], 64, ".html"),
        (&["http://[::1]:9/", "--out", "no/such/dir.html"], 73, "dir.html"),
        (&["http://[::1]:9/", "/path"], 64, "path of its own"),
        (&["http://[::1]:9/", "-d", "@none"], 66, "none"),
        (&["http://nobody.invalid/"], 69, "nobody.invalid"),
        // Neither the daemon nor a name server knows where that is.
        (&["hello"], 69, "hello.faas"),
    ] {
        let said = run(dir.path(), args);
        assert_eq!(said.code, Some(code), "{args:?}: {}{}", said.out, said.err);
        assert!(said.err.contains(why), "{args:?}: {}", said.err);
    }
}
