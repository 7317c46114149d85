//! The connections of functions' listeners as they come and go: those of each instance that accepts for itself are counted
//! while they live, since nobody else sees them, and of each that ends it is kept what passed ([`flow`]).
//!
//! Two calls a connection that do something, at its start and its end; none for what passes in between.

use core::arch::asm;

use aya_ebpf::bindings::{
    BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB, BPF_SOCK_OPS_STATE_CB, BPF_SOCK_OPS_STATE_CB_FLAG,
};
use aya_ebpf::macros::{map, sock_ops};
use aya_ebpf::maps::Array;
use aya_ebpf::programs::SockOpsContext;
use faasd_common::{Live, Owner, SEATS_MAX};

use crate::flow;

/// Seat → the connections of the listener that carries it.
#[map]
static LIVE: Array<Live> = Array::with_max_entries(SEATS_MAX, 0);

const TCP_CLOSE: u32 = 7;

/// "Go on": anything else would take the answer from other programs at the same hook. The answer itself stays 0, which
/// the kernel reads as none.
const OK: u32 = 1;

/// Called for what the sockets of the daemon's cgroup go through, connections of its listeners among them wherever these
/// went.
#[sock_ops]
pub fn count_live(ctx: SockOpsContext) -> u32 {
    match ctx.op() {
        // The connection has its listener's mark since it was cloned from it, which was before this.
        BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB => opened(&ctx),
        // Every way to end leads to CLOSE: TIME_WAIT, too, is another object in the kernel.
        BPF_SOCK_OPS_STATE_CB if ctx.arg(1) == TCP_CLOSE => closed(&ctx),
        _ => {}
    }
    OK
}

#[inline(always)]
fn opened(ctx: &SockOpsContext) {
    let mark = mark(ctx);
    if mark.is_null() {
        return;
    }
    // SAFETY: the mark belongs to this socket alone, which the kernel holds locked here.
    let mark = unsafe { &mut *mark };
    if mark.counted != 0 {
        return;
    }
    // Without the word of its end it would count for ever.
    if ctx.set_cb_flags((ctx.cb_flags() | BPF_SOCK_OPS_STATE_CB_FLAG) as i32).is_err() {
        return;
    }
    mark.counted = Owner::OPENED;
    // One without a seat is in no place there.
    if let Some(live) = LIVE.get_ptr_mut(mark.seat) {
        // SAFETY: a place in the map's value.
        increment(unsafe { &raw mut (*live).opened });
    }
}

#[inline(always)]
fn closed(ctx: &SockOpsContext) {
    let mark = mark(ctx);
    if mark.is_null() {
        return;
    }
    // SAFETY: as above.
    let mark = unsafe { &mut *mark };
    if mark.counted != Owner::OPENED {
        return;
    }
    mark.counted = Owner::CLOSED;
    if let Some(live) = LIVE.get_ptr_mut(mark.seat) {
        // SAFETY: a place in the map's value.
        increment(unsafe { &raw mut (*live).closed });
    }
    flow::ended(ctx);
}

#[inline(always)]
fn mark(ctx: &SockOpsContext) -> *mut Owner {
    // SAFETY: the kernel passes a valid context.
    let socket = unsafe { (*ctx.ops).__bindgen_anon_2.sk };
    if socket.is_null() { core::ptr::null_mut() } else { crate::owner(socket.cast()) }
}

/// How many live connections a seat has. The ends are read first: one that comes and goes in between would hide another
/// one that stays.
#[inline(always)]
pub fn at(seat: u32) -> u64 {
    let Some(live) = LIVE.get_ptr(seat) else { return 0 };
    // SAFETY: places in the map's value, which other CPUs count in.
    let closed = unsafe { (&raw const (*live).closed).read_volatile() };
    // SAFETY: as above.
    let opened = unsafe { (&raw const (*live).opened).read_volatile() };
    opened.saturating_sub(closed)
}

/// In one instruction: other CPUs count at the same time, and `close(2)` counts in a process, which an interrupt that
/// counts may break into on its CPU.
#[inline(always)]
pub fn increment(counter: *mut u64) {
    // SAFETY: `counter` points into a map's value.
    unsafe { asm!("lock *(u64 *)({} + 0) += {}", in(reg) counter, in(reg) 1u64) }
}
