//! The kernel's side of faasd: where a connection goes, and where a socket handed to a function may not.
//!
//! All of it runs in the ingress network namespace, which holds the tunnel's interface, the functions' addresses and
//! nothing else.
#![no_std]
#![no_main]
// The only way to a counter that an interrupt may count in as well: this target's `fetch_add` does not compile.
#![feature(asm_experimental_arch)]

mod access;
mod flow;
mod live;
mod pool;

use aya_ebpf::bindings::bpf_map_type::BPF_MAP_TYPE_SK_STORAGE;
use aya_ebpf::bindings::sk_action::{SK_DROP, SK_PASS};
use aya_ebpf::bindings::{
    BPF_F_CLONE, BPF_F_NO_PREALLOC, BPF_SK_LOOKUP_F_NO_REUSEPORT, TC_ACT_OK, TC_ACT_SHOT,
};
use aya_ebpf::helpers::generated::{bpf_get_prandom_u32, bpf_sk_storage_get};
use aya_ebpf::macros::{btf_map, cgroup_sock_addr, classifier, map, sk_lookup};
use aya_ebpf::maps::{Array, HashMap, PerCpuArray, SockMap};
use aya_ebpf::programs::{SkLookupContext, SockAddrContext, TcContext};
use core::ffi::c_void;
use core::ptr;
use faasd_common::{
    BRANCHES_MAX, Config, DAEMON_MARK, Decision, Owner, Route, RouteKey, SLOTS_MAX, Split, Subject,
};

use access::{ADMITTED, Arrival};

#[map]
static CONFIG: Array<Config> = Array::with_max_entries(1, 0);

/// Where a client dialled → whose it is.
#[map]
static ROUTES: HashMap<RouteKey, Route> = HashMap::with_max_entries(SLOTS_MAX, 0);

/// The slot of a route with [`Route::SPLIT`] → the slots that its connections are shared out to.
#[map]
static SPLITS: HashMap<u32, Split> = HashMap::with_max_entries(SLOTS_MAX, BPF_F_NO_PREALLOC);

/// Slot → the listener for what no instance accepts by itself. The kernel empties a slot when the last holder of its socket closes it.
#[map]
static LISTENERS: SockMap = SockMap::with_max_entries(SLOTS_MAX, 0);

#[map]
static DECISIONS: PerCpuArray<u64> = PerCpuArray::with_max_entries(Decision::COUNT, 0);

/// Connections given to each slot. What comes for a connection that is gone (after a reset) counts once more: a lookup
/// does not tell it from a new one. [`live`] counts exactly.
#[map]
static STEERED: PerCpuArray<u64> = PerCpuArray::with_max_entries(SLOTS_MAX, 0);

/// Those of them that an instance's own listener was given.
#[map]
static WARM: PerCpuArray<u64> = PerCpuArray::with_max_entries(SLOTS_MAX, 0);

/// A socket → the function that it belongs to, and the seat where it is counted. The daemon marks the listener, the kernel copies the mark
/// to every connection that the listener accepts (`BPF_F_CLONE`). aya-ebpf's own type has no place for flags, so the
/// map's BTF definition is spelled out.
#[repr(C)]
pub struct SocketOwner {
    r#type: *const [i32; BPF_MAP_TYPE_SK_STORAGE as usize],
    key: *const i32,
    value: *const Owner,
    max_entries: *const [i32; 0],
    map_flags: *const [i32; (BPF_F_NO_PREALLOC | BPF_F_CLONE) as usize],
}

// SAFETY: never read by the program itself: the pointers only carry types to the loader.
unsafe impl Sync for SocketOwner {}

#[btf_map]
static OWNER: SocketOwner = SocketOwner {
    r#type: ptr::null(),
    key: ptr::null(),
    value: ptr::null(),
    max_entries: ptr::null(),
    map_flags: ptr::null(),
};

const AF_INET6: u32 = 10;
const IPPROTO_TCP: u32 = 6;
const LOOPBACK_IFINDEX: u32 = 1;

/// The choice made here is final: without this the kernel would choose once more, by a hash, among the listeners that
/// share the function's port.
const NO_REUSEPORT: u64 = BPF_SK_LOOKUP_F_NO_REUSEPORT as u64;

#[inline(always)]
fn count(decision: Decision) {
    increment(&DECISIONS, decision as u32);
}

#[inline(always)]
fn increment(counters: &PerCpuArray<u64>, index: u32) {
    if let Some(counter) = counters.get_ptr_mut(index) {
        // SAFETY: a per-CPU value; the program is not preempted by itself on its CPU.
        unsafe { *counter += 1 }
    }
}

/// Chooses the socket of each new TCP connection in the namespace, and lets UDP through to the daemon's own. Nothing is
/// reachable here but what stands in [`ROUTES`]: a socket that a function managed to make listen gets no connection.
///
/// DROP ends the lookup; the kernel answers with RST, or that the port is unreachable, so that a client fails at once
/// and not by a timeout.
#[sk_lookup]
pub fn steer(ctx: SkLookupContext) -> u32 {
    // SAFETY: the kernel passes a valid context; the verifier rewrites each access.
    let lookup = unsafe { &*ctx.lookup };
    // SAFETY: as above.
    if !unsafe { lookup.__bindgen_anon_1.__bindgen_anon_1.sk }.is_null() {
        // The program of the daemon before has chosen, and is about to be detached.
        return SK_PASS;
    }
    if lookup.family != AF_INET6 {
        // The platform is IPv6 only; 127.0.0.1 of this namespace has nothing to offer.
        count(Decision::Unknown);
        return SK_DROP;
    }
    let Some(config) = CONFIG.get(0) else { return SK_DROP };
    // Word by word: the verifier takes no copy from the context by a pointer of its own.
    // SAFETY: four words of a valid context.
    let source: [u32; 4] =
        unsafe { core::array::from_fn(|i| (&raw const (*ctx.lookup).remote_ip6[i]).read_volatile()) };
    // First who, then what.
    let mut subject = Subject::INVITED;
    let arrival = access::arrival(config, lookup.ingress_ifindex, &source);
    match arrival {
        Arrival::Daemon => {}
        Arrival::Subject => {
            if !access::subject(&source, &mut subject) {
                count(Decision::Stranger);
                return SK_DROP;
            }
        }
        Arrival::Foreign => {
            count(Decision::Foreign);
            return SK_DROP;
        }
        Arrival::NoPacket => return SK_DROP,
    }
    let is_daemon = arrival == Arrival::Daemon;
    // SAFETY: four words of a valid context.
    let address =
        unsafe { core::array::from_fn(|i| (&raw const (*ctx.lookup).local_ip6[i]).read_volatile()) };
    let key = RouteKey { address, port: lookup.local_port };
    if lookup.protocol != IPPROTO_TCP {
        return udp(is_daemon, &key);
    }
    // SAFETY: the value is copied at once; the daemon replaces entries whole.
    let Some(route) = (unsafe { ROUTES.get(&key) }).copied() else {
        if !is_daemon {
            access::count_unknown(&subject);
        }
        count(Decision::Unknown);
        return SK_DROP;
    };
    if route.slot == Route::SERVICE.slot {
        count(Decision::Service);
        return SK_PASS;
    }
    if !is_daemon {
        let decision = access::admit(&subject, &route, &key.address);
        if decision != ADMITTED {
            increment(&DECISIONS, decision);
            return SK_DROP;
        }
    }
    // One test for whatever else is out of the ordinary.
    if route.flags & !(Route::GUARDED | Route::CLOSED) != 0 {
        return steer_by_flags(&ctx, route);
    }
    if give(&ctx, route.slot) { SK_PASS } else { no_listener() }
}

/// Only the daemon's services are bound here, and nothing that a function holds is a UDP socket.
#[inline(always)]
fn udp(is_daemon: bool, key: &RouteKey) -> u32 {
    // Its own, by loopback: an answer to it goes to whatever port it has.
    if is_daemon {
        return SK_PASS;
    }
    // SAFETY: the value is copied at once; the daemon replaces entries whole.
    match unsafe { ROUTES.get(key) } {
        Some(route) if route.slot == Route::SERVICE.slot => SK_PASS,
        _ => {
            count(Decision::Unknown);
            SK_DROP
        }
    }
}

#[inline(always)]
fn steer_by_flags(ctx: &SkLookupContext, route: Route) -> u32 {
    if route.flags & Route::SHED != 0 {
        count(Decision::Shed);
        return SK_DROP;
    }
    // SAFETY: an entry is replaced whole, so that what is read here stays as it is.
    let Some(split) = (unsafe { SPLITS.get(route.slot) }) else {
        // The route's number is the function's, and nobody's branch.
        return no_listener();
    };
    // SAFETY: no argument, no effect.
    let Some(drawn) = unsafe { bpf_get_prandom_u32() }.checked_rem(split.total) else {
        return no_listener();
    };
    // Without a branch: the verifier would follow each one through all of what comes below.
    let mut first = 0;
    for upto in &split.upto {
        first += u32::from(drawn >= *upto);
    }
    if split.shed >> (first & 31) & 1 != 0 {
        count(Decision::Shed);
        return SK_DROP;
    }
    // The branch that it fell to, or else whichever is there and takes any.
    for i in 0..BRANCHES_MAX as u32 {
        if i >= split.len {
            break;
        }
        let Some(at) = (first + i).checked_rem(split.len) else { break };
        if split.shed >> (at & 31) & 1 == 0 && give(ctx, split.slots[at as usize & (BRANCHES_MAX - 1)]) {
            return SK_PASS;
        }
    }
    no_listener()
}

/// Nobody holds a listener for it, not even the descriptor store.
#[inline(always)]
fn no_listener() -> u32 {
    count(Decision::NoListener);
    SK_DROP
}

/// Gives the connection to an instance of the slot, or to the slot's own listener. False if neither is there.
#[inline(always)]
fn give(ctx: &SkLookupContext, slot: u32) -> bool {
    if pool::seat(ctx, slot) {
        increment(&WARM, slot);
        count(Decision::Warm);
    } else if LISTENERS.redirect_sk_lookup(ctx, slot, NO_REUSEPORT).is_ok() {
        count(Decision::Steered);
    } else {
        return false;
    }
    increment(&STEERED, slot);
    true
}

/// Whether the socket was handed to a function, or came from a listener that was.
#[inline(always)]
fn belongs_to_a_function(ctx: &SockAddrContext) -> bool {
    // SAFETY: the kernel passes a valid context with a full socket for these attach types.
    let socket = unsafe { (*ctx.sock_addr).__bindgen_anon_1.sk };
    if socket.is_null() {
        return false;
    }
    !owner(socket.cast()).is_null()
}

/// The mark of a socket, or null.
#[inline(always)]
fn owner(socket: *mut c_void) -> *mut Owner {
    let map = &raw const OWNER as *mut c_void;
    // SAFETY: `map` is the map that the loader puts in place of the symbol; a null value with no flag only looks up.
    unsafe { bpf_sk_storage_get(map, socket, ptr::null_mut(), 0) }.cast()
}

/// 1 lets the call go on, 0 makes it fail with EPERM. A connection can be taken apart by `connect(AF_UNSPEC)` and
/// pointed elsewhere within the namespace that it was made in; these programs refuse the second half.
#[inline(always)]
fn deny(ctx: &SockAddrContext, decision: Decision) -> i32 {
    if belongs_to_a_function(ctx) {
        count(decision);
        return 0;
    }
    1
}

#[cgroup_sock_addr(connect4)]
pub fn deny_connect4(ctx: SockAddrContext) -> i32 {
    deny(&ctx, Decision::DeniedConnect)
}

#[cgroup_sock_addr(connect6)]
pub fn deny_connect6(ctx: SockAddrContext) -> i32 {
    deny(&ctx, Decision::DeniedConnect)
}

#[cgroup_sock_addr(bind4)]
pub fn deny_bind4(ctx: SockAddrContext) -> i32 {
    deny(&ctx, Decision::DeniedBind)
}

#[cgroup_sock_addr(bind6)]
pub fn deny_bind6(ctx: SockAddrContext) -> i32 {
    deny(&ctx, Decision::DeniedBind)
}

const ETH_HLEN: usize = 14;
const IPV6_HLEN: usize = 40;
/// Without options.
const TCP_HLEN: usize = 20;
const ETH_P_IP: u16 = 0x0800;
const ETH_P_IPV6: u16 = 0x86dd;
const TCP_FLAGS: usize = 13;
const SYN: u8 = 0x02;
const ACK: u8 = 0x10;

/// How the kernel begins the one hop-by-hop header that it makes by itself (`struct hop_jumbo_hdr`): TCP follows, eight
/// bytes in all, the option "jumbo payload" with its length of 4, which comes then.
const JUMBO: [u8; 4] = [IPPROTO_TCP as u8, 0, 0xc2, 4];
const JUMBO_LEN: usize = 8;

/// The second lock on the same door, and independent of the first: on its way out of the namespace, by loopback or by
/// the tunnel, a packet that opens a connection is dropped unless the daemon made it.
#[classifier]
pub fn guard_egress(ctx: TcContext) -> i32 {
    // SAFETY: a plain field of a valid context.
    let mark = unsafe { (*ctx.skb.skb).mark };
    if mark != DAEMON_MARK && may_open_a_connection(&ctx) {
        count(Decision::DroppedSyn);
        return TC_ACT_SHOT as i32;
    }
    TC_ACT_OK as i32
}

#[inline(always)]
fn may_open_a_connection(ctx: &TcContext) -> bool {
    // SAFETY: plain fields of a valid context.
    let (protocol, link) = unsafe { ((*ctx.skb.skb).protocol, (*ctx.skb.skb).ifindex) };
    // Loopback packets carry an Ethernet header, the tunnel's carry none.
    let network = if link == LOOPBACK_IFINDEX { ETH_HLEN } else { 0 };
    if u16::from_be(protocol as u16) == ETH_P_IPV6
        && let Some(flags) = plain_flags(ctx, network)
    {
        return flags & (SYN | ACK) == SYN;
    }
    let (next_header, transport) = match u16::from_be(protocol as u16) {
        // Sockets build no extension headers unless asked by IPV6_HOPOPTS and the like, which are of no use to a SYN;
        // what is not plain TCP after the fixed header cannot be vouched for by this program, and needs to be none.
        ETH_P_IPV6 => (ctx.load::<u8>(network + 6), network + IPV6_HLEN),
        ETH_P_IP => match ctx.load::<u8>(network) {
            Ok(first) => (ctx.load::<u8>(network + 9), network + usize::from(first & 0x0f) * 4),
            Err(_) => return false,
        },
        _ => return false,
    };
    let transport = match next_header {
        Ok(next) if u32::from(next) == IPPROTO_TCP => transport,
        // What is longer than 64 KiB, with segments that the kernel or a device is still to cut (BIG TCP), says so here.
        Ok(0) if ctx.load(transport) == Ok(JUMBO) => transport + JUMBO_LEN,
        // IPv6 extension headers (hop-by-hop, routing, fragment, destination options): a function could set them on
        // its socket to hide the SYN behind. Nothing of ours sends any.
        Ok(0 | 43 | 44 | 60) => return true,
        _ => return false,
    };
    matches!(ctx.load::<u8>(transport + TCP_FLAGS), Ok(flags) if flags & (SYN | ACK) == SYN)
}

/// The flags of what nearly every packet is: TCP right behind a fixed IPv6 header, both where programs may read without the
/// kernel's copying.
#[inline(always)]
fn plain_flags(ctx: &TcContext, network: usize) -> Option<u8> {
    let header = ctx.data() + network;
    if header + IPV6_HLEN + TCP_HLEN > ctx.data_end() {
        return None;
    }
    // SAFETY: within the packet's data, as was just compared; the verifier insists on it.
    let byte = |offset: usize| unsafe { *((header + offset) as *const u8) };
    (u32::from(byte(6)) == IPPROTO_TCP).then(|| byte(IPV6_HLEN + TCP_FLAGS))
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

// The kernel lends its GPL-only helpers by this.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
