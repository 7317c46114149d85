//! What somebody wants measured, as something that can be dialled.

use std::net::SocketAddr;
use std::time::Duration;

use crate::api::client::ClientError;
use crate::api::types::Function;
use crate::cli::{Context, Exit, Failure};
use crate::core::name::FunctionName;
use crate::core::paths::Paths;
use crate::load::{Target, TargetError};

/// A target that can be dialled.
#[derive(Debug)]
pub struct Found {
    pub target: Target,
    /// The function that it is, if the daemon has said so.
    pub function: Option<FunctionName>,
    /// The way there, if it is not the one that a client of it takes.
    pub via: Option<String>,
    /// How long its name took to look up, if it has one that was.
    pub dns: Option<Duration>,
}

/// Reads a URL or a function's name. `path` is the function's own.
pub async fn find(context: &Context, text: &str, path: &str, resolve_each: bool) -> Result<Found, Failure> {
    let usage = |e: TargetError| Failure::new(Exit::Usage, e.to_string());
    let (mut target, function, why) = if text.contains("://") {
        (Target::parse(text).map_err(usage)?, None, None)
    } else {
        let name: FunctionName = text.parse().map_err(|e| {
            Failure::new(Exit::Usage, format!("'{text}' is neither a URL nor a function's name: {e}"))
                .hint("a URL begins with http://")
        })?;
        match context.client.function(&name).await {
            Ok(function) => {
                let mut target = Target::parse(&url(&name, function.spec.port, path)).map_err(usage)?;
                if let Some(socket) = context.client.socket() {
                    return on_the_server(target, &function, socket);
                }
                target.name = text.to_owned();
                (target, Some(name), None)
            }
            // It is known that there is none.
            Err(ClientError::Problem(problem)) if problem.status == 404 => {
                return Err(ClientError::Problem(problem).into());
            }
            // Who may not manage functions may call them, by their names.
            Err(error) => {
                let mut target = Target::parse(&url(&name, 80, path)).map_err(usage)?;
                target.name = text.to_owned();
                (target, None, Some(error))
            }
        }
    };
    let dns = target.resolve().await.map_err(|e| {
        let failure = Failure::new(Exit::Unavailable, format!("cannot look up the host of {target}: {e}"));
        match why {
            Some(why) => failure.hint(format!("nor say where '{text}' is: {why}")),
            None => failure,
        }
    })?;
    target.resolve_each = resolve_each;
    Ok(Found { target, function, via: None, dns: (!dns.is_zero()).then_some(dns) })
}

fn url(name: &FunctionName, port: u16, path: &str) -> String {
    let slash = if path.starts_with('/') { "" } else { "/" };
    if port == 80 {
        format!("http://{name}.faas{slash}{path}")
    } else {
        format!("http://{name}.faas:{port}{slash}{path}")
    }
}

/// On the server itself there is no tunnel to go through: functions are dialled where the tunnel's packets come out,
/// as the daemon does it for `faas invoke`.
fn on_the_server(
    mut target: Target,
    function: &Function,
    socket: &std::path::Path,
) -> Result<Found, Failure> {
    let ingress = Paths::ingress_beside(socket);
    target.dial_from(&ingress).map_err(|e| Failure::file("enter", &ingress, &e))?;
    target.name = function.name.to_string();
    target.addresses = vec![SocketAddr::from((function.address, function.spec.port))];
    let via = "the server's ingress, without the tunnel".to_owned();
    Ok(Found { target, function: Some(function.name.clone()), via: Some(via), dns: None })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_have_urls() {
        let name: FunctionName = "hello".parse().unwrap();
        assert_eq!(url(&name, 80, "/"), "http://hello.faas/");
        assert_eq!(url(&name, 8080, "a?b=c"), "http://hello.faas:8080/a?b=c");
    }
}
