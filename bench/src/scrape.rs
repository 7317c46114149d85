//! A scraper of the daemon's metrics beside the load. It stands for another machine's, but has to share the client's
//! core, where it gives way to the load.

use std::fs::File;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use rustix::process::setpriority_process;

use crate::load::{Destination, Placement, Seat, connect};
use crate::subject::Scraped;

/// The lowest priority there is.
const NICE: i32 = 19;

/// How soon the end of the load is noticed.
const LOOK: Duration = Duration::from_millis(5);

/// Scrapes as long as `work` takes.
///
/// # Errors
/// Of the work, and of a scrape: there is nothing to compare if none succeeds.
pub fn during<T: Send>(
    scraped: &Scraped,
    target: &Destination,
    seat: &Seat,
    work: impl FnOnce() -> anyhow::Result<T> + Send,
) -> anyhow::Result<T> {
    let done = AtomicBool::new(false);
    let scrapes = AtomicU64::new(0);
    let netns = match &scraped.from {
        Some(path) => {
            let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
            Some(Arc::new(file))
        }
        None => target.netns.clone(),
    };
    let metrics = Destination { address: scraped.metrics, netns, mark: target.mark };
    let scrape = || {
        // To the kernel a thread's niceness is its own.
        setpriority_process(None, NICE)?;
        let mut text = Vec::new();
        while !done.load(Ordering::Relaxed) {
            let began = Instant::now();
            once(&metrics, &mut text).context("scraping")?;
            scrapes.fetch_add(1, Ordering::Relaxed);
            while !done.load(Ordering::Relaxed) && began.elapsed() < scraped.every {
                std::thread::sleep(LOOK);
            }
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let scraper = scope.spawn(|| seat.run(Placement::Apart, metrics.netns.as_deref(), scrape));
        let worked = work();
        done.store(true, Ordering::Relaxed);
        let ended: anyhow::Result<()> =
            scraper.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        ended?;
        ensure!(scrapes.load(Ordering::Relaxed) > 0, "nothing was scraped meanwhile");
        worked
    })
}

fn once(metrics: &Destination, text: &mut Vec<u8>) -> anyhow::Result<()> {
    let mut socket = TcpStream::from(connect(metrics)?);
    write!(socket, "GET /metrics HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", metrics.address)?;
    text.clear();
    socket.read_to_end(text)?;
    let status = text.split(|byte| *byte == b'\r').next().unwrap_or_default();
    ensure!(status.ends_with(b" 200 OK"), "/metrics: {}", String::from_utf8_lossy(status));
    Ok(())
}
