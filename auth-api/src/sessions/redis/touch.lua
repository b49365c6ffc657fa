-- Whether a session of a user lives; its use is noted, and that it is there in case the index forgot. KEYS:
-- session, the user's sessions. ARGV: id, user, least time between notes (ms).
local session = redis.call('HMGET', KEYS[1], 'user', 'used')
if session[1] ~= ARGV[2] then
    return 0
end
local at = now()
if at - session[2] >= tonumber(ARGV[3]) then
    -- A Redis that takes no writes (it is full, or cannot save) still knows who is logged in.
    local noted = redis.pcall('HSET', KEYS[1], 'used', at)
    if type(noted) == 'number' then
        note(KEYS[2], ARGV[1], at + redis.call('PTTL', KEYS[1]))
    end
end
return 1
