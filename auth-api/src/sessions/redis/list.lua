-- Returns the active sessions of a user. KEYS: index.
local sessions = {}
for _, id in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do
    local session = redis.call('HMGET', 'session:' .. id, 'created', 'used', 'address', 'agent', 'auth')
    if session[1] then
        sessions[#sessions + 1] =
            { id, session[1], session[2], session[3], session[4], auth_time(session[5], session[1]) }
    end
end
return sessions
