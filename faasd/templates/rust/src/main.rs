use std::convert::Infallible;

use faasd_sdk::http::{self, BodyExt, Bytes, Full, Incoming, Method, Request, Response, StatusCode};

fn main() -> Result<(), faasd_sdk::Error> {
    http::run(|request| async { Ok::<_, Infallible>(answer(request).await) })
}

async fn answer(request: Request<Incoming>) -> Response<Full<Bytes>> {
    match (request.method(), request.uri().path()) {
        (&Method::GET, "/") => Response::new(Full::from("hello\n")),
        (&Method::POST, "/shout") => match request.into_body().collect().await {
            Ok(body) => Response::new(Full::from(body.to_bytes().to_ascii_uppercase())),
            Err(_) => status(StatusCode::BAD_REQUEST, "the body broke off\n"),
        },
        _ => status(StatusCode::NOT_FOUND, "there is GET / and POST /shout\n"),
    }
}

fn status(status: StatusCode, text: &'static str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(text));
    *response.status_mut() = status;
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_has_its_text() {
        let response = status(StatusCode::NOT_FOUND, "nothing\n");
        assert_eq!(response.status(), 404);
    }
}
