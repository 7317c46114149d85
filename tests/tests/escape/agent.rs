//! Code that does whatever it is told, and what it is told.

use std::io::{self, BufRead, BufReader, Write};
use std::net::{Ipv6Addr, TcpStream};

use anyhow::{Context, Result, ensure};
use faasd_tests::Bed;
use libc::{AF_INET6, SOL_SOCKET};
use serde_json::{Value, json};

use crate::address_of;

/// A connection to code that does whatever it is told.
pub struct Agent {
    reader: BufReader<TcpStream>,
    /// The connection's descriptor, on the function's side.
    pub fd: i64,
}

/// What became of a call.
#[derive(Debug)]
pub struct Outcome {
    /// What it returned, or the negative error.
    pub result: i64,
    pub outs: Vec<Vec<u8>>,
}

impl Agent {
    pub fn connect(bed: &Bed, function: &str) -> Result<Self> {
        let stream = bed.client().connect(address_of(function)?, 80)?;
        let mut reader = BufReader::new(stream);
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let fd = line.trim().parse().with_context(|| format!("no descriptor: {line}"))?;
        Ok(Self { reader, fd })
    }

    pub fn tell(&mut self, order: &Value) -> io::Result<()> {
        let stream = self.reader.get_mut();
        stream.write_all(format!("{order}\n").as_bytes())
    }

    #[expect(clippy::needless_pass_by_value, reason = "each caller builds it in place")]
    pub fn repeat(&mut self, times: u64, call: i64, args: Value) -> Result<Outcome> {
        self.tell(&json!({ "call": call, "args": args, "repeat": times }))?;
        let mut line = String::new();
        self.reader.read_line(&mut line)?;
        let answer: Value =
            serde_json::from_str(&line).with_context(|| format!("call {call} {args}: {line}"))?;
        Ok(Outcome {
            result: answer["result"].as_i64().context("no result")?,
            outs: serde_json::from_value(answer["out"].clone())?,
        })
    }

    pub fn outcome(&mut self, call: i64, args: Value) -> Result<Outcome> {
        self.repeat(1, call, args)
    }

    pub fn call(&mut self, call: i64, args: Value) -> Result<i64> {
        Ok(self.outcome(call, args)?.result)
    }

    /// Fails unless the call fails by one of `errors`.
    pub fn refused(&mut self, what: &str, call: i64, args: Value, errors: &[i32]) -> Result<()> {
        let result = self.call(call, args)?;
        ensure!(errors.iter().any(|&e| result == -i64::from(e)), "{what}: {result}, not one of {errors:?}");
        Ok(())
    }

    pub fn granted(&mut self, what: &str, call: i64, args: Value) -> Result<i64> {
        let result = self.call(call, args)?;
        ensure!(result >= 0, "{what} is the attack's precondition and failed: {result}");
        Ok(result)
    }

    /// Leaves the connection open and to itself; what is on the client's side is returned.
    pub fn keep(mut self) -> Result<(i64, TcpStream)> {
        self.tell(&json!({ "keep": true }))?;
        let mut line = String::new();
        self.reader.read_line(&mut line)?;
        ensure!(line == "kept\n", "not kept: {line}");
        Ok((self.fd, self.reader.into_inner()))
    }

    /// The first bytes of a file, by the attacker's eyes.
    pub fn read_file(&mut self, path: &str) -> Result<Result<Vec<u8>, i64>> {
        let fd = self.call(libc::SYS_openat, json!([libc::AT_FDCWD, text(path), 0, 0]))?;
        if fd < 0 {
            return Ok(Err(fd));
        }
        let mut read = self.outcome(libc::SYS_read, json!([fd, { "out": 4096 }, 4096]))?;
        self.call(libc::SYS_close, json!([fd]))?;
        if read.result < 0 {
            return Ok(Err(read.result));
        }
        let mut bytes = read.outs.swap_remove(0);
        bytes.truncate(read.result as usize);
        Ok(Ok(bytes))
    }

    /// The names in a directory.
    pub fn list(&mut self, path: &str) -> Result<Vec<String>> {
        let fd =
            self.granted(path, libc::SYS_openat, json!([libc::AT_FDCWD, text(path), libc::O_DIRECTORY, 0]))?;
        let room = 32 << 10;
        let read = self.outcome(libc::SYS_getdents64, json!([fd, { "out": room }, room]))?;
        self.call(libc::SYS_close, json!([fd]))?;
        let mut names = Vec::new();
        let mut rest = &read.outs[0][..read.result.max(0) as usize];
        while rest.len() > 19 {
            let length = usize::from(u16::from_ne_bytes([rest[16], rest[17]]));
            let name = rest[19..length].split(|&b| b == 0).next().unwrap_or_default();
            names.push(String::from_utf8_lossy(name).into_owned());
            rest = &rest[length..];
        }
        Ok(names)
    }
}

pub fn text(text: &str) -> Value {
    json!({ "in": text.bytes().chain([0]).collect::<Vec<u8>>() })
}

pub fn sockaddr(address: Ipv6Addr, port: u16) -> Value {
    let mut bytes = (AF_INET6 as u16).to_ne_bytes().to_vec();
    bytes.extend(port.to_be_bytes());
    bytes.extend([0; 4]);
    bytes.extend(address.octets());
    bytes.extend([0; 4]);
    json!({ "in": bytes })
}

pub fn disconnect(agent: &mut Agent, fd: i64) -> Result<()> {
    agent.granted("connect(AF_UNSPEC)", libc::SYS_connect, json!([fd, { "in": vec![0; 28] }, 28])).map(drop)
}

/// `sendmsg` of `bytes` with descriptors along.
pub fn message(bytes: &[u8], descriptors: &[i64]) -> Value {
    let rights: Vec<u8> = descriptors.iter().flat_map(|&fd| (fd as i32).to_ne_bytes()).collect();
    let length = 16 + rights.len();
    let mut control = (length as u64).to_ne_bytes().to_vec();
    control.extend(SOL_SOCKET.to_ne_bytes());
    control.extend(libc::SCM_RIGHTS.to_ne_bytes());
    control.extend(rights);
    let control_length = if descriptors.is_empty() { 0 } else { control.len().next_multiple_of(8) };
    json!({ "words": [0, 0, { "words": [{ "in": bytes }, bytes.len()] }, 1, { "in": control }, control_length, 0] })
}

pub fn hand_off(kind: u16) -> Vec<u8> {
    [1u16, kind, 0, 32].into_iter().flat_map(u16::to_le_bytes).collect()
}
