//! The kernel program and its maps: loaded, attached and pinned, so that connections are steered whether or not a
//! daemon runs.
//!
//! A new daemon takes the pinned maps over as they are, loads its own program over them, attaches it and only then
//! lets go of the old one: for an instant both are attached and agree, so that no connection goes astray.

use std::fs::{self, File};
use std::io;
use std::net::Ipv6Addr;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use aya::maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray, SkStorage, SockMap};
use aya::programs::links::{CgroupAttachMode, FdLink, PinnedLink};
use aya::programs::tc::{TcAttachType, qdisc_add_clsact};
use aya::programs::{CgroupSockAddr, SchedClassifier, SkLookup};
use aya::util::KernelVersion;
use aya::{Ebpf, EbpfLoader};
use faasd_common::{Config, Decision, LAYOUT, POOL_SEATS_MAX, Pool, Route, RouteKey, maps, programs};

use crate::sys::netns::NetNs;

/// Built from `faasd-ebpf/` by `cargo xtask ebpf`; CI rebuilds and compares.
static OBJECT: &[u8] = aya::include_bytes_aligned!("faasd-ebpf.o");

const MAPS: [&str; 9] = [
    maps::CONFIG,
    maps::ROUTES,
    maps::LISTENERS,
    maps::DECISIONS,
    maps::STEERED,
    maps::OWNER,
    maps::POOLS,
    maps::SEATS,
    maps::WARM,
];

const GUARDS: [&str; 4] =
    [programs::DENY_CONNECT4, programs::DENY_CONNECT6, programs::DENY_BIND4, programs::DENY_BIND6];

/// Why the kernel program is not in place.
#[derive(Debug, thiserror::Error)]
pub enum BpfError {
    #[error(
        "the maps pinned under {dir} have layout {found}, this faasd has layout {LAYOUT}: run `faasd teardown` with \
         the version that made them, or reboot, and start again (established connections are not affected)"
    )]
    Layout { dir: PathBuf, found: String },
    #[error("cannot {what}")]
    Io {
        what: String,
        #[source]
        source: io::Error,
    },
    #[error(
        "cannot load the kernel program: {0}; it takes Linux 5.10 or later, CAP_BPF and CAP_NET_ADMIN (root)"
    )]
    Load(String),
    #[error("cannot attach `{program}`: {reason}")]
    Attach { program: &'static str, reason: String },
    #[error("cannot use the map {map}: {reason}")]
    Map { map: &'static str, reason: String },
}

/// The whole chain in one line: aya's own messages name the call but not its cause.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        next = cause.source();
    }
    text
}

/// A value that both sides read as bytes.
#[repr(transparent)]
#[derive(Clone, Copy)]
struct Plain<T>(T);

#[expect(unsafe_code, reason = "aya's promise that a type is plain bytes")]
mod plain {
    use super::{Config, Plain, Pool, Route, RouteKey};

    // SAFETY: `repr(C)` of integers alone, without padding (asserted where it is defined).
    unsafe impl aya::Pod for Plain<Config> {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Plain<Route> {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Plain<RouteKey> {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Plain<Pool> {}
}

/// What the program is attached to.
#[derive(Debug)]
pub struct Attachment<'a> {
    /// Where everything is pinned, on a BPF file system.
    pub dir: &'a Path,
    /// The ingress namespace.
    pub ingress: &'a NetNs,
    /// The cgroup (v2) in which the functions' listeners are made. The guards go by a socket's maker.
    pub cgroup: &'a Path,
    /// The tunnel's interface in the ingress namespace.
    pub tunnel: &'a str,
    pub tunnel_ifindex: u32,
}

/// The program's maps, open for the daemon.
pub struct Kernel {
    routes: HashMap<MapData, Plain<RouteKey>, Plain<Route>>,
    listeners: SockMap<MapData>,
    owner: SkStorage<MapData, u32>,
    decisions: PerCpuArray<MapData, u64>,
    steered: PerCpuArray<MapData, u64>,
    pools: HashMap<MapData, u32, Plain<Pool>>,
    seats: SockMap<MapData>,
    warm: PerCpuArray<MapData, u64>,
}

impl std::fmt::Debug for Kernel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Kernel")
    }
}

impl Kernel {
    /// Loads, attaches and pins, taking over maps that are pinned already.
    ///
    /// # Errors
    /// [`BpfError`]; what was in place before stays in place.
    pub fn load(at: &Attachment<'_>) -> Result<Self, BpfError> {
        mount_bpffs(at.dir)?;
        check_layout(at.dir)?;
        let mut loader = EbpfLoader::new();
        for map in MAPS {
            loader.map_pin_path(map, at.dir.join(map));
        }
        let mut object = loader.load(OBJECT).map_err(|e| BpfError::Load(chain(&e)))?;

        let config = Config { layout: LAYOUT, tunnel_ifindex: at.tunnel_ifindex };
        let mut configs: Array<_, Plain<Config>> = typed(&mut object, maps::CONFIG)?;
        configs.set(0, Plain(config), 0).map_err(|e| map_error(maps::CONFIG, &e))?;

        // The guards first: no socket is steered to a function before it is locked in.
        attach_guards(&mut object, at)?;
        attach_egress(&mut object, at)?;
        attach_steering(&mut object, at)?;
        Ok(Self {
            routes: typed(&mut object, maps::ROUTES)?,
            listeners: typed(&mut object, maps::LISTENERS)?,
            owner: typed(&mut object, maps::OWNER)?,
            decisions: typed(&mut object, maps::DECISIONS)?,
            steered: typed(&mut object, maps::STEERED)?,
            pools: typed(&mut object, maps::POOLS)?,
            seats: typed(&mut object, maps::SEATS)?,
            warm: typed(&mut object, maps::WARM)?,
        })
    }

    /// Puts a function's listener into its slot, marked as the function's own. From here on everything that is
    /// accepted from it carries the mark as well.
    ///
    /// # Errors
    /// [`BpfError::Map`].
    pub fn set_listener(&mut self, slot: u32, listener: &impl AsRawFd) -> Result<(), BpfError> {
        self.mark(slot, listener)?;
        self.listeners.set(slot, listener, 0).map_err(|e| map_error(maps::LISTENERS, &e))
    }

    /// Empties a slot.
    ///
    /// # Errors
    /// [`BpfError::Map`]; an empty slot is none.
    pub fn clear_listener(&mut self, slot: u32) -> Result<(), BpfError> {
        absent_is_fine(maps::LISTENERS, self.listeners.clear_index(&slot))
    }

    /// Marks a listener as a function's own before the function is given it.
    ///
    /// # Errors
    /// [`BpfError::Map`].
    pub fn mark(&mut self, slot: u32, listener: &impl AsRawFd) -> Result<(), BpfError> {
        self.owner.insert(listener, slot, 0).map_err(|e| map_error(maps::OWNER, &e))
    }

    /// Whose a socket is, by its mark.
    ///
    /// # Errors
    /// [`BpfError::Map`].
    pub fn owner_of(&self, socket: &impl AsRawFd) -> Result<Option<u32>, BpfError> {
        match self.owner.get(socket, 0) {
            Ok(slot) => Ok(Some(slot)),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(e) => Err(map_error(maps::OWNER, &e)),
        }
    }

    /// Seats the listener of an instance. It gets no connection before its seat is in a pool.
    ///
    /// # Errors
    /// [`BpfError::Map`]; the listener has to be marked and to listen.
    pub fn set_seat(&mut self, seat: u32, listener: &impl AsRawFd) -> Result<(), BpfError> {
        self.seats.set(seat, listener, 0).map_err(|e| map_error(maps::SEATS, &e))
    }

    /// Empties a seat.
    ///
    /// # Errors
    /// [`BpfError::Map`]; an empty seat is none.
    pub fn clear_seat(&mut self, seat: u32) -> Result<(), BpfError> {
        absent_is_fine(maps::SEATS, self.seats.clear_index(&seat))
    }

    /// Sends a function's connections to these seats from now on, by turns of chance; to its own listener if there is
    /// none. What is past [`POOL_SEATS_MAX`] stays without.
    ///
    /// # Errors
    /// [`BpfError::Map`].
    pub fn set_pool(&mut self, slot: u32, seats: &[u32]) -> Result<(), BpfError> {
        if seats.is_empty() {
            return absent_is_fine(maps::POOLS, self.pools.remove(&slot));
        }
        let mut pool = Pool { len: 0, seats: [0; POOL_SEATS_MAX] };
        for (place, seat) in pool.seats.iter_mut().zip(seats) {
            *place = *seat;
            pool.len += 1;
        }
        self.pools.insert(slot, Plain(pool), 0).map_err(|e| map_error(maps::POOLS, &e))
    }

    /// All pools, by slot, so that a new daemon can remove what is no longer declared.
    ///
    /// # Errors
    /// [`BpfError::Map`].
    pub fn pools(&self) -> Result<Vec<(u32, Vec<u32>)>, BpfError> {
        let read = |entry: Result<(u32, Plain<Pool>), MapError>| {
            let (slot, Plain(pool)) = entry.map_err(|e| map_error(maps::POOLS, &e))?;
            Ok((slot, pool.seats.into_iter().take(pool.len as usize).collect()))
        };
        self.pools.iter().map(read).collect()
    }

    /// Sends connections to an address and port to a slot, or to a service of the daemon's own.
    ///
    /// # Errors
    /// [`BpfError::Map`].
    pub fn set_route(&mut self, address: Ipv6Addr, port: u16, route: Route) -> Result<(), BpfError> {
        self.routes
            .insert(Plain(key(address, port)), Plain(route), 0)
            .map_err(|e| map_error(maps::ROUTES, &e))
    }

    /// Refuses connections to an address and port from now on.
    ///
    /// # Errors
    /// [`BpfError::Map`]; an absent route is none.
    pub fn clear_route(&mut self, address: Ipv6Addr, port: u16) -> Result<(), BpfError> {
        absent_is_fine(maps::ROUTES, self.routes.remove(&Plain(key(address, port))))
    }

    /// All routes, so that a new daemon can remove what is no longer declared.
    ///
    /// # Errors
    /// [`BpfError::Map`].
    pub fn routes(&self) -> Result<Vec<(Ipv6Addr, u16, Route)>, BpfError> {
        self.routes
            .iter()
            .map(|entry| {
                let (Plain(key), Plain(route)) = entry.map_err(|e| map_error(maps::ROUTES, &e))?;
                let mut octets = [0; 16];
                for (bytes, word) in octets.chunks_exact_mut(4).zip(key.address) {
                    bytes.copy_from_slice(&word.to_ne_bytes());
                }
                Ok((Ipv6Addr::from(octets), key.port as u16, route))
            })
            .collect()
    }

    /// How often each [`Decision`] was taken, by its index.
    ///
    /// # Errors
    /// [`BpfError::Map`].
    pub fn decisions(&self) -> Result<[u64; Decision::COUNT as usize], BpfError> {
        let mut totals = [0; Decision::COUNT as usize];
        for (index, total) in (0..).zip(&mut totals) {
            *total = sum(maps::DECISIONS, &self.decisions, index)?;
        }
        Ok(totals)
    }

    /// How many connections were given to a slot's function, by either lane.
    ///
    /// # Errors
    /// [`BpfError::Map`].
    pub fn steered(&self, slot: u32) -> Result<u64, BpfError> {
        sum(maps::STEERED, &self.steered, slot)
    }

    /// How many of them were given to an instance's own listener.
    ///
    /// # Errors
    /// [`BpfError::Map`].
    pub fn warm(&self, slot: u32) -> Result<u64, BpfError> {
        sum(maps::WARM, &self.warm, slot)
    }

    /// Starts a slot's counts anew, for its next function.
    ///
    /// # Errors
    /// [`BpfError::Map`].
    pub fn reset_steered(&mut self, slot: u32) -> Result<(), BpfError> {
        let cpus =
            aya::util::nr_cpus().map_err(|(what, source)| io_error(&format!("read {what}"), source))?;
        for (name, map) in [(maps::STEERED, &mut self.steered), (maps::WARM, &mut self.warm)] {
            let zeroes = aya::maps::PerCpuValues::try_from(vec![0; cpus])
                .map_err(|source| io_error("count the CPUs", source))?;
            map.set(slot, zeroes, 0).map_err(|e| map_error(name, &e))?;
        }
        Ok(())
    }

    /// Detaches and forgets everything that is pinned under `dir`.
    ///
    /// # Errors
    /// Those of `unlink(2)`.
    pub fn unpin(dir: &Path) -> io::Result<()> {
        match fs::read_dir(dir) {
            // bpffs has no way to remove a tree at once: `remove_dir_all` is refused.
            Ok(entries) => {
                for entry in entries {
                    fs::remove_file(entry?.path())?;
                }
                fs::remove_dir(dir)
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(e) => Err(e),
        }
    }
}

fn key(address: Ipv6Addr, port: u16) -> RouteKey {
    let octets = address.octets();
    let word = |at: usize| u32::from_ne_bytes(std::array::from_fn(|i| octets[at + i]));
    RouteKey { address: [word(0), word(4), word(8), word(12)], port: u32::from(port) }
}

fn sum(map: &'static str, array: &PerCpuArray<MapData, u64>, index: u32) -> Result<u64, BpfError> {
    Ok(array.get(&index, 0).map_err(|e| map_error(map, &e))?.iter().sum())
}

fn map_error(map: &'static str, error: &MapError) -> BpfError {
    BpfError::Map { map, reason: chain(error) }
}

fn io_error(what: &str, source: io::Error) -> BpfError {
    BpfError::Io { what: what.to_owned(), source }
}

fn absent_is_fine(map: &'static str, result: Result<(), MapError>) -> Result<(), BpfError> {
    match result {
        Err(MapError::KeyNotFound | MapError::ElementNotFound) => Ok(()),
        // aya hands the bare errno through for deletions.
        Err(MapError::SyscallError(e))
            if matches!(e.io_error.raw_os_error(), Some(libc::ENOENT | libc::EINVAL)) =>
        {
            Ok(())
        }
        other => other.map_err(|e| map_error(map, &e)),
    }
}

fn typed<T: TryFrom<Map, Error = MapError>>(object: &mut Ebpf, map: &'static str) -> Result<T, BpfError> {
    let raw = object
        .take_map(map)
        .ok_or(BpfError::Map { map, reason: "the object does not define it".to_owned() })?;
    T::try_from(raw).map_err(|e| map_error(map, &e))
}

/// Mounts the BPF file system if there is none, and makes our directory on it.
fn mount_bpffs(dir: &Path) -> Result<(), BpfError> {
    const BPF_FS_MAGIC: u64 = 0xcafe_4a11;
    let root = dir.parent().unwrap_or(dir);
    let stat =
        rustix::fs::statfs(root).map_err(|e| io_error(&format!("stat {}", root.display()), e.into()))?;
    if stat.f_type as u64 != BPF_FS_MAGIC {
        rustix::mount::mount("bpf", root, "bpf", rustix::mount::MountFlags::empty(), c"mode=0700")
            .map_err(|e| io_error(&format!("mount the BPF file system on {}", root.display()), e.into()))?;
    }
    match fs::create_dir(dir) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
            Err(io_error(&format!("make {}", dir.display()), e))
        }
        _ => Ok(()),
    }
}

/// Refuses maps that another version made: their bytes would be read as something they are not.
fn check_layout(dir: &Path) -> Result<(), BpfError> {
    let path = dir.join(maps::CONFIG);
    if !path.exists() {
        return Ok(());
    }
    let other = |found: String| BpfError::Layout { dir: dir.to_owned(), found };
    let map = MapData::from_pin(&path).map_err(|e| map_error(maps::CONFIG, &e))?;
    let configs: Array<_, Plain<Config>> =
        Map::Array(map).try_into().map_err(|_| other("of another size".to_owned()))?;
    match configs.get(&0, 0) {
        // 0: pinned by a daemon that was killed before it wrote it. Nothing has been routed by it yet.
        Ok(Plain(config)) if config.layout == LAYOUT || config.layout == 0 => Ok(()),
        Ok(Plain(config)) => Err(other(config.layout.to_string())),
        Err(e) => Err(map_error(maps::CONFIG, &e)),
    }
}

/// Pins `link` under `name` in place of the link that is pinned there now, which ends only afterwards.
fn replace_pin(dir: &Path, name: &'static str, link: FdLink) -> Result<(), BpfError> {
    let attach = |reason: String| BpfError::Attach { program: name, reason };
    let (pin, new) = (dir.join(format!("link_{name}")), dir.join(format!("next_{name}")));
    let old = PinnedLink::from_pin(&pin).ok();
    // Left over from a daemon that was killed right here.
    let _ = fs::remove_file(&new);
    link.pin(&new).map_err(|e| attach(chain(&e)))?;
    fs::rename(&new, &pin).map_err(|e| attach(format!("cannot pin it at {}: {e}", pin.display())))?;
    drop(old);
    Ok(())
}

fn attach_steering(object: &mut Ebpf, at: &Attachment<'_>) -> Result<(), BpfError> {
    const NAME: &str = programs::STEER;
    let attach = |e: &dyn std::error::Error| BpfError::Attach { program: NAME, reason: chain(e) };
    let program: &mut SkLookup = program(object, NAME)?;
    program.load().map_err(|e| attach(&e))?;
    let id = program.attach(at.ingress).map_err(|e| attach(&e))?;
    let link = program.take_link(id).map_err(|e| attach(&e))?;
    replace_pin(at.dir, NAME, link.into())
}

fn attach_guards(object: &mut Ebpf, at: &Attachment<'_>) -> Result<(), BpfError> {
    let cgroup = File::open(at.cgroup)
        .map_err(|e| io_error(&format!("open the cgroup {}", at.cgroup.display()), e))?;
    for name in GUARDS {
        let attach = |e: &dyn std::error::Error| BpfError::Attach { program: name, reason: chain(e) };
        let program: &mut CgroupSockAddr = program(object, name)?;
        program.load().map_err(|e| attach(&e))?;
        // No flag: several links may be attached to one cgroup in any case.
        let id = program.attach(&cgroup, CgroupAttachMode::Single).map_err(|e| attach(&e))?;
        let link = program.take_link(id).map_err(|e| attach(&e))?;
        replace_pin(at.dir, name, link.try_into().map_err(|e| attach(&e))?)?;
    }
    Ok(())
}

fn attach_egress(object: &mut Ebpf, at: &Attachment<'_>) -> Result<(), BpfError> {
    const NAME: &str = programs::GUARD_EGRESS;
    let attach = |reason: String| BpfError::Attach { program: NAME, reason };
    let program: &mut SchedClassifier = program(object, NAME)?;
    program.load().map_err(|e| attach(chain(&e)))?;
    for (interface, pin) in [("lo", "guard_egress_lo"), (at.tunnel, "guard_egress_tunnel")] {
        let tcx = KernelVersion::current().is_ok_and(|running| running >= KernelVersion::new(6, 6, 0));
        // Interface indices and netlink are the namespace's own.
        let link = at
            .ingress
            .run(|| {
                if !tcx {
                    // The filter stays with the interface; an older one of ours does the same until then.
                    match qdisc_add_clsact(interface) {
                        Err(e) if !chain(&e).contains("exists") => return Err(io::Error::other(chain(&e))),
                        _ => {}
                    }
                }
                let id = program
                    .attach(interface, TcAttachType::Egress)
                    .map_err(|e| io::Error::other(chain(&e)))?;
                program.take_link(id).map_err(|e| io::Error::other(chain(&e)))
            })
            .map_err(|e| attach(format!("on {interface}: {e}")))?;
        if tcx {
            replace_pin(at.dir, pin, link.try_into().map_err(|e| attach(chain(&e)))?)?;
        } else {
            keep_attached(link);
        }
    }
    Ok(())
}

/// A netlink filter has no descriptor to pin: it lives as long as its interface, unless its handle is dropped.
#[expect(clippy::mem_forget, reason = "dropping the handle would detach the filter")]
fn keep_attached(link: aya::programs::tc::SchedClassifierLink) {
    std::mem::forget(link);
}

fn program<'a, T>(object: &'a mut Ebpf, name: &'static str) -> Result<&'a mut T, BpfError>
where
    &'a mut T: TryFrom<&'a mut aya::programs::Program, Error = aya::programs::ProgramError>,
{
    let missing = || BpfError::Attach { program: name, reason: "the object does not define it".to_owned() };
    object.program_mut(name).ok_or_else(missing)?.try_into().map_err(|_| missing())
}
