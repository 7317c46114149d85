//! A connection that one function passes on to another.

use faasd_sdk::wire::FORWARDED;
use rustix::net::sockopt;

use super::*;
use crate::core::spec::Lane;

/// Why a connection is not passed on.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error("it is none that this function was given, or it was passed on before")]
    NotIts,
    #[error("`forward` in its declaration does not name that function")]
    NotDeclared,
    #[error("there is no such function")]
    Unknown,
    #[error("the policy does not let its caller reach that function")]
    Denied,
    #[error("that function accepts its connections itself, and takes none from others")]
    Warm,
    #[error(transparent)]
    Kernel(#[from] BpfError),
}

impl Owner {
    /// Gives a connection to another function as if it had been dialled. The socket's own mark says whose it is: a
    /// function can pass on what it was given, once, and nothing else. Who dialled is looked up anew, so that no
    /// function's word is passed on for it, and may come no further than by dialling the other function.
    pub(super) fn forward(&mut self, key: u32, to: &FunctionName, record: Record, connection: OwnedFd) {
        let Some(from) = self.by_key.get(&key).cloned() else { return };
        let caller = self.parts.callers.of(&connection);
        match self.may_forward(&from, key, to, &connection, caller.address) {
            Ok(slot) => {
                let record = Record { flags: record.flags | FORWARDED, attempt: 0, ..record };
                self.tell(Command::Adopt { slot, arrival: Arrival { record, caller }, connection });
            }
            Err(why) => {
                tracing::warn!(function = %from, %to, %why, "a connection was not passed on");
                if let Some(entry) = self.functions.get_mut(&from) {
                    entry.lives.kept_back += 1;
                }
                // So that the client knows at once that nobody will answer.
                let _ = sockopt::set_socket_linger(&connection, Some(Duration::ZERO));
            }
        }
    }

    fn may_forward(
        &mut self,
        from: &FunctionName,
        key: u32,
        to: &FunctionName,
        connection: &OwnedFd,
        caller: Ipv6Addr,
    ) -> Result<u32, Refusal> {
        let sender = self.functions.get(from).ok_or(Refusal::NotIts)?;
        if self.parts.kernel.owner_of(connection)?.map(|mark| mark.slot) != Some(sender.slot) {
            return Err(Refusal::NotIts);
        }
        // By the declaration of the instance's own revision, which need not be one that serves.
        let revision = sender.live.get(&key).and_then(|live| sender.revisions.get(&live.revision));
        if !revision.is_some_and(|record| record.spec.forward.contains(to)) {
            return Err(Refusal::NotDeclared);
        }
        let target = self.functions.get(to).ok_or(Refusal::Unknown)?;
        // The kernel program has looked at the function that was dialled alone. What the server itself dials is not subject
        // to rules.
        if caller != self.parts.config.vpn_prefix.server() && !self.parts.access.lets_in(caller, to) {
            return Err(Refusal::Denied);
        }
        // As the kernel program would choose, but without chance: the largest share.
        let largest = target.branches.iter().max_by_key(|(number, branch)| (branch.weight, **number));
        let (number, branch) = largest.ok_or(Refusal::Unknown)?;
        let record = target.revisions.get(number).ok_or(Refusal::Unknown)?;
        if record.spec.lane() == Lane::Warm {
            return Err(Refusal::Warm);
        }
        let (owner, slot) = (target.slot, branch.slot);
        self.parts.kernel.mark(owner, connection)?;
        Ok(slot)
    }
}
