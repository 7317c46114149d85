//! Types that the daemon and its kernel program both read: map keys, map values, counters.
//!
//! `no_std`, `repr(C)`, no padding that is not named. A change of any size, order or meaning here is a new
//! [`LAYOUT`]: a daemon refuses maps that another layout pinned.
#![no_std]

/// The layout of the pinned maps.
pub const LAYOUT: u32 = 2;

/// The most functions, and the most routes. One slot each in [`maps::LISTENERS`].
pub const SLOTS_MAX: u32 = 65_536;

/// The most instances that have a listener of their own, over all functions. One seat each in [`maps::SEATS`].
pub const SEATS_MAX: u32 = 65_536;

/// The most of them for one function.
pub const POOL_SEATS_MAX: usize = 64;

/// The mark (`SO_MARK`) of the daemon's own connections in the ingress namespace. Functions cannot set one: that
/// takes `CAP_NET_ADMIN` over the namespace.
pub const DAEMON_MARK: u32 = 0xfaa5;

/// The maps' names, as the kernel program defines them.
pub mod maps {
    pub const CONFIG: &str = "CONFIG";
    pub const ROUTES: &str = "ROUTES";
    pub const LISTENERS: &str = "LISTENERS";
    pub const DECISIONS: &str = "DECISIONS";
    pub const STEERED: &str = "STEERED";
    pub const POOLS: &str = "POOLS";
    pub const SEATS: &str = "SEATS";
    pub const WARM: &str = "WARM";
    pub const OWNER: &str = "OWNER";
}

/// The programs' names.
pub mod programs {
    pub const STEER: &str = "steer";
    pub const DENY_CONNECT4: &str = "deny_connect4";
    pub const DENY_CONNECT6: &str = "deny_connect6";
    pub const DENY_BIND4: &str = "deny_bind4";
    pub const DENY_BIND6: &str = "deny_bind6";
    pub const GUARD_EGRESS: &str = "guard_egress";
}

/// The one entry of [`maps::CONFIG`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// [`LAYOUT`].
    pub layout: u32,
    /// The tunnel's interface; connections for functions come in there or from the namespace itself.
    pub tunnel_ifindex: u32,
}

/// Where a client dialled.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct RouteKey {
    /// The address's bytes, in the order of the packet.
    pub address: [u32; 4],
    /// In host order.
    pub port: u32,
}

/// What stands there.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Route {
    /// The function's slot in [`maps::LISTENERS`], or [`Route::SERVICE`].
    pub slot: u32,
}

impl Route {
    /// A service of the daemon's own (DNS, metrics): the socket is found as usual.
    pub const SERVICE: Self = Self { slot: u32::MAX };
}

/// A function's instances that accept connections themselves, by its slot. Replaced whole.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pool {
    /// How many of `seats` count.
    pub len: u32,
    /// Indices in [`maps::SEATS`].
    pub seats: [u32; POOL_SEATS_MAX],
}

/// Indices of [`maps::DECISIONS`]: what became of a packet or a call. Per CPU, `u64`.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// A connection was given to its function's listener.
    Steered = 0,
    /// A connection to the daemon's own services.
    Service = 1,
    /// Nothing stands at the address and port: refused.
    Unknown = 2,
    /// The function has no listener now: refused.
    NoListener = 3,
    /// It came in by another interface than the tunnel: refused.
    Foreign = 4,
    /// Code holding a passed socket called `connect`: EPERM.
    DeniedConnect = 5,
    /// Code holding a passed socket called `bind`: EPERM.
    DeniedBind = 6,
    /// A new connection from inside the ingress namespace that the daemon did not make: dropped.
    DroppedSyn = 7,
    /// A connection was given to the listener of an instance.
    Warm = 8,
}

impl Decision {
    /// How many there are.
    pub const COUNT: u32 = 9;

    /// All of them, by index, with the name that metrics use.
    pub const NAMES: [&'static str; Self::COUNT as usize] = [
        "steered",
        "service",
        "unknown",
        "no_listener",
        "foreign",
        "denied_connect",
        "denied_bind",
        "dropped_syn",
        "warm",
    ];
}

const _: () = {
    assert!(size_of::<Config>() == 8 && align_of::<Config>() == 4);
    assert!(size_of::<RouteKey>() == 20 && align_of::<RouteKey>() == 4);
    assert!(size_of::<Pool>() == 4 + 4 * POOL_SEATS_MAX && align_of::<Pool>() == 4);
    assert!(size_of::<Route>() == 4 && align_of::<Route>() == 4);
};
