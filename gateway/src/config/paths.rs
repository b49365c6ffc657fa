//! Parsing of the rules under `paths`.

use crate::config::features::parse_features;
use crate::config::host::HostPattern;
use crate::config::model::{Features, PathRule, UpstreamIndex};
use crate::config::node::{Mapping, Node};
use crate::config::path_prefix::PathPrefix;
use crate::config::pattern::PathPattern;

/// Parses one rule. `upstreams` are the names of all upstream groups.
pub(super) fn parse_path_rule(
    rule: &Node<'_, '_>,
    upstreams: &[String],
    warnings: &mut Vec<String>,
) -> Option<PathRule> {
    let mut mapping = rule.mapping()?;
    let pattern = mapping
        .require("pattern")
        .and_then(|value| value.parse(str::parse::<PathPattern>));
    let hosts = mapping.get_or("hosts", Vec::new(), parse_hosts);
    let upstream = mapping.get_or("upstream", UpstreamIndex::DEFAULT, |value| {
        parse_upstream_name(value, upstreams)
    });
    let strip_prefix = parse_strip_prefix(&mut mapping, pattern.as_ref());
    let features = mapping.get_or("features", Features::default(), |value| {
        let pattern = pattern
            .as_ref()
            .map_or_else(String::new, ToString::to_string);
        parse_features(value, &pattern, warnings)
    });
    mapping.reject_unknown_keys();
    Some(PathRule {
        pattern: pattern?,
        hosts: hosts?,
        upstream: upstream?,
        strip_prefix: strip_prefix?,
        features: features?,
    })
}

fn parse_hosts(value: &Node<'_, '_>) -> Option<Vec<HostPattern>> {
    let hosts = value.parse_list(|host| host.parse(str::parse))?;
    value.require_not_empty(hosts)
}

fn parse_upstream_name(value: &Node<'_, '_>, names: &[String]) -> Option<UpstreamIndex> {
    let choices: Vec<_> = names
        .iter()
        .enumerate()
        .map(|(index, name)| (name.as_str(), UpstreamIndex(index)))
        .collect();
    value.one_of(&choices)
}

/// Parses `strip_prefix`. Returns `Some(None)` if the rule does not have it, `None` if it has an error.
#[expect(
    clippy::option_option,
    reason = "an error and an absent key are distinct"
)]
fn parse_strip_prefix(
    rule: &mut Mapping<'_, '_>,
    pattern: Option<&PathPattern>,
) -> Option<Option<PathPrefix>> {
    let Some(value) = rule.get("strip_prefix") else {
        return Some(None);
    };
    let prefix: PathPrefix = value.parse(str::parse)?;
    match pattern {
        Some(pattern) if !pattern.begins_with(prefix.as_str()) => {
            value.report_error(format!(
                "the pattern {pattern} does not begin with {prefix}, which has to be whole segments that \
                 every matching path begins with"
            ));
            None
        }
        _ => Some(Some(prefix)),
    }
}

/// Warns about rules that never apply because of an earlier one, and about patterns that look like
/// shell globs with a negated class.
pub(super) fn warn_about_rules(paths: &[PathRule], warnings: &mut Vec<String>) {
    for (index, rule) in paths.iter().enumerate() {
        let mut earlier = paths[..index].iter();
        if let Some(earlier) = earlier.find(|earlier| earlier.covers(rule)) {
            warnings.push(format!(
                "{}: has no effect: the earlier pattern {} matches every path that it matches",
                rule.name(),
                earlier.name()
            ));
        }
        let pattern = &rule.pattern;
        if pattern.has_shell_negation() {
            warnings.push(format!(
                "{pattern}: [!…] is a class that contains `!`; a negated class is written [^…]"
            ));
        }
    }
}
