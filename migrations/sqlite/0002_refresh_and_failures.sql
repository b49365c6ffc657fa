-- Since when an account may not be used.
ALTER TABLE users ADD COLUMN disabled_at INTEGER;

-- The refresh token before the current one, when it was exchanged, and its successor, which only it can open.
ALTER TABLE sessions ADD COLUMN previous_hash BLOB;
ALTER TABLE sessions ADD COLUMN rotated_at INTEGER;
ALTER TABLE sessions ADD COLUMN successor BLOB;

-- Failed logins, by the SHA-256 of the name that was tried.
CREATE TABLE failures (
    login BLOB PRIMARY KEY,
    count INTEGER NOT NULL,
    until INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE INDEX failures_by_end ON failures (until);
