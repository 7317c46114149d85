//! What a tunnel drops without a word, as WireGuard has it: nobody is told, so it is counted.

/// Why a packet went no further.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// From outside: no message of WireGuard's.
    Malformed,
    /// From outside: a handshake for another key, or one that fails to authenticate.
    Handshake,
    /// From outside: a handshake with a key that is no peer's, such as one that was revoked.
    UnknownPeer,
    /// From outside: a handshake that was recorded and sent again.
    ReplayedHandshake,
    /// From outside: handshakes came too fast, from there or in all; who sent it was told to prove its address.
    Overload,
    /// From outside: for a session that there is not, or no more.
    UnknownSession,
    /// From outside: data that fails to authenticate.
    Forged,
    /// From outside: data that was recorded and sent again.
    Replayed,
    /// From a peer: no IP packet.
    NoPacket,
    /// From a peer: from an address that is not the peer's.
    Source,
    /// To a peer: an address that is nobody's.
    NoPeer,
    /// To a peer: nobody knows where it is.
    NoEndpoint,
    /// To a peer: the network did not take it.
    Network,
    /// From a peer: the interface did not take it, as when it is set down.
    Interface,
}

impl Reason {
    pub const ALL: [Self; 14] = [
        Self::Malformed,
        Self::Handshake,
        Self::UnknownPeer,
        Self::ReplayedHandshake,
        Self::Overload,
        Self::UnknownSession,
        Self::Forged,
        Self::Replayed,
        Self::NoPacket,
        Self::Source,
        Self::NoPeer,
        Self::NoEndpoint,
        Self::Network,
        Self::Interface,
    ];

    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::Handshake => "handshake",
            Self::UnknownPeer => "unknown_peer",
            Self::ReplayedHandshake => "replayed_handshake",
            Self::Overload => "overload",
            Self::UnknownSession => "unknown_session",
            Self::Forged => "forged",
            Self::Replayed => "replayed",
            Self::NoPacket => "no_packet",
            Self::Source => "source",
            Self::NoPeer => "no_peer",
            Self::NoEndpoint => "no_endpoint",
            Self::Network => "network",
            Self::Interface => "interface",
        }
    }
}

/// Packets dropped since the tunnel began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Dropped([u64; Reason::ALL.len()]);

impl Dropped {
    pub fn add(&mut self, reason: Reason, packets: u64) {
        if let Some(count) = self.0.get_mut(reason as usize) {
            *count += packets;
        }
    }

    #[must_use]
    pub fn get(&self, reason: Reason) -> u64 {
        self.0.get(reason as usize).copied().unwrap_or_default()
    }

    /// All of them, also those that are zero.
    pub fn iter(&self) -> impl Iterator<Item = (Reason, u64)> {
        Reason::ALL.into_iter().zip(self.0)
    }
}
