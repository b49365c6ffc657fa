-- Ends every session of a user except one and publishes an invalidation. KEYS: index. ARGV: id to keep or an
-- empty string, user, invalidation channel, header of the invalidation, time (µs) at which the password was verified
-- in the session to keep. Returns the number of ended sessions.
local ended = 0
for _, id in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do
    if id ~= ARGV[1] then
        ended = ended + redis.call('DEL', 'session:' .. id)
        redis.call('ZREM', KEYS[1], id)
    end
end
if ARGV[1] ~= '' and redis.call('EXISTS', 'session:' .. ARGV[1]) == 1 then
    -- A Redis that is out of memory rejects it, and the session ends too.
    redis.pcall('HSET', 'session:' .. ARGV[1], 'auth', ARGV[5])
end
-- Also if none was left: the invalidation of those that had ended before may not be acknowledged yet.
redis.call('PUBLISH', ARGV[3], ARGV[4] .. ' user:' .. ARGV[2])
return ended
