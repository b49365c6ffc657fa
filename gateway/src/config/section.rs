//! Reading a YAML mapping key by key, noting every mistake with its place.

use std::borrow::Cow;
use std::cell::RefCell;
use std::num::NonZeroU32;
use std::time::Duration;

use saphyr::{MarkedYaml, Scalar, YamlData};

use super::interpolate::Environment;
use super::mistake::{Mistake, Place, instead_of, nearest};

/// The longest time that a setting may name: a year.
const LONGEST: f64 = 366.0 * 24.0 * 3600.0;
/// The shortest but none: what is done in less, or each so often, would do nothing else.
const SHORTEST: f64 = 0.001;

/// What is shared by all sections of one file.
#[derive(Debug)]
pub(super) struct Reading<'e> {
    pub(super) environment: &'e Environment,
    mistakes: RefCell<Vec<Mistake>>,
}

impl<'e> Reading<'e> {
    pub(super) fn new(environment: &'e Environment) -> Self {
        Self {
            environment,
            mistakes: RefCell::default(),
        }
    }

    pub(super) fn note(&self, mistake: Mistake) {
        self.mistakes.borrow_mut().push(mistake);
    }

    pub(super) fn into_mistakes(self) -> Vec<Mistake> {
        self.mistakes.into_inner()
    }
}

/// A value somewhere in the file.
#[derive(Debug, Clone)]
pub(super) struct Value<'y, 'r> {
    node: &'y MarkedYaml<'y>,
    key: String,
    reading: &'r Reading<'r>,
}

impl<'y, 'r> Value<'y, 'r> {
    pub(super) fn new(node: &'y MarkedYaml<'y>, key: String, reading: &'r Reading<'r>) -> Self {
        Self { node, key, reading }
    }

    pub(super) fn wrong(&self, problem: impl Into<String>, hint: Option<String>) {
        self.reading.note(Mistake {
            place: Some(place_of(self.node)),
            key: self.key.clone(),
            problem: problem.into(),
            hint,
        });
    }

    pub(super) fn is_null(&self) -> bool {
        matches!(self.node.data, YamlData::Value(Scalar::Null))
    }

    /// Whether there is nothing, or a text with nothing in it once `${…}` is replaced.
    pub(super) fn is_empty(&self) -> bool {
        match &self.node.data {
            YamlData::Value(Scalar::Null) => true,
            YamlData::Value(Scalar::String(text)) => {
                let text = self.reading.environment.interpolate(text);
                text.is_ok_and(|text| text.is_empty())
            }
            _ => false,
        }
    }

    /// What was found, for a message.
    fn found(&self) -> String {
        match &self.node.data {
            YamlData::Value(Scalar::Null) => "nothing".to_owned(),
            YamlData::Value(Scalar::Boolean(value)) => format!("`{value}`"),
            YamlData::Value(Scalar::Integer(value)) => format!("`{value}`"),
            YamlData::Value(Scalar::FloatingPoint(value)) => format!("`{value}`"),
            YamlData::Value(Scalar::String(text)) => {
                match self.reading.environment.interpolate(text) {
                    Ok(Cow::Owned(value)) => format!("`{value}` (from `{text}`)"),
                    _ => format!("the text `{text}`"),
                }
            }
            YamlData::Sequence(_) => "a list".to_owned(),
            YamlData::Mapping(_) => "a mapping".to_owned(),
            _ => "something else".to_owned(),
        }
    }

    fn is_not(&self, wanted: &str) {
        self.wrong(format!("is {}, must be {wanted}", self.found()), None);
    }

    /// [`Value::is_not`] where a number is wanted, which quotes make a text.
    fn is_no_number(&self, wanted: &str) {
        let hint = match &self.node.data {
            YamlData::Value(Scalar::String(text)) => {
                let unquoted = Scalar::parse_from_cow(text.as_ref().into());
                matches!(unquoted, Scalar::Integer(_) | Scalar::FloatingPoint(_))
                    .then(|| format!("without quotes {text} is a number"))
            }
            _ => None,
        };
        self.wrong(format!("is {}, must be {wanted}", self.found()), hint);
    }

    /// The scalar, with `${…}` replaced. A text that came out of the environment is read as YAML
    /// would read it in the file.
    fn scalar(&self) -> Option<Scalar<'y>> {
        match &self.node.data {
            YamlData::Value(Scalar::String(text)) => {
                match self.reading.environment.interpolate(text) {
                    Ok(Cow::Borrowed(_)) => Some(Scalar::String(text.clone())),
                    Ok(Cow::Owned(text)) => Some(Scalar::parse_from_cow(text.into())),
                    Err(problem) => {
                        self.wrong(problem, None);
                        None
                    }
                }
            }
            YamlData::Value(scalar) => Some(scalar.clone()),
            _ => Some(Scalar::Null),
        }
    }

    /// Text, also where it looks like a number.
    pub(super) fn text(&self) -> Option<String> {
        match &self.node.data {
            YamlData::Value(Scalar::String(text)) => {
                match self.reading.environment.interpolate(text) {
                    Ok(text) => Some(text.into_owned()),
                    Err(problem) => {
                        self.wrong(problem, None);
                        None
                    }
                }
            }
            YamlData::Value(Scalar::Integer(number)) => Some(number.to_string()),
            _ => {
                self.is_not("text");
                None
            }
        }
    }

    /// Text that `parse` understands.
    pub(super) fn parsed<T>(&self, parse: impl FnOnce(&str) -> Result<T, String>) -> Option<T> {
        let text = self.text()?;
        match parse(&text) {
            Ok(value) => Some(value),
            Err(problem) => {
                self.wrong(problem, None);
                None
            }
        }
    }

    /// One of some words.
    pub(super) fn one_of<T: Copy>(&self, words: &[(&str, T)]) -> Option<T> {
        let text = self.text()?;
        let chosen = words.iter().find(|(word, _)| *word == text);
        if chosen.is_none() {
            let words: Vec<_> = words.iter().map(|(word, _)| *word).collect();
            self.wrong(
                format!("`{text}` is unknown"),
                Some(instead_of(&text, &words)),
            );
        }
        chosen.map(|(_, value)| *value)
    }

    /// A whole number in a range.
    pub(super) fn number(&self, least: u64, most: u64) -> Option<u64> {
        let number = match self.scalar()? {
            Scalar::Integer(number) => u64::try_from(number).ok(),
            Scalar::FloatingPoint(number) => whole(number.into_inner()),
            _ => None,
        };
        let number = number.filter(|number| (least..=most).contains(number));
        if number.is_none() {
            self.is_no_number(&format!("a whole number from {least} to {most}"));
        }
        number
    }

    /// A whole number from 1 on.
    pub(super) fn count(&self) -> Option<NonZeroU32> {
        let number = self.number(1, u32::MAX.into())?;
        u32::try_from(number).ok().and_then(NonZeroU32::new)
    }

    /// A TCP port.
    pub(super) fn port(&self) -> Option<u16> {
        let number = self.number(1, u16::MAX.into())?;
        u16::try_from(number).ok()
    }

    /// Seconds, more than none.
    pub(super) fn seconds(&self) -> Option<Duration> {
        let wanted = format!("a number of seconds from {SHORTEST} on");
        self.seconds_if(|seconds| seconds >= SHORTEST, &wanted)
    }

    /// Seconds, or none.
    pub(super) fn seconds_or_none(&self) -> Option<Duration> {
        self.seconds_if(|seconds| seconds >= 0.0, "a number of seconds, 0 or above")
    }

    fn seconds_if(&self, is_good: impl Fn(f64) -> bool, wanted: &str) -> Option<Duration> {
        let seconds = match self.scalar()? {
            #[expect(
                clippy::cast_precision_loss,
                reason = "the range that is accepted is exact"
            )]
            Scalar::Integer(number) => Some(number as f64),
            Scalar::FloatingPoint(number) => Some(number.into_inner()),
            _ => None,
        };
        match seconds.filter(|seconds| is_good(*seconds)) {
            Some(seconds) if seconds <= LONGEST => Some(Duration::from_secs_f64(seconds)),
            Some(_) => {
                self.is_not("a year at most");
                None
            }
            None => {
                self.is_no_number(wanted);
                None
            }
        }
    }

    /// The values of a list.
    pub(super) fn list(&self) -> Option<Vec<Self>> {
        if let YamlData::Sequence(nodes) = &self.node.data {
            let value =
                |(number, node)| Value::new(node, format!("{}[{number}]", self.key), self.reading);
            Some(nodes.iter().enumerate().map(value).collect())
        } else {
            self.is_not("a list");
            None
        }
    }

    pub(super) fn is_list(&self) -> bool {
        matches!(self.node.data, YamlData::Sequence(_))
    }

    /// The section that a mapping is. Nothing at all is an empty one.
    pub(super) fn section(&self) -> Option<Section<'y, 'r>> {
        if !self.is_null() && !self.is_mapping() {
            self.is_not("a mapping");
            return None;
        }
        let mut entries = Vec::new();
        self.gather(&mut entries);
        Some(Section {
            itself: self.clone(),
            entries,
            known: Vec::new(),
        })
    }

    fn is_mapping(&self) -> bool {
        matches!(self.node.data, YamlData::Mapping(_))
    }

    /// Adds the keys of a mapping that are not there yet: its own, then those that it merges, of
    /// which the first wins (YAML's merge key, as Python reads it).
    fn gather(&self, entries: &mut Vec<Entry<'y>>) {
        let YamlData::Mapping(mapping) = &self.node.data else {
            return;
        };
        let mut merged = None;
        for (name, node) in mapping {
            if name_of(name).as_deref() == Some(MERGE) {
                merged = Some(Value::new(node, key_of(&self.key, MERGE), self.reading));
            } else if !entries.iter().any(|(known, _)| *known == name) {
                entries.push((name, node));
            }
        }
        let Some(merged) = merged else { return };
        let all = if merged.is_list() {
            merged.list().unwrap_or_default()
        } else {
            vec![merged]
        };
        for value in all {
            if value.is_mapping() {
                value.gather(entries);
            } else {
                value.is_not("a mapping");
            }
        }
    }
}

/// A key and what it has.
type Entry<'y> = (&'y MarkedYaml<'y>, &'y MarkedYaml<'y>);

/// The key that stands for all keys of another mapping.
const MERGE: &str = "<<";

/// A mapping that is being read. Each key is asked for once; [`Section::end`] finds the rest.
#[derive(Debug)]
pub(super) struct Section<'y, 'r> {
    itself: Value<'y, 'r>,
    entries: Vec<Entry<'y>>,
    known: Vec<&'static str>,
}

impl<'y, 'r> Section<'y, 'r> {
    /// The value of a key, if the file has it.
    pub(super) fn get(&mut self, key: &'static str) -> Option<Value<'y, 'r>> {
        self.known.push(key);
        self.entries
            .iter()
            .find(|(name, _)| name_of(name).as_deref() == Some(key))
            .map(|(_, node)| Value::new(node, self.key_of(key), self.itself.reading))
    }

    /// The value of a key without which the section makes no sense.
    pub(super) fn need(&mut self, key: &'static str) -> Option<Value<'y, 'r>> {
        let value = self.get(key);
        if value.is_none() {
            self.itself.wrong(format!("`{key}` is missing"), None);
        }
        value
    }

    pub(super) fn environment(&self) -> &'r Environment {
        self.itself.reading.environment
    }

    /// Notes something that is wrong with the section as a whole.
    pub(super) fn wrong(&self, problem: String) {
        self.itself.wrong(problem, None);
    }

    /// What an environment variable says that stands in for a key.
    pub(super) fn parsed_variable<T>(
        &self,
        variable: &str,
        text: &str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        parse(text)
            .map_err(|problem| self.wrong(format!("environment variable {variable}: {problem}")))
            .ok()
    }

    /// Notes every key that nobody asked for. Those that start with `x-` are the operator's own,
    /// as in compose files: a place for YAML anchors.
    pub(super) fn end(self) {
        for (node, _) in &self.entries {
            let name = name_of(node).unwrap_or_default();
            if !self.known.contains(&name.as_ref()) && !name.starts_with("x-") {
                let mut hint = instead_of(&name, &self.known);
                if nearest(&name, &self.known).is_none() {
                    hint = format!("a key of your own begins with x-; {hint}");
                }
                self.itself.reading.note(Mistake {
                    place: Some(place_of(node)),
                    key: self.key_of(&name),
                    problem: "unknown key".to_owned(),
                    hint: Some(hint),
                });
            }
        }
    }

    fn key_of(&self, name: &str) -> String {
        key_of(&self.itself.key, name)
    }
}

/// A whole number that is written as another, as in `5.0` and `1e3`.
fn whole(number: f64) -> Option<u64> {
    // Past 2^53 not every whole number can be told from the next.
    const MOST: f64 = 9_007_199_254_740_992.0;
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "it is whole and in range"
    )]
    let whole = number as u64;
    (number.fract() == 0.0 && (0.0..=MOST).contains(&number)).then_some(whole)
}

fn key_of(section: &str, name: &str) -> String {
    if section.is_empty() {
        name.to_owned()
    } else {
        format!("{section}.{name}")
    }
}

fn name_of<'y>(node: &'y MarkedYaml<'y>) -> Option<Cow<'y, str>> {
    match &node.data {
        YamlData::Value(Scalar::String(name)) => Some(Cow::Borrowed(name.as_ref())),
        YamlData::Value(Scalar::Integer(number)) => Some(Cow::Owned(number.to_string())),
        YamlData::Value(Scalar::Boolean(value)) => Some(Cow::Owned(value.to_string())),
        _ => None,
    }
}

fn place_of(node: &MarkedYaml<'_>) -> Place {
    Place {
        line: node.span.start.line(),
        // The parser counts columns from 0, editors from 1.
        column: node.span.start.col() + 1,
    }
}
