//! Quotas, as clients meet them.

use anyhow::Result;
use serde_json::json;
use tests::{Edge, Store};

/// The configuration in the Python service's README, as it is but for a window that no test outlives.
const README: &str = r#"
premier:
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
async fn the_hundred_and_first_request_is_refused_and_another_client_is_not() -> Result<()> {
    let edge = Edge::on(Store::Embedded).config(README).start().await?;
    let client = edge.client()?;
    for left in (0..100).rev() {
        let answer = client.get("/api/profile").await?;
        assert_eq!(answer.status, 401);
        assert!(
            answer.header("ratelimit").contains(&format!("r={left};")),
            "{left} left: {:?}",
            answer.headers
        );
    }

    let refused = client.get("/api/profile").await?;
    assert_eq!(refused.status, 429);
    assert_eq!(refused.json(), json!({"error": "Rate limit exceeded"}));
    assert_eq!(refused.header("content-type"), "application/json");
    let wait: u64 = refused.header("retry-after").parse()?;
    assert!((1..=864_000).contains(&wait), "Retry-After: {wait}");
    assert!(
        refused
            .header("ratelimit-policy")
            .contains("q=100;w=864000")
    );

    let other_endpoint = client.get("/api/other").await?;
    assert_eq!(other_endpoint.status, 404);
    let other_client = edge.client()?.get("/api/profile").await?;
    assert_eq!(other_client.status, 401);
    let unmatched = client.get("/health").await?;
    assert_eq!(unmatched.status, 200);
    assert_eq!(unmatched.header("ratelimit"), "");
    Ok(())
}

#[tokio::test]
async fn of_a_thousand_requests_at_once_exactly_a_hundred_pass() -> Result<()> {
    let edge = Edge::on(Store::Embedded).config(README).start().await?;
    let client = edge.client()?;
    let mut requests = tokio::task::JoinSet::new();
    for _ in 0..1000 {
        let client = client.clone();
        requests.spawn(async move { client.get("/api/profile").await.map(|answer| answer.status) });
    }
    let mut passed = 0;
    let mut refused = 0;
    while let Some(status) = requests.join_next().await {
        match status?? {
            401 => passed += 1,
            429 => refused += 1,
            other => panic!("an answer of {other}"),
        }
    }
    assert_eq!((passed, refused), (100, 900));
    Ok(())
}
