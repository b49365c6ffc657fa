-- Exchanges a refresh token. KEYS: session, the user's sessions. ARGV: id, user, now, end, grace (ms),
-- SHA-256 of the token presented, of the next one, the next one sealed.
local session = redis.call('HMGET', KEYS[1], 'user', 'refresh', 'previous', 'rotated', 'successor')
if session[1] ~= ARGV[2] then
    return { 'gone' }
end
if session[2] == ARGV[6] then
    redis.call('HSET', KEYS[1], 'refresh', ARGV[7], 'previous', ARGV[6], 'successor', ARGV[8],
        'rotated', ARGV[3], 'used', ARGV[3])
    redis.call('PEXPIREAT', KEYS[1], ARGV[4])
    note(KEYS[2], ARGV[1], ARGV[4])
    return { 'rotated' }
end
if session[3] == ARGV[6] and ARGV[3] - session[4] <= tonumber(ARGV[5]) then
    return { 'repeated', session[5] }
end
return { 'stale' }
