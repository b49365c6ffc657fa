//! What can be told of a regular expression over paths before one is met.

use regex_syntax::ast::parse::Parser;
use regex_syntax::ast::{
    AssertionKind, Ast, ClassSetItem, GroupKind, Literal, RepetitionKind, Span, Visitor, visit,
};

use super::{encode, must_be_seen};

/// A regular expression that is written for the paths that the gateway sees.
#[derive(Debug)]
pub(super) struct PathRegex {
    pub(super) text: String,
    /// What every path that it matches begins with.
    pub(super) prefix: String,
    pub(super) reach: Reach,
}

/// What a regular expression matches of the paths that begin with its prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reach {
    Everything,
    /// So far as can be told.
    Part,
}

impl PathRegex {
    /// # Errors
    /// Why it is none, or can match nothing.
    pub(super) fn new(text: &str) -> Result<Self, String> {
        let text = with_encoded_letters(text)?;
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
        must_be_seen(&could_go_on(&prefix))?;
        let rest = &parts[count..];
        let is_open = rest.iter().all(|part| is_anything(part) || is_end(part))
            && rest.first().is_none_or(is_anything);
        Ok(Self {
            text,
            prefix,
            reach: if is_open {
                Reach::Everything
            } else {
                Reach::Part
            },
        })
    }
}

fn parse(text: &str) -> Result<Ast, String> {
    Parser::new()
        .parse(text)
        .map_err(|error| format!("does not compile: {}", error.kind()))
}

/// The same in which letters stand as a path has them: `/für` is `/f%C3%BCr` there.
fn with_encoded_letters(text: &str) -> Result<String, String> {
    let ast = parse(text)?;
    let letters = visit(&ast, Letters::default()).map_err(|letter| {
        let encoded = encode(letter);
        format!("has `{letter}` in […], and in a path that is several characters, `{encoded}`")
    })?;
    let (mut done, mut end) = (String::new(), 0);
    for (span, letter) in letters {
        done.push_str(&text[end..span.start.offset]);
        done.push_str("(?:");
        done.push_str(&encode(letter));
        done.push(')');
        end = span.end.offset;
    }
    done.push_str(&text[end..]);
    Ok(done)
}

/// Finds the letters that are encoded in a path; those in a class cannot be.
#[derive(Debug, Default)]
struct Letters(Vec<(Span, char)>);

impl Visitor for Letters {
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
        let must_be_ascii = |literal: &Literal| {
            if literal.c.is_ascii() {
                Ok(())
            } else {
                Err(literal.c)
            }
        };
        match item {
            ClassSetItem::Literal(literal) => must_be_ascii(literal),
            ClassSetItem::Range(range) => {
                must_be_ascii(&range.start).and_then(|()| must_be_ascii(&range.end))
            }
            _ => Ok(()),
        }
    }
}

/// Adds the text that a part begins with, and says whether it is all of the part.
fn push_literals(prefix: &mut String, part: &Ast) -> bool {
    match part {
        Ast::Empty(_) => true,
        Ast::Literal(literal) => {
            prefix.push(literal.c);
            true
        }
        Ast::Assertion(assertion) => matches!(
            assertion.kind,
            AssertionKind::StartLine | AssertionKind::StartText
        ),
        Ast::Concat(concat) => concat.asts.iter().all(|part| push_literals(prefix, part)),
        Ast::Group(group) => match &group.kind {
            // Its flags may change what a letter matches.
            GroupKind::NonCapturing(flags) if !flags.items.is_empty() => false,
            _ => push_literals(prefix, &group.ast),
        },
        _ => false,
    }
}

fn is_anything(part: &Ast) -> bool {
    match part {
        Ast::Repetition(repetition) => {
            repetition.op.kind == RepetitionKind::ZeroOrMore
                && matches!(*repetition.ast, Ast::Dot(_))
        }
        _ => false,
    }
}

fn is_end(part: &Ast) -> bool {
    match part {
        Ast::Assertion(assertion) => matches!(
            assertion.kind,
            AssertionKind::EndLine | AssertionKind::EndText
        ),
        _ => false,
    }
}

/// A path that begins with a prefix, which may end within an encoding or a segment.
fn could_go_on(prefix: &str) -> String {
    let encoding = prefix.rfind('%').filter(|start| prefix.len() - start < 3);
    let whole = &prefix[..encoding.unwrap_or(prefix.len())];
    let root = if whole.is_empty() { "/" } else { "" };
    format!("{root}{whole}x")
}
