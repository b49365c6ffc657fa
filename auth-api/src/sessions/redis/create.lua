-- Creates a session. KEYS: session, index. ARGV: id, user, lifetime (ms), maximum of sessions per user, SHA-256 of the
-- refresh token, address, user agent, time of the password's verification (µs), generation of the refresh token.
-- Returns the ids of sessions beyond the maximum.
local at = now()
local expires_at = at + ARGV[3]
redis.call('HSET', KEYS[1], 'user', ARGV[2], 'created', at, 'used', at, 'refresh', ARGV[5],
    'address', ARGV[6], 'agent', ARGV[7], 'auth', ARGV[8], 'generation', ARGV[9])
redis.call('PEXPIREAT', KEYS[1], expires_at)
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', at)
add_to_index(KEYS[2], ARGV[1], expires_at)

-- The maximum bounds the time for which a script blocks Redis. The sessions that would expire first are to be ended, but not
-- the new one, which is among them if the lifetime of sessions was shortened.
local surplus = redis.call('ZCARD', KEYS[2]) - ARGV[4]
local displaced = {}
if surplus > 0 then
    for _, id in ipairs(redis.call('ZRANGE', KEYS[2], 0, surplus)) do
        if id ~= ARGV[1] and #displaced < surplus then
            displaced[#displaced + 1] = id
        end
    end
end
return displaced
