//! What operators watch: rules and dashboards name no metric that the programs do not have.

use std::collections::BTreeSet;

const RULES: &str = include_str!("../../docker/monitoring/rules.yml");
const DASHBOARD: &str = include_str!("../../docker/monitoring/grafana/dashboards/auth-edge.json");
const GATEWAY: &str = include_str!("../../gateway/src/metrics.rs");
const AUTH_API: &str = include_str!("../../auth-api/src/metrics.rs");

/// Every word of `text` that begins with `prefix`, as the programs call it.
fn names(text: &str, prefix: &str) -> BTreeSet<String> {
    text.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_')
        .filter(|word| word.starts_with(prefix))
        .map(|word| word.trim_end_matches("_bucket").to_owned())
        .collect()
}

#[test]
fn rules_and_dashboards_name_metrics_that_exist() {
    for text in [RULES, DASHBOARD] {
        let of_gateway = names(text, "gateway_");
        assert!(!of_gateway.is_empty());
        for name in of_gateway {
            let name = name.trim_start_matches("gateway_");
            assert!(GATEWAY.contains(&format!("\"{name}\"")), "gateway_{name}");
        }
        let of_auth_api = names(text, "auth_api_");
        assert!(!of_auth_api.is_empty());
        for name in of_auth_api {
            assert!(AUTH_API.contains(&format!("\"{name}\"")), "{name}");
        }
    }
}
