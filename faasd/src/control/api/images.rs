//! The routes of root images.

use axum::Json;
use axum::body::Body;
use axum::extract::{RawQuery, State};
use axum::http::StatusCode;

use super::handlers::{Result, discard, spool, within};
use super::{Api, ApiError, IMPORT, QUICK, REMOVE};
use crate::api::types::{Images, ImportedImage, Pruned, ROOT_ARCHIVE_BYTES_MAX};
use crate::core::image::ImageName;

pub(super) async fn list(State(api): State<Api>) -> Result<Json<Images>> {
    let images = within(QUICK, "listing the images", api.service.images()).await?;
    Ok(Json(Images { images }))
}

pub(super) async fn import(
    State(api): State<Api>,
    RawQuery(query): RawQuery,
    mut body: Body,
) -> Result<Json<ImportedImage>> {
    let imported = within(IMPORT, "the import", async {
        let [name, fallback] = values(query.as_deref(), ["name", "fallback"])?;
        let (name, fallback) = (name.map(image_name).transpose()?, fallback.map(image_name).transpose()?);
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

pub(super) async fn remove(State(api): State<Api>, RawQuery(query): RawQuery) -> Result<StatusCode> {
    let [name] = values(query.as_deref(), ["name"])?;
    let name = name.ok_or_else(|| ApiError::invalid("say which image: ?name=NAME"))?;
    within(REMOVE, "removing the image", api.service.remove_image(image_name(name)?)).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn prune(State(api): State<Api>, RawQuery(query): RawQuery) -> Result<Json<Pruned>> {
    let names = match values(query.as_deref(), ["names"])? {
        [None | Some("false")] => false,
        [Some("true")] => true,
        [Some(other)] => return Err(ApiError::invalid(format!("'names={other}' is neither true nor false"))),
    };
    within(REMOVE, "removing images", api.service.prune_images(names)).await.map(Json)
}

fn image_name(text: &str) -> Result<ImageName> {
    text.parse().map_err(|e: crate::core::image::ImageNameError| ApiError::invalid(e.to_string()))
}

/// The values of a query's keys. No name of an image has a character that would have to be escaped in one.
fn values<'a, const N: usize>(query: Option<&'a str>, keys: [&str; N]) -> Result<[Option<&'a str>; N]> {
    let mut found = [None; N];
    for pair in query.unwrap_or_default().split('&').filter(|pair| !pair.is_empty()) {
        let known = pair.split_once('=').and_then(|(key, value)| {
            let index = keys.iter().position(|known| *known == key)?;
            Some((index, value))
        });
        match known {
            Some((index, value)) if found[index].is_none() => found[index] = Some(value),
            _ => {
                return Err(ApiError::invalid(format!(
                    "'?{pair}' is not understood; the keys are {}",
                    keys.join(", ")
                )));
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_read_or_refused() {
        assert_eq!(values(None, ["a"]).unwrap(), [None]);
        assert_eq!(values(Some("b=x/y:1&a="), ["a", "b"]).unwrap(), [Some(""), Some("x/y:1")]);
        for bad in ["c=1", "a", "a=1&a=2"] {
            assert!(values(Some(bad), ["a", "b"]).is_err(), "{bad}");
        }
    }
}
