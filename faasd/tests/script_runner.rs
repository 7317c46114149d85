//! The runner for scripts: CGI over real connections.
#![expect(clippy::unwrap_used, reason = "a helper fails as its test does")]

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

const SCRIPT: &str = r#"#!/bin/sh
case $PATH_INFO in
    /) echo hello ;;
    /echo) cat ;;
    /env) echo "$REQUEST_METHOD|$QUERY_STRING|$CONTENT_TYPE|$CONTENT_LENGTH|$HTTP_X_A|$REMOTE_ADDR|$SERVER_NAME|$COLOUR|$FAAS_LISTEN" ;;
    /made) printf 'Status: 201 Created\r\nContent-Type: text/x\r\nX-B: c\r\n\r\nmade\n' ;;
    /away) printf 'Location: /there\n\n' ;;
    /none) ;;
    /fail) echo "as it was asked to" >&2; exit 3 ;;
    /half) echo half; exit 3 ;;
    /broken) echo first; read -r _; exit 3 ;;
    /bad) printf 'Status: nonsense\n\n' ;;
    /stream) echo first; read -r _; echo second ;;
    /slow) sleep 600 & echo $! ; wait ;;
    /silent) sleep 600 ;;
esac
"#;

struct Runner {
    child: Child,
    address: SocketAddr,
    log: mpsc::Receiver<String>,
    _dir: tempfile::TempDir,
}

fn start(script: &str, settings: &[(&str, &str)]) -> Runner {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("handler");
    fs::write(&file, script).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_faasd"))
        .args(["run-script", "handler"])
        .current_dir(&dir)
        .env("FAAS_LISTEN", "[::1]:0")
        .env("COLOUR", "red")
        .envs(settings.iter().copied())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let (sender, log) = mpsc::sync_channel(1000);
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let first = lines.next().unwrap().unwrap();
    let address = first.strip_prefix("listening on ").unwrap_or_else(|| panic!("{first}")).parse().unwrap();
    std::thread::spawn(move || lines.map_while(Result::ok).try_for_each(|line| sender.send(line)));
    Runner { child, address, log, _dir: dir }
}

impl Runner {
    fn dial(&self) -> BufReader<TcpStream> {
        let client = TcpStream::connect(self.address).unwrap();
        client.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        BufReader::new(client)
    }

    /// Asks on a connection of its own, and returns everything that comes.
    fn ask(&self, request: &str) -> String {
        let mut client = self.dial();
        client.get_mut().write_all(request.as_bytes()).unwrap();
        let mut answer = Vec::new();
        let _ = client.read_to_end(&mut answer);
        String::from_utf8(answer).unwrap()
    }

    fn get(&self, path: &str) -> String {
        self.ask(&format!("GET {path} HTTP/1.1\r\nHost: hello.faas\r\nConnection: close\r\n\r\n"))
    }

    fn logged(&self, what: &str) {
        let deadline = Instant::now() + Duration::from_secs(10);
        let mut seen = String::new();
        while !seen.contains(what) {
            let left = deadline.saturating_duration_since(Instant::now());
            let line = self.log.recv_timeout(left).unwrap_or_else(|_| panic!("no '{what}' in: {seen}"));
            seen.push_str(&line);
            seen.push('\n');
        }
    }
}

impl Drop for Runner {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_script_answers_by_cgi() {
    let runner = start(SCRIPT, &[]);
    let plain = runner.get("/").to_ascii_lowercase();
    assert!(
        plain.starts_with("http/1.1 200 ok\r\n") && plain.contains("content-type: text/plain"),
        "{plain}"
    );
    assert!(plain.contains("content-length: 6\r\n") && plain.ends_with("\r\n\r\nhello\n"), "{plain}");
    let made = runner.get("/made");
    assert!(
        made.starts_with("HTTP/1.1 201") && made.contains("x-b: c\r\n") && made.contains("text/x"),
        "{made}"
    );
    assert!(made.ends_with("\r\n\r\nmade\n") && !made.contains("Status"), "{made}");
    let away = runner.get("/away");
    assert!(away.starts_with("HTTP/1.1 302") && away.contains("location: /there"), "{away}");
    assert!(runner.get("/none").starts_with("HTTP/1.1 204"));
    let env = runner.ask(
        "PUT /env?a=b HTTP/1.1\r\nHost: hello.faas:80\r\nContent-Type: text/y\r\nX-A: c\r\nContent-Length: 2\r\n\
         Connection: close\r\n\r\nxy",
    );
    assert!(env.contains("\r\nPUT|a=b|text/y|2|c|::1|hello.faas|red|\n"), "{env}");
}

#[test]
fn a_large_body_flows_through() {
    let runner = start(SCRIPT, &[]);
    let mut client = runner.dial();
    let body = vec![b'x'; 20 << 20];
    let head = format!(
        "POST /echo HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    let mut writer = client.get_ref().try_clone().unwrap();
    let sent = std::thread::spawn(move || {
        writer.write_all(head.as_bytes()).unwrap();
        writer.write_all(&body).unwrap();
    });
    let mut answer = Vec::new();
    client.read_to_end(&mut answer).unwrap();
    sent.join().unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 200") && answer.ends_with(b"\r\n0\r\n\r\n"));
    assert_eq!(answer.iter().filter(|&&byte| byte == b'x').count(), (20 << 20) + 1, "and one of text/plain");
}

#[test]
fn what_is_written_arrives_at_once() {
    let runner = start(SCRIPT, &[]);
    let mut client = runner.dial();
    let head = "POST /stream HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n";
    client.get_mut().write_all(head.as_bytes()).unwrap();
    let mut line = String::new();
    while line != "first\n" {
        line.clear();
        assert_ne!(client.read_line(&mut line).unwrap(), 0);
    }
    client.get_mut().write_all(b"3\r\nok\n\r\n0\r\n\r\n").unwrap();
    while line != "second\n" {
        line.clear();
        assert_ne!(client.read_line(&mut line).unwrap(), 0);
    }
}

#[test]
fn a_failure_has_an_id_that_the_log_has() {
    let runner = start(SCRIPT, &[]);
    for (path, why) in [("/fail", "exit status: 3"), ("/half", "exit status: 3"), ("/bad", "header block")] {
        let failed = runner.get(path);
        assert!(failed.starts_with("HTTP/1.1 500"), "{failed}");
        let id = failed.lines().find_map(|line| line.strip_prefix("x-request-id: ")).unwrap();
        runner.logged(&format!("[{id}] GET {path} failed: "));
        assert!(failed.contains(&format!("request {id}")), "{why}: {failed}");
    }
    // Within an answer there is nothing left but to cut it short.
    let mut broken = runner.dial();
    let head = "POST /broken HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n";
    broken.get_mut().write_all(head.as_bytes()).unwrap();
    let mut line = String::new();
    while line != "first\n" {
        line.clear();
        assert_ne!(broken.read_line(&mut line).unwrap(), 0);
    }
    broken.get_mut().write_all(b"3\r\nok\n\r\n0\r\n\r\n").unwrap();
    let mut rest = String::new();
    let _ = broken.read_to_string(&mut rest);
    assert!(!rest.ends_with("0\r\n\r\n"), "{rest}");
    assert!(runner.get("/").contains("hello"));
}

#[test]
fn nothing_outlives_its_time_or_its_client() {
    let runner = start(SCRIPT, &[("FAAS_SCRIPT_SECONDS", "1")]);
    let late = runner.get("/silent");
    assert!(late.starts_with("HTTP/1.1 504"), "{late}");
    runner.logged("killed after 1 s");
    drop(runner);

    let runner = start(SCRIPT, &[]);
    let mut client = runner.dial();
    client.get_mut().write_all(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let mut line = String::new();
    while line.trim().parse::<u32>().is_err() || line.trim().len() < 2 {
        line.clear();
        assert_ne!(client.read_line(&mut line).unwrap(), 0);
    }
    // What the script itself has started goes with it.
    let stat = format!("/proc/{}/stat", line.trim());
    assert!(fs::exists(&stat).unwrap());
    drop(client);
    let deadline = Instant::now() + Duration::from_secs(10);
    while fs::read_to_string(&stat).is_ok_and(|stat| !stat.contains(") Z ")) {
        assert!(Instant::now() < deadline);
        std::thread::yield_now();
    }
}

#[test]
fn scripts_at_work_are_limited() {
    let runner = start(SCRIPT, &[("FAAS_CONCURRENCY", "1")]);
    let mut first = runner.dial();
    let head = "POST /stream HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n";
    first.get_mut().write_all(head.as_bytes()).unwrap();
    let mut line = String::new();
    while line != "first\n" {
        line.clear();
        assert_ne!(first.read_line(&mut line).unwrap(), 0);
    }
    let mut second = runner.dial();
    second.get_mut().write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    second.get_ref().set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    assert!(second.read(&mut [0]).is_err(), "it was not to run yet");
    second.get_ref().set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    first.get_mut().write_all(b"3\r\nok\n\r\n0\r\n\r\n").unwrap();
    line.clear();
    second.read_line(&mut line).unwrap();
    assert_eq!(line, "HTTP/1.1 200 OK\r\n");
}

#[test]
fn what_cannot_be_run_is_refused_at_the_start() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("plain"), "echo").unwrap();
    for (file, settings, why) in [
        ("absent", None, "absent"),
        ("plain", None, "chmod +x plain"),
        ("plain", Some(("FAAS_CONCURRENCY", "0")), "use 1 to 1024"),
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_faasd"))
            .args(["run-script", file])
            .current_dir(&dir)
            .env("FAAS_LISTEN", "[::1]:0")
            .envs(settings)
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && text.contains(why), "{text}");
    }
}
