//! CGI/1.1: a request as variables, and an answer's header block.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use faasd_sdk::http::{Addresses, HeaderMap, StatusCode, header};
use hyper::header::{HeaderName, HeaderValue};
use hyper::http::request::Parts;

/// The longest header block of a script.
pub const HEAD_BYTES_MAX: usize = 64 << 10;

/// What the first line of a header block begins with. Anything else is the body already: a text whose first line
/// happens to have a colon is no header.
const FIRST: [&str; 3] = ["status:", "content-type:", "location:"];

/// Variables that the runner's own environment has and a script needs.
const INHERITED: [&str; 6] = ["PATH", "HOME", "LANG", "TZ", "FAAS_FUNCTION", "FAAS_REVISION"];

/// How much of a header block has come.
#[derive(Debug)]
pub enum Head {
    Incomplete,
    Complete(Result<Answer, String>),
}

/// An answer without its body.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub fields: HeaderMap,
    /// How many bytes of the output were the block.
    pub bytes: usize,
}

/// The variables of one request, over those of the function.
pub fn variables(
    head: &Parts,
    addresses: Option<Addresses>,
    command: &[PathBuf],
    id: &str,
) -> BTreeMap<OsString, OsString> {
    let mut all: BTreeMap<OsString, OsString> =
        std::env::vars_os().filter(|(name, _)| is_the_functions(name)).collect();
    let mut set = |name: &str, value: &[u8]| {
        all.insert(name.into(), OsString::from_vec(value.to_vec()));
    };
    set("GATEWAY_INTERFACE", b"CGI/1.1");
    set("SERVER_SOFTWARE", concat!("faasd/", env!("CARGO_PKG_VERSION")).as_bytes());
    set("SERVER_PROTOCOL", format!("{:?}", head.version).as_bytes());
    set("REQUEST_METHOD", head.method.as_str().as_bytes());
    set("REQUEST_URI", head.uri.path_and_query().map_or("/", |target| target.as_str()).as_bytes());
    set("QUERY_STRING", head.uri.query().unwrap_or_default().as_bytes());
    set("SCRIPT_NAME", b"");
    set("PATH_INFO", &percent_decoded(head.uri.path()));
    if let Some(script) = command.last() {
        set("SCRIPT_FILENAME", script.as_os_str().as_bytes());
    }
    set("FAAS_REQUEST_ID", id.as_bytes());
    if let Some(addresses) = addresses {
        if let Some(name) = addresses.name() {
            // Those who know CGI look for the second.
            set("FAAS_PEER", name.as_bytes());
            set("REMOTE_USER", name.as_bytes());
        }
        let Addresses { peer, local, .. } = addresses;
        set("REMOTE_ADDR", peer.ip().to_canonical().to_string().as_bytes());
        set("REMOTE_PORT", peer.port().to_string().as_bytes());
        set("SERVER_ADDR", local.ip().to_canonical().to_string().as_bytes());
        set("SERVER_PORT", local.port().to_string().as_bytes());
    }
    let host = head.headers.get(header::HOST).map_or(&b"localhost"[..], HeaderValue::as_bytes);
    set("SERVER_NAME", without_port(host));
    for name in head.headers.keys() {
        let values: Vec<&[u8]> = head.headers.get_all(name).iter().map(HeaderValue::as_bytes).collect();
        match *name {
            header::CONTENT_TYPE => set("CONTENT_TYPE", values[0]),
            header::CONTENT_LENGTH => set("CONTENT_LENGTH", values[0]),
            // HTTP_PROXY is the proxy to use to many a program, and must not come from a client.
            ref proxy if proxy == "proxy" => {}
            header::CONNECTION | header::TRANSFER_ENCODING => {}
            ref cookie if *cookie == header::COOKIE => set("HTTP_COOKIE", &values.join(&b"; "[..])),
            ref name => {
                let name = format!("HTTP_{}", name.as_str().to_ascii_uppercase().replace('-', "_"));
                set(&name, &values.join(&b", "[..]));
            }
        }
    }
    all.into_iter().filter(|(_, value)| !value.as_bytes().contains(&0)).collect()
}

/// The function's own variables, and those that programs rely on. What is meant for the runner stays with it.
fn is_the_functions(name: &OsString) -> bool {
    let Some(name) = name.to_str() else { return false };
    INHERITED.contains(&name) || !(name.starts_with("FAAS_") || name.starts_with("HTTP_"))
}

fn without_port(host: &[u8]) -> &[u8] {
    match host.iter().rposition(|&byte| byte == b':') {
        Some(colon) if host[colon + 1..].iter().all(u8::is_ascii_digit) => &host[..colon],
        _ => host,
    }
}

fn percent_decoded(path: &str) -> Vec<u8> {
    let bytes = path.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let digits = path.get(at + 1..at + 3).and_then(|digits| u8::from_str_radix(digits, 16).ok());
        match (byte, digits) {
            (b'%', Some(byte)) => {
                decoded.push(byte);
                at += 3;
            }
            _ => {
                decoded.push(byte);
                at += 1;
            }
        }
    }
    decoded
}

/// Looks at what a script has written so far.
pub fn head(begin: &[u8]) -> Head {
    let may_be = FIRST.iter().any(|first| {
        let length = first.len().min(begin.len());
        begin[..length].eq_ignore_ascii_case(&first.as_bytes()[..length])
    });
    if !may_be {
        return Head::Complete(Ok(plain()));
    }
    let mut at = 0;
    while let Some(length) = begin[at..].iter().position(|&byte| byte == b'\n') {
        let line = begin[at..at + length].strip_suffix(b"\r").unwrap_or(&begin[at..at + length]);
        at += length + 1;
        if line.is_empty() {
            return Head::Complete(parse(&begin[..at]));
        }
    }
    Head::Incomplete
}

/// The same when nothing follows: a header block may do without its empty line then.
pub fn head_at_end(begin: &[u8]) -> Result<Answer, String> {
    let is_block = FIRST.iter().any(|first| {
        begin.get(..first.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(first.as_bytes()))
    });
    if is_block { parse(begin) } else { Ok(plain()) }
}

fn plain() -> Answer {
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    let fields = [(header::CONTENT_TYPE, plain)].into_iter().collect();
    Answer { status: StatusCode::OK, fields, bytes: 0 }
}

fn parse(block: &[u8]) -> Result<Answer, String> {
    let mut answer = Answer { status: StatusCode::OK, fields: HeaderMap::new(), bytes: block.len() };
    let mut status = None;
    for line in block.split(|&byte| byte == b'\n') {
        let line = line.trim_ascii();
        if line.is_empty() {
            continue;
        }
        let shown = String::from_utf8_lossy(line).into_owned();
        let (name, value) = line
            .iter()
            .position(|&byte| byte == b':')
            .map(|colon| (&line[..colon], line[colon + 1..].trim_ascii()))
            .ok_or_else(|| format!("'{shown}' is no header field"))?;
        if name.eq_ignore_ascii_case(b"status") {
            let code = value.get(..3).and_then(|digits| StatusCode::from_bytes(digits).ok());
            let code = code.filter(|code| (200..600).contains(&code.as_u16()));
            status = Some(code.ok_or_else(|| format!("'{shown}' has no status from 200 to 599"))?);
            continue;
        }
        let name = HeaderName::from_bytes(name).map_err(|_| format!("'{shown}' is no header field"))?;
        let value = HeaderValue::from_bytes(value).map_err(|_| format!("'{shown}' is no header field"))?;
        // How the body is delimited is the server's business.
        if ![header::TRANSFER_ENCODING, header::CONNECTION, header::CONTENT_LENGTH].contains(&name) {
            answer.fields.append(name, value);
        }
    }
    let redirects = answer.fields.contains_key(header::LOCATION);
    answer.status = status.unwrap_or(if redirects { StatusCode::FOUND } else { StatusCode::OK });
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complete(output: &str) -> Answer {
        match head(output.as_bytes()) {
            Head::Complete(answer) => answer.unwrap(),
            Head::Incomplete => panic!("incomplete: {output:?}"),
        }
    }

    #[test]
    fn a_header_block_is_told_from_text() {
        for text in ["hello\n", "Error: it failed\n\n", "S", "\n\nx", "{"] {
            let incomplete = matches!(head(text.as_bytes()), Head::Incomplete);
            assert_eq!(incomplete, text == "S", "{text:?}");
            assert_eq!(head_at_end(text.as_bytes()).unwrap().bytes, 0, "{text:?}");
        }
        let answer = complete("Status: 404 Not Found\r\nX-A: b\r\nX-A: c\r\n\r\nbody");
        assert_eq!((answer.status.as_u16(), answer.bytes), (404, 41));
        assert_eq!(answer.fields.get_all("x-a").iter().count(), 2);
        assert_eq!(complete("location: /x\n\n").status, StatusCode::FOUND);
        assert_eq!(complete("content-type: a/b\nContent-Length: 3\n\nx").fields.len(), 1);
        assert!(matches!(head(b"Content-Type: a/b\nX-A: c\n"), Head::Incomplete));
        assert_eq!(head_at_end(b"Status: 201\n").unwrap().status, StatusCode::CREATED);
    }

    #[test]
    fn a_bad_header_block_is_an_error() {
        for output in [
            "Status: ok\n\n",
            "Status: 100\n\n",
            "Content-Type: a/b\nnonsense\n\n",
            "Status: 200\nA b: c\n\n",
        ] {
            assert!(matches!(head(output.as_bytes()), Head::Complete(Err(_))), "{output:?}");
        }
    }

    #[test]
    fn variables_are_those_of_the_standard() {
        let request = hyper::Request::post("/a%20b?x=%20")
            .header("host", "hello.faas:81")
            .header("content-type", "text/x")
            .header("content-length", "3")
            .header("x-a", "1")
            .header("x-a", "2")
            .header("proxy", "evil")
            .body(())
            .unwrap();
        let all = variables(&request.into_parts().0, None, &["/app/x".into()], "r-1");
        let get = |name: &str| all.get(&OsString::from(name)).and_then(|value| value.to_str());
        for (name, value) in [
            ("REQUEST_METHOD", "POST"),
            ("PATH_INFO", "/a b"),
            ("QUERY_STRING", "x=%20"),
            ("REQUEST_URI", "/a%20b?x=%20"),
            ("SERVER_NAME", "hello.faas"),
            ("SERVER_PROTOCOL", "HTTP/1.1"),
            ("CONTENT_TYPE", "text/x"),
            ("CONTENT_LENGTH", "3"),
            ("HTTP_X_A", "1, 2"),
            ("SCRIPT_FILENAME", "/app/x"),
            ("FAAS_REQUEST_ID", "r-1"),
        ] {
            assert_eq!(get(name), Some(value), "{name}");
        }
        assert_eq!((get("HTTP_PROXY"), get("HTTP_CONTENT_TYPE")), (None, None));
    }
}
