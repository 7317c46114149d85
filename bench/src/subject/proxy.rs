//! Reverse proxies, as most would put one in front of a function, and three in a row, as a classic platform has them: each
//! on one core, connections to the next kept open, no access log, no bodies on disk, nothing buffered that need not be.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;

use super::conditions::Adopted;
use super::{Bare, Running, Site, Subject, process};

/// A program that passes requests on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Proxy {
    Nginx,
    Haproxy,
    Caddy,
}

/// One or more of them, the first next to the client.
#[derive(Clone, Copy, Debug)]
pub struct Proxied {
    name: &'static str,
    stages: &'static [(&'static str, Proxy)],
}

impl Proxied {
    /// The chain is gateway, provider, watchdog. Each is nginx, which is faster than what such platforms are made of.
    pub const ALL: [Self; 4] = [
        Self { name: "nginx", stages: &[("nginx", Proxy::Nginx)] },
        Self { name: "haproxy", stages: &[("haproxy", Proxy::Haproxy)] },
        Self { name: "caddy", stages: &[("caddy", Proxy::Caddy)] },
        Self {
            name: "chain",
            stages: &[("gateway", Proxy::Nginx), ("provider", Proxy::Nginx), ("watchdog", Proxy::Nginx)],
        },
    ];
}

impl Subject for Proxied {
    fn name(&self) -> &str {
        self.name
    }

    fn unavailable(&self) -> Option<String> {
        let missing = self.stages.iter().find(|(_, proxy)| proxy.program().is_none())?;
        let (package, program) = (missing.1.package(), missing.1.name());
        Some(format!("{program} is not installed: `apt-get install {package}`"))
    }

    fn version(&self) -> Option<(String, String)> {
        let (_, proxy) = self.stages.first()?;
        Some((proxy.name().to_owned(), proxy.version()?))
    }

    fn start(&self, site: &Site) -> anyhow::Result<Running> {
        let function = Bare("proxied-function").start(site)?;
        let mut to = function.to.clone();
        let (mut gateway, mut processes) = (Vec::new(), function.processes);
        for (stage, proxy) in self.stages.iter().rev() {
            let next = to.address;
            to = site.free_destination()?;
            let name = format!("{}-{stage}", self.name);
            let dir = site.dir.path().join(&name);
            std::fs::create_dir_all(&dir)?;
            let file = dir.join("config");
            std::fs::write(&file, proxy.config(&dir, to.address, next))?;
            let program = proxy.program().context("the proxy has gone")?;
            // A gateway ends before what it leads to.
            // What caddy keeps between runs goes with the directory.
            let env = ["XDG_DATA_HOME", "XDG_CONFIG_HOME"].map(|name| (name, dir.display().to_string()));
            processes
                .insert(0, site.spawn(&name, &program, &proxy.arguments(&dir, &file), &env, Vec::new())?);
            site.await_answer(&to, &mut processes)?;
            let main = processes[0].pid();
            gateway.push(main);
            // nginx's worker; it has answered.
            gateway.extend(process::children(main)?);
        }
        Ok(Running {
            name: self.name.to_owned(),
            base: None,
            to,
            gateway,
            function: function.function,
            scraped: None,
            processes,
            _adopted: Adopted::default(),
        })
    }
}

impl Proxy {
    const fn name(self) -> &'static str {
        match self {
            Self::Nginx => "nginx",
            Self::Haproxy => "haproxy",
            Self::Caddy => "caddy",
        }
    }

    const fn package(self) -> &'static str {
        match self {
            Self::Nginx => "nginx-light",
            Self::Haproxy => "haproxy",
            Self::Caddy => "caddy",
        }
    }

    /// Debian puts some where only root's PATH leads.
    fn program(self) -> Option<PathBuf> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path)
            .chain(["/usr/sbin", "/usr/local/sbin"].map(PathBuf::from))
            .map(|dir| dir.join(self.name()))
            .find(|file| file.is_file())
    }

    fn version(self) -> Option<String> {
        let argument = if self == Self::Caddy { "version" } else { "-v" };
        let output = Command::new(self.program()?).arg(argument).output().ok()?;
        // nginx says it on the other channel.
        let said = [output.stdout, output.stderr].concat();
        Some(String::from_utf8_lossy(&said).lines().next()?.trim().to_owned())
    }

    fn arguments(self, dir: &Path, file: &Path) -> Vec<String> {
        let (dir, file) = (dir.to_string_lossy(), file.to_string_lossy());
        let words: &[&str] = match self {
            Self::Nginx => &["-p", &dir, "-c", &file],
            Self::Haproxy => &["-db", "-f", &file],
            Self::Caddy => &["run", "--config", &file, "--adapter", "caddyfile"],
        };
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    fn config(self, dir: &Path, listen: SocketAddr, next: SocketAddr) -> String {
        match self {
            Self::Nginx => nginx(dir, listen, next),
            Self::Haproxy => haproxy(listen, next),
            Self::Caddy => caddy(listen, next),
        }
    }
}

fn nginx(dir: &Path, listen: SocketAddr, next: SocketAddr) -> String {
    let dir = dir.display();
    // A worker that root's master starts as nobody could not write into our directory.
    let user = if rustix::process::geteuid().is_root() { "user root root;" } else { "" };
    format!(
        "{user}
daemon off;
worker_processes 1;
pid {dir}/pid;
error_log stderr warn;
events {{ worker_connections 32768; }}
http {{
    access_log off;
    client_body_temp_path {dir}/body;
    client_max_body_size 0;
    proxy_temp_path {dir}/proxy;
    proxy_max_temp_file_size 0;
    proxy_request_buffering off;
    fastcgi_temp_path {dir}/fastcgi;
    uwsgi_temp_path {dir}/uwsgi;
    scgi_temp_path {dir}/scgi;
    keepalive_requests 1000000000;
    keepalive_timeout 1h;
    # Kept connections for all but an upgrade.
    map $http_upgrade $connection_header {{ default upgrade; '' ''; }}
    upstream next {{
        server {next};
        keepalive 128;
        keepalive_requests 1000000000;
        keepalive_timeout 1h;
    }}
    server {{
        listen {listen} backlog=4096;
        location / {{
            proxy_pass http://next;
            proxy_http_version 1.1;
            proxy_set_header Connection $connection_header;
            proxy_set_header Upgrade $http_upgrade;
            proxy_read_timeout 1h;
        }}
    }}
}}
"
    )
}

fn haproxy(listen: SocketAddr, next: SocketAddr) -> String {
    format!(
        "global
    maxconn 16384
    # It would want two descriptors for each of them.
    no strict-limits
    nbthread 1
defaults
    mode http
    timeout connect 5s
    timeout client 1h
    timeout server 1h
    timeout tunnel 1h
    http-reuse always
frontend client
    bind {listen} backlog 4096
    default_backend next
backend next
    server next {next}
"
    )
}

fn caddy(listen: SocketAddr, next: SocketAddr) -> String {
    let (ip, port) = (listen.ip(), listen.port());
    format!(
        "{{
    admin off
    auto_https off
    log {{
        level ERROR
    }}
}}
http://:{port} {{
    bind {ip}
    reverse_proxy {next} {{
        flush_interval -1
        transport http {{
            keepalive_idle_conns_per_host 128
        }}
    }}
}}
"
    )
}
