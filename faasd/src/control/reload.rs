//! Settings that are read again while the daemon runs: SIGHUP, `systemctl reload faasd`.

use std::path::PathBuf;
use std::sync::Arc;

use super::config::Config;
use super::dns::Dns;
use super::network::Network;

/// What takes effect at once. All else is bound to what was made at the start, and a restart costs no connection.
const AT_ONCE: [&str; 3] = ["endpoint", "dns_rate_limit", "dns_query_log"];

/// The settings as they are in effect, and who has them.
pub(super) struct Reload {
    pub path: PathBuf,
    /// As the file said at the start, but for what has been changed since.
    pub config: Config,
    /// Whether the environment says where clients dial: it comes before the file.
    pub endpoint_is_given: bool,
    pub network: Arc<Network>,
}

impl Reload {
    /// Reads the file again and does what can be done by it. Returns what came of it, in a line.
    pub fn again(&mut self, dns: &Dns) -> String {
        let config = match Config::load(&self.path) {
            Ok(config) => config,
            Err(error) => {
                let error = format!("{:#}", anyhow::Error::from(error));
                tracing::error!(error, "the settings stay as they are");
                return format!("serves; the settings stay as they are: {error}");
            }
        };
        let changed = self.config.changed(&config);
        let (at_once, later): (Vec<_>, Vec<_>) = changed.into_iter().partition(|key| AT_ONCE.contains(key));
        if at_once.contains(&"endpoint") && !self.endpoint_is_given {
            self.network.set_endpoint(config.endpoint.clone());
        }
        dns.set(config.dns_rate_limit, config.dns_query_log);
        let Config { endpoint, dns_rate_limit, dns_query_log, .. } = config;
        self.config = Config { endpoint, dns_rate_limit, dns_query_log, ..self.config.clone() };
        let (at_once, later) = (at_once.join(", "), later.join(", "));
        tracing::info!(
            "settings read again; changed: {}",
            if at_once.is_empty() { "none" } else { &at_once }
        );
        if later.is_empty() {
            return "serves; settings read again".to_owned();
        }
        tracing::warn!(
            "what takes effect with a restart alone, which costs no connection (`systemctl restart faasd`): {later}"
        );
        format!("serves; a restart is needed for: {later}")
    }
}
