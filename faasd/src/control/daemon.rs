//! The daemon: puts the parts together in the one order that works, serves, and takes them apart again.
//!
//! Everything is bound and probed before anything is served. On its way out the daemon leaves behind what serves
//! without it: instances, the tunnel, the kernel program, the descriptor store. [`teardown`] removes those as well.

use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Context;
use faasd_common::Route;
use jiff::Timestamp;
use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::process::{Resource, Rlimit};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot, watch};

use super::access::{Access, KernelEnforcer};
use super::adopt;
use super::api::{self, Api, Refusals, Spool};
use super::callers::Callers;
use super::cgroup;
use super::config::{Config, DNS_PORT};
use super::dns::{self, Dns, DnsConfig, DnsSockets, Names, ZoneFiles};
use super::events::{Events, NewEvent};
use super::fdstore::{self, FdStore};
use super::flows::Flows;
use super::ingress::Ingress;
use super::instances::Instances;
use super::network::{self, Network};
use super::owner::{self, Message, Owner};
use super::reconcile;
use super::reload::Reload;
use super::secrets::Secrets;
use super::service::Daemon;
use super::steering::{KernelMaps, Steering};
use super::store::{Embedded, Store};
use super::used::Consumption;
use crate::api::types::EventKind;
use crate::core::endpoint;
use crate::core::paths::Paths;
use crate::core::zone::{Zone, ZoneSettings};
use crate::dataplane::Acceptors;
use crate::runtime::egress::{self, Egress};
use crate::runtime::image;
use crate::runtime::instance::Runtime;
use crate::runtime::logs::Logs;
use crate::runtime::mounts;
use crate::runtime::secrets as secret_files;
use crate::sys::bpf::{self, AccessMaps, Attachment, Kernel};
use crate::sys::netlink::Netlink;
use crate::sys::netns::NetNs;
use crate::sys::systemd::{Manager, State};
use crate::tunnel::userspace::Launch;
use crate::tunnel::{self, keys};

/// How a daemon is started.
#[derive(Clone, Debug)]
pub struct Options {
    pub paths: Paths,
    pub config: PathBuf,
    /// `FAAS_VPN_ENDPOINT`: comes before the one in the settings.
    pub endpoint: Option<String>,
}

impl Options {
    fn launch(&self) -> anyhow::Result<Launch> {
        let mut launch = Launch::new(program()?);
        // `wg` looks in the default directory; a second daemon on the machine has one of its own.
        if self.paths.instance != DEFAULT_INSTANCE {
            launch.socket_dir = self.paths.run.join("wireguard");
        }
        launch.log = Some(self.paths.run.join("tunnel.log"));
        launch.cgroup = self.paths.helpers();
        Ok(launch)
    }
}

/// What `faasd.socket` calls the API's.
const API_LISTENER: &str = "api";

/// The name of the one daemon that most machines have.
pub const DEFAULT_INSTANCE: &str = "faasd";

/// Our own binary, by a path that stays good when a newer one takes its place.
fn program() -> anyhow::Result<PathBuf> {
    let path = std::env::current_exe().context("cannot tell where the faasd binary is")?;
    let text = path.to_string_lossy();
    Ok(text.strip_suffix(" (deleted)").map_or_else(|| path.clone(), PathBuf::from))
}

/// Runs the daemon until SIGTERM or SIGINT.
///
/// # Errors
/// What is missing or in the way, with the remedy. Nothing of this daemon's is left then but what an earlier one had
/// left.
pub async fn run(options: Options, manager: Manager) -> anyhow::Result<()> {
    let config = Config::load(&options.config)?;
    if let Some(given) = &options.endpoint {
        endpoint::normalize(given, config.listen_port).context("FAAS_VPN_ENDPOINT or --endpoint")?;
    }
    prepare(&options.paths)?;
    // Before anything is looked at or touched: what another daemon has is not ours to take over or to clear away.
    let _alone = alone(&options.paths.run)?;
    let store: Arc<dyn Store> = Arc::new(Embedded::open(&options.paths.store())?);
    let kept = fdstore::Connection::find(&options.paths.fdstore())?.map(|store| store.list()).transpose()?;
    let is_first = kept.is_none_or(|kept| kept.is_empty());
    let mut serving = false;
    let done = serve(&options, config, store, manager, &mut serving).await;
    if done.is_err() && is_first && !serving {
        // Nobody served by it before us: what we had set up would only be in the way.
        if let Err(error) = clear(&options).await {
            tracing::warn!(error = format!("{error:#}"), "the failed start leaves something behind");
        }
    }
    done
}

async fn serve(
    options: &Options,
    mut config: Config,
    store: Arc<dyn Store>,
    mut manager: Manager,
    serving: &mut bool,
) -> anyhow::Result<()> {
    let Options { paths, .. } = options;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let as_read = config.clone();

    let program = program()?;
    let fdstore = Arc::new(Mutex::new(FdStore::open(&paths.fdstore(), &program, paths.helpers())?));
    let cgroup = cgroup::own(&paths.instance, paths.cgroup.as_deref())
        .context("cannot make a cgroup for the guards on passed sockets")?;
    let runtime = Arc::new(Runtime::new(paths.clone()).await?);

    let host = NetNs::current().context("cannot open this network namespace")?;
    let ingress = Arc::new(Ingress::open(&paths.ingress(), config.function_prefix)?);
    let server = config.vpn_prefix.server();
    ingress.guard(&config.interface, server, config.function_prefix)?;
    adopt::adopt(&mut config, &paths.wireguard, &*store, &host)?;
    let key = keys::load_or_create(&paths.wireguard)?;
    let callers = Arc::new(
        Callers::open(&paths.callers())
            .with_context(|| format!("cannot make {}", paths.callers().display()))?,
    );
    let access = Arc::new(Access::open(Arc::clone(&store), config.access, config.function_prefix)?);
    let (names, zone_files) = names(&config, &paths.zone_files())?;
    let network = {
        let parts = network::Parts {
            access: Arc::clone(&access),
            files: paths.peers(),
            config: config.clone(),
            endpoint: options.endpoint.clone().or_else(|| config.endpoint.clone()),
            key,
            launch: options.launch()?,
            host: host.try_clone()?,
            ingress: ingress.ns().try_clone()?,
            store: Arc::clone(&store),
            names: Arc::clone(&names),
        };
        Arc::new(tokio::task::spawn_blocking(|| Network::open(parts)).await?.context("there is no tunnel")?)
    };
    let tunnel_ifindex = Netlink::new(ingress.ns())
        .index(&config.interface)?
        .with_context(|| format!("the interface {} is gone again", config.interface))?;

    let kernel = Kernel::load(&Attachment {
        dir: &paths.bpf(),
        ingress: ingress.ns(),
        cgroup: &cgroup,
        tunnel: &config.interface,
        tunnel_ifindex,
        server,
        functions: config.function_prefix.network(),
    })?;
    let egress = Arc::new(Egress::new(egress::Parts {
        ingress: ingress.ns().try_clone()?,
        bpf: &paths.bpf(),
        vpn_prefix: config.vpn_prefix,
        function_prefix: config.function_prefix,
        upstreams: config.dns_upstreams.as_deref().filter(|upstreams| !upstreams.is_empty()),
    })?);
    let (writes_per_second, http_port) = (config.api_writes_per_second, config.http_port);
    let sockets = dns_sockets(&ingress, &config)?;
    let http = ingress.listen_service(server, config.http_port)?;
    let steering = Steering::new(Box::new(KernelMaps::open(&paths.bpf())?), Arc::clone(access.late()))?;
    let steering = Arc::new(steering);
    for port in [DNS_PORT, config.http_port] {
        steering.set_route(server, port, Route::SERVICE)?;
    }
    let api_socket = match manager.take_listener(API_LISTENER) {
        Some(listener) => api::inherit_unix(listener).context("the API's socket from systemd is none")?,
        None => api::bind_unix(&paths.socket())
            .with_context(|| format!("cannot listen on {}", paths.socket().display()))?,
    };

    let (to_owner, acceptor_events) = mpsc::channel(faasd_common::SLOTS_MAX as usize);
    let (messages, inbox) = mpsc::channel(owner::MESSAGES_MAX);
    let logs = Logs::new(paths.logs());
    let images = image::Store::new(paths.images());
    let events = Events::open(paths.events()).context("cannot read the events of the last daemon")?;
    let version = env!("CARGO_PKG_VERSION");
    events.record_daemon(NewEvent::new(EventKind::DaemonStarted, format!("faasd {version}")));
    let secrets = Arc::new(Secrets::open(Arc::clone(&store), paths.secrets_key())?);
    let instances = Instances::new(
        Arc::clone(&runtime),
        logs.clone(),
        Arc::clone(&fdstore),
        Arc::clone(&secrets),
        egress,
        messages.clone(),
    );
    // Before the owner sets any route: its flags speak of rules that are there.
    let enforcer = KernelEnforcer::new(AccessMaps::open(&paths.bpf())?, ingress.ns().try_clone()?);
    access.attach(Arc::new(enforcer), Arc::clone(&callers), messages.clone())?;
    let owner = Owner::restore(owner::Parts {
        access: Arc::clone(&access),
        store: Arc::clone(&store),
        fdstore: Arc::clone(&fdstore),
        ingress: Arc::clone(&ingress),
        kernel,
        steering: Arc::clone(&steering),
        acceptors: Acceptors::start(config.acceptors, &to_owner, callers.table())?,
        instances,
        images: images.clone(),
        logs: logs.clone(),
        events: events.clone(),
        callers: Arc::clone(callers.table()),
        names: Arc::clone(&names),
        config: config.clone(),
    })
    .await?;
    names.settle();
    let owner = tokio::spawn(owner.run(inbox, acceptor_events));

    let (written, told) = watch::channel(names.load().serial());
    let dns = Dns::start(sockets, &dns_config(&config), &names, &told)?;
    let mut reload = Reload {
        path: options.config.clone(),
        config: as_read,
        endpoint_is_given: options.endpoint.is_some(),
        network: Arc::clone(&network),
    };
    let manager = Arc::new(manager);
    let (wireguard, runc) = (network.kind(), format!("runc {}", runtime.version()));
    let watching = [
        tokio::spawn(Arc::clone(&network).watch()),
        tokio::spawn(fdstore::watch(fdstore)),
        tokio::spawn(watchdog(Arc::clone(&manager), messages.clone())),
        // Not before the owner has taken over what there was.
        tokio::spawn(reconcile::watch(Arc::clone(&access), Arc::clone(&steering))),
    ];
    let refusals = Arc::<Refusals>::default();
    let flows = Flows::new(bpf::Flows::open(&paths.bpf())?, Arc::clone(&ingress), Arc::clone(&access));
    let daemon = Arc::new(Daemon {
        owner: messages.clone(),
        network,
        access,
        steering,
        flows: Arc::new(flows),
        consumption: Arc::new(Consumption::new(Arc::clone(&runtime))),
        refusals: Arc::clone(&refusals),
        ingress,
        images,
        logs,
        events: events.clone(),
        secrets,
        dns: Arc::clone(dns.metrics()),
        names: Arc::clone(&names),
        runtime_version: runc.clone(),
        started_at: Timestamp::now(),
    });
    let (stop, stopped) = watch::channel(());
    let (zones_done, zones_stopped) = watch::channel(());
    let zone_files = tokio::spawn(dns::keep(zone_files, names, written, zones_stopped));
    let until_stopped = || {
        let mut stopped = stopped.clone();
        async move {
            // Sent or dropped: the end either way.
            let _ = stopped.changed().await;
        }
    };
    let spool = Spool::open(paths.state.join("uploads"))?;
    let routes = Api::new(daemon, spool, writes_per_second);
    let local = tokio::spawn(api::serve_unix(api_socket, api::local(&routes), until_stopped()));
    let routes = api::tunnel(&routes, server, http_port, Arc::clone(&refusals));
    let peers = tokio::spawn(api::serve_tunnel(http, routes, refusals, until_stopped()));
    tracing::info!(
        socket = %paths.socket().display(),
        version = env!("CARGO_PKG_VERSION"),
        "faasd serves"
    );
    *serving = true;
    let status = format!("serves; WireGuard: {wireguard}; {runc}");
    manager.tell(&[State::Ready, State::Status(&status)]);

    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            _ = hangup.recv() => {
                // systemd from 253 on wants to know since when.
                let since = State::monotonic_usec_now().ok();
                manager.tell(&[State::Reloading].into_iter().chain(since).collect::<Vec<_>>());
                let status = reload.again(&dns);
                manager.tell(&[State::Ready, State::Status(&status)]);
            }
        }
    }
    tracing::info!("stopping; instances and the tunnel stay");
    manager.tell(&[State::Stopping, State::Status("stopping; instances and the tunnel stay")]);
    let _ = stop.send(());
    for served in [local.await, peers.await] {
        served?.context("the API ended with an error")?;
    }
    watching.iter().for_each(tokio::task::JoinHandle::abort);
    let (reply, done) = oneshot::channel();
    if messages.send(Message::Stop { reply }).await.is_ok() {
        let _ = done.await;
    }
    owner.await?;
    drop(zones_done);
    zone_files.await?;
    tokio::task::spawn_blocking(move || events.flush()).await?;
    dns.shutdown().await?;
    Ok(())
}

/// Tells the service manager that the owner still answers, for as long as it does.
async fn watchdog(manager: Arc<Manager>, owner: mpsc::Sender<Message>) {
    let Some(deadline) = manager.watchdog else { return };
    let mut interval = tokio::time::interval(deadline / 3);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        interval.tick().await;
        let (reply, answer) = oneshot::channel();
        // Without an owner nothing here has a use: another daemon is to take its place.
        if owner.send(Message::Decisions { reply }).await.is_ok() && answer.await.is_ok() {
            manager.tell(&[State::Watchdog]);
        }
    }
}

/// Directories, and as many descriptors as the system lets us have: each instance takes a handful.
pub(super) fn prepare(paths: &Paths) -> anyhow::Result<()> {
    anyhow::ensure!(
        rustix::process::geteuid().is_root(),
        "faasd needs root, for namespaces, eBPF and containers: `sudo faasd serve`"
    );
    for dir in [&paths.state, &paths.run, &paths.images(), &paths.bundles(), &paths.logs()] {
        std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    }
    // Made by us it is for nobody else's eyes, as wireguard-tools makes it; one that is there stays as it is.
    let wireguard = &paths.wireguard;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(wireguard)
        .with_context(|| format!("cannot make {}", wireguard.display()))?;
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = rustix::process::setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
    Ok(())
}

fn alone(run: &Path) -> anyhow::Result<OwnedFd> {
    lock(run)?.with_context(|| {
        format!(
            "another faasd runs with {}; stop it first (`systemctl stop faasd`), or give this one places of its own",
            run.display()
        )
    })
}

/// A lock on the run directory, for as long as the descriptor is open; none where another daemon has it. It takes no file
/// that could be left behind.
pub(super) fn lock(run: &Path) -> anyhow::Result<Option<OwnedFd>> {
    let what = || format!("cannot lock {}", run.display());
    let dir = rustix::fs::open(run, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .with_context(what)?;
    match rustix::fs::flock(&dir, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(dir)),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(error).with_context(what),
    }
}

fn dns_config(config: &Config) -> DnsConfig {
    let mut dns = DnsConfig::default();
    if let Some(upstreams) = &config.dns_upstreams {
        dns.upstreams.clone_from(upstreams);
    }
    dns.secondaries =
        config.dns_secondaries.iter().map(|secondary| (*secondary.address.ip()).into()).collect();
    dns.rate_limit = config.dns_rate_limit;
    dns.query_log = config.dns_query_log;
    dns
}

/// Where queries arrive, and from where secondaries are notified: in the ingress, whose peers they are.
fn dns_sockets(ingress: &Ingress, config: &Config) -> anyhow::Result<DnsSockets> {
    let server = config.vpn_prefix.server();
    let mut notify = Vec::new();
    for secondary in &config.dns_secondaries {
        let sockets = ingress.udp(server, 0, 1)?;
        notify.extend(sockets.into_iter().map(|socket| (secondary.address.into(), socket)));
    }
    Ok(DnsSockets {
        udp: ingress.udp(server, DNS_PORT, dns::threads())?,
        tcp: vec![ingress.listen_service(server, DNS_PORT)?],
        notify,
    })
}

/// The zones, with nobody in them yet, and the files that they are kept in.
pub(super) fn names(config: &Config, dir: &Path) -> anyhow::Result<(Arc<Names>, ZoneFiles)> {
    let now_s = u64::try_from(Timestamp::now().as_second()).unwrap_or(0);
    let (files, serial) = ZoneFiles::open(dir, now_s)?;
    let settings = ZoneSettings {
        negative_ttl_seconds: config.dns_negative_ttl_seconds,
        ..ZoneSettings::new(config.vpn_prefix, config.function_prefix)
    };
    Ok((Arc::new(Names::new(Zone::new(settings, serial))), files))
}

/// Starts what holds descriptors for the daemons to come, unless it runs: the first that is there of what outlives them.
///
/// # Errors
/// If it cannot be started.
pub fn keep(options: &Options) -> anyhow::Result<()> {
    let Options { paths, .. } = options;
    std::fs::create_dir_all(&paths.run).with_context(|| format!("cannot make {}", paths.run.display()))?;
    fdstore::Connection::open(&paths.fdstore(), &program()?, paths.helpers().as_deref())?;
    Ok(())
}

/// Removes what a daemon leaves behind to serve without it: instances, the kernel program, the tunnel, the ingress,
/// the descriptor store. What is declared stays.
///
/// # Errors
/// Everything that could not be removed; each step is tried.
pub async fn teardown(options: Options) -> anyhow::Result<()> {
    let Options { paths, .. } = &options;
    anyhow::ensure!(rustix::process::geteuid().is_root(), "faasd needs root: `sudo faasd teardown`");
    let _alone = if paths.run.exists() { Some(alone(&paths.run)?) } else { None };
    clear(&options).await
}

async fn clear(options: &Options) -> anyhow::Result<()> {
    let Options { paths, .. } = options;
    let config = Config::load(&options.config)?;
    let mut errors = Vec::new();
    let mut tried = |what: &str, result: anyhow::Result<()>| {
        if let Err(error) = result {
            errors.push(format!("{what}: {error:#}"));
        }
    };
    tried("instances", end_instances(paths).await);
    tried("the kernel program", Kernel::unpin(&paths.bpf()).map_err(Into::into));
    if paths.ingress().exists() {
        let ended = NetNs::open(&paths.ingress()).map_err(anyhow::Error::from).and_then(|ns| {
            let launch = options.launch()?;
            Ok(tunnel::take_down(&ns, &config.interface, &launch)?)
        });
        tried("the tunnel", ended);
        tried("the ingress", NetNs::unpin(&paths.ingress()).map_err(Into::into));
    }
    let quit = fdstore::Connection::find(&paths.fdstore()).map_err(anyhow::Error::from);
    tried(
        "the descriptor store",
        quit.and_then(|store| Ok(store.map_or(Ok(()), fdstore::Connection::quit)?)),
    );
    tried("the root images' mounts", mounts::unmount_all(&paths.roots()).map_err(Into::into));
    tried("the secrets' file system", secret_files::unmount_all(&paths.secrets()).map_err(Into::into));
    tried("the run directory", remove_dir(&paths.run));
    let groups: Vec<String> = [paths.containers()].into_iter().chain(paths.helpers()).collect();
    tried("the cgroups", cgroup::remove(&paths.instance, &groups).map_err(Into::into));
    anyhow::ensure!(errors.is_empty(), "could not remove {}", errors.join("; "));
    Ok(())
}

async fn end_instances(paths: &Paths) -> anyhow::Result<()> {
    let is_empty = |dir: PathBuf| std::fs::read_dir(dir).map_or(true, |mut entries| entries.next().is_none());
    if is_empty(paths.bundles()) && is_empty(paths.runc()) {
        // Without runc there can be no instances, and none are no reason to ask for it.
        return Ok(());
    }
    let runtime = Runtime::new(paths.clone()).await?;
    for one in runtime.adopt().await? {
        runtime.stop(&one.id, &one.process, Duration::ZERO).await?;
    }
    Ok(())
}

fn remove_dir(dir: &Path) -> anyhow::Result<()> {
    match std::fs::remove_dir_all(dir) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e.into()),
        _ => Ok(()),
    }
}
