-- Time up to which every session of the account has ended, also in a backup of this file.
ALTER TABLE users ADD COLUMN sessions_valid_after INTEGER;

-- When the password was last verified in the session; NULL: when it was created.
ALTER TABLE sessions ADD COLUMN authenticated_at INTEGER;

-- Number of the current refresh token in the session, modulo 2^32.
ALTER TABLE sessions ADD COLUMN generation INTEGER;
-- Hashes of the previous token and of its unused successors other than the current token.
ALTER TABLE sessions ADD COLUMN siblings BLOB;
-- The refresh token before the previous one, when it was exchanged, and its successor, which only it can open.
ALTER TABLE sessions ADD COLUMN grandparent_hash BLOB;
ALTER TABLE sessions ADD COLUMN grandparent_rotated_at INTEGER;
ALTER TABLE sessions ADD COLUMN grandparent_successor BLOB;
