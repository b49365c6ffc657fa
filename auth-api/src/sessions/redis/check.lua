-- Returns the time (µs) of the password's verification if a session of a user is active, else nil. Updates the time
-- of last use at intervals, and adds the session to the index again in case Redis has evicted the index.
-- KEYS: session, index. ARGV: id, user, interval (ms), maximum age (ms).
local rejection = rejection_by_replaced_primary(KEYS[2])
if rejection then
    return rejection
end
local session = redis.call('HMGET', KEYS[1], 'user', 'used', 'auth', 'created')
if session[1] ~= ARGV[2] then
    return false
end
local at = now()
local expires_at = at + redis.call('PTTL', KEYS[1])
if with_max_age(expires_at, session[4], ARGV[4]) <= at then
    return false
end
if at - session[2] >= tonumber(ARGV[3]) then
    -- A Redis that rejects writes (out of memory, or unable to persist) still serves reads.
    local reply = redis.pcall('HSET', KEYS[1], 'used', at)
    if type(reply) == 'number' then
        add_to_index(KEYS[2], ARGV[1], expires_at)
    end
end
return auth_time(session[3], session[4])
