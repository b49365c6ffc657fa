//! Alert rules, dashboards and their documentation: they agree with one another and with the metrics of the programs.

use std::collections::BTreeSet;

use anyhow::{Context, Result};
use tests::{Client, Edge, Store};

const ALERT_RULES: &str = include_str!("../../docker/monitoring/rules.yml");
const SETTINGS: &str = include_str!("../../docker/monitoring/settings.yml");
const RULE_TESTS: &str = include_str!("../../docker/monitoring/rules.test.yml");
const DASHBOARD: &str = include_str!("../../docker/monitoring/grafana/dashboards/auth-edge.json");
const OPERATIONS: &str = include_str!("../../docs/operations.md");

/// Returns the metrics that `source` creates: names are the literals that are followed by a help text.
fn created_metrics(source: &str) -> BTreeSet<&str> {
    let pieces: Vec<_> = source.split('"').collect();
    pieces
        .windows(3)
        .skip(1)
        .step_by(2)
        .filter(|window| window[1].trim() == "," && window[2].ends_with('.'))
        .filter(|window| !window[0].contains(' '))
        .map(|window| window[0])
        .collect()
}

/// Returns the metrics of both programs by their whole names.
fn exported_metrics() -> BTreeSet<String> {
    let gateway = created_metrics(include_str!("../../gateway/src/telemetry/metrics.rs"));
    let auth_api = created_metrics(include_str!("../../auth-api/src/telemetry/metrics.rs"));
    let of_process = created_metrics(include_str!("../../supervision/src/process_metrics.rs"));
    let shared = [
        include_str!("../../supervision/src/lib.rs"),
        include_str!("../../logging/src/writer.rs"),
    ];
    let shared: BTreeSet<_> = shared.into_iter().flat_map(created_metrics).collect();
    assert!(gateway.len() > 20 && auth_api.len() > 10 && shared.len() == 3);
    let of_gateway = gateway.union(&shared).map(|name| format!("gateway_{name}"));
    let shared_of_auth_api = shared.iter().map(|name| format!("auth_api_{name}"));
    of_gateway
        .chain(shared_of_auth_api)
        .chain(auth_api.into_iter().map(str::to_owned))
        .chain(of_process.into_iter().map(str::to_owned))
        .collect()
}

/// Returns the words of `text` that a metric or a recording rule could be named by, without the suffixes of a
/// histogram's series.
fn words(text: &str) -> BTreeSet<&str> {
    text.split(|character: char| !character.is_ascii_alphanumeric() && !"_:".contains(character))
        .map(|word| word.trim_end_matches("_bucket"))
        .map(|word| {
            word.strip_suffix("_seconds_count")
                .map_or(word, |name| &word[..name.len() + "_seconds".len()])
        })
        .collect()
}

fn is_of_programs(name: &str) -> bool {
    !name.contains(':') && (name.starts_with("gateway_") || name.starts_with("auth_api_"))
}

/// Returns what follows `key` in the lines that begin with it.
fn values<'t>(text: &'t str, key: &str) -> Vec<&'t str> {
    let lines = text.lines().map(str::trim);
    lines.filter_map(|line| line.strip_prefix(key)).collect()
}

#[test]
fn alert_rules_and_dashboards_use_metrics_that_exist() {
    let exported = exported_metrics();
    for text in [ALERT_RULES, SETTINGS, DASHBOARD] {
        for name in words(text).into_iter().filter(|name| is_of_programs(name)) {
            assert!(exported.contains(name), "{name} is not exported");
        }
    }
    let recorded: BTreeSet<_> = [ALERT_RULES, SETTINGS]
        .into_iter()
        .flat_map(|text| values(text, "- record: "))
        .collect();
    for text in [ALERT_RULES, DASHBOARD] {
        let used = words(text).into_iter().filter(|name| {
            ["gateway:", "auth_api:", "auth_edge:"]
                .iter()
                .any(|prefix| name.starts_with(prefix) && name.len() > prefix.len())
        });
        for name in used {
            assert!(recorded.contains(name), "{name} is not recorded");
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

#[test]
fn every_metric_has_a_panel() {
    let shown = words(DASHBOARD);
    let hidden: Vec<_> = exported_metrics()
        .into_iter()
        .filter(|name| !shown.contains(name.as_str()))
        .collect();
    assert!(hidden.is_empty(), "without a panel: {hidden:?}");
}

#[tokio::test]
async fn the_programs_export_no_metric_without_a_panel() -> Result<()> {
    let edge = Edge::builder(Store::PostgresRedis).start().await?;
    let client = edge.client()?;
    client.register("alice").await?;
    client.login("alice").await?;
    let gateway = edge.gateway.admin_client()?.get("/metrics").await?;
    let internal_address = edge.replicas.instances[0].internal_address;
    let replica = Client::cleartext(internal_address)?.get("/metrics").await?;
    let shown = words(DASHBOARD);
    for response in [gateway, replica] {
        assert_eq!(response.status, 200);
        let names = values(&response.text, "# TYPE ");
        assert!(names.len() > 10, "{}", response.text);
        for name in names.iter().filter_map(|line| line.split(' ').next()) {
            assert!(shown.contains(name), "{name} has no panel");
        }
    }
    Ok(())
}

#[test]
fn every_alert_is_tested_and_documented() {
    let alerts = values(ALERT_RULES, "- alert: ");
    assert!(alerts.len() > 20);
    for alert in alerts {
        let fires = format!("alertname: {alert}\n        exp_alerts:");
        let does_not_fire = format!("alertname: {alert}}}");
        assert!(
            RULE_TESTS.contains(&fires) || RULE_TESTS.contains(&format!("{alert}, exp_alerts")),
            "no test in which {alert} fires"
        );
        assert!(
            alert == "Watchdog" || RULE_TESTS.contains(&does_not_fire),
            "no test in which {alert} does not fire"
        );
        assert!(
            OPERATIONS.contains(&format!("`{alert}`")),
            "docs/operations.md does not say what to do about {alert}"
        );
    }
}
