//! What passed between whom, taken from the kernel's own books of a connection at its end.
//!
//! One look a connection, after the last of its packets that anybody waits for; none for what passes in between.

use core::arch::asm;

use aya_ebpf::bindings::{BPF_NOEXIST, bpf_sock_ops};
use aya_ebpf::macros::map;
use aya_ebpf::maps::LruHashMap;
use aya_ebpf::programs::SockOpsContext;
use faasd_common::{FLOWS_MAX, Flow, FlowKey, RTT_BOUNDS_US, RTT_BUCKETS};

use crate::access;

/// Subject and function → what passed. Those whose connections ended last are kept.
#[map]
static FLOWS: LruHashMap<FlowKey, Flow> = LruHashMap::with_max_entries(FLOWS_MAX, 0);

const TCP_FIN_WAIT1: u32 = 4;
const TCP_FIN_WAIT2: u32 = 5;
const TCP_CLOSE_WAIT: u32 = 8;
const TCP_LAST_ACK: u32 = 9;
const TCP_CLOSING: u32 = 11;

/// One field of the context: the verifier rewrites each load by its offset, so that none may be joined with another.
macro_rules! field {
    ($ops:expr, $($path:tt)+) => {
        // SAFETY: a plain field of a valid context.
        unsafe { (&raw const (*$ops).$($path)+).read_volatile() }
    };
}

/// The connection of the context ends.
#[inline(always)]
pub fn ended(ctx: &SockOpsContext) {
    let ops: *const bpf_sock_ops = ctx.ops;
    let remote = [
        field!(ops, remote_ip6[0]),
        field!(ops, remote_ip6[1]),
        field!(ops, remote_ip6[2]),
        field!(ops, remote_ip6[3]),
    ];
    let local = [
        field!(ops, local_ip6[0]),
        field!(ops, local_ip6[1]),
        field!(ops, local_ip6[2]),
        field!(ops, local_ip6[3]) & access::FUNCTION_MASK,
    ];
    let key = FlowKey { subject: access::number(&remote), function: local };
    let Some(flow) = place(&key) else { return };

    // Either end's FIN takes a number in the sequence like a byte, and is counted as one.
    let before = ctx.arg(0);
    let fin_came = matches!(before, TCP_CLOSE_WAIT | TCP_LAST_ACK | TCP_CLOSING);
    let fin_sent = matches!(before, TCP_FIN_WAIT1 | TCP_FIN_WAIT2 | TCP_LAST_ACK | TCP_CLOSING);
    let fin_arrived = fin_sent && field!(ops, snd_una) == field!(ops, snd_nxt);
    let received = less(field!(ops, bytes_received), fin_came);
    let sent = less(field!(ops, bytes_acked), fin_arrived);
    let retransmits = u64::from(field!(ops, total_retrans));
    // Kept in eighths.
    let rtt_us = field!(ops, srtt_us) >> 3;

    // SAFETY: places in the map's value.
    unsafe {
        add(&raw mut (*flow).ended, 1);
        add(&raw mut (*flow).received, received);
        add(&raw mut (*flow).sent, sent);
        if retransmits > 0 {
            add(&raw mut (*flow).retransmits, retransmits);
        }
        if rtt_us > 0 {
            add(&raw mut (*flow).rtt_sum_us, u64::from(rtt_us));
            let buckets = (&raw mut (*flow).rtt).cast::<u64>();
            add(buckets.add(bucket(rtt_us)), 1);
        }
    }
}

#[inline(always)]
fn less(bytes: u64, one: bool) -> u64 {
    if one && bytes > 0 { bytes - 1 } else { bytes }
}

/// The first bound that is no less. Without a branch: the verifier would follow each one.
#[inline(always)]
fn bucket(rtt_us: u32) -> usize {
    let mut at = 0;
    for bound in RTT_BOUNDS_US {
        at += usize::from(rtt_us > bound);
    }
    if at < RTT_BUCKETS { at } else { RTT_BUCKETS - 1 }
}

#[inline(always)]
fn place(key: &FlowKey) -> Option<*mut Flow> {
    if let Some(flow) = FLOWS.get_ptr_mut(key) {
        return Some(flow);
    }
    first(key);
    FLOWS.get_ptr_mut(key)
}

/// Called, for its zeroes need most of a program's stack.
#[inline(never)]
fn first(key: &FlowKey) {
    const ZERO: Flow =
        Flow { ended: 0, received: 0, sent: 0, retransmits: 0, rtt_sum_us: 0, rtt: [0; RTT_BUCKETS] };
    // Another CPU may have been first: then its entry stays.
    let _ = FLOWS.insert(key, ZERO, BPF_NOEXIST as u64);
}

/// In one instruction, as [`crate::live::increment`]: several CPUs, and an interrupt, count in one place.
#[inline(always)]
fn add(counter: *mut u64, count: u64) {
    // SAFETY: `counter` points into a map's value.
    unsafe { asm!("lock *(u64 *)({} + 0) += {}", in(reg) counter, in(reg) count) }
}
