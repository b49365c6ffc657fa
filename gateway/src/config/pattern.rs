//! Path patterns in Premier's style.
//!
//! One that starts with `^` is a regular expression, one with `*`, `?` or `[` a glob in which `*`
//! also crosses `/`, any other an exact path. All see the normalised path (see [`crate::path`]),
//! in which what is neither plain ASCII nor a delimiter is percent-encoded.

mod regex;

use std::fmt::{self, Write as _};
use std::str::FromStr;

use regex_automata::meta::Regex;
use regex_automata::util::syntax;

use self::regex::{PathRegex, Reach};
use crate::path::{self, Ambiguous};

/// A pattern that compiles, and that some path can match.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PathPattern {
    text: String,
    matcher: Matcher,
    /// What every path that it matches begins with.
    prefix: String,
    reach: Reach,
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

    /// Whether it matches all that another does, so far as can be told from their text.
    pub(super) fn covers(&self, other: &Self) -> bool {
        self.matcher == other.matcher
            || self.reach == Reach::Everything && other.prefix.starts_with(&self.prefix)
    }

    /// Whether it looks like a shell's pattern that means another thing here.
    pub(super) fn has_a_shells_negation(&self) -> bool {
        !self.text.starts_with('^') && self.text.contains("[!")
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
        let wrong = |problem: String| format!("`{text}` {problem}");
        if text.is_empty() {
            return Err("an empty pattern matches nothing".to_owned());
        }
        let regex = if text.starts_with('^') {
            text.to_owned()
        } else if text.contains(['*', '?', '[']) {
            regex_of_glob(text).map_err(wrong)?
        } else {
            let path: String = text.chars().map(encode).collect();
            must_be_seen(&path).map_err(wrong)?;
            return Ok(Self {
                text: text.to_owned(),
                matcher: Matcher::Exact(path.clone()),
                prefix: path,
                reach: Reach::Part,
            });
        };
        let regex = PathRegex::new(&regex).map_err(wrong)?;
        must_compile(&regex.text).map_err(wrong)?;
        Ok(Self {
            text: text.to_owned(),
            matcher: Matcher::Regex(regex.text),
            prefix: regex.prefix,
            reach: regex.reach,
        })
    }
}

fn must_compile(regex: &str) -> Result<(), String> {
    let built = Regex::builder().syntax(syntax()).build(regex);
    built.map(drop).map_err(|error| {
        let reason = error
            .syntax_error()
            .map_or_else(|| error.to_string(), ToString::to_string);
        format!("does not compile: {}", last_line(&reason))
    })
}

/// The parser draws the pattern over several lines; the last one says what is wrong.
fn last_line(reason: &str) -> &str {
    let line = reason.lines().last().unwrap_or(reason).trim();
    line.strip_prefix("error: ").unwrap_or(line)
}

/// Refuses a path that is never seen, since it is normalised or refused before.
fn must_be_seen(path: &str) -> Result<(), String> {
    if path.contains('?') {
        return Err("matches nothing: a path ends before its `?`".to_owned());
    }
    match path::normalise(path.as_bytes()) {
        Ok(normal) if normal == path => Ok(()),
        Ok(normal) => Err(format!(
            "matches nothing: paths are normalised, and `{path}` is `{normal}` then"
        )),
        Err(Ambiguous::NoSlash) => Err("matches nothing: a path begins with `/`".to_owned()),
        Err(ambiguous) => Err(format!(
            "matches nothing: requests for it are refused. {ambiguous}"
        )),
    }
}

fn regex_of_glob(glob: &str) -> Result<String, String> {
    let mut regex = String::from("^");
    let mut rest = glob;
    while let Some(letter) = rest.chars().next() {
        rest = &rest[letter.len_utf8()..];
        match letter {
            '*' => regex.push_str(".*"),
            '?' => regex.push('.'),
            '[' => rest = push_class(&mut regex, rest).ok_or("has `[` without `]`")?,
            _ => push_escaped(&mut regex, letter),
        }
    }
    regex.push('$');
    Ok(regex)
}

/// Adds the class that a text begins with, of which the opening bracket is taken. What is behind
/// the closing one is left.
fn push_class<'t>(regex: &mut String, text: &'t str) -> Option<&'t str> {
    let (negation, text) = match text.strip_prefix('^') {
        Some(text) => ("^", text),
        None => ("", text),
    };
    // A `]` right at the start of a class stands for itself.
    let mut letters = text.char_indices().skip(1);
    let (end, _) = letters.find(|(_, letter)| *letter == ']')?;
    regex.push('[');
    regex.push_str(negation);
    for member in text[..end].chars() {
        // Only a range's dash keeps its meaning.
        if member == '-' {
            regex.push(member);
        } else {
            push_escaped(regex, member);
        }
    }
    regex.push(']');
    Some(&text[end + 1..])
}

fn push_escaped(regex: &mut String, letter: char) {
    if regex_syntax::is_meta_character(letter) {
        regex.push('\\');
    }
    regex.push(letter);
}

/// A letter as a normalised path has it, which is ASCII without blanks and controls.
fn encode(letter: char) -> String {
    if letter.is_ascii_graphic() {
        return letter.to_string();
    }
    let mut encoded = String::new();
    for byte in letter.encode_utf8(&mut [0; 4]).bytes() {
        write!(encoded, "%{byte:02X}").expect("a String takes everything");
    }
    encoded
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
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
            ("/für/*", "/f%C3%BCr/x"),
            ("/a b/*", "/a%20b/x"),
            ("^/für$", "/f%C3%BCr"),
            ("^/fü+r$", "/f%C3%BC%C3%BCr"),
            ("^/(é|a)x$", "/%C3%A9x"),
            ("/w/[!a]", "/w/!"),
            ("/w/[]<_&&x]", "/w/<"),
            ("/w/[]a]", "/w/]"),
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
        ] {
            assert!(!matches(pattern, path), "{pattern} {path}");
        }
    }

    #[test]
    fn what_does_not_compile_is_said_in_a_line() {
        let problems: String = ["", "/v[12", "/v[", "^/(", "/[z-a]", r"^/\p{Greek}"]
            .map(|bad| bad.parse::<PathPattern>().unwrap_err() + "\n")
            .concat();
        insta::assert_snapshot!(problems);
    }

    #[test]
    fn what_no_path_can_match_is_told() {
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
        .map(|bad| bad.parse::<PathPattern>().unwrap_err() + "\n")
        .concat();
        insta::assert_snapshot!(problems);
    }

    #[test]
    fn a_pattern_covers_what_it_takes_all_of() {
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
            ("/a", "/b"),
        ] {
            assert!(!covers(one, other), "{one} {other}");
        }
    }

    proptest! {
        #[test]
        fn what_is_covered_is_taken(
            one in "\\^?/[ab]?[ab*?]{0,3}\\$?|\\*",
            other in "\\^?/[ab*?]{0,4}\\$?",
            path in "/[ab]{0,5}",
        ) {
            let read = |text: &str| text.parse::<PathPattern>();
            if let (Ok(first), Ok(second)) = (read(&one), read(&other))
                && first.covers(&second)
                && matches(&other, &path)
            {
                prop_assert!(matches(&one, &path));
            }
        }

        #[test]
        fn no_text_breaks_it(text in "\\PC{0,12}|[\\^/\\[\\]!*?%é$(|)2f.-]{0,12}") {
            let _ = text.parse::<PathPattern>();
        }
    }
}
