//! Small images, made of the SDK's example and the libraries that it needs.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use faasd_tests::hello_program;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};

/// The user that the image's program runs as.
pub const USER: u32 = 101;

/// An image: its layers as tar files, and its configuration.
pub struct Image {
    pub layers: Vec<Vec<u8>>,
    pub config: Value,
}

/// A layer under construction.
#[derive(Default)]
pub struct Layer(Option<Builder<Vec<u8>>>);

impl Layer {
    pub fn add(
        &mut self,
        kind: EntryType,
        name: &str,
        target: &str,
        mode: u32,
        owner: u32,
        content: &[u8],
    ) -> Result<()> {
        let tar = self.0.get_or_insert_with(|| Builder::new(Vec::new()));
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(owner.into());
        header.set_gid(owner.into());
        header.set_size(content.len() as u64);
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.as_old_mut().linkname[..target.len()].copy_from_slice(target.as_bytes());
        header.set_cksum();
        Ok(tar.append(&header, content)?)
    }

    pub fn file(&mut self, name: &str, mode: u32, owner: u32, content: &[u8]) -> Result<()> {
        self.add(EntryType::Regular, name, "", mode, owner, content)
    }

    /// A directory of the host, but for what is compiled and tested.
    pub fn tree(&mut self, from: &Path, to: &Path) -> Result<()> {
        let tar = self.0.get_or_insert_with(|| Builder::new(Vec::new()));
        tar.follow_symlinks(true);
        for entry in fs::read_dir(from)?.flatten() {
            let (path, name) = (entry.path(), entry.file_name());
            let target = to.join(&name);
            let is_left_out =
                name.to_string_lossy().contains("__pycache__") || name == "test" || name == "dist-packages";
            if is_left_out || !path.exists() {
                continue;
            }
            match path.is_dir() {
                true => self.tree(&path, &target)?,
                false => self
                    .0
                    .get_or_insert_with(|| Builder::new(Vec::new()))
                    .append_path_with_name(&path, &target)?,
            }
        }
        Ok(())
    }

    pub fn pack(self) -> Result<Vec<u8>> {
        Ok(self.0.unwrap_or_else(|| Builder::new(Vec::new())).into_inner()?)
    }
}

pub fn digest(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

/// The libraries that a program is linked with, its loader included.
pub fn libraries(program: &Path) -> Result<Vec<String>> {
    let output = Command::new("ldd").arg(program).output().context("ldd")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    Ok(text.split_whitespace().filter(|word| word.starts_with('/')).map(str::to_owned).collect())
}

/// Two layers: the libraries with a file that the second one hides, and the program. `greeting` tells one image from
/// another.
pub fn hello(greeting: &str) -> Result<Image> {
    let program = hello_program();
    let mut base = Layer::default();
    for library in libraries(&program)? {
        base.file(library.trim_start_matches('/'), 0o755, 0, &fs::read(&library)?)?;
    }
    base.file("etc/passwd", 0o644, 0, b"root:x:0:0::/:/\nweb:x:101:101::/:/\n")?;
    base.file("etc/secret", 0o600, USER, b"only for web")?;
    base.file("etc/gone", 0o644, 0, b"of the first layer")?;
    base.add(EntryType::Symlink, "var/run", "/run", 0o777, 0, b"")?;
    let mut top = Layer::default();
    top.file("bin/hello", 0o4755, 0, &fs::read(&program)?)?;
    top.file("etc/.wh.gone", 0o644, 0, b"")?;
    top.file("srv/greeting", 0o644, 0, greeting.as_bytes())?;
    let layers = vec![base.pack()?, top.pack()?];
    let arch = if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" };
    let ids: Vec<_> = layers.iter().map(|layer| digest(layer)).collect();
    let config = json!({
        "architecture": arch, "os": "linux",
        "config": {
            "Entrypoint": ["hello"], "Env": ["PATH=/bin", "FROM_IMAGE=yes", "SHARED=image"], "User": "web",
            "WorkingDir": "/srv", "Volumes": { "/srv/data": {} },
        },
        "rootfs": { "type": "layers", "diff_ids": ids },
    });
    Ok(Image { layers, config })
}

impl Image {
    /// As `docker save` writes it.
    pub fn saved(&self, name: &str) -> Result<Vec<u8>> {
        let config = serde_json::to_vec(&self.config)?;
        let mut all = Layer::default();
        let names: Vec<_> = (0..self.layers.len()).map(|n| format!("{n}/layer.tar")).collect();
        for (name, layer) in names.iter().zip(&self.layers) {
            all.file(name, 0o644, 0, layer)?;
        }
        all.file("config.json", 0o644, 0, &config)?;
        let manifest = json!([{ "Config": "config.json", "RepoTags": [name], "Layers": names }]);
        all.file("manifest.json", 0o644, 0, &serde_json::to_vec(&manifest)?)?;
        all.pack()
    }
}
