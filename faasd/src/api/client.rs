//! The client: one method a route, one connection a request.

mod access;
mod lines;
mod observe;
mod place;

use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, Full, LengthLimitError, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HOST, HeaderValue, RETRY_AFTER};
use hyper::http::request::Builder;
use hyper::http::response::Parts;
use hyper::{Method, Request, Response, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::AsyncRead;
use tokio::time::timeout;

pub use self::lines::Lines;
use self::place::Place;
pub use self::place::{Server, ServerError};
use super::body::ReadBody;
use super::condition::Condition;
use super::types::{
    ARCHIVE_BYTES_MAX, AliasTarget, Deploy, Function, Functions, Image, Images, ImportedImage, Invite,
    Invited, PROBLEM_HEADER, Peers, Problem, Pruned, ROOT_ARCHIVE_BYTES_MAX, Revisions, Traffic,
    UNCHANGED_HEADER, Version,
};
use crate::core::image::ImageName;
use crate::core::name::FunctionName;
use crate::core::revision::Alias;

/// The default place of the daemon's socket.
pub const SOCKET: &str = "/run/faasd/faasd.sock";

/// The most bytes of a response that is read into memory: 10,000 functions with their instances fit.
const RESPONSE_BYTES_MAX: usize = 64 << 20;

const CONNECT: Duration = Duration::from_secs(5);

/// Each wait is a little longer than the daemon's own, whose error says more.
const MARGIN: Duration = Duration::from_secs(5);
const QUICK: Duration = Duration::from_secs(30);
const UPLOAD: Duration = Duration::from_secs(600);
const IMPORT: Duration = Duration::from_secs(3600);
const INVOKE: Duration = Duration::from_secs(300);
const REMOVE: Duration = Duration::from_secs(660);
const TRAFFIC: Duration = Duration::from_secs(1260);
const DEPLOY_MARGIN: Duration = Duration::from_secs(60);

/// How long to wait altogether when changes come too fast for the daemon.
const PATIENCE: Duration = Duration::from_secs(30);

/// Why there is no answer, or a bad one.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("cannot reach faasd at {}: is it running? `systemctl start faasd`", .socket.display())]
    Unreachable { socket: PathBuf, source: io::Error },
    #[error("cannot reach faasd at {server}: is this machine connected? `faas vpn status`")]
    ServerUnreachable { server: Server, source: io::Error },
    #[error("may not open {}: {}", .socket.display(), who(.group.as_deref()))]
    Permission { socket: PathBuf, group: Option<String> },
    #[error("faasd did not answer within {} s", .0.as_secs())]
    TimedOut(Duration),
    #[error("the connection to faasd broke off: is it still running? `systemctl status faasd`")]
    Broken(#[source] hyper::Error),
    #[error("the request cannot be written: {0}")]
    Request(#[from] hyper::http::Error),
    #[error("faasd's answer is not understood: {0}; are faas and faasd of the same version? `faas version`")]
    Answer(String),
    #[error(
        "the archive has {bytes} bytes; at most {ARCHIVE_BYTES_MAX} are taken: list what is not needed in .faasignore"
    )]
    TooLarge { bytes: u64 },
    #[error("the image's archive has {bytes} bytes; at most {ROOT_ARCHIVE_BYTES_MAX} are taken")]
    ImageTooLarge { bytes: u64 },
    #[error("{}", .0.title)]
    Problem(Problem),
}

fn who(group: Option<&str>) -> String {
    match group {
        None | Some("root") => "run this as root".to_owned(),
        Some(group) => format!(
            "run this as root, or join the group '{group}' (`sudo usermod -aG {group} $USER`, then log in again)"
        ),
    }
}

/// What a deploy did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Created,
    Updated,
    /// It was declared like that already.
    Unchanged,
}

type Result<T> = std::result::Result<T, ClientError>;

/// What a request carries.
pub type Body = UnsyncBoxBody<Bytes, io::Error>;

/// A client of one daemon. It holds nothing open between requests.
#[derive(Clone, Debug)]
pub struct Client {
    place: Place,
}

impl Client {
    /// A client of the daemon on this machine.
    #[must_use]
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self { place: Place::Socket(socket.into()) }
    }

    /// A client of one that is reached through the tunnel, for its admins.
    #[must_use]
    pub const fn of(server: Server) -> Self {
        Self { place: Place::Server(server) }
    }

    /// The daemon's socket, if it is on this machine.
    #[must_use]
    pub fn socket(&self) -> Option<&Path> {
        match &self.place {
            Place::Socket(socket) => Some(socket),
            Place::Server(_) => None,
        }
    }

    /// # Errors
    /// [`ClientError`], as for every other method.
    pub async fn version(&self) -> Result<Version> {
        self.get("/v1/version").await
    }

    /// # Errors
    /// [`ClientError`].
    pub async fn functions(&self) -> Result<Functions> {
        self.functions_with("").await
    }

    /// The functions whose names begin with `prefix`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn functions_with(&self, prefix: &str) -> Result<Functions> {
        let functions =
            self.pages("/v1/functions", prefix, |page: Functions| (page.functions, page.next)).await?;
        Ok(Functions { functions, next: None })
    }

    /// # Errors
    /// [`ClientError`].
    pub async fn function(&self, name: &FunctionName) -> Result<Function> {
        self.get(&format!("/v1/functions/{name}")).await
    }

    /// Uploads a tar archive of `bytes` bytes.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn add_image(
        &self,
        archive: impl AsyncRead + Send + Unpin + 'static,
        bytes: u64,
    ) -> Result<Image> {
        if bytes > ARCHIVE_BYTES_MAX {
            return Err(ClientError::TooLarge { bytes });
        }
        let request = build(Method::POST, "/v1/images")
            .header(CONTENT_TYPE, "application/x-tar")
            .body(ReadBody::new(archive, Some(bytes)).boxed_unsync())?;
        self.ask(request, UPLOAD).await
    }

    /// The root images.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn images(&self) -> Result<Images> {
        let images = self.pages("/v1/images", "", |page: Images| (page.images, page.next)).await?;
        Ok(Images { images, next: None })
    }

    /// Sends the archive of a root image; `bytes`, if its length is known.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn import_image(
        &self,
        archive: impl AsyncRead + Send + Unpin + 'static,
        bytes: Option<u64>,
        name: Option<&ImageName>,
        fallback: Option<&ImageName>,
    ) -> Result<ImportedImage> {
        if let Some(bytes) = bytes.filter(|bytes| *bytes > ROOT_ARCHIVE_BYTES_MAX) {
            return Err(ClientError::ImageTooLarge { bytes });
        }
        let pairs = [("name", name), ("fallback", fallback)];
        let query: Vec<_> =
            pairs.into_iter().filter_map(|(key, name)| Some(format!("{key}={}", name?))).collect();
        let request = build(Method::POST, &format!("/v1/images/import?{}", query.join("&")))
            .header(CONTENT_TYPE, "application/x-tar")
            .body(ReadBody::new(archive, bytes).boxed_unsync())?;
        self.ask(request, IMPORT).await
    }

    /// # Errors
    /// [`ClientError`].
    pub async fn remove_image(&self, name: &ImageName) -> Result<()> {
        let request = bare(Method::DELETE, &format!("/v1/images?name={name}"))?;
        self.bytes(request, REMOVE).await.map(drop)
    }

    /// Removes what nothing names or runs; with `names` also the names of images that no function runs.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn prune_images(&self, names: bool) -> Result<Pruned> {
        let request = bare(Method::POST, &format!("/v1/images/prune?names={names}"))?;
        self.ask(request, REMOVE).await
    }

    /// Whether the daemon has an image.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn has_image(&self, digest: &str) -> Result<bool> {
        let request = bare(Method::GET, &format!("/v1/images/{digest}"))?;
        match self.bytes(request, QUICK).await {
            Ok(_) => Ok(true),
            Err(ClientError::Problem(problem)) if problem.status == StatusCode::NOT_FOUND.as_u16() => {
                Ok(false)
            }
            Err(other) => Err(other),
        }
    }

    /// # Errors
    /// [`ClientError`].
    pub async fn deploy(&self, name: &FunctionName, deploy: &Deploy) -> Result<Function> {
        self.deploy_if(name, deploy, &Condition::Always).await.map(|(function, _)| function)
    }

    /// Deploys if the condition holds, and tells what was changed by it.
    ///
    /// # Errors
    /// [`ClientError`]; with status 412 if the condition does not hold.
    pub async fn deploy_if(
        &self,
        name: &FunctionName,
        deploy: &Deploy,
        condition: &Condition,
    ) -> Result<(Function, Outcome)> {
        let deadlines = &deploy.spec.deadlines;
        let limit = deadlines.start() + deadlines.drain() + DEPLOY_MARGIN;
        let request = on(condition, json(Method::PUT, &format!("/v1/functions/{name}"), deploy)?);
        let (head, bytes) = self.answer(request, limit).await?;
        let outcome = match (head.status, head.headers.contains_key(UNCHANGED_HEADER)) {
            (StatusCode::CREATED, _) => Outcome::Created,
            (_, true) => Outcome::Unchanged,
            (_, false) => Outcome::Updated,
        };
        Ok((parse(&bytes)?, outcome))
    }

    /// # Errors
    /// [`ClientError`].
    pub async fn revisions(&self, name: &FunctionName) -> Result<Revisions> {
        self.get(&format!("/v1/functions/{name}/revisions")).await
    }

    /// Has these revisions serve, and returns once they do.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn set_traffic(&self, name: &FunctionName, traffic: &Traffic) -> Result<Function> {
        let request = json(Method::PUT, &format!("/v1/functions/{name}/traffic"), traffic)?;
        self.ask(request, TRAFFIC).await
    }

    /// Goes back to who served before the last change.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn rollback(&self, name: &FunctionName) -> Result<Function> {
        let request = bare(Method::POST, &format!("/v1/functions/{name}/rollback"))?;
        self.ask(request, TRAFFIC).await
    }

    /// Names a revision, or without one takes the name away.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn alias(&self, name: &FunctionName, alias: &Alias, revision: Option<u64>) -> Result<Function> {
        let path = format!("/v1/functions/{name}/aliases/{alias}");
        let request = match revision {
            Some(revision) => json(Method::PUT, &path, &AliasTarget { revision })?,
            None => bare(Method::DELETE, &path)?,
        };
        self.ask(request, QUICK).await
    }

    /// # Errors
    /// [`ClientError`].
    pub async fn remove(&self, name: &FunctionName) -> Result<()> {
        self.remove_if(name, &Condition::Always).await
    }

    /// Removes a function if the condition holds.
    ///
    /// # Errors
    /// [`ClientError`]; with status 412 if the condition does not hold.
    pub async fn remove_if(&self, name: &FunctionName, condition: &Condition) -> Result<()> {
        let request = bare(Method::DELETE, &format!("/v1/functions/{name}"))?;
        self.bytes(on(condition, request), REMOVE).await.map(drop)
    }

    /// Sends a request to a function. `request` has the function's own path and query. The response is the
    /// function's, whatever its status; only the daemon's own problems are errors.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn invoke(
        &self,
        name: &FunctionName,
        mut request: Request<Body>,
    ) -> Result<Response<Incoming>> {
        let path = request.uri().path_and_query().map_or("/", hyper::http::uri::PathAndQuery::as_str);
        let slash = if path.starts_with('/') { "" } else { "/" };
        let target = format!("/v1/functions/{name}/invoke{slash}{path}");
        *request.uri_mut() = target.parse().map_err(hyper::http::Error::from)?;
        request.headers_mut().entry(HOST).or_insert_with(|| {
            HeaderValue::try_from(format!("{name}.faas")).unwrap_or(HeaderValue::from_static("localhost"))
        });
        let response = self.send(request, INVOKE).await?;
        if response.headers().contains_key(PROBLEM_HEADER) {
            return Err(problem(response.status(), &collect(response.into_body(), QUICK).await?));
        }
        Ok(response)
    }

    /// # Errors
    /// [`ClientError`].
    pub async fn peers(&self) -> Result<Peers> {
        let peers = self.pages("/v1/peers", "", |page: Peers| (page.peers, page.next)).await?;
        Ok(Peers { peers, next: None })
    }

    /// # Errors
    /// [`ClientError`].
    pub async fn invite(&self, invite: &Invite) -> Result<Invited> {
        self.ask(json(Method::POST, "/v1/peers", invite)?, QUICK).await
    }

    /// # Errors
    /// [`ClientError`].
    pub async fn revoke(&self, name: &FunctionName) -> Result<()> {
        let request = bare(Method::DELETE, &format!("/v1/peers/{name}"))?;
        self.bytes(request, QUICK).await.map(drop)
    }

    async fn follow(&self, path: &str) -> Result<Lines> {
        let request = build(Method::GET, &format!("{path}&follow=true")).body(empty())?;
        let response = self.send(request, QUICK).await?;
        let status = response.status();
        if status.is_success() {
            return Ok(Lines::new(response.into_body()));
        }
        Err(problem(status, &collect(response.into_body(), QUICK).await?))
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        self.ask(bare(Method::GET, path)?, QUICK).await
    }

    /// A whole list, page by page.
    async fn pages<P: DeserializeOwned, T>(
        &self,
        path: &str,
        prefix: &str,
        mut open: impl FnMut(P) -> (Vec<T>, Option<String>),
    ) -> Result<Vec<T>> {
        let (mut all, mut after) = (Vec::new(), String::new());
        loop {
            let query = format!("prefix={}&after={}", escaped(prefix), escaped(&after));
            let (items, next) = open(self.get(&format!("{path}?{query}")).await?);
            all.extend(items);
            match next {
                // Each page is after the one before, so that this ends.
                Some(next) if next > after => after = next,
                _ => return Ok(all),
            }
        }
    }

    async fn ask<T: DeserializeOwned>(&self, request: Request<Body>, limit: Duration) -> Result<T> {
        parse(&self.bytes(request, limit).await?)
    }

    async fn bytes(&self, request: Request<Body>, limit: Duration) -> Result<Bytes> {
        self.answer(request, limit).await.map(|(_, bytes)| bytes)
    }

    /// Sends a request, again if it came too early and can be repeated, and reads the answer.
    async fn answer(&self, request: Request<Body>, limit: Duration) -> Result<(Parts, Bytes)> {
        let mut again = request.extensions().get::<Repeatable>().cloned().map(|body| (copy(&request), body));
        let (mut request, mut waited) = (request, Duration::ZERO);
        loop {
            let (head, body) = self.send(request, limit).await?.into_parts();
            let bytes = collect(body, QUICK).await?;
            if head.status.is_success() {
                return Ok((head, bytes));
            }
            let pause = (head.status == StatusCode::TOO_MANY_REQUESTS).then(|| retry_after(&head)).flatten();
            match (pause, again.take()) {
                (Some(pause), Some((copied, body))) if waited + pause <= PATIENCE => {
                    tokio::time::sleep(pause).await;
                    waited += pause;
                    again = Some((copy(&copied), body.clone()));
                    request = copied.map(|()| full(body.0));
                }
                _ => return Err(problem(head.status, &bytes)),
            }
        }
    }
}

fn build(method: Method, path: &str) -> Builder {
    Request::builder().method(method).uri(path).header(HOST, "faasd")
}

/// A request that says everything in its first line.
fn bare(method: Method, path: &str) -> Result<Request<Body>> {
    Ok(build(method, path).extension(Repeatable(Bytes::new())).body(empty())?)
}

fn json(method: Method, path: &str, value: &impl Serialize) -> Result<Request<Body>> {
    let bytes = serde_json::to_vec(value).map_err(|e| ClientError::Answer(e.to_string()))?;
    let bytes = Bytes::from(bytes);
    let request = build(method, path).header(CONTENT_TYPE, "application/json");
    Ok(request.extension(Repeatable(bytes.clone())).body(full(bytes))?)
}

/// The body of a request that can be sent again.
#[derive(Clone, Debug)]
struct Repeatable(Bytes);

/// A request's head alone.
fn copy<B>(request: &Request<B>) -> Request<()> {
    let mut copy = Request::new(());
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.headers_mut() = request.headers().clone();
    copy
}

/// How long the daemon asks to be left alone: whole seconds.
fn retry_after(head: &Parts) -> Option<Duration> {
    let seconds = head.headers.get(RETRY_AFTER)?.to_str().ok()?.parse().ok()?;
    Some(Duration::from_secs(seconds))
}

/// Lets a request be done only if the condition holds.
fn on(condition: &Condition, mut request: Request<Body>) -> Request<Body> {
    if let Some((name, value)) = condition.header()
        && let Ok(value) = HeaderValue::try_from(value)
    {
        request.headers_mut().insert(name, value);
    }
    request
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|e| ClientError::Answer(e.to_string()))
}

/// A value within a query.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(char::from(byte)),
            other => out.push_str(&format!("%{other:02X}")),
        }
    }
    out
}

/// A request without a body.
#[must_use]
pub fn empty() -> Body {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

/// A request's body from memory.
#[must_use]
pub fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

/// A request's body as it is read, of `bytes` bytes or, unknown, in chunks.
#[must_use]
pub fn streamed(reader: impl AsyncRead + Send + Unpin + 'static, bytes: Option<u64>) -> Body {
    ReadBody::new(reader, bytes).boxed_unsync()
}

async fn within<T>(limit: Duration, work: impl Future<Output = T>) -> Result<T> {
    timeout(limit, work).await.map_err(|_| ClientError::TimedOut(limit))
}

async fn collect(body: Incoming, limit: Duration) -> Result<Bytes> {
    match within(limit, Limited::new(body, RESPONSE_BYTES_MAX).collect()).await? {
        Ok(body) => Ok(body.to_bytes()),
        Err(e) if e.is::<LengthLimitError>() => {
            Err(ClientError::Answer(format!("it is longer than {RESPONSE_BYTES_MAX} bytes")))
        }
        Err(e) => Err(match e.downcast::<hyper::Error>() {
            Ok(e) => ClientError::Broken(*e),
            Err(e) => ClientError::Answer(e.to_string()),
        }),
    }
}

/// Reads a problem; what is none (another server behind the socket?) is told by its status.
fn problem(status: StatusCode, bytes: &[u8]) -> ClientError {
    match serde_json::from_slice::<Problem>(bytes) {
        Ok(problem) => ClientError::Problem(problem),
        Err(_) => ClientError::Answer(format!("status {status} without a reason")),
    }
}
