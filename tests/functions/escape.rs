//! What the escape tests run inside a container: code that obeys an attacker in everything. It is deployed as a function
//! of the `fd` or the `listen-fds` contract; on each connection it says the connection's own descriptor, then makes whatever system call
//! a line of JSON asks for and answers with what became of it.
//!
//! A call is `{"call": NUMBER, "args": [...], "repeat": TIMES}`. An argument is a number, `{"in": [BYTES]}` (a pointer to
//! them), `{"room": LENGTH}` (a pointer to room), `{"out": LENGTH}` (the same, and its content comes back) or
//! `{"words": [ARGUMENTS]}` (a pointer to 64-bit words). `{"keep": true}` ends the talk and leaves the connection open, for
//! other connections to take apart.

use std::io::{self, BufRead, BufReader, Write};
use std::net::TcpStream;
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd};
use std::thread;

use faasd_sdk::{Event, Receiver};
use serde_json::{Value, json};

/// Where the status page's descriptor stays, which the SDK closes.
const PAGE_FD: i64 = 100;

/// Makes any system call: the point of this program.
#[expect(unsafe_code, reason = "an attacker keeps no promise either")]
fn call(number: i64, arguments: [i64; 6]) -> i64 {
    let [a, b, c, d, e, f] = arguments;
    // SAFETY: none is promised. What a wrong pointer or call breaks is this process, which the tests expect.
    let result = unsafe { libc::syscall(number, a, b, c, d, e, f) };
    if result < 0 { -i64::from(io::Error::last_os_error().raw_os_error().unwrap_or(0)) } else { result }
}

/// Memory that arguments point into, by the order in which it was asked for.
#[derive(Default)]
struct Memory {
    blocks: Vec<Vec<u64>>,
    outs: Vec<(usize, usize)>,
}

impl Memory {
    fn block(&mut self, bytes: &[u8]) -> i64 {
        let words = bytes.chunks(8).map(|chunk| {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            u64::from_ne_bytes(word)
        });
        // One word more, so that even an empty one is somewhere.
        let block: Vec<u64> = words.chain([0]).collect();
        let address = block.as_ptr() as i64;
        self.blocks.push(block);
        address
    }

    fn argument(&mut self, value: &Value) -> i64 {
        if let Some(number) = value.as_i64() {
            return number;
        }
        if let Some(bytes) = value["in"].as_array() {
            let bytes: Vec<u8> = bytes.iter().filter_map(Value::as_u64).map(|b| b as u8).collect();
            return self.block(&bytes);
        }
        if let Some(length) = value["room"].as_u64() {
            return self.block(&vec![0; length as usize]);
        }
        if let Some(length) = value["out"].as_u64() {
            let address = self.block(&vec![0; length as usize]);
            self.outs.push((self.blocks.len() - 1, length as usize));
            return address;
        }
        let words = value["words"].as_array().map_or(&[][..], Vec::as_slice);
        let bytes: Vec<u8> = words.iter().flat_map(|word| self.argument(word).to_ne_bytes()).collect();
        self.block(&bytes)
    }

    fn outs(&self) -> Vec<Vec<u8>> {
        let bytes = |&(block, length): &(usize, usize)| -> Vec<u8> {
            self.blocks[block].iter().flat_map(|word| word.to_ne_bytes()).take(length).collect()
        };
        self.outs.iter().map(bytes).collect()
    }
}

fn obey(order: &Value) -> Value {
    let mut memory = Memory::default();
    let mut arguments = [0; 6];
    for (slot, value) in arguments.iter_mut().zip(order["args"].as_array().into_iter().flatten()) {
        *slot = memory.argument(value);
    }
    let number = order["call"].as_i64().unwrap_or(-1);
    let mut result = 0;
    for _ in 0..order["repeat"].as_u64().unwrap_or(1) {
        result = call(number, arguments);
        if result < 0 {
            break;
        }
    }
    json!({ "result": result, "out": memory.outs() })
}

fn talk(stream: TcpStream) -> io::Result<()> {
    writeln!(&stream, "{}", stream.as_raw_fd())?;
    let mut lines = BufReader::new(stream);
    let mut line = String::new();
    while lines.read_line(&mut line)? > 0 {
        let order: Value = serde_json::from_str(&line)?;
        if order["keep"] == true {
            // Left open on purpose: from here on the connection is nobody's but the attacker's.
            let fd = lines.into_inner().into_raw_fd();
            let mut memory = Memory::default();
            let kept = memory.block(b"kept\n");
            call(libc::SYS_write, [fd.into(), kept, 5, 0, 0, 0]);
            return Ok(());
        }
        writeln!(lines.get_ref(), "{}", obey(&order))?;
        line.clear();
    }
    Ok(())
}

/// As a function of the `listen-fds` contract: the listener is descriptor 3.
#[expect(unsafe_code, reason = "the descriptor comes by its number alone")]
fn accept() -> ! {
    // SAFETY: nobody else in this process has it.
    let listener = unsafe { std::net::TcpListener::from_raw_fd(3) };
    loop {
        match listener.accept() {
            Ok((stream, _)) => drop(thread::spawn(move || {
                if let Err(error) = talk(stream) {
                    eprintln!("{error}");
                }
            })),
            // Taken apart: whoever did that wants to go on talking.
            Err(_) => thread::sleep(std::time::Duration::from_millis(10)),
        }
    }
}

fn main() -> Result<(), faasd_sdk::Error> {
    if std::env::var_os("LISTEN_FDS").is_some() {
        accept();
    }
    call(libc::SYS_dup3, [4, PAGE_FD, 0, 0, 0, 0]);
    let mut receiver = Receiver::inherited()?;
    receiver.ready()?;
    loop {
        match receiver.recv()? {
            Event::Connections(batch) => {
                for connection in batch {
                    let (stream, guard) = connection.into_tcp();
                    thread::spawn(move || {
                        if let Err(error) = stream.set_nonblocking(false).and_then(|()| talk(stream)) {
                            eprintln!("{error}");
                        }
                        drop(guard);
                    });
                }
            }
            Event::Drain => return Ok(()),
            // It has shut the socket itself, and stays to see what comes of it.
            Event::Closed => loop {
                thread::park();
            },
        }
    }
}
