-- Exchanges a refresh token. KEYS: session, the user's sessions. ARGV: id, user, lifetime, grace (ms), SHA-256 of
-- the token presented, of the next one, the next one sealed.
local session = redis.call('HMGET', KEYS[1], 'user', 'refresh', 'previous', 'rotated', 'successor')
if session[1] ~= ARGV[2] then
    return { 'gone' }
end
local at = now()
if session[2] == ARGV[5] then
    local ends = at + ARGV[3]
    redis.call('HSET', KEYS[1], 'refresh', ARGV[6], 'previous', ARGV[5], 'successor', ARGV[7],
        'rotated', at, 'used', at)
    redis.call('PEXPIREAT', KEYS[1], ends)
    note(KEYS[2], ARGV[1], ends)
    return { 'rotated' }
end
if session[3] == ARGV[5] and at - session[4] <= tonumber(ARGV[4]) then
    return { 'repeated', session[5] }
end
return { 'stale' }
