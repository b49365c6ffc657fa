//! Rows of both stores, whatever is in them: accounts, sessions and times.

use auth_api::fuzz::{
    AccountRow, SessionStore, decode_postgres_time, decode_session, permits_session,
};

use crate::input::Choices;

/// Input: the columns.
pub(crate) fn run(input: &[u8]) {
    let mut choices = Choices::new(input);
    let is_disabled = choices.byte() & 1 != 0;
    let sessions_valid_after = (choices.byte() & 1 != 0).then(|| number(&mut choices));
    let (id, auth_time) = (number(&mut choices), number(&mut choices));
    let row = AccountRow {
        id,
        login: text(&mut choices),
        password_hash: text(&mut choices),
        is_disabled,
        sessions_valid_after,
    };
    let is_permitted = permits_session(row, auth_time);
    let is_after = auth_time > sessions_valid_after.unwrap_or(i64::MIN);
    assert_eq!(is_permitted, !is_disabled && is_after);

    let times = [number(&mut choices), number(&mut choices)];
    let id = text(&mut choices);
    for store in [SessionStore::Redis, SessionStore::Sqlite] {
        let (address, user_agent) = (String::new(), String::new());
        let row = (
            id.clone(),
            times[0],
            times[1],
            address,
            user_agent,
            auth_time,
        );
        if let Some((decoded, shown)) = decode_session(row, store) {
            assert_eq!(decoded, id);
            assert!(id.len() == 32 && id.bytes().all(|byte| b"0123456789abcdef".contains(&byte)));
            assert!(
                shown.iter().all(|time| is_representable(time)),
                "{shown:?} in {store:?}"
            );
        }
    }
    if let Some(time) = decode_postgres_time(times[0]) {
        assert!(is_representable(&time), "{time}");
    }
}

/// Returns whether a text is a time as every client reads it: of a year from 1 to 9999 (RFC 3339).
fn is_representable(time: &str) -> bool {
    let year = time.split('-').next().unwrap_or_default();
    year.len() == 4 && year.bytes().all(|byte| byte.is_ascii_digit()) && year != "0000"
}

/// Takes a number, often an extreme one or a time of this century in some unit.
fn number(choices: &mut Choices<'_>) -> i64 {
    match choices.byte() {
        0 => i64::MIN,
        1 => i64::MAX,
        2 => i64::from(choices.number().cast_signed()),
        3 => 1_800_000_000_000,
        4 => 1_800_000_000_000_000,
        5 => 253_402_300_800_000,
        6 => 253_402_300_800_000_000,
        7 => -62_135_596_800_000_001,
        _ => i64::from(choices.number()) << 32 | i64::from(choices.number()),
    }
}

fn text(choices: &mut Choices<'_>) -> String {
    match choices.byte() {
        255 => "0199aa6e5b5c4d5f8e7b4d4a5a3b2c1d".to_owned(),
        length => String::from_utf8_lossy(choices.bytes(usize::from(length))).into_owned(),
    }
}
