//! What is kept of requests: histograms and counts, of bounded size however long the run is.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use hdrhistogram::Histogram;

use super::series::Series;

/// The longest time that is told apart, in nanoseconds.
pub const LONGEST: u64 = 3_600_000_000_000;

/// Differences below this are not told apart, in nanoseconds.
const FINEST: u64 = 64;

/// A histogram of nanoseconds.
#[must_use]
pub fn histogram(digits: u8) -> Histogram<u64> {
    #[expect(clippy::expect_used, reason = "the bounds are constants, and a test makes both kinds")]
    Histogram::new_with_bounds(FINEST, LONGEST, digits).expect("bounds that are in order")
}

/// A part of the way to an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// From when it was due until it was sent: no connection was free, or the tool was late. Open loops only.
    Wait,
    Dns,
    /// Until the connection was established, and the WebSocket's handshake done.
    Connect,
    /// From the request's first byte to the head of the answer.
    FirstByte,
    /// From there to the answer's end.
    Transfer,
}

impl Phase {
    pub const ALL: [Self; 5] = [Self::Wait, Self::Dns, Self::Connect, Self::FirstByte, Self::Transfer];

    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Wait => "wait",
            Self::Dns => "dns",
            Self::Connect => "connect",
            Self::FirstByte => "first-byte",
            Self::Transfer => "transfer",
        }
    }
}

/// Why there was no answer, or not the one that counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    Dns,
    Refused,
    Unreachable,
    /// No answer to a SYN within the time-out.
    ConnectTimeout,
    /// None of our ports is free for another connection.
    Ports,
    /// No descriptor is free.
    Descriptors,
    Timeout,
    Reset,
    /// The server ended the connection where an answer was due.
    Closed,
    /// What came is no HTTP, or no WebSocket.
    Protocol,
    /// An answer of 400 or above.
    Status(u16),
    Other,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Dns => "dns",
            Self::Refused => "refused",
            Self::Unreachable => "unreachable",
            Self::ConnectTimeout => "connect-timeout",
            Self::Ports => "no-port",
            Self::Descriptors => "no-descriptor",
            Self::Timeout => "timeout",
            Self::Reset => "reset",
            Self::Closed => "closed",
            Self::Protocol => "protocol",
            Self::Status(status) => return write!(f, "status-{status}"),
            Self::Other => "other",
        })
    }
}

/// A request that was answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// From when it was due, or sent, to the answer's end.
    pub latency: Duration,
    /// By [`Phase`]; none where it had no such part.
    pub phases: [Option<Duration>; Phase::ALL.len()],
    /// Of bodies and messages.
    pub sent_bytes: u64,
    pub received_bytes: u64,
}

impl Answer {
    pub fn set(&mut self, phase: Phase, took: Duration) {
        self.phases[phase as usize] = Some(took);
    }
}

/// A kind of fault: how often, and what the first one said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Faults {
    pub count: u64,
    pub example: String,
}

/// Everything about the requests to one target.
#[derive(Clone, Debug)]
pub struct Record {
    pub latency: Histogram<u64>,
    pub phases: [Histogram<u64>; Phase::ALL.len()],
    pub series: Series,
    pub faults: BTreeMap<Fault, Faults>,
    pub sent_bytes: u64,
    pub received_bytes: u64,
    /// Connections that were established.
    pub connections: u64,
    /// Requests that were due and could not be sent before the end.
    pub unsent: u64,
    /// Of the answers, those that were complete only after the end of sending.
    pub late: u64,
    /// Processor time of the load's busiest thread.
    pub cpu: Duration,
    /// While requests were sent.
    pub elapsed: Duration,
}

impl Default for Record {
    fn default() -> Self {
        Self {
            latency: histogram(3),
            phases: std::array::from_fn(|_| histogram(2)),
            series: Series::default(),
            faults: BTreeMap::new(),
            sent_bytes: 0,
            received_bytes: 0,
            connections: 0,
            unsent: 0,
            late: 0,
            cpu: Duration::ZERO,
            elapsed: Duration::ZERO,
        }
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX).min(LONGEST)
}

impl Record {
    /// One that chunks of that length are to be added to.
    #[must_use]
    pub fn of_chunks(chunk: Option<Duration>) -> Self {
        Self { series: chunk.map_or_else(Series::default, Series::new), ..Self::default() }
    }

    /// Takes from a warm-up what the connections cost that stay.
    pub fn warmed_up(&mut self, warm_up: &Self) {
        self.connections += warm_up.connections;
        for phase in [Phase::Dns, Phase::Connect] {
            let added = self.phases[phase as usize].add(&warm_up.phases[phase as usize]);
            debug_assert!(added.is_ok());
        }
    }

    /// An answer that was complete `at` so long after the beginning.
    pub fn answer(&mut self, at: Duration, answer: &Answer) {
        let latency = nanos(answer.latency);
        self.latency.saturating_record(latency);
        self.series.record(at, Some(latency));
        for (histogram, phase) in self.phases.iter_mut().zip(answer.phases) {
            if let Some(took) = phase {
                histogram.saturating_record(nanos(took));
            }
        }
        self.sent_bytes += answer.sent_bytes;
        self.received_bytes += answer.received_bytes;
    }

    /// A part of no particular request, such as a connection that was opened beforehand.
    pub fn phase(&mut self, phase: Phase, took: Duration) {
        self.phases[phase as usize].saturating_record(nanos(took));
    }

    /// A request that failed.
    pub fn fault(&mut self, at: Duration, fault: Fault, example: impl FnOnce() -> String) {
        self.series.record(at, None);
        let entry = self.faults.entry(fault);
        entry.or_insert_with(|| Faults { count: 0, example: example() }).count += 1;
    }

    #[must_use]
    pub fn answered(&self) -> u64 {
        self.latency.len()
    }

    /// Answers a second, while requests were sent. What came later has its latency, but is no part of that time.
    #[must_use]
    pub fn per_second(&self) -> f64 {
        let seconds = self.elapsed.as_secs_f64();
        if seconds > 0.0 { self.answered().saturating_sub(self.late) as f64 / seconds } else { 0.0 }
    }

    #[must_use]
    pub fn failed(&self) -> u64 {
        self.faults.values().map(|faults| faults.count).sum()
    }

    /// Adds what another worker saw in the same time.
    pub fn beside(&mut self, other: Self) {
        self.cpu = self.cpu.max(other.cpu);
        let series = self.counts(other);
        self.series.add(series.0);
        self.elapsed = self.elapsed.max(series.1);
    }

    /// Adds the next chunk.
    pub fn append(&mut self, other: Self) {
        let after = self.elapsed;
        self.cpu += other.cpu;
        let (series, elapsed) = self.counts(other);
        self.series.append(&series, after);
        self.elapsed += elapsed;
    }

    fn counts(&mut self, other: Self) -> (Series, Duration) {
        let mut added = self.latency.add(&other.latency);
        for (mine, theirs) in self.phases.iter_mut().zip(&other.phases) {
            added = added.and_then(|()| mine.add(theirs));
        }
        // All have the same bounds.
        debug_assert!(added.is_ok());
        for (fault, faults) in other.faults {
            let mine = self.faults.entry(fault);
            mine.or_insert_with(|| Faults { count: 0, example: faults.example }).count += faults.count;
        }
        self.sent_bytes += other.sent_bytes;
        self.received_bytes += other.received_bytes;
        self.connections += other.connections;
        self.unsent += other.unsent;
        self.late += other.late;
        (other.series, other.elapsed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(micros: u64) -> Answer {
        let latency = Duration::from_micros(micros);
        let mut answer = Answer { latency, received_bytes: 10, ..Answer::default() };
        answer.set(Phase::FirstByte, latency / 2);
        answer
    }

    #[test]
    fn workers_and_chunks_add_up() {
        let second = Duration::from_secs(1);
        let record = |micros| {
            let mut record = Record { elapsed: second, connections: 1, ..Record::default() };
            record.answer(second / 2, &answer(micros));
            record.fault(second, Fault::Status(503), || format!("busy {micros}"));
            record
        };
        let mut all = record(100);
        all.beside(record(200));
        assert_eq!(all.elapsed, second);
        all.append(record(300));
        assert_eq!((all.answered(), all.failed(), all.connections), (3, 3, 3));
        assert_eq!((all.elapsed, all.received_bytes), (2 * second, 30));
        assert_eq!(all.faults[&Fault::Status(503)].example, "busy 100");
        assert_eq!(all.phases[Phase::FirstByte as usize].len(), 3);
        assert!(all.phases[Phase::Dns as usize].is_empty());
        let ends: Vec<u64> = all.series.slots().iter().map(|slot| slot.answered).collect();
        assert_eq!((ends[5], ends[10]), (2, 1), "the chunk that came after is shown after");
    }

    #[test]
    fn what_takes_longer_than_can_be_told_apart_is_the_longest() {
        let mut record = Record::default();
        record.answer(Duration::ZERO, &answer(u64::MAX / 1000));
        assert_eq!(record.latency.max(), record.latency.highest_equivalent(LONGEST));
    }
}
