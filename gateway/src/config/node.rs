//! Typed access to the nodes of a YAML document.
//!
//! A value that cannot be used is reported with its position, and parsing continues, so that all errors
//! are found at once. A parsing method that returns `None` has reported the error.

use std::borrow::Cow;
use std::cell::RefCell;
use std::num::NonZeroU32;
use std::ops::RangeInclusive;
use std::time::Duration;

use saphyr::{MarkedYaml, Scalar, YamlData};

use crate::config::error::{ConfigError, Position};
use crate::config::interpolate::Environment;
use crate::config::suggestion::{most_similar, suggest};

/// Longest duration that a setting may have: a year.
const MAX_DURATION_SECONDS: f64 = 366.0 * 24.0 * 3600.0;
/// Shortest duration except 0: the resolution of Tokio's timers.
const MIN_DURATION_SECONDS: f64 = 0.001;

/// The merge key of YAML 1.1: its value is a mapping, or a list of mappings, whose entries are added.
const MERGE_KEY: &str = "<<";

/// Beginning of the keys that are left to the operator.
const CUSTOM_PREFIX: &str = "x-";

/// Key and value of a mapping.
type Entry<'y> = (&'y MarkedYaml<'y>, &'y MarkedYaml<'y>);

/// State that is shared while one file is parsed: the environment, and the errors so far.
#[derive(Debug)]
pub(super) struct ParseContext<'e> {
    environment: &'e Environment,
    errors: RefCell<Vec<ConfigError>>,
}

impl<'e> ParseContext<'e> {
    pub(super) fn new(environment: &'e Environment) -> Self {
        Self {
            environment,
            errors: RefCell::default(),
        }
    }

    fn report(&self, error: ConfigError) {
        self.errors.borrow_mut().push(error);
    }

    pub(super) fn into_errors(self) -> Vec<ConfigError> {
        self.errors.into_inner()
    }
}

/// Proof that an error has been reported.
pub(super) struct ErrorReported;

/// A node of the document: a scalar, a list or a mapping.
#[derive(Debug, Clone)]
pub(super) struct Node<'y, 'c> {
    yaml: &'y MarkedYaml<'y>,
    /// Full path of the key; empty for the document itself.
    key: String,
    context: &'c ParseContext<'c>,
}

impl<'y, 'c> Node<'y, 'c> {
    /// Creates the root node of a document.
    pub(super) fn root(yaml: &'y MarkedYaml<'y>, context: &'c ParseContext<'c>) -> Self {
        Self {
            yaml,
            key: String::new(),
            context,
        }
    }

    pub(super) fn report_error(&self, problem: impl Into<String>) {
        self.report_error_with_hint(problem, None);
    }

    fn report_error_with_hint(&self, problem: impl Into<String>, hint: Option<String>) {
        self.context.report(ConfigError {
            position: Some(Position::from(&self.yaml.span.start)),
            key: self.key.clone(),
            problem: problem.into(),
            hint,
        });
    }

    fn report_unexpected(&self, expected: &str) {
        self.report_error(format!("is {}, must be {expected}", self.description()));
    }

    /// Like [`Self::report_unexpected`], with a hint if the value is a number in quotes, which is a
    /// string.
    fn report_no_number(&self, expected: &str) {
        let hint = match &self.yaml.data {
            YamlData::Value(Scalar::String(text)) => {
                let unquoted = Scalar::parse_from_cow(text.as_ref().into());
                matches!(unquoted, Scalar::Integer(_) | Scalar::FloatingPoint(_))
                    .then(|| format!("without quotes {text} is a number"))
            }
            _ => None,
        };
        self.report_error_with_hint(
            format!("is {}, must be {expected}", self.description()),
            hint,
        );
    }

    pub(super) fn is_null(&self) -> bool {
        matches!(self.yaml.data, YamlData::Value(Scalar::Null))
    }

    pub(super) fn is_list(&self) -> bool {
        matches!(self.yaml.data, YamlData::Sequence(_))
    }

    fn is_mapping(&self) -> bool {
        matches!(self.yaml.data, YamlData::Mapping(_))
    }

    /// Returns true for null, and for a string that is empty once its variables are replaced.
    pub(super) fn is_empty(&self) -> bool {
        match &self.yaml.data {
            YamlData::Value(Scalar::Null) => true,
            YamlData::Value(Scalar::String(text)) => {
                let text = self.context.environment.interpolate(text);
                text.is_ok_and(|text| text.is_empty())
            }
            _ => false,
        }
    }

    /// Describes the value for an error message.
    fn description(&self) -> String {
        match &self.yaml.data {
            YamlData::Value(Scalar::Null) => "empty".to_owned(),
            YamlData::Value(Scalar::Boolean(value)) => format!("`{value}`"),
            YamlData::Value(Scalar::Integer(value)) => format!("`{value}`"),
            YamlData::Value(Scalar::FloatingPoint(value)) => format!("`{value}`"),
            YamlData::Value(Scalar::String(text)) => {
                let excerpt = excerpt(text);
                match self.context.environment.interpolate(text) {
                    Ok(Cow::Owned(value)) => {
                        format!("`{}` (from `{excerpt}`)", self::excerpt(&value))
                    }
                    _ => format!("the string `{excerpt}`"),
                }
            }
            YamlData::Sequence(_) => "a list".to_owned(),
            YamlData::Mapping(_) => "a mapping".to_owned(),
            _ => "of another type".to_owned(),
        }
    }

    /// Returns the scalar, with its variables replaced. A string that contained variables is parsed
    /// as if its result were written in the file.
    fn scalar(&self) -> Option<Scalar<'y>> {
        match &self.yaml.data {
            YamlData::Value(Scalar::String(text)) => {
                match self.context.environment.interpolate(text) {
                    Ok(Cow::Borrowed(_)) => Some(Scalar::String(text.clone())),
                    Ok(Cow::Owned(text)) => Some(Scalar::parse_from_cow(text.into())),
                    Err(problem) => {
                        self.report_error(problem);
                        None
                    }
                }
            }
            YamlData::Value(scalar) => Some(scalar.clone()),
            _ => Some(Scalar::Null),
        }
    }

    /// Returns a string; an integer counts as one.
    pub(super) fn string(&self) -> Option<String> {
        match &self.yaml.data {
            YamlData::Value(Scalar::String(text)) => {
                match self.context.environment.interpolate(text) {
                    Ok(text) => Some(text.into_owned()),
                    Err(problem) => {
                        self.report_error(problem);
                        None
                    }
                }
            }
            YamlData::Value(Scalar::Integer(number)) => Some(number.to_string()),
            _ => {
                self.report_unexpected("a string");
                None
            }
        }
    }

    /// Parses a string with `parse`, whose error is the problem that is reported.
    pub(super) fn parse<T>(&self, parse: impl FnOnce(&str) -> Result<T, String>) -> Option<T> {
        let text = self.string()?;
        match parse(&text) {
            Ok(value) => Some(value),
            Err(problem) => {
                self.report_error(problem);
                None
            }
        }
    }

    /// Parses a string that must be one of `choices`.
    pub(super) fn one_of<T: Copy>(&self, choices: &[(&str, T)]) -> Option<T> {
        let text = self.string()?;
        let choice = choices.iter().find(|(name, _)| *name == text);
        if choice.is_none() {
            let names: Vec<_> = choices.iter().map(|(name, _)| *name).collect();
            let hint = suggest(&text, &names);
            self.report_error_with_hint(format!("`{text}` is unknown"), Some(hint));
        }
        choice.map(|(_, value)| *value)
    }

    /// Returns a boolean.
    pub(super) fn boolean(&self) -> Option<bool> {
        if let Scalar::Boolean(value) = self.scalar()? {
            return Some(value);
        }
        self.report_unexpected("true or false");
        None
    }

    /// Returns an integer in a range.
    pub(super) fn integer(&self, range: RangeInclusive<u64>) -> Option<u64> {
        let number = match self.scalar()? {
            Scalar::Integer(number) => u64::try_from(number).ok(),
            Scalar::FloatingPoint(number) => to_integer(number.into_inner()),
            _ => None,
        };
        let number = number.filter(|number| range.contains(number));
        if number.is_none() {
            let (min, max) = (range.start(), range.end());
            self.report_no_number(&format!("an integer from {min} to {max}"));
        }
        number
    }

    /// Returns an integer in a range that is a number of objects in memory, or of bytes.
    pub(super) fn size(&self, min: u64, max: u64) -> Option<usize> {
        let number = self.integer(min..=max)?;
        usize::try_from(number).ok()
    }

    /// Returns an integer of at least 1.
    pub(super) fn positive_integer(&self) -> Option<NonZeroU32> {
        let number = self.integer(1..=u32::MAX.into())?;
        u32::try_from(number).ok().and_then(NonZeroU32::new)
    }

    /// Returns a TCP port.
    pub(super) fn port(&self) -> Option<u16> {
        let number = self.integer(1..=u16::MAX.into())?;
        u16::try_from(number).ok()
    }

    /// Returns a duration in seconds that is not 0.
    pub(super) fn positive_duration(&self) -> Option<Duration> {
        self.duration_from(MIN_DURATION_SECONDS)
    }

    /// Returns a duration in seconds that may be 0.
    pub(super) fn duration(&self) -> Option<Duration> {
        self.duration_from(0.0)
    }

    fn duration_from(&self, min_seconds: f64) -> Option<Duration> {
        let seconds = match self.scalar()? {
            #[expect(
                clippy::cast_precision_loss,
                reason = "integers in the accepted range are exact"
            )]
            Scalar::Integer(number) => Some(number as f64),
            Scalar::FloatingPoint(number) => Some(number.into_inner()),
            _ => None,
        };
        match seconds.filter(|seconds| *seconds >= min_seconds) {
            Some(seconds) if seconds <= MAX_DURATION_SECONDS => {
                Some(Duration::from_secs_f64(seconds))
            }
            Some(_) => {
                self.report_unexpected(&format!(
                    "at most {MAX_DURATION_SECONDS} seconds (one year)"
                ));
                None
            }
            None => {
                self.report_no_number(&format!("a number of seconds, at least {min_seconds}"));
                None
            }
        }
    }

    /// Returns the elements of a list.
    pub(super) fn elements(&self) -> Option<Vec<Self>> {
        if let YamlData::Sequence(elements) = &self.yaml.data {
            let element = |(index, yaml)| self.descendant(yaml, format!("{}[{index}]", self.key));
            Some(elements.iter().enumerate().map(element).collect())
        } else {
            self.report_unexpected("a list");
            None
        }
    }

    /// Parses each element of a list; null is the empty list. All elements are parsed, also after one
    /// with an error, so that every error is reported.
    pub(super) fn parse_list<T>(&self, parse: impl FnMut(&Self) -> Option<T>) -> Option<Vec<T>> {
        if self.is_null() {
            return Some(Vec::new());
        }
        let values: Vec<_> = self.elements()?.iter().map(parse).collect();
        values.into_iter().collect()
    }

    /// Returns the values of a list, which must have an element.
    pub(super) fn require_not_empty<T>(&self, values: Vec<T>) -> Option<Vec<T>> {
        if values.is_empty() {
            self.report_error("must have at least one element");
            return None;
        }
        Some(values)
    }

    /// Returns a mapping; null is the empty one.
    pub(super) fn mapping(&self) -> Option<Mapping<'y, 'c>> {
        if !self.is_null() && !self.is_mapping() {
            self.report_unexpected("a mapping");
            return None;
        }
        let mut entries = Vec::new();
        self.collect_entries(&mut entries);
        Some(Mapping {
            node: self.clone(),
            entries,
            known_keys: Vec::new(),
        })
    }

    /// Adds the entries of a mapping whose keys are not in `entries` yet: first its own, then those of
    /// the mappings that it merges, of which the first has precedence (YAML's merge key, as `PyYAML`
    /// implements it).
    fn collect_entries(&self, entries: &mut Vec<Entry<'y>>) {
        let YamlData::Mapping(mapping) = &self.yaml.data else {
            return;
        };
        let mut merged = None;
        for (key, value) in mapping {
            if key_name(key).as_deref() == Some(MERGE_KEY) {
                merged = Some(self.descendant(value, join_key(&self.key, MERGE_KEY)));
            } else if !entries.iter().any(|(known, _)| *known == key) {
                entries.push((key, value));
            }
        }
        let Some(merged) = merged else { return };
        let mappings = if merged.is_list() {
            merged.elements().unwrap_or_default()
        } else {
            vec![merged]
        };
        for mapping in mappings {
            if mapping.is_mapping() {
                mapping.collect_entries(entries);
            } else {
                mapping.report_unexpected("a mapping");
            }
        }
    }

    fn descendant(&self, yaml: &'y MarkedYaml<'y>, key: String) -> Self {
        Self {
            yaml,
            key,
            context: self.context,
        }
    }
}

/// Entry of a mapping whose keys are names that the operator chooses.
pub(super) struct NamedValue<'y, 'c> {
    pub(super) name: String,
    /// The name, for errors about it.
    pub(super) key: Node<'y, 'c>,
    pub(super) value: Node<'y, 'c>,
}

/// A mapping that is being parsed. Each known key is read, then
/// [`reject_unknown_keys`](Self::reject_unknown_keys) reports the others.
#[derive(Debug)]
pub(super) struct Mapping<'y, 'c> {
    node: Node<'y, 'c>,
    entries: Vec<Entry<'y>>,
    known_keys: Vec<&'static str>,
}

impl<'y, 'c> Mapping<'y, 'c> {
    /// Returns the value of an optional key.
    pub(super) fn get(&mut self, key: &'static str) -> Option<Node<'y, 'c>> {
        self.known_keys.push(key);
        self.entries
            .iter()
            .find(|(name, _)| key_name(name).as_deref() == Some(key))
            .map(|(_, value)| self.node.descendant(value, self.join_key(key)))
    }

    /// Parses the value of an optional key, or returns its default.
    pub(super) fn get_or<T>(
        &mut self,
        key: &'static str,
        default: T,
        parse: impl FnOnce(&Node<'y, 'c>) -> Option<T>,
    ) -> Option<T> {
        self.get(key)
            .map_or_else(|| Some(default), |value| parse(&value))
    }

    /// Returns the value of a required key.
    pub(super) fn require(&mut self, key: &'static str) -> Option<Node<'y, 'c>> {
        let value = self.get(key);
        if value.is_none() {
            self.report_error(format!("`{key}` is missing"));
        }
        value
    }

    /// Returns the mapping under an optional key.
    pub(super) fn mapping(&mut self, key: &'static str) -> Result<Option<Self>, ErrorReported> {
        match self.get(key) {
            None => Ok(None),
            Some(value) => value.mapping().map(Some).ok_or(ErrorReported),
        }
    }

    /// Returns the entries of a mapping whose keys are names. Keys that begin with `x-` are left to the operator.
    pub(super) fn into_named_values(self) -> Vec<NamedValue<'y, 'c>> {
        let mut entries = self.into_entries();
        entries.retain(|entry| !entry.name.starts_with(CUSTOM_PREFIX));
        entries
    }

    /// Returns all entries of a mapping whose keys are names, also those that begin with `x-`.
    pub(super) fn into_entries(self) -> Vec<NamedValue<'y, 'c>> {
        let entry = |(key, value): &Entry<'y>| {
            let name = key_name(key).unwrap_or_default().into_owned();
            // An error message is one line.
            let full_name = self.join_key(&name.replace(char::is_control, "\u{fffd}"));
            NamedValue {
                key: self.node.descendant(key, full_name.clone()),
                value: self.node.descendant(value, full_name),
                name,
            }
        };
        self.entries.iter().map(entry).collect()
    }

    pub(super) fn environment(&self) -> &'c Environment {
        self.node.context.environment
    }

    /// Reports an error of the mapping as a whole.
    pub(super) fn report_error(&self, problem: impl Into<String>) {
        self.node.report_error(problem);
    }

    /// Parses the value of an environment variable that replaces a key.
    pub(super) fn parse_variable<T>(
        &self,
        variable: &str,
        text: &str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        parse(text)
            .map_err(|problem| {
                self.report_error(format!("environment variable {variable}: {problem}"));
            })
            .ok()
    }

    /// Reports every key that was not read. Keys that begin with `x-` are left to the operator, as in
    /// compose files: they hold YAML anchors.
    pub(super) fn reject_unknown_keys(self) {
        for (key, name) in self.unknown_entries() {
            let mut hint = suggest(&name, &self.known_keys);
            if most_similar(&name, &self.known_keys).is_none() {
                hint = format!("custom keys must begin with x-; {hint}");
            }
            self.node.context.report(ConfigError {
                position: Some(Position::from(&key.span.start)),
                key: self.join_key(&name),
                problem: "unknown key".to_owned(),
                hint: Some(hint),
            });
        }
    }

    /// Returns the keys that [`reject_unknown_keys`](Self::reject_unknown_keys) would report.
    pub(super) fn unknown_keys(&self) -> impl Iterator<Item = Cow<'y, str>> {
        self.unknown_entries().map(|(_, name)| name)
    }

    fn unknown_entries(&self) -> impl Iterator<Item = (&'y MarkedYaml<'y>, Cow<'y, str>)> {
        self.entries.iter().filter_map(|(key, _)| {
            let name = key_name(key).unwrap_or_default();
            let is_known =
                self.known_keys.contains(&name.as_ref()) || name.starts_with(CUSTOM_PREFIX);
            (!is_known).then_some((*key, name))
        })
    }

    fn join_key(&self, name: &str) -> String {
        join_key(&self.node.key, name)
    }
}

/// Converts a float that is an integer, as in `5.0` and `1e3`.
fn to_integer(number: f64) -> Option<u64> {
    // Above 2^53 a float cannot represent every integer.
    const MAX_EXACT_INTEGER: f64 = 9_007_199_254_740_992.0;
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "used only if the number is an integer in range"
    )]
    let integer = number as u64;
    (number.fract() == 0.0 && (0.0..=MAX_EXACT_INTEGER).contains(&number)).then_some(integer)
}

fn join_key(parent: &str, name: &str) -> String {
    if parent.is_empty() {
        name.to_owned()
    } else {
        format!("{parent}.{name}")
    }
}

fn key_name<'y>(key: &'y MarkedYaml<'y>) -> Option<Cow<'y, str>> {
    match &key.data {
        YamlData::Value(Scalar::String(name)) => Some(Cow::Borrowed(name.as_ref())),
        YamlData::Value(Scalar::Integer(number)) => Some(Cow::Owned(number.to_string())),
        YamlData::Value(Scalar::Boolean(value)) => Some(Cow::Owned(value.to_string())),
        _ => None,
    }
}

/// Returns the beginning of a text that an error message quotes: a file that is no configuration is one long
/// string, and may be secret.
fn excerpt(text: &str) -> Cow<'_, str> {
    const MAX_QUOTED_CHARS: usize = 60;
    match text.char_indices().nth(MAX_QUOTED_CHARS) {
        Some((end, _)) => format!("{}…", &text[..end]).into(),
        None => text.into(),
    }
}
