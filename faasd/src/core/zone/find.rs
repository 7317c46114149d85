//! What a name has.

use std::net::Ipv6Addr;

use super::{FunctionNames, Origin, PEERS_LABEL, SERVER_LABEL, ZONE, Zone};

/// The longest name on the wire, in bytes (RFC 1035, 2.3.4), and so the most labels: each takes two.
pub(super) const NAME_BYTES_MAX: usize = 255;
const LABELS_MAX: usize = NAME_BYTES_MAX / 2;

/// Labels of a reverse zone: sixteen digits, `ip6` and `arpa`.
const REVERSE_LABELS: usize = 18;
/// Digits below a reverse zone.
const HOST_DIGITS: usize = 16;

/// A name's labels in lower case, in the order they are written.
#[derive(Clone, Copy)]
pub struct Labels {
    bytes: [u8; NAME_BYTES_MAX],
    /// Where each label begins, and where the last one ends.
    starts: [u8; LABELS_MAX + 1],
    count: usize,
}

impl std::fmt::Debug for Labels {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.iter().map(<[u8]>::escape_ascii)).finish()
    }
}

impl Default for Labels {
    fn default() -> Self {
        Self { bytes: [0; NAME_BYTES_MAX], starts: [0; LABELS_MAX + 1], count: 0 }
    }
}

impl Labels {
    /// Adds a label behind the others; `None` if the name became too long.
    pub fn push(&mut self, label: &[u8]) -> Option<()> {
        let start = usize::from(self.starts[self.count]);
        let end = start + label.len();
        // On the wire each label has a byte before it, and the root one of its own.
        if end + self.count + 2 > NAME_BYTES_MAX || label.is_empty() || label.len() > 63 {
            return None;
        }
        let place = self.bytes.get_mut(start..end)?;
        place.copy_from_slice(label);
        place.make_ascii_lowercase();
        *self.starts.get_mut(self.count + 1)? = u8::try_from(end).ok()?;
        self.count += 1;
        Some(())
    }

    /// Of the name as it is written, without regard to escapes.
    #[must_use]
    pub fn of(name: &str) -> Option<Self> {
        let mut labels = Self::default();
        name.split('.')
            .filter(|label| !label.is_empty())
            .try_for_each(|label| labels.push(label.as_bytes()))?;
        Some(labels)
    }

    #[must_use]
    pub const fn len(&self) -> usize {
        self.count
    }

    /// Whether this is the root.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.count == 0
    }

    fn get(&self, i: usize) -> &[u8] {
        &self.bytes[usize::from(self.starts[i])..usize::from(self.starts[i + 1])]
    }

    pub fn iter(&self) -> impl Iterator<Item = &[u8]> {
        (0..self.count).map(|i| self.get(i))
    }

    /// So many bytes of the name on the wire stand before its label `i`.
    pub(super) fn wire_offset(&self, i: usize) -> usize {
        usize::from(self.starts[i]) + i
    }
}

/// What stands at a name within one of the zones.
#[derive(Clone, Copy, Debug)]
pub enum Found<'z> {
    Apex,
    /// `ns.faas.`
    Server,
    Function(&'z FunctionNames),
    /// `vN.NAME.faas.`
    Revision(Ipv6Addr),
    /// `ALIAS.NAME.faas.`: the revision's number and address.
    Alias(u64, Ipv6Addr),
    /// `_http._tcp.NAME.faas.`: the function and its port.
    Service(&'z FunctionNames, u16),
    /// `NAME.peers.faas.`
    Peer(Ipv6Addr),
    /// The address of the server.
    ToServer,
    ToPeer(&'z str),
    /// The address of a function, or of one of its revisions.
    ToFunction(&'z FunctionNames, Option<u64>),
    /// Nothing, but there are names below it: it exists (RFC 8020).
    Empty,
    Missing,
}

impl Zone {
    /// In which zone a name is, how many of its labels are below that zone's apex, and what stands there. `None` if it
    /// is in none of ours.
    #[must_use]
    pub fn find(&self, name: &Labels) -> Option<(Origin, usize, Found<'_>)> {
        let last = name.count.checked_sub(1)?;
        if name.get(last) == ZONE.as_bytes() {
            return Some((Origin::Names, last, self.find_name(name, last)));
        }
        if name.get(last) != b"arpa" {
            return None;
        }
        let below = name.count.checked_sub(REVERSE_LABELS)?;
        if name.get(last - 1) != b"ip6" {
            return None;
        }
        let network = digits(name, below..below + HOST_DIGITS)?;
        let is_of = |prefix: super::Prefix| prefix.network().to_bits() >> 64 == u128::from(network);
        if is_of(self.settings.functions) {
            Some((Origin::Functions, below, self.find_function_address(name, below)))
        } else if is_of(self.settings.vpn) {
            Some((Origin::Peers, below, self.find_peer_address(name, below)))
        } else {
            None
        }
    }

    fn find_name(&self, name: &Labels, below: usize) -> Found<'_> {
        let Some(last) = below.checked_sub(1) else { return Found::Apex };
        // No name of ours has other bytes than these.
        let Ok(label) = std::str::from_utf8(name.get(last)) else { return Found::Missing };
        match label {
            SERVER_LABEL if last == 0 => return Found::Server,
            PEERS_LABEL => return self.find_peer(name, last),
            _ => {}
        }
        let Some(function) = self.functions.get(label) else { return Found::Missing };
        match (last, function.port) {
            (0, _) => Found::Function(function),
            (1, Some(_)) if name.get(0) == b"_tcp" => Found::Empty,
            (2, Some(port)) if name.get(1) == b"_tcp" && name.get(0) == b"_http" => {
                Found::Service(function, port)
            }
            (1, _) => find_revision(function, name.get(0)),
            _ => Found::Missing,
        }
    }

    fn find_peer(&self, name: &Labels, below: usize) -> Found<'_> {
        match below {
            0 if self.peers.is_empty() => Found::Missing,
            0 => Found::Empty,
            1 => std::str::from_utf8(name.get(0))
                .ok()
                .and_then(|label| self.peers.get(label))
                .map_or(Found::Missing, |address| Found::Peer(*address)),
            _ => Found::Missing,
        }
    }

    fn find_function_address(&self, name: &Labels, below: usize) -> Found<'_> {
        let Some((hosts, is_whole)) = hosts(name, below) else { return Found::Missing };
        let mut range = self.owners.range(hosts);
        match range.next() {
            Some((_, owner)) if is_whole && below > 0 => Found::ToFunction(&owner.function, owner.revision),
            _ if below == 0 => Found::Apex,
            Some(_) => Found::Empty,
            None => Found::Missing,
        }
    }

    fn find_peer_address(&self, name: &Labels, below: usize) -> Found<'_> {
        let Some((hosts, is_whole)) = hosts(name, below) else { return Found::Missing };
        let server = super::host(self.settings.vpn.server());
        match self.peers_by_host.range(hosts.clone()).next() {
            _ if below == 0 => Found::Apex,
            _ if is_whole && hosts.contains(&server) => Found::ToServer,
            Some((_, peer)) if is_whole => Found::ToPeer(peer),
            None if !hosts.contains(&server) => Found::Missing,
            _ => Found::Empty,
        }
    }
}

fn find_revision<'z>(function: &FunctionNames, label: &[u8]) -> Found<'z> {
    let text = std::str::from_utf8(label).unwrap_or_default();
    if let Some(digits) = text.strip_prefix('v')
        // `v03` is no name, and `v+3` neither.
        && digits.bytes().all(|byte| byte.is_ascii_digit())
        && !digits.starts_with('0')
        && let Ok(number) = digits.parse()
        && let Some(address) = function.revisions.get(&number)
    {
        return Found::Revision(*address);
    }
    let alias = function.aliases().find(|(alias, ..)| alias.as_str() == text);
    alias.map_or(Found::Missing, |(_, number, address)| Found::Alias(number, address))
}

/// The hosts whose names in a reverse zone end in these labels, and whether that is one alone.
fn hosts(name: &Labels, below: usize) -> Option<(std::ops::RangeInclusive<u64>, bool)> {
    let unknown = HOST_DIGITS.checked_sub(below)? as u32 * 4;
    let known = digits(name, 0..below)?;
    let first = known.checked_shl(unknown).unwrap_or(0);
    let last = first | u64::MAX.checked_shr(64 - unknown).unwrap_or(0);
    Some((first..=last, unknown == 0))
}

/// Labels of one hexadecimal digit each, the last label being the most significant.
fn digits(name: &Labels, range: std::ops::Range<usize>) -> Option<u64> {
    range.rev().try_fold(0, |number: u64, i| match name.get(i) {
        [digit] => Some(number << 4 | u64::from(char::from(*digit).to_digit(16)?)),
        _ => None,
    })
}
