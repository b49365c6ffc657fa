//! Timestamps of log lines, formatted without `core::fmt`, which takes ten times as long.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::text::put_microseconds;

/// Text of the current time, as in `2026-11-25T08:00:00.123456Z` (RFC 3339).
#[derive(Debug, Default)]
pub(crate) struct Timestamp {
    /// Second whose text is cached, since the Unix epoch.
    second: u64,
    text: Vec<u8>,
}

impl Timestamp {
    /// Returns the current time. The part down to the second is formatted once per second.
    pub(crate) fn now(&mut self) -> &[u8] {
        const FRACTION_LENGTH: usize = "000000Z".len();
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        if now.as_secs() != self.second || self.text.is_empty() {
            self.second = now.as_secs();
            let seconds = i64::try_from(self.second).unwrap_or(i64::MAX);
            let time = chrono::DateTime::from_timestamp(seconds, 0).unwrap_or_default();
            let text = time.format("%Y-%m-%dT%H:%M:%S.000000Z");
            self.text = text.to_string().into_bytes();
        }
        self.text.truncate(self.text.len() - FRACTION_LENGTH);
        put_microseconds(&mut self.text, now.subsec_micros());
        self.text.push(b'Z');
        &self.text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_current_time_is_rfc_3339() {
        let mut timestamp = Timestamp::default();
        for _ in 0..2 {
            let text = String::from_utf8(timestamp.now().to_vec()).unwrap();
            let parsed = chrono::DateTime::parse_from_rfc3339(&text).unwrap();
            let now = chrono::DateTime::<chrono::Utc>::from(SystemTime::now());
            assert!((now - parsed.to_utc()).num_seconds() < 60, "{text}");
            assert_eq!(text.len(), "2026-11-25T08:00:00.123456Z".len());
        }
    }
}
