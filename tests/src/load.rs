//! Clients that keep their connections and never stop asking.

use std::io;
use std::net::{Ipv6Addr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use anyhow::{Context, Result, anyhow, ensure};

use crate::{Client, eventually, get};

/// A number of clients at work, each with one connection for all its requests.
#[derive(Debug)]
pub struct Load {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
    clients: Vec<JoinHandle<io::Result<()>>>,
}

impl Load {
    /// Connects `clients` clients and lets them ask for `/`.
    ///
    /// # Errors
    /// If one cannot connect.
    pub fn start(client: &Client<'_>, address: Ipv6Addr, port: u16, clients: usize) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let answered = Arc::new(AtomicU64::new(0));
        let streams: io::Result<Vec<_>> = (0..clients).map(|_| client.connect(address, port)).collect();
        let start = |stream| {
            let (stop, answered) = (Arc::clone(&stop), Arc::clone(&answered));
            std::thread::spawn(move || ask(stream, &stop, &answered))
        };
        let clients = streams?.into_iter().map(start).collect();
        Ok(Self { stop, answered, clients })
    }

    /// Requests answered so far.
    #[must_use]
    pub fn answered(&self) -> u64 {
        self.answered.load(Ordering::Relaxed)
    }

    /// Waits for further answers.
    ///
    /// # Errors
    /// If they do not come, or a client had to give up.
    pub fn more(&self, answers: u64) -> Result<()> {
        let wanted = self.answered() + answers;
        eventually("the clients are answered", || self.answered() >= wanted || self.has_failed())?;
        ensure!(!self.has_failed(), "a client's connection failed");
        Ok(())
    }

    /// Stops the clients.
    ///
    /// # Errors
    /// The first failure of a client at any time.
    pub fn finish(self) -> Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        for client in self.clients {
            let outcome = client.join().map_err(|_| anyhow!("a client panicked"))?;
            outcome.context("a client's connection failed")?;
        }
        Ok(self.answered.load(Ordering::Relaxed))
    }

    fn has_failed(&self) -> bool {
        self.clients.iter().any(JoinHandle::is_finished)
    }
}

fn ask(mut stream: TcpStream, stop: &AtomicBool, answered: &AtomicU64) -> io::Result<()> {
    while !stop.load(Ordering::Relaxed) {
        let (status, _) = get(&mut stream, "/")?;
        if status != 200 {
            return Err(io::Error::other(format!("status {status}")));
        }
        answered.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}
