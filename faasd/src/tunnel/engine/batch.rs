//! Packets to one peer that leave as one message.

use std::net::{Ipv6Addr, SocketAddr};

/// Packets in one message: the kernel's own limit, before Linux 6.9 raised it.
pub(super) const SEGMENTS_MAX: usize = 64;

/// Bytes in one message; the kernel's limit counts its headers.
const MESSAGE_BYTES_MAX: usize = 65_000;

/// Packets of one length, but for the last, which may be shorter, one behind the other.
#[derive(Clone, Debug)]
pub(in crate::tunnel) struct Batch {
    destination: SocketAddr,
    bytes: Vec<u8>,
    segment_bytes: usize,
    packets: usize,
}

impl Default for Batch {
    fn default() -> Self {
        let destination = (Ipv6Addr::UNSPECIFIED, 0).into();
        Self { destination, bytes: Vec::with_capacity(MESSAGE_BYTES_MAX), segment_bytes: 0, packets: 0 }
    }
}

impl Batch {
    /// Whether a packet of so many bytes can leave with the others.
    pub(super) fn takes(&self, bytes: usize, destination: SocketAddr) -> bool {
        self.packets == 0
            || (self.packets < SEGMENTS_MAX
                && bytes <= self.segment_bytes
                && self.bytes.len() == self.packets * self.segment_bytes
                && self.bytes.len() + bytes <= MESSAGE_BYTES_MAX
                && destination == self.destination)
    }

    /// Appends a packet that [`Batch::takes`] allows.
    pub(super) fn push(&mut self, packet: &[u8], destination: SocketAddr) {
        if self.packets == 0 {
            self.destination = destination;
            self.segment_bytes = packet.len();
        }
        self.bytes.extend_from_slice(packet);
        self.packets += 1;
    }

    pub(super) fn clear(&mut self) {
        self.bytes.clear();
        self.packets = 0;
    }

    pub(super) fn is_empty(&self) -> bool {
        self.packets == 0
    }

    pub(super) fn packets(&self) -> usize {
        self.packets
    }

    pub(super) fn destination(&self) -> SocketAddr {
        self.destination
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The length of all packets but the last, if there are several.
    pub(super) fn cut(&self) -> Option<u16> {
        (self.packets > 1).then(|| u16::try_from(self.segment_bytes).unwrap_or(u16::MAX))
    }

    /// The packets one by one.
    pub(super) fn iter(&self) -> impl Iterator<Item = &[u8]> {
        self.bytes.chunks(self.segment_bytes.max(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many of the packets, from the first, leave as one.
    fn run(lengths: &[usize]) -> usize {
        let to = SocketAddr::from(([127, 0, 0, 1], 9));
        let mut batch = Batch::default();
        for length in lengths {
            if !batch.takes(*length, to) {
                break;
            }
            batch.push(&vec![1; *length], to);
        }
        assert!(!batch.takes(1, ([127, 0, 0, 1], 10).into()));
        assert_eq!(batch.iter().map(<[u8]>::len).collect::<Vec<_>>(), lengths[..batch.packets()]);
        batch.packets()
    }

    #[test]
    fn a_run_is_of_one_length_but_for_its_last() {
        assert_eq!(run(&[100]), 1);
        assert_eq!(run(&[100, 100, 50, 100]), 3);
        assert_eq!(run(&[100, 100, 50, 50]), 3);
        assert_eq!(run(&[100, 200]), 1);
        assert_eq!(run(&[10; 200]), SEGMENTS_MAX);
        assert_eq!(run(&[1452; 60]), MESSAGE_BYTES_MAX / 1452);
    }
}
