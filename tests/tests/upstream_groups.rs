//! Upstream groups: routing by path and host, isolation of the groups, and reloads that add and remove them.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use anyhow::Result;
use rustix::process::Signal;
use tests::address::unused_loopback;
use tests::mock_upstream::request_target;
use tests::raw_connection::{RawConnection, parse_status};
use tests::{Gateway, MockResponse, MockUpstream, wait};

/// Starts a server whose responses have `name` as their body.
async fn named_upstream(name: &'static str) -> Result<MockUpstream> {
    MockUpstream::start(move |_| MockResponse::new(200, name)).await
}

/// Requests `path` of `host` on a connection without SNI, on which a client may request any host. Returns the
/// whole response.
async fn get_from_host(gateway: &Gateway, host: &str, path: &str) -> Result<String> {
    let certificate = &gateway.certificate;
    let mut connection =
        RawConnection::connect_with_server_name(gateway, "127.0.0.1", certificate).await?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    connection.send(request).await?;
    connection.read_to_string().await
}

/// Two groups besides the default one, which paths select.
fn config_of_groups(orders: SocketAddr, stock: SocketAddr, paths: &str) -> String {
    format!(
        "
premier:
  upstreams:
    orders: {{servers: ['http://{orders}']}}
    stock: {{servers: ['http://{stock}'], health_check: {{path: /up, interval: 0.2}}}}
  paths:
{paths}
"
    )
}

#[tokio::test]
async fn the_path_selects_the_group() -> Result<()> {
    let default = named_upstream("default").await?;
    let orders = named_upstream("orders").await?;
    let stock = named_upstream("stock").await?;
    let config = config_of_groups(
        orders.address,
        stock.address,
        "    - {pattern: /orders/*, upstream: orders}
    - {pattern: /stock, upstream: stock}
    - {pattern: /orders/default, upstream: default}
    - {pattern: /other}",
    );
    let gateway = Gateway::start(default.address, &config).await?;
    let client = gateway.client()?;
    for (path, group) in [
        ("/orders/1", "orders"),
        ("/orders/default", "orders"),
        ("/stock", "stock"),
        ("/other", "default"),
        ("/unmatched", "default"),
    ] {
        assert_eq!(client.get(path).await?.text, group, "{path}");
    }
    Ok(())
}

#[tokio::test]
async fn the_host_selects_the_rule_and_the_group() -> Result<()> {
    let default = named_upstream("default").await?;
    let orders = named_upstream("orders").await?;
    let stock = named_upstream("stock").await?;
    let config = config_of_groups(
        orders.address,
        stock.address,
        "    - {pattern: /*, hosts: [shop.example.org, '::1'], upstream: orders}
    - {pattern: /*, hosts: ['*.example.org'], upstream: stock}",
    );
    let gateway = Gateway::start(default.address, &config).await?;
    for (host, group) in [
        ("shop.example.org", "orders"),
        ("SHOP.Example.org", "orders"),
        ("shop.example.org.", "orders"),
        ("shop.example.org:8443", "orders"),
        ("[::1]:8443", "orders"),
        ("www.example.org", "stock"),
        ("WWW.example.org.:443", "stock"),
        ("example.org", "default"),
        ("a.b.example.org", "default"),
        ("shop.example.org.evil.test", "default"),
        ("localhost", "default"),
    ] {
        let response = get_from_host(&gateway, host, "/a").await?;
        assert!(
            response.ends_with(&format!("\r\n\r\n{group}")),
            "{host}: {response}"
        );
    }
    let host = |server: &MockUpstream| server.received_requests().concat();
    assert!(
        host(&orders).contains("host: SHOP.Example.org\r\n"),
        "{}",
        host(&orders)
    );
    let pattern = r#"pattern="shop.example.org,::1 /*""#;
    let count = gateway.metric("gateway_requests_total", &[pattern]).await?;
    assert_eq!(count, Some(5.0));
    Ok(())
}

#[tokio::test]
async fn a_stripped_prefix_is_removed_on_segment_boundaries_and_announced() -> Result<()> {
    let upstream = MockUpstream::always_ok().await?;
    let config = config_of_groups(
        upstream.address,
        upstream.address,
        "    - {pattern: '/orders*', upstream: orders, strip_prefix: /orders}
    - {pattern: '/a;b/*', strip_prefix: '/a;b'}",
    );
    let gateway = Gateway::start(upstream.address, &config).await?;
    for (sent, forwarded, prefix) in [
        ("/orders", "/", "/orders"),
        ("/orders/", "/", "/orders"),
        ("/orders?a=%2Fb", "/?a=%2Fb", "/orders"),
        ("/orders/1?a=/orders/", "/1?a=/orders/", "/orders"),
        ("/orders/orders/2/", "/orders/2/", "/orders"),
        ("/x/..//%6Frders/c%3Bd%C3%BC", "/c%3Bd%C3%BC", "/orders"),
        ("/a%3Bb/c", "/c", "/a;b"),
        ("/ordersx/1", "/ordersx/1", ""),
        ("/other", "/other", ""),
    ] {
        let before = upstream.received_requests().len();
        let response = RawConnection::exchange(
            &gateway,
            format!(
                "GET {sent} HTTP/1.1\r\nHost: localhost\r\nX-Forwarded-Prefix: /evil\r\n\
                 X_Forwarded-Prefix: /evil\r\nConnection: close\r\n\r\n"
            ),
        )
        .await?;
        assert_eq!(parse_status(&response), 200, "{sent}");
        let requests = upstream.received_requests();
        let [received] = &requests[before..] else {
            panic!("{sent}: {requests:?}");
        };
        assert_eq!(request_target(received), forwarded, "{sent}");
        let received = received.to_lowercase();
        assert!(!received.contains("evil"), "{sent}: {received}");
        let header = format!("x-forwarded-prefix: {prefix}\r\n");
        let count = received.matches("x-forwarded-prefix").count();
        assert_eq!(count, usize::from(!prefix.is_empty()), "{sent}: {received}");
        assert!(
            prefix.is_empty() || received.contains(&header),
            "{sent}: {received}"
        );
    }
    Ok(())
}

#[tokio::test]
async fn quotas_and_metrics_count_the_whole_path() -> Result<()> {
    let upstream = MockUpstream::always_ok().await?;
    let config = config_of_groups(
        upstream.address,
        upstream.address,
        "    - {pattern: '/orders/*', upstream: orders, strip_prefix: /orders,
        features: {rate_limit: {quota: 2, duration: 86400}}}
    - {pattern: '/*', features: {rate_limit: {quota: 2, duration: 86400}}}",
    );
    let gateway = Gateway::start(upstream.address, &config).await?;
    let client = gateway.client()?;
    let mut statuses = Vec::new();
    for path in ["/orders/1", "/orders/1", "/orders/1", "/orders/2", "/1"] {
        statuses.push(client.get(path).await?.status);
    }
    assert_eq!(statuses, [200, 200, 429, 200, 200]);
    let count = gateway.metric("gateway_requests_total", &["pattern=\"/orders/*\"", "2xx"]);
    assert_eq!(count.await?, Some(3.0));
    gateway.process.wait_for_log("\"path\":\"/orders/2\"").await
}

#[tokio::test]
async fn paths_for_operators_are_not_reachable_through_a_stripped_prefix() -> Result<()> {
    let upstream = MockUpstream::always_ok().await?;
    let config = config_of_groups(
        upstream.address,
        upstream.address,
        "    - {pattern: '/orders/*', upstream: orders, strip_prefix: /orders}
    - {pattern: '/stock/*', upstream: stock}",
    );
    let gateway = Gateway::start(upstream.address, &config).await?;
    let client = gateway.client()?;
    for path in [
        "/orders/metrics",
        "/orders/ready",
        "/orders/ready/",
        "/orders//%6detrics/",
        "/metrics",
    ] {
        assert_eq!(client.get(path).await?.status, 404, "{path}");
    }
    assert!(upstream.received_requests().is_empty());
    assert_eq!(client.get("/stock/metrics").await?.status, 200);
    Ok(())
}

#[tokio::test]
async fn the_prefix_of_a_trusted_proxy_comes_before_the_stripped_one() -> Result<()> {
    let upstream = MockUpstream::always_ok().await?;
    let config = "
premier:
  trusted_proxies: [127.0.0.0/8]
  paths: [{pattern: '/orders/*', strip_prefix: /orders}]
";
    let gateway = Gateway::start(upstream.address, config).await?;
    let request = "GET /orders/1 HTTP/1.1\r\nHost: localhost\r\nX-Forwarded-Prefix: /outer\r\n\
                   Connection: close\r\n\r\n";
    let response = RawConnection::exchange(&gateway, request).await?;
    assert_eq!(parse_status(&response), 200);
    let received = upstream.received_requests().concat();
    let prefixes: Vec<_> = received
        .lines()
        .filter_map(|line| line.strip_prefix("x-forwarded-prefix: "))
        .collect();
    assert_eq!(prefixes, ["/outer", "/orders"]);
    Ok(())
}

#[tokio::test]
async fn rules_of_different_hosts_have_separate_quotas_and_circuit_breakers() -> Result<()> {
    let upstream = MockUpstream::start(|request| {
        let is_broken = request.contains("host: a.test\r\n");
        MockResponse::new(if is_broken { 500 } else { 200 }, "")
    })
    .await?;
    let features = "{rate_limit: {quota: 5, duration: 86400, per: []}, circuit_breaker: {failure_threshold: 2}}";
    let server = upstream.address;
    let config = config_of_groups(
        server,
        server,
        &format!(
            "    - {{pattern: /*, hosts: [a.test], upstream: orders, features: {features}}}
    - {{pattern: /*, hosts: [b.test], upstream: stock, features: {features}}}"
        ),
    );
    let gateway = Gateway::start(server, &config).await?;
    let mut statuses = Vec::new();
    for host in ["a.test", "b.test"] {
        for _ in 0..6 {
            let response = get_from_host(&gateway, host, "/").await?;
            statuses.push(parse_status(&response));
        }
    }
    assert_eq!(
        statuses,
        [500, 500, 503, 503, 503, 429, 200, 200, 200, 200, 200, 429]
    );
    for (upstream, state) in [("orders", 2.0), ("stock", 0.0)] {
        let label = format!("upstream=\"{upstream}\"");
        let metric = gateway
            .metric("gateway_circuit_breaker_state", &[&label])
            .await?;
        assert_eq!(metric, Some(state), "{upstream}");
    }
    Ok(())
}

#[tokio::test]
async fn a_dead_group_affects_no_other_and_is_visible_to_operators() -> Result<()> {
    let default = named_upstream("default").await?;
    let stock = named_upstream("stock").await?;
    let dead = unused_loopback();
    let config = config_of_groups(
        dead,
        stock.address,
        "    - {pattern: /orders, upstream: orders}
    - {pattern: /stock, upstream: stock}",
    );
    let gateway = Gateway::start(default.address, &config).await?;
    let client = gateway.client()?;
    gateway
        .wait_for_metric("gateway_replica_up", &["upstream=\"stock\""], 1.0)
        .await?;
    let response = client.get("/orders").await?;
    assert_eq!(response.status, 503);
    assert!(!response.header("retry-after").is_empty());
    assert_eq!(client.get("/stock").await?.text, "stock");
    assert_eq!(client.get("/other").await?.text, "default");
    for (upstream, is_up) in [("orders", 0.0), ("stock", 1.0), ("default", 1.0)] {
        let label = format!("upstream=\"{upstream}\"");
        let labels = [label.as_str()];
        assert_eq!(
            gateway.metric("gateway_replica_up", &labels).await?,
            Some(is_up),
            "{upstream}"
        );
        let count = gateway
            .metric("gateway_upstream_endpoints", &labels)
            .await?;
        assert_eq!(count, Some(1.0), "{upstream}");
    }
    let failures = gateway.metric(
        "gateway_upstream_attempts_total",
        &["upstream=\"orders\"", "outcome=\"connect_failure\""],
    );
    assert!(failures.await? >= Some(1.0));
    let admin = gateway.admin_client()?;
    assert_eq!(
        admin.get("/ready").await?.status,
        200,
        "some paths can be served"
    );
    let status = admin.get("/status").await?.json();
    let endpoints: Vec<_> = status["replicas"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|endpoint| {
            let text = |key: &str| endpoint[key].as_str().unwrap_or_default().to_owned();
            (text("upstream"), text("address"), text("condition"))
        })
        .collect();
    let expected = |upstream: &str, address: SocketAddr, condition: &str| {
        (
            upstream.to_owned(),
            address.to_string(),
            condition.to_owned(),
        )
    };
    assert_eq!(
        endpoints,
        [
            expected("default", default.address, "up"),
            expected("orders", dead, "down"),
            expected("stock", stock.address, "up"),
        ]
    );
    Ok(())
}

#[tokio::test]
async fn the_gateway_is_ready_while_any_group_has_a_healthy_endpoint() -> Result<()> {
    let orders = named_upstream("orders").await?;
    let paths = "    - {pattern: /orders, upstream: orders}
    - {pattern: /stock, upstream: stock}";
    let config = config_of_groups(orders.address, unused_loopback(), paths);
    let gateway = Gateway::start(unused_loopback(), &config).await?;
    let admin = gateway.admin_client()?;
    admin
        .wait_for_response("/ready", |response| response.status == 200)
        .await?;
    drop(orders);
    admin
        .wait_for_response("/ready", |response| response.status == 503)
        .await
}

#[tokio::test]
async fn a_reload_adds_and_removes_groups_while_requests_run() -> Result<()> {
    let default = named_upstream("default").await?;
    let orders = named_upstream("orders").await?;
    let stock = named_upstream("stock").await?;
    let without_stock = format!(
        "premier: {{upstreams: {{orders: {{servers: ['http://{}']}}}}, \
         paths: [{{pattern: /orders, upstream: orders}}]}}\n",
        orders.address
    );
    let with_stock = config_of_groups(
        orders.address,
        stock.address,
        "    - {pattern: /orders, upstream: orders}
    - {pattern: /stock, upstream: stock}",
    );
    let gateway = Gateway::start(default.address, &without_stock).await?;
    let is_over = Arc::new(AtomicBool::new(false));
    let responses = Arc::new(AtomicUsize::new(0));
    let mut requests = Vec::new();
    for path in ["/orders", "/stock", "/other"] {
        let client = gateway.client()?;
        let (is_over, responses) = (Arc::clone(&is_over), Arc::clone(&responses));
        requests.push(tokio::spawn(async move {
            while !is_over.load(Ordering::Relaxed) {
                let response = client.get(path).await?;
                let served_by = response.text.as_str();
                let is_expected = match path {
                    "/orders" => served_by == "orders",
                    "/stock" => ["default", "stock"].contains(&served_by),
                    _ => served_by == "default",
                };
                anyhow::ensure!(
                    response.status == 200 && is_expected,
                    "{path}: {} {served_by}",
                    response.status
                );
                responses.fetch_add(1, Ordering::Relaxed);
            }
            Ok(())
        }));
    }
    let replica_up = "gateway_replica_up";
    for _ in 0..3 {
        std::fs::write(gateway.config_file(), &with_stock)?;
        gateway.process.signal(Signal::HUP)?;
        gateway
            .wait_for_response("/stock", |response| response.text == "stock")
            .await?;
        gateway
            .wait_for_metric(replica_up, &["upstream=\"stock\""], 1.0)
            .await?;
        std::fs::write(gateway.config_file(), &without_stock)?;
        gateway.process.signal(Signal::HUP)?;
        gateway
            .wait_for_response("/stock", |response| response.text == "default")
            .await?;
        wait::until("the metrics of the removed group to end", async || {
            let metric = gateway.metric(replica_up, &["upstream=\"stock\""]).await;
            metric.is_ok_and(|value| value.is_none())
        })
        .await?;
    }
    is_over.store(true, Ordering::Relaxed);
    for request in requests {
        request.await??;
    }
    assert!(responses.load(Ordering::Relaxed) > 0);
    assert_eq!(
        orders.connection_count(),
        1,
        "the unchanged group did not keep its connection"
    );
    Ok(())
}
