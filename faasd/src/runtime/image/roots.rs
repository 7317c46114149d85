//! Root images: file systems for containers, kept as layers that images share, each under the digest of its content.
//!
//! ```text
//! roots/layers/HEX/root/      a layer, unpacked, owned by users of the range that is mapped into containers
//! roots/layers/HEX/layer.json what it takes
//! roots/configs/HEX.json      an image: its configuration, which names its layers; HEX is what identifies it
//! roots/names/HEX.json        a name, and the image that it stands for now
//! ```
//! Whatever has its final name is whole: it is made as a draft, written out to disk, and renamed. So a name is there only
//! after its image, and an image only after its layers.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, BufReader, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use oci_spec::image::{Arch, Os};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::blob::{self, Budget};
use super::view::View;
use super::{ALGORITHM, DRAFT_PREFIX, Draft, UnpackError, entries, layer, oci};
use crate::core::image::ImageName;
use crate::runtime::runners::HexDigest;

pub use super::layer::ENTRIES_MAX;
pub use super::oci::LAYERS_MAX;

/// Of all layers together, unpacked, and of an archive that is itself compressed.
pub const BYTES_MAX: u64 = 16 << 30;

/// Files of images belong to users of this range on disk: user 0 of an image is this one. Nobody has these ids, neither
/// the host's people nor any container, and a mount maps them to the users of the container that it is for.
pub const OWNER_BASE: u32 = crate::runtime::bundle::UID_BASE - OWNERS;
pub const OWNERS: u32 = crate::runtime::bundle::UID_RANGE;

/// What containers are given of their own in an image's stead. In the image these are directories, or are not there.
const MOUNT_POINTS: [&str; 7] = ["app", "dev", "etc", "proc", "run", "sys", "tmp"];

/// Names that are kept.
const NAMES_MAX: usize = 4096;

/// Why an image is not taken in.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    #[error(transparent)]
    Unpack(#[from] UnpackError),
    #[error("cannot use {}", path.display())]
    Store { path: PathBuf, source: io::Error },
    #[error("this is no image that is understood: {0}")]
    Format(String),
    #[error("the archive is compressed by {0}; decompress it first (gzip and zstd are understood)")]
    Compression(&'static str),
    #[error("'{path}' is not understood")]
    Parse { path: String, source: serde_json::Error },
    #[error("'{0}' is larger than an image's metadata is allowed to be")]
    Json(String),
    #[error("'{0}' is not in the archive, which is incomplete")]
    Absent(String),
    #[error("'{0}' is not what its digest or its size says: the archive is damaged, or was tampered with")]
    Digest(String),
    #[error("the image has {0} layers, and at most {LAYERS_MAX} are taken")]
    Layers(usize),
    #[error("the image's configuration names {named} layers, and the archive has {there}")]
    LayerCount { named: usize, there: usize },
    #[error("the image is for several platforms, and {0} is not among them")]
    Platform(String),
    #[error("the image is for {is}, and this machine is {wanted}")]
    Other { is: String, wanted: String },
    #[error("the archive holds several images ({0}); save one of them alone")]
    Several(String),
    #[error("the image has more than {} GiB", BYTES_MAX >> 30)]
    Bytes,
    #[error("'{0}' leads through too many links")]
    Loop(String),
    #[error("'{0}' is no whiteout that makes sense")]
    Whiteout(String),
    #[error("/{0} is no directory in the image; a container's own would have to take its place")]
    MountPoint(&'static str),
    #[error("the archive does not say what the image is called")]
    Nameless,
    #[error("there are {NAMES_MAX} names of images; remove some: `faas image prune --all`")]
    Names,
}

impl ImportError {
    /// Whether it is this machine that failed, rather than the archive that is bad.
    #[must_use]
    pub fn is_ours(&self) -> bool {
        let unpack = matches!(self, Self::Unpack(UnpackError::Write { .. } | UnpackError::Store { .. }));
        unpack || matches!(self, Self::Store { .. })
    }
}

/// A name and what it stands for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Named {
    pub name: ImageName,
    /// Of the configuration: `sha256:…`. It is the same however the image came here.
    pub digest: String,
    /// The manifest's, where there was one: what registries call the image's digest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub manifest: Option<String>,
    /// Unpacked; layers that other images have as well count in each.
    pub bytes: u64,
    pub layers: usize,
    pub imported_at: Timestamp,
}

/// An image that was taken in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Imported {
    pub named: Named,
    /// What was left out of it.
    pub notes: Vec<String>,
}

/// How an image wants to be run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    pub entrypoint: Vec<String>,
    pub cmd: Vec<String>,
    pub env: Vec<String>,
    pub working_dir: String,
    pub user: String,
    pub stop_signal: Option<String>,
    pub exposed_ports: Vec<String>,
    pub volumes: Vec<String>,
}

impl Settings {
    /// The first TCP port that it exposes.
    #[must_use]
    pub fn port(&self) -> Option<u16> {
        let ports = self.exposed_ports.iter().filter_map(|port| {
            let (number, protocol) = port.split_once('/').unwrap_or((port, "tcp"));
            number.parse().ok().filter(|number| *number > 0 && protocol == "tcp")
        });
        ports.min()
    }
}

/// An image that is here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RootImage {
    pub digest: String,
    pub settings: Settings,
    /// The layers' directories, the lowest first.
    pub layers: Vec<PathBuf>,
}

/// What is kept beside a layer.
#[derive(Serialize, Deserialize)]
struct LayerFile {
    bytes: u64,
    entries: usize,
}

/// The directory of all root images.
#[derive(Clone, Debug)]
pub struct Roots {
    dir: PathBuf,
    /// Imports share it; what removes has it alone. Without it, layers that an import has found here could go before
    /// anything names them.
    importing: Arc<RwLock<()>>,
}

impl Roots {
    #[must_use]
    pub fn new(dir: PathBuf) -> Self {
        Self { dir, importing: Arc::default() }
    }

    /// Takes an image in from an archive: a root file system (plain, gzip or zstd), an OCI layout, or what `docker save`
    /// writes. Without `name` it is called what the archive says, or else `fallback`. Blocks.
    ///
    /// # Errors
    /// [`ImportError`]; nothing of the archive is left then.
    pub fn import(
        &self,
        archive: &File,
        name: Option<&ImageName>,
        fallback: Option<&ImageName>,
    ) -> Result<Imported, ImportError> {
        let _importing = self.importing.read().unwrap_or_else(PoisonError::into_inner);
        self.prepare()?;
        let inflated = blob::inflate(archive, &self.dir)?;
        let archive = inflated.as_ref().unwrap_or(archive);
        let found = oci::find(archive)?;
        let written = found.name.as_deref().and_then(|name| name.parse().ok());
        let name = name.or(written.as_ref()).or(fallback).ok_or(ImportError::Nameless)?;

        let mut budget = Budget::new(BYTES_MAX, ENTRIES_MAX);
        let mut made = Vec::new();
        let mut layers = Vec::new();
        let (config, bytes) = match found.config {
            Some(config) => {
                let (_, ids) = oci::configuration(&config)?;
                if ids.len() != found.layers.len() {
                    return Err(ImportError::LayerCount { named: ids.len(), there: found.layers.len() });
                }
                let mut bytes = 0;
                for (id, blob) in ids.iter().zip(&found.layers) {
                    let layer = self.layer(archive, blob, Some(id), &mut budget)?;
                    bytes += layer.bytes;
                    layers.push(layer.root.clone());
                    made.extend(layer.draft.map(|draft| (draft, id.clone())));
                }
                (config, bytes)
            }
            None => {
                let blob = found.layers.first().ok_or(UnpackError::Empty)?;
                let layer = self.layer(archive, blob, None, &mut budget)?;
                layers.push(layer.root.clone());
                made.extend(layer.draft.map(|draft| (draft, layer.id.clone())));
                (configuration(&layer.id), layer.bytes)
            }
        };
        let view = View { layers: &layers };
        for point in MOUNT_POINTS {
            if view.find_last(Path::new(point)).is_some_and(|seen| !seen.metadata.is_dir()) {
                return Err(ImportError::MountPoint(point));
            }
        }

        layer::sync(&self.dir).map_err(store(&self.dir))?;
        for (draft, id) in &made {
            let place = self.layer_dir(id);
            match fs::rename(&draft.0, &place) {
                // The same layer twice in one image, or somebody else was faster.
                Err(_) if place.is_dir() => {}
                other => other.map_err(store(&place))?,
            }
        }
        let digest = hex(&Sha256::digest(&config));
        self.write(&self.config_file(&digest), &config)?;
        let named = Named {
            name: name.clone(),
            digest: format!("{ALGORITHM}:{digest}"),
            manifest: found.manifest,
            bytes,
            layers: layers.len(),
            imported_at: Timestamp::now(),
        };
        self.name(&named)?;
        Ok(Imported { named, notes: budget.notes })
    }

    /// Unpacks one layer, unless it is here. Its bytes are compared with its digests in either case.
    fn layer(
        &self,
        archive: &File,
        blob: &oci::Blob,
        id: Option<&str>,
        budget: &mut Budget,
    ) -> Result<Layer, ImportError> {
        if let Some(id) = id
            && let Some(known) = self.known(id)
        {
            blob::verify(archive, blob)?;
            budget.spend(known.bytes, known.entries)?;
            return Ok(Layer {
                id: id.to_owned(),
                root: self.layer_root(id),
                bytes: known.bytes,
                draft: None,
            });
        }
        let draft = Draft::new(&self.dir).map_err(store(&self.dir))?;
        let root = draft.0.join("root");
        fs::create_dir(&root).map_err(store(&root))?;
        let (unpacked, is) = blob::unpack(archive, blob, &root, budget)?;
        if id.is_some_and(|id| id != is) {
            return Err(ImportError::Digest(format!("layer {}", id.unwrap_or_default())));
        }
        let bytes = unpacked.bytes;
        let about = LayerFile { bytes, entries: unpacked.entries };
        let text = serde_json::to_vec(&about).map_err(|e| store(&root)(e.into()))?;
        fs::write(draft.0.join("layer.json"), text).map_err(store(&draft.0))?;
        Ok(Layer { id: is, root, bytes, draft: Some(draft) })
    }

    fn known(&self, id: &str) -> Option<LayerFile> {
        serde_json::from_slice(&fs::read(self.layer_dir(id).join("layer.json")).ok()?).ok()
    }

    /// All names, in order.
    ///
    /// # Errors
    /// If one cannot be read.
    pub fn names(&self) -> Result<Vec<Named>, ImportError> {
        let mut all = Vec::new();
        for entry in self.list("names")? {
            let path = entry.path();
            if is_draft(&entry) {
                continue;
            }
            match fs::read(&path) {
                Ok(text) => all.push(
                    serde_json::from_slice(&text)
                        .map_err(|source| ImportError::Parse { path: path.display().to_string(), source })?,
                ),
                // Removed while we looked.
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(store(&path)(e)),
            }
        }
        all.sort_by(|a: &Named, b| a.name.cmp(&b.name));
        Ok(all)
    }

    /// The digest that a name, or a digest, stands for; `None` if there is no such image.
    ///
    /// # Errors
    /// If what is there cannot be read.
    pub fn resolve(&self, reference: &str) -> Result<Option<String>, ImportError> {
        if let Ok(hex) = oci::sha256(reference) {
            return Ok(self.config_file(hex).is_file().then(|| reference.to_owned()));
        }
        let Ok(name) = reference.parse::<ImageName>() else { return Ok(None) };
        let path = self.name_file(&name);
        match fs::read(&path) {
            Ok(text) => serde_json::from_slice::<Named>(&text)
                .map(|named| Some(named.digest))
                .map_err(|source| ImportError::Parse { path: path.display().to_string(), source }),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(store(&path)(e)),
        }
    }

    /// The image of a digest, if it is here with all its layers.
    #[must_use]
    pub fn image(&self, digest: &str) -> Option<RootImage> {
        let hex = oci::sha256(digest).ok()?;
        let (config, ids) = oci::configuration(&fs::read(self.config_file(hex)).ok()?).ok()?;
        let layers: Vec<_> = ids.iter().map(|id| self.layer_root(id)).collect();
        if !layers.iter().all(|layer| layer.is_dir()) {
            return None;
        }
        let config = config.config().as_ref();
        let list = |of: Option<&Option<Vec<String>>>| of.and_then(Clone::clone).unwrap_or_default();
        let text = |of: Option<&Option<String>>| of.and_then(Clone::clone).unwrap_or_default();
        let settings = Settings {
            entrypoint: list(config.map(|c| c.entrypoint())),
            cmd: list(config.map(|c| c.cmd())),
            env: list(config.map(|c| c.env())),
            working_dir: text(config.map(|c| c.working_dir())),
            user: text(config.map(|c| c.user())),
            stop_signal: config.and_then(|c| c.stop_signal().clone()),
            exposed_ports: list(config.map(|c| c.exposed_ports())),
            volumes: list(config.map(|c| c.volumes())),
        };
        Some(RootImage { digest: digest.to_owned(), settings, layers })
    }

    /// Takes a name away; `false` if there was none. The image stays until [`Roots::gc`].
    ///
    /// # Errors
    /// Those of `unlink(2)`.
    pub fn forget(&self, name: &ImageName) -> Result<bool, ImportError> {
        let path = self.name_file(name);
        match fs::remove_file(&path) {
            Ok(()) => {
                let dir = self.dir.join("names");
                File::open(&dir).and_then(|dir| dir.sync_all()).map_err(store(&dir))?;
                Ok(true)
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(e) => Err(store(&path)(e)),
        }
    }

    /// Removes every image that has no name and of which `keeps` does not hold, given the digits of its digest, and every layer that no image has. Whatever is newer
    /// than `age_min` stays, as does everything while an image is being taken in. Returns how many bytes of layers
    /// went, or `None` if it is not the time.
    ///
    /// # Errors
    /// The first one met. Unless it concerns what is to stay, the rest is removed all the same.
    pub fn gc(&self, keeps: impl Fn(&str) -> bool, age_min: Duration) -> Result<Option<u64>, ImportError> {
        let Ok(_alone) = self.importing.try_write() else { return Ok(None) };
        let named: HashSet<String> = self.names()?.into_iter().map(|named| named.digest).collect();
        let mut layers = HashSet::new();
        let mut first = Ok(());
        for entry in self.list("configs")? {
            let path = entry.path();
            let hex = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            let is_kept = keeps(&hex) || named.contains(&format!("{ALGORITHM}:{hex}"));
            if !is_kept && is_old(&entry, age_min) {
                first = first.and(fs::remove_file(&path).map_err(store(&path)));
                continue;
            }
            // One that cannot be read has layers that we do not know: nothing is removed then.
            let text = fs::read(&path).map_err(store(&path))?;
            if !is_draft(&entry) {
                layers.extend(oci::configuration(&text)?.1);
            }
        }
        let mut freed = 0;
        for entry in self.list("layers")? {
            let id = entry.file_name().to_string_lossy().into_owned();
            if layers.contains(&id) || !is_old(&entry, age_min) {
                continue;
            }
            freed += self.known(&id).map_or(0, |known| known.bytes);
            // Under another name first: a layer that is half gone must not be found.
            let doomed = self.dir.join(format!("{DRAFT_PREFIX}{id}"));
            let gone = fs::rename(entry.path(), &doomed).and_then(|()| fs::remove_dir_all(&doomed));
            first = first.and(gone.map_err(store(&doomed)));
        }
        for entry in self.list("")? {
            if is_draft(&entry) && is_old(&entry, age_min) {
                let path = entry.path();
                first = first.and(fs::remove_dir_all(&path).map_err(store(&path)));
            }
        }
        first.map(|()| Some(freed))
    }

    fn prepare(&self) -> Result<(), ImportError> {
        for dir in ["layers", "configs", "names"] {
            let dir = self.dir.join(dir);
            fs::create_dir_all(&dir).map_err(store(&dir))?;
        }
        // Containers get at images by mounts alone, and nobody else has any business here.
        fs::set_permissions(&self.dir, fs::Permissions::from_mode(0o700)).map_err(store(&self.dir))
    }

    fn name(&self, named: &Named) -> Result<(), ImportError> {
        let path = self.name_file(&named.name);
        if !path.exists() && self.list("names")?.len() >= NAMES_MAX {
            return Err(ImportError::Names);
        }
        let text = serde_json::to_vec(named).map_err(|e| store(&path)(e.into()))?;
        self.write(&path, &text)
    }

    /// Writes a file that is there in full or not at all, whenever the machine loses its power.
    fn write(&self, path: &Path, content: &[u8]) -> Result<(), ImportError> {
        let dir = path.parent().unwrap_or(&self.dir);
        let written = tempfile::Builder::new()
            .prefix(DRAFT_PREFIX)
            .tempfile_in(dir)
            .and_then(|mut file| {
                file.write_all(content)?;
                file.as_file().sync_all()?;
                file.persist(path).map_err(|e| e.error)
            })
            .and_then(|_| File::open(dir)?.sync_all());
        written.map_err(store(path))
    }

    fn list(&self, dir: &str) -> Result<Vec<fs::DirEntry>, ImportError> {
        let dir = self.dir.join(dir);
        entries(&dir).map_err(store(&dir))
    }

    fn layer_dir(&self, id: &str) -> PathBuf {
        self.dir.join("layers").join(id)
    }

    fn layer_root(&self, id: &str) -> PathBuf {
        self.layer_dir(id).join("root")
    }

    fn config_file(&self, hex: &str) -> PathBuf {
        self.dir.join("configs").join(format!("{hex}.json"))
    }

    /// Names have slashes, and their case may matter.
    fn name_file(&self, name: &ImageName) -> PathBuf {
        let digest = hex(&Sha256::digest(name.as_str()));
        self.dir.join("names").join(format!("{}.json", &digest[..32]))
    }
}

/// A layer of the image that is taken in.
struct Layer {
    id: String,
    root: PathBuf,
    bytes: u64,
    /// Until the whole image is known to be good.
    draft: Option<Draft>,
}

/// The configuration of a root file system that comes without one. The same tree has the same.
fn configuration(layer: &str) -> Vec<u8> {
    format!(
        r#"{{"architecture":"{}","os":"{}","rootfs":{{"type":"layers","diff_ids":["{ALGORITHM}:{layer}"]}}}}"#,
        Arch::default(),
        Os::Linux
    )
    .into_bytes()
}

pub(super) fn hex(bytes: &[u8]) -> String {
    format!("{:x}", HexDigest(bytes))
}

pub(super) fn store(path: &Path) -> impl Fn(io::Error) -> ImportError {
    let path = path.to_owned();
    move |source| ImportError::Store { path: path.clone(), source }
}

fn is_draft(entry: &fs::DirEntry) -> bool {
    entry.file_name().as_bytes().starts_with(DRAFT_PREFIX.as_bytes())
}

fn is_old(entry: &fs::DirEntry, age_min: Duration) -> bool {
    let modified = entry.metadata().and_then(|m| m.modified()).ok();
    age_min.is_zero()
        || modified.is_some_and(|time| SystemTime::now().duration_since(time).is_ok_and(|age| age >= age_min))
}

/// Reads the first bytes of something, and gives it back whole.
pub(super) fn peek<R: Read>(inner: R) -> io::Result<(Vec<u8>, BufReader<R>)> {
    use std::io::BufRead;
    let mut reader = BufReader::with_capacity(64 << 10, inner);
    let first = reader.fill_buf()?;
    let first = first[..first.len().min(8)].to_vec();
    Ok((first, reader))
}
