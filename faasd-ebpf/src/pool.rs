//! Which of a slot's instances gets a connection: the one with the fewest, if it is there.

use aya_ebpf::bindings::BPF_F_NO_PREALLOC;
use aya_ebpf::helpers::generated::bpf_get_prandom_u32;
use aya_ebpf::macros::map;
use aya_ebpf::maps::{HashMap, SockMap};
use aya_ebpf::programs::SkLookupContext;
use faasd_common::{POOL_SEATS_MAX, Pool, SEATS_MAX, SLOTS_MAX};

use crate::{NO_REUSEPORT, live};

/// Slot → its instances that accept connections themselves.
#[map]
static POOLS: HashMap<u32, Pool> = HashMap::with_max_entries(SLOTS_MAX, BPF_F_NO_PREALLOC);

/// Seat → the listener of one instance. It empties by itself when the instance dies.
#[map]
static SEATS: SockMap = SockMap::with_max_entries(SEATS_MAX, 0);

/// How many seats are compared for one connection: all of them in a pool of that size or smaller, else neighbours from a
/// place of chance on.
///
/// A connection counts from the end of its handshake. What comes from afar within one round trip is chosen by the same
/// counts: were the least busy of many instances always found, it would be given all of that.
const COMPARED: u32 = 8;

/// Seats that are tried for one connection. A seat is empty between an instance's death and the daemon's hearing of it.
const TRIES: u32 = 8;

/// Gives the connection to an instance of the slot that accepts for itself, if there is one.
#[inline(always)]
pub fn seat(ctx: &SkLookupContext, slot: u32) -> bool {
    // SAFETY: an entry is replaced whole, so that what is read here stays as it is.
    let Some(pool) = (unsafe { POOLS.get(slot) }) else { return false };
    let mut first = 0;
    if pool.len > 1 {
        // SAFETY: no argument, no effect. The chance that decides among those with as few.
        first = faasd_least(slot, unsafe { bpf_get_prandom_u32() });
    }
    // It, or else the next one that is there.
    for i in 0..TRIES {
        let Some(seat) = place(pool, first.wrapping_add(i)) else { return false };
        if SEATS.redirect_sk_lookup(ctx, seat, NO_REUSEPORT).is_ok() {
            return true;
        }
        if i + 1 >= pool.len {
            return false;
        }
    }
    false
}

/// The place of the seat with the fewest connections, among those of the pool that are compared from `first` on.
///
/// A function with a symbol of its own, which the verifier follows once: within its caller it would be followed for each
/// branch that a connection may fall to, and for each outcome of each comparison.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn faasd_least(slot: u32, first: u32) -> u32 {
    // SAFETY: as above.
    let Some(pool) = (unsafe { POOLS.get(slot) }) else { return first };
    let (mut fewest, mut found) = (u64::MAX, 0);
    for i in 0..COMPARED {
        if i >= pool.len {
            break;
        }
        let Some(seat) = place(pool, first.wrapping_add(i)) else { break };
        let live = live::at(seat);
        if live < fewest {
            (fewest, found) = (live, i);
        }
    }
    first.wrapping_add(found)
}

#[inline(always)]
fn place(pool: &Pool, at: u32) -> Option<u32> {
    // An empty pool has no remainder to divide by. The mask tells the verifier what it cannot see.
    let at = at.checked_rem(pool.len)?;
    Some(pool.seats[at as usize & (POOL_SEATS_MAX - 1)])
}
