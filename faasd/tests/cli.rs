//! `faas` as people run it: the program itself, against a daemon without a machine under it.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod fake;

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use faasd::api::types::{Event, EventKind, Events, Function, Functions, Invited, Peers};
use faasd::control::api::ApiError;
use fake::Daemon;

struct Faas<'a> {
    daemon: Option<&'a Daemon>,
    dir: tempfile::TempDir,
}

struct Ran {
    code: i32,
    out: String,
    err: String,
}

impl<'a> Faas<'a> {
    fn new(daemon: &'a Daemon) -> Self {
        Self { daemon: Some(daemon), dir: tempfile::tempdir().unwrap() }
    }

    fn alone() -> Faas<'static> {
        Faas { daemon: None, dir: tempfile::tempdir().unwrap() }
    }

    fn command(&self, args: &[&str]) -> Command {
        let nowhere = self.dir.path().join("nowhere.sock");
        let socket = self.daemon.map_or(nowhere.as_path(), |daemon| daemon.socket.as_path());
        let mut command = Command::new(env!("CARGO_BIN_EXE_faas"));
        command.args(args).current_dir(self.dir.path()).env("FAAS_SOCKET", socket).env_remove("NO_COLOR");
        command.stdin(Stdio::null());
        command
    }

    fn run(&self, args: &[&str]) -> Ran {
        Self::ran(self.command(args).output().unwrap())
    }

    fn run_with_input(&self, args: &[&str], input: &[u8]) -> Ran {
        let mut child = self
            .command(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(input).unwrap();
        Self::ran(child.wait_with_output().unwrap())
    }

    fn ran(output: Output) -> Ran {
        Ran {
            code: output.status.code().unwrap(),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }

    fn ok(&self, args: &[&str]) -> String {
        let ran = self.run(args);
        assert_eq!(ran.code, 0, "{args:?}: {}{}", ran.out, ran.err);
        ran.out
    }

    fn fails(&self, args: &[&str], code: i32, why: &str) {
        let ran = self.run(args);
        assert_eq!(ran.code, code, "{args:?}: {}{}", ran.out, ran.err);
        assert!(ran.err.contains(why), "{args:?}: {}", ran.err);
        assert!(!ran.err.contains('\x1b'), "{args:?} writes escape codes into a pipe: {}", ran.err);
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.dir.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
}

#[test]
fn help_is_grouped_and_has_examples() {
    let faas = Faas::alone();
    let help = faas.ok(&["--help"]);
    for part in
        ["Functions:\n  new ", "Network:\n  vpn ", "Machine:\n  doctor ", "--socket <PATH>", "Exit codes:"]
    {
        assert!(help.contains(part), "{part}: {help}");
    }
    assert!(!help.contains("tunnel "), "the tunnel's process is nobody's verb: {help}");
    for verb in [
        "new",
        "dev",
        "deploy",
        "ls",
        "describe",
        "invoke",
        "logs",
        "events",
        "secret",
        "rm",
        "doctor",
        "version",
        "completions",
        "vpn",
    ] {
        let help = faas.ok(&[verb, "--help"]);
        assert!(help.contains("Example"), "{verb}: {help}");
        assert!(!help.contains('\x1b'), "{verb}");
    }
    assert!(faas.ok(&["--color", "always", "--help"]).contains('\x1b'));
    assert_eq!(faas.ok(&["--version"]), format!("faas {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn usage_errors_suggest_and_exit_with_64() {
    let faas = Faas::alone();
    faas.fails(&["deplyo"], 64, "'deploy'");
    faas.fails(&["ls", "--outptu", "json"], 64, "--output");
    faas.fails(&["ls", "-o", "yaml"], 64, "json");
    faas.fails(&["describe", "Not_A_Name"], 64, "did you mean 'not-a-name'");
    faas.fails(&["logs", "x", "--lines", "0"], 64, "1..=10000");
    faas.fails(&["invoke", "x", "-H", "none"], 64, "NAME: VALUE");
    faas.fails(&["vpn", "invite", "x", "--expires", "soon"], 64, "24h");
    faas.fails(&[], 64, "Functions:");
    faas.fails(&["vpn"], 64, "invite");
}

#[test]
fn without_a_daemon_verbs_say_so_and_exit_with_69() {
    let faas = Faas::alone();
    for args in [&["ls"][..], &["describe", "x"], &["invoke", "x"], &["rm", "x"], &["vpn", "peers"]] {
        faas.fails(args, 69, "systemctl start faasd");
    }
    let version = faas.ok(&["version"]);
    assert!(
        version.contains(env!("CARGO_PKG_VERSION")) && version.contains("cannot reach faasd"),
        "{version}"
    );
    assert!(faas.ok(&["version", "-o", "json"]).contains("\"daemon\": null"));
}

#[test]
fn the_life_of_a_function() {
    let daemon = Daemon::start();
    let faas = Faas::new(&daemon);
    assert_eq!(faas.ok(&["ls"]), "", "the remark about an empty list is no result");
    faas.ok(&["new", "hello"]);
    faas.fails(&["new", "hello"], 73, "is there already");

    let deployed = faas.run(&["deploy", "./hello"]);
    assert_eq!(deployed.code, 0, "{}", deployed.err);
    assert!(deployed.err.starts_with("python handler: "), "{}", deployed.err);
    for part in ["http://hello.faas/", "fd00:faa5:0:200:2cf2:4dba:5fb0:0", "sha256:", "took "] {
        assert!(deployed.out.contains(part), "{part}: {}", deployed.out);
    }
    assert!(!deployed.out.contains('\x1b') && !deployed.err.contains('\x1b'));
    let images = daemon.fake.images.lock().unwrap().clone();
    assert_eq!(images.values().next().unwrap(), &["README.md", "faas.toml", "handler.py", "test_handler.py"]);

    let again: Function =
        serde_json::from_str(&faas.ok(&["deploy", "hello", "hello", "-o", "json"])).unwrap();
    assert_eq!(again.revision, 1, "it is deployed like that already");
    let forced = faas.ok(&["deploy", "hello", "hello", "--force", "-o", "json"]);
    assert_eq!(serde_json::from_str::<Function>(&forced).unwrap().revision, 2);
    assert_eq!(daemon.fake.images.lock().unwrap().len(), 1, "the same directory is the same archive");

    let list = faas.ok(&["ls"]);
    let mut lines = list.lines();
    assert!(lines.next().unwrap().starts_with("NAME   STATE"), "{list}");
    let row: Vec<&str> = lines.next().unwrap().split_whitespace().collect();
    assert_eq!(row[..3], ["hello", "warm", "1/1"], "{list}");
    let listed: Functions = serde_json::from_str(&faas.ok(&["ls", "-o", "json"])).unwrap();
    assert_eq!(listed.functions.len(), 1);
    assert!(faas.ok(&["ls", "hel"]).contains("hello") && faas.ok(&["ls", "x"]).is_empty());
    assert!(faas.ok(&["ls", "--color", "always"]).contains('\x1b'));

    let described = faas.ok(&["describe", "hello"]);
    for part in ["hand-off", "handler.py:handle (python)", "64 MiB", "requeued", "hello-2", "4321"] {
        assert!(described.contains(part), "{part}: {described}");
    }
    faas.fails(&["describe", "helo"], 1, "no function 'helo'; did you mean 'hello'?");
    assert_eq!(faas.ok(&["logs", "hello", "--lines", "2"]), "line 1\nline 2\n");
    faas.ok(&["rm", "hello"]);
    faas.fails(&["rm", "hello"], 1, "no function 'hello'");
}

#[test]
fn logs_and_events_are_chosen_and_followed() {
    let daemon = Daemon::start();
    let faas = Faas::new(&daemon);
    faas.ok(&["new", "hello"]);
    faas.ok(&["deploy", "./hello"]);
    assert_eq!(faas.ok(&["logs", "hello", "--instance", "hello-1", "--since", "10m"]), "of hello-1, true\n");
    // The fake's function is removed after these.
    assert_eq!(faas.ok(&["logs", "hello", "-f", "-n", "2"]), "line 1\nline 2\n");
    faas.fails(&["logs", "hello", "--since", "yesterday"], 64, "like 90s, 10m");
    faas.fails(&["logs", "hello", "--instance", "a&b"], 64, "letters, digits");

    let event = |id: u64, kind| Event {
        id,
        time: jiff::Timestamp::now(),
        function: Some("hello".parse().unwrap()),
        kind,
        revision: Some(2),
        instance: None,
        message: "exit status 1; its last output:\n  \x1b[31mno such table".into(),
    };
    assert_eq!(faas.ok(&["events"]), "", "the remark about an empty list is no result");
    daemon
        .fake
        .events
        .lock()
        .unwrap()
        .extend([event(1, EventKind::Deployed), event(2, EventKind::InstanceFailed)]);
    let listed = faas.ok(&["events", "hello"]);
    for part in ["TIME", "deployed", "instance-failed", "^[[31mno such table"] {
        assert!(listed.contains(part), "{part}: {listed}");
    }
    let described = faas.ok(&["describe", "hello"]);
    assert!(described.contains("Events\n") && described.contains("instance-failed"), "{described}");
    assert_eq!(faas.ok(&["events", "other"]), "");
    let json: Events = serde_json::from_str(&faas.ok(&["events", "-n", "1", "-o", "json"])).unwrap();
    assert_eq!(json.events[0].id, 2);
}

#[test]
fn secrets_come_from_files_and_pipes_alone() {
    let daemon = Daemon::start();
    let faas = Faas::new(&daemon);
    assert_eq!(faas.ok(&["secret", "ls"]), "");
    let ran = faas.run_with_input(&["secret", "set", "piped"], b"a\0b");
    assert_eq!((ran.code, ran.out.as_str()), (0, ""), "{}", ran.err);
    let ran = faas.run_with_input(&["secret", "set", "echoed"], b"value\n");
    assert!(ran.err.contains("ends with a line feed"), "{}", ran.err);
    faas.write("key", "two\nlines\n");
    let ran = faas.run(&["secret", "set", "tls.key", "--from-file", "key"]);
    assert!(ran.code == 0 && !ran.err.contains("line feed"), "{}", ran.err);
    let kept = |name: &str| daemon.fake.secrets.lock().unwrap()[&name.parse().unwrap()].1.as_bytes().to_vec();
    assert_eq!((kept("piped"), kept("tls.key")), (b"a\0b".to_vec(), b"two\nlines\n".to_vec()));
    let large = faas.run_with_input(&["secret", "set", "x"], &vec![b'x'; (64 << 10) + 1]);
    assert!(large.code == 65 && large.err.contains("65536 bytes at most"), "{}", large.err);
    faas.fails(&["secret", "set", "x", "--from-file", "none"], 66, "none");
    faas.fails(&["secret", "set", "x", "value"], 64, "value");
    faas.fails(&["secret", "set", "../x"], 64, "is no name of a secret");
    let listed = faas.ok(&["secret", "ls"]);
    assert!(listed.contains("tls.key") && !listed.contains("lines"), "{listed}");
    faas.fails(&["secret", "rm", "piped"], 1, "is read by hello");
    faas.ok(&["secret", "rm", "piped", "--force"]);
    faas.fails(&["secret"], 64, "set");
}

#[test]
fn an_invocation_prints_what_the_function_answered() {
    let daemon = Daemon::start();
    let faas = Faas::new(&daemon);
    faas.ok(&["new", "hello"]);
    faas.ok(&["deploy", "./hello"]);
    assert_eq!(faas.ok(&["invoke", "hello"]), "/");
    assert_eq!(faas.ok(&["invoke", "hello", "a?b=c"]), "/a?b=c");
    assert_eq!(faas.ok(&["invoke", "hello", "-d", "text"]), "text");
    faas.write("body", "from a file");
    assert_eq!(faas.ok(&["invoke", "hello", "-d", "@body"]), "from a file");
    let large = "0123456789".repeat(100_000);
    assert_eq!(faas.run_with_input(&["invoke", "hello", "-d", "-"], large.as_bytes()).out, large);
    let included = faas.ok(&["invoke", "hello", "-i", "-X", "PATCH", "-H", "x-test: yes", "-d", "x"]);
    assert!(included.starts_with("HTTP/1.1 200 OK\n"), "{included}");
    assert!(included.contains("x-method: PATCH\n") && included.contains("x-test: yes\n"), "{included}");
    assert!(included.ends_with("\n\nx"), "{included}");

    let ran = faas.run(&["invoke", "hello", "/status/503"]);
    assert_eq!((ran.code, ran.out.as_str()), (1, "/status/503"), "a function's 503 is not the daemon's");
    assert!(ran.err.contains("hello answered 503"), "{}", ran.err);
    faas.fails(&["invoke", "hello", "-d", "@nothing"], 66, "nothing");
    faas.fails(&["invoke", "hallo"], 1, "did you mean 'hello'?");
}

#[test]
fn a_bad_directory_is_refused_before_anything_is_sent() {
    let daemon = Daemon::start();
    let faas = Faas::new(&daemon);
    fs::create_dir(faas.dir.path().join("empty")).unwrap();
    faas.write("typo/faas.toml", "[limits]\nmemroy = \"64MiB\"\n");
    faas.write("typo/handler.py", "def handle(e, c): pass\n");
    faas.write("rust/Cargo.toml", "");
    faas.write("rust/faas.toml", "contract = \"fd\"\ncommand = [\"./target/release/rust\"]\n");
    faas.write("Bad_Name/handler.py", "def handle(e, c): pass\n");
    faas.fails(&["deploy", "x", "nothing"], 66, "no directory nothing");
    faas.fails(&["deploy", "./empty"], 66, "holds no function");
    faas.fails(&["deploy", "./typo"], 65, "did you mean `memory");
    faas.fails(&["deploy", "./rust"], 66, "cargo build --release");
    faas.fails(&["deploy", "./Bad_Name"], 64, "did you mean 'bad-name'?");
    assert!(daemon.fake.images.lock().unwrap().is_empty());
}

#[test]
fn a_failed_deploy_shows_the_reason() {
    let daemon = Daemon::start();
    let faas = Faas::new(&daemon);
    faas.ok(&["new", "hello"]);
    *daemon.fake.deploy_fails.lock().unwrap() = Some(ApiError::Failed {
        title: "no instance of hello became ready within 10 s".into(),
        detail: Some("Traceback\x1b[31m (most recent call last)".into()),
    });
    let ran = faas.run(&["deploy", "./hello"]);
    assert_eq!((ran.code, ran.out.as_str()), (1, ""));
    assert!(ran.err.contains("error: no instance of hello"), "{}", ran.err);
    assert!(ran.err.contains("  Traceback^[[31m (most"), "a function cannot steer the terminal: {}", ran.err);
}

#[test]
fn peers_are_invited_listed_and_revoked() {
    let daemon = Daemon::start();
    let faas = Faas::new(&daemon);
    let invited = faas.run(&["vpn", "invite", "laptop", "--expires", "1h", "--endpoint", "a.example:1"]);
    assert_eq!(
        (invited.code, invited.out.as_str()),
        (0, "faas1-a.example:1\n"),
        "the invitation alone can be piped"
    );
    assert!(invited.err.contains("expires in "), "{}", invited.err);
    let invited: Invited = serde_json::from_str(&faas.ok(&["vpn", "invite", "phone", "-o", "json"])).unwrap();
    assert_eq!(invited.address.to_string(), "fd00:faa5:0:100::3");
    let peers = faas.ok(&["vpn", "peers"]);
    assert!(peers.contains("laptop") && peers.contains("invited"), "{peers}");
    let peers: Peers = serde_json::from_str(&faas.ok(&["vpn", "peers", "-o", "json"])).unwrap();
    assert_eq!(peers.peers.len(), 2);
    faas.ok(&["vpn", "revoke", "laptop", "--yes"]);
    faas.fails(&["vpn", "revoke", "fone"], 1, "did you mean 'phone'?");
}

#[test]
fn a_reader_that_has_seen_enough_is_no_error() {
    let faas = Faas::alone();
    let mut child =
        faas.command(&["completions", "bash"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(0), b"".as_slice()));
}

#[test]
fn completions_know_the_verbs() {
    let faas = Faas::alone();
    for shell in ["bash", "zsh", "fish"] {
        let script = faas.ok(&["completions", shell]);
        assert!(script.contains("describe") && script.contains("vpn"), "{shell}");
    }
}

#[test]
fn the_rust_template_is_deployed_once_it_is_built() {
    let daemon = Daemon::start();
    let faas = Faas::new(&daemon);
    faas.fails(&["new", "hi", "--lang", "rust", "--sdk", "nowhere"], 66, "nowhere/Cargo.toml");
    let sdk = concat!(env!("CARGO_MANIFEST_DIR"), "/../faasd-sdk");
    for (name, more, key) in [("hi", &["--sdk", sdk][..], "path"), ("released", &[], "git")] {
        faas.ok(&[&["new", name, "--lang", "rust"], more].concat());
        let manifest = fs::read_to_string(faas.dir.path().join(name).join("Cargo.toml")).unwrap();
        let manifest: toml::Table = manifest.parse().unwrap();
        assert!(manifest["dependencies"]["faasd-sdk"][key].is_str(), "{manifest}");
    }
    let toml = fs::read_to_string(faas.dir.path().join("hi/faas.toml")).unwrap();
    let spec = faasd::core::spec::FunctionSpec::from_toml(&toml).unwrap();
    assert!(spec.build.is_some_and(|build| build.contains("cargo build")));
    // Not here: what it takes to build it is for the end-to-end tests.
    let file = faas.dir.path().join("hi/faas.toml");
    fs::write(&file, toml.lines().filter(|line| !line.starts_with("build")).collect::<Vec<_>>().join("\n"))
        .unwrap();
    faas.fails(&["deploy", "./hi"], 66, "build it first");
    // Any program will do for the packing.
    let program = faas.dir.path().join("hi").join(&spec.command[0]);
    fs::create_dir_all(program.parent().unwrap()).unwrap();
    fs::copy(Path::new("/bin/true"), &program).unwrap();
    let ran = faas.run(&["deploy", "./hi"]);
    assert_eq!(ran.code, 0, "{}", ran.err);
    let images = daemon.fake.images.lock().unwrap();
    let packed = images.values().next().unwrap();
    assert!(packed.iter().any(|path| spec.command[0].ends_with(path.as_str())), "{packed:?}");
}

#[test]
fn a_machine_that_never_joined_is_told_how() {
    let faas = Faas::alone();
    let state = ["--state-dir", "state", "--interface", "faascli0"];
    let run = |verb: &str, more: &[&str], code, why: &str| {
        faas.fails(&[&["vpn", verb], state.as_slice(), more].concat(), code, why);
    };
    run("status", &[], 66, "faas vpn connect INVITATION");
    run("connect", &[], 66, "faas vpn connect INVITATION");
    run("connect", &["nonsense"], 65, "no invitation");
    run("connect", &["-"], 66, "standard input");
}

#[test]
fn the_doctor_names_a_verdict_and_a_remedy_for_each_check() {
    let faas = Faas::alone();
    let ran = faas.run(&["doctor", "-o", "json"]);
    let found: serde_json::Value = serde_json::from_str(&ran.out).unwrap();
    let checks = found["checks"].as_array().unwrap();
    let failed = checks.iter().filter(|check| check["verdict"] == "failed").count();
    assert_eq!(ran.code, i32::from(failed > 0), "{}{}", ran.out, ran.err);
    let daemon = checks.iter().find(|check| check["name"] == "faasd").unwrap();
    assert_eq!(
        (daemon["verdict"].as_str(), daemon["remedy"].as_str()),
        (Some("warning"), Some("systemctl start faasd"))
    );
    assert!(checks.len() > 5, "{found}");
    for check in checks {
        assert!(check["verdict"] == "ok" || check["remedy"].is_string(), "no remedy: {check}");
    }
    assert!(faas.run(&["doctor"]).out.starts_with("VERDICT"));
}

fn table(out: &str) -> Vec<Vec<String>> {
    out.lines().skip(1).map(|line| line.split_whitespace().map(str::to_owned).collect()).collect()
}

#[test]
fn apply_makes_it_so_where_something_changed() {
    let daemon = Daemon::start();
    let faas = Faas::new(&daemon);
    for name in ["a", "b", "c"] {
        faas.write(&format!("{name}/handler.py"), "def handle(event, context):\n    return 'x'\n");
    }
    faas.write("stack.toml", "[functions.web]\npath = './c'\n[functions.web.scale]\nmax = 4\n");
    let args = ["apply", "a", "./b", "-f", "stack.toml"];
    assert!(faas.ok(&["apply", "./a", "--dry-run"]).starts_with("a (new)\n"));
    assert!(faas.ok(&["ls"]).is_empty(), "a dry run deploys nothing");
    let rows = |ran: &str| table(ran).iter().map(|row| row.join(" ")).collect::<Vec<_>>();
    assert_eq!(rows(&faas.ok(&args)), ["a created 1", "b created 1", "web created 1"]);
    assert_eq!(daemon.fake.images.lock().unwrap().len(), 1, "the same code is kept once");
    let again = faas.run(&args);
    assert_eq!(rows(&again.out), ["a unchanged 1", "b unchanged 1", "web unchanged 1"]);
    assert!(again.err.starts_with("3 unchanged in "), "{}", again.err);
    assert_eq!(faas.ok(&["diff", "a", "./b", "-f", "stack.toml"]), "");

    faas.write("b/faas.toml", "[scale]\nmin = 0\nmax = 2\n[env]\nGREETING = 'hi'\n");
    let ran = faas.run(&["diff", "a", "b", "-f", "stack.toml"]);
    assert_eq!(ran.code, 1, "as diff's: {}", ran.err);
    let lines: Vec<&str> = ran.out.lines().collect();
    assert!(
        lines[..2] == ["b", lines[1]] && lines[1].starts_with("  ~ code          \"sha256:"),
        "{}",
        ran.out
    );
    let expected = ["  + env.GREETING  \"hi\"", "  + scale.max     2", "  ~ scale.min     1 -> 0"];
    assert_eq!(lines[2..], expected, "its file is part of its code");
    faas.write("a/handler.py", "def handle(event, context):\n    return 'y'\n");
    let changed = faas.run(&["diff", "a", "-o", "json"]).out;
    let changed: serde_json::Value = serde_json::from_str(&changed).unwrap();
    assert_eq!(changed["functions"][0]["changes"][0]["key"], "code", "{changed}");
    faas.write("c/faas.toml", "[scale]\nmin = 'x'\n");
    let ran = faas.run(&args);
    assert_eq!(ran.code, 1);
    assert_eq!(rows(&ran.out), ["a updated 2", "b updated 2", "web failed"]);
    assert!(ran.err.contains("error: web: ") && ran.err.contains("2 updated, 1 failed"), "{}", ran.err);

    faas.fails(&["apply", "a", "a=b"], 64, "'a' is declared twice");
    faas.write("bad.toml", "[function.a]\npath = 'a'\n");
    faas.fails(&["apply", "-f", "bad.toml"], 65, "did you mean `functions`");
    faas.write("bad.toml", "[functions.a]\n");
    faas.fails(&["apply", "-f", "bad.toml"], 65, "says not where it is");
    faas.fails(&["apply", "-f", "none.toml"], 66, "none.toml");
    faas.write("bad.toml", "[functions.a]\npath = 'a'\nscal = 1\n");
    let ran = faas.run(&["apply", "-f", "bad.toml"]);
    assert!(ran.code == 1 && ran.err.contains("did you mean `scale`"), "{}", ran.err);
}

#[test]
fn flags_come_before_the_file() {
    let daemon = Daemon::start();
    let faas = Faas::new(&daemon);
    faas.write("f/handler.py", "def handle(event, context):\n    return 'x'\n");
    faas.write(
        "f/faas.toml",
        "[limits]\nmemory_bytes = 33554432\n[scale]\nmin = 1\n[env]\nA = 'file'\nB = 'file'\n",
    );
    let args = ["deploy", "./f", "--min=0", "--max=8", "--concurrency=10", "--idle=2m", "--memory=64MiB"];
    let args = [&args[..], &["--cpu=0.5", "--env", "A=flag", "-e", "C=a=b", "-o", "json"]].concat();
    let spec = serde_json::from_str::<Function>(&faas.ok(&args)).unwrap().spec;
    assert_eq!((spec.scale.min, spec.scale.max, spec.scale.concurrency), (0, Some(8), 10));
    assert_eq!(
        (spec.scale.idle_ms, spec.limits.memory_bytes, spec.limits.cpu_cores),
        (120_000, 64 << 20, 0.5)
    );
    let env: Vec<(&str, &str)> = spec.env.iter().map(|(name, value)| (&**name, &**value)).collect();
    assert_eq!(env, [("A", "flag"), ("B", "file"), ("C", "a=b")]);
    faas.fails(&["deploy", "./f", "--memory=1KB"], 64, "128MiB");
    faas.fails(&["deploy", "./f", "--max=65"], 64, "to 64");
    faas.fails(&["deploy", "./f", "--env", "A"], 64, "NAME=VALUE");
}

#[test]
fn the_schema_is_printed() {
    let schema: serde_json::Value = serde_json::from_str(&Faas::alone().ok(&["schema"])).unwrap();
    assert_eq!(schema, faasd::core::spec::file_schema());
}
