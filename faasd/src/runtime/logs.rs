//! What instances print: from a pipe into files, each line with its time. Files are limited in size and number, and a
//! container never waits for the disk: what cannot be kept is dropped and counted.

mod follow;
#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use rustix::pipe::{PipeFlags, pipe_with};
use tokio::net::unix::pipe::Receiver;
use tokio::task::JoinHandle;

use self::follow::{Ends, Watchers};
pub use self::follow::{Follow, Watch};
use crate::core::name::FunctionName;

/// An instance has two files of this size at most: the present one and the one before.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Files of so many ended instances are kept for each function.
const ENDED_MAX: usize = 5;

/// A longer line is cut into several.
const LINE_BYTES_MAX: usize = 16 << 10;

/// What may wait while the disk is busy.
const PENDING_BYTES_MAX: usize = 1 << 20;

/// One read: what a pipe holds by default.
const READ_BYTES: usize = 64 << 10;

/// The most lines that [`Logs::tail`] answers with.
pub const TAIL_LINES_MAX: usize = 10_000;

const SUFFIX: &str = ".log";
const SUFFIX_OLD: &str = ".log.1";

/// A pipe for an instance's output: the read end is ours and does not block, the write end is an ordinary one.
///
/// # Errors
/// Those of `pipe2(2)`.
pub fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
    rustix::fs::fcntl_setfl(&read, rustix::fs::OFlags::NONBLOCK)?;
    Ok((read, write))
}

/// The log files of all functions.
#[derive(Clone, Debug)]
pub struct Logs {
    dir: PathBuf,
    /// The files that are being written, without suffix.
    live: Arc<Mutex<HashSet<PathBuf>>>,
    watchers: Watchers,
}

/// Which lines of a function somebody wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Query {
    /// The last ones, so many at most.
    pub lines: usize,
    /// Only those from then on.
    pub since: Option<Timestamp>,
    /// Only those of one instance.
    pub instance: Option<String>,
}

impl Query {
    /// The last lines, whenever and wherever they were written.
    #[must_use]
    pub const fn last(lines: usize) -> Self {
        Self { lines, since: None, instance: None }
    }

    fn wants_instance(&self, instance: &str) -> bool {
        self.instance.as_ref().is_none_or(|wanted| wanted == instance)
    }

    fn wants_time(&self, time: Timestamp) -> bool {
        self.since.is_none_or(|since| time >= since)
    }
}

impl Logs {
    /// Log files below `dir`, a directory for each function.
    #[must_use]
    pub fn new(dir: PathBuf) -> Self {
        Self { dir, live: Arc::default(), watchers: Watchers::default() }
    }

    /// Copies what comes out of `read` to the instance's file until all its writers are gone. To take it over from an
    /// earlier daemon is the same thing: the file is continued.
    ///
    /// # Errors
    /// Those of opening the file, and of registering the descriptor with the runtime.
    pub fn capture(
        &self,
        read: OwnedFd,
        function: &FunctionName,
        instance: &str,
    ) -> io::Result<JoinHandle<io::Result<()>>> {
        let base = self.dir.join(function.as_str()).join(instance);
        let sink = Sink::new(&base);
        let receiver = Receiver::from_owned_fd(read)?;
        self.lock().insert(base.clone());
        let live = Live { base, live: Arc::clone(&self.live) };
        let (logs, function, instance) = (self.clone(), function.clone(), instance.to_owned());
        let sink = Passing { sink, watchers: self.watchers.clone(), function: function.clone(), instance };
        Ok(tokio::spawn(async move {
            let result = copy(receiver, sink).await;
            drop(live);
            let pruned = tokio::task::spawn_blocking(move || logs.prune(&function)).await;
            result.and(pruned.map_err(io::Error::other)?)
        }))
    }

    /// The last lines of a function, in the order of time: `TIME INSTANCE: TEXT`. Reads files: not for an asynchronous
    /// task's own thread.
    ///
    /// # Errors
    /// Those of the file system. A function that has printed nothing has no lines.
    pub fn tail(&self, function: &FunctionName, query: &Query) -> io::Result<Vec<String>> {
        self.read(function, query).map(|(lines, _)| lines)
    }

    /// Watches a function from now on: [`Watch::begin`] reads what is there already.
    #[must_use]
    pub fn watch(&self, function: &FunctionName) -> Watch {
        Watch::new(&self.watchers, function)
    }

    fn read(&self, function: &FunctionName, query: &Query) -> io::Result<(Vec<String>, Ends)> {
        let lines = query.lines.min(TAIL_LINES_MAX);
        let mut all: Vec<(Timestamp, String)> = Vec::new();
        let mut ends = Ends::new();
        for file in files(&self.dir.join(function.as_str()))? {
            let Some(instance) = instance(&file).filter(|instance| query.wants_instance(instance)) else {
                continue;
            };
            let text = match read_end(&file) {
                Ok(text) => text,
                // Rotated or pruned in between.
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                Err(e) => return Err(e),
            };
            // What has no end is being written.
            let end = text.iter().rposition(|b| *b == b'\n').map_or(0, |last| last + 1);
            let text = String::from_utf8_lossy(&text[..end]);
            let newest_first = || text.lines().rev().filter_map(split_time);
            if let Some((last, _)) = newest_first().next() {
                let count = newest_first().take_while(|(time, _)| *time == last).count();
                ends.insert(instance.to_owned(), (last, count));
            }
            let here: Vec<_> =
                newest_first().take_while(|(time, _)| query.wants_time(*time)).take(lines).collect();
            all.extend(here.into_iter().rev().map(|(time, text)| (time, shown(time, instance, text))));
        }
        // The sort is stable: lines of one instant stay in the order they came in.
        all.sort_by_key(|(time, _)| *time);
        all.drain(..all.len().saturating_sub(lines));
        Ok((all.into_iter().map(|(_, line)| line).collect(), ends))
    }

    /// Removes a function's files, once it is deleted. Whoever watches it has seen all.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn remove(&self, function: &FunctionName) -> io::Result<()> {
        self.watchers.end(function);
        match fs::remove_dir_all(self.dir.join(function.as_str())) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }

    /// Removes the logs of functions that `is_declared` does not know: a daemon that was killed in the middle of a first
    /// deploy, or of a removal, leaves them.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn retain(&self, is_declared: impl Fn(&str) -> bool) -> io::Result<()> {
        for entry in fs::read_dir(&self.dir)? {
            let entry = entry?;
            if !entry.file_name().to_str().is_some_and(&is_declared) {
                fs::remove_dir_all(entry.path())?;
            }
        }
        Ok(())
    }

    /// Removes the files of all but the last few instances that have ended.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn prune(&self, function: &FunctionName) -> io::Result<()> {
        let live = self.lock().clone();
        prune(&self.dir.join(function.as_str()), &live)
    }

    fn lock(&self) -> MutexGuard<'_, HashSet<PathBuf>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A file's entry among the live ones, however its task ends.
struct Live {
    base: PathBuf,
    live: Arc<Mutex<HashSet<PathBuf>>>,
}

impl Drop for Live {
    fn drop(&mut self) {
        self.live.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.base);
    }
}

/// Reads on while a write is under way, so that a slow disk costs lines and not the container's time.
async fn copy(receiver: Receiver, sink: Passing) -> io::Result<()> {
    let mut lines = Lines::default();
    let mut buffer = vec![0; READ_BYTES];
    let mut idle = Some(sink);
    let mut writing: Option<JoinHandle<Passing>> = None;
    loop {
        if lines.has_some()
            && let Some(mut sink) = idle.take()
        {
            let (text, dropped) = lines.take();
            writing = Some(tokio::task::spawn_blocking(move || {
                sink.write(&text, dropped);
                sink
            }));
        }
        tokio::select! {
            done = async { match writing.as_mut() { Some(w) => w.await, None => std::future::pending().await } } => {
                writing = None;
                idle = Some(done.map_err(io::Error::other)?);
            }
            ready = receiver.readable() => {
                ready?;
                match receiver.try_read(&mut buffer) {
                    Ok(0) => break,
                    Ok(bytes) => lines.push(&buffer[..bytes], Timestamp::now()),
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                    Err(e) => return Err(e),
                }
            }
        }
    }
    lines.end(Timestamp::now());
    let mut sink = match writing {
        Some(writing) => writing.await.map_err(io::Error::other)?,
        None => idle.ok_or(io::ErrorKind::BrokenPipe)?,
    };
    let (text, dropped) = lines.take();
    tokio::task::spawn_blocking(move || sink.write(&text, dropped)).await.map_err(io::Error::other)
}

/// Writes lines, and passes them on.
struct Passing {
    sink: Sink,
    watchers: Watchers,
    function: FunctionName,
    instance: String,
}

impl Passing {
    fn write(&mut self, text: &[u8], dropped: u64) {
        self.sink.write(text, dropped);
        if dropped > 0 {
            self.watchers.pass(&self.function, &self.instance, marker(dropped).as_bytes());
        }
        self.watchers.pass(&self.function, &self.instance, text);
    }
}

fn marker(dropped: u64) -> String {
    format!("{:.6} [faasd dropped {dropped} lines here]\n", Timestamp::now())
}

/// Bytes into lines with a time before each.
#[derive(Debug, Default)]
struct Lines {
    /// The last line's. Times do not fall, whatever the clock does.
    last: Option<Timestamp>,
    /// Whole lines, ready to be written.
    ready: Vec<u8>,
    /// The beginning of a line.
    partial: Vec<u8>,
    dropped: u64,
}

impl Lines {
    fn push(&mut self, bytes: &[u8], now: Timestamp) {
        for piece in bytes.split_inclusive(|b| *b == b'\n') {
            for part in piece.chunks(LINE_BYTES_MAX) {
                if self.partial.len() + part.len() > LINE_BYTES_MAX {
                    self.finish(now);
                }
                self.partial.extend_from_slice(part);
            }
            if piece.ends_with(b"\n") {
                self.partial.pop();
                self.finish(now);
            }
        }
    }

    fn end(&mut self, now: Timestamp) {
        if !self.partial.is_empty() {
            self.finish(now);
        }
    }

    fn finish(&mut self, now: Timestamp) {
        let now = self.last.map_or(now, |last| now.max(last));
        self.last = Some(now);
        if self.ready.len() + self.partial.len() > PENDING_BYTES_MAX {
            self.dropped += 1;
        } else {
            // Writing to a vector does not fail.
            let _ = write!(self.ready, "{now:.6} ");
            self.ready.append(&mut self.partial);
            self.ready.push(b'\n');
        }
        self.partial.clear();
    }

    fn has_some(&self) -> bool {
        !self.ready.is_empty() || self.dropped > 0
    }

    fn take(&mut self) -> (Vec<u8>, u64) {
        (std::mem::take(&mut self.ready), std::mem::take(&mut self.dropped))
    }
}

/// The file that is written, and its rotation.
#[derive(Debug)]
struct Sink {
    base: PathBuf,
    /// `None` until it could be opened: an instance is read also while there is no room for its file.
    file: Option<File>,
    bytes: u64,
    /// Lines that did not make it to the disk and have not been told of yet.
    dropped: u64,
}

impl Sink {
    fn new(base: &Path) -> Self {
        Self { base: base.to_owned(), file: None, bytes: 0, dropped: 0 }
    }

    fn open(&self) -> io::Result<File> {
        if let Some(dir) = self.base.parent() {
            fs::create_dir_all(dir)?;
        }
        OpenOptions::new().append(true).create(true).open(with_suffix(&self.base, SUFFIX))
    }

    /// Writes whole lines. An error, as that of a full disk, drops them; the next line that can be written says how
    /// many.
    fn write(&mut self, text: &[u8], dropped: u64) {
        self.dropped += dropped;
        if let Err(e) = self.try_write(text) {
            self.dropped += text.iter().filter(|b| **b == b'\n').count() as u64;
            tracing::debug!(file = %self.base.display(), error = %e, "log lines dropped");
        }
    }

    fn try_write(&mut self, text: &[u8]) -> io::Result<()> {
        if self.dropped > 0 {
            self.append(marker(self.dropped).as_bytes())?;
            self.dropped = 0;
        }
        batches(text).try_for_each(|batch| self.append(batch))
    }

    fn append(&mut self, text: &[u8]) -> io::Result<()> {
        if self.bytes + text.len() as u64 > FILE_BYTES_MAX {
            fs::rename(with_suffix(&self.base, SUFFIX), with_suffix(&self.base, SUFFIX_OLD))?;
            (self.file, self.bytes) = (None, 0);
        }
        let mut file = match self.file.take() {
            Some(file) => file,
            None => {
                let file = self.open()?;
                self.bytes = file.metadata()?.len();
                file
            }
        };
        let written = file.write_all(text);
        self.file = Some(file);
        written?;
        self.bytes += text.len() as u64;
        Ok(())
    }
}

fn with_suffix(base: &Path, suffix: &str) -> PathBuf {
    let mut path = base.as_os_str().to_owned();
    path.push(suffix);
    path.into()
}

/// Cuts whole lines into pieces of whole lines that are small against a file.
fn batches(mut text: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let window = &text[..text.len().min(READ_BYTES)];
        let end = match window.iter().rposition(|b| *b == b'\n') {
            Some(last) => last + 1,
            None => window.len(),
        };
        let (piece, rest) = text.split_at(end);
        text = rest;
        (!piece.is_empty()).then_some(piece)
    })
}

/// The log files in a function's directory.
fn files(dir: &Path) -> io::Result<Vec<PathBuf>> {
    match fs::read_dir(dir) {
        Ok(entries) => {
            let mut files: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
            // The older file of an instance first.
            files.sort_by(|a, b| b.cmp(a));
            Ok(files)
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(e) => Err(e),
    }
}

/// The instance that a file belongs to.
fn instance(file: &Path) -> Option<&str> {
    let name = file.file_name()?.to_str()?;
    name.strip_suffix(SUFFIX).or_else(|| name.strip_suffix(SUFFIX_OLD))
}

/// A line of a file, taken apart: its time, and what was written.
fn split_time(line: &str) -> Option<(Timestamp, &str)> {
    let (time, text) = line.split_once(' ')?;
    Some((time.parse().ok()?, text))
}

/// A line as it is shown.
fn shown(time: Timestamp, instance: &str, text: &str) -> String {
    format!("{time:.6} {instance}: {text}")
}

/// A file's content, or the end of it if somebody has made it larger than we do.
fn read_end(file: &Path) -> io::Result<Vec<u8>> {
    let mut file = File::open(file)?;
    let bytes = file.metadata()?.len();
    file.seek(SeekFrom::Start(bytes.saturating_sub(FILE_BYTES_MAX)))?;
    let mut text = Vec::new();
    file.take(FILE_BYTES_MAX).read_to_end(&mut text)?;
    Ok(text)
}

fn prune(dir: &Path, live: &HashSet<PathBuf>) -> io::Result<()> {
    let mut ended: Vec<(std::time::SystemTime, String)> = Vec::new();
    for file in files(dir)? {
        let Some(name) = instance(&file) else { continue };
        if live.contains(&dir.join(name)) {
            continue;
        }
        let modified = match file.metadata() {
            Ok(metadata) => metadata.modified()?,
            Err(_) => continue,
        };
        match ended.iter_mut().find(|(_, known)| known == name) {
            Some((latest, _)) => *latest = modified.max(*latest),
            None => ended.push((modified, name.to_owned())),
        }
    }
    ended.sort();
    ended.truncate(ended.len().saturating_sub(ENDED_MAX));
    for (_, name) in ended {
        for suffix in [SUFFIX, SUFFIX_OLD] {
            match fs::remove_file(with_suffix(&dir.join(&name), suffix)) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                _ => {}
            }
        }
    }
    Ok(())
}
