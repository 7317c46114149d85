//! Upstreams' answers that point into our own network are not passed on.
//!
//! A page from `evil.example` may talk to `evil.example`; if its owner lets that name point to a function's address, the
//! page talks to the function, by the browser of a peer that may reach it. Only our own zones name our addresses.

use hickory_proto::op::Message;
use hickory_proto::rr::rdata::svcb::{SVCB, SvcParamValue};
use hickory_proto::rr::{Name, RData, RecordType};

use crate::core::zone::{Labels, Origin, Zone, origin_name};

/// Removes what points into our network, and returns whether there was any.
pub(super) fn strip(answer: &mut Message, zone: &Zone) -> bool {
    let before = answer.answers.len() + answer.authorities.len() + answer.additionals.len();
    for records in [&mut answer.answers, &mut answer.authorities, &mut answer.additionals] {
        records.retain(|record| !points_inside(&record.data, zone));
    }
    let after = answer.answers.len() + answer.authorities.len() + answer.additionals.len();
    if after < before {
        // What is left is not what was signed.
        answer.metadata.authentic_data = false;
    }
    after < before
}

fn points_inside(data: &RData, zone: &Zone) -> bool {
    let settings = zone.settings();
    let is_inside = |address| settings.vpn.contains(address) || settings.functions.contains(address);
    let is_service_inside = |service: &SVCB| {
        is_ours(&service.target_name, zone)
            || service.svc_params.iter().any(|(_, value)| match value {
                SvcParamValue::Ipv6Hint(hint) => hint.0.iter().any(|address| is_inside(address.0)),
                _ => false,
            })
    };
    match data {
        RData::AAAA(address) => is_inside(address.0),
        // The client would ask for that name next, and take the answer for the first one's.
        RData::CNAME(target) => is_ours(&target.0, zone),
        RData::HTTPS(service) => is_service_inside(&service.0),
        RData::SVCB(service) => is_service_inside(service),
        // hickory does not know it, and passes it on as it came.
        RData::Unknown { code: RecordType::DNAME, rdata } => leads_inside(&rdata.anything, zone),
        _ => false,
    }
}

fn is_ours(name: &Name, zone: &Zone) -> bool {
    let mut labels = Labels::default();
    name.iter().try_for_each(|label| labels.push(label)).is_some() && zone.find(&labels).is_some()
}

/// Whether names below a DNAME become names of ours: its target is one, or above one. A target that is not written plainly
/// (RFC 6672, 2.5 has it uncompressed) would be read out of another message than it was written into.
fn leads_inside(target: &[u8], zone: &Zone) -> bool {
    let Some(target) = plain(target) else { return true };
    let below = |origin| {
        let origin = Labels::of(&origin_name(origin, zone.settings()));
        let skip = |origin: &Labels| origin.len().checked_sub(target.len());
        origin.is_some_and(|origin| {
            skip(&origin).is_some_and(|skip| origin.iter().skip(skip).eq(target.iter()))
        })
    };
    zone.find(&target).is_some() || Origin::ALL.into_iter().any(below)
}

/// The labels of a name on the wire that is all there is.
fn plain(mut wire: &[u8]) -> Option<Labels> {
    let mut labels = Labels::default();
    loop {
        let (len, rest) = wire.split_first()?;
        if *len == 0 {
            return rest.is_empty().then_some(labels);
        }
        let (label, rest) = rest.split_at_checked(usize::from(*len))?;
        // A pointer has a length that no label has.
        labels.push(label)?;
        wire = rest;
    }
}
