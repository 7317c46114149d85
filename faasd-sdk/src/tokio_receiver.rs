//! Receiving connections on tokio.

use std::os::fd::{AsFd, BorrowedFd};

use rustix::net::RecvFlags;
use tokio::io::unix::AsyncFd;

use crate::receiver::Received;
use crate::{Error, Event, Open, Receiver};

/// A [`Receiver`] that waits on tokio's reactor.
#[derive(Debug)]
pub struct AsyncReceiver {
    inner: AsyncFd<Receiver>,
}

impl AsyncReceiver {
    /// Registers the receiver's socket with the current runtime.
    ///
    /// # Errors
    /// Those of `epoll_ctl(2)`.
    pub fn new(receiver: Receiver) -> Result<Self, Error> {
        let inner = crate::sys::watch(receiver).map_err(Error::Receive)?;
        Ok(Self { inner })
    }

    /// Waits for what the platform says. Nothing is lost if the future is dropped.
    ///
    /// # Errors
    /// As [`Receiver::recv`].
    pub async fn recv(&mut self) -> Result<Event<'_>, Error> {
        let received = self.receive().await?;
        Ok(self.inner.get_mut().lend(received))
    }

    async fn receive(&mut self) -> Result<Received, Error> {
        loop {
            // Tried before waiting: under load there is more most of the time.
            if let Some(received) = self.inner.get_mut().receive(RecvFlags::DONTWAIT)? {
                return Ok(received);
            }
            let mut ready = self.inner.readable_mut().await.map_err(Error::Receive)?;
            // Tried again before the readiness is given up: a message that came in between would be slept through.
            if let Some(received) = ready.get_inner_mut().receive(RecvFlags::DONTWAIT)? {
                return Ok(received);
            }
            ready.clear_ready();
        }
    }

    /// See [`Receiver::ready`].
    ///
    /// # Errors
    /// [`Error::Send`].
    pub fn ready(&self) -> Result<(), Error> {
        self.inner.get_ref().ready()
    }

    /// See [`Receiver::drained`].
    ///
    /// # Errors
    /// [`Error::Send`].
    pub async fn drained(&self) -> Result<(), Error> {
        self.open().none_left().await;
        self.inner.get_ref().say_drained()
    }

    /// The count of open connections and the status page.
    #[must_use]
    pub fn open(&self) -> &Open {
        self.inner.get_ref().open()
    }
}

impl AsFd for AsyncReceiver {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inner.get_ref().as_fd()
    }
}
