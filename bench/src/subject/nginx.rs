//! nginx as the reverse proxy that most would put in front of a function: one worker, connections to the function
//! kept open, no access log, no bodies on disk.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::ensure;

use super::conditions::Adopted;
use super::{Bare, Running, Site, Subject, process};

const WORKER_MAX: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub struct Nginx;

impl Subject for Nginx {
    fn name(&self) -> &'static str {
        "nginx"
    }

    fn unavailable(&self) -> Option<String> {
        program().is_none().then(|| "nginx is not installed: `apt-get install nginx-light`".to_owned())
    }

    fn start(&self, site: &Site) -> anyhow::Result<Running> {
        let function = Bare("nginx-function").start(site)?;
        let to = site.free_destination()?;
        let dir = site.dir.path().join("nginx");
        std::fs::create_dir_all(&dir)?;
        let file = dir.join("nginx.conf");
        std::fs::write(&file, config(&dir, &to.address.to_string(), &function.to.address.to_string()))?;
        let args = ["-p", &dir.to_string_lossy(), "-c", &file.to_string_lossy()].map(str::to_owned);
        let program = program().unwrap_or_else(|| PathBuf::from("nginx"));
        let master = site.spawn("nginx", &program, &args, &[], Vec::new())?;
        let master_pid = master.pid();
        let mut processes = vec![master];
        processes.extend(function.processes);
        site.await_answer(&to, &mut processes)?;
        let deadline = Instant::now() + WORKER_MAX;
        let mut gateway = process::children(master_pid)?;
        while gateway.is_empty() {
            ensure!(Instant::now() < deadline, "nginx has no worker after {WORKER_MAX:?}");
            gateway = process::children(master_pid)?;
        }
        gateway.push(master_pid);
        Ok(Running {
            name: "nginx".to_owned(),
            to,
            gateway,
            function: function.function,
            processes,
            _adopted: Adopted::default(),
        })
    }
}

/// Debian puts it where only root's PATH leads.
fn program() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/usr/local/sbin"].map(PathBuf::from))
        .map(|dir| dir.join("nginx"))
        .find(|file| file.is_file())
}

fn config(dir: &Path, listen: &str, function: &str) -> String {
    let dir = dir.display();
    // A worker that root's master starts as nobody could not write into our directory.
    let user = if rustix::process::geteuid().is_root() { "user root root;" } else { "" };
    format!(
        "{user}
daemon off;
worker_processes 1;
pid {dir}/pid;
error_log stderr warn;
events {{ worker_connections 16384; }}
http {{
    access_log off;
    client_body_temp_path {dir}/body;
    proxy_temp_path {dir}/proxy;
    proxy_max_temp_file_size 0;
    fastcgi_temp_path {dir}/fastcgi;
    uwsgi_temp_path {dir}/uwsgi;
    scgi_temp_path {dir}/scgi;
    keepalive_requests 1000000000;
    keepalive_timeout 1h;
    upstream function {{
        server {function};
        keepalive 128;
        keepalive_requests 1000000000;
        keepalive_timeout 1h;
    }}
    server {{
        listen {listen} backlog=4096;
        location / {{
            proxy_pass http://function;
            proxy_http_version 1.1;
            proxy_set_header Connection \"\";
        }}
    }}
}}
"
    )
}
