//! One record of the audit log: a line of JSON in a file, or an event of the log on standard output, with
//! the same fields.

use chrono::{DateTime, SecondsFormat, Utc};
use serde::{Serialize, Serializer};

/// Target of the events, and field of the lines, by which programs that ship logs select them.
const TARGET: &str = "audit";

/// Record with the fields that its event has.
#[derive(Debug, Serialize)]
pub(super) struct AuditRecord {
    #[serde(serialize_with = "serialize_time")]
    pub(super) timestamp: DateTime<Utc>,
    pub(super) event: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) user: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) login: Option<String>,
    /// Pseudonym of a login without an account.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) unknown_login: Option<String>,
    /// Id and name of the OAuth client that an event concerns or that caused it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) oauth_client: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) oauth_client_name: Option<String>,
    /// Address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) client: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) user_agent: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) request_id: Option<String>,
    /// User id of the operator's process.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) operator: Option<u32>,
}

impl AuditRecord {
    /// Appends the record as a line.
    ///
    /// # Panics
    /// Never: every field is text or a number.
    pub(super) fn append_to(&self, lines: &mut Vec<u8>) {
        #[derive(Serialize)]
        struct Line<'r> {
            #[serde(flatten)]
            record: &'r AuditRecord,
            level: &'static str,
            message: &'static str,
            target: &'static str,
        }
        let line = Line {
            record: self,
            level: "INFO",
            message: "audit",
            target: TARGET,
        };
        serde_json::to_writer(&mut *lines, &line).expect("every field is text or a number");
        lines.push(b'\n');
    }

    /// Logs the record on standard output, or standard error in commands of an operator.
    pub(super) fn log(&self) {
        tracing::info!(
            target: TARGET,
            event = self.event,
            user = self.user,
            login = self.login,
            unknown_login = self.unknown_login,
            oauth_client = self.oauth_client,
            oauth_client_name = self.oauth_client_name,
            client = self.client,
            user_agent = self.user_agent,
            request_id = self.request_id,
            operator = self.operator,
            "audit"
        );
    }
}

fn serialize_time<S: Serializer>(time: &DateTime<Utc>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&time.to_rfc3339_opts(SecondsFormat::Micros, true))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_the_fields_that_the_event_has() {
        let record = AuditRecord {
            timestamp: DateTime::from_timestamp_micros(1_795_441_820_191_421).unwrap(),
            event: "login",
            user: Some(1),
            login: Some("a\n\"b".to_owned()),
            unknown_login: None,
            oauth_client: None,
            oauth_client_name: None,
            client: Some(String::new()),
            user_agent: None,
            request_id: None,
            operator: None,
        };
        let mut line = Vec::new();
        record.append_to(&mut line);
        assert_eq!(
            String::from_utf8(line).unwrap(),
            "{\"timestamp\":\"2026-11-23T13:50:20.191421Z\",\"event\":\"login\",\"user\":1,\"login\":\"a\\n\\\"b\",\
             \"client\":\"\",\"level\":\"INFO\",\"message\":\"audit\",\"target\":\"audit\"}\n"
        );
    }
}
