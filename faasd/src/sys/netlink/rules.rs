//! By which interfaces packets may come into a namespace at all: by rules of routing, which every packet meets that
//! the kernel does not recognise as the next one of a connection from the same interface. So they cost an open
//! connection nothing, and hold for interfaces that are not there yet.

use std::io;
use std::net::Ipv6Addr;

use futures_util::TryStreamExt;
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use rtnetlink::{Handle, IpVersion, RuleAddRequest};

use super::{Netlink, NetlinkError, RT_TABLE_LOCAL, done_already, io_error};

/// The rules' places: the first that applies counts. The kernel's own for its main table is the 32,766th.
const OURS_BY_TUNNEL: u32 = 1;
const LOOPBACK: u32 = 2;
const TUNNEL: u32 = 3;
const ANY_OTHER: u32 = 4;
const LOCAL: u32 = 5;

impl Netlink<'_> {
    /// Has the namespace refuse what comes in by any other interface than loopback and `tunnel`, and by the tunnel what
    /// claims to be from one of `ours`, prefixes with their length, whatever it is: the kernel counts it as
    /// `Ip6InNoRoutes` and answers that it is prohibited. `tunnel` need not be there yet.
    ///
    /// # Errors
    /// `EOPNOTSUPP` on a kernel without `CONFIG_IPV6_MULTIPLE_TABLES`, and those of the netlink request.
    pub fn admit_only_by(&self, tunnel: &str, ours: &[(Ipv6Addr, u8)]) -> Result<(), NetlinkError> {
        self.run(
            || format!("refuse what comes in by other interfaces than {tunnel}"),
            async |handle| {
                let rule = |place| handle.rule().add().v6().priority(place);
                // What the others go on to comes first. Until the last one, the kernel's own rule decides as before.
                add(rule(LOCAL).action(RuleAction::ToTable).table_id(u32::from(RT_TABLE_LOCAL))).await?;
                for (place, interface) in [(LOOPBACK, "lo"), (TUNNEL, tunnel)] {
                    let mut goes_on = rule(place).input_interface(interface).action(RuleAction::Goto);
                    goes_on.message_mut().attributes.push(RuleAttribute::Goto(LOCAL));
                    add(goes_on).await?;
                }
                let refuse = |place| rule(place).action(RuleAction::Prohibit);
                for (prefix, bits) in ours {
                    add(refuse(OURS_BY_TUNNEL).input_interface(tunnel).source_prefix(*prefix, *bits)).await?;
                }
                add(refuse(ANY_OTHER)).await?;
                let Some(first) = first_rule(handle).await? else { return Ok(()) };
                handle.rule().del(first).execute().await.map_err(io_error)
            },
        )
    }
}

async fn add<T>(request: RuleAddRequest<T>) -> io::Result<()> {
    done_already(request.execute().await)
}

/// The rule that a namespace begins with, before all others: the local table, for whatever comes by whatever way.
async fn first_rule(handle: &Handle) -> io::Result<Option<RuleMessage>> {
    let rules: Vec<_> = handle.rule().get(IpVersion::V6).execute().try_collect().await.map_err(io_error)?;
    let place = |rule: &RuleMessage| {
        rule.attributes.iter().find_map(|a| if let RuleAttribute::Priority(n) = a { Some(*n) } else { None })
    };
    // The kernel leaves out a 0.
    Ok(rules.into_iter().find(|rule| place(rule).unwrap_or(0) == 0))
}
