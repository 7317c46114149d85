//! Serves a script: a process for each request, by CGI/1.1 (RFC 3875). Connections come as to any function that uses
//! the SDK: handed over by faasd, or, with `FAAS_LISTEN`, from a listener of its own.

mod cgi;
mod process;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use std::{env, io};

use faasd_sdk::http::{
    Addresses, BodyExt, BoxError, Bytes, Full, Incoming, Request, Response, Server, StatusCode, header,
};
use http_body_util::combinators::UnsyncBoxBody;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use process::{Failed, Running};

/// Settings, from the environment.
const CONCURRENCY: &str = "FAAS_CONCURRENCY";
const CONCURRENCY_DEFAULT: usize = 16;
const SECONDS: &str = "FAAS_SCRIPT_SECONDS";
const SECONDS_DEFAULT: usize = 60;

/// How long an answer is held back for the script's end, and how much of one: what is written slowly, or is long, is sent
/// as it comes.
const ENDING: Duration = Duration::from_millis(10);
const WHOLE_BYTES_MAX: usize = 256 << 10;

/// Why a script cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ScriptError {
    #[error("{name} is '{text}'; use {low} to {high}")]
    Setting { name: &'static str, text: String, low: usize, high: usize },
    #[error("cannot use {}", path.display())]
    File { path: PathBuf, source: io::Error },
    #[error("{} is neither a shell's script (*.sh) nor begins with #! and may be executed: `chmod +x {0}`", path.display())]
    NoScript { path: PathBuf },
    #[error(transparent)]
    Serve(#[from] faasd_sdk::Error),
}

type Body = UnsyncBoxBody<Bytes, BoxError>;

/// What every request is served with.
#[derive(Debug)]
struct Script {
    /// The argument vector.
    command: Vec<PathBuf>,
    permits: Arc<Semaphore>,
    limit: Duration,
    /// What the ids of requests begin with, and how many there were.
    run: String,
    requests: AtomicU64,
}

/// Serves `file`, relative to the working directory, until the platform drains the instance or SIGTERM comes.
///
/// # Errors
/// [`ScriptError`].
pub fn run(file: &str) -> Result<(), ScriptError> {
    let concurrency = setting(CONCURRENCY, CONCURRENCY_DEFAULT, 1, 1024)?;
    let seconds = setting(SECONDS, SECONDS_DEFAULT, 1, 86_400)?;
    let script = Arc::new(Script {
        command: command(file)?,
        permits: Arc::new(Semaphore::new(concurrency)),
        limit: Duration::from_secs(seconds as u64),
        run: format!("{:08x}", rand()),
        requests: AtomicU64::new(0),
    });
    Ok(Server::new().addresses().run(move |request| {
        let script = Arc::clone(&script);
        async move { Ok::<_, BoxError>(script.serve(request).await) }
    })?)
}

fn setting(name: &'static str, default: usize, low: usize, high: usize) -> Result<usize, ScriptError> {
    let Ok(text) = env::var(name) else { return Ok(default) };
    let number = text.parse().ok().filter(|number| (low..=high).contains(number));
    number.ok_or(ScriptError::Setting { name, text, low, high })
}

fn rand() -> u32 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(std::process::id()) as u32
}

/// The script as it is to be run: one that may be executed by itself, another `*.sh` by the shell.
fn command(file: &str) -> Result<Vec<PathBuf>, ScriptError> {
    let failed = |source| ScriptError::File { path: file.into(), source };
    let path = env::current_dir().map_err(failed)?.join(file);
    if super::is_program(&path) {
        return Ok(vec![path]);
    }
    if path.extension().is_some_and(|extension| extension == "sh") {
        std::fs::File::open(&path).map_err(failed)?;
        return Ok(vec!["/bin/sh".into(), path]);
    }
    match std::fs::metadata(&path) {
        Ok(_) => Err(ScriptError::NoScript { path: file.into() }),
        Err(source) => Err(failed(source)),
    }
}

impl Script {
    async fn serve(&self, request: Request<Incoming>) -> Response<Body> {
        let id = format!("{}-{}", self.run, self.requests.fetch_add(1, Ordering::Relaxed) + 1);
        let line = format!("[{id}] {} {}", request.method(), request.uri());
        match self.call(request, &id, &line).await {
            Ok(response) => response,
            Err(failed) => {
                eprintln!("{line} failed: {failed}");
                let status = match failed {
                    Failed::TimedOut(_) => StatusCode::GATEWAY_TIMEOUT,
                    _ => StatusCode::INTERNAL_SERVER_ERROR,
                };
                let text = format!(
                    "{}, request {id}\n",
                    status.canonical_reason().unwrap_or_default().to_lowercase()
                );
                let mut response = Response::new(full(text));
                *response.status_mut() = status;
                if let Ok(id) = id.parse() {
                    response.headers_mut().insert("x-request-id", id);
                }
                response
            }
        }
    }

    async fn call(&self, request: Request<Incoming>, id: &str, line: &str) -> Result<Response<Body>, Failed> {
        let permit = Arc::clone(&self.permits).acquire_owned().await.map_err(|_| Failed::Stopping)?;
        let (head, body) = request.into_parts();
        let addresses = head.extensions.get::<Addresses>().copied();
        let variables = cgi::variables(&head, addresses, &self.command, id);
        let mut running = Running::start(&self.command, variables, body, self.limit, permit)?;
        // What comes first says whether it is a header block.
        let mut begin = Vec::new();
        let answer = loop {
            match cgi::head(&begin) {
                cgi::Head::Incomplete if begin.len() < cgi::HEAD_BYTES_MAX => match running.read().await? {
                    Some(bytes) => begin.extend_from_slice(&bytes),
                    None => break cgi::head_at_end(&begin),
                },
                cgi::Head::Incomplete => return Err(Failed::Head("it is too long".to_owned())),
                cgi::Head::Complete(answer) => break answer,
            }
        }
        .map_err(Failed::Head)?;
        let rest = begin.split_off(answer.bytes);
        if begin.is_empty() && rest.is_empty() {
            // It has ended without a word, and well.
            return Ok(response(StatusCode::NO_CONTENT, header::HeaderMap::new(), full("")));
        }
        // Most scripts end here, and one that fails now is still answered with 500 rather than with half an answer.
        let patience = Instant::now() + ENDING;
        let mut rest = rest;
        while rest.len() < WHOLE_BYTES_MAX {
            match tokio::time::timeout_at(patience, running.read()).await {
                Ok(Ok(Some(bytes))) => rest.extend_from_slice(&bytes),
                Ok(Ok(None)) => return Ok(response(answer.status, answer.fields, full(rest))),
                Ok(Err(failed)) => return Err(failed),
                Err(_elapsed) => break,
            }
        }
        Ok(response(answer.status, answer.fields, running.into_body(rest.into(), line.to_owned())))
    }
}

fn full(text: impl Into<Bytes>) -> Body {
    Full::new(text.into()).map_err(|never| match never {}).boxed_unsync()
}

fn response(status: StatusCode, fields: header::HeaderMap, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    *response.headers_mut() = fields;
    response
}
