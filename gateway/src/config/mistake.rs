//! What is wrong with a configuration, said so that it can be mended at once.

use std::fmt;
use std::path::{Path, PathBuf};

/// A place in the file, counted from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    pub(super) line: usize,
    pub(super) column: usize,
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mistake {
    pub(super) place: Option<Place>,
    /// The key with all above it, as in `premier.paths[2].pattern`.
    pub(super) key: String,
    pub(super) problem: String,
    /// What to do about it.
    pub(super) hint: Option<String>,
}

/// Everything that is wrong with a file, in its order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mistakes {
    file: PathBuf,
    all: Vec<Mistake>,
}

impl Mistakes {
    pub(super) fn new(file: &Path, mut all: Vec<Mistake>) -> Self {
        all.sort_by_key(|mistake| mistake.place);
        Self {
            file: file.to_owned(),
            all,
        }
    }

    /// A file that is wrong as a whole.
    pub(super) fn of_file(file: &Path, problem: String) -> Self {
        Self::new(
            file,
            vec![Mistake {
                place: None,
                key: String::new(),
                problem,
                hint: None,
            }],
        )
    }

    pub(crate) fn count(&self) -> usize {
        self.all.len()
    }
}

impl fmt::Display for Mistakes {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, mistake) in self.all.iter().enumerate() {
            if number > 0 {
                writeln!(formatter)?;
            }
            write!(formatter, "{}", self.file.display())?;
            if let Some(Place { line, column }) = mistake.place {
                write!(formatter, ":{line}:{column}")?;
            }
            write!(formatter, ": ")?;
            if !mistake.key.is_empty() {
                write!(formatter, "{}: ", mistake.key)?;
            }
            write!(formatter, "{}", mistake.problem)?;
            if let Some(hint) = &mistake.hint {
                write!(formatter, "\n  {hint}")?;
            }
        }
        Ok(())
    }
}

impl std::error::Error for Mistakes {}

/// The known word that comes nearest to an unknown one, if any comes near.
pub(super) fn nearest<'a>(unknown: &str, known: &[&'a str]) -> Option<&'a str> {
    // Measured so that a typing slip is found and another word is not.
    const LEAST_LIKENESS: f64 = 0.75;
    known
        .iter()
        .map(|word| (strsim::jaro_winkler(unknown, word), *word))
        .filter(|(likeness, _)| *likeness >= LEAST_LIKENESS)
        .max_by(|(one, _), (other, _)| one.total_cmp(other))
        .map(|(_, word)| word)
}

/// What to do about an unknown word.
pub(super) fn instead_of(unknown: &str, known: &[&str]) -> String {
    let all = known.join(", ");
    match nearest(unknown, known) {
        Some(word) => format!("did you mean `{word}`? one of: {all}"),
        None => format!("one of: {all}"),
    }
}
