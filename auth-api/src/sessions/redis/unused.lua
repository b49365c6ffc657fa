-- Returns until when a refresh token is valid (ms since 1970), and, if it is the last one of its session, when it was
-- issued. Returns an empty list unless it is unused and its session is active. Changes nothing. KEYS: session, index.
-- ARGV: user, maximum age (ms), time (µs) up to which the user's sessions have ended, SHA-256 of the presented token,
-- its generation, maximum of rotations that the store may have lost.
local rejection = rejection_by_replaced_primary(KEYS[2])
if rejection then
    return rejection
end
local values = redis.call('HMGET', KEYS[1], 'user', 'auth', 'created', 'refresh', 'generation', 'previous', 'rotated',
    'siblings')
local user, auth, created, refresh, generation, previous, rotated, siblings = unpack(values, 1, 8)
if user ~= ARGV[1] or tonumber(auth_time(auth, created)) <= tonumber(ARGV[3]) then
    return {}
end
local at = now()
local expires_at = with_max_age(at + redis.call('PTTL', KEYS[1]), created, ARGV[2])
if expires_at <= at then
    return {}
end
siblings = siblings_of(previous, siblings)
if not is_unused(ARGV[4], ARGV[5], refresh, generation, siblings, ARGV[6]) then
    return {}
end
if ARGV[4] == refresh then
    return { expires_at, tonumber(rotated or created) }
end
return { expires_at }
