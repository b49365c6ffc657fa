//! Path patterns in Premier's style.
//!
//! One that starts with `^` is a regular expression, one with `*`, `?` or `[` a glob in which `*`
//! also crosses `/`, any other an exact path. All see the normalised path (see [`crate::path`]),
//! in which what is neither plain ASCII nor a delimiter is percent-encoded.

use std::fmt::{self, Write as _};
use std::str::FromStr;

use regex_automata::meta::Regex;
use regex_automata::util::syntax;

/// A pattern that compiles.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PathPattern {
    text: String,
    matcher: Matcher,
}

/// How a pattern is to be matched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Matcher {
    Exact(String),
    /// A regular expression, anchored at the start by whoever runs it.
    Regex(String),
}

impl PathPattern {
    pub(crate) fn matcher(&self) -> &Matcher {
        &self.matcher
    }
}

impl fmt::Display for PathPattern {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.text)
    }
}

/// How patterns are read: paths are ASCII, so `\d` and `\w` need not know more.
pub(crate) fn syntax() -> syntax::Config {
    syntax::Config::new().unicode(false).utf8(false)
}

impl FromStr for PathPattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Err("an empty pattern matches nothing".to_owned());
        }
        let matcher = if text.starts_with('^') {
            Matcher::Regex(text.to_owned())
        } else if text.contains(['*', '?', '[']) {
            Matcher::Regex(regex_of_glob(text)?)
        } else {
            Matcher::Exact(text.chars().fold(String::new(), |mut path, letter| {
                push_encoded(&mut path, letter);
                path
            }))
        };
        if let Matcher::Regex(regex) = &matcher {
            Regex::builder()
                .syntax(syntax())
                .build(regex)
                .map_err(|error| {
                    let reason = error
                        .syntax_error()
                        .map_or_else(|| error.to_string(), ToString::to_string);
                    format!("`{text}` does not compile: {}", last_line(&reason))
                })?;
        }
        Ok(Self {
            text: text.to_owned(),
            matcher,
        })
    }
}

/// The parser draws the pattern over several lines; the last one says what is wrong.
fn last_line(reason: &str) -> &str {
    let line = reason.lines().last().unwrap_or(reason).trim();
    line.strip_prefix("error: ").unwrap_or(line)
}

fn regex_of_glob(glob: &str) -> Result<String, String> {
    let mut regex = String::from("^");
    let mut letters = glob.chars();
    while let Some(letter) = letters.next() {
        match letter {
            '*' => regex.push_str(".*"),
            '?' => regex.push('.'),
            '[' => {
                let rest = letters.as_str();
                // A `]` right at the start of a class stands for itself.
                let start = rest.strip_prefix('^').map_or(0, |_| 1);
                let end = rest
                    .get(start + 1..)
                    .and_then(|class| class.find(']'))
                    .map(|end| end + start + 1)
                    .ok_or_else(|| format!("`{glob}` has `[` without `]`"))?;
                push_class(&mut regex, &rest[..end]);
                letters = rest[end + 1..].chars();
            }
            _ => {
                let mut literal = String::new();
                push_encoded(&mut literal, letter);
                regex.push_str(&regex_syntax::escape(&literal));
            }
        }
    }
    regex.push('$');
    Ok(regex)
}

fn push_class(regex: &mut String, class: &str) {
    regex.push('[');
    let (negation, members) = match class.strip_prefix('^') {
        Some(members) => ("^", members),
        None => ("", class),
    };
    regex.push_str(negation);
    for member in members.chars() {
        // Only a range's dash keeps its meaning.
        if member != '-' && !member.is_alphanumeric() {
            regex.push('\\');
        }
        regex.push(member);
    }
    regex.push(']');
}

/// A normalised path has nothing but ASCII without blanks and controls in it.
fn push_encoded(path: &mut String, letter: char) {
    if letter.is_ascii_graphic() {
        path.push(letter);
    } else {
        for byte in letter.encode_utf8(&mut [0; 4]).bytes() {
            write!(path, "%{byte:02X}").expect("a String takes everything");
        }
    }
}

#[cfg(test)]
mod tests {
    use regex_automata::{Anchored, Input};

    use super::*;

    fn matches(pattern: &str, path: &str) -> bool {
        match pattern.parse::<PathPattern>().unwrap().matcher() {
            Matcher::Exact(exact) => exact == path,
            Matcher::Regex(regex) => Regex::builder()
                .syntax(syntax())
                .build(regex)
                .unwrap()
                .is_match(Input::new(path).anchored(Anchored::Yes)),
        }
    }

    #[test]
    fn patterns_mean_what_premier_means_by_them() {
        for (pattern, path) in [
            ("/api/login", "/api/login"),
            ("/api/*", "/api/"),
            ("/api/*", "/api/a/b/c"),
            ("/api/**", "/api/a/b"),
            ("*", "/anything"),
            ("/v?/x", "/v1/x"),
            ("/v[12]/x", "/v2/x"),
            ("/v[^12]/x", "/v3/x"),
            ("/file.txt*", "/file.txt"),
            ("^/api", "/api/login"),
            (r"^/user/\d+$", "/user/42"),
            ("/für", "/f%C3%BCr"),
        ] {
            assert!(matches(pattern, path), "{pattern} {path}");
        }
        for (pattern, path) in [
            ("/api/login", "/api/login/"),
            ("/api/*", "/api"),
            ("/api/*", "/x/api/y"),
            ("/v?/x", "/v/x"),
            ("/v[12]/x", "/v3/x"),
            ("/file.txt*", "/filextxt"),
            ("^api", "/api"),
            (r"^/user/\d+$", "/user/42/x"),
        ] {
            assert!(!matches(pattern, path), "{pattern} {path}");
        }
    }

    #[test]
    fn what_does_not_compile_is_said_in_a_line() {
        for bad in ["", "/v[12", "^/(", "/[z-a]"] {
            let problem = bad.parse::<PathPattern>().unwrap_err();
            assert!(!problem.contains('\n'), "{problem}");
        }
    }
}
