-- Ends a session of a user and publishes an invalidation. KEYS: session, index. ARGV: id, user, invalidation
-- channel, header of the invalidation. Returns the number of ended sessions.
local rejection = rejection_by_replaced_primary(KEYS[2])
if rejection then
    return rejection
end
local ended = 0
if redis.call('HGET', KEYS[1], 'user') == ARGV[2] then
    ended = redis.call('DEL', KEYS[1])
    redis.call('ZREM', KEYS[2], ARGV[1])
end
-- Also for a session that had ended before: its invalidation may not be acknowledged yet.
redis.call('PUBLISH', ARGV[3], ARGV[4] .. ' ' .. ARGV[1])
return ended
