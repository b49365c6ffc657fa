-- Creates a session. KEYS: session, index. ARGV: id, user, lifetime (ms), maximum of sessions per user,
-- invalidation channel, SHA-256 of the refresh token, address, user agent, header of an invalidation, time of the
-- password's verification (µs), generation of the refresh token.
local at = now()
local expires_at = at + ARGV[3]
redis.call('HSET', KEYS[1], 'user', ARGV[2], 'created', at, 'used', at, 'refresh', ARGV[6],
    'address', ARGV[7], 'agent', ARGV[8], 'auth', ARGV[10], 'generation', ARGV[11])
redis.call('PEXPIREAT', KEYS[1], expires_at)
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', at)
add_to_index(KEYS[2], ARGV[1], expires_at)

-- The maximum bounds the time for which a script blocks Redis. The sessions that would expire first are ended.
local surplus = redis.call('ZCARD', KEYS[2]) - ARGV[4]
if surplus > 0 then
    for _, id in ipairs(redis.call('ZRANGE', KEYS[2], 0, surplus - 1)) do
        redis.call('DEL', 'session:' .. id)
        redis.call('ZREM', KEYS[2], id)
        redis.call('PUBLISH', ARGV[5], ARGV[9] .. ' ' .. id)
    end
end
return 1
