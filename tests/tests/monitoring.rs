//! Alert rules and the dashboard: every metric that they name exists in the programs.

use std::collections::BTreeSet;

const ALERT_RULES: &str = include_str!("../../docker/monitoring/rules.yml");
const DASHBOARD: &str = include_str!("../../docker/monitoring/grafana/dashboards/auth-edge.json");
const GATEWAY_METRICS: &str = include_str!("../../gateway/src/telemetry/metrics.rs");
const AUTH_API_METRICS: &str = include_str!("../../auth-api/src/telemetry/metrics.rs");

/// Returns the metric names in `text` that begin with `prefix`, without the suffix of histogram
/// buckets.
fn metric_names(text: &str, prefix: &str) -> BTreeSet<String> {
    text.split(|character: char| !character.is_ascii_alphanumeric() && character != '_')
        .filter(|word| word.starts_with(prefix))
        .map(|word| word.trim_end_matches("_bucket").to_owned())
        .collect()
}

#[test]
fn alert_rules_and_dashboards_use_metrics_that_exist() {
    for text in [ALERT_RULES, DASHBOARD] {
        let gateway_names = metric_names(text, "gateway_");
        assert!(!gateway_names.is_empty());
        for name in gateway_names {
            let name = name.trim_start_matches("gateway_");
            assert!(
                GATEWAY_METRICS.contains(&format!("\"{name}\"")),
                "gateway_{name}"
            );
        }
        let auth_api_names = metric_names(text, "auth_api_");
        assert!(!auth_api_names.is_empty());
        for name in auth_api_names {
            assert!(AUTH_API_METRICS.contains(&format!("\"{name}\"")), "{name}");
        }
    }
}
