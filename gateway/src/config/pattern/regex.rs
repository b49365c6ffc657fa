//! Static analysis of the regular expressions of patterns: encoding of their literals, and the common
//! prefix of the paths that they match.

use regex_syntax::ast::parse::Parser;
use regex_syntax::ast::{
    AssertionKind, Ast, ClassSetItem, GroupKind, Literal, RepetitionKind, Span, Visitor, visit,
};

use crate::config::pattern::normalised::{encode, require_normalised};

/// Regular expression for normalised paths.
#[derive(Debug)]
pub(super) struct PathRegex {
    pub(super) text: String,
    /// Common prefix of all paths that it matches.
    pub(super) prefix: String,
    pub(super) coverage: PrefixCoverage,
}

/// Share of the paths with the prefix of a regular expression that it matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PrefixCoverage {
    /// All of them.
    Complete,
    /// Some of them, or unknown.
    Partial,
}

impl PathRegex {
    /// Analyses a regular expression.
    ///
    /// # Errors
    /// Returns an error, for the operator, if it is malformed or can match no path.
    pub(super) fn new(text: &str) -> Result<Self, String> {
        let text = encode_literals(text)?;
        let ast = parse(&text)?;
        let parts = match &ast {
            Ast::Concat(concat) => &concat.asts[..],
            one => std::slice::from_ref(one),
        };
        let mut prefix = String::new();
        let count = parts
            .iter()
            .take_while(|part| push_literals(&mut prefix, part))
            .count();
        require_normalised(&example_path(&prefix))?;
        let rest = &parts[count..];
        let matches_any_rest = rest
            .iter()
            .all(|part| is_match_all(part) || is_end_anchor(part))
            && rest.first().is_none_or(is_match_all);
        Ok(Self {
            text,
            prefix,
            coverage: if matches_any_rest {
                PrefixCoverage::Complete
            } else {
                PrefixCoverage::Partial
            },
        })
    }
}

fn parse(text: &str) -> Result<Ast, String> {
    Parser::new()
        .parse(text)
        .map_err(|error| format!("does not compile: {}", error.kind()))
}

/// Percent-encodes the literals of a regular expression as in a normalised path: `/für` becomes
/// `/f(?:%C3%BC)r`.
fn encode_literals(text: &str) -> Result<String, String> {
    let ast = parse(text)?;
    let literals = visit(&ast, UnencodedLiterals::default()).map_err(|character| {
        let encoded = encode(character);
        format!(
            "has `{character}` in […], but a path contains it as several characters, `{encoded}`"
        )
    })?;
    let (mut result, mut end) = (String::new(), 0);
    for (span, character) in literals {
        result.push_str(&text[end..span.start.offset]);
        result.push_str("(?:");
        result.push_str(&encode(character));
        result.push(')');
        end = span.end.offset;
    }
    result.push_str(&text[end..]);
    Ok(result)
}

/// Visitor that collects the literals which are percent-encoded in a path. Fails with such a literal in
/// a character class, since a class matches a single character.
#[derive(Debug, Default)]
struct UnencodedLiterals(Vec<(Span, char)>);

impl Visitor for UnencodedLiterals {
    type Output = Vec<(Span, char)>;
    type Err = char;

    fn finish(self) -> Result<Self::Output, char> {
        Ok(self.0)
    }

    fn visit_pre(&mut self, ast: &Ast) -> Result<(), char> {
        if let Ast::Literal(literal) = ast
            && !literal.c.is_ascii_graphic()
        {
            self.0.push((literal.span, literal.c));
        }
        Ok(())
    }

    fn visit_class_set_item_pre(&mut self, item: &ClassSetItem) -> Result<(), char> {
        let require_ascii = |literal: &Literal| {
            if literal.c.is_ascii() {
                Ok(())
            } else {
                Err(literal.c)
            }
        };
        match item {
            ClassSetItem::Literal(literal) => require_ascii(literal),
            ClassSetItem::Range(range) => {
                require_ascii(&range.start).and_then(|()| require_ascii(&range.end))
            }
            _ => Ok(()),
        }
    }
}

/// Appends the literals that a part begins with. Returns true if they are the whole part.
fn push_literals(prefix: &mut String, part: &Ast) -> bool {
    match part {
        Ast::Empty(_) => true,
        Ast::Literal(literal) => {
            prefix.push(literal.c);
            true
        }
        // After a literal it matches nothing.
        Ast::Assertion(assertion) => {
            let is_start = matches!(
                assertion.kind,
                AssertionKind::StartLine | AssertionKind::StartText
            );
            is_start && prefix.is_empty()
        }
        Ast::Concat(concat) => concat.asts.iter().all(|part| push_literals(prefix, part)),
        Ast::Group(group) => match &group.kind {
            // Flags may change the meaning of literals, as in `(?i)`.
            GroupKind::NonCapturing(flags) if !flags.items.is_empty() => false,
            _ => push_literals(prefix, &group.ast),
        },
        _ => false,
    }
}

/// Returns true for `.*`.
fn is_match_all(part: &Ast) -> bool {
    match part {
        Ast::Repetition(repetition) => {
            repetition.op.kind == RepetitionKind::ZeroOrMore
                && matches!(*repetition.ast, Ast::Dot(_))
        }
        _ => false,
    }
}

fn is_end_anchor(part: &Ast) -> bool {
    match part {
        Ast::Assertion(assertion) => matches!(
            assertion.kind,
            AssertionKind::EndLine | AssertionKind::EndText
        ),
        _ => false,
    }
}

/// Returns a path with a prefix. The prefix may be empty, or end within a percent-encoding, which is
/// removed.
fn example_path(prefix: &str) -> String {
    let truncated_encoding = prefix.rfind('%').filter(|start| prefix.len() - start < 3);
    let prefix = &prefix[..truncated_encoding.unwrap_or(prefix.len())];
    let root = if prefix.is_empty() { "/" } else { "" };
    format!("{root}{prefix}x")
}
