//! What can go wrong with a request, as the API says it: an HTTP status, a sentence, a remedy.

use aide::OperationOutput;
use aide::generate::GenContext;
use aide::openapi::{self, Operation};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

use crate::api::types::{PROBLEM_HEADER, PROBLEM_MEDIA_TYPE, Problem};
use crate::core::name::FunctionName;

/// An error of the API. Its text is the problem's title: it names the thing and the operation.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ApiError {
    /// 404. `what` reads like "function 'helo'".
    #[error("no {what}{}", did_you_mean(suggestion.as_deref()))]
    NotFound { what: String, suggestion: Option<String> },
    /// 400: the request makes no sense, whatever the daemon's state.
    #[error("{title}")]
    Invalid { title: String, detail: Option<String> },
    /// 403: it makes sense, but not from this sender.
    #[error("{0}")]
    Forbidden(String),
    /// 403: what is for admins alone.
    #[error("{} no admin", peer.as_ref().map_or("whoever asks is".to_owned(), |name| format!("'{name}' is")))]
    NotAdmin { peer: Option<FunctionName> },
    /// 403: sent by a web page in an admin's browser.
    #[error("the API is not for web pages")]
    Page,
    /// 405.
    #[error("{method} is no method of {path}")]
    Method { method: String, path: String },
    /// 409: it contradicts what is there.
    #[error("{title}")]
    Conflict { title: String, detail: Option<String> },
    /// 412: what is there is not what the caller wants to change.
    #[error("'{name}' is not as you expect it: you expect {expected}, and there is {found}")]
    Precondition { name: FunctionName, expected: String, found: String },
    /// 413.
    #[error("{what} is larger than {limit_bytes} bytes")]
    TooLarge { what: &'static str, limit_bytes: u64 },
    /// 415.
    #[error("the request's media type is not application/json")]
    MediaType,
    /// 429.
    #[error("too many changes at a time; the next is taken in {seconds} s")]
    TooMany { seconds: u64 },
    /// 500: the daemon tried and failed.
    #[error("{title}")]
    Failed { title: String, detail: Option<String> },
    /// 502: the function's answer broke off or is no HTTP.
    #[error("{0}")]
    BadAnswer(String),
    /// 503: not now. `detail` says when or what to do.
    #[error("{title}")]
    Unavailable { title: String, detail: Option<String> },
    /// 504.
    #[error("{what} took longer than {seconds} s")]
    TimedOut { what: String, seconds: u64 },
}

impl ApiError {
    /// An unknown function, with the nearest of those that exist.
    pub fn no_function<'a>(name: &FunctionName, known: impl IntoIterator<Item = &'a str>) -> Self {
        Self::not_found("function", name, known)
    }

    /// An unknown peer, with the nearest of those that exist.
    pub fn no_peer<'a>(name: &FunctionName, known: impl IntoIterator<Item = &'a str>) -> Self {
        Self::not_found("peer", name, known)
    }

    pub fn no_image(digest: &str) -> Self {
        Self::NotFound { what: format!("image {digest}"), suggestion: None }
    }

    fn not_found<'a>(kind: &str, name: &FunctionName, known: impl IntoIterator<Item = &'a str>) -> Self {
        let suggestion = nearest(name.as_str(), known).map(str::to_owned);
        Self::NotFound { what: format!("{kind} '{name}'"), suggestion }
    }

    pub fn invalid(title: impl Into<String>) -> Self {
        Self::Invalid { title: title.into(), detail: None }
    }

    pub fn conflict(title: impl Into<String>) -> Self {
        Self::Conflict { title: title.into(), detail: None }
    }

    /// A failure, told with its whole chain of causes.
    pub fn failed(error: &dyn std::error::Error) -> Self {
        let mut causes = Vec::new();
        let mut cause = error.source();
        while let Some(error) = cause {
            causes.push(error.to_string());
            cause = error.source();
        }
        let detail = (!causes.is_empty()).then(|| causes.join(": "));
        Self::Failed { title: error.to_string(), detail }
    }

    #[must_use]
    pub const fn status(&self) -> StatusCode {
        match self {
            Self::NotFound { .. } => StatusCode::NOT_FOUND,
            Self::Invalid { .. } => StatusCode::BAD_REQUEST,
            Self::Forbidden(_) | Self::NotAdmin { .. } | Self::Page => StatusCode::FORBIDDEN,
            Self::Method { .. } => StatusCode::METHOD_NOT_ALLOWED,
            Self::Conflict { .. } => StatusCode::CONFLICT,
            Self::Precondition { .. } => StatusCode::PRECONDITION_FAILED,
            Self::TooMany { .. } => StatusCode::TOO_MANY_REQUESTS,
            Self::TooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            Self::MediaType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::Failed { .. } => StatusCode::INTERNAL_SERVER_ERROR,
            Self::BadAnswer(_) => StatusCode::BAD_GATEWAY,
            Self::Unavailable { .. } => StatusCode::SERVICE_UNAVAILABLE,
            Self::TimedOut { .. } => StatusCode::GATEWAY_TIMEOUT,
        }
    }

    fn detail(&self) -> Option<String> {
        match self {
            Self::Invalid { detail, .. }
            | Self::Conflict { detail, .. }
            | Self::Failed { detail, .. }
            | Self::Unavailable { detail, .. } => detail.clone(),
            Self::Precondition { .. } => Some(
                "somebody changed it meanwhile: read it again, and repeat the change with its new ETag"
                    .to_owned(),
            ),
            Self::NotAdmin { peer } => Some(match peer {
                Some(name) => format!("on the server: `faas vpn role {name} admin`"),
                None => "peers that have joined as admins may ask".to_owned(),
            }),
            Self::Page => Some(
                "use `faas`, or a client that sends no Origin and the server's address as Host".to_owned(),
            ),
            Self::TooMany { .. } => {
                Some("`faas` waits by itself; other clients go by Retry-After".to_owned())
            }
            _ => None,
        }
    }

    #[must_use]
    pub fn problem(&self) -> Problem {
        Problem { status: self.status().as_u16(), title: self.to_string(), detail: self.detail() }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let headers = [
            (header::CONTENT_TYPE.as_str(), HeaderValue::from_static(PROBLEM_MEDIA_TYPE)),
            (PROBLEM_HEADER, HeaderValue::from_static("1")),
        ];
        let mut response = (self.status(), headers, axum::Json(self.problem())).into_response();
        if let Self::TooMany { seconds } = self {
            response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
        }
        response
    }
}

/// Every operation may fail, and says so in one shape.
impl OperationOutput for ApiError {
    type Inner = Problem;

    fn inferred_responses(
        context: &mut GenContext,
        operation: &mut Operation,
    ) -> Vec<(Option<u16>, openapi::Response)> {
        let mut problem = axum::Json::<Problem>::operation_response(context, operation).unwrap_or_default();
        problem.content = problem
            .content
            .into_iter()
            .map(|(_, content)| (PROBLEM_MEDIA_TYPE.to_owned(), content))
            .collect();
        vec![(None, problem)]
    }
}

/// The known name that `wanted` most likely is, if any is near.
pub fn nearest<'a>(wanted: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    known
        .into_iter()
        .map(|name| (strsim::damerau_levenshtein(wanted, name), name))
        .filter(|(distance, name)| {
            *distance <= name.len().max(wanted.len()) / 3 + 1 && *distance < name.len()
        })
        .min()
        .map(|(_, name)| name)
}

fn did_you_mean(suggestion: Option<&str>) -> String {
    suggestion.map(|name| format!("; did you mean '{name}'?")).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_typo_finds_its_neighbour() {
        let known = ["hello", "world", "a"];
        assert_eq!(nearest("helo", known), Some("hello"));
        assert_eq!(nearest("wrold", known), Some("world"));
        assert_eq!(nearest("payments", known), None);
        assert_eq!(nearest("b", known), None, "nothing of 'b' is in 'a'");
        let error = ApiError::no_function(&"helo".parse().unwrap(), known);
        assert_eq!(error.problem().title, "no function 'helo'; did you mean 'hello'?");
        assert_eq!(error.problem().status, 404);
    }

    #[test]
    fn a_failure_tells_its_causes() {
        #[derive(Debug, thiserror::Error)]
        #[error("cannot start hello")]
        struct Outer(#[source] std::io::Error);
        let problem = ApiError::failed(&Outer(std::io::Error::other("no memory"))).problem();
        assert_eq!((problem.status, problem.title.as_str()), (500, "cannot start hello"));
        assert_eq!(problem.detail.as_deref(), Some("no memory"));
    }
}
