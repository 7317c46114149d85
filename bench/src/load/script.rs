//! What is said in each scenario, byte by byte, made before the clock starts.

use serde::Serialize;
use tungstenite::protocol::frame::{Frame, coding::Data, coding::OpCode};

/// Of a WebSocket message: more than a small answer's head, less than a packet.
const MESSAGE_BYTES: usize = 64;

/// What each client does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Scenario {
    /// A connection for each request. The time runs from `socket(2)` to the last byte of the answer; the next
    /// request starts once the server's FIN is there too, so that a gateway that keeps its copy of the connection
    /// open shows as errors, and so that TIME_WAIT stays on the server's side and no client port runs out.
    New,
    /// Connections opened and used once before the clock starts, then requests one after the other.
    Keepalive,
    /// Like `keepalive`, with a larger answer.
    #[value(name = "download-1m")]
    #[serde(rename = "download-1m")]
    Download1,
    #[value(name = "download-64m")]
    #[serde(rename = "download-64m")]
    Download64,
    /// Like `keepalive`, with a body that is counted.
    #[value(name = "upload-1m")]
    #[serde(rename = "upload-1m")]
    Upload1,
    #[value(name = "upload-64m")]
    #[serde(rename = "upload-64m")]
    Upload64,
    /// Messages that are said back, one after the other, on connections opened before the clock starts.
    Websocket,
}

/// A conversation.
#[derive(Debug)]
pub(super) struct Script {
    /// What is said first on a new connection, and answered with a head.
    pub opening: Option<Vec<u8>>,
    pub request: Vec<u8>,
    /// Bytes that follow the request.
    pub body: u64,
    /// Bytes of the answer, if it is not HTTP.
    pub answer: Option<u64>,
}

impl Scenario {
    /// The name in tables and files.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Keepalive => "keepalive",
            Self::Download1 => "download-1m",
            Self::Download64 => "download-64m",
            Self::Upload1 => "upload-1m",
            Self::Upload64 => "upload-64m",
            Self::Websocket => "websocket",
        }
    }

    pub(crate) fn keeps_connections(self) -> bool {
        self != Self::New
    }

    /// Bytes that each request carries one way or the other.
    #[must_use]
    pub const fn bulk(self) -> Option<u64> {
        match self {
            Self::Download1 | Self::Upload1 => Some(1 << 20),
            Self::Download64 | Self::Upload64 => Some(64 << 20),
            Self::New | Self::Keepalive | Self::Websocket => None,
        }
    }

    /// The path that is asked for.
    #[must_use]
    pub fn path(self) -> String {
        match self {
            Self::New | Self::Keepalive => "/".to_owned(),
            Self::Download1 | Self::Download64 => format!("/big?bytes={}", self.bulk().unwrap_or_default()),
            Self::Upload1 | Self::Upload64 => "/count".to_owned(),
            Self::Websocket => "/ws".to_owned(),
        }
    }

    pub(super) fn script(self) -> Script {
        let head = |method: &str, fields: &str| {
            let path = self.path();
            format!("{method} {path} HTTP/1.1\r\nHost: hello.faas\r\nUser-Agent: faasd-bench\r\n{fields}\r\n")
                .into_bytes()
        };
        let plain = |request, body| Script { opening: None, request, body, answer: None };
        match self {
            Self::New => plain(head("GET", "Connection: close\r\n"), 0),
            Self::Keepalive | Self::Download1 | Self::Download64 => plain(head("GET", ""), 0),
            Self::Upload1 | Self::Upload64 => {
                let bytes = self.bulk().unwrap_or_default();
                plain(head("POST", &format!("Content-Length: {bytes}\r\n")), bytes)
            }
            Self::Websocket => {
                // RFC 6455's own example of a key: whoever is asked is no stranger.
                let fields = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                              Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
                let [request, answer] = [Some([7, 1, 8, 2]), None].map(message);
                Script {
                    opening: Some(head("GET", fields)),
                    request,
                    body: 0,
                    answer: Some(answer.len() as u64),
                }
            }
        }
    }
}

/// A message as a client sends it, masked, or as a server does.
fn message(mask: Option<[u8; 4]>) -> Vec<u8> {
    let mut frame = Frame::message(vec![b'x'; MESSAGE_BYTES], OpCode::Data(Data::Binary), true);
    frame.header_mut().mask = mask;
    let mut bytes = Vec::new();
    let written = frame.format(&mut bytes);
    debug_assert!(written.is_ok(), "a vector takes what it is given");
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_is_what_the_scenario_says() {
        let text = |scenario: Scenario| String::from_utf8(scenario.script().request).unwrap();
        assert!(
            text(Scenario::New).starts_with("GET / HTTP/1.1\r\n") && text(Scenario::New).contains("close")
        );
        assert!(!text(Scenario::Keepalive).contains("close"));
        let upload = Scenario::Upload64.script();
        assert_eq!(upload.body, 64 << 20);
        assert!(text(Scenario::Upload64).contains("Content-Length: 67108864\r\n"));
        let websocket = Scenario::Websocket.script();
        // Two bytes of header, and four of the mask for a client's.
        assert_eq!((websocket.request.len(), websocket.answer), (70, Some(66)));
        assert_eq!(websocket.request[6], b'x' ^ 7);
        for scenario in <Scenario as clap::ValueEnum>::value_variants() {
            let json = serde_json::to_value(scenario).unwrap();
            assert_eq!(json, scenario.name());
        }
    }
}
