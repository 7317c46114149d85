//! Load on a server and what it shows: when requests are due, what is kept of each, how two targets compare, and what
//! is reported. Time comes in as durations since the beginning; `crate::load` sends the requests.

pub mod bins;
pub mod compare;
pub mod record;
pub mod report;
pub mod schedule;
pub mod series;

/// What a request is, as far as connections go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// Requests one after the other on connections that stay.
    KeepAlive,
    /// A connection for each request.
    Connect,
    /// A connection for each request, and the function at zero instances before it.
    Cold,
    /// Requests with a body.
    Upload,
    /// Requests for something large.
    Download,
    /// Messages that are answered by a message.
    Websocket,
}

impl Mode {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::KeepAlive => "keep-alive",
            Self::Connect => "connect",
            Self::Cold => "cold",
            Self::Upload => "upload",
            Self::Download => "download",
            Self::Websocket => "websocket",
        }
    }

    /// Whether each request has a connection of its own.
    #[must_use]
    pub const fn connects_each_time(self) -> bool {
        matches!(self, Self::Connect | Self::Cold)
    }
}

/// How requests are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Protocol {
    #[serde(rename = "HTTP/1.1")]
    Http1,
    /// HTTP/2 with prior knowledge, without TLS.
    #[serde(rename = "h2c")]
    Http2,
}

impl Protocol {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Http1 => "HTTP/1.1",
            Self::Http2 => "h2c",
        }
    }
}
