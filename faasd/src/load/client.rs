//! One of a load's connections, and what is sent on it. It is opened when it is needed, and again when it is gone.

use std::sync::Arc;
use std::time::Instant;

use http_body_util::BodyExt;
use hyper::client::conn::http2::{SendRequest, handshake};
use hyper::header::{CONNECTION, CONTENT_TYPE, HOST, HeaderValue, USER_AGENT};
use hyper::{HeaderMap, Request, Uri};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

use super::connect::connect;
use super::fault::Failed;
use super::http1::{Came, Http1};
use super::payload::Payload;
use super::target::{Preferred, Target};
use super::websocket::Socket;
use super::{Mode, Plan, Protocol};
use crate::core::load::record::{Answer, Fault, Phase};

#[derive(Debug)]
pub(super) struct Client {
    plan: Arc<Plan>,
    target: Arc<Target>,
    uri: Uri,
    headers: HeaderMap,
    preferred: Preferred,
    link: Option<Link>,
}

#[derive(Debug)]
enum Link {
    Http1(Box<Http1>),
    Http2(Http2),
    WebSocket(Box<Socket>),
}

/// A request that was answered.
#[derive(Debug)]
pub(super) struct Done {
    pub answer: Answer,
    /// When the answer was complete.
    pub end: Instant,
    /// It took a new connection.
    pub connected: bool,
}

impl Client {
    pub(super) fn new(plan: Arc<Plan>, target: Arc<Target>) -> Self {
        let whole = plan.protocol == Protocol::Http2;
        let mut headers = HeaderMap::new();
        headers.insert(USER_AGENT, HeaderValue::from_static(concat!("faas/", env!("CARGO_PKG_VERSION"))));
        if !whole {
            headers.insert(HOST, target.authority());
            if plan.mode.connects_each_time() {
                headers.insert(CONNECTION, HeaderValue::from_static("close"));
            }
        }
        if !plan.payload.is_empty() {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
        }
        // Given ones replace ours, and may come more than once.
        for name in plan.headers.keys() {
            headers.remove(name);
        }
        headers.extend(plan.headers.iter().map(|(name, value)| (name.clone(), value.clone())));
        let uri = target.uri(whole);
        Self { plan, target, uri, headers, preferred: Preferred::default(), link: None }
    }

    /// Opens a connection if there is none that is open, and tells whether it did.
    pub(super) async fn open(&mut self, answer: &mut Answer) -> Result<bool, Failed> {
        if let Some(link) = &mut self.link
            && link.is_open().await
        {
            return Ok(false);
        }
        self.link = None;
        let stream = connect(&self.target, &self.preferred, answer).await?;
        let begin = Instant::now();
        let link = match (self.plan.mode, self.plan.protocol) {
            (Mode::Websocket, _) => {
                let opened = Socket::open(stream, &self.target, &self.plan).await;
                Link::WebSocket(Box::new(opened.map_err(Failed::connecting)?))
            }
            (_, Protocol::Http1) => Link::Http1(Box::new(Http1::new(stream).await?)),
            (_, Protocol::Http2) => Link::Http2(Http2::new(stream).await.map_err(Failed::connecting)?),
        };
        // What is said before the first request is a part of getting there.
        let connect = answer.phases[Phase::Connect as usize].unwrap_or_default();
        answer.set(Phase::Connect, connect + begin.elapsed());
        self.link = Some(link);
        Ok(true)
    }

    /// Sends a request, on a new connection if need be, and takes the whole answer. Its latency is the caller's to say.
    pub(super) async fn exchange(&mut self) -> Result<Done, Failed> {
        let mut answer = Answer { sent_bytes: self.plan.payload.len(), ..Answer::default() };
        let connected = self.open(&mut answer).await?;
        // `open` has put one there.
        let Some(mut link) = self.link.take() else {
            return Err(Failed::new(Fault::Other, "there is no connection"));
        };
        let sent = Instant::now();
        let came = match &mut link {
            Link::Http1(link) => link.exchange(self.request()).await?,
            Link::Http2(link) => link.exchange(self.request()).await?,
            Link::WebSocket(link) => link.exchange().await?,
        };
        self.link = Some(link);
        answer.set(Phase::FirstByte, came.head - sent);
        answer.set(Phase::Transfer, came.end - came.head);
        answer.received_bytes = came.bytes;
        if came.status.as_u16() >= 400 {
            let text = format!("the server answered {}", came.status);
            return Err(Failed::new(Fault::Status(came.status.as_u16()), text));
        }
        Ok(Done { answer, end: came.end, connected })
    }

    fn request(&self) -> Request<Payload> {
        let mut request = Request::new(self.plan.payload.clone());
        request.method_mut().clone_from(&self.plan.method);
        request.uri_mut().clone_from(&self.uri);
        request.headers_mut().clone_from(&self.headers);
        request
    }

    /// After a request: its connection goes, where each has one of its own.
    pub(super) async fn settle(&mut self) {
        if self.plan.mode.connects_each_time()
            && let Some(Link::Http1(link)) = self.link.take()
        {
            link.close().await;
        }
    }

    /// Gives up what is under way.
    pub(super) fn reset(&mut self) {
        self.link = None;
    }
}

impl Link {
    async fn is_open(&mut self) -> bool {
        match self {
            Self::Http1(link) => link.is_open().await,
            Self::Http2(link) => link.sender.ready().await.is_ok(),
            // A WebSocket shows its end when it is used.
            Self::WebSocket(_) => true,
        }
    }
}

/// HTTP/2 on one connection. Its frames are several parties' business, so that it has a task of its own.
#[derive(Debug)]
struct Http2 {
    sender: SendRequest<Payload>,
    task: JoinHandle<()>,
}

impl Http2 {
    async fn new(stream: TcpStream) -> Result<Self, Failed> {
        let opened = handshake(TokioExecutor::new(), TokioIo::new(stream)).await;
        let (sender, connection) = opened.map_err(|e| Failed::hyper(&e))?;
        // Its error reaches whoever waits for an answer.
        let task = tokio::spawn(async move { drop(connection.await) });
        Ok(Self { sender, task })
    }

    async fn exchange(&mut self, request: Request<Payload>) -> Result<Came, Failed> {
        let response = self.sender.send_request(request).await.map_err(|e| Failed::hyper(&e))?;
        let (head, status) = (Instant::now(), response.status());
        let (mut body, mut bytes) = (response.into_body(), 0);
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|e| Failed::hyper(&e))?;
            bytes += frame.data_ref().map_or(0, |data| data.len() as u64);
        }
        Ok(Came { status, head, end: Instant::now(), bytes })
    }
}

impl Drop for Http2 {
    fn drop(&mut self) {
        self.task.abort();
    }
}
