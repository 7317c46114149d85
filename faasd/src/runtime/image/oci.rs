//! What an archive of an image holds: an OCI image layout, what `docker save` writes, or a root file system itself.
//!
//! The archive is a file that can be read at any place. Its table of contents is made once; every part that is used is
//! compared with its digest.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::unix::fs::FileExt;
use std::path::{Component, Path, PathBuf};

use oci_spec::image::{Arch, Descriptor, ImageConfiguration, ImageIndex, ImageManifest, MediaType, Os};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use tar::{Archive, EntryType};

use super::archive::{self, normal, show};
use super::roots::{ImportError, hex};
use super::{UnpackError, layer};

/// Of an image.
pub const LAYERS_MAX: usize = 128;

/// Of each index, manifest and configuration.
const JSON_BYTES_MAX: u64 = 4 << 20;

/// Indices within indices.
const DEPTH_MAX: usize = 4;

/// Manifests of an index.
const MANIFESTS_MAX: usize = 256;

/// Files of an image's archive that is no root file system.
const MEMBERS_MAX: usize = 4096;

/// What tools write the image's name into, the most specific first.
const NAME_KEYS: [&str; 2] = ["io.containerd.image.name", "org.opencontainers.image.ref.name"];

/// A part of a file.
#[derive(Debug)]
pub(super) struct Section<'a> {
    file: &'a File,
    at: u64,
    left: u64,
}

impl Read for Section<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let bytes = self.file.read_at(&mut buffer[..wanted], self.at)?;
        if bytes == 0 && wanted > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.at += bytes as u64;
        self.left -= bytes as u64;
        Ok(bytes)
    }
}

/// Where in the archive a layer is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Blob {
    at: u64,
    bytes: u64,
    /// As the manifest has it; none in what `docker save` wrote, and none is needed: the configuration has that of the
    /// content.
    pub digest: Option<String>,
}

impl Blob {
    pub fn open<'a>(&self, file: &'a File) -> Section<'a> {
        Section { file, at: self.at, left: self.bytes }
    }
}

/// An image, found in an archive.
#[derive(Debug)]
pub(super) struct Found {
    /// `None` for a root file system, which has none and is its own only layer.
    pub config: Option<Vec<u8>>,
    /// The lowest first.
    pub layers: Vec<Blob>,
    pub name: Option<String>,
    pub manifest: Option<String>,
}

/// The files of an archive by their path.
struct Members<'a> {
    file: &'a File,
    places: HashMap<PathBuf, Place>,
}

#[derive(Clone)]
enum Place {
    At(u64, u64),
    Link(PathBuf),
}

#[derive(Deserialize)]
struct Layout {
    #[serde(rename = "imageLayoutVersion")]
    version: String,
}

/// An entry of `manifest.json`, as `docker save` writes it.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

/// Looks what a tar archive is.
pub(super) fn find(file: &File) -> Result<Found, ImportError> {
    let bytes = file.metadata().map_err(UnpackError::Read)?.len();
    let members = members(file)?;
    if members.has("oci-layout") && members.has("index.json") {
        members.layout()
    } else if members.has("manifest.json") {
        members.saved()
    } else if members.places.keys().any(|path| path.starts_with("blobs/sha256")) {
        Err(ImportError::Format(
            "it has blobs, but neither oci-layout and index.json nor manifest.json".into(),
        ))
    } else {
        let layer = Blob { at: 0, bytes, digest: None };
        Ok(Found { config: None, layers: vec![layer], name: None, manifest: None })
    }
}

/// The table of contents. Of a root file system, which may have very many files, only a part of it.
fn members(file: &File) -> Result<Members<'_>, ImportError> {
    let mut places = HashMap::new();
    let mut reader = io::BufReader::new(file);
    reader.rewind().map_err(UnpackError::Read)?;
    let mut archive = Archive::new(reader);
    let entries = archive.entries_with_seek().map_err(UnpackError::Read)?;
    archive::read(entries, layer::ENTRIES_MAX, |entry| {
        if places.len() >= MEMBERS_MAX {
            return Ok(());
        }
        // What is wrong with a root file system's paths is for its unpacking to say.
        let Ok(path) = normal(&entry.path) else { return Ok(()) };
        let place = match entry.kind() {
            EntryType::Regular => Place::At(
                entry.content.raw_file_position(),
                entry.content.header().entry_size().map_err(UnpackError::Read)?,
            ),
            // `docker save` once wrote a layer that two images share as a link, relative to where it stands.
            EntryType::Symlink => {
                let target =
                    Path::new(std::ffi::OsStr::new(std::str::from_utf8(&entry.target).unwrap_or_default()));
                Place::Link(lexical(path.parent().unwrap_or(Path::new("")), target))
            }
            _ => return Ok(()),
        };
        places.insert(path, place);
        Ok::<_, UnpackError>(())
    })?;
    Ok(Members { file, places })
}

/// `base/target` with each `..` taken for the directory above, in the text alone.
fn lexical(base: &Path, target: &Path) -> PathBuf {
    let mut at = base.to_owned();
    for component in target.components() {
        match component {
            Component::Normal(name) => at.push(name),
            Component::ParentDir => drop(at.pop()),
            _ => {}
        }
    }
    at
}

impl Members<'_> {
    fn has(&self, path: &str) -> bool {
        self.places.contains_key(Path::new(path))
    }

    fn blob(&self, path: &Path) -> Result<Blob, ImportError> {
        let absent = || ImportError::Absent(show(path));
        let place = match self.places.get(path).ok_or_else(absent)? {
            // A link to a link is nobody's.
            Place::Link(target) => self.places.get(target).ok_or_else(absent)?,
            place => place,
        };
        match *place {
            Place::At(at, bytes) => Ok(Blob { at, bytes, digest: None }),
            Place::Link(_) => Err(absent()),
        }
    }

    fn small(&self, path: &Path) -> Result<Vec<u8>, ImportError> {
        let blob = self.blob(path)?;
        if blob.bytes > JSON_BYTES_MAX {
            return Err(ImportError::Json(show(path)));
        }
        let mut bytes = Vec::new();
        blob.open(self.file).read_to_end(&mut bytes).map_err(UnpackError::Read)?;
        Ok(bytes)
    }

    fn parsed<T: for<'de> Deserialize<'de>>(&self, path: &Path, bytes: &[u8]) -> Result<T, ImportError> {
        serde_json::from_slice(bytes).map_err(|source| ImportError::Parse { path: show(path), source })
    }

    /// What a descriptor names, if its size is as it says. Its digest is compared by whoever reads it.
    fn described(&self, descriptor: &Descriptor) -> Result<(PathBuf, Blob), ImportError> {
        let digest = sha256(descriptor.digest().as_ref())?.to_owned();
        let path = Path::new("blobs/sha256").join(&digest);
        let blob = self.blob(&path)?;
        if blob.bytes != descriptor.size() {
            return Err(ImportError::Digest(show(&path)));
        }
        Ok((path, Blob { digest: Some(digest), ..blob }))
    }

    fn described_small(&self, descriptor: &Descriptor) -> Result<(PathBuf, Vec<u8>), ImportError> {
        let (path, blob) = self.described(descriptor)?;
        let bytes = self.small(&path)?;
        match blob.digest == Some(hex(&Sha256::digest(&bytes))) {
            true => Ok((path, bytes)),
            false => Err(ImportError::Digest(show(&path))),
        }
    }

    fn layout(&self) -> Result<Found, ImportError> {
        let path = Path::new("oci-layout");
        let layout: Layout = self.parsed(path, &self.small(path)?)?;
        if !layout.version.starts_with("1.") {
            return Err(ImportError::Format(format!("it is a layout of version {}", layout.version)));
        }
        let path = Path::new("index.json");
        let mut index: ImageIndex = self.parsed(path, &self.small(path)?)?;
        let mut name = None;
        for _ in 0..DEPTH_MAX {
            let chosen = choose(&index)?;
            let written = chosen.annotations().as_ref();
            name = name
                .or_else(|| written.and_then(|all| NAME_KEYS.iter().find_map(|key| all.get(*key))).cloned());
            let (path, bytes) = self.described_small(chosen)?;
            // The media type may be left out of a descriptor's target, but not of the descriptor.
            match chosen.media_type() {
                MediaType::ImageIndex => index = self.parsed(&path, &bytes)?,
                MediaType::Other(kind) if kind == DOCKER_INDEX => index = self.parsed(&path, &bytes)?,
                MediaType::ImageManifest => return self.manifest(chosen, &path, &bytes, name),
                MediaType::Other(kind) if kind == DOCKER_MANIFEST => {
                    return self.manifest(chosen, &path, &bytes, name);
                }
                other => return Err(ImportError::Format(format!("its index names a {other}"))),
            }
        }
        Err(ImportError::Format(format!("indices stand within indices, more than {DEPTH_MAX} deep")))
    }

    fn manifest(
        &self,
        descriptor: &Descriptor,
        path: &Path,
        bytes: &[u8],
        name: Option<String>,
    ) -> Result<Found, ImportError> {
        let manifest: ImageManifest = self.parsed(path, bytes)?;
        if manifest.layers().len() > LAYERS_MAX {
            return Err(ImportError::Layers(manifest.layers().len()));
        }
        let (_, config) = self.described_small(manifest.config())?;
        let layers: Result<Vec<_>, ImportError> = manifest
            .layers()
            .iter()
            .map(|layer| match is_layer(layer.media_type()) {
                true => self.described(layer).map(|(_, blob)| blob),
                false => Err(ImportError::Format(format!("a layer of it is a {}", layer.media_type()))),
            })
            .collect();
        let manifest = Some(descriptor.digest().to_string());
        Ok(Found { config: Some(config), layers: layers?, name, manifest })
    }

    fn saved(&self) -> Result<Found, ImportError> {
        let path = Path::new("manifest.json");
        let all: Vec<Saved> = self.parsed(path, &self.small(path)?)?;
        let [saved] = <[Saved; 1]>::try_from(all).map_err(|all| {
            let names: Vec<_> =
                all.iter().filter_map(|one| one.repo_tags.as_ref()?.first().cloned()).collect();
            ImportError::Several(names.join(", "))
        })?;
        if saved.layers.len() > LAYERS_MAX {
            return Err(ImportError::Layers(saved.layers.len()));
        }
        let layers: Result<Vec<_>, ImportError> =
            saved.layers.iter().map(|path| self.blob(&plain(path)?)).collect();
        let config = self.small(&plain(&saved.config)?)?;
        // Its name usually is its digest; then it has to be the right one.
        let stem = Path::new(&saved.config).file_stem().unwrap_or_default().to_string_lossy().into_owned();
        if is_hex(&stem) && stem != hex(&Sha256::digest(&config)) {
            return Err(ImportError::Digest(saved.config));
        }
        let name = saved.repo_tags.and_then(|tags| tags.into_iter().next());
        Ok(Found { config: Some(config), layers: layers?, name, manifest: None })
    }
}

const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";

/// How a layer is packed is seen from its first bytes; what it is called only says that it is one. Layers that lie
/// elsewhere, or are encrypted, are not to be had.
fn is_layer(kind: &MediaType) -> bool {
    match kind {
        MediaType::ImageLayer | MediaType::ImageLayerGzip | MediaType::ImageLayerZstd => true,
        MediaType::Other(kind) => kind.starts_with("application/vnd.docker.image.rootfs.diff.tar"),
        _ => false,
    }
}

/// The one of an index that this machine can run.
fn choose(index: &ImageIndex) -> Result<&Descriptor, ImportError> {
    let all = index.manifests();
    if all.len() > MANIFESTS_MAX {
        return Err(ImportError::Format(format!("an index of it has more than {MANIFESTS_MAX} entries")));
    }
    let fitting: Vec<_> = all
        .iter()
        .filter(|one| {
            one.platform().as_ref().is_none_or(|platform| {
                *platform.os() == Os::Linux && *platform.architecture() == Arch::default()
            })
        })
        .collect();
    // Without a platform of its own, one that has it comes first.
    let sure: Vec<_> = fitting.iter().filter(|one| one.platform().is_some()).copied().collect();
    match (sure.as_slice(), fitting.as_slice()) {
        ([one], _) | ([], [one]) => Ok(one),
        ([], []) => Err(ImportError::Platform(format!("linux/{}", Arch::default()))),
        _ => {
            let names = fitting.iter().filter_map(|one| {
                let all = one.annotations().as_ref()?;
                NAME_KEYS.iter().find_map(|key| all.get(*key)).cloned()
            });
            Err(ImportError::Several(names.collect::<Vec<_>>().join(", ")))
        }
    }
}

fn plain(path: &str) -> Result<PathBuf, ImportError> {
    Ok(normal(path.as_bytes())?)
}

fn is_hex(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// The digits of a `sha256:` digest. No other algorithm is in use.
pub(super) fn sha256(digest: &str) -> Result<&str, ImportError> {
    digest
        .strip_prefix("sha256:")
        .filter(|digits| is_hex(digits))
        .ok_or_else(|| ImportError::Format(format!("'{digest}' is no sha256 digest")))
}

/// A configuration, if it is of an image that this machine can run, with the digests of its layers' content.
pub(super) fn configuration(bytes: &[u8]) -> Result<(ImageConfiguration, Vec<String>), ImportError> {
    let config: ImageConfiguration = serde_json::from_slice(bytes)
        .map_err(|source| ImportError::Parse { path: "the image's configuration".to_owned(), source })?;
    if *config.os() != Os::Linux || *config.architecture() != Arch::default() {
        let is = format!("{}/{}", config.os(), config.architecture());
        return Err(ImportError::Other { is, wanted: format!("linux/{}", Arch::default()) });
    }
    let ids = config.rootfs().diff_ids();
    if ids.len() > LAYERS_MAX {
        return Err(ImportError::Layers(ids.len()));
    }
    let ids: Result<Vec<_>, _> = ids.iter().map(|id| sha256(id).map(str::to_owned)).collect();
    Ok((config, ids?))
}
