-- Whether a session of a user lives; its use is noted, and that it is there in case the index forgot. KEYS:
-- session, the user's sessions. ARGV: id, user, now, least time between notes (ms).
local session = redis.call('HMGET', KEYS[1], 'user', 'used')
if session[1] ~= ARGV[2] then
    return 0
end
if ARGV[3] - session[2] >= tonumber(ARGV[4]) then
    redis.call('HSET', KEYS[1], 'used', ARGV[3])
    note(KEYS[2], ARGV[1], now() + redis.call('PTTL', KEYS[1]))
end
return 1
