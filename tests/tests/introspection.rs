//! Token introspection (RFC 7662): what registered clients learn about tokens, and how clients authenticate
//! (RFC 6749, section 2.3), which revocation has in common.

use anyhow::{Context, Result, ensure};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use reqwest::Method;
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE};
use serde_json::{Value, json};
use tests::client::{Client, PASSWORD, Response, credentials, send};
use tests::identity_edge::{IdentityEdge, Signer};
use tests::oauth_client::{FORM, INTROSPECT, OAuthClient, REVOKE, basic, form, post_form};
use tests::postgres::PostgresServer;
use tests::replicas::Replicas;
use tests::settings::{postgres_settings, settings};
use tests::{Edge, Store, on_both_stores, signing_key, wait};

on_both_stores!(
    an_access_token_is_active_while_its_session_is,
    a_token_of_a_private_key_has_its_claims,
    a_refresh_token_is_introspected_without_being_used,
    what_the_service_did_not_issue_is_inactive,
    an_expired_token_is_inactive,
    a_client_authenticates_by_basic_or_by_the_form,
    a_client_without_the_right_secret_is_refused,
    an_ambiguous_or_malformed_request_is_refused,
    an_unknown_client_and_a_wrong_secret_cannot_be_told_apart,
    failures_are_throttled_by_client_and_address_and_lock_no_client_out,
    a_store_that_fails_is_503_and_never_inactive,
    secrets_and_tokens_are_in_no_log,
    clients_reach_both_endpoints_through_the_shipped_gateway,
);

const ALICE: &str = "alice";

fn inactive() -> Value {
    json!({"active": false})
}

/// Starts two replicas with alice's account and a registered client.
async fn start(store: Store) -> Result<(Replicas, OAuthClient, Client, Client)> {
    let replicas = Replicas::start(store, 2).await?;
    let service = OAuthClient::create(&replicas, "orders")?;
    let (client, other) = (replicas.client(0)?, replicas.client(1)?);
    client.register(ALICE).await?;
    Ok((replicas, service, client, other))
}

fn refresh_token(response: &Value) -> Result<&str> {
    response["refresh_token"]
        .as_str()
        .context("a refresh token")
}

async fn refresh(client: &Client, token: &str) -> Result<Response> {
    let body = json!({"refresh_token": token});
    client.post("/api/refresh", &body).await
}

async fn an_access_token_is_active_while_its_session_is(store: Store) -> Result<()> {
    let (replicas, service, client, other) = start(store).await?;
    let command = |arguments: &[&str]| -> Result<()> {
        ensure!(replicas.user_command(arguments, "")?.status.success());
        Ok(())
    };
    let token = client.login(ALICE).await?.access_token()?;
    let claims = Signer::claims_of(&token)?;
    for client in [&client, &other] {
        let response = service.request(client, INTROSPECT, &token).await?;
        assert_eq!(response.status, 200);
        assert_eq!(response.header("content-type"), "application/json");
        assert_eq!(response.header("cache-control"), "no-store");
        let expected = json!({
            "active": true,
            "sub": "1",
            "username": ALICE,
            "exp": claims["exp"],
            "iat": claims["iat"],
            "iss": "auth-api",
            "token_type": "Bearer",
            "jti": claims["jti"],
            "sid": claims["sid"],
        });
        assert_eq!(response.json(), expected);
    }
    client.post_with_token(&token, "/api/logout", None).await?;
    assert_eq!(service.introspect(&other, &token).await?, inactive());

    let token = client.login(ALICE).await?.access_token()?;
    assert_eq!(service.introspect(&other, &token).await?["active"], true);
    command(&["disable", ALICE])?;
    assert_eq!(service.introspect(&other, &token).await?, inactive());
    command(&["enable", ALICE])?;
    assert_eq!(service.introspect(&other, &token).await?, inactive());

    let token = client.login(ALICE).await?.access_token()?;
    let body = credentials(ALICE, PASSWORD);
    assert_eq!(client.post("/api/delete", &body).await?.status, 200);
    assert_eq!(service.introspect(&other, &token).await?, inactive());

    // A row that is gone although the session is not.
    let tokens = {
        client.register("bob").await?;
        client.login("bob").await?.json()
    };
    let delete = "DELETE FROM users WHERE login = 'bob'";
    replicas.execute(delete).await?;
    for kind in ["access_token", "refresh_token"] {
        let token = tokens[kind].as_str().context(kind)?;
        assert_eq!(service.introspect(&other, token).await?, inactive());
    }
    let introspections = "auth_api_introspections_total";
    for (result, expected) in [("active", 2.0), ("inactive", 6.0)] {
        let label = format!("\"{result}\"");
        let count = replicas.metric(1, introspections, &[&label]).await?;
        assert_eq!(count, Some(expected), "{result}");
    }
    Ok(())
}

async fn a_token_of_a_private_key_has_its_claims(store: Store) -> Result<()> {
    const LOGIN: &str = "Jürgen Meier";
    let all = settings([
        ("SIGNING_KEY", signing_key::generate()?),
        ("TOKEN_ISSUER", "https://auth.example.org".to_owned()),
        ("TOKEN_AUDIENCE", "auth-api,orders".to_owned()),
    ]);
    let replicas = Replicas::start_with(store, 1, all).await?;
    let service = OAuthClient::create(&replicas, "orders")?;
    let client = replicas.client(0)?;
    client.register(LOGIN).await?;
    let tokens = client.login(LOGIN).await?.json();
    let token = tokens["access_token"].as_str().context("a token")?;
    let claims = Signer::claims_of(token)?;
    let expected = json!({
        "active": true,
        "sub": "1",
        "username": LOGIN,
        "exp": claims["exp"],
        "iat": claims["iat"],
        "iss": "https://auth.example.org",
        "aud": ["auth-api", "orders"],
        "client_id": "auth-api",
        "token_type": "Bearer",
        "jti": claims["jti"],
        "sid": claims["sid"],
    });
    assert_eq!(claims["sub"], expected["sub"]);
    assert_eq!(service.introspect(&client, token).await?, expected);
    let refreshing = service.introspect(&client, refresh_token(&tokens)?).await?;
    assert_eq!(refreshing["iss"], "https://auth.example.org");
    assert_eq!(refreshing["sid"], claims["sid"]);
    client.post_with_token(token, "/api/logout", None).await?;
    assert_eq!(service.introspect(&client, token).await?, inactive());
    Ok(())
}

async fn a_refresh_token_is_introspected_without_being_used(store: Store) -> Result<()> {
    let (replicas, service, client, other) = start(store).await?;
    let first = client.login(ALICE).await?.json();
    let claims = Signer::claims_of(first["access_token"].as_str().context("a token")?)?;
    for client in [&client, &other, &client] {
        let found = service.introspect(client, refresh_token(&first)?).await?;
        let (issued_at, expires_at) = (found["iat"].as_i64(), found["exp"].as_i64());
        let (issued_at, expires_at) = (issued_at.context("iat")?, expires_at.context("exp")?);
        // The default of REFRESH_TOKEN_TTL; the times are rounded down.
        assert!((2_591_999..=2_592_001).contains(&(expires_at - issued_at)));
        let at_login = claims["iat"].as_i64().context("iat")?;
        assert!((at_login - 1..=at_login + 2).contains(&issued_at));
        let expected = json!({
            "active": true,
            "sub": "1",
            "username": ALICE,
            "exp": expires_at,
            "iat": issued_at,
            "iss": "auth-api",
            "token_type": "refresh_token",
            "sid": claims["sid"],
        });
        assert_eq!(found, expected);
    }
    let second = refresh(&client, refresh_token(&first)?).await?;
    assert_eq!(second.status, 200, "the token was not used up");
    let second = second.json();
    let is_active = async |client: &Client, tokens: &Value| -> Result<bool> {
        let found = service.introspect(client, refresh_token(tokens)?).await?;
        found["active"].as_bool().context("active is a boolean")
    };
    let third = refresh(&client, refresh_token(&second)?).await?.json();
    for client in [&client, &other] {
        // Used long ago, used a moment ago, unused. None of them is reuse.
        for (tokens, expected) in [(&first, false), (&second, false), (&third, true)] {
            assert_eq!(is_active(client, tokens).await?, expected);
        }
    }
    let fourth = refresh(&other, refresh_token(&third)?).await?;
    assert_eq!(fourth.status, 200, "the session lives on");
    let fourth = fourth.json();
    assert!(is_active(&client, &fourth).await?);

    let access = fourth["access_token"].as_str().context("a token")?;
    client.post_with_token(access, "/api/logout", None).await?;
    assert!(!is_active(&other, &fourth).await?);
    // By the account, whatever the store of sessions says.
    let tokens = client.login(ALICE).await?.json();
    assert!(is_active(&other, &tokens).await?);
    let far = if store == Store::Embedded {
        "UPDATE users SET sessions_valid_after = (unixepoch() + 3600) * 1000000"
    } else {
        "UPDATE users SET sessions_valid_after = now() + interval '1 hour'"
    };
    replicas.execute(far).await?;
    assert!(!is_active(&other, &tokens).await?);
    Ok(())
}

async fn what_the_service_did_not_issue_is_inactive(store: Store) -> Result<()> {
    let edge = IdentityEdge::start(store, 0).await?;
    let replicas = &edge.replicas;
    let service = OAuthClient::create(replicas, "orders")?;
    let client = replicas.client(0)?;
    client.register(ALICE).await?;
    let tokens = client.login(ALICE).await?.json();
    let token = tokens["access_token"].as_str().context("a token")?;
    let claims = Signer::claims_of(token)?;
    let (own, foreign) = (Signer::of_replicas(), Signer::foreign());
    let with = |name: &str, value: Value| {
        let mut changed = claims.clone();
        changed[name] = value;
        changed
    };
    assert_eq!(
        service
            .introspect(&client, &own.sign(&own.header(), &claims))
            .await?["active"],
        true
    );
    let refreshing = refresh_token(&tokens)?;
    let mut forged_refresh = refreshing.to_owned();
    let middle = forged_refresh.remove(40);
    forged_refresh.insert(40, if middle == 'A' { 'B' } else { 'A' });
    let long = "x".repeat(60_000);
    for forged in [
        &foreign.sign(&foreign.header(), &claims),
        &foreign.sign(&own.header(), &claims),
        &own.sign_with_public_key(&claims),
        &Signer::unsigned(&json!({"alg": "none"}), &claims),
        &own.sign(&json!({"alg": "EdDSA", "typ": "JWT"}), &claims),
        &own.sign(&own.header(), &with("aud", json!("another"))),
        &own.sign(&own.header(), &with("iss", json!("another"))),
        &own.sign(&own.header(), &with("exp", json!(1))),
        // Tokens of another user, and of no session.
        &own.sign(&own.header(), &with("user_id", json!(2))),
        &own.sign(&own.header(), &with("sid", json!("0".repeat(32)))),
        &forged_refresh,
        &refreshing[1..].to_owned(),
        &format!("{refreshing}A"),
        &long,
        &"\0".to_owned(),
        &format!("{token}\0"),
        &"é%+ &=".to_owned(),
        &".".to_owned(),
        &"..".to_owned(),
    ] {
        let found = service.introspect(&client, forged).await?;
        assert_eq!(found, inactive(), "{forged}");
    }
    assert_eq!(refresh(&client, refreshing).await?.status, 200);
    Ok(())
}

async fn an_expired_token_is_inactive(store: Store) -> Result<()> {
    let lifetimes = settings([
        ("ACCESS_TOKEN_TTL", "1".to_owned()),
        ("REFRESH_TOKEN_TTL", "2".to_owned()),
    ]);
    let replicas = Replicas::start_with(store, 1, lifetimes).await?;
    let service = OAuthClient::create(&replicas, "orders")?;
    let client = replicas.client(0)?;
    client.register(ALICE).await?;
    let tokens = client.login(ALICE).await?.json();
    for kind in ["access_token", "refresh_token"] {
        let token = tokens[kind].as_str().context(kind)?;
        wait::until("the token to expire", async || {
            let found = service.introspect(&client, token).await;
            found.is_ok_and(|found| found == inactive())
        })
        .await?;
    }
    Ok(())
}

async fn a_client_authenticates_by_basic_or_by_the_form(store: Store) -> Result<()> {
    let (_replicas, service, client, _) = start(store).await?;
    let token = client.login(ALICE).await?.access_token()?;
    let OAuthClient { id, secret } = &service;
    let alone = form(&[("token", &token)]);
    let whole = |hint| {
        form(&[
            ("client_id", id),
            ("client_secret", secret),
            ("token_type_hint", hint),
            ("token", &token),
            ("unknown", "is ignored"),
            ("", ""),
        ])
    };
    // RFC 6749, section 2.3.1: both are form-encoded before they are encoded as Basic, whether they need it or not.
    let all_encoded = |text: &str| {
        let bytes = text.bytes().map(|byte| format!("%{byte:02x}"));
        bytes.collect::<Vec<_>>().concat()
    };
    let basic_of_encoded = basic(&all_encoded(id), &all_encoded(secret));
    let lower_case = service.basic().replace("Basic ", "basic  ");
    for (authorization, body) in [
        (Some(service.basic()), alone.clone()),
        (Some(basic_of_encoded), alone.clone()),
        (Some(lower_case), alone.clone()),
        // Empty parameters count as absent (RFC 6749, section 3.2).
        (
            Some(service.basic()),
            format!("{alone}&client_secret=&client_id="),
        ),
        (None, whole("access_token")),
        (None, whole("refresh_token")),
        (None, whole("?")),
    ] {
        let authorization = authorization.as_deref();
        let response = post_form(&client, INTROSPECT, authorization, &body).await?;
        assert_eq!(response.status, 200, "{authorization:?} {body}");
        assert_eq!(response.json()["active"], true, "{body}");
    }
    for content_type in [
        "application/x-www-form-urlencoded; charset=UTF-8",
        "Application/X-WWW-Form-URLEncoded;",
    ] {
        let request = client
            .request(Method::POST, INTROSPECT)
            .header(AUTHORIZATION, service.basic())
            .header(CONTENT_TYPE, content_type)
            .body(alone.clone());
        assert_eq!(send(request).await?.status, 200, "{content_type}");
    }
    Ok(())
}

fn assert_invalid_client(response: &Response, case: &str) {
    assert_eq!(response.status, 401, "{case}: {}", response.text);
    assert_eq!(response.json()["error"], "invalid_client", "{case}");
    let challenge = response.header("www-authenticate");
    assert!(challenge.starts_with("Basic realm="), "{case}: {challenge}");
    assert_eq!(response.header("cache-control"), "no-store");
    assert_eq!(response.header("content-type"), "application/json");
}

async fn a_client_without_the_right_secret_is_refused(store: Store) -> Result<()> {
    let (replicas, service, client, _) = start(store).await?;
    let other_service = OAuthClient::create(&replicas, "payments")?;
    let token = client.login(ALICE).await?.access_token()?;
    let OAuthClient { id, secret } = &service;
    let encoded = |text: &[u8]| format!("Basic {}", BASE64_STANDARD.encode(text));
    let upper_case = id.to_uppercase();
    let (first, last) = secret.split_at(1);
    let swapped = format!("{last}{first}");
    let mut cases = vec![
        None,
        Some(format!("Bearer {token}")),
        Some("Basic".to_owned()),
        Some("Basic ".to_owned()),
        Some("Basic =".to_owned()),
        Some("Basic !!!!".to_owned()),
        Some(format!("Basic {id}:{secret}")),
        Some(encoded(b"no colon")),
        Some(encoded(b":")),
        Some(encoded(b"\xff:\xff")),
        Some(encoded(b"%:%")),
        Some(encoded(b"%zz:%0")),
        Some(encoded(format!("{id}:{secret}%").as_bytes())),
        Some(encoded(b"\0:\0")),
    ];
    for (id, secret) in [
        (id.as_str(), ""),
        ("", secret),
        (id, &secret[1..]),
        (id, &swapped),
        (id, &format!("{secret} ")),
        (id, &format!("{secret}\0")),
        (id, &format!("{secret}%00")),
        (id, &format!("{secret}:")),
        (id, "p%40ss:w+rd \u{e9}'\"\\;--"),
        (&upper_case, secret),
        (&format!("{id}\0"), secret),
        (&format!(" {id}"), secret),
        (&other_service.id, secret),
        ("' OR ''='", secret),
        ("0", "0"),
        (&"x".repeat(30_000), secret),
    ] {
        cases.push(Some(basic(id, secret)));
        if !id.is_empty() {
            let body = form(&[
                ("token", &token),
                ("client_id", id),
                ("client_secret", secret),
            ]);
            // Each from another address, so that none is throttled.
            let request = client
                .request(Method::POST, INTROSPECT)
                .header("x-forwarded-for", format!("192.0.2.{}", cases.len()))
                .header(CONTENT_TYPE, FORM)
                .body(body);
            assert_invalid_client(&send(request).await?, id);
        }
    }
    for (number, authorization) in cases.into_iter().enumerate() {
        for path in [INTROSPECT, REVOKE] {
            let request = client
                .request(Method::POST, path)
                .header("x-forwarded-for", format!("198.51.100.{number}"))
                .header(CONTENT_TYPE, FORM)
                .body(form(&[("token", &token)]));
            let request = match &authorization {
                Some(value) => request.header(AUTHORIZATION, value),
                None => request,
            };
            let case = authorization.as_deref().unwrap_or("none");
            assert_invalid_client(&send(request).await?, case);
        }
    }
    assert_eq!(service.introspect(&client, &token).await?["active"], true);
    Ok(())
}

async fn an_ambiguous_or_malformed_request_is_refused(store: Store) -> Result<()> {
    let (_replicas, service, client, _) = start(store).await?;
    let token = client.login(ALICE).await?.access_token()?;
    let OAuthClient { id, secret } = &service;
    let (one, basic) = (form(&[("token", &token)]), service.basic());
    let in_body = form(&[("client_id", id), ("client_secret", secret)]);
    for (authorization, body) in [
        (Some(&basic), String::new()),
        (Some(&basic), "token=".to_owned()),
        (Some(&basic), "token".to_owned()),
        (Some(&basic), "token_type_hint=access_token".to_owned()),
        (Some(&basic), "Token=x".to_owned()),
        (Some(&basic), format!("{one}&{one}")),
        (Some(&basic), format!("token=&{one}")),
        (Some(&basic), format!("{one}&%74oken=x")),
        (
            Some(&basic),
            format!("{one}&token_type_hint=x&token_type_hint=x"),
        ),
        (Some(&basic), format!("{one}&x=1&x=2")),
        (Some(&basic), "token=%".to_owned()),
        (Some(&basic), "token=%4".to_owned()),
        (Some(&basic), "token=%zz".to_owned()),
        (Some(&basic), "token=%ff".to_owned()),
        // Two methods of authentication at once (RFC 6749, section 2.3).
        (Some(&basic), format!("{one}&{in_body}")),
        (Some(&basic), format!("{one}&client_id={id}")),
        (Some(&basic), format!("{one}&client_secret={secret}")),
        (None, format!("{one}&{in_body}&client_id={id}")),
        (None, format!("{one}&{in_body}&client_secret=x")),
    ] {
        for path in [INTROSPECT, REVOKE] {
            let authorization = authorization.map(String::as_str);
            let response = post_form(&client, path, authorization, &body).await?;
            assert_eq!(response.status, 400, "{body}: {}", response.text);
            assert_eq!(response.json()["error"], "invalid_request", "{body}");
            assert_eq!(response.header("cache-control"), "no-store");
        }
    }
    let twice = client
        .request(Method::POST, INTROSPECT)
        .header(AUTHORIZATION, &basic)
        .header(AUTHORIZATION, &basic)
        .header(CONTENT_TYPE, FORM)
        .body(one.clone());
    assert_eq!(send(twice).await?.status, 400);
    let json_body = json!({"token": token}).to_string();
    for (content_types, body) in [
        (&["application/json"][..], &json_body),
        (&["text/plain"], &one),
        (&[], &one),
        (&["multipart/form-data"], &one),
        (&["application/x-www-form-urlencoded, text/plain"], &one),
        (&[FORM, FORM], &one),
        (&[FORM, "text/plain"], &one),
    ] {
        let mut request = client.request(Method::POST, INTROSPECT);
        for content_type in content_types {
            request = request.header(CONTENT_TYPE, *content_type);
        }
        let request = request.header(AUTHORIZATION, &basic).body(body.clone());
        let response = send(request).await?;
        assert_eq!(response.status, 400, "{content_types:?}: {}", response.text);
        assert_eq!(response.json()["error"], "invalid_request");
    }
    let huge = format!("token={}", "x".repeat(70_000));
    let response = post_form(&client, INTROSPECT, Some(&basic), &huge).await?;
    assert_eq!(response.status, 413);
    assert_eq!(response.json()["error"], "invalid_request");
    // Thousands of parameters within the size of a body.
    let many: Vec<_> = (0..9000).map(|number| format!("{number}=&")).collect();
    let response = post_form(&client, INTROSPECT, Some(&basic), &(many.concat() + &one)).await?;
    assert_eq!(response.json()["active"], true);
    let get = client.get(&format!("{INTROSPECT}?{one}&{in_body}")).await?;
    assert_eq!(get.status, 405);
    let in_query = format!("{INTROSPECT}?{one}");
    let response = post_form(&client, &in_query, Some(&basic), "").await?;
    assert_eq!(response.status, 400);
    Ok(())
}

/// Returns the number of operations of each store since the start, of requests alone: not of checks.
async fn store_operations(replicas: &Replicas) -> Result<Vec<Option<f64>>> {
    let mut all = Vec::new();
    for store in ["\"postgres\"", "\"redis\"", "\"sqlite\""] {
        let name = "auth_api_store_duration_seconds_count";
        all.push(replicas.metric(0, name, &[store]).await?);
    }
    Ok(all)
}

async fn an_unknown_client_and_a_wrong_secret_cannot_be_told_apart(store: Store) -> Result<()> {
    let (replicas, service, client, _) = start(store).await?;
    let wrong = OAuthClient {
        secret: "wrong".to_owned(),
        ..service.clone()
    };
    let unknown = OAuthClient {
        id: "1".repeat(32),
        ..service.clone()
    };
    let malformed = OAuthClient {
        id: "x".to_owned(),
        ..service.clone()
    };
    let visible = |response: &Response| {
        let mut headers: Vec<_> = response
            .headers
            .iter()
            .filter(|(name, _)| *name != "date")
            .map(|(name, value)| format!("{name}: {value:?}"))
            .collect();
        headers.sort();
        (response.status, headers, response.text.clone())
    };
    // Eleven times: also when they are throttled.
    for number in 0..11 {
        let mut seen = Vec::new();
        for service in [&wrong, &unknown, &malformed] {
            let mut response = service.request(&client, INTROSPECT, "x").await?;
            assert_eq!(response.status, if number < 10 { 401 } else { 429 });
            response.headers.remove("retry-after");
            seen.push(visible(&response));
        }
        assert_eq!(seen[0], seen[1]);
        assert_eq!(seen[0], seen[2]);
    }
    // Each makes the same operations on the stores. The readiness check adds some, so this is repeated until
    // an interval without one.
    for service in [&wrong, &unknown, &malformed] {
        wait::until("the same number of operations", async || {
            let mut counts = Vec::new();
            for service in [&wrong, service] {
                let Ok(before) = store_operations(&replicas).await else {
                    return false;
                };
                let _ = service.request(&client, INTROSPECT, "x").await;
                let Ok(after) = store_operations(&replicas).await else {
                    return false;
                };
                let made = before.iter().zip(&after);
                counts.push(
                    made.map(|(before, after)| {
                        after.unwrap_or_default() - before.unwrap_or_default()
                    })
                    .collect::<Vec<_>>(),
                );
            }
            counts[0] == counts[1] && counts[0].iter().sum::<f64>() > 1.5
        })
        .await?;
    }
    Ok(())
}

async fn failures_are_throttled_by_client_and_address_and_lock_no_client_out(
    store: Store,
) -> Result<()> {
    const ATTACKER: &str = "192.0.2.1";
    const SERVICE: &str = "192.0.2.2";
    let (replicas, service, client, other) = start(store).await?;
    let second_service = OAuthClient::create(&replicas, "payments")?;
    let attempt = async |client: &Client, id: &str, secret: &str, address: &str| {
        let request = client
            .request(Method::POST, INTROSPECT)
            .header("x-forwarded-for", address)
            .header(AUTHORIZATION, basic(id, secret))
            .header(CONTENT_TYPE, FORM)
            .body("token=x");
        send(request).await
    };
    for number in 0..10 {
        let client = if number % 2 == 0 { &client } else { &other };
        let failed = attempt(client, &service.id, "wrong", ATTACKER).await?;
        assert_eq!(failed.status, 401, "{number}");
    }
    for client in [&client, &other] {
        let throttled = attempt(client, &service.id, "wrong", ATTACKER).await?;
        assert_eq!(throttled.status, 429, "{}", throttled.text);
        assert_eq!(throttled.header("cache-control"), "no-store");
        assert_eq!(throttled.json()["error"], "temporarily_unavailable");
        let seconds: u32 = throttled.header("retry-after").parse()?;
        assert!((1..=900).contains(&seconds), "{seconds}");
        // The right secret is 200, from wherever it comes.
        for address in [SERVICE, ATTACKER] {
            let good = attempt(client, &service.id, &service.secret, address).await?;
            assert_eq!(good.status, 200, "{address}");
        }
        // Another address and another client have counters of their own.
        let elsewhere = attempt(client, &service.id, "wrong", SERVICE).await?;
        assert_eq!(elsewhere.status, 401);
        let another = attempt(client, &second_service.id, "wrong", ATTACKER).await?;
        assert_eq!(another.status, 401);
    }
    replicas.wait_for_log("oauth_client_locked_out").await?;
    let authentications = "auth_api_oauth_client_authentications_total";
    for (outcome, expected) in [("ok", 2.0), ("invalid", 7.0), ("locked_out", 1.0)] {
        let label = format!("\"{outcome}\"");
        let count = replicas.metric(0, authentications, &[&label]).await?;
        assert_eq!(count, Some(expected), "{outcome}");
    }
    Ok(())
}

fn assert_unavailable(response: &Response, case: &str) {
    assert_eq!(response.status, 503, "{case}: {}", response.text);
    assert_eq!(response.header("retry-after"), "1", "{case}");
    assert_eq!(response.header("cache-control"), "no-store");
    assert_eq!(response.json()["error"], "temporarily_unavailable");
}

async fn a_store_that_fails_is_503_and_never_inactive(store: Store) -> Result<()> {
    let (mut replicas, service, client, _) = start(store).await?;
    let tokens = client.login(ALICE).await?.json();
    let (access, refreshing) = (
        tokens["access_token"].as_str().context("a token")?,
        refresh_token(&tokens)?,
    );
    for table in ["oauth_clients", "users"] {
        let rename = format!("ALTER TABLE {table} RENAME TO away");
        replicas.execute(rename).await?;
        for token in [access, refreshing] {
            let response = service.request(&client, INTROSPECT, token).await?;
            assert_unavailable(&response, table);
        }
        let response = service.request(&client, INTROSPECT, "x").await?;
        assert_eq!(response.status, if table == "users" { 200 } else { 503 });
        let rename = format!("ALTER TABLE away RENAME TO {table}");
        replicas.execute(rename).await?;
        wait::until("the store to be used again", async || {
            let found = service.introspect(&client, access).await;
            found.is_ok_and(|found| found["active"] == true)
        })
        .await?;
    }
    replicas.take_sessions_away().await?;
    let response = service.request(&client, INTROSPECT, refreshing).await?;
    assert_unavailable(&response, "refresh token");
    // A session that a replica has in its cache is active until its lease ends, as for /api/verify.
    wait::until("the access token to be unverifiable", async || {
        let response = service.request(&client, INTROSPECT, access).await;
        response.is_ok_and(|response| {
            assert!(response.status == 503 || response.json()["active"] == true);
            response.status == 503
        })
    })
    .await?;
    let response = service.request(&client, INTROSPECT, access).await?;
    assert_unavailable(&response, "access token");
    assert_eq!(service.introspect(&client, "x").await?, inactive());
    replicas.bring_sessions_back().await?;
    for token in [access, refreshing] {
        wait::until("the sessions to be found again", async || {
            let found = service.introspect(&client, token).await;
            found.is_ok_and(|found| {
                assert_ne!(found, inactive());
                true
            })
        })
        .await?;
    }
    Ok(())
}

#[tokio::test]
async fn without_postgres_no_client_is_authenticated_and_none_refused() -> Result<()> {
    let mut server = PostgresServer::start()?;
    let database = server.create_database().await?;
    let settings = postgres_settings(server.address, &database.name);
    let replicas = Replicas::start_with(Store::PostgresRedis, 1, settings).await?;
    let service = OAuthClient::create(&replicas, "orders")?;
    let client = replicas.client(0)?;
    let token = client.register_and_login(ALICE).await?;
    assert_eq!(service.introspect(&client, &token).await?["active"], true);
    server.stop_immediately()?;
    let stranger = OAuthClient {
        secret: "wrong".to_owned(),
        ..service.clone()
    };
    for (service, token) in [
        (&service, token.as_str()),
        (&service, "x"),
        (&stranger, "x"),
    ] {
        let response = service.request(&client, INTROSPECT, token).await?;
        assert_unavailable(&response, token);
    }
    server.start_again()?;
    wait::until("the token to be active again", async || {
        let found = service.introspect(&client, &token).await;
        found.is_ok_and(|found| found["active"] == true)
    })
    .await
}

async fn secrets_and_tokens_are_in_no_log(store: Store) -> Result<()> {
    const MISPLACED: &str = "a-secret-in-the-wrong-field";
    let (mut replicas, service, client, _) = start(store).await?;
    let tokens = client.login(ALICE).await?.json();
    let (access, refreshing) = (
        tokens["access_token"].as_str().context("a token")?,
        refresh_token(&tokens)?,
    );
    for token in [access, refreshing] {
        service.introspect(&client, token).await?;
    }
    let wrong = OAuthClient {
        secret: MISPLACED.to_owned(),
        ..service.clone()
    };
    let swapped = OAuthClient {
        id: service.secret.clone(),
        secret: service.id.clone(),
    };
    for service in [&wrong, &swapped] {
        for _ in 0..11 {
            service.request(&client, INTROSPECT, access).await?;
        }
    }
    for replica in &mut replicas.instances {
        replica.process.terminate()?;
    }
    let logs = replicas.logs();
    let record = |event: &str, is_known: bool| {
        let mut lines = logs.lines();
        let line = lines.find(|line| {
            line.contains(&format!("\"event\":\"{event}\""))
                && line.contains("\"oauth_client\":") == is_known
        });
        line.with_context(|| format!("{event} {is_known}"))
    };
    for event in [
        "oauth_client_authentication_failed",
        "oauth_client_locked_out",
    ] {
        let known: Value = serde_json::from_str(record(event, true)?)?;
        assert_eq!(known["oauth_client"], service.id);
        assert_eq!(known["oauth_client_name"], "orders");
        assert_eq!(known["target"], "audit");
        record(event, false)?;
    }
    let signature = access.rsplit('.').next().context("a signature")?;
    for secret in [signature, refreshing, &service.secret, MISPLACED] {
        assert!(!logs.contains(secret), "a log contains a secret");
    }
    Ok(())
}

async fn clients_reach_both_endpoints_through_the_shipped_gateway(store: Store) -> Result<()> {
    let edge = Edge::builder(store)
        .config(include_str!("../../gateway.yml"))
        .start()
        .await?;
    let service = OAuthClient::create(&edge.replicas, "orders")?;
    let client = edge.client()?;
    let token = client.register_and_login(ALICE).await?;
    let response = service.request(&client, INTROSPECT, &token).await?;
    assert_eq!(response.json()["username"], ALICE);
    // A quota of its own.
    assert!(response.header("ratelimit-policy").contains("q=600"));
    assert_eq!(response.header("cache-control"), "no-store");
    service.revoke(&client, &token).await?;
    assert_eq!(service.introspect(&client, &token).await?, inactive());
    let other_spelling = post_form(&client, "//oauth/./introspect", None, "token=x").await?;
    assert!(other_spelling.header("ratelimit-policy").contains("q=600"));
    assert_eq!(other_spelling.status, 401);
    Ok(())
}
