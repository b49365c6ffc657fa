//! Services that are registered with auth-api and introspect and revoke tokens.

use std::fmt::Write as _;

use anyhow::{Context, Result, ensure};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use reqwest::Method;
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE};
use serde_json::Value;

use crate::client::{Client, Response, send};
use crate::replicas::Replicas;

pub const INTROSPECT: &str = "/oauth/introspect";
pub const REVOKE: &str = "/oauth/revoke";
pub const FORM: &str = "application/x-www-form-urlencoded";

/// A registered client with its secret.
#[derive(Debug, Clone)]
pub struct OAuthClient {
    pub id: String,
    pub secret: String,
}

impl OAuthClient {
    /// Registers a client, as an operator does.
    ///
    /// # Errors
    /// Returns an error if the command fails.
    pub fn create(replicas: &Replicas, name: &str) -> Result<Self> {
        let output = replicas.client_command(&["create", name])?;
        ensure!(output.status.success(), "{output:?}");
        let text = String::from_utf8(output.stdout)?;
        let value = |key: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(key));
            line.map(str::to_owned).with_context(|| text.clone())
        };
        Ok(Self {
            id: value("client_id: ")?,
            secret: value("client_secret: ")?,
        })
    }

    /// Returns the value of `Authorization`.
    #[must_use]
    pub fn basic(&self) -> String {
        basic(&self.id, &self.secret)
    }

    /// Sends a request about `token`, authenticated by Basic.
    ///
    /// # Errors
    /// Returns an error if no complete response arrives.
    pub async fn request(&self, client: &Client, path: &str, token: &str) -> Result<Response> {
        let body = form(&[("token", token)]);
        post_form(client, path, Some(&self.basic()), &body).await
    }

    /// Introspects `token` and returns the body of the response.
    ///
    /// # Errors
    /// Returns an error if no complete response arrives, or if its status is not 200.
    pub async fn introspect(&self, client: &Client, token: &str) -> Result<Value> {
        let response = self.request(client, INTROSPECT, token).await?;
        ensure!(response.status == 200, "{response:?}");
        Ok(response.json())
    }

    /// Revokes `token`.
    ///
    /// # Errors
    /// Returns an error if no complete response arrives, or if its status is not 200.
    pub async fn revoke(&self, client: &Client, token: &str) -> Result<()> {
        let response = self.request(client, REVOKE, token).await?;
        ensure!(response.status == 200, "{response:?}");
        Ok(())
    }
}

/// Returns the value of `Authorization` for an id and a secret that need no encoding.
#[must_use]
pub fn basic(id: &str, secret: &str) -> String {
    format!("Basic {}", BASE64_STANDARD.encode(format!("{id}:{secret}")))
}

/// Encodes parameters as a form.
#[must_use]
pub fn form(parameters: &[(&str, &str)]) -> String {
    let parameters = parameters
        .iter()
        .map(|(name, value)| format!("{}={}", form_encode(name), form_encode(value)));
    parameters.collect::<Vec<_>>().join("&")
}

/// Encodes a text as a name or a value of a form.
///
/// # Panics
/// Never: writing to a string succeeds.
#[must_use]
pub fn form_encode(text: &str) -> String {
    let mut encoded = String::new();
    for byte in text.bytes() {
        match byte {
            b' ' => encoded.push('+'),
            _ if byte.is_ascii_alphanumeric() || b"-._*".contains(&byte) => {
                encoded.push(char::from(byte));
            }
            _ => write!(encoded, "%{byte:02X}").expect("writing to a string succeeds"),
        }
    }
    encoded
}

/// Sends a form.
///
/// # Errors
/// Returns an error if no complete response arrives.
pub async fn post_form(
    client: &Client,
    path: &str,
    authorization: Option<&str>,
    body: &str,
) -> Result<Response> {
    let request = client
        .request(Method::POST, path)
        .header(CONTENT_TYPE, FORM)
        .body(body.to_owned());
    send(match authorization {
        Some(value) => request.header(AUTHORIZATION, value),
        None => request,
    })
    .await
}
