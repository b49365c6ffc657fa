//! Access tokens as other services see them: signed with private keys, verified by the published keys, and by
//! another implementation of JWT.

use anyhow::{Context, Result};
use jsonwebtoken::jwk::JwkSet;
use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode, decode_header};
use serde_json::{Value, json};
use tests::replicas::Replicas;
use tests::settings::settings;
use tests::{Edge, Store, on_both_stores, signing_key};

on_both_stores!(another_implementation_verifies_tokens_by_the_published_keys);

const ISSUER: &str = "https://auth.example.org";

async fn another_implementation_verifies_tokens_by_the_published_keys(store: Store) -> Result<()> {
    let all = settings([
        ("SIGNING_KEY", signing_key::generate()?),
        ("SIGNING_KEY_NEXT", signing_key::generate()?),
        ("TOKEN_ISSUER", ISSUER.to_owned()),
        ("TOKEN_AUDIENCE", "auth-api,orders".to_owned()),
    ]);
    let replicas = Replicas::start_with(store, 1, all).await?;
    let client = replicas.client(0)?;
    let token = client.register_and_login("alice").await?;
    let published = client.get("/.well-known/jwks.json").await?;
    assert_eq!(published.status, 200);
    assert_eq!(published.header("content-type"), "application/jwk-set+json");
    assert_eq!(published.header("cache-control"), "public, max-age=300");
    let keys: JwkSet = serde_json::from_str(&published.text)?;
    assert_eq!(keys.keys.len(), 2);

    let header = decode_header(&token)?;
    assert_eq!(header.typ.as_deref(), Some("at+jwt"));
    let kid = header.kid.context("a key id")?;
    let key = DecodingKey::from_jwk(keys.find(&kid).context("a published key")?)?;
    let mut validation = Validation::new(Algorithm::EdDSA);
    validation.set_issuer(&[ISSUER]);
    validation.set_audience(&["orders"]);
    validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
    let claims = decode::<Value>(&token, &key, &validation)?.claims;
    assert_eq!(claims["sub"], "1");
    assert_eq!(claims["user_id"], 1);
    assert_eq!(claims["login"], "alice");
    let profile = client.get_with_token(&token, "/api/profile").await?;
    assert_eq!(profile.json()["login"], "alice");
    let sessions = client.get_with_token(&token, "/api/sessions").await?.json();
    assert_eq!(claims["sid"], sessions["sessions"][0]["id"]);

    // The same token, with one octet of its signature changed.
    let last = if token.ends_with('A') { 'Q' } else { 'A' };
    let forged = format!("{}{last}", &token[..token.len() - 1]);
    let refused = client.get_with_token(&forged, "/api/profile").await?;
    assert_eq!(refused.status, 401);
    Ok(())
}

#[tokio::test]
async fn tokens_of_the_secret_key_have_the_members_that_clients_of_the_python_service_know()
-> Result<()> {
    const SECRET: &str = "a secret key of the test, 32 bytes or more";
    let all = settings([
        ("SECRET_KEY", SECRET.to_owned()),
        // For tokens of private keys alone.
        ("TOKEN_ISSUER", ISSUER.to_owned()),
        ("TOKEN_AUDIENCE", "orders".to_owned()),
    ]);
    let replicas = Replicas::start_with(Store::Embedded, 1, all).await?;
    let client = replicas.client(0)?;
    let token = client.register_and_login("alice").await?;
    let published = client.get("/.well-known/jwks.json").await?;
    assert_eq!(published.json(), json!({"keys": []}));
    let header = decode_header(&token)?;
    assert_eq!((header.typ.as_deref(), header.kid), (Some("JWT"), None));
    let key = DecodingKey::from_secret(SECRET.as_bytes());
    let claims = decode::<Value>(&token, &key, &Validation::new(Algorithm::HS256))?.claims;
    let members = claims.as_object().context("an object")?;
    let mut names: Vec<_> = members.keys().map(String::as_str).collect();
    names.sort_unstable();
    assert_eq!(names, ["exp", "iat", "iss", "jti", "sid", "sub", "user_id"]);
    assert_eq!(
        (&claims["sub"], &claims["user_id"]),
        (&json!("alice"), &json!(1))
    );
    assert_eq!(claims["iss"], "auth-api");
    Ok(())
}

#[tokio::test]
async fn tokens_of_the_secret_key_can_be_refused() -> Result<()> {
    let mut replicas = Replicas::start(Store::Embedded, 1).await?;
    let token = replicas.client(0)?.register_and_login("alice").await?;
    replicas.set("SIGNING_KEY", &signing_key::generate()?);
    replicas.start_another()?;
    replicas.set("HS256_TOKENS", "reject");
    replicas.start_another()?;
    for (index, status) in [(1, 200), (2, 401)] {
        replicas.wait_until_ready(index).await?;
        let profile = replicas.client(index)?;
        let profile = profile.get_with_token(&token, "/api/profile").await?;
        assert_eq!(profile.status, status, "{}", profile.text);
    }
    Ok(())
}

#[tokio::test]
async fn the_published_keys_are_reachable_through_the_gateway() -> Result<()> {
    let edge = Edge::builder(Store::Embedded).start().await?;
    let published = edge.client()?.get("/.well-known/jwks.json").await?;
    assert_eq!(published.json(), json!({"keys": []}));
    Ok(())
}
