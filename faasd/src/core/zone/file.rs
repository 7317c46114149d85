//! Zones as master files (RFC 1035, 5), for other servers.

use std::io::{self, Write};

use super::{Data, EXPIRE_SECONDS, Origin, REFRESH_SECONDS, RETRY_SECONDS, Record, ZONE, Zone, origin_name};

/// The first line of each file.
pub const BANNER: &str = "; Written by faasd whenever a name changes. Edits are lost.";

/// Writes a zone, record by record: the same bytes for the same zone.
///
/// # Errors
/// Those of `to`.
pub fn write_zone_file(zone: &Zone, origin: Origin, to: &mut impl Write) -> io::Result<()> {
    let settings = zone.settings();
    let (ttl, negative_ttl) = (settings.ttl_seconds, settings.negative_ttl_seconds);
    let (name, serial) = (origin_name(origin, settings), zone.serial());
    write!(
        to,
        "{BANNER}\n\
         $ORIGIN {name}.\n\
         $TTL {ttl}\n\
         @ {negative_ttl} IN SOA ns.{ZONE}. admin.{ZONE}. (\n\
         \t{serial} ; serial\n\
         \t{REFRESH_SECONDS} ; refresh\n\
         \t{RETRY_SECONDS} ; retry\n\
         \t{EXPIRE_SECONDS} ; expire\n\
         \t{negative_ttl} ; minimum: the TTL of negative answers\n\
         )\n\
         @ IN NS ns.{ZONE}.\n",
    )?;
    for Record { name, data } in zone.records(origin) {
        match data {
            Data::Aaaa(address) => writeln!(to, "{name} IN AAAA {address}")?,
            Data::Cname(target) => writeln!(to, "{name} IN CNAME {target}")?,
            Data::Ptr(target) => writeln!(to, "{name} IN PTR {target}")?,
            Data::Srv(port, target) => writeln!(to, "{name} IN SRV 0 0 {port} {target}")?,
        }
    }
    Ok(())
}
