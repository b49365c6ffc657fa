-- Returns those of a user's sessions that are active. KEYS: sessions. ARGV: their ids.
local sessions = {}
for position, key in ipairs(KEYS) do
    local session = redis.call('HMGET', key, 'created', 'used', 'address', 'agent', 'auth')
    if session[1] then
        sessions[#sessions + 1] = { ARGV[position], session[1], session[2], session[3], session[4],
            auth_time(session[5], session[1]) }
    end
end
return sessions
