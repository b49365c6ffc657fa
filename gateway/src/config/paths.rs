//! Parsing of the rules under `paths`.

use regex_automata::meta::Regex;
use regex_automata::{Anchored, Input};

use crate::config::certificate::Certificate;
use crate::config::features::parse_features;
use crate::config::host::HostPattern;
use crate::config::identity::IdentityPresence;
use crate::config::model::{Features, PathRule, UpstreamIndex};
use crate::config::node::{Mapping, Node};
use crate::config::path_prefix::PathPrefix;
use crate::config::pattern::PathPattern;

/// Parses one rule. `upstreams` are the names of all upstream groups.
pub(super) fn parse_path_rule(
    rule: &Node<'_, '_>,
    upstreams: &[String],
    identity: IdentityPresence,
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
        parse_features(value, &pattern, identity, warnings)
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
    let has_exact_path = paths.iter().any(|rule| rule.pattern.exact_path().is_some());
    let mut earlier: Vec<EarlierRule<'_>> = Vec::new();
    for rule in paths {
        if let Some(earlier) = earlier.iter().find(|earlier| earlier.covers(rule)) {
            warnings.push(format!(
                "{}: has no effect: the earlier pattern {} matches every path that it matches",
                rule.name(),
                earlier.rule.name()
            ));
        }
        let pattern = &rule.pattern;
        if pattern.has_shell_negation() {
            warnings.push(format!(
                "{pattern}: [!…] is a class that contains `!`; a negated class is written [^…]"
            ));
        }
        let regex = has_exact_path.then(|| pattern.regex()).flatten();
        earlier.push(EarlierRule { rule, regex });
    }
}

/// Rule that has precedence over those after it.
struct EarlierRule<'r> {
    rule: &'r PathRule,
    /// `None` for an exact path and a prefix, whose text is enough to know what they cover.
    regex: Option<Regex>,
}

impl EarlierRule<'_> {
    /// Returns whether it certainly matches every request that a later rule matches.
    fn covers(&self, later: &PathRule) -> bool {
        let matches_path = || match (&self.regex, later.pattern.exact_path()) {
            (Some(regex), Some(path)) => regex.is_match(Input::new(path).anchored(Anchored::Yes)),
            _ => false,
        };
        self.rule.covers_hosts_of(later)
            && (self.rule.pattern.covers(&later.pattern) || matches_path())
    }
}

/// Warns about groups that no path uses, and about hosts that clients cannot request.
pub(super) fn warn_about_unused(
    paths: &[PathRule],
    upstreams: &[String],
    certificates: &[Certificate],
    warnings: &mut Vec<String>,
) {
    for (index, name) in upstreams.iter().enumerate() {
        let upstream = UpstreamIndex(index);
        let is_used = upstream == UpstreamIndex::DEFAULT
            || paths.iter().any(|rule| rule.upstream == upstream);
        if !is_used {
            warnings.push(format!(
                "upstreams.{name}: no path uses it: name it by `upstream` of a path"
            ));
        }
    }
    let mut warned: Vec<&HostPattern> = Vec::new();
    for host in paths.iter().flat_map(|rule| &rule.hosts) {
        let is_covered = |certificate: &Certificate| host.is_covered_by(&certificate.names);
        if warned.contains(&host) || certificates.iter().any(is_covered) {
            continue;
        }
        warned.push(host);
        warnings.push(format!(
            "hosts: no certificate under tls.certificates is for {host}: clients that verify certificates cannot \
             request it"
        ));
    }
}
