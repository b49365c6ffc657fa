//! Rate limits: quotas per client and path, and leaky buckets.

use std::time::{Duration, Instant};

use anyhow::Result;
use serde_json::json;
use tests::raw_connection::{RawConnection, parse_status};
use tests::{Edge, Gateway, MockUpstream, Store};
use tokio::task::JoinSet;

/// Configuration of the README of the Python service, with a window that outlasts every test.
const HUNDRED_PER_WINDOW: &str = r#"
premier:
  limits: {max_connections_per_client: 2000}
  paths:
    - pattern: "/api/*"
      features:
        rate_limit:
          quota: 100
          duration: 864000
        monitoring:
          log_threshold: 5.0
"#;

#[tokio::test]
async fn a_request_over_the_quota_is_rejected_and_another_client_is_not() -> Result<()> {
    let edge = Edge::builder(Store::Embedded)
        .config(HUNDRED_PER_WINDOW)
        .start()
        .await?;
    let client = edge.client()?;
    for remaining in (0..100).rev() {
        let response = client.get("/api/profile").await?;
        assert_eq!(response.status, 401);
        assert!(
            response
                .header("ratelimit")
                .contains(&format!("r={remaining};")),
            "{remaining} remaining: {:?}",
            response.headers
        );
    }

    let rejected = client.get("/api/profile").await?;
    assert_eq!(rejected.status, 429);
    assert_eq!(rejected.json(), json!({"error": "Rate limit exceeded"}));
    assert_eq!(rejected.header("content-type"), "application/json");
    let retry_after: u64 = rejected.header("retry-after").parse()?;
    assert!(
        (1..=864_000).contains(&retry_after),
        "Retry-After: {retry_after}"
    );
    assert!(
        rejected
            .header("ratelimit-policy")
            .contains("q=100;w=864000")
    );

    let other_endpoint = client.get("/api/other").await?;
    assert_eq!(other_endpoint.status, 404);
    let other_client = edge.client()?.get("/api/profile").await?;
    assert_eq!(other_client.status, 401);
    let other_path = client.get("/health").await?;
    assert_eq!(other_path.status, 200);
    assert_eq!(other_path.header("ratelimit"), "");
    Ok(())
}

#[tokio::test]
async fn exactly_a_hundred_of_a_thousand_concurrent_requests_pass() -> Result<()> {
    let edge = Edge::builder(Store::Embedded)
        .config(HUNDRED_PER_WINDOW)
        .start()
        .await?;
    let client = edge.client()?;
    let mut requests = JoinSet::new();
    for _ in 0..1000 {
        let client = client.clone();
        requests.spawn(async move {
            client
                .get("/api/profile")
                .await
                .map(|response| response.status)
        });
    }
    let mut passed = 0;
    let mut rejected = 0;
    while let Some(status) = requests.join_next().await {
        match status?? {
            401 => passed += 1,
            429 => rejected += 1,
            other => panic!("unexpected status {other}"),
        }
    }
    assert_eq!((passed, rejected), (100, 900));
    Ok(())
}

#[tokio::test]
async fn a_leaky_bucket_delays_requests() -> Result<()> {
    const LEAKY_BUCKET: &str = r#"
premier:
  paths:
    - pattern: "/leaky"
      features:
        rate_limit: {quota: 10, duration: 1, algorithm: leaky_bucket, bucket_size: 3, per: []}
"#;
    let upstream = MockUpstream::always_ok().await?;
    let gateway = Gateway::start(upstream.address, LEAKY_BUCKET).await?;
    let client = gateway.client()?;
    let start = Instant::now();
    let mut requests = JoinSet::new();
    for _ in 0..6 {
        let client = client.clone();
        requests.spawn(async move { client.get("/leaky").await.map(|response| response.status) });
    }
    let mut statuses: Vec<u16> = requests
        .join_all()
        .await
        .into_iter()
        .collect::<Result<_>>()?;
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 200, 200, 429, 429, 429]);
    assert!(
        start.elapsed() >= Duration::from_millis(200),
        "two requests are delayed by 100 ms each"
    );
    Ok(())
}

#[tokio::test]
async fn a_client_with_many_paths_exhausts_only_its_own_quota() -> Result<()> {
    const TWO_PER_WINDOW: &str = "
premier:
  paths:
    - pattern: '/api/*'
      features: {rate_limit: {quota: 2, duration: 864000}}
";
    /// Paths that a client may have counted apart.
    const MAX_PATHS: u32 = 1024;
    let upstream = MockUpstream::always_ok().await?;
    let gateway = Gateway::start(upstream.address, TWO_PER_WINDOW).await?;
    let client = gateway.client()?;
    for number in 0..MAX_PATHS {
        let response = client.get(&format!("/api/{number}")).await?;
        assert_eq!(response.status, 200, "path {number}");
    }
    for expected in [200, 200, 429, 429] {
        let response = client.get(&format!("/api/new/{expected}")).await?;
        assert_eq!(response.status, expected);
    }
    assert_eq!(client.get("/api/0").await?.status, 200);
    assert_eq!(client.get("/api/0").await?.status, 429);
    let other = gateway.client()?;
    for expected in [200, 200, 429] {
        assert_eq!(other.get("/api/new/429").await?.status, expected);
    }
    Ok(())
}

#[tokio::test]
async fn a_client_that_divides_a_header_into_lines_has_no_further_quota() -> Result<()> {
    const ONE_PER_KEY: &str = "
premier:
  default_features: {rate_limit: {quota: 1, duration: 864000, per: ['header:x-api-key']}}
";
    let upstream = MockUpstream::always_ok().await?;
    let gateway = Gateway::start(upstream.address, ONE_PER_KEY).await?;
    let status = async |lines: &str| -> Result<u16> {
        let mut connection = RawConnection::connect(&gateway).await?;
        let request =
            format!("GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{lines}\r\n");
        connection.send(request).await?;
        Ok(parse_status(&connection.read_to_string().await?))
    };
    assert_eq!(status("X-Api-Key: a\r\nX-Api-Key: b\r\n").await?, 200);
    assert_eq!(status("X-Api-Key: a, b\r\n").await?, 429);
    assert_eq!(status("X-Api-Key: a\r\nX-Api-Key: c\r\n").await?, 200);
    Ok(())
}

#[tokio::test]
async fn an_observed_quota_reports_and_refuses_nothing() -> Result<()> {
    let upstream = MockUpstream::always_ok().await?;
    let config = "
premier:
  paths:
    - {pattern: /observed, features: {rate_limit: {quota: 2, duration: 864000, mode: observe}}}
";
    let gateway = Gateway::start(upstream.address, config).await?;
    let client = gateway.client()?;
    for remaining in ["r=1;", "r=0;", "r=0;", "r=0;"] {
        let response = client.get("/observed").await?;
        assert_eq!(response.status, 200);
        assert!(
            response.header("ratelimit").contains(remaining),
            "{:?}",
            response.headers
        );
    }
    gateway
        .wait_for_metric(
            "gateway_quota_decisions_total",
            &[r#"decision="would_refuse""#],
            2.0,
        )
        .await?;
    gateway
        .process
        .wait_for_log(r#""quota":"would_refuse""#)
        .await
}
