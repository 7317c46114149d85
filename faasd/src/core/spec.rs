//! What a function is declared to be: the file `faas.toml`, checked, with every default filled in.

mod quantity;
mod schema;
mod settings;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use self::schema::{SCHEMA_URL, file_schema, merge};
pub use self::settings::{Deadlines, Limits, Scale};
use super::egress::{GRANTS_MAX, Grant, Outside};
use super::image::ImageName;
use super::name::FunctionName;
use super::secret::SecretName;

/// The file's name in a function's directory.
pub const FILE_NAME: &str = "faas.toml";

/// A function, as declared. Durations and sizes are numbers with their unit in the name, in the API and in the
/// store; the file may write `"30s"` and `"128MiB"`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct FunctionSpec {
    /// How the code receives connections.
    pub contract: Contract,
    /// What is run, of every contract but `handler`: the argument vector, relative to the code (mounted at `/app`).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub command: Vec<String>,
    /// `FILE`, or `FILE:NAME`, of a `handler` function.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub handler: Option<String>,
    /// The root image that it runs in, by name or digest. Without one it sees the host's `/usr`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// Directories of the image that each instance may write to: empty at its start, lost at its end.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = WRITABLE_MAX))]
    pub writable: Vec<String>,
    /// What `faas deploy` runs in the directory first, by a shell, on the machine that deploys.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = BUILD_BYTES_MAX))]
    pub build: Option<String>,
    /// The TCP port that clients dial.
    #[schemars(range(min = 1))]
    pub port: u16,
    /// The port that a `port` function binds, inside; told to it as `PORT`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub listen_port: Option<u16>,
    /// What becomes of what a `port` function binds over IPv4.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ipv4: Option<Ipv4>,
    /// The signal by which a server is asked to finish.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop_signal: Option<StopSignal>,
    /// Functions that an `fd` function may pass connections on to.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = FORWARD_MAX))]
    pub forward: Vec<FunctionName>,
    /// Functions that it may connect to, by name and port (80 without one), like `db.faas:5432`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = GRANTS_MAX))]
    pub allow: Vec<Grant>,
    /// Places outside that it may connect to, by name or address and port, like `api.example.com:443`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = GRANTS_MAX))]
    pub outside: Vec<Outside>,
    /// Environment variables.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = ENV_MAX))]
    pub env: BTreeMap<String, String>,
    /// Secrets that it may read, each as a file in `/run/secrets`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub secrets: Vec<SecretName>,
    pub limits: Limits,
    pub scale: Scale,
    pub deadlines: Deadlines,
}

/// How code receives its connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Contract {
    /// A script with one function in it, served by a runner that faasd brings.
    #[default]
    Handler,
    /// A program that speaks the hand-off protocol itself (`docs/HANDOFF.md`).
    Fd,
    /// Any server: what it binds to its port is exchanged for the function's listener.
    Port,
    /// A server that takes its listener by the protocol of systemd's socket activation.
    ListenFds,
}

/// The way that connections take to the code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    /// Each connection is accepted by faasd and its descriptor passed on.
    HandOff,
    /// The code accepts connections itself, from a listener of its own.
    Warm,
}

/// How a server that binds its port over IPv4 is reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Ipv4 {
    /// By a relay that copies, unless the server binds IPv6 as well.
    #[default]
    Relay,
    /// Directly: what it binds is exchanged all the same. Addresses of IPv6 come out of it, which the server has to take.
    Exchange,
}

/// A signal that a server may want to be stopped by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum StopSignal {
    #[default]
    #[serde(rename = "SIGTERM")]
    Term,
    #[serde(rename = "SIGQUIT")]
    Quit,
    #[serde(rename = "SIGINT")]
    Int,
    #[serde(rename = "SIGHUP")]
    Hup,
    #[serde(rename = "SIGUSR1")]
    Usr1,
    #[serde(rename = "SIGUSR2")]
    Usr2,
    #[serde(rename = "SIGWINCH")]
    Winch,
}

impl Contract {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Handler => "handler",
            Self::Fd => "fd",
            Self::Port => "port",
            Self::ListenFds => "listen-fds",
        }
    }

    #[must_use]
    pub const fn lane(self) -> Lane {
        match self {
            Self::Handler | Self::Fd => Lane::HandOff,
            Self::Port | Self::ListenFds => Lane::Warm,
        }
    }
}

impl Lane {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::HandOff => "hand-off",
            Self::Warm => "warm",
        }
    }
}

/// A file that a runner serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Handler<'a> {
    pub language: Language,
    /// Relative to the code.
    pub file: &'a str,
    /// What of the file: a function, an application. Scripts have none, and modules of node may do without.
    pub name: Option<&'a str>,
}

/// What a handler is written in, and so which runner serves it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Language {
    Python,
    Node,
    /// Anything that begins with `#!`, or a shell's script: a process for each request.
    Script,
}

impl Language {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Python => "python",
            Self::Node => "node",
            Self::Script => "script",
        }
    }

    /// Whether its runner accepts connections itself, from an inherited listener (descriptor 3, with the control socket
    /// as 4): node can receive no descriptors by `SCM_RIGHTS` over a `SEQPACKET` socket.
    #[must_use]
    pub const fn has_listener(self) -> bool {
        matches!(self, Self::Node)
    }
}

impl fmt::Display for Handler<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.file)?;
        self.name.map_or(Ok(()), |name| write!(f, ":{name}"))
    }
}

impl Default for FunctionSpec {
    fn default() -> Self {
        Self {
            contract: Contract::default(),
            command: Vec::new(),
            handler: None,
            image: None,
            writable: Vec::new(),
            build: None,
            port: 80,
            listen_port: None,
            ipv4: None,
            stop_signal: None,
            forward: Vec::new(),
            allow: Vec::new(),
            outside: Vec::new(),
            env: BTreeMap::new(),
            secrets: Vec::new(),
            limits: Limits::default(),
            scale: Scale::default(),
            deadlines: Deadlines::default(),
        }
    }
}

/// Why a declaration is refused. Each message names the key and what it may be.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum SpecError {
    /// The file is no TOML, has an unknown key or a value of the wrong kind.
    #[error("{FILE_NAME}: {0}")]
    Syntax(String),
    #[error("`{key}` is {value}; {allowed}")]
    Value { key: &'static str, value: String, allowed: &'static str },
    #[error(
        "a function of the contract `{0}` needs `command`, the program to run: `command = [\"./hello\"]`, relative to its \
         directory"
    )]
    NoCommand(&'static str),
    #[error("`{key}` does not go with the contract `{contract}`")]
    Misplaced { key: &'static str, contract: &'static str },
}

/// The most instances that one function may declare: each has its own seat in the function's pool.
pub const INSTANCES_MAX: u32 = 64;

/// The most directories that are made writable.
const WRITABLE_MAX: usize = 16;

const BUILD_BYTES_MAX: usize = 4096;

/// The most functions that one may pass connections on to.
const FORWARD_MAX: usize = 64;

/// The most secrets that one function may read.
const SPEC_SECRETS_MAX: usize = 64;

/// The port of a `port` function that names none.
const LISTEN_PORT: u16 = 8080;

/// The most environment variables, and the most bytes in one.
const ENV_MAX: usize = 256;
const ENV_BYTES_MAX: usize = 32 << 10;

impl FunctionSpec {
    /// Reads and checks `faas.toml`.
    ///
    /// # Errors
    /// [`SpecError`], with the nearest valid key for an unknown one.
    pub fn from_toml(text: &str) -> Result<Self, SpecError> {
        let spec: Self = toml::from_str(text).map_err(|e| SpecError::Syntax(explain(&e)))?;
        spec.check()?;
        Ok(spec)
    }

    /// Checks what the types cannot say.
    ///
    /// # Errors
    /// [`SpecError`].
    pub fn check(&self) -> Result<(), SpecError> {
        let value = |key, value: &dyn ToString, allowed| {
            Err(SpecError::Value { key, value: value.to_string(), allowed })
        };
        let contract = self.contract.as_str();
        let is_handler = self.contract == Contract::Handler;
        for (key, is_misplaced) in [
            ("command", is_handler && !self.command.is_empty()),
            ("handler", !is_handler && self.handler.is_some()),
            ("forward", self.contract != Contract::Fd && !self.forward.is_empty()),
            ("listen_port", self.contract != Contract::Port && self.listen_port.is_some()),
            ("ipv4", self.contract != Contract::Port && self.ipv4.is_some()),
            ("stop_signal", self.contract.lane() == Lane::HandOff && self.stop_signal.is_some()),
        ] {
            if is_misplaced {
                return Err(SpecError::Misplaced { key, contract });
            }
        }
        if !is_handler && self.command.is_empty() && self.image.is_none() {
            return Err(SpecError::NoCommand(contract));
        }
        if let Some(handler) = &self.handler
            && split_handler(handler).is_none()
        {
            return value("handler", handler, HANDLER_SYNTAX);
        }
        if let Some(build) = &self.build
            && (build.trim().is_empty() || build.contains('\0') || build.len() > BUILD_BYTES_MAX)
        {
            return value("build", build, "write a command for the shell, like \"cargo build --release\"");
        }
        if let Some(image) = &self.image
            && !is_image(image)
        {
            return value("image", image, "write an image's name, like nginx:1.27, or its digest");
        }
        if !self.writable.is_empty() && self.image.is_none() {
            return value(
                "writable",
                &self.writable.len(),
                "only directories of an `image` can be written to, and /tmp",
            );
        }
        if self.writable.len() > WRITABLE_MAX {
            return value("writable", &self.writable.len(), "at most 16 directories are made");
        }
        let limits = &self.limits;
        if self.port == 0 {
            return value("port", &self.port, "use 1 to 65535");
        }
        if self.forward.len() > FORWARD_MAX {
            return value("forward", &self.forward.len(), "at most 64 functions are named");
        }
        check_grants("allow", &self.allow)?;
        check_grants("outside", &self.outside)?;
        if self.secrets.len() > SPEC_SECRETS_MAX {
            return value("secrets", &self.secrets.len(), "at most 64 secrets are named");
        }
        if let Some(twice) = (1..self.secrets.len()).find(|n| self.secrets[..*n].contains(&self.secrets[*n]))
        {
            return value("secrets", &self.secrets[twice], "and it is named twice; once is enough");
        }
        if self.listen_port == Some(0) {
            return value("listen_port", &0, "use 1 to 65535");
        }
        if limits.memory_bytes < 8 << 20 {
            return value("limits.memory", &limits.memory_bytes, "at least 8MiB is needed");
        }
        if !(0.01..=1024.0).contains(&limits.cpu_cores) {
            return value("limits.cpu", &limits.cpu_cores, "use 0.01 to 1024 cores");
        }
        if !(4..=65_536).contains(&limits.pids_max) {
            return value("limits.pids", &limits.pids_max, "use 4 to 65536");
        }
        if !(4 << 10..=limits.memory_bytes).contains(&limits.tmp_bytes) {
            return value(
                "limits.tmp",
                &limits.tmp_bytes,
                "use 4KiB up to limits.memory, which it counts towards",
            );
        }
        if !(64..=1 << 20).contains(&limits.files_max) {
            return value("limits.files", &limits.files_max, "use 64 to 1048576");
        }
        self.check_scale()?;
        if !(100..=600_000).contains(&self.deadlines.start_ms) {
            return value("deadlines.start", &self.deadlines.start_ms, "use 100ms to 10m");
        }
        if self.deadlines.drain_ms > 600_000 {
            return value("deadlines.drain", &self.deadlines.drain_ms, "use 0s to 10m");
        }
        if self.env.len() > ENV_MAX {
            return value("env", &self.env.len(), "at most 256 variables are passed");
        }
        for (key, content) in &self.env {
            if key.is_empty() || key.contains(['=', '\0']) || content.contains('\0') {
                return value(
                    "env",
                    key,
                    "a variable's name is not empty and has no '='; neither part has a NUL",
                );
            }
            if content.len() > ENV_BYTES_MAX {
                return value("env", key, "a variable holds at most 32 KiB");
            }
        }
        Ok(())
    }

    fn check_scale(&self) -> Result<(), SpecError> {
        let value = |key, value: &dyn ToString, allowed| {
            Err(SpecError::Value { key, value: value.to_string(), allowed })
        };
        let scale = &self.scale;
        if scale.min > INSTANCES_MAX {
            return value("scale.min", &scale.min, "use 0 to 64");
        }
        if let Some(max) = scale.max
            && !(scale.min.max(1)..=INSTANCES_MAX).contains(&max)
        {
            return value("scale.max", &max, "use scale.min (1 at least) to 64");
        }
        if !(1..=1_000_000).contains(&scale.concurrency) {
            return value("scale.concurrency", &scale.concurrency, "use 1 to 1000000");
        }
        if !(1000..=86_400_000).contains(&scale.idle_ms) {
            return value("scale.idle", &scale.idle_ms, "use 1s to 24h");
        }
        if scale.prepared > INSTANCES_MAX {
            return value("scale.prepared", &scale.prepared, "use 0 to 64");
        }
        if !(1..=65_536).contains(&scale.queue) {
            return value("scale.queue", &scale.queue, "use 1 to 65536");
        }
        Ok(())
    }

    /// Whether it may connect to anything.
    #[must_use]
    pub fn connects(&self) -> bool {
        !self.allow.is_empty() || !self.outside.is_empty()
    }

    /// The port that a `port` function binds.
    #[must_use]
    pub fn listen_port(&self) -> u16 {
        self.listen_port.unwrap_or(LISTEN_PORT)
    }

    /// The way that connections take to this function's code.
    #[must_use]
    pub fn lane(&self) -> Lane {
        match self.contract {
            Contract::Handler if self.handler_parts().language.has_listener() => Lane::Warm,
            contract => contract.lane(),
        }
    }

    /// The handler, with the default `handler.py:handle`.
    #[must_use]
    pub fn handler_parts(&self) -> Handler<'_> {
        let default = Handler { language: Language::Python, file: "handler.py", name: Some("handle") };
        self.handler.as_deref().and_then(split_handler).unwrap_or(default)
    }
}

fn check_grants<T: PartialEq + ToString>(key: &'static str, grants: &[T]) -> Result<(), SpecError> {
    let error = |value, allowed| Err(SpecError::Value { key, value, allowed });
    if grants.len() > GRANTS_MAX {
        return error(grants.len().to_string(), "at most 64 destinations are named");
    }
    match (1..grants.len()).find(|n| grants[..*n].contains(&grants[*n])) {
        Some(twice) => error(grants[twice].to_string(), "and it is named twice; once is enough"),
        None => Ok(()),
    }
}

fn is_image(text: &str) -> bool {
    let is_digest =
        |hex: &str| hex.len() == 64 && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    text.strip_prefix("sha256:").is_some_and(is_digest) || text.parse::<ImageName>().is_ok()
}

const HANDLER_SYNTAX: &str = "write FILE.py:FUNCTION, FILE.js, FILE.js:EXPORT or the name of a script, relative to the \
                              function's directory";

/// `handler.py:handle`: a file inside the code's directory, and an identifier in it.
fn split_handler(handler: &str) -> Option<Handler<'_>> {
    let (file, name) = match handler.split_once(':') {
        Some((file, name)) => (file, Some(name)),
        None => (handler, None),
    };
    let is_inside = file.len() <= 255
        && !file.contains(|c: char| c.is_control() || c == '\\')
        && file.split('/').all(|part| !matches!(part, "" | "." | ".."));
    let is_identifier = |name: &str| {
        !name.starts_with(|c: char| c.is_ascii_digit())
            && name.chars().all(|c| c.is_alphanumeric() || matches!(c, '_' | '$'))
            && !name.is_empty()
    };
    let extension = file.rsplit('/').next()?.rsplit_once('.').filter(|(stem, _)| !stem.is_empty());
    let language = match extension.map(|(_, extension)| extension) {
        Some("py") => Language::Python,
        Some("js" | "mjs" | "cjs") => Language::Node,
        _ => Language::Script,
    };
    let has_its_name = match language {
        Language::Python => name.is_some_and(is_identifier),
        Language::Node => name.is_none_or(is_identifier),
        Language::Script => name.is_none(),
    };
    (is_inside && has_its_name).then_some(Handler { language, file, name })
}

/// Adds the nearest valid key to serde's message about an unknown one.
pub(crate) fn explain(error: &toml::de::Error) -> String {
    let text = error.to_string();
    let mut quoted = error.message().split('`').skip(1).step_by(2);
    if !error.message().starts_with("unknown field") {
        return text;
    }
    let unknown = quoted.next().unwrap_or_default();
    let nearest = quoted
        .map(|known| (strsim::damerau_levenshtein(unknown, known), known))
        .filter(|(distance, known)| *distance <= known.len().div_ceil(2))
        .min();
    match nearest {
        Some((_, known)) => format!("{}\ndid you mean `{known}`?", text.trim_end()),
        None => text,
    }
}
