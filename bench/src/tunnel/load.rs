//! What goes through a tunnel: as much as it takes, or one question at a time.

use std::io::{Read, Write};
use std::net::{Ipv6Addr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use hdrhistogram::Histogram;

use super::bed::{Bed, Link};

/// Bytes of one write, and of one read.
const BLOCK_BYTES: usize = 128 << 10;

/// Bytes of a question and of its answer.
const QUESTION_BYTES: usize = 64;

/// How long to wait for the other end before something is wrong.
const DEADLINE: Duration = Duration::from_secs(15);

/// What a chunk of bulk transfer came to.
#[derive(Clone, Copy, Debug)]
pub struct Bulk {
    bytes: u64,
    elapsed: Duration,
    cpu: Option<Duration>,
}

impl Bulk {
    fn gbit(&self) -> f64 {
        self.bytes as f64 * 8.0 / 1e9
    }

    /// How fast.
    #[must_use]
    pub fn gbit_per_s(&self) -> f64 {
        self.gbit() / self.elapsed.as_secs_f64()
    }

    /// At what cost.
    #[must_use]
    pub fn cpu_s_per_gbit(&self) -> Option<f64> {
        Some(self.cpu?.as_secs_f64() / self.gbit())
    }
}

/// A connection through the link, both ends.
fn connection(bed: &Bed, link: &Link) -> anyhow::Result<(TcpStream, TcpStream)> {
    let listener = bed.within(1, || Ok(TcpListener::bind((Ipv6Addr::UNSPECIFIED, 0))?))?;
    let to = (link.address, listener.local_addr()?.port()).into();
    let near = bed.within(0, || Ok(TcpStream::connect_timeout(&to, DEADLINE)?))?;
    let (far, _) = listener.accept()?;
    for end in [&near, &far] {
        end.set_nodelay(true)?;
        end.set_read_timeout(Some(DEADLINE))?;
        end.set_write_timeout(Some(DEADLINE))?;
    }
    Ok((near, far))
}

/// One connection, as fast as it goes, for about so long. What counts is what has arrived.
pub fn bulk(bed: &Bed, link: &Link, duration: Duration) -> anyhow::Result<Bulk> {
    let (mut near, mut far) = connection(bed, link)?;
    let cpu = link.cpu();
    let start = Instant::now();
    std::thread::scope(|scope| {
        let sender = scope.spawn(move || -> std::io::Result<()> {
            let block = vec![0x5a; BLOCK_BYTES];
            while start.elapsed() < duration {
                near.write_all(&block)?;
            }
            Ok(())
        });
        let (mut bytes, mut block) = (0, vec![0; BLOCK_BYTES]);
        loop {
            match far.read(&mut block).context("reading what was sent")? {
                0 => break,
                read => bytes += read as u64,
            }
        }
        let elapsed = start.elapsed();
        let sent = sender.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        sent.context("sending")?;
        ensure!(bytes > 0, "nothing arrived");
        Ok(Bulk { bytes, elapsed, cpu: link.cpu().zip(cpu).map(|(after, before)| after - before) })
    })
}

/// One question after another for so long.
pub fn round_trips(
    bed: &Bed,
    link: &Link,
    duration: Duration,
    seen: &mut Histogram<u64>,
) -> anyhow::Result<()> {
    let (mut near, mut far) = connection(bed, link)?;
    std::thread::scope(|scope| {
        let answers = scope.spawn(move || -> std::io::Result<()> {
            let mut question = [0; QUESTION_BYTES];
            loop {
                match far.read_exact(&mut question) {
                    Ok(()) => far.write_all(&question)?,
                    Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(()),
                    Err(e) => return Err(e),
                }
            }
        });
        let begin = Instant::now();
        let mut answer = [0; QUESTION_BYTES];
        while begin.elapsed() < duration {
            let asked = Instant::now();
            near.write_all(&[1; QUESTION_BYTES])?;
            near.read_exact(&mut answer)?;
            seen.saturating_record(u64::try_from(asked.elapsed().as_nanos()).unwrap_or(u64::MAX));
        }
        drop(near);
        let answered = answers.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        answered.context("answering")
    })
}
