//! Logs: to the journal under systemd, else to standard error.

use std::io::IsTerminal;

use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, fmt};

/// What is logged unless `FAASD_LOG` says otherwise. gotatun tells of each handshake at `info`.
const DEFAULT: &str = "info,gotatun=warn";

/// Starts logging, for the whole process.
pub fn start() {
    let filter = EnvFilter::try_from_env("FAASD_LOG").unwrap_or_else(|_| EnvFilter::new(DEFAULT));
    // systemd names the stream that it connected; only then is the journal its reader's better place.
    let journal = std::env::var_os("JOURNAL_STREAM").and_then(|_| tracing_journald::layer().ok());
    let registry = tracing_subscriber::registry().with(filter);
    match journal {
        Some(journal) => registry.with(journal).init(),
        None => {
            let colour = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
            registry.with(fmt::layer().with_writer(std::io::stderr).with_ansi(colour)).init();
        }
    }
}
