//! Path patterns: globs against a plain matcher (`fnmatch` by recursion), and several patterns against each alone.

use gateway::fuzz::{Patterns, normalise_path};

/// Input: lines. The first is a path, the others are patterns.
pub(crate) fn run(input: &[u8]) {
    let Ok(text) = str::from_utf8(input) else {
        return;
    };
    let mut lines = text.split('\n');
    let path = lines
        .next()
        .and_then(|path| normalise_path(path.as_bytes()));
    let Some(path) = path else {
        return;
    };
    let (mut valid, mut first) = (Vec::new(), None);
    for pattern in lines.take(8) {
        let Ok(compiled) = Patterns::compile(&[pattern]) else {
            continue;
        };
        let matches = compiled.find(&path).is_some();
        if let Some(expected) = plain_match(pattern, &path) {
            assert_eq!(matches, expected, "{pattern} and {path}");
        }
        if matches {
            first.get_or_insert(valid.len());
        }
        valid.push(pattern);
    }
    let all = Patterns::compile(&valid).expect("each is valid");
    assert_eq!(all.find(&path), first, "{valid:?} and {path}");
}

/// Returns whether a glob or an exact path matches, `None` for a regular expression.
fn plain_match(pattern: &str, path: &str) -> Option<bool> {
    if pattern.starts_with('^') {
        return None;
    }
    let tokens = tokens(pattern)?;
    Some(matches(&tokens, path.as_bytes()))
}

#[derive(Debug)]
enum Token {
    /// Any characters, `/` included.
    Any,
    One,
    Byte(u8),
    Class {
        is_negated: bool,
        ranges: Vec<(u8, u8)>,
    },
}

/// Splits a pattern, whose characters that a path has encoded are encoded. Returns `None` for an exact path with
/// brackets that are none, which is rejected elsewhere.
fn tokens(pattern: &str) -> Option<Vec<Token>> {
    let is_glob = pattern.contains(['*', '?', '[']);
    let (mut tokens, mut rest) = (Vec::new(), pattern);
    while let Some(character) = rest.chars().next() {
        rest = &rest[character.len_utf8()..];
        match character {
            '*' if is_glob => tokens.push(Token::Any),
            '?' if is_glob => tokens.push(Token::One),
            '[' if is_glob => {
                let (class, after) = class(rest)?;
                tokens.push(class);
                rest = after;
            }
            character if character.is_ascii_graphic() => {
                tokens.push(Token::Byte(u8::try_from(character).ok()?));
            }
            character => {
                for byte in character.encode_utf8(&mut [0; 4]).bytes() {
                    tokens.extend(format!("%{byte:02X}").bytes().map(Token::Byte));
                }
            }
        }
    }
    Some(tokens)
}

fn class(text: &str) -> Option<(Token, &str)> {
    let (is_negated, text) = match text.strip_prefix('^') {
        Some(text) => (true, text),
        None => (false, text),
    };
    let first = text.chars().next()?;
    let end = first.len_utf8() + text[first.len_utf8()..].find(']')?;
    let members = &text.as_bytes()[..end];
    let (mut ranges, mut rest) = (Vec::new(), members);
    while let [first, after @ ..] = rest {
        if let [b'-', last, after @ ..] = after {
            ranges.push((*first, *last));
            rest = after;
        } else {
            ranges.push((*first, *first));
            rest = after;
        }
    }
    Some((Token::Class { is_negated, ranges }, &text[end + 1..]))
}

fn matches(tokens: &[Token], path: &[u8]) -> bool {
    // Matches of the rest of the tokens with each suffix of the path: recursion from token to token, in a table, since a
    // stack of calls takes exponential time.
    let mut row: Vec<bool> = (0..=path.len()).map(|start| start == path.len()).collect();
    for token in tokens.iter().rev() {
        let mut next = vec![false; row.len()];
        for start in (0..row.len()).rev() {
            let one = |is_match: &dyn Fn(u8) -> bool| {
                path.get(start)
                    .is_some_and(|byte| is_match(*byte) && row[start + 1])
            };
            next[start] = match token {
                Token::Any => row[start] || next.get(start + 1).copied().unwrap_or(false),
                Token::One => one(&|_| true),
                Token::Byte(expected) => one(&|byte| byte == *expected),
                Token::Class { is_negated, ranges } => one(&|byte| {
                    let is_member = ranges
                        .iter()
                        .any(|(first, last)| (*first..=*last).contains(&byte));
                    is_member != *is_negated
                }),
            };
        }
        row = next;
    }
    row[0]
}
