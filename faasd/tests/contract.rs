//! What is written down of the API and of the function file is what the code does.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use boon::{Compiler, Schemas};
use faasd::core::spec::{FunctionSpec, SCHEMA_URL, file_schema};
use faasd::telemetry::names;
use serde_json::Value;

/// Compares a checked-in document with what the code makes, or with RENEW=1 writes it anew.
fn compare(file: &str, made: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs").join(file);
    if std::env::var_os("RENEW").is_some() {
        std::fs::write(&path, made).unwrap();
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    let differs = found.lines().zip(made.lines()).position(|(found, made)| found != made);
    assert!(
        found == made,
        "docs/{file} is not what the code says, from line {} on; `cargo xtask contract` renews it",
        differs.unwrap_or(found.lines().count().min(made.lines().count())) + 1
    );
}

#[test]
fn the_document_is_that_of_the_code() {
    compare("openapi.json", faasd::control::api::document());
}

#[test]
fn the_schema_is_that_of_the_code() {
    compare("faas.schema.json", &format!("{:#}\n", file_schema()));
}

#[test]
fn every_metric_is_in_the_manual() {
    let manual = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/OBSERVABILITY.md");
    let text = std::fs::read_to_string(manual).unwrap();
    const TITLE: &str = "## Metrics\n\n";
    let (before, _) = text.split_once(TITLE).unwrap();
    compare("OBSERVABILITY.md", &format!("{before}{TITLE}{}", names::table()));
}

/// What stands for a metric in a text.
fn metrics_in(text: &str) -> BTreeSet<&str> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    words.filter(|word| word.starts_with("faasd_") || word.starts_with("process_")).collect()
}

#[test]
fn dashboard_and_alerts_ask_for_metrics_that_there_are() {
    let known: BTreeSet<String> = names::ALL.iter().flat_map(names::Metric::series).collect();
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/observability");
    for (file, least) in [("grafana.json", 25), ("rules.yml", 8), ("rules_test.yml", 8)] {
        let text = std::fs::read_to_string(dir.join(file)).unwrap();
        let asked = metrics_in(&text);
        let unknown: Vec<_> = asked.iter().filter(|name| !known.contains(**name)).collect();
        assert!(unknown.is_empty() && asked.len() >= least, "{file}: {unknown:?} of {}", asked.len());
    }
    // As Grafana reads it.
    let board: Value = serde_json::from_slice(&std::fs::read(dir.join("grafana.json")).unwrap()).unwrap();
    let panels = board["panels"].as_array().unwrap();
    let ids: BTreeSet<_> = panels.iter().map(|panel| panel["id"].as_u64().unwrap()).collect();
    assert_eq!(ids.len(), panels.len());
    for panel in panels.iter().filter(|panel| panel["type"] != "row") {
        assert!(!panel["targets"].as_array().unwrap().is_empty(), "{panel}");
    }
}

/// Whether a file is as a schema says, or what is wrong with it.
fn by_schema(text: &str) -> Result<(), String> {
    let table: toml::Table = text.parse().map_err(|e| format!("{e}"))?;
    let (mut schemas, mut compiler) = (Schemas::new(), Compiler::new());
    compiler.add_resource("mem:faas", file_schema()).unwrap();
    let schema = compiler.compile("mem:faas", &mut schemas).unwrap();
    schemas.validate(&serde_json::to_value(table).unwrap(), schema).map_err(|e| format!("{e:#}"))
}

/// As `faas deploy` reads it: a `command` alone means a server.
fn by_parser(text: &str) -> Result<(), String> {
    let server = format!("contract = 'port'\n{text}");
    let is_said = text.parse::<toml::Table>().is_ok_and(|table| table.contains_key("contract"));
    match FunctionSpec::from_toml(text) {
        Err(_) if !is_said => FunctionSpec::from_toml(&server).map(drop).map_err(|e| e.to_string()),
        other => other.map(drop).map_err(|e| e.to_string()),
    }
}

fn function_files(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && !path.ends_with("node_modules") {
            function_files(&path, found);
        } else if path.ends_with("faas.toml") {
            found.push(path);
        }
    }
}

#[test]
fn examples_and_templates_are_as_the_schema_says() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    function_files(&root.join("templates"), &mut files);
    let templates = files.len();
    function_files(&root.join("../examples"), &mut files);
    assert!(templates >= 8 && files.len() > templates + 10, "{files:?}");
    for (index, file) in files.iter().enumerate() {
        let text = std::fs::read_to_string(file).unwrap();
        assert_eq!(by_schema(&text), Ok(()), "{}", file.display());
        let names_it = text.starts_with(&format!("#:schema {SCHEMA_URL}\n"));
        assert!(names_it || index >= templates, "{} does not name its schema", file.display());
    }
    let manual = std::fs::read_to_string(root.join("../docs/CONFIGURATION.md")).unwrap();
    let example = manual.split("```toml").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
    assert_eq!(by_schema(example), Ok(()));
}

#[test]
fn schema_and_parser_give_the_same_verdict() {
    for good in [
        "",
        "port = 8080",
        "handler = 'site/app.py:app'",
        "command = ['./a']",
        "command = ['./a']\nlisten_port = 3000\nipv4 = 'exchange'\nstop_signal = 'SIGQUIT'",
        "contract = 'fd'\ncommand = ['./a']\nforward = ['other']",
        "contract = 'listen-fds'\ncommand = ['a']\nstop_signal = 'SIGINT'",
        "contract = 'port'\nimage = 'nginx:1.27'\nwritable = ['/var/cache']",
        "[env]\nA = 'b'",
        "[limits]\nmemory = '64MiB'\ncpu = 0.5\npids = 16\ntmp = '1 MiB'\nfiles = 64",
        "[limits]\nmemory = 67108864\ncpu = 2",
        "[limits]\nmemory_bytes = 67108864\ncpu_cores = 2.5\npids_max = 9",
        "[scale]\nmin = 0\nmax = 64\nconcurrency = 1\nidle = '90s'\nprepared = 0\nqueue = 1",
        "[scale]\nidle_ms = '24h'",
        "[deadlines]\nstart = 500\ndrain = '0s'",
    ] {
        assert_eq!((by_parser(good), by_schema(good)), (Ok(()), Ok(())), "{good}");
    }
    for bad in [
        "contrat = 'fd'",
        "contract = 'lambda'",
        "port = 0",
        "port = 65536",
        "port = '80'",
        "contract = 'fd'",
        "contract = 'handler'\ncommand = ['x']",
        "contract = 'fd'\ncommand = ['x']\nhandler = 'a.py:f'",
        "contract = 'port'\ncommand = ['x']\nforward = ['a']",
        "contract = 'fd'\ncommand = ['x']\nforward = ['A_b']",
        "contract = 'listen-fds'\ncommand = ['x']\nlisten_port = 1",
        "contract = 'port'\ncommand = ['x']\nstop_signal = 'SIGKILL'",
        "listen_port = 1",
        "stop_signal = 'SIGTERM'",
        "command = 'x'",
        "command = ['x']\nwritable = ['/a']",
        "env = 'x'",
        "[env]\nA = 1",
        "[limits]\nmemroy = 1",
        "[limits]\nmemory = '1KB'",
        "[limits]\nmemory = 1.5",
        "[limits]\nmemory = -1",
        "[limits]\nmemory = 1024",
        "[limits]\nmemory = 67108864\nmemory_bytes = 67108864",
        "[limits]\ncpu = 0",
        "[limits]\ncpu = '1'",
        "[limits]\npids = 3",
        "[limits]\nfiles = 1",
        "[scale]\nmaximum = 3",
        "[scale]\nmin = 65",
        "[scale]\nmin = -1",
        "[scale]\nmax = 0",
        "[scale]\nconcurrency = 0",
        "[scale]\nidle = '1d'",
        "[scale]\nidle = 10",
        "[scale]\nprepared = 65",
        "[scale]\nqueue = 0",
        "[scales]\nmin = 1",
        "[deadlines]\nstart = 99",
        "[deadlines]\ndrain = 600001",
    ] {
        let (parsed, validated) = (by_parser(bad), by_schema(bad));
        assert!(parsed.is_err() && validated.is_err(), "{bad}: {parsed:?} {validated:?}");
    }
}

#[test]
fn schema_and_parser_know_the_same_keys() {
    let schema = file_schema();
    let keys = |value: &Value| -> BTreeSet<String> {
        value["properties"].as_object().unwrap().keys().cloned().collect()
    };
    let tables: Vec<(&str, &Value)> = vec![
        ("", &schema),
        ("[limits]", &schema["definitions"]["Limits"]),
        ("[scale]", &schema["definitions"]["Scale"]),
        ("[deadlines]", &schema["definitions"]["Deadlines"]),
    ];
    for (table, definition) in tables {
        // The parser lists what it knows when it meets what it does not.
        let error = FunctionSpec::from_toml(&format!("{table}\nno-such-key = 1")).unwrap_err().to_string();
        let listed = error.split("expected one of ").nth(1).unwrap_or_else(|| panic!("{error}"));
        let listed = listed.lines().next().unwrap();
        let known: BTreeSet<String> = listed.split('`').skip(1).step_by(2).map(str::to_owned).collect();
        assert_eq!(keys(definition), known, "{table}");
        assert_eq!(definition["additionalProperties"], false, "{table}");
        for (key, property) in definition["properties"].as_object().unwrap() {
            let is_said = property["description"].is_string() || property["$ref"].is_string();
            assert!(is_said || property["allOf"].is_array(), "{table} {key} has no description");
        }
    }
}
