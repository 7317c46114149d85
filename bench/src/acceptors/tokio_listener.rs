//! tokio's listener, then `sendmsg(2)`.

use std::net::TcpListener;
use std::os::fd::AsFd;

use crate::wire::Sender;

pub(super) fn run(listener: TcpListener, mut sender: Sender) -> anyhow::Result<()> {
    listener.set_nonblocking(true)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::from_std(listener)?;
        loop {
            let (connection, _) = listener.accept().await?;
            sender.send(&[connection.as_fd()])?;
        }
    })
}
