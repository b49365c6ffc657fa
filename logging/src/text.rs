//! Formatting of what is written once per request, without `core::fmt`, which takes ten times as long.

use std::io::Write;
use std::time::Duration;

use bytes::BufMut;

/// Writes a number in decimal digits.
pub fn put_number(text: &mut impl BufMut, number: impl Into<u64>) {
    text.put_slice(itoa::Buffer::new().format(number.into()).as_bytes());
}

/// Writes a duration in seconds, to the microsecond.
pub fn put_seconds(text: &mut impl BufMut, duration: Duration) {
    put_number(text, duration.as_secs());
    text.put_u8(b'.');
    put_microseconds(text, duration.subsec_micros());
}

/// Writes the fraction of a second as six digits. `microseconds` is less than 1,000,000.
pub(crate) fn put_microseconds(text: &mut impl BufMut, microseconds: u32) {
    let mut digits = [b'0'; 6];
    let mut rest = microseconds;
    for digit in digits.iter_mut().rev() {
        *digit += u8::try_from(rest % 10).expect("a remainder of 10 is one digit");
        rest /= 10;
    }
    text.put_slice(&digits);
}

/// Writes a string in quotes whose control and invisible characters are escaped, as [`std::fmt::Debug`] does: an
/// operator reads lines of text on a terminal, which would obey what a client has sent.
pub fn put_escaped(line: &mut Vec<u8>, text: &str) {
    write!(line, "{text:?}").expect("writing to a Vec cannot fail");
}

/// Writes a JSON string (RFC 8259, section 7).
pub fn put_quoted(line: &mut Vec<u8>, text: &str) {
    serde_json::to_writer(line, text).expect("writing to a Vec cannot fail");
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_duration_is_that_of_core_fmt(microseconds: u64) {
            let duration = Duration::from_micros(microseconds);
            let mut text = Vec::new();
            put_seconds(&mut text, duration);
            let expected = format!("{}.{:06}", duration.as_secs(), duration.subsec_micros());
            prop_assert_eq!(String::from_utf8(text).unwrap(), expected);
        }

        #[test]
        fn a_json_string_is_read_as_it_was(text: String) {
            let mut line = Vec::new();
            put_quoted(&mut line, &text);
            prop_assert_eq!(serde_json::from_slice::<String>(&line).unwrap(), text);
        }

        #[test]
        fn an_escaped_text_has_no_control_characters(text: String) {
            let mut line = Vec::new();
            put_escaped(&mut line, &text);
            prop_assert!(!String::from_utf8(line).unwrap().contains(char::is_control));
        }
    }
}
