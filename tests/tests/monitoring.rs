//! Alert rules and the dashboard: every metric that they name exists in the programs.

use std::collections::BTreeSet;

use anyhow::{Context, Result};
use tests::{Client, Edge, Store};

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

#[tokio::test]
async fn both_programs_tell_their_version_and_the_resources_of_their_process() -> Result<()> {
    let edge = Edge::builder(Store::Embedded).start().await?;
    let replica = edge.replicas.instances.first().context("a replica")?;
    let replica = Client::cleartext(replica.internal_address)?;
    let gateway = edge.gateway.admin_client()?;
    for (client, prefix) in [(&gateway, "gateway"), (&replica, "auth_api")] {
        let build_info = format!("{prefix}_build_info");
        let build_info = client.metric(&build_info, &["version=\""]).await?;
        assert_eq!(build_info, Some(1.0), "{prefix}");
        for name in [
            "process_cpu_seconds_total",
            "process_start_time_seconds",
            "process_resident_memory_bytes",
            "process_virtual_memory_bytes",
            "process_open_fds",
            "process_max_fds",
            "process_threads",
        ] {
            let value = client.metric(name, &[]).await?.context(name)?;
            assert!(value > 0.0, "{prefix}: {name}");
        }
    }
    assert_eq!(
        replica.metric("auth_api_store_up", &["sqlite"]).await?,
        Some(1.0)
    );
    Ok(())
}
