//! Pages about the endpoints: Swagger UI and `ReDoc`, with their scripts in them, so that they work
//! offline and under a policy that lets no other script run.

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

use crate::domain::refresh_token::sha256;
use crate::error::only;

const DOCUMENT: &str = "/openapi.json";
const TITLE: &str = "auth-api";
/// A picture that `ReDoc` would fetch from its makers, and what stands for it: nothing.
const REMOTE_LOGO: &str = "https://cdn.redoc.ly/redoc/logo-mini.svg";
const NO_LOGO: &str = "data:image/gif;base64,R0lGODlhAQABAAAAACwAAAAAAQABAAA=";

/// Browsers ask for an icon where a page names none.
const NO_ICON: &str = "<head><link rel=\"icon\" href=\"data:,\">";

/// A page and the Content Security Policy that it works under.
struct Page {
    html: Bytes,
    policy: String,
}

static SWAGGER_UI: LazyLock<Page> =
    LazyLock::new(|| Page::new(&Swagger::new(DOCUMENT).with_title(TITLE).html()));
static REDOC: LazyLock<Page> = LazyLock::new(|| {
    let html = Redoc::new(DOCUMENT).with_title(TITLE).html();
    Page::new(&html.replace(REMOTE_LOGO, NO_LOGO))
});

/// `/docs`, `/redoc` and the document that they show.
pub(crate) fn router<S: Clone + Send + Sync + 'static>(document: &Value) -> Router<S> {
    let document = Bytes::from(document.to_string());
    let document = async move || ([(CONTENT_TYPE, "application/json")], document.clone());
    Router::new()
        .route(DOCUMENT, only("GET", get(document)))
        .route("/docs", page(&SWAGGER_UI))
        .route("/redoc", page(&REDOC))
}

fn page<S: Clone + Send + Sync + 'static>(page: &'static LazyLock<Page>) -> MethodRouter<S> {
    only("GET", get(async || page.answer()))
}

impl Page {
    fn new(html: &str) -> Self {
        let html = html.replacen("<head>", NO_ICON, 1);
        let scripts: Vec<_> = scripts(&html).map(source).collect();
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

    fn answer(&self) -> impl IntoResponse {
        let headers: [(HeaderName, &str); 2] = [
            (CONTENT_TYPE, "text/html; charset=utf-8"),
            (CONTENT_SECURITY_POLICY, &self.policy),
        ];
        (headers, self.html.clone()).into_response()
    }
}

/// What stands between `<script>` and `</script>`, which is all that a browser would run.
fn scripts(html: &str) -> impl Iterator<Item = &str> {
    let mut rest = html;
    std::iter::from_fn(move || {
        let (_, script) = rest.split_once("<script>")?;
        let (script, after) = script.split_once("</script>")?;
        rest = after;
        Some(script)
    })
}

/// A script as the policy names it (Content Security Policy Level 3, section 2.3.1).
fn source(script: &str) -> String {
    format!(
        "'sha256-{}'",
        BASE64_STANDARD.encode(sha256(&[script.as_bytes()]))
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_policy_names_each_script_by_its_hash() {
        let page = Page::new("<p><script>alert(1)</script>x<script></script>");
        let of_nothing = "'sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU='";
        assert!(page.policy.contains(of_nothing), "{}", page.policy);
        assert_eq!(page.policy.matches("'sha256-").count(), 2);
    }

    #[test]
    fn no_page_names_another_host_to_load_from() {
        for page in [&*SWAGGER_UI, &*REDOC] {
            let html = std::str::from_utf8(&page.html).unwrap();
            assert!(!html.contains("src=\"http"), "{}", &html[..200]);
            assert!(!html.contains(REMOTE_LOGO));
        }
    }
}
