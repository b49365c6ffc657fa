//! Numbers and addresses as text, for what is written for every request: `core::fmt`, which can do
//! anything, takes ten times as long.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use bytes::BufMut;
use bytes::buf::Limit;
use http::HeaderValue;

/// The longest header value that is made here: an IPv6 address, or a quota's standing.
const LONGEST_VALUE: usize = 64;

/// A header value of at most [`LONGEST_VALUE`] bytes, written by `write`.
///
/// # Panics
/// When it is longer, or not fit for a header.
pub(crate) fn header_value(write: impl FnOnce(&mut Limit<&mut [u8]>)) -> HeaderValue {
    let mut space = [0; LONGEST_VALUE];
    let mut rest = space.as_mut_slice().limit(LONGEST_VALUE);
    write(&mut rest);
    let length = LONGEST_VALUE - rest.get_ref().len();
    HeaderValue::from_bytes(&space[..length]).expect("it is written of printable characters")
}

pub(crate) fn number(text: &mut impl BufMut, number: impl Into<u64>) {
    text.put_slice(itoa::Buffer::new().format(number.into()).as_bytes());
}

/// So many microseconds as a fraction of a second: six digits.
pub(crate) fn fraction(text: &mut impl BufMut, microseconds: u32) {
    let mut digits = [b'0'; 6];
    let mut rest = microseconds;
    for digit in digits.iter_mut().rev() {
        *digit += u8::try_from(rest % 10).expect("it is one digit");
        rest /= 10;
    }
    text.put_slice(&digits);
}

/// A duration in seconds, to the microsecond.
pub(crate) fn seconds(text: &mut impl BufMut, duration: Duration) {
    number(text, duration.as_secs());
    text.put_u8(b'.');
    fraction(text, duration.subsec_micros());
}

pub(crate) fn address(text: &mut impl BufMut, address: IpAddr) {
    let IpAddr::V4(address) = address else {
        // Its shortest form (RFC 5952) is the library's to find.
        return text.put_slice(address.to_string().as_bytes());
    };
    let [first, rest @ ..] = address.octets();
    number(text, first);
    for octet in rest {
        text.put_u8(b'.');
        number(text, octet);
    }
}

/// An address and its port.
pub(crate) fn socket(text: &mut impl BufMut, socket: SocketAddr) {
    match socket.ip() {
        ip @ IpAddr::V4(_) => address(text, ip),
        ip @ IpAddr::V6(_) => {
            text.put_u8(b'[');
            address(text, ip);
            text.put_u8(b']');
        }
    }
    text.put_u8(b':');
    number(text, socket.port());
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
        fn it_is_what_the_library_would_write(v4: [u8; 4], v6: [u8; 16], port: u16, took: u64) {
            for ip in [IpAddr::from(v4), IpAddr::from(v6)] {
                prop_assert_eq!(written(|text| address(text, ip)), ip.to_string());
                let peer = SocketAddr::new(ip, port);
                prop_assert_eq!(written(|text| socket(text, peer)), peer.to_string());
                let value = header_value(|text| address(text, ip));
                prop_assert_eq!(value.to_str().unwrap(), ip.to_string());
            }
            let took = Duration::from_micros(took);
            let expected = format!("{}.{:06}", took.as_secs(), took.subsec_micros());
            prop_assert_eq!(written(|text| seconds(text, took)), expected);
        }
    }
}
