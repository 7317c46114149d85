//! The kernel program and its maps: loaded, attached and pinned, so that connections are steered whether or not a
//! daemon runs.
//!
//! A new daemon takes the pinned maps over as they are, loads its own program over them, attaches it and only then
//! lets go of the old one: for an instant both are attached and agree, so that no connection goes astray.

mod access;
mod attach;
mod flows;
mod marks;
mod split;
mod steering;

use std::fs;
use std::io;
use std::net::Ipv6Addr;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use aya::maps::{Array, Map, MapData, MapError, PerCpuArray, SkStorage, SockMap};
use aya::{Ebpf, EbpfLoader};
use faasd_common::{
    BRANCHES_MAX, Config, Decision, Flow, LAYOUT, Live, Pool, RouteKey, RuleKey, Split, maps,
};
pub use faasd_common::{GROUPS_MAX, Owner, Route, Subject, SubjectCounts};

pub use self::access::{AccessMaps, Refusal, Rule};
pub use self::flows::Flows;
pub use self::marks::Marks;
pub use self::split::Branch;
pub use self::steering::SteeringMaps;

use crate::sys::netns::NetNs;

/// Built from `faasd-ebpf/` by `cargo xtask ebpf`; CI rebuilds and compares.
static OBJECT: &[u8] = aya::include_bytes_aligned!("faasd-ebpf.o");

const MAPS: [&str; 16] = [
    maps::CONFIG,
    maps::ROUTES,
    maps::LISTENERS,
    maps::DECISIONS,
    maps::STEERED,
    maps::OWNER,
    maps::POOLS,
    maps::SEATS,
    maps::WARM,
    maps::SPLITS,
    maps::LIVE,
    maps::SUBJECTS,
    maps::RULES,
    maps::COUNTS,
    maps::REFUSALS,
    maps::FLOWS,
];

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
        "cannot load the kernel program: {0}; it takes Linux 5.17 or later, CAP_BPF and CAP_NET_ADMIN (root)"
    )]
    Load(String),
    #[error("cannot attach `{program}`: {reason}")]
    Attach { program: &'static str, reason: String },
    #[error("cannot use the map {map}: {reason}")]
    Map { map: &'static str, reason: String },
    #[error(
        "cannot share out connections to {branches} branches by weights of {total} in all: it takes 1 to \
         {BRANCHES_MAX} branches with a weight, and less than 2^32 in all"
    )]
    Split { branches: usize, total: u64 },
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
    use super::{
        Config, Flow, Live, Owner, Plain, Pool, Route, RouteKey, RuleKey, Split, Subject, SubjectCounts,
    };

    // SAFETY: `repr(C)` of integers alone, without padding (asserted where it is defined).
    unsafe impl aya::Pod for Plain<Config> {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Plain<Route> {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Plain<RouteKey> {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Plain<Pool> {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Plain<Split> {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Plain<Owner> {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Plain<Live> {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Plain<Subject> {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Plain<RuleKey> {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Plain<SubjectCounts> {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Plain<Flow> {}
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
    /// The server's own address in the tunnel: what comes from it by loopback is the daemon itself.
    pub server: Ipv6Addr,
    /// An address of the functions' prefix, a /64.
    pub functions: Ipv6Addr,
}

/// The program's maps, open for the daemon.
pub struct Kernel {
    listeners: SockMap<MapData>,
    owner: SkStorage<MapData, Plain<Owner>>,
    decisions: PerCpuArray<MapData, u64>,
    steered: PerCpuArray<MapData, u64>,
    seats: SockMap<MapData>,
    warm: PerCpuArray<MapData, u64>,
    live: Array<MapData, Plain<Live>>,
    /// Which connections go where.
    pub steering: SteeringMaps,
    /// Who may reach what.
    pub access: AccessMaps,
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

        let [first, second, ..] = words(at.functions);
        let config = Config {
            layout: LAYOUT,
            tunnel_ifindex: at.tunnel_ifindex,
            server: words(at.server),
            functions: [first, second],
        };
        let mut configs: Array<_, Plain<Config>> = typed(&mut object, maps::CONFIG)?;
        configs.set(0, Plain(config), 0).map_err(|e| map_error(maps::CONFIG, &e))?;

        attach::all(&mut object, at)?;
        Ok(Self {
            listeners: typed(&mut object, maps::LISTENERS)?,
            owner: typed(&mut object, maps::OWNER)?,
            decisions: typed(&mut object, maps::DECISIONS)?,
            steered: typed(&mut object, maps::STEERED)?,
            seats: typed(&mut object, maps::SEATS)?,
            warm: typed(&mut object, maps::WARM)?,
            steering: SteeringMaps::of(&mut object)?,
            live: typed(&mut object, maps::LIVE)?,
            access: AccessMaps::of(&mut object)?,
        })
    }

    /// Puts a listener of the function `owner` into a slot, marked as the function's own. From here on everything that
    /// is accepted from it carries the mark as well.
    ///
    /// # Errors
    /// [`BpfError::Map`].
    pub fn set_listener(&mut self, slot: u32, owner: u32, listener: &impl AsRawFd) -> Result<(), BpfError> {
        self.mark(owner, listener)?;
        self.listeners.set(slot, listener, 0).map_err(|e| map_error(maps::LISTENERS, &e))
    }

    /// Empties a slot.
    ///
    /// # Errors
    /// [`BpfError::Map`]; an empty slot is none.
    pub fn clear_listener(&mut self, slot: u32) -> Result<(), BpfError> {
        absent_is_fine(maps::LISTENERS, self.listeners.clear_index(&slot))
    }

    /// Marks a socket as a function's own before the function is given it. It is counted where it was.
    ///
    /// # Errors
    /// [`BpfError::Map`].
    pub fn mark(&mut self, owner: u32, socket: &impl AsRawFd) -> Result<(), BpfError> {
        let new = Owner { slot: owner, seat: Owner::NO_SEAT, counted: 0 };
        let mark = self.owner_of(socket)?.map_or(new, |old| Owner { slot: owner, ..old });
        self.owner.insert(socket, Plain(mark), 0).map_err(|e| map_error(maps::OWNER, &e))
    }

    /// Whose a socket is, by its mark.
    ///
    /// # Errors
    /// [`BpfError::Map`].
    pub fn owner_of(&self, socket: &impl AsRawFd) -> Result<Option<Owner>, BpfError> {
        match self.owner.get(socket, 0) {
            Ok(Plain(owner)) => Ok(Some(owner)),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(e) => Err(map_error(maps::OWNER, &e)),
        }
    }

    /// Seats the listener of an instance of the function `owner`. It gets no connection before its seat is in a pool.
    ///
    /// # Errors
    /// [`BpfError::Map`]; the listener has to listen.
    pub fn set_seat(&mut self, seat: u32, owner: u32, listener: &impl AsRawFd) -> Result<(), BpfError> {
        self.count_at(seat, owner, listener)?;
        self.seats.set(seat, listener, 0).map_err(|e| map_error(maps::SEATS, &e))
    }

    /// Marks a listener as the function's own, and counts its connections at `seat` from now on: those that it has
    /// already are counted where they began.
    ///
    /// # Errors
    /// [`BpfError::Map`].
    pub fn count_at(&mut self, seat: u32, owner: u32, listener: &impl AsRawFd) -> Result<(), BpfError> {
        let mark = Owner { slot: owner, seat, counted: 0 };
        self.owner.insert(listener, Plain(mark), 0).map_err(|e| map_error(maps::OWNER, &e))
    }

    /// How many connections there are now that were made while their listener was counted at this seat, whoever holds
    /// them. It may be one more than there are, but never less.
    ///
    /// # Errors
    /// [`BpfError::Map`].
    pub fn live(&self, seat: u32) -> Result<u64, BpfError> {
        let read = || self.live.get(&seat, 0).map_err(|e| map_error(maps::LIVE, &e));
        // The ends first. A connection that comes and goes between the two would hide another one that stays.
        let Plain(Live { closed, .. }) = read()?;
        let Plain(Live { opened, .. }) = read()?;
        Ok(opened.saturating_sub(closed))
    }

    /// Empties a seat.
    ///
    /// # Errors
    /// [`BpfError::Map`]; an empty seat is none.
    pub fn clear_seat(&mut self, seat: u32) -> Result<(), BpfError> {
        absent_is_fine(maps::SEATS, self.seats.clear_index(&seat))
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

    /// How many connections were given to a slot, by either lane.
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

    /// Starts a slot's counts anew, for whoever is next.
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

/// An address as the kernel program has it.
#[must_use]
pub fn words(address: Ipv6Addr) -> [u32; 4] {
    let octets = address.octets();
    std::array::from_fn(|word| u32::from_ne_bytes(std::array::from_fn(|byte| octets[4 * word + byte])))
}

// The kernel program finds a function's rules by the addresses of its revisions.
const _: () = assert!(faasd_common::REVISION_BITS == crate::core::address::REVISION_BITS);

fn address(words: [u32; 4]) -> Ipv6Addr {
    let mut octets = [0; 16];
    for (bytes, word) in octets.chunks_exact_mut(4).zip(words) {
        bytes.copy_from_slice(&word.to_ne_bytes());
    }
    Ipv6Addr::from(octets)
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
