//! Normalised form of the paths in patterns.

use std::fmt::Write as _;

use crate::path::{self, PathError};

/// Checks that a path is in the normalised form in which requests are matched.
///
/// # Errors
/// Returns an error, for the operator, if no request has this path.
pub(super) fn require_normalised(path: &str) -> Result<(), String> {
    if path.contains('?') {
        return Err(
            "matches nothing: `?` begins the query, which is not part of the path".to_owned(),
        );
    }
    match path::normalise(path.as_bytes()) {
        Ok(normalised) if normalised == path => Ok(()),
        Ok(normalised) => Err(format!(
            "matches nothing: request paths are normalised, and `{path}` becomes `{normalised}`"
        )),
        Err(PathError::NoLeadingSlash) => Err("matches nothing: a path begins with `/`".to_owned()),
        Err(error) => Err(format!(
            "matches nothing: requests for it are rejected. {error}"
        )),
    }
}

/// Returns a character as in a normalised path, where all but printable ASCII is percent-encoded.
pub(super) fn encode(character: char) -> String {
    if character.is_ascii_graphic() {
        return character.to_string();
    }
    let mut encoded = String::new();
    for byte in character.encode_utf8(&mut [0; 4]).bytes() {
        write!(encoded, "%{byte:02X}").expect("writing to a String cannot fail");
    }
    encoded
}
