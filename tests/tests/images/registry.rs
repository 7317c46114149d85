//! Debian's `docker-registry`, on loopback.

use std::fs;
use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use faasd_tests::{Bed, Output, eventually, program};
use oci_client::client::{ClientConfig, ClientProtocol, Config, ImageLayer};
use oci_client::secrets::RegistryAuth;
use oci_client::{Client, Reference};

use crate::make::hello;

struct Registry {
    process: Child,
    address: String,
}

impl Registry {
    /// With a user `anna` whose password is `secret`, if there is to be one.
    fn start(dir: &Path, with_password: bool) -> Result<Self> {
        // A port that was free a moment ago.
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let mut config = format!(
            "version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: {address}\n",
            dir.join("registry").display()
        );
        if with_password {
            let made =
                Command::new("htpasswd").args(["-Bbn", "anna", "secret"]).output().context("htpasswd")?;
            fs::write(dir.join("htpasswd"), made.stdout)?;
            let file = dir.join("htpasswd");
            config.push_str(&format!("auth:\n  htpasswd:\n    realm: test\n    path: {}\n", file.display()));
        }
        fs::write(dir.join("registry.yml"), config)?;
        let process = Command::new("docker-registry")
            .arg("serve")
            .arg(dir.join("registry.yml"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("docker-registry")?;
        let registry = Self { process, address: address.to_string() };
        eventually("the registry answers", || TcpStream::connect(address).is_ok())?;
        Ok(registry)
    }

    /// Puts an image there.
    fn push(&self, name: &str, greeting: &str, auth: &RegistryAuth) -> Result<()> {
        let image = hello(greeting)?;
        let layers: Vec<_> = image
            .layers
            .iter()
            .map(|layer| {
                ImageLayer::new(layer.clone(), "application/vnd.oci.image.layer.v1.tar".into(), None)
            })
            .collect();
        let config = Config::new(
            serde_json::to_vec(&image.config)?,
            "application/vnd.oci.image.config.v1+json".into(),
            None,
        );
        let reference: Reference = format!("{}/{name}", self.address).parse()?;
        let client = Client::new(ClientConfig { protocol: ClientProtocol::Http, ..ClientConfig::default() });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(client.push(&reference, &layers, config, auth, None))?;
        Ok(())
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// `faas image pull` with something on its standard input.
fn pull(bed: &Bed, arguments: &[&str], input: &str) -> Result<Output> {
    let mut child = Command::new(program("faas"))
        .arg("--socket")
        .arg(bed.path("run/faasd.sock"))
        .args(["image", "pull"])
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    child.stdin.take().context("no pipe")?.write_all(input.as_bytes())?;
    let output = child.wait_with_output()?;
    Ok(Output {
        status: output.status.code(),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

pub fn anonymous() -> Result<()> {
    let bed = Bed::joined()?;
    let registry = Registry::start(&bed.path(""), false)?;
    registry.push("team/app:1", "pulled", &RegistryAuth::Anonymous)?;
    let name = format!("{}/team/app:1", registry.address);
    let pulled = bed.json(&["image", "pull", &name])?;
    ensure!(pulled["name"] == name.as_str() && pulled["layers"] == 2, "{pulled}");
    ensure!(pulled["manifest"].as_str().is_some_and(|digest| digest.starts_with("sha256:")), "{pulled}");
    // It is the same image as the one that came in a file.
    let file = crate::run::import(&bed, "filed:1", "pulled")?;
    ensure!(file["digest"] == pulled["digest"], "{file} {pulled}");
    crate::run::deploy(&bed, "web", &name)?.ok()?;
    ensure!(bed.client().curl("http://web.faas/")? == "hello from faasd\n");

    let none = bed.faas(&["image", "pull", &format!("{}/team/nothing:1", registry.address)])?.failed()?;
    ensure!(none.contains("no such image"), "{none}");
    drop(registry);
    let gone = bed.faas(&["image", "pull", &name])?;
    ensure!(gone.status == Some(69), "{gone:?}");
    bed.finish()
}

pub fn password() -> Result<()> {
    let bed = Bed::serving()?;
    let registry = Registry::start(&bed.path(""), true)?;
    registry.push("app:1", "pulled", &RegistryAuth::Basic("anna".into(), "secret".into()))?;
    let name = format!("{}/app:1", registry.address);
    let refused = pull(&bed, &[&name], "")?.failed()?;
    ensure!(refused.contains("--username USER --password-stdin"), "{refused}");
    let with = [name.as_str(), "--username", "anna", "--password-stdin"];
    let refused = pull(&bed, &with, "wrong\n")?.failed()?;
    ensure!(refused.contains("--username USER --password-stdin"), "{refused}");
    pull(&bed, &with, "secret\n")?.ok()?;
    ensure!(bed.json(&["image", "ls"])?["images"][0]["name"] == name.as_str());
    ensure!(!bed.log().contains("secret"), "{}", bed.log());
    drop(registry);
    bed.finish()
}
