//! The routes of root images.

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::response::NoContent;

use schemars::JsonSchema;
use serde::Deserialize;

use super::extract::Asked;
use super::handlers::{Result, discard, spool, within};
use super::list::Listing;
use super::{Api, ApiError, IMPORT, QUICK, REMOVE};
use crate::api::types::{Images, ImportedImage, Pruned, ROOT_ARCHIVE_BYTES_MAX};
use crate::core::image::ImageName;

pub(super) async fn list(State(api): State<Api>, Asked(listing): Asked<Listing>) -> Result<Json<Images>> {
    listing.check()?;
    let images = within(QUICK, "listing the images", api.service.images()).await?;
    let (images, next) = listing.page(images, |image| image.name.to_string());
    Ok(Json(Images { images, next }))
}

pub(super) async fn import(
    State(api): State<Api>,
    Asked(Import { name, fallback }): Asked<Import>,
    mut body: Body,
) -> Result<Json<ImportedImage>> {
    let imported = within(IMPORT, "the import", async {
        let _room = api.spool.room.try_acquire().map_err(|_| ApiError::Unavailable {
            title: "too many uploads run already".into(),
            detail: Some("try again in a few seconds".into()),
        })?;
        let archive = spool(&api.spool, &mut body, ROOT_ARCHIVE_BYTES_MAX).await?;
        api.service.import_image(&archive, name, fallback).await
    })
    .await;
    if imported.is_err() {
        discard(body).await;
    }
    imported.map(Json)
}

pub(super) async fn remove(State(api): State<Api>, Asked(Named { name }): Asked<Named>) -> Result<NoContent> {
    within(REMOVE, "removing the image", api.service.remove_image(name)).await?;
    Ok(NoContent)
}

pub(super) async fn prune(
    State(api): State<Api>,
    Asked(Prune { names }): Asked<Prune>,
) -> Result<Json<Pruned>> {
    within(REMOVE, "removing images", api.service.prune_images(names)).await.map(Json)
}

/// What an imported image is called.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Import {
    /// Its name, whatever the archive says
    name: Option<ImageName>,
    /// Its name, if the archive has none
    fallback: Option<ImageName>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Named {
    /// Which image
    name: ImageName,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Prune {
    /// Also the names of images that no function runs
    #[serde(default)]
    names: bool,
}
