//! Clients that never stop asking.

use std::io;
use std::net::{Ipv6Addr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Result, anyhow, bail};

use crate::{Client, eventually, exchange, get};

/// How long a client waits for a connection, and for an answer.
const PATIENCE: Duration = Duration::from_secs(20);

/// A number of clients at work.
#[derive(Debug)]
pub struct Load {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
    failure: Arc<Mutex<Option<String>>>,
    clients: Vec<JoinHandle<()>>,
}

impl Load {
    /// Connects `clients` clients and lets them ask for `/`, each by one connection for all its requests.
    ///
    /// # Errors
    /// If one cannot connect.
    pub fn start(client: &Client<'_>, address: Ipv6Addr, port: u16, clients: usize) -> Result<Self> {
        let streams: io::Result<Vec<_>> = (0..clients).map(|_| client.connect(address, port)).collect();
        let streams = Mutex::new(streams?);
        Self::spawn(clients, move |stop, answered| match lock(&streams).pop() {
            Some(mut stream) => ask(stop, answered, || get(&mut stream, "/")),
            None => Ok(()),
        })
    }

    /// Connects `clients` clients that keep their connections as HTTP has it: until an answer says that it is the last.
    ///
    /// # Errors
    /// If there is no client's namespace.
    pub fn keeping(client: &Client<'_>, address: Ipv6Addr, port: u16, clients: usize) -> Result<Self> {
        let ns = client.netns()?;
        Self::spawn(clients, move |stop, answered| {
            ns.run(|| {
                let mut kept = None;
                ask(stop, answered, || {
                    let mut stream = match kept.take() {
                        Some(stream) => stream,
                        None => connect(address, port)?,
                    };
                    let (status, body, is_last) = exchange(&mut stream, "/")?;
                    kept = (!is_last).then_some(stream);
                    Ok((status, body))
                })
            })
        })
    }

    /// Lets `clients` clients ask for `/`, each request by a connection of its own.
    ///
    /// # Errors
    /// If there is no client's namespace.
    pub fn reconnecting(client: &Client<'_>, address: Ipv6Addr, port: u16, clients: usize) -> Result<Self> {
        let ns = client.netns()?;
        Self::spawn(clients, move |stop, answered| {
            // A thread of its own, in the namespace for good.
            ns.run(|| ask(stop, answered, || get(&mut connect(address, port)?, "/")))
        })
    }

    fn spawn(
        clients: usize,
        work: impl Fn(&AtomicBool, &AtomicU64) -> io::Result<()> + Send + Sync + 'static,
    ) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let answered = Arc::new(AtomicU64::new(0));
        let failure = Arc::<Mutex<Option<String>>>::default();
        let work = Arc::new(work);
        let start = |_| {
            let (stop, answered) = (Arc::clone(&stop), Arc::clone(&answered));
            let (failure, work) = (Arc::clone(&failure), Arc::clone(&work));
            std::thread::spawn(move || {
                if let Err(error) = work(&stop, &answered) {
                    lock(&failure).get_or_insert(format!("a client's connection failed: {error}"));
                }
            })
        };
        let clients = (0..clients).map(start).collect();
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

fn lock<T>(value: &Mutex<T>) -> MutexGuard<'_, T> {
    value.lock().unwrap_or_else(PoisonError::into_inner)
}

fn connect(address: Ipv6Addr, port: u16) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&(address, port).into(), PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

fn ask(
    stop: &AtomicBool,
    answered: &AtomicU64,
    mut get: impl FnMut() -> io::Result<(u16, Vec<u8>)>,
) -> io::Result<()> {
    while !stop.load(Ordering::Relaxed) {
        let (status, _) = get()?;
        if status != 200 {
            return Err(io::Error::other(format!("status {status}")));
        }
        answered.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}
