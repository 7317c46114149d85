//! A function that looks at where a request goes and passes the connection on: `/NAME…` is the function NAME's. What it
//! has nobody for it answers itself. One connection at a time, with `limit`, to show that others wait their turn.
//!
//! ```toml
//! contract = "fd"
//! command = ["./router"]
//! forward = ["hello"]
//! ```

use std::io::{Read, Write};
use std::time::Duration;

use faasd_sdk::{Connection, Event, Receiver};

/// How long a client may take over the first line of its request.
const PATIENCE: Duration = Duration::from_secs(10);

/// The most of it that is looked at.
const HEAD_BYTES_MAX: usize = 1024;

fn main() -> Result<(), faasd_sdk::Error> {
    let mut receiver = Receiver::inherited()?;
    receiver.limit(1);
    receiver.ready()?;
    while let Event::Connections(batch) = receiver.recv()? {
        batch.for_each(route);
    }
    // None follow, and none is open.
    receiver.drained(None)
}

fn route(connection: Connection) {
    match first_segment(&connection) {
        Ok(Some(name)) => {
            if let Err(error) = connection.forward(&name) {
                eprintln!("{error}");
            }
        }
        Ok(None) => {
            let who = connection.peer().unwrap_or("whoever you are").to_owned();
            let (mut stream, guard) = connection.into_tcp();
            // A close with unread input is a reset, which could overtake the answer.
            if let Err(error) = stream.read(&mut [0; HEAD_BYTES_MAX]) {
                eprintln!("{error}");
            }
            let body = format!("whose, {who}? /NAME says it\n");
            let answered = write!(
                stream,
                "HTTP/1.1 404 Not Found\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
                body.len()
            );
            if let Err(error) = answered {
                eprintln!("{error}");
            }
            drop(stream);
            // It counts as finished after its close.
            drop(guard);
        }
        Err(error) => eprintln!("{error}"),
    }
}

/// The first part of the path, without taking anything from the connection: whoever gets it reads it from the start.
fn first_segment(connection: &Connection) -> std::io::Result<Option<String>> {
    let stream = std::net::TcpStream::from(connection.stream.try_clone()?);
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut head = [0; HEAD_BYTES_MAX];
    let mut seen = 0;
    loop {
        let length = stream.peek(&mut head)?;
        let line = head[..length].split(|byte| *byte == b'\n').next().unwrap_or_default();
        let is_whole = line.len() < length;
        if is_whole || length == head.len() || length == seen {
            let line = String::from_utf8_lossy(line);
            let path = line.split(' ').nth(1).unwrap_or_default();
            let segment = path.trim_start_matches('/').split(['/', '?']).next().unwrap_or_default();
            return Ok((!segment.is_empty()).then(|| segment.to_owned()));
        }
        // Half a line: a peek does not wait for more.
        seen = length;
        std::thread::sleep(Duration::from_millis(5));
    }
}
