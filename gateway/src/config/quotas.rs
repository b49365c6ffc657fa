//! Parsing of `quotas`: the store that gateways share their quotas through.

use std::time::Duration;

use redis_connection::Deployments;

use crate::config::model::{OnStoreFailure, QuotaStoreSettings};
use crate::config::node::{Mapping, Node};
use crate::config::redis_url::parse_optional_url;

/// Parses `quotas`.
pub(super) fn parse_quotas(premier: &mut Mapping<'_, '_>) -> Option<QuotaStoreSettings> {
    const FAILURE_MODES: [(&str, OnStoreFailure); 2] = [
        ("local", OnStoreFailure::CountLocally),
        ("refuse", OnStoreFailure::Refuse),
    ];
    let default = QuotaStoreSettings {
        store: None,
        on_store_failure: OnStoreFailure::CountLocally,
        timeout: Duration::from_millis(50),
    };
    let Some(mut mapping) = premier.mapping("quotas").ok()? else {
        return Some(default);
    };
    let store = parse_optional_url(&mut mapping, "store", Deployments::PrimaryOrCluster);
    let on_store_failure = mapping.get_or("on_store_failure", default.on_store_failure, |value| {
        value.one_of(&FAILURE_MODES)
    });
    let timeout = mapping.get_or("timeout", default.timeout, Node::positive_duration);
    mapping.reject_unknown_keys();
    Some(QuotaStoreSettings {
        store: store?,
        on_store_failure: on_store_failure?,
        timeout: timeout?,
    })
}
