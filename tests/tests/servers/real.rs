//! The examples that are servers as they are: each is deployed as it stands, ended, and woken by its own real client.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use faasd_tests::{Bed, address, eventually, only, program, ready, signal, until};
use rustix::process::Signal;

/// The interpreter of containers, for which the packages are installed.
const PYTHON: &str = "/usr/bin/python3";

/// An example that is served.
struct Served {
    bed: Bed,
    name: &'static str,
    /// A copy of the example, as it was deployed.
    directory: PathBuf,
}

impl Served {
    /// Copies an example with what it depends on, readies it as its README says, and deploys it.
    fn deploy(name: &'static str, make: impl FnOnce(&Path) -> Result<()>) -> Result<Self> {
        let bed = Bed::joined()?;
        let directory = bed.path("functions").join(name);
        fs::create_dir_all(&directory)?;
        let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples").join(format!("port-{name}"));
        copy(&example, &directory)?;
        let depends = ["requirements.txt", "package.json"].iter().any(|file| example.join(file).exists());
        if depends {
            let lib = tools().join("examples").join(format!("port-{name}")).join("lib");
            ensure!(lib.is_dir(), "{} is missing: run `cargo xtask setup --for test`", lib.display());
            copy(&lib, &directory.join("lib"))?;
        }
        make(&directory)?;
        let served = Self { bed, name, directory };
        served.redeploy()?;
        Ok(served)
    }

    fn redeploy(&self) -> Result<()> {
        self.bed
            .faas(&["deploy", "--force", self.name, &self.directory.display().to_string()])?
            .ok()
            .map(drop)
    }

    /// What a program on the client prints.
    fn client(&self, arguments: &[&str]) -> Result<String> {
        self.bed.client().run(arguments)?.ok()
    }

    /// A program in Python on the client, with the example's own packages.
    fn client_python(&self, arguments: &[&str]) -> Result<String> {
        let path = format!("PYTHONPATH={}", self.directory.join("lib").display());
        let script = self.directory.join("client.py").display().to_string();
        self.client(&[&["env", &path, PYTHON, &script], arguments].concat())
    }

    fn host(&self) -> String {
        format!("{}.faas", self.name)
    }

    fn curl(&self, path: &str) -> Result<String> {
        self.bed.client().curl(&format!("http://{}{path}", self.host()))
    }

    /// Has it asked while it is there, and again when its instance has been killed: the question wakes it. Its own
    /// `accept` receives every connection.
    fn wakes(self, ask: impl Fn(&Self) -> Result<()>) -> Result<()> {
        let function = self.woken(ask)?;
        ensure!(function["instances"][0]["relayed"].is_null(), "{function}");
        self.bed.finish()
    }

    /// The function as it is after it was asked from zero.
    fn woken(&self, ask: impl Fn(&Self) -> Result<()>) -> Result<serde_json::Value> {
        ask(self).context("while it was there")?;
        signal(only(&self.bed.describe(self.name)?)?, Signal::KILL)?;
        let is_cold = |f: &serde_json::Value| faasd_tests::started(f) == 0;
        until(&self.bed, self.name, "its instance is gone", is_cold)?;
        ask(self).with_context(|| format!("from zero\n{}", self.bed.log()))?;
        let function = self.bed.describe(self.name)?;
        only(&function)?;
        let connections = &function["connections"];
        // The daemon touched none of them.
        ensure!(connections["accepted"] == 0 && connections["refused"] == 0, "{connections}");
        ensure!(connections["warm"].as_u64().is_some_and(|warm| warm > 0), "{connections}");
        Ok(function)
    }
}

/// Where the project installs what the tests need.
fn tools() -> PathBuf {
    program("").join("../tools")
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    run(Command::new("cp").args(["-RT", "--preserve=mode"]).args([from, to]))
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("cannot run {command:?}"))?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

fn as_it_is(_: &Path) -> Result<()> {
    Ok(())
}

fn answers(path: &'static str, text: &'static str) -> impl Fn(&Served) -> Result<()> {
    move |served| {
        let answer = served.curl(path)?;
        ensure!(answer.contains(text), "{answer:?}");
        Ok(())
    }
}

pub fn nginx() -> Result<()> {
    Served::deploy("nginx", as_it_is)?.wakes(answers("/", "Hello from nginx."))
}

/// A download is under way when a new revision takes over: the old one is asked by SIGQUIT to finish it.
pub fn nginx_drains() -> Result<()> {
    // More than the buffers of both ends hold: the server is not done before the client reads.
    const SIZE: usize = 32 << 20;
    let content = vec![b'x'; SIZE];
    let nginx = Served::deploy("nginx", |dir| Ok(fs::write(dir.join("html/large"), &content)?))?;
    let function = nginx.bed.describe(nginx.name)?;
    let old = only(&function)?;
    let mut download = nginx.bed.client().connect(address(&function)?, 80)?;
    write!(download, "GET /large HTTP/1.0\r\n\r\n")?;
    let mut received = vec![0; 1024];
    download.read_exact(&mut received)?;
    nginx.redeploy()?;
    until(&nginx.bed, nginx.name, "the new one is ready", |f| ready(f).iter().any(|pid| *pid != old))?;
    nginx.bed.client().curl("http://nginx.faas/")?;
    download.read_to_end(&mut received)?;
    ensure!(received.ends_with(&content), "{} bytes came of {SIZE} and a header", received.len());
    until(&nginx.bed, nginx.name, "the old one is gone", |f| only(f).is_ok_and(|pid| pid != old))?;
    nginx.bed.finish()
}

pub fn redis() -> Result<()> {
    Served::deploy("redis", as_it_is)?.wakes(|redis| {
        let host = redis.host();
        ensure!(redis.client(&["redis-cli", "-h", &host, "set", "key", "value"])? == "OK\n");
        ensure!(redis.client(&["redis-cli", "-h", &host, "get", "key"])? == "value\n");
        Ok(())
    })
}

pub fn postgresql() -> Result<()> {
    Served::deploy("postgresql", as_it_is)?.wakes(|postgresql| {
        let url = format!("postgresql://postgres:change-me@{}/postgres", postgresql.host());
        let psql = |query: &str| postgresql.client(&["psql", "-XqAt", "-d", &url, "-c", query]);
        // It listens a little before it lets anyone in, and tells those who come by then to come again.
        let mut said = Ok(String::new());
        eventually("it lets clients in", || {
            said = psql("select 1");
            !said.as_ref().is_err_and(|e| e.to_string().contains("the database system is starting up"))
        })?;
        ensure!(said? == "1\n");
        psql("create table numbers as select generate_series(1, 1000) as n")?;
        ensure!(psql("select sum(n) from numbers")? == "500500\n");
        // Workers share memory with the one that was asked.
        let parallel = "set min_parallel_table_scan_size = 0; set parallel_setup_cost = 0; \
                        set parallel_tuple_cost = 0;";
        let plan = psql(&format!("{parallel} explain select sum(n) from numbers"))?;
        ensure!(plan.contains("Gather"), "{plan}");
        ensure!(psql(&format!("{parallel} select sum(n) from numbers"))? == "500500\n");
        ensure!(psql("drop table numbers; select inet_client_addr() << 'fc00::/7'")? == "t\n");
        Ok(())
    })
}

pub fn go() -> Result<()> {
    let build = |dir: &Path| {
        let mut go = Command::new("go");
        go.args(["build", "-o", "server", "."]).current_dir(dir);
        go.env("CGO_ENABLED", "0").env("GOTOOLCHAIN", "local").env("GOCACHE", dir.with_extension("cache"));
        run(&mut go)
    };
    Served::deploy("go", build)?.wakes(answers("/", "Hello from Go, [fd"))
}

pub fn express() -> Result<()> {
    Served::deploy("express", as_it_is)?.wakes(|express| {
        answers("/", "Hello from Express.")(express)?;
        let url = format!("http://{}/echo", express.host());
        let json = ["curl", "-sS", "--json", r#"{"a":[1]}"#, &url];
        let answer: serde_json::Value = serde_json::from_str(&express.client(&json)?)?;
        ensure!(answer["you"]["a"][0] == 1, "{answer}");
        ensure!(answer["from"].as_str().is_some_and(|from| from.starts_with("fd")), "{answer}");
        Ok(())
    })
}

pub fn fastapi() -> Result<()> {
    Served::deploy("fastapi", as_it_is)?.wakes(|fastapi| {
        answers("/", "Hello from FastAPI.")(fastapi)?;
        let url = format!("http://{}/sum", fastapi.host());
        let answer = fastapi.client(&["curl", "-sS", "--json", r#"{"a":40,"b":2}"#, &url])?;
        ensure!(answer == r#"{"sum":42}"#, "{answer}");
        Ok(())
    })
}

pub fn gunicorn() -> Result<()> {
    Served::deploy("gunicorn", as_it_is)?.wakes(|gunicorn| {
        let mut workers = BTreeSet::new();
        eventually("both workers have answered", || {
            workers.extend(gunicorn.curl("/").ok());
            workers.len() == 2
        })
        .with_context(|| format!("{workers:?}"))
    })
}

pub fn java() -> Result<()> {
    let build = |dir: &Path| {
        run(Command::new("javac").arg("Server.java").current_dir(dir))?;
        let jlink = ["--add-modules", "jdk.httpserver", "--strip-debug", "--output", "runtime"];
        run(Command::new("jlink").args(jlink).current_dir(dir))
    };
    Served::deploy("java", build)?.wakes(answers("/", "Hello from Java, "))
}

pub fn grpc() -> Result<()> {
    Served::deploy("grpc", as_it_is)?.wakes(|grpc| {
        let said = grpc.client_python(&[&format!("{}:80", grpc.host())])?;
        ensure!(said == "SERVING\none\ntwo\nthree\n", "{said:?}");
        Ok(())
    })
}

pub fn websocket() -> Result<()> {
    Served::deploy("websocket", as_it_is)?.wakes(|websocket| {
        let said = websocket.client_python(&[&format!("ws://{}/", websocket.host()), "one", "two"])?;
        ensure!(said == "one\ntwo\n", "{said:?}");
        Ok(())
    })
}

pub fn memcached() -> Result<()> {
    Served::deploy("memcached", as_it_is)?.wakes(|memcached| {
        let address = address(&memcached.bed.describe(memcached.name)?)?;
        let mut stream = memcached.bed.client().connect(address, 11_211)?;
        stream.write_all(b"set key 0 0 5\r\nvalue\r\nget key\r\nquit\r\n")?;
        let mut said = String::new();
        stream.read_to_string(&mut said)?;
        ensure!(said == "STORED\r\nVALUE key 0 5\r\nvalue\r\nEND\r\n", "{said:?}");
        Ok(())
    })
}

pub fn haproxy() -> Result<()> {
    Served::deploy("haproxy", as_it_is)?.wakes(answers("/", "Hello from HAProxy."))
}

pub fn lighttpd() -> Result<()> {
    Served::deploy("lighttpd", as_it_is)?.wakes(answers("/", "Hello from lighttpd."))
}
