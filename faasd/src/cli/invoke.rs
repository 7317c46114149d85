//! `faas invoke`

use std::io::{self, Write};
use std::path::Path;

use clap::Args;
use http_body_util::BodyExt;
use hyper::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use hyper::{Method, Request};

use super::{Context, Exit, Failure};
use crate::api::client::{Body, empty, full, streamed};
use crate::core::name::FunctionName;

/// Send a request to a function, through the daemon
///
/// This is for trying things out: clients of a function dial its address and pass no daemon.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  faas invoke hello
  faas invoke hello '/greet?name=Ada' -i
  faas invoke hello /items -d '{\"id\": 1}' -H 'content-type: application/json'
  cat photo.jpg | faas invoke thumbnail -d - > small.jpg

Exits with 1 when the status is 400 or above.")]
pub struct Invoke {
    /// The function
    name: FunctionName,
    /// The path and query
    #[arg(default_value = "/")]
    path: String,
    /// The method [default: GET, or POST with -d]
    #[arg(short = 'X', long, value_name = "METHOD")]
    method: Option<Method>,
    /// The body: text, @FILE, or - for standard input
    #[arg(short, long, value_name = "DATA", allow_hyphen_values = true)]
    data: Option<String>,
    /// A header
    #[arg(short = 'H', long = "header", value_name = "NAME: VALUE", value_parser = header)]
    headers: Vec<(HeaderName, HeaderValue)>,
    /// Print the status and the headers too
    #[arg(short, long)]
    include: bool,
}

impl Invoke {
    pub async fn run(self, context: &Context) -> Result<(), Failure> {
        let method = self.method.unwrap_or(if self.data.is_some() { Method::POST } else { Method::GET });
        let path = if self.path.starts_with('/') { self.path } else { format!("/{}", self.path) };
        let body = match &self.data {
            None => empty(),
            Some(data) => body(data).await?,
        };
        let mut request = Request::builder()
            .method(method)
            .uri(&path)
            .body(body)
            .map_err(|e| Failure::new(Exit::Usage, format!("'{path}' is no path of a request: {e}")))?;
        for (name, value) in self.headers {
            request.headers_mut().append(name, value);
        }
        if self.data.is_some() && !request.headers().contains_key(CONTENT_TYPE) {
            request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
        }
        let mut response = context.client.invoke(&self.name, request).await?;
        let status = response.status();
        let mut out = io::stdout().lock();
        if self.include {
            writeln!(out, "{:?} {status}", response.version())?;
            for (name, value) in response.headers() {
                out.write_all(name.as_str().as_bytes())?;
                out.write_all(b": ")?;
                out.write_all(value.as_bytes())?;
                out.write_all(b"\n")?;
            }
            out.write_all(b"\n")?;
        }
        while let Some(frame) = response.body_mut().frame().await {
            let frame =
                frame.map_err(|e| Failure::new(Exit::Failed, format!("the response broke off: {e}")))?;
            if let Some(data) = frame.data_ref() {
                out.write_all(data)?;
                // A function that answers bit by bit is seen to do so.
                out.flush()?;
            }
        }
        out.flush()?;
        if status.as_u16() >= 400 {
            return Err(Failure::new(Exit::Failed, format!("{} answered {status}", self.name)));
        }
        Ok(())
    }
}

async fn body(data: &str) -> Result<Body, Failure> {
    if data == "-" {
        return Ok(streamed(tokio::io::stdin(), None));
    }
    let Some(path) = data.strip_prefix('@').map(Path::new) else {
        return Ok(full(data.to_owned()));
    };
    let failed = |e| Failure::file("read", path, &e);
    let file = tokio::fs::File::open(path).await.map_err(failed)?;
    let metadata = file.metadata().await.map_err(failed)?;
    // A pipe or a device tells no length.
    Ok(streamed(file, metadata.is_file().then_some(metadata.len())))
}

pub(super) fn header(text: &str) -> Result<(HeaderName, HeaderValue), String> {
    let (name, value) = text.split_once(':').ok_or("write NAME: VALUE")?;
    let name = name.trim().parse().map_err(|_| format!("'{}' is no header's name", name.trim()))?;
    let value =
        value.trim().parse().map_err(|_| "a header's value is visible text on one line".to_owned())?;
    Ok((name, value))
}
