//! gateway.yml: every error has a place within the file, and what `gateway check` accepts is what a gateway starts with.

use gateway::fuzz::{ConfigOutcome, load_config};

/// Input: a file.
pub(crate) fn run(input: &[u8]) {
    let Ok(text) = str::from_utf8(input) else {
        return;
    };
    let outcome = load_config(text);
    match &outcome {
        ConfigOutcome::Active { .. } => assert_eq!(load_config(text), outcome, "deterministic"),
        ConfigOutcome::NotActivated(error) => panic!("accepted by the check, but: {error}"),
        ConfigOutcome::Rejected { message, positions } => {
            assert!(!positions.is_empty(), "rejected without an error");
            for position in positions {
                // The file as a whole is named where it has no or several documents.
                let is_of_whole_file = position.is_none() && message.contains("YAML documents");
                assert!(
                    is_of_whole_file || position.is_some_and(|place| is_within(text, place)),
                    "{position:?} is not within the file: {message}"
                );
            }
        }
    }
}

/// Returns whether there is such a place in the text: a character, the end of a line, or the end of the file. A CR may
/// end a line or be a character of it, since the parser takes it for both.
fn is_within(text: &str, (line, column): (usize, usize)) -> bool {
    let text = text.replace("\r\n", "\n");
    let is_in = |mut lines: std::str::Split<'_, &[char]>| {
        let found = line.checked_sub(1).and_then(|index| lines.nth(index));
        found.is_some_and(|found| (1..=found.chars().count() + 1).contains(&column))
    };
    is_in(text.split(&['\n'][..])) || is_in(text.split(&['\n', '\r'][..]))
}
