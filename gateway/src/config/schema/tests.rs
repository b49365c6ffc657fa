//! Agreement between the JSON Schema and the parser.

use regex_automata::meta::Regex;
use saphyr::{LoadableYamlNode, MarkedYaml, Scalar, YamlData};
use serde_json::{Value, json};

use super::*;
use crate::config::{Config, Environment};

fn parse(yaml: &str) -> Result<Config, String> {
    let environment = Environment::for_tests().with(&[
        ("NUMBER", "5"),
        ("WORD", "random"),
        ("SERVERS", "http://a,http://b"),
    ]);
    Config::parse("gateway.yml".as_ref(), yaml, &environment).map_err(|errors| errors.to_string())
}

fn schema() -> Value {
    serde_json::from_str(SCHEMA).unwrap()
}

fn matches_schema(yaml: &str) -> bool {
    let documents = MarkedYaml::load_from_str(yaml).unwrap();
    is_valid(&to_json(&documents[0]), &schema())
}

fn to_json(node: &MarkedYaml<'_>) -> Value {
    match &node.data {
        YamlData::Value(Scalar::Boolean(value)) => json!(value),
        YamlData::Value(Scalar::Integer(value)) => json!(value),
        YamlData::Value(Scalar::FloatingPoint(value)) => json!(value.into_inner()),
        YamlData::Value(Scalar::String(value)) => json!(value),
        YamlData::Sequence(nodes) => nodes.iter().map(to_json).collect(),
        YamlData::Mapping(entries) => entries
            .iter()
            .map(|(key, node)| (to_json(key).as_str().unwrap().to_owned(), to_json(node)))
            .collect(),
        _ => Value::Null,
    }
}

/// Validates a value. Supports the keywords of JSON Schema that the schema uses.
fn is_valid(value: &Value, schema: &Value) -> bool {
    let number = |rule: &Value| rule.as_f64().unwrap();
    let all = |rules: &Value| rules.as_array().unwrap().clone();
    let is_satisfied = |keyword: &str, rule: &Value| match keyword {
        "$ref" => is_valid(
            value,
            self::schema()
                .pointer(&rule.as_str().unwrap()[1..])
                .unwrap(),
        ),
        "type" if rule.is_array() => all(rule).iter().any(|rule| has_type(value, rule)),
        "type" => has_type(value, rule),
        "enum" => all(rule).contains(value),
        "anyOf" => all(rule).iter().any(|schema| is_valid(value, schema)),
        "minimum" => value.as_f64().is_none_or(|value| value >= number(rule)),
        "maximum" => value.as_f64().is_none_or(|value| value <= number(rule)),
        "minLength" => value
            .as_str()
            .is_none_or(|text| text.len() as u64 >= rule.as_u64().unwrap()),
        "pattern" => value
            .as_str()
            .is_none_or(|text| is_match(rule.as_str().unwrap(), text)),
        "minItems" => value
            .as_array()
            .is_none_or(|list| list.len() as u64 >= rule.as_u64().unwrap()),
        "items" => value
            .as_array()
            .is_none_or(|list| list.iter().all(|value| is_valid(value, rule))),
        "required" => all(rule)
            .iter()
            .all(|key| value.get(key.as_str().unwrap()).is_some()),
        "additionalProperties" => value.as_object().is_none_or(|entries| {
            let known = &schema["properties"];
            let patterns = schema["patternProperties"].as_object().unwrap();
            entries.iter().all(|(key, value)| {
                known.get(key).is_some()
                    || patterns.keys().any(|pattern| is_match(pattern, key))
                    || rule.is_object() && is_valid(value, rule)
            })
        }),
        "properties" => value.as_object().is_none_or(|entries| {
            entries
                .iter()
                .all(|(key, value)| rule.get(key).is_none_or(|rule| is_valid(value, rule)))
        }),
        "patternProperties" => rule
            .as_object()
            .unwrap()
            .values()
            .all(|rule| *rule == json!({})),
        "$schema" | "$defs" | "title" | "description" | "default" | "deprecated" => true,
        unknown => panic!("unsupported keyword: {unknown}"),
    };
    schema
        .as_object()
        .unwrap()
        .iter()
        .all(|(keyword, rule)| is_satisfied(keyword, rule))
}

fn has_type(value: &Value, kind: &Value) -> bool {
    match kind.as_str().unwrap() {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "number" => value.is_number(),
        "integer" => value.as_f64().is_some_and(|value| value.fract() == 0.0),
        unknown => panic!("unsupported type: {unknown}"),
    }
}

fn is_match(pattern: &str, text: &str) -> bool {
    Regex::new(pattern).unwrap().is_match(text)
}

#[test]
fn a_valid_configuration_matches_the_schema() {
    for valid in [
        include_str!("../../../../gateway.yml"),
        include_str!("../../../../demo/gateway.yml"),
        "premier:",
        "premier: {keyspace: 5}",
        "premier: {servers: }",
        "premier: {servers: '${SERVERS}'}",
        "premier: {servers: [http://a, '${NONE:-}', '${SERVERS}']}",
        "premier: {listen: {http: , public_port: '${NUMBER}'}}",
        "premier: {load_balancing: {strategy: '${WORD}'}}",
        "premier: {limits: {max_body_bytes: '${NUMBER:-5}', max_connections: 1e3}}",
        "premier: {health_check: {interval: '${NUMBER}', path: '${NONE:-/ready}'}}",
        "premier: {default_features: {rate_limit: {quota: '${NUMBER}', duration: '${NUMBER}', per: ['${NONE:-client}']}}}",
        "premier: {default_features: {rate_limit: {quota: 1, duration: 0.5, bucket_size: , error_message: 5}}}",
        "premier: {default_features: {retry: {wait: '${NUMBER}'}, monitoring: , circuit_breaker: {recovery_timeout: 0}}}",
        "premier: {default_features: {retry: {wait: [1, '${NUMBER}']}, timeout: {<<: {seconds: 5}}}}",
        "premier: {identity: , default_features: {}}",
        "premier: {identity: {keys: 'http://a:1/keys', sessions: '${NONE:-}'}, default_features: {auth: }}",
        "premier: {identity: {keys: 'https://a/k', verify: 'https://a/v', sessions: 'redis://:p@r:6379/0', issuer: me, audience: shop}}",
        "premier: {identity: {keys: 'http://a/k'}, paths: [{pattern: /a, features: {auth: {required: false}, rate_limit: {quota: 1, duration: 1, per: [user]}}}]}",
        "premier: {default_features: {cors: {origins: ['*']}}}",
        "premier: {default_features: {cors: {origins: [https://a.org, 'http://*.localhost:3000', 'http://[::1]', 'null', '${NONE:-https://b}'], methods: [PUT], headers: , exposed_headers: [X-Request-Id], credentials: true, max_age: '${NUMBER}'}}}",
        "premier: {default_features: {cors: {<<: {origins: ['*']}, headers: ['*', Authorization]}, headers: }}",
        "premier: {default_features: {headers: {request: {remove: [Cookie], set: {x-tenant: 5}}, response: {set: , add: {Link: '</a>', <<: {X-B: ''}}, remove: }}}}",
        "server: {port: 8000}\npremier: {dashboard: {path: /d}, default_features: {retry: {exceptions: [E], backoff: 2}, cache: {key_template: k}}}",
        "premier: {upstreams: }",
        "premier: {upstreams: {a: {servers: http://a, load_balancing: {strategy: random}}, b: {servers: ['${SERVERS}'], health_check: }, x-c: 5}}",
        "premier: {upstreams: {a: {<<: {servers: http://a}}}, paths: [{pattern: /a, hosts: [a.b, '*.b', '::1'], upstream: a, strip_prefix: /a}]}",
        "premier: {upstreams: {a: {servers: https://a, tls: {server_name: b.c}}, b: {servers: http://b, tls: }}}",
        "x-own: 5\npremier: {paths: [{pattern: '^/x', x-own: [5]}, {pattern: '${NONE:-/x}'}, {<<: {pattern: '[/]y'}}]}",
    ] {
        assert_eq!(parse(valid).map(drop), Ok(()), "{valid}");
        assert!(matches_schema(valid), "{valid}");
    }
}

#[test]
fn an_invalid_configuration_does_not_match_the_schema() {
    for invalid in [
        "{}",
        "premier: {keyspace: 1.5}",
        "premier: {listen: {https: }}",
        "premier: {listen: {public_port: 65536}}",
        "premier: {tls: {certificates: }}",
        "premier: {tls: {certificates: [{cert: a}]}}",
        "premier: {servers: ['a:1']}",
        "premier: {servers: []}",
        "premier: {servers: ''}",
        "premier: {load_balancing: {strategy: best}}",
        "premier: {limits: {max_header_bytes: 1}}",
        "premier: {limits: {max_connections: 5000000000}}",
        "premier: {health_check: {interval: 0, timeout: 1}}",
        "premier: {health_check: {path: ready}}",
        "premier: {paths: [{features: {}}]}",
        "premier: {paths: [{pattern: api/x}]}",
        "premier: {paths: [{pattern: 5}]}",
        "premier: {upstreams: []}",
        "premier: {upstreams: {a: }}",
        "premier: {upstreams: {a: {health_check: {}}}}",
        "premier: {upstreams: {a: {servers: }}}",
        "premier: {upstreams: {a: {servers: [], load_balancing: {}}}}",
        "premier: {upstreams: {a: {servers: http://a, load_balancing: {strategy: best}}}}",
        "premier: {upstreams: {a: {servers: https://a, tls: {server_name: ''}}}}",
        "premier: {upstreams: {a: {servers: https://a, tls: {verify: false}}}}",
        "premier: {paths: [{pattern: /a, hosts: }]}",
        "premier: {paths: [{pattern: /a, hosts: []}]}",
        "premier: {paths: [{pattern: /a, hosts: a.b}]}",
        "premier: {paths: [{pattern: /a, hosts: ['']}]}",
        "premier: {paths: [{pattern: /a, upstream: }]}",
        "premier: {paths: [{pattern: /a, strip_prefix: }]}",
        "premier: {paths: [{pattern: /a, strip_prefix: a}]}",
        "premier: {paths: [{pattern: /a/*, strip_prefix: /a/}]}",
        "premier: {default_features: {rate_limit: }}",
        "premier: {default_features: {timeout: }}",
        "premier: {default_features: {timeout: {seconds: 1e-12}}}",
        "premier: {default_features: {rate_limit: {quota: 5000000000, duration: 1}}}",
        "premier: {default_features: {rate_limit: {quota: '100', duration: 1}}}",
        "premier: {default_features: {rate_limit: {quota: 1.5, duration: 1}}}",
        "premier: {default_features: {rate_limit: {quota: 1, duration: 40000000}}}",
        "premier: {default_features: {rate_limit: {quota: 1, duration: 1, per: }}}",
        "premier: {default_features: {rate_limit: {quota: 1, duration: 1, per: [address]}}}",
        "premier: {identity: {keys: 'http://a'}}",
        "premier: {identity: {keys: 'ftp://a/k'}}",
        "premier: {identity: {keys: 'http://a/k', issuer: [a]}}",
        "premier: {identity: {keys: 'http://a/k'}, default_features: {auth: {required: 'no'}}}",
        "premier: {default_features: {cors: }}",
        "premier: {default_features: {cors: {}}}",
        "premier: {default_features: {cors: {origins: '*'}}}",
        "premier: {default_features: {cors: {origins: []}}}",
        "premier: {default_features: {cors: {origins: [example.org]}}}",
        "premier: {default_features: {cors: {origins: [https://example.org/]}}}",
        "premier: {default_features: {cors: {origins: [https://example.org.]}}}",
        "premier: {default_features: {cors: {origins: ['https://u@example.org']}}}",
        "premier: {default_features: {cors: {origins: ['*'], methods: []}}}",
        "premier: {default_features: {cors: {origins: ['*'], headers: ['']}}}",
        "premier: {default_features: {cors: {origins: ['*'], max_age: -1}}}",
        "premier: {default_features: {cors: {origins: ['*'], credentials: 'yes'}}}",
        "premier: {default_features: {headers: {requests: {}}}}",
        "premier: {default_features: {headers: {request: {set: [X-A]}}}}",
        "premier: {default_features: {headers: {request: {set: {X-A: [a]}}}}}",
        "premier: {default_features: {headers: {response: {add: {X-A: }}}}}",
        "premier: {default_features: {headers: {response: {remove: X-A}}}}",
        "premier: {default_features: {retry: {max_attempts: 101}}}",
        "premier: {default_features: {retry: {wait: []}}}",
        "premier: {default_features: {circuit_breaker: {failure_threshold: 0}}}",
    ] {
        assert!(parse(invalid).is_err(), "{invalid}");
        assert!(!matches_schema(invalid), "{invalid}");
    }
}

#[test]
fn the_schema_has_the_same_keys_as_the_parser() {
    let schema = schema();
    // The hint about an unknown key lists all known ones.
    let sections = [
        ("premier: {zzz: 1}", "/properties/premier"),
        (
            "premier: {listen: {zzz: 1}}",
            "/properties/premier/properties/listen",
        ),
        (
            "premier: {tls: {zzz: 1}}",
            "/properties/premier/properties/tls",
        ),
        (
            "premier: {load_balancing: {zzz: 1}}",
            "/properties/premier/properties/load_balancing",
        ),
        (
            "premier: {health_check: {zzz: 1}}",
            "/properties/premier/properties/health_check",
        ),
        (
            "premier: {limits: {zzz: 1}}",
            "/properties/premier/properties/limits",
        ),
        ("premier: {upstreams: {a: {zzz: 1}}}", "/$defs/upstream"),
        (
            "premier: {upstreams: {a: {tls: {zzz: 1}}}}",
            "/$defs/upstream/properties/tls",
        ),
        (
            "premier: {paths: [{zzz: 1}]}",
            "/properties/premier/properties/paths/items",
        ),
        (
            "premier: {identity: {zzz: 1}}",
            "/properties/premier/properties/identity",
        ),
        (
            "premier: {default_features: {auth: {zzz: 1}}}",
            "/$defs/features/properties/auth",
        ),
        (
            "premier: {default_features: {cors: {zzz: 1}}}",
            "/$defs/features/properties/cors",
        ),
        (
            "premier: {default_features: {headers: {zzz: 1}}}",
            "/$defs/features/properties/headers",
        ),
        (
            "premier: {default_features: {headers: {request: {zzz: 1}}}}",
            "/$defs/features/properties/headers/properties/request",
        ),
        (
            "premier: {default_features: {headers: {response: {zzz: 1}}}}",
            "/$defs/features/properties/headers/properties/response",
        ),
        ("premier: {default_features: {zzz: 1}}", "/$defs/features"),
        (
            "premier: {default_features: {rate_limit: {zzz: 1}}}",
            "/$defs/features/properties/rate_limit",
        ),
        (
            "premier: {default_features: {timeout: {zzz: 1}}}",
            "/$defs/features/properties/timeout",
        ),
        (
            "premier: {default_features: {retry: {zzz: 1}}}",
            "/$defs/features/properties/retry",
        ),
        (
            "premier: {default_features: {circuit_breaker: {zzz: 1}}}",
            "/$defs/features/properties/circuit_breaker",
        ),
        (
            "premier: {default_features: {monitoring: {zzz: 1}}}",
            "/$defs/features/properties/monitoring",
        ),
        (
            "premier: {default_features: {cache: {zzz: 1}}}",
            "/$defs/features/properties/cache",
        ),
    ];
    for (yaml, pointer) in sections {
        let errors = parse(yaml).unwrap_err();
        let hint = errors
            .lines()
            .skip_while(|line| !line.contains("zzz: unknown key"))
            .nth(1)
            .unwrap();
        let mut known: Vec<_> = hint.split("one of: ").nth(1).unwrap().split(", ").collect();
        let properties = schema.pointer(pointer).unwrap()["properties"]
            .as_object()
            .unwrap();
        let mut in_schema: Vec<_> = properties.keys().map(String::as_str).collect();
        known.sort_unstable();
        in_schema.sort_unstable();
        assert_eq!(known, in_schema, "{pointer}");
    }
}
