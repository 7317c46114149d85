//! A thread of the load: a runtime of its own, and its share of the connections.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread;
use std::time::Instant;

use tokio::runtime::Builder;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::LocalSet;

use super::client::Client;
use super::target::Target;
use super::{Chunk, Counters, Plan, gone, run};
use crate::core::load::record::Record;
use crate::core::load::schedule::Schedule;

#[derive(Debug)]
enum Command {
    Open(oneshot::Sender<Record>),
    Run { chunk: Chunk, begin: Instant, done: oneshot::Sender<Record> },
}

#[derive(Debug)]
pub(super) struct Worker {
    commands: mpsc::Sender<Command>,
    pub(super) counters: Arc<Counters>,
}

/// What a thread takes with it.
struct Own {
    plan: Arc<Plan>,
    target: Arc<Target>,
    index: u32,
    counters: Arc<Counters>,
    commands: mpsc::Receiver<Command>,
    stop: watch::Receiver<bool>,
}

impl Worker {
    /// Starts a thread and waits until it is where it should be. It ends when this is dropped.
    pub(super) fn start(
        plan: Arc<Plan>,
        target: Arc<Target>,
        index: u32,
        stop: watch::Receiver<bool>,
    ) -> io::Result<Self> {
        let (commands, receiver) = mpsc::channel(1);
        let counters = Arc::new(Counters::default());
        let (ready, is_ready) = sync_channel(1);
        let own = Own { plan, target, index, counters: Arc::clone(&counters), commands: receiver, stop };
        thread::Builder::new().name(format!("load-{index}")).spawn(move || live(own, &ready))?;
        is_ready.recv().map_err(|_| gone())??;
        Ok(Self { commands, counters })
    }

    /// Has it open its connections.
    pub(super) async fn open(&self) -> io::Result<oneshot::Receiver<Record>> {
        let (done, receiver) = oneshot::channel();
        self.commands.send(Command::Open(done)).await.map_err(|_| gone())?;
        Ok(receiver)
    }

    /// Has it send, by a clock that it shares with the others.
    pub(super) async fn run(&self, chunk: Chunk, begin: Instant) -> io::Result<oneshot::Receiver<Record>> {
        let (done, receiver) = oneshot::channel();
        self.commands.send(Command::Run { chunk, begin, done }).await.map_err(|_| gone())?;
        Ok(receiver)
    }
}

fn live(own: Own, ready: &SyncSender<io::Result<()>>) {
    let netns = own.target.netns.as_ref().map(crate::sys::netns::NetNs::try_clone).transpose();
    let lived = netns.and_then(|netns| match netns {
        Some(netns) => netns.run(|| serve(own, ready)),
        None => serve(own, ready),
    });
    if let Err(error) = lived {
        // Nobody listens any more if it was ready before; then it has nothing to report.
        let _ = ready.try_send(Err(error));
    }
}

fn serve(own: Own, ready: &SyncSender<io::Result<()>>) -> io::Result<()> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let _ = ready.send(Ok(()));
    LocalSet::new().block_on(&runtime, obey(own));
    Ok(())
}

async fn obey(mut own: Own) {
    let Own { plan, target, index, counters, commands, stop } = &mut own;
    let schedule = plan.rate.and_then(|rate| Schedule::new(rate, u64::from(*index), u64::from(plan.threads)));
    let share = plan.connections / plan.threads + u32::from(*index < plan.connections % plan.threads);
    let mut clients: Vec<Client> =
        (0..share).map(|_| Client::new(Arc::clone(plan), Arc::clone(target))).collect();
    while let Some(command) = commands.recv().await {
        // Whoever asked may be gone; what was seen is then of no use.
        match command {
            Command::Open(done) => drop(done.send(run::open(plan, &mut clients, stop).await)),
            Command::Run { chunk, begin, done } => {
                let seen = run::run(plan, counters, &mut clients, chunk, begin, schedule, stop).await;
                drop(done.send(seen));
            }
        }
    }
}
