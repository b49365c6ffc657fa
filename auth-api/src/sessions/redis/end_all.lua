-- Ends every session of a user but one and tells every replica. KEYS: the user's sessions. ARGV: the id to
-- keep or nothing, channel.
local ended = 0
for _, id in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do
    if id ~= ARGV[1] then
        ended = ended + redis.call('DEL', 'session:' .. id)
        redis.call('ZREM', KEYS[1], id)
        redis.call('PUBLISH', ARGV[2], id)
    end
end
return ended
