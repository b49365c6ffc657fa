-- Begins a session. KEYS: session, the user's sessions. ARGV: id, user, now, end (ms), most sessions of one
-- user, channel, refresh token's SHA-256, address, user agent, an announcement's head.
redis.call('HSET', KEYS[1], 'user', ARGV[2], 'created', ARGV[3], 'used', ARGV[3], 'refresh', ARGV[7],
    'address', ARGV[8], 'agent', ARGV[9])
redis.call('PEXPIREAT', KEYS[1], ARGV[4])
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', ARGV[3])
note(KEYS[2], ARGV[1], ARGV[4])

-- Without a bound one script could hold Redis up for long. The sessions that would end first go.
local surplus = redis.call('ZCARD', KEYS[2]) - ARGV[5]
if surplus > 0 then
    for _, id in ipairs(redis.call('ZRANGE', KEYS[2], 0, surplus - 1)) do
        redis.call('DEL', 'session:' .. id)
        redis.call('ZREM', KEYS[2], id)
        redis.call('PUBLISH', ARGV[6], ARGV[10] .. ' ' .. id)
    end
end
return 1
