-- Functions that scripts have in common. This text precedes theirs.

-- Milliseconds since 1970 by the clock of Redis, which all replicas share.
local function now()
    local time = redis.call('TIME')
    return time[1] * 1000 + math.floor(time[2] / 1000)
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

-- Time (ms) at which a session ends that would expire at `expires_at`. Its maximum age (ms) is 0 if there is none.
local function with_max_age(expires_at, created, max_age)
    if tonumber(max_age) == 0 then
        return expires_at
    end
    return math.min(expires_at, created + max_age)
end

