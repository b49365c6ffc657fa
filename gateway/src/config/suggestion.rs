//! Suggestions for misspelled keys and values.

/// Minimum Jaro-Winkler similarity of a suggestion. Chosen so that typing errors are recognised and
/// different words are not.
const MIN_SIMILARITY: f64 = 0.75;

/// Returns the known word that is most similar to an unknown one, or `None` if none is similar.
pub(super) fn most_similar<'a>(unknown: &str, known: &[&'a str]) -> Option<&'a str> {
    known
        .iter()
        .map(|word| (strsim::jaro_winkler(unknown, word), *word))
        .filter(|(similarity, _)| *similarity >= MIN_SIMILARITY)
        .max_by(|(one, _), (other, _)| one.total_cmp(other))
        .map(|(_, word)| word)
}

/// Returns the hint for an unknown word: the most similar known one, if any, and all known ones.
pub(super) fn suggest(unknown: &str, known: &[&str]) -> String {
    let all = known.join(", ");
    match most_similar(unknown, known) {
        Some(word) => format!("did you mean `{word}`? one of: {all}"),
        None => format!("one of: {all}"),
    }
}
