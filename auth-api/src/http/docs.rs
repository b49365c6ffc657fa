//! Documentation pages: Swagger UI and `ReDoc`, with inline scripts, so that they work offline and under
//! a Content Security Policy that permits no other script.

use std::sync::LazyLock;

use aide::redoc::Redoc;
use aide::swagger::Swagger;
use axum::Router;
use axum::http::header::{CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderName};
use axum::response::IntoResponse;
use axum::routing::{MethodRouter, get};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use serde_json::Value;

use super::error::only;
use crate::domain::digest::sha256;

const DOCUMENT_PATH: &str = "/openapi.json";
const TITLE: &str = "auth-api";
/// Image that `ReDoc` would load from its vendor, and the empty image that replaces it.
const REMOTE_LOGO: &str = "https://cdn.redoc.ly/redoc/logo-mini.svg";
const EMPTY_IMAGE: &str = "data:image/gif;base64,R0lGODlhAQABAAAAACwAAAAAAQABAAA=";

/// Declares an empty icon. Browsers request one from a page that declares none.
const HEAD_WITH_EMPTY_ICON: &str = "<head><link rel=\"icon\" href=\"data:,\">";

/// Page with its Content Security Policy.
struct Page {
    html: Bytes,
    policy: String,
}

static SWAGGER_UI: LazyLock<Page> =
    LazyLock::new(|| Page::new(&Swagger::new(DOCUMENT_PATH).with_title(TITLE).html()));
static REDOC: LazyLock<Page> = LazyLock::new(|| {
    let html = Redoc::new(DOCUMENT_PATH).with_title(TITLE).html();
    Page::new(&html.replace(REMOTE_LOGO, EMPTY_IMAGE))
});

/// Returns the routes of both pages and of the OpenAPI document that they show.
pub(crate) fn router<S: Clone + Send + Sync + 'static>(document: &Value) -> Router<S> {
    let document = Bytes::from(document.to_string());
    let document = async move || ([(CONTENT_TYPE, "application/json")], document.clone());
    Router::new()
        .route(DOCUMENT_PATH, only("GET", get(document)))
        .route("/docs", page(&SWAGGER_UI))
        .route("/redoc", page(&REDOC))
}

fn page<S: Clone + Send + Sync + 'static>(page: &'static LazyLock<Page>) -> MethodRouter<S> {
    only("GET", get(async || page.to_response()))
}

impl Page {
    fn new(html: &str) -> Self {
        let html = html.replacen("<head>", HEAD_WITH_EMPTY_ICON, 1);
        let scripts: Vec<_> = inline_scripts(&html).map(script_source).collect();
        let policy = format!(
            "default-src 'none'; script-src {}; style-src 'unsafe-inline'; img-src 'self' data:; \
             font-src data:; connect-src 'self'; worker-src blob:; base-uri 'none'; \
             form-action 'none'; frame-ancestors 'none'",
            scripts.join(" ")
        );
        Self {
            html: html.into(),
            policy,
        }
    }

    fn to_response(&self) -> impl IntoResponse {
        let headers: [(HeaderName, &str); 2] = [
            (CONTENT_TYPE, "text/html; charset=utf-8"),
            (CONTENT_SECURITY_POLICY, &self.policy),
        ];
        (headers, self.html.clone()).into_response()
    }
}

/// Returns the texts between `<script>` and `</script>`, which are the only scripts of the pages.
fn inline_scripts(html: &str) -> impl Iterator<Item = &str> {
    let mut rest = html;
    std::iter::from_fn(move || {
        let (_, script) = rest.split_once("<script>")?;
        let (script, after) = script.split_once("</script>")?;
        rest = after;
        Some(script)
    })
}

/// Returns the source expression that permits a script (Content Security Policy Level 3, section 2.3.1).
fn script_source(script: &str) -> String {
    format!(
        "'sha256-{}'",
        BASE64_STANDARD.encode(sha256(&[script.as_bytes()]))
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_policy_permits_each_script_by_its_hash() {
        let page = Page::new("<p><script>alert(1)</script>x<script></script>");
        let empty_script = "'sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU='";
        assert!(page.policy.contains(empty_script), "{}", page.policy);
        assert_eq!(page.policy.matches("'sha256-").count(), 2);
    }

    #[test]
    fn no_page_loads_from_another_host() {
        for page in [&*SWAGGER_UI, &*REDOC] {
            let html = std::str::from_utf8(&page.html).unwrap();
            assert!(!html.contains("src=\"http"), "{}", &html[..200]);
            assert!(!html.contains(REMOTE_LOGO));
        }
    }
}
