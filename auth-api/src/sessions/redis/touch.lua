-- Whether a session of a user lives; its use is noted. KEYS: session. ARGV: user, now, least time between
-- notes (ms).
local session = redis.call('HMGET', KEYS[1], 'user', 'used')
if session[1] ~= ARGV[1] then
    return 0
end
if ARGV[2] - session[2] >= tonumber(ARGV[3]) then
    redis.call('HSET', KEYS[1], 'used', ARGV[2])
end
return 1
