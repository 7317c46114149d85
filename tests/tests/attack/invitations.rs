//! Invitations that were seen by somebody else, and those that are too old.

use std::time::Duration;

use anyhow::{Result, ensure};
use faasd::core::invitation::Invitation;
use faasd_tests::{Bed, Client, Output, wireguard};
use jiff::Timestamp;

use crate::{events, peer};

fn use_it(client: Client<'_>, invitation: &str) -> Result<Output> {
    client.vpn(&["connect", invitation.trim(), "--wireguard", wireguard::choice()])
}

pub fn once() -> Result<()> {
    let mut bed = Bed::joined()?;
    let thief = bed.add_client()?;
    let endpoint = format!("[fd00:{thief}::1]:51820");
    let invite = |name: &str, more: &[&str]| {
        bed.faas(&[&["vpn", "invite", name, "--endpoint", &endpoint], more].concat())?.ok()
    };

    // Open for as short as one can be. It is looked at below.
    let short = invite("phone", &["--expires", "1m"])?;

    // Used before, and recorded by somebody else.
    let invitation = invite("laptop", &[])?;
    use_it(bed.client_at(thief), &invitation)?.ok()?;
    let joined = peer(&bed, "laptop")?;
    bed.client_at(thief).vpn(&["disconnect"])?.ok()?;
    let count = events(&bed, "peer-joined")?;
    let said = use_it(bed.client_at(thief), &invitation)?.failed()?;
    ensure!(!said.is_empty(), "it says nothing");
    ensure!(peer(&bed, "laptop")?["public_key"] == joined["public_key"], "the key was replaced");
    ensure!(events(&bed, "peer-joined")? == count);

    // Too late: from then on its key is no peer's.
    let mut forged = Invitation::decode(short.trim(), Timestamp::now())?;
    // The server looks once a second.
    let until = forged.expires_at + Duration::from_secs(2);
    while Timestamp::now() < until {
        std::thread::sleep(Duration::from_millis(100));
    }
    let said = use_it(bed.client_at(thief), &short)?.failed()?;
    ensure!(said.contains("expired"), "{said}");
    // That was the client's own judgement. One that is less honest does not get further.
    forged.expires_at = Timestamp::now() + Duration::from_secs(3600);
    let said = use_it(bed.client_at(thief), &forged.encode()?)?.failed()?;
    ensure!(!said.contains("expired"), "{said}");
    ensure!(peer(&bed, "phone")?["invited_until"].is_string(), "it has joined");
    ensure!(events(&bed, "peer-joined")? == count);
    bed.finish()
}
