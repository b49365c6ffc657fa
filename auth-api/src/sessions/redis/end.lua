-- Ends a session of a user and tells every replica. KEYS: session, the user's sessions. ARGV: id, user, channel,
-- the announcement's head. Answers how many ended.
local ended = 0
if redis.call('HGET', KEYS[1], 'user') == ARGV[2] then
    ended = redis.call('DEL', KEYS[1])
    redis.call('ZREM', KEYS[2], ARGV[1])
end
-- Also of one that had ended: whoever ended it may still wait for replicas to hear.
redis.call('PUBLISH', ARGV[3], ARGV[4] .. ' ' .. ARGV[1])
return ended
