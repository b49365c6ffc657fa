//! Parser of the responses that a client receives.

use bytes::BytesMut;
use http::StatusCode;

use super::history::{ClientResponse, ResponseEnd};
use crate::http::h1::framing::{BodyDecoder, BodyEvent, ChunkSyntax};
use crate::http::message::Framing;

/// Message of the gateway.
#[derive(Debug)]
pub(super) enum ParsedResponse {
    Interim(StatusCode),
    Final(ClientResponse),
    Malformed(String),
}

/// Persistence that a response announces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Announcement {
    Persistent,
    Close,
}

pub(super) struct ResponseParser {
    pub(super) input: BytesMut,
    /// Response whose body is awaited.
    current: Option<(ClientResponse, BodyDecoder)>,
    pub(super) announcement: Announcement,
}

impl ResponseParser {
    pub(super) fn new() -> Self {
        Self {
            input: BytesMut::new(),
            current: None,
            announcement: Announcement::Persistent,
        }
    }

    pub(super) fn is_between_messages(&self) -> bool {
        self.current.is_none()
    }

    /// Returns the next message, `None` if more input is needed. `method` is that of the request that the next final
    /// response answers.
    pub(super) fn parse(&mut self, method: &str) -> Option<ParsedResponse> {
        if self.current.is_none() {
            match self.parse_headers(method) {
                Ok(None) => {}
                Ok(Some(interim)) => return Some(ParsedResponse::Interim(interim)),
                Err(malformed) => return Some(ParsedResponse::Malformed(malformed)),
            }
        }
        let (response, decoder) = self.current.as_mut()?;
        loop {
            match decoder.decode(&mut self.input, ChunkSyntax::Strict) {
                Ok(Some(BodyEvent::Data(data))) => response.body.extend_from_slice(&data),
                Ok(Some(BodyEvent::End)) => {
                    let (response, _) = self.current.take()?;
                    return Some(ParsedResponse::Final(response));
                }
                Ok(None) => return None,
                Err(error) => return Some(ParsedResponse::Malformed(error.to_string())),
            }
        }
    }

    /// Returns the response that the end of the connection has truncated.
    pub(super) fn finish(self) -> Option<ClientResponse> {
        let (mut response, _) = self.current?;
        response.end = ResponseEnd::Truncated;
        Some(response)
    }

    /// Parses the headers of the next message. Returns the status of an interim response.
    fn parse_headers(&mut self, method: &str) -> Result<Option<StatusCode>, String> {
        let Some(end) = memchr::memmem::find(&self.input, b"\r\n\r\n") else {
            return Ok(None);
        };
        let section = self.input.split_to(end + 4);
        let mut space = [httparse::EMPTY_HEADER; 32];
        let mut parsed = httparse::Response::new(&mut space);
        let complete = parsed.parse(&section);
        let code = parsed.code.and_then(|code| StatusCode::from_u16(code).ok());
        let (Ok(httparse::Status::Complete(_)), Some(status)) = (complete, code) else {
            return Err(section.escape_ascii().to_string());
        };
        if status.is_informational() {
            return Ok(Some(status));
        }
        let value = |name| {
            let header = parsed.headers.iter().find(|header| header.name == name)?;
            str::from_utf8(header.value).ok()
        };
        let number = |name| value(name).map(|value| value.parse().expect("it is a number"));
        if value("connection") == Some("close") {
            self.announcement = Announcement::Close;
        }
        let framing = match (number("content-length"), value("transfer-encoding")) {
            // The gateway does not know the method if its bytes are late.
            (length, _) if status == StatusCode::REQUEST_TIMEOUT => {
                Framing::Length(length.unwrap_or_default())
            }
            _ if method == "HEAD" || status == StatusCode::NO_CONTENT => Framing::Empty,
            (Some(length), None) => Framing::Length(length),
            (None, Some("chunked")) => Framing::Chunked,
            _ => return Err(section.escape_ascii().to_string()),
        };
        let response = ClientResponse {
            status,
            number: number("x-request").map(|number| u32::try_from(number).expect("it is one")),
            body: Vec::new(),
            end: ResponseEnd::Complete,
        };
        self.current = Some((response, BodyDecoder::from(framing)));
        Ok(None)
    }
}
