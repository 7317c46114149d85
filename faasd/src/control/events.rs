//! What happened to functions, and why: the last events in memory, for whoever asks, and in files, for the next daemon.
//!
//! Recording takes a lock for the time of a few pointers and never waits: not for the disk, which a thread of its own
//! writes to, and not for readers, of whom a slow one is told that it has missed something.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::broadcast;

use crate::api::types::{Event, EventKind};
use crate::core::name::FunctionName;

/// Events that are kept of one function: one that crashes all night does not drive out what happened to others.
pub const FUNCTION_EVENTS_MAX: usize = 100;

/// Events that are kept of all together.
pub const EVENTS_MAX: usize = 10_000;

/// A longer message is cut.
pub const MESSAGE_BYTES_MAX: usize = 2 << 10;

/// Events that may wait for the disk. More are in memory alone.
const UNWRITTEN_MAX: usize = 4096;

/// Events that a reader may be behind.
const BEHIND_MAX: usize = 1024;

/// There are two files of this size at most: the present one and the one before.
const FILE_BYTES_MAX: u64 = 4 << 20;

/// How long the daemon waits on its way out for what is not written yet.
const FLUSH: Duration = Duration::from_secs(2);

const FILE: &str = "events.jsonl";
const FILE_OLD: &str = "events.jsonl.1";

/// An event as it is reported; its number and time are given to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewEvent {
    pub kind: EventKind,
    pub revision: Option<u64>,
    pub instance: Option<String>,
    pub message: String,
}

impl NewEvent {
    /// An event of a function as a whole.
    #[must_use]
    pub fn new(kind: EventKind, message: impl Into<String>) -> Self {
        Self { kind, revision: None, instance: None, message: message.into() }
    }

    #[must_use]
    pub fn revision(self, revision: u64) -> Self {
        Self { revision: Some(revision), ..self }
    }

    #[must_use]
    pub fn instance(self, instance: impl Into<String>) -> Self {
        Self { instance: Some(instance.into()), ..self }
    }
}

/// Which events somebody wants.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    pub function: Option<FunctionName>,
    /// Only those with a higher number.
    pub after: Option<u64>,
    /// Only those from then on.
    pub since: Option<Timestamp>,
}

impl Filter {
    #[must_use]
    pub fn matches(&self, event: &Event) -> bool {
        self.function.as_ref().is_none_or(|name| event.function.as_ref() == Some(name))
            && self.after.is_none_or(|after| event.id > after)
            && self.since.is_none_or(|since| event.time >= since)
    }
}

/// All events. A handle: clones share them.
#[derive(Clone)]
pub struct Events {
    shared: Arc<Shared>,
}

struct Shared {
    ring: Mutex<Ring>,
    live: broadcast::Sender<Arc<Event>>,
    writer: SyncSender<ToWriter>,
    /// Events that the next daemon will not know of.
    unwritten: Arc<AtomicU64>,
}

enum ToWriter {
    Event(Arc<Event>),
    Flush(SyncSender<()>),
}

/// What is in memory.
#[derive(Default)]
struct Ring {
    last: u64,
    all: BTreeMap<u64, Arc<Event>>,
    /// The numbers of each function's events, and of those that concern none.
    by_function: HashMap<Option<FunctionName>, VecDeque<u64>>,
}

impl Events {
    /// Reads what earlier daemons wrote below `dir`, and starts the thread that writes on.
    ///
    /// # Errors
    /// Those of the file system, and of starting a thread.
    pub fn open(dir: PathBuf) -> io::Result<Self> {
        fs::create_dir_all(&dir)?;
        let mut ring = Ring::default();
        for file in [FILE_OLD, FILE] {
            for event in read(&dir.join(file))? {
                ring.last = ring.last.max(event.id);
                ring.keep(Arc::new(event));
            }
        }
        // A number is not given twice, even if what was recorded last was not written: microseconds pass faster than
        // things happen.
        ring.last = ring.last.max(u64::try_from(Timestamp::now().as_microsecond()).unwrap_or_default());
        let (writer, inbox) = sync_channel(UNWRITTEN_MAX);
        let unwritten = Arc::new(AtomicU64::new(0));
        let sink = Sink { dir, file: None, bytes: 0, is_torn: false };
        let lost = Arc::clone(&unwritten);
        std::thread::Builder::new()
            .name("events".to_owned())
            .spawn(move || write_all(&inbox, sink, &lost))?;
        let shared =
            Shared { ring: Mutex::new(ring), live: broadcast::Sender::new(BEHIND_MAX), writer, unwritten };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Records what happened to a function.
    pub fn record(&self, function: &FunctionName, event: NewEvent) {
        self.add(Some(function.clone()), event);
    }

    /// Records what happened to the daemon itself.
    pub fn record_daemon(&self, event: NewEvent) {
        self.add(None, event);
    }

    fn add(&self, function: Option<FunctionName>, event: NewEvent) {
        let NewEvent { kind, revision, instance, mut message } = event;
        message.truncate(message.floor_char_boundary(MESSAGE_BYTES_MAX));
        let mut ring = self.ring();
        ring.last += 1;
        let (id, time) = (ring.last, Timestamp::now());
        let event = Arc::new(Event { id, time, function, kind, revision, instance, message });
        ring.keep(Arc::clone(&event));
        // Both under the lock, so that the order is that of the numbers; neither waits. Without readers there is nobody
        // to send it to.
        let _ = self.shared.live.send(Arc::clone(&event));
        if self.shared.writer.try_send(ToWriter::Event(event)).is_err() {
            self.shared.unwritten.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The last `limit` events that `filter` lets through, the oldest first.
    #[must_use]
    pub fn last(&self, filter: &Filter, limit: usize) -> Vec<Arc<Event>> {
        self.ring().last(filter, limit)
    }

    /// The same, and those that come from now on: none is missed in between, and none comes twice.
    #[must_use]
    pub fn follow(
        &self,
        filter: &Filter,
        limit: usize,
    ) -> (Vec<Arc<Event>>, broadcast::Receiver<Arc<Event>>) {
        let ring = self.ring();
        (ring.last(filter, limit), self.shared.live.subscribe())
    }

    /// Waits, but not for long, until everything recorded so far is written. Blocks.
    pub fn flush(&self) {
        let (done, is_done) = sync_channel(1);
        if self.shared.writer.try_send(ToWriter::Flush(done)).is_ok() {
            let _ = is_done.recv_timeout(FLUSH);
        }
    }

    /// How many events could not be written.
    #[must_use]
    pub fn unwritten(&self) -> u64 {
        self.shared.unwritten.load(Ordering::Relaxed)
    }

    fn ring(&self) -> MutexGuard<'_, Ring> {
        self.shared.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Events({})", self.ring().all.len())
    }
}

impl Ring {
    fn keep(&mut self, event: Arc<Event>) {
        let own = self.by_function.entry(event.function.clone()).or_default();
        own.push_back(event.id);
        let excess = (own.len() > FUNCTION_EVENTS_MAX).then(|| own.pop_front()).flatten();
        self.all.insert(event.id, event);
        if let Some(id) = excess {
            self.all.remove(&id);
        }
        if self.all.len() > EVENTS_MAX
            && let Some((id, oldest)) = self.all.pop_first()
            && let Some(own) = self.by_function.get_mut(&oldest.function)
        {
            own.retain(|other| *other != id);
            if own.is_empty() {
                self.by_function.remove(&oldest.function);
            }
        }
    }

    fn last(&self, filter: &Filter, limit: usize) -> Vec<Arc<Event>> {
        let mut found: Vec<_> = match &filter.function {
            Some(_) => {
                let own = self.by_function.get(&filter.function).into_iter().flatten().rev();
                let own = own.filter_map(|id| self.all.get(id)).filter(|event| filter.matches(event));
                own.take(limit).cloned().collect()
            }
            None => {
                self.all.values().rev().filter(|event| filter.matches(event)).take(limit).cloned().collect()
            }
        };
        found.reverse();
        found
    }
}

/// What an earlier daemon wrote. A line that is no event was cut short by a crash, or written by a newer version.
fn read(path: &Path) -> io::Result<Vec<Event>> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(e),
    };
    let bytes = file.metadata()?.len();
    file.seek(SeekFrom::Start(bytes.saturating_sub(FILE_BYTES_MAX)))?;
    let mut text = Vec::new();
    file.take(FILE_BYTES_MAX).read_to_end(&mut text)?;
    Ok(text.split(|b| *b == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect())
}

/// The thread's work, until the last handle is dropped.
fn write_all(inbox: &Receiver<ToWriter>, mut sink: Sink, unwritten: &AtomicU64) {
    while let Ok(first) = inbox.recv() {
        let (mut text, mut count, mut flushes) = (Vec::new(), 0, Vec::new());
        for message in std::iter::once(first).chain(inbox.try_iter().take(UNWRITTEN_MAX)) {
            match message {
                ToWriter::Event(event) => {
                    // Writing to a vector does not fail, and the shape has no map with keys that are no strings.
                    if serde_json::to_writer(&mut text, &*event).is_ok() {
                        text.push(b'\n');
                        count += 1;
                    }
                }
                ToWriter::Flush(done) => flushes.push(done),
            }
        }
        if let Err(error) = sink.append(&text) {
            unwritten.fetch_add(count, Ordering::Relaxed);
            tracing::debug!(dir = %sink.dir.display(), %error, "events are not written");
        }
        for done in flushes {
            let _ = done.try_send(());
        }
    }
}

/// The file that is written, and its rotation.
struct Sink {
    dir: PathBuf,
    /// `None` until it could be opened.
    file: Option<File>,
    bytes: u64,
    /// A write broke off: the next begins on a line of its own.
    is_torn: bool,
}

impl Sink {
    fn append(&mut self, text: &[u8]) -> io::Result<()> {
        if text.is_empty() {
            return Ok(());
        }
        if self.bytes + text.len() as u64 > FILE_BYTES_MAX && self.file.take().is_some() {
            fs::rename(self.dir.join(FILE), self.dir.join(FILE_OLD))?;
        }
        let mut file = match self.file.take() {
            Some(file) => file,
            None => self.open()?,
        };
        if self.is_torn {
            file.write_all(b"\n")?;
            self.is_torn = false;
        }
        let written = file.write_all(text);
        self.is_torn = written.is_err();
        self.bytes += text.len() as u64;
        self.file = Some(file);
        written
    }

    fn open(&mut self) -> io::Result<File> {
        let mut file = OpenOptions::new().read(true).append(true).create(true).open(self.dir.join(FILE))?;
        self.bytes = file.metadata()?.len();
        if self.bytes > 0 {
            let mut last = [0];
            file.seek(SeekFrom::End(-1))?;
            file.read_exact(&mut last)?;
            self.is_torn = last != *b"\n";
        }
        Ok(file)
    }
}
