//! What is deployed of a directory: its declaration, its code, what that depends on.

use std::path::PathBuf;

use toml::Table;

use super::dependencies::{self, Installed};
use super::deploy::build;
use super::detect::{Detected, detect, detect_image};
use super::pack::{Packed, pack};
use super::{Context, Exit, Failure};
use crate::api::types::Image;
use crate::core::name::FunctionName;
use crate::core::spec::{Contract, FunctionSpec};
use crate::runtime::image;

/// Where a function is declared.
#[derive(Clone, Debug)]
pub struct Source {
    pub name: FunctionName,
    /// None for one that is nothing but an image.
    pub dir: Option<PathBuf>,
    /// What comes before its file.
    pub over: Table,
}

/// A function, ready to be sent.
#[derive(Debug)]
pub struct Gathered {
    pub spec: FunctionSpec,
    pub code: Option<Packed>,
    /// Where its code is, if that may depend on packages.
    handler: Option<PathBuf>,
    /// A sentence for people.
    pub why: String,
    pub warning: Option<String>,
}

impl Source {
    /// Builds and packs it.
    ///
    /// # Errors
    /// [`Failure`], with the remedy.
    pub async fn gather(&self, context: &Context) -> Result<Gathered, Failure> {
        let Detected { spec, why, warning, program, has_code } = match &self.dir {
            Some(dir) => {
                build(context, dir, &self.over).await?;
                detect(dir, &self.over)?
            }
            None => detect_image(&self.over)?,
        };
        let dir = self.dir.as_ref().filter(|_| has_code);
        let code = dir.map(|dir| pack(dir, program.as_deref())).transpose()?;
        let handler = dir.filter(|_| spec.contract == Contract::Handler).cloned();
        Ok(Gathered { spec, code, handler, why, warning })
    }
}

impl Gathered {
    /// The digest that the daemon will give the code: that of the tree, found out in the same way.
    ///
    /// # Errors
    /// [`Failure`], if the daemon would refuse it.
    pub fn digest(&mut self) -> Result<Option<String>, Failure> {
        use std::io::Seek;
        let Some(code) = &mut self.code else { return Ok(None) };
        let digest = image::digest(&code.archive).map_err(|e| Failure::chain(Exit::Data, &e))?;
        code.archive.rewind().map_err(|e| Failure::new(Exit::Io, format!("cannot read the archive: {e}")))?;
        Ok(Some(digest))
    }

    /// Uploads the code.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn upload(&mut self, context: &Context) -> Result<Option<(Image, usize)>, Failure> {
        let Some(Packed { archive, bytes, files }) = self.code.take() else { return Ok(None) };
        let bar = context.ui.bar("uploading", bytes);
        let archive = bar.wrap_async_read(tokio::fs::File::from_std(archive));
        let uploaded = context.client.add_image(archive, bytes).await;
        bar.finish_and_clear();
        Ok(Some((uploaded?, files)))
    }

    /// Installs what the code depends on, unless that was done before.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn install(&self, context: &Context) -> Result<Option<Installed>, Failure> {
        match &self.handler {
            Some(dir) => dependencies::install(context, dir, self.spec.handler_parts().language).await,
            None => Ok(None),
        }
    }

    /// The digest of what the code depends on, as far as that is known here: `Some(None)` if it was never uploaded.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn dependencies(&self, context: &Context) -> Result<Option<Option<String>>, Failure> {
        match &self.handler {
            Some(dir) => dependencies::digest(context, dir, self.spec.handler_parts().language).await,
            None => Ok(None),
        }
    }
}
