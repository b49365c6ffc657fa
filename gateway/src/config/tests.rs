//! Parsing of whole configurations, and the errors and warnings about them.

use super::*;

fn parse(yaml: &str) -> Result<Config, String> {
    Config::parse("gateway.yml".as_ref(), yaml, &Environment::for_tests())
        .map_err(|errors| errors.to_string())
}

#[test]
fn the_example_of_the_python_services_readme_is_valid() {
    let config = parse(
        r#"
premier:
  paths:
    - pattern: "/api/*"
      features:
        rate_limit:
          quota: 100
          duration: 60
        monitoring:
          log_threshold: 5.0
"#,
    )
    .unwrap();
    assert_eq!(config.keyspace, "asgi-gateway");
    let features = &config.paths[0].features;
    let rate_limit = features.rate_limit.as_ref().unwrap();
    assert_eq!(
        (rate_limit.quota.get(), rate_limit.duration.as_secs()),
        (100, 60)
    );
    assert_eq!(rate_limit.algorithm, RateLimitAlgorithm::FixedWindow);
    assert_eq!(rate_limit.per, [QuotaKeyPart::Client, QuotaKeyPart::Path]);
    assert_eq!(rate_limit.error_response.status, 429);
    assert_eq!(rate_limit.error_response.message, "Rate limit exceeded");
    assert_eq!(features.monitoring.unwrap().log_threshold.as_secs(), 5);
    assert_eq!(config.listen.https.port(), 443);
    assert_eq!(config.servers[0].to_string(), "http://auth-api:8000");
}

#[test]
fn the_shipped_file_is_valid() {
    let text = include_str!("../../../gateway.yml");
    let config = parse(text).unwrap();
    assert!(config.warnings.is_empty(), "{:?}", config.warnings);
}

#[test]
fn the_shipped_file_shows_the_defaults() {
    let shipped = parse(include_str!("../../../gateway.yml")).unwrap();
    let default = parse("premier: {}").unwrap();
    let expected = Config {
        keyspace: shipped.keyspace.clone(),
        // Without it, servers need no `/ready`.
        health_check: shipped.health_check.clone(),
        paths: shipped.paths.clone(),
        default_features: shipped.default_features.clone(),
        hash: shipped.hash.clone(),
        ..default
    };
    assert_eq!(shipped, expected);
}

#[test]
fn the_demonstration_adds_only_its_service_to_the_shipped_file() {
    let demo = parse(include_str!("../../../demo/gateway.yml")).unwrap();
    assert!(demo.warnings.is_empty(), "{:?}", demo.warnings);
    let without_service = Config {
        identity: None,
        upstreams: Vec::new(),
        paths: demo.paths[1..].to_vec(),
        ..demo.clone()
    };
    let shipped = Config {
        hash: demo.hash.clone(),
        ..parse(include_str!("../../../gateway.yml")).unwrap()
    };
    assert_eq!(without_service, shipped);
    assert_eq!(demo.paths[0].features.auth, Some(AuthRequirement::Required));
}

#[test]
fn all_keys_of_premier_are_known() {
    let config = parse(
        r#"
premier:
  keyspace: "auth"
  servers: ["http://a:1", "ws://b:2"]
  paths:
    - pattern: "^/x"
      features:
        rate_limit: {quota: 1, duration: 1.5, algorithm: leaky_bucket, bucket_size: 3, error_status: 503, error_message: "no"}
        timeout: {seconds: 0.5, error_status: 408, error_message: "slow"}
        retry: {max_attempts: 2, wait: [0.1, 0.2]}
        circuit_breaker: {failure_threshold: 2, recovery_timeout: 1, expected_exception: Exception}
        cache: {expire_s: 10, cache_key: x}
        monitoring: {log_threshold: 0}
  default_features:
    monitoring:
      log_threshold: 1
"#,
    )
    .unwrap();
    let features = &config.paths[0].features;
    assert_eq!(features.retry.as_ref().unwrap().wait.len(), 2);
    assert_eq!(
        features.timeout.as_ref().unwrap().error_response.status,
        408
    );
    assert_eq!(config.warnings.len(), 2, "{:?}", config.warnings);
}

#[test]
fn the_kind_of_health_check_depends_on_whether_the_file_has_one() {
    let method = |yaml: &str| parse(yaml).unwrap().health_check.method;
    let http = |path: &str| HealthCheckMethod::Http {
        path: path.to_owned(),
    };
    assert_eq!(method("premier: {}"), HealthCheckMethod::TcpConnect);
    assert_eq!(
        method("premier: {health_check: null}"),
        HealthCheckMethod::None
    );
    assert_eq!(method("premier: {health_check: {}}"), http("/ready"));
    assert_eq!(method("premier: {health_check: {path: /up}}"), http("/up"));
    assert_eq!(method(include_str!("../../../gateway.yml")), http("/ready"));
}

#[test]
fn identity_is_verified_at_the_server_of_the_keys_by_default() {
    let identity = |settings: &str| {
        let yaml = format!("premier: {{identity: {{{settings}}}}}");
        parse(&yaml).unwrap().identity.unwrap()
    };
    let default = identity("keys: http://auth-api:8000/.well-known/jwks.json");
    assert_eq!(
        default.verify.to_string(),
        "http://auth-api:8000/api/verify"
    );
    assert_eq!((default.sessions, default.audience), (None, None));
    assert_eq!(default.issuer, "auth-api");
    let other = identity("keys: http://a/k, verify: http://b/v, sessions: 'redis://:secret@r/0'");
    assert_eq!(other.verify.to_string(), "http://b:80/v");
    assert!(other.sessions.is_some());
    assert!(!format!("{other:?}").contains("secret"));
    assert_eq!(identity("verify: http://b/v").keys, None);
    assert_eq!(parse("premier: {identity: }").unwrap().identity, None);
}

#[test]
fn errors_about_identity_are_reported_with_their_positions() {
    let errors = parse(
        "
premier:
  paths:
    - pattern: /a
      features: {auth: {required: true}}
    - pattern: /b
      features: {rate_limit: {quota: 1, duration: 1, per: [user]}}
",
    )
    .unwrap_err();
    let of_identity = parse(
        "
premier:
  identity: {audience: a, sessions: 'redis-cluster://:secret@r:1'}
  paths: [{pattern: /a, features: {auth: {required: 5}}}]
",
    )
    .unwrap_err();
    insta::assert_snapshot!([errors, of_identity].join("\n"));
}

#[test]
fn an_empty_issuer_or_audience_is_the_default_and_either_needs_keys() {
    let identity = |settings: &str| {
        let parsed = parse(&format!("premier: {{identity: {{{settings}}}}}"));
        parsed.map(|config| config.identity.unwrap())
    };
    let empty = identity("keys: 'http://a/k', issuer: '', audience: ''").unwrap();
    assert_eq!((empty.issuer.as_str(), empty.audience), ("auth-api", None));
    assert!(identity("verify: 'http://a/v', issuer: '', audience: ''").is_ok());
    for setting in ["issuer: a", "audience: a"] {
        let error = identity(&format!("verify: 'http://a/v', {setting}")).unwrap_err();
        assert!(error.contains("need `keys`"), "{error}");
    }
}

#[test]
fn a_quota_counts_by_no_header_that_the_gateway_replaces() {
    let parse = |per: &str| {
        parse(&format!(
            "premier: {{default_features: {{headers: {{request: {{set: {{X-Tenant: a}}, remove: [X-Gone]}}}}, \
             rate_limit: {{quota: 1, duration: 1, per: ['header:{per}']}}}}}}"
        ))
    };
    for per in [
        "X-Forwarded-For",
        "x_user_id",
        "X-Real-IP",
        "X.Tenant",
        "x-gone",
    ] {
        let error = parse(per).unwrap_err();
        assert!(error.contains("could choose another quota"), "{error}");
    }
    for (per, folded) in [("X_Key", "x-key"), ("Host", "host"), ("Cookie", "cookie")] {
        let quota = parse(per).unwrap().default_features.rate_limit.unwrap();
        let name = http::HeaderName::from_static(folded);
        assert_eq!(quota.per, [QuotaKeyPart::Header(name)]);
    }
}

#[test]
fn cors_permits_what_the_file_lists() {
    let cors = |settings: &str| {
        let yaml = format!("premier: {{default_features: {{cors: {{{settings}}}}}}}");
        parse(&yaml).unwrap().default_features.cors.unwrap()
    };
    let default = cors("origins: ['*']");
    assert_eq!(default.origins, AllowedOrigins::Any);
    assert_eq!(default.methods, ["GET", "HEAD", "POST"]);
    assert!(default.headers.is_empty() && default.exposed_headers.is_empty());
    assert_eq!(default.credentials, CorsCredentials::Excluded);
    assert_eq!(default.max_age, None);
    let listed = cors(
        "origins: ['HTTPS://A.org:443', 'null'], methods: [PUT], headers: [X-A], max_age: 60, credentials: true",
    );
    assert!(listed.origins.permit(b"https://a.org") && listed.origins.permit(b"null"));
    assert!(!listed.origins.permit(b"https://b.org"));
    assert_eq!((listed.methods.len(), listed.max_age), (1, Some(60)));
    assert_eq!(listed.headers, ["x-a"]);
    assert_eq!(listed.credentials, CorsCredentials::Included);
    assert_eq!(
        cors("origins: ['*'], headers: ['*', Authorization]")
            .headers
            .len(),
        2
    );
}

#[test]
fn errors_about_cors_are_reported_with_their_positions() {
    let errors = parse(
        r#"
premier:
  paths:
    - pattern: /a
      features:
        cors: {origins: [https://a.org/, "*"], credentials: true, methods: ["*"], headers: ["*"], exposed_headers: ["*"]}
    - pattern: /b
      features:
        cors: {origins: ["*", https://a.org], methods: [patch, TRACE, "a b"], headers: ["X A"], max_age: -1}
    - pattern: /c
      features:
        cors: {origin: [https://a.org]}
    - pattern: /d
      features:
        cros: {origins: []}
        cors: {origins: [], methods: [], credentials: 5}
    - pattern: /e
      features: {cors: {origins: [null]}}
"#,
    )
    .unwrap_err();
    insta::assert_snapshot!(errors);
}

#[test]
fn values_of_headers_come_from_the_file_or_the_environment() {
    let yaml = r#"
x-common: &common {X-Frame-Options: DENY}
premier:
  default_features:
    headers:
      request:
        set: {x-tenant: "${TENANT}", Authorization: "Basic ${SECRET}", X-Number: 5}
        remove: [Cookie]
      response:
        set: {<<: *common, Strict-Transport-Security: max-age=63072000; includeSubDomains}
        add: {Link: </a.css>; rel=preload}
"#;
    let environment = Environment::for_tests();
    let config = |tenant: &str| {
        let environment = environment
            .clone()
            .with(&[("TENANT", tenant), ("SECRET", "aGlkZGVu")]);
        Config::parse("gateway.yml".as_ref(), yaml, &environment)
    };
    let parsed = config("a b").unwrap();
    let rules = parsed.default_features.headers.as_ref().unwrap();
    let value = |lines: &[(http::HeaderName, http::HeaderValue)], name: &str| {
        let line = lines.iter().find(|(key, _)| key == name);
        line.map(|(_, value)| value.to_str().unwrap().to_owned())
    };
    let request = &rules.request;
    assert_eq!(value(&request.set, "x-tenant").as_deref(), Some("a b"));
    assert_eq!(value(&request.set, "x-number").as_deref(), Some("5"));
    assert_eq!(request.remove, ["cookie"]);
    assert_eq!(
        value(&rules.response.set, "x-frame-options").as_deref(),
        Some("DENY")
    );
    assert_eq!(rules.response.add.len(), 1);
    assert!(!format!("{parsed:?}").contains("aGlkZGVu"));
    let smuggled = config("a\r\nX-User-Id: 1").unwrap_err().to_string();
    assert!(
        smuggled.contains("7:25: premier.default_features.headers.request.set.x-tenant: has the control character U+000D"),
        "{smuggled}"
    );
}

#[test]
fn errors_about_header_rules_are_reported_with_their_positions() {
    let errors = parse(
        r#"
premier:
  paths:
    - pattern: /own
      features:
        headers:
          request:
            set: {Content-Length: 5, Host: a, X-User-Id: 1, x_forwarded_for: a, X.Request.Id: a, "X-A": a, x_a: b}
            add: {Cookie: a=b, Transfer_Encoding: chunked, traceparent: a}
            remove: [Connection, Upgrade, TE, Trailer, X-Session-Id, x_user_login, X-Forwarded-Anything, Expect]
          response:
            set: {Connection: close, RateLimit: a, "a b": c, "X-A\r\nX-B": c, "": a, ":status": 200}
            add: {Strict-Transport-Security: max-age=0, X-Request-Id: a, X-C: }
            remove: [Strict-Transport-Security, Date, "a:b"]
    - pattern: /values
      features:
        headers:
          response:
            set: {A: "a\r\nB: c", B: "a\0", C: " a", D: bücher, E: true, F: [a], G: "a\nb"}
            sett: {}
    - pattern: /both
      features:
        cors: {origins: ["*"]}
        headers: {response: {set: {Access-Control-Allow-Origin: "*"}}, request: {remove: [Access-Control-Request-Method]}}
"#,
    )
    .unwrap_err();
    insta::assert_snapshot!(errors);
}

#[test]
fn permissive_cors_causes_warnings() {
    let config = parse(
        "
premier:
  identity: {verify: http://a/v}
  paths:
    - pattern: /a
      features: {auth: {}, cors: {origins: [https://a.org, 'null'], credentials: true, headers: [Content-Type]}}
    - pattern: /b
      features: {auth: {}, cors: {origins: [https://a.org], headers: [authorization]}}
    - pattern: /c
      features: {cors: {origins: ['null', 'https://*.com']}}
    - pattern: /d
      features: {cors: {origins: ['https://*.com:8443', 'https://*.a.org'], credentials: true}}
",
    )
    .unwrap();
    insta::assert_snapshot!(config.warnings.join("\n"));
}

#[test]
fn keys_that_premier_documents_and_ignores_cause_warnings() {
    let config = parse(
        "
server: {port: 8000}
premier:
  dashboard: {enabled: true, path: /premier/dashboard}
  paths:
    - pattern: /a
      features:
        retry: {max_attempts: 2, exceptions: [TimeoutError], backoff: exponential}
        cache: {expire_s: 60, key_template: '{path}'}
logging: debug
x-own: 1
",
    )
    .unwrap();
    insta::assert_snapshot!(config.warnings.join("\n"));
}

#[test]
fn values_that_premier_accepts_are_valid() {
    let config = parse(
        "
premier:
  servers: null
  paths:
    - pattern: /a
      features:
        rate_limit: {quota: 7, duration: 60, algorithm: token_bucket, bucket_size: null}
        retry: {max_attempts: 15}
        circuit_breaker: {recovery_timeout: 0}
",
    )
    .unwrap();
    let features = &config.paths[0].features;
    assert_eq!(config.servers[0].host, "auth-api");
    assert_eq!(features.rate_limit.as_ref().unwrap().bucket_size.get(), 7);
    assert_eq!(features.retry.as_ref().unwrap().max_attempts.get(), 15);
    assert!(features.circuit_breaker.unwrap().recovery_timeout.is_zero());
}

#[test]
fn a_server_variable_without_a_server_is_rejected() {
    let environment = Environment::for_tests().with(&[("GATEWAY_SERVERS", " , ")]);
    let error = Config::parse("gateway.yml".as_ref(), "premier: {}", &environment).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("environment variable GATEWAY_SERVERS: must name at least one server"),
        "{error}"
    );
}

#[test]
fn all_errors_are_reported_at_once_with_their_positions() {
    let errors = parse(
        r#"premier:
  keyspce: x
  servers: [auth-api]
  listen: {https: here}
  load_balancing: {strategy: round}
  limits: {max_body_bytes: -1, max_header_bytes: 1, max_connections: 1.5}
  trusted_proxies: [x/8]
  paths:
    - pattern: "/v[1"
    - features: {}
    - pattern: "/a"
      features:
        rate_limit: {quota: 0, duration: -1, algoritm: fixed_window}
    - pattern: "/b"
      features:
        rate_limit: {quota: "100", duration: 1e-12, algorithm: slidng_window, per: [clint]}
        timeout: {}
        retry: {wait: []}
        monitoring: 5
        rate_limits: {}
"#,
    )
    .unwrap_err();
    insta::assert_snapshot!(errors);
}

#[test]
fn merged_keys_do_not_override_those_of_the_mapping() {
    let config = parse(
        r#"
x-quota: &quota {quota: 5, duration: 60, algorithm: token_bucket}
x-message: &message {<<: {error_status: 503}, quota: 6, error_message: "wait"}
premier:
  paths:
    - pattern: "/a"
      features: {rate_limit: {<<: *quota}}
    - pattern: "/b"
      features: &features
        rate_limit: {<<: [*message, *quota], duration: 1}
    - pattern: "/c"
      features:
        <<: *features
        monitoring: {}
"#,
    )
    .unwrap();
    let rate_limits: Vec<_> = config
        .paths
        .iter()
        .map(|rule| rule.features.rate_limit.as_ref().unwrap())
        .map(|rate_limit| {
            (
                rate_limit.quota.get(),
                rate_limit.duration.as_secs(),
                rate_limit.error_response.status.as_u16(),
            )
        })
        .collect();
    assert_eq!(rate_limits, [(5, 60, 429), (6, 1, 503), (6, 1, 503)]);
    assert_eq!(
        config.paths[1].features.rate_limit,
        config.paths[2].features.rate_limit
    );
}

#[test]
fn a_merged_value_that_is_not_a_mapping_is_rejected() {
    let errors = parse(
        r"premier:
  keyspace: a
  <<: 5
  common: &common {}
  listen: {<<: [{htps: x}, y]}
",
    )
    .unwrap_err();
    insta::assert_snapshot!(errors);
}

#[test]
fn invalid_yaml_is_rejected_with_its_position() {
    assert!(parse("premier: [").unwrap_err().starts_with("gateway.yml:"));
    assert!(parse("").unwrap_err().contains("must have one"));
    assert!(parse("{}").unwrap_err().contains("`premier` is missing"));
}

#[test]
fn values_may_come_from_the_environment() {
    let config = parse(
        r#"
premier:
  paths:
    - pattern: "/${NONE:-api}/*"
      features: {rate_limit: {quota: "${QUOTA:-7}", duration: 1}}
"#,
    )
    .unwrap();
    assert_eq!(config.paths[0].pattern.to_string(), "/api/*");
    assert_eq!(
        config.paths[0]
            .features
            .rate_limit
            .as_ref()
            .unwrap()
            .quota
            .get(),
        7
    );
}

#[test]
fn an_integer_may_be_written_as_a_float() {
    let config = parse(
        "premier: {default_features: {rate_limit: {quota: 1e3, duration: 60, bucket_size: 5.0}}}",
    )
    .unwrap();
    let rate_limit = config.default_features.rate_limit.unwrap();
    assert_eq!(
        (rate_limit.quota.get(), rate_limit.bucket_size.get()),
        (1000, 5)
    );
}

#[test]
fn a_trusted_network_with_host_bits_causes_a_warning() {
    let config = parse("premier: {trusted_proxies: [10.0.0.1/8, 10.0.0.0/8, '::1']}").unwrap();
    let networks: Vec<_> = config
        .trusted_proxies
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(networks, ["10.0.0.0/8", "10.0.0.0/8", "::1/128"]);
    let warning = "trusted_proxies: 10.0.0.1/8 has host bits set: all of 10.0.0.0/8 is trusted";
    assert_eq!(config.warnings, [warning]);
}

#[test]
fn misleading_patterns_cause_warnings() {
    let config = parse(
        "premier: {paths: [{pattern: '/w/[!a]'}, {pattern: '/api/*'}, {pattern: '/api/profile'}, {pattern: '/api/*'}]}",
    )
    .unwrap();
    insta::assert_snapshot!(config.warnings.join("\n"));
}

#[test]
fn an_invalid_variable_is_rejected_with_the_reason() {
    let environment = Environment::for_tests().with(&[("Q", "abc")]);
    let yaml = r#"premier:
  keyspace: "${A:-${B}}"
  default_features: {rate_limit: {quota: "${Q}", duration: "${D}"}}
"#;
    let errors = Config::parse("gateway.yml".as_ref(), yaml, &environment).unwrap_err();
    insta::assert_snapshot!(errors);
    let error = parse("premier:\n  listen: {https: ${A:-0.0.0.0:443}}").unwrap_err();
    assert!(error.starts_with("gateway.yml:2:"), "{error}");
    assert!(error.contains("must be quoted: \"${NAME}\""), "{error}");
}

#[test]
fn groups_have_settings_of_their_own_and_paths_select_them() {
    let config = parse(
        "
premier:
  load_balancing: {strategy: random}
  upstreams:
    x-shared: &shared {max_connections_per_endpoint: 7}
    orders: {servers: [http://a:1, 'https://b'], load_balancing: *shared, health_check: {path: /up}}
    stock.v2: {servers: http://c}
  paths:
    - {pattern: /o/*, upstream: orders, hosts: [Shop.example.org., '*.example.org']}
    - {pattern: /s/*, upstream: stock.v2}
    - {pattern: /d/*, upstream: default}
    - {pattern: /e/*}
",
    )
    .unwrap();
    let [default, orders, stock] = config
        .upstream_groups()
        .collect::<Vec<_>>()
        .try_into()
        .unwrap();
    assert_eq!(default.name, "default");
    assert_eq!(default.load_balancing.strategy, BalancingStrategy::Random);
    assert_eq!(orders.name, "orders");
    assert_eq!(orders.servers.len(), 2);
    assert_eq!(
        orders.load_balancing.strategy,
        BalancingStrategy::LeastRequests
    );
    assert_eq!(orders.load_balancing.endpoint_limits.max_connections, 7);
    let method = HealthCheckMethod::Http {
        path: "/up".to_owned(),
    };
    assert_eq!(orders.health_check.method, method);
    assert_eq!(stock.name, "stock.v2");
    assert_eq!(stock.health_check.method, HealthCheckMethod::TcpConnect);
    let selected: Vec<_> = config.paths.iter().map(|rule| rule.upstream.0).collect();
    assert_eq!(selected, [1, 2, 0, 0]);
    assert_eq!(
        config.paths[0].name(),
        "shop.example.org,*.example.org /o/*"
    );
    assert_eq!(config.paths[1].name(), "/s/*");
}

#[test]
fn mistakes_about_groups_and_hosts_are_reported_with_their_positions() {
    let errors = parse(
        r#"premier:
  upstreams:
    orders: {servers: []}
    stock: {server: http://stock}
    default: {servers: http://a}
    "my group": {servers: http://a, health_check: {interval: 0}}
    nothing:
  paths:
    - {pattern: /a, upstream: order}
    - {pattern: /b, upstream: payments}
    - {pattern: /c, hosts: []}
    - {pattern: /d, hosts: [shop.example.org:443, "a.*.org"]}
    - {pattern: /e, host: [a]}
"#,
    )
    .unwrap_err();
    insta::assert_snapshot!(errors);
}

#[test]
fn what_has_no_effect_causes_warnings() {
    let config = parse(
        "
premier:
  upstreams:
    orders: {servers: http://a, load_balancing: {max_connections_per_endpoint: 64}}
    stock: {servers: http://b, tls: {server_name: c}}
  default_features: {timeout: {seconds: 1}, retry: {attempt_timeout: 1}}
  paths:
    - {pattern: /a, upstream: stock, hosts: [localhost, www.example.org, 127.0.0.1]}
    - {pattern: /b, hosts: ['*.example.org', a.b.example.org, shop.test]}
    - {pattern: /c, hosts: ['*.b.example.org', shop.test]}
",
    )
    .unwrap();
    insta::assert_snapshot!(config.warnings.join("\n"));
}

#[test]
fn the_files_of_tls_to_servers_are_read() {
    let fixtures = concat!(env!("CARGO_MANIFEST_DIR"), "/src/config/fixtures");
    let parse_tls = |tls: &str| {
        parse(&format!(
            "premier: {{upstreams: {{a: {{servers: https://a, tls: {tls}}}}}}}"
        ))
    };
    let config = parse_tls(&format!(
        "{{server_name: b.internal, ca: {fixtures}/rsa-cert.pem, cert: {fixtures}/cert.pem, key: {fixtures}/key.pem}}"
    ))
    .unwrap();
    let tls = &config.upstreams[0].tls;
    assert_eq!(tls.server_name.as_ref().unwrap().to_str(), "b.internal");
    assert_eq!(tls.authorities.as_ref().unwrap().roots().len(), 1);
    assert!(tls.client_certificate.is_some());
    let names = config
        .certificate_files()
        .filter_map(|file| file.file_name());
    let names: Vec<_> = names.map(|name| name.to_str().unwrap()).collect();
    assert_eq!(
        names,
        ["cert.pem", "key.pem", "cert.pem", "key.pem", "rsa-cert.pem"]
    );
    let problems: Vec<_> = [
        "{server_name: 'b:443'}",
        "{ca: none.pem}",
        "{ca: FIXTURES/key.pem}",
        "{cert: FIXTURES/cert.pem}",
        "{key: FIXTURES/key.pem}",
        "{cert: FIXTURES/cert.pem, key: FIXTURES/rsa-key.pem}",
        "{verify: false}",
    ]
    .map(|tls| parse_tls(&tls.replace("FIXTURES", fixtures)).unwrap_err())
    .to_vec();
    insta::assert_snapshot!(problems.join("\n").replace(fixtures, "FIXTURES"));
}

#[test]
fn a_prefix_that_not_every_matching_path_begins_with_is_rejected() {
    let config = parse(
        "
premier:
  paths:
    - {pattern: /orders, strip_prefix: /orders}
    - {pattern: '/orders/*', strip_prefix: /orders}
    - {pattern: '/orders*', strip_prefix: /orders}
    - {pattern: '^/orders(/|$)', strip_prefix: /orders}
    - {pattern: /für/x, strip_prefix: /für}
",
    )
    .unwrap();
    let prefixes = config
        .paths
        .iter()
        .map(|rule| rule.strip_prefix.clone().unwrap().to_string());
    assert_eq!(
        prefixes.collect::<Vec<_>>(),
        ["/orders", "/orders", "/orders", "/orders", "/f%C3%BCr"]
    );
    let errors = parse(
        "premier:
  paths:
    - {pattern: /shop/*, strip_prefix: /orders}
    - {pattern: /ordersx/*, strip_prefix: /orders}
    - {pattern: '^/(orders|shop)/', strip_prefix: /orders}
    - {pattern: /orders/*, strip_prefix: orders}
    - {pattern: /orders/*, strip_prefix: /orders/}
    - {pattern: /orders/*, strip_prefix: /}
    - {pattern: /orders/*, strip_prefix: /a/../orders}
",
    )
    .unwrap_err();
    insta::assert_snapshot!(errors);
}

#[test]
fn an_earlier_rule_shadows_only_rules_of_its_hosts() {
    let warnings = |paths: &str| {
        let config = parse(&format!("premier: {{paths: [{paths}]}}")).unwrap();
        config.warnings.join("\n")
    };
    let shadowed = "has no effect: the earlier pattern";
    for paths in [
        "{pattern: '/a/*'}, {pattern: '/a/b', hosts: [a.example.org]}",
        "{pattern: '/a/*', hosts: ['*.example.org', localhost]}, {pattern: '/a/b', hosts: [a.example.org]}",
        "{pattern: '/a/*', hosts: [a.example.org]}, {pattern: '/a/*', hosts: [a.example.org]}",
        "{pattern: '/v?/*'}, {pattern: '/v1/b'}",
        "{pattern: '^/a/[bc]$', hosts: [a.example.org]}, {pattern: '/a/b', hosts: [a.example.org]}",
    ] {
        assert!(warnings(paths).contains(shadowed), "{paths}");
    }
    for paths in [
        "{pattern: '/a/*', hosts: [a.example.org]}, {pattern: '/a/b'}",
        "{pattern: '/a/*', hosts: [a.example.org]}, {pattern: '/a/b', hosts: ['*.example.org']}",
        "{pattern: '/a/*', hosts: [a.example.org]}, {pattern: '/a/b', hosts: [a.example.org, localhost]}",
        "{pattern: '/a/b', hosts: [a.example.org]}, {pattern: '/a/*', hosts: [a.example.org]}",
        "{pattern: '/v?/*'}, {pattern: '/v12/b'}",
        "{pattern: '^/a/[bc]$'}, {pattern: '/a/bc'}",
    ] {
        assert!(!warnings(paths).contains(shadowed), "{paths}");
    }
}

#[test]
fn an_unusable_certificate_is_rejected() {
    let result = parse("premier: {tls: {certificates: [{cert: none.pem, key: none.pem}]}}");
    assert!(result.unwrap_err().contains("none.pem: cannot be read"));
}

#[test]
fn errors_are_counted_and_have_positions() {
    let text = "premier:\n  keyspce: a\n  paths: [{pattern: /a, pattrn: /b}]\n";
    let environment = Environment::for_tests();
    let errors = Config::parse("gateway.yml".as_ref(), text, &environment).unwrap_err();
    assert_eq!(errors.count(), 2);
    let positions: Vec<_> = errors.positions().collect();
    assert_eq!(positions, [Some((2, 3)), Some((3, 25))]);
}

#[test]
fn an_error_quotes_the_beginning_of_a_long_text_only() {
    let error = parse(&"a secret ".repeat(100)).unwrap_err();
    assert!(error.contains("is the string `a secret "), "{error}");
    assert!(error.contains("…`, must be a mapping"), "{error}");
    assert!(error.len() < 200, "{error}");
}

#[test]
fn keys_that_yaml_takes_for_other_types_are_names() {
    let error = parse("premier: {5: a, true: b, [c]: d}").unwrap_err();
    for key in ["premier.5", "premier.true"] {
        assert!(error.contains(&format!("{key}: unknown key")), "{error}");
    }
    let config = parse("premier: {upstreams: {5: {servers: http://a}}}").unwrap();
    assert_eq!(config.upstreams[0].name, "5");
}

#[test]
fn cors_excludes_credentials_unless_they_are_included() {
    let credentials = |setting: &str| {
        let config = parse(&format!(
            "premier: {{default_features: {{cors: {{origins: [https://a.org], {setting}}}}}}}"
        ));
        config.unwrap().default_features.cors.unwrap().credentials
    };
    assert_eq!(credentials(""), CorsCredentials::Excluded);
    assert_eq!(credentials("credentials: false"), CorsCredentials::Excluded);
    assert_eq!(credentials("credentials: true"), CorsCredentials::Included);
}

#[test]
fn a_client_may_have_a_share_of_the_connections() {
    let share = |limits: &str, total| {
        let config = parse(&format!("premier: {{limits: {limits}}}")).unwrap();
        config.limits.connections_per_client(total)
    };
    assert_eq!(share("{}", 1000), 100);
    assert_eq!(share("{}", 5), 1);
    assert_eq!(share("{max_connections_per_client: 7}", 1000), 7);
}

#[test]
fn a_certificate_that_no_client_is_served_causes_a_warning() {
    let fixtures = concat!(env!("CARGO_MANIFEST_DIR"), "/src/config/fixtures");
    let files = format!("{{cert: {fixtures}/cert.pem, key: {fixtures}/key.pem}}");
    let other = format!("{{cert: {fixtures}/rsa-cert.pem, key: {fixtures}/rsa-key.pem}}");
    let warnings = |files: &[&str]| {
        let list = files.join(", ");
        let config = parse(&format!("premier: {{tls: {{certificates: [{list}]}}}}"));
        config.unwrap().warnings.join("\n")
    };
    assert_eq!(warnings(&[&files, &other]), "");
    let hidden = "cert.pem is never served: earlier certificates with the same kind of key";
    assert!(warnings(&[&files, &files]).contains(hidden));
}

#[test]
fn an_absent_default_certificate_is_rejected_with_the_settings_that_name_it() {
    let environment = Environment::from([("SSL_CERTFILE", "a.pem"), ("SSL_KEYFILE", "b.pem")]);
    let errors = Config::parse("gateway.yml".as_ref(), "premier: {}", &environment).unwrap_err();
    let text = errors.to_string();
    for file in ["a.pem", "b.pem"] {
        assert!(
            text.contains(&format!("premier: {file}: cannot be read")),
            "{text}"
        );
    }
    assert!(
        text.contains("set the files by SSL_CERTFILE and SSL_KEYFILE"),
        "{text}"
    );
}
