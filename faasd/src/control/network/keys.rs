//! A peer's key gives way to another: at joining the invitation's to the machine's own, at a rotation the old to the new.
//!
//! The answer to whoever sent the new key travels through the session of the former one, which therefore keeps the
//! address until the new one has shown itself. What is not done by then is done by [`Network::finish_overdue`].

use std::collections::HashMap;
use std::net::Ipv6Addr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;

use super::{Network, config};
use crate::api::types::Join;
use crate::control::api::ApiError;
use crate::control::records::PeerRecord;
use crate::control::store::{Expect, StoreError, Stored};
use crate::core::name::FunctionName;
use crate::tunnel::interface::{AllowedIp, PeerChange, PeerConfig, PeerStatus};
use crate::tunnel::keys::PublicKey;
use crate::tunnel::{self};

/// How long a peer may take to come back with its new key: as long as it waits for the answer, and more.
const DEADLINE: Duration = Duration::from_secs(15);

/// For whoever waits for it to be done, before others do it.
const GRACE: Duration = Duration::from_secs(1);

/// How often it is looked for: at first, and at least. To look at one peer is to look at all.
const INTERVAL: Duration = Duration::from_millis(5);
const INTERVAL_MAX: Duration = Duration::from_millis(200);

/// Keys that give way to others, each by the address that goes over.
#[derive(Debug, Default)]
pub(super) struct Switches(HashMap<Ipv6Addr, Switch>);

/// A key that is on record, and another that still has the address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Switch {
    pub former: PublicKey,
    new: PublicKey,
    /// The former key is an invitation's: whoever has read that may be behind it, so that it opens nothing.
    is_join: bool,
    /// When somebody else is to finish it.
    overdue: Instant,
}

impl Switches {
    fn begin(&mut self, address: Ipv6Addr, switch: Switch) {
        self.0.insert(address, switch);
    }

    pub(super) fn is_joining(&self, address: Ipv6Addr) -> bool {
        self.0.get(&address).is_some_and(|switch| switch.is_join)
    }

    /// It is done, or not to be done any more.
    pub(super) fn end(&mut self, address: Ipv6Addr) -> Option<Switch> {
        self.0.remove(&address)
    }

    fn hurry(&mut self, address: Ipv6Addr, now: Instant) {
        if let Some(switch) = self.0.get_mut(&address) {
            switch.overdue = now;
        }
    }

    fn overdue(&self, now: Instant) -> Vec<(Ipv6Addr, Switch)> {
        self.0.iter().filter(|(_, s)| s.overdue <= now).map(|(address, s)| (*address, *s)).collect()
    }
}

impl Network {
    /// Replaces an invitation's key by the client's own. The sender's address, which WireGuard ties to the
    /// invitation's key, says whose it is, which is returned. The same key again, from one that did not hear the
    /// answer, is answered again. Blocks.
    ///
    /// # Errors
    /// If nobody with this address is invited, or not any more.
    pub fn join(self: &Arc<Self>, source: Ipv6Addr, join: &Join) -> Result<FunctionName, ApiError> {
        let new = public_key(join)?;
        let _writer = self.writer();
        let known = self.known().at(source).cloned();
        let Stored { mut record, version } =
            known.ok_or_else(|| ApiError::Forbidden(format!("{source} is no peer's address")))?;
        match record.invited_until {
            None if record.public_key == new.to_string() => return Ok(record.name),
            None => return Err(ApiError::Forbidden(format!("'{}' has joined already", record.name))),
            Some(until) if until < Timestamp::now() => {
                return Err(ApiError::Forbidden(format!("the invitation for '{}' expired", record.name)));
            }
            Some(_) => {}
        }
        record.invited_until = None;
        let name = self.replace_key(record, version, new, true)?;
        tracing::info!(peer = %name, %source, "joined");
        Ok(name)
    }

    /// Gives a peer that has joined another key, which it has made. WireGuard has tied its address to the key that it has:
    /// whoever holds that may replace it. The key that is on record already, from one that did not hear the answer, is
    /// answered again. Returns whose it is. Blocks.
    ///
    /// # Errors
    /// If nobody with this address has joined, or another key of the peer's is on its way.
    pub fn rotate(self: &Arc<Self>, source: Ipv6Addr, join: &Join) -> Result<FunctionName, ApiError> {
        let new = public_key(join)?;
        let _writer = self.writer();
        let known = self.known().at(source).filter(|peer| peer.record.invited_until.is_none()).cloned();
        let Stored { record, version } =
            known.ok_or_else(|| ApiError::Forbidden(format!("no peer has joined from {source}")))?;
        if record.public_key == new.to_string() {
            return Ok(record.name);
        }
        // An invitation's key has the address for a moment after it was redeemed. It is good for nothing more.
        let current = record.public_key.parse().map_err(|_| ApiError::invalid("the record is damaged"))?;
        let status = self.lock().interface.peer(current).map_err(|e| ApiError::failed(&e))?;
        let own = AllowedIp::host(source);
        if !status.is_some_and(|status| status.allowed_ips.contains(&own)) {
            return Err(ApiError::conflict("the last change of this peer's key is not done yet; try again"));
        }
        let name = self.replace_key(record, version, new, false)?;
        tracing::info!(peer = %name, %source, "has another key");
        Ok(name)
    }

    /// Puts another key of a peer's on record, and has it take over the address.
    fn replace_key(
        self: &Arc<Self>,
        mut record: PeerRecord,
        version: u64,
        new: PublicKey,
        is_join: bool,
    ) -> Result<FunctionName, ApiError> {
        let former: PublicKey =
            record.public_key.parse().map_err(|_| ApiError::invalid("the record is damaged"))?;
        let is_taken = |known: &PeerRecord| known.public_key == new.to_string();
        if new == self.key.public() || self.known().iter().any(is_taken) {
            return Err(ApiError::invalid("`public_key` is somebody's already; make another"));
        }
        record.public_key = new.to_string();
        let (address, now) = (record.address, Instant::now());
        // Before the record says that it has joined.
        let switch = Switch { former, new, is_join, overdue: now + DEADLINE + GRACE };
        self.switches().begin(address, switch);
        if let Err(error) = self.put(record.clone(), Expect::Version(version)) {
            // Nothing has changed.
            self.switches().end(address);
            return Err(match error {
                StoreError::Conflict { .. } => ApiError::Forbidden("the key was just replaced".to_owned()),
                e => ApiError::failed(&e),
            });
        }
        self.names.publish_peer(&record.name, address);
        // Known already, though without the address, so that the client's first handshake finds it.
        let known_only =
            PeerConfig { public_key: new, allowed_ips: Vec::new(), endpoint: None, keepalive_s: None };
        if let Err(error) = self.lock().interface.set_peer(known_only) {
            // On record it is the peer's key: what is left to do is done as soon as the tunnel takes changes again.
            self.switches().hurry(address, now);
            return Err(ApiError::failed(&error));
        }
        let network = Arc::clone(self);
        tokio::task::spawn_blocking(move || {
            if let Err(error) = network.see_through(address, &switch, now + DEADLINE) {
                tracing::warn!(%error, "a peer's new key waits for the tunnel to be looked after");
            }
        });
        Ok(record.name)
    }

    /// Gives a peer's address to its new key, once the new key has shown itself: then the peer has had its answer.
    fn see_through(
        &self,
        address: Ipv6Addr,
        switch: &Switch,
        deadline: Instant,
    ) -> Result<(), tunnel::Error> {
        let met = |peer: PeerStatus| peer.last_handshake.is_some();
        let mut pause = INTERVAL;
        while Instant::now() < deadline
            && self.is_under_way(address, switch)
            && !self.lock().interface.peer(switch.new)?.is_some_and(met)
        {
            std::thread::sleep(pause);
            pause = INTERVAL_MAX.min(pause * 2);
        }
        self.finish(address, switch)
    }

    fn is_under_way(&self, address: Ipv6Addr, switch: &Switch) -> bool {
        self.switches().0.get(&address).is_some_and(|now| now.new == switch.new)
    }

    /// Gives a peer's address to its new key.
    fn finish(&self, address: Ipv6Addr, switch: &Switch) -> Result<(), tunnel::Error> {
        let _writer = self.writer();
        if !self.is_under_way(address, switch) {
            // Revoked meanwhile, or the tunnel was made anew, with its peers as they are on record.
            return Ok(());
        }
        let is_still = |peer: &&Stored<PeerRecord>| peer.record.public_key == switch.new.to_string();
        let Some(record) = self.known().at(address).filter(is_still).map(|peer| peer.record.clone()) else {
            self.switches().end(address);
            let both = [PeerChange::Remove(switch.former), PeerChange::Remove(switch.new)];
            return self.lock().interface.update(&both);
        };
        let changes = [PeerChange::Remove(switch.former), PeerChange::Set(config(&record, switch.new))];
        let mut up = self.lock();
        // Where the new key's packets come from, should the tunnel have to be brought up before it is next looked at:
        // without an endpoint only the client could begin, and it would wait for 15 s of silence.
        if let Some(peer) = up.interface.peer(switch.new)? {
            up.seen.note(peer);
        }
        up.interface.update(&changes)?;
        drop(up);
        self.let_in(&record);
        Ok(())
    }

    /// Finishes what should have been finished: the tunnel did not take the change, or whoever waited for it failed.
    pub(super) fn finish_overdue(&self, now: Instant) {
        let overdue = self.switches().overdue(now);
        for (address, switch) in overdue {
            if let Err(error) = self.finish(address, &switch) {
                tracing::warn!(%error, %address, "a peer's former key still has its address");
            }
        }
    }

    /// A peer's address is its own key's alone by now.
    pub(super) fn let_in(&self, record: &PeerRecord) {
        if self.switches().end(record.address).is_some_and(|switch| switch.is_join) {
            self.access.show_peer(record);
        }
    }
}

fn public_key(join: &Join) -> Result<PublicKey, ApiError> {
    let invalid = |_| ApiError::invalid("`public_key` is no WireGuard key: 32 bytes in base64");
    join.public_key.parse().map_err(invalid)
}
