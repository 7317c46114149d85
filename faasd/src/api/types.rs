//! Requests and responses, as JSON. Sizes are bytes, times are RFC 3339 in UTC, durations are milliseconds, unless a
//! name says otherwise.
//!
//! | verb and path | request | response |
//! | --- | --- | --- |
//! | `GET /v1/version` | | [`Version`] |
//! | `GET /v1/openapi.json` | | this table in full, as an OpenAPI document |
//! | `GET /v1/functions?limit=N&after=NAME&prefix=P` | | [`Functions`]; the same keys for images and peers |
//! | `POST /v1/images` | a tar archive of the code's directory | [`Image`] |
//! | `GET /v1/images` | | [`Images`]: root images, not code |
//! | `POST /v1/images/import?name=N&fallback=N` | an archive of a root image | [`ImportedImage`] |
//! | `DELETE /v1/images?name=N` | | nothing (204) |
//! | `POST /v1/images/prune?names=true` | | [`Pruned`] |
//! | `GET /v1/images/DIGEST` | | nothing (204), if it is there |
//! | `PUT /v1/functions/NAME` | [`Deploy`] | [`Function`], once an instance is ready |
//! | `GET /v1/functions/NAME` | | [`Function`] |
//! | `GET /v1/functions/NAME/revisions` | | [`Revisions`] |
//! | `PUT /v1/functions/NAME/traffic` | [`Traffic`] | [`Function`], once it is in effect |
//! | `POST /v1/functions/NAME/rollback` | | [`Function`], once it is in effect |
//! | `PUT /v1/functions/NAME/aliases/ALIAS` | [`AliasTarget`] | [`Function`] |
//! | `DELETE /v1/functions/NAME/aliases/ALIAS` | | [`Function`] |
//! | `DELETE /v1/functions/NAME` | | nothing (204), once its instances are gone |
//! | `GET /v1/functions/NAME/logs?lines=N&since=TIME&instance=ID` | | text |
//! | … with `follow=true` | | text, line by line as it comes |
//! | `GET /v1/events?function=NAME&after=ID&since=TIME&limit=N` | | [`Events`] |
//! | … with `follow=true` | | [`EventLine`]s, one a line, as they come |
//! | `GET /v1/usage?prefix=P` | | [`Usage`] |
//! | `ANY /v1/functions/NAME/invoke/PATH` | any HTTP request | the function's own response |
//! | `GET /v1/secrets` | | [`Secrets`] |
//! | `PUT /v1/secrets/NAME` | the secret itself | [`Secret`] |
//! | `DELETE /v1/secrets/NAME?force=true` | | nothing (204) |
//! | `GET /v1/peers` | | [`Peers`] |
//! | `POST /v1/peers` | [`Invite`] | [`Invited`] |
//! | `DELETE /v1/peers/NAME` | | nothing (204) |
//! | `PUT /v1/peers/NAME/role` | [`RoleChange`] | [`Peer`] |
//! | `GET /v1/policy` | | [`Policies`] |
//! | `POST /v1/policy` | [`RuleChange`] | [`Changed`] |
//! | `PUT /v1/policy` | [`DefaultChange`], the common one | [`Changed`] |
//! | `GET /v1/policy/NAME` | | [`FunctionPolicy`] |
//! | `PUT /v1/policy/NAME` | [`DefaultChange`], the function's own | [`Changed`] |
//! | `GET /v1/groups` | | [`Groups`] |
//! | `GET /v1/groups/NAME` | | [`Group`] |
//! | `POST /v1/groups/NAME` | [`GroupChange`] | [`Changed`] |
//! | `DELETE /v1/groups/NAME?keep=true` | | [`Changed`] |
//!
//! On the server's own address in the tunnel there are `GET /metrics` for every peer, `POST /v1/join` ([`Join`], 204) for who
//! is invited, `POST /v1/rotate` (the same) for who has joined, and all of the above for admins.
//!
//! `TIME` is a time, or how long ago: `10m`. What is followed ends when the client hangs up; blank lines in it only show
//! whether it has.
//! A `GET` of a function answers its `ETag` ([`etag`](super::condition::etag)); `PUT` and `DELETE` take `If-Match` and
//! `If-None-Match: *`. A `PUT` of what is declared already changes nothing, and says so in the header
//! [`UNCHANGED_HEADER`].
//!
//! Every error is a [`Problem`] with the media type `application/problem+json`.

mod access;
mod peers;
mod usage;

use std::collections::BTreeMap;
use std::net::Ipv6Addr;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use access::{
    Changed, DefaultChange, FunctionPolicy, Group, GroupChange, Groups, NAMED_MAX, Policies, RefusedCount,
    RoleChange, Rule, RuleAction, RuleChange,
};
pub use peers::{Invite, Invited, Join, Peer, Peers};
pub use usage::{FunctionUsage, Queues, Usage};

use super::egress::Egress;
use crate::core::image::ImageName;
pub use crate::core::invitation::Invitation;
use crate::core::name::FunctionName;
use crate::core::revision::{Alias, WantedShare};
pub use crate::core::secret::SECRET_BYTES_MAX;
use crate::core::secret::SecretName;
use crate::core::spec::FunctionSpec;

/// The most bytes of an uploaded archive. The client looks before it sends, the daemon while it receives.
pub const ARCHIVE_BYTES_MAX: u64 = 256 << 20;

/// The most bytes of an archive of a root image, as it is sent: compressed, usually.
pub const ROOT_ARCHIVE_BYTES_MAX: u64 = 8 << 30;

/// The most bytes of a JSON request.
pub const JSON_BYTES_MAX: usize = 64 << 10;

/// Items of a list in one response: when nobody says how many, and at most.
pub const PAGE: usize = 1000;
pub const PAGE_MAX: usize = 10_000;

/// With `true`, the answer to a deploy that changed nothing, since all was declared like that already.
pub const UNCHANGED_HEADER: &str = "faasd-unchanged";

/// The most lines of a log in one response.
pub const LOG_LINES_MAX: usize = 10_000;

/// The most events in one response.
pub const EVENTS_MAX: usize = 10_000;

/// How long an invitation may be good for: a minute to thirty days.
pub const INVITE_MS: std::ops::RangeInclusive<u64> = 60_000..=30 * 86_400_000;

/// The media type of a [`Problem`].
pub const PROBLEM_MEDIA_TYPE: &str = "application/problem+json";

/// Marks the daemon's own problems among the responses to an invocation, where a function may answer with any status
/// and media type. Functions cannot set it: the daemon takes it out of what they send.
pub const PROBLEM_HEADER: &str = "faasd-problem";

/// The daemon, and what it found to work with.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Version {
    pub version: String,
    pub started_at: Timestamp,
    /// `kernel` or `userspace`.
    pub wireguard: String,
    /// The runtime and its version: `runc 1.1.5`.
    pub runtime: String,
    /// The layout of the pinned maps.
    pub layout: u32,
}

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Functions {
    pub functions: Vec<Function>,
    /// There is more: ask again with `after` as this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// Code that has been uploaded. Its digest is that of the unpacked tree, so the same code is stored once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Image {
    /// `sha256:` and 64 hexadecimal digits.
    pub digest: String,
    pub bytes: u64,
}

/// A root image by one of its names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NamedImage {
    pub name: ImageName,
    /// Of its configuration, `sha256:…`: what identifies it, however it came here.
    pub digest: String,
    /// Of its manifest, where it had one: what a registry calls its digest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub manifest: Option<String>,
    /// Unpacked, with layers that other images have as well.
    pub bytes: u64,
    pub layers: usize,
    pub imported_at: Timestamp,
    /// Those that run from it.
    pub functions: Vec<FunctionName>,
}

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Images {
    pub images: Vec<NamedImage>,
    /// There is more: ask again with `after` as this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ImportedImage {
    #[serde(flatten)]
    pub image: NamedImage,
    /// What was left out of it.
    pub notes: Vec<String>,
}

/// What was removed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Pruned {
    pub names: Vec<ImageName>,
    /// Of layers.
    pub freed_bytes: u64,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Deploy {
    /// [`Image::digest`]. A function whose `spec.image` brings all that is run needs none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// The [`Image::digest`] of what a handler depends on, mounted where its language looks for packages.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dependencies: Option<String>,
    #[serde(default)]
    pub spec: FunctionSpec,
    /// Only shows that it becomes ready; what serves goes on serving.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub no_traffic: bool,
    /// Makes a new revision though nothing has changed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub force: bool,
}

/// A revision's part of a function's connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TrafficShare {
    pub revision: u64,
    /// In percent.
    pub weight: u32,
}

/// Who is to serve. The weights add up to 100.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Traffic {
    pub shares: Vec<WantedShare>,
}

/// What an alias is to stand for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AliasTarget {
    pub revision: u64,
}

/// The revisions of a function that are kept, the newest first.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Revisions {
    pub revisions: Vec<Revision>,
}

/// What was deployed once.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Revision {
    pub revision: u64,
    /// Its part of the traffic, in percent.
    pub weight: u32,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub aliases: Vec<Alias>,
    /// Instances that are given connections.
    pub ready: usize,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dependencies: Option<String>,
    pub spec: FunctionSpec,
    pub deployed_at: Timestamp,
}

/// A function, as declared and as it is.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Function {
    pub name: FunctionName,
    /// Counts deploys, from 1.
    pub revision: u64,
    pub address: Ipv6Addr,
    /// The digest of its code.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// The digest of the root image that `spec.image` stood for when it was deployed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root: Option<String>,
    /// The digest of what it depends on, if that is kept apart.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dependencies: Option<String>,
    pub spec: FunctionSpec,
    pub deployed_at: Timestamp,
    /// Who serves. What stands above is of the revision with the largest share.
    pub traffic: Vec<TrafficShare>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub aliases: BTreeMap<Alias, u64>,
    pub state: State,
    /// Why the last instance failed, while there is no better news.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Failures in a row.
    #[serde(default)]
    pub failures: u32,
    /// When the next try is due, after a failure.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_in_ms: Option<u64>,
    pub instances: Vec<Instance>,
    pub connections: Connections,
    #[serde(default)]
    pub egress: Egress,
}

/// What a caller would meet now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// At least one instance is ready.
    Warm,
    /// No instance; a connection starts one.
    Cold,
    /// No instance is ready yet, one is on its way.
    Starting,
    /// Instances keep failing; the next try waits.
    Failing,
    /// More connections wait than may; new ones are refused.
    Overloaded,
}

impl State {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Warm => "warm",
            Self::Cold => "cold",
            Self::Starting => "starting",
            Self::Failing => "failing",
            Self::Overloaded => "overloaded",
        }
    }
}

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Instance {
    /// The container's name, as runc knows it.
    pub id: String,
    pub revision: u64,
    /// Of the container's first process, on the host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    pub phase: Phase,
    pub started_at: Timestamp,
    /// Connections handed over and not reported finished.
    pub in_flight: u64,
    /// Requests that it says it has served; 0 of what counts none.
    #[serde(default)]
    pub requests: u64,
    /// Of those, ended in its own error.
    #[serde(default)]
    pub errors: u64,
    /// Adopted from an earlier daemon rather than started by this one.
    pub adopted: bool,
    /// Its server binds IPv4 alone, so that a relay copies its connections.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub relayed: bool,
    /// How long its start took, if the daemon that answers has made it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start: Option<StartTimes>,
}

/// How long the steps of an instance's start took, in microseconds. One that is held ready has the first of them over
/// before it is needed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct StartTimes {
    /// To create its container.
    pub create_us: u64,
    /// To let its program run, once it was to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub release_us: Option<u64>,
    /// From then on until it could take connections.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ready_us: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Its container is created, or about to be, and held until it is needed.
    Prepared,
    Starting,
    Ready,
    /// It is not needed, and given no connections; it keeps those that it has.
    Withdrawn,
    Draining,
}

impl Phase {
    pub const ALL: [Self; 5] = [Self::Prepared, Self::Starting, Self::Ready, Self::Withdrawn, Self::Draining];

    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Prepared => "prepared",
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::Withdrawn => "withdrawn",
            Self::Draining => "draining",
        }
    }
}

/// A function's connections since the kernel program was first loaded (`steered`) or the daemon started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Connections {
    /// SYNs that the kernel program gave to this function's listener. A repeated one counts again.
    pub steered: u64,
    /// Of those, given to the listener of an instance that accepts for itself.
    #[serde(default)]
    pub warm: u64,
    /// Accepted by io_uring.
    pub accepted: u64,
    /// Handed over to an instance.
    pub handed_off: u64,
    /// Handed over again, because the instance that had it queued died.
    pub requeued: u64,
    /// Passed on to it by other functions.
    #[serde(default)]
    pub forwarded: u64,
    /// Closed for want of an instance before the deadline, or of room.
    pub refused: u64,
    /// Accepted, and waiting for an instance now.
    #[serde(default)]
    pub waiting: u64,
}

/// A secret, without what it is: that does not come out again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Secret {
    pub name: SecretName,
    pub bytes: usize,
    pub set_at: Timestamp,
    /// Those that read it.
    pub functions: Vec<FunctionName>,
}

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Secrets {
    pub secrets: Vec<Secret>,
}

/// Something that happened to a function, or to the daemon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Event {
    /// Rises with time, over restarts as well. Not without gaps.
    pub id: u64,
    pub time: Timestamp,
    /// None: the daemon itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub function: Option<FunctionName>,
    pub kind: EventKind,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance: Option<String>,
    /// What happened and why, in a sentence.
    pub message: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum EventKind {
    Deployed,
    DeployFailed,
    TrafficChanged,
    /// Names of revisions changed, which bring revisions within reach or out of it.
    AliasesChanged,
    RolledBack,
    Removed,
    InstanceStarting,
    InstanceReady,
    /// It was told to, or ended by itself without an error.
    InstanceEnded,
    InstanceFailed,
    ScaledOut,
    ScaledIn,
    /// Instances keep failing: the next try waits.
    BackingOff,
    /// Connections are refused for want of room.
    Overloaded,
    Relieved,
    /// Subjects may call it from now on.
    Allowed,
    /// Subjects may not call it any more.
    Denied,
    /// A rule was forgotten, or a default changed.
    PolicyChanged,
    GroupChanged,
    PeerInvited,
    PeerJoined,
    PeerRotated,
    PeerRevoked,
    RoleChanged,
    DaemonStarted,
}

impl EventKind {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Deployed => "deployed",
            Self::DeployFailed => "deploy-failed",
            Self::TrafficChanged => "traffic-changed",
            Self::AliasesChanged => "aliases-changed",
            Self::RolledBack => "rolled-back",
            Self::Removed => "removed",
            Self::InstanceStarting => "instance-starting",
            Self::InstanceReady => "instance-ready",
            Self::InstanceEnded => "instance-ended",
            Self::InstanceFailed => "instance-failed",
            Self::ScaledOut => "scaled-out",
            Self::ScaledIn => "scaled-in",
            Self::BackingOff => "backing-off",
            Self::Overloaded => "overloaded",
            Self::Relieved => "relieved",
            Self::Allowed => "allowed",
            Self::Denied => "denied",
            Self::PolicyChanged => "policy-changed",
            Self::GroupChanged => "group-changed",
            Self::PeerInvited => "peer-invited",
            Self::PeerJoined => "peer-joined",
            Self::PeerRotated => "peer-rotated",
            Self::PeerRevoked => "peer-revoked",
            Self::RoleChanged => "role-changed",
            Self::DaemonStarted => "daemon-started",
        }
    }
}

/// Which lines of a log are wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogQuery {
    /// The last ones, so many at most.
    pub lines: usize,
    pub since: Option<Timestamp>,
    pub instance: Option<String>,
}

/// Which events are wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventQuery {
    pub function: Option<FunctionName>,
    /// Those with a higher number.
    pub after: Option<u64>,
    pub since: Option<Timestamp>,
    /// The last ones, so many at most.
    pub limit: usize,
}

impl Default for EventQuery {
    fn default() -> Self {
        Self { function: None, after: None, since: None, limit: 100 }
    }
}

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Events {
    /// The oldest first.
    pub events: Vec<Event>,
}

/// A line of the events that are followed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum EventLine {
    Event(Event),
    /// The last line, if the stream ends for a reason of the daemon's.
    End(Problem),
}

/// An error, after RFC 9457.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Problem {
    /// The HTTP status again.
    pub status: u16,
    /// What is wrong, in a sentence.
    pub title: String,
    /// What to do about it, or more of the cause.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}
