//! Who may call what, with several clients: rules, groups, defaults, what becomes of open connections, and roles. All of
//! it with real tunnels, and with daemons that die.

mod cut;
mod maps;
mod restart;
mod roles;
mod rules;
mod scale;

use std::io::ErrorKind;
use std::net::Ipv6Addr;

use anyhow::{Result, ensure};
use faasd_tests::{Bed, Client, alone, get, run, shared};

fn main() {
    run(vec![
        shared("only_who_may_gets_through", rules::single),
        shared("a_group_counts_at_once", rules::groups),
        shared("a_closed_default_lets_in_who_is_allowed", rules::closed),
        shared("rules_last_as_long_as_the_function", rules::lifetime),
        shared("what_is_wrong_is_said_with_a_remedy", rules::mistakes),
        shared("a_denial_cuts_what_is_open", cut::denied),
        shared("closing_cuts_whom_nothing_allows", cut::closed),
        shared("a_revoked_peer_is_cut_at_once", cut::revoked),
        shared("the_policy_holds_without_a_daemon", restart::killed),
        shared("a_start_repairs_what_a_kill_cut_short", restart::repaired),
        shared("maps_that_somebody_writes_into_are_put_right", maps::put_right),
        shared("a_connection_passed_on_is_subject_to_policy", maps::passed_on),
        alone("ten_thousand_peers_cost_no_more_than_ten", scale::flat),
        shared("users_do_not_get_at_the_api", roles::users),
        shared("an_admin_does_everything_from_afar", roles::admins),
    ])
}

/// A bed with two clients that have joined: `client` and `other`.
fn two() -> Result<Bed> {
    let mut bed = Bed::joined()?;
    let number = bed.add_client()?;
    bed.join_as(number, "other", &[])?;
    Ok(bed)
}

/// Deploys a server that accepts by itself: no process of ours has a part in its connections.
fn deploy_server(bed: &Bed, name: &str) -> Result<()> {
    let server = "contract = \"port\"\ncommand = [\"python3\", \"-m\", \"http.server\", \"--protocol\", \
                  \"HTTP/1.1\", \"--bind\", \"::\", \"8080\"]\n";
    bed.deploy(name, &[("index.html", b"hello"), ("faas.toml", server.as_bytes())])?.ok().map(drop)
}

/// Fails unless the function answers.
fn served(client: &Client<'_>, address: Ipv6Addr) -> Result<()> {
    let (status, _) = get(&mut client.connect(address, 80)?, "/")?;
    ensure!(status == 200, "status {status}");
    Ok(())
}

/// Fails unless the connection is refused: by an answer, not by silence.
fn refused(client: &Client<'_>, address: Ipv6Addr) -> Result<()> {
    match client.connect(address, 80) {
        Err(e) if e.kind() == ErrorKind::ConnectionRefused => Ok(()),
        other => anyhow::bail!("not refused: {other:?}"),
    }
}
