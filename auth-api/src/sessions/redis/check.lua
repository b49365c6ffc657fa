-- Returns 1 if a session of a user is active, else 0. Updates the time of last use at intervals, and adds the
-- session to the index again in case Redis has evicted the index. KEYS: session, index. ARGV: id, user,
-- interval (ms).
local session = redis.call('HMGET', KEYS[1], 'user', 'used')
if session[1] ~= ARGV[2] then
    return 0
end
local at = now()
if at - session[2] >= tonumber(ARGV[3]) then
    -- A Redis that rejects writes (out of memory, or unable to persist) still serves reads.
    local reply = redis.pcall('HSET', KEYS[1], 'used', at)
    if type(reply) == 'number' then
        add_to_index(KEYS[2], ARGV[1], at + redis.call('PTTL', KEYS[1]))
    end
end
return 1
