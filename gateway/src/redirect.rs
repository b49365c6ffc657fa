//! What the http listener says: nothing but the way to https.

use http::header::LOCATION;
use http::{HeaderValue, StatusCode};
use serde_json::json;

use crate::downstream::RequestHead;
use crate::plain::{Oracle, Said};

/// Where https is without saying so.
const USUAL_PORT: u16 = 443;

/// Sends everybody to https.
#[derive(Debug)]
pub(crate) struct ToHttps {
    /// Where clients reach it.
    pub(crate) port: u16,
}

impl Oracle for ToHttps {
    fn say(&self, head: &RequestHead) -> Said {
        let Some(location) = self.location(head) else {
            let why = json!({"error": "Which host and path?"});
            return Said::json(StatusCode::BAD_REQUEST, &why);
        };
        let why = json!({"error": "Use https"});
        let mut redirect = Said::json(StatusCode::PERMANENT_REDIRECT, &why);
        redirect.fields.insert(LOCATION, location);
        redirect
    }
}

impl ToHttps {
    fn location(&self, head: &RequestHead) -> Option<HeaderValue> {
        let host = head.host()?;
        let name = match host.rsplit_once(':') {
            Some((name, port)) if !port.contains(']') => name,
            _ => host,
        };
        let target = str::from_utf8(head.target.as_bytes()).ok()?;
        let location = match self.port {
            USUAL_PORT => format!("https://{name}{target}"),
            port => format!("https://{name}:{port}{target}"),
        };
        HeaderValue::try_from(location).ok()
    }
}
