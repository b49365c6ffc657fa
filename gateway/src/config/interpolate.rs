//! Environment variables in configuration values: `${NAME}` and `${NAME:-default}`. Where `NAME` is unset, `NAME_FILE` may
//! name a file with the value, such as a secret of Docker or Kubernetes, which no list of processes or containers shows.

use std::borrow::Cow;
use std::collections::{BTreeSet, HashMap};
use std::ffi::OsString;

/// Environment variables that a configuration may use.
#[derive(Debug, Clone, Default)]
pub(crate) struct Environment {
    variables: HashMap<String, String>,
    /// Names of the variables whose values are not UTF-8.
    not_utf8: BTreeSet<String>,
}

impl Environment {
    /// Returns the environment of the process.
    pub(crate) fn of_process() -> Self {
        Self::of_variables(std::env::vars_os())
    }

    /// Variables whose names are not UTF-8 are omitted: no configuration can name them.
    fn of_variables(variables: impl IntoIterator<Item = (OsString, OsString)>) -> Self {
        let mut environment = Self::default();
        for (name, value) in variables {
            let Ok(name) = name.into_string() else {
                continue;
            };
            match value.into_string() {
                Ok(value) => drop(environment.variables.insert(name, value)),
                Err(_) => drop(environment.not_utf8.insert(name)),
            }
        }
        environment
    }

    /// Returns an error, for the operator, for each setting of the gateway that is not UTF-8.
    pub(super) fn invalid_settings(&self) -> impl Iterator<Item = String> {
        let settings = self.not_utf8.iter().filter(|name| {
            let prefixes = ["GATEWAY_", "SSL_", "LOG_"];
            prefixes.iter().any(|prefix| name.starts_with(prefix))
        });
        settings.map(|name| not_utf8(name))
    }

    /// Returns the value of a variable, `None` if it is unset or empty.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.variables
            .get(name)
            .map(String::as_str)
            .filter(|value| !value.is_empty())
    }

    /// Replaces every `${…}` in a text; `$${` is a literal `${`.
    ///
    /// # Errors
    /// Returns an error, for the operator, if an expression is malformed, or its variable is unset and
    /// has no default.
    pub(super) fn interpolate<'t>(&self, text: &'t str) -> Result<Cow<'t, str>, String> {
        if !text.contains("${") {
            return Ok(Cow::Borrowed(text));
        }
        let (mut result, mut rest) = (String::new(), text);
        while let Some(start) = rest.find("${") {
            let (before, after) = (&rest[..start], &rest[start + 2..]);
            if let Some(before) = before.strip_suffix('$') {
                result.push_str(before);
                result.push_str("${");
                rest = after;
                continue;
            }
            result.push_str(before);
            let end = after
                .find('}')
                .ok_or_else(|| format!("`{}` has no closing brace", &rest[start..]))?;
            result.push_str(&self.evaluate(&after[..end])?);
            rest = &after[end + 1..];
        }
        result.push_str(rest);
        Ok(Cow::Owned(result))
    }

    fn evaluate(&self, expression: &str) -> Result<String, String> {
        let (name, default) = match expression.split_once(":-") {
            Some((name, default)) => (name, Some(default)),
            None => (expression, None),
        };
        if !is_name(name) {
            return Err(format!(
                "`${{{expression}}}` is neither ${{NAME}} nor ${{NAME:-default}}; $${{ is a literal ${{"
            ));
        }
        if self.not_utf8.contains(name) {
            return Err(not_utf8(name));
        }
        if default.is_some_and(|default| default.contains("${")) {
            return Err(format!(
                "the default of {name} contains `${{…}}`: it must be plain text"
            ));
        }
        let file_name = format!("{name}_FILE");
        match (self.get(name), self.get(&file_name)) {
            (Some(_), Some(_)) => Err(format!(
                "the environment variables {name} and {file_name} are both set: set only one of them"
            )),
            (Some(value), None) => Ok(value.to_owned()),
            (None, Some(file)) => read_value(&file_name, file, default),
            (None, None) => default.map(str::to_owned).ok_or_else(|| {
                format!("the environment variable {name} is not set and has no default")
            }),
        }
    }
}

/// Returns the value that a file has, without the line breaks at its end, or the default if it has none.
fn read_value(variable: &str, file: &str, default: Option<&str>) -> Result<String, String> {
    let text = std::fs::read_to_string(file)
        .map_err(|error| format!("{variable} names {file}, which cannot be read: {error}"))?;
    let value = Some(text.trim_end_matches(['\r', '\n'])).filter(|value| !value.is_empty());
    value
        .or(default)
        .map(str::to_owned)
        .ok_or_else(|| format!("{variable} names {file}, which is empty, and there is no default"))
}

impl Environment {
    /// Returns an environment that names the certificate of the fixtures, since every configuration
    /// needs one. For tests and benchmarks, which run beside the sources.
    pub(crate) fn for_tests() -> Self {
        let fixtures = concat!(env!("CARGO_MANIFEST_DIR"), "/src/config/fixtures");
        Self::from([
            ("SSL_CERTFILE", format!("{fixtures}/cert.pem").as_str()),
            ("SSL_KEYFILE", format!("{fixtures}/key.pem").as_str()),
        ])
    }

    /// Adds variables.
    #[cfg(test)]
    pub(super) fn with(mut self, variables: &[(&str, &str)]) -> Self {
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        self.variables.extend(variables.iter().map(owned));
        self
    }
}

impl<const N: usize> From<[(&str, &str); N]> for Environment {
    fn from(variables: [(&str, &str); N]) -> Self {
        let owned = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
        Self {
            variables: variables.map(owned).into(),
            not_utf8: BTreeSet::new(),
        }
    }
}

fn not_utf8(name: &str) -> String {
    format!("the environment variable {name} is not UTF-8: set it to UTF-8 text, or unset it")
}

fn is_name(name: &str) -> bool {
    !name.is_empty()
        && !name.starts_with(|first: char| first.is_ascii_digit())
        && name
            .chars()
            .all(|letter| letter.is_ascii_alphanumeric() || letter == '_')
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStringExt;

    use super::*;

    #[test]
    fn variables_that_are_not_utf_8_are_errors_where_they_matter() {
        let variables = [
            (&b"HOST"[..], &b"db"[..]),
            (b"GATEWAY_HTTP", b"\xff"),
            (b"NAME", b"a\xffb"),
            (b"UNUSED\xff", b"a"),
        ];
        let variables = variables
            .map(|(name, value)| [name, value].map(|text| OsString::from_vec(text.to_vec())));
        let environment = Environment::of_variables(variables.map(|[name, value]| (name, value)));
        let problem = |name| {
            format!(
                "the environment variable {name} is not UTF-8: set it to UTF-8 text, or unset it"
            )
        };
        let interpolate = |text| environment.interpolate(text).map(Cow::into_owned);
        assert_eq!(interpolate("${HOST}"), Ok("db".to_owned()));
        assert_eq!(interpolate("${NAME:-default}"), Err(problem("NAME")));
        assert_eq!(environment.get("NAME"), None);
        // The gateway reads this one although no file names it.
        let invalid: Vec<_> = environment.invalid_settings().collect();
        assert_eq!(invalid, [problem("GATEWAY_HTTP")]);
    }

    #[test]
    fn expressions_are_replaced_by_values_or_defaults() {
        let environment = Environment::from([("HOST", "db"), ("EMPTY", "")]);
        let interpolate = |text| environment.interpolate(text).map(Cow::into_owned);
        assert_eq!(
            interpolate("http://${HOST}:${PORT:-80}/"),
            Ok("http://db:80/".to_owned())
        );
        assert_eq!(interpolate("${EMPTY:-x}$"), Ok("x$".to_owned()));
        assert_eq!(interpolate("plain $HOST"), Ok("plain $HOST".to_owned()));
        assert_eq!(interpolate("$${HOST}"), Ok("${HOST}".to_owned()));
        assert_eq!(
            interpolate("$$${HOST}/${HOST}"),
            Ok("$${HOST}/db".to_owned())
        );
        assert!(interpolate("${NONE}").is_err());
        assert!(interpolate("${NONE:-${HOST}}").is_err());
        assert!(interpolate("${HOST").is_err());
        assert!(interpolate("${HO ST}").is_err());
    }

    #[test]
    fn a_value_may_be_in_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            path.to_str().unwrap().to_owned()
        };
        let (url, empty) = (file("url", "redis://a:b@c\r\n"), file("empty", "\n"));
        let environment = Environment::from([
            ("URL_FILE", url.as_str()),
            ("EMPTY_FILE", empty.as_str()),
            ("ABSENT_FILE", "/absent/file"),
            ("BOTH", "value"),
            ("BOTH_FILE", url.as_str()),
        ]);
        let interpolate = |text| environment.interpolate(text).map(Cow::into_owned);
        assert_eq!(interpolate("${URL:-}/0"), Ok("redis://a:b@c/0".to_owned()));
        assert_eq!(interpolate("${EMPTY:-x}"), Ok("x".to_owned()));
        let reason = |text| interpolate(text).unwrap_err();
        assert!(reason("${EMPTY}").contains("is empty"));
        assert!(reason("${ABSENT:-x}").starts_with("ABSENT_FILE names /absent/file"));
        assert!(reason("${BOTH}").contains("BOTH and BOTH_FILE are both set"));
    }
}
