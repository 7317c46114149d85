//! Types that the daemon and its kernel program both read: map keys, map values, counters.
//!
//! `no_std`, `repr(C)`, no padding that is not named. A change of any size, order or meaning here is a new
//! [`LAYOUT`]: a daemon refuses maps that another layout pinned.
#![no_std]

mod access;
mod flow;

pub use access::{
    GROUPS_MAX, REFUSALS_MAX, REVISION_BITS, RULES_MAX, Rule, RuleKey, SUBJECTS_MAX, Subject, SubjectCounts,
};
pub use flow::{FLOWS_MAX, Flow, FlowKey, RTT_BOUNDS_US, RTT_BUCKETS};

/// The layout of the pinned maps.
pub const LAYOUT: u32 = 5;

/// The most revisions that serve, over all functions, and the most routes. One slot each in [`maps::LISTENERS`].
pub const SLOTS_MAX: u32 = 65_536;

/// The most instances that have a listener of their own, over all functions. One seat each in [`maps::SEATS`].
pub const SEATS_MAX: u32 = 65_536;

/// The most of them for one slot.
pub const POOL_SEATS_MAX: usize = 64;

/// The most slots that one route's connections are shared out to.
pub const BRANCHES_MAX: usize = 8;

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
    pub const SPLITS: &str = "SPLITS";
    pub const LIVE: &str = "LIVE";
    pub const SUBJECTS: &str = "SUBJECTS";
    pub const RULES: &str = "RULES";
    pub const COUNTS: &str = "COUNTS";
    pub const REFUSALS: &str = "REFUSALS";
    pub const FLOWS: &str = "FLOWS";
}

/// The programs' names.
pub mod programs {
    pub const STEER: &str = "steer";
    pub const DENY_CONNECT4: &str = "deny_connect4";
    pub const DENY_CONNECT6: &str = "deny_connect6";
    pub const DENY_BIND4: &str = "deny_bind4";
    pub const DENY_BIND6: &str = "deny_bind6";
    pub const GUARD_EGRESS: &str = "guard_egress";
    pub const COUNT_LIVE: &str = "count_live";
}

/// The one entry of [`maps::CONFIG`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// [`LAYOUT`].
    pub layout: u32,
    /// The tunnel's interface. Peers come in there; functions and the daemon come by loopback.
    pub tunnel_ifindex: u32,
    /// The server's own address in the tunnel, which is the daemon's.
    pub server: [u32; 4],
    /// The first half of every function's address.
    pub functions: [u32; 2],
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
    /// A slot in [`maps::LISTENERS`], or that of [`Route::SERVICE`].
    pub slot: u32,
    /// [`Route::SPLIT`] and the others. With none, nothing else is looked up.
    pub flags: u32,
}

impl Route {
    /// A service of the daemon's own (DNS, the API): the socket is found as usual.
    pub const SERVICE: Self = Self::to(u32::MAX);

    /// Connections are shared out by what stands at `slot` in [`maps::SPLITS`]; they are refused if nothing does.
    pub const SPLIT: u32 = 1;

    /// Connections are refused.
    pub const SHED: u32 = 2;

    /// There are rules about who may connect.
    pub const GUARDED: u32 = 4;

    /// Of a guarded route: who has no rule may not connect.
    pub const CLOSED: u32 = 8;

    /// All connections to one slot.
    #[must_use]
    pub const fn to(slot: u32) -> Self {
        Self { slot, flags: 0 }
    }
}

/// How a route's connections are shared out, by the slot of the route. Replaced whole.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Split {
    /// How many of `upto` and `slots` count.
    pub len: u32,
    /// The sum of the weights.
    pub total: u32,
    /// Bit i: connections that fall to branch i are refused.
    pub shed: u32,
    /// The sum of the weights up to and including branch i, and `total` past the last: a number drawn below `total`
    /// falls to the branch that has as many sums below or at it as there are branches before it.
    pub upto: [u32; BRANCHES_MAX],
    /// The branches' slots in [`maps::POOLS`] and [`maps::LISTENERS`].
    pub slots: [u32; BRANCHES_MAX],
}

/// Whose a socket is: the value of [`maps::OWNER`]. A connection starts with a copy of its listener's.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The function's slot.
    pub slot: u32,
    /// Where in [`maps::LIVE`] the connections of this listener are counted, or [`Owner::NO_SEAT`].
    pub seat: u32,
    /// How far this connection is counted: 0, [`Owner::OPENED`] or [`Owner::CLOSED`], whether or not it has a seat. Each
    /// step is taken once, also while two programs are attached, and however often a socket is closed.
    pub counted: u32,
}

impl Owner {
    /// Not counted.
    pub const NO_SEAT: u32 = u32::MAX;
    /// It is among the [`Live::opened`] of its seat, and its end will be heard.
    pub const OPENED: u32 = 1;
    /// It is among the [`Live::closed`], too, and in a [`Flow`].
    pub const CLOSED: u32 = 2;
}

/// The connections of the listeners that carry a seat, since the map was made. One for all CPUs, since the choice of a
/// seat goes by the sum. Never set back: what a seat's last holder left half closed ends at a time of its own, and would
/// be taken from what its next holder opened.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Live {
    pub opened: u64,
    pub closed: u64,
}

/// The instances that accept a slot's connections themselves. Replaced whole.
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
    /// It came in by an interface that its source address does not belong to: refused.
    Foreign = 4,
    /// Code holding a passed socket called `connect`: EPERM.
    DeniedConnect = 5,
    /// Code holding a passed socket called `bind`: EPERM.
    DeniedBind = 6,
    /// A new connection from inside the ingress namespace that the daemon did not make: dropped.
    DroppedSyn = 7,
    /// A connection was given to the listener of an instance.
    Warm = 8,
    /// Connections to the function, or to the branch that it fell to, are refused for now.
    Shed = 9,
    /// Its source address is no subject's: refused.
    Stranger = 10,
    /// The policy does not let this subject reach this function: refused.
    Denied = 11,
}

impl Decision {
    /// How many there are.
    pub const COUNT: u32 = 12;

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
        "shed",
        "stranger",
        "denied",
    ];
}

const _: () = {
    assert!(size_of::<Config>() == 32 && align_of::<Config>() == 4);
    assert!(size_of::<RouteKey>() == 20 && align_of::<RouteKey>() == 4);
    assert!(size_of::<Pool>() == 4 + 4 * POOL_SEATS_MAX && align_of::<Pool>() == 4);
    assert!(size_of::<Route>() == 8 && align_of::<Route>() == 4);
    assert!(size_of::<Split>() == 12 + 8 * BRANCHES_MAX && align_of::<Split>() == 4);
    assert!(size_of::<Owner>() == 12 && align_of::<Owner>() == 4);
    assert!(size_of::<Live>() == 16 && align_of::<Live>() == 8);
};
