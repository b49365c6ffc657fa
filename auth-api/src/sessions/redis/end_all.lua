-- Ends every session of a user but one and tells every replica. KEYS: the user's sessions. ARGV: the id to
-- keep or nothing, user, channel, the announcement's head. Answers how many ended.
local ended = 0
for _, id in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do
    if id ~= ARGV[1] then
        ended = ended + redis.call('DEL', 'session:' .. id)
        redis.call('ZREM', KEYS[1], id)
    end
end
-- Also where none was left: whoever ended them may still wait for replicas to hear.
redis.call('PUBLISH', ARGV[3], ARGV[4] .. ' user:' .. ARGV[2])
return ended
