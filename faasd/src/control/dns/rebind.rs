//! Upstreams' answers that point into our own network are not passed on.
//!
//! A page from `evil.example` may talk to `evil.example`; if its owner lets that name point to a function's address, the
//! page talks to the function, by the browser of a peer that may reach it. Only our own zones name our addresses.

use hickory_proto::op::Message;
use hickory_proto::rr::rdata::svcb::{SVCB, SvcParamValue};
use hickory_proto::rr::{Name, RData};

use crate::core::zone::{Labels, Zone};

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
        _ => false,
    }
}

fn is_ours(name: &Name, zone: &Zone) -> bool {
    let mut labels = Labels::default();
    name.iter().try_for_each(|label| labels.push(label)).is_some() && zone.find(&labels).is_some()
}
