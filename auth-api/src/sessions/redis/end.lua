-- Ends a session of a user and tells every replica. KEYS: session, the user's sessions. ARGV: id, user, channel,
-- the announcement's head. Answers how many ended and how many replicas are told.
if redis.call('HGET', KEYS[1], 'user') ~= ARGV[2] then
    return { 0, 0 }
end
redis.call('DEL', KEYS[1])
redis.call('ZREM', KEYS[2], ARGV[1])
return { 1, redis.call('PUBLISH', ARGV[3], ARGV[4] .. ' ' .. ARGV[1]) }
