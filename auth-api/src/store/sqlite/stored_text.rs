//! Text of a column. SQLite checks neither that it is UTF-8 nor, in a table that is not strict, that it is text.

use sqlx::error::BoxDynError;
use sqlx::sqlite::{SqliteTypeInfo, SqliteValueRef};
use sqlx::{Decode, Sqlite, Type};

/// Text of a column, whatever it holds: what is not UTF-8 becomes the replacement character. A row that cannot be read
/// would fail the queries of other users, such as a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StoredText(pub(crate) String);

impl Type<Sqlite> for StoredText {
    fn type_info() -> SqliteTypeInfo {
        <str as Type<Sqlite>>::type_info()
    }

    fn compatible(_: &SqliteTypeInfo) -> bool {
        true
    }
}

impl<'r> Decode<'r, Sqlite> for StoredText {
    fn decode(value: SqliteValueRef<'r>) -> Result<Self, BoxDynError> {
        // SQLite converts a value of another type.
        let bytes = <&[u8] as Decode<Sqlite>>::decode(value)?;
        Ok(Self(String::from_utf8_lossy(bytes).into_owned()))
    }
}
