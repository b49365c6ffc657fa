-- Time up to which every session of the account has ended, whatever the session store says. The Python service
-- works on with it.
ALTER TABLE users ADD COLUMN IF NOT EXISTS sessions_valid_after TIMESTAMP WITH TIME ZONE;
