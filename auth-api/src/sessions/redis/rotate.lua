-- Rotates a refresh token. KEYS: session, index. ARGV: id, user, lifetime (ms), grace period (ms), SHA-256 of the
-- presented token, SHA-256 of its successor, sealed successor. Returns the outcome, with the sealed successor
-- of the last rotation if the token was rotated within the grace period.
local session = redis.call('HMGET', KEYS[1], 'user', 'refresh', 'previous', 'rotated', 'successor')
if session[1] ~= ARGV[2] then
    return { 'session_not_found' }
end
local at = now()
if session[2] == ARGV[5] then
    local expires_at = at + ARGV[3]
    redis.call('HSET', KEYS[1], 'refresh', ARGV[6], 'previous', ARGV[5], 'successor', ARGV[7],
        'rotated', at, 'used', at)
    redis.call('PEXPIREAT', KEYS[1], expires_at)
    add_to_index(KEYS[2], ARGV[1], expires_at)
    return { 'rotated' }
end
if session[3] == ARGV[5] and at - session[4] <= tonumber(ARGV[4]) then
    return { 'retried_within_grace', session[5] }
end
return { 'reused' }
