//! Who has to prove that it is at its address, by a cookie, before its handshake is computed.
//!
//! gotatun counts handshakes by the address that they come from. Whoever makes up addresses is below any such limit, and
//! would have the one thread compute handshakes instead of carrying packets: with too many in all, everybody has to.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use gotatun::noise::TunnResult;
use gotatun::noise::rate_limiter::RateLimiter;
use gotatun::packet::{Packet, WgKind};
use gotatun::x25519;

/// Handshakes a second from one address.
const FROM_EACH: u64 = 100;

/// Handshakes a second that others begin, from all addresses: more than join and come back, but after an outage.
const BEGUN_BY_ALL: u32 = 1000;

const SECOND: Duration = Duration::from_secs(1);

/// The first byte of a message that begins a handshake, and of one with data.
const INITIATION: Option<&u8> = Some(&1);
const DATA: Option<&u8> = Some(&4);

pub(super) struct Limits {
    of_each: Arc<RateLimiter>,
    /// Lets nobody pass without a cookie.
    of_all: RateLimiter,
    /// Handshakes that were begun, and since when they are counted.
    begun: u32,
    since: Instant,
}

impl Limits {
    pub(super) fn new(public: &x25519::PublicKey) -> Self {
        Self {
            of_each: Arc::new(RateLimiter::new(public, FROM_EACH)),
            of_all: RateLimiter::new(public, 0),
            begun: 0,
            since: Instant::now(),
        }
    }

    /// The part of it that sessions know.
    pub(super) fn of_each(&self) -> Arc<RateLimiter> {
        Arc::clone(&self.of_each)
    }

    /// The message that a packet is, if it may be looked at; a cookie for its sender, if that has to prove its address.
    pub(super) fn verify(&mut self, packet: Packet, source: SocketAddr) -> Result<WgKind, TunnResult> {
        let kind = packet.first();
        if kind == DATA {
            return self.of_each.verify_packet(source, packet);
        }
        // Not by a timer: none runs while no peer is awake.
        self.of_each.try_reset_count();
        if self.since.elapsed() >= SECOND {
            (self.begun, self.since) = (0, Instant::now());
            self.of_all.try_reset_count();
        }
        let is_too_much = kind == INITIATION && self.begun >= BEGUN_BY_ALL;
        let limit = if is_too_much { &self.of_all } else { &*self.of_each };
        let verified = limit.verify_packet(source, packet);
        // What does not even know our key costs nothing, and counts for nothing.
        self.begun += u32::from(matches!(verified, Ok(WgKind::HandshakeInit(_))));
        verified
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use gotatun::noise::Tunn;
    use gotatun::noise::index_table::IndexTable;

    use super::*;

    #[test]
    fn made_up_addresses_do_not_get_past_a_limit_and_a_true_one_does() {
        let key = |n| x25519::StaticSecret::from([n; 32]);
        let public = x25519::PublicKey::from(&key(1));
        let mut limits = Limits::new(&public);
        // A second that lasts as long as the test.
        limits.since = Instant::now() + Duration::from_secs(600);
        let mut client = Tunn::new(key(2), public, None, None, IndexTable::from_os_rng(), limits.of_each());
        let asked: Packet = Packet::from(client.format_handshake_initiation(true).unwrap());
        let from = |n: u32| SocketAddr::from((Ipv4Addr::from_bits(0x0a00_0000 + n), 51820));
        let ask = |limits: &mut Limits, n| limits.verify(Packet::copy_from(asked.as_ref()), from(n));
        let mut junk = asked.as_ref().to_vec();
        junk[120] ^= 1;
        for n in 0..BEGUN_BY_ALL {
            assert!(limits.verify(Packet::copy_from(&junk), from(n)).is_err());
            assert!(ask(&mut limits, n).is_ok(), "{n}");
        }
        let mut cookie = None;
        for n in 0..100 {
            let Err(TunnResult::WriteToNetwork(reply)) = ask(&mut limits, BEGUN_BY_ALL + n) else {
                panic!("it is let in")
            };
            cookie = Some(reply);
        }
        // Who is there hears the answer.
        let last = from(BEGUN_BY_ALL + 99);
        assert!(matches!(client.handle_incoming_packet(cookie.unwrap()), TunnResult::Done));
        let proved: Packet = Packet::from(client.format_handshake_initiation(true).unwrap());
        let elsewhere = Packet::copy_from(proved.as_ref());
        assert!(limits.verify(elsewhere, from(7)).is_err());
        assert!(limits.verify(proved, last).is_ok());
        limits.since = Instant::now().checked_sub(SECOND).unwrap();
        assert!(ask(&mut limits, 7).is_ok());
    }
}
