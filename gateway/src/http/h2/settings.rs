//! Settings (RFC 9113, section 6.5): those of the gateway, and what it takes from a client's.

use crate::http::h2::frame::{MAX_31_BIT, MAX_FRAME_SIZE, Reason};

pub(super) const HEADER_TABLE_SIZE: u16 = 1;
const ENABLE_PUSH: u16 = 2;
pub(super) const MAX_CONCURRENT_STREAMS: u16 = 3;
pub(super) const INITIAL_WINDOW_SIZE: u16 = 4;
const MAX_FRAME_SIZE_SETTING: u16 = 5;
pub(super) const MAX_HEADER_LIST_SIZE: u16 = 6;

/// Maximum number of settings in a frame, as in nghttp2. Each may change the windows of all streams: a frame of the largest
/// size would have 2,730 of them (CVE-2020-11080).
pub(super) const MAX_SETTINGS: usize = 32;
/// Largest value of `SETTINGS_MAX_FRAME_SIZE`.
const LARGEST_FRAME_SIZE: u32 = (1 << 24) - 1;

/// Setting that changes what the gateway sends. The others do not: it pushes nothing, opens no stream, and sends frames
/// and header lists that every client has to accept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Setting {
    HeaderTableSize(u32),
    InitialWindowSize(u32),
    Other,
}

/// Reads the payload of a SETTINGS frame.
///
/// # Errors
/// Each item is an error if the value is none of the setting. The payload as a whole is one if its length is wrong, or if it
/// has more than [`MAX_SETTINGS`] settings.
pub(super) fn read(
    payload: &[u8],
) -> Result<impl Iterator<Item = Result<Setting, Reason>> + '_, Reason> {
    let (settings, []) = payload.as_chunks::<6>() else {
        return Err(Reason::FrameSizeError);
    };
    if settings.len() > MAX_SETTINGS {
        return Err(Reason::EnhanceYourCalm);
    }
    Ok(settings.iter().map(|[high, low, value @ ..]| {
        let (id, value) = (
            u16::from_be_bytes([*high, *low]),
            u32::from_be_bytes(*value),
        );
        check(id, value)
    }))
}

fn check(id: u16, value: u32) -> Result<Setting, Reason> {
    match id {
        HEADER_TABLE_SIZE => Ok(Setting::HeaderTableSize(value)),
        INITIAL_WINDOW_SIZE if value > MAX_31_BIT => Err(Reason::FlowControlError),
        INITIAL_WINDOW_SIZE => Ok(Setting::InitialWindowSize(value)),
        ENABLE_PUSH if value > 1 => Err(Reason::ProtocolError),
        MAX_FRAME_SIZE_SETTING
            if !(MAX_FRAME_SIZE..=LARGEST_FRAME_SIZE as usize)
                .contains(&usize::try_from(value).unwrap_or(usize::MAX)) =>
        {
            Err(Reason::ProtocolError)
        }
        _ => Ok(Setting::Other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_all(settings: &[(u16, u32)]) -> Result<Vec<Setting>, Reason> {
        let payload: Vec<u8> = settings
            .iter()
            .flat_map(|(id, value)| [&id.to_be_bytes()[..], &value.to_be_bytes()].concat())
            .collect();
        read(&payload)?.collect()
    }

    #[test]
    fn settings_have_their_ranges() {
        let settings = [
            (1, 0),
            (2, 1),
            (3, 0),
            (4, 0x7fff_ffff),
            (5, 16_384),
            (99, 1),
        ];
        let expected = [
            Setting::HeaderTableSize(0),
            Setting::Other,
            Setting::Other,
            Setting::InitialWindowSize(0x7fff_ffff),
            Setting::Other,
            Setting::Other,
        ];
        assert_eq!(read_all(&settings), Ok(expected.to_vec()));
        for (setting, reason) in [
            ((2, 2), Reason::ProtocolError),
            ((4, 0x8000_0000), Reason::FlowControlError),
            ((5, 16_383), Reason::ProtocolError),
            ((5, 16_777_216), Reason::ProtocolError),
        ] {
            assert_eq!(read_all(&[setting]), Err(reason), "{setting:?}");
        }
        assert_eq!(read(&[0; 7]).err(), Some(Reason::FrameSizeError));
    }
}
