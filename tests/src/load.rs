//! Clients that keep their connections and never stop asking.

use std::io;
use std::net::{Ipv6Addr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use anyhow::{Result, anyhow, bail};

use crate::{Client, eventually, get};

/// A number of clients at work, each with one connection for all its requests.
#[derive(Debug)]
pub struct Load {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
    failure: Arc<Mutex<Option<String>>>,
    clients: Vec<JoinHandle<()>>,
}

impl Load {
    /// Connects `clients` clients and lets them ask for `/`.
    ///
    /// # Errors
    /// If one cannot connect.
    pub fn start(client: &Client<'_>, address: Ipv6Addr, port: u16, clients: usize) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let answered = Arc::new(AtomicU64::new(0));
        let failure = Arc::<Mutex<Option<String>>>::default();
        let streams: io::Result<Vec<_>> = (0..clients).map(|_| client.connect(address, port)).collect();
        let start = |stream| {
            let (stop, answered, failure) = (Arc::clone(&stop), Arc::clone(&answered), Arc::clone(&failure));
            std::thread::spawn(move || {
                if let Err(error) = ask(stream, &stop, &answered) {
                    lock(&failure).get_or_insert(format!("a client's connection failed: {error}"));
                }
            })
        };
        let clients = streams?.into_iter().map(start).collect();
        Ok(Self { stop, answered, failure, clients })
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
        eventually("the clients are answered", || {
            self.answered() >= wanted || lock(&self.failure).is_some()
        })?;
        self.check()
    }

    /// Stops the clients.
    ///
    /// # Errors
    /// The first failure of a client at any time.
    pub fn finish(self) -> Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        for client in self.clients {
            client.join().map_err(|_| anyhow!("a client panicked"))?;
        }
        if let Some(failure) = lock(&self.failure).take() {
            bail!(failure);
        }
        Ok(self.answered.load(Ordering::Relaxed))
    }

    fn check(&self) -> Result<()> {
        match &*lock(&self.failure) {
            Some(failure) => bail!(failure.clone()),
            None => Ok(()),
        }
    }
}

fn lock(failure: &Mutex<Option<String>>) -> MutexGuard<'_, Option<String>> {
    failure.lock().unwrap_or_else(PoisonError::into_inner)
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
