//! Formatting of header values and addresses for what is written once per request, without `core::fmt`,
//! which takes ten times as long.

use std::net::{IpAddr, SocketAddr};

use bytes::BufMut;
use bytes::buf::Limit;
use http::HeaderValue;
use logging::put_number;

/// Bytes of the longest header value that is formatted here: an IPv6 address, or a `RateLimit` value.
const MAX_VALUE_LENGTH: usize = 64;

/// Returns the header value that `write` writes, of at most [`MAX_VALUE_LENGTH`] bytes.
///
/// # Panics
/// Panics if the value is longer or contains bytes that a header value must not.
pub(crate) fn header_value(write: impl FnOnce(&mut Limit<&mut [u8]>)) -> HeaderValue {
    let mut buffer = [0; MAX_VALUE_LENGTH];
    let mut rest = buffer.as_mut_slice().limit(MAX_VALUE_LENGTH);
    write(&mut rest);
    let length = MAX_VALUE_LENGTH - rest.get_ref().len();
    HeaderValue::from_bytes(&buffer[..length]).expect("callers write printable characters")
}

/// Returns an address and its port as a header value.
pub(crate) fn address_value(socket: SocketAddr) -> HeaderValue {
    header_value(|text| put_socket_address(text, socket))
}

pub(crate) fn put_address(text: &mut impl BufMut, address: IpAddr) {
    let IpAddr::V4(address) = address else {
        // The standard library formats the canonical form (RFC 5952).
        return text.put_slice(address.to_string().as_bytes());
    };
    let [first, rest @ ..] = address.octets();
    put_number(text, first);
    for octet in rest {
        text.put_u8(b'.');
        put_number(text, octet);
    }
}

/// Writes an address and its port.
pub(crate) fn put_socket_address(text: &mut impl BufMut, socket: SocketAddr) {
    match socket.ip() {
        ip @ IpAddr::V4(_) => put_address(text, ip),
        ip @ IpAddr::V6(_) => {
            text.put_u8(b'[');
            put_address(text, ip);
            text.put_u8(b']');
        }
    }
    text.put_u8(b':');
    put_number(text, socket.port());
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn written(write: impl FnOnce(&mut Vec<u8>)) -> String {
        let mut text = Vec::new();
        write(&mut text);
        String::from_utf8(text).unwrap()
    }

    proptest! {
        #[test]
        fn the_text_is_that_of_core_fmt(v4: [u8; 4], v6: [u8; 16], port: u16) {
            for ip in [IpAddr::from(v4), IpAddr::from(v6)] {
                prop_assert_eq!(written(|text| put_address(text, ip)), ip.to_string());
                let peer = SocketAddr::new(ip, port);
                prop_assert_eq!(written(|text| put_socket_address(text, peer)), peer.to_string());
                let value = header_value(|text| put_address(text, ip));
                prop_assert_eq!(value.to_str().unwrap(), ip.to_string());
            }
        }
    }
}
