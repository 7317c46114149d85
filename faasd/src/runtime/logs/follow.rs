//! Lines as they come, for whoever watches: what is in the files, and from then on what is written to them.
//!
//! Nobody polls: each batch of lines is passed on when it has been written. A watcher that does not keep up misses
//! lines, and is told how many.

use std::cmp::Ordering;
use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;

use super::{Logs, Query, batches, shown, split_time};
use crate::core::name::FunctionName;

/// Batches that a watcher may be behind. Each has some 64 KiB of lines at most.
const BEHIND_MAX: usize = 64;

/// Lines of one instance that have been written.
#[derive(Debug)]
struct Batch {
    /// How many lines of the function were passed on before.
    first: u64,
    lines: u64,
    instance: String,
    text: Vec<u8>,
}

/// A function that is watched.
#[derive(Debug)]
struct Watched {
    sender: broadcast::Sender<Arc<Batch>>,
    lines: u64,
}

/// The functions that are watched. Others cost nothing but the look that finds them missing.
#[derive(Clone, Debug, Default)]
pub(super) struct Watchers(Arc<Mutex<HashMap<FunctionName, Watched>>>);

impl Watchers {
    /// Passes lines on to whoever watches. Never waits for them.
    pub(super) fn pass(&self, function: &FunctionName, instance: &str, text: &[u8]) {
        let mut all = self.lock();
        let Some(watched) = all.get_mut(function) else { return };
        for text in batches(text) {
            let lines = text.iter().filter(|b| **b == b'\n').count() as u64;
            let (instance, text) = (instance.to_owned(), text.to_owned());
            let batch = Batch { first: watched.lines, lines, instance, text };
            watched.lines += lines;
            // Whoever has just gone is no loss.
            let _ = watched.sender.send(Arc::new(batch));
        }
    }

    /// Ends what watchers of a function see.
    pub(super) fn end(&self, function: &FunctionName) {
        self.lock().remove(function);
    }

    fn subscribe(&self, function: &FunctionName) -> (broadcast::Receiver<Arc<Batch>>, u64) {
        let mut all = self.lock();
        let watched = all
            .entry(function.clone())
            .or_insert_with(|| Watched { sender: broadcast::Sender::new(BEHIND_MAX), lines: 0 });
        (watched.sender.subscribe(), watched.lines)
    }

    fn forget_unwatched(&self, function: &FunctionName) {
        let mut all = self.lock();
        if all.get(function).is_some_and(|watched| watched.sender.receiver_count() == 0) {
            all.remove(function);
        }
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<FunctionName, Watched>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A function's log from now on.
#[derive(Debug)]
pub struct Watch {
    function: FunctionName,
    watchers: Watchers,
    /// `None` once it is being dropped.
    receiver: Option<broadcast::Receiver<Arc<Batch>>>,
    /// The number of the next line.
    next: u64,
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.receiver = None;
        self.watchers.forget_unwatched(&self.function);
    }
}

impl Watch {
    pub(super) fn new(watchers: &Watchers, function: &FunctionName) -> Self {
        let (receiver, next) = watchers.subscribe(function);
        Self { function: function.clone(), watchers: watchers.clone(), receiver: Some(receiver), next }
    }

    /// Reads the files, and follows from there: each line comes once. Reads files: not for an asynchronous task's own
    /// thread.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn begin(self, logs: &Logs, query: &Query) -> io::Result<Follow> {
        // A line is passed on after it has been written: what is not in the files now will still come. What is in them may
        // come as well.
        let (lines, ends) = logs.read(&self.function, query)?;
        Ok(Follow { watch: self, query: query.clone(), ready: lines.into(), ends })
    }
}

/// Where instances' files ended when they were read: the last line's time, and how many lines have it.
pub(super) type Ends = HashMap<String, (Timestamp, usize)>;

/// Lines, the next at a time.
#[derive(Debug)]
pub struct Follow {
    watch: Watch,
    query: Query,
    ready: VecDeque<String>,
    ends: Ends,
}

impl Follow {
    /// The next line, without its end. `None` when the function is removed.
    pub async fn next(&mut self) -> Option<String> {
        loop {
            if let Some(line) = self.ready.pop_front() {
                return Some(line);
            }
            let received = self.watch.receiver.as_mut()?.recv().await;
            match received {
                Ok(batch) => self.take(&batch),
                // The batch after the gap tells how many lines it had.
                Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => return None,
            }
        }
    }

    fn take(&mut self, batch: &Batch) {
        let skipped = batch.first - self.watch.next;
        self.watch.next = batch.first + batch.lines;
        if skipped > 0 {
            self.ready.push_back(format!("{:.6} faasd: [skipped {skipped} lines here]", Timestamp::now()));
        }
        if !self.query.wants_instance(&batch.instance) {
            return;
        }
        for line in String::from_utf8_lossy(&batch.text).lines() {
            let Some((time, text)) = split_time(line) else { continue };
            if self.query.wants_time(time) && !self.was_in_files(&batch.instance, time) {
                self.ready.push_back(shown(time, &batch.instance, text));
            }
        }
    }

    /// Whether a line that is passed on was in the files already. An instance's times do not fall.
    fn was_in_files(&mut self, instance: &str, time: Timestamp) -> bool {
        let Some((last, count)) = self.ends.get_mut(instance) else { return false };
        match time.cmp(last) {
            Ordering::Less => true,
            Ordering::Equal if *count > 0 => {
                *count -= 1;
                true
            }
            _ => false,
        }
    }
}
