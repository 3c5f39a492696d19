//! The admin port: HTTP/1.1 by hyper over an executor's streams; GET and HEAD of four paths, each a page made anew.
//!
//! Bounds: `CONNECTIONS_MAX` connections (one more is closed at once), `HEAD_BYTES_MAX` bytes of a request's head, and
//! `IDLE_MAX` without a finished head, which ends idle connections, clients that drip bytes and clients that never read alike.

use super::{Source, page};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ACCEPT, ALLOW, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS};
use hyper::{Method, Request, Response, StatusCode, server::conn::http1, service::service_fn};
use std::cell::Cell;
use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

/// The most connections at a time.
pub const CONNECTIONS_MAX: usize = 64;
/// The longest head of a request: its line and its fields. (The least that hyper can be held to.)
pub const HEAD_BYTES_MAX: usize = 8192;
/// How long a connection may be without a request, to within a quarter.
pub const IDLE_MAX: Duration = Duration::from_secs(10);
/// The most fields of a request's head.
const FIELDS_MAX: usize = 64;
/// Looks within one `idle_max`: a connection is closed at the last of as many in which no request came.
const IDLE_LOOKS: u32 = 4;
/// After a failed accept (no descriptors left), before the next.
pub(super) const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

pub(super) type Shown = Arc<dyn Source + Send + Sync>;

/// One connection from its first byte to its end, on any executor: its stream and its sleep.
pub(super) async fn talk<S>(stream: S, source: Shown, idle_max: Duration, sleep: impl AsyncFn(Duration))
where
    S: hyper::rt::Read + hyper::rt::Write + Unpin,
{
    let requests = Rc::new(Cell::new(0u64));
    let counted = requests.clone();
    let service = service_fn(move |request: Request<Incoming>| {
        counted.set(counted.get() + 1);
        let response = answer(&request, source.as_ref());
        async move { Ok::<_, Infallible>(response) }
    });
    let mut builder = http1::Builder::new();
    builder.max_buf_size(HEAD_BYTES_MAX).max_headers(FIELDS_MAX).half_close(true);
    let connection = pin!(builder.serve_connection(stream, service));
    // A malformed head has been answered with 400 by hyper; what else ends a connection concerns its client alone.
    let _ = first(connection, pin!(idle(&requests, idle_max, sleep))).await;
}

/// Ends when no request has come for `idle_max`.
async fn idle(requests: &Cell<u64>, idle_max: Duration, sleep: impl AsyncFn(Duration)) {
    let (mut seen, mut quiet) = (requests.get(), 0);
    while quiet < IDLE_LOOKS {
        sleep(idle_max / IDLE_LOOKS).await;
        quiet = if requests.get() == seen { quiet + 1 } else { 0 };
        seen = requests.get();
    }
}

fn answer(request: &Request<Incoming>, source: &dyn Source) -> Response<Full<Bytes>> {
    if request.method() != Method::GET && request.method() != Method::HEAD {
        let mut response = text(StatusCode::METHOD_NOT_ALLOWED, page::PLAIN, "this port is for looking: GET or HEAD\n".to_owned());
        response.headers_mut().insert(ALLOW, hyper::header::HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    match request.uri().path() {
        "/" => text(StatusCode::OK, page::HTML, page::html(&source.health(), &source.info())),
        "/metrics" => text(StatusCode::OK, page::PROMETHEUS, source.metrics()),
        "/health" => match source.health() {
            Ok(()) => text(StatusCode::OK, page::PLAIN, "ok\n".to_owned()),
            Err(why) => text(StatusCode::SERVICE_UNAVAILABLE, page::PLAIN, format!("{why}\n")),
        },
        "/info" if wants_json(request) => text(StatusCode::OK, page::JSON, page::json(&source.info())),
        "/info" => text(StatusCode::OK, page::PLAIN, source.info()),
        _ => text(StatusCode::NOT_FOUND, page::PLAIN, "there is / and /metrics, /health, /info\n".to_owned()),
    }
}

fn wants_json(request: &Request<Incoming>) -> bool {
    let accept = request.headers().get(ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or("");
    accept.contains("application/json") || request.uri().query() == Some("json")
}

fn text(status: StatusCode, content_type: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    let fields = [
        (CONTENT_TYPE, content_type),
        (CACHE_CONTROL, "no-store"),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (CONTENT_SECURITY_POLICY, "default-src 'none'; style-src 'unsafe-inline'"),
    ];
    for (name, value) in fields {
        response.headers_mut().insert(name, hyper::header::HeaderValue::from_static(value));
    }
    response
}

pub(super) enum First<A, B> {
    A(A),
    B(B),
}

/// The output of whichever is ready first; `a` if both are.
pub(super) async fn first<A: Future, B: Future>(mut a: Pin<&mut A>, mut b: Pin<&mut B>) -> First<A::Output, B::Output> {
    poll_fn(|context| {
        if let Poll::Ready(output) = a.as_mut().poll(context) {
            return Poll::Ready(First::A(output));
        }
        b.as_mut().poll(context).map(First::B)
    })
    .await
}
