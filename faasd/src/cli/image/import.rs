//! `faas image import`

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use clap::Args;
use tar::Builder;

use super::report;
use crate::cli::{Context, Exit, Failure, Output};
use crate::core::image::ImageName;

/// Bring in an image from a file, a directory or standard input
///
/// What it is is seen from its content: a root file system as a tar file; an OCI image layout, as a directory or a tar
/// file; what `docker save` and `podman save` write. Tar files may be compressed by gzip or zstd.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  faas image import rootfs.tar.gz --name base:1
  docker save app:2 | faas image import -
  podman save --format oci-archive app:2 -o app.tar && faas image import app.tar
  faas image import ./layout --name app:2
  tar -C root -c . | faas image import - --name base:1")]
pub struct Import {
    /// The archive, or a layout's directory, or - for standard input
    path: PathBuf,
    /// What to call it [default: what the archive says, or else the file's own name]
    #[arg(long)]
    name: Option<ImageName>,
    #[command(flatten)]
    output: Output,
}

impl Import {
    pub async fn run(self, context: &Context) -> Result<(), Failure> {
        let path = &self.path;
        let fallback = file_name(path);
        let client = &context.client;
        let imported = if path.as_os_str() == "-" {
            let spinner = context.ui.spinner("importing".to_owned());
            let imported = client.import_image(tokio::io::stdin(), None, self.name.as_ref(), None).await;
            spinner.finish_and_clear();
            imported
        } else {
            let (file, bytes) = open(path)?;
            let bar = context.ui.bar("importing", bytes.unwrap_or_default());
            let archive = bar.wrap_async_read(tokio::fs::File::from_std(file));
            let imported = client.import_image(archive, bytes, self.name.as_ref(), fallback.as_ref()).await;
            bar.finish_and_clear();
            imported
        };
        let imported = imported.map_err(|e| {
            let failure = Failure::from(e);
            match self.name.is_none() && failure.message.contains("called") {
                true => failure.hint("give it a name: `--name NAME:TAG`"),
                false => failure,
            }
        })?;
        report(context, self.output, &imported)
    }
}

/// An image that nobody has named is called like its file: `base-1.tar.gz` is `base-1`.
fn file_name(path: &Path) -> Option<ImageName> {
    let name = path.file_name()?.to_str()?.to_ascii_lowercase();
    let mut stem = name.as_str();
    for ending in [".zst", ".gz", ".tgz", ".tar"] {
        stem = stem.strip_suffix(ending).unwrap_or(stem);
    }
    stem.parse().ok()
}

fn open(path: &Path) -> Result<(File, Option<u64>), Failure> {
    let failed = |e: io::Error| Failure::file("read", path, &e);
    let metadata = fs::metadata(path).map_err(failed)?;
    if metadata.is_dir() {
        return layout(path).map(|(file, bytes)| (file, Some(bytes)));
    }
    let kind = metadata.file_type();
    let bytes = (!kind.is_fifo() && !kind.is_char_device()).then_some(metadata.len());
    Ok((File::open(path).map_err(failed)?, bytes))
}

/// A layout's directory as a tar file.
fn layout(dir: &Path) -> Result<(File, u64), Failure> {
    if !dir.join("oci-layout").is_file() {
        let text = format!("{} is no OCI image layout", dir.display());
        let hint = format!(
            "a root file system is packed first: `tar -C {} -c . | faas image import - --name NAME:TAG`",
            dir.display()
        );
        return Err(Failure::new(Exit::Data, text).hint(hint));
    }
    let packed = (|| {
        let mut tar = Builder::new(io::BufWriter::new(tempfile::tempfile()?));
        tar.follow_symlinks(true);
        for file in ["oci-layout", "index.json"] {
            tar.append_path_with_name(dir.join(file), file)?;
        }
        let blobs = Path::new("blobs/sha256");
        for entry in fs::read_dir(dir.join(blobs))? {
            let entry = entry?;
            tar.append_path_with_name(entry.path(), blobs.join(entry.file_name()))?;
        }
        let mut file = tar.into_inner()?.into_inner().map_err(io::IntoInnerError::into_error)?;
        let bytes = io::Seek::stream_position(&mut file)?;
        io::Seek::rewind(&mut file)?;
        Ok((file, bytes))
    })();
    packed.map_err(|e: io::Error| Failure::file("pack", dir, &e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_lends_its_name() {
        let name = |path: &str| file_name(Path::new(path)).map(|name| name.to_string());
        assert_eq!(name("/x/Base-1.tar.gz").as_deref(), Some("base-1:latest"));
        assert_eq!(name("app.tgz").as_deref(), Some("app:latest"));
        assert_eq!(name("what is this.tar"), None);
    }
}
