//! Short real measurements with the real program.

#![expect(clippy::unwrap_used, reason = "a test ends where something is missing")]

use std::path::Path;
use std::process::{Command, Output};
use std::sync::{Mutex, PoisonError};

use serde_json::Value;

/// Tests run in parallel, measurements must not.
static QUIET: Mutex<()> = Mutex::new(());

fn run(args: &[&str]) -> Output {
    let _quiet = QUIET.lock().unwrap_or_else(PoisonError::into_inner);
    Command::new(env!("CARGO_BIN_EXE_faasd-bench")).arg("run").args(args).output().unwrap()
}

fn results(args: &[&str], out: &Path) -> Value {
    let output = run(&[args, &["--out", out.to_str().unwrap()]].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&std::fs::read(out).unwrap()).unwrap()
}

fn row<'a>(report: &'a Value, scenario: &str, clients: u64, subject: &str) -> &'a Value {
    let wanted =
        |row: &&Value| row["scenario"] == scenario && row["clients"] == clients && row["subject"] == subject;
    report["results"].as_array().unwrap().iter().find(wanted).unwrap_or_else(|| {
        panic!("no row for {scenario} x{clients} of {subject} in {report:#}");
    })
}

const NUMBERS: [&str; 12] = [
    "p50_us",
    "p99_us",
    "p999_us",
    "rps",
    "cpu_us_per_request",
    "p50_ratio",
    "p99_ratio",
    "p999_ratio",
    "rps_ratio",
    "cpu_ratio",
    "samples",
    "requests",
];

#[test]
fn bare_against_bare_is_about_one() {
    let dir = tempfile::tempdir().unwrap();
    let report =
        results(&["--rounds", "7", "--chunk-ms", "60", "--subjects", "control"], &dir.path().join("out"));
    for (scenario, clients) in [("new", 1), ("new", 64), ("keepalive", 1), ("keepalive", 64)] {
        for subject in ["bare", "control"] {
            let row = row(&report, scenario, clients, subject);
            for field in NUMBERS {
                assert!(row[field].as_f64().unwrap() > 0.0, "{field} in {row:#}");
            }
            assert_eq!((&row["errors"], &row["first_error"]), (&Value::from(0), &Value::Null), "{row:#}");
        }
        let control = row(&report, scenario, clients, "control");
        assert_eq!(control["samples"], 7);
        // With many clients on one core a request mostly waits, also for whatever else this machine does.
        let steady: &[&str] = if clients == 1 { &["p50_ratio", "cpu_ratio"] } else { &["cpu_ratio"] };
        for &field in steady {
            let ratio = control[field].as_f64().unwrap();
            assert!((0.5..2.0).contains(&ratio), "{field} in {control:#}");
        }
        let [low, high] = [0, 1].map(|at| control["p50_ratio_iqr"][at].as_f64().unwrap());
        let median = control["p50_ratio"].as_f64().unwrap();
        assert!(low <= median && median <= high, "{control:#}");
    }
    assert!(report["host"]["cores"].as_u64().unwrap() > 0);
    assert!(!report["host"]["kernel"].as_str().unwrap().is_empty());
    assert!(report["date"].as_str().unwrap().starts_with("20"));
}

#[test]
fn every_acceptor_hands_over_without_an_error_and_keeps_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let subjects = "acceptor-uring,acceptor-tokio-uring,acceptor-tokio";
    let args = [
        "--rounds",
        "2",
        "--chunk-ms",
        "60",
        "--subjects",
        subjects,
        "--scenarios",
        "new,keepalive,download-1m",
        "--idle",
        "200",
    ];
    let report = results(&args, &dir.path().join("out"));
    for subject in subjects.split(',') {
        for (scenario, clients) in [("new", 1), ("new", 64), ("keepalive", 64), ("download-1m", 1)] {
            let row = row(&report, scenario, clients, subject);
            assert_eq!(row["errors"], 0, "{row:#}");
            assert!(row["requests"].as_u64().unwrap() > 0, "{row:#}");
        }
        let idle = report["idle"].as_array().unwrap().iter().find(|idle| idle["subject"] == subject).unwrap();
        assert_eq!(idle["connections"], 200);
        assert_eq!(idle["gateway_descriptors_held"], idle["gateway_descriptors_before"], "{idle:#}");
    }
}

#[test]
fn what_is_wrong_is_said() {
    for (args, words) in [
        (["--subjects", "apache"], "there is no subject `apache`; there are control, nginx,"),
        (["--target", "x=here"], "`here` is no address with a port"),
        (["--hello", "/nonexistent"], "No such file or directory"),
        (["--server-cpus", "one"], "is no list of CPUs"),
    ] {
        let output = run(&args);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && stderr.contains(words), "{args:?}: {stderr}");
    }
}

#[test]
fn a_confined_server_has_a_filter_of_system_calls() {
    let run = |program: &[&str]| {
        let mut filtered = Command::new(env!("CARGO_BIN_EXE_faasd-bench"));
        filtered.arg("filtered").args(program).output().unwrap()
    };
    let output = run(&["grep", "^Seccomp:", "/proc/self/status"]);
    // 2 is a filter; without it 0.
    assert_eq!(String::from_utf8_lossy(&output.stdout), "Seccomp:\t2\n");
    let output = run(&["/nonexistent"]);
    assert!(!output.status.success() && String::from_utf8_lossy(&output.stderr).contains("/nonexistent"));
}
