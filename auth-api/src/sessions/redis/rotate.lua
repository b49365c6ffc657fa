-- Exchanges a refresh token. KEYS: session, index. ARGV: id, user, lifetime (ms), maximum age (ms), grace period (ms),
-- time (µs) up to which the user's sessions have ended, SHA-256 of the presented token, its generation, SHA-256 of the
-- successor, its generation, sealed successor, maximum of unused siblings, maximum of
-- rotations that the store may have lost. Returns the outcome, and for a retry the
-- sealed successors that lead from the presented token to the current one.
local rejection = rejection_by_replaced_primary(KEYS[2])
if rejection then
    return rejection
end
local values = redis.call('HMGET', KEYS[1], 'user', 'auth', 'created', 'refresh', 'generation', 'previous', 'rotated',
    'successor', 'siblings', 'grandparent', 'grandparent_rotated', 'grandparent_successor')
local user, auth, created, refresh, generation, previous = unpack(values, 1, 6)
local rotated, successor, siblings, grandparent, grandparent_rotated, grandparent_successor = unpack(values, 7, 12)
if user ~= ARGV[2] or tonumber(auth_time(auth, created)) <= tonumber(ARGV[6]) then
    return { 'session_not_found' }
end
local at = now()
local expires_at = with_max_age(at + ARGV[3], created, ARGV[4])
if expires_at <= at then
    return { 'session_not_found' }
end
local presented = ARGV[7]
siblings = siblings_of(previous, siblings)

-- A time in the future means that the clock was set back.
local function is_within_grace(time)
    return time and at >= tonumber(time) and at - time <= tonumber(ARGV[5])
end

local function issue_successor()
    redis.call('HSET', KEYS[1], 'refresh', ARGV[9], 'generation', ARGV[10], 'successor', ARGV[11], 'rotated', at,
        'used', at)
    redis.call('PEXPIREAT', KEYS[1], expires_at)
    add_to_index(KEYS[2], ARGV[1], expires_at)
    return { 'rotated' }
end

if is_unused(presented, ARGV[8], refresh, generation, siblings, ARGV[13]) then
    -- The sealed successor leads to the current token, not to a sibling.
    if previous and presented == refresh then
        redis.call('HSET', KEYS[1], 'grandparent', previous, 'grandparent_rotated', rotated,
            'grandparent_successor', successor)
    else
        redis.call('HDEL', KEYS[1], 'grandparent', 'grandparent_rotated', 'grandparent_successor')
    end
    redis.call('HSET', KEYS[1], 'previous', presented)
    redis.call('HDEL', KEYS[1], 'siblings')
    return issue_successor()
end
if presented == previous then
    if is_within_grace(rotated) then
        return { 'retried', successor }
    end
    -- The response with the successor was lost, since no successor was used.
    local unused = (siblings .. refresh):sub(HASH_BYTES + 1)
    redis.call('HSET', KEYS[1], 'siblings', previous .. unused:sub(-HASH_BYTES * ARGV[12]))
    return issue_successor()
end
if presented == grandparent and is_within_grace(grandparent_rotated) then
    return { 'retried', grandparent_successor, successor }
end
return { 'reused' }
