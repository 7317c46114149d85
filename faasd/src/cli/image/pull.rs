//! `faas image pull`: the client fetches, and hands the daemon an archive like any other. So the daemon speaks to no
//! registry, holds nobody's credentials, and has one way in for images, which believes nothing.

use std::io::Read;
use std::net::IpAddr;
use std::time::Duration;

use clap::Args;
use futures_util::StreamExt;
use indicatif::ProgressBar;
use oci_client::client::{ClientConfig, ClientProtocol};
use oci_client::errors::{OciDistributionError, OciErrorCode};
use oci_client::manifest::{OciDescriptor, OciManifest};
use oci_client::secrets::RegistryAuth;
use oci_client::{Client, Reference};
use serde_json::json;
use sha2::{Digest, Sha256};
use tokio::fs::File;
use tokio::io::{AsyncSeekExt, AsyncWriteExt};

use super::report;
use crate::api::types::ROOT_ARCHIVE_BYTES_MAX;
use crate::cli::{Context, Exit, Failure, Output};
use crate::core::image::ImageName;

/// How long a registry may say nothing.
const SILENCE: Duration = Duration::from_secs(60);
const CONNECT: Duration = Duration::from_secs(20);

/// Of what describes an image.
const JSON_BYTES_MAX: usize = 4 << 20;
const PASSWORD_BYTES_MAX: u64 = 64 << 10;

/// What may be asked for, images for one platform and for several.
const MANIFESTS: [&str; 4] = [
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
];

/// The size of a tar file's blocks.
const BLOCK_BYTES: u64 = 512;

/// Fetch an image from a registry
///
/// Of an image for several platforms, this machine's is taken. Registries are spoken to by HTTPS, but for those on this
/// machine (localhost, 127.0.0.1, [::1]).
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  faas image pull nginx:1.27
  faas image pull ghcr.io/owner/app:2
  faas image pull localhost:5000/app:2
  cat token | faas image pull registry.example.org/app:2 --username deploy --password-stdin")]
pub struct Pull {
    /// The image: NAME[:TAG] at Docker Hub, or HOST[:PORT]/NAME[:TAG], or with @sha256:… after the name
    reference: ImageName,
    /// What to call it here [default: the same]
    #[arg(long)]
    name: Option<ImageName>,
    /// The user that the registry knows
    #[arg(long, requires = "password_stdin")]
    username: Option<String>,
    /// Read the user's password or token from standard input
    #[arg(long, requires = "username")]
    password_stdin: bool,
    /// Speak plain HTTP, which others on the way can read and change
    #[arg(long)]
    plain_http: bool,
    #[command(flatten)]
    output: Output,
}

impl Pull {
    pub async fn run(self, context: &Context) -> Result<(), Failure> {
        let reference: Reference = self.reference.as_str().parse().map_err(|e| {
            Failure::new(Exit::Usage, format!("'{}' names no image in a registry: {e}", self.reference))
        })?;
        let auth = match self.username {
            Some(user) => RegistryAuth::Basic(user, password()?),
            None => RegistryAuth::Anonymous,
        };
        let registry = reference.resolve_registry().to_owned();
        let protocol = match self.plain_http || is_loopback(&registry) {
            true => ClientProtocol::HttpsExcept(vec![registry]),
            false => ClientProtocol::Https,
        };
        let client = Client::new(ClientConfig {
            protocol,
            read_timeout: Some(SILENCE),
            connect_timeout: Some(CONNECT),
            user_agent: concat!("faas/", env!("CARGO_PKG_VERSION")),
            ..ClientConfig::default()
        });
        let bar = context.ui.bar("fetching", 0);
        let fetched = Fetch { client, reference, auth, bar: bar.clone() }.archive().await;
        bar.finish_and_clear();
        let (archive, bytes) = fetched?;

        let bar = context.ui.bar("importing", bytes);
        let name = self.name.as_ref().unwrap_or(&self.reference);
        let imported =
            context.client.import_image(bar.wrap_async_read(archive), Some(bytes), Some(name), None).await;
        bar.finish_and_clear();
        report(context, self.output, &imported?)
    }
}

fn password() -> Result<String, Failure> {
    let mut password = String::new();
    std::io::stdin()
        .take(PASSWORD_BYTES_MAX)
        .read_to_string(&mut password)
        .map_err(|e| Failure::new(Exit::Io, format!("cannot read the password: {e}")))?;
    Ok(password.trim_end_matches(['\r', '\n']).to_owned())
}

fn is_loopback(registry: &str) -> bool {
    let host = match registry.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, _)) => address,
        None => registry.split(':').next().unwrap_or_default(),
    };
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

struct Fetch {
    client: Client,
    reference: Reference,
    auth: RegistryAuth,
    bar: ProgressBar,
}

impl Fetch {
    /// The image as an OCI layout in a tar file without a name.
    async fn archive(&self) -> Result<(File, u64), Failure> {
        let (mut bytes, mut manifest) = self.manifest(&self.reference).await?;
        if let OciManifest::ImageIndex(index) = &manifest {
            let digest =
                oci_client::client::current_platform_resolver(&index.manifests).ok_or_else(|| {
                    let text = format!("{} is not for this machine's platform", self.reference);
                    Failure::new(Exit::Failed, text)
                })?;
            (bytes, manifest) = self.manifest(&self.reference.clone_with_digest(digest)).await?;
        }
        let OciManifest::Image(image) = manifest else {
            return Err(self.answer("an index within an index"));
        };
        let sizes = image.layers.iter().chain([&image.config]).map(|one| u64::try_from(one.size));
        let total = sizes
            .sum::<Result<u64, _>>()
            .ok()
            .filter(|total| *total <= ROOT_ARCHIVE_BYTES_MAX)
            .ok_or_else(|| self.answer("an image that is too large"))?;
        self.bar.set_length(total);

        let file = tempfile::tempfile()
            .map_err(|e| Failure::new(Exit::CannotCreate, format!("cannot make a temporary file: {e}")))?;
        let mut out = Archive { file: tokio::io::BufWriter::new(File::from_std(file)) };
        let digest = format!("sha256:{:x}", Hex(&Sha256::digest(&bytes)));
        let kind = image.media_type.as_deref().unwrap_or(MANIFESTS[0]);
        let described = json!({ "mediaType": kind, "digest": digest, "size": bytes.len() });
        let index = json!({ "schemaVersion": 2, "manifests": [described] }).to_string();
        out.whole("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#).await?;
        out.whole("index.json", index.as_bytes()).await?;
        out.whole(&blob(&digest), &bytes).await?;
        let mut seen = std::collections::HashSet::new();
        for part in [&image.config].into_iter().chain(&image.layers) {
            if seen.insert(part.digest.as_str()) {
                self.blob(part, &mut out).await?;
            }
        }
        out.finish().await
    }

    async fn manifest(&self, reference: &Reference) -> Result<(Vec<u8>, OciManifest), Failure> {
        let pulled = self.client.pull_manifest_raw(reference, &self.auth, &MANIFESTS).await;
        let (bytes, _) = pulled.map_err(|e| self.failed(&e))?;
        if bytes.len() > JSON_BYTES_MAX {
            return Err(self.answer("a manifest that is too large"));
        }
        let manifest =
            serde_json::from_slice(&bytes).map_err(|e| self.answer(&format!("no manifest ({e})")))?;
        Ok((bytes.to_vec(), manifest))
    }

    /// What is read is as long as the manifest says, or refused; whether it is what it should be, the daemon will see.
    async fn blob(&self, part: &OciDescriptor, out: &mut Archive) -> Result<(), Failure> {
        let size = u64::try_from(part.size).unwrap_or_default();
        let wrong = || self.answer(&format!("a blob that is not {size} bytes long, as its manifest says"));
        out.head(&blob(&part.digest), size).await?;
        let mut stream =
            self.client.pull_blob_stream(&self.reference, part).await.map_err(|e| self.failed(&e))?;
        let mut left = size;
        while let Some(bytes) = stream.next().await {
            let bytes = bytes.map_err(|e| self.answer(&format!("half a blob ({e})")))?;
            left = left.checked_sub(bytes.len() as u64).ok_or_else(wrong)?;
            out.write(&bytes).await?;
            self.bar.inc(bytes.len() as u64);
        }
        if left > 0 {
            return Err(wrong());
        }
        out.pad(size).await
    }

    fn failed(&self, error: &OciDistributionError) -> Failure {
        let registry = self.reference.resolve_registry();
        let text = format!("cannot fetch {}", self.reference);
        let failure = Failure::new(Exit::Failed, text);
        match error {
            OciDistributionError::AuthenticationFailure(_)
            | OciDistributionError::UnauthorizedError { .. } => failure.hint(format!(
                "{registry} lets nobody in without a user and a password, or not this one: \
                     `--username USER --password-stdin`"
            )),
            OciDistributionError::ImageManifestNotFoundError(_) => {
                failure.hint(format!("{registry} has no such image"))
            }
            OciDistributionError::RegistryError { envelope, .. }
                if envelope
                    .errors
                    .iter()
                    .any(|e| matches!(e.code, OciErrorCode::ManifestUnknown | OciErrorCode::NameUnknown)) =>
            {
                failure.hint(format!("{registry} has no such image"))
            }
            OciDistributionError::RequestError(e) => {
                let mut causes = vec![e.to_string()];
                let mut cause = std::error::Error::source(e);
                while let Some(inner) = cause {
                    causes.push(inner.to_string());
                    cause = inner.source();
                }
                Failure { exit: Exit::Unavailable, ..failure.hint(causes.join(": ")) }
            }
            other => failure.hint(other.to_string()),
        }
    }

    fn answer(&self, what: &str) -> Failure {
        let registry = self.reference.resolve_registry();
        Failure::new(Exit::Protocol, format!("{registry} answered with {what}"))
    }
}

fn blob(digest: &str) -> String {
    format!("blobs/{}", digest.replace(':', "/"))
}

/// A tar file that is written while its content comes in.
struct Archive {
    file: tokio::io::BufWriter<File>,
}

impl Archive {
    async fn head(&mut self, name: &str, size: u64) -> Result<(), Failure> {
        let mut header = tar::Header::new_gnu();
        header.set_path(name).map_err(|e| Failure::new(Exit::Protocol, e.to_string()))?;
        header.set_mode(0o644);
        header.set_size(size);
        header.set_cksum();
        self.write(header.as_bytes()).await
    }

    async fn write(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.file.write_all(bytes).await.map_err(|e| cannot_write(&e))
    }

    async fn pad(&mut self, size: u64) -> Result<(), Failure> {
        let rest = (BLOCK_BYTES - size % BLOCK_BYTES) % BLOCK_BYTES;
        self.write(&[0; BLOCK_BYTES as usize][..rest as usize]).await
    }

    async fn whole(&mut self, name: &str, content: &[u8]) -> Result<(), Failure> {
        self.head(name, content.len() as u64).await?;
        self.write(content).await?;
        self.pad(content.len() as u64).await
    }

    /// The file from its beginning, and its length.
    async fn finish(mut self) -> Result<(File, u64), Failure> {
        self.write(&[0; 2 * BLOCK_BYTES as usize]).await?;
        self.file.flush().await.map_err(|e| cannot_write(&e))?;
        let mut file = self.file.into_inner();
        let bytes = file.stream_position().await.map_err(|e| cannot_write(&e))?;
        file.rewind().await.map_err(|e| cannot_write(&e))?;
        Ok((file, bytes))
    }
}

fn cannot_write(error: &std::io::Error) -> Failure {
    Failure::new(Exit::Io, format!("cannot write what was fetched to a temporary file: {error}"))
}

struct Hex<'a>(&'a [u8]);

impl std::fmt::LowerHex for Hex<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_machine_is_trusted_without_tls() {
        for (registry, is) in [
            ("localhost:5000", true),
            ("127.0.0.1", true),
            ("[::1]:5000", true),
            ("localhost.example.org", false),
            ("10.0.0.1:5000", false),
            ("index.docker.io", false),
        ] {
            assert_eq!(is_loopback(registry), is, "{registry}");
        }
    }
}
