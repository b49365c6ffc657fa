//! What a configuration means, and what is said of a wrong one.

use super::*;

fn parse(yaml: &str) -> Result<Config, String> {
    Config::parse("gateway.yml".as_ref(), yaml, &Environment::for_tests())
        .map_err(|mistakes| mistakes.to_string())
}

#[test]
fn the_yaml_of_the_python_services_readme_works_as_it_is() {
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
    let quota = features.rate_limit.as_ref().unwrap();
    assert_eq!((quota.quota.get(), quota.duration.as_secs()), (100, 60));
    assert_eq!(quota.algorithm, Algorithm::FixedWindow);
    assert_eq!(quota.per, [Per::Client, Per::Endpoint]);
    assert_eq!(quota.refusal.status, 429);
    assert_eq!(quota.refusal.message, "Rate limit exceeded");
    assert_eq!(features.monitoring.unwrap().log_threshold.as_secs(), 5);
    assert_eq!(config.listen.https.port(), 443);
    assert_eq!(config.servers[0].to_string(), "http://auth-api:8000");
}

#[test]
fn the_file_that_ships_is_good() {
    let text = include_str!("../../../gateway.yml");
    let config = parse(text).unwrap();
    assert!(config.warnings.is_empty(), "{:?}", config.warnings);
}

#[test]
fn what_the_file_that_ships_shows_are_the_defaults() {
    let shipped = parse(include_str!("../../../gateway.yml")).unwrap();
    let default = parse("premier: {}").unwrap();
    let empty = Config {
        keyspace: shipped.keyspace.clone(),
        paths: shipped.paths.clone(),
        default_features: shipped.default_features.clone(),
        hash: shipped.hash.clone(),
        ..default
    };
    assert_eq!(shipped, empty);
}

#[test]
fn all_of_premiers_keys_are_known() {
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
    assert_eq!(features.timeout.as_ref().unwrap().refusal.status, 408);
    assert_eq!(config.warnings.len(), 2, "{:?}", config.warnings);
}

#[test]
fn what_premier_takes_for_a_value_is_one() {
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
fn a_variable_that_names_no_server_is_told() {
    let environment = Environment::for_tests().with(&[("GATEWAY_SERVERS", " , ")]);
    let told = Config::parse("gateway.yml".as_ref(), "premier: {}", &environment).unwrap_err();
    assert!(
        told.to_string()
            .contains("environment variable GATEWAY_SERVERS: needs one server"),
        "{told}"
    );
}

#[test]
fn every_mistake_is_told_at_once_with_its_place() {
    let told = parse(
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
    insta::assert_snapshot!(told);
}

#[test]
fn keys_are_merged_and_a_sections_own_win() {
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
    let quotas: Vec<_> = config
        .paths
        .iter()
        .map(|rule| rule.features.rate_limit.as_ref().unwrap())
        .map(|quota| {
            (
                quota.quota.get(),
                quota.duration.as_secs(),
                quota.refusal.status.as_u16(),
            )
        })
        .collect();
    assert_eq!(quotas, [(5, 60, 429), (6, 1, 503), (6, 1, 503)]);
    assert_eq!(
        config.paths[1].features.rate_limit,
        config.paths[2].features.rate_limit
    );
}

#[test]
fn what_cannot_be_merged_is_told() {
    let told = parse(
        r"premier:
  keyspace: a
  <<: 5
  common: &common {}
  listen: {<<: [{htps: x}, y]}
",
    )
    .unwrap_err();
    insta::assert_snapshot!(told);
}

#[test]
fn what_is_no_yaml_is_told_with_its_place() {
    assert!(parse("premier: [").unwrap_err().starts_with("gateway.yml:"));
    assert!(parse("").unwrap_err().contains("must have one"));
    assert!(parse("{}").unwrap_err().contains("`premier` is missing"));
}

#[test]
fn values_come_from_the_environment() {
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
fn a_whole_number_may_be_written_as_a_fraction() {
    let config = parse(
        "premier: {default_features: {rate_limit: {quota: 1e3, duration: 60, bucket_size: 5.0}}}",
    )
    .unwrap();
    let quota = config.default_features.rate_limit.unwrap();
    assert_eq!((quota.quota.get(), quota.bucket_size.get()), (1000, 5));
}

#[test]
fn a_trusted_network_that_is_more_than_was_meant_is_warned_of() {
    let config = parse("premier: {trusted_proxies: [10.0.0.1/8, 10.0.0.0/8, '::1']}").unwrap();
    let networks: Vec<_> = config
        .trusted_proxies
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(networks, ["10.0.0.0/8", "10.0.0.0/8", "::1/128"]);
    let told =
        "trusted_proxies: 10.0.0.1/8 is an address in a network, and all of 10.0.0.0/8 is trusted";
    assert_eq!(config.warnings, [told]);
}

#[test]
fn patterns_that_do_not_do_what_they_seem_to_are_warned_of() {
    let config = parse(
        "premier: {paths: [{pattern: '/w/[!a]'}, {pattern: '/api/*'}, {pattern: '/api/profile'}, {pattern: '/api/*'}]}",
    )
    .unwrap();
    insta::assert_snapshot!(config.warnings.join("\n"));
}

#[test]
fn what_is_wrong_with_a_variable_is_told() {
    let environment = Environment::for_tests().with(&[("Q", "abc")]);
    let yaml = r#"premier:
  keyspace: "${A:-${B}}"
  default_features: {rate_limit: {quota: "${Q}", duration: "${D}"}}
"#;
    let told = Config::parse("gateway.yml".as_ref(), yaml, &environment).unwrap_err();
    insta::assert_snapshot!(told);
    let told = parse("premier:\n  listen: {https: ${A:-0.0.0.0:443}}").unwrap_err();
    assert!(told.starts_with("gateway.yml:2:"), "{told}");
    assert!(told.contains("is in quotes: \"${NAME}\""), "{told}");
}

#[test]
fn a_certificate_that_cannot_be_used_is_told() {
    let told = parse("premier: {tls: {certificates: [{cert: none.pem, key: none.pem}]}}");
    assert!(told.unwrap_err().contains("none.pem: cannot be read"));
}
