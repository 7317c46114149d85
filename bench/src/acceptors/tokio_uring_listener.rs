//! tokio-uring's listener, then `sendmsg(2)`.

use std::net::TcpListener;
use std::os::fd::{AsRawFd, BorrowedFd};

use crate::wire::Sender;

#[expect(unsafe_code, reason = "tokio-uring's stream gives its descriptor only as a number")]
pub(super) fn run(listener: TcpListener, mut sender: Sender) -> anyhow::Result<()> {
    tokio_uring::start(async {
        let listener = tokio_uring::net::TcpListener::from_std(listener);
        loop {
            let (connection, _) = listener.accept().await?;
            // SAFETY: `connection` is open until the end of the loop's body, the borrow ends before.
            let descriptor = unsafe { BorrowedFd::borrow_raw(connection.as_raw_fd()) };
            sender.send(&[descriptor])?;
        }
    })
}
