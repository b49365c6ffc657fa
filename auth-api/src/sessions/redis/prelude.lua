-- Functions that scripts have in common. This text precedes theirs.

-- Milliseconds since 1970 by the clock of Redis, which all replicas share.
local function now()
    local time = redis.call('TIME')
    return time[1] * 1000 + math.floor(time[2] / 1000)
end

-- Returns the error with which this server rejects writes because another one may be the primary, else nil: what it
-- returns may be old. One that rejects them because it is out of memory, or unable to persist them, still serves reads. The write
-- adds nothing to the index, and needs memory: after one that needs none, Redis lets a script exceed its limit.
local function rejection_by_replaced_primary(index)
    local reply = redis.pcall('ZADD', index, 'XX', 0, '')
    local text = type(reply) == 'table' and reply.err or ''
    if text:find('NOREPLICAS', 1, true) or text:find('READONLY', 1, true) then
        return reply
    end
end

-- Adds a session with its expiry (ms) to the index of its user's sessions. The index expires with the last of
-- them, in whatever order they are added: sessions that outlive their index could not be ended together.
local function add_to_index(index, id, expires_at)
    redis.call('ZADD', index, expires_at, id)
    redis.call('PEXPIREAT', index, redis.call('ZRANGE', index, -1, -1, 'WITHSCORES')[2])
end

-- Time (µs since 1970, as text) at which the password was last verified in a session: when it was created (ms),
-- if an earlier version of the program created it.
local function auth_time(stored, created)
    return stored or created .. '000'
end

-- Bytes of the SHA-256 of a refresh token.
local HASH_BYTES = 32

-- The unused successors of the previous refresh token other than the current one, after the hash of the previous token.
-- Stored ones belong to the token whose hash comes first: an earlier version of the program leaves old ones.
local function siblings_of(previous, stored)
    if not stored or stored:sub(1, HASH_BYTES) ~= previous then
        return previous or ''
    end
    return stored
end

-- Whether a refresh token is the current one, a sibling of it, or of a later generation: only this service issues
-- tokens, so one that is newer than the current token was issued by a rotation that the store has lost.
local function is_unused(presented, presented_generation, refresh, generation, siblings, max_lost_rotations)
    if presented == refresh then
        return true
    end
    for start = HASH_BYTES + 1, #siblings, HASH_BYTES do
        if presented == siblings:sub(start, start + HASH_BYTES - 1) then
            return true
        end
    end
    local lost = generation and (presented_generation - generation) % 4294967296 or 0
    return lost >= 1 and lost <= tonumber(max_lost_rotations)
end

-- Time (ms) at which a session ends that would expire at `expires_at`. Its maximum age (ms) is 0 if there is none.
local function with_max_age(expires_at, created, max_age)
    if tonumber(max_age) == 0 then
        return expires_at
    end
    return math.min(expires_at, created + max_age)
end

