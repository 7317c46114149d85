//! One task for each container, from its start to its last trace.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use faasd_sdk::status::StatusPage;
use faasd_sdk::wire::{self, Kind};
use rustix::process::Signal;
use tokio::sync::oneshot;
use tokio::sync::watch as orders;
use tokio::time::Instant;

use super::messages::{Messages, Said, next};
use super::{ENTRY, Instances, Message, Order, Timings};
use crate::core::name::FunctionName;
use crate::core::spec::{Contract, FunctionSpec, Ipv4, Lane, StopSignal};
use crate::runtime::agent::{Agent, Asked, Listen, Server};
use crate::runtime::instance::{Created, Request};
use crate::runtime::logs::Query;
use crate::sys::pidfd::{Exit, Pidfd};
use crate::sys::readiness::waits;
use crate::sys::scm;

/// Connections that may wait at an instance's own listener; the system's limit for the namespace is below it.
const BACKLOG: i32 = i32::MAX;

/// How long a server that listens over IPv4 has to listen over IPv6 as well, before it is taken for one that will not.
const IPV6_AFTER_IPV4: Duration = Duration::from_millis(300);

/// How long a server that is to stop has to take what waits at its listener, and how often that is looked at.
const TAKEN_DEADLINE: Duration = Duration::from_millis(500);
const TAKEN_INTERVAL: Duration = Duration::from_millis(20);

/// Lines of output that are told with a failure.
const OUTPUT_LINES: usize = 10;

/// What one task works with.
pub(super) struct Task {
    pub(super) all: Instances,
    pub(super) key: u32,
    pub(super) id: String,
    pub(super) function: FunctionName,
    pub(super) socket: Arc<OwnedFd>,
    pub(super) receive_end: Arc<OwnedFd>,
    pub(super) page: Arc<StatusPage>,
    pub(super) timings: Arc<Timings>,
    pub(super) listener: Option<Arc<OwnedFd>>,
    pub(super) spec: FunctionSpec,
    pub(super) slot: u32,
    pub(super) orders: orders::Receiver<Order>,
}

/// What is to be done for an instance that is let run.
struct Waiting {
    /// What is held is its runner, which has been started; else its container.
    runner: bool,
    /// Who is to read its secrets.
    owner: (u32, u32),
    keep: Option<ToKeep>,
}

/// What the descriptor store is to keep for an instance, once it runs.
struct ToKeep {
    page: OwnedFd,
    log: OwnedFd,
    /// While no daemon is there, a server that binds waits for the next one, and so does who connects.
    notify: Option<OwnedFd>,
}

impl Task {
    pub(super) async fn start(self, request: Request, page: OwnedFd) {
        let (all, key, runner) = (self.all.clone(), self.key, request.hold);
        let why = match all.runtime.create(request).await {
            Ok(created) => self.created(created, runner, page).await,
            Err(error) => format!("{:#}", anyhow::Error::from(error)),
        };
        all.tell(Message::Exited { key, why }).await;
    }

    async fn created(self, created: Created, runner: bool, page: OwnedFd) -> String {
        let Created { pid, process, log, notify, owner, create_time, .. } = created;
        self.timings.created(create_time);
        tracing::debug!(id = self.id, pid, ?create_time, "created");
        let kept = log.try_clone().and_then(|log| {
            let notify = notify.as_ref().map(OwnedFd::try_clone).transpose()?;
            Ok(ToKeep { page, log, notify })
        });
        if let Err(error) = &kept {
            tracing::warn!(%error, "the next daemon will not find this instance");
        }
        if runner && let Err(error) = self.all.runtime.release(&self.id, &process).await {
            return format!("{:#}", anyhow::Error::from(error));
        }
        self.attend(process, log, notify, Some(Waiting { runner, owner, keep: kept.ok() })).await
    }

    /// Lets the container execute its program, or its runner load the code, and sees to what has to be done then.
    /// Whatever could be done before has been: somebody may be waiting.
    async fn release(&self, process: &Pidfd, waiting: Waiting) -> anyhow::Result<()> {
        let (runtime, began) = (&self.all.runtime, Instant::now());
        let placed = async {
            let secrets = self.all.secrets_of(&self.spec).await?;
            Ok::<_, anyhow::Error>(runtime.place_secrets(&self.id, waiting.owner, secrets).await?)
        };
        if let Err(error) = placed.await {
            process.signal(Signal::KILL)?;
            return Err(error);
        }
        if self.spec.contract == Contract::ListenFds {
            // The program is to find it listening. Not earlier: a listener that nobody accepts from is to get nothing.
            self.listen();
        }
        match waiting.runner {
            false => runtime.release(&self.id, process).await?,
            // One that does not hear it has ended.
            true => drop(scm::send(&*self.socket, &wire::header(Kind::Go, 0), &[])),
        }
        self.timings.released(began.into_std());
        let start_time = began.elapsed();
        // The program is on its way. It is not given connections before it says so, and that is not heard before this:
        // whatever it is given, the next daemon will find it with.
        if let Some(ToKeep { page, log, notify }) = waiting.keep {
            let (socket, receive_end) = (Arc::clone(&self.socket), Arc::clone(&self.receive_end));
            let mut kept = vec![socket, receive_end, Arc::new(page), Arc::new(log)];
            kept.extend(notify.map(Arc::new));
            let entry = format!("{ENTRY}{}", self.id);
            if let Err(error) = self.all.with_store(|store| store.put(&entry, kept)) {
                tracing::warn!(%error, "the next daemon will not find this instance");
            }
        }
        self.all.tell(Message::Started { key: self.key, pid: process.pid() }).await;
        tracing::info!(id = self.id, pid = process.pid(), ?start_time, "started");
        if self.spec.contract == Contract::ListenFds {
            // Its listener listens already: whoever connects now waits for nothing but the server's own start.
            self.page.set_ready();
            self.tell_ready().await;
        }
        Ok(())
    }

    pub(super) async fn adopted(self, process: Arc<Pidfd>, log: OwnedFd, notify: Option<OwnedFd>) {
        let (all, key) = (self.all.clone(), self.key);
        tracing::info!(id = self.id, pid = process.pid(), "adopted");
        if notify.is_some() {
            // Whom the daemon before was about to answer, nobody would.
            let (runtime, id) = (Arc::clone(&all.runtime), self.id.clone());
            let _ = tokio::task::spawn_blocking(move || runtime.call_again(&id)).await;
        }
        let why = self.attend(process, log, notify, None).await;
        all.tell(Message::Exited { key, why }).await;
    }

    /// Tells the owner that the instance can take connections, and waits until it has acted on that.
    async fn tell_ready(&self) {
        self.timings.ready();
        let (acted, has_acted) = oneshot::channel::<()>();
        self.all.tell(Message::Ready { key: self.key, acted: Some(acted) }).await;
        // It is dropped, not sent.
        let _ = has_acted.await;
    }

    /// The server is in `listen`: makes the listener listen, has the owner send it connections, those that wait first,
    /// and lets the server go on. So it finds them when it looks for the first time.
    async fn listens(&self, agent: &Agent, listen: &Listen) {
        self.listen();
        self.tell_ready().await;
        match agent.listening(listen) {
            // For a later daemon: one that the server was not told of by this one, it will not be told of by any.
            Ok(()) => self.page.set_ready(),
            Err(error) => tracing::warn!(id = self.id, %error, "a server was not told that it listens"),
        }
    }

    /// The server listens over IPv4 alone: somebody else has to accept for it.
    async fn relay(&self, container: u32) {
        let Some(listener) = &self.listener else { return };
        let (runtime, port) = (&self.all.runtime, self.spec.listen_port());
        // Before the relay watches it: a socket that does not listen yet is told as hung up, which a watcher never
        // forgets.
        self.listen();
        if let Err(error) = runtime.relay(&self.id, container, self.slot, port, listener) {
            tracing::error!(id = self.id, %error, "a server that binds IPv4 alone has no relay");
            return;
        }
        tracing::warn!(
            id = self.id,
            "a server binds IPv4 alone, and is reached by a relay; it should bind [::]"
        );
        self.page.set_ready();
        self.all.tell(Message::Relayed { key: self.key }).await;
        self.tell_ready().await;
    }

    fn listen(&self) {
        let Some(listener) = &self.listener else { return };
        if let Err(error) = rustix::net::listen(&**listener, BACKLOG) {
            tracing::error!(id = self.id, %error, "a listener does not listen");
        }
    }

    fn agent(&self, notify: Option<OwnedFd>) -> Option<Agent> {
        let caller = self.all.egress.caller(&self.function, &self.spec);
        let listener = self.listener.clone().filter(|_| self.spec.contract == Contract::Port);
        let ipv4 = self.spec.ipv4 == Some(Ipv4::Exchange);
        let server = listener.map(|listener| Server::new(listener, self.spec.listen_port(), ipv4));
        let notify = notify?;
        let agent = server.transpose().and_then(|server| Agent::new(notify, server, caller));
        agent
            .inspect_err(|error| tracing::error!(id = self.id, %error, "a program's calls are not served"))
            .ok()
    }

    /// Stays with an instance to its end, removes what is left of it, and says how it ended. `held` is of one whose program
    /// waits to be executed; it waits on until the owner wants it to run.
    async fn attend(
        mut self,
        process: Arc<Pidfd>,
        log: OwnedFd,
        notify: Option<OwnedFd>,
        mut held: Option<Waiting>,
    ) -> String {
        let capture = self.all.logs.capture(log, &self.function, &self.id);
        let mut agent = self.agent(notify);
        let mut asks = agent.is_some();
        let mut ipv4 = None;
        let mut messages = self.messages();
        let (mut ready, mut drained, mut broke, mut failed) = (false, false, None, None);
        let mut comes_up = held.as_ref().is_some_and(|waiting| waiting.runner);
        if held.is_some() {
            let order = *self.orders.borrow();
            match order {
                Order::Hold if comes_up => {}
                Order::Hold => self.all.tell(Message::Prepared { key: self.key, pid: process.pid() }).await,
                // It comes again, as the first thing that is heard below.
                Order::Run | Order::Drain | Order::Kill => self.orders.mark_changed(),
            }
        }
        let exit = loop {
            tokio::select! {
                exit = process.exited() => break exit.unwrap_or(Exit::Unknown),
                said = next(&mut messages) => match said {
                    Ok(Said::Held) if comes_up => {
                        comes_up = false;
                        // It may have been wanted meanwhile, and finds that it is let go.
                        if held.is_some() {
                            self.all.tell(Message::Prepared { key: self.key, pid: process.pid() }).await;
                        }
                    }
                    // None of its code has run, so that none of this can be its own.
                    Ok(said) if held.is_some() && !matches!(said, Said::Nothing) => {
                        broke = Some(format!("it said `{said:?}` while it was held"));
                        let _ = process.signal(Signal::KILL);
                    }
                    Ok(Said::Room) => self.all.tell(Message::Room { key: self.key }).await,
                    Ok(Said::Forward { to, record, connection }) => {
                        self.all.tell(Message::Forward { key: self.key, to, record, connection }).await;
                    }
                    // Each is said once: an instance's messages are no way to keep the daemon busy.
                    Ok(Said::Ready) if !ready => {
                        ready = true;
                        self.timings.ready();
                        if self.spec.lane() == Lane::Warm {
                            // It has no page to write that on.
                            self.page.set_ready();
                        }
                        self.all.tell(Message::Ready { key: self.key, acted: None }).await;
                    }
                    Ok(Said::Drained) if !drained => {
                        drained = true;
                        tracing::debug!(id = self.id, "drained");
                    }
                    Ok(Said::Nothing) => messages = None,
                    broken => {
                        let why = match broken {
                            Ok(again) => format!("it said `{again:?}` out of turn"),
                            Err(error) => error.to_string(),
                        };
                        tracing::warn!(id = self.id, why, "an instance broke the hand-off protocol, and is ended");
                        broke = Some(why);
                        messages = None;
                        let _ = process.signal(Signal::KILL);
                    }
                },
                asked = asked(agent.as_ref().filter(|_| asks)) => match (asked, &agent) {
                    (Ok(Some(Asked::Listen(listen))), Some(agent)) => {
                        ipv4 = None;
                        self.listens(agent, &listen).await;
                    }
                    // Many bind both, one after the other.
                    (Ok(Some(Asked::Ipv4)), _) if !self.page.ready() => {
                        ipv4 = Some(Instant::now() + IPV6_AFTER_IPV4);
                    }
                    (Ok(Some(Asked::Ipv4)), _) => {}
                    (ended, _) => {
                        if let Err(error) = ended {
                            tracing::error!(id = self.id, %error, "a program's calls are no longer served");
                        }
                        asks = false;
                    }
                },
                () = at(ipv4) => {
                    ipv4 = None;
                    self.relay(process.pid()).await;
                }
                order = wanted(&mut self.orders) => match order {
                    Order::Hold => {}
                    Order::Run => if let Some(waiting) = held.take() {
                        // Of one that is not let go nothing is left, and its end is heard next.
                        failed = self.release(&process, waiting).await.err();
                    },
                    // It has nothing to finish.
                    Order::Drain if held.is_some() => {
                        let _ = process.signal(Signal::KILL);
                    }
                    // An earlier daemon did, and a second signal to stop may mean to stop at once.
                    Order::Drain if self.page.draining() => {
                        self.listener = None;
                        agent = agent.and_then(Agent::without_server);
                    }
                    Order::Drain if self.spec.lane() == Lane::Warm => {
                        self.page.set_draining();
                        if let Some(listener) = self.listener.take() {
                            taken(&listener).await;
                        }
                        // Whoever still waits at the listener when the server closes it goes to another instance,
                        // unless somebody else holds it open. It may still connect to others.
                        agent = agent.and_then(Agent::without_server);
                        let _ = process.signal(signal(self.spec.stop_signal.unwrap_or_default()));
                    }
                    // A protocol message: it comes after every connection that the instance was given.
                    Order::Drain => {
                        self.page.set_draining();
                        let drain = wire::header(Kind::Drain, 0);
                        if let Err(error) = scm::send(&*self.socket, &drain, &[]) {
                            tracing::debug!(id = self.id, %error, "an instance cannot be asked to finish");
                        }
                    }
                    Order::Kill => {
                        let _ = process.signal(Signal::KILL);
                    }
                },
            }
        };
        let oom_kills = self.all.runtime.oom_kills(&self.id);
        // It is dead: this only removes what is left.
        if let Err(error) = self.all.runtime.stop(&self.id, &process, Duration::ZERO).await {
            tracing::error!(%error, "an instance left something behind");
        }
        scm::discard(&*self.socket);
        self.all.forget(&self.id);
        // All writers are gone, so that what it printed last is written down by now or very soon.
        if let Ok(capture) = capture {
            let _ = tokio::time::timeout(Duration::from_secs(1), capture).await;
        }
        tracing::info!(id = self.id, %exit, served = self.page.requests(), "ended");
        // Only an agent that still is there has a server that does not listen yet.
        let unheard = agent.filter(|_| !self.page.ready()).and_then(|agent| agent.complaint());
        if let Some(error) = failed {
            return format!("{error:#}");
        }
        if held.is_some() && *self.orders.borrow() > Order::Run {
            return "it was held ready, and is not needed any longer".to_owned();
        }
        self.explain(exit, oom_kills, broke, unheard).await
    }

    async fn explain(
        &self,
        exit: Exit,
        oom_kills: u64,
        broke: Option<String>,
        unheard: Option<String>,
    ) -> String {
        let too_slow = !self.page.ready() && *self.orders.borrow() == Order::Kill;
        let mut why = exit.to_string();
        if too_slow {
            // Who gave the order knows why.
            why = unheard.unwrap_or_default();
        } else if let Some(how) = broke {
            why = format!("ended by faasd: it broke the hand-off protocol ({how})");
        } else if oom_kills > 0 {
            why.push_str(", for want of memory (raise `limits.memory`)");
        } else if exit == Exit::Code(0) && self.spec.lane() == Lane::HandOff && !self.page.ready() {
            why.push_str(" without saying that it is ready (does it speak the hand-off protocol?)");
        }
        let (logs, function, id) = (self.all.logs.clone(), self.function.clone(), format!(" {}: ", self.id));
        let query = Query { instance: Some(self.id.clone()), ..Query::last(100) };
        let lines = tokio::task::spawn_blocking(move || logs.tail(&function, &query)).await;
        let lines = lines.ok().and_then(Result::ok).unwrap_or_default();
        let own: Vec<_> =
            lines.iter().filter_map(|line| line.split_once(&id).map(|(_, text)| text)).collect();
        if !own.is_empty() {
            why.push_str(if why.is_empty() { "its last output:" } else { "; its last output:" });
            for line in own.iter().skip(own.len().saturating_sub(OUTPUT_LINES)) {
                why.push_str("\n  ");
                why.push_str(line);
            }
        }
        if own.iter().any(|line| line.contains("Read-only file system")) {
            why.push_str("\nof an image, only /tmp, /run and what `writable` names can be written to");
        }
        why
    }

    fn messages(&self) -> Option<Messages> {
        Messages::of(self.socket.try_clone().ok()?).ok()
    }
}

/// The next thing that a server comes to.
async fn asked(agent: Option<&Agent>) -> io::Result<Option<Asked>> {
    match agent {
        Some(agent) => agent.next().await,
        None => std::future::pending().await,
    }
}

/// Waits, for a moment at most, until the server has taken what waited at its listener: nothing more comes, and a server
/// that is told to stop may not look once more. A relay passes on what it takes at once, to a queue that cannot be seen.
async fn taken(listener: &OwnedFd) {
    let deadline = Instant::now() + TAKEN_DEADLINE;
    while waits(listener) && Instant::now() < deadline {
        tokio::time::sleep(TAKEN_INTERVAL).await;
    }
    tokio::time::sleep(TAKEN_INTERVAL).await;
}

/// A moment, or never.
async fn at(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

const fn signal(signal: StopSignal) -> Signal {
    match signal {
        StopSignal::Term => Signal::TERM,
        StopSignal::Quit => Signal::QUIT,
        StopSignal::Int => Signal::INT,
        StopSignal::Hup => Signal::HUP,
        StopSignal::Usr1 => Signal::USR1,
        StopSignal::Usr2 => Signal::USR2,
        StopSignal::Winch => Signal::WINCH,
    }
}

/// The next order. With the owner gone none follows: the instance is to outlive this daemon.
async fn wanted(orders: &mut orders::Receiver<Order>) -> Order {
    if orders.changed().await.is_err() {
        return std::future::pending().await;
    }
    *orders.borrow_and_update()
}
