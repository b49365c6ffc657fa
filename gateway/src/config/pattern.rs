//! Path patterns, compatible with Premier.
//!
//! A pattern that starts with `^` is a regular expression, one with `*`, `?` or `[` is a glob in which
//! `*` also matches `/`, and any other is an exact path. Patterns are matched against the normalised
//! path (see [`crate::path`]), in which every character that is not printable ASCII is
//! percent-encoded.

mod normalised;
mod regex;

use std::fmt;
use std::str::FromStr;

use regex_automata::meta::Regex;
use regex_automata::util::syntax;

use crate::config::pattern::normalised::{encode, require_normalised};
use crate::config::pattern::regex::{PathRegex, PrefixCoverage};

/// Pattern that compiles and that some normalised path can match.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PathPattern {
    text: String,
    matcher: Matcher,
    /// Common prefix of all paths that it matches.
    prefix: String,
    coverage: PrefixCoverage,
}

/// Matching rule of a pattern.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Matcher {
    Exact(String),
    /// All paths with this prefix, which ends with a slash: the globs `/api/*` and `*`, and what is equivalent to such.
    Prefix(String),
    /// A regular expression. Its user anchors the search at the start of the path.
    Regex(String),
}

impl PathPattern {
    pub(crate) fn matcher(&self) -> &Matcher {
        &self.matcher
    }

    /// Returns true if it matches every path that `other` matches. May return false although it does:
    /// only the text of the patterns is compared.
    pub(super) fn covers(&self, other: &Self) -> bool {
        self.matcher == other.matcher
            || self.coverage == PrefixCoverage::Complete && other.prefix.starts_with(&self.prefix)
    }

    /// Returns the compiled pattern, `None` for an exact path and a prefix.
    pub(super) fn regex(&self) -> Option<Regex> {
        match &self.matcher {
            Matcher::Exact(_) | Matcher::Prefix(_) => None,
            Matcher::Regex(regex) => Regex::builder().syntax(pattern_syntax()).build(regex).ok(),
        }
    }

    /// Returns the only path that it matches, `None` for a glob or a regular expression.
    pub(super) fn exact_path(&self) -> Option<&str> {
        match &self.matcher {
            Matcher::Exact(path) => Some(path),
            Matcher::Prefix(_) | Matcher::Regex(_) => None,
        }
    }

    /// Returns whether `path` is a prefix of whole segments of every path that it matches.
    pub(super) fn begins_with(&self, path: &str) -> bool {
        let rest = self.prefix.strip_prefix(path);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }

    /// Returns true for a glob with `[!…]`, a negated class in a shell, but not here.
    pub(super) fn has_shell_negation(&self) -> bool {
        !self.text.starts_with('^') && self.text.contains("[!")
    }
}

impl fmt::Display for PathPattern {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.text)
    }
}

/// Returns the syntax of the regular expressions. Paths are ASCII, so `\d` and `\w` match ASCII only.
pub(crate) fn pattern_syntax() -> syntax::Config {
    syntax::Config::new().unicode(false).utf8(false)
}

impl FromStr for PathPattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let with_pattern = |problem: String| format!("`{text}` {problem}");
        if text.is_empty() {
            return Err("an empty pattern matches nothing".to_owned());
        }
        let regex = if text.starts_with('^') {
            text.to_owned()
        } else if text.contains(['*', '?', '[']) {
            glob_to_regex(text).map_err(with_pattern)?
        } else {
            let path = normalised_path(text).map_err(with_pattern)?;
            return Ok(Self {
                text: text.to_owned(),
                matcher: Matcher::Exact(path.clone()),
                prefix: path,
                coverage: PrefixCoverage::Partial,
            });
        };
        let regex = PathRegex::new(&regex).map_err(with_pattern)?;
        check_compiles(&regex.text).map_err(with_pattern)?;
        Ok(Self {
            text: text.to_owned(),
            matcher: matcher_of(&regex),
            prefix: regex.prefix,
            coverage: regex.coverage,
        })
    }
}

fn matcher_of(regex: &PathRegex) -> Matcher {
    match (regex.coverage, regex.prefix.as_str()) {
        // Every path begins with a slash.
        (PrefixCoverage::Complete, "") => Matcher::Prefix("/".to_owned()),
        (PrefixCoverage::Complete, prefix) if prefix.ends_with('/') => {
            Matcher::Prefix(prefix.to_owned())
        }
        _ => Matcher::Regex(regex.text.clone()),
    }
}

/// Returns a path in the form in which requests are matched.
///
/// # Errors
/// Returns an error, for the operator, if no request has this path.
pub(super) fn normalised_path(text: &str) -> Result<String, String> {
    let path: String = text.chars().map(encode).collect();
    require_normalised(&path)?;
    Ok(path)
}

fn check_compiles(regex: &str) -> Result<(), String> {
    let compiled = Regex::builder().syntax(pattern_syntax()).build(regex);
    compiled.map(drop).map_err(|error| {
        let reason = error
            .syntax_error()
            .map_or_else(|| error.to_string(), ToString::to_string);
        format!("does not compile: {}", last_line(&reason))
    })
}

/// Returns the last line of a syntax error, which has the reason. The lines before it quote the pattern.
fn last_line(reason: &str) -> &str {
    let line = reason.lines().last().unwrap_or(reason).trim();
    line.strip_prefix("error: ").unwrap_or(line)
}

fn glob_to_regex(glob: &str) -> Result<String, String> {
    let mut regex = String::from("^");
    let mut rest = glob;
    while let Some(character) = rest.chars().next() {
        rest = &rest[character.len_utf8()..];
        match character {
            '*' => regex.push_str(".*"),
            '?' => regex.push('.'),
            '[' => rest = push_class(&mut regex, rest).ok_or("has `[` without `]`")?,
            _ => push_escaped(&mut regex, character),
        }
    }
    regex.push('$');
    Ok(regex)
}

/// Appends the character class whose members `text` begins with, after the opening bracket. Returns
/// the text after the closing bracket, `None` if there is no such bracket.
fn push_class<'t>(regex: &mut String, text: &'t str) -> Option<&'t str> {
    let (negation, text) = match text.strip_prefix('^') {
        Some(text) => ("^", text),
        None => ("", text),
    };
    // The first character of a class is a member even if it is `]`.
    let mut characters = text.char_indices().skip(1);
    let (end, _) = characters.find(|(_, character)| *character == ']')?;
    regex.push('[');
    regex.push_str(negation);
    let mut members = text[..end].chars().peekable();
    while let Some(member) = members.next() {
        push_escaped(regex, member);
        // A dash between two members makes them a range, any other dash is a member. `--` would be a difference
        // of classes in a regular expression.
        if members.next_if_eq(&'-').is_some() {
            match members.next() {
                Some(last) => {
                    regex.push('-');
                    push_escaped(regex, last);
                }
                None => push_escaped(regex, '-'),
            }
        }
    }
    regex.push(']');
    Some(&text[end + 1..])
}

fn push_escaped(regex: &mut String, character: char) {
    if regex_syntax::is_meta_character(character) {
        regex.push('\\');
    }
    regex.push(character);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use regex_automata::{Anchored, Input};

    use super::*;

    fn matches(pattern: &str, path: &str) -> bool {
        match pattern.parse::<PathPattern>().unwrap().matcher() {
            Matcher::Exact(exact) => exact == path,
            Matcher::Prefix(prefix) => path.starts_with(prefix),
            Matcher::Regex(regex) => Regex::builder()
                .syntax(pattern_syntax())
                .build(regex)
                .unwrap()
                .is_match(Input::new(path).anchored(Anchored::Yes)),
        }
    }

    #[test]
    fn patterns_match_the_same_paths_as_in_premier() {
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
            ("/für/*", "/f%C3%BCr/x"),
            ("/a b/*", "/a%20b/x"),
            ("^/für$", "/f%C3%BCr"),
            ("^/fü+r$", "/f%C3%BC%C3%BCr"),
            ("^/(é|a)x$", "/%C3%A9x"),
            ("/w/[!a]", "/w/!"),
            ("/w/[]<_&&x]", "/w/<"),
            ("/w/[]a]", "/w/]"),
            ("/w/[+--]", "/w/,"),
            ("/w/[--0]", "/w/."),
            ("/w/[a-]", "/w/-"),
            ("/w/[-a]", "/w/-"),
            ("/w/[a-c-e]", "/w/-"),
            ("^/a%2[0-9]", "/a%20"),
            ("^/.*", "/a"),
            ("/.*", "/.well-known/x"),
            ("^(/a|/b)", "/b"),
            ("^/?a", "/a"),
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
            (r"^/user/\d+$", "/user/42/x"),
            ("^/a/^", "/a/x"),
            ("^/a/^b/.*", "/a/b/x"),
            (r"^/a/\A", "/a/x"),
        ] {
            assert!(!matches(pattern, path), "{pattern} {path}");
        }
    }

    #[test]
    fn a_pattern_that_does_not_compile_is_rejected_with_one_line() {
        let problems: String = ["", "/v[12", "/v[", "^/(", "/[z-a]", r"^/\p{Greek}"]
            .map(|invalid| invalid.parse::<PathPattern>().unwrap_err() + "\n")
            .concat();
        insta::assert_snapshot!(problems);
    }

    #[test]
    fn a_pattern_that_no_path_can_match_is_rejected() {
        let problems: String = [
            "api/*",
            "^api",
            "5",
            "http://x/a",
            "/a//b",
            "/a/../b",
            "/a/./*",
            "/%61",
            "^/%61$",
            "/f%c3%bcr*",
            "/a%2fb",
            "/100%",
            "/a#b",
            "/[é]x",
            "^/[^a-ü]x",
            r"^/a\?b=c",
        ]
        .map(|invalid| invalid.parse::<PathPattern>().unwrap_err() + "\n")
        .concat();
        insta::assert_snapshot!(problems);
    }

    #[test]
    fn a_pattern_covers_those_that_match_no_other_paths() {
        let covers = |one: &str, other: &str| {
            let [one, other] = [one, other].map(|text| text.parse::<PathPattern>().unwrap());
            one.covers(&other)
        };
        for (one, other) in [
            ("*", "/a"),
            ("^.*$", "/a/*"),
            ("/*", "^/a"),
            ("^/", "/v?"),
            ("^", "*"),
            ("/api/*", "/api/profile"),
            ("/api/**", "/api/v[12]/*"),
            ("^/api", "/api/*"),
            ("^(/api)/.*", "/api/x"),
            ("/v?", "/v?"),
            ("/a", "/a"),
        ] {
            assert!(covers(one, other), "{one} {other}");
        }
        for (one, other) in [
            ("/api/*", "/api"),
            ("/api/*", "/api*"),
            ("/api/*/x", "/api/y"),
            ("^/api$", "/api/x"),
            ("/v?", "/v1"),
            ("^(?i)/api", "/api"),
            ("^/a|/b", "/a"),
            ("^/a/^", "/a/b"),
            ("/a", "/b"),
        ] {
            assert!(!covers(one, other), "{one} {other}");
        }
    }

    proptest! {
        #[test]
        fn a_pattern_matches_every_path_that_a_covered_one_matches(
            one in "\\^?/[ab]?[ab*?]{0,3}\\$?|\\*",
            other in "\\^?/[ab*?]{0,4}\\$?",
            path in "/[ab]{0,5}",
        ) {
            let parse = |text: &str| text.parse::<PathPattern>();
            if let (Ok(first), Ok(second)) = (parse(&one), parse(&other))
                && first.covers(&second)
                && matches(&other, &path)
            {
                prop_assert!(matches(&one, &path));
            }
        }

        #[test]
        fn no_text_makes_the_parser_panic(text in "\\PC{0,12}|[\\^/\\[\\]!*?%é$(|)2f.-]{0,12}") {
            let _ = text.parse::<PathPattern>();
        }
    }
}
