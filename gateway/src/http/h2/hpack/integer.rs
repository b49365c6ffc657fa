//! Integers (RFC 7541, section 5.1): a prefix of some bits of the first byte, and further bytes if it is full.

/// Largest integer that is accepted. Larger ones are lengths and indexes of nothing.
const MAX_INTEGER: usize = 1 << 24;

/// Reads an integer with a prefix of `prefix_bits` bits, and returns it with the bytes that follow. `None` if it is
/// incomplete or too large.
pub(super) fn read(input: &[u8], prefix_bits: u8) -> Option<(usize, &[u8])> {
    let (first, mut rest) = input.split_first()?;
    let max_prefix = (1_usize << prefix_bits) - 1;
    let mut value = usize::from(*first) & max_prefix;
    if value < max_prefix {
        return Some((value, rest));
    }
    let mut shift = 0;
    loop {
        let (byte, after) = rest.split_first()?;
        rest = after;
        value += usize::from(byte & 0x7f) << shift;
        if value > MAX_INTEGER {
            return None;
        }
        if byte & 0x80 == 0 {
            return Some((value, rest));
        }
        shift += 7;
        // Further bytes could only be zeros.
        if shift > 21 {
            return None;
        }
    }
}

/// Writes an integer with a prefix of `prefix_bits` bits. The other bits of the first byte are those of `flags`.
pub(super) fn put(output: &mut Vec<u8>, prefix_bits: u8, flags: u8, value: usize) {
    let max_prefix = (1_u8 << prefix_bits) - 1;
    let Some(mut rest) = value.checked_sub(usize::from(max_prefix)) else {
        return output.push(flags | low_bits(value));
    };
    output.push(flags | max_prefix);
    while rest >= 0x80 {
        output.push(0x80 | low_bits(rest));
        rest >>= 7;
    }
    output.push(low_bits(rest));
}

/// Returns the low seven bits.
fn low_bits(value: usize) -> u8 {
    u8::try_from(value & 0x7f).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    // RFC 7541, appendix C.1.
    #[test]
    fn the_examples_of_the_rfc_are_read_and_written() {
        for (bytes, prefix_bits, value) in [
            (&[0b01010][..], 5, 10),
            (&[0b11111, 0b1001_1010, 0b1010], 5, 1337),
            (&[0b0010_1010], 7, 42),
        ] {
            assert_eq!(read(bytes, prefix_bits), Some((value, &[][..])));
            let mut output = Vec::new();
            put(&mut output, prefix_bits, 0, value);
            assert_eq!(output, bytes);
        }
    }

    #[test]
    fn integers_that_are_incomplete_or_too_large_are_rejected() {
        for bytes in [
            &[][..],
            &[0x1f],
            &[0x1f, 0x80],
            &[0x1f, 0xff, 0xff, 0xff, 0x0f],
            &[0x1f, 0x80, 0x80, 0x80, 0x80, 0x00],
        ] {
            assert_eq!(read(bytes, 5), None, "{bytes:x?}");
        }
    }

    proptest! {
        #[test]
        fn integers_are_read_as_they_are_written(
            prefix_bits in 1_u8..=7,
            value in 0_usize..1 << 20,
        ) {
            let mut output = Vec::new();
            put(&mut output, prefix_bits, 0, value);
            prop_assert_eq!(read(&output, prefix_bits), Some((value, &[][..])));
        }
    }
}
