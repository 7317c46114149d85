//! A multishot accept on a ring of our own. One connection in a sweep leaves by itself, several leave in one message:
//! the first costs least when alone, the second when the core is saturated.

use std::io;
use std::net::TcpListener;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use anyhow::Context;
use faasd_sdk::wire::CONNECTIONS_MAX;
use io_uring::{IoUring, cqueue, opcode, types};

use crate::wire::Sender;

/// Entries of the submission queue: only the accept itself is ever in it.
const ENTRIES: u32 = 8;
/// Completions that can wait: as many connections as a sweep may find.
const COMPLETIONS: u32 = 4096;

pub(super) fn run(listener: &TcpListener, mut sender: Sender) -> anyhow::Result<()> {
    let mut ring = IoUring::builder()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_cqsize(COMPLETIONS)
        .build(ENTRIES)
        .context("cannot set up io_uring (if it is disabled here: `sysctl -w kernel.io_uring_disabled=0`)")?;
    accept(&mut ring, listener)?;
    let mut sweep: Vec<OwnedFd> = Vec::with_capacity(COMPLETIONS as usize);
    loop {
        match ring.submit_and_wait(1) {
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(e).context("io_uring_enter"),
        }
        let mut over = false;
        for completion in ring.completion() {
            over |= !cqueue::more(completion.flags());
            sweep.push(adopt(&completion).context("accept")?);
        }
        if over {
            accept(&mut ring, listener)?;
        }
        for chunk in sweep.chunks(CONNECTIONS_MAX) {
            // Any borrow fills the array; one that needs no allocation.
            let mut borrowed = [listener.as_fd(); CONNECTIONS_MAX];
            for (place, connection) in borrowed.iter_mut().zip(chunk) {
                *place = connection.as_fd();
            }
            sender.send(&borrowed[..chunk.len()]).context("cannot hand a connection over")?;
        }
        // Our copies must go, or clients never see the end of their connections.
        sweep.clear();
    }
}

#[expect(unsafe_code, reason = "the ring takes descriptors as numbers")]
fn accept(ring: &mut IoUring, listener: &TcpListener) -> anyhow::Result<()> {
    let entry = opcode::AcceptMulti::new(types::Fd(listener.as_raw_fd())).flags(libc::SOCK_CLOEXEC).build();
    // SAFETY: the entry points to no memory, and the caller keeps the listener open as long as the ring.
    unsafe { ring.submission().push(&entry) }.context("the submission queue is full")?;
    Ok(())
}

#[expect(unsafe_code, reason = "the ring gives descriptors as numbers")]
fn adopt(completion: &cqueue::Entry) -> io::Result<OwnedFd> {
    match completion.result() {
        // SAFETY: an accept that succeeded has made this descriptor for us, and nobody else knows it.
        number @ 0.. => Ok(unsafe { OwnedFd::from_raw_fd(number) }),
        error => Err(io::Error::from_raw_os_error(-error)),
    }
}
