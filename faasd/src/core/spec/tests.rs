use std::time::Duration;

use super::*;

#[test]
fn an_empty_file_is_a_handler_with_the_defaults() {
    let spec = FunctionSpec::from_toml("").unwrap();
    assert_eq!(spec, FunctionSpec::default());
    assert_eq!(spec.handler_parts().to_string(), "handler.py:handle");
}

#[test]
fn the_documented_file_is_the_defaults() {
    let manual = include_str!("../../../../docs/CONFIGURATION.md");
    let example = manual.split("```toml").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
    let spec = FunctionSpec::from_toml(example).unwrap();
    assert_eq!(spec.handler_parts().to_string(), "handler.py:handle");
    assert_eq!(FunctionSpec { handler: None, ..spec }, FunctionSpec::default());
}

#[test]
fn a_handlers_file_says_its_language() {
    let parts = |handler: &str| {
        let spec = FunctionSpec::from_toml(&format!("handler = '{handler}'")).unwrap();
        let Handler { language, file, name } = spec.handler_parts();
        (language, file.to_owned(), name.map(str::to_owned))
    };
    let some = |name: &str| Some(name.to_owned());
    assert_eq!(parts("site/asgi.py:app"), (Language::Python, "site/asgi.py".into(), some("app")));
    assert_eq!(parts("a.mjs"), (Language::Node, "a.mjs".into(), None));
    assert_eq!(parts("a.js:$x"), (Language::Node, "a.js".into(), some("$x")));
    for script in ["handler.sh", "handler", "bin/x.rb", ".py"] {
        assert_eq!(parts(script), (Language::Script, script.into(), None));
    }
}

#[test]
fn units_are_understood() {
    let spec = FunctionSpec::from_toml(
        "contract = 'fd'\ncommand = ['./a']\n[limits]\nmemory = '64MiB'\ncpu = 0.5\n[deadlines]\nstart = '3s'",
    )
    .unwrap();
    assert_eq!(spec.limits.memory_bytes, 64 << 20);
    assert_eq!(spec.deadlines.start(), Duration::from_secs(3));
}

#[test]
fn a_scale_says_how_many_and_for_how_long() {
    let scale = |text: &str| FunctionSpec::from_toml(&format!("[scale]\n{text}")).unwrap().scale;
    assert_eq!(scale("min = 0").max(), 1, "the first connection starts one");
    assert_eq!(scale("min = 3").max(), 3, "without a maximum it is a number");
    let all = "min = 0\nmax = 8\nconcurrency = 10\nidle = '2m'\nprepared = 2\nqueue = 100";
    let expected = Scale { min: 0, max: Some(8), concurrency: 10, idle_ms: 120_000, prepared: 2, queue: 100 };
    assert_eq!(scale(all), expected);
    assert_eq!(scale(all).idle(), Duration::from_secs(120));
    assert_eq!(scale("idle = '24h'").idle_ms, 86_400_000);
}

#[test]
fn the_store_reads_what_it_wrote() {
    let spec = FunctionSpec { env: [("A".into(), "b".into())].into(), ..FunctionSpec::default() };
    let text = serde_json::to_string(&spec).unwrap();
    assert_eq!(serde_json::from_str::<FunctionSpec>(&text).unwrap(), spec);
}

#[test]
fn bad_declarations_name_the_key_and_the_remedy() {
    for (text, why) in [
        ("contrat = 'fd'", "did you mean `contract`"),
        ("[limits]\nmemroy = 1", "did you mean `memory"),
        ("contract = 'fd'", "needs `command`"),
        ("command = ['x']", "`command` does not go with the contract `handler`"),
        ("forward = ['x']", "`forward` does not go"),
        ("contract = 'fd'\ncommand = ['x']\nforward = ['X_']", "forward"),
        ("listen_port = 1", "`listen_port` does not go"),
        ("contract = 'port'\ncommand = ['x']\nlisten_port = 0", "1 to 65535"),
        ("contract = 'port'\ncommand = ['x']\nstop_signal = 'SIGKILL'", "SIGTERM"),
        ("handler = 'x.py'", "FILE.py:FUNCTION"),
        ("handler = 'x.sh:f'", "FILE.py:FUNCTION"),
        ("handler = '/x.js'", "FILE.py:FUNCTION"),
        ("handler = ''", "FILE.py:FUNCTION"),
        ("handler = '../x.py:f'", "FILE.py:FUNCTION"),
        ("secrets = ['.x']", "no '.' at its beginning"),
        ("secrets = ['a', 'b', 'a']", "named twice"),
        ("allow = ['db']", "write one like db.faas"),
        ("allow = ['db.faas:80', 'db.faas']", "`allow` is db.faas:80; and it is named twice"),
        ("outside = ['api.example.com']", "write one like api.example.com:443"),
        ("outside = ['[::1]:80']", "not outside"),
        ("alow = ['db.faas']", "did you mean `allow`"),
        ("build = ''", "cargo build"),
        ("port = 0", "1 to 65535"),
        ("port = 70000", "70000"),
        ("[limits]\nmemory = '1KB'", "128MiB"),
        ("[limits]\nmemory = '1MiB'", "8MiB"),
        ("[limits]\ncpu = 0", "0.01"),
        ("[scale]\nmin = 1000", "0 to 64"),
        ("[scale]\nmax = 0", "1 at least"),
        ("[scale]\nmin = 3\nmax = 2", "scale.min"),
        ("[scale]\nmax = 65", "to 64"),
        ("[scale]\nconcurrency = 0", "1 to 1000000"),
        ("[scale]\nidle = '999ms'", "1s to 24h"),
        ("[scale]\nidle = '25h'", "1s to 24h"),
        ("[scale]\nidle = '1 week'", "30s"),
        ("[scale]\nprepared = 65", "0 to 64"),
        ("[scale]\nqueue = 0", "1 to 65536"),
        ("[scale]\nmaximum = 4", "unknown field `maximum`"),
        ("[scale]\nmaks = 4", "did you mean `max`"),
        ("[scale]\nconcurency = 4", "did you mean `concurrency`"),
        ("[scale]\nidel = '5m'", "did you mean `idle`"),
        ("[scale]\nprepare = 1", "did you mean `prepared`"),
        ("[deadlines]\nstart = '1h'", "100ms to 10m"),
        ("[deadlines]\nstart = '1d'", "30s"),
        ("[env]\n'A=B' = 'c'", "no '='"),
        ("x", "faas.toml"),
    ] {
        let error = FunctionSpec::from_toml(text).unwrap_err().to_string();
        assert!(error.contains(why), "{text}: {error}");
    }
}
