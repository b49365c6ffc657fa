//! Encoding of HTTP/1.1 messages.

use bytes::BufMut;
use http::Method;

/// Writes a request line. `target` is put together from its parts.
pub(crate) fn put_request_line(output: &mut Vec<u8>, method: &Method, target: &[&[u8]]) {
    output.put_slice(method.as_str().as_bytes());
    output.put_u8(b' ');
    for part in target {
        output.put_slice(part);
    }
    output.put_slice(b" HTTP/1.1\r\n");
}

/// Writes a header.
pub(crate) fn put_header(output: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    output.put_slice(name);
    output.put_slice(b": ");
    output.put_slice(value);
    output.put_slice(b"\r\n");
}
