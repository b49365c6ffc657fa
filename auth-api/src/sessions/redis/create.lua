-- Begins a session. KEYS: session, the user's sessions. ARGV: id, user, lifetime (ms), most sessions of one
-- user, channel, refresh token's SHA-256, address, user agent, an announcement's head.
local at = now()
local ends = at + ARGV[3]
redis.call('HSET', KEYS[1], 'user', ARGV[2], 'created', at, 'used', at, 'refresh', ARGV[6],
    'address', ARGV[7], 'agent', ARGV[8])
redis.call('PEXPIREAT', KEYS[1], ends)
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', at)
note(KEYS[2], ARGV[1], ends)

-- Without a bound one script could hold Redis up for long. The sessions that would end first go.
local surplus = redis.call('ZCARD', KEYS[2]) - ARGV[4]
if surplus > 0 then
    for _, id in ipairs(redis.call('ZRANGE', KEYS[2], 0, surplus - 1)) do
        redis.call('DEL', 'session:' .. id)
        redis.call('ZREM', KEYS[2], id)
        redis.call('PUBLISH', ARGV[5], ARGV[9] .. ' ' .. id)
    end
end
return 1
