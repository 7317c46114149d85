//! `faas vpn export`

use clap::Args;
use jiff::Timestamp;

use super::hand_over::HandOver;
use crate::api::types;
use crate::cli::{Context, Exit, Failure};
use crate::core::access::Role;
use crate::core::invitation::Invitation;
use crate::core::name::FunctionName;

/// The server takes none without; a configuration does not expire.
const EXPIRES_MS: u64 = 60_000;

/// Make a plain WireGuard configuration, for a phone or a system without faas
///
/// The private key is made by the server, and is in the configuration: whoever sees it can be this machine. Where faas can
/// be installed, `faas vpn invite` is better: there the key is made by the machine and never leaves it.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  faas vpn export phone --qr                      for WireGuard's app
  faas vpn export router --out faas.conf          for wg-quick and others
  faas vpn export router --no-dns                 without name resolution")]
pub struct Export {
    /// The machine's name
    name: FunctionName,
    /// Where the machine reaches this server [default: the daemon's setting]
    #[arg(long, value_name = "HOST:PORT")]
    endpoint: Option<String>,
    /// What the machine may do: user (call functions), or admin (all that root may on the server, with `faas`)
    #[arg(long, value_name = "ROLE", default_value = "user")]
    role: Role,
    /// Leave the machine's name resolution alone: with it, most systems ask the server for all names
    #[arg(long)]
    no_dns: bool,
    #[command(flatten)]
    hand_over: HandOver,
}

impl Export {
    pub async fn run(self, context: &Context) -> Result<(), Failure> {
        let place = self.hand_over.open()?;
        let invite = types::Invite {
            name: self.name,
            expires_in_ms: EXPIRES_MS,
            endpoint: self.endpoint,
            role: self.role,
            plain: true,
        };
        let invited = context.client.invite(&invite).await?;
        let invitation = Invitation::decode(&invited.invitation, Timestamp::now())
            .map_err(|e| Failure::new(Exit::Data, e.to_string()))?;
        let remedy = format!("`faas vpn revoke {}`, and try again", invited.name);
        place.give(context, &configuration(&invitation, self.no_dns), &remedy)?;
        context.ui.note(&format!(
            "{} is {}. Its private key was made on the server: keep this to that machine, and let `faas vpn revoke {}` \
             follow if it gets into other hands",
            invited.name, invited.address, invited.name
        ));
        Ok(())
    }
}

/// As wg-quick and WireGuard's apps read it.
fn configuration(invitation: &Invitation, no_dns: bool) -> String {
    let Invitation { name, address, private_key, server_public_key, endpoint, server, .. } = invitation;
    let dns = if no_dns { String::new() } else { format!("DNS = {server}\n") };
    format!(
        "# {name}, a peer of faasd. Its private key was made on the server.\n\
         [Interface]\n\
         PrivateKey = {private_key}\n\
         Address = {address}/128\n\
         {dns}\
         MTU = {mtu}\n\
         \n\
         [Peer]\n\
         PublicKey = {server_public_key}\n\
         Endpoint = {endpoint}\n\
         AllowedIPs = {vpn}, {functions}\n\
         PersistentKeepalive = 25\n",
        mtu = crate::tunnel::MTU_BYTES,
        vpn = invitation.vpn_prefix,
        functions = invitation.function_prefix,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::address::{FUNCTION_PREFIX, VPN_PREFIX};

    #[test]
    fn it_has_all_that_wireguard_needs() {
        let invitation = Invitation {
            v: 1,
            name: "phone".into(),
            address: VPN_PREFIX.host(2),
            private_key: "cGyVmbKuhz+/rrqTfnXVn1zVaaHdRPYhdtCVdBEAl2Y=".into(),
            server_public_key: "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=".into(),
            endpoint: "[2001:db8::1]:51820".into(),
            server: VPN_PREFIX.server(),
            vpn_prefix: VPN_PREFIX,
            function_prefix: FUNCTION_PREFIX,
            http_port: 9464,
            expires_at: Timestamp::MAX,
        };
        let text = configuration(&invitation, false);
        assert!(text.contains("AllowedIPs = fd00:faa5:0:100::/64, fd00:faa5:0:200::/64\n"), "{text}");
        assert!(text.contains("DNS = fd00:faa5:0:100::1\n") && text.contains("made on the server"), "{text}");
        assert!(!configuration(&invitation, true).contains("DNS"));
    }
}
