//! One function a route: read what was sent within its limits, call the service within its time, write the answer.

use std::future::Future;
use std::time::Duration;

use axum::Json;
use axum::body::{Body, HttpBody};
use axum::extract::{Extension, OriginalUri, Path, Request, State};
use axum::http::{Method, Uri, header, uri::PathAndQuery};
use axum::response::{IntoResponse, NoContent, Response};
use http_body_util::BodyExt;
use jiff::Timestamp;
use tokio::io::AsyncWriteExt;

use super::answer::{Deployed, Tagged};
use super::extract::{Asked, If, Sent};
use super::list::Listing;
use super::{Api, ApiError, DEPLOY_MARGIN, INVOKE, QUICK, REMOVE, Source, Spool, UPLOAD};
use crate::api::condition::etag;
use crate::api::types::{
    ARCHIVE_BYTES_MAX, Deploy, Functions, INVITE_MS, Image, Invite, Invited, Join, PROBLEM_HEADER, Peers,
    Usage, Version,
};
use crate::control::metrics::MEDIA_TYPE;
use crate::core::name::FunctionName;

pub(super) type Result<T> = std::result::Result<T, ApiError>;

/// How long a refused upload is read on, so that the client gets to read the refusal.
const DISCARD: Duration = Duration::from_secs(5);

pub(super) async fn version(State(api): State<Api>) -> Result<Json<Version>> {
    let version = async { Ok(api.service.version().await) };
    within(QUICK, "looking up the version", version).await.map(Json)
}

pub(super) async fn functions(
    State(api): State<Api>,
    Asked(listing): Asked<Listing>,
) -> Result<Json<Functions>> {
    listing.check()?;
    let functions = within(QUICK, "listing the functions", api.service.functions(&listing.prefix)).await?;
    let (functions, next) = listing.page(functions, |function| function.name.to_string());
    Ok(Json(Functions { functions, next }))
}

pub(super) async fn usage(State(api): State<Api>, Asked(listing): Asked<Listing>) -> Result<Json<Usage>> {
    listing.check()?;
    let functions = within(QUICK, "looking at the functions", api.service.usage(&listing.prefix)).await?;
    let taken_at = Timestamp::now();
    let (functions, next) = listing.page(functions, |function| function.name.to_string());
    Ok(Json(Usage { taken_at, functions, next }))
}

pub(super) async fn function(State(api): State<Api>, Path(name): Path<String>) -> Result<Tagged> {
    let name = parse_name(&name)?;
    within(QUICK, "looking up the function", api.service.function(&name)).await.map(Tagged)
}

pub(super) async fn add_image(State(api): State<Api>, mut body: Body) -> Result<Json<Image>> {
    let added = within(UPLOAD, "the upload", async {
        let _room = api.spool.room.try_acquire().map_err(|_| ApiError::Unavailable {
            title: "too many uploads run already".into(),
            detail: Some("try again in a few seconds".into()),
        })?;
        let archive = spool(&api.spool, &mut body, api.spool.archive_bytes_max).await?;
        api.service.add_image(&archive).await
    })
    .await;
    if added.is_err() {
        discard(body).await;
    }
    added.map(Json)
}

pub(super) async fn image(State(api): State<Api>, Path(digest): Path<String>) -> Result<NoContent> {
    match api.service.has_image(&digest).await {
        true => Ok(NoContent),
        false => Err(ApiError::no_image(&digest)),
    }
}

/// Writes a body to a file that is removed when the returned path is dropped.
pub(super) async fn spool(spool: &Spool, body: &mut Body, limit_bytes: u64) -> Result<tempfile::TempPath> {
    let too_large = ApiError::TooLarge { what: "the archive", limit_bytes };
    if body.size_hint().lower() > limit_bytes {
        return Err(too_large);
    }
    let failed = |e: std::io::Error| ApiError::Failed {
        title: format!("cannot write the upload to {}", spool.dir.display()),
        detail: Some(e.to_string()),
    };
    let (file, path) = tempfile::Builder::new()
        .prefix("upload-")
        .suffix(".tar")
        .tempfile_in(&spool.dir)
        .map_err(failed)?
        .into_parts();
    let mut file = tokio::fs::File::from_std(file);
    let mut received = 0u64;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|e| ApiError::invalid(format!("the upload broke off: {e}")))?;
        let Ok(data) = frame.into_data() else { continue };
        received += data.len() as u64;
        if received > limit_bytes {
            return Err(too_large);
        }
        file.write_all(&data).await.map_err(failed)?;
    }
    file.flush().await.map_err(failed)?;
    if received == 0 {
        return Err(ApiError::invalid("the archive is empty"));
    }
    Ok(path)
}

/// Reads on for a while what will not be used, whatever the reason: a client that still writes when the connection
/// closes sees a broken pipe in place of the answer.
pub(super) async fn discard(mut body: Body) {
    let mut left = ARCHIVE_BYTES_MAX;
    let reading = async {
        while let Some(Ok(frame)) = body.frame().await {
            left = left.saturating_sub(frame.data_ref().map_or(0, |data| data.len() as u64));
            if left == 0 {
                break;
            }
        }
    };
    // Whether it came to an end makes no difference to the answer.
    let _ = tokio::time::timeout(DISCARD, reading).await;
}

pub(super) async fn deploy(
    State(api): State<Api>,
    Path(name): Path<String>,
    If(condition): If,
    Sent(deploy): Sent<Deploy>,
) -> Result<Deployed> {
    let name = parse_name(&name)?;
    deploy.spec.check().map_err(|e| ApiError::invalid(e.to_string()))?;
    if let Some(other) = deploy.image.iter().chain(&deploy.dependencies).find(|d| !is_digest(d)) {
        return Err(ApiError::invalid(format!("'{other}' is no digest; write sha256: and 64 digits")));
    }
    let deadlines = &deploy.spec.deadlines;
    let limit = deadlines.start() + deadlines.drain() + DEPLOY_MARGIN;
    let before = within(QUICK, "looking up the function", api.service.function(&name)).await;
    let before = before.ok().map(|function| etag(&function));
    let function = within(limit, "the deploy", api.service.deploy(name, deploy, condition)).await?;
    Ok(Deployed { function, before })
}

fn is_digest(image: &str) -> bool {
    image
        .strip_prefix("sha256:")
        .is_some_and(|hex| hex.len() == 64 && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')))
}

pub(super) async fn remove(
    State(api): State<Api>,
    Path(name): Path<String>,
    If(condition): If,
) -> Result<NoContent> {
    let name = parse_name(&name)?;
    within(REMOVE, "removing the function", api.service.remove(&name, condition)).await?;
    Ok(NoContent)
}

pub(super) async fn invoke(
    State(api): State<Api>,
    OriginalUri(uri): OriginalUri,
    mut request: Request,
) -> Result<Response> {
    let (name, target) = invocation(&uri)?;
    *request.uri_mut() = target;
    let mut response = within(INVOKE, "the function", api.service.invoke(&name, request)).await?;
    response.headers_mut().remove(PROBLEM_HEADER);
    Ok(response)
}

/// Splits `/v1/functions/NAME/invoke/PATH?QUERY`. The path goes to the function byte for byte, percent signs included.
fn invocation(uri: &Uri) -> Result<(FunctionName, Uri)> {
    let bad = || ApiError::invalid(format!("'{uri}' cannot be taken apart"));
    let all = uri.path_and_query().map_or("", PathAndQuery::as_str);
    let rest = all.strip_prefix("/v1/functions/").ok_or_else(bad)?;
    let (name, rest) = rest.split_once("/invoke").ok_or_else(bad)?;
    let target = if rest.starts_with('/') { rest.to_owned() } else { format!("/{rest}") };
    Ok((parse_name(name)?, target.parse().map_err(|_| bad())?))
}

pub(super) async fn peers(State(api): State<Api>, Asked(listing): Asked<Listing>) -> Result<Json<Peers>> {
    listing.check()?;
    let peers = within(QUICK, "listing the peers", api.service.peers()).await?;
    let (peers, next) = listing.page(peers, |peer| peer.name.to_string());
    Ok(Json(Peers { peers, next }))
}

pub(super) async fn invite(State(api): State<Api>, Sent(invite): Sent<Invite>) -> Result<Json<Invited>> {
    if !INVITE_MS.contains(&invite.expires_in_ms) {
        return Err(ApiError::invalid(
            "an invitation is good for a minute at least, and for 30 days at most",
        ));
    }
    within(QUICK, "the invitation", api.service.invite(invite)).await.map(Json)
}

pub(super) async fn revoke(State(api): State<Api>, Path(name): Path<String>) -> Result<NoContent> {
    let name = parse_name(&name)?;
    within(QUICK, "revoking the peer", api.service.revoke(&name)).await?;
    Ok(NoContent)
}

pub(super) async fn join(
    State(api): State<Api>,
    source: Option<Extension<Source>>,
    Sent(join): Sent<Join>,
) -> Result<NoContent> {
    let Some(Extension(Source(source))) = source else {
        return Err(ApiError::Forbidden("a peer joins through the tunnel".into()));
    };
    within(QUICK, "joining", api.service.join(source, join)).await?;
    Ok(NoContent)
}

pub(super) async fn rotate(
    State(api): State<Api>,
    source: Option<Extension<Source>>,
    Sent(join): Sent<Join>,
) -> Result<NoContent> {
    let Some(Extension(Source(source))) = source else {
        return Err(ApiError::Forbidden("a peer changes its key through the tunnel".into()));
    };
    within(QUICK, "changing a peer's key", api.service.rotate(source, join)).await?;
    Ok(NoContent)
}

pub(super) async fn metrics(State(api): State<Api>) -> Result<Response> {
    let text = within(QUICK, "collecting the metrics", api.service.metrics()).await?;
    Ok(([(header::CONTENT_TYPE, MEDIA_TYPE)], text).into_response())
}

pub(super) async fn no_route(uri: Uri) -> ApiError {
    ApiError::NotFound { what: format!("route {}", uri.path()), suggestion: None }
}

pub(super) async fn no_method(method: Method, uri: Uri) -> ApiError {
    ApiError::Method { method: method.to_string(), path: uri.path().to_owned() }
}

pub(super) fn parse_name(name: &str) -> Result<FunctionName> {
    name.parse().map_err(|e: crate::core::name::NameError| ApiError::invalid(e.to_string()))
}

pub(super) async fn within<T>(
    limit: Duration,
    what: &str,
    work: impl Future<Output = Result<T>>,
) -> Result<T> {
    match tokio::time::timeout(limit, work).await {
        Ok(done) => done,
        Err(_) => Err(ApiError::TimedOut { what: what.to_owned(), seconds: limit.as_secs() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_invocation_keeps_its_path_and_query() {
        for (uri, target) in [
            ("/v1/functions/hello/invoke", "/"),
            ("/v1/functions/hello/invoke/", "/"),
            ("/v1/functions/hello/invoke?a=1", "/?a=1"),
            ("/v1/functions/hello/invoke/a%2Fb/c?d=%20", "/a%2Fb/c?d=%20"),
            ("/v1/functions/hello/invoke/invoke", "/invoke"),
        ] {
            let (name, found) = invocation(&uri.parse().unwrap()).unwrap();
            assert_eq!((name.as_str(), found.to_string().as_str()), ("hello", target), "{uri}");
        }
        assert!(invocation(&"/v1/functions/He/invoke/".parse().unwrap()).is_err());
    }
}
